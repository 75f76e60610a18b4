package prekey_test

import (
	"crypto/rand"
	"fmt"
	"time"

	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// must keeps the example short; a node handles each error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// person makes an account with one device, and its manifest.
func person(now time.Time) (*identity.DeviceKey, prekey.Party, []byte) {
	account := identity.NewAccountKey(must(identity.NewSecret(rand.Reader)))
	device := identity.NewDeviceKey(must(identity.NewSecret(rand.Reader)), must(x25519.Generate(rand.Reader)))
	p := prekey.Party{Account: account.Account(), Device: device.Device(), DH: device.DH().Public()}
	entry := identity.DeviceEntry{Key: p.Device, DH: p.DH}
	return device, p, identity.SignManifest(account, identity.NextGeneration(0, now), []identity.DeviceEntry{entry})
}

func Example() {
	now := time.Now()
	aliceKey, alice, aliceManifest := person(now)
	bobKey, bob, _ := person(now)

	// Bob makes today's keys, keeps one half and publishes the other.
	private := must(prekey.NewPrivate(rand.Reader))
	today := prekey.DayOf(now)
	published := prekey.SignBundle(bobKey, bob.Account, wire.Role_ROLE_DAY, 0,
		prekey.DayStart(today), prekey.DayStart(today+1), &private)

	// Alice, who has Bob's manifest, checks them and starts a session.
	bundle := must(prekey.OpenBundle(published, bob.Account, bob.Device, wire.Role_ROLE_DAY, now))
	hers, handshake, err := prekey.Initiate(rand.Reader, aliceKey, alice, bob, bundle, nil, nil,
		prekey.Introduction{Manifest: aliceManifest, Profile: identity.Profile{Name: "Alice"}})
	if err != nil {
		panic(err)
	}

	// Bob learns who wrote, and derives the same secrets.
	own := must(prekey.OwnBundle(published, &private))
	in := must(prekey.OpenIntroduction(bobKey, bob.Account, &private, own, handshake, now))
	his := must(prekey.Respond(bobKey, bob.Account, &private, own, nil, nil, handshake, in))

	fmt.Println(in.Profile.Name, in.Peer == alice, his.Session == hers.Session)
	fmt.Println(his)
	// Output:
	// Alice true true
	// [secret]
}
