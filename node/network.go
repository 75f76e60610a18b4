package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"starling/dht"
	"starling/node/store"
	"starling/protocol/identity"
	"starling/protocol/prekey"
)

// openDHT joins the DHT with the bootstrap nodes of the settings and of the
// store.
func (n *Node) openDHT() error {
	boot, err := n.bootstrap()
	if err != nil {
		return err
	}
	n.dht, err = dht.New(dht.Config{
		Host: n.host, Mode: n.cfg.DHT, AllowPrivate: n.cfg.Local, NoDiversity: n.cfg.Local,
		Bootstrap: boot, Peers: goodPeers{n.store, n.cfg.Now}, Own: n.own.get, OnLookup: n.cfg.OnLookup, Refresh: n.cfg.DHTRefresh, Table: n.cfg.DHTTable, Yield: n.cfg.Conns != 0, Now: n.cfg.Now, Log: n.log,
	})
	return err
}

// bootstrap lists the bootstrap nodes of the settings and of the store.
func (n *Node) bootstrap() ([]peer.AddrInfo, error) {
	var list []peer.AddrInfo
	for _, s := range n.cfg.Bootstrap {
		info, err := peer.AddrInfoFromString(s)
		if err != nil {
			return nil, err
		}
		list = append(list, *info)
	}
	err := n.store.View(func(tx *store.Tx) error {
		for row, err := range store.Bootstrap.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			list = append(list, infoOf(row.Value))
		}
		return nil
	})
	return list, err
}

func infoOf(row *store.Peer) peer.AddrInfo {
	t, err := identity.ParseTransport(row.TransportKey)
	if err != nil {
		return peer.AddrInfo{}
	}
	return addrInfo(identity.Endpoint{Transport: t, Addrs: row.Addrs})
}

// AddBootstrap adds a node to join the DHT through: a multiaddr with /p2p.
func (n *Node) AddBootstrap(_ context.Context, addr string) error {
	info, t, err := parseBootstrap(addr)
	if err != nil {
		return err
	}
	err = n.store.Update(func(tx *store.Tx) error {
		row, err := store.Bootstrap.Get(tx, store.PeerKey(t))
		if errors.Is(err, store.ErrNotFound) {
			row, err = &store.Peer{TransportKey: t[:]}, nil
		}
		if err != nil {
			return err
		}
		for _, a := range info.Addrs {
			if !slices.ContainsFunc(row.Addrs, func(b []byte) bool { return slices.Equal(b, a.Bytes()) }) {
				row.Addrs = append(row.Addrs, a.Bytes())
			}
		}
		row.Seen = n.cfg.Now().UnixMilli()
		return store.Bootstrap.Put(tx, store.PeerKey(t), row)
	})
	if err != nil {
		return err
	}
	return n.newBootstrap()
}

// ListBootstrap lists the added bootstrap nodes, and those of the settings.
func (n *Node) ListBootstrap(context.Context) ([]string, error) {
	list, err := n.bootstrap()
	var out []string
	for _, info := range list {
		addrs, err := peer.AddrInfoToP2pAddrs(&info)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			out = append(out, a.String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out), err
}

// RemoveBootstrap removes a node that AddBootstrap added.
func (n *Node) RemoveBootstrap(_ context.Context, addr string) error {
	info, t, err := parseBootstrap(addr)
	if err != nil {
		return err
	}
	err = n.store.Update(func(tx *store.Tx) error {
		row, err := store.Bootstrap.Get(tx, store.PeerKey(t))
		if errors.Is(err, store.ErrNotFound) {
			return &Error{Kind: KindNotFound, Msg: "this bootstrap node was not added here", Hint: "starling bootstrap list shows them; those of the settings file are removed there"}
		}
		if err != nil {
			return err
		}
		row.Addrs = slices.DeleteFunc(row.Addrs, func(b []byte) bool {
			return slices.ContainsFunc(info.Addrs, func(a multiaddr.Multiaddr) bool { return slices.Equal(b, a.Bytes()) })
		})
		if len(row.Addrs) == 0 {
			return store.Bootstrap.Delete(tx, store.PeerKey(t))
		}
		return store.Bootstrap.Put(tx, store.PeerKey(t), row)
	})
	if err != nil {
		return err
	}
	return n.newBootstrap()
}

func (n *Node) newBootstrap() error {
	list, err := n.bootstrap()
	if err != nil {
		return err
	}
	n.dht.SetBootstrap(list)
	return nil
}

func parseBootstrap(addr string) (*peer.AddrInfo, identity.Transport, error) {
	const hint = "give a multiaddr with /p2p, as starling status shows it under address"
	info, err := peer.AddrInfoFromString(addr)
	if err != nil || len(info.Addrs) == 0 {
		return nil, identity.Transport{}, &Error{Kind: KindInvalid, Msg: fmt.Sprintf("%q is not the address of a node", addr), Hint: hint}
	}
	t, ok := transportOf(info.ID)
	if !ok {
		return nil, identity.Transport{}, &Error{Kind: KindInvalid, Msg: "this node's key is not an Ed25519 key", Hint: hint}
	}
	return info, t, nil
}

// records are this account's records of today, as neighbours and bearers of a
// link ask for them.
type records struct{ p atomic.Pointer[[][]byte] }

func (r *records) get() [][]byte {
	if p := r.p.Load(); p != nil {
		return *p
	}
	return nil
}

// recordEvery is how often the own records are made anew while nothing changes.
const recordEvery = time.Hour

// republish makes the records anew and publishes them, because something that
// they say has changed.
func (n *Node) republish() {
	select {
	case n.stale <- struct{}{}:
	default: // it is noted already
	}
}

// makeRecords makes the own records of today anew.
func (n *Node) makeRecords() error {
	now := n.cfg.Now()
	list, err := n.recordsOf(now, prekey.DayOf(now))
	if err != nil {
		return err
	}
	own := make([][]byte, len(list))
	for i, r := range list {
		own[i] = r.Bytes
	}
	n.own.p.Store(&own)
	return nil
}

// keepRecords keeps the own records current. What fails, as on a full disk, is
// tried again with the next change.
func (n *Node) keepRecords(ctx context.Context) error {
	tick := time.NewTicker(recordEvery)
	defer tick.Stop()
	n.dht.Kick()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.stale:
		case <-tick.C:
		}
		if err := n.makeRecords(); err != nil {
			n.log.Warn("making the records of today", "err", err)
			continue
		}
		n.dht.Kick()
	}
}

// goodPeers keeps the DHT's good peers, so that a restart needs no bootstrap.
type goodPeers struct {
	db  *store.DB
	now func() time.Time
}

// LoadPeers implements dht.PeerStore.
func (g goodPeers) LoadPeers() ([]peer.AddrInfo, error) {
	var list []peer.AddrInfo
	err := g.db.View(func(tx *store.Tx) error {
		for row, err := range store.Peers.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			list = append(list, infoOf(row.Value))
		}
		return nil
	})
	return list, err
}

// SavePeers implements dht.PeerStore.
func (g goodPeers) SavePeers(list []peer.AddrInfo) error {
	now := g.now().UnixMilli()
	return g.db.Update(func(tx *store.Tx) error {
		for row, err := range store.Peers.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if err := store.Peers.Delete(tx, row.Key); err != nil {
				return err
			}
		}
		for _, info := range list {
			t, ok := transportOf(info.ID)
			if !ok {
				continue
			}
			row := &store.Peer{TransportKey: t[:], Seen: now}
			for _, a := range info.Addrs {
				row.Addrs = append(row.Addrs, a.Bytes())
			}
			if err := store.Peers.Put(tx, store.PeerKey(t), row); err != nil {
				return err
			}
		}
		return nil
	})
}
