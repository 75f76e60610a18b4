package node

import (
	"time"

	"starling/node/store"
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
		if isCircuit(a) {
			s.Relays = append(s.Relays, a.String())
		}
	}
	err := n.store.View(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err != nil {
			return err
		}
		s.Name = me.Name
		if s.Journal, err = lastEvent(tx); err != nil {
			return err
		}
		for row, err := range store.Contacts.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if row.Value.State == store.Contact_REQUEST {
				s.Requests++
			} else {
				s.Contacts++
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
	return s
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
