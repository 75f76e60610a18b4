package station

import (
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pprotocol "github.com/libp2p/go-libp2p/core/protocol"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
)

// A meter counts the bytes of all streams. Unlike libp2p's own it keeps nothing
// of peers, and runs nothing.
type meter struct {
	next                     metrics.Reporter // is told the same; or nil
	sent, received           atomic.Uint64
	circuitSent, circuitRecv atomic.Uint64
}

func isCircuit(id libp2pprotocol.ID) bool {
	return id == circuit.ProtoIDv2Hop || id == circuit.ProtoIDv2Stop
}

// LogSentMessage implements metrics.Reporter.
func (m *meter) LogSentMessage(n int64) {
	m.sent.Add(uint64(n))
	if m.next != nil {
		m.next.LogSentMessage(n)
	}
}

// LogRecvMessage implements metrics.Reporter.
func (m *meter) LogRecvMessage(n int64) {
	m.received.Add(uint64(n))
	if m.next != nil {
		m.next.LogRecvMessage(n)
	}
}

// LogSentMessageStream implements metrics.Reporter.
func (m *meter) LogSentMessageStream(n int64, id libp2pprotocol.ID, p peer.ID) {
	if isCircuit(id) {
		m.circuitSent.Add(uint64(n))
	}
	if m.next != nil {
		m.next.LogSentMessageStream(n, id, p)
	}
}

// LogRecvMessageStream implements metrics.Reporter.
func (m *meter) LogRecvMessageStream(n int64, id libp2pprotocol.ID, p peer.ID) {
	if isCircuit(id) {
		m.circuitRecv.Add(uint64(n))
	}
	if m.next != nil {
		m.next.LogRecvMessageStream(n, id, p)
	}
}

// GetBandwidthTotals implements metrics.Reporter.
func (m *meter) GetBandwidthTotals() metrics.Stats {
	return metrics.Stats{TotalIn: int64(m.received.Load()), TotalOut: int64(m.sent.Load())}
}

// GetBandwidthForPeer implements metrics.Reporter. Nothing is kept of peers.
func (*meter) GetBandwidthForPeer(peer.ID) metrics.Stats { return metrics.Stats{} }

// GetBandwidthForProtocol implements metrics.Reporter.
func (*meter) GetBandwidthForProtocol(libp2pprotocol.ID) metrics.Stats { return metrics.Stats{} }

// GetBandwidthByPeer implements metrics.Reporter.
func (*meter) GetBandwidthByPeer() map[peer.ID]metrics.Stats { return nil }

// GetBandwidthByProtocol implements metrics.Reporter.
func (*meter) GetBandwidthByProtocol() map[libp2pprotocol.ID]metrics.Stats { return nil }

// Reset implements metrics.Reporter. Counters only grow.
func (*meter) Reset() {}

// TrimIdle implements metrics.Reporter.
func (*meter) TrimIdle(time.Time) {}
