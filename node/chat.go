package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
	"unicode/utf8"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
)

// newID draws a content ID.
func (n *Node) newID() (envelope.ID, error) {
	var id envelope.ID
	if _, err := io.ReadFull(n.cfg.Rand, id[:]); err != nil {
		return id, fmt.Errorf("drawing a message ID: %w", err)
	}
	return id, nil
}

// Send commits a text message to the contact that to names and returns; the
// message is then delivered or shown as failed. id is 16 bytes made by the
// client, or empty: repeating it returns the message that has it, and sends
// nothing.
func (n *Node) Send(_ context.Context, to, text string, id []byte) (Message, error) {
	if len(text) == 0 || len(text) > protocol.MaxText || !utf8.ValidString(text) {
		return Message{}, &Error{Kind: KindInvalid, Msg: fmt.Sprintf("a message has 1 to %d bytes of UTF-8 text", protocol.MaxText)}
	}
	var mid envelope.ID
	switch len(id) {
	case 0:
		var err error
		if mid, err = n.newID(); err != nil {
			return Message{}, err
		}
	case len(mid):
		mid = envelope.ID(id)
	default:
		return Message{}, &Error{Kind: KindInvalid, Msg: "a message ID has 16 bytes"}
	}
	var out Message
	err := n.store.Update(func(tx *store.Tx) error {
		c, err := resolve(tx, to)
		if err != nil {
			return err
		}
		if len(id) > 0 {
			// What was accepted before stays accepted, whatever the contact's state.
			m, err := n.message(tx, mid)
			if err == nil && m.To == accountOf(c).String() && m.From == n.account().String() && m.Text == text {
				out = m
				return nil
			}
			if err == nil {
				return &Error{Kind: KindExists, Msg: "this message ID was used for another message"}
			}
			if !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		if err := mayWrite(c); err != nil {
			return err
		}
		if err := n.enqueue(tx, c, envelope.Content{ID: mid, Text: &text}); err != nil {
			return err
		}
		if out, err = n.message(tx, mid); err != nil {
			return err
		}
		return n.record(tx, &store.Event{Type: "message", Id: mid[:], State: "queued", From: n.accountBytes(), Text: text}, c)
	})
	return out, err
}

// mayWrite says why nothing can be sent to c now, or nil.
func mayWrite(c *store.Contact) error {
	switch c.State {
	case store.Contact_KEY_CHANGED:
		return &Error{
			Kind: KindKeyChanged, Msg: c.Name + "'s safety number has changed; nothing was sent",
			Hint: fmt.Sprintf("ask them in person, then: starling contact trust %[1]s (it is them), or: starling contact reject %[1]s (keep the old key)", quoted(c.Name)),
		}
	case store.Contact_HELD:
		return &Error{
			Kind: KindHeld, Msg: c.Name + " set up a new device; nothing was sent",
			Hint: fmt.Sprintf("ask them in person, then: starling contact trust %[1]s, or: starling contact reject %[1]s", quoted(c.Name)),
		}
	case store.Contact_BLOCKED:
		return &Error{Kind: KindBlocked, Msg: c.Name + " is blocked", Hint: "starling contact unblock " + quoted(c.Name)}
	case store.Contact_REQUEST:
		return &Error{Kind: KindInvalid, Msg: c.Name + " is not a contact yet", Hint: "starling contact accept " + quoted(c.Name)}
	}
	return nil
}

// enqueue queues a content for c, under its ID or a fresh one.
func (n *Node) enqueue(tx *store.Tx, c *store.Contact, content envelope.Content) error {
	if content.ID == (envelope.ID{}) {
		var err error
		if content.ID, err = n.newID(); err != nil {
			return err
		}
	}
	_, _, err := n.outbox.Enqueue(tx, n.cfg.Now(), accountOf(c), &content)
	c.Seq = content.Seq
	return err
}

// messageChanged puts what became of a message into the journal.
func (n *Node) messageChanged(tx *store.Tx, chat identity.Account, e *store.Entry) error {
	if e.State == store.Entry_QUEUED && e.Reason == "" {
		return nil // it was just accepted: Send has said so
	}
	c, err := store.Contacts.Get(tx, store.ContactKey(chat))
	if err != nil {
		return err
	}
	return n.record(tx, &store.Event{Type: "state", Id: e.Id, State: entryState(e.State), Text: e.Reason}, c)
}

// message returns the message with an ID, or store.ErrNotFound.
func (n *Node) message(tx *store.Tx, id envelope.ID) (Message, error) {
	ref, err := store.Messages.Get(tx, store.MessageKey(id))
	if err != nil {
		return Message{}, err
	}
	e, err := store.History.Get(tx, store.HistoryKey(identity.Account(ref.Account), ref.Order))
	if err != nil {
		return Message{}, err
	}
	c, err := store.Contacts.Get(tx, ref.Account)
	if err != nil {
		return Message{}, err
	}
	return n.messageOf(c, e), nil
}

func (n *Node) messageOf(c *store.Contact, e *store.Entry) Message {
	m := Message{
		ID: hex.EncodeToString(e.Id), Chat: c.Name, To: accountOf(c).String(), Text: e.Text,
		State: entryState(e.State), Time: time.UnixMilli(e.Time), Reason: e.Reason, Kind: "text",
	}
	if len(e.From) == identity.KeySize { // a row's key was checked when it was learnt
		m.From = identity.Account(e.From).String()
	}
	if e.Received != 0 {
		m.Received = time.UnixMilli(e.Received)
	}
	if e.Expires != 0 {
		m.Expires = time.UnixMilli(e.Expires)
	}
	if e.Notice {
		m.Kind = "notice"
	}
	if e.State == store.Entry_STORED {
		m.Copies, m.Relays = int(e.Copies), int(e.Relays)
		if e.Until != 0 {
			m.Until = time.UnixMilli(e.Until)
		}
	}
	if e.State == store.Entry_QUEUED {
		if why := n.waiting(accountOf(c)); why != "" {
			m.Reason = why
		}
	}
	return m
}

func (n *Node) accountBytes() []byte {
	a := n.account()
	return a[:]
}

// Bounds on how much history one call returns.
const (
	historyDefault = 50
	historyMost    = 1000
)

// History returns the newest limit lines of a chat, oldest first; 0 is 50, and
// 1,000 the most. With before it returns the lines above that message instead.
func (n *Node) History(_ context.Context, chat string, limit int, before string) ([]Message, error) {
	if limit <= 0 {
		limit = historyDefault
	}
	limit = min(limit, historyMost)
	var list []Message
	err := n.store.View(func(tx *store.Tx) error {
		c, err := resolve(tx, chat)
		if err != nil {
			return err
		}
		a := accountOf(c)
		var from store.RowKey
		if before != "" {
			order, err := orderOfMessage(tx, a, before)
			if err != nil {
				return err
			}
			from = store.HistoryKey(a, order-1)
		}
		for row, err := range store.History.ScanBack(tx, store.HistoryOf(a), from) {
			if err != nil {
				return err
			}
			list = append(list, n.messageOf(c, row.Value))
			if len(list) == limit {
				break
			}
		}
		return nil
	})
	slices.Reverse(list)
	return list, err
}

// orderOfMessage returns the place of a message in a chat.
func orderOfMessage(tx *store.Tx, a identity.Account, id string) (uint64, error) {
	mid, err := parseID(id)
	if err != nil {
		return 0, err
	}
	ref, err := store.Messages.Get(tx, store.MessageKey(mid))
	if errors.Is(err, store.ErrNotFound) || err == nil && !slices.Equal(ref.Account, a[:]) {
		return 0, &Error{Kind: KindNotFound, Msg: "there is no message " + id + " in this chat"}
	}
	if err != nil {
		return 0, err
	}
	return ref.Order, nil
}

func parseID(s string) (envelope.ID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(envelope.ID{}) {
		return envelope.ID{}, &Error{Kind: KindInvalid, Msg: fmt.Sprintf("%q is not a message ID", s), Hint: "starling history --json shows them"}
	}
	return envelope.ID(b), nil
}

// MarkRead notes that the user has seen a chat up to and including a message,
// and tells its authors if Config.ReadReceipts says so.
func (n *Node) MarkRead(_ context.Context, chat, id string) error {
	return n.store.Update(func(tx *store.Tx) error {
		c, err := resolve(tx, chat)
		if err != nil {
			return err
		}
		order, err := orderOfMessage(tx, accountOf(c), id)
		if err != nil {
			return err
		}
		var read []envelope.ID
		unread := uint32(0)
		for row, err := range store.History.ScanBack(tx, store.HistoryOf(accountOf(c)), nil) {
			if err != nil {
				return err
			}
			e := row.Value
			if hex.EncodeToString(e.Id) == c.Read || len(read) == protocol.MaxReceipt {
				break
			}
			switch {
			case e.Notice || e.State != store.Entry_RECEIVED:
			case row.Key.Order() > order:
				unread++
			default:
				read = append(read, envelope.ID(e.Id))
			}
		}
		if len(read) == 0 {
			return nil
		}
		c.Read, c.Unread = id, min(c.Unread, unread)
		if err := saveContact(tx, c); err != nil {
			return err
		}
		if err := n.record(tx, &store.Event{Type: "state", Id: read[0][:], State: "seen"}, c); err != nil {
			return err
		}
		if !n.cfg.ReadReceipts || c.State != store.Contact_ACCEPTED {
			return nil
		}
		return n.enqueue(tx, c, envelope.Content{Receipt: &envelope.Receipt{Read: read}})
	})
}

// WaitMessage returns the message once it is in the state or a later one, or
// failed, or when the time is over: then as it is.
func (n *Node) WaitMessage(ctx context.Context, id, state string, timeout time.Duration) (Message, error) {
	mid, err := parseID(id)
	if err != nil {
		return Message{}, err
	}
	want, ok := map[string]store.Entry_State{
		"stored": store.Entry_STORED, "delivered": store.Entry_DELIVERED, "read": store.Entry_READ,
	}[state]
	if !ok {
		return Message{}, &Error{Kind: KindInvalid, Msg: fmt.Sprintf("%q is not a state to wait for", state), Hint: "stored, delivered or read"}
	}
	over := time.NewTimer(timeout)
	defer over.Stop()
	for last := false; ; {
		changed := n.changed.wait()
		var m Message
		err := n.store.View(func(tx *store.Tx) (err error) {
			m, err = n.message(tx, mid)
			return err
		})
		if errors.Is(err, store.ErrNotFound) {
			return Message{}, &Error{Kind: KindNotFound, Msg: "there is no message " + id}
		}
		if err != nil {
			return Message{}, err
		}
		if s := stateOfName(m.State); s >= want || last {
			return m, nil
		}
		select {
		case <-changed:
		case <-over.C:
			last = true // what it waits for may have become known
		case <-ctx.Done():
			return Message{}, ctx.Err()
		}
	}
}

var entryStates = []string{
	store.Entry_QUEUED: "queued", store.Entry_STORED: "stored", store.Entry_DELIVERED: "delivered",
	store.Entry_READ: "read", store.Entry_FAILED: "failed", store.Entry_RECEIVED: "received",
}

func entryState(s store.Entry_State) string { return entryStates[s] }

func stateOfName(name string) store.Entry_State {
	return store.Entry_State(slices.Index(entryStates, name))
}
