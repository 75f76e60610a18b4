package node

import (
	"context"
	crand "crypto/rand"
	"errors"
	"net"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"starling/node/store"
)

// Whoever waits for something when the node ends is told.
func TestCloseTellsWhoWaits(t *testing.T) {
	w := newWorld(t)
	a := w.person("Ada")
	a.add(w.bare(w.person("Bo").invite(false)), "Bo")
	id := a.say("Bo", "are you there?")
	n := a.Node
	seen := make(chan struct{}) // closed at the newest event; what comes after it is the wait
	ended := make(chan error, 2)
	last := a.now()
	go func() {
		ended <- n.Events(w.ctx, 0, true, func(e Event) error {
			if e.Seq == last {
				close(seen)
			}
			return nil
		})
	}()
	go func() {
		_, err := n.WaitMessage(w.ctx, id, "delivered", patience)
		ended <- err
	}()
	<-seen
	a.stop()
	for range 2 {
		if err := <-ended; !errors.Is(err, store.ErrClosed) {
			t.Errorf("who waited was told %v", err)
		}
	}
}

// Done tells that a part failed, to any number of askers, and Close says which.
func TestDoneWhenAPartFails(t *testing.T) {
	w := newWorld(t)
	a := w.person("Ada")
	select {
	case <-a.Done():
		t.Fatal("done while all is well")
	default:
	}
	if err := a.store.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		<-a.Done()
	}
	if err := a.Close(); !errors.Is(err, store.ErrClosed) {
		t.Errorf("closing a node that failed: %v", err)
	}
	a.Node = nil
}

// Close ends everything that runs, in the middle of whatever it is.
func TestCloseJoinsEverything(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada"), w.person("Bo", quick)
	a.meet(b)
	b.tell(a, "hello")
	a.keepPort()
	n := b.Node
	var wg sync.WaitGroup
	a.stop()
	id := b.say("Ada", "nobody is there")
	done := n.Done()
	for range 4 {
		wg.Go(func() {
			for {
				if _, err := n.Send(w.ctx, "Ada", "more", nil); err != nil {
					return
				}
			}
		})
	}
	for range 3 {
		wg.Go(func() { _ = n.Close() })
	}
	wg.Wait()
	<-done
	if err := n.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	b.Node = nil
	if _, err := n.Send(w.ctx, "Ada", "after the end", nil); !errors.Is(err, store.ErrClosed) {
		t.Errorf("sending after the end: %v", err)
	}
	if got := n.Status(); got.Account == "" {
		t.Error("no status after the end")
	}
	goleak.VerifyNone(t)

	// What was accepted before the end is still there.
	a.start()
	b.start()
	b.delivered(id)
}

// An Open that fails leaves nothing running and the store closed.
func TestFailedOpenLeavesNothing(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_, port, err := net.SplitHostPort(busy.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for name, tt := range map[string]struct {
		ctx    context.Context
		change func(*Config)
	}{
		"port in use":        {t.Context(), func(c *Config) { c.Listen = []string{"/ip4/127.0.0.1/tcp/" + port} }},
		"context over":       {gone, func(*Config) {}},
		"bad name":           {t.Context(), func(c *Config) { c.Name = "a\x00b" }},
		"bad address":        {t.Context(), func(c *Config) { c.Listen = []string{"localhost:80"} }},
		"bad announcement":   {t.Context(), func(c *Config) { c.Announce = []string{"nonsense"} }},
		"bad bootstrap":      {t.Context(), func(c *Config) { c.Bootstrap = []string{"/ip4/127.0.0.1/tcp/1"} }},
		"bad DHT mode":       {t.Context(), func(c *Config) { c.DHT = 77 }},
		"randomness is over": {t.Context(), func(c *Config) { c.Rand = noRand{} }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.person("Ada")
			p.stop()
			disk := store.NewDisk()
			key, err := store.NewKey(crand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			cfg := p.cfg
			if cfg.Store, err = store.OpenMemory(store.Config{Key: key}, disk); err != nil {
				t.Fatal(err)
			}
			tt.change(&cfg)
			if n, err := Open(tt.ctx, cfg); err == nil || n != nil {
				t.Fatalf("opened %v, %v", n, err)
			}
			goleak.VerifyNone(t)
			db, err := store.OpenMemory(store.Config{Key: key}, disk)
			if err != nil {
				t.Fatalf("the store was left open: %v", err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
	if _, err := Open(t.Context(), Config{}); err == nil {
		t.Fatal("opened without a store")
	}
}

type noRand struct{}

func (noRand) Read([]byte) (int, error) { return 0, errors.New("no randomness left") }
