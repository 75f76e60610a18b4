package dht

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	kbucket "github.com/libp2p/go-libp2p-kbucket"
)

const (
	enoughPeers = 10               // in the routing table; with fewer, bootstrap peers are dialed
	dialTimeout = 15 * time.Second // for one peer
	dialsAtOnce = 8
	redialFirst = time.Second // wait after the first round of dials
	redialLast  = time.Minute // and after many
	lookEvery   = 30 * time.Second
	lookLonely  = time.Second // between looks while we know nobody

	saveEvery     = 10 * time.Minute
	maxSaved      = 32 // peers
	maxSavedAddrs = 8  // addresses of one of them
)

// SetBootstrap replaces the peers that lead into the network; Run dials them if
// it needs to.
func (d *DHT) SetBootstrap(peers []peer.AddrInfo) {
	d.bootstrapMu.Lock()
	d.bootstrap = slices.Clone(peers)
	d.bootstrapMu.Unlock()
	wake(d.rejoin)
}

// Run joins the network and stays in it until ctx or the DHT ends, then returns
// nil. While few peers are known it dials bootstrap and remembered peers, with
// a back-off of 1 s to 1 min, for ever. It remembers good peers every ten
// minutes and at its end, and drops records past their days.
func (d *DHT) Run(ctx context.Context) error {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	remembered := d.load()
	j := joiner{
		size:   d.Peers,
		dial:   d.dial,
		kick:   d.rejoin,
		joined: func() { wake(d.kick) },
		missed: d.missed,
		nudge:  func() { d.nudge(ctx) },
		log:    d.log,
		wanted: func() []peer.AddrInfo {
			d.bootstrapMu.Lock()
			all := slices.Concat(d.bootstrap, remembered)
			d.bootstrapMu.Unlock()
			return slices.DeleteFunc(all, func(p peer.AddrInfo) bool {
				return p.ID == d.host.ID() || d.host.Network().Connectedness(p.ID) == network.Connected
			})
		},
	}
	var loops sync.WaitGroup
	loops.Go(func() { j.run(ctx) })
	loops.Go(func() { d.keep(ctx) })
	loops.Wait()
	return nil
}

// missed reports whether a connected DHT server is not in the routing table. One
// failed request, or a check that failed while the connection was new, throws a
// peer out, and kad-dht would look at it again after two minutes.
func (d *DHT) missed() bool {
	for _, p := range d.host.Network().Peers() {
		if s, err := d.host.Peerstore().FirstSupportedProtocol(p, d.kadID); err == nil && s != "" &&
			acceptable(p) && d.kad.RoutingTable().Find(p) == "" {
			return true
		}
	}
	return false
}

// nudge has kad-dht look at the connected peers anew, and then for more.
func (d *DHT) nudge(ctx context.Context) {
	if d.cfg.Refresh >= 0 {
		_ = d.kad.Bootstrap(ctx) // it never fails
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	_, _ = d.kad.GetClosestPeers(ctx, string(d.host.ID())) // whoever was found is in the table; the next attempt finds more
}

func (d *DHT) dial(ctx context.Context, p peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return d.host.Connect(ctx, p)
}

// keep saves good peers and sweeps the store until ctx ends.
func (d *DHT) keep(ctx context.Context) {
	save, sweep := time.NewTicker(saveEvery), time.NewTicker(sweepEvery)
	defer save.Stop()
	defer sweep.Stop()
	defer d.save()
	for {
		select {
		case <-ctx.Done():
			return
		case <-save.C:
			d.save()
		case <-sweep.C:
			d.store.sweep(d.cfg.Now())
		}
	}
}

func (d *DHT) load() []peer.AddrInfo {
	if d.cfg.Peers == nil {
		return nil
	}
	peers, err := d.cfg.Peers.LoadPeers()
	if err != nil {
		d.log.Warn("peers not loaded", "err", err)
	}
	return peers
}

// save remembers the peers that answered last. An empty table leaves what is
// remembered as it is: it will be needed.
func (d *DHT) save() {
	if d.cfg.Peers == nil {
		return
	}
	good := d.good()
	if len(good) == 0 {
		return
	}
	if err := d.cfg.Peers.SavePeers(good); err != nil {
		d.log.Warn("peers not saved", "err", err)
	}
}

func (d *DHT) good() []peer.AddrInfo {
	infos := d.kad.RoutingTable().GetPeerInfos()
	slices.SortFunc(infos, func(a, b kbucket.PeerInfo) int {
		return cmp.Compare(b.LastSuccessfulOutboundQueryAt.UnixNano(), a.LastSuccessfulOutboundQueryAt.UnixNano())
	})
	var good []peer.AddrInfo
	for _, i := range infos {
		// From the host's own address book: what we save we tell nobody.
		p := d.host.Peerstore().PeerInfo(i.Id)
		p.Addrs = slices.DeleteFunc(p.Addrs, func(a ma.Multiaddr) bool {
			_, err := a.ValueForProtocol(ma.P_CIRCUIT)
			return err == nil // lives an hour at most
		})
		if len(p.Addrs) == 0 {
			continue
		}
		p.Addrs = p.Addrs[:min(len(p.Addrs), maxSavedAddrs)]
		if good = append(good, p); len(good) == maxSaved {
			break
		}
	}
	return good
}

// A joiner decides when to dial.
type joiner struct {
	size   func() int             // of the routing table
	wanted func() []peer.AddrInfo // to dial, unless connected
	dial   func(context.Context, peer.AddrInfo) error
	missed func() bool // a connected peer belongs in the table and is not there
	nudge  func()      // does something about it
	joined func()      // called when the table is no longer empty
	kick   <-chan struct{}
	log    *slog.Logger
}

func (j *joiner) run(ctx context.Context) {
	var dials, nudges attempts
	lonely := true
	for ctx.Err() == nil {
		size := j.size()
		if size > 0 && lonely {
			j.joined()
		}
		lonely = size == 0
		look := lookEvery
		if lonely {
			look = lookLonely
		}
		if wanted := j.wanted(); size < enoughPeers && len(wanted) > 0 {
			if dials.due() {
				j.dialAll(ctx, wanted)
				dials.made()
			}
			look = min(look, dials.wait())
		} else {
			dials = attempts{}
		}
		if size < enoughPeers && j.missed() {
			if nudges.due() {
				j.nudge()
				nudges.made()
			}
			look = min(look, nudges.wait())
		} else {
			nudges = attempts{}
		}
		t := time.NewTimer(look)
		select {
		case <-ctx.Done():
		case <-j.kick:
			dials, nudges = attempts{}, attempts{}
		case <-t.C:
		}
		t.Stop()
	}
}

// attempts counts what was tried in vain, and says when to try again.
type attempts struct {
	n    int
	next time.Time
}

func (a *attempts) due() bool           { return !time.Now().Before(a.next) }
func (a *attempts) wait() time.Duration { return max(0, time.Until(a.next)) }
func (a *attempts) made() {
	a.n++
	a.next = time.Now().Add(backoff(redialFirst, redialLast, a.n))
}

// dialAll dials the peers, some at once, and waits for all.
func (j *joiner) dialAll(ctx context.Context, peers []peer.AddrInfo) {
	places := make(chan struct{}, dialsAtOnce) // one element for each dial under way
	var dials sync.WaitGroup
	for _, p := range peers {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			dials.Wait()
			return
		}
		dials.Go(func() {
			defer func() { <-places }()
			if err := j.dial(ctx, p); err != nil && ctx.Err() == nil {
				j.log.Debug("peer not reached", "peer", p.ID.ShortString(), "err", err)
			}
		})
	}
	dials.Wait()
}
