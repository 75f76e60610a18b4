// Package relay is the volunteer's side of SPEC §13: a service that keeps
// ciphertext for people who are away.
//
// What it keeps lies in two places. Messages are in a [spool.Spool], all else is
// in the node's [store.DB]. No step changes both at once, so one of them is the
// truth for each thing, and what the other says beyond it is cleared away:
//
//	queues, access, uses of tokens, one-time keys, records   store
//	blobs: their names, sizes and expiries                   store
//	messages: which there are, how many, how many bytes      spool
//	chunks of blobs: which there are                         spool
//
//	create     row                         the queue is there
//	deposit    use of a token, entry       the use may be lost, never gained
//	drop       row, entries                after a crash, entries without a row are dropped
//	take key   row deleted, then answered  a crash may lose a key, never repeat one
//	put blob   row with the first chunk, chunk; drop as above
//
// The store ID (SPEC §13.5) is in both, so that the next New notices if one of
// them was lost or exchanged without the other, and draws another ID. An older
// copy of the spool under the same store is not noticed.
//
// A deposit that is there already, or on its way, is answered with a receipt of
// its own and is one entry. The spool finds it by a tag of the blob and the
// service compares the bytes, so that what is promised again was read from the
// disk.
//
// A chunk of a blob is the one entry of a queue of its own in the spool, whose
// name is a hash of handle and index. Blobs are counted by what they announced and
// not by what is there.
//
// Everything that a deposit needs is in memory: some 500 bytes for each queue.
// Uses of proofs of work are there alone; a restart forgets them.
//
// A stream has two goroutines. One reads requests and judges them; the other
// writes the answers, in the order of the requests, and those that are there at
// one time together. Deposits wait for the disk in between, up to 512 a stream, so
// that those of all streams share a sync and a signature: a third goroutine ends
// them, as long as there are any; a repetition, and what spends a token, has one of
// its own. Any other request waits for the deposits before it. A poll that waits
// holds no buffer.
//
// Memory for requests and answers is taken before they are worked on: of it an
// address block has an eighth, and a stream that holds a mebibyte is not read. A
// deposit gives back what it took when it is answered, and other requests when
// the answer is written, since an answer may be as large.
//
// What it does not do: judge or publish records (its caller does), know who is
// whose contact, or copy anything to another relay. A relay open to anybody can
// be filled from some dozens of address blocks, up to [Limits.Anybody]: admission
// tokens have the rest. The quota is for messages and blobs; the store's files,
// which are small beside them, are bounded by the accounts alone.
//
// Lock order: Service.mu before any lock of the spool; traffic.mu after
// Service.mu or alone.
package relay
