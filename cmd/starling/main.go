// Command starling is the messenger: the daemon (starling up), and the command
// line that talks to it.
//
// The daemon alone opens the store. Every other command is a client of its
// local API, so that nothing here decides anything: this package holds flags,
// wiring and printing.
//
// What it promises to scripts: data on standard output, progress and hints on
// standard error; one JSON object, or one a line, with --json; the exit codes
// in exit.go. What it promises to people: text that came from a peer never
// reaches the terminal unescaped (escape.go), and nothing waits for input that
// cannot come.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
