package client

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// A NewQueue says what [Conn.Create] makes.
type NewQueue struct {
	Kind       wire.QueueKind
	Capability *relay.Capability // of a pairwise queue or a log; nil for a contact box
	Expires    time.Time         // to the second; at most QueueLife of its [Quota] ahead
	Closes     time.Time         // of a log: takes no deposit from then on; else zero
	Admission  relay.Admission   // shown to a relay that wants one; zero: none
}

// A Queue is what a relay said of one.
type Queue struct {
	ID       relay.QueueID
	Known    bool // false: the relay has no such queue, and the rest is zero
	Expires  time.Time
	Messages int
	Bytes    uint64
}

// Create makes the queue of k and attaches it to this stream. One that is there
// is attached as it is, with neither a new capability nor a new expiry; that
// costs nothing, so a reader that does not know creates. Errors: ErrRefused
// (wrong admission token), ErrQuota, ErrDraining, ErrMalformed (times), ErrBusy.
func (c *Conn) Create(ctx context.Context, k *relay.ReaderKey, q NewQueue) (Queue, error) {
	id := k.Reader().Queue()
	m := &wire.RelayCreate{Kind: q.Kind, Expires: q.Expires.Unix()}
	if q.Capability != nil {
		h := q.Capability.Hash(c.relay, id)
		m.Capability = h[:]
	}
	if !q.Closes.IsZero() {
		m.Closes = q.Closes.Unix()
	}
	if q.Admission != (relay.Admission{}) {
		m.Admission = q.Admission[:]
	}
	qs, err := c.claim(ctx, relay.NewCreate(k, m, c.relay, c.self), []relay.QueueID{id})
	if err != nil {
		return Queue{}, err
	}
	if !qs[0].Known {
		return Queue{}, c.fail(ctx, fmt.Errorf("%w: a queue that was made and is not known", relay.ErrAnswer))
	}
	return qs[0], nil
}

// Attach attaches the queues of keys, none of them twice, to this stream, which
// may then do what a reader does, and returns one Queue for each. A queue that
// is not Known is not attached: create it. On one stream at most
// [protocol.MaxAttached] are; beyond that the error is ErrQuota. ErrRefused means
// that a proof is wrong, which happens to nobody honest.
func (c *Conn) Attach(ctx context.Context, keys []*relay.ReaderKey) ([]Queue, error) {
	var all []Queue
	for part := range slices.Chunk(keys, protocol.MaxClaim) {
		ids := make([]relay.QueueID, len(part))
		for i, k := range part {
			ids[i] = k.Reader().Queue()
		}
		qs, err := c.claim(ctx, relay.NewAttach(part, c.relay, c.self), ids)
		if err != nil {
			return nil, err
		}
		all = append(all, qs...)
	}
	return all, nil
}

// Queue returns what the relay last said of a queue on this stream, or false if
// it was not asked.
func (c *Conn) Queue(id relay.QueueID) (Queue, bool) {
	q, ok := c.queues[id]
	return q, ok
}

func (c *Conn) claim(ctx context.Context, claim *wire.RelayClaim, ids []relay.QueueID) ([]Queue, error) {
	a, err := c.ask(ctx, &wire.RelayRequest{Command: &wire.RelayRequest_Claim{Claim: claim}})
	if err != nil {
		return nil, err
	}
	for i, q := range a.GetQueues().Queues {
		if !c.queues[ids[i]].Known && q.Known && q.Messages > 0 {
			c.older = true
		}
	}
	return c.told(a, ids), nil
}

// told keeps and returns what an answer says of queues.
func (c *Conn) told(a *wire.RelayAnswer, ids []relay.QueueID) []Queue {
	qs := make([]Queue, len(ids))
	for i, w := range a.GetQueues().Queues {
		qs[i] = Queue{ID: ids[i]}
		if w.Known {
			qs[i] = Queue{ids[i], true, time.Unix(w.Expires, 0), int(w.Messages), w.Bytes}
		}
		c.queues[ids[i]] = qs[i]
	}
	return qs
}

// Renew sets the expiry of attached queues, never to an earlier time, and
// returns one Queue for each. If one of them is not attached or is a log, the
// error is ErrRefused, and of the first [protocol.MaxClaim], or the next, none
// is renewed.
func (c *Conn) Renew(ctx context.Context, ids []relay.QueueID, expires time.Time) ([]Queue, error) {
	var all []Queue
	for part := range slices.Chunk(ids, protocol.MaxClaim) {
		m := &wire.RelayRenew{Expires: expires.Unix()}
		for _, id := range part {
			m.Queues = append(m.Queues, id[:])
		}
		a, err := c.ask(ctx, &wire.RelayRequest{Command: &wire.RelayRequest_Renew{Renew: m}})
		if err != nil {
			return nil, err
		}
		all = append(all, c.told(a, part)...)
	}
	return all, nil
}

// Access says who may deposit in a queue.
type Access struct {
	Capability *relay.Capability // of a pairwise queue; nil: nobody may
	Tokens     []identity.Token  // that a contact box admits, at most [protocol.MaxTokens]
}

// SetAccess replaces who may deposit in an attached queue: the capability of a
// pairwise queue, or all tokens of a contact box, which keep what was used of
// them. Tokens are not shown to the relay. Error: ErrRefused.
func (c *Conn) SetAccess(ctx context.Context, id relay.QueueID, to Access) error {
	m := &wire.RelaySetAccess{Queue: id[:]}
	if to.Capability != nil {
		h := to.Capability.Hash(c.relay, id)
		m.Capability = h[:]
	}
	for _, t := range to.Tokens {
		h := relay.TokenHash(t, c.relay)
		m.Tokens = append(m.Tokens, h[:])
	}
	_, err := c.ask(ctx, &wire.RelayRequest{Command: &wire.RelayRequest_SetAccess{SetAccess: m}})
	return err
}

// Drop deletes an attached queue with all that is in it, and what was left on
// its account. Error: ErrRefused, also when it was gone.
func (c *Conn) Drop(ctx context.Context, id relay.QueueID) error {
	_, err := c.ask(ctx, &wire.RelayRequest{Command: &wire.RelayRequest_Drop{Drop: &wire.RelayDrop{Queue: id[:]}}})
	if err == nil {
		c.queues[id] = Queue{ID: id}
	}
	return err
}

// A Poll asks for entries of all attached queues.
type Poll struct {
	// After is the ID that entries have to be above, Cursors the same for queues
	// with one of their own, at most [protocol.MaxCursors].
	After   uint64
	Cursors map[relay.QueueID]uint64

	// Limit is the most entries, at most [protocol.MaxPoll]. Default that.
	Limit int

	// Wait is how long the relay waits for an entry, at most [protocol.PollWait];
	// it is rounded up to a second. Default 0.
	Wait time.Duration

	// End ends the wait: as soon as something can be received from it, the relay
	// is asked something else (SPEC §13.4). Poll receives at most once. Default
	// nil: the wait is not ended.
	End <-chan struct{}
}

// Entries are what a relay has for a poll.
type Entries struct {
	Entries []Entry // ascending by ID
	More    bool    // there are further ones now, as the relay says
	Ended   bool    // something was received from [Poll].End
}

// An Entry is a blob in a queue.
type Entry struct {
	Queue relay.QueueID
	ID    uint64
	Blob  []byte // 1 to [protocol.MaxDeposit] bytes
}

// Poll returns entries, above the cursors and of queues that are attached, or
// none after the wait. Error: ErrBusy.
func (c *Conn) Poll(ctx context.Context, p Poll) (Entries, error) {
	if p.Limit <= 0 {
		p.Limit = protocol.MaxPoll
	}
	wait := (p.Wait + time.Second - 1).Truncate(time.Second)
	m := &wire.RelayPoll{After: p.After, Limit: uint32(p.Limit), Wait: uint32(wait / time.Second)}
	for id, after := range p.Cursors {
		m.Cursors = append(m.Cursors, &wire.RelayCursor{Queue: id[:], After: after})
	}
	req := &wire.RelayRequest{Command: &wire.RelayRequest_Poll{Poll: m}}
	b := wire.Marshal(req)
	if _, err := relay.ParseRequest(b); err != nil {
		return Entries{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	stop, err := c.begin(ctx)
	if err != nil {
		return Entries{}, err
	}
	defer stop()
	if err := c.send(ctx, b); err != nil {
		return Entries{}, err
	}

	// Of the two goroutines one reads and one writes, once.
	var page Entries
	var unsent error
	var other sync.WaitGroup
	answered := make(chan struct{}) // closed below, when the wait is over
	if p.End != nil {
		other.Go(func() {
			select {
			case <-p.End:
				page.Ended = true
				unsent = c.s.Write(wire.Marshal(infoRequest))
			case <-answered:
			}
		})
	}
	a, err := c.receive(ctx, req, wait+answerTimeout)
	close(answered)
	other.Wait()
	if page.Ended && c.ended == nil {
		if unsent != nil {
			return page, c.fail(ctx, unsent)
		}
		i, refusal := c.receive(ctx, infoRequest, answerTimeout)
		if c.ended != nil {
			return page, refusal
		}
		if refusal == nil {
			c.learn(i)
		}
	}
	if err != nil {
		return page, err
	}
	page.More = a.GetEntries().More
	for _, e := range a.GetEntries().Entries {
		id := relay.QueueID(e.Queue)
		if !c.queues[id].Known {
			return Entries{}, c.fail(ctx, fmt.Errorf("%w: an entry of a queue that is not attached", relay.ErrAnswer))
		}
		page.Entries = append(page.Entries, Entry{id, e.Id, e.Blob})
	}
	return page, nil
}

// Delete deletes entries of attached pairwise queues and contact boxes, which
// need not be there any more; their blobs are not looked at. When it returns nil
// that is on the relay's disk. If a queue is not attached the error is
// ErrRefused, and of up to [protocol.MaxDelete] entries none is deleted.
func (c *Conn) Delete(ctx context.Context, entries []Entry) error {
	for part := range slices.Chunk(entries, protocol.MaxDelete) {
		m := new(wire.RelayDelete)
		at := make(map[relay.QueueID]*wire.RelayDeletion)
		for _, e := range part {
			d := at[e.Queue]
			if d == nil {
				d = &wire.RelayDeletion{Queue: e.Queue[:]}
				at[e.Queue] = d
				m.Deletions = append(m.Deletions, d)
			}
			d.Ids = append(d.Ids, e.ID)
		}
		if _, err := c.ask(ctx, &wire.RelayRequest{Command: &wire.RelayRequest_Delete{Delete: m}}); err != nil {
			return err
		}
	}
	return nil
}
