// Package exact builds programs whose simulations repeat themselves bit for
// bit, and says whether this is one.
package exact

// enabled is set to "true" by the linker, in programs that are exact.
var enabled string

// Enabled reports whether this program is exact.
func Enabled() bool { return enabled == "true" }
