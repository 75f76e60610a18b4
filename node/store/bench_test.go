package store

import (
	"sync/atomic"
	"testing"
)

// benchWrite is what a sent message costs the database: the session, the envelope,
// the history line and three references.
func benchWrite(tx *Tx, i uint64) error {
	var a [32]byte
	a[0] = byte(i % 200)
	var id [32]byte
	for k := range 8 {
		id[k] = byte(i >> (8 * k))
	}
	for _, err := range []error{
		Sessions.Put(tx, SessionKey(a, a, a), &Session{Account: a[:], Device: a[:], State: make([]byte, 400)}),
		Outbox.Put(tx, OutboxKey(a, i), &Outgoing{Id: id[:16], Content: make([]byte, 256), Envelope: make([]byte, 420), Hash: id[:], Session: a[:], Ack: a[:]}),
		Unacked.Put(tx, UnackedKey(id), &Unacknowledged{Account: a[:], Order: i}),
		History.Put(tx, HistoryKey(a, i), &Entry{Id: id[:16], From: a[:], Text: "twenty-odd bytes of text"}),
		Messages.Put(tx, MessageKey([16]byte(id[:16])), &EntryRef{Account: a[:], Order: i}),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

func benchEngines(b *testing.B, fn func(b *testing.B, db *DB)) {
	b.Run("engine=badger", func(b *testing.B) {
		dir := b.TempDir()
		db, err := Open(Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		defer db.Close()
		fn(b, db)
	})
	b.Run("engine=memory", func(b *testing.B) {
		db, err := OpenMemory(Config{}, NewDisk())
		if err != nil {
			b.Fatal(err)
		}
		defer db.Close()
		fn(b, db)
	})
}

// BenchmarkUpdate is one caller: one commit and one sync a message.
func BenchmarkUpdate(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *DB) {
		b.ReportAllocs()
		var i uint64
		for b.Loop() {
			i++
			if err := db.Update(func(tx *Tx) error { return benchWrite(tx, i) }); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "updates/s")
	})
}

// BenchmarkUpdate64 is 64 callers at once, who share commits.
func BenchmarkUpdate64(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *DB) {
		b.ReportAllocs()
		var i atomic.Uint64
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				n := i.Add(1)
				if err := db.Update(func(tx *Tx) error { return benchWrite(tx, n) }); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(i.Load())/b.Elapsed().Seconds(), "updates/s")
	})
}

// BenchmarkScan reads history lines.
func BenchmarkScan(b *testing.B) {
	benchEngines(b, func(b *testing.B, db *DB) {
		const rows = 2000
		if err := db.Update(func(tx *Tx) error {
			for i := range uint64(rows) {
				if err := History.Put(tx, HistoryKey([32]byte{}, i), &Entry{Id: make([]byte, 16), From: make([]byte, 32), Text: "twenty-odd bytes of text"}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if err := db.View(func(tx *Tx) error {
				for _, err := range History.Scan(tx, nil, nil) {
					if err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(rows*b.N)/b.Elapsed().Seconds(), "rows/s")
	})
}
