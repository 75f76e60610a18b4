package simulation

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"starling/simulation/network"
)

// A Config says what a world is made of. Only Nodes is required.
type Config struct {
	// Scenario and Source name the run in its manifest: the scenario, and the
	// file it was read from. Params is what was set from outside, Defaults are
	// the values of what was not, and Repeat is the command that repeats the run.
	Scenario string
	Source   string
	Params   map[string]string
	Defaults map[string]string
	Repeat   string

	// Seed decides everything that chance decides.
	Seed uint64

	// Epoch is when virtual time begins. Default: noon UTC, 1 January 2026.
	Epoch time.Time

	// Nodes are the nodes of the world, in the order in which [World.StartAll]
	// starts them. Names are unique.
	Nodes []NodeSpec

	// Relays are the volunteers' relays of the world. Their sites in the network
	// follow those of the nodes, and after them comes one more, from which bad
	// relays and [World.Drain] act. Default: none.
	Relays []RelaySpec

	// Topology says how far nodes are from each other. Default: 10 to 90 ms,
	// uniformly.
	Topology network.Topology

	// Loss is added to every link: the probability that a segment of 1,400
	// bytes is lost, 0 to 1.
	Loss float64

	// Face is what nodes speak over the network. Default: streams.
	Face Face

	// Noise encrypts streams as on the internet, for twice the CPU. Default:
	// plain, with the same handshakes above it.
	Noise bool

	// Store is where nodes keep their rows. Default: in memory.
	Store StoreKind

	// Conns is how many connections a node keeps. Default 24.
	Conns int

	// Table is the size of a bucket of the DHT's routing table, and how many
	// nodes hold a record: Kademlia's k. Default 20. 8 makes worlds of a
	// thousand nodes cheaper by half.
	Table int

	// Entries is how many earlier nodes a node joins through. Default 3.
	Entries int

	// Refresh is the pause between refreshes of a node's routing table. Default
	// 10 minutes; negative means never, and that a node joins by looking for
	// itself alone.
	Refresh time.Duration

	// Promise is how long after the end of the last fault an accepted message
	// may still be on its way. Default 10 minutes.
	Promise time.Duration

	// Away is how much longer it may take where people are seldom there, and so
	// how long [World.Settle] waits beyond Promise. Default 0.
	Away time.Duration

	// Sink receives every event, in order, outside of virtual time's way: it
	// must not wait for anything in the bubble. Default: nobody does.
	Sink func(Event)

	// Packets receives every chunk and every datagram that is written to the
	// network, when it is written. Like Sink it must not wait. Default: nobody does.
	Packets func(at time.Duration, c network.Chunk)

	// Progress is told about once a second of real time how far the run is. An
	// exact run tells nobody, since that would change it. Default: nobody is.
	Progress func(Usage)

	// Interrupted is polled; once it reports true the run ends early, with
	// everything that was measured so far. Default: never.
	Interrupted func() bool
}

// A NodeSpec is one node to be.
type NodeSpec struct {
	Name     string        // required, unique; also the profile name
	Region   string        // for topologies with regions
	Role     string        // for the results. Default "peer": one that others join through
	Up, Down int64         // bits per second. Default 50,000,000
	Skew     time.Duration // how wrong its clock is; positive is fast
	Client   bool          // a DHT client, which holds nothing for others

	// NAT is what is between the node and the network. Default: nothing. A node
	// behind one is found by circuits, and from there, in the packet face, by
	// hole punching. Others do not join through it, so the first peer has none.
	NAT network.NAT

	// Circuits offers circuits to nodes behind NATs. It takes a node that is
	// behind none, as being a sybil does.
	Circuits bool
}

// A Face is what the nodes of a world speak over its network.
type Face int

// The faces. Streams cost half the CPU. Packets are what loss, congestion and
// NATs are real for: holes are punched with them only. Runs with both do not
// always repeat in an exact build, since libp2p's swarm goes through its
// listeners in the order of a map of pointers.
const (
	StreamFace Face = iota // libp2p's upgrader and yamux, as over TCP
	PacketFace             // libp2p's QUIC, as over UDP
	BothFaces              // nodes listen on both, and dial QUIC first
)

// String returns the face as scenarios and manifests spell it.
func (f Face) String() string {
	switch f {
	case StreamFace:
		return "stream"
	case PacketFace:
		return "packet"
	case BothFaces:
		return "both"
	}
	return fmt.Sprintf("Face(%d)", int(f))
}

// A StoreKind says where nodes keep their rows.
type StoreKind int

// Kinds of stores.
const (
	// Memory is an ordered store in memory, sealed and committed like the one on
	// disk. What was not synced is lost in a crash.
	Memory StoreKind = iota
	// Badger is the database of the daemon, in a temporary folder. A crash keeps
	// what was written, synced or not: it is that of a process, not of a
	// machine.
	Badger
)

// String returns the kind as manifests spell it.
func (k StoreKind) String() string {
	if k == Badger {
		return "badger"
	}
	return "memory"
}

// Defaults of [Config].
const (
	defaultConns   = 24
	defaultEntries = 3
	defaultRefresh = 10 * time.Minute
	defaultPromise = 10 * time.Minute
)

// withDefaults returns a copy with defaults filled in, and every problem found.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	if len(c.Nodes) == 0 {
		errs = append(errs, errors.New("simulation: Config.Nodes is empty"))
	}
	names := make(map[string]bool, len(c.Nodes))
	for i, n := range c.Nodes {
		switch {
		case n.Name == "":
			errs = append(errs, fmt.Errorf("simulation: node %d has no name", i))
		case names[n.Name]:
			errs = append(errs, fmt.Errorf("simulation: two nodes are named %q", n.Name))
		}
		names[n.Name] = true
		if n.NAT > network.Symmetric {
			errs = append(errs, fmt.Errorf("simulation: there is no %v, as %q has", n.NAT, n.Name))
		}
		if n.NAT != network.NoNAT && (n.Circuits || n.Role == RoleSybil) {
			errs = append(errs, fmt.Errorf("simulation: %q is to serve others from behind a NAT", n.Name))
		}
	}
	for i, r := range c.Relays {
		switch {
		case r.Name == "":
			errs = append(errs, fmt.Errorf("simulation: relay %d has no name", i))
		case names[r.Name]:
			errs = append(errs, fmt.Errorf("simulation: two nodes or relays are named %q", r.Name))
		}
		names[r.Name] = true
		if r.Bad != "" && !slices.Contains(BadKinds(), r.Bad) {
			errs = append(errs, fmt.Errorf("simulation: no relay is bad as %q is: %q", r.Name, r.Bad))
		}
		if r.Quota < 0 {
			errs = append(errs, fmt.Errorf("simulation: the quota of %q is negative", r.Name))
		}
	}
	first := slices.IndexFunc(c.Nodes, func(n NodeSpec) bool { return orDefault(n.Role, rolePeer) == rolePeer })
	if first >= 0 && c.Nodes[first].NAT != network.NoNAT {
		errs = append(errs, fmt.Errorf("simulation: nobody can join through %q, the first peer, behind its NAT", c.Nodes[first].Name))
	}
	if c.Face < StreamFace || c.Face > BothFaces {
		errs = append(errs, fmt.Errorf("simulation: there is no face %d", c.Face))
	}
	if c.Loss < 0 || c.Loss > 1 {
		errs = append(errs, fmt.Errorf("simulation: Config.Loss is %g, not 0 to 1", c.Loss))
	}
	if c.Store != Memory && c.Store != Badger {
		errs = append(errs, fmt.Errorf("simulation: there is no store kind %d", c.Store))
	}
	if c.Conns < 0 || c.Table < 0 || c.Entries < 0 || c.Promise < 0 || c.Away < 0 {
		errs = append(errs, errors.New("simulation: Config.Conns, Table, Entries, Promise and Away are not negative"))
	}
	if c.Epoch.IsZero() {
		c.Epoch = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	}
	if c.Topology == nil {
		c.Topology = network.Uniform(10*time.Millisecond, 90*time.Millisecond, 0)
	}
	if c.Scenario == "" {
		c.Scenario = "custom"
	}
	c.Conns = orDefault(c.Conns, defaultConns)
	c.Entries = orDefault(c.Entries, defaultEntries)
	c.Refresh = orDefault(c.Refresh, defaultRefresh)
	c.Promise = orDefault(c.Promise, defaultPromise)
	if c.Sink == nil {
		c.Sink = func(Event) {}
	}
	if c.Progress == nil {
		c.Progress = func(Usage) {}
	}
	if c.Interrupted == nil {
		c.Interrupted = func() bool { return false }
	}
	return c, errors.Join(errs...)
}

// rolePeer is the role of nodes that are what they seem.
const rolePeer = "peer"

// security says how connections are encrypted, as manifests spell it.
func (c Config) security() string {
	streams := "plain"
	if c.Noise {
		streams = "noise"
	}
	switch c.Face {
	case PacketFace:
		return "tls"
	case BothFaces:
		return "tls, " + streams
	default:
		return streams
	}
}

// hasNATs reports whether anybody is behind one.
func (c Config) hasNATs() bool {
	return slices.ContainsFunc(c.Nodes, func(n NodeSpec) bool { return n.NAT != network.NoNAT })
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
