package simulation

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"starling/simulation/bubble"
)

// silent is a world of n DHT servers that say nothing, with at most 24
// connections each, and of a thousand with smaller tables.
func silent(seed uint64, n int) Config {
	cfg := Config{Seed: seed}
	if n >= 1000 {
		cfg.Table, cfg.Refresh = 8, -1
	}
	for i := range n {
		cfg.Nodes = append(cfg.Nodes, NodeSpec{Name: fmt.Sprint("n", i)})
	}
	return cfg
}

// idle starts everybody and lets d of virtual time pass. It returns what the
// start and the rest took of the processor.
func idle(w *World, pause, d time.Duration) (join, rest time.Duration, err error) {
	began := bubble.CPU()
	if err := w.StartAll(pause); err != nil {
		return 0, 0, err
	}
	w.Sleep(time.Minute)
	joined := bubble.CPU()
	w.Sleep(d)
	return joined - began, bubble.CPU() - joined, nil
}

// benchmarkIdle measures on one core: a run uses no more, and a second one makes
// it wait for the other's caches.
func benchmarkIdle(b *testing.B, n int, d time.Duration) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(300))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(4 << 30))
	var join, rest time.Duration
	var memory int64
	for b.Loop() {
		r, err := Run(silent(1, n), func(w *World) error {
			j, i, err := idle(w, 100*time.Millisecond, d)
			join, rest = join+j, rest+i
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		memory = max(memory, r.Manifest.PeakMemory)
	}
	runs := float64(b.N)
	b.ReportMetric(join.Seconds()/runs, "join-cpu-s")
	b.ReportMetric(d.Hours()*runs/rest.Minutes(), "sim-h/cpu-min")
	b.ReportMetric(float64(memory)/(1<<30), "GiB")
	b.ReportMetric(0, "ns/op") // says nothing here
}

// BenchmarkIdle100 is an hour of a hundred idle nodes, refreshes of their
// tables every ten minutes included.
func BenchmarkIdle100(b *testing.B) { benchmarkIdle(b, 100, time.Hour) }

// BenchmarkIdle1000 is half an hour of a thousand.
func BenchmarkIdle1000(b *testing.B) { benchmarkIdle(b, 1000, 30*time.Minute) }

// BenchmarkTwoSeedsAtOnce is how much more two seeds at once get done than one
// after the other.
func BenchmarkTwoSeedsAtOnce(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(300))
	run := func(seed uint64) {
		if _, err := Run(silent(seed, 50), func(w *World) error {
			_, _, err := idle(w, 100*time.Millisecond, 30*time.Minute)
			return err
		}); err != nil {
			b.Error(err)
		}
	}
	var one, two time.Duration
	for b.Loop() {
		began := bubble.Wall()
		run(1)
		run(2)
		one += bubble.Wall() - began
		began = bubble.Wall()
		var both sync.WaitGroup
		both.Go(func() { run(1) })
		both.Go(func() { run(2) })
		both.Wait()
		two += bubble.Wall() - began
	}
	b.ReportMetric(one.Seconds()/two.Seconds(), "times-as-much")
	b.ReportMetric(0, "ns/op")
}
