package relay

import (
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"starling/node/relay/spool"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// A memory is what the clients of a relay know after a run that power may have
// ended: what was acknowledged counts, what was not may be there or not.
type memory struct {
	queue, box  *made
	pool, token []byte
	stored      map[[32]byte]bool // hash of a blob: acknowledged
	tried       map[[32]byte]bool // sent
	deleted     map[[32]byte]bool
	given       map[string]int // one-time keys
	byToken     int            // acknowledged deposits
	asked       int            // deposits by token that were sent
	dropped     bool           // the drop of queue was acknowledged
	dropAsked   bool
}

// history runs a fixed course of requests, until one finds the power gone. It
// tells the memory first what it tries, and then what was acknowledged.
func (m *memory) history(c *caller) {
	w := c.w
	say := func(req *wire.RelayRequest) (a *wire.RelayAnswer, on bool) {
		a = c.ask(req)
		return a, a.Status != isBusy // what a relay without power answers
	}
	deposit := func(req *wire.RelayRequest) bool {
		h := sha256.Sum256(req.GetDeposit().Blob)
		m.tried[h] = true
		a, on := say(req)
		if a.Status == isOK {
			w.wantReceipt(req, a)
			m.stored[h] = true
		}
		return on
	}
	put := putKeys(m.box.id, m.pool, start.Add(time.Hour).Unix(), 4)
	steps := []func() bool{
		func() bool { _, on := say(c.createRequest(m.queue)); return on },
		func() bool { _, on := say(c.createRequest(m.box)); return on },
		func() bool {
			_, on := say(setAccess(&wire.RelaySetAccess{Queue: m.box.id[:], Tokens: [][]byte{m.token}}))
			return on
		},
		func() bool { return deposit(w.deposit(m.queue, 2160)) },
		func() bool { return deposit(w.deposit(m.queue, 5232)) },
		func() bool {
			for _, k := range put.GetPutKeys().Keys {
				m.given[string(k)] = 0
			}
			_, on := say(put)
			return on
		},
		func() bool { return m.take(c) },
		func() bool { return m.tokenDeposit(c) },
		func() bool {
			got := c.ask(pollRequest(1))
			if len(got.GetEntries().GetEntries()) != 1 {
				return got.Status == isOK
			}
			e := got.GetEntries().Entries[0]
			m.deleted[sha256.Sum256(e.Blob)] = false // asked
			a, on := say(deletion(relay.QueueID(e.Queue), e.Id))
			if a.Status == isOK {
				m.deleted[sha256.Sum256(e.Blob)] = true
			}
			return on
		},
		func() bool { return m.take(c) },
		func() bool {
			m.dropAsked = true
			a, on := say(dropRequest(m.queue.id))
			m.dropped = a.Status == isOK
			return on
		},
		func() bool { return m.tokenDeposit(c) },
	}
	for _, step := range steps {
		if !step() {
			return
		}
	}
}

func (m *memory) take(c *caller) bool {
	a := c.ask(takeByToken(m.box.id, m.pool, m.token))
	if a.Status == isOK {
		m.given[string(a.GetKey().Key)]++
	}
	return a.Status != isBusy
}

func (m *memory) tokenDeposit(c *caller) bool {
	req := c.w.tokenDeposit(m.box, m.token)
	h := sha256.Sum256(req.GetDeposit().Blob)
	m.tried[h] = true
	m.asked++
	a := c.ask(req)
	if a.Status == isOK {
		m.stored[h] = true
		m.byToken++
	}
	return a.Status != isBusy
}

// check holds a relay that was opened again against the memory.
func (m *memory) check(t *testing.T, c *caller) {
	t.Helper()
	w := c.w
	qs := c.want(isOK, c.attachRequest(m.queue, m.box)).GetQueues().Queues
	if m.dropped && qs[0].Known {
		t.Error("a queue that was dropped is there")
	}
	var there [][32]byte
	for _, e := range c.poll256() {
		h := sha256.Sum256(e.Blob)
		if slices.Contains(there, h) {
			t.Error("an entry is there twice")
		}
		if !m.tried[h] {
			t.Error("an entry that nobody left")
		}
		if m.deleted[h] {
			t.Error("an entry that was deleted is there")
		}
		there = append(there, h)
	}
	for h := range m.stored {
		_, asked := m.deleted[h]
		if !asked && !m.dropAsked && !slices.Contains(there, h) {
			t.Errorf("an acknowledged deposit is lost, %d are there", len(there))
		}
	}
	if s := w.Status(); s.Spool.Entries != len(there)+1 {
		t.Errorf("%d entries in the spool, %d of them in queues and one the store ID", s.Spool.Entries, len(there))
	}
	if !qs[1].Known {
		return
	}
	// The token's uses have not grown: together with what went before there are
	// at most as many as it has.
	for range protocol.TokenDeposits + 1 {
		if a := c.ask(w.tokenDeposit(m.box, m.token)); a.Status != isOK {
			if a.Status != isRefused {
				t.Errorf("a deposit by token: %v", a.Status)
			}
			break
		}
		m.byToken++
	}
	if m.byToken > protocol.TokenDeposits {
		t.Errorf("a token was good for %d deposits", m.byToken)
	}
	for range protocol.TokenKeys + 1 {
		m.take(c)
	}
	keys := 0
	for k, n := range m.given {
		if n > 1 {
			t.Errorf("key %.8x was given %d times", k, n)
		}
		keys += n
	}
	if keys > protocol.TokenKeys {
		t.Errorf("a token was good for %d keys", keys)
	}
}

// Power fails at every write boundary of either disk in turn, on both at once.
// Whatever was acknowledged holds, nothing is given twice, and no quota grows.
func TestCrashAtEveryWriteBoundary(t *testing.T) {
	for name, plan := range map[string]func(w *world, n int){
		"store": func(w *world, n int) { w.rows.CrashAt(n, w.cfg.Disk.Crash) },
		"spool": func(w *world, n int) { w.cfg.Disk.CrashAt(n, w.rows.Crash) },
	} {
		t.Run(name, func(t *testing.T) {
			crashes := 0
			for n := 1; ; n++ {
				w := newWorld(t, nil)
				m := &memory{
					queue: w.makeable(pairwise), box: w.makeable(box), pool: blob(32), token: blob(32),
					stored: map[[32]byte]bool{}, tried: map[[32]byte]bool{}, deleted: map[[32]byte]bool{}, given: map[string]int{},
				}
				rows, slots := w.rows.Steps(), w.cfg.Disk.Steps()
				plan(w, n)
				m.history(w.caller())
				w.rows.CrashAt(0, nil)
				w.cfg.Disk.CrashAt(0, nil)
				done := w.rows.Steps()-rows < n
				if name == "spool" {
					done = w.cfg.Disk.Steps()-slots < n
				}
				w.rows.Crash()
				w.cfg.Disk.Crash()
				w.reopen()
				m.check(t, w.caller())
				if t.Failed() {
					t.Fatalf("after a crash at boundary %d", n)
				}
				if done {
					break
				}
				crashes++
			}
			if crashes < 10 {
				t.Errorf("%d crashes: the history passes more boundaries", crashes)
			}
		})
	}
}

// What a crash between the two steps of a drop leaves in the spool goes with the
// next start, also when the queue is made again.
func TestEntriesWithoutAQueueAreDropped(t *testing.T) {
	w := newWorld(t, nil)
	m := w.makeable(pairwise)
	if _, err := w.spool.Put(t.Context(), []spool.Entry{{Queue: spool.Queue(m.id), Expires: start.Add(time.Hour).Unix(), Blob: blob(2160)}}); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	if n := w.Status().Spool.Entries; n != 1 {
		t.Errorf("%d entries, want the store ID alone", n)
	}
}

// The traffic of a month survives restarts, clean or not, and ends with it.
func TestTrafficOfAMonthSurvivesRestarts(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Traffic = 64_000 })
	us := &block{local: true}
	spend := func() (n int) {
		for w.traffic.spend(us, 100, w.now()) {
			n += 100
			select {
			case <-w.traffic.write: // as Run does
				if err := w.writeTraffic(false); err != nil {
					t.Fatal(err)
				}
			default:
			}
			if n >= 20_000 {
				break
			}
		}
		return n
	}
	total := spend()
	w.reopen()
	if got := w.Status().Traffic; got != uint64(total) {
		t.Errorf("%d bytes after a clean restart, want %d", got, total)
	}
	total += spend()
	w.rows.Crash()
	w.reopen()
	if got := w.Status().Traffic; got < uint64(total) || got > uint64(total)+w.traffic.step() {
		t.Errorf("%d bytes after a crash, want %d or a step of %d more", got, total, w.traffic.step())
	}
	for range 10 {
		total += spend()
	}
	if total > 64_000 || total < 60_000 {
		t.Errorf("%d bytes were spent of 64,000", total)
	}
	w.clock.at = start.AddDate(0, 1, 0)
	w.traffic.spend(us, 100, w.now()) // asks for the new month
	<-w.traffic.write
	if err := w.writeTraffic(false); err != nil {
		t.Fatal(err)
	}
	if got := spend(); got != 20_000 {
		t.Errorf("%d bytes in the next month, want 20,000", got)
	}
}
