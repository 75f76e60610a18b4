package record

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"

	"filippo.io/edwards25519"
	"golang.org/x/crypto/chacha20poly1305"

	"starling/protocol"
	"starling/protocol/identity"
)

// factor returns h, the blinding factor of a day and replica (SPEC §10):
//
//	h = SHA-512(LabelBlind ‖ 0x00 ‖ A ‖ L ‖ e ‖ r) mod ℓ
//
// Whoever knows A and L can compute it, so it hides the account from everyone
// else and from nobody who was given the link.
func factor(a identity.Account, l identity.LookupSecret, day uint32, replica byte) *edwards25519.Scalar {
	var e [4]byte
	binary.BigEndian.PutUint32(e[:], day)
	sum := sha512.Sum512(protocol.LabelBlind.Bind(a[:], l[:], e[:], []byte{replica}))
	return uniform(sum)
}

// uniform reduces a 64-byte hash modulo the order of the group.
func uniform(sum [sha512.Size]byte) *edwards25519.Scalar {
	s, err := new(edwards25519.Scalar).SetUniformBytes(sum[:])
	if err != nil {
		panic("record: internal error: a SHA-512 hash has 64 bytes")
	}
	return s
}

// blindPublic returns A_e = h·A. It panics if a is not a curve point, which
// [identity.ParseAccount] has ruled out.
func blindPublic(a identity.Account, l identity.LookupSecret, day uint32, replica byte) [identity.KeySize]byte {
	p, err := new(edwards25519.Point).SetBytes(a[:])
	if err != nil {
		panic("record: internal error: an account key that strict import did not see")
	}
	p.ScalarMult(factor(a, l, day, replica), p)
	return [identity.KeySize]byte(p.Bytes())
}

// A blinded key is the private half of A_e. It never leaves this package: with
// h, which every contact can compute, it gives away the account key.
type blinded struct {
	_      [0]func() // not comparable: == is not constant-time
	scalar *edwards25519.Scalar
	prefix [32]byte
	public [identity.KeySize]byte
}

// blind returns the private half of A_e: the scalar h·a, and a nonce prefix
// that depends on h too, so that two days never share a nonce (SPEC §10).
func blind(k *identity.AccountKey, l identity.LookupSecret, day uint32, replica byte) blinded {
	scalar, prefix := k.Expand()
	h := factor(k.Account(), l, day, replica)
	sum := sha512.Sum512(protocol.LabelBlindPrefix.Bind(prefix[:], h.Bytes()))
	scalar.Multiply(h, scalar)
	return blinded{
		scalar: scalar,
		prefix: [32]byte(sum[:32]),
		public: [identity.KeySize]byte(new(edwards25519.Point).ScalarBaseMult(scalar).Bytes()),
	}
}

// sign signs body under label as RFC 8032 §5.1.6 does, from a scalar and prefix
// that are given instead of hashed from a seed. Any Ed25519 verifier accepts
// the result.
func (b blinded) sign(label protocol.Label, body []byte) []byte {
	m := label.Bind(body)

	h := sha512.New()
	h.Write(b.prefix[:])
	h.Write(m)
	r := uniform([sha512.Size]byte(h.Sum(nil)))
	encoded := new(edwards25519.Point).ScalarBaseMult(r).Bytes()

	h.Reset()
	h.Write(encoded)
	h.Write(b.public[:])
	h.Write(m)
	k := uniform([sha512.Size]byte(h.Sum(nil)))
	s := new(edwards25519.Scalar).MultiplyAdd(k, b.scalar, r)
	return append(encoded, s.Bytes()...)
}

// keyHash returns the 32 bytes under which the record of a blinded key is
// stored.
func keyHash(public []byte) [KeySize]byte {
	return sha256.Sum256(protocol.LabelRecordKey.Bind(public))
}

// bodyKey derives the key of a record's body from what only those who were
// given the link know.
func bodyKey(a identity.Account, l identity.LookupSecret, public []byte) []byte {
	k, err := hkdf.Key(sha256.New, bytes.Join([][]byte{a[:], l[:]}, nil), public, string(protocol.LabelRecordBody), chacha20poly1305.KeySize)
	if err != nil {
		panic("record: internal error: HKDF gives 32 bytes")
	}
	return k
}

// verify reports whether sig is key's Ed25519 signature over body under label.
func verify(key []byte, label protocol.Label, body, sig []byte) bool {
	return ed25519.Verify(key, label.Bind(body), sig)
}
