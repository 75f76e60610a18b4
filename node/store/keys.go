package store

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
)

// A key file holds the master key, wrapped:
//
//	version   u8          // 1
//	kind      u8          // see Kind
//	time      u32         // Argon2id passes; 0 but for a passphrase
//	memory    u32         // Argon2id KiB; 0 but for a passphrase
//	threads   u8          // Argon2id lanes; 0 but for a passphrase
//	salt      [16]byte    // of Argon2id, or the name of the keyring's entry
//	nonce     [24]byte
//	key       [32+16]byte // master key under XChaCha20-Poly1305
//	checksum  [8]byte     // start of SHA-256 over the above: tells damage from a wrong passphrase
//
// Everything before nonce is associated data. Without protection the wrapping
// key is zero: the file is then the key, and its mode the protection.
const (
	keyVersion  = 1
	saltSize    = 16
	sumSize     = 8
	keyHeader   = 1 + 1 + 4 + 4 + 1 + saltSize
	keyFileSize = keyHeader + overhead + KeySize + sumSize
)

// A Kind is what protects a master key.
type Kind byte

// The kinds of protection. The zero Kind is none of them.
const (
	KindPassphrase Kind = 1 // Argon2id over a passphrase
	KindKeyring    Kind = 2 // a key in the system's keyring
	KindPlain      Kind = 3 // nothing but the file's mode
)

// A Protection protects a master key in its file: exactly one field is set.
type Protection struct {
	Passphrase []byte
	Keyring    Keyring
	Plain      bool // the user chose it knowingly
}

func (p Protection) kind() (Kind, error) {
	var k Kind
	n := 0
	for kind, set := range map[Kind]bool{KindPassphrase: len(p.Passphrase) > 0, KindKeyring: p.Keyring != nil, KindPlain: p.Plain} {
		if set {
			k = kind
			n++
		}
	}
	if n != 1 {
		return 0, errors.New("store: exactly one of passphrase, keyring and plain protects a key")
	}
	return k, nil
}

// A Keyring keeps small secrets for the user: the system's keyring, or a fake.
type Keyring interface {
	// Get returns the entry, or an error that wraps [ErrNotFound].
	Get(name string) (secret []byte, err error)
	// Set makes or replaces the entry, durably.
	Set(name string, secret []byte) error
	// Delete removes the entry.
	Delete(name string) error
}

// argon is Argon2id's cost. It is stored in the file, so that it can rise.
type argon struct {
	time, memory uint32 // passes, KiB
	threads      uint8  // lanes
}

// argonCost takes about 0.1 s on a desktop and is RFC 9106's second choice.
var argonCost = argon{time: 3, memory: 64 << 10, threads: 4}

// argonMax bounds what a key file may ask for: a damaged or hostile one must
// not take all memory.
var argonMax = argon{time: 32, memory: 1 << 20, threads: 32}

// CreateKeyFile draws a master key and keeps it at path under p. An existing
// file is an error that wraps fs.ErrExist, and is left alone.
func CreateKeyFile(path string, p Protection) (Key, error) {
	if _, err := os.Lstat(path); err == nil {
		return Key{}, fmt.Errorf("store: making a key file: %w", fs.ErrExist)
	}
	k, err := NewKey(rand.Reader)
	if err != nil {
		return Key{}, err
	}
	if err := writeKeyFile(path, k, p, argonCost, nil); err != nil {
		return Key{}, err
	}
	return k, nil
}

// KeyFileKind returns what protects the key at path, so that the caller knows
// what to ask for. The error is fs.ErrNotExist, [ErrDamaged], [ErrNewer] or
// the disk's.
func KeyFileKind(path string) (Kind, error) {
	b, err := readKeyFile(path)
	if err != nil {
		return 0, err
	}
	return Kind(b[1]), nil
}

// OpenKeyFile returns the master key at path. [ErrPassphrase] means that p is
// not what protects it: another passphrase or keyring, or another kind.
func OpenKeyFile(path string, p Protection) (Key, error) {
	b, err := readKeyFile(path)
	if err != nil {
		return Key{}, err
	}
	return unwrap(b, p)
}

// ChangeProtection puts the master key at path, which old protects, under now.
// After a crash one of the two opens the file; a wrong old changes nothing.
func ChangeProtection(path string, old, now Protection) error {
	return changeProtection(path, old, now, argonCost, nil)
}

// ChangePassphrase is [ChangeProtection] from one passphrase to another.
func ChangePassphrase(path string, old, now []byte) error {
	return ChangeProtection(path, Protection{Passphrase: old}, Protection{Passphrase: now})
}

func changeProtection(path string, old, now Protection, cost argon, fault func(string) error) error {
	b, err := readKeyFile(path)
	if err != nil {
		return err
	}
	k, err := unwrap(b, old)
	if err != nil {
		return err
	}
	if err := writeKeyFile(path, k, now, cost, fault); err != nil {
		return err
	}
	if old.Keyring != nil {
		// The new file is durable; the old entry wraps nothing any more.
		if err := old.Keyring.Delete(entryName(b)); err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("store: removing the old keyring entry: %w", err)
		}
	}
	return nil
}

// entryName is a key file's name in the keyring.
func entryName(file []byte) string {
	return "starling-" + hex.EncodeToString(file[keyHeader-saltSize:keyHeader])
}

func writeKeyFile(path string, k Key, p Protection, cost argon, fault func(string) error) error {
	kind, err := p.kind()
	if err != nil {
		return err
	}
	if kind != KindPassphrase {
		cost = argon{}
	}
	b := []byte{keyVersion, byte(kind)}
	b = binary.BigEndian.AppendUint32(b, cost.time)
	b = binary.BigEndian.AppendUint32(b, cost.memory)
	b = append(b, cost.threads)
	b = append(b, randomBytes(saltSize)...)
	var wrapping []byte
	switch kind {
	case KindPassphrase:
		wrapping = stretch(p.Passphrase, b)
	case KindKeyring:
		wrapping = randomBytes(chacha20poly1305.KeySize)
		if err := p.Keyring.Set(entryName(b), wrapping); err != nil {
			return fmt.Errorf("store: writing to the keyring: %w", err)
		}
	case KindPlain:
		wrapping = make([]byte, chacha20poly1305.KeySize)
	}
	b, err = newSealer(wrapping, rand.Reader).seal(b, k.b[:], string(b))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	return replaceFile(path, append(b, sum[:sumSize]...), fault)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

// stretch runs Argon2id with the cost and salt of a key file's header.
func stretch(passphrase, file []byte) []byte {
	c := costOf(file)
	return argon2.IDKey(passphrase, file[keyHeader-saltSize:keyHeader], c.time, c.memory, c.threads, chacha20poly1305.KeySize)
}

func costOf(file []byte) argon {
	return argon{binary.BigEndian.Uint32(file[2:]), binary.BigEndian.Uint32(file[6:]), file[10]}
}

// readKeyFile returns a key file whose checksum, kind and cost are sound.
func readKeyFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, diskError("reading the key file", err)
	}
	if len(b) > 0 && b[0] > keyVersion {
		return nil, fmt.Errorf("reading the key file: %w", ErrNewer)
	}
	damaged := fmt.Errorf("reading the key file: %w", ErrDamaged)
	if len(b) != keyFileSize || b[0] != keyVersion {
		return nil, damaged
	}
	body := b[:keyFileSize-sumSize]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:sumSize], b[len(body):]) {
		return nil, damaged
	}
	switch c := costOf(b); Kind(b[1]) {
	case KindPassphrase:
		if c.time < 1 || c.time > argonMax.time || c.memory < 8 || c.memory > argonMax.memory || c.threads < 1 || c.threads > argonMax.threads {
			return nil, damaged
		}
	case KindKeyring, KindPlain:
	default:
		return nil, damaged
	}
	return body, nil
}

func unwrap(file []byte, p Protection) (Key, error) {
	kind, err := p.kind()
	if err != nil {
		return Key{}, err
	}
	if kind != Kind(file[1]) {
		return Key{}, ErrPassphrase
	}
	var wrapping []byte
	switch kind {
	case KindPassphrase:
		wrapping = stretch(p.Passphrase, file)
	case KindKeyring:
		wrapping, err = p.Keyring.Get(entryName(file))
		if errors.Is(err, ErrNotFound) || err == nil && len(wrapping) != chacha20poly1305.KeySize {
			return Key{}, ErrPassphrase
		} else if err != nil {
			return Key{}, fmt.Errorf("store: reading from the keyring: %w", err)
		}
	case KindPlain:
		wrapping = make([]byte, chacha20poly1305.KeySize)
	}
	b, ok := newSealer(wrapping, nil).open(bytes.Clone(file[keyHeader:]), string(file[:keyHeader]))
	if !ok || len(b) != KeySize {
		return Key{}, ErrPassphrase
	}
	return Key{b: [KeySize]byte(b)}, nil
}
