package network

import (
	"sync"
	"time"
)

// A waiter is where the goroutines wait that want the same thing of a stream,
// a listener or a socket, one after the other. All of it is guarded by the mutex
// of that stream or listener, or of the network.
type waiter struct {
	busy   bool          // somebody has entered
	queued int           // how many wait to enter
	turn   chan struct{} // sent by leave, received by enter; one place, so that leave never blocks
	parked bool
	until  time.Duration // when the parked goroutine wakes by itself
	wake   chan struct{} // sent by rouse, received by park; one place, so that rouse never blocks
	timer  *time.Timer
}

// enter waits until nobody else is inside. mu is held before and after, not
// meanwhile.
func (w *waiter) enter(mu *sync.Mutex) {
	for w.busy {
		if w.turn == nil {
			w.turn = make(chan struct{}, 1)
		}
		w.queued++
		mu.Unlock()
		<-w.turn
		mu.Lock()
		w.queued--
	}
	w.busy = true
}

// leave lets the next one in.
func (w *waiter) leave() {
	w.busy = false
	if w.queued > 0 {
		signal(w.turn)
	}
}

// park waits until the given time, or until roused. mu is held before and
// after, not meanwhile. The caller must look again: it may be woken early.
func (w *waiter) park(mu *sync.Mutex, now, until time.Duration) {
	switch {
	case w.timer == nil:
		w.wake = make(chan struct{}, 1)
		w.timer = time.NewTimer(until - now)
		if until == never {
			w.timer.Stop()
		}
	case until != never:
		w.timer.Reset(until - now)
	}
	w.parked, w.until = true, until
	mu.Unlock()
	rang := false
	select {
	case <-w.wake:
	case <-w.timer.C:
		rang = true
	}
	mu.Lock()
	if !rang && w.until != never {
		w.timer.Stop()
	}
	w.parked = false
}

// arm makes a parked goroutine wake no later than at.
func (w *waiter) arm(now, at time.Duration) {
	if w.parked && at < w.until {
		w.until = at
		w.timer.Reset(at - now)
	}
}

// rouse wakes a parked goroutine at once.
func (w *waiter) rouse() {
	if w.parked {
		signal(w.wake)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
