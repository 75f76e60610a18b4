package stream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/time/rate"

	limits "starling/protocol"
)

// Limits bound what peers can make a handler do. Zero is the default.
type Limits struct {
	// Peer is the most streams at once from one peer. Default 4.
	Peer int

	// Streams is the most streams at once from all peers. Default 128. Each
	// holds Base.
	Streams int

	// Base is what each stream holds while it rests, bytes: at least its read
	// buffer of 4 KiB, at most and by default 68 KiB, with which small frames need
	// nothing of Memory. Less is for many streams that rest: what is missing to
	// 68 KiB is then taken of Memory when a frame begins, until the next read.
	Base int

	// Known tells which peers keep a place when strangers fill the others: a
	// quarter of Streams is for them alone, and so is the memory of rates when
	// it is full. It must not block. Default nil: nobody is preferred.
	Known func(peer.ID) bool

	// PeerRate is the most requests a second from one peer, and how many it may
	// send at once after a rest. Opening a stream counts as one. A peer that
	// asks faster is slowed down. Default 500.
	PeerRate int

	// Rate is the same for all peers together. Default 4000.
	Rate int

	// Peers is the most peers remembered for their rate, each about 200 bytes.
	// Beyond it peers without a stream are forgotten when they have rested, and
	// while none has, no new stranger is served. Default 4096, or twice Streams
	// if that is more: fewer than Streams would be another limit of it.
	Peers int

	// Memory is the most bytes that frames may take together, beyond Base, while
	// they are read and handled. Default 32 MiB.
	Memory int

	// Block returns what one attacker has at little cost of the addresses that
	// streams come from: of each but loopback the frames take at most an eighth of
	// Memory, or 2 MiB if that is more, with which any one frame is read. Default
	// nil: there is no such bound.
	Block func(ma.Multiaddr) netip.Prefix

	// Idle is how long a stream may rest between two requests. Default 2 min.
	Idle time.Duration
}

// withDefaults returns l with zeros replaced.
func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Peer, 4)
	def(&l.Streams, 128)
	def(&l.Base, baseMemory)
	l.Base = min(max(l.Base, bufferSize), baseMemory)
	def(&l.PeerRate, 500)
	def(&l.Rate, 4000)
	def(&l.Peers, max(maxPeers, 2*l.Streams))
	def(&l.Memory, 32<<20)
	if l.Idle <= 0 {
		l.Idle = 2 * time.Minute
	}
	return l
}

const (
	// maxDelay is the longest that a request is held back for its peer's rate.
	// Beyond it the stream is reset: whoever is that far ahead is not waiting
	// for answers.
	maxDelay = 5 * time.Second

	// maxPeers is the least that Limits.Peers is by default.
	maxPeers = 4096

	// sweepPause is the least time between two looks for peers to forget, so
	// that a flood of new peers does not make each of them cost a look at all.
	sweepPause = 50 * time.Millisecond
)

// errRemoved is the cause of a handler's context after its removal.
var errRemoved = errors.New("stream: the handler is being removed")

// Handle answers streams of protocol id on h with fn, one call a stream, each
// on a goroutine of its own. When fn returns nil or io.EOF, the end of a peer's
// requests, the stream is closed, so that what it wrote arrives; after any other
// error it is reset as by [Conn.Refuse], so that a peer cannot tell one reason
// from another. fn's context ends when the handler is removed.
//
// The returned function removes the handler: it lets no stream in, interrupts
// those that wait for a request, lets those that have one answer it, and
// returns when every fn has. It may be called again, but not by fn.
func Handle(h host.Host, id protocol.ID, lim Limits, fn func(ctx context.Context, c *Conn) error) (remove func()) {
	lim = lim.withDefaults()
	ctx, cancel := context.WithCancelCause(context.Background())
	srv := &server{
		lim:   lim,
		all:   newRate(lim.Rate),
		peers: make(map[peer.ID]*peerState),
		sweep: 64,
		block: map[netip.Prefix]int{},
	}
	h.SetStreamHandler(id, func(s network.Stream) { srv.serve(ctx, s, id, fn) })
	return func() {
		h.RemoveStreamHandler(id)
		srv.mu.Lock()
		srv.closed = true
		srv.mu.Unlock()
		cancel(errRemoved)
		srv.wg.Wait()
	}
}

// newRate lets n requests a second pass, and as many at once after a rest.
func newRate(n int) *rate.Limiter { return rate.NewLimiter(rate.Limit(n), n) }

// A server is the state of one handler.
type server struct {
	lim Limits
	all *rate.Limiter
	wg  sync.WaitGroup // calls of serve that were let in

	mu      sync.Mutex // guards what follows; never held across a wait; taken after Conn.mu where both are
	closed  bool
	streams int
	unknown int                  // streams of strangers among them; counted if Limits.Known is set
	memory  int                  // bytes reserved by frames beyond Limits.Base
	block   map[netip.Prefix]int // of these, if Limits.Block is set; none is 0
	peers   map[peer.ID]*peerState
	sweep   int       // size of peers at which the rested ones are forgotten
	swept   time.Time // when that was last done
}

// A peerState is what a handler remembers of one peer.
type peerState struct {
	streams  int  // guarded by server.mu
	stranger bool // as of the first of its streams; guarded by server.mu
	rate     *rate.Limiter
}

func (v *server) serve(ctx context.Context, s network.Stream, id protocol.ID, fn func(context.Context, *Conn) error) {
	if err := s.Scope().SetService(string(id)); err != nil {
		_ = s.ResetWithError(network.StreamResourceLimitExceeded)
		return
	}
	remote := s.Conn().RemotePeer()
	p, code := v.enter(remote)
	if p == nil {
		_ = s.ResetWithError(code)
		return
	}
	defer v.leave(p)
	if err := s.Scope().ReserveMemory(v.lim.Base, network.ReservationPriorityMedium); err != nil {
		_ = s.ResetWithError(network.StreamResourceLimitExceeded)
		return
	}
	defer s.Scope().ReleaseMemory(v.lim.Base)
	c := &Conn{
		s:    s,
		r:    bufio.NewReaderSize(s, bufferSize),
		wait: v.lim.Idle,
		base: v.lim.Base,
		srv:  v,
		peer: p,
		ctx:  ctx,
	}
	if v.lim.Block != nil {
		c.block = v.lim.Block(c.RemoteAddr())
	}
	defer context.AfterFunc(ctx, c.interrupt)()

	err := fn(ctx, c)

	c.mu.Lock()
	c.releaseLocked()
	reset := c.reset
	c.mu.Unlock()
	switch {
	case reset:
	case err == nil || err == io.EOF:
		_ = s.Close()
	default:
		c.Refuse()
	}
}

// enter counts a new stream of a peer, or returns nil and the code of the
// refusal.
func (v *server) enter(id peer.ID) (*peerState, network.StreamErrorCode) {
	now := time.Now()
	stranger := v.lim.Known != nil && !v.lim.Known(id)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, network.StreamProtocolNegotiationFailed
	}
	// A stranger can hold a stream for minutes without a word, and have as many
	// peer IDs as it likes.
	if v.streams >= v.lim.Streams || stranger && v.unknown >= v.lim.Streams-v.lim.Streams/4 {
		return nil, network.StreamResourceLimitExceeded
	}
	p := v.peers[id]
	if p == nil {
		if len(v.peers) >= v.sweep && now.Sub(v.swept) >= sweepPause {
			v.sweepLocked(now)
		}
		if len(v.peers) >= v.lim.Peers && (stranger || v.lim.Known == nil) {
			return nil, network.StreamRateLimited
		}
		p = &peerState{rate: newRate(v.lim.PeerRate)}
		v.peers[id] = p
	}
	if p.streams >= v.lim.Peer {
		return nil, network.StreamResourceLimitExceeded
	}
	if !p.rate.AllowN(now, 1) || !v.all.AllowN(now, 1) {
		return nil, network.StreamRateLimited
	}
	if p.streams == 0 {
		p.stranger = stranger
	}
	p.streams++
	v.streams++
	if p.stranger {
		v.unknown++
	}
	v.wg.Add(1)
	return p, 0
}

func (v *server) leave(p *peerState) {
	v.mu.Lock()
	p.streams--
	v.streams--
	if p.stranger {
		v.unknown--
	}
	v.mu.Unlock()
	v.wg.Done()
}

// sweepLocked forgets the peers that have no stream and whose rate is fully
// restored: they would be remembered anew just as they are. The threshold
// doubles with what is left, so the work stays constant for each new peer.
func (v *server) sweepLocked(now time.Time) {
	v.swept = now
	for id, p := range v.peers {
		if p.streams == 0 && p.rate.TokensAt(now) >= float64(v.lim.PeerRate) {
			delete(v.peers, id)
		}
	}
	v.sweep = min(max(64, 2*len(v.peers)), v.lim.Peers)
}

// admit lets one request pass at the rates of its peer and of all, waiting for
// its turn up to maxDelay; beyond it returns [ErrBusy].
func (v *server) admit(ctx context.Context, p *peerState) error {
	now := time.Now()
	one, all := p.rate.ReserveN(now, 1), v.all.ReserveN(now, 1)
	d := max(one.DelayFrom(now), all.DelayFrom(now))
	if d == 0 {
		return nil
	}
	if d > maxDelay {
		one.CancelAt(now)
		all.CancelAt(now)
		return ErrBusy
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take reserves n bytes for a frame from an address block, if they are to be had.
func (v *server) take(b netip.Prefix, n int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.memory+n > v.lim.Memory {
		return false
	}
	if v.lim.Block != nil && !b.Addr().IsLoopback() {
		if v.block[b]+n > max(v.lim.Memory/8, 2*limits.MaxFrame) {
			return false
		}
		v.block[b] += n
	}
	v.memory += n
	return true
}

func (v *server) give(b netip.Prefix, n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.memory -= n
	if _, ok := v.block[b]; !ok {
		return
	}
	if v.block[b] -= n; v.block[b] == 0 {
		delete(v.block, b)
	}
}
