package network

import (
	"math/bits"
	"time"
)

// mix is the finaliser of SplitMix64: a permutation that spreads every bit.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

const golden = 0x9e3779b97f4a7c15 // the step of SplitMix64

// A source is a SplitMix64 stream of draws.
type source uint64

// newSource returns the source that belongs to some numbers, in their order.
func newSource(numbers ...uint64) source {
	var s uint64
	for _, n := range numbers {
		s = mix(s + golden + mix(n+golden))
	}
	return source(s)
}

func (s *source) next() uint64 {
	*s += golden
	return mix(uint64(*s))
}

// float returns a draw from [0, 1).
func (s *source) float() float64 { return float64(s.next()>>11) / (1 << 53) }

// upTo returns a draw from [0, d].
func (s *source) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	hi, _ := bits.Mul64(s.next(), uint64(d)+1)
	return time.Duration(hi)
}

// pair numbers the unordered pairs of different sites, from 0.
func pair(a, b int) uint64 {
	lo, hi := uint64(min(a, b)), uint64(max(a, b))
	return hi*(hi-1)/2 + lo
}

// maxSpread is the most by which [distinct] changes a latency: 2.1 ms.
const maxSpread = 21 // bits, of nanoseconds

// distinct changes a latency a little, so that no two pairs of sites have the
// same: events at different nodes then do not fall on the same nanosecond, and
// their order does not depend on the scheduler. Latencies are cut down to a
// multiple of a power of two that is at least the number of pairs, and get back
// a place of their own below it. With more than 2,048 sites the places are
// shared, and ties become rare instead of impossible.
func distinct(seed uint64, sites int, k uint64, d time.Duration) time.Duration {
	pairs := uint64(sites) * uint64(sites-1) / 2
	width := bits.Len64(max(pairs, 2) - 1)
	place := permute(seed, width, k)
	if width > maxSpread {
		place >>= width - maxSpread
		width = maxSpread
	}
	return d>>width<<width + time.Duration(place)
}

// permute is a seeded permutation of the numbers of some bits, at least one.
// Each of its steps can be undone: adding, multiplying by an odd number, and
// xoring the upper half onto the lower.
func permute(seed uint64, width int, x uint64) uint64 {
	mask := uint64(1)<<width - 1
	s := newSource(seed, uint64(width))
	for range 4 {
		x = (x + s.next()) & mask
		x = x * (s.next() | 1) & mask
		x ^= x >> ((width + 1) / 2)
	}
	return x
}
