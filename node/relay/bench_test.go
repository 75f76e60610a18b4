package relay

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"testing"
	"time"

	"starling/node/relay/spool"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// benchRelay is a relay on the disk with a log for each of n depositors, and a
// stream to it.
func benchRelay(b *testing.B) (*world, *line, *made) {
	b.Helper()
	w := served(b, func(cfg *Config) {
		cfg.Disk, cfg.Dir = nil, b.TempDir()
		cfg.Quota = 4 << 30
		cfg.Limits.Share, cfg.Limits.Anybody = 4<<30, 4<<30
	})
	l := w.dial(b, quiet(b))
	m := w.makeable(logQueue)
	l.ask(b, l.c.createRequest(m))
	return w, l, m
}

// BenchmarkDeposit deposits the smallest sealed envelope over libp2p on
// loopback, on the disk, with every receipt verified. A log takes 4,096; when it
// is full, another is made, outside the time.
func BenchmarkDeposit(b *testing.B) {
	for _, flight := range []int{1, inFlight} {
		b.Run(fmt.Sprintf("inflight=%d", flight), func(b *testing.B) {
			w, l, m := benchRelay(b)
			v := relay.NewVerifier(w.self)
			b.SetBytes(2160)
			b.ReportAllocs()
			b.ResetTimer()
			for left := b.N; left > 0; {
				round := min(left, protocol.LogMessages-inFlight) // near its end a log may refuse what is counted twice
				left -= round
				b.StopTimer()
				reqs := make([]*wire.RelayRequest, round)
				for i := range reqs {
					reqs[i] = w.deposit(m, 2160)
				}
				b.StartTimer()
				room := make(chan struct{}, flight)
				failed := make(chan error, 1)
				go func() {
					for _, req := range reqs {
						room <- struct{}{}
						if err := l.Write(wire.Marshal(req)); err != nil {
							failed <- err
							return
						}
					}
					failed <- nil
				}()
				for _, req := range reqs {
					a := l.receive(b, req)
					r, err := relay.ReceiptFromWire(a.GetReceipt())
					if err != nil {
						b.Fatalf("%v: %v", a.Status, err)
					}
					d := req.GetDeposit()
					if err := v.Verify(relay.NewLeaf(m.id, sha256.Sum256(d.Blob), d.Expires), r); err != nil {
						b.Fatal(err)
					}
					<-room
				}
				if err := <-failed; err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if left > 0 {
					m = w.makeable(logQueue)
					l.ask(b, l.c.createRequest(m))
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "deposits/s")
		})
	}
}

// BenchmarkDrain reads and deletes what a pairwise queue holds, full polls of
// the smallest envelopes.
func BenchmarkDrain(b *testing.B) {
	w, l, _ := benchRelay(b)
	m := w.makeable(pairwise)
	l.ask(b, l.c.createRequest(m))
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		var entries []spool.Entry
		for range protocol.QueueMessages {
			entries = append(entries, spool.Entry{Queue: spool.Queue(m.id), Expires: time.Now().Add(time.Hour).Unix(), Blob: blob(2160)})
		}
		if _, err := w.spool.Put(b.Context(), entries); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		got := l.ask(b, pollRequest(protocol.MaxPoll)).GetEntries().GetEntries()
		var ids []uint64
		for _, e := range got {
			ids = append(ids, e.Id)
		}
		if a := l.ask(b, deletion(m.id, ids...)); a.Status != isOK || len(ids) != len(entries) {
			b.Fatalf("deleting %d of %d: %v", len(ids), len(entries), a.Status)
		}
		n += len(ids)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "messages/s")
}

// BenchmarkWaitingReader reports what a reader that waits for a message takes,
// in heap and stacks, both ends of its stream together.
func BenchmarkWaitingReader(b *testing.B) {
	const readers = 40 // libp2p lets one peer have few more streams of a protocol
	w := served(b, func(cfg *Config) { cfg.Limits.Peer = readers })
	h := quiet(b)
	m := w.makeable(pairwise)
	first := w.dial(b, h)
	first.ask(b, first.c.createRequest(m))
	used := func() uint64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return s.HeapAlloc + s.StackInuse
	}
	wait := pollRequest(10)
	wait.GetPoll().Wait = 55
	for b.Loop() {
		before := used()
		var lines []*line
		for range readers - 1 {
			l := w.dial(b, h)
			l.ask(b, l.c.attachRequest(m))
			l.send(b, wait)
			lines = append(lines, l)
		}
		b.ReportMetric(float64(used()-before)/float64(len(lines)), "bytes/reader")
		for _, l := range lines {
			l.Refuse()
		}
		for w.Status().Streams > 1 {
			runtime.Gosched()
		}
	}
}
