package dht

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"starling/dht/record"
)

const (
	publishTimeout = time.Minute      // for one record
	putTimeout     = 20 * time.Second // for one holder, the dial included
	readBack       = 2                // holders asked afterwards; as many that did not answer are asked again

	publishEvery  = 6 * time.Hour    // ± a quarter
	publishSpread = 30 * time.Minute // over which the nodes of the world publish tomorrow

	retryFirst = 5 * time.Second  // after a publication failed
	thinFirst  = time.Minute      // after one that reached fewer than Config.Table holders
	retryLast  = 10 * time.Minute // the longest of both
)

// A SupersededError means that a valid, better record is held under the key:
// the account has another publisher, or this profile was restored from an old
// state. Publish with a counter above the error's.
type SupersededError struct{ Counter uint64 }

// Error implements error.
func (e *SupersededError) Error() string {
	return fmt.Sprintf("dht: the network holds a better record, with counter %d", e.Counter)
}

// errNoHolder means that peers were found and none took the record.
var errNoHolder = errors.New("dht: no peer took the record")

// PublishDays returns the days whose records should be in the network: today,
// and from an hour before midnight UTC tomorrow.
func PublishDays(now time.Time) []uint32 {
	days := []uint32{record.DayOf(now)}
	if next := record.DayOf(now.Add(nearMidnight)); next > days[0] {
		days = append(days, next)
	}
	return days
}

// Publish puts rec to the peers nearest to key, reads it back from some of
// them, and puts it again where it was missing. It returns nil if at least one
// peer holds it. The error is a [*SupersededError] if a better record is held,
// [ErrNoPeers], [ErrClosed], one that wraps [record.ErrInvalid] if the record
// would be refused, or that of the network: try again later.
func (d *DHT) Publish(ctx context.Context, key [record.KeySize]byte, rec []byte) error {
	_, err := d.publish(ctx, Record{Key: key, Bytes: rec})
	return err
}

func (d *DHT) publish(ctx context.Context, r Record) (holders int, err error) {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	if err := d.memo.Validate(r.Key, r.Bytes, d.cfg.Now()); err != nil {
		return 0, fmt.Errorf("publishing a record: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	nearest, err := d.kad.GetClosestPeers(ctx, kadKey(r.Key))
	if len(nearest) == 0 {
		if d.Peers() == 0 {
			return 0, ErrNoPeers
		}
		return 0, fmt.Errorf("finding the nearest peers: %w", errors.Join(err, errNoHolder))
	}
	messenger, err := pb.NewProtocolMessenger(d.sender)
	if err != nil {
		return 0, fmt.Errorf("dht: %w", err)
	}
	p := publication{record: r, messenger: messenger, now: d.cfg.Now}

	// A holder like any other, if we are as near as they are. Nothing would be
	// gained otherwise: nobody would look here.
	if d.Mode() == "server" && (len(nearest) < d.cfg.Table || d.nearer(r.Key, nearest[len(nearest)-1])) {
		if held, ok := d.store.get(r.Key); ok {
			p.compare(held)
		}
		// Received by the clock of kad-dht, which counts the record's age from it.
		if err := d.store.put(r.Key, r.Bytes, time.Now()); err != nil {
			d.log.Debug("own record not held here", "err", err)
		}
	}

	took := p.each(ctx, nearest, p.put)
	p.check(ctx, took)
	holders = 0
	for _, ok := range took {
		if ok {
			holders++
		}
	}
	switch {
	case p.superseded != nil:
		return holders, p.superseded
	case holders == 0:
		return 0, errors.Join(errNoHolder, ctx.Err())
	}
	d.published.Store(d.cfg.Now().UnixNano())
	return holders, nil
}

// nearer reports whether we are nearer to key than p is.
func (d *DHT) nearer(key [record.KeySize]byte, p peer.ID) bool {
	var x [sha256.Size]byte
	at, theirs := sha256.Sum256([]byte(kadKey(key))), sha256.Sum256([]byte(p))
	subtle.XORBytes(x[:], at[:], theirs[:])
	ours := d.store.distance(key)
	return bytes.Compare(ours[:], x[:]) < 0
}

// A publication is one record on its way to its holders.
type publication struct {
	record    Record
	messenger *pb.ProtocolMessenger
	now       func() time.Time

	mu         sync.Mutex // guards superseded
	superseded *SupersededError
}

// each calls fn for all peers at once and returns what it said of each.
func (p *publication) each(ctx context.Context, peers []peer.ID, fn func(context.Context, peer.ID) bool) map[peer.ID]bool {
	answers := make([]bool, len(peers))
	var calls sync.WaitGroup
	for i, id := range peers {
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, putTimeout)
			defer cancel()
			answers[i] = fn(ctx, id)
		})
	}
	calls.Wait()
	m := make(map[peer.ID]bool, len(peers))
	for i, id := range peers {
		m[id] = answers[i]
	}
	return m
}

// put asks a peer to hold the record. A peer that holds a better one refuses
// like one that is out of order; check tells them apart.
func (p *publication) put(ctx context.Context, id peer.ID) bool {
	rec := &recpb.Record{Key: []byte(kadKey(p.record.Key)), Value: p.record.Bytes}
	return p.messenger.PutValue(ctx, id, rec) == nil
}

// check reads the record back from some who took it and some who did not, and
// puts it again where it is missing. It corrects took.
func (p *publication) check(ctx context.Context, took map[peer.ID]bool) {
	var sample []peer.ID
	left := map[bool]int{true: readBack, false: readBack}
	for id, ok := range took { // in random order
		if left[ok] > 0 {
			left[ok]--
			sample = append(sample, id)
		}
	}
	holds := p.each(ctx, sample, func(ctx context.Context, id peer.ID) bool {
		held, _, err := p.messenger.GetValue(ctx, id, kadKey(p.record.Key))
		switch {
		case err != nil:
			return false
		case bytes.Equal(held.GetValue(), p.record.Bytes):
			return true
		case p.compare(held.GetValue()):
			return false // a better record is no loss; the caller must know
		}
		return p.put(ctx, id)
	})
	for id, ok := range holds {
		took[id] = ok
	}
}

// compare notes if held is a valid record that beats ours, and reports it.
func (p *publication) compare(held []byte) bool {
	if record.Select([][]byte{p.record.Bytes, held}) != 1 || record.Validate(p.record.Key, held, p.now()) != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := record.Counter(held); p.superseded == nil || c > p.superseded.Counter {
		p.superseded = &SupersededError{Counter: c}
	}
	return true
}

// A Source makes the records to publish.
type Source interface {
	// Records returns the records that should be in the network now: those of
	// [PublishDays], every replica. An error is logged and retried.
	Records(now time.Time) ([]Record, error)
}

// RunPublisher publishes what s has until ctx or the DHT ends, and returns nil:
// at once, every 6 h ± 25 %, when a new day comes near, and after [DHT.Kick]. A
// publication that fails is tried again after 5 s to 10 min. One that reached
// fewer holders than Config.Table, as in a small or a young network, is repeated
// after 1 to 10 min: holders keep records in memory and may have restarted.
func (d *DHT) RunPublisher(ctx context.Context, s Source) error {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	p := publisher{source: s, publish: d.publish, most: d.cfg.Table, now: d.cfg.Now, tell: d.cfg.OnPublished, kick: d.kick, log: d.log}
	p.run(ctx)
	return nil
}

// Kick makes RunPublisher publish at once, and Run look at its peers: after a
// change of what the record says, or of the network.
func (d *DHT) Kick() {
	wake(d.kick)
	wake(d.rejoin)
}

// A publisher decides when to publish.
type publisher struct {
	source  Source
	publish func(context.Context, Record) (holders int, err error)
	most    int // holders of a record
	now     func() time.Time
	tell    func(Record, int, error) // or nil
	kick    <-chan struct{}
	log     *slog.Logger

	failed, thin int // rounds of this kind in a row
}

func (p *publisher) run(ctx context.Context) {
	for ctx.Err() == nil {
		t := time.NewTimer(p.round(ctx))
		select {
		case <-ctx.Done():
		case <-p.kick:
			p.failed, p.thin = 0, 0
		case <-t.C:
		}
		t.Stop()
	}
}

// round publishes everything once and returns how long to wait.
func (p *publisher) round(ctx context.Context) time.Duration {
	recs, err := p.source.Records(p.now())
	if err != nil {
		p.log.Error("records not made", "err", err)
	}
	least := p.most
	failed := err != nil
	for _, r := range recs {
		holders, err := p.publish(ctx, r)
		if ctx.Err() != nil {
			return 0
		}
		if p.tell != nil {
			p.tell(r, holders, err)
		}
		switch {
		case errors.Is(err, ErrNoPeers):
			failed = true
		case err != nil:
			failed = true
			p.log.Warn("record not published", "holders", holders, "err", err)
		}
		least = min(least, holders)
	}

	wait := spread(publishEvery)
	switch {
	case failed:
		p.failed++
		wait = backoff(retryFirst, retryLast, p.failed)
	case least < p.most:
		p.failed = 0
		p.thin++
		wait = backoff(thinFirst, retryLast, p.thin)
	default:
		p.failed, p.thin = 0, 0
	}
	return min(wait, untilTomorrow(p.now()))
}

// untilTomorrow returns how long it is until tomorrow's records are due, with
// each node at another moment.
func untilTomorrow(now time.Time) time.Duration {
	due := now.UTC().Truncate(24 * time.Hour).Add(24*time.Hour - nearMidnight)
	if !due.After(now) {
		due = due.Add(24 * time.Hour)
	}
	return due.Sub(now) + rand.N(publishSpread)
}

// spread returns d ± a quarter.
func spread(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2) }

// backoff returns the wait after the nth failure in a row, n ≥ 1: twice the one
// before, at most last, of which at least half is kept and the rest is random.
func backoff(first, last time.Duration, n int) time.Duration {
	d := first
	for range n - 1 {
		if d *= 2; d >= last {
			d = last
			break
		}
	}
	return d/2 + rand.N(d/2)
}
