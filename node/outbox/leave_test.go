package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"starling/node/outbox"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

var errRelay = errors.New("the relay does not answer")

// A shelf is a relay: what it took, in order.
type shelf struct {
	key   identity.Transport
	store [16]byte
	down  bool
	has   []envelope.Hash
	texts []string
	times map[envelope.Hash]int // left since the store was made
}

// lose gives the relay an empty store.
func (s *shelf) lose() {
	s.store[15]++
	s.has, s.texts, s.times = nil, nil, map[envelope.Hash]int{}
}

// A mail is a Mailer over a few relays that take everything while they are up.
type mail struct {
	t       *testing.T
	mu      sync.Mutex
	relays  []*shelf
	life    time.Duration // of a copy at most, 0 for as long as its message
	delay   time.Duration // of a call
	calls   []time.Time
	largest int                       // letters of one call
	busy    map[identity.Account]bool // a call runs
	err     error                     // every call fails
	hang    bool                      // until the context ends, after the copies were made
	before  func()                    // of each call; nil: nothing

	receipts map[envelope.ID]*envelope.Receipt // that were left, by content
}

func newMail(t *testing.T, relays int) *mail {
	m := &mail{t: t, busy: map[identity.Account]bool{}, receipts: map[envelope.ID]*envelope.Receipt{}}
	for i := range relays {
		m.relays = append(m.relays, &shelf{key: identity.Transport{byte(i + 1)}, store: [16]byte{byte(i + 1)}, times: map[envelope.Hash]int{}})
	}
	return m
}

func (m *mail) Leave(ctx context.Context, peer identity.Account, letters []outbox.Letter) (outbox.Left, error) {
	m.enter(peer, letters)
	timer := time.NewTimer(m.delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		m.leave(peer)
		return outbox.Left{}, ctx.Err()
	}
	if m.before != nil {
		m.before()
	}
	left, err := m.take(letters)
	if m.hang {
		<-ctx.Done()
	}
	m.leave(peer)
	return left, err
}

func (m *mail) enter(peer identity.Account, letters []outbox.Letter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy[peer] {
		m.t.Error("two calls of Leave for one peer at a time")
	}
	m.busy[peer] = true
	m.calls = append(m.calls, time.Now())
	m.largest = max(m.largest, len(letters))
	if len(letters) == 0 {
		m.t.Error("Leave without a letter")
	}
}

func (m *mail) leave(peer identity.Account) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy[peer] = false
}

func (m *mail) take(letters []outbox.Letter) (outbox.Left, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return outbox.Left{}, m.err
	}
	left, err := outbox.Left{Relays: len(m.relays)}, error(nil)
	for _, l := range letters {
		var copies []*store.Copy
		taken := map[string]bool{}
		for _, c := range l.Copies {
			taken[string(c.Relay)] = true
		}
		for _, s := range m.relays {
			if taken[string(s.key[:])] || len(taken) >= protocol.DepositRelays {
				continue
			}
			if s.down {
				err = errRelay
				continue
			}
			taken[string(s.key[:])] = true
			until := l.Expires.Add(-time.Hour).Truncate(time.Hour)
			if end := time.Now().Add(m.life).Truncate(time.Hour); m.life > 0 && end.Before(until) {
				until = end
			}
			s.has = append(s.has, l.Hash)
			s.times[l.Hash]++
			if c, err := envelope.ParseContent(l.Envelope[8:]); err != nil {
				m.t.Errorf("a letter without a content: %v", err)
			} else if c.Text != nil {
				s.texts = append(s.texts, *c.Text)
			} else {
				s.texts = append(s.texts, "control")
				if c.Receipt != nil {
					m.receipts[c.ID] = c.Receipt
				}
			}
			copies = append(copies, &store.Copy{
				Relay: s.key[:], Store: s.store[:], Queue: make([]byte, 32), Until: until.Unix(), Stored: time.Now().Unix(), Receipt: []byte("word"),
			})
		}
		left.Copies = append(left.Copies, copies)
	}
	return left, err
}

// tries returns how often Leave was called.
func (m *mail) tries() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.calls)
}

func (m *mail) set(fn func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn()
}

// at returns the texts that the i-th relay took, in order.
func (m *mail) at(i int) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.relays[i].texts)
}

// down has every direct attempt fail at once.
func (n *network) down(is bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = nil
	if is {
		n.err = func() (before, after error) { return errDown, nil }
	}
}

// prepared returns how often a session was asked for.
func (n *network) prepared() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.prepares
}

// told returns the changes that were told so far.
func (b *bench) told() (changes []string) {
	b.t.Helper()
	b.update(func(*store.Tx) error { // where they are told
		changes = slices.Clone(b.changes)
		return nil
	})
	return changes
}

// await returns once ok does, or fails the test after an hour.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 3600 {
		if ok() {
			return
		}
		time.Sleep(time.Second)
	}
	t.Fatalf("an hour passed: %s", what)
}

// Who is not there finds it at two relays; the sender knows where and until
// when, leaves it once, and still brings it when the peer is back.
func TestAwayPeersContentsAreLeftAtTwoRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 3)
		b := newMailBench(t, 30, m)
		defer b.close()
		b.n.down(true)
		b.run()
		b.send(bob, "one", "two")
		time.Sleep(time.Second)
		const where = " stored at 2 of 3 relays, until 14 January 2000"
		b.wantLines(bob, "one"+where, "two"+where)
		b.update(func(tx *store.Tx) error {
			for r, err := range store.History.Scan(tx, store.HistoryOf(bob), nil) {
				if err != nil {
					return err
				}
				if e := r.Value; e.Copies != 2 || e.Relays != 3 || e.Until != time.Date(2000, 1, 14, 23, 0, 0, 0, time.UTC).UnixMilli() {
					t.Errorf("line %q: %d copies at %d relays until %v", e.Text, e.Copies, e.Relays, time.UnixMilli(e.Until))
				}
			}
			return nil
		})
		if told, want := b.told(), []string{"one queued", "two queued", "one stored", "two stored"}; !slices.Equal(told, want) {
			t.Errorf("changes %q, want %q", told, want)
		}
		r, ok := b.o.Report(bob)
		if d := r.Deposit; !ok || d.Relays != 3 || d.Failures != 0 || d.Err != nil || d.Last.IsZero() || !d.Next.IsZero() {
			t.Errorf("report: %+v, %v", r.Deposit, ok)
		}
		if !errors.Is(r.Err, errDown) {
			t.Errorf("the attempt reports %v", r.Err)
		}

		time.Sleep(24 * time.Hour)
		if m.tries() != 1 {
			t.Errorf("Leave was called %d times, want once", m.tries())
		}
		if n := b.n.tries(); n < 250 {
			t.Errorf("%d direct attempts in a day: they must go on", n)
		}
		b.send(bob, "three")
		time.Sleep(9 * time.Second)
		for i, want := range [][]string{{"one", "two", "three"}, {"one", "two", "three"}, nil} {
			if got := m.at(i); !slices.Equal(got, want) {
				t.Errorf("relay %d has %q, want %q", i, got, want)
			}
		}
		b.n.down(false)
		b.o.Kick(bob)
		time.Sleep(time.Second)
		b.wantLines(bob, "one delivered", "two delivered", "three delivered")
		b.wantEmpty()
		if want := []string{"one", "two", "three"}; !slices.Equal(b.n.got(), want) || b.s.sealed != 3 {
			t.Errorf("shown %q, want %q; %d sealed", b.n.got(), want, b.s.sealed)
		}
	})
}

// An attempt has three seconds; a longer one goes on beside the relays.
func TestDirectFirst(t *testing.T) {
	for _, test := range []struct {
		takes time.Duration
		left  int // letters at the first relay
	}{{10 * time.Millisecond, 0}, {2900 * time.Millisecond, 0}, {3100 * time.Millisecond, 1}, {time.Minute, 1}} {
		synctest.Test(t, func(t *testing.T) {
			m := newMail(t, 2)
			b := newMailBench(t, 31, m)
			defer b.close()
			slow := &slow{network: b.n, takes: test.takes}
			b.o = outbox.New(outbox.Config{Store: b.db, Account: me, Sealer: b.s, Courier: slow, Mailer: m, Rand: b.rand})
			b.run()
			// Attempts before do not count for this one.
			b.send(eve, "x")
			time.Sleep(2 * time.Minute)
			before := len(m.at(0))
			b.send(bob, "one")
			time.Sleep(3050 * time.Millisecond)
			if n := len(m.at(0)) - before; n != test.left {
				t.Errorf("an attempt of %v: %d letters were left, want %d", test.takes, n, test.left)
			}
			if test.left > 0 {
				b.wantLines(bob, "one stored at 2 of 2 relays, until 14 January 2000")
			}
			time.Sleep(2 * time.Minute)
			b.wantLines(bob, "one delivered")
			b.wantEmpty()
			if b.n.tries() != 2 {
				t.Errorf("%d attempts, want 2: leaving must not end one", b.n.tries())
			}
		})
	}
}

type slow struct {
	*network
	takes time.Duration
}

func (s *slow) Deliver(ctx context.Context, a identity.Account, envelopes [][]byte) ([]*wire.Outcome, error) {
	time.Sleep(s.takes - 10*time.Millisecond)
	return s.network.Deliver(ctx, a, envelopes)
}

// Contents are sealed and left in order, a queue's worth ahead; receipts move
// the window.
func TestLeavesAQueueAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		b := newMailBench(t, 32, m)
		defer b.close()
		b.s.setReady(bob, false)
		texts := numbered(300)
		ids := b.send(bob, texts...)
		b.n.down(true)
		b.s.setReady(bob, true) // a session came from the other side
		b.run()
		time.Sleep(time.Hour)
		want := texts[:protocol.QueueMessages]
		for i := range 2 {
			if got := m.at(i); !slices.Equal(got, want) {
				t.Errorf("relay %d has %d letters, or out of order; want %d", i, len(got), len(want))
			}
		}
		if b.s.sealed != protocol.QueueMessages {
			t.Errorf("%d sealed, want %d", b.s.sealed, protocol.QueueMessages)
		}
		for at := 0; at < len(texts); at += 50 {
			b.update(func(tx *store.Tx) error { return b.o.Receipt(tx, bob, &envelope.Receipt{Delivered: ids[at : at+50]}) })
			time.Sleep(time.Second)
			want := texts[:min(at+50+protocol.QueueMessages, len(texts))]
			if got := m.at(1); !slices.Equal(got, want) {
				t.Errorf("after %d receipts: %d letters, want %d", at+50, len(got), len(want))
			}
		}
		b.wantEmpty()
		if m.largest > protocol.QueueMessages {
			t.Errorf("%d letters in one call", m.largest)
		}
		for _, l := range b.entries(bob) {
			if !strings.HasSuffix(l, " delivered") {
				t.Errorf("line %q", l)
			}
		}
	})
}

// A receipt is not kept behind what waits for the other side's receipts.
func TestReceiptsAreLeftBeyondTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		b := newMailBench(t, 43, m)
		defer b.close()
		b.s.setReady(bob, false)
		texts := numbered(300)
		ids := b.send(bob, texts...)
		b.n.down(true)
		b.s.setReady(bob, true)
		b.run()
		time.Sleep(time.Minute)
		b.owe(bob, manyIDs(3)...)
		time.Sleep(time.Minute)
		b.send(bob, "last")
		b.owe(bob, manyIDs(1)...)
		time.Sleep(time.Minute)
		want := append(slices.Clone(texts[:protocol.QueueMessages]), "control", "control")
		for i := range 2 {
			if got := m.at(i); !slices.Equal(got, want) {
				t.Errorf("relay %d has %d letters, want %d texts and 2 receipts", i, len(got), protocol.QueueMessages)
			}
		}
		if out, _ := b.rows(); out != 301 {
			t.Errorf("%d rows, want 301: the receipts are done", out)
		}
		b.update(func(tx *store.Tx) error { return b.o.Receipt(tx, bob, &envelope.Receipt{Delivered: ids}) })
		b.n.down(false)
		b.o.Kick(bob)
		time.Sleep(time.Second)
		b.wantEmpty()
	})
}

// What is sealed waits for a peer who may be away for days; what is written
// then is not kept back by a session that grew stale meanwhile.
func TestSessionIsPreparedForWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		b := newMailBench(t, 44, m)
		defer b.close()
		b.n.down(true)
		b.run()
		b.send(bob, "one")
		time.Sleep(48 * time.Hour)
		b.s.setReady(bob, false) // stale
		b.send(bob, "two")
		time.Sleep(time.Hour)
		b.wantLines(bob, "one stored at 2 of 2 relays, until 14 January 2000", "two queued")
		if n := b.n.prepared(); n < 10 {
			t.Errorf("%d preparations in an hour", n)
		}
		b.n.mu.Lock()
		b.n.records = true
		b.n.mu.Unlock()
		time.Sleep(6 * time.Minute)
		b.wantLines(bob, "one stored at 2 of 2 relays, until 14 January 2000", "two stored at 2 of 2 relays, until 16 January 2000")
		before := b.n.prepared()
		time.Sleep(time.Hour)
		if n := b.n.prepared() - before; n != 0 {
			t.Errorf("%d preparations with a session", n)
		}
		b.n.down(false)
		b.o.Kick(bob)
		time.Sleep(time.Second)
		b.wantLines(bob, "one delivered", "two delivered")
	})
}

// Long texts, whose rows fill several transactions.
func TestLeavesLongTexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 3)
		b := newMailBench(t, 33, m)
		defer b.close()
		b.n.down(true)
		var texts []string
		for i := range protocol.QueueMessages {
			texts = append(texts, fmt.Sprintf("%03d%s", i, strings.Repeat("x", protocol.MaxText-3)))
		}
		for c := range slices.Chunk(texts, 15) {
			b.send(bob, c...)
		}
		b.run()
		time.Sleep(time.Minute)
		if got := m.at(0); !slices.Equal(got, texts) {
			t.Errorf("%d letters at the relay, want %d in order", len(got), len(texts))
		}
		for _, l := range b.entries(bob) {
			if !strings.HasSuffix(l, " stored at 2 of 3 relays, until 14 January 2000") {
				t.Fatalf("line %q", l[protocol.MaxText:])
			}
		}
		r := m.relays[0]
		b.update(func(tx *store.Tx) error { // part by part
			more, err := b.o.Lost(tx, r.key, [16]byte{99})
			if !more {
				t.Error("4 MiB of rows were changed at once")
			}
			return err
		})
	})
}

// Relays that fail have a backoff of their own, which a kick ends and a new
// content shortens; what one relay took is not left there again.
func TestLeavingIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		m.relays[0].down = true
		b := newMailBench(t, 34, m)
		defer b.close()
		b.n.down(true)
		b.run()
		b.send(bob, "one")
		time.Sleep(time.Second)
		b.wantLines(bob, "one stored at 1 of 2 relays, until 14 January 2000")
		time.Sleep(time.Hour)
		if n := m.tries(); n < 12 || n > 80 {
			t.Errorf("Leave was called %d times in an hour", n)
		}
		r, _ := b.o.Report(bob)
		if d := r.Deposit; d.Failures < 5 || !errors.Is(d.Err, errRelay) || d.Next.Before(time.Now()) || d.Next.After(time.Now().Add(300*time.Second)) {
			t.Errorf("report during the failures: %+v", d)
		}
		before := m.tries()
		for range 100 {
			b.send(bob, "more")
			time.Sleep(100 * time.Millisecond)
		}
		if n := m.tries() - before; n < 1 || n > 5 {
			t.Errorf("Leave was called %d times while 100 contents came in 10 s", n)
		}
		m.set(func() { m.relays[0].down = false })
		b.o.Kick(bob)
		time.Sleep(4 * time.Second)
		for i := range 2 {
			m.set(func() {
				for h, n := range m.relays[i].times {
					if n != 1 {
						t.Errorf("relay %d was given %x %d times", i, h[:4], n)
					}
				}
			})
			if n := len(m.at(i)); n != 101 {
				t.Errorf("relay %d has %d letters, want 101", i, n)
			}
		}
		if r, _ := b.o.Report(bob); r.Deposit.Err != nil || r.Deposit.Failures != 0 {
			t.Errorf("report after all was left: %+v", r.Deposit)
		}
		want := "one stored at 2 of 2 relays, until 14 January 2000"
		if got := b.entries(bob)[0]; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// Nothing is left without a session, for somebody who answers, who is paused, or
// who has no relay; and nothing that hardly lives.
func TestNotLeft(t *testing.T) {
	for name, set := range map[string]func(b *bench){
		"no session": func(b *bench) {
			b.s.setReady(bob, false)
			b.n.down(true)
		},
		"waits for acceptance": func(b *bench) {
			b.n.answer = func(string) *wire.Outcome { return &wire.Outcome{Status: wire.Status_STATUS_HELD} }
		},
		"busy": func(b *bench) {
			b.n.answer = func(string) *wire.Outcome { return &wire.Outcome{Status: wire.Status_STATUS_BUSY} }
		},
		"paused": func(b *bench) {
			b.n.down(true)
			b.setState(bob, store.Contact_HELD)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMail(t, 3)
				b := newMailBench(t, 35, m)
				defer b.close()
				set(b)
				b.run()
				b.send(bob, "one")
				time.Sleep(time.Hour)
				if m.tries() != 0 {
					t.Errorf("Leave was called %d times", m.tries())
				}
			})
		})
	}
	t.Run("about to expire", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMail(t, 3)
			b := newMailBench(t, 36, m)
			defer b.close()
			b.n.down(true)
			b.run()
			text := "brief"
			b.update(func(tx *store.Tx) error {
				_, _, err := b.o.Enqueue(tx, time.Now(), bob, &envelope.Content{ID: b.id(), Text: &text, Expires: time.Now().Add(2 * time.Hour)})
				return err
			})
			b.send(bob, "one")
			time.Sleep(3 * time.Hour)
			if got := m.at(0); !slices.Equal(got, []string{"one"}) {
				t.Errorf("left %q", got)
			}
		})
	})
	t.Run("no relay", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMail(t, 0)
			b := newMailBench(t, 37, m)
			defer b.close()
			b.n.down(true)
			b.run()
			b.send(bob, "one")
			time.Sleep(time.Hour)
			b.wantLines(bob, "one queued")
			r, _ := b.o.Report(bob)
			if d := r.Deposit; d.Relays != 0 || d.Err != nil || d.Failures != 0 || d.Last.IsZero() {
				t.Errorf("report: %+v", d)
			}
			if n, direct := m.tries(), b.n.tries(); n > direct+1 {
				t.Errorf("Leave was called %d times in %d attempts", n, direct)
			}
			m.set(func() { m.relays = newMail(t, 1).relays }) // the peer's record was read
			time.Sleep(6 * time.Minute)
			b.wantLines(bob, "one stored at 1 of 1 relays, until 14 January 2000")
		})
	})
}

// A relay that lost its store has lost the copies: the text says so and is left
// again, there too.
func TestLostStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		b := newMailBench(t, 38, m)
		defer b.close()
		b.n.down(true)
		b.run()
		b.send(bob, "one")
		b.send(eve, "two")
		time.Sleep(time.Second)
		lost := func(i int) {
			s := m.relays[i]
			b.update(func(tx *store.Tx) error {
				more, err := b.o.Lost(tx, s.key, s.store)
				if more {
					t.Error("two rows are too many")
				}
				return err
			})
		}
		const stored = "stored at 2 of 2 relays, until 14 January 2000"
		lost(0) // it has not
		b.wantLines(bob, "one "+stored)

		m.set(func() {
			m.relays[0].lose()
			m.relays[0].down = true
		})
		lost(0)
		b.wantLines(bob, "one stored at 1 of 2 relays, until 14 January 2000")
		b.wantLines(eve, "two stored at 1 of 2 relays, until 14 January 2000")
		m.set(func() {
			m.relays[1].lose()
			m.relays[1].down = true
		})
		lost(1)
		b.wantLines(bob, "one queued the relay that kept it lost it; it is sent again")
		b.wantLines(eve, "two queued the relay that kept it lost it; it is sent again")
		m.set(func() { m.relays[0].down, m.relays[1].down = false, false })
		await(t, "the texts are not at two relays again", func() bool {
			return b.entries(bob)[0] == "one "+stored && b.entries(eve)[0] == "two "+stored
		})
		for i := range 2 {
			if got := m.at(i); len(got) != 2 {
				t.Errorf("relay %d has %q", i, got)
			}
		}
	})
}

// A relay says that it stops: what it has counts until then, and is left elsewhere
// in time; if it has stopped already, it does not count.
func TestRelayThatStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 3)
		b := newMailBench(t, 44, m)
		defer b.close()
		b.n.down(true)
		b.run()
		b.send(bob, "one")
		time.Sleep(time.Second)
		stops := func(i int, at time.Time) {
			b.update(func(tx *store.Tx) error {
				more, err := b.o.Stops(tx, m.relays[i].key, at)
				if more {
					t.Error("a row is too many")
				}
				return err
			})
		}
		stops(1, time.Now().Add(30*24*time.Hour)) // the message is over before
		stops(2, time.Now())                      // it has nothing
		b.wantLines(bob, "one stored at 2 of 3 relays, until 14 January 2000")
		time.Sleep(time.Hour)
		if n := m.tries(); n != 1 {
			t.Errorf("left %d times", n)
		}

		// The fake relays take what they are given, also while they stop: the worker
		// does not know which they are.
		m.set(func() { m.relays[0].down = true })
		stops(0, time.Now().Add(20*time.Hour))
		await(t, "the text is not at the third relay", func() bool { return len(m.at(2)) == 1 })
		time.Sleep(time.Second)
		b.wantLines(bob, "one stored at 3 of 3 relays, until 14 January 2000")
		time.Sleep(24 * time.Hour) // a sweep takes out what has ended
		b.wantLines(bob, "one stored at 2 of 3 relays, until 14 January 2000")

		m.set(func() { m.relays[1].down, m.relays[2].down = true, true })
		stops(1, time.Now().Add(-time.Hour))
		stops(2, time.Unix(-1<<40, 0))
		b.wantLines(bob, "one queued the relay that kept it lost it; it is sent again")
	})
}

// Receipts for Ada may be lost: what waits is left once more, stays stored
// meanwhile, and is not doubted any more then. A receipt is not left again.
func TestDoubtedCopiesAreLeftOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		b := newMailBench(t, 45, m)
		defer b.close()
		b.n.down(true)
		b.run()
		b.send(bob, "one")
		b.send(eve, "two")
		time.Sleep(time.Second)
		m.set(func() { m.relays[1].down = true })
		time.Sleep(time.Second)
		b.owe(bob, manyIDs(1)...)
		time.Sleep(time.Minute) // the receipt is at one relay of two, and waits for the other
		doubt := func() {
			b.update(func(tx *store.Tx) error {
				more, err := b.o.Doubt(tx)
				if more {
					t.Error("three rows are too many")
				}
				return err
			})
		}
		const stored = "stored at 2 of 2 relays, until 14 January 2000"
		m.set(func() { m.relays[0].down = true })
		doubt()
		doubt() // the same doubt
		time.Sleep(time.Hour)
		b.wantLines(bob, "one "+stored)
		b.wantLines(eve, "two "+stored)
		m.set(func() { m.relays[0].down, m.relays[1].down = false, false })
		time.Sleep(10 * time.Minute)
		for i, want := 0, []string{"control", "one", "one", "two", "two"}; i < 2; i++ {
			if got := slices.Sorted(slices.Values(m.at(i))); !slices.Equal(got, want) {
				t.Errorf("relay %d was given %q, want %q", i, got, want)
			}
		}
		b.wantLines(bob, "one "+stored)
		b.wantLines(eve, "two "+stored)
	})
}

// A relay takes everything, and says each time that it has lost what it had. That
// keeps nobody busy, and does not keep new texts waiting.
func TestFickleRelayKeepsNobodyBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 1)
		m.delay = time.Second
		b := newMailBench(t, 46, m)
		defer b.close()
		s := m.relays[0]
		m.before = func() {
			m.set(s.lose)
			b.update(func(tx *store.Tx) error { _, err := b.o.Lost(tx, s.key, s.store); return err })
		}
		b.n.down(true)
		b.run()
		b.send(bob, "one")
		time.Sleep(10 * time.Second)
		b.send(bob, "two") // from here on each call takes from the other
		time.Sleep(3 * time.Hour)
		if n := m.tries(); n > 200 {
			t.Errorf("left %d times in three hours", n)
		}
		before := m.tries()
		b.send(bob, "three")
		time.Sleep(10 * time.Second)
		if m.tries() == before {
			t.Error("a new text waits for long")
		}
	})
}

// A contact box keeps what it has for seven days: a day before that, the text is
// left again, and nobody is bothered.
func TestCopiesAreReplacedBeforeTheyEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		m.life = protocol.BoxLife
		b := newMailBench(t, 39, m)
		defer b.close()
		b.n.down(true)
		b.run()
		b.send(bob, "one")
		time.Sleep(protocol.MessageLife - time.Hour)
		for i := range 2 {
			if n := len(m.at(i)); n != 3 {
				t.Errorf("relay %d was given it %d times in 14 days, want 3", i, n)
			}
		}
		// The third copy ends with the message, a day before which there is a
		// warning.
		want := []string{"one queued", "one stored", "one stored", "one stored", "one stored"}
		if told := b.told(); !slices.Equal(told, want) {
			t.Errorf("changes %q, want %q", told, want)
		}
		b.wantLines(bob, "one stored not fetched yet, and at 2 of 2 relays only until 14 January 2000, 23:00 UTC")
		b.update(func(tx *store.Tx) error {
			for r, err := range store.Outbox.Scan(tx, nil, nil) {
				if err != nil || len(r.Value.Copies) != 2 {
					t.Errorf("%d copies in the row, %v, want 2", len(r.Value.Copies), err)
				}
			}
			return nil
		})
		time.Sleep(2 * time.Hour)
		b.wantLines(bob, "one failed not delivered within 14 days: it was left at relays, and no receipt came back")
		b.wantEmpty()
	})
}

// Where that does not succeed, the user is warned once, and told when no copy
// is left.
func TestEndOfCopiesIsWarnedOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		m.life = protocol.BoxLife
		b := newMailBench(t, 40, m)
		defer b.close()
		b.n.down(true)
		b.run()
		b.send(bob, "one")
		time.Sleep(time.Minute)
		m.set(func() { m.relays[0].down, m.relays[1].down = true, true })
		time.Sleep(protocol.BoxLife - 25*time.Hour)
		b.wantLines(bob, "one stored at 2 of 2 relays, until 8 January 2000")
		before := len(b.told())
		time.Sleep(2 * time.Hour)
		b.wantLines(bob, "one stored not fetched yet, and at 2 of 2 relays only until 8 January 2000, 00:00 UTC")
		time.Sleep(20 * time.Hour)
		b.stop()
		b.db.Close()
		b.open()
		b.run()
		if n := len(b.told()) - before; n != 1 {
			t.Errorf("warned %d times", n)
		}
		time.Sleep(5 * time.Hour)
		b.wantLines(bob, "one queued no relay keeps it any more; it is sent again")
		m.set(func() { m.relays[1].down = false })
		await(t, "the text is at no relay", func() bool {
			return strings.HasPrefix(b.entries(bob)[0], "one stored at 1 of 2 relays")
		})
	})
}

// What is sealed anew is not at the relays any more, whatever was left there.
func TestSealedAnewIsLeftAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		b := newMailBench(t, 41, m)
		defer b.close()
		b.n.down(true)
		b.run()
		b.send(bob, "one", "two")
		time.Sleep(time.Second)
		b.setState(bob, store.Contact_KEY_CHANGED) // so that nothing is sealed yet
		hash := m.relays[0].has[0]
		b.update(func(tx *store.Tx) error { // as it comes back through the sender's own relay
			acted, err := b.s.HandleError(tx, time.Now(), bob, hash, &wire.DecryptionError{})
			if !acted {
				t.Error("the error was not acted on")
			}
			return err
		})
		time.Sleep(2 * time.Hour)
		b.wantLines(bob, "one queued what was at relays could not be opened; it is sent again", "two queued what was at relays could not be opened; it is sent again")
		b.s.setReady(bob, true)
		b.setState(bob, store.Contact_ACCEPTED)
		b.o.Kick(bob)
		time.Sleep(time.Second)
		const where = " stored at 2 of 2 relays, until 14 January 2000"
		b.wantLines(bob, "one"+where, "two"+where)
		if got, want := m.at(0), []string{"one", "two", "one", "two"}; !slices.Equal(got, want) {
			t.Errorf("the relay has %q, want %q", got, want)
		}
		m.set(func() {
			for h, n := range m.relays[0].times {
				if n != 1 {
					t.Errorf("%x was left %d times", h[:4], n)
				}
			}
		})
		// At once, where the peer answers it directly.
		left := 1
		b.n.mu.Lock()
		b.n.err = nil
		b.n.answer = func(string) *wire.Outcome {
			if left--; left < 0 {
				return nil
			}
			return &wire.Outcome{Status: wire.Status_STATUS_ERROR, Error: &wire.DecryptionError{}}
		}
		b.n.mu.Unlock()
		before := len(b.told())
		b.o.Kick(bob)
		time.Sleep(time.Second)
		if told, want := b.told()[before:], []string{"one queued", "two queued", "one delivered", "two delivered"}; !slices.Equal(told, want) {
			t.Errorf("changes %q, want %q", told, want)
		}
	})
}

// Run ends while leaving hangs, waits for it, and keeps what was left.
func TestRunJoinsLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		m.hang = true
		b := newMailBench(t, 42, m)
		defer b.close()
		b.n.down(true)
		b.run()
		b.send(bob, "one")
		time.Sleep(time.Minute)
		b.wantLines(bob, "one queued")
		b.stop()
		if m.busy[bob] {
			t.Error("Run returned while Leave ran")
		}
		b.wantLines(bob, "one stored at 2 of 2 relays, until 14 January 2000")
		b.run()
		time.Sleep(time.Hour)
		if n := m.tries(); n != 1 {
			t.Errorf("Leave was called %d times, want once", n)
		}
		// Everything arrives while a call hangs: nobody waits for it.
		b.send(bob, "two")
		time.Sleep(time.Minute)
		b.n.down(false)
		b.o.Kick(bob)
		time.Sleep(time.Second)
		b.wantLines(bob, "one delivered", "two delivered")
		if _, ok := b.o.Report(bob); ok {
			t.Error("the worker waits for the relays")
		}
	})
}

// Peers and relays come and go, the machine loses power, relays lose their
// stores: every text is delivered once, and left at a relay once, but for the
// calls whose result was lost with the power.
func TestRelaysComeAndGo(t *testing.T) {
	for seed := range uint64(10 / min(slower, 5)) {
		synctest.Test(t, func(t *testing.T) {
			m := newMail(t, 3)
			b := newMailBench(t, 50+seed, m)
			defer b.close()
			rng := rand.New(rand.NewPCG(seed, 9))
			m.delay = time.Duration(rng.IntN(3000)) * time.Millisecond
			crashes := 0
			texts := numbered(200)
			b.run()
			for rest := texts; len(rest) > 0; {
				n := min(1+rng.IntN(20), len(rest))
				b.send(bob, rest[:n]...)
				rest = rest[n:]
				b.n.down(rng.IntN(4) > 0)
				m.set(func() {
					for _, s := range m.relays {
						s.down = rng.IntN(3) == 0
					}
				})
				if rng.IntN(3) == 0 {
					b.o.Kick(bob)
				}
				if rng.IntN(8) == 0 {
					s := m.relays[rng.IntN(3)]
					m.set(s.lose) // its store changes here only
					b.update(func(tx *store.Tx) error {
						_, err := b.o.Lost(tx, s.key, s.store)
						return err
					})
				}
				time.Sleep(time.Duration(rng.IntN(60_000)) * time.Millisecond)
				if rng.IntN(4) == 0 {
					crashes++
					b.disk.Crash()
					b.stop()
					b.db.Close()
					b.open()
					b.run()
				}
			}
			m.set(func() {
				for i, s := range m.relays {
					for h, n := range s.times {
						if n > 1+crashes {
							t.Errorf("seed %d: relay %d was given %x %d times, with %d crashes", seed, i, h[:4], n, crashes)
						}
					}
				}
			})
			b.n.down(false)
			time.Sleep(time.Hour)
			b.stop()
			if !slices.Equal(b.n.got(), texts) {
				t.Errorf("seed %d: %d texts were shown, want %d in order", seed, len(b.n.got()), len(texts))
			}
			b.wantEmpty()
		})
	}
}
