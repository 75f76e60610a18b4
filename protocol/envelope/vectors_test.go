package envelope

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

// vectors are, in hex, what another implementation has to reproduce. A padded
// content is given as far as its marker.
type vectors struct {
	Contents map[string]string `json:"contents"`
	Envelope struct {
		Session string `json:"session"`
		Message string `json:"message"`
		Bytes   string `json:"bytes"`
		Hash    string `json:"hash"`
	} `json:"envelope"`
	DecryptionError struct {
		FromDH   string `json:"from_dh_seed"`
		ToDH     string `json:"to_dh_seed"`
		From     string `json:"from"`
		To       string `json:"to"`
		Envelope string `json:"envelope"`
		Session  string `json:"session"`
		Reason   int32  `json:"reason"`
		MAC      string `json:"mac"`
		Alone    string `json:"alone"` // in an envelope for the sealed form
	} `json:"decryption_error"`
}

func TestVectors(t *testing.T) {
	var v vectors
	v.Contents = map[string]string{}
	for _, name := range []string{"text", "delivered", "read", "news", "news of mail", "no mail any more", "accept", "short life", "last sequence"} {
		b, err := MarshalContent(contents()[name])
		if err != nil {
			t.Fatal(err)
		}
		v.Contents[name] = hex.EncodeToString(bytes.TrimRight(b, "\x00"))
	}

	session := bytes.Repeat([]byte{0x11}, 32)
	b := Seal([32]byte(session), nil, message(256))
	h := HashOf(b)
	v.Envelope.Session = hex.EncodeToString(session)
	v.Envelope.Message = hex.EncodeToString(message(256))
	v.Envelope.Bytes = hex.EncodeToString(b)
	v.Envelope.Hash = hex.EncodeToString(h[:])

	from, to := bytes.Repeat([]byte{0x22}, 32), bytes.Repeat([]byte{0x33}, 32)
	own, peer := x25519.FromSeed([32]byte(from)), x25519.FromSeed([32]byte(to))
	devFrom, devTo := identity.Device(bytes.Repeat([]byte{0x44}, 32)), identity.Device(bytes.Repeat([]byte{0x55}, 32))
	e := NewDecryptionError(&own, peer.Public(), devFrom, devTo, h, [32]byte(session), wire.Reason_REASON_KEY_GONE)
	d := &v.DecryptionError
	d.FromDH, d.ToDH = hex.EncodeToString(from), hex.EncodeToString(to)
	d.From, d.To = hex.EncodeToString(devFrom[:]), hex.EncodeToString(devTo[:])
	d.Envelope, d.Session = hex.EncodeToString(e.Envelope), hex.EncodeToString(e.Session)
	d.Reason, d.MAC = int32(e.Reason), hex.EncodeToString(e.Mac)
	d.Alone = hex.EncodeToString(SealError(e))

	got, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/vectors.json"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s no longer matches; -update writes it anew, for review as a diff", file)
	}
}
