package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/multiformats/go-multiaddr"

	"starling/node/relay/client"
	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
)

// AddRelay names a relay of a link that its operator gave: what is sent to this
// user while they are away waits there. It never needs the network; Relays says
// what became of it. A relay that is named already gets the addresses and the
// admission token of the link.
func (n *Node) AddRelay(_ context.Context, text string) (Relay, error) {
	link, err := relay.ParseLink(text)
	if err != nil {
		return Relay{}, &Error{Kind: KindInvalid, Msg: err.Error(), Hint: "ask the relay's operator for it again: starling-relay link prints it"}
	}
	row := &store.OwnRelay{Added: n.cfg.Now().UnixMilli()}
	for _, h := range link.Hints {
		e, err := hintEndpoint(h)
		if err != nil {
			return Relay{}, err
		}
		row.Addrs = append(row.Addrs, e.Addrs...)
	}
	if link.Admission != (relay.Admission{}) {
		row.Admission = link.Admission[:]
	}
	err = n.store.Update(func(tx *store.Tx) error {
		named := 0
		for r, err := range store.OwnRelays.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if r.Key.Relay() == link.Transport {
				row.Added, row.Store = r.Value.Added, r.Value.Store
				continue
			}
			if r.Value.Leaving == 0 {
				named++
			}
		}
		if named >= protocol.MaxRelays {
			return &Error{
				Kind: KindExists, Msg: fmt.Sprintf("%d relays are named already, which is the most", protocol.MaxRelays),
				Hint: "leave one first: starling relay remove takes what starling relay list shows",
			}
		}
		if err := store.OwnRelays.Put(tx, store.PeerKey(link.Transport), row); err != nil {
			return err
		}
		tx.OnCommit(n.relaysChanged)
		return n.record(tx, &store.Event{Type: "relay", State: "added", Text: peerOf(link.Transport).String()}, nil)
	})
	if err != nil {
		return Relay{}, err
	}
	return n.relay(link.Transport)
}

// RemoveRelay leaves the relay that who names: its peer ID, or the beginning of
// it. Contacts are told to use it no more; what is on its way is still read
// until nothing can be.
func (n *Node) RemoveRelay(_ context.Context, who string) error {
	return n.store.Update(func(tx *store.Tx) error {
		var found []identity.Transport
		var row *store.OwnRelay
		for r, err := range store.OwnRelays.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if r.Value.Leaving == 0 && who != "" && fitsID(peerOf(r.Key.Relay()).String(), who) {
				found, row = append(found, r.Key.Relay()), r.Value
			}
		}
		switch {
		case len(found) == 0:
			return &Error{Kind: KindNotFound, Msg: fmt.Sprintf("no relay is named %q here", who), Hint: "starling relay list shows them"}
		case len(found) > 1:
			return &Error{Kind: KindAmbiguous, Msg: fmt.Sprintf("%q fits several relays", who), Hint: "give more of it, as starling relay list shows it"}
		}
		row.Leaving = n.cfg.Now().UnixMilli()
		if err := store.OwnRelays.Put(tx, store.PeerKey(found[0]), row); err != nil {
			return err
		}
		tx.OnCommit(n.relaysChanged)
		return n.record(tx, &store.Event{Type: "relay", State: "leaving", Text: peerOf(found[0]).String()}, nil)
	})
}

// fitsID reports whether somebody who writes part of an ID may mean this one: its
// beginning, or its end, by which the doctor names relays.
func fitsID(id, part string) bool { return strings.HasPrefix(id, part) || strings.HasSuffix(id, part) }

// Relays lists the relays that this user names, oldest first, and those being
// left.
func (n *Node) Relays(context.Context) ([]Relay, error) {
	var list []Relay
	err := n.store.View(func(tx *store.Tx) error {
		for r, err := range store.OwnRelays.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			v, err := n.relayOf(tx, r.Key.Relay(), r.Value)
			if err != nil {
				return err
			}
			list = append(list, v)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b Relay) int { return a.Added.Compare(b.Added) })
	return list, err
}

func (n *Node) relay(t identity.Transport) (r Relay, err error) {
	err = n.store.View(func(tx *store.Tx) error {
		row, err := store.OwnRelays.Get(tx, store.PeerKey(t))
		if errors.Is(err, store.ErrNotFound) {
			return &Error{Kind: KindNotFound, Msg: "this relay was removed"}
		}
		if err == nil {
			r, err = n.relayOf(tx, t, row)
		}
		return err
	})
	return r, err
}

// relayOf says what the user is told of a relay.
func (n *Node) relayOf(tx *store.Tx, t identity.Transport, row *store.OwnRelay) (Relay, error) {
	r := Relay{ID: peerOf(t).String(), Added: time.UnixMilli(row.Added)}
	for _, b := range row.Addrs {
		if a, err := multiaddr.NewMultiaddrBytes(b); err == nil {
			r.Addrs = append(r.Addrs, a.String())
		}
	}
	for q, err := range store.OwnQueues.Scan(tx, store.OwnQueuesAt(t), nil) {
		if err != nil {
			return r, err
		}
		if q.Value.Expires != 0 && !q.Value.Over {
			r.Queues++
		}
	}
	st, _ := n.readers.status(t)
	r.Connected, r.Heard = st.Connected, st.LastPoll
	fault := st.TendError
	if fault == nil && !st.Connected {
		fault = st.LastError
	}
	switch {
	case row.Leaving != 0:
		r.State = "leaving"
		r.Detail = "being left; what is on its way there is read until " + time.UnixMilli(row.Leaving).Add(leavingLife).UTC().Format("2 January 2006")
	case row.Draining != 0:
		r.State = "draining"
		r.Detail = "it stops on " + time.Unix(row.Draining, 0).UTC().Format("2 January 2006") + "; name another relay"
	case row.Repeats:
		r.State = "dropped"
		r.Detail = "it gives one-time keys out twice, so contacts are not told of it any more"
	case errors.Is(fault, client.ErrRefused):
		r.State, r.Detail = "refused", "it makes no queues for this account; ask its operator for a link with a token"
	case errors.Is(fault, client.ErrQuota):
		r.State, r.Detail = "refused", "it has no room for this account"
	case fault != nil:
		r.State, r.Detail = "waiting", plainFault(fault)
	case r.Queues == 0:
		r.State, r.Detail = "new", "not in use yet"
	case st.Useless > protocol.MaxPoll:
		r.State = "suspect"
		r.Detail = fmt.Sprintf("the last %d things that it brought were of no use: it, or strangers through it, sends what nobody can open; if that goes on, leave it", st.Useless)
	default:
		r.State = "used"
	}
	return r, nil
}

// plainFault says for the user what is wrong with a relay.
func plainFault(err error) string {
	_, undialled := errors.AsType[*swarm.DialError](err)
	switch {
	case undialled:
		return "not reached: nothing answers at its addresses"
	case errors.Is(err, client.ErrQuota):
		return "it has no room"
	case errors.Is(err, client.ErrBusy):
		return "it is too busy, or has used up its traffic of this month"
	case errors.Is(err, client.ErrDraining):
		return "it is about to stop"
	case errors.Is(err, client.ErrRefused):
		return "it refuses"
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return "not reached: " + first
}

// repeatsProof is how many accounts have to come with one-time keys that others
// used before them until their relay is taken to give keys out twice.
const repeatsProof = 3

// relayRepeats notes that second used a one-time key of a relay that another used
// before, and when there are enough such cases, has contacts told of the relay no
// more. Nobody counts in two cases, since two people who agree can make any relay
// look like that. More of them still can: so the last relay that is in use stays.
func (n *Node) relayRepeats(tx *store.Tx, now time.Time, k *session.Repeated, second identity.Account) error {
	row, err := store.OwnRelays.Get(tx, store.PeerKey(k.Relay))
	if errors.Is(err, store.ErrNotFound) || err == nil && row.Repeats {
		return nil
	}
	if err != nil {
		return err
	}
	row.RepeatedKeys = slices.DeleteFunc(row.RepeatedKeys, func(c *store.RepeatedKey) bool {
		return now.Sub(time.UnixMilli(c.At)) >= protocol.DedupeLife
	})
	for _, c := range row.RepeatedKeys {
		if slices.Equal(c.First, second[:]) || slices.Equal(c.Second, second[:]) {
			return nil
		}
	}
	if len(row.RepeatedKeys) < repeatsProof {
		row.RepeatedKeys = append(row.RepeatedKeys, &store.RepeatedKey{First: k.First[:], Second: second[:], At: now.UnixMilli()})
	}
	others := 0
	for r, err := range store.OwnRelays.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		if inUse(r.Value) && r.Key.Relay() != k.Relay {
			others++
		}
	}
	if len(row.RepeatedKeys) < repeatsProof || others == 0 {
		return store.OwnRelays.Put(tx, store.PeerKey(k.Relay), row)
	}
	row.Repeats, row.RepeatedKeys = true, nil
	if err := store.OwnRelays.Put(tx, store.PeerKey(k.Relay), row); err != nil {
		return err
	}
	tx.OnCommit(n.tellAgain)
	tx.OnCommit(n.republish)
	return n.record(tx, &store.Event{Type: "relay", State: "dropped", Text: peerOf(k.Relay).String()}, nil)
}
