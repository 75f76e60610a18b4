package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"slices"

	"starling/node/relay/spool"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// deposit judges a deposit in the order of SPEC §13.4 and begins to keep it. Of the
// memory that it holds it gives back so much when it is answered.
func (c *client) deposit(m *wire.RelayDeposit, early int) answer {
	answered := make(chan *wire.RelayAnswer, 1)
	d := &deposit{
		s:      c.s,
		c:      c,
		early:  early,
		id:     relay.QueueID(m.Queue),
		blob:   m.Blob,
		hash:   sha256.Sum256(m.Blob),
		until:  m.Expires,
		answer: answered,
	}
	if err := d.judge(m); err != nil {
		c.give(early)
		a := ready(c.s.answerOf(nil, err))
		a.early = early
		return a
	}
	if d.ended != nil && d.token == nil {
		c.start(d)
	} else {
		// It waits for more than the spool: the store, or another deposit.
		c.deposits.Go(func() { d.reply(c.s.answerOf(d.keep())) })
	}
	return answer{ // which does not hold the blob
		wait:  func() (*wire.RelayAnswer, int) { return <-answered, 0 },
		ready: func() bool { return len(answered) > 0 },
		early: early,
	}
}

// reply gives back the memory of the deposit's blob, and answers it.
func (d *deposit) reply(a *wire.RelayAnswer) {
	d.c.give(d.early)
	d.answer <- a
}

// start gives a deposit to the spool.
func (c *client) start(d *deposit) {
	pending, err := c.s.spool.Begin(d.entry())
	if err != nil {
		d.reply(c.s.answerOf(d.kept(spool.Stored{}, err)))
		return
	}
	d.pending = pending
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = append(c.begun, d)
	if !c.ending {
		c.ending = true
		c.deposits.Go(c.finish)
	}
}

// finish ends deposits as the spool is done with them, in their order, which is
// the spool's, until there is none. It does not wait for the writer. Answers of
// one group are sent together, so that the writer can write them together.
func (c *client) finish() {
	var finished []*deposit
	var answers []*wire.RelayAnswer
	send := func() {
		for i, d := range finished {
			d.reply(answers[i])
		}
		clear(finished)
		clear(answers)
		finished, answers = finished[:0], answers[:0]
	}
	for {
		c.mu.Lock()
		begun := c.begun
		c.begun = nil
		if c.ending = len(begun) > 0; !c.ending {
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		for _, d := range begun {
			select {
			case <-d.pending.Done():
			default:
				send()
			}
			stored, err := d.pending.Stored()
			finished = append(finished, d)
			answers = append(answers, c.s.answerOf(d.kept(stored, err)))
		}
		send()
	}
}

// A deposit is one on its way to the disk, or one that has reserved nothing: a
// repetition of one that is on its way or there, or one that waits for room.
type deposit struct {
	s      *Service
	c      *client
	early  int // bytes of memory that reply gives back
	q      *queue
	id     relay.QueueID
	blob   []byte
	hash   [sha256.Size]byte // of the blob
	until  int64             // its expiry, unix seconds
	leaf   relay.Leaf        // of the three above: what makes two deposits the same
	token  []byte            // hash of the token that admits it, or nil
	byWork bool
	nonce  uint64            // of the work that admits it
	stamp  [sha256.Size]byte // of that work, or zero
	first  *deposit          // on its way, and to be waited for: the same one, or one that takes room; or nil
	held   uint64            // ID of the entry that it seems to be, or 0
	ended  chan struct{}     // closed by done; only of one that is not a repetition

	pending spool.Pending // of start
	// Whoever keeps the deposit sends once; room for that, so that it does not wait
	// for the writer.
	answer chan *wire.RelayAnswer
}

// judge decides whether the deposit may be kept, and finds it a place.
func (d *deposit) judge(m *wire.RelayDeposit) error {
	s := d.s
	_, capability := m.Admit.(*wire.RelayDeposit_Capability)
	sizes := envelope.SealedSizes()
	if !slices.Contains(sizes[:], len(d.blob)) {
		return malformed
	}
	if !capability && len(d.blob) > protocol.BoxDeposit {
		return tooBig // only a contact box takes what comes so
	}
	if err := s.taking(); err != nil {
		return err
	}
	q, row := s.placeOf(d.id)
	d.q = q
	now := s.now()
	if !s.mayDeposit(q, row, m, now.Unix()) {
		return refused
	}
	if !s.within(d.until, kinds[q.kind].life) {
		return malformed
	}
	switch a := m.Admit.(type) {
	case *wire.RelayDeposit_Work:
		d.byWork, d.nonce = true, a.Work
	case *wire.RelayDeposit_Token:
		d.token = a.Token
	}
	d.leaf = relay.NewLeaf(d.id, d.hash, d.until)
	return d.place()
}

// place finds out whether the deposit repeats another, and reserves room for it
// if not. A repetition takes no room, no use of a token and no new work.
func (d *deposit) place() error {
	s, q, now := d.s, d.q, d.s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.byWork {
		stamp := relay.DepositStamp(s.self, d.id, d.hash, d.until)
		d.stamp = stamp.Hash()
		want := s.bitsLocked(&q.filling, &s.filling, now)
		// What was used was enough for the first of two.
		if _, used := q.stamps[d.stamp]; !used && relay.CheckWork(stamp, d.nonce, want) != nil {
			return demand(want)
		}
	}
	// A deposit leaves coming when its entry is in the spool, under the same lock:
	// there is no moment at which the first of two is in neither.
	if d.first, d.held = s.coming[d.leaf], 0; d.first != nil {
		return nil
	}
	if id, ok := s.spool.Find(spool.Queue(d.id), d.until, d.blob); ok {
		d.held = id
		return nil
	}
	if d.byWork {
		if err := s.stampLocked(q, d.stamp); err != nil {
			return err
		}
	}
	if err := d.reserveLocked(); err != nil {
		if d.first = q.latest; d.first != nil && errors.Is(err, quota) {
			return nil // what is being kept is counted twice: there may be room when that has ended
		}
		return err
	}
	d.ended = make(chan struct{})
	q.latest = d
	s.coming[d.leaf] = d
	if d.byWork {
		s.useLocked(q, d.stamp, d.until)
		q.filling.add(now)
		s.filling.add(now)
	}
	return nil
}

// placeOf returns a queue and its row, or nil. Both are the queue's as of now.
func (s *Service) placeOf(id relay.QueueID) (*queue, *store.RelayQueue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[id]
	if q == nil || q.gone {
		return nil, nil
	}
	return q, q.row
}

// mayDeposit reports whether what the depositor shows admits it now. It looks at
// a capability also where there is no queue, so that both take as long.
func (s *Service) mayDeposit(q *queue, row *store.RelayQueue, m *wire.RelayDeposit, now int64) bool {
	open := q != nil && now < row.Expires && (row.Closes == 0 || now < row.Closes)
	switch a := m.Admit.(type) {
	case *wire.RelayDeposit_Capability:
		var want relay.CapabilityHash
		has := row != nil && len(row.Capability) == len(want)
		if has {
			want = relay.CapabilityHash(row.Capability)
		}
		shown, err := relay.CapabilityFrom(a.Capability)
		return err == nil && want.Admits(s.self, relay.QueueID(m.Queue), shown) && has && open
	case *wire.RelayDeposit_Token:
		return open && q.kind == wire.QueueKind_QUEUE_KIND_BOX && hasToken(row, a.Token)
	case *wire.RelayDeposit_Work:
		return open && q.kind == wire.QueueKind_QUEUE_KIND_BOX
	}
	return false
}

// hasToken reports whether a box admits a token hash, in constant time.
func hasToken(row *store.RelayQueue, hash []byte) bool {
	admitted := make([][sha256.Size]byte, len(row.Tokens))
	for i, t := range row.Tokens {
		admitted[i] = [sha256.Size]byte(t.Hash)
	}
	return relay.HasToken(admitted, [sha256.Size]byte(hash))
}

// reserveLocked keeps room for the deposit, until done. Between the commit of an
// entry and its done it is counted twice, so that there seems to be too little
// room, and never too much.
func (d *deposit) reserveLocked() error {
	s, q, n := d.s, d.q, int64(len(d.blob))
	k := kinds[q.kind]
	box := q.kind == wire.QueueKind_QUEUE_KIND_BOX
	switch {
	case q.gone:
		return refused
	case q.messages+q.inflight.messages >= k.messages,
		q.bytes+q.inflight.bytes+n > k.bytes,
		!s.roomLocked(q.share, n),
		box && s.boxes+s.toBoxes+n > s.cfg.Limits.Boxes:
		return quota
	}
	d.countLocked(1)
	return nil
}

// countLocked counts the deposit as on its way, by +1, or not any more, by -1.
func (d *deposit) countLocked(by int) {
	n := int64(by * len(d.blob))
	d.q.inflight.messages += by
	d.q.inflight.bytes += n
	d.q.share.reserveLocked(n)
	if d.q.kind == wire.QueueKind_QUEUE_KIND_BOX {
		d.s.toBoxes += n
	}
}

// keep puts the deposit on the disk, if it is not there, and returns its receipt.
func (d *deposit) keep() (*wire.RelayAnswer, error) {
	// Not the stream's context: a deposit that has begun is worth ending.
	ctx := context.Background()
	for d.ended == nil { // a repetition, as far as anybody knows, or there is no room yet
		if d.first != nil {
			<-d.first.ended
		} else if receipt, err := d.again(ctx); err != nil {
			return nil, err
		} else if receipt != nil {
			d.s.counters.repeated.Add(1)
			return receiptAnswer(receipt), nil
		}
		if err := d.place(); err != nil {
			return nil, err
		}
	}
	return d.kept(d.put(ctx))
}

// kept returns the answer to a deposit that the spool has kept or not.
func (d *deposit) kept(stored spool.Stored, err error) (*wire.RelayAnswer, error) {
	gone := d.done(err)
	if gone {
		if e := d.s.bury(context.Background(), d.q); e != nil {
			return nil, e
		}
		return nil, refused
	}
	if err != nil {
		return nil, err
	}
	d.s.counters.deposits.Add(1)
	d.s.counters.depositBytes.Add(uint64(len(d.blob)))
	if stored.Receipt == nil {
		return nil, busy // it is there, and not signed: it will be repeated
	}
	return receiptAnswer(stored.Receipt), nil
}

// receiptAnswer is the answer with what attest has made.
func receiptAnswer(receipt any) *wire.RelayAnswer {
	return &wire.RelayAnswer{
		Status: wire.RelayStatus_RELAY_STATUS_OK,
		Result: &wire.RelayAnswer_Receipt{Receipt: receipt.(*wire.RelayReceipt)},
	}
}

// again returns a new receipt for the entry that the deposit seems to be, or nil
// if it is another one, or is gone.
func (d *deposit) again(ctx context.Context) (receipt any, err error) {
	b, err := d.s.spool.Read(spool.Queue(d.id), d.held, nil)
	switch {
	case errors.Is(err, spool.ErrNotFound), errors.Is(err, spool.ErrDamaged):
		return nil, nil
	case err != nil:
		return nil, err
	case !bytes.Equal(b, d.blob):
		return nil, errors.New("relay: two blobs with one tag")
	}
	receipt, err = d.s.spool.Again(ctx, spool.Queue(d.id), d.held, spool.Leaf(d.leaf))
	switch {
	case errors.Is(err, spool.ErrNotFound):
		return nil, nil
	case err == nil && receipt == nil:
		return nil, busy // not signed
	}
	return receipt, err
}

func (d *deposit) entry() spool.Entry {
	return spool.Entry{Queue: spool.Queue(d.id), Expires: d.until, Leaf: spool.Leaf(d.leaf), Blob: d.blob}
}

// put spends the token and then writes the entry, so that a crash in between
// costs a use of the token and gives none. What was not kept spends nothing.
func (d *deposit) put(ctx context.Context) (spool.Stored, error) {
	if d.token != nil {
		if err := d.spend(1); err != nil {
			return spool.Stored{}, err
		}
	}
	stored, err := d.s.spool.Put(ctx, []spool.Entry{d.entry()})
	if err != nil {
		if d.token != nil && (errors.Is(err, spool.ErrFull) || errors.Is(err, spool.ErrDiskFull)) {
			if e := d.spend(-1); e != nil && !errors.Is(e, refused) {
				err = errors.Join(err, e)
			}
		}
		return spool.Stored{}, err
	}
	return stored[0], nil
}

// spend counts a use of the token, by +1, or takes it back, by -1.
func (d *deposit) spend(by int) error {
	return d.s.change(d.id, func(_ *store.Tx, row *store.RelayQueue) error {
		t := findToken(row.Tokens, d.token)
		if t == nil || by > 0 && t.Deposits >= protocol.TokenDeposits || by < 0 && t.Deposits == 0 {
			return refused
		}
		t.Deposits = uint32(int(t.Deposits) + by)
		return nil
	})
}

// done gives back what judge reserved, now that the entry is there or not, and
// wakes who reads the queue. It reports whether the queue was dropped meanwhile.
func (d *deposit) done(err error) (gone bool) {
	s := d.s
	s.mu.Lock()
	defer s.mu.Unlock()
	d.countLocked(-1)
	delete(s.coming, d.leaf)
	close(d.ended)
	if d.q.latest == d {
		d.q.latest = nil
	}
	if err != nil && d.stamp != ([sha256.Size]byte{}) {
		s.unuseLocked(d.q, d.stamp) // it may be used when there is room
	}
	if s.queues[d.id] != d.q {
		return true
	}
	s.measureLocked(d.q)
	if d.q.gone {
		return true
	}
	if err == nil {
		for _, c := range d.q.readers {
			select {
			case c.wake <- struct{}{}:
			default:
			}
		}
	}
	return false
}
