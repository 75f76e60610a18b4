package simulation

import (
	"context"
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"starling/node/relay/client"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// Bad says what is wrong with a relay, as scenarios and manifests spell it.
type Bad string

// What can be wrong with a relay. Its service is that of every other relay; what
// lies stands between the service and the clients, with the relay's key.
const (
	BadDrops       Bad = "drops"        // signs for deposits and keeps none
	BadDelays      Bad = "delays"       // signs for deposits and keeps them thirty hours later
	BadReplays     Bad = "replays"      // deposits again what was deposited, an hour and a day later
	BadRepeatsKeys Bad = "repeats-keys" // gives everybody the first one-time key of a pool
	BadLies        Bad = "lies"         // announces a hundredfold quota, and has no room for every other deposit
)

// BadKinds returns all that can be wrong with a relay.
func BadKinds() []Bad { return []Bad{BadDrops, BadDelays, BadReplays, BadRepeatsKeys, BadLies} }

// A meddler is what lies in a relay. Its methods are called by several streams
// at once, and do not wait.
type meddler interface {
	// request may answer a request in place of the service, which does not see
	// it then; nil leaves it to the service.
	request(l *line, req *wire.RelayRequest) *wire.RelayAnswer
	// answer returns what a client gets in place of the service's answer.
	answer(l *line, req *wire.RelayRequest, a *wire.RelayAnswer) *wire.RelayAnswer
}

// meddler returns what lies in a relay, nil if nothing does.
func (b Bad) meddler(r *Relay) meddler {
	switch b {
	case BadDrops:
		return dropper{r: r}
	case BadDelays:
		return dropper{r: r, after: delay}
	case BadReplays:
		return replayer{r}
	case BadRepeatsKeys:
		return &repeater{given: map[relay.PoolID][]byte{}}
	case BadLies:
		return &liar{}
	}
	return nil
}

// Tuning of what lies.
const (
	delay        = 30 * time.Hour
	lieQuota     = 100         // times what it has
	accompliceIn = time.Minute // one request
)

// replayAfter are the times after which a replayer deposits again.
var replayAfter = [...]time.Duration{time.Hour, 25 * time.Hour}

// honest answers as the service does.
type honest struct{}

func (honest) request(*line, *wire.RelayRequest) *wire.RelayAnswer { return nil }

func (honest) answer(_ *line, _ *wire.RelayRequest, a *wire.RelayAnswer) *wire.RelayAnswer { return a }

// A dropper signs for deposits that the service never sees, or sees later.
type dropper struct {
	honest
	r     *Relay
	after time.Duration // 0: never
}

func (d dropper) request(_ *line, req *wire.RelayRequest) *wire.RelayAnswer {
	m, ok := req.Command.(*wire.RelayRequest_Deposit)
	if !ok {
		return nil
	}
	leaf := relay.NewLeaf(relay.QueueID(m.Deposit.Queue), sha256.Sum256(m.Deposit.Blob), m.Deposit.Expires)
	g, err := relay.SignGroup([]relay.Leaf{leaf}, d.r.w.Clock(), d.r.key)
	if err != nil {
		panic("simulation: internal error: a receipt that is not signed: the key is Ed25519, and there is one leaf")
	}
	if d.after > 0 {
		d.r.again(d.after, req)
	}
	return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK, Result: &wire.RelayAnswer_Receipt{Receipt: g.Receipt(0).Wire()}}
}

// A replayer deposits again what was deposited.
type replayer struct{ r *Relay }

func (replayer) request(*line, *wire.RelayRequest) *wire.RelayAnswer { return nil }

func (p replayer) answer(_ *line, req *wire.RelayRequest, a *wire.RelayAnswer) *wire.RelayAnswer {
	if req.GetDeposit() != nil && a.Status == wire.RelayStatus_RELAY_STATUS_OK {
		for _, after := range replayAfter {
			p.r.again(after, req)
		}
	}
	return a
}

// A repeater gives the first one-time key of a pool to everybody.
type repeater struct {
	honest
	mu    sync.Mutex // guards given; never held across a wait
	given map[relay.PoolID][]byte
}

func (p *repeater) answer(_ *line, req *wire.RelayRequest, a *wire.RelayAnswer) *wire.RelayAnswer {
	m := req.GetTakeKey()
	if m == nil || a.Status != wire.RelayStatus_RELAY_STATUS_OK {
		return a
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pool := relay.PoolID(m.Pool)
	if p.given[pool] == nil {
		p.given[pool] = slices.Clone(a.GetKey().Key)
	}
	return &wire.RelayAnswer{Status: a.Status, Result: &wire.RelayAnswer_Key{Key: &wire.RelayKey{Key: p.given[pool]}}}
}

// A liar announces more than it has.
type liar struct {
	mu       sync.Mutex // guards deposits; never held across a wait
	deposits int
}

func (p *liar) request(_ *line, req *wire.RelayRequest) *wire.RelayAnswer {
	if req.GetDeposit() == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deposits++; p.deposits%2 == 0 {
		return nil
	}
	return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_QUOTA}
}

func (p *liar) answer(_ *line, _ *wire.RelayRequest, a *wire.RelayAnswer) *wire.RelayAnswer {
	if a.GetInfo() == nil {
		return a
	}
	a = proto.CloneOf(a)
	for _, q := range a.GetInfo().Quotas {
		q.Messages *= lieQuota
		q.Bytes *= lieQuota
	}
	a.GetInfo().BlobBytes *= lieQuota
	return a
}

// again has a request made again later, by an accomplice of the relay.
func (r *Relay) again(after time.Duration, req *wire.RelayRequest) {
	w := r.w
	w.loose.Go(func() { // ends with the run, at the latest
		t := time.NewTimer(after)
		defer t.Stop()
		select {
		case <-w.ctx.Done():
			return
		case <-t.C:
		}
		if err := w.asAccomplice(r, req); err != nil && r.Running() && w.ctx.Err() == nil {
			w.log.add(Event{Type: "note", Node: r.spec.Name, Text: "what it wanted to repeat did not reach it"})
		}
	})
}

// asAccomplice makes a request at a relay, from the machine of nobody.
func (w *World) asAccomplice(r *Relay, req *wire.RelayRequest) error {
	ctx, cancel := context.WithTimeout(w.ctx, accompliceIn)
	defer cancel()
	_, options := w.speaks(w.nobody)
	h, err := client.NewHosts(options...).New()
	if err != nil {
		return err
	}
	defer h.Close() //nolint:errcheck // it has no more use
	w.mu.Lock()
	w.accomplices[h.ID()] = true
	w.mu.Unlock()
	at, err := peer.AddrInfoFromString(r.entry)
	if err != nil {
		return err
	}
	if err := h.Connect(ctx, *at); err != nil {
		return err
	}
	s, err := h.NewStream(ctx, at.ID, protocol.StreamRelay)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // likewise
	if err := wire.WriteFrame(s, wire.Marshal(req)); err != nil {
		return err
	}
	_, err = wire.ReadFrame(s, protocol.MaxFrame)
	return err
}

func (w *World) isAccomplice(id peer.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.accomplices[id]
}
