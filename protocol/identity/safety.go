package identity

import (
	"crypto/sha512"
	"fmt"
	"strings"
)

// The safety number algorithm (SPEC §4). Its version bytes are ours, so that a
// number of another messenger is never taken for one of this.
const (
	safetyVersion    = 0x5301
	safetyIterations = 5200
	safetyGroups     = 6 // groups of five digits a side
)

// SafetyNumber returns the safety number of two accounts: 60 digits, to be shown
// in twelve groups of five. Both sides get the same. If two people compare it
// and it is equal, nobody sits between them.
//
// It takes 10,400 hashes, a few milliseconds: compute it when it is asked for.
func SafetyNumber(a, b Account) string {
	x := fingerprint(safetyVersion, a[:], nil, safetyIterations)
	y := fingerprint(safetyVersion, b[:], nil, safetyIterations)
	return x.join(y)
}

// A safetyHash is one side's fingerprint.
type safetyHash [sha512.Size]byte

// fingerprint is the published algorithm: SHA-512 over version ‖ key ‖ id ‖ key,
// then over the hash ‖ key, iterations times in all. The iterations make it
// dearer to search for a key with nearly the same digits.
func fingerprint(version uint16, key, id []byte, iterations int) safetyHash {
	in := []byte{byte(version >> 8), byte(version)}
	in = append(in, key...)
	in = append(in, id...)
	in = append(in, key...)
	h := sha512.Sum512(in)
	in = append(h[:], key...)
	for range iterations - 1 {
		copy(in, h[:])
		h = sha512.Sum512(in)
	}
	return h
}

// digits returns the 30 digits of one side: each five bytes, big-endian, modulo
// 100,000.
func (h safetyHash) digits() string {
	var s strings.Builder
	for i := range safetyGroups {
		var n uint64
		for _, c := range h[5*i : 5*i+5] {
			n = n<<8 | uint64(c)
		}
		fmt.Fprintf(&s, "%05d", n%100_000)
	}
	return s.String()
}

// join returns the digits of both sides, the smaller first.
func (h safetyHash) join(o safetyHash) string {
	x, y := h.digits(), o.digits()
	return min(x, y) + max(x, y)
}
