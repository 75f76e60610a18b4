//go:build race

package session_test

// slower is how many times fewer rounds run under the race detector, where
// each costs that much more.
const slower = 10
