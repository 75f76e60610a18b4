package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"starling/protocol/ratchet"
)

// A memory is a network without sockets, for nodes in virtual time: every byte
// takes halfTrip, none is lost, and nothing runs of itself.
type memory struct {
	mu        sync.Mutex // guards what follows; never held across a wait
	listeners map[string]*memoryListener
	ports     int
}

const halfTrip = 20 * time.Millisecond

// inMemory runs fn with a world of its own in virtual time. What a person of it
// runs must have ended when fn returns.
func inMemory(t *testing.T, fn func(w *world, m *memory)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{TB: t, tick: time.Second, patience: 12 * time.Hour, used: map[nonceUse]int{}, sealed: map[ratchet.Observation]bool{}}
		ctx, cancel := context.WithTimeout(t.Context(), 5000*time.Hour)
		defer cancel()
		w.ctx = ctx
		fn(w, &memory{listeners: map[string]*memoryListener{}})
	})
}

// at places a person's node in the network.
func (m *memory) at(i int) func(*person) {
	return func(p *person) { p.cfg.Listen, p.cfg.Transports = m.place(i) }
}

// place returns where a host listens, and what it speaks.
func (m *memory) place(i int) (listen []string, speaks []libp2p.Option) {
	addr := fmt.Sprintf("/ip4/1.%d.0.1/tcp/4001", i)
	return []string{addr}, []libp2p.Option{
		libp2p.Transport(func(u transport.Upgrader, r network.ResourceManager) *memoryTransport {
			return &memoryTransport{m, multiaddr.StringCast(addr), u, r}
		}),
		libp2p.Security(noise.ID, noise.New),
	}
}

type memoryTransport struct {
	m    *memory
	addr multiaddr.Multiaddr
	up   transport.Upgrader
	rcm  network.ResourceManager
}

func (t *memoryTransport) CanDial(a multiaddr.Multiaddr) bool { return manet.IsThinWaist(a) }
func (t *memoryTransport) Protocols() []int                   { return []int{multiaddr.P_TCP} }
func (t *memoryTransport) Proxy() bool                        { return false }

func (t *memoryTransport) Listen(a multiaddr.Multiaddr) (transport.Listener, error) {
	l := &memoryListener{m: t.m, addr: a, conns: make(chan manet.Conn, 16), closed: make(chan struct{})}
	t.m.mu.Lock()
	t.m.listeners[a.String()] = l
	t.m.mu.Unlock()
	return t.up.UpgradeGatedMaListener(t, t.up.GateMaListener(l)), nil
}

func (t *memoryTransport) Dial(ctx context.Context, to multiaddr.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	scope, err := t.rcm.OpenConnection(network.DirOutbound, true, to)
	if err != nil {
		return nil, err
	}
	c, err := t.dial(ctx, to, p, scope)
	if err != nil {
		scope.Done()
	}
	return c, err
}

func (t *memoryTransport) dial(ctx context.Context, to multiaddr.Multiaddr, p peer.ID, scope network.ConnManagementScope) (transport.CapableConn, error) {
	if err := scope.SetPeer(p); err != nil {
		return nil, err
	}
	trip := time.NewTimer(2 * halfTrip)
	defer trip.Stop()
	select {
	case <-trip.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	t.m.mu.Lock()
	l := t.m.listeners[to.String()]
	t.m.ports++
	ip, _ := multiaddr.SplitFunc(t.addr, func(c multiaddr.Component) bool { return c.Code() == multiaddr.P_TCP })
	from := ip.Encapsulate(multiaddr.StringCast(fmt.Sprintf("/tcp/%d", 10000+t.m.ports)))
	t.m.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	there, back := newHalf(), newHalf()
	select {
	case l.conns <- &memoryConn{in: there, out: back, local: to, remote: from}:
	case <-l.closed:
		return nil, errors.New("connection refused")
	}
	return t.up.Upgrade(ctx, t, &memoryConn{in: back, out: there, local: from, remote: to}, network.DirOutbound, p, scope)
}

type memoryListener struct {
	m      *memory
	addr   multiaddr.Multiaddr
	conns  chan manet.Conn // dialers send, Accept receives
	closed chan struct{}
	once   sync.Once
}

func (l *memoryListener) Accept() (manet.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() {
		l.m.mu.Lock()
		delete(l.m.listeners, l.addr.String())
		l.m.mu.Unlock()
		close(l.closed)
	})
	return nil
}

func (l *memoryListener) Multiaddr() multiaddr.Multiaddr { return l.addr }

func (l *memoryListener) Addr() net.Addr { return netAddr(l.addr) }

// A half is one direction of a connection.
type half struct {
	mu       sync.Mutex // guards what follows; never held across a wait
	queue    []memoryChunk
	ended    bool          // the writer closed
	gone     bool          // the reader closed
	deadline time.Time     // of the reader
	news     chan struct{} // whoever changes something sends, the reader receives; one slot
}

type memoryChunk struct {
	at time.Time
	b  []byte // nil is the end
}

func newHalf() *half { return &half{news: make(chan struct{}, 1)} }

// change runs fn under the lock and wakes the reader.
func (h *half) change(fn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fn()
	select {
	case h.news <- struct{}{}:
	default:
	}
}

func (h *half) send(b []byte) (err error) {
	h.change(func() {
		if h.ended || h.gone {
			err = io.ErrClosedPipe
			return
		}
		h.ended = b == nil
		h.queue = append(h.queue, memoryChunk{time.Now().Add(halfTrip), append([]byte(nil), b...)})
	})
	return err
}

// take returns what is there for the reader, and otherwise how long nothing
// will be; less than zero is for ever.
func (h *half) take(p []byte) (n int, wait time.Duration, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now, wait := time.Now(), time.Duration(-1)
	until := func(at time.Time) {
		if d := at.Sub(now); wait < 0 || d < wait {
			wait = d
		}
	}
	switch {
	case h.gone:
		return 0, 0, net.ErrClosed
	case !h.deadline.IsZero() && !now.Before(h.deadline):
		return 0, 0, os.ErrDeadlineExceeded
	}
	if !h.deadline.IsZero() {
		until(h.deadline)
	}
	if len(h.queue) == 0 {
		return 0, wait, nil
	}
	c := &h.queue[0]
	switch {
	case c.at.After(now):
		until(c.at)
		return 0, wait, nil
	case len(c.b) == 0:
		return 0, 0, io.EOF
	}
	n = copy(p, c.b)
	if c.b = c.b[n:]; len(c.b) == 0 {
		h.queue = h.queue[1:]
	}
	return n, 0, nil
}

type memoryConn struct {
	in, out       *half
	local, remote multiaddr.Multiaddr
}

func (c *memoryConn) Read(p []byte) (int, error) {
	for {
		n, wait, err := c.in.take(p)
		if n > 0 || err != nil {
			return n, err
		}
		timer := time.NewTimer(max(wait, 0))
		if wait < 0 {
			timer.Stop()
		}
		select {
		case <-c.in.news:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (c *memoryConn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := c.out.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *memoryConn) Close() error {
	_ = c.out.send(nil)
	c.in.change(func() { c.in.gone = true })
	return nil
}

func (c *memoryConn) SetReadDeadline(t time.Time) error {
	c.in.change(func() { c.in.deadline = t })
	return nil
}

func (c *memoryConn) SetWriteDeadline(time.Time) error     { return nil } // a write does not wait
func (c *memoryConn) SetDeadline(t time.Time) error        { return c.SetReadDeadline(t) }
func (c *memoryConn) LocalMultiaddr() multiaddr.Multiaddr  { return c.local }
func (c *memoryConn) RemoteMultiaddr() multiaddr.Multiaddr { return c.remote }
func (c *memoryConn) LocalAddr() net.Addr                  { return netAddr(c.local) }
func (c *memoryConn) RemoteAddr() net.Addr                 { return netAddr(c.remote) }

func netAddr(a multiaddr.Multiaddr) net.Addr {
	n, err := manet.ToNetAddr(a)
	if err != nil {
		panic(err)
	}
	return n
}
