package prekey

import (
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// ErrKeyGone means that the handshake used a one-time bundle whose private half
// is no more. The introduction opened, so the sender is known: answer that the
// key is gone, and the sender starts again.
var ErrKeyGone = errors.New("prekey: one-time pre-key is gone")

// A SessionID names a session on both sides. It is derived with the keys, so
// nobody else can name the session beforehand; it is not secret.
type SessionID [32]byte

// A Party is one end of a handshake.
type Party struct {
	Account      identity.Account
	Device       identity.Device // in the account's manifest
	DH           x25519.Public   // the device's identity DH key
	Capabilities uint64          // what the device understands
}

// Secrets are what both ends derive from a handshake. Root and PQSeed are
// secret.
type Secrets struct {
	_          [0]func() // not comparable: == is not constant-time
	Root       [32]byte  // SK of PQXDH: the first root key of the Double Ratchet
	PQSeed     [32]byte  // for the post-quantum ratchet, a later capability
	Session    SessionID
	Associated [32]byte // associated data of every message: both accounts, devices and identity DH keys
	Transcript [32]byte // hash over the whole handshake
}

// LogValue keeps the secrets out of logs.
func (Secrets) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the secrets out of everything that package fmt prints.
func (Secrets) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// Keys returns which bundles a handshake used: the day's, and the one-time one
// if it used one (nil: tier T3). It fails on a handshake of any wrong shape.
func Keys(hs *wire.Handshake) (day KeyID, oneTime *KeyID, err error) {
	if err := check(hs); err != nil {
		return KeyID{}, nil, err
	}
	if len(hs.OneTimeKey) > 0 {
		oneTime = (*KeyID)(hs.OneTimeKey)
	}
	return KeyID(hs.DayKey), oneTime, nil
}

// HandshakeID returns the hash that names a handshake: all its fields but the
// introduction, which those fields authenticate (SPEC §5). It is the key under
// which a receiver looks for a replay before it touches a private key. The
// handshake must have passed [Keys].
func HandshakeID(hs *wire.Handshake) [32]byte {
	return sha256.Sum256(protocol.LabelHandshake.Bind(public(hs)))
}

// check bounds every field of a handshake.
func check(hs *wire.Handshake) error {
	optional := func(b []byte, n int) bool { return len(b) == 0 || len(b) == n }
	switch {
	case hs == nil:
		return errors.New("prekey: no handshake")
	case hs.Suite != protocol.Suite:
		return fmt.Errorf("prekey: suite %d is not ours", hs.Suite)
	case len(hs.Ephemeral) != x25519.Size,
		len(hs.DayKey) != KeyIDSize,
		!optional(hs.OneTimeKey, KeyIDSize),
		len(hs.Ciphertext) != CiphertextSize,
		!optional(hs.Replaces, len(SessionID{})),
		len(hs.Introduction) <= gcmTagSize,
		len(hs.Introduction) > protocol.MaxIntro:
		return errors.New("prekey: handshake has a field of the wrong length")
	}
	return nil
}

// public is the public part of a handshake, every field of fixed length and
// place (SPEC §5):
//
//	suite         [4]byte    // big-endian
//	capabilities  [8]byte    // big-endian, the initiator's
//	ephemeral     [32]byte   // EKA
//	day key       [16]byte   // key ID
//	one-time      [1]byte    // 1 if a one-time bundle was used, else 0
//	one-time key  [16]byte   // key ID, or zeros
//	ciphertext    [1568]byte
//	replaces      [1]byte    // 1 if a session is replaced, else 0
//	replaced      [32]byte   // session ID, or zeros
func public(hs *wire.Handshake) []byte {
	b := make([]byte, 0, publicSize)
	b = binary.BigEndian.AppendUint32(b, hs.Suite)
	b = binary.BigEndian.AppendUint64(b, hs.Capabilities)
	b = append(b, hs.Ephemeral...)
	b = append(b, hs.DayKey...)
	b = appendOptional(b, hs.OneTimeKey, KeyIDSize)
	b = append(b, hs.Ciphertext...)
	return appendOptional(b, hs.Replaces, len(SessionID{}))
}

const publicSize = 4 + 8 + x25519.Size + KeyIDSize + 1 + KeyIDSize + CiphertextSize + 1 + 32

// appendOptional appends 1 and field, or 0 and n zeros if there is none.
func appendOptional(b, field []byte, n int) []byte {
	if len(field) == 0 {
		return append(b, make([]byte, 1+n)...)
	}
	return append(append(b, 1), field...)
}

func (p *Party) append(b []byte) []byte {
	b = append(b, p.Account[:]...)
	b = append(b, p.Device[:]...)
	return append(b, p.DH[:]...)
}

// transcript is the hash over everything that both sides must agree on
// (SPEC §5). All parts have a fixed length:
//
//	label, 0x00
//	handshake ID  [32]byte   // the hash of the whole public part
//	initiator     [96]byte   // account, device, identity DH key
//	responder     [96]byte   // the same
//	day bundle    [40]byte   // capabilities big-endian, X25519 key
//	one-time      [40]byte   // the same, or zeros: the public part has the flag
//	KEM key       [1568]byte // the one that was encapsulated to
//
// The key IDs in the public part are hashes of the signed bundles, so roles
// and validity are covered too.
func transcript(id [32]byte, initiator, responder *Party, day, oneTime *Bundle) [32]byte {
	b := make([]byte, 0, len(id)+2*96+2*40+KEMKeySize)
	b = append(b, id[:]...)
	b = initiator.append(b)
	b = responder.append(b)
	b = binary.BigEndian.AppendUint64(b, day.Capabilities)
	b = append(b, day.X25519[:]...)
	if oneTime != nil {
		b = binary.BigEndian.AppendUint64(b, oneTime.Capabilities)
		b = append(b, oneTime.X25519[:]...)
		b = append(b, oneTime.KEM.Bytes()...)
	} else {
		b = append(b, make([]byte, 40)...)
		b = append(b, day.KEM.Bytes()...)
	}
	return sha256.Sum256(protocol.LabelTranscript.Bind(b))
}

// agreement is F ‖ DH1 ‖ DH2 ‖ DH3 [‖ DH4] ‖ SS, as PQXDH §3.3 concatenates it.
type agreement struct{ b []byte }

// f is F of PQXDH §2.2: 32 bytes 0xFF are not the encoding of any X25519 key,
// so the input of this KDF is never the input of a signature or of another
// agreement.
var f = func() (b [x25519.Size]byte) {
	for i := range b {
		b[i] = 0xff
	}
	return b
}()

// newAgreement concatenates; ss is nil where the KEM takes no part.
func newAgreement(ss []byte, dh ...*[x25519.Size]byte) agreement {
	b := make([]byte, 0, len(f)+len(dh)*x25519.Size+len(ss))
	b = append(b, f[:]...)
	for _, z := range dh {
		b = append(b, z[:]...)
	}
	return agreement{append(b, ss...)}
}

// derive is KDF of PQXDH §2.2: HKDF-SHA-256 with a salt of zeros.
func (a agreement) derive(info []byte, n int) []byte {
	// crypto/hkdf takes no salt for a hash length of zeros (RFC 5869 §2.2).
	out, err := hkdf.Key(sha256.New, a.b, nil, string(info), n)
	if err != nil {
		panic("prekey: internal error: HKDF-SHA-256 gives up to 8160 bytes")
	}
	return out
}

// secrets derives what a session starts from (SPEC §5):
//
//	root key [32]byte ‖ post-quantum seed [32]byte ‖ session ID [32]byte
func (a agreement) secrets(t [32]byte, initiator, responder *Party) Secrets {
	okm := a.derive(protocol.LabelPQXDH.Bind(t[:]), 96)
	return Secrets{
		Root:       [32]byte(okm[:32]),
		PQSeed:     [32]byte(okm[32:64]),
		Session:    SessionID(okm[64:]),
		Associated: sha256.Sum256(protocol.LabelAssociated.Bind(initiator.append(nil), responder.append(nil))),
		Transcript: t,
	}
}

// Initiate runs PQXDH as the initiator against bundles that [OpenBundle]
// accepted for peer, and seals intro for the peer's eyes. oneTime is nil where
// the peer had none to give (T3); replaces names the session that this one
// takes the place of, or is nil. What the peer understands is taken from its
// bundles: peer.Capabilities is not read.
//
// The ephemeral key comes from rand; the encapsulation draws its randomness in
// the standard library. An error means that a bundle or an argument cannot be
// used; nothing has been spent.
func Initiate(rand io.Reader, dk *identity.DeviceKey, self, peer Party, day, oneTime *Bundle, replaces *SessionID, intro Introduction) (Secrets, *wire.Handshake, error) {
	eph, err := x25519.Generate(rand)
	if err != nil {
		return Secrets{}, nil, fmt.Errorf("prekey: drawing an ephemeral key: %w", err)
	}
	return initiate(&eph, (*mlkem.EncapsulationKey1024).Encapsulate, dk, self, peer, day, oneTime, replaces, intro)
}

// initiate is [Initiate] with its randomness given.
func initiate(eph *x25519.Private, encapsulate func(*mlkem.EncapsulationKey1024) (ss, ct []byte), dk *identity.DeviceKey, self, peer Party, day, oneTime *Bundle, replaces *SessionID, intro Introduction) (Secrets, *wire.Handshake, error) {
	fail := func(err error) (Secrets, *wire.Handshake, error) { return Secrets{}, nil, err }
	switch {
	case self.Device != dk.Device() || self.DH != dk.DH().Public():
		return fail(errors.New("prekey: the initiator is not the holder of the device key"))
	case peer.Device == self.Device:
		return fail(errors.New("prekey: a device does not talk to itself"))
	case day == nil || !day.of(&peer, wire.Role_ROLE_DAY):
		return fail(errors.New("prekey: not a day bundle of this peer"))
	case oneTime != nil && !oneTime.of(&peer, wire.Role_ROLE_ONE_TIME):
		return fail(errors.New("prekey: not a one-time bundle of this peer"))
	}

	ephPub := eph.Public()
	hs := &wire.Handshake{
		Suite:        protocol.Suite,
		Capabilities: self.Capabilities,
		Ephemeral:    ephPub[:],
		DayKey:       day.ID[:],
	}
	kem := day.KEM
	if oneTime != nil {
		hs.OneTimeKey, kem = oneTime.ID[:], oneTime.KEM
	}
	if replaces != nil {
		hs.Replaces = replaces[:]
	}
	var ss []byte
	ss, hs.Ciphertext = encapsulate(kem)

	// DH1 to DH4 of X3DH §3.3.
	var dh [4][x25519.Size]byte
	var err error
	for i, s := range []struct {
		own *x25519.Private
		pub *x25519.Public
	}{{dk.DH(), &day.X25519}, {eph, &peer.DH}, {eph, &day.X25519}} {
		if dh[i], err = s.own.Shared(*s.pub); err != nil {
			return fail(fmt.Errorf("prekey: computing DH%d: %w", i+1, err))
		}
	}
	km := newAgreement(ss, &dh[0], &dh[1], &dh[2])
	if oneTime != nil {
		if dh[3], err = eph.Shared(oneTime.X25519); err != nil {
			return fail(fmt.Errorf("prekey: computing DH4: %w", err))
		}
		km = newAgreement(ss, &dh[0], &dh[1], &dh[2], &dh[3])
	}
	id := HandshakeID(hs)
	s := km.secrets(transcript(id, &self, &peer, day, oneTime), &self, &peer)
	if hs.Introduction, err = intro.seal(id, dk, &self, &peer, s.Transcript, &dh[1], &dh[2]); err != nil {
		return fail(err)
	}
	return s, hs, nil
}

// of reports whether b is p's bundle of that role.
func (b *Bundle) of(p *Party, role wire.Role) bool {
	return b.Account == p.Account && b.Device == p.Device && b.Role == role
}

// Respond runs PQXDH as the responder, on a handshake whose introduction is in.
// The private halves and bundles are those that [Keys] names; oneTime and
// oneTimeBundle are both nil where it names no one-time key, or where that key
// is no more: then the error is [ErrKeyGone].
//
// It cannot tell that the initiator derived the same secrets: only opening the
// first message can, because a KEM ciphertext never fails to decapsulate.
// Discard the secrets if it does not open (PQXDH §3.4), and delete the one-time
// keys in the transaction that keeps the first message that does.
func Respond(dk *identity.DeviceKey, account identity.Account, day *Private, dayBundle *Bundle, oneTime *Private, oneTimeBundle *Bundle, hs *wire.Handshake, in Introduced) (Secrets, error) {
	if err := check(hs); err != nil {
		return Secrets{}, err
	}
	self := Party{Account: account, Device: dk.Device(), DH: dk.DH().Public()}
	switch {
	case in.id != HandshakeID(hs):
		return Secrets{}, errors.New("prekey: introduction of another handshake")
	case !dayBundle.of(&self, wire.Role_ROLE_DAY) || string(hs.DayKey) != string(dayBundle.ID[:]):
		return Secrets{}, errors.New("prekey: handshake is for another day's keys")
	case len(hs.OneTimeKey) == 0 && (oneTime != nil || oneTimeBundle != nil):
		return Secrets{}, errors.New("prekey: handshake used no one-time key")
	case len(hs.OneTimeKey) > 0 && (oneTime == nil || oneTimeBundle == nil):
		return Secrets{}, ErrKeyGone
	case oneTimeBundle != nil && (!oneTimeBundle.of(&self, wire.Role_ROLE_ONE_TIME) || string(hs.OneTimeKey) != string(oneTimeBundle.ID[:])):
		return Secrets{}, errors.New("prekey: handshake is for another one-time key")
	}

	eph, err := x25519.Parse(hs.Ephemeral)
	if err != nil {
		return Secrets{}, fmt.Errorf("prekey: importing an ephemeral key: %w", err)
	}
	dh1, err := day.x.Shared(in.Peer.DH)
	if err != nil {
		return Secrets{}, fmt.Errorf("prekey: computing DH1: %w", err)
	}
	kem := day.kem
	if oneTime != nil {
		kem = oneTime.kem
	}
	ss, err := kem.Decapsulate(hs.Ciphertext)
	if err != nil {
		return Secrets{}, fmt.Errorf("prekey: decapsulating: %w", err)
	}
	km := newAgreement(ss, &dh1, &in.dh2, &in.dh3)
	if oneTime != nil {
		dh4, err := oneTime.x.Shared(eph)
		if err != nil {
			return Secrets{}, fmt.Errorf("prekey: computing DH4: %w", err)
		}
		km = newAgreement(ss, &dh1, &in.dh2, &in.dh3, &dh4)
	}
	return km.secrets(transcript(in.id, &in.Peer, &self, dayBundle, oneTimeBundle), &in.Peer, &self), nil
}
