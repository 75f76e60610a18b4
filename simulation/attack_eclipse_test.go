package simulation

import (
	"fmt"
	"testing"
	"time"
)

// crowd returns a world of nodes named peer-0, peer-1, … and sybil-0, ….
func crowd(seed uint64, peers, sybils int) Config {
	cfg := Config{Seed: seed, Refresh: -1, Repeat: "go test"}
	for i := range peers {
		cfg.Nodes = append(cfg.Nodes, NodeSpec{Name: fmt.Sprintf("peer-%d", i)})
	}
	for i := range sybils {
		cfg.Nodes = append(cfg.Nodes, NodeSpec{Name: fmt.Sprintf("sybil-%d", i), Role: RoleSybil})
	}
	return cfg
}

// metric returns what a run reported under a name.
func metric(t *testing.T, r *Result, name string) float64 {
	t.Helper()
	for _, m := range r.Metrics {
		if m.Name == name {
			return m.Value
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// read plays a short reading of an attacked target and reports.
func read(w *World, e *Eclipsed, rounds int, readers ...*Node) error {
	if err := e.Read(Reading{Readers: readers, Rounds: rounds, Away: 3 * time.Minute, Back: 2 * time.Minute}); err != nil {
		return err
	}
	w.Settle()
	return e.Report()
}

// Sybils stand between everybody and one of a target's two records. Whatever
// they answer, who looks the target up finds its newest record.
func TestEclipseOfOneReplicaTakesNothingAway(t *testing.T) {
	for _, tt := range []struct {
		lie           Lie
		peers, sybils int
	}{{LieOld, 20, 10}, {LieGarbage, 8, 6}} {
		t.Run(tt.lie.String(), func(t *testing.T) {
			if testing.Short() && tt.peers > 8 {
				t.Skip("starts thirty nodes")
			}
			r, err := Run(crowd(1, tt.peers, tt.sybils), func(w *World) error {
				if err := w.StartAll(100 * time.Millisecond); err != nil {
					return err
				}
				e, err := w.Eclipse(Eclipse{Target: w.Node("peer-5"), Sybils: w.Nodes()[tt.peers:], Lie: tt.lie})
				if err != nil {
					return err
				}
				return read(w, e, 2, w.Node("peer-6"), w.Node("peer-7"))
			})
			if err != nil {
				t.Fatal(err)
			}
			lookups, success := metric(t, r, "eclipse_lookups"), metric(t, r, "eclipse_lookup_success")
			t.Logf("%g lookups, %g %% succeeded, %v", lookups, success, time.Duration(r.Manifest.CPU))
			if lookups < 10 || success < 99 {
				t.Errorf("%g %% of %g lookups succeeded, want 99 %% of 10 or more", success, lookups)
			}
			if n := metric(t, r, "eclipse_rollbacks_accepted"); n != 0 {
				t.Errorf("%g rollbacks were accepted", n)
			}
			if n := metric(t, r, "eclipse_old_records_offered"); (n > 0) != (tt.lie == LieOld) {
				t.Errorf("%g old records were offered by sybils that answer: %v", n, tt.lie)
			}
			// Whoever looks for the record comes to most of them.
			if asked := metric(t, r, "eclipse_get_value_seen"); asked < lookups*float64(tt.sybils)/2 {
				t.Errorf("the sybils were asked %g times in %g lookups: they do not stand in the way", asked, lookups)
			}
		})
	}
}

// The attack is real: sybils around both records, before the target was heard
// of anywhere, make it impossible to find.
func TestEclipseOfBothReplicasSucceeds(t *testing.T) {
	const peers, sybils = 6, 44
	r, err := Run(crowd(1, peers, sybils), func(w *World) error {
		target := w.Node("peer-5")
		w.Partition([]*Node{target})
		if err := w.StartAll(100 * time.Millisecond); err != nil {
			return err
		}
		all := w.Nodes()[peers:]
		e, err := w.Eclipse(Eclipse{Target: target, Sybils: all[:sybils/2], Lie: LieNothing})
		if err != nil {
			return err
		}
		if _, err := w.Eclipse(Eclipse{Target: target, Sybils: all[sybils/2:], Replica: 1, Lie: LieNothing}); err != nil {
			return err
		}
		w.Heal()
		w.Sleep(2 * time.Minute)
		return read(w, e, 1, w.Node("peer-0"))
	})
	if err != nil {
		t.Fatal(err)
	}
	lookups, success := metric(t, r, "eclipse_lookups"), metric(t, r, "eclipse_lookup_success")
	t.Logf("%g lookups, %g %% succeeded, %v", lookups, success, time.Duration(r.Manifest.CPU))
	if lookups < 4 || success > 50 {
		t.Errorf("%g %% of %g lookups succeeded in spite of it", success, lookups)
	}
}
