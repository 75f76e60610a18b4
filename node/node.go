// Package node is a Starling node: an account's contacts and chats over real
// sessions, a store, a network and a DHT.
//
// [Open] brackets every goroutine of the parts below it, and [Node.Close] ends
// them. The parts are
//
//	store      rows; every step is one synced transaction
//	session    which ratchet session carries what; logic only
//	outbox     what waits for whom, and when to try again
//	stream     bounded exchanges with peers
//	dht        where contacts are found
//
// and the files here join them: contacts and requests (contacts.go,
// contactstate.go), invite links, chats, the journal, finding and reaching a
// contact (find.go), delivering (deliver.go) and receiving (receive.go).
//
// A step that a peer or the user causes is one transaction: ratchet state,
// message, contact and journal are committed together, and only then anything
// is answered or sent. A crash at any instant therefore loses nothing that was
// answered.
//
// What it does not do: serve the local API (node/api), read settings
// (cmd/starling), or carry ciphertext for others.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"golang.org/x/sync/errgroup"

	"starling/dht"
	"starling/node/outbox"
	"starling/node/relay/client"
	"starling/node/session"
	"starling/node/store"
	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/identity"
)

// A Node is a running node. Its methods are safe for concurrent use.
type Node struct {
	cfg      Config
	log      *slog.Logger
	store    *store.DB
	self     self
	host     host.Host
	dht      *dht.DHT
	sessions *session.Manager
	outbox   *outbox.Outbox

	routes       routes
	neighbours   neighbours
	lines        lines
	changed      broadcast
	reachability atomic.Int32 // network.Reachability
	started      time.Time
	rolledBack   bool
	own          records
	stale        chan struct{} // republish sends, keepRecords receives; capacity 1: one note is enough
	untold       chan struct{} // tellAgain sends, tellContacts receives; likewise
	relayRows    chan struct{} // relaysChanged sends, readRelays receives; likewise
	answers      chan struct{} // oweError sends, leaveAnswers receives; likewise
	gaps         chan struct{} // gapOpened sends, watchGaps receives; likewise
	hosts        client.Hosts
	depositor    *client.Depositor
	readers      readers
	held         held               // at relays
	hostUp       atomic.Bool        // host is set
	punching     *holepunch.Service // the host's; nil without one

	stop    context.CancelFunc
	group   *errgroup.Group
	done    <-chan struct{} // of the group's context: a part failed, or Close was called
	removed []func()        // stream handlers
	close   sync.Once
	closed  error
}

// Open starts a node. If it returns an error, nothing it started is left
// running and the store is closed. ctx bounds the opening only.
func Open(ctx context.Context, cfg Config) (_ *Node, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		if cfg.Store != nil {
			err = errors.Join(err, cfg.Store.Close())
		}
		return nil, err
	}
	n := &Node{
		cfg: cfg, log: cfg.Log, store: cfg.Store, changed: newBroadcast(), stale: make(chan struct{}, 1), untold: make(chan struct{}, 1),
		relayRows: make(chan struct{}, 1), answers: make(chan struct{}, 1), gaps: make(chan struct{}, 1),
		started: cfg.Now(), rolledBack: cfg.Store.RolledBack(),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := n.loadSelf(); err != nil {
		return nil, err
	}
	n.sessions = session.New(session.Config{
		Key: n.self.device, Account: n.account(), Rand: cfg.Rand, Observe: cfg.Observe, Stranger: n.mayIntroduce,
	})
	if n.rolledBack {
		if err := n.afterRollback(); err != nil {
			return nil, fmt.Errorf("renewing what an old copy of the store held: %w", err)
		}
	}
	if n.host, n.punching, err = newHost(cfg, n.self.transport, n.relayCandidates); err != nil {
		return nil, err
	}
	n.hostUp.Store(true)
	n.hosts = client.NewHosts(cfg.Transports...)
	n.depositor = client.NewDepositor(n.hosts, client.Dialer{Rand: cfg.Rand})
	if err := n.makeRecords(); err != nil { // before anybody can ask for them
		return nil, fmt.Errorf("making the records of today: %w", err)
	}
	if err := n.openDHT(); err != nil {
		return nil, err
	}
	n.outbox = outbox.New(outbox.Config{
		Store: n.store, Account: n.account(), Sealer: sealer{n.sessions, n}, Courier: courier{n}, Mailer: mailer{n},
		Now: cfg.Now, Rand: cfg.Rand, Changed: n.messageChanged, Log: n.log,
	})
	if err := n.loadRoutes(); err != nil {
		return nil, err
	}
	n.run()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return n, nil
}

// run starts what runs until Close.
func (n *Node) run() {
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.group, ctx = errgroup.WithContext(ctx)
	n.done = ctx.Done()
	n.removed = append(n.removed,
		stream.Handle(n.host, protocol.StreamMessage, stream.Limits{Known: n.known}, n.serveMessages),
		stream.Handle(n.host, protocol.StreamPreKey, stream.Limits{PeerRate: 20, Rate: 200, Known: n.known}, n.servePreKey),
	)
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"store", n.store.Run},
		{"dht", n.dht.Run},
		{"publisher", func(ctx context.Context) error { return n.dht.RunPublisher(ctx, publication{n}) }},
		{"records", n.keepRecords},
		{"news", n.tellContacts},
		{"outbox", n.outbox.Run},
		{"relays", n.readRelays},
		{"copies", n.checkCopies},
		{"answers", n.leaveAnswers},
		{"gaps", n.watchGaps},
		{"network", n.watchNetwork},
		{"greeting", n.greet},
		{"mdns", n.watchNeighbours},
		{"punching", (&puncher{n: n, known: make(map[peer.ID]*punch)}).Run},
	} {
		n.group.Go(func() error {
			if err := part.run(ctx); err != nil && ctx.Err() == nil {
				n.log.Error("a part of the node ended", "part", part.name, "err", err)
				return fmt.Errorf("%s: %w", part.name, err)
			}
			return nil
		})
	}
}

// Done is closed when a part of the node failed and the node is of no more use:
// call Close for the reason. Close closes it too.
func (n *Node) Done() <-chan struct{} { return n.done }

// Close ends the node and all it runs, and closes the store. It may be called
// again.
func (n *Node) Close() error {
	n.close.Do(func() {
		var errs []error
		if n.stop != nil {
			n.stop()
		}
		for _, remove := range n.removed {
			remove()
		}
		n.lines.closeAll()
		errs = append(errs, n.endPunches())
		if n.group != nil {
			errs = append(errs, n.group.Wait())
		}
		if n.dht != nil {
			errs = append(errs, n.dht.Close())
		}
		if n.host != nil {
			errs = append(errs, n.host.Close())
		}
		errs = append(errs, n.store.Close())
		n.closed = errors.Join(errs...)
		n.changed.wake() // whoever waits for a change learns that there is none to come
	})
	return n.closed
}

// afterRollback takes every session out of use after the store came back from
// an old copy, and makes this device's bundles of then worthless.
func (n *Node) afterRollback() error {
	for more := true; more; {
		err := n.store.Update(func(tx *store.Tx) (err error) {
			more, err = n.sessions.ArchiveAll(tx, n.cfg.Now())
			return err
		})
		if err != nil {
			return err
		}
	}
	return n.store.Update(func(tx *store.Tx) error {
		err := changeSelf(tx, func(row *store.Self) error { return signManifest(row, n.cfg.Now()) })
		if err != nil {
			return err
		}
		if err := tx.Recovered(); err != nil {
			return err
		}
		return n.record(tx, &store.Event{Type: "node", State: "rolled_back", Text: "the profile came back from an older copy; sessions are renewed"}, nil)
	})
}

// loadRoutes reads which transport keys belong to whom.
func (n *Node) loadRoutes() error {
	return n.store.View(func(tx *store.Tx) error {
		for row, err := range store.Contacts.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			n.routes.set(row.Value)
		}
		return nil
	})
}

// greetPause is the pause between two contacts that are dialled at the start,
// so that a start with many contacts is not a burst.
const greetPause = 50 * time.Millisecond

// greet dials contacts at their last known addresses once after the start, so
// that they learn where this node listens now. Who is not there is found when
// there is something to say.
func (n *Node) greet(ctx context.Context) error {
	var known [][]identity.Endpoint
	err := n.store.View(func(tx *store.Tx) error {
		for row, err := range store.Contacts.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if sendable(row.Value.State) && len(row.Value.Endpoints) > 0 {
				known = append(known, endpointsOf(row.Value.Endpoints))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	tick := time.NewTicker(greetPause)
	defer tick.Stop()
	var g errgroup.Group
	g.SetLimit(8)
	defer g.Wait() //nolint:errcheck // no function returns an error
	for _, es := range known {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		g.Go(func() error {
			n.dialAny(network.WithAllowLimitedConn(ctx, "starling"), es)
			return nil
		})
	}
	return nil
}

// watchNetwork follows what libp2p finds out: who was identified, whether this
// node is reachable, and which addresses it has.
func (n *Node) watchNetwork(ctx context.Context) error {
	sub, err := n.host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted),
		new(event.EvtLocalReachabilityChanged),
		new(event.EvtLocalAddressesUpdated),
	}, eventbus.BufSize(256))
	if err != nil {
		return fmt.Errorf("subscribing to network events: %w", err)
	}
	defer sub.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-sub.Out():
			if !ok {
				return nil
			}
			switch e := e.(type) {
			case event.EvtPeerIdentificationCompleted:
				n.dropDead(e.Conn)
				n.sighted(e)
			case event.EvtLocalReachabilityChanged:
				n.reachability.Store(int32(e.Reachability))
				n.republish()
			case event.EvtLocalAddressesUpdated:
				n.republish()
			}
		}
	}
}

// Bounds on nodes that mDNS found: how many wait to be met, and how many are
// met at once. Anybody on the network can announce any number.
const (
	maxFound    = 32
	maxMeetings = 8
)

// watchNeighbours meets the nodes that mDNS finds on this network, and tries
// contacts that are not found yet, as a new one may be one of them.
func (n *Node) watchNeighbours(ctx context.Context) error {
	if n.cfg.NoMDNS {
		return nil
	}
	found := make(chan peer.AddrInfo, maxFound) // mDNS sends without waiting, the loop below receives; nobody closes it
	var g errgroup.Group
	g.SetLimit(1 + maxMeetings)
	g.Go(func() error {
		return dht.NewMDNS(n.host, func(info peer.AddrInfo) {
			select {
			case found <- info:
			default: // it will be found again
			}
		}, n.log).Run(ctx)
	})
	for {
		select {
		case <-ctx.Done():
			return g.Wait()
		case info := <-found:
			if info.ID == n.host.ID() || n.neighbours.has(info.ID) && n.up(info.ID) {
				continue
			}
			g.TryGo(func() error { // if all are busy it will be found again
				n.meet(ctx, info)
				return nil
			})
		}
	}
}

// meet connects to a node on this network.
func (n *Node) meet(ctx context.Context, info peer.AddrInfo) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	if n.host.Connect(ctx, info) == nil {
		n.neighbours.add(info.ID)
		n.kickWaiting()
	}
}

// relayCandidates gives connected peers to try as circuit relays.
func (n *Node) relayCandidates(ctx context.Context, most int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, most)
	defer close(out)
	if !n.hostUp.Load() {
		return out
	}
	for _, p := range n.host.Network().Peers() {
		if len(out) == most || ctx.Err() != nil {
			break
		}
		out <- n.host.Peerstore().PeerInfo(p)
	}
	return out
}
