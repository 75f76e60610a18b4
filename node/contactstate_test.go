package node

import (
	"testing"

	"starling/node/store"
)

func TestContactStateMachine(t *testing.T) {
	type step struct {
		ev   contactEvent
		want store.Contact_State
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"a one-use link", []step{{evAdded, store.Contact_PENDING}, {evAcceptedUs, store.Contact_ACCEPTED}}},
		{"a public link", []step{{evAdded, store.Contact_PENDING}, {evOpened, store.Contact_REQUESTED}, {evAcceptedUs, store.Contact_ACCEPTED}}},
		{"its owner", []step{{evAsked, store.Contact_REQUEST}, {evAccept, store.Contact_ACCEPTED}}},
		{"an inviter", []step{{evAdmitted, store.Contact_ACCEPTED}, {evAsked, store.Contact_ACCEPTED}}},
		{"both add the other", []step{{evAdded, store.Contact_PENDING}, {evAsked, store.Contact_ACCEPTED}}},
		{"adding who asks", []step{{evAsked, store.Contact_REQUEST}, {evAdded, store.Contact_ACCEPTED}}},
		{"block and unblock", []step{{evAdmitted, store.Contact_ACCEPTED}, {evBlock, store.Contact_BLOCKED}, {evAsked, store.Contact_BLOCKED}, {evAdmitted, store.Contact_BLOCKED}, {evUnblock, store.Contact_ACCEPTED}}},
		{"another key", []step{{evAdmitted, store.Contact_ACCEPTED}, {evOtherKey, store.Contact_KEY_CHANGED}, {evAcceptedUs, store.Contact_KEY_CHANGED}, {evTrust, store.Contact_ACCEPTED}}},
		{"a new device", []step{{evAdmitted, store.Contact_ACCEPTED}, {evNewDevice, store.Contact_HELD}, {evTrust, store.Contact_ACCEPTED}}},
		{"another key while held", []step{{evAdmitted, store.Contact_ACCEPTED}, {evNewDevice, store.Contact_HELD}, {evOtherKey, store.Contact_KEY_CHANGED}, {evTrust, store.Contact_ACCEPTED}}},
		{"blocked while held", []step{{evAdmitted, store.Contact_ACCEPTED}, {evNewDevice, store.Contact_HELD}, {evBlock, store.Contact_BLOCKED}, {evUnblock, store.Contact_ACCEPTED}}},
		{"nothing to trust", []step{{evAdded, store.Contact_PENDING}, {evTrust, store.Contact_PENDING}, {evUnblock, store.Contact_PENDING}, {evAccept, store.Contact_PENDING}, {evNewDevice, store.Contact_PENDING}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := new(store.Contact)
			for i, s := range tt.steps {
				before := c.State
				changed := advance(c, s.ev)
				if c.State != s.want || changed != (before != s.want) {
					t.Fatalf("step %d, event %d: %v → %v (changed %v), want %v", i, s.ev, before, c.State, changed, s.want)
				}
			}
		})
	}
}

// What waited for the user before a block still does after it.
func TestUnblockingDecidesNothing(t *testing.T) {
	changed := &store.Contact{State: store.Contact_ACCEPTED, NewAccount: []byte("another key")}
	advance(changed, evOtherKey)
	held := &store.Contact{State: store.Contact_ACCEPTED, HeldManifest: []byte("another device")}
	advance(held, evNewDevice)
	for _, c := range []*store.Contact{changed, held} {
		was := c.State
		advance(c, evBlock)
		if advance(c, evUnblock); c.State != was {
			t.Errorf("%v, blocked and unblocked: %v", was, c.State)
		}
		c.NewAccount, c.HeldManifest = nil, nil
		if advance(c, evTrust); c.State != store.Contact_ACCEPTED {
			t.Errorf("%v, trusted: %v", was, c.State)
		}
	}
}

// Nothing that a peer says ends a hold or a block.
func TestNoPeerEventEndsAHold(t *testing.T) {
	for _, held := range []store.Contact_State{store.Contact_BLOCKED, store.Contact_KEY_CHANGED} {
		for _, ev := range []contactEvent{evAsked, evAdmitted, evOpened, evAcceptedUs, evNewDevice} {
			c := &store.Contact{State: held, Before: store.Contact_ACCEPTED}
			if advance(c, ev) || sendable(c.State) {
				t.Errorf("%v after event %d: %v", held, ev, c.State)
			}
		}
	}
}
