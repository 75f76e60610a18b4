package node

import (
	"context"
	"encoding/binary"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
)

// punchPauses are the pauses before a contact who is connected through a circuit
// is tried to be reached directly again, each up to half as long again; the last
// one holds from then on. libp2p tries once, when the circuit opens, and what
// was in the way then may pass: a loss, an address that nobody had seen yet, a
// port that a NAT still held for somebody else.
var punchPauses = [...]time.Duration{10 * time.Second, time.Minute, 5 * time.Minute}

// maxPunches is how many contacts are tried at once. In vain it takes three
// quarters of a minute, most of it waiting.
const maxPunches = 8

// A punch is what is known of a peer with a circuit.
type punch struct {
	tries int       // made, but for libp2p's own
	next  time.Time // when to try again
	ready bool      // this node could punch when it was looked at last
}

// A puncher tries again and again to reach those directly who are connected
// through a circuit only (DCUtR). Only the end that was called can ask the other
// for it.
type puncher struct {
	n     *Node
	known map[peer.ID]*punch // circuits that are open, or were until lately; Run's alone
}

// Run tries until ctx ends, and returns when the last attempt has ended, for
// which there is endPunches.
func (p *puncher) Run(ctx context.Context) error {
	if p.n.punching == nil {
		return nil
	}
	opened := make(chan struct{}, 1) // libp2p sends, the loop below receives; one note is enough
	h := p.n.host.Network()
	notify := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if !calledUs(c) {
			return
		}
		select {
		case opened <- struct{}{}:
		default: // it is noted already
		}
	}}
	h.Notify(notify)
	defer h.StopNotify(notify)
	var attempts sync.WaitGroup
	defer attempts.Wait()
	slots := make(chan struct{}, maxPunches) // look sends, an attempt receives at its end; full is enough
	timer := time.NewTimer(0)                // some may be open already
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-opened:
		case <-timer.C:
		}
		due, next := p.look(time.Now())
		for _, id := range due {
			select {
			case slots <- struct{}{}:
				attempts.Go(func() {
					defer func() { <-slots }()
					if err := p.n.punching.DirectConnect(id); err != nil {
						p.n.log.Debug("a contact is not reached directly", "err", err)
					}
				})
			default: // its turn comes again
			}
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// look returns whose turn it is, and when to look again, if at all.
func (p *puncher) look(now time.Time) (due []peer.ID, next time.Time) {
	open := p.n.throughCircuits()
	for id, k := range p.known {
		// A relay cuts a circuit after minutes. Who comes back with another one is
		// not tried more often for it.
		if !open[id] && now.After(k.next) {
			delete(p.known, id)
		}
	}
	ready := slices.Contains(p.n.host.Mux().Protocols(), holepunch.Protocol)
	for _, id := range slices.Sorted(maps.Keys(open)) {
		k := p.known[id]
		switch {
		case k == nil:
			k = &punch{next: now.Add(p.pause(0)), ready: ready}
			p.known[id] = k
		case !now.Before(k.next):
			// libp2p announces that it can punch a moment before it can, and waits
			// for ever if it is closed just then: hence ready twice.
			if ready && k.ready && p.n.known(id) {
				due = append(due, id)
			}
			k.tries++
			k.next, k.ready = now.Add(p.pause(k.tries)), ready
		}
		if next.IsZero() || k.next.Before(next) {
			next = k.next
		}
	}
	return due, next
}

// pause draws the pause after so many tries.
func (p *puncher) pause(tries int) time.Duration {
	d := punchPauses[min(tries, len(punchPauses)-1)]
	var b [8]byte
	if _, err := io.ReadFull(p.n.cfg.Rand, b[:]); err != nil {
		return d
	}
	return d + time.Duration(binary.BigEndian.Uint64(b[:])%uint64(d/2))
}

// endPunches ends the attempts under way, libp2p's own too: they wait for the
// peer on its circuit, or for a dial.
func (n *Node) endPunches() error {
	if n.punching == nil {
		return nil
	}
	for _, c := range n.host.Network().Conns() {
		if pathOf(c) == PathCircuit {
			c.Close() //nolint:errcheck // the node is closing
		}
	}
	return n.punching.Close()
}

// calledUs reports whether a connection is a circuit that the other end opened.
func calledUs(c network.Conn) bool {
	return pathOf(c) == PathCircuit && c.Stat().Direction == network.DirInbound
}

// throughCircuits returns who is connected through circuits only, of which one
// came in.
func (n *Node) throughCircuits() map[peer.ID]bool {
	open, direct := make(map[peer.ID]bool), make(map[peer.ID]bool)
	for _, c := range n.host.Network().Conns() {
		if pathOf(c) == PathDirect {
			direct[c.RemotePeer()] = true
		} else if calledUs(c) {
			open[c.RemotePeer()] = true
		}
	}
	maps.DeleteFunc(open, func(id peer.ID, _ bool) bool { return direct[id] })
	return open
}
