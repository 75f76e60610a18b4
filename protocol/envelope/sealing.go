package envelope

import (
	"crypto/hpke"
	"crypto/mlkem"
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

// Sizes of X-Wing in bytes: ML-KEM-768 first, X25519 behind it.
const (
	sealingSeedSize = 32
	sealingKeySize  = mlkem.EncapsulationKeySize768 + x25519.Size // 1216
	encSize         = mlkem.CiphertextSize768 + x25519.Size       // 1120
)

const weekSeconds = int64(7 * 24 * time.Hour / time.Second)

// ErrKeyExpired means that a sealing key is sound and that its time is over,
// or has not come yet. Look for the key of another week.
var ErrKeyExpired = errors.New("envelope: sealing key outside its time")

// A SealingPrivate is the private half of a device's sealing key: the seed of
// an X-Wing key, expanded. It never changes, is safe for concurrent use, and
// does not print.
//
// It takes some 8 KiB, and expanding it from its seed costs about as much as
// using it: keep the live ones in memory.
type SealingPrivate struct {
	_    [0]func() // not comparable: == is not constant-time
	seed [sealingSeedSize]byte
	key  hpke.PrivateKey
}

// NewSealingPrivate draws a private half from rand.
func NewSealingPrivate(rand io.Reader) (*SealingPrivate, error) {
	var seed [sealingSeedSize]byte
	if _, err := io.ReadFull(rand, seed[:]); err != nil {
		return nil, fmt.Errorf("envelope: drawing a sealing key: %w", err)
	}
	return RestoreSealingPrivate(seed), nil
}

// RestoreSealingPrivate returns the private half whose seed p.Seed returned.
func RestoreSealingPrivate(seed [32]byte) *SealingPrivate {
	key, err := kem().NewPrivateKey(seed[:])
	if err != nil {
		panic("envelope: internal error: X-Wing takes every seed of 32 bytes")
	}
	return &SealingPrivate{seed: seed, key: key}
}

// Seed returns the secret seed, for storage.
func (p *SealingPrivate) Seed() [32]byte { return p.seed }

// LogValue keeps the key out of logs.
func (SealingPrivate) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the key out of everything that package fmt prints.
func (SealingPrivate) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// A SealingKey is a device's key for envelopes that a relay carries during one
// week, checked by [OpenSealingKey] (SPEC §7.6).
type SealingKey struct {
	Account identity.Account
	Device  identity.Device
	Week    uint32 // WeekOf the time it is made for

	key hpke.PublicKey
}

// WeekOf returns the number of the week that t lies in: its UTC day, counted
// from 1 January 1970, divided by 7. Weeks begin on Thursdays. Earlier times are
// week 0.
func WeekOf(t time.Time) uint32 { return uint32(max(t.Unix(), 0) / weekSeconds) }

// WeekStart returns the first instant of a week.
func WeekStart(week uint32) time.Time { return time.Unix(int64(week)*weekSeconds, 0).UTC() }

// weekEnd returns the first instant after a week.
func weekEnd(week uint32) time.Time { return time.Unix((int64(week)+1)*weekSeconds, 0).UTC() }

// SealingKeyDeath returns the earliest time at which the private half of a
// week's key may be deleted, [protocol.SealingKeyLife] after the week. The
// caller also keeps it as long as 15 days after the first key of a later week
// was published: until then, senders have nothing newer.
func SealingKeyDeath(week uint32) time.Time { return weekEnd(week).Add(protocol.SealingKeyLife) }

// Fresh reports whether now lies in the week of k, give or take
// [protocol.SealingSkew]. A sender uses a key that is not fresh only if it
// knows no fresh one.
func (k *SealingKey) Fresh(now time.Time) bool {
	return !now.Before(WeekStart(k.Week).Add(-protocol.SealingSkew)) && now.Before(weekEnd(k.Week).Add(protocol.SealingSkew))
}

// usable reports whether a sender may use k at all: fresh, or late.
func (k *SealingKey) usable(now time.Time) bool {
	return k.Fresh(now) || !now.Before(weekEnd(k.Week)) && now.Before(weekEnd(k.Week).Add(protocol.SealingLate))
}

// SignSealingKey makes the public half of p, as the key of a week, signed by
// the device key: an encoded wire.Signed of at most [protocol.MaxSealing]
// bytes (SPEC §7.6). An owner makes the keys of this week and of
// [protocol.WeeksAhead] more, each from a private half of its own.
func SignSealingKey(dk *identity.DeviceKey, a identity.Account, week uint32, p *SealingPrivate) []byte {
	device := dk.Device()
	body := wire.Marshal(&wire.SealingKey{
		Account: a[:],
		Device:  device[:],
		Week:    week,
		Key:     p.key.PublicKey().Bytes(),
	})
	return wire.Marshal(&wire.Signed{Body: body, Signature: dk.Sign(protocol.LabelSealingKey, body)})
}

// OpenSealingKey checks that b is a sealing key that device d of account a
// signed, and that a sender may use it at now: in its week, give or take
// [protocol.SealingSkew], or up to [protocol.SealingLate] after it. Otherwise
// the error is [ErrKeyExpired]; keep the bytes of a week to come, and open them
// then. Among keys that open, take one that is [SealingKey.Fresh], and among
// those the latest week. That d belongs to a is for the manifest to say. Any
// other error means that whoever gave us b is broken or hostile: try another
// source.
func OpenSealingKey(b []byte, a identity.Account, d identity.Device, now time.Time) (*SealingKey, error) {
	var s wire.Signed
	var m wire.SealingKey
	if err := wire.Parse(b, protocol.MaxSealing, &s); err != nil {
		return nil, fmt.Errorf("envelope: parsing a signed sealing key: %w", err)
	}
	if err := wire.Parse(s.Body, protocol.MaxSealing, &m); err != nil {
		return nil, fmt.Errorf("envelope: parsing a sealing key: %w", err)
	}
	// Cheapest first: what is not for us costs no signature check.
	switch {
	case string(m.Account) != string(a[:]) || string(m.Device) != string(d[:]):
		return nil, errors.New("envelope: sealing key of another device")
	case len(m.Key) != sealingKeySize:
		return nil, errors.New("envelope: sealing key has the wrong length")
	}
	if _, err := x25519.Parse(m.Key[mlkem.EncapsulationKeySize768:]); err != nil {
		return nil, fmt.Errorf("envelope: importing a sealing key: %w", err)
	}
	if err := d.Verify(protocol.LabelSealingKey, s.Body, s.Signature); err != nil {
		return nil, fmt.Errorf("envelope: checking a sealing key: %w", err)
	}
	key, err := kem().NewPublicKey(m.Key)
	if err != nil {
		return nil, fmt.Errorf("envelope: importing a sealing key: %w", err)
	}
	k := &SealingKey{Account: a, Device: d, Week: m.Week, key: key}
	if !k.usable(now) {
		return nil, ErrKeyExpired
	}
	return k, nil
}

// kem returns X-Wing: ML-KEM-768 and X25519 (SPEC §7.6).
func kem() hpke.KEM { return hpke.MLKEM768X25519() }
