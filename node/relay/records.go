package relay

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

const (
	recordsAhead  = 16            // days ahead of today that a record may be for
	recordsADay   = 2             // records of one day in one box: an account's replicas
	publishAtOnce = 4             // records
	publishLook   = time.Minute   // between two looks whether there are new records
	publishAgain  = 6 * time.Hour // between two publications of a record
	publishEarly  = time.Hour     // before its day, as the owner does (SPEC §10.5)
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
		return fewADay(tx, q.id)
	})
	s.records.Store(true)
	return count(held), err
}

// fewADay returns [quota] if a box has too many records for one day: each is
// published, which takes up to a minute.
func fewADay(tx *store.Tx, id relay.QueueID) error {
	days := map[uint32]int{}
	for r, err := range store.RelayRecords.Scan(tx, store.RelayOf(id), nil) {
		if errors.Is(err, store.ErrDamaged) {
			continue
		}
		if err != nil {
			return err
		}
		if days[r.Value.Day]++; days[r.Value.Day] > recordsADay {
			return quota
		}
	}
	return nil
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

// An attempt is the last one to publish a record.
type attempt struct {
	at time.Time
	ok bool
}

// publish publishes records that are due, until ctx ends. It looks through those
// that are held when there are new ones, and when one of them becomes due.
func (s *Service) publish(ctx context.Context) {
	every := time.NewTicker(publishLook)
	defer every.Stop()
	tried := map[[32]byte]attempt{}
	var looked, next time.Time
	for {
		now := s.now()
		if s.records.Swap(false) || !now.Before(next) || now.Before(looked) { // last: somebody set the clock
			looked, next = now, s.publishDue(ctx, tried)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// publishDue publishes what is due, in turns over accounts and several at once,
// and returns when to look again. After a turn it stops if there are new records,
// so that they do not wait for all that one account has.
func (s *Service) publishDue(ctx context.Context, tried map[[32]byte]attempt) (next time.Time) {
	turns, next, err := s.due(tried)
	begun := s.now()
	if err != nil {
		s.log.Warn("looking for records to publish", "error", err)
		next = begun
	}
	var mu sync.Mutex // guards tried, and next, until the publishers have ended
	keys := make(chan store.RowKey)
	var publishers sync.WaitGroup
	for range publishAtOnce {
		publishers.Go(func() {
			for key := range keys {
				ok := s.publishOne(ctx, key)
				mu.Lock()
				tried[[32]byte(key[relay.QueueIDSize:])] = attempt{s.now(), ok}
				if !ok {
					next = begun // tried again at the next look
				}
				mu.Unlock()
			}
		})
	}
	stopped := false
	for _, turn := range turns {
		if stopped = s.records.Load() && s.now().Sub(begun) >= publishLook; stopped || ctx.Err() != nil {
			break
		}
		for _, key := range turn {
			select {
			case keys <- key:
			case <-ctx.Done():
			}
		}
	}
	close(keys)
	publishers.Wait()
	if stopped {
		next = begun
	}
	return next
}

// publishOne publishes a record, and reports whether that is done: one that was
// dropped meanwhile needs nothing more.
func (s *Service) publishOne(ctx context.Context, key store.RowKey) bool {
	rec, err := s.held(key)
	if err == nil && rec.Bytes != nil {
		err = s.cfg.Publish(ctx, rec)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Debug("record not published", "error", err)
	}
	return err == nil
}

// due returns the rows of records of today, or tomorrow's shortly before, that
// were not published lately, in turns: each is one row of every account that has
// some left, in no order that anybody chooses, and first of those that were not
// tried. It returns also when there may be more if these are published, and
// forgets attempts that are long past.
func (s *Service) due(tried map[[32]byte]attempt) (turns [][]store.RowKey, next time.Time, err error) {
	now := s.now()
	next = now.Add(publishAgain)
	for k, a := range tried {
		again := a.at.Add(publishAgain)
		if !now.Before(again.Add(publishAgain)) {
			delete(tried, k)
		} else if a.ok && now.Before(again) && again.Before(next) {
			next = again
		}
	}
	today, tomorrow := dayOf(now), dayOf(now.Add(publishEarly))
	if tomorrow == today {
		if early := now.Truncate(24 * time.Hour).Add(24*time.Hour - publishEarly); early.Before(next) {
			next = early
		}
	}
	var keys []store.RowKey
	err = s.db.View(func(tx *store.Tx) error {
		for r, err := range store.RelayRecords.Scan(tx, nil, nil) {
			if errors.Is(err, store.ErrDamaged) {
				continue
			}
			if err != nil {
				return err
			}
			last := tried[[32]byte(r.Key[relay.QueueIDSize:])]
			lately := last.ok && now.Before(last.at.Add(publishAgain))
			if d := r.Value.Day; !lately && (d == today || d == tomorrow) {
				keys = append(keys, r.Key)
			}
		}
		return nil
	})
	slices.SortStableFunc(keys, func(a, b store.RowKey) int {
		return tried[[32]byte(a[relay.QueueIDSize:])].at.Compare(tried[[32]byte(b[relay.QueueIDSize:])].at)
	})
	accounts := map[string][]store.RowKey{}
	s.mu.Lock()
	for _, k := range keys {
		if q := s.queues[relay.QueueID(k[:relay.QueueIDSize])]; q != nil {
			sh := string(q.row.Share)
			accounts[sh] = append(accounts[sh], k)
		}
	}
	s.mu.Unlock()
	for i := 0; len(accounts) > 0; i++ {
		var turn []store.RowKey
		for sh, ks := range accounts {
			turn = append(turn, ks[i])
			if i+1 == len(ks) {
				delete(accounts, sh)
			}
		}
		turns = append(turns, turn)
	}
	return turns, next, err
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
