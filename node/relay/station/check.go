package station

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"starling/node/relay/client"
	"starling/protocol"
	"starling/protocol/identity"
)

// Bounds on one check.
const (
	checkRelays = 4                // that are asked
	checkTime   = 20 * time.Second // for all of them; each dials for ten
)

// Check has other relays that this one is connected to dial it back, and returns
// how many answered. What they reached is confirmed from then on, until the next
// check in which somebody answers. AutoNAT finds out the same by itself, in time
// and from any kind of peer; but it asks for several answers, which a young
// network does not have.
func (s *Station) Check(ctx context.Context) (answered int) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	var mu sync.Mutex // guards the results while they come in
	results := map[string]State{}
	var asking sync.WaitGroup
	for _, c := range s.otherRelays() {
		addrs := s.askable(c.RemoteMultiaddr())
		if len(addrs) == 0 {
			continue
		}
		asking.Go(func() {
			reached, err := s.askDialBack(ctx, c.RemotePeer(), addrs)
			if err != nil {
				s.cfg.Log.Debug("a relay did not dial back", "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answered++
			judge(results, addrs, reached)
		})
	}
	asking.Wait()
	if answered > 0 {
		s.mu.Lock()
		s.dialled = results
		s.mu.Unlock()
	}
	return answered
}

// otherRelays returns connections to relays, one to each.
func (s *Station) otherRelays() (all []network.Conn) {
	for _, c := range s.host.Network().Conns() {
		known, err := s.host.Peerstore().SupportsProtocols(c.RemotePeer(), protocol.StreamRelay)
		if err != nil || len(known) == 0 || c.Stat().Limited {
			continue
		}
		if !slices.ContainsFunc(all, func(o network.Conn) bool { return o.RemotePeer() == c.RemotePeer() }) {
			all = append(all, c)
		}
		if len(all) == checkRelays {
			break
		}
	}
	return all
}

// askable returns the addresses of which somebody who is seen at an address may
// be asked: public ones, on a local network all, and of its IP version, since it
// dials where it sees us.
func (s *Station) askable(of multiaddr.Multiaddr) (all []multiaddr.Multiaddr) {
	for _, a := range s.Addresses() {
		m := multiaddr.StringCast(a.Addr)
		_, plain := hintOf(s.self, m)
		if plain && ipOf(m).Is4() == ipOf(of).Is4() && ipOf(m).IsValid() && (s.cfg.Local || manet.IsPublicAddr(m)) && len(all) < protocol.MaxAddrs {
			all = append(all, m)
		}
	}
	return all
}

// askDialBack asks one relay.
func (s *Station) askDialBack(ctx context.Context, p peer.ID, addrs []multiaddr.Multiaddr) ([]bool, error) {
	pub, err := p.ExtractPublicKey()
	if err != nil {
		return nil, err
	}
	t, err := transportOfPublic(pub)
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(ctx, s.host, identity.Endpoint{Transport: t}) // it is connected
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.DialBack(ctx, addrs)
}

// judge notes what one relay reached. An address that it did not reach is one
// that it did not dial, unless it is at the only IP address that there is, or at
// one at which the relay reached another.
func judge(results map[string]State, addrs []multiaddr.Multiaddr, reached []bool) {
	at := map[netip.Addr]bool{} // whether it reached this relay there
	for i, a := range addrs {
		at[ipOf(a)] = at[ipOf(a)] || reached[i]
	}
	for i, a := range addrs {
		k := string(a.Bytes())
		switch {
		case reached[i]:
			results[k] = Confirmed
		case results[k] == "" && (len(at) == 1 || at[ipOf(a)]):
			results[k] = Failed
		}
	}
}

// ipOf returns the IP address that an address begins with, or the zero one.
func ipOf(a multiaddr.Multiaddr) netip.Addr {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}
