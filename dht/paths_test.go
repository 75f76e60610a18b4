package dht

import (
	"bufio"
	crand "crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"starling/dht/record"
	"starling/protocol"
	"starling/protocol/wire"
)

// corner returns the sixteenth of the key space that something lies in.
func corner[T ~string](s T) byte {
	h := sha256.Sum256([]byte(s))
	return h[0] >> 4
}

// hostIn returns a host inside a corner, or in the half that the corner is not
// in: those in one half share a bucket in the tables of the other.
func hostIn(t testing.TB, c byte, inside bool) host.Host {
	t.Helper()
	for {
		key, _, err := crypto.GenerateEd25519Key(crand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		id, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if inside && corner(id) == c || !inside && corner(id)>>3 != c>>3 {
			return hostWith(t, libp2p.Identity(key))
		}
	}
}

// lie makes hosts answer every request with each other's names.
func lie(liars []host.Host) {
	var infos []peer.AddrInfo
	for _, h := range liars {
		infos = append(infos, infoOf(h))
	}
	peers := pb.RawPeerInfosToPBPeers(infos)
	for _, h := range liars {
		h.SetStreamHandler(protocol.KadPrefix+kadProtocol, func(s network.Stream) {
			defer s.Reset()
			s.SetDeadline(time.Now().Add(patience))
			for r := bufio.NewReader(s); ; {
				b, err := wire.ReadFrame(r, maxAnswer)
				if err != nil {
					return
				}
				m := new(pb.Message)
				if proto.Unmarshal(b, m) != nil {
					return
				}
				a := pb.NewMessage(m.GetType(), m.GetKey(), 0)
				a.CloserPeers = peers
				if b, err = proto.Marshal(a); err != nil || wire.WriteFrame(s, b) != nil {
					return
				}
			}
		})
	}
}

// Liars fill the bucket of the reader's table in the direction of both replicas,
// so that a search meets nobody else. The one honest peer in it leads to the
// holder all the same.
func TestLiarsNearTheRecordsDoNotHideThem(t *testing.T) {
	var a *account
	var c byte
	for i := 0; ; i++ {
		a = newAccount(t, fmt.Sprint("Ada ", i))
		c = corner(kadKey(a.today(0, 1, 5).Key))
		if corner(kadKey(a.today(1, 1, 5).Key)) == c {
			break
		}
	}
	outside := func() *DHT {
		return node(t, func(cfg *Config) { cfg.Host, cfg.Refresh = hostIn(t, c, false), -1 })
	}
	reader, between, holder := outside(), outside(), outside()
	for replica := range byte(record.Replicas) {
		r := a.today(replica, 1, 5)
		if err := holder.store.put(r.Key, r.Bytes, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	connect(t, between.host, holder.host)
	until(t, "between knows the holder", func() bool { return between.Peers() == 1 })
	connect(t, reader.host, between.host)
	until(t, "the reader knows between", func() bool { return reader.Peers() == 1 })
	var liars []host.Host
	for range defaultTable {
		liars = append(liars, hostIn(t, c, true))
	}
	lie(liars)
	for _, h := range liars {
		connect(t, reader.host, h)
	}
	until(t, "the reader knows the liars", func() bool { return reader.Peers() == 1+len(liars) })

	var b best
	b.account, b.lookup = a.id(), a.lookup
	reader.search(t.Context(), keysOf(b.account, b.lookup, record.DayOf(time.Now())), &b)
	if b.found {
		t.Fatal("the liars do not stand in the way of a search")
	}
	// A path is begun at a random peer, so one lookup may miss the honest one.
	missed := 0
	for {
		body, err := lookup(t, reader, a, record.Version{})
		if err == nil {
			if body.Version() != version(5) {
				t.Errorf("found version %v", body.Version())
			}
			break
		}
		if !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if missed++; missed == 50 { // of 21 peers 6 are tried for each of two keys
			t.Fatal("never found")
		}
	}
}
