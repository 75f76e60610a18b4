package simulation

import (
	"bytes"
	"crypto/ed25519"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"starling/dht/record"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

func TestGroundKeysAreNearerThanEveryHonestNode(t *testing.T) {
	const honest, sybils = 50, 10
	key := [record.KeySize]byte{1, 2, 3}
	limit := farthest()
	r := source(7, "honest")
	for range honest {
		public, _, err := ed25519.GenerateKey(r)
		if err != nil {
			t.Fatal(err)
		}
		if d := distanceTo(key, peer.ID(ed25519ID+string(public))); d.compare(limit) < 0 {
			limit = d
		}
	}
	draw := func(seed uint64) (ids []peer.ID) {
		keys, err := grind(rand.New(source(seed, "sybils")), key, limit, sybils, maxGrind)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			id, err := peer.IDFromPrivateKey(k)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		return ids
	}
	ids := draw(1)
	for i, id := range ids {
		if d := distanceTo(key, id); d.compare(limit) >= 0 {
			t.Errorf("sybil %d is at %x, and the nearest honest node at %x", i, d, limit)
		} else if i > 0 && d.compare(distanceTo(key, ids[i-1])) <= 0 {
			t.Errorf("sybil %d is not farther than the one before", i)
		}
	}
	if !slices.Equal(ids, draw(1)) {
		t.Error("one seed gave two sets of keys")
	}
	if slices.Equal(ids, draw(2)) {
		t.Error("two seeds gave one set of keys")
	}
}

func TestGrindGivesUp(t *testing.T) {
	if _, err := grind(rand.New(source(1, "")), [record.KeySize]byte{}, distance{}, 1, 100); err != errGrind {
		t.Errorf("coming nearer than nothing: %v, want errGrind", err)
	}
}

// A publicist makes records of one account.
type publicist struct {
	testing.TB
	key      *identity.AccountKey
	link     identity.Link
	manifest []byte
}

func newPublicist(t testing.TB, name string) *publicist {
	r := source(1, name)
	draw := func() identity.Secret {
		s, err := identity.NewSecret(r)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	p := &publicist{TB: t, key: identity.NewAccountKey(draw())}
	p.link.Account = p.key.Account()
	if _, err := r.Read(p.link.Lookup[:]); err != nil {
		t.Fatal(err)
	}
	dh, err := x25519.Generate(r)
	if err != nil {
		t.Fatal(err)
	}
	d := identity.NewDeviceKey(draw(), dh)
	p.manifest = identity.SignManifest(p.key, 1, []identity.DeviceEntry{{Key: d.Device(), DH: dh.Public()}})
	return p
}

// put returns a request to hold the record with a number of today.
func (p *publicist) put(now time.Time, seq uint64) *pb.Message {
	p.Helper()
	transport := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)).Public().(ed25519.PublicKey)
	key, rec, err := record.Make(source(seq, "nonce"), p.key, p.link.Lookup, 0, seq, record.Body{
		ManifestBytes: p.manifest, Day: record.DayOf(now), Seq: seq,
		Bundles:   [][]byte{wire.Marshal(&wire.Signed{Body: make([]byte, 1700), Signature: make([]byte, 64)})},
		Endpoints: []identity.Endpoint{{Transport: identity.Transport(transport), Addrs: [][]byte{{4, 192, 0, 2, 1, 6, 15, 161}}}},
	})
	if err != nil {
		p.Fatal(err)
	}
	m := pb.NewMessage(pb.Message_PUT_VALUE, kadKey(key), 0)
	m.Record = &recpb.Record{Key: m.Key, Value: rec}
	return m
}

func TestSybilsLie(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	ada, bo := newPublicist(t, "Ada"), newPublicist(t, "Bo")
	older, old, newer, other := ada.put(now, 1), ada.put(now, 2), ada.put(now, 3), bo.put(now, 1)
	for _, tt := range []struct {
		lie         Lie
		empty, full func(rec []byte) bool // what is answered before and after the target has published
		old         int                   // answers that count as old
	}{
		{LieOld, func(b []byte) bool { return b == nil }, func(b []byte) bool { return bytes.Equal(b, older.Record.Value) }, 1},
		{LieNothing, func(b []byte) bool { return b == nil }, func(b []byte) bool { return b == nil }, 0},
		{LieGarbage, refused(old.Key, now), refused(old.Key, now), 0},
	} {
		t.Run(tt.lie.String(), func(t *testing.T) {
			c := newCabal(ada.link, tt.lie, rand.New(source(1, "cabal")))
			for i := range 30 {
				c.members = append(c.members, peer.AddrInfo{ID: peer.ID([]byte{byte(i)})})
			}
			self := c.members[3].ID
			get := func(key []byte) *pb.Message {
				return c.answer(self, pb.NewMessage(pb.Message_GET_VALUE, key, 0), now)
			}
			if got := get(old.Key); !tt.empty(got.GetRecord().GetValue()) {
				t.Errorf("before anything was published it answers with %d bytes", len(got.GetRecord().GetValue()))
			}
			for _, m := range []*pb.Message{old, other, newer, older} {
				if got := c.answer(self, m, now); !bytes.Equal(got.GetRecord().GetValue(), m.Record.Value) {
					t.Error("a PUT_VALUE is not answered like by an honest holder")
				}
			}
			got := get(old.Key)
			if !tt.full(got.GetRecord().GetValue()) {
				t.Errorf("it answers with %d bytes, which is another lie", len(got.GetRecord().GetValue()))
			}
			if rec := get(other.Key).GetRecord().GetValue(); tt.lie != LieGarbage && rec != nil {
				t.Error("it holds what is not its target's")
			}
			nodes := c.answer(self, pb.NewMessage(pb.Message_FIND_NODE, []byte("whoever"), 0), now)
			for what, m := range map[string]*pb.Message{"GET_VALUE": got, "FIND_NODE": nodes} {
				if len(m.CloserPeers) != kadCloser {
					t.Errorf("%s names %d peers, want %d", what, len(m.CloserPeers), kadCloser)
				}
				if slices.ContainsFunc(m.CloserPeers, func(p *pb.Message_Peer) bool { return peer.ID(p.Id) == self }) {
					t.Errorf("%s names the one that was asked", what)
				}
			}
			if m := c.answer(self, pb.NewMessage(pb.Message_ADD_PROVIDER, nil, 0), now); m != nil {
				t.Error("it answers what nobody asks here")
			}
			if got, want := c.requests(), (Requests{FindNode: 1, GetValue: 3, PutValue: 4, Other: 1, OldOffered: tt.old}); got != want {
				t.Errorf("counted %+v, want %+v", got, want)
			}
		})
	}
}

// refused reports whether nobody takes a record under a key.
func refused(key []byte, now time.Time) func([]byte) bool {
	return func(rec []byte) bool {
		return rec != nil && record.Validate([record.KeySize]byte(key[len(key)-record.KeySize:]), rec, now) != nil
	}
}
