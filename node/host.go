package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"starling/protocol"
	"starling/protocol/identity"
)

// Connections the manager trims down to and starts trimming at, and how long it
// leaves a new one alone.
const (
	connLow   = 96
	connHigh  = 160
	connGrace = time.Minute
)

// watermarks returns these three for Config.Conns.
func watermarks(conns int) (low, high int, grace time.Duration) {
	if conns == 0 {
		return connLow, connHigh, connGrace
	}
	return conns * 2 / 3, conns, connGrace * time.Duration(conns) / connHigh
}

// newHost makes the libp2p host. relays gives circuit relays to try when this
// node is not reachable directly. The hole puncher is that of the host, and nil
// without one.
func newHost(cfg Config, transportSeed []byte, relays func(context.Context, int) <-chan peer.AddrInfo) (host.Host, *holepunch.Service, error) {
	key, err := transportKey(transportSeed)
	if err != nil {
		return nil, nil, err
	}
	var h host.Host
	var punching *holepunch.Service
	listening := make(chan struct{}) // closed below, once the host listens
	low, high, grace := watermarks(cfg.Conns)
	manager, err := connmgr.NewConnManager(low, high, connmgr.WithGracePeriod(grace))
	if err != nil {
		return nil, nil, fmt.Errorf("making a connection manager: %w", err)
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.UserAgent(protocol.Agent),
		libp2p.ProtocolVersion(protocol.Agent),
		libp2p.ConnectionManager(manager),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.DisableMetrics(),
	}
	if cfg.Transports != nil {
		opts = append(opts, cfg.Transports...)
	} else {
		resources, err := newResources()
		if err != nil {
			return nil, nil, errors.Join(err, manager.Close())
		}
		opts = append(opts,
			libp2p.ResourceManager(resources),
			libp2p.Transport(libp2pquic.NewTransport),
			libp2p.Transport(tcp.NewTCPTransport),
			libp2p.Security(noise.ID, noise.New),
			libp2p.UDPBlackHoleSuccessCounter(newBlackHole()),
		)
	}
	if len(cfg.Announce) > 0 {
		announce := make([]multiaddr.Multiaddr, len(cfg.Announce))
		for i, s := range cfg.Announce {
			announce[i] = multiaddr.StringCast(s) // checked by withDefaults
		}
		opts = append(opts, libp2p.AddrsFactory(func([]multiaddr.Multiaddr) []multiaddr.Multiaddr { return announce }))
	}
	if !cfg.NoPortMap {
		opts = append(opts, libp2p.NATPortMap())
	}
	switch cfg.Reach {
	case ReachPrivate:
		opts = append(opts, libp2p.ForceReachabilityPrivate())
	case ReachPublic:
		opts = append(opts, libp2p.ForceReachabilityPublic())
	}
	if !cfg.NoAutoNAT {
		opts = append(opts, libp2p.EnableNATService())
		// The second version asks on its own account, whatever was decided; with
		// ReachPublic that is the price of answering others.
		if cfg.Reach != ReachPrivate {
			opts = append(opts, libp2p.EnableAutoNATv2())
		}
	}
	if cfg.NoRelayClient {
		opts = append(opts, libp2p.DisableRelay())
	} else {
		find := libp2p.EnableAutoRelayWithPeerSource(relays)
		if named := circuitRelays(cfg); len(named) > 0 {
			find = libp2p.EnableAutoRelayWithPeerSource(
				func(ctx context.Context, _ int) <-chan peer.AddrInfo { return offer(ctx, listening, &h, named) },
				autorelay.WithMaxCandidates(len(named)), autorelay.WithMinCandidates(len(named)), autorelay.WithNumRelays(len(named)),
				autorelay.WithBootDelay(0), autorelay.WithBackoff(circuitRetry), autorelay.WithMinInterval(circuitRetry),
			)
		}
		opts = append(opts, libp2p.EnableRelay(), find)
		if !cfg.NoHolePunch {
			opts = append(opts, libp2p.EnableHolePunching(func(s *holepunch.Service) error {
				punching = s
				return nil
			}))
		}
	}
	if cfg.Circuits {
		opts = append(opts, libp2p.EnableRelayService())
	}
	if cfg.NoAddressDiscovery {
		opts = append(opts, libp2p.DisableIdentifyAddressDiscovery())
	}
	listen := make([]multiaddr.Multiaddr, len(cfg.Listen))
	for i, s := range cfg.Listen {
		listen[i] = multiaddr.StringCast(s) // checked by withDefaults
	}
	// Listening is a step of its own: a New that fails to listen leaves half of
	// a host running. The option comes after those for relays, which it would
	// switch off otherwise.
	h, err = libp2p.New(append(opts, libp2p.NoListenAddrs)...)
	if err != nil {
		return nil, nil, fmt.Errorf("starting the network: %w", err)
	}
	if cfg.OnConnect != nil {
		h.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
			cfg.OnConnect(c.RemotePeer(), !c.Stat().Limited)
		}})
	}
	if err := h.Network().Listen(listen...); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("starting the network: %w", err), h.Close())
	}
	close(listening)
	return h, punching, nil
}

// offer returns the circuit relays of Config.CircuitRelays once this node
// listens. Dialled before, they would see it at a port that nobody can use, and
// as they are all that tells it where it is seen, it could never punch a hole.
// h is set by then.
func offer(ctx context.Context, listening <-chan struct{}, h *host.Host, named []peer.AddrInfo) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, len(named))
	defer close(out)
	select {
	case <-listening:
	case <-ctx.Done():
		return out
	}
	s, _ := (*h).Network().(interface{ Backoff() *swarm.DialBackoff })
	for _, info := range named {
		if s != nil {
			s.Backoff().Clear(info.ID)
		}
		out <- info
	}
	return out
}

// udpDials is how many dials over UDP must fail in a row until this node takes it
// that its network lets no UDP out, and tries one in so many only.
const udpDials = 100

// newBlackHole makes the judge of that. libp2p's own starts undecided and asks
// for five successes in a hundred: until then a node refuses to dial back to
// QUIC addresses (AutoNAT v2), which in a small network nobody ever gets to, and
// contacts who are away are failures enough to give up QUIC for all.
func newBlackHole() *swarm.BlackHoleSuccessCounter {
	c := &swarm.BlackHoleSuccessCounter{N: udpDials, MinSuccesses: 1, Name: "UDP"}
	for range udpDials {
		c.RecordResult(true)
	}
	return c
}

// circuitRetry is the pause after a circuit relay of Config.CircuitRelays did not
// answer, or did not give a place. There are no others to ask meanwhile, so it is
// short, and libp2p's own back-off for dialling, which grows to five minutes while
// a relay is away, is set back each time: a relay that was started anew has its
// guests back within half a minute.
const circuitRetry = 15 * time.Second

// circuitRelays returns Config.CircuitRelays, one entry for each relay.
func circuitRelays(cfg Config) []peer.AddrInfo {
	var addrs []multiaddr.Multiaddr
	for _, s := range cfg.CircuitRelays {
		addrs = append(addrs, multiaddr.StringCast(s)) // checked by withDefaults
	}
	list, err := peer.AddrInfosFromP2pAddrs(addrs...)
	if err != nil {
		panic("node: internal error: withDefaults has checked the circuit relays")
	}
	return list
}

// Limits on connections from one IP address. To libp2p a circuit comes from its
// relay's address, and goes there: by its own limits, of 8 connections and a new
// one in five seconds, nobody could have more than seven contacts through a relay.
// A relay has up to 16 circuits for one guest, each for two minutes.
const (
	connsByAddress = 32  // of one IPv4 address or IPv6 /56
	connsBySite    = 256 // of one IPv6 /48
	rateByAddress  = 1.0 // new ones a second
	rateBySite     = 8.0 // likewise
	burstByAddress = 64
	burstBySite    = 512
)

// newResources makes a resource manager with libp2p's default limits but for
// these, and without metrics: those format a time stamp for every stream and
// every reservation, whether or not anybody reads them, and
// libp2p.DisableMetrics does not end that.
func newResources() (network.ResourceManager, error) {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	m, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.AutoScale()),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsByAddress}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: connsByAddress}, {PrefixLength: 48, ConnCount: connsBySite}},
		),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{
				{Prefix: netip.MustParsePrefix("127.0.0.0/8")}, {Prefix: netip.MustParsePrefix("::1/128")},
			},
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: rate.Limit{RPS: rateByAddress, Burst: burstByAddress}}},
				IPv6SubnetLimits: []rate.SubnetLimit{
					{PrefixLength: 56, Limit: rate.Limit{RPS: rateByAddress, Burst: burstByAddress}},
					{PrefixLength: 48, Limit: rate.Limit{RPS: rateBySite, Burst: burstBySite}},
				},
				GracePeriod: time.Minute,
			},
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("making a resource manager: %w", err)
	}
	return m, nil
}

// transportKey returns the libp2p host key with the given seed.
func transportKey(seed []byte) (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(seedReader(seed))
	if err != nil {
		return nil, fmt.Errorf("making the transport key: %w", err)
	}
	return key, nil
}

// A seedReader reads one Ed25519 seed.
type seedReader []byte

func (s seedReader) Read(p []byte) (int, error) { return copy(p, s), nil }

// transportOf returns the transport key of a peer ID. Peer IDs that do not
// carry an Ed25519 key are nobody we talk to.
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

// peerOf returns the peer ID of a transport key.
func peerOf(t identity.Transport) peer.ID {
	pub, err := crypto.UnmarshalEd25519PublicKey(t[:])
	if err != nil {
		panic("node: internal error: a transport key has 32 bytes")
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		panic("node: internal error: an Ed25519 key has a peer ID")
	}
	return id
}

// addrInfo returns where to dial an endpoint. Addresses that do not parse are
// left out: they came from a peer.
func addrInfo(e identity.Endpoint) peer.AddrInfo {
	info := peer.AddrInfo{ID: peerOf(e.Transport)}
	for _, b := range e.Addrs {
		if a, err := multiaddr.NewMultiaddrBytes(b); err == nil {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info
}

// endpoint returns where this node can be dialled, as told to others: public
// addresses only, unless the network has none (Config.Local) or all is set.
func (n *Node) endpoint(all bool) identity.Endpoint {
	t, ok := transportOf(n.host.ID())
	if !ok {
		panic("node: internal error: our own key is an Ed25519 key")
	}
	e := identity.Endpoint{Transport: t}
	for _, a := range n.host.Addrs() {
		if len(e.Addrs) == protocol.MaxAddrs {
			break
		}
		told := all || n.cfg.Local || len(n.cfg.Announce) > 0 || manet.IsPublicAddr(a)
		if b := a.Bytes(); told && len(b) <= protocol.MaxAddr {
			e.Addrs = append(e.Addrs, b)
		}
	}
	return e
}
