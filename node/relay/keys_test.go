package relay

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

func putKeys(id relay.QueueID, pool []byte, expires int64, n int) *wire.RelayRequest {
	m := &wire.RelayPutKeys{Queue: id[:], Pool: pool, Expires: expires}
	for range n {
		m.Keys = append(m.Keys, blob(protocol.KeyBlob))
	}
	return &wire.RelayRequest{Command: &wire.RelayRequest_PutKeys{PutKeys: m}}
}

func countRequest(id relay.QueueID, pool []byte) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_CountKeys{CountKeys: &wire.RelayCountKeys{Queue: id[:], Pool: pool}}}
}

func takeByToken(id relay.QueueID, pool, token []byte) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_TakeKey{TakeKey: &wire.RelayTakeKey{
		Queue: id[:], Pool: pool, Admit: &wire.RelayTakeKey_Token{Token: token},
	}}}
}

func (w *world) takeByWork(id relay.QueueID, pool []byte, bits int) *wire.RelayRequest {
	work := &wire.RelayKeyWork{Salt: blob(16), Expires: w.clock.at.Add(5 * time.Minute).Unix()}
	stamp := relay.KeyStamp(w.self, id, relay.PoolID(pool), [16]byte(work.Salt), work.Expires)
	nonce, err := relay.Work(context.Background(), stamp, bits)
	if err != nil {
		w.t.Fatal(err)
	}
	work.Nonce = nonce
	return &wire.RelayRequest{Command: &wire.RelayRequest_TakeKey{TakeKey: &wire.RelayTakeKey{
		Queue: id[:], Pool: pool, Admit: &wire.RelayTakeKey_Work{Work: work},
	}}}
}

func recordsRequest(id relay.QueueID, replace bool, recs ...[]byte) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_PutRecords{PutRecords: &wire.RelayPutRecords{
		Queue: id[:], Replace: replace, Records: recs,
	}}}
}

// Takers at the same time get different keys, each one that was put, the oldest
// first; a token gets its own number, work leaves the reserve.
func TestEveryKeyIsGivenOnce(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	b := c.queue(box)
	pool := blob(32)
	given := map[string]int{}
	put := putKeys(b.id, pool, start.Add(time.Hour).Unix(), 50)
	for _, k := range put.GetPutKeys().Keys {
		given[string(k)] = 0
	}
	c.want(isOK, put)
	if n := c.want(isOK, countRequest(b.id, pool)).GetCount().Count; n != 50 {
		t.Errorf("%d keys, want 50", n)
	}
	first := w.caller().want(isOK, w.takeByWork(b.id, pool, 4)).GetKey().GetKey()
	if string(first) != string(put.GetPutKeys().Keys[0]) {
		t.Error("the first key given is not the oldest")
	}
	given[string(first)]++
	var mu sync.Mutex
	var wg sync.WaitGroup
	empties := 0
	for range 60 {
		from, req := w.caller(), w.takeByWork(b.id, pool, 12)
		wg.Go(func() {
			a := from.ask(req)
			mu.Lock()
			defer mu.Unlock()
			switch a.Status {
			case isOK:
				given[string(a.GetKey().GetKey())]++
			case isEmpty:
				empties++
			default:
				t.Errorf("taking a key: %v", a.Status)
			}
		})
	}
	wg.Wait()
	n := 0
	for k, times := range given {
		if times > 1 {
			t.Errorf("key %.8x was given %d times", k, times)
		}
		n += times
	}
	if n != 50-protocol.PoolReserve || len(given) != 50 || empties != 61-n {
		t.Errorf("%d keys were given of %d, %d got none; want the reserve of %d to stay", n, len(given), empties, protocol.PoolReserve)
	}
	token := c.admit(b)
	c.want(isOK, takeByToken(b.id, pool, token))

	// Another pool's name empties the pool.
	other := blob(32)
	if n := c.want(isOK, putKeys(b.id, other, start.Add(time.Hour).Unix(), 2)).GetCount().Count; n != 2 {
		t.Errorf("%d keys in the new pool, want 2", n)
	}
	c.want(isRefused, takeByToken(b.id, pool, token))
	c.want(isOK, takeByToken(b.id, other, token))
}

// Who drains a pool or fills a box works for it more and more; when it stops, the
// work falls again.
func TestWorkRisesAndFalls(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	b, quietBox := c.queue(box), c.queue(box)
	pool := blob(32)
	c.want(isOK, putKeys(b.id, pool, start.Add(20*24*time.Hour).Unix(), 50))
	last := 0
	for i := range 24 {
		if a := c.want(isOK, w.workDeposit(b, 10)); a.Status != isOK {
			t.Fatalf("deposit %d", i)
		}
		c.want(isOK, w.takeByWork(b.id, pool, 10))
	}
	for _, p := range []*pressure{&b.in(w).filling, &b.in(w).draining} {
		w.mu.Lock()
		bits := w.bitsLocked(p, &w.filling, w.now())
		w.mu.Unlock()
		if bits != 6 {
			t.Errorf("%d bits after 24 uses, want 6", bits)
		}
		last = bits
	}
	refusedFor := func(m *made) int {
		for {
			a := c.ask(w.workDeposit(m, 0))
			if a.Status == isWork {
				return int(a.GetDemand().Bits)
			}
		}
	}
	if got := refusedFor(b); got != last {
		t.Errorf("a demand of %d bits, want %d", got, last)
	}
	if got := refusedFor(quietBox); got != 4 {
		t.Errorf("a quiet box demands %d bits, want 4", got)
	}
	w.clock.at = w.clock.at.Add(time.Hour)
	if got := refusedFor(b); got != 4 {
		t.Errorf("%d bits an hour later, want 4", got)
	}
}

// Who reads boxes of its own, from however many addresses, leaves room to remember
// the work of others.
func TestOneAccountHasAPartOfTheStamps(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Limits.Stamps = 64 })
	var own []*made
	// fill deposits in four boxes of an address and empties them.
	fill := func(c *caller) (kept int) {
		own = nil
		for range 4 {
			m := c.queue(box)
			own = append(own, m)
			for range 2 {
				switch a := c.ask(w.workDeposit(m, 4)); a.Status {
				case isOK:
					kept++
				case isQuota:
				default:
					t.Fatalf("a deposit: %v", a.Status)
				}
			}
			for _, e := range c.poll256() {
				c.want(isOK, deletion(m.id, e.Id))
			}
		}
		return kept
	}
	stamps := func(want int) {
		t.Helper()
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.stamps != want || w.anybody.stamps > want {
			t.Errorf("%d stamps are remembered, %d for address blocks, want %d", w.stamps, w.anybody.stamps, want)
		}
	}
	one := w.from("192.0.2.1")
	if n := fill(one); n != 4 {
		t.Errorf("one account: %d stamps are remembered of 64, want 4", n)
	}
	for _, m := range own {
		one.want(isOK, dropRequest(m.id))
	}
	stamps(0)
	if n := fill(one); n != 4 {
		t.Errorf("after its queues were dropped: %d, want 4", n)
	}
	all := 4
	for i := range 10 {
		all += fill(w.from(netip.AddrFrom4([4]byte{10, 9, byte(i), 7}).String()))
	}
	if all != 32 {
		t.Errorf("all address blocks: %d, want 32", all)
	}

	token, err := w.Issue("a friend")
	if err != nil {
		t.Fatal(err)
	}
	c, m, pool := w.caller(), w.makeable(box), blob(32)
	m.create.Admission = token[:]
	c.want(isOK, c.createRequest(m))
	c.want(isOK, w.workDeposit(m, 4))
	stamps(33)
	c.want(isOK, putKeys(m.id, pool, start.Add(time.Hour).Unix(), protocol.PoolReserve+1))
	c.want(isOK, w.takeByWork(m.id, pool, 4))
	stamps(33)
	w.clock.at = w.clock.at.Add(2 * time.Hour)
	if err := w.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	stamps(0)
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.keyStamps); n != 0 {
		t.Errorf("%d stamps for keys are left", n)
	}
}

// in returns the service's view of a queue.
func (m *made) in(w *world) *queue {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queues[m.id]
}

// fakeRecord returns what checkFake takes for a record of a day.
func fakeRecord(day uint32) []byte {
	return binary.BigEndian.AppendUint32(blob(64), day)
}

// checkFake stands for the DHT's judgement of a record: the last four bytes are
// the day, and the key is a hash.
func checkFake(rec []byte) (key [32]byte, day uint32, err error) {
	if len(rec) != 68 {
		return key, 0, errors.New("not a record")
	}
	return sha256.Sum256(rec), binary.BigEndian.Uint32(rec[64:]), nil
}

func TestRecordsAreHeldForTheirDay(t *testing.T) {
	published := map[[32]byte]int{}
	w := newWorld(t, func(cfg *Config) {
		cfg.CheckRecord = checkFake
		cfg.Publish = func(_ context.Context, r Record) error {
			published[r.Key]++
			return nil
		}
	})
	c := w.caller()
	b := c.queue(box)
	today := dayOf(start)
	now, next := fakeRecord(today), fakeRecord(today+1)
	if n := c.want(isOK, recordsRequest(b.id, false, now, next)).GetCount().Count; n != 2 {
		t.Errorf("%d records held, want 2", n)
	}
	c.want(isOK, recordsRequest(b.id, false, now)) // again: still two
	second := fakeRecord(today)
	c.want(isQuota, recordsRequest(b.id, false, second, fakeRecord(today))) // three of one day: none of them is held
	c.want(isOK, recordsRequest(b.id, false, second))
	c.want(isQuota, recordsRequest(b.id, false, fakeRecord(today)))
	c.want(isOK, recordsRequest(b.id, true, now, next))
	for name, rec := range map[string][]byte{
		"past": fakeRecord(today - 1), "far": fakeRecord(today + recordsAhead + 1), "no record": {1, 2, 3},
	} {
		if a := c.ask(recordsRequest(b.id, false, rec)); a.Status != isMalformed {
			t.Errorf("a record that is %s: %v, want MALFORMED", name, a.Status)
		}
	}
	dueAt := func(d time.Duration) [][32]byte {
		w.clock.at = start.Add(d)
		turns, _, err := w.due(map[[32]byte]attempt{})
		if err != nil {
			t.Fatal(err)
		}
		var got [][32]byte
		for _, k := range slices.Concat(turns...) {
			rec, err := w.held(k)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, rec.Key)
		}
		return got
	}
	for at, want := range map[time.Duration][]byte{0: now, 13 * time.Hour: next} {
		if got := dueAt(at); len(got) != 1 || got[0] != sha256.Sum256(want) {
			t.Errorf("due after %s: %d records", at, len(got))
		}
	}
	if got := dueAt(11*time.Hour + time.Minute); len(got) != 2 {
		t.Errorf("shortly before midnight %d records are due, want 2", len(got))
	}
	w.clock.at = start.Add(24 * time.Hour)
	if err := w.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := c.want(isOK, recordsRequest(b.id, false)).GetCount().Count; n != 1 {
		t.Errorf("%d records held a day later, want 1", n)
	}
	if n := c.want(isOK, recordsRequest(b.id, true)).GetCount().Count; n != 0 {
		t.Errorf("%d records held after a replacement by none", n)
	}
}

// Run publishes what is due, again after six hours, and not what was dropped; what
// is left later or fails, within a minute.
func TestRecordsArePublishedOnTheirDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		published := map[[32]byte]int{}
		var mu sync.Mutex
		w := newWorld(t, func(cfg *Config) {
			cfg.Now = time.Now
			cfg.CheckRecord = checkFake
			cfg.Publish = func(_ context.Context, r Record) error {
				mu.Lock()
				defer mu.Unlock()
				published[r.Key]++
				if published[r.Key] == 1 {
					return errors.New("nobody is there")
				}
				return nil
			}
		})
		w.clock.at = time.Now()
		c := w.caller()
		b, dropped := c.queue(box), c.queue(box)
		today := dayOf(time.Now())
		now, next, never, late := fakeRecord(today), fakeRecord(today+1), fakeRecord(today+1), fakeRecord(today)
		c.want(isOK, recordsRequest(b.id, false, now, next))
		c.want(isOK, recordsRequest(dropped.id, false, never))
		c.want(isOK, dropRequest(dropped.id))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { w.publish(ctx) })
		time.Sleep(3*time.Hour + publishLook/2) // from midnight UTC, as bubbles begin
		c.want(isOK, recordsRequest(b.id, false, late))
		time.Sleep(2 * publishLook)
		mu.Lock()
		if got := published[sha256.Sum256(late)]; got != 2 {
			t.Errorf("what was left two minutes ago was tried %d times, want 2", got)
		}
		mu.Unlock()
		time.Sleep(45 * time.Hour)
		cancel()
		wg.Wait()
		for name, x := range map[string]struct {
			rec  []byte
			want int
		}{"today's": {now, 5}, "tomorrow's": {next, 6}, "the late": {late, 5}, "the dropped": {never, 0}} {
			if got := published[sha256.Sum256(x.rec)]; got != x.want {
				t.Errorf("%s record was published %d times, want %d", name, got, x.want)
			}
		}
	})
}

// An account with many records, none of which the network takes, does not keep
// back those of others.
func TestOneAccountDoesNotHoldUpPublication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		published := map[[32]byte]time.Time{}
		fails := map[[32]byte]int{}
		calls, most := 0, 0
		w := newWorld(t, func(cfg *Config) {
			cfg.Now = time.Now
			cfg.CheckRecord = checkFake
			cfg.Publish = func(_ context.Context, r Record) error {
				mu.Lock()
				calls++
				most = max(most, calls)
				n, bad := fails[r.Key]
				if bad {
					fails[r.Key] = n + 1
				}
				mu.Unlock()
				if bad {
					time.Sleep(time.Minute)
				}
				mu.Lock()
				defer mu.Unlock()
				calls--
				if bad {
					return errors.New("nobody answers")
				}
				published[r.Key] = time.Now()
				return nil
			}
		})
		w.clock.at = time.Now()
		day := dayOf(time.Now())
		evil, good := w.from("192.0.2.1"), w.from("198.51.100.1")
		for range 50 {
			a, b := fakeRecord(day), fakeRecord(day)
			fails[sha256.Sum256(a)], fails[sha256.Sum256(b)] = 0, 0
			evil.want(isOK, recordsRequest(evil.queue(box).id, false, a, b))
		}
		m := good.queue(box)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { w.publish(ctx) })
		for range 3 {
			time.Sleep(10*time.Minute + publishLook/2)
			left, rec := time.Now(), fakeRecord(day)
			good.want(isOK, recordsRequest(m.id, true, rec))
			time.Sleep(5 * time.Minute)
			mu.Lock()
			if at := published[sha256.Sum256(rec)]; at.IsZero() {
				t.Errorf("not published within 5 minutes of %v", left.Format(time.TimeOnly))
			}
			mu.Unlock()
		}
		cancel()
		wg.Wait()
		// In 46 minutes, less some for looks, four at a time.
		tried := 0
		for _, n := range fails {
			tried += min(n, 1)
		}
		if most != publishAtOnce {
			t.Errorf("%d were published at once, want %d", most, publishAtOnce)
		}
		if tried < 100 {
			t.Errorf("of 100 records of one account %d were tried", tried)
		}
	})
}
