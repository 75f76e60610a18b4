// Package network is a network that exists only in memory and in virtual time:
// sites with links between them, loss, bandwidth, partitions, loss of power and
// address translation, and two faces of it: byte streams which a libp2p host
// takes for TCP, and sockets which its QUIC takes for UDP.
//
// A [Net] is made for a number of sites and a [Topology]. A node joins at a
// site and gets a [Port]. [Port.Options] put the real libp2p upgrader and muxer
// on top of the streams, [Port.QUICOptions] the real QUIC on top of the sockets.
// Streams cost less; sockets are for what depends on QUIC or on a [NAT].
//
// A chunk is what one write to a stream hands over, at most 64 KiB. It arrives
// after
//
//	its turn and its time on the sender's uplink
//	+ the latency of the link, and its jitter
//	+ the retransmissions of those of its segments that were lost
//	+ its turn and its time on the receiver's downlink
//
// and never before a chunk written earlier on the same stream. Nothing but the
// seed and the calls made decides when: each direction of a connection draws
// from a source of its own, seeded by the pair of sites and the number of the
// connection. No goroutine and no timer belongs to a chunk; a reader sleeps on
// one timer of its stream.
//
// A datagram arrives after
//
//	its turn and its time on the sender's uplink
//	+ the latency of the link, and its jitter
//	+ its turn and its time on the receiver's downlink
//
// and after those that were sent before it between the same two sites, unless it
// is lost: by the loss of the link, because it would wait for a line longer than
// 200 ms, because a partition or a loss of power comes in between, or at its
// end, where a NAT does not let it in, nobody has the port, or 208 KiB wait to
// be read. Its loss and its jitter depend on the seed, the two sites and how
// many were sent between them before. No two arrive at a site at the same
// nanosecond. All sockets of a port have one queue, and each has one timer on
// which its reader sleeps.
//
// What it does not do: congestion control and slow start of streams (they have a
// fixed window of 256 KiB; QUIC brings its own), fragments, ICMP and ECN,
// several nodes behind one NAT, port mappings that a node asks for, IPv6, and
// any cost of computing.
//
// Everything here is safe for concurrent use. Inside a testing/synctest bubble
// a Net must be made in the bubble that uses it. No lock is held across a wait.
// Where locks meet, they are taken in the order Net, listener or connection, Port.
package network

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// How TCP behaves, as far as it is modelled.
const (
	// ResetAfter is how long a partition lasts before the connections that it
	// separates are reset at both ends. The keepalives of a muxer would find
	// out no later, so an idle connection is reset too.
	ResetAfter = 20 * time.Second

	// AbandonAfter is how long a connection waits for a machine without power
	// to confirm what was sent to it. Then its end is reset.
	AbandonAfter = 20 * time.Second

	window   = 256 << 10 // bytes in flight beyond which a write blocks
	maxChunk = 64 << 10  // bytes of one chunk; longer writes are cut up
	segment  = 1400      // bytes of payload of one packet
	overhead = 40        // bytes of headers of one packet, IPv4 and TCP
	backlog  = 128       // connections a listener keeps until they are accepted

	minRTO    = 200 * time.Millisecond // shortest wait before a retransmission
	maxLosses = 6                      // losses of one segment in a row that end a connection

	dialTimeout = 5 * time.Second // as libp2p's TCP has it
	synRetry    = time.Second     // wait before a second attempt to connect; doubles
)

// Defaults of a Config.
const (
	defaultRate = 50e6 // bit/s
	maxSites    = 1 << 16
)

// never is later than every time of a run.
const never = time.Duration(math.MaxInt64)

// A Config says what a network is made of.
type Config struct {
	// Sites is required: the most sites there will ever be, at most 65,536.
	Sites int

	// Seed decides every latency and every loss.
	Seed uint64

	// Topology gives the links. Default: Uniform(10ms, 90ms, 0).
	Topology Topology

	// Up and Down are the bandwidth of a port that does not say its own, in
	// bit/s. Default 50e6.
	Up, Down int64

	// Loss is added to the loss of every link, 0 to 1. Default 0.
	Loss float64

	// Noise encrypts connections as on the open internet. Default: plain, with
	// peers still checked by their ID.
	Noise bool

	// Tap sees every chunk and every datagram to a site when it is written, one
	// at a time. It must be quick and must not call the network. Default: nobody
	// looks.
	Tap func(Chunk)
}

// A Chunk is what a [Config.Tap] sees of one write. What a NAT or a socket does
// with a datagram that arrives is not foreseen.
type Chunk struct {
	From, To int       // sites
	Arrival  time.Time // as foreseen; zero if it is held by a partition, or lost
	Size     int       // bytes of payload; 0 for the end of a stream
	Datagram bool      // of the packet face
}

// Stats counts what a network did.
type Stats struct {
	Dials  int64 // attempts to connect
	Chunks int64 // written, ends of streams included
	Bytes  int64 // of payload and headers written, retransmissions left out
	Lost   int64 // segments lost and retransmitted
	Resets int64 // connections of which an end noticed a reset

	Datagrams int64 // written
	Dropped   int64 // datagrams that will not be read: lost, let in by nobody, too many, or left unread
}

// A Net is a network. Make one with [New].
type Net struct {
	cfg    Config
	start  time.Time // all times below are offsets from it
	dials  atomic.Int64
	resets atomic.Int64

	tap sync.Mutex // held while Config.Tap runs

	mu      sync.Mutex // guards the rest, and what Port says
	ports   []*Port    // by site; nil where nobody stands
	addrs   map[netip.Addr]*Port
	links   map[uint64]Link  // of the topology, by pair; looked up only
	set     map[uint64]*Link // overrides, by pair; looked up only
	loss    float64          // added to every link
	side    []int            // by site; sites on one side hear each other. nil: no partition
	retired Stats            // of ports that were closed
}

// New returns a network without any node. It reports every problem of c.
func New(c Config) (*Net, error) {
	if c.Topology == nil {
		c.Topology = Uniform(10*time.Millisecond, 90*time.Millisecond, 0)
	}
	if c.Up == 0 {
		c.Up = defaultRate
	}
	if c.Down == 0 {
		c.Down = defaultRate
	}
	var errs []error
	if c.Sites < 1 || c.Sites > maxSites {
		errs = append(errs, fmt.Errorf("network: Config.Sites is %d, not 1 to %d", c.Sites, maxSites))
	}
	if c.Up < 0 || c.Down < 0 {
		errs = append(errs, fmt.Errorf("network: bandwidth of %d up and %d down bit/s", c.Up, c.Down))
	}
	if !(c.Loss >= 0 && c.Loss <= 1) {
		errs = append(errs, fmt.Errorf("network: Config.Loss is %v, not 0 to 1", c.Loss))
	}
	if t, ok := c.Topology.(interface{ Check() error }); ok {
		errs = append(errs, t.Check())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Net{
		cfg: c, start: time.Now(), loss: c.Loss,
		ports: make([]*Port, c.Sites), addrs: make(map[netip.Addr]*Port),
		links: make(map[uint64]Link), set: make(map[uint64]*Link),
	}, nil
}

func (n *Net) now() time.Duration { return time.Since(n.start) }

// offset returns when a deadline passes; the zero time never does.
func (n *Net) offset(t time.Time) time.Duration {
	if t.IsZero() {
		return never
	}
	return t.Sub(n.start)
}

// Link returns what lies between two sites now, its loss as it is drawn. It is
// zero for a site with itself, and where nobody has joined.
func (n *Net) Link(a, b int) Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a < 0 || b < 0 || a >= len(n.ports) || b >= len(n.ports) || n.ports[a] == nil || n.ports[b] == nil {
		return Link{}
	}
	return n.linkLocked(n.ports[a], n.ports[b])
}

func (n *Net) linkLocked(a, b *Port) Link {
	if a == b {
		return Link{}
	}
	k := pair(a.site.Index, b.site.Index)
	l, ok := n.links[k]
	if !ok {
		l = n.cfg.Topology.Link(n.cfg.Seed, a.site, b.site)
		l.Latency = distinct(n.cfg.Seed, n.cfg.Sites, k, l.Latency)
		n.links[k] = l
	}
	if o := n.set[k]; o != nil {
		l = *o
	}
	l.Loss = min(1, l.Loss+n.loss)
	return l
}

// Set puts l between two sites from now on, exactly as it is; nil puts back
// what the topology has. What is on its way arrives as it would have. Sites
// that do not exist are ignored.
func (n *Net) Set(a, b int, l *Link) {
	if a == b || min(a, b) < 0 || max(a, b) >= len(n.ports) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if l == nil {
		delete(n.set, pair(a, b))
	} else {
		o := *l
		n.set[pair(a, b)] = &o
	}
	n.relinkLocked(a, b)
	n.relinkLocked(b, a)
}

// relinkLocked tells the connections that a dialled to b of their link.
func (n *Net) relinkLocked(a, b int) {
	if n.ports[a] == nil || n.ports[b] == nil {
		return
	}
	l := n.linkLocked(n.ports[a], n.ports[b])
	for _, c := range n.ports[a].conns {
		if c.port[0] == n.ports[a] && c.port[1] == n.ports[b] {
			c.relink(l)
		}
	}
}

// SetLoss adds p to the loss of every link from now on, in place of Config.Loss.
func (n *Net) SetLoss(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = p
	n.eachLocked(func(c *conn) { c.relink(n.linkLocked(c.port[0], c.port[1])) })
}

// Partition lets only sites of one group hear each other, in place of any
// partition before. Sites in no group form one more. A site in two groups
// belongs to the last.
//
// What is in flight between groups is held. If the partition heals within
// [ResetAfter], it arrives after the next retransmission, whose intervals
// double from 200 ms; otherwise both ends of the connection are reset. Dials
// across time out. Datagrams in flight between groups are lost.
func (n *Net) Partition(groups ...[]int) {
	side := make([]int, len(n.ports))
	for i, g := range groups {
		for _, s := range g {
			if s >= 0 && s < len(side) {
				side[s] = i + 1
			}
		}
	}
	n.divide(side)
}

// Heal ends a partition.
func (n *Net) Heal() { n.divide(nil) }

func (n *Net) divide(side []int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.side = side
	now := n.now()
	n.eachLocked(func(c *conn) { c.separate(n.apartLocked(c.port[0], c.port[1]), now) })
	for _, p := range n.ports {
		if p != nil {
			p.interceptLocked(now, func(d *datagram) bool { return side != nil && side[d.sender] != side[p.site.Index] })
		}
	}
}

func (n *Net) apartLocked(a, b *Port) bool {
	return n.side != nil && n.side[a.site.Index] != n.side[b.site.Index]
}

// eachLocked calls f for every connection once, by the site that dialled and
// then by age.
func (n *Net) eachLocked(f func(*conn)) {
	for _, p := range n.ports {
		if p == nil {
			continue
		}
		for _, c := range p.conns {
			if c.port[0] == p {
				f(c)
			}
		}
	}
}

// Stats returns the counts so far.
func (n *Net) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.retired
	for _, p := range n.ports {
		if p != nil {
			s.add(p.sent())
		}
	}
	s.Dials, s.Resets = n.dials.Load(), n.resets.Load()
	return s
}

func (s *Stats) add(t Stats) {
	s.Chunks += t.Chunks
	s.Bytes += t.Bytes
	s.Lost += t.Lost
	s.Datagrams += t.Datagrams
	s.Dropped += t.Dropped
}
