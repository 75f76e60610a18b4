package station

import (
	"errors"
	"time"

	"starling/node/relay"
	"starling/node/store"
	"starling/protocol"
)

// A Status is how a relay stands, for its operator. Nothing in it tells one
// client from another.
type Status struct {
	PeerID    string
	Addresses []Address
	Bootstrap []string // addresses with /p2p, to join the network by
	Reach     Reach
	Started   time.Time
	Serving   bool // Run runs

	Service  relay.Status
	Messages int   // held
	Quota    int64 // bytes
	Traffic  uint64
	Rate     int
	Open     bool
	Tokens   int // admission tokens that were issued

	Conns      int // connections
	Peers      int // in the DHT's routing table
	Records    int // of the DHT, held for others in memory
	RecordSize int64

	// Bytes of streams since the start, all that the service does included; and
	// of these those that were carried for others.
	Sent, Received        uint64
	CircuitOut, CircuitIn uint64
}

// Status returns how the relay stands.
func (s *Station) Status() Status {
	st := Status{
		PeerID: s.host.ID().String(), Addresses: s.Addresses(), Started: s.started,
		Service: s.service.Load().Status(),
		Quota:   s.cfg.Quota, Traffic: s.cfg.Traffic, Rate: s.cfg.Rate, Open: s.cfg.Open,
		Conns: len(s.host.Network().Conns()), Peers: s.dht.Peers(),
		Sent: s.meter.sent.Load(), Received: s.meter.received.Load(),
		CircuitOut: s.meter.circuitSent.Load(), CircuitIn: s.meter.circuitRecv.Load(),
	}
	st.Messages = max(st.Service.Spool.Entries-1, 0) // one is the mark of the store
	st.Reach = s.reachOf(st.Addresses)
	st.Records, st.RecordSize = s.dht.Held()
	for _, a := range s.told(st.Addresses) {
		st.Bootstrap = append(st.Bootstrap, a.Addr+"/p2p/"+st.PeerID)
	}
	if issued, err := s.service.Load().Issued(); err == nil {
		st.Tokens = len(issued)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Serving = s.serving
	return st
}

// spent reports whether the month has less traffic left than one request may
// take.
func (s *Station) spent() bool {
	limit := s.cfg.Traffic
	return limit > 0 && s.service.Load().Status().Traffic+protocol.MaxRelayRequest > limit
}

// Healthy returns nil while the relay works: it serves, and its store can be
// read. Otherwise whoever watches over it starts it anew.
func (s *Station) Healthy() error {
	s.mu.Lock()
	serving := s.serving
	s.mu.Unlock()
	if !serving {
		return errors.New("not serving")
	}
	return s.cfg.Store.View(func(tx *store.Tx) error {
		_, err := store.RelayStates.Get(tx, store.RelayStateKey())
		return err
	})
}

// Ready returns nil while the relay takes new messages, or why it does not.
func (s *Station) Ready() error {
	if err := s.Healthy(); err != nil {
		return err
	}
	switch {
	case !s.service.Load().Status().Draining.IsZero():
		return errors.New("draining")
	case s.spent():
		return errors.New("the month's traffic is used up")
	}
	return nil
}
