package session

import (
	"errors"
	"fmt"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
)

// HandleError judges a decryption error that peer answered to the envelope of
// that hash, and acts on it if it is authentic and within bounds: the session
// is archived, the contact is marked for a renewal that names it, and the
// envelopes that were sealed on it are cleared in the outbox, so that the same
// contents are sealed again, in the same order, on the fresh session. acted
// says whether anything was done; if not, keep retrying the same bytes.
//
// It acts once an envelope, on nothing that is not in peer's send log, and at
// most once a RenewEvery a peer; not counted are a pre-key that was gone before
// the session was ever acknowledged, and an envelope of a session that is out
// of use already, which only has to be sealed again.
func (m *Manager) HandleError(tx *store.Tx, now time.Time, peer identity.Account, hash envelope.Hash, e *wire.DecryptionError) (acted bool, err error) {
	out, err := sent(tx, peer, hash)
	if out == nil || err != nil {
		return false, err
	}
	if string(e.GetEnvelope()) != string(hash[:]) || string(e.GetSession()) != string(out.Session) || len(out.Session) != len(prekey.SessionID{}) {
		return false, nil
	}
	contact, err := loadContact(tx, peer)
	if contact == nil || err != nil {
		return false, err
	}
	id := prekey.SessionID(out.Session)
	s, err := m.load(tx, now, id)
	if err != nil {
		return false, err
	}
	if !m.authentic(contact, s, e) {
		return false, nil
	}

	switch {
	case s == nil || !s.live():
		// Known to be over. The live session, or the renewal that is due, will
		// carry the contents.
	case e.Reason == wire.Reason_REASON_KEY_GONE && !s.row.Acknowledged:
		// The session never began. Nothing is wrong with any other.
		if err := m.archive(tx, now, s); err != nil {
			return false, err
		}
	case recently(now, contact.Renewed):
		return false, nil
	default:
		contact.Renewed = now.UnixMilli()
		// The peer lost state, and who knows how much: none of the others is
		// sent on any more either.
		if err := m.archiveWith(tx, now, s); err != nil {
			return false, err
		}
	}
	return true, m.renew(tx, now, peer, contact, id)
}

// Suspect renews the sessions with peer on our own initiative: an envelope was
// dropped again and again by a peer that is there, and no authentic error says
// why. At most once a RenewEvery a peer; acted says whether it was done.
func (m *Manager) Suspect(tx *store.Tx, now time.Time, peer identity.Account, hash envelope.Hash) (acted bool, err error) {
	out, err := sent(tx, peer, hash)
	if out == nil || err != nil || len(out.Session) != len(prekey.SessionID{}) {
		return false, err
	}
	contact, err := loadContact(tx, peer)
	if contact == nil || err != nil || recently(now, contact.Suspected) {
		return false, err
	}
	contact.Suspected = now.UnixMilli()
	id := prekey.SessionID(out.Session)
	s, err := m.load(tx, now, id)
	if err != nil {
		return false, err
	}
	if s != nil && s.live() {
		if err := m.archiveWith(tx, now, s); err != nil {
			return false, err
		}
	}
	return true, m.renew(tx, now, peer, contact, id)
}

// KeyRefused reports whether the next session with peer takes the place of one
// that began with a one-time key and was given up before it was acknowledged or
// stale: the key was gone, as far as is known. Go on without one (T3): a relay
// that gives one key to everybody would give it again.
func (m *Manager) KeyRefused(tx *store.Tx, now time.Time, peer identity.Account) (bool, error) {
	contact, err := loadContact(tx, peer)
	if err != nil || contact == nil || len(contact.Replaces) != len(prekey.SessionID{}) {
		return false, err
	}
	s, err := m.load(tx, now, prekey.SessionID(contact.Replaces))
	if err != nil || s == nil || s.row.Acknowledged || len(s.row.Handshake) == 0 || s.row.Archived >= s.row.Stale {
		return false, err
	}
	hs := new(wire.Handshake)
	if err := wire.Parse(s.row.Handshake, protocol.MaxEnvelope, hs); err != nil {
		return false, fmt.Errorf("reading a stored handshake: %w", err)
	}
	_, oneTime, err := prekey.Keys(hs)
	return oneTime != nil, err
}

// recently reports whether at lies within the last RenewEvery. A time in the
// future, from a clock that was wrong, does not count.
func recently(now time.Time, at int64) bool {
	d := now.Sub(time.UnixMilli(at))
	return at != 0 && d >= 0 && d < protocol.RenewEvery
}

// sent returns the outbox row of an envelope in peer's send log, nil if it is
// not there.
func sent(tx *store.Tx, peer identity.Account, hash envelope.Hash) (*store.Outgoing, error) {
	ref, err := store.Unacked.Get(tx, store.UnackedKey(hash))
	if errors.Is(err, store.ErrNotFound) || err == nil && string(ref.Account) != string(peer[:]) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	out, err := store.Outbox.Get(tx, store.OutboxKey(peer, ref.Order))
	if errors.Is(err, store.ErrNotFound) || err == nil && string(out.Hash) != string(hash[:]) {
		return nil, nil
	}
	return out, err
}

// authentic checks the error's MAC: under the device of the session, or, if
// that is gone, under any device of the contact.
func (m *Manager) authentic(c *store.Contact, s *session, e *wire.DecryptionError) bool {
	own := m.cfg.Key
	if s != nil {
		dh, ok := s.dh()
		return ok && envelope.VerifyDecryptionError(own.DH(), dh, s.device, own.Device(), e)
	}
	manifest, _ := accepted(c.Manifest)
	for _, d := range manifest.Devices {
		if envelope.VerifyDecryptionError(own.DH(), d.DH, d.Key, own.Device(), e) {
			return true
		}
	}
	return false
}

// archiveWith archives s and every sibling.
func (m *Manager) archiveWith(tx *store.Tx, now time.Time, s *session) error {
	if err := m.archive(tx, now, s); err != nil {
		return err
	}
	siblings, err := m.sessions(tx, now, store.SessionsWith(s.account, s.device))
	if err != nil {
		return err
	}
	return m.archive(tx, now, siblings...)
}

// renew marks the contact for a fresh session that replaces id, unless another
// can be sent on, and clears the envelopes that no live session carries.
func (m *Manager) renew(tx *store.Tx, now time.Time, peer identity.Account, contact *store.Contact, id prekey.SessionID) error {
	other, err := m.lowest(tx, now, peer, contact)
	if err != nil {
		return err
	}
	if !contact.Renew && other == nil {
		contact.Renew, contact.Replaces = true, id[:]
	}
	if err := putContact(tx, contact); err != nil {
		return err
	}
	return m.unseal(tx, now, peer)
}

// unseal clears the envelopes to peer that were sealed on a session that is not
// live, oldest first and at most maxReseal bytes of them. With its row in the
// send log goes the permission to act on another error about it.
func (m *Manager) unseal(tx *store.Tx, now time.Time, peer identity.Account) error {
	live := map[prekey.SessionID]bool{}
	all, err := m.sessions(tx, now, store.SessionsOf(peer))
	if err != nil {
		return err
	}
	for _, s := range all {
		live[s.id] = s.live()
	}
	size := 0
	for r, err := range store.Outbox.Scan(tx, store.OutboxOf(peer), nil) {
		if err != nil {
			return err
		}
		out := r.Value
		if len(out.Envelope) == 0 || len(out.Session) == len(prekey.SessionID{}) && live[prekey.SessionID(out.Session)] {
			continue
		}
		if len(out.Hash) == len(envelope.Hash{}) {
			if err := store.Unacked.Delete(tx, store.UnackedKey([32]byte(out.Hash))); err != nil {
				return err
			}
		}
		out.Envelope, out.Hash, out.Session, out.Ack, out.Dropped = nil, nil, nil, nil, 0
		if err := store.Outbox.Put(tx, r.Key, out); err != nil {
			return err
		}
		if size += len(out.Content); size > maxReseal {
			return nil
		}
	}
	return nil
}

// archiveAtOnce is how many sessions one call of ArchiveAll takes.
const archiveAtOnce = 128

// ArchiveAll takes every session out of use for sending, after the store came
// back in an older state (store.DB.RolledBack): keys that were used since may
// not be used again. Each contact that had one is marked for a renewal, and
// one-time keys, which may have been used too, are deleted: fill the pools at
// relays anew. Rows that do not open because their erase key is gone are deleted
// as well. Sealing keys stay, like those of days: they are not used up.
//
// Envelopes in the outbox stay as they are: they were sealed before, and the
// same bytes are what the peer expects. Call it, a transaction each, while it
// reports more, before anything is sealed.
func (m *Manager) ArchiveAll(tx *store.Tx, now time.Time) (more bool, err error) {
	clear(m.keys)
	clear(m.days)
	for r, err := range store.PreKeys.Scan(tx, nil, nil) {
		switch {
		case errors.Is(err, store.ErrDamaged) || err == nil && r.Value.Day == 0:
			if err := store.PreKeys.Delete(tx, r.Key); err != nil {
				return false, err
			}
		case err != nil:
			return false, err
		}
	}
	for r, err := range store.PoolKeys.Scan(tx, nil, nil) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return false, err
		}
		if err := store.PoolKeys.Delete(tx, r.Key); err != nil {
			return false, err
		}
	}
	n := 0
	for r, err := range store.Sessions.Scan(tx, nil, nil) {
		damaged := errors.Is(err, store.ErrDamaged)
		if err != nil && !damaged {
			return false, err
		}
		if !damaged && r.Value.Archived != 0 {
			continue
		}
		if n++; n > archiveAtOnce {
			return true, nil
		}
		s := &session{account: r.Key.Account(), device: r.Key.Device(), id: r.Key.Session(), row: r.Value}
		if damaged {
			err = remove(tx, r.Key)
		} else {
			err = m.archive(tx, now, s)
		}
		if err != nil {
			return false, err
		}
		contact, err := loadContact(tx, s.account)
		if err != nil {
			return false, err
		}
		// The scan is in order of IDs: the first one is what the peer sends on.
		if contact == nil || contact.Renew {
			continue
		}
		contact.Renew, contact.Replaces = true, s.id[:]
		if err := putContact(tx, contact); err != nil {
			return false, err
		}
	}
	return false, nil
}
