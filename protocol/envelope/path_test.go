package envelope

import (
	"crypto/rand"
	"testing"

	"starling/protocol/ratchet"
	"starling/protocol/x25519"
)

// TestTextTravelsAndIsAcknowledged takes a text through every layer of this
// package and the ratchet, and back comes the MAC of a direct acknowledgement,
// which the sender knew from the moment it sealed (SPEC §8).
func TestTextTravelsAndIsAcknowledged(t *testing.T) {
	spk, err := x25519.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, root, associated := [32]byte{1}, [32]byte{2}, [32]byte{3}
	alice, err := ratchet.NewInitiator(rand.Reader, id, root, associated, spk.Public())
	if err != nil {
		t.Fatal(err)
	}
	bob := ratchet.NewResponder(id, root, associated, spk)

	padded, err := MarshalContent(text("hello"))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := alice.Seal(rand.Reader, padded)
	if err != nil {
		t.Fatal(err)
	}
	b := Seal(alice.ID(), handshake(), sealed.Message)
	expected := sealed.Ack.MAC(HashOf(b))

	e, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := bob.Open(e.Message, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseContent(opened.Plaintext)
	if err != nil || c.Text == nil || *c.Text != "hello" {
		t.Errorf("received %+v, %v", c, err)
	}
	if opened.Ack.MAC(HashOf(b)) != expected {
		t.Error("the acknowledgement is not the one that the sender expects")
	}
	if opened.Ack.MAC(HashOf(append(b, 0))) == expected {
		t.Error("the acknowledgement of another envelope is the same")
	}
}
