//go:build !unix

package spool

import "syscall"

// errQuota has no number of its own here.
const errQuota = syscall.ENOSPC
