// Package exact builds programs whose simulations repeat themselves bit for
// bit: the same seed gives the same run, on a busy machine as on an idle one.
// It is what a program asks whether it is one ([Enabled]).
//
// Virtual time alone does not do that: the scheduler, select, maps and the
// collector draw lots and look at real time. [Build] compiles a program against
// copies of thirteen files of the standard library, changed so that
//
//   - there are no time slices, a system call keeps its processor, no thread is
//     made while another is about to be free, and the scheduler's turns count
//     from the beginning of the bubble (runtime/proc.go);
//   - everything random that a bubble does comes from one stream, started anew
//     with every bubble from the seed in the environment; the rest of the process
//     starts from a constant, and its maps have one seed (runtime/rand.go,
//     synctest.go, internal/sync/hashtriemap.go, unique/canonmap.go);
//   - select and timers due at once follow that stream (runtime/select.go, time.go);
//   - memory is swept where [runtime.GC] is called and nowhere else, so addresses
//     repeat, and maps keyed by pointers with them; none is returned to the
//     system, what was allocated before the bubble is never freed, and the
//     scheduler begins with nothing to reuse (runtime/mgcsweep.go, proc.go);
//     caches of interface tables grow by the stream, too (runtime/iface.go), and
//     arguments and environment take the same memory, however many and long
//     (runtime/runtime.go, runtime1.go);
//   - a mutex does not look at how long somebody waited for it (runtime/sema.go);
//   - a context cancels its children in the order in which they were made
//     (context/context.go);
//   - a bubble whose virtual time stands still for two minutes of real time, or
//     GOSIM_STALL seconds, ends the process with status 2 and all stacks, because
//     nobody else may look at real time (runtime/proc.go, synctest.go).
//
// The copies are made from the installed toolchain ([Write]), which must be a
// release whose files are known here, byte for byte; a [*VersionError] says
// which are. An exact program runs on one processor, without collector and
// preemption ([Env]); it starts itself anew if it was started otherwise
// ([Reexec]).
//
// What it asks of the program: one bubble at a time, one run a process, and
// nothing outside the bubble that wakes up or allocates by real time while the
// bubble runs; nor anything inside that depends on it. What the program did
// before the bubble does not matter ([Level]), as long as that took few
// goroutines (with a hundred, their number shows), and Reexec started it, which
// keeps the environment small. What it does in the bubble does: a callback that
// writes a file makes the stack of its goroutine grow, and so moves what is
// allocated later. Same program, same system: exactness does not travel.
//
// What it does not do: run a simulation (simulation), or seed package crypto
// (simulation/bubble).
package exact

import (
	"os"
	"slices"
	"strconv"
	"strings"
)

// enabled is set to "true" by the linker, in programs that are exact.
var enabled string

// Enabled reports whether this program is exact.
func Enabled() bool { return enabled == "true" }

// The changed runtime reads these variables when a bubble starts.
const (
	seedKey  = "GOSIM_SEED"  // decimal
	stallKey = "GOSIM_STALL" // seconds of real time without virtual time; 120 if unset
)

// Env returns the variables, in the form of [os.Environ], with which an exact
// program must be started for its runs to repeat: one processor, no collector
// but where it is called, no preemption, the seed, and stacks that all begin
// small and never shrink, since how large they begin and which shrink depends on
// goroutines from before the bubble.
func Env(seed uint64) []string {
	return []string{
		"GOMAXPROCS=1",
		"GOGC=off",
		"GODEBUG=adaptivestackstart=0,asyncpreemptoff=1,gcshrinkstackoff=1",
		seedKey + "=" + strconv.FormatUint(seed, 10),
	}
}

// Started reports whether this process was started with Env(seed). A run of
// another seed in it would not be the one that repeats.
func Started(seed uint64) bool {
	return !slices.ContainsFunc(Env(seed), func(kv string) bool {
		key, value, _ := strings.Cut(kv, "=")
		return os.Getenv(key) != value
	})
}

// environ returns what Reexec leaves of environ, and Env(seed). The rest goes:
// the length of a variable moves the addresses of all that is made later, and
// with them the order of maps keyed by pointers.
func environ(environ []string, seed uint64) []string {
	kept := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		return !slices.Contains([]string{"HOME", "PATH", "TMPDIR", stallKey}, key)
	})
	slices.Sort(kept)
	return append(kept, Env(seed)...)
}
