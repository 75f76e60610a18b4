package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"starling/protocol/wire"
)

func dialRequest(addrs ...string) *wire.RelayRequest {
	m := new(wire.RelayDialBack)
	for _, a := range addrs {
		m.Addrs = append(m.Addrs, ma.StringCast(a).Bytes())
	}
	return &wire.RelayRequest{Command: &wire.RelayRequest_DialBack{DialBack: m}}
}

// A relay dials nobody but who asks: not another IP address, not a name, not
// through a circuit.
func TestDialBackDialsOnlyWhoAsks(t *testing.T) {
	var dialled []string
	w := newWorld(t, func(cfg *Config) {
		cfg.DialBack = func(_ context.Context, _ peer.ID, addrs []ma.Multiaddr) ([]bool, error) {
			reached := make([]bool, len(addrs))
			for i, a := range addrs {
				dialled = append(dialled, a.String())
				reached[i] = i%2 == 0
			}
			return reached, nil
		}
	})
	c := w.from("192.0.2.7")
	c.ip = netip.MustParseAddr("192.0.2.7")
	bad := []string{
		"/ip4/192.0.2.8/tcp/4000", "/ip4/127.0.0.1/tcp/4000", "/ip6/::ffff:192.0.2.8/tcp/4000", "/dns4/example.org/tcp/4000",
		"/ip4/192.0.2.7/udp/4000", "/ip4/192.0.2.7/tcp/4000/ws", "/ip4/192.0.2.7/udp/4000/quic-v1/webtransport",
	}
	for _, a := range bad {
		if got := c.want(isOK, dialRequest(a)).GetDialed().Reached; got[0] || len(dialled) > 0 {
			t.Fatalf("%s: reached %v, dialled %v", a, got, dialled)
		}
	}
	circuit := "/ip4/192.0.2.7/tcp/4000/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit"
	c.want(isOK, dialRequest(circuit))
	if len(dialled) > 0 {
		t.Errorf("dialled %v", dialled)
	}
	got := c.want(isOK, dialRequest("/ip4/192.0.2.8/tcp/1", "/ip4/192.0.2.7/tcp/4000", bad[3], "/ip4/192.0.2.7/udp/4000/quic-v1")).GetDialed().Reached
	if len(dialled) != 2 || dialled[0] != "/ip4/192.0.2.7/tcp/4000" || dialled[1] != "/ip4/192.0.2.7/udp/4000/quic-v1" {
		t.Errorf("dialled %v, want the two of who asks", dialled)
	}
	if len(got) != 4 || got[0] || !got[1] || got[2] || got[3] {
		t.Errorf("reached %v, want the second alone", got)
	}
	c.ip = netip.Addr{} // through a circuit
	c.want(isRefused, dialRequest("/ip4/192.0.2.7/tcp/4000"))
	if len(dialled) != 2 {
		t.Errorf("dialled %v", dialled)
	}
}

// One address block has one request at a time, and all together few: a relay that
// dials is no means to make load. An error of the dialler's is no answer.
func TestDialBackIsBounded(t *testing.T) {
	enter, leave := make(chan bool), make(chan bool)
	fail := false
	w := newWorld(t, func(cfg *Config) {
		cfg.DialBack = func(context.Context, peer.ID, []ma.Multiaddr) ([]bool, error) {
			if fail {
				return nil, errors.New("no ports left")
			}
			enter <- true
			<-leave
			return []bool{true}, nil
		}
	})
	at := func(i byte) (*caller, *wire.RelayRequest) {
		ip := netip.AddrFrom4([4]byte{10, 0, i, 1})
		c := w.from(ip.String())
		c.ip = ip
		return c, dialRequest("/ip4/" + ip.String() + "/tcp/4000")
	}
	var wg sync.WaitGroup
	for i := range byte(dialBacks) {
		c, req := at(i)
		wg.Go(func() { c.want(isOK, req) })
		<-enter
		c, req = at(i)
		c.want(isBusy, req)
	}
	c, req := at(dialBacks)
	c.want(isBusy, req)
	close(leave)
	wg.Wait()
	fail = true
	c.want(isBusy, req)
	if w.dialling != 0 {
		t.Errorf("%d requests are left", w.dialling)
	}
}

// A host is dialled back where it listens, under a key that it never saw, and not
// where it does not or where another is.
func TestDialBackReachesWhoListens(t *testing.T) {
	w := served(t, func(cfg *Config) { cfg.DialBack = NewDialBack() })
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"), libp2p.DisableRelay(),
		libp2p.DisableMetrics(), libp2p.Ping(false), libp2p.DisableIdentifyAddressDiscovery())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l := w.dial(t, h)
	nobody, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "/ip4/127.0.0.1/tcp/" + port(nobody)
	nobody.Close()
	req := dialRequest(h.Addrs()[0].String(), closed, h.Addrs()[1].String(), w.cfg.Host.Addrs()[0].String())
	got := l.ask(t, req).GetDialed().GetReached()
	if len(got) != 4 || !got[0] || got[1] || !got[2] || got[3] {
		t.Errorf("reached %v, want the first and the third: %v", got, h.Addrs())
	}
	// The connection ends at once, and h learns of it a little later.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(time.Minute); ; {
		left := slices.DeleteFunc(h.Network().Peers(), func(p peer.ID) bool { return p == w.cfg.Host.ID() })
		if len(left) == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d throw-away hosts are still connected", len(left))
		}
	}
}

func port(l net.Listener) string {
	_, p, _ := net.SplitHostPort(l.Addr().String())
	return p
}
