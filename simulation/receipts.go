package simulation

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"starling/protocol/relay"
	"starling/protocol/wire"
)

// A ledger holds one relay to its receipts: what it signed for is there for its
// reader until it expires or the reader deletes it. It sees the answers that
// clients get.
type ledger struct {
	r *Relay

	mu      sync.Mutex // guards what follows; never held across a wait
	held    map[deposited]*promise
	order   []*promise                 // of held, as they were made
	entries map[entryID]*promise       // by the number under which a reader was shown one
	given   map[[sha256.Size]byte]bool // one-time keys
	count   RelayResult                // what it counts
}

// A deposited is a blob in a queue.
type deposited struct {
	queue relay.QueueID
	blob  [sha256.Size]byte
}

// An entryID is what a reader deletes an entry by.
type entryID struct {
	queue relay.QueueID
	id    uint64
}

// A promise is what is known of one deposit.
type promise struct {
	deposited
	signed  bool          // a receipt was handed out
	at      time.Duration // when
	expires int64         // unix seconds; of the receipt
	shown   bool          // to the reader
	over    bool          // the reader deleted it, or the queue; or it was reported
	broken  bool
	void    bool // lost with a disk
}

// A view is what one stream of a reader was shown of its queues, since it began
// at their beginning.
type view struct {
	attached map[relay.QueueID]bool
	of       map[relay.QueueID]bool // those that were attached when it began; nil: it has not
	shown    map[*promise]bool
}

func (l *ledger) init(r *Relay) {
	l.r, l.held, l.entries, l.given = r, map[deposited]*promise{}, map[entryID]*promise{}, map[[sha256.Size]byte]bool{}
}

// void ends all promises: the relay's disk is lost.
func (l *ledger) void() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.held {
		p.void = p.signed && !p.over && !p.shown
		p.over = true
	}
	clear(l.held)
	clear(l.entries)
}

func (l *ledger) promiseLocked(d deposited) *promise {
	p := l.held[d]
	if p == nil {
		p = &promise{deposited: d}
		l.held[d] = p
		l.order = append(l.order, p)
	}
	return p
}

// answered takes a request and the answer that was given to it.
func (l *ledger) answered(v *view, x *inquiry, a *wire.RelayAnswer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ok := a.Status == wire.RelayStatus_RELAY_STATUS_OK
	switch m := x.req.Command.(type) {
	case *wire.RelayRequest_TakeKey:
		if ok {
			key := sha256.Sum256(a.GetKey().GetKey())
			if l.given[key] {
				l.count.KeysRepeated++
			}
			l.given[key] = true
		}
		switch {
		case !ok:
			l.count.KeysDenied++
		case m.TakeKey.GetToken() != nil:
			l.count.KeysToTokens++
		default:
			l.count.KeysToWork++
		}
	case *wire.RelayRequest_Deposit:
		if !ok {
			l.count.Refused++
			return
		}
		d := m.Deposit
		p := l.promiseLocked(deposited{relay.QueueID(d.Queue), sha256.Sum256(d.Blob)})
		if !p.signed {
			p.signed, p.at = true, l.r.w.Now()
			l.count.Receipts++
		}
		p.expires = max(p.expires, d.Expires)
	case *wire.RelayRequest_Claim:
		if ok {
			l.claimedLocked(v, m.Claim, a.GetQueues())
		}
	case *wire.RelayRequest_Poll:
		if ok {
			l.polledLocked(v, m.Poll, x.at, a.GetEntries())
		}
	case *wire.RelayRequest_Delete:
		if !ok {
			return
		}
		for _, d := range m.Delete.Deletions {
			for _, id := range d.Ids {
				if p := l.entries[entryID{relay.QueueID(d.Queue), id}]; p != nil {
					p.over = true
				}
			}
		}
	case *wire.RelayRequest_Drop:
		if !ok {
			return
		}
		for d, p := range l.held {
			if d.queue == relay.QueueID(m.Drop.Queue) {
				p.over = true
			}
		}
	}
}

// claimedLocked notes which queues a stream has attached.
func (l *ledger) claimedLocked(v *view, claim *wire.RelayClaim, got *wire.RelayQueues) {
	c, err := relay.ParseClaim(claim)
	if err != nil || len(c.Readers) != len(got.Queues) {
		return // the service answered it, so it is in order
	}
	if v.attached == nil {
		v.attached = map[relay.QueueID]bool{}
	}
	for i, r := range c.Readers {
		if got.Queues[i].Known {
			v.attached[r.Queue()] = true
		}
	}
}

// polledLocked takes what a reader was shown. Once that is all there is from the
// beginning of its queues, whatever was promised before the reader asked is
// among it.
func (l *ledger) polledLocked(v *view, req *wire.RelayPoll, asked time.Duration, got *wire.RelayEntries) {
	if req.After == 0 {
		v.of, v.shown = map[relay.QueueID]bool{}, map[*promise]bool{}
		for q := range v.attached {
			v.of[q] = true
		}
	}
	for _, e := range got.Entries {
		p := l.promiseLocked(deposited{relay.QueueID(e.Queue), sha256.Sum256(e.Blob)})
		at := entryID{p.queue, e.Id}
		if p.shown && p.over && l.entries[at] == nil {
			l.count.Repeated++
		}
		p.shown = true
		v.shown[p] = true
		l.entries[at] = p
	}
	if got.More || v.of == nil {
		return
	}
	now := l.r.w.Clock().Unix()
	for _, p := range l.order {
		if p.signed && !p.over && v.of[p.queue] && p.at < asked && p.expires > now && !v.shown[p] {
			l.brokenLocked(p)
		}
	}
}

// brokenLocked reports a receipt that was not honoured: for a relay that is what
// it says, the world's promise is broken; for another it is a finding.
func (l *ledger) brokenLocked(p *promise) {
	p.broken, p.over = true, true
	text := fmt.Sprintf("%s signed at %v for a message that it keeps until %s, and does not have it for its reader",
		l.r.spec.Name, p.at, time.Unix(p.expires, 0).UTC().Format(time.RFC3339))
	if l.r.spec.Bad == "" {
		o := l.r.w.oracle
		o.mu.Lock()
		defer o.mu.Unlock()
		o.violatedLocked(oracleReceipt, "%s", text)
		return
	}
	l.r.w.log.add(Event{Type: "broken receipt", Node: l.r.spec.Name, Text: text})
}

// fill puts what was counted into the relay's result, as of now.
func (l *ledger) fill(res *RelayResult, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	res.Receipts, res.Repeated, res.Refused = l.count.Receipts, l.count.Repeated, l.count.Refused
	res.KeysToTokens, res.KeysToWork, res.KeysDenied, res.KeysRepeated = l.count.KeysToTokens, l.count.KeysToWork, l.count.KeysDenied, l.count.KeysRepeated
	for _, p := range l.order {
		switch {
		case !p.signed:
		case p.broken:
			res.Broken++
		case p.void:
			res.Void++
		case p.shown:
			res.Honoured++
		case p.over || p.expires <= now.Unix():
			res.Unread++
		default:
			res.Waiting++
		}
	}
}
