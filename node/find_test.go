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
