package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/libp2p/go-libp2p"
	libnet "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/insecure"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Options returns what makes a libp2p host speak over this network alone. They
// are for hosts started until the power is cut; ask again after [Port.Restore].
//
// They replace every muxer by a yamux that sends nothing by itself, since its
// pings would be most of what an idle network does, and they tell the host
// whether it is reachable, so that it asks nobody: it is without a [NAT], and is
// not behind one. A later libp2p.ForceReachabilityPrivate or -Public overrules
// that.
func (p *Port) Options() []libp2p.Option {
	power := p.powered()
	return []libp2p.Option{
		libp2p.Transport(func(u transport.Upgrader, m libnet.ResourceManager) *stream {
			return &stream{port: p, power: power, upgrader: u, manager: m}
		}),
		p.common,
	}
}

// powered returns the channel that is closed when the power of now is lost.
func (p *Port) powered() <-chan struct{} {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	return p.power
}

// common is the option that both faces share. It may be given twice.
func (p *Port) common(c *libp2p.Config) error {
	c.SecurityTransports = nil
	security := libp2p.Security(insecure.ID, newPlain)
	if p.net.cfg.Noise {
		security = libp2p.Security(noise.ID, noise.New)
	}
	c.Muxers = []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: muxer()}}
	if c.ResourceManager == nil {
		c.ResourceManager = &libnet.NullResourceManager{}
	}
	reachable := libp2p.ForceReachabilityPublic()
	if p.nat != nil {
		reachable = libp2p.ForceReachabilityPrivate()
	}
	return c.Apply(security, reachable)
}

// muxer returns libp2p's yamux, without keepalives, with a measurement of the
// round trip every ten minutes, and without a buffer of its own for reading.
func muxer() *yamux.Transport {
	t := *yamux.DefaultTransport
	t.EnableKeepAlive = false
	t.MeasureRTTInterval = 10 * time.Minute
	t.ReadBufSize = 0
	t.LogOutput = io.Discard
	return &t
}

// A stream is the stream face of the network: a libp2p transport for one port,
// from the coming of its power to its loss.
type stream struct {
	port     *Port
	power    <-chan struct{} // closed when it is lost
	upgrader transport.Upgrader
	manager  libnet.ResourceManager
}

var _ transport.Transport = (*stream)(nil)

// CanDial implements [transport.Transport]: IPv4 and TCP, nothing around it.
func (*stream) CanDial(a ma.Multiaddr) bool {
	_, err := tcpAddr(a)
	return err == nil
}

// Protocols implements [transport.Transport].
func (*stream) Protocols() []int { return []int{ma.P_TCP} }

// Proxy implements [transport.Transport].
func (*stream) Proxy() bool { return false }

func (*stream) String() string { return "simulated TCP" }

// Listen implements [transport.Transport].
func (s *stream) Listen(a ma.Multiaddr) (transport.Listener, error) {
	at, err := tcpAddr(a)
	if err != nil {
		return nil, err
	}
	l, err := s.port.listen(s.power, at)
	if err != nil {
		return nil, err
	}
	return s.upgrader.UpgradeGatedMaListener(s, s.upgrader.GateMaListener(l)), nil
}

// Dial implements [transport.Transport]. Like libp2p's TCP it gives up after
// five seconds.
func (s *stream) Dial(ctx context.Context, a ma.Multiaddr, id peer.ID) (transport.CapableConn, error) {
	to, err := tcpAddr(a)
	if err != nil {
		return nil, err
	}
	scope, err := s.manager.OpenConnection(libnet.DirOutbound, true, a)
	if err != nil {
		return nil, err
	}
	if err := scope.SetPeer(id); err != nil {
		scope.Done()
		return nil, err
	}
	e, err := s.dial(ctx, to)
	if err != nil {
		scope.Done()
		return nil, err
	}
	return s.upgrader.Upgrade(ctx, s, e, libnet.DirOutbound, id, scope)
}

// tcpAddr parses /ip4/A/tcp/P and nothing longer.
func tcpAddr(a ma.Multiaddr) (netip.AddrPort, error) {
	if len(a) == 2 && a[0].Code() == ma.P_IP4 && a[1].Code() == ma.P_TCP {
		if n, err := manet.ToNetAddr(a); err == nil {
			at := n.(*net.TCPAddr).AddrPort()
			return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("network: %v is not an IPv4 address and a TCP port", a)
}

// dial connects to an address. Attempts leave after 0, 1 and 3 seconds, until
// one is answered.
func (s *stream) dial(ctx context.Context, to netip.AddrPort) (*end, error) {
	n := s.port.net
	n.dials.Add(1)
	began := n.now()
	d := s.begin(to)
	var e *end
	var err error
	for wait := synRetry; ; wait *= 2 {
		left := n.now()
		e, err = d.attempt(ctx, began+dialTimeout)
		if e != nil || err != nil {
			break
		}
		if err = s.sleep(ctx, min(left+wait, began+dialTimeout)); err != nil {
			break
		}
		if n.now() >= began+dialTimeout {
			err = os.ErrDeadlineExceeded
			break
		}
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return e, nil
}

// A dial is one connection being made. Its losses are drawn from a source of
// its own.
type dial struct {
	*stream
	to     netip.AddrPort
	number uint64
	draws  source
}

func (s *stream) begin(to netip.AddrPort) *dial {
	n := s.port.net
	d := &dial{stream: s, to: to}
	n.mu.Lock()
	defer n.mu.Unlock()
	if peer := n.addrs[to.Addr()]; peer != nil {
		site := peer.site.Index
		d.number = s.port.dialled[site]
		s.port.dialled[site]++
		d.draws = newSource(n.cfg.Seed, uint64(s.port.site.Index), uint64(site), d.number)
	}
	return d
}

// attempt sends one request to connect. It returns neither an end nor an error
// if no answer comes.
func (d *dial) attempt(ctx context.Context, limit time.Duration) (*end, error) {
	n := d.port.net
	there, back := false, false
	n.mu.Lock()
	peer, latency, err := d.wayLocked()
	if peer != nil {
		loss := n.linkLocked(d.port, peer).Loss
		there, back = d.draws.float() >= loss, d.draws.float() >= loss
	}
	n.mu.Unlock()
	if err != nil || !there || n.now()+2*latency >= limit {
		return nil, err
	}
	if err := d.sleep(ctx, n.now()+latency); err != nil {
		return nil, err
	}
	n.mu.Lock()
	peer, _, err = d.wayLocked()
	heard := peer != nil && peer.listenerLocked(d.to.Port()) != nil
	n.mu.Unlock()
	if err != nil || peer == nil || !back {
		return nil, err
	}
	if err := d.sleep(ctx, n.now()+latency); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	peer, _, err = d.wayLocked()
	switch {
	case err != nil || peer == nil:
		return nil, err
	case !heard || peer.listenerLocked(d.to.Port()) == nil:
		return nil, errRefused
	}
	return d.establishLocked(peer, latency), nil
}

// wayLocked returns the port to reach, if it is reached, and how long it takes.
func (d *dial) wayLocked() (*Port, time.Duration, error) {
	n := d.port.net
	if !d.port.on || d.port.power != d.power {
		return nil, 0, errDown
	}
	if d.to.Addr() == d.port.inside {
		return nil, 0, errSelf
	}
	peer := n.addrs[d.to.Addr()]
	if peer == nil || peer.nat != nil || !peer.on || n.apartLocked(d.port, peer) {
		return nil, 0, nil
	}
	return peer, n.linkLocked(d.port, peer).Latency, nil
}

// establishLocked makes the connection, which the other side accepts when our
// confirmation reaches it. It returns nil if there is no room for it.
func (d *dial) establishLocked(peer *Port, latency time.Duration) *end {
	n := d.port.net
	now := n.now()
	l := peer.listenerLocked(d.to.Port())
	c := n.connectLocked(d.port, peer, d.number)
	// A NAT keeps the port of a stream.
	inside := netip.AddrPortFrom(d.port.inside, d.port.freeLocked())
	outside := netip.AddrPortFrom(d.port.addr, inside.Port())
	ours, theirs := &c.end[0], &c.end[1]
	ours.local, ours.lma, ours.remote, ours.rma = inside, multiaddr(inside), l.addr, l.maddr
	theirs.local, theirs.lma, theirs.remote, theirs.rma = l.addr, l.maddr, outside, multiaddr(outside)
	if !l.offer(&c.end[1], now, now+latency) {
		n.forgetLocked(c)
		return nil
	}
	return &c.end[0]
}

// sleep waits until the given time. It ends early with the cause if ctx does,
// or the power.
func (s *stream) sleep(ctx context.Context, until time.Duration) error {
	t := time.NewTimer(until - s.port.net.now())
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.power:
		return errDown
	}
}
