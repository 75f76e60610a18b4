package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"starling/node/store"
	"starling/protocol"
)

// A link's address is enough: no bootstrap node, no neighbours, no DHT. Both
// sides then know each other, whoever restarts, on new ports.
func TestLinkAloneIsEnough(t *testing.T) {
	for name, addr := range map[string]string{"tcp": "/ip4/127.0.0.1/tcp/0", "quic": "/ip4/127.0.0.1/udp/0/quic-v1"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.person("Ada", listening(addr), quick), w.person("Bo", listening(addr), quick)
			a.meet(b)
			b.tell(a, "from the bearer")
			a.tell(b, "from the inviter")
			for i, p := range []*person{a, b, a} {
				before := p.Status().Addrs
				p.restart()
				if after := p.Status().Addrs; after[0] == before[0] {
					t.Fatalf("%s listens where it did: %v", p.name, after)
				}
				a.tell(b, fmt.Sprint("a to b, restart ", i))
				b.tell(a, fmt.Sprint("b to a, restart ", i))
			}
		})
	}
}

// Adding a link needs no network: the contact is pending, says so in plain
// words, and is found when its owner is back.
func TestPendingContactCompletesByItself(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada"), w.person("Bo", quick)
	link := a.invite(false)
	a.keepPort()
	a.stop()
	if c := b.add(link, "Ada"); c.State != "pending" || !strings.Contains(c.Detail, "still trying") {
		t.Fatalf("the contact is %s: %s", c.State, c.Detail)
	}
	id := b.say("Ada", "are you there?")
	w.eventually("a reason", func() bool { return strings.Contains(b.contact("Ada").Detail, errNotFound.Error()) })
	list, err := b.History(w.ctx, "Ada", 0, "")
	if err != nil || len(list) != 1 || list[0].State != "queued" || list[0].Reason == "" {
		t.Fatalf("history %+v, %v", list, err)
	}
	a.start()
	b.until(contactIs("Ada", "accepted"))
	a.until(contactIs("Bo", "accepted"))
	b.delivered(id)
	a.heard("Bo", "are you there?")
	a.tell(b, "I am")
}

// An address that is only in the DHT is enough for a first contact.
func TestFirstContactThroughTheDHT(t *testing.T) {
	w := newWorld(t)
	boot := w.person("Boot")
	people := make([]*person, 4)
	for i, name := range []string{"Ada", "Bo", "Cy", "Di"} {
		people[i] = w.person(name, bootstrap(boot), quick)
	}
	a, b := people[0], people[1]
	w.eventually("a published record", func() bool { return !a.Status().Published.IsZero() })
	b.add(w.bare(a.invite(false)), "Ada")
	b.until(contactIs("Ada", "accepted"))
	b.tell(a, "found you")
	a.tell(b, "so you did")
}

// Of a contact who moves again and again, only where it listens now is kept.
func TestOldAddressesAreForgotten(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada", quick), w.person("Bo", quick)
	a.meet(b)
	for i := range protocol.MaxAddrs + 2 {
		b.restart()
		b.tell(a, fmt.Sprint("here now, ", i))
	}
	want := b.endpoint(true).Addrs
	w.eventually("the newest address alone", func() bool {
		var got [][]byte
		err := a.store.View(func(tx *store.Tx) error {
			c, err := resolve(tx, "Bo")
			if err == nil && len(c.Endpoints) == 1 {
				got = c.Endpoints[0].Addrs
			}
			return err
		})
		return err == nil && slices.EqualFunc(got, want, slices.Equal)
	})
}

// A bootstrap node that was added leads into the DHT, also after a restart, and
// when it is gone the node that was met there is enough.
func TestBootstrapIsRemembered(t *testing.T) {
	w := newWorld(t)
	boot, a := w.person("Boot"), w.person("Ada")
	for _, bad := range []string{"", "nonsense", "/ip4/127.0.0.1/tcp/1", "/p2p/" + boot.Status().PeerID} {
		wantKind(t, a.AddBootstrap(w.ctx, bad), KindInvalid)
	}
	addr := boot.Status().BootstrapAddrs[0]
	wantKind(t, a.RemoveBootstrap(w.ctx, addr), KindNotFound)
	for range 2 { // once more changes nothing
		if err := a.AddBootstrap(w.ctx, addr); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := a.ListBootstrap(w.ctx); err != nil || !slices.Equal(list, []string{addr}) {
		t.Fatalf("bootstrap nodes %q, %v", list, err)
	}
	joined := func() bool { return a.Status().DHTPeers > 0 }
	w.eventually("the DHT", joined)
	a.restart()
	w.eventually("the DHT after a restart", joined)
	if err := a.RemoveBootstrap(w.ctx, addr); err != nil {
		t.Fatal(err)
	}
	if list, err := a.ListBootstrap(w.ctx); err != nil || len(list) != 0 {
		t.Fatalf("bootstrap nodes %q, %v", list, err)
	}
	a.restart()
	w.eventually("the DHT through a peer that was good", joined)
}

// The doctor says in plain words what is wrong, and what to do about it.
func TestDoctor(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada", dhtClient, quick), w.person("Bo", dhtClient)
	level := func(contact, check string) Finding {
		t.Helper()
		list, err := a.Doctor(w.ctx, contact)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			if f.Text == "" || !slices.Contains([]string{"ok", "warn", "bad"}, f.Level) {
				t.Errorf("finding %+v", f)
			}
			if f.Check == check {
				return f
			}
		}
		t.Fatalf("nothing about %s in %+v", check, list)
		panic("unreachable")
	}
	if f := level("", "network"); f.Level == "ok" || f.Hint == "" {
		t.Errorf("alone: %+v", f)
	}
	if f := level("", "dht"); f.Level == "ok" || f.Hint == "" {
		t.Errorf("without a DHT: %+v", f)
	}
	_, err := a.Doctor(w.ctx, "Bo")
	wantKind(t, err, KindNotFound)
	a.meet(b)
	a.tell(b, "hello")
	for _, check := range []string{"contact", "network", "queue"} {
		if f := level("Bo", check); f.Level != "ok" {
			t.Errorf("all is well: %+v", f)
		}
	}
	b.stop()
	a.say("Bo", "are you there?")
	w.eventually("a reason", func() bool { return level("Bo", "queue").Hint != "" })
	if f := level("", "queue"); f.Level != "warn" {
		t.Errorf("a message waits: %+v", f)
	}
	a.add(w.linkTo(w.puppet("Mallory")), "Bo")
	if f := level("Bo", "contact"); f.Level != "bad" || f.Hint == "" {
		t.Errorf("the key has changed: %+v", f)
	}
}
