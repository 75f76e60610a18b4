package session_test

import (
	"errors"
	"testing"
	"time"

	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
)

func TestFirstContact(t *testing.T) {
	for name, oneTime := range map[string]bool{"T1": true, "T3": false} {
		t.Run(name, func(t *testing.T) {
			w, a, b := pair(t, 1)
			a.start(b, b.give(oneTime))
			a.queue(b, "hello")
			s := a.next(b)
			e := must(envelope.Parse(s.out.Envelope))(t)
			if e.Handshake == nil || (len(e.Handshake.OneTimeKey) > 0) != oneTime {
				t.Fatalf("first envelope carries the wrong handshake: %v", e.Handshake != nil)
			}
			if !a.settle(b, s, b.take(a, s.out.Envelope)) {
				t.Fatal("the first message was not delivered")
			}
			// Acknowledged: the handshake is sent along no more.
			a.queue(b, "again")
			s = a.next(b)
			if e := must(envelope.Parse(s.out.Envelope))(t); e.Handshake != nil {
				t.Error("an acknowledged session still sends its handshake")
			}
			a.settle(b, s, b.take(a, s.out.Envelope))
			b.say(a, "hi")
			b.wantRead(a, map[string]bool{"hello": true, "again": true})
			a.wantRead(b, map[string]bool{"hi": true})
			if w.n != 3 {
				t.Errorf("the observer saw %d messages, want 3", w.n)
			}
			// Used up: the one-time key, and nothing else.
			days, oneTimes := 0, 0
			b.view(func(tx *store.Tx) error {
				for r := range store.PreKeys.Scan(tx, nil, nil) {
					if r.Value.Day != 0 {
						days++
					} else {
						oneTimes++
					}
				}
				return nil
			})
			if days != protocol.DaysAhead+1 || oneTimes != 0 {
				t.Errorf("%d days and %d one-time keys are left, want %d and 0", days, oneTimes, protocol.DaysAhead+1)
			}
		})
	}
}

func TestStrangerIntroducesThemselves(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.person("Ada"), w.person("Bob")
	a.knows(b)
	token := identity.Token{1, 2, 3}
	m := must(identity.OpenManifest(b.manifest, b.account, w.now))(t)
	given := b.give(true)
	day := must(prekey.OpenBundle(given.day, b.account, b.device.Device(), wire.Role_ROLE_DAY, w.now))(t)
	a.update(func(tx *store.Tx) error {
		intro := prekey.Introduction{Manifest: a.manifest, Profile: a.profile(), Token: &token}
		return a.m.Start(tx, w.now, m, b.device.Device(), day, nil, intro, nil)
	})
	a.queue(b, "hello")
	s := a.next(b)
	b.update(func(tx *store.Tx) error {
		o, err := b.m.Open(tx, w.now, nil, s.out.Envelope)
		if err != nil {
			return err
		}
		if o.Peer != a.account || o.New == nil || o.New.Profile.Name != "Ada" {
			t.Error("the introduction does not name its sender")
		}
		if !o.CheckToken(token) || o.CheckToken(identity.Token{9}) {
			t.Error("the token is not checked")
		}
		return nil
	})
}

// A replayed handshake: the same transcript in other bytes opens nothing, and
// nobody is told.
func TestReplayedHandshakeIsRefused(t *testing.T) {
	for name, oneTime := range map[string]bool{"T1": true, "T3": false} {
		t.Run(name, func(t *testing.T) {
			_, a, b := pair(t, 3)
			a.start(b, b.give(oneTime))
			a.queue(b, "hello")
			s := a.next(b)
			first := b.take(a, s.out.Envelope)

			// The same bytes get the same answer.
			if again := b.take(a, s.out.Envelope); again.Status != wire.Status_STATUS_DELIVERED || string(again.Ack) != string(first.Ack) {
				t.Errorf("the same bytes again were answered %v", again.Status)
			}
			// The same handshake under another session ID, and the same message
			// in an envelope without it.
			e := must(envelope.Parse(s.out.Envelope))(t)
			for _, replay := range [][]byte{
				envelope.Seal([32]byte{1}, e.Handshake, e.Message),
				envelope.Seal([32]byte(e.Session), nil, e.Message),
			} {
				if got := b.take(a, replay); got.Status != wire.Status_STATUS_DROPPED || got.Error != nil {
					t.Errorf("a replay was answered %v", got.Status)
				}
			}
			if live, archived := b.sessions(a); len(live) != 1 || len(archived) != 0 {
				t.Errorf("Bob has %d and %d sessions, want 1 and 0", len(live), len(archived))
			}
			b.wantRead(a, map[string]bool{"hello": true})
		})
	}
}

// A known transcript whose session is gone is dropped without an error.
func TestKnownTranscriptWithoutItsSessionIsDropped(t *testing.T) {
	for name, oneTime := range map[string]bool{"T1": true, "T3": false} {
		t.Run(name, func(t *testing.T) {
			_, a, b := pair(t, 4)
			a.start(b, b.give(oneTime))
			a.queue(b, "hello")
			first := a.next(b)
			b.take(a, first.out.Envelope)
			b.update(func(tx *store.Tx) error {
				for r := range store.Sessions.Scan(tx, nil, nil) {
					id := r.Key.Session()
					if err := errors.Join(store.Sessions.Delete(tx, r.Key), store.SessionOwners.Delete(tx, store.SessionOwnerKey(id))); err != nil {
						return err
					}
				}
				// The memory of envelopes may have gone with it.
				for r := range store.ReceivedEnvelopes.Scan(tx, nil, nil) {
					if err := store.ReceivedEnvelopes.Delete(tx, r.Key); err != nil {
						return err
					}
				}
				return nil
			})
			if got := b.take(a, first.out.Envelope); got.Status != wire.Status_STATUS_DROPPED || got.Error != nil {
				t.Errorf("a known transcript without its session was answered %v", got.Status)
			}
			if live, archived := b.sessions(a); len(live)+len(archived) != 0 {
				t.Error("a replay opened a session")
			}
		})
	}
}

// A first message whose ratchet part does not open changes nothing; the honest
// one still opens after it.
func TestFailedFirstMessageChangesNothing(t *testing.T) {
	_, a, b := pair(t, 5)
	a.start(b, b.give(true))
	a.queue(b, "hello")
	s := a.next(b)
	e := must(envelope.Parse(s.out.Envelope))(t)
	bad := append([]byte(nil), e.Message...)
	bad[len(bad)-1] ^= 1
	before := dump(t, b)
	got := b.take(a, envelope.Seal([32]byte(e.Session), e.Handshake, bad))
	if got.Status != wire.Status_STATUS_ERROR || got.Error.Reason != wire.Reason_REASON_CANNOT_OPEN {
		t.Errorf("a first message that does not open was answered %v", got.Status)
	}
	if after := dump(t, b); after != before {
		t.Error("a first message that does not open changed rows")
	}
	if !a.settle(b, s, b.take(a, s.out.Envelope)) {
		t.Error("the honest first message does not open any more")
	}
}

// dump counts the rows that a session could leave behind.
func dump(t *testing.T, p *person) (n [6]int) {
	t.Helper()
	p.view(func(tx *store.Tx) error {
		for range store.PreKeys.Scan(tx, nil, nil) {
			n[0]++
		}
		for range store.Handshakes.Scan(tx, nil, nil) {
			n[1]++
		}
		for range store.Sessions.Scan(tx, nil, nil) {
			n[2]++
		}
		for range store.SessionOwners.Scan(tx, nil, nil) {
			n[3]++
		}
		for range store.SkippedKeys.Scan(tx, nil, nil) {
			n[4]++
		}
		for range store.ReceivedEnvelopes.Scan(tx, nil, nil) {
			n[5]++
		}
		return nil
	})
	return n
}

// An introduction whose tag does not verify is dropped without an error, by
// whomever it comes.
func TestUnprovenIntroductionIsDropped(t *testing.T) {
	_, a, b := pair(t, 6)
	a.start(b, b.give(true))
	a.queue(b, "hello")
	s := a.next(b)
	for name, change := range map[string]func(hs *wire.Handshake){
		"introduction": func(hs *wire.Handshake) { hs.Introduction[40] ^= 1 },
		"ephemeral":    func(hs *wire.Handshake) { hs.Ephemeral[3] ^= 1 },
		"ciphertext":   func(hs *wire.Handshake) { hs.Ciphertext[3] ^= 1 },
		"replaces":     func(hs *wire.Handshake) { hs.Replaces = make([]byte, 32) },
	} {
		e := must(envelope.Parse(s.out.Envelope))(t)
		change(e.Handshake)
		if got := b.take(a, envelope.Seal([32]byte(e.Session), e.Handshake, e.Message)); got.Status != wire.Status_STATUS_DROPPED {
			t.Errorf("changed %s: answered %v, want DROPPED", name, got.Status)
		}
	}
	if !a.settle(b, s, b.take(a, s.out.Envelope)) {
		t.Error("the honest first message does not open any more")
	}
}

// A one-time key that died before the first message came: the peer is told, and
// the same content arrives on a fresh session, the hour notwithstanding.
func TestOneTimeKeyGone(t *testing.T) {
	w, a, b := pair(t, 7)
	for i := range 3 {
		b.update(func(tx *store.Tx) error { return nil })
		a.queue(b, "hello "+string(rune('a'+i)))
		a.start(b, b.give(true))
		s := a.next(b)
		w.now = w.now.Add(protocol.OneTimeLife)
		answer := b.take(a, s.out.Envelope)
		if answer.Status != wire.Status_STATUS_ERROR || answer.Error.Reason != wire.Reason_REASON_KEY_GONE {
			t.Fatalf("a first message with a dead one-time key was answered %v", answer.Status)
		}
		a.settle(b, s, answer)
		if a.ready(b) {
			t.Fatal("a session whose key is gone is still sent on")
		}
		if a.contact(b).Renewed != 0 {
			t.Error("a key that was gone counts against the hour")
		}
		// Once a hash: the same error again does nothing.
		a.update(func(tx *store.Tx) error {
			acted, err := a.m.HandleError(tx, w.now, b.account, envelope.Hash(s.out.Hash), answer.Error)
			if acted {
				t.Error("the same error was acted on twice")
			}
			return err
		})
	}
	a.flush(b, true)
	b.wantRead(a, map[string]bool{"hello a": true, "hello b": true, "hello c": true})
}

// A day's key that died, and a one-time key that did, close a session that
// nobody acknowledged for new contents beforehand.
func TestStaleSessionIsNotSentOn(t *testing.T) {
	for _, c := range []struct {
		name    string
		oneTime bool
		life    time.Duration
	}{
		{"T1", true, protocol.OneTimeLife},
		{"T3", false, 36 * time.Hour}, // noon to the end of the day, and the skew
	} {
		t.Run(c.name, func(t *testing.T) {
			w, a, b := pair(t, 8)
			a.start(b, b.give(c.oneTime))
			w.now = w.now.Add(c.life - time.Second)
			if !a.ready(b) {
				t.Error("the session is not sent on while its keys live")
			}
			w.now = w.now.Add(time.Second)
			if a.ready(b) {
				t.Error("the session is sent on although its keys may be gone")
			}
			a.say(b, "hello")
			b.wantRead(a, map[string]bool{"hello": true})
			w.now = w.now.Add(30 * 24 * time.Hour)
			if !a.ready(b) {
				t.Error("an acknowledged session ended")
			}
		})
	}
}

func TestOneTimeKeysAreBounded(t *testing.T) {
	w, _, b := pair(t, 9)
	b.update(func(tx *store.Tx) error {
		for range session.MaxOneTime {
			if _, err := b.m.MintOneTime(tx, w.now); err != nil {
				return err
			}
		}
		if _, err := b.m.MintOneTime(tx, w.now); !errors.Is(err, session.ErrBusy) {
			t.Errorf("minting beyond the bound: %v, want ErrBusy", err)
		}
		_, err := b.m.MintOneTime(tx, w.now.Add(protocol.OneTimeLife))
		return err
	})
}

func TestDaysAreMadeAheadAndDie(t *testing.T) {
	w, a, b := pair(t, 10)
	today := prekey.DayOf(w.now)
	var ahead []byte
	b.update(func(tx *store.Tx) (err error) {
		if _, err = b.m.DayBundle(tx, w.now, today); err != nil {
			return err
		}
		if ahead, err = b.m.DayBundle(tx, w.now, today+protocol.DaysAhead); err != nil {
			return err
		}
		if _, err := b.m.DayBundle(tx, w.now, today+protocol.DaysAhead+1); err == nil {
			t.Error("a day beyond those ahead was made")
		}
		return nil
	})
	// A restart finds the same days.
	b.m = session.New(session.Config{Key: b.device, Account: b.account, Rand: b.rand, Observe: w})
	b.update(func(tx *store.Tx) error {
		again, err := b.m.DayBundle(tx, w.now, today+protocol.DaysAhead)
		if string(again) != string(ahead) {
			t.Error("a day was signed twice")
		}
		return err
	})
	// Opened at the last moment of its life, and not at its end.
	a.start(b, b.give(false))
	a.queue(b, "hello")
	s := a.next(b)
	w.now = prekey.DayStart(today).Add(protocol.DayKeyLife)
	answer := b.take(a, s.out.Envelope)
	if answer.Status != wire.Status_STATUS_ERROR || answer.Error.Reason != wire.Reason_REASON_KEY_GONE {
		t.Errorf("a message to a dead day was answered %v", answer.Status)
	}
	w.now = w.now.Add(-time.Millisecond)
	if answer := b.take(a, s.out.Envelope); answer.Status != wire.Status_STATUS_DELIVERED {
		t.Errorf("a message to a living day was answered %v", answer.Status)
	}
}
