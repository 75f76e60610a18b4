package ratchet

import (
	"bytes"
	"runtime"
	"testing"

	"starling/protocol"
)

// FuzzOpen opens arbitrary bytes on sessions in each of their states: nothing
// panics, what is refused changes nothing, and no more is allocated than the
// message and the keys it may skip are worth.
func FuzzOpen(f *testing.F) {
	r := newRandomness(1) // the same sessions in every process of the fuzzer
	alice, bob := pairWith(f, &r)
	a, b := rows{}, rows{}
	var live []*Session
	keep := func(s *Session) {
		c := *s
		live = append(live, &c)
	}
	keep(alice)
	keep(bob)
	skipped := sealWith(f, &r, alice, "skipped")
	first := sealWith(f, &r, alice, "first")
	f.Add(first.Message)
	open(f, bob, b, first, "first")
	keep(bob)
	reply := sealWith(f, &r, bob, "reply")
	f.Add(reply.Message)
	open(f, alice, a, reply, "reply")
	keep(alice)
	keep(bob)
	gap := sealWith(f, &r, alice, "gap")
	for range 20 {
		gap = sealWith(f, &r, alice, "gap")
	}
	f.Add(skipped.Message)
	f.Add(gap.Message)
	f.Add(first.Message[:Overhead-1])
	f.Add([]byte{})

	genuine := map[string]bool{}
	for _, m := range []Sealed{skipped, first, reply, gap} {
		genuine[string(m.Message)] = true
	}
	// A row, the cipher, the plaintext: twice what they need.
	const rowSize, fixed = 80, 16 << 10
	f.Fuzz(func(t *testing.T, m []byte) {
		for i, s := range live {
			s := *s
			before := s.Marshal()
			var m0, m1 runtime.MemStats
			runtime.ReadMemStats(&m0)
			o, err := s.Open(m, b.lookup)
			runtime.ReadMemStats(&m1)
			if got, limit := m1.TotalAlloc-m0.TotalAlloc, uint64(2*(rowSize*protocol.MaxSkip+len(m))+fixed); got > limit {
				t.Errorf("session %d: %d bytes allocated, the limit is %d", i, got, limit)
			}
			if err != nil {
				if !bytes.Equal(s.Marshal(), before) {
					t.Errorf("session %d changed on %v", i, err)
				}
				continue
			}
			if !genuine[string(m)] {
				t.Errorf("session %d opened a forgery: %q", i, o.Plaintext)
			}
		}
	})
}

// FuzzParse parses arbitrary states: what is accepted has one encoding, and the
// session it makes can be used without a panic.
func FuzzParse(f *testing.F) {
	r := newRandomness(1)
	alice, bob := pairWith(f, &r)
	f.Add(alice.Marshal())
	f.Add(bob.Marshal())
	m := sealWith(f, &r, alice, "m")
	open(f, bob, rows{}, m, "m")
	f.Add(bob.Marshal())
	open(f, alice, rows{}, sealWith(f, &r, bob, "r"), "r")
	f.Add(alice.Marshal())
	f.Add(bob.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err != nil {
			return
		}
		if !bytes.Equal(s.Marshal(), b) {
			t.Fatalf("Marshal of Parse = %x, want %x", s.Marshal(), b)
		}
		s.Open(m.Message, func(SkippedID) ([32]byte, bool) { return [32]byte{}, true })
		r := newRandomness(2)
		if sealed, err := s.Seal(&r, nil); err == nil && len(sealed.Message) != Overhead {
			t.Fatalf("empty message has %d bytes", len(sealed.Message))
		}
		if _, err := Parse(s.Marshal()); err != nil {
			t.Fatalf("state does not parse after use: %v", err)
		}
	})
}
