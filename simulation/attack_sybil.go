package simulation

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	libnet "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libproto "github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"starling/dht/record"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// A Lie is what sybils answer to those who ask for the record.
type Lie int

// Lies.
const (
	LieOld     Lie = iota // the oldest record of the target that any of them was given: a rollback
	LieNothing            // that there is none
	LieGarbage            // a record with one bit turned over, or noise if they have none
)

// String returns the lie as scenario files spell it.
func (l Lie) String() string {
	switch l {
	case LieOld:
		return "old"
	case LieNothing:
		return "nothing"
	case LieGarbage:
		return "garbage"
	}
	return fmt.Sprintf("Lie(%d)", int(l))
}

// Requests counts what sybils were asked.
type Requests struct {
	FindNode, GetValue, PutValue, Ping, Other int

	// OldOffered is how many answers carried a record older than the newest
	// that the target had given to any of them by then.
	OldOffered int
}

const (
	kadID      libproto.ID = protocol.KadPrefix + "/kad/1.0.0"
	kadCloser              = 20        // peers in an answer, as honest servers give
	kadFrame               = 256 << 10 // bytes of a request; honest ones have a record at most
	kadRest                = time.Minute
	maxGrind               = 1 << 22 // keys drawn for one attack: two minutes of one core
	ed25519ID              = "\x00\x24\x08\x01\x12\x20"
	garbageLen             = 4 << 10
)

// A distance is how far two places of the key space are apart, as Kademlia
// measures: the XOR of the SHA-256 of their keys.
type distance [sha256.Size]byte

func (d distance) compare(e distance) int { return bytes.Compare(d[:], e[:]) }

// farthest is no place in particular.
func farthest() (d distance) {
	for i := range d {
		d[i] = 0xff
	}
	return d
}

// kadKey returns the DHT key of a record's key (SPEC §10).
func kadKey(key [record.KeySize]byte) []byte {
	return append([]byte(protocol.KadPrefix+"/"), key[:]...)
}

// distanceTo returns how far the peer is from the record.
func distanceTo(key [record.KeySize]byte, p peer.ID) (d distance) {
	at, stands := sha256.Sum256(kadKey(key)), sha256.Sum256([]byte(p))
	subtle.XORBytes(d[:], at[:], stands[:])
	return d
}

// errGrind means that an honest node stands so near the key that it would take
// too long to come nearer. Take another seed, day or replica.
var errGrind = errors.New("simulation: no peer ID is nearer to the key than the nearest honest node within a reasonable number of draws")

// grind draws n identities that are all nearer to key than limit, the nearest
// first. Among N honest nodes that takes about N draws for each, of 25 µs. The
// error is errGrind if it takes more than draws.
func grind(r *rand.Rand, key [record.KeySize]byte, limit distance, n, draws int) ([]crypto.PrivKey, error) {
	type found struct {
		seed [ed25519.SeedSize]byte
		away distance
	}
	var list []found
	for range draws {
		if len(list) == n {
			break
		}
		var f found
		for i := range len(f.seed) / 8 {
			binary.BigEndian.PutUint64(f.seed[8*i:], r.Uint64())
		}
		public := ed25519.NewKeyFromSeed(f.seed[:]).Public().(ed25519.PublicKey)
		if f.away = distanceTo(key, peer.ID(ed25519ID+string(public))); f.away.compare(limit) < 0 {
			list = append(list, f)
		}
	}
	if len(list) < n {
		return nil, errGrind
	}
	slices.SortFunc(list, func(a, b found) int { return a.away.compare(b.away) })
	keys := make([]crypto.PrivKey, n)
	for i, f := range list {
		var err error
		if keys[i], err = crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(f.seed[:])); err != nil {
			return nil, fmt.Errorf("making the key of a sybil: %w", err)
		}
	}
	return keys, nil
}

// A cabal is sybils that act as one. They hold the public link of their target,
// so they can tell its records from others and old ones from new. It is safe
// for concurrent use.
type cabal struct {
	account identity.Account
	lookup  identity.LookupSecret
	lie     Lie
	noise   []byte
	members []peer.AddrInfo // the nearest first; not changed once the first of them listens

	mu      sync.Mutex // guards what follows; never held across a wait
	hoards  map[[record.KeySize]byte]*hoard
	newest  record.Version // that the target has published, as far as they know
	counted Requests
}

// A hoard is what a cabal was given under one key.
type hoard struct {
	first          []byte // the record that it will never let go of
	oldest, newest record.Version
}

func newCabal(l identity.Link, lie Lie, r *rand.Rand) *cabal {
	c := &cabal{account: l.Account, lookup: l.Lookup, lie: lie, hoards: map[[record.KeySize]byte]*hoard{}}
	for range garbageLen / 8 {
		c.noise = binary.BigEndian.AppendUint64(c.noise, r.Uint64())
	}
	return c
}

// requests returns what was counted so far.
func (c *cabal) requests() Requests {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counted
}

// newestVersion returns the highest version that the target is known to have
// published.
func (c *cabal) newestVersion() record.Version {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest
}

// serve speaks Kademlia on a stream, as self, and means none of it.
func (c *cabal) serve(self peer.ID, s libnet.Stream) {
	r := bufio.NewReader(s)
	for {
		if err := s.SetDeadline(time.Now().Add(kadRest)); err != nil {
			break
		}
		b, err := wire.ReadFrame(r, kadFrame)
		if err != nil {
			break
		}
		m := new(pb.Message)
		if err := proto.Unmarshal(b, m); err != nil {
			break
		}
		answer := c.answer(self, m, time.Now())
		if answer == nil {
			break
		}
		if b, err = proto.Marshal(answer); err != nil {
			break
		}
		if err := wire.WriteFrame(s, b); err != nil {
			break
		}
	}
	_ = s.Reset() // answers were read by now, as every one is waited for
}

// answer returns what self says to m, or nil if it says nothing.
func (c *cabal) answer(self peer.ID, m *pb.Message, now time.Time) *pb.Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := pb.NewMessage(m.GetType(), m.GetKey(), m.GetClusterLevel())
	switch m.GetType() {
	case pb.Message_FIND_NODE:
		c.counted.FindNode++
		a.Key = nil
		a.CloserPeers = c.others(self)
	case pb.Message_GET_VALUE:
		c.counted.GetValue++
		a.CloserPeers = c.others(self)
		if rec := c.falseLocked(m.GetKey()); rec != nil {
			a.Record = &recpb.Record{Key: m.GetKey(), Value: rec}
		}
	case pb.Message_PUT_VALUE:
		c.counted.PutValue++
		c.keepLocked(m.GetKey(), m.GetRecord().GetValue(), now)
		a.Record = m.GetRecord() // "it is in good hands"
	case pb.Message_PING:
		c.counted.Ping++
	default:
		c.counted.Other++
		return nil
	}
	return a
}

// others returns the accomplices of self: nobody else is ever named.
func (c *cabal) others(self peer.ID) []*pb.Message_Peer {
	var list []peer.AddrInfo
	for _, p := range c.members {
		if p.ID != self && len(list) < kadCloser {
			list = append(list, p)
		}
	}
	peers := pb.RawPeerInfosToPBPeers(list)
	for _, p := range peers {
		p.Connection = pb.Message_CONNECTED
	}
	return peers
}

// keepLocked keeps a record of the target if it is the oldest under its key.
func (c *cabal) keepLocked(key, rec []byte, now time.Time) {
	k, ok := bytes.CutPrefix(key, []byte(protocol.KadPrefix+"/"))
	if !ok || len(k) != record.KeySize {
		return
	}
	at := [record.KeySize]byte(k)
	if record.Validate(at, rec, now) != nil {
		return
	}
	body, err := record.Open(rec, c.account, c.lookup, now)
	if err != nil {
		return // somebody else's
	}
	v := body.Version()
	if v.Compare(c.newest) > 0 {
		c.newest = v
	}
	h := c.hoards[at]
	if h == nil {
		c.hoards[at] = &hoard{first: bytes.Clone(rec), oldest: v, newest: v}
		return
	}
	if v.Compare(h.oldest) < 0 {
		h.first, h.oldest = bytes.Clone(rec), v
	}
	if v.Compare(h.newest) > 0 {
		h.newest = v
	}
}

// falseLocked returns the record that the cabal gives out under a key, or nil.
func (c *cabal) falseLocked(key []byte) []byte {
	k, _ := bytes.CutPrefix(key, []byte(protocol.KadPrefix+"/"))
	if len(k) != record.KeySize {
		return nil
	}
	h := c.hoards[[record.KeySize]byte(k)]
	switch {
	case c.lie == LieGarbage && h == nil:
		return c.noise
	case c.lie == LieGarbage:
		bad := bytes.Clone(h.first)
		bad[len(bad)/2] ^= 1
		return bad
	case c.lie == LieOld && h != nil:
		if h.oldest.Compare(h.newest) < 0 {
			c.counted.OldOffered++
		}
		return h.first
	}
	return nil
}
