package relay

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"starling/node/relay/spool"
	"starling/protocol"
	"starling/protocol/wire"
)

// A deposit whose answer was lost is repeated with the same bytes and the same
// expiry. It gets a receipt each time; the reader gets one entry, and the second
// takes no use of a token, no work and no room.
func TestRepeatedDepositIsKeptOnce(t *testing.T) {
	w := newWorld(t, nil)
	reader, sender := w.caller(), w.caller()
	pair, public := reader.queue(pairwise), reader.queue(box)
	token := reader.admit(public)
	for name, req := range map[string]*wire.RelayRequest{
		"capability": w.deposit(pair, 5232),
		"token":      w.tokenDeposit(public, token),
		"work":       w.workDeposit(public, 4),
	} {
		t.Run(name, func(t *testing.T) {
			for range protocol.TokenDeposits + 2 {
				w.wantReceipt(req, sender.want(isOK, req))
			}
			got := reader.poll256()
			if len(got) != 1 {
				t.Fatalf("%d entries, want 1", len(got))
			}
			reader.want(isOK, deletion([32]byte(got[0].Queue), got[0].Id))
		})
	}
	for range protocol.TokenDeposits - 1 {
		sender.want(isOK, w.tokenDeposit(public, token))
	}
	sender.want(isRefused, w.tokenDeposit(public, token))
	if s := w.Status().Counters; s.Repeated != 3*(protocol.TokenDeposits+1) || s.Deposits != 3+protocol.TokenDeposits-1 {
		t.Errorf("%d repeated and %d kept", s.Repeated, s.Deposits)
	}
}

// What differs in the blob, the expiry or the queue is another deposit, and so is
// what the reader has had already.
func TestWhatIsNoRepetition(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	one, two := c.queue(pairwise), c.queue(pairwise)
	first := w.deposit(one, 2160)
	later := proto.CloneOf(first)
	later.GetDeposit().Expires++
	elsewhere := proto.CloneOf(first)
	elsewhere.GetDeposit().Queue = two.id[:]
	elsewhere.GetDeposit().Admit = &wire.RelayDeposit_Capability{Capability: two.capability.Bytes()}
	other := proto.CloneOf(first)
	other.GetDeposit().Blob[0]++
	for _, req := range []*wire.RelayRequest{first, later, elsewhere, other} {
		w.wantReceipt(req, c.want(isOK, req))
	}
	got := c.poll256()
	if len(got) != 4 {
		t.Fatalf("%d entries, want 4", len(got))
	}
	c.want(isOK, deletion(one.id, got[0].Id))
	w.wantReceipt(first, c.want(isOK, first))
	if got := c.poll256(); len(got) != 4 || w.Status().Counters.Repeated != 0 {
		t.Errorf("%d entries, want 4 again", len(got))
	}
}

// A full queue, a restart and a rise of the work do not keep a depositor from its
// receipt.
func TestRepetitionTakesNothing(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	m, public := c.queue(pairwise), c.queue(box)
	first, worked := w.deposit(m, 2160), w.workDeposit(public, 4)
	c.want(isOK, first)
	c.want(isOK, worked)
	for range protocol.QueueMessages - 1 {
		c.want(isOK, w.deposit(m, 2160))
	}
	for range 20 {
		c.want(isOK, w.workDeposit(public, 10))
	}
	c.want(isQuota, w.deposit(m, 2160))
	w.wantReceipt(first, c.want(isOK, first))
	w.wantReceipt(worked, c.want(isOK, worked))
	w.reopen()
	c = w.caller()
	w.wantReceipt(first, c.want(isOK, first))
	if n, _ := w.spool.Count(spool.Queue(m.id)); n != protocol.QueueMessages {
		t.Errorf("%d entries, want %d", n, protocol.QueueMessages)
	}
}

// The same deposit by many at once is kept once, and all have a receipt.
func TestRepetitionsAtTheSameTime(t *testing.T) {
	w := newWorld(t, nil)
	reader := w.caller()
	m, public := reader.queue(pairwise), reader.queue(box)
	token := reader.admit(public)
	reqs := []*wire.RelayRequest{w.deposit(m, 2160), w.workDeposit(public, 4), w.tokenDeposit(public, token)}
	var wg sync.WaitGroup
	for range 40 {
		for _, req := range reqs {
			c := w.caller()
			wg.Go(func() { w.wantReceipt(req, c.want(isOK, req)) })
		}
	}
	wg.Wait()
	if got := reader.poll256(); len(got) != len(reqs) {
		t.Errorf("%d entries, want %d", len(got), len(reqs))
	}
	row := public.in(w).row
	if used := row.Tokens[0].Deposits; used != 1 {
		t.Errorf("%d uses of the token, want 1", used)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.coming) != 0 || w.toBoxes != 0 || w.anybody.inflight != 0 {
		t.Errorf("left behind: %d deposits, %d bytes", len(w.coming), w.toBoxes)
	}
}

// A repetition that finds its entry gone, since the first one could not be kept
// or was dropped in between, is a deposit like any other.
func TestRepetitionOfWhatFailed(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	m := c.queue(pairwise)
	req := w.deposit(m, 2160)
	d := &deposit{s: w.Service, ended: make(chan struct{})}
	again := &deposit{
		s: w.Service, q: m.in(w), id: m.id, blob: req.GetDeposit().Blob, until: req.GetDeposit().Expires, first: d, held: 17,
	}
	close(d.ended) // and it is nowhere
	if a, err := again.keep(); err != nil || a.GetReceipt() == nil || again.ended == nil {
		t.Fatalf("after a first that failed: %v, %v", a, err)
	}
	again = &deposit{s: w.Service, q: m.in(w), id: m.id, blob: blob(2160), until: start.Add(time.Hour).Unix(), held: 17}
	if a, err := again.keep(); err != nil || a.GetReceipt() == nil {
		t.Fatalf("of an entry that is gone: %v, %v", a, err)
	}
	if got := c.poll256(); len(got) != 2 {
		t.Errorf("%d entries, want 2", len(got))
	}
}

// Strangers without a token take at most their share of an open relay, however
// many address blocks they come from; who has a token has the rest.
func TestStrangersTakeNoMoreThanTheirShare(t *testing.T) {
	const each, all = 10 * 2160, 64 * 2160
	w := newWorld(t, func(cfg *Config) {
		cfg.Limits.Share, cfg.Limits.Anybody = each, all
		cfg.Limits.ShareQueues, cfg.Limits.AnybodyQueues = 4, 40
	})
	strangers, kept := 0, 0
	for block := range 30 {
		c := w.from(netip.AddrFrom4([4]byte{10, 9, byte(block), 7}).String())
		stored, made := 0, 0
		for range 6 { // queues
			m := w.makeable(pairwise)
			if a := c.ask(c.createRequest(m)); a.Status != isOK {
				if a.Status != isQuota {
					t.Fatalf("making a queue: %v", a.Status)
				}
				continue
			}
			made++
			for range 8 {
				switch a := c.ask(w.deposit(m, 2160)); a.Status {
				case isOK:
					stored++
				case isQuota:
				default:
					t.Fatalf("deposit: %v", a.Status)
				}
			}
		}
		if made > 4 || stored > 10 {
			t.Errorf("one address block has %d queues with %d messages", made, stored)
		}
		strangers += made
		kept += stored
	}
	if strangers != 40 || kept != 64 {
		t.Errorf("strangers have %d queues with %d messages, want all of their 40 and 64", strangers, kept)
	}
	if s := w.Status(); s.Anybody != all {
		t.Errorf("%d bytes on the accounts of strangers, want %d", s.Anybody, all)
	}

	token, err := w.Issue("a friend")
	if err != nil {
		t.Fatal(err)
	}
	c := w.from("10.9.0.7")
	m := w.makeable(pairwise)
	m.create.Admission = token[:]
	c.want(isOK, c.createRequest(m))
	for range 10 {
		c.want(isOK, w.deposit(m, 2160))
	}

	// It is the same after a restart, and what is dropped is free again.
	w.reopen()
	if s := w.Status(); s.Anybody != all {
		t.Errorf("%d bytes after a restart, want %d", s.Anybody, all)
	}
	var of *queue
	w.mu.Lock()
	for _, q := range w.queues {
		if q.share.of != nil && q.messages > 0 {
			of = q
		}
	}
	bytes := of.bytes
	w.mu.Unlock()
	if err := w.dropQueue(t.Context(), of); err != nil {
		t.Fatal(err)
	}
	if s := w.Status(); s.Anybody != all-bytes || w.anybody.queues != 39 {
		t.Errorf("%d bytes in %d queues after a drop, want %d in 39", s.Anybody, w.anybody.queues, all-bytes)
	}
}

// The counters say what happened, and name nobody.
func TestCounters(t *testing.T) {
	w := newWorld(t, nil)
	c := w.from("192.0.2.9")
	public, m := c.queue(box), c.queue(pairwise)
	token, pool := c.admit(public), blob(32)
	c.want(isOK, putKeys(public.id, pool, start.Add(time.Hour).Unix(), 1))
	before := w.Status().Counters
	again := w.deposit(m, 5232)
	for _, req := range []*wire.RelayRequest{
		again, again, w.deposit(m, 2160), w.deposit(m, 99), w.deposit(w.makeable(pairwise), 2160),
		pollRequest(10), takeByToken(public.id, pool, token), takeByToken(public.id, pool, token),
	} {
		c.try(req)
	}
	s := w.Status().Counters
	for name, n := range map[string][2]uint64{
		"requests":   {s.Requests - before.Requests, 8},
		"deposits":   {s.Deposits, 2},
		"bytes":      {s.DepositBytes, 5232 + 2160},
		"repeated":   {s.Repeated, 1},
		"receipts":   {s.Receipts - before.Receipts, 3},
		"groups":     {s.Groups[0] - before.Groups[0], 3},
		"polls":      {s.Polls, 1},
		"entries":    {s.Entries, 2},
		"keys":       {s.Keys, 1},
		"malformed":  {s.Refused["malformed"], 1},
		"refused":    {s.Refused["refused"], 1},
		"empty":      {s.Refused["empty"], 1},
		"quota":      {s.Refused["quota"], 0},
		"statuses":   {uint64(len(s.Refused)), 8},
		"bytes read": {min(s.BytesIn, 12_000), 12_000},
	} {
		if n[0] != n[1] {
			t.Errorf("%s: %d, want %d", name, n[0], n[1])
		}
	}
}
