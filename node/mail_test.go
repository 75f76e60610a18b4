package node

import (
	"context"
	"crypto/rand"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"

	"starling/dht/record"
	"starling/node/relay/spool"
	"starling/node/relay/station"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
)

// A volunteer runs a relay.
type volunteer struct {
	*station.Station // of now; nil while stopped
	w                *world
	cfg              station.Config
	rows             *store.Disk
	home             string // if set, the folder of rows, under their key, and messages
	key              store.Key
	end              func()
}

// moves makes a relay start anew, in a folder, as if its disk had been lost.
func (v *volunteer) moves(home string) {
	v.w.Helper()
	v.stop()
	var err error
	if v.key, err = store.NewKey(rand.Reader); err != nil {
		v.w.Fatal(err)
	}
	v.home, v.cfg.Disk, v.cfg.Dir = home, nil, filepath.Join(home, "messages")
	v.start()
}

// volunteer opens a relay for everybody, on loopback.
func (w *world) volunteer(bootstrap ...string) *volunteer {
	w.Helper()
	return w.volunteerAt([]string{"/ip4/127.0.0.1/tcp/0"}, nil, bootstrap)
}

// volunteerIn opens a relay for everybody in a network in memory.
func (w *world) volunteerIn(m *memory, i int, bootstrap ...string) *volunteer {
	w.Helper()
	listen, speaks := m.place(i)
	return w.volunteerAt(listen, speaks, bootstrap)
}

func (w *world) volunteerAt(listen []string, speaks []libp2p.Option, bootstrap []string) *volunteer {
	w.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		w.Fatal(err)
	}
	v := &volunteer{w: w, rows: store.NewDisk(), cfg: station.Config{
		Key: key, Disk: spool.NewDisk(1), Quota: 64 << 20, Open: true, Listen: listen, Transports: speaks,
		Bootstrap: bootstrap, Local: true, NoCircuits: true, NoPortMap: true, NoAutoNAT: true, NoAddressDiscovery: true,
	}}
	v.cfg.Limits.WorkBits = 4
	w.Cleanup(v.stop)
	v.start()
	return v
}

// self returns the relay's key, also while it is stopped.
func (v *volunteer) self() []byte {
	v.w.Helper()
	raw, err := v.cfg.Key.GetPublic().Raw()
	if err != nil {
		v.w.Fatal(err)
	}
	return raw
}

// loseDisk gives a relay an empty disk. Its key is kept.
func (v *volunteer) loseDisk() {
	v.w.Helper()
	v.stop()
	v.rows, v.cfg.Disk = store.NewDisk(), spool.NewDisk(1)
	v.start()
}

func (v *volunteer) db() *store.DB {
	v.w.Helper()
	var db *store.DB
	var err error
	if v.home != "" {
		db, err = store.Open(store.Config{Dir: filepath.Join(v.home, "rows"), Key: v.key})
	} else {
		db, err = store.OpenMemory(store.Config{}, v.rows)
	}
	if err != nil {
		v.w.Fatal(err)
	}
	return db
}

func (v *volunteer) start() {
	v.w.Helper()
	cfg := v.cfg
	cfg.Store = v.db()
	var err error
	if v.Station, err = station.Open(v.w.ctx, cfg); err != nil {
		v.w.Fatalf("opening a relay: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	s := v.Station
	go func() { ended <- s.Run(ctx) }()
	v.end = func() {
		cancel()
		if err := <-ended; err != nil {
			v.w.Errorf("running a relay: %v", err)
		}
		if err := s.Close(); err != nil {
			v.w.Errorf("closing a relay: %v", err)
		}
	}
	if len(v.cfg.Listen) > 0 { // the next start is at the same place
		v.cfg.Listen = nil
		for _, a := range s.Addresses() {
			v.cfg.Listen = append(v.cfg.Listen, a.Addr)
		}
	}
}

func (v *volunteer) stop() {
	if v.Station != nil {
		v.end()
		v.Station = nil
	}
}

func (v *volunteer) link() string {
	v.w.Helper()
	l, err := v.Link(false, true)
	if err != nil {
		v.w.Fatal(err)
	}
	return l.String()
}

// uses names relays, and waits until all of them are in use.
func (p *person) uses(vs ...*volunteer) {
	p.w.Helper()
	for _, v := range vs {
		if _, err := p.AddRelay(p.w.ctx, v.link()); err != nil {
			p.w.Fatal(err)
		}
	}
	p.w.eventually("the relays of "+p.name, func() bool {
		list, err := p.Relays(p.w.ctx)
		return err == nil && len(list) == len(vs) && !slices.ContainsFunc(list, func(r Relay) bool { return r.State != "used" })
	})
}

// knows waits until a contact's mailboxes are known.
func (p *person) knows(q *person, mailboxes int) {
	p.w.Helper()
	p.w.eventually("mailboxes of "+q.name, func() bool { return p.mailboxesOf(q) == mailboxes })
}

// mailboxesOf counts those that are known.
func (p *person) mailboxesOf(q *person) (n int) {
	p.w.Helper()
	err := p.store.View(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(q.id))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err == nil {
			n = len(openMail(c.Mail, true).Mailboxes)
		}
		return err
	})
	if err != nil {
		p.w.Fatal(err)
	}
	return n
}

// stored waits until a message is at so many relays.
func (p *person) stored(id string, copies int) Message {
	p.w.Helper()
	tick := time.NewTicker(p.w.tick)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(p.w.ctx, p.w.patience)
	defer cancel()
	for {
		m, err := p.WaitMessage(p.w.ctx, id, "stored", time.Millisecond)
		if err != nil {
			p.w.Fatal(err)
		}
		if m.State == "stored" && m.Copies == copies {
			return m
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			why, err := p.Doctor(context.Background(), m.Chat)
			p.w.Fatalf("%s: message is %s (%s) at %d relays; the doctor says %+v, %v", p.name, m.State, m.Reason, m.Copies, why, err)
		}
	}
}

// The two are never online together, and a message arrives, and its receipt.
func TestMessageWaitsAtRelays(t *testing.T) {
	w := newWorld(t)
	one, two := w.volunteer(), w.volunteer()
	a := w.person("Ada", quick)
	b := w.person("Bo", quick, func(p *person) { p.cfg.ReadReceipts = true })
	a.meet(b)
	a.uses(one, two)
	b.uses(one, two)
	a.knows(b, 2)
	b.knows(a, 2)

	b.stop()
	begin := time.Now()
	id := a.say("Bo", "while you were away")
	m := a.stored(id, 2)
	if life := m.Until.Sub(begin); m.Relays != 2 || life > protocol.MessageLife || life < protocol.MessageLife-24*time.Hour {
		t.Errorf("stored at %d of %d relays until %s", m.Copies, m.Relays, m.Until)
	}
	if want := "at 2 of 2 relays, until " + m.Until.UTC().Format("2 January 2006"); m.Reason != want {
		t.Errorf("the user reads %q, want %q", m.Reason, want)
	}
	a.stop()

	b.start()
	b.until(textOf("Ada", "while you were away"))
	if list, err := b.History(w.ctx, "Ada", 1, ""); err != nil || b.MarkRead(w.ctx, "Ada", list[0].ID) != nil {
		t.Fatalf("reading: %v, %v", list, err)
	}
	w.eventually("the receipts to be left", func() bool { return b.owes(a) == 0 })
	b.stop()

	a.start()
	if m, err := a.WaitMessage(w.ctx, id, "read", patience); err != nil || m.State != "read" || m.Reason != "" || m.Copies != 0 {
		t.Fatalf("once the receipt is there: %+v, %v", m, err)
	}
	var states []string
	if err := a.Events(w.ctx, 0, false, func(e Event) error {
		if e.Type == "state" && e.ID == id && (len(states) == 0 || states[len(states)-1] != e.State) {
			states = append(states, e.State)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(states) > 0 && states[0] == "queued" { // with what it waits for, if that was known in time
		states = states[1:]
	}
	// Both receipts may be in one.
	if got := strings.Join(states, " "); got != "stored delivered read" && got != "stored read" {
		t.Errorf("the journal has the states %q", got)
	}
	b.start()
	b.heard("Ada", "while you were away")
}

// The doctor says where a message is: at which relays, since when, and what was
// acknowledged before it.
func TestDoctorKnowsWhereAMessageIs(t *testing.T) {
	w := newWorld(t)
	one, two := w.volunteer(), w.volunteer()
	a, b := w.person("Ada", quick), w.person("Bo", quick)
	a.meet(b)
	b.uses(one, two)
	a.knows(b, 2)
	says := func(check string, wants ...string) {
		t.Helper()
		list, err := a.Doctor(w.ctx, "Bo")
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(f Finding) bool { return f.Check == check })
		if i < 0 {
			t.Fatalf("nothing about %s in %+v", check, list)
		}
		for _, want := range wants {
			if !strings.Contains(list[i].Text+"; "+list[i].Hint, want) {
				t.Errorf("of %s it says %+v, not %q", check, list[i], want)
			}
		}
	}
	says("receipts", "Bo has acknowledged no message yet")
	a.delivered(a.say("Bo", "you are here"))
	says("receipts", "the newest message that Bo acknowledged was sent less than a minute ago")
	says("queue", "no message to Bo waits")
	says("reach", "this node")
	says("record", "no record of Bo was read yet")
	if got := recordDay(20000, time.Unix(20003*86400+60, 0)); got != "4 October 2024, 3 days ago" {
		t.Errorf("a record of three days ago is of %s", got)
	}
	b.stop()
	a.stored(a.say("Bo", "while you were away"), 2)
	for _, v := range []*volunteer{one, two} {
		says("relays", "Bo takes messages at 2 relays while away", shortID(v.Status().PeerID)+" keeps 1")
	}
	says("queue", "1 message to Bo not delivered yet, the oldest sent less than a minute ago; at relays: 1")

	// A relay that does not answer is named.
	twoID := shortID(two.Status().PeerID)
	two.stop()
	id := a.say("Bo", "and again")
	a.stored(id, 1)
	w.eventually("the doctor to name the relay that does not answer", func() bool {
		list, err := a.Doctor(w.ctx, "Bo")
		return err == nil && slices.ContainsFunc(list, func(f Finding) bool {
			return f.Check == "relays" && f.Level == "warn" && strings.Contains(f.Hint, "relay "+twoID)
		})
	})
}

// published waits until a record with so many contact boxes is out.
func (p *person) published(boxes int) {
	p.w.Helper()
	var lookup identity.LookupSecret
	err := p.store.View(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err == nil {
			copy(lookup[:], me.LookupSecret)
		}
		return err
	})
	if err != nil {
		p.w.Fatal(err)
	}
	p.w.eventually("the record of "+p.name, func() bool {
		body, err := p.dht.Lookup(p.w.ctx, p.id, lookup, record.Version{})
		return err == nil && len(body.Mail.GetMailboxes()) == boxes
	})
}

// told waits until all is left at relays that a contact is to know, among it so
// many mailboxes.
func (p *person) told(q *person, mailboxes int) {
	p.w.Helper()
	p.w.eventually("what "+q.name+" is to know", func() bool {
		done := p.owes(q) == 0
		err := p.store.Update(func(tx *store.Tx) error {
			me, err := store.Selves.Get(tx, store.SelfKey())
			if err != nil {
				return err
			}
			c, err := store.Contacts.Get(tx, store.ContactKey(q.id))
			if err != nil {
				return err
			}
			profile, err := p.profile(tx, me, c.Account)
			if err != nil {
				return err
			}
			done = done && len(profile.Mail.GetMailboxes()) == mailboxes && slices.Equal(c.ProfileSent, p.profileMark(me, profile))
			for row, err := range store.Outbox.Scan(tx, store.OutboxOf(q.id), nil) {
				if err != nil {
					return err
				}
				done = done && len(row.Value.Copies) > 0
			}
			return nil
		})
		return err == nil && done
	})
}

// owes counts the receipts that a contact is owed and that were not left yet.
func (p *person) owes(q *person) int {
	p.w.Helper()
	n := 0
	err := p.store.View(func(tx *store.Tx) error {
		for row, err := range store.Outbox.Scan(tx, store.OutboxOf(q.id), nil) {
			if err != nil {
				return err
			}
			if row.Value.Receipt {
				n++
			}
		}
		for _, err := range store.OwedReceipts.Scan(tx, store.OwedTo(q.id), nil) {
			if err != nil {
				return err
			}
			n++
		}
		return nil
	})
	if err != nil {
		p.w.Fatal(err)
	}
	return n
}

// A stranger's first message arrives, and the answer, though the two are never
// online together: by a token (T2), and by work through a public link.
func TestFirstContactWhileAway(t *testing.T) {
	for _, public := range []bool{false, true} {
		name := "one-use"
		if public {
			name = "public"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			one := w.volunteer()
			net := one.Status().Bootstrap
			two := w.volunteer(net...)
			on := func(p *person) { p.cfg.Bootstrap = net }
			b := w.person("Bo", quick, on)
			b.uses(one, two)
			link := b.invite(public)
			b.published(2)
			b.stop()

			a := w.person("Ada", quick, on)
			a.uses(one, two)
			a.add(link, "Bo")
			id := a.say("Bo", "we have not met")
			a.stored(id, 2)
			a.stop()

			b.start()
			if public {
				b.until(requestOf("Ada"))
				if _, err := b.AcceptContact(w.ctx, "Ada", ""); err != nil {
					t.Fatal(err)
				}
			}
			b.until(textOf("Ada", "we have not met"))
			if n := b.mailboxesOf(a); n != 2 {
				t.Errorf("the first message named %d relays", n)
			}
			b.told(a, 2)
			b.stop()

			a.start()
			a.delivered(id)
			a.until(contactIs("Bo", "accepted"))
			a.knows(b, 2)
			reply := a.say("Bo", "good that we have")
			a.stored(reply, 2)
			a.stop()
			b.start()
			b.until(textOf("Ada", "good that we have"))
		})
	}
}
