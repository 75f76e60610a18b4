package bubble

import (
	"context"
	"runtime"
	"runtime/metrics"
	"testing/synctest"
	"time"
)

// collectEvery is the virtual time between two looks of [Collect] at the heap.
// It is no multiple of anything, so that it falls on nobody else's instant.
const collectEvery = 50*time.Millisecond + 7

// Collect collects garbage when the heap exceeds floor bytes, and later twice
// of what was in use the last time, until ctx ends. Run it on a goroutine of
// the bubble, once.
//
// An exact program runs with the collector switched off ([exact.Env]), because
// where a collection falls would change what happens after it. Collect waits
// until every other goroutine waits for virtual time, collects, and gives the
// runtime's own goroutines time to finish. The heap can exceed the limit by
// what is allocated within 50 ms of virtual time.
//
// It uses [synctest.Wait], which panics if two goroutines are in it at once.
// Others may use it: Collect looks at odd nanoseconds.
func Collect(ctx context.Context, floor int64) {
	limit := floor
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	inUse := func() int64 {
		metrics.Read(heap)
		return int64(heap[0].Value.Uint64())
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if inUse() <= limit {
			continue
		}
		synctest.Wait()
		runtime.GC()
		for range 200 { // finalizers and cleanups run now or never in this instant
			runtime.Gosched()
		}
		limit = max(floor, 2*inUse())
	}
}
