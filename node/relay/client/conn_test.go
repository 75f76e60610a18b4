package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	libnet "github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"

	"starling/node/relay"
	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/identity"
	pure "starling/protocol/relay"
	"starling/protocol/wire"
)

func addrOf(t testing.TB, s string) []byte {
	t.Helper()
	a, err := multiaddr.NewMultiaddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a.Bytes()
}

func sha(b []byte) [sha256.Size]byte { return sha256.Sum256(b) }

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// What a reader and depositors do with the three kinds of queues, against the
// real service.
func TestQueues(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		ctx := l.Context()
		reader, sender := l.dial(l.join(1), Dialer{}), l.dial(l.join(2), Dialer{})

		info := reader.Info()
		if q, ok := info.Quota(pairwise); !ok || q.Messages != protocol.QueueMessages || q.Life != protocol.MessageLife || q.QueueLife != protocol.QueueLife {
			l.Errorf("quota of pairwise queues: %+v, %v", q, ok)
		}
		if len(info.Sizes) != 4 || info.Sizes[3] != protocol.MaxSealed || info.DepositBits != 4 || info.Admission || !info.Draining.IsZero() {
			l.Errorf("info %+v", info)
		}
		if d := time.Since(reader.Time()).Abs(); d > 2*time.Second {
			l.Errorf("the relay's clock is off by %s", d)
		}

		pair, open, shared := newPlace(l), newPlace(l), newPlace(l)
		pair.mustCreate(l, reader, pairwise)
		open.mustCreate(l, reader, box)
		shared.mustCreate(l, reader, logQueue)

		// Three ways of being admitted.
		token := identity.Token{7}
		if err := reader.SetAccess(ctx, open.id, Access{Tokens: []identity.Token{token}}); err != nil {
			l.Fatal(err)
		}
		ds := append(pair.deposits(sender, 2, 2160), open.deposits(sender, 2, 5232)...)
		ds[2].Capability, ds[2].Token = nil, &token
		ds[3].Capability = nil // work
		ds = append(ds, shared.deposits(sender, 1, protocol.MaxSealed)...)
		for i, o := range sender.Deposit(ctx, ds) {
			if o.Err != nil {
				l.Fatalf("deposit %d: %v", i, o.Err)
			}
			leaf := pure.NewLeaf(ds[i].Queue, sha(ds[i].Blob), ds[i].Expires)
			if err := o.Receipt.Verify(l.self(), leaf); err != nil {
				l.Errorf("receipt %d: %v", i, err)
			}
		}
		page, err := reader.Poll(ctx, Poll{})
		if err != nil || len(page.Entries) != len(ds) || page.More || page.Ended {
			l.Fatalf("%d entries, more %v, ended %v: %v", len(page.Entries), page.More, page.Ended, err)
		}
		for i, e := range page.Entries {
			if e.Queue != ds[i].Queue || string(e.Blob) != string(ds[i].Blob) {
				l.Errorf("entry %d is not deposit %d", i, i)
			}
		}
		// Pages, and a cursor of the log.
		first, err := reader.Poll(ctx, Poll{Limit: 2})
		if err != nil || len(first.Entries) != 2 || !first.More {
			l.Fatalf("the first page: %d entries, more %v: %v", len(first.Entries), first.More, err)
		}
		rest, err := reader.Poll(ctx, Poll{
			After:   first.Entries[1].ID,
			Cursors: map[pure.QueueID]uint64{shared.id: page.Entries[4].ID},
		})
		if err != nil || len(rest.Entries) != 2 || rest.Entries[0].Queue != open.id {
			l.Fatalf("the second page: %d entries: %v", len(rest.Entries), err)
		}

		if err := reader.Delete(ctx, page.Entries[:4]); err != nil {
			l.Fatal(err)
		}
		if page, err = reader.Poll(ctx, Poll{}); err != nil || len(page.Entries) != 1 {
			l.Errorf("after deleting: %d entries: %v", len(page.Entries), err)
		}
		wantErr(l, "deleting from a log", reader.Delete(ctx, page.Entries), ErrRefused)

		// Another stream attaches what is known.
		absent := newPlace(l)
		again := l.dial(l.join(3), Dialer{})
		qs, err := again.Attach(ctx, []*pure.ReaderKey{pair.key, absent.key, shared.key})
		if err != nil || !qs[0].Known || qs[1].Known || !qs[2].Known || qs[2].Messages != 1 || qs[2].Bytes != protocol.MaxSealed {
			l.Fatalf("attaching: %+v, %v", qs, err)
		}
		if _, asked := again.Queue(open.id); asked {
			l.Error("a queue was told that was not asked for")
		}
		if q, asked := again.Queue(absent.id); !asked || q.Known {
			l.Errorf("an absent queue: %+v, %v", q, asked)
		}
		until := again.Time().Add(30 * day)
		if qs, err := again.Renew(ctx, []pure.QueueID{pair.id}, until); err != nil || qs[0].Expires.Unix() != until.Unix() {
			l.Errorf("renewing: %+v, %v", qs, err)
		}
		_, err = again.Renew(ctx, []pure.QueueID{absent.id}, until)
		wantErr(l, "renewing what is not attached", err, ErrRefused)

		// Shutting a contact out, in two ways.
		if err := again.SetAccess(ctx, pair.id, Access{}); err != nil {
			l.Fatal(err)
		}
		wantErr(l, "depositing in a closed queue", sender.Deposit(ctx, pair.deposits(sender, 1, 2160))[0].Err, ErrRefused)
		if err := again.Drop(ctx, pair.id); err != nil {
			l.Fatal(err)
		}
		if q, _ := again.Queue(pair.id); q.Known {
			l.Error("a dropped queue is known")
		}
		wantErr(l, "dropping twice", again.Drop(ctx, pair.id), ErrRefused)
		if err := again.Err(); err != nil {
			l.Errorf("refusals ended the stream: %v", err)
		}
	})
}

// More queues than one request names.
func TestAttachMany(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		c := l.dial(l.join(1), Dialer{})
		var keys []*pure.ReaderKey
		var ids []pure.QueueID
		for i := range protocol.MaxClaim + 2 {
			p := newPlace(l)
			keys, ids = append(keys, p.key), append(ids, p.id)
			if i == 0 || i == protocol.MaxClaim+1 {
				p.mustCreate(l, c, pairwise)
			}
		}
		qs, err := l.dial(l.join(2), Dialer{}).Attach(l.Context(), keys)
		if err != nil || len(qs) != len(keys) || !qs[0].Known || qs[1].Known || !qs[protocol.MaxClaim+1].Known {
			l.Fatalf("attaching %d queues: %d answers, %v", len(keys), len(qs), err)
		}
		for i, q := range qs {
			if q.ID != ids[i] {
				l.Fatalf("answer %d is of another queue", i)
			}
		}
	})
}

func TestOneTimeKeys(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		ctx := l.Context()
		owner, taker := l.dial(l.join(1), Dialer{}), l.dial(l.join(2), Dialer{})
		b, token := newPlace(l), identity.Token{1}
		b.mustCreate(l, owner, box)
		if err := owner.SetAccess(ctx, b.id, Access{Tokens: []identity.Token{token}}); err != nil {
			l.Fatal(err)
		}
		pool := pure.NewPool(identity.Account{1}, identity.LookupSecret{2}, l.self(), b.id)
		var keys [][]byte
		for range protocol.PoolReserve + 2 {
			k, err := pool.Seal(rand.Reader, []byte("a bundle"))
			if err != nil {
				l.Fatal(err)
			}
			keys = append(keys, k)
		}
		if n, err := owner.PutKeys(ctx, b.id, pool.ID(), keys, owner.Time().Add(day)); err != nil || n != len(keys) {
			l.Fatalf("putting keys: %d, %v", n, err)
		}
		for i := range 2 { // by work, down to the reserve
			got, err := taker.TakeKey(ctx, b.id, pool.ID(), nil)
			if err != nil || string(got) != string(keys[i]) {
				l.Fatalf("key %d: %v", i, err)
			}
			if _, err := pool.Open(got); err != nil {
				l.Error(err)
			}
		}
		_, err := taker.TakeKey(ctx, b.id, pool.ID(), nil)
		wantErr(l, "a key of the reserve, for work", err, ErrEmpty)
		if _, err := taker.TakeKey(ctx, b.id, pool.ID(), &token); err != nil {
			l.Errorf("a key of the reserve, for a token: %v", err)
		}
		if n, err := owner.CountKeys(ctx, b.id, pool.ID()); err != nil || n != protocol.PoolReserve-1 {
			l.Errorf("counting keys: %d, %v", n, err)
		}
		_, err = taker.TakeKey(ctx, b.id, pure.PoolID{1}, &token)
		wantErr(l, "a key of another pool", err, ErrRefused)
		_, err = owner.PutRecords(ctx, b.id, [][]byte{{1}}, false)
		wantErr(l, "a record for a relay that publishes none", err, ErrMalformed)

		modest := l.dial(l.join(3), Dialer{MaxBits: 3})
		_, err = modest.TakeKey(ctx, b.id, pool.ID(), nil)
		if w, ok := errors.AsType[*WorkError](err); !ok || w.Bits != 4 {
			l.Errorf("a key for more work than allowed: %v", err)
		}
		d := b.deposits(modest, 1, 2160)
		d[0].Capability = nil
		if w, ok := errors.AsType[*WorkError](modest.Deposit(ctx, d)[0].Err); !ok || w.Bits != 4 {
			l.Errorf("a deposit for more work than allowed: %v", w)
		}
	})
}

// A relay that wants an admission token says so, and takes a queue with one.
func TestAdmission(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.admit = relay.AdmitTokens
		l.up()
		token, err := l.Issue("a friend")
		if err != nil {
			l.Fatal(err)
		}
		c := l.dial(l.join(1), Dialer{})
		if !c.Info().Admission {
			l.Error("it does not say so")
		}
		p := newPlace(l)
		_, err = p.create(l.Context(), c, box)
		wantErr(l, "making a queue without a token", err, ErrRefused)
		q, err := c.Create(l.Context(), p.key, NewQueue{Kind: box, Expires: c.Time().Add(day), Admission: token})
		if err != nil || !q.Known {
			l.Errorf("making a queue with a token: %+v, %v", q, err)
		}
	})
}

// A box that is being filled takes more and more work, and a depositor does it.
func TestWorkRises(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		c := l.dial(l.join(1), Dialer{MaxBits: 12})
		p := newPlace(l)
		p.mustCreate(l, c, box)
		ds := p.deposits(c, 60, 2160)
		for i := range ds {
			ds[i].Capability = nil
		}
		for i, o := range c.Deposit(l.Context(), ds) {
			if o.Err != nil {
				l.Fatalf("deposit %d: %v", i, o.Err)
			}
		}
		if got := c.Info().DepositBits; got <= 4 {
			l.Errorf("the last took %d bits, as many as the first", got)
		}
	})
}

func TestStatusesAreErrors(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		ctx := l.Context()
		c := l.dial(l.join(1), Dialer{})
		p := newPlace(l)
		p.mustCreate(l, c, pairwise)
		p.mustDeposit(l, c, protocol.QueueMessages)
		change := func(f func(d *Deposit)) []Deposit {
			ds := p.deposits(c, 1, 2160)
			f(&ds[0])
			return ds
		}
		none, other := pure.QueueID{1}, newPlace(l).capability
		for what, k := range map[string]struct {
			ds   []Deposit
			want error
		}{
			"one too many":            {p.deposits(c, 1, 2160), ErrQuota},
			"no such queue":           {change(func(d *Deposit) { d.Queue = none }), ErrRefused},
			"another capability":      {change(func(d *Deposit) { d.Capability = &other }), ErrRefused},
			"another size":            {p.deposits(c, 1, 2161), ErrMalformed},
			"a time that is over":     {change(func(d *Deposit) { d.Expires = 5 }), ErrMalformed},
			"no time":                 {change(func(d *Deposit) { d.Expires = 0 }), ErrMalformed},
			"nothing":                 {change(func(d *Deposit) { d.Blob = nil }), ErrMalformed},
			"too long for anything":   {p.deposits(c, 1, protocol.MaxDeposit+1), ErrTooBig},
			"too long for a stranger": {change(func(d *Deposit) { d.Capability, d.Token, d.Blob = nil, new(identity.Token), blob(66672) }), ErrTooBig},
		} {
			wantErr(l, what, c.Deposit(ctx, k.ds)[0].Err, k.want)
		}
		if _, err := c.PutKeys(ctx, p.id, pure.PoolID{}, [][]byte{{1}}, c.Time()); !errors.Is(err, ErrMalformed) {
			l.Errorf("a key of one byte: %v, want ErrMalformed", err)
		}
		if _, err := c.Poll(ctx, Poll{Wait: time.Hour}); !errors.Is(err, ErrMalformed) {
			l.Errorf("a wait of an hour: %v, want ErrMalformed", err)
		}
		if err := l.Drain(c.Time().Add(day)); err != nil {
			l.Fatal(err)
		}
		wantErr(l, "a deposit at a relay that drains", c.Deposit(ctx, p.deposits(c, 1, 2160))[0].Err, ErrDraining)
		if i, err := c.Refresh(ctx); err != nil || i.Draining.IsZero() || c.Info().Draining != i.Draining {
			l.Errorf("a relay that drains says %+v, %v", i, err)
		}
		if err := c.Err(); err != nil {
			l.Errorf("the stream ended: %v", err)
		}
	})
}

// A poll that waits ends when something comes, when it is wanted to, and when
// its time is over.
func TestPollWaits(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		ctx := l.Context()
		reader, sender := l.dial(l.join(1), Dialer{}), l.dial(l.join(2), Dialer{})
		p := newPlace(l)
		p.mustCreate(l, reader, pairwise)
		end := make(chan struct{}, 1)
		for _, c := range []struct {
			what    string
			after   func()
			min     time.Duration
			max     time.Duration
			ended   bool
			entries int
		}{
			{"a wait", func() {}, 55 * time.Second, 56 * time.Second, false, 0},
			{"an end", func() { end <- struct{}{} }, 10 * time.Second, 11 * time.Second, true, 0},
			{"a deposit", func() { p.mustDeposit(l, sender, 1) }, 10 * time.Second, 11 * time.Second, false, 1},
		} {
			begun := time.Now()
			timer := time.AfterFunc(10*time.Second, c.after)
			page, err := reader.Poll(ctx, Poll{Wait: protocol.PollWait, End: end})
			timer.Stop()
			took := time.Since(begun)
			if err != nil || len(page.Entries) != c.entries || page.Ended != c.ended || took < c.min || took > c.max {
				l.Errorf("%s: %d entries, ended %v, %v, after %s", c.what, len(page.Entries), page.Ended, err, took)
			}
		}
	})
}

// A stream that is closed, or whose context ends, stops waiting at once; later
// requests say that it has ended.
func TestConnEnds(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		port := l.join(1)
		wait := Poll{Wait: protocol.PollWait}

		c := l.dial(port, Dialer{})
		time.AfterFunc(time.Second, func() { _ = c.Close() })
		begun := time.Now()
		_, err := c.Poll(l.Context(), wait)
		wantErr(l, "a poll, closed", err, ErrClosed)
		_, err = c.Refresh(l.Context())
		wantErr(l, "a request after Close", err, ErrClosed)

		c = l.dial(port, Dialer{})
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(l.Context())
		time.AfterFunc(time.Second, func() { cancel(gone) })
		_, err = c.Poll(ctx, wait)
		wantErr(l, "a poll, cancelled", err, gone)
		_, err = c.Refresh(l.Context())
		wantErr(l, "a request after that", err, ErrClosed)
		if errors.Is(err, gone) {
			l.Error("it is blamed on a context that is not its own")
		}
		wantErr(l, "a deposit after that", c.Deposit(l.Context(), make([]Deposit, 1))[0].Err, ErrClosed)
		if took := time.Since(begun); took > 5*time.Second {
			l.Errorf("it took %s", took)
		}

		// A context that has ended before costs nothing.
		c = l.dial(port, Dialer{})
		_, err = c.Refresh(ctx)
		wantErr(l, "a request with a context that has ended", err, gone)
		if _, err = c.Refresh(l.Context()); err != nil {
			l.Errorf("a request after that: %v", err)
		}
	})
}

// What relays may say that do not keep to the protocol: one fault each.
func TestMisbehavingRelays(t *testing.T) {
	asked := newPlace(t)
	deposit := func(c *Conn) error {
		return c.Deposit(context.Background(), asked.deposits(c, 1, 2160))[0].Err
	}
	two := func(c *Conn) error {
		out := c.Deposit(context.Background(), asked.deposits(c, 2, 2160))
		if !errors.Is(out[1].Err, ErrClosed) {
			return errors.New("the second deposit was answered")
		}
		return out[0].Err
	}
	poll := func(c *Conn) error {
		_, err := c.Poll(context.Background(), Poll{Wait: 10 * time.Second})
		return err
	}
	attach := func(c *Conn) error {
		_, err := c.Attach(context.Background(), []*pure.ReaderKey{asked.key})
		return err
	}
	create := func(c *Conn) error {
		_, err := asked.create(context.Background(), c, pairwise)
		return err
	}
	byWork := func(c *Conn) error {
		ds := asked.deposits(c, 1, 2160)
		ds[0].Capability = nil
		return c.Deposit(context.Background(), ds)[0].Err
	}
	key := func(c *Conn) error {
		_, err := c.TakeKey(context.Background(), asked.id, pure.PoolID{}, nil)
		return err
	}
	ok := func(a *wire.RelayAnswer) *wire.RelayAnswer {
		a.Status = wire.RelayStatus_RELAY_STATUS_OK
		return a
	}
	entries := func(es ...*wire.RelayEntry) *wire.RelayAnswer {
		return ok(&wire.RelayAnswer{Result: &wire.RelayAnswer_Entries{Entries: &wire.RelayEntries{Entries: es}}})
	}
	for _, c := range []struct {
		what   string
		script func(l *lab, s libnet.Stream, n int, req *wire.RelayRequest) bool // of what follows Info
		do     func(c *Conn) error
		want   error
		most   time.Duration // that it may take
		alive  bool          // the stream goes on
	}{
		{"a receipt of another key", func(l *lab, s libnet.Stream, _ int, req *wire.RelayRequest) bool {
			return sayReceipt(l, s, newKey(l), req)
		}, deposit, pure.ErrReceipt, time.Second, false},
		{"a receipt of another deposit", func(l *lab, s libnet.Stream, _ int, req *wire.RelayRequest) bool {
			req.GetDeposit().Blob[0] ^= 1
			return sayReceipt(l, s, l.key, req)
		}, deposit, pure.ErrReceipt, time.Second, false},
		{"a receipt for an earlier end", func(l *lab, s libnet.Stream, _ int, req *wire.RelayRequest) bool {
			req.GetDeposit().Expires--
			return sayReceipt(l, s, l.key, req)
		}, two, pure.ErrReceipt, time.Second, false},
		{"receipts out of step", func(l *lab, s libnet.Stream, n int, req *wire.RelayRequest) bool {
			return n != 2 || sayReceipt(l, s, l.key, req)
		}, two, pure.ErrReceipt, time.Second, false},
		{"the answer to another request", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			return sayInfo(s)
		}, deposit, pure.ErrAnswer, time.Second, false},
		{"no protobuf", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			return wire.WriteFrame(s, []byte{0xff, 0xff}) == nil
		}, attach, pure.ErrAnswer, time.Second, false},
		{"a frame without end", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			_, err := s.Write([]byte{0xff, 0xff, 0xff, 0x7f})
			return err == nil
		}, attach, wire.ErrMalformed, time.Second, false},
		{"silence", func(*lab, libnet.Stream, int, *wire.RelayRequest) bool { return true }, attach, os.ErrDeadlineExceeded, 31 * time.Second, false},
		{"silence at a poll", func(*lab, libnet.Stream, int, *wire.RelayRequest) bool { return true }, poll, os.ErrDeadlineExceeded, 41 * time.Second, false},
		{"a trickle", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			for _, b := range append([]byte{0xff, 0x01}, make([]byte, 255)...) {
				if _, err := s.Write([]byte{b}); err != nil {
					return false
				}
				time.Sleep(time.Second)
			}
			return true
		}, attach, os.ErrDeadlineExceeded, 51 * time.Second, false},
		{"an end", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			_ = s.CloseWrite()
			return true
		}, attach, io.ErrUnexpectedEOF, time.Second, false},
		{"too many streams", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			_ = s.ResetWithError(libnet.StreamResourceLimitExceeded)
			return true
		}, attach, stream.ErrBusy, time.Second, false},
		{"a queue that was made and is not there", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			return say(s, ok(&wire.RelayAnswer{Result: &wire.RelayAnswer_Queues{Queues: &wire.RelayQueues{Queues: []*wire.RelayQueue{{}}}}}))
		}, create, pure.ErrAnswer, time.Second, false},
		{"an entry of a queue that is not attached", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			return say(s, entries(&wire.RelayEntry{Queue: asked.id[:], Id: 1, Blob: []byte{1}}))
		}, poll, pure.ErrAnswer, time.Second, false},
		{"entries that do not ascend", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			e := &wire.RelayEntry{Queue: asked.id[:], Id: 1, Blob: []byte{1}}
			return say(s, entries(e, e))
		}, poll, pure.ErrAnswer, time.Second, false},
		{"an unknown status", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			return sayStatus(s, 77)
		}, attach, ErrBusy, time.Second, true},
		{"a busy relay", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			return sayStatus(s, wire.RelayStatus_RELAY_STATUS_BUSY)
		}, deposit, ErrBusy, time.Second, true},
		{"never enough work for a deposit", func(_ *lab, s libnet.Stream, n int, _ *wire.RelayRequest) bool {
			return sayDemand(s, n+2)
		}, byWork, &WorkError{5}, time.Second, true},
		{"never enough work for a key", func(_ *lab, s libnet.Stream, n int, _ *wire.RelayRequest) bool {
			return sayDemand(s, n+2)
		}, key, &WorkError{5}, time.Second, true},
		{"work that was enough and is not", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			return sayDemand(s, 2)
		}, byWork, &WorkError{2}, time.Second, true},
		{"more work than anybody does", func(_ *lab, s libnet.Stream, _ int, _ *wire.RelayRequest) bool {
			return sayDemand(s, 30)
		}, byWork, &WorkError{30}, time.Second, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			inLab(t, 0, func(l *lab) {
				l.fake(func(s libnet.Stream, n int, req *wire.RelayRequest) bool {
					if req.GetInfo() != nil {
						return sayInfo(s)
					}
					return c.script(l, s, n, req)
				})
				conn := l.dial(l.join(1), Dialer{})
				begun := time.Now()
				err := c.do(conn)
				took := time.Since(begun)
				if want, ok := c.want.(*WorkError); ok {
					if got, ok := errors.AsType[*WorkError](err); !ok || *got != *want {
						l.Errorf("%v, want %v", err, want)
					}
				} else {
					wantErr(l, "error", err, c.want)
				}
				if took > c.most {
					l.Errorf("it took %s, want at most %s", took, c.most)
				}
				if (conn.Err() == nil) != c.alive {
					l.Errorf("the stream's end: %v", conn.Err())
				}
			})
		})
	}
}

func sayDemand(s io.Writer, bits int) bool {
	return say(s, &wire.RelayAnswer{
		Status: wire.RelayStatus_RELAY_STATUS_WORK,
		Result: &wire.RelayAnswer_Demand{Demand: &wire.RelayDemand{Bits: uint32(bits)}},
	})
}

// sayReceipt answers a deposit with a receipt that is right in form.
func sayReceipt(l *lab, s io.Writer, key pure.Signer, req *wire.RelayRequest) bool {
	d := req.GetDeposit()
	g, err := pure.SignGroup([]pure.Leaf{pure.NewLeaf(pure.QueueID(d.Queue), sha(d.Blob), d.Expires)}, time.Now(), key)
	if err != nil {
		l.Error(err)
		return false
	}
	return say(s, &wire.RelayAnswer{
		Status: wire.RelayStatus_RELAY_STATUS_OK,
		Result: &wire.RelayAnswer_Receipt{Receipt: g.Receipt(0).Wire()},
	})
}

// Who is no relay says so, and who is nobody is not reached.
func TestDialFails(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		h := l.host()
		l.stop = func() { _ = h.Close() }
		d := NewDepositor(NewHosts(l.join(1).Options()...), Dialer{})
		wantErr(l, "a host that is no relay", d.Do(l.Context(), l.endpoint(), nil), stream.ErrRefused)
		l.port.Cut()
		begun := time.Now()
		if err := d.Do(l.Context(), l.endpoint(), nil); err == nil {
			l.Error("a host without power was reached")
		}
		if took := time.Since(begun); took > dialTimeout {
			l.Errorf("it took %s to see that", took)
		}
		nowhere := identity.Endpoint{Transport: l.self(), Addrs: [][]byte{{0xff}}}
		if err := d.Do(l.Context(), nowhere, nil); err == nil {
			l.Error("a relay without an address was reached")
		}
	})
}
