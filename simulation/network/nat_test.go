package network

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

var (
	friend    = netip.MustParseAddrPort("1.1.0.1:4001")
	friend2   = netip.MustParseAddrPort("1.1.0.1:4002") // the same machine
	stranger  = netip.MustParseAddrPort("1.2.0.1:4001")
	natKinds  = []NAT{FullCone, PortRestricted, Symmetric}
	natSocket = uint16(4001)
)

// leave sends, and fails the test if the table is full.
func leave(t *testing.T, nat *table, now time.Duration, to netip.AddrPort) (outer uint16) {
	t.Helper()
	outer, ok := nat.leave(now, natSocket, to)
	if !ok {
		t.Fatalf("%v: nothing leaves for %v", nat.kind, to)
	}
	return outer
}

// wantEnter wants something that is sent to a port to be let in, or not.
func wantEnter(t *testing.T, nat *table, now time.Duration, outer uint16, from netip.AddrPort, want bool) {
	t.Helper()
	inner, ok := nat.enter(now, outer, from)
	if ok != want {
		t.Errorf("%v at %v: let in from %v: %v, want %v", nat.kind, now, from, ok, want)
	}
	if ok && inner != natSocket {
		t.Errorf("%v: it goes to port %d, want %d", nat.kind, inner, natSocket)
	}
}

func TestNATMapsAndFiltersAsItsKindSays(t *testing.T) {
	for _, c := range []struct {
		kind               NAT
		oneForAll          bool // mapping
		samePort, everyone bool // let in
	}{
		{FullCone, true, true, true},
		{PortRestricted, true, false, false},
		{Symmetric, false, false, false},
	} {
		nat := newTable(c.kind, newSource(1))
		wantEnter(t, nat, 0, 4001, friend, false)
		outer := leave(t, nat, 0, friend)
		wantEnter(t, nat, 0, outer, friend, true)
		wantEnter(t, nat, 0, outer, friend2, c.samePort)
		wantEnter(t, nat, 0, outer, stranger, c.everyone)
		wantEnter(t, nat, 0, outer+1, friend, false)
		if again := leave(t, nat, 1, friend); again != outer {
			t.Errorf("%v: the same flow got port %d, and then %d", c.kind, outer, again)
		}
		other := leave(t, nat, 1, friend2)
		if (other == outer) != c.oneForAll {
			t.Errorf("%v: ports %d and %d for two addresses", c.kind, outer, other)
		}
		wantEnter(t, nat, 1, other, friend2, true)
		second, ok := nat.leave(1, natSocket+1, friend)
		if !ok || second == outer || second == other {
			t.Errorf("%v: a second socket has port %d, the first %d and %d", c.kind, second, outer, other)
		}
	}
}

func TestNATForgetsTwoMinutesAfterTheLastThatLeft(t *testing.T) {
	for _, kind := range natKinds {
		nat := newTable(kind, newSource(1))
		outer := leave(t, nat, 0, friend)
		wantEnter(t, nat, NATTimeout-1, outer, friend, true)
		wantEnter(t, nat, NATTimeout, outer, friend, false) // what came in did not prolong it
		if again := leave(t, nat, NATTimeout, friend); again == outer {
			t.Errorf("%v: the forgotten mapping got its port again", kind)
		}

		outer = leave(t, nat, 3*NATTimeout, friend)
		if again := leave(t, nat, 4*NATTimeout-1, friend); again != outer {
			t.Errorf("%v: port %d became %d although it was in use", kind, outer, again)
		}
		wantEnter(t, nat, 5*NATTimeout-2, outer, friend, true)
	}
}

func TestPortRestrictedNATForgetsEachAddressByItself(t *testing.T) {
	nat := newTable(PortRestricted, newSource(1))
	outer := leave(t, nat, 0, friend)
	leave(t, nat, NATTimeout/2, stranger)
	wantEnter(t, nat, NATTimeout, outer, friend, false)
	wantEnter(t, nat, NATTimeout, outer, stranger, true)
}

func TestNATRemembersABoundedNumber(t *testing.T) {
	for kind, most := range map[NAT]int{PortRestricted: maxKept - 1, Symmetric: maxKept} {
		nat := newTable(kind, newSource(1))
		for i := range most {
			leave(t, nat, 0, netip.AddrPortFrom(stranger.Addr(), uint16(i+1)))
		}
		if _, ok := nat.leave(NATTimeout-1, natSocket, friend); ok {
			t.Errorf("%v: there is room beyond %d", kind, maxKept)
		}
		leave(t, nat, NATTimeout-1, netip.AddrPortFrom(stranger.Addr(), 1))
		outer := leave(t, nat, NATTimeout, friend)
		wantEnter(t, nat, NATTimeout, outer, friend, true)
		n := len(nat.out)
		for _, m := range nat.out {
			n += len(m.sent)
		}
		want := 2
		if kind == PortRestricted {
			want++
		}
		if n != want || nat.kept != n || len(nat.in) != len(nat.out) {
			t.Errorf("%v: %d are remembered, %d counted, want %d", kind, n, nat.kept, want)
		}
	}
}

func TestNATKindsHaveNames(t *testing.T) {
	if got, want := fmt.Sprint(NoNAT, FullCone, PortRestricted, Symmetric, NAT(9)), "none full-cone port-restricted symmetric NAT(9)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := newNet(t, Config{Sites: 1}).Join(Site{NAT: 9}, 0, 0); err == nil {
		t.Error("a site joined behind a NAT of no kind")
	}
}
