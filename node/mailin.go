package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"starling/node/relay/client"
	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// readers read this user's relays, one each.
type readers struct {
	mu sync.Mutex // guards m; never held across a wait
	m  map[identity.Transport]*reading
}

// A reading is a reader that runs.
type reading struct {
	*client.Reader
	addrs [][]byte
	stop  func() // and waits until it has stopped
}

// status returns how the reader of a relay stands.
func (r *readers) status(t identity.Transport) (client.Status, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x, ok := r.m[t]
	if !ok {
		return client.Status{}, false
	}
	return x.Status(), true
}

// kick has every relay looked after soon.
func (r *readers) kick() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.m {
		x.Kick()
	}
}

// relaysChanged has relays read that were added, others not any more, and what
// is at them looked after.
func (n *Node) relaysChanged() {
	select {
	case n.relayRows <- struct{}{}:
	default: // it is noted already
	}
	n.readers.kick()
}

// readRelays reads this user's relays until ctx ends.
func (n *Node) readRelays(ctx context.Context) error {
	defer n.readers.closeAll()
	daily := time.NewTicker(24 * time.Hour)
	defer daily.Stop()
	for {
		if err := errors.Join(n.forgetDead(), n.startReaders(ctx)); err != nil {
			n.log.Warn("reading which relays there are", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.relayRows:
		case <-daily.C:
		}
	}
}

// startReaders starts what is missing, and stops what is not wanted any more.
func (n *Node) startReaders(ctx context.Context) error {
	want := map[identity.Transport][][]byte{}
	err := n.store.View(func(tx *store.Tx) error {
		for r, err := range store.OwnRelays.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			want[r.Key.Relay()] = r.Value.Addrs
		}
		return nil
	})
	if err != nil {
		return err
	}
	for t, x := range n.readers.all() {
		if addrs, ok := want[t]; ok && slices.EqualFunc(addrs, x.addrs, slices.Equal) {
			delete(want, t)
			continue
		}
		x.stop()
		n.readers.set(t, nil)
	}
	for t, addrs := range want {
		if err := n.startReader(ctx, t, addrs); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) startReader(ctx context.Context, t identity.Transport, addrs [][]byte) error {
	r, err := client.NewReader(client.ReaderConfig{
		Relay:  identity.Endpoint{Transport: t, Addrs: addrs},
		Hosts:  n.hosts,
		Queues: func() ([]*relay.ReaderKey, error) { return n.readerKeys(t) },
		Tend:   func(ctx context.Context, c *client.Conn) error { return n.tend(ctx, t, c) },
		Take: func(_ context.Context, entries []client.Entry) ([]client.Entry, int, error) {
			return n.takeMail(t, entries)
		},
		Now: n.cfg.Now, Rand: n.cfg.Rand, Log: n.log,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{}) // closed below
	go func() {
		defer close(ended)
		if err := r.Run(ctx); err != nil && ctx.Err() == nil {
			n.log.Error("a relay is not read any more", "err", err)
		}
	}()
	n.readers.set(t, &reading{Reader: r, addrs: addrs, stop: func() { cancel(); <-ended }})
	return nil
}

func (r *readers) all() map[identity.Transport]*reading {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := make(map[identity.Transport]*reading, len(r.m))
	for t, x := range r.m {
		m[t] = x
	}
	return m
}

func (r *readers) set(t identity.Transport, x *reading) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[identity.Transport]*reading{}
	}
	if x == nil {
		delete(r.m, t)
		return
	}
	r.m[t] = x
}

func (r *readers) closeAll() {
	for t, x := range r.all() {
		x.stop()
		r.set(t, nil)
	}
}

// readerKeys returns the keys of the queues at a relay that were not given up.
func (n *Node) readerKeys(t identity.Transport) (keys []*relay.ReaderKey, err error) {
	err = n.store.View(func(tx *store.Tx) error {
		for row, err := range store.OwnQueues.Scan(tx, store.OwnQueuesAt(t), nil) {
			if err != nil {
				return err
			}
			k, err := readerKey(row.Value)
			if err != nil {
				return err
			}
			keys = append(keys, k)
		}
		return nil
	})
	return keys, err
}

// takeMail commits what a relay brought, in as few transactions as hold it, and
// returns what may be deleted there, and how much of that was of no use.
func (n *Node) takeMail(t identity.Transport, entries []client.Entry) (done []client.Entry, useless int, err error) {
	for len(entries) > 0 {
		took, vain := 0, 0
		var over []client.Entry
		err := n.store.Update(func(tx *store.Tx) error {
			took, vain, over = 0, 0, nil
			for _, e := range entries {
				var f fate
				err := tx.Try(func(tx *store.Tx) (err error) {
					f, err = n.takeEntry(tx, t, e)
					return err
				})
				switch {
				case errors.Is(err, store.ErrTooBig) && took > 0:
					return nil // the next transaction has room for it
				case errors.Is(err, store.ErrTooBig):
					n.log.Error("an entry of a relay does not fit into a transaction", "size", len(e.Blob))
					f = gone
				case errors.Is(err, errHold): // shown again, when there may be room
				case err != nil:
					return err
				}
				took++
				if f != stays {
					over = append(over, e)
					n.held.drop(t, e)
				}
				if f == waste {
					vain++
				}
			}
			return nil
		})
		if err != nil {
			return done, useless, err
		}
		done, useless, entries = append(done, over...), useless+vain, entries[took:]
	}
	return done, useless, nil
}

// A fate is what becomes of an entry at a relay.
type fate int

const (
	stays fate = iota
	gone       // it is of no more use there
	waste      // and never was: it says nothing to this user, or said it before
)

// Bounds on what stays at one relay until the user decides about its senders: a
// contact box has room for protocol.BoxMessages.
const (
	maxHeld   = 32
	maxHeldOf = 8 // one sender
)

// held knows what stays at relays. The zero value knows of nothing; after a start
// all of it is shown again.
type held struct {
	mu sync.Mutex // guards m; never held across a wait
	m  map[identity.Transport]map[heldKey]heldEntry
}

type heldKey struct {
	queue relay.QueueID
	id    uint64
}

type heldEntry struct {
	from  identity.Account
	until time.Time // by which the relay has deleted it
}

// keep reports whether an entry is to stay at a relay.
func (h *held) keep(t identity.Transport, e client.Entry, from identity.Account, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, k := h.m[t], heldKey{e.Queue, e.ID}
	if _, ok := at[k]; ok {
		return true
	}
	theirs := 0
	for other, x := range at {
		if now.After(x.until) {
			delete(at, other)
		} else if x.from == from {
			theirs++
		}
	}
	if len(at) >= maxHeld || theirs >= maxHeldOf {
		return false
	}
	if h.m == nil {
		h.m = map[identity.Transport]map[heldKey]heldEntry{}
	}
	if at == nil {
		at = map[heldKey]heldEntry{}
		h.m[t] = at
	}
	at[k] = heldEntry{from, now.Add(protocol.BoxLife)}
	return true
}

// drop forgets an entry that does not stay.
func (h *held) drop(t identity.Transport, e client.Entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.m[t], heldKey{e.Queue, e.ID})
}

// takeEntry opens what was left in a queue, and commits all that follows from it.
// The error is one of the store, or errHold: it is shown again.
func (n *Node) takeEntry(tx *store.Tx, t identity.Transport, e client.Entry) (fate, error) {
	q, err := store.OwnQueues.Get(tx, store.OwnQueueKey(t, e.Queue))
	if errors.Is(err, store.ErrNotFound) || err == nil && q.Over {
		return gone, nil // the queue was given up
	}
	if err != nil {
		return stays, err
	}
	now := n.cfg.Now()
	sealed, err := n.sessions.OpenSealed(tx, now, e.Queue, e.Blob)
	switch {
	case errors.Is(err, envelope.ErrSealed), errors.Is(err, session.ErrSeenSealed):
		return waste, nil
	case err != nil:
		return stays, err
	}
	useful, err := n.takeSealed(tx, now, t, q, &sealed)
	if errors.Is(err, errHold) && !n.held.keep(t, e, sealed.Manifest.Account, now) {
		err = nil // its sender has it still
	}
	if err != nil {
		return stays, err
	}
	if useful {
		return gone, nil
	}
	return waste, n.forgetSealed(tx, sealed.Manifest.Account, e.Blob)
}

// takeSealed takes what was in a sealed envelope. It is not useful if nothing
// follows from it.
func (n *Node) takeSealed(tx *store.Tx, now time.Time, t identity.Transport, q *store.OwnQueue, sealed *envelope.Opened) (useful bool, err error) {
	from := sealed.Manifest.Account
	if len(q.Contact) > 0 && !slices.Equal(q.Contact, from[:]) {
		return false, nil // the queue was for somebody else
	}
	inside, err := envelope.ParseRelayed(sealed.Envelope)
	if err != nil {
		return false, nil //nolint:nilerr // it is from a broken peer, and answered with nothing
	}
	if inside.Error != nil {
		return n.takeError(tx, now, from, inside.Error)
	}
	outcome, _, err := n.receive(tx, way{sealed: sealed, relay: t}, sealed.Envelope)
	return err == nil && outcome.Status != wire.Status_STATUS_DROPPED, err
}

// forgetSealed takes back the memory of a sealed envelope of which nothing
// follows, unless it is from a contact: others can make up any number of accounts.
// Brought again it comes to the same, and [Node.oweError] bounds what is answered.
func (n *Node) forgetSealed(tx *store.Tx, from identity.Account, sealed []byte) error {
	c, err := store.Contacts.Get(tx, store.ContactKey(from))
	if err == nil && c.State != store.Contact_BLOCKED && c.State != store.Contact_REQUEST {
		return nil
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return store.SeenSealed.Delete(tx, store.SeenSealedKey(envelope.HashOf(sealed)))
}

// takeError acts on a decryption error that came through a relay (SPEC §8.3), if
// it is one to act on.
func (n *Node) takeError(tx *store.Tx, now time.Time, from identity.Account, e *wire.DecryptionError) (acted bool, err error) {
	if len(e.Envelope) != len(envelope.Hash{}) {
		return false, nil
	}
	acted, err = n.sessions.HandleError(tx, now, from, envelope.Hash(e.Envelope), e)
	if acted {
		tx.OnCommit(func() { n.outbox.Kick(from) })
	}
	return acted, err
}

// Decryption errors that are left at relays (SPEC §8.3): at most maxAnswers an
// hour for contacts, and maxStrangers for all others; a quarter of them for one
// account, one for each session.
const (
	maxAnswers   = 64
	maxStrangers = 16
	answerMemory = time.Hour
)

// oweError notes a decryption error that the sender of an envelope is to be left.
// It stays noted for an hour after that, by which others are counted. Strangers,
// of whom there are as many as somebody makes up, take no place from contacts, and
// are answered within an hour or not at all.
func (n *Node) oweError(tx *store.Tx, now time.Time, u *session.Undecryptable) error {
	c, err := store.Contacts.Get(tx, store.ContactKey(u.Peer))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	row := &store.Answer{
		Account: u.Peer[:], Session: u.Answer.Session, Error: wire.Marshal(u.Answer), Dies: now.Add(protocol.MessageLife).UnixMilli(),
		Stranger: c == nil || c.State == store.Contact_REQUEST,
	}
	if u.New != nil {
		row.Manifest = u.New.ManifestBytes
		if u.New.Profile.Mail != nil {
			row.Mail = wire.Marshal(u.New.Profile.Mail)
		}
	}
	most := maxAnswers
	if row.Stranger {
		if len(row.Mail) == 0 {
			return nil // it could be left nowhere
		}
		most, row.Dies = maxStrangers, now.Add(answerMemory).UnixMilli()
	}
	all, theirs := 0, 0
	for other, err := range store.Answers.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		a := other.Value
		switch {
		case a.Dies <= now.UnixMilli() || a.Stranger != row.Stranger:
			continue
		case slices.Equal(a.Session, row.Session):
			return nil
		case slices.Equal(a.Account, row.Account):
			theirs++
		}
		all++
	}
	if all >= most || theirs >= most/4 {
		return nil
	}
	tx.OnCommit(func() {
		select {
		case n.answers <- struct{}{}:
		default: // it is noted already
		}
	})
	return store.Answers.Put(tx, store.UnackedKey([32]byte(u.Answer.Envelope)), row)
}
