package session

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
)

// ErrSeenSealed means that exactly this sealed envelope was opened before: the
// relay had not deleted it yet, or repeats it. Delete it there, and do nothing
// else.
var ErrSeenSealed = errors.New("session: sealed envelope was opened before")

// SealingKeys returns the signed sealing keys of this week and of the
// WeeksAhead after it, in this order, for whoever is to leave envelopes at a
// relay (SPEC §7.6). It makes those that do not exist yet. A key counts as
// published from the first call that returns it; so that what a reader of the
// keys seals can be opened, commit before they leave.
//
// It also deletes the private halves whose time is over: SealingKeyLife after
// the week, and as long after a later week's key was first returned. Call it
// whenever keys are given out, and at least once a day.
func (m *Manager) SealingKeys(tx *store.Tx, now time.Time) ([][]byte, error) {
	var signed [][]byte
	week := envelope.WeekOf(now)
	newest := week + protocol.WeeksAhead
	for ; week <= newest; week++ {
		row, err := store.SealingKeys.Get(tx, store.SealingKeyKey(week))
		if absent(err) {
			row, err = m.newSealingKey(tx, week)
		}
		if err != nil {
			return nil, err
		}
		signed = append(signed, row.Signed)
	}
	for r, err := range store.SealingKeys.Scan(tx, nil, nil) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return nil, err
		}
		if err := m.ageSealingKey(tx, now, r, newest); err != nil {
			return nil, err
		}
	}
	return signed, nil
}

// ageSealingKey deletes a row that is damaged or dead, and writes down when it
// dies once a later week's key, the newest, is given out.
func (m *Manager) ageSealingKey(tx *store.Tx, now time.Time, r store.Row[*store.SealingKey], newest uint32) error {
	row := r.Value
	if row == nil || over(row, now) {
		return store.SealingKeys.Delete(tx, r.Key)
	}
	dies := sealingDies(r.Key.Week(), now).UnixMilli()
	switch {
	case row.Dies == 0 && r.Key.Week() < newest:
	case row.Dies > dies: // the clock was ahead when its successor was published
	default:
		return nil
	}
	row.Dies = dies
	return store.SealingKeys.Put(tx, r.Key, row)
}

// newSealingKey draws, signs and keeps the key of a week.
func (m *Manager) newSealingKey(tx *store.Tx, week uint32) (*store.SealingKey, error) {
	private, err := envelope.NewSealingPrivate(m.cfg.Rand)
	if err != nil {
		return nil, err
	}
	seed := private.Seed()
	row := &store.SealingKey{Seed: seed[:], Signed: envelope.SignSealingKey(m.cfg.Key, m.cfg.Account, week, private)}
	return row, store.SealingKeys.Put(tx, store.SealingKeyKey(week), row)
}

// sealingDies returns when the private half of a week's key dies, if the first
// key of a later week is published now. Until then it has no successor and does
// not die: an owner who stays away longer than the keys made ahead is written
// to with the last of them.
func sealingDies(week uint32, now time.Time) time.Time {
	dies, successor := envelope.SealingKeyDeath(week), now.Add(protocol.SealingKeyLife)
	if successor.After(dies) {
		return successor
	}
	return dies
}

// over reports whether a private half is dead, whether or not it is deleted.
func over(row *store.SealingKey, now time.Time) bool {
	return row.Dies != 0 && row.Dies <= now.UnixMilli()
}

// OpenSealed opens a sealed envelope that lay in a queue of this device, with
// whichever of its living keys fits, and remembers it for DedupeLife. Give the
// result to [Manager.OpenRelayed] within the same transaction; if that refuses
// the envelope of a contact, the memory of it is still to be kept, or a relay
// could cause the same refusal, and an answer to it, again and again.
//
// The error is [ErrSeenSealed], or [envelope.ErrSealed] for all that a stranger
// can cause: delete the envelope at the relay and answer nothing. Neither leaves
// a row. Any other error is the store's, and the envelope was not looked at.
func (m *Manager) OpenSealed(tx *store.Tx, now time.Time, queue [32]byte, sealed []byte) (envelope.Opened, error) {
	if len(sealed) > protocol.MaxSealed {
		return envelope.Opened{}, envelope.ErrSealed
	}
	k := store.SeenSealedKey(envelope.HashOf(sealed))
	row, err := store.SeenSealed.Get(tx, k)
	switch {
	case err == nil && row.Dies > now.UnixMilli():
		return envelope.Opened{}, ErrSeenSealed
	case err != nil && !absent(err):
		return envelope.Opened{}, err
	}
	keys, err := m.sealingKeys(tx, now)
	if err != nil {
		return envelope.Opened{}, err
	}
	o, err := envelope.OpenKnownSealed(keys, m.cfg.Key, queue, sealed, func(b []byte) (identity.Manifest, bool) {
		return knownManifest(tx, b)
	}, now)
	if err != nil {
		return envelope.Opened{}, err
	}
	return o, store.SeenSealed.Put(tx, k, &store.Seen{Dies: now.Add(protocol.DedupeLife).UnixMilli()})
}

// sealingKeys returns the private halves that live: this week's first, then by
// distance from it, so that the usual envelope costs one attempt. There are six
// or so, and one more for each time the clock was wrong by months.
func (m *Manager) sealingKeys(tx *store.Tx, now time.Time) ([]*envelope.SealingPrivate, error) {
	living := map[uint32]*envelope.SealingPrivate{}
	for r, err := range store.SealingKeys.Scan(tx, nil, nil) {
		if absent(err) || err == nil && over(r.Value, now) {
			continue
		} else if err != nil {
			return nil, err
		}
		week := r.Key.Week()
		if living[week], err = m.sealingKey(week, r.Value); err != nil {
			return nil, err
		}
	}
	m.sealing = living // and nothing dead

	this := envelope.WeekOf(now)
	distance := func(week uint32) uint32 { return max(week, this) - min(week, this) }
	weeks := slices.SortedFunc(maps.Keys(living), func(a, b uint32) int {
		if d := int(distance(a)) - int(distance(b)); d != 0 {
			return d
		}
		return int(a) - int(b)
	})
	keys := make([]*envelope.SealingPrivate, 0, len(weeks))
	for _, week := range weeks {
		keys = append(keys, living[week])
	}
	return keys, nil
}

// sealingKey returns the private half that a row holds, from memory if it is
// expanded there. Memory may hold another one of that week, whose row was never
// committed.
func (m *Manager) sealingKey(week uint32, row *store.SealingKey) (*envelope.SealingPrivate, error) {
	if len(row.Seed) != 32 {
		return nil, fmt.Errorf("reading a sealing key: %w", store.ErrDamaged)
	}
	if k, ok := m.sealing[week]; ok {
		if seed := k.Seed(); subtle.ConstantTimeCompare(seed[:], row.Seed) == 1 {
			return k, nil
		}
	}
	return envelope.RestoreSealingPrivate([32]byte(row.Seed)), nil
}
