//go:build unix

package prekey

import (
	"bytes"
	"crypto/mlkem"
	"crypto/rand"
	"syscall"
	"testing"

	"starling/protocol/identity"
	"starling/protocol/ratchet"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// perCPUSecond runs fn under b.Loop and reports how often it runs in one second
// of processor time, all threads and the garbage collector included, which
// repeats where wall time does not.
func perCPUSecond(b *testing.B, unit string, fn func()) {
	b.ReportAllocs()
	start := cpuTime(b)
	n := 0
	for b.Loop() {
		fn()
		n++
	}
	b.ReportMetric(float64(n)/(cpuTime(b)-start), unit)
}

func cpuTime(b *testing.B) float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(r.Utime) + seconds(r.Stime)
}

var firstMessage = make([]byte, 256)

// BenchmarkInitiate starts a session as a node does: check the signature of
// each bundle, PQXDH, the ratchet's first step, seal 256 bytes, encode the
// handshake. Account and device key are imported beforehand.
func BenchmarkInitiate(b *testing.B) {
	alice, bob := newNode(b, "alice", 1), newNode(b, "bob", 1)
	intro := Introduction{Manifest: alice.manifest, Profile: alice.profile}
	run := func(once bool) func() {
		return func() {
			day := bob.open(b, bob.dayBytes, wire.Role_ROLE_DAY)
			var oneTime *Bundle
			if once {
				oneTime = bob.open(b, bob.oneTimeBytes, wire.Role_ROLE_ONE_TIME)
			}
			s, hs, err := Initiate(rand.Reader, alice.dk, alice.self, bob.self, day, oneTime, nil, intro)
			if err != nil {
				b.Fatal(err)
			}
			session, err := ratchet.NewInitiator(rand.Reader, s.Session, s.Root, s.Associated, day.X25519)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := session.Seal(rand.Reader, firstMessage); err != nil {
				b.Fatal(err)
			}
			wire.Marshal(hs)
		}
	}
	b.Run("day", func(b *testing.B) { perCPUSecond(b, "sessions/cpu-s", run(false)) })
	b.Run("one-time", func(b *testing.B) { perCPUSecond(b, "sessions/cpu-s", run(true)) })
}

// BenchmarkRespond accepts a session: read the handshake, open the introduction,
// PQXDH, open the first message. The private halves are in memory. "known" has
// seen the initiator's manifest before, "stranger" imports two keys and checks
// its signature.
func BenchmarkRespond(b *testing.B) {
	alice, bob := newNode(b, "alice", 1), newNode(b, "bob", 1)
	manifest, err := identity.OpenManifest(alice.manifest, alice.self.Account, now)
	if err != nil {
		b.Fatal(err)
	}
	known := func(b []byte) (identity.Manifest, bool) { return manifest, bytes.Equal(b, alice.manifest) }

	run := func(oneTime *Private, bundle *Bundle, known func([]byte) (identity.Manifest, bool)) func() {
		s, sent := alice.initiate(b, bob, bundle, nil, nil)
		session, err := ratchet.NewInitiator(rand.Reader, s.Session, s.Root, s.Associated, bob.dayBundle.X25519)
		if err != nil {
			b.Fatal(err)
		}
		m, err := session.Seal(rand.Reader, firstMessage)
		if err != nil {
			b.Fatal(err)
		}
		encoded := wire.Marshal(sent)
		return func() {
			var hs wire.Handshake
			if err := wire.Parse(encoded, len(encoded), &hs); err != nil {
				b.Fatal(err)
			}
			in, err := OpenKnownIntroduction(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, &hs, known, now)
			if err != nil {
				b.Fatal(err)
			}
			s, err := Respond(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, oneTime, bundle, &hs, in)
			if err != nil {
				b.Fatal(err)
			}
			session := ratchet.NewResponder(s.Session, s.Root, s.Associated, bob.day.X25519())
			if _, err := session.Open(m.Message, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name  string
		known func([]byte) (identity.Manifest, bool)
	}{{"known", known}, {"stranger", nil}} {
		b.Run(c.name+"/day", func(b *testing.B) { perCPUSecond(b, "sessions/cpu-s", run(nil, nil, c.known)) })
		b.Run(c.name+"/one-time", func(b *testing.B) {
			perCPUSecond(b, "sessions/cpu-s", run(&bob.oneTime, bob.oneTimeBundle, c.known))
		})
	}
}

// BenchmarkMLKEM1024 is what the post-quantum half costs by itself.
func BenchmarkMLKEM1024(b *testing.B) {
	dk, err := mlkem.GenerateKey1024()
	if err != nil {
		b.Fatal(err)
	}
	seed, ek := dk.Bytes(), dk.EncapsulationKey()
	encoded := ek.Bytes()
	_, ct := ek.Encapsulate()
	b.Run("expand", func(b *testing.B) {
		perCPUSecond(b, "ops/cpu-s", func() { mlkem.NewDecapsulationKey1024(seed) })
	})
	b.Run("import", func(b *testing.B) {
		perCPUSecond(b, "ops/cpu-s", func() { mlkem.NewEncapsulationKey1024(encoded) })
	})
	b.Run("encapsulate", func(b *testing.B) { perCPUSecond(b, "ops/cpu-s", func() { ek.Encapsulate() }) })
	b.Run("decapsulate", func(b *testing.B) { perCPUSecond(b, "ops/cpu-s", func() { dk.Decapsulate(ct) }) })
}

// BenchmarkBundle is the cost of minting a one-time pair, and of checking one.
func BenchmarkBundle(b *testing.B) {
	bob := newNode(b, "bob", 1)
	b.Run("mint", func(b *testing.B) {
		perCPUSecond(b, "ops/cpu-s", func() {
			p, err := NewPrivate(rand.Reader)
			if err != nil {
				b.Fatal(err)
			}
			SignBundle(bob.dk, bob.self.Account, wire.Role_ROLE_ONE_TIME, 1, now, now.Add(1), &p)
		})
	})
	b.Run("open", func(b *testing.B) {
		perCPUSecond(b, "ops/cpu-s", func() { bob.open(b, bob.dayBytes, wire.Role_ROLE_DAY) })
	})
	b.Run("x25519", func(b *testing.B) {
		perCPUSecond(b, "ops/cpu-s", func() {
			if _, err := bob.dk.DH().Shared(bob.dayBundle.X25519); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("generate", func(b *testing.B) {
		perCPUSecond(b, "ops/cpu-s", func() { x25519.Generate(rand.Reader) })
	})
}
