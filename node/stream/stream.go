// Package stream carries bounded exchanges of frames over libp2p streams
// (SPEC §9).
//
// One stream carries one exchange after another, in turn: the side that opened
// it writes a request and reads an answer, as long as it has work. A handler
// meets every stream in the same order: service, limits, memory, deadline,
// bounded reader. A frame's length is checked before anything is allocated, and
// memory follows the bytes that have arrived.
//
// What it does not do: know what a frame means, or whom it is from beyond the
// transport key. A transport key is not an account.
package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"

	"starling/protocol/wire"
)

// Tuning, not protocol: peers with other values still understand each other.
const (
	// answerTimeout is how long [Conn.Read] waits for the first byte of an
	// answer on the side that opened the stream. The other side may have to
	// sync a disk for it.
	answerTimeout = 30 * time.Second

	// transferTimeout is how long one frame may take from its first byte to its
	// last, in either direction: the largest frame at 50 kB/s. A peer that
	// trickles bytes holds a stream no longer than this.
	transferTimeout = 20 * time.Second

	// baseMemory is what a stream takes while a frame is read, in bytes: the read
	// buffer and what a frame may take before a byte of it has arrived.
	baseMemory = 64<<10 + bufferSize

	bufferSize = 4 << 10 // bytes of the read buffer of a stream
)

// ErrRefused means that the peer does not speak the protocol or behaves as if
// it did not; it does not say which. Do not ask it again soon.
var ErrRefused = errors.New("stream: the peer does not speak the protocol")

// ErrBusy means that a limit on streams, requests or memory was reached, the
// peer's or our own. Ask again soon.
var ErrBusy = errors.New("stream: too many requests")

// A Conn is one stream. One goroutine may read while another writes; Close and
// Refuse may be called at any time and interrupt both.
type Conn struct {
	s    network.Stream
	r    *bufio.Reader
	wait time.Duration // for the first byte of a frame
	base int           // bytes reserved as long as the stream lives

	// srv, peer and ctx are nil on the side that opened the stream.
	srv   *server
	peer  *peerState
	block netip.Prefix    // of Limits.Block
	ctx   context.Context // of the handler; ends with its removal

	mu      sync.Mutex // guards what follows; never held across a wait
	reading bool       // Read has not yet returned
	ended   bool       // the handler's removal has begun
	reset   bool       // Refuse or a limit has reset the stream
	heard   bool       // a frame was read
	held    int        // bytes reserved beyond base; released under server.mu in turn
}

// Open opens a stream to p, dialling it if there is no connection, and also
// over a connection through a relay. ctx bounds the opening only. The caller
// must Close what it gets.
//
// It may return before the peer has agreed to the protocol: a refusal is then
// the answer to the first Read.
func Open(ctx context.Context, h host.Host, p peer.ID, id protocol.ID) (*Conn, error) {
	s, err := h.NewStream(network.WithAllowLimitedConn(ctx, string(id)), p, id)
	if err != nil {
		return nil, fmt.Errorf("opening a stream: %w", classify(err))
	}
	if err := s.Scope().SetService(string(id)); err != nil {
		s.ResetWithError(network.StreamResourceLimitExceeded)
		return nil, fmt.Errorf("opening a stream: %w: %w", ErrBusy, err)
	}
	if err := s.Scope().ReserveMemory(baseMemory, network.ReservationPriorityMedium); err != nil {
		s.ResetWithError(network.StreamResourceLimitExceeded)
		return nil, fmt.Errorf("opening a stream: %w: %w", ErrBusy, err)
	}
	return &Conn{s: s, r: bufio.NewReaderSize(s, bufferSize), wait: answerTimeout, base: baseMemory}, nil
}

// Remote returns the peer ID of the other side, proved by the transport.
func (c *Conn) Remote() peer.ID { return c.s.Conn().RemotePeer() }

// Local returns our own peer ID on this stream.
func (c *Conn) Local() peer.ID { return c.s.Conn().LocalPeer() }

// RemoteAddr returns the address that the other side is seen at; of a stream
// through a circuit relay, that relay's.
func (c *Conn) RemoteAddr() ma.Multiaddr { return c.s.Conn().RemoteMultiaddr() }

// Limited reports whether the stream runs through a circuit relay, which cuts
// it after some time or bytes: a reset there is a reason to try again.
func (c *Conn) Limited() bool { return c.s.Conn().Stat().Limited }

// SetWait sets how long the next calls of Read wait for the first byte of a
// frame, at least a millisecond, on the side that opened the stream. The default
// is 30 s. Reader and caller are one goroutine.
func (c *Conn) SetWait(d time.Duration) {
	if c.srv == nil {
		c.wait = max(d, time.Millisecond)
	}
}

// Read returns the next frame, of at most max bytes. It counts as a request
// against the limits of the handler, and is held back while the peer asks
// faster than they allow.
//
// Without a further frame it returns [io.EOF]: the peer has closed the stream,
// or in a handler let it rest for [Limits.Idle]. Any other error ends the
// stream: [ErrRefused], [ErrBusy], one that wraps wire.ErrMalformed,
// [os.ErrDeadlineExceeded], or one of the network, after which the exchange may
// be tried again on a new stream.
func (c *Conn) Read(max int) ([]byte, error) {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return nil, fmt.Errorf("reading a frame: %w", context.Cause(c.ctx))
	}
	c.reading = true
	c.releaseLocked()
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.reading = false
		c.mu.Unlock()
	}()

	if err := c.s.SetReadDeadline(time.Now().Add(c.wait)); err != nil {
		return nil, fmt.Errorf("setting a deadline: %w", err)
	}
	if _, err := c.r.Peek(1); err != nil {
		err = c.readError(err)
		if c.srv != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, io.EOF
		}
		return nil, err
	}
	if c.srv != nil {
		if err := c.srv.admit(c.ctx, c.peer); err != nil {
			if errors.Is(err, ErrBusy) {
				c.end(network.StreamRateLimited)
			}
			return nil, c.readError(err)
		}
	}
	if c.base < baseMemory {
		if err := c.reserve(baseMemory - c.base); err != nil {
			c.end(network.StreamResourceLimitExceeded)
			return nil, c.readError(err)
		}
	}
	if err := c.s.SetReadDeadline(time.Now().Add(transferTimeout)); err != nil {
		return nil, fmt.Errorf("setting a deadline: %w", err)
	}
	b, err := wire.ReadFrame(&meter{c: c, room: baseMemory - bufferSize, max: max}, max)
	if err != nil {
		return nil, c.readError(err)
	}
	c.mu.Lock()
	c.heard = true
	c.mu.Unlock()
	return b, nil
}

func (c *Conn) readError(err error) error {
	if err == io.EOF {
		return err
	}
	if c.ctx != nil && c.ctx.Err() != nil {
		return fmt.Errorf("reading a frame: %w", context.Cause(c.ctx))
	}
	return fmt.Errorf("reading a frame: %w", classify(err))
}

// Write writes b as one frame. An error ends the stream.
func (c *Conn) Write(b []byte) error {
	if err := c.s.SetWriteDeadline(time.Now().Add(transferTimeout)); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	if err := wire.WriteFrame(c.s, b); err != nil {
		return fmt.Errorf("writing a frame: %w", classify(err))
	}
	return nil
}

// WriteFrames writes frames that were made by wire.AppendFrame, all together:
// they are sent at once, and have the time of one. An error ends the stream.
func (c *Conn) WriteFrames(frames []byte) error {
	if err := c.s.SetWriteDeadline(time.Now().Add(transferTimeout)); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	if _, err := c.s.Write(frames); err != nil {
		return fmt.Errorf("writing frames: %w", classify(err))
	}
	return nil
}

// Exchange writes a request and returns its answer, of at most max bytes. When
// ctx ends first it resets the stream and returns the cause. A stream that
// ends before the answer gives [io.ErrUnexpectedEOF]; on a stream that served
// earlier exchanges this often means only that it had rested too long.
func (c *Conn) Exchange(ctx context.Context, request []byte, max int) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.s.Reset() })
	defer stop()
	err := c.Write(request)
	var answer []byte
	if err == nil {
		answer, err = c.Read(max)
	} else if _, rerr := c.Read(max); errors.Is(rerr, ErrRefused) || errors.Is(rerr, ErrBusy) {
		err = rerr // the reset that failed the write carried the reason
	}
	switch {
	case err == nil:
		return answer, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err == io.EOF:
		return nil, io.ErrUnexpectedEOF
	}
	return nil, err
}

// Refuse resets the stream with the code that libp2p gives for a protocol it
// does not speak, whatever the reason, so that the peer does not learn it
// (SPEC §9).
func (c *Conn) Refuse() { c.end(network.StreamProtocolNegotiationFailed) }

// Close ends the stream; what was written still arrives. On the side that
// opened it, before the first frame was read, Close resets the stream instead,
// since libp2p would wait for a peer that may never agree to the protocol.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.releaseLocked()
	early := c.srv == nil && !c.heard
	c.mu.Unlock()
	if early {
		return c.s.Reset()
	}
	return c.s.Close()
}

func (c *Conn) end(code network.StreamErrorCode) {
	c.mu.Lock()
	c.reset = true
	c.mu.Unlock()
	_ = c.s.ResetWithError(code)
}

// interrupt begins the end of a stream whose handler is being removed: a Read
// in progress fails, later ones too, and an answer may still be written.
func (c *Conn) interrupt() {
	c.mu.Lock()
	c.ended = true
	reading := c.reading
	c.mu.Unlock()
	if reading {
		c.end(network.StreamShutdown)
	}
}

// reserve takes n further bytes for the frame that is being read.
func (c *Conn) reserve(n int) error {
	if c.srv != nil && !c.srv.take(c.block, n) {
		return fmt.Errorf("%w: no memory for a frame", ErrBusy)
	}
	if err := c.s.Scope().ReserveMemory(n, network.ReservationPriorityMedium); err != nil {
		if c.srv != nil {
			c.srv.give(c.block, n)
		}
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	c.mu.Lock()
	c.held += n
	c.mu.Unlock()
	return nil
}

// releaseLocked gives back what the last frame took.
func (c *Conn) releaseLocked() {
	if c.held == 0 {
		return
	}
	c.s.Scope().ReleaseMemory(c.held)
	if c.srv != nil {
		c.srv.give(c.block, c.held)
	}
	c.held = 0
}

// A meter passes bytes of one frame and reserves memory as they arrive, always
// before the frame's reader grows: it doubles, and holds old and new at once.
type meter struct {
	c    *Conn
	got  int // bytes of the frame so far
	room int // bytes that what is reserved suffices for
	max  int // bytes the frame may have
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.c.r.Read(p)
	return n, m.count(n, err)
}

func (m *meter) ReadByte() (byte, error) {
	b, err := m.c.r.ReadByte()
	if err != nil {
		return b, err
	}
	return b, m.count(1, nil)
}

func (m *meter) count(n int, err error) error {
	m.got += n
	for m.got >= m.room && m.room < m.max && err == nil {
		if err = m.c.reserve(2 * m.room); err != nil {
			m.c.end(network.StreamResourceLimitExceeded)
			return err
		}
		m.room *= 2
	}
	return err
}

// classify names the two refusals among the errors of a stream, and deadlines,
// for which each muxer has an error of its own.
func classify(err error) error {
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
	}
	var ns multistream.ErrNotSupported[protocol.ID]
	if errors.As(err, &ns) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if se, ok := errors.AsType[*network.StreamError](err); ok && se.Remote {
		switch se.ErrorCode {
		case network.StreamProtocolNegotiationFailed:
			return fmt.Errorf("%w: %w", ErrRefused, err)
		case network.StreamResourceLimitExceeded, network.StreamRateLimited:
			return fmt.Errorf("%w: %w", ErrBusy, err)
		}
	}
	return err
}
