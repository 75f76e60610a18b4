package network

import "time"

// A pipe is one direction of a connection. It is guarded by conn.mu.
type pipe struct {
	link  Link
	draws source // of this direction of this connection alone

	q    []chunk // written, not read; q[:head] is read
	head int
	last time.Duration // no later chunk arrives before
	fin  bool          // its end was written

	rst     time.Duration // when a reset, sent along this pipe, arrives; never
	rstLeft time.Duration // when it leaves
	held    time.Duration // since when something waits to be sent again; none: -1

	unacked int   // bytes written and not known to be read
	acks    []ack // on their way to the writer; acks[:acked] have arrived
	acked   int

	reader, writer           waiter
	readDeadline, writeLimit time.Duration
}

// A chunk is what one write handed over, or the end of the stream.
type chunk struct {
	left time.Duration // when all of it has left the uplink, as often as it has to; never while it is held
	at   time.Duration // when it arrives; likewise
	b    []byte
	// fin marks the end of the stream. It has no bytes.
	fin bool
}

type ack struct {
	at time.Duration // when the writer learns of it
	n  int
}

// Queues that grew beyond this are given back when they are empty.
const keepQueue = 32

// rto is how long a sender waits before it sends again for the first time.
func (p *pipe) rto() time.Duration { return max(minRTO, 4*p.link.Latency) }

// backoff returns how long after the first sending the k-th retransmission
// leaves: the wait doubles each time.
func (p *pipe) backoff(k int) time.Duration { return p.rto() * (1<<k - 1) }

// retransmission returns the first time, not before now, at which a sender
// tries again that has been trying since from.
func (p *pipe) retransmission(from, now time.Duration) time.Duration {
	wait := p.rto()
	t := from + wait
	for t < now {
		wait *= 2
		t += wait
	}
	return t
}

func segments(size int) int { return max(1, (size+segment-1)/segment) }

// lose draws which segments of a chunk are lost, and returns how many in all
// and how often the unluckiest.
func (p *pipe) lose(size int) (lost, most int) {
	if p.link.Loss <= 0 {
		return 0, 0
	}
	for range segments(size) {
		k := 0
		for k < maxLosses && p.draws.float() < p.link.Loss {
			k++
		}
		lost += k
		most = max(most, k)
	}
	return lost, most
}

// push adds a chunk to the queue.
func (p *pipe) push(c chunk) {
	if p.head == len(p.q) {
		p.head, p.q = 0, p.q[:0]
		if cap(p.q) > keepQueue {
			p.q = nil
		}
	}
	p.q = append(p.q, c)
	p.last = c.at
}

// pop takes the first chunk off the queue.
func (p *pipe) pop() {
	p.q[p.head] = chunk{}
	p.head++
}

// first returns the first chunk not read, or nil.
func (p *pipe) first() *chunk {
	if p.head == len(p.q) {
		return nil
	}
	return &p.q[p.head]
}

// drop forgets what is queued.
func (p *pipe) drop() { p.q, p.head = nil, 0 }

// busy reports whether something is still to arrive after now.
func (p *pipe) busy(now time.Duration) bool {
	return p.head < len(p.q) && p.q[len(p.q)-1].at > now
}

// dropAfter forgets what was to arrive after a time, and reports whether there
// was anything.
func (p *pipe) dropAfter(at time.Duration) bool {
	n := len(p.q)
	for n > p.head && p.q[n-1].at > at {
		n--
	}
	some := n < len(p.q)
	clear(p.q[n:])
	p.q = p.q[:n]
	return some
}

// dropHere forgets what has not left by now, and what follows it.
func (p *pipe) dropHere(now time.Duration) {
	for j := p.head; j < len(p.q); j++ {
		if p.q[j].left > now {
			clear(p.q[j:])
			p.q = p.q[:j]
		}
	}
}

// confirm tells the writer that n bytes were read; it learns of it a latency
// later.
func (p *pipe) confirm(now time.Duration, n int) {
	p.settle(now)
	at := now + p.link.Latency
	p.acks = append(p.acks, ack{at, n})
	if p.writer.parked && len(p.acks) == p.acked+1 {
		p.writer.arm(now, at)
	}
}

// settle takes in the confirmations that have arrived.
func (p *pipe) settle(now time.Duration) {
	for p.acked < len(p.acks) && p.acks[p.acked].at <= now {
		p.unacked -= p.acks[p.acked].n
		p.acked++
	}
	if p.acked == len(p.acks) {
		p.acked, p.acks = 0, p.acks[:0]
	} else if p.acked > keepQueue {
		p.acks = p.acks[:copy(p.acks, p.acks[p.acked:])]
		p.acked = 0
	}
}

// nextAck returns when the next confirmation arrives.
func (p *pipe) nextAck() time.Duration {
	if p.acked == len(p.acks) {
		return never
	}
	return p.acks[p.acked].at
}
