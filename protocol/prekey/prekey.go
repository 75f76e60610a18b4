// Package prekey holds what a stranger needs to start a session with a device:
// signed pre-key bundles, and the key agreement that uses them.
//
// The agreement is PQXDH, revision 3, 2023-05-24 (updated 2024-01-23), over
// X25519, ML-KEM-1024 and HKDF-SHA-256, with the Diffie-Hellman values named as
// in "The X3DH Key Agreement Protocol", revision 1, 2016-11-04. SPEC §5 gives
// every layout and says where it goes beyond the specification: one signature
// covers a whole bundle, a one-time bundle too, and the hash of the whole
// handshake is in the key derivation.
//
// The owner of a device draws a [Private] for each day and each one-time use,
// and publishes what [SignBundle] makes of it. A stranger checks that with
// [OpenBundle] and calls [Initiate]. The owner calls [OpenIntroduction], which
// needs the day's keys only and says who wrote, and then [Respond], which also
// needs the one-time keys if the stranger used some.
//
// What it does not do: remember handshakes, so that a replay is known as one
// (node/session keeps the table; [HandshakeID] and Secrets.Transcript are its keys),
// delete private halves when they are due, or encrypt messages
// (protocol/ratchet).
package prekey

import (
	"crypto/mlkem"
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

// Sizes in bytes.
const (
	KeyIDSize      = 16
	KEMSeedSize    = mlkem.SeedSize                 // d ‖ z of FIPS 203 §7.1
	KEMKeySize     = mlkem.EncapsulationKeySize1024 // 1568
	CiphertextSize = mlkem.CiphertextSize1024       // 1568
	sharedSize     = mlkem.SharedKeySize            // 32
	daySeconds     = int64(24 * time.Hour / time.Second)
)

// ErrExpired means that a bundle is sound and that its time is over, or has
// not come yet, by more than [protocol.BundleSkew]. Fetch a newer one.
var ErrExpired = errors.New("prekey: bundle outside its validity")

// A KeyID names a bundle: a handshake says by it which keys it used. It is a
// hash of the signed body, so it binds account, device, role, validity and
// both keys.
type KeyID [KeyIDSize]byte

func keyIDOf(body []byte) KeyID {
	h := sha256.Sum256(protocol.LabelKeyID.Bind(body))
	return KeyID(h[:KeyIDSize])
}

// A Private is the private half of a bundle: an X25519 key and an ML-KEM-1024
// decapsulation key.
//
// It holds the expanded decapsulation key, some 10 KiB, because expanding it
// from its seed costs about as much as using it: keep the Private of the
// current days in memory rather than restoring it for each handshake. It never
// changes and is safe for concurrent use.
type Private struct {
	x   x25519.Private
	kem *mlkem.DecapsulationKey1024
}

// NewPrivate draws a private half from rand.
func NewPrivate(rand io.Reader) (Private, error) {
	x, err := x25519.Generate(rand)
	if err != nil {
		return Private{}, fmt.Errorf("prekey: drawing a pre-key: %w", err)
	}
	var seed [KEMSeedSize]byte
	if _, err := io.ReadFull(rand, seed[:]); err != nil {
		return Private{}, fmt.Errorf("prekey: drawing a KEM seed: %w", err)
	}
	return restore(x, seed[:])
}

// RestorePrivate returns the private half whose seeds p.Seeds returned: x for
// X25519 and kem, of [KEMSeedSize] bytes, for ML-KEM-1024.
func RestorePrivate(x [32]byte, kem []byte) (Private, error) {
	return restore(x25519.FromSeed(x), kem)
}

func restore(x x25519.Private, seed []byte) (Private, error) {
	kem, err := mlkem.NewDecapsulationKey1024(seed)
	if err != nil {
		return Private{}, fmt.Errorf("prekey: restoring a KEM key of %d bytes: %w", len(seed), err)
	}
	return Private{x: x, kem: kem}, nil
}

// Seeds returns the secret seeds, for storage.
func (p *Private) Seeds() (x [32]byte, kem []byte) { return p.x.Seed(), p.kem.Bytes() }

// X25519 returns the X25519 half: of a day, it is the responder's first ratchet
// key (SPEC §6).
func (p *Private) X25519() x25519.Private { return p.x }

// LogValue keeps the keys out of logs.
func (Private) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the keys out of everything that package fmt prints.
func (Private) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// A Bundle is a device's signed pre-keys, checked by [OpenBundle] or restored
// by [OwnBundle].
type Bundle struct {
	ID           KeyID
	Account      identity.Account
	Device       identity.Device
	Role         wire.Role // of a day, or one-time
	Capabilities uint64    // what the device understands
	NotBefore    time.Time
	NotAfter     time.Time // the first instant at which it is no longer valid
	X25519       x25519.Public
	KEM          *mlkem.EncapsulationKey1024
}

// DayOf returns the number of the UTC day that t lies in, counted from 1 January
// 1970. Earlier times are day 0.
func DayOf(t time.Time) uint32 { return uint32(max(t.Unix(), 0) / daySeconds) }

// DayStart returns the first instant of a day.
func DayStart(day uint32) time.Time { return time.Unix(int64(day)*daySeconds, 0).UTC() }

// SignBundle makes the bundle of p, signed by the device key: an encoded
// wire.Signed (SPEC §5). A bundle of a day is valid from [DayStart] of the day
// to that of the next; a one-time bundle for [protocol.OneTimeLife], or of a
// relay's pool for [protocol.PoolKeyLife]. Both times count in whole seconds.
func SignBundle(dk *identity.DeviceKey, a identity.Account, role wire.Role, caps uint64, notBefore, notAfter time.Time, p *Private) []byte {
	device, pub := dk.Device(), p.x.Public()
	body := wire.Marshal(&wire.Bundle{
		Account:      a[:],
		Device:       device[:],
		Role:         role,
		Capabilities: caps,
		NotBefore:    notBefore.Unix(),
		NotAfter:     notAfter.Unix(),
		X25519:       pub[:],
		Kem:          p.kem.EncapsulationKey().Bytes(),
	})
	return wire.Marshal(&wire.Signed{Body: body, Signature: dk.Sign(protocol.LabelBundle, body)})
}

// OpenBundle checks that b is a bundle of the given role that device d of
// account a signed, and that it is valid at now, give or take
// [protocol.BundleSkew]; otherwise the error is [ErrExpired]. That d belongs to
// a is for the manifest to say. Any other error means that whoever gave us b is
// broken or hostile: try another source.
func OpenBundle(b []byte, a identity.Account, d identity.Device, role wire.Role, now time.Time) (*Bundle, error) {
	s, m, err := parseBundle(b)
	if err != nil {
		return nil, err
	}
	// Cheapest first: what is not for us costs no signature check.
	switch {
	case string(m.Account) != string(a[:]) || string(m.Device) != string(d[:]):
		return nil, errors.New("prekey: bundle of another device")
	case m.Role != role:
		return nil, fmt.Errorf("prekey: bundle has role %d, want %d", m.Role, role)
	case len(m.Kem) != KEMKeySize:
		return nil, errors.New("prekey: KEM key has the wrong length")
	case !sensible(m):
		return nil, errors.New("prekey: bundle has a validity that its role does not allow")
	}
	x, err := x25519.Parse(m.X25519)
	if err != nil {
		return nil, fmt.Errorf("prekey: importing a pre-key: %w", err)
	}
	if err := d.Verify(protocol.LabelBundle, s.Body, s.Signature); err != nil {
		return nil, fmt.Errorf("prekey: checking a bundle: %w", err)
	}
	kem, err := mlkem.NewEncapsulationKey1024(m.Kem)
	if err != nil {
		return nil, fmt.Errorf("prekey: importing a KEM key: %w", err)
	}
	bundle := newBundle(s, m, a, d, x, kem)
	if now.Before(bundle.NotBefore.Add(-protocol.BundleSkew)) || !now.Before(bundle.NotAfter.Add(protocol.BundleSkew)) {
		return nil, ErrExpired
	}
	return bundle, nil
}

// OwnBundle returns the bundle that [SignBundle] made of p. Neither signature
// nor time is checked, so b must come from the own store: private halves
// outlive the validity of their bundle.
func OwnBundle(b []byte, p *Private) (*Bundle, error) {
	s, m, err := parseBundle(b)
	if err != nil {
		return nil, err
	}
	if len(m.Account) != identity.KeySize || len(m.Device) != identity.KeySize {
		return nil, errors.New("prekey: own bundle is damaged")
	}
	kem, x := p.kem.EncapsulationKey(), p.x.Public()
	if string(m.X25519) != string(x[:]) || string(m.Kem) != string(kem.Bytes()) {
		return nil, errors.New("prekey: own bundle is of other keys")
	}
	return newBundle(s, m, identity.Account(m.Account), identity.Device(m.Device), x, kem), nil
}

func parseBundle(b []byte) (*wire.Signed, *wire.Bundle, error) {
	var s wire.Signed
	var m wire.Bundle
	if err := wire.Parse(b, protocol.MaxBundle, &s); err != nil {
		return nil, nil, fmt.Errorf("prekey: parsing a signed bundle: %w", err)
	}
	if err := wire.Parse(s.Body, protocol.MaxBundle, &m); err != nil {
		return nil, nil, fmt.Errorf("prekey: parsing a bundle: %w", err)
	}
	return &s, &m, nil
}

func newBundle(s *wire.Signed, m *wire.Bundle, a identity.Account, d identity.Device, x x25519.Public, kem *mlkem.EncapsulationKey1024) *Bundle {
	return &Bundle{
		ID:           keyIDOf(s.Body),
		Account:      a,
		Device:       d,
		Role:         m.Role,
		Capabilities: m.Capabilities,
		NotBefore:    time.Unix(m.NotBefore, 0).UTC(),
		NotAfter:     time.Unix(m.NotAfter, 0).UTC(),
		X25519:       x,
		KEM:          kem,
	}
}

// sensible reports whether the validity of m is what its role allows: exactly
// one UTC day, or at most that of a relay's pool. Bounding the numbers first
// keeps the sums below from overflowing.
func sensible(m *wire.Bundle) bool {
	if m.NotBefore < 0 || m.NotBefore >= m.NotAfter || m.NotAfter > 1<<40 {
		return false
	}
	life := m.NotAfter - m.NotBefore
	switch m.Role {
	case wire.Role_ROLE_DAY:
		return m.NotBefore%daySeconds == 0 && life == daySeconds
	case wire.Role_ROLE_ONE_TIME:
		return life <= int64(protocol.PoolKeyLife/time.Second)
	default:
		return false
	}
}
