package node

import (
	"bytes"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"starling/node/relay/client"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/relay"
)

// Lives of relays and of the people who name them, in virtual time: weeks take
// seconds.

// away lets time pass while relays are switched off, which costs nothing, and
// switches them on again.
func away(d time.Duration, vs ...*volunteer) {
	for _, v := range vs {
		v.stop()
	}
	time.Sleep(d)
	for _, v := range vs {
		v.start()
	}
}

// secrets returns the private halves that open what strangers send.
func (p *person) secrets() (all [][]byte) {
	p.w.Helper()
	err := p.store.View(func(tx *store.Tx) error {
		for r, err := range store.PreKeys.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			all = append(all, r.Value.X25519Seed, r.Value.KemSeed)
		}
		for r, err := range store.PoolKeys.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			all = append(all, r.Value.X25519Seed, r.Value.KemSeed)
		}
		for r, err := range store.SealingKeys.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			all = append(all, r.Value.Seed)
		}
		return nil
	})
	if err != nil {
		p.w.Fatal(err)
	}
	return all
}

// holds counts those of some byte strings that are in any row of a person's
// store, but for some tables.
func (p *person) holds(some [][]byte, but ...string) int {
	p.w.Helper()
	var rows [][]byte
	err := p.store.View(func(tx *store.Tx) error {
		for name, read := range map[string]func() error{
			"selves":       func() error { return gather(tx, store.Selves, &rows) },
			"prekeys":      func() error { return gather(tx, store.PreKeys, &rows) },
			"handshakes":   func() error { return gather(tx, store.Handshakes, &rows) },
			"contacts":     func() error { return gather(tx, store.Contacts, &rows) },
			"names":        func() error { return gather(tx, store.Names, &rows) },
			"invites":      func() error { return gather(tx, store.Invites, &rows) },
			"sessions":     func() error { return gather(tx, store.Sessions, &rows) },
			"owners":       func() error { return gather(tx, store.SessionOwners, &rows) },
			"skipped":      func() error { return gather(tx, store.SkippedKeys, &rows) },
			"outbox":       func() error { return gather(tx, store.Outbox, &rows) },
			"unacked":      func() error { return gather(tx, store.Unacked, &rows) },
			"history":      func() error { return gather(tx, store.History, &rows) },
			"messages":     func() error { return gather(tx, store.Messages, &rows) },
			"seen":         func() error { return gather(tx, store.SeenIDs, &rows) },
			"received":     func() error { return gather(tx, store.ReceivedEnvelopes, &rows) },
			"journal":      func() error { return gather(tx, store.Journal, &rows) },
			"peers":        func() error { return gather(tx, store.Peers, &rows) },
			"meta":         func() error { return gather(tx, store.Meta, &rows) },
			"own relays":   func() error { return gather(tx, store.OwnRelays, &rows) },
			"own queues":   func() error { return gather(tx, store.OwnQueues, &rows) },
			"answers":      func() error { return gather(tx, store.Answers, &rows) },
			"owed":         func() error { return gather(tx, store.OwedReceipts, &rows) },
			"sealing keys": func() error { return gather(tx, store.SealingKeys, &rows) },
			"seen sealed":  func() error { return gather(tx, store.SeenSealed, &rows) },
			"pool keys":    func() error { return gather(tx, store.PoolKeys, &rows) },
			"used":         func() error { return gather(tx, store.UsedOneTime, &rows) },
		} {
			if slices.Contains(but, name) {
				continue
			}
			if err := read(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		p.w.Fatal(err)
	}
	if some == nil {
		return len(rows)
	}
	n := 0
	for _, s := range some {
		if slices.ContainsFunc(rows, func(row []byte) bool { return bytes.Contains(row, s) }) {
			n++
		}
	}
	return n
}

// gather appends the keys and the contents of all rows of a table.
func gather[T any, P interface {
	*T
	proto.Message
}](tx *store.Tx, table store.Table[T, P], rows *[][]byte) error {
	for r, err := range table.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		b, err := proto.Marshal(r.Value)
		if err != nil {
			return err
		}
		*rows = append(*rows, append(slices.Clone(r.Key), b...))
	}
	return nil
}

// Bo is away for 13 days. His relays publish his record, a stranger's first
// message waits there, and he reads it when he is back. When the time of his keys
// is over, none of them is in his store.
func TestOwnerAwayForThirteenDays(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		one := w.volunteerIn(m, 1)
		defer one.stop()
		net := one.Status().Bootstrap
		two := w.volunteerIn(m, 2, net...)
		defer two.stop()
		on := func(p *person) { p.cfg.Bootstrap = net }
		b := w.person("Bo", m.at(3), on)
		defer b.stop()
		b.uses(one, two)
		link := w.bare(b.invite(true))
		b.published(2)
		old := b.secrets()
		if n := b.holds(old); n != len(old) || n < 2*protocol.PoolKeys {
			t.Fatalf("%d of %d private halves found in the store", n, len(old))
		}
		b.stop()

		away(13*24*time.Hour, one, two)
		a := w.person("Ada", m.at(4), on)
		defer a.stop()
		a.uses(one, two)
		a.add(link, "Bo")
		id := a.say("Bo", "thirteen days later")
		sent := a.stored(id, 2)
		if d := time.Until(sent.Until); d < protocol.BoxLife-3*time.Hour || d > protocol.BoxLife {
			t.Errorf("it is kept for %v", d)
		}
		a.stop()

		b.start()
		b.until(requestOf("Ada"))
		if _, err := b.AcceptContact(w.ctx, "Ada", ""); err != nil {
			t.Fatal(err)
		}
		b.until(textOf("Ada", "thirteen days later"))
		b.told(a, 2)
		b.stop()
		a.start()
		a.delivered(id)
		a.stop()

		// Keys of a pool are the last to die. Sealing keys live on until a later
		// one was given out, which it is now.
		away(protocol.PoolKeyLife+16*24*time.Hour, one, two)
		b.start()
		time.Sleep(10 * time.Minute) // at its start a node sweeps all tables
		if n := b.holds(old); n != 0 {
			t.Errorf("%d of %d old private halves are still there", n, len(old))
		}
		if n := len(b.secrets()); n == 0 {
			t.Error("and there are no others")
		}
	})
}

// After the 14 days for which records were made ahead nobody finds Bo any more,
// and is told so in plain words: at once where they look, and for good when their
// message is over.
func TestOwnerAwayForFifteenDays(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		one := w.volunteerIn(m, 1)
		defer one.stop()
		net := one.Status().Bootstrap
		on := func(p *person) { p.cfg.Bootstrap = net }
		b := w.person("Bo", m.at(3), on)
		defer b.stop()
		b.uses(one)
		link := w.bare(b.invite(true))
		b.published(1)
		b.stop()

		away((protocol.DaysAhead+2)*24*time.Hour, one)
		a := w.person("Ada", m.at(4), on)
		defer a.stop()
		a.add(link, "Bo")
		id := a.say("Bo", "is anybody there")
		const plain = "two weeks after they were last online"
		w.eventually("the reason", func() bool { return strings.Contains(a.contact("Bo").Detail, plain) })
		got, err := a.WaitMessage(w.ctx, id, "stored", time.Millisecond)
		if err != nil || got.State != "queued" || !strings.Contains(got.Reason, plain) {
			t.Errorf("the message is %s: %q, %v", got.State, got.Reason, err)
		}
		why, err := a.Doctor(w.ctx, "Bo")
		if err != nil || !slices.ContainsFunc(why, func(f Finding) bool { return strings.Contains(f.Text+f.Hint, plain) }) {
			t.Errorf("the doctor says %+v, %v", why, err)
		}
		a.stop()
		away(protocol.MessageLife-time.Hour, one)
		a.start()
		w.eventually("the reason again", func() bool { return strings.Contains(a.contact("Bo").Detail, plain) })
		time.Sleep(time.Until(got.Expires))
		w.eventually("the failure", func() bool {
			got, err = a.WaitMessage(w.ctx, id, "delivered", time.Millisecond)
			return err == nil && got.State == "failed"
		})
		if !strings.Contains(got.Reason, "not delivered within 14 days") || !strings.Contains(got.Reason, plain) {
			t.Errorf("the message failed: %q", got.Reason)
		}
	})
}

// twoAway are Ada and Bo, who are contacts, in a network with three relays. Ada
// names those that hers say, Bo those that his say.
func twoAway(w *world, m *memory, hers, his []int) (a, b *person, relays []*volunteer) {
	w.Helper()
	var net []string
	for i := range 3 {
		v := w.volunteerIn(m, 1+i, net...)
		if i == 0 {
			net = v.Status().Bootstrap
		}
		relays = append(relays, v)
	}
	on := func(p *person) { p.cfg.Bootstrap = net }
	a, b = w.person("Ada", m.at(4), on), w.person("Bo", m.at(5), on)
	a.meet(b)
	for p, names := range map[*person][]int{a: hers, b: his} {
		var list []*volunteer
		for _, i := range names {
			list = append(list, relays[i])
		}
		p.uses(list...)
	}
	a.knows(b, len(his))
	b.knows(a, len(hers))
	a.tell(b, "hello")
	b.tell(a, "hello")
	return a, b, relays
}

// end stops everybody, within virtual time.
func end(people []*person, relays []*volunteer) {
	for _, p := range people {
		p.stop()
	}
	for _, v := range relays {
		v.stop()
	}
}

// outgoing returns what waits for a contact.
func (p *person) outgoing(q *person) (list []*store.Outgoing) {
	p.w.Helper()
	err := p.store.View(func(tx *store.Tx) error {
		for row, err := range store.Outbox.Scan(tx, store.OutboxOf(q.id), nil) {
			if err != nil {
				return err
			}
			list = append(list, row.Value)
		}
		return nil
	})
	if err != nil {
		p.w.Fatal(err)
	}
	return list
}

// at returns the relays that have the text that waits for a contact.
func (p *person) at(q *person) map[string]bool {
	p.w.Helper()
	at := map[string]bool{}
	for _, out := range p.outgoing(q) {
		if out.Control {
			continue
		}
		for _, c := range out.Copies {
			at[string(c.Relay)] = true
		}
	}
	return at
}

// A relay loses its disk and keeps its key: its links stay good, Bo's queues and
// his record are made again, and what was lost is left again.
func TestRelayLosesItsDisk(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		a, b, relays := twoAway(w, m, []int{1}, []int{0})
		defer end([]*person{a, b}, relays)
		one, link, invite := relays[0], relays[0].link(), w.bare(b.invite(true))
		b.published(1)
		b.stop()
		id := a.say("Bo", "before")
		a.stored(id, 1)
		a.stop()
		one.loseDisk()
		if one.link() != link {
			t.Error("the link of the relay has changed")
		}
		a.start()
		time.Sleep(checkSoon)
		w.eventually("word of the loss", func() bool {
			got, err := a.WaitMessage(w.ctx, id, "delivered", time.Millisecond)
			return err == nil && got.State == "queued"
		})
		a.stop()

		b.start() // and finds nothing, but makes its queues again
		w.eventually("queues", func() bool { return one.Status().Service.Queues == 2 })
		b.published(1)
		b.stop()
		a.start()
		a.stored(id, 1)
		a.stop()
		c := w.person("Cy", m.at(6), func(p *person) { p.cfg.Bootstrap = a.cfg.Bootstrap })
		defer c.stop()
		if _, err := c.AddRelay(w.ctx, link); err != nil {
			t.Fatal(err)
		}
		c.add(invite, "Bo")
		c.stored(c.say("Bo", "we have not met"), 1)
		c.stop()

		b.start()
		b.until(textOf("Ada", "before"))
		b.until(textOf("Cy", "we have not met"))
		w.eventually("the receipt to be left", func() bool { return b.owes(a) == 0 })
		b.stop()
		a.start()
		a.delivered(id)
		a.stop()
		b.start()
		b.heard("Ada", "before")
	})
}

// A relay drains while Bo is away: what is there reaches him, his contacts learn
// where his mailboxes are now, and what they leave goes there.
func TestRelayDrains(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		a, b, relays := twoAway(w, m, []int{1}, []int{0, 1})
		defer end([]*person{a, b}, relays)
		b.stop()
		first := a.say("Bo", "on its way")
		a.stored(first, 2)
		a.stop()
		if err := relays[0].Drain(time.Now().Add(3 * 24 * time.Hour)); err != nil {
			t.Fatal(err)
		}
		relays[1].stop() // so that it comes from the one that drains
		b.start()
		b.until(textOf("Ada", "on its way"))
		b.until(func(e Event) bool { return e.Type == "relay" && e.State == "draining" })
		relays[1].start()
		if _, err := b.AddRelay(w.ctx, relays[2].link()); err != nil {
			t.Fatal(err)
		}
		b.told(a, 2)
		list, err := b.Relays(w.ctx)
		if err != nil || len(list) != 3 || list[0].State != "draining" && list[1].State != "draining" {
			t.Errorf("his relays are %+v, %v", list, err)
		}
		b.stop()
		relays[0].stop() // for good

		a.start()
		a.delivered(first)
		a.knows(b, 2)
		second := a.say("Bo", "at the new place")
		a.stored(second, 2)
		if at := a.at(b); at[string(relays[0].self())] || !at[string(relays[2].self())] {
			t.Errorf("it was not left at the new relay, but at %d others", len(at))
		}
		a.stop()
		relays[1].stop()
		b.start()
		b.until(textOf("Ada", "at the new place"))
		b.heard("Ada", "on its way")
	})
}

// A reader that has been connected for a while learns that its relay drains.
func TestReaderLearnsThatItsRelayDrains(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		one := w.volunteerIn(m, 1)
		b := w.person("Bo", m.at(2), func(p *person) { p.cfg.Bootstrap = one.Status().Bootstrap })
		defer end([]*person{b}, []*volunteer{one})
		b.uses(one)
		time.Sleep(10 * time.Minute)
		drain := time.Now()
		if err := one.Drain(drain.Add(3 * 24 * time.Hour)); err != nil {
			t.Fatal(err)
		}
		b.until(func(e Event) bool { return e.Type == "relay" && e.State == "draining" })
		if d := time.Since(drain); d > 2*time.Hour {
			t.Errorf("after %v", d)
		}
	})
}

// Bo is away and names three relays. One of the two that have a message says that
// it will stop: the message is left at the third before that, where he finds it.
func TestCopiesLeaveARelayThatStops(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		a, b, relays := twoAway(w, m, []int{1}, []int{0, 1, 2})
		defer end([]*person{a, b}, relays)
		b.stop()
		id := a.say("Bo", "to be moved")
		a.stored(id, 2)
		var stops, other *volunteer // not Ada's own, at which Bo leaves the receipt
		for i, v := range relays {
			switch {
			case !a.at(b)[string(v.self())]:
			case stops == nil && i != 1:
				stops = v
			default:
				other = v
			}
		}
		if err := stops.Drain(time.Now().Add(20 * time.Hour)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(checkEvery)
		w.eventually("a third copy", func() bool { return len(a.at(b)) == 3 })
		a.stop()
		stops.stop()
		other.stop()
		b.start()
		b.until(textOf("Ada", "to be moved"))
		other.start()
		w.eventually("the receipt to be left", func() bool { return b.owes(a) == 0 })
		b.stop()
		a.start()
		a.delivered(id)
	})
}

// Bo's receipt lies at Ada's relay when that loses its disk. Ada's message does
// not stay stored for ever: it is left once more, and Bo, who has read it, shows
// nothing and gives another receipt.
func TestReceiptsLostWithARelaysDisk(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		a, b, relays := twoAway(w, m, []int{1}, []int{0})
		defer end([]*person{a, b}, relays)
		one, two := relays[0], relays[1]
		b.stop()
		id := a.say("Bo", "have you read this")
		a.stored(id, 1)
		a.stop()
		b.start()
		b.until(textOf("Ada", "have you read this"))
		w.eventually("the receipt to be left", func() bool { return b.owes(a) == 0 && one.Status().Messages == 0 })
		b.stop()
		two.loseDisk()

		a.start()
		w.eventually("the message to be left once more", func() bool { return one.Status().Messages > 0 })
		a.stored(id, 1)
		a.stop()
		b.start()
		w.eventually("another receipt to be left", func() bool { return one.Status().Messages == 0 && b.owes(a) == 0 })
		b.stop()
		a.start()
		a.delivered(id)
		a.stop()
		b.start()
		b.heard("Ada", "have you read this")
	})
}

// queueOf returns the ID of a contact's queue.
func (p *person) queueOf(q *person, v *volunteer) (id [32]byte, ok bool) {
	p.w.Helper()
	err := p.store.View(func(tx *store.Tx) error {
		row, queue, err := ownQueue(tx, identity.Transport(v.self()), q.id[:])
		id, ok = queue, row != nil && row.Expires != 0
		return err
	})
	if err != nil {
		p.w.Fatal(err)
	}
	return id, ok
}

// Who is blocked loses the queue, who is unblocked gets another, and of who is
// removed nothing is left, at the relay and here.
func TestQueuesGoWithTheirContacts(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		a, b, relays := twoAway(w, m, []int{1}, []int{0})
		defer end([]*person{a, b}, relays)
		one := relays[0]
		queues := func(want int) {
			t.Helper()
			w.eventually("the queues at the relay", func() bool { return one.Status().Service.Queues == want })
		}
		queues(2)
		before, ok := b.queueOf(a, one)
		if !ok {
			t.Fatal("Ada has no queue")
		}
		if _, err := b.BlockContact(w.ctx, "Ada"); err != nil {
			t.Fatal(err)
		}
		queues(1)
		if _, err := b.UnblockContact(w.ctx, "Ada"); err != nil {
			t.Fatal(err)
		}
		queues(2)
		w.eventually("another queue", func() bool {
			after, ok := b.queueOf(a, one)
			return ok && after != before
		})
		// Ada was told of it, and can write there.
		b.told(a, 1)
		b.tell(a, "again")
		b.stop()
		id := a.say("Bo", "through the new queue")
		a.stored(id, 1)
		a.stop()
		b.start()
		b.until(textOf("Ada", "through the new queue"))

		// Something of each kind is there when she is removed.
		err := b.store.Update(func(tx *store.Tx) error {
			return errors.Join(
				store.OwedReceipts.Put(tx, store.OwedKey(a.id, [16]byte{1}), &store.Owed{Dies: time.Now().Add(time.Hour).UnixMilli()}),
				store.Answers.Put(tx, store.UnackedKey([32]byte{1}), &store.Answer{Account: a.id[:], Left: true, Dies: time.Now().Add(time.Hour).UnixMilli()}),
				store.Invites.Put(tx, store.InviteKey([16]byte{1}), &store.Invite{Id: make([]byte, 16), Token: make([]byte, 16), UsedBy: a.id[:]}),
			)
		})
		if err != nil {
			t.Fatal(err)
		}
		her := [][]byte{a.id[:]}
		if b.holds(her) != 1 {
			t.Error("the search finds nothing")
		}
		if err := b.RemoveContact(w.ctx, "Ada"); err != nil {
			t.Fatal(err)
		}
		// What keeps handshakes and one-time keys from being used again names her
		// for some weeks, and so does the event that she was removed.
		if b.holds(her, "handshakes", "used", "journal") != 0 {
			t.Error("something names who was removed")
		}
		queues(1)
		w.eventually("the row to go", func() bool {
			n := 0
			err := b.store.View(func(tx *store.Tx) error {
				for _, err := range store.OwnQueues.Scan(tx, nil, nil) {
					if err != nil {
						return err
					}
					n++
				}
				return nil
			})
			return err == nil && n == 1
		})
	})
}

// A relay that is left is read until nothing can come any more, and then its
// queues are dropped. Contacts are told at once, and who is blocked meanwhile
// loses the queue there too.
func TestRelayIsLeft(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		a, b, relays := twoAway(w, m, []int{1}, []int{0, 2})
		defer end([]*person{a, b}, relays)
		one := relays[0]
		b.stop()
		id := a.say("Bo", "on its way")
		a.stored(id, 2)
		a.stop()
		relays[2].stop() // so that it comes from the one that is left
		b.start()
		if err := b.RemoveRelay(w.ctx, peerOf(identity.Transport(one.self())).String()); err != nil {
			t.Fatal(err)
		}
		b.until(textOf("Ada", "on its way"))
		relays[2].start()
		b.told(a, 1)
		if q := one.Status().Service.Queues; q != 2 {
			t.Errorf("%d queues are at the relay that is left", q)
		}
		b.stop()
		a.start()
		a.delivered(id)
		a.knows(b, 1)
		a.stop()
		b.start()
		if _, err := b.BlockContact(w.ctx, "Ada"); err != nil {
			t.Fatal(err)
		}
		w.eventually("her queue to go", func() bool { return one.Status().Service.Queues == 1 })
		b.stop()

		away(leavingLife, relays...)
		b.start()
		w.eventually("the relay to be forgotten", func() bool {
			list, err := b.Relays(w.ctx)
			return err == nil && len(list) == 1 && one.Status().Service.Queues == 0
		})
	})
}

// Bo loses his sessions. What Ada left does not open, the error goes back through
// her relay, and what she leaves then does, though the two are never online
// together.
func TestErrorThroughARelayRepairsTheSession(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		a, b, relays := twoAway(w, m, []int{1}, []int{0})
		defer end([]*person{a, b}, relays)
		one := relays[0]
		b.published(1)
		b.stop()
		id := a.say("Bo", "can you open this")
		a.stored(id, 1)
		first := a.outgoing(b)[0].Hash
		a.stop()
		db := b.db()
		err := db.Update(func(tx *store.Tx) error {
			for row, err := range store.Sessions.Scan(tx, nil, nil) {
				if err != nil {
					return err
				}
				if err := errors.Join(store.Sessions.Delete(tx, row.Key), store.SessionOwners.Delete(tx, store.SessionOwnerKey(row.Key.Session()))); err != nil {
					return err
				}
			}
			return nil
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}

		b.start()
		w.eventually("the error to be left", func() bool {
			left := false
			err := b.store.View(func(tx *store.Tx) error {
				for row, err := range store.Answers.Scan(tx, nil, nil) {
					if err != nil {
						return err
					}
					left = left || row.Value.Left
				}
				return nil
			})
			return err == nil && left
		})
		if len(b.texts("Ada")) != 1 {
			t.Error("it could be read")
		}
		b.published(1)
		b.stop()
		a.start()
		w.eventually("it to be left anew", func() bool {
			list := a.outgoing(b)
			return len(list) > 0 && !bytes.Equal(list[0].Hash, first) && len(list[0].Copies) == 1 && one.Status().Messages > 0
		})
		a.stored(id, 1)
		a.stop()
		b.start()
		b.until(textOf("Ada", "can you open this"))
		w.eventually("the receipt to be left", func() bool { return b.owes(a) == 0 })
		b.stop()
		a.start()
		a.delivered(id)
	})
}

// A first message that is too long for a contact box says so wherever somebody
// looks, and arrives when both are online.
func TestLongFirstMessageSaysWhyItWaits(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		one := w.volunteerIn(m, 1)
		on := func(p *person) { p.cfg.Bootstrap = one.Status().Bootstrap }
		b := w.person("Bo", m.at(2), on)
		b.uses(one)
		link := w.bare(b.invite(false))
		b.published(1)
		b.stop()
		a := w.person("Ada", m.at(3), on)
		defer end([]*person{a, b}, []*volunteer{one})
		a.add(link, "Bo")
		id := a.say("Bo", strings.Repeat("x", 10_000))
		const plain = "too long to wait at a relay"
		w.eventually("the reason", func() bool { return strings.Contains(a.contact("Bo").Detail, plain) })
		got, err := a.WaitMessage(w.ctx, id, "stored", time.Millisecond) // as send prints it
		if err != nil || got.State != "queued" || !strings.Contains(got.Reason, plain) {
			t.Errorf("the message is %s: %q, %v", got.State, got.Reason, err)
		}
		list, err := a.History(w.ctx, "Bo", 0, "")
		if err != nil || len(list) != 1 || !strings.Contains(list[0].Reason, plain) {
			t.Errorf("the history says %+v, %v", list, err)
		}
		why, err := a.Doctor(w.ctx, "Bo")
		if err != nil || !slices.ContainsFunc(why, func(f Finding) bool { return f.Check == "queue" && strings.Contains(f.Hint, plain) }) {
			t.Errorf("the doctor says %+v, %v", why, err)
		}
		b.start()
		a.delivered(id)
	})
}

// A relay that brings what nobody can open leaves no row, and is marked.
func TestGarbageOfARelayLeavesNothing(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		a, b, relays := twoAway(w, m, []int{1}, []int{0})
		defer end([]*person{a, b}, relays)
		one := relays[0]
		queue, _ := b.queueOf(a, one)
		var garbage []client.Entry
		sizes := envelope.SealedSizes()
		for i := range 1000 {
			blob := make([]byte, sizes[i%3])
			rand.Read(blob)
			garbage = append(garbage, client.Entry{Queue: queue, ID: uint64(1 + i), Blob: blob})
		}
		before := b.holds(nil)
		done, useless, err := b.takeMail(identity.Transport(one.self()), garbage)
		if err != nil || len(done) != len(garbage) || useless != len(garbage) {
			t.Errorf("%d entries are done, %d useless, %v", len(done), useless, err)
		}
		if after := b.holds(nil); after != before {
			t.Errorf("%d rows became %d", before, after)
		}

		// What comes to a queue that was given up is not looked at, and says nothing of
		// the relay.
		seed, err := identity.NewSecret(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		over := relay.NewReaderKey(seed).Reader().Queue()
		err = b.store.Update(func(tx *store.Tx) error {
			row := &store.OwnQueue{Seed: seed.Bytes(), Contact: a.id[:], Over: true}
			return store.OwnQueues.Put(tx, store.OwnQueueKey(identity.Transport(one.self()), over), row)
		})
		if err != nil {
			t.Fatal(err)
		}
		garbage[0].Queue = over
		if done, useless, err := b.takeMail(identity.Transport(one.self()), garbage[:1]); err != nil || len(done) != 1 || useless != 0 {
			t.Errorf("of a queue that was given up %d entries are done, %d useless, %v", len(done), useless, err)
		}

		// The same through the relay: Ada has gone mad.
		d, err := a.dropFor(b.id)
		if err != nil {
			t.Fatal(err)
		}
		state := func() string {
			list, err := b.Relays(w.ctx)
			if err != nil {
				t.Fatal(err)
			}
			return list[0].State
		}
		for i := range 3 {
			err = a.depositor.Do(w.ctx, d.boxes[0].Relay, func(c *client.Conn) error {
				var deposits []client.Deposit
				for range 100 {
					blob := make([]byte, sizes[0])
					rand.Read(blob)
					deposits = append(deposits, client.Deposit{
						Queue: queue, Blob: blob, Expires: c.Time().Add(24*time.Hour).Unix() / 3600 * 3600, Capability: d.boxes[0].Capability,
					})
				}
				for _, o := range c.Deposit(w.ctx, deposits) {
					if o.Err != nil {
						return o.Err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			w.eventually("the garbage to go", func() bool { return one.Status().Messages == 0 })
			if s := state(); (i == 2) != (s == "suspect") {
				t.Errorf("after %d entries the relay is %s", 100*(i+1), s)
			}
		}
	})
}

// A relay that was left and does not answer any more is forgotten all the same.
func TestDeadRelayIsForgotten(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		a, b, relays := twoAway(w, m, []int{1}, []int{0, 2})
		defer end([]*person{a, b}, relays)
		dead := identity.Transport(relays[0].self())
		queues := func() int {
			return rows(b, func(tx *store.Tx) (n int, err error) {
				for _, err := range store.OwnQueues.Scan(tx, store.OwnQueuesAt(dead), nil) {
					if err != nil {
						return 0, err
					}
					n++
				}
				return n, nil
			})
		}
		relays[0].stop()
		if err := b.RemoveRelay(w.ctx, peerOf(dead).String()); err != nil {
			t.Fatal(err)
		}
		b.stop()
		a.stop()
		away(leavingLife+deadRelay-time.Hour, relays[1:]...)
		b.start()
		if list, err := b.Relays(w.ctx); err != nil || len(list) != 2 || queues() == 0 {
			t.Errorf("too early: %d relays, %d queues, %v", len(list), queues(), err)
		}
		time.Sleep(25 * time.Hour)
		if list, err := b.Relays(w.ctx); err != nil || len(list) != 1 || queues() != 0 {
			t.Errorf("%d relays, %d queues, %v", len(list), queues(), err)
		}
	})
}
