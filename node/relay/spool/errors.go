package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

var (
	// ErrFull means that the quota has no room for the entries. None of the
	// call's was kept; tell the depositor to keep them and come back.
	ErrFull = errors.New("spool: quota reached")

	// ErrDiskFull means that the disk has less room than the quota promises.
	// None of the call's entries was kept and nothing else is lost; treat it as
	// [ErrFull] and tell the operator.
	ErrDiskFull = errors.New("spool: disk full")

	// ErrNotFound means that the queue has no such entry, or no more.
	ErrNotFound = errors.New("spool: no such entry")

	// ErrDamaged means that the disk does not return what was written. Of an
	// entry: it is lost, gone from its queue and counted in [Usage]. Of a file,
	// from Open: neither of its headers can be read; move it out of the way.
	ErrDamaged = errors.New("spool: damaged")

	// ErrTooBig means that a blob is empty or larger than every slot, or that one
	// call has more than [MaxGroup] entries. Nothing was kept.
	ErrTooBig = errors.New("spool: size of blob or call")

	// ErrLocked means that the spool is open already, here or in another process.
	ErrLocked = errors.New("spool: in use")

	// ErrNewer means that a newer program wrote the files. Nothing was changed.
	ErrNewer = errors.New("spool: written by a newer version")

	// ErrClosed means that the spool was closed, or its disk lost power, before
	// the call took effect.
	ErrClosed = errors.New("spool: closed")

	// ErrReopen means that the disk failed during a write, so that it is unknown
	// whether it happened. Every later change returns it too, reading goes on;
	// close the spool and open it again, which finds what the disk kept.
	ErrReopen = errors.New("spool: must be reopened after a failed write")
)

// diskError says in this package's errors what the system said.
func diskError(doing string, err error) error {
	switch {
	case errors.Is(err, ErrClosed), errors.Is(err, ErrDiskFull): // a disk in memory says it itself
		return fmt.Errorf("%s: %w", doing, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, errQuota):
		return fmt.Errorf("%s: %w: %w", doing, ErrDiskFull, err)
	case errors.Is(err, fs.ErrClosed):
		return fmt.Errorf("%s: %w", doing, ErrClosed)
	}
	return fmt.Errorf("spool: %s: %w", doing, err)
}
