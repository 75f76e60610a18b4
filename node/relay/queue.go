package relay

import (
	"time"

	"starling/node/relay/spool"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// A queue is what the service knows of a queue. Its fields are guarded by
// Service.mu.
type queue struct {
	id    relay.QueueID // never changes
	kind  wire.QueueKind
	share *share            // on whose account it is; never changes
	row   *store.RelayQueue // as committed; replaced, never changed

	messages int   // in the spool, as measured last
	bytes    int64 // of their blobs
	inflight amount
	latest   *deposit // of those, the one that was reserved last; nil once it has ended

	filling, draining pressure // of a contact box: by work
	readers           []*client
	stamps            stamps // of work for deposits; nil: none
	gone              bool   // dropped; stays until its last deposit has returned
}

// An amount is of messages that are on their way to the disk.
type amount struct {
	messages int
	bytes    int64
}

// A share is an account of what is kept: of an admission token, or of an
// address block, or of all address blocks together.
type share struct {
	queues   int
	bytes    int64 // of messages, one-time keys, records and blobs
	inflight int64
	stamps   int    // of work for deposits in its boxes
	of       *share // all address blocks, for one of them; else nil
}

// addLocked counts n bytes that are kept, or, below zero, that are not any more.
func (sh *share) addLocked(n int64) {
	for ; sh != nil; sh = sh.of {
		sh.bytes += n
	}
}

// reserveLocked counts n bytes that are on their way.
func (sh *share) reserveLocked(n int64) {
	for ; sh != nil; sh = sh.of {
		sh.inflight += n
	}
}

// roomLocked reports whether n bytes more fit on an account.
func (s *Service) roomLocked(sh *share, n int64) bool {
	return sh.bytes+sh.inflight+n <= s.cfg.Limits.Share &&
		(sh.of == nil || sh.of.bytes+sh.of.inflight+n <= s.cfg.Limits.Anybody)
}

// A kind is what a place takes.
type kind struct {
	messages int
	bytes    int64
	deposit  int           // bytes of one message
	life     time.Duration // of one message
	queue    time.Duration // how far ahead the expiry is set
}

var kinds = map[wire.QueueKind]kind{
	wire.QueueKind_QUEUE_KIND_PAIRWISE: {
		protocol.QueueMessages, protocol.QueueBytes, protocol.MaxDeposit, protocol.MessageLife, protocol.QueueLife,
	},
	wire.QueueKind_QUEUE_KIND_BOX: {
		protocol.BoxMessages, protocol.BoxMessages * protocol.BoxDeposit, protocol.BoxDeposit, protocol.BoxLife, protocol.QueueLife,
	},
	wire.QueueKind_QUEUE_KIND_LOG: {
		protocol.LogMessages, protocol.LogBytes, protocol.MaxDeposit, protocol.MessageLife, protocol.LogLife,
	},
}

// addLocked takes a queue that is committed into memory.
func (s *Service) addLocked(id relay.QueueID, row *store.RelayQueue) *queue {
	q := &queue{id: id, kind: wire.QueueKind(row.Kind), share: s.shareLocked(row.Share), row: row}
	s.queues[id] = q
	q.share.enterLocked()
	q.share.addLocked(heldBytes(row))
	return q
}

// setLocked replaces a queue's row.
func (q *queue) setLocked(row *store.RelayQueue) {
	q.share.addLocked(heldBytes(row) - heldBytes(q.row))
	q.row = row
}

// heldBytes is what is kept for a queue beside messages.
func heldBytes(row *store.RelayQueue) int64 {
	return int64(row.Keys)*protocol.KeyBlob + int64(row.Records)*protocol.MaxRecord + int64(row.Blobs)*protocol.BlobChunk
}

func (s *Service) shareLocked(id []byte) *share {
	sh := s.shares[string(id)]
	if sh == nil {
		sh = new(share)
		if len(id) == blockHash {
			sh.of = &s.anybody
		}
		s.shares[string(id)] = sh
	}
	return sh
}

// enterLocked counts a queue.
func (sh *share) enterLocked() {
	for ; sh != nil; sh = sh.of {
		sh.queues++
	}
}

// measureLocked takes over from the spool what a queue has. Whoever changes a
// queue's entries calls it afterwards, so that the last to do so is right.
func (s *Service) measureLocked(q *queue) {
	messages, bytes := s.spool.Count(spool.Queue(q.id))
	q.share.addLocked(bytes - q.bytes)
	if q.kind == wire.QueueKind_QUEUE_KIND_BOX {
		s.boxes += bytes - q.bytes
	}
	q.messages, q.bytes = messages, bytes
}

func (s *Service) measure(q *queue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.measureLocked(q)
}

// removeLocked forgets a queue of which nothing is left.
func (s *Service) removeLocked(q *queue) {
	s.measureLocked(q)
	q.share.addLocked(-q.bytes - heldBytes(q.row))
	if q.kind == wire.QueueKind_QUEUE_KIND_BOX {
		s.boxes -= q.bytes
	}
	s.leaveLocked(q.row.Share)
	delete(s.queues, q.id)
}

// leaveLocked takes a queue off an account, and forgets one that is empty.
func (s *Service) leaveLocked(id []byte) {
	sh := s.shares[string(id)]
	for up := sh; up != nil; up = up.of {
		up.queues--
	}
	if sh.queues == 0 {
		delete(s.shares, string(id))
	}
}

// wireLocked is what a reader is told of a queue.
func (q *queue) wireLocked() *wire.RelayQueue {
	return &wire.RelayQueue{Known: true, Expires: q.row.Expires, Messages: uint32(q.messages), Bytes: uint64(q.bytes)}
}

// change changes a queue's row in a transaction. fn gets the row as the
// transactions before it left it. The error is fn's, or the store's.
func (s *Service) change(id relay.QueueID, fn func(tx *store.Tx, row *store.RelayQueue) error) error {
	return s.db.Update(func(tx *store.Tx) error { return s.changeIn(tx, id, fn) })
}

func (s *Service) changeIn(tx *store.Tx, id relay.QueueID, fn func(tx *store.Tx, row *store.RelayQueue) error) error {
	row, err := s.rowOf(tx, id)
	if err != nil {
		return err
	}
	if err := fn(tx, row); err != nil {
		return err
	}
	if err := store.RelayQueues.Put(tx, store.RelayQueueKey(id), row); err != nil {
		return err
	}
	tx.OnCommit(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if q := s.queues[id]; q != nil {
			q.setLocked(row)
		}
	})
	return nil
}
