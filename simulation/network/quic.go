package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/config"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	libnet "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
)

// QUICOptions returns what makes a libp2p host speak QUIC over this network,
// and nothing else; together with [Port.Options] it speaks both. It is libp2p's
// own QUIC with its encryption, congestion control and loss recovery, on
// sockets of this port. What [Port.Options] says of power, and of what the host
// is told, holds here too. A connection through a circuit relay has the
// security and the muxer of a stream.
//
// The hosts with which AutoNAT dials back use this network as well. They dial
// only if their owner has found that UDP gets through, by dialling well itself
// a few times, unless it was given libp2p.UDPBlackHoleSuccessCounter(nil).
func (p *Port) QUICOptions() []libp2p.Option {
	power := p.powered()
	return []libp2p.Option{
		libp2p.Transport(func(key crypto.PrivKey, psk pnet.PSK, g connmgr.ConnectionGater, m libnet.ResourceManager) (*quic, error) {
			return p.newQUIC(power, key, psk, g, m)
		}),
		libp2p.QUICReuse(newUnused),
		p.common,
	}
}

// QUICListen returns the multiaddr for a node here to listen on with QUIC.
func (p *Port) QUICListen() string {
	return fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", p.inside, listenPort)
}

// quic is libp2p's QUIC over sockets of one port. It has sockets of its own,
// since the options of libp2p that set them do not reach the hosts of AutoNAT.
type quic struct {
	transport.Transport
	sockets *quicreuse.ConnManager
}

func (p *Port) newQUIC(power <-chan struct{}, key crypto.PrivKey, psk pnet.PSK, g connmgr.ConnectionGater, m libnet.ResourceManager) (*quic, error) {
	reset, err := config.PrivKeyToStatelessResetKey(key)
	if err != nil {
		return nil, err
	}
	token, err := config.PrivKeyToTokenGeneratorKey(key)
	if err != nil {
		return nil, err
	}
	sockets, err := quicreuse.NewConnManager(reset, token,
		quicreuse.OverrideListenUDP(func(_ string, at *net.UDPAddr) (net.PacketConn, error) { return p.listenUDP(power, at) }),
		quicreuse.OverrideSourceIPSelector(func() (quicreuse.SourceIPSelector, error) { return source4(p.inside), nil }),
	)
	if err != nil {
		return nil, err
	}
	t, err := libp2pquic.NewTransport(key, sockets, psk, g, m)
	if err != nil {
		return nil, errors.Join(err, sockets.Close())
	}
	return &quic{t, sockets}, nil
}

// Close closes the sockets. The swarm calls it after it closed what uses them.
func (q *quic) Close() error { return q.sockets.Close() }

func (p *Port) listenUDP(power <-chan struct{}, at *net.UDPAddr) (net.PacketConn, error) {
	to := at.AddrPort()
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	return p.socketLocked(power, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
}

// source4 is the one address from which a node sends.
type source4 netip.Addr

// PreferredSourceIPForDestination implements [quicreuse.SourceIPSelector].
func (s source4) PreferredSourceIPForDestination(*net.UDPAddr) (net.IP, error) {
	return netip.Addr(s).AsSlice(), nil
}

// newUnused returns what a host has instead of sockets of the real network. The
// transport does without it, and whatever else asks it for one fails. Without
// reuse it has no goroutines, so nobody needs to close it.
func newUnused() (*quicreuse.ConnManager, error) {
	return quicreuse.NewConnManager([32]byte{}, [32]byte{}, quicreuse.DisableReuseport(),
		quicreuse.OverrideListenUDP(func(string, *net.UDPAddr) (net.PacketConn, error) {
			return nil, errors.New("network: no sockets outside of the simulated network")
		}))
}
