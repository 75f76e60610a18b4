package identity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"filippo.io/edwards25519"

	"starling/protocol"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

func testSecret(n byte) Secret { return Secret{b: [SecretSize]byte{n, 0xab, 0xcd, 0xef}} }

func testKey(n byte) *AccountKey { return NewAccountKey(testSecret(n)) }

func testAccount(n byte) Account { return testKey(n).Account() }

func testTransport(n byte) Transport { return Transport(testAccount(n)) }

func testDevice(n byte) *DeviceKey {
	return NewDeviceKey(testSecret(n), x25519.FromSeed([32]byte{n, 0xab, 0xcd, 0xef}))
}

func TestSignatureCoversLabelAndBody(t *testing.T) {
	k, d := testKey(1), testDevice(1)
	for name, who := range map[string]struct {
		sign   func(protocol.Label, []byte) []byte
		verify func(protocol.Label, []byte, []byte) error
	}{
		"account": {k.Sign, k.Account().Verify},
		"device":  {d.Sign, d.Device().Verify},
	} {
		t.Run(name, func(t *testing.T) {
			sig := who.sign(protocol.LabelManifest, []byte("body"))
			if err := who.verify(protocol.LabelManifest, []byte("body"), sig); err != nil {
				t.Errorf("Verify of an own signature = %v", err)
			}
			for what, err := range map[string]error{
				"another label":    who.verify(protocol.LabelBundle, []byte("body"), sig),
				"another body":     who.verify(protocol.LabelManifest, []byte("bodY"), sig),
				"a short one":      who.verify(protocol.LabelManifest, []byte("body"), sig[:63]),
				"none":             who.verify(protocol.LabelManifest, []byte("body"), nil),
				"another key's":    who.verify(protocol.LabelManifest, []byte("body"), testKey(2).Sign(protocol.LabelManifest, []byte("body"))),
				"an unlabelled":    who.verify("", append([]byte(protocol.LabelManifest), "\x00body"...), sig),
				"a longer message": who.verify(protocol.LabelManifest, []byte("body\x00"), sig),
			} {
				if !errors.Is(err, ErrSignature) {
					t.Errorf("Verify of %s = %v, want ErrSignature", what, err)
				}
			}
		})
	}
}

func TestAccountKeyIsDerivedFromItsSecret(t *testing.T) {
	// HKDF-SHA-256 (RFC 5869) with no salt and info "starling/v1/account-seed",
	// then RFC 8032 §5.1.5. Changing this value strands every account.
	k := NewAccountKey(Secret{})
	a := k.Account()
	if got, want := hex.EncodeToString(a[:]), "88fe1fef43ccb96ba814a42227448914284939a703659177915bcbaf3faf2ade"; got != want {
		t.Errorf("account of the zero secret = %s, want %s", got, want)
	}
	if a == testAccount(1) {
		t.Error("two secrets give one account")
	}
}

func TestExpandGivesTheScalarOfTheAccount(t *testing.T) {
	k := testKey(1)
	s, prefix := k.Expand()
	a := k.Account()
	if got := new(edwards25519.Point).ScalarBaseMult(s).Bytes(); !bytes.Equal(got, a[:]) {
		t.Errorf("scalar times base = %x, want %x", got, a[:])
	}
	if prefix == [32]byte{} {
		t.Error("the nonce prefix is zero")
	}
}

func TestSecretsAreStoredAndRestored(t *testing.T) {
	s, err := NewSecret(bytes.NewReader(bytes.Repeat([]byte{7}, SecretSize)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := SecretFrom(s.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if NewAccountKey(s).Account() != NewAccountKey(r).Account() {
		t.Error("the restored secret gives another account")
	}
	if _, err := SecretFrom(s.Bytes()[1:]); err == nil {
		t.Error("SecretFrom(31 bytes) succeeded")
	}
	if _, err := NewSecret(bytes.NewReader(nil)); err == nil {
		t.Error("NewSecret without randomness succeeded")
	}
	d := testDevice(1)
	if again := NewDeviceKey(d.Seed(), x25519.FromSeed(d.DH().Seed())); again.Device() != d.Device() || again.DH().Public() != d.DH().Public() {
		t.Error("the restored device is another")
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	// 0xab, 0xcd, 0xef is in all of them; as bytes in decimal: 171 205 239.
	link := Link{Account: testAccount(1), Lookup: LookupSecret{0xab, 0xcd, 0xef}, Token: Token{0xab, 0xcd, 0xef}}
	secrets := []any{
		testSecret(1), testKey(1), testDevice(1), link.Lookup, link.Token,
		Profile{Lookup: link.Lookup},
		Profile{Mail: &wire.Mail{Mailboxes: [][]byte{{1, 0xab, 0xcd, 0xef}}}}, // where a capability is
		struct{ P Profile }{Profile{Mail: &wire.Mail{Mailboxes: [][]byte{{1, 0xab, 0xcd, 0xef}}}}},
		struct{ K *AccountKey }{testKey(1)},
	}
	shows := func(s string) bool {
		s = strings.ToLower(s)
		return strings.Contains(s, "abcdef") || strings.Contains(s, "171 205 239") ||
			strings.Contains(s, "0xab, 0xcd, 0xef") || strings.Contains(s, "\xab\xcd\xef") ||
			strings.Contains(strings.ReplaceAll(s, `\\`, `\`), `\xab\xcd\xef`) // as protobuf quotes bytes
	}
	for _, v := range secrets {
		for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%X", "%s", "%q", "%d"} {
			if s := fmt.Sprintf(verb, v); shows(s) {
				t.Errorf("Sprintf(%q, %T) shows the secret: %s", verb, v, s)
			}
		}
	}
	var log bytes.Buffer
	l := slog.New(slog.NewTextHandler(&log, nil))
	for _, v := range append(secrets, link) {
		l.Info("test", "value", v)
	}
	if shows(log.String()) || strings.Contains(log.String(), "STARLING:") {
		t.Errorf("the log shows a secret:\n%s", log.String())
	}
	log.Reset()
	l.Info("test", "account", link.Account)
	if a := link.Account; strings.Contains(log.String(), a.String()) || !strings.Contains(log.String(), a.Short()) {
		t.Errorf("the log has %q, want the short form of the account", log.String())
	}
}

func BenchmarkParseAccount(b *testing.B) {
	a := testAccount(1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseAccount(a[:]); err != nil {
			b.Fatal(err)
		}
	}
}
