package scenario

import (
	"testing"

	"starling/simulation"
)

// run plays a scenario, and checks that every promise was kept.
func run(t *testing.T, s *Scenario, seed uint64, set map[string]string) *simulation.Result {
	t.Helper()
	cfg, play, err := s.Build(seed, set)
	if err != nil {
		t.Fatal(err)
	}
	r, err := simulation.Run(cfg, play)
	if err != nil {
		t.Fatalf("%v\nrepeat it with: %s", err, cfg.Repeat)
	}
	return r
}

func shippedScenario(t *testing.T, name string) *Scenario {
	t.Helper()
	s, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// delivered returns how many messages were accepted, and how many were shown.
func delivered(r *simulation.Result) (accepted, shown int) {
	for _, m := range r.Messages {
		if m.Shown >= 0 {
			shown++
		}
	}
	return len(r.Messages), shown
}

func TestHelloHolds(t *testing.T) {
	r := run(t, shippedScenario(t, "hello"), 1, nil)
	accepted, shown := delivered(r)
	if accepted < 20 || shown != accepted {
		t.Errorf("%d messages were accepted, and %d shown", accepted, shown)
	}
	if r.Manifest.Outcome != "held" || len(r.Faults) != 0 {
		t.Errorf("outcome %s, faults %v", r.Manifest.Outcome, r.Faults)
	}
}
