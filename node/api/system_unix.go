//go:build unix

package api

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// modesMatter says that the system keeps the modes of files.
const modesMatter = true

// ours reports whether a file belongs to the user we act as.
func ours(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

func isSocket(fi fs.FileInfo) bool { return fi.Mode().Type() == fs.ModeSocket }

// refused reports whether a dial failed because nobody listens.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
