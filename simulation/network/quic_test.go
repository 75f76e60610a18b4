package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	libnet "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// startQUIC starts a libp2p host that speaks QUIC at a port. It answers each
// stream with what the stream says.
func startQUIC(t *testing.T, p *Port, more ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append(append(p.QUICOptions(),
		libp2p.ListenAddrStrings(p.QUICListen()), libp2p.DisableMetrics()), more...)...)
	if err != nil {
		t.Fatal(err)
	}
	h.SetStreamHandler(echo, func(s libnet.Stream) {
		defer s.Close()
		_, _ = io.Copy(s, s)
	})
	return h
}

// The bubble proves that closing the hosts leaves no goroutine.
func TestQUICHostsExchangeAMegabyteWhateverIsLost(t *testing.T) {
	for _, loss := range []float64{0, 0.1, 0.3} {
		t.Run(fmt.Sprint(loss), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet(t, Config{Sites: 2, Seed: 3})
				ada, bo := startQUIC(t, join(t, n, 0)), startQUIC(t, join(t, n, 1))
				connectHosts(t, ada, bo)
				n.SetLoss(loss)
				start := time.Now()
				exchangeBytes(t, ada, bo, 1<<20)
				t.Logf("1 MiB there and back took %v of virtual time", time.Since(start))
				stats := n.Stats()
				if share := float64(stats.Dropped) / float64(stats.Datagrams); share < 0.8*loss || share > 1.2*loss+0.01 {
					t.Errorf("%d of %d datagrams dropped, want a share of %v", stats.Dropped, stats.Datagrams, loss)
				}
				if stats.Datagrams < 2<<20/maxDatagram || stats.Chunks > 0 {
					t.Errorf("counted %+v: that is not QUIC", stats)
				}
				n.SetLoss(0)
				closeHost(t, ada)
				closeHost(t, bo)
			})
		})
	}
}

// exchangeBytes sends size bytes from a to b and wants them back.
func exchangeBytes(t *testing.T, a, b host.Host, size int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	s, err := a.NewStream(ctx, b.ID(), echo)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	sent := sequence(0, size)
	wrote := make(chan error, 1) // by the goroutine below, once
	go func() {
		_, err := s.Write(sent)
		wrote <- errors.Join(err, s.CloseWrite())
	}()
	got, err := io.ReadAll(s)
	if err := errors.Join(err, <-wrote); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes back, not the %d that were sent", len(got), size)
	}
}

func TestHostsSpeakBothFaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, Config{Sites: 3})
		pa, pb, pc := join(t, n, 0), join(t, n, 1), join(t, n, 2)
		h, err := libp2p.New(append(append(pb.Options(), pb.QUICOptions()...),
			libp2p.ListenAddrStrings(pb.Listen(), pb.QUICListen()), libp2p.DisableMetrics())...)
		if err != nil {
			t.Fatal(err)
		}
		ada, cy := startHost(t, pa), startQUIC(t, pc)
		for _, other := range []host.Host{ada, cy} {
			connectHosts(t, other, h)
			if err := ask(t, h, other, "hi"); err != nil {
				t.Error(err)
			}
		}
		if s := n.Stats(); s.Chunks == 0 || s.Datagrams == 0 {
			t.Errorf("counted %+v, want chunks and datagrams", s)
		}
		closeHost(t, ada)
		closeHost(t, cy)
		closeHost(t, h)
	})
}

func TestQUICHostsMeetAgainAfterPowerIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, Config{Sites: 2})
		at, bt := join(t, n, 0), join(t, n, 1)
		ada, bo := startQUIC(t, at), startQUIC(t, bt)
		connectHosts(t, ada, bo)
		stale := bt.QUICOptions()
		bt.Cut()
		time.Sleep(time.Second)
		if len(bo.Network().ListenAddresses()) == 0 {
			t.Error("the swarm heard that its listener ended")
		}
		closeHost(t, bo)
		if ada.Network().Connectedness(bo.ID()) != libnet.Connected {
			t.Error("ada noticed at once")
		}
		bt.Restore()
		ghost, err := libp2p.New(append(stale, libp2p.NoListenAddrs, libp2p.DisableMetrics())...)
		if err != nil {
			t.Fatal(err)
		}
		if err := ghost.Connect(t.Context(), peer.AddrInfo{ID: ada.ID(), Addrs: ada.Addrs()}); err == nil {
			t.Error("a host connected on the power of before")
		}
		closeHost(t, ghost)
		again := startQUIC(t, bt)
		connectHosts(t, ada, again)
		if err := ask(t, ada, again, "hi"); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if ada.Network().Connectedness(bo.ID()) == libnet.Connected {
			t.Error("ada has not noticed in a minute")
		}
		closeHost(t, ada)
		closeHost(t, again)
	})
}

// Two nodes behind NATs know of each other by a relay, and DCUtR makes it a
// direct connection where that is possible.
func TestHolePunchingWithDCUtR(t *testing.T) {
	for _, c := range []struct {
		a, b NAT
		want bool
	}{
		{PortRestricted, PortRestricted, true},
		{FullCone, Symmetric, true},
		{PortRestricted, Symmetric, false},
		{Symmetric, Symmetric, false},
	} {
		t.Run(fmt.Sprintf("%v and %v", c.a, c.b), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet(t, Config{Sites: 3, Seed: 5})
				relayAt := join(t, n, 0)
				relay := startQUIC(t, relayAt, libp2p.EnableRelayService(), libp2p.DisableIdentifyAddressDiscovery())
				known := peer.AddrInfo{ID: relay.ID(), Addrs: relay.Addrs()}
				seen := &punches{}
				hide := func(site int, kind NAT) host.Host {
					p, err := n.Join(Site{Index: site, NAT: kind}, 0, 0)
					if err != nil {
						t.Fatal(err)
					}
					h := startQUIC(t, p, libp2p.EnableHolePunching(holepunch.WithTracer(seen)),
						libp2p.EnableAutoRelayWithStaticRelays([]peer.AddrInfo{known}))
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					if err := h.Connect(ctx, known); err != nil {
						t.Fatal(err)
					}
					return h
				}
				ada, bo := hide(1, c.a), hide(2, c.b)
				time.Sleep(time.Minute) // for reservations
				through, err := ma.NewMultiaddr(fmt.Sprintf("%s/p2p/%s/p2p-circuit", relay.Addrs()[0], relay.ID()))
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := ada.Connect(ctx, peer.AddrInfo{ID: bo.ID(), Addrs: []ma.Multiaddr{through}}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute) // for all attempts
				if got := direct(ada, bo) != nil; got != c.want {
					t.Errorf("a direct connection: %v, want %v", got, c.want)
				}
				if tried, done := seen.counts(); tried == 0 || done > 0 != c.want {
					t.Errorf("%d holes punched in %d attempts", done, tried)
				}
				closeHost(t, ada)
				closeHost(t, bo)
				closeHost(t, relay)
			})
		})
	}
}

// punches counts what DCUtR does.
type punches struct {
	mu          sync.Mutex // guards the rest
	tried, done int
}

// Trace implements [holepunch.EventTracer].
func (p *punches) Trace(e *holepunch.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if end, ok := e.Evt.(*holepunch.EndHolePunchEvt); ok {
		p.tried++
		if end.Success {
			p.done++
		}
	}
}

func (p *punches) counts() (tried, done int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tried, p.done
}

// The hosts with which AutoNAT dials back use the simulated network too, so it
// finds out what each kind of NAT lets in.
func TestAutoNATFindsOutWhoCanBeReached(t *testing.T) {
	const servers = 5 // one more than have to agree on an address
	for kind, want := range map[NAT]bool{NoNAT: true, FullCone: true, PortRestricted: false} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet(t, Config{Sites: servers + 1})
				p, err := n.Join(Site{Index: servers, NAT: kind}, 0, 0)
				if err != nil {
					t.Fatal(err)
				}
				asks := startQUIC(t, p, libp2p.EnableAutoNATv2())
				var all []host.Host
				for i := range servers {
					h := startQUIC(t, join(t, n, i), libp2p.EnableAutoNATv2(), libp2p.UDPBlackHoleSuccessCounter(nil))
					connectHosts(t, asks, h)
					all = append(all, h)
				}
				time.Sleep(10 * time.Minute)
				open, shut, _ := asks.(interface {
					ConfirmedAddrs() (reachable, unreachable, unknown []ma.Multiaddr)
				}).ConfirmedAddrs()
				public := func(a ma.Multiaddr) bool { return manet.IsPublicAddr(a) }
				if slices.ContainsFunc(open, public) != want || slices.ContainsFunc(shut, public) == want {
					t.Errorf("reachable %v, unreachable %v, want reachable: %v", open, shut, want)
				}
				for _, h := range append(all, asks) {
					closeHost(t, h)
				}
			})
		})
	}
}

// direct returns a connection from a to b that goes through no relay, or nil.
func direct(a, b host.Host) libnet.Conn {
	for _, c := range a.Network().ConnsToPeer(b.ID()) {
		if !c.Stat().Limited {
			return c
		}
	}
	return nil
}
