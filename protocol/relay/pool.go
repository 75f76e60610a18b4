package relay

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"starling/protocol"
	"starling/protocol/identity"
)

// The layout of a sealed one-time key (SPEC §13.8): nonce ‖ sealed padding ‖
// tag. Padded it has one size, which is that of the shortest sealed envelope:
// a relay's disk shows no more of it than that.
const (
	blobNonce  = 12
	blobTag    = 16
	blobPadded = protocol.KeyBlob - blobNonce - blobTag // a bundle, 0x80, zeros
	marker     = 0x80
)

// ErrBlob means that a blob is no key of this pool: the relay gave something
// else, or someone made the pool's name known. Go on without a one-time key.
var ErrBlob = errors.New("relay: not a one-time key of this pool")

// A PoolID names a pool of one-time keys at a relay. Knowing it takes (A, L):
// to a relay, and to whoever has only a queue's ID, it says nothing.
type PoolID [sha256.Size]byte

// A Pool is the one-time keys (T2, SPEC §13.8) that an account keeps in one
// contact box at one relay. The owner seals signed bundles for it; whoever knows
// account and lookup secret takes and opens one. It never changes and is safe
// for concurrent use.
type Pool struct {
	id   PoolID
	aead cipher.AEAD
}

// NewPool returns the pool of account a with lookup secret l, in the contact box
// box at relay. The box is in the derivation, so that the boxes of two devices
// of one account at one relay have nothing in common.
func NewPool(a identity.Account, l identity.LookupSecret, relay identity.Transport, box QueueID) *Pool {
	ikm := append(a[:], l[:]...)
	derive := func(label protocol.Label) []byte {
		b, err := hkdf.Key(sha256.New, ikm, nil, string(label.Bind(relay[:], box[:])), sha256.Size)
		if err != nil {
			panic("relay: internal error: HKDF gives 32 bytes")
		}
		return b
	}
	block, err := aes.NewCipher(derive(protocol.LabelPoolKey))
	if err != nil {
		panic("relay: internal error: AES-256 takes 32 bytes")
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("relay: internal error: AES has blocks of 16 bytes")
	}
	return &Pool{id: PoolID(derive(protocol.LabelPoolID)), aead: aead}
}

// ID returns the pool's name at the relay.
func (p *Pool) ID() PoolID { return p.id }

// Seal returns the blob of a signed one-time bundle, of at most
// [protocol.MaxBundle] bytes: [protocol.KeyBlob] bytes that differ each time.
// The nonce is drawn from rand; at a hundred keys a batch, 96 random bits do
// not repeat, and what they protect are public keys.
func (p *Pool) Seal(rand io.Reader, bundle []byte) ([]byte, error) {
	if len(bundle) > protocol.MaxBundle {
		return nil, fmt.Errorf("relay: a bundle of %d bytes, at most %d are allowed", len(bundle), protocol.MaxBundle)
	}
	var nonce [blobNonce]byte
	if _, err := io.ReadFull(rand, nonce[:]); err != nil {
		return nil, fmt.Errorf("relay: drawing a nonce: %w", err)
	}
	return p.seal(nonce, bundle), nil
}

func (p *Pool) seal(nonce [blobNonce]byte, bundle []byte) []byte {
	padded := make([]byte, blobPadded)
	padded[copy(padded, bundle)] = marker
	b := append(make([]byte, 0, protocol.KeyBlob), nonce[:]...)
	return p.aead.Seal(b, nonce[:], padded, p.id[:])
}

// Open returns the bundle that blob holds, or [ErrBlob]. All that it proves is
// that someone with (A, L) made it: the bundle's own signature says who
// (prekey.OpenBundle).
func (p *Pool) Open(blob []byte) ([]byte, error) {
	if len(blob) != protocol.KeyBlob {
		return nil, ErrBlob
	}
	padded, err := p.aead.Open(nil, blob[:blobNonce], blob[blobNonce:], p.id[:])
	if err != nil {
		return nil, ErrBlob
	}
	bundle := bytes.TrimRight(padded, "\x00")
	n := len(bundle) - 1
	if n < 0 || n > protocol.MaxBundle || bundle[n] != marker {
		return nil, ErrBlob
	}
	return bundle[:n], nil
}

// LogValue keeps the key out of logs.
func (*Pool) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the key out of everything that package fmt prints.
func (*Pool) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }
