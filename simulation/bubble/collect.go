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

// Collect collects garbage whenever as much was allocated as was in use after
// the last collection, and no less than floor bytes, until ctx ends. Run it on a
// goroutine of the bubble, once.
//
// An exact program runs with the collector switched off ([exact.Env]), because
// where a collection falls would change what happens after it. Collect waits
// until every other goroutine waits for virtual time, collects, and gives the
// runtime's own goroutines time to finish. The heap can exceed the limit by
// what is allocated within 50 ms of virtual time.
//
// When it collects follows from what the bubble allocates alone: what was there
// before, such as a buffer for a table that is written, must not matter. So it
// counts from the beginning, and by the floor.
//
// It uses [synctest.Wait], which panics if two goroutines are in it at once.
// Others may use it: Collect looks at odd nanoseconds.
func Collect(ctx context.Context, floor int64) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	before, last := heap()
	limit := floor
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, allocated := heap(); allocated-last <= limit {
			continue
		}
		synctest.Wait()
		runtime.GC()
		for range 200 { // finalizers and cleanups run now or never in this instant
			runtime.Gosched()
		}
		var inUse int64
		inUse, last = heap()
		limit = max(1, (inUse-before+floor/2)/floor) * floor
	}
}

// heap returns the bytes that are in use, and those that were allocated since
// the program started.
func heap() (inUse, allocated int64) {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64()), int64(s[1].Value.Uint64())
}
