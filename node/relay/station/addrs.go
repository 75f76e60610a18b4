package station

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	noderelay "starling/node/relay"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
)

// ErrUnreachable means that a link would be of no use to people elsewhere. Its
// text is for the operator, who announces an address, waits until others have
// confirmed one, or asks for a link for the local network.
var ErrUnreachable = errors.New("nobody has confirmed yet that this relay is reachable from the internet, and no address is announced")

// A State says what is known of an address.
type State string

// The states of addresses. An address is confirmed when another peer has dialled
// it, from an address of its own choice: any kind of peer (AutoNAT, second
// version), or a relay that was asked to ([Station.Check]).
const (
	Confirmed   State = "confirmed"
	Failed      State = "failed"  // others could not dial it
	Unconfirmed State = "unknown" // nobody has tried, or too few
	Private     State = "private" // of this machine or network only
)

// An Address is one at which the relay may be reached.
type Address struct {
	Addr      string // multiaddr
	State     State
	Announced bool // by the operator
}

// Addresses returns the announced addresses, then those found out, and what
// others say of each, by AutoNAT or in the last [Station.Check]. After the first
// few peers it takes some seconds until they have tried. A name is never
// confirmed: others are asked of what it stands for.
func (s *Station) Addresses() []Address {
	state := map[string]State{}
	s.mu.Lock()
	maps.Copy(state, s.dialled)
	s.mu.Unlock()
	if h, ok := s.host.(interface {
		ConfirmedAddrs() (reachable, unreachable, unknown []multiaddr.Multiaddr)
	}); ok {
		yes, no, _ := h.ConfirmedAddrs()
		for _, a := range yes {
			state[string(a.Bytes())] = Confirmed
		}
		for _, a := range no {
			if k := string(a.Bytes()); state[k] != Confirmed {
				state[k] = Failed
			}
		}
	}
	announced := casts(s.cfg.Announce)
	var all []Address
	for i, a := range append(announced, s.found(announced)...) {
		st := state[string(a.Bytes())]
		switch {
		case st != "":
		case manet.IsPublicAddr(a) || isName(a):
			st = Unconfirmed
		default:
			st = Private
		}
		all = append(all, Address{Addr: a.String(), State: st, Announced: i < len(announced)})
	}
	return all
}

// found returns the addresses of the host and of its interfaces, but those given:
// libp2p itself leaves out what others could not dial.
func (s *Station) found(but []multiaddr.Multiaddr) (all []multiaddr.Multiaddr) {
	local, err := s.host.Network().InterfaceListenAddresses()
	if err != nil {
		s.cfg.Log.Debug("listing the addresses of interfaces", "error", err)
	}
	if h, ok := s.host.(interface{ AllAddrs() []multiaddr.Multiaddr }); ok {
		local = append(h.AllAddrs(), local...) // those that peers see, too
	}
	for _, a := range local {
		if !slices.ContainsFunc(slices.Concat(but, all), a.Equal) {
			all = append(all, a)
		}
	}
	return all
}

// told returns the addresses that others are told: announced ones in place of
// those found out.
func (s *Station) told(all []Address) []Address {
	if n := len(s.cfg.Announce); n > 0 {
		return all[:n]
	}
	return all
}

// reachable returns the addresses that strangers can use: announced ones, or
// else confirmed ones.
func (s *Station) reachable() (all []multiaddr.Multiaddr) {
	for _, a := range s.told(s.Addresses()) {
		if a.Announced || a.State == Confirmed {
			all = append(all, multiaddr.StringCast(a.Addr))
		}
	}
	return all
}

// Link returns a link to this relay. With token it holds a new admission token,
// which is counted as one account however many people use it. Without lan the
// link holds announced or confirmed addresses only, and if there are none the
// error is [ErrUnreachable]; with it, it holds those of the local network.
func (s *Station) Link(token, lan bool) (relay.Link, error) {
	return s.NamedLink(token, lan, "")
}

// NamedLink is Link with a name for the token, of at most 64 bytes, by which the
// operator knows it; "" stands for one with the day.
func (s *Station) NamedLink(token, lan bool, name string) (relay.Link, error) {
	if name == "" {
		name = "link of " + s.cfg.Now().UTC().Format("2006-01-02")
	}
	addrs := s.reachable()
	if lan {
		addrs = s.near()
	}
	l := relay.Link{Transport: s.self}
	if token {
		l.Admission[0] = 1 // takes its place, so that the length is right
	}
	for _, h := range hints(s.self, addrs) {
		more := l
		more.Hints = append(slices.Clone(l.Hints), h)
		if more.Check() == nil {
			l = more
		}
	}
	if len(l.Hints) == 0 {
		if lan {
			return relay.Link{}, errors.New("this relay listens at no address that a link can hold")
		}
		return relay.Link{}, ErrUnreachable
	}
	if token {
		t, err := s.service.Load().Issue(name)
		if err != nil {
			return relay.Link{}, fmt.Errorf("issuing an admission token: %w", err)
		}
		l.Admission = t
	}
	return l, nil
}

// Issued returns the admission tokens that links were given and that are not
// revoked, with what is kept on the account of each.
func (s *Station) Issued() ([]noderelay.Issued, error) { return s.service.Load().Issued() }

// Revoke ends an admission token: its bearers make no queue with it any more, and
// cannot renew those they have. The error is relay.ErrNoToken of node/relay if
// there is none with this hash.
func (s *Station) Revoke(hash [sha256.Size]byte) error { return s.service.Load().Revoke(hash) }

// near returns the addresses of this network, or of this machine if there are
// no others.
func (s *Station) near() []multiaddr.Multiaddr {
	all, err := s.host.Network().InterfaceListenAddresses()
	if err != nil {
		return nil
	}
	beyond := slices.DeleteFunc(slices.Clone(all), func(a multiaddr.Multiaddr) bool {
		return manet.IsIPLoopback(a) || manet.IsIP6LinkLocal(a)
	})
	if len(beyond) > 0 {
		return beyond
	}
	return slices.DeleteFunc(all, manet.IsIP6LinkLocal)
}

// hints returns addresses as hints of a link, those first that more people can
// use.
func hints(t identity.Transport, addrs []multiaddr.Multiaddr) (all []identity.Hint) {
	for _, a := range addrs {
		if h, ok := hintOf(t, a); ok && !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	rank := func(h identity.Hint) int {
		r := 2 * int(h.Network) // QUIC, TCP
		if h.Addr.Is6() {
			r++
		}
		return r
	}
	slices.SortStableFunc(all, func(a, b identity.Hint) int { return cmp.Compare(rank(a), rank(b)) })
	return all[:min(len(all), 2*protocol.MaxRelayHints)]
}

// zeroTransport stands for a key where only an address is judged.
var zeroTransport identity.Transport

func isName(a multiaddr.Multiaddr) bool {
	for _, p := range []int{multiaddr.P_DNS, multiaddr.P_DNS4, multiaddr.P_DNS6} {
		if _, err := a.ValueForProtocol(p); err == nil {
			return true
		}
	}
	return false
}

// hintOf returns a as a hint: an IP address or a name, then QUIC version 1 or
// TCP, and nothing else but the relay's own key.
func hintOf(t identity.Transport, a multiaddr.Multiaddr) (identity.Hint, bool) {
	h := identity.Hint{Transport: t}
	for i, c := range a {
		var err error
		switch code := c.Protocol().Code; {
		case i == 0 && (code == multiaddr.P_IP4 || code == multiaddr.P_IP6):
			h.Addr, err = netip.ParseAddr(c.Value())
		case i == 0 && (code == multiaddr.P_DNS || code == multiaddr.P_DNS4 || code == multiaddr.P_DNS6):
			h.Name = c.Value()
		case i == 1 && (code == multiaddr.P_UDP || code == multiaddr.P_TCP):
			if code == multiaddr.P_TCP {
				h.Network = identity.TCP
			}
			var port uint64
			port, err = strconv.ParseUint(c.Value(), 10, 16)
			h.Port = uint16(port)
		case i == 2 && code == multiaddr.P_QUIC_V1 && h.Network == identity.QUIC:
		default:
			return h, false
		}
		if err != nil {
			return h, false
		}
	}
	quic := len(a) == 3 && h.Network == identity.QUIC
	return h, (quic || len(a) == 2 && h.Network == identity.TCP) && h.Check() == nil
}

// Reach says in a word how strangers reach the relay.
type Reach string

// What is known of a relay's reach.
const (
	ReachAnnounced Reach = "announced" // the operator says so
	ReachConfirmed Reach = "confirmed" // others have dialled it
	ReachUnknown   Reach = "unknown"   // nobody has tried yet
	ReachNone      Reach = "none"      // others have tried in vain
)

func (s *Station) reachOf(addrs []Address) Reach {
	failed := 0
	for _, a := range addrs {
		switch {
		case a.Announced:
			return ReachAnnounced
		case a.State == Confirmed:
			return ReachConfirmed
		case a.State == Failed:
			failed++
		}
	}
	if failed > 0 || network.Reachability(s.reach.Load()) == network.ReachabilityPrivate {
		return ReachNone
	}
	return ReachUnknown
}
