package main

import (
	"reflect"
	"strings"
	"testing"

	"starling/node/api"
)

// Every key of starling.toml is in the list that a wrong one is answered with,
// and in the help.
func TestEverySettingIsSaid(t *testing.T) {
	var keys []string
	for f := range reflect.TypeFor[settings]().Fields() {
		keys = append(keys, f.Tag.Get("toml"))
		if key := keys[len(keys)-1]; !strings.Contains(settingsHelp, "\n  "+key+" = ") {
			t.Errorf("the help does not say what %s is", key)
		}
	}
	if got := strings.Join(keys, ", "); got != knownKeys {
		t.Errorf("the keys are %s, and those named are %s", got, knownKeys)
	}
}

func TestConnectionsInWords(t *testing.T) {
	var cs []*api.Connection
	for range 14 {
		cs = append(cs, &api.Connection{Contact: "Bo\x1b", Path: api.PathDirect})
	}
	cs[1].Path = api.PathCircuit
	got := connections(cs)
	if !strings.HasPrefix(got, `Bo\x1b directly, Bo\x1b through a circuit, `) || !strings.HasSuffix(got, ", 2 more") {
		t.Errorf("got %q", got)
	}
	if got := connections(nil); got != "" {
		t.Errorf("nobody connected: got %q", got)
	}
	if got := paths(cs); got[api.PathDirect] != 13 || got[api.PathCircuit] != 1 {
		t.Errorf("counted %v", got)
	}
}
