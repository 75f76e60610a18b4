package envelope

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// SealedOverhead is what sealing adds to a padded plaintext: the encapsulated
// key, 1,120 bytes, and the tag of the AEAD, 16.
const SealedOverhead = encSize + 16 // bytes

// buckets are the only lengths that the plaintext of a sealed envelope has, in
// bytes, so that a relay learns one of four sizes. The first holds a text of
// some 590 bytes, the second a first message of somebody without relays, the
// third one of somebody with three, the last everything (SPEC §7.6).
var buckets = [...]int{1 << 10, 4 << 10, 16 << 10, protocol.MaxSealed - SealedOverhead}

// SealedSizes returns the only lengths that a sealed envelope has, in bytes,
// ascending: 2,160, 5,232, 17,520 and 66,672.
func SealedSizes() [4]int {
	s := buckets
	for i := range s {
		s[i] += SealedOverhead
	}
	return s
}

// ErrSealed means that a sealed envelope is for another queue or device or for
// keys that are gone, that it is damaged, or that nobody is known to have sent
// it. All of that is one error, because whoever can deposit can cause it: delete
// the envelope, and answer nothing.
var ErrSealed = errors.New("envelope: sealed envelope does not open")

// A Sender is who seals: a device, and the manifest that lists it.
type Sender struct {
	Key      *identity.DeviceKey
	Manifest []byte // as identity.SignManifest made it
}

// SealFor returns an envelope, which [Seal] made, in the sealed form: what a
// relay keeps for the device to in its queue. key is a sealing key of to; the
// result has the least of [SealedSizes] that holds it.
//
// Each call gives other bytes, with nothing in common but the length, also for
// the same envelope: seal anew for each relay, keep the result, and repeat a
// deposit with the same bytes. The randomness is the system's, since HPKE takes
// no other.
//
// It fails if the envelope is empty or longer than [protocol.MaxEnvelope], if
// from does not list its device or is to itself, if key is of another device,
// or if a key has low order. Nothing of that passes by trying again.
func SealFor(to identity.DeviceEntry, key *SealingKey, queue [32]byte, from Sender, envelope []byte) ([]byte, error) {
	if key.Device != to.Key {
		return nil, errors.New("envelope: sealing key of another device")
	}
	if err := from.check(); err != nil {
		return nil, err
	}
	enc, sender, err := hpke.NewSender(key.key, kdf(), aead(), sealedInfo(to.Key, queue))
	if err != nil {
		return nil, fmt.Errorf("envelope: encapsulating to a sealing key: %w", err)
	}
	inner, err := from.inner(to, enc, envelope)
	if err != nil {
		return nil, err
	}
	ciphertext, err := sender.Seal(nil, inner)
	if err != nil {
		return nil, fmt.Errorf("envelope: sealing: %w", err)
	}
	return slices.Concat(enc, ciphertext), nil
}

// check looks at what the recipient would refuse: a manifest that does not list
// the device. The manifest's signature is the account's own.
func (from Sender) check() error {
	var s wire.Signed
	var m wire.Manifest
	if err := wire.Parse(from.Manifest, protocol.MaxManifest, &s); err != nil {
		return fmt.Errorf("envelope: parsing the own manifest: %w", err)
	}
	if err := wire.Parse(s.Body, protocol.MaxManifest, &m); err != nil {
		return fmt.Errorf("envelope: parsing the own manifest: %w", err)
	}
	device, dh := from.Key.Device(), from.Key.DH().Public()
	for _, d := range m.Devices {
		if string(d.Key) == string(device[:]) && string(d.Dh) == string(dh[:]) {
			return nil
		}
	}
	return errors.New("envelope: the own manifest does not list this device")
}

// inner returns the padded plaintext that goes with the encapsulated key enc.
func (from Sender) inner(to identity.DeviceEntry, enc, envelope []byte) ([]byte, error) {
	device := from.Key.Device()
	switch {
	case len(envelope) == 0 || len(envelope) > protocol.MaxEnvelope:
		return nil, fmt.Errorf("envelope: an envelope of %d bytes, 1 to %d can be sealed", len(envelope), protocol.MaxEnvelope)
	case device == to.Key:
		return nil, errors.New("envelope: a device does not write to itself")
	}
	m := &wire.Sealed{Manifest: from.Manifest, Device: device[:], Envelope: envelope}
	tag, err := sealedTag(from.Key.DH(), to.DH, device, to.Key, enc, m)
	if err != nil {
		return nil, err
	}
	m.Tag = tag[:]
	b, ok := pad(wire.Marshal(m), buckets[:])
	if !ok {
		panic("envelope: internal error: the largest bucket holds every envelope")
	}
	return b, nil
}

// An Opened is what a sealed envelope says: who sent it, proven by the sender
// tag, and the envelope inside.
type Opened struct {
	Manifest      identity.Manifest    // checked for the account that it names itself
	ManifestBytes []byte               // as signed, for storage
	Device        identity.DeviceEntry // the sending device, both keys as in Manifest
	Envelope      []byte               // of 1 to protocol.MaxEnvelope bytes, for ParseRelayed
	Key           int                  // the index of the key that opened it
}

// OpenSealed opens a sealed envelope that came out of a queue, with whichever
// of keys fits: give the live ones, this week's first. dk is the device that
// the queue belongs to.
//
// The tag proves that the device with Opened.Device.DH made it, for this device;
// it does not prove that Opened.Device counts, which is for the manifest that
// the caller accepted to say, nor that the envelope is new. The caller remembers
// [HashOf] of sealed for [protocol.DedupeLife], and looks there first. Every
// error is [ErrSealed].
func OpenSealed(keys []*SealingPrivate, dk *identity.DeviceKey, queue [32]byte, sealed []byte, now time.Time) (Opened, error) {
	return OpenKnownSealed(keys, dk, queue, sealed, nil, now)
}

// OpenKnownSealed is [OpenSealed] for a caller that remembers manifests. known
// returns the manifest that exactly these bytes hold, if identity.OpenManifest
// accepted them earlier; its signature and keys are then not checked again,
// which is almost half of the work.
func OpenKnownSealed(keys []*SealingPrivate, dk *identity.DeviceKey, queue [32]byte, sealed []byte, known func(manifest []byte) (identity.Manifest, bool), now time.Time) (Opened, error) {
	if !slices.Contains(buckets[:], len(sealed)-SealedOverhead) {
		return Opened{}, ErrSealed
	}
	enc, self := sealed[:encSize], dk.Device()
	padded, key := decrypt(keys, enc, sealed[encSize:], sealedInfo(self, queue))
	inner, ok := unpad(padded, buckets[:])
	if !ok {
		return Opened{}, ErrSealed
	}
	var m wire.Sealed
	if err := wire.Parse(inner, protocol.MaxSealed, &m); err != nil {
		return Opened{}, ErrSealed
	}
	if len(m.Device) != identity.KeySize || len(m.Envelope) == 0 || len(m.Envelope) > protocol.MaxEnvelope {
		return Opened{}, ErrSealed
	}
	manifest, err := openManifest(m.Manifest, known, now)
	if err != nil {
		return Opened{}, ErrSealed
	}
	device, ok := manifest.Device(identity.Device(m.Device))
	if !ok || device.Key == self {
		return Opened{}, ErrSealed
	}
	tag, err := sealedTag(dk.DH(), device.DH, device.Key, self, enc, &m)
	if err != nil || !hmac.Equal(tag[:], m.Tag) {
		return Opened{}, ErrSealed
	}
	return Opened{Manifest: manifest, ManifestBytes: m.Manifest, Device: device, Envelope: m.Envelope, Key: key}, nil
}

// decrypt returns the plaintext and the index of the key that opens it, or nil.
func decrypt(keys []*SealingPrivate, enc, ciphertext, info []byte) (plaintext []byte, key int) {
	for i, k := range keys {
		r, err := hpke.NewRecipient(enc, k.key, kdf(), aead(), info)
		if err != nil {
			return nil, 0 // the X25519 half is of low order, whatever the key
		}
		if b, err := r.Open(nil, ciphertext); err == nil {
			return b, i
		}
	}
	return nil, 0
}

// openManifest opens a manifest for the account that it names itself, unless it
// is known.
func openManifest(b []byte, known func([]byte) (identity.Manifest, bool), now time.Time) (identity.Manifest, error) {
	if known != nil {
		if m, ok := known(b); ok {
			return m, nil
		}
	}
	var s wire.Signed
	var m wire.Manifest
	if err := wire.Parse(b, protocol.MaxManifest, &s); err != nil {
		return identity.Manifest{}, err
	}
	if err := wire.Parse(s.Body, protocol.MaxManifest, &m); err != nil {
		return identity.Manifest{}, err
	}
	a, err := identity.ParseAccount(m.Account)
	if err != nil {
		return identity.Manifest{}, err
	}
	return identity.OpenManifest(b, a, now)
}

// sealedTag proves that the sender holds one of two identity DH keys, to
// whoever holds the other, and to nobody else: HPKE's base mode authenticates
// nobody (SPEC §7.6). own and peer are the two ends, whichever this is:
//
//	key = HKDF-SHA-256(DH, zero salt, label ‖ 0x00 ‖ from ‖ to)
//	tag = HMAC-SHA-256(key, label ‖ 0x00 ‖ enc [1120] ‖ device [32] ‖ length of the manifest [4] ‖ manifest ‖ envelope)
//
// The order of the devices keeps a tag from being reflected; enc keeps it from
// being used in a second sealed envelope, by whoever saw the inside of the first.
func sealedTag(own *x25519.Private, peer x25519.Public, from, to identity.Device, enc []byte, m *wire.Sealed) ([sha256.Size]byte, error) {
	static, err := own.Shared(peer)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("envelope: computing a sender tag: %w", err)
	}
	key, err := hkdf.Key(sha256.New, static[:], nil, string(protocol.LabelSealedTag.Bind(from[:], to[:])), 32)
	if err != nil {
		panic("envelope: internal error: HKDF-SHA-256 gives 32 bytes")
	}
	h := hmac.New(sha256.New, key)
	h.Write(protocol.LabelSealedTag.Bind(enc, m.Device, binary.BigEndian.AppendUint32(nil, uint32(len(m.Manifest)))))
	h.Write(m.Manifest)
	h.Write(m.Envelope)
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// sealedInfo binds a sealed envelope to the device and the queue that it is
// for, so that a relay cannot move it to another queue.
func sealedInfo(to identity.Device, queue [32]byte) []byte {
	return protocol.LabelSealed.Bind(to[:], queue[:])
}

// The suite, with kem: no identifier of it travels, and there is no other.
func kdf() hpke.KDF   { return hpke.HKDFSHA256() }
func aead() hpke.AEAD { return hpke.AES256GCM() }
