package relay

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// seed returns a secret whose bytes are all n.
func seed(n byte) identity.Secret {
	s, err := identity.SecretFrom(bytes.Repeat([]byte{n}, identity.SecretSize))
	if err != nil {
		panic(err)
	}
	return s
}

// A relayKey signs as a libp2p host key does.
type relayKey ed25519.PrivateKey

func newRelayKey(n byte) relayKey {
	return relayKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize)))
}

func (k relayKey) Sign(m []byte) ([]byte, error) { return ed25519.Sign(ed25519.PrivateKey(k), m), nil }

func (k relayKey) transport() identity.Transport {
	return identity.Transport(ed25519.PrivateKey(k).Public().(ed25519.PublicKey))
}

func transport(n byte) identity.Transport { return newRelayKey(n).transport() }

func capability(t testing.TB, n byte) Capability {
	t.Helper()
	c, err := CapabilityFrom(bytes.Repeat([]byte{n}, CapabilitySize))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func hashOf(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

func TestProofIsGoodForItsEndsAndItsBodyOnly(t *testing.T) {
	k, other := NewReaderKey(seed(1)), NewReaderKey(seed(2))
	relay, client := transport(3), transport(4)
	body := []byte("attach")
	proof := k.Prove(relay, client, body)
	if err := k.Reader().CheckProof(relay, client, body, proof); err != nil {
		t.Fatalf("the proof as made: %v", err)
	}
	flipped := bytes.Clone(proof)
	flipped[10] ^= 1
	for _, c := range []struct {
		what          string
		reader        Reader
		relay, client identity.Transport
		body, proof   []byte
	}{
		{"forwarded to another relay", k.Reader(), transport(5), client, body, proof},
		{"used by another client", k.Reader(), relay, transport(5), body, proof},
		{"with the ends exchanged", k.Reader(), client, relay, body, proof},
		{"over another body", k.Reader(), relay, client, []byte("attach more"), proof},
		{"for another queue", other.Reader(), relay, client, body, proof},
		{"with a bit flipped", k.Reader(), relay, client, body, flipped},
		{"cut short", k.Reader(), relay, client, body, proof[:63]},
		{"empty", k.Reader(), relay, client, body, nil},
		{"made for another use", k.Reader(), relay, client, body, ed25519.Sign(k.key, protocol.LabelReceipt.Bind(body))},
	} {
		if err := c.reader.CheckProof(c.relay, c.client, c.body, c.proof); !errors.Is(err, ErrProof) {
			t.Errorf("a proof %s: %v, want ErrProof", c.what, err)
		}
	}
}

// A create and an attach of one key are different bodies, so the proof of one is
// none of the other, and no body parses as both.
func TestProofOfAttachIsNoneOfCreate(t *testing.T) {
	k := NewReaderKey(seed(1))
	relay, client := transport(3), transport(4)
	attach := NewAttach([]*ReaderKey{k}, relay, client)
	create := NewCreate(k, &wire.RelayCreate{Kind: wire.QueueKind_QUEUE_KIND_BOX, Expires: 1}, relay, client)
	create.Proofs = attach.Proofs
	c, err := ParseClaim(create)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(0, relay, client); !errors.Is(err, ErrProof) {
		t.Errorf("Check = %v, want ErrProof", err)
	}
}

// Under a key of small order one signature fits every message: a queue made
// with one would be everybody's.
func TestWeakReaderKeysMakeNoQueue(t *testing.T) {
	weak, trivial := make([]byte, 32), make([]byte, 64)
	weak[0], trivial[0] = 1, 1 // the identity point
	if !ed25519.Verify(weak, claimInput(transport(3), transport(4), []byte("x")), trivial) {
		t.Fatal("the trivial signature does not verify: the test tests nothing")
	}
	if _, err := ParseReader(weak); !errors.Is(err, identity.ErrKey) {
		t.Errorf("ParseReader = %v, want ErrKey", err)
	}
	body := wire.Marshal(&wire.RelayClaimBody{Claim: &wire.RelayClaimBody_Create{Create: &wire.RelayCreate{
		Reader: weak, Kind: wire.QueueKind_QUEUE_KIND_BOX, Expires: 1,
	}}})
	if _, err := ParseClaim(&wire.RelayClaim{Body: body, Proofs: [][]byte{trivial}}); !errors.Is(err, ErrRequest) {
		t.Errorf("ParseClaim = %v, want ErrRequest", err)
	}
}

func TestCapabilityIsGoodAtItsRelayAndQueueOnly(t *testing.T) {
	c, relay, queue := capability(t, 1), transport(2), NewReaderKey(seed(3)).Reader().Queue()
	h := c.Hash(relay, queue)
	for _, x := range []struct {
		what  string
		relay identity.Transport
		queue QueueID
		c     Capability
		want  bool
	}{
		{"its own", relay, queue, c, true},
		{"another capability", relay, queue, capability(t, 2), false},
		{"another relay", transport(4), queue, c, false},
		{"another queue", relay, QueueID{1}, c, false},
	} {
		if got := h.Admits(x.relay, x.queue, x.c); got != x.want {
			t.Errorf("%s: Admits = %v, want %v", x.what, got, x.want)
		}
	}
	zero, err := CapabilityFrom(make([]byte, CapabilitySize))
	if err != nil {
		t.Fatal(err)
	}
	if (CapabilityHash{}).Admits(relay, queue, zero) {
		t.Error("an unset hash admits the zero capability")
	}
}

// What one account shows two relays has nothing in common: every identifier of
// 16 bytes or more that a relay is given is another at the other relay, or
// drawn anew for it.
func TestTwoRelaysSeeNothingEqual(t *testing.T) {
	token := identity.Token{1, 2, 3}
	a, l := identity.Account{4}, identity.LookupSecret{5}
	c := capability(t, 6)
	queue := QueueID{7}
	r1, r2 := transport(8), transport(9)
	for what, at := range map[string]func(identity.Transport) [32]byte{
		"token hash":      func(r identity.Transport) [32]byte { return TokenHash(token, r) },
		"capability hash": func(r identity.Transport) [32]byte { return c.Hash(r, queue) },
		"pool":            func(r identity.Transport) [32]byte { return NewPool(a, l, r, queue).ID() },
		"stamp":           func(r identity.Transport) [32]byte { return DepositStamp(r, queue, hashOf("x"), 1).Hash() },
	} {
		if at(r1) == at(r2) {
			t.Errorf("two relays see the same %s", what)
		}
	}
}

// A relay that has a token's hash has neither the token's ID nor its MAC, which
// its owner asks for.
func TestTokenHashIsNotWhatTheOwnerAsksFor(t *testing.T) {
	token := identity.Token{1, 2, 3}
	h, id, transcript := TokenHash(token, transport(1)), token.ID(), hashOf("transcript")
	mac := token.MAC(transcript)
	if bytes.Contains(h[:], id[:]) || h == mac || identity.Token(h[:16]) == token {
		t.Error("the token's hash at a relay gives away what its owner asks for")
	}
	if identity.Token(h[:16]).MAC(transcript) == mac {
		t.Error("the token's hash makes the token's MAC")
	}
}

func TestHasToken(t *testing.T) {
	admitted := [][32]byte{hashOf("a"), hashOf("b"), hashOf("b")}
	for _, c := range []struct {
		got  string
		want bool
	}{{"a", true}, {"b", true}, {"c", false}} {
		if HasToken(admitted, hashOf(c.got)) != c.want {
			t.Errorf("HasToken(%s) = %v, want %v", c.got, !c.want, c.want)
		}
	}
	if HasToken(nil, [32]byte{}) {
		t.Error("an empty box admits the zero hash")
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	k, c := NewReaderKey(seed(0xab)), capability(t, 0xab)
	p := NewPool(identity.Account{0xab}, identity.LookupSecret{0xab}, transport(1), QueueID{})
	adm := Admission(bytes.Repeat([]byte{0xab}, AdmissionSize))
	link := Link{Transport: transport(1), Admission: adm}
	for what, v := range map[string]any{"reader key": k, "capability": c, "pool": p, "admission": adm} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			if got := fmt.Sprintf(verb, v); got != "[secret]" {
				t.Errorf("%s with %s prints %q", what, verb, got)
			}
		}
	}
	for what, v := range map[string]any{"reader key": k, "capability": c, "pool": p, "admission": adm, "link": link} {
		var out strings.Builder
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		if !strings.Contains(out.String(), "[secret]") || strings.Contains(out.String(), "abab") {
			t.Errorf("%s logs as %s", what, out.String())
		}
	}
	q := k.Reader().Queue()
	var out strings.Builder
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", q)
	if strings.Contains(out.String(), hex.EncodeToString(q[:])) {
		t.Errorf("a queue logs its whole ID: %s", out.String())
	}
}

func TestRandomnessThatFails(t *testing.T) {
	short := bytes.NewReader(make([]byte, 5))
	if _, err := NewCapability(short); err == nil {
		t.Error("NewCapability succeeds without randomness")
	}
	p := NewPool(identity.Account{}, identity.LookupSecret{}, transport(1), QueueID{})
	if _, err := p.Seal(short, nil); err == nil {
		t.Error("Seal succeeds without randomness")
	}
	if _, err := CapabilityFrom(make([]byte, 31)); err == nil {
		t.Error("a capability of 31 bytes is accepted")
	}
}
