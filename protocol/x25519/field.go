package x25519

import (
	"encoding/binary"
	"math/bits"
)

// An element is a number modulo p = 2^255 - 19 in four little-endian limbs. It
// may be any representative below 2^256; only bytes reduces it. No function
// branches on or indexes by a value, and math/bits promises constant time.
//
// The ladder has a field of its own because filippo.io/edwards25519/field
// keeps five limbs of 51 bits and carries after each addition. Four full limbs
// take 20 wide multiplications for a product instead of 25, and a whole
// agreement a fifth less time. The reduction rests on 2^256 = 38 (mod p).
type element [4]uint64

// setBytes sets r to the number that b encodes, and ignores bit 255 (RFC 7748
// §5).
func (r *element) setBytes(b *[Size]byte) {
	for i := range r {
		r[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	r[3] &= 1<<63 - 1
}

// bytes returns the canonical encoding of r.
func (r *element) bytes() (b [Size]byte) {
	// Fold bit 255, which stands for 19; then v < 2^255 + 19.
	v0, c := bits.Add64(r[0], 19*(r[3]>>63), 0)
	v1, c := bits.Add64(r[1], 0, c)
	v2, c := bits.Add64(r[2], 0, c)
	v3 := r[3]&(1<<63-1) + c
	// v >= p exactly when v + 19 reaches bit 255, and then v - p is the rest.
	w0, c := bits.Add64(v0, 19, 0)
	w1, c := bits.Add64(v1, 0, c)
	w2, c := bits.Add64(v2, 0, c)
	w3 := v3 + c
	over := -(w3 >> 63)
	w3 &= 1<<63 - 1
	for i, x := range [4][2]uint64{{v0, w0}, {v1, w1}, {v2, w2}, {v3, w3}} {
		binary.LittleEndian.PutUint64(b[8*i:], x[0]^over&(x[0]^x[1]))
	}
	return b
}

// swap exchanges r and a if on is 1, and does nothing if it is 0.
func (r *element) swap(a *element, on uint64) {
	m := -on
	for i := range r {
		t := m & (r[i] ^ a[i])
		r[i] ^= t
		a[i] ^= t
	}
}

// add sets r to a + b.
func (r *element) add(a, b *element) {
	r0, c := bits.Add64(a[0], b[0], 0)
	r1, c := bits.Add64(a[1], b[1], c)
	r2, c := bits.Add64(a[2], b[2], c)
	r3, c := bits.Add64(a[3], b[3], c)
	r0, c = bits.Add64(r0, -c&38, 0)
	r1, c = bits.Add64(r1, 0, c)
	r2, c = bits.Add64(r2, 0, c)
	r3, c = bits.Add64(r3, 0, c)
	// A second carry leaves r0 below 38.
	r[0], r[1], r[2], r[3] = r0+(-c&38), r1, r2, r3
}

// sub sets r to a - b.
func (r *element) sub(a, b *element) {
	r0, c := bits.Sub64(a[0], b[0], 0)
	r1, c := bits.Sub64(a[1], b[1], c)
	r2, c := bits.Sub64(a[2], b[2], c)
	r3, c := bits.Sub64(a[3], b[3], c)
	r0, c = bits.Sub64(r0, -c&38, 0)
	r1, c = bits.Sub64(r1, 0, c)
	r2, c = bits.Sub64(r2, 0, c)
	r3, c = bits.Sub64(r3, 0, c)
	// A second borrow leaves r0 within 38 of 2^64.
	r[0], r[1], r[2], r[3] = r0-(-c&38), r1, r2, r3
}

// mulSmall sets r to a times k, where k has at most 32 bits.
func (r *element) mulSmall(a *element, k uint64) {
	h0, r0 := bits.Mul64(a[0], k)
	h1, r1 := bits.Mul64(a[1], k)
	h2, r2 := bits.Mul64(a[2], k)
	h3, r3 := bits.Mul64(a[3], k)
	r1, c := bits.Add64(r1, h0, 0)
	r2, c = bits.Add64(r2, h1, c)
	r3, c = bits.Add64(r3, h2, c)
	r0, c = bits.Add64(r0, (h3+c)*38, 0)
	r1, c = bits.Add64(r1, 0, c)
	r2, c = bits.Add64(r2, 0, c)
	r3, c = bits.Add64(r3, 0, c)
	// A second carry leaves r0 below 38 * 2^32.
	r[0], r[1], r[2], r[3] = r0+(-c&38), r1, r2, r3
}

// mul sets r to a times b: four rows of the schoolbook product, then the upper
// half times 38 onto the lower.
func (r *element) mul(a, b *element) {
	b0, b1, b2, b3 := b[0], b[1], b[2], b[3]

	x := a[0]
	h0, r0 := bits.Mul64(x, b0)
	h1, r1 := bits.Mul64(x, b1)
	h2, r2 := bits.Mul64(x, b2)
	r4, r3 := bits.Mul64(x, b3)
	r1, c := bits.Add64(r1, h0, 0)
	r2, c = bits.Add64(r2, h1, c)
	r3, c = bits.Add64(r3, h2, c)
	r4 += c

	x = a[1]
	h0, l0 := bits.Mul64(x, b0)
	h1, l1 := bits.Mul64(x, b1)
	h2, l2 := bits.Mul64(x, b2)
	h3, l3 := bits.Mul64(x, b3)
	r1, c = bits.Add64(r1, l0, 0)
	r2, c = bits.Add64(r2, l1, c)
	r3, c = bits.Add64(r3, l2, c)
	r4, c = bits.Add64(r4, l3, c)
	r5 := h3 + c
	r2, c = bits.Add64(r2, h0, 0)
	r3, c = bits.Add64(r3, h1, c)
	r4, c = bits.Add64(r4, h2, c)
	r5 += c

	x = a[2]
	h0, l0 = bits.Mul64(x, b0)
	h1, l1 = bits.Mul64(x, b1)
	h2, l2 = bits.Mul64(x, b2)
	h3, l3 = bits.Mul64(x, b3)
	r2, c = bits.Add64(r2, l0, 0)
	r3, c = bits.Add64(r3, l1, c)
	r4, c = bits.Add64(r4, l2, c)
	r5, c = bits.Add64(r5, l3, c)
	r6 := h3 + c
	r3, c = bits.Add64(r3, h0, 0)
	r4, c = bits.Add64(r4, h1, c)
	r5, c = bits.Add64(r5, h2, c)
	r6 += c

	x = a[3]
	h0, l0 = bits.Mul64(x, b0)
	h1, l1 = bits.Mul64(x, b1)
	h2, l2 = bits.Mul64(x, b2)
	h3, l3 = bits.Mul64(x, b3)
	r3, c = bits.Add64(r3, l0, 0)
	r4, c = bits.Add64(r4, l1, c)
	r5, c = bits.Add64(r5, l2, c)
	r6, c = bits.Add64(r6, l3, c)
	r7 := h3 + c
	r4, c = bits.Add64(r4, h0, 0)
	r5, c = bits.Add64(r5, h1, c)
	r6, c = bits.Add64(r6, h2, c)
	r7 += c

	h0, l0 = bits.Mul64(r4, 38)
	h1, l1 = bits.Mul64(r5, 38)
	h2, l2 = bits.Mul64(r6, 38)
	h3, l3 = bits.Mul64(r7, 38)
	r0, c = bits.Add64(r0, l0, 0)
	r1, c = bits.Add64(r1, l1, c)
	r2, c = bits.Add64(r2, l2, c)
	r3, c = bits.Add64(r3, l3, c)
	h3 += c
	r1, c = bits.Add64(r1, h0, 0)
	r2, c = bits.Add64(r2, h1, c)
	r3, c = bits.Add64(r3, h2, c)
	h3 += c
	r0, c = bits.Add64(r0, h3*38, 0)
	r1, c = bits.Add64(r1, 0, c)
	r2, c = bits.Add64(r2, 0, c)
	r3, c = bits.Add64(r3, 0, c)
	// A third carry leaves r0 below 39 * 38.
	r[0], r[1], r[2], r[3] = r0+(-c&38), r1, r2, r3
}

// square sets r to a times a: the products of different limbs once, doubled,
// and the squares of the limbs.
func (r *element) square(a *element) {
	a0, a1, a2, a3 := a[0], a[1], a[2], a[3]

	h0, r1 := bits.Mul64(a0, a1)
	h1, r2 := bits.Mul64(a0, a2)
	r4, r3 := bits.Mul64(a0, a3)
	r2, c := bits.Add64(r2, h0, 0)
	r3, c = bits.Add64(r3, h1, c)
	r4 += c
	h0, l0 := bits.Mul64(a1, a2)
	r5, l1 := bits.Mul64(a1, a3)
	r3, c = bits.Add64(r3, l0, 0)
	r4, c = bits.Add64(r4, l1, c)
	r5 += c
	r6, l2 := bits.Mul64(a2, a3)
	r4, c = bits.Add64(r4, h0, 0)
	r5, c = bits.Add64(r5, l2, c)
	r6 += c

	r1, c = bits.Add64(r1, r1, 0)
	r2, c = bits.Add64(r2, r2, c)
	r3, c = bits.Add64(r3, r3, c)
	r4, c = bits.Add64(r4, r4, c)
	r5, c = bits.Add64(r5, r5, c)
	r6, c = bits.Add64(r6, r6, c)
	r7 := c

	h0, r0 := bits.Mul64(a0, a0)
	h1, l1 = bits.Mul64(a1, a1)
	h2, l2 := bits.Mul64(a2, a2)
	h3, l3 := bits.Mul64(a3, a3)
	r1, c = bits.Add64(r1, h0, 0)
	r2, c = bits.Add64(r2, l1, c)
	r3, c = bits.Add64(r3, h1, c)
	r4, c = bits.Add64(r4, l2, c)
	r5, c = bits.Add64(r5, h2, c)
	r6, c = bits.Add64(r6, l3, c)
	r7 += h3 + c

	h0, l0 = bits.Mul64(r4, 38)
	h1, l1 = bits.Mul64(r5, 38)
	h2, l2 = bits.Mul64(r6, 38)
	h3, l3 = bits.Mul64(r7, 38)
	r0, c = bits.Add64(r0, l0, 0)
	r1, c = bits.Add64(r1, l1, c)
	r2, c = bits.Add64(r2, l2, c)
	r3, c = bits.Add64(r3, l3, c)
	h3 += c
	r1, c = bits.Add64(r1, h0, 0)
	r2, c = bits.Add64(r2, h1, c)
	r3, c = bits.Add64(r3, h2, c)
	h3 += c
	r0, c = bits.Add64(r0, h3*38, 0)
	r1, c = bits.Add64(r1, 0, c)
	r2, c = bits.Add64(r2, 0, c)
	r3, c = bits.Add64(r3, 0, c)
	// A third carry leaves r0 below 39 * 38.
	r[0], r[1], r[2], r[3] = r0+(-c&38), r1, r2, r3
}

// invert sets r to 1/a, and to 0 if a is 0: a^(p-2), by the usual chain of 254
// squarings and 11 multiplications.
func (r *element) invert(a *element) {
	// eN is a to the power 2^N - 1.
	var a2, a9, a11, e5, e10, e20, e50, e100, t element
	times := func(x, y *element, n int) { // x = y^(2^n)
		x.square(y)
		for range n - 1 {
			x.square(x)
		}
	}
	a2.square(a)
	times(&t, &a2, 2)
	a9.mul(&t, a)
	a11.mul(&a9, &a2)
	t.square(&a11)
	e5.mul(&t, &a9)
	times(&t, &e5, 5)
	e10.mul(&t, &e5)
	times(&t, &e10, 10)
	e20.mul(&t, &e10)
	times(&t, &e20, 20)
	t.mul(&t, &e20)
	times(&t, &t, 10)
	e50.mul(&t, &e10)
	times(&t, &e50, 50)
	e100.mul(&t, &e50)
	times(&t, &e100, 100)
	t.mul(&t, &e100)
	times(&t, &t, 50)
	t.mul(&t, &e50)
	times(&t, &t, 5)
	r.mul(&t, &a11)
}
