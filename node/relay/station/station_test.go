package station

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"starling/dht/record"
	"starling/node/relay"
	"starling/node/relay/spool"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	relayproto "starling/protocol/relay"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// patience is far beyond what anything here needs.
const patience = 90 * time.Second

// A place is a relay's disks and key, which survive it.
type place struct {
	t    testing.TB
	rows *store.Disk
	cfg  Config
}

func newPlace(t testing.TB, change func(*Config)) *place {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t: t, rows: store.NewDisk(), cfg: Config{
		Key: key, Disk: spool.NewDisk(1), Quota: 64 << 20, Local: true, Open: true, NoPortMap: true,
		Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"},
	}}
	if change != nil {
		change(&p.cfg)
	}
	return p
}

// open opens the relay; it is closed with the test, if not before.
func (p *place) open() *Station {
	p.t.Helper()
	db, err := store.OpenMemory(store.Config{}, p.rows)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cfg.Store = db
	s, err := Open(context.Background(), p.cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { s.Close() })
	return s
}

// run opens the relay and runs it.
func (p *place) run() *Station {
	p.t.Helper()
	s := p.open()
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	p.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			p.t.Errorf("closing: %v", err)
		}
		if err := <-done; err != nil && !errors.Is(err, ErrClosed) {
			p.t.Errorf("Run: %v", err)
		}
	})
	return s
}

// soon waits until ok.
func soon(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if ok() {
			return
		}
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// info says where to dial a relay.
func (s *Station) info() peer.AddrInfo {
	return peer.AddrInfo{ID: s.host.ID(), Addrs: s.near()}
}

// A guest is a host that talks to relays.
type guest struct {
	t testing.TB
	host.Host
	self identity.Transport
}

func newGuest(t testing.TB, opts ...libp2p.Option) *guest {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(append(opts, libp2p.Identity(key), libp2p.NoListenAddrs)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	self, err := transportOf(key)
	if err != nil {
		t.Fatal(err)
	}
	return &guest{t, h, self}
}

// A line is a stream to a relay.
type line struct {
	t testing.TB
	network.Stream
}

func (g *guest) line(s *Station) *line {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := g.Connect(ctx, s.info()); err != nil {
		g.t.Fatal(err)
	}
	st, err := g.NewStream(ctx, s.host.ID(), protocol.StreamRelay)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := st.SetDeadline(time.Now().Add(patience)); err != nil {
		g.t.Fatal(err)
	}
	return &line{g.t, st}
}

func (l *line) ask(req *wire.RelayRequest) *wire.RelayAnswer {
	l.t.Helper()
	if err := wire.WriteFrame(l, wire.Marshal(req)); err != nil {
		l.t.Fatal(err)
	}
	b, err := wire.ReadFrame(l, protocol.MaxFrame)
	if err != nil {
		l.t.Fatalf("%T: %v", req.Command, err)
	}
	a, err := relayproto.ParseAnswer(b, req)
	if err != nil {
		l.t.Fatalf("%T: %v", req.Command, err)
	}
	return a
}

func (l *line) ok(req *wire.RelayRequest) *wire.RelayAnswer {
	l.t.Helper()
	a := l.ask(req)
	if a.Status != wire.RelayStatus_RELAY_STATUS_OK {
		l.t.Fatalf("%T: %v", req.Command, a.Status)
	}
	return a
}

// create is a request that makes a contact box.
func create(t testing.TB, s *Station, g *guest, token relayproto.Admission) (*wire.RelayRequest, relayproto.QueueID) {
	t.Helper()
	seed, err := identity.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := relayproto.NewReaderKey(seed)
	c := &wire.RelayCreate{Kind: wire.QueueKind_QUEUE_KIND_BOX, Expires: time.Now().Add(10 * 24 * time.Hour).Unix()}
	if token != (relayproto.Admission{}) {
		c.Admission = token[:]
	}
	return &wire.RelayRequest{Command: &wire.RelayRequest_Claim{Claim: relayproto.NewCreate(k, c, s.self, g.self)}}, k.Reader().Queue()
}

// A relay from end to end, over real transports: a link admits, a message is
// left and read, a record is published for somebody who is away, and a restart
// on the same disks knows it all.
func TestStationKeepsAndPublishes(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("", func(t *testing.T) { // its cleanups come before the look for goroutines
		first := newPlace(t, nil).run()
		p := newPlace(t, func(c *Config) {
			c.Open = false
			for _, a := range first.info().Addrs {
				c.Bootstrap = append(c.Bootstrap, a.String()+"/p2p/"+first.info().ID.String())
			}
		})
		s := p.run()
		soon(t, "the two relays know each other", func() bool { return s.Status().Peers == 1 && first.Status().Peers == 1 })
		if err := errors.Join(s.Healthy(), s.Ready()); err != nil {
			t.Error(err)
		}

		l, err := s.Link(true, true)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := relayproto.ParseLink(l.String()); err != nil || back.Transport != s.self || back.Admission != l.Admission {
			t.Errorf("the link does not read as it was made: %v", err)
		}
		g := newGuest(t)
		line := g.line(s)
		if in := line.ok(&wire.RelayRequest{Command: &wire.RelayRequest_Info{Info: &wire.RelayInfoRequest{}}}).GetInfo(); !in.Admission {
			t.Error("the relay says that anybody may make queues")
		}
		without, _ := create(t, s, g, relayproto.Admission{})
		if a := line.ask(without); a.Status != wire.RelayStatus_RELAY_STATUS_REFUSED {
			t.Errorf("a queue without a token: %v", a.Status)
		}
		with, box := create(t, s, g, l.Admission)
		line.ok(with)

		key, rec := newRecord(t)
		line.ok(&wire.RelayRequest{Command: &wire.RelayRequest_PutRecords{PutRecords: &wire.RelayPutRecords{Queue: box[:], Records: [][]byte{rec}}}})
		if err := s.publish(context.Background(), relay.Record{Key: key, Bytes: rec}); err != nil {
			t.Errorf("publishing: %v", err)
		}
		if n, _ := first.dht.Held(); n != 1 {
			t.Errorf("the other relay holds %d records, want 1", n)
		}

		blob := make([]byte, 2160)
		d := &wire.RelayDeposit{Queue: box[:], Blob: blob, Expires: time.Now().Add(time.Hour).Unix()}
		stamp := relayproto.DepositStamp(s.self, box, sha256.Sum256(blob), d.Expires)
		nonce, err := relayproto.Work(context.Background(), stamp, 8)
		if err != nil {
			t.Fatal(err)
		}
		d.Admit = &wire.RelayDeposit_Work{Work: nonce}
		if a := line.ask(&wire.RelayRequest{Command: &wire.RelayRequest_Deposit{Deposit: d}}); a.Status != wire.RelayStatus_RELAY_STATUS_WORK {
			t.Errorf("eight bits of work: %v, want WORK", a.Status)
		}
		token := sha256.Sum256([]byte("a token's hash"))
		line.ok(&wire.RelayRequest{Command: &wire.RelayRequest_SetAccess{SetAccess: &wire.RelaySetAccess{Queue: box[:], Tokens: [][]byte{token[:]}}}})
		d.Admit = &wire.RelayDeposit_Token{Token: token[:]}
		line.ok(&wire.RelayRequest{Command: &wire.RelayRequest_Deposit{Deposit: d}})

		st := s.Status()
		if !st.Serving || st.Service.Queues != 1 || st.Messages != 1 || st.Tokens != 1 || st.Sent == 0 || st.Received == 0 {
			t.Errorf("status %+v", st)
		}
		for name, want := range map[string]float64{
			"deposits_total": 1, "deposit_bytes_total": 2160, "admission_tokens": 1, "group_deposits": 2 /* the store's own mark is one */, "refused_total work": 1, "refused_total refused": 1,
		} {
			if got := measured(t, s)[prefix+name]; got != want {
				t.Errorf("metric %s is %v, want %v", name, got, want)
			}
		}
		if err := s.Drain(time.Now().Add(time.Hour)); err != nil || s.Ready() == nil || s.Healthy() != nil {
			t.Errorf("draining: %v; ready %v, healthy %v", err, s.Ready(), s.Healthy())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s.Healthy() == nil {
			t.Error("healthy after Close")
		}

		s = p.run()
		if st := s.Status(); st.Service.Queues != 1 || st.Service.Draining.IsZero() || st.Tokens != 1 {
			t.Errorf("after a restart: %+v", st)
		}
		again, err := s.Link(false, true)
		if err != nil || again.Transport != l.Transport {
			t.Errorf("after a restart the link is another's: %v", err)
		}
	})
}

// measured returns the relay's metrics; of a histogram the number of what it
// counted, and of one with labels those behind a space.
func measured(t testing.TB, s *Station) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(s.Collector())
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			all[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}

// newRecord returns somebody's record of today.
func newRecord(t testing.TB) (key [record.KeySize]byte, rec []byte) {
	t.Helper()
	var lookup identity.LookupSecret
	rand.Read(lookup[:])
	secret := func() identity.Secret {
		s, err := identity.NewSecret(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	dh, err := x25519.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a, d := identity.NewAccountKey(secret()), identity.NewDeviceKey(secret(), dh)
	key, rec, err = record.Make(rand.Reader, a, lookup, 0, 1, record.Body{
		ManifestBytes: identity.SignManifest(a, 1, []identity.DeviceEntry{{Key: d.Device(), DH: dh.Public()}}),
		Day:           record.DayOf(time.Now()),
		Bundles:       [][]byte{wire.Marshal(&wire.Signed{Body: make([]byte, 1700), Signature: make([]byte, 64)})},
	})
	if err != nil {
		t.Fatal(err)
	}
	return key, rec
}

// Two who cannot be dialled talk through the relay, until the month's traffic is
// used up.
func TestCircuitsAreOfferedWithinTheBudget(t *testing.T) {
	for name, traffic := range map[string]uint64{"no limit": 0, "used up": 1} {
		t.Run(name, func(t *testing.T) {
			s := newPlace(t, func(c *Config) { c.Traffic = traffic }).run()
			a, b := newGuest(t, libp2p.EnableRelay()), newGuest(t, libp2p.EnableRelay())
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			for _, g := range []*guest{a, b} {
				if err := g.Connect(ctx, s.info()); err != nil {
					t.Fatal(err)
				}
			}
			var err error
			soon(t, "the relay answers for circuits", func() bool {
				_, err = circuit.Reserve(ctx, a, s.info())
				return err == nil || strings.Contains(err.Error(), "PERMISSION_DENIED")
			})
			if traffic > 0 {
				if err == nil || s.Ready() == nil {
					t.Errorf("a reservation although the month is used up: %v; ready: %v", err, s.Ready())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			through, err := multiaddr.NewMultiaddr(s.near()[0].String() + "/p2p/" + s.host.ID().String() + "/p2p-circuit")
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Connect(ctx, peer.AddrInfo{ID: a.ID(), Addrs: []multiaddr.Multiaddr{through}}); err != nil {
				t.Fatal(err)
			}
			soon(t, "what was carried is counted", func() bool { st := s.Status(); return st.CircuitIn > 0 && st.CircuitOut > 0 })
		})
	}
}

func TestOpenSaysEveryProblem(t *testing.T) {
	defer goleak.VerifyNone(t)
	db, err := store.OpenMemory(store.Config{}, store.NewDisk())
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(context.Background(), Config{
		Store: db, Dir: "somewhere", Disk: spool.NewDisk(1), Quota: -1, Rate: -1,
		Listen: []string{"here"}, Announce: []string{"there", "/ip4/1.2.3.4/udp/1"}, Bootstrap: []string{"/ip4/1.2.3.4/tcp/1"},
	})
	if err == nil {
		t.Fatal("opened")
	}
	for _, want := range []string{"Config.Key", "Config.Dir", "Config.Quota", "Config.Rate", `"here"`, `"there"`, `"/ip4/1.2.3.4/udp/1"`, "Config.Bootstrap"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("says nothing of %s: %v", want, err)
		}
	}
	if err := db.View(func(*store.Tx) error { return nil }); !errors.Is(err, store.ErrClosed) {
		t.Errorf("the store is open still: %v", err)
	}
}

// A port that another program has is an error of Open, not half a relay.
func TestOpenNeedsAllItsPorts(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("", func(t *testing.T) {
		first := newPlace(t, nil).open()
		var taken []string
		for _, a := range first.near() {
			taken = append(taken, a.String())
		}
		p := newPlace(t, func(c *Config) { c.Listen = append([]string{"/ip4/127.0.0.1/tcp/0"}, taken...) })
		db, err := store.OpenMemory(store.Config{}, p.rows)
		if err != nil {
			t.Fatal(err)
		}
		p.cfg.Store = db
		if s, err := Open(context.Background(), p.cfg); err == nil {
			s.Close()
			t.Fatal("opened")
		}
		p.cfg.Listen = []string{"/ip4/127.0.0.1/tcp/0"}
		p.open() // nothing holds the disks
	})
}

func TestRunIsCalledOnce(t *testing.T) {
	s := newPlace(t, nil).open()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(ctx); !errors.Is(err, ErrRunning) {
		t.Errorf("%v, want ErrRunning", err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if err := s.Run(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
}

func TestLinkNeedsAnAddressThatIsOfUse(t *testing.T) {
	s := newPlace(t, func(c *Config) { c.Local = false }).open()
	if _, err := s.Link(true, false); !errors.Is(err, ErrUnreachable) {
		t.Errorf("%v, want ErrUnreachable", err)
	}
	if st := s.Status(); st.Tokens != 0 || st.Reach != ReachUnknown {
		t.Errorf("%d tokens were issued for no link; reach %s", st.Tokens, st.Reach)
	}
	if l, err := s.Link(false, true); err != nil || len(l.Hints) != 2 || l.Hints[0].Network != identity.QUIC {
		t.Errorf("for the local network: %v, hints %v", err, l.Hints)
	}

	s = newPlace(t, func(c *Config) {
		c.Local = false
		c.Announce = []string{"/ip4/198.41.0.4/tcp/7827", "/dns4/relay.example.org/udp/7827/quic-v1", "/ip6/2001:503::53/udp/7827/quic-v1", "/ip4/198.41.0.4/udp/7827/quic-v1"}
	}).open()
	l, err := s.Link(true, false)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range l.Hints {
		got = append(got, h.Name+h.Addr.String())
	}
	want := "relay.example.orginvalid IP 198.41.0.4 2001:503::53 198.41.0.4"
	if strings.Join(got, " ") != want || l.Admission == (relayproto.Admission{}) {
		t.Errorf("hints %q, want %q, and a token", strings.Join(got, " "), want)
	}
	if st := s.Status(); st.Reach != ReachAnnounced || len(st.Bootstrap) != 4 || !strings.HasSuffix(st.Bootstrap[0], "/p2p/"+st.PeerID) {
		t.Errorf("status %+v", st)
	}
	other, err := s.Link(true, false)
	if err != nil || other.Admission == l.Admission || s.Status().Tokens != 2 {
		t.Errorf("the second link has the token of the first: %v", err)
	}
}

// A told host has heard of others which of its addresses they could dial.
type toldHost struct {
	host.Host
	yes, no []multiaddr.Multiaddr
}

func (h toldHost) ConfirmedAddrs() (reachable, unreachable, unknown []multiaddr.Multiaddr) {
	return h.yes, h.no, nil
}

func (h toldHost) AllAddrs() []multiaddr.Multiaddr { return append(h.yes, h.no...) }

func TestConfirmedAddressesMakeALink(t *testing.T) {
	s := newPlace(t, func(c *Config) { c.Local = false }).open()
	real := s.host
	defer func() { s.host = real }()
	good, bad := multiaddr.StringCast("/ip4/198.41.0.4/udp/7827/quic-v1"), multiaddr.StringCast("/ip4/198.41.0.4/tcp/7827")

	s.host = toldHost{real, nil, []multiaddr.Multiaddr{bad}}
	if _, err := s.Link(false, false); !errors.Is(err, ErrUnreachable) || s.Status().Reach != ReachNone {
		t.Errorf("others could not dial: %v, reach %s", err, s.Status().Reach)
	}
	s.host = toldHost{real, []multiaddr.Multiaddr{good}, []multiaddr.Multiaddr{bad}}
	l, err := s.Link(false, false)
	if err != nil || len(l.Hints) != 1 || l.Hints[0].Network != identity.QUIC || s.Status().Reach != ReachConfirmed {
		t.Errorf("others dialled: %v, hints %v, reach %s", err, l.Hints, s.Status().Reach)
	}
	var states []string
	for _, a := range s.Addresses() {
		states = append(states, string(a.State))
	}
	if got := strings.Join(states, " "); got != "confirmed failed private private" {
		t.Errorf("states %q", got)
	}
}

// A relay that another has dialled back gives out a link, and knows which of its
// addresses nobody reaches.
func TestAnotherRelayDialsBack(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("", func(t *testing.T) { // its cleanups come before the look for goroutines
		alone := newPlace(t, nil).run()
		if n := alone.Check(t.Context()); n != 0 {
			t.Errorf("%d relays answered one that knows none", n)
		}
		s := newPlace(t, func(c *Config) {
			for _, a := range alone.info().Addrs {
				c.Bootstrap = append(c.Bootstrap, a.String()+"/p2p/"+alone.info().ID.String())
			}
		}).run()
		soon(t, "the two relays know each other", func() bool { return len(s.otherRelays()) == 1 && len(alone.otherRelays()) == 1 })
		if _, err := s.Link(false, false); !errors.Is(err, ErrUnreachable) {
			t.Errorf("before the check: %v, want ErrUnreachable", err)
		}
		soon(t, "the other relay answers", func() bool { return s.Check(t.Context()) == 1 })
		for _, a := range s.Addresses() {
			if a.State != Confirmed {
				t.Errorf("%s is %s, want confirmed", a.Addr, a.State)
			}
		}
		l, err := s.Link(false, false)
		if err != nil || len(l.Hints) != 2 || s.Status().Reach != ReachConfirmed {
			t.Errorf("after it: %v, hints %v, reach %s", err, l.Hints, s.Status().Reach)
		}

		// What is announced and does not lead here is told to the operator.
		open, wrong := alone.near()[1].String(), "/ip4/127.0.0.1/tcp/1"
		alone.cfg.Announce = []string{open, wrong}
		soon(t, "the other relay answers", func() bool { return alone.Check(t.Context()) == 1 })
		got := alone.Addresses()
		if got[0].State != Confirmed || got[1].State != Failed || !got[1].Announced {
			t.Errorf("%s is %s, %s is %s; want confirmed and failed", open, got[0].State, wrong, got[1].State)
		}
	})
}

// What a relay did not dial, since it sees this one at another address, says
// nothing.
func TestOnlyWhatWasDialledFails(t *testing.T) {
	const here, there = "/ip4/198.41.0.4/tcp/7827", "/ip4/198.41.0.5/tcp/7827"
	for _, c := range []struct {
		addrs   []string
		reached []bool
		want    []State
	}{
		{[]string{here}, []bool{true}, []State{Confirmed}},
		{[]string{here}, []bool{false}, []State{Failed}},
		{[]string{here, there}, []bool{false, false}, []State{"", ""}},
		{[]string{here, there}, []bool{true, false}, []State{Confirmed, ""}},
		{[]string{here, "/ip4/198.41.0.4/udp/7827/quic-v1", there}, []bool{true, false, false}, []State{Confirmed, Failed, ""}},
	} {
		results := map[string]State{}
		judge(results, casts(c.addrs), c.reached)
		for i, a := range casts(c.addrs) {
			if got := results[string(a.Bytes())]; got != c.want[i] {
				t.Errorf("%v, reached %v: %s is %q, want %q", c.addrs, c.reached, a, got, c.want[i])
			}
		}
		again := map[string]State{string(casts(c.addrs)[0].Bytes()): Confirmed}
		judge(again, casts(c.addrs), make([]bool, len(c.addrs)))
		if got := again[string(casts(c.addrs)[0].Bytes())]; got != Confirmed {
			t.Errorf("what one relay reached and another did not is %s", got)
		}
	}
}

func TestHintsAreWhatALinkCanHold(t *testing.T) {
	for addr, want := range map[string]bool{
		"/ip4/198.41.0.4/udp/7827/quic-v1":                 true,
		"/ip4/198.41.0.4/tcp/7827":                         true,
		"/ip6/2001:503::53/tcp/7827":                       true,
		"/dns/relay.example.org/tcp/7827":                  true,
		"/dns4/Relay.example.org/tcp/7827":                 false, // in lower case only
		"/ip4/198.41.0.4/udp/7827":                         false,
		"/ip4/198.41.0.4/udp/7827/quic-v1/webtransport":    false,
		"/ip4/198.41.0.4/tcp/7827/ws":                      false,
		"/ip4/0.0.0.0/tcp/7827":                            false,
		"/ip4/198.41.0.4/tcp/0":                            false,
		"/ip4/198.41.0.4":                                  false,
		"/ip4/198.41.0.4/tcp/7827/p2p-circuit":             false,
		"/ip6zone/eth0/ip6/fe80::1/tcp/7827":               false,
		"/ip4/198.41.0.4/tcp/7827/ip4/198.41.0.4/tcp/7827": false,
	} {
		if _, ok := hintOf(zeroTransport, multiaddr.StringCast(addr)); ok != want {
			t.Errorf("%s: %t, want %t", addr, ok, want)
		}
	}
}

func TestKeyFileIsKept(t *testing.T) {
	dir := t.TempDir()
	path, backup := dir+"/relay.key", dir+"/backup"
	k, err := CreateKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKeyFile(path); err == nil {
		t.Error("a key was written over")
	}
	if err := BackupKeyFile(path, backup); err != nil {
		t.Fatal(err)
	}
	if err := BackupKeyFile(path, backup); err == nil {
		t.Error("a backup was written over")
	}
	for _, p := range []string{path, backup} {
		if got, err := OpenKeyFile(p); err != nil || !got.Equals(k) {
			t.Errorf("%s: %v, or another key", p, err)
		}
	}
	testKeyFileRefuses(t, dir)
}

func TestFreshKeysDiffer(t *testing.T) {
	dir := t.TempDir()
	a, errA := CreateKeyFile(dir + "/a")
	b, errB := CreateKeyFile(dir + "/b")
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	rawA, _ := a.Raw()
	rawB, _ := b.Raw()
	if bytes.Equal(rawA, rawB) {
		t.Error("two keys are one")
	}
}
