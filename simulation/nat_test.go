package simulation

import (
	"fmt"
	"testing"
	"time"

	"starling/simulation/network"
)

// natWorld is a hub that offers circuits, and two people behind NATs.
func natWorld(face Face, a, b network.NAT) Config {
	return Config{
		Seed: 1, Face: face, Refresh: -1,
		Nodes: []NodeSpec{{Name: "hub", Circuits: true}, {Name: "hub2", Circuits: true}, {Name: "ada", NAT: a}, {Name: "bo", NAT: b}},
	}
}

// Friends behind NATs reach each other through circuits, and directly where a
// hole can be punched: with QUIC, and unless both NATs want to know the port.
func TestFriendsBehindNATs(t *testing.T) {
	for _, tt := range []struct {
		face   Face
		a, b   network.NAT
		direct bool
	}{
		{Packets, network.PortRestricted, network.PortRestricted, true},
		{Packets, network.Symmetric, network.Symmetric, false},
		{Packets, network.NoNAT, network.Symmetric, true},
		{Streams, network.FullCone, network.FullCone, false},
		{Both, network.FullCone, network.Symmetric, true},
	} {
		t.Run(fmt.Sprintf("%v, %v and %v", tt.face, tt.a, tt.b), func(t *testing.T) {
			r, err := Run(natWorld(tt.face, tt.a, tt.b), func(w *World) error {
				if err := w.StartAll(time.Second); err != nil {
					return err
				}
				w.Sleep(5 * time.Minute) // until they have found the hubs
				ada, bo := w.Node("ada"), w.Node("bo")
				if err := ada.Befriend(bo); err != nil {
					return err
				}
				w.Sleep(time.Minute)
				if _, err := bo.Send(ada, "hi"); err != nil {
					return err
				}
				w.Settle()
				w.Sleep(time.Minute) // for all attempts
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Pairs) != 1 || r.Pairs[0].A != 2 || r.Pairs[0].B != 3 {
				t.Fatalf("pairs %+v, want that of ada and bo", r.Pairs)
			}
			p := r.Pairs[0]
			t.Logf("%+v; %v of cpu, %v of virtual time, %d MB", p, time.Duration(r.Manifest.CPU), time.Duration(r.Manifest.Simulated), r.Manifest.PeakMemory>>20)
			if direct := p.Direct >= 0; direct != tt.direct {
				t.Errorf("a direct connection: %v, want %v", direct, tt.direct)
			}
			if p.Direct < 0 && p.Relayed < 0 {
				t.Error("they were never connected")
			}
		})
	}
}
