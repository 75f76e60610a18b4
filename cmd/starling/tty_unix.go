//go:build unix

package main

import "os"

// openTerminal opens the terminal that the user sits at, wherever standard
// input and output lead.
func openTerminal() (*os.File, error) { return os.OpenFile("/dev/tty", os.O_RDWR, 0) }
