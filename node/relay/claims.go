package relay

import (
	"crypto/sha256"
	"errors"
	"slices"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// info says what the relay is and takes.
func (s *Service) info() *wire.RelayAnswer {
	now := s.now()
	in := &wire.RelayInfo{Time: now.Unix(), Store: s.storeID[:], Admission: s.cfg.Admit == AdmitTokens}
	l := s.cfg.Limits
	in.BlobBytes = uint64(min(l.BoxBlobs, l.Blobs, l.Share))
	for _, size := range envelope.SealedSizes() {
		in.Sizes = append(in.Sizes, uint32(size))
	}
	for _, k := range []wire.QueueKind{
		wire.QueueKind_QUEUE_KIND_PAIRWISE, wire.QueueKind_QUEUE_KIND_BOX, wire.QueueKind_QUEUE_KIND_LOG,
	} {
		in.Kinds = append(in.Kinds, k)
		in.Quotas = append(in.Quotas, &wire.RelayQuota{
			Kind: k, Messages: uint32(kinds[k].messages), Bytes: uint64(kinds[k].bytes),
			Life: uint32(kinds[k].life.Seconds()), QueueLife: uint32(kinds[k].queue.Seconds()),
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	in.Draining = s.draining
	in.DepositBits = uint32(s.bitsLocked(nil, &s.filling, now))
	in.KeyBits = uint32(s.bitsLocked(nil, &s.emptying, now))
	return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK, Result: &wire.RelayAnswer_Info{Info: in}}
}

// claim makes or attaches queues.
func (c *client) claim(m *wire.RelayClaim) (*wire.RelayAnswer, error) {
	claim, err := relay.ParseClaim(m)
	if err != nil {
		return nil, err
	}
	// Queues are never taken from the map and put back, so what is found here is
	// what is attached below, or gone.
	found := make([]*queue, len(claim.Readers))
	c.s.mu.Lock()
	for i, r := range claim.Readers {
		found[i] = c.s.queues[r.Queue()]
	}
	c.s.mu.Unlock()
	for i, q := range found {
		if q == nil && claim.Create == nil {
			continue
		}
		if err := claim.Check(i, c.s.self, c.key); err != nil {
			return nil, err
		}
	}
	if claim.Create != nil && found[0] == nil {
		if found[0], err = c.create(claim.Readers[0].Queue(), claim.Create); err != nil {
			return nil, err
		}
	}
	return c.attach(found, claim.Create != nil)
}

// attach attaches queues, nil for one that is not known. If it must, one that is
// being dropped is [busy]: it is to be made anew.
func (c *client) attach(found []*queue, must bool) (*wire.RelayAnswer, error) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	more := 0
	for _, q := range found {
		if must && q.gone {
			return nil, busy
		}
		if q != nil && !q.gone && c.attached[q.id] != q {
			more++
		}
	}
	if len(c.attached)+more > protocol.MaxAttached {
		return nil, quota
	}
	most := max(s.cfg.Limits.Attached/16, protocol.MaxAttached)
	if s.attached+more > s.cfg.Limits.Attached || c.block.attached+more > most && !c.block.local {
		return nil, busy
	}
	qs := new(wire.RelayQueues)
	for _, q := range found {
		if q == nil || q.gone {
			qs.Queues = append(qs.Queues, new(wire.RelayQueue))
			continue
		}
		qs.Queues = append(qs.Queues, q.wireLocked())
		switch old := c.attached[q.id]; {
		case old == q:
			continue
		case old != nil:
			old.detachLocked(c) // dropped since, and made anew
		default:
			s.attached++
			c.block.attached++
		}
		c.attached[q.id] = q
		q.readers = append(q.readers, c)
	}
	return queuesAnswer(qs), nil
}

func queuesAnswer(qs *wire.RelayQueues) *wire.RelayAnswer {
	return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK, Result: &wire.RelayAnswer_Queues{Queues: qs}}
}

func (q *queue) detachLocked(c *client) {
	if i := slices.Index(q.readers, c); i >= 0 {
		q.readers = slices.Delete(q.readers, i, i+1)
	}
}

// mine returns a queue that is attached on this stream and still there.
func (c *client) mine(id []byte) (*queue, error) {
	q := c.attached[relay.QueueID(id)]
	if q == nil {
		return nil, refused
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if q.gone {
		return nil, refused
	}
	return q, nil
}

// create makes a queue, or returns the one that another stream has just made.
func (c *client) create(id relay.QueueID, m *wire.RelayCreate) (*queue, error) {
	s := c.s
	if err := s.taking(); err != nil {
		return nil, err
	}
	if !s.within(m.Expires, kinds[m.Kind].queue) || m.Closes != 0 && m.Closes <= s.now64() {
		return nil, malformed
	}
	row := &store.RelayQueue{
		Kind: int32(m.Kind), Capability: m.Capability, Expires: m.Expires, Closes: m.Closes, Share: c.account(),
	}
	if len(m.Admission) > 0 {
		h := sha256.Sum256(m.Admission)
		row.Share = h[:]
	} else if s.cfg.Admit == AdmitTokens {
		return nil, refused
	}
	if err := s.reserveQueue(row.Share); err != nil {
		return nil, err
	}
	err := s.db.Update(func(tx *store.Tx) error {
		if len(m.Admission) > 0 {
			if err := s.admit(tx, m.Admission); err != nil {
				return err
			}
		}
		if has, err := store.RelayQueues.Has(tx, store.RelayQueueKey(id)); err != nil || has {
			return err
		}
		if err := store.RelayQueues.Put(tx, store.RelayQueueKey(id), row); err != nil {
			return err
		}
		tx.OnCommit(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.addLocked(id, row)
		})
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.making--
	s.leaveLocked(row.Share)
	if err != nil {
		return nil, err
	}
	q := s.queues[id]
	if q == nil {
		return nil, busy // made and dropped meanwhile, by others with the key
	}
	return q, nil
}

// reserveQueue keeps a place for a queue on an account, until leaveLocked.
func (s *Service) reserveQueue(id []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queues)+s.making >= s.cfg.Limits.Queues {
		return quota
	}
	sh := s.shareLocked(id)
	if sh.queues >= s.cfg.Limits.ShareQueues || sh.of != nil && sh.of.queues >= s.cfg.Limits.AnybodyQueues {
		if sh.queues == 0 {
			delete(s.shares, string(id))
		}
		return quota
	}
	sh.enterLocked()
	s.making++
	return nil
}

// admitted returns nil if the account exists: of an admission token, that it
// was issued and not revoked.
func admitted(tx *store.Tx, share []byte) error {
	if len(share) != sha256.Size {
		return nil
	}
	row, err := store.RelayAdmissions.Get(tx, store.RelayAdmissionKey([sha256.Size]byte(share)))
	if errors.Is(err, store.ErrNotFound) || err == nil && row.Revoked {
		err = refused
	}
	return err
}

// taking returns an error while the relay drains.
func (s *Service) taking() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining != 0 {
		return draining
	}
	return nil
}

// rowOf reads a queue's row.
func (s *Service) rowOf(tx *store.Tx, id relay.QueueID) (*store.RelayQueue, error) {
	row, err := store.RelayQueues.Get(tx, store.RelayQueueKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return nil, refused
	}
	return row, err
}
