package network

import (
	"testing"
	"time"
)

func TestCalendarDoesNotQueueTheNearBehindTheFar(t *testing.T) {
	var c calendar
	if got, want := c.book(0, 90, 5), time.Duration(95); got != want {
		t.Errorf("far: done at %d, want %d", got, want)
	}
	if got, want := c.book(1, 11, 5), time.Duration(16); got != want {
		t.Errorf("near: done at %d, want %d", got, want)
	}
	if got, want := c.book(1, 88, 5), time.Duration(100); got != want {
		t.Errorf("overlapping: done at %d, want %d", got, want)
	}
	if got, want := c.book(1, 12, 80), time.Duration(180); got != want {
		t.Errorf("longer than the gap: done at %d, want %d", got, want)
	}
}

// The calendar is held against one that remembers every nanosecond.
func TestCalendarTakesTheFirstGap(t *testing.T) {
	for seed := range uint64(200) {
		s := newSource(seed)
		var c calendar
		var busy [4096]bool
		now := time.Duration(0)
		for step := range 60 {
			now += s.upTo(8)
			at, d := now+s.upTo(60), s.upTo(9)
			want := at
			for free := time.Duration(0); free < d; want++ {
				if free++; busy[want] {
					free = 0
				}
			}
			if got := c.book(now, at, d); got != want {
				t.Fatalf("seed %d, step %d: booked %d from %d, done at %d, want %d", seed, step, d, at, got, want)
			}
			for i := want - d; i < want; i++ {
				busy[i] = true
			}
		}
		if len(c.busy) > 60 {
			t.Errorf("seed %d: %d spans for at most 68 ns", seed, len(c.busy))
		}
	}
}
