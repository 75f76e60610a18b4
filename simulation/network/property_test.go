package network

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// sequence returns n bytes of an endless sequence from which a missing, doubled
// or moved byte would show.
func sequence(from, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		k := from + i
		b[i] = byte(k ^ k>>8 ^ k>>16)
	}
	return b
}

// Whatever happens on the way, a reader gets a prefix of what was written, and
// all of it if the connection was not reset and no power was lost.
func TestBytesAreNeverReordered(t *testing.T) {
	whole := 0
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, Config{Seed: seed})
			var wg sync.WaitGroup
			var broken [2]bool
			var sent, got [2]int
			for i, e := range []*end{l.a, l.b} {
				w, r := newSource(seed, uint64(i)), newSource(seed, uint64(i), 1)
				wg.Go(func() { sent[i], broken[i] = writeSequence(t, e, &w) })
				wg.Go(func() { got[1-i] = readSequence(t, e, &r) })
			}
			s := newSource(seed)
			power := seed%5 == 4
			misfortune(l, &s, power)
			wg.Wait()
			for i := range sent {
				if got[i] > sent[i] || got[i] < sent[i] && l.n.Stats().Resets == 0 && !power {
					t.Errorf("seed %d: end %d wrote %d bytes, %d arrived", seed, i, sent[i], got[i])
				}
				if !broken[i] && got[i] == sent[i] {
					whole++
				}
			}
			l.close(t)
		})
	}
	if whole < 50 {
		t.Errorf("only %d of 300 directions arrived whole: the misfortunes are too many to show anything", whole)
	}
}

// writeSequence writes chunks of odd sizes at odd times, then the end.
func writeSequence(t *testing.T, e *end, s *source) (sent int, broken bool) {
	for range 30 {
		n, err := e.Write(sequence(sent, 1+int(s.upTo(100))*int(s.upTo(300))))
		if sent += n; err != nil {
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ENETDOWN) {
				t.Errorf("writing: %v", err)
			}
			return sent, true
		}
		time.Sleep(s.upTo(300 * time.Millisecond))
	}
	return sent, e.CloseWrite() != nil
}

// readSequence reads until it fails, with buffers of odd sizes.
func readSequence(t *testing.T, e *end, s *source) (got int) {
	for limit := time.Now().Add(time.Hour); ; {
		if err := e.SetReadDeadline(limit); err != nil {
			return got
		}
		wantInOrder(t, e.c)
		b := make([]byte, 1+s.upTo(5000))
		n, err := e.Read(b)
		if !bytes.Equal(b[:n], sequence(got, n)) {
			t.Errorf("after %d bytes: not the %d that were written next", got, n)
		}
		if got += n; err != nil {
			return got
		}
	}
}

// wantInOrder wants what is queued to arrive in its order.
func wantInOrder(t *testing.T, c *conn) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.pipe {
		p := &c.pipe[i]
		if !slices.IsSortedFunc(p.q[p.head:], func(a, b chunk) int { return cmp.Compare(a.at, b.at) }) {
			t.Error("the queue is not in the order of arrival")
		}
	}
}

// misfortune changes the link and cuts it a dozen times, then mends all.
func misfortune(l *line, s *source, power bool) {
	for range 12 {
		time.Sleep(s.upTo(time.Second))
		switch s.upTo(4) {
		case 0:
			l.n.Set(0, 1, &Link{Latency: s.upTo(300 * time.Millisecond), Jitter: s.upTo(50 * time.Millisecond)})
		case 1:
			l.n.SetLoss(s.float() / 10)
		case 2:
			l.n.Partition([]int{0}, []int{int(1 + s.upTo(1))})
		case 3:
			l.n.Heal()
		case 4:
			if power {
				p := l.port[s.upTo(1)]
				p.Cut()
				p.Restore()
			}
		}
	}
	l.n.Heal()
	l.n.SetLoss(0)
}

// exchange lets eight nodes send to each other over a bad network, and returns
// what the tap saw of each pair and when.
func exchange(t *testing.T, seed uint64) (trace []string, stats Stats) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		const sites = 8
		seen := make([][]byte, sites*sites)
		start := time.Now()
		n := newNet(t, Config{
			Seed: seed, Sites: sites, Loss: 0.05, Up: 2e6, Down: 3e6,
			Topology: Uniform(10*time.Millisecond, 90*time.Millisecond, 20*time.Millisecond),
			Tap: func(c Chunk) {
				i := c.From*sites + c.To
				seen[i] = fmt.Appendf(seen[i], "%d at %v\n", c.Size, c.Arrival.Sub(start))
			},
		})
		var ports [sites]*Port
		var ends []*end
		for i := range ports {
			ports[i] = join(t, n, i)
			for j := range i {
				a, b := connect(t, ports[i], ports[j])
				ends = append(ends, a, b)
			}
		}
		var wg sync.WaitGroup
		for _, e := range ends {
			wg.Go(func() { _, _ = io.Copy(io.Discard, e) })
		}
		s := newSource(seed)
		for step := range 400 {
			// One after the other, so that the schedule of calls is the same.
			_, _ = ends[s.upTo(time.Duration(len(ends)-1))].Write(make([]byte, 1+s.upTo(3000)))
			time.Sleep(s.upTo(4 * time.Millisecond))
			switch step {
			case 150:
				n.Partition([]int{0, 1, 2})
			case 200:
				n.Heal()
			case 300:
				ports[3].Cut()
			}
		}
		for _, e := range ends {
			_ = e.Close()
		}
		wg.Wait()
		stats = n.Stats()
		for _, b := range seen {
			trace = append(trace, string(b))
		}
	})
	return trace, stats
}

func TestSameSeedAndCallsGiveTheSameArrivals(t *testing.T) {
	one, stats := exchange(t, 1)
	if stats.Lost == 0 || stats.Chunks < 400 {
		t.Fatalf("nothing happened: %+v", stats)
	}
	for range 3 {
		again, _ := exchange(t, 1)
		for i := range one {
			if one[i] != again[i] {
				t.Fatalf("from %d to %d:\n%s\nand then\n%s", i/8, i%8, one[i], again[i])
			}
		}
	}
	other, _ := exchange(t, 2)
	same := 0
	for i := range one {
		if one[i] == other[i] && one[i] != "" {
			same++
		}
	}
	if same > 0 {
		t.Errorf("%d pairs saw the same with another seed", same)
	}
}

// One chunk, from the write to the read, on a line that takes no time.
func BenchmarkChunk(b *testing.B) {
	for _, size := range []int{12, 1024, maxChunk} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l := newLine(b, Config{Up: 1e18, Down: 1e18})
			l.n.Set(0, 1, &Link{})
			buf := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				write(b, l.a, buf)
				if _, err := io.ReadFull(l.b, buf); err != nil {
					b.Fatal(err)
				}
			}
			l.close(b)
		})
	}
}
