package exact

import (
	"runtime"
	"unsafe"
)

// arena is how Go divides the address space of the heap, in bytes.
const arena = 64 << 20

// level keeps what Level allocated: what was below must not be used again.
var level []unsafe.Pointer

// Level makes the addresses of what is allocated from now on independent of
// what was allocated before: of the length of arguments, of folders that had to
// be made, of a table that is written. Maps whose keys are pointers are walked
// in an order that follows from addresses, so runs that repeat need it. Call it
// last thing before a run, on the only goroutine that allocates, with the
// collector switched off ([Env]). In a program that is not exact it does
// nothing.
//
// It collects garbage first, with whatever waits to be finalized. Then it fills
// every hole below the next arena, and every span that has room left, of each
// size and kind. The changed runtime keeps what is there then.
func Level() {
	if !Enabled() {
		return
	}
	for range 3 { // what has a finalizer or lies in a pool outlives one or two
		runtime.GC()
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	const page = 8 << 10
	level = make([]unsafe.Pointer, 0, 2*arena/page)
	fresh := uintptr(unsafe.Pointer(unsafe.SliceData(make([]byte, page))))
	top := (fresh/arena + 1) * arena
	above := func(p unsafe.Pointer) bool {
		level = append(level, p)
		return uintptr(p) >= top
	}
	for !above(noscan(page)) {
	}
	for _, class := range stats.BySize {
		if class.Size < 8 {
			continue
		}
		fill(uintptr(class.Size), above)
	}
	for _, size := range []uintptr{19072, 20480, 21760, 24576, 27264, 28672, 32768} {
		if size > uintptr(stats.BySize[len(stats.BySize)-1].Size) {
			fill(size, above)
		}
	}
	for !above(noscan(1)) { // the block that tiny things share
	}
}

// fill allocates things of a size, without and with pointers, until each comes
// from a new span.
func fill(size uintptr, above func(unsafe.Pointer) bool) {
	if size >= 16 { // smaller ones share blocks
		for !above(noscan(size)) {
		}
	}
	words := size / 8
	if size > 512 {
		words-- // a header says where pointers are
	}
	for !above(unsafe.Pointer(unsafe.SliceData(make([]*byte, words)))) {
	}
}

func noscan(size uintptr) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(make([]byte, size))) }
