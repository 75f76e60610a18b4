package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"starling/node/outbox"
	"starling/node/session"
	"starling/node/store"
	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// Bounds on what people who are not contacts can leave here.
const (
	maxRequests       = 100 // contact requests at once; further ones are dropped
	maxRequestEntries = 8   // messages of one request; further ones are dropped
)

// serveMessages answers deliveries, one after another.
func (n *Node) serveMessages(_ context.Context, conn *stream.Conn) error {
	for {
		b, err := conn.Read(protocol.MaxFrame)
		if err != nil {
			return err
		}
		var d wire.Delivery
		if err := wire.Parse(b, protocol.MaxFrame, &d); err != nil {
			return err
		}
		if len(d.Envelopes) == 0 || len(d.Envelopes) > protocol.MaxBatch {
			return fmt.Errorf("node: a delivery of %d envelopes", len(d.Envelopes))
		}
		var from *identity.Account
		if a, ok := n.routes.account(conn.Remote()); ok {
			from = &a
		}
		answer := &wire.DeliveryAnswer{Outcomes: make([]*wire.Outcome, len(d.Envelopes))}
		err = n.store.Update(func(tx *store.Tx) error {
			for i, e := range d.Envelopes {
				o, err := n.receive(tx, from, e)
				if err != nil {
					return err
				}
				answer.Outcomes[i] = o
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := conn.Write(wire.Marshal(answer)); err != nil {
			return err
		}
	}
}

// errDrop undoes what an envelope did and answers that it was dropped.
var errDrop = errors.New("node: dropped")

// receive opens one envelope and commits all that follows from it, or nothing.
// The error is one of the store.
func (n *Node) receive(tx *store.Tx, from *identity.Account, e []byte) (*wire.Outcome, error) {
	outcome := &wire.Outcome{Status: wire.Status_STATUS_DROPPED}
	err := tx.Try(func(tx *store.Tx) error {
		now := time.Now()
		o, err := n.sessions.Open(tx, now, from, e)
		if again, ok := errors.AsType[*session.Duplicate](err); ok {
			o = session.Opened{Peer: again.Peer, Ack: again.Ack}
		} else if err != nil {
			return err
		}
		c, err := n.sender(tx, now, &o)
		if err != nil {
			return err
		}
		if o.Content != nil {
			if err := n.take(tx, now, c, o.Content); err != nil {
				return err
			}
		}
		if c.State == store.Contact_REQUEST {
			outcome.Status = wire.Status_STATUS_HELD // receipts go to accepted contacts only
			return nil
		}
		outcome.Status, outcome.Ack = wire.Status_STATUS_DELIVERED, o.Ack[:]
		return nil
	})
	bad, undecryptable := errors.AsType[*session.Undecryptable](err)
	switch {
	case err == nil:
		return outcome, nil
	case undecryptable:
		n.log.Info("an envelope does not open", "reason", bad.Answer.Reason)
		return &wire.Outcome{Status: wire.Status_STATUS_ERROR, Error: bad.Answer}, nil
	case errors.Is(err, session.ErrDrop), errors.Is(err, errDrop):
		return &wire.Outcome{Status: wire.Status_STATUS_DROPPED}, nil
	}
	return nil, err
}

// sender returns the contact that an opened envelope is from. A first message
// may make one: accepted if it proves an open invite's token, and otherwise a
// request.
func (n *Node) sender(tx *store.Tx, now time.Time, o *session.Opened) (*store.Contact, error) {
	c, err := store.Contacts.Get(tx, store.ContactKey(o.Peer))
	switch {
	case errors.Is(err, store.ErrNotFound) && o.New == nil:
		return nil, errDrop // a contact that was removed, on a session that outlived it
	case errors.Is(err, store.ErrNotFound):
		c = &store.Contact{Account: o.Peer[:], Added: now.UnixMilli()}
	case err != nil:
		return nil, err
	}
	if c.State == store.Contact_BLOCKED {
		return nil, errDrop
	}
	c.LastSeen = now.UnixMilli()
	if o.New == nil {
		return c, saveContact(tx, c)
	}
	return c, n.introduced(tx, now, c, o)
}

// introduced takes over what a first message says of its sender.
func (n *Node) introduced(tx *store.Tx, now time.Time, c *store.Contact, o *session.Opened) error {
	invite, err := n.admits(tx, now, o)
	if err != nil {
		return err
	}
	was := c.State
	ev := evAsked
	if invite != nil {
		ev = evAdmitted
	}
	if was == store.Contact_UNSPECIFIED && ev == evAsked {
		if full, err := requestsFull(tx); err != nil || full {
			return errors.Join(errDrop, err)
		}
	}
	advance(c, ev)
	if c.Name == "" {
		name := o.New.Profile.Name
		if name == "" {
			name = o.Peer.Short()
		}
		if err := n.rename(tx, c, name, false); err != nil {
			return err
		}
	}
	if err := n.learn(tx, c, o.New.ManifestBytes, o.New.Profile); err != nil {
		return err
	}
	if invite != nil && !invite.Public {
		invite.UsedBy = o.Peer[:]
		if err := store.Invites.Put(tx, invite.Id, invite); err != nil {
			return err
		}
	}
	if c.State == was {
		return nil
	}
	typ := "contact"
	if c.State == store.Contact_REQUEST {
		typ = "request"
	}
	if err := n.record(tx, &store.Event{Type: typ, State: stateName(c.State), Text: lookalike(tx, c)}, c); err != nil {
		return err
	}
	if c.State == store.Contact_ACCEPTED {
		return n.welcome(tx, c)
	}
	return nil
}

// admits returns the open one-use invite whose token a first message proves,
// or nil. A public invite's token admits nobody; its bearer asks.
func (n *Node) admits(tx *store.Tx, now time.Time, o *session.Opened) (*store.Invite, error) {
	if o.New.TokenID == nil {
		return nil, nil
	}
	invite, err := store.Invites.Get(tx, store.InviteKey(*o.New.TokenID))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if invite.Public || !inviteOpen(invite, now) || !o.CheckToken(identity.Token(invite.Token)) {
		return nil, nil
	}
	return invite, nil
}

func requestsFull(tx *store.Tx) (bool, error) {
	waiting := 0
	for row, err := range store.Contacts.Scan(tx, nil, nil) {
		if err != nil {
			return false, err
		}
		if row.Value.State == store.Contact_REQUEST {
			waiting++
		}
	}
	return waiting >= maxRequests, nil
}

// take acts on a content that was opened. A content that does not parse came
// from a broken peer: it is acknowledged, so that it is not sent for ever, and
// nothing is shown.
func (n *Node) take(tx *store.Tx, now time.Time, c *store.Contact, b []byte) error {
	content, err := envelope.ParseContent(b)
	if err != nil {
		n.log.Warn("a content does not parse", "err", err)
		return nil
	}
	key := store.SeenKey(accountOf(c), content.ID)
	if seen, err := store.SeenIDs.Has(tx, key); err != nil || seen {
		return err
	}
	if err := store.SeenIDs.Put(tx, key, &store.Seen{Dies: now.Add(protocol.DedupeLife).UnixMilli()}); err != nil {
		return err
	}
	c.PeerSeq = max(c.PeerSeq, content.Seq)
	switch {
	case content.Text != nil:
		return n.takeText(tx, now, c, content)
	case content.Receipt != nil:
		return n.outbox.Receipt(tx, accountOf(c), content.Receipt)
	case content.News != nil:
		return n.learn(tx, c, content.News.Manifest, content.News.Profile)
	case content.Accept != nil:
		if err := n.learn(tx, c, content.Accept.Manifest, content.Accept.Profile); err != nil {
			return err
		}
		return n.acceptedUs(tx, c)
	}
	return nil
}

func (n *Node) takeText(tx *store.Tx, now time.Time, c *store.Contact, content *envelope.Content) error {
	if !now.Before(content.Expires) {
		return nil // its sender was told that it failed (SPEC §7.3)
	}
	if c.State == store.Contact_REQUEST && c.Unread >= maxRequestEntries {
		return errDrop
	}
	c.Unread++
	if err := saveContact(tx, c); err != nil {
		return err
	}
	_, err := outbox.Append(tx, accountOf(c), &store.Entry{
		Id: content.ID[:], From: c.Account, Text: *content.Text, State: store.Entry_RECEIVED,
		Time: content.Sent.UnixMilli(), Received: now.UnixMilli(),
	})
	if err != nil {
		return err
	}
	return n.record(tx, &store.Event{Type: "message", Id: content.ID[:], State: "received", From: c.Account, Text: *content.Text}, c)
}

// acceptedUs notes that a contact took us as one.
func (n *Node) acceptedUs(tx *store.Tx, c *store.Contact) error {
	changed := advance(c, evAcceptedUs)
	c.Token = nil
	if err := saveContact(tx, c); err != nil || !changed {
		return err
	}
	a := accountOf(c)
	tx.OnCommit(func() { n.outbox.Kick(a) })
	return n.record(tx, &store.Event{Type: "contact", State: stateName(c.State)}, c)
}
