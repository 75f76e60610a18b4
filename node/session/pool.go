package session

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
)

// MaxPool is how many one-time pairs for the pool at one relay live at once:
// those that lie there, and those that were given out and not used yet, which
// whoever drains a pool can make many of. Each is a row of some 250 bytes. Above
// the bound the oldest die early; whoever got one of these is told that it is
// gone and starts again.
const MaxPool = 4 * protocol.PoolKeys

// poolKept is how long the private half of a pool's bundle outlives its
// validity: somebody whose clock is late uses the bundle, and what they write
// then is as old as it may become (SPEC §5.1).
const poolKept = protocol.BundleSkew + protocol.MessageLife

// MintPool returns n fresh signed one-time bundles, at most PoolKeys, for the
// pool at a relay (T2, SPEC §13.8). They are valid for PoolKeyLife from now, and
// their private halves die 15 days after that, or with the first message that
// uses them. More than [MaxPool] do not live for one relay.
//
// Put a bundle there once: if the relay did not answer, it may have given some
// out already, so leave the batch and mint another.
func (m *Manager) MintPool(tx *store.Tx, now time.Time, relay identity.Transport, n int) ([][]byte, error) {
	if n < 0 || n > protocol.PoolKeys {
		return nil, fmt.Errorf("session: %d keys for a pool, at most %d can be made", n, protocol.PoolKeys)
	}
	if err := thinPool(tx, now, relay, MaxPool-n); err != nil {
		return nil, err
	}
	notBefore := now.Truncate(time.Second)
	notAfter := notBefore.Add(protocol.PoolKeyLife)
	bundles := make([][]byte, 0, n)
	for range n {
		private, err := prekey.NewPrivate(m.cfg.Rand)
		if err != nil {
			return nil, err
		}
		x, kem := private.Seeds()
		row := &store.PoolKey{
			X25519Seed: x[:], KemSeed: kem, Capabilities: m.cfg.Capabilities,
			NotBefore: notBefore.Unix(), NotAfter: notAfter.Unix(),
			Relay: relay[:], Dies: notAfter.Add(poolKept).UnixMilli(),
		}
		b, bundle, err := m.poolBundle(row, &private)
		if err != nil {
			return nil, err
		}
		if err := store.PoolKeys.Put(tx, store.PoolKeyKey(bundle.ID), row); err != nil {
			return nil, err
		}
		bundles = append(bundles, b)
	}
	return bundles, nil
}

// thinPool deletes keys of a relay's pool until at most n live: the dead, and
// then the oldest, which a relay gives out first.
func thinPool(tx *store.Tx, now time.Time, relay identity.Transport, n int) error {
	type key struct {
		row  store.RowKey
		made int64
	}
	var living []key
	for r, err := range store.PoolKeys.Scan(tx, nil, nil) {
		switch {
		case errors.Is(err, store.ErrDamaged) || err == nil && r.Value.Dies <= now.UnixMilli():
			if err := store.PoolKeys.Delete(tx, r.Key); err != nil {
				return err
			}
		case err != nil:
			return err
		case string(r.Value.Relay) == string(relay[:]):
			living = append(living, key{r.Key, r.Value.NotBefore})
		}
	}
	slices.SortStableFunc(living, func(a, b key) int { return cmp.Compare(a.made, b.made) })
	for _, k := range living[:max(0, len(living)-n)] {
		if err := store.PoolKeys.Delete(tx, k.row); err != nil {
			return err
		}
	}
	return nil
}

// poolBundle makes the bundle of a pool's key, which has one form only: the
// signature is deterministic, and its ID does not depend on it.
func (m *Manager) poolBundle(row *store.PoolKey, private *prekey.Private) ([]byte, *prekey.Bundle, error) {
	b := prekey.SignBundle(m.cfg.Key, m.cfg.Account, wire.Role_ROLE_ONE_TIME, row.Capabilities,
		time.Unix(row.NotBefore, 0), time.Unix(row.NotAfter, 0), private)
	bundle, err := prekey.OwnBundle(b, private)
	return b, bundle, err
}

// oneTime returns the one-time key of that ID if it still lives, minted on a
// stream or for a pool, and otherwise nil.
func (m *Manager) oneTime(tx *store.Tx, now time.Time, id prekey.KeyID) (*ownKey, error) {
	if k, _, err := m.own(tx, now, id, false); k != nil || err != nil {
		return k, err
	}
	row, err := store.PoolKeys.Get(tx, store.PoolKeyKey(id))
	if absent(err) || err == nil && row.Dies <= now.UnixMilli() {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if len(row.X25519Seed) != 32 || len(row.Relay) != len(identity.Transport{}) {
		return nil, fmt.Errorf("reading a pool's key: %w", store.ErrDamaged)
	}
	private, err := prekey.RestorePrivate([32]byte(row.X25519Seed), row.KemSeed)
	if err != nil {
		return nil, fmt.Errorf("reading a pool's key: %w", err)
	}
	_, bundle, err := m.poolBundle(row, &private)
	if err != nil {
		return nil, fmt.Errorf("reading a pool's key: %w", err)
	}
	if bundle.ID != id {
		return nil, nil // a program that makes other bundles of the same keys wrote the row
	}
	relay := identity.Transport(row.Relay)
	return &ownKey{private: private, bundle: bundle, relay: &relay}, nil
}

// spend deletes a one-time key that handshake, of account by, used. A pool's
// leaves a row, for the memory of its use must outlast every other copy of it
// that the relay may have given out.
func (m *Manager) spend(tx *store.Tx, now time.Time, k *ownKey, handshake [32]byte, by identity.Account) error {
	if k.relay == nil {
		return m.forget(tx, k.bundle.ID)
	}
	at := store.PoolKeyKey(k.bundle.ID)
	if err := store.PoolKeys.Delete(tx, at); err != nil {
		return err
	}
	return store.UsedOneTime.Put(tx, at, &store.UsedKey{
		Relay: k.relay[:], Handshake: handshake[:], Account: by[:], Dies: now.Add(protocol.DedupeLife).UnixMilli(),
	})
}

// repeated returns whose pool a one-time key came from, and who used it before,
// if that was another account than by. That one account used a key twice says
// nothing of the relay.
func repeated(tx *store.Tx, now time.Time, id prekey.KeyID, by identity.Account) (*Repeated, error) {
	row, err := store.UsedOneTime.Get(tx, store.PoolKeyKey(id))
	switch {
	case absent(err):
		return nil, nil
	case err != nil:
		return nil, err
	case row.Dies <= now.UnixMilli() || len(row.Account) != len(by) || string(row.Account) == string(by[:]) || len(row.Relay) != len(identity.Transport{}):
		return nil, nil
	}
	return &Repeated{Relay: identity.Transport(row.Relay), First: identity.Account(row.Account)}, nil
}
