package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cheap is a cost for tests that derive often.
var cheap = argon{time: 1, memory: 64, threads: 1}

// A fakeKeyring is a keyring in memory.
type fakeKeyring map[string][]byte

func (k fakeKeyring) Get(name string) ([]byte, error) {
	b, ok := k[name]
	if !ok {
		return nil, fmt.Errorf("fake keyring: %w", ErrNotFound)
	}
	return bytes.Clone(b), nil
}

func (k fakeKeyring) Set(name string, secret []byte) error {
	k[name] = bytes.Clone(secret)
	return nil
}

func (k fakeKeyring) Delete(name string) error {
	delete(k, name)
	return nil
}

func TestKeyFile(t *testing.T) {
	ring := fakeKeyring{}
	all := map[Kind]Protection{
		KindPassphrase: {Passphrase: []byte("correct horse")},
		KindKeyring:    {Keyring: ring},
		KindPlain:      {Plain: true},
	}
	for kind, p := range all {
		path := filepath.Join(t.TempDir(), "key")
		k, err := CreateKeyFile(path, p)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := KeyFileKind(path); got != kind || err != nil {
			t.Errorf("kind %d reads as %d, %v", kind, got, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
		}
		if got, err := OpenKeyFile(path, p); err != nil || got.b != k.b {
			t.Errorf("kind %d does not open: %v", kind, err)
		}
		raw, err := os.ReadFile(path)
		if err != nil || bytes.Contains(raw, k.b[:]) {
			t.Errorf("kind %d shows the key (%v)", kind, err)
		}
		if _, err := CreateKeyFile(path, p); !errors.Is(err, fs.ErrExist) {
			t.Errorf("CreateKeyFile over a file: %v, want ErrExist", err)
		}
		for other, q := range all {
			if other == kind {
				continue
			}
			if _, err := OpenKeyFile(path, q); !errors.Is(err, ErrPassphrase) {
				t.Errorf("kind %d opened as %d: %v, want ErrPassphrase", kind, other, err)
			}
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, raw) {
			t.Errorf("kind %d: the file changed (%v)", kind, err)
		}
	}
	for _, p := range []Protection{{}, {Plain: true, Passphrase: []byte("x")}, {Passphrase: []byte{}}} {
		path := filepath.Join(t.TempDir(), "key")
		if _, err := CreateKeyFile(path, p); err == nil {
			t.Errorf("CreateKeyFile with %d choices succeeded", len(p.Passphrase))
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a refused CreateKeyFile left a file (%v)", err)
		}
	}
	if _, err := OpenKeyFile(filepath.Join(t.TempDir(), "key"), all[KindPlain]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenKeyFile of no file: %v", err)
	}
}

func TestWrongPassphraseChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	p := func(s string) Protection { return Protection{Passphrase: []byte(s)} }
	if err := writeKeyFile(path, testConfig().Key, p("right"), cheap, nil); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyFile(path, p("wrong")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("OpenKeyFile: %v, want ErrPassphrase", err)
	}
	if err := ChangePassphrase(path, []byte("wrong"), []byte("new")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("ChangePassphrase: %v, want ErrPassphrase", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the file changed (%v)", err)
	}
	if names, err := filepath.Glob(path + "*"); err != nil || len(names) != 1 {
		t.Errorf("files %q, %v, want the key file alone", names, err)
	}
}

// TestKeyFileDamage flips every bit: the file never opens, and damage is not
// called a wrong passphrase.
func TestKeyFileDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	p := Protection{Passphrase: []byte("right")}
	if err := writeKeyFile(path, testConfig().Key, p, cheap, nil); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(good) {
		bad := bytes.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		want := ErrDamaged
		if bit < 8 && bad[0] > keyVersion {
			want = ErrNewer
		}
		if _, err := OpenKeyFile(path, p); !errors.Is(err, want) {
			t.Fatalf("bit %d flipped: %v, want %v", bit, err, want)
		}
	}
	for _, n := range []int{0, 1, len(good) - 1} {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKeyFile(path, p); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: %v, want ErrDamaged", n, err)
		}
	}
}

// TestKeyFileCostIsBounded: a file with a sound checksum that asks for too much
// is refused before anything is allocated.
func TestKeyFileCostIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	p := Protection{Passphrase: []byte("right")}
	for _, c := range []argon{
		{time: argonMax.time + 1, memory: 64, threads: 1},
		{time: 1, memory: 64, threads: argonMax.threads + 1},
	} {
		if err := writeKeyFile(path, testConfig().Key, p, c, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKeyFile(path, p); !errors.Is(err, ErrDamaged) {
			t.Errorf("cost %+v: %v, want ErrDamaged", c, err)
		}
	}
	if c := argonMax; argonCost.time > c.time || argonCost.memory > c.memory || argonCost.threads > c.threads {
		t.Error("our own cost is over the bound")
	}
}

// TestChangeOfProtectionSurvivesACrashAtEveryStep goes from every kind to every
// kind: after a failure at any step one of the two opens the file.
func TestChangeOfProtectionSurvivesACrashAtEveryStep(t *testing.T) {
	key := testConfig().Key
	for _, from := range []string{"passphrase", "keyring", "plain"} {
		for _, to := range []string{"passphrase", "keyring", "plain"} {
			t.Run(from+" to "+to, func(t *testing.T) {
				for n := 0; ; n++ {
					path := filepath.Join(t.TempDir(), "key")
					ring := fakeKeyring{}
					p := map[string]Protection{"passphrase": {Passphrase: []byte("one")}, "keyring": {Keyring: ring}, "plain": {Plain: true}}
					old, now := p[from], p[to]
					if to == "passphrase" {
						now.Passphrase = []byte("two")
					}
					if err := writeKeyFile(path, key, old, cheap, nil); err != nil {
						t.Fatal(err)
					}
					left := n
					err := changeProtection(path, old, now, cheap, func(string) error {
						if left--; left < 0 {
							return errCrash
						}
						return nil
					})
					opened := 0
					for _, q := range []Protection{old, now} {
						if k, err := OpenKeyFile(path, q); err == nil && k.b == key.b {
							opened++
						} else if err != nil && !errors.Is(err, ErrPassphrase) {
							t.Errorf("crash at step %d: %v", n, err)
						}
					}
					if opened == 0 {
						t.Fatalf("crash at step %d: the key is lost", n)
					}
					if err == nil {
						if _, err := OpenKeyFile(path, now); err != nil {
							t.Errorf("after the change: %v", err)
						}
						if to == "keyring" && len(ring) != 1 || to != "keyring" && len(ring) != 0 {
							t.Errorf("%d entries in the keyring", len(ring))
						}
						if n != 4 {
							t.Errorf("%d steps, want 4", n)
						}
						return
					}
				}
			})
		}
	}
}

func TestKeysDoNotPrint(t *testing.T) {
	k, err := NewKey(strings.NewReader(strings.Repeat("k", KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %x %s %q %d", k, k, &k, k, k, k, k), k.LogValue().String(), fmt.Sprintf("%+v", Config{Key: k})} {
		if strings.Contains(s, "kk") || strings.Contains(s, "6b6b") || strings.Contains(s, "107") {
			t.Errorf("a key prints as %q", s)
		}
	}
}
