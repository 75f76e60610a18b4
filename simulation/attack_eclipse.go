package simulation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	libnet "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"starling/dht"
	"starling/dht/record"
	"starling/protocol"
	"starling/protocol/identity"
)

// Roles of nodes that are no ordinary peers. A sybil is a place for an attack
// to stand at: it has no account, and [World.StartAll] leaves it alone. A
// spammer is a node like any other, whose user is a nuisance; nobody promises
// to deliver what it writes.
const (
	RoleSybil   = "sybil"
	RoleSpammer = "spammer"
)

// An Eclipse is an attack on one record: sybils whose peer IDs were ground to
// be nearer to its key than any honest node, so that all who publish or look it
// up end at them. They join like servers, name nobody but each other, take
// every record with thanks, and lie to those who ask for it.
//
// An account has two records a day, far apart in the key space; taking one away
// should take nothing from readers. The sybils stand on as many networks as
// there are of them, which a real attacker would have to pay for: routing tables
// take three peers of an IPv4 /16.
type Eclipse struct {
	Target  *Node         // whose record it is; must run, as its public link is the attacker's only knowledge
	Sybils  []*Node       // of [RoleSybil], and in no other attack
	Ahead   time.Duration // the record is that of the day so far from now. Default 0: today's
	Replica int           // 0 or 1
	Lie     Lie           // what they answer
}

// An Eclipsed is an attack under way. It lasts until the end of the run.
type Eclipsed struct {
	w      *World
	of     Eclipse
	target identity.Account
	cabal  *cabal

	mu     sync.Mutex // guards what follows; never held across a wait
	found  int        // lookups of the target by honest nodes
	missed int        // those that ended without a record
	stale  int        // those that accepted a record that was not the newest any more
	rolled int        // those that accepted a version below one accepted before
	best   map[int]record.Version
}

// sybilPeers is how many of the honest nodes nearest to the key a sybil stays
// connected to, and as many others drawn at random.
const sybilPeers = 2 * kadCloser

// rejoinEvery is how often a sybil looks after its connections.
const rejoinEvery = 5 * time.Minute

// Eclipse starts an attack, and returns when the sybils have joined.
func (w *World) Eclipse(a Eclipse) (*Eclipsed, error) {
	w.alive()
	if err := a.check(); err != nil {
		return nil, err
	}
	text, err := a.Target.Invite(true)
	if err != nil {
		return nil, err
	}
	link, err := identity.ParseLink(text)
	if err != nil {
		return nil, fmt.Errorf("reading the link of %s: %w", a.Target.Name(), err)
	}
	day := record.DayOf(time.Now().Add(a.Ahead))
	key := record.Key(link.Account, link.Lookup, day, byte(a.Replica))
	honest, err := w.honest(key)
	if err != nil {
		return nil, err
	}
	limit := farthest()
	if len(honest) > 0 {
		limit = distanceTo(key, honest[0].ID)
	}
	r := w.Rand(fmt.Sprintf("eclipse %s %d %d", a.Target.Name(), day, a.Replica))
	keys, err := grind(r, key, limit, len(a.Sybils), maxGrind)
	if err != nil {
		return nil, err
	}

	e := &Eclipsed{w: w, of: a, target: link.Account, cabal: newCabal(link, a.Lie, r), best: map[int]record.Version{}}
	hosts := make([]host.Host, 0, len(a.Sybils))
	for i, n := range a.Sybils {
		h, err := n.sybil(keys[i])
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
		e.cabal.members = append(e.cabal.members, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()})
	}
	w.log.onLookup(e.lookedUp)
	w.begin("eclipse", fmt.Sprintf("%d sybils around replica %d of %s answer: %v", len(hosts), a.Replica, a.Target.Name(), a.Lie))
	var joined sync.WaitGroup
	for _, h := range hosts {
		h.SetStreamHandler(kadID, func(s libnet.Stream) { e.cabal.serve(h.ID(), s) })
		goals := slices.Clone(honest[:min(len(honest), sybilPeers)])
		for _, i := range r.Perm(len(honest))[:min(len(honest), sybilPeers)] {
			goals = append(goals, honest[i])
		}
		joined.Add(1)
		w.loose.Go(func() { stay(w.ctx, h, goals, joined.Done) })
	}
	joined.Wait()
	w.alive()
	return e, nil
}

// check returns what is wrong with an attack.
func (a Eclipse) check() error {
	var errs []error
	if a.Target == nil || len(a.Sybils) == 0 {
		errs = append(errs, errors.New("simulation: an eclipse has a target and sybils"))
	}
	if a.Replica < 0 || a.Replica >= record.Replicas {
		errs = append(errs, fmt.Errorf("simulation: a record has no replica %d", a.Replica))
	}
	if a.Lie < LieOld || a.Lie > LieGarbage {
		errs = append(errs, fmt.Errorf("simulation: there is no lie %d", a.Lie))
	}
	for _, n := range a.Sybils {
		if n.Role() != RoleSybil {
			errs = append(errs, fmt.Errorf("simulation: %s is a %s, not a sybil", n.Name(), n.Role()))
		}
	}
	return errors.Join(errs...)
}

// honest returns the honest nodes that have run, the nearest to key first.
func (w *World) honest(key [record.KeySize]byte) ([]peer.AddrInfo, error) {
	var list []peer.AddrInfo
	for _, n := range w.nodes {
		if n.entry == "" {
			continue
		}
		info, err := peer.AddrInfoFromString(n.entry)
		if err != nil {
			return nil, fmt.Errorf("reading the address of %s: %w", n.Name(), err)
		}
		list = append(list, *info)
	}
	slices.SortFunc(list, func(a, b peer.AddrInfo) int { return distanceTo(key, a.ID).compare(distanceTo(key, b.ID)) })
	return list, nil
}

// sybil starts a bare host in the node's place. It ends with the world.
func (n *Node) sybil(key crypto.PrivKey) (host.Host, error) {
	n.port.Restore()
	at, transports := n.w.speaks(n.port)
	h, err := libp2p.New(append(transports,
		libp2p.Identity(key), libp2p.UserAgent(protocol.Agent), libp2p.ProtocolVersion(protocol.Agent),
		libp2p.ConnectionManager(connmgr.NullConnMgr{}), libp2p.BandwidthReporter(n.meter),
		libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.DisableIdentifyAddressDiscovery(), libp2p.NoListenAddrs)...)
	if err != nil {
		return nil, fmt.Errorf("starting the sybil %s: %w", n.Name(), err)
	}
	n.w.onClose(h.Close)
	listen := make([]ma.Multiaddr, len(at))
	for i, a := range at {
		listen[i] = ma.StringCast(a) // a port knows how
	}
	if err := h.Network().Listen(listen...); err != nil {
		return nil, fmt.Errorf("starting the sybil %s: %w", n.Name(), err)
	}
	n.mu.Lock()
	n.result.Starts++
	n.mu.Unlock()
	n.w.log.add(Event{Type: "start", Node: n.Name(), Text: RoleSybil})
	return h, nil
}

// stay keeps a host connected to its goals until ctx ends, and calls joined
// after the first round.
func stay(ctx context.Context, h host.Host, goals []peer.AddrInfo, joined func()) {
	for first := true; ; first = false {
		for _, p := range goals {
			if h.Network().Connectedness(p.ID) != libnet.Connected {
				_ = h.Connect(ctx, p) // who is not there now may be next time
			}
		}
		if first {
			joined()
		}
		t := time.NewTimer(rejoinEvery)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// Requests returns what the sybils were asked so far.
func (e *Eclipsed) Requests() Requests { return e.cabal.requests() }

// lookedUp judges a lookup of any node.
func (e *Eclipsed) lookedUp(n *Node, r dht.Report) {
	if n == e.of.Target || r.Account != e.target {
		return
	}
	newest := e.cabal.newestVersion()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !r.Found {
		e.missed++
		return
	}
	e.found++
	if r.Version.Compare(newest) < 0 {
		e.stale++
	}
	best, before := e.best[n.index]
	if before && r.Version.Compare(best) < 0 {
		e.rolled++
		return
	}
	e.best[n.index] = r.Version
}

// Report writes what the attack achieved so far into the results. The error
// says that nobody looked the target up: nothing was measured.
func (e *Eclipsed) Report() error {
	e.mu.Lock()
	found, missed, stale, rolled := e.found, e.missed, e.stale, e.rolled
	e.mu.Unlock()
	if found+missed == 0 {
		return fmt.Errorf("simulation: nobody looked %s up during the eclipse", e.of.Target.Name())
	}
	seen := e.Requests()
	for _, m := range []Metric{
		{Name: "eclipse_lookups", Value: float64(found + missed)},
		{Name: "eclipse_lookup_success", Value: 100 * float64(found) / float64(found+missed), Unit: "%", Goal: ">= 99 %"},
		{Name: "eclipse_rollbacks_accepted", Value: float64(rolled), Goal: "0"},
		{Name: "eclipse_old_records_offered", Value: float64(seen.OldOffered)},
		{Name: "eclipse_old_records_accepted", Value: float64(stale)}, // by who had seen nothing newer
		{Name: "eclipse_find_node_seen", Value: float64(seen.FindNode)},
		{Name: "eclipse_get_value_seen", Value: float64(seen.GetValue)},
		{Name: "eclipse_put_value_seen", Value: float64(seen.PutValue)},
	} {
		e.w.Report(m)
	}
	return nil
}

// A Reading is how often the target of an attack is looked up. A node looks a
// contact up when it has something for it, is not connected to it, and nobody
// answers at the addresses known. So the target goes away again and again;
// every reader writes it a line, and its outbox then tries, with pauses of up
// to five minutes, until the target is back with a newer record. That makes
// about 25 lookups a reader in an hour of absence.
type Reading struct {
	Readers []*Node       // honest nodes; who is no contact yet adds the target in its first absence, by a link
	Rounds  int           // absences. Default 4
	Away    time.Duration // of each. Default 30 min
	Back    time.Duration // between two; what waits is delivered then. Default 5 min
}

// Read makes nodes look the target up. The target must run, and does so
// afterwards. Before the first absence it starts anew, so that the sybils have
// a record that will be the old one.
func (e *Eclipsed) Read(r Reading) error {
	w, target := e.w, e.of.Target
	r.Rounds = orDefault(r.Rounds, 4)
	r.Away = orDefault(r.Away, 30*time.Minute)
	r.Back = orDefault(r.Back, 5*time.Minute)
	links := make([]string, len(r.Readers))
	for i, n := range r.Readers {
		if n.Knows(target) {
			continue
		}
		var err error
		if links[i], err = target.Invite(false); err != nil {
			return err
		}
	}
	back := func() error {
		if err := target.Start(); err != nil {
			return err
		}
		w.Sleep(r.Back)
		return nil
	}
	if err := errors.Join(target.Stop(), back()); err != nil {
		return err
	}
	for round := range r.Rounds {
		if err := target.Stop(); err != nil {
			return err
		}
		for i, n := range r.Readers {
			if links[i] != "" {
				if err := n.Add(target, links[i]); err != nil {
					return err
				}
				links[i] = ""
			}
			if _, err := n.Send(target, fmt.Sprintf("are you there? (%d)", round)); err != nil {
				return err
			}
			w.Sleep(time.Second) // so that they do not ask in step
		}
		w.Sleep(r.Away)
		if err := back(); err != nil {
			return err
		}
	}
	return nil
}
