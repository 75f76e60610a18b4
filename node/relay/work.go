package relay

import (
	"crypto/sha256"
	"math"
	"math/bits"
	"time"

	"starling/protocol"
)

// What presses on one box or pool, or on all of them: uses by work that count
// half after every pressHalf. Each doubling beyond what is free asks for one
// more bit, so that who goes on pays twice as much for each use as before.
const (
	pressHalf = 10 * time.Minute
	freeOne   = 8    // uses of one box or pool
	freeAll   = 1024 // uses of all
)

// A pressure counts uses that fade. The zero value is no use.
type pressure struct {
	level float64
	at    time.Time
}

func (p *pressure) fade(now time.Time) {
	if d := now.Sub(p.at); d > 0 {
		p.level *= math.Exp2(-d.Seconds() / pressHalf.Seconds())
	}
	p.at = now
}

func (p *pressure) add(now time.Time) {
	p.fade(now)
	p.level++
}

// rise returns the bits that are asked for beyond the usual ones.
func (p *pressure) rise(now time.Time, free float64) int {
	p.fade(now)
	return bits.Len64(uint64(p.level / free))
}

// bitsLocked returns the work asked for by a box or pool with the pressure one,
// nil for one that nobody used, while all have the pressure of all.
func (s *Service) bitsLocked(one, all *pressure, now time.Time) int {
	more := all.rise(now, freeAll)
	if one != nil {
		more = max(more, one.rise(now, freeOne))
	}
	return min(s.cfg.Limits.WorkBits+more, protocol.MaxWork)
}

// stamps remembers proofs of work until they expire.
type stamps struct {
	room int
	used map[[sha256.Size]byte]int64 // unix seconds at which they expire
}

// forget drops the stamps that are over.
func (s *stamps) forget(now int64) {
	for h, expires := range s.used {
		if expires <= now {
			delete(s.used, h)
		}
	}
}
