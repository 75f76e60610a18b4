package simulation

import (
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"starling/node/session"
	"starling/node/store"
)

var crashPoints = flag.Int("crashpoints", 100, "how many crash points TestCrashPoints tries")

// pointsAWorld is how many crash points one world goes through.
const pointsAWorld = 50

// TestCrashPoints has sender and recipient lose power at write boundaries of an
// exchange, one after another, and sees that nothing that was accepted is lost
// or shown twice. A boundary is before, within or after one commit.
func TestCrashPoints(t *testing.T) {
	worlds := (*crashPoints + pointsAWorld - 1) / pointsAWorld
	var tried, worldsDone atomic.Int64
	t.Run("worlds", func(t *testing.T) {
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for seed := i; seed < worlds; seed += runtime.GOMAXPROCS(0) {
					cfg := couple(uint64(seed))
					cfg.Repeat = fmt.Sprintf("go test ./simulation -run TestCrashPoints -crashpoints %d", *crashPoints)
					_, err := Run(cfg, func(w *World) error { return crashAgainAndAgain(w, exchange, &tried) })
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					worldsDone.Add(1)
				}
			})
		}
	})
	t.Logf("%d crash points in %d worlds", tried.Load(), worldsDone.Load())
	if !t.Failed() && tried.Load() < int64(*crashPoints) {
		t.Errorf("%d crash points were reached, want %d", tried.Load(), *crashPoints)
	}
}

// TestCrashPointsSeeWhoAnswersTooEarly has both answer a delivery before they
// commit it. Who loses power in between has confirmed what is gone.
func TestCrashPointsSeeWhoAnswersTooEarly(t *testing.T) {
	var tried atomic.Int64
	r, err := Run(couple(0), func(w *World) error {
		for _, n := range w.nodes {
			n.eyes = hasty{n.eyes}
		}
		return crashAgainAndAgain(w, exchange, &tried)
	})
	caught(t, r, err, oracleLost)
	t.Logf("at crash point %d: %v", tried.Load()+1, err)
}

// hasty is the view of a node that answers 5 ms before it commits.
type hasty struct{ session.Observer }

func (hasty) Spoil(*store.Tx) error { return nil }

func (hasty) Early() time.Duration { return 5 * time.Millisecond }

// Crash points of an exchange in which nobody says anything prove nothing.
func TestCrashPointsNeedMessages(t *testing.T) {
	for name, exchange := range map[string]func(a, b *Node) int{
		"never": func(*Node, *Node) int { return 0 },
		"once": func() func(a, b *Node) int {
			first := true
			return func(a, b *Node) int {
				if !first {
					_, _ = a.Send(b, "only this")
					return 1
				}
				first = false
				return exchange(a, b)
			}
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			var tried atomic.Int64
			_, err := Run(couple(0), func(w *World) error { return crashAgainAndAgain(w, exchange, &tried) })
			if err == nil || !strings.Contains(err.Error(), "were accepted") {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

// exchanged is how many texts an exchange has.
const exchanged = 6

// exchange has two friends write to each other, and returns how many texts were
// accepted.
func exchange(a, b *Node) (accepted int) {
	for i := range exchanged / 2 {
		for _, pair := range [][2]*Node{{a, b}, {b, a}} {
			if _, err := pair[0].Send(pair[1], fmt.Sprint("number ", i)); err == nil {
				accepted++ // whoever is down just then sends nothing
			}
		}
	}
	return accepted
}

// crashAgainAndAgain tries pointsAWorld crash points of an exchange.
func crashAgainAndAgain(w *World, exchange func(a, b *Node) (accepted int), tried *atomic.Int64) error {
	ada, bo, err := acquaint(w)
	if err != nil {
		return err
	}
	w.Sleep(10 * time.Second)
	r := w.Rand("crashes")
	before := [2]int{ada.Boundaries(), bo.Boundaries()}
	if k := exchange(ada, bo); k != exchanged {
		return fmt.Errorf("%d of %d texts were accepted while all was well", k, exchanged)
	}
	w.Settle()
	w.Sleep(10 * time.Second)
	window := [2]int{ada.Boundaries() - before[0], bo.Boundaries() - before[1]}
	accepted, asked := 0, 0
	for n := 0; n < pointsAWorld; {
		victim := []*Node{ada, bo}[r.IntN(2)]
		victim.CrashAt(1 + r.IntN(window[victim.index-1]))
		w.Sleep(time.Duration(r.Int64N(int64(time.Second))))
		accepted += exchange(ada, bo)
		asked += exchanged
		for range 30 { // far longer than an exchange takes
			if !victim.Running() {
				break
			}
			w.Sleep(time.Second)
		}
		if victim.Running() {
			victim.CrashAt(0)
			continue // fewer boundaries than last time: it was not reached
		}
		n++
		tried.Add(1)
		w.Sleep(time.Duration(r.Int64N(int64(5 * time.Second))))
		if err := victim.Start(); err != nil {
			return err
		}
		w.Settle()
	}
	if 2*accepted < asked {
		return fmt.Errorf("%d of %d texts were accepted", accepted, asked)
	}
	return nil
}
