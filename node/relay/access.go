package relay

import (
	"bytes"
	"context"
	"errors"
	"math"
	"time"

	"starling/node/relay/spool"
	"starling/node/store"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// renew sets queues' expiry, all or none, never to an earlier time.
func (c *client) renew(m *wire.RelayRenew) (*wire.RelayAnswer, error) {
	s := c.s
	if err := s.taking(); err != nil {
		return nil, err
	}
	qs := make([]*queue, len(m.Queues))
	for i, id := range m.Queues {
		q, err := c.mine(id)
		if err != nil {
			return nil, err
		}
		if q.kind == wire.QueueKind_QUEUE_KIND_LOG {
			return nil, refused
		}
		if !s.within(m.Expires, kinds[q.kind].queue) {
			return nil, malformed
		}
		qs[i] = q
	}
	if err := s.db.Update(func(tx *store.Tx) error {
		for _, q := range qs {
			if err := s.changeIn(tx, q.id, func(tx *store.Tx, row *store.RelayQueue) error {
				row.Expires = max(row.Expires, m.Expires)
				return admitted(tx, row.Share)
			}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	answer := new(wire.RelayQueues)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range qs {
		answer.Queues = append(answer.Queues, q.wireLocked())
	}
	return queuesAnswer(answer), nil
}

// setAccess replaces who may deposit. A token that stays keeps its uses.
func (c *client) setAccess(m *wire.RelaySetAccess) (*wire.RelayAnswer, error) {
	if err := c.s.taking(); err != nil {
		return nil, err
	}
	q, err := c.mine(m.Queue)
	if err != nil {
		return nil, err
	}
	switch q.kind {
	case wire.QueueKind_QUEUE_KIND_PAIRWISE:
		if len(m.Tokens) > 0 {
			return nil, malformed
		}
		err = c.s.change(q.id, func(_ *store.Tx, row *store.RelayQueue) error {
			row.Capability = m.Capability
			return nil
		})
	case wire.QueueKind_QUEUE_KIND_BOX:
		if len(m.Capability) > 0 {
			return nil, malformed
		}
		err = c.s.change(q.id, func(_ *store.Tx, row *store.RelayQueue) error {
			old := row.Tokens
			row.Tokens = nil
			for _, hash := range m.Tokens {
				switch {
				case findToken(row.Tokens, hash) != nil: // twice in the list
				case findToken(old, hash) != nil:
					row.Tokens = append(row.Tokens, findToken(old, hash))
				default:
					row.Tokens = append(row.Tokens, &store.RelayToken{Hash: hash})
				}
			}
			return nil
		})
	default:
		err = refused
	}
	return ok(), err
}

// findToken returns a token of a box by its hash. It is for hashes that are known
// to be in the list, or come from its owner: it takes no constant time.
func findToken(tokens []*store.RelayToken, hash []byte) *store.RelayToken {
	for _, t := range tokens {
		if bytes.Equal(t.Hash, hash) {
			return t
		}
	}
	return nil
}

// drop deletes a queue and all that is kept for it.
func (c *client) drop(m *wire.RelayDrop) (*wire.RelayAnswer, error) {
	q, err := c.mine(m.Queue)
	if err != nil {
		return nil, err
	}
	if q.kind == wire.QueueKind_QUEUE_KIND_LOG {
		return nil, refused
	}
	return ok(), c.s.dropQueue(c.ctx, q)
}

// dropQueue deletes a queue's rows, and then its messages: what a crash leaves of
// these has no queue, and is dropped by the next New.
func (s *Service) dropQueue(ctx context.Context, q *queue) error {
	var chunks []spool.Queue
	err := s.db.Update(func(tx *store.Tx) error {
		if _, err := s.rowOf(tx, q.id); err != nil {
			return err // dropped by another stream
		}
		if err := store.RelayQueues.Delete(tx, store.RelayQueueKey(q.id)); err != nil {
			return err
		}
		if err := dropKeys(tx, q.id); err != nil {
			return err
		}
		if err := dropRecords(tx, q.id); err != nil {
			return err
		}
		var err error
		if chunks, err = s.dropBlobs(tx, q.id, func(blobName, *store.RelayBlob) bool { return true }); err != nil {
			return err
		}
		tx.OnCommit(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			q.gone = true
			s.forgetStampsLocked(q, math.MaxInt64)
		})
		return nil
	})
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	return errors.Join(s.bury(ctx, q), s.spool.Drop(ctx, chunks...))
}

// bury deletes the messages of a queue that is gone. The last deposit that was
// on its way when the queue was dropped does it again.
func (s *Service) bury(ctx context.Context, q *queue) error {
	err := s.spool.Drop(ctx, spool.Queue(q.id))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && q.inflight.messages == 0 && s.queues[q.id] == q {
		s.removeLocked(q)
	}
	return err
}

// delete deletes entries that the reader has.
func (c *client) delete(m *wire.RelayDelete) (*wire.RelayAnswer, error) {
	for _, d := range m.Deletions {
		q, err := c.mine(d.Queue)
		if err != nil {
			return nil, err
		}
		if q.kind == wire.QueueKind_QUEUE_KIND_LOG {
			return nil, refused
		}
	}
	var keys []spool.Key
	for _, d := range m.Deletions {
		for _, id := range d.Ids {
			keys = append(keys, spool.Key{Queue: spool.Queue(d.Queue), ID: id})
		}
	}
	err := c.s.spool.DeleteAll(c.ctx, keys)
	for _, d := range m.Deletions {
		c.s.measure(c.attached[relay.QueueID(d.Queue)])
	}
	if err != nil {
		return nil, err
	}
	return ok(), nil
}

// expire deletes what is over: messages and chunks, then queues that are over and
// empty, one-time keys, records of past days, blobs, proofs of work.
func (s *Service) expire(ctx context.Context) error {
	now := s.now64()
	_, err := s.spool.Expire(ctx, s.now())
	var over, boxes []*queue
	s.mu.Lock()
	s.keyStamps.forget(now)
	look := now >= s.boxed+int64(expireBoxes/time.Second) || now < s.boxed
	if look {
		s.boxed = now
	}
	for _, q := range s.queues {
		s.measureLocked(q)
		s.forgetStampsLocked(q, now)
		switch {
		case q.gone:
		case q.row.Expires <= now && q.messages == 0 && q.inflight.messages == 0:
			over = append(over, q)
		case look && (q.row.Keys > 0 || q.row.Records > 0 || q.row.Blobs > 0):
			boxes = append(boxes, q)
		}
	}
	s.mu.Unlock()
	for _, q := range over {
		if e := s.dropQueue(ctx, q); e != nil && !errors.Is(e, refused) {
			err = errors.Join(err, e)
		}
	}
	for _, q := range boxes {
		if e := s.expireBox(q); e != nil && !errors.Is(e, refused) {
			err = errors.Join(err, e)
		}
	}
	return err
}
