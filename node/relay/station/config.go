package station

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"starling/node/relay"
	"starling/node/relay/spool"
	"starling/node/store"
)

// DefaultPort is the UDP and TCP port of a relay: STAR on a telephone's keys. It
// has no service in IANA's registry, and lies above the ports that need
// privileges and below those that systems give to clients by themselves. It is
// not 4001, on which an IPFS node on the same machine listens.
const DefaultPort = 7827

// Defaults of what a relay takes.
const (
	DefaultQuota = 1_000_000_000 // bytes on the disk

	defaultStreams = 16384
)

// A Config says what a relay is made of. Zero is the default of a relay on the
// open internet; everything that does real input or output can be replaced or
// switched off, so that the same relay runs in virtual time.
type Config struct {
	// Store keeps all but messages. Required. [Open] takes it over.
	Store *store.DB
	// Key is the relay's key, an Ed25519 key. Required.
	Key crypto.PrivKey
	// Dir is the folder of messages; Disk, if set, is one in memory instead. One
	// of them is required.
	Dir  string
	Disk *spool.Disk

	// Quota is the most bytes of messages on the disk. Default [DefaultQuota].
	Quota int64
	// Traffic is the most bytes of requests and answers in a month. When it is
	// spent, no circuits are offered either. Default 0: no limit.
	Traffic uint64
	// Rate is the most bytes of requests and answers a second, in the long run.
	// Default 0: no limit.
	Rate int
	// Open lets anybody make queues, within the share of an address block.
	// Default: who has an admission token, since open relays are squatted.
	Open bool
	// Limits bound what clients can take; see node/relay.
	Limits relay.Limits

	// Listen are the multiaddrs to listen on. Default: QUIC and TCP on every IPv4
	// and IPv6 address at [DefaultPort].
	Listen []string
	// Announce are the multiaddrs at which the relay is reached, if its operator
	// knows better than the machine. It is then taken to be reachable.
	Announce []string
	// Bootstrap are multiaddrs with /p2p to find the network by, besides the
	// stored ones and the peers of last time.
	Bootstrap []string
	// Local is for networks without public addresses (tests, a LAN): private and
	// loopback addresses are told to others, many nodes of one network may fill
	// the DHT's table, and the relay is taken to be reachable.
	Local bool

	// DHTRefresh and DHTTable are dht.Config.Refresh and Table. Defaults there.
	DHTRefresh time.Duration
	DHTTable   int
	// NoCircuits offers no circuits. Default: circuit relay v2 with libp2p's
	// limits, 128 reservations, and 2 minutes and 128 KiB each way a circuit.
	NoCircuits bool
	// NoPortMap asks no router to forward the port; NoAutoNAT neither asks nor
	// tells others what is reachable, by AutoNAT or by dialling back for relays;
	// NoAddressDiscovery stops identify from
	// asking peers how they see us, which stalls virtual time.
	NoPortMap          bool
	NoAutoNAT          bool
	NoAddressDiscovery bool
	// Transports replaces QUIC and TCP, and with them the limits on connections
	// and memory of libp2p, for simulated networks.
	Transports []libp2p.Option

	// Between returns the host that node/relay serves on, given the station's own:
	// a simulation sees there, or falsifies, what relay and clients say. Default
	// nil: the station's own.
	Between func(host.Host) host.Host

	// Bandwidth is told of every byte on streams too. Default nil.
	Bandwidth metrics.Reporter

	// Now is the wall clock; whoever sets it gives [store.Config] the same.
	// Default time.Now.
	Now func() time.Time
	// Log receives what an operator should know. Default: discarded.
	Log *slog.Logger
}

// withDefaults returns a copy with defaults filled in, and every problem found.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("station: "+format, args...))
		}
	}
	need(c.Store != nil, "Config.Store is required")
	need(c.Key != nil && c.Key.Type() == crypto.Ed25519, "Config.Key must be an Ed25519 key")
	need((c.Dir != "") != (c.Disk != nil), "one of Config.Dir and Config.Disk is required")
	need(c.Quota >= 0, "Config.Quota is %d", c.Quota)
	need(c.Rate >= 0, "Config.Rate is %d", c.Rate)
	if c.Quota == 0 {
		c.Quota = DefaultQuota
	}
	if c.Limits.Streams <= 0 {
		c.Limits.Streams = defaultStreams
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if len(c.Listen) == 0 && c.Transports == nil {
		c.Listen = Listen(DefaultPort)
	}
	for _, list := range []struct {
		name  string
		addrs []string
	}{{"Listen", c.Listen}, {"Announce", c.Announce}} {
		for _, a := range list.addrs {
			if _, err := multiaddr.NewMultiaddr(a); err != nil {
				errs = append(errs, fmt.Errorf("station: Config.%s: %q is not a multiaddr: %w", list.name, a, err))
			} else if list.name == "Announce" {
				_, ok := hintOf(zeroTransport, multiaddr.StringCast(a))
				need(ok, "Config.Announce: %q is not an address and port of QUIC or TCP", a)
			}
		}
	}
	for _, a := range c.Bootstrap {
		if _, err := peer.AddrInfoFromString(a); err != nil {
			errs = append(errs, fmt.Errorf("station: Config.Bootstrap: %q is not a multiaddr with /p2p: %w", a, err))
		}
	}
	return c, errors.Join(errs...)
}

// Listen returns the multiaddrs of QUIC and TCP on every address at a port.
func Listen(port int) []string {
	var all []string
	for _, ip := range []string{"/ip4/0.0.0.0", "/ip6/::"} {
		all = append(all, fmt.Sprintf("%s/udp/%d/quic-v1", ip, port), fmt.Sprintf("%s/tcp/%d", ip, port))
	}
	return all
}
