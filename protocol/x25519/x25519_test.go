package x25519

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The published agreement of libsignal's curve tests (x25519-libsignal-1).
func TestSharedMatchesPublishedVector(t *testing.T) {
	a := FromSeed([Size]byte(unhex(t, "c806439dc9d2c476ffed8f2580c0888d58ab406bf7ae3698879021b96bb4bf59")))
	b := FromSeed([Size]byte(unhex(t, "b03b34c33a1c44f225b662d2bf4859b8135411fa7b0386d45fb75dc5b91b4466")))
	if got, want := hex.EncodeToString(a.pub[:]), "1bb75966f2e93a3691dfff942bb2a466a1c08b8d78ca3f4d6df8b8bfa2e4ee28"; got != want {
		t.Errorf("public key of a = %s, want %s", got, want)
	}
	if got, want := hex.EncodeToString(b.pub[:]), "653614993d2b15ee9e5fd3d86ce719ef4ec1daae1886a87b3f5fa9565a27a22f"; got != want {
		t.Errorf("public key of b = %s, want %s", got, want)
	}
	for _, pair := range []struct {
		k   Private
		pub Public
	}{{a, b.pub}, {b, a.pub}} {
		z, err := pair.k.Shared(pair.pub)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := hex.EncodeToString(z[:]), "325f239328941ced6e673b86ba41017448e99b649a9c3806c1dd7ca4c477e629"; got != want {
			t.Errorf("shared secret = %s, want %s", got, want)
		}
	}
}

// RFC 7748 §5.2: the function applied to itself 1 and 1,000 times.
func TestLadderMatchesRFC7748(t *testing.T) {
	k := [Size]byte{9}
	u := Public{9}
	want := map[int]string{
		1:    "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
		1000: "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
	}
	for i := 1; i <= 1000; i++ {
		r := ladder(&k, &u)
		u, k = Public(k), r
		if w, ok := want[i]; ok && hex.EncodeToString(k[:]) != w {
			t.Errorf("after %d steps: %x, want %s", i, k, w)
		}
	}
}

func FuzzLadderAgreesWithStandardLibrary(f *testing.F) {
	for range 8 {
		var seed, u [Size]byte
		rand.Read(seed[:])
		rand.Read(u[:])
		f.Add(seed[:], u[:])
	}
	f.Fuzz(func(t *testing.T, seed, u []byte) {
		if len(seed) != Size || len(u) != Size {
			return
		}
		k := FromSeed([Size]byte(seed))
		std, err := ecdh.X25519().NewPrivateKey(seed)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(k.pub[:], std.PublicKey().Bytes()) {
			t.Fatalf("public key of %x = %x, want %x", seed, k.pub, std.PublicKey().Bytes())
		}
		pub, err := ecdh.X25519().NewPublicKey(u)
		if err != nil {
			t.Fatal(err)
		}
		want, wantErr := std.ECDH(pub)
		got, gotErr := k.Shared(Public(u))
		if (wantErr != nil) != (gotErr != nil) || (wantErr == nil && !bytes.Equal(got[:], want)) {
			t.Fatalf("X25519(%x, %x) = %x, %v; want %x, %v", seed, u, got, gotErr, want, wantErr)
		}
	})
}

func TestLowOrderKeysAreRefused(t *testing.T) {
	k, err := Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
		"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		if _, err := k.Shared(Public(unhex(t, s))); err == nil {
			t.Errorf("Shared(%s) succeeded, want ErrKey", s)
		}
	}
}

func TestParseAcceptsCanonicalKeysOnly(t *testing.T) {
	for s, ok := range map[string]bool{
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f": true, // p - 1: canonical, and refused by Shared
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f": false,
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f": false,
		"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f": false,
		"0900000000000000000000000000000000000000000000000000000000000000": true,
		"0900000000000000000000000000000000000000000000000000000000000080": false,
		"09": false,
		"":   false,
	} {
		if _, err := Parse(unhex(t, s)); (err == nil) != ok {
			t.Errorf("Parse(%q) error = %v, want accepted = %v", s, err, ok)
		}
	}
}

func TestPrivateKeyDoesNotPrint(t *testing.T) {
	k := FromSeed([Size]byte{0xab, 0xcd})
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s", "%d"} {
		for _, v := range []any{k, &k, struct{ K Private }{k}} {
			if s := fmt.Sprintf(verb, v); bytes.Contains([]byte(s), []byte("abcd")) || bytes.Contains([]byte(s), []byte("171")) {
				t.Errorf("Sprintf(%q) shows the key: %s", verb, s)
			}
		}
	}
}

func BenchmarkShared(b *testing.B) {
	k := FromSeed([Size]byte{1})
	p := FromSeed([Size]byte{2})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Shared(p.pub); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGenerate(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		FromSeed([Size]byte{1})
	}
}
