package station

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/libp2p/go-libp2p/core/crypto"
)

// A relay's key file is PKCS #8 in PEM (RFC 5958, RFC 7468), as other programs
// read and write it. Like a host key of SSH it is not encrypted, since nobody is
// there to give a passphrase when the machine starts: its mode protects it.
const (
	pemType     = "PRIVATE KEY"
	maxKeyFile  = 4096 // bytes
	keyFileMode = 0o600
)

// ErrKeyFile means that a file is no relay's key. Put the right one, or a backup
// of it, in its place.
var ErrKeyFile = errors.New("this is not the key of a relay")

// CreateKeyFile draws a relay's key and keeps it at path, whole or not at all.
// An existing file is an error that wraps [fs.ErrExist].
func CreateKeyFile(path string) (crypto.PrivKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	if err := writeKeyFile(path, key); err != nil {
		return nil, err
	}
	return crypto.UnmarshalEd25519PrivateKey(key)
}

// OpenKeyFile returns the key at path. A file that others can read is refused,
// where files have modes: it may be known to them.
func OpenKeyFile(path string) (crypto.PrivKey, error) {
	key, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	return crypto.UnmarshalEd25519PrivateKey(key)
}

// BackupKeyFile copies the key at path to another file, which must not exist.
// Whoever has it can be the relay: it belongs where nobody else looks. Put in
// the place of the first, it makes every link valid again.
func BackupKeyFile(path, to string) error {
	key, err := readKeyFile(path)
	if err != nil {
		return err
	}
	return writeKeyFile(to, key)
}

func readKeyFile(path string) (ed25519.PrivateKey, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case !fi.Mode().IsRegular() || fi.Size() > maxKeyFile:
		return nil, fmt.Errorf("reading %s: %w", path, ErrKeyFile)
	case runtime.GOOS != "windows" && fi.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("reading %s: others can read it (mode %04o): take it from them with chmod 600", path, fi.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("reading %s: %w", path, ErrKeyFile)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, ErrKeyFile)
	}
	k, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("reading %s: %w", path, ErrKeyFile)
	}
	return k, nil
}

func writeKeyFile(path string, key ed25519.PrivateKey) (err error) {
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, keyFileMode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("writing %s: %w", path, fs.ErrExist)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	err = errors.Join(pem.Encode(f, &pem.Block{Type: pemType, Bytes: b}), f.Sync(), f.Close())
	if err != nil || runtime.GOOS == "windows" {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
