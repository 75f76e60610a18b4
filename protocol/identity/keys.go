package identity

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"filippo.io/edwards25519"

	"starling/protocol"
	"starling/protocol/x25519"
)

// Sizes in bytes.
const (
	KeySize       = ed25519.PublicKeySize
	SignatureSize = ed25519.SignatureSize
	SecretSize    = 32 // account secret and seeds
	LookupSize    = 16 // lookup secret L
	TokenSize     = 16 // invite token
)

// ErrKey means that the bytes are not an acceptable Ed25519 public key. Refuse
// whatever carried it.
var ErrKey = errors.New("identity: not an acceptable Ed25519 public key")

// ErrSignature means that a signature does not verify. Refuse what it covers.
var ErrSignature = errors.New("identity: signature does not verify")

// An Account is an account key's public half, A: the identity that safety
// numbers cover. Values made by [ParseAccount] passed strict import (SPEC §3).
type Account [KeySize]byte

// A Device is a device signing key's public half.
type Device [KeySize]byte

// A Transport is the public half of a libp2p host key (Ed25519).
type Transport [KeySize]byte

// A LookupSecret is L: whoever knows it and A can find and read the account's
// DHT record.
type LookupSecret [LookupSize]byte

// A Token admits the bearer of an invite link, once.
type Token [TokenSize]byte

// ParseAccount returns the account key that b holds, or [ErrKey].
func ParseAccount(b []byte) (Account, error) { return parse[Account](b) }

// ParseDevice returns the device signing key that b holds, or [ErrKey].
func ParseDevice(b []byte) (Device, error) { return parse[Device](b) }

// ParseTransport returns the transport key that b holds, or [ErrKey].
func ParseTransport(b []byte) (Transport, error) { return parse[Transport](b) }

func parse[K ~[KeySize]byte](b []byte) (K, error) {
	var k K
	if len(b) != KeySize || !acceptable(b) {
		return k, ErrKey
	}
	copy(k[:], b)
	return k, nil
}

// minusOne is L - 1, the scalar -1, for the torsion check.
var minusOne = func() *edwards25519.Scalar {
	one, err := new(edwards25519.Scalar).SetCanonicalBytes(append([]byte{1}, make([]byte, 31)...))
	if err != nil {
		panic("identity: internal error: 1 is a canonical scalar")
	}
	return new(edwards25519.Scalar).Negate(one)
}()

// acceptable reports whether b is the canonical encoding of a point of prime
// order. crypto/ed25519 checks none of it: under the identity point a trivial
// signature verifies for every message, and under a torsioned key two
// verifiers may disagree.
func acceptable(b []byte) bool {
	p, err := new(edwards25519.Point).SetBytes(b)
	if err != nil || string(p.Bytes()) != string(b) {
		return false // off the curve, or not canonical
	}
	if new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return false // small order
	}
	// [L-1]P = -P exactly when P has no torsion component.
	neg := new(edwards25519.Point).Negate(p)
	return new(edwards25519.Point).VarTimeDoubleScalarBaseMult(minusOne, p, new(edwards25519.Scalar)).Equal(neg) == 1
}

// Verify returns nil if sig is the account key's signature over body under
// label, and [ErrSignature] otherwise.
func (a Account) Verify(label protocol.Label, body, sig []byte) error {
	return verify(a[:], label, body, sig)
}

// Verify returns nil if sig is the device key's signature over body under
// label, and [ErrSignature] otherwise.
func (d Device) Verify(label protocol.Label, body, sig []byte) error {
	return verify(d[:], label, body, sig)
}

// Verify returns nil if sig is the transport key's signature over body under
// label, and [ErrSignature] otherwise. libp2p signs other things with this key,
// none of which starts like a label.
func (t Transport) Verify(label protocol.Label, body, sig []byte) error {
	return verify(t[:], label, body, sig)
}

func verify(key []byte, label protocol.Label, body, sig []byte) error {
	if len(sig) != SignatureSize || !ed25519.Verify(key, label.Bind(body), sig) {
		return ErrSignature
	}
	return nil
}

// A Secret is a 32-byte seed that does not print: an account secret, or the
// seed of a device key.
type Secret struct {
	_ [0]func() // not comparable: == is not constant-time
	b [SecretSize]byte
}

// NewSecret draws a secret from rand.
func NewSecret(rand io.Reader) (Secret, error) {
	var s Secret
	if _, err := io.ReadFull(rand, s.b[:]); err != nil {
		return Secret{}, fmt.Errorf("identity: drawing a secret: %w", err)
	}
	return s, nil
}

// SecretFrom returns the secret that b holds; b must have [SecretSize] bytes.
func SecretFrom(b []byte) (Secret, error) {
	if len(b) != SecretSize {
		return Secret{}, errors.New("identity: a secret has 32 bytes")
	}
	return Secret{b: [SecretSize]byte(b)}, nil
}

// Bytes returns the secret itself, for storage.
func (s Secret) Bytes() []byte { return s.b[:] }

// LogValue keeps the secret out of logs.
func (Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the secret out of everything that package fmt prints.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// An AccountKey is an account key's private half.
type AccountKey struct {
	seed Secret
	key  ed25519.PrivateKey
}

// NewAccountKey derives the account key from the account secret (SPEC §4).
func NewAccountKey(secret Secret) *AccountKey {
	b, err := hkdf.Key(sha256.New, secret.b[:], nil, string(protocol.LabelAccountSeed), SecretSize)
	if err != nil {
		panic("identity: internal error: HKDF gives 32 bytes")
	}
	return &AccountKey{seed: Secret{b: [SecretSize]byte(b)}, key: ed25519.NewKeyFromSeed(b)}
}

// Account returns the public half.
func (k *AccountKey) Account() Account { return Account(k.key.Public().(ed25519.PublicKey)) }

// Sign signs body under label.
func (k *AccountKey) Sign(label protocol.Label, body []byte) []byte {
	return ed25519.Sign(k.key, label.Bind(body))
}

// Expand returns the secret scalar and the nonce prefix of RFC 8032 §5.1.5, for
// key blinding (SPEC §10). Whoever holds the scalar is the account.
func (k *AccountKey) Expand() (scalar *edwards25519.Scalar, prefix [32]byte) {
	h := sha512.Sum512(k.seed.b[:])
	s, err := new(edwards25519.Scalar).SetBytesWithClamping(h[:32])
	if err != nil {
		panic("identity: internal error: half a hash has 32 bytes")
	}
	return s, [32]byte(h[32:])
}

// LogValue keeps the key out of logs.
func (*AccountKey) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the key out of everything that package fmt prints.
func (*AccountKey) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// A DeviceKey is a device's two private halves: the signing key and the
// identity DH key.
type DeviceKey struct {
	seed Secret
	key  ed25519.PrivateKey
	dh   x25519.Private
}

// NewDeviceKey makes the device whose signing key has the given seed and whose
// identity DH key is dh. The two are drawn independently.
func NewDeviceKey(seed Secret, dh x25519.Private) *DeviceKey {
	return &DeviceKey{seed: seed, key: ed25519.NewKeyFromSeed(seed.b[:]), dh: dh}
}

// Device returns the public half of the signing key.
func (k *DeviceKey) Device() Device { return Device(k.key.Public().(ed25519.PublicKey)) }

// DH returns the identity DH key.
func (k *DeviceKey) DH() *x25519.Private { return &k.dh }

// Seed returns the seed of the signing key, for storage.
func (k *DeviceKey) Seed() Secret { return k.seed }

// Sign signs body under label.
func (k *DeviceKey) Sign(label protocol.Label, body []byte) []byte {
	return ed25519.Sign(k.key, label.Bind(body))
}

// LogValue keeps the keys out of logs.
func (*DeviceKey) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the keys out of everything that package fmt prints.
func (*DeviceKey) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }
