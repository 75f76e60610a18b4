package store

import (
	"context"
	"encoding/binary"
	"errors"
	"time"
)

// sweepChunk is the most rows that one transaction of the sweeper touches, so
// that nobody's update waits long behind it.
const sweepChunk = 128 // rows

// Intervals of [DB.Run].
const collectEvery = 10 * time.Minute // giving space back to the disk

// Run keeps the database in order until ctx ends, then returns nil: it replaces
// the erase key, deletes rows that died, and gives space back to the disk. A
// failure of one of these is logged and tried again; it returns early with
// [ErrClosed] if the database is closed.
func (db *DB) Run(ctx context.Context) error {
	now := time.Now() // for pauses; rows die by db.now
	erase := now.Add(db.eraseEvery)
	if len(db.ring.Load().keys) > 1 {
		erase = now // a crash interrupted it
	}
	collect := now.Add(collectEvery)
	due := make([]time.Time, len(all)) // when each table is swept next; past at first
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-db.closing:
			return ErrClosed
		case <-timer.C:
		}
		now := time.Now()
		if !now.Before(erase) {
			erase = now.Add(db.eraseEvery)
			if db.active.Load() {
				db.chore("erasing deleted secrets", db.rotate(ctx))
			}
		}
		if !now.Before(collect) {
			collect = now.Add(collectEvery)
			db.chore("collecting space", db.collect(ctx))
		}
		next := erase
		if collect.Before(next) {
			next = collect
		}
		for i, t := range all {
			if t.dies == nil {
				continue
			}
			if !now.Before(due[i]) {
				due[i] = now.Add(t.pause)
				db.chore("sweeping", db.sweep(ctx, t, db.now()))
			}
			if due[i].Before(next) {
				next = due[i]
			}
		}
		timer.Reset(time.Until(next))
	}
}

func (db *DB) chore(what string, err error) {
	if err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, context.Canceled) {
		db.log.Warn("database upkeep", "step", what, "error", err)
	}
}

// collect gives space back until there is nothing to gain.
func (db *DB) collect(ctx context.Context) error {
	for ctx.Err() == nil {
		if !db.enter() {
			return ErrClosed
		}
		done, err := db.engine.collect()
		db.leave()
		if done || err != nil {
			return err
		}
	}
	return nil
}

// change goes over a table in chunks, each a View that picks rows and an Update
// that changes them; apply must look again, for the row may have changed in
// between.
func (db *DB) change(ctx context.Context, t *table, pick func(place string, read func() ([]byte, error)) bool, apply func(tx *Tx, place string) error) error {
	for from := t.place(nil); ; {
		var places []string
		err := db.View(func(tx *Tx) error {
			for place, read := range tx.scan(t.place(nil), from, false) {
				if !pick(place, read) {
					continue
				}
				if places = append(places, place); len(places) == sweepChunk {
					break
				}
			}
			return ctx.Err()
		})
		if err != nil || len(places) == 0 {
			return err
		}
		if err := db.Update(func(tx *Tx) error {
			for i, place := range places {
				err := tx.Try(func(tx *Tx) error { return apply(tx, place) })
				if errors.Is(err, ErrTooBig) && i > 0 {
					places = places[:i] // the others come again
					return nil
				}
				if err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		from = places[len(places)-1] + "\x00"
	}
}

// sweep deletes the rows of a table that are dead at now.
func (db *DB) sweep(ctx context.Context, t *table, now time.Time) error {
	dead := func(raw []byte, err error) bool {
		if err != nil || raw == nil {
			return false // damage is for who reads it to report
		}
		at, err := t.dies(raw)
		return err == nil && at != 0 && at <= now.UnixMilli()
	}
	return db.change(ctx, t,
		func(_ string, read func() ([]byte, error)) bool { return dead(read()) },
		func(tx *Tx, place string) error {
			if !dead(tx.get(place)) {
				return nil
			}
			return tx.drop(t, place)
		})
}

// drop deletes a row and what hangs on it.
func (tx *Tx) drop(t *table, place string) error {
	if err := tx.put(place, nil); err != nil {
		return err
	}
	switch t {
	case Sessions.t:
		return sessionGone(tx, RowKey(place[1:]))
	case SkippedKeys.t:
		return skippedGone(tx, RowKey(place[1:]))
	}
	return nil
}

// sessionGone deletes what hangs on a session.
func sessionGone(tx *Tx, k RowKey) error {
	id := k.Session()
	for row, err := range SkippedKeys.Scan(tx, SkippedOf(id), nil) {
		if err := errors.Join(ignoreDamage(err), SkippedKeys.Delete(tx, row.Key)); err != nil {
			return err
		}
	}
	return SessionOwners.Delete(tx, SessionOwnerKey(id))
}

// skippedGone keeps the session's count of its skipped keys right.
func skippedGone(tx *Tx, k RowKey) error {
	id, _, _ := k.Skipped()
	owner, err := SessionOwners.Get(tx, SessionOwnerKey(id))
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	s, err := Sessions.Get(tx, RowKey(owner.Data))
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	s.Skipped -= min(s.Skipped, 1)
	s.Forgotten++
	return Sessions.Put(tx, RowKey(owner.Data), s)
}

// rotate replaces the erase key. A crash at any point leaves a state that Open
// reads and the next rotation finishes:
//
//	file: old        rows: old           nothing happened
//	file: new, old   rows: old           both keys are known before a row needs the new one
//	file: new, old   rows: old and new   rows move over, in many commits
//	file: new        rows: new           the old key is gone
func (db *DB) rotate(ctx context.Context) error {
	select {
	case db.chores <- struct{}{}:
		defer func() { <-db.chores }()
	case <-ctx.Done():
		return ctx.Err()
	}
	db.active.Store(false)
	err := db.rotateAlone(ctx)
	if err != nil {
		db.active.Store(true)
	}
	return err
}

func (db *DB) rotateAlone(ctx context.Context) error {
	r := db.ring.Load()
	if len(r.keys) == 1 {
		k, err := newEraseKey(db.rand)
		if err != nil {
			return err
		}
		r = &ring{[]*eraseKey{k, r.keys[0]}}
		if err := db.writeRing(r); err != nil {
			return err
		}
	}
	id := r.keys[0].id
	// The writer itself takes the new key, so that no commit under the old one
	// comes after this.
	if err := db.Update(func(tx *Tx) error {
		db.ring.Store(r)
		tx.setInternal(rowErase, id)
		return nil
	}); err != nil {
		return err
	}
	for _, t := range all {
		if !t.secret {
			continue
		}
		if err := db.change(ctx, t,
			func(string, func() ([]byte, error)) bool { return true },
			func(tx *Tx, place string) error { return tx.rewrap(place, id) }); err != nil {
			return err
		}
	}
	r = &ring{r.keys[:1]}
	if err := db.writeRing(r); err != nil {
		return err
	}
	db.ring.Store(r)
	return nil
}

// rewrap writes a row again unless it is under the erase key id already.
func (tx *Tx) rewrap(place string, id uint64) error {
	if _, ok := tx.pending.get(place); ok {
		return nil // it is about to be
	}
	b, err := tx.snap.get(place)
	if err != nil || b == nil {
		return err
	}
	inner, ok := tx.db.rows.open(b, place)
	if ok && len(inner) >= eraseIDSize && binary.BigEndian.Uint64(inner) == id {
		return nil
	}
	if ok {
		inner, ok = tx.ring.open(inner, place)
	}
	if !ok {
		return nil // damaged: it stays for who reads it
	}
	return tx.write(place, inner)
}

// purge deletes the secret rows that do not open, after a rollback.
func (db *DB) purge() error {
	for _, t := range all {
		if !t.secret {
			continue
		}
		if err := db.change(context.Background(), t,
			func(_ string, read func() ([]byte, error)) bool {
				_, err := read()
				return errors.Is(err, ErrDamaged)
			},
			func(tx *Tx, place string) error { return tx.drop(t, place) }); err != nil {
			return err
		}
	}
	return nil
}
