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

// A stamps is proofs of work that were used: when each is over, unix seconds.
type stamps map[[sha256.Size]byte]int64

// forget drops the stamps that are over, and returns how many.
func (s stamps) forget(now int64) (n int) {
	for h, expires := range s {
		if expires <= now {
			delete(s, h)
			n++
		}
	}
	return n
}

// stampLocked returns why work for a deposit may not be counted: it was, or there
// is no room to remember it. A sixteenth of the room is for one account, and half
// for those of all address blocks: who empties a box of its own keeps nothing
// here but stamps.
func (s *Service) stampLocked(q *queue, h [sha256.Size]byte) error {
	if _, used := q.stamps[h]; used {
		return refused
	}
	room, sh := s.cfg.Limits.Stamps, q.share
	if s.stamps >= room || sh.stamps >= max(room/16, 1) || sh.of != nil && sh.of.stamps >= max(room/2, 1) {
		return quota
	}
	return nil
}

// useLocked remembers work for a deposit.
func (s *Service) useLocked(q *queue, h [sha256.Size]byte, expires int64) {
	if q.stamps == nil {
		q.stamps = stamps{}
	}
	q.stamps[h] = expires
	s.countStampsLocked(q, 1)
}

// unuseLocked forgets it again.
func (s *Service) unuseLocked(q *queue, h [sha256.Size]byte) {
	if _, used := q.stamps[h]; used {
		delete(q.stamps, h)
		s.countStampsLocked(q, -1)
	}
}

// forgetStampsLocked drops the stamps of a queue that are over.
func (s *Service) forgetStampsLocked(q *queue, now int64) {
	s.countStampsLocked(q, -q.stamps.forget(now))
	if len(q.stamps) == 0 {
		q.stamps = nil
	}
}

func (s *Service) countStampsLocked(q *queue, n int) {
	s.stamps += n
	for sh := q.share; sh != nil; sh = sh.of {
		sh.stamps += n
	}
}
