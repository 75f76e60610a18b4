package prekey

import (
	"testing"

	"starling/protocol/wire"
)

func TestProofIsBoundToEverything(t *testing.T) {
	base := Request{Account: [32]byte{1}, Lookup: [16]byte{2}, Requester: [32]byte{3}, Responder: [32]byte{4}, RequesterNonce: [32]byte{5}, ResponderNonce: [32]byte{6}}
	proof := base.Proof()
	if !base.Check(proof[:]) {
		t.Fatal("Check refuses its own proof")
	}
	sealed := base.SealAnswer(&wire.PreKeyAnswer{Manifest: &wire.Signed{Body: []byte("body")}})
	if m, err := base.OpenAnswer(sealed); err != nil || string(m.Manifest.Body) != "body" {
		t.Fatalf("OpenAnswer = %v, %v", m, err)
	}
	for name, change := range map[string]func(*Request){
		"account":         func(r *Request) { r.Account[0]++ },
		"lookup secret":   func(r *Request) { r.Lookup[0]++ },
		"requester":       func(r *Request) { r.Requester[0]++ },
		"responder":       func(r *Request) { r.Responder[0]++ },
		"requester nonce": func(r *Request) { r.RequesterNonce[0]++ },
		"responder nonce": func(r *Request) { r.ResponderNonce[0]++ },
		"swapped peers":   func(r *Request) { r.Requester, r.Responder = r.Responder, r.Requester },
	} {
		other := base
		change(&other)
		if other.Check(proof[:]) {
			t.Errorf("another %s: the proof still holds", name)
		}
		if _, err := other.OpenAnswer(sealed); err == nil {
			t.Errorf("another %s: the answer still opens", name)
		}
	}
	if base.Check(nil) || base.Check(proof[:31]) {
		t.Error("a short proof is accepted")
	}
}

func FuzzOpenAnswer(f *testing.F) {
	r := Request{}
	f.Add(r.SealAnswer(&wire.PreKeyAnswer{}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := r.OpenAnswer(b); (m == nil) == (err == nil) {
			t.Fatalf("OpenAnswer = %v, %v", m, err)
		}
	})
}
