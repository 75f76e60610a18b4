package node

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/multiformats/go-multiaddr"

	"starling/node/store"
	"starling/protocol/identity"
)

// Status says how the node stands. What the store could not tell is left out.
func (n *Node) Status() Status {
	s := Status{
		Account: n.account().String(), PeerID: n.host.ID().String(), Reach: n.reach(),
		Connected: len(n.host.Network().Peers()), DHTPeers: n.dht.Peers(), DHTMode: n.dht.Mode(),
		Started: n.started, Published: n.dht.LastPublished(), RolledBack: n.rolledBack,
	}
	for _, a := range n.host.Addrs() {
		s.Addrs = append(s.Addrs, a.String())
		s.BootstrapAddrs = append(s.BootstrapAddrs, a.String()+"/p2p/"+s.PeerID)
	}
	for _, a := range n.confirmed() {
		s.Confirmed = append(s.Confirmed, a.String())
	}
	best := n.connections()
	err := n.store.View(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err != nil {
			return err
		}
		s.Name = me.Name
		if s.Journal, err = lastEvent(tx); err != nil {
			return err
		}
		for row, err := range store.OwnRelays.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if row.Value.Leaving == 0 {
				s.Relays = append(s.Relays, peerOf(row.Key.Relay()).String())
			}
		}
		for row, err := range store.Contacts.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if row.Value.State == store.Contact_REQUEST {
				s.Requests++
				continue
			}
			s.Contacts++
			if c := best[accountOf(row.Value)]; c != nil {
				s.Connections = append(s.Connections, Connection{
					Contact: row.Value.Name, Account: accountOf(row.Value).String(),
					Path: pathOf(c), Addr: c.RemoteMultiaddr().String(), Opened: c.Stat().Opened,
				})
			}
		}
		for row, err := range store.Outbox.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if !row.Value.Control {
				s.Queued++
			}
		}
		return nil
	})
	if err != nil {
		n.log.Error("reading the status", "err", err)
	}
	slices.SortFunc(s.Connections, func(a, b Connection) int { return cmp.Compare(a.Contact, b.Contact) })
	return s
}

// connections returns the best connection to each account that says the key at
// its other end is theirs.
func (n *Node) connections() map[identity.Account]network.Conn {
	best := make(map[identity.Account]network.Conn)
	for _, c := range n.host.Network().Conns() {
		for _, a := range n.routes.accounts(c.RemotePeer()) {
			if known := best[a]; known == nil || pathOf(known) == PathCircuit && pathOf(c) == PathDirect {
				best[a] = c
			}
		}
	}
	return best
}

// pathOf says how a connection runs.
func pathOf(c network.Conn) Path {
	if isCircuit(c.RemoteMultiaddr()) {
		return PathCircuit
	}
	return PathDirect
}

// confirmed returns the public addresses at which peers were seen to reach this
// node.
func (n *Node) confirmed() []multiaddr.Multiaddr {
	h, ok := n.host.(interface {
		ConfirmedAddrs() (reachable, unreachable, unknown []multiaddr.Multiaddr)
	})
	if !ok {
		return nil
	}
	reachable, _, _ := h.ConfirmedAddrs()
	return reachable
}

// age says how long ago t was, in words.
func age(t, now time.Time) string {
	d := now.Sub(t)
	switch {
	case d < time.Minute:
		return "less than a minute ago"
	case d < time.Hour:
		return plural(int(d/time.Minute), "minute") + " ago"
	case d < 24*time.Hour:
		return plural(int(d/time.Hour), "hour") + " ago"
	}
	return plural(int(d/(24*time.Hour)), "day") + " ago"
}
