package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// A script is what a database goes through, and which of it was answered.
type script struct{ answered map[string]bool }

// run opens the database, writes in every way there is, and closes it. It stops
// at the first error.
func (s *script) run(m medium) error {
	s.answered = map[string]bool{}
	db, err := m.open(testConfig())
	if err != nil {
		return err
	}
	defer db.Close()
	for i := range 3 {
		name := fmt.Sprint("row ", i)
		err := db.Update(func(tx *Tx) error {
			// Two rows that must come and go together, one in a secret table.
			return errors.Join(putMeta(tx, name, "1"), SkippedKeys.Put(tx, SkippedKey([32]byte{1}, [32]byte{2}, uint32(i)), &Skipped{Key: []byte(name)}))
		})
		if err != nil {
			return err
		}
		s.answered[name] = true
		if err := db.rotate(context.Background()); err != nil {
			return err
		}
	}
	return db.Close()
}

// check opens the database again and holds it against what was answered.
func (s *script) check(t *testing.T, m medium, when string) {
	t.Helper()
	db, err := m.open(testConfig())
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	defer db.Close()
	if db.RolledBack() {
		t.Errorf("%s: rolled back", when)
	}
	rows := 0
	if err := db.View(func(tx *Tx) error {
		for i := range 3 {
			name := fmt.Sprint("row ", i)
			has, err := Meta.Has(tx, MetaKey(name))
			if err != nil {
				return err
			}
			key, err := SkippedKeys.Get(tx, SkippedKey([32]byte{1}, [32]byte{2}, uint32(i)))
			if !has && !errors.Is(err, ErrNotFound) || has && (err != nil || string(key.Key) != name) {
				t.Errorf("%s: %s is there: %t; its secret: %v", when, name, has, err)
			}
			if s.answered[name] && !has {
				t.Errorf("%s: %s was answered and is gone", when, name)
			}
			if has {
				rows++
			}
		}
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if rows > len(s.answered)+1 {
		t.Errorf("%s: %d rows of %d that were answered", when, rows, len(s.answered))
	}
}

// TestCrashAt loses power at every write boundary of a database's life: what
// was answered is there, and the rest is there whole or not at all.
func TestCrashAt(t *testing.T) {
	var s script
	disk := NewDisk()
	if err := s.run(memoryMedium{disk}); err != nil {
		t.Fatal(err)
	}
	all := disk.Steps()
	if all < 3*(3+3*4) || all%3 != 0 {
		t.Errorf("%d write boundaries; are they all counted?", all)
	}
	unanswered := 0 // crashes between the sync of a row and the answer
	for n := 1; n <= all; n++ {
		disk := NewDisk()
		calls := 0
		disk.CrashAt(n, func() { calls += disk.Steps() }) // needs the lock
		when := fmt.Sprint("crash at boundary ", n)
		if err := s.run(memoryMedium{disk}); !errors.Is(err, ErrClosed) && n <= all-3 { // the last three are Close's own, which loses nothing
			t.Errorf("%s: %v, want ErrClosed", when, err)
		}
		if calls != n {
			t.Errorf("%s: then was called at %d boundaries", when, calls)
		}
		if len(s.answered) == 1 {
			clone := disk.Clone()
			db := mustOpen(t, memoryMedium{clone})
			if err := db.View(func(tx *Tx) error {
				if has, err := Meta.Has(tx, MetaKey("row 1")); has || err != nil {
					unanswered++
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			mustClose(t, db)
		}
		s.check(t, memoryMedium{disk}, when)
	}
	if unanswered != 1 {
		t.Errorf("%d crashes came between the sync of a row and its answer, want 1", unanswered)
	}
	disk = NewDisk()
	disk.CrashAt(1, func() { t.Error("a crash that was taken back") })
	disk.CrashAt(0, nil)
	if err := s.run(memoryMedium{disk}); err != nil {
		t.Error(err)
	}
	s.check(t, memoryMedium{disk}, "no crash")
}

// TestLie crashes a disk that lied: all that it said it had is gone, back to
// the moment it began to lie, and later syncs make up for it.
func TestLie(t *testing.T) {
	disk := NewDisk()
	m := memoryMedium{disk}
	put := func(db *DB, name string) {
		t.Helper()
		mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, name, "1") })
	}
	db := mustOpen(t, m)
	put(db, "kept")
	disk.Lie(true)
	put(db, "lost")
	mustClose(t, db)
	db = mustOpen(t, m) // no crash, no loss
	wantMeta(t, db, "lost", "1")
	disk.Crash()
	mustClose(t, db)
	db = mustOpen(t, m)
	wantMeta(t, db, "kept", "1")
	wantMeta(t, db, "lost", "")
	put(db, "late")
	disk.Lie(false)
	put(db, "honest")
	disk.Crash()
	mustClose(t, db)
	db = mustOpen(t, m)
	wantMeta(t, db, "late", "1")
	wantMeta(t, db, "honest", "1")
	mustClose(t, db)
}

// TestClone copies a disk that is in use: the copy holds what is durable, and
// the two go their own ways.
func TestClone(t *testing.T) {
	disk := NewDisk()
	db := mustOpen(t, memoryMedium{disk})
	mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "a", "1") })
	disk.Lie(true)
	mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "b", "1") })
	copied := mustOpen(t, memoryMedium{disk.Clone()})
	wantMeta(t, copied, "a", "1")
	wantMeta(t, copied, "b", "")
	mustUpdate(t, copied, func(tx *Tx) error { return putMeta(tx, "a", "2") })
	wantMeta(t, db, "a", "1")
	wantMeta(t, db, "b", "1")
	mustClose(t, copied)
	mustClose(t, db)
}
