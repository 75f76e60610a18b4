package simulation

import (
	"bufio"
	"encoding/binary"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	libnet "github.com/libp2p/go-libp2p/core/network"
	libp2pprotocol "github.com/libp2p/go-libp2p/core/protocol"

	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// between is the host that the relay's service serves on: what comes and goes on
// its streams passes a [line].
type between struct {
	host.Host
	r *Relay
}

// SetStreamHandler implements [host.Host].
func (b between) SetStreamHandler(id libp2pprotocol.ID, fn libnet.StreamHandler) {
	if id == protocol.StreamRelay {
		service := fn
		fn = func(s libnet.Stream) { service(newLine(b.r, s)) }
	}
	b.Host.SetStreamHandler(id, fn)
}

// A line is one stream to a relay, as its service has it. Each request passes the
// relay's meddler, if it has one, who may answer it; each answer passes the
// meddler and then the ledger, which so sees what clients see.
type line struct {
	libnet.Stream
	r  *Relay
	in *bufio.Reader

	ready []byte // of the request that the service is reading; the reader's own

	turn  chan struct{} // who has put something in may use what follows; capacity 1, since writing may wait
	asked []*inquiry    // requests that have no answer yet, oldest first
	begun []byte        // of what the service writes: not yet a frame
	view  view          // the ledger's
}

// An inquiry is a request and its answer.
type inquiry struct {
	req *wire.RelayRequest // nil: nobody can read it
	at  time.Duration      // when it was there
	own *wire.RelayAnswer  // the meddler's; nil: the service answers
}

func newLine(r *Relay, s libnet.Stream) *line {
	return &line{Stream: s, r: r, in: bufio.NewReader(s), turn: make(chan struct{}, 1)}
}

// Read implements [io.Reader], for the service.
func (l *line) Read(b []byte) (int, error) {
	for len(l.ready) == 0 {
		if _, err := l.in.Peek(1); err != nil {
			return 0, err
		}
		frame, err := wire.ReadFrame(l.in, protocol.MaxRelayRequest)
		if err != nil {
			return 0, err
		}
		x := &inquiry{at: l.r.w.Now()}
		if x.req, err = relay.ParseRequest(frame); err != nil {
			x.req = nil
		}
		if x.req != nil && l.r.meddler != nil && !l.byAccomplice() {
			x.own = l.r.meddler.request(l, x.req)
		}
		l.turn <- struct{}{}
		l.asked = append(l.asked, x)
		err = l.answerOwn()
		<-l.turn
		if err != nil {
			return 0, err
		}
		if x.own == nil {
			l.ready = append(binary.AppendUvarint(nil, uint64(len(frame))), frame...)
		}
	}
	n := copy(b, l.ready)
	l.ready = l.ready[n:]
	return n, nil
}

// Write implements [io.Writer], for the service.
func (l *line) Write(b []byte) (int, error) {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	l.begun = append(l.begun, b...)
	for {
		size, n := binary.Uvarint(l.begun)
		if n <= 0 || uint64(len(l.begun)-n) < size {
			return len(b), nil
		}
		frame := l.begun[n : n+int(size)]
		l.begun = l.begun[n+int(size):]
		if err := l.answer(frame); err != nil {
			return 0, err
		}
	}
}

// answer hands on an answer of the service. The caller has the turn.
func (l *line) answer(frame []byte) error {
	if len(l.asked) == 0 {
		panic("simulation: internal error: a relay answers what nobody asked, which the service never does")
	}
	x := l.asked[0]
	l.asked = l.asked[1:]
	var a *wire.RelayAnswer
	if x.req != nil {
		a, _ = relay.ParseAnswer(frame, x.req) // what is no answer is nobody's business here
	}
	if a != nil && l.r.meddler != nil && !l.byAccomplice() {
		a = l.r.meddler.answer(l, x.req, a)
		frame = wire.Marshal(a)
	}
	if err := l.give(x, a, frame); err != nil {
		return err
	}
	return l.answerOwn()
}

// answerOwn gives the answers of the meddler whose turn it is. The caller has the
// turn.
func (l *line) answerOwn() error {
	for len(l.asked) > 0 && l.asked[0].own != nil {
		x := l.asked[0]
		l.asked = l.asked[1:]
		if err := l.give(x, x.own, wire.Marshal(x.own)); err != nil {
			return err
		}
	}
	return nil
}

func (l *line) give(x *inquiry, a *wire.RelayAnswer, frame []byte) error {
	if err := wire.WriteFrame(l.Stream, frame); err != nil {
		return err
	}
	if a != nil && !l.byAccomplice() {
		l.r.ledger.answered(&l.view, x, a)
	}
	return nil
}

// byAccomplice reports whether the other end is the meddler's own.
func (l *line) byAccomplice() bool { return l.r.w.isAccomplice(l.Conn().RemotePeer()) }
