package session

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// A session is a row of store.Sessions and its key.
type session struct {
	account identity.Account
	device  identity.Device
	id      prekey.SessionID
	row     *store.Session
}

func (s *session) key() store.RowKey { return store.SessionKey(s.account, s.device, s.id) }

func (s *session) put(tx *store.Tx) error { return store.Sessions.Put(tx, s.key(), s.row) }

// live reports whether the session may be sent on.
func (s *session) live() bool { return s.row.Archived == 0 }

// dead reports whether an archived session's time is over: it is gone, whether
// or not the store has swept it.
func (s *session) dead(now time.Time) bool {
	return !s.live() && !now.Before(time.UnixMilli(s.row.Archived).Add(protocol.ArchivedLife))
}

// usable reports whether the peer can still be expected to open what is sealed
// on s.
func (s *session) usable(now time.Time) bool {
	return s.row.Acknowledged || now.UnixMilli() < s.row.Stale
}

// before orders sessions by ID.
func (s *session) before(t *session) bool { return bytes.Compare(s.id[:], t.id[:]) < 0 }

// with reports whether s is a session with that device.
func (s *session) with(a identity.Account, d identity.Device) bool {
	return s.account == a && s.device == d
}

// load returns the session of that ID, nil if there is none. A damaged row is
// none: its peer is told so, and renews.
func (m *Manager) load(tx *store.Tx, now time.Time, id prekey.SessionID) (*session, error) {
	owner, err := store.SessionOwners.Get(tx, store.SessionOwnerKey(id))
	if absent(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	k := store.RowKey(owner.Data)
	row, err := store.Sessions.Get(tx, k)
	if absent(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	s := &session{account: k.Account(), device: k.Device(), id: k.Session(), row: row}
	if s.dead(now) {
		return nil, nil
	}
	return s, nil
}

// absent reports whether a row is to be treated as not there.
func absent(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDamaged)
}

// sessions returns the sessions under a prefix that are not dead, by device and
// then ID.
func (m *Manager) sessions(tx *store.Tx, now time.Time, prefix store.RowKey) ([]*session, error) {
	var all []*session
	for r, err := range store.Sessions.Scan(tx, prefix, nil) {
		if absent(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		s := &session{account: r.Key.Account(), device: r.Key.Device(), id: r.Key.Session(), row: r.Value}
		if !s.dead(now) {
			all = append(all, s)
		}
	}
	return all, nil
}

// create keeps a new session and the bounds on its device's. A session that a
// known one has replaced already, because it arrives late, is archived at
// birth: replaced sessions always lose. Sessions of the account's devices that
// count no more go: a contact may change devices as often as it likes.
func (m *Manager) create(tx *store.Tx, now time.Time, s *session, contact *store.Contact) error {
	all, err := m.sessions(tx, now, store.SessionsOf(s.account))
	if err != nil {
		return err
	}
	for _, t := range all {
		if !t.with(s.account, s.device) && !receiveFrom(contact, t.device, t.row.Dh) {
			if err := remove(tx, t.key()); err != nil {
				return err
			}
		}
	}
	siblings, err := m.sessions(tx, now, store.SessionsWith(s.account, s.device))
	if err != nil {
		return err
	}
	live := []*session{}
	for _, t := range siblings {
		if string(t.row.Replaces) == string(s.id[:]) {
			s.row.Archived = now.UnixMilli()
		}
		if t.live() {
			live = append(live, t)
		}
	}
	k := s.key()
	if err := store.SessionOwners.Put(tx, store.SessionOwnerKey(s.id), &store.Blob{Data: k}); err != nil {
		return err
	}
	if err := s.put(tx); err != nil {
		return err
	}
	if s.live() {
		live = append(live, s)
	}
	slices.SortFunc(live, func(a, b *session) int { return bytes.Compare(a.id[:], b.id[:]) })
	if len(live) > maxLive {
		return m.archive(tx, now, live[maxLive:]...)
	}
	return m.trim(tx, now, s)
}

// room reports whether more skipped keys may be stored for a: those of all its
// sessions together are bounded, and those of a stranger, who could make us
// keep thousands of rows with each envelope, to a batch. Whoever skips more is
// told that the message does not open, and starts again from the beginning.
func (m *Manager) room(tx *store.Tx, now time.Time, contact *store.Contact, a identity.Account, more int) (bool, error) {
	if more == 0 {
		return true, nil
	}
	most := maxSkipped
	if contact == nil || contact.State == store.Contact_REQUEST {
		most = protocol.MaxBatch
	}
	all, err := m.sessions(tx, now, store.SessionsOf(a))
	if err != nil {
		return false, err
	}
	for _, s := range all {
		more += int(s.row.Skipped)
	}
	return more <= most, nil
}

// archive takes sessions out of use for sending.
func (m *Manager) archive(tx *store.Tx, now time.Time, sessions ...*session) error {
	for _, s := range sessions {
		if !s.live() {
			continue
		}
		s.row.Archived = max(now.UnixMilli(), 1)
		if err := s.put(tx); err != nil {
			return err
		}
		if err := m.trim(tx, now, s); err != nil {
			return err
		}
	}
	return nil
}

// trim deletes the sessions with s's device that are archived beyond
// MaxArchived, those archived first first.
func (m *Manager) trim(tx *store.Tx, now time.Time, s *session) error {
	all, err := m.sessions(tx, now, store.SessionsWith(s.account, s.device))
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, (*session).live)
	slices.SortStableFunc(all, func(a, b *session) int { return int(a.row.Archived - b.row.Archived) })
	for _, old := range all[:max(0, len(all)-protocol.MaxArchived)] {
		if err := remove(tx, old.key()); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes a session and all that hangs on it.
func remove(tx *store.Tx, k store.RowKey) error {
	id := k.Session()
	for r, err := range store.SkippedKeys.Scan(tx, store.SkippedOf(id), nil) {
		if err != nil && !absent(err) {
			return err
		}
		if err := store.SkippedKeys.Delete(tx, r.Key); err != nil {
			return err
		}
	}
	if err := store.SessionOwners.Delete(tx, store.SessionOwnerKey(id)); err != nil {
		return err
	}
	return store.Sessions.Delete(tx, k)
}

// archiveReplaced archives the session that a handshake with this device
// names, if it is one of theirs.
func (m *Manager) archiveReplaced(tx *store.Tx, now time.Time, a identity.Account, d identity.Device, replaces *prekey.SessionID) error {
	if replaces == nil {
		return nil
	}
	s, err := m.load(tx, now, *replaces)
	if s == nil || err != nil || !s.with(a, d) {
		return err
	}
	return m.archive(tx, now, s)
}

// loadContact returns the contact, nil if there is none.
func loadContact(tx *store.Tx, a identity.Account) (*store.Contact, error) {
	c, err := store.Contacts.Get(tx, store.ContactKey(a))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return c, err
}

func putContact(tx *store.Tx, c *store.Contact) error {
	return store.Contacts.Put(tx, store.ContactKey(identity.Account(c.Account)), c)
}

// accepted returns a manifest that the node keeps: identity.OpenManifest
// accepted it, and the store authenticates its rows, so nothing is checked
// again.
func accepted(b []byte) (identity.Manifest, bool) {
	var s wire.Signed
	var w wire.Manifest
	if len(b) == 0 || wire.Parse(b, protocol.MaxManifest, &s) != nil || wire.Parse(s.Body, protocol.MaxManifest, &w) != nil ||
		len(w.Account) != identity.KeySize {
		return identity.Manifest{}, false
	}
	m := identity.Manifest{Account: identity.Account(w.Account), Generation: w.Generation}
	for _, d := range w.Devices {
		if len(d.Key) != identity.KeySize || len(d.Dh) != x25519.Size {
			return identity.Manifest{}, false
		}
		m.Devices = append(m.Devices, identity.DeviceEntry{Key: identity.Device(d.Key), DH: x25519.Public(d.Dh)})
	}
	return m, true
}

// sendTo reports whether contents may be encrypted to that device: it is in
// the contact's accepted manifest, with that DH key. Of whom no manifest is
// known, the session itself is what is known.
//
// A device is both its keys. A handshake proves the DH key alone, and whoever
// has the account key can write any DH key beside the name of a device that the
// user knows.
func sendTo(c *store.Contact, d identity.Device, dh []byte) bool {
	if c == nil {
		return true
	}
	m, ok := accepted(c.Manifest)
	return !ok || lists(m, d, dh)
}

// receiveFrom reports whether contents of that device count: it is in a
// manifest that is kept, accepted or waiting for the user's decision.
func receiveFrom(c *store.Contact, d identity.Device, dh []byte) bool {
	if sendTo(c, d, dh) {
		return true
	}
	m, ok := accepted(c.HeldManifest)
	return ok && lists(m, d, dh)
}

func lists(m identity.Manifest, d identity.Device, dh []byte) bool {
	e, ok := m.Device(d)
	return ok && string(e.DH[:]) == string(dh)
}
