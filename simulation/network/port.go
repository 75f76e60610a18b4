package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// listenPort is the TCP port of [Port.Listen].
const listenPort = 4001

// A Port is a node's place in a network. It outlives the node: after a crash
// the next one starts with the options of the same port.
type Port struct {
	net    *Net
	site   Site
	addr   netip.Addr // as others see it
	inside netip.Addr // as the node sees it; the same without a NAT
	upRate int64      // bit/s
	dnRate int64

	// Guarded by Net.mu.
	on        bool
	power     chan struct{} // closed by Cut; another one after each Restore
	conns     []*conn       // of which an end is open, in the order in which they began
	listeners []*listener
	dialled   map[int]uint64 // by site: connections begun
	ephemeral uint16
	sockets   []*socket
	inbox     inbox         // of all sockets
	lanes     map[int]*lane // by site
	nat       *table        // nil: none

	mu       sync.Mutex // guards the rest
	upLine   calendar
	downLine calendar
	stats    Stats // what it sent, and the datagrams that ended here
	received int64 // bytes that were sent to it
}

// Join gives s a place in the network, with its own bandwidth in bit/s, or the
// network's if that is 0. It fails if the site does not exist, is taken, is
// unknown to the topology, or has a kind of NAT that is none.
func (n *Net) Join(s Site, up, down int64) (*Port, error) {
	if s.Index < 0 || s.Index >= len(n.ports) {
		return nil, fmt.Errorf("network: site %d of %d", s.Index, len(n.ports))
	}
	if up < 0 || down < 0 {
		return nil, fmt.Errorf("network: bandwidth of %d up and %d down bit/s at site %d", up, down, s.Index)
	}
	if s.NAT > Symmetric {
		return nil, fmt.Errorf("network: %v at site %d", s.NAT, s.Index)
	}
	if t, ok := n.cfg.Topology.(interface{ Place(Site) error }); ok {
		if err := t.Place(s); err != nil {
			return nil, err
		}
	}
	if up == 0 {
		up = n.cfg.Up
	}
	if down == 0 {
		down = n.cfg.Down
	}
	p := &Port{
		net: n, site: s, addr: address(s.Index), inside: address(s.Index), upRate: up, dnRate: down,
		on: true, power: make(chan struct{}),
		dialled: make(map[int]uint64), lanes: make(map[int]*lane),
		nat: newTable(s.NAT, newSource(n.cfg.Seed, uint64(s.Index), packets)),
	}
	if p.nat != nil {
		p.inside = private(s.Index)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports[s.Index] != nil {
		return nil, fmt.Errorf("network: site %d is taken", s.Index)
	}
	n.ports[s.Index] = p
	n.addrs[p.addr] = p
	return p, nil
}

// address returns the address of a site: 1.x.y.1 for the first 256, which all
// differ in their /16, then on through 2.x to 9.x, and only then another y.
func address(i int) netip.Addr {
	const first = 9 // blocks of 256 before y changes
	return netip.AddrFrom4([4]byte{byte(1 + i/256%first), byte(i), byte(i / (256 * first)), 1})
}

// private returns the address of a node behind the NAT of a site, 10.x.y.2.
func private(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 2}) }

// Addr returns the address of this port as others see it. It looks public, and
// shares its /16 with no other port as long as there are at most 2,304.
func (p *Port) Addr() netip.Addr { return p.addr }

// Inside returns the address of this port as the node sees it: a private one
// behind a [NAT], else that of Addr.
func (p *Port) Inside() netip.Addr { return p.inside }

// Listen returns the multiaddr for a node here to listen on.
func (p *Port) Listen() string { return fmt.Sprintf("/ip4/%s/tcp/%d", p.inside, listenPort) }

// Bytes returns how many bytes, headers included, were sent from here and to
// here.
func (p *Port) Bytes() (sent, received int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats.Bytes, p.received
}

// Cut takes the power away. What has left the uplink stays on its way and
// arrives; a chunk of which a part waits there, or has to be sent again, is lost
// with all that follows it in its stream. What is on its way to here is lost. The
// ends here fail at once, and for good: hosts made with the options given out so
// far reach nobody again, and their listeners hear nothing. The other ends notice
// nothing else, unless something of theirs is not confirmed: they are reset
// when they have waited for [AbandonAfter], or when they ask a machine whose
// power is back. A [NAT] keeps its power.
func (p *Port) Cut() {
	n := p.net
	n.mu.Lock()
	defer n.mu.Unlock()
	p.cutLocked()
}

func (p *Port) cutLocked() {
	if !p.on {
		return
	}
	now := p.net.now()
	p.on = false
	close(p.power)
	for _, c := range slices.Clone(p.conns) {
		if c.cut(c.endOf(p), now) {
			p.net.forgetLocked(c)
		}
	}
	p.listeners = nil
	p.interceptLocked(now, func(*datagram) bool { return true })
	for _, q := range p.net.ports {
		if q != nil {
			q.interceptLocked(now, func(d *datagram) bool { return d.sender == p.site.Index && d.left > now })
		}
	}
	for _, s := range p.sockets {
		s.endLocked(gone)
	}
	p.sockets = nil
}

// Restore gives the power back. The machine knows none of its connections.
func (p *Port) Restore() {
	n := p.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.on || n.ports[p.site.Index] != p {
		return
	}
	now := n.now()
	p.on, p.power = true, make(chan struct{})
	for _, c := range p.conns {
		c.restore(c.endOf(p), now)
	}
}

// Close removes the machine for good, as [Port.Cut] does, and frees the site.
func (p *Port) Close() {
	n := p.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports[p.site.Index] != p {
		return
	}
	p.cutLocked()
	n.ports[p.site.Index] = nil
	delete(n.addrs, p.addr)
	n.retired.add(p.sent())
}

// endOf returns which end of c is at p. A site does not connect to itself.
func (c *conn) endOf(p *Port) int {
	if c.port[0] == p {
		return 0
	}
	return 1
}

// forget takes a connection that is over off its ports.
func (n *Net) forget(c *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgetLocked(c)
}

func (n *Net) forgetLocked(c *conn) {
	for _, p := range c.port {
		if i := slices.Index(p.conns, c); i >= 0 {
			p.conns = slices.Delete(p.conns, i, i+1)
		}
	}
}

// up books the uplink for some bytes, not before at, and returns when they
// have left.
func (p *Port) up(now, at time.Duration, bytes int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.upLine.book(now, at, onLine(bytes, p.upRate))
}

// upWithin books the uplink for a datagram of now, and reports false if it would
// wait longer than maxQueue. It takes at least a nanosecond, so that no two end
// together.
func (p *Port) upWithin(now time.Duration, bytes int) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.upLine.bookWithin(now, now, max(1, onLine(bytes, p.upRate)), now+maxQueue)
}

// down books the downlink likewise.
func (p *Port) down(now, at time.Duration, bytes int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.received += int64(bytes)
	return p.downLine.book(now, at, onLine(bytes, p.dnRate))
}

// downWithin books the downlink likewise, for a datagram that comes at the given
// time and must not arrive before another one.
func (p *Port) downWithin(now, at, after time.Duration, bytes int) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	end, ok := p.downLine.bookWithin(now, max(at, after), max(1, onLine(bytes, p.dnRate)), at+maxQueue)
	if ok {
		p.received += int64(bytes)
	}
	return end, ok
}

// onLine returns how long a line of rate bit/s takes for some bytes.
func onLine(bytes int, rate int64) time.Duration {
	return time.Duration(int64(bytes) * 8 * int64(time.Second) / rate)
}

// count counts a chunk that was sent from here.
func (p *Port) count(size, lost int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Chunks++
	p.stats.Bytes += int64(size + overhead*segments(size))
	p.stats.Lost += int64(lost)
}

// countDatagram counts a datagram that was sent from here.
func (p *Port) countDatagram(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Datagrams++
	p.stats.Bytes += int64(bytes)
}

// drop counts a datagram that was dropped on its way from here, or at its end
// here.
func (p *Port) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Dropped++
}

func (p *Port) sent() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// show tells the tap of c, whose sites and time of arrival it fills in.
func (n *Net) show(from, to *Port, c Chunk, at time.Duration) {
	if n.cfg.Tap == nil {
		return
	}
	c.From, c.To = from.site.Index, to.site.Index
	if at != never {
		c.Arrival = n.start.Add(at)
	}
	n.tap.Lock()
	defer n.tap.Unlock()
	n.cfg.Tap(c)
}

var errSelf = errors.New("network: a site does not connect to itself")
