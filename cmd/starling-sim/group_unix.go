//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// ownGroup keeps signals that a terminal sends to this program from c.
func ownGroup(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
