package main

import "golang.org/x/sys/unix"

// noCoreDumps keeps the keys in this process's memory from being written to
// disk, and from being read by the user's other processes through ptrace.
// Where the system refuses, the daemon runs all the same.
func noCoreDumps() {
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
