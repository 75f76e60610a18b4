package envelope

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// NewDecryptionError says, from one device to another, that an envelope of the
// latter does not open, and proves who says so by a MAC under the two identity
// DH keys (SPEC §8). own is the identity DH key of from, peer that of to. The
// result is nil if peer is a key of low order, which nobody's sender tag
// verified under.
func NewDecryptionError(own *x25519.Private, peer x25519.Public, from, to identity.Device, hash Hash, session [32]byte, reason wire.Reason) *wire.DecryptionError {
	mac, err := errorMAC(own, peer, from, to, hash, session, reason)
	if err != nil {
		return nil
	}
	return &wire.DecryptionError{Envelope: hash[:], Session: session[:], Reason: reason, Mac: mac[:]}
}

// VerifyDecryptionError reports, in constant time, whether e was made by the
// device from, whose identity DH key is peer, for the device to, whose identity
// DH key is own. A true answer permits nothing yet: act on it only under the
// rules of SPEC §8.
func VerifyDecryptionError(own *x25519.Private, peer x25519.Public, from, to identity.Device, e *wire.DecryptionError) bool {
	if e == nil || len(e.Envelope) != len(Hash{}) || len(e.Session) != sessionSize || !knownReason(e.Reason) {
		return false
	}
	mac, err := errorMAC(own, peer, from, to, Hash(e.Envelope), [32]byte(e.Session), e.Reason)
	return err == nil && hmac.Equal(mac[:], e.Mac)
}

func knownReason(r wire.Reason) bool {
	switch r {
	case wire.Reason_REASON_NO_SESSION, wire.Reason_REASON_CANNOT_OPEN, wire.Reason_REASON_KEY_GONE:
		return true
	default:
		return false
	}
}

// errorMAC is
//
//	key = HKDF-SHA-256(DH, zero salt, label ‖ 0x00 ‖ from ‖ to)
//	MAC = HMAC-SHA-256(key, label ‖ 0x00 ‖ envelope hash [32] ‖ session [32] ‖ reason [4] big-endian)
//
// Both ends can compute both directions; the order of the devices keeps an
// error from being reflected to whoever made it.
func errorMAC(own *x25519.Private, peer x25519.Public, from, to identity.Device, hash Hash, session [32]byte, reason wire.Reason) ([sha256.Size]byte, error) {
	static, err := own.Shared(peer)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("envelope: authenticating a decryption error: %w", err)
	}
	key, err := hkdf.Key(sha256.New, static[:], nil, string(protocol.LabelDecryptError.Bind(from[:], to[:])), 32)
	if err != nil {
		panic("envelope: internal error: HKDF-SHA-256 gives 32 bytes")
	}
	h := hmac.New(sha256.New, key)
	h.Write(protocol.LabelDecryptError.Bind(hash[:], session[:], binary.BigEndian.AppendUint32(nil, uint32(reason))))
	return [sha256.Size]byte(h.Sum(nil)), nil
}
