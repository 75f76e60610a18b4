package envelope

import (
	"bytes"
	"crypto/mlkem"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/ratchet"
	"starling/protocol/wire"
)

func handshake() *wire.Handshake {
	return &wire.Handshake{
		Suite:        1,
		Capabilities: 5,
		Ephemeral:    bytes.Repeat([]byte{1}, 32),
		DayKey:       bytes.Repeat([]byte{2}, 16),
		OneTimeKey:   bytes.Repeat([]byte{3}, 16),
		Ciphertext:   bytes.Repeat([]byte{4}, mlkem.CiphertextSize1024),
		Replaces:     bytes.Repeat([]byte{5}, 32),
		Introduction: bytes.Repeat([]byte{6}, 300),
	}
}

func message(n int) []byte { return bytes.Repeat([]byte{7}, ratchet.Overhead+n) }

func TestEnvelopeRoundTrip(t *testing.T) {
	session := [32]byte{1, 2, 3}
	for _, n := range sizes {
		for _, hs := range []*wire.Handshake{nil, handshake()} {
			b := Seal(session, hs, message(n))
			e, err := Parse(b)
			if err != nil {
				t.Fatalf("size %d: %v", n, err)
			}
			if !bytes.Equal(e.Session, session[:]) || !bytes.Equal(e.Message, message(n)) || !proto.Equal(e.Handshake, hs) {
				t.Errorf("size %d: another envelope came back", n)
			}
			if (e.Handshake == nil) != (hs == nil) {
				t.Errorf("size %d: handshake %v, want %v", n, e.Handshake, hs)
			}
			if !bytes.Equal(Seal(session, hs, message(n)), b) {
				t.Errorf("size %d: the same envelope has two encodings", n)
			}
		}
	}
}

func TestLongestEnvelopeFits(t *testing.T) {
	hs := handshake()
	hs.Introduction = make([]byte, protocol.MaxIntro)
	b := Seal([32]byte{1}, hs, message(protocol.MaxContent))
	if _, err := Parse(b); err != nil {
		t.Errorf("the longest envelope has %d bytes: %v", len(b), err)
	}
	if len(b) > protocol.MaxEnvelope {
		t.Errorf("the longest envelope has %d bytes, MaxEnvelope is %d", len(b), protocol.MaxEnvelope)
	}
}

// longestMail fills every field of a profile's mail to its bound.
func longestMail() *wire.Mail {
	w := new(wire.Mail)
	for range protocol.MaxRelays {
		w.Mailboxes = append(w.Mailboxes, make([]byte, protocol.MaxMailbox))
	}
	for range protocol.MaxSealingKeys {
		w.Sealing = append(w.Sealing, &wire.Signed{Body: make([]byte, protocol.MaxSealing-69), Signature: make([]byte, 64)})
	}
	return w
}

// TestLongestIntroductionFits fills every field of a first message's
// introduction to its bound.
func TestLongestIntroductionFits(t *testing.T) {
	m := &wire.Introduction{
		Device:    make([]byte, 32),
		SenderTag: make([]byte, 32),
		Profile:   &wire.Profile{Name: strings.Repeat("x", protocol.MaxName), LookupSecret: make([]byte, identity.LookupSize), Mail: longestMail()},
		TokenId:   make([]byte, 16),
		TokenMac:  make([]byte, 32),
	}
	for range protocol.MaxEndpoints {
		e := &wire.Endpoint{TransportKey: make([]byte, 32)}
		for range protocol.MaxAddrs {
			e.Addrs = append(e.Addrs, make([]byte, protocol.MaxAddr))
		}
		m.Profile.Endpoints = append(m.Profile.Endpoints, e)
	}
	m.Manifest = &wire.Signed{Signature: make([]byte, 64)}
	m.Manifest.Body = make([]byte, protocol.MaxManifest-proto.Size(m.Manifest)-4)
	if got := proto.Size(m.Manifest); got > protocol.MaxManifest || got < protocol.MaxManifest-4 {
		t.Fatalf("the longest manifest has %d bytes, MaxManifest is %d", got, protocol.MaxManifest)
	}
	if err := identity.CheckMail(m.Profile.Mail); err != nil || proto.Size(m.Profile.Mail.Sealing[0]) != protocol.MaxSealing {
		t.Fatalf("the longest mail: %v", err)
	}
	if got := proto.Size(m) + 16; got > protocol.MaxIntro || got < protocol.MaxIntro-1<<10 {
		t.Errorf("the longest introduction has %d bytes, MaxIntro is %d", got, protocol.MaxIntro)
	}
}

func TestParseChecksEveryLength(t *testing.T) {
	session := [32]byte{1}
	for name, edit := range map[string]func(*wire.Envelope){
		"":                       func(*wire.Envelope) {},
		"no handshake":           func(e *wire.Envelope) { e.Handshake = nil },
		"no session":             func(e *wire.Envelope) { e.Session = nil },
		"short session":          func(e *wire.Envelope) { e.Session = e.Session[:31] },
		"long session":           func(e *wire.Envelope) { e.Session = append(e.Session, 0) },
		"no message":             func(e *wire.Envelope) { e.Message = nil },
		"short message":          func(e *wire.Envelope) { e.Message = message(sizes[0] - 1) },
		"long message":           func(e *wire.Envelope) { e.Message = message(protocol.MaxContent + 1) },
		"empty handshake":        func(e *wire.Envelope) { e.Handshake = &wire.Handshake{} },
		"short ephemeral":        func(e *wire.Envelope) { e.Handshake.Ephemeral = e.Handshake.Ephemeral[:31] },
		"no ephemeral":           func(e *wire.Envelope) { e.Handshake.Ephemeral = nil },
		"no day key":             func(e *wire.Envelope) { e.Handshake.DayKey = nil },
		"long day key":           func(e *wire.Envelope) { e.Handshake.DayKey = make([]byte, 32) },
		"no one-time key":        func(e *wire.Envelope) { e.Handshake.OneTimeKey = nil },
		"short one-time key":     func(e *wire.Envelope) { e.Handshake.OneTimeKey = make([]byte, 15) },
		"no ciphertext":          func(e *wire.Envelope) { e.Handshake.Ciphertext = nil },
		"ML-KEM-768 ciphertext":  func(e *wire.Envelope) { e.Handshake.Ciphertext = make([]byte, mlkem.CiphertextSize768) },
		"no replaced session":    func(e *wire.Envelope) { e.Handshake.Replaces = nil },
		"short replaced session": func(e *wire.Envelope) { e.Handshake.Replaces = make([]byte, 16) },
		"no introduction":        func(e *wire.Envelope) { e.Handshake.Introduction = nil },
		"an error beside it":     func(e *wire.Envelope) { e.Error = &wire.DecryptionError{} },
		"long introduction":      func(e *wire.Envelope) { e.Handshake.Introduction = make([]byte, protocol.MaxIntro+1) },
	} {
		e := &wire.Envelope{Session: session[:], Handshake: handshake(), Message: message(256)}
		edit(e)
		want := name == "" || name == "no handshake" || name == "no one-time key" || name == "no replaced session"
		if _, err := Parse(wire.Marshal(e)); (err == nil) != want {
			t.Errorf("%q: error %v", name, err)
		}
		if _, err := ParseRelayed(wire.Marshal(e)); (err == nil) != want {
			t.Errorf("%q, through a relay: error %v", name, err)
		}
	}
	if _, err := Parse(make([]byte, protocol.MaxEnvelope+1)); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("an envelope above the bound: error %v, want wire.ErrMalformed", err)
	}
	if _, err := Parse(nil); err == nil {
		t.Error("nothing is an envelope")
	}
}

func TestHashIsLabelledAndCoversEveryByte(t *testing.T) {
	b := Seal([32]byte{1}, nil, message(256))
	want := HashOf(b)
	if want == sha256.Sum256(b) {
		t.Error("the hash has no label")
	}
	if HashOf(append(bytes.Clone(b), 0)) == want {
		t.Error("the hash ignores a trailing byte")
	}
	seen := map[Hash]bool{want: true}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1
		h := HashOf(c)
		if seen[h] {
			t.Fatalf("byte %d is not covered", i)
		}
		seen[h] = true
	}
}
