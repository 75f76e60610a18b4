//go:build unix

package envelope

import (
	"crypto/rand"
	"fmt"
	"syscall"
	"testing"

	"starling/protocol"
	"starling/protocol/identity"
)

// perCPUSecond runs fn under b.Loop and reports how often it runs in one second
// of processor time, all threads and the garbage collector included, which
// repeats where wall time does not.
func perCPUSecond(b *testing.B, fn func()) {
	b.ReportAllocs()
	start := cpuTime(b)
	n := 0
	for b.Loop() {
		fn()
		n++
	}
	b.ReportMetric(float64(n)/(cpuTime(b)-start), "envelopes/cpu-s")
}

func cpuTime(b *testing.B) float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(r.Utime) + seconds(r.Stime)
}

// Contents whose envelopes take each of the four sizes.
var benchContents = [...]int{256, 1536, 15872, protocol.MaxContent}

func BenchmarkSealFor(b *testing.B) {
	alice, bob := newPerson(b, "alice"), newPerson(b, "bob")
	for i, n := range benchContents {
		envelope := openEnvelope(n)
		b.Run(fmt.Sprint(SealedSizes()[i]), func(b *testing.B) {
			perCPUSecond(b, func() { sealFor(b, alice, bob, envelope) })
		})
	}
}

// BenchmarkOpenSealed opens with the first of the live keys, the usual case, and
// with the last of five, at a turn of weeks. "stranger" is what one costs who
// can deposit, and knows the sealing key and somebody's manifest. "known
// manifest" is what a contact's costs.
func BenchmarkOpenSealed(b *testing.B) {
	l := newLetter(b)
	keys := make([]*SealingPrivate, 5)
	for i := range keys {
		var err error
		if keys[i], err = NewSealingPrivate(rand.Reader); err != nil {
			b.Fatal(err)
		}
	}
	var known func([]byte) (identity.Manifest, bool)
	run := func(name string, keys []*SealingPrivate, sealed []byte, want error) {
		b.Run(name, func(b *testing.B) {
			perCPUSecond(b, func() {
				if _, err := OpenKnownSealed(keys, l.bob.dk, queue, sealed, known, now); err != want {
					b.Fatal(err)
				}
			})
		})
	}
	for i, n := range benchContents {
		run(fmt.Sprint(SealedSizes()[i]), []*SealingPrivate{l.bob.private}, sealFor(b, l.alice, l.bob, openEnvelope(n)), nil)
	}
	run("fifth key", append(keys[:4:4], l.bob.private), sealFor(b, l.alice, l.bob, openEnvelope(256)), nil)
	run("junk, five keys", keys, sealFor(b, l.alice, l.bob, openEnvelope(256)), ErrSealed)
	run("stranger", []*SealingPrivate{l.bob.private}, l.context.seal(b, l.faults(b)["a changed tag"]), ErrSealed)
	manifest, err := identity.OpenManifest(l.alice.manifest, l.alice.account.Account(), now)
	if err != nil {
		b.Fatal(err)
	}
	known = func([]byte) (identity.Manifest, bool) { return manifest, true }
	run("known manifest", []*SealingPrivate{l.bob.private}, sealFor(b, l.alice, l.bob, openEnvelope(256)), nil)
}
