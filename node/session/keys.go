package session

import (
	"fmt"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
)

// An ownKey is a bundle of this device and its private half, expanded.
type ownKey struct {
	private prekey.Private
	bundle  *prekey.Bundle
	relay   *identity.Transport // whose pool it is for, or nil
}

// DayBundle returns the signed bundle of a day: of today, of one of the
// DaysAhead days after it, or of an earlier day that was made in time. It makes
// and signs all that do not exist yet from today on. The private half of a day
// dies DayKeyLife after the start of the day.
func (m *Manager) DayBundle(tx *store.Tx, now time.Time, day uint32) ([]byte, error) {
	row, err := m.dayRow(tx, day)
	if err != nil {
		return nil, err
	}
	if row != nil {
		return row.Bundle, nil
	}
	clear(m.days)
	for r, err := range store.PreKeys.Scan(tx, nil, nil) {
		if absent(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		if r.Value.Day != 0 {
			m.days[r.Value.Day] = prekey.KeyID(r.Key)
		}
	}
	today := prekey.DayOf(now)
	for d := today; d <= today+protocol.DaysAhead; d++ {
		if _, ok := m.days[d]; ok {
			continue
		}
		id, _, err := m.mint(tx, wire.Role_ROLE_DAY, d, prekey.DayStart(d), prekey.DayStart(d+1), prekey.DayStart(d).Add(protocol.DayKeyLife))
		if err != nil {
			return nil, err
		}
		m.days[d] = id
	}
	if row, err = m.dayRow(tx, day); err != nil {
		return nil, err
	}
	if row == nil {
		return nil, fmt.Errorf("session: day %d is not among the %d from day %d on", day, protocol.DaysAhead+1, today)
	}
	return row.Bundle, nil
}

// dayRow returns the row of a day if memory knows where it is.
func (m *Manager) dayRow(tx *store.Tx, day uint32) (*store.PreKey, error) {
	id, ok := m.days[day]
	if !ok || day == 0 {
		return nil, nil
	}
	row, err := store.PreKeys.Get(tx, store.PreKeyKey(id))
	if absent(err) || err == nil && row.Day != day {
		return nil, nil
	}
	return row, err
}

// MintOneTime returns a fresh signed one-time bundle, for one peer that asks on
// a stream. Its private half dies after OneTimeLife, or with the first message
// that uses it. The error is [ErrBusy] if [MaxOneTime] are alive.
func (m *Manager) MintOneTime(tx *store.Tx, now time.Time) ([]byte, error) {
	alive := 0
	for r, err := range store.PreKeys.Scan(tx, nil, nil) {
		if err != nil && !absent(err) {
			return nil, err
		}
		switch {
		case err != nil || r.Value.Day != 0:
		case r.Value.Dies <= now.UnixMilli():
			if err := m.forget(tx, prekey.KeyID(r.Key)); err != nil {
				return nil, err
			}
		default:
			alive++
		}
	}
	if alive >= MaxOneTime {
		return nil, ErrBusy
	}
	end := now.Add(protocol.OneTimeLife)
	_, bundle, err := m.mint(tx, wire.Role_ROLE_ONE_TIME, 0, now, end, end)
	return bundle, err
}

// mint draws, signs and keeps a bundle.
func (m *Manager) mint(tx *store.Tx, role wire.Role, day uint32, notBefore, notAfter, dies time.Time) (prekey.KeyID, []byte, error) {
	private, err := prekey.NewPrivate(m.cfg.Rand)
	if err != nil {
		return prekey.KeyID{}, nil, err
	}
	b := prekey.SignBundle(m.cfg.Key, m.cfg.Account, role, m.cfg.Capabilities, notBefore, notAfter, &private)
	bundle, err := prekey.OwnBundle(b, &private)
	if err != nil {
		return prekey.KeyID{}, nil, err
	}
	x, kem := private.Seeds()
	err = store.PreKeys.Put(tx, store.PreKeyKey(bundle.ID), &store.PreKey{
		X25519Seed: x[:], KemSeed: kem, Bundle: b, Day: day, Dies: dies.UnixMilli(),
	})
	return bundle.ID, b, err
}

// own returns the bundle of that ID if its private half still lives, and the
// unix milliseconds at which that dies. day says which kind it has to be.
func (m *Manager) own(tx *store.Tx, now time.Time, id prekey.KeyID, day bool) (k *ownKey, dies int64, err error) {
	row, err := store.PreKeys.Get(tx, store.PreKeyKey(id))
	if absent(err) {
		delete(m.keys, id)
		return nil, 0, nil
	} else if err != nil {
		return nil, 0, err
	}
	if row.Dies <= now.UnixMilli() || (row.Day != 0) != day {
		return nil, 0, nil
	}
	if k, ok := m.keys[id]; ok {
		return k, row.Dies, nil
	}
	if len(row.X25519Seed) != 32 {
		return nil, 0, fmt.Errorf("reading a pre-key: %w", store.ErrDamaged)
	}
	private, err := prekey.RestorePrivate([32]byte(row.X25519Seed), row.KemSeed)
	if err != nil {
		return nil, 0, fmt.Errorf("reading a pre-key: %w", err)
	}
	bundle, err := prekey.OwnBundle(row.Bundle, &private)
	if err != nil {
		return nil, 0, fmt.Errorf("reading a pre-key: %w", err)
	}
	k = &ownKey{private: private, bundle: bundle}
	if day {
		// One-time keys are used once. A few days are in use at a time; more
		// than that only after weeks of running.
		if len(m.keys) >= 8 {
			clear(m.keys)
		}
		m.keys[id] = k
	}
	return k, row.Dies, nil
}

// forget deletes a bundle's private half.
func (m *Manager) forget(tx *store.Tx, id prekey.KeyID) error {
	delete(m.keys, id)
	return store.PreKeys.Delete(tx, store.PreKeyKey(id))
}
