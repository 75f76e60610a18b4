//go:build unix

package bubble

import (
	"time"

	"golang.org/x/sys/unix"
)

// Wall reads a real monotonic clock, in a bubble as well as outside.
func Wall() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("bubble: internal error: no monotonic clock: " + err.Error()) // every supported system has one
	}
	return time.Duration(ts.Nano())
}

// CPU returns the time this process has spent on all processors.
func CPU() time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		panic("bubble: internal error: getrusage: " + err.Error()) // its arguments are valid
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
