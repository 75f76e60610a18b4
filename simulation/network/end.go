package network

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// What an end fails with is what TCP fails with: net.ErrClosed after Close,
// io.EOF after the other end closed, os.ErrDeadlineExceeded, and these.
var (
	errReset   = fmt.Errorf("network: %w", syscall.ECONNRESET)   // by the other machine, or given up
	errPipe    = fmt.Errorf("network: %w", syscall.EPIPE)        // written after CloseWrite
	errDown    = fmt.Errorf("network: %w", syscall.ENETDOWN)     // our machine has no power
	errRefused = fmt.Errorf("network: %w", syscall.ECONNREFUSED) // nobody listens
)

// An end is one end of a connection, and stands in for a TCP connection.
type end struct {
	c             *conn
	i             int
	local, remote netip.AddrPort
	lma, rma      ma.Multiaddr
}

var _ manet.Conn = (*end)(nil)

// Read implements [net.Conn]. What arrived before a reset can still be read.
func (e *end) Read(b []byte) (int, error) {
	c := e.c
	p := &c.pipe[1-e.i]
	c.mu.Lock()
	defer c.mu.Unlock()
	p.reader.enter(&c.mu)
	defer p.reader.leave()
	for {
		if err := e.stateLocked(); err != nil {
			return 0, err
		}
		now, fails, at := c.net.now(), c.failsLocked(e.i), c.readableLocked(e.i)
		switch {
		case now >= p.readDeadline:
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case at <= now && at < fails:
			return p.take(now, b)
		case now >= fails:
			return 0, c.resetLocked()
		}
		p.reader.park(&c.mu, now, min(p.readDeadline, fails, at))
	}
}

// take reads from the first chunk.
func (p *pipe) take(now time.Duration, b []byte) (int, error) {
	h := p.first()
	if h.fin {
		return 0, io.EOF
	}
	n := copy(b, h.b)
	h.b = h.b[n:]
	if len(h.b) == 0 {
		p.pop()
	}
	p.confirm(now, n)
	return n, nil
}

// Write implements [net.Conn]. It waits while more than 256 KiB are in flight,
// and returns how much it handed over if it ends early.
func (e *end) Write(b []byte) (int, error) {
	c := e.c
	p := &c.pipe[e.i]
	c.mu.Lock()
	defer c.mu.Unlock()
	p.writer.enter(&c.mu)
	defer p.writer.leave()
	for sent := 0; ; {
		if err := e.stateLocked(); err != nil {
			return sent, err
		}
		now, fails := c.net.now(), c.failsLocked(e.i)
		p.settle(now)
		switch {
		case now >= p.writeLimit:
			return sent, os.ErrDeadlineExceeded
		case now >= fails:
			return sent, c.resetLocked()
		case p.fin:
			return sent, errPipe
		case sent == len(b):
			return sent, nil
		case p.unacked <= window:
			n := min(len(b)-sent, maxChunk)
			c.sendLocked(e.i, now, b[sent:sent+n], false)
			if sent += n; sent == len(b) {
				return sent, nil
			}
		default:
			p.writer.park(&c.mu, now, min(p.writeLimit, fails, p.nextAck()))
		}
	}
}

// stateLocked returns why this end is of no use any more, as far as its own
// machine is concerned.
func (e *end) stateLocked() error {
	switch e.c.state[e.i] {
	case open:
		return nil
	case closed:
		return net.ErrClosed
	default:
		return errDown
	}
}

// resetLocked returns the error of a reset connection, and counts it once.
func (c *conn) resetLocked() error {
	if !c.counted {
		c.counted = true
		c.net.resets.Add(1)
	}
	return errReset
}

// CloseWrite ends what the other end can read, after what was written.
func (e *end) CloseWrite() error {
	c := e.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := e.stateLocked(); err != nil {
		return err
	}
	p := &c.pipe[e.i]
	now := c.net.now()
	switch {
	case now >= c.failsLocked(e.i):
		return c.resetLocked()
	case !p.fin:
		c.sendLocked(e.i, now, nil, true)
		p.writer.rouse()
	}
	return nil
}

// Close implements [net.Conn]. The other end reads what was written, and then
// the end of the stream; but if this end leaves something unread, the other is
// reset, as with TCP. Closing twice is not an error.
func (e *end) Close() error {
	c := e.c
	c.mu.Lock()
	over := false
	if c.state[e.i] == open {
		e.closeLocked()
		over = c.overLocked()
	}
	c.mu.Unlock()
	if over {
		c.net.forget(c)
	}
	return nil
}

func (e *end) closeLocked() {
	c := e.c
	in, out := &c.pipe[1-e.i], &c.pipe[e.i]
	now := c.net.now()
	if now < c.failsLocked(e.i) {
		first := in.first()
		unread := first != nil && !first.fin
		switch {
		case unread && c.readableLocked(e.i) <= now:
			c.refuseLocked(1-e.i, now+out.link.Latency)
		default:
			if !out.fin {
				c.sendLocked(e.i, now, nil, true)
			}
			if unread && in.held < 0 {
				c.refuseLocked(1-e.i, first.at+out.link.Latency)
			}
		}
	}
	c.state[e.i] = closed
	in.drop()
	c.rouseLocked()
}

// SetDeadline implements [net.Conn].
func (e *end) SetDeadline(t time.Time) error {
	e.SetReadDeadline(t)
	return e.SetWriteDeadline(t)
}

// SetReadDeadline implements [net.Conn].
func (e *end) SetReadDeadline(t time.Time) error {
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	p := &e.c.pipe[1-e.i]
	p.readDeadline = e.c.net.offset(t)
	p.reader.rouse()
	return e.stateLocked()
}

// SetWriteDeadline implements [net.Conn].
func (e *end) SetWriteDeadline(t time.Time) error {
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	p := &e.c.pipe[e.i]
	p.writeLimit = e.c.net.offset(t)
	p.writer.rouse()
	return e.stateLocked()
}

// LocalAddr implements [net.Conn].
func (e *end) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(e.local) }

// RemoteAddr implements [net.Conn].
func (e *end) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(e.remote) }

// LocalMultiaddr implements [manet.Conn].
func (e *end) LocalMultiaddr() ma.Multiaddr { return e.lma }

// RemoteMultiaddr implements [manet.Conn].
func (e *end) RemoteMultiaddr() ma.Multiaddr { return e.rma }
