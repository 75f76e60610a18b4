package relay

import (
	"bytes"
	"errors"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// box returns an attached contact box.
func (c *client) box(id []byte) (*queue, error) {
	q, err := c.mine(id)
	if err == nil && q.kind != wire.QueueKind_QUEUE_KIND_BOX {
		err = refused
	}
	return q, err
}

func count(n uint32) *wire.RelayAnswer {
	return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK, Result: &wire.RelayAnswer_Count{Count: &wire.RelayCount{Count: n}}}
}

// putKeys adds one-time keys to a box's pool, all or none. Another pool's name
// empties the pool.
func (c *client) putKeys(m *wire.RelayPutKeys) (*wire.RelayAnswer, error) {
	s := c.s
	if err := s.taking(); err != nil {
		return nil, err
	}
	q, err := c.box(m.Queue)
	if err != nil {
		return nil, err
	}
	if !s.within(m.Expires, protocol.BlobLife) {
		return nil, malformed
	}
	n := int64(len(m.Keys)) * protocol.KeyBlob
	if err := s.reserveShare(q, n); err != nil {
		return nil, err
	}
	defer s.releaseShare(q, n)
	held := uint32(0)
	err = s.change(q.id, func(tx *store.Tx, row *store.RelayQueue) error {
		if !bytes.Equal(row.Pool, m.Pool) {
			if err := dropKeys(tx, q.id); err != nil {
				return err
			}
			row.Pool, row.Keys = m.Pool, 0
		}
		if err := s.expireKeys(tx, q.id, row); err != nil {
			return err
		}
		if int(row.Keys)+len(m.Keys) > protocol.PoolKeys {
			return quota
		}
		for _, k := range m.Keys {
			// The order goes on after a pool was emptied, so that no name is used twice.
			row.Put++
			if err := store.RelayKeys.Put(tx, store.RelayOneTimeKey(q.id, row.Put), &store.RelayOneTime{Blob: k, Expires: m.Expires}); err != nil {
				return err
			}
			row.Keys++
		}
		held = row.Keys
		return nil
	})
	return count(held), err
}

// reserveShare keeps n bytes of a queue's account, until releaseShare.
func (s *Service) reserveShare(q *queue, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.roomLocked(q.share, n) {
		return quota
	}
	q.share.reserveLocked(n)
	return nil
}

func (s *Service) releaseShare(q *queue, n int64) {
	s.mu.Lock()
	q.share.reserveLocked(-n)
	s.mu.Unlock()
}

// countKeys counts the keys of a pool that are not over.
func (c *client) countKeys(m *wire.RelayCountKeys) (*wire.RelayAnswer, error) {
	q, err := c.box(m.Queue)
	if err != nil {
		return nil, err
	}
	n, now := uint32(0), c.s.now64()
	err = c.s.db.View(func(tx *store.Tx) error {
		row, err := c.s.rowOf(tx, q.id)
		if err != nil || !bytes.Equal(row.Pool, m.Pool) {
			return err
		}
		for k, err := range store.RelayKeys.Scan(tx, store.RelayOf(q.id), nil) {
			if err != nil {
				return err
			}
			if k.Value.Expires > now {
				n++
			}
		}
		return nil
	})
	return count(n), err
}

// takeKey gives away the oldest one-time key, for good: it is deleted before it
// is answered, in one transaction with the use of the token.
func (c *client) takeKey(m *wire.RelayTakeKey) (*wire.RelayAnswer, error) {
	s := c.s
	id := relay.QueueID(m.Queue)
	q, row := s.placeOf(id)
	if q == nil || q.kind != wire.QueueKind_QUEUE_KIND_BOX || !bytes.Equal(row.Pool, m.Pool) {
		return nil, refused
	}
	var token []byte
	if t, ok := m.Admit.(*wire.RelayTakeKey_Token); ok {
		token = t.Token
		if !hasToken(row, token) {
			return nil, refused
		}
	} else if err := s.workForKey(q, m); err != nil {
		return nil, err
	}
	var blob []byte
	err := s.change(id, func(tx *store.Tx, row *store.RelayQueue) (err error) {
		blob, err = s.takeIn(tx, id, row, m.Pool, token)
		return err
	})
	switch {
	case err == nil && blob == nil:
		err = empty
	case err == nil:
		s.counters.keys.Add(1)
	}
	return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK, Result: &wire.RelayAnswer_Key{Key: &wire.RelayKey{Key: blob}}}, err
}

// workForKey checks and counts the work for a one-time key, before anybody looks
// at how many there are.
func (s *Service) workForKey(q *queue, m *wire.RelayTakeKey) error {
	w := m.GetWork()
	if !s.within(w.Expires, protocol.KeyWorkLife) {
		return malformed
	}
	stamp := relay.KeyStamp(s.self, q.id, relay.PoolID(m.Pool), [16]byte(w.Salt), w.Expires)
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	want := s.bitsLocked(&q.draining, &s.emptying, now)
	if relay.CheckWork(stamp, w.Nonce, want) != nil {
		return demand(want)
	}
	if _, used := s.keyStamps[stamp.Hash()]; used {
		return refused
	}
	if len(s.keyStamps) >= s.cfg.Limits.Stamps {
		return quota
	}
	s.keyStamps[stamp.Hash()] = w.Expires
	q.draining.add(now)
	s.emptying.add(now)
	return nil
}

// takeIn takes the oldest key that is not over, or returns nil. A nil token is
// work, for which the reserve is not.
func (s *Service) takeIn(tx *store.Tx, id relay.QueueID, row *store.RelayQueue, pool, token []byte) ([]byte, error) {
	if !bytes.Equal(row.Pool, pool) {
		return nil, refused
	}
	var t *store.RelayToken
	if token != nil {
		if t = findToken(row.Tokens, token); t == nil || t.Keys >= protocol.TokenKeys {
			return nil, refused
		}
	}
	now := s.now64()
	for k, err := range store.RelayKeys.Scan(tx, store.RelayOf(id), nil) {
		switch {
		case errors.Is(err, store.ErrDamaged): // it is nobody's any more
		case err != nil:
			return nil, err
		case k.Value.Expires <= now:
		case t == nil && row.Keys <= protocol.PoolReserve:
			return nil, nil
		}
		if e := store.RelayKeys.Delete(tx, k.Key); e != nil {
			return nil, e
		}
		row.Keys--
		if err != nil || k.Value.Expires <= now {
			continue
		}
		if t != nil {
			t.Keys++
		}
		return k.Value.Blob, nil
	}
	return nil, nil
}

// dropKeys deletes all keys of a box.
func dropKeys(tx *store.Tx, id relay.QueueID) error {
	for k, err := range store.RelayKeys.Scan(tx, store.RelayOf(id), nil) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return err
		}
		if err := store.RelayKeys.Delete(tx, k.Key); err != nil {
			return err
		}
	}
	return nil
}

// expireKeys deletes the keys of a box that are over, and counts those that are
// left.
func (s *Service) expireKeys(tx *store.Tx, id relay.QueueID, row *store.RelayQueue) error {
	now := s.now64()
	row.Keys = 0
	for k, err := range store.RelayKeys.Scan(tx, store.RelayOf(id), nil) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return err
		}
		if err == nil && k.Value.Expires > now {
			row.Keys++
			continue
		}
		if err := store.RelayKeys.Delete(tx, k.Key); err != nil {
			return err
		}
	}
	return nil
}

// expireBox deletes the keys, records and blobs of a box that are over; the
// chunks of the latter are deleted with the messages that are over.
func (s *Service) expireBox(q *queue) error {
	return s.change(q.id, func(tx *store.Tx, row *store.RelayQueue) error {
		if err := s.expireKeys(tx, q.id, row); err != nil {
			return err
		}
		if err := s.expireRecords(tx, q.id, row); err != nil {
			return err
		}
		return s.expireBlobs(tx, q.id, row)
	})
}
