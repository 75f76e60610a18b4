package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"starling/node/store"
)

// A full disk refuses what would be lost and ends nothing: when there is space
// again, everything goes on.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada", quick), w.person("Bo", quick)
	a.meet(b)
	a.tell(b, "before")
	a.disk.Fail(store.ErrFull)
	if _, err := a.Send(w.ctx, "Bo", "no room", nil); !errors.Is(err, store.ErrFull) {
		t.Fatalf("sending on a full disk: %v", err)
	}
	if _, err := a.BlockContact(w.ctx, "Bo"); !errors.Is(err, store.ErrFull) {
		t.Fatalf("blocking on a full disk: %v", err)
	}
	if err := a.RotateInvites(w.ctx); !errors.Is(err, store.ErrFull) {
		t.Fatalf("rotating on a full disk: %v", err)
	}
	a.republish()
	a.untold <- struct{}{}
	id := b.say("Ada", "can you take this?")
	w.eventually("an attempt", func() bool { r, ok := b.outbox.Report(a.account()); return ok && r.Failures > 0 })
	select {
	case <-a.Done():
		t.Fatal("the node has ended")
	default:
	}
	a.disk.Fail(nil)
	b.delivered(id)
	a.heard("Bo", "can you take this?")
	a.tell(b, "there is room again")
}

// Both sides add the other at once: the sessions that they open converge, and
// nothing is lost.
func TestBothAddTheOther(t *testing.T) {
	pairs := 10
	if *long {
		pairs = 200
	}
	w := newWorld(t)
	for i := range pairs {
		a, b := w.person("Ada", quick), w.person("Bo", quick)
		forA, forB := a.invite(i%2 == 0), b.invite(i%3 == 0)
		var texts sync.WaitGroup
		for _, side := range []struct {
			p    *person
			link string
			to   string
		}{{a, forB, "Bo"}, {b, forA, "Ada"}} {
			texts.Go(func() {
				side.p.add(side.link, side.to)
				for n := range 5 {
					side.p.delivered(side.p.say(side.to, fmt.Sprint("text ", n)))
				}
			})
		}
		texts.Wait()
		want := []string{"text 0", "text 1", "text 2", "text 3", "text 4"}
		if x, y := a.texts("Bo"), b.texts("Ada"); !slices.Equal(x, want) || !slices.Equal(y, want) {
			t.Fatalf("pair %d: texts %q and %q", i, x, y)
		}
		a.until(contactIs("Bo", "accepted"))
		b.until(contactIs("Ada", "accepted"))
		a.stop()
		b.stop()
	}
}

// Read receipts are told by those who want to tell, for what they have seen.
func TestReadReceipts(t *testing.T) {
	w := newWorld(t)
	a := w.person("Ada", func(p *person) { p.cfg.ReadReceipts = true })
	b := w.person("Bo")
	a.meet(b)
	first, second := b.say("Ada", "one"), b.say("Ada", "two")
	a.until(textOf("Bo", "two"))
	list, err := a.History(w.ctx, "Bo", 0, "")
	if err != nil || a.contact("Bo").Unread != 2 {
		t.Fatalf("%d unread, %v", a.contact("Bo").Unread, err)
	}
	if err := a.MarkRead(w.ctx, "Bo", list[len(list)-2].ID); err != nil {
		t.Fatal(err)
	}
	if m, err := b.WaitMessage(w.ctx, first, "read", patience); err != nil || m.State != "read" {
		t.Fatalf("the first text is %s, %v", m.State, err)
	}
	b.delivered(second) // its answer may be later than the receipt of the first
	if m, err := b.WaitMessage(w.ctx, second, "read", 0); err != nil || m.State != "delivered" || a.contact("Bo").Unread != 1 {
		t.Fatalf("the second text is %s, %v", m.State, err)
	}
	wantKind(t, a.MarkRead(w.ctx, "Bo", strings.Repeat("00", 16)), KindNotFound)
	wantKind(t, a.MarkRead(w.ctx, "Bo", "nonsense"), KindInvalid)

	// Bo does not tell.
	id := a.say("Bo", "three")
	a.delivered(id)
	list, err = b.History(w.ctx, "Ada", 0, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.MarkRead(w.ctx, "Ada", list[len(list)-1].ID); err != nil {
		t.Fatal(err)
	}
	b.tell(a, "a receipt would have come before this")
	if m, err := a.WaitMessage(w.ctx, id, "read", 0); err != nil || m.State != "delivered" {
		t.Fatalf("the third text is %s, %v", m.State, err)
	}
}

// History is read in pages from the newest line up, and the journal from any
// event on, without a gap.
func TestHistoryAndJournal(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada"), w.person("Bo")
	a.meet(b)
	var want []string
	for i := range 23 {
		want = append(want, fmt.Sprint("text ", i))
		b.say("Ada", want[i])
	}
	a.until(textOf("Bo", want[len(want)-1]))
	var got []string
	before := ""
	for {
		page, err := a.History(w.ctx, "Bo", 5, before)
		if err != nil || len(page) > 5 {
			t.Fatalf("%d lines, %v", len(page), err)
		}
		if len(page) == 0 {
			break
		}
		var texts []string
		for _, m := range page {
			texts = append(texts, m.Text)
		}
		got = append(texts, got...)
		before = page[0].ID
	}
	if !slices.Equal(got, want) {
		t.Fatalf("history %q", got)
	}
	_, err := a.History(w.ctx, "Bo", 5, strings.Repeat("00", 16))
	wantKind(t, err, KindNotFound)

	var seqs []uint64
	err = a.Events(w.ctx, 3, false, func(e Event) error { seqs = append(seqs, e.Seq); return nil })
	if err != nil {
		t.Fatal(err)
	}
	for i, seq := range seqs {
		if seq != uint64(4+i) {
			t.Fatalf("events %d", seqs)
		}
	}
	if len(seqs) == 0 || seqs[len(seqs)-1] != a.now() {
		t.Fatalf("the journal ends at %d, the events at %d", a.now(), seqs)
	}
	stop := errors.New("enough")
	if err := a.Events(w.ctx, 0, true, func(Event) error { return stop }); err != stop {
		t.Fatalf("got %v", err)
	}
}

// Names are exact, one for each contact, and a near miss is helped.
func TestNames(t *testing.T) {
	w := newWorld(t)
	a := w.person("Ada", dhtClient)
	anna, ann, bob := w.puppet("Anna"), w.puppet("Ann"), w.puppet("Bob")
	a.add(w.linkTo(anna), "Anna")
	a.add(w.linkTo(ann), "Anneliese")
	c := a.add(w.linkTo(bob), "")
	if c.Name != bob.id().Short() || c.State != "pending" {
		t.Fatalf("an unnamed contact is %+v", c)
	}
	if _, err := a.RenameContact(w.ctx, bob.id().String(), "Bob"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RenameContact(w.ctx, "bob", "BOB"); err != nil { // its own name in other letters
		t.Fatal(err)
	}
	_, err := a.Send(w.ctx, "Ann", "which?", nil)
	wantKind(t, err, KindAmbiguous)
	if e, _ := errors.AsType[*Error](err); e == nil || !strings.Contains(e.Hint, "Anna, Anneliese") {
		t.Fatalf("the hint is %q", e.Hint)
	}
	_, err = a.Send(w.ctx, "Bo", "near", nil)
	wantKind(t, err, KindNotFound)
	_, err = a.Send(w.ctx, "Nobody", "far", nil)
	wantKind(t, err, KindNotFound)
	_, err = a.Send(w.ctx, w.puppet("Eve").id().String(), "a stranger", nil)
	wantKind(t, err, KindNotFound)
	_, err = a.RenameContact(w.ctx, "Bob", "anna")
	wantKind(t, err, KindExists)
	for _, bad := range []string{"", " ", "a\nb", "\u202eevil", strings.Repeat("x", 65), bob.id().String()} {
		_, err = a.RenameContact(w.ctx, "Bob", bad)
		wantKind(t, err, KindInvalid)
	}
	_, err = a.AddContact(w.ctx, w.linkTo(bob), "Anna")
	wantKind(t, err, KindExists)
	_, err = a.AddContact(w.ctx, "STARLING:NONSENSE", "")
	wantKind(t, err, KindInvalid)
	_, err = a.AddContact(w.ctx, a.invite(true), "")
	wantKind(t, err, KindInvalid)
}

// A profile name that is an account ID, or nothing, is not shown as a name.
func TestProfileNamesThatAreNone(t *testing.T) {
	w := newWorld(t)
	a, u := w.person("Ada"), w.puppet("")
	c := w.caller(nil)
	c.dial(w, a)
	answer := c.bundles(w, a, a.invite(true))
	answer.OneTime = nil
	u.begin(a, answer, nil, nil)
	c.deliver(w, a, u.text(a, "nobody"))
	v := w.puppet(w.puppet("victim").id().String())
	v.begin(a, answer, nil, nil)
	c.deliver(w, a, v.text(a, "somebody else"))
	list, err := a.Contacts(w.ctx, true)
	if err != nil || len(list) != 2 {
		t.Fatalf("%d requests, %v", len(list), err)
	}
	for _, c := range list {
		if c.Name != u.id().Short() && c.Name != v.id().Short() || c.Warning != "" {
			t.Errorf("request %+v", c)
		}
	}
	if _, err := a.AcceptContact(w.ctx, v.id().Short(), ""); err != nil {
		t.Error(err)
	}
}
