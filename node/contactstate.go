package node

import "starling/node/store"

// A contactEvent is something that happened to a contact.
type contactEvent int

const (
	evAdded      contactEvent = iota // this user added their link
	evAsked                          // their first message came, and no open invite admits it
	evAdmitted                       // their first message came with the token of an open invite
	evOpened                         // our first message reached them by a reusable link
	evAcceptedUs                     // they said that they accepted us
	evAccept                         // this user accepts their request
	evBlock                          // this user blocks them
	evUnblock                        // this user unblocks them
	evOtherKey                       // another account key was offered for this name
	evNewDevice                      // a device unknown so far is in their manifest, and they are verified
	evTrust                          // this user decided: go on
)

// The states of a contact (store.Contact_State, UNSPECIFIED: no contact yet):
//
//	               added                opened               accepted us
//	(none) ───────────────────▶ PENDING ───────▶ REQUESTED ───────────────▶ ACCEPTED
//	   │ asked                                                   ▲    ▲
//	   ├────────▶ REQUEST ──────────── accept, added ────────────┘    │
//	   │ admitted                                                     │
//	   └──────────────────────────────────────────────────────────────┘
//
//	ACCEPTED, PENDING, REQUESTED ── other key ──▶ KEY_CHANGED ── trust ──▶ where it was
//	ACCEPTED ────────────────────── new device ─▶ HELD ───────── trust ──▶ ACCEPTED
//	any ─────────────────────────── block ──────▶ BLOCKED ────── unblock ▶ where it was
//
// A transition that is not in the table leaves the state as it is.
var contactTable = map[contactEvent]map[store.Contact_State]store.Contact_State{
	evAdded: {
		store.Contact_UNSPECIFIED: store.Contact_PENDING,
		store.Contact_REQUEST:     store.Contact_ACCEPTED, // adding their link is accepting them
	},
	evAsked: {
		store.Contact_UNSPECIFIED: store.Contact_REQUEST,
		store.Contact_PENDING:     store.Contact_ACCEPTED, // both added the other
		store.Contact_REQUESTED:   store.Contact_ACCEPTED,
	},
	evAdmitted: {
		store.Contact_UNSPECIFIED: store.Contact_ACCEPTED,
		store.Contact_REQUEST:     store.Contact_ACCEPTED,
		store.Contact_PENDING:     store.Contact_ACCEPTED,
		store.Contact_REQUESTED:   store.Contact_ACCEPTED,
	},
	evOpened:     {store.Contact_PENDING: store.Contact_REQUESTED},
	evAcceptedUs: {store.Contact_PENDING: store.Contact_ACCEPTED, store.Contact_REQUESTED: store.Contact_ACCEPTED},
	evAccept:     {store.Contact_REQUEST: store.Contact_ACCEPTED},
	evBlock: {
		store.Contact_PENDING: store.Contact_BLOCKED, store.Contact_REQUESTED: store.Contact_BLOCKED,
		store.Contact_ACCEPTED: store.Contact_BLOCKED, store.Contact_REQUEST: store.Contact_BLOCKED,
		store.Contact_KEY_CHANGED: store.Contact_BLOCKED, store.Contact_HELD: store.Contact_BLOCKED,
	},
	evOtherKey: {
		store.Contact_PENDING: store.Contact_KEY_CHANGED, store.Contact_REQUESTED: store.Contact_KEY_CHANGED,
		store.Contact_ACCEPTED: store.Contact_KEY_CHANGED, store.Contact_HELD: store.Contact_KEY_CHANGED,
	},
	evNewDevice: {store.Contact_ACCEPTED: store.Contact_HELD},
}

// advance applies ev to c and reports whether its state changed. It touches
// the state only.
func advance(c *store.Contact, ev contactEvent) bool {
	from := c.State
	switch ev {
	case evUnblock:
		if from != store.Contact_BLOCKED {
			break
		}
		switch { // what waited for the user before still does
		case len(c.NewAccount) > 0:
			c.State = store.Contact_KEY_CHANGED
		case len(c.HeldManifest) > 0:
			c.State = store.Contact_HELD
		default:
			c.State, c.Before = c.Before, store.Contact_UNSPECIFIED
		}
	case evTrust:
		if from == store.Contact_KEY_CHANGED || from == store.Contact_HELD {
			c.State, c.Before = c.Before, store.Contact_UNSPECIFIED
		}
	default:
		to, ok := contactTable[ev][from]
		if !ok {
			return false
		}
		switch to {
		case store.Contact_BLOCKED, store.Contact_KEY_CHANGED, store.Contact_HELD:
			c.Before = resumable(c)
		}
		c.State = to
	}
	return c.State != from
}

// resumable is the state that c goes back to when a hold ends.
func resumable(c *store.Contact) store.Contact_State {
	switch c.State {
	case store.Contact_KEY_CHANGED, store.Contact_HELD:
		return c.Before
	}
	return c.State
}

// sendable reports whether contents for c may leave now.
func sendable(s store.Contact_State) bool {
	return s == store.Contact_PENDING || s == store.Contact_REQUESTED || s == store.Contact_ACCEPTED
}
