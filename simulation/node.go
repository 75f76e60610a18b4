package simulation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"

	"starling/node"
	"starling/node/session"
	"starling/node/store"
	"starling/protocol/identity"
	"starling/simulation/network"
)

// A Node is one node of a [World] and what outlives its runs: its disk, its
// place in the network, its clock and its randomness. The scenario calls its
// methods one after another; several nodes may be used at once.
type Node struct {
	w     *World
	index int
	spec  NodeSpec
	port  *network.Port
	disk  disk
	key   store.Key
	rand  io.Reader        // of the node itself
	ids   io.Reader        // of message IDs
	eyes  session.Observer // the oracle's
	meter *meter

	account string // text form; known from the first start
	entry   string // multiaddr with /p2p; likewise, and empty behind a NAT
	joins   []string

	mu      sync.Mutex // guards what follows; never held across a wait
	live    *node.Node // nil while it does not run
	db      *store.DB  // of live
	watch   context.CancelFunc
	watched chan struct{} // closed when the watcher of live has ended
	closing chan struct{} // closed when the last run has ended; nil before the first
	seen    uint64        // newest event of the journal that was read
	since   time.Duration // start of this run
	down    int           // the fault that is this node being down, or -1
	result  NodeResult
}

// Name returns the node's name.
func (n *Node) Name() string { return n.spec.Name }

// Index returns the node's place in [Config.Nodes].
func (n *Node) Index() int { return n.index }

// Role returns what the node is for.
func (n *Node) Role() string { return n.spec.Role }

// Running reports whether the node runs.
func (n *Node) Running() bool { return n.Live() != nil }

// Live returns the running node, or nil: for scenarios that need more than
// Befriend and Send.
func (n *Node) Live() *node.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.live
}

// Clock returns what the node's clock shows.
func (n *Node) Clock() time.Time { return time.Now().Add(n.spec.Skew) }

// Start starts the node, on the disk that the last run left. Starting a node
// that runs does nothing.
func (n *Node) Start() error {
	n.w.alive()
	if n.Running() {
		return nil
	}
	if n.closing != nil {
		<-n.closing // what crashed is not quite gone yet
	}
	if n.joins == nil {
		n.joins = n.entries()
	}
	db, err := n.disk.open(store.Config{Key: n.key, Rand: n.rand, Now: n.Clock})
	if err != nil {
		return fmt.Errorf("opening the store of %s: %w", n.spec.Name, err)
	}
	n.port.Restore()
	listen, transports := n.w.speaks(n.port)
	cfg := node.Config{
		Store: db, Name: n.spec.Name, Rand: n.rand, Now: n.Clock,
		Listen: listen, Bootstrap: n.joins,
		Conns: n.w.cfg.Conns, DHTTable: n.w.cfg.Table, DHTRefresh: n.w.cfg.Refresh, DHT: node.DHTServer,
		Observe: n.eyes, OnLookup: n.lookedUp,
		Transports: append(transports, libp2p.BandwidthReporter(n.meter)), Circuits: n.spec.Circuits,
		NoMDNS: true, NoPortMap: true, NoAutoNAT: true, NoHolePunch: true, NoRelayClient: true, NoAddressDiscovery: true,
	}
	if n.w.pairs != nil {
		// Everybody dials circuits and punches holes, as on the internet. Only who
		// is behind a NAT has to be told how others see it.
		cfg.NoRelayClient, cfg.NoHolePunch = false, false
		cfg.NoAddressDiscovery = n.spec.NAT == network.NoNAT
		cfg.OnConnect = func(p peer.ID, direct bool) { n.w.connected(n, p, direct) }
	}
	if n.spec.NAT != network.NoNAT {
		cfg.DHT = node.DHTAuto // which finds that it cannot be reached
	}
	if n.spec.Client {
		cfg.DHT = node.DHTClient
	}
	live, err := node.Open(n.w.ctx, cfg)
	if err != nil {
		return fmt.Errorf("starting %s: %w", n.spec.Name, err)
	}
	s := live.Status()
	was := n.account
	n.account = s.Account
	if n.spec.NAT == network.NoNAT {
		n.entry = fmt.Sprintf("%s/p2p/%s", listen[0], s.PeerID)
	}
	n.w.known(s.PeerID, n)
	n.w.oracle.started(n, was, s.Journal)
	ctx, cancel := context.WithCancel(context.Background())
	n.mu.Lock()
	n.live, n.db, n.watch, n.watched, n.closing = live, db, cancel, make(chan struct{}), make(chan struct{})
	n.since = n.w.Now()
	n.result.Starts++
	down := n.down
	n.down = -1
	watched := n.watched
	n.mu.Unlock()
	if down >= 0 {
		n.w.ended(down)
	}
	n.w.log.add(Event{Type: "start", Node: n.spec.Name})
	go func() { // ends with ctx, which take cancels and waits for
		defer close(watched)
		n.follow(ctx, live)
	}()
	return nil
}

// entries chooses the relays and the earlier nodes to join through.
func (n *Node) entries() []string {
	joins := []string{}
	for _, r := range n.w.relays {
		if r.entry != "" && len(joins) < n.w.cfg.Entries {
			joins = append(joins, r.entry)
		}
	}
	earlier := slices.DeleteFunc(slices.Clone(n.w.nodes), func(m *Node) bool { return m.entry == "" || m == n || m.spec.Role != rolePeer })
	r := n.w.Rand("join " + n.spec.Name)
	r.Shuffle(len(earlier), func(i, j int) { earlier[i], earlier[j] = earlier[j], earlier[i] })
	for _, m := range earlier[:min(len(earlier), n.w.cfg.Entries-len(joins))] {
		joins = append(joins, m.entry)
	}
	return joins
}

// Stop ends the node as its user would. Stopping one that does not run does
// nothing.
func (n *Node) Stop() error {
	n.w.alive()
	live := n.take(false)
	if live == nil {
		return nil
	}
	err := live.Close()
	close(n.closing)
	n.w.log.add(Event{Type: "stop", Node: n.spec.Name})
	if err != nil {
		return fmt.Errorf("stopping %s: %w", n.spec.Name, err)
	}
	return nil
}

// Crash is the machine of the node losing power: nothing leaves or arrives any
// more, and what the disk had not synced is gone. It lasts as a fault until the
// next Start.
func (n *Node) Crash() {
	n.w.alive()
	n.crash("")
}

func (n *Node) crash(detail string) {
	n.port.Cut()
	diskErr := n.disk.crash()
	live := n.take(true)
	if diskErr != nil {
		n.w.stop(fmt.Errorf("crashing %s: %w", n.spec.Name, diskErr))
	}
	if live == nil {
		return
	}
	n.w.log.add(Event{Type: "crash", Node: n.spec.Name, Text: detail})
	n.w.loose.Go(func() { // what runs there does not know yet that it is gone
		_ = live.Close() // it can do nothing any more
		close(n.closing)
	})
}

// take makes the node one that does not run, and returns what ran.
func (n *Node) take(crashed bool) *node.Node {
	n.mu.Lock()
	live, watch, watched := n.live, n.watch, n.watched
	n.live = nil
	if live != nil {
		n.result.Up += n.w.Now() - n.since
	}
	if crashed && live != nil {
		n.result.Crashes++
		n.down = n.w.begin("crash", n.spec.Name)
	}
	n.mu.Unlock()
	if live != nil {
		watch()
		<-watched
	}
	return live
}

// CrashAt makes the node crash at the k-th coming write boundary of its disk,
// instead of at an instant. It works with [Memory] only.
func (n *Node) CrashAt(k int) {
	n.w.alive()
	n.disk.crashAt(k, func() {
		n.port.Cut()
		n.w.loose.Go(func() { n.crash(fmt.Sprintf("at write boundary %d", k)) })
	})
}

// Boundaries returns how many write boundaries the node's disk has passed.
func (n *Node) Boundaries() int { return n.disk.steps() }

// follow reads the node's journal, as a user's program would, and hands it to
// the oracle.
func (n *Node) follow(ctx context.Context, live *node.Node) {
	err := live.Events(ctx, n.seen, true, func(e node.Event) error {
		n.seen = e.Seq
		n.w.oracle.heard(n, e)
		if e.Type == "state" && e.State == "stored" && len(n.w.relays) > 0 {
			n.w.oracle.stored(e.ID, n.copiesOf(e.ID))
		}
		return nil
	})
	// A disk that lost its power says so to whoever reads, and the node is down a
	// moment later. Nothing else may keep the oracle from reading on.
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
		n.w.stop(fmt.Errorf("reading the journal of %s: %w", n.spec.Name, err))
	}
}

// copiesOf returns the relays that hold a message which waits to be delivered.
// It is gone if it was delivered meanwhile, and so may the store be.
func (n *Node) copiesOf(id string) (at []identity.Transport) {
	n.mu.Lock()
	db := n.db
	n.mu.Unlock()
	_ = db.View(func(tx *store.Tx) error { // what cannot be read is at no relay
		for row, err := range store.Outbox.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if hex.EncodeToString(row.Value.Id) != id {
				continue
			}
			for _, c := range row.Value.Copies {
				at = append(at, identity.Transport(c.Relay))
			}
		}
		return nil
	})
	return at
}

// upSince returns when the node was started last.
func (n *Node) upSince() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.since
}

// errDown means that the node does not run.
var errDown = errors.New("simulation: the node does not run")

// Befriend makes two nodes contacts of each other, by an invite link of m that
// n adds. Both must run. They become acquainted when they have talked.
func (n *Node) Befriend(m *Node) error {
	n.w.alive()
	link, err := m.Invite(false)
	if err != nil {
		return err
	}
	return n.Add(m, link)
}

// Invite returns a link of the node.
func (n *Node) Invite(public bool) (string, error) {
	n.w.alive()
	live := n.Live()
	if live == nil {
		return "", errDown
	}
	inv, err := live.CreateInvite(n.w.ctx, public)
	if err != nil {
		return "", fmt.Errorf("making a link of %s: %w", n.spec.Name, err)
	}
	return inv.Link, nil
}

// Add adds the owner of a link under its name.
func (n *Node) Add(m *Node, link string) error {
	n.w.alive()
	live := n.Live()
	if live == nil {
		return errDown
	}
	if _, err := live.AddContact(n.w.ctx, link, m.spec.Name); err != nil {
		return fmt.Errorf("%s adds %s: %w", n.spec.Name, m.spec.Name, err)
	}
	n.w.befriended(n, m)
	return nil
}

// Knows reports whether m is an accepted contact of n.
func (n *Node) Knows(m *Node) bool {
	n.w.alive()
	return n.knows(m)
}

func (n *Node) knows(m *Node) bool {
	live := n.Live()
	if live == nil {
		return false
	}
	list, err := live.Contacts(context.Background(), false)
	return err == nil && slices.ContainsFunc(list, func(c node.Contact) bool { return c.Account == m.account && c.State == "accepted" })
}

// Send has n accept a text for m. An error says that it was not accepted, or,
// if the node went down meanwhile, that nobody knows.
func (n *Node) Send(m *Node, text string) (id string, err error) {
	n.w.alive()
	live := n.Live()
	if live == nil {
		return "", errDown
	}
	var raw [16]byte
	if _, err := io.ReadFull(n.ids, raw[:]); err != nil {
		return "", err
	}
	id = fmt.Sprintf("%x", raw)
	n.w.oracle.offered(id, n, m, text)
	if _, err := live.Send(n.w.ctx, m.spec.Name, text, raw[:]); err != nil {
		if _, refused := errors.AsType[*node.Error](err); refused {
			n.w.oracle.refused(n, id)
		} else {
			n.mustFall(live, err)
		}
		return "", fmt.Errorf("%s writes to %s: %w", n.spec.Name, m.spec.Name, err)
	}
	n.w.oracle.promised(id)
	return id, nil
}

// Refused reports whether an error of [Node.Send] is a no of a node that ran and
// had the recipient as a contact. Of somebody who is no contact yet the name is
// nobody's, or the beginning of several.
func Refused(err error) bool {
	refused, ok := errors.AsType[*node.Error](err)
	return ok && refused.Kind != node.KindNotFound && refused.Kind != node.KindAmbiguous
}

// mustFall ends the run if live still runs in a second: what it said is said by
// nodes that lost their disk, and by no other.
func (n *Node) mustFall(live *node.Node, err error) {
	n.w.loose.Go(func() {
		t := time.NewTimer(time.Second)
		defer t.Stop()
		select {
		case <-n.w.ctx.Done():
		case <-t.C:
			if n.Live() == live {
				n.w.stop(fmt.Errorf("%s runs, and refuses a text: %w", n.spec.Name, err))
			}
		}
	})
}

// lockedRand is a node's source of randomness. It is never begun anew: a node
// that starts again must not draw what it drew before.
type lockedRand struct {
	mu sync.Mutex // guards r
	r  *rand.ChaCha8
}

func newRand(seed uint64, name string) *lockedRand {
	return &lockedRand{r: source(seed, name)}
}

// Read implements [io.Reader].
func (l *lockedRand) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(b)
}

// digest is what the oracle keeps of a text.
func digest(text string) [sha256.Size]byte { return sha256.Sum256([]byte(text)) }
