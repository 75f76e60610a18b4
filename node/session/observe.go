package session

import (
	"crypto/sha256"
	"time"

	"google.golang.org/protobuf/proto"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/prekey"
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
	// the transaction that opened it was discarded. Before and after are
	// [Manager.Digest] around it; they are equal unless there is a bug. The
	// node calls it.
	Refused(before, after [32]byte)
}

// A Saboteur is an Observer that has the node do what it must never do, so that
// tests see that this is found. Only tests have one.
type Saboteur interface {
	Observer
	// Early is how long before it commits a delivery the node answers it; if it
	// is 0, it commits first.
	Early() time.Duration
}

// blind is the Observer that sees nothing.
type blind struct{}

func (blind) Sealed(ratchet.Observation) {}
func (blind) Opened(ratchet.Observation) {}
func (blind) Repeated()                  {}
func (blind) Refused(_, _ [32]byte)      {}

// Digest returns a hash of the session that an envelope names, of its row and
// its skipped keys, and zeros if there is no such session or the envelope names
// none. It tells an [Observer] whether a refused envelope changed anything; a
// node without one does not pay for it.
func (m *Manager) Digest(tx *store.Tx, b []byte) (sum [32]byte) {
	if len(b) > protocol.MaxEnvelope {
		return sum
	}
	e, err := envelope.Parse(b)
	if err != nil {
		return sum
	}
	id := prekey.SessionID(e.Session)
	owner, err := store.SessionOwners.Get(tx, store.SessionOwnerKey(id))
	if err != nil {
		return sum
	}
	row, err := store.Sessions.Get(tx, store.RowKey(owner.Data))
	if err != nil {
		return sum
	}
	h := sha256.New()
	add := func(key store.RowKey, row proto.Message) {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(row)
		if err != nil {
			panic("session: internal error: a row that was read cannot be written")
		}
		one := sha256.Sum256(b)
		h.Write(key) // of one size in each table
		h.Write(one[:])
	}
	add(store.RowKey(owner.Data), row)
	for r, err := range store.SkippedKeys.Scan(tx, store.SkippedOf(id), nil) {
		if err != nil {
			h.Write(r.Key) // a damaged row, or the disk's error
			continue
		}
		add(r.Key, r.Value)
	}
	h.Sum(sum[:0])
	return sum
}
