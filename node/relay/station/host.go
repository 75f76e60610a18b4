package station

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pprotocol "github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	"github.com/multiformats/go-multiaddr"

	"starling/protocol"
)

// connGrace is how long the connection manager leaves a new connection alone.
const connGrace = time.Minute

// newHost makes the libp2p host, and listens.
func (s *Station) newHost() (host.Host, error) {
	cfg := s.cfg
	// Readers rest on their connections for hours and have no tag that would
	// keep them: what bounds their number are streams, and nothing is trimmed
	// below that.
	manager, err := connmgr.NewConnManager(cfg.Limits.Streams, mostConns(cfg.Limits.Streams), connmgr.WithGracePeriod(connGrace))
	if err != nil {
		return nil, fmt.Errorf("making a connection manager: %w", err)
	}
	opts := []libp2p.Option{
		libp2p.Identity(cfg.Key),
		libp2p.UserAgent(protocol.Agent),
		libp2p.ProtocolVersion(protocol.Agent),
		libp2p.ConnectionManager(manager),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.BandwidthReporter(s.meter),
		libp2p.DisableMetrics(),
		libp2p.DisableRelay(), // nobody reaches a relay through another
	}
	if cfg.Transports != nil {
		opts = append(opts, cfg.Transports...)
	} else {
		resources, err := newResources(cfg.Limits.Streams)
		if err != nil {
			return nil, errors.Join(err, manager.Close())
		}
		opts = append(opts,
			libp2p.ResourceManager(resources),
			libp2p.Transport(libp2pquic.NewTransport),
			libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), // another program on the port is an error
			libp2p.Security(noise.ID, noise.New),
		)
	}
	if len(cfg.Announce) > 0 {
		announce := casts(cfg.Announce)
		opts = append(opts, libp2p.AddrsFactory(func([]multiaddr.Multiaddr) []multiaddr.Multiaddr { return announce }))
	}
	if len(cfg.Announce) > 0 || cfg.Local {
		opts = append(opts, libp2p.ForceReachabilityPublic())
	}
	if !cfg.NoPortMap {
		opts = append(opts, libp2p.NATPortMap())
	}
	if !cfg.NoAutoNAT {
		// A host of libp2p dials nobody back over UDP before it has dialled a
		// hundred others: in a young network no QUIC address would ever be
		// confirmed. A relay knows that its machine has UDP.
		opts = append(opts, libp2p.EnableAutoNATv2(), libp2p.EnableNATService(), libp2p.UDPBlackHoleSuccessCounter(nil))
	}
	if !cfg.NoCircuits {
		circuits := []relay.Option{relay.WithACL(budget{s})}
		if cfg.Local {
			circuits = append(circuits, relay.WithReservationAddressFilter(func(multiaddr.Multiaddr) bool { return true }))
		}
		opts = append(opts, libp2p.EnableRelayService(circuits...))
	}
	if cfg.NoAddressDiscovery {
		opts = append(opts, libp2p.DisableIdentifyAddressDiscovery())
	}
	// Listening is a step of its own: a New that fails to listen leaves half of
	// a host running.
	h, err := libp2p.New(append(opts, libp2p.NoListenAddrs)...)
	if err != nil {
		return nil, fmt.Errorf("starting the network: %w", err)
	}
	if err := listen(h, casts(cfg.Listen)); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the network: %w", err), h.Close())
	}
	return h, nil
}

// listen listens on every address, and fails if one of them cannot be had: a
// relay without its TCP port would seem to work.
func listen(h host.Host, addrs []multiaddr.Multiaddr) error {
	for _, a := range addrs {
		if err := h.Network().Listen(a); err != nil {
			return fmt.Errorf("listening on %s: %w", a, err)
		}
	}
	return nil
}

func casts(addrs []string) []multiaddr.Multiaddr {
	all := make([]multiaddr.Multiaddr, len(addrs))
	for i, a := range addrs {
		all[i] = multiaddr.StringCast(a) // checked by withDefaults
	}
	return all
}

// mostConns is the most connections for a number of streams of readers and
// depositors: the DHT, circuits and AutoNAT need some too.
func mostConns(streams int) int { return streams + max(streams/8, 256) }

// A budget lets circuits be made while the month has traffic left.
type budget struct{ s *Station }

// AllowReserve implements relay.ACLFilter.
func (b budget) AllowReserve(peer.ID, multiaddr.Multiaddr) bool {
	return b.s.service.Load() != nil && !b.s.poor.Load()
}

// AllowConnect implements relay.ACLFilter.
func (b budget) AllowConnect(peer.ID, multiaddr.Multiaddr, peer.ID) bool {
	return b.s.service.Load() != nil && !b.s.poor.Load()
}

// Limits on connections from one place. Depositors come with a new key and a
// new connection for each relay and batch, many of them from behind one address:
// libp2p's own limits, of 8 connections and one in five seconds, would shut out
// an office.
const (
	connsByAddress  = 64   // of one IPv4 address or IPv6 /56
	connsBySite     = 512  // of one IPv6 /48
	rateByAddress   = 2.0  // new ones a second
	rateBySite      = 16.0 // likewise
	burstByAddress  = 128
	burstBySite     = 1024
	handshakes      = 1024 // connections that are being made
	identifications = 2048 // streams of identify
)

// yamuxWindow is what the resource manager counts for a stream over TCP that
// rests, whatever it really takes.
const yamuxWindow = 256 << 10 // bytes

// newResources makes a resource manager that fits a number of relay streams, one
// on each connection. What it calls memory is the sum of all windows that peers
// could fill and never do at once; what the service itself uses is bounded by
// relay.Limits.
func newResources(streams int) (network.ResourceManager, error) {
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	conns, all := mostConns(streams), 2*streams+4096
	memory := rcmgr.LimitVal64(int64(all) * yamuxWindow)
	many := rcmgr.ResourceLimits{
		Streams: rcmgr.LimitVal(streams), StreamsInbound: rcmgr.LimitVal(streams), StreamsOutbound: rcmgr.LimitVal(streams),
		Memory: memory,
	}
	ask := rcmgr.ResourceLimits{Streams: identifications, StreamsInbound: identifications, StreamsOutbound: identifications, Memory: identifications * yamuxWindow}
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: rcmgr.LimitVal(conns), ConnsInbound: rcmgr.LimitVal(conns), ConnsOutbound: rcmgr.LimitVal(conns),
			Streams: rcmgr.LimitVal(all), StreamsInbound: rcmgr.LimitVal(all), StreamsOutbound: rcmgr.LimitVal(all),
			Memory: memory,
		},
		Transient: rcmgr.ResourceLimits{
			Conns: handshakes, ConnsInbound: handshakes, ConnsOutbound: handshakes,
			Streams: handshakes, StreamsInbound: handshakes, StreamsOutbound: handshakes,
			Memory: handshakes * yamuxWindow,
		},
		Protocol: map[libp2pprotocol.ID]rcmgr.ResourceLimits{
			protocol.StreamRelay: many, identify.ID: ask, identify.IDPush: ask,
		},
		Service: map[string]rcmgr.ResourceLimits{identify.ServiceName: ask},
	}.Build(scaling.AutoScale())
	m, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
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
