package relay

import (
	"context"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"starling/node/relay/spool"
	"starling/protocol"
	"starling/protocol/wire"
)

// Strangers from a thousand address blocks leave ten thousand deposits a second
// at an open relay: in contact boxes with and without work, in queues that they
// guess, and in queues of their own. A contact's deposits are kept, in a queue
// that was made with an admission token.
//
// Time is virtual, so that this is about who gets which place, and not about how
// many requests a processor judges in a second: BenchmarkStranger says that. No
// stranger asks faster than its address block may.
func TestFloodOfTenThousandDepositsASecond(t *testing.T) {
	seconds := 2
	if *long {
		seconds = 120
	}
	synctest.Test(t, func(t *testing.T) {
		const lanes, rate = 100, 10_000 // goroutines; deposits a second
		w := newWorld(t, func(cfg *Config) {
			cfg.Now = time.Now
			cfg.Quota = 8 << 20
		})
		w.clock.at = time.Now()
		token, err := w.Issue("owner")
		if err != nil {
			t.Fatal(err)
		}
		owner := w.from("192.0.2.1")
		mine := func(kind wire.QueueKind) *made {
			m := w.makeable(kind)
			m.create.Admission = token[:]
			owner.want(isOK, owner.createRequest(m))
			return m
		}
		contacts := []*made{mine(pairwise), mine(pairwise), mine(pairwise), mine(pairwise)}
		boxes := []*made{mine(box), mine(box), mine(box), mine(box)}
		heap := func() uint64 {
			runtime.GC()
			var s runtime.MemStats
			runtime.ReadMemStats(&s)
			return s.HeapAlloc
		}
		before := heap()

		var sent atomic.Int64
		var answers [statuses]atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for lane := range lanes {
			type place struct {
				*caller
				own *made // a queue of the stranger's, if it got one
			}
			var places []place
			for i := range 10 {
				c := w.from(netip.AddrFrom4([4]byte{10, byte(lane), byte(i), 7}).String())
				p := place{c, w.makeable(pairwise)}
				if s := c.try(c.createRequest(p.own)); s != isOK && s != isQuota {
					t.Errorf("a stranger's queue: %v", s)
				}
				places = append(places, p)
			}
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					p, public := places[n%len(places)], boxes[n/7%len(boxes)]
					var req *wire.RelayRequest
					switch n % 4 {
					case 0:
						req = w.workDeposit(public, 6)
					case 1:
						req = w.workDeposit(public, 0)
					case 2:
						req = w.deposit(p.own, 2160)
					case 3:
						req = w.deposit(w.makeable(pairwise), 2160)
					}
					answers[p.try(req)].Add(1)
					sent.Add(1)
					time.Sleep(lanes * time.Second / rate)
				}
			})
		}

		good, all := 0, 0
		contact := w.from("198.51.100.1")
		for range seconds {
			for i := range 60 {
				all++
				if contact.try(w.deposit(contacts[i%len(contacts)], 2160)) == isOK {
					good++
				}
				time.Sleep(time.Second / 60)
				if size := w.cfg.Disk.Size(); size > w.cfg.Quota {
					t.Errorf("%d bytes on the disk, quota %d", size, w.cfg.Quota)
				}
			}
			for _, m := range contacts { // read by their owner
				var ids []uint64
				for _, it := range w.spool.List(spool.Queue(m.id), 0, protocol.MaxDelete) {
					ids = append(ids, it.ID)
				}
				if len(ids) > 0 && owner.try(deletion(m.id, ids...)) != isOK {
					t.Error("the owner cannot delete")
				}
			}
		}
		cancel()
		wg.Wait()
		after := heap()

		t.Logf("%d strangers' deposits in %d s: %d kept, %d quota, %d refused, %d work, %d busy; %d of %d of contacts kept",
			sent.Load(), seconds, answers[isOK].Load(), answers[isQuota].Load(), answers[isRefused].Load(),
			answers[isWork].Load(), answers[isBusy].Load(), good, all)
		if sent.Load() < int64(rate*seconds)*95/100 {
			t.Errorf("%d deposits of strangers: no flood", sent.Load())
		}
		if good*100 < all*99 {
			t.Errorf("%d of %d deposits of contacts were kept", good, all)
		}
		for _, s := range []wire.RelayStatus{isOK, isQuota, isRefused, isWork} {
			if answers[s].Load() == 0 {
				t.Errorf("no stranger was told %v", s)
			}
		}
		limits, s := w.Service.cfg.Limits, w.Status()
		if s.Boxes > limits.Boxes || s.Anybody > limits.Anybody {
			t.Errorf("%d bytes in boxes and %d of strangers, want at most %d and %d", s.Boxes, s.Anybody, limits.Boxes, limits.Anybody)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for id, sh := range w.shares {
			if sh.bytes > limits.Share {
				t.Errorf("account %x has %d bytes", id, sh.bytes)
			}
		}
		if w.free != limits.Memory || w.stamps > limits.Stamps || len(w.coming) != 0 {
			t.Errorf("%d bytes free, %d stamps, %d deposits on their way", w.free, w.stamps, len(w.coming))
		}
		// The disk is in memory here, twice: as it is and as it was synced.
		if grown := int64(after) - int64(before); grown > 3*w.cfg.Quota {
			t.Errorf("the heap grew by %d bytes", grown)
		}
	})
}

// Who asks for one-time keys as fast as it can gets those above the reserve, for
// more and more work. Bearers of tokens go on getting keys, and a stranger
// without any still reaches the box, at the usual work.
func TestDrainOfOneTimeKeys(t *testing.T) {
	requests := 10_000
	if *long {
		requests = 1_000_000
	}
	w := newWorld(t, nil)
	owner := w.caller()
	public, pool := owner.queue(box), blob(32)
	token := owner.admit(public)
	later := start.Add(20 * 24 * time.Hour).Unix()
	given := map[string]int{}
	fill := func() {
		for range protocol.PoolKeys / protocol.MaxPutKeys {
			put := putKeys(public.id, pool, later, protocol.MaxPutKeys)
			for _, k := range put.GetPutKeys().Keys {
				given[string(k)] = 0
			}
			owner.want(isOK, put)
		}
	}
	fill()
	var answers [statuses]int
	thief := w.caller()
	for range requests {
		req := w.takeByWork(public.id, pool, 7)
		a := thief.ask(req)
		answers[a.Status]++
		if a.Status == isOK {
			given[string(a.GetKey().Key)]++
		}
	}
	t.Logf("%d requests: %d keys, %d empty, %d asked for more work", requests, answers[isOK], answers[isEmpty], answers[isWork])
	if answers[isOK] > protocol.PoolKeys-protocol.PoolReserve {
		t.Errorf("%d keys were given for work, want at most those above the reserve", answers[isOK])
	}
	if answers[isOK]+answers[isEmpty]+answers[isWork] != requests || answers[isWork] < requests/2 {
		t.Errorf("answers %v", answers)
	}
	bearer := w.caller()
	a := bearer.want(isOK, takeByToken(public.id, pool, token))
	given[string(a.GetKey().GetKey())]++
	for k, n := range given {
		if n > 1 {
			t.Errorf("key %.8x was given %d times", k, n)
		}
	}
	w.caller().want(isOK, w.workDeposit(public, 4)) // without a one-time key: T3
	w.mu.Lock()
	stamps := len(w.keyStamps)
	w.mu.Unlock()
	if stamps > requests || stamps > w.Service.cfg.Limits.Stamps {
		t.Errorf("%d stamps are remembered", stamps)
	}

	// When the drain is over and the owner has topped up, the work falls again.
	w.clock.at = w.clock.at.Add(3 * time.Hour)
	if n := owner.want(isOK, countRequest(public.id, pool)).GetCount().Count; int(n) > protocol.MaxPutKeys {
		t.Fatalf("%d keys are left: no drain", n)
	}
	owner.want(isOK, putKeys(public.id, pool, later, protocol.MaxPutKeys))
	w.caller().want(isOK, w.takeByWork(public.id, pool, 4))
}

// BenchmarkStranger judges the deposits of one who guesses a queue, and of one
// who works too little for a contact box: what a flood costs.
func BenchmarkStranger(b *testing.B) {
	w := newWorld(b, func(cfg *Config) { cfg.Limits.WorkBits = 30 })
	c := w.caller()
	public := c.queue(box)
	for name, req := range map[string]*wire.RelayRequest{
		"guess": w.deposit(w.makeable(pairwise), 2160),
		"work":  w.workDeposit(public, 4),
	} {
		b.Run(name, func(b *testing.B) {
			frame := wire.Marshal(req)
			b.ReportAllocs()
			for b.Loop() {
				answer, err := c.handle(frame, 0)
				if err != nil {
					b.Fatal(err)
				}
				answer.wait()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "deposits/s")
		})
	}
}
