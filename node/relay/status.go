package relay

import (
	"errors"
	"math/bits"
	"strings"
	"sync/atomic"
	"time"

	"starling/node/relay/spool"
	"starling/node/store"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// A refusal is a status other than OK, on its way through code that returns
// errors.
type refusal wire.RelayStatus

// Error implements error.
func (r refusal) Error() string { return wire.RelayStatus(r).String() }

const (
	quota     = refusal(wire.RelayStatus_RELAY_STATUS_QUOTA)
	refused   = refusal(wire.RelayStatus_RELAY_STATUS_REFUSED)
	busy      = refusal(wire.RelayStatus_RELAY_STATUS_BUSY)
	malformed = refusal(wire.RelayStatus_RELAY_STATUS_MALFORMED)
	tooBig    = refusal(wire.RelayStatus_RELAY_STATUS_TOO_BIG)
	draining  = refusal(wire.RelayStatus_RELAY_STATUS_DRAINING)
	empty     = refusal(wire.RelayStatus_RELAY_STATUS_EMPTY)
)

// A demand asks for more work.
type demand int // bits

// Error implements error.
func (demand) Error() string { return "more work" }

// ok is the answer without a result.
func ok() *wire.RelayAnswer {
	return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK}
}

// answerOf returns a, or what a client is told of err. Of the relay's own
// troubles it learns that it may ask again.
func (s *Service) answerOf(a *wire.RelayAnswer, err error) *wire.RelayAnswer {
	if err == nil {
		return a
	}
	if d, ok := errors.AsType[demand](err); ok {
		s.counters.refused[wire.RelayStatus_RELAY_STATUS_WORK].Add(1)
		return &wire.RelayAnswer{
			Status: wire.RelayStatus_RELAY_STATUS_WORK,
			Result: &wire.RelayAnswer_Demand{Demand: &wire.RelayDemand{Bits: uint32(d)}},
		}
	}
	r, known := errors.AsType[refusal](err)
	switch {
	case known:
	case errors.Is(err, relay.ErrRequest):
		r = malformed
	case errors.Is(err, relay.ErrTooBig):
		r = tooBig
	case errors.Is(err, relay.ErrProof):
		r = refused
	case errors.Is(err, spool.ErrFull):
		r = quota
	case errors.Is(err, spool.ErrDiskFull), errors.Is(err, store.ErrFull):
		r = quota
		s.log.Warn("the disk is full, below the relay's quota", "error", err)
	default:
		r = busy
		s.log.Warn("request not served", "error", err)
	}
	s.counters.refused[r].Add(1)
	return &wire.RelayAnswer{Status: wire.RelayStatus(r)}
}

// A Status is what a relay holds and does, for its operator.
type Status struct {
	Store    [relay.StoreIDSize]byte // store ID
	Spool    spool.Usage
	Queues   int
	Shares   int   // admission tokens and address blocks with a queue
	Boxes    int64 // bytes in contact boxes
	Streams  int
	Attached int       // queues, on all streams
	Draining time.Time // zero: no
	Traffic  uint64    // bytes of this month, counted a little ahead
	WorkBits int       // for a deposit in a contact box, now
	Anybody  int64     // bytes on the accounts of all address blocks
	Blobs    int
	Shelf    int64 // bytes of blobs, each counted whole
	Counters Counters
}

// Counters are what a relay did since New. They only grow, and none is of one
// peer, queue or address, so that they may be shown to whoever watches it.
type Counters struct {
	Requests     uint64 // that were read
	BytesIn      uint64 // of requests
	BytesOut     uint64 // of answers
	TurnedAway   uint64 // streams that their address block had no room for
	Deposits     uint64 // that were kept
	DepositBytes uint64 // of these
	Repeated     uint64 // deposits that were there already
	Receipts     uint64 // signed: for both, and a few for what nobody asks one for
	Polls        uint64 // answered with OK
	Entries      uint64 // given out in these
	Keys         uint64 // one-time keys given out
	Chunks       uint64 // of blobs, given out
	// Refused are the answers that were not OK, by their status: quota, refused,
	// busy, malformed, too_big, draining, work, empty. All of them are there.
	Refused map[string]uint64
	// Groups are the groups of deposits that were signed: Groups[i] are those of
	// 2^i to 2^(i+1)-1 deposits, and the last those of [spool.MaxGroup].
	Groups [groupSizes]uint64
}

// groupSizes is the number of powers of two up to [spool.MaxGroup].
const groupSizes = 13

// counters are Counters that grow.
type counters struct {
	requests, bytesIn, bytesOut, turnedAway                                  atomic.Uint64
	deposits, depositBytes, repeated, receipts, polls, entries, keys, chunks atomic.Uint64
	refused                                                                  [statuses]atomic.Uint64 // by status
	groups                                                                   [groupSizes]atomic.Uint64
}

// statuses is one more than the last status.
const statuses = wire.RelayStatus_RELAY_STATUS_EMPTY + 1

// group counts a group that was signed.
func (c *counters) group(n int) {
	c.receipts.Add(uint64(n))
	c.groups[min(bits.Len(uint(n))-1, groupSizes-1)].Add(1)
}

// read returns what was counted. Numbers that belong together may be of
// different moments.
func (c *counters) read() Counters {
	out := Counters{
		Requests: c.requests.Load(), BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(), TurnedAway: c.turnedAway.Load(),
		Deposits: c.deposits.Load(), DepositBytes: c.depositBytes.Load(), Repeated: c.repeated.Load(), Receipts: c.receipts.Load(),
		Polls: c.polls.Load(), Entries: c.entries.Load(), Keys: c.keys.Load(), Chunks: c.chunks.Load(),
		Refused: map[string]uint64{},
	}
	for st := wire.RelayStatus_RELAY_STATUS_QUOTA; st < statuses; st++ {
		name := strings.ToLower(strings.TrimPrefix(st.String(), "RELAY_STATUS_"))
		out.Refused[name] = c.refused[st].Load()
	}
	for i := range c.groups {
		out.Groups[i] = c.groups[i].Load()
	}
	return out
}

// Status returns what the relay holds and does now.
func (s *Service) Status() Status {
	now := s.now()
	st := Status{Spool: s.spool.Usage(), Traffic: s.traffic.used(now), Counters: s.counters.read()}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Store = s.storeID
	st.Queues = len(s.queues)
	for _, sh := range s.shares {
		if sh.queues > 0 {
			st.Shares++
		}
	}
	st.Anybody = s.anybody.bytes
	st.Blobs, st.Shelf = len(s.blobs), s.shelf
	st.Boxes, st.Streams, st.Attached = s.boxes, s.streams, s.attached
	if s.draining != 0 {
		st.Draining = time.Unix(s.draining, 0)
	}
	st.WorkBits = s.bitsLocked(nil, &s.filling, now)
	return st
}
