package dht

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
)

// MDNSService is the name under which nodes find each other on a local network
// (SPEC §9). A neighbour learns the transport key and addresses of every node
// that uses it.
const MDNSService = "_starling._udp"

// An MDNS finds nodes on the local network and is found by them.
type MDNS struct {
	host  host.Host
	found func(peer.AddrInfo)
	log   *slog.Logger

	mu      sync.Mutex // guards running
	running bool       // found may be called
	calls   sync.WaitGroup
}

// NewMDNS returns what makes h known and calls found for every Ed25519 peer
// heard of, at times repeatedly and from several goroutines; it must not block
// for long. The addresses are whatever a neighbour sent. log may be nil.
func NewMDNS(h host.Host, found func(peer.AddrInfo), log *slog.Logger) *MDNS {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &MDNS{host: h, found: found, log: log}
}

// Run announces and listens until ctx ends, then waits for calls of found and
// returns nil. It starts anew when the addresses change, and tries again after
// 5 s to 10 min while there is no network to announce on.
func (m *MDNS) Run(ctx context.Context) error {
	sub, err := m.host.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		return fmt.Errorf("watching addresses: %w", err)
	}
	defer sub.Close()
	for failures := 0; ctx.Err() == nil; {
		s := mdns.NewMdnsService(m.host, MDNSService, m)
		m.setRunning(true)
		announced := m.addrs()
		if err := s.Start(); err != nil {
			failures++
			m.log.Debug("not announced on the local network", "err", err)
		} else {
			failures = 0
		}
		m.wait(ctx, sub, announced, failures)
		err := s.Close()
		m.setRunning(false)
		m.calls.Wait()
		if err != nil {
			m.log.Warn("local announcement not ended", "err", err)
		}
	}
	return nil
}

// wait returns when ctx ends, when the addresses are no longer those announced,
// or when it is time to try again after failures.
func (m *MDNS) wait(ctx context.Context, sub event.Subscription, announced []string, failures int) {
	var retry <-chan time.Time
	if failures > 0 {
		t := time.NewTimer(backoff(retryFirst, retryLast, failures))
		defer t.Stop()
		retry = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-retry:
			return
		case _, ok := <-sub.Out():
			if !ok {
				<-ctx.Done() // the host is gone, and this ends soon
				return
			}
			if !slices.Equal(m.addrs(), announced) {
				return
			}
		}
	}
}

func (m *MDNS) addrs() []string {
	addrs, err := m.host.Network().InterfaceListenAddresses()
	if err != nil {
		return nil
	}
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	slices.Sort(s)
	return s
}

func (m *MDNS) setRunning(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = on
}

// HandlePeerFound implements [mdns.Notifee]. The service calls it from
// goroutines that it does not wait for.
func (m *MDNS) HandlePeerFound(p peer.AddrInfo) {
	m.mu.Lock()
	if !m.running || !acceptable(p.ID) {
		m.mu.Unlock()
		return
	}
	m.calls.Add(1)
	m.mu.Unlock()
	defer m.calls.Done()
	m.found(p)
}
