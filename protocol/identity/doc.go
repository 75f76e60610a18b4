// Package identity holds who is who: typed keys and their strict import (SPEC
// §3), and accounts with their manifests, IDs, invite links, profiles and
// safety numbers (SPEC §4).
//
// An account is one Ed25519 key. Its manifest, signed by it, lists its
// devices, each with a signing key and a DH key. A libp2p host key is a
// [Transport] and proves nothing about an account.
//
// A key from outside becomes a typed value only through ParseAccount,
// ParseDevice or ParseTransport, or inside one of this package's parsers, which
// call them. A value of these types from anywhere else is trusted: code that
// converts bytes to an Account by hand has skipped the check.
//
// What it does not do: remember manifests and refuse older ones (node/store,
// dht/record), decide whom to trust (node), turn hints into addresses to dial
// (node).
package identity
