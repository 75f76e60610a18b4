package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"starling/protocol/identity"
)

// A medium is what a database lives on, for the tests that both engines pass.
type medium interface {
	open(cfg Config) (*DB, error)
	// crash returns the medium as a crash of the process would leave it now.
	crash(t testing.TB) medium
}

type memoryMedium struct{ disk *Disk }

func (m memoryMedium) open(cfg Config) (*DB, error) { return OpenMemory(cfg, m.disk) }
func (m memoryMedium) crash(testing.TB) medium      { m.disk.Crash(); return m }

type diskMedium struct{ dir string }

func (m diskMedium) open(cfg Config) (*DB, error) {
	cfg.Dir = m.dir
	return Open(cfg)
}

func (m diskMedium) crash(t testing.TB) medium {
	dir := t.TempDir()
	copyFolder(t, m.dir, dir)
	return diskMedium{dir}
}

// copyFolder copies a tree of files, holes included.
func copyFolder(t testing.TB, from, to string) {
	t.Helper()
	zero := make([]byte, 64<<10)
	if err := filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.Create(filepath.Join(to, name))
		if err != nil {
			return err
		}
		defer out.Close()
		buf, at := make([]byte, len(zero)), int64(0)
		for {
			n, err := io.ReadFull(in, buf)
			if !bytes.Equal(buf[:n], zero[:n]) {
				if _, err := out.WriteAt(buf[:n], at); err != nil {
					return err
				}
			}
			at += int64(n)
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return out.Truncate(at)
			} else if err != nil {
				return err
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// both runs a test on either engine.
func both(t *testing.T, fn func(t *testing.T, m medium)) {
	t.Run("engine=memory", func(t *testing.T) { fn(t, memoryMedium{NewDisk()}) })
	t.Run("engine=badger", func(t *testing.T) { fn(t, diskMedium{t.TempDir()}) })
}

func testConfig() Config { return Config{Key: Key{b: [KeySize]byte{1, 2, 3}}} }

func mustOpen(t testing.TB, m medium) *DB {
	t.Helper()
	db, err := m.open(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func mustUpdate(t testing.TB, db *DB, fn func(tx *Tx) error) {
	t.Helper()
	if err := db.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func mustClose(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func putMeta(tx *Tx, name, data string) error {
	return Meta.Put(tx, MetaKey(name), &Blob{Data: []byte(data)})
}

// meta returns a Meta row's data in quotes, or what went wrong.
func meta(db *DB, name string) (s string) {
	if err := db.View(func(tx *Tx) error {
		row, err := Meta.Get(tx, MetaKey(name))
		if err == nil {
			s = fmt.Sprintf("%q", row.Data)
		}
		return err
	}); err != nil {
		return err.Error()
	}
	return s
}

func wantMeta(t testing.TB, db *DB, name, want string) {
	t.Helper()
	if want == "" {
		want = ErrNotFound.Error()
	} else {
		want = fmt.Sprintf("%q", want)
	}
	if got := meta(db, name); got != want {
		t.Errorf("row %q is %s, want %s", name, got, want)
	}
}

func account(b byte) identity.Account { return identity.Account{b} }

func TestTablesAreNumberedInOrder(t *testing.T) {
	last := byte(0)
	for _, tab := range all {
		if tab.id <= last {
			t.Errorf("table %s has ID %d, behind %d in the list", tab.name, tab.id, last)
		}
		last = tab.id
		if tab.dies != nil && tab.pause == 0 {
			t.Errorf("table %s has rows that die and no pause", tab.name)
		}
	}
}

func TestRowsSurvive(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		db := mustOpen(t, m)
		k := SessionKey(account(1), identity.Device{2}, [32]byte{3})
		mustUpdate(t, db, func(tx *Tx) error {
			if _, err := Sessions.Get(tx, k); !errors.Is(err, ErrNotFound) {
				t.Errorf("Get of no row: %v, want ErrNotFound", err)
			}
			if err := Sessions.Put(tx, k, &Session{Created: 7}); err != nil {
				return err
			}
			if row, err := Sessions.Get(tx, k); err != nil || row.Created != 7 {
				t.Errorf("Get within the update: %v, %v", row, err)
			}
			return Selves.Put(tx, SelfKey(), &Self{}) // a row may be empty
		})
		check := func(db *DB) {
			t.Helper()
			if err := db.View(func(tx *Tx) error {
				if row, err := Sessions.Get(tx, k); err != nil || row.Created != 7 {
					t.Errorf("Get: %v, %v", row, err)
				}
				if ok, err := Selves.Has(tx, SelfKey()); !ok || err != nil {
					t.Errorf("Has of an empty row: %v, %v", ok, err)
				}
				_, err := Selves.Get(tx, SelfKey())
				return err
			}); err != nil {
				t.Error(err)
			}
			if db.RolledBack() {
				t.Error("RolledBack without cause")
			}
		}
		check(db)
		crashed := m.crash(t)
		mustClose(t, db)
		db = mustOpen(t, crashed)
		check(db)
		mustClose(t, db)
		db = mustOpen(t, crashed)
		check(db)
		mustUpdate(t, db, func(tx *Tx) error { return Sessions.Delete(tx, k) })
		mustClose(t, db)
		db = mustOpen(t, crashed)
		if err := db.View(func(tx *Tx) error { _, err := Sessions.Get(tx, k); return err }); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get of a deleted row: %v, want ErrNotFound", err)
		}
	})
}

// TestScanAgreesWithModel compares scans with a sorted map: under random
// prefixes and starting points, both ways, over committed and uncommitted rows.
func TestScanAgreesWithModel(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		rng := rand.New(rand.NewPCG(1, 2))
		name := func() string { // few letters and lengths, so that prefixes are shared
			b := make([]byte, 1+rng.IntN(4))
			for i := range b {
				b[i] = "\x00ab\xff"[rng.IntN(4)]
			}
			return string(b)
		}
		db := mustOpen(t, m)
		model := map[string]string{}
		for round := range 150 {
			next := map[string]string{}
			for k, v := range model {
				next[k] = v
			}
			keep := errors.New("discard")
			if rng.IntN(3) > 0 {
				keep = nil
			}
			err := db.Update(func(tx *Tx) error {
				for i := range rng.IntN(6) {
					k := name()
					if rng.IntN(3) == 0 {
						delete(next, k)
						if err := Meta.Delete(tx, MetaKey(k)); err != nil {
							return err
						}
						continue
					}
					v := fmt.Sprint(round, i)
					next[k] = v
					if err := putMeta(tx, k, v); err != nil {
						return err
					}
				}
				checkScan(t, tx, next, rng, name)
				return keep
			})
			if err != keep {
				t.Fatal(err)
			}
			if keep == nil {
				model = next
			}
			if err := db.View(func(tx *Tx) error { checkScan(t, tx, model, rng, name); return nil }); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func checkScan(t *testing.T, tx *Tx, model map[string]string, rng *rand.Rand, name func() string) {
	t.Helper()
	prefix := name()[:rng.IntN(2)]
	var from RowKey
	if rng.IntN(2) == 0 {
		from = RowKey(name())
	}
	backward := rng.IntN(2) == 0
	var want []string
	for k, v := range model {
		if strings.HasPrefix(k, prefix) && (from == nil || !backward && k >= string(from) || backward && k <= string(from)) {
			want = append(want, k+"="+v)
		}
	}
	slices.SortFunc(want, func(a, b string) int { return strings.Compare(a[:strings.Index(a, "=")], b[:strings.Index(b, "=")]) })
	scan := Meta.Scan
	if backward {
		slices.Reverse(want)
		scan = Meta.ScanBack
	}
	stop := rng.IntN(len(want) + 3) // sometimes early
	if stop < len(want) {
		want = want[:stop]
	}
	var got []string
	for row, err := range scan(tx, RowKey(prefix), from) {
		if len(got) == stop {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(row.Key)+"="+string(row.Value.Data))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("scan under %q from %q, backward %v:\n got %q\nwant %q", prefix, from, backward, got, want)
	}
}

func TestScanMayChangeItsRows(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		db := mustOpen(t, m)
		put := func(tx *Tx, from, to uint64) error {
			for i := from; i < to; i++ {
				if err := Journal.Put(tx, JournalKey(i), &Event{Type: "x"}); err != nil {
					return err
				}
			}
			return nil
		}
		mustUpdate(t, db, func(tx *Tx) error { return put(tx, 0, 10) })
		n := 0
		mustUpdate(t, db, func(tx *Tx) error {
			if err := put(tx, 10, 20); err != nil {
				return err
			}
			for row, err := range Journal.Scan(tx, nil, nil) {
				if err != nil {
					return err
				}
				if row.Key.Order() != uint64(n) {
					t.Errorf("row %d has number %d", n, row.Key.Order())
				}
				n++
				if err := errors.Join(Journal.Delete(tx, row.Key), Journal.Put(tx, JournalKey(100+row.Key.Order()), row.Value)); err != nil {
					return err
				}
			}
			return nil
		})
		if n != 20 {
			t.Errorf("the scan saw %d rows, want 20", n)
		}
		if err := db.View(func(tx *Tx) error {
			for row, err := range Journal.ScanBack(tx, nil, nil) {
				if err != nil || row.Key.Order() != uint64(99+n) {
					t.Fatalf("last row is %d (%v), want %d", row.Key.Order(), err, 99+n)
				}
				n--
			}
			return nil
		}); err != nil || n != 0 {
			t.Errorf("%d rows missing (%v)", n, err)
		}
	})
}

func TestUpdateErrorDiscardsItsOwnWritesOnly(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		db := mustOpen(t, m)
		oops := errors.New("oops")
		mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "a", "1") })
		hooked := ""
		if err := db.Update(func(tx *Tx) error {
			tx.OnCommit(func() { hooked += "x" })
			return errors.Join(putMeta(tx, "a", "2"), oops)
		}); !errors.Is(err, oops) {
			t.Errorf("Update: %v, want %v", err, oops)
		}
		mustUpdate(t, db, func(tx *Tx) error {
			tx.OnCommit(func() { hooked += "1" })
			if err := putMeta(tx, "b", "1"); err != nil {
				return err
			}
			if err := tx.Try(func(tx *Tx) error {
				tx.OnCommit(func() { hooked += "x" })
				return errors.Join(putMeta(tx, "b", "2"), putMeta(tx, "c", "2"), Meta.Delete(tx, MetaKey("a")), oops)
			}); !errors.Is(err, oops) {
				t.Errorf("Try: %v, want %v", err, oops)
			}
			if err := tx.Try(func(tx *Tx) error {
				tx.OnCommit(func() { hooked += "2" })
				return putMeta(tx, "d", "1")
			}); err != nil {
				return err
			}
			tx.OnCommit(func() { hooked += "3" })
			return nil
		})
		wantMeta(t, db, "a", "1")
		wantMeta(t, db, "b", "1")
		wantMeta(t, db, "c", "")
		wantMeta(t, db, "d", "1")
		if hooked != "123" {
			t.Errorf("hooks ran as %q, want %q", hooked, "123")
		}
	})
}

// TestUpdatesShareACommit holds the writer in one update while others queue:
// they run in one group, in which each sees the one before and a failing one
// harms nobody.
func TestUpdatesShareACommit(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		synctest.Test(t, func(t *testing.T) {
			db, err := m.open(testConfig())
			if err != nil {
				t.Fatal(err)
			}
			hold := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				mustUpdate(t, db, func(tx *Tx) error { <-hold; return putMeta(tx, "n", "0") })
			})
			synctest.Wait()
			before := db.count
			var failed atomic.Int32
			oops := errors.New("oops")
			for i := range 50 {
				wg.Go(func() {
					err := db.Update(func(tx *Tx) error {
						row, err := Meta.Get(tx, MetaKey("n"))
						if err != nil {
							return err
						}
						n := 0
						fmt.Sscan(string(row.Data), &n)
						return errors.Join(putMeta(tx, "n", fmt.Sprint(n+1)), map[bool]error{true: oops}[i%10 == 0])
					})
					if errors.Is(err, oops) {
						failed.Add(1)
					} else if err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			close(hold)
			wg.Wait()
			wantMeta(t, db, "n", "45")
			if failed.Load() != 5 {
				t.Errorf("%d updates failed, want 5", failed.Load())
			}
			mustClose(t, db)
			if got := db.count - before; got != 1 {
				t.Errorf("51 updates took %d commits, want 1", got)
			}
		})
	})
}

func TestPanicReachesTheCaller(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		db := mustOpen(t, m)
		func() {
			defer func() {
				if p := recover(); p != "boom" {
					t.Errorf("recovered %v, want boom", p)
				}
			}()
			db.Update(func(tx *Tx) error {
				if err := putMeta(tx, "a", "1"); err != nil {
					return err
				}
				panic("boom")
			})
		}()
		done := make(chan struct{})
		go func() {
			defer close(done)
			db.Update(func(tx *Tx) error {
				defer runtime.Goexit()
				return putMeta(tx, "b", "1")
			})
			t.Error("Update returned although its function ended the goroutine")
		}()
		<-done
		mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "c", "1") })
		wantMeta(t, db, "a", "")
		wantMeta(t, db, "b", "")
		wantMeta(t, db, "c", "1")
	})
}

func TestViewSeesOneState(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		db := mustOpen(t, m)
		mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "a", "1") })
		if err := db.View(func(tx *Tx) error {
			mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "a", "2") })
			row, err := Meta.Get(tx, MetaKey("a"))
			if err == nil && string(row.Data) != "1" {
				t.Errorf("a view that began before an update reads %q", row.Data)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		wantMeta(t, db, "a", "2")
	})
}

func TestBigUpdates(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		db := mustOpen(t, m)
		value := bytes.Repeat([]byte("x"), 128<<10)
		mustUpdate(t, db, func(tx *Tx) error { // values as large as any row
			for i := range 8 {
				if err := Meta.Put(tx, MetaKey(fmt.Sprint("big", i)), &Blob{Data: value}); err != nil {
					return err
				}
			}
			return nil
		})
		mustUpdate(t, db, func(tx *Tx) error { // many small rows
			for i := range uint64(1 << 20 / 256) {
				if err := History.Put(tx, HistoryKey(account(1), i), &Entry{Text: string(value[:256])}); err != nil {
					return err
				}
			}
			return nil
		})
		wrote := 0
		mustUpdate(t, db, func(tx *Tx) error { // as many as fit, tiny and secret
			for {
				err := SkippedKeys.Put(tx, SkippedKey([32]byte{1}, [32]byte{}, uint32(wrote)), &Skipped{})
				if errors.Is(err, ErrTooBig) {
					return nil
				} else if err != nil {
					return err
				}
				wrote++
			}
		})
		// Updates that fit alone but not together are split, not refused.
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				mustUpdate(t, db, func(tx *Tx) error {
					for k := range 6 {
						if err := Meta.Put(tx, MetaKey(fmt.Sprint("many", i, k)), &Blob{Data: value}); err != nil {
							return err
						}
					}
					return nil
				})
			})
		}
		wg.Wait()
		mustClose(t, db)
		db = mustOpen(t, m)
		count := func(prefix string) (n int) {
			if err := db.View(func(tx *Tx) error {
				for row, err := range Meta.Scan(tx, RowKey(prefix), nil) {
					if err != nil || !bytes.Equal(row.Value.Data, value) {
						t.Errorf("row %s differs (%v)", row.Key, err)
					}
					n++
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			return n
		}
		if got := count("big"); got != 8 {
			t.Errorf("%d large rows, want 8", got)
		}
		if got := count("many"); got != 72 {
			t.Errorf("%d rows of concurrent updates, want 72", got)
		}
		n, skipped := 0, 0
		if err := db.View(func(tx *Tx) error {
			for _, err := range History.Scan(tx, nil, nil) {
				n++
				if err != nil {
					return err
				}
			}
			for _, err := range SkippedKeys.Scan(tx, nil, nil) {
				skipped++
				if err != nil {
					return err
				}
			}
			return nil
		}); err != nil || n != 4096 || skipped != wrote || wrote < 5000 {
			t.Errorf("%d lines and %d of %d skipped keys (%v), want 4096 and all", n, skipped, wrote, err)
		}
	})
}

// TestCloseRefusesWaitingUpdates: whoever waits while Close runs gets ErrClosed
// or is committed; a view that runs is waited for.
func TestCloseRefusesWaitingUpdates(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		synctest.Test(t, func(t *testing.T) {
			db, err := m.open(testConfig())
			if err != nil {
				t.Fatal(err)
			}
			hold, view := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			var committed atomic.Int32
			wg.Go(func() {
				mustUpdate(t, db, func(tx *Tx) error { <-hold; return putMeta(tx, "first", "1") })
			})
			wg.Go(func() {
				if err := db.View(func(tx *Tx) error { <-view; _, err := Meta.Has(tx, MetaKey("first")); return err }); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
			for i := range 20 {
				wg.Go(func() {
					switch err := db.Update(func(tx *Tx) error { return putMeta(tx, fmt.Sprint("w", i), "1") }); {
					case err == nil:
						committed.Add(1)
					case !errors.Is(err, ErrClosed):
						t.Errorf("Update while closing: %v", err)
					}
				})
			}
			synctest.Wait()
			closed := make(chan struct{})
			for range 2 {
				wg.Go(func() {
					if err := db.Close(); err != nil {
						t.Error(err)
					}
					closed <- struct{}{}
				})
			}
			synctest.Wait()
			close(hold)
			synctest.Wait()
			select {
			case <-closed:
				t.Error("Close returned while a view ran")
			default:
			}
			close(view)
			<-closed
			<-closed
			wg.Wait()
			if err := db.Update(func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
				t.Errorf("Update after Close: %v", err)
			}
			if err := db.View(func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
				t.Errorf("View after Close: %v", err)
			}
			if db, err = m.open(testConfig()); err != nil {
				t.Fatal(err)
			}
			wantMeta(t, db, "first", "1")
			n := int32(0)
			for i := range 20 {
				if meta(db, fmt.Sprint("w", i)) == `"1"` {
					n++
				}
			}
			if n != committed.Load() {
				t.Errorf("%d updates returned nil, %d are there", committed.Load(), n)
			}
			mustClose(t, db)
		})
	})
}

func TestOpenRefusesWrongKeyAndSecondUser(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		db := mustOpen(t, m)
		mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "a", "1") })
		_, err := m.open(testConfig())
		if !errors.Is(err, ErrLocked) {
			t.Errorf("second Open: %v, want ErrLocked", err)
		}
		if _, ok := m.(diskMedium); ok && !strings.Contains(fmt.Sprint(err), fmt.Sprintf("pid %d", os.Getpid())) {
			t.Errorf("second Open: %v, want our process ID", err)
		}
		mustClose(t, db)
		for range 2 {
			if _, err := m.open(Config{}); !errors.Is(err, ErrKey) {
				t.Errorf("Open with another key: %v, want ErrKey", err)
			}
		}
		db = mustOpen(t, m)
		wantMeta(t, db, "a", "1")
		if db.RolledBack() {
			t.Error("RolledBack after a wrong key")
		}
	})
}

func TestOpenRefusesNewerSchema(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		db := mustOpen(t, m)
		mustUpdate(t, db, func(tx *Tx) error { tx.setInternal(rowSchema, schema+1); return nil })
		mustClose(t, db)
		if _, err := m.open(testConfig()); !errors.Is(err, ErrNewer) {
			t.Errorf("Open: %v, want ErrNewer", err)
		}
	})
}

// TestFlippedBitIsDetected flips every bit of a value in each engine, and moves
// a value to another key: nothing of it is ever read as data.
func TestFlippedBitIsDetected(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		db := mustOpen(t, m)
		plain, secret := MetaKey("a"), SkippedKey([32]byte{1}, [32]byte{2}, 3)
		mustUpdate(t, db, func(tx *Tx) error {
			return errors.Join(putMeta(tx, "a", "text"), putMeta(tx, "b", "text"),
				SkippedKeys.Put(tx, secret, &Skipped{Key: []byte("key")}))
		})
		mustClose(t, db) // the engine is ours now
		db, err := m.open(testConfig())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		stored := func(place string) []byte {
			s, err := db.engine.snapshot()
			if err != nil {
				t.Fatal(err)
			}
			defer s.discard()
			b, err := s.get(place)
			if err != nil || b == nil {
				t.Fatal(b, err)
			}
			return b
		}
		read := func() (e1, e2 error) {
			if err := db.View(func(tx *Tx) error {
				_, e1 = Meta.Get(tx, plain)
				_, e2 = SkippedKeys.Get(tx, secret)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return e1, e2
		}
		if e1, e2 := read(); e1 != nil || e2 != nil {
			t.Fatal(e1, e2)
		}
		a, s := Meta.t.place(plain), SkippedKeys.t.place(secret)
		good1, good2 := stored(a), stored(s)
		step := 1
		if _, ok := m.(diskMedium); ok {
			step = 7 // each is a sync
		}
		for bit := 0; bit < 8*max(len(good1), len(good2)); bit += step {
			bad1, bad2 := bytes.Clone(good1), bytes.Clone(good2)
			bad1[bit/8%len(bad1)] ^= 1 << (bit % 8)
			bad2[bit/8%len(bad2)] ^= 1 << (bit % 8)
			if err := db.engine.commit([]op{{a, bad1}, {s, bad2}}); err != nil {
				t.Fatal(err)
			}
			if e1, e2 := read(); !errors.Is(e1, ErrDamaged) || !errors.Is(e2, ErrDamaged) {
				t.Fatalf("bit %d flipped: %v and %v, want ErrDamaged", bit, e1, e2)
			}
		}
		if e1, _ := read(); strings.Contains(e1.Error(), "\"a\"") || !strings.Contains(e1.Error(), "meta") {
			t.Errorf("the error %q should name the table and not the key", e1)
		}
		for _, cut := range []int{0, 1, 39, len(good1) - 1} {
			if err := db.engine.commit([]op{{a, append([]byte{}, good1[:cut]...)}}); err != nil {
				t.Fatal(err)
			}
			if e1, _ := read(); !errors.Is(e1, ErrDamaged) {
				t.Errorf("cut to %d bytes: %v", cut, e1)
			}
		}
		// A scan says which row is bad and goes on.
		if err := db.engine.commit([]op{{a, stored(Meta.t.place(MetaKey("b")))}, {s, good2}}); err != nil {
			t.Fatal(err)
		}
		var got []string
		if err := db.View(func(tx *Tx) error {
			for row, err := range Meta.Scan(tx, nil, nil) {
				got = append(got, fmt.Sprint(string(row.Key), errors.Is(err, ErrDamaged)))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if want := []string{"atrue", "bfalse"}; !slices.Equal(got, want) {
			t.Errorf("scan over a moved value: %q, want %q", got, want)
		}
	})
}

func TestFailedCommitKeepsNothing(t *testing.T) {
	disk := NewDisk()
	db := mustOpen(t, memoryMedium{disk})
	mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "a", "1") })
	disk.Fail(ErrFull)
	hooked := false
	if err := db.Update(func(tx *Tx) error {
		tx.OnCommit(func() { hooked = true })
		return putMeta(tx, "a", "2")
	}); !errors.Is(err, ErrFull) {
		t.Errorf("Update on a full disk: %v, want ErrFull", err)
	}
	disk.Fail(nil)
	wantMeta(t, db, "a", "1")
	mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "b", "1") })
	disk.setFault(func(step string) error {
		if step == "sync" {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
	err := db.Update(func(tx *Tx) error { return putMeta(tx, "a", "3") })
	if !errors.Is(err, ErrReopen) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Update on a broken disk: %v, want ErrReopen and the cause", err)
	}
	disk.setFault(nil)
	if err := db.Update(func(tx *Tx) error { return putMeta(tx, "c", "3") }); !errors.Is(err, ErrReopen) {
		t.Errorf("Update after a failed sync: %v, want ErrReopen", err)
	}
	disk.Crash()
	if err := db.Update(func(tx *Tx) error { return nil }); err == nil {
		t.Error("Update on a crashed disk succeeded")
	}
	mustClose(t, db)
	db = mustOpen(t, memoryMedium{disk})
	wantMeta(t, db, "a", "1")
	wantMeta(t, db, "b", "1")
	wantMeta(t, db, "c", "")
	if hooked || db.RolledBack() {
		t.Errorf("hook ran: %v; rolled back: %v", hooked, db.RolledBack())
	}
}

// ids returns the rows of a table, by the one byte of their keys that is not 0.
func ids[T any, P message[T]](t *testing.T, db *DB, table Table[T, P]) (ids []byte) {
	t.Helper()
	if err := db.View(func(tx *Tx) error {
		for r, err := range table.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			ids = append(ids, bytes.Trim(r.Key, "\x00")...)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return ids
}

// TestSweep lets rows die in virtual time, with what hangs on them: by the wall
// clock that the database was given, which is wrong.
func TestSweep(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		synctest.Test(t, func(t *testing.T) {
			cfg := testConfig()
			cfg.Now = func() time.Time { return time.Now().Add(-77 * time.Hour) }
			db, err := m.open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ran := make(chan error, 1)
			go func() { ran <- db.Run(ctx) }()
			start := cfg.Now()
			in := func(d time.Duration) int64 { return start.Add(d).UnixMilli() }
			live, dead := [32]byte{1}, [32]byte{2}
			keyOf := func(id [32]byte) RowKey { return SessionKey(account(1), identity.Device{1}, id) }
			mustUpdate(t, db, func(tx *Tx) error {
				for i := range 3 * sweepChunk {
					if err := SeenIDs.Put(tx, SeenKey(account(1), [16]byte{byte(i), byte(i >> 8)}), &Seen{Dies: in(time.Duration(1+i%2*99) * time.Hour)}); err != nil {
						return err
					}
				}
				for i := range uint32(10) {
					if err := errors.Join(
						SkippedKeys.Put(tx, SkippedKey(live, [32]byte{}, i), &Skipped{Dies: in(time.Duration(1+i/4*9999) * time.Hour)}),
						SkippedKeys.Put(tx, SkippedKey(dead, [32]byte{}, i), &Skipped{Dies: in(9999 * time.Hour)})); err != nil {
						return err
					}
				}
				return errors.Join(
					PreKeys.Put(tx, PreKeyKey([16]byte{1}), &PreKey{Dies: in(10 * time.Minute)}),
					PreKeys.Put(tx, PreKeyKey([16]byte{2}), &PreKey{}),
					SealingKeys.Put(tx, SealingKeyKey(1), &SealingKey{Dies: in(time.Hour)}),
					SealingKeys.Put(tx, SealingKeyKey(2), &SealingKey{}), // no successor yet
					SeenSealed.Put(tx, SeenSealedKey([32]byte{1}), &Seen{Dies: in(time.Hour)}),
					SeenSealed.Put(tx, SeenSealedKey([32]byte{2}), &Seen{Dies: in(9999 * time.Hour)}),
					PoolKeys.Put(tx, PoolKeyKey([16]byte{1}), &PoolKey{Dies: in(time.Hour)}),
					PoolKeys.Put(tx, PoolKeyKey([16]byte{2}), &PoolKey{Dies: in(9999 * time.Hour)}),
					UsedOneTime.Put(tx, PoolKeyKey([16]byte{1}), &UsedKey{Dies: in(time.Hour)}),
					UsedOneTime.Put(tx, PoolKeyKey([16]byte{2}), &UsedKey{Dies: in(9999 * time.Hour)}),
					Sessions.Put(tx, keyOf(live), &Session{Skipped: 10}),
					Sessions.Put(tx, keyOf(dead), &Session{Skipped: 10, Archived: start.UnixMilli()}),
					SessionOwners.Put(tx, SessionOwnerKey(live), &Blob{Data: keyOf(live)}),
					SessionOwners.Put(tx, SessionOwnerKey(dead), &Blob{Data: keyOf(dead)}))
			})
			count := func() (prekeys, seen, sessions, owners, skipped int) {
				if err := db.View(func(tx *Tx) error {
					for range PreKeys.Scan(tx, nil, nil) {
						prekeys++
					}
					for range SeenIDs.Scan(tx, nil, nil) {
						seen++
					}
					for range Sessions.Scan(tx, nil, nil) {
						sessions++
					}
					for range SessionOwners.Scan(tx, nil, nil) {
						owners++
					}
					for range SkippedKeys.Scan(tx, nil, nil) {
						skipped++
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				return
			}
			want := func(after time.Duration, prekeys, seen, sessions, owners, skipped int) {
				t.Helper()
				time.Sleep(start.Add(after).Sub(cfg.Now()))
				synctest.Wait()
				p, s, n, o, k := count()
				if p != prekeys || s != seen || n != sessions || o != owners || k != skipped {
					t.Errorf("after %v: %d prekeys, %d seen, %d sessions, %d owners, %d skipped; want %d, %d, %d, %d, %d",
						after, p, s, n, o, k, prekeys, seen, sessions, owners, skipped)
				}
			}
			want(9*time.Minute, 2, 3*sweepChunk, 2, 2, 20)
			want(12*time.Minute, 1, 3*sweepChunk, 2, 2, 20)
			want(3*time.Hour, 1, 3*sweepChunk/2, 2, 2, 16)
			for name, left := range map[string][]byte{
				"sealing keys": ids(t, db, SealingKeys), "sealed envelopes": ids(t, db, SeenSealed),
				"keys of pools": ids(t, db, PoolKeys), "used keys": ids(t, db, UsedOneTime),
			} {
				if string(left) != "\x02" {
					t.Errorf("%s: %v are left, want the second", name, left)
				}
			}
			if err := db.View(func(tx *Tx) error {
				s, err := Sessions.Get(tx, keyOf(live))
				if err == nil && (s.Skipped != 6 || s.Forgotten != 4) {
					t.Errorf("the session counts %d skipped keys and %d forgotten, want 6 and 4", s.Skipped, s.Forgotten)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
			if _, ok := m.(memoryMedium); !ok {
				cancel() // badger's tickers make days of virtual time minutes of real time
				<-ran
				mustClose(t, db)
				return
			}
			want(15*24*time.Hour-time.Hour, 1, 0, 2, 2, 16)
			want(15*24*time.Hour+2*time.Hour, 1, 0, 1, 1, 6)
			cancel()
			if err := <-ran; err != nil {
				t.Errorf("Run: %v", err)
			}
			mustClose(t, db)
		})
	})
}

// The digest of a transaction tells every write, and nothing that Try undid.
func TestTxDigest(t *testing.T) {
	db, err := OpenMemory(Config{}, NewDisk())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	a, b := RowKey("a"), RowKey("b")
	err = db.Update(func(tx *Tx) error {
		seen := [][32]byte{tx.Digest()}
		for i, write := range []func() error{
			func() error { return Meta.Put(tx, a, &Blob{Data: []byte("x")}) },
			func() error { return Meta.Put(tx, a, &Blob{Data: []byte("y")}) },
			func() error { return Meta.Delete(tx, b) },
			func() error { return Meta.Put(tx, b, &Blob{}) },
			func() error { return Names.Delete(tx, a) },
		} {
			undone := errors.New("undone")
			if err := tx.Try(func(*Tx) error { return errors.Join(write(), undone) }); !errors.Is(err, undone) || tx.Digest() != seen[i] {
				t.Errorf("write %d was undone and the digest tells of it: %v", i, err)
			}
			if err := write(); err != nil {
				return err
			}
			d := tx.Digest()
			if slices.Contains(seen, d) {
				t.Errorf("write %d left the digest as it was once before", i)
			}
			seen = append(seen, d)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
