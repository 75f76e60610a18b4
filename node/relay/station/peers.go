package station

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
)

// bootstrap lists the bootstrap nodes of the settings and of the store.
func (s *Station) bootstrap() ([]peer.AddrInfo, error) {
	var list []peer.AddrInfo
	for _, a := range s.cfg.Bootstrap {
		info, err := peer.AddrInfoFromString(a)
		if err != nil {
			return nil, err
		}
		list = append(list, *info)
	}
	stored, err := readPeers(s.cfg.Store, store.Bootstrap)
	return append(list, stored...), err
}

// readPeers reads a table of peers. Rows that name nobody are left out.
func readPeers(db *store.DB, table store.Table[store.Peer, *store.Peer]) (list []peer.AddrInfo, err error) {
	err = db.View(func(tx *store.Tx) error {
		for row, err := range table.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			info := peer.AddrInfo{}
			pub, err := crypto.UnmarshalEd25519PublicKey(row.Value.TransportKey)
			if err != nil {
				continue
			}
			if info.ID, err = peer.IDFromPublicKey(pub); err != nil {
				continue
			}
			for _, b := range row.Value.Addrs {
				if a, err := multiaddr.NewMultiaddrBytes(b); err == nil {
					info.Addrs = append(info.Addrs, a)
				}
			}
			list = append(list, info)
		}
		return nil
	})
	return list, err
}

// goodPeers keeps those of the DHT's good peers that are relays too, so that a
// restart needs no bootstrap. The others are people's nodes, whose peer IDs a
// relay does not write down (SPEC §13.12).
type goodPeers struct {
	db    *store.DB
	now   func() time.Time
	relay func(peer.ID) bool
}

// isRelay reports whether a peer said that it is one.
func (s *Station) isRelay(p peer.ID) bool {
	spoken, err := s.host.Peerstore().SupportsProtocols(p, protocol.StreamRelay)
	return err == nil && len(spoken) > 0
}

// LoadPeers implements dht.PeerStore.
func (g goodPeers) LoadPeers() ([]peer.AddrInfo, error) { return readPeers(g.db, store.Peers) }

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
			pub, err := info.ID.ExtractPublicKey()
			if err != nil || !g.relay(info.ID) {
				continue
			}
			t, err := transportOfPublic(pub)
			if err != nil {
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

// transportOf returns the transport key of a private key.
func transportOf(key crypto.PrivKey) (identity.Transport, error) {
	return transportOfPublic(key.GetPublic())
}

func transportOfPublic(pub crypto.PubKey) (identity.Transport, error) {
	if pub.Type() != crypto.Ed25519 {
		return identity.Transport{}, fmt.Errorf("station: a key of type %s, not Ed25519", pub.Type())
	}
	raw, err := pub.Raw()
	if err != nil {
		return identity.Transport{}, err
	}
	return identity.ParseTransport(raw)
}
