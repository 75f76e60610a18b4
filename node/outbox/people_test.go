package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"starling/node/outbox"
	"starling/node/session"
	"starling/node/store"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/ratchet"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// A person is a store, sessions and an outbox: a node without a network.
type person struct {
	t        *testing.T
	name     string
	account  identity.Account
	manifest []byte
	db       *store.DB
	m        *session.Manager
	o        *outbox.Outbox
	rand     *lockedRand
	stop     func()
}

// A line joins two people and fails as often as it is told.
type line struct {
	mu   sync.Mutex
	rng  *rand.Rand
	lose int // percent of calls that fail before, and as many that fail after
	seen map[ratchet.Observation]int
}

func (l *line) fails() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rng.IntN(100) < l.lose
}

func (l *line) Sealed(o ratchet.Observation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o.Ciphertext = [32]byte{}
	l.seen[o]++
}

func (l *line) Opened(ratchet.Observation) {}
func (l *line) Repeated()                  {}
func (l *line) Refused(_, _ [32]byte)      {}

// A wired is the courier from one person to another.
type wired struct {
	l        *line
	from, to *person
}

func (c *wired) Prepare(context.Context, identity.Account) error {
	time.Sleep(30 * time.Millisecond)
	if c.l.fails() {
		return errDown
	}
	now := time.Now()
	var signedDay, signedOne []byte
	err := c.to.db.Update(func(tx *store.Tx) (err error) {
		if signedDay, err = c.to.m.DayBundle(tx, now, prekey.DayOf(now)); err != nil {
			return err
		}
		signedOne, err = c.to.m.MintOneTime(tx, now)
		return err
	})
	if err != nil {
		return err
	}
	if c.l.fails() {
		return errDown
	}
	m, err := identity.OpenManifest(c.to.manifest, c.to.account, now)
	if err != nil {
		return err
	}
	d := m.Devices[0].Key
	day, err := prekey.OpenBundle(signedDay, m.Account, d, wire.Role_ROLE_DAY, now)
	if err != nil {
		return err
	}
	one, err := prekey.OpenBundle(signedOne, m.Account, d, wire.Role_ROLE_ONE_TIME, now)
	if err != nil {
		return err
	}
	return c.from.db.Update(func(tx *store.Tx) error {
		intro := prekey.Introduction{Manifest: c.from.manifest, Profile: identity.Profile{Name: c.from.name}}
		return c.from.m.Start(tx, time.Now(), m, d, day, one, intro, nil)
	})
}

func (c *wired) Deliver(_ context.Context, _ identity.Account, envelopes [][]byte) ([]*wire.Outcome, error) {
	time.Sleep(20 * time.Millisecond)
	if c.l.fails() {
		return nil, errDown
	}
	outcomes, err := c.to.receive(c.from, envelopes)
	if err == nil && c.l.fails() {
		err = errDown
	}
	return outcomes, err
}

// receive opens what it can, in order, and looks at nothing behind what it
// cannot.
func (p *person) receive(from *person, envelopes [][]byte) ([]*wire.Outcome, error) {
	var outcomes []*wire.Outcome
	err := p.db.Update(func(tx *store.Tx) error {
		for _, e := range envelopes {
			o, err := p.open(tx, from, e)
			if err != nil {
				return err
			}
			outcomes = append(outcomes, o)
			if o.Status != wire.Status_STATUS_DELIVERED {
				break
			}
		}
		return nil
	})
	for len(outcomes) < len(envelopes) {
		outcomes = append(outcomes, &wire.Outcome{Status: wire.Status_STATUS_BUSY})
	}
	return outcomes, err
}

func (p *person) open(tx *store.Tx, from *person, b []byte) (*wire.Outcome, error) {
	o, err := p.m.Open(tx, time.Now(), &from.account, b)
	var again *session.Duplicate
	var bad *session.Undecryptable
	switch {
	case errors.As(err, &again):
		return &wire.Outcome{Status: wire.Status_STATUS_DELIVERED, Ack: again.Ack[:]}, nil
	case errors.As(err, &bad):
		return &wire.Outcome{Status: wire.Status_STATUS_ERROR, Error: bad.Answer}, nil
	case errors.Is(err, session.ErrDrop):
		return &wire.Outcome{Status: wire.Status_STATUS_DROPPED}, nil
	case err != nil:
		return nil, err
	}
	c, err := envelope.ParseContent(o.Content)
	if err != nil {
		return nil, err
	}
	k := store.SeenKey(o.Peer, c.ID)
	if seen, err := store.SeenIDs.Has(tx, k); err != nil {
		return nil, err
	} else if !seen {
		if err := store.SeenIDs.Put(tx, k, &store.Seen{}); err != nil {
			return nil, err
		}
		e := &store.Entry{Id: c.ID[:], From: o.Peer[:], Text: *c.Text, State: store.Entry_RECEIVED}
		if _, err := outbox.Append(tx, o.Peer, e); err != nil {
			return nil, err
		}
	}
	return &wire.Outcome{Status: wire.Status_STATUS_DELIVERED, Ack: o.Ack[:]}, nil
}

func newPerson(t *testing.T, name string, seed byte, l *line) *person {
	t.Helper()
	p := &person{t: t, name: name, rand: &lockedRand{r: rand.NewChaCha8([32]byte{seed, 7})}}
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	account, err := identity.NewSecret(p.rand)
	check(err)
	device, err := identity.NewSecret(p.rand)
	check(err)
	dh, err := x25519.Generate(p.rand)
	check(err)
	ak, dk := identity.NewAccountKey(account), identity.NewDeviceKey(device, dh)
	p.account = ak.Account()
	p.manifest = identity.SignManifest(ak, 1, []identity.DeviceEntry{{Key: dk.Device(), DH: dh.Public()}})
	key, err := store.NewKey(p.rand)
	check(err)
	p.db, err = store.OpenMemory(store.Config{Key: key, Rand: p.rand}, store.NewDisk())
	check(err)
	p.m = session.New(session.Config{Key: dk, Account: p.account, Rand: p.rand, Observe: l})
	return p
}

// meet makes p run with q as its only contact.
func (p *person) meet(q *person, l *line) {
	p.t.Helper()
	err := p.db.Update(func(tx *store.Tx) error {
		return store.Contacts.Put(tx, store.ContactKey(q.account), &store.Contact{
			Account: q.account[:], Name: q.name, State: store.Contact_ACCEPTED, Manifest: q.manifest,
		})
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.o = outbox.New(outbox.Config{Store: p.db, Account: p.account, Sealer: p.m, Courier: &wired{l, p, q}, Rand: p.rand})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.o.Run(ctx) }()
	p.stop = func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("%s: Run: %v", p.name, err)
		}
	}
}

func (p *person) say(q *person, text string) {
	p.t.Helper()
	err := p.db.Update(func(tx *store.Tx) error {
		c := &envelope.Content{Text: &text}
		p.rand.Read(c.ID[:])
		_, _, err := p.o.Enqueue(tx, time.Now(), q.account, c)
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// lines returns p's chat with q: what p was shown, and what became of its own.
func (p *person) lines(q *person) (shown, own []string) {
	p.t.Helper()
	err := p.db.View(func(tx *store.Tx) error {
		for r, err := range store.History.Scan(tx, store.HistoryOf(q.account), nil) {
			switch {
			case err != nil:
				return err
			case r.Value.State == store.Entry_RECEIVED:
				shown = append(shown, r.Value.Text)
			case r.Value.State == store.Entry_DELIVERED:
				own = append(own, r.Value.Text)
			default:
				own = append(own, r.Value.Text+" "+r.Value.State.String())
			}
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return shown, own
}

// Two people write to each other over a line that loses calls and answers,
// from the first message on, which both may send; now and then one loses all
// sessions. Every text arrives once, in order, and is known to have arrived.
func TestTwoPeople(t *testing.T) {
	for seed := range uint64(40 / slower) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 5))
			l := &line{rng: rand.New(rand.NewPCG(seed, 6)), lose: int(seed % 30), seen: map[ratchet.Observation]int{}}
			a, b := newPerson(t, "Ada", byte(2*seed), l), newPerson(t, "Bob", byte(2*seed+1), l)
			defer func() { a.db.Close(); b.db.Close() }()
			a.meet(b, l)
			b.meet(a, l)
			var fromA, fromB []string
			for i := range 40 {
				text := fmt.Sprintf("text %02d", i)
				if rng.IntN(2) == 0 {
					a.say(b, text)
					fromA = append(fromA, text)
				} else {
					b.say(a, text)
					fromB = append(fromB, text)
				}
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
				if seed%4 == 3 && i%13 == 12 {
					p := []*person{a, b}[rng.IntN(2)]
					p.lose()
				}
			}
			time.Sleep(24 * time.Hour)
			shownA, ownA := a.lines(b)
			shownB, ownB := b.lines(a)
			for _, c := range []struct {
				what      string
				got, want []string
			}{
				{"Ada was shown", shownA, fromB},
				{"Bob was shown", shownB, fromA},
				{"Ada knows delivered", ownA, fromA},
				{"Bob knows delivered", ownB, fromB},
			} {
				if !slices.Equal(c.got, c.want) {
					t.Errorf("seed %d: %s\n %q, want\n %q", seed, c.what, c.got, c.want)
				}
			}
			a.stop()
			b.stop()
			for o, n := range l.seen {
				if n > 1 {
					t.Errorf("seed %d: a (key, nonce) pair was used %d times at position %d", seed, n, o.N)
				}
			}
		})
	}
}

// lose deletes every session, as if the rows were damaged.
func (p *person) lose() {
	p.t.Helper()
	err := p.db.Update(func(tx *store.Tx) error {
		for r, err := range store.Sessions.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if err := store.Sessions.Delete(tx, r.Key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
}
