package prekey

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"errors"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// NonceSize is the length in bytes of each side's nonce in a request for a
// one-time key.
const NonceSize = 32

// MaxAnswer is the most bytes of a sealed answer: a manifest, two bundles and
// endpoints.
const MaxAnswer = 32 << 10

// ErrAnswer means that an answer does not open: it is not from somebody who
// knows the lookup secret, or not for this request. Ask another address.
var ErrAnswer = errors.New("prekey: the answer to a request for a one-time key does not open")

// A Request is one request for a one-time key from the peer itself (T1, SPEC
// §9), as both sides see it: whose key, under which lookup secret, between
// which two transport keys, with which nonces.
type Request struct {
	Account        identity.Account // of the responder
	Lookup         identity.LookupSecret
	Requester      identity.Transport
	Responder      identity.Transport
	RequesterNonce [NonceSize]byte
	ResponderNonce [NonceSize]byte
}

// derive returns the key of this request for one use.
func (r *Request) derive(label protocol.Label) []byte {
	ikm := append(append([]byte{}, r.Account[:]...), r.Lookup[:]...)
	salt := append(append([]byte{}, r.RequesterNonce[:]...), r.ResponderNonce[:]...)
	key, err := hkdf.Key(sha256.New, ikm, salt, string(label.Bind(r.Requester[:], r.Responder[:])), sha256.Size)
	if err != nil {
		panic("prekey: internal error: HKDF gives 32 bytes")
	}
	return key
}

// Proof shows that the requester knows A and L. It is bound to both transport
// keys, so that it is of no use to whoever it is shown to.
func (r *Request) Proof() [32]byte {
	h := hmac.New(sha256.New, r.derive(protocol.LabelPreKeyProof))
	h.Write(protocol.LabelPreKeyProof.Bind())
	return [32]byte(h.Sum(nil))
}

// Check reports in constant time whether proof is [Request.Proof].
func (r *Request) Check(proof []byte) bool {
	want := r.Proof()
	return hmac.Equal(proof, want[:])
}

// SealAnswer encrypts the answer to r, so that only who knows A and L reads it.
func (r *Request) SealAnswer(m *wire.PreKeyAnswer) []byte {
	return r.answerAEAD().Seal(nil, make([]byte, 12), wire.Marshal(m), nil)
}

// OpenAnswer opens what [Request.SealAnswer] made, or returns [ErrAnswer].
func (r *Request) OpenAnswer(b []byte) (*wire.PreKeyAnswer, error) {
	if len(b) > MaxAnswer {
		return nil, ErrAnswer
	}
	plain, err := r.answerAEAD().Open(nil, make([]byte, 12), b, nil)
	if err != nil {
		return nil, ErrAnswer
	}
	m := new(wire.PreKeyAnswer)
	if err := wire.Parse(plain, MaxAnswer, m); err != nil {
		return nil, ErrAnswer
	}
	return m, nil
}

// answerAEAD returns the cipher of the answer. Its nonce is zero, because the
// key is used once: both sides' fresh nonces are in it.
func (r *Request) answerAEAD() cipher.AEAD {
	block, err := aes.NewCipher(r.derive(protocol.LabelPreKeyAnswer))
	if err != nil {
		panic("prekey: internal error: an AES-256 key has 32 bytes")
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("prekey: internal error: AES has 16-byte blocks")
	}
	return aead
}
