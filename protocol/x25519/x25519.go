// Package x25519 holds X25519 keys as the rest of the protocol needs them:
// imported strictly, generated quickly, impossible to print.
//
// It stands apart from identity and ratchet because both need the same key
// type and neither should import the other: a ratchet key is nobody's
// identity (SPEC §3).
package x25519

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"filippo.io/edwards25519"
	"filippo.io/edwards25519/field"
)

// Size is the length in bytes of a public key, a private key and a shared
// secret.
const Size = 32

// ErrKey means that the bytes are not a canonical public key, or that the key
// has low order, so that the shared secret would be zero. Refuse whatever
// carried it.
var ErrKey = errors.New("x25519: not an acceptable public key")

// A Public key is the canonical little-endian encoding of a u-coordinate: bit
// 255 clear and u < 2^255 - 19 (RFC 7748 §5 lets implementations accept
// more; SPEC §3 does not, so that a key has one encoding).
type Public [Size]byte

// Parse returns the public key that b encodes, or [ErrKey].
func Parse(b []byte) (Public, error) {
	if len(b) != Size || !canonical(b) {
		return Public{}, ErrKey
	}
	return Public(b), nil
}

// canonical reports whether the 32 bytes of b encode a number below 2^255 - 19.
func canonical(b []byte) bool {
	if b[31] != 0x7f {
		return b[31] < 0x7f
	}
	for _, x := range b[1:31] {
		if x != 0xff {
			return true
		}
	}
	return b[0] < 0xed
}

// A Private key is a 32-byte seed, clamped on use (RFC 7748 §5).
type Private struct {
	_    [0]func() // not comparable: == is not constant-time
	seed [Size]byte
	pub  Public
}

// Generate draws a private key from rand.
func Generate(rand io.Reader) (Private, error) {
	var seed [Size]byte
	if _, err := io.ReadFull(rand, seed[:]); err != nil {
		return Private{}, fmt.Errorf("x25519: drawing a key: %w", err)
	}
	return FromSeed(seed), nil
}

// FromSeed returns the private key with the given seed. It computes the public
// key through the Edwards fixed-base table and the birational map, which is
// faster than the Montgomery ladder and gives the same bytes.
func FromSeed(seed [Size]byte) Private {
	s, err := new(edwards25519.Scalar).SetBytesWithClamping(seed[:])
	if err != nil {
		panic("x25519: internal error: a seed has 32 bytes")
	}
	k := Private{seed: seed}
	copy(k.pub[:], new(edwards25519.Point).ScalarBaseMult(s).BytesMontgomery())
	return k
}

// Restore returns the private key with the given seed whose public key is
// already known, as it is when both were stored together. It does not check
// that they belong together.
func Restore(seed [Size]byte, pub Public) Private { return Private{seed: seed, pub: pub} }

// Public returns the public half.
func (k *Private) Public() Public { return k.pub }

// Seed returns the secret seed, for storage.
func (k *Private) Seed() [Size]byte { return k.seed }

// Shared returns the X25519 shared secret with pub, or [ErrKey] if it would be
// zero (RFC 7748 §6.1).
func (k *Private) Shared(pub Public) ([Size]byte, error) {
	z := ladder(&k.seed, &pub)
	if z == ([Size]byte{}) {
		return z, ErrKey
	}
	return z, nil
}

// ladder is the function X25519 of RFC 7748 §5, in constant time, over the
// field arithmetic of filippo.io/edwards25519.
//
// It is here because crypto/ecdh computes the public key, a second ladder,
// each time a private key is imported, and the ratchet imports one from its
// stored state for every message it opens: half of the work would be thrown
// away. The tests hold it against crypto/ecdh.
func ladder(scalar *[Size]byte, u *Public) [Size]byte {
	e := *scalar
	e[0] &= 248
	e[31] &= 127
	e[31] |= 64

	var x1, x2, z2, x3, z3, a, aa, b, bb, ee, c, d, da, cb, t field.Element
	x1.SetBytes(u[:])
	x2.One()
	x3.Set(&x1)
	z3.One()

	swap := 0
	for pos := 254; pos >= 0; pos-- {
		bit := int(e[pos/8]>>(pos&7)) & 1
		swap ^= bit
		x2.Swap(&x3, swap)
		z2.Swap(&z3, swap)
		swap = bit

		a.Add(&x2, &z2)
		aa.Square(&a)
		b.Subtract(&x2, &z2)
		bb.Square(&b)
		ee.Subtract(&aa, &bb)
		c.Add(&x3, &z3)
		d.Subtract(&x3, &z3)
		da.Multiply(&d, &a)
		cb.Multiply(&c, &b)
		t.Add(&da, &cb)
		x3.Square(&t)
		t.Subtract(&da, &cb)
		t.Square(&t)
		z3.Multiply(&x1, &t)
		x2.Multiply(&aa, &bb)
		t.Mult32(&ee, 121665)
		t.Add(&aa, &t)
		z2.Multiply(&ee, &t)
	}
	x2.Swap(&x3, swap)
	z2.Swap(&z3, swap)

	z2.Invert(&z2)
	x2.Multiply(&x2, &z2)
	return [Size]byte(x2.Bytes())
}

// LogValue keeps the key out of logs.
func (Private) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the key out of everything that package fmt prints.
func (Private) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }
