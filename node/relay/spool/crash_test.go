package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

var long = flag.Bool("long", false, "crash a hundred times as often")

// A model says what a spool must hold. After a crash there may be more: what a
// call that did not return had put, and what it had not yet deleted.
type model struct {
	there map[uint64]Entry // by ID: acknowledged, and not known to be deleted
	maybe map[uint64]bool  // IDs of these whose deletion was not acknowledged
	tried map[string]Entry // by blob: put without an acknowledgement
	gone  map[string]bool  // blobs that may never be seen again
	last  uint64           // greatest ID ever seen
	tags  uint64           // given to entries
}

func newModel() *model {
	return &model{there: map[uint64]Entry{}, maybe: map[uint64]bool{}, tried: map[string]Entry{}, gone: map[string]bool{}}
}

// play performs random calls until one of them finds the power gone. It returns
// how many there were.
func (m *model) play(t *testing.T, s *Spool, d *Disk, rng *rand.Rand, calls int) (n int, crashed bool) {
	t.Helper()
	for n = range calls {
		if crashed = m.call(t, s, rng); crashed {
			break
		}
		if size := d.Size(); size > s.cfg.Quota {
			t.Errorf("%d bytes on disk, quota %d", size, s.cfg.Quota)
		}
	}
	return n, crashed
}

// call performs one random call, or several at once.
func (m *model) call(t *testing.T, s *Spool, rng *rand.Rand) (crashed bool) {
	t.Helper()
	if rng.IntN(12) == 0 {
		return m.expire(t, s, rng)
	}
	before := m.last
	ids := slices.Sorted(maps.Keys(m.there))
	var runs []func() (end func(), err error) // end tells the model
	for range 1 + rng.IntN(3)*rng.IntN(2) {
		if len(ids) == 0 || rng.IntN(3) > 0 {
			var entries []Entry
			for range 1 + rng.IntN(4) {
				m.tags++
				e := entry(queue(byte(rng.IntN(4))), testSizes[rng.IntN(3)]-rng.IntN(2)*rng.IntN(20), m.tags)
				e.Expires = int64(m.tags)
				entries = append(entries, e)
				m.tried[string(e.Blob)] = e
			}
			runs = append(runs, func() (func(), error) {
				stored, err := s.Put(context.Background(), entries)
				return func() {
					for i, e := range entries {
						if !errors.Is(err, ErrClosed) {
							delete(m.tried, string(e.Blob))
						}
						if errors.Is(err, ErrFull) {
							m.gone[string(e.Blob)] = true
						}
						if err != nil {
							continue
						}
						if stored[i].ID <= before {
							t.Errorf("ID %d is not above %d of an earlier call", stored[i].ID, before)
						}
						m.there[stored[i].ID] = e
						m.last = max(m.last, stored[i].ID)
					}
				}, err
			})
			continue
		}
		id := ids[rng.IntN(len(ids))]
		q := m.there[id].Queue
		m.maybe[id] = true
		runs = append(runs, func() (func(), error) {
			err := s.Delete(context.Background(), q, id)
			return func() {
				if err == nil {
					m.deleted(id)
				}
			}, err
		})
	}
	var wg sync.WaitGroup
	ends, errs := make([]func(), len(runs)), make([]error, len(runs))
	for i, run := range runs {
		wg.Go(func() { ends[i], errs[i] = run() })
	}
	wg.Wait()
	for i, end := range ends {
		end()
		switch err := errs[i]; {
		case errors.Is(err, ErrClosed):
			crashed = true
		case err != nil && !errors.Is(err, ErrFull):
			t.Errorf("call: %v", err)
		}
	}
	return crashed
}

// expire deletes the oldest entries by their time.
func (m *model) expire(t *testing.T, s *Spool, rng *rand.Rand) (crashed bool) {
	t.Helper()
	until := int64(m.tags) - int64(rng.IntN(40))
	var over []uint64
	for id, e := range m.there {
		if e.Expires <= until {
			m.maybe[id] = true
			over = append(over, id)
		}
	}
	n, err := s.Expire(context.Background(), time.Unix(until, 0))
	if errors.Is(err, ErrClosed) {
		return true
	}
	if err != nil || n != len(over) {
		t.Errorf("Expire: %d entries (%v), want %d", n, err, len(over))
	}
	for _, id := range over {
		m.deleted(id)
	}
	return false
}

func (m *model) deleted(id uint64) {
	if e, ok := m.there[id]; ok {
		m.gone[string(e.Blob)] = true
		delete(m.there, id)
		delete(m.maybe, id)
	}
}

// check compares a spool that was just opened with the model, which then knows.
func (m *model) check(t *testing.T, s *Spool) {
	t.Helper()
	seen := map[string]bool{}
	found := map[uint64]bool{}
	for _, q := range s.Queues() {
		before := uint64(0)
		for _, it := range s.List(q, 0, 0) {
			if it.ID <= before || found[it.ID] {
				t.Errorf("ID %d after %d, or twice", it.ID, before)
			}
			before = it.ID
			m.last = max(m.last, it.ID)
			found[it.ID] = true
			b, err := s.Read(q, it.ID, nil)
			if err != nil {
				t.Errorf("Read: %v", err)
				continue
			}
			if seen[string(b)] {
				t.Errorf("entry %d is there twice", binary.BigEndian.Uint64(b))
			}
			seen[string(b)] = true
			e, acked := m.there[it.ID]
			if !acked {
				var tried bool
				if e, tried = m.tried[string(b)]; !tried {
					t.Errorf("entry %d is there: deleted or refused: %v", binary.BigEndian.Uint64(b), m.gone[string(b)])
					continue
				}
				m.there[it.ID] = e
			}
			if !bytes.Equal(b, e.Blob) || q != e.Queue || it.Expires != e.Expires || it.Size != len(b) {
				t.Errorf("entry %d is not what was put", it.ID)
			}
		}
	}
	for id, e := range m.there {
		if !found[id] {
			if !m.maybe[id] {
				t.Errorf("entry %d was acknowledged and is lost", binary.BigEndian.Uint64(e.Blob))
			}
			m.gone[string(e.Blob)] = true
			delete(m.there, id)
		}
	}
	for b := range m.tried {
		if !seen[b] {
			m.gone[b] = true // it cannot come back later
		}
	}
	clear(m.maybe)
	clear(m.tried)
}

// reopen opens the spool after a crash, through crashes while it is opened, and
// checks it.
func (m *model) reopen(t *testing.T, cfg Config, d *Disk, rng *rand.Rand) *Spool {
	t.Helper()
	for {
		if size := d.Size(); size > cfg.Quota {
			t.Errorf("%d bytes on disk after a crash, quota %d", size, cfg.Quota)
		}
		if rng.IntN(3) == 0 {
			d.CrashAt(1+rng.IntN(12), nil)
		}
		s, err := OpenMemory(cfg, d)
		if errors.Is(err, ErrClosed) {
			continue
		}
		d.CrashAt(0, nil)
		if err != nil {
			t.Fatalf("Open after a crash: %v", err)
		}
		m.check(t, s)
		return s
	}
}

// TestCrashAtEveryWrite loses power at each write boundary of a history in turn,
// and keeps of what was not synced any part.
func TestCrashAtEveryWrite(t *testing.T) {
	histories := uint64(1)
	if *long {
		histories = 100
	}
	boundaries := 0
	for seed := range histories {
		cfg := Config{Sizes: testSizes, Quota: 50_000}
		for at, crashed := 1, true; crashed; at++ {
			rng := rand.New(rand.NewPCG(seed, 1)) // the same history, but for what runs at once
			d, m := NewDisk(seed<<32+uint64(at)), newModel()
			s, err := OpenMemory(cfg, d)
			if err != nil {
				t.Fatal(err)
			}
			d.CrashAt(at, nil)
			_, crashed = m.play(t, s, d, rng, 30)
			s.Close()
			d.Crash()
			s = m.reopen(t, cfg, d, rng)
			m.play(t, s, d, rng, 5)
			s.Close()
			if t.Failed() {
				t.Fatalf("history %d, crash at boundary %d", seed, at)
			}
			boundaries++
		}
	}
	t.Logf("%d crashes", boundaries)
}

// TestCrashWhileEntriesMove loses power at each write boundary of a call for which
// the entries of another size make room, and again when they are deleted.
func TestCrashWhileEntriesMove(t *testing.T) {
	disks := uint64(15)
	if *long {
		disks = 1000
	}
	for seed := range disks {
		for at, crashed := 1, true; crashed; at++ {
			rng := rand.New(rand.NewPCG(seed, 3))
			d, m := NewDisk(seed<<32+uint64(at)), newModel()
			cfg := Config{Sizes: []int{100, 700}, Quota: 22_000}
			s, err := OpenMemory(cfg, d)
			if err != nil {
				t.Fatal(err)
			}
			put := func(e Entry) error {
				m.tried[string(e.Blob)] = e
				stored, err := s.Put(t.Context(), []Entry{e})
				if err == nil {
					m.there[stored[0].ID] = e
				}
				return err
			}
			for err == nil { // until it is full
				m.tags++
				err = put(entry(queue(1), 100, m.tags))
			}
			for i, id := range slices.Sorted(maps.Keys(m.there)) {
				if i%3 == 0 {
					mustDelete(t, s, queue(1), id)
					m.deleted(id)
				}
			}
			d.CrashAt(at, nil)
			err = put(entry(queue(2), 700, 1<<32))
			if crashed = err != nil; crashed && !errors.Is(err, ErrClosed) {
				t.Fatalf("Put that needs room: %v", err)
			}
			s.Close()
			d.Crash()
			s = m.reopen(t, cfg, d, rng)
			for id, e := range maps.Clone(m.there) {
				if rng.IntN(2) == 0 {
					mustDelete(t, s, e.Queue, id)
					m.deleted(id)
				}
			}
			s.Close()
			d.Crash()
			m.reopen(t, cfg, d, rng).Close()
			if t.Failed() {
				t.Fatalf("disk %d, crash at boundary %d", seed, at)
			}
		}
	}
}

// TestManyLives goes on with one disk through many crashes, clean ends and
// changes of the quota: what one life leaves behind must not come back in
// another.
func TestManyLives(t *testing.T) {
	disks := uint64(8)
	if *long {
		disks = 800
	}
	calls, crashes := 0, 0
	for seed := range disks {
		rng := rand.New(rand.NewPCG(seed, 2))
		d, m := NewDisk(seed), newModel()
		cfg := Config{Sizes: testSizes, Quota: 50_000}
		for life := range 30 {
			// A clock that goes anywhere.
			now := time.UnixMicro(rng.Int64N(1 << 40))
			cfg.Now = func() time.Time { return now }
			s := m.reopen(t, cfg, d, rng)
			if rng.IntN(4) > 0 {
				d.CrashAt(1+rng.IntN(60), nil)
			}
			n, crashed := m.play(t, s, d, rng, 30)
			calls += n
			if crashed {
				crashes++
			}
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if rng.IntN(2) == 0 {
				d.Crash()
			}
			d.CrashAt(0, nil)
			if t.Failed() {
				t.Fatalf("disk %d, life %d", seed, life)
			}
		}
	}
	t.Logf("%d calls, %d crashes under them", calls, crashes)
}
