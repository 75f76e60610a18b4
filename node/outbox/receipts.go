package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
)

// Tuning of receipts for what came through relays.
const (
	receiptDelay = 5 * time.Second                     // from the first note to the receipt: a random part of it
	owedLife     = protocol.MessageLife + time.Hour*24 // of a note: its content has failed at its sender by then
	owedRetry    = time.Minute                         // after the store failed
)

// Receipt takes peer's word of what happened to earlier contents. It came
// inside a session, so it is as good as an acknowledgement of the content; which
// envelope of it was opened is not said, and so no session counts as
// acknowledged but the one that the receipt came on, which its opening saw to.
// IDs that are not of contents to this peer are ignored.
func (o *Outbox) Receipt(tx *store.Tx, peer identity.Account, r *envelope.Receipt) error {
	done := map[envelope.ID]bool{}
	for _, part := range []struct {
		ids   []envelope.ID
		state store.Entry_State
	}{{r.Delivered, store.Entry_DELIVERED}, {r.Read, store.Entry_READ}} {
		for _, id := range part.ids {
			was, err := o.advance(tx, peer, id, part.state, "")
			if err != nil {
				return err
			}
			switch was {
			case store.Entry_QUEUED, store.Entry_STORED, store.Entry_UNSPECIFIED: // the last may be a control content
				done[id] = true
			}
		}
	}
	return o.unqueue(tx, peer, done)
}

// unqueue deletes the outbox rows of contents to peer. It is one scan, however
// many IDs a peer makes up.
func (o *Outbox) unqueue(tx *store.Tx, peer identity.Account, ids map[envelope.ID]bool) error {
	if len(ids) == 0 {
		return nil
	}
	some := false
	for r, err := range store.Outbox.Scan(tx, store.OutboxOf(peer), nil) {
		if err != nil {
			return err
		}
		if len(r.Value.Id) != envelope.IDSize || !ids[envelope.ID(r.Value.Id)] {
			continue
		}
		some = true
		if err := discard(tx, r.Key, r.Value); err != nil {
			return err
		}
	}
	if some {
		tx.OnCommit(func() { o.nudge(peer) }) // the window has moved
	}
	return nil
}

// Owe notes that a content of peer that came through a relay was committed, in
// the transaction that commits it. Within 5 s, at random, one receipt for all
// that is noted by then is enqueued; until peer is accepted, nothing is. Owe it
// again when a copy comes of a content whose receipt may have been lost; never
// for a receipt.
func (o *Outbox) Owe(tx *store.Tx, now time.Time, peer identity.Account, id envelope.ID) error {
	err := store.OwedReceipts.Put(tx, store.OwedKey(peer, id), &store.Owed{Dies: now.Add(owedLife).UnixMilli()})
	if err != nil {
		return err
	}
	tx.OnCommit(func() { o.promise(peer) })
	return nil
}

// promise has Run look for receipts that peer is owed, within receiptDelay.
func (o *Outbox) promise(peer identity.Account) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Contains(o.promised, peer) {
		o.promised = append(o.promised, peer)
	}
	select {
	case o.owing <- struct{}{}:
	default:
	}
}

// release promises peer again what was not paid since peer was not accepted.
func (o *Outbox) release(peer identity.Account) {
	o.mu.Lock()
	waits := o.unpaid[peer]
	o.mu.Unlock()
	if waits {
		o.promise(peer)
	}
}

// promiseAll promises everybody for whom there are notes.
func (o *Outbox) promiseAll() error {
	return o.cfg.Store.View(func(tx *store.Tx) error {
		var last identity.Account
		for r, err := range store.OwedReceipts.Scan(tx, nil, nil) {
			if err != nil && !errors.Is(err, store.ErrDamaged) {
				return err
			}
			if p := r.Key.Account(); p != last {
				last = p
				o.promise(p)
			}
		}
		return nil
	})
}

// A promise is when somebody's receipts are due, by package time.
type promise struct {
	to identity.Account
	at time.Time
}

// acquit sends receipts as they fall due, until ctx ends.
func (o *Outbox) acquit(ctx context.Context) {
	if err := o.promiseAll(); err != nil {
		o.cfg.Log.Warn("receipts that are owed not read", "err", err)
	}
	var due []promise // in no order
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-o.owing:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		o.mu.Lock()
		promised := o.promised
		o.promised = nil
		o.mu.Unlock()
		now := time.Now()
		for _, p := range promised {
			if !slices.ContainsFunc(due, func(d promise) bool { return d.to == p }) {
				due = append(due, promise{p, now.Add(o.jitter(receiptDelay))})
			}
		}
		later := due[:0]
		for _, d := range due {
			if !d.at.After(now) {
				err := o.pay(d.to)
				if err == nil {
					continue
				}
				o.cfg.Log.Warn("receipts not sent", "err", err)
				d.at = now.Add(owedRetry)
			}
			later = append(later, d)
		}
		due = later
		if len(due) > 0 {
			first := slices.MinFunc(due, func(a, b promise) int { return a.at.Compare(b.at) })
			timer.Reset(time.Until(first.at))
		}
	}
}

// pay enqueues the receipts that peer is owed. What is owed to somebody who is
// not accepted yet stays noted.
func (o *Outbox) pay(peer identity.Account) error {
	o.mu.Lock()
	o.unpaid[peer] = true // before it looks, so that no acceptance is missed
	o.mu.Unlock()
	for {
		some := false
		err := o.cfg.Store.View(func(tx *store.Tx) error {
			for range store.OwedReceipts.Scan(tx, store.OwedTo(peer), nil) {
				some = true
				break
			}
			return nil
		})
		if err != nil {
			return err
		}
		if !some {
			o.mu.Lock()
			delete(o.unpaid, peer)
			o.mu.Unlock()
			return nil
		}
		paid := 0
		err = o.cfg.Store.Update(func(tx *store.Tx) error {
			paid, err = o.payOnce(tx, peer)
			return err
		})
		if err != nil || paid == 0 {
			return err
		}
	}
}

// payOnce enqueues one receipt, with as many IDs as it holds, and deletes their
// notes.
func (o *Outbox) payOnce(tx *store.Tx, peer identity.Account) (paid int, err error) {
	contact, err := store.Contacts.Get(tx, store.ContactKey(peer))
	nobody := errors.Is(err, store.ErrNotFound)
	if err != nil && !nobody {
		return 0, err
	}
	owed := contact.GetState() == store.Contact_ACCEPTED
	if !owed && !nobody && contact.GetState() != store.Contact_BLOCKED {
		return 0, nil
	}
	var ids []envelope.ID
	for r, err := range store.OwedReceipts.Scan(tx, store.OwedTo(peer), nil) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return 0, err
		}
		ids = append(ids, envelope.ID(r.Key[identity.KeySize:]))
		if err := store.OwedReceipts.Delete(tx, r.Key); err != nil {
			return 0, err
		}
		if len(ids) == protocol.MaxReceipt {
			break
		}
	}
	if len(ids) == 0 || !owed {
		return len(ids), nil
	}
	c := &envelope.Content{Receipt: &envelope.Receipt{Delivered: ids}}
	if _, err := io.ReadFull(o.cfg.Rand, c.ID[:]); err != nil {
		return 0, fmt.Errorf("drawing a content ID: %w", err)
	}
	_, _, err = o.Enqueue(tx, o.cfg.Now(), peer, c)
	return len(ids), err
}
