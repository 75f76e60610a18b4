package relay

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"time"

	"starling/node/relay/spool"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// A poll is one that waits. The reader of its stream closes stop when the next
// request has come, and waits for done, which the writer closes.
type poll struct {
	stop, done chan struct{}
}

// beginPoll has the stream's writer answer a poll.
func (c *client) beginPoll(m *wire.RelayPoll) answer {
	p := &poll{make(chan struct{}), make(chan struct{})}
	c.poll = p
	return answer{wait: func() (*wire.RelayAnswer, int) {
		defer close(p.done)
		return c.answerPoll(m, p.stop)
	}}
}

// endPoll ends a poll that waits. Afterwards the reader may change what is
// attached.
func (c *client) endPoll() {
	if c.poll != nil {
		close(c.poll.stop)
		<-c.poll.done
		c.poll = nil
	}
}

// answerPoll waits for entries and returns them, and the memory they take.
func (c *client) answerPoll(m *wire.RelayPoll, stop <-chan struct{}) (*wire.RelayAnswer, int) {
	timer := time.NewTimer(time.Duration(m.Wait) * time.Second)
	defer timer.Stop()
	last := m.Wait == 0
	for {
		a, held, err := c.entries(m)
		if err != nil {
			return c.s.answerOf(nil, err), 0
		}
		if last || len(a.Entries) > 0 {
			c.s.counters.polls.Add(1)
			c.s.counters.entries.Add(uint64(len(a.Entries)))
			return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK, Result: &wire.RelayAnswer_Entries{Entries: a}}, held
		}
		select {
		case <-c.wake:
		case <-timer.C:
			last = true
		case <-stop:
			last = true
		case <-c.ctx.Done():
			last = true
		}
	}
}

// A place is an entry and its queue.
type place struct {
	queue relay.QueueID
	spool.Item
}

// entryOverhead is what an entry takes in an answer beside its blob, bytes: at
// most 34 for the queue, 10 for the ID, 4 for the blob's length, 4 for its own.
const entryOverhead = 64

// entries returns what there is for a poll, and the memory that it takes: the
// blobs, and the frame that they are marshalled into.
func (c *client) entries(m *wire.RelayPoll) (*wire.RelayEntries, int, error) {
	places, more := c.find(m)
	size := 0
	for i, p := range places {
		if size+p.Size+entryOverhead > protocol.MaxFrame-entryOverhead {
			places, more = places[:i], true
			break
		}
		size += p.Size + entryOverhead
	}
	if !c.take(2 * size) {
		return nil, 0, busy
	}
	a := &wire.RelayEntries{More: more}
	for _, p := range places {
		blob, err := c.s.spool.Read(spool.Queue(p.queue), p.ID, nil)
		switch {
		case errors.Is(err, spool.ErrNotFound): // deleted on another stream
		case errors.Is(err, spool.ErrDamaged):
			c.s.log.Warn("an entry is lost", "error", err)
		case err != nil:
			c.give(2 * size)
			return nil, 0, err
		default:
			a.Entries = append(a.Entries, &wire.RelayEntry{Queue: p.queue[:], Id: p.ID, Blob: blob})
		}
	}
	return a, 2 * size, nil
}

// find returns the first entries of all attached queues above their cursors, in
// the order of their IDs, and whether there are more. It never holds more than
// a few answers' worth of them.
func (c *client) find(m *wire.RelayPoll) (places []place, more bool) {
	after := make(map[relay.QueueID]uint64, len(m.Cursors))
	for _, k := range m.Cursors {
		after[relay.QueueID(k.Queue)] = k.After
	}
	now, limit := c.s.now64(), int(m.Limit)
	last := uint64(math.MaxUint64) // no entry above it is among the first; more is known by then
	cut := func() {
		slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.ID, b.ID) })
		if len(places) > limit {
			places, more = places[:limit], true
			last = places[limit-1].ID
		}
	}
	for id := range c.attached {
		from, ok := after[id]
		if !ok {
			from = m.After
		}
		items := c.s.spool.List(spool.Queue(id), from, limit+1)
		for _, it := range items {
			if it.ID > last {
				break
			}
			if it.Expires > now {
				places = append(places, place{id, it})
			}
		}
		if len(places) > 4*limit+64 {
			cut()
		}
	}
	cut()
	return places, more
}
