package prekey

import (
	"bytes"
	"crypto/rand"
	"testing"

	"starling/protocol/ratchet"
)

// TestSecretsStartARatchet opens a first message and its answer on what both
// sides derived, in both tiers.
func TestSecretsStartARatchet(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	for name, bundle := range map[string]*Bundle{"T3": nil, "T1": bob.oneTimeBundle} {
		as, hs := alice.initiate(t, bob, bundle, nil, nil)
		bs, _ := bob.respond(t, hs)
		a, err := ratchet.NewInitiator(rand.Reader, as.Session, as.Root, as.Associated, bob.dayBundle.X25519)
		if err != nil {
			t.Fatal(err)
		}
		b := ratchet.NewResponder(bs.Session, bs.Root, bs.Associated, bob.day.X25519())

		pass := func(from, to *ratchet.Session, text string) {
			t.Helper()
			m, err := from.Seal(rand.Reader, []byte(text))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			o, err := to.Open(m.Message, nil)
			if err != nil || !bytes.Equal(o.Plaintext, []byte(text)) {
				t.Fatalf("%s: received %q, %v", name, o.Plaintext, err)
			}
			if !o.Stepped {
				t.Errorf("%s: %q did not step the ratchet", name, text)
			}
		}
		pass(a, b, "hello")
		pass(b, a, "hello yourself")
	}
}
