package simulation

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"starling/node/relay"
	"starling/node/relay/spool"
	"starling/node/relay/station"
	"starling/node/store"
	"starling/protocol/identity"
	"starling/simulation/network"
)

// A RelaySpec is one relay to be: a volunteer's (node/relay/station), which
// nodes join through, too.
type RelaySpec struct {
	Name     string // required; unique among nodes and relays
	Region   string // for topologies with regions
	Up, Down int64  // bits per second. Default 50,000,000
	Quota    int64  // bytes of messages. Default 64 MiB
	Bad      Bad    // what is wrong with it. Default: nothing
}

// defaultQuota is that of [RelaySpec].
const defaultQuota = 64 << 20 // bytes

// relayWork is what relays of a world ask for when nothing presses, bits. Work
// takes the processor of the run, and no virtual time.
const relayWork = 4

// A Relay is one relay of a [World] and what outlives its runs: its key, its
// disks and its place in the network. The scenario calls its methods one after
// another.
type Relay struct {
	w       *World
	site    int // in the network
	spec    RelaySpec
	port    *network.Port
	key     crypto.PrivKey
	self    identity.Transport
	ledger  ledger
	meddler meddler // nil: it is what it says

	entry   string // multiaddr with /p2p; known from the first start
	rows    *store.Disk
	blobs   *spool.Disk
	closing chan struct{} // closed when the last run has ended; nil before the first

	mu     sync.Mutex // guards what follows; never held across a wait
	live   *station.Station
	since  time.Duration // start of this run
	voided time.Duration // when the disk was lost last
	fault  int           // the fault that is this relay being down, or -1
	result RelayResult
}

// newRelay makes a relay of a world, at a site of its network.
func (w *World) newRelay(site int, spec RelaySpec) (*Relay, error) {
	spec.Quota = orDefault(spec.Quota, defaultQuota)
	var seed [ed25519.SeedSize]byte
	if _, err := io.ReadFull(source(w.cfg.Seed, "relay "+spec.Name), seed[:]); err != nil {
		return nil, err
	}
	private := ed25519.NewKeyFromSeed(seed[:])
	key, err := crypto.UnmarshalEd25519PrivateKey(private)
	if err != nil {
		return nil, err
	}
	self, err := identity.ParseTransport(private.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	r := &Relay{w: w, site: site, spec: spec, key: key, self: self, fault: -1}
	r.ledger.init(r)
	r.meddler = spec.Bad.meddler(r)
	r.result = RelayResult{Name: spec.Name, Region: spec.Region, Bad: string(spec.Bad)}
	if r.port, err = w.net.Join(network.Site{Index: site, Region: spec.Region}, spec.Up, spec.Down); err != nil {
		return nil, err
	}
	r.newDisks()
	return r, nil
}

// newDisks gives the relay empty disks.
func (r *Relay) newDisks() {
	seed := source(r.w.cfg.Seed, fmt.Sprintf("disk %d of %s", r.result.Lost, r.spec.Name)).Uint64()
	r.rows, r.blobs = store.NewDisk(), spool.NewDisk(seed)
}

// Name returns the relay's name.
func (r *Relay) Name() string { return r.spec.Name }

// Bad returns what is wrong with the relay.
func (r *Relay) Bad() Bad { return r.spec.Bad }

// Running reports whether the relay runs.
func (r *Relay) Running() bool { return r.Live() != nil }

// Live returns the running relay, or nil.
func (r *Relay) Live() *station.Station {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live
}

// Start starts the relay, on the disks that the last run left. Starting one that
// runs does nothing.
func (r *Relay) Start() error {
	r.w.alive()
	if r.Running() {
		return nil
	}
	if r.closing != nil {
		<-r.closing // what crashed is not quite gone yet
	}
	db, err := store.OpenMemory(store.Config{}, r.rows)
	if err != nil {
		return fmt.Errorf("opening the store of %s: %w", r.spec.Name, err)
	}
	r.port.Restore()
	listen, transports := r.w.speaks(r.port)
	var bootstrap []string
	for _, other := range r.w.relays {
		if other != r && other.entry != "" {
			bootstrap = append(bootstrap, other.entry)
		}
	}
	cfg := station.Config{
		Store: db, Key: r.key, Disk: r.blobs, Quota: r.spec.Quota, Limits: relay.Limits{WorkBits: relayWork},
		Listen: listen, Announce: listen, Bootstrap: bootstrap, Transports: transports,
		DHTRefresh: r.w.cfg.Refresh, DHTTable: r.w.cfg.Table, NoCircuits: r.w.pairs == nil,
		NoPortMap: true, NoAutoNAT: true, NoAddressDiscovery: true,
		Between: func(h host.Host) host.Host { return between{h, r} },
	}
	live, err := station.Open(r.w.ctx, cfg)
	if err != nil {
		return fmt.Errorf("starting %s: %w", r.spec.Name, err)
	}
	r.entry = fmt.Sprintf("%s/p2p/%s", listen[0], live.Status().PeerID)
	closing := make(chan struct{})
	r.mu.Lock()
	r.live, r.closing = live, closing
	r.since = r.w.Now()
	r.result.Starts++
	fault := r.fault
	r.fault = -1
	r.mu.Unlock()
	if fault >= 0 {
		r.w.ended(fault)
	}
	r.w.log.add(Event{Type: "start", Node: r.spec.Name})
	r.w.loose.Go(func() { // until Close, which every end of a run calls
		if err := live.Run(context.Background()); err != nil && r.Live() == live && !errors.Is(err, station.ErrClosed) {
			r.w.stop(fmt.Errorf("running %s: %w", r.spec.Name, err))
		}
	})
	return nil
}

// Stop ends the relay as its operator would. Stopping one that does not run does
// nothing.
func (r *Relay) Stop() error {
	r.w.alive()
	live := r.take("stop")
	if live == nil {
		return nil
	}
	err := live.Close()
	close(r.closing)
	if err != nil {
		return fmt.Errorf("stopping %s: %w", r.spec.Name, err)
	}
	return nil
}

// Crash is the machine of the relay losing power: what its disks had not synced
// is gone. It lasts as a fault until the next Start.
func (r *Relay) Crash() {
	r.w.alive()
	r.port.Cut()
	r.rows.Crash()
	r.blobs.Crash()
	live := r.take("crash")
	if live == nil {
		return
	}
	r.w.loose.Go(func() { // what runs there does not know yet that it is gone
		_ = live.Close() // it can do nothing any more
		close(r.closing)
	})
}

// LoseDisk crashes the relay, if it runs, and takes all that it kept but its
// key. Its receipts are void, as its next store ID tells.
func (r *Relay) LoseDisk() {
	r.w.alive()
	r.Crash()
	r.mu.Lock()
	r.result.Lost++
	r.voided = r.w.Now()
	r.mu.Unlock()
	r.newDisks()
	r.ledger.void()
	r.w.log.add(Event{Type: "disk lost", Node: r.spec.Name})
}

// take makes the relay one that does not run, and returns what ran. how is
// "stop", "crash", or nothing at the end of the world.
func (r *Relay) take(how string) *station.Station {
	r.mu.Lock()
	live := r.live
	r.live = nil
	if live != nil {
		r.result.Up += r.w.Now() - r.since
		if how == "crash" {
			r.result.Crashes++
		}
		if how != "" {
			r.fault = r.w.begin(faultRelay, r.spec.Name)
		}
	}
	r.mu.Unlock()
	if live != nil && how != "" {
		r.w.log.add(Event{Type: how, Node: r.spec.Name})
	}
	return live
}

// faultRelay is the kind of fault that is a relay being down.
const faultRelay = "relay"

// upSince returns when the relay was started last; ok is false if it does not
// run.
func (r *Relay) upSince() (since time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since, r.live != nil
}

// endpoint returns where the relay is dialled, once it has been started.
func (r *Relay) endpoint() identity.Endpoint {
	info, err := peer.AddrInfoFromString(r.entry)
	if err != nil {
		panic("simulation: internal error: the address of a relay that was started does not parse: " + err.Error())
	}
	e := identity.Endpoint{Transport: r.self}
	for _, a := range info.Addrs {
		e.Addrs = append(e.Addrs, a.Bytes())
	}
	return e
}

// voidSince reports whether the disk was lost after a time.
func (r *Relay) voidSince(t time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.result.Lost > 0 && r.voided >= t
}

// results returns what the relay did.
func (r *Relay) results() RelayResult {
	r.mu.Lock()
	res := r.result
	r.mu.Unlock()
	res.Sent, res.Received = r.port.Bytes()
	r.ledger.fill(&res, r.w.cfg.Epoch.Add(r.w.Now()))
	return res
}

// Relays returns all relays, in the order of [Config.Relays].
func (w *World) Relays() []*Relay { return append([]*Relay(nil), w.relays...) }

// Relay returns the relay of a name. It panics if there is none.
func (w *World) Relay(name string) *Relay {
	for _, r := range w.relays {
		if r.spec.Name == name {
			return r
		}
	}
	panic(fmt.Sprintf("simulation: there is no relay %q", name))
}

// StartRelays starts all relays that do not run.
func (w *World) StartRelays() error {
	for _, r := range w.relays {
		if err := r.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Use has the node's user name relays, by links that their operators give. All
// of them must run.
func (n *Node) Use(relays ...*Relay) error {
	n.w.alive()
	live := n.Live()
	if live == nil {
		return errDown
	}
	for _, r := range relays {
		at := r.Live()
		if at == nil {
			return fmt.Errorf("simulation: the relay %s does not run", r.spec.Name)
		}
		link, err := at.Link(true, false)
		if err != nil {
			return fmt.Errorf("making a link of %s: %w", r.spec.Name, err)
		}
		if _, err := live.AddRelay(n.w.ctx, link.String()); err != nil {
			return fmt.Errorf("%s names %s: %w", n.spec.Name, r.spec.Name, err)
		}
	}
	return nil
}

// speaks returns where a machine listens, and what makes it speak to the network
// of its world; QUIC first, as libp2p dials.
func (w *World) speaks(p *network.Port) (listen []string, options []libp2p.Option) {
	if w.cfg.Face != StreamFace {
		listen, options = append(listen, p.QUICListen()), append(options, p.QUICOptions()...)
	}
	if w.cfg.Face != PacketFace {
		listen, options = append(listen, p.Listen()), append(options, p.Options()...)
	}
	return listen, options
}
