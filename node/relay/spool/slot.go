package spool

import (
	"encoding/binary"
	"hash/crc32"
)

// The layout of files and slots, as in the package comment.
const (
	version = 1 // of both headers

	slotHeader = 4 + 1 + 3 + 4 + 4 + 8 + 8 + 32 // bytes before a blob
	fileHeader = 4 + 1 + 3 + 4 + 4 + 8 + 8      // bytes that mean something
	headerStep = 4096                           // apart, so that no torn block takes both
	headers    = 2                              // copies, written in turn
	firstSlot  = headers * headerStep           // offset in the file
	magic      = "\xd7spool\r\n"                // says that a file is ours and was not mangled
	checkFrom  = 4                              // a checksum does not cover itself
	maxSlots   = 1<<31 - 1                      // in a file; numbers are u32 in memory
	maxSize    = 1 << 20                        // of a blob; lengths are 24 bits in memory
	maxSizes   = 16                             // files
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A slotState is what the bytes of a slot turned out to be.
type slotState int

const (
	slotFree    slotState = iota // never used, or cleared
	slotValid                    // an entry, whole
	slotDamaged                  // a torn write, or a disk's mistake
	slotNewer                    // whole, of a version unknown here
)

// A record is what a slot holds.
type record struct {
	queue   Queue
	id      uint64
	expires int64 // Unix seconds
	blob    []byte
}

// slotSum is the checksum of the slot with the given number.
func slotSum(b []byte, slot uint32, length int) uint32 {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(slot))
	sum := crc32.Update(0, castagnoli, n[:])
	return crc32.Update(sum, castagnoli, b[checkFrom:slotHeader+length])
}

// putSlot fills b, a whole slot, with r.
func putSlot(b []byte, slot uint32, r record) {
	clear(b[:slotHeader])
	b[4] = version
	binary.BigEndian.PutUint32(b[8:], uint32(len(r.blob)))
	binary.BigEndian.PutUint64(b[16:], r.id)
	binary.BigEndian.PutUint64(b[24:], uint64(r.expires))
	copy(b[32:slotHeader], r.queue[:])
	clear(b[slotHeader+copy(b[slotHeader:], r.blob):])
	binary.BigEndian.PutUint32(b, slotSum(b, slot, len(r.blob)))
}

// parseSlot reads a whole slot; the record's blob is a part of b.
func parseSlot(b []byte, slot uint32) (record, slotState) {
	n := binary.BigEndian.Uint32(b[8:])
	switch {
	case isZero(b[:slotHeader]):
		return record{}, slotFree
	case uint64(n) > uint64(len(b)-slotHeader) || binary.BigEndian.Uint32(b) != slotSum(b, slot, int(n)):
		return record{}, slotDamaged
	case b[4] != version:
		return record{}, slotNewer
	}
	return record{
		queue:   Queue(b[32:slotHeader]),
		id:      binary.BigEndian.Uint64(b[16:]),
		expires: int64(binary.BigEndian.Uint64(b[24:])),
		blob:    b[slotHeader : slotHeader+int(n)],
	}, slotValid
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// marshalHeader returns the header of a file with blobs of size bytes.
func marshalHeader(size int, bound uint64) []byte {
	b := make([]byte, fileHeader)
	b[4] = version
	binary.BigEndian.PutUint32(b[8:], uint32(size))
	binary.BigEndian.PutUint64(b[16:], bound)
	copy(b[24:], magic)
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[checkFrom:], castagnoli))
	return b
}

// parseHeader reads one copy of a file's header.
func parseHeader(b []byte, size int) (bound uint64, state slotState) {
	switch {
	case isZero(b):
		return 0, slotFree
	case string(b[24:fileHeader]) != magic || binary.BigEndian.Uint32(b) != crc32.Checksum(b[checkFrom:fileHeader], castagnoli):
		return 0, slotDamaged
	case b[4] != version:
		return 0, slotNewer
	case int64(binary.BigEndian.Uint32(b[8:])) != int64(size):
		return 0, slotDamaged // the file was renamed
	}
	return binary.BigEndian.Uint64(b[16:]), slotValid
}
