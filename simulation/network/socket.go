package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"
)

// A socket stands in for a UDP socket. All of it is guarded by Net.mu. What it
// fails with is what a UDP socket fails with: net.ErrClosed after Close,
// os.ErrDeadlineExceeded, EMSGSIZE, and ENETDOWN once its machine lost power.
type socket struct {
	port  *Port
	at    netip.AddrPort // as the node sees it
	state state          // open, closed or gone

	ready []*datagram // that can be read, in the order in which they came
	held  int         // bytes of payload of ready
	limit int         // of held

	reader                   waiter
	readDeadline, writeLimit time.Duration
}

var _ net.PacketConn = (*socket)(nil)

// ListenPacket opens a UDP socket, which is good until the power is cut. Port 0
// takes a free one; an unspecified address means the one that the node sees. Its
// writes never wait. A datagram longer than 1,472 bytes is refused, as if it
// forbade to be fragmented.
func (p *Port) ListenPacket(at netip.AddrPort) (net.PacketConn, error) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	return p.socketLocked(p.power, at)
}

// socketLocked opens a socket on the power that p had when power was its
// channel.
func (p *Port) socketLocked(power <-chan struct{}, at netip.AddrPort) (net.PacketConn, error) {
	if !p.on || p.power != power {
		return nil, errDown
	}
	if at.Addr() != p.inside && !at.Addr().IsUnspecified() {
		return nil, fmt.Errorf("network: opening %v at %v: %w", at, p.inside, syscall.EADDRNOTAVAIL)
	}
	port := at.Port()
	if port == 0 {
		port = p.freeLocked()
	}
	if p.onPortLocked(port) != nil {
		return nil, fmt.Errorf("network: opening %v: %w", at, syscall.EADDRINUSE)
	}
	p.settleLocked(p.net.now()) // what came before is not for this socket
	s := &socket{
		port: p, at: netip.AddrPortFrom(p.inside, port), limit: readBuffer,
		readDeadline: never, writeLimit: never,
	}
	p.sockets = append(p.sockets, s)
	return s, nil
}

// onPortLocked returns the socket on a UDP port, or nil.
func (p *Port) onPortLocked(port uint16) *socket {
	for _, s := range p.sockets {
		if s.at.Port() == port {
			return s
		}
	}
	return nil
}

// ReadFrom implements [net.PacketConn]. What does not fit into b is lost.
func (s *socket) ReadFrom(b []byte) (int, net.Addr, error) {
	n := s.port.net
	n.mu.Lock()
	defer n.mu.Unlock()
	s.reader.enter(&n.mu)
	defer s.reader.leave()
	for {
		if err := s.stateLocked(); err != nil {
			return 0, nil, err
		}
		now := n.now()
		if now >= s.readDeadline {
			return 0, nil, os.ErrDeadlineExceeded
		}
		s.port.settleLocked(now)
		if len(s.ready) > 0 {
			d := s.ready[0]
			s.ready = slices.Delete(s.ready, 0, 1)
			s.held -= len(d.b)
			return copy(b, d.b), net.UDPAddrFromAddrPort(d.from), nil
		}
		s.reader.park(&n.mu, now, min(s.readDeadline, s.port.inbox.next()))
	}
}

// WriteTo implements [net.PacketConn]. Whether anybody hears it does not show.
func (s *socket) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("network: writing to %v: %w", to, syscall.EINVAL)
	}
	remote := netip.AddrPortFrom(u.AddrPort().Addr().Unmap(), u.AddrPort().Port())
	if !remote.Addr().Is4() || remote.Port() == 0 {
		return 0, fmt.Errorf("network: writing to %v: %w", to, syscall.EINVAL)
	}
	n := s.port.net
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	switch err := s.stateLocked(); {
	case err != nil:
		return 0, err
	case now >= s.writeLimit:
		return 0, os.ErrDeadlineExceeded
	case len(b) > maxDatagram:
		return 0, fmt.Errorf("network: writing %d bytes: %w", len(b), syscall.EMSGSIZE)
	case remote.Addr() == s.port.inside:
		return 0, errSelf
	}
	s.sendLocked(now, remote, b)
	return len(b), nil
}

func (s *socket) stateLocked() error {
	switch s.state {
	case open:
		return nil
	case closed:
		return net.ErrClosed
	default:
		return errDown
	}
}

// Close implements [net.PacketConn]. Closing twice is not an error.
func (s *socket) Close() error {
	p := s.port
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	if i := slices.Index(p.sockets, s); i >= 0 {
		p.sockets = slices.Delete(p.sockets, i, i+1)
	}
	s.endLocked(closed)
	return nil
}

// endLocked ends the socket, and leaves it to the caller to take it off its
// port.
func (s *socket) endLocked(end state) {
	if s.state == open {
		s.state = end
	}
	for range s.ready {
		s.port.drop()
	}
	s.ready, s.held = nil, 0
	s.reader.rouse()
}

// LocalAddr implements [net.PacketConn]. It is the address that the node sees,
// also if the socket was opened on an unspecified one.
func (s *socket) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(s.at) }

// SetDeadline implements [net.PacketConn].
func (s *socket) SetDeadline(t time.Time) error {
	s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements [net.PacketConn].
func (s *socket) SetReadDeadline(t time.Time) error {
	n := s.port.net
	n.mu.Lock()
	defer n.mu.Unlock()
	s.readDeadline = n.offset(t)
	s.reader.rouse()
	return s.stateLocked()
}

// SetWriteDeadline implements [net.PacketConn]. It counts although writes never
// wait: after it they fail.
func (s *socket) SetWriteDeadline(t time.Time) error {
	n := s.port.net
	n.mu.Lock()
	defer n.mu.Unlock()
	s.writeLimit = n.offset(t)
	return s.stateLocked()
}

// SetReadBuffer sets how many bytes of payload wait at most until they are
// read. QUIC asks for 7 MB.
func (s *socket) SetReadBuffer(bytes int) error {
	n := s.port.net
	n.mu.Lock()
	defer n.mu.Unlock()
	s.port.settleLocked(n.now())
	s.limit = bytes
	return s.stateLocked()
}

// SetWriteBuffer does nothing: writes do not wait. QUIC logs a warning where it
// cannot ask.
func (s *socket) SetWriteBuffer(int) error { return nil }
