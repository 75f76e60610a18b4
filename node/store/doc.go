// Package store keeps a node's rows: typed tables in one encrypted, ordered
// database (SPEC §11), on disk or, for a simulated node, in memory.
//
// A row's way to the disk is
//
//	row      protobuf, a message of rows.proto
//	erase    [24]nonce ‖ XChaCha20-Poly1305 under an erase key; secret tables only
//	value    [24]nonce ‖ XChaCha20-Poly1305 under the row key
//	engine   badger, which encrypts keys and files again but authenticates nothing
//
// The associated data of both seals is the table and the key, so that a value
// cannot be moved. Sealing stands above the engines: both keep the same bytes.
//
// [DB.Update] runs functions one after another on a single goroutine and
// commits those that wait at the same time together: one transaction and one
// sync of the disk for many. There is no conflict, no retry and no lock that a
// caller could hold.
//
// An LSM tree keeps what it deletes until it compacts. Secret tables are
// therefore sealed under an erase key that lives in a file of its own and is
// replaced every [Config.EraseEvery] of activity: what was deleted before then
// cannot be opened any more, wherever its bytes still lie.
//
// What it does not do: hide sizes and times of writing, protect from someone
// who holds the master key, or notice that the whole home folder was replaced
// by an older copy of itself (see [DB.RolledBack]).
package store
