package relay_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"log"
	"time"

	"starling/protocol/identity"
	"starling/protocol/relay"
)

// A hostKey stands for a relay's libp2p key.
type hostKey struct{ ed25519.PrivateKey }

func (k hostKey) Sign(m []byte) ([]byte, error) { return ed25519.Sign(k.PrivateKey, m), nil }

// A relay signs once for all deposits that reached its disk together, and each
// depositor checks that its own is among them.
func Example() {
	key := hostKey{ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))}
	host := identity.Transport(key.Public().(ed25519.PublicKey))

	secret, err := identity.NewSecret(bytes.NewReader(bytes.Repeat([]byte{2}, identity.SecretSize)))
	if err != nil {
		log.Fatal(err)
	}
	queue := relay.NewReaderKey(secret).Reader().Queue()
	const expires = 1_800_000_000
	mine := relay.NewLeaf(queue, sha256.Sum256([]byte("my sealed envelope")), expires)
	other := relay.NewLeaf(queue, sha256.Sum256([]byte("another one")), expires)

	// At the relay, when both are on its disk:
	group, err := relay.SignGroup([]relay.Leaf{other, mine}, time.Unix(1_790_000_000, 0), key)
	if err != nil {
		log.Fatal(err)
	}
	receipt := group.Receipt(1)

	// At the depositor:
	fmt.Println(receipt.Verify(host, mine))
	fmt.Println(receipt.Verify(host, other))
	// Output:
	// <nil>
	// relay: receipt does not verify
}
