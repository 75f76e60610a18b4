package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/multiformats/go-multiaddr"

	"starling/node/store"
	"starling/protocol/identity"
)

// relayed places a person where nobody can dial, with a place at the relay.
func (m *memory) relayed(i int, relay *person) func(*person) {
	return func(p *person) {
		m.at(i)(p)
		p.cfg.Listen = nil
		p.cfg.Reach = ReachPrivate
		p.cfg.DHT = DHTAuto
		p.cfg.NoRelayClient = false
		p.cfg.CircuitRelays = relay.Status().BootstrapAddrs
		p.cfg.Bootstrap = p.cfg.CircuitRelays
	}
}

// Who knows that nobody can dial them has a place at their relay at once, and is
// found and reached by a link that names the relay. Each side says how they are
// connected; as soon as there is a direct connection the messages go there.
func TestReachedThroughACircuit(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		relay := w.person("relay", m.at(1), func(p *person) {
			p.cfg.Reach, p.cfg.Circuits = ReachPublic, true
		})
		if got := relay.Status().Reach; got != "direct" {
			t.Errorf("the relay's reach is %s, want direct", got)
		}
		bo := w.person("bo", m.relayed(2, relay))
		w.eventually("a place at the relay", func() bool { return bo.Status().Reach == "relay" })
		if st := bo.Status(); st.DHTMode != "client" || st.Reach != "relay" || len(st.Confirmed) != 0 {
			t.Errorf("bo is a DHT %s, reached: %s, and %q confirmed", st.DHTMode, st.Reach, st.Confirmed)
		}
		ada := w.person("ada", m.relayed(3, relay))
		link := bo.invite(false)
		parsed, err := identity.ParseLink(link)
		if err != nil {
			t.Fatal(err)
		}
		if key, _ := transportOf(relay.host.ID()); len(parsed.Hints) != 1 || parsed.Hints[0].Transport != key {
			t.Errorf("the link of bo has the hints %v, want the relay alone", parsed.Hints)
		}
		ada.add(link, "bo")
		ada.until(contactIs("bo", "accepted"))
		bo.until(contactIs("ada", "accepted"))
		ada.delivered(ada.say("bo", "hi"))
		for _, p := range []*person{ada, bo} {
			cs := p.Status().Connections
			if len(cs) != 1 || cs[0].Path != PathCircuit || !strings.HasPrefix(cs[0].Addr, relay.Status().Addrs[0]+"/") || time.Since(cs[0].Opened) > time.Minute {
				t.Errorf("%s is connected by %+v, want one circuit through the relay", p.name, cs)
			}
		}
		if c := ada.contact("bo"); c.Path != PathCircuit || !c.Connected {
			t.Errorf("ada's contact is %+v, want it connected through a circuit", c)
		}
		if f, err := ada.Doctor(w.ctx, "bo"); err != nil || !strings.Contains(f[1].Text, "through a circuit") {
			t.Errorf("ada's doctor says %+v (%v)", f, err)
		}

		// What a circuit does not carry at once goes through several.
		var ids []string
		for i := range 20 {
			ids = append(ids, ada.say("bo", fmt.Sprintf("%d %s", i, strings.Repeat("x", 12_000))))
		}
		for _, id := range ids {
			ada.delivered(id)
		}
		if c := ada.contact("bo"); c.Path != PathCircuit {
			t.Errorf("ada's contact is %+v, want it connected through a circuit", c)
		}

		// From now on Ada can be dialled.
		at := multiaddr.StringCast("/ip4/1.3.0.1/tcp/4001")
		if err := ada.host.Network().Listen(at); err != nil {
			t.Fatal(err)
		}
		bo.host.Peerstore().AddAddrs(ada.host.ID(), []multiaddr.Multiaddr{at}, time.Hour)
		if _, err := bo.host.Network().DialPeer(network.WithForceDirectDial(w.ctx, "test"), ada.host.ID()); err != nil {
			t.Fatal(err)
		}
		w.eventually("a direct connection", func() bool {
			return ada.contact("bo").Path == PathDirect && bo.contact("ada").Path == PathDirect
		})
		ada.delivered(ada.say("bo", "directly"))
		if c, ok := ada.lines.take(bo.id); !ok || c.Limited() {
			t.Errorf("ada's messages go through the circuit still")
		} else {
			c.Close()
		}
		if cs := ada.Status().Connections; len(cs) != 1 || cs[0].Path != PathDirect {
			t.Errorf("ada is connected by %+v, want one direct connection", cs)
		}
		for _, p := range []*person{ada, bo, relay} {
			p.stop()
		}
	})
}

// A circuit relay that is not there at first, and later starts anew, gives its
// guests a place soon.
func TestCircuitRelayComesBack(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		relay := w.person("relay", m.at(1), func(p *person) { p.cfg.Reach, p.cfg.Circuits = ReachPublic, true })
		place := m.relayed(2, relay)
		bo := w.person("bo", func(p *person) {
			place(p)
			relay.stop()
		})
		for range 2 {
			time.Sleep(10 * time.Minute)
			if got := bo.Status().Reach; got != "none" {
				t.Fatalf("without a relay bo's reach is %s, want none", got)
			}
			relay.start()
			begin := time.Now()
			w.eventually("a place at the relay", func() bool { return bo.Status().Reach == "relay" })
			if d := time.Since(begin); d > 2*circuitRetry {
				t.Errorf("bo has a place %v after the relay came back, want at most %v", d, 2*circuitRetry)
			}
			relay.stop()
		}
		bo.stop()
	})
}

// A node has circuits with all the contacts that a relay carries for it, and
// nobody can take all its connections from one address.
func TestResourcesForCircuits(t *testing.T) {
	const (
		circuits = 16 // that a relay of libp2p has for one guest
		most     = 32
	)
	m, err := newResources()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	open := func(a string) (network.ConnManagementScope, error) {
		return m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(a))
	}
	relay := "/ip4/9.9.9.9/udp/1/quic-v1"
	var scopes []network.ConnManagementScope
	for i := range 1 + circuits {
		s, err := open(relay)
		if err != nil {
			t.Fatalf("connection %d with a relay and through it: %v", i, err)
		}
		scopes = append(scopes, s)
		relay = "/ip4/9.9.9.9/udp/1/quic-v1/p2p/12D3KooWPmH3y8pY1n9rbnDAqDYLemy5kLWDfnNwMBYWYjoXpbf7/p2p-circuit"
	}
	for _, s := range scopes[1:] { // the relay cuts them, and as many come at once
		s.Done()
	}
	for i := range circuits {
		if _, err := open(relay); err != nil {
			t.Fatalf("circuit %d of the second time: %v", i, err)
		}
	}
	n := 0
	for n < 10*most {
		if _, err := open("/ip4/8.8.8.8/udp/1/quic-v1"); err != nil {
			break
		}
		n++
	}
	if n != most {
		t.Errorf("%d connections from one address, want %d", n, most)
	}
}

// Who called this node through a relay is tried to be reached directly after ten
// seconds, a minute, and then every five, for as long as there is no other
// connection, and not more often for calling again. Strangers are not.
func TestPunchesOfACircuit(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		relay := w.person("relay", m.at(1), func(p *person) { p.cfg.Reach, p.cfg.Circuits = ReachPublic, true })
		bo := w.person("bo", m.relayed(2, relay))
		w.eventually("a place at the relay", func() bool { return bo.Status().Reach == "relay" })
		ada := w.person("ada", m.relayed(3, relay))
		eve := w.person("eve", m.relayed(4, relay))
		link := bo.invite(false)
		ada.add(link, "bo")
		ada.until(contactIs("bo", "accepted"))
		bo.until(contactIs("ada", "accepted"))
		call := func(p *person) network.Conn {
			to := peer.AddrInfo{ID: bo.host.ID(), Addrs: bo.host.Addrs()}
			if err := p.host.Connect(network.WithAllowLimitedConn(w.ctx, "test"), to); err != nil {
				t.Fatal(err)
			}
			return p.host.Network().ConnsToPeer(bo.host.ID())[0]
		}
		circuit := call(ada)
		call(eve)
		w.eventually("both circuits", func() bool {
			open := bo.throughCircuits()
			return len(open) == 2 && open[ada.host.ID()] && open[eve.host.ID()]
		})
		if open := ada.throughCircuits(); len(open) != 0 {
			t.Errorf("ada called, and has circuits that came in: %v", open)
		}
		bo.host.SetStreamHandler(holepunch.Protocol, func(s network.Stream) { s.Reset() }) //nolint:errcheck // nobody calls
		p := &puncher{n: bo.Node, known: make(map[peer.ID]*punch)}
		start, now := time.Now(), time.Now()
		last := start
		var pauses []time.Duration
		for now.Sub(start) < time.Hour {
			due, next := p.look(now)
			if len(due) > 0 {
				pauses = append(pauses, now.Sub(last))
				last = now
				if !slices.Equal(due, []peer.ID{ada.host.ID()}) {
					t.Errorf("it is the turn of %v, want ada's", due)
				}
			}
			if !next.After(now) {
				t.Fatalf("at %v the next look is at %v", now, next)
			}
			now = next
		}
		if len(pauses) < 8 {
			t.Errorf("in an hour ada is tried %d times, want at least 8", len(pauses))
		}
		for i, d := range pauses {
			if want := punchPauses[min(i, 2)]; d < want || d > want*3/2 {
				t.Errorf("try %d is after %v, want %v to half as much more", i+1, d, want)
			}
		}
		circuit.Close() //nolint:errcheck // the next look tells
		w.eventually("one circuit", func() bool { return len(bo.throughCircuits()) == 1 })
		now = p.known[ada.host.ID()].next.Add(-time.Second)
		p.look(now)
		call(ada)
		w.eventually("both circuits again", func() bool { return len(bo.throughCircuits()) == 2 })
		if due, _ := p.look(now); len(due) != 0 || p.known[ada.host.ID()].tries < len(pauses) {
			t.Errorf("after another call it is the turn of %v, and ada's tries are %d, want nobody's and %d", due, p.known[ada.host.ID()].tries, len(pauses))
		}
		for _, c := range bo.host.Network().Conns() {
			c.Close() //nolint:errcheck // the next look tells
		}
		p.look(now.Add(time.Hour))
		if len(p.known) != 0 {
			t.Errorf("without circuits %d peers are remembered", len(p.known))
		}
		for _, p := range []*person{ada, bo, eve, relay} {
			p.stop()
		}
	})
}

// A node dials back over QUIC from the start, and gives up UDP only where nothing
// comes back.
func TestBlackHole(t *testing.T) {
	c := newBlackHole()
	if got := c.State().String(); got != "Allowed" {
		t.Errorf("at first UDP is %s, want Allowed", got)
	}
	for range udpDials - 1 {
		c.RecordResult(false)
	}
	if got := c.State().String(); got != "Allowed" {
		t.Errorf("after %d dials in vain UDP is %s, want Allowed", udpDials-1, got)
	}
	c.RecordResult(false)
	if got := c.State().String(); got != "Blocked" {
		t.Errorf("after %d dials in vain UDP is %s, want Blocked", udpDials, got)
	}
}

func TestConfigOfReach(t *testing.T) {
	_, err := Open(t.Context(), Config{Reach: 7, CircuitRelays: []string{"/ip4/1.2.3.4/tcp/5"}, NoRelayClient: true})
	if err == nil {
		t.Fatal("it opened")
	}
	for _, want := range []string{"Config.Reach is 7", `Config.CircuitRelays: "/ip4/1.2.3.4/tcp/5" is not a multiaddr with /p2p`, "no use with NoRelayClient"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got\n%v\nwant %q too", err, want)
		}
	}
	db, err := store.OpenMemory(store.Config{}, store.NewDisk())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Store: db, Circuits: true, Reach: ReachPrivate}); err == nil || !strings.Contains(err.Error(), "Config.Circuits") {
		t.Errorf("circuits of a node that nobody can dial: %v", err)
	}
}

// A link names the relays of who cannot be dialled, each once and by QUIC if it
// has that, and otherwise the best addresses of its owner.
func TestHintsOfALink(t *testing.T) {
	const (
		one = "12D3KooWPmH3y8pY1n9rbnDAqDYLemy5kLWDfnNwMBYWYjoXpbf7"
		two = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
	)
	for _, tt := range []struct {
		addrs, want []string
	}{
		{
			[]string{"/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.2/udp/1/quic-v1", "/ip4/5.6.7.8/tcp/1", "/ip4/5.6.7.8/udp/1/quic-v1"},
			[]string{"5.6.7.8:1", "5.6.7.8:1"},
		},
		{
			[]string{"/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.2/tcp/1"},
			[]string{"192.168.1.2:1", "127.0.0.1:1"},
		},
		{
			[]string{"/ip4/192.168.1.2/tcp/1", "/ip4/9.9.9.9/tcp/2/p2p/" + one + "/p2p-circuit", "/ip4/9.9.9.9/udp/3/quic-v1/p2p/" + one + "/p2p-circuit"},
			[]string{"9.9.9.9:3", "192.168.1.2:1"},
		},
		{
			[]string{"/ip4/192.168.1.2/tcp/1", "/ip4/9.9.9.9/tcp/2/p2p/" + one + "/p2p-circuit", "/ip4/8.8.8.8/tcp/3/p2p/" + two + "/p2p-circuit"},
			[]string{"9.9.9.9:2", "8.8.8.8:3"},
		},
		{[]string{"/p2p-circuit", "/ip4/9.9.9.9/tcp/2/p2p-circuit"}, nil},
	} {
		var addrs []multiaddr.Multiaddr
		for _, a := range tt.addrs {
			addrs = append(addrs, multiaddr.StringCast(a))
		}
		var got []string
		for _, h := range bestHints(identity.Transport{}, addrs) {
			got = append(got, h.Addr.String()+":"+string(rune('0'+h.Port)))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q: hints at %q, want %q", tt.addrs, got, tt.want)
		}
	}
}
