package node

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"starling/dht"
	"starling/node/session"
	"starling/node/store"
)

// Modes of the DHT: programs configure the node, not its parts.
const (
	DHTAuto   = dht.ModeAuto   // serves unless unreachable
	DHTServer = dht.ModeServer // always serves
	DHTClient = dht.ModeClient // never serves
)

// A Reach says whether others can dial a node.
type Reach int

const (
	// ReachAuto: AutoNAT asks peers to dial back, and finds out. It takes half a
	// minute and more, and peers who have public addresses themselves.
	ReachAuto Reach = iota

	// ReachPrivate: nobody can. The node looks for circuits at once, and asks
	// nobody.
	ReachPrivate

	// ReachPublic: everybody can. The node serves others at once as the DHT,
	// AutoNAT and Config.Circuits have it.
	ReachPublic
)

// A Config says what a node is made of. Zero values are the defaults of a
// daemon on the open internet; everything that does real input or output can
// be replaced or switched off, so that the same node runs in virtual time.
type Config struct {
	// Store is required. [Open] takes it over: [Node.Close] closes it, and so
	// does an Open that fails.
	Store *store.DB

	// Name is the profile name of an account that Open creates because the
	// store is empty; an existing account keeps its own. At most
	// protocol.MaxName bytes.
	Name string

	// Listen are the multiaddrs to listen on. Default: QUIC and TCP on every
	// IPv4 and IPv6 address, ports chosen by the system.
	Listen []string

	// Announce are multiaddrs to publish in place of those found out.
	Announce []string

	// Bootstrap are multiaddrs with /p2p, tried besides the stored ones.
	Bootstrap []string

	// DHT is the mode of the DHT. Default: DHTAuto.
	DHT dht.Mode

	// DHTRefresh is the pause between refreshes of the DHT's routing table: see
	// dht.Config.Refresh. Default 10 minutes; negative means never.
	DHTRefresh time.Duration

	// DHTTable is Kademlia's k, the same in all of a network: see
	// dht.Config.Table. Default 20.
	DHTTable int

	// Conns is the number of connections from which on the connection manager
	// closes those that are worth least, down to two thirds of it. The time that
	// it leaves a new one alone is shorter in proportion, and peers of the DHT's
	// routing table count like others. Default 0: from 160 down to 96, and a
	// minute, with up to 40 peers of the DHT protected.
	Conns int

	// Local is for networks without public addresses (demo, tests, network
	// namespaces): private and loopback addresses go into records, and the
	// IP-diversity filter, which would drop most peers there, is off.
	Local bool

	// ReadReceipts tells contacts when their messages were read. Default off.
	ReadReceipts bool

	// Now is this node's wall clock: what it stamps and what it judges by.
	// Whoever sets it gives [store.Config] the same. Timers and deadlines
	// measure elapsed time, and stay with package time. Default time.Now.
	//
	// Clocks may be wrong; what counts is how far those of two nodes differ. Up
	// to an hour costs nothing, since the record of tomorrow is out by then. Up
	// to a day (protocol.BundleSkew, protocol.GenerationSkew, and the days around
	// it on which a record is valid) messages go on and contacts find each
	// other; but a node that is behind may not find somebody who has published
	// for the first time on what it calls tomorrow. Beyond a day records,
	// manifests and bundles are refused: nobody is found, and only sessions that
	// exist go on, for texts that have not expired by the recipient's clock.
	Now func() time.Time

	// Rand is where every key, nonce and ID comes from. Default crypto/rand.
	Rand io.Reader

	// Log receives the node's log. Default: nothing is logged.
	Log *slog.Logger

	// Observe sees every message sealed, opened and refused by a ratchet, and
	// no secret of it. It is called inside a store transaction and must not
	// block. Default nil.
	Observe session.Observer

	// OnLookup is told how every lookup in the DHT went, on the goroutine that
	// looked. It must not block. Default nil.
	OnLookup func(dht.Report)

	// OnConnect is told of every connection that comes to be: with whom, and
	// whether it is direct or through a circuit relay. It is called from libp2p
	// and must neither block nor call the node. Default nil.
	OnConnect func(p peer.ID, direct bool)

	// Transports replaces QUIC and TCP, for simulated networks.
	Transports []libp2p.Option

	// Reach says whether others can dial this node, for machines whose owner
	// knows better than AutoNAT can find out, and for tests. An address that
	// AutoNAT finds nobody to reach is left out with ReachPublic too. Default
	// ReachAuto.
	Reach Reach

	// CircuitRelays are multiaddrs with /p2p of nodes that offer circuits. This
	// node keeps a place at each of them while nobody can dial it, and asks no
	// others. Default none: once it is found to be unreachable it asks its peers,
	// and up to three minutes more while fewer than four of them offer circuits.
	CircuitRelays []string

	// Circuits offers circuits (circuit relay v2, hop) to nodes that nobody can
	// dial, with libp2p's limits: 128 reservations, and two minutes and 128 KiB a
	// circuit. It serves once this node is found to be reachable. Default off.
	Circuits bool

	// NoMDNS, NoPortMap, NoAutoNAT, NoHolePunch and NoRelayClient switch off
	// what their names say. NoAddressDiscovery stops identify from asking
	// peers how they see us, which stalls virtual time.
	NoMDNS             bool
	NoPortMap          bool
	NoAutoNAT          bool
	NoHolePunch        bool
	NoRelayClient      bool
	NoAddressDiscovery bool
}

// withDefaults returns a copy with defaults filled in, and every problem found.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	if c.Store == nil {
		errs = append(errs, errors.New("node: Config.Store is required"))
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if len(c.Listen) == 0 && c.Transports == nil {
		c.Listen = []string{
			"/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/0",
			"/ip6/::/udp/0/quic-v1", "/ip6/::/tcp/0",
		}
	}
	if c.Conns < 0 {
		errs = append(errs, fmt.Errorf("node: Config.Conns is %d", c.Conns))
	}
	for _, list := range []struct {
		name  string
		addrs []string
	}{{"Listen", c.Listen}, {"Announce", c.Announce}} {
		for _, s := range list.addrs {
			if _, err := multiaddr.NewMultiaddr(s); err != nil {
				errs = append(errs, fmt.Errorf("node: Config.%s: %q is not a multiaddr: %w", list.name, s, err))
			}
		}
	}
	for _, list := range []struct {
		name  string
		addrs []string
	}{{"Bootstrap", c.Bootstrap}, {"CircuitRelays", c.CircuitRelays}} {
		for _, s := range list.addrs {
			if _, err := peer.AddrInfoFromString(s); err != nil {
				errs = append(errs, fmt.Errorf("node: Config.%s: %q is not a multiaddr with /p2p: %w", list.name, s, err))
			}
		}
	}
	if c.Reach < ReachAuto || c.Reach > ReachPublic {
		errs = append(errs, fmt.Errorf("node: Config.Reach is %d", c.Reach))
	}
	if c.Circuits && c.Reach == ReachPrivate {
		errs = append(errs, errors.New("node: Config.Circuits offers what a node that nobody can dial does not have"))
	}
	if len(c.CircuitRelays) > 0 && c.NoRelayClient {
		errs = append(errs, errors.New("node: Config.CircuitRelays are of no use with NoRelayClient"))
	}
	return c, errors.Join(errs...)
}
