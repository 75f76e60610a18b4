package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestShortPartitionOnlyDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		start := time.Now()
		write(t, l.a, []byte("in flight, "))
		time.Sleep(10 * time.Millisecond)
		l.n.Partition([]int{0}, []int{1, 2})
		time.Sleep(190 * time.Millisecond)
		write(t, l.a, []byte("written apart, "))
		write(t, l.b, []byte("back"))
		time.Sleep(800 * time.Millisecond)
		l.n.Heal()
		write(t, l.a, []byte("healed"))

		// Retransmissions leave 200, 600 and 1,400 ms after what is held began to
		// wait, which was 10 ms after the start one way and 200 ms the other.
		wantRead(t, l.b, "in flight, ")
		wantSince(t, start, 1410*time.Millisecond+latency+onBoth(11))
		wantRead(t, l.b, "written apart, healed")
		wantSince(t, start, 1410*time.Millisecond+latency+onBoth(15)+onBoth(11)/2)
		wantRead(t, l.a, "back")
		wantSince(t, start, 1600*time.Millisecond+latency+onBoth(4))
		if r := l.n.Stats().Resets; r != 0 {
			t.Errorf("%d resets", r)
		}
		l.close(t)
	})
}

func TestWhatArrivedBeforeAPartitionCanBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		write(t, l.a, []byte("early"))
		time.Sleep(time.Second)
		l.n.Partition([]int{0})
		wantRead(t, l.b, "early")
		l.n.Heal()
		l.close(t)
	})
}

func TestLongPartitionResetsBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		idleA, idleB := connect(t, l.port[0], l.port[1])
		same := join(t, l.n, 2)
		together, too := connect(t, l.port[0], same)
		start := time.Now()
		write(t, l.a, []byte("held"))
		write(t, l.b, []byte("held"))
		l.n.Partition([]int{0, 2}, []int{1})
		var wg sync.WaitGroup
		for _, e := range []*end{l.a, l.b, idleA, idleB} {
			wg.Go(func() {
				wantErr(t, e, syscall.ECONNRESET)
				wantSince(t, start, ResetAfter)
			})
		}
		wg.Go(func() {
			if n, err := l.a.Write(make([]byte, 1<<20)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a blocked writer got %d, %v, want a reset", n, err)
			}
			wantSince(t, start, ResetAfter)
		})
		wg.Wait()
		time.Sleep(time.Minute)
		l.n.Heal()
		wantErr(t, l.a, syscall.ECONNRESET)
		wantErr(t, l.b, syscall.ECONNRESET)
		write(t, together, []byte("fine"))
		wantRead(t, too, "fine")
		for _, e := range []*end{l.a, l.b, idleA, idleB, together, too} {
			_ = e.Close()
		}
		if got := l.n.Stats().Resets; got != 2 {
			t.Errorf("%d resets counted, want 2", got)
		}
	})
}

// Nobody reads, so nobody is woken: the reset must still have happened.
func TestLongPartitionResetsUnattendedEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		l.n.Partition([]int{0})
		time.Sleep(ResetAfter)
		l.n.Heal()
		if _, err := l.a.Write([]byte{1}); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("writing: %v, want a reset", err)
		}
		wantErr(t, l.b, syscall.ECONNRESET)
		l.close(t)
	})
}

func TestCloseDuringAPartitionIsLearntAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		start := time.Now()
		l.n.Partition([]int{0})
		write(t, l.b, []byte("nobody reads this"))
		write(t, l.a, []byte("bye"))
		_ = l.a.Close()
		time.Sleep(time.Second)
		l.n.Heal()
		wantRead(t, l.b, "bye")
		time.Sleep(time.Until(start.Add(1400*time.Millisecond + 2*latency)))
		if _, err := l.b.Write([]byte{1}); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("writing: %v, want a reset", err)
		}
		l.close(t)
	})
}

func TestResetIsHeldByAPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		write(t, l.a, []byte("unread"))
		time.Sleep(time.Second)
		_ = l.b.Close()
		l.n.Partition([]int{0})
		time.AfterFunc(10*time.Second, l.n.Heal)
		start := time.Now()
		wantErr(t, l.a, syscall.ECONNRESET)
		wantSince(t, start, 10*time.Second+latency)
		l.close(t)
	})
}

func tryDial(t testing.TB, ctx context.Context, p, q *Port) error {
	t.Helper()
	e, err := p.stream().dial(ctx, netip.AddrPortFrom(q.addr, listenPort))
	if err == nil {
		_ = e.Close()
	}
	return err
}

func listen(t testing.TB, p *Port) *listener {
	t.Helper()
	l, err := p.listen(p.power, netip.AddrPortFrom(p.addr, listenPort))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestDialTakesARoundTripAndAcceptHalfMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		defer l.close(t)
		at := listen(t, l.port[1])
		defer at.Close()
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			c, err := at.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			wantSince(t, start, 3*latency)
			_ = c.Close()
		})
		if err := tryDial(t, t.Context(), l.port[0], l.port[1]); err != nil {
			t.Error(err)
		}
		wantSince(t, start, 2*latency)
		wg.Wait()
	})
}

func TestDialTimesOutWhenNobodyAnswers(t *testing.T) {
	for name, fault := range map[string]func(l *line){
		"partition": func(l *line) { l.n.Partition([]int{0}) },
		"no power":  func(l *line) { l.port[1].Cut() },
		"nobody":    func(l *line) { l.port[1].Close() },
		"loss":      func(l *line) { l.n.SetLoss(1) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, Config{})
				defer l.close(t)
				at := listen(t, l.port[1])
				defer at.Close()
				fault(l)
				start := time.Now()
				err := tryDial(t, t.Context(), l.port[0], l.port[1])
				if e, ok := errors.AsType[net.Error](err); !errors.Is(err, os.ErrDeadlineExceeded) || !ok || !e.Timeout() {
					t.Errorf("got %v, want a time-out", err)
				}
				wantSince(t, start, dialTimeout)

				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				start = time.Now()
				if err := tryDial(t, ctx, l.port[0], l.port[1]); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want the dialler's own deadline", err)
				}
				wantSince(t, start, 2*time.Second)
			})
		})
	}
}

func TestDialTriesAgainUntilAPartitionHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		defer l.close(t)
		at := listen(t, l.port[1])
		defer at.Close()
		l.n.Partition([]int{0})
		time.AfterFunc(1500*time.Millisecond, l.n.Heal)
		start := time.Now()
		if err := tryDial(t, t.Context(), l.port[0], l.port[1]); err != nil {
			t.Error(err)
		}
		wantSince(t, start, 3*time.Second+2*latency)
	})
}

func TestDialIsRefusedWhereNobodyListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		defer l.close(t)
		start := time.Now()
		if err := tryDial(t, t.Context(), l.port[0], l.port[1]); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v, want a refusal", err)
		}
		wantSince(t, start, 2*latency)
		if err := tryDial(t, t.Context(), l.port[0], l.port[0]); !errors.Is(err, errSelf) {
			t.Errorf("dialling oneself: %v", err)
		}
	})
}

func TestFullBacklogIsSilentAndEmptiesOnAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		defer l.close(t)
		at := listen(t, l.port[1])
		for i := range backlog {
			if err := tryDial(t, t.Context(), l.port[0], l.port[1]); err != nil {
				t.Fatalf("dial %d: %v", i, err)
			}
		}
		if err := tryDial(t, t.Context(), l.port[0], l.port[1]); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want a time-out", err)
		}
		c, err := at.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if err := tryDial(t, t.Context(), l.port[0], l.port[1]); err != nil {
			t.Error(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if _, err := at.Accept(); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("accepting: %v", err)
					}
					return
				}
			}
		})
		synctest.Wait()
		if err := errors.Join(at.Close(), at.Close()); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

func TestListenerHasOneAddressOfItsPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, Config{Sites: 2})
		p, q := join(t, n, 0), join(t, n, 1)
		at := listen(t, p)
		if _, err := p.listen(p.power, at.addr); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("listening twice: %v", err)
		}
		if _, err := p.listen(p.power, netip.AddrPortFrom(q.addr, 1)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("listening at another's address: %v", err)
		}
		any, err := p.listen(p.power, netip.MustParseAddrPort("0.0.0.0:0"))
		if err != nil {
			t.Fatal(err)
		}
		if any.addr.Addr() != p.addr || any.addr.Port() == 0 || any.addr == at.addr {
			t.Errorf("any address became %v", any.addr)
		}
		_ = at.Close()
		listen(t, p)
	})
}

func TestCutLosesWhatIsInFlightAndSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		write(t, l.b, []byte("arrived"))
		time.Sleep(time.Second)
		write(t, l.b, []byte("in flight"))
		l.port[1].Cut()
		if _, err := l.b.Write([]byte{1}); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("writing without power: %v", err)
		}
		wantErr(t, l.b, syscall.ENETDOWN)
		_ = l.b.Close()

		wantRead(t, l.a, "arrived")
		if err := l.a.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		wantErr(t, l.a, os.ErrDeadlineExceeded)

		l.port[1].Restore()
		if err := l.a.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		wantErr(t, l.a, os.ErrDeadlineExceeded)

		start := time.Now()
		write(t, l.a, []byte("still there?"))
		wantErr(t, l.a, os.ErrDeadlineExceeded)
		if err := l.a.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		wantErr(t, l.a, syscall.ECONNRESET)
		wantSince(t, start, 2*latency+onBoth(12))
		_ = l.a.Close()
	})
}

// A machine that loses its power cannot take back what has left it: an
// acknowledgement gets there, though what it acknowledges is lost.
func TestCutRecallsNothingThatHasLeft(t *testing.T) {
	leaves := onLine(3+overhead, defaultRate)
	for _, tt := range []struct {
		name  string
		after time.Duration // from the write to the cut
		got   bool
	}{
		{"half of it has left", leaves / 2, false},
		{"all but its end has left", leaves - 1, false},
		{"it has left", leaves, true},
		{"it is about to arrive", leaves + latency, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, Config{})
				start := time.Now()
				write(t, l.b, []byte("ack"))
				time.Sleep(tt.after)
				write(t, l.b, []byte("too late"))
				l.port[1].Cut()
				l.port[1].Restore()
				if tt.got {
					wantRead(t, l.a, "ack")
					wantSince(t, start, latency+onBoth(3))
				}
				if err := l.a.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
				wantErr(t, l.a, os.ErrDeadlineExceeded)
				l.close(t)
			})
		})
	}
}

func TestCutMachineDoesNotSendAgain(t *testing.T) {
	for name, misfortune := range map[string]func(l *line){
		"lost before the cut": func(l *line) {
			l.n.Set(0, 1, &Link{Latency: latency, Loss: 0.5})
			write(t, l.b, []byte("lost"))
			l.n.Set(0, 1, &Link{Latency: latency})
			write(t, l.b, []byte("and what follows"))
			time.Sleep(latency / 2)
			l.port[1].Cut()
		},
		"lost in a partition after the cut": func(l *line) {
			write(t, l.b, []byte("lost"))
			time.Sleep(latency / 2)
			l.port[1].Cut()
			l.n.Partition([]int{0})
			time.Sleep(time.Second)
			l.n.Heal()
		},
		"lost in a partition before the cut": func(l *line) {
			write(t, l.b, []byte("lost"))
			time.Sleep(latency / 2)
			l.n.Partition([]int{0})
			l.port[1].Cut()
			time.Sleep(time.Second)
			l.n.Heal()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, Config{})
				misfortune(l)
				l.port[1].Restore()
				if err := l.a.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
				wantErr(t, l.a, os.ErrDeadlineExceeded)
				l.close(t)
			})
		})
	}
}

func TestResetOutlivesItsMachine(t *testing.T) {
	for name, after := range map[string]time.Duration{"it left": time.Millisecond, "it did not": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, Config{})
				write(t, l.a, []byte("unread"))
				time.Sleep(time.Second)
				_ = l.b.Close() // something is unread
				time.Sleep(after)
				l.port[1].Cut()
				if err := l.a.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
				want := error(syscall.ECONNRESET)
				if after == 0 {
					want = os.ErrDeadlineExceeded
				}
				wantErr(t, l.a, want)
				l.close(t)
			})
		})
	}
}

func TestCutRecallsNoDatagramThatHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := openSockets(t, Config{}, NoNAT, NoNAT)
		send(t, s[0], s[1].outside(), "left")
		time.Sleep(lineTime(4))
		send(t, s[0], s[1].outside(), "waits")
		send(t, s[1], s[0].outside(), "to nobody")
		s[0].port.Cut()
		wantText(t, s[1], "left")
		wantNothing(t, s[1])
		if d := n.Stats().Dropped; d != 2 {
			t.Errorf("%d dropped, want 2", d)
		}
		closeSockets(t, s)
	})
}

func TestCutFailsBlockedOwnersAndSilencesListeners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		at := listen(t, l.port[0])
		start := time.Now()
		var wg, others sync.WaitGroup
		others.Go(func() { wantErr(t, l.a, syscall.ENETDOWN) })
		others.Go(func() {
			if _, err := l.a.Write(make([]byte, 1<<20)); !errors.Is(err, syscall.ENETDOWN) {
				t.Errorf("writing: %v", err)
			}
		})
		wg.Go(func() {
			if _, err := at.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("accepting: %v", err)
			}
			wantSince(t, start, time.Minute)
		})
		others.Go(func() {
			if err := tryDial(t, t.Context(), l.port[0], l.port[1]); !errors.Is(err, syscall.ENETDOWN) {
				t.Errorf("dialling: %v", err)
			}
		})
		synctest.Wait()
		l.port[0].Cut()
		others.Wait()
		wantSince(t, start, 0)
		time.Sleep(time.Minute)
		_ = at.Close()
		wg.Wait()
		l.close(t)
	})
}

func TestUnconfirmedBytesAreAbandoned(t *testing.T) {
	for name, inFlight := range map[string]bool{"in flight at the cut": true, "written after it": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t, Config{})
				if inFlight {
					write(t, l.a, []byte("x"))
				}
				l.port[1].Cut()
				if !inFlight {
					time.Sleep(time.Hour)
					write(t, l.a, []byte("x"))
				}
				start := time.Now()
				wantErr(t, l.a, syscall.ECONNRESET)
				wantSince(t, start, AbandonAfter)
				l.port[1].Restore()
				wantErr(t, l.a, syscall.ECONNRESET)
				l.close(t)
			})
		})
	}
}

func TestAbandonedEndDoesNotWaitForTheNextRetransmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		start := time.Now()
		l.port[1].Cut()
		write(t, l.a, []byte("x"))
		time.Sleep(15 * time.Second) // retransmitted after 12.6 s, and next after 25.4 s
		l.port[1].Restore()
		wantErr(t, l.a, syscall.ECONNRESET)
		wantSince(t, start, AbandonAfter)
		l.close(t)
	})
}

func TestRestoredMachineAnswersARetransmissionWithAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		start := time.Now()
		l.port[1].Cut()
		write(t, l.a, []byte("x"))
		time.Sleep(2 * time.Second)
		l.port[1].Restore()
		wantErr(t, l.a, syscall.ECONNRESET)
		wantSince(t, start, 3*time.Second+2*latency) // retransmitted after 0.2, 0.6, 1.4, 3 s
		l.close(t)
	})
}

func TestWhatHadPowerBeforeACutHasNoneAfterRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		at := listen(t, l.port[1])
		old := l.port[0].stream()
		l.port[0].Cut()
		l.port[0].Cut()
		l.port[0].Restore()
		l.port[0].Restore()
		if _, err := old.dial(t.Context(), at.addr); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("dialling as before the cut: %v", err)
		}
		if _, err := old.port.listen(old.power, netip.AddrPortFrom(old.port.addr, 1)); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("listening as before the cut: %v", err)
		}
		a, b := connect(t, l.port[0], join(t, l.n, 2))
		write(t, a, []byte("new"))
		wantRead(t, b, "new")
		for _, e := range []*end{a, b, l.a, l.b} {
			_ = e.Close()
		}
		_ = at.Close()
	})
}

func TestClosedPortFreesItsSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		if _, err := l.n.Join(Site{Index: 1}, 0, 0); err == nil {
			t.Error("a taken site was given away")
		}
		write(t, l.b, []byte("counted"))
		before := l.n.Stats()
		l.port[1].Close()
		l.port[1].Close()
		l.port[1].Restore()
		if got := l.n.Stats(); got != before {
			t.Errorf("stats went from %+v to %+v", before, got)
		}
		again := join(t, l.n, 1)
		if again.Addr() != l.port[1].Addr() {
			t.Errorf("the site moved from %v to %v", l.port[1].Addr(), again.Addr())
		}
		l.close(t)
	})
}

func TestOverConnectionsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, Config{})
		l.close(t)
		a, b := connect(t, l.port[0], l.port[1])
		_ = a.Close()
		l.port[1].Cut()
		_ = b.Close()
		l.port[1].Restore()
		a, b = connect(t, l.port[0], l.port[1])
		l.port[1].Cut()
		_ = a.Close()
		_ = b.Close()
		for i, p := range l.port {
			if len(p.conns) != 0 {
				t.Errorf("port %d remembers %d connections", i, len(p.conns))
			}
		}
	})
}

func TestAddressesDifferInTheirSlash16(t *testing.T) {
	seen, whole := make(map[[2]byte]int), make(map[netip.Addr]int)
	for i := range maxSites {
		a := address(i)
		b := a.As4()
		if j, ok := whole[a]; ok {
			t.Fatalf("sites %d and %d are both at %v", i, j, a)
		}
		whole[a] = i
		k := [2]byte(b[:2])
		if j, ok := seen[k]; ok && i < 2304 {
			t.Fatalf("sites %d and %d share %d.%d.0.0/16", i, j, b[0], b[1])
		}
		seen[k] = i
	}
	if a := address(0); a.String() != "1.0.0.1" {
		t.Errorf("site 0 is at %v", a)
	}
}
