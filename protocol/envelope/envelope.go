// Package envelope holds what surrounds a ratchet message: the envelope outside,
// and inside it the padded content. SPEC §7 gives the layouts, SPEC §8 what
// answers an envelope that does not open.
//
// From the outside in, a text is
//
//	envelope   // wire.Envelope: session ID, handshake until acknowledged, message
//	message    // sealed by protocol/ratchet
//	padding    // one of six sizes
//	content    // wire.Content: ID, times, sequence number, and one body
//
// This is the open form, for a direct stream; its session ID is visible to
// whoever sees the envelope. A relay gets the sealed form, which [SealFor] makes
// of it and [OpenSealed] opens: HPKE (RFC 9180) with X-Wing, and nothing outside
// that is readable or the same twice,
//
//	enc         [1120]byte  // X-Wing to a device's sealing key of the week
//	ciphertext  [...]byte   // AES-256-GCM: 1, 4, 16 or 64 KiB of plaintext, tag 16
//
// with the sender's manifest, device, the open form and the sender tag inside.
// There, an envelope can also be a decryption error and nothing else
// ([SealError]), which answers one that came the same way.
//
// What it does not do: encrypt a content (protocol/ratchet), check a handshake
// beyond its shape (protocol/prekey), judge times of contents against a clock
// (node/outbox), remember what was opened, or talk to relays (node/relay).
package envelope

import (
	"crypto/mlkem"
	"crypto/sha256"
	"errors"
	"fmt"

	"starling/protocol"
	"starling/protocol/ratchet"
	"starling/protocol/wire"
)

// Sizes in bytes.
const (
	sessionSize = 32
	keyIDSize   = 16
	macSize     = sha256.Size // of a decryption error
)

// A Hash names an envelope: the exact bytes that travelled. Acknowledgements
// and decryption errors refer to that of the open form, also when a relay
// carried it; that of the sealed form serves to know a replay.
type Hash [sha256.Size]byte

// HashOf returns the hash of an envelope's bytes.
func HashOf(envelope []byte) Hash { return sha256.Sum256(protocol.LabelEnvelope.Bind(envelope)) }

// Seal returns the bytes of an envelope. hs is the handshake that opened the
// session, until the peer acknowledged something sent on it, and nil from then
// on. A message that was sent once is sent again as the same bytes.
func Seal(session [32]byte, hs *wire.Handshake, message []byte) []byte {
	return wire.Marshal(&wire.Envelope{Session: session[:], Handshake: hs, Message: message})
}

// SealError returns the bytes of an envelope that carries e and nothing else: it
// answers, through a relay, an envelope that came through one and does not open
// (SPEC §8.3). It leaves in the sealed form only, since a stream has outcomes
// for it.
func SealError(e *wire.DecryptionError) []byte { return wire.Marshal(&wire.Envelope{Error: e}) }

// Parse returns the envelope that b holds, every field of an acceptable length
// and without an error inside. An error means that the sender is broken or
// hostile: drop the envelope.
func Parse(b []byte) (*wire.Envelope, error) {
	e, err := parse(b)
	if err != nil {
		return nil, err
	}
	if e.Error != nil {
		return nil, errors.New("envelope: a decryption error outside the sealed form")
	}
	if err := checkMessage(e); err != nil {
		return nil, err
	}
	return e, nil
}

// ParseRelayed is [Parse] for what came in the sealed form, where the envelope
// may be one that [SealError] made: then it has an Error of the right lengths,
// which [VerifyDecryptionError] is still to judge, and nothing else. Never
// answer that one.
func ParseRelayed(b []byte) (*wire.Envelope, error) {
	e, err := parse(b)
	if err != nil {
		return nil, err
	}
	if e.Error == nil {
		if err := checkMessage(e); err != nil {
			return nil, err
		}
		return e, nil
	}
	switch d := e.Error; {
	case len(e.Session) != 0, e.Handshake != nil, len(e.Message) != 0:
		return nil, errors.New("envelope: a decryption error beside something else")
	case len(d.Envelope) != len(Hash{}), len(d.Session) != sessionSize, !knownReason(d.Reason), len(d.Mac) != macSize:
		return nil, errors.New("envelope: malformed decryption error")
	}
	return e, nil
}

func parse(b []byte) (*wire.Envelope, error) {
	e := new(wire.Envelope)
	if err := wire.Parse(b, protocol.MaxEnvelope, e); err != nil {
		return nil, fmt.Errorf("envelope: parsing: %w", err)
	}
	return e, nil
}

// checkMessage checks the lengths of everything but the error.
func checkMessage(e *wire.Envelope) error {
	if len(e.Session) != sessionSize {
		return errors.New("envelope: session ID has the wrong length")
	}
	if n := len(e.Message) - ratchet.Overhead; n < sizes[0] || n > protocol.MaxContent {
		return errors.New("envelope: message has an impossible length")
	}
	if h := e.Handshake; h != nil {
		switch {
		case len(h.Ephemeral) != 32,
			len(h.DayKey) != keyIDSize,
			len(h.OneTimeKey) != 0 && len(h.OneTimeKey) != keyIDSize,
			len(h.Ciphertext) != mlkem.CiphertextSize1024,
			len(h.Replaces) != 0 && len(h.Replaces) != sessionSize,
			len(h.Introduction) == 0,
			len(h.Introduction) > protocol.MaxIntro:
			return errors.New("envelope: handshake has a field of the wrong length")
		}
	}
	return nil
}
