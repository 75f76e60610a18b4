package scenario

import (
	"flag"
	"fmt"
	"runtime"
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
	if err != nil {
		return nil, fmt.Errorf("seed %d: %w", seed, err)
	}
	kinds := map[string]bool{}
	for _, f := range r.Faults {
		kinds[f.Kind] = true
	}
	for _, kind := range []string{"partition", "crash", "loss", "skew"} {
		if !kinds[kind] {
			return nil, fmt.Errorf("seed %d: no %s came to pass: %v", seed, kind, kinds)
		}
	}
	for _, m := range r.Messages {
		if m.Confirmed < 0 {
			return nil, fmt.Errorf("seed %d: message %s was never confirmed", seed, m.ID)
		}
	}
	return r, nil
}
