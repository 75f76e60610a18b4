//go:build unix

package spool

import "syscall"

// errQuota is what a file system says whose own quota for this user is used up.
const errQuota = syscall.EDQUOT
