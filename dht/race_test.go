//go:build race

package dht

// fewer is n for the race detector, which is after interleavings and not after
// counts, and makes signatures ten times as dear.
func fewer(n int) int { return n / 10 }
