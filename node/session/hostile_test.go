package session_test

import (
	"testing"

	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// thief returns somebody with q's account key and other keys in the place of
// the device's, of which the signing key goes by the name of q's own if same
// is set: nothing in a handshake is signed with it.
func (w *world) thief(q *person, same bool, generation uint64) *person {
	w.t.Helper()
	p := w.person("a thief of " + q.name + "'s account key")
	p.root, p.account = q.root, q.account
	if same {
		p.device = identity.NewDeviceKey(q.seed, must(x25519.Generate(p.rand))(w.t))
	}
	p.manifest = p.signed(generation)
	p.m = session.New(session.Config{Key: p.device, Account: p.account, Rand: p.rand, Observe: w})
	return p
}

// changeContact changes the row that p has of q.
func (p *person) changeContact(q *person, change func(c *store.Contact)) {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(q.account))
		if err != nil {
			return err
		}
		change(c)
		return store.Contacts.Put(tx, store.ContactKey(q.account), c)
	})
}

// A thief of an account key puts a DH key of its own beside the key of a
// device that is known. Nothing is encrypted to it before the manifest that
// says so is accepted, and nothing that it says counts once it is refused.
func TestDeviceIsBothItsKeys(t *testing.T) {
	w, a, b := pair(t, 40)
	thief := w.thief(b, true, 2)
	thief.knows(a)
	thief.start(a, a.give(true))
	thief.queue(a, "it is me")
	s := thief.next(a)
	// The manifest is newer than the accepted one: whether it is accepted is
	// for the node to decide, which has not.
	if got := a.take(thief, s.out.Envelope); got.Status != wire.Status_STATUS_DELIVERED {
		t.Fatalf("a newer manifest was answered %v", got.Status)
	}
	if a.ready(b) {
		t.Error("ready to send to a DH key that is in no accepted manifest")
	}
	thief.settle(a, s, &wire.Outcome{Status: wire.Status_STATUS_DROPPED})
	a.update(func(tx *store.Tx) error {
		o, err := thief.seal(a, "and again")
		if err != nil {
			return err
		}
		if _, err := a.m.Open(tx, w.now, nil, o.Envelope); err != session.ErrDrop {
			t.Errorf("a DH key that is in no manifest kept was answered %v", err)
		}
		return nil
	})
}

// seal seals a text outside of the outbox.
func (p *person) seal(q *person, text string) (o session.Sealed, err error) {
	p.update(func(tx *store.Tx) error {
		o, err = p.m.Seal(tx, p.w.now, q.account, must(envelope.MarshalContent(content(p, text)))(p.t))
		return nil
	})
	return o, err
}

// A manifest that the newest one known has overtaken brings no device in, even
// if the newest still waits for the user and the accepted one is older.
func TestOvertakenManifestBringsNoDevice(t *testing.T) {
	w, a, b := pair(t, 41)
	gone := w.thief(b, false, 2)
	newest := w.thief(b, false, 3)
	a.changeContact(b, func(c *store.Contact) { c.State, c.HeldManifest = store.Contact_HELD, newest.manifest })
	for _, p := range []struct {
		*person
		want wire.Status
	}{{gone, wire.Status_STATUS_DROPPED}, {newest, wire.Status_STATUS_DELIVERED}} {
		p.knows(a)
		p.start(a, a.give(true))
		p.queue(a, "hello")
		if got := a.take(p.person, p.next(a).out.Envelope); got.Status != p.want {
			t.Errorf("generation %d was answered %v, want %v", must(identity.OpenManifest(p.manifest, b.account, w.now))(t).Generation, got.Status, p.want)
		}
	}
}

// skipping returns the last of n+1 first messages of a fresh session.
func (p *person) skipping(q *person, n int) []byte {
	p.t.Helper()
	p.start(q, q.give(false))
	var o session.Sealed
	for range n + 1 {
		var err error
		if o, err = p.seal(q, "x"); err != nil {
			p.t.Fatal(err)
		}
	}
	return o.Envelope
}

// stored counts p's skipped keys and sessions.
func (p *person) stored() (keys, sessions int) {
	p.view(func(tx *store.Tx) error {
		for range store.SkippedKeys.Scan(tx, nil, nil) {
			keys++
		}
		for range store.Sessions.Scan(tx, nil, nil) {
			sessions++
		}
		return nil
	})
	return keys, sessions
}

// One envelope of a stranger must not cost thousands of rows.
func TestStrangersSkipLittle(t *testing.T) {
	for name, test := range map[string]struct {
		contact *store.Contact
		skip    int
		want    wire.Status
	}{
		"a batch":            {nil, protocol.MaxBatch, wire.Status_STATUS_DELIVERED},
		"more":               {nil, protocol.MaxBatch + 1, wire.Status_STATUS_ERROR},
		"more, of a request": {&store.Contact{State: store.Contact_REQUEST}, protocol.MaxBatch + 1, wire.Status_STATUS_ERROR},
		"more, of a contact": {&store.Contact{State: store.Contact_ACCEPTED}, protocol.MaxBatch + 1, wire.Status_STATUS_DELIVERED},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 42)
			a, b := w.person("Ada"), w.person("Bob")
			a.knows(b)
			if c := test.contact; c != nil {
				c.Account, c.Manifest = a.account[:], a.manifest
				b.update(func(tx *store.Tx) error { return store.Contacts.Put(tx, store.ContactKey(a.account), c) })
			}
			e := a.skipping(b, test.skip)
			b.update(func(tx *store.Tx) error {
				_, err := b.m.Open(tx, w.now, nil, e)
				got := wire.Status_STATUS_DELIVERED
				if _, ok := err.(*session.Undecryptable); ok {
					got = wire.Status_STATUS_ERROR
				}
				if got != test.want {
					t.Errorf("%d skipped keys: %v (%v), want %v", test.skip, got, err, test.want)
				}
				return nil
			})
		})
	}
}

// A contact who opens session after session, from device after device, makes
// us keep a bounded number of rows.
func TestDevicesThatLeftTakeTheirRowsAlong(t *testing.T) {
	w, a, b := pair(t, 43)
	most := 0
	for n := range 6 {
		p := w.thief(b, false, uint64(2+n))
		p.knows(a)
		e := p.skipping(a, 1500)
		a.update(func(tx *store.Tx) error {
			o, err := a.m.Open(tx, w.now, nil, e)
			if _, refused := err.(*session.Undecryptable); refused {
				return nil
			}
			if err != nil || o.New == nil {
				t.Errorf("the first message of device %d: %v", n, err)
			}
			return err
		})
		a.changeContact(b, func(c *store.Contact) { c.Manifest = p.manifest })
		keys, sessions := a.stored()
		most = max(most, keys)
		if keys > 2*protocol.MaxSkip || sessions > 3 {
			t.Errorf("after device %d: %d skipped keys and %d sessions", n, keys, sessions)
		}
	}
	if most < 1500 {
		t.Errorf("a contact could skip no more than %d", most)
	}
}

// All sessions with one account share a bound on skipped keys. Beyond it the
// sender is told to start again, which needs none.
func TestSkippedKeysOfAnAccountAreBounded(t *testing.T) {
	w, a, b := pair(t, 44)
	for _, test := range []struct {
		skip   int
		refuse bool
	}{{1500, false}, {1500, false}, {1500, true}, {1000, false}, {1, true}, {0, false}} {
		p := w.thief(b, false, 1) // b itself, which has lost all sessions
		p.device, p.manifest = b.device, b.manifest
		p.m = session.New(session.Config{Key: p.device, Account: p.account, Rand: p.rand, Observe: w})
		p.knows(a)
		e := p.skipping(a, test.skip)
		a.update(func(tx *store.Tx) error {
			_, err := a.m.Open(tx, w.now, nil, e)
			u, refused := err.(*session.Undecryptable)
			if refused != test.refuse || refused && u.Answer.Reason != wire.Reason_REASON_CANNOT_OPEN {
				t.Errorf("%d more skipped keys: %v", test.skip, err)
			}
			return nil
		})
	}
	if keys, _ := a.stored(); keys != 2*protocol.MaxSkip {
		t.Errorf("%d keys are stored, want %d", keys, 2*protocol.MaxSkip)
	}
}
