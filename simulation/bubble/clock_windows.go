package bubble

import (
	"time"

	"golang.org/x/sys/windows"
)

// Wall reads a real monotonic clock, in a bubble as well as outside. It
// advances in steps of some milliseconds.
func Wall() time.Duration { return windows.DurationSinceBoot() }

// CPU returns the time this process has spent on all processors.
func CPU() time.Duration {
	var created, exited, kernel, user windows.Filetime
	if err := windows.GetProcessTimes(windows.CurrentProcess(), &created, &exited, &kernel, &user); err != nil {
		panic("bubble: internal error: GetProcessTimes: " + err.Error()) // a process may ask about itself
	}
	ticks := func(f windows.Filetime) int64 { return int64(f.HighDateTime)<<32 | int64(f.LowDateTime) }
	return time.Duration(ticks(kernel)+ticks(user)) * 100 // ticks of 100 ns
}
