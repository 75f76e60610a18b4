package node

import (
	"errors"
	"slices"

	"google.golang.org/protobuf/proto"

	"starling/node/store"
	"starling/protocol/identity"
)

// emptyAtOnce bounds how many rows one transaction deletes.
const emptyAtOnce = 1000

// forget deletes a contact and what hangs on it: name, sessions, queues, what
// waits or is owed, and the chat. What stays for some weeks are the handshakes and
// one-time keys that they used, so that nobody can use them again. It is for
// contacts with few rows; see empty for the others.
func (n *Node) forget(tx *store.Tx, c *store.Contact) error {
	if _, err := empty(tx, accountOf(c)); err != nil {
		return err
	}
	if err := unhouse(tx, accountOf(c)); err != nil {
		return err
	}
	if err := store.Names.Delete(tx, store.NameKey(fold(c.Name))); err != nil {
		return err
	}
	if err := store.Contacts.Delete(tx, c.Account); err != nil {
		return err
	}
	a := accountOf(c)
	tx.OnCommit(func() { n.routes.drop(a) })
	return n.record(tx, &store.Event{Type: "contact", State: "removed"}, c)
}

// empty deletes rows that hang on an account, and reports whether there may be
// more.
func empty(tx *store.Tx, a identity.Account) (more bool, err error) {
	left := emptyAtOnce
	err = wipe(tx, store.Outbox, store.OutboxOf(a), &left, func(_ store.RowKey, row *store.Outgoing) error {
		if len(row.Hash) == 0 {
			return nil
		}
		return store.Unacked.Delete(tx, row.Hash)
	})
	if err == nil {
		err = wipe(tx, store.Sessions, store.SessionsOf(a), &left, func(k store.RowKey, _ *store.Session) error {
			if err := store.SessionOwners.Delete(tx, store.SessionOwnerKey(k.Session())); err != nil {
				return err
			}
			return wipe(tx, store.SkippedKeys, store.SkippedOf(k.Session()), &left, nil)
		})
	}
	if err == nil {
		err = wipe(tx, store.History, store.HistoryOf(a), &left, func(_ store.RowKey, row *store.Entry) error {
			// The ID may lead to another chat, whose line keeps it.
			key := store.MessageKey([16]byte(row.Id))
			ref, err := store.Messages.Get(tx, key)
			if errors.Is(err, store.ErrNotFound) || err == nil && !slices.Equal(ref.Account, a[:]) {
				return nil
			}
			return errors.Join(err, store.Messages.Delete(tx, key))
		})
	}
	if err == nil {
		err = wipe(tx, store.SeenIDs, a[:], &left, nil)
	}
	if err == nil {
		err = wipe(tx, store.OwedReceipts, store.OwedTo(a), &left, nil)
	}
	if err == nil {
		err = purge(tx, store.ReceivedEnvelopes, &left, func(r *store.Received) bool { return slices.Equal(r.Account, a[:]) })
	}
	if err == nil {
		err = purge(tx, store.Answers, &left, func(r *store.Answer) bool { return slices.Equal(r.Account, a[:]) })
	}
	return left <= 0, err
}

// purge deletes up to left rows of a table that fit.
func purge[T any, P interface {
	*T
	proto.Message
}](tx *store.Tx, table store.Table[T, P], left *int, fits func(P) bool) error {
	for row, err := range table.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		if !fits(row.Value) {
			continue
		}
		if *left <= 0 {
			return nil
		}
		*left--
		if err := table.Delete(tx, row.Key); err != nil {
			return err
		}
	}
	return nil
}

// unhouse gives up the queues of a contact, and takes the account from the rows
// that stay until their relays have dropped them, and from the links it used.
func unhouse(tx *store.Tx, a identity.Account) error {
	for row, err := range store.OwnQueues.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		if q := row.Value; slices.Equal(q.Contact, a[:]) {
			over := &store.OwnQueue{Seed: q.Seed, Expires: q.Expires, Over: true}
			if err := store.OwnQueues.Put(tx, row.Key, over); err != nil {
				return err
			}
		}
	}
	for row, err := range store.Invites.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		if i := row.Value; slices.Equal(i.UsedBy, a[:]) {
			i.UsedBy = make([]byte, identity.KeySize) // used, by nobody who is known
			if err := store.Invites.Put(tx, row.Key, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// blank takes from the journal's events after since what they say of an account,
// and returns the last event it looked at, or 0 at the end. The events stay:
// the journal has no gaps.
func blank(tx *store.Tx, a identity.Account, since uint64) (last uint64, err error) {
	left := emptyAtOnce
	for row, err := range store.Journal.Scan(tx, nil, store.JournalKey(since+1)) {
		if err != nil {
			return 0, err
		}
		if left--; left < 0 {
			return last, nil
		}
		last = row.Key.Order()
		if e := row.Value; slices.Equal(e.Account, a[:]) {
			bare := &store.Event{Type: e.Type, Time: e.Time, State: e.State}
			if err := store.Journal.Put(tx, row.Key, bare); err != nil {
				return 0, err
			}
		}
	}
	return 0, nil
}

// wipe deletes up to left rows of a table under a prefix, and with each what
// also says.
func wipe[T any, P interface {
	*T
	proto.Message
}](tx *store.Tx, table store.Table[T, P], prefix store.RowKey, left *int, also func(store.RowKey, P) error) error {
	for row, err := range table.Scan(tx, prefix, nil) {
		if err != nil {
			return err
		}
		if *left <= 0 {
			return nil
		}
		*left--
		if also != nil {
			if err := also(row.Key, row.Value); err != nil {
				return err
			}
		}
		if err := table.Delete(tx, row.Key); err != nil {
			return err
		}
	}
	return nil
}
