package session

import (
	"time"

	"starling/node/store"
	"starling/protocol/ratchet"
)

// An Observer sees what the ratchets of a device do, and no secret of it, so
// that tests and simulations can hold it against what must never happen. Its
// methods are called on the store's writer, inside a transaction: they must
// neither block nor call the store. The transaction may still be discarded, so
// that the same message is opened again later.
type Observer interface {
	// Sealed is told of every message sealed.
	Sealed(ratchet.Observation)
	// Opened is told of every message opened: what Sealed was told of it at its
	// sender. Bytes that were opened before are [Observer.Repeated].
	Opened(ratchet.Observation)
	// Repeated is told of every envelope that was opened before: its answer was
	// lost, or a second copy came another way.
	Repeated()
	// Refused is told of every envelope that had no effect: it did not open, or
	// what it did was discarded. Before and after are [store.Tx.Digest] around
	// it, so they cover every session and every other row; they are equal unless
	// there is a bug. The node calls it.
	Refused(before, after [32]byte)
}

// A Saboteur is an Observer that has the node do what it must never do, so that
// tests see that this is found. Only tests have one.
type Saboteur interface {
	Observer
	// Early is how long before it commits a delivery the node answers it; if it
	// is 0, it commits first.
	Early() time.Duration
	// Spoil is called for every envelope that is refused, after what it did was
	// undone and before [Observer.Refused].
	Spoil(*store.Tx) error
}

// blind is the Observer that sees nothing.
type blind struct{}

func (blind) Sealed(ratchet.Observation) {}
func (blind) Opened(ratchet.Observation) {}
func (blind) Repeated()                  {}
func (blind) Refused(_, _ [32]byte)      {}
