package relay

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"

	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// served is a relay that runs on a host of its own.
func served(t testing.TB, change func(*Config)) *world {
	t.Helper()
	h := quiet(t)
	w := newWorld(t, func(cfg *Config) {
		cfg.Host, cfg.Key, cfg.Now = h, h.Peerstore().PrivKey(h.ID()), nil
		if change != nil {
			change(cfg)
		}
	})
	w.clock.at = time.Now()
	run(t, w)
	return w
}

// run runs the relay until the test ends.
func run(t testing.TB, w *world) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("running: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	// The handler is there when its protocol is.
	for len(w.cfg.Host.Mux().Protocols()) == 0 || !speaks(w.cfg.Host) {
		runtime.Gosched()
	}
}

func speaks(h host.Host) bool {
	for _, p := range h.Mux().Protocols() {
		if p == protocol.StreamRelay {
			return true
		}
	}
	return false
}

// A line is a stream to a relay.
type line struct {
	*stream.Conn
	c *caller // makes requests with the client's key
}

func (w *world) dial(t testing.TB, h host.Host) *line {
	t.Helper()
	h.Peerstore().AddAddrs(w.cfg.Host.ID(), w.cfg.Host.Addrs(), peerstore.PermanentAddrTTL)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := stream.Open(ctx, h, w.cfg.Host.ID(), protocol.StreamRelay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := w.caller()
	key, ok := transportOf(h.ID())
	if !ok {
		t.Fatal("a host without an Ed25519 key")
	}
	c.key = key
	return &line{conn, c}
}

func (l *line) send(t testing.TB, req *wire.RelayRequest) {
	t.Helper()
	if err := l.Write(wire.Marshal(req)); err != nil {
		t.Fatalf("sending %T: %v", req.Command, err)
	}
}

func (l *line) receive(t testing.TB, req *wire.RelayRequest) *wire.RelayAnswer {
	t.Helper()
	b, err := l.Read(protocol.MaxFrame)
	if err != nil {
		t.Fatalf("answer to %T: %v", req.Command, err)
	}
	a, err := relay.ParseAnswer(b, req)
	if err != nil {
		t.Fatalf("answer to %T: %v", req.Command, err)
	}
	return a
}

func (l *line) ask(t testing.TB, req *wire.RelayRequest) *wire.RelayAnswer {
	t.Helper()
	l.send(t, req)
	return l.receive(t, req)
}

// Requests are answered in their order; deposits share the disk meanwhile, and
// what comes after them sees them.
func TestAnswersComeInOrder(t *testing.T) {
	w := served(t, nil)
	l := w.dial(t, quiet(t))
	m := w.makeable(logQueue)
	reqs := []*wire.RelayRequest{l.c.createRequest(m)}
	for range 100 {
		reqs = append(reqs, w.deposit(m, 2160))
	}
	wrong := w.deposit(m, 2160)
	wrong.GetDeposit().Blob = blob(7)
	reqs = append(reqs, wrong, infoRequest, pollRequest(200), w.deposit(m, 2160), pollRequest(200))
	for _, req := range reqs {
		l.send(t, req)
	}
	counts := []int{}
	for i, req := range reqs {
		a := l.receive(t, req)
		want := isOK
		if req == wrong {
			want = isMalformed
		}
		if a.Status != want {
			t.Fatalf("answer %d to %T: %v, want %v", i, req.Command, a.Status, want)
		}
		if req.GetDeposit() != nil && want == isOK {
			w.wantReceipt(req, a)
		}
		if req.GetPoll() != nil {
			counts = append(counts, len(a.GetEntries().Entries))
		}
	}
	if len(counts) != 2 || counts[0] != 100 || counts[1] != 101 {
		t.Errorf("polls saw %v entries, want 100 and 101", counts)
	}
}

// Answers that are there are written together, and none waits for another that is
// not: the writer of a stream is given turns, and its client, a pipe, sees what
// comes in one piece.
func TestAnswersThatAreThereAreWrittenTogether(t *testing.T) {
	w := newWorld(t, nil)
	h := &memoryHost{id: "relay"}
	pieces := make(chan int) // frames that came together
	h.SetStreamHandler("", func(s network.Stream) {
		defer close(pieces)
		b := make([]byte, 1<<20)
		for {
			n, err := s.Read(b) // of a pipe: never of two writes
			if err != nil {
				return
			}
			frames, r := 0, bytes.NewReader(b[:n])
			for ; r.Len() > 0; frames++ {
				if _, err := wire.ReadFrame(r, protocol.MaxFrame); err != nil {
					t.Errorf("frame %d: %v", frames, err)
					break
				}
			}
			pieces <- frames
		}
	})
	conn, err := stream.Open(t.Context(), &memoryClient{id: "client", at: ma.StringCast("/ip4/10.0.0.1/tcp/1"), to: h}, h.id, protocol.StreamRelay)
	if err != nil {
		t.Fatal(err)
	}
	c := w.caller()
	c.conn = conn
	free := w.free

	late, big := make(chan *wire.RelayAnswer, 1), blob(together)
	is := &wire.RelayAnswer{Status: isOK}
	turns := make(chan turn, inFlight)
	give := func(a answer) {
		if !c.take(10) {
			t.Fatal("no memory")
		}
		turns <- turn{a, 10}
	}
	for range 60 {
		give(ready(is))
	}
	give(answer{wait: func() (*wire.RelayAnswer, int) { return <-late, 0 }, ready: func() bool { return len(late) > 0 }})
	for range 3 {
		give(ready(is))
	}
	give(ready(&wire.RelayAnswer{Status: isOK, Result: &wire.RelayAnswer_Chunk{Chunk: &wire.RelayChunk{Chunk: big}}}))
	give(ready(is))
	give(answer{wait: func() (*wire.RelayAnswer, int) { return is, 0 }}) // nobody knows when
	give(ready(is))
	close(turns)
	var writer sync.WaitGroup
	writer.Go(func() {
		c.write(turns, func() {})
		conn.Refuse()
	})
	if n := <-pieces; n != 60 {
		t.Errorf("%d answers before the one that is late, want 60", n)
	}
	late <- is
	var rest []int
	for n := range pieces {
		rest = append(rest, n)
	}
	writer.Wait()
	h.wg.Wait()
	if want := []int{5, 1, 2}; !slices.Equal(rest, want) {
		t.Errorf("then answers came in pieces of %v, want %v", rest, want)
	}
	if w.free != free {
		t.Errorf("%d bytes of memory were not given back", free-w.free)
	}
}

func TestPollWaits(t *testing.T) {
	w := served(t, nil)
	reader, sender := w.dial(t, quiet(t)), w.dial(t, quiet(t))
	m := w.makeable(pairwise)
	reader.ask(t, reader.c.createRequest(m))
	wait := pollRequest(10)
	wait.GetPoll().Wait = 55

	// It ends with a deposit, on whichever stream that comes.
	reader.send(t, wait)
	if a := sender.ask(t, w.deposit(m, 2160)); a.Status != isOK {
		t.Fatalf("deposit: %v", a.Status)
	}
	entries := reader.receive(t, wait).GetEntries().GetEntries()
	if len(entries) != 1 {
		t.Fatalf("%d entries, want 1", len(entries))
	}
	reader.ask(t, deletion(m.id, entries[0].Id))

	// And with the next request, which does not wait for it either.
	begun := time.Now()
	for _, req := range []*wire.RelayRequest{wait, wait, infoRequest} {
		reader.send(t, req)
	}
	for range 2 {
		if a := reader.receive(t, wait); a.Status != isOK || len(a.GetEntries().Entries) != 0 {
			t.Errorf("a poll that was overtaken: %v", a)
		}
	}
	if a := reader.receive(t, infoRequest); a.Status != isOK {
		t.Errorf("info: %v", a.Status)
	}
	if took := time.Since(begun); took > 40*time.Second {
		t.Errorf("the polls waited %s", took)
	}
}

func TestGarbageEndsTheStream(t *testing.T) {
	w := served(t, nil)
	h := quiet(t)
	for name, frame := range map[string][]byte{"no protobuf": {0xff, 0xff}, "too long": make([]byte, protocol.MaxRelayRequest+1)} {
		l := w.dial(t, h)
		_ = l.Write(frame) // the reset may come while it is written
		if _, err := l.Read(protocol.MaxFrame); !errors.Is(err, stream.ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", name, err)
		}
	}
	// An unknown command is a message, and has an answer.
	l := w.dial(t, h)
	if err := l.Write(nil); err != nil {
		t.Fatal(err)
	}
	b, err := l.Read(100)
	if err != nil {
		t.Fatal(err)
	}
	var a wire.RelayAnswer
	if err := wire.Parse(b, 100, &a); err != nil || a.Status != isMalformed {
		t.Errorf("no command: %v, %v", a.Status, err)
	}
}

// After its streams have ended, and after Close, nothing of a relay is left.
func TestNothingIsLeftBehind(t *testing.T) {
	w := served(t, nil)
	h := quiet(t)
	m := w.makeable(pairwise)
	var lines []*line
	for range 3 {
		l := w.dial(t, h)
		l.ask(t, l.c.createRequest(m))
		wait := pollRequest(10)
		wait.GetPoll().Wait = 55
		l.send(t, wait)
		lines = append(lines, l)
	}
	if s := w.Status(); s.Streams != 3 || s.Attached != 3 {
		t.Errorf("status %+v, want 3 streams with a queue each", s)
	}
	_ = lines[0].s(t).Reset()
	if err := w.Service.Close(); err != nil {
		t.Fatal(err)
	}
	if s := w.Status(); s.Streams != 0 || s.Attached != 0 || w.free != w.Service.cfg.Limits.Memory {
		t.Errorf("after Close: %+v, %d bytes free", s, w.free)
	}
	if err := w.Run(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Run after Close: %v, want ErrClosed", err)
	}
}

// s returns the libp2p stream of the newest connection.
func (l *line) s(t testing.TB) network.Stream {
	t.Helper()
	for _, c := range l.c.w.cfg.Host.Network().ConnsToPeer(l.Local()) {
		for _, s := range c.GetStreams() {
			if s.Protocol() == protocol.StreamRelay {
				return s
			}
		}
	}
	t.Fatal("no stream")
	return nil
}
