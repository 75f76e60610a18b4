package envelope

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"starling/protocol/identity"
	"starling/protocol/x25519"
)

const sealedFile = "testdata/sealed.json"

// sealedVectors are, in hex, what another implementation has to reproduce. One
// encapsulated key serves all of them, which nobody but vectors may do: key and
// nonce of the AEAD are given, so that any plaintext can be sealed again.
type sealedVectors struct {
	Now       int64  `json:"now"` // unix seconds
	Queue     string `json:"queue"`
	Recipient struct {
		Account     string `json:"account"`
		DeviceSeed  string `json:"device_seed"`
		DHSeed      string `json:"dh_seed"`
		SealingSeed string `json:"sealing_seed"`
		Week        uint32 `json:"week"`
		SealingKey  string `json:"sealing_key"` // signed
	} `json:"recipient"`
	Sender struct {
		DeviceSeed string `json:"device_seed"`
		DHSeed     string `json:"dh_seed"`
		Manifest   string `json:"manifest"`
		Session    string `json:"session"`
		Fill       string `json:"message_of"` // every byte of the ratchet message
	} `json:"sender"`
	Context struct {
		MLKEM string `json:"mlkem_randomness"`
		Eph   string `json:"x25519_ephemeral_seed"`
		Enc   string `json:"enc"`
		Key   string `json:"aead_key"`
		Nonce string `json:"aead_nonce"`
	} `json:"context"`
	Positive []sealedPositive `json:"positive"`
	Negative []sealedNegative `json:"negative"`
}

type sealedPositive struct {
	Message int    `json:"message_bytes"`
	Tag     string `json:"tag"`
	Size    int    `json:"sealed_bytes"`
	SHA256  string `json:"sealed_sha256"`
	Sealed  string `json:"sealed,omitempty"` // of the smallest
}

// A sealedNegative is a plaintext without the zeros at its end.
type sealedNegative struct {
	Fault string `json:"fault"`
	Inner string `json:"plaintext"`
	Size  int    `json:"padded_bytes"`
}

func TestSealedVectors(t *testing.T) {
	l := newLetter(t)
	var v sealedVectors
	v.Now, v.Queue = now.Unix(), hex.EncodeToString(queue[:])

	account, seed, dh := l.bob.account.Account(), l.bob.private.Seed(), l.bob.dk.DH().Seed()
	to := &v.Recipient
	to.Account, to.DeviceSeed, to.DHSeed = hex.EncodeToString(account[:]), hex.EncodeToString(l.bob.dk.Seed().Bytes()), hex.EncodeToString(dh[:])
	to.SealingSeed, to.Week, to.SealingKey = hex.EncodeToString(seed[:]), WeekOf(now), hex.EncodeToString(l.bob.signed)

	from := &v.Sender
	dh = l.alice.dk.DH().Seed()
	from.DeviceSeed, from.DHSeed = hex.EncodeToString(l.alice.dk.Seed().Bytes()), hex.EncodeToString(dh[:])
	from.Manifest, from.Session, from.Fill = hex.EncodeToString(l.alice.manifest), hex.EncodeToString(bytes.Repeat([]byte{0x11}, 32)), "07"

	var r [64]byte
	(&stream{name: "encapsulation"}).Read(r[:])
	v.Context.MLKEM, v.Context.Eph = hex.EncodeToString(r[:32]), hex.EncodeToString(r[32:])
	v.Context.Enc, v.Context.Key, v.Context.Nonce = hex.EncodeToString(l.context.enc), hex.EncodeToString(l.context.key), hex.EncodeToString(l.context.nonce)

	for i, n := range []int{256, 1536, 15872, 32256} {
		inner, err := l.alice.sender().inner(l.bob.entry, l.context.enc, openEnvelope(n))
		if err != nil {
			t.Fatal(err)
		}
		sealed := l.context.seal(t, inner)
		h := sha256.Sum256(sealed)
		p := sealedPositive{Message: len(message(n)), Tag: hex.EncodeToString(l.sound(openEnvelope(n)).Tag), Size: len(sealed), SHA256: hex.EncodeToString(h[:])}
		if i == 0 {
			p.Sealed = hex.EncodeToString(sealed)
		}
		v.Positive = append(v.Positive, p)
	}
	faults := l.faults(t)
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		trimmed := bytes.TrimRight(faults[name], "\x00")
		if len(trimmed) > buckets[0] {
			continue // its fault is its length
		}
		v.Negative = append(v.Negative, sealedNegative{name, hex.EncodeToString(trimmed), len(faults[name])})
	}

	got, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(sealedFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(sealedFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s no longer matches; -update writes it anew, for review as a diff", sealedFile)
	}
}

// TestSealedVectorsStandAlone uses nothing but the file, as another
// implementation would.
func TestSealedVectorsStandAlone(t *testing.T) {
	b, err := os.ReadFile(sealedFile)
	if err != nil {
		t.Fatal(err)
	}
	var v sealedVectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		t.Helper()
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	device := func(seed, dh string) *identity.DeviceKey {
		t.Helper()
		s, err := identity.SecretFrom(unhex(seed))
		if err != nil {
			t.Fatal(err)
		}
		return identity.NewDeviceKey(s, x25519.FromSeed([32]byte(unhex(dh))))
	}
	at := time.Unix(v.Now, 0)
	bob, alice := device(v.Recipient.DeviceSeed, v.Recipient.DHSeed), device(v.Sender.DeviceSeed, v.Sender.DHSeed)
	private := RestoreSealingPrivate([32]byte(unhex(v.Recipient.SealingSeed)))
	c := context{unhex(v.Context.Enc), unhex(v.Context.Key), unhex(v.Context.Nonce)}
	open := func(sealed []byte) (Opened, error) {
		return OpenSealed([]*SealingPrivate{private}, bob, [32]byte(unhex(v.Queue)), sealed, at)
	}

	key, err := OpenSealingKey(unhex(v.Recipient.SealingKey), identity.Account(unhex(v.Recipient.Account)), bob.Device(), at)
	if err != nil || key.Week != v.Recipient.Week || !bytes.Equal(key.key.Bytes(), private.key.PublicKey().Bytes()) {
		t.Errorf("the sealing key: %v", err)
	}
	for _, p := range v.Positive {
		envelope := Seal([32]byte(unhex(v.Sender.Session)), nil, bytes.Repeat(unhex(v.Sender.Fill), p.Message))
		inner, err := Sender{alice, unhex(v.Sender.Manifest)}.inner(identity.DeviceEntry{Key: bob.Device(), DH: bob.DH().Public()}, c.enc, envelope)
		if err != nil {
			t.Fatal(err)
		}
		sealed := c.seal(t, inner)
		if h := sha256.Sum256(sealed); len(sealed) != p.Size || hex.EncodeToString(h[:]) != p.SHA256 || !bytes.Contains(inner, unhex(p.Tag)) {
			t.Errorf("the vector of %d bytes is sealed otherwise", p.Size)
		}
		if got, err := open(sealed); err != nil || !bytes.Equal(got.Envelope, envelope) || got.Device.Key != alice.Device() {
			t.Errorf("the vector of %d bytes: %v", p.Size, err)
		}
	}
	if got, err := open(unhex(v.Positive[0].Sealed)); err != nil || got.Device.DH != alice.DH().Public() {
		t.Errorf("the vector that is given whole: %v", err)
	}
	if len(v.Negative) < 30 {
		t.Errorf("%d faults", len(v.Negative))
	}
	for _, n := range v.Negative {
		inner := append(unhex(n.Inner), make([]byte, n.Size-len(n.Inner)/2)...)
		if _, err := open(c.seal(t, inner)); err != ErrSealed {
			t.Errorf("%s: error %v, want ErrSealed", n.Fault, err)
		}
	}
}
