package node

import (
	"errors"
	"slices"
	"time"

	"starling/node/session"
	"starling/node/store"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// waiting says in plain words what contents for a wait for, or nothing if none
// waits or nothing is known yet.
func (n *Node) waiting(a identity.Account) string {
	r, ok := n.outbox.Report(a)
	switch {
	case !ok:
		return ""
	case r.Held:
		return "waiting for them to accept"
	case errors.Is(r.Deposit.Err, errLong): // whatever else is wrong
		return errLong.Error()
	case r.Err != nil && r.Deposit.Err != nil && r.Deposit.Relays > 0:
		return r.Err.Error() + "; of their relays, " + plainFault(r.Deposit.Err)
	case r.Err != nil:
		return r.Err.Error()
	}
	return ""
}

// queuedFor counts the messages to a that are not delivered yet.
func queuedFor(tx *store.Tx, a identity.Account) int {
	count := 0
	for row, err := range store.Outbox.Scan(tx, store.OutboxOf(a), nil) {
		if err == nil && !row.Value.Control {
			count++
		}
	}
	return count
}

// kickWaiting ends the pauses of everybody for whom something waits, because
// the network has changed.
func (n *Node) kickWaiting() {
	var all []identity.Account
	err := n.store.View(func(tx *store.Tx) error {
		for row, err := range store.Contacts.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			all = append(all, accountOf(row.Value))
		}
		return nil
	})
	if err != nil {
		n.log.Warn("reading who waits", "err", err)
		return
	}
	for _, a := range all {
		if _, ok := n.outbox.Report(a); ok {
			n.outbox.Kick(a)
		}
	}
}

// A sealer is the session manager as the outbox sees it. An acknowledgement
// also tells that the contact accepted this user, since receipts go to accepted
// contacts only.
type sealer struct {
	*session.Manager
	n *Node
}

// Acknowledged implements outbox.Sealer.
func (s sealer) Acknowledged(tx *store.Tx, now time.Time, id [32]byte) error {
	if err := s.Manager.Acknowledged(tx, now, id); err != nil {
		return err
	}
	owner, err := store.SessionOwners.Get(tx, store.SessionOwnerKey(id))
	if err != nil {
		return nil //nolint:nilerr // the session is gone, and whose it was is not known
	}
	c, err := store.Contacts.Get(tx, store.ContactKey(store.RowKey(owner.Data).Account()))
	if err != nil || c.State != store.Contact_PENDING && c.State != store.Contact_REQUESTED {
		return nil //nolint:nilerr // so is the contact
	}
	return s.n.acceptedUs(tx, c)
}

// noteHeld notes that a contact who was not found until now has got a first
// message and has not accepted yet.
func (n *Node) noteHeld(a identity.Account, outcomes []*wire.Outcome) error {
	if !slices.ContainsFunc(outcomes, func(o *wire.Outcome) bool { return o.GetStatus() == wire.Status_STATUS_HELD }) {
		return nil
	}
	return n.store.Update(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(a))
		if err != nil || !advance(c, evOpened) {
			return err
		}
		if err := saveContact(tx, c); err != nil {
			return err
		}
		return n.record(tx, &store.Event{Type: "contact", State: stateName(c.State)}, c)
	})
}
