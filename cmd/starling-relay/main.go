// Command starling-relay is the program of a volunteer: it keeps ciphertext for
// people who are away, serves the network's DHT and helps nodes behind routers
// to find each other (node/relay/station).
//
// One command, up, runs the relay. The others ask it over a socket in its
// folder, HOME/run/relay.sock (control.go), or look at its files. This package
// holds flags, settings, wiring and printing.
//
// In HOME are
//
//	relay.toml   settings, written by the operator only (settings.go)
//	relay.key    the relay's key: back it up, see key backup
//	store.key    the key of the store: worth nothing without it
//	store, spool what is kept for others
//	run          lock and socket
//
// Both key files are 0600 and not encrypted, as the host keys of SSH are not: a
// relay starts without anybody there to type a passphrase. Who copies the whole
// folder has the relay's key, and the ciphertext that any relay has; no message,
// no name and no account's key.
//
// What it promises to scripts: data on standard output, all else on standard
// error; one JSON object with --json; the exit codes of starling.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }
