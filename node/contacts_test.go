package node

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"starling/dht/record"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// Whoever comes by a public link is held until the user decides: nothing of
// theirs is delivered, and they are told nothing but to ask again.
func TestPublicLinkLeadsToARequest(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada"), w.person("Bo", quick)
	b.add(a.invite(true), "Ada")
	id := b.say("Ada", "may I?")
	a.until(textOf("Bo", "may I?"))
	b.until(contactIs("Ada", "requested"))
	b.until(func(e Event) bool {
		return e.Type == "state" && e.ID == id && e.State == "queued" && strings.Contains(e.Text, "accept")
	})
	if c := a.contact("Bo"); c.State != "request" || a.Status().Requests != 1 || a.Status().Contacts != 0 {
		t.Fatalf("the bearer is %q", c.State)
	}
	if n := rows(a, func(tx *store.Tx) (int, error) { return a.outbox.Pending(tx) }); n != 0 {
		t.Fatalf("%d contents wait for somebody who asked", n)
	}
	if _, err := a.Send(w.ctx, "Bo", "no", nil); err == nil {
		t.Fatal("writing to a request is possible")
	}
	if _, err := a.AcceptContact(w.ctx, "Bo", ""); err != nil {
		t.Fatal(err)
	}
	b.delivered(id)
	b.until(contactIs("Ada", "accepted"))
	a.heard("Bo", "may I?")
	a.tell(b, "you may")
	b.tell(a, "thank you")
}

// A request that was rejected leaves nothing behind, and does not come back by
// itself. A link that admits is another matter.
func TestRejectedRequestIsForgotten(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada"), w.person("Bo", quick)
	b.add(a.invite(true), "Ada")
	b.say("Ada", "may I?")
	a.until(textOf("Bo", "may I?"))
	if err := a.RejectContact(w.ctx, "Bo"); err != nil {
		t.Fatal(err)
	}
	gone := a.now()
	if a.has("Bo") || a.Status().Requests != 0 {
		t.Fatal("the request is still there")
	}
	if n := rows(a, func(tx *store.Tx) (int, error) { return leftOf(tx, b.account()) }); n != 0 {
		t.Fatalf("%d rows of the rejected request are left", n)
	}
	// Its node gives its session up after a few refusals and asks anew.
	b.restart()
	w.eventually("a fresh session", func() bool {
		return rows(b, func(tx *store.Tx) (int, error) { return archived(tx) }) > 0
	})
	b.say("Ada", "please")
	w.eventually("refusals on the fresh session", func() bool {
		return rows(b, func(tx *store.Tx) (n int, err error) {
			for r, err := range store.Outbox.Scan(tx, nil, nil) {
				if err != nil {
					return 0, err
				}
				n += int(r.Value.Dropped)
			}
			return n, nil
		}) > 5
	})
	if a.has("Bo") || a.now() != gone {
		t.Fatal("the rejected request came back")
	}
	b.add(a.invite(false), "Ada")
	a.until(contactIs("Bo", "accepted"))
	b.tell(a, "invited after all")
}

// leftOf counts what hangs on an account.
func leftOf(tx *store.Tx, a identity.Account) (n int, err error) {
	for _, err := range store.Sessions.Scan(tx, store.SessionsOf(a), nil) {
		if err != nil {
			return 0, err
		}
		n++
	}
	for _, err := range store.History.Scan(tx, store.HistoryOf(a), nil) {
		if err != nil {
			return 0, err
		}
		n++
	}
	for _, err := range store.Outbox.Scan(tx, store.OutboxOf(a), nil) {
		if err != nil {
			return 0, err
		}
		n++
	}
	for r, err := range store.SessionOwners.Scan(tx, nil, nil) {
		if err != nil {
			return 0, err
		}
		if store.RowKey(r.Value.Data).Account() == a {
			n++
		}
	}
	for r, err := range store.Names.Scan(tx, nil, nil) {
		if err != nil {
			return 0, err
		}
		if slices.Equal(r.Value.Data, a[:]) {
			n++
		}
	}
	if _, err := store.Contacts.Get(tx, store.ContactKey(a)); err == nil {
		n++
	}
	return n, nil
}

func archived(tx *store.Tx) (n int, err error) {
	for r, err := range store.Sessions.Scan(tx, nil, nil) {
		if err != nil {
			return 0, err
		}
		if r.Value.Archived != 0 {
			n++
		}
	}
	return n, nil
}

// What a request can leave is bounded, whatever it sends, and also after the
// user has read it.
func TestRequestIsBounded(t *testing.T) {
	w := newWorld(t)
	a, u := w.person("Ada"), w.puppet("Mallory")
	c := w.caller(nil)
	c.dial(w, a)
	u.begin(a, c.bundles(w, a, a.invite(true)), nil, nil)
	count := func() int {
		return rows(a, func(tx *store.Tx) (n int, err error) {
			for _, table := range []func(*store.Tx) (int, error){
				sizeOf(store.History), sizeOf(store.SeenIDs), sizeOf(store.ReceivedEnvelopes), sizeOf(store.Journal),
				sizeOf(store.SkippedKeys), sizeOf(store.Sessions), sizeOf(store.Messages),
			} {
				m, err := table(tx)
				if err != nil {
					return 0, err
				}
				n += m
			}
			return n, nil
		})
	}
	for i := range maxRequestEntries {
		w.wantStatus(c.deliver(w, a, u.text(a, strings.Repeat("m", i+1))), wire.Status_STATUS_HELD)
	}
	w.wantStatus(c.deliver(w, a, u.text(a, "one too many")), wire.Status_STATUS_HELD)
	if got := a.texts("Mallory"); len(got) != maxRequestEntries || slices.Contains(got, "one too many") {
		t.Fatalf("%d texts of a request: %q", len(got), got)
	}
	list, err := a.History(w.ctx, "Mallory", 0, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.MarkRead(w.ctx, "Mallory", list[len(list)-1].ID); err != nil {
		t.Fatal(err)
	}
	w.wantStatus(c.deliver(w, a, u.text(a, "now that you have read")), wire.Status_STATUS_HELD)
	if got := a.texts("Mallory"); len(got) != maxRequestEntries {
		t.Fatalf("reading a request made room for more: %q", got)
	}
	before := 0
	for i := range 200 {
		var b []byte
		switch i % 4 {
		case 0:
			b = u.seal(a, envelope.Content{News: u.news()})
		case 1:
			u.sign(uint64(i), append([]identity.DeviceEntry{u.entry()}, w.puppet("x").entry())...)
			b = u.seal(a, envelope.Content{News: u.news()})
		case 2:
			b = u.sealRaw(a, make([]byte, 256)) // no content at all
		case 3:
			b = u.seal(a, envelope.Content{Receipt: &envelope.Receipt{Read: []envelope.ID{{1}}}})
		}
		c.deliver(w, a, b)
		if i == 100 {
			before = count()
		}
	}
	if after := count(); after > before {
		t.Fatalf("a request has grown from %d to %d rows", before, after)
	}
}

func sizeOf[T any, P interface {
	*T
	proto.Message
}](table store.Table[T, P]) func(*store.Tx) (int, error) {
	return func(tx *store.Tx) (n int, err error) {
		for _, err := range table.Scan(tx, nil, nil) {
			if err != nil {
				return 0, err
			}
			n++
		}
		return n, nil
	}
}

// A hundred people may ask at once.
func TestRequestsAreBounded(t *testing.T) {
	w := newWorld(t)
	a := w.person("Ada")
	c := w.caller(nil)
	c.dial(w, a)
	answer := c.bundles(w, a, a.invite(true))
	answer.OneTime = nil // tier T3: one answer serves everybody
	for i := range maxRequests + 1 {
		u := w.puppet("Mallory")
		u.begin(a, answer, nil, nil)
		want := wire.Status_STATUS_HELD
		if i == maxRequests {
			want = wire.Status_STATUS_DROPPED
		}
		w.wantStatus(c.deliver(w, a, u.text(a, "hello")), want)
	}
	if got := a.Status().Requests; got != maxRequests {
		t.Fatalf("%d requests", got)
	}
	// One less, and there is room again.
	if err := a.RejectContact(w.ctx, "Mallory-7"); err != nil {
		t.Fatal(err)
	}
	u := w.puppet("Trent")
	u.begin(a, answer, nil, nil)
	w.wantStatus(c.deliver(w, a, u.text(a, "hello")), wire.Status_STATUS_HELD)
	// Friends are not in the way of the flood, nor it in theirs.
	b := w.person("Bo")
	a.meet(b)
	b.tell(a, "what a crowd")
}

// A one-use link admits one bearer. The next one only asks.
func TestOneUseLinkAdmitsOnce(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.person("Ada"), w.person("Bo"), w.person("Cy")
	link := a.invite(false)
	b.add(link, "Ada")
	a.until(contactIs("Bo", "accepted"))
	c.add(link, "Ada")
	a.until(requestOf("Cy"))
	c.until(contactIs("Ada", "requested"))
	list, err := a.Invites(w.ctx)
	if err != nil || len(list) != 1 || list[0].State != "used" || list[0].UsedBy != "Bo" {
		t.Fatalf("invites %+v, %v", list, err)
	}
	if got := a.contact("Cy").State; got != "request" {
		t.Fatalf("the second bearer is %q", got)
	}
}

// Links that were revoked or have expired admit nobody; rotated ones lead
// nowhere.
func TestRevokedExpiredAndRotatedLinks(t *testing.T) {
	w := newWorld(t)
	a := w.person("Ada")
	revoked, err := a.CreateInvite(w.ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.RevokeInvite(w.ctx, revoked.ID); err != nil {
		t.Fatal(err)
	}
	wantKind(t, a.RevokeInvite(w.ctx, strings.Repeat("00", 16)), KindNotFound)
	wantKind(t, a.RevokeInvite(w.ctx, "nonsense"), KindInvalid)
	expired, err := a.CreateInvite(w.ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	err = a.store.Update(func(tx *store.Tx) error {
		for r, err := range store.Invites.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if !r.Value.Revoked {
				r.Value.Expires = time.Now().UnixMilli() - 1
				return store.Invites.Put(tx, r.Key, r.Value)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Clients of the DHT: nobody holds a record for another.
	b, c, d := w.person("Bo", dhtClient), w.person("Cy", dhtClient), w.person("Di", dhtClient, quick)
	b.add(revoked.Link, "Ada")
	c.add(expired.Link, "Ada")
	a.until(requestOf("Bo"))
	a.until(requestOf("Cy"))
	list, err := a.Invites(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, inv := range list {
		if want := map[string]string{revoked.ID: "revoked", expired.ID: "expired"}[inv.ID]; inv.State != want {
			t.Errorf("an invite is %q, want %q", inv.State, want)
		}
	}

	old := a.invite(true)
	if err := a.RotateInvites(w.ctx); err != nil {
		t.Fatal(err)
	}
	w.eventually("a record under the new lookup secret", func() bool { return !served(d, a, old) })
	d.add(old, "Ada")
	w.eventually("an attempt", func() bool { return strings.Contains(d.contact("Ada").Detail, errNoRecord.Error()) })
	if a.has("Di") {
		t.Fatal("a rotated link leads here")
	}
	d.add(a.invite(false), "Ada")
	d.until(contactIs("Ada", "accepted"))
}

// served reports whether a serves the record that a link asks for.
func served(p, a *person, link string) bool {
	p.w.Helper()
	l, err := identity.ParseLink(link)
	if err != nil {
		p.w.Fatal(err)
	}
	if !p.dial(p.w.ctx, a.endpoint(true)) {
		p.w.Fatalf("%s does not reach %s", p.name, a.name)
	}
	_, err = p.dht.Fetch(p.w.ctx, a.host.ID(), l.Account, l.Lookup, record.Version{})
	return err == nil
}

// A request under a name that looks like a contact's is labelled, and merged
// with nobody.
func TestLookalikeRequestIsLabelled(t *testing.T) {
	w := newWorld(t)
	a, b, m := w.person("Ada"), w.person("Bob"), w.person("B\u043eb") // a Cyrillic o
	a.meet(b)
	link := a.invite(true)
	m.add(link, "Ada")
	e := a.until(requestOf("B\u043eb"))
	const want = "not the Bob you know"
	if e.Text != want {
		t.Errorf("the event says %q", e.Text)
	}
	if c := a.contact("B\u043eb"); c.Warning != want || c.State != "request" || c.Account != m.Status().Account {
		t.Errorf("the request is %+v", c)
	}
	same := w.person("bob")
	same.add(link, "Ada")
	a.until(requestOf("bob-2"))
	if c := a.contact("bob-2"); c.Warning != want {
		t.Errorf("the request is %+v", c)
	}
	if c := a.contact("Bob"); c.Warning != "" || c.Account != b.Status().Account {
		t.Errorf("the contact is %+v", c)
	}
	other := w.person("Carol")
	other.add(link, "Ada")
	a.until(requestOf("Carol"))
	if c := a.contact("Carol"); c.Warning != "" {
		t.Errorf("an unlike name is labelled %q", c.Warning)
	}
}

// secretOf returns the lookup secret of now, and what p believes that of a
// contact to be.
func (p *person) secretOf(contact string) (own, theirs identity.LookupSecret) {
	p.w.Helper()
	err := p.store.View(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err != nil {
			return err
		}
		copy(own[:], me.LookupSecret)
		if contact == "" {
			return nil
		}
		c, err := resolve(tx, contact)
		if err == nil {
			copy(theirs[:], c.LookupSecret)
		}
		return err
	})
	if err != nil {
		p.w.Fatal(err)
	}
	return own, theirs
}

// Whoever is blocked no longer finds this account and is not heard; everybody
// else still is, wherever they come back. Unblocking takes all that back.
func TestBlock(t *testing.T) {
	w := newWorld(t)
	boot := w.person("Boot")
	a := w.person("Ada", bootstrap(boot), quick)
	b := w.person("Bo", quick) // knows nobody but Ada: what it finds, it finds by her
	c := w.person("Cy", bootstrap(boot), quick)
	a.meet(b)
	a.meet(c)
	b.tell(a, "before")
	link, old := a.invite(false), keysOf(a)
	before, _ := a.secretOf("")
	if _, err := a.BlockContact(w.ctx, "Bo"); err != nil {
		t.Fatal(err)
	}
	_, err := a.Send(w.ctx, "Bo", "never", nil)
	wantKind(t, err, KindBlocked)
	_, err = a.AddContact(w.ctx, b.invite(false), "Robert")
	wantKind(t, err, KindBlocked)
	after, _ := a.secretOf("")
	if after == before {
		t.Fatal("the lookup secret is the same")
	}
	w.eventually("records under other keys", func() bool {
		for _, k := range keysOf(a) {
			if slices.Contains(old, k) {
				return false
			}
		}
		return true
	})
	list, err := a.Invites(w.ctx)
	if err != nil || list[len(list)-1].Link != link || list[len(list)-1].State != "revoked" {
		t.Fatalf("invites after a block: %+v, %v", list, err)
	}

	// They are not heard, on the session they have and on no other.
	id := b.say("Ada", "let me in")
	w.eventually("refusals", func() bool { return attempts(b) >= 3 })
	if got := a.texts("Bo"); slices.Contains(got, "let me in") {
		t.Fatalf("a blocked contact was heard: %q", got)
	}
	// The others have the news, and find us where nobody told them to look.
	w.eventually("the new lookup secret", func() bool { _, l := c.secretOf("Ada"); return l == after })
	c.stop()
	a.restart()
	w.eventually("a published record", func() bool { return !a.Status().Published.IsZero() })
	c.start()
	c.tell(a, "I still find you")
	a.tell(c, "good")
	if got := a.texts("Bo"); slices.Contains(got, "let me in") {
		t.Fatalf("a blocked contact was heard: %q", got)
	}

	if _, err := a.UnblockContact(w.ctx, "Bo"); err != nil {
		t.Fatal(err)
	}
	b.delivered(id)
	a.heard("Bo", "let me in")
	b.tell(a, "thank you")
	a.tell(b, "do not do it again")
	if _, l := b.secretOf("Ada"); l != after {
		t.Fatal("the unblocked contact does not know how to find us")
	}
}

// attempts counts the refusals of what waits at p.
func attempts(p *person) int {
	return rows(p, func(tx *store.Tx) (n int, err error) {
		for r, err := range store.Outbox.Scan(tx, nil, nil) {
			if err != nil {
				return 0, err
			}
			n += int(r.Value.Dropped)
		}
		m, err := archived(tx)
		return n + 3*m, err
	})
}

// keysOf returns under which keys a node serves its own records.
func keysOf(p *person) (keys [][record.KeySize]byte) {
	for _, r := range p.own.get() {
		keys = append(keys, record.KeyOf(r))
	}
	return keys
}

// A contact that was removed leaves nothing behind, and does not come back by
// itself.
func TestRemove(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada"), w.person("Bo", quick)
	a.meet(b)
	b.tell(a, "a secret between us")
	a.tell(b, "which I will keep")
	before, _ := a.secretOf("")
	if err := a.RemoveContact(w.ctx, "Bo"); err != nil {
		t.Fatal(err)
	}
	if after, _ := a.secretOf(""); after == before {
		t.Fatal("the lookup secret is the same")
	}
	if n := rows(a, func(tx *store.Tx) (int, error) { return leftOf(tx, b.account()) }); n != 0 {
		t.Fatalf("%d rows of the removed contact are left", n)
	}
	err := a.Events(w.ctx, 0, false, func(e Event) error {
		if e.Text != "" || e.Chat != "" && e.State != "removed" {
			t.Errorf("the journal still says %+v", e)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.say("Ada", "are you there?")
	w.eventually("refusals", func() bool { return attempts(b) >= 3 })
	if a.has("Bo") {
		t.Fatal("the removed contact is back")
	}
	wantKind(t, a.RemoveContact(w.ctx, "Bo"), KindNotFound)
	// A new link is a new beginning.
	b.add(a.invite(false), "Ada")
	a.until(func(e Event) bool { return e.Type == "message" && e.Text == "are you there?" })
	a.tell(b, "again")
}

// Another key under a known name stops everything until the user decides.
func TestChangedKeyHoldsSending(t *testing.T) {
	for _, decision := range []string{"trust", "reject"} {
		t.Run(decision, func(t *testing.T) {
			w := newWorld(t)
			a, b, m := w.person("Ada"), w.person("Bo"), w.person("Mallory")
			a.meet(b)
			b.stop()
			waiting := a.say("Bo", "written before")
			c := a.add(m.invite(false), "Bo")
			if c.State != "key_changed" || c.Account == m.Status().Account || c.NewAccount != m.Status().Account || c.Verified {
				t.Fatalf("the contact is %+v", c)
			}
			if got := a.notices("Bo"); !slices.Equal(got, []string{"Bo's safety number has changed"}) {
				t.Fatalf("notices %q", got)
			}
			_, err := a.Send(w.ctx, "Bo", "which of you?", nil)
			wantKind(t, err, KindKeyChanged)

			// The contact comes back and is heard. Nothing leaves, to either.
			b.start()
			b.tell(a, "I am back")
			w.eventually("a worker that found nothing to do", func() bool { _, busy := a.outbox.Report(b.account()); return !busy })
			if got := b.texts("Ada"); len(got) != 0 {
				t.Fatalf("this left: %q", got)
			}
			if m.has("Ada") || len(m.host.Network().ConnsToPeer(a.host.ID())) != 0 {
				t.Fatal("the offered account was written to")
			}
			if msg, err := a.WaitMessage(w.ctx, waiting, "stored", 0); err != nil || msg.State != "queued" {
				t.Fatalf("the message is %s, %v", msg.State, err)
			}

			if decision == "reject" {
				if err := a.RejectContact(w.ctx, "Bo"); err != nil {
					t.Fatal(err)
				}
				a.delivered(waiting)
				b.heard("Ada", "written before")
				a.tell(b, "you are still you")
				if m.has("Ada") || a.has("Bo-old") {
					t.Fatal("the rejected account was written to")
				}
				return
			}
			if c, err := a.TrustContact(w.ctx, "Bo"); err != nil || c.Name != "Bo" || c.Account != m.Status().Account {
				t.Fatalf("the contact is %+v, %v", c, err)
			}
			m.until(contactIs("Ada", "accepted"))
			a.delivered(a.say("Bo", "so it is you"))
			m.heard("Ada", "so it is you")
			if c := a.contact("Bo-old"); c.Account != b.Status().Account {
				t.Fatalf("the old contact is %+v", c)
			}
			_, err = a.TrustContact(w.ctx, "Bo")
			wantKind(t, err, KindInvalid)
		})
	}
}

// verify marks a contact as verified.
func (p *person) verify(name string) {
	p.w.Helper()
	err := p.store.Update(func(tx *store.Tx) error {
		c, err := resolve(tx, name)
		if err != nil {
			return err
		}
		c.Verified = true
		return saveContact(tx, c)
	})
	if err != nil {
		p.w.Fatal(err)
	}
}

// A contact's new device is announced before anything is encrypted to it, and
// for a verified contact nothing is until the user decides.
func TestNewDevice(t *testing.T) {
	for _, tt := range []struct {
		name     string
		verified bool
		trust    bool
	}{{"unverified", false, false}, {"verified, trusted", true, true}, {"verified, rejected", true, false}} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			a, u := w.person("Ada"), w.puppet("Bo")
			first, second := w.caller(nil), w.caller(nil)
			first.dial(w, a)
			second.dial(w, a)
			u.profile.Endpoints = []identity.Endpoint{first.endpoint()}
			link := a.invite(false)
			token := tokenOf(t, link)
			u.begin(a, first.bundles(w, a, link), &token, nil)
			w.wantStatus(first.deliver(w, a, u.text(a, "on the first device")), wire.Status_STATUS_DELIVERED)
			if tt.verified {
				a.verify("Bo")
			}

			// The account sets up a device, which writes by itself.
			v := w.device(u.account)
			v.profile = u.profile
			v.sign(uint64(time.Now().Unix())+10, u.entry(), v.entry())
			v.begin(a, second.bundles(w, a, link), nil, nil)
			w.wantStatus(second.deliver(w, a, v.text(a, "on the second device")), wire.Status_STATUS_DELIVERED)
			a.heard("Bo", "on the second device")
			lines, err := a.History(w.ctx, "Bo", 0, "")
			if err != nil {
				t.Fatal(err)
			}
			if i := slices.IndexFunc(lines, func(m Message) bool { return m.Kind == "notice" && strings.Contains(m.Text, "new device") }); i < 0 || lines[i+1].Text != "on the second device" {
				var said []string
				for _, m := range lines {
					said = append(said, m.Text)
				}
				t.Fatalf("history %q", said)
			}
			// sealedFor says for which of the two a text to Bo is sealed.
			sealedFor := func() string {
				t.Helper()
				var last []byte
				id := a.say("Bo", "for which device?")
				err := a.store.View(func(tx *store.Tx) error {
					for r, err := range store.Outbox.Scan(tx, store.OutboxOf(u.id()), nil) {
						if err != nil {
							return err
						}
						if hexID(r.Value.Id) == id {
							last = r.Value.Envelope
						}
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				for name, device := range map[string]*puppet{"first": u, "second": v} {
					if _, err := device.open(a, last); err == nil {
						return name
					}
				}
				return "no"
			}
			if !tt.verified {
				if c := a.contact("Bo"); c.State != "accepted" {
					t.Fatalf("an unverified contact is %q", c.State)
				}
				if got := sealedFor(); got == "no" {
					t.Fatalf("sealed for %s device", got)
				}
				return
			}
			if c := a.contact("Bo"); c.State != "held" {
				t.Fatalf("a verified contact is %q", c.State)
			}
			_, err = a.Send(w.ctx, "Bo", "to whom?", nil)
			wantKind(t, err, KindHeld)
			// What the account says next changes nothing about that.
			w.wantStatus(second.deliver(w, a, v.seal(a, envelope.Content{News: v.news()})), wire.Status_STATUS_DELIVERED)
			if got := a.notices("Bo"); len(got) != 1 {
				t.Fatalf("notices %q", got)
			}
			if tt.trust {
				if _, err := a.TrustContact(w.ctx, "Bo"); err != nil {
					t.Fatal(err)
				}
			} else if err := a.RejectContact(w.ctx, "Bo"); err != nil {
				t.Fatal(err)
			}
			if c := a.contact("Bo"); c.State != "accepted" {
				t.Fatalf("after the decision the contact is %q", c.State)
			}
			got := sealedFor()
			if got == "no" || got == "second" && !tt.trust {
				t.Fatalf("sealed for %s device", got)
			}
			if !tt.trust {
				w.wantStatus(second.deliver(w, a, v.text(a, "hello?")), wire.Status_STATUS_DROPPED)
			}
		})
	}
}

func hexID(id []byte) string { return hex.EncodeToString(id) }

// tokenOf returns the token of a link.
func tokenOf(t testing.TB, link string) identity.Token {
	t.Helper()
	l, err := identity.ParseLink(link)
	if err != nil {
		t.Fatal(err)
	}
	return l.Token
}

// Relays bring news late and in any order.
func TestOlderProfileChangesNothing(t *testing.T) {
	w := newWorld(t)
	a, u := w.person("Ada"), w.puppet("Bo")
	c := w.caller(nil)
	c.dial(w, a)
	link := a.invite(false)
	token := tokenOf(t, link)
	u.profile.Version, u.profile.Lookup = 5, identity.LookupSecret{5}
	u.begin(a, c.bundles(w, a, link), &token, nil)
	w.wantStatus(c.deliver(w, a, u.text(a, "hello")), wire.Status_STATUS_DELIVERED)
	for _, news := range []struct {
		generation, version uint64
		lookup, want        byte
	}{
		{1, 7, 7, 7},
		{1, 6, 6, 7},
		{1, 7, 8, 8}, // told twice
		{2, 1, 9, 9}, // a store that was lost and made again
		{1, 10, 10, 9},
		{2, 2, 11, 11},
	} {
		u.sign(news.generation, u.entry())
		u.profile.Version, u.profile.Lookup = news.version, identity.LookupSecret{news.lookup}
		u.profile.Mail = &wire.Mail{Mailboxes: [][]byte{{news.lookup}}}
		w.wantStatus(c.deliver(w, a, u.seal(a, envelope.Content{News: u.news()})), wire.Status_STATUS_DELIVERED)
		err := a.store.View(func(tx *store.Tx) error {
			row, err := store.Contacts.Get(tx, store.ContactKey(u.id()))
			if err != nil {
				return err
			}
			var mail wire.Mail
			if err := wire.Parse(row.Mail, protocol.MaxFrame, &mail); err != nil {
				return err
			}
			if got := row.LookupSecret[0]; got != news.want || !slices.Equal(mail.Mailboxes[0], []byte{got}) {
				t.Errorf("after %+v the lookup secret is %d and the mailbox %x", news, got, mail.Mailboxes[0])
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A device that was withdrawn while it waited for the user is not accepted by
// trusting late.
func TestTrustNeverGoesBack(t *testing.T) {
	w := newWorld(t)
	a, u := w.person("Ada"), w.puppet("Bo")
	c := w.caller(nil)
	c.dial(w, a)
	link := a.invite(false)
	token := tokenOf(t, link)
	u.begin(a, c.bundles(w, a, link), &token, nil)
	w.wantStatus(c.deliver(w, a, u.text(a, "hello")), wire.Status_STATUS_DELIVERED)
	a.verify("Bo")
	own, thief := u.entry(), w.puppet("thief").entry()
	generation := uint64(time.Now().Unix())
	news := func(generation uint64, devices ...identity.DeviceEntry) []byte {
		u.sign(generation, devices...)
		w.wantStatus(c.deliver(w, a, u.seal(a, envelope.Content{News: u.news()})), wire.Status_STATUS_DELIVERED)
		return u.manifest
	}
	first := u.manifest
	waiting := news(generation+10, own, thief)
	if got := a.contact("Bo").State; got != "held" {
		t.Fatalf("the contact is %q", got)
	}
	check := func(accepted, held []byte) {
		t.Helper()
		err := a.store.View(func(tx *store.Tx) error {
			c, err := resolve(tx, "Bo")
			if err == nil && (!slices.Equal(c.Manifest, accepted) || !slices.Equal(c.HeldManifest, held)) {
				t.Error("an older manifest has come back")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	news(generation+5, own, thief, w.puppet("another").entry())
	check(first, waiting)
	newest := news(generation+11, own)
	check(newest, nil)
	news(generation+5, own, thief)
	check(newest, nil)
	if _, err := a.TrustContact(w.ctx, "Bo"); err != nil {
		t.Fatal(err)
	}
	check(newest, nil)
}
