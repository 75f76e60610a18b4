package node

import (
	"errors"
	"fmt"
	"io"
	"time"

	"starling/node/store"
	"starling/protocol/identity"
	"starling/protocol/x25519"
)

// self is this account on this device.
type self struct {
	account   *identity.AccountKey
	device    *identity.DeviceKey
	transport []byte // seed of the libp2p host key
}

// loadSelf reads this account, or creates it if the store is empty.
func (n *Node) loadSelf() error {
	var row *store.Self
	err := n.store.Update(func(tx *store.Tx) error {
		var err error
		row, err = store.Selves.Get(tx, store.SelfKey())
		if errors.Is(err, store.ErrNotFound) && n.rolledBack {
			return &Error{
				Kind: KindInternal, Msg: "the account is missing from the store, which is damaged or an old copy",
				Hint: "put the newest copy of the profile folder back; a new account would be somebody else to your contacts",
			}
		}
		if errors.Is(err, store.ErrNotFound) {
			row, err = newSelf(n.cfg.Rand, n.cfg.Name, n.cfg.Now())
			if err == nil {
				err = store.Selves.Put(tx, store.SelfKey(), row)
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reading this account: %w", err)
	}
	secret, err := identity.SecretFrom(row.AccountSecret)
	if err != nil {
		return err
	}
	device, err := deviceKey(row)
	if err != nil {
		return err
	}
	n.self = self{account: identity.NewAccountKey(secret), device: device, transport: row.TransportSeed}
	return nil
}

// newSelf draws the keys of a new account with one device.
func newSelf(rand io.Reader, name string, now time.Time) (*store.Self, error) {
	if _, err := identity.ParseName(name); err != nil {
		return nil, &Error{Kind: KindInvalid, Msg: err.Error(), Hint: "choose a name of 1 to 64 bytes without control characters"}
	}
	row := &store.Self{Name: name, Created: now.UnixMilli()}
	for _, f := range []struct {
		to   *[]byte
		size int
	}{
		{&row.AccountSecret, identity.SecretSize},
		{&row.DeviceSeed, identity.SecretSize},
		{&row.DhSeed, x25519.Size},
		{&row.TransportSeed, identity.SecretSize},
		{&row.LookupSecret, identity.LookupSize},
	} {
		*f.to = make([]byte, f.size)
		if _, err := io.ReadFull(rand, *f.to); err != nil {
			return nil, fmt.Errorf("drawing the keys of an account: %w", err)
		}
	}
	return row, signManifest(row, now)
}

// signManifest gives the account a new generation that lists this device alone.
func signManifest(row *store.Self, now time.Time) error {
	secret, err := identity.SecretFrom(row.AccountSecret)
	if err != nil {
		return err
	}
	device, err := deviceKey(row)
	if err != nil {
		return err
	}
	row.Generation = identity.NextGeneration(row.Generation, now)
	row.Manifest = identity.SignManifest(identity.NewAccountKey(secret), row.Generation,
		[]identity.DeviceEntry{{Key: device.Device(), DH: device.DH().Public()}})
	return nil
}

func deviceKey(row *store.Self) (*identity.DeviceKey, error) {
	seed, err := identity.SecretFrom(row.DeviceSeed)
	if err != nil {
		return nil, err
	}
	if len(row.DhSeed) != x25519.Size {
		return nil, errors.New("node: a DH seed has 32 bytes")
	}
	return identity.NewDeviceKey(seed, x25519.FromSeed([x25519.Size]byte(row.DhSeed))), nil
}

// account returns this account's public key.
func (n *Node) account() identity.Account { return n.self.account.Account() }

// changeSelf changes the row of this account in tx.
func changeSelf(tx *store.Tx, change func(*store.Self) error) error {
	row, err := store.Selves.Get(tx, store.SelfKey())
	if err != nil {
		return err
	}
	if err := change(row); err != nil {
		return err
	}
	return store.Selves.Put(tx, store.SelfKey(), row)
}

// rotateLookup replaces L, so that whoever knows the old one finds this account
// no longer, and tells the contacts that remain.
func (n *Node) rotateLookup(tx *store.Tx) error {
	err := changeSelf(tx, func(row *store.Self) error {
		fresh := make([]byte, identity.LookupSize)
		if _, err := io.ReadFull(n.cfg.Rand, fresh); err != nil {
			return err
		}
		row.LookupSecret = fresh
		return nil
	})
	if err != nil {
		return err
	}
	tx.OnCommit(n.republish)
	tx.OnCommit(n.tellAgain)
	return nil
}

// tellAgain has contacts told what is new about this account.
func (n *Node) tellAgain() {
	select {
	case n.untold <- struct{}{}:
	default: // it is noted already
	}
}

// profile returns how a contact finds and names this account, and where it
// leaves messages while this user is away.
func (n *Node) profile(tx *store.Tx, row *store.Self, contact []byte) (identity.Profile, error) {
	p := identity.Profile{Name: row.Name, Endpoints: []identity.Endpoint{n.endpoint(true)}}
	copy(p.Lookup[:], row.LookupSecret)
	var err error
	p.Mail, err = n.mailFor(tx, contact, allOf)
	return p, err
}

// newProfile is profile for being told: its version is above that of all others.
func (n *Node) newProfile(tx *store.Tx, row *store.Self, contact []byte) (identity.Profile, error) {
	p, err := n.profile(tx, row, contact)
	if err != nil {
		return p, err
	}
	row.ProfileVersion = max(uint64(n.cfg.Now().UnixMilli()), row.ProfileVersion+1)
	p.Version = row.ProfileVersion
	return p, store.Selves.Put(tx, store.SelfKey(), row)
}
