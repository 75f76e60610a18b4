package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// What is on its way at once: as many deposits, and as many bytes of them, more
// only for a single one. The bytes take 10 s of the answer's 30 on a line of 50
// kB/s.
const (
	window      = 64
	windowBytes = 512 << 10

	// together is how many bytes of deposits are written at once, or one deposit.
	together = 32 << 10
)

// workTries is how often a relay may ask for more work for one request. It may
// be pressed more by the time that work is done, but not for ever.
const workTries = 3

// A Deposit is a blob for a queue, with what admits it: the capability of a
// pairwise queue or log, an invite token that a contact box admits, or with
// neither of them work.
type Deposit struct {
	Queue      relay.QueueID
	Blob       []byte // of one of [Info].Sizes
	Expires    int64  // unix seconds, of [relay.Expiry], drawn for this relay
	Capability *relay.Capability
	Token      *identity.Token // the relay gets its hash
}

// An Outcome is what became of a [Deposit]: stored, with a receipt that was
// verified, or an error.
type Outcome struct {
	Receipt relay.Receipt // with Err nil
	Err     error
}

// Deposit leaves blobs, with up to 64 on their way, and returns the outcome of
// each. They are sent in their order; a relay may store in another those that are
// on their way together. Errors: ErrQuota, ErrRefused, ErrBusy, ErrMalformed,
// ErrTooBig, ErrDraining, *WorkError; relay.ErrReceipt if a receipt does not
// prove the deposit, which ends the stream. After the end of a stream those
// without an answer get ErrClosed: they may be stored or not, and are deposited
// again with the same bytes and expiry.
//
// A deposit that takes work waits until those before it are answered.
func (c *Conn) Deposit(ctx context.Context, ds []Deposit) []Outcome {
	out := make([]Outcome, len(ds))
	fly := flight{c: c, ds: ds, out: out}
	stop, err := c.begin(ctx)
	if err != nil {
		for i := range out {
			out[i].Err = err
		}
		return out
	}
	defer stop()
	for i := range ds {
		if c.ended != nil {
			break
		}
		fly.launch(ctx, i)
	}
	fly.land(ctx, 0, 0)
	for i := range out {
		if out[i].Err == nil && out[i].Receipt.Count == 0 {
			out[i].Err = c.again()
		}
	}
	return out
}

// A flight is the deposits of one call that are on their way.
type flight struct {
	c     *Conn
	ds    []Deposit
	out   []Outcome
	queue []launched
	bytes int

	frames []byte // of the last of the queue, not yet written
	unsent int    // how many these are
}

type launched struct {
	i   int // of the deposit
	req *wire.RelayRequest
	by  time.Time // when its answer has to be there
}

// launch sends deposit i, when there is room.
func (f *flight) launch(ctx context.Context, i int) {
	d := &f.ds[i]
	m := &wire.RelayDeposit{Queue: d.Queue[:], Blob: d.Blob, Expires: d.Expires}
	switch {
	case len(d.Blob) > protocol.MaxDeposit:
		f.out[i].Err = ErrTooBig
		return
	case len(d.Blob) == 0 || d.Expires <= 0:
		f.out[i].Err = ErrMalformed
		return
	case d.Capability != nil:
		m.Admit = &wire.RelayDeposit_Capability{Capability: d.Capability.Bytes()}
	case d.Token != nil:
		h := relay.TokenHash(*d.Token, f.c.relay)
		m.Admit = &wire.RelayDeposit_Token{Token: h[:]}
	default:
		f.land(ctx, 0, 0)
		f.work(ctx, i, m)
		return
	}
	// When there is no room, half of it is made, so that as many can be written
	// together.
	if len(f.queue) == window || f.bytes+len(d.Blob) > windowBytes {
		f.land(ctx, window/2, max(0, windowBytes/2-len(d.Blob)))
	}
	f.send(ctx, i, m)
}

func (f *flight) send(ctx context.Context, i int, m *wire.RelayDeposit) {
	if f.c.ended != nil {
		return
	}
	req := &wire.RelayRequest{Command: &wire.RelayRequest_Deposit{Deposit: m}}
	f.queue = append(f.queue, launched{i, req, time.Now().Add(answerTimeout)})
	f.bytes += len(m.Blob)
	frames, err := wire.AppendFrame(f.frames, req)
	if err != nil {
		panic("client: internal error: a deposit that fits no frame: launch has looked at its length")
	}
	f.frames = frames
	f.unsent++
	if len(f.frames) >= together {
		f.flush(ctx)
	}
}

// flush writes what was not written. If that fails, the first of it has the
// error.
func (f *flight) flush(ctx context.Context) {
	if f.unsent == 0 || f.c.ended != nil {
		return
	}
	if err := f.c.s.WriteFrames(f.frames); err != nil {
		f.out[f.queue[len(f.queue)-f.unsent].i].Err = f.c.fail(ctx, err)
	}
	f.frames, f.unsent = f.frames[:0], 0
}

// land takes answers until at most so many deposits and bytes are on their way.
func (f *flight) land(ctx context.Context, most, bytes int) {
	f.flush(ctx)
	c := f.c
	for len(f.queue) > 0 && c.ended == nil && (len(f.queue) > most || f.bytes > bytes) {
		l := f.queue[0]
		f.queue = f.queue[1:]
		m := l.req.GetDeposit()
		f.bytes -= len(m.Blob)
		a, err := c.receive(ctx, l.req, time.Until(l.by))
		if err != nil {
			f.out[l.i].Err = err
			continue
		}
		r, err := relay.ReceiptFromWire(a.GetReceipt())
		if err == nil {
			err = c.verifier.Verify(relay.NewLeaf(relay.QueueID(m.Queue), sha256.Sum256(m.Blob), m.Expires), r)
		}
		if err != nil {
			f.out[l.i].Err = c.fail(ctx, err)
			continue
		}
		f.out[l.i].Receipt = r
	}
}

// work makes deposit i with work, more if the relay wants more.
func (f *flight) work(ctx context.Context, i int, m *wire.RelayDeposit) {
	c, d := f.c, f.ds[i]
	if c.ended != nil {
		return // land found it so
	}
	stamp := relay.DepositStamp(c.relay, d.Queue, sha256.Sum256(d.Blob), d.Expires)
	f.out[i].Err = c.working(&c.info.DepositBits, func(bits int) error {
		nonce, err := relay.Work(ctx, stamp, bits)
		if err != nil {
			return c.fail(ctx, err)
		}
		m.Admit = &wire.RelayDeposit_Work{Work: nonce}
		f.out[i] = Outcome{}
		f.send(ctx, i, m)
		f.land(ctx, 0, 0)
		return f.out[i].Err
	})
}

// working calls do with as many bits as the relay is known to want, and again as
// long as it wants more than were done, within MaxBits. What it said is kept in
// bits, for the next time.
func (c *Conn) working(bits *int, do func(bits int) error) error {
	for try := 1; ; try++ {
		if *bits > c.dialer.MaxBits {
			return &WorkError{*bits}
		}
		err := do(*bits)
		more, wants := errors.AsType[*WorkError](err)
		if !wants || more.Bits <= *bits || more.Bits > c.dialer.MaxBits || try == workTries {
			return err
		}
		*bits = more.Bits
	}
}
