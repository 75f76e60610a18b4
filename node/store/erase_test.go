package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"starling/protocol/identity"
)

var errCrash = errors.New("injected crash")

func sessionAt(i byte) RowKey { return SessionKey(account(1), identity.Device{2}, [32]byte{i}) }

// TestEraseKeyIsReplacedAfterActivity: every EraseEvery, but only if a secret
// table changed.
func TestEraseKeyIsReplacedAfterActivity(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		synctest.Test(t, func(t *testing.T) {
			cfg := testConfig()
			cfg.EraseEvery = 20 * time.Minute
			db, err := m.open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ran := make(chan error, 1)
			go func() { ran <- db.Run(ctx) }()
			id := func() uint64 { return db.ring.Load().keys[0].id }
			step := func(what string, changes bool, update func(tx *Tx) error) {
				t.Helper()
				before := id()
				if update != nil {
					mustUpdate(t, db, update)
				}
				time.Sleep(19 * time.Minute)
				synctest.Wait()
				if id() != before {
					t.Errorf("%s: key replaced too early", what)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if (id() != before) != changes {
					t.Errorf("%s: key replaced: %v, want %v", what, id() != before, changes)
				}
				if n := len(db.ring.Load().keys); n != 1 {
					t.Errorf("%s: %d keys in the ring", what, n)
				}
			}
			time.Sleep(time.Second)
			step("nothing happened", false, nil)
			step("a row in the clear", false, func(tx *Tx) error { return putMeta(tx, "a", "1") })
			step("a secret row", true, func(tx *Tx) error { return Sessions.Put(tx, sessionAt(1), &Session{Created: 1}) })
			step("only the rotation itself", false, nil)
			step("a secret deleted", true, func(tx *Tx) error { return Sessions.Delete(tx, sessionAt(2)) })
			cancel()
			if err := <-ran; err != nil {
				t.Errorf("Run: %v", err)
			}
			mustUpdate(t, db, func(tx *Tx) error { return Sessions.Delete(tx, sessionAt(2)) })
			before := id()
			mustClose(t, db)
			if db, err = m.open(cfg); err != nil {
				t.Fatal(err)
			}
			if id() == before {
				t.Error("Close did not replace the key after activity")
			}
			before = id()
			mustClose(t, db)
			if db, err = m.open(cfg); err != nil {
				t.Fatal(err)
			}
			if id() != before {
				t.Error("Close replaced the key without activity")
			}
			if row, err := get(db, Sessions, sessionAt(1)); err != nil || row.Created != 1 {
				t.Errorf("the session after all: %v, %v", row, err)
			}
			mustClose(t, db)
		})
	})
}

func get[T any, P message[T]](db *DB, tab Table[T, P], k RowKey) (row P, err error) {
	err = db.View(func(tx *Tx) error { row, err = tab.Get(tx, k); return err })
	return row, err
}

// TestDeletedSecretsStayClosed keeps every sealed byte that ever was, as an LSM
// tree does, and the erase file after a rotation: a deleted row does not open.
func TestDeletedSecretsStayClosed(t *testing.T) {
	both(t, func(t *testing.T, m medium) {
		db := mustOpen(t, m)
		place := Sessions.t.place(sessionAt(1))
		mustUpdate(t, db, func(tx *Tx) error { return Sessions.Put(tx, sessionAt(1), &Session{State: []byte("chain key")}) })
		s, err := db.engine.snapshot()
		if err != nil {
			t.Fatal(err)
		}
		old, err := s.get(place)
		s.discard()
		if err != nil || old == nil {
			t.Fatal(old, err)
		}
		if b, err := db.openRow(db.ring.Load(), place, bytes.Clone(old)); err != nil || !bytes.Contains(b, []byte("chain key")) {
			t.Fatalf("the row as stored: %q, %v", b, err)
		}
		mustUpdate(t, db, func(tx *Tx) error { return Sessions.Delete(tx, sessionAt(1)) })
		if err := db.rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		r, err := db.readRing()
		if err != nil {
			t.Fatal(err)
		}
		if b, err := db.openRow(r, place, bytes.Clone(old)); !errors.Is(err, ErrDamaged) {
			t.Errorf("the deleted row opens after rotation: %q, %v", b, err)
		}
	})
}

// TestRotationSurvivesACrashAtEveryStep fails the n-th step that writes, for
// every n, crashes there, and opens again: rows are all there and nothing is
// taken for a rollback; then it rotates to the end.
func TestRotationSurvivesACrashAtEveryStep(t *testing.T) {
	const rows = 2*sweepChunk + 10
	fill := func(tx *Tx) error {
		for i := range uint32(rows) {
			if err := SkippedKeys.Put(tx, SkippedKey([32]byte{1}, [32]byte{}, i), &Skipped{Key: fmt.Append(nil, i)}); err != nil {
				return err
			}
		}
		return Sessions.Put(tx, sessionAt(1), &Session{Created: 1})
	}
	check := func(t *testing.T, db *DB, n int) {
		t.Helper()
		if db.RolledBack() {
			t.Fatalf("crash at step %d: taken for a rollback", n)
		}
		got := 0
		if err := db.View(func(tx *Tx) error {
			for row, err := range SkippedKeys.Scan(tx, nil, nil) {
				if err != nil || string(row.Value.Key) != fmt.Sprint(got) {
					return fmt.Errorf("row %d: %v: %w", got, row.Value, err)
				}
				got++
			}
			_, err := Sessions.Get(tx, sessionAt(1))
			return err
		}); err != nil || got != rows {
			t.Fatalf("crash at step %d: %d rows (%v), want %d", n, got, err, rows)
		}
	}
	finish := func(t *testing.T, db *DB, n int) {
		t.Helper()
		if err := db.rotate(t.Context()); err != nil {
			t.Fatalf("crash at step %d: rotating afterwards: %v", n, err)
		}
		check(t, db, n)
		if r, err := db.readRing(); err != nil || len(r.keys) != 1 {
			t.Fatalf("crash at step %d: ring %v, %v", n, r, err)
		}
	}
	t.Run("engine=memory", func(t *testing.T) {
		for n := 0; ; n++ {
			disk := NewDisk()
			m := memoryMedium{disk}
			db := mustOpen(t, m)
			mustUpdate(t, db, fill)
			left := n
			disk.setFault(func(string) error {
				if left--; left < 0 {
					return errCrash
				}
				return nil
			})
			err := db.rotate(t.Context())
			disk.Crash()
			disk.setFault(nil)
			db.Close()
			db = mustOpen(t, m)
			check(t, db, n)
			finish(t, db, n)
			mustClose(t, db)
			if err == nil {
				if n < 8 {
					t.Errorf("a rotation took %d steps; are they all injected?", n)
				}
				return
			}
		}
	})
	// On disk the steps of replacing a file; those of a commit are badger's.
	t.Run("engine=badger", func(t *testing.T) {
		t.Parallel()
		for n := 0; ; n++ {
			m := diskMedium{t.TempDir()}
			db := mustOpen(t, m)
			mustUpdate(t, db, fill)
			left := n
			db.folder.(*diskFolder).fault = func(string) error {
				if left--; left < 0 {
					return errCrash
				}
				return nil
			}
			err := db.rotate(t.Context())
			crashed := m.crash(t)
			db.folder.(*diskFolder).fault = nil
			mustClose(t, db)
			db = mustOpen(t, crashed)
			check(t, db, n)
			finish(t, db, n)
			mustClose(t, db)
			if err == nil {
				if n != 8 {
					t.Errorf("a rotation replaces files in %d steps, want 8", n)
				}
				return
			}
		}
	})
}

// TestRollback puts back old copies of what a home folder holds, in every
// combination, and tells which are noticed.
func TestRollback(t *testing.T) {
	for _, test := range []struct {
		name    string
		old     []string // what comes from the old copy
		missing []string
		noticed bool
	}{
		{name: "nothing"},
		{name: "database", old: []string{nameRows}, noticed: true},
		{name: "database and erase file", old: []string{nameRows, fileErase}, noticed: true},
		{name: "erase file", old: []string{fileErase}, noticed: true}, // its keys are those of no row
		{name: "counter", old: []string{fileCount}},                   // it only lags behind
		{name: "everything", old: []string{nameRows, fileErase, fileCount}},
		{name: "database lost", missing: []string{nameRows}, noticed: true},
		{name: "erase file lost", missing: []string{fileErase}, noticed: true},
		{name: "counter lost", missing: []string{fileCount}, noticed: true},
		{name: "database old and counter lost", old: []string{nameRows}, missing: []string{fileCount}, noticed: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := diskMedium{t.TempDir()}
			old := t.TempDir()
			db := mustOpen(t, m)
			mustUpdate(t, db, func(tx *Tx) error {
				return errors.Join(Sessions.Put(tx, sessionAt(1), &Session{Created: 1}), putMeta(tx, "a", "old"), Selves.Put(tx, SelfKey(), &Self{Name: "me"}))
			})
			mustClose(t, db)
			copyFolder(t, m.dir, old)
			db = mustOpen(t, m)
			mustUpdate(t, db, func(tx *Tx) error {
				return errors.Join(Sessions.Put(tx, sessionAt(2), &Session{Created: 2}), putMeta(tx, "a", "new"))
			})
			mustClose(t, db)
			for _, name := range append(test.old, test.missing...) {
				if err := os.RemoveAll(filepath.Join(m.dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range test.old {
				if err := os.Rename(filepath.Join(old, name), filepath.Join(m.dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // it is reported until it is dealt with
				db = mustOpen(t, m)
				if db.RolledBack() != test.noticed {
					t.Fatalf("RolledBack: %v, want %v", db.RolledBack(), test.noticed)
				}
				for i := range byte(3) { // no row is damage: it is there or it is gone
					if row, err := get(db, Sessions, sessionAt(i)); err != nil && !errors.Is(err, ErrNotFound) {
						t.Errorf("session %d: %v, %v", i, row, err)
					}
				}
				if self, err := get(db, Selves, SelfKey()); test.name != "database lost" && (err != nil || self.Name != "me") {
					t.Errorf("the account is %v, %v", self, err)
				}
				mustUpdate(t, db, func(tx *Tx) error { return Sessions.Put(tx, sessionAt(0), &Session{}) })
				mustClose(t, db)
			}
			db = mustOpen(t, m)
			mustUpdate(t, db, func(tx *Tx) error { return tx.Recovered() })
			if db.RolledBack() {
				t.Error("RolledBack after Recovered")
			}
			mustClose(t, db)
			if db = mustOpen(t, m); db.RolledBack() {
				t.Error("RolledBack in the opening after Recovered")
			}
			if _, err := get(db, Sessions, sessionAt(0)); err != nil {
				t.Errorf("a session made after the rollback: %v", err)
			}
		})
	}
}

// TestRollbackOfARunningDatabase: the copy was made mid-run, without a clean
// close before or after.
func TestRollbackOfARunningDatabase(t *testing.T) {
	m := diskMedium{t.TempDir()}
	db := mustOpen(t, m)
	mustUpdate(t, db, func(tx *Tx) error { return Sessions.Put(tx, sessionAt(1), &Session{Created: 1}) })
	old := m.crash(t).(diskMedium)
	mustUpdate(t, db, func(tx *Tx) error { return Sessions.Put(tx, sessionAt(1), &Session{Created: 2}) })
	now := m.crash(t).(diskMedium)
	mustClose(t, db)
	db = mustOpen(t, diskMedium{copyOf(t, now.dir)})
	if db.RolledBack() {
		t.Error("RolledBack after a plain crash")
	}
	mustClose(t, db)
	if err := errors.Join(os.RemoveAll(filepath.Join(now.dir, nameRows)), os.Rename(filepath.Join(old.dir, nameRows), filepath.Join(now.dir, nameRows))); err != nil {
		t.Fatal(err)
	}
	db = mustOpen(t, now)
	if !db.RolledBack() {
		t.Error("one commit rolled back, and not noticed")
	}
	if row, err := get(db, Sessions, sessionAt(1)); err != nil || row.Created != 1 {
		t.Errorf("the old session still opens under the same erase key: %v, %v", row, err)
	}
}

func copyOf(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	copyFolder(t, dir, to)
	return to
}

// TestReplaceFileOverwritesWhatItReplaces reads the old file through a handle
// that outlives its name.
func TestReplaceFileOverwritesWhatItReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := replaceFile(path, []byte("secret"), nil); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := replaceFile(path, []byte("public"), nil); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 6)
	if _, err := old.ReadAt(b, 0); err != nil || !bytes.Equal(b, make([]byte, 6)) {
		t.Errorf("the replaced file still holds %q (%v)", b, err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "public" {
		t.Errorf("the file holds %q (%v)", b, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v)", info.Mode(), err)
	}
	if _, err := os.Stat(path + tempSuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary file is still there (%v)", err)
	}
}
