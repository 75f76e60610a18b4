package ratchet_test

import (
	"crypto/rand"
	"fmt"

	"starling/protocol/ratchet"
	"starling/protocol/x25519"
)

func Example() {
	// Both come from the key agreement; the pre-key is the responder's.
	var id, root, associated [32]byte
	preKey, err := x25519.Generate(rand.Reader)
	if err != nil {
		panic(err)
	}
	alice, err := ratchet.NewInitiator(rand.Reader, id, root, associated, preKey.Public())
	if err != nil {
		panic(err)
	}
	bob := ratchet.NewResponder(id, root, associated, preKey)

	lost, err := alice.Seal(rand.Reader, []byte("are you there?"))
	if err != nil {
		panic(err)
	}
	next, err := alice.Seal(rand.Reader, []byte("hello?"))
	if err != nil {
		panic(err)
	}

	// Store and Used go into one transaction with the session's state.
	rows := map[ratchet.SkippedID][32]byte{}
	for _, m := range []ratchet.Sealed{next, lost} {
		o, err := bob.Open(m.Message, func(id ratchet.SkippedID) ([32]byte, bool) {
			key, ok := rows[id]
			return key, ok
		})
		if err != nil {
			panic(err)
		}
		for _, k := range o.Store {
			rows[k.ID] = k.Key
		}
		if o.Used != nil {
			delete(rows, *o.Used)
		}
		fmt.Printf("%s (%d keys kept)\n", o.Plaintext, len(rows))
	}
	// Output:
	// hello? (1 keys kept)
	// are you there? (0 keys kept)
}
