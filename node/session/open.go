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

// Opened is an envelope that opened. It does not print.
type Opened struct {
	Peer    identity.Account
	Device  identity.Device
	Session prekey.SessionID
	Hash    envelope.Hash
	Content []byte   // padded: for envelope.ParseContent
	Ack     [32]byte // the answer to STATUS_DELIVERED, once the transaction is committed

	// New says who introduced themselves, if the envelope opened a session. The
	// manifest in it is sound, and may be newer than the contact's: judge it
	// before the transaction is committed.
	New *prekey.Introduced

	secrets prekey.Secrets // with New

	seen ratchet.Observation
}

// CheckToken reports, in constant time, whether the envelope opened a session
// whose introduction proves token t. A token counts once: spend it in this
// transaction.
func (o *Opened) CheckToken(t identity.Token) bool {
	return o.New != nil && o.New.CheckToken(t, o.secrets)
}

// LogValue keeps content and acknowledgement out of logs.
func (Opened) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps content and acknowledgement out of everything that package fmt
// prints.
func (Opened) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// An origin is what the way that an envelope took says of its sender.
type origin struct {
	account *identity.Account     // nil: nobody known
	device  *identity.DeviceEntry // with account, both proven by the sealed form; nil on a stream
}

// mayBe reports whether the envelope may come from that device, which is both
// its keys. On a stream every device may be there: an envelope proves itself.
func (o origin) mayBe(a identity.Account, d identity.Device, dh []byte) bool {
	return o.device == nil || *o.account == a && o.device.Key == d && string(o.device.DH[:]) == string(dh)
}

// Open opens an envelope, exactly as it came, under the rules of SPEC §8. from
// is the account that the transport's peer is believed to be, nil if nobody
// known; it only decides whether an error may be sent.
//
// The error is a [*Duplicate], [ErrDrop] or an [*Undecryptable], which say how
// to answer; any other is the store's, and the envelope was not looked at.
// With every error, nothing was changed.
func (m *Manager) Open(tx *store.Tx, now time.Time, from *identity.Account, b []byte) (Opened, error) {
	return m.open(tx, now, origin{account: from}, b)
}

// OpenRelayed opens the envelope in what [Manager.OpenSealed] returned. It is
// [Manager.Open], except that the sealed form has proven which device sent the
// envelope: what another device sealed or introduces is dropped, and an error is
// addressed to this one.
func (m *Manager) OpenRelayed(tx *store.Tx, now time.Time, s *envelope.Opened) (Opened, error) {
	return m.open(tx, now, origin{&s.Manifest.Account, &s.Device}, s.Envelope)
}

func (m *Manager) open(tx *store.Tx, now time.Time, from origin, b []byte) (Opened, error) {
	if len(b) > protocol.MaxEnvelope {
		return Opened{}, ErrDrop
	}
	hash := envelope.HashOf(b)
	if err := answered(tx, now, hash); err != nil {
		if d, again := errors.AsType[*Duplicate](err); again {
			if from.device != nil && *from.account != d.Peer {
				return Opened{}, ErrDrop
			}
			m.cfg.Observe.Repeated()
		}
		return Opened{}, err
	}
	e, err := envelope.Parse(b)
	if err != nil {
		return Opened{}, ErrDrop
	}
	id := prekey.SessionID(e.Session)
	s, err := m.load(tx, now, id)
	if err != nil {
		return Opened{}, err
	}
	var o Opened
	switch {
	case s != nil:
		o, err = m.openKnown(tx, now, from, s, hash, e)
	case e.Handshake != nil:
		o, err = m.openFirst(tx, now, from, hash, e)
	default:
		err = m.answerOrigin(tx, from, hash, id, wire.Reason_REASON_NO_SESSION)
	}
	if err != nil {
		return Opened{}, err
	}
	m.cfg.Observe.Opened(o.seen)
	return o, store.ReceivedEnvelopes.Put(tx, store.ReceivedKey(hash), &store.Received{
		Ack: o.Ack[:], Account: o.Peer[:], Dies: now.Add(protocol.DedupeLife).UnixMilli(),
	})
}

// answered returns a *Duplicate if the envelope was opened before.
func answered(tx *store.Tx, now time.Time, hash envelope.Hash) error {
	row, err := store.ReceivedEnvelopes.Get(tx, store.ReceivedKey(hash))
	if absent(err) {
		return nil
	} else if err != nil {
		return err
	}
	d := &Duplicate{}
	if row.Dies <= now.UnixMilli() || len(row.Account) != len(d.Peer) || len(row.Ack) != len(d.Ack) {
		return nil
	}
	copy(d.Peer[:], row.Account)
	copy(d.Ack[:], row.Ack)
	return d
}

// openKnown opens a message of a session that exists, archived or not.
func (m *Manager) openKnown(tx *store.Tx, now time.Time, from origin, s *session, hash envelope.Hash, e *wire.Envelope) (Opened, error) {
	if from.account != nil && *from.account != s.account || !from.mayBe(s.account, s.device, s.row.Dh) {
		return Opened{}, ErrDrop
	}
	contact, err := loadContact(tx, s.account)
	if err != nil {
		return Opened{}, err
	}
	if blocked(contact) || !receiveFrom(contact, s.device, s.row.Dh) {
		return Opened{}, ErrDrop
	}
	state, err := ratchet.Parse(s.row.State)
	if err != nil {
		return Opened{}, fmt.Errorf("reading a session: %w", err)
	}
	state.Forget(int(s.row.Forgotten))

	var failed error
	o, err := state.Open(e.Message, func(id ratchet.SkippedID) (key [32]byte, ok bool) {
		row, err := store.SkippedKeys.Get(tx, store.SkippedKey(s.id, id.Ratchet, id.N))
		switch {
		case absent(err):
		case err != nil:
			failed = err
		case row.Dies > now.UnixMilli() && len(row.Key) == len(key):
			copy(key[:], row.Key)
			ok = true
		}
		return key, ok
	})
	cannot := func() error {
		dh, ok := s.dh()
		if !ok {
			return ErrDrop
		}
		return m.answer(s.account, s.device, dh, hash, s.id, wire.Reason_REASON_CANNOT_OPEN)
	}
	switch {
	case failed != nil:
		return Opened{}, failed
	case errors.Is(err, ratchet.ErrDuplicate):
		return Opened{}, ErrDrop // a spent position: a replay in other bytes
	case err != nil:
		return Opened{}, cannot()
	}
	if room, err := m.room(tx, now, contact, s.account, len(o.Store)); err != nil {
		return Opened{}, err
	} else if !room {
		return Opened{}, cannot()
	}

	if err := keepSkipped(tx, now, s.id, &o); err != nil {
		return Opened{}, err
	}
	s.row.State, s.row.Skipped, s.row.Forgotten = state.Marshal(), uint32(state.Stored()), 0
	s.row.Acknowledged, s.row.Handshake = true, nil // the peer wrote on it, so the peer has it
	if err := s.put(tx); err != nil {
		return Opened{}, err
	}
	if err := m.settle(tx, now, s); err != nil {
		return Opened{}, err
	}
	return opened(s, hash, &o), nil
}

func blocked(c *store.Contact) bool { return c != nil && c.State == store.Contact_BLOCKED }

// settle archives the siblings that both sides have stopped using: the peer
// sends on s, so of the live ones it knows, s is the lowest.
func (m *Manager) settle(tx *store.Tx, now time.Time, s *session) error {
	if !s.live() {
		return nil
	}
	siblings, err := m.sessions(tx, now, store.SessionsWith(s.account, s.device))
	if err != nil {
		return err
	}
	for _, t := range siblings {
		if t.live() && s.before(t) {
			if err := m.archive(tx, now, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// openFirst opens a message that brings its session along. What a stranger can
// make us do is ordered by cost: two lookups, three Diffie-Hellman operations
// for the introduction, and only for a proven sender the rest.
func (m *Manager) openFirst(tx *store.Tx, now time.Time, from origin, hash envelope.Hash, e *wire.Envelope) (Opened, error) {
	hs, id := e.Handshake, prekey.SessionID(e.Session)
	dayID, oneTimeID, err := prekey.Keys(hs)
	if err != nil {
		return Opened{}, ErrDrop
	}
	handshake := prekey.HandshakeID(hs)
	known, err := store.Handshakes.Has(tx, store.HandshakeKey(handshake))
	if err != nil {
		return Opened{}, err
	}
	if known {
		// Its session was looked up by ID and is gone, or the envelope names
		// another: a replay either way.
		return Opened{}, ErrDrop
	}
	day, dies, err := m.own(tx, now, dayID, true)
	if err != nil {
		return Opened{}, err
	}
	if day == nil {
		return Opened{}, m.answerOrigin(tx, from, hash, id, wire.Reason_REASON_KEY_GONE)
	}

	in, err := prekey.OpenKnownIntroduction(m.cfg.Key, m.cfg.Account, &day.private, day.bundle, hs, func(b []byte) (identity.Manifest, bool) {
		return knownManifest(tx, b)
	}, now)
	if err != nil || in.Peer.Account == m.cfg.Account {
		return Opened{}, ErrDrop
	}
	peer := in.Peer
	if !from.mayBe(peer.Account, peer.Device, peer.DH[:]) {
		return Opened{}, ErrDrop
	}
	contact, err := loadContact(tx, peer.Account)
	if err != nil {
		return Opened{}, err
	}
	if blocked(contact) || !receiveFrom(contact, peer.Device, peer.DH[:]) && !newer(&in, contact) {
		return Opened{}, ErrDrop
	}
	if contact == nil {
		if welcome, err := m.cfg.Stranger(tx, now, &in); err != nil {
			return Opened{}, err
		} else if !welcome {
			return Opened{}, ErrDrop
		}
	}
	cannot := func(reason wire.Reason) error {
		err := m.answer(peer.Account, peer.Device, peer.DH, hash, id, reason)
		if u, ok := errors.AsType[*Undecryptable](err); ok {
			u.New = &in
		}
		return err
	}

	var oneTime ownKey
	var private *prekey.Private
	if oneTimeID != nil {
		k, err := m.oneTime(tx, now, *oneTimeID)
		if err != nil {
			return Opened{}, err
		}
		if k == nil {
			return Opened{}, m.oneTimeGone(tx, now, *oneTimeID, peer.Account, cannot(wire.Reason_REASON_KEY_GONE))
		}
		oneTime, private = *k, &k.private
	}
	secrets, err := prekey.Respond(m.cfg.Key, m.cfg.Account, &day.private, day.bundle, private, oneTime.bundle, hs, in)
	if err != nil || secrets.Session != id {
		return Opened{}, cannot(wire.Reason_REASON_CANNOT_OPEN)
	}
	state := ratchet.NewResponder(secrets.Session, secrets.Root, secrets.Associated, day.private.X25519())
	o, err := state.Open(e.Message, nil)
	if err != nil {
		return Opened{}, cannot(wire.Reason_REASON_CANNOT_OPEN)
	}

	if room, err := m.room(tx, now, contact, peer.Account, len(o.Store)); err != nil {
		return Opened{}, err
	} else if !room {
		return Opened{}, cannot(wire.Reason_REASON_CANNOT_OPEN)
	}

	// It opened: everything from here on is one step of the store.
	if err := keepSkipped(tx, now, id, &o); err != nil {
		return Opened{}, err
	}
	err = store.Handshakes.Put(tx, store.HandshakeKey(handshake), &store.Handshake{Session: id[:], Account: peer.Account[:], Dies: dies})
	if err != nil {
		return Opened{}, err
	}
	if oneTimeID != nil {
		if err := m.spend(tx, now, &oneTime, handshake, peer.Account); err != nil {
			return Opened{}, err
		}
	}
	if err := m.archiveReplaced(tx, now, peer.Account, peer.Device, in.Replaces); err != nil {
		return Opened{}, err
	}
	s := &session{account: peer.Account, device: peer.Device, id: id, row: &store.Session{
		Account: peer.Account[:], Device: peer.Device[:], Dh: peer.DH[:],
		State: state.Marshal(), Skipped: uint32(state.Stored()),
		Acknowledged: true,
		Created:      now.UnixMilli(),
	}}
	if in.Replaces != nil {
		s.row.Replaces = in.Replaces[:]
	}
	if err := m.create(tx, now, s, contact); err != nil {
		return Opened{}, err
	}
	if err := renewed(tx, contact, s); err != nil {
		return Opened{}, err
	}
	r := opened(s, hash, &o)
	r.New, r.secrets = &in, secrets
	return r, nil
}

// renewed notes that the renewal that was due has come from the other side: s
// takes the place of the very session that was to be replaced.
func renewed(tx *store.Tx, c *store.Contact, s *session) error {
	if c == nil || !c.Renew || !s.live() || len(c.Replaces) == 0 || string(c.Replaces) != string(s.row.Replaces) {
		return nil
	}
	c.Renew, c.Replaces = false, nil
	return putContact(tx, c)
}

// newer reports whether an introduction's manifest is newer than those that are
// kept, so that a device unknown so far may count. The node decides.
func newer(in *prekey.Introduced, c *store.Contact) bool {
	for _, kept := range [][]byte{c.Manifest, c.HeldManifest} {
		if m, ok := accepted(kept); ok && in.Manifest.Generation <= m.Generation {
			return false
		}
	}
	return true
}

// knownManifest returns the manifest that exactly these bytes hold, if a
// contact's row has them.
func knownManifest(tx *store.Tx, b []byte) (identity.Manifest, bool) {
	m, ok := accepted(b)
	if !ok {
		return identity.Manifest{}, false
	}
	c, err := loadContact(tx, m.Account)
	if err != nil || c == nil || string(c.Manifest) != string(b) {
		return identity.Manifest{}, false
	}
	return m, true
}

// keepSkipped stores the message keys that opening a message skipped, and
// deletes the one it used.
func keepSkipped(tx *store.Tx, now time.Time, id prekey.SessionID, o *ratchet.Opened) error {
	dies := now.Add(protocol.SkippedLife).UnixMilli()
	for i := range o.Store {
		k := &o.Store[i]
		err := store.SkippedKeys.Put(tx, store.SkippedKey(id, k.ID.Ratchet, k.ID.N), &store.Skipped{Key: k.Key[:], Dies: dies})
		if err != nil {
			return err
		}
	}
	if o.Used != nil {
		return store.SkippedKeys.Delete(tx, store.SkippedKey(id, o.Used.Ratchet, o.Used.N))
	}
	return nil
}

func opened(s *session, hash envelope.Hash, o *ratchet.Opened) Opened {
	return Opened{
		Peer: s.account, Device: s.device, Session: s.id, Hash: hash,
		Content: o.Plaintext, Ack: o.Ack.MAC(hash), seen: o.Observation,
	}
}

// answer is the error that makes an honest sender renew.
func (m *Manager) answer(a identity.Account, d identity.Device, dh x25519.Public, hash envelope.Hash, id prekey.SessionID, reason wire.Reason) error {
	e := envelope.NewDecryptionError(m.cfg.Key.DH(), dh, m.self.Device, d, hash, id, reason)
	if e == nil {
		return ErrDrop
	}
	return &Undecryptable{Peer: a, Answer: e}
}

// oneTimeGone adds to the answer to a handshake of account by that its one-time
// key was used before, if a relay is to blame.
func (m *Manager) oneTimeGone(tx *store.Tx, now time.Time, id prekey.KeyID, by identity.Account, answer error) (err error) {
	u, ok := errors.AsType[*Undecryptable](answer)
	if !ok {
		return answer
	}
	if u.Repeated, err = repeated(tx, now, id, by); err != nil {
		return err
	}
	return u
}

// answerOrigin is answer where the envelope does not say who sent it: to the
// device that the sealed form proved, if it is one of a contact's, or to the
// account that the transport's peer is believed to be, if it is a contact with
// one device; and otherwise to nobody.
func (m *Manager) answerOrigin(tx *store.Tx, from origin, hash envelope.Hash, id prekey.SessionID, reason wire.Reason) error {
	if from.account == nil {
		return ErrDrop
	}
	c, err := loadContact(tx, *from.account)
	if err != nil {
		return err
	}
	if c == nil || blocked(c) {
		return ErrDrop
	}
	manifest, ok := accepted(c.Manifest)
	if !ok {
		return ErrDrop
	}
	d := from.device
	switch {
	case d != nil && lists(manifest, d.Key, d.DH[:]):
	case d == nil && len(manifest.Devices) == 1:
		d = &manifest.Devices[0]
	default:
		return ErrDrop
	}
	return m.answer(*from.account, d.Key, d.DH, hash, id, reason)
}
