// Package spool keeps what a relay holds for others: blobs of a few fixed
// sizes, each in a queue and under a number, until it is deleted or over.
//
// There is one file for each size. It is an array of slots, so that nothing is
// ever compacted in the background, a delete frees its place at once, and what
// the disk holds is known to the byte:
//
//	file    header [4096]byte, twice; slots
//	header  crc u32 ‖ version u8 ‖ 0 [3] ‖ size u32 ‖ 0 [4] ‖ bound u64 ‖ magic [8]; zeros
//	slot    crc u32 ‖ version u8 ‖ 0 [3] ‖ length u32 ‖ 0 [4] ‖ id u64 ‖ expires i64 ‖ queue [32] ‖ blob; zeros up to size
//
// Integers are big-endian. The checksum of a slot is CRC-32C over its number in
// the file (u64), its header from the version on and its blob. A slot counts
// only if its checksum holds, so a write that a crash has torn is a free slot,
// and a flipped bit costs one entry. The checksum finds accidents, not forgers:
// what a relay returns is authenticated end to end. The bound is above every
// number given out so far, so that none is given twice, whatever the clock does.
//
// Calls that change something wait for the disk together. All that wait at one
// time form a group: the writer, a single goroutine, writes them and syncs each
// file once for all. The entries of a group are known together only then, so a
// promise over them, such as a signature over the root of a tree of their
// leaves, is made once a group by [Config.Attest], and each caller of
// [Spool.Put] gets its part of it. A group is at most [MaxGroup] entries.
//
// The quota bounds the lengths of the files. Space that one size does not use
// any more goes to the others when they need it: the last entries of its file
// move into free slots before them, and the file is cut.
//
// In memory an entry takes 32 bytes in its queue and a bit for its slot, with
// the slack of growing slices about 40, and a queue that is not empty about 110
// more (BenchmarkMemory): 46 MB for a full GiB of the smallest envelopes in
// queues of two.
//
// What it does not do: know who may put, read or delete, limit queues, or hide
// that a queue has entries. A deleted blob's ciphertext lies in its free slot
// until that is used again; its header with the queue's name does not.
package spool
