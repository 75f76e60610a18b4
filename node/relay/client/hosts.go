package client

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"

	"starling/protocol"
	"starling/protocol/identity"
)

// Hosts make hosts to speak to relays with. Each is fresh, under a fresh Ed25519
// transport key, and nothing that it does or says tells which node it belongs
// to, but for the IP address. Whoever gets one closes it. New is safe for
// concurrent use.
type Hosts interface {
	New() (host.Host, error)
}

// NewHosts returns hosts that only dial: no listener and so no address for
// identify to tell, no DHT, no circuit relay, no ping, the agent of all nodes.
// They speak QUIC, and TCP with Noise. A simulation gives options that bring a
// network of its own instead: transports, security, and what goes with them.
func NewHosts(opts ...libp2p.Option) Hosts { return hosts(opts) }

type hosts []libp2p.Option

// What a host of [NewHosts] takes at most: it has one connection, with few
// streams, on what may be a phone.
const (
	hostMemory = 64 << 20 // bytes
	hostFiles  = 64
)

// New implements [Hosts].
func (o hosts) New() (host.Host, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a transport key: %w", err)
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.UserAgent(protocol.Agent),
		libp2p.ProtocolVersion(protocol.Agent),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.DisableMetrics(),
		libp2p.DisableRelay(),
		libp2p.Ping(false),
		libp2p.DisableIdentifyAddressDiscovery(),
	}
	var resources interface{ Close() error }
	if len(o) > 0 {
		opts = append(opts, o...)
	} else {
		limits := rcmgr.DefaultLimits
		libp2p.SetDefaultServiceLimits(&limits)
		m, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Scale(hostMemory, hostFiles)), rcmgr.WithMetricsDisabled())
		if err != nil {
			return nil, fmt.Errorf("making a resource manager: %w", err)
		}
		resources = m
		opts = append(opts,
			libp2p.ResourceManager(m),
			libp2p.Transport(libp2pquic.NewTransport),
			libp2p.Transport(tcp.NewTCPTransport),
			libp2p.Security(noise.ID, noise.New),
		)
	}
	h, err := libp2p.New(append(opts, libp2p.NoListenAddrs)...)
	if err != nil {
		if resources != nil {
			err = errors.Join(err, resources.Close())
		}
		return nil, fmt.Errorf("making a host: %w", err)
	}
	return h, nil
}

// transportOf returns the transport key of a peer ID, if it carries an Ed25519
// key.
func transportOf(id peer.ID) (identity.Transport, bool) {
	pub, err := id.ExtractPublicKey()
	if err != nil || pub.Type() != crypto.Ed25519 {
		return identity.Transport{}, false
	}
	raw, err := pub.Raw()
	if err != nil {
		return identity.Transport{}, false
	}
	t, err := identity.ParseTransport(raw)
	return t, err == nil
}

// addrInfo returns where to dial a relay. Addresses that do not parse are left
// out: they came from a peer.
func addrInfo(e identity.Endpoint) peer.AddrInfo {
	pub, err := crypto.UnmarshalEd25519PublicKey(e.Transport[:])
	if err != nil {
		panic("client: internal error: a transport key has 32 bytes")
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		panic("client: internal error: an Ed25519 key has a peer ID")
	}
	info := peer.AddrInfo{ID: id}
	for _, b := range e.Addrs {
		if a, err := multiaddr.NewMultiaddrBytes(b); err == nil {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info
}
