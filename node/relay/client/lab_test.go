package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	libnet "github.com/libp2p/go-libp2p/core/network"

	"starling/node/relay"
	"starling/node/relay/spool"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	pure "starling/protocol/relay"
	"starling/protocol/wire"
	"starling/simulation/network"
)

// A lab is a network in virtual time, with a relay at site 0 and users at the
// others. The latency of every link is 50 ms.
type lab struct {
	testing.TB
	net  *network.Net
	port *network.Port // of the relay
	key  crypto.PrivKey

	rows  *store.Disk
	spool *spool.Disk
	admit relay.Admit
	stop  func() // of the relay that runs, or nil
	*relay.Service
}

// inLab runs f in a bubble, which proves that nothing is left running.
func inLab(t *testing.T, loss float64, f func(l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n, err := network.New(network.Config{
			Sites: 16, Loss: loss, Topology: network.Uniform(50*time.Millisecond, 50*time.Millisecond, 0),
		})
		if err != nil {
			t.Fatal(err)
		}
		l := &lab{TB: t, net: n, key: newKey(t)}
		l.port = l.join(0)
		l.loseDisk()
		f(l)
		l.down()
	})
}

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (l *lab) join(site int) *network.Port {
	l.Helper()
	p, err := l.net.Join(network.Site{Index: site}, 0, 0)
	if err != nil {
		l.Fatal(err)
	}
	return p
}

func (l *lab) loseDisk() { l.rows, l.spool = store.NewDisk(), spool.NewDisk(1) }

// host starts the relay's host.
func (l *lab) host() host.Host {
	l.Helper()
	h, err := libp2p.New(append(l.port.Options(), libp2p.Identity(l.key), libp2p.ListenAddrStrings(l.port.Listen()),
		libp2p.DisableMetrics(), libp2p.DisableRelay(), libp2p.Ping(false), libp2p.DisableIdentifyAddressDiscovery())...)
	if err != nil {
		l.Fatal(err)
	}
	return h
}

// up starts the relay.
func (l *lab) up() {
	l.Helper()
	h := l.host()
	db, err := store.OpenMemory(store.Config{}, l.rows)
	if err != nil {
		l.Fatal(err)
	}
	l.Service, err = relay.New(relay.Config{
		Host: h, Key: l.key, Store: db, Disk: l.spool, Quota: 64 << 20, Admit: l.admit, Limits: relay.Limits{WorkBits: 4},
	})
	if err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := l.Run(ctx); err != nil {
			l.Errorf("running the relay: %v", err)
		}
	})
	synctest.Wait()
	l.stop = func() {
		cancel()
		running.Wait()
		if err := errors.Join(l.Service.Close(), db.Close(), h.Close()); err != nil {
			l.Errorf("closing the relay: %v", err)
		}
	}
}

func (l *lab) down() {
	if l.stop != nil {
		l.stop()
		l.stop = nil
	}
}

// fake starts a relay that says what script has it say: for each request of a
// stream, counted from 0, it writes to the stream or does not. If it returns
// false the stream is reset.
func (l *lab) fake(script func(s libnet.Stream, n int, req *wire.RelayRequest) bool) {
	l.Helper()
	h := l.host()
	var handlers sync.WaitGroup
	h.SetStreamHandler(protocol.StreamRelay, func(s libnet.Stream) {
		handlers.Add(1)
		defer handlers.Done()
		r := byteReader{s}
		for n := 0; ; n++ {
			b, err := wire.ReadFrame(r, protocol.MaxRelayRequest)
			if err != nil {
				_ = s.Reset()
				return
			}
			req := new(wire.RelayRequest)
			if err := wire.Parse(b, len(b), req); err != nil || !script(s, n, req) {
				_ = s.Reset()
				return
			}
		}
	})
	l.stop = func() {
		if err := h.Close(); err != nil {
			l.Errorf("closing the fake relay: %v", err)
		}
		handlers.Wait()
	}
}

// A byteReader reads a stream byte by byte.
type byteReader struct{ io.Reader }

func (r byteReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

// say writes an answer.
func say(s io.Writer, a *wire.RelayAnswer) bool { return wire.WriteFrame(s, wire.Marshal(a)) == nil }

// sayInfo answers Info honestly.
func sayInfo(s io.Writer) bool {
	return say(s, &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK, Result: &wire.RelayAnswer_Info{Info: &wire.RelayInfo{
		Time: time.Now().Unix(), Store: make([]byte, 16), DepositBits: 2, KeyBits: 2,
	}}})
}

func sayStatus(s io.Writer, status wire.RelayStatus) bool {
	return say(s, &wire.RelayAnswer{Status: status})
}

// self is the relay's key.
func (l *lab) self() identity.Transport {
	raw, err := l.key.GetPublic().Raw()
	if err != nil {
		l.Fatal(err)
	}
	return identity.Transport(raw)
}

// endpoint says where the relay is.
func (l *lab) endpoint() identity.Endpoint {
	return identity.Endpoint{Transport: l.self(), Addrs: [][]byte{addrOf(l, l.port.Listen())}}
}

// dial opens a stream under a key of its own, from the site of p.
func (l *lab) dial(p *network.Port, d Dialer) *Conn {
	l.Helper()
	h, err := NewHosts(p.Options()...).New()
	if err != nil {
		l.Fatal(err)
	}
	c, err := d.Dial(context.Background(), h, l.endpoint())
	if err != nil {
		l.Fatal(err)
	}
	stop := l.stop
	l.stop = func() {
		_ = c.Close()
		_ = h.Close()
		stop()
	}
	return c
}

// A place is a queue as its reader and its depositors know it.
type place struct {
	key        *pure.ReaderKey
	id         pure.QueueID
	capability pure.Capability
}

func newPlace(t testing.TB) *place {
	t.Helper()
	secret, err := identity.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	capability, err := pure.NewCapability(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := pure.NewReaderKey(secret)
	return &place{k, k.Reader().Queue(), capability}
}

const (
	pairwise = wire.QueueKind_QUEUE_KIND_PAIRWISE
	box      = wire.QueueKind_QUEUE_KIND_BOX
	logQueue = wire.QueueKind_QUEUE_KIND_LOG
)

// create makes the queue of p on c.
func (p *place) create(ctx context.Context, c *Conn, kind wire.QueueKind) (Queue, error) {
	q := NewQueue{Kind: kind, Expires: c.Time().Add(10 * day)}
	if kind != box {
		q.Capability = &p.capability
	}
	if kind == logQueue {
		q.Closes = c.Time().Add(day)
	}
	return c.Create(ctx, p.key, q)
}

func (p *place) mustCreate(t testing.TB, c *Conn, kind wire.QueueKind) {
	t.Helper()
	if q, err := p.create(t.Context(), c, kind); err != nil || !q.Known {
		t.Fatalf("making a queue: %+v, %v", q, err)
	}
}

// deposits are n random blobs of a size for p, by its capability.
func (p *place) deposits(c *Conn, n, size int) []Deposit {
	ds := make([]Deposit, n)
	for i := range ds {
		ds[i] = Deposit{Queue: p.id, Blob: blob(size), Expires: c.Time().Add(day).Unix(), Capability: &p.capability}
	}
	return ds
}

func blob(size int) []byte {
	b := make([]byte, size)
	rand.Read(b)
	return b
}

// mustDeposit leaves n blobs and returns them.
func (p *place) mustDeposit(t testing.TB, c *Conn, n int) [][]byte {
	t.Helper()
	ds := p.deposits(c, n, 2160)
	var blobs [][]byte
	for i, o := range c.Deposit(t.Context(), ds) {
		if o.Err != nil {
			t.Fatalf("deposit %d of %d: %v", i, n, o.Err)
		}
		blobs = append(blobs, ds[i].Blob)
	}
	return blobs
}

func blobsOf(es []Entry) [][]byte {
	var bs [][]byte
	for _, e := range es {
		bs = append(bs, e.Blob)
	}
	return bs
}

// sameBlobs reports whether a and b are the same, in any order.
func sameBlobs(a, b [][]byte) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, bytes.Compare)
	slices.SortFunc(b, bytes.Compare)
	return slices.EqualFunc(a, b, bytes.Equal)
}
