package relay

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// maxPath is the longest path of a receipt: the height of a full group's tree.
const maxPath = 12

// ErrReceipt means that a receipt does not prove what it was given for. The
// deposit does not count as stored; leave it elsewhere too, and use the relay
// no more if it happens again.
var ErrReceipt = errors.New("relay: receipt does not verify")

// A Leaf stands for one deposit in its group's tree: SHA-256 of queue, hash of
// the blob and expiry, under LabelReceiptLeaf (SPEC §13.7).
type Leaf [sha256.Size]byte

// NewLeaf returns the leaf of a deposit. blob is the SHA-256 of what was
// deposited; expires is in unix seconds, as the deposit had it.
func NewLeaf(queue QueueID, blob [sha256.Size]byte, expires int64) Leaf {
	const label = protocol.LabelReceiptLeaf
	var in [len(label) + 1 + QueueIDSize + sha256.Size + 8]byte
	b := append(in[:0], label...)
	b = append(b, 0)
	b = append(b, queue[:]...)
	b = append(b, blob[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(expires))
	return sha256.Sum256(b)
}

// node returns the hash of two nodes. Its label differs from a leaf's, so that
// no inner node passes for a deposit.
func node(left, right [sha256.Size]byte) [sha256.Size]byte {
	const label = protocol.LabelReceiptNode
	var in [len(label) + 1 + 2*sha256.Size]byte
	b := append(in[:0], label...)
	b = append(b, 0)
	b = append(b, left[:]...)
	b = append(b, right[:]...)
	return sha256.Sum256(b)
}

// statement returns what a relay signs for a group. The count is in it: a path
// means one place only once the size of the tree is fixed.
func statement(root [sha256.Size]byte, count uint32, at int64) []byte {
	var n [4]byte
	var t [8]byte
	binary.BigEndian.PutUint32(n[:], count)
	binary.BigEndian.PutUint64(t[:], uint64(at))
	return append(append(root[:], n[:]...), t[:]...)
}

// A Signer signs with a relay's transport key; libp2p's private keys are ones.
type Signer interface {
	Sign(message []byte) ([]byte, error)
}

// A Group is a signed group of deposits. It holds 64 bytes for each, may be
// used by several goroutines, and should be forgotten when each has its receipt.
type Group struct {
	levels    [][][sha256.Size]byte // leaves first, root last
	at        int64
	signature [identity.SignatureSize]byte
}

// SignGroup signs leaves, 1 to [protocol.MaxGroup], as stored at the time at.
// Call it when all of them are on the disk, never before. The error is key's,
// or says that it is not an Ed25519 key; answer BUSY then: the deposits are
// there, and are repeated.
func SignGroup(leaves []Leaf, at time.Time, key Signer) (*Group, error) {
	if len(leaves) == 0 || len(leaves) > protocol.MaxGroup {
		panic(fmt.Sprintf("relay: internal error: a group of %d deposits, the store commits 1 to %d together", len(leaves), protocol.MaxGroup))
	}
	g := &Group{at: at.Unix()}
	level := make([][sha256.Size]byte, len(leaves))
	for i, l := range leaves {
		level[i] = l
	}
	g.levels = append(g.levels, level)
	for len(level) > 1 {
		// The tree of RFC 6962 §2.1, from below: a last node without a
		// neighbour moves up as it is.
		up := make([][sha256.Size]byte, 0, (len(level)+1)/2)
		for i := 0; i+1 < len(level); i += 2 {
			up = append(up, node(level[i], level[i+1]))
		}
		if len(level)%2 == 1 {
			up = append(up, level[len(level)-1])
		}
		g.levels = append(g.levels, up)
		level = up
	}
	body := statement(level[0], uint32(len(leaves)), g.at)
	sig, err := key.Sign(protocol.LabelReceipt.Bind(body))
	if err != nil {
		return nil, fmt.Errorf("relay: signing a group of %d: %w", len(leaves), err)
	}
	if len(sig) != identity.SignatureSize {
		return nil, errors.New("relay: the relay's key is not an Ed25519 key")
	}
	g.signature = [identity.SignatureSize]byte(sig)
	return g, nil
}

// Receipt returns the receipt of the leaf of index i.
func (g *Group) Receipt(i int) Receipt {
	r := Receipt{Index: uint32(i), Count: uint32(len(g.levels[0])), Time: g.at, Signature: g.signature}
	r.Path = make([][sha256.Size]byte, 0, len(g.levels)-1)
	for _, level := range g.levels[:len(g.levels)-1] {
		if sibling := i ^ 1; sibling < len(level) {
			r.Path = append(r.Path, level[sibling])
		}
		i /= 2
	}
	return r
}

// A Receipt is a relay's signed word that a deposit is on its disk, and will be
// there until the deposit's expiry unless the queue's reader deletes it first
// (SPEC §13.7). It shows neither queue nor blob.
type Receipt struct {
	Index     uint32 // of the deposit in its group
	Count     uint32 // deposits in the group
	Time      int64  // unix seconds by the relay's clock
	Path      [][sha256.Size]byte
	Signature [identity.SignatureSize]byte
}

// Wire returns the receipt's message.
func (r Receipt) Wire() *wire.RelayReceipt {
	path := make([]byte, 0, len(r.Path)*sha256.Size)
	for _, h := range r.Path {
		path = append(path, h[:]...)
	}
	return &wire.RelayReceipt{Index: r.Index, Count: r.Count, Time: r.Time, Path: path, Signature: r.Signature[:]}
}

// ReceiptFromWire returns the receipt that w holds, or an error that wraps
// [ErrReceipt] if it could be nobody's: another length of path than its place
// in the group has, in particular.
func ReceiptFromWire(w *wire.RelayReceipt) (Receipt, error) {
	r := Receipt{Index: w.GetIndex(), Count: w.GetCount(), Time: w.GetTime()}
	switch {
	case r.Count == 0 || r.Count > protocol.MaxGroup || r.Index >= r.Count:
		return Receipt{}, fmt.Errorf("%w: deposit %d of %d", ErrReceipt, r.Index, r.Count)
	case len(w.GetPath()) != pathLength(r.Index, r.Count)*sha256.Size:
		return Receipt{}, fmt.Errorf("%w: a path of %d bytes for deposit %d of %d", ErrReceipt, len(w.GetPath()), r.Index, r.Count)
	case len(w.GetSignature()) != identity.SignatureSize:
		return Receipt{}, fmt.Errorf("%w: a signature of %d bytes", ErrReceipt, len(w.GetSignature()))
	case !validTime(r.Time):
		return Receipt{}, fmt.Errorf("%w: its time is out of range", ErrReceipt)
	}
	for p := w.GetPath(); len(p) > 0; p = p[sha256.Size:] {
		r.Path = append(r.Path, [sha256.Size]byte(p))
	}
	copy(r.Signature[:], w.GetSignature())
	return r, nil
}

// pathLength returns the number of hashes in the path of leaf index of count:
// one a level, except where the node is the last without a neighbour.
func pathLength(index, count uint32) int {
	last := count - 1
	shared := bits.Len32(index ^ last) // levels below which the two paths differ
	// Up to where its path meets the last leaf's, a node has a neighbour; from
	// there on only where it is the right one.
	return shared + bits.OnesCount32(index>>shared)
}

// root returns the root that the receipt gives leaf, or false if its shape is
// impossible.
func (r Receipt) root(leaf Leaf) (root [sha256.Size]byte, ok bool) {
	if r.Count == 0 || r.Count > protocol.MaxGroup || r.Index >= r.Count || len(r.Path) != pathLength(r.Index, r.Count) {
		return root, false
	}
	h, path := [sha256.Size]byte(leaf), r.Path
	for i, last := r.Index, r.Count-1; last > 0; i, last = i/2, last/2 {
		switch {
		case i%2 == 1:
			h, path = node(path[0], h), path[1:]
		case i < last:
			h, path = node(h, path[0]), path[1:]
		}
	}
	return h, true
}

// Verify returns nil if the receipt proves that relay took the deposit of leaf,
// and [ErrReceipt] otherwise. relay is the key of the connection, and leaf made
// from what was sent: nothing of it comes from the answer.
func (r Receipt) Verify(relay identity.Transport, leaf Leaf) error {
	v := Verifier{relay: relay}
	return v.Verify(leaf, r)
}

// A Verifier checks receipts of one relay. It remembers the last group whose
// signature it verified, so that a depositor with many deposits in one group
// verifies one signature. It is not safe for concurrent use.
type Verifier struct {
	relay     identity.Transport
	root      [sha256.Size]byte
	count     uint32 // 0: none verified yet
	at        int64
	signature [identity.SignatureSize]byte
}

// NewVerifier returns a verifier of relay's receipts.
func NewVerifier(relay identity.Transport) *Verifier { return &Verifier{relay: relay} }

// Verify is [Receipt.Verify] for the verifier's relay.
func (v *Verifier) Verify(leaf Leaf, r Receipt) error {
	root, ok := r.root(leaf)
	if !ok {
		return ErrReceipt
	}
	// The signature is compared too: a receipt is kept as evidence, and one
	// with another signature would be none.
	if root == v.root && r.Count == v.count && r.Time == v.at && r.Signature == v.signature {
		return nil
	}
	if v.relay.Verify(protocol.LabelReceipt, statement(root, r.Count, r.Time), r.Signature[:]) != nil {
		return ErrReceipt
	}
	v.root, v.count, v.at, v.signature = root, r.Count, r.Time, r.Signature
	return nil
}
