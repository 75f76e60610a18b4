package relay

import (
	"context"
	"net/netip"
	"sync"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/time/rate"
)

// A traffic counts the bytes of a month, and slows down what is too fast. What
// the disk says is ahead of what was used, but for the answers on their way, so
// that a crash gives nobody a new budget.
type traffic struct {
	limit uint64 // bytes a month; 0: none
	speed *rate.Limiter
	write chan struct{} // asks the service to write; one token is enough

	mu    sync.Mutex // guards what follows; not held across a wait
	month uint32
	spent uint64
	ahead uint64 // as written
}

// blockDay is the part of the month's bytes that one address block has for a day:
// a sixteenth of a thirty-first. Fewer than 16 blocks do not use up a month.
const blockDay = 16 * 31

// maxWait is the longest that a request waits for the relay's speed.
const maxWait = 5 * time.Second

func monthOf(t time.Time) uint32 {
	t = t.UTC()
	return uint32(t.Year()*12 + int(t.Month()) - 1)
}

func newTraffic(limit uint64, bytes int) *traffic {
	t := &traffic{limit: limit, write: make(chan struct{}, 1)}
	if bytes > 0 {
		t.speed = rate.NewLimiter(rate.Limit(bytes), max(bytes, 2<<20))
	}
	return t
}

// maxStep is the most that a crash costs of the month.
const maxStep = 64 << 20

// step is how far the disk is ahead.
func (t *traffic) step() uint64 { return min(max(t.limit/64, 1), maxStep) }

// next returns what is to be written, and is followed by wrote.
func (t *traffic) next(now time.Time) (month uint32, ahead uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	return t.month, t.spent + t.step()
}

func (t *traffic) wrote(month uint32, ahead uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.month == month {
		t.ahead = max(t.ahead, ahead)
	}
}

// turnLocked begins a new month. A clock that went back does not.
func (t *traffic) turnLocked(now time.Time) {
	if m := monthOf(now); m > t.month {
		t.month, t.spent, t.ahead = m, 0, 0
	}
}

func (t *traffic) used(now time.Time) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	return t.spent
}

// spend counts n bytes of a request, and reports whether the month has them, and
// the address block's day.
func (t *traffic) spend(b *block, n int, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	if t.limit > 0 {
		if t.spent+uint64(n) > t.limit || t.spent+uint64(n) > t.ahead {
			t.askLocked()
			return false
		}
		if t.usedUpLocked(b, now) {
			return false
		}
	}
	t.countLocked(b, n, now)
	return true
}

// count counts n bytes of an answer, which is sent whether the month has them or
// not: its request was begun before.
func (t *traffic) count(b *block, n int, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	t.countLocked(b, n, now)
}

func (t *traffic) countLocked(b *block, n int, now time.Time) {
	t.spent += uint64(n)
	if day := dayOf(now); day > b.day {
		b.day, b.spent = day, 0
	}
	b.spent += uint64(n)
	if t.limit > 0 && t.spent+t.step()/2 > t.ahead {
		t.askLocked()
	}
}

// usedUp reports whether an address block gets nothing more today.
func (t *traffic) usedUp(b *block, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.usedUpLocked(b, now)
}

func (t *traffic) usedUpLocked(b *block, now time.Time) bool {
	return t.limit > 0 && !b.local && dayOf(now) <= b.day && b.spent > t.limit/blockDay
}

func (t *traffic) askLocked() {
	select {
	case t.write <- struct{}{}:
	default:
	}
}

// pace waits until n bytes may pass, and reports whether that is soon enough.
func (t *traffic) pace(ctx context.Context, n int) bool {
	if t.speed == nil {
		return true
	}
	r := t.speed.ReserveN(time.Now(), min(n, t.speed.Burst()))
	d := r.Delay()
	if d == 0 {
		return true
	}
	if d > maxWait {
		r.Cancel()
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// blockOf returns what one attacker has at little cost: an IPv4 /24 or an IPv6
// /48. Without an address it is the zero block, one for all.
func blockOf(a ma.Multiaddr) netip.Prefix {
	addr := ipOf(a)
	if !addr.IsValid() {
		return netip.Prefix{}
	}
	size := 48
	if addr.Is4() {
		size = 24
	}
	block, _ := addr.Prefix(size)
	return block
}

// A block is what is counted of an address block.
type block struct {
	local    bool // loopback, which has no limits
	streams  int
	attached int  // queues, on these streams
	held     int  // bytes of the memory for requests and answers
	dialling bool // back, for somebody in it
	rate     *rate.Limiter

	day   uint32 // the last of its traffic; guarded by traffic.mu
	spent uint64 // bytes on that day; guarded by traffic.mu
}

// maxBlocks is the most address blocks that are told apart, or twice the streams
// if that is more, each about 250 bytes. Beyond it newcomers share one.
const maxBlocks = 8192

// blockLocked returns the block of an address.
func (s *Service) blockLocked(p netip.Prefix) *block {
	if b := s.blocks[p]; b != nil {
		return b
	}
	most := max(maxBlocks, 2*s.cfg.Limits.Streams)
	if now := time.Now(); len(s.blocks) >= most && now.Sub(s.swept) > time.Second {
		s.swept = now
		for p, b := range s.blocks {
			if b.streams == 0 && b.rate.TokensAt(now) >= float64(b.rate.Burst()) && !s.traffic.usedUp(b, s.now()) {
				delete(s.blocks, p)
			}
		}
	}
	if len(s.blocks) >= most {
		return s.others
	}
	b := s.newBlock(p)
	s.blocks[p] = b
	return b
}

func (s *Service) newBlock(p netip.Prefix) *block {
	limit := rate.Limit(s.cfg.Limits.BlockRate)
	local := p.Addr().IsLoopback()
	if local {
		limit = rate.Inf
	}
	return &block{local: local, rate: rate.NewLimiter(limit, 2*s.cfg.Limits.BlockRate)}
}
