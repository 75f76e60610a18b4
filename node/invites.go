package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
)

// CreateInvite makes an invite link: for one person and a week, or reusable if
// public.
func (n *Node) CreateInvite(_ context.Context, public bool) (Invite, error) {
	var token identity.Token
	if _, err := io.ReadFull(n.cfg.Rand, token[:]); err != nil {
		return Invite{}, fmt.Errorf("drawing a token: %w", err)
	}
	id := token.ID()
	now := n.cfg.Now()
	row := &store.Invite{Id: id[:], Token: token[:], Public: public, Created: now.UnixMilli()}
	if !public {
		row.Expires = now.Add(protocol.InviteLife).UnixMilli()
	}
	hints, reach, advice := n.hints()
	err := n.store.Update(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err != nil {
			return err
		}
		link := identity.Link{Account: n.account(), Token: token, Public: public, Hints: hints}
		copy(link.Lookup[:], me.LookupSecret)
		row.Link = link.String()
		if err := store.Invites.Put(tx, row.Id, row); err != nil {
			return err
		}
		return n.record(tx, &store.Event{Type: "invite", State: "open"}, nil)
	})
	if err != nil {
		return Invite{}, err
	}
	inv := inviteOf(row, now)
	inv.Reach, inv.Hint = reach, advice
	return inv, nil
}

// Invites lists the links of this account, oldest first.
func (n *Node) Invites(context.Context) ([]Invite, error) {
	var list []Invite
	now := n.cfg.Now()
	_, reach, _ := n.hints()
	err := n.store.View(func(tx *store.Tx) error {
		for r, err := range store.Invites.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			row := r.Value
			inv := inviteOf(row, now)
			inv.Reach = reach
			if row.UsedBy != nil {
				if c, err := store.Contacts.Get(tx, row.UsedBy); err == nil {
					inv.UsedBy = c.Name
				}
			}
			list = append(list, inv)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b Invite) int { return a.Created.Compare(b.Created) })
	return list, err
}

// RevokeInvite makes a link admit nobody any more. Who has it still finds this
// account; RotateInvites ends that.
func (n *Node) RevokeInvite(_ context.Context, id string) error {
	key, err := hex.DecodeString(id)
	if err != nil || len(key) != 16 {
		return &Error{Kind: KindInvalid, Msg: fmt.Sprintf("%q is not the ID of an invite", id), Hint: "starling invite list shows them"}
	}
	return n.store.Update(func(tx *store.Tx) error {
		row, err := store.Invites.Get(tx, key)
		if errors.Is(err, store.ErrNotFound) {
			return &Error{Kind: KindNotFound, Msg: "there is no invite " + id, Hint: "starling invite list shows them"}
		}
		if err != nil {
			return err
		}
		row.Revoked = true
		if err := store.Invites.Put(tx, key, row); err != nil {
			return err
		}
		return n.record(tx, &store.Event{Type: "invite", State: "revoked"}, nil)
	})
}

// RotateInvites replaces the lookup secret: every link made so far leads
// nowhere, and contacts are told how to find this account from now on.
func (n *Node) RotateInvites(context.Context) error {
	return n.store.Update(func(tx *store.Tx) error {
		if err := n.revokeAll(tx); err != nil {
			return err
		}
		if err := n.rotateLookup(tx); err != nil {
			return err
		}
		return n.record(tx, &store.Event{Type: "invite", State: "rotated"}, nil)
	})
}

// revokeAll revokes every open invite; links that carry an old L are dead.
func (n *Node) revokeAll(tx *store.Tx) error {
	now := n.cfg.Now()
	for r, err := range store.Invites.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		row := r.Value
		if !inviteOpen(row, now) {
			continue
		}
		row.Revoked = true
		if err := store.Invites.Put(tx, row.Id, row); err != nil {
			return err
		}
	}
	return nil
}

// inviteOpen reports whether the invite still admits its bearer.
func inviteOpen(row *store.Invite, now time.Time) bool { return inviteState(row, now) == "open" }

func inviteState(row *store.Invite, now time.Time) string {
	switch {
	case row.UsedBy != nil:
		return "used"
	case row.Revoked:
		return "revoked"
	case row.Expires != 0 && now.UnixMilli() >= row.Expires:
		return "expired"
	}
	return "open"
}

func inviteOf(row *store.Invite, now time.Time) Invite {
	inv := Invite{
		ID: hex.EncodeToString(row.Id), Link: row.Link, Public: row.Public,
		Created: time.UnixMilli(row.Created), State: inviteState(row, now),
	}
	if row.Expires != 0 {
		inv.Expires = time.UnixMilli(row.Expires)
	}
	return inv
}

// reach says who can dial this node: direct (public address), relay (through a
// circuit), lan (private addresses only) or none.
func (n *Node) reach() string {
	if n.reachability.Load() == int32(network.ReachabilityPublic) || len(n.confirmed()) > 0 {
		return "direct"
	}
	reach := "none"
	for _, a := range n.host.Addrs() {
		switch {
		case isCircuit(a):
			return "relay"
		case manet.IsPublicAddr(a) && n.reachability.Load() != int32(network.ReachabilityPrivate):
			reach = "direct"
		case reach == "none":
			reach = "lan"
		}
	}
	return reach
}

func isCircuit(a multiaddr.Multiaddr) bool {
	_, err := a.ValueForProtocol(multiaddr.P_CIRCUIT)
	return err == nil
}

// hints picks the addresses that go into a link, best first: at most two.
func (n *Node) hints() (hints []identity.Hint, reach, advice string) {
	reach = n.reach()
	switch reach {
	case "lan":
		advice = "only devices on the same network can use this link; elsewhere, add a bootstrap node that both sides reach, or announce a public address (starling up --announce)"
	case "none":
		advice = "this node has no address that others could dial; the link works once both sides share a bootstrap node"
	}
	t, _ := transportOf(n.host.ID())
	return bestHints(t, n.host.Addrs()), reach, advice
}

// bestHints picks from the addresses of the node with the key t.
func bestHints(t identity.Transport, addrs []multiaddr.Multiaddr) (hints []identity.Hint) {
	var best []identity.Hint
	for rank := range ranks {
		for _, a := range addrs {
			if h, ok := hintOf(t, a); ok && rankOf(a) == rank {
				best = append(best, h)
			}
		}
	}
	for _, h := range best {
		if h.Transport != t && slices.ContainsFunc(hints, func(known identity.Hint) bool { return known.Transport == h.Transport }) {
			continue // another relay, or an address of our own, is worth more
		}
		l := identity.Link{Hints: append(hints[:len(hints):len(hints)], h)}
		if l.Check() == nil {
			hints = l.Hints
		}
	}
	return hints
}

// rankOf orders addresses for a link: circuits, over QUIC first, which libp2p
// has only where nobody can dial this node; then public, private, loopback.
func rankOf(a multiaddr.Multiaddr) int {
	_, err := a.ValueForProtocol(multiaddr.P_QUIC_V1)
	switch {
	case isCircuit(a) && err == nil:
		return 0
	case isCircuit(a):
		return 1
	case manet.IsPublicAddr(a):
		return 2
	case manet.IsIPLoopback(a):
		return 4
	}
	return 3
}

const ranks = 5 // that rankOf knows

// hintOf returns a as a hint, if it is an IP address with QUIC or TCP. Of a
// circuit it is the relay: whoever asks there joins the network, if the relay
// does not have the record itself.
func hintOf(t identity.Transport, a multiaddr.Multiaddr) (identity.Hint, bool) {
	if isCircuit(a) {
		relay, err := a.ValueForProtocol(multiaddr.P_P2P)
		if err != nil {
			return identity.Hint{}, false
		}
		id, err := peer.Decode(relay)
		if err != nil {
			return identity.Hint{}, false
		}
		var ok bool
		if t, ok = transportOf(id); !ok {
			return identity.Hint{}, false
		}
	}
	na, err := manet.ToNetAddr(firstTwo(a))
	if err != nil {
		return identity.Hint{}, false
	}
	ap, err := netip.ParseAddrPort(na.String())
	if err != nil || ap.Addr().Zone() != "" {
		return identity.Hint{}, false
	}
	h := identity.Hint{Transport: t, Addr: ap.Addr().Unmap(), Port: ap.Port()}
	if _, err := a.ValueForProtocol(multiaddr.P_QUIC_V1); err == nil {
		h.Network = identity.QUIC
		return h, true
	}
	_, err = a.ValueForProtocol(multiaddr.P_TCP)
	h.Network = identity.TCP
	return h, err == nil
}

// firstTwo cuts an address down to its network and transport.
func firstTwo(a multiaddr.Multiaddr) multiaddr.Multiaddr {
	if len(a) > 2 {
		return a[:2]
	}
	return a
}

// hintEndpoint returns where to dial the node that a hint names.
func hintEndpoint(h identity.Hint) (identity.Endpoint, error) {
	ip := "ip4"
	host := h.Addr.String()
	switch {
	case h.Name != "":
		ip, host = "dns", h.Name
	case h.Addr.Is6():
		ip = "ip6"
	}
	text := fmt.Sprintf("/%s/%s/tcp/%d", ip, host, h.Port)
	if h.Network == identity.QUIC {
		text = fmt.Sprintf("/%s/%s/udp/%d/quic-v1", ip, host, h.Port)
	}
	a, err := multiaddr.NewMultiaddr(text)
	if err != nil {
		return identity.Endpoint{}, fmt.Errorf("reading a hint: %w", err)
	}
	return identity.Endpoint{Transport: h.Transport, Addrs: [][]byte{a.Bytes()}}, nil
}
