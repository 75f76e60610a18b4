//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// fileLimit returns how many files this process may open.
func fileLimit() (uint64, bool) {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return 0, false
	}
	return uint64(r.Cur), true
}

// ownSession keeps a child running when the terminal goes away.
func ownSession(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

// ownGroup keeps Ctrl-C at the terminal from reaching a child: its parent ends
// it in its own time.
func ownGroup(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
