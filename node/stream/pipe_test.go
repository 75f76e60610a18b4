package stream

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// A pipeHost is a host whose streams are pipes in memory, without buffers,
// sockets or goroutines of its own: what a test in virtual time needs.
type pipeHost struct {
	host.Host
	id peer.ID

	mu       sync.Mutex // guards handlers
	handlers map[protocol.ID]network.StreamHandler
	wg       sync.WaitGroup // handlers running
}

func newPipeHost(id peer.ID) *pipeHost {
	return &pipeHost{id: id, handlers: make(map[protocol.ID]network.StreamHandler)}
}

func (h *pipeHost) SetStreamHandler(id protocol.ID, f network.StreamHandler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handlers[id] = f
}

func (h *pipeHost) RemoveStreamHandler(id protocol.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.handlers, id)
}

// dial opens a stream from a peer to h and runs h's handler on it. Without a
// handler it resets the stream as libp2p does.
func (h *pipeHost) dial(from peer.ID, id protocol.ID) *pipeStream {
	a, b := net.Pipe()
	near := &pipeStream{Conn: a, local: from, remote: h.id}
	far := &pipeStream{Conn: b, local: h.id, remote: from}
	near.other, far.other = far, near
	h.mu.Lock()
	f := h.handlers[id]
	h.mu.Unlock()
	if f == nil {
		_ = far.ResetWithError(network.StreamProtocolNegotiationFailed)
		return near
	}
	h.wg.Go(func() { f(streamOf{nil, far}) })
	return near
}

// A caller opens streams to one host as one peer.
type caller struct {
	host.Host
	id peer.ID
	to *pipeHost
}

func (c caller) NewStream(_ context.Context, _ peer.ID, ids ...protocol.ID) (network.Stream, error) {
	return streamOf{nil, c.to.dial(c.id, ids[0])}, nil
}

// A pipeStream is one end of a stream, but for the methods nobody needs.
type pipeStream struct {
	net.Conn
	other         *pipeStream
	local, remote peer.ID

	mu    sync.Mutex // guards cause
	cause *network.StreamError
}

func (s *pipeStream) err(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.cause != nil {
		return s.cause
	}
	return err
}

func (s *pipeStream) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	return n, s.err(err)
}

func (s *pipeStream) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	return n, s.err(err)
}

func (s *pipeStream) ResetWithError(code network.StreamErrorCode) error {
	for _, end := range []*pipeStream{s, s.other} {
		end.mu.Lock()
		if end.cause == nil {
			end.cause = &network.StreamError{ErrorCode: code, Remote: end != s}
		}
		end.mu.Unlock()
	}
	_ = s.other.Conn.Close()
	return s.Conn.Close()
}

func (s *pipeStream) Reset() error { return s.ResetWithError(network.StreamNoError) }

func (s *pipeStream) SetReadDeadline(t time.Time) error { return s.deadline(s.Conn.SetReadDeadline(t)) }

func (s *pipeStream) SetWriteDeadline(t time.Time) error {
	return s.deadline(s.Conn.SetWriteDeadline(t))
}

// deadline lets a deadline on an ended stream pass: the read or write after it
// says what happened, as with libp2p's streams.
func (s *pipeStream) deadline(error) error { return nil }

// streamOf completes a pipeStream to a network.Stream.
type streamOf struct {
	network.Stream
	s *pipeStream
}

func (s streamOf) Read(b []byte) (int, error)                     { return s.s.Read(b) }
func (s streamOf) Write(b []byte) (int, error)                    { return s.s.Write(b) }
func (s streamOf) Close() error                                   { return s.s.Close() }
func (s streamOf) Reset() error                                   { return s.s.Reset() }
func (s streamOf) ResetWithError(c network.StreamErrorCode) error { return s.s.ResetWithError(c) }

func (s streamOf) SetReadDeadline(t time.Time) error { return s.s.SetReadDeadline(t) }

func (s streamOf) SetWriteDeadline(t time.Time) error { return s.s.SetWriteDeadline(t) }

func (s streamOf) Scope() network.StreamScope { return &network.NullScope{} }
func (s streamOf) Conn() network.Conn         { return connOf{nil, s.s} }

type connOf struct {
	network.Conn
	s *pipeStream
}

func (c connOf) RemotePeer() peer.ID     { return c.s.remote }
func (c connOf) LocalPeer() peer.ID      { return c.s.local }
func (c connOf) Stat() network.ConnStats { return network.ConnStats{} }
