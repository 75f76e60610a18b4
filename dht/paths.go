package dht

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"math/rand/v2"
	"slices"
	"sync"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"

	"starling/dht/record"
)

// Bounds of [DHT.explore], for one key: 6 paths of at most 1 + 3·2 peers.
const (
	paths     = 6
	pathHops  = 4 // the peer from our own table included
	pathWidth = 2 // peers asked in each further hop
)

// An exploration asks for one key along paths that have no peer in common.
type exploration struct {
	d         *DHT
	key       string
	at        [sha256.Size]byte
	messenger *pb.ProtocolMessenger
	best      *best

	mu    *sync.Mutex // guards best, and what follows; never held across a wait
	taken map[peer.ID]bool
}

// explore asks for the keys along other ways than search, which goes where the
// nearest peers that it hears of send it, and ends when these have answered.
// Whoever fills a bucket of our table with peers near one record, and has them
// name only each other, ends searches for all records in that direction (seen
// in the simulator, 2026-11: of ten readers one, whose bucket had 18 of them,
// found neither replica). Here every path begins at another peer, from anywhere
// in the table, goes where that one sends it, and may not ask whom another path
// has asked. A path that meets a liar is lost, and uses liars up: d disjoint
// paths are the defence of S/Kademlia. It costs as much as a search, so it comes
// only after one that found nothing.
func (d *DHT) explore(ctx context.Context, keys [][record.KeySize]byte, b *best) {
	messenger, err := pb.NewProtocolMessenger(d.sender)
	if err != nil {
		return // it has no options that could be wrong
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var mu sync.Mutex
	var walks sync.WaitGroup
	for _, k := range keys {
		e := &exploration{
			d: d, key: kadKey(k), at: sha256.Sum256([]byte(kadKey(k))), messenger: messenger,
			best: b, mu: &mu, taken: map[peer.ID]bool{d.host.ID(): true},
		}
		starts := d.starts()
		for _, p := range starts { // before the first path begins
			e.taken[p] = true
		}
		for _, p := range starts {
			walks.Go(func() { e.walk(ctx, p) })
		}
	}
	walks.Wait()
}

// starts returns the peers at which paths begin: at random, and of different
// buckets as long as there are others, so that a bucket full of liars has one.
func (d *DHT) starts() []peer.ID {
	table := d.kad.RoutingTable().ListPeers()
	rand.Shuffle(len(table), func(i, j int) { table[i], table[j] = table[j], table[i] })
	self := kbucket.ConvertPeerID(d.host.ID())
	inBucket, rank := map[int]int{}, map[peer.ID]int{}
	for _, p := range table {
		cpl := kbucket.CommonPrefixLen(self, kbucket.ConvertPeerID(p))
		rank[p] = inBucket[cpl]
		inBucket[cpl]++
	}
	slices.SortStableFunc(table, func(p, q peer.ID) int { return rank[p] - rank[q] })
	return table[:min(len(table), paths)]
}

// walk follows one path.
func (e *exploration) walk(ctx context.Context, from peer.ID) {
	next := []peer.ID{from}
	for hop := 0; hop < pathHops && len(next) > 0; hop++ {
		named := make([][]peer.ID, len(next))
		var asks sync.WaitGroup
		for i, p := range next {
			asks.Go(func() { named[i] = e.ask(ctx, p) })
		}
		asks.Wait()
		e.count(next, hop+1)
		if ctx.Err() != nil || e.done() {
			return
		}
		next = e.take(slices.Concat(named...))
	}
}

// ask asks one peer, offers the record it has, and returns whom it names.
func (e *exploration) ask(ctx context.Context, p peer.ID) []peer.ID {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	rec, closer, err := e.messenger.GetValue(ctx, p, e.key)
	if err != nil {
		return nil
	}
	if rec != nil {
		e.mu.Lock()
		e.best.offer(rec.GetValue(), e.d.cfg.Now())
		e.mu.Unlock()
	}
	var named []peer.ID
	for _, c := range closer[:min(len(closer), 2*e.d.cfg.Table)] {
		addrs := c.Addrs[:min(len(c.Addrs), maxSavedAddrs)]
		if !e.d.cfg.AllowPrivate {
			addrs = public(addrs)
		}
		if !acceptable(c.ID) || len(addrs) == 0 && e.d.host.Network().Connectedness(c.ID) != network.Connected {
			continue
		}
		e.d.host.Peerstore().AddAddrs(c.ID, addrs, peerstore.TempAddrTTL)
		named = append(named, c.ID)
	}
	return named
}

// count notes for the report of the lookup who was asked.
func (e *exploration) count(asked []peer.ID, hops int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.best.asked = append(e.best.asked, asked...)
	e.best.hops = max(e.best.hops, hops)
}

// done reports whether a record was found. One is enough: who comes here had
// none.
func (e *exploration) done() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.best.found
}

// take returns the nearest of those that no path has asked, for this one alone.
func (e *exploration) take(named []peer.ID) (next []peer.ID) {
	slices.SortFunc(named, func(p, q peer.ID) int {
		a, b := e.distance(p), e.distance(q)
		return bytes.Compare(a[:], b[:])
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range named {
		if len(next) < pathWidth && !e.taken[p] {
			e.taken[p] = true
			next = append(next, p)
		}
	}
	return next
}

func (e *exploration) distance(p peer.ID) (x [sha256.Size]byte) {
	at := sha256.Sum256([]byte(p))
	subtle.XORBytes(x[:], e.at[:], at[:])
	return x
}
