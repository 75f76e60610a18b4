package network

import (
	"sync"
	"time"
)

// A conn is a connection between two ports. End 0 dialled, end 1 accepted;
// pipe i is written by end i.
//
// An end is
//
//	open ──Close──► closed ──Cut──► gone ──Restore──► forgotten
//	  └──────────────Cut─────────────┘
//
// and a connection is over once no end of it is open.
type conn struct {
	net  *Net
	port [2]*Port
	end  [2]end

	mu      sync.Mutex // guards the rest
	pipe    [2]pipe
	state   [2]state
	since   time.Duration // a partition has separated the ends; none: -1
	doom    time.Duration // both ends are reset then; never
	counted bool          // in Net.resets
}

type state uint8

const (
	open      state = iota
	closed          // by its owner
	gone            // its machine has no power
	forgotten       // its machine has power again, and does not know it
)

// connectLocked returns a connection from a to b, the number-th that was
// dialled. The caller holds Net.mu and sees to it that the two can talk.
func (n *Net) connectLocked(a, b *Port, number uint64) *conn {
	c := &conn{net: n, port: [2]*Port{a, b}, since: -1, doom: never}
	l := n.linkLocked(a, b)
	for i := range c.pipe {
		c.pipe[i] = pipe{
			link: l, rst: never, held: -1, readDeadline: never, writeLimit: never,
			draws: newSource(n.cfg.Seed, uint64(a.site.Index), uint64(b.site.Index), number, uint64(i)),
		}
		c.end[i] = end{c: c, i: i}
		c.port[i].conns = append(c.port[i].conns, c)
	}
	return c
}

// failsLocked returns when end i is reset, as far as is known now.
func (c *conn) failsLocked(i int) time.Duration {
	in, out := &c.pipe[1-i], &c.pipe[i]
	t := c.doom
	switch {
	case c.since >= 0:
		t = min(t, c.since+ResetAfter)
	case out.held >= 0:
		t = min(t, out.held+AbandonAfter)
	}
	if c.since < 0 || in.rst <= c.since {
		t = min(t, in.rst)
	}
	return t
}

// readableLocked returns when the first chunk that waits for end i can be
// read; never, if a partition holds it or none waits.
func (c *conn) readableLocked(i int) time.Duration {
	h := c.pipe[1-i].first()
	if h == nil || c.since >= 0 && h.at > c.since {
		return never
	}
	return h.at
}

// sendLocked puts a chunk on its way. b is copied.
func (c *conn) sendLocked(i int, now time.Duration, b []byte, fin bool) {
	p := &c.pipe[i]
	p.fin = p.fin || fin
	lost, left, at := 0, never, never
	if c.since >= 0 || c.state[1-i] == gone {
		if p.held < 0 {
			p.held = now
		}
	} else {
		var most int
		lost, most = p.lose(len(b))
		if most < maxLosses {
			wait := p.backoff(most)
			left, at = c.carry(i, now, now, len(b), p.draws.upTo(p.link.Jitter)+wait)
			left, at = left+wait, max(p.last, at)
		} else {
			c.doom = min(c.doom, now+p.backoff(most))
			c.rouseLocked()
		}
	}
	c.port[i].count(len(b), lost)
	c.net.show(c.port[i], c.port[1-i], Chunk{Size: len(b)}, at)
	switch c.state[1-i] {
	case open:
		p.unacked += len(b)
		p.push(chunk{left: left, at: at, b: append([]byte(nil), b...), fin: fin})
		if p.head == len(p.q)-1 {
			p.reader.arm(now, at)
		}
	case gone:
		p.unacked += len(b)
	default:
		if at != never {
			c.refuseLocked(i, at+p.link.Latency)
		}
	}
}

// carry books a chunk that end i sends at the given time on both lines, and
// returns when it has left the one and arrived on the other.
func (c *conn) carry(i int, now, at time.Duration, size int, late time.Duration) (left, arrives time.Duration) {
	bytes := size + overhead*segments(size)
	left = c.port[i].up(now, at, bytes)
	return left, c.port[1-i].down(now, left+c.pipe[i].link.Latency+late, bytes)
}

// refuseLocked resets end i at the given time, since the other end does not
// want what it sent.
func (c *conn) refuseLocked(i int, at time.Duration) {
	if back := &c.pipe[1-i]; at < back.rst {
		back.rst, back.rstLeft = at, at-back.link.Latency
		c.rouseLocked()
	}
}

// rouseLocked lets everybody look again.
func (c *conn) rouseLocked() {
	for i := range c.pipe {
		c.pipe[i].reader.rouse()
		c.pipe[i].writer.rouse()
	}
}

// relink changes the link of what is sent from now on.
func (c *conn) relink(l Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pipe[0].link, c.pipe[1].link = l, l
}

// separate says whether a partition lies between the ends.
func (c *conn) separate(apart bool, now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if apart == (c.since >= 0) {
		return
	}
	c.rouseLocked()
	if apart {
		c.since = now
		for i := range c.pipe {
			p := &c.pipe[i]
			switch {
			case c.state[i] >= gone: // nobody sends it again
				p.dropAfter(now)
			case p.busy(now) && p.held < 0:
				p.held = now
			}
			if c.state[i] == gone && p.rst > now {
				p.rst = never
			}
		}
		return
	}
	since := c.since
	c.since = -1
	if now-since >= ResetAfter {
		c.doom = min(c.doom, since+ResetAfter)
		c.pipe[0].dropAfter(since)
		c.pipe[1].dropAfter(since)
		return
	}
	for i := range c.pipe {
		if p := &c.pipe[i]; p.rst > since && p.rst != never {
			p.rst = max(p.rst, now+p.link.Latency)
			p.rstLeft = p.rst - p.link.Latency
		}
	}
	c.retryLocked(now, since)
}

// retryLocked sends again what could not be sent, now that the way may be
// open. Chunks that were to arrive after since have not.
func (c *conn) retryLocked(now, since time.Duration) {
	for i := range c.pipe {
		p := &c.pipe[i]
		if p.held < 0 || c.since >= 0 || c.state[1-i] == gone {
			continue
		}
		at := p.retransmission(p.held, now)
		p.held = -1
		if c.state[1-i] != open {
			c.refuseLocked(i, at+2*p.link.Latency)
			continue
		}
		p.last = 0
		for j := p.head; j < len(p.q); j++ {
			if h := &p.q[j]; h.at > since {
				h.left, h.at = c.carry(i, now, at, len(h.b), 0)
				h.at = max(p.last, h.at)
			}
			p.last = p.q[j].at
		}
	}
}

// cut takes the power from end i, and reports whether the connection is over.
// What has left the machine by now is on its way as before.
func (c *conn) cut(i int, now time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state[i] >= gone {
		return c.overLocked()
	}
	c.state[i] = gone
	c.rouseLocked()
	arrived := now
	if c.since >= 0 {
		arrived = c.since
	}
	in, out := &c.pipe[1-i], &c.pipe[i]
	if in.dropAfter(arrived) && in.held < 0 {
		in.held = now
	}
	in.drop()
	out.dropHere(now)
	if c.since >= 0 {
		out.dropAfter(arrived)
	}
	out.held = -1
	if out.rstLeft >= now || out.rst > arrived && c.since >= 0 {
		out.rst = never
	}
	return c.overLocked()
}

// restore gives the power back to the machine of end i, without its memory.
func (c *conn) restore(i int, now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state[i] != gone {
		return
	}
	if out := &c.pipe[1-i]; out.held >= 0 {
		c.doom = min(c.doom, out.held+AbandonAfter)
	}
	c.state[i] = forgotten
	c.retryLocked(now, now)
	c.rouseLocked()
}

// overLocked reports whether no end is open.
func (c *conn) overLocked() bool { return c.state[0] != open && c.state[1] != open }
