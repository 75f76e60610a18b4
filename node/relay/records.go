package relay

import (
	"context"
	"errors"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

const (
	recordsAhead = 16            // days ahead of today that a record may be for
	publishLook  = time.Minute   // between two looks whether there are new records
	publishAgain = 6 * time.Hour // between two publications of a record
	publishEarly = time.Hour     // before its day, as the owner does (SPEC §10.5)
)

// dayOf returns the day of t: days since 1970-01-01 UTC.
func dayOf(t time.Time) uint32 { return uint32(t.Unix() / 86400) }

// putRecords holds DHT records of today and of coming days, all or none. Each is
// checked as its holders will, on its own day.
func (c *client) putRecords(m *wire.RelayPutRecords) (*wire.RelayAnswer, error) {
	s := c.s
	if s.cfg.Publish == nil {
		return nil, malformed
	}
	if err := s.taking(); err != nil {
		return nil, err
	}
	q, err := c.box(m.Queue)
	if err != nil {
		return nil, err
	}
	today := dayOf(s.now())
	rows := make([]*store.RelayAhead, len(m.Records))
	keys := make([]store.RowKey, len(m.Records))
	for i, rec := range m.Records {
		key, day, err := s.cfg.CheckRecord(rec)
		if err != nil || day < today || day-today > recordsAhead {
			return nil, malformed
		}
		rows[i], keys[i] = &store.RelayAhead{Record: rec, Day: day}, store.RelayRecordKey(q.id, key)
	}
	n := int64(len(m.Records)) * protocol.MaxRecord
	if err := s.reserveShare(q, n); err != nil {
		return nil, err
	}
	defer s.releaseShare(q, n)
	held := uint32(0)
	err = s.change(q.id, func(tx *store.Tx, row *store.RelayQueue) error {
		if m.Replace {
			if err := dropRecords(tx, q.id); err != nil {
				return err
			}
		}
		if err := s.expireRecords(tx, q.id, row); err != nil {
			return err
		}
		for i, k := range keys {
			has, err := store.RelayRecords.Has(tx, k)
			if err != nil {
				return err
			}
			if !has {
				row.Records++
			}
			if row.Records > protocol.MaxRecordsAhead {
				return quota
			}
			if err := store.RelayRecords.Put(tx, k, rows[i]); err != nil {
				return err
			}
		}
		held = row.Records
		return nil
	})
	s.records.Store(true)
	return count(held), err
}

// dropRecords deletes all records of a box.
func dropRecords(tx *store.Tx, id relay.QueueID) error {
	for r, err := range store.RelayRecords.Scan(tx, store.RelayOf(id), nil) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return err
		}
		if err := store.RelayRecords.Delete(tx, r.Key); err != nil {
			return err
		}
	}
	return nil
}

// expireRecords deletes the records of a box whose day is over, and counts those
// that are left.
func (s *Service) expireRecords(tx *store.Tx, id relay.QueueID, row *store.RelayQueue) error {
	today := dayOf(s.now())
	row.Records = 0
	for r, err := range store.RelayRecords.Scan(tx, store.RelayOf(id), nil) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return err
		}
		if err == nil && r.Value.Day >= today {
			row.Records++
			continue
		}
		if err := store.RelayRecords.Delete(tx, r.Key); err != nil {
			return err
		}
	}
	return nil
}

// publish publishes records that are due, until ctx ends. It looks through those
// that are held when there are new ones, and when one of them becomes due.
func (s *Service) publish(ctx context.Context) {
	every := time.NewTicker(publishLook)
	defer every.Stop()
	done := map[[32]byte]time.Time{} // when each was last published
	var looked, next time.Time
	for {
		now := s.now()
		if s.records.Swap(false) || !now.Before(next) || now.Before(looked) { // last: somebody set the clock
			looked, next = now, s.publishDue(ctx, done)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// publishDue publishes what is due, and returns when to look again.
func (s *Service) publishDue(ctx context.Context, done map[[32]byte]time.Time) (next time.Time) {
	due, next, err := s.due(done)
	if err != nil {
		s.log.Warn("looking for records to publish", "error", err)
		next = s.now()
	}
	for _, key := range due {
		rec, err := s.held(key)
		if err != nil {
			next = s.now()
		}
		if err != nil || rec.Bytes == nil {
			continue // tried at the next look, or dropped meanwhile
		}
		if err := s.cfg.Publish(ctx, rec); err != nil {
			if ctx.Err() != nil {
				return next
			}
			s.log.Debug("record not published", "error", err)
			next = s.now()
			continue
		}
		done[rec.Key] = s.now()
	}
	return next
}

// due returns the rows of records of today, or tomorrow's shortly before, that
// were not published lately, and when there may be more if those are. It forgets
// what it knows of other days.
func (s *Service) due(done map[[32]byte]time.Time) (keys []store.RowKey, next time.Time, err error) {
	now := s.now()
	next = now.Add(publishAgain)
	for k, at := range done {
		again := at.Add(publishAgain)
		if !now.Before(again) {
			delete(done, k)
		} else if again.Before(next) {
			next = again
		}
	}
	today, tomorrow := dayOf(now), dayOf(now.Add(publishEarly))
	if tomorrow == today {
		if early := now.Truncate(24 * time.Hour).Add(24*time.Hour - publishEarly); early.Before(next) {
			next = early
		}
	}
	err = s.db.View(func(tx *store.Tx) error {
		for r, err := range store.RelayRecords.Scan(tx, nil, nil) {
			if errors.Is(err, store.ErrDamaged) {
				continue
			}
			if err != nil {
				return err
			}
			_, lately := done[[32]byte(r.Key[relay.QueueIDSize:])]
			if d := r.Value.Day; !lately && (d == today || d == tomorrow) {
				keys = append(keys, r.Key)
			}
		}
		return nil
	})
	return keys, next, err
}

// held reads a record, or returns none.
func (s *Service) held(key store.RowKey) (rec Record, err error) {
	err = s.db.View(func(tx *store.Tx) error {
		row, err := store.RelayRecords.Get(tx, key)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err == nil {
			rec = Record{Key: [32]byte(key[relay.QueueIDSize:]), Bytes: row.Record}
		}
		return err
	})
	return rec, err
}
