package network

import (
	"net/netip"
	"slices"
	"time"
)

// How UDP behaves, as far as it is modelled.
const (
	maxDatagram    = mtu - packetOverhead
	mtu            = 1500 // bytes of one packet
	packetOverhead = 28   // bytes of headers of one packet, IPv4 and UDP

	// readBuffer is what a socket holds until it is read, in bytes of payload,
	// unless it is asked for more. It is what Linux has.
	readBuffer = 208 << 10

	// maxQueue is how long a datagram waits for a line at most. One that would
	// wait longer is dropped, which is how QUIC learns how fast a line is.
	maxQueue = 200 * time.Millisecond
)

// packets are the draws of datagrams in the place where streams have the number
// of a connection, which never gets there.
const packets = 1 << 63

// A datagram is on its way, or waits to be read.
type datagram struct {
	left     time.Duration // when it has left the uplink
	at       time.Duration // when it arrives at the site
	sender   int           // site
	from, to netip.AddrPort
	b        []byte
}

// A lane is the way of datagrams from one site to another. They do not overtake
// each other, unless the latency of the link changes.
type lane struct {
	draws   source
	latency time.Duration // of the link, when the newest was sent
	came    time.Duration // when the newest comes to the downlink
	last    time.Duration // when it arrives
}

// laneLocked returns the lane to a site.
func (p *Port) laneLocked(to *Port) *lane {
	l := p.lanes[to.site.Index]
	if l == nil {
		l = &lane{draws: newSource(p.net.cfg.Seed, uint64(p.site.Index), uint64(to.site.Index), packets)}
		p.lanes[to.site.Index] = l
	}
	return l
}

// sendLocked puts a datagram on its way. b is copied.
func (s *socket) sendLocked(now time.Duration, to netip.AddrPort, b []byte) {
	p := s.port
	n := p.net
	bytes := len(b) + packetOverhead
	p.countDatagram(bytes)
	p.settleLocked(now) // before the NAT hears of this one
	from := s.at
	if p.nat != nil {
		outer, ok := p.nat.leave(now, from.Port(), to)
		if !ok {
			p.drop()
			return
		}
		from = netip.AddrPortFrom(p.addr, outer)
	}
	left, ok := p.upWithin(now, bytes)
	peer := n.addrs[to.Addr()]
	if peer == nil || peer == p { // nobody, or ourselves from outside
		p.drop()
		return
	}
	at := never
	link, lane := n.linkLocked(p, peer), p.laneLocked(peer)
	// Both are drawn for each datagram, so that its fate is that of its number.
	lost, late := lane.draws.float() < link.Loss, lane.draws.upTo(link.Jitter)
	if ok && !lost && peer.on && !n.apartLocked(p, peer) {
		if lane.latency != link.Latency {
			lane.latency, lane.came, lane.last = link.Latency, 0, 0
		}
		lane.came = max(lane.came, left+link.Latency+late)
		if t, ok := peer.downWithin(now, lane.came, lane.last, bytes); ok {
			at, lane.last = t, t
		}
	}
	n.show(p, peer, Chunk{Size: len(b), Datagram: true}, at)
	if at == never {
		p.drop()
		return
	}
	peer.expectLocked(now, &datagram{left: left, at: at, sender: p.site.Index, from: from, to: to, b: append([]byte(nil), b...)})
}

// expectLocked takes in a datagram that is on its way to p.
func (p *Port) expectLocked(now time.Duration, d *datagram) {
	p.settleLocked(now) // also where nobody reads, so that only what is on its way is kept
	p.inbox.push(d)
	for _, s := range p.sockets {
		s.reader.arm(now, d.at)
	}
}

// settleLocked hands out what has arrived by now, in the order of arrival. It
// comes before everything that changes what is let in, so it does not matter
// how late it comes.
func (p *Port) settleLocked(now time.Duration) {
	for p.inbox.next() <= now {
		if !p.receiveLocked(p.inbox.pop()) {
			p.drop()
		}
	}
}

// receiveLocked hands a datagram that has arrived to its socket. It reports
// false if it is let in by nobody.
func (p *Port) receiveLocked(d *datagram) bool {
	port := d.to.Port()
	if p.nat != nil {
		inner, ok := p.nat.enter(d.at, port, d.from)
		if !ok {
			return false
		}
		port = inner
	}
	s := p.onPortLocked(port)
	if s == nil || s.held+len(d.b) > s.limit {
		return false
	}
	s.ready = append(s.ready, d)
	s.held += len(d.b)
	s.reader.rouse()
	return true
}

// interceptLocked drops what is on its way to p, and is one of those.
func (p *Port) interceptLocked(now time.Duration, those func(*datagram) bool) {
	p.settleLocked(now)
	for range p.inbox.remove(those) {
		p.drop()
	}
}

// An inbox holds the datagrams on their way to a port, in the order of arrival.
type inbox struct {
	q    []*datagram
	head int // q[:head] has arrived
}

// next returns when the first arrives; never.
func (i *inbox) next() time.Duration {
	if i.head == len(i.q) {
		return never
	}
	return i.q[i.head].at
}

func (i *inbox) pop() *datagram {
	d := i.q[i.head]
	i.q[i.head] = nil
	i.head++
	return d
}

// push adds a datagram, most often at the end.
func (i *inbox) push(d *datagram) {
	switch {
	case i.head == len(i.q):
		i.head, i.q = 0, i.q[:0]
		if cap(i.q) > keepQueue {
			i.q = nil
		}
	case i.head > keepQueue && 2*i.head > len(i.q):
		i.q = slices.Delete(i.q, 0, i.head)
		i.head = 0
	}
	k := len(i.q)
	for k > i.head && i.q[k-1].at > d.at {
		k--
	}
	i.q = slices.Insert(i.q, k, d)
}

// remove takes out some, and returns how many.
func (i *inbox) remove(those func(*datagram) bool) int {
	before := len(i.q)
	i.q = slices.Delete(i.q, 0, i.head)
	before -= i.head
	i.head = 0
	i.q = slices.DeleteFunc(i.q, those)
	return before - len(i.q)
}
