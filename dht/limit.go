package dht

import (
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// A limit is what one peer or one network may ask of us: burst at once, and
// rate a second in the long run.
type limit struct{ rate, burst float64 }

// tracked is the number of peers, and of networks, whose use is counted one by
// one. While more are active, the newcomers share one bucket, so that a flood
// of identities has no more than a single one.
const tracked = 4096

// A limiter is a token bucket for each key. It is safe for concurrent use.
type limiter[K comparable] struct {
	limit

	mu      sync.Mutex // guards the rest
	buckets map[K]*bucket
	rest    bucket // of those there is no room for
	swept   time.Time
}

type bucket struct {
	tokens float64
	last   time.Time
}

func newLimiter[K comparable](l limit) *limiter[K] {
	return &limiter[K]{limit: l, buckets: make(map[K]*bucket), rest: bucket{tokens: l.burst}}
}

// allow takes one token of k, or reports false if there is none.
func (l *limiter[K]) allow(k K, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets[k]
	if !ok {
		b = l.addLocked(k, now)
	}
	l.fillLocked(b, now)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func (l *limiter[K]) addLocked(k K, now time.Time) *bucket {
	// A full bucket remembers nothing, so it may go. Looking for them costs a
	// pass over all, so it is not done for every newcomer.
	if len(l.buckets) >= tracked && now.Sub(l.swept) >= time.Second {
		l.swept = now
		for k, b := range l.buckets {
			if l.fillLocked(b, now); b.tokens >= l.burst {
				delete(l.buckets, k)
			}
		}
	}
	if len(l.buckets) >= tracked {
		return &l.rest
	}
	b := &bucket{tokens: l.burst, last: now}
	l.buckets[k] = b
	return b
}

func (l *limiter[K]) fillLocked(b *bucket, now time.Time) {
	if d := now.Sub(b.last); d > 0 {
		b.tokens = min(l.burst, b.tokens+d.Seconds()*l.rate)
		b.last = now
	}
}

// A gate limits by peer and by network.
type gate struct {
	peers    *limiter[peer.ID]
	networks *limiter[netip.Prefix]
}

func newGate(peers, networks limit) gate {
	return gate{newLimiter[peer.ID](peers), newLimiter[netip.Prefix](networks)}
}

// allow reports whether the peer at the other end of c may ask once more.
func (g gate) allow(c network.Conn) bool {
	now := time.Now()
	if !g.peers.allow(c.RemotePeer(), now) {
		return false
	}
	n, ok := networkOf(c.RemoteMultiaddr())
	return !ok || g.networks.allow(n, now)
}

// networkOf returns what one customer of a provider usually has: an IPv4
// address, or an IPv6 /64. Loopback is nobody's network: on it, all nodes of a
// test or demonstration share one address.
func networkOf(a ma.Multiaddr) (netip.Prefix, bool) {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok || addr.IsLoopback() {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap()
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	p, err := addr.Prefix(bits)
	return p, err == nil
}
