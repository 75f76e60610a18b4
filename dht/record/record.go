// Package record makes and reads the DHT record of an account: encrypted,
// blinded, delegated and signed (SPEC §10).
//
// On day e and for replica r, an account A with the lookup secret L publishes
// under the blinded key A_e = h·A, where h is a hash of A, L, e and r. Who
// knows A and L finds the record and reads it; who does not can neither read it
// nor tell that the records of two days, or the two replicas of one, belong
// together. A_e signs nothing but a delegation to a fresh day key, and the day
// key signs the record, so the account key rests between days.
//
// A record is, with integers big-endian,
//
//	version     [1]byte   // 0x01
//	blinded     [32]byte  // A_e
//	day         uint32    // e: days since 1970-01-01 UTC
//	replica     [1]byte   // r: 0 or 1
//	counter     uint64    // the higher delegation of a day replaces the lower
//	day key     [32]byte  // Ed25519
//	delegation  [64]byte  // by A_e over day ‖ replica ‖ counter ‖ day key
//	seq         uint64    // the higher record of a delegation replaces the lower
//	nonce       [24]byte
//	body        [...]byte // XChaCha20-Poly1305 of the padded body; tag 16
//	signature   [64]byte  // by the day key over everything before
//
// and has 4, 8 or 16 KiB. The body's plaintext is its length as a uint32, a
// protobuf RecordBody, and zeros.
//
// [Validate] is what a node does with a stranger's record, and needs no secret.
// [Open] is what a contact does. A record is a hint: [Body.Version] must be held
// against the highest version seen from the account (the reader's work), and
// news inside a session beats it.
//
// What it does not do: open pre-key bundles (protocol/prekey), decide what goes
// into a record, or hide from its holders who published it and from where.
package record

import (
	"bytes"
	"cmp"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// KeySize is the length in bytes of a record's key.
const KeySize = sha256.Size

// Replicas is the number of records an account has on one day. Two places are
// far apart in the key space, so nobody sits close to both.
const Replicas = 2

// version is the first byte of every record of this layout.
const version = 0x01

// Offsets of the parts of a record.
const (
	atBlinded    = 1
	atDay        = atBlinded + identity.KeySize
	atReplica    = atDay + 4
	atCounter    = atReplica + 1
	atDayKey     = atCounter + 8
	atDelegation = atDayKey + identity.KeySize
	atSeq        = atDelegation + identity.SignatureSize
	atNonce      = atSeq + 8
	atBody       = atNonce + chacha20poly1305.NonceSizeX

	overhead   = atBody + chacha20poly1305.Overhead + identity.SignatureSize
	lengthSize = 4 // length of the protobuf, at the head of the plaintext
)

// sizes are the lengths a record may have. One device fits the first.
var sizes = [...]int{4 << 10, 8 << 10, 16 << 10}

// ErrInvalid means that the bytes are not a record that may be stored or
// believed under this key today. Refuse them; nothing is wrong with the key.
var ErrInvalid = errors.New("record: not a valid record")

// ErrTooLarge means that a body does not fit a record. Publish fewer addresses.
var ErrTooLarge = errors.New("record: the body does not fit 16 KiB")

// A Version orders the bodies of one account. Readers keep the highest seen
// and refuse lower ones: the DHT itself gives no protection against rollback.
type Version struct {
	Generation uint64 // of the manifest
	Day        uint32
	Seq        uint64 // counts within the day
}

// Compare returns -1, 0 or +1 as v is lower than, equal to or higher than w.
func (v Version) Compare(w Version) int {
	return cmp.Or(
		cmp.Compare(v.Generation, w.Generation),
		cmp.Compare(v.Day, w.Day),
		cmp.Compare(v.Seq, w.Seq),
	)
}

// A Body is what a record tells those who can read it.
type Body struct {
	Manifest      identity.Manifest // as opened; [DayKey.Seal] uses ManifestBytes only
	ManifestBytes []byte            // encoded wire.Signed
	Day           uint32
	Seq           uint64              // from 0 within the day: it is public, and one that went on would link days
	Bundles       [][]byte            // encoded wire.Signed, one for each device; not opened here
	Endpoints     []identity.Endpoint // transport keys and their addresses
	Mail          *wire.Mail          // contact boxes and sealing keys, bounded, for relay.OpenMail; nil if there are none
}

// Version returns the version of the body.
func (b Body) Version() Version {
	return Version{Generation: b.Manifest.Generation, Day: b.Day, Seq: b.Seq}
}

// DayOf returns the day of t: days since 1970-01-01 UTC, rounded down.
func DayOf(t time.Time) uint32 { return uint32(t.Unix() / 86400) }

// Key returns the key of an account's record: the DHT key is "/starling/"
// followed by these 32 bytes. It panics if a did not pass
// [identity.ParseAccount].
func Key(a identity.Account, l identity.LookupSecret, day uint32, replica byte) [KeySize]byte {
	public := blindPublic(a, l, day, replica)
	return keyHash(public[:])
}

// A DayKey signs the records of one account on one day and replica. Who holds
// it can publish for the account there and nowhere else, so it may be kept
// where the account key should not be. It is safe for concurrent use.
type DayKey struct {
	day     uint32
	replica byte
	key     [KeySize]byte
	head    []byte // the record up to and including the delegation
	seal    cipher.AEAD
	sign    ed25519.PrivateKey
}

// Delegate draws a day key from rand and lets the account key sign for it. Of
// two delegations of one day and replica, the one with the higher counter
// counts. The counter is public: it starts at 0 each day, like [Body.Seq].
func Delegate(rand io.Reader, k *identity.AccountKey, l identity.LookupSecret, day uint32, replica byte, counter uint64) (*DayKey, error) {
	if replica >= Replicas {
		return nil, fmt.Errorf("record: there is no replica %d", replica)
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(rand, seed); err != nil {
		return nil, fmt.Errorf("record: drawing a day key: %w", err)
	}
	sign := ed25519.NewKeyFromSeed(seed)
	b := blind(k, l, day, replica)

	head := make([]byte, 0, atSeq)
	head = append(head, version)
	head = append(head, b.public[:]...)
	head = binary.BigEndian.AppendUint32(head, day)
	head = append(head, replica)
	head = binary.BigEndian.AppendUint64(head, counter)
	head = append(head, sign.Public().(ed25519.PublicKey)...)
	head = append(head, b.sign(protocol.LabelDelegation, head[atDay:atDelegation])...)

	return &DayKey{
		day:     day,
		replica: replica,
		key:     keyHash(b.public[:]),
		head:    head,
		seal:    aead(k.Account(), l, b.public[:]),
		sign:    sign,
	}, nil
}

// Key returns the key under which the day key's records are stored.
func (d *DayKey) Key() [KeySize]byte { return d.key }

// Seal returns the record that carries b, whose day must be the key's. The
// nonce is drawn from rand. The error is [ErrTooLarge], or rand's.
func (d *DayKey) Seal(rand io.Reader, b Body) ([]byte, error) {
	if b.Day != d.day {
		return nil, fmt.Errorf("record: a body of day %d under a key of day %d", b.Day, d.day)
	}
	plain, err := marshal(b)
	if err != nil {
		return nil, err
	}
	size := 0
	for _, s := range sizes {
		if overhead+lengthSize+len(plain) <= s {
			size = s
			break
		}
	}
	if size == 0 {
		return nil, ErrTooLarge
	}

	padded := make([]byte, size-overhead)
	binary.BigEndian.PutUint32(padded, uint32(len(plain)))
	copy(padded[lengthSize:], plain)

	rec := make([]byte, 0, size)
	rec = append(rec, d.head...)
	rec = binary.BigEndian.AppendUint64(rec, b.Seq)
	rec = rec[:atBody]
	// 24 random bytes never repeat under one key, however often a day's record
	// is made anew, and after a restored backup too.
	if _, err := io.ReadFull(rand, rec[atNonce:]); err != nil {
		return nil, fmt.Errorf("record: drawing a nonce: %w", err)
	}
	rec = d.seal.Seal(rec, rec[atNonce:atBody], padded, rec[:atNonce])
	return append(rec, ed25519.Sign(d.sign, protocol.LabelRecord.Bind(rec))...), nil
}

// LogValue keeps the key out of logs.
func (DayKey) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the key out of everything that package fmt prints.
func (DayKey) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// Make is [Delegate] and [DayKey.Seal] in one, for the day that b names.
func Make(rand io.Reader, k *identity.AccountKey, l identity.LookupSecret, replica byte, counter uint64, b Body) (key [KeySize]byte, rec []byte, err error) {
	d, err := Delegate(rand, k, l, b.Day, replica, counter)
	if err != nil {
		return key, nil, err
	}
	rec, err = d.Seal(rand, b)
	return d.key, rec, err
}

// Validate returns nil if rec may be stored under key: it is well formed, of
// yesterday, today or tomorrow, and signed by the day key that the key's owner
// delegated. Otherwise the error wraps [ErrInvalid]. It tells nothing about the
// body. The cheapest checks come first.
func Validate(key [KeySize]byte, rec []byte, now time.Time) error {
	if err := placed(key, rec, now); err != nil {
		return err
	}
	return genuine(rec)
}

// Check returns the key and the day of a record that will be valid on that day,
// days since 1970-01-01 UTC: for who holds one until then. Otherwise the error
// wraps [ErrInvalid].
func Check(rec []byte) (key [KeySize]byte, day uint32, err error) {
	if err := wellFormed(rec); err != nil {
		return key, 0, err
	}
	if err := genuine(rec); err != nil {
		return key, 0, err
	}
	return KeyOf(rec), Day(rec), nil
}

// placed checks what needs no key.
func placed(key [KeySize]byte, rec []byte, now time.Time) error {
	if err := wellFormed(rec); err != nil {
		return err
	}
	if keyHash(rec[atBlinded:atDay]) != key {
		return fmt.Errorf("%w: stored under another key", ErrInvalid)
	}
	return current(rec, now)
}

// genuine checks keys and signatures of a record that is well formed: always
// with the same result for the same bytes.
func genuine(rec []byte) error {
	// A key of small order would make a delegation that anyone can sign.
	if _, err := identity.ParseAccount(rec[atBlinded:atDay]); err != nil {
		return fmt.Errorf("%w: blinded key: %w", ErrInvalid, err)
	}
	return signed(rec)
}

func wellFormed(rec []byte) error {
	switch {
	case len(rec) > protocol.MaxRecord, len(rec) != sizes[0] && len(rec) != sizes[1] && len(rec) != sizes[2]:
		return fmt.Errorf("%w: %d bytes", ErrInvalid, len(rec))
	case rec[0] != version:
		return fmt.Errorf("%w: version %d", ErrInvalid, rec[0])
	case rec[atReplica] >= Replicas:
		return fmt.Errorf("%w: replica %d", ErrInvalid, rec[atReplica])
	}
	return nil
}

func current(rec []byte, now time.Time) error {
	if d := int64(Day(rec)) - now.Unix()/86400; d < -1 || d > 1 {
		return fmt.Errorf("%w: %+d days from today", ErrInvalid, d)
	}
	return nil
}

// signed checks both signatures. The blinded key is known to be of prime order.
func signed(rec []byte) error {
	if !verify(rec[atBlinded:atDay], protocol.LabelDelegation, rec[atDay:atDelegation], rec[atDelegation:atSeq]) {
		return fmt.Errorf("%w: delegation: %w", ErrInvalid, identity.ErrSignature)
	}
	if _, err := identity.ParseDevice(rec[atDayKey:atDelegation]); err != nil {
		return fmt.Errorf("%w: day key: %w", ErrInvalid, err)
	}
	end := len(rec) - identity.SignatureSize
	if !verify(rec[atDayKey:atDelegation], protocol.LabelRecord, rec[:end], rec[end:]) {
		return fmt.Errorf("%w: %w", ErrInvalid, identity.ErrSignature)
	}
	return nil
}

// KeyOf returns the key under which a record is stored that [Make] made or
// [Validate] passed.
func KeyOf(rec []byte) [KeySize]byte { return keyHash(rec[atBlinded:atDay]) }

// Day returns the day of a record that passed [Validate].
func Day(rec []byte) uint32 { return binary.BigEndian.Uint32(rec[atDay:]) }

// Counter returns the delegation's counter of a record that passed [Validate].
// An owner who finds a higher one than its own was restored from an old state,
// or has a second device.
func Counter(rec []byte) uint64 { return binary.BigEndian.Uint64(rec[atCounter:]) }

// Select returns the index of the best record of one key: the highest counter,
// then the highest seq, then the greatest SHA-256, then the first. Equal bytes
// therefore lose to an earlier index, so that a holder who compares a refreshed
// record with its own takes the fresh one. Malformed records lose; if all are,
// Select returns -1.
func Select(recs [][]byte) int {
	best := -1
	for i, r := range recs {
		if wellFormed(r) == nil && (best < 0 || compare(r, recs[best]) > 0) {
			best = i
		}
	}
	return best
}

func compare(a, b []byte) int {
	if c := cmp.Or(
		bytes.Compare(a[atCounter:atDayKey], b[atCounter:atDayKey]),
		bytes.Compare(a[atSeq:atNonce], b[atSeq:atNonce]),
	); c != 0 {
		return c
	}
	x, y := sha256.Sum256(a), sha256.Sum256(b)
	return bytes.Compare(x[:], y[:])
}

// Open reads the record of the account a whose lookup secret is l. It checks
// all that [Validate] checks, that the record is a's, and the manifest's
// signature. Any error means: as if there were no such record. The bundles are
// still to be opened, and the version to be held against the highest seen.
func Open(rec []byte, a identity.Account, l identity.LookupSecret, now time.Time) (Body, error) {
	if err := wellFormed(rec); err != nil {
		return Body{}, err
	}
	if err := current(rec, now); err != nil {
		return Body{}, err
	}
	// Equal to h·A, the blinded key is of prime order since A is.
	public := blindPublic(a, l, Day(rec), rec[atReplica])
	if !bytes.Equal(rec[atBlinded:atDay], public[:]) {
		return Body{}, fmt.Errorf("%w: another account's", ErrInvalid)
	}
	// Every contact can encrypt a body; only the account can sign one.
	if err := signed(rec); err != nil {
		return Body{}, err
	}
	end := len(rec) - identity.SignatureSize
	padded, err := aead(a, l, public[:]).Open(nil, rec[atNonce:atBody], rec[atBody:end], rec[:atNonce])
	if err != nil {
		return Body{}, fmt.Errorf("%w: the body does not open", ErrInvalid)
	}
	n := binary.BigEndian.Uint32(padded)
	if uint64(n) > uint64(len(padded)-lengthSize) {
		return Body{}, fmt.Errorf("%w: padding", ErrInvalid)
	}
	plain, zeros := padded[lengthSize:lengthSize+n], padded[lengthSize+n:]
	if len(bytes.TrimLeft(zeros, "\x00")) > 0 {
		return Body{}, fmt.Errorf("%w: padding", ErrInvalid)
	}
	b, err := unmarshal(plain, a, now)
	if err != nil {
		return Body{}, err
	}
	if b.Day != Day(rec) || b.Seq != binary.BigEndian.Uint64(rec[atSeq:]) {
		return Body{}, fmt.Errorf("%w: body and record disagree", ErrInvalid)
	}
	return b, nil
}

func aead(a identity.Account, l identity.LookupSecret, public []byte) cipher.AEAD {
	c, err := chacha20poly1305.NewX(bodyKey(a, l, public))
	if err != nil {
		panic("record: internal error: the body key has 32 bytes")
	}
	return c
}

func marshal(b Body) ([]byte, error) {
	m := &wire.RecordBody{Day: b.Day, Seq: b.Seq, Endpoints: identity.EndpointsWire(b.Endpoints), Mail: b.Mail}
	if err := identity.CheckMail(b.Mail); err != nil {
		return nil, fmt.Errorf("record: mail: %w", err)
	}
	var err error
	if m.Manifest, err = parseSigned(b.ManifestBytes); err != nil {
		return nil, fmt.Errorf("record: manifest: %w", err)
	}
	for _, s := range b.Bundles {
		bundle, err := parseSigned(s)
		if err != nil {
			return nil, fmt.Errorf("record: bundle: %w", err)
		}
		m.Bundles = append(m.Bundles, bundle)
	}
	if len(m.Bundles) > protocol.MaxDevices {
		return nil, ErrTooLarge
	}
	return wire.Marshal(m), nil
}

func parseSigned(b []byte) (*wire.Signed, error) {
	var s wire.Signed
	if err := wire.Parse(b, protocol.MaxRecord, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

func unmarshal(plain []byte, a identity.Account, now time.Time) (Body, error) {
	var m wire.RecordBody
	if err := wire.Parse(plain, protocol.MaxRecord, &m); err != nil {
		return Body{}, fmt.Errorf("%w: body: %w", ErrInvalid, err)
	}
	if m.Manifest == nil || len(m.Bundles) > protocol.MaxDevices {
		return Body{}, fmt.Errorf("%w: body", ErrInvalid)
	}
	b := Body{ManifestBytes: wire.Marshal(m.Manifest), Day: m.Day, Seq: m.Seq}
	var err error
	if b.Manifest, err = identity.OpenManifest(b.ManifestBytes, a, now); err != nil {
		return Body{}, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}
	for _, s := range m.Bundles {
		b.Bundles = append(b.Bundles, wire.Marshal(s))
	}
	if b.Endpoints, err = identity.EndpointsFromWire(m.Endpoints); err != nil {
		return Body{}, fmt.Errorf("%w: endpoints: %w", ErrInvalid, err)
	}
	if err := identity.CheckMail(m.Mail); err != nil {
		return Body{}, fmt.Errorf("%w: mail: %w", ErrInvalid, err)
	}
	b.Mail = m.Mail
	return b, nil
}
