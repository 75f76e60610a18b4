package dht

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	kbucket "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// ed25519Prefix begins every peer ID that is an Ed25519 key: identity
// multihash, 36 bytes; protobuf key type 1; 32 bytes.
const ed25519Prefix = "\x00\x24\x08\x01\x12\x20"

// acceptable reports whether p is an Ed25519 key. Other keys cost more to
// check, and RSA ones have been used to exhaust memory (CVE-2023-39533).
func acceptable(p peer.ID) bool {
	return len(p) == len(ed25519Prefix)+32 && strings.HasPrefix(string(p), ed25519Prefix)
}

// public returns the addresses that may be told to others: public ones, and
// those through a relay that has a public address. The others say where a peer
// sits inside its own network and lead nobody to it.
func public(addrs []ma.Multiaddr) []ma.Multiaddr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool { return !manet.IsPublicAddr(a) })
}

// A kadHost is the host as kad-dht sees it: its handlers can be waited for, and
// its peerstore shows only what may be told to others.
type kadHost struct {
	host.Host
	shown *shownPeers
	serve func(network.Stream, network.StreamHandler)
	yield bool // see Config.Yield
}

// ConnManager implements [host.Host].
func (h *kadHost) ConnManager() connmgr.ConnManager {
	if h.yield {
		return yielding{h.Host.ConnManager()}
	}
	return h.Host.ConnManager()
}

// yielding is a connection manager that protects nobody. It values the
// connections that it was to protect like others of the routing table.
type yielding struct{ connmgr.ConnManager }

// tableValue is what kad-dht tags the other peers of its table with.
const tableValue = 5

// Protect implements [connmgr.ConnManager].
func (y yielding) Protect(p peer.ID, tag string) { y.TagPeer(p, tag, tableValue) }

// Unprotect implements [connmgr.ConnManager].
func (y yielding) Unprotect(p peer.ID, tag string) bool {
	y.UntagPeer(p, tag)
	return false
}

// Peerstore implements [host.Host].
func (h *kadHost) Peerstore() peerstore.Peerstore { return h.shown }

// SetStreamHandler implements [host.Host].
func (h *kadHost) SetStreamHandler(id libp2p.ID, fn network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(s network.Stream) { h.serve(s, fn) })
}

// shownPeers is a peerstore whose addresses kad-dht may tell to strangers. It
// answers any FIND_NODE for a peer ID with what the peerstore has, and that
// would be the addresses of everyone we exchange messages with. So only peers
// of the routing table are shown, and, unless private addresses are allowed,
// only their public addresses. Dialing does not go through it.
type shownPeers struct {
	peerstore.Peerstore
	self    peer.ID
	private bool
	table   atomic.Pointer[table] // set once kad-dht stands
}

// PeerInfo implements [peerstore.Peerstore].
func (s *shownPeers) PeerInfo(p peer.ID) peer.AddrInfo {
	return peer.AddrInfo{ID: p, Addrs: s.Addrs(p)}
}

// Addrs implements [peerstore.AddrBook]. Nobody may change what it returns.
func (s *shownPeers) Addrs(p peer.ID) []ma.Multiaddr {
	if p == s.self {
		return s.show(p)
	}
	if in := s.table.Load(); in != nil {
		return in.addrs(p, s.show)
	}
	return nil
}

// show returns the addresses of p that strangers may see.
func (s *shownPeers) show(p peer.ID) []ma.Multiaddr {
	addrs := s.Peerstore.Addrs(p)
	if s.private {
		return addrs
	}
	return public(addrs)
}

// A table answers who is in the routing table, and where. The table itself sorts
// peers to find one, which at twenty for every FIND_NODE costs more than all the
// rest of the answer, and the peerstore copies addresses; so both are noted for
// a moment.
type table struct {
	rt *kbucket.RoutingTable

	mu    sync.Mutex                 // guards what follows
	peers map[peer.ID][]ma.Multiaddr // of all in the table; nil until somebody asks
	noted time.Time
}

// noteFor is how long a peer that left the table, or its old address, may still
// be shown.
const noteFor = time.Second

// addrs returns what show says of p if p is in the table, and nil otherwise.
func (t *table) addrs(p peer.ID, show func(peer.ID) []ma.Multiaddr) []ma.Multiaddr {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); now.Sub(t.noted) >= noteFor {
		t.noted = now
		t.peers = make(map[peer.ID][]ma.Multiaddr)
		for _, q := range t.rt.ListPeers() {
			t.peers[q] = nil
		}
	}
	addrs, in := t.peers[p]
	if !in {
		in = t.rt.Find(p) != "" // it may have come since
	}
	if in && addrs == nil {
		addrs = show(p)
		t.peers[p] = addrs
	}
	return addrs
}
