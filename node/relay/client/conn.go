package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"

	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// Tuning, not protocol.
const (
	// dialTimeout bounds [Dialer.Dial] up to the first request.
	dialTimeout = 30 * time.Second

	// answerTimeout is how long a relay may take for an answer, beyond the wait of
	// a poll. A frame may take node/stream's 20 s more from its first byte to its
	// last.
	answerTimeout = 30 * time.Second

	// defaultMaxBits is two bits above what a relay asks for when nothing presses:
	// some two seconds of one processor.
	defaultMaxBits = protocol.WorkBits + 2
)

// A Dialer opens streams to relays. The zero value is ready for use; it may be
// used by several goroutines.
type Dialer struct {
	// MaxBits is the most bits of work that are done for one request, at most
	// [protocol.MaxWork]. Each more doubles the time. Default 24.
	MaxBits int

	// Rand is where salts come from. Default crypto/rand.
	Rand io.Reader
}

// Dial is [Dialer.Dial] of the zero Dialer.
func Dial(ctx context.Context, h host.Host, to identity.Endpoint) (*Conn, error) {
	return Dialer{}.Dial(ctx, h, to)
}

// Dial connects h to a relay, unless they are connected, opens a stream and asks
// what the relay is. It takes at most 100 s. Errors are of the network, or
// those of [stream.Open] and [stream.Conn.Read]: stream.ErrRefused means that
// there is no relay, stream.ErrBusy that it has too many streams; or one that
// wraps [relay.ErrAnswer]. The caller closes what it gets. The connection stays
// when the stream is closed: it is the host's.
func (d Dialer) Dial(ctx context.Context, h host.Host, to identity.Endpoint) (*Conn, error) {
	self, ok := transportOf(h.ID())
	if !ok {
		return nil, errors.New("client: the host has no Ed25519 key")
	}
	if d.MaxBits <= 0 {
		d.MaxBits = defaultMaxBits
	}
	d.MaxBits = min(d.MaxBits, protocol.MaxWork)
	if d.Rand == nil {
		d.Rand = rand.Reader
	}
	info := addrInfo(to)
	opening, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := h.Connect(opening, info); err != nil {
		return nil, fmt.Errorf("connecting to the relay: %w", err)
	}
	s, err := stream.Open(opening, h, info.ID, protocol.StreamRelay)
	if err != nil {
		return nil, err
	}
	c := &Conn{
		s: s, relay: to.Transport, self: self, dialer: d,
		verifier: relay.NewVerifier(to.Transport),
		queues:   make(map[relay.QueueID]Queue),
	}
	if _, err := c.Refresh(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// A Conn is one stream to a relay. It is for one goroutine, except that Close
// may be called by any, and interrupts.
//
// An error of a request is one of this package's statuses, after which the
// stream goes on, or it has ended the stream: [Conn.Err] tells which.
type Conn struct {
	s           *stream.Conn
	relay, self identity.Transport // the connection's two ends
	dialer      Dialer
	verifier    *relay.Verifier
	closed      atomic.Bool // Close was called
	asking      atomic.Bool // a request is being made

	ended  error // why the stream cannot be used any more
	info   Info
	asked  time.Time               // when info was answered, by our clock
	queues map[relay.QueueID]Queue // as the relay last told
	older  bool                    // a queue with entries was attached; the reader clears it
}

// Info says what a relay is and takes (SPEC §13.4). It proves nothing.
type Info struct {
	Time        time.Time // by the relay's clock, when it answered
	Store       [relay.StoreIDSize]byte
	Kinds       []wire.QueueKind // that it makes
	Sizes       []int            // of deposits, bytes, ascending
	DepositBits int              // of work for a deposit in a contact box
	KeyBits     int              // of work for a one-time key
	Admission   bool             // making a queue takes an admission token
	Draining    time.Time        // when it will stop; zero: it will not
	Quotas      []Quota
	BlobBytes   uint64 // of blobs for one reader
}

// A Quota is what a relay keeps in one queue of a kind.
type Quota struct {
	Kind      wire.QueueKind
	Messages  int
	Bytes     uint64
	Life      time.Duration // of a deposit, at most
	QueueLife time.Duration // the farthest that a queue's expiry is set ahead
}

// Quota returns the quota of a kind of queue, or false if the relay names none.
func (i Info) Quota(kind wire.QueueKind) (Quota, bool) {
	for _, q := range i.Quotas {
		if q.Kind == kind {
			return q, true
		}
	}
	return Quota{}, false
}

// Relay returns the relay's key, which the connection proved.
func (c *Conn) Relay() identity.Transport { return c.relay }

// Info returns what the relay last said of itself.
func (c *Conn) Info() Info { return c.info }

// Time returns what the relay's clock shows now, as far as it told. Expiries are
// chosen by it.
func (c *Conn) Time() time.Time { return c.info.Time.Add(time.Since(c.asked)) }

// Err returns nil as long as the stream can be used, or why it cannot.
func (c *Conn) Err() error { return c.ended }

// Close ends the stream. It may be called again, and by any goroutine; what
// waits then returns [ErrClosed].
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	if c.asking.Load() {
		c.s.Refuse() // the only end that interrupts a write over any transport
		return nil
	}
	return c.s.Close()
}

// Refresh asks the relay anew what it is.
func (c *Conn) Refresh(ctx context.Context) (Info, error) {
	a, err := c.ask(ctx, infoRequest)
	if err != nil {
		return Info{}, err
	}
	c.learn(a)
	return c.info, nil
}

var infoRequest = &wire.RelayRequest{Command: &wire.RelayRequest_Info{Info: &wire.RelayInfoRequest{}}}

// learn keeps an answer to infoRequest.
func (c *Conn) learn(a *wire.RelayAnswer) {
	w := a.GetInfo()
	i := Info{
		Time:        time.Unix(w.Time, 0),
		Store:       [relay.StoreIDSize]byte(w.Store),
		Kinds:       w.Kinds,
		DepositBits: int(w.DepositBits),
		KeyBits:     int(w.KeyBits),
		Admission:   w.Admission,
		BlobBytes:   w.BlobBytes,
	}
	if w.Draining != 0 {
		i.Draining = time.Unix(w.Draining, 0)
	}
	for _, s := range w.Sizes {
		i.Sizes = append(i.Sizes, int(s))
	}
	for _, q := range w.Quotas {
		i.Quotas = append(i.Quotas, Quota{
			q.Kind, int(q.Messages), q.Bytes,
			time.Duration(q.Life) * time.Second, time.Duration(q.QueueLife) * time.Second,
		})
	}
	c.info, c.asked = i, time.Now()
}

// ask makes one exchange.
func (c *Conn) ask(ctx context.Context, req *wire.RelayRequest) (*wire.RelayAnswer, error) {
	b := wire.Marshal(req)
	// A relay would answer the same, or reset the stream.
	if _, err := relay.ParseRequest(b); errors.Is(err, relay.ErrTooBig) {
		return nil, ErrTooBig
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	stop, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := c.send(ctx, b); err != nil {
		return nil, err
	}
	return c.receive(ctx, req, answerTimeout)
}

// begin begins exchanges: until stop is called, the end of ctx and Close reset
// the stream.
func (c *Conn) begin(ctx context.Context) (stop func(), err error) {
	c.asking.Store(true) // before closed is read: one of begin and Close sees the other
	switch {
	case c.ended != nil:
		err = c.again()
	case c.closed.Load():
		err = ErrClosed
	case ctx.Err() != nil:
		err = context.Cause(ctx) // nothing was asked, and the stream goes on
	}
	if err != nil {
		c.asking.Store(false)
		return nil, err
	}
	done := context.AfterFunc(ctx, c.s.Refuse)
	return func() {
		done()
		c.asking.Store(false)
	}, nil
}

// again is the error of whatever is asked after the stream has ended. It has the
// cause as a text only: it is another's, perhaps the end of another's context.
func (c *Conn) again() error {
	if errors.Is(c.ended, ErrClosed) {
		return c.ended
	}
	return fmt.Errorf("%w: %v", ErrClosed, c.ended)
}

// fail ends the stream and returns why.
func (c *Conn) fail(ctx context.Context, err error) error {
	switch {
	case c.closed.Load():
		err = ErrClosed
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	c.ended = err
	c.s.Refuse()
	return err
}

func (c *Conn) send(ctx context.Context, b []byte) error {
	if err := c.s.Write(b); err != nil {
		return c.fail(ctx, err)
	}
	return nil
}

// receive returns the next answer, which is to req, or the error of its status.
func (c *Conn) receive(ctx context.Context, req *wire.RelayRequest, wait time.Duration) (*wire.RelayAnswer, error) {
	c.s.SetWait(wait)
	b, err := c.s.Read(protocol.MaxFrame)
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	a, err := relay.ParseAnswer(b, req)
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	return a, statusError(a)
}
