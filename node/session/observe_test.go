package session_test

import "testing"

// What opens is what was sealed, once for each message.
func TestObserverSeesBothEnds(t *testing.T) {
	w, a, b := pair(t, 71)
	for range 3 {
		a.say(b, "hello")
		b.queue(a, "hello")
		s := b.next(a)
		answer := a.take(b, s.out.Envelope)
		a.take(b, s.out.Envelope) // the same bytes again are not opened
		b.settle(a, s, answer)
	}
	if len(w.opened) != 6 || len(w.sealed) != 6 {
		t.Errorf("%d messages sealed and %d opened, want 6 of both", len(w.sealed), len(w.opened))
	}
	for o, n := range w.opened {
		if n != 1 || !w.sealed[o] {
			t.Errorf("a message, sealed %t, was opened %d times", w.sealed[o], n)
		}
	}
}
