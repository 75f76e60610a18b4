package api

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/windows"
)

// modesMatter says that access control lists, inherited from the profile's
// folder, take the place of modes.
const modesMatter = false

func ours(fs.FileInfo) bool { return true }

// isSocket takes what is neither file nor folder nor link for a socket:
// releases of the system differ in how they show one.
func isSocket(fi fs.FileInfo) bool {
	return !fi.Mode().IsRegular() && !fi.IsDir() && fi.Mode()&fs.ModeSymlink == 0
}

// refused reports whether a dial failed because nobody listens.
func refused(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }
