package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// A listener accepts the connections that reach one address.
type listener struct {
	port  *Port
	addr  netip.AddrPort
	maddr ma.Multiaddr

	mu     sync.Mutex // guards the rest
	queue  []arrival  // by time
	closed bool
	accept waiter
}

// An arrival is a connection that is complete at the given time.
type arrival struct {
	at time.Duration
	e  *end
}

var _ manet.Listener = (*listener)(nil)

// listen opens a listener on the power that p had when power was its channel.
// Port 0 takes a free one.
func (p *Port) listen(power <-chan struct{}, at netip.AddrPort) (*listener, error) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	if !p.on || p.power != power {
		return nil, errDown
	}
	if at.Addr() != p.inside && !at.Addr().IsUnspecified() {
		return nil, fmt.Errorf("network: listening on %v at %v: %w", at, p.inside, syscall.EADDRNOTAVAIL)
	}
	port := at.Port()
	if port == 0 {
		port = p.freeLocked()
	}
	if p.listenerLocked(port) != nil {
		return nil, fmt.Errorf("network: listening on %v: %w", at, syscall.EADDRINUSE)
	}
	l := &listener{port: p, addr: netip.AddrPortFrom(p.inside, port)}
	l.maddr = multiaddr(l.addr)
	p.listeners = append(p.listeners, l)
	return l, nil
}

// listenerLocked returns what listens on a TCP port, or nil.
func (p *Port) listenerLocked(port uint16) *listener {
	for _, l := range p.listeners {
		if l.addr.Port() == port {
			return l
		}
	}
	return nil
}

// freeLocked returns a port that neither a listener nor a socket has, the next
// one each time.
func (p *Port) freeLocked() uint16 {
	const first = 32768
	for {
		p.ephemeral = max(first, p.ephemeral+1)
		if p.listenerLocked(p.ephemeral) == nil && p.onPortLocked(p.ephemeral) == nil {
			return p.ephemeral
		}
	}
}

// offer hands over a connection that is complete at the given time. It reports
// false if the listener takes no more.
func (l *listener) offer(e *end, now, at time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.queue) >= backlog {
		return false
	}
	i := len(l.queue)
	for i > 0 && l.queue[i-1].at > at {
		i--
	}
	l.queue = slices.Insert(l.queue, i, arrival{at, e})
	l.accept.arm(now, at)
	return true
}

// Accept implements [manet.Listener]. Without power it waits for Close.
func (l *listener) Accept() (manet.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accept.enter(&l.mu)
	defer l.accept.leave()
	for {
		if l.closed {
			return nil, net.ErrClosed
		}
		now, at := l.port.net.now(), never
		if len(l.queue) > 0 {
			at = l.queue[0].at
		}
		if at <= now {
			e := l.queue[0].e
			l.queue = slices.Delete(l.queue, 0, 1)
			return e, nil
		}
		l.accept.park(&l.mu, now, at)
	}
}

// Close implements [manet.Listener]. Connections that were not accepted are
// closed; so the first that their other ends write resets them.
func (l *listener) Close() error {
	n := l.port.net
	n.mu.Lock()
	if i := slices.Index(l.port.listeners, l); i >= 0 {
		l.port.listeners = slices.Delete(l.port.listeners, i, i+1)
	}
	n.mu.Unlock()
	l.mu.Lock()
	q := l.queue
	l.closed, l.queue = true, nil
	l.accept.rouse()
	l.mu.Unlock()
	for _, a := range q {
		a.e.Close()
	}
	return nil
}

// Multiaddr implements [manet.Listener].
func (l *listener) Multiaddr() ma.Multiaddr { return l.maddr }

// Addr implements [manet.Listener].
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// multiaddr returns the multiaddr of a TCP address.
func multiaddr(a netip.AddrPort) ma.Multiaddr {
	m, err := manet.FromNetAddr(net.TCPAddrFromAddrPort(a))
	if err != nil {
		panic("network: internal error: a TCP address has a multiaddr")
	}
	return m
}
