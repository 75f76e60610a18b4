package store

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"

	"golang.org/x/crypto/chacha20poly1305"

	"starling/protocol"
)

// KeySize is the length of a master key in bytes.
const KeySize = 32

// A Key is the master key of a database: random, and kept wrapped in a key
// file (see [OpenKeyFile]). It does not print.
type Key struct {
	_ [0]func() // not comparable: == is not constant-time
	b [KeySize]byte
}

// NewKey draws a master key from rand.
func NewKey(rand io.Reader) (Key, error) {
	var k Key
	if _, err := io.ReadFull(rand, k.b[:]); err != nil {
		return Key{}, fmt.Errorf("store: drawing a key: %w", err)
	}
	return k, nil
}

// LogValue keeps the key out of logs.
func (Key) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the key out of everything that package fmt prints.
func (Key) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// derive returns the key for one use of the master key.
func (k Key) derive(use string) []byte {
	b, err := hkdf.Key(sha256.New, k.b[:], nil, string(protocol.LabelStoreKey.Bind([]byte(use))), chacha20poly1305.KeySize)
	if err != nil {
		panic("store: internal error: HKDF gives 32 bytes")
	}
	return b
}

// A sealer seals values under one key with random nonces. 192 bits of nonce
// make a repetition negligible without any state, which is what a database
// that may be restored from an old copy needs.
type sealer struct {
	aead cipher.AEAD
	rand io.Reader
}

// overhead is what a seal adds to a value.
const overhead = chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead

func newSealer(key []byte, rand io.Reader) *sealer {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		panic("store: internal error: the key has 32 bytes")
	}
	return &sealer{aead, rand}
}

// seal appends nonce and sealed value to dst, bound to the place it is for.
func (s *sealer) seal(dst, value []byte, place string) ([]byte, error) {
	var nonce [chacha20poly1305.NonceSizeX]byte
	if _, err := io.ReadFull(s.rand, nonce[:]); err != nil {
		return nil, fmt.Errorf("store: drawing a nonce: %w", err)
	}
	return s.aead.Seal(append(dst, nonce[:]...), nonce[:], value, []byte(place)), nil
}

// open returns the value, in the memory of b. ok is false if b is not what
// seal made for this place.
func (s *sealer) open(b []byte, place string) (value []byte, ok bool) {
	if len(b) < overhead {
		return nil, false
	}
	nonce, b := b[:chacha20poly1305.NonceSizeX], b[chacha20poly1305.NonceSizeX:]
	value, err := s.aead.Open(b[:0], nonce, b, []byte(place))
	return value, err == nil
}

// An eraseKey seals the rows of secret tables, and is thrown away.
type eraseKey struct {
	id  uint64 // random; in front of every value
	raw [chacha20poly1305.KeySize]byte
	*sealer
}

const eraseIDSize = 8

func newEraseKey(rand io.Reader) (*eraseKey, error) {
	var b [eraseIDSize + chacha20poly1305.KeySize]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return nil, fmt.Errorf("store: drawing an erase key: %w", err)
	}
	return eraseKeyFrom(b[:], rand), nil
}

func eraseKeyFrom(b []byte, rand io.Reader) *eraseKey {
	k := &eraseKey{id: binary.BigEndian.Uint64(b), raw: [chacha20poly1305.KeySize]byte(b[eraseIDSize:])}
	k.sealer = newSealer(k.raw[:], rand)
	return k
}

// A ring is the erase keys in force, the newest first: one, or two while the
// rows of the older one move over. It is never changed.
type ring struct{ keys []*eraseKey }

// marshal returns the plaintext of the erase file.
func (r *ring) marshal() []byte {
	var b []byte
	for _, k := range r.keys {
		b = binary.BigEndian.AppendUint64(b, k.id)
		b = append(b, k.raw[:]...)
	}
	return b
}

// parseRing returns the ring that marshal made, nil if b is none.
func parseRing(b []byte, rand io.Reader) *ring {
	const size = eraseIDSize + chacha20poly1305.KeySize
	if n := len(b) / size; len(b)%size != 0 || n < 1 || n > 2 {
		return nil
	}
	r := &ring{}
	for ; len(b) > 0; b = b[size:] {
		r.keys = append(r.keys, eraseKeyFrom(b[:size], rand))
	}
	return r
}

func (r *ring) has(id uint64) bool {
	for _, k := range r.keys {
		if k.id == id {
			return true
		}
	}
	return false
}

// seal appends value sealed under the newest key.
func (r *ring) seal(dst, value []byte, place string) ([]byte, error) {
	k := r.keys[0]
	return k.seal(binary.BigEndian.AppendUint64(dst, k.id), value, place)
}

// open returns the value, in the memory of b, under whichever key made it.
func (r *ring) open(b []byte, place string) (value []byte, ok bool) {
	if len(b) < eraseIDSize {
		return nil, false
	}
	id := binary.BigEndian.Uint64(b)
	for _, k := range r.keys {
		if k.id == id {
			return k.open(b[eraseIDSize:], place)
		}
	}
	return nil, false
}

// sealRow returns what the engine keeps for a row at place, its engine key.
func (db *DB) sealRow(r *ring, place string, row []byte) ([]byte, error) {
	if t := tableOf(place); t.secret {
		inner, err := r.seal(make([]byte, 0, eraseIDSize+overhead+len(row)), row, place)
		if err != nil {
			return nil, err
		}
		row = inner
	}
	return db.rows.seal(make([]byte, 0, overhead+len(row)), row, place)
}

// openRow undoes sealRow, in the memory of b.
func (db *DB) openRow(r *ring, place string, b []byte) ([]byte, error) {
	t := tableOf(place)
	row, ok := db.rows.open(b, place)
	if ok && t.secret {
		row, ok = r.open(row, place)
	}
	if !ok {
		return nil, fmt.Errorf("opening a row of %s: %w", t.name, ErrDamaged)
	}
	return row, nil
}
