package prekey

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

const (
	gcmTagSize = 16
	tagSize    = sha256.Size // sender tag and token MAC
)

// An Introduction is what a first message says of its sender, so that the
// recipient can answer (SPEC §5).
type Introduction struct {
	Manifest []byte // the sender's, as identity.SignManifest made it; names the sending device
	Profile  identity.Profile
	Token    *identity.Token // of an invite link; nil if there is none
}

// seal returns the sealed introduction of the handshake with the given ID: with
// the sender tag, which proves who wrote it, and the token's MAC over the
// transcript.
func (intro *Introduction) seal(id [32]byte, dk *identity.DeviceKey, self, peer *Party, transcript [32]byte, dh2, dh3 *[x25519.Size]byte) ([]byte, error) {
	manifest, err := self.listedIn(intro.Manifest)
	if err != nil {
		return nil, err
	}
	static, err := dk.DH().Shared(peer.DH)
	if err != nil {
		return nil, fmt.Errorf("prekey: computing the sender tag: %w", err)
	}
	tag := senderTag(&static, self, peer, id)
	m := &wire.Introduction{
		Manifest:  manifest,
		Device:    self.Device[:],
		SenderTag: tag[:],
		Profile:   intro.Profile.Wire(),
	}
	if intro.Token != nil {
		tokenID, mac := intro.Token.ID(), intro.Token.MAC(transcript)
		m.TokenId, m.TokenMac = tokenID[:], mac[:]
	}
	b := wire.Marshal(m)
	if len(b)+gcmTagSize > protocol.MaxIntro {
		return nil, fmt.Errorf("prekey: introduction has %d bytes, at most %d", len(b), protocol.MaxIntro-gcmTagSize)
	}
	return introductionAEAD(id, peer, dh2, dh3).Seal(nil, make([]byte, gcmNonceSize), b, nil), nil
}

// listedIn parses a manifest and checks that it lists p, so that nothing is
// sent that the peer must refuse. The signature is the account's own.
func (p *Party) listedIn(manifest []byte) (*wire.Signed, error) {
	var s wire.Signed
	var m wire.Manifest
	if err := wire.Parse(manifest, protocol.MaxManifest, &s); err != nil {
		return nil, fmt.Errorf("prekey: parsing the own manifest: %w", err)
	}
	if err := wire.Parse(s.Body, protocol.MaxManifest, &m); err != nil {
		return nil, fmt.Errorf("prekey: parsing the own manifest: %w", err)
	}
	if string(m.Account) == string(p.Account[:]) {
		for _, d := range m.Devices {
			if string(d.Key) == string(p.Device[:]) && string(d.Dh) == string(p.DH[:]) {
				return &s, nil
			}
		}
	}
	return nil, errors.New("prekey: the own manifest does not list this device")
}

const gcmNonceSize = 12

// introductionAEAD returns the AEAD of the introduction layer. Its key is
//
//	HKDF-SHA-256(0xFF×32 ‖ DH2 ‖ DH3, zero salt, label ‖ 0x00 ‖ responder's account ‖ device ‖ handshake ID)
//
// so it opens with the day's keys alone, and whatever surrounds it is
// authenticated without associated data. It seals exactly one introduction,
// because the ephemeral key is fresh: that is why its nonce can be zero. No KEM
// takes part, so it is classical (SPEC §5).
func introductionAEAD(id [32]byte, responder *Party, dh2, dh3 *[x25519.Size]byte) cipher.AEAD {
	info := protocol.LabelIntroduction.Bind(responder.Account[:], responder.Device[:], id[:])
	block, err := aes.NewCipher(newAgreement(nil, dh2, dh3).derive(info, 32))
	if err != nil {
		panic("prekey: internal error: AES takes 32 bytes")
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("prekey: internal error: AES has blocks of 16 bytes")
	}
	return aead
}

// senderTag proves that the sender holds one of two identity DH keys, to
// whoever holds the other, and to nobody else (SPEC §5):
//
//	key = HKDF-SHA-256(DH(IKA, IKB), zero salt, label ‖ 0x00 ‖ initiator ‖ responder)
//	tag = HMAC-SHA-256(key, label ‖ 0x00 ‖ handshake ID)
//
// It needs no pre-key, so it can be checked when the one-time key is gone. The
// order of the parties keeps a tag from being reflected.
func senderTag(static *[x25519.Size]byte, initiator, responder *Party, id [32]byte) [tagSize]byte {
	info := protocol.LabelSenderTag.Bind(initiator.append(nil), responder.append(nil))
	key, err := hkdf.Key(sha256.New, static[:], nil, string(info), 32)
	if err != nil {
		panic("prekey: internal error: HKDF-SHA-256 gives 32 bytes")
	}
	h := hmac.New(sha256.New, key)
	h.Write(protocol.LabelSenderTag.Bind(id[:]))
	return [tagSize]byte(h.Sum(nil))
}

// Introduced is an opened introduction: who started a handshake, proven by the
// sender tag, and how to answer.
type Introduced struct {
	_             [0]func() // not comparable: it holds shared secrets
	Peer          Party
	Manifest      identity.Manifest
	ManifestBytes []byte // as signed, for storage
	Profile       identity.Profile
	TokenID       *[16]byte  // which invite token the sender claims; nil if none
	TokenMAC      [32]byte   // the proof, for CheckToken
	Replaces      *SessionID // the session that this one takes the place of; nil if none

	id       [32]byte // of the handshake
	dh2, dh3 [x25519.Size]byte
}

// LogValue keeps shared secrets, and who talks to whom, out of logs.
func (Introduced) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps them out of everything that package fmt prints.
func (Introduced) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// OpenIntroduction opens the introduction layer of a handshake with the keys of
// the day it names, and checks the manifest and the sender tag. It needs no
// one-time key, so it also opens what [Respond] then cannot.
//
// Any error means that nobody is known to have sent this: drop it and answer
// nothing.
func OpenIntroduction(dk *identity.DeviceKey, account identity.Account, day *Private, dayBundle *Bundle, hs *wire.Handshake, now time.Time) (Introduced, error) {
	return OpenKnownIntroduction(dk, account, day, dayBundle, hs, nil, now)
}

// OpenKnownIntroduction is [OpenIntroduction] for a caller that remembers
// manifests. known returns the manifest that exactly these bytes hold, if
// identity.OpenManifest accepted them earlier; its signature and keys are then
// not checked again, which is a third of the work of a responder.
func OpenKnownIntroduction(dk *identity.DeviceKey, account identity.Account, day *Private, dayBundle *Bundle, hs *wire.Handshake, known func(manifest []byte) (identity.Manifest, bool), now time.Time) (Introduced, error) {
	fail := func(err error) (Introduced, error) { return Introduced{}, err }
	if err := check(hs); err != nil {
		return fail(err)
	}
	self := Party{Account: account, Device: dk.Device(), DH: dk.DH().Public()}
	if !dayBundle.of(&self, wire.Role_ROLE_DAY) || string(hs.DayKey) != string(dayBundle.ID[:]) {
		return fail(errors.New("prekey: handshake is for another day's keys"))
	}
	eph, err := x25519.Parse(hs.Ephemeral)
	if err != nil {
		return fail(fmt.Errorf("prekey: importing an ephemeral key: %w", err))
	}

	in := Introduced{id: HandshakeID(hs)}
	if in.dh2, err = dk.DH().Shared(eph); err != nil {
		return fail(fmt.Errorf("prekey: computing DH2: %w", err))
	}
	if in.dh3, err = day.x.Shared(eph); err != nil {
		return fail(fmt.Errorf("prekey: computing DH3: %w", err))
	}
	b, err := introductionAEAD(in.id, &self, &in.dh2, &in.dh3).Open(nil, make([]byte, gcmNonceSize), hs.Introduction, nil)
	if err != nil {
		return fail(errors.New("prekey: introduction does not open"))
	}
	var m wire.Introduction
	if err := wire.Parse(b, protocol.MaxIntro, &m); err != nil {
		return fail(fmt.Errorf("prekey: parsing an introduction: %w", err))
	}
	if in.Profile, err = identity.ProfileFromWire(m.Profile); err != nil {
		return fail(fmt.Errorf("prekey: reading the profile of an introduction: %w", err))
	}
	if err := in.readToken(&m); err != nil {
		return fail(err)
	}
	if err := in.readManifest(&m, known, now); err != nil {
		return fail(err)
	}
	in.Peer.Capabilities = hs.Capabilities
	if len(hs.Replaces) > 0 {
		s := SessionID(hs.Replaces)
		in.Replaces = &s
	}
	if in.Peer.Device == self.Device {
		return fail(errors.New("prekey: a device does not talk to itself"))
	}

	static, err := dk.DH().Shared(in.Peer.DH)
	if err != nil {
		return fail(fmt.Errorf("prekey: computing the sender tag: %w", err))
	}
	tag := senderTag(&static, &in.Peer, &self, in.id)
	if !hmac.Equal(tag[:], m.SenderTag) {
		return fail(errors.New("prekey: sender tag does not verify"))
	}
	return in, nil
}

// readManifest sets manifest and peer, whose device must be in the manifest.
func (in *Introduced) readManifest(m *wire.Introduction, known func([]byte) (identity.Manifest, bool), now time.Time) error {
	if m.Manifest == nil {
		return errors.New("prekey: introduction without a manifest")
	}
	in.ManifestBytes = wire.Marshal(m.Manifest)
	ok := false
	if known != nil {
		in.Manifest, ok = known(in.ManifestBytes)
	}
	if !ok {
		var body wire.Manifest
		if err := wire.Parse(m.Manifest.Body, protocol.MaxManifest, &body); err != nil {
			return fmt.Errorf("prekey: parsing the manifest of an introduction: %w", err)
		}
		a, err := identity.ParseAccount(body.Account)
		if err != nil {
			return fmt.Errorf("prekey: importing an account key: %w", err)
		}
		if in.Manifest, err = identity.OpenManifest(in.ManifestBytes, a, now); err != nil {
			return fmt.Errorf("prekey: opening the manifest of an introduction: %w", err)
		}
	}
	if len(m.Device) != identity.KeySize {
		return errors.New("prekey: introduction names no device")
	}
	e, ok := in.Manifest.Device(identity.Device(m.Device))
	if !ok {
		return errors.New("prekey: introduction by a device that its manifest does not list")
	}
	in.Peer = Party{Account: in.Manifest.Account, Device: e.Key, DH: e.DH}
	return nil
}

// readToken sets the token fields: both or none.
func (in *Introduced) readToken(m *wire.Introduction) error {
	switch {
	case len(m.TokenId) == 0 && len(m.TokenMac) == 0:
		return nil
	case len(m.TokenId) != len(in.TokenID) || len(m.TokenMac) != tagSize:
		return errors.New("prekey: introduction has a token of the wrong length")
	}
	id := [16]byte(m.TokenId)
	in.TokenID, in.TokenMAC = &id, [tagSize]byte(m.TokenMac)
	return nil
}

// CheckToken reports, in constant time, whether the sender held token t when it
// made the handshake that led to s. A token counts once: the caller spends it
// in the transaction that keeps the session.
func (in *Introduced) CheckToken(t identity.Token, s Secrets) bool {
	if in.TokenID == nil || t.ID() != *in.TokenID {
		return false
	}
	mac := t.MAC(s.Transcript)
	return hmac.Equal(mac[:], in.TokenMAC[:])
}
