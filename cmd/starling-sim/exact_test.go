package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

var (
	withExact = flag.Bool("exact", false, "build an exact program, and see that its runs repeat")
	withLong  = flag.Bool("long", false, "with -exact: ten runs of town with 100 nodes and of storm with 60")
)

// TestExactRunsRepeat builds an exact program and runs scenarios several times:
// alone and while the machine is busy, into folders whose names differ in
// length, with and without a table of packets.
func TestExactRunsRepeat(t *testing.T) {
	if !*withExact {
		t.Skip("it takes minutes: run it with -exact")
	}
	dir := t.TempDir()
	self := filepath.Join(dir, "exact")
	root, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal(err)
	}
	sim(t, strings.TrimSpace(string(root)), "exact-build", "-o", self).want(exitOK, self, "")

	runs := 4
	plays := [][]string{{"hello"}, {"storm", "--set", "duration=3m", "--set", "nodes=8"}, {"nat", "--set", "nodes=6"}}
	if *withLong {
		patience = time.Hour
		runs = 10
		plays = [][]string{{"town"}, {"storm", "--set", "duration=5m", "--set", "nodes=60"}}
	}
	for _, play := range plays {
		t.Run(play[0], func(t *testing.T) {
			trace := func(i int, seed string, more ...string) string {
				out := filepath.Join(dir, strings.Repeat("x", i+1)+seed+play[0])
				args := append([]string{"run"}, play...)
				args = append(args, "--exact", "--json", "--seed", seed, "--out", out)
				d := program(t, dir, self, append(args, more...)...).want(exitOK, "", "")
				var r resultShape
				if err := json.Unmarshal([]byte(d.out), &r); err != nil || len(r.TraceHash) != 64 {
					t.Fatalf("%q: %v", d.out, err)
				}
				return r.TraceHash
			}
			first := trace(0, "7")
			for i := 1; i < runs; i++ {
				var more []string
				if i == 1 {
					more = []string{"--packets", filepath.Join(dir, play[0]+".csv")}
				}
				stop := func() {}
				if i >= runs-max(1, runs/5) {
					stop = busy()
				}
				again := trace(i, "7", more...)
				stop()
				if again != first {
					t.Errorf("run %d has the trace hash %s, and run 0 %s", i, again, first)
				}
			}
			if other := trace(0, "8"); other == first {
				t.Errorf("seed 8 has the trace hash of seed 7, %s", other)
			}
			t.Logf("%s: %d runs, %s", strings.Join(play, " "), runs, first)
		})
	}
}

// busy keeps every processor busy until stop is called.
func busy() (stop func()) {
	done := make(chan struct{}) // closed by stop
	ended := make(chan int)     // each sends once
	n := runtime.NumCPU()
	for range n {
		go func() {
			sum := 0
			for {
				select {
				case <-done:
					ended <- sum
					return
				default:
					for i := range 1 << 16 {
						sum += i * i
					}
				}
			}
		}()
	}
	return func() {
		close(done)
		for range n {
			_ = fmt.Sprint(<-ended)
		}
	}
}
