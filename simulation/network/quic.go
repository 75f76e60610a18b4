package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/config"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	libnet "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	ma "github.com/multiformats/go-multiaddr"
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
	power   <-chan struct{} // closed when it is lost
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
	return &quic{t, sockets, power}, nil
}

// Listen implements [transport.Transport].
func (q *quic) Listen(a ma.Multiaddr) (transport.Listener, error) {
	l, err := q.Transport.Listen(a)
	if err != nil {
		return nil, err
	}
	return &deaf{Listener: l, power: q.power, closed: make(chan struct{})}, nil
}

// A deaf listener hears nothing once the power is lost, as one of streams does,
// where QUIC would say that it ended. Then the swarm would believe in a mistake
// and complain.
type deaf struct {
	transport.Listener
	power  <-chan struct{}
	close  sync.Once
	closed chan struct{} // by Close
}

// Accept implements [transport.Listener].
func (d *deaf) Accept() (transport.CapableConn, error) {
	c, err := d.Listener.Accept()
	if err == nil {
		return c, nil
	}
	select {
	case <-d.power:
		<-d.closed
		return nil, transport.ErrListenerClosed
	default:
		return nil, err
	}
}

// Close implements [transport.Listener].
func (d *deaf) Close() error {
	d.close.Do(func() { close(d.closed) })
	return d.Listener.Close()
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
