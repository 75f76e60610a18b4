package bubble

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"starling/simulation/exact"
)

// A Watchdog notices that virtual time has stopped: some goroutine of the
// bubble waits for a lock, for a channel made outside, or computes without end.
// The bubble calls [Watchdog.Bump] as virtual time goes on; the dog looks from
// outside, in real time. The zero value is ready; fields are set before Watch.
//
// An exact program ([exact.Enabled]) is watched by its runtime instead, and
// Watch does nothing there: a goroutine that wakes in real time would make runs
// differ. It ends with status 2 and all stacks on standard error when virtual
// time has not moved for two minutes, or GOSIM_STALL seconds.
type Watchdog struct {
	// After is the real time without a Bump that makes the dog bark. A machine
	// that was asleep meanwhile does not. Default 60s.
	After time.Duration
	// Out gets the stacks of all goroutines. Default os.Stderr.
	Out io.Writer
	// Bark is called after that, once, outside the bubble. Default: exit with
	// status 1.
	Bark func()

	bumps atomic.Uint64
}

// Bump says that virtual time goes on. It may be called at any time from any
// goroutine, and costs nothing.
func (d *Watchdog) Bump() { d.bumps.Add(1) }

// Watch watches until stop is called, which waits for the dog to be back. Call
// both outside the bubble, once.
func (d *Watchdog) Watch() (stop func()) {
	if exact.Enabled() {
		return func() {}
	}
	const looks = 4 // without news, until it barks
	after := d.After
	if after <= 0 {
		after = 60 * time.Second
	}
	home := make(chan struct{}) // closed by stop
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(max(after/looks, time.Nanosecond))
		defer tick.Stop()
		// The last look that brought news is not counted, so After is kept
		// even if the bump came just before it.
		for seen, idle := d.bumps.Load(), 0; idle <= looks; {
			select {
			case <-home:
				return
			case <-tick.C: // never twice for one sleep of the machine
			}
			idle++
			if n := d.bumps.Load(); n != seen {
				seen, idle = n, 0
			}
		}
		d.bark(after)
	})
	return sync.OnceFunc(func() {
		close(home)
		wg.Wait()
	})
}

// bark writes what is going on and ends it.
func (d *Watchdog) bark(after time.Duration) {
	out := d.Out
	if out == nil {
		out = os.Stderr
	}
	// Out failing is no reason to stay silent: Bark comes anyway.
	_, _ = fmt.Fprintf(out, "bubble: virtual time has not moved for %v of real time; all goroutines:\n\n%s\n", after, Stacks())
	if d.Bark != nil {
		d.Bark()
		return
	}
	os.Exit(1)
}
