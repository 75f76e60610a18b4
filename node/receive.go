package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"starling/node/outbox"
	"starling/node/session"
	"starling/node/store"
	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
)

// Bounds on what people who are not contacts can leave here.
const (
	maxRequests        = 100 // contact requests at once; further ones are dropped
	maxRequestEntries  = 8   // messages of one request; further ones wait at their sender
	maxRequestContents = 16  // contents of one request, of whatever kind; likewise
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
		if s, ok := n.cfg.Observe.(session.Saboteur); ok && s.Early() > 0 {
			if err := n.answerEarly(conn, &d, s.Early()); err != nil {
				return err
			}
			continue
		}
		outcomes, err := n.receiveAll(conn.Remote(), d.Envelopes)
		if err != nil {
			return err
		}
		if err := conn.Write(wire.Marshal(&wire.DeliveryAnswer{Outcomes: outcomes})); err != nil {
			return err
		}
	}
}

// receiveAll takes the envelopes of a delivery in order, in as few transactions
// as hold them. What follows one that does not open is not looked at: it was
// sent later, and will be sent again after it.
func (n *Node) receiveAll(p peer.ID, envelopes [][]byte) ([]*wire.Outcome, error) {
	outcomes := make([]*wire.Outcome, 0, len(envelopes))
	for len(outcomes) < len(envelopes) {
		before := len(outcomes)
		err := n.store.Update(func(tx *store.Tx) error {
			for _, e := range envelopes[before:] {
				o, opens, err := n.receive(tx, way{peer: p}, e)
				switch {
				case errors.Is(err, store.ErrTooBig) && len(outcomes) > before:
					return nil // the next transaction has room for it
				case errors.Is(err, store.ErrTooBig):
					n.log.Error("an envelope does not fit into a transaction", "size", len(e))
					o, opens = dropped(), false
				case err != nil:
					return err
				}
				outcomes = append(outcomes, o)
				if !opens {
					for len(outcomes) < len(envelopes) {
						outcomes = append(outcomes, &wire.Outcome{Status: wire.Status_STATUS_BUSY})
					}
					return nil
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return outcomes, nil
}

func dropped() *wire.Outcome { return &wire.Outcome{Status: wire.Status_STATUS_DROPPED} }

// Both undo what an envelope did.
var (
	errDrop = errors.New("node: dropped") // and answer that it was dropped
	errHold = errors.New("node: held")    // and answer that it may be accepted later
)

// A way is how an envelope came: on a stream of a peer, or sealed, through a
// relay.
type way struct {
	peer   peer.ID
	sealed *envelope.Opened
	relay  identity.Transport // with sealed
}

// open opens an envelope that came this way.
func (n *Node) open(tx *store.Tx, now time.Time, w way, e []byte) (session.Opened, error) {
	if w.sealed != nil {
		return n.sessions.OpenRelayed(tx, now, w.sealed)
	}
	var from *identity.Account
	if a, ok := n.routes.account(w.peer); ok {
		from = &a
	}
	return n.sessions.Open(tx, now, from, e)
}

// receive opens one envelope, and commits all that follows from it, or nothing.
// opens is false if nobody can say what is in it. The error is one of the store,
// or, of what came through a relay, errHold.
func (n *Node) receive(tx *store.Tx, w way, e []byte) (outcome *wire.Outcome, opens bool, err error) {
	outcome = dropped()
	var before [32]byte
	if n.cfg.Observe != nil {
		before = tx.Digest()
	}
	err = tx.Try(func(tx *store.Tx) error {
		now := n.cfg.Now()
		o, err := n.open(tx, now, w, e)
		if again, ok := errors.AsType[*session.Duplicate](err); ok {
			o = session.Opened{Peer: again.Peer, Ack: again.Ack, Hash: envelope.HashOf(e)}
		} else if err != nil {
			return err
		}
		c, err := n.sender(tx, now, &o)
		if err != nil {
			return err
		}
		if w.sealed == nil {
			tx.OnCommit(func() { n.routes.prove(w.peer, o.Peer) })
		}
		if o.Content != nil {
			if err := n.take(tx, now, c, o.Hash, o.Content); err != nil {
				return err
			}
		}
		if w.sealed != nil {
			if err := n.oweReceipt(tx, now, o.Peer, o.Hash, w.relay); err != nil {
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
	if err != nil && n.cfg.Observe != nil {
		if s, ok := n.cfg.Observe.(session.Saboteur); ok {
			if bad := s.Spoil(tx); bad != nil {
				return nil, false, bad
			}
		}
		n.cfg.Observe.Refused(before, tx.Digest())
	}
	bad, undecryptable := errors.AsType[*session.Undecryptable](err)
	switch {
	case err == nil:
		return outcome, true, nil
	case undecryptable:
		n.log.Info("an envelope does not open", "reason", bad.Answer.Reason)
		if bad.Repeated != nil {
			if err := n.relayRepeats(tx, n.cfg.Now(), bad.Repeated, bad.Peer); err != nil {
				return nil, false, err
			}
		}
		if w.sealed != nil { // there is no stream to answer on
			return dropped(), false, n.oweError(tx, n.cfg.Now(), bad)
		}
		return &wire.Outcome{Status: wire.Status_STATUS_ERROR, Error: bad.Answer}, false, nil
	case errors.Is(err, session.ErrDrop):
		return dropped(), false, nil
	case errors.Is(err, errDrop):
		return dropped(), true, nil
	case errors.Is(err, errHold) && w.sealed != nil:
		return nil, true, err
	case errors.Is(err, errHold):
		return &wire.Outcome{Status: wire.Status_STATUS_HELD}, true, nil
	}
	return nil, false, err
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
		if err := mayAsk(tx, now, o.Peer); err != nil {
			return err
		}
	}
	advance(c, ev)
	if c.Name == "" {
		if err := n.rename(tx, c, shownName(o.Peer, o.New.Profile.Name), false); err != nil {
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

// mayIntroduce is asked by the session manager about a first message from
// somebody who is no contact, before anything costly is done for them.
func (n *Node) mayIntroduce(tx *store.Tx, now time.Time, in *prekey.Introduced) (bool, error) {
	if in.TokenID != nil {
		invite, err := store.Invites.Get(tx, store.InviteKey(*in.TokenID))
		if err == nil && !invite.Public && inviteOpen(invite, now) {
			return true, nil // whether the token is right shows once the session is there
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return false, err
		}
	}
	err := mayAsk(tx, now, in.Peer.Account)
	if errors.Is(err, errDrop) {
		return false, nil
	}
	return err == nil, err
}

// mayAsk returns errDrop if a stranger's request is not even listed: too many
// wait, or this one was rejected lately.
func mayAsk(tx *store.Tx, now time.Time, a identity.Account) error {
	row, err := store.SeenIDs.Get(tx, rejectedKey(a))
	if err == nil && now.UnixMilli() < row.Dies {
		return errDrop
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	waiting := 0
	for row, err := range store.Contacts.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		if row.Value.State == store.Contact_REQUEST {
			waiting++
		}
	}
	if waiting >= maxRequests {
		return errDrop
	}
	return nil
}

// rejectedKey is where it stands that an account's request was rejected: its
// node would ask again within seconds. No content has the zero ID but by
// chance, and then its sender is the one to lose by it.
func rejectedKey(a identity.Account) store.RowKey { return store.SeenKey(a, envelope.ID{}) }

// shownName is the name under which somebody who was not named by the user
// first appears.
func shownName(a identity.Account, profile string) string {
	if name, err := cleanContactName(profile); err == nil {
		return name
	}
	return a.Short() // no name, or one that passes for an account ID
}

// oweAgain is how soon a receipt is owed again for an envelope that another relay
// brings: its copies at two relays come within minutes of each other. Where one
// relay brings it twice, its sender has left it once more, for it lacks the
// receipt. relayMark is by how much of their keys relays are told apart here.
const (
	oweAgain  = time.Hour
	relayMark = 8 // bytes
)

// oweReceipt notes that a receipt is owed for what an envelope held that came
// through a relay. The same envelope may have come directly before, and its
// acknowledgement may have been lost.
func (n *Node) oweReceipt(tx *store.Tx, now time.Time, to identity.Account, hash envelope.Hash, from identity.Transport) error {
	row, err := store.ReceivedEnvelopes.Get(tx, store.ReceivedKey(hash))
	if err != nil || len(row.Id) != envelope.IDSize {
		return err
	}
	again := slices.ContainsFunc(row.Brought, func(b []byte) bool { return slices.Equal(b, from[:relayMark]) })
	owe := again || now.Sub(time.UnixMilli(row.Owed)) >= oweAgain
	if owe {
		row.Owed, row.Brought = now.UnixMilli(), nil
	}
	if len(row.Brought) < protocol.MaxRelays {
		row.Brought = append(row.Brought, slices.Clone(from[:relayMark]))
	}
	if err := store.ReceivedEnvelopes.Put(tx, store.ReceivedKey(hash), row); err != nil || !owe {
		return err
	}
	return n.outbox.Owe(tx, now, to, envelope.ID(row.Id))
}

// note remembers which content an envelope held.
func note(tx *store.Tx, hash envelope.Hash, id envelope.ID) error {
	row, err := store.ReceivedEnvelopes.Get(tx, store.ReceivedKey(hash))
	if err != nil {
		return err
	}
	row.Id = id[:]
	return store.ReceivedEnvelopes.Put(tx, store.ReceivedKey(hash), row)
}

// take acts on the content of an envelope that was opened. A content that does
// not parse came from a broken peer: it is acknowledged, so that it is not sent
// for ever, and nothing is shown. Of a request nothing is kept that shows
// nothing, since each envelope costs rows and its sender is a stranger.
func (n *Node) take(tx *store.Tx, now time.Time, c *store.Contact, hash envelope.Hash, b []byte) error {
	asks := c.State == store.Contact_REQUEST
	content, err := envelope.ParseContent(b)
	if err != nil {
		n.log.Warn("a content does not parse", "err", err)
		if asks {
			return errDrop
		}
		return nil
	}
	key := store.SeenKey(accountOf(c), content.ID)
	seen, err := store.SeenIDs.Has(tx, key)
	if err != nil {
		return err
	}
	if content.Receipt == nil {
		if err := note(tx, hash, content.ID); err != nil {
			return err
		}
	}
	if seen {
		if asks {
			return errHold
		}
		return nil
	}
	if asks {
		full, err := atLeast(tx, store.SeenIDs, accountOf(c), maxRequestContents, nil)
		if err != nil {
			return err
		}
		if full {
			return errHold
		}
	}
	if err := store.SeenIDs.Put(tx, key, &store.Seen{Dies: now.Add(protocol.DedupeLife).UnixMilli()}); err != nil {
		return err
	}
	if arrived(c, content.Seq, now) {
		tx.OnCommit(n.gapOpened)
	}
	if err := saveContact(tx, c); err != nil {
		return err
	}
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
		return errDrop // its sender says that it failed (SPEC §7.3), and must not say that it arrived
	}
	if c.State == store.Contact_REQUEST {
		full, err := atLeast(tx, store.History, accountOf(c), maxRequestEntries, func(e *store.Entry) bool { return !e.Notice })
		if err != nil {
			return err
		}
		if full {
			return errHold
		}
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
	typ := "message"
	if c.State == store.Contact_REQUEST {
		typ = "request" // no program should answer before the user has decided
	}
	return n.record(tx, &store.Event{Type: typ, Id: content.ID[:], State: "received", From: c.Account, Text: *content.Text}, c)
}

// atLeast reports whether an account has n rows of a table that count; nil
// counts all.
func atLeast[T any, P interface {
	*T
	proto.Message
}](tx *store.Tx, table store.Table[T, P], a identity.Account, n int, counts func(P) bool) (bool, error) {
	for row, err := range table.Scan(tx, a[:], nil) {
		if err != nil {
			return false, err
		}
		if counts == nil || counts(row.Value) {
			n--
		}
		if n <= 0 {
			return true, nil
		}
	}
	return false, nil
}

// acceptedUs notes that a contact took us as one.
func (n *Node) acceptedUs(tx *store.Tx, c *store.Contact) error {
	changed := advance(c, evAcceptedUs)
	c.Token = nil
	if err := saveContact(tx, c); err != nil || !changed {
		return err
	}
	a := accountOf(c)
	if err := n.outbox.Accepted(tx, a); err != nil {
		return err
	}
	tx.OnCommit(func() { n.outbox.Kick(a) })
	return n.record(tx, &store.Event{Type: "contact", State: stateName(c.State)}, c)
}
