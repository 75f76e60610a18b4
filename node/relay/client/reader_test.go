package client

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	libnet "github.com/libp2p/go-libp2p/core/network"

	"starling/protocol"
	"starling/protocol/identity"
	pure "starling/protocol/relay"
	"starling/protocol/wire"
)

// A user reads queues as a node does: it makes those that the relay does not
// know, and keeps what it took.
type user struct {
	l *lab
	*Reader
	hosts *noted
	stop  func()

	mu      sync.Mutex
	places  []*place
	leave   bool  // what comes is left where it is
	fail    error // of Take
	sulk    error // of Tend
	taken   []Entry
	useless bool // what comes is of no use
	takes   int
	tends   []time.Time
}

func (l *lab) user(site, places int, change func(*ReaderConfig)) *user {
	l.Helper()
	u := &user{l: l, hosts: &noted{Hosts: NewHosts(l.join(site).Options()...)}}
	for range places {
		u.places = append(u.places, newPlace(l))
	}
	cfg := ReaderConfig{
		Relay: l.endpoint(), Hosts: u.hosts, Queues: u.queues, Tend: u.tend, Take: u.take,
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if u.Reader, err = NewReader(cfg); err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := u.Run(ctx); err != nil {
			l.Errorf("running a reader: %v", err)
		}
	})
	u.stop = func() {
		begun := time.Now()
		cancel()
		running.Wait()
		if took := time.Since(begun); took > time.Second {
			l.Errorf("a reader took %s to stop", took)
		}
		if u.hosts.open != 0 || u.hosts.most != 1 {
			l.Errorf("a reader leaves %d hosts, and had %d at once", u.hosts.open, u.hosts.most)
		}
	}
	return u
}

func (u *user) queues() ([]*pure.ReaderKey, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	var keys []*pure.ReaderKey
	for _, p := range u.places {
		keys = append(keys, p.key)
	}
	return keys, nil
}

func (u *user) tend(ctx context.Context, c *Conn) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tends = append(u.tends, time.Now())
	for _, p := range u.places {
		if q, asked := c.Queue(p.id); !asked {
			u.l.Error("a queue was not attached before Tend")
		} else if q.Known {
			continue
		}
		if _, err := p.create(ctx, c, pairwise); err != nil {
			return err
		}
	}
	return u.sulk
}

func (u *user) take(_ context.Context, es []Entry) (done []Entry, useless int, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.takes++
	if u.leave {
		return nil, 0, u.fail
	}
	if u.useless {
		return es, len(es), u.fail
	}
	u.taken = append(u.taken, es...)
	return es, 0, u.fail
}

func (u *user) wantTaken(want [][]byte) {
	u.l.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	if !sameBlobs(blobsOf(u.taken), want) {
		u.l.Errorf("%d entries were taken, want %d, once each", len(u.taken), len(want))
	}
}

// left returns how many entries are at the relay in all queues of u.
func (u *user) left() int {
	u.l.Helper()
	keys, _ := u.queues()
	n := 0
	d := NewDepositor(NewHosts(u.l.join(15).Options()...), Dialer{})
	if err := d.Do(u.l.Context(), u.l.endpoint(), func(c *Conn) error {
		qs, err := c.Attach(u.l.Context(), keys)
		for _, q := range qs {
			n += q.Messages
		}
		return err
	}); err != nil {
		u.l.Fatal(err)
	}
	return n
}

// do changes what u does.
func (u *user) do(change func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change()
}

// pass lets time pass, and everybody do what is due then.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// What comes is taken within a second, once, and gone from the relay; over a
// link with loss, across restarts of the relay, and after it lost its disk.
func TestReader(t *testing.T) {
	inLab(t, 0.02, func(l *lab) {
		l.up()
		u := l.user(1, 3, nil)
		pass(5 * time.Second)
		d := NewDepositor(NewHosts(l.join(2).Options()...), Dialer{})
		var sent [][]byte
		send := func(p *place, n int) {
			l.Helper()
			if err := d.Do(l.Context(), l.endpoint(), func(c *Conn) error {
				sent = append(sent, p.mustDeposit(l, c, n)...)
				return nil
			}); err != nil {
				l.Fatal(err)
			}
		}
		for _, p := range u.places {
			send(p, 20)
		}
		pass(5 * time.Second)
		u.wantTaken(sent)
		st := u.Status()
		if !st.Connected || st.Queues != 3 || st.Left != 0 || st.LastError != nil || st.TendError != nil ||
			!st.NextTry.IsZero() || time.Since(st.LastPoll) > time.Minute || st.Info.Store == [16]byte{} {
			l.Errorf("status of a reader that reads: %+v", st)
		}

		l.down()
		pass(time.Hour)
		if st := u.Status(); st.Connected || st.LastError == nil || st.NextTry.IsZero() || st.Queues != 0 || time.Since(st.Since) < 55*time.Minute {
			l.Errorf("status while the relay is away: %+v", st)
		}
		l.up()
		pass(maxBackoff + time.Minute)
		send(u.places[1], 5)
		pass(5 * time.Second)
		u.wantTaken(sent)

		l.down()
		l.loseDisk()
		l.up()
		pass(maxBackoff + time.Minute)
		send(u.places[2], 5) // Tend made it again
		pass(5 * time.Second)
		u.wantTaken(sent)
		if now := u.Status(); !now.Connected || now.Info.Store == st.Info.Store {
			l.Errorf("the store's loss is not seen: %+v", now)
		}
		if n := u.left(); n != 0 {
			l.Errorf("%d entries are left at the relay", n)
		}
		u.stop()
	})
}

// Tend is called after connecting, every hour, and at once after a kick; a new
// queue is attached before it. What Tend cannot do it tries again, and reading
// goes on.
func TestReaderTends(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		u := l.user(1, 1, nil)
		begun := time.Now()
		pass(3*time.Hour + time.Minute)
		if n := len(u.tends); n != 4 {
			l.Errorf("Tend was called %d times in three hours, want 4", n)
		}
		stops := time.Now().Add(48 * time.Hour).Truncate(time.Second)
		if err := l.Drain(stops); err != nil {
			l.Fatal(err)
		}
		pass(time.Hour)
		if info := u.Status().Info; !info.Draining.Equal(stops) {
			l.Errorf("an hour later the relay is known to stop at %v, want %v", info.Draining, stops)
		}
		if err := l.Drain(time.Time{}); err != nil {
			l.Fatal(err)
		}

		u.do(func() { u.places = append(u.places, newPlace(l)) })
		pass(10 * time.Second)
		kicked := time.Now()
		for range 5 {
			u.Kick()
		}
		pass(2 * time.Second)
		if n := len(u.tends); n < 6 || n > 7 || u.tends[5].Sub(kicked) > time.Second || u.Status().Queues != 2 {
			l.Errorf("after a kick: %d calls, the last after %s; %d queues", n, u.tends[n-1].Sub(kicked), u.Status().Queues)
		}

		n := len(u.tends)
		sulk := errors.New("not now")
		u.do(func() { u.sulk = sulk })
		u.Kick()
		pass(time.Hour)
		st := u.Status()
		if calls := len(u.tends) - n; !errors.Is(st.TendError, sulk) || !st.Connected || st.Since.Sub(begun) > time.Minute || calls < 12 || calls > 60 {
			l.Errorf("Tend that fails was called %d times in an hour; %+v", calls, st)
		}
		u.stop()
	})
}

// What Take leaves is not shown again on the same stream, and makes nobody busy;
// the next stream shows it again. A Take that fails ends the stream.
func TestReaderLeavesWhatIsNotTaken(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		u := l.user(1, 1, nil)
		u.do(func() { u.leave = true })
		pass(5 * time.Second)
		d := NewDepositor(NewHosts(l.join(2).Options()...), Dialer{})
		var sent [][]byte
		if err := d.Do(l.Context(), l.endpoint(), func(c *Conn) error {
			sent = u.places[0].mustDeposit(l, c, 10)
			return nil
		}); err != nil {
			l.Fatal(err)
		}
		before := l.net.Stats().Chunks
		pass(3 * time.Hour)
		if u.takes > 10 {
			l.Errorf("ten entries that are left were shown %d times", u.takes)
		}
		if n := l.net.Stats().Chunks - before; n > 3*65*10 {
			l.Errorf("%d writes in three hours of waiting", n)
		}
		u.do(func() { u.leave, u.fail = false, errors.New("the disk is full") })
		l.down()
		l.up()
		pass(maxBackoff + time.Minute)
		u.do(func() { u.fail = nil })
		u.wantTaken(sent) // and deleted, though Take failed
		if n := u.left(); n != 0 {
			l.Errorf("%d entries are left at the relay", n)
		}
		u.stop()
	})
}

// The reader of a queue that is attached late sees what was in it before.
func TestReaderSeesWhatIsOlder(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		u := l.user(1, 1, nil)
		old := newPlace(l)
		pass(5 * time.Second)
		d := NewDepositor(NewHosts(l.join(2).Options()...), Dialer{})
		var sent [][]byte
		if err := d.Do(l.Context(), l.endpoint(), func(c *Conn) error {
			old.mustCreate(l, c, pairwise)
			sent = append(sent, old.mustDeposit(l, c, 3)...)
			sent = append(sent, u.places[0].mustDeposit(l, c, 3)...)
			return nil
		}); err != nil {
			l.Fatal(err)
		}
		pass(5 * time.Second)
		u.do(func() { u.places = append(u.places, old) })
		u.Kick()
		pass(5 * time.Second)
		u.wantTaken(sent)
		u.stop()
	})
}

// A queue that another device drops takes nothing of the others with it.
func TestReaderOfADroppedQueue(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		u := l.user(1, 2, nil)
		pass(5 * time.Second)
		other := l.dial(l.join(2), Dialer{})
		sent := u.places[0].mustDeposit(l, other, 1)
		sent = append(sent, u.places[1].mustDeposit(l, other, 1)...)
		if _, err := other.Attach(l.Context(), []*pure.ReaderKey{u.places[0].key}); err != nil {
			l.Fatal(err)
		}
		if err := other.Drop(l.Context(), u.places[0].id); err != nil {
			l.Fatal(err)
		}
		pass(5 * time.Second)
		sent = append(sent, u.places[1].mustDeposit(l, other, 1)...)
		pass(5 * time.Second)
		if st := u.Status(); !st.Connected || st.LastError != nil {
			l.Errorf("status: %+v", st)
		}
		u.wantTaken(sent)
		u.do(func() { u.places = u.places[1:] })
		if n := u.left(); n != 0 {
			l.Errorf("%d entries are left at the relay", n)
		}
		u.stop()
	})
}

// Every day of a week has another key, and begins to have it at a time of its
// own. The wall clock runs 24 times as fast as the polls.
func TestReaderChangesItsKeyEachDay(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		start := time.Now()
		wall := func() time.Time { return start.Add(24 * time.Since(start)).UTC() }
		var mu sync.Mutex
		days := map[string]map[time.Time]bool{} // of each key
		hours := map[int]bool{}                 // of the day, of changes
		last := ""
		l.fake(func(s libnet.Stream, n int, req *wire.RelayRequest) bool {
			mu.Lock()
			defer mu.Unlock()
			who, now := s.Conn().RemotePeer().String(), wall()
			if days[who] == nil {
				days[who] = map[time.Time]bool{}
			}
			days[who][now.Truncate(day)] = true
			if last != "" && who != last {
				hours[now.Hour()] = true
			}
			last = who
			switch {
			case req.GetInfo() != nil:
				return sayInfo(s)
			case req.GetPoll() != nil:
				time.AfterFunc(time.Duration(req.GetPoll().Wait)*time.Second, func() { sayNothing(s) })
				return true
			}
			return sayStatus(s, wire.RelayStatus_RELAY_STATUS_BUSY)
		})
		u := l.user(1, 0, func(cfg *ReaderConfig) { cfg.Now = wall })
		pass(7 * time.Hour)
		u.stop()
		mu.Lock()
		defer mu.Unlock()
		// A poll is 22 minutes long here, so that a change may come a day late.
		if len(days) < 5 || len(days) > 8 {
			l.Errorf("%d keys in seven days", len(days))
		}
		for who, d := range days {
			if len(d) > 2 {
				l.Errorf("%s was used on %d days", who[len(who)-6:], len(d))
			}
		}
		if len(hours) < 2 {
			l.Errorf("all changes are in one hour of the day: %v", hours)
		}
	})
}

// A clock that was wrong by years and is set back ends the use of a key too.
func TestTermEndsWhenTheClockIsSetBack(t *testing.T) {
	noon := time.Date(2027, 3, 5, 12, 0, 0, 0, time.UTC)
	at := term{}
	if !at.over(noon) {
		t.Error("no host is good for a while")
	}
	at = term{&notedHost{}, noon.Truncate(day), noon.Add(day)}
	for now, want := range map[time.Time]bool{
		noon: false, noon.Add(day - 1): false, noon.Add(day): true, noon.Add(-day): true,
	} {
		if got := at.over(now); got != want {
			t.Errorf("at %s: over %v, want %v", now, got, want)
		}
	}
}

func sayNothing(s libnet.Stream) bool {
	return say(s, &wire.RelayAnswer{
		Status: wire.RelayStatus_RELAY_STATUS_OK,
		Result: &wire.RelayAnswer_Entries{Entries: new(wire.RelayEntries)},
	})
}

// Relays that keep a reader busy do not: one fault each.
func TestReaderIsNotKeptBusy(t *testing.T) {
	only := newPlace(t)
	known := &wire.RelayAnswer{
		Status: wire.RelayStatus_RELAY_STATUS_OK,
		Result: &wire.RelayAnswer_Queues{Queues: &wire.RelayQueues{Queues: []*wire.RelayQueue{{Known: true, Expires: 1 << 35}}}},
	}
	id := uint64(0)
	for what, poll := range map[string]func(s libnet.Stream) bool{
		"answers at once": sayNothing,
		"says that there is more": func(s libnet.Stream) bool {
			return say(s, &wire.RelayAnswer{
				Status: wire.RelayStatus_RELAY_STATUS_OK,
				Result: &wire.RelayAnswer_Entries{Entries: &wire.RelayEntries{More: true}},
			})
		},
		"invents what nobody can take": func(s libnet.Stream) bool {
			id++
			return say(s, &wire.RelayAnswer{
				Status: wire.RelayStatus_RELAY_STATUS_OK,
				Result: &wire.RelayAnswer_Entries{Entries: &wire.RelayEntries{
					Entries: []*wire.RelayEntry{{Queue: only.id[:], Id: id, Blob: []byte{1}}},
				}},
			})
		},
		"brings what is of no use": func(s libnet.Stream) bool {
			id++
			return say(s, &wire.RelayAnswer{
				Status: wire.RelayStatus_RELAY_STATUS_OK,
				Result: &wire.RelayAnswer_Entries{Entries: &wire.RelayEntries{
					Entries: []*wire.RelayEntry{{Queue: only.id[:], Id: id, Blob: []byte{2}}}, More: true,
				}},
			})
		},
		"is busy":    func(s libnet.Stream) bool { return sayStatus(s, wire.RelayStatus_RELAY_STATUS_BUSY) },
		"refuses":    func(s libnet.Stream) bool { return sayStatus(s, wire.RelayStatus_RELAY_STATUS_REFUSED) },
		"hangs up":   func(libnet.Stream) bool { return false },
		"is garbage": func(s libnet.Stream) bool { return wire.WriteFrame(s, []byte{0xff}) == nil },
	} {
		t.Run(what, func(t *testing.T) {
			inLab(t, 0, func(l *lab) {
				var mu sync.Mutex
				requests := 0
				l.fake(func(s libnet.Stream, _ int, req *wire.RelayRequest) bool {
					mu.Lock()
					defer mu.Unlock()
					requests++
					switch {
					case req.GetInfo() != nil:
						return sayInfo(s)
					case req.GetClaim() != nil:
						return say(s, known)
					case req.GetDelete() != nil:
						return sayStatus(s, wire.RelayStatus_RELAY_STATUS_OK)
					}
					return poll(s)
				})
				u := l.user(1, 0, nil)
				useless := what == "brings what is of no use"
				u.do(func() { u.leave, u.useless, u.places = !useless, useless, []*place{only} })
				pass(2 * time.Hour)
				if n := u.Status().Useless; useless != (n > 10) {
					l.Errorf("the status tells of %d useless entries", n)
				}
				mu.Lock()
				n := requests
				mu.Unlock()
				// At a pause of half a minute on average there would be 240 polls.
				most := 700
				if useless {
					most += 2 * (spareMost + int(2*time.Hour/sparePer)) // to poll and to delete
				}
				if n < 10 || n > most {
					l.Errorf("%d requests in two hours", n)
				}
				u.stop()
			})
		})
	}
}

// While a relay is away it is dialled every few minutes, and found again.
func TestReaderBacksOff(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		u := l.user(1, 1, nil) // nobody is there
		l.stop = func() {}
		pass(12 * time.Hour)
		if n := l.net.Stats().Dials; n < 100 || n > 1000 {
			l.Errorf("%d dials in 12 hours", n)
		}
		l.up()
		pass(maxBackoff + dialTimeout)
		if st := u.Status(); !st.Connected {
			l.Errorf("the relay is back, and the reader is not: %+v", st)
		}
		u.stop()
	})
}

// Queues beyond what one stream bears are counted and not hidden.
func TestReaderCountsWhatItLeavesOut(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.fake(func(s libnet.Stream, _ int, req *wire.RelayRequest) bool {
			switch {
			case req.GetInfo() != nil:
				return sayInfo(s)
			case req.GetClaim() != nil:
				qs := new(wire.RelayQueues)
				for range req.GetClaim().Proofs {
					qs.Queues = append(qs.Queues, &wire.RelayQueue{Known: true, Expires: 1 << 35})
				}
				return say(s, &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK, Result: &wire.RelayAnswer_Queues{Queues: qs}})
			}
			return true
		})
		u := l.user(1, protocol.MaxAttached+3, func(cfg *ReaderConfig) {
			cfg.Tend = func(context.Context, *Conn) error { return nil }
		})
		pass(10 * time.Second)
		if st := u.Status(); st.Queues != protocol.MaxAttached || st.Left != 3 {
			l.Errorf("%d queues attached, %d left out", st.Queues, st.Left)
		}
		u.stop()
	})
}

func TestNewReaderSaysWhatIsMissing(t *testing.T) {
	_, err := NewReader(ReaderConfig{Relay: identity.Endpoint{}})
	for _, want := range []string{"address", "hosts", "queues", "Tend", "Take"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v says nothing of %s", err, want)
		}
	}
}
