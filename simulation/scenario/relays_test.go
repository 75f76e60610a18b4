package scenario

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"starling/protocol"
	"starling/simulation"
)

// watch plays a scenario, and returns the most people who ran at one time, too.
func watch(t *testing.T, s *Scenario, set map[string]string) (r *simulation.Result, most int) {
	t.Helper()
	cfg, play, err := s.Build(1, set)
	if err != nil {
		t.Fatal(err)
	}
	people, up := map[string]bool{}, map[string]bool{}
	for _, n := range cfg.Nodes {
		people[n.Name] = true
	}
	cfg.Sink = func(e simulation.Event) {
		switch {
		case !people[e.Node]:
		case e.Type == "start":
			up[e.Node] = true
			most = max(most, len(up))
		case e.Type == "stop", e.Type == "crash":
			delete(up, e.Node)
		}
	}
	if r, err = simulation.Run(cfg, play); err != nil {
		t.Fatalf("%v\nrepeat it with: %s", err, cfg.Repeat)
	}
	accepted, shown := delivered(r)
	if accepted == 0 || shown != accepted {
		t.Errorf("%d messages were accepted, and %d shown", accepted, shown)
	}
	t.Logf("%d messages, %v of cpu, %+v", accepted, time.Duration(r.Manifest.CPU), r.Relays)
	return r, most
}

// People who are never there together reach each other, though a relay is lost.
func TestCommutersReachEachOther(t *testing.T) {
	r, most := watch(t, shippedScenario(t, "commuters"), map[string]string{
		"nodes": "2", "degree": "1", "online": "30m", "pause": "10m", "when": "38h", "duration": "62h",
	})
	if most != 1 {
		t.Errorf("%d people were there at once", most)
	}
	crashes := 0
	for _, x := range r.Relays {
		crashes += x.Crashes
	}
	if crashes != 1 {
		t.Errorf("%d relays were lost, want 1", crashes)
	}
}

// Relays that lose power, or their disk with what it held, lose nobody's message.
func TestRelaysComeBack(t *testing.T) {
	r := run(t, shippedScenario(t, "relay-loss"), 8, map[string]string{"nodes": "4", "duration": "4h"})
	if accepted, shown := delivered(r); accepted == 0 || shown != accepted {
		t.Errorf("%d messages were accepted, and %d shown", accepted, shown)
	}
	crashes, lost, void, honoured := 0, 0, 0, 0
	for _, x := range r.Relays {
		crashes, lost, void, honoured = crashes+x.Crashes, lost+x.Lost, void+x.Void, honoured+x.Honoured
	}
	t.Logf("%v of cpu, %+v", time.Duration(r.Manifest.CPU), r.Relays)
	if crashes < 3 || lost != 1 || void == 0 || honoured == 0 {
		t.Errorf("%d relays crashed, %d lost their disk and %d receipts with it, %d receipts were honoured", crashes, lost, void, honoured)
	}
}

// Whatever a relay does, nothing is lost, and what it did is counted against it
// and nobody else.
func TestBadRelayLosesNothing(t *testing.T) {
	kinds := []string{"drops", "delays", "replays", "repeats", "lies"}
	for _, tt := range []struct {
		kind    string
		set     map[string]string // beyond what is said below
		verdict func(simulation.RelayResult) int
	}{
		{"drops", nil, func(x simulation.RelayResult) int { return x.Broken }},
		{"delays", nil, func(x simulation.RelayResult) int { return x.Broken }},
		{"replays", map[string]string{"duration": "50h"}, func(x simulation.RelayResult) int { return x.Repeated }},
		// All have to ask the one that repeats.
		{"repeats", map[string]string{"nodes": "3", "degree": "2", "good": "0"}, func(x simulation.RelayResult) int { return x.KeysRepeated }},
		{"lies", nil, func(x simulation.RelayResult) int { return x.Refused }},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			set := map[string]string{"nodes": "2", "degree": "1", "online": "30m", "pause": "5m", "duration": "26h", "good": "1"}
			for _, k := range kinds {
				set[k] = "0"
			}
			set[tt.kind] = "1"
			maps.Copy(set, tt.set)
			r, most := watch(t, shippedScenario(t, "bad-relay"), set)
			if most != 1 {
				t.Errorf("%d people were there at once", most)
			}
			for _, x := range r.Relays {
				switch n := tt.verdict(x); {
				case x.Bad == "" && (n != 0 || x.Broken != 0 || x.Honoured == 0):
					t.Errorf("the good relay: %+v", x)
				case x.Bad != "" && n == 0:
					t.Errorf("nothing is held against the bad relay: %+v", x)
				}
			}
		})
	}
}

// First contact goes on when all one-time keys are gone that strangers can take:
// without (T3), and with those that are kept for who has a token (T2).
func TestDrainOfKeysStopsNobody(t *testing.T) {
	r := run(t, shippedScenario(t, "drain-keys"), 1, nil)
	if accepted, shown := delivered(r); accepted != 4 || shown != 4 {
		t.Errorf("%d messages were accepted, and %d shown", accepted, shown)
	}
	t.Logf("%v of cpu, %+v", time.Duration(r.Manifest.CPU), r.Relays)
	got := map[string]float64{}
	for _, m := range r.Metrics {
		got[m.Name] = m.Value
	}
	const relays, public, invited = 2, 2, 2
	if taken := float64(relays * (protocol.PoolKeys - protocol.PoolReserve)); got["keys_drained"] != taken || got["pools_not_drained"] != 0 {
		t.Errorf("the stranger took %v keys and left %v pools, want %v and none", got["keys_drained"], got["pools_not_drained"], taken)
	}
	if got["keys_to_tokens"] != invited || got["keys_denied"] < public {
		t.Errorf("%v keys for %d invited newcomers, and %v requests denied to %d by the public link", got["keys_to_tokens"], invited, got["keys_denied"], public)
	}
}

// People who are there one by one share the day, in an order of the seed; others
// come when they like, and are gone by the end of the day.
func TestVisits(t *testing.T) {
	c := &commute{online: 2 * time.Hour, apart: true}
	one := c.visits(draw(1, "visits"), 6)
	if !slices.Equal(one, c.visits(draw(1, "visits"), 6)) || slices.Equal(one, c.visits(draw(2, "visits"), 6)) {
		t.Errorf("visits %v do not come from the seed", one)
	}
	sorted := slices.Sorted(slices.Values(one))
	for i, at := range sorted {
		if at != time.Duration(i)*4*time.Hour {
			t.Errorf("visit %d of the day is at %v", i, at)
		}
	}
	c.apart = false
	for _, at := range c.visits(draw(1, "visits"), 100) {
		if at < 0 || at > 22*time.Hour {
			t.Errorf("a visit at %v is not over by the end of the day", at)
		}
	}
	cast := &cast{plan: &plan{commute: c}, comes: []time.Duration{5 * time.Hour}}
	for _, tt := range []struct{ t, d, want time.Duration }{
		{0, 10 * time.Minute, 5*time.Hour + 15*time.Minute},
		{6 * time.Hour, 10 * time.Minute, 6*time.Hour + 10*time.Minute},
		{6 * time.Hour, 90 * time.Minute, 29*time.Hour + 35*time.Minute},
		{7 * time.Hour, time.Minute, 29*time.Hour + 6*time.Minute},
		{75 * time.Hour, time.Minute, 77*time.Hour + 6*time.Minute},
	} {
		if got := cast.there(0, tt.t, tt.d); got != tt.want {
			t.Errorf("there for %v after %v: %v, want %v", tt.d, tt.t, got, tt.want)
		}
	}
}

func TestRelaysAreRead(t *testing.T) {
	s, err := read("x", "x.toml", "", `about = "x"
duration = "1h"
[params]
n = { number = 2, about = "x" }
[[relays]]
name = "r"
count = "$n"
quota = 32
bad = "delays"
[[relays]]
name = "none"
count = 0
[[relays]]
name = "one"
[[nodes]]
name = "p"
uses = ["r", "none"]
`)
	if err != nil {
		t.Fatal(err)
	}
	cfg, _, err := s.Build(1, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%+v", cfg.Relays)
	want := fmt.Sprintf("%+v", []simulation.RelaySpec{
		{Name: "r1", Quota: 32 << 20, Bad: simulation.BadDelays}, {Name: "r2", Quota: 32 << 20, Bad: simulation.BadDelays}, {Name: "one", Quota: 64 << 20},
	})
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	p, err := s.plan(nil)
	if err != nil {
		t.Fatal(err)
	}
	if used := p.used(p.groups[0]); !slices.Equal(used, []string{"r1", "r2"}) {
		t.Errorf("people use %v", used)
	}
}
