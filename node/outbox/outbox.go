// Package outbox brings contents to their recipients: it keeps them until they
// are delivered, retries the same bytes, takes receipts, and lets what nobody
// took expire visibly (SPEC §8).
//
// A text in the history moves through
//
//	          a copy at a relay
//	    ┌───────────────────────▶ STORED ──┐
//	    │ ◀─────────────────────────┘      │ acknowledged, or a
//	    │     the copies are gone          │ receipt in a session
//	    │                                  ▼           read receipt
//	 QUEUED ─────────────────────────▶ DELIVERED ────────────────▶ READ
//	    │                                  ▲
//	    └──────▶ FAILED ───────────────────┘ a receipt after all
//	also from STORED: expired, or given up
//
// and each step is a fact: a relay's receipt says that it keeps the text's
// envelope, an acknowledgement proves that the recipient committed the text.
// Control contents (receipts, news) go the same way without a history row; a
// receipt has done its duty when it is stored.
//
// One worker a peer runs while there is something for that peer, so that
// contents leave in the order in which they were enqueued: nothing overtakes
// one that was not taken. While the peer is away, what is sealed is left at its
// relays beside the attempts to reach it, in that order too; receipts alone go
// past a queue that is full. The outbox sees envelopes and expected
// acknowledgements, and no key.
//
// What came through a relay has no stream that takes an acknowledgement:
// [Outbox.Owe] notes it, and receipts go back inside the session, many together
// and a little later, so that a relay cannot tell by the time what answers what.
//
// What it does not do: seal (a [Sealer]), reach peers (a [Courier]) or relays (a
// [Mailer]), or show anything to the user (Config.Changed tells the node).
package outbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// Tuning.
const (
	maxBackoff  = 300 * time.Second // the ceiling of the k-th pause is 2^k s, and this
	heldPause   = 10 * time.Minute  // between half of it and all of it, while the recipient has not accepted
	softPause   = 5 * time.Second   // a new content does not cause an attempt sooner after the last one
	softHeld    = time.Minute       // likewise while held: each attempt carries again what was held before
	sweepEvery  = time.Hour         // expiry of contents whose peer has no worker, and of copies
	suspectAt   = 3                 // answers DROPPED to one envelope before its session is suspected
	sealBytes   = 256 << 10         // padded contents sealed in one transaction, which holds them twice
	frameMargin = 16                // bytes that an envelope costs in a frame beside itself
)

var (
	// ErrNoContact means that the recipient has no contact row.
	ErrNoContact = errors.New("outbox: the recipient is not a contact")

	// ErrExists means that the content ID was used for something else. Draw
	// another.
	ErrExists = errors.New("outbox: this message ID is in use")
)

// A Courier reaches peers. Its methods return soon after ctx ends, bound
// themselves in time, and are called for one peer at a time and for different
// peers at once.
type Courier interface {
	// Prepare makes [Sealer.Ready] true for peer: it finds the peer's pre-keys
	// and starts a session. The text of an error is for the user.
	Prepare(ctx context.Context, peer identity.Account) error

	// Deliver carries envelopes to peer and returns the answers, in order. An
	// error says that nothing is known of any of them.
	Deliver(ctx context.Context, peer identity.Account, envelopes [][]byte) ([]*wire.Outcome, error)
}

// A Sealer turns contents into envelopes, inside the caller's transaction.
// session.Manager is one.
type Sealer interface {
	// Ready reports whether SealOutgoing can succeed.
	Ready(tx *store.Tx, now time.Time, peer identity.Account) (bool, error)
	// SealOutgoing seals out.Content and fills in what belongs to the envelope.
	SealOutgoing(tx *store.Tx, now time.Time, peer identity.Account, out *store.Outgoing) error
	// Acknowledged says that the peer opened an envelope of that session.
	Acknowledged(tx *store.Tx, now time.Time, session [32]byte) error
	// HandleError judges a decryption error, and reports whether it cleared
	// envelopes so that they are sealed again.
	HandleError(tx *store.Tx, now time.Time, peer identity.Account, hash envelope.Hash, e *wire.DecryptionError) (acted bool, err error)
	// Suspect does the same where the peer drops an envelope without a reason.
	Suspect(tx *store.Tx, now time.Time, peer identity.Account, hash envelope.Hash) (acted bool, err error)
}

// A Gate holds contents back. While Paused reports true, nothing is sealed for
// peer and nothing leaves; contents still expire. Call [Outbox.Kick] when a
// pause ends.
type Gate interface {
	Paused(tx *store.Tx, peer identity.Account) (bool, error)
}

// ContactGate pauses peers by the state of their contact: contents leave for
// those who are accepted or were asked, and for nobody whose key or device the
// user has yet to decide about.
type ContactGate struct{}

// Paused implements [Gate].
func (ContactGate) Paused(tx *store.Tx, peer identity.Account) (bool, error) {
	c, err := store.Contacts.Get(tx, store.ContactKey(peer))
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	} else if err != nil {
		return true, err
	}
	switch c.State {
	case store.Contact_PENDING, store.Contact_REQUESTED, store.Contact_ACCEPTED:
		return false, nil
	default:
		return true, nil
	}
}

// A Config says what an outbox works with.
type Config struct {
	Store   *store.DB        // required
	Account identity.Account // required; this user
	Sealer  Sealer           // required
	Courier Courier          // required
	Rand    io.Reader        // required; for pauses and the IDs of receipts; safe for concurrent use

	// Now is the wall clock by which contents are stamped and expire. Default
	// time.Now.
	Now func() time.Time

	// Gate holds contents back. Default [ContactGate].
	Gate Gate

	// Changed is told, in the transaction, of every history row whose state or
	// reason changed. An error discards the transaction. Default: nobody is.
	Changed func(tx *store.Tx, chat identity.Account, e *store.Entry) error

	// Mailer leaves what a peer does not take at the peer's relays. Default:
	// nothing is left anywhere.
	Mailer Mailer

	// Log receives what peers did wrong. Default: discarded.
	Log *slog.Logger
}

// An Outbox is the contents on their way. It is safe for concurrent use.
type Outbox struct {
	cfg Config

	start chan struct{} // wakers send, Run receives; one slot, since it only says: look
	owing chan struct{} // likewise, of receipts that are owed

	mu       sync.Mutex // guards what follows and every worker's guarded fields; never held across a wait
	workers  map[identity.Account]*worker
	waiting  []identity.Account        // keys of workers that Run has yet to start
	promised []identity.Account        // who may be owed receipts, and whose time Run has yet to draw
	unpaid   map[identity.Account]bool // who is owed some and was not accepted when they fell due
}

// New returns an outbox; [Outbox.Run] makes it work. It panics if a required
// field is missing.
func New(cfg Config) *Outbox {
	if cfg.Store == nil || cfg.Sealer == nil || cfg.Courier == nil || cfg.Rand == nil || cfg.Account == (identity.Account{}) {
		panic("outbox: internal error: Config lacks a required field")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Gate == nil {
		cfg.Gate = ContactGate{}
	}
	if cfg.Changed == nil {
		cfg.Changed = func(*store.Tx, identity.Account, *store.Entry) error { return nil }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Outbox{
		cfg: cfg, start: make(chan struct{}, 1), owing: make(chan struct{}, 1), workers: map[identity.Account]*worker{},
		unpaid: map[identity.Account]bool{},
	}
}

// Enqueue takes c for delivery to peer, in the caller's transaction: its outbox
// row, and for a text its line in the history. It sets c.Seq, and c.Sent and
// c.Expires where they are zero. If a session is ready and nothing waits to be
// sealed, the final envelope is made here; otherwise the worker makes it.
//
// A text whose ID was enqueued before, for the same peer and with the same
// words, is not sent again: repeated is true, and line is that of the first
// time. line is the text's place in the history, 0 for a control content. The
// error is [ErrNoContact], [ErrExists], what envelope.MarshalContent finds
// wrong with c, or the store's.
func (o *Outbox) Enqueue(tx *store.Tx, now time.Time, peer identity.Account, c *envelope.Content) (line uint64, repeated bool, err error) {
	if c.Text != nil {
		if line, repeated, err = o.repeated(tx, peer, c); repeated || err != nil {
			return line, repeated, err
		}
	}
	contact, err := store.Contacts.Get(tx, store.ContactKey(peer))
	if errors.Is(err, store.ErrNotFound) {
		return 0, false, ErrNoContact
	} else if err != nil {
		return 0, false, err
	}
	if c.Sent.IsZero() {
		c.Sent = now
	}
	if c.Expires.IsZero() {
		c.Expires = c.Sent.Add(protocol.MessageLife)
	}
	contact.Seq++
	c.Seq = contact.Seq
	padded, err := envelope.MarshalContent(c)
	if err != nil {
		return 0, false, err
	}
	if err := store.Contacts.Put(tx, store.ContactKey(peer), contact); err != nil {
		return 0, false, err
	}

	out := &store.Outgoing{
		Id: c.ID[:], Content: padded, Control: c.Text == nil, Receipt: c.Receipt != nil,
		Created: now.UnixMilli(), Expires: c.Expires.UnixMilli(),
	}
	if err := o.sealNow(tx, now, peer, out); err != nil {
		return 0, false, err
	}
	if err := o.keep(tx, peer, c.Seq, out); err != nil {
		return 0, false, err
	}
	if c.Text != nil {
		e := &store.Entry{
			Id: c.ID[:], From: o.cfg.Account[:], Text: *c.Text, State: store.Entry_QUEUED,
			Time: c.Sent.UnixMilli(), Expires: c.Expires.UnixMilli(),
		}
		if line, err = Append(tx, peer, e); err != nil {
			return 0, false, err
		}
		if err := o.cfg.Changed(tx, peer, e); err != nil {
			return 0, false, err
		}
	}
	tx.OnCommit(func() {
		o.wake(peer, fresh)
		if c.Accept != nil {
			o.release(peer)
		}
	})
	return line, false, nil
}

// repeated looks for an earlier use of c's ID.
func (o *Outbox) repeated(tx *store.Tx, peer identity.Account, c *envelope.Content) (line uint64, repeated bool, err error) {
	ref, e, err := entry(tx, c.ID)
	if e == nil || err != nil {
		return 0, false, err
	}
	if string(ref.Account) != string(peer[:]) || string(e.From) != string(o.cfg.Account[:]) || e.Text != *c.Text {
		return 0, false, ErrExists
	}
	return ref.Order, true, nil
}

// entry returns the history row of a content ID, nil if there is none.
func entry(tx *store.Tx, id envelope.ID) (*store.EntryRef, *store.Entry, error) {
	ref, err := store.Messages.Get(tx, store.MessageKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	if len(ref.Account) != identity.KeySize {
		return nil, nil, fmt.Errorf("reading a message's place: %w", store.ErrDamaged)
	}
	e, err := store.History.Get(tx, store.HistoryKey(identity.Account(ref.Account), ref.Order))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, nil
	}
	return ref, e, err
}

// Append adds a line at the end of a chat's history, and makes it findable by
// its content ID unless that is empty or taken: IDs are the sender's choice,
// and nobody may take over the line of another.
func Append(tx *store.Tx, chat identity.Account, e *store.Entry) (line uint64, err error) {
	line = 1
	for r, err := range store.History.ScanBack(tx, store.HistoryOf(chat), nil) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return 0, err
		}
		line = r.Key.Order() + 1
		break
	}
	if len(e.Id) == envelope.IDSize {
		k := store.MessageKey(envelope.ID(e.Id))
		taken, err := store.Messages.Has(tx, k)
		if err != nil {
			return 0, err
		}
		if !taken {
			if err := store.Messages.Put(tx, k, &store.EntryRef{Account: chat[:], Order: line}); err != nil {
				return 0, err
			}
		}
	}
	return line, store.History.Put(tx, store.HistoryKey(chat, line), e)
}

// sealNow seals a content that is being enqueued, if that keeps the order: no
// earlier one waits to be sealed.
func (o *Outbox) sealNow(tx *store.Tx, now time.Time, peer identity.Account, out *store.Outgoing) error {
	for r, err := range store.Outbox.ScanBack(tx, store.OutboxOf(peer), nil) {
		if err != nil {
			return err
		}
		if len(r.Value.Envelope) == 0 {
			return nil
		}
		if !r.Value.Receipt { // which may have been sealed out of its turn
			break
		}
	}
	if paused, err := o.cfg.Gate.Paused(tx, peer); paused || err != nil {
		return err
	}
	if ready, err := o.cfg.Sealer.Ready(tx, now, peer); !ready || err != nil {
		return err
	}
	return o.cfg.Sealer.SealOutgoing(tx, now, peer, out)
}

// keep writes an outbox row, and its place in the send log if it is sealed.
func (o *Outbox) keep(tx *store.Tx, peer identity.Account, order uint64, out *store.Outgoing) error {
	if len(out.Hash) == len(envelope.Hash{}) {
		err := store.Unacked.Put(tx, store.UnackedKey([32]byte(out.Hash)), &store.Unacknowledged{Account: peer[:], Order: order})
		if err != nil {
			return err
		}
	}
	return store.Outbox.Put(tx, store.OutboxKey(peer, order), out)
}

// discard deletes an outbox row and its place in the send log.
func discard(tx *store.Tx, k store.RowKey, out *store.Outgoing) error {
	if len(out.Hash) == len(envelope.Hash{}) {
		if err := store.Unacked.Delete(tx, store.UnackedKey([32]byte(out.Hash))); err != nil {
			return err
		}
	}
	return store.Outbox.Delete(tx, k)
}

// advance moves the history row of a text to peer to a later state, and
// returns the state it was in: UNSPECIFIED if there is no such text. States
// never go back, except that a failure yields to a fact.
func (o *Outbox) advance(tx *store.Tx, peer identity.Account, id envelope.ID, to store.Entry_State, reason string) (was store.Entry_State, err error) {
	ref, e, err := entry(tx, id)
	if e == nil || err != nil {
		return 0, err
	}
	if string(ref.Account) != string(peer[:]) || string(e.From) != string(o.cfg.Account[:]) {
		return 0, nil
	}
	was = e.State
	switch {
	case was == store.Entry_RECEIVED,
		was == to && e.Reason == reason,
		was == store.Entry_FAILED && to == store.Entry_QUEUED,
		was != store.Entry_FAILED && was > to,
		to == store.Entry_FAILED && was >= store.Entry_DELIVERED:
		return was, nil
	}
	e.State, e.Reason = to, reason
	unstore(e)
	if err := store.History.Put(tx, store.HistoryKey(peer, ref.Order), e); err != nil {
		return 0, err
	}
	return was, o.cfg.Changed(tx, peer, e)
}

// failAtOnce is how many contents one transaction gives up.
const failAtOnce = 256

// Fail gives up what waits for peer: texts become FAILED with that reason, for
// the user to read. Call it, a transaction each, while it reports more.
func (o *Outbox) Fail(tx *store.Tx, peer identity.Account, reason string) (more bool, err error) {
	n := 0
	for r, err := range store.Outbox.Scan(tx, store.OutboxOf(peer), nil) {
		if err != nil {
			return false, err
		}
		if n++; n > failAtOnce {
			return true, nil
		}
		if err := o.fail(tx, peer, r.Key, r.Value, reason); err != nil {
			return false, err
		}
	}
	return false, nil
}

func (o *Outbox) fail(tx *store.Tx, peer identity.Account, k store.RowKey, out *store.Outgoing, reason string) error {
	if len(out.Id) == envelope.IDSize && !out.Control {
		if _, err := o.advance(tx, peer, envelope.ID(out.Id), store.Entry_FAILED, reason); err != nil {
			return err
		}
	}
	return discard(tx, k, out)
}

// expire fails the contents to peer, among the rows up to the batch that is
// sent next, whose time is over at now.
func (o *Outbox) expire(tx *store.Tx, now time.Time, peer identity.Account) error {
	n := 0
	for r, err := range store.Outbox.Scan(tx, store.OutboxOf(peer), nil) {
		if err != nil {
			return err
		}
		if n++; n > failAtOnce {
			return nil
		}
		if r.Value.Expires > now.UnixMilli() {
			continue
		}
		reason := fmt.Sprintf("not delivered within %d days", protocol.MessageLife/(24*time.Hour))
		if _, e, err := entry(tx, envelope.ID(r.Value.Id)); err != nil {
			return err
		} else if e != nil && e.State == store.Entry_QUEUED && e.Reason != "" {
			reason += ": " + e.Reason
		} else if last, ok := o.Report(peer); e != nil && e.State == store.Entry_QUEUED && ok && last.Err != nil {
			reason += ": " + last.Err.Error()
		} else if e != nil && e.State == store.Entry_STORED {
			reason += ": it was left at relays, and no receipt came back"
		}
		if err := o.fail(tx, peer, r.Key, r.Value, reason); err != nil {
			return err
		}
	}
	return nil
}

// Pending returns how many texts wait, to all peers.
func (o *Outbox) Pending(tx *store.Tx) (int, error) {
	n := 0
	for r, err := range store.Outbox.Scan(tx, nil, nil) {
		if err != nil {
			return 0, err
		}
		if !r.Value.Control {
			n++
		}
	}
	return n, nil
}

// jitter returns a random part of d.
func (o *Outbox) jitter(d time.Duration) time.Duration {
	var b [8]byte
	if _, err := io.ReadFull(o.cfg.Rand, b[:]); err != nil {
		return d // waiting longer is safe
	}
	return time.Duration(float64(d) * float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53))
}

// backoff is the pause after a number of failures in a row: full jitter under
// a ceiling of 1, 2, 4 … 300 s.
func (o *Outbox) backoff(failures int) time.Duration {
	return o.jitter(min(time.Second<<min(failures, 16), maxBackoff))
}
