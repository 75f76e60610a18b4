package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"starling/node/relay/client"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// leavingLife is how long a relay that is being left is read: what was left
// there before everybody knew may come as late.
const leavingLife = protocol.MessageLife

// turnEvery is how soon a relay's word that it stops, or that it does not, is taken
// again after it changed: every contact is told of that, and one that changes its
// mind at every connection would fill their queues.
const turnEvery = 24 * time.Hour

// deadRelay is how long after that a relay that is not reached is forgotten, with
// the queues that may be there still.
const deadRelay = 7 * 24 * time.Hour

// forgetDead forgets relays that were left and that nobody will answer for.
func (n *Node) forgetDead() error {
	now := n.cfg.Now()
	return n.store.Update(func(tx *store.Tx) error {
		for r, err := range store.OwnRelays.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if l := r.Value.Leaving; l == 0 || now.Sub(time.UnixMilli(l)) < leavingLife+deadRelay {
				continue
			}
			t := r.Key.Relay()
			for q, err := range store.OwnQueues.Scan(tx, store.OwnQueuesAt(t), nil) {
				if err == nil {
					err = store.OwnQueues.Delete(tx, q.Key)
				}
				if err != nil {
					return err
				}
			}
			if err := store.OwnRelays.Delete(tx, r.Key); err != nil {
				return err
			}
			if err := n.record(tx, &store.Event{Type: "relay", State: "removed", Text: peerOf(t).String()}, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// A tending is one look after what this user has at a relay.
type tending struct {
	n     *Node
	t     identity.Transport
	c     *client.Conn
	row   *store.OwnRelay
	fresh bool // a queue was made, and somebody has to be told
}

// tend makes the queues at a relay that this user needs, renews and drops them,
// says who may deposit in the contact box, and leaves there one-time keys and
// the records of the coming days. The first error ends it; it is called again.
func (n *Node) tend(ctx context.Context, t identity.Transport, c *client.Conn) error {
	d := &tending{n: n, t: t, c: c}
	if err := d.plan(); err != nil {
		return err
	}
	defer func() {
		if d.fresh {
			n.tellAgain()
			n.republish()
		}
	}()
	if err := d.queues(ctx); err != nil {
		return err
	}
	if d.row.Leaving != 0 {
		return d.leave()
	}
	box, id, err := d.box()
	if err != nil || box == nil {
		return err
	}
	if err := d.access(ctx, box, id); err != nil {
		return err
	}
	if err := d.keys(ctx, id); err != nil {
		return err
	}
	return d.records(ctx, id)
}

// plan takes over what the relay says of itself, and makes the rows of queues
// that are missing.
func (d *tending) plan() error {
	info, n, now := d.c.Info(), d.n, d.n.cfg.Now()
	if err := d.doubt(info.Store); err != nil {
		return err
	}
	return n.store.Update(func(tx *store.Tx) error {
		r, err := store.OwnRelays.Get(tx, store.PeerKey(d.t))
		if err != nil {
			return err
		}
		lost := len(r.Store) > 0 && !slices.Equal(r.Store, info.Store[:])
		if lost { // nothing that was left there is there any more
			r.Records, r.KeysPut = nil, 0
			for row, err := range store.OwnQueues.Scan(tx, store.OwnQueuesAt(d.t), nil) {
				if err != nil {
					return err
				}
				row.Value.Tokens = nil
				if err := store.OwnQueues.Put(tx, row.Key, row.Value); err != nil {
					return err
				}
			}
		}
		drains := int64(0)
		if !info.Draining.IsZero() {
			drains = info.Draining.Unix()
		}
		if turns := (drains != 0) != (r.Draining != 0); turns && now.Sub(time.UnixMilli(r.Turned)) < turnEvery {
			drains = r.Draining
		} else if turns {
			r.Turned = now.UnixMilli()
		}
		if drains != 0 && r.Draining == 0 {
			err := n.record(tx, &store.Event{Type: "relay", State: "draining", Text: peerOf(d.t).String()}, nil)
			if err != nil {
				return err
			}
		}
		if drains != r.Draining {
			d.fresh = true // contacts use it no more, or again
		}
		r.Store, r.Draining, d.row = info.Store[:], drains, r
		if err := store.OwnRelays.Put(tx, store.PeerKey(d.t), r); err != nil {
			return err
		}
		return n.planQueues(tx, d.t, r)
	})
}

// doubt has what waits for receipts left once more if this relay, at which some
// may have been left, lost its store. It comes before that is noted, so that a
// crash does not prevent it.
func (d *tending) doubt(now [relay.StoreIDSize]byte) error {
	lost := false
	err := d.n.store.View(func(tx *store.Tx) error {
		r, err := store.OwnRelays.Get(tx, store.PeerKey(d.t))
		lost = err == nil && len(r.Store) > 0 && !slices.Equal(r.Store, now[:])
		return err
	})
	for more := lost; more && err == nil; {
		err = d.n.store.Update(func(tx *store.Tx) (err error) {
			more, err = d.n.outbox.Doubt(tx)
			return err
		})
	}
	return err
}

// ownRow is a queue of this user with its place.
type ownRow struct {
	id  relay.QueueID
	row *store.OwnQueue
}

func (d *tending) rows() (list []ownRow, err error) {
	err = d.n.store.View(func(tx *store.Tx) error {
		for row, err := range store.OwnQueues.Scan(tx, store.OwnQueuesAt(d.t), nil) {
			if err != nil {
				return err
			}
			list = append(list, ownRow{row.Key.Queue(), row.Value})
		}
		return nil
	})
	return list, err
}

// queues makes, renews and drops queues.
func (d *tending) queues(ctx context.Context) error {
	rows, err := d.rows()
	if err != nil {
		return err
	}
	var renew []relay.QueueID
	for _, q := range rows {
		known, ok := d.c.Queue(q.id)
		ok = ok && known.Known
		switch {
		case q.row.Over:
			err = d.drop(ctx, q, ok)
		case !ok:
			err = d.make(ctx, q)
		case known.Expires.Sub(d.c.Time()) < protocol.QueueLife/2:
			renew = append(renew, q.id)
		case known.Expires.Unix() != q.row.Expires:
			err = d.made(q.id, known.Expires)
		}
		if errors.Is(err, client.ErrDraining) {
			err = nil // those that are there are read on
		}
		if err != nil {
			return err
		}
	}
	if len(renew) == 0 || d.row.Draining != 0 {
		return nil
	}
	renewed, err := d.c.Renew(ctx, renew, d.c.Time().Add(protocol.QueueLife))
	if err != nil {
		return fmt.Errorf("renewing queues: %w", err)
	}
	for _, q := range renewed {
		if err := d.made(q.ID, q.Expires); err != nil {
			return err
		}
	}
	return nil
}

// make makes a queue at the relay, or attaches it if it is there.
func (d *tending) make(ctx context.Context, q ownRow) error {
	key, err := readerKey(q.row)
	if err != nil {
		return err
	}
	want := client.NewQueue{Kind: wire.QueueKind_QUEUE_KIND_BOX, Expires: d.c.Time().Add(protocol.QueueLife)}
	if len(q.row.Contact) > 0 {
		capability, err := relay.CapabilityFrom(q.row.Capability)
		if err != nil {
			return fmt.Errorf("reading a queue of this account: %w", store.ErrDamaged)
		}
		want.Kind, want.Capability = wire.QueueKind_QUEUE_KIND_PAIRWISE, &capability
	}
	copy(want.Admission[:], d.row.Admission)
	made, err := d.c.Create(ctx, key, want)
	if err != nil {
		return fmt.Errorf("making a queue: %w", err)
	}
	return d.made(q.id, made.Expires)
}

// made notes that a queue is at the relay, and until when.
func (d *tending) made(id relay.QueueID, expires time.Time) error {
	return d.n.store.Update(func(tx *store.Tx) error {
		row, err := store.OwnQueues.Get(tx, store.OwnQueueKey(d.t, id))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		d.fresh = d.fresh || row.Expires == 0
		row.Expires = expires.Unix()
		return store.OwnQueues.Put(tx, store.OwnQueueKey(d.t, id), row)
	})
}

// drop deletes a queue that nobody needs, there and then here.
func (d *tending) drop(ctx context.Context, q ownRow, known bool) error {
	if known {
		if err := d.c.Drop(ctx, q.id); err != nil && !errors.Is(err, client.ErrRefused) {
			return fmt.Errorf("dropping a queue: %w", err)
		}
	}
	return d.n.store.Update(func(tx *store.Tx) error {
		return store.OwnQueues.Delete(tx, store.OwnQueueKey(d.t, q.id))
	})
}

// leave ends a relay that is being left when its time is over: its queues are
// dropped at the next look, and then it is forgotten.
func (d *tending) leave() error {
	n := d.n
	if n.cfg.Now().Sub(time.UnixMilli(d.row.Leaving)) < leavingLife {
		return nil
	}
	return n.store.Update(func(tx *store.Tx) error {
		left := false
		for row, err := range store.OwnQueues.Scan(tx, store.OwnQueuesAt(d.t), nil) {
			if err != nil {
				return err
			}
			left, row.Value.Over = true, true
			if err := store.OwnQueues.Put(tx, row.Key, row.Value); err != nil {
				return err
			}
		}
		tx.OnCommit(n.relaysChanged)
		if left {
			return nil
		}
		if err := n.record(tx, &store.Event{Type: "relay", State: "removed", Text: peerOf(d.t).String()}, nil); err != nil {
			return err
		}
		return store.OwnRelays.Delete(tx, store.PeerKey(d.t))
	})
}

// box returns the contact box, nil if it is not made yet.
func (d *tending) box() (q *store.OwnQueue, id relay.QueueID, err error) {
	err = d.n.store.View(func(tx *store.Tx) (err error) {
		q, id, err = ownQueue(tx, d.t, nil)
		return err
	})
	if q != nil && q.Expires == 0 {
		q = nil
	}
	return q, id, err
}

// access tells the relay which invite tokens the box admits: those of open
// links, the newest first if there are too many.
func (d *tending) access(ctx context.Context, box *store.OwnQueue, id relay.QueueID) error {
	n, now := d.n, d.n.cfg.Now()
	var open []*store.Invite
	err := n.store.View(func(tx *store.Tx) error {
		for r, err := range store.Invites.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if inviteOpen(r.Value, now) && len(r.Value.Token) == identity.TokenSize {
				open = append(open, r.Value)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(open, func(a, b *store.Invite) int { return int(b.Created - a.Created) })
	h := sha256.New()
	var tokens []identity.Token
	for _, i := range open[:min(len(open), protocol.MaxTokens)] {
		tokens = append(tokens, identity.Token(i.Token))
		h.Write(i.Id)
	}
	mark := h.Sum(nil)
	if slices.Equal(mark, box.Tokens) || d.row.Draining != 0 {
		return nil
	}
	if err := d.c.SetAccess(ctx, id, client.Access{Tokens: tokens}); err != nil {
		return fmt.Errorf("admitting the bearers of links: %w", err)
	}
	return n.store.Update(func(tx *store.Tx) error {
		row, err := store.OwnQueues.Get(tx, store.OwnQueueKey(d.t, id))
		if err != nil {
			return err
		}
		row.Tokens = mark
		return store.OwnQueues.Put(tx, store.OwnQueueKey(d.t, id), row)
	})
}

// keysEvery is the pause between two looks at how many one-time keys a relay
// has.
const keysEvery = time.Hour

// keys fills the pool of one-time keys when half of it is gone.
func (d *tending) keys(ctx context.Context, box relay.QueueID) error {
	n, now := d.n, d.n.cfg.Now()
	if d.row.Draining != 0 || d.row.Repeats || now.Sub(time.UnixMilli(d.row.KeysPut)) < keysEvery {
		return nil
	}
	var pool *relay.Pool
	err := n.store.View(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err == nil {
			pool = relay.NewPool(n.account(), identity.LookupSecret(me.LookupSecret), d.t, box)
		}
		return err
	})
	if err != nil {
		return err
	}
	held, err := d.c.CountKeys(ctx, box, pool.ID())
	if err != nil {
		return fmt.Errorf("counting one-time keys: %w", err)
	}
	for range protocol.PoolKeys / protocol.MaxPutKeys { // whatever the relay says that it has
		if held > protocol.PoolKeys/2 {
			break
		}
		var blobs [][]byte
		err := n.store.Update(func(tx *store.Tx) error {
			bundles, err := n.sessions.MintPool(tx, now, d.t, min(protocol.PoolKeys-held, protocol.MaxPutKeys))
			if err != nil {
				return err
			}
			for _, b := range bundles {
				blob, err := pool.Seal(n.cfg.Rand, b)
				if err != nil {
					return err
				}
				blobs = append(blobs, blob)
			}
			return nil
		})
		if err != nil {
			return err
		}
		held, err = d.c.PutKeys(ctx, box, pool.ID(), blobs, d.c.Time().Add(protocol.PoolKeyLife))
		if errors.Is(err, client.ErrQuota) {
			break // first contact goes on without
		}
		if err != nil {
			return fmt.Errorf("leaving one-time keys: %w", err)
		}
	}
	return d.change(func(r *store.OwnRelay) { r.KeysPut = now.UnixMilli() })
}

// change changes the relay's row.
func (d *tending) change(fn func(*store.OwnRelay)) error {
	return d.n.store.Update(func(tx *store.Tx) error {
		r, err := store.OwnRelays.Get(tx, store.PeerKey(d.t))
		if err != nil {
			return err
		}
		fn(r)
		return store.OwnRelays.Put(tx, store.PeerKey(d.t), r)
	})
}

// records leaves the records of today and of the coming days, if they say
// something else than those that are there.
func (d *tending) records(ctx context.Context, box relay.QueueID) error {
	n, now := d.n, d.n.cfg.Now()
	if d.row.Draining != 0 {
		return nil
	}
	mark, err := n.recordMark(now)
	if err != nil || slices.Equal(mark, d.row.Records) {
		return err
	}
	var ahead [][]byte
	today := prekey.DayOf(now)
	for day := today; day <= today+protocol.DaysAhead; day++ {
		list, err := n.recordsOf(now, day)
		if err != nil {
			return err
		}
		for _, r := range list {
			ahead = append(ahead, r.Bytes)
		}
	}
	first := true
	for part := range slices.Chunk(ahead, protocol.MaxPutRecords) {
		_, err := d.c.PutRecords(ctx, box, part, first)
		if errors.Is(err, client.ErrMalformed) || errors.Is(err, client.ErrQuota) {
			break // it publishes none, or not so many
		}
		if err != nil {
			return fmt.Errorf("leaving records: %w", err)
		}
		first = false
	}
	return d.change(func(r *store.OwnRelay) { r.Records = mark })
}

// recordMark names what the records made ahead say, and the day from which on
// they are.
func (n *Node) recordMark(now time.Time) ([]byte, error) {
	h := sha256.New()
	err := n.store.Update(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err != nil {
			return err
		}
		m, err := n.mailFor(tx, nil, allOf)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%d %d %x %x %x", prekey.DayOf(now), me.Generation, me.LookupSecret, wire.Marshal(m), n.endpoint(false).Addrs)
		return nil
	})
	return h.Sum(nil), err
}
