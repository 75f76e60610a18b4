package dht

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"starling/dht/record"
)

// Timers in virtual time: the publisher and the joiner with their network
// replaced by a function.

func multiaddr(t testing.TB, s string) ma.Multiaddr {
	t.Helper()
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// days is a source of one record a day, whose key begins with the day.
type days struct{ err error }

func (s *days) Records(now time.Time) ([]Record, error) {
	var recs []Record
	for _, d := range PublishDays(now) {
		recs = append(recs, Record{Key: [record.KeySize]byte{byte(d)}})
	}
	return recs, s.err
}

// A press notes what a publisher published, and when.
type press struct {
	mu      sync.Mutex
	at      []time.Time
	day     []byte
	holders int
	err     error
}

func (p *press) publish(_ context.Context, r Record) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = append(p.at, time.Now())
	p.day = append(p.day, r.Key[0])
	return p.holders, p.err
}

func (p *press) set(holders int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holders, p.err, p.at, p.day = holders, err, nil, nil
}

func (p *press) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.at)
}

// inVirtualTime runs fn in a bubble beside a publisher.
func inVirtualTime(t *testing.T, s Source, fn func(p *press, kick func())) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		pr := &press{holders: defaultTable}
		kick := make(chan struct{}, 1)
		p := publisher{source: s, publish: pr.publish, most: defaultTable, now: time.Now, kick: kick, log: slog.New(slog.DiscardHandler)}
		var run sync.WaitGroup
		run.Go(func() { p.run(ctx) })
		fn(pr, func() { wake(kick) })
		cancel()
		run.Wait()
	})
}

func TestPublisherRepublishesEverySixHours(t *testing.T) {
	inVirtualTime(t, &days{}, func(p *press, kick func()) {
		synctest.Wait()
		if p.count() != 1 {
			t.Fatalf("%d publications at the start, want 1", p.count())
		}
		time.Sleep(10 * 24 * time.Hour)
		p.mu.Lock()
		defer p.mu.Unlock()
		rounds := []time.Time{p.at[0]}
		for _, at := range p.at {
			last := rounds[len(rounds)-1]
			if at.Equal(last) {
				continue
			}
			if d := at.Sub(last); d > publishEvery*5/4 {
				t.Errorf("%v between publications", d)
			}
			rounds = append(rounds, at)
		}
		if n := len(rounds); n < 35 || n > 60 {
			t.Errorf("%d rounds in ten days", n)
		}
		// Every day's record is out before the day begins, and at no time two
		// days ahead.
		first := map[byte]time.Time{}
		for i, d := range p.day {
			if _, ok := first[d]; !ok {
				first[d] = p.at[i]
			}
		}
		begin := p.at[0].UTC().Truncate(24 * time.Hour)
		for i := 1; i <= 10; i++ {
			day := begin.AddDate(0, 0, i)
			at, ok := first[byte(record.DayOf(day))]
			if ahead := day.Sub(at); !ok || ahead < nearMidnight-publishSpread || ahead > nearMidnight {
				t.Errorf("day %d first published %v before it began (%v)", i, ahead, ok)
			}
		}
	})
}

// A publisher whose clock is wrong publishes the days of its clock.
func TestPublisherGoesByItsClock(t *testing.T) {
	const slow = 5 * time.Hour
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		pr := &press{holders: defaultTable}
		p := publisher{
			source: &days{}, publish: pr.publish, most: defaultTable, now: func() time.Time { return time.Now().Add(-slow) },
			kick: make(chan struct{}), log: slog.New(slog.DiscardHandler),
		}
		var run sync.WaitGroup
		run.Go(func() { p.run(ctx) })
		begin := time.Now().UTC().Truncate(24 * time.Hour).Add(slow) // of a day, by its clock
		time.Sleep(time.Until(begin.Add(24*time.Hour - nearMidnight - time.Second)))
		today := byte(record.DayOf(p.now()))
		pr.mu.Lock()
		if len(pr.day) == 0 || slices.ContainsFunc(pr.day, func(d byte) bool { return d > today }) {
			t.Errorf("days %v published before an hour before midnight of day %d", pr.day, today)
		}
		pr.mu.Unlock()
		time.Sleep(publishSpread + 2*time.Second)
		pr.mu.Lock()
		if !slices.Contains(pr.day, today+1) {
			t.Errorf("days %v published when day %d was near", pr.day, today+1)
		}
		pr.mu.Unlock()
		cancel()
		run.Wait()
	})
}

func TestPublisherPublishesAtOnceWhenKicked(t *testing.T) {
	inVirtualTime(t, &days{}, func(p *press, kick func()) {
		time.Sleep(time.Minute)
		n := p.count()
		kick()
		kick() // two wishes are one, or one after the other
		synctest.Wait()
		if d := p.count() - n; d < 1 || d > 2 {
			t.Errorf("%d publications after two kicks", d)
		}
	})
}

func TestPublisherRetriesWhatFails(t *testing.T) {
	inVirtualTime(t, &days{}, func(p *press, kick func()) {
		synctest.Wait()
		p.set(0, ErrNoPeers)
		kick()
		time.Sleep(time.Hour)
		if n := p.count(); n < 10 || n > 25 {
			t.Errorf("%d tries in an hour of failures", n)
		}
		p.mu.Lock()
		for i := 1; i < len(p.at); i++ {
			if d := p.at[i].Sub(p.at[i-1]); d < retryFirst/2 || d > retryLast {
				t.Errorf("%v between tries", d)
			}
		}
		p.mu.Unlock()
		p.set(defaultTable, nil)
		time.Sleep(2 * retryLast)
		if n := p.count(); n != 1 {
			t.Errorf("%d publications after the network came back, want 1", n)
		}
	})
}

func TestPublisherRepeatsInAThinNetwork(t *testing.T) {
	inVirtualTime(t, &days{}, func(p *press, kick func()) {
		synctest.Wait()
		p.set(4, nil)
		kick()
		time.Sleep(3 * time.Hour)
		if n := p.count(); n < 18 || n > 45 {
			t.Errorf("%d publications to 4 holders in three hours", n)
		}
	})
}

func TestPublisherSurvivesItsSource(t *testing.T) {
	s := &days{err: errors.New("no key")}
	inVirtualTime(t, s, func(p *press, kick func()) {
		time.Sleep(time.Minute)
		if p.count() < 2 {
			t.Error("a source that fails is not asked again")
		}
	})
}

func TestPublishDays(t *testing.T) {
	midnight := time.Date(2026, 3, 14, 0, 0, 0, 0, time.UTC)
	day := record.DayOf(midnight)
	for off, want := range map[time.Duration]int{
		0:                              1,
		22*time.Hour + 59*time.Minute:  1,
		23 * time.Hour:                 2,
		24*time.Hour - time.Nanosecond: 2,
	} {
		got := PublishDays(midnight.Add(off).In(time.FixedZone("x", 7*3600)))
		if len(got) != want || got[0] != day || want == 2 && got[1] != day+1 {
			t.Errorf("%v after midnight: %v", off, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	for n := 1; n < 100; n++ {
		d := backoff(time.Second, time.Minute, n)
		full := min(time.Minute, time.Second<<min(n-1, 10))
		if d < full/2 || d >= full {
			t.Errorf("try %d: %v, want %v to %v", n, d, full/2, full)
		}
	}
}

// An outside is the network as the joiner sees it.
type outside struct {
	mu    sync.Mutex
	size  int
	dials []time.Time
	up    bool // dials succeed, and each adds a peer
	want  []peer.AddrInfo
	joins int

	missing bool // until nudged
	nudges  int
}

func (o *outside) joiner(kick chan struct{}) *joiner {
	return &joiner{
		size: func() int { o.mu.Lock(); defer o.mu.Unlock(); return o.size },
		wanted: func() []peer.AddrInfo {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.size > 0 {
				return nil
			}
			return o.want
		},
		dial: func(ctx context.Context, _ peer.AddrInfo) error {
			select {
			case <-time.After(rand.N(100 * time.Millisecond)):
			case <-ctx.Done():
				return ctx.Err()
			}
			o.mu.Lock()
			defer o.mu.Unlock()
			o.dials = append(o.dials, time.Now())
			if !o.up {
				return errors.New("no answer")
			}
			o.size++
			return nil
		},
		missed: func() bool { o.mu.Lock(); defer o.mu.Unlock(); return o.missing },
		nudge:  func() { o.mu.Lock(); defer o.mu.Unlock(); o.nudges++ },
		joined: func() { o.mu.Lock(); defer o.mu.Unlock(); o.joins++ },
		kick:   kick,
		log:    slog.New(slog.DiscardHandler),
	}
}

func (o *outside) set(fn func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fn()
}

func TestJoinerTriesForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := &outside{want: make([]peer.AddrInfo, 20)}
		kick := make(chan struct{}, 1)
		var run sync.WaitGroup
		run.Go(func() { o.joiner(kick).run(ctx) })

		time.Sleep(24 * time.Hour)
		o.set(func() {
			if n := len(o.dials) / 20; n < 24*60 || n > 2*24*60+100 {
				t.Errorf("%d rounds of dials in a day without an answer", n)
			}
			if o.joins != 0 {
				t.Error("joined without a peer")
			}
			o.up, o.dials = true, nil
		})
		time.Sleep(redialLast + time.Second)
		o.set(func() {
			if o.size == 0 || o.joins != 1 {
				t.Errorf("%d peers, joined %d times, a minute after the network came back", o.size, o.joins)
			}
			o.dials = nil
		})
		time.Sleep(time.Hour)
		o.set(func() {
			if len(o.dials) != 0 {
				t.Errorf("%d dials while nobody is wanted", len(o.dials))
			}
			o.size = 0 // everyone left
		})
		time.Sleep(lookEvery + redialLast)
		o.set(func() {
			if o.size == 0 || o.joins != 2 {
				t.Errorf("%d peers, joined %d times, after everyone left", o.size, o.joins)
			}
			o.size, o.up, o.dials = 0, false, nil
		})
		time.Sleep(time.Hour)
		o.set(func() { o.up, o.dials = true, nil })
		wake(kick) // a new bootstrap address, or a new network
		time.Sleep(time.Second)
		o.set(func() {
			if o.size == 0 {
				t.Error("not dialed at once when kicked")
			}
		})
		cancel()
		run.Wait()
	})
}

// kad-dht looks only every two minutes at a connected peer that it threw out.
func TestJoinerReconsidersConnectedPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := &outside{missing: true}
		var run sync.WaitGroup
		run.Go(func() { o.joiner(nil).run(ctx) })
		synctest.Wait()
		o.set(func() {
			if o.nudges != 1 {
				t.Errorf("%d nudges at once, want 1", o.nudges)
			}
		})
		time.Sleep(time.Hour)
		o.set(func() {
			if o.nudges < 60 || o.nudges > 130 {
				t.Errorf("%d nudges in an hour for a peer that never answers", o.nudges)
			}
			o.missing, o.nudges = false, 0
		})
		time.Sleep(time.Hour)
		o.set(func() {
			if o.nudges != 0 {
				t.Errorf("%d nudges while nobody is missing", o.nudges)
			}
		})
		cancel()
		run.Wait()
	})
}

func TestJoinerStopsInTheMiddleOfDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := &outside{want: make([]peer.AddrInfo, 100)}
		var run sync.WaitGroup
		run.Go(func() { o.joiner(nil).run(ctx) })
		time.Sleep(time.Millisecond)
		begun := time.Now()
		cancel()
		run.Wait()
		if d := time.Since(begun); d > 0 {
			t.Errorf("took %v to stop", d)
		}
	})
}
