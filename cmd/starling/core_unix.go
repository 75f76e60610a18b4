//go:build unix && !linux

package main

import "golang.org/x/sys/unix"

// noCoreDumps keeps the keys in this process's memory from being written to
// disk. Where the system refuses, the daemon runs all the same.
func noCoreDumps() { unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) }
