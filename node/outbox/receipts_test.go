package outbox_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// owe notes receipts.
func (b *bench) owe(to identity.Account, ids ...envelope.ID) {
	b.t.Helper()
	b.update(func(tx *store.Tx) error {
		for _, id := range ids {
			if err := b.o.Owe(tx, time.Now(), to, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// owed returns how many receipts are noted.
func (b *bench) owed() (n int) {
	b.t.Helper()
	b.update(func(tx *store.Tx) error {
		n = 0
		for range store.OwedReceipts.Scan(tx, nil, nil) {
			n++
		}
		return nil
	})
	return n
}

// A reader keeps the receipts that were delivered directly.
type reader struct {
	n        *network // its lock guards the rest
	receipts []*envelope.Receipt
	times    []time.Time
	seen     map[envelope.ID]bool
}

func (b *bench) reader() *reader {
	r := &reader{n: b.n, seen: map[envelope.ID]bool{}}
	b.n.read = func(e []byte) error {
		c, err := envelope.ParseContent(e[8:])
		if err == nil && c.Receipt != nil && !r.seen[c.ID] {
			r.seen[c.ID] = true
			r.receipts, r.times = append(r.receipts, c.Receipt), append(r.times, time.Now())
		}
		return err
	}
	return r
}

// got returns the receipts so far, and when they came.
func (r *reader) got() ([]*envelope.Receipt, []time.Time) {
	r.n.mu.Lock()
	defer r.n.mu.Unlock()
	return slices.Clone(r.receipts), slices.Clone(r.times)
}

func manyIDs(n int) (ids []envelope.ID) {
	for i := range n {
		ids = append(ids, envelope.ID([]byte(fmt.Sprintf("theirs%010d", i))))
	}
	return ids
}

// What came through relays is receipted within five seconds, all of it at once
// and once.
func TestOwedReceiptsGoTogether(t *testing.T) {
	spread := map[time.Duration]bool{}
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, 70+seed)
			defer b.close()
			r := b.reader()
			b.run()
			start := time.Now()
			ids := manyIDs(7)
			b.owe(bob, ids[:3]...)
			synctest.Wait()
			if got, _ := r.got(); len(got) != 0 {
				t.Error("a receipt left at once")
			}
			time.Sleep(time.Millisecond)
			b.owe(bob, ids[3:]...)
			b.owe(bob, ids[0])
			time.Sleep(5*time.Second + 100*time.Millisecond)
			got, times := r.got()
			if len(got) != 1 || len(got[0].Read) != 0 {
				t.Fatalf("%d receipts, want 1", len(got))
			}
			if !slices.Equal(got[0].Delivered, ids) {
				t.Errorf("the receipt is for %s, want %s", got[0].Delivered, ids)
			}
			spread[times[0].Sub(start).Round(time.Second)] = true
			time.Sleep(time.Hour)
			if got, _ = r.got(); len(got) != 1 || b.owed() != 0 {
				t.Errorf("%d receipts and %d notes an hour later", len(got), b.owed())
			}
			b.wantEmpty()
		})
	}
	if len(spread) < 4 {
		t.Errorf("delays of %v: they are not spread", spread)
	}
}

// More than one content holds.
func TestManyOwedReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 60)
		defer b.close()
		r := b.reader()
		ids := manyIDs(2*protocol.MaxReceipt + 1)
		b.owe(bob, ids...)
		b.owe(eve, ids[:5]...)
		b.run() // notes of before are found
		time.Sleep(time.Minute)
		var got []envelope.ID
		receipts, _ := r.got()
		for _, c := range receipts {
			if len(c.Delivered) > protocol.MaxReceipt {
				t.Errorf("a receipt for %d", len(c.Delivered))
			}
			got = append(got, c.Delivered...)
		}
		slices.SortFunc(got, func(a, b envelope.ID) int { return slices.Compare(a[:], b[:]) })
		want := slices.Concat(ids, ids[:5])
		slices.SortFunc(want, func(a, b envelope.ID) int { return slices.Compare(a[:], b[:]) })
		if !slices.Equal(got, want) || len(receipts) != 4 {
			t.Errorf("%d IDs in %d receipts, want %d in 4", len(got), len(receipts), len(want))
		}
		if b.owed() != 0 {
			t.Errorf("%d notes are left", b.owed())
		}
	})
}

// Receipts go to accepted contacts only: others' wait for the user, and for
// those who are gone there are none.
func TestOwedReceiptsWaitForAcceptance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 61)
		defer b.close()
		r := b.reader()
		b.run()
		ids := manyIDs(3)
		b.setState(bob, store.Contact_REQUEST)
		b.setState(eve, store.Contact_BLOCKED)
		b.owe(bob, ids[0])
		b.owe(eve, ids[1])
		b.owe(identity.Account{9}, ids[2]) // who was removed meanwhile
		time.Sleep(24 * time.Hour)
		if got, _ := r.got(); len(got) != 0 || b.owed() != 1 {
			t.Fatalf("%d receipts and %d notes, want none and that of the request", len(got), b.owed())
		}
		b.setState(bob, store.Contact_ACCEPTED)
		b.update(func(tx *store.Tx) error {
			_, _, err := b.o.Enqueue(tx, time.Now(), bob, &envelope.Content{ID: b.id(), Accept: news(b)})
			return err
		})
		time.Sleep(6 * time.Second)
		if got, _ := r.got(); len(got) != 1 || !slices.Equal(got[0].Delivered, ids[:1]) {
			t.Fatalf("receipts after acceptance: %v", got)
		}
		// A hold ends.
		b.setState(bob, store.Contact_HELD)
		b.owe(bob, ids[1])
		time.Sleep(time.Minute)
		b.setState(bob, store.Contact_ACCEPTED)
		b.o.Kick(bob)
		time.Sleep(6 * time.Second)
		if got, _ := r.got(); len(got) != 2 || b.owed() != 0 {
			t.Errorf("%d receipts and %d notes after the hold", len(got), b.owed())
		}
		// Who is never accepted is forgotten.
		b.setState(bob, store.Contact_REQUEST)
		b.owe(bob, ids[2])
		b.update(func(tx *store.Tx) error {
			n, err := store.OwedReceipts.Get(tx, store.OwedKey(bob, ids[2]))
			if err == nil && n.Dies != time.Now().Add(protocol.MessageLife+24*time.Hour).UnixMilli() {
				t.Errorf("the note dies %v", time.UnixMilli(n.Dies))
			}
			return err
		})
	})
}

func news(b *bench) *envelope.News {
	b.t.Helper()
	secret, err := identity.NewSecret(b.rand)
	if err != nil {
		b.t.Fatal(err)
	}
	ak := identity.NewAccountKey(secret)
	seed, err := identity.NewSecret(b.rand)
	if err != nil {
		b.t.Fatal(err)
	}
	dh, err := x25519.Generate(b.rand)
	if err != nil {
		b.t.Fatal(err)
	}
	dk := identity.NewDeviceKey(seed, dh)
	return &envelope.News{
		Manifest: identity.SignManifest(ak, 1, []identity.DeviceEntry{{Key: dk.Device(), DH: dh.Public()}}),
		Profile:  identity.Profile{Name: "me"},
	}
}

// A receipt for a control content ends its way, like that of a text; IDs that
// are made up end nothing.
func TestReceiptsOfControlContents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMail(t, 2)
		b := newMailBench(t, 62, m)
		defer b.close()
		b.n.down(true)
		b.run()
		accept, told := b.id(), b.id()
		b.update(func(tx *store.Tx) error {
			_, _, err := b.o.Enqueue(tx, time.Now(), bob, &envelope.Content{ID: accept, Accept: news(b)})
			if err != nil {
				return err
			}
			_, _, err = b.o.Enqueue(tx, time.Now(), bob, &envelope.Content{ID: told, News: news(b)})
			return err
		})
		theirs := b.send(eve, "private")[0]
		time.Sleep(time.Second)
		if out, log := b.rows(); out != 3 || log != 3 {
			t.Errorf("%d and %d rows, want 3: what is stored is not delivered", out, log)
		}
		b.update(func(tx *store.Tx) error {
			return b.o.Receipt(tx, bob, &envelope.Receipt{Delivered: []envelope.ID{accept, theirs, {99}}, Read: []envelope.ID{told}})
		})
		if out, log := b.rows(); out != 1 || log != 1 {
			t.Errorf("%d and %d rows, want that of the other contact", out, log)
		}
		b.wantLines(eve, "private stored at 2 of 2 relays, until 14 January 2000")
		time.Sleep(10 * time.Minute)
		if _, ok := b.o.Report(bob); ok {
			t.Error("a worker runs without work")
		}
	})
}

// A receipt has done its duty where it is stored at two relays, or at all there
// are; at fewer it goes on.
func TestStoredReceiptsAreDone(t *testing.T) {
	for _, test := range []struct {
		relays, down int
		left         bool // in the outbox
	}{{3, 0, false}, {2, 0, false}, {1, 0, false}, {2, 1, true}, {1, 1, true}, {0, 0, true}} {
		synctest.Test(t, func(t *testing.T) {
			m := newMail(t, test.relays)
			b := newMailBench(t, 63, m)
			defer b.close()
			for i := range test.down {
				m.relays[i].down = true
			}
			b.n.down(true)
			b.run()
			b.send(bob, "one")
			b.owe(bob, manyIDs(1)...)
			time.Sleep(time.Minute)
			out, log := b.rows()
			if want := map[bool]int{false: 1, true: 2}[test.left]; out != want || log != want {
				t.Errorf("%d of %d relays down: %d and %d rows, want %d", test.down, test.relays, out, log, want)
			}
			if test.left && test.relays == 2 {
				m.set(func() { m.err = errRelay }) // and so it is not said how many there are
				time.Sleep(time.Hour)
				if out, _ := b.rows(); out != 2 {
					t.Error("a receipt at one of two relays passes for done")
				}
				m.set(func() { m.err, m.relays = nil, m.relays[1:] }) // the peer gave up a relay
				await(t, "the receipt is at all relays there are, and still waits", func() bool {
					out, _ := b.rows()
					return out == 1
				})
			}
		})
	}
}

// The machine loses power at every write boundary of a story, in turn: two texts
// are left at relays, what a peer sent through them is receipted, a relay loses
// its store, the peer comes back. In the end every text is delivered and shown
// once, every note has become one receipt, and no row is left.
func TestCrashAtEveryCommit(t *testing.T) {
	points := 0
	for n := 1; ; n++ {
		done := false
		synctest.Test(t, func(t *testing.T) {
			done = crashAt(t, n)
		})
		if done || t.Failed() {
			break
		}
		if points = n; n > 200 {
			t.Fatal("the story has no end")
		}
	}
	t.Logf("%d write boundaries", points)
	if points < 3*8 {
		t.Errorf("%d write boundaries; are they all there?", points)
	}
}

// crashAt tells the story with a loss of power at the n-th write boundary, and
// reports whether there is no such.
func crashAt(t *testing.T, n int) (over bool) {
	m := newMail(t, 2)
	b := newMailBench(t, 64, m)
	defer b.close()
	r := b.reader()
	b.n.down(true)
	b.run()
	synctest.Wait()
	crashed := false
	b.disk.CrashAt(n, func() { crashed = true })
	restart := func() {
		b.stop()
		b.db.Close()
		b.open()
		b.run()
	}
	// do repeats a step of the story that the loss of power took back.
	do := func(fn func(tx *store.Tx) error) {
		t.Helper()
		err := b.db.Update(fn)
		if errors.Is(err, store.ErrClosed) {
			restart()
			err = b.db.Update(fn)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	pause := func(d time.Duration) {
		time.Sleep(d)
		synctest.Wait()
		if err := b.db.View(func(*store.Tx) error { return nil }); errors.Is(err, store.ErrClosed) {
			restart()
			time.Sleep(d)
			synctest.Wait()
		}
	}
	ids := []envelope.ID{b.id(), b.id()}
	for i, text := range []string{"one", "two"} {
		do(func(tx *store.Tx) error {
			_, _, err := b.o.Enqueue(tx, time.Now(), bob, &envelope.Content{ID: ids[i], Text: &text})
			return err
		})
	}
	pause(2 * time.Second)
	theirs := manyIDs(3)
	for _, id := range theirs {
		do(func(tx *store.Tx) error { return b.o.Owe(tx, time.Now(), bob, id) })
		pause(2 * time.Second)
	}
	m.set(m.relays[0].lose)
	do(func(tx *store.Tx) error {
		_, err := b.o.Lost(tx, m.relays[0].key, m.relays[0].store)
		return err
	})
	pause(10 * time.Minute)
	const stored = " stored at 2 of 2 relays, until 14 January 2000"
	b.wantLines(bob, "one"+stored, "two"+stored)
	b.n.down(false)
	b.o.Kick(bob)
	pause(10 * time.Minute)
	pause(time.Hour)
	b.stop()

	b.wantLines(bob, "one delivered", "two delivered")
	var shown []string
	for _, s := range b.n.got() {
		if s != "control" {
			shown = append(shown, s)
		}
	}
	if want := []string{"one", "two"}; !slices.Equal(shown, want) {
		t.Errorf("crash at %d: shown %q, want %q", n, shown, want)
	}
	b.wantEmpty()
	if b.owed() != 0 {
		t.Errorf("crash at %d: %d notes are left", n, b.owed())
	}
	// Receipts went to the relays or directly; each ID is in one content.
	in := map[envelope.ID]int{}
	for id, c := range m.receipts {
		if r.seen[id] {
			continue
		}
		r.receipts = append(r.receipts, c)
	}
	for _, c := range r.receipts {
		for _, id := range c.Delivered {
			in[id]++
		}
	}
	for _, id := range theirs {
		if in[id] != 1 {
			t.Errorf("crash at %d: %s is in %d receipts, want 1", n, id, in[id])
		}
	}
	for i, s := range m.relays {
		for h, times := range s.times {
			if times > 1 && (!crashed || times > 2) {
				t.Errorf("crash at %d: relay %d was given %x %d times", n, i, h[:4], times)
			}
		}
	}
	return !crashed
}

// A peer cannot make a receipt cost much: one scan, however many IDs it makes up.
func TestMadeUpReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 65)
		defer b.close()
		b.n.answer = func(string) *wire.Outcome { return &wire.Outcome{Status: wire.Status_STATUS_BUSY} }
		b.send(bob, numbered(200)...)
		for range 20 {
			b.update(func(tx *store.Tx) error {
				return b.o.Receipt(tx, bob, &envelope.Receipt{Delivered: manyIDs(protocol.MaxReceipt)})
			})
		}
		if out, _ := b.rows(); out != 200 {
			t.Errorf("%d rows are left, want 200", out)
		}
	})
}
