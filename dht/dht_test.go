package dht

import (
	"bytes"
	"context"
	"crypto/ed25519"
	crand "crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"starling/dht/record"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// patience is far beyond what anything here needs.
const patience = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func seeded(s string) *rand.ChaCha8 { return rand.NewChaCha8(sha256.Sum256([]byte(s))) }

// An account makes records as a node does.
type account struct {
	testing.TB
	key      *identity.AccountKey
	lookup   identity.LookupSecret
	manifest []byte
	rand     *rand.ChaCha8
}

func newAccount(t testing.TB, name string) *account {
	t.Helper()
	r := seeded(name)
	draw := func() identity.Secret {
		s, err := identity.NewSecret(r)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a := &account{TB: t, key: identity.NewAccountKey(draw()), rand: r}
	r.Read(a.lookup[:])
	dh, err := x25519.Generate(r)
	if err != nil {
		t.Fatal(err)
	}
	d := identity.NewDeviceKey(draw(), dh)
	a.manifest = identity.SignManifest(a.key, 1, []identity.DeviceEntry{{Key: d.Device(), DH: dh.Public()}})
	return a
}

func (a *account) id() identity.Account { return a.key.Account() }

// record returns the account's record of a day.
func (a *account) record(day uint32, replica byte, counter, seq uint64) Record {
	a.Helper()
	bundle := make([]byte, 1700)
	a.rand.Read(bundle)
	transport := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)).Public().(ed25519.PublicKey)
	key, rec, err := record.Make(a.rand, a.key, a.lookup, replica, counter, record.Body{
		ManifestBytes: a.manifest,
		Day:           day,
		Seq:           seq,
		Bundles:       [][]byte{wire.Marshal(&wire.Signed{Body: bundle, Signature: make([]byte, 64)})},
		Endpoints:     []identity.Endpoint{{Transport: identity.Transport(transport), Addrs: [][]byte{{4, 192, 0, 2, 1, 6, 15, 161}}}},
	})
	if err != nil {
		a.Fatal(err)
	}
	return Record{key, rec}
}

func (a *account) today(replica byte, counter, seq uint64) Record {
	return a.record(record.DayOf(time.Now()), replica, counter, seq)
}

// version is that of a record with this seq, made today.
func version(seq uint64) record.Version {
	return record.Version{Generation: 1, Day: record.DayOf(time.Now()), Seq: seq}
}

// Records implements [Source]: what should be in the network now.
func (a *account) Records(now time.Time) ([]Record, error) {
	var recs []Record
	for _, day := range PublishDays(now) {
		for r := range byte(record.Replicas) {
			recs = append(recs, a.record(day, r, 1, 1))
		}
	}
	return recs, nil
}

func newHost(t testing.TB) host.Host {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return hostWith(t, libp2p.Identity(key))
}

func hostWith(t testing.TB, opts ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append([]libp2p.Option{
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
		libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.Ping(false),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func infoOf(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

func connect(t testing.TB, a, b host.Host) {
	t.Helper()
	if err := a.Connect(t.Context(), infoOf(b)); err != nil {
		t.Fatal(err)
	}
}

// node starts a DHT server of a loopback network.
func node(t testing.TB, change func(*Config)) *DHT {
	t.Helper()
	cfg := Config{Host: newHost(t), Mode: ModeServer, AllowPrivate: true, NoDiversity: true}
	if change != nil {
		change(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// start runs fn until the test ends, and waits for it.
func start(t testing.TB, fn func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := fn(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

// until waits for ok.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// ring starts n nodes that bootstrap from the first, and waits until each
// knows all.
func ring(t testing.TB, n int, change func(i int, cfg *Config)) []*DHT {
	t.Helper()
	var nodes []*DHT
	for i := range n {
		d := node(t, func(cfg *Config) {
			if i > 0 {
				cfg.Bootstrap = []peer.AddrInfo{infoOf(nodes[0].host)}
			}
			if change != nil {
				change(i, cfg)
			}
		})
		start(t, d.Run)
		nodes = append(nodes, d)
	}
	for i, d := range nodes {
		polls := 0
		until(t, fmt.Sprintf("node %d knows all", i), func() bool {
			if polls++; polls%100 == 0 {
				d.kad.RefreshRoutingTable() // for those who came later
			}
			return d.Peers() == n-1
		})
	}
	return nodes
}

func lookup(t testing.TB, d *DHT, a *account, highest record.Version) (record.Body, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return d.Lookup(ctx, a.id(), a.lookup, highest)
}

func TestNetworkPublishesAndLooksUp(t *testing.T) {
	alice := newAccount(t, "alice")
	var told sync.Map // of what was published: key to holders
	nodes := ring(t, 8, func(i int, cfg *Config) {
		if i == 1 {
			cfg.OnPublished = func(r Record, holders int, err error) {
				if err == nil {
					told.Store(r.Key, holders)
				}
			}
		}
	})
	start(t, func(ctx context.Context) error { return nodes[1].RunPublisher(ctx, alice) })
	for i, d := range nodes {
		if i == 1 {
			continue
		}
		var body record.Body
		until(t, fmt.Sprintf("node %d finds the record", i), func() (ok bool) {
			var err error
			body, err = lookup(t, d, alice, record.Version{})
			return err == nil
		})
		if body.Manifest.Account != alice.id() || body.Version() != version(1) {
			t.Errorf("node %d found version %v of another record", i, body.Version())
		}
	}
	if nodes[1].LastPublished().IsZero() {
		t.Error("LastPublished is zero after a publication")
	}
	key := record.Key(alice.id(), alice.lookup, record.DayOf(time.Now()), 0)
	if n, _ := told.Load(key); n != 7 {
		t.Errorf("OnPublished was told of %v holders, want 7", n)
	}

	// Nobody else's record is there.
	if _, err := lookup(t, nodes[3], newAccount(t, "nobody"), record.Version{}); !errors.Is(err, ErrNotFound) || errors.Is(err, ErrStale) {
		t.Errorf("looking up an account that never published: %v, want ErrNotFound", err)
	}
	// Newer than everything that exists, also in the hour in which tomorrow's is
	// there: the record counts as an old one.
	newer := version(1)
	newer.Generation++
	if _, err := lookup(t, nodes[3], alice, newer); !errors.Is(err, ErrStale) {
		t.Errorf("looking up with a higher mark: %v, want ErrStale", err)
	}
}

// The holders of replica 0 die; those of replica 1 are others.
func TestLookupWhenOneReplicasHoldersAreGone(t *testing.T) {
	alice := newAccount(t, "alice")
	nodes := ring(t, 7, nil)
	for i, d := range nodes[:6] {
		r := alice.today(byte(i/3), 1, 1)
		if err := d.store.put(r.Key, r.Bytes, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range nodes[:3] {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		d.host.Close()
	}
	if _, err := lookup(t, nodes[6], alice, record.Version{}); err != nil {
		t.Error(err)
	}
}

// A record of yesterday is found while today's is not there.
func TestLookupFindsYesterdaysRecord(t *testing.T) {
	alice := newAccount(t, "alice")
	nodes := ring(t, 2, nil)
	yesterday := record.DayOf(time.Now()) - 1
	r := alice.record(yesterday, 1, 1, 1)
	if err := nodes[0].Publish(t.Context(), r.Key, r.Bytes); err != nil {
		t.Fatal(err)
	}
	body, err := lookup(t, nodes[1], alice, record.Version{})
	if err != nil || body.Day != yesterday {
		t.Errorf("found day %d: %v; want %d", body.Day, err, yesterday)
	}
}

// Holders offer genuine records of the same day that are older than what the
// reader has seen. 1,000 times by lookup and by fetch; none is accepted.
func TestRollbackOfferedAThousandTimesIsNeverAccepted(t *testing.T) {
	alice := newAccount(t, "alice")
	nodes := ring(t, 2, func(_ int, cfg *Config) { cfg.Refresh, cfg.unlimited = -1, true })
	holder, reader := nodes[0], nodes[1]

	seen := version(100)
	var old []Record
	for seq := range uint64(50) {
		old = append(old, alice.today(byte(seq%2), 1, 2*seq)) // up to 98
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	accepted, offered, offers := 0, 0, fewer(1000)
	for i := range offers {
		if i%20 == 0 {
			r := old[i/20]
			if err := holder.store.put(r.Key, r.Bytes, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if i%4 == 0 {
			_, err = reader.Lookup(ctx, alice.id(), alice.lookup, seen)
		} else {
			_, err = reader.Fetch(ctx, holder.host.ID(), alice.id(), alice.lookup, seen)
		}
		switch {
		case err == nil:
			accepted++
		case errors.Is(err, ErrStale):
			offered++
		default:
			t.Fatal(err)
		}
	}
	if accepted != 0 || offered != offers {
		t.Errorf("%d old records offered, %d accepted; want %d and 0", offered, accepted, offers)
	}
	// The same version and a newer one are not a rollback.
	for _, seq := range []uint64{100, 101} {
		r := alice.today(0, 1, seq)
		if err := holder.store.put(r.Key, r.Bytes, time.Now()); err != nil {
			t.Fatal(err)
		}
		if body, err := reader.Fetch(ctx, holder.host.ID(), alice.id(), alice.lookup, seen); err != nil || body.Seq != seq {
			t.Errorf("seq %d: fetched seq %d: %v", seq, body.Seq, err)
		}
	}
}

// What a holder has on it names nobody, and what belongs together looks like
// any two records (promise 8).
func TestHolderCannotReadOrLinkRecords(t *testing.T) {
	nodes := ring(t, 3, nil)
	var secrets [][]byte
	for _, name := range []string{"alice", "bob"} {
		a := newAccount(t, name)
		id := a.id()
		secrets = append(secrets, id[:], a.lookup[:], a.manifest, []byte(id.String()))
		for day := record.DayOf(time.Now()) - 1; day <= record.DayOf(time.Now())+1; day++ {
			for replica := range byte(record.Replicas) {
				r := a.record(day, replica, 1, 1)
				if err := nodes[0].Publish(t.Context(), r.Key, r.Bytes); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	self, err := nodes[0].host.ID().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, self) // who published

	const run = 7 // bytes that two random records do not share by chance
	d := nodes[2]
	if len(d.store.held) != 12 {
		t.Fatalf("%d records held, want 12", len(d.store.held))
	}
	seen := map[string]int{} // run to the record it was seen in
	i := 0
	for _, e := range d.store.held {
		for _, s := range secrets {
			for j := range len(s) - run + 1 {
				if bytes.Contains(e.stored, s[j:j+run]) {
					t.Errorf("a stored record shows %x", s[j:j+run])
				}
			}
		}
		// The counters and the day are public, and equal on purpose.
		public := func(at int) bool { return at < 46 && at+run > 33 || at < 150 && at+run > 142 }
		for j := range len(e.rec) - run + 1 {
			if public(j) {
				continue
			}
			if k, ok := seen[string(e.rec[j:j+run])]; ok && k != i {
				t.Errorf("two records share %x", e.rec[j:j+run])
			}
			seen[string(e.rec[j:j+run])] = i
		}
		i++
	}
}

func TestPublishTellsOfABetterRecord(t *testing.T) {
	alice := newAccount(t, "alice")
	nodes := ring(t, 3, nil)
	newer := alice.today(0, 7, 0)
	if err := nodes[0].Publish(t.Context(), newer.Key, newer.Bytes); err != nil {
		t.Fatal(err)
	}
	older := alice.today(0, 6, 9)
	var e *SupersededError
	if err := nodes[1].Publish(t.Context(), older.Key, older.Bytes); !errors.As(err, &e) || e.Counter != 7 {
		t.Errorf("publishing below counter 7: %v, want a SupersededError with 7", err)
	}
	newest := alice.today(0, 8, 0)
	if err := nodes[1].Publish(t.Context(), newest.Key, newest.Bytes); err != nil {
		t.Errorf("publishing above it: %v", err)
	}
	if err := nodes[1].Publish(t.Context(), newer.Key, newest.Bytes[:4095]); !errors.Is(err, record.ErrInvalid) {
		t.Errorf("publishing a cut record: %v, want record.ErrInvalid", err)
	}
}

func TestPublishRepairs(t *testing.T) {
	alice := newAccount(t, "alice")
	nodes := ring(t, 3, nil)
	old, newer := alice.today(0, 1, 1), alice.today(0, 1, 2)
	// One holder answers PUT as if it had stored the record, and has not.
	liar := nodes[2]
	lied := make(chan struct{}, 100)
	liar.host.SetStreamHandler(liar.kadID, func(s network.Stream) {
		liar.serveKad(s, func(s network.Stream) {
			defer s.Close()
			b, err := wire.ReadFrame(s, 1<<20)
			if err != nil {
				return
			}
			var m pb.Message
			if err := proto.Unmarshal(b, &m); err != nil {
				return
			}
			if m.GetType() == pb.Message_GET_VALUE {
				m.Record = &recpb.Record{Key: m.Key, Value: old.Bytes}
			}
			if m.GetType() == pb.Message_PUT_VALUE {
				lied <- struct{}{}
			}
			wire.WriteFrame(s, wire.Marshal(&m))
		})
	})
	if err := nodes[0].Publish(t.Context(), newer.Key, newer.Bytes); err != nil {
		t.Fatal(err)
	}
	if n := len(lied); n < 2 {
		t.Errorf("a holder that shows an old record got %d PUTs, want a second one", n)
	}
}

// kad-dht v0.42.0 dereferences nil when a PUT is answered without a record. Our
// sender refuses the answer first.
func TestAnswerWithoutRecordIsRefused(t *testing.T) {
	nodes := ring(t, 2, nil)
	nodes[1].host.SetStreamHandler(nodes[1].kadID, func(s network.Stream) {
		nodes[1].serveKad(s, func(s network.Stream) {
			defer s.Close()
			b, err := wire.ReadFrame(s, 1<<20)
			if err != nil {
				return
			}
			var m pb.Message
			if err := proto.Unmarshal(b, &m); err != nil {
				return
			}
			m.Record = nil
			wire.WriteFrame(s, wire.Marshal(&m))
		})
	})
	r := newAccount(t, "alice").today(0, 1, 1)
	if err := nodes[0].Publish(t.Context(), r.Key, r.Bytes); err == nil {
		t.Error("a PUT that was answered without a record counts as one that succeeded")
	}
}

func TestOversizedAnswerIsNotRead(t *testing.T) {
	nodes := ring(t, 2, nil)
	nodes[1].host.SetStreamHandler(nodes[1].kadID, func(s network.Stream) {
		s.Write([]byte{0x80, 0x80, 0x80, 0x40, 0, 0, 0}) // 128 MiB are announced
	})
	m := pb.NewMessage(pb.Message_PING, nil, 0)
	if _, err := nodes[0].sender.SendRequest(t.Context(), nodes[1].host.ID(), m); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("an answer of 128 MiB: %v, want wire.ErrMalformed", err)
	}
}

func TestPutLimits(t *testing.T) {
	d := node(t, nil)
	flooder := node(t, nil)
	connect(t, flooder.host, d.host)
	messenger, err := pb.NewProtocolMessenger(flooder.sender)
	if err != nil {
		t.Fatal(err)
	}
	taken := 0
	begun := time.Now()
	for i := range 100 {
		r := newAccount(t, fmt.Sprint("flood/", i)).today(0, 1, 1)
		if messenger.PutValue(t.Context(), d.host.ID(), &recpb.Record{Key: []byte(kadKey(r.Key)), Value: r.Bytes}) == nil {
			taken++
		}
	}
	allowed := int(putsByPeer.burst + putsByPeer.rate*time.Since(begun).Seconds())
	if n, _ := d.Held(); taken < int(putsByPeer.burst) || taken > allowed || n != taken {
		t.Errorf("one peer's 100 PUTs: %d taken, %d held; want %v to %d", taken, n, putsByPeer.burst, allowed)
	}
	// The peer may still ask, and another may still put.
	if _, _, err := messenger.GetValue(t.Context(), d.host.ID(), kadKey([32]byte{1})); err != nil {
		t.Errorf("a GET after too many PUTs: %v", err)
	}
	other := node(t, nil)
	connect(t, other.host, d.host)
	until(t, "the other knows the holder", func() bool { return other.Peers() > 0 })
	r := newAccount(t, "alice").today(0, 1, 1)
	if err := other.Publish(t.Context(), r.Key, r.Bytes); err != nil {
		t.Errorf("another peer's PUT: %v", err)
	}
}

// PUTs that must not be stored, as kad-dht would take them from a stranger.
func TestHostilePuts(t *testing.T) {
	d, stranger := node(t, nil), node(t, nil)
	connect(t, stranger.host, d.host)
	good := newAccount(t, "alice").today(0, 1, 1)
	other := newAccount(t, "bob").today(0, 1, 1)
	late := newAccount(t, "alice").record(record.DayOf(time.Now())-2, 0, 1, 1)
	for what, m := range map[string]struct{ key, inner, value string }{
		"another namespace":  {"/pk/" + string(good.Key[:]), "", string(good.Bytes)},
		"no namespace":       {string(good.Key[:]), "", string(good.Bytes)},
		"another's key":      {kadKey(other.Key), "", string(good.Bytes)},
		"two days old":       {kadKey(late.Key), "", string(late.Bytes)},
		"18 KiB":             {kadKey(good.Key), "", string(good.Bytes) + string(make([]byte, 14<<10))},
		"1 MiB":              {kadKey(good.Key), "", string(make([]byte, 1<<20))},
		"empty":              {kadKey(good.Key), "", ""},
		"inner key differs":  {kadKey(good.Key), kadKey(other.Key), string(good.Bytes)},
		"key of 64 KiB":      {string(make([]byte, 64<<10)), "", string(good.Bytes)},
		"key without record": {protocol.KadPrefix + "/", "", string(good.Bytes)},
	} {
		inner := m.inner
		if inner == "" {
			inner = m.key
		}
		req := pb.NewMessage(pb.Message_PUT_VALUE, []byte(m.key), 0)
		req.Record = &recpb.Record{Key: []byte(inner), Value: []byte(m.value)}
		if _, err := stranger.sender.SendRequest(t.Context(), d.host.ID(), req); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	if n, _ := d.Held(); n != 0 {
		t.Errorf("%d records held, want 0", n)
	}
}

// FIND_NODE must not turn our address book into an oracle of whom we talk to,
// nor tell private addresses to those outside.
func TestFindNodeTellsNoAddressBook(t *testing.T) {
	asker := node(t, nil)
	ask := func(d *DHT, target peer.ID) (told int) {
		t.Helper()
		connect(t, asker.host, d.host)
		m := pb.NewMessage(pb.Message_FIND_NODE, []byte(target), 0)
		a, err := asker.sender.SendRequest(t.Context(), d.host.ID(), m)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pb.PBPeersToPeerInfos(a.GetCloserPeers()) {
			if p.ID == target {
				told += len(p.Addrs)
			}
		}
		return told
	}

	open := node(t, nil)
	contact := newHost(t) // exchanges messages, and is no DHT server
	connect(t, open.host, contact)
	if n := ask(open, contact.ID()); n != 0 {
		t.Errorf("FIND_NODE told %d addresses of a peer outside the routing table", n)
	}
	server := node(t, nil)
	connect(t, server.host, open.host)
	until(t, "the server is in the routing table", func() bool { return open.kad.RoutingTable().Find(server.host.ID()) != "" })
	if n := ask(open, server.host.ID()); n == 0 {
		t.Error("FIND_NODE told no address of a server although private ones are allowed")
	}

	closed := node(t, func(cfg *Config) { cfg.AllowPrivate = false })
	connect(t, server.host, closed.host)
	until(t, "the server is in the routing table", func() bool { return closed.kad.RoutingTable().Find(server.host.ID()) != "" })
	if n := ask(closed, server.host.ID()); n != 0 {
		t.Errorf("FIND_NODE told %d private addresses", n)
	}
	if n := ask(closed, closed.host.ID()); n != 0 {
		t.Errorf("FIND_NODE told %d private addresses of the node itself", n)
	}
}

// On a LAN the default Config works too: connected peers need no public
// address.
func TestConnectedPeersServeWithoutPublicAddresses(t *testing.T) {
	alice := newAccount(t, "alice")
	nodes := ring(t, 2, func(_ int, cfg *Config) { cfg.AllowPrivate, cfg.Mode = false, ModeAuto })
	r := alice.today(0, 1, 1)
	if err := nodes[0].Publish(t.Context(), r.Key, r.Bytes); err != nil {
		t.Fatal(err)
	}
	if _, err := lookup(t, nodes[1], alice, record.Version{}); err != nil {
		t.Error(err)
	}
}

func TestOtherKeysAreRefused(t *testing.T) {
	d := node(t, nil)
	key, _, err := crypto.GenerateECDSAKeyPair(crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h := hostWith(t, libp2p.Identity(key))
	connect(t, h, d.host)
	for _, id := range []string{string(d.kadID), protocol.StreamRecord} {
		s, err := h.NewStream(t.Context(), d.host.ID(), libproto.ID(id))
		if err != nil {
			continue // refused while it was negotiated
		}
		wire.WriteFrame(s, wire.Marshal(pb.NewMessage(pb.Message_PING, nil, 0)))
		if b, err := wire.ReadFrame(s, maxAnswer); err == nil {
			t.Errorf("%s answered a peer whose key is not Ed25519 with %d bytes", id, len(b))
		}
		s.Reset()
	}
	if _, err := New(Config{Host: h}); err == nil {
		t.Error("New takes a host whose key is not Ed25519")
	}
}

// A peerStore remembers in memory.
type peerStore struct {
	mu    sync.Mutex
	peers []peer.AddrInfo
	saves int
}

func (s *peerStore) LoadPeers() ([]peer.AddrInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers, nil
}

func (s *peerStore) SavePeers(p []peer.AddrInfo) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers = p
	s.saves++
	return nil
}

func TestRestartNeedsNoBootstrap(t *testing.T) {
	nodes := ring(t, 3, nil)
	remembered := new(peerStore)
	first := node(t, func(cfg *Config) {
		cfg.Bootstrap = []peer.AddrInfo{infoOf(nodes[0].host)}
		cfg.Peers = remembered
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var run sync.WaitGroup
	run.Go(func() {
		if err := first.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	until(t, "the node knows all", func() bool { return first.Peers() == 3 })
	cancel()
	run.Wait()
	if remembered.saves != 1 || len(remembered.peers) != 3 {
		t.Fatalf("saved %d times, %d peers; want 1 and 3", remembered.saves, len(remembered.peers))
	}

	nodes[0].host.Close() // the only bootstrap peer is gone
	second := node(t, func(cfg *Config) { cfg.Peers = remembered })
	start(t, second.Run)
	until(t, "the restarted node has joined", func() bool { return second.Peers() >= 2 })
}

func TestLonelyNodeSaysSo(t *testing.T) {
	alice := newAccount(t, "alice")
	d := node(t, nil)
	r := alice.today(0, 1, 1)
	if err := d.Publish(t.Context(), r.Key, r.Bytes); !errors.Is(err, ErrNoPeers) {
		t.Errorf("Publish: %v, want ErrNoPeers", err)
	}
	if _, err := lookup(t, d, alice, record.Version{}); !errors.Is(err, ErrNoPeers) {
		t.Errorf("Lookup: %v, want ErrNoPeers", err)
	}
	if d.Mode() != "server" || d.Peers() != 0 || !d.LastPublished().IsZero() {
		t.Errorf("mode %s, %d peers, published %v", d.Mode(), d.Peers(), d.LastPublished())
	}
	client := node(t, func(cfg *Config) { cfg.Mode = ModeClient })
	if client.Mode() != "client" {
		t.Errorf("mode %s, want client", client.Mode())
	}
}

// Close ends what is under way and leaves the host as it was.
func TestCloseJoinsEverything(t *testing.T) {
	before := newHost(t)
	handlers := len(before.Mux().Protocols())
	silent := newHost(t)
	silent.SetStreamHandler(protocol.StreamRecord, func(s network.Stream) {}) // never answers
	d, err := New(Config{Host: before, Mode: ModeServer, AllowPrivate: true, Peers: new(peerStore)})
	if err != nil {
		t.Fatal(err)
	}
	connect(t, before, silent)
	alice := newAccount(t, "alice")

	var ops sync.WaitGroup
	for _, run := range []func() error{
		func() error { return d.Run(t.Context()) },
		func() error { return d.RunPublisher(t.Context(), alice) },
	} {
		ops.Go(func() {
			if err := run(); err != nil && !errors.Is(err, ErrClosed) { // closed before it began
				t.Error(err)
			}
		})
	}
	asked := make(chan struct{})
	silent.SetStreamHandler(protocol.StreamRecord, func(s network.Stream) { close(asked) })
	ops.Go(func() {
		if _, err := d.Fetch(t.Context(), silent.ID(), alice.id(), alice.lookup, record.Version{}); err == nil {
			t.Error("Fetch from a silent peer returned")
		}
	})
	// And someone who opens streams to us and says nothing.
	for _, id := range []string{string(d.kadID), protocol.StreamRecord} {
		s, err := silent.NewStream(t.Context(), before.ID(), libproto.ID(id))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte{9}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-asked:
	case <-time.After(patience):
		t.Fatal("the silent peer was not asked")
	}
	var closers sync.WaitGroup
	for range 3 {
		closers.Go(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closers.Wait()
	ops.Wait()
	if err := d.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if n := len(before.Mux().Protocols()); n != handlers {
		t.Errorf("%d handlers on the host after Close, want %d", n, handlers)
	}
	if _, err := d.Lookup(t.Context(), alice.id(), alice.lookup, record.Version{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Lookup after Close: %v, want ErrClosed", err)
	}
	if err := d.Run(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Run after Close: %v, want ErrClosed", err)
	}
	before.Close()
	silent.Close()
	goleak.VerifyNone(t)
}

func TestNewRefusesABadConfig(t *testing.T) {
	_, err := New(Config{Mode: 9, MaxBytes: -1})
	for _, want := range []string{"Host", "mode 9", "MaxBytes"} {
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("New: %v does not tell of %s", err, want)
		}
	}
}

// Config.Table bounds how many hold a record.
func TestTable(t *testing.T) {
	var nodes []*DHT
	for i := range 7 {
		nodes = append(nodes, node(t, func(cfg *Config) { cfg.Table = 3 }))
		for _, d := range nodes[:i] {
			connect(t, nodes[i].host, d.host)
		}
	}
	d := nodes[6]
	until(t, "it knows enough", func() bool { return d.Peers() >= 3 })
	a := newAccount(t, "Ada")
	holders, err := d.publish(t.Context(), a.today(0, 1, 1))
	if err != nil || holders != 3 {
		t.Errorf("%d holders, %v; want 3", holders, err)
	}
}
