package spool

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// The sizes that a relay has: sealed envelopes, contact boxes, and what else is
// 64 KiB.
var benchSizes = []int{2160, 5232, 16384, 17520, 66672}

func benchSpool(b *testing.B) *Spool {
	s, err := Open(Config{Dir: b.TempDir(), Sizes: benchSizes, Quota: 1 << 30, Attest: func(leaves []Leaf) func(int) any {
		return func(i int) any { return leaves[i] }
	}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// inFlight runs fn n times on k goroutines.
func inFlight(k, n int, fn func(worker, n int)) {
	var wg sync.WaitGroup
	for w := range k {
		wg.Go(func() { fn(w, (n+k-1-w)/k) })
	}
	wg.Wait()
}

// BenchmarkPut puts the smallest sealed envelope, into slots that were used
// before, as in a relay that runs for long. Deleting is not in it: see
// [BenchmarkDrain].
func BenchmarkPut(b *testing.B) {
	for _, k := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("inflight=%d", k), func(b *testing.B) {
			s := benchSpool(b)
			ctx := context.Background()
			b.SetBytes(2160)
			b.ReportAllocs()
			put := func(w, n int) {
				e := []Entry{entry(queue(byte(w)), 2160, uint64(w))}
				for range n {
					if _, err := s.Put(ctx, e); err != nil {
						b.Error(err)
						return
					}
				}
			}
			round := min(b.N, 1<<15)
			inFlight(min(512, round), round, put) // gives the file its length
			for left := b.N; left > 0; left -= round {
				b.StopTimer()
				for _, q := range s.Queues() {
					if err := s.Drop(ctx, q); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				inFlight(k, min(left, round), put)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

// BenchmarkRaw writes the same bytes in place with the system's calls alone, as
// many entries a sync as stand in the name: what the disk can do.
func BenchmarkRaw(b *testing.B) {
	for _, k := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("persync=%d", k), func(b *testing.B) {
			const size = slotHeader + 2160
			f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			const places = 64
			group := make([]byte, k*size)
			for i := range places {
				if _, err := f.WriteAt(group, int64(i*len(group))); err != nil {
					b.Fatal(err)
				}
			}
			if err := syncData(f); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(2160)
			b.ResetTimer()
			for i := 0; i < b.N; i += k {
				group[0]++
				if _, err := f.WriteAt(group, int64(i/k%places*len(group))); err != nil {
					b.Fatal(err)
				}
				if err := syncData(f); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

// BenchmarkRead reads entries that the system has in its cache.
func BenchmarkRead(b *testing.B) {
	s := benchSpool(b)
	const n = 4096
	entries := make([]Entry, n)
	for i := range entries {
		entries[i] = entry(queue(byte(i)), 2160, uint64(i))
	}
	stored, err := s.Put(b.Context(), entries)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(2160)
	b.ReportAllocs()
	buf := make([]byte, 0, slotHeader+2160)
	i := 0
	for b.Loop() {
		if _, err := s.Read(entries[i%n].Queue, stored[i%n].ID, buf); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// BenchmarkDrain reads and deletes: each of 64 readers lists 32 entries, reads
// them and deletes them in one call.
func BenchmarkDrain(b *testing.B) {
	s := benchSpool(b)
	ctx := context.Background()
	const readers, each = 64, 32
	var batch []Entry
	for i := range each {
		batch = append(batch, entry(Queue{}, 2160, uint64(i)))
	}
	rounds := (b.N + readers*each - 1) / (readers * each)
	for range rounds {
		inFlight(readers, readers, func(w, _ int) {
			mine := make([]Entry, each)
			for i := range mine {
				mine[i] = batch[i]
				mine[i].Queue = queue(byte(w))
			}
			if _, err := s.Put(ctx, mine); err != nil {
				b.Error(err)
			}
		})
	}
	b.ReportAllocs()
	b.ResetTimer()
	inFlight(readers, readers, func(w, _ int) {
		buf := make([]byte, 0, slotHeader+2160)
		for {
			list := s.List(queue(byte(w)), 0, each)
			if len(list) == 0 {
				return
			}
			ids := make([]uint64, len(list))
			for i, it := range list {
				ids[i] = it.ID
				if _, err := s.Read(queue(byte(w)), it.ID, buf); err != nil {
					b.Error(err)
				}
			}
			if err := s.Delete(ctx, queue(byte(w)), ids...); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(rounds*readers*each)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkOpen reads a spool of 64 MiB.
func BenchmarkOpen(b *testing.B) {
	cfg := Config{Dir: b.TempDir(), Sizes: benchSizes, Quota: 1 << 30}
	s, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	const n = 30000
	for i := range n / 1000 {
		entries := make([]Entry, 1000)
		for j := range entries {
			entries[j] = entry(queue(byte(j)), 2160, uint64(i))
		}
		if _, err := s.Put(b.Context(), entries); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(n * (slotHeader + 2160))
	for b.Loop() {
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		if s, err = Open(cfg); err != nil {
			b.Fatal(err)
		}
	}
	s.Close()
}

// BenchmarkFind looks for a blob that is not there in a queue of 4,096 entries
// with its expiry, the most that a relay keeps in one: what each deposit pays for
// the case that it is a repetition.
func BenchmarkFind(b *testing.B) {
	s := mustOpen(b, Config{Sizes: benchSizes, Quota: 64 << 20}, NewDisk(1))
	var entries []Entry
	for i := range uint64(4096) {
		entries = append(entries, entry(queue(1), 64, i))
	}
	mustPut(b, s, entries...)
	other := entry(queue(1), 2160, 1<<40)
	for b.Loop() {
		if _, ok := s.Find(other.Queue, other.Expires, other.Blob); ok {
			b.Fatal("found what is not there")
		}
	}
}

// BenchmarkMemory says what an entry takes in memory, and what a queue does.
func BenchmarkMemory(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		const queues = 10_000
		var sizes [2]uint64
		for i, each := range []int{1, 101} {
			before := heap()
			x := index{queues: map[Queue]*queueItems{}}
			for q := range queues {
				for id := range each {
					x.add(Queue{byte(q), byte(q >> 8)}, newItem(uint64(id), 0, 0, 0, 2160, 0))
				}
			}
			sizes[i] = heap() - before
			runtime.KeepAlive(x)
		}
		b.ReportMetric(float64(sizes[1]-sizes[0])/queues/100, "B/entry")
		b.ReportMetric(float64(sizes[0])/queues, "B/queue")
	}
}
