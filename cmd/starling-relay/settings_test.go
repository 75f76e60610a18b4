package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

var allowed = cmp.AllowUnexported(listenAddr{}, bootstrapAddr{}, admission{}, metricsAddr{}, logLevel{}, amount{}, perMonth{}, perSecond{})

// The example that is shipped has every key, with the default of each.
func TestExampleIsTheDefaults(t *testing.T) {
	b, err := os.ReadFile("dist/relay.toml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseSettings("relay.toml", b)
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	if got.Announce = append(got.Announce, listenAddr{}); len(got.Announce) != 1 {
		t.Errorf("the example announces %v", got.Announce[:len(got.Announce)-1])
	}
	got.Announce, want.Announce = nil, nil
	if len(got.Bootstrap) != 0 {
		t.Errorf("the example has bootstrap nodes: %v", got.Bootstrap)
	}
	got.Bootstrap = nil
	if d := cmp.Diff(want, got, allowed); d != "" {
		t.Errorf("the example differs from the defaults:\n%s", d)
	}
	var there map[string]any
	if err := toml.Unmarshal(b, &there); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys() {
		if _, ok := there[k]; !ok {
			t.Errorf("the example has no %s", k)
		}
	}
}

func TestSettingsAreRead(t *testing.T) {
	s, err := parseSettings("f", []byte("listen = [\"/ip4/127.0.0.1/tcp/1\"]\nquota = \"2 GiB\"\ntraffic = \"unlimited\"\nadmit = \"open\"\ncircuits = false\nmetrics = \"[::1]:80\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Listen) != 1 || s.Quota.bytes != 2<<30 || s.Traffic.bytes != 0 || s.Rate.bytes != 2_000_000 || s.Admit.text != "open" || s.Circuits || !s.PortMap || s.Metrics.text != "[::1]:80" {
		t.Errorf("read %+v", s)
	}
	for text, want := range map[string]string{
		"quote = 1":                            "f:1:1: unknown key quote",
		"\nquota = 5":                          "not a size",
		"quota = \"5\"":                        "f:1:9",
		"quota = \"-5GB\"":                     "f:1:9",
		"traffic = \"5GB/year\"":               "f:1:11",
		"rate = \"5Mbit/s\"":                   "f:1:8",
		"admit = \"all\"":                      "must be open or token",
		"metrics = \"192.168.1.1:80\"":         "this machine alone",
		"listen = [\"there\"]":                 "not a multiaddr",
		"bootstrap = [\"/ip4/1.1.1.1/tcp/1\"]": "/p2p/PEER",
		"local = 1":                            "f:1:9",
		"log_level = \"loud\"":                 "must be debug",
		"[quota]\nbytes = 1":                   "f:",
		"quota = \"1GB":                        "f:1:",
		"traffic = \"1e9B/month\"":             "f:1:11",
	} {
		_, err := parseSettings("f", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{
		"1B": 1, "1kB": 1000, "1KB": 1000, "1KiB": 1024, "1.5MB": 1_500_000, "2MiB": 2 << 20, "1GB": 1e9, "50 GB": 50e9, "1TiB": 1 << 40,
		"": 0, "1": 0, "GB": 0, "0GB": 0, "-1GB": 0, "1e3GB": 0, "1..5GB": 0, "99999999999TB": 0, "1gb": 0, "1 G B": 0, "0x1GB": 0, "infB": 0,
	} {
		if got, err := parseSize(s); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1 kB", 1_550_000: "1.6 MB", 50e9: "50 GB", 2e12: "2.0 TB", 5e15: "5000.0 TB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestTimesToCome(t *testing.T) {
	now := time.Date(2027, 3, 5, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"14d": now.AddDate(0, 0, 14), "36h": now.Add(36 * time.Hour), "2027-03-06": time.Date(2027, 3, 6, 0, 0, 0, 0, time.UTC),
		"2027-03-05T13:00:00Z": now.Add(time.Hour),
		"":                     {}, "-1d": {}, "-1h": {}, "d": {}, "2027-03-05": {}, "2027-02-31": {}, "tomorrow": {}, "99999d": {},
	} {
		got, err := parseUntil(s, now)
		if (err == nil) != !want.IsZero() || err == nil && !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", s, got, err, want)
		}
	}
}
