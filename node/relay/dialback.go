package relay

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"starling/protocol"
	"starling/protocol/wire"
)

const (
	dialBackTime = 10 * time.Second // for all addresses of a request
	dialBacks    = 16               // requests at once; one of an address block
)

// dialBack has the client dialled at those of its addresses that are at the IP
// address that it is seen at. The others count as not reached.
func (c *client) dialBack(m *wire.RelayDialBack) (*wire.RelayAnswer, error) {
	s := c.s
	if s.cfg.DialBack == nil {
		return nil, malformed
	}
	if !c.ip.IsValid() {
		return nil, refused
	}
	d := &wire.RelayDialed{Reached: make([]bool, len(m.Addrs))}
	var own []ma.Multiaddr
	var places []int // of these in the request
	for i, b := range m.Addrs {
		if a, err := ma.NewMultiaddrBytes(b); err == nil && isAt(a, c.ip) {
			own, places = append(own, a), append(places, i)
		}
	}
	if len(own) > 0 {
		b := s.enterDialBack(c.addr)
		if b == nil {
			return nil, busy
		}
		defer s.leaveDialBack(b)
		ctx, cancel := context.WithTimeout(c.ctx, dialBackTime)
		defer cancel()
		reached, err := s.cfg.DialBack(ctx, c.peer, own)
		if err != nil {
			return nil, fmt.Errorf("dialling back: %w", err)
		}
		for i, at := range places {
			d.Reached[at] = i < len(reached) && reached[i]
		}
	}
	return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK, Result: &wire.RelayAnswer_Dialed{Dialed: d}}, nil
}

// enterDialBack counts a request, or returns nil if there are too many.
func (s *Service) enterDialBack(p netip.Prefix) *block {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blockLocked(p)
	if s.dialling >= dialBacks || b.dialling && !p.Addr().IsLoopback() {
		return nil
	}
	s.dialling++
	b.dialling = true
	return b
}

func (s *Service) leaveDialBack(b *block) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialling--
	b.dialling = false
}

// isAt reports whether an address is a plain one, TCP or QUIC, at ip.
func isAt(a ma.Multiaddr, ip netip.Addr) bool {
	ps := a.Protocols()
	if len(ps) < 2 || ps[0].Code != ma.P_IP4 && ps[0].Code != ma.P_IP6 {
		return false
	}
	isTCP := len(ps) == 2 && ps[1].Code == ma.P_TCP
	isQUIC := len(ps) == 3 && ps[1].Code == ma.P_UDP && ps[2].Code == ma.P_QUIC_V1
	return (isTCP || isQUIC) && ipOf(a) == ip
}

// ipOf returns the IP address that an address begins with, or the zero one.
func ipOf(a ma.Multiaddr) netip.Addr {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

// NewDialBack returns what [Config.DialBack] wants: for each call a host of its
// own, under a transport key that nobody has seen and from ports of its own, that
// dials all addresses at once, speaks to no one else and is closed. A NAT that
// lets in any port of an address which it has sent to lets it in, too: what was
// reached is reached from this relay, and probably by others.
//
// transports are the libp2p options of the transports and their security, for a
// simulation; without any they are QUIC and TCP with Noise.
func NewDialBack(transports ...libp2p.Option) func(context.Context, peer.ID, []ma.Multiaddr) ([]bool, error) {
	if len(transports) == 0 {
		transports = []libp2p.Option{
			libp2p.Transport(libp2pquic.NewTransport), libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(noise.ID, noise.New),
		}
	}
	return func(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) ([]bool, error) {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("drawing a key: %w", err)
		}
		h, err := libp2p.New(append([]libp2p.Option{
			libp2p.Identity(key), libp2p.UserAgent(protocol.Agent), libp2p.ProtocolVersion(protocol.Agent),
			libp2p.Muxer(yamux.ID, yamux.DefaultTransport), libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.Ping(false),
			libp2p.DisableMetrics(), libp2p.DisableIdentifyAddressDiscovery(),
		}, transports...)...)
		if err != nil {
			return nil, fmt.Errorf("starting a host: %w", err)
		}
		defer h.Close()
		// The transports are asked and not the host, which would be content with
		// the first address that answers.
		ts, ok := h.Network().(interface {
			TransportForDialing(ma.Multiaddr) transport.Transport
		})
		if !ok {
			panic("relay: internal error: a libp2p network that is no swarm")
		}
		reached := make([]bool, len(addrs))
		var wg sync.WaitGroup
		for i, a := range addrs {
			t := ts.TransportForDialing(a)
			if t == nil {
				continue // not one that this relay speaks
			}
			wg.Go(func() {
				c, err := t.Dial(ctx, a, p) // proves that p is there
				if err != nil {
					return
				}
				reached[i] = true
				_ = c.Close()
			})
		}
		wg.Wait()
		return reached, nil
	}
}
