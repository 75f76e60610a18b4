package network

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// write writes all of b, or fails the test.
func write(t testing.TB, e *end, b []byte) {
	t.Helper()
	if n, err := e.Write(b); err != nil || n != len(b) {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(b), err)
	}
}

// wantRead reads want from e, and no more.
func wantRead(t testing.TB, e *end, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(e, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v, want %q", b[:n], err, want)
	}
}

// wantErr wants the next read to fail with err and the time to be at.
func wantErr(t testing.TB, e *end, err error) {
	t.Helper()
	var b [1]byte
	if n, got := e.Read(b[:]); n != 0 || !errors.Is(got, err) {
		t.Fatalf("read %d bytes, %v, want %v", n, got, err)
	}
}

// wantSince wants d to have passed since start.
func wantSince(t testing.TB, start time.Time, want time.Duration) {
	t.Helper()
	if got := time.Since(start); got != want {
		t.Errorf("after %v, want %v", got, want)
	}
}

// onBoth is the time that a chunk takes on both lines, at 50 Mbit/s.
func onBoth(size int) time.Duration {
	return 2 * onLine(size+overhead*segments(size), defaultRate)
}

func TestChunkArrivesAfterLatencyAndItsTimeOnBothLines(t *testing.T) {
	for _, size := range []int{1, 1400, 1401, maxChunk} {
		synctest.Test(t, func(t *testing.T) {
			l := newLine(t, Config{})
			start := time.Now()
			write(t, l.a, make([]byte, size))
			wantRead(t, l.b, string(make([]byte, size)))
			wantSince(t, start, latency+onBoth(size))
			l.close(t)
		})
	}
}

func (l *line) close(t testing.TB) {
	t.Helper()
	if err := errors.Join(l.a.Close(), l.b.Close()); err != nil {
		t.Error(err)
	}
}

func TestJitterStaysWithinItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		l.n.Set(0, 1, &Link{Latency: latency, Jitter: 10 * time.Millisecond})
		var least, most time.Duration = never, 0
		for range 500 {
			start := time.Now()
			write(t, l.a, []byte{1})
			wantRead(t, l.b, "\x01")
			d := time.Since(start) - latency - onBoth(1)
			least, most = min(least, d), max(most, d)
		}
		if least < 0 || least > time.Millisecond || most > 10*time.Millisecond || most < 9*time.Millisecond {
			t.Errorf("jitter from %v to %v, want 0 to 10 ms", least, most)
		}
		l.close(t)
	})
}

func TestSlowerLineBoundsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, Config{Sites: 2})
		slow, err := n.Join(Site{Index: 0}, 0, 1e6)
		if err != nil {
			t.Fatal(err)
		}
		a, b := connect(t, join(t, n, 1), slow)
		const size = 500_000
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { write(t, a, make([]byte, size)) })
		if _, err := io.ReadFull(b, make([]byte, size)); err != nil {
			t.Error(err)
		}
		wg.Wait()
		rate := size * 8 / time.Since(start).Seconds()
		if rate < 0.9e6 || rate > 1e6 {
			t.Errorf("%.0f bit/s over a line of 1,000,000", rate)
		}
		sent, received := slow.Bytes()
		if sent != 0 || received < size || received > size*105/100 {
			t.Errorf("counted %d sent and %d received, want 0 and %d with headers", sent, received, size)
		}
		_, _ = a.Close(), b.Close()
	})
}

func TestWindowIsFullUntilConfirmationArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		start := time.Now()
		write(t, l.a, make([]byte, window)) // exactly full: one more chunk may follow
		write(t, l.a, []byte{1})
		wantSince(t, start, 0)
		time.Sleep(time.Second)
		start = time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			write(t, l.a, []byte{2})
			wantSince(t, start, 30*time.Millisecond+latency)
		})
		time.Sleep(30 * time.Millisecond)
		if _, err := io.ReadFull(l.b, make([]byte, 100)); err != nil {
			t.Error(err)
		}
		wg.Wait()
		l.close(t)
	})
}

func TestDeadlineAndCloseWakeABlockedWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		for _, c := range []struct {
			name string
			do   func()
			want error
		}{
			{"deadline", func() { _ = l.a.SetWriteDeadline(time.Now().Add(time.Second)) }, os.ErrDeadlineExceeded},
			{"deadline in the past", func() { _ = l.a.SetDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
			{"close", func() { _ = l.a.Close() }, net.ErrClosed},
		} {
			if err := l.a.SetDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			done := false
			wg.Go(func() {
				n, err := l.a.Write(make([]byte, 1<<20))
				if !errors.Is(err, c.want) || n > window+maxChunk {
					t.Errorf("%s: wrote %d bytes, %v, want %v", c.name, n, err, c.want)
				}
				done = true
			})
			synctest.Wait()
			if done {
				t.Errorf("%s: the writer did not block", c.name)
			}
			c.do()
			wg.Wait()
		}
		l.close(t)
	})
}

func TestDeadlineAndCloseWakeABlockedReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		start := time.Now()
		if err := l.a.SetReadDeadline(start.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		wantErr(t, l.a, os.ErrDeadlineExceeded)
		wantErr(t, l.a, os.ErrDeadlineExceeded)
		wantSince(t, start, time.Second)
		if err := l.a.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { wantErr(t, l.a, net.ErrClosed) })
		}
		synctest.Wait()
		_ = l.a.Close()
		wg.Wait()
		wantSince(t, start, time.Second)
		l.close(t)
	})
}

func TestWritersDoNotMixTheirBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		const size, writers = 700_000, 3
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() { write(t, l.a, bytes.Repeat([]byte{byte('a' + i)}, size)) })
		}
		for range writers {
			b := make([]byte, size)
			if _, err := io.ReadFull(l.b, b); err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(b, b[:1]); n != size {
				t.Errorf("%d bytes of one writer, then others", n)
			}
		}
		wg.Wait()
		l.close(t)
	})
}

func TestCloseLetsTheOtherEndReadWhatWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		start := time.Now()
		write(t, l.a, []byte("bye"))
		if err := errors.Join(l.a.Close(), l.a.Close()); err != nil {
			t.Error(err)
		}
		if _, err := l.a.Write([]byte{1}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("writing after Close: %v", err)
		}
		wantErr(t, l.a, net.ErrClosed)
		wantRead(t, l.b, "bye")
		wantErr(t, l.b, io.EOF)
		wantErr(t, l.b, io.EOF)
		wantSince(t, start, latency+onBoth(3)+onBoth(0)/2)

		// Nobody is there to read what is written now.
		write(t, l.b, []byte("wait"))
		time.Sleep(2*latency + onBoth(4) - time.Nanosecond)
		write(t, l.b, []byte("wait"))
		time.Sleep(time.Nanosecond)
		if _, err := l.b.Write([]byte{1}); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("writing to a closed end: %v, want a reset after a round trip", err)
		}
		wantErr(t, l.b, io.EOF)
		if r := l.n.Stats().Resets; r != 1 {
			t.Errorf("%d resets counted, want 1", r)
		}
		l.close(t)
	})
}

func TestCloseWriteEndsOneDirection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		write(t, l.a, []byte("question"))
		if err := errors.Join(l.a.CloseWrite(), l.a.CloseWrite()); err != nil {
			t.Error(err)
		}
		if _, err := l.a.Write([]byte{1}); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("writing after CloseWrite: %v", err)
		}
		wantRead(t, l.b, "question")
		wantErr(t, l.b, io.EOF)
		write(t, l.b, []byte("answer"))
		wantRead(t, l.a, "answer")
		l.close(t)
	})
}

func TestCloseWithUnreadBytesResetsTheOtherEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		write(t, l.a, []byte("unread"))
		time.Sleep(time.Second)
		start := time.Now()
		_ = l.b.Close()
		wantErr(t, l.a, syscall.ECONNRESET)
		wantSince(t, start, latency)
		l.close(t)

		// On the way: the end of the stream is sent first, the reset follows
		// when the bytes find nobody.
		l.a, l.b = connect(t, l.port[0], l.port[1])
		start = time.Now()
		write(t, l.a, []byte("too late"))
		_ = l.b.Close()
		wantErr(t, l.a, io.EOF)
		time.Sleep(time.Until(start.Add(2*latency + onBoth(8))))
		if _, err := l.a.Write([]byte{1}); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("writing: %v, want a reset", err)
		}
		l.close(t)
	})
}

func TestLossDelaysAndNeitherLosesNorReorders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{Loss: 0.1, Seed: 3})
		var sent, got []byte
		delays := make(map[time.Duration]int)
		for i := range 300 {
			b := bytes.Repeat([]byte{byte(i)}, 1+i*7%1400)
			sent = append(sent, b...)
			start := time.Now()
			write(t, l.a, b)
			r := make([]byte, len(b))
			if _, err := io.ReadFull(l.b, r); err != nil {
				t.Fatal(err)
			}
			got = append(got, r...)
			delays[time.Since(start)-latency-onBoth(len(b))]++
		}
		if !bytes.Equal(got, sent) {
			t.Error("other bytes arrived than were sent")
		}
		// 200 ms, then 400 more, then 800 more.
		for _, c := range []struct {
			d       time.Duration
			share   float64
			leeways float64
		}{{0, 0.9, 20}, {200 * time.Millisecond, 0.09, 20}, {600 * time.Millisecond, 0.009, 8}} {
			if want := 300 * c.share; math.Abs(float64(delays[c.d])-want) > c.leeways {
				t.Errorf("%d of 300 chunks were %v late, want about %.0f", delays[c.d], c.d, want)
			}
			delete(delays, c.d)
		}
		for d, n := range delays {
			if d != 1400*time.Millisecond && d != 3*time.Second {
				t.Errorf("%d chunks were %v late, which is no sum of retransmissions", n, d)
			}
		}
		if lost := l.n.Stats().Lost; lost < 15 || lost > 55 {
			t.Errorf("%d segments counted as lost, want about 33", lost)
		}
		l.close(t)
	})
}

func TestWhatFollowsALostChunkWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{Seed: 1})
		start := time.Now()
		l.n.SetLoss(0.6)
		write(t, l.a, []byte("lost"))
		l.n.SetLoss(0)
		write(t, l.a, []byte("not"))
		wantRead(t, l.b, "lost")
		late := time.Since(start)
		if late < latency+minRTO {
			t.Fatalf("with this seed the first chunk is not lost: it took %v", late)
		}
		wantRead(t, l.b, "not")
		wantSince(t, start, late)
		l.close(t)
	})
}

func TestHopelessLossResetsBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		l.n.Set(0, 1, &Link{Latency: latency, Loss: 1})
		write(t, l.a, []byte("kept"))
		start := time.Now()
		var wg sync.WaitGroup
		for _, e := range []*end{l.a, l.b} {
			wg.Go(func() {
				wantErr(t, e, syscall.ECONNRESET)
				wantSince(t, start, 12600*time.Millisecond)
			})
		}
		wg.Wait()
		if _, err := l.a.Write([]byte{1}); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("writing after a reset: %v", err)
		}
		s := l.n.Stats()
		if s.Lost != maxLosses || s.Resets != 1 || s.Dials != 1 {
			t.Errorf("counted %+v, want %d lost, 1 reset, 1 dial", s, maxLosses)
		}
		l.close(t)
	})
}
