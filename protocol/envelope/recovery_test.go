package envelope

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

func TestDecryptionErrorIsAuthenticated(t *testing.T) {
	alice, bob, mallory := x25519.FromSeed([32]byte{31: 1}), x25519.FromSeed([32]byte{31: 2}), x25519.FromSeed([32]byte{31: 3})
	devA, devB, devM := identity.Device{1}, identity.Device{2}, identity.Device{3}
	hash, session := Hash{4}, [32]byte{5}
	// Bob cannot open what Alice sent.
	e := NewDecryptionError(&bob, alice.Public(), devB, devA, hash, session, wire.Reason_REASON_CANNOT_OPEN)
	verify := func(e *wire.DecryptionError) bool {
		return VerifyDecryptionError(&alice, bob.Public(), devB, devA, e)
	}
	if !verify(e) {
		t.Fatal("a sound decryption error is refused")
	}
	if !bytes.Equal(e.Envelope, hash[:]) || !bytes.Equal(e.Session, session[:]) || e.Reason != wire.Reason_REASON_CANNOT_OPEN {
		t.Errorf("the error says %v", e)
	}

	for name, edit := range map[string]func(*wire.DecryptionError){
		"another envelope":             func(e *wire.DecryptionError) { e.Envelope[31] ^= 1 },
		"short envelope":               func(e *wire.DecryptionError) { e.Envelope = e.Envelope[:31] },
		"another session":              func(e *wire.DecryptionError) { e.Session[0] ^= 1 },
		"long session":                 func(e *wire.DecryptionError) { e.Session = append(e.Session, 0) },
		"another reason":               func(e *wire.DecryptionError) { e.Reason = wire.Reason_REASON_NO_SESSION },
		"no reason":                    func(e *wire.DecryptionError) { e.Reason = wire.Reason_REASON_UNSPECIFIED },
		"an unknown reason":            func(e *wire.DecryptionError) { e.Reason = 99 },
		"another MAC":                  func(e *wire.DecryptionError) { e.Mac[0] ^= 0x80 },
		"short MAC":                    func(e *wire.DecryptionError) { e.Mac = e.Mac[:16] },
		"no MAC":                       func(e *wire.DecryptionError) { e.Mac = nil },
		"envelope and session swapped": func(e *wire.DecryptionError) { e.Envelope, e.Session = e.Session, e.Envelope },
	} {
		bad := proto.Clone(e).(*wire.DecryptionError)
		edit(bad)
		if verify(bad) {
			t.Errorf("%s: accepted", name)
		}
	}
	if verify(nil) || verify(&wire.DecryptionError{}) {
		t.Error("no error at all is accepted")
	}

	for name, ok := range map[string]bool{
		"reflected to its maker":        VerifyDecryptionError(&bob, alice.Public(), devA, devB, e),
		"the devices the wrong way":     VerifyDecryptionError(&alice, bob.Public(), devA, devB, e),
		"from another device":           VerifyDecryptionError(&alice, bob.Public(), devM, devA, e),
		"to another device":             VerifyDecryptionError(&alice, bob.Public(), devB, devM, e),
		"under a third party's key":     VerifyDecryptionError(&alice, mallory.Public(), devB, devA, e),
		"read by a third party":         VerifyDecryptionError(&mallory, bob.Public(), devB, devA, e),
		"forged without Bob's key":      verify(NewDecryptionError(&mallory, alice.Public(), devB, devA, hash, session, wire.Reason_REASON_CANNOT_OPEN)),
		"under a key of low order":      VerifyDecryptionError(&alice, x25519.Public{}, devB, devA, e),
		"an unknown reason, well MACed": verify(NewDecryptionError(&bob, alice.Public(), devB, devA, hash, session, 99)),
	} {
		if ok {
			t.Errorf("%s: accepted", name)
		}
	}
	if NewDecryptionError(&bob, x25519.Public{1}, devB, devA, hash, session, wire.Reason_REASON_NO_SESSION) != nil {
		t.Error("a key of low order authenticates something")
	}
}

func decryptionError() *wire.DecryptionError {
	alice, bob := x25519.FromSeed([32]byte{31: 1}), x25519.FromSeed([32]byte{31: 2})
	return NewDecryptionError(&bob, alice.Public(), identity.Device{2}, identity.Device{1}, Hash{4}, [32]byte{5}, wire.Reason_REASON_KEY_GONE)
}

func TestErrorEnvelopeIsAloneAndSealed(t *testing.T) {
	want := decryptionError()
	b := SealError(want)
	got, err := ParseRelayed(b)
	if err != nil || !proto.Equal(got.GetError(), want) {
		t.Fatalf("an error envelope comes back as %v, %v", got, err)
	}
	if e, err := Parse(b); err == nil {
		t.Errorf("an error outside the sealed form is accepted: %v", e)
	}
	for name, edit := range map[string]func(*wire.Envelope){
		"a session":         func(e *wire.Envelope) { e.Session = make([]byte, 32) },
		"a message":         func(e *wire.Envelope) { e.Message = message(256) },
		"a handshake":       func(e *wire.Envelope) { e.Handshake = handshake() },
		"an empty one":      func(e *wire.Envelope) { e.Handshake = &wire.Handshake{} },
		"a whole envelope":  func(e *wire.Envelope) { e.Session, e.Message = make([]byte, 32), message(256) },
		"nothing in it":     func(e *wire.Envelope) { e.Error = &wire.DecryptionError{} },
		"short envelope":    func(e *wire.Envelope) { e.Error.Envelope = e.Error.Envelope[:31] },
		"long session":      func(e *wire.Envelope) { e.Error.Session = append(e.Error.Session, 0) },
		"no reason":         func(e *wire.Envelope) { e.Error.Reason = 0 },
		"an unknown reason": func(e *wire.Envelope) { e.Error.Reason = 4 },
		"short MAC":         func(e *wire.Envelope) { e.Error.Mac = e.Error.Mac[:31] },
		"no MAC":            func(e *wire.Envelope) { e.Error.Mac = nil },
	} {
		e := &wire.Envelope{Error: decryptionError()}
		edit(e)
		for how, parse := range map[string]func([]byte) (*wire.Envelope, error){"a stream": Parse, "a relay": ParseRelayed} {
			if _, err := parse(wire.Marshal(e)); err == nil {
				t.Errorf("%s: accepted through %s", name, how)
			}
		}
	}
}

// An error takes the same way back: to a relay it looks like a short text, and
// it proves itself to whom it is for.
func TestErrorTravelsSealed(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	from, to := bob.entry.Key, alice.entry.Key
	hash, session := HashOf(openEnvelope(256)), [32]byte(bytes.Repeat([]byte{0x11}, 32))
	e := NewDecryptionError(bob.dk.DH(), alice.entry.DH, from, to, hash, session, wire.Reason_REASON_NO_SESSION)
	sealed := sealFor(t, bob, alice, SealError(e))
	if len(sealed) != SealedSizes()[0] {
		t.Errorf("an error is sealed as %d bytes, want %d", len(sealed), SealedSizes()[0])
	}
	opened, err := alice.open(sealed)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseRelayed(opened.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	if !VerifyDecryptionError(alice.dk.DH(), opened.Device.DH, opened.Device.Key, to, got.Error) || Hash(got.Error.Envelope) != hash {
		t.Errorf("what comes back is %v", got)
	}
}
