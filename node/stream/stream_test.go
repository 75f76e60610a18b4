package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/goleak"

	limits "starling/protocol"
	"starling/protocol/wire"
)

const echoID protocol.ID = "/starling/test/1"

// echo answers every request with itself until the peer has no more.
func echo(_ context.Context, c *Conn) error {
	for {
		b, err := c.Read(limits.MaxFrame)
		if err != nil {
			return err
		}
		if err := c.Write(b); err != nil {
			return err
		}
	}
}

// pair returns two hosts that listen on loopback over one transport, the first
// of which knows the address of the second.
func pair(t testing.TB, addr string) (a, b host.Host) {
	t.Helper()
	make := func() host.Host {
		h, err := libp2p.New(libp2p.ListenAddrStrings(addr), libp2p.DisableRelay(), libp2p.DisableMetrics(),
			libp2p.Ping(false), libp2p.DisableIdentifyAddressDiscovery())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.Close() })
		return h
	}
	a, b = make(), make()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := a.Connect(ctx, peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
	return a, b
}

var transports = map[string]string{
	"quic": "/ip4/127.0.0.1/udp/0/quic-v1",
	"tcp":  "/ip4/127.0.0.1/tcp/0",
}

func open(t testing.TB, h host.Host, p peer.ID, id protocol.ID) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := Open(ctx, h, p, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestOneStreamCarriesManyExchanges(t *testing.T) {
	for name, addr := range transports {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, addr)
			remove := Handle(b, echoID, Limits{PeerRate: 10000, Rate: 10000}, echo)
			defer remove()
			c := open(t, a, b.ID(), echoID)
			if c.Remote() != b.ID() || c.Local() != a.ID() || c.Limited() {
				t.Errorf("remote %s, local %s, limited %t", c.Remote(), c.Local(), c.Limited())
			}
			for i, n := range []int{0, 1, 256, 64 << 10, 65 << 10, 300 << 10, limits.MaxFrame, 3} {
				want := bytes.Repeat([]byte{byte(i)}, n)
				got, err := c.Exchange(t.Context(), want, limits.MaxFrame)
				if err != nil {
					t.Fatalf("exchange of %d bytes: %v", n, err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("exchange of %d bytes gave %d others", n, len(got))
				}
			}
		})
	}
}

// The peer must not be able to tell a refusal from a protocol that is not
// spoken, nor one reason of a refusal from another.
func TestRefusalsLookLikeAnUnknownProtocol(t *testing.T) {
	for name, addr := range transports {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, addr)
			reasons := map[protocol.ID]func(context.Context, *Conn) error{
				"/starling/refuse/1": func(_ context.Context, c *Conn) error {
					_, err := c.Read(100)
					c.Refuse()
					return err
				},
				"/starling/error/1": func(_ context.Context, c *Conn) error {
					if _, err := c.Read(100); err != nil {
						return err
					}
					return errors.New("a reason that is nobody's business")
				},
				"/starling/large/1": func(_ context.Context, c *Conn) error {
					_, err := c.Read(3)
					return err
				},
			}
			for id, f := range reasons {
				defer Handle(b, id, Limits{}, f)()
			}
			seen := make(map[string]bool)
			for id := range reasons {
				c := open(t, a, b.ID(), id)
				_, err := c.Exchange(t.Context(), []byte("hello"), 100)
				if !errors.Is(err, ErrRefused) {
					t.Errorf("%s: got %v, want ErrRefused", id, err)
				}
				se, ok := errors.AsType[*network.StreamError](err)
				if !ok || se.ErrorCode != network.StreamProtocolNegotiationFailed {
					t.Errorf("%s: got %v, want code 0x1001", id, err)
					continue
				}
				seen[fmt.Sprintf("%x %t", se.ErrorCode, se.Remote)] = true
			}
			if len(seen) != 1 {
				t.Errorf("refusals differ: %v", seen)
			}
			c, err := Open(t.Context(), a, b.ID(), "/starling/nobody/1")
			if err == nil {
				_, err = c.Exchange(t.Context(), []byte("hello"), 100)
			}
			if !errors.Is(err, ErrRefused) {
				t.Errorf("unknown protocol: got %v, want ErrRefused", err)
			}
		})
	}
}

func TestExchangeEndsWithItsContext(t *testing.T) {
	a, b := pair(t, transports["tcp"])
	defer Handle(b, echoID, Limits{}, func(ctx context.Context, c *Conn) error {
		<-ctx.Done()
		return nil
	})()
	c := open(t, a, b.ID(), echoID)
	why := errors.New("the user went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer time.AfterFunc(50*time.Millisecond, func() { cancel(why) }).Stop()
	if _, err := c.Exchange(ctx, []byte("hello"), 100); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}

func TestCloseBeforeTheFirstAnswerDoesNotWait(t *testing.T) {
	a, b := pair(t, transports["tcp"])
	defer Handle(b, echoID, Limits{}, echo)()
	c := open(t, a, b.ID(), echoID)
	start := time.Now()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

// bubble runs f with a host in virtual time, and checks that nothing is left
// running after it.
func bubble(t *testing.T, lim Limits, fn func(context.Context, *Conn) error, f func(t *testing.T, h *pipeHost, remove func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newPipeHost("server")
		remove := Handle(h, echoID, lim, fn)
		f(t, h, remove)
		remove()
		h.wg.Wait()
		synctest.Wait()
	})
	goleak.VerifyNone(t)
}

func as(t *testing.T, id peer.ID, h *pipeHost) *Conn {
	t.Helper()
	c, err := Open(t.Context(), caller{id: id, to: h}, h.id, echoID)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustEcho(t *testing.T, c *Conn) {
	t.Helper()
	if got, err := c.Exchange(t.Context(), []byte("hello"), 100); err != nil || string(got) != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestStreamsAtOnceAreLimited(t *testing.T) {
	bubble(t, Limits{Peer: 2, Streams: 3}, echo, func(t *testing.T, h *pipeHost, _ func()) {
		var open []*Conn
		for _, tc := range []struct {
			peer peer.ID
			want error
		}{
			{"alice", nil}, {"alice", nil}, {"alice", ErrBusy}, {"bob", nil}, {"carol", ErrBusy},
		} {
			c := as(t, tc.peer, h)
			_, err := c.Exchange(t.Context(), []byte("hello"), 100)
			if !errors.Is(err, tc.want) {
				t.Errorf("%s: got %v, want %v", tc.peer, err, tc.want)
			}
			if err == nil {
				open = append(open, c)
			} else {
				_ = c.Close()
			}
		}
		_ = open[0].Close()
		synctest.Wait()
		mustEcho(t, as(t, "carol", h))
	})
}

// However many peer IDs a stranger has, those who are known are let in.
func TestStrangersLeaveRoomForTheKnown(t *testing.T) {
	known := func(id peer.ID) bool { return id == "friend" || id == "other friend" }
	bubble(t, Limits{Peer: 2, Streams: 4, Known: known}, echo, func(t *testing.T, h *pipeHost, _ func()) {
		for _, tc := range []struct {
			peer peer.ID
			want error
		}{
			{"mallory 1", nil},
			{"mallory 2", nil},
			{"mallory 3", nil},
			{"mallory 4", ErrBusy},
			{"friend", nil},
			{"other friend", ErrBusy},
		} {
			_, err := as(t, tc.peer, h).Exchange(t.Context(), []byte("hello"), 100)
			if !errors.Is(err, tc.want) {
				t.Errorf("%s: got %v, want %v", tc.peer, err, tc.want)
			}
		}
		time.Sleep(3 * time.Minute) // they have rested too long
		for _, id := range []peer.ID{"friend", "other friend", "mallory 5", "mallory 6"} {
			mustEcho(t, as(t, id, h))
		}
	})
	// Nor does a full memory of rates keep them out.
	srv := &server{lim: Limits{Known: known}.withDefaults(), all: newRate(1 << 20), peers: make(map[peer.ID]*peerState), sweep: 64}
	srv.lim.PeerRate, srv.lim.Streams = 1, 1<<20
	for i := range maxPeers + 1 {
		srv.enter(peer.ID(fmt.Sprint(i)))
	}
	if p, _ := srv.enter("stranger"); p != nil {
		t.Error("a stranger was let in although the memory of rates is full")
	}
	if p, _ := srv.enter("friend"); p == nil {
		t.Error("strangers filled the memory of rates, and a known peer was refused")
	}
}

func TestFastPeersAreSlowedDownAndThenRefused(t *testing.T) {
	bubble(t, Limits{PeerRate: 10}, echo, func(t *testing.T, h *pipeHost, _ func()) {
		c := as(t, "alice", h)
		start := time.Now()
		for range 39 { // opening the stream was one
			mustEcho(t, c)
		}
		if d := time.Since(start); d < 2900*time.Millisecond || d > 3100*time.Millisecond {
			t.Errorf("40 requests at 10 a second after a burst of 10 took %v, want 3 s", d)
		}
		start = time.Now()
		mustEcho(t, as(t, "bob", h))
		if d := time.Since(start); d != 0 {
			t.Errorf("another peer waited %v", d)
		}
		// Without a token no further stream is let in.
		if _, err := as(t, "alice", h).Exchange(t.Context(), []byte("hello"), 100); !errors.Is(err, ErrBusy) {
			t.Errorf("got %v, want ErrBusy", err)
		}
		time.Sleep(time.Minute)
		mustEcho(t, as(t, "alice", h))
	})
	// Many streams of one peer share its rate: those too far ahead are reset.
	bubble(t, Limits{Peer: 100, PeerRate: 1, Rate: 1000}, func(ctx context.Context, c *Conn) error {
		return echo(ctx, c)
	}, func(t *testing.T, h *pipeHost, _ func()) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		served, busy := 0, 0
		var conns []*Conn
		for range 20 {
			conns = append(conns, as(t, "alice", h))
			time.Sleep(time.Second)
		}
		for _, c := range conns {
			wg.Go(func() {
				_, err := c.Exchange(t.Context(), []byte("hello"), 100)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					served++
				case errors.Is(err, ErrBusy):
					busy++
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if served+busy != 20 || served > 7 || served < 5 {
			t.Errorf("served %d, refused %d of 20 at once; want what 5 s allow", served, busy)
		}
		for _, c := range conns {
			_ = c.Close()
		}
	})
}

func TestMemoryOfLargeFramesIsLimited(t *testing.T) {
	release := make(chan struct{})
	a, b := pair(t, transports["tcp"])
	entered := make(chan struct{}, 8)
	remove := Handle(b, echoID, Limits{Memory: 3 << 20, Peer: 8}, func(_ context.Context, c *Conn) error {
		b, err := c.Read(limits.MaxFrame)
		if err != nil {
			return err
		}
		entered <- struct{}{}
		<-release
		return c.Write(b[:1])
	})
	defer remove()
	large := make([]byte, limits.MaxFrame)
	first := make(chan error, 1)
	c1 := open(t, a, b.ID(), echoID)
	go func() {
		_, err := c1.Exchange(context.Background(), large, 10)
		first <- err
	}()
	<-entered
	if _, err := open(t, a, b.ID(), echoID).Exchange(t.Context(), large, 10); !errors.Is(err, ErrBusy) {
		t.Errorf("second large frame: got %v, want ErrBusy", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Errorf("first large frame: %v", err)
	}
	if _, err := open(t, a, b.ID(), echoID).Exchange(t.Context(), large, 10); err != nil {
		t.Errorf("after the first is done: %v", err)
	}
}

func TestRestingStreamsAreClosed(t *testing.T) {
	bubble(t, Limits{Idle: time.Minute}, echo, func(t *testing.T, h *pipeHost, _ func()) {
		c := as(t, "alice", h)
		for range 5 {
			mustEcho(t, c)
			time.Sleep(59 * time.Second)
		}
		mustEcho(t, c)
		time.Sleep(61 * time.Second)
		if _, err := c.Exchange(t.Context(), []byte("hello"), 100); err == nil || errors.Is(err, ErrRefused) {
			t.Errorf("a stream that rested too long: got %v, want an end that is no refusal", err)
		}
		h.wg.Wait() // the handler has ended by itself
	})
}

// Muxers have errors of their own for a deadline. On either transport a stream
// that rested is closed, which is not to be taken for a refusal.
func TestRestingIsNoRefusal(t *testing.T) {
	for name, addr := range transports {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, addr)
			remove := Handle(b, echoID, Limits{Idle: 50 * time.Millisecond}, echo)
			defer remove()
			for { // until the handler is heard before the stream has rested
				c := open(t, a, b.ID(), echoID)
				err := c.Write([]byte("hello"))
				if err == nil {
					_, err = c.Read(100)
				}
				if errors.Is(err, ErrRefused) {
					t.Fatalf("after resting early: %v", err)
				}
				if err != nil {
					continue
				}
				if got, err := c.Read(100); err != io.EOF {
					t.Errorf("after resting: %q, %v, want io.EOF", got, err)
				}
				break
			}
		})
	}
}

func TestTrickledFramesAreCut(t *testing.T) {
	bubble(t, Limits{}, echo, func(t *testing.T, h *pipeHost, _ func()) {
		s := h.dial("mallory", echoID)
		start := time.Now()
		frame := append([]byte{0x80, 0x08}, make([]byte, 1024)...)
		for i := range frame {
			if _, err := s.Write(frame[i : i+1]); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		h.wg.Wait()
		if d := time.Since(start); d > transferTimeout+2*time.Second {
			t.Errorf("a trickled frame held its stream for %v", d)
		}
	})
}

func TestAnswersAreWaitedForWithADeadline(t *testing.T) {
	bubble(t, Limits{}, func(ctx context.Context, c *Conn) error {
		_, err := c.Read(100)
		<-ctx.Done()
		return err
	}, func(t *testing.T, h *pipeHost, _ func()) {
		c := as(t, "alice", h)
		start := time.Now()
		_, err := c.Exchange(t.Context(), []byte("hello"), 100)
		if d := time.Since(start); err == nil || d != answerTimeout {
			t.Errorf("got %v after %v", err, d)
		}
		_ = c.Close()
	})
}

// Who asks for something that takes long says so.
func TestSetWait(t *testing.T) {
	for name, addr := range transports {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t, addr)
			remove := Handle(b, echoID, Limits{}, func(_ context.Context, c *Conn) error {
				_, err := c.Read(100) // and no answer
				if err == nil {
					_, err = c.Read(100)
				}
				return err
			})
			defer remove()
			c := open(t, a, b.ID(), echoID)
			c.SetWait(0)
			if _, err := c.Exchange(t.Context(), []byte("hello"), 100); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("no wait: %v, want os.ErrDeadlineExceeded", err)
			}
		})
	}
	bubble(t, Limits{}, func(_ context.Context, c *Conn) error {
		if _, err := c.Read(100); err != nil {
			return err
		}
		time.Sleep(80 * time.Second)
		return c.Write([]byte("hello"))
	}, func(t *testing.T, h *pipeHost, _ func()) {
		c := as(t, "alice", h)
		c.SetWait(85 * time.Second)
		mustEcho(t, c)
	})
}

func TestRemoveWaitsForAnswersAndInterruptsTheRest(t *testing.T) {
	working := make(chan struct{})
	bubble(t, Limits{}, func(_ context.Context, c *Conn) error {
		for {
			b, err := c.Read(100)
			if err != nil {
				return err
			}
			if string(b) == "work" {
				<-working
			}
			if err := c.Write(b); err != nil {
				return err
			}
		}
	}, func(t *testing.T, h *pipeHost, remove func()) {
		working = make(chan struct{}) // of this bubble
		idle := as(t, "bob", h)
		mustEcho(t, idle)
		busy := as(t, "alice", h)
		var wg sync.WaitGroup
		wg.Go(func() {
			if got, err := busy.Exchange(t.Context(), []byte("work"), 100); err != nil || string(got) != "work" {
				t.Errorf("the answer in the making: got %q, %v", got, err)
			}
		})
		synctest.Wait()
		removed := false
		wg.Go(func() {
			remove()
			removed = true
		})
		synctest.Wait()
		if removed {
			t.Error("remove returned before the last answer")
		}
		if _, err := idle.Exchange(t.Context(), []byte("hello"), 100); err == nil {
			t.Error("a resting stream survived the removal")
		}
		if _, err := as(t, "carol", h).Exchange(t.Context(), []byte("hello"), 100); !errors.Is(err, ErrRefused) {
			t.Errorf("a new stream: got %v, want ErrRefused", err)
		}
		close(working)
		wg.Wait()
		if !removed {
			t.Error("remove did not return")
		}
		if _, err := busy.Exchange(t.Context(), []byte("more"), 100); err == nil {
			t.Error("a removed handler took another request")
		}
		remove() // again does nothing
	})
}

// As many peers as there may be streams can have one each.
func TestEveryStreamMayBeAnotherPeers(t *testing.T) {
	const streams = maxPeers + 1000
	srv := &server{lim: Limits{Streams: streams, Rate: 2 * streams}.withDefaults(), all: newRate(2 * streams), peers: make(map[peer.ID]*peerState), sweep: 64}
	for i := range streams {
		if p, code := srv.enter(peer.ID(fmt.Sprint(i))); p == nil {
			t.Fatalf("peer %d is refused with %#x", i, code)
		}
	}
	if p, _ := srv.enter("one more"); p != nil {
		t.Error("more streams than there may be")
	}
}

func TestRememberedPeersAreBounded(t *testing.T) {
	bubble(t, Limits{Rate: 100000}, echo, func(t *testing.T, h *pipeHost, remove func()) {
		srv := &server{lim: Limits{Rate: 100000}.withDefaults(), peers: make(map[peer.ID]*peerState), sweep: 64}
		srv.all = newRate(100000)
		refused := 0
		for i := range 3 * maxPeers {
			p, _ := srv.enter(peer.ID(fmt.Sprint(i)))
			if p == nil {
				refused++
				continue
			}
			srv.leave(p)
		}
		if n := len(srv.peers); n > maxPeers {
			t.Errorf("%d peers remembered, at most %d are allowed", n, maxPeers)
		}
		if refused == 0 {
			t.Error("a flood of new peers at one instant was not refused")
		}
		time.Sleep(time.Second)
		if p, code := srv.enter("friend"); p == nil {
			t.Errorf("a second later a friend is refused with %#x", code)
		} else {
			srv.leave(p)
		}
		if n := len(srv.peers); n > 1 {
			t.Errorf("%d peers remembered after all have rested", n)
		}
	})
}

// A stranger sends frames that were valid once, mutated, cut and with lying
// lengths. The handler must neither panic nor keep what they took, and a
// friend is served after it.
func TestMutatedFramesDoNoHarm(t *testing.T) {
	parse := func(_ context.Context, c *Conn) error {
		for {
			b, err := c.Read(limits.MaxFrame)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			var d wire.Delivery
			if err := wire.Parse(b, limits.MaxFrame, &d); err != nil {
				return err
			}
			if err := c.Write(wire.Marshal(&wire.DeliveryAnswer{})); err != nil {
				return err
			}
		}
	}
	bubble(t, Limits{PeerRate: 1 << 20, Rate: 1 << 20, Peer: 64}, parse, func(t *testing.T, h *pipeHost, _ func()) {
		sendMutated(t, h)
	})
}

func sendMutated(t *testing.T, h *pipeHost) {
	rng := rand.New(rand.NewPCG(1, 2))
	valid := func() []byte {
		var d wire.Delivery
		for range 1 + rng.IntN(4) {
			e := make([]byte, rng.IntN(700))
			for i := range e {
				e[i] = byte(rng.Uint32())
			}
			d.Envelopes = append(d.Envelopes, e)
		}
		var buf bytes.Buffer
		if err := wire.WriteFrame(&buf, wire.Marshal(&d)); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const frames = 8000
	for range frames {
		b := valid()
		for range 1 + rng.IntN(4) {
			switch i := rng.IntN(len(b)); rng.IntN(5) {
			case 0:
				b[i] ^= 1 << rng.IntN(8)
			case 1:
				b[i] = byte(rng.Uint32())
			case 2:
				b = b[:i+1]
			case 3:
				b = append(b[:i:i], append([]byte{0xff, 0xff, 0xff, 0x7f}, b[i:]...)...)
			case 4:
				b[0], b = 0xff, append(b, byte(rng.Uint32()))
			}
		}
		s := h.dial("mallory", echoID)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(io.Discard, s) // whatever it answers
		}()
		_, _ = s.Write(b)
		_ = s.Close()
		<-done
	}
	h.wg.Wait()
	time.Sleep(time.Hour) // the pipes' timers are over
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("%d mutated frames left %d bytes behind", frames, grown)
	}
	c, err := Open(t.Context(), caller{id: "friend", to: h}, h.id, echoID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exchange(t.Context(), wire.Marshal(&wire.Delivery{Envelopes: [][]byte{{1}}}), 100); err != nil {
		t.Errorf("a friend is not served: %v", err)
	}
	_ = c.Close()
}

func BenchmarkExchange(b *testing.B) {
	for name, addr := range transports {
		for _, size := range []int{256, 16 << 10} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				h, to := pair(b, addr)
				defer Handle(to, echoID, Limits{PeerRate: 1 << 20, Rate: 1 << 20}, echo)()
				c := open(b, h, to.ID(), echoID)
				req := []byte(strings.Repeat("x", size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := c.Exchange(b.Context(), req, size); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		b.Run(name+"/new-stream", func(b *testing.B) {
			h, to := pair(b, addr)
			defer Handle(to, echoID, Limits{PeerRate: 1 << 20, Rate: 1 << 20}, echo)()
			req := make([]byte, 256)
			for b.Loop() {
				c, err := Open(b.Context(), h, to.ID(), echoID)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.Exchange(b.Context(), req, 256); err != nil {
					b.Fatal(err)
				}
				_ = c.Close()
			}
		})
	}
}

// Streams that rest cost their buffer; a frame takes what it needs when it
// begins and gives it back with the next read.
func TestRestingStreamsHoldOnlyTheirBase(t *testing.T) {
	a, b := pair(t, transports["tcp"])
	room := make(chan int, 1)
	remove := Handle(b, echoID, Limits{Base: 1, Memory: baseMemory - bufferSize}, func(_ context.Context, c *Conn) error {
		for {
			frame, err := c.Read(limits.MaxFrame)
			if err != nil {
				return err
			}
			c.srv.mu.Lock()
			room <- c.srv.memory
			c.srv.mu.Unlock()
			if err := c.Write(frame); err != nil {
				return err
			}
		}
	})
	defer remove()
	c := open(t, a, b.ID(), echoID)
	for range 2 {
		if got, err := c.Exchange(t.Context(), []byte("small"), 100); err != nil || string(got) != "small" {
			t.Fatalf("a small frame: %q, %v", got, err)
		}
		if got, want := <-room, baseMemory-bufferSize; got != want {
			t.Errorf("a frame holds %d bytes, want %d", got, want)
		}
	}
}
