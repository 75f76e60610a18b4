package outbox_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"starling/node/outbox"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	me  = identity.Account{1}
	bob = identity.Account{2}
	eve = identity.Account{3}
)

// A lockedRand is a seeded source that workers may share.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func (l *lockedRand) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(b)
}

// A sealer seals without keys: an envelope is a count and the content, and its
// acknowledgement a hash of it.
type sealer struct {
	mu     sync.Mutex                // guards ready: two of a peer's goroutines ask
	ready  map[identity.Account]bool // touched by the test and within transactions
	sealed int
	acked  int
	errors int // HandleError acted
	limit  int // how often HandleError acts
	doubts int // Suspect was called
}

func (s *sealer) Ready(_ *store.Tx, _ time.Time, peer identity.Account) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready[peer], nil
}

func (s *sealer) setReady(peer identity.Account, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready[peer] = is
}

func (s *sealer) SealOutgoing(_ *store.Tx, _ time.Time, _ identity.Account, out *store.Outgoing) error {
	s.sealed++
	out.Envelope = fmt.Appendf(nil, "%08d%s", s.sealed, out.Content)
	hash := envelope.HashOf(out.Envelope)
	ack := ackOf(hash)
	out.Hash, out.Ack, out.Session, out.Dropped = hash[:], ack[:], make([]byte, 32), 0
	return nil
}

func ackOf(h envelope.Hash) [32]byte { return sha256.Sum256(h[:]) }

func (s *sealer) Acknowledged(*store.Tx, time.Time, [32]byte) error {
	s.acked++
	return nil
}

func (s *sealer) HandleError(tx *store.Tx, _ time.Time, peer identity.Account, hash envelope.Hash, _ *wire.DecryptionError) (bool, error) {
	if s.errors >= s.limit {
		return false, nil
	}
	s.errors++
	s.setReady(peer, false)
	for r, err := range store.Outbox.Scan(tx, store.OutboxOf(peer), nil) {
		if err != nil {
			return false, err
		}
		if err := store.Unacked.Delete(tx, store.UnackedKey([32]byte(r.Value.Hash))); err != nil {
			return false, err
		}
		r.Value.Envelope, r.Value.Hash, r.Value.Ack = nil, nil, nil
		if err := store.Outbox.Put(tx, r.Key, r.Value); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (s *sealer) Suspect(*store.Tx, time.Time, identity.Account, envelope.Hash) (bool, error) {
	s.doubts++
	return false, nil
}

// A network carries envelopes to a recipient that shows each content once, as
// a node does.
type network struct {
	t        *testing.T
	s        *sealer
	mu       sync.Mutex
	prepares int
	attempts []time.Time
	shown    []string
	seen     map[envelope.Hash]bool          // answered DELIVERED
	answer   func(text string) *wire.Outcome // nil: take it
	err      func() (before, after error)    // nil: no failures
	largest  int
	records  bool                 // sessions can be prepared, whoever is there
	read     func(e []byte) error // sees every envelope that is taken
}

var errDown = errors.New("not reachable")

func (n *network) Prepare(_ context.Context, peer identity.Account) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.prepares++
	if n.err != nil && !n.records {
		if before, _ := n.err(); before != nil {
			return before
		}
	}
	n.s.setReady(peer, true)
	return nil
}

func (n *network) Deliver(_ context.Context, _ identity.Account, envelopes [][]byte) ([]*wire.Outcome, error) {
	time.Sleep(10 * time.Millisecond) // a round trip
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attempts = append(n.attempts, time.Now())
	size := 0
	for _, e := range envelopes {
		size += len(e) + 4
	}
	n.largest = max(n.largest, size)
	if len(envelopes) == 0 || len(envelopes) > protocol.MaxBatch || size > protocol.MaxFrame {
		n.t.Errorf("a delivery of %d envelopes, %d bytes", len(envelopes), size)
	}
	var before, after error
	if n.err != nil {
		before, after = n.err()
	}
	if before != nil {
		return nil, before
	}
	outcomes := make([]*wire.Outcome, 0, len(envelopes))
	for _, e := range envelopes {
		h := envelope.HashOf(e)
		c, err := envelope.ParseContent(e[8:])
		if err != nil {
			n.t.Errorf("not a content: %v", err)
			continue
		}
		text := "control"
		if c.Text != nil {
			text = *c.Text
		}
		if n.answer != nil {
			if o := n.answer(text); o != nil {
				outcomes = append(outcomes, o)
				if o.Status != wire.Status_STATUS_DELIVERED {
					// A receiver stops here: nothing overtakes.
					for len(outcomes) < len(envelopes) {
						outcomes = append(outcomes, &wire.Outcome{Status: following(o.Status)})
					}
					break
				}
				continue
			}
		}
		if n.read != nil {
			if err := n.read(e); err != nil {
				n.t.Error(err)
			}
		}
		if !n.seen[h] {
			n.seen[h] = true
			n.shown = append(n.shown, text)
		}
		ack := ackOf(h)
		outcomes = append(outcomes, &wire.Outcome{Status: wire.Status_STATUS_DELIVERED, Ack: ack[:]})
	}
	if after != nil {
		return nil, after
	}
	return outcomes, nil
}

// tries returns how many deliveries were attempted since forget.
func (n *network) tries() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.attempts)
}

func (n *network) got() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.shown)
}

func (n *network) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attempts = nil
}

// following is what follows an envelope that was not taken: held ones are held
// together, everything else is not looked at.
func following(s wire.Status) wire.Status {
	if s == wire.Status_STATUS_HELD {
		return s
	}
	return wire.Status_STATUS_BUSY
}

// A bench is an outbox on a store, with a network that the test controls.
type bench struct {
	t       *testing.T
	disk    *store.Disk
	key     store.Key
	db      *store.DB
	s       *sealer
	n       *network
	o       *outbox.Outbox
	rand    *lockedRand
	mail    *mail // nil: nobody has relays
	changes []string
	stop    func()
	ids     uint64
}

// newBench must be called in a bubble.
func newBench(t *testing.T, seed uint64) *bench {
	t.Helper()
	return newMailBench(t, seed, nil)
}

// newMailBench is newBench with relays.
func newMailBench(t *testing.T, seed uint64, m *mail) *bench {
	t.Helper()
	b := &bench{t: t, mail: m, disk: store.NewDisk(), rand: &lockedRand{r: rand.NewChaCha8([32]byte{byte(seed)})}}
	b.s = &sealer{ready: map[identity.Account]bool{bob: true, eve: true}, limit: 1 << 30}
	b.n = &network{t: t, s: b.s, seen: map[envelope.Hash]bool{}}
	var err error
	if b.key, err = store.NewKey(b.rand); err != nil {
		t.Fatal(err)
	}
	b.open()
	b.update(func(tx *store.Tx) error {
		return errors.Join(
			store.Contacts.Put(tx, store.ContactKey(bob), &store.Contact{Account: bob[:], Name: "Bob", State: store.Contact_ACCEPTED}),
			store.Contacts.Put(tx, store.ContactKey(eve), &store.Contact{Account: eve[:], Name: "Eve", State: store.Contact_ACCEPTED}),
		)
	})
	return b
}

func (b *bench) open() {
	b.t.Helper()
	var err error
	if b.db, err = store.OpenMemory(store.Config{Key: b.key, Rand: b.rand}, b.disk); err != nil {
		b.t.Fatal(err)
	}
	cfg := outbox.Config{
		Store: b.db, Account: me, Sealer: b.s, Courier: b.n, Rand: b.rand,
		Changed: func(_ *store.Tx, chat identity.Account, e *store.Entry) error {
			b.changes = append(b.changes, fmt.Sprintf("%s %s", e.Text, strings.ToLower(e.State.String())))
			return nil
		},
	}
	if b.mail != nil {
		cfg.Mailer = b.mail
	}
	b.o = outbox.New(cfg)
}

// run starts the outbox; close ends it and the store.
func (b *bench) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	o := b.o
	go func() { done <- o.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
		b.stop = nil
	}
}

func (b *bench) close() {
	if b.stop != nil {
		b.stop()
	}
	if err := b.db.Close(); err != nil {
		b.t.Errorf("closing the store: %v", err)
	}
}

func (b *bench) update(fn func(tx *store.Tx) error) {
	b.t.Helper()
	if err := b.db.Update(fn); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) id() envelope.ID {
	b.ids++
	var id envelope.ID
	copy(id[:], fmt.Sprintf("%016d", b.ids))
	return id
}

func (b *bench) send(to identity.Account, texts ...string) (ids []envelope.ID) {
	b.t.Helper()
	b.update(func(tx *store.Tx) error {
		for _, text := range texts {
			c := &envelope.Content{ID: b.id(), Text: &text}
			ids = append(ids, c.ID)
			if _, _, err := b.o.Enqueue(tx, time.Now(), to, c); err != nil {
				return err
			}
		}
		return nil
	})
	return ids
}

// entries returns the lines of a chat as "text state reason".
func (b *bench) entries(chat identity.Account) (lines []string) {
	b.t.Helper()
	err := b.db.View(func(tx *store.Tx) error {
		for r, err := range store.History.Scan(tx, store.HistoryOf(chat), nil) {
			if err != nil {
				return err
			}
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Value.Text, strings.ToLower(r.Value.State.String()), r.Value.Reason)))
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return lines
}

// rows returns how many rows outbox and send log have.
func (b *bench) rows() (outgoing, unacked int) {
	b.t.Helper()
	b.update(func(tx *store.Tx) error {
		for range store.Outbox.Scan(tx, nil, nil) {
			outgoing++
		}
		for range store.Unacked.Scan(tx, nil, nil) {
			unacked++
		}
		return nil
	})
	return outgoing, unacked
}

func (b *bench) wantLines(chat identity.Account, want ...string) {
	b.t.Helper()
	if got := b.entries(chat); !slices.Equal(got, want) {
		b.t.Errorf("history:\n got %q\nwant %q", got, want)
	}
}

func (b *bench) wantEmpty() {
	b.t.Helper()
	if out, log := b.rows(); out != 0 || log != 0 {
		b.t.Errorf("%d outbox rows and %d in the send log are left", out, log)
	}
}

func numbered(n int) (texts []string) {
	for i := range n {
		texts = append(texts, fmt.Sprintf("text %03d", i))
	}
	return texts
}

func TestDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		defer b.close()
		b.run()
		b.send(bob, "one", "two")
		b.send(eve, "three")
		time.Sleep(time.Second)
		b.wantLines(bob, "one delivered", "two delivered")
		b.wantLines(eve, "three delivered")
		b.wantEmpty()
		if b.s.acked != 3 || b.s.sealed != 3 {
			t.Errorf("%d sealed, %d acknowledged, want 3 and 3", b.s.sealed, b.s.acked)
		}
		if _, ok := b.o.Report(bob); ok {
			t.Error("a worker runs without work")
		}
		// A second round starts the worker anew.
		b.send(bob, "four")
		time.Sleep(time.Second)
		b.wantLines(bob, "one delivered", "two delivered", "four delivered")
	})
}

// An hour without the peer, then it is back: everything arrives, once, in
// order, in the bytes of the first attempt, and the pauses grew.
func TestHourOfFailuresThenDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		defer b.close()
		start := time.Now()
		b.n.err = func() (before, after error) {
			if time.Since(start) < time.Hour {
				return errDown, nil
			}
			return nil, nil
		}
		b.run()
		texts := numbered(100)
		b.send(bob, texts...)
		time.Sleep(30 * time.Minute)
		r, ok := b.o.Report(bob)
		if !ok || r.Failures < 5 || !errors.Is(r.Err, errDown) || r.Next.Before(time.Now()) || r.Next.After(time.Now().Add(300*time.Second)) {
			t.Errorf("report during the failures: %+v, %v", r, ok)
		}
		time.Sleep(35*time.Minute + time.Second)
		if !slices.Equal(b.n.got(), texts) {
			t.Errorf("%d texts arrived, or out of order", len(b.n.got()))
		}
		if b.s.sealed != len(texts) {
			t.Errorf("%d envelopes were sealed for %d texts", b.s.sealed, len(texts))
		}
		if n := b.n.tries(); n < 20 || n > 80 {
			t.Errorf("%d attempts in an hour", n)
		}
		b.wantEmpty()
	})
}

// After 14 days a text is failed visibly, with the reason, also while its peer
// is paused.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 3)
		defer b.close()
		b.n.err = func() (before, after error) { return errDown, nil }
		b.run()
		b.send(bob, "one")
		b.send(eve, "held back")
		b.setState(eve, store.Contact_KEY_CHANGED)
		time.Sleep(protocol.MessageLife - time.Minute)
		b.send(bob, "two")
		b.wantLines(bob, "one queued", "two queued")
		time.Sleep(time.Minute + time.Second)
		b.wantLines(bob, "one failed not delivered within 14 days: not reachable", "two queued")
		time.Sleep(time.Hour)
		b.wantLines(eve, "held back failed not delivered within 14 days")
		b.n.mu.Lock()
		b.n.err = nil
		b.n.mu.Unlock()
		time.Sleep(10 * time.Minute)
		b.wantLines(bob, "one failed not delivered within 14 days: not reachable", "two delivered")
		b.wantEmpty()
		if want := []string{"two"}; !slices.Equal(b.n.got(), want) {
			t.Errorf("shown %q, want %q", b.n.got(), want)
		}
	})
}

func (b *bench) setState(a identity.Account, s store.Contact_State) {
	b.t.Helper()
	b.update(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(a))
		if err != nil {
			return err
		}
		c.State = s
		return store.Contacts.Put(tx, store.ContactKey(a), c)
	})
}

// Failures before and after the recipient committed, busy answers, and restarts
// of the outbox: exactly once and in order.
func TestExactlyOnceInOrder(t *testing.T) {
	for seed := range uint64(10 / slower) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, 10+seed)
			defer b.close()
			rng := rand.New(rand.NewPCG(seed, 2))  // of the network
			mine := rand.New(rand.NewPCG(seed, 3)) // of the user
			b.n.err = func() (before, after error) {
				switch rng.IntN(4) {
				case 0:
					return errDown, nil
				case 1:
					return nil, errDown // the answer is lost
				}
				return nil, nil
			}
			b.n.answer = func(string) *wire.Outcome {
				if rng.IntN(40) == 0 {
					return &wire.Outcome{Status: wire.Status_STATUS_BUSY}
				}
				return nil
			}
			texts := numbered(300)
			for rest := texts; len(rest) > 0; {
				n := min(1+mine.IntN(60), len(rest))
				b.run()
				b.send(bob, rest[:n]...)
				rest = rest[n:]
				time.Sleep(time.Duration(mine.IntN(2000)) * time.Millisecond)
				if mine.IntN(3) == 0 {
					b.stop()
					b.disk.Crash()
					b.db.Close()
					b.open()
				} else {
					b.stop()
				}
			}
			b.run()
			time.Sleep(4 * time.Hour)
			b.stop()
			if !slices.Equal(b.n.got(), texts) {
				t.Errorf("seed %d: %d texts were shown, want %d in order", seed, len(b.n.got()), len(texts))
			}
			if b.s.sealed != len(texts) {
				t.Errorf("seed %d: %d envelopes for %d texts: retries are not the same bytes", seed, b.s.sealed, len(texts))
			}
			b.wantEmpty()
		})
	}
}

// A forged acknowledgement is ignored, and the text is sent again.
func TestForgedAcknowledgementIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 4)
		defer b.close()
		for i, forged := range [][]byte{nil, {}, make([]byte, 31), make([]byte, 32), bytes.Repeat([]byte{0xff}, 32), make([]byte, 33)} {
			forge := true
			b.n.answer = func(string) *wire.Outcome {
				if !forge {
					return nil
				}
				return &wire.Outcome{Status: wire.Status_STATUS_DELIVERED, Ack: forged}
			}
			b.run()
			b.send(bob, fmt.Sprint(i))
			time.Sleep(time.Minute)
			if got := b.entries(bob)[i]; got != fmt.Sprint(i)+" queued" {
				t.Errorf("after a forged acknowledgement of %d bytes: %q", len(forged), got)
			}
			b.n.mu.Lock()
			forge = false
			b.n.mu.Unlock()
			time.Sleep(10 * time.Minute)
			if got := b.entries(bob)[i]; got != fmt.Sprint(i)+" delivered" {
				t.Errorf("after the honest acknowledgement: %q", got)
			}
			b.stop()
		}
		if b.s.sealed != 6 {
			t.Errorf("%d envelopes for 6 texts", b.s.sealed)
		}
	})
}

// A recipient who has not accepted holds the text: it says so, is retried
// rarely, and at once when they accept.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 5)
		defer b.close()
		accepted := false
		b.n.answer = func(string) *wire.Outcome {
			if accepted {
				return nil
			}
			return &wire.Outcome{Status: wire.Status_STATUS_HELD}
		}
		b.run()
		b.send(bob, "one", "two")
		time.Sleep(time.Minute)
		b.wantLines(bob, "one queued waiting for Bob to accept", "two queued waiting for Bob to accept")
		if r, ok := b.o.Report(bob); !ok || !r.Held {
			t.Errorf("report: %+v, %v", r, ok)
		}
		time.Sleep(time.Hour)
		if n := b.n.tries(); n < 6 || n > 14 {
			t.Errorf("%d attempts in an hour, want one every 5 to 10 min", n)
		}
		if want := 4; len(b.changes) != want {
			t.Errorf("%d changes were told, want %d: %q", len(b.changes), want, b.changes)
		}
		b.n.mu.Lock()
		accepted = true
		b.n.mu.Unlock()
		b.o.Kick(bob)
		time.Sleep(time.Second)
		b.wantLines(bob, "one delivered", "two delivered")
	})
}

// Who writes on to somebody who has not accepted must not send all of it again
// with every line.
func TestHeldIsNotRepeatedForEveryLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 5)
		defer b.close()
		b.n.answer = func(string) *wire.Outcome { return &wire.Outcome{Status: wire.Status_STATUS_HELD} }
		b.run()
		for i := range 120 {
			b.send(bob, fmt.Sprint("line ", i))
			time.Sleep(5 * time.Second)
		}
		if n := b.n.tries(); n < 2 || n > 11 {
			t.Errorf("%d attempts in ten minutes, want at most one a minute", n)
		}
	})
}

// While a contact is paused nothing is sealed and nothing leaves.
func TestPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 6)
		defer b.close()
		b.run()
		for _, s := range []store.Contact_State{
			store.Contact_KEY_CHANGED, store.Contact_HELD, store.Contact_BLOCKED, store.Contact_REQUEST,
		} {
			b.setState(bob, s)
			b.send(bob, s.String())
			b.o.Kick(bob)
			time.Sleep(time.Hour)
		}
		if b.s.sealed != 0 || b.n.tries() != 0 {
			t.Errorf("%d sealed and %d attempts for a paused contact", b.s.sealed, b.n.tries())
		}
		b.setState(bob, store.Contact_ACCEPTED)
		b.o.Kick(bob)
		time.Sleep(time.Second)
		if want := []string{"KEY_CHANGED", "HELD", "BLOCKED", "REQUEST"}; !slices.Equal(b.n.got(), want) {
			t.Errorf("shown %q, want %q", b.n.got(), want)
		}
	})
}

// Sealed before the pause, and not delivered during it.
func TestPauseHoldsWhatIsSealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 7)
		defer b.close()
		b.n.err = func() (before, after error) { return errDown, nil }
		b.run()
		b.send(bob, "one")
		time.Sleep(time.Minute)
		b.setState(bob, store.Contact_KEY_CHANGED)
		b.n.mu.Lock()
		b.n.err = nil
		b.n.mu.Unlock()
		time.Sleep(time.Hour)
		b.wantLines(bob, "one queued")
		b.setState(bob, store.Contact_ACCEPTED)
		b.o.Kick(bob)
		time.Sleep(time.Second)
		b.wantLines(bob, "one delivered")
	})
}

// The same ID again is the same message; another use of it is refused.
func TestRepeatedEnqueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 8)
		defer b.close()
		b.run()
		id := b.send(bob, "one")[0]
		b.send(bob, "two")
		enqueue := func(to identity.Account, text string) (line uint64, repeated bool, err error) {
			err = b.db.Update(func(tx *store.Tx) (err error) {
				line, repeated, err = b.o.Enqueue(tx, time.Now(), to, &envelope.Content{ID: id, Text: &text})
				return err
			})
			return line, repeated, err
		}
		for range 3 {
			if line, repeated, err := enqueue(bob, "one"); line != 1 || !repeated || err != nil {
				t.Errorf("the same again: line %d, repeated %v, %v", line, repeated, err)
			}
			time.Sleep(time.Minute)
		}
		if _, _, err := enqueue(bob, "other"); !errors.Is(err, outbox.ErrExists) {
			t.Errorf("other words under the same ID: %v", err)
		}
		if _, _, err := enqueue(eve, "one"); !errors.Is(err, outbox.ErrExists) {
			t.Errorf("the same ID to another: %v", err)
		}
		b.wantLines(bob, "one delivered", "two delivered")
		b.update(func(tx *store.Tx) error {
			text := "x"
			if _, _, err := b.o.Enqueue(tx, time.Now(), identity.Account{9}, &envelope.Content{ID: b.id(), Text: &text}); !errors.Is(err, outbox.ErrNoContact) {
				t.Errorf("to nobody: %v", err)
			}
			return nil
		})
	})
}

// Without a session the courier prepares one, and what waits is sealed
// together, in order, control contents among it.
func TestPrepare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 9)
		defer b.close()
		b.s.setReady(bob, false)
		b.n.err = func() (before, after error) {
			if b.n.prepares < 4 {
				return errDown, nil
			}
			return nil, nil
		}
		b.send(bob, numbered(100)...)
		b.update(func(tx *store.Tx) error {
			_, _, err := b.o.Enqueue(tx, time.Now(), bob, &envelope.Content{ID: b.id(), Receipt: &envelope.Receipt{Read: []envelope.ID{{1}}}})
			return err
		})
		b.send(bob, "last")
		if b.s.sealed != 0 {
			t.Fatal("sealed without a session")
		}
		b.run()
		time.Sleep(time.Minute)
		if want := append(numbered(100), "control", "last"); !slices.Equal(b.n.got(), want) {
			t.Errorf("shown %q", b.n.got())
		}
		if b.n.prepares != 4 {
			t.Errorf("%d preparations, want 4", b.n.prepares)
		}
		b.wantEmpty()
		if lines := b.entries(bob); len(lines) != 101 {
			t.Errorf("%d lines in the history, want 101: control contents have none", len(lines))
		}
	})
}

// Long contents go in several frames.
func TestBatchesFitIntoFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 20)
		defer b.close()
		b.s.setReady(bob, false)
		var texts []string
		for i := range 40 {
			texts = append(texts, fmt.Sprintf("%03d%s", i, strings.Repeat("x", protocol.MaxText-3)))
		}
		for c := range slices.Chunk(texts, 15) {
			b.send(bob, c...)
		}
		b.run()
		time.Sleep(time.Minute)
		if !slices.Equal(b.n.got(), texts) {
			t.Errorf("%d texts were shown, want %d in order", len(b.n.got()), len(texts))
		}
		b.wantEmpty()
	})
}

// A decryption error that the sealer acts on leads to a fresh session and the
// same contents at once; a peer that never has enough does not make us spin.
func TestDecryptionErrorsRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 21)
		defer b.close()
		left := 1
		b.n.answer = func(string) *wire.Outcome {
			if left--; left < 0 {
				return nil
			}
			return &wire.Outcome{Status: wire.Status_STATUS_ERROR, Error: &wire.DecryptionError{}}
		}
		b.run()
		b.send(bob, "one", "two")
		time.Sleep(100 * time.Millisecond)
		b.wantLines(bob, "one delivered", "two delivered")
		if b.s.errors != 1 || b.n.prepares != 1 || b.s.sealed != 4 {
			t.Errorf("%d errors acted on, %d preparations, %d sealed, want 1, 1 and 4", b.s.errors, b.n.prepares, b.s.sealed)
		}
		b.n.forget()
		b.n.mu.Lock()
		left = 1 << 30
		b.n.mu.Unlock()
		b.send(bob, "three")
		time.Sleep(time.Hour)
		if n := b.n.tries(); n > 80 {
			t.Errorf("%d attempts in an hour", n)
		}
	})
}

// After three drops the session is suspected.
func TestDropsAreSuspected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 22)
		defer b.close()
		b.n.answer = func(string) *wire.Outcome { return &wire.Outcome{Status: wire.Status_STATUS_DROPPED} }
		b.run()
		b.send(bob, "one", "two")
		time.Sleep(time.Hour)
		b.wantLines(bob, "one queued", "two queued")
		if want := b.n.tries() - 2; b.s.doubts != want {
			t.Errorf("suspected %d times in %d attempts, want %d", b.s.doubts, b.n.tries(), want)
		}
	})
}

// A kick tries at once; many new contents do not.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 23)
		defer b.close()
		b.n.err = func() (before, after error) { return errDown, nil }
		b.run()
		b.send(bob, "one")
		time.Sleep(20 * time.Minute)
		b.n.forget()
		for range 100 {
			b.send(bob, "more")
			time.Sleep(100 * time.Millisecond)
		}
		if n := b.n.tries(); n < 1 || n > 4 {
			t.Errorf("%d attempts while 100 contents came in 10 s", n)
		}
		b.n.forget()
		b.o.Kick(bob)
		time.Sleep(50 * time.Millisecond)
		if b.n.tries() == 0 {
			t.Error("a kick did not try at once")
		}
		b.o.KickAll()
		b.o.Kick(eve) // for whom nothing waits
		time.Sleep(50 * time.Millisecond)
	})
}

// What a peer tells inside a session counts as well, and only of texts to it.
func TestReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 24)
		defer b.close()
		ids := b.send(bob, "one", "two", "three", "four")
		theirs := b.send(eve, "private")
		receipt := func(r envelope.Receipt) {
			b.update(func(tx *store.Tx) error { return b.o.Receipt(tx, bob, &r) })
		}
		receipt(envelope.Receipt{Delivered: []envelope.ID{ids[0], theirs[0], {99}}, Read: ids[1:2]})
		b.wantLines(bob, "one delivered", "two read", "three queued", "four queued")
		b.wantLines(eve, "private queued")
		receipt(envelope.Receipt{Delivered: ids[:2]})
		b.wantLines(bob, "one delivered", "two read", "three queued", "four queued")
		if out, log := b.rows(); out != 3 || log != 3 {
			t.Errorf("%d and %d rows are left, want 3", out, log)
		}
		// Given up, and then it did arrive.
		b.update(func(tx *store.Tx) error {
			_, err := b.o.Fail(tx, bob, "contact removed")
			return err
		})
		b.wantLines(bob, "one delivered", "two read", "three failed contact removed", "four failed contact removed")
		receipt(envelope.Receipt{Delivered: ids[2:3]})
		b.wantLines(bob, "one delivered", "two read", "three delivered", "four failed contact removed")
		b.update(func(tx *store.Tx) error {
			if n, err := b.o.Pending(tx); n != 1 || err != nil {
				t.Errorf("%d texts pending, %v, want 1", n, err)
			}
			return nil
		})
	})
}

// Run ends while a delivery hangs, and waits for it.
func TestRunJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 25)
		defer b.close()
		hang := &hanging{entered: make(chan struct{})}
		b.o = outbox.New(outbox.Config{Store: b.db, Account: me, Sealer: b.s, Courier: hang, Rand: b.rand})
		b.run()
		b.send(bob, "one")
		<-hang.entered
		b.stop()
		if hang.running {
			t.Error("Run returned while a delivery ran")
		}
		b.wantLines(bob, "one queued")
	})
}

type hanging struct {
	entered chan struct{}
	running bool
}

func (h *hanging) Prepare(context.Context, identity.Account) error { return nil }

func (h *hanging) Deliver(ctx context.Context, _ identity.Account, _ [][]byte) ([]*wire.Outcome, error) {
	h.running = true
	close(h.entered)
	<-ctx.Done()
	h.running = false
	return nil, ctx.Err()
}

// Lines that nobody may take over keep their place.
func TestAppendKeepsTheFirstOwnerOfAnID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 26)
		defer b.close()
		id := b.send(bob, "mine")[0]
		b.update(func(tx *store.Tx) error {
			line, err := outbox.Append(tx, eve, &store.Entry{Id: id[:], From: eve[:], Text: "theirs", State: store.Entry_RECEIVED})
			if line != 1 {
				t.Errorf("line %d, want 1", line)
			}
			return err
		})
		b.run()
		time.Sleep(time.Second)
		b.wantLines(bob, "mine delivered")
		b.wantLines(eve, "theirs received")
	})
}

func BenchmarkOutbox(b *testing.B) {
	b.ReportAllocs()
	t := &testing.T{}
	bench := newBench(t, 27)
	defer bench.db.Close()
	ctx, cancel := context.WithCancel(context.Background())
	fast := &instant{}
	bench.o = outbox.New(outbox.Config{Store: bench.db, Account: me, Sealer: bench.s, Courier: fast, Rand: bench.rand})
	done := make(chan error, 1)
	go func() { done <- bench.o.Run(ctx) }()
	for b.Loop() {
		bench.send(bob, numbered(64)...)
	}
	for {
		if out, _ := bench.rows(); out == 0 {
			break
		}
	}
	b.ReportMetric(float64(64*b.N)/b.Elapsed().Seconds(), "messages/s")
	cancel()
	<-done
}

// An instant courier takes everything at once.
type instant struct{}

func (instant) Prepare(context.Context, identity.Account) error { return nil }

func (instant) Deliver(_ context.Context, _ identity.Account, envelopes [][]byte) ([]*wire.Outcome, error) {
	outcomes := make([]*wire.Outcome, len(envelopes))
	for i, e := range envelopes {
		ack := ackOf(envelope.HashOf(e))
		outcomes[i] = &wire.Outcome{Status: wire.Status_STATUS_DELIVERED, Ack: ack[:]}
	}
	return outcomes, nil
}
