package ratchet

import (
	"errors"
	"testing"
)

// converse sends one message from a to b and returns it.
func converse(t *testing.T, a, b *Session, text string) []byte {
	t.Helper()
	sealed := seal(t, a, text)
	if _, err := b.Open(sealed.Message, nil); err != nil {
		t.Fatal(err)
	}
	return sealed.Message
}

// stolen returns what a thief has who copied the state from the disk.
func stolen(t *testing.T, s *Session) *Session {
	t.Helper()
	c, err := Parse(s.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Promise 3: what was opened before a theft stays closed to the thief.
func TestStolenStateOpensNoPastMessage(t *testing.T) {
	a, b := pair(t)
	var recorded [][]byte
	for range 3 {
		recorded = append(recorded, converse(t, a, b, "from a"), converse(t, a, b, "again from a"))
		recorded = append(recorded, converse(t, b, a, "from b"), converse(t, b, a, "again from b"))
	}
	for _, thief := range []*Session{stolen(t, a), stolen(t, b)} {
		for i, m := range recorded {
			if o, err := thief.Open(m, nil); err == nil {
				t.Errorf("the thief opened message %d: %q", i, o.Plaintext)
			}
		}
	}
}

// Promise 3: a stolen state is of no more use after the next round trip.
func TestStolenStateHealsWithARoundTrip(t *testing.T) {
	a, b := pair(t)
	converse(t, a, b, "hello")
	converse(t, b, a, "hello")
	thief := stolen(t, b)
	if o, err := stolen(t, b).Open(seal(t, a, "read by the thief").Message, nil); err != nil || string(o.Plaintext) != "read by the thief" {
		t.Fatalf("a thief of b's state does not read at once (%v): the test shows nothing", err)
	}
	converse(t, a, b, "to b")
	converse(t, b, a, "to a") // under a key that the thief has not
	later := converse(t, a, b, "healed")
	if o, err := thief.Open(later, nil); !errors.Is(err, ErrOpen) {
		t.Errorf("after a round trip the thief got %q, %v", o.Plaintext, err)
	}
}
