package scenario

import (
	"maps"
	"regexp"
	"slices"
	"testing"
	"time"

	"starling/simulation"
	"starling/simulation/network"
)

// Everybody reaches all friends, and those through a circuit only who cannot do
// without one.
func TestNATHolds(t *testing.T) {
	r := run(t, shortened(t, "nat", "17m"), 1, map[string]string{"nodes": "6", "pause": "1m"})
	accepted, shown := delivered(r)
	if accepted < 50 || shown != accepted {
		t.Errorf("%d messages were accepted, and %d shown", accepted, shown)
	}
	kinds := map[string]int{}
	for _, n := range r.Nodes {
		kinds[n.NAT]++
	}
	want := map[string]int{"none": 2, "full-cone": 2, "port-restricted": 3, "symmetric": 1}
	if !maps.Equal(kinds, want) {
		t.Errorf("NATs %v, want %v", kinds, want)
	}
	if r.Manifest.Face != "packet" || r.Manifest.Security != "tls" {
		t.Errorf("face %s, security %s", r.Manifest.Face, r.Manifest.Security)
	}
	hard := func(i int) bool { return r.Nodes[i].NAT == network.Symmetric.String() }
	picky := func(i int) bool { return hard(i) || r.Nodes[i].NAT == network.PortRestricted.String() }
	direct, relayed := 0, 0
	for _, p := range r.Pairs {
		a, b := r.Nodes[p.A], r.Nodes[p.B]
		t.Logf("%-4s %-16s %-4s %-16s relayed %v, direct %v", a.Name, a.NAT, b.Name, b.NAT, p.Relayed, p.Direct)
		switch {
		case p.Direct >= 0:
			direct++
		case p.Relayed >= 0:
			relayed++
		default:
			t.Errorf("%s and %s were never connected", a.Name, b.Name)
		}
		if impossible := hard(p.A) && picky(p.B) || hard(p.B) && picky(p.A); impossible && p.Direct >= 0 {
			t.Errorf("%s, %s, and %s, %s, were connected directly", a.Name, a.NAT, b.Name, b.NAT)
		}
	}
	if direct < 2*relayed || relayed == 0 {
		t.Errorf("%d pairs were connected directly, and %d through circuits only", direct, relayed)
	}
	t.Logf("%d messages, %v of cpu, %d MB", accepted, time.Duration(r.Manifest.CPU), r.Manifest.PeakMemory>>20)
}

// shortened returns a shipped scenario of another length, unless that is a
// parameter of it.
func shortened(t *testing.T, name, duration string) *Scenario {
	t.Helper()
	source := regexp.MustCompile(`(?m)^duration = "[0-9].*`).ReplaceAllString(shippedScenario(t, name).Source(), `duration = "`+duration+`"`)
	s, err := read(name, name, "", source)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A mixture is dealt to the last node, and comes from the seed.
func TestNATsAreDealt(t *testing.T) {
	g := group{count: 10, nats: []natShare{{network.FullCone, 0.25}, {network.PortRestricted, 0.5}, {network.Symmetric, 0.25}}}
	one := g.deal(draw(1, "nats"))
	if slices.Contains(one, network.NoNAT) {
		t.Errorf("shares of 1 leave somebody out: %v", one)
	}
	if !slices.Equal(one, g.deal(draw(1, "nats"))) || slices.Equal(one, g.deal(draw(2, "nats"))) {
		t.Error("what is dealt does not come from the seed alone")
	}
	g.nats = g.nats[:1]
	if n := len(slices.DeleteFunc(g.deal(draw(1, "nats")), func(k network.NAT) bool { return k == network.NoNAT })); n != 3 {
		t.Errorf("%d of 10 have a NAT, want a quarter, rounded", n)
	}
}

// The scenarios of streams hold with packets too.
func TestPacketsHold(t *testing.T) {
	for name, set := range map[string]map[string]string{
		"town":  {"nodes": "8", "pause": "1m"},
		"storm": {"nodes": "6", "duration": "3m"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, play, err := shortened(t, name, "8m").Build(1, set)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Face = simulation.PacketFace
			r, err := simulation.Run(cfg, play)
			if err != nil {
				t.Fatal(err)
			}
			if accepted, shown := delivered(r); accepted < 20 || shown != accepted {
				t.Errorf("%d messages were accepted, and %d shown", accepted, shown)
			}
			if r.Manifest.Face != "packet" || len(r.Pairs) != 0 {
				t.Errorf("face %s, %d pairs where there are no NATs", r.Manifest.Face, len(r.Pairs))
			}
			t.Logf("%d messages, %v of cpu, %d MB", len(r.Messages), time.Duration(r.Manifest.CPU), r.Manifest.PeakMemory>>20)
		})
	}
}
