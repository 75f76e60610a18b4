//go:build unix

package ratchet

import (
	"crypto/rand"
	"fmt"
	"syscall"
	"testing"
	"time"
)

// cpu returns the processor time that this process has used so far. Other work
// on the machine does not count in it; the garbage collector does.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// perCPU reports how many messages, n for each iteration, passed in a second
// of processor time since start.
func perCPU(b *testing.B, start time.Duration, n int) {
	b.Helper()
	b.ReportMetric(float64(b.N*n)/(cpu(b)-start).Seconds(), "msgs/cpu-s")
}

// sealB and openB do one step; serialised, they read the state from its stored
// form before it and write it after, as a store does.
func sealB(b *testing.B, s *Session, state *[]byte, text []byte) []byte {
	if state != nil {
		s = parseB(b, *state)
	}
	m, err := s.Seal(rand.Reader, text)
	if err != nil {
		b.Fatal(err)
	}
	if state != nil {
		*state = s.Marshal()
	}
	return m.Message
}

func openB(b *testing.B, s *Session, state *[]byte, m []byte) {
	if state != nil {
		s = parseB(b, *state)
	}
	if _, err := s.Open(m, nil); err != nil {
		b.Fatal(err)
	}
	if state != nil {
		*state = s.Marshal()
	}
}

func parseB(b *testing.B, state []byte) *Session {
	s, err := Parse(state)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// BenchmarkPingPong turns the direction with every message, so that each makes
// a whole DH step: a key, and an agreement on either side. One iteration is
// two messages, sealed and opened.
func BenchmarkPingPong(b *testing.B) {
	text := make([]byte, 256)
	b.Run("memory", func(b *testing.B) {
		alice, bob := pair(b)
		b.ReportAllocs()
		start := cpu(b)
		for b.Loop() {
			openB(b, bob, nil, sealB(b, alice, nil, text))
			openB(b, alice, nil, sealB(b, bob, nil, text))
		}
		perCPU(b, start, 2)
	})
	b.Run("serialised", func(b *testing.B) {
		alice, bob := pair(b)
		as, bs := alice.Marshal(), bob.Marshal()
		b.ReportAllocs()
		start := cpu(b)
		for b.Loop() {
			openB(b, nil, &bs, sealB(b, nil, &as, text))
			openB(b, nil, &as, sealB(b, nil, &bs, text))
		}
		perCPU(b, start, 2)
	})
}

// BenchmarkOneWay seals and opens along one chain.
func BenchmarkOneWay(b *testing.B) {
	text := make([]byte, 256)
	alice, bob := pair(b)
	openB(b, bob, nil, sealB(b, alice, nil, text))
	as, bs := alice.Marshal(), bob.Marshal()
	b.Run("serialised", func(b *testing.B) {
		b.ReportAllocs()
		start := cpu(b)
		for b.Loop() {
			openB(b, nil, &bs, sealB(b, nil, &as, text))
		}
		perCPU(b, start, 1)
	})
	b.Run("seal", func(b *testing.B) {
		b.ReportAllocs()
		start := cpu(b)
		for b.Loop() {
			sealB(b, alice, nil, text)
		}
		perCPU(b, start, 1)
	})
}

// BenchmarkSkipped opens the message after a gap of 500, and then the 500.
func BenchmarkSkipped(b *testing.B) {
	const gap = 500
	alice, bob := pair(b)
	text := make([]byte, 256)
	openB(b, bob, nil, sealB(b, alice, nil, text))
	late := make([][]byte, gap)
	for i := range late {
		late[i] = sealB(b, alice, nil, text)
	}
	last := sealB(b, alice, nil, text)
	state := bob.Marshal()

	b.Run(fmt.Sprintf("first-after-%d", gap), func(b *testing.B) {
		b.ReportAllocs()
		start := cpu(b)
		for b.Loop() {
			s := state
			openB(b, nil, &s, last)
		}
		perCPU(b, start, 1)
	})
	b.Run(fmt.Sprintf("the-%d", gap), func(b *testing.B) {
		bob := parseB(b, state)
		o, err := bob.Open(last, nil)
		if err != nil {
			b.Fatal(err)
		}
		table := rows{}
		table.commit(o)
		state := bob.Marshal()
		b.ReportAllocs()
		start := cpu(b)
		for b.Loop() {
			s := state
			for i := range late {
				bob := parseB(b, s)
				if _, err := bob.Open(late[len(late)-1-i], table.lookup); err != nil {
					b.Fatal(err)
				}
				s = bob.Marshal()
			}
		}
		perCPU(b, start, gap)
	})
}
