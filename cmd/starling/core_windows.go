package main

// noCoreDumps does nothing: crash dumps are off on Windows unless an
// administrator switches them on.
func noCoreDumps() {}
