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
	return c.start(true)
}

// start opens a session with the keys of the day, and with a one-time key if
// the other side is there.
func (c *wired) start(there bool) error {
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
	if there && c.l.fails() {
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
	if !there {
		one = nil
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
	if err := p.take(tx, o.Peer, c); err != nil {
		return nil, err
	}
	return &wire.Outcome{Status: wire.Status_STATUS_DELIVERED, Ack: o.Ack[:]}, nil
}

// take acts on a content that was opened, once.
func (p *person) take(tx *store.Tx, from identity.Account, c *envelope.Content) error {
	k := store.SeenKey(from, c.ID)
	if seen, err := store.SeenIDs.Has(tx, k); err != nil || seen {
		return err
	}
	if err := store.SeenIDs.Put(tx, k, &store.Seen{}); err != nil {
		return err
	}
	if c.Receipt != nil {
		return p.o.Receipt(tx, from, c.Receipt)
	}
	_, err := outbox.Append(tx, from, &store.Entry{Id: c.ID[:], From: from[:], Text: *c.Text, State: store.Entry_RECEIVED})
	return err
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
	p.know(q)
	p.o = outbox.New(outbox.Config{Store: p.db, Account: p.account, Sealer: p.m, Courier: &wired{l, p, q}, Rand: p.rand})
	p.run()
}

// know makes q a contact of p.
func (p *person) know(q *person) {
	p.t.Helper()
	err := p.db.Update(func(tx *store.Tx) error {
		return store.Contacts.Put(tx, store.ContactKey(q.account), &store.Contact{
			Account: q.account[:], Name: q.name, State: store.Contact_ACCEPTED, Manifest: q.manifest,
		})
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// run starts p's outbox.
func (p *person) run() {
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

// An office is three relays for everybody, which fail as often as they are told.
// It hands out what was left until the reader deletes it.
type office struct {
	mu    sync.Mutex
	rng   *rand.Rand
	fails int // percent of deposits
	boxes [3]map[identity.Account][]item
	store [3]byte
	took  int
}

// An item is an envelope, or an error that answers one.
type item struct {
	from     *person
	envelope []byte
	answer   *wire.DecryptionError
}

// A counter is the office as p sees it.
type counter struct {
	*office
	from *person
}

func (c counter) Leave(_ context.Context, to identity.Account, letters []outbox.Letter) (outbox.Left, error) {
	time.Sleep(200 * time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	left, err := outbox.Left{Relays: len(c.boxes)}, error(nil)
	for _, l := range letters {
		var copies []*store.Copy
		there := l.Copies
		for i := range c.boxes {
			relay := identity.Transport{byte(i + 1)}
			if len(there)+len(copies) == 2 || slices.ContainsFunc(there, func(c *store.Copy) bool { return string(c.Relay) == string(relay[:]) }) {
				continue
			}
			if c.rng.IntN(100) < c.fails {
				err = errRelay
				continue
			}
			c.took++
			c.boxes[i][to] = append(c.boxes[i][to], item{from: c.from, envelope: l.Envelope})
			copies = append(copies, &store.Copy{
				Relay: relay[:], Store: []byte{15: c.store[i]}, Queue: make([]byte, 32),
				Until: l.Expires.Add(-90 * time.Minute).Unix(), Stored: time.Now().Unix(),
			})
		}
		left.Copies = append(left.Copies, copies)
	}
	return left, err
}

// lose gives a relay an empty store.
func (f *office) lose(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boxes[i] = map[identity.Account][]item{}
	f.store[i]++
}

// take empties the boxes of p at one relay.
func (f *office) take(p *person, i int) []item {
	f.mu.Lock()
	defer f.mu.Unlock()
	items := f.boxes[i][p.account]
	delete(f.boxes[i], p.account)
	return items
}

// fetch takes what relays have for p.
func (p *person) fetch(f *office) {
	p.t.Helper()
	for i := range f.boxes {
		for _, it := range f.take(p, i) {
			err := p.db.Update(func(tx *store.Tx) error { return p.openRelayed(tx, f, it) })
			if err != nil {
				p.t.Errorf("%s: %v", p.name, err)
			}
		}
	}
}

func (p *person) openRelayed(tx *store.Tx, f *office, it item) error {
	now := time.Now()
	if it.answer != nil {
		_, err := p.m.HandleError(tx, now, it.from.account, envelope.Hash(it.answer.Envelope), it.answer)
		tx.OnCommit(func() { p.o.Kick(it.from.account) })
		return err
	}
	o, err := p.m.Open(tx, now, &it.from.account, it.envelope)
	var again *session.Duplicate
	var bad *session.Undecryptable
	switch {
	case errors.As(err, &bad):
		f.mu.Lock()
		defer f.mu.Unlock()
		f.boxes[2][it.from.account] = append(f.boxes[2][it.from.account], item{from: p, answer: bad.Answer})
		return nil
	case errors.As(err, &again), errors.Is(err, session.ErrDrop):
		return nil
	case err != nil:
		return err
	}
	c, err := envelope.ParseContent(o.Content)
	if err != nil {
		return err
	}
	if c.Receipt == nil {
		if err := p.o.Owe(tx, now, o.Peer, c.ID); err != nil {
			return err
		}
	}
	return p.take(tx, o.Peer, c)
}

// apart is the courier between people who are never online together: the other
// side's record is found, and nobody answers until they meet.
type apart struct {
	wired
	meet *bool
}

func (c *apart) Prepare(context.Context, identity.Account) error {
	time.Sleep(30 * time.Millisecond)
	if c.l.fails() {
		return errDown
	}
	return c.start(false)
}

func (c *apart) Deliver(ctx context.Context, a identity.Account, envelopes [][]byte) ([]*wire.Outcome, error) {
	if *c.meet {
		return c.wired.Deliver(ctx, a, envelopes)
	}
	time.Sleep(20 * time.Millisecond)
	return nil, errDown
}

// Two people are online two hours a day each, at different times, with relays
// that fail, of which one loses its store. After a week every text is there,
// once, and is known to be. Who loses all sessions loses the receipts that were
// left for them: those texts are known to be there when the two meet.
func TestPeopleWhoNeverMeet(t *testing.T) {
	for seed := range uint64(10 / min(slower, 5)) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 15))
			l := &line{rng: rand.New(rand.NewPCG(seed, 16)), lose: 20, seen: map[ratchet.Observation]int{}}
			f := &office{rng: rand.New(rand.NewPCG(seed, 17)), fails: 20}
			for i := range f.boxes {
				f.boxes[i] = map[identity.Account][]item{}
			}
			a, b := newPerson(t, "Ada", byte(2*seed), l), newPerson(t, "Bob", byte(2*seed+1), l)
			defer func() { a.db.Close(); b.db.Close() }()
			meet := false
			for _, p := range [][2]*person{{a, b}, {b, a}} {
				p[0].know(p[1])
				p[0].o = outbox.New(outbox.Config{
					Store: p[0].db, Account: p[0].account, Sealer: p[0].m, Courier: &apart{wired{l, p[0], p[1]}, &meet},
					Mailer: counter{f, p[0]}, Rand: p[0].rand,
				})
			}
			lost := seed%2 == 1
			said := map[*person][]string{}
			online := func(p, q *person, talks bool) {
				p.run()
				for i := range 120 {
					p.fetch(f)
					if talks && i < 60 && rng.IntN(12) == 0 {
						text := fmt.Sprintf("%s %03d", p.name, len(said[p]))
						p.say(q, text)
						said[p] = append(said[p], text)
					}
					time.Sleep(time.Minute)
				}
				p.stop()
			}
			for day := range 8 {
				online(a, b, day < 6)
				time.Sleep(10 * time.Hour)
				online(b, a, day < 6)
				time.Sleep(10 * time.Hour)
				if day == 2 {
					f.lose(1)
					for _, p := range []*person{a, b} {
						err := p.db.Update(func(tx *store.Tx) error {
							_, err := p.o.Lost(tx, identity.Transport{2}, [16]byte{15: f.store[1]})
							return err
						})
						if err != nil {
							t.Fatal(err)
						}
					}
				}
				if day == 3 && lost {
					b.lose()
				}
			}
			if lost {
				meet = true
				a.run()
				b.run()
				time.Sleep(time.Hour)
				a.stop()
				b.stop()
			}
			for _, c := range []struct{ p, q *person }{{a, b}, {b, a}} {
				shown, own := c.p.lines(c.q)
				slices.Sort(shown) // what a relay refused at first comes behind what it took
				if !slices.Equal(shown, said[c.q]) {
					t.Errorf("seed %d: %s was shown\n %q, want\n %q", seed, c.p.name, shown, said[c.q])
				}
				if !slices.Equal(own, said[c.p]) {
					t.Errorf("seed %d: %s knows of\n %q, want\n %q", seed, c.p.name, own, said[c.p])
				}
				if err := c.p.db.View(func(tx *store.Tx) error {
					for r := range store.Outbox.Scan(tx, nil, nil) {
						t.Errorf("seed %d: a row of %s is left: control %v, receipt %v", seed, c.p.name, r.Value.Control, r.Value.Receipt)
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			if len(said[a]) < 10 || len(said[b]) < 10 {
				t.Errorf("seed %d: they hardly talked", seed)
			}
			for o, n := range l.seen {
				if n > 1 {
					t.Errorf("seed %d: a (key, nonce) pair was used %d times at position %d", seed, n, o.N)
				}
			}
			if texts := len(said[a]) + len(said[b]); f.took > 8*texts {
				t.Errorf("seed %d: %d deposits for %d texts", seed, f.took, texts)
			}
		})
	}
}
