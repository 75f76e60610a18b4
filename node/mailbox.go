package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// At each relay this user has a contact box, which the record names to
// strangers, and a queue for each contact, which nobody else is told of.

// inUse reports whether contacts and strangers are told of a relay.
func inUse(row *store.OwnRelay) bool { return row.Leaving == 0 && row.Draining == 0 && !row.Repeats }

// wantsQueue reports whether c has a queue at each relay. Who only asks has
// none: what they send goes into the contact box.
func wantsQueue(c *store.Contact) bool {
	return c.State != store.Contact_REQUEST && c.State != store.Contact_BLOCKED
}

// planQueues makes the rows of the queues that this user needs at a relay, and
// marks those that nobody needs. The relay makes and drops them later.
func (n *Node) planQueues(tx *store.Tx, t identity.Transport, r *store.OwnRelay) error {
	need := map[string]bool{"": true} // the contact box
	for row, err := range store.Contacts.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		need[string(row.Value.Account)] = wantsQueue(row.Value)
	}
	has := map[string]bool{}
	for row, err := range store.OwnQueues.Scan(tx, store.OwnQueuesAt(t), nil) {
		if err != nil {
			return err
		}
		q := row.Value
		if q.Over {
			continue
		}
		has[string(q.Contact)] = true
		if !need[string(q.Contact)] {
			q.Over = true
			if err := store.OwnQueues.Put(tx, row.Key, q); err != nil {
				return err
			}
		}
	}
	if r.Leaving != 0 {
		return nil // what is on its way there is read still
	}
	for contact, needed := range need {
		if !needed || has[contact] {
			continue
		}
		if err := n.newQueue(tx, t, []byte(contact)); err != nil {
			return err
		}
	}
	return nil
}

// newQueue draws the keys of a queue: for a contact, or without one the contact
// box.
func (n *Node) newQueue(tx *store.Tx, t identity.Transport, contact []byte) error {
	seed, err := identity.NewSecret(n.cfg.Rand)
	if err != nil {
		return err
	}
	k := relay.NewReaderKey(seed)
	row := &store.OwnQueue{Seed: seed.Bytes(), Contact: contact}
	if len(contact) > 0 {
		c, err := relay.NewCapability(n.cfg.Rand)
		if err != nil {
			return err
		}
		row.Capability = c.Bytes()
	}
	return store.OwnQueues.Put(tx, store.OwnQueueKey(t, k.Reader().Queue()), row)
}

// mailFor returns where a contact leaves what cannot be delivered, or for a nil
// contact where strangers do: queues that the relays have made, and those of the
// sealing keys, from this week's on, that some chooses. Without a relay it is
// empty, which tells whoever reads it to forget those of before.
func (n *Node) mailFor(tx *store.Tx, contact []byte, some func(sealing [][]byte) [][]byte) (*wire.Mail, error) {
	var m relay.Mail
	for r, err := range store.OwnRelays.Scan(tx, nil, nil) {
		if err != nil {
			return nil, err
		}
		if !inUse(r.Value) || len(m.Mailboxes) == protocol.MaxRelays {
			continue
		}
		q, id, err := ownQueue(tx, r.Key.Relay(), contact)
		if err != nil {
			return nil, err
		}
		if q == nil || q.Expires == 0 {
			continue
		}
		box := relay.Mailbox{Relay: identity.Endpoint{Transport: r.Key.Relay(), Addrs: r.Value.Addrs}, Queue: id}
		if len(q.Capability) > 0 {
			c, err := relay.CapabilityFrom(q.Capability)
			if err != nil {
				return nil, fmt.Errorf("reading a queue of this account: %w", store.ErrDamaged)
			}
			box.Capability = &c
		}
		m.Mailboxes = append(m.Mailboxes, box)
	}
	if len(m.Mailboxes) > 0 {
		sealing, err := n.sessions.SealingKeys(tx, n.cfg.Now())
		if err != nil {
			return nil, err
		}
		m.Sealing = some(sealing)
	}
	return m.Wire(len(contact) > 0)
}

// makeTime is how long a first message waits for the relays to make the queues
// that it names.
const makeTime = 10 * time.Second

// awaitQueues waits until every relay that answers has made the queue of a
// contact, for makeTime at most. What a first message names is where answers are
// left: news of further queues is on the session that it opens, and as long as
// nobody has answered is too long for a contact box. So whoever named one relay
// only would hear nothing if that one were lost.
func (n *Node) awaitQueues(ctx context.Context, a identity.Account) {
	ctx, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		made, err := n.queuesMade(a)
		if made || err != nil {
			return // the store says the same to whoever goes on
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// queuesMade reports whether every relay in use has made the queue of a contact,
// or has failed to.
func (n *Node) queuesMade(a identity.Account) (all bool, err error) {
	all = true
	err = n.store.View(func(tx *store.Tx) error {
		for r, err := range store.OwnRelays.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			st, reads := n.readers.status(r.Key.Relay())
			failed := reads && (st.TendError != nil || st.LastError != nil && !st.Connected)
			if !inUse(r.Value) || failed {
				continue
			}
			q, _, err := ownQueue(tx, r.Key.Relay(), a[:])
			if err != nil {
				return err
			}
			all = all && q != nil && q.Expires != 0
		}
		return nil
	})
	return all, err
}

// ownQueue returns the queue of a contact at a relay, or the contact box, and
// its ID; nil if there is none.
func ownQueue(tx *store.Tx, t identity.Transport, contact []byte) (*store.OwnQueue, relay.QueueID, error) {
	for row, err := range store.OwnQueues.Scan(tx, store.OwnQueuesAt(t), nil) {
		if err != nil {
			return nil, relay.QueueID{}, err
		}
		if q := row.Value; !q.Over && slices.Equal(q.Contact, contact) {
			return q, row.Key.Queue(), nil
		}
	}
	return nil, relay.QueueID{}, nil
}

// readerKey returns the key that reads a queue.
func readerKey(q *store.OwnQueue) (*relay.ReaderKey, error) {
	seed, err := identity.SecretFrom(q.Seed)
	if err != nil {
		return nil, fmt.Errorf("reading a queue of this account: %w", store.ErrDamaged)
	}
	return relay.NewReaderKey(seed), nil
}

// allOf is for contacts, who are told of the keys of the coming weeks too.
func allOf(sealing [][]byte) [][]byte { return sealing }

// ofDay chooses the key of a day's week, for its record.
func ofDay(now time.Time, day uint32) func([][]byte) [][]byte {
	return func(sealing [][]byte) [][]byte {
		i := int(envelope.WeekOf(prekey.DayStart(day))) - int(envelope.WeekOf(now))
		if i < 0 || i >= len(sealing) {
			return nil
		}
		return sealing[i : i+1]
	}
}
