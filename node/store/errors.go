package store

import "errors"

var (
	// ErrNotFound means that a table has no such row.
	ErrNotFound = errors.New("store: no such row")

	// ErrClosed means that the database was closed before the call took effect.
	ErrClosed = errors.New("store: closed")

	// ErrLocked means that another process has the profile open; the text names
	// its process ID. Talk to that process, or end it.
	ErrLocked = errors.New("store: in use by another process")

	// ErrKey means that the database was made under another master key. Nothing
	// was changed; ask for the right key.
	ErrKey = errors.New("store: wrong key")

	// ErrPassphrase means that a key file does not open with this passphrase.
	// Nothing was changed; ask again.
	ErrPassphrase = errors.New("store: wrong passphrase")

	// ErrDamaged means that stored bytes are not what was written: the disk
	// failed or someone changed them. The text names the table or file. One bad
	// row does not hide the others; restore a backup or delete the row.
	ErrDamaged = errors.New("store: damaged")

	// ErrFull means that the disk has too little space left. The update did not
	// happen and nothing else is lost; free some space and try again.
	ErrFull = errors.New("store: disk full")

	// ErrReadOnly means that the folder cannot be written.
	ErrReadOnly = errors.New("store: folder is read-only")

	// ErrNewer means that a newer program wrote the database. Upgrade.
	ErrNewer = errors.New("store: written by a newer version")

	// ErrReopen means that the disk failed during a commit, so that it is
	// unknown whether the update happened. Every later update returns it too,
	// and on disk every view; close the database and start the program again,
	// which finds either all of the update or nothing.
	ErrReopen = errors.New("store: must be reopened after a failed write")

	// ErrTooBig means that one update writes more than [MaxUpdate]. The row was
	// not written; split the work.
	ErrTooBig = errors.New("store: too much in one update")
)
