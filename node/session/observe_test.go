package session_test

import (
	"slices"
	"testing"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
)

// digest returns the digest of the session that an envelope names, at p.
func (p *person) digest(b []byte) (sum [32]byte) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		sum = p.m.Digest(tx, b)
		return nil
	})
	return sum
}

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

// The digest of a session tells every change of what it can open, and nothing
// else.
func TestDigest(t *testing.T) {
	w, a, b := pair(t, 72)
	none := [32]byte{}
	hello := must(envelope.MarshalContent(content(a, "hello")))(t)
	var sealed [][]byte
	a.start(b, b.give(true))
	a.update(func(tx *store.Tx) error {
		for range 4 {
			o, err := a.m.Seal(tx, w.now, b.account, hello)
			if err != nil {
				return err
			}
			sealed = append(sealed, o.Envelope)
		}
		return nil
	})
	for _, junk := range [][]byte{nil, []byte("nonsense"), make([]byte, protocol.MaxEnvelope+1), sealed[0]} {
		if b.digest(junk) != none {
			t.Errorf("an envelope of %d bytes that names no session has a digest", len(junk))
		}
	}
	open := func(e []byte) {
		t.Helper()
		if _, err := b.tryTake(a, e); err != nil {
			t.Fatal(err)
		}
	}
	seen := [][32]byte{none}
	for i, n := range []int{0, 3, 1} { // the first, a skip over two, one of the two
		open(sealed[n])
		d := b.digest(sealed[2])
		if slices.Contains(seen, d) {
			t.Errorf("step %d left the digest as it was once before", i)
		}
		seen = append(seen, d)
		flipped := slices.Clone(sealed[2])
		flipped[len(flipped)-1] ^= 1
		open(flipped)
		open(sealed[n])
		if b.digest(sealed[2]) != d {
			t.Errorf("after step %d an envelope without effect changed the digest", i)
		}
	}
	// A row of its own counts as well as the session's.
	before := b.digest(sealed[2])
	b.update(func(tx *store.Tx) error {
		for r, err := range store.SkippedKeys.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			return store.SkippedKeys.Delete(tx, r.Key)
		}
		return nil
	})
	if b.digest(sealed[2]) == before {
		t.Error("a skipped key was deleted and the digest does not tell")
	}
}
