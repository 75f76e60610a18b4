package relay

import (
	"errors"
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
	return &wire.RelayAnswer{Status: wire.RelayStatus(r)}
}

// A Status is what a relay holds and does, for its operator.
type Status struct {
	Store    [relay.StoreIDSize]byte // store ID
	Spool    spool.Usage
	Queues   int
	Shares   int // admission tokens and address blocks with a queue
	Boxes    int64
	Streams  int
	Attached int       // queues, on all streams
	Draining time.Time // zero: no
	Traffic  uint64    // bytes of this month, counted a little ahead
	WorkBits int       // for a deposit in a contact box, now
}

// Status returns what the relay holds and does now.
func (s *Service) Status() Status {
	now := s.now()
	st := Status{Spool: s.spool.Usage(), Traffic: s.traffic.used(now)}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Store = s.storeID
	st.Queues = len(s.queues)
	for _, sh := range s.shares {
		if sh.queues > 0 {
			st.Shares++
		}
	}
	st.Boxes, st.Streams, st.Attached = s.boxes, s.streams, s.attached
	if s.draining != 0 {
		st.Draining = time.Unix(s.draining, 0)
	}
	st.WorkBits = s.bitsLocked(nil, &s.filling, now)
	return st
}
