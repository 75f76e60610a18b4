//go:build unix

package exact

import (
	"fmt"
	"os"
	"syscall"
)

// Reexec starts this program anew, in the same process and with the same
// arguments, if it is exact but was not started with Env(seed). Of the
// environment it keeps HOME, PATH, TMPDIR and GOSIM_STALL. Call it first thing,
// when the seed is known: nothing deferred runs, and open files stay open only
// if they are inherited. It returns nil if there is nothing to do.
func Reexec(seed uint64) error {
	if !Enabled() || Started(seed) {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("exact: finding this program: %w", err)
	}
	err = syscall.Exec(self, os.Args, environ(os.Environ(), seed))
	return fmt.Errorf("exact: starting %s anew: %w", self, err)
}
