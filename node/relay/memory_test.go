package relay

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"starling/node/relay/spool"
	"starling/node/store"
	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/wire"
)

// A memoryHost is a host whose streams are pipes in memory, for numbers of
// clients that have no place in one machine's table of sockets.
type memoryHost struct {
	host.Host
	id peer.ID
	wg sync.WaitGroup // handlers running

	mu      sync.Mutex // guards handler
	handler network.StreamHandler
}

func (h *memoryHost) ID() peer.ID { return h.id }

func (h *memoryHost) SetStreamHandler(_ libp2pproto.ID, fn network.StreamHandler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handler = fn
}

func (h *memoryHost) RemoveStreamHandler(libp2pproto.ID) { h.SetStreamHandler("", nil) }

func (h *memoryHost) handles() network.StreamHandler {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.handler
}

// A memoryClient opens streams to a memoryHost, as a peer at an address.
type memoryClient struct {
	host.Host
	id peer.ID
	at ma.Multiaddr
	to *memoryHost
}

func (c *memoryClient) NewStream(context.Context, peer.ID, ...libp2pproto.ID) (network.Stream, error) {
	near, far := net.Pipe()
	fn := c.to.handles()
	c.to.wg.Go(func() { fn(&memoryStream{pipe: far, local: c.to.id, remote: c.id, at: c.at}) })
	return &memoryStream{pipe: near, local: c.id, remote: c.to.id, at: c.at}, nil
}

// A memoryStream is one end of a stream, but for the methods that nobody needs.
type memoryStream struct {
	network.Stream
	pipe          net.Conn
	local, remote peer.ID
	at            ma.Multiaddr // of the client
}

func (s *memoryStream) Read(b []byte) (int, error)                   { return s.pipe.Read(b) }
func (s *memoryStream) Write(b []byte) (int, error)                  { return s.pipe.Write(b) }
func (s *memoryStream) Close() error                                 { return s.pipe.Close() }
func (s *memoryStream) Reset() error                                 { return s.pipe.Close() }
func (s *memoryStream) ResetWithError(network.StreamErrorCode) error { return s.pipe.Close() }
func (s *memoryStream) SetReadDeadline(t time.Time) error            { return s.pipe.SetReadDeadline(t) }

func (s *memoryStream) SetWriteDeadline(t time.Time) error { return s.pipe.SetWriteDeadline(t) }
func (s *memoryStream) Scope() network.StreamScope         { return &network.NullScope{} }
func (s *memoryStream) Conn() network.Conn                 { return connOf{nil, s} }

// connOf is a stream's connection.
type connOf struct {
	network.Conn
	s *memoryStream
}

func (c connOf) RemotePeer() peer.ID           { return c.s.remote }
func (c connOf) LocalPeer() peer.ID            { return c.s.local }
func (c connOf) RemoteMultiaddr() ma.Multiaddr { return c.s.at }
func (c connOf) Stat() network.ConnStats       { return network.ConnStats{} }

// piped is a relay that runs on a host whose streams are pipes, in a bubble.
func piped(t *testing.T, change func(*Config)) *world {
	key, id := newID(t)
	h := &memoryHost{id: id}
	w := newWorld(t, func(cfg *Config) {
		cfg.Host, cfg.Key, cfg.Now = h, key, time.Now
		if change != nil {
			change(cfg)
		}
	})
	w.clock.at = time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("running: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait(); h.wg.Wait() })
	synctest.Wait() // the handler is there
	return w
}

func newID(t testing.TB) (crypto.PrivKey, peer.ID) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

// pipe opens a stream to a relay of piped, as somebody new at an address.
func (w *world) pipe(t testing.TB, ip string) *line {
	t.Helper()
	from := w.somebody(t, ip)
	conn, err := stream.Open(t.Context(), from, from.to.id, protocol.StreamRelay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Refuse)
	c := w.caller()
	c.key, _ = transportOf(from.id)
	return &line{conn, c}
}

// pipeStream is pipe for what are no whole frames.
func (w *world) pipeStream(t testing.TB, ip string) network.Stream {
	t.Helper()
	s, err := w.somebody(t, ip).NewStream(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (w *world) somebody(t testing.TB, ip string) *memoryClient {
	t.Helper()
	_, id := newID(t)
	return &memoryClient{id: id, at: ma.StringCast("/ip4/" + ip + "/tcp/4000"), to: w.cfg.Host.(*memoryHost)}
}

// inUse returns the bytes of heap and stacks.
func inUse() int64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc + s.StackInuse)
}

// Ten thousand readers wait for a message, each with a queue of its own, and take
// less than 1.5 GiB: here of the service and of both ends of their streams, which
// are pipes. What a libp2p connection takes beside that is
// BenchmarkConnectedReader's. Without -long they are 500. Time is virtual, so that
// none has waited too long when the last one comes.
func TestReadersThatWaitTakeLittle(t *testing.T) {
	readers := 500
	if *long {
		readers = 10_000
	}
	synctest.Test(t, func(t *testing.T) {
		w := piped(t, nil)
		wait := pollRequest(10)
		wait.GetPoll().Wait = 55
		lines, queues := make([]*line, readers), make([]*made, readers)
		before := inUse()
		for i := range lines {
			l := w.pipe(t, fmt.Sprintf("10.%d.%d.1", i>>8, i&0xff))
			lines[i], queues[i] = l, w.makeable(pairwise)
			if a := l.ask(t, l.c.createRequest(queues[i])); a.Status != isOK {
				t.Fatalf("queue %d: %v", i, a.Status)
			}
			l.send(t, wait)
		}
		synctest.Wait()
		taken := inUse() - before
		each := taken / int64(readers)
		t.Logf("%d readers wait: %d MiB, %d bytes each", readers, taken>>20, each)
		if each > 3<<29/10_000 {
			t.Errorf("a reader that waits takes %d bytes, want at most %d", each, 3<<29/10_000)
		}
		if s := w.Status(); s.Streams != readers || s.Attached != readers {
			t.Errorf("%d streams with %d queues, want %d", s.Streams, s.Attached, readers)
		}
		// They do wait: a message for the last wakes the last.
		last := readers - 1
		c := w.caller()
		c.want(isOK, w.deposit(queues[last], 2160))
		if got := lines[last].receive(t, wait).GetEntries().GetEntries(); len(got) != 1 {
			t.Errorf("%d entries, want 1", len(got))
		}
	})
}

// BenchmarkIdle reports the resident memory of a relay's process that has 10,000
// queues with one message each, after a start and with nobody there.
func BenchmarkIdle(b *testing.B) {
	const queues = 10_000
	v := newVictim(b, 0)
	v.quota = 64 << 20
	db, err := store.Open(store.Config{Dir: filepath.Join(v.dir, "store")})
	if err != nil {
		b.Fatal(err)
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	s, err := New(Config{Host: noHost{}, Key: key, Store: db, Dir: filepath.Join(v.dir, "spool"), Quota: v.quota})
	if err != nil {
		b.Fatal(err)
	}
	expires := time.Now().Add(24 * time.Hour).Unix()
	for first := 0; first < queues; first += 1000 {
		var entries []spool.Entry
		if err := db.Update(func(tx *store.Tx) error {
			for i := first; i < first+1000; i++ {
				id := [32]byte(blob(32))
				row := &store.RelayQueue{
					Kind: int32(wire.QueueKind_QUEUE_KIND_PAIRWISE), Capability: blob(32), Expires: expires,
					Share: fmt.Appendf(nil, "%0*d", blockHash, i/100),
				}
				if err := store.RelayQueues.Put(tx, store.RelayQueueKey(id), row); err != nil {
					return err
				}
				entries = append(entries, spool.Entry{Queue: id, Expires: expires, Blob: blob(2160)})
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		if _, err := s.spool.Put(b.Context(), entries); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		v.start()
		for _, name := range []string{"VmRSS", "RssAnon"} {
			b.ReportMetric(resident(b, v.cmd.Process.Pid, name), "MiB-"+name)
		}
		v.stop()
	}
}

// BenchmarkConnectedReader reports what a reader takes in the relay's process that
// waits on a connection of its own, over TCP with Noise and yamux.
func BenchmarkConnectedReader(b *testing.B) {
	const readers = 200
	v := newVictim(b, 0)
	v.start()
	defer v.stop()
	wait := pollRequest(10)
	wait.GetPoll().Wait = 55
	addrs := v.host.Peerstore().Addrs(v.id)
	var hosts []host.Host
	for range readers {
		h := quiet(b)
		h.Peerstore().AddAddrs(v.id, addrs, peerstore.PermanentAddrTTL)
		hosts = append(hosts, h)
	}
	v.lineFrom(hosts[0]) // what the first one costs is the relay's own
	for b.Loop() {
		before := v.anonymous(b)
		for _, h := range hosts[1:] {
			l := v.lineFrom(h)
			l.ask(b, l.c.createRequest(v.makeable(pairwise)))
			l.send(b, wait)
		}
		b.ReportMetric((v.anonymous(b)-before)*(1<<20)/float64(len(hosts)-1), "bytes/reader")
		for _, h := range hosts[1:] {
			_ = h.Network().ClosePeer(v.id)
		}
	}
}

// anonymous returns the memory of the relay's process that is no file's, in MiB,
// without garbage.
func (v *victim) anonymous(b *testing.B) float64 {
	if _, err := v.stdin.Write([]byte{1}); err != nil {
		b.Fatal(err)
	}
	if line, err := v.stdout.ReadString('\n'); err != nil || line != "freed\n" {
		b.Fatalf("%q, %v", line, err)
	}
	return resident(b, v.cmd.Process.Pid, "RssAnon")
}

// resident returns a line of a process's /proc/PID/status, in MiB.
func resident(b *testing.B, pid int, name string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Skip("needs /proc")
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, name+": %f kB", &kib); n == 1 {
			return kib / 1024
		}
	}
	b.Fatalf("no %s of the process", name)
	return 0
}
