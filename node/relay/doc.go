// Package relay is the volunteer's side of SPEC §13: a service that keeps
// ciphertext for people who are away.
//
// What it keeps lies in two places. Messages are in a [spool.Spool], all else is
// in the node's [store.DB]. No step changes both at once, so one of them is the
// truth for each thing, and what the other says beyond it is cleared away:
//
//	queues, access, uses of tokens, one-time keys, records   store
//	messages: which there are, how many, how many bytes      spool
//
//	create     row                         the queue is there
//	deposit    use of a token, entry       the use may be lost, never gained
//	drop       row, entries                after a crash, entries without a row are dropped
//	take key   row deleted, then answered  a crash may lose a key, never repeat one
//
// The store ID (SPEC §13.5) is in both, so that the next New notices if one of
// them was lost or exchanged without the other, and draws another ID. An older
// copy of the spool under the same store is not noticed.
//
// Everything that a deposit needs is in memory: some 500 bytes for each queue.
// Uses of proofs of work are there alone; a restart forgets them.
//
// A stream has two goroutines. One reads requests and judges them; the other
// writes the answers, in the order of the requests. Deposits wait for the disk
// in between, up to 512 a stream, each on a goroutine of its own, so that those
// of all streams share a sync and a signature. Any other request waits for the
// deposits before it. A poll that waits holds no buffer.
//
// What it does not do: judge or publish records (its caller does), know who is
// whose contact, or copy anything to another relay. It keeps no blobs and dials
// nobody back: [New] says what it answers. A deposit that is repeated is a second
// entry, which the reader recognises. A relay open to anybody can be filled from
// as many address blocks as it has shares; [AdmitTokens] is what prevents that.
//
// Lock order: Service.mu before any lock of the spool; traffic.mu alone.
package relay
