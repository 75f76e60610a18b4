package node

import (
	"time"

	"starling/dht"
	"starling/dht/record"
	"starling/node/store"
	"starling/protocol/identity"
	"starling/protocol/prekey"
)

// replicas of a day's record.
const replicas = 2

// recordSeq numbers the records of a day by the milliseconds since a day
// before it began: a store that came back from an old copy still counts up,
// and days do not show that they belong together.
func recordSeq(now time.Time, day uint32) uint64 {
	return uint64(max(0, now.Sub(prekey.DayStart(day).Add(-24*time.Hour)).Milliseconds()))
}

// publication is the node as the DHT sees it: where records come from.
type publication struct{ n *Node }

// Records implements dht.Source.
func (p publication) Records(now time.Time) ([]dht.Record, error) {
	var all []dht.Record
	for _, day := range dht.PublishDays(now) {
		list, err := p.n.recordsOf(now, day)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// recordsOf makes this account's records of a day, one a replica.
func (n *Node) recordsOf(now time.Time, day uint32) ([]dht.Record, error) {
	body := record.Body{Day: day, Seq: recordSeq(now, day), Endpoints: []identity.Endpoint{n.endpoint(false)}}
	var lookup identity.LookupSecret
	err := n.store.Update(func(tx *store.Tx) error {
		bundle, err := n.sessions.DayBundle(tx, now, day)
		if err != nil {
			return err
		}
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err != nil {
			return err
		}
		body.Bundles, body.ManifestBytes = [][]byte{bundle}, me.Manifest
		copy(lookup[:], me.LookupSecret)
		body.Mail, err = n.mailFor(tx, nil, ofDay(now, day))
		return err
	})
	if err != nil {
		return nil, err
	}
	if body.Manifest, err = identity.OpenManifest(body.ManifestBytes, n.account(), now); err != nil {
		return nil, err
	}
	list := make([]dht.Record, replicas)
	for r := range list {
		list[r].Key, list[r].Bytes, err = record.Make(n.cfg.Rand, n.self.account, lookup, byte(r), body.Seq, body)
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}
