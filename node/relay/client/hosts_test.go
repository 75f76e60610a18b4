package client

import (
	"context"
	"crypto/rand"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"starling/node/relay"
	"starling/node/relay/spool"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
)

// A listed is a relay on loopback, on a disk or in memory.
type listed struct {
	*relay.Service
	host host.Host
	self identity.Transport
}

// serve runs a relay that listens on addrs until the test ends. In a folder, if
// one is given, else in memory.
func serve(t testing.TB, dir string, addrs ...string) *listed {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings(addrs...), libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.Ping(false), libp2p.DisableIdentifyAddressDiscovery())
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.OpenMemory(store.Config{}, store.NewDisk())
	if err != nil {
		t.Fatal(err)
	}
	cfg := relay.Config{
		Host: h, Key: key, Store: db, Dir: dir, Quota: 4 << 30,
		Limits: relay.Limits{WorkBits: 4, Share: 4 << 30, Peer: 8},
	}
	if dir == "" {
		cfg.Disk = spool.NewDisk(1)
	}
	s, err := relay.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("running the relay: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := s.Close(); err != nil {
			t.Errorf("closing the relay: %v", err)
		}
		if err := db.Close(); err != nil {
			t.Errorf("closing its store: %v", err)
		}
		if err := h.Close(); err != nil {
			t.Errorf("closing its host: %v", err)
		}
	})
	for !slices.Contains(h.Mux().Protocols(), protocol.StreamRelay) {
		runtime.Gosched()
	}
	self, _ := transportOf(h.ID())
	return &listed{s, h, self}
}

// at says where the relay is: at the first of its addresses with the protocol.
func (s *listed) at(t testing.TB, protocol int) identity.Endpoint {
	t.Helper()
	for _, a := range s.host.Addrs() {
		if _, err := a.ValueForProtocol(protocol); err == nil {
			return identity.Endpoint{Transport: s.self, Addrs: [][]byte{a.Bytes()}}
		}
	}
	t.Fatal("no such address")
	return identity.Endpoint{}
}

// page returns what is there for c, which must be n entries.
func page(t *testing.T, c *Conn, n int) []Entry {
	t.Helper()
	p, err := c.Poll(t.Context(), Poll{})
	if err != nil || len(p.Entries) != n {
		t.Errorf("%d entries, want %d: %v", len(p.Entries), n, err)
	}
	return p.Entries
}

// Hosts of the real network speak QUIC and TCP, listen nowhere, and tell a relay
// nothing but the agent of all nodes.
func TestHostsSayNothing(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	s := serve(t, "", "/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0")
	for _, transport := range []int{multiaddr.P_QUIC_V1, multiaddr.P_TCP} {
		func() {
			h, err := NewHosts().New()
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, err := Dial(ctx, h, s.at(t, transport))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if c.Relay() != s.self {
				t.Error("the connection is to another relay")
			}
			queue := newPlace(t)
			queue.mustCreate(t, c, pairwise)
			queue.mustDeposit(t, c, 3)

			// A wait that is ended, and one that is interrupted. In virtual time both
			// are tested over one transport only.
			if err := c.Delete(ctx, page(t, c, 3)); err != nil {
				t.Error(err)
			}
			end := make(chan struct{}, 1)
			end <- struct{}{}
			if p, err := c.Poll(ctx, Poll{Wait: protocol.PollWait, End: end}); err != nil || !p.Ended {
				t.Errorf("a poll that was ended: %v, ended %v", err, p.Ended)
			}
			begun := time.Now()
			closing := time.AfterFunc(10*time.Millisecond, func() { _ = c.Close() })
			_, err = c.Poll(ctx, Poll{Wait: protocol.PollWait})
			wantErr(t, "a poll on a stream that is closed", err, ErrClosed)
			closing.Stop()
			if took := time.Since(begun); took > 40*time.Second {
				t.Errorf("it took %s to see that", took)
			}

			if n := len(h.Addrs()); n != 0 {
				t.Errorf("the host has %d addresses", n)
			}
			seen := s.host.Peerstore()
			agent, err := seen.Get(h.ID(), "AgentVersion")
			if err != nil || agent != protocol.Agent {
				t.Errorf("agent %v, %v; want %s", agent, err, protocol.Agent)
			}
			told, err := seen.GetProtocols(h.ID())
			if err != nil {
				t.Error(err)
			}
			for _, p := range told {
				if p != "/ipfs/id/1.0.0" && p != "/ipfs/id/push/1.0.0" {
					t.Errorf("the host says that it speaks %s", p)
				}
			}
			for _, a := range seen.Addrs(h.ID()) {
				t.Errorf("the relay keeps %s as an address to dial", a)
			}
		}()
	}
}
