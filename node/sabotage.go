package node

import (
	"errors"
	"time"

	"starling/node/store"
	"starling/node/stream"
	"starling/protocol/wire"
)

// answerEarly answers a delivery and commits it a while later: the bug that a
// [session.Saboteur] asks for. What it answers it finds out in a transaction
// that it discards.
func (n *Node) answerEarly(conn *stream.Conn, d *wire.Delivery, by time.Duration) error {
	var outcomes []*wire.Outcome
	discard := errors.New("node: discarded")
	err := n.store.Update(func(tx *store.Tx) error {
		for _, e := range d.Envelopes {
			o, opens, err := n.receive(tx, way{peer: conn.Remote()}, e)
			if err != nil {
				return err
			}
			outcomes = append(outcomes, o)
			if !opens {
				break
			}
		}
		return discard
	})
	if !errors.Is(err, discard) {
		return err
	}
	for len(outcomes) < len(d.Envelopes) {
		outcomes = append(outcomes, &wire.Outcome{Status: wire.Status_STATUS_BUSY})
	}
	if err := conn.Write(wire.Marshal(&wire.DeliveryAnswer{Outcomes: outcomes})); err != nil {
		return err
	}
	time.Sleep(by)
	_, err = n.receiveAll(conn.Remote(), d.Envelopes)
	return err
}
