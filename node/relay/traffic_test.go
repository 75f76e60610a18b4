package relay

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// pollUntilBusy reads what there is until the relay is busy, and returns the bytes
// of blobs that it gave.
func (l *line) pollUntilBusy(t *testing.T) (got int) {
	t.Helper()
	for range 50 {
		a := l.ask(t, pollRequest(256))
		if a.Status == isBusy {
			return got
		}
		for _, e := range a.GetEntries().GetEntries() {
			got += len(e.Blob)
		}
	}
	t.Errorf("%d bytes were given, and more would be", got)
	return got
}

// full makes a queue with nearly an answer's worth of messages.
func (l *line) full(t *testing.T) *made {
	t.Helper()
	w := l.c.w
	m := w.makeable(pairwise)
	l.ask(t, l.c.createRequest(m))
	c := w.caller()
	for range 15 {
		c.want(isOK, w.deposit(m, 66672))
	}
	return m
}

// What answers take of a month counts, and when they have used it up there are
// no more.
func TestAnswersCountForTheMonth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, left = 1 << 30, 500 << 10
		w := piped(t, func(cfg *Config) { cfg.Traffic = limit })
		l := w.pipe(t, "127.0.0.1")
		l.full(t)
		w.traffic.mu.Lock()
		w.traffic.spent, w.traffic.ahead = limit-left, limit+w.traffic.step()
		w.traffic.mu.Unlock()
		if got := l.pollUntilBusy(t); got < left || got > 2<<20 {
			t.Errorf("%d bytes were given when %d were left", got, left)
		}
		if used := w.Status().Traffic; used < limit {
			t.Errorf("%d bytes are counted of a month of %d", used, limit)
		}
	})
}

// An address block that had its part of a day gets nothing until the next one;
// others do.
func TestOneAddressHasAPartOfTheTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const part = 3 << 20
		w := piped(t, func(cfg *Config) { cfg.Traffic = part * blockDay })
		l := w.pipe(t, "192.0.2.1")
		m := l.full(t)
		if got := l.pollUntilBusy(t); got < part*9/10 || got > part+2<<20 {
			t.Errorf("%d bytes were given to one address block, want about %d", got, part)
		}
		neighbour := w.pipe(t, "192.0.2.99")
		if a := neighbour.ask(t, infoRequest); a.Status != isBusy {
			t.Errorf("to another address of the block: %v, want BUSY", a.Status)
		}
		if a := w.pipe(t, "198.51.100.1").ask(t, w.deposit(m, 2160)); a.Status != isOK {
			t.Errorf("to another address block: %v", a.Status)
		}
		time.Sleep(24 * time.Hour)
		if a := w.pipe(t, "192.0.2.1").ask(t, infoRequest); a.Status != isOK {
			t.Errorf("on the next day: %v", a.Status)
		}
	})
}

// A stream that sends and reads no answers holds a mebibyte and little more,
// whatever it sends; what it has deposited, nothing of.
func TestOneStreamHoldsLittleMemory(t *testing.T) {
	capability := &wire.RelayDeposit_Capability{Capability: blob(32)}
	deposit := depositRequest(&wire.RelayDeposit{Queue: blob(32), Blob: blob(66672), Expires: 1 << 31, Admit: capability})
	chunk := putBlob(new(made), blob(32), 0, 2, blob(protocol.BlobChunk), start)
	for name, x := range map[string]struct {
		req  *wire.RelayRequest
		most int // bytes
	}{
		"deposits": {deposit, inFlight * receiptHeld},
		"chunks":   {chunk, mostHeld + 2*protocol.MaxRelayRequest},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := piped(t, nil)
				l := w.pipe(t, "127.0.0.1") // where an address has no bounds
				var sending sync.WaitGroup
				sending.Go(func() {
					for range inFlight {
						if l.Write(wire.Marshal(x.req)) != nil {
							return
						}
					}
				})
				synctest.Wait()
				w.mu.Lock()
				held := w.Service.cfg.Limits.Memory - w.free
				w.mu.Unlock()
				if held > x.most {
					t.Errorf("%d bytes are held, want at most %d", held, x.most)
				}
				if a := w.pipe(t, "198.51.100.1").ask(t, w.deposit(w.makeable(pairwise), 66672)); a.Status != isRefused {
					t.Errorf("to somebody else: %v, want REFUSED", a.Status)
				}
				l.Refuse()
				sending.Wait()
			})
		})
	}
}

// The streams of an address block that read no answers leave memory for others.
func TestOneAddressHasAPartOfTheMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := piped(t, nil)
		l := w.pipe(t, "192.0.2.1")
		m := l.full(t)
		for i := range 40 {
			l := w.pipe(t, fmt.Sprintf("192.0.2.%d", i))
			if a := l.ask(t, l.c.attachRequest(m)); a.Status != isOK {
				t.Fatal(a.Status)
			}
			l.send(t, pollRequest(256))
		}
		synctest.Wait()
		w.mu.Lock()
		held := w.Service.cfg.Limits.Memory - w.free
		w.mu.Unlock()
		if most := w.Service.cfg.Limits.Memory / 8; held > most || held < most/2 {
			t.Errorf("%d bytes are held for one address block, want at most %d", held, most)
		}
		other := w.pipe(t, "198.51.100.1")
		other.ask(t, other.c.attachRequest(m))
		if a := other.ask(t, pollRequest(256)); a.Status != isOK {
			t.Errorf("to somebody else: %v", a.Status)
		}
	})
}

// Frames that an address block trickles leave memory for those of others.
func TestOneAddressTricklesItsPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := piped(t, func(cfg *Config) { cfg.Limits.Memory = 16 << 20 })
		// Of more than 128 KiB: as much memory as a request takes.
		req := recordsRequest(relay.QueueID(blob(32)), false)
		for range protocol.MaxPutRecords {
			req.GetPutRecords().Records = append(req.GetPutRecords().Records, blob(protocol.MaxRecord))
		}
		var frame bytes.Buffer
		if err := wire.WriteFrame(&frame, wire.Marshal(req)); err != nil {
			t.Fatal(err)
		}
		var trickling sync.WaitGroup
		for range 40 {
			s := w.pipeStream(t, "192.0.2.1")
			trickling.Go(func() { _, _ = s.Write(frame.Bytes()[:frame.Len()-1]) })
		}
		synctest.Wait()
		if a := w.pipe(t, "198.51.100.1").ask(t, req); a.Status != isMalformed {
			t.Errorf("to somebody else: %v, want MALFORMED", a.Status)
		}
		trickling.Wait()
		time.Sleep(time.Minute)
		if a := w.pipe(t, "192.0.2.1").ask(t, req); a.Status != isMalformed {
			t.Errorf("afterwards, to the address: %v, want MALFORMED", a.Status)
		}
	})
}
