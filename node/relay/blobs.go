package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"starling/node/relay/spool"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// A blobName is the hash of a blob's handle, which is all that is kept of it: who
// copies the disk can ask for no blob.
type blobName [sha256.Size]byte

func nameOf(handle []byte) blobName {
	return sha256.Sum256(append([]byte("starling relay: blob"), handle...))
}

// chunk names the place of a chunk in the spool: a queue of its own, so that it
// is found without a list of the blob's chunks. No reader key has this hash.
func (n blobName) chunk(index uint32) spool.Queue {
	return sha256.Sum256(binary.BigEndian.AppendUint32(n[:], index))
}

// A shelved is a blob on the shelf, as its first chunk announced it. Which of its
// chunks are there the spool knows.
type shelved struct {
	queue   relay.QueueID // on whose account it is
	count   uint32
	expires int64
	ready   bool // its row is committed; guarded by Service.mu
}

func (b *shelved) bytes() int64 { return int64(b.count) * protocol.BlobChunk }

// putBlob keeps a chunk. The first one of a blob, whichever it is, takes the room
// of the whole; a chunk that is there stays as it is.
func (c *client) putBlob(m *wire.RelayPutBlob) (*wire.RelayAnswer, error) {
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
	name := nameOf(m.Handle)
	b, err := s.shelve(q, name, m)
	if err != nil {
		return nil, err
	}
	place := name.chunk(m.Index)
	s.mu.Lock()
	_, putting := s.shelving[place]
	if !putting {
		s.shelving[place] = struct{}{}
	}
	s.mu.Unlock()
	if putting {
		return nil, busy
	}
	// Not the stream's context: see deposit.keep.
	err = s.putChunk(context.Background(), place, b, m.Chunk)
	s.mu.Lock()
	delete(s.shelving, place)
	gone := s.blobs[name] != b
	s.mu.Unlock()
	if gone { // dropped meanwhile: what was put after that is nobody's
		err = errors.Join(refused, s.spool.Drop(context.Background(), place))
	}
	return ok(), err
}

// shelve returns the blob of a chunk, and makes it if this is its first one.
func (s *Service) shelve(q *queue, name blobName, m *wire.RelayPutBlob) (*shelved, error) {
	b := &shelved{queue: q.id, count: m.Count, expires: m.Expires}
	n := b.bytes()
	if old, err := s.reserveBlob(q, name, b); old != nil || err != nil {
		return old, err
	}
	err := s.change(q.id, func(tx *store.Tx, row *store.RelayQueue) error {
		if (int64(row.Blobs)+int64(b.count))*protocol.BlobChunk > s.cfg.Limits.BoxBlobs {
			return quota
		}
		row.Blobs += b.count
		tx.OnCommit(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			b.ready = true
		})
		return store.RelayBlobs.Put(tx, store.RelayBlobKey(q.id, name), &store.RelayBlob{Count: b.count, Expires: b.expires})
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	q.share.reserveLocked(-n)
	if err != nil {
		s.unshelveLocked(name, b)
	}
	return b, err
}

// reserveBlob keeps room for a blob and its name, or returns the one that is
// there, if it is the same.
func (s *Service) reserveBlob(q *queue, name blobName, b *shelved) (*shelved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch old := s.blobs[name]; {
	case old == nil:
	case !old.ready:
		return nil, busy
	case old.queue != b.queue || old.count != b.count || old.expires != b.expires:
		return nil, refused
	default:
		return old, nil
	}
	n := b.bytes()
	if s.shelf+n > s.cfg.Limits.Blobs || !s.roomLocked(q.share, n) {
		return nil, quota
	}
	q.share.reserveLocked(n)
	s.shelf += n
	s.blobs[name] = b
	return nil, nil
}

// unshelveLocked forgets a blob, if it is the one of that name.
func (s *Service) unshelveLocked(name blobName, b *shelved) {
	if b != nil && s.blobs[name] == b {
		delete(s.blobs, name)
		s.shelf -= b.bytes()
	}
}

// putChunk puts a chunk in its place, once. What is there already must be the
// same.
func (s *Service) putChunk(ctx context.Context, place spool.Queue, b *shelved, chunk []byte) error {
	old, err := s.chunkAt(place)
	switch {
	case err != nil:
		return err
	case old != nil && !bytes.Equal(old, chunk):
		return refused
	case old != nil:
		return nil
	}
	_, err = s.spool.Put(ctx, []spool.Entry{{Queue: place, Expires: b.expires, Blob: chunk}})
	return err
}

// chunkAt reads a chunk, or returns nil if it is not there, or lost.
func (s *Service) chunkAt(place spool.Queue) ([]byte, error) {
	list := s.spool.List(place, 0, 1)
	if len(list) == 0 {
		return nil, nil
	}
	b, err := s.spool.Read(place, list[0].ID, nil)
	switch {
	case errors.Is(err, spool.ErrNotFound):
		return nil, nil
	case errors.Is(err, spool.ErrDamaged):
		s.log.Warn("a chunk is lost", "error", err)
		return nil, nil
	}
	return b, err
}

// getBlob returns a chunk, and the memory that it takes: itself, and the frame
// that it is marshalled into.
func (c *client) getBlob(m *wire.RelayGetBlob) (*wire.RelayAnswer, int) {
	s := c.s
	const held = 2 * protocol.BlobChunk
	name, now := nameOf(m.Handle), s.now64()
	s.mu.Lock()
	b := s.blobs[name]
	known := b != nil && b.ready && now < b.expires && m.Index < b.count
	s.mu.Unlock()
	if !known {
		return s.answerOf(nil, refused), 0
	}
	if !c.take(held) {
		return s.answerOf(nil, busy), 0
	}
	chunk, err := s.chunkAt(name.chunk(m.Index))
	if err == nil && chunk == nil {
		err = empty
	}
	if err != nil {
		c.give(held)
		return s.answerOf(nil, err), 0
	}
	s.counters.chunks.Add(1)
	return &wire.RelayAnswer{
		Status: wire.RelayStatus_RELAY_STATUS_OK,
		Result: &wire.RelayAnswer_Chunk{Chunk: &wire.RelayChunk{Count: b.count, Chunk: chunk}},
	}, held
}

// dropBlob deletes a blob: its row, and then its chunks. What a crash leaves of
// these is dropped by the next New.
func (c *client) dropBlob(m *wire.RelayDropBlob) (*wire.RelayAnswer, error) {
	s := c.s
	q, err := c.box(m.Queue)
	if err != nil {
		return nil, err
	}
	name := nameOf(m.Handle)
	var chunks []spool.Queue
	err = s.change(q.id, func(tx *store.Tx, row *store.RelayQueue) (err error) {
		chunks, err = s.dropBlobs(tx, q.id, func(n blobName, b *store.RelayBlob) bool {
			if n == name {
				row.Blobs -= b.Count
			}
			return n == name
		})
		if err == nil && chunks == nil {
			err = refused
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return ok(), s.spool.Drop(context.WithoutCancel(c.ctx), chunks...)
}

// dropBlobs deletes the rows of those blobs of a box that which chooses, and
// returns the places of their chunks. A damaged row goes, too; its chunks are
// dropped by the next New, or when they are over.
func (s *Service) dropBlobs(tx *store.Tx, id relay.QueueID, which func(blobName, *store.RelayBlob) bool) (chunks []spool.Queue, err error) {
	for r, err := range store.RelayBlobs.Scan(tx, store.RelayOf(id), nil) {
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return nil, err
		}
		name := blobName(r.Key[relay.QueueIDSize:])
		if err == nil && !which(name, r.Value) {
			continue
		}
		for i := range r.Value.GetCount() {
			chunks = append(chunks, name.chunk(i))
		}
		if err := store.RelayBlobs.Delete(tx, r.Key); err != nil {
			return nil, err
		}
		tx.OnCommit(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if b := s.blobs[name]; b != nil && b.queue == id {
				s.unshelveLocked(name, b)
			}
		})
	}
	return chunks, nil
}

// expireBlobs deletes the rows of those blobs of a box that are over, and counts
// the chunks of those that are left.
func (s *Service) expireBlobs(tx *store.Tx, id relay.QueueID, row *store.RelayQueue) error {
	now := s.now64()
	row.Blobs = 0
	_, err := s.dropBlobs(tx, id, func(_ blobName, b *store.RelayBlob) bool {
		if b.Expires > now {
			row.Blobs += b.Count
		}
		return b.Expires <= now
	})
	return err
}

// loadBlobsLocked reads which blobs there are.
func (s *Service) loadBlobsLocked(tx *store.Tx) error {
	for r, err := range store.RelayBlobs.Scan(tx, nil, nil) {
		if errors.Is(err, store.ErrDamaged) {
			s.log.Warn("a blob is damaged; it is lost", "error", err)
			continue
		}
		if err != nil {
			return err
		}
		id := relay.QueueID(r.Key[:relay.QueueIDSize])
		if s.queues[id] == nil {
			continue // its box was lost
		}
		b := &shelved{queue: id, count: r.Value.Count, expires: r.Value.Expires, ready: true}
		s.blobs[blobName(r.Key[relay.QueueIDSize:])] = b
		s.shelf += b.bytes()
	}
	return nil
}
