package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"starling/dht"
	"starling/dht/record"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// Tuning of the search for a contact.
const (
	dialTime     = 10 * time.Second // one attempt to dial
	fetchTime    = 10 * time.Second // one peer asked for a record
	lookupTime   = 60 * time.Second // one lookup in the DHT
	maxNeighbour = 16               // neighbours asked for a record
)

// What a search that failed says to the user.
var (
	errNotFound = errors.New("nobody who was asked knows where they are")
	errNoRecord = errors.New("their record is not in the network: it ends two weeks after they were last online (a day, if they have no relay), and when they take their links back")
	errNoAnswer = errors.New("their record was found, and none of the addresses in it answers from here")
)

// routes are the transport keys that contacts say are theirs. Anybody can say
// so of anybody's key; only who holds it can be heard over it. What routes says
// of a peer is a hint all the same: an account is proven by a session, never by
// a connection.
type routes struct {
	mu     sync.Mutex // guards what follows; never held across a wait
	claims map[peer.ID][]identity.Account
	proven map[peer.ID]identity.Account // the one of claims who was heard over it last
}

func (r *routes) set(c *store.Contact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := accountOf(c)
	ids := make(map[peer.ID]bool)
	for _, e := range endpointsOf(c.Endpoints) {
		ids[peerOf(e.Transport)] = true
	}
	r.dropLocked(a, ids)
	if r.claims == nil {
		r.claims = make(map[peer.ID][]identity.Account)
		r.proven = make(map[peer.ID]identity.Account)
	}
	for id := range ids {
		if !slices.Contains(r.claims[id], a) {
			r.claims[id] = append(r.claims[id], a)
		}
	}
}

func (r *routes) drop(a identity.Account) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropLocked(a, nil)
}

// dropLocked forgets what a said of its keys, but for those kept.
func (r *routes) dropLocked(a identity.Account, keep map[peer.ID]bool) {
	for id, list := range r.claims {
		if keep[id] || !slices.Contains(list, a) {
			continue
		}
		if r.proven[id] == a {
			delete(r.proven, id)
		}
		if len(list) == 1 {
			delete(r.claims, id)
			continue
		}
		r.claims[id] = slices.DeleteFunc(slices.Clone(list), func(b identity.Account) bool { return a == b })
	}
}

// prove notes that a was heard over p.
func (r *routes) prove(p peer.ID, a identity.Account) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.claims[p], a) {
		r.proven[p] = a
	}
}

// account returns whose transport key p is believed to be: of who was heard
// over it, or else of the only one who says so.
func (r *routes) account(p peer.ID) (identity.Account, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a, ok := r.proven[p]; ok {
		return a, true
	}
	if list := r.claims[p]; len(list) == 1 {
		return list[0], true
	}
	return identity.Account{}, false
}

// accounts returns who says that p is theirs.
func (r *routes) accounts(p peer.ID) []identity.Account {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.claims[p])
}

// peers returns the transport keys that a says are theirs.
func (r *routes) peers(a identity.Account) []peer.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []peer.ID
	for id, list := range r.claims {
		if slices.Contains(list, a) {
			ids = append(ids, id)
		}
	}
	return ids
}

// endpointsOf reads the endpoints of a row; damaged ones are left out.
func endpointsOf(rows []*store.Endpoint) []identity.Endpoint {
	var es []identity.Endpoint
	for _, r := range rows {
		if t, err := identity.ParseTransport(r.TransportKey); err == nil {
			es = append(es, identity.Endpoint{Transport: t, Addrs: r.Addrs})
		}
	}
	return es
}

// up reports whether there is a connection to p, direct or through a relay.
func (n *Node) up(p peer.ID) bool {
	s := n.host.Network().Connectedness(p)
	return s == network.Connected || s == network.Limited
}

// direct reports whether there is a connection to p that is no circuit.
func (n *Node) direct(p peer.ID) bool {
	return slices.ContainsFunc(n.host.Network().ConnsToPeer(p), func(c network.Conn) bool { return pathOf(c) == PathDirect })
}

// path says how c is connected: empty if not at all.
func (n *Node) path(c *store.Contact) Path {
	peers := n.routes.peers(accountOf(c))
	switch {
	case slices.ContainsFunc(peers, n.direct):
		return PathDirect
	case slices.ContainsFunc(peers, n.up):
		return PathCircuit
	}
	return ""
}

// reachPeer returns a connected transport key of a contact: one that is
// connected, or else one dialled at an address known, or else one found through
// the nodes of the link, the neighbours and the DHT.
func (n *Node) reachPeer(ctx context.Context, a identity.Account) (peer.ID, error) {
	var c *store.Contact
	err := n.store.View(func(tx *store.Tx) (err error) {
		c, err = store.Contacts.Get(tx, store.ContactKey(a))
		return err
	})
	if err != nil {
		return "", err
	}
	ctx = network.WithAllowLimitedConn(ctx, "starling")
	if p, ok := n.dialAny(ctx, endpointsOf(c.Endpoints)); ok {
		return p, nil
	}
	missing := errNotFound
	for _, search := range n.searches(c) {
		bodies, err := search(ctx, c)
		if errors.Is(err, errNoRecord) && missing == errNotFound {
			missing, err = errNoRecord, nil
		}
		if err != nil && !errors.Is(err, errNoRecord) {
			return "", err
		}
		for _, body := range bodies {
			missing = errNoAnswer
			if err := n.found(a, body); err != nil {
				return "", err
			}
			if p, ok := n.dialAny(ctx, body.Endpoints); ok {
				return p, nil
			}
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
	}
	return "", missing
}

// dialAny returns the first endpoint that is connected or can be dialled.
func (n *Node) dialAny(ctx context.Context, es []identity.Endpoint) (peer.ID, bool) {
	for _, e := range es {
		if p := peerOf(e.Transport); n.up(p) {
			return p, true
		}
	}
	for _, e := range es {
		if n.dial(ctx, e) {
			return peerOf(e.Transport), true
		}
	}
	return "", false
}

func (n *Node) dial(ctx context.Context, e identity.Endpoint) bool {
	info := addrInfo(e)
	if info.ID == n.host.ID() {
		return false
	}
	if len(info.Addrs) == 0 && len(n.host.Peerstore().Addrs(info.ID)) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	// Whoever moved comes to us, while a dial to where they were takes its time
	// to fail.
	came := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if c.RemotePeer() == info.ID {
			cancel()
		}
	}}
	n.host.Network().Notify(came)
	defer n.host.Network().StopNotify(came)
	return n.host.Connect(ctx, info) == nil || n.up(info.ID)
}

func versionOf(c *store.Contact) record.Version {
	return record.Version{Generation: c.RecordGeneration, Day: c.RecordDay, Seq: c.RecordSeq}
}

// searches lists who is asked for a contact's record: the nodes that their link
// names, one after the other, as some may lead nowhere from here; then the
// neighbours; then the DHT.
func (n *Node) searches(c *store.Contact) []func(context.Context, *store.Contact) ([]record.Body, error) {
	var list []func(context.Context, *store.Contact) ([]record.Body, error)
	for _, e := range endpointsOf(c.Hints) {
		list = append(list, func(ctx context.Context, c *store.Contact) ([]record.Body, error) { return n.askHint(ctx, c, e) })
	}
	return append(list, n.askNeighbours, n.askDHT)
}

// askHint asks a node that the contact's link names.
func (n *Node) askHint(ctx context.Context, c *store.Contact, e identity.Endpoint) ([]record.Body, error) {
	if !n.up(peerOf(e.Transport)) && !n.dial(ctx, e) {
		return nil, nil
	}
	if body, ok := n.fetch(ctx, peerOf(e.Transport), c); ok {
		return []record.Body{body}, nil
	}
	return nil, nil
}

// askNeighbours asks the peers that mDNS found on this network.
func (n *Node) askNeighbours(ctx context.Context, c *store.Contact) ([]record.Body, error) {
	asked := 0
	for _, p := range n.neighbours.list() {
		if asked == maxNeighbour || ctx.Err() != nil {
			break
		}
		if !n.up(p) {
			continue
		}
		asked++
		if body, ok := n.fetch(ctx, p, c); ok {
			return []record.Body{body}, nil
		}
	}
	return nil, nil
}

func (n *Node) fetch(ctx context.Context, p peer.ID, c *store.Contact) (record.Body, bool) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	body, err := n.dht.Fetch(ctx, p, accountOf(c), identity.LookupSecret(c.LookupSecret), versionOf(c))
	return body, err == nil
}

// askDHT looks the contact up. The error is errNoRecord if those who would know
// were asked.
func (n *Node) askDHT(ctx context.Context, c *store.Contact) ([]record.Body, error) {
	if n.dht.Peers() == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	body, err := n.dht.Lookup(ctx, accountOf(c), identity.LookupSecret(c.LookupSecret), versionOf(c))
	switch {
	case errors.Is(err, dht.ErrNotFound):
		return nil, errNoRecord
	case err != nil:
		return nil, nil //nolint:nilerr // the next attempt asks again
	}
	return []record.Body{body}, nil
}

// found commits what a record says of a contact: the version, so that no older
// record is believed again, the manifest and the endpoints.
func (n *Node) found(a identity.Account, body record.Body) error {
	return n.store.Update(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(a))
		if err != nil {
			return err
		}
		v := body.Version()
		if v.Compare(versionOf(c)) < 0 {
			return nil
		}
		c.RecordGeneration, c.RecordDay, c.RecordSeq = v.Generation, v.Day, v.Seq
		if _, err := n.learnManifest(tx, c, body.ManifestBytes); err != nil {
			return err
		}
		n.learnEndpoints(tx, c, body.Endpoints)
		if body.Mail != nil {
			c.Boxes = wire.Marshal(body.Mail)
		}
		return saveContact(tx, c)
	})
}

// learnEndpoints takes endpoints from a record. An endpoint without addresses
// keeps those that are known: private ones are never in a record.
func (n *Node) learnEndpoints(tx *store.Tx, c *store.Contact, es []identity.Endpoint) {
	known := c.Endpoints
	c.Endpoints = nil
	for _, e := range es {
		row := &store.Endpoint{TransportKey: slices.Clone(e.Transport[:]), Addrs: e.Addrs}
		for _, k := range known {
			if len(row.Addrs) == 0 && slices.Equal(k.TransportKey, row.TransportKey) {
				row.Addrs = k.Addrs
			}
		}
		c.Endpoints = append(c.Endpoints, row)
	}
	tx.OnCommit(func() { n.routes.set(c) })
}

// sighted commits where a contact's transport key listens now, so that a
// restart finds it without help, and sends what waits for them.
func (n *Node) sighted(e event.EvtPeerIdentificationCompleted) {
	accounts := n.routes.accounts(e.Peer)
	if len(accounts) == 0 {
		return // most peers are nobody we know
	}
	t, ok := transportOf(e.Peer)
	if !ok {
		return
	}
	addrs := addrsNow(e)
	for _, a := range accounts {
		if err := n.keepAddrs(a, t, addrs); err != nil {
			n.log.Warn("keeping the address of a contact", "err", err)
			continue
		}
		n.outbox.Kick(a)
	}
}

// addrsNow returns where a peer that was just identified listens: the address
// at which it was reached, if we dialled, and those it tells. The address book
// would add those of before.
func addrsNow(e event.EvtPeerIdentificationCompleted) (addrs [][]byte) {
	list := e.ListenAddrs
	if e.Conn.Stat().Direction == network.DirOutbound {
		list = append([]multiaddr.Multiaddr{e.Conn.RemoteMultiaddr()}, list...)
	}
	for _, a := range list {
		b := a.Bytes()
		if len(addrs) < protocol.MaxAddrs && len(b) <= protocol.MaxAddr &&
			!slices.ContainsFunc(addrs, func(known []byte) bool { return slices.Equal(known, b) }) {
			addrs = append(addrs, b)
		}
	}
	return addrs
}

// keepAddrs commits the addresses of a contact's transport key, if they are not
// those of before.
func (n *Node) keepAddrs(a identity.Account, t identity.Transport, addrs [][]byte) error {
	if len(addrs) == 0 {
		return nil
	}
	changed := func(tx *store.Tx) (*store.Contact, bool, error) {
		c, err := store.Contacts.Get(tx, store.ContactKey(a))
		if errors.Is(err, store.ErrNotFound) {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, err
		}
		i := slices.IndexFunc(c.Endpoints, func(e *store.Endpoint) bool { return slices.Equal(e.TransportKey, t[:]) })
		if i < 0 || slices.EqualFunc(c.Endpoints[i].Addrs, addrs, slices.Equal) {
			return c, false, nil
		}
		c.Endpoints[i].Addrs = addrs
		return c, true, nil
	}
	var stale bool
	err := n.store.View(func(tx *store.Tx) (err error) {
		_, stale, err = changed(tx)
		return err
	})
	if err != nil || !stale {
		return err
	}
	return n.store.Update(func(tx *store.Tx) error {
		c, ok, err := changed(tx)
		if err != nil || !ok {
			return err
		}
		return saveContact(tx, c)
	})
}

// dropDead closes the older QUIC connections of a contact who came back from
// another port. Its earlier process is gone without a word, and until QUIC's
// own idle time of half a minute everything sent there would be lost. (From the
// same port the new process answers with a stateless reset.)
func (n *Node) dropDead(fresh network.Conn) {
	p := fresh.RemotePeer()
	if len(n.routes.accounts(p)) == 0 || !isQUIC(fresh) {
		return
	}
	for _, c := range n.host.Network().ConnsToPeer(p) {
		if c != fresh && isQUIC(c) && outlived(c, fresh) {
			c.Close() //nolint:errcheck // it is dead
		}
	}
}

// bothDialled is how far apart two connections over different addresses may be
// that came about because both sides dialled at once: neither is dead.
const bothDialled = 3 * time.Second

// outlived reports whether c is of an earlier process of the peer that opened
// fresh. A process uses one port of an IP address for all its connections.
func outlived(c, fresh network.Conn) bool {
	older := fresh.Stat().Opened.Sub(c.Stat().Opened)
	if older <= 0 || c.RemoteMultiaddr().Equal(fresh.RemoteMultiaddr()) {
		return false
	}
	was, errWas := manet.ToIP(c.RemoteMultiaddr())
	is, errIs := manet.ToIP(fresh.RemoteMultiaddr())
	return errWas == nil && errIs == nil && was.Equal(is) || older > bothDialled
}

func isQUIC(c network.Conn) bool {
	_, err := c.RemoteMultiaddr().ValueForProtocol(multiaddr.P_QUIC_V1)
	return err == nil && !c.Stat().Limited
}

// known reports whether p is believed to belong to a contact; its streams keep
// a place when strangers fill the others.
func (n *Node) known(p peer.ID) bool {
	accounts := n.routes.accounts(p)
	if len(accounts) == 0 {
		return false
	}
	known := false
	err := n.store.View(func(tx *store.Tx) error {
		for _, a := range accounts {
			c, err := store.Contacts.Get(tx, store.ContactKey(a))
			known = known || err == nil && sendable(c.State)
		}
		return nil
	})
	return known && err == nil
}

// neighbours are peers that mDNS found, newest first.
type neighbours struct {
	mu sync.Mutex // guards ids; never held across a wait
	id []peer.ID
}

// maxNeighbours bounds how many are remembered.
const maxNeighbours = 64

// add remembers p as the newest.
func (s *neighbours) add(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id = slices.DeleteFunc(s.id, func(q peer.ID) bool { return p == q })
	s.id = slices.Insert(s.id, 0, p)
	s.id = s.id[:min(len(s.id), maxNeighbours)]
}

func (s *neighbours) has(p peer.ID) bool { return slices.Contains(s.list(), p) }

func (s *neighbours) list() []peer.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.id)
}
