package scenario

import (
	"flag"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"starling/simulation"
)

var (
	storms    = flag.Int("storms", 0, "how many seeds TestStorm runs, 2 if 0, or 1,000 with -long")
	firstSeed = flag.Uint64("seed", 1, "the first of them")
	long      = flag.Bool("long", false, "have 60 people in each storm, instead of 12")
)

// TestStorm runs the storm with many seeds. The oracle of the world is the
// judge: whatever was accepted is shown once, in order, and confirmed within
// ten minutes after everything is mended.
func TestStorm(t *testing.T) {
	seeds, nodes := 2, "12"
	if *long {
		seeds, nodes = 1000, "60"
	}
	if *storms > 0 {
		seeds = *storms
	}
	s, err := Open("storm")
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]string{"nodes": nodes, "duration": "3m"}
	var (
		next           atomic.Uint64
		mu             sync.Mutex // guards the sums
		messages, held int
		worst          time.Duration
		workers        sync.WaitGroup
	)
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= uint64(seeds) || t.Failed() {
					return
				}
				r, err := storm(s, *firstSeed+i, set)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				held++
				messages += len(r.Messages)
				for _, m := range r.Messages {
					worst = max(worst, m.Shown-m.Accepted)
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	t.Logf("%d of %d seeds held; %d messages, the slowest took %v", held, seeds, messages, worst)
}

// storm runs one seed, and checks that the storm was one.
func storm(s *Scenario, seed uint64, set map[string]string) (*simulation.Result, error) {
	cfg, play, err := s.Build(seed, set)
	if err != nil {
		return nil, err
	}
	r, err := simulation.Run(cfg, play)
	if err == nil {
		err = stormy(r)
	}
	if err != nil {
		return nil, fmt.Errorf("seed %d: %w", seed, err)
	}
	return r, nil
}

// stormy checks that a run was a storm, that people talked in it, and that what
// they said was delivered.
func stormy(r *simulation.Result) error {
	kinds := map[string]bool{}
	for _, f := range r.Faults {
		kinds[f.Kind] = true
	}
	for _, kind := range []string{"partition", "crash", "loss", "skew"} {
		if !kinds[kind] {
			return fmt.Errorf("no %s came to pass: %v", kind, kinds)
		}
	}
	for _, m := range r.Messages {
		if m.Confirmed < 0 {
			return fmt.Errorf("message %s was never confirmed", m.ID)
		}
	}
	i := slices.IndexFunc(r.Metrics, func(m simulation.Metric) bool { return m.Name == unsentMetric })
	if n := len(r.Messages); n == 0 || i < 0 || float64(n) < r.Metrics[i].Value {
		return fmt.Errorf("%d texts were accepted, and more were not: %v", n, r.Metrics)
	}
	return nil
}

// A storm in which nobody is heard proves nothing.
func TestSilentStormFails(t *testing.T) {
	for name, tt := range map[string]struct {
		messages int
		unsent   float64
		want     bool
	}{
		"as ever":           {100, 20, true},
		"silence":           {0, 0, false},
		"nobody is heard":   {0, 120, false},
		"hardly a word was": {10, 110, false},
	} {
		r := &simulation.Result{
			Messages: make([]simulation.Message, tt.messages),
			Metrics:  []simulation.Metric{{Name: unsentMetric, Value: tt.unsent}},
		}
		for _, kind := range []string{"partition", "crash", "loss", "skew"} {
			r.Faults = append(r.Faults, simulation.Fault{Kind: kind})
		}
		if err := stormy(r); (err == nil) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
