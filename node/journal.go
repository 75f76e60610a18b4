package node

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"time"

	"starling/node/store"
	"starling/protocol/identity"
)

// The journal is a table of numbered events: the number of the newest is the
// number of events. It is written in the transaction of what it reports.

// record appends an event about the chat with c, or about the node if c is nil.
func (n *Node) record(tx *store.Tx, e *store.Event, c *store.Contact) error {
	last, err := lastEvent(tx)
	if err != nil {
		return err
	}
	e.Time = n.cfg.Now().UnixMilli()
	if c != nil {
		e.Account, e.Name = c.Account, c.Name
	}
	tx.OnCommit(n.changed.wake)
	if e.Type == "contact" || e.Type == "invite" {
		tx.OnCommit(n.readers.kick) // who has a queue, and what admits strangers
		tx.OnCommit(n.gapOpened)    // what is told of a contact who was accepted
	}
	return store.Journal.Put(tx, store.JournalKey(last+1), e)
}

// lastEvent returns the number of the newest event, 0 if there is none.
func lastEvent(tx *store.Tx) (uint64, error) {
	for row, err := range store.Journal.ScanBack(tx, nil, nil) {
		if err != nil {
			return 0, err
		}
		return binary.BigEndian.Uint64(row.Key), nil
	}
	return 0, nil
}

// eventsAtOnce bounds how many events are read in one transaction.
const eventsAtOnce = 256

// Events calls fn for each event after number since, in order and without a
// gap; with follow it then waits for more until ctx ends, and otherwise
// returns at the newest. It returns the error of fn, or of ctx.
func (n *Node) Events(ctx context.Context, since uint64, follow bool, fn func(Event) error) error {
	for {
		changed := n.changed.wait()
		var batch []Event
		err := n.store.View(func(tx *store.Tx) error {
			for row, err := range store.Journal.Scan(tx, nil, store.JournalKey(since+1)) {
				if err != nil {
					return err
				}
				batch = append(batch, eventOf(binary.BigEndian.Uint64(row.Key), row.Value))
				if len(batch) == eventsAtOnce {
					break
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, e := range batch {
			if err := fn(e); err != nil {
				return err
			}
			since = e.Seq
		}
		if len(batch) > 0 {
			continue
		}
		if !follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func eventOf(seq uint64, row *store.Event) Event {
	e := Event{Seq: seq, Type: row.Type, Time: time.UnixMilli(row.Time), Chat: row.Name, State: row.State, Text: row.Text}
	if len(row.Id) > 0 {
		e.ID = hex.EncodeToString(row.Id)
	}
	if len(row.From) == identity.KeySize { // a row's key was checked when it was learnt
		e.From = identity.Account(row.From).String()
	}
	return e
}

// A broadcast wakes everybody who waits for something to have changed.
type broadcast struct{ signal chan chan struct{} } // holds the channel to close next

func newBroadcast() broadcast {
	b := broadcast{signal: make(chan chan struct{}, 1)}
	b.signal <- make(chan struct{})
	return b
}

// wait returns a channel that closes at the next wake.
func (b broadcast) wait() <-chan struct{} {
	c := <-b.signal
	b.signal <- c
	return c
}

// wake closes the channel that wait returned.
func (b broadcast) wake() {
	close(<-b.signal)
	b.signal <- make(chan struct{})
}
