package relay

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// from returns a client at an address.
func (w *world) from(ip string) *caller {
	c := w.caller()
	c.addr, _ = netip.MustParseAddr(ip).Prefix(24)
	w.mu.Lock()
	defer w.mu.Unlock()
	c.block = w.blockLocked(c.addr)
	return c
}

// try sends a request as a stream does, past the limits of an address block.
func (c *caller) try(req *wire.RelayRequest) wire.RelayStatus {
	c.endPoll()
	t, err := c.begin(wire.Marshal(req))
	if err != nil {
		c.w.t.Errorf("%T: %v", req.Command, err)
		return isBusy
	}
	a, held := t.wait()
	c.give(t.held + held)
	return a.Status
}

// Strangers at fifty address blocks do what strangers can, as fast as they
// are let: fill a contact box, drain its pool, guess queues, make their own.
// Contacts go on depositing.
func TestContactsGetThroughAFloodOfStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(cfg *Config) {
			cfg.Admit, cfg.Now = AdmitTokens, time.Now
			cfg.Quota = 8 << 20
			cfg.Limits.BlockRate = 5
		})
		w.clock.at = time.Now()
		token, err := w.Issue("owner")
		if err != nil {
			t.Fatal(err)
		}
		owner := w.from("192.0.2.1")
		make := func(kind wire.QueueKind) *made {
			m := w.makeable(kind)
			m.create.Admission = token[:]
			owner.want(isOK, owner.createRequest(m))
			return m
		}
		public, pool := make(box), blob(32)
		owner.want(isOK, putKeys(public.id, pool, time.Now().Add(time.Hour).Unix(), 50))

		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var mu sync.Mutex
		strangers := map[wire.RelayStatus]int{}
		for i := range 50 {
			c := w.from(netip.AddrFrom4([4]byte{10, 1, byte(i), 7}).String())
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					for range 8 {
						var req *wire.RelayRequest
						switch n++; n % 5 {
						case 0:
							req = w.workDeposit(public, 5)
						case 1:
							req = w.takeByWork(public.id, pool, 5)
						case 2:
							req = w.deposit(w.makeable(pairwise), 66672)
						case 3:
							req = c.createRequest(w.makeable(pairwise))
						case 4:
							req = c.attachRequest(w.makeable(pairwise))
						}
						s := c.try(req)
						mu.Lock()
						strangers[s]++
						mu.Unlock()
					}
					time.Sleep(time.Second)
				}
			})
		}
		good, all := 0, 0
		contact := w.from("198.51.100.1")
		m := make(pairwise)
		for range 10 {
			for range 5 {
				all++
				if contact.try(w.deposit(m, 2160)) == isOK {
					good++
				}
			}
			time.Sleep(time.Second)
		}
		cancel()
		wg.Wait()
		if good*100 < all*99 {
			t.Errorf("%d of %d deposits of a contact were kept", good, all)
		}
		for _, s := range []wire.RelayStatus{isOK, isRefused, isWork, isBusy} {
			if strangers[s] == 0 {
				t.Errorf("no stranger was told %v: %v", s, strangers)
			}
		}
		s := w.Status()
		if s.Boxes > w.Service.cfg.Limits.Boxes || s.Queues != 2 || w.free != w.Service.cfg.Limits.Memory {
			t.Errorf("after the flood: %+v, %d bytes free", s, w.free)
		}
		keys := owner.want(isOK, countRequest(public.id, pool)).GetCount().Count
		if keys < protocol.PoolReserve {
			t.Errorf("%d keys are left, want the reserve at least", keys)
		}
		if got := len(owner.w.spool.List([32]byte(m.id), 0, 0)); got != good {
			t.Errorf("%d entries, want the %d that were acknowledged", got, good)
		}
	})
}

// Whatever bytes a client sends, the relay answers with a known status or ends
// the stream, keeps its books and gives back its memory.
func FuzzHandle(f *testing.F) {
	w := newWorld(f, func(cfg *Config) {
		cfg.CheckRecord = checkFake
		cfg.Publish = func(context.Context, Record) error { return nil }
	})
	owner := w.caller()
	m, b := owner.queue(pairwise), owner.queue(box)
	token := owner.admit(b)
	for _, req := range []*wire.RelayRequest{
		infoRequest, owner.createRequest(m), owner.attachRequest(m, b), w.deposit(m, 2160), w.tokenDeposit(b, token),
		w.workDeposit(b, 4), pollRequest(3), deletion(m.id, 1, 2), dropRequest(b.id), renewal(start.Add(time.Hour), m.id, b.id),
		putKeys(b.id, blob(32), start.Add(time.Hour).Unix(), 1), takeByToken(b.id, blob(32), token),
		w.takeByWork(b.id, blob(32), 4), countRequest(b.id, blob(32)), recordsRequest(b.id, true, fakeRecord(dayOf(start))),
		setAccess(&wire.RelaySetAccess{Queue: b.id[:], Tokens: [][]byte{token}}),
		putBlob(b, blob(32), 0, 2, blob(protocol.BlobChunk), start.Add(time.Hour)), getBlob(blob(32), 0), dropBlob(b, blob(32)),
		dialRequest("/ip4/192.0.2.7/tcp/4000"),
	} {
		f.Add(wire.Marshal(req))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > protocol.MaxRelayRequest {
			return // the stream is reset before
		}
		answer, err := owner.handle(frame, 0)
		if err != nil {
			return
		}
		var a *wire.RelayAnswer
		var held int
		var writer sync.WaitGroup
		writer.Go(func() { a, held = answer.wait() })
		owner.endPoll() // as the next request would
		writer.Wait()
		owner.give(held)
		req, err := relay.ParseRequest(frame)
		if err != nil {
			if a.Status != isMalformed && a.Status != isTooBig {
				t.Errorf("%v to what does not parse", a.Status)
			}
			return
		}
		if _, err := relay.ParseAnswer(wire.Marshal(a), req); err != nil {
			t.Errorf("answer %v to %T: %v", a.Status, req.Command, err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.free != w.Service.cfg.Limits.Memory || w.toBoxes != 0 {
			t.Errorf("%d bytes of memory free, %d on their way to boxes", w.free, w.toBoxes)
		}
		for _, q := range w.queues {
			if q.inflight != (amount{}) || q.share.inflight != 0 {
				t.Errorf("a queue with %+v on its way", q.inflight)
			}
		}
	})
}
