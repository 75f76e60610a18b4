package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"starling/node/outbox"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// AddContact adds the account of an invite link. It never needs the network:
// the contact is pending until the account is found. If as names an existing
// contact with another account key, nothing is added and that contact is held
// in key_changed until the user decides.
func (n *Node) AddContact(_ context.Context, text, as string) (Contact, error) {
	link, err := identity.ParseLink(text)
	if err != nil {
		return Contact{}, &Error{Kind: KindInvalid, Msg: err.Error(), Hint: "ask for a new one if it stays like this"}
	}
	if link.Account == n.account() {
		return Contact{}, &Error{Kind: KindInvalid, Msg: "this is your own link", Hint: "give it to somebody else"}
	}
	if as != "" {
		if as, err = cleanContactName(as); err != nil {
			return Contact{}, err
		}
	}
	var out Contact
	err = n.store.Update(func(tx *store.Tx) error {
		c, err := n.addContact(tx, link, text, as)
		if err == nil {
			out = n.contactOf(tx, c)
		}
		return err
	})
	return out, err
}

func (n *Node) addContact(tx *store.Tx, link identity.Link, text, as string) (*store.Contact, error) {
	if as != "" {
		named, err := contactByName(tx, as)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if err == nil && !slices.Equal(named.Account, link.Account[:]) {
			return n.offerKey(tx, named, link.Account, text)
		}
	}
	c, err := store.Contacts.Get(tx, link.Account[:])
	switch {
	case errors.Is(err, store.ErrNotFound):
		c = &store.Contact{Account: link.Account[:], Added: n.cfg.Now().UnixMilli()}
	case err != nil:
		return nil, err
	case c.State == store.Contact_BLOCKED:
		return nil, &Error{Kind: KindBlocked, Msg: c.Name + " is blocked", Hint: "unblock them first: starling contact unblock " + quoted(c.Name)}
	}
	c.LookupSecret, c.Token, c.OneUse = link.Lookup[:], nil, !link.Public
	if link.Token != (identity.Token{}) {
		c.Token = link.Token[:]
	}
	c.Hints = nil
	for _, h := range link.Hints {
		e, err := hintEndpoint(h)
		if err != nil {
			return nil, err
		}
		c.Hints = append(c.Hints, &store.Endpoint{TransportKey: e.Transport[:], Addrs: e.Addrs})
	}
	was := c.State
	advance(c, evAdded)
	switch {
	case as != "":
		err = n.rename(tx, c, as, true)
	case c.Name == "":
		err = n.rename(tx, c, link.Account.Short(), false)
	default:
		err = saveContact(tx, c)
	}
	if err != nil {
		return nil, err
	}
	if err := n.record(tx, &store.Event{Type: "contact", State: stateName(c.State)}, c); err != nil {
		return nil, err
	}
	// The first content opens the session; without one nothing would go out
	// until the user writes.
	if was == store.Contact_REQUEST {
		return c, n.welcome(tx, c)
	}
	if was == store.Contact_PENDING || was == store.Contact_REQUESTED {
		if c, err = n.presentToken(tx, c); err != nil {
			return nil, err
		}
	}
	return c, n.tell(tx, c)
}

// presentToken makes what waits for a contact who has not accepted yet go out
// on a fresh session, as only the beginning of one shows the token of a link.
func (n *Node) presentToken(tx *store.Tx, c *store.Contact) (*store.Contact, error) {
	if len(c.Token) == 0 {
		return c, nil
	}
	for row, err := range store.Outbox.Scan(tx, store.OutboxOf(accountOf(c)), nil) {
		if err != nil {
			return nil, err
		}
		if len(row.Value.Hash) != len(envelope.Hash{}) {
			continue
		}
		c.Suspected = 0 // the user asks for it, however recent the last time
		if err := saveContact(tx, c); err != nil {
			return nil, err
		}
		if _, err := n.sessions.Suspect(tx, n.cfg.Now(), accountOf(c), envelope.Hash(row.Value.Hash)); err != nil {
			return nil, err
		}
		tx.OnCommit(func() { n.outbox.Kick(accountOf(c)) })
		return store.Contacts.Get(tx, c.Account)
	}
	return c, nil
}

// offerKey records that another account key was offered under a contact's name.
func (n *Node) offerKey(tx *store.Tx, c *store.Contact, offered identity.Account, link string) (*store.Contact, error) {
	if _, err := store.Contacts.Get(tx, offered[:]); err == nil {
		return nil, &Error{Kind: KindExists, Msg: "this account is a contact already, under another name than " + c.Name, Hint: "starling contact list shows it"}
	}
	if c.State == store.Contact_BLOCKED || c.State == store.Contact_REQUEST {
		return nil, &Error{Kind: KindExists, Msg: "the name " + c.Name + " is taken", Hint: "choose another with --as"}
	}
	advance(c, evOtherKey)
	c.NewAccount, c.NewLink, c.Verified = offered[:], link, false
	if err := saveContact(tx, c); err != nil {
		return nil, err
	}
	return c, n.notice(tx, c, c.Name+"'s safety number has changed")
}

// TrustContact ends a hold: after a new device, it is accepted; after another
// key, the name goes to the new key and the old contact stays under NAME-old.
func (n *Node) TrustContact(_ context.Context, who string) (Contact, error) {
	return n.changeContact(who, func(tx *store.Tx, c *store.Contact) (*store.Contact, error) {
		switch c.State {
		case store.Contact_HELD:
			if len(c.HeldManifest) > 0 { // else the new device is gone again
				c.Manifest, c.HeldManifest = c.HeldManifest, nil
			}
			advance(c, evTrust)
			tx.OnCommit(func() { n.outbox.Kick(accountOf(c)) })
			return c, saveContact(tx, c)
		case store.Contact_KEY_CHANGED:
			name, text := c.Name, c.NewLink
			link, err := identity.ParseLink(text)
			if err != nil {
				return nil, err
			}
			advance(c, evTrust)
			c.NewAccount, c.NewLink = nil, ""
			if err := n.rename(tx, c, name+"-old", true); err != nil {
				return nil, err
			}
			return n.addContact(tx, link, text, name)
		}
		return nil, &Error{Kind: KindInvalid, Msg: "nothing about " + c.Name + " waits for a decision"}
	})
}

// AcceptContact accepts a request, under the name as if it is not empty.
func (n *Node) AcceptContact(_ context.Context, who, as string) (Contact, error) {
	if as != "" {
		var err error
		if as, err = cleanContactName(as); err != nil {
			return Contact{}, err
		}
	}
	return n.changeContact(who, func(tx *store.Tx, c *store.Contact) (*store.Contact, error) {
		if !advance(c, evAccept) {
			return nil, &Error{Kind: KindInvalid, Msg: c.Name + " has not asked, or is accepted already", Hint: "starling contact requests lists who waits"}
		}
		name, own := c.Name, c.OwnName
		if as != "" {
			name, own = as, true
		}
		if err := n.rename(tx, c, name, own); err != nil {
			return nil, err
		}
		if err := n.record(tx, &store.Event{Type: "contact", State: stateName(c.State)}, c); err != nil {
			return nil, err
		}
		return c, n.welcome(tx, c)
	})
}

// RejectContact refuses a request and forgets it, or refuses the key or device
// that a hold is about and goes on with what was known before. Who was refused
// may ask again after 30 days; a one-use link lets them in at once.
func (n *Node) RejectContact(_ context.Context, who string) error {
	_, err := n.changeContact(who, func(tx *store.Tx, c *store.Contact) (*store.Contact, error) {
		switch c.State {
		case store.Contact_REQUEST:
			if err := n.forget(tx, c); err != nil { // a request has few rows: maxRequestContents
				return nil, err
			}
			return c, store.SeenIDs.Put(tx, rejectedKey(accountOf(c)), &store.Seen{Dies: n.cfg.Now().Add(protocol.DedupeLife).UnixMilli()})
		case store.Contact_KEY_CHANGED, store.Contact_HELD:
			advance(c, evTrust)
			c.NewAccount, c.NewLink, c.HeldManifest = nil, "", nil
			tx.OnCommit(func() { n.outbox.Kick(accountOf(c)) })
			return c, saveContact(tx, c)
		}
		return nil, &Error{Kind: KindInvalid, Msg: c.Name + " has not asked", Hint: "starling contact requests lists who waits"}
	})
	return err
}

// RenameContact gives a contact another local name.
func (n *Node) RenameContact(_ context.Context, who, name string) (Contact, error) {
	name, err := cleanContactName(name)
	if err != nil {
		return Contact{}, err
	}
	return n.changeContact(who, func(tx *store.Tx, c *store.Contact) (*store.Contact, error) {
		if taken, err := contactByName(tx, name); err == nil && !slices.Equal(taken.Account, c.Account) {
			return nil, &Error{Kind: KindExists, Msg: "the name " + name + " is taken", Hint: "choose another"}
		}
		return c, n.rename(tx, c, name, true)
	})
}

// BlockContact stops everything from and to a contact. The lookup secret is
// replaced, so that they no longer find this account; links made so far die.
func (n *Node) BlockContact(_ context.Context, who string) (Contact, error) {
	return n.changeContact(who, func(tx *store.Tx, c *store.Contact) (*store.Contact, error) {
		if !advance(c, evBlock) {
			return nil, &Error{Kind: KindInvalid, Msg: c.Name + " is blocked already"}
		}
		if err := saveContact(tx, c); err != nil {
			return nil, err
		}
		if err := n.record(tx, &store.Event{Type: "contact", State: stateName(c.State)}, c); err != nil {
			return nil, err
		}
		if err := n.revokeAll(tx); err != nil {
			return nil, err
		}
		return c, n.rotateLookup(tx)
	})
}

// UnblockContact takes a contact back as it was. They are told how to find this
// account again.
func (n *Node) UnblockContact(_ context.Context, who string) (Contact, error) {
	return n.changeContact(who, func(tx *store.Tx, c *store.Contact) (*store.Contact, error) {
		if !advance(c, evUnblock) {
			return nil, &Error{Kind: KindInvalid, Msg: c.Name + " is not blocked"}
		}
		if err := saveContact(tx, c); err != nil {
			return nil, err
		}
		if err := n.record(tx, &store.Event{Type: "contact", State: stateName(c.State)}, c); err != nil {
			return nil, err
		}
		if !sendable(c.State) {
			return c, nil
		}
		return c, n.tell(tx, c)
	})
}

// RemoveContact forgets a contact, its history and its sessions, and blanks its
// events in the journal. The lookup secret is replaced as for BlockContact.
func (n *Node) RemoveContact(_ context.Context, who string) error {
	// A long chat does not fit into one transaction: the contact is blocked,
	// emptied in steps, and goes last, so that a crash leaves it to be removed
	// again.
	_, err := n.changeContact(who, func(tx *store.Tx, c *store.Contact) (*store.Contact, error) {
		advance(c, evBlock)
		return c, saveContact(tx, c)
	})
	for more := true; more && err == nil; {
		_, err = n.changeContact(who, func(tx *store.Tx, c *store.Contact) (_ *store.Contact, err error) {
			more, err = empty(tx, accountOf(c))
			return c, err
		})
	}
	for since, more := uint64(0), true; more && err == nil; more = since != 0 {
		_, err = n.changeContact(who, func(tx *store.Tx, c *store.Contact) (_ *store.Contact, err error) {
			since, err = blank(tx, accountOf(c), since)
			return c, err
		})
	}
	if err != nil {
		return err
	}
	_, err = n.changeContact(who, func(tx *store.Tx, c *store.Contact) (*store.Contact, error) {
		if err := n.forget(tx, c); err != nil {
			return nil, err
		}
		if err := n.revokeAll(tx); err != nil {
			return nil, err
		}
		return c, n.rotateLookup(tx)
	})
	return err
}

// Contacts lists the contacts by name; with requests, those who ask instead.
func (n *Node) Contacts(_ context.Context, requests bool) ([]Contact, error) {
	var list []Contact
	err := n.store.View(func(tx *store.Tx) error {
		for row, err := range store.Contacts.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if (row.Value.State == store.Contact_REQUEST) == requests {
				list = append(list, n.contactOf(tx, row.Value))
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b Contact) int { return strings.Compare(fold(a.Name), fold(b.Name)) })
	return list, err
}

// changeContact runs change on the contact that who names, in one transaction.
func (n *Node) changeContact(who string, change func(*store.Tx, *store.Contact) (*store.Contact, error)) (Contact, error) {
	var out Contact
	err := n.store.Update(func(tx *store.Tx) error {
		c, err := resolve(tx, who)
		if err != nil {
			return err
		}
		if c, err = change(tx, c); err != nil {
			return err
		}
		out = n.contactOf(tx, c)
		return nil
	})
	return out, err
}

// resolve finds the contact that who names: an account ID or a local name.
func resolve(tx *store.Tx, who string) (*store.Contact, error) {
	if a, err := identity.ParseAccountID(who); err == nil {
		c, err := store.Contacts.Get(tx, a[:])
		if errors.Is(err, store.ErrNotFound) {
			return nil, &Error{Kind: KindNotFound, Msg: "no contact has this account ID", Hint: "starling contact add takes their invite link"}
		}
		return c, err
	}
	c, err := contactByName(tx, who)
	if !errors.Is(err, store.ErrNotFound) {
		return c, err
	}
	var near []string
	for row, err := range store.Contacts.Scan(tx, nil, nil) {
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(fold(row.Value.Name), fold(who)) {
			near = append(near, row.Value.Name)
		}
	}
	slices.Sort(near)
	switch len(near) {
	case 0:
		return nil, &Error{Kind: KindNotFound, Msg: fmt.Sprintf("no contact is named %q", who), Hint: "starling contact list shows them"}
	case 1:
		return nil, &Error{Kind: KindNotFound, Msg: fmt.Sprintf("no contact is named %q", who), Hint: "did you mean " + near[0] + "?"}
	}
	return nil, &Error{Kind: KindAmbiguous, Msg: fmt.Sprintf("%q fits several contacts", who), Hint: "one of: " + strings.Join(near, ", ")}
}

// Names are kept folded, so that two contacts never differ by case alone.
func fold(name string) string { return strings.ToLower(name) }

func contactByName(tx *store.Tx, name string) (*store.Contact, error) {
	ref, err := store.Names.Get(tx, store.NameKey(fold(name)))
	if err != nil {
		return nil, err
	}
	return store.Contacts.Get(tx, ref.Data)
}

func cleanContactName(name string) (string, error) {
	name, err := identity.ParseName(name)
	if err == nil && name == "" {
		err = errors.New("a name cannot be empty")
	}
	if err == nil {
		if _, idErr := identity.ParseAccountID(name); idErr == nil {
			err = errors.New("a name cannot be an account ID")
		}
	}
	if err != nil {
		return "", &Error{Kind: KindInvalid, Msg: err.Error(), Hint: "choose a name of 1 to 64 bytes without control characters"}
	}
	return name, nil
}

// rename saves c under name, or under name-2, name-3, … if it is taken. own
// says that the user chose the name.
func (n *Node) rename(tx *store.Tx, c *store.Contact, name string, own bool) error {
	free := name
	for i := 2; ; i++ {
		ref, err := store.Names.Get(tx, store.NameKey(fold(free)))
		if errors.Is(err, store.ErrNotFound) || err == nil && slices.Equal(ref.Data, c.Account) {
			break
		}
		if err != nil {
			return err
		}
		free = fmt.Sprintf("%s-%d", name, i)
	}
	if c.Name != "" {
		if err := store.Names.Delete(tx, store.NameKey(fold(c.Name))); err != nil {
			return err
		}
	}
	c.Name, c.OwnName = free, own
	if err := store.Names.Put(tx, store.NameKey(fold(free)), &store.Blob{Data: c.Account}); err != nil {
		return err
	}
	return saveContact(tx, c)
}

func saveContact(tx *store.Tx, c *store.Contact) error { return store.Contacts.Put(tx, c.Account, c) }

// learn takes over what a contact says about itself inside a session: newer
// manifest, profile name, lookup secret, endpoints and mailboxes. What is older
// than what is known changes nothing (SPEC §4.5): relays bring it in any order.
func (n *Node) learn(tx *store.Tx, c *store.Contact, manifest []byte, p identity.Profile) error {
	generation, err := n.learnManifest(tx, c, manifest)
	if err != nil {
		return err
	}
	if cmp.Or(cmp.Compare(generation, c.ProfileGeneration), cmp.Compare(p.Version, c.ProfileVersion)) < 0 {
		return saveContact(tx, c)
	}
	c.ProfileGeneration, c.ProfileVersion = generation, p.Version
	c.LookupSecret = slices.Clone(p.Lookup[:])
	c.Endpoints = nil
	for _, e := range p.Endpoints {
		c.Endpoints = append(c.Endpoints, &store.Endpoint{TransportKey: slices.Clone(e.Transport[:]), Addrs: e.Addrs})
	}
	if p.Mail != nil {
		c.Mail = wire.Marshal(p.Mail)
	}
	c.ProfileName = p.Name
	tx.OnCommit(func() { n.routes.set(c) })
	if c.OwnName || p.Name == "" || c.State == store.Contact_REQUEST && c.Name != "" {
		return saveContact(tx, c)
	}
	if c.Name != "" && c.Name != accountOf(c).Short() {
		return saveContact(tx, c) // named by an earlier profile: names do not change behind the user's back
	}
	return n.rename(tx, c, shownName(accountOf(c), p.Name), false)
}

// learnManifest takes a newer manifest of a contact. A device that was not in
// the last one is announced; for a verified contact it holds sending. It returns
// the manifest's generation, 0 if it does not hold.
func (n *Node) learnManifest(tx *store.Tx, c *store.Contact, signed []byte) (generation uint64, err error) {
	now := n.cfg.Now()
	fresh, err := identity.OpenManifest(signed, accountOf(c), now)
	if err != nil {
		n.log.Warn("a contact sent a manifest that does not hold", "err", err)
		return 0, nil
	}
	if c.Manifest == nil {
		c.Manifest = signed
		return fresh.Generation, nil
	}
	forever := now.Add(100 * 365 * 24 * time.Hour) // what is kept was in time when it came
	known, err := identity.OpenManifest(c.Manifest, accountOf(c), forever)
	if err != nil {
		return 0, err
	}
	held := known
	if len(c.HeldManifest) > 0 {
		if held, err = identity.OpenManifest(c.HeldManifest, accountOf(c), forever); err != nil {
			return 0, err
		}
	}
	if fresh.Generation <= max(known.Generation, held.Generation) {
		return fresh.Generation, nil
	}
	unknown := func(m identity.Manifest) bool {
		return slices.ContainsFunc(fresh.Devices, func(d identity.DeviceEntry) bool {
			e, ok := m.Device(d.Key)
			return !ok || e.DH != d.DH // a device is both its keys
		})
	}
	switch {
	case !unknown(known):
		c.Manifest, c.HeldManifest = signed, nil
		return fresh.Generation, nil
	case c.Verified && advance(c, evNewDevice) || c.State == store.Contact_HELD:
		c.HeldManifest = signed
		if !unknown(held) {
			return fresh.Generation, nil // the user was told of it
		}
		return fresh.Generation, n.notice(tx, c, c.Name+" set up a new device; sending waits for you")
	}
	c.Manifest = signed
	return fresh.Generation, n.notice(tx, c, c.Name+" set up a new device")
}

// notice puts a line that nobody wrote into the chat with c, and the journal.
func (n *Node) notice(tx *store.Tx, c *store.Contact, text string) error {
	return n.noticeOf(tx, c, stateName(c.State), text)
}

// noticeOf is notice with what it is about, for programs that read the journal.
func (n *Node) noticeOf(tx *store.Tx, c *store.Contact, about, text string) error {
	now := n.cfg.Now()
	id, err := n.newID()
	if err != nil {
		return err
	}
	_, err = outbox.Append(tx, accountOf(c), &store.Entry{
		Id: id[:], Text: text, State: store.Entry_RECEIVED,
		Time: now.UnixMilli(), Received: now.UnixMilli(), Notice: true,
	})
	if err != nil {
		return err
	}
	return n.record(tx, &store.Event{Type: "notice", Id: id[:], State: about, Text: text}, c)
}

// tell queues for c how to find and name this account.
func (n *Node) tell(tx *store.Tx, c *store.Contact) error {
	news, err := n.news(tx, c)
	if err != nil {
		return err
	}
	return n.enqueue(tx, c, envelope.Content{News: news})
}

// welcome tells c that they are accepted.
func (n *Node) welcome(tx *store.Tx, c *store.Contact) error {
	news, err := n.news(tx, c)
	if err != nil {
		return err
	}
	return n.enqueue(tx, c, envelope.Content{Accept: news})
}

// news is what c is told of this account, and notes that they were.
func (n *Node) news(tx *store.Tx, c *store.Contact) (*envelope.News, error) {
	row, err := store.Selves.Get(tx, store.SelfKey())
	if err != nil {
		return nil, err
	}
	p, err := n.newProfile(tx, row, c.Account)
	if err != nil {
		return nil, err
	}
	first := len(c.ProfileSent) == 0
	c.ProfileSent = n.profileMark(row, p)
	if first {
		// The introduction of the session says it, and both together would be too
		// long for a contact box.
		p.Mail = nil
	}
	return &envelope.News{Manifest: row.Manifest, Profile: p}, saveContact(tx, c)
}

// profileMark names what a contact has to be told: name, lookup secret, manifest,
// relays, and once a week the sealing keys. Addresses are found anew.
func (n *Node) profileMark(row *store.Self, p identity.Profile) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d %q %x", row.Generation, row.Name, row.LookupSecret)
	for _, b := range p.Mail.GetMailboxes() {
		fmt.Fprintf(h, " %x", b)
	}
	if len(p.Mail.GetSealing()) > 0 {
		// Keys are told ahead, so it may be at any hour of the week: not at that
		// at which everybody does.
		a := n.account()
		apart := time.Duration(binary.BigEndian.Uint32(a[:])) % 168 * time.Hour
		fmt.Fprintf(h, " %d", envelope.WeekOf(n.cfg.Now().Add(apart)))
	}
	return h.Sum(nil)
}

// tellAtOnce bounds how many contacts are told in one transaction, tellPause is
// the pause after one that failed, as on a full disk, and tellEvery how often it
// is looked whether a week's sealing keys have to be told.
const (
	tellAtOnce = 64
	tellPause  = time.Minute
	tellEvery  = time.Hour
)

// tellContacts tells every contact that may be written to and does not know
// what changed about this account, until ctx ends. What is left when the node
// stops is told after the next start.
func (n *Node) tellContacts(ctx context.Context) error {
	for {
		told, more := 0, false
		err := n.store.Update(func(tx *store.Tx) error {
			me, err := store.Selves.Get(tx, store.SelfKey())
			if err != nil {
				return err
			}
			for row, err := range store.Contacts.Scan(tx, nil, nil) {
				if err != nil {
					return err
				}
				c := row.Value
				if !sendable(c.State) {
					continue
				}
				p, err := n.profile(tx, me, c.Account)
				if err != nil {
					return err
				}
				if slices.Equal(c.ProfileSent, n.profileMark(me, p)) {
					continue
				}
				if more = told == tellAtOnce; more {
					return nil
				}
				err = tx.Try(func(tx *store.Tx) error { return n.tell(tx, c) })
				if more = errors.Is(err, store.ErrTooBig) && told > 0; more {
					return nil // how long a contact's row is, is for the contact to say
				}
				if err != nil {
					return err
				}
				told++
			}
			return nil
		})
		if err == nil && more {
			continue
		}
		again := time.After(tellEvery)
		if err != nil && ctx.Err() == nil {
			n.log.Warn("telling contacts what is new", "err", err)
			again = time.After(tellPause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.untold:
		case <-again:
		}
	}
}

func accountOf(c *store.Contact) identity.Account { return identity.Account(c.Account) }

// contactOf says what the user is told of c.
func (n *Node) contactOf(tx *store.Tx, c *store.Contact) Contact {
	path := n.path(c)
	out := Contact{
		Account: accountOf(c).String(), Name: c.Name, ProfileName: c.ProfileName,
		State: stateName(c.State), Detail: n.detail(c), Verified: c.Verified,
		Added: time.UnixMilli(c.Added), Connected: path != "", Path: path, Unread: int(c.Unread),
		Queued: queuedFor(tx, accountOf(c)),
	}
	if c.LastSeen != 0 {
		out.LastSeen = time.UnixMilli(c.LastSeen)
	}
	if len(c.NewAccount) == identity.KeySize {
		out.NewAccount = identity.Account(c.NewAccount).String()
	}
	if c.State == store.Contact_REQUEST {
		out.Warning = lookalike(tx, c)
	}
	return out
}

// stateName is a contact's state as the user and the journal spell it.
func stateName(s store.Contact_State) string { return strings.ToLower(s.String()) }

// detail is a contact's state in plain words.
func (n *Node) detail(c *store.Contact) string {
	switch c.State {
	case store.Contact_PENDING:
		if why := n.waiting(accountOf(c)); why != "" {
			return "not found yet; still trying: " + why
		}
		return "not found yet; still trying"
	case store.Contact_REQUESTED:
		return "waiting for them to accept"
	case store.Contact_REQUEST:
		return "wants to be your contact"
	case store.Contact_BLOCKED:
		return "blocked"
	case store.Contact_KEY_CHANGED:
		return "safety number has changed: nothing is sent until you decide"
	case store.Contact_HELD:
		return "set up a new device: nothing is sent until you decide"
	}
	if why := n.waiting(accountOf(c)); why != "" {
		return why
	}
	return ""
}

// lookalike warns of a request whose profile name resembles a contact's.
func lookalike(tx *store.Tx, c *store.Contact) string {
	seems := skeleton(c.ProfileName)
	if seems == "" {
		return ""
	}
	for row, err := range store.Contacts.Scan(tx, nil, nil) {
		if err != nil {
			return ""
		}
		other := row.Value
		if other.State == store.Contact_REQUEST || slices.Equal(other.Account, c.Account) {
			continue
		}
		if seems == skeleton(other.Name) || seems == skeleton(other.ProfileName) {
			return "not the " + other.Name + " you know"
		}
	}
	return ""
}

// quoted makes a name safe to paste into a shell.
func quoted(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r))
	}) < 0 && s != "" && s[0] != '-' {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
