package prekey

import (
	"runtime"
	"testing"

	"starling/protocol"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// checkAlloc runs fn and fails if it allocated more than limit bytes, each time
// of a few: the counter is the process's, and others allocate too.
func checkAlloc(t *testing.T, limit uint64, fn func()) {
	t.Helper()
	var got uint64
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fn()
		runtime.ReadMemStats(&after)
		if got = after.TotalAlloc - before.TotalAlloc; got <= limit {
			return
		}
	}
	t.Fatalf("allocated %d bytes, want at most %d", got, limit)
}

// parsed is what parsing n bytes may allocate, and slack what fixed-size
// cryptography may: an expanded ML-KEM-1024 key is the largest part.
func parsed(n int) uint64 { return uint64(wire.AllocFactor*n) + slack }

const slack = 64 << 10

func FuzzOpenBundle(f *testing.F) {
	bob := newNode(f, "bob", 1)
	f.Add(bob.dayBytes)
	f.Add(bob.oneTimeBytes)
	f.Add(bob.manifest)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, role := range []wire.Role{wire.Role_ROLE_DAY, wire.Role_ROLE_ONE_TIME} {
			checkAlloc(t, parsed(2*min(len(b), protocol.MaxBundle)), func() {
				bundle, err := OpenBundle(b, bob.self.Account, bob.self.Device, role, now)
				if err != nil {
					return
				}
				// Nobody forges a signature: it is one of Bob's, give or take
				// unknown fields outside the signed body.
				if bundle.ID != bob.dayBundle.ID && bundle.ID != bob.oneTimeBundle.ID {
					t.Errorf("%x is accepted", b)
				}
				var s wire.Signed
				if err := wire.Parse(b, protocol.MaxBundle, &s); err != nil {
					t.Error(err)
				}
				again, err := OpenBundle(wire.Marshal(&s), bob.self.Account, bob.self.Device, role, now)
				if err != nil || again.ID != bundle.ID {
					t.Errorf("%x changes when encoded and opened again: %v", b, err)
				}
			})
		}
	})
}

// FuzzOpenIntroduction feeds arbitrary bytes as a handshake, as a stranger on
// the wire can, and as the introduction inside a sound one, as a dishonest
// initiator can.
func FuzzOpenIntroduction(f *testing.F) {
	alice, bob := newNode(f, "alice", 1), newNode(f, "bob", 1)
	_, sound := alice.initiate(f, bob, bob.oneTimeBundle, &SessionID{1}, nil)
	eph, err := x25519.Generate(&stream{name: "handshake"})
	if err != nil {
		f.Fatal(err)
	}
	dh2, err := eph.Shared(bob.self.DH)
	if err != nil {
		f.Fatal(err)
	}
	dh3, err := eph.Shared(bob.dayBundle.X25519)
	if err != nil {
		f.Fatal(err)
	}
	aead := introductionAEAD(HandshakeID(sound), &bob.self, &dh2, &dh3)
	plain, err := aead.Open(nil, make([]byte, gcmNonceSize), sound.Introduction, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire.Marshal(sound), plain)
	f.Add([]byte{}, []byte{})

	f.Fuzz(func(t *testing.T, b, inner []byte) {
		var hs wire.Handshake
		if err := wire.Parse(b, protocol.MaxEnvelope, &hs); err == nil {
			checkAlloc(t, parsed(2*len(b)), func() {
				in, err := bob.introduction(&hs)
				if err == nil && in.Peer != alice.self {
					t.Errorf("%x is accepted from somebody else", b)
				}
			})
		}

		if len(inner)+gcmTagSize > protocol.MaxIntro {
			return
		}
		sealed := clone(sound)
		sealed.Introduction = aead.Seal(nil, make([]byte, gcmNonceSize), inner, nil)
		checkAlloc(t, parsed(3*len(inner)), func() {
			in, err := bob.introduction(sealed)
			if err != nil {
				return
			}
			if in.Peer != alice.self {
				t.Errorf("introduction %x is accepted from somebody else", inner)
			}
			if _, err := Respond(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, &bob.oneTime, bob.oneTimeBundle, sealed, in); err != nil {
				t.Errorf("an accepted introduction leads nowhere: %v", err)
			}
		})
	})
}
