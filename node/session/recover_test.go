package session_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
)

// A sender is one direction of a pair as a worker lives it: every step is one
// transaction, and anything may happen between two.
type sender struct {
	from, to *person
	oneTime  bool
	given    *bundles
	sent     *sent
	answer   *wire.Outcome
	sealed   [][]byte // everything that ever left, for replays
}

// step advances by one transaction; idle says that there was nothing to do.
func (s *sender) step() (idle bool) {
	w, p, q := s.from.w, s.from, s.to
	switch {
	case s.given != nil:
		if !p.ready(q) || w.rng.IntN(2) == 0 { // a session may have come from the other side meanwhile
			p.start(q, *s.given)
		}
		s.given = nil
	case s.answer != nil:
		if w.rng.IntN(5) > 0 { // else the answer is lost
			p.settle(q, s.sent, s.answer)
		}
		s.sent, s.answer = nil, nil
	case s.sent != nil:
		if w.rng.IntN(5) == 0 { // lost on its way
			s.sent = nil
			break
		}
		s.answer = q.take(p, s.sent.out.Envelope)
	default:
		s.sent = p.next(q)
		switch {
		case s.sent == nil:
			return true
		case len(s.sent.out.Envelope) == 0:
			s.sent = nil
			b := q.give(s.oneTime)
			s.given = &b
		default:
			s.sealed = append(s.sealed, s.sent.out.Envelope)
		}
	}
	return false
}

// Both sides open a session at once, in 200 random interleavings with losses
// and replays: nothing is lost or shown twice, and both end on one session.
func TestBothOpenAtOnce(t *testing.T) {
	for seed := range uint64(200 / slower) {
		w, a, b := pair(t, 100+seed)
		ways := []*sender{
			{from: a, to: b, oneTime: w.rng.IntN(2) == 0},
			{from: b, to: a, oneTime: w.rng.IntN(2) == 0},
		}
		const each = 3
		left := []int{each, each}
		for step := 0; ; step++ {
			if step > 2000 {
				t.Fatalf("seed %d: the outboxes do not drain", seed)
			}
			i := w.rng.IntN(2)
			s := ways[i]
			if left[i] > 0 && w.rng.IntN(6) == 0 {
				s.from.queue(s.to, fmt.Sprintf("%s %d", s.from.name, each-left[i]))
				left[i]--
			}
			if n := len(s.sealed); n > 0 && w.rng.IntN(10) == 0 {
				s.to.take(s.from, s.sealed[w.rng.IntN(n)])
			}
			if s.step() && left[0]+left[1] == 0 && a.next(b) == nil && b.next(a) == nil {
				break
			}
			w.now = w.now.Add(time.Duration(w.rng.IntN(2000)) * time.Millisecond)
		}
		// One more exchange settles what is left.
		a.say(b, "Ada over")
		b.say(a, "Bob over")
		a.say(b, "Ada out")
		wantA, wantB := texts("Bob %d", each), texts("Ada %d", each)
		wantA["Bob over"], wantB["Ada over"], wantB["Ada out"] = true, true, true
		a.wantRead(b, wantA)
		b.wantRead(a, wantB)
		liveA, _ := a.sessions(b)
		liveB, _ := b.sessions(a)
		if len(liveA) != 1 || len(liveB) != 1 || liveA[0] != liveB[0] {
			t.Errorf("seed %d: the two did not settle on one session: %d and %d live", seed, len(liveA), len(liveB))
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		a.db.Close()
		b.db.Close()
	}
}

// A handshake that names a session archives it, in whichever order the two
// arrive.
func TestReplacedSessionLoses(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late=%v", late), func(t *testing.T) {
			_, a, b := pair(t, 20)
			a.start(b, b.give(false))
			a.queue(b, "one")
			first := a.next(b)
			old, _ := a.sessions(b)
			a.update(func(tx *store.Tx) error {
				c, err := store.Contacts.Get(tx, store.ContactKey(b.account))
				if err != nil {
					return err
				}
				c.Renew, c.Replaces = true, old[0][:]
				return store.Contacts.Put(tx, store.ContactKey(b.account), c)
			})
			if a.ready(b) {
				t.Error("ready although a renewal is due")
			}
			a.start(b, b.give(true))
			a.queue(b, "two")
			var second []byte
			a.update(func(tx *store.Tx) error {
				o, err := a.m.Seal(tx, a.w.now, b.account, must(envelope.MarshalContent(content(a, "two")))(t))
				second = o.Envelope
				return err
			})
			if late {
				b.take(a, second)
				b.take(a, first.out.Envelope)
			} else {
				b.take(a, first.out.Envelope)
				b.take(a, second)
			}
			for _, p := range []struct{ me, peer *person }{{a, b}, {b, a}} {
				live, archived := p.me.sessions(p.peer)
				if len(live) != 1 || len(archived) != 1 || archived[0] != old[0] {
					t.Errorf("%s has %d live and %d archived sessions, want the replaced one archived", p.me.name, len(live), len(archived))
				}
			}
			b.wantRead(a, map[string]bool{"one": true, "two": true})
		})
	}
}

func content(p *person, text string) *envelope.Content {
	c := &envelope.Content{Sent: p.w.now, Expires: p.w.now.Add(protocol.MessageLife), Seq: 1, Text: &text}
	p.rand.Read(c.ID[:])
	return c
}

// Where both sides want to renew, the one that comes first does it for both.
func TestRenewalFromTheOtherSide(t *testing.T) {
	_, a, b := pair(t, 36)
	a.say(b, "before")
	old, _ := a.sessions(b)
	for _, p := range []struct{ me, peer *person }{{a, b}, {b, a}} {
		p.me.update(func(tx *store.Tx) error {
			_, err := p.me.m.ArchiveAll(tx, p.me.w.now)
			return err
		})
		if c := p.me.contact(p.peer); !c.Renew || string(c.Replaces) != string(old[0][:]) {
			t.Errorf("%s is not about to renew", p.me.name)
		}
	}
	a.say(b, "after")
	if !b.ready(a) {
		t.Error("Bob renews once more what Ada just renewed")
	}
	if live, _ := b.sessions(a); len(live) != 1 {
		t.Errorf("Bob has %d live sessions, want 1", len(live))
	}
	b.say(a, "and back")
	a.wantRead(b, map[string]bool{"and back": true})
	b.wantRead(a, map[string]bool{"before": true, "after": true})
}

// A stranger's session cannot be named away.
func TestReplacesOnlyOnesOwn(t *testing.T) {
	w, a, b := pair(t, 21)
	c := w.person("Eve")
	c.knows(b)
	a.say(b, "hello")
	victim, _ := b.sessions(a)
	c.update(func(tx *store.Tx) error {
		row, err := store.Contacts.Get(tx, store.ContactKey(b.account))
		if err != nil {
			return err
		}
		row.Replaces = victim[0][:]
		return store.Contacts.Put(tx, store.ContactKey(b.account), row)
	})
	c.say(b, "mine")
	if live, _ := b.sessions(a); len(live) != 1 || live[0] != victim[0] {
		t.Error("a stranger archived somebody's session")
	}
}

// lose makes p forget every session, as a store that lost rows does.
func (p *person) lose() {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		for r := range store.Sessions.Scan(tx, nil, nil) {
			if err := store.Sessions.Delete(tx, r.Key); err != nil {
				return err
			}
		}
		return nil
	})
}

// A lost session renews itself: same contents, same order, nothing twice.
func TestLostSessionRenews(t *testing.T) {
	w, a, b := pair(t, 22)
	a.say(b, "before")
	b.say(a, "before")
	b.lose()
	for i := range 5 {
		a.queue(b, fmt.Sprintf("after %d", i))
	}
	a.flush(b, true)
	got := b.read(a)
	if want := "[before after 0 after 1 after 2 after 3 after 4]"; fmt.Sprint(got) != want {
		t.Errorf("Bob was shown %v, want %s", got, want)
	}
	b.say(a, "after")
	if c := a.contact(b); c.Renew || c.Renewed != w.now.UnixMilli() {
		t.Errorf("after the renewal: due %v, last %d", c.Renew, c.Renewed)
	}

	// Within the hour it is not renewed again; after it, it is.
	b.lose()
	a.queue(b, "later")
	s := a.next(b)
	a.settle(b, s, b.take(a, s.out.Envelope))
	if !a.ready(b) {
		t.Error("two renewals within the hour")
	}
	w.now = w.now.Add(protocol.RenewEvery)
	a.flush(b, true)
	want := texts("after %d", 5)
	want["before"], want["later"] = true, true
	b.wantRead(a, want)
}

// A peer that lost one session has lost its siblings too: one renewal in the
// hour is enough for all of them.
func TestLostSiblingsRenewTogether(t *testing.T) {
	_, a, b := pair(t, 37)
	for range 4 {
		a.start(b, b.give(false))
	}
	a.say(b, "before")
	live, _ := a.sessions(b)
	a.update(func(tx *store.Tx) error {
		for _, id := range live {
			if err := a.m.Acknowledged(tx, a.w.now, id); err != nil {
				return err
			}
		}
		return nil
	})
	b.lose()
	a.say(b, "after")
	b.wantRead(a, map[string]bool{"before": true, "after": true})
}

// A forged decryption error, and one that is out of place, are refused.
func TestForgedDecryptionErrorIsRefused(t *testing.T) {
	w, a, b := pair(t, 23)
	eve := w.person("Eve")
	a.knows(eve)
	a.say(b, "before")
	a.queue(b, "hello")
	s := a.next(b)
	hash, id := envelope.Hash(s.out.Hash), [32]byte(s.out.Session)
	honest := envelope.NewDecryptionError(b.device.DH(), a.device.DH().Public(), b.device.Device(), a.device.Device(),
		hash, id, wire.Reason_REASON_NO_SESSION)
	change := func(fn func(e *wire.DecryptionError)) *wire.DecryptionError {
		e := proto.Clone(honest).(*wire.DecryptionError)
		fn(e)
		return e
	}
	for name, f := range map[string]struct {
		peer *person
		hash envelope.Hash
		e    *wire.DecryptionError
	}{
		"no error":        {b, hash, nil},
		"MAC":             {b, hash, change(func(e *wire.DecryptionError) { e.Mac[0] ^= 1 })},
		"reason":          {b, hash, change(func(e *wire.DecryptionError) { e.Reason = wire.Reason_REASON_KEY_GONE })},
		"other session":   {b, hash, change(func(e *wire.DecryptionError) { e.Session[0] ^= 1 })},
		"other envelope":  {b, hash, change(func(e *wire.DecryptionError) { e.Envelope[0] ^= 1 })},
		"not in the log":  {b, envelope.Hash{1}, change(func(e *wire.DecryptionError) { e.Envelope = make([]byte, 32) })},
		"by another":      {b, hash, envelope.NewDecryptionError(eve.device.DH(), a.device.DH().Public(), eve.device.Device(), a.device.Device(), hash, id, wire.Reason_REASON_NO_SESSION)},
		"from another":    {eve, hash, honest},
		"reflected by us": {b, hash, envelope.NewDecryptionError(a.device.DH(), b.device.DH().Public(), a.device.Device(), b.device.Device(), hash, id, wire.Reason_REASON_NO_SESSION)},
	} {
		a.update(func(tx *store.Tx) error {
			acted, err := a.m.HandleError(tx, w.now, f.peer.account, f.hash, f.e)
			if acted {
				t.Errorf("%s: a forged error was acted on", name)
			}
			return err
		})
		if !a.ready(b) {
			t.Fatalf("%s: a forged error closed the session", name)
		}
	}
	if again := a.next(b); string(again.out.Envelope) != string(s.out.Envelope) {
		t.Error("a forged error changed what is sent")
	}
	// The honest one does act, once.
	for i := range 2 {
		a.update(func(tx *store.Tx) error {
			acted, err := a.m.HandleError(tx, w.now, b.account, hash, honest)
			if acted != (i == 0) {
				t.Errorf("the honest error, time %d: acted %v", i+1, acted)
			}
			return err
		})
	}
}

// Nobody learns anything from an envelope that names no session here.
func TestUnknownSessionAnswersContactsOnly(t *testing.T) {
	w, a, b := pair(t, 24)
	eve := w.person("Eve")
	a.say(b, "hello")
	b.lose()
	a.queue(b, "again")
	s := a.next(b)
	for name, from := range map[string]*identity.Account{"nobody": nil, "a stranger": &eve.account} {
		b.update(func(tx *store.Tx) error {
			if _, err := b.m.Open(tx, w.now, from, s.out.Envelope); !errors.Is(err, session.ErrDrop) {
				t.Errorf("an unknown session by %s: %v, want ErrDrop", name, err)
			}
			return nil
		})
	}
	if got := b.take(a, s.out.Envelope); got.Status != wire.Status_STATUS_ERROR || got.Error.Reason != wire.Reason_REASON_NO_SESSION {
		t.Errorf("an unknown session by a contact: %v", got.Status)
	}
	for _, junk := range [][]byte{nil, {1}, make([]byte, protocol.MaxEnvelope+1)} {
		if got := b.take(a, junk); got.Status != wire.Status_STATUS_DROPPED {
			t.Errorf("%d bytes of nothing: %v", len(junk), got.Status)
		}
	}
}

// A known session is not answered for somebody else.
func TestSessionOfAnotherIsDropped(t *testing.T) {
	w, a, b := pair(t, 25)
	eve := w.person("Eve")
	b.knows(eve)
	a.say(b, "hello")
	a.queue(b, "again")
	s := a.next(b)
	if got := b.take(eve, s.out.Envelope); got.Status != wire.Status_STATUS_DROPPED {
		t.Errorf("an envelope by another account was answered %v", got.Status)
	}
	if !a.settle(b, s, b.take(a, s.out.Envelope)) {
		t.Error("the honest one does not open any more")
	}
}

// copyRows brings all rows of from into to, which is empty: a restored copy.
func copyRows(t *testing.T, from, to *store.DB) {
	t.Helper()
	err := from.View(func(src *store.Tx) error {
		return to.Update(func(dst *store.Tx) error {
			return errors.Join(
				copyTable(src, dst, store.PreKeys), copyTable(src, dst, store.Handshakes), copyTable(src, dst, store.Contacts),
				copyTable(src, dst, store.Sessions), copyTable(src, dst, store.SessionOwners), copyTable(src, dst, store.SkippedKeys),
				copyTable(src, dst, store.Outbox), copyTable(src, dst, store.Unacked), copyTable(src, dst, store.History),
				copyTable(src, dst, store.SeenIDs), copyTable(src, dst, store.ReceivedEnvelopes),
				copyTable(src, dst, store.SealingKeys), copyTable(src, dst, store.SeenSealed),
				copyTable(src, dst, store.PoolKeys), copyTable(src, dst, store.UsedOneTime),
			)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyTable[T any, P interface {
	*T
	proto.Message
}](src, dst *store.Tx, table store.Table[T, P]) error {
	for r, err := range table.Scan(src, nil, nil) {
		if err != nil {
			return err
		}
		if err := table.Put(dst, r.Key, r.Value); err != nil {
			return err
		}
	}
	return nil
}

// snapshot returns a copy of p's store.
func (p *person) snapshot(t *testing.T) *store.DB {
	t.Helper()
	db := must(store.OpenMemory(store.Config{Key: p.key, Rand: p.rand}, store.NewDisk()))(t)
	copyRows(t, p.db, db)
	return db
}

// restore puts a copy in the place of p's store.
func (p *person) restore(db *store.DB) {
	p.db.Close()
	p.db = db
	p.m = session.New(session.Config{Key: p.device, Account: p.account, Rand: p.rand, Observe: p.w})
}

// A store that comes back in an older state, noticed and not noticed: sessions
// renew by themselves, no (key, nonce) pair is used twice, and nothing that was
// sent afterwards or still waited is lost.
func TestRollback(t *testing.T) {
	for _, noticed := range []bool{true, false} {
		t.Run(fmt.Sprintf("noticed=%v", noticed), func(t *testing.T) {
			for seed := range uint64(20 / slower) {
				w, a, b := pair(t, 300+seed)
				for i := range 3 {
					a.say(b, fmt.Sprintf("old %d", i))
					b.say(a, fmt.Sprintf("old %d", i))
				}
				// What waits when the copy is made is sealed before it.
				if seed%2 == 0 {
					a.queue(b, "waiting")
					a.next(b)
				}
				old := a.snapshot(t)
				if seed%2 == 0 {
					a.flush(b, true)
				}
				for i := range w.rng.IntN(4) {
					if w.rng.IntN(2) == 0 {
						a.say(b, fmt.Sprintf("forgotten by Ada %d", i))
					} else {
						b.say(a, fmt.Sprintf("forgotten by Ada %d", i))
					}
				}
				wantB := map[string]bool{}
				for _, s := range b.read(a) {
					wantB[s] = true
				}
				b.queue(a, "on its way")
				b.next(a)

				a.restore(old)
				if noticed {
					for more := true; more; {
						a.update(func(tx *store.Tx) (err error) {
							more, err = a.m.ArchiveAll(tx, w.now)
							return err
						})
					}
					if a.ready(b) {
						t.Fatal("ready on a session that was rolled back")
					}
				}
				wantA := map[string]bool{"on its way": true}
				for _, s := range a.read(b) {
					wantA[s] = true
				}
				for i := range 4 {
					a.queue(b, fmt.Sprintf("new %d", i))
					b.queue(a, fmt.Sprintf("new %d", i))
					wantA[fmt.Sprintf("new %d", i)], wantB[fmt.Sprintf("new %d", i)] = true, true
					if w.rng.IntN(2) == 0 {
						a.flush(b, true)
						b.flush(a, true)
					} else {
						b.flush(a, true)
						a.flush(b, true)
					}
				}
				a.wantRead(b, wantA)
				b.wantRead(a, wantB)
				liveA, _ := a.sessions(b)
				liveB, _ := b.sessions(a)
				if len(liveA) == 0 || len(liveB) == 0 || liveA[0] != liveB[0] {
					t.Errorf("the two do not send on one session: %d and %d live", len(liveA), len(liveB))
				}
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

// Rolling back deletes one-time keys, which may have been used since.
func TestArchiveAllDropsOneTimeKeys(t *testing.T) {
	w, a, b := pair(t, 26)
	given := b.give(true)
	a.start(b, given)
	b.update(func(tx *store.Tx) error {
		_, err := b.m.ArchiveAll(tx, w.now)
		return err
	})
	a.queue(b, "hello")
	s := a.next(b)
	if got := b.take(a, s.out.Envelope); got.Error.GetReason() != wire.Reason_REASON_KEY_GONE {
		t.Errorf("a one-time key outlived a rollback: %v", got.Status)
	}
	if day := b.give(false).day; string(day) != string(given.day) {
		t.Error("a rollback replaced the day's bundle")
	}
}

// Ratchet state and message are committed together: a crash before the commit
// leaves neither, a crash after it both, and the same bytes give the same
// answer.
func TestCrashAroundTheCommit(t *testing.T) {
	broken := errors.New("the power fails")
	for _, first := range []bool{true, false} {
		t.Run(fmt.Sprintf("first=%v", first), func(t *testing.T) {
			_, a, b := pair(t, 27)
			if first {
				a.start(b, b.give(true))
			} else {
				a.say(b, "before")
				b.say(a, "before")
			}
			a.queue(b, "hello")
			s := a.next(b)
			restart := func() {
				b.disk.Crash()
				b.db.Close()
				b.open()
			}

			// Before.
			before := dump(t, b)
			b.disk.Fail(broken)
			if _, err := b.tryTake(a, s.out.Envelope); !errors.Is(err, broken) && !errors.Is(err, store.ErrReopen) {
				t.Fatalf("a failing disk: %v", err)
			}
			b.disk.Fail(nil)
			restart()
			if after := dump(t, b); after != before {
				t.Errorf("a crash before the commit changed rows: %v, was %v", after, before)
			}

			// After: the answer was never given.
			lost := b.take(a, s.out.Envelope)
			restart()
			again := b.take(a, s.out.Envelope)
			if again.Status != wire.Status_STATUS_DELIVERED || string(again.Ack) != string(lost.Ack) {
				t.Errorf("after the crash the same bytes were answered %v", again.Status)
			}
			if !a.settle(b, s, again) {
				t.Error("not delivered")
			}

			// The sender's side: what was sealed and not committed never left.
			a.queue(b, "more")
			a.disk.Fail(broken)
			if err := a.db.Update(func(tx *store.Tx) error {
				_, err := a.m.Seal(tx, a.w.now, b.account, must(envelope.MarshalContent(content(a, "unsent")))(t))
				return err
			}); err == nil {
				t.Fatal("a failing disk committed")
			}
			a.disk.Fail(nil)
			a.disk.Crash()
			a.db.Close()
			a.open()
			a.flush(b, true)
			want := map[string]bool{"hello": true, "more": true}
			if !first {
				want["before"] = true
			}
			b.wantRead(a, want)
			b.say(a, "and back")
		})
	}
}

// A peer that drops everything is suspected once an hour.
func TestSuspect(t *testing.T) {
	w, a, b := pair(t, 28)
	a.say(b, "before")
	a.queue(b, "hello")
	drop := &wire.Outcome{Status: wire.Status_STATUS_DROPPED}
	for range 3 {
		if !a.ready(b) {
			t.Fatal("suspected too early")
		}
		a.settle(b, a.next(b), drop)
	}
	if a.ready(b) {
		t.Fatal("not suspected after three drops")
	}
	a.start(b, b.give(true))
	for range 10 {
		a.settle(b, a.next(b), drop)
	}
	if !a.ready(b) {
		t.Error("suspected twice within the hour")
	}
	w.now = w.now.Add(protocol.RenewEvery)
	a.settle(b, a.next(b), drop)
	if a.ready(b) {
		t.Error("not suspected again after an hour")
	}
	a.flush(b, true)
	b.wantRead(a, map[string]bool{"before": true, "hello": true})
}

// Archived sessions are bounded in number and in time, and take their rows with
// them.
func TestArchivedSessionsAreBounded(t *testing.T) {
	w, a, b := pair(t, 29)
	for i := range protocol.MaxArchived + 5 {
		a.say(b, fmt.Sprintf("text %d", i))
		live, _ := a.sessions(b)
		a.update(func(tx *store.Tx) error {
			c, err := store.Contacts.Get(tx, store.ContactKey(b.account))
			if err != nil {
				return err
			}
			c.Renew, c.Replaces = true, live[0][:]
			return store.Contacts.Put(tx, store.ContactKey(b.account), c)
		})
		w.now = w.now.Add(time.Minute)
	}
	for _, p := range []struct{ me, peer *person }{{a, b}, {b, a}} {
		_, archived := p.me.sessions(p.peer)
		if len(archived) != min(protocol.MaxArchived, len(archived)) || len(archived) < protocol.MaxArchived-1 {
			t.Errorf("%s keeps %d archived sessions, want %d", p.me.name, len(archived), protocol.MaxArchived)
		}
		if n := dump(t, p.me); n[2] != n[3] {
			t.Errorf("%s has %d sessions and %d owners", p.me.name, n[2], n[3])
		}
	}

	// Valid for receiving until its life is over.
	b.knows(a)
	a.say(b, "last")
	live, _ := b.sessions(a)
	b.queue(a, "late")
	s := b.next(a)
	a.update(func(tx *store.Tx) error {
		k := store.SessionKey(b.account, b.device.Device(), live[0])
		row, err := store.Sessions.Get(tx, k)
		if err != nil {
			return err
		}
		row.Archived = w.now.UnixMilli()
		return store.Sessions.Put(tx, k, row)
	})
	w.now = w.now.Add(protocol.ArchivedLife)
	if got := a.take(b, s.out.Envelope); got.Error.GetReason() != wire.Reason_REASON_NO_SESSION {
		t.Errorf("an archived session opened after its life: %v", got.Status)
	}
	w.now = w.now.Add(-time.Millisecond)
	if got := a.take(b, s.out.Envelope); got.Status != wire.Status_STATUS_DELIVERED {
		t.Errorf("an archived session did not open in its life: %v", got.Status)
	}
}

// Live sessions are bounded too: a peer that opens one after the other gets no
// more than a few.
func TestLiveSessionsAreBounded(t *testing.T) {
	_, a, b := pair(t, 30)
	for i := range 20 {
		a.lose()
		a.say(b, fmt.Sprintf("text %d", i))
	}
	live, archived := b.sessions(a)
	if len(live) > 4 || len(archived) > protocol.MaxArchived {
		t.Errorf("%d live and %d archived sessions", len(live), len(archived))
	}
}

// Skipped message keys are rows: stored with the message that skipped them,
// deleted with the message that they open, and dead after their time.
func TestSkippedKeysAreRows(t *testing.T) {
	w, a, b := pair(t, 31)
	a.say(b, "before")
	var sealed [][]byte
	a.update(func(tx *store.Tx) error {
		for i := range 5 {
			o, err := a.m.Seal(tx, w.now, b.account, must(envelope.MarshalContent(content(a, fmt.Sprintf("text %d", i))))(t))
			if err != nil {
				return err
			}
			sealed = append(sealed, o.Envelope)
		}
		return nil
	})
	b.take(a, sealed[4])
	if n := dump(t, b)[4]; n != 4 {
		t.Errorf("%d skipped keys are stored, want 4", n)
	}
	b.take(a, sealed[1])
	if n := dump(t, b)[4]; n != 3 {
		t.Errorf("%d skipped keys are stored, want 3", n)
	}
	b.update(func(tx *store.Tx) error {
		for r := range store.SkippedKeys.Scan(tx, nil, nil) {
			if want := w.now.Add(protocol.SkippedLife).UnixMilli(); r.Value.Dies != want {
				t.Errorf("a skipped key dies at %d, want %d", r.Value.Dies, want)
			}
		}
		return nil
	})
	w.now = w.now.Add(protocol.SkippedLife)
	if got := b.take(a, sealed[0]); got.Status != wire.Status_STATUS_DROPPED {
		t.Errorf("a message whose key aged out was answered %v", got.Status)
	}
	b.wantRead(a, map[string]bool{"before": true, "text 4": true, "text 1": true})
}

// A device that left the manifest is not sent to and not listened to.
func TestDeviceMustBeInTheManifest(t *testing.T) {
	w, a, b := pair(t, 32)
	a.say(b, "hello")
	b.say(a, "hello")
	ak := identity.NewAccountKey(secret(b))
	other := w.person("Bob's new device")
	a.update(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(b.account))
		if err != nil {
			return err
		}
		// What the node accepted is not checked again, so any key may sign it here.
		c.Manifest = identity.SignManifest(ak, 2, []identity.DeviceEntry{{Key: other.device.Device(), DH: other.device.DH().Public()}})
		return store.Contacts.Put(tx, store.ContactKey(b.account), c)
	})
	if a.ready(b) {
		t.Error("ready to send to a device that left")
	}
	b.queue(a, "from a device that left")
	s := b.next(a)
	if got := a.take(b, s.out.Envelope); got.Status != wire.Status_STATUS_DROPPED {
		t.Errorf("a device that left was answered %v", got.Status)
	}
}

func TestBlockedIsDropped(t *testing.T) {
	_, a, b := pair(t, 33)
	a.say(b, "hello")
	b.update(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(a.account))
		if err != nil {
			return err
		}
		c.State = store.Contact_BLOCKED
		return store.Contacts.Put(tx, store.ContactKey(a.account), c)
	})
	a.queue(b, "on the known session")
	s := a.next(b)
	if got := b.take(a, s.out.Envelope); got.Status != wire.Status_STATUS_DROPPED {
		t.Errorf("a blocked account was answered %v", got.Status)
	}
	given := b.give(true)
	a.start(b, given)
	a.update(func(tx *store.Tx) error {
		o, err := a.m.Seal(tx, a.w.now, b.account, must(envelope.MarshalContent(content(a, "again")))(t))
		if err == nil {
			if got := b.take(a, o.Envelope); got.Status != wire.Status_STATUS_DROPPED {
				t.Errorf("a blocked account's first message was answered %v", got.Status)
			}
		}
		return err
	})
}

// Seal follows the lowest ID on both sides.
func TestLowestSessionSends(t *testing.T) {
	w, a, b := pair(t, 34)
	a.start(b, b.give(false))
	a.start(b, b.give(false))
	a.start(b, b.give(false))
	live, _ := a.sessions(b)
	if len(live) != 3 {
		t.Fatalf("%d sessions, want 3", len(live))
	}
	a.update(func(tx *store.Tx) error {
		o, err := a.m.Seal(tx, w.now, b.account, must(envelope.MarshalContent(content(a, "hello")))(t))
		if err == nil && o.Session != prekey.SessionID(live[0]) {
			t.Error("not sealed on the lowest session")
		}
		return err
	})
}

func BenchmarkSealAndOpen(b *testing.B) {
	w, a, p := pair(b, 35)
	a.say(p, "before")
	padded := must(envelope.MarshalContent(content(a, "hello")))(b)
	clear(w.seen)
	a.m = session.New(session.Config{Key: a.device, Account: a.account, Rand: a.rand}) // counts nothing
	b.ReportAllocs()
	for b.Loop() {
		var batch [64][]byte
		a.update(func(tx *store.Tx) error {
			for i := range batch {
				o, err := a.m.Seal(tx, w.now, p.account, padded)
				if err != nil {
					return err
				}
				batch[i] = o.Envelope
			}
			return nil
		})
		p.update(func(tx *store.Tx) error {
			for _, e := range batch {
				if _, err := p.m.Open(tx, w.now, &a.account, e); err != nil {
					return err
				}
			}
			return nil
		})
	}
	b.ReportMetric(float64(64*b.N)/b.Elapsed().Seconds(), "messages/s")
}
