package identity

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

// A hexBytes is a JSON string in hexadecimal.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(s []byte) error {
	b, err := hex.DecodeString(string(s))
	*h = b
	return err
}

// published holds values printed in the sources that testdata/published.json
// names; they are never regenerated.
type published struct {
	Fingerprint struct {
		Iterations int
		Alice, Bob struct {
			Key, Fingerprint hexBytes
			ID, Digits       string
		}
		Display string
	}
	Signing []struct {
		Source                           string
		Seed, Public, Message, Signature hexBytes
	}
	Forgery struct {
		Public, NonCanonical, Signature hexBytes
	}
	SmallOrder []hexBytes `json:"small_order"`
	Torsioned  struct {
		Public, Original hexBytes
	}
}

func readPublished(t *testing.T) *published {
	t.Helper()
	b, err := os.ReadFile("testdata/published.json")
	if err != nil {
		t.Fatal(err)
	}
	var p published
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	return &p
}

func TestSigningMatchesRFC8032(t *testing.T) {
	for _, v := range readPublished(t).Signing {
		t.Run(v.Source, func(t *testing.T) {
			k := ed25519.NewKeyFromSeed(v.Seed)
			d := Device(k.Public().(ed25519.PublicKey))
			if got, want := hex.EncodeToString(d[:]), hex.EncodeToString(v.Public); got != want {
				t.Errorf("public key = %s, want %s", got, want)
			}
			if _, err := ParseDevice(v.Public); err != nil {
				t.Errorf("ParseDevice(%x) = %v", v.Public, err)
			}
			if len(v.Signature) == 0 {
				return
			}
			// Our own signatures bind a label; the published ones do not.
			if got, want := hex.EncodeToString(ed25519.Sign(k, v.Message)), hex.EncodeToString(v.Signature); got != want {
				t.Errorf("signature = %s, want %s", got, want)
			}
		})
	}
}

func TestFingerprintMatchesPublishedVector(t *testing.T) {
	v := readPublished(t).Fingerprint
	const version = 0
	alice := fingerprint(version, v.Alice.Key, []byte(v.Alice.ID), v.Iterations)
	bob := fingerprint(version, v.Bob.Key, []byte(v.Bob.ID), v.Iterations)
	for _, c := range []struct {
		what, got, want string
	}{
		{"alice's fingerprint", hex.EncodeToString(alice[:]), hex.EncodeToString(v.Alice.Fingerprint)},
		{"bob's fingerprint", hex.EncodeToString(bob[:]), hex.EncodeToString(v.Bob.Fingerprint)},
		{"alice's digits", alice.digits(), v.Alice.Digits},
		{"bob's digits", bob.digits(), v.Bob.Digits},
		{"the number", alice.join(bob), v.Display},
		{"the number from the other side", bob.join(alice), v.Display},
	} {
		if c.got != c.want {
			t.Errorf("%s = %s, want %s", c.what, c.got, c.want)
		}
	}
}

// parsers are the three ways an Ed25519 key comes in.
var parsers = map[string]func([]byte) error{
	"account":   func(b []byte) error { _, err := ParseAccount(b); return err },
	"device":    func(b []byte) error { _, err := ParseDevice(b); return err },
	"transport": func(b []byte) error { _, err := ParseTransport(b); return err },
}

func TestStrictImport(t *testing.T) {
	p := readPublished(t)
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	type key struct {
		name string
		b    []byte
		ok   bool
	}
	keys := []key{
		{"the torsion-free original", p.Torsioned.Original, true},
		{"the original plus a point of order 8", p.Torsioned.Public, false},
		{"the identity point", p.Forgery.Public, false},
		{"the identity point, not canonical", p.Forgery.NonCanonical, false},
		// x = 0 with the sign bit set: crypto/ed25519 takes it for the identity.
		{"the identity point with a sign", unhex("0100000000000000000000000000000000000000000000000000000000000080"), false},
		{"the point of order 2 with a sign", unhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"), false},
		{"y = p", unhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"), false},
		{"y = p, with a sign", unhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"), false},
		{"y = 2^255 - 1", unhex("ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"), false},
		{"off the curve", unhex("0200000000000000000000000000000000000000000000000000000000000000"), false},
		{"nothing", nil, false},
		{"31 bytes", p.Torsioned.Original[:31], false},
		{"33 bytes", append([]byte{0}, p.Torsioned.Original...), false},
	}
	for _, b := range p.SmallOrder {
		keys = append(keys, key{"small order " + hex.EncodeToString(b), b, false})
	}
	for _, k := range keys {
		for kind, parse := range parsers {
			if err := parse(k.b); (err == nil) != k.ok {
				t.Errorf("%s as %s key: error %v, want accepted = %v", k.name, kind, err, k.ok)
			}
		}
	}
}

// The reason for strict import: under these keys one signature fits every
// message.
func TestTrivialSignatureVerifiesUnderKeysThatAreRefused(t *testing.T) {
	f := readPublished(t).Forgery
	for _, key := range []hexBytes{f.Public, f.NonCanonical} {
		for _, m := range []string{"", "any", "message"} {
			if !ed25519.Verify(ed25519.PublicKey(key), []byte(m), f.Signature) {
				t.Errorf("crypto/ed25519 now refuses %x: the check may be dropped once all versions do", key)
			}
		}
		if _, err := ParseAccount(key); err == nil {
			t.Errorf("ParseAccount(%x) succeeded, want ErrKey", key)
		}
	}
}
