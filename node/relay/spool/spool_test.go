package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const testQuota = 1 << 20

var testSizes = []int{100, 700, 2000}

func queue(n byte) Queue { return Queue{n, 0xff} }

// entry returns one whose blob is size bytes that only this tag has.
func entry(q Queue, size int, tag uint64) Entry {
	b := make([]byte, size)
	rng := rand.New(rand.NewPCG(tag, uint64(size)))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	if size >= 8 {
		binary.BigEndian.PutUint64(b, tag)
	}
	return Entry{Queue: q, Expires: 1000, Leaf: Leaf(binary.BigEndian.AppendUint64(make([]byte, 24), tag)), Blob: b}
}

func mustOpen(t testing.TB, cfg Config, d *Disk) *Spool {
	t.Helper()
	if cfg.Sizes == nil {
		cfg.Sizes = testSizes
	}
	if cfg.Quota == 0 {
		cfg.Quota = testQuota
	}
	s, err := Open(cfg)
	if d != nil {
		s, err = OpenMemory(cfg, d)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func mustPut(t testing.TB, s *Spool, entries ...Entry) []Stored {
	t.Helper()
	stored, err := s.Put(t.Context(), entries)
	if err != nil {
		t.Fatalf("Put: %v", err)
	}
	return stored
}

func mustDelete(t testing.TB, s *Spool, q Queue, ids ...uint64) {
	t.Helper()
	if err := s.Delete(t.Context(), q, ids...); err != nil {
		t.Fatalf("Delete: %v", err)
	}
}

func mustClose(t testing.TB, s *Spool) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func wantRead(t testing.TB, s *Spool, q Queue, id uint64, want []byte) {
	t.Helper()
	if got, err := s.Read(q, id, nil); err != nil || !bytes.Equal(got, want) {
		t.Errorf("Read of %d: %d bytes, %v; want the %d bytes that were put", id, len(got), err, len(want))
	}
}

func wantList(t testing.TB, s *Spool, q Queue, want ...uint64) {
	t.Helper()
	var got []uint64
	for _, it := range s.List(q, 0, 0) {
		got = append(got, it.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("List: %v, want %v", got, want)
	}
}

// media are where a spool can be. Each returns a function that opens the same
// one again and again.
func media(t *testing.T, fn func(t *testing.T, open func(cfg Config) *Spool)) {
	t.Run("disk", func(t *testing.T) {
		dir := t.TempDir()
		fn(t, func(cfg Config) *Spool { cfg.Dir = dir; return mustOpen(t, cfg, nil) })
	})
	t.Run("memory", func(t *testing.T) {
		d := NewDisk(1)
		fn(t, func(cfg Config) *Spool { return mustOpen(t, cfg, d) })
	})
}

func TestEntriesStayUntilDeleted(t *testing.T) {
	media(t, func(t *testing.T, open func(Config) *Spool) {
		s := open(Config{})
		a, b := queue(1), queue(2)
		var entries []Entry
		for i, size := range []int{1, 99, 100, 101, 700, 2000, 701, 8} {
			entries = append(entries, entry([]Queue{a, b}[i%2], size, uint64(i)))
			entries[i].Expires = int64(1000 + i)
		}
		stored := mustPut(t, s, entries...)
		check := func() {
			t.Helper()
			for i, e := range entries {
				if i > 0 && stored[i].ID != stored[i-1].ID+1 {
					t.Errorf("ID %d follows %d", stored[i].ID, stored[i-1].ID)
				}
				wantRead(t, s, e.Queue, stored[i].ID, e.Blob)
				other := []Queue{b, a}[i%2]
				if _, err := s.Read(other, stored[i].ID, nil); !errors.Is(err, ErrNotFound) {
					t.Errorf("Read in the other queue: %v, want ErrNotFound", err)
				}
			}
			wantList(t, s, a, stored[0].ID, stored[2].ID, stored[4].ID, stored[6].ID)
			if got, want := s.List(b, stored[1].ID, 2), []Item{{stored[3].ID, 1003, 101}, {stored[5].ID, 1005, 2000}}; !slices.Equal(got, want) {
				t.Errorf("List after the first: %v, want %v", got, want)
			}
			if got := s.List(b, stored[2].ID, 0); len(got) != 3 || got[0].ID != stored[3].ID {
				t.Errorf("List after an ID of another queue: %v", got)
			}
			if n, size := s.Count(a); n != 4 || size != 1+100+700+701 {
				t.Errorf("Count: %d entries, %d bytes", n, size)
			}
			if got := s.Queues(); !slices.Equal(got, []Queue{a, b}) {
				t.Errorf("Queues: %v", got)
			}
			if u := s.Usage(); u.Entries != 8 || u.Damaged != 0 || u.Sizes[0].Entries != 4 || u.Sizes[1].Entries != 2 || u.Sizes[2].Entries != 2 {
				t.Errorf("Usage: %+v", u)
			}
		}
		check()
		mustClose(t, s)
		s = open(Config{})
		check()

		mustDelete(t, s, b, stored[0].ID) // in a: it stays
		mustDelete(t, s, a, stored[0].ID, stored[4].ID, 12345)
		mustDelete(t, s, a, stored[0].ID)
		if err := s.Drop(t.Context(), b); err != nil {
			t.Errorf("Drop: %v", err)
		}
		for range 2 {
			wantList(t, s, a, stored[2].ID, stored[6].ID)
			wantList(t, s, b)
			if _, err := s.Read(a, stored[0].ID, nil); !errors.Is(err, ErrNotFound) {
				t.Errorf("Read of a deleted entry: %v, want ErrNotFound", err)
			}
			if got := s.Queues(); !slices.Equal(got, []Queue{a}) {
				t.Errorf("Queues: %v", got)
			}
			mustClose(t, s)
			s = open(Config{})
		}
	})
}

// A caller that reads many blobs needs one buffer.
func TestReadUsesTheBuffer(t *testing.T) {
	s := mustOpen(t, Config{}, NewDisk(1))
	e := entry(queue(1), 700, 1)
	id := mustPut(t, s, e)[0].ID
	buf := make([]byte, 3, 764)
	got, err := s.Read(e.Queue, id, buf)
	if err != nil || !bytes.Equal(got, e.Blob) || &got[0] != &buf[:65][64] {
		t.Errorf("Read: %d bytes (%v), want the blob within the buffer", len(got), err)
	}
}

func TestExpireFreesWhatIsOver(t *testing.T) {
	d := NewDisk(1)
	s := mustOpen(t, Config{}, d)
	var keep [][2]uint64
	const each = 1500 // more than one piece of a queue's list
	for q := range byte(2) {
		for first := uint64(0); first < each; first += 500 {
			var entries []Entry
			for i := first; i < first+500; i++ {
				e := entry(queue(q), 100, i)
				e.Expires = int64(i)
				entries = append(entries, e)
			}
			for i, st := range mustPut(t, s, entries...) {
				if first+uint64(i) > 1200 {
					keep = append(keep, [2]uint64{uint64(q), st.ID})
				}
			}
		}
	}
	if n, err := s.Expire(t.Context(), time.Unix(1200, 0)); n != 2*1201 || err != nil {
		t.Errorf("Expire: %d (%v), want %d", n, err, 2*1201)
	}
	d.Crash() // it was durable
	s.Close()
	s = mustOpen(t, Config{}, d)
	var got [][2]uint64
	for _, q := range s.Queues() {
		for _, it := range s.List(q, 0, 0) {
			got = append(got, [2]uint64{uint64(q[0]), it.ID})
		}
	}
	if !slices.Equal(got, keep) {
		t.Errorf("%d entries left, want %d", len(got), len(keep))
	}
	if n, err := s.Expire(t.Context(), time.Unix(1200, 0)); n != 0 || err != nil {
		t.Errorf("second Expire: %d (%v)", n, err)
	}
}

// IDs follow the clock, and go on without it.
func TestIDsGrowWhateverTheClockDoes(t *testing.T) {
	d := NewDisk(1)
	now := time.UnixMicro(5_000_000)
	cfg := Config{Now: func() time.Time { return now }}
	s := mustOpen(t, cfg, d)
	var last uint64
	put := func(least uint64) {
		t.Helper()
		st := mustPut(t, s, entry(queue(1), 10, 1), entry(queue(1), 700, 2))
		if st[0].ID <= last || st[0].ID < least || st[1].ID != st[0].ID+1 {
			t.Errorf("IDs %d, %d after %d at %v", st[0].ID, st[1].ID, last, now)
		}
		last = st[1].ID
		mustDelete(t, s, queue(1), st[0].ID, st[1].ID) // nothing but the bound remembers them
	}
	put(5_000_000)
	put(0) // the clock stands still
	now = time.UnixMicro(9_000_000)
	put(9_000_000)
	for _, back := range []int64{8_000_000, 0, -5_000_000} {
		now = time.UnixMicro(back)
		put(0)
		d.Crash()
		s.Close()
		s = mustOpen(t, cfg, d)
		put(0)
		mustClose(t, s)
		s = mustOpen(t, cfg, d)
		put(0)
	}
	now = time.UnixMicro(1 << 50)
	put(1 << 50)
}

// A gate is a folder whose files wait in Sync while the gate is shut.
type gate struct {
	folder
	shut  atomic.Pointer[chan struct{}] // closed to let them go
	syncs atomic.Int64
}

type gateFile struct {
	file
	g *gate
}

func (g *gate) open(name string) (file, error) {
	f, err := g.folder.open(name)
	return gateFile{f, g}, err
}

func (f gateFile) Sync() error {
	f.g.syncs.Add(1)
	if shut := f.g.shut.Load(); shut != nil {
		<-*shut
	}
	return f.file.Sync()
}

// close shuts the gate until the function that it returns is called.
func (g *gate) close() (open func()) {
	shut := make(chan struct{})
	g.shut.Store(&shut)
	return func() {
		g.shut.Store(nil)
		close(shut)
	}
}

// openGate opens a spool in memory behind a gate. Close it within the bubble.
func openGate(t *testing.T, cfg Config) (*Spool, *gate) {
	t.Helper()
	f, err := NewDisk(1).open()
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{folder: f}
	cfg.Sizes, cfg.Quota = testSizes, testQuota
	s, err := open(cfg, g)
	if err != nil {
		t.Fatal(err)
	}
	return s, g
}

// Calls that wait together share a sync and one promise, of which each has its
// own part.
func TestGroupIsAttestedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // the first group's promise may be made while the second is on its way
		var groups []int
		s, g := openGate(t, Config{Attest: func(leaves []Leaf) func(int) any {
			mu.Lock()
			defer mu.Unlock()
			groups = append(groups, len(leaves))
			return func(i int) any { return fmt.Sprintf("%x of %d", leaves[i], len(leaves)) }
		}})
		before := g.syncs.Load()
		open := g.close()
		put := func(entries ...Entry) {
			stored, err := s.Put(t.Context(), entries)
			if err != nil || len(stored) != len(entries) {
				t.Errorf("Put: %d of %d (%v)", len(stored), len(entries), err)
				return
			}
			for i, st := range stored {
				want := 64 * 3
				if entries[0].Queue == queue(0xee) {
					want = 1
				}
				if want := fmt.Sprintf("%x of %d", entries[i].Leaf, want); st.Receipt != want {
					t.Errorf("receipt %q, want %q", st.Receipt, want)
				}
				wantRead(t, s, entries[i].Queue, st.ID, entries[i].Blob)
			}
		}
		var all sync.WaitGroup
		all.Go(func() { put(entry(queue(0xee), 10, 1<<32)) })
		synctest.Wait() // the writer is in its commit
		for i := range uint64(64) {
			all.Go(func() {
				put(entry(queue(byte(i)), 10, i*3), entry(queue(byte(i)), 10, i*3+1), entry(queue(7), 20, i*3+2))
			})
			all.Go(func() {
				if err := s.Delete(t.Context(), queue(0xdd), i); err != nil {
					t.Errorf("Delete: %v", err)
				}
			})
		}
		synctest.Wait()
		if n, _ := s.Count(queue(7)); n != 0 {
			t.Errorf("%d entries are there before they are durable", n)
		}
		open()
		all.Wait()
		if slices.Sort(groups); !slices.Equal(groups, []int{1, 64 * 3}) {
			t.Errorf("groups of %v, want one of 1 and one of %d", groups, 64*3)
		}
		if got := g.syncs.Load() - before; got != 2 {
			t.Errorf("%d syncs for two groups", got)
		}
		ids := s.List(queue(7), 0, 0)
		if len(ids) != 64+2 {
			t.Errorf("%d entries in the queue of all, want %d", len(ids), 64+2)
		}
		mustClose(t, s)
	})
}

// An entry is found by its blob and its expiry, in its queue and while it is
// there, also after the spool was opened again.
func TestFindKnowsTheSameBlob(t *testing.T) {
	media(t, func(t *testing.T, open func(Config) *Spool) {
		s := open(Config{})
		e, other := entry(queue(1), 90, 1), entry(queue(1), 90, 2)
		id := mustPut(t, s, other, e)[1].ID
		check := func(there bool) {
			t.Helper()
			if got, ok := s.Find(e.Queue, e.Expires, e.Blob); ok != there || ok && got != id {
				t.Errorf("found %d, %v; want %d, %v", got, ok, id, there)
			}
		}
		check(true)
		if _, ok := s.Find(queue(2), e.Expires, e.Blob); ok {
			t.Error("found in another queue")
		}
		if _, ok := s.Find(e.Queue, e.Expires+1, e.Blob); ok {
			t.Error("found with another expiry")
		}
		if _, ok := s.Find(e.Queue, e.Expires, e.Blob[1:]); ok {
			t.Error("found a part of it")
		}
		mustClose(t, s)
		s = open(Config{})
		check(true)
		mustDelete(t, s, e.Queue, id)
		check(false)
	})
}

// Many entries begun by one caller share a sync, and each is told of when it is on
// the disk, not before.
func TestBegunEntriesShareASync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, g := openGate(t, Config{Attest: func(leaves []Leaf) func(int) any {
			return func(i int) any { return fmt.Sprintf("%x of %d", leaves[i], len(leaves)) }
		}})
		begin := func(e Entry) Pending {
			p, err := s.Begin(e)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		before := g.syncs.Load()
		open := g.close()
		pending := []Pending{begin(entry(queue(0), 90, 0))}
		synctest.Wait() // the writer is in its commit
		entries := []Entry{entry(queue(0), 90, 0)}
		for i := range uint64(100) {
			e := entry(queue(byte(i%3)), 90, i+1)
			entries, pending = append(entries, e), append(pending, begin(e))
		}
		synctest.Wait()
		for i, p := range pending {
			select {
			case <-p.Done():
				t.Errorf("entry %d is done before the sync", i)
			default:
			}
		}
		open()
		last := uint64(0)
		for i, p := range pending {
			st, err := p.Stored()
			if err != nil || st.ID <= last {
				t.Fatalf("entry %d: ID %d after %d, %v", i, st.ID, last, err)
			}
			last = st.ID
			if want := fmt.Sprintf("%x of %d", entries[i].Leaf, map[bool]int{true: 1, false: 100}[i == 0]); st.Receipt != want {
				t.Errorf("entry %d: receipt %q, want %q", i, st.Receipt, want)
			}
			wantRead(t, s, entries[i].Queue, st.ID, entries[i].Blob)
		}
		if n := g.syncs.Load() - before; n != 2 {
			t.Errorf("%d syncs, want 2", n)
		}
		if _, err := s.Begin(entry(queue(1), maxSize+1, 1)); !errors.Is(err, ErrTooBig) {
			t.Errorf("a blob that is too big: %v, want ErrTooBig", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Begin(entry(queue(1), 90, 1)); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v, want ErrClosed", err)
		}
	})
}

// What cannot be kept is told to who began it.
func TestBegunEntryThatDoesNotFit(t *testing.T) {
	s := mustOpen(t, Config{}, NewDisk(1))
	size := testSizes[len(testSizes)-1]
	for i := 0; ; i++ {
		p, err := s.Begin(entry(queue(1), size, uint64(i)))
		if err != nil {
			t.Fatal(err)
		}
		st, err := p.Stored()
		if err == nil {
			if i*size > testQuota {
				t.Fatal("the quota does not end")
			}
			continue
		}
		if !errors.Is(err, ErrFull) || st.ID != 0 || i == 0 {
			t.Errorf("entry %d: %+v, %v; want ErrFull after the first", i, st, err)
		}
		return
	}
}

// Entries of many queues are deleted with one sync.
func TestDeletingFromManyQueuesIsOneSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, g := openGate(t, Config{})
		defer s.Close()
		var keys []Key
		for i := range byte(50) {
			kept, gone := entry(queue(i), 90, uint64(i)), entry(queue(i), 90, 1000+uint64(i))
			stored := mustPut(t, s, kept, gone)
			keys = append(keys, Key{queue(i), stored[1].ID})
		}
		before := g.syncs.Load()
		if err := s.DeleteAll(t.Context(), append(keys, Key{queue(60), 1}, keys[0])); err != nil {
			t.Fatal(err)
		}
		if n := g.syncs.Load() - before; n != 1 {
			t.Errorf("%d syncs, want 1", n)
		}
		for _, k := range keys {
			wantList(t, s, k.Queue, k.ID-1)
		}
	})
}

// What is attested again shares a group with what is put, costs no write, and is
// promised only if the group leaves it there.
func TestAttestingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, g := openGate(t, Config{Attest: func(leaves []Leaf) func(int) any {
			return func(i int) any { return fmt.Sprintf("%x of %d", leaves[i], len(leaves)) }
		}})
		stays, goes := entry(queue(1), 90, 1), entry(queue(1), 90, 2)
		stored := mustPut(t, s, stays, goes)
		before := g.syncs.Load()
		if b, err := s.Again(t.Context(), stays.Queue, stored[0].ID, Leaf{7}); err != nil || b != fmt.Sprintf("%x of 1", Leaf{7}) {
			t.Errorf("alone: %q, %v", b, err)
		}
		if n := g.syncs.Load() - before; n != 0 {
			t.Errorf("%d syncs for nothing to write", n)
		}
		if _, err := s.Again(t.Context(), queue(2), stored[0].ID, Leaf{7}); !errors.Is(err, ErrNotFound) {
			t.Errorf("in another queue: %v, want ErrNotFound", err)
		}

		open := g.close()
		var all sync.WaitGroup
		all.Go(func() { mustPut(t, s, entry(queue(3), 90, 3)) })
		synctest.Wait() // the writer is in its commit
		all.Go(func() {
			if b, err := s.Again(t.Context(), stays.Queue, stored[0].ID, Leaf{7}); err != nil || b != fmt.Sprintf("%x of 2", Leaf{7}) {
				t.Errorf("together: %q, %v", b, err)
			}
		})
		all.Go(func() {
			e := entry(queue(4), 90, 4)
			if got := mustPut(t, s, e)[0].Receipt; got != fmt.Sprintf("%x of 2", e.Leaf) {
				t.Errorf("beside it: %q", got)
			}
		})
		all.Go(func() {
			if _, err := s.Again(t.Context(), goes.Queue, stored[1].ID, Leaf{8}); !errors.Is(err, ErrNotFound) {
				t.Errorf("deleted in the same group: %v, want ErrNotFound", err)
			}
		})
		all.Go(func() { mustDelete(t, s, goes.Queue, stored[1].ID) })
		synctest.Wait()
		open()
		all.Wait()
		mustClose(t, s)
		if _, err := s.Again(t.Context(), stays.Queue, stored[0].ID, Leaf{7}); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v, want ErrClosed", err)
		}
	})
}

// A call that gave up before its turn leaves nothing; one that the writer has
// taken is waited for, since its blobs are being read.
func TestContextEndsTheWaitForATurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, g := openGate(t, Config{})
		open := g.close()
		ctx, cancel := context.WithCancel(t.Context())
		taken, waits := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := s.Put(ctx, []Entry{entry(queue(1), 10, 1)})
			taken <- err
		}()
		synctest.Wait()
		go func() {
			_, err := s.Put(ctx, []Entry{entry(queue(2), 10, 2)})
			waits <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-waits; !errors.Is(err, context.Canceled) {
			t.Errorf("Put that waited for its turn: %v, want Canceled", err)
		}
		synctest.Wait()
		select {
		case err := <-taken:
			t.Errorf("Put that was being written returned early: %v", err)
		default:
		}
		open()
		if err := <-taken; err != nil {
			t.Errorf("Put that was being written: %v", err)
		}
		if got := s.Queues(); !slices.Equal(got, []Queue{queue(1)}) {
			t.Errorf("queues %v, want the first only", got)
		}
		if _, err := s.Put(ctx, []Entry{entry(queue(3), 10, 3)}); !errors.Is(err, context.Canceled) {
			t.Errorf("Put without time: %v, want Canceled", err)
		}
		mustClose(t, s)
	})
}

func TestCloseFinishesWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, g := openGate(t, Config{})
		open := g.close()
		var all sync.WaitGroup
		for i := range byte(3) {
			all.Go(func() {
				if _, err := s.Put(t.Context(), []Entry{entry(queue(i), 10, 1)}); err != nil {
					t.Errorf("Put before Close: %v", err)
				}
			})
			synctest.Wait()
		}
		for range 2 {
			all.Go(func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		}
		synctest.Wait()
		if _, err := s.Put(t.Context(), []Entry{entry(queue(9), 10, 1)}); !errors.Is(err, ErrClosed) {
			t.Errorf("Put after Close: %v, want ErrClosed", err)
		}
		open()
		all.Wait()
		if len(s.Queues()) != 3 {
			t.Errorf("%d queues, want 3", len(s.Queues()))
		}
		if _, err := s.Read(queue(1), s.List(queue(1), 0, 0)[0].ID, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Read after Close: %v, want ErrClosed", err)
		}
		if err := s.Delete(t.Context(), queue(1), 1); !errors.Is(err, ErrClosed) {
			t.Errorf("Delete after Close: %v, want ErrClosed", err)
		}
	})
}

// A call larger than what is left of a group opens another one.
func TestGroupIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		sizes := map[int]int{}
		s, g := openGate(t, Config{Attest: func(leaves []Leaf) func(int) any {
			mu.Lock()
			defer mu.Unlock()
			sizes[len(leaves)]++
			return func(int) any { return nil }
		}})
		open := g.close()
		var all sync.WaitGroup
		many := slices.Repeat([]Entry{entry(queue(1), 1, 1)}, MaxGroup)
		for _, n := range []int{1, MaxGroup - 1, 2, 1} {
			all.Go(func() {
				if _, err := s.Put(t.Context(), many[:n]); err != nil {
					t.Errorf("Put of %d: %v", n, err)
				}
			})
			synctest.Wait() // the first is being written, the others wait
		}
		open()
		all.Wait()
		if sizes[1] != 1 || sizes[MaxGroup-1] != 1 || sizes[3] != 1 {
			t.Errorf("groups by size: %v", sizes)
		}
		if _, err := s.Put(t.Context(), append(many, many[0])); !errors.Is(err, ErrTooBig) {
			t.Errorf("Put of more than a group: %v, want ErrTooBig", err)
		}
		mustClose(t, s)
	})
}

func TestBlobsMustFit(t *testing.T) {
	s := mustOpen(t, Config{}, NewDisk(1))
	for _, size := range []int{0, 2001} {
		_, err := s.Put(t.Context(), []Entry{entry(queue(1), 10, 1), {Queue: queue(1), Blob: make([]byte, size)}})
		if !errors.Is(err, ErrTooBig) {
			t.Errorf("blob of %d bytes: %v, want ErrTooBig", size, err)
		}
	}
	if u := s.Usage(); u.Entries != 0 {
		t.Errorf("%d entries of calls that were refused", u.Entries)
	}
	if stored, err := s.Put(t.Context(), nil); len(stored) != 0 || err != nil {
		t.Errorf("Put of nothing: %v (%v)", stored, err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want []string
	}{
		{Config{}, []string{"0 sizes", "quota of 0"}[:1]},
		{Config{Sizes: []int{100}, Quota: firstSlot - 1}, []string{"quota of 8191 bytes"}},
		{Config{Sizes: []int{0, maxSize + 1, 5, 5}, Quota: testQuota}, []string{"size of 0", "size of 1048577", "5 bytes given twice"}},
		{Config{Sizes: make([]int, maxSizes+1), Quota: testQuota}, []string{"17 sizes"}},
	} {
		_, err := OpenMemory(c.cfg, NewDisk(1))
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Open with %+v: %v, want %q", c.cfg, err, want)
			}
		}
	}
}

// fill puts entries until there is no more room, and returns their IDs.
func fill(t *testing.T, s *Spool, q Queue, size int) (ids []uint64) {
	t.Helper()
	for {
		stored, err := s.Put(t.Context(), []Entry{entry(q, size, uint64(len(ids)))})
		if errors.Is(err, ErrFull) {
			return ids
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, stored[0].ID)
	}
}

// The quota is the files' length: as many entries as it has room for, and a
// deleted one's room at once, for any size.
func TestQuota(t *testing.T) {
	media(t, func(t *testing.T, open func(Config) *Spool) {
		const quota = 100_000
		room := quota - len(testSizes)*firstSlot
		s := open(Config{Quota: quota})
		within := func() {
			t.Helper()
			u := s.Usage()
			var sum int64
			for i, c := range s.classes {
				size, err := c.file.Size()
				if err != nil || size != u.Sizes[i].Bytes {
					t.Errorf("file of %d bytes (%v), Usage says %d", size, err, u.Sizes[i].Bytes)
				}
				sum += size
			}
			if sum > quota || sum != u.Bytes || u.Quota != quota {
				t.Errorf("files of %d bytes; %+v", sum, u)
			}
		}
		small := fill(t, s, queue(1), 100)
		if want := room / (slotHeader + 100); len(small) != want {
			t.Errorf("%d entries of 100 bytes, want %d", len(small), want)
		}
		within()
		both := []Entry{entry(queue(9), 100, 1), entry(queue(9), 100, 2)}
		if _, err := s.Put(t.Context(), both); !errors.Is(err, ErrFull) {
			t.Errorf("Put over the quota: %v, want ErrFull", err)
		}
		mustDelete(t, s, queue(1), small[3])
		if _, err := s.Put(t.Context(), both); !errors.Is(err, ErrFull) {
			t.Errorf("Put of two into the room of one: %v, want ErrFull", err)
		}
		small[3] = mustPut(t, s, both[0])[0].ID
		mustDelete(t, s, queue(9), small[3])

		// The first of the small ones leave room at the front of their file; what
		// is behind moves there for the sake of a large one.
		for i := range 11 {
			mustDelete(t, s, queue(1), small[i])
		}
		if _, err := s.Put(t.Context(), []Entry{entry(queue(2), 2000, 1)}); !errors.Is(err, ErrFull) {
			t.Errorf("a large one in the room of 11 small ones: %v, want ErrFull", err)
		}
		mustDelete(t, s, queue(1), small[11])
		large := mustPut(t, s, entry(queue(2), 2000, 1))[0].ID
		within()
		check := func() {
			t.Helper()
			wantRead(t, s, queue(2), large, entry(queue(2), 2000, 1).Blob)
			wantList(t, s, queue(1), small[12:]...)
			for i, id := range small[12:] {
				wantRead(t, s, queue(1), id, entry(queue(1), 100, uint64(12+i)).Blob)
			}
		}
		check()
		mustClose(t, s)
		s = open(Config{Quota: quota})
		check()
		if u := s.Usage(); u.Damaged != 0 {
			t.Errorf("%d slots damaged by moving", u.Damaged)
		}
		within()
	})
}

func TestLoweredQuotaKeepsWhatIsThere(t *testing.T) {
	d := NewDisk(1)
	s := mustOpen(t, Config{Quota: 200_000}, d)
	ids := fill(t, s, queue(1), 2000)
	mustClose(t, s)
	s = mustOpen(t, Config{Quota: 100_000}, d)
	wantList(t, s, queue(1), ids...)
	refused := func() bool {
		_, err := s.Put(t.Context(), []Entry{entry(queue(2), 2000, 1)})
		if err != nil && !errors.Is(err, ErrFull) {
			t.Errorf("Put over a lowered quota: %v, want ErrFull", err)
		}
		return err != nil
	}
	deleted := 0
	for refused() {
		mustDelete(t, s, queue(1), ids[deleted])
		deleted++
	}
	left := (100_000 - len(testSizes)*firstSlot) / (slotHeader + 2000)
	if want := len(ids) - left + 1; deleted != want {
		t.Errorf("%d of %d deleted before one more was taken, want %d", deleted, len(ids), want)
	}
	wantList(t, s, queue(1), ids[deleted:]...)
	if d.Size() > 100_000 {
		t.Errorf("%d bytes on disk", d.Size())
	}
}

// Slots of a size that is no longer configured are read and emptied, and their
// room goes to the others.
func TestForgottenSizeRunsDry(t *testing.T) {
	d := NewDisk(1)
	s := mustOpen(t, Config{Sizes: []int{100, 2000}, Quota: 100_000}, d)
	ids := fill(t, s, queue(1), 2000)
	mustClose(t, s)
	s = mustOpen(t, Config{Sizes: []int{100}, Quota: 100_000}, d)
	if _, err := s.Put(t.Context(), []Entry{entry(queue(1), 2000, 1)}); !errors.Is(err, ErrTooBig) {
		t.Errorf("Put of a size that is not configured: %v, want ErrTooBig", err)
	}
	wantRead(t, s, queue(1), ids[1], entry(queue(1), 2000, 1).Blob)
	before := len(fill(t, s, queue(2), 100))
	mustDelete(t, s, queue(1), ids[0])
	if n := len(fill(t, s, queue(2), 100)); n < 12 || n > 13 {
		t.Errorf("%d small ones in the room of a large one that was deleted, %d before", n, before)
	}
	wantList(t, s, queue(1), ids[1:]...)
}

// A full disk refuses puts and nothing else.
func TestFullDisk(t *testing.T) {
	full := func(t *testing.T, s *Spool, ids []uint64) {
		if _, err := s.Put(t.Context(), []Entry{entry(queue(1), 100, 1), entry(queue(1), 2000, 1)}); !errors.Is(err, ErrDiskFull) || errors.Is(err, ErrReopen) {
			t.Errorf("Put on a full disk: %v, want ErrDiskFull", err)
		}
		wantList(t, s, queue(1), ids...)
		mustDelete(t, s, queue(1), ids[0])
		id := mustPut(t, s, entry(queue(1), 100, 7))[0].ID // in place
		wantList(t, s, queue(1), append(slices.Clone(ids[1:]), id)...)
		mustDelete(t, s, queue(1), id)
	}
	t.Run("memory", func(t *testing.T) {
		d := NewDisk(1)
		s := mustOpen(t, Config{}, d)
		ids := fill1(t, s, 5)
		d.Limit(d.Size() + 1000)
		full(t, s, ids)
		d.Limit(1 << 30)
		last := mustPut(t, s, entry(queue(1), 2000, 1))[0].ID
		d.Crash()
		s.Close()
		s = mustOpen(t, Config{}, d)
		wantList(t, s, queue(1), append(ids[1:], last)...)
	})
	t.Run("tmpfs", func(t *testing.T) {
		dir := mountTmpfs(t, "2m")
		if dir == "" {
			t.Skip("no tmpfs may be mounted here; the case in memory stands for it")
		}
		cfg := Config{Dir: filepath.Join(dir, "spool"), Quota: 64 << 20}
		s := mustOpen(t, cfg, nil)
		ids := fill1(t, s, 5)
		ballast := filepath.Join(dir, "ballast")
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		full(t, s, ids)
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		last := mustPut(t, s, entry(queue(1), 100, 1))[0].ID
		mustClose(t, s)
		s = mustOpen(t, cfg, nil)
		wantList(t, s, queue(1), append(ids[1:], last)...)
		mustClose(t, s)
	})
}

// fill1 puts n small entries one by one.
func fill1(t *testing.T, s *Spool, n int) (ids []uint64) {
	t.Helper()
	for i := range n {
		ids = append(ids, mustPut(t, s, entry(queue(1), 100, uint64(i)))[0].ID)
	}
	return ids
}

// mountTmpfs mounts a file system of the given size, or returns "".
func mountTmpfs(t *testing.T, size string) string {
	t.Helper()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		return ""
	}
	dir := t.TempDir()
	if err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).Run(); err != nil {
		return ""
	}
	t.Cleanup(func() {
		if err := exec.Command("umount", dir).Run(); err != nil {
			t.Errorf("umount: %v", err)
		}
	})
	return dir
}

// After a failed write nobody knows what is on the disk: nothing is changed any
// more until it was read again.
func TestFailedWriteNeedsReopening(t *testing.T) {
	d := NewDisk(1)
	s := mustOpen(t, Config{}, d)
	ids := fill1(t, s, 3)
	broken := errors.New("broken")
	d.Fail(broken)
	if _, err := s.Put(t.Context(), []Entry{entry(queue(1), 100, 9)}); !errors.Is(err, ErrReopen) || !errors.Is(err, broken) {
		t.Errorf("Put on a broken disk: %v, want ErrReopen and the cause", err)
	}
	d.Fail(nil)
	if err := s.Delete(t.Context(), queue(1), ids[0]); !errors.Is(err, ErrReopen) {
		t.Errorf("Delete after a failed write: %v, want ErrReopen", err)
	}
	wantRead(t, s, queue(1), ids[0], entry(queue(1), 100, 0).Blob)
	mustClose(t, s)
	s = mustOpen(t, Config{}, d)
	wantList(t, s, queue(1), ids...)
	mustDelete(t, s, queue(1), ids[0])
}

func TestCrashEndsTheSpool(t *testing.T) {
	d := NewDisk(1)
	s := mustOpen(t, Config{}, d)
	ids := fill1(t, s, 3)
	called := 0
	d.CrashAt(1, func() { called++ })
	if _, err := s.Put(t.Context(), []Entry{entry(queue(1), 100, 9)}); !errors.Is(err, ErrClosed) || called != 1 {
		t.Errorf("Put as power is lost: %v, want ErrClosed; told %d times", err, called)
	}
	if _, err := s.Read(queue(1), ids[0], nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Read after power was lost: %v, want ErrClosed", err)
	}
	if err := s.Delete(t.Context(), queue(1), ids[0]); !errors.Is(err, ErrClosed) {
		t.Errorf("Delete after power was lost: %v, want ErrClosed", err)
	}
	mustClose(t, s)
	s = mustOpen(t, Config{}, d)
	wantList(t, s, queue(1), ids...)
}

func TestOneOwner(t *testing.T) {
	dir, d := t.TempDir(), NewDisk(1)
	s, m := mustOpen(t, Config{Dir: dir}, nil), mustOpen(t, Config{}, d)
	if _, err := Open(Config{Dir: dir, Sizes: testSizes, Quota: testQuota}); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v, want ErrLocked", err)
	}
	if _, err := OpenMemory(Config{Sizes: testSizes, Quota: testQuota}, d); !errors.Is(err, ErrLocked) {
		t.Errorf("second OpenMemory: %v, want ErrLocked", err)
	}
	mustClose(t, s)
	mustClose(t, m)
	mustOpen(t, Config{Dir: dir}, nil)
	mustOpen(t, Config{}, d)
}

// Any one bit of the files may flip: at most the entry in whose slot it is is
// lost, and that is counted, whether it shows while the spool is open or after.
func TestFlippedBitLosesOneEntry(t *testing.T) {
	cfg := Config{Sizes: []int{100, 700}, Quota: 40_000}
	build := func(t *testing.T) (*Disk, *Spool, map[uint64]Entry) {
		d := NewDisk(1)
		s := mustOpen(t, cfg, d)
		want := map[uint64]Entry{}
		for i := range 4 {
			e := entry(queue(1), []int{100, 700, 60}[i%3], uint64(i))
			want[mustPut(t, s, e)[0].ID] = e
		}
		return d, s, want
	}
	rng := rand.New(rand.NewPCG(1, 2))
	flips := map[string][]int{}
	for file, step := range map[string]int{"slots-100": 3, "slots-700": 11} {
		slots, size := 3, slotHeader+100
		if file == "slots-700" {
			slots, size = 1, slotHeader+700
		}
		for at := firstSlot; at < firstSlot+slots*size; at += step {
			flips[file] = append(flips[file], at)
		}
		for range 10 {
			flips[file] = append(flips[file], rng.IntN(fileHeader), headerStep+rng.IntN(fileHeader))
		}
	}
	for file, places := range flips {
		for _, at := range places {
			for _, reopen := range []bool{true, false} {
				d, s, want := build(t)
				d.mu.Lock()
				d.files[file].data[at] ^= 1 << rng.IntN(8)
				d.mu.Unlock()
				if reopen {
					mustClose(t, s)
					s = mustOpen(t, cfg, d)
				}
				lost, ids := 0, []uint64{}
				for id, e := range want {
					got, err := s.Read(e.Queue, id, nil)
					switch {
					case err == nil && bytes.Equal(got, e.Blob):
						ids = append(ids, id)
					case errors.Is(err, ErrDamaged) && !reopen, errors.Is(err, ErrNotFound) && reopen:
						lost++
						if _, err := s.Read(e.Queue, id, nil); !errors.Is(err, ErrNotFound) {
							t.Errorf("second Read of a lost entry: %v, want ErrNotFound", err)
						}
					default:
						t.Errorf("byte %d of %s: Read: %d bytes, %v", at, file, len(got), err)
					}
				}
				if u := s.Usage(); lost > 1 || u.Damaged != lost || u.Entries != len(ids) {
					t.Errorf("byte %d of %s: %d lost, %+v", at, file, lost, u)
				}
				// Its slot is used again.
				slices.Sort(ids)
				large := 0
				for _, id := range ids {
					if len(want[id].Blob) == 700 {
						large++
					}
				}
				more := fill(t, s, queue(2), 100)
				room := int(cfg.Quota) - 2*firstSlot - large*(slotHeader+700)
				if n := len(more) + len(ids) - large; n != room/(slotHeader+100) {
					t.Errorf("byte %d of %s: room for %d of 100 bytes in all, want %d", at, file, n, room/(slotHeader+100))
				}
				for range 2 {
					wantList(t, s, queue(1), ids...)
					wantList(t, s, queue(2), more...)
					mustClose(t, s)
					s = mustOpen(t, cfg, d)
				}
				mustClose(t, s)
			}
		}
	}
}

// An entry that was reported lost stays lost, even if the disk reads it again.
func TestLostEntryDoesNotComeBack(t *testing.T) {
	d := NewDisk(1)
	s := mustOpen(t, Config{}, d)
	ids := fill1(t, s, 3)
	flip := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.files["slots-100"].data[firstSlot+164+90] ^= 1
	}
	flip()
	if _, err := s.Read(queue(1), ids[1], nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("Read of a damaged entry: %v, want ErrDamaged", err)
	}
	flip()
	for range 2 {
		wantList(t, s, queue(1), ids[0], ids[2])
		mustDelete(t, s, queue(9), 1) // any change
		mustClose(t, s)
		s = mustOpen(t, Config{}, d)
	}
	if u := s.Usage(); u.Damaged != 0 || u.Sizes[0].Entries != 2 {
		t.Errorf("Usage: %+v, want two entries and no damage", u)
	}
}

// A disk that writes to the wrong place is found out.
func TestSlotInTheWrongPlaceIsDamaged(t *testing.T) {
	d := NewDisk(1)
	s := mustOpen(t, Config{}, d)
	ids := fill1(t, s, 3)
	mustClose(t, s)
	data := d.files["slots-100"].data[firstSlot:]
	copy(data[164:2*164], data[:164])
	s = mustOpen(t, Config{}, d)
	wantList(t, s, queue(1), ids[0], ids[2])
	if u := s.Usage(); u.Damaged != 1 {
		t.Errorf("Usage: %+v, want one damaged", u)
	}
}

// What a program writes that knows more is left alone.
func TestNewerVersionIsRefused(t *testing.T) {
	for name, change := range map[string]func(*memoryFile){
		"file": func(f *memoryFile) {
			for i := range headers {
				b := f.data[i*headerStep:][:fileHeader]
				b[4] = version + 1
				binary.BigEndian.PutUint32(b, crc32.Checksum(b[checkFrom:], castagnoli))
			}
		},
		"slot": func(f *memoryFile) {
			b := f.data[firstSlot:][:slotHeader+100]
			b[4] = version + 1
			binary.BigEndian.PutUint32(b, slotSum(b, 0, 100))
		},
	} {
		d := NewDisk(1)
		s := mustOpen(t, Config{}, d)
		fill1(t, s, 1)
		mustClose(t, s)
		change(d.files["slots-100"])
		before := bytes.Clone(d.files["slots-100"].data)
		if _, err := OpenMemory(Config{Sizes: testSizes, Quota: testQuota}, d); !errors.Is(err, ErrNewer) {
			t.Errorf("%s of a newer version: %v, want ErrNewer", name, err)
		}
		if !bytes.Equal(before, d.files["slots-100"].data) {
			t.Errorf("%s of a newer version was changed", name)
		}
	}
}

// A file without a header is not guessed at, unless it has nothing else.
func TestLostHeaders(t *testing.T) {
	d := NewDisk(1)
	s := mustOpen(t, Config{}, d)
	fill1(t, s, 1)
	mustClose(t, s)
	f := d.files["slots-100"]
	f.data[10] ^= 1
	f.data[headerStep+10] ^= 1
	if _, err := OpenMemory(Config{Sizes: testSizes, Quota: testQuota}, d); !errors.Is(err, ErrDamaged) {
		t.Errorf("Open without headers: %v, want ErrDamaged", err)
	}
	f.data = f.data[:headerStep+20]
	s = mustOpen(t, Config{}, d)
	fill1(t, s, 1)
}

// What the disk cannot read is lost alone, too.
func TestUnreadableSlot(t *testing.T) {
	d := NewDisk(1)
	s := mustOpen(t, Config{}, d)
	ids := fill1(t, s, 9)
	mustClose(t, s)
	f, err := d.open()
	if err != nil {
		t.Fatal(err)
	}
	s, err = open(Config{Sizes: testSizes, Quota: testQuota}, badSector{f, firstSlot + 3*164 + 50})
	if err != nil {
		t.Fatal(err)
	}
	wantList(t, s, queue(1), slices.Delete(ids, 3, 4)...)
	if u := s.Usage(); u.Damaged != 1 {
		t.Errorf("Usage: %+v, want one damaged", u)
	}
	mustClose(t, s)
}

// A badSector is a folder in whose files one byte cannot be read.
type badSector struct {
	folder
	at int64
}

type badFile struct {
	file
	at int64
}

func (b badSector) open(name string) (file, error) {
	f, err := b.folder.open(name)
	return badFile{f, b.at}, err
}

func (f badFile) ReadAt(b []byte, off int64) (int, error) {
	if off <= f.at && f.at < off+int64(len(b)) {
		return 0, syscall.EIO
	}
	return f.file.ReadAt(b, off)
}

// Nothing but sizes and numbers shows what the entries of a queue were once they
// are deleted.
func TestDeletedEntryLeavesNoName(t *testing.T) {
	d := NewDisk(1)
	s := mustOpen(t, Config{}, d)
	e := entry(Queue(bytes.Repeat([]byte("name"), 8)), 100, 1)
	id := mustPut(t, s, e)[0].ID
	has := func() bool { return bytes.Contains(d.files["slots-100"].data, e.Queue[:8]) }
	if !has() {
		t.Error("the name of a queue is not where it is looked for")
	}
	mustDelete(t, s, e.Queue, id)
	if has() {
		t.Error("the name of a queue outlives its entries")
	}
}

// Readers, depositors and deleters at once, with files that are too small for
// all: for the race detector, and for reads during moves.
func TestReadsWhileEntriesMove(t *testing.T) {
	s := mustOpen(t, Config{Quota: 60_000}, NewDisk(1))
	var wg sync.WaitGroup
	for w := range byte(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 3))
			var mine []uint64
			blobs := map[uint64][]byte{}
			for i := range uint64(300) {
				e := entry(queue(w), testSizes[rng.IntN(3)], i)
				if stored, err := s.Put(t.Context(), []Entry{e}); err == nil {
					mine = append(mine, stored[0].ID)
					blobs[stored[0].ID] = e.Blob
				} else if !errors.Is(err, ErrFull) {
					t.Errorf("Put: %v", err)
				}
				for len(mine) > 8 {
					at := rng.IntN(len(mine))
					if err := s.Delete(t.Context(), queue(w), mine[at]); err != nil {
						t.Errorf("Delete: %v", err)
					}
					mine = slices.Delete(mine, at, at+1)
				}
				for _, id := range mine {
					wantRead(t, s, queue(w), id, blobs[id])
				}
			}
		})
	}
	wg.Wait()
}
