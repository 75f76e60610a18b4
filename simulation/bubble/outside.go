package bubble

import "sync"

// Outside starts a goroutine outside the bubble and returns do, which has it
// call a function and waits until that has returned, and stop, which ends it.
// Call Outside before [Run] and stop after it; call do from any goroutine of
// the bubble. A panic of the function is passed on to who called do.
//
// Some work fails inside. A CPU profile started in a bubble has a writer that
// sleeps in virtual time, and profiles nothing while virtual time stands still.
// Timers set inside are virtual; timeouts of real devices must not be.
//
// The channels that do waits on are made outside, so waiting on them does not
// count as waiting for the bubble: virtual time stands still until the function
// has returned, however long a disk takes. The function must therefore not wait
// for anything in the bubble, nor for another call of do.
func Outside() (do func(f func()), stop func()) {
	var (
		jobs = make(chan func()) // sent by do; closed by stop
		done = make(chan any)    // sent by the goroutine, once a job: the value of its panic
		wg   sync.WaitGroup
		one  sync.Mutex // held for a whole job; virtual time stands still during one anyway
	)
	wg.Go(func() {
		for f := range jobs {
			done <- caught(f)
		}
	})
	do = func(f func()) {
		one.Lock()
		jobs <- f
		v := <-done
		one.Unlock()
		if v != nil {
			panic(v)
		}
	}
	stop = func() {
		close(jobs)
		wg.Wait()
	}
	return do, stop
}

// caught calls f and returns the error with which it panicked, if it did.
func caught(f func()) (v any) {
	var e ending
	var wg sync.WaitGroup
	wg.Go(func() { e.call(f) }) // a goroutine of its own: Goexit ends only that
	wg.Wait()
	if e.err != nil {
		return e.err
	}
	return nil
}
