package main

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"starling/node/api"
)

// The campaign's flags:
//
//	go test ./cmd/starling -run Campaign -v -long
//	go test ./cmd/starling -run Campaign -v -kills 300 -seed 7
var (
	long  = flag.Bool("long", false, "kill 1,000 times in the campaign")
	kills = flag.Int("kills", 0, "how often the campaign kills (default 100, 20 with -short, 1,000 with -long)")
	seed  = flag.Uint64("seed", 0, "repeats a campaign's choice of victims and pairs (default by the clock)")
)

// A campaign is what happens to five daemons, decided beforehand from the seed.
// How it falls in time is the machine's choice.
type campaign struct {
	letters [][]*letter // of each daemon, in the order in which it sends them
	strikes []strike
}

// A letter is a message of the campaign.
type letter struct {
	from, to int
	id       [16]byte
	text     string // unique
	after    int    // waits until this many strikes have begun
}

// A strike kills one daemon and starts it again.
type strike struct {
	victim int
	wait   time.Duration // before it
	early  bool          // strike again before the daemon answers
	after  time.Duration // with early: this long after the start
}

// Tuning of the campaign.
const (
	daemons      = 5
	strikers     = 2 // daemons that are down at once, at most
	strikeWait   = 150 * time.Millisecond
	earlyOf      = 4 // one in so many strikes hits a daemon that starts
	earlyWait    = 250 * time.Millisecond
	lettersLeast = 1000
	perStrike    = 10 // letters, if that is more than lettersLeast
)

func newCampaign(seed uint64, strikes int) *campaign {
	rng := rand.New(rand.NewPCG(seed, 0))
	c := &campaign{letters: make([][]*letter, daemons)}
	for len(c.strikes) < strikes {
		s := strike{victim: rng.IntN(daemons), wait: time.Duration(rng.Int64N(int64(strikeWait))), early: rng.IntN(earlyOf) == 0, after: time.Duration(rng.Int64N(int64(earlyWait)))}
		c.strikes = append(c.strikes, s)
	}
	count := max(lettersLeast, perStrike*strikes)
	for i := range count {
		l := &letter{from: rng.IntN(daemons), text: fmt.Sprintf("letter %d", i), after: i * strikes / count}
		l.to = (l.from + 1 + rng.IntN(daemons-1)) % daemons
		for j := range l.id {
			l.id[j] = byte(rng.Uint32())
		}
		c.letters[l.from] = append(c.letters[l.from], l)
	}
	return c
}

// TestCampaign has five daemons, one of them the only bootstrap, all pairs of
// them contacts, send 1,000 messages while they are killed and started again at
// random. Nothing may be lost, shown twice or out of order; no session may be
// stuck, and no start fail.
func TestCampaign(t *testing.T) {
	n := *kills
	switch {
	case n > 0:
	case *long:
		n = 1000
	case testing.Short():
		n = 20
	default:
		n = 100
	}
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano()) % 1_000_000
	}
	t.Logf("%d kills; repeat with: go test ./cmd/starling -run Campaign -kills %d -seed %d", n, n, s)
	begin := time.Now()
	f := newFleet(t)
	f.introduce(t)
	introduced := time.Since(begin)

	c := newCampaign(s, n)
	begin = time.Now()
	early := f.fight(t, c)
	fought := time.Since(begin)
	if t.Failed() {
		return
	}

	begin = time.Now()
	f.drain(t)
	drained := time.Since(begin)
	begin = time.Now()
	f.judge(t, c)
	f.exchange(t)
	count := 0
	for _, list := range c.letters {
		count += len(list)
	}
	t.Logf("%d messages between %d pairs, %d kills (%d of them of a daemon that was starting): introduced in %.1f s, fought for %.1f s, drained in %.1f s, judged in %.1f s",
		count, daemons*(daemons-1)/2, n+early, early, introduced.Seconds(), fought.Seconds(), drained.Seconds(), time.Since(begin).Seconds())
}

// A fleet is the daemons of the campaign. The first is the bootstrap of the
// others and keeps its port; they take new ones with every start.
type fleet struct{ all []*child }

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{}
	dir := t.TempDir()
	f.all = append(f.all, newChild(t, dir, "d0", onPort(freeUDP(t))))
	f.all[0].start(t)
	st, err := api.Call(t.Context(), f.all[0].c.Status, &api.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	args := append(onLoopback[:len(onLoopback):len(onLoopback)], "--bootstrap", st.BootstrapAddrs[0])
	for i := 1; i < daemons; i++ {
		d := newChild(t, dir, fmt.Sprintf("d%d", i), args)
		d.start(t)
		f.all = append(f.all, d)
	}
	return f
}

// introduce makes all pairs contacts.
func (f *fleet) introduce(t *testing.T) {
	t.Helper()
	for i, a := range f.all {
		for _, b := range f.all[i+1:] {
			b.add(t, a.invite(t), a)
		}
	}
	for i, a := range f.all {
		for _, b := range f.all[i+1:] {
			befriended(t, a, b)
		}
	}
}

// fight sends every letter and strikes every strike, and returns how many more
// kills hit a daemon that was starting.
func (f *fleet) fight(t *testing.T, c *campaign) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(len(c.strikes))*5*time.Second)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)

	var early atomic.Int32
	begun := make([]chan struct{}, len(c.strikes)+1) // one is closed as each strike begins
	for i := range begun {
		begun[i] = make(chan struct{})
	}
	close(begun[0])
	var next atomic.Int32
	victims := make([]sync.Mutex, daemons) // held by who has killed one until it runs again
	for range strikers {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(c.strikes) {
					return nil
				}
				s := c.strikes[i]
				if err := pause(ctx, s.wait); err != nil {
					return err
				}
				close(begun[i+1])
				victims[s.victim].Lock()
				err := f.strike(ctx, t, s, &early)
				victims[s.victim].Unlock()
				if err != nil {
					return fmt.Errorf("strike %d: %w", i, err)
				}
			}
		})
	}
	for i, d := range f.all {
		g.Go(func() error {
			for _, l := range c.letters[i] {
				select {
				case <-begun[l.after]:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				m, err := d.accept(ctx, f.all[l.to], l.text, l.id[:])
				if err != nil {
					return fmt.Errorf("%s, %s: %w", d.name, l.text, err)
				}
				if m.Id != hex.EncodeToString(l.id[:]) {
					return fmt.Errorf("%s, %s: accepted under the ID %s", d.name, l.text, m.Id)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return int(early.Load())
}

func (f *fleet) strike(ctx context.Context, t *testing.T, s strike, early *atomic.Int32) error {
	d := f.all[s.victim]
	d.kill()
	if err := d.launch(t); err != nil {
		return err
	}
	if s.early {
		if err := pause(ctx, s.after); err != nil {
			return err
		}
		d.kill()
		early.Add(1)
		if err := d.launch(t); err != nil {
			return err
		}
	}
	if err := d.ready(ctx); err != nil {
		return fmt.Errorf("failed start: %w", err)
	}
	return nil
}

// drain waits until nothing is on its way any more.
func (f *fleet) drain(t *testing.T) {
	t.Helper()
	for _, d := range f.all {
		within(t, 5*time.Minute, d.name+"'s queue to be empty", func(ctx context.Context) (bool, error) {
			st, err := api.Call(ctx, d.c.Status, &api.StatusRequest{})
			return err == nil && st.Queued == 0, err
		})
	}
}

// judge compares what was sent with what every daemon shows, in its history and
// in its journal.
func (f *fleet) judge(t *testing.T, c *campaign) {
	t.Helper()
	var lost, twice, disordered, foreign, undelivered int
	for to, d := range f.all {
		heard := f.heard(t, d)
		for from, other := range f.all {
			if from == to {
				continue
			}
			var sent []string
			for _, l := range c.letters[from] {
				if l.to == to {
					sent = append(sent, l.text)
				}
			}
			shown := d.texts(t, other)
			count := map[string]int{}
			for _, text := range shown {
				count[text]++
			}
			for _, text := range sent {
				switch n := max(count[text], heard[text]); {
				case count[text] == 0, heard[text] == 0:
					lost++
					t.Errorf("%s to %s: %q is lost", other.name, d.name, text)
				case n > 1:
					twice++
					t.Errorf("%s to %s: %q is shown %d times and told %d times", other.name, d.name, text, count[text], heard[text])
				}
				delete(count, text)
			}
			for text := range count {
				foreign++
				t.Errorf("%s to %s: %q was never sent", other.name, d.name, text)
			}
			if !slices.Equal(shown, sent) {
				disordered++
				t.Errorf("%s to %s: shown in another order than sent", other.name, d.name)
			}
			own, err := other.history(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range own {
				if m.From == other.account && m.State != "delivered" {
					undelivered++
					t.Errorf("%s to %s: %q is %s: %s", other.name, d.name, m.Text, m.State, m.Reason)
				}
			}
		}
	}
	t.Logf("%d lost, %d shown twice, %d pairs out of order, %d never sent, %d not shown as delivered", lost, twice, disordered, foreign, undelivered)
}

// heard counts the messages that d's journal tells of, and checks that the
// journal counts without a gap.
func (f *fleet) heard(t *testing.T, d *child) map[string]int {
	t.Helper()
	stream, err := d.c.Events(t.Context(), connect.NewRequest(&api.EventsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	count := map[string]int{}
	for last := uint64(0); stream.Receive(); {
		e := stream.Msg()
		if e.Seq == 0 {
			continue
		}
		if e.Seq != last+1 {
			t.Errorf("%s's journal goes from %d to %d", d.name, last, e.Seq)
		}
		last = e.Seq
		if e.Type == "message" && e.State == "received" {
			count[e.Text]++
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	return count
}

// exchange has every pair exchange one more message both ways: a session that
// is stuck does not.
func (f *fleet) exchange(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	var stuck atomic.Int32
	for _, a := range f.all {
		for _, b := range f.all {
			if a == b {
				continue
			}
			wg.Go(func() {
				if err := a.deliver(ctx, b, "still there?"); err != nil {
					stuck.Add(1)
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d of %d directions stuck", stuck.Load(), daemons*(daemons-1))
}
