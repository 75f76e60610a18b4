package simulation

import (
	"fmt"
	"testing"
	"time"
)

func TestFloodIsBounded(t *testing.T) {
	cfg := Config{Seed: 1, Refresh: -1, Repeat: "go test", Nodes: []NodeSpec{{Name: "cy"}, {Name: "ada"}, {Name: "bo"}}}
	const spammers = 5
	for i := range spammers {
		cfg.Nodes = append(cfg.Nodes, NodeSpec{Name: fmt.Sprintf("spammer-%d", i), Role: RoleSpammer})
	}
	r, err := Run(cfg, func(w *World) error {
		if err := w.StartAll(100 * time.Millisecond); err != nil {
			return err
		}
		n := w.Nodes()
		return w.Flood(Flood{
			Victim: w.Node("ada"), Friends: []*Node{w.Node("bo"), w.Node("cy")}, Spammers: n[3 : len(n)-1], Insider: n[len(n)-1],
			Calm: time.Minute, Lasts: time.Minute, Pace: 4 * time.Second,
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range r.Metrics {
		t.Logf("%s %g %s", m.Name, m.Value, m.Unit)
	}
	t.Logf("%v", time.Duration(r.Manifest.CPU))
	if got := metric(t, r, "flood_lines_written"); got < 200 {
		t.Errorf("only %g lines of spam were written", got)
	}
	if got := metric(t, r, "flood_requests_listed"); got != spammers-1 {
		t.Errorf("%g requests are listed of %d strangers", got, spammers-1)
	}
	if got := metric(t, r, "flood_entries_most"); got < 1 || got > 8 {
		t.Errorf("a request has %g lines, want 1 to 8", got)
	}
	if got := metric(t, r, "flood_honest_in_a_minute"); got < 99 {
		t.Errorf("%g %% of the friends' lines arrived within a minute", got)
	}
	for _, name := range []string{"flood_honest_p99_before", "flood_honest_p99_during", "flood_answer_p99_during"} {
		if got := metric(t, r, name); got <= 0 || got > 60 {
			t.Errorf("%s is %g s", name, got)
		}
	}
	for _, m := range r.Messages {
		if r.Nodes[m.From].Role == RoleSpammer {
			t.Fatal("a spammer's line is counted among those that must arrive")
		}
	}
}
