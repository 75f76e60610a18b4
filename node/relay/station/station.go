// Package station is a volunteer's relay as a whole, on one libp2p host:
//
//	node/relay       keeps ciphertext for people who are away (SPEC §13)
//	dht              a server of the network's DHT, and an address to join it by
//	circuit relay v2 carries connections between two who cannot dial each other
//	AutoNAT          tells others whether they can be dialled; so does node/relay
//
// [Open] takes a store and a key and starts the host; [Station.Run] serves until
// its context ends; [Station.Close] ends all. A program gives it a folder, a
// simulation gives it disks in memory and a simulated network.
//
// The relay's key is apart from the store, so that a saved key keeps every link
// valid after a lost disk: see [CreateKeyFile].
//
// What it does not do: have an account, a contact or a session; read settings or
// print (cmd/starling-relay). The budget of a month and the rate are those of
// node/relay, and circuits end with the budget; the DHT's traffic is measured
// and bounded, but not counted there.
package station

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/errgroup"

	"starling/dht"
	"starling/dht/record"
	"starling/node/relay"
	"starling/protocol/identity"
)

// ErrClosed means that the station was closed.
var ErrClosed = errors.New("station: closed")

// ErrRunning means that Run was called while it runs, or has run: a station is
// opened anew instead.
var ErrRunning = errors.New("station: Run was called already")

// A Station is a relay. Its methods are safe for concurrent use.
type Station struct {
	cfg     Config
	self    identity.Transport
	host    host.Host
	dht     *dht.DHT
	service atomic.Pointer[relay.Service] // set by Open, once the host is there
	meter   *meter
	reach   atomic.Int32 // network.Reachability, by the first version of AutoNAT
	poor    atomic.Bool  // the month has no traffic left; as of the last look
	started time.Time

	mu      sync.Mutex       // guards what follows; never held across a wait
	dialled map[string]State // by the bytes of addresses: what came of the last check
	ran     bool
	serving bool
	closing bool
	stop    context.CancelFunc // of Run
	running sync.WaitGroup     // Run

	once   sync.Once
	closed error
}

// Open opens a relay: it listens and joins nothing yet. ctx bounds the opening.
// The store is closed by [Station.Close], and by an Open that fails; if Open
// returns an error, nothing it started is left running.
func Open(ctx context.Context, cfg Config) (_ *Station, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		if cfg.Store != nil {
			err = errors.Join(err, cfg.Store.Close())
		}
		return nil, err
	}
	s := &Station{cfg: cfg, meter: &meter{next: cfg.Bandwidth}, started: cfg.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.self, err = transportOf(cfg.Key); err != nil {
		return nil, err
	}
	if s.host, err = s.newHost(); err != nil {
		return nil, err
	}
	boot, err := s.bootstrap()
	if err != nil {
		return nil, fmt.Errorf("reading the bootstrap nodes: %w", err)
	}
	if s.dht, err = dht.New(dht.Config{
		Host: s.host, Mode: dht.ModeServer, AllowPrivate: cfg.Local, NoDiversity: cfg.Local,
		Bootstrap: boot, Peers: goodPeers{cfg.Store, cfg.Now, s.isRelay}, Refresh: cfg.DHTRefresh, Table: cfg.DHTTable,
		Now: cfg.Now, Log: cfg.Log,
	}); err != nil {
		return nil, err
	}
	admit := relay.AdmitTokens
	if cfg.Open {
		admit = relay.AdmitAnybody
	}
	var dialBack func(context.Context, peer.ID, []multiaddr.Multiaddr) ([]bool, error)
	if !cfg.NoAutoNAT {
		dialBack = relay.NewDialBack(cfg.Transports...)
	}
	at := s.host
	if cfg.Between != nil {
		at = cfg.Between(at)
	}
	service, err := relay.New(relay.Config{
		Host: at, Key: cfg.Key, Store: cfg.Store, Dir: cfg.Dir, Disk: cfg.Disk, Quota: cfg.Quota,
		Admit: admit, Traffic: cfg.Traffic, Rate: cfg.Rate, CheckRecord: record.Check, Publish: s.publish, DialBack: dialBack,
		Now: cfg.Now, Log: cfg.Log, Limits: cfg.Limits,
	})
	if err != nil {
		return nil, err
	}
	s.service.Store(service)
	s.poor.Store(s.spent())
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return s, nil
}

// publish puts a record into the DHT. One that the owner has replaced by a
// better one is as good as published.
func (s *Station) publish(ctx context.Context, r relay.Record) error {
	err := s.dht.Publish(ctx, r.Key, r.Bytes)
	if _, better := errors.AsType[*dht.SupersededError](err); better {
		return nil
	}
	return err
}

// Run joins the network and serves until ctx ends, Close is called, or a part
// fails, whose error it then returns. When it returns, all that it started has
// ended. It is called once.
func (s *Station) Run(ctx context.Context) error {
	s.mu.Lock()
	switch {
	case s.closing:
		s.mu.Unlock()
		return ErrClosed
	case s.ran:
		s.mu.Unlock()
		return ErrRunning
	}
	ctx, s.stop = context.WithCancel(ctx)
	s.ran, s.serving = true, true
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()
	defer s.stop()
	defer func() {
		s.mu.Lock()
		s.serving = false
		s.mu.Unlock()
	}()

	g, ctx := errgroup.WithContext(ctx)
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"store", s.cfg.Store.Run},
		{"dht", s.dht.Run},
		{"service", s.service.Load().Run},
		{"network", s.watch},
	} {
		g.Go(func() error {
			err := part.run(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("it ended")
			}
			if err != nil && ctx.Err() == nil {
				s.cfg.Log.Error("a part of the relay ended", "part", part.name, "error", err)
				return fmt.Errorf("%s: %w", part.name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// lookEvery is the pause between two looks at the month's traffic.
const lookEvery = 10 * time.Second

// watch follows what AutoNAT finds out, and how much traffic is left.
func (s *Station) watch(ctx context.Context) error {
	sub, err := s.host.EventBus().Subscribe(new(event.EvtLocalReachabilityChanged), eventbus.BufSize(16))
	if err != nil {
		return fmt.Errorf("subscribing to network events: %w", err)
	}
	defer sub.Close()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			if now := s.spent(); s.poor.Swap(now) != now {
				s.cfg.Log.Info("the month's traffic", "used_up", now)
			}
		case e, ok := <-sub.Out():
			if !ok {
				return nil
			}
			r := e.(event.EvtLocalReachabilityChanged).Reachability
			if old := s.reach.Swap(int32(r)); old != int32(r) {
				s.cfg.Log.Info("reachability changed", "now", network.Reachability(r).String())
			}
		}
	}
}

// Drain makes the relay take nothing new from now on, and say that it will stop
// at until, also after a restart. The zero time takes it back. Nothing stops by
// itself: whoever holds the relay does that when the time has come.
func (s *Station) Drain(until time.Time) error { return s.service.Load().Drain(until) }

// Close ends Run and waits for it, then closes service, DHT, host and store. It
// may be called again, and returns the same.
func (s *Station) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		s.closing = true
		stop := s.stop
		s.mu.Unlock()
		if stop != nil {
			stop()
		}
		s.running.Wait()
		var errs []error
		if service := s.service.Load(); service != nil {
			errs = append(errs, service.Close())
		}
		if s.dht != nil {
			errs = append(errs, s.dht.Close())
		}
		if s.host != nil {
			errs = append(errs, s.host.Close())
		}
		s.closed = errors.Join(append(errs, s.cfg.Store.Close())...)
	})
	return s.closed
}
