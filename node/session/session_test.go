package session_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/ratchet"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// A world is some people and one clock.
type world struct {
	t    testing.TB
	rng  *rand.Rand
	now  time.Time
	seen map[ratchet.Observation]int // by what determines key and nonce: Ciphertext is zero
	n    int                         // messages sealed

	sealed map[ratchet.Observation]bool
	opened map[ratchet.Observation]int
}

func newWorld(t testing.TB, seed uint64) *world {
	t.Helper()
	return &world{
		t:    t,
		rng:  rand.New(rand.NewPCG(seed, 1)),
		now:  time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		seen: map[ratchet.Observation]int{}, sealed: map[ratchet.Observation]bool{}, opened: map[ratchet.Observation]int{},
	}
}

// Sealed counts (key, nonce) pairs.
func (w *world) Sealed(o ratchet.Observation) {
	w.n++
	w.sealed[o] = true
	o.Ciphertext = [32]byte{}
	if w.seen[o]++; w.seen[o] > 1 {
		w.t.Errorf("a (key, nonce) pair was used twice, at position %d of a chain", o.N)
	}
}

// Opened checks that somebody here sealed it.
func (w *world) Opened(o ratchet.Observation) {
	w.opened[o]++
	if !w.sealed[o] {
		w.t.Errorf("a message opened that nobody sealed, at position %d of a chain", o.N)
	}
}

// Refused is for the node to call.
func (w *world) Repeated() {}

func (w *world) Refused(_, _ [32]byte) {}

// A person is one account on one device.
type person struct {
	w        *world
	t        testing.TB
	name     string
	root     *identity.AccountKey
	account  identity.Account
	seed     identity.Secret // of device
	device   *identity.DeviceKey
	manifest []byte
	rand     *rand.ChaCha8
	key      store.Key
	disk     *store.Disk
	db       *store.DB
	m        *session.Manager
}

func (w *world) person(name string) *person {
	w.t.Helper()
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(w.rng.Uint32())
	}
	p := &person{w: w, t: w.t, name: name, rand: rand.NewChaCha8(seed), disk: store.NewDisk()}
	account, device, dh := secret(p), secret(p), must(x25519.Generate(p.rand))(w.t)
	p.root, p.seed = identity.NewAccountKey(account), device
	p.account, p.device = p.root.Account(), identity.NewDeviceKey(device, dh)
	p.manifest = p.signed(1)
	p.key = must(store.NewKey(p.rand))(w.t)
	p.open()
	w.t.Cleanup(func() { p.db.Close() })
	return p
}

// signed returns a manifest that lists p's device alone.
func (p *person) signed(generation uint64) []byte {
	return identity.SignManifest(p.root, generation, []identity.DeviceEntry{{Key: p.device.Device(), DH: p.device.DH().Public()}})
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func secret(p *person) identity.Secret { return must(identity.NewSecret(p.rand))(p.t) }

// open opens the store and starts with an empty memory, as after a restart.
func (p *person) open() {
	p.t.Helper()
	p.db = must(store.OpenMemory(store.Config{Key: p.key, Rand: p.rand}, p.disk))(p.t)
	p.m = session.New(session.Config{Key: p.device, Account: p.account, Rand: p.rand, Observe: p.w})
}

func (p *person) update(fn func(tx *store.Tx) error) {
	p.t.Helper()
	if err := p.db.Update(fn); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

func (p *person) view(fn func(tx *store.Tx) error) {
	p.t.Helper()
	if err := p.db.View(fn); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

// knows makes q a contact of p, with what an invite link and its record tell.
func (p *person) knows(q *person) {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		return store.Contacts.Put(tx, store.ContactKey(q.account), &store.Contact{
			Account: q.account[:], Name: q.name, State: store.Contact_ACCEPTED, Manifest: q.manifest,
		})
	})
}

func (p *person) contact(q *person) (c *store.Contact) {
	p.t.Helper()
	p.view(func(tx *store.Tx) (err error) {
		c, err = store.Contacts.Get(tx, store.ContactKey(q.account))
		return err
	})
	return c
}

// bundles are what a peer gives a stranger.
type bundles struct{ day, oneTime []byte }

// give makes bundles: with a one-time key (T1) or without (T3).
func (p *person) give(oneTime bool) (b bundles) {
	p.t.Helper()
	p.update(func(tx *store.Tx) (err error) {
		if b.day, err = p.m.DayBundle(tx, p.w.now, prekey.DayOf(p.w.now)); err != nil || !oneTime {
			return err
		}
		b.oneTime, err = p.m.MintOneTime(tx, p.w.now)
		if errors.Is(err, session.ErrBusy) {
			b.oneTime, err = nil, nil
		}
		return err
	})
	return b
}

func (p *person) profile() identity.Profile { return identity.Profile{Name: p.name} }

// start opens a session with q from its bundles.
func (p *person) start(q *person, b bundles) {
	p.t.Helper()
	m := must(identity.OpenManifest(q.manifest, q.account, p.w.now))(p.t)
	day := must(prekey.OpenBundle(b.day, q.account, q.device.Device(), wire.Role_ROLE_DAY, p.w.now))(p.t)
	var oneTime *prekey.Bundle
	if b.oneTime != nil {
		oneTime = must(prekey.OpenBundle(b.oneTime, q.account, q.device.Device(), wire.Role_ROLE_ONE_TIME, p.w.now))(p.t)
	}
	p.update(func(tx *store.Tx) error {
		return p.m.Start(tx, p.w.now, m, q.device.Device(), day, oneTime, prekey.Introduction{Manifest: p.manifest, Profile: p.profile()}, nil)
	})
}

func (p *person) ready(q *person) (ok bool) {
	p.t.Helper()
	p.view(func(tx *store.Tx) (err error) {
		ok, err = p.m.Ready(tx, p.w.now, q.account)
		return err
	})
	return ok
}

// queue puts a text for q into the outbox, as node/outbox does.
func (p *person) queue(q *person, text string) {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(q.account))
		if err != nil {
			return err
		}
		c.Seq++
		content := envelope.Content{Sent: p.w.now, Expires: p.w.now.Add(protocol.MessageLife), Seq: c.Seq, Text: &text}
		p.rand.Read(content.ID[:])
		padded, err := envelope.MarshalContent(&content)
		if err != nil {
			return err
		}
		out := &store.Outgoing{Id: content.ID[:], Content: padded, Expires: content.Expires.UnixMilli()}
		return errors.Join(
			store.Contacts.Put(tx, store.ContactKey(q.account), c),
			store.Outbox.Put(tx, store.OutboxKey(q.account, c.Seq), out),
		)
	})
}

// A sent is an outbox row on its way.
type sent struct {
	order uint64
	out   *store.Outgoing
}

// next returns the first content for q, nil if there is none, sealed if a
// session is ready.
func (p *person) next(q *person) (s *sent) {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		for r, err := range store.Outbox.Scan(tx, store.OutboxOf(q.account), nil) {
			if err != nil {
				return err
			}
			s = &sent{r.Key.Order(), r.Value}
			break
		}
		if s == nil || len(s.out.Envelope) > 0 {
			return nil
		}
		err := p.m.SealOutgoing(tx, p.w.now, q.account, s.out)
		if errors.Is(err, session.ErrNoSession) {
			return nil
		} else if err != nil {
			return err
		}
		return errors.Join(
			store.Outbox.Put(tx, store.OutboxKey(q.account, s.order), s.out),
			store.Unacked.Put(tx, store.UnackedKey([32]byte(s.out.Hash)), &store.Unacknowledged{Account: q.account[:], Order: s.order}),
		)
	})
	return s
}

// take is a node's receiver: it opens, shows once, and answers after the
// commit.
func (p *person) take(from *person, b []byte) *wire.Outcome {
	p.t.Helper()
	o, err := p.tryTake(from, b)
	if err != nil {
		p.t.Fatalf("%s receives: %v", p.name, err)
	}
	return o
}

func (p *person) tryTake(from *person, b []byte) (*wire.Outcome, error) {
	answer := &wire.Outcome{}
	err := p.db.Update(func(tx *store.Tx) error {
		o, err := p.m.Open(tx, p.w.now, &from.account, b)
		var again *session.Duplicate
		var bad *session.Undecryptable
		switch {
		case errors.As(err, &again):
			answer.Status, answer.Ack = wire.Status_STATUS_DELIVERED, again.Ack[:]
			return nil
		case errors.As(err, &bad):
			answer.Status, answer.Error = wire.Status_STATUS_ERROR, bad.Answer
			return nil
		case errors.Is(err, session.ErrDrop):
			answer.Status = wire.Status_STATUS_DROPPED
			return nil
		case err != nil:
			return err
		}
		c, err := envelope.ParseContent(o.Content)
		if err != nil {
			return err
		}
		answer.Status, answer.Ack = wire.Status_STATUS_DELIVERED, o.Ack[:]
		k := store.SeenKey(o.Peer, c.ID)
		if seen, err := store.SeenIDs.Has(tx, k); seen || err != nil {
			return err
		}
		line := uint64(1)
		for r := range store.History.ScanBack(tx, store.HistoryOf(o.Peer), nil) {
			line = r.Key.Order() + 1
			break
		}
		return errors.Join(
			store.SeenIDs.Put(tx, k, &store.Seen{}),
			store.History.Put(tx, store.HistoryKey(o.Peer, line), &store.Entry{Id: c.ID[:], Text: *c.Text, From: o.Peer[:]}),
		)
	})
	return answer, err
}

// settle writes down what q answered, and reports whether the content arrived.
func (p *person) settle(q *person, s *sent, answer *wire.Outcome) (delivered bool) {
	p.t.Helper()
	hash := envelope.Hash(s.out.Hash)
	p.update(func(tx *store.Tx) error {
		row, err := store.Outbox.Get(tx, store.OutboxKey(q.account, s.order))
		if errors.Is(err, store.ErrNotFound) || err == nil && string(row.Hash) != string(s.out.Hash) {
			return nil
		} else if err != nil {
			return err
		}
		switch answer.Status {
		case wire.Status_STATUS_DELIVERED:
			if string(answer.Ack) != string(row.Ack) {
				p.t.Errorf("%s: an acknowledgement of %s does not verify", p.name, q.name)
				return nil
			}
			delivered = true
			return errors.Join(
				p.m.Acknowledged(tx, p.w.now, [32]byte(row.Session)),
				store.Unacked.Delete(tx, store.UnackedKey(hash)),
				store.Outbox.Delete(tx, store.OutboxKey(q.account, s.order)),
			)
		case wire.Status_STATUS_ERROR:
			_, err := p.m.HandleError(tx, p.w.now, q.account, hash, answer.Error)
			return err
		case wire.Status_STATUS_DROPPED:
			if row.Dropped++; row.Dropped >= 3 {
				_, err := p.m.Suspect(tx, p.w.now, q.account, hash)
				return err
			}
			return store.Outbox.Put(tx, store.OutboxKey(q.account, s.order), row)
		}
		return nil
	})
	return delivered
}

// flush sends all that p has for q, renewing as needed, and fails the test if
// that takes too many attempts.
func (p *person) flush(q *person, oneTime bool) {
	p.t.Helper()
	for range 200 {
		s := p.next(q)
		if s == nil {
			return
		}
		if len(s.out.Envelope) == 0 {
			p.start(q, q.give(oneTime))
			continue
		}
		p.settle(q, s, q.take(p, s.out.Envelope))
	}
	p.t.Fatalf("%s: the outbox for %s does not drain", p.name, q.name)
}

// say sends one text to q.
func (p *person) say(q *person, text string) {
	p.t.Helper()
	p.queue(q, text)
	p.flush(q, true)
}

// read returns the texts that p was shown of q, in order.
func (p *person) read(q *person) (texts []string) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		for r, err := range store.History.Scan(tx, store.HistoryOf(q.account), nil) {
			if err != nil {
				return err
			}
			texts = append(texts, r.Value.Text)
		}
		return nil
	})
	return texts
}

// wantRead checks that p was shown exactly these texts of q, in any order.
func (p *person) wantRead(q *person, want map[string]bool) {
	p.t.Helper()
	got := map[string]int{}
	for _, s := range p.read(q) {
		got[s]++
	}
	for s := range want {
		if got[s] != 1 {
			p.t.Errorf("%s was shown %q %d times, want once", p.name, s, got[s])
		}
	}
	for s := range got {
		if !want[s] {
			p.t.Errorf("%s was shown %q, which nobody sent", p.name, s)
		}
	}
}

// sessions returns p's sessions with q.
func (p *person) sessions(q *person) (live, archived [][32]byte) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		for r, err := range store.Sessions.Scan(tx, store.SessionsOf(q.account), nil) {
			if err != nil {
				return err
			}
			if r.Value.Archived == 0 {
				live = append(live, r.Key.Session())
			} else {
				archived = append(archived, r.Key.Session())
			}
		}
		return nil
	})
	return live, archived
}

// pair is two people who know each other.
func pair(t testing.TB, seed uint64) (*world, *person, *person) {
	t.Helper()
	w := newWorld(t, seed)
	a, b := w.person("Ada"), w.person("Bob")
	a.knows(b)
	b.knows(a)
	return w, a, b
}

func texts(format string, n int) map[string]bool {
	m := map[string]bool{}
	for i := range n {
		m[fmt.Sprintf(format, i)] = true
	}
	return m
}
