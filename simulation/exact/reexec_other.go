//go:build !unix

package exact

import (
	"fmt"
	"runtime"
	"strings"
)

// Reexec returns nil if this program is not exact or was started with
// Env(seed). Otherwise the error says what to set: this system cannot replace a
// running program.
func Reexec(seed uint64) error {
	if !Enabled() || Started(seed) {
		return nil
	}
	return fmt.Errorf("exact: on %s an exact program must be started with %s", runtime.GOOS, strings.Join(Env(seed), " "))
}
