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
