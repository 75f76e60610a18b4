package simulation

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"starling/dht/record"
	"starling/node/relay/spool"
	"starling/node/relay/station"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
	"starling/protocol/x25519"
	"starling/simulation/network"
)

// The relay that volunteers run is the one that worlds can have: it lives for
// days of virtual time on a simulated network, and publishes on its day a record
// that somebody who is away by then has left.
func TestAVolunteersRelayRunsInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, err := network.New(network.Config{Sites: 3, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		port := func(site int) *network.Port {
			p, err := n.Join(network.Site{Index: site}, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		key := func() crypto.PrivKey {
			k, _, err := crypto.GenerateEd25519Key(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		start := func(p *network.Port, bootstrap ...string) *station.Station {
			db, err := store.OpenMemory(store.Config{}, store.NewDisk())
			if err != nil {
				t.Fatal(err)
			}
			s, err := station.Open(t.Context(), station.Config{
				Store: db, Key: key(), Disk: spool.NewDisk(1), Quota: 16 << 20, Rate: 1 << 20,
				Listen: []string{p.Listen()}, Announce: []string{p.Listen()}, Bootstrap: bootstrap,
				Transports: p.Options(), NoPortMap: true, NoAutoNAT: true, NoAddressDiscovery: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			go s.Run(context.Background()) // until Close, which waits for it
			return s
		}
		first := start(port(0))
		defer first.Close()
		second := start(port(1), first.Status().Bootstrap...)
		defer second.Close()
		time.Sleep(time.Minute)
		if a, b := first.Status().Peers, second.Status().Peers; a != 1 || b != 1 {
			t.Fatalf("the relays know %d and %d peers, want each other", a, b)
		}

		link, err := second.Link(true, false)
		if err != nil {
			t.Fatal(err)
		}
		mine := key()
		h, err := libp2p.New(append(port(2).Options(), libp2p.Identity(mine), libp2p.NoListenAddrs, libp2p.DisableMetrics(), libp2p.DisableIdentifyAddressDiscovery())...)
		if err != nil {
			t.Fatal(err)
		}
		at, err := peer.AddrInfoFromString(second.Status().Bootstrap[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Connect(t.Context(), *at); err != nil {
			t.Fatal(err)
		}
		s, err := h.NewStream(t.Context(), at.ID, protocol.StreamRelay)
		if err != nil {
			t.Fatal(err)
		}
		ask := func(req *wire.RelayRequest) *wire.RelayAnswer {
			t.Helper()
			if err := wire.WriteFrame(s, wire.Marshal(req)); err != nil {
				t.Fatal(err)
			}
			b, err := wire.ReadFrame(s, protocol.MaxFrame)
			if err != nil {
				t.Fatal(err)
			}
			a, err := relay.ParseAnswer(b, req)
			if err != nil || a.Status != wire.RelayStatus_RELAY_STATUS_OK {
				t.Fatalf("%T: %v, %v", req.Command, a.GetStatus(), err)
			}
			return a
		}
		seed, errSeed := identity.NewSecret(rand.Reader)
		raw, errRaw := mine.GetPublic().Raw()
		self, errSelf := identity.ParseTransport(raw)
		if errSeed != nil || errRaw != nil || errSelf != nil {
			t.Fatal(errSeed, errRaw, errSelf)
		}
		reader := relay.NewReaderKey(seed)
		box := reader.Reader().Queue()
		ask(&wire.RelayRequest{Command: &wire.RelayRequest_Claim{Claim: relay.NewCreate(reader, &wire.RelayCreate{
			Kind: wire.QueueKind_QUEUE_KIND_BOX, Expires: time.Now().Add(30 * 24 * time.Hour).Unix(), Admission: link.Admission[:],
		}, link.Transport, self)}})
		days := []uint32{record.DayOf(time.Now()) + 1, record.DayOf(time.Now()) + 3}
		ask(&wire.RelayRequest{Command: &wire.RelayRequest_PutRecords{PutRecords: &wire.RelayPutRecords{
			Queue: box[:], Records: recordsOf(t, days),
		}}})
		token := sha256.Sum256([]byte("a token"))
		ask(&wire.RelayRequest{Command: &wire.RelayRequest_SetAccess{SetAccess: &wire.RelaySetAccess{Queue: box[:], Tokens: [][]byte{token[:]}}}})
		ask(&wire.RelayRequest{Command: &wire.RelayRequest_Deposit{Deposit: &wire.RelayDeposit{
			Queue: box[:], Blob: make([]byte, 2160), Expires: time.Now().Add(2 * 24 * time.Hour).Unix(),
			Admit: &wire.RelayDeposit_Token{Token: token[:]},
		}}})
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}

		held := func() int { return first.Status().Records }
		time.Sleep(20 * time.Hour)
		if held() != 0 || second.Status().Messages != 1 {
			t.Errorf("before its day %d records are held; %d messages", held(), second.Status().Messages)
		}
		time.Sleep(16 * time.Hour) // noon of the next day
		if held() != 1 {
			t.Errorf("on its day %d records are held", held())
		}
		time.Sleep(48 * time.Hour) // of the day of the other; the first one's is two days ago
		if st := second.Status(); held() != 1 || st.Messages != 0 || st.Service.Queues != 1 {
			t.Errorf("two days later %d records are held, %d messages, %d queues", held(), st.Messages, st.Service.Queues)
		}
	})
}

// recordsOf returns somebody's records of some days.
func recordsOf(t *testing.T, days []uint32) (recs [][]byte) {
	t.Helper()
	var secrets [2]identity.Secret
	for i := range secrets {
		s, err := identity.NewSecret(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		secrets[i] = s
	}
	dh, err := x25519.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var lookup identity.LookupSecret
	rand.Read(lookup[:])
	a, d := identity.NewAccountKey(secrets[0]), identity.NewDeviceKey(secrets[1], dh)
	manifest := identity.SignManifest(a, uint64(time.Now().Unix()), []identity.DeviceEntry{{Key: d.Device(), DH: dh.Public()}})
	for _, day := range days {
		_, rec, err := record.Make(rand.Reader, a, lookup, 0, 1, record.Body{
			ManifestBytes: manifest, Day: day,
			Bundles: [][]byte{wire.Marshal(&wire.Signed{Body: make([]byte, 1700), Signature: make([]byte, 64)})},
		})
		if err != nil {
			t.Fatal(err)
		}
		recs = append(recs, rec)
	}
	return recs
}
