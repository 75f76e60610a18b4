package simulation

import (
	"encoding/binary"
	"encoding/hex"
	"hash"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"starling/dht"
	"starling/simulation/bubble"
	"starling/simulation/network"
)

// A recorder keeps what a run leaves.
type recorder struct {
	epoch   time.Time
	dog     *bubble.Watchdog
	sink    func(Event)
	packets func(time.Duration, network.Chunk) // or nil

	mu      sync.Mutex // guards what follows; never held across a wait
	trace   hash.Hash  // of everything that happened, in order; nil once it is closed
	lookups []Lookup
	metrics []Metric
	usage   []Usage
	judges  []func(*Node, dht.Report) // of lookups; added by attacks, called without the lock
}

// add notes an event of now.
func (r *recorder) add(e Event) {
	r.dog.Bump()
	e.At = time.Since(r.epoch)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trace != nil {
		r.trace.Write(binary.BigEndian.AppendUint64(nil, uint64(e.At)))
		for _, s := range []string{e.Type, e.Node, e.Peer, e.ID, e.Text} {
			r.trace.Write([]byte(s))
			r.trace.Write([]byte{0})
		}
	}
	r.sink(e)
}

// chunk notes what was written to the network.
func (r *recorder) chunk(c network.Chunk) {
	r.dog.Bump()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trace == nil {
		return
	}
	var b [32]byte
	binary.BigEndian.PutUint64(b[0:], uint64(c.From))
	binary.BigEndian.PutUint64(b[8:], uint64(c.To))
	binary.BigEndian.PutUint64(b[16:], uint64(c.Arrival.UnixNano()))
	size := uint64(c.Size)
	if c.Datagram {
		size |= 1 << 63
	}
	binary.BigEndian.PutUint64(b[24:], size)
	r.trace.Write(b[:])
	if r.packets != nil {
		r.packets(time.Since(r.epoch), c)
	}
}

// closeTrace returns the hash of what happened so far, and ends it.
func (r *recorder) closeTrace() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := hex.EncodeToString(r.trace.Sum(nil))
	r.trace = nil
	return sum
}

// fill puts what was kept into a result.
func (r *recorder) fill(to *Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	to.Lookups, to.Metrics, to.Usage = r.lookups, r.metrics, r.usage
}

func (r *recorder) metric(m Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.metrics = append(r.metrics, m)
}

func (r *recorder) used(u Usage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.usage = append(r.usage, u)
}

// lookedUp notes a lookup in the DHT.
func (n *Node) lookedUp(report dht.Report) {
	r := n.w.log
	l := Lookup{
		By: n.index, At: n.w.Now(), Took: report.Took, Hops: report.Hops, Asked: report.Asked,
		Found: report.Found, Stale: report.Stale,
	}
	r.mu.Lock()
	r.lookups = append(r.lookups, l)
	judges := r.judges
	r.mu.Unlock()
	for _, judge := range judges {
		judge(n, report)
	}
	text := "not found"
	if l.Found {
		text = "found"
	}
	r.add(Event{Type: "lookup", Node: n.spec.Name, Text: text})
}

// onLookup has judge called with every lookup from now on.
func (r *recorder) onLookup(judge func(*Node, dht.Report)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.judges = append(slices.Clip(r.judges), judge)
}

// A meter counts what one node sends and receives. It is the bandwidth reporter
// of its host.
type meter struct {
	mu        sync.Mutex // guards what follows; never held across a wait
	protocols map[protocol.ID]*tally
	order     []protocol.ID // as they appeared
}

// A tally is one protocol of a [meter].
type tally struct {
	sent, received int64
	peers          map[peer.ID]bool
}

var _ metrics.Reporter = (*meter)(nil)

func newMeter() *meter { return &meter{protocols: map[protocol.ID]*tally{}} }

func (m *meter) tallyLocked(id protocol.ID) *tally {
	t := m.protocols[id]
	if t == nil {
		t = &tally{peers: map[peer.ID]bool{}}
		m.protocols[id] = t
		m.order = append(m.order, id)
	}
	return t
}

// LogSentMessageStream implements [metrics.Reporter].
func (m *meter) LogSentMessageStream(size int64, id protocol.ID, p peer.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tallyLocked(id)
	t.sent += size
	t.peers[p] = true
}

// LogRecvMessageStream implements [metrics.Reporter].
func (m *meter) LogRecvMessageStream(size int64, id protocol.ID, p peer.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tallyLocked(id)
	t.received += size
	t.peers[p] = true
}

// LogSentMessage implements [metrics.Reporter]: the bytes are counted by
// stream.
func (m *meter) LogSentMessage(int64) {}

// LogRecvMessage implements [metrics.Reporter].
func (m *meter) LogRecvMessage(int64) {}

// GetBandwidthForPeer implements [metrics.Reporter]; nobody asks.
func (m *meter) GetBandwidthForPeer(peer.ID) metrics.Stats { return metrics.Stats{} }

// GetBandwidthForProtocol implements [metrics.Reporter]; nobody asks.
func (m *meter) GetBandwidthForProtocol(protocol.ID) metrics.Stats { return metrics.Stats{} }

// GetBandwidthTotals implements [metrics.Reporter]; nobody asks.
func (m *meter) GetBandwidthTotals() metrics.Stats { return metrics.Stats{} }

// GetBandwidthByPeer implements [metrics.Reporter]; nobody asks.
func (m *meter) GetBandwidthByPeer() map[peer.ID]metrics.Stats { return nil }

// GetBandwidthByProtocol implements [metrics.Reporter]; nobody asks.
func (m *meter) GetBandwidthByProtocol() map[protocol.ID]metrics.Stats { return nil }

// Reset implements [metrics.Reporter]; nobody asks.
func (m *meter) Reset() {}

// TrimIdle implements [metrics.Reporter]; nothing is dropped.
func (m *meter) TrimIdle(time.Time) {}
