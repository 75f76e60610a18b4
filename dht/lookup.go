package dht

import (
	"context"
	"sync"
	"time"

	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/peer"

	"starling/dht/record"
	"starling/protocol/identity"
)

const (
	lookupTimeout = 30 * time.Second // for one round of keys
	settle        = 2 * time.Second  // to wait for a better record once one is there
	quorum        = 4                // answers with a record after which one key is not asked for further
	nearMidnight  = time.Hour        // clocks may differ by so much, and tomorrow is published so early
)

// keysOf returns the keys of both replicas of the given days, in order.
func keysOf(a identity.Account, l identity.LookupSecret, days ...uint32) [][record.KeySize]byte {
	var keys [][record.KeySize]byte
	for _, day := range days {
		for r := range byte(record.Replicas) {
			keys = append(keys, record.Key(a, l, day, r))
		}
	}
	return keys
}

// best collects records of one account and keeps the newest that is not below
// the highest seen before: the reader's guard against rollback.
type best struct {
	account identity.Account
	lookup  identity.LookupSecret
	highest record.Version

	body  record.Body
	found bool
	stale bool // a genuine record was refused because it is below highest

	asked []peer.ID // by explore
	hops  int       // of its longest path
}

// offer considers one record from wherever.
func (b *best) offer(rec []byte, now time.Time) {
	body, err := record.Open(rec, b.account, b.lookup, now)
	if err != nil {
		return // whoever sent it is mistaken or lies; others may have the record
	}
	switch v := body.Version(); {
	case v.Compare(b.highest) < 0:
		b.stale = true
	case !b.found || v.Compare(b.body.Version()) > 0:
		b.body, b.found = body, true
	}
}

func (b *best) result() (record.Body, error) {
	switch {
	case b.found:
		return b.body, nil
	case b.stale:
		return record.Body{}, ErrStale
	}
	return record.Body{}, ErrNotFound
}

// Lookup asks the network for the record of the account a with the lookup
// secret l, and returns the newest found that is not below highest, the highest
// version the caller has ever seen from a. It asks for today's two replicas,
// and, only if neither is there, for yesterday's, and within an hour before
// midnight for tomorrow's. Once a record is there, it waits 2 s for a better
// one. If none is, it asks for today's once more along other ways. The error is
// [ErrNotFound], [ErrStale], [ErrNoPeers], [ErrClosed], or ctx's.
func (d *DHT) Lookup(ctx context.Context, a identity.Account, l identity.LookupSecret, highest record.Version) (record.Body, error) {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return record.Body{}, err
	}
	defer end()

	b := best{account: a, lookup: l, highest: highest}
	if d.cfg.OnLookup == nil {
		return d.find(ctx, &b)
	}
	var g gauge
	began := time.Now()
	watched, unwatch := g.watch(ctx)
	body, err := d.find(watched, &b)
	unwatch()
	for _, p := range b.asked {
		g.asked[p] = true
	}
	d.cfg.OnLookup(Report{
		Account: a, Took: time.Since(began), Hops: max(g.deep, b.hops), Asked: len(g.asked), Found: err == nil, Stale: b.stale, Version: body.Version(),
	})
	return body, err
}

// find is Lookup within its bounds.
func (d *DHT) find(ctx context.Context, b *best) (record.Body, error) {
	now := d.cfg.Now()
	today := record.DayOf(now)
	others := []uint32{today - 1}
	if record.DayOf(now.Add(nearMidnight)) > today {
		others = append(others, today+1)
	}
	for _, days := range [][]uint32{{today}, others} {
		if d.search(ctx, keysOf(b.account, b.lookup, days...), b); b.found {
			break
		}
		if err := ctx.Err(); err != nil {
			return record.Body{}, err
		}
	}
	if !b.found {
		d.explore(ctx, keysOf(b.account, b.lookup, today), b)
		if err := ctx.Err(); err != nil && !b.found {
			return record.Body{}, err
		}
	}
	if !b.found && !b.stale && d.Peers() == 0 {
		return record.Body{}, ErrNoPeers
	}
	return b.result()
}

// search asks for all keys at once and offers what comes to b.
func (d *DHT) search(ctx context.Context, keys [][record.KeySize]byte, b *best) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found := make(chan []byte) // the searches send; closed when all have ended; not buffered, so that nothing waits in it
	var searches sync.WaitGroup
	for _, k := range keys {
		searches.Go(func() {
			recs, err := d.kad.SearchValue(ctx, kadKey(k), kaddht.Quorum(quorum))
			if err != nil {
				return
			}
			for rec := range recs { // to its end, which comes soon after ctx's
				select {
				case found <- rec:
				case <-ctx.Done():
				}
			}
		})
	}
	var closer sync.WaitGroup
	closer.Go(func() {
		searches.Wait()
		close(found)
	})
	defer closer.Wait()

	var settled <-chan time.Time // nil until a record is there, and again once the wait is over
	waited := false
	for {
		select {
		case rec, ok := <-found:
			if !ok {
				return
			}
			if b.offer(rec, d.cfg.Now()); b.found && !waited {
				waited = true
				t := time.NewTimer(settle)
				defer t.Stop()
				settled = t.C
			}
		case <-settled:
			settled = nil
			cancel() // found closes soon
		}
	}
}
