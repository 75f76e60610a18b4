// Package bubble runs a function in virtual time: in one testing/synctest
// bubble, which [Run] opens from an ordinary program as well as from a test, an
// Example or a TestMain.
//
// In a bubble package time shows a clock that starts at midnight UTC,
// 2000-01-01, and jumps to the next timer as soon as every goroutine of the
// bubble waits for another one of them. Whoever waits for something outside
// stops that clock: for a lock, a system call, or a channel that was made
// outside. [Outside] makes use of that for real files and profiles; [Watchdog]
// notices when it was not meant. [Wall], [CPU] and [Memory] measure what is real.
//
// What it does not do: make a run repeat itself. Package
// [starling/simulation/exact] builds programs that do, and what differs in them
// is said at [Run] and [Collect].
package bubble

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"

	"starling/simulation/exact"
)

// ErrExited means that the function ended its goroutine with [runtime.Goexit],
// as FailNow and Fatal of a test do. What a test had to say it has said; pass
// the failure on.
var ErrExited = errors.New("bubble: the function ended its goroutine instead of returning")

// ErrRace means that the race detector found a data race in the bubble, and
// has printed it.
var ErrRace = errors.New("bubble: the race detector found a data race")

// A PanicError means that the function panicked. It is a bug in the function:
// print the error, which holds the stack, and give up.
type PanicError struct {
	Value any
	Stack []byte // of the goroutine that panicked
}

// Error implements error.
func (e *PanicError) Error() string {
	return fmt.Sprintf("bubble: panic: %v\n\n%s", e.Value, e.Stack)
}

// Unwrap returns the value of the panic if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// A LeakError means that goroutines of the bubble wait for something that can
// no longer happen. They and what they hold stay in memory until the process
// ends. It is a bug in what the function ran: something was not closed.
type LeakError struct {
	// Stuck says that the function itself waits so, too. Otherwise it has
	// returned.
	Stuck      bool
	Goroutines int
	Stacks     []byte // of all of them, in the form of a panic
}

// Error implements error. It shows one stack; Stacks has the others.
func (e *LeakError) Error() string {
	what := "were left when the function had returned"
	if e.Stuck {
		what = "wait for each other, and no timer is set"
	}
	first, _, _ := bytes.Cut(e.Stacks, []byte("\n\n"))
	return fmt.Sprintf("bubble: goroutines that %s: %d, such as\n\n%s", what, e.Goroutines, first)
}

// turn keeps the bubbles of an exact program apart: the seeded source of
// package crypto is the process's. Whoever waits for it is not in a bubble.
var turn sync.Mutex

// Run calls f in a new bubble, on a goroutine of its own, and returns when all
// goroutines of the bubble have ended. It must not be called in a bubble.
//
// The error is nil, a [*PanicError], [ErrExited], [ErrRace] or a [*LeakError].
// A panic on another goroutine of the bubble ends the process, as it always
// does. If f does not return properly, goroutines it left behind are not
// reported. Virtual time stands still once f has returned: whoever still
// sleeps then has leaked.
//
// Several calls may run at once in an ordinary program. In an exact one
// ([exact.Enabled]) they take turns, and seed decides what package crypto draws;
// everything else that is random there follows the seed of the process
// ([exact.Env]). In an ordinary program seed does nothing.
//
// Run prints nothing and leaves flags, arguments and output alone. It uses
// package testing without a test: a zero [testing.T] is enough to open a bubble.
// (2026-11-23: the alternative, testing.MainStart with dependencies of our own,
// prints a verdict, needs flags, sets GOMAXPROCS and cannot be nested in a test.)
func Run(seed uint64, f func()) error {
	initTesting()
	seeded := exact.Enabled() && testing.Testing()
	if exact.Enabled() {
		turn.Lock()
		defer turn.Unlock()
		exact.Level()
	}
	var (
		wg    sync.WaitGroup
		end   ending
		id    string
		leak  string
		ok    bool
		alien any
	)
	wg.Go(func() {
		// FailNow on the zero T ends this goroutine; ok stays false then.
		defer func() {
			switch r := recover(); {
			case r == nil:
			case strings.HasPrefix(fmt.Sprint(r), "deadlock: "): // runtime.synctestDeadlockError
				leak = fmt.Sprint(r)
			default:
				alien = r
			}
		}()
		synctest.Test(new(testing.T), func(t *testing.T) {
			if seeded {
				cryptotest.SetGlobalRandom(t, seed)
			}
			id = bubbleID()
			var wg sync.WaitGroup
			wg.Go(func() { end.call(f) })
			wg.Wait()
		})
		ok = true
	})
	wg.Wait()
	switch {
	case alien != nil:
		panic(alien) // called in a bubble, or GODEBUG=asynctimerchan=1
	case end.err != nil:
		return end.err
	case leak != "":
		return leaked(id, !end.returned)
	case !ok:
		return ErrRace
	}
	return nil
}

// Test is [Run] for tests: it ends t if Run returns an error.
func Test(t *testing.T, seed uint64, f func()) {
	t.Helper()
	err := Run(seed, f)
	if leak, ok := errors.AsType[*LeakError](err); ok {
		t.Logf("all of them:\n\n%s", leak.Stacks)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// An ending is how a function ended.
type ending struct {
	returned bool
	err      error
}

// call calls f and notes how it ends.
func (e *ending) call(f func()) {
	defer func() {
		switch r := recover(); {
		case r != nil:
			e.err = &PanicError{Value: r, Stack: debug.Stack()}
		case !e.returned:
			e.err = ErrExited
		}
	}()
	f()
	e.returned = true
}

// initTesting registers the flags of package testing on a set that nobody
// sees, unless this is a test. Without them it fails when it reports a race.
var initTesting = sync.OnceFunc(func() {
	if flag.Lookup("test.v") != nil {
		return
	}
	set := flag.CommandLine
	flag.CommandLine = flag.NewFlagSet("", flag.ContinueOnError)
	testing.Init()
	flag.CommandLine = set
})

// bubbleID returns what marks the goroutines of the caller's bubble in a dump
// of stacks, such as "synctest bubble 7]:".
func bubbleID() string {
	var b [128]byte
	head, _, _ := strings.Cut(string(b[:runtime.Stack(b[:], false)]), "\n")
	if i := strings.LastIndex(head, "synctest bubble "); i >= 0 {
		return head[i:]
	}
	panic("bubble: internal error: a stack in a bubble does not name it: " + head)
}

// leaked makes a [LeakError] of what is left of the bubble id.
func leaked(id string, stuck bool) *LeakError {
	e := &LeakError{Stuck: stuck}
	var left [][]byte
	for s := range bytes.SplitSeq(Stacks(), []byte("\n\n")) {
		head, _, _ := bytes.Cut(s, []byte("\n"))
		ours := bytes.Contains(s, []byte("\ntesting/synctest.Test.func1(")) || bytes.Contains(s, []byte("\ntesting.tRunner("))
		if bytes.HasSuffix(head, []byte(id)) && !ours {
			left = append(left, bytes.TrimSpace(s))
		}
	}
	e.Goroutines, e.Stacks = len(left), bytes.Join(left, []byte("\n\n"))
	return e
}

// Stacks returns the stacks of all goroutines, up to 64 MiB of them. All of
// them stand still meanwhile.
func Stacks() []byte {
	const most = 64 << 20
	for n := 1 << 20; ; n *= 4 {
		b := make([]byte, min(n, most))
		if m := runtime.Stack(b, true); m < len(b) || len(b) == most {
			return b[:m]
		}
	}
}
