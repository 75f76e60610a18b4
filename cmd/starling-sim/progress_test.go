package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"starling/simulation"
	"starling/simulation/bubble"
)

// Virtual time does not wait for whoever reads the progress.
func TestProgressDoesNotHoldVirtualTime(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	stuck := make(chan struct{})
	told := 0
	tell, end := (&progress{a: &app{err: w}, name: "town", total: time.Hour}).follow(func() { told++; <-stuck })
	err = bubble.Run(1, func() {
		for i := range 100 {
			time.Sleep(time.Second)
			tell(simulation.Usage{At: time.Duration(i) * time.Second})
		}
	})
	if err != nil {
		t.Error(err)
	}
	close(stuck)
	end()
	if told == 0 || told > 2 {
		t.Errorf("it was told %d times, want once or twice", told)
	}
}

func TestExcerptKeepsBothEnds(t *testing.T) {
	var e excerpt
	for range 10_000 {
		if _, err := e.Write(bytes.Repeat([]byte("x"), 100)); err != nil {
			t.Fatal(err)
		}
		if len(e.text) == 100 {
			copy(e.text, "panic: first")
		}
	}
	_, _ = e.Write([]byte("last"))
	if s := string(e.text); len(s) > keptOfErrors || !strings.HasPrefix(s, "panic: first") || !strings.HasSuffix(s, "last") {
		t.Errorf("it keeps %d bytes, %q to %q", len(s), s[:12], s[len(s)-4:])
	}
}

// A log says how much there is to do, and that it is done.
func TestProgressInALog(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := (&app{err: w}).progress("town", 90*time.Minute)
	p.show(simulation.Usage{At: 61 * time.Minute, Wall: time.Minute, Memory: 5_000_000})
	p.leave()
	w.Close()
	b, err := io.ReadAll(r)
	want := "town: 1 h 1 min of 1 h 30 min simulated, 61 times as fast as real time, 5 MB\ntown: ended; writing the results\n"
	if err != nil || string(b) != want {
		t.Errorf("got %q, want %q, %v", b, want, err)
	}
}
