// Package session decides which ratchet session carries what, and recovers
// from sessions that broke (SPEC §8). It opens sessions with PQXDH, seals on the
// session of choice, opens what arrives, and answers what does not open. It
// keeps this device's own keys for all of that: those of days, one-time keys,
// and the sealing keys of what comes through relays.
//
// It is logic over a store transaction and nothing else: no goroutine, no
// network, no clock. Every method reads and writes through the [store.Tx] it is
// given, so that ratchet state and what came of it are committed together or
// not at all; the same calls with the same randomness give the same rows.
// (ML-KEM encapsulation alone draws from the system.)
//
// Sessions with one peer device:
//
//	Start, or Open of a handshake
//	       │
//	       ▼     a lower one is in use on both sides; it was replaced;
//	     live ──────────────────────────────────────────────────▶ archived
//	       │     it broke; the store was rolled back                  │
//	       │                                                          │ ArchivedLife, or
//	       ▼                                                          ▼ MaxArchived newer ones
//	  Seal and Open on the lowest ID; Open on all        Open only, then gone
//
// What it does not do: fetch bundles and carry envelopes (node), talk to relays
// (node/relay/client), retry (node/outbox), judge people: whether an introduced
// stranger, an invite token or a new device is welcome is for the node, which
// discards the transaction otherwise.
package session

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/ratchet"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// MaxOneTime is how many one-time pairs for peers that ask on a stream live at
// once. Each costs about 2 KiB and 0.1 ms to make; whoever asks beyond it starts
// with the day's keys alone.
const MaxOneTime = 64

// maxLive bounds the sessions with one device that are not archived. Two are
// the honest case: both sides opened one at once. Above the bound the highest
// IDs are archived, which neither side would send on.
const maxLive = 4

// maxSkipped bounds the skipped keys of all sessions with one account, each a
// row of some 250 bytes. Two sessions that miss all they may are far beyond
// what happens between honest peers.
const maxSkipped = 2 * protocol.MaxSkip

// maxReseal bounds what one recovery rewrites in the outbox, so that it fits
// into one store update. What is left is rewritten when it comes up itself.
const maxReseal = 512 << 10 // bytes

var (
	// ErrNoSession means that nothing can be sealed for this peer now: there is
	// no session, or it has to be renewed first. Fetch bundles and call
	// [Manager.Start].
	ErrNoSession = errors.New("session: no session to send on")

	// ErrDrop means that the envelope is refused and its sender is told nothing
	// more: answer STATUS_DROPPED. Nothing was changed.
	ErrDrop = errors.New("session: envelope dropped")

	// ErrBusy means that [MaxOneTime] one-time pairs are alive. Answer with the
	// day's bundle alone.
	ErrBusy = errors.New("session: too many one-time keys are alive")
)

// A Duplicate means that the same bytes were opened before: answer as then,
// with Ack, unless the node's view of Peer has changed since. Nothing was
// changed.
type Duplicate struct {
	Peer identity.Account
	Ack  [32]byte
}

func (*Duplicate) Error() string { return "session: envelope was opened before" }

// An Undecryptable means that the envelope does not open, that it may be an
// honest one, and that its sender is known: answer STATUS_ERROR with Answer, so
// that they start a fresh session. Nothing was changed.
type Undecryptable struct {
	Peer   identity.Account
	Answer *wire.DecryptionError

	// Repeated says that the envelope's one-time key, of a relay's pool, was used
	// by another account before. Nil otherwise.
	Repeated *Repeated

	// New says who introduced themselves in the envelope, proven by the sender
	// tag, and where they take an answer. Nil if it opened no session, or if its
	// introduction does not open.
	New *prekey.Introduced
}

// A Repeated is a one-time key of a pool that two accounts used, so that its
// relay gave it out twice, as far as this device can see. Two people who agree to
// can make any relay look like that: one case is no proof.
type Repeated struct {
	Relay identity.Transport
	First identity.Account // who used the key before
}

func (u *Undecryptable) Error() string {
	return "session: envelope does not open: " + u.Answer.Reason.String()
}

// A Config says who this device is.
type Config struct {
	Key     *identity.DeviceKey // required
	Account identity.Account    // required

	// Rand is where keys, hedges and ephemeral keys come from. Required.
	Rand io.Reader

	// Capabilities is what this device understands; it is in every transcript.
	Capabilities uint64

	// Stranger is asked about who introduced themselves and is no contact, before
	// a key is agreed with them: false drops the message. Default: all may.
	Stranger func(tx *store.Tx, now time.Time, in *prekey.Introduced) (bool, error)

	// Observe is told of every message sealed and opened. Default: nobody is.
	Observe Observer
}

// A Manager is the sessions of one device. Its methods that write need the
// transaction of a store.DB.Update, where one goroutine runs; [Manager.Ready]
// also works in a View. It serves one database.
type Manager struct {
	cfg  Config
	self prekey.Party

	// Expanded private halves, because expanding one costs as much as using
	// it. Touched on the writer's goroutine only, and believed only after the
	// row was found, so a discarded transaction cannot leave a wrong entry.
	keys    map[prekey.KeyID]*ownKey
	days    map[uint32]prekey.KeyID             // where to look first for a day's row
	sealing map[uint32]*envelope.SealingPrivate // by week, believed only if the row has the same seed
}

// New returns the manager of a device. It panics if a required field is
// missing.
func New(cfg Config) *Manager {
	if cfg.Key == nil || cfg.Rand == nil || cfg.Account == (identity.Account{}) {
		panic("session: internal error: Config lacks a required field")
	}
	if cfg.Stranger == nil {
		cfg.Stranger = func(*store.Tx, time.Time, *prekey.Introduced) (bool, error) { return true, nil }
	}
	if cfg.Observe == nil {
		cfg.Observe = blind{}
	}
	return &Manager{
		cfg: cfg,
		self: prekey.Party{
			Account: cfg.Account, Device: cfg.Key.Device(), DH: cfg.Key.DH().Public(), Capabilities: cfg.Capabilities,
		},
		keys:    map[prekey.KeyID]*ownKey{},
		days:    map[uint32]prekey.KeyID{},
		sealing: map[uint32]*envelope.SealingPrivate{},
	}
}

// Ready reports whether [Manager.Seal] would find a session for peer: one to
// send on exists, and no renewal is due.
func (m *Manager) Ready(tx *store.Tx, now time.Time, peer identity.Account) (bool, error) {
	s, err := m.choose(tx, now, peer)
	return s != nil, err
}

// A Sealed is an envelope and what its sender remembers of it. It does not
// print.
type Sealed struct {
	Envelope []byte
	Hash     envelope.Hash
	Session  prekey.SessionID
	Ack      [32]byte // what proves that the peer opened it
}

// LogValue keeps the acknowledgement out of logs.
func (Sealed) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the acknowledgement out of everything that package fmt prints.
func (Sealed) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// Seal seals a padded content for peer on the session of choice, the lowest ID
// among those not archived, and sends the handshake along until the session is
// acknowledged. The error is [ErrNoSession] if there is none, or the store's.
// The envelope may leave only after the transaction is committed.
func (m *Manager) Seal(tx *store.Tx, now time.Time, peer identity.Account, content []byte) (Sealed, error) {
	s, err := m.choose(tx, now, peer)
	if err != nil {
		return Sealed{}, err
	}
	if s == nil {
		return Sealed{}, ErrNoSession
	}
	state, err := ratchet.Parse(s.row.State)
	if err != nil {
		return Sealed{}, fmt.Errorf("reading a session: %w", err)
	}
	var hs *wire.Handshake
	if len(s.row.Handshake) > 0 {
		hs = new(wire.Handshake)
		if err := wire.Parse(s.row.Handshake, protocol.MaxEnvelope, hs); err != nil {
			return Sealed{}, fmt.Errorf("reading a stored handshake: %w", err)
		}
	}
	o, err := state.Seal(m.cfg.Rand, content)
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing a content: %w", err)
	}
	m.cfg.Observe.Sealed(o.Observation)
	s.row.State = state.Marshal()
	if err := s.put(tx); err != nil {
		return Sealed{}, err
	}
	b := envelope.Seal(s.id, hs, o.Message)
	hash := envelope.HashOf(b)
	return Sealed{Envelope: b, Hash: hash, Session: s.id, Ack: o.Ack.MAC(hash)}, nil
}

// SealOutgoing seals out.Content for peer and fills in what belongs to the
// envelope; see [Manager.Seal]. The caller keeps the row.
func (m *Manager) SealOutgoing(tx *store.Tx, now time.Time, peer identity.Account, out *store.Outgoing) error {
	sealed, err := m.Seal(tx, now, peer, out.Content)
	if err != nil {
		return err
	}
	out.Envelope, out.Hash = sealed.Envelope, sealed.Hash[:]
	out.Session, out.Ack = sealed.Session[:], sealed.Ack[:]
	out.Dropped = 0
	return nil
}

// Acknowledged says that the peer proved to have opened a message of this
// session: the handshake is sent along no more. A session that is gone is no
// error.
func (m *Manager) Acknowledged(tx *store.Tx, now time.Time, id [32]byte) error {
	s, err := m.load(tx, now, id)
	if s == nil || err != nil || s.row.Acknowledged {
		return err
	}
	s.row.Acknowledged, s.row.Handshake = true, nil
	return s.put(tx)
}

// Start opens a session with a device of peer by PQXDH, from bundles that
// prekey.OpenBundle returned; oneTime is from the peer itself (T1), from a
// relay's pool (T2), or nil (T3). With replaces, or else what the contact's row
// says, the handshake names the session it takes the place of, which is archived
// at once. A renewal that was due is done. Nothing is sent: the next
// [Manager.Seal] carries the handshake.
func (m *Manager) Start(tx *store.Tx, now time.Time, peer identity.Manifest, device identity.Device, day, oneTime *prekey.Bundle, intro prekey.Introduction, replaces *prekey.SessionID) error {
	entry, ok := peer.Device(device)
	if !ok {
		return errors.New("session: the device is not in the manifest")
	}
	contact, err := loadContact(tx, peer.Account)
	if err != nil {
		return err
	}
	if replaces == nil && contact != nil && len(contact.Replaces) == len(prekey.SessionID{}) {
		id := prekey.SessionID(contact.Replaces)
		replaces = &id
	}
	other := prekey.Party{Account: peer.Account, Device: device, DH: entry.DH, Capabilities: day.Capabilities}
	secrets, hs, err := prekey.Initiate(m.cfg.Rand, m.cfg.Key, m.self, other, day, oneTime, replaces, intro)
	if err != nil {
		return fmt.Errorf("starting a session: %w", err)
	}
	state, err := ratchet.NewInitiator(m.cfg.Rand, secrets.Session, secrets.Root, secrets.Associated, day.X25519)
	if err != nil {
		return fmt.Errorf("starting a session: %w", err)
	}
	if err := m.archiveReplaced(tx, now, peer.Account, device, replaces); err != nil {
		return err
	}
	s := &session{account: peer.Account, device: device, id: secrets.Session, row: &store.Session{
		Account: peer.Account[:], Device: device[:], Dh: entry.DH[:],
		State:     state.Marshal(),
		Handshake: wire.Marshal(hs),
		Created:   now.UnixMilli(),
		Stale:     staleAt(now, day, oneTime).UnixMilli(),
	}}
	if replaces != nil {
		s.row.Replaces = replaces[:]
	}
	if err := m.create(tx, now, s, contact); err != nil {
		return err
	}
	if contact != nil && (contact.Renew || len(contact.Replaces) > 0) {
		contact.Renew, contact.Replaces = false, nil
		return putContact(tx, contact)
	}
	return nil
}

// staleAt is when a session that was never acknowledged is of no more use: the
// peer may then lack a key that opens it. A content sealed before, which lives
// for MessageLife, still finds the day's key: one day, the skew and that life
// are shorter than DayKeyLife.
//
// A one-time bundle says by the peer's clock when it ends. Whatever that is
// here, the bundle was minted before now, so it has no more than its life left;
// and a session is fresh for OneTimeLife at least, or, where the clocks differ,
// each would be stale before anything is sealed on it. For a bundle minted on a
// stream both bounds are the same. Nothing is sealed later than BundleSkew after
// the end: the private half of a pool's bundle lives MessageLife longer.
func staleAt(now time.Time, day, oneTime *prekey.Bundle) time.Time {
	at := day.NotAfter.Add(protocol.BundleSkew)
	if oneTime == nil {
		return at
	}
	life, gone := oneTime.NotAfter.Sub(oneTime.NotBefore), oneTime.NotAfter
	if least := now.Add(min(life, protocol.OneTimeLife)); gone.Before(least) {
		gone = least
	}
	for _, most := range []time.Time{now.Add(life), oneTime.NotAfter.Add(protocol.BundleSkew), at} {
		if gone.After(most) {
			gone = most
		}
	}
	return gone
}

// choose returns the session to send on, nil if there is none: the lowest ID
// among those not archived, with a device that counts, and acknowledged or
// still fresh.
func (m *Manager) choose(tx *store.Tx, now time.Time, peer identity.Account) (*session, error) {
	contact, err := loadContact(tx, peer)
	if err != nil {
		return nil, err
	}
	if contact != nil && contact.Renew {
		return nil, nil
	}
	return m.lowest(tx, now, peer, contact)
}

// lowest is choose without regard to a renewal that is due.
func (m *Manager) lowest(tx *store.Tx, now time.Time, peer identity.Account, contact *store.Contact) (*session, error) {
	all, err := m.sessions(tx, now, store.SessionsOf(peer))
	if err != nil {
		return nil, err
	}
	var best *session
	for _, s := range all {
		if s.live() && s.usable(now) && sendTo(contact, s.device, s.row.Dh) && (best == nil || s.before(best)) {
			best = s
		}
	}
	return best, nil
}

// dh returns the peer's identity DH key that a session row keeps.
func (s *session) dh() (x25519.Public, bool) {
	k, err := x25519.Parse(s.row.Dh)
	return k, err == nil
}
