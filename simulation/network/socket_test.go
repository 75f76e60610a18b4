package network

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// openSocket opens a socket on port 4001.
func openSocket(t testing.TB, p *Port) *socket {
	t.Helper()
	s, err := p.ListenPacket(netip.AddrPortFrom(p.Inside(), listenPort))
	if err != nil {
		t.Fatal(err)
	}
	return s.(*socket)
}

// openSockets makes a network with one socket behind each NAT. All links take
// 50 ms exactly.
func openSockets(t testing.TB, c Config, kinds ...NAT) (*Net, []*socket) {
	t.Helper()
	c.Sites = len(kinds)
	n := newNet(t, c)
	var all []*socket
	for i, kind := range kinds {
		p, err := n.Join(Site{Index: i, NAT: kind}, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, openSocket(t, p))
		for j := range i {
			n.Set(i, j, &Link{Latency: latency})
		}
	}
	return n, all
}

func closeSockets(t testing.TB, all []*socket) {
	t.Helper()
	for _, s := range all {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func send(t testing.TB, s *socket, to netip.AddrPort, text string) {
	t.Helper()
	if n, err := s.WriteTo([]byte(text), net.UDPAddrFromAddrPort(to)); err != nil || n != len(text) {
		t.Fatalf("sent %d of %d bytes to %v: %v", n, len(text), to, err)
	}
}

// outside is the address at which others reach a socket that has no NAT.
func (s *socket) outside() netip.AddrPort { return netip.AddrPortFrom(s.port.addr, s.at.Port()) }

// receive reads one datagram, for a minute at most.
func receive(s *socket) (text string, from netip.AddrPort, err error) {
	if err := s.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", from, err
	}
	var b [maxDatagram]byte
	n, a, err := s.ReadFrom(b[:])
	if err != nil {
		return "", from, err
	}
	return string(b[:n]), a.(*net.UDPAddr).AddrPort(), nil
}

func wantText(t testing.TB, s *socket, want string) (from netip.AddrPort) {
	t.Helper()
	text, from, err := receive(s)
	if err != nil || text != want {
		t.Fatalf("site %d received %q, %v, want %q", s.port.site.Index, text, err, want)
	}
	return from
}

// wantNothing wants a minute without a datagram.
func wantNothing(t testing.TB, s *socket) {
	t.Helper()
	if text, from, err := receive(s); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("site %d received %q from %v, %v, want nothing", s.port.site.Index, text, from, err)
	}
}

// lineTime is the time that a datagram takes on one line, at 50 Mbit/s.
func lineTime(size int) time.Duration { return onLine(size+packetOverhead, defaultRate) }

func TestDatagramArrivesAfterLatencyAndItsTimeOnBothLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []Chunk
		n, s := openSockets(t, Config{Tap: func(c Chunk) { seen = append(seen, c) }}, NoNAT, NoNAT)
		start := time.Now()
		send(t, s[0], s[1].outside(), "first")
		send(t, s[0], s[1].outside(), string(make([]byte, maxDatagram)))
		if from := wantText(t, s[1], "first"); from != s[0].outside() {
			t.Errorf("it came from %v, want %v", from, s[0].outside())
		}
		wantSince(t, start, latency+2*lineTime(5))
		wantText(t, s[1], string(make([]byte, maxDatagram)))
		wantSince(t, start, latency+lineTime(5)+2*lineTime(maxDatagram))
		want := Chunk{From: 0, To: 1, Arrival: start.Add(latency + 2*lineTime(5)), Size: 5, Datagram: true}
		if len(seen) != 2 || seen[0] != want {
			t.Errorf("the tap saw %v, want %v first of two", seen, want)
		}
		stats, bytes := n.Stats(), int64(5+maxDatagram+2*packetOverhead)
		if stats != (Stats{Datagrams: 2, Bytes: bytes}) {
			t.Errorf("counted %+v, want 2 datagrams of %d bytes", stats, bytes)
		}
		if _, received := s[1].port.Bytes(); received != bytes {
			t.Errorf("%d bytes received, want %d", received, bytes)
		}
		closeSockets(t, s)
	})
}

// talk lets five sites send to each other over a bad network, one call after
// the other, and returns what the tap saw and when all of it arrived.
func talk(t *testing.T, seed uint64) (trace string, stats Stats) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		last := make(map[[2]int]time.Time)
		taken := make(map[int]map[time.Time]bool)
		n, s := openSockets(t, Config{
			Seed: seed, Loss: 0.05, Up: 2e6, Down: 3e6,
			Tap: func(c Chunk) {
				trace += fmt.Sprintf("%d to %d: %d at %v\n", c.From, c.To, c.Size, c.Arrival.Sub(start))
				if c.Arrival.IsZero() {
					return
				}
				if pair := [2]int{c.From, c.To}; !c.Arrival.After(last[pair]) {
					t.Errorf("%v: %v does not come after %v", pair, c.Arrival, last[pair])
				} else {
					last[pair] = c.Arrival
				}
				if taken[c.To] == nil {
					taken[c.To] = make(map[time.Time]bool)
				}
				if taken[c.To][c.Arrival] {
					t.Errorf("two datagrams reach site %d at %v", c.To, c.Arrival)
				}
				taken[c.To][c.Arrival] = true
			},
		}, NoNAT, NoNAT, FullCone, PortRestricted, Symmetric)
		for i := range s {
			for j := range i {
				n.Set(i, j, nil)
			}
		}
		n.Set(0, 1, &Link{Latency: latency, Jitter: time.Second})
		var wg sync.WaitGroup
		for _, r := range s {
			wg.Go(func() {
				for last := time.Duration(0); ; {
					var b [maxDatagram]byte
					if _, _, err := r.ReadFrom(b[:]); err != nil {
						return
					}
					if now := n.now(); now == last {
						t.Errorf("site %d reads two datagrams at %v", r.port.site.Index, now)
					} else {
						last = now
					}
				}
			})
		}
		draws := newSource(seed)
		for step := range 600 {
			to := s[draws.upTo(1)].outside() // only 0 and 1 can be reached, so some go to nobody
			from := s[draws.upTo(4)]
			if from.at != to {
				send(t, from, to, string(make([]byte, draws.upTo(maxDatagram))))
			}
			time.Sleep(draws.upTo(3 * time.Millisecond))
			switch step {
			case 200:
				n.Partition([]int{0, 2})
			case 300:
				n.Heal()
			case 400:
				s[4].port.Cut()
				s[4].port.Restore()
				s[4] = openSocket(t, s[4].port)
			}
		}
		time.Sleep(time.Minute)
		closeSockets(t, s)
		wg.Wait()
		stats = n.Stats()
	})
	return trace, stats
}

func TestSameSeedAndCallsGiveTheSameArrivalsOfDatagrams(t *testing.T) {
	one, stats := talk(t, 1)
	if stats.Dropped < 20 || stats.Dropped > stats.Datagrams/2 || stats.Datagrams < 400 {
		t.Fatalf("with this seed little happens: %+v", stats)
	}
	if again, _ := talk(t, 1); again != one {
		t.Error("the same seed gave something else")
	}
	if other, _ := talk(t, 2); other == one {
		t.Error("another seed gave the same")
	}
}

// What becomes of the k-th datagram of a pair does not depend on others.
func TestLossOfADatagramDependsOnItsNumberAlone(t *testing.T) {
	fates := func(t *testing.T, company bool) (all []bool) {
		synctest.Test(t, func(t *testing.T) {
			_, s := openSockets(t, Config{Loss: 0.3, Tap: func(c Chunk) {
				if c.From == 0 && c.To == 1 {
					all = append(all, c.Arrival.IsZero())
				}
			}}, NoNAT, NoNAT, NoNAT)
			for range 200 {
				if company {
					send(t, s[2], s[1].outside(), "company")
					send(t, s[0], s[2].outside(), "company")
				}
				send(t, s[0], s[1].outside(), "text")
				time.Sleep(time.Millisecond)
			}
			closeSockets(t, s)
		})
		return all
	}
	alone, company := fates(t, false), fates(t, true)
	if !slices.Equal(alone, company) {
		t.Error("what others sent changed it")
	}
	if lost := len(slices.DeleteFunc(alone, func(l bool) bool { return !l })); lost < 40 || lost > 80 {
		t.Errorf("%d of 200 are lost, want about 60", lost)
	}
}

func TestDatagramsThatWaitTooLongForALineAreDropped(t *testing.T) {
	const rate = 1e6
	fits := 1 + int(maxQueue/onLine(1000+packetOverhead, rate)) // one on the line, the others waiting
	for name, join := range map[string]func(n *Net, i int) (*Port, error){
		"up":   func(n *Net, i int) (*Port, error) { return n.Join(Site{Index: i}, rate, 0) },
		"down": func(n *Net, i int) (*Port, error) { return n.Join(Site{Index: i}, 0, rate) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet(t, Config{Sites: 2})
				var s []*socket
				for i := range 2 {
					p, err := join(n, i)
					if err != nil {
						t.Fatal(err)
					}
					s = append(s, openSocket(t, p))
				}
				for range 2 {
					for range 100 {
						send(t, s[0], s[1].outside(), string(make([]byte, 1000)))
					}
					time.Sleep(time.Second)
				}
				got := 0
				for ; ; got++ {
					if _, _, err := receive(s[1]); err != nil {
						break
					}
				}
				// Behind the uplink the downlink has less to do at a time, by the time
				// that the uplink takes for each.
				if got < 2*fits || got > 2*fits+4 {
					t.Errorf("%d of two bursts of 100 arrived, want %d of each", got, fits)
				}
				if stats := n.Stats(); stats.Dropped != int64(200-got) {
					t.Errorf("%d dropped, want %d", stats.Dropped, 200-got)
				}
				closeSockets(t, s)
			})
		})
	}
}

func TestDatagramOvertakesOnAFasterLinkOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := openSockets(t, Config{}, NoNAT, NoNAT)
		n.Set(0, 1, &Link{Latency: 10 * time.Second})
		send(t, s[0], s[1].outside(), string(make([]byte, maxDatagram)))
		send(t, s[0], s[1].outside(), "behind")
		n.Set(0, 1, &Link{Latency: latency})
		start := time.Now()
		send(t, s[0], s[1].outside(), "overtakes")
		wantText(t, s[1], "overtakes")
		if took := time.Since(start); took > 2*latency {
			t.Errorf("it took %v", took)
		}
		wantText(t, s[1], string(make([]byte, maxDatagram)))
		wantText(t, s[1], "behind")
		closeSockets(t, s)
	})
}

func TestPartitionLosesDatagramsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := openSockets(t, Config{}, NoNAT, NoNAT, NoNAT)
		send(t, s[0], s[1].outside(), "early")
		time.Sleep(latency + time.Millisecond)
		send(t, s[0], s[1].outside(), "in flight")
		send(t, s[2], s[1].outside(), "on our side")
		time.Sleep(latency / 2)
		n.Partition([]int{0})
		send(t, s[0], s[1].outside(), "apart")
		time.Sleep(latency / 4)
		n.Heal()
		send(t, s[0], s[1].outside(), "healed")
		for _, want := range []string{"early", "on our side", "healed"} {
			wantText(t, s[1], want)
		}
		wantNothing(t, s[1])
		if d := n.Stats().Dropped; d != 2 {
			t.Errorf("%d dropped, want 2", d)
		}
		closeSockets(t, s)
	})
}

func TestCutLosesDatagramsAndEndsSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := openSockets(t, Config{}, PortRestricted, NoNAT)
		send(t, s[0], s[1].outside(), "hello")
		back := wantText(t, s[1], "hello")

		send(t, s[0], s[1].outside(), "from there")
		send(t, s[1], back, "to there")
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, err := receive(s[0]); !errors.Is(err, syscall.ENETDOWN) {
				t.Errorf("reading when the power is lost: %v", err)
			}
		})
		synctest.Wait()
		power := s[0].port.powered()
		s[0].port.Cut()
		wg.Wait()
		if _, err := s[0].WriteTo(nil, s[1].LocalAddr()); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("writing without power: %v", err)
		}
		send(t, s[1], back, "into the dark")
		s[0].port.Restore()
		if _, err := s[0].port.listenUDP(power, &net.UDPAddr{}); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("opening a socket on the power of before: %v", err)
		}
		again := openSocket(t, s[0].port)
		wantNothing(t, s[1])
		send(t, s[1], back, "the NAT knows the way") // a minute later
		wantText(t, again, "the NAT knows the way")
		if d := n.Stats().Dropped; d != 3 {
			t.Errorf("%d dropped, want 3", d)
		}
		closeSockets(t, append(s, again))
	})
}

func TestSocketsFailAsUDPDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := openSockets(t, Config{}, NoNAT, FullCone)
		p := s[0].port
		if _, err := p.ListenPacket(s[0].at); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("the same port twice: %v", err)
		}
		if _, err := p.ListenPacket(netip.MustParseAddrPort("9.9.9.9:1")); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("a foreign address: %v", err)
		}
		free, err := s[1].port.ListenPacket(netip.MustParseAddrPort("0.0.0.0:0"))
		if err != nil {
			t.Fatal(err)
		}
		if a := free.LocalAddr().(*net.UDPAddr).AddrPort(); a.Addr() != s[1].port.Inside() || a.Port() == 0 {
			t.Errorf("port 0 became %v", a)
		}
		for to, want := range map[string]error{
			"1.1.0.1:0": syscall.EINVAL, "[2001:db8::1]:1": syscall.EINVAL, "1.0.0.1:4002": errSelf,
		} {
			if _, err := s[0].WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); !errors.Is(err, want) {
				t.Errorf("writing to %s: %v, want %v", to, err, want)
			}
		}
		if _, err := s[0].WriteTo(nil, &net.TCPAddr{}); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("writing to a TCP address: %v", err)
		}
		if _, err := s[0].WriteTo(make([]byte, maxDatagram+1), s[1].LocalAddr()); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("writing too much: %v", err)
		}
		if err := s[0].SetDeadline(time.Now()); err != nil {
			t.Error(err)
		}
		if _, err := s[0].WriteTo(nil, s[1].LocalAddr()); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("writing after the deadline: %v", err)
		}
		if _, _, err := s[0].ReadFrom(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("reading after the deadline: %v", err)
		}
		if err := s[0].SetDeadline(time.Time{}); err != nil {
			t.Error(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, err := s[0].ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("reading when it is closed: %v", err)
			}
		})
		synctest.Wait()
		closeSockets(t, append(s, free.(*socket)))
		closeSockets(t, s) // twice is not an error
		wg.Wait()
		if _, err := s[0].WriteTo(nil, s[1].LocalAddr()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("writing after Close: %v", err)
		}
		openSocket(t, p).Close() // the port is free again
	})
}

func TestReadCutsOffWhatDoesNotFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := openSockets(t, Config{}, NoNAT, NoNAT)
		send(t, s[0], s[1].outside(), "longer")
		send(t, s[0], s[1].outside(), "")
		var b [4]byte
		if n, _, err := s[1].ReadFrom(b[:]); err != nil || string(b[:n]) != "long" {
			t.Errorf("read %q, %v", b[:n], err)
		}
		wantText(t, s[1], "")
		closeSockets(t, s)
	})
}

func TestSocketHearsNothingFromBeforeItWasOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := openSockets(t, Config{}, NoNAT, NoNAT)
		p := s[1].port
		closeSockets(t, s[1:])
		send(t, s[0], s[1].outside(), "too early")
		time.Sleep(2 * latency)
		s[1] = openSocket(t, p)
		send(t, s[0], s[1].outside(), "in time")
		wantText(t, s[1], "in time")
		send(t, s[0], s[1].outside(), "left unread")
		time.Sleep(2 * latency)
		if err := s[1].SetReadBuffer(0); err != nil { // what came before may stay
			t.Error(err)
		}
		if len(s[1].ready) != 1 {
			t.Errorf("%d datagrams wait to be read, want 1", len(s[1].ready))
		}
		closeSockets(t, s)
		if d := n.Stats().Dropped; d != 2 {
			t.Errorf("%d dropped, want 2", d)
		}
	})
}

// A flood is kept by neither a socket that nobody reads nor a port without any.
func TestWhatNobodyReadsIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := openSockets(t, Config{}, NoNAT, NoNAT, NoNAT)
		if err := s[2].Close(); err != nil {
			t.Fatal(err)
		}
		if err := s[1].SetReadBuffer(5000); err != nil {
			t.Fatal(err)
		}
		for range 2000 {
			send(t, s[0], s[1].outside(), string(make([]byte, 1000)))
			send(t, s[0], s[2].outside(), string(make([]byte, 1000)))
			time.Sleep(time.Millisecond)
		}
		for _, s := range s[1:] {
			if n, most := len(s.port.inbox.q), 4*int(latency/time.Millisecond); n > most {
				t.Errorf("site %d keeps %d datagrams on their way, want at most %d", s.port.site.Index, n, most)
			}
		}
		if s[1].held != 5000 || len(s[1].ready) != 5 {
			t.Errorf("%d datagrams of %d bytes are kept, want 5 of 5000", len(s[1].ready), s[1].held)
		}
		closeSockets(t, s)
	})
}

func TestNATHidesTheNode(t *testing.T) {
	for _, kind := range natKinds {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, s := openSockets(t, Config{}, kind, NoNAT, NoNAT)
				hidden, known, unknown := s[0], s[1], s[2]
				if a := hidden.LocalAddr().(*net.UDPAddr).AddrPort(); a.Addr() != hidden.port.Inside() || !a.Addr().IsPrivate() {
					t.Errorf("the node sees itself at %v", a)
				}
				send(t, known, hidden.outside(), "nobody there yet")
				send(t, known, hidden.at, "nor here")
				send(t, hidden, known.outside(), "hello")
				seen := wantText(t, known, "hello")
				if seen.Addr() != hidden.port.Addr() {
					t.Errorf("it came from %v, want %v", seen, hidden.port.Addr())
				}
				send(t, unknown, seen, "who are you?")
				send(t, known, seen, "welcome")
				if kind == FullCone {
					wantText(t, hidden, "who are you?")
				}
				if from := wantText(t, hidden, "welcome"); from != known.outside() {
					t.Errorf("the answer came from %v, want %v", from, known.outside())
				}
				send(t, hidden, seen, "to myself")
				wantNothing(t, hidden)
				time.Sleep(NATTimeout)
				send(t, known, seen, "too late")
				wantNothing(t, hidden)
				want := int64(4) // nobody there, nor here, to myself, too late
				if kind != FullCone {
					want++
				}
				if d := n.Stats().Dropped; d != want {
					t.Errorf("%d dropped, want %d", d, want)
				}
				closeSockets(t, s)
			})
		})
	}
}

// Two nodes that learned each other's address from a third write to each other
// at once, as RFC 5128 describes it in §3.3, and answer where they heard the
// other from.
func TestHolesCanBePunchedThroughConesOnly(t *testing.T) {
	kinds := []NAT{NoNAT, FullCone, PortRestricted, Symmetric}
	for i, a := range kinds {
		for _, b := range kinds[i:] {
			want := b != Symmetric || cmp.Compare(a, PortRestricted) < 0
			synctest.Test(t, func(t *testing.T) {
				_, s := openSockets(t, Config{}, a, b, NoNAT)
				send(t, s[0], s[2].outside(), "a")
				seenA := wantText(t, s[2], "a")
				send(t, s[1], s[2].outside(), "b")
				seenB := wantText(t, s[2], "b")
				var met [2]bool
				var wg sync.WaitGroup
				for i, other := range []netip.AddrPort{seenB, seenA} {
					wg.Go(func() {
						for range 5 {
							send(t, s[i], other, "punch")
							if _, from, err := receive(s[i]); err == nil {
								other, met[i] = from, true
							}
						}
					})
				}
				wg.Wait()
				if met != [2]bool{want, want} {
					t.Errorf("%v and %v heard each other: %v, want %v", a, b, met, want)
				}
				closeSockets(t, s)
			})
		}
	}
}

func TestStreamsCannotBeDialledThroughANAT(t *testing.T) {
	for _, kind := range natKinds {
		synctest.Test(t, func(t *testing.T) {
			n := newNet(t, Config{Sites: 2})
			hidden, err := n.Join(Site{Index: 0, NAT: kind}, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			open := join(t, n, 1)
			out, in := connect(t, hidden, open)
			if out.local.Addr() != hidden.Inside() || in.remote != netip.AddrPortFrom(hidden.Addr(), out.local.Port()) {
				t.Errorf("%v: from %v, seen as %v", kind, out.local, in.remote)
			}
			l, err := hidden.listen(hidden.power, netip.AddrPortFrom(hidden.Inside(), listenPort))
			if err != nil {
				t.Fatal(err)
			}
			for _, to := range []netip.Addr{hidden.Addr(), hidden.Inside()} {
				if _, err := open.stream().dial(t.Context(), netip.AddrPortFrom(to, listenPort)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%v: dialling %v: %v", kind, to, err)
				}
			}
			if err := errors.Join(out.Close(), in.Close(), l.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// One datagram, from the write to the read, on a line that takes no time.
func BenchmarkDatagram(b *testing.B) {
	for _, nat := range []NAT{NoNAT, PortRestricted} {
		b.Run(nat.String(), func(b *testing.B) {
			n, s := openSockets(b, Config{Up: 1e18, Down: 1e18}, nat, NoNAT)
			n.Set(0, 1, &Link{})
			buf := make([]byte, 1280)
			to := net.UDPAddrFromAddrPort(s[1].outside())
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s[0].WriteTo(buf, to); err != nil {
					b.Fatal(err)
				}
				if _, _, err := s[1].ReadFrom(buf); err != nil {
					b.Fatal(err)
				}
			}
			closeSockets(b, s)
		})
	}
}
