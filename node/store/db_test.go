package store

import (
	"errors"
	"testing"
)

func testConfig(t testing.TB) Config {
	t.Helper()
	return Config{Key: Key{b: [KeySize]byte{1, 2, 3}}}
}

func TestMemorySmoke(t *testing.T) {
	disk := NewDisk()
	for i := range 3 {
		db, err := OpenMemory(testConfig(t), disk)
		if err != nil {
			t.Fatal(err)
		}
		if db.RolledBack() {
			t.Error("rolled back without cause")
		}
		if err := db.Update(func(tx *Tx) error {
			return Sessions.Put(tx, SessionKey([32]byte{1}, [32]byte{2}, [32]byte{byte(i)}), &Session{Created: int64(i)})
		}); err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := db.View(func(tx *Tx) error {
			for row, err := range Sessions.Scan(tx, nil, nil) {
				if err != nil {
					return err
				}
				if row.Value.Created != int64(n) {
					t.Errorf("row %d has %d", n, row.Value.Created)
				}
				n++
			}
			_, err := Sessions.Get(tx, SessionKey([32]byte{1}, [32]byte{2}, [32]byte{9}))
			return err
		}); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		if n != i+1 {
			t.Errorf("opened %d times, found %d rows", i+1, n)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
