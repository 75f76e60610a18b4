package prekey

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

var update = flag.Bool("update", false, "write testdata/pqxdh.json anew")

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readJSON(t testing.TB, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

// TestDerivationMatchesPublishedVectors feeds the key derivation the info
// strings of others (testdata/published.json names the sources). It runs from
// the responder's side, because the initiator's published private key is not
// clamped.
func TestDerivationMatchesPublishedVectors(t *testing.T) {
	var v struct {
		X3DH struct {
			AliceIdentity string `json:"alice_identity_public"`
			AliceBase     string `json:"alice_base_public"`
			BobIdentity   string `json:"bob_identity_private"`
			BobPreKey     string `json:"bob_signed_prekey_private"`
			DH1, DH2, DH3 string
			Info          string `json:"info"`
			Root          string `json:"root_key"`
			Chain         string `json:"chain_key"`
		} `json:"x3dh-noopk-session"`
		PQXDH struct {
			Shared string `json:"kem_ss"`
			Info   string `json:"info"`
			Root   string `json:"root_key"`
			Chain  string `json:"chain_key"`
			PQ     string `json:"pqr_key"`
		} `json:"pqxdh-kdf-derived"`
	}
	readJSON(t, "testdata/published.json", &v)

	shared := func(private, public string) *[32]byte {
		k := x25519.FromSeed([32]byte(unhex(t, private)))
		pub, err := x25519.Parse(unhex(t, public))
		if err != nil {
			t.Fatal(err)
		}
		z, err := k.Shared(pub)
		if err != nil {
			t.Fatal(err)
		}
		return &z
	}
	dh1 := shared(v.X3DH.BobPreKey, v.X3DH.AliceIdentity)
	dh2 := shared(v.X3DH.BobIdentity, v.X3DH.AliceBase)
	dh3 := shared(v.X3DH.BobPreKey, v.X3DH.AliceBase)

	x3dh := newAgreement(nil, dh1, dh2, dh3).derive([]byte(v.X3DH.Info), 64)
	pqxdh := newAgreement(unhex(t, v.PQXDH.Shared), dh1, dh2, dh3).derive([]byte(v.PQXDH.Info), 96)
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"DH1", dh1[:], v.X3DH.DH1},
		{"DH2", dh2[:], v.X3DH.DH2},
		{"DH3", dh3[:], v.X3DH.DH3},
		{"X3DH root key", x3dh[:32], v.X3DH.Root},
		{"X3DH chain key", x3dh[32:], v.X3DH.Chain},
		{"PQXDH root key", pqxdh[:32], v.PQXDH.Root},
		{"PQXDH chain key", pqxdh[32:64], v.PQXDH.Chain},
		{"PQXDH post-quantum seed", pqxdh[64:], v.PQXDH.PQ},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s is %s, want %s", c.name, got, c.want)
		}
	}
}

// A vector is a whole handshake, in hex: every secret and random input of both
// ends, what crosses the wire, and what is derived.
type vector struct {
	Comment   string `json:"comment"`
	Initiator struct {
		Account      string `json:"account"`
		DeviceSeed   string `json:"device_seed"`
		DHSeed       string `json:"dh_seed"`
		Capabilities uint64 `json:"capabilities"`
		Manifest     string `json:"manifest"`
		Ephemeral    string `json:"ephemeral_seed"`
		Encapsulate  string `json:"encapsulation_randomness"`
		Replaces     string `json:"replaces"`
		Token        string `json:"token"`
	} `json:"initiator"`
	Responder struct {
		Account     string `json:"account"`
		DeviceSeed  string `json:"device_seed"`
		DHSeed      string `json:"dh_seed"`
		DayX25519   string `json:"day_x25519_seed"`
		DayKEM      string `json:"day_kem_seed"`
		DayBundle   string `json:"day_bundle"`
		DayKeyID    string `json:"day_key_id"`
		OnceX25519  string `json:"one_time_x25519_seed"`
		OnceKEM     string `json:"one_time_kem_seed"`
		OnceBundle  string `json:"one_time_bundle"`
		OnceKeyID   string `json:"one_time_key_id"`
		UsedOneTime bool   `json:"one_time_used"`
	} `json:"responder"`
	Handshake   string `json:"handshake"`
	HandshakeID string `json:"handshake_id"`
	Transcript  string `json:"transcript"`
	Associated  string `json:"associated"`
	Root        string `json:"root_key"`
	PQSeed      string `json:"pq_seed"`
	Session     string `json:"session"`
}

func makeVector(t testing.TB, comment string, oneTime, replaces, token bool) vector {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 3)
	var v vector
	v.Comment = comment
	var bundle *Bundle
	if oneTime {
		bundle = bob.oneTimeBundle
	}
	var old *SessionID
	if replaces {
		old = &SessionID{0: 0xaa, 31: 0xbb}
		v.Initiator.Replaces = hex.EncodeToString(old[:])
	}
	var tok *identity.Token
	if token {
		tok = &identity.Token{0: 0xcc, 15: 0xdd}
		v.Initiator.Token = hex.EncodeToString(tok[:])
	}
	s, hs := alice.initiate(t, bob, bundle, old, tok)

	random := make([]byte, 64) // what initiate read: the ephemeral seed, then m
	(&stream{name: "handshake"}).Read(random)
	seed := func(p *x25519.Private) string { b := p.Seed(); return hex.EncodeToString(b[:]) }
	kem := func(p *Private) string { _, b := p.Seeds(); return hex.EncodeToString(b) }
	v.Initiator.Account = hex.EncodeToString(alice.self.Account[:])
	v.Initiator.DeviceSeed = hex.EncodeToString(alice.dk.Seed().Bytes())
	v.Initiator.DHSeed = seed(alice.dk.DH())
	v.Initiator.Capabilities = alice.caps
	v.Initiator.Manifest = hex.EncodeToString(alice.manifest)
	v.Initiator.Ephemeral = hex.EncodeToString(random[:32])
	v.Initiator.Encapsulate = hex.EncodeToString(random[32:])
	v.Responder.Account = hex.EncodeToString(bob.self.Account[:])
	v.Responder.DeviceSeed = hex.EncodeToString(bob.dk.Seed().Bytes())
	v.Responder.DHSeed = seed(bob.dk.DH())
	v.Responder.DayX25519, v.Responder.DayKEM = seed(&bob.day.x), kem(&bob.day)
	v.Responder.DayBundle = hex.EncodeToString(bob.dayBytes)
	v.Responder.DayKeyID = hex.EncodeToString(bob.dayBundle.ID[:])
	v.Responder.OnceX25519, v.Responder.OnceKEM = seed(&bob.oneTime.x), kem(&bob.oneTime)
	v.Responder.OnceBundle = hex.EncodeToString(bob.oneTimeBytes)
	v.Responder.OnceKeyID = hex.EncodeToString(bob.oneTimeBundle.ID[:])
	v.Responder.UsedOneTime = oneTime

	id := HandshakeID(hs)
	v.Handshake = hex.EncodeToString(wire.Marshal(hs))
	v.HandshakeID = hex.EncodeToString(id[:])
	v.setSecrets(s)
	return v
}

func (v *vector) setSecrets(s Secrets) {
	v.Transcript = hex.EncodeToString(s.Transcript[:])
	v.Associated = hex.EncodeToString(s.Associated[:])
	v.Root = hex.EncodeToString(s.Root[:])
	v.PQSeed = hex.EncodeToString(s.PQSeed[:])
	v.Session = hex.EncodeToString(s.Session[:])
}

const vectorFile = "testdata/pqxdh.json"

func TestInitiatorMatchesVectors(t *testing.T) {
	got, err := json.MarshalIndent([]vector{
		makeVector(t, "T3: the day's keys only", false, false, false),
		makeVector(t, "T1: a one-time key too", true, false, false),
		makeVector(t, "T1, replacing a session, with a token", true, true, true),
	}, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(vectorFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s no longer matches; -update writes it anew, for review as a diff", vectorFile)
	}
}

// TestResponderMatchesVectors starts from the file alone.
func TestResponderMatchesVectors(t *testing.T) {
	var vs []vector
	readJSON(t, vectorFile, &vs)
	for _, v := range vs {
		seed, err := identity.SecretFrom(unhex(t, v.Responder.DeviceSeed))
		if err != nil {
			t.Fatal(err)
		}
		account, err := identity.ParseAccount(unhex(t, v.Responder.Account))
		if err != nil {
			t.Fatal(err)
		}
		dk := identity.NewDeviceKey(seed, x25519.FromSeed([32]byte(unhex(t, v.Responder.DHSeed))))
		restore := func(x, kem, bundle string) (*Private, *Bundle) {
			p, err := RestorePrivate([32]byte(unhex(t, x)), unhex(t, kem))
			if err != nil {
				t.Fatal(err)
			}
			b, err := OwnBundle(unhex(t, bundle), &p)
			if err != nil {
				t.Fatal(err)
			}
			return &p, b
		}
		day, dayBundle := restore(v.Responder.DayX25519, v.Responder.DayKEM, v.Responder.DayBundle)
		once, onceBundle := restore(v.Responder.OnceX25519, v.Responder.OnceKEM, v.Responder.OnceBundle)
		if hex.EncodeToString(dayBundle.ID[:]) != v.Responder.DayKeyID || hex.EncodeToString(onceBundle.ID[:]) != v.Responder.OnceKeyID {
			t.Errorf("%s: other key IDs", v.Comment)
		}
		if !v.Responder.UsedOneTime {
			once, onceBundle = nil, nil
		}

		var hs wire.Handshake
		if err := wire.Parse(unhex(t, v.Handshake), protocol.MaxEnvelope, &hs); err != nil {
			t.Fatal(err)
		}
		in, err := OpenIntroduction(dk, account, day, dayBundle, &hs, now)
		if err != nil {
			t.Fatalf("%s: %v", v.Comment, err)
		}
		s, err := Respond(dk, account, day, dayBundle, once, onceBundle, &hs, in)
		if err != nil {
			t.Fatalf("%s: %v", v.Comment, err)
		}
		got, id := v, HandshakeID(&hs)
		got.setSecrets(s)
		got.HandshakeID = hex.EncodeToString(id[:])
		if got != v {
			t.Errorf("%s: derived %+v, want %+v", v.Comment, got, v)
		}
		if v.Initiator.Token != "" && !in.CheckToken(identity.Token(unhex(t, v.Initiator.Token)), s) {
			t.Errorf("%s: the token does not verify", v.Comment)
		}
	}
}
