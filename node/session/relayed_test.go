package session_test

import (
	"bytes"
	"crypto/hpke"
	"errors"
	"slices"
	"testing"

	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// fetch is a node that reads its queue: it opens what is sealed, then what is
// inside, and keeps nothing of an envelope that is refused but the memory of
// having looked at it.
func (p *person) fetch(b []byte) (o session.Opened, err error) {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		s, failed := p.m.OpenSealed(tx, p.w.now, queue, b)
		if err = failed; err != nil {
			return nil
		}
		tx.Try(func(tx *store.Tx) error { //nolint:errcheck // it is err
			o, err = p.m.OpenRelayed(tx, p.w.now, &s)
			return err
		})
		return nil
	})
	return o, err
}

// leave seals an envelope of p for q with q's key of the day.
func (p *person) leave(q *person, e []byte) []byte {
	p.t.Helper()
	return p.sealedFor(q, q.best(q.sealingKeys()), e)
}

// Through relays a conversation runs as on a stream: a first message with a
// pool's key, answers, and an error that renews what was lost.
func TestConversationThroughRelays(t *testing.T) {
	_, a, b := pair(t, 600)
	say := func(p, q *person, text string) (envelope.Hash, error) {
		t.Helper()
		p.queue(q, text)
		s := p.next(q)
		if len(s.out.Envelope) == 0 {
			p.startWith(q, q.bundle(q.mint(q.w.now, relay1, 1)[0]))
			s = p.next(q)
		}
		o, err := q.fetch(p.leave(q, s.out.Envelope))
		if err == nil {
			c := must(envelope.ParseContent(o.Content))(t)
			if *c.Text != text || o.Peer != p.account || o.Device != p.device.Device() {
				t.Errorf("%s reads %q", q.name, *c.Text)
			}
			// A receipt says so within the session.
			p.settle(q, s, &wire.Outcome{Status: wire.Status_STATUS_DELIVERED, Ack: o.Ack[:]})
		}
		return envelope.Hash(s.out.Hash), err
	}
	for _, text := range []string{"one", "two"} {
		for _, d := range []struct{ p, q *person }{{a, b}, {b, a}} {
			if _, err := say(d.p, d.q, text); err != nil {
				t.Fatal(err)
			}
		}
	}

	b.lose()
	hash, err := say(a, b, "three")
	u, ok := err.(*session.Undecryptable)
	if !ok || u.Peer != a.account || u.Answer.Reason != wire.Reason_REASON_NO_SESSION {
		t.Fatalf("a session that is lost: %v", err)
	}
	a.update(func(tx *store.Tx) error {
		acted, err := a.m.HandleError(tx, a.w.now, b.account, hash, u.Answer)
		if !acted {
			t.Error("the error is not acted on")
		}
		return err
	})
	if a.ready(b) {
		t.Error("the lost session is sent on")
	}
	a.startWith(b, nil)
	if s := a.next(b); s.out.Envelope == nil {
		t.Error("nothing is sealed anew")
	} else if o, err := b.fetch(a.leave(b, s.out.Envelope)); err != nil || *must(envelope.ParseContent(o.Content))(t).Text != "three" {
		t.Errorf("after the renewal: %v", err)
	}
}

// The copies at two relays are one envelope: the second is answered as on a
// stream. The same copy again is not looked at.
func TestCopiesOfOneEnvelopeOpenOnce(t *testing.T) {
	_, a, b := pair(t, 601)
	a.queue(b, "hello")
	a.start(b, b.give(true))
	e := a.next(b).out.Envelope
	one, two := a.leave(b, e), a.leave(b, e)
	first, err := b.fetch(one)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.fetch(two)
	if d, ok := err.(*session.Duplicate); !ok || d.Peer != a.account || d.Ack != first.Ack {
		t.Errorf("the copy at another relay: %v", err)
	}
	for _, again := range [][]byte{one, two} {
		if _, err := b.fetch(again); err != session.ErrSeenSealed {
			t.Errorf("a copy again: %v, want ErrSeenSealed", err)
		}
	}
	// And on a stream as well.
	if got := b.take(a, e); string(got.Ack) != string(first.Ack[:]) {
		t.Errorf("the envelope of a relay on a stream: %v", got.Status)
	}
}

// What one device sealed and another hands on is dropped, whatever it is, and
// nothing of it stays; the honest copy opens afterwards.
func TestRelayedIsFromItsSealer(t *testing.T) {
	for _, known := range []bool{true, false} {
		name := map[bool]string{true: "of a session", false: "first message"}[known]
		t.Run(name, func(t *testing.T) {
			w, a, b := pair(t, 602)
			eve := w.person("Eve")
			b.knows(eve)
			other := w.thief(a, true, 2) // the same device by name, with another DH key
			second := w.thief(a, false, 3)
			if known {
				a.say(b, "before")
			} else {
				a.start(b, b.give(true))
			}
			a.queue(b, "hello")
			e := a.next(b).out.Envelope
			before := dump(t, b)
			for _, p := range []*person{eve, other, second} {
				if _, err := b.fetch(p.leave(b, e)); err != session.ErrDrop {
					t.Errorf("sealed by %s: %v, want ErrDrop", p.name, err)
				}
			}
			if after := dump(t, b); after != before {
				t.Errorf("what was dropped changed rows: %v, was %v", after, before)
			}
			if _, err := b.fetch(a.leave(b, e)); err != nil {
				t.Errorf("sealed by its sender: %v", err)
			}
			// What was opened tells nobody but its sender that it was.
			if _, err := b.fetch(eve.leave(b, e)); err != session.ErrDrop {
				t.Errorf("opened before, and sealed by another: %v, want ErrDrop", err)
			}
		})
	}
}

// An error about an unknown session, or a day that is gone, goes to the device
// that the sealed form proves, and only if it is one of a contact's.
func TestRelayedErrorGoesToItsSealer(t *testing.T) {
	w, a, b := pair(t, 603)
	eve := w.person("Eve")
	second := w.thief(a, false, 2)
	manifest := identity.SignManifest(a.root, 2, []identity.DeviceEntry{a.entry(), second.entry()})
	a.manifest, second.manifest = manifest, manifest
	b.changeContact(a, func(c *store.Contact) { c.Manifest = manifest })
	dead := b.give(false)
	fresh := func(p *person) (noSession, keyGone []byte) {
		p.knows(b)
		p.start(b, dead)
		o := must(p.seal(b, "hello"))(t)
		m := must(envelope.Parse(o.Envelope))(t)
		return envelope.Seal([32]byte(m.Session), nil, m.Message), o.Envelope
	}
	type letter struct {
		p      *person
		e      []byte
		reason wire.Reason
	}
	var letters []letter
	thief := w.thief(a, true, 3) // not in the accepted manifest with that DH key
	for _, p := range []*person{a, second, eve, thief} {
		noSession, keyGone := fresh(p)
		letters = append(letters,
			letter{p, noSession, wire.Reason_REASON_NO_SESSION},
			letter{p, keyGone, wire.Reason_REASON_KEY_GONE})
	}
	w.now = w.now.Add(protocol.DayKeyLife)
	before := dump(t, b)
	for _, blocked := range []bool{false, true} {
		if blocked {
			b.changeContact(a, func(c *store.Contact) { c.State = store.Contact_BLOCKED })
		}
		for _, l := range letters {
			_, err := b.fetch(l.p.leave(b, l.e))
			u, answered := err.(*session.Undecryptable)
			want := !blocked && (l.p == a || l.p == second)
			if answered != want || !answered && err != session.ErrDrop {
				t.Errorf("%v by %s, blocked %t: %v", l.reason, l.p.name, blocked, err)
				continue
			}
			if answered && (u.Answer.Reason != l.reason || u.Repeated != nil ||
				!envelope.VerifyDecryptionError(l.p.device.DH(), b.device.DH().Public(), b.device.Device(), l.p.device.Device(), u.Answer)) {
				t.Errorf("%v by %s is not answered to that device", l.reason, l.p.name)
			}
		}
	}
	if after := dump(t, b); after != before {
		t.Errorf("what does not open changed rows: %v, was %v", after, before)
	}
}

// Somebody's manifest with garbage behind it, from anyone who can deposit: no
// answer, no row, no renewal.
func TestForgedSealedEnvelopeLeavesNothing(t *testing.T) {
	_, a, b := pair(t, 604)
	a.say(b, "before")
	a.queue(b, "hello")
	honest := a.next(b).out.Envelope
	var s wire.Signed
	var key wire.SealingKey
	if err := errors.Join(wire.Parse(b.sealingKeys()[0], protocol.MaxSealing, &s), wire.Parse(s.Body, protocol.MaxSealing, &key)); err != nil {
		t.Fatal(err)
	}
	forge := func(m *wire.Sealed) []byte {
		t.Helper()
		to := b.device.Device()
		public := must(hpke.MLKEM768X25519().NewPublicKey(key.Key))(t)
		enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES256GCM(), protocol.LabelSealed.Bind(to[:], queue[:]))
		if err != nil {
			t.Fatal(err)
		}
		inner := append(wire.Marshal(m), 0x80)
		inner = append(inner, make([]byte, 4096-len(inner))...)
		return slices.Concat(enc, must(sender.Seal(nil, inner))(t))
	}
	rows := func() (n [9]int) {
		d := dump(t, b)
		copy(n[:], d[:])
		b.view(func(tx *store.Tx) error {
			for range store.SeenSealed.Scan(tx, nil, nil) {
				n[6]++
			}
			for range store.Contacts.Scan(tx, nil, nil) {
				n[7]++
			}
			for range store.UsedOneTime.Scan(tx, nil, nil) {
				n[8]++
			}
			return nil
		})
		return n
	}
	before, device := rows(), a.device.Device()
	for name, e := range map[string][]byte{"garbage": bytes.Repeat([]byte{7}, 900), "an envelope of Ada's": honest} {
		for _, tag := range [][]byte{nil, make([]byte, 32), make([]byte, 31)} {
			forged := forge(&wire.Sealed{Manifest: a.manifest, Device: device[:], Envelope: e, Tag: tag})
			if _, err := b.fetch(forged); err != envelope.ErrSealed {
				t.Errorf("%s under Ada's manifest: %v, want ErrSealed", name, err)
			}
		}
	}
	if after := rows(); after != before {
		t.Errorf("forged envelopes changed rows: %v, was %v", after, before)
	}
	if live, archived := b.sessions(a); len(live) != 1 || len(archived) != 0 || b.contact(a).Renew {
		t.Error("forged envelopes touched a session")
	}
	if _, err := b.fetch(a.leave(b, honest)); err != nil {
		t.Errorf("the honest one: %v", err)
	}
}

// The memory of a sealed envelope, the session it opened and the use of a
// pool's key are committed together: a crash before leaves none, one after it
// all.
func TestCrashAroundTheCommitOfARelayedOne(t *testing.T) {
	broken := errors.New("the power fails")
	_, a, b := pair(t, 605)
	k := b.bundle(b.mint(b.w.now, relay1, 1)[0])
	a.startWith(b, k)
	a.queue(b, "hello")
	sealed := a.leave(b, a.next(b).out.Envelope)
	before := dump(t, b)

	b.disk.Fail(broken)
	err := b.db.Update(func(tx *store.Tx) error {
		s, err := b.m.OpenSealed(tx, b.w.now, queue, sealed)
		if err == nil {
			_, err = b.m.OpenRelayed(tx, b.w.now, &s)
		}
		return err
	})
	if !errors.Is(err, broken) {
		t.Fatalf("a failing disk: %v", err)
	}
	b.disk.Fail(nil)
	b.restart()
	if keys, used := b.pool(); dump(t, b) != before || keys != 1 || used != 0 {
		t.Errorf("a crash before the commit changed rows: %v, was %v; %d keys, %d used", dump(t, b), before, keys, used)
	}

	if o, err := b.fetch(sealed); err != nil || o.Peer != a.account {
		t.Fatalf("after the crash: %v", err)
	}
	b.restart()
	if keys, used := b.pool(); keys != 0 || used != 1 {
		t.Errorf("a crash after the commit left %d keys and %d used", keys, used)
	}
	if _, err := b.fetch(sealed); err != session.ErrSeenSealed {
		t.Errorf("after the crash, again: %v, want ErrSeenSealed", err)
	}
}
