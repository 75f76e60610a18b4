package relay

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// inFlight is the most requests of one stream whose answers are not written.
const inFlight = 512

// mostHeld is how many bytes of memory a stream may hold and have its next request
// read: one whose client reads no answers holds little more.
const mostHeld = 1 << 20

// receiptHeld is what is held for a deposit that was judged and kept, bytes: its
// answer.
const receiptHeld = 1 << 10

// A client is one stream. Its reader is the only goroutine that changes it; a
// poll, on the writer's, reads attached while the reader waits for it.
type client struct {
	s        *Service
	conn     *stream.Conn
	ctx      context.Context // ends with the stream; held because each answer needs it
	key      identity.Transport
	peer     peer.ID
	addr     netip.Prefix
	ip       netip.Addr // it is seen at; none through a circuit
	block    *block
	attached map[relay.QueueID]*queue
	deposits sync.WaitGroup // those of this stream that are not done
	wake     chan struct{}  // whoever deposits in an attached queue sends; one token is enough
	poll     *poll          // the last, while it may wait; else nil
	held     atomic.Int64   // bytes of memory, of requests and answers
	room     chan struct{}  // whoever gives back memory sends; one token is enough

	mu     sync.Mutex // guards what follows
	begun  []*deposit // in the spool's hands; finish takes them
	ending bool       // finish runs
}

// An answer is one that may not be there yet.
type answer struct {
	// wait returns the answer, when it is there, and how many bytes of memory it
	// holds. It is called once.
	wait func() (a *wire.RelayAnswer, held int)
	// ready reports whether wait would return at once; nil: it may not.
	ready func() bool
	// early is how many bytes of memory held by the request are given back when
	// the answer is there, by whoever made it; the rest, when it is written.
	early int
}

// ready is an answer that is there.
func ready(a *wire.RelayAnswer) answer {
	return answer{wait: func() (*wire.RelayAnswer, int) { return a, 0 }, ready: func() bool { return true }}
}

// A turn is the place of one answer in a stream.
type turn struct {
	answer
	held int // bytes of memory held by the request until the answer is written
}

// serve answers the requests of one stream.
func (s *Service) serve(ctx context.Context, conn *stream.Conn) error {
	key, ok := transportOf(conn.Remote())
	if !ok {
		return relay.ErrProof
	}
	c := &client{
		s: s, conn: conn, key: key, peer: conn.Remote(), addr: blockOf(conn.RemoteAddr()),
		attached: map[relay.QueueID]*queue{},
		wake:     make(chan struct{}, 1),
		room:     make(chan struct{}, 1),
	}
	if _, err := conn.RemoteAddr().ValueForProtocol(ma.P_CIRCUIT); err != nil && !conn.Limited() {
		c.ip = ipOf(conn.RemoteAddr())
	}
	if !s.enter(c) {
		s.counters.turnedAway.Add(1)
		return stream.ErrBusy
	}
	defer s.leave(c)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.ctx = ctx

	// The reader sends and closes; its capacity is what a client may have open.
	turns := make(chan turn, inFlight)
	var writer sync.WaitGroup
	writer.Go(func() { c.write(turns, cancel) })
	err := c.read(turns)
	c.endPoll()
	close(turns)
	writer.Wait()
	c.deposits.Wait()
	return err
}

// read judges requests until there are no more. It returns nil at their end.
func (c *client) read(turns chan<- turn) error {
	for {
		for c.held.Load() > mostHeld {
			<-c.room // comes: no write takes longer than its deadline
		}
		frame, err := c.conn.Read(protocol.MaxRelayRequest)
		c.endPoll()
		if err != nil {
			return err
		}
		t, err := c.begin(frame)
		if err != nil {
			return err
		}
		turns <- t
	}
}

// begin begins a request if there is room and time for it. An error ends the
// stream.
func (c *client) begin(frame []byte) (turn, error) {
	s, held := c.s, 2*len(frame) // the frame, and the message that is made of it
	s.counters.requests.Add(1)
	s.counters.bytesIn.Add(uint64(len(frame)))
	if !c.block.rate.Allow() || !s.traffic.pace(c.ctx, len(frame)) || !s.traffic.spend(c.block, len(frame), s.now()) || !c.take(held) {
		return turn{answer: ready(s.answerOf(nil, busy))}, nil
	}
	a, err := c.handle(frame, held)
	if err != nil {
		c.give(held)
	}
	return turn{a, held - a.early}, err
}

// together is how many bytes of answers are written at once, or one answer.
const together = 32 << 10

// write writes the answers in their order, those that are there together: the
// receipts of a group come at one time. After an error it resets the stream and
// takes what is left of them, so that the reader never waits for it.
func (c *client) write(turns <-chan turn, cancel func()) {
	broken := false
	var frames []byte
	held := 0 // bytes of memory until the frames are written
	fail := func() {
		broken = true
		cancel()
		c.conn.Refuse()
	}
	flush := func() {
		if len(frames) > 0 && !broken && (!c.s.traffic.pace(c.ctx, len(frames)) || c.conn.WriteFrames(frames) != nil) {
			fail()
		}
		c.give(held)
		frames, held = frames[:0], 0
		if cap(frames) > 2*together || len(turns) == 0 {
			frames = nil // a stream that rests has no buffer
		}
	}
	for t := range turns {
		if t.ready == nil || !t.ready() {
			flush()
		}
		a, n := t.wait()
		held += t.held + n
		if !broken {
			before, err := len(frames), error(nil)
			if frames, err = wire.AppendFrame(frames, a); err != nil {
				c.s.log.Error("marshalling an answer", "error", err)
				fail()
			}
			c.s.counters.bytesOut.Add(uint64(len(frames) - before))
			c.s.traffic.count(c.block, len(frames)-before, c.s.now())
		}
		if len(turns) == 0 || len(frames) >= together {
			flush()
		}
	}
	flush()
}

// handle begins a request that holds so many bytes of memory, and returns its
// answer. An error ends the stream: what is no message at all has no answer (SPEC
// §13.4).
func (c *client) handle(frame []byte, held int) (answer, error) {
	req, err := relay.ParseRequest(frame)
	switch {
	case errors.Is(err, wire.ErrMalformed):
		return answer{}, err
	case err != nil:
		return ready(c.s.answerOf(nil, err)), nil
	}
	if m, ok := req.Command.(*wire.RelayRequest_Deposit); ok {
		return c.deposit(m.Deposit, max(0, held-receiptHeld)), nil
	}
	c.deposits.Wait()
	if m, ok := req.Command.(*wire.RelayRequest_Poll); ok {
		return c.beginPoll(m.Poll), nil
	}
	if m, ok := req.Command.(*wire.RelayRequest_GetBlob); ok {
		return answer{wait: func() (*wire.RelayAnswer, int) { return c.getBlob(m.GetBlob) }}, nil
	}
	return ready(c.s.answerOf(c.do(req))), nil
}

// do performs a request that is answered when it is done.
func (c *client) do(req *wire.RelayRequest) (*wire.RelayAnswer, error) {
	switch m := req.Command.(type) {
	case *wire.RelayRequest_Info:
		return c.s.info(), nil
	case *wire.RelayRequest_Claim:
		return c.claim(m.Claim)
	case *wire.RelayRequest_Renew:
		return c.renew(m.Renew)
	case *wire.RelayRequest_SetAccess:
		return c.setAccess(m.SetAccess)
	case *wire.RelayRequest_Drop:
		return c.drop(m.Drop)
	case *wire.RelayRequest_Delete:
		return c.delete(m.Delete)
	case *wire.RelayRequest_PutKeys:
		return c.putKeys(m.PutKeys)
	case *wire.RelayRequest_TakeKey:
		return c.takeKey(m.TakeKey)
	case *wire.RelayRequest_CountKeys:
		return c.countKeys(m.CountKeys)
	case *wire.RelayRequest_PutRecords:
		return c.putRecords(m.PutRecords)
	case *wire.RelayRequest_PutBlob:
		return c.putBlob(m.PutBlob)
	case *wire.RelayRequest_DropBlob:
		return c.dropBlob(m.DropBlob)
	case *wire.RelayRequest_DialBack:
		return c.dialBack(m.DialBack)
	}
	return nil, malformed
}

// enter counts a stream, or returns false if its address block has too many.
func (s *Service) enter(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blockLocked(c.addr)
	most := max(s.cfg.Limits.Streams/16, s.cfg.Limits.Peer)
	if b.streams >= most && !b.local {
		return false
	}
	c.block = b
	b.streams++
	s.streams++
	return true
}

func (s *Service) leave(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.block.streams--
	s.streams--
	for _, q := range c.attached {
		q.detachLocked(c)
	}
	s.attached -= len(c.attached)
	c.block.attached -= len(c.attached)
}

// take reserves bytes of the memory for requests and answers, of which an address
// block has an eighth, or an answer.
func (c *client) take(n int) bool {
	s, b := c.s, c.block
	s.mu.Lock()
	defer s.mu.Unlock()
	most := max(s.cfg.Limits.Memory/8, 2*protocol.MaxFrame)
	if n > s.free || b.held+n > most && !b.local {
		return false
	}
	s.free -= n
	b.held += n
	c.held.Add(int64(n))
	return true
}

func (c *client) give(n int) {
	c.s.mu.Lock()
	c.s.free += n
	c.block.held -= n
	c.s.mu.Unlock()
	c.held.Add(int64(-n))
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// account returns the name of the account on which the client makes queues
// without a token: a hash, so that the disk alone does not show addresses.
func (c *client) account() []byte {
	b, err := c.addr.MarshalBinary()
	if err != nil {
		panic("relay: internal error: an address block that does not marshal: it is a prefix of 24 or 48 bits, or none")
	}
	h := hmac.New(sha256.New, c.s.blockID[:])
	h.Write(b)
	return h.Sum(nil)[:blockHash]
}

// blockHash is the length of an address block's hash, bytes; a token's is 32.
const blockHash = 16

// transportOf returns the transport key of a peer ID, which must be an Ed25519
// key (SPEC §13.4).
func transportOf(id peer.ID) (identity.Transport, bool) {
	pub, err := id.ExtractPublicKey()
	if err != nil || pub.Type() != crypto.Ed25519 {
		return identity.Transport{}, false
	}
	raw, err := pub.Raw()
	if err != nil {
		return identity.Transport{}, false
	}
	t, err := identity.ParseTransport(raw)
	return t, err == nil
}

// now64 is the clock in unix seconds.
func (s *Service) now64() int64 { return s.now().Unix() }

// within reports whether a time is ahead, and not farther than life and skew.
func (s *Service) within(at int64, life time.Duration) bool {
	now := s.now64()
	return at > now && at <= now+int64((life+protocol.RelaySkew)/time.Second)
}
