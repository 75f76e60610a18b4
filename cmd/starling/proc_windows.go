package main

import (
	"os/exec"
	"syscall"
)

// fileLimit returns how many files this process may open; Windows has no such
// limit.
func fileLimit() (uint64, bool) { return 0, false }

const detachedProcess = 0x00000008 // DETACHED_PROCESS of CreateProcess

// ownSession keeps a child running when the console goes away.
func ownSession(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP | detachedProcess}
}

// ownGroup keeps Ctrl-C at the console from reaching a child: its parent ends
// it in its own time.
func ownGroup(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}
