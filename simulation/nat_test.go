package simulation

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"starling/node"
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
		{PacketFace, network.PortRestricted, network.PortRestricted, true},
		{PacketFace, network.Symmetric, network.Symmetric, false},
		{PacketFace, network.NoNAT, network.Symmetric, true},
		{StreamFace, network.FullCone, network.FullCone, false},
		{BothFaces, network.FullCone, network.Symmetric, true},
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

// What was in the way of a hole passes while they are connected through a
// circuit: they try again, with nothing to say to each other.
func TestHoleIsPunchedLater(t *testing.T) {
	var healed time.Duration
	r, err := Run(natWorld(PacketFace, network.PortRestricted, network.PortRestricted), func(w *World) error {
		if err := w.StartAll(time.Second); err != nil {
			return err
		}
		w.Sleep(5 * time.Minute)
		ada, bo := w.Node("ada"), w.Node("bo")
		w.SetLink(ada, bo, &network.Link{Loss: 1})
		if err := ada.Befriend(bo); err != nil {
			return err
		}
		w.Sleep(50 * time.Second) // until libp2p has given up
		w.SetLink(ada, bo, nil)
		healed = w.Now()
		w.Sleep(time.Minute)
		for _, n := range []*Node{ada, bo} {
			if cs := n.Live().Status().Connections; len(cs) != 1 || cs[0].Path != node.PathDirect {
				return fmt.Errorf("they are connected by %+v, want one direct connection", cs)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if p := r.Pairs[0]; p.Relayed < 0 || p.Relayed > healed || p.Direct < healed+5*time.Second {
		t.Errorf("ada and bo: %+v, want a circuit before %v and a direct connection a while after", p, healed)
	}
}

// What cannot be is refused, all of it at once.
func TestConfigRefusesNATsThatCannotBe(t *testing.T) {
	_, err := Run(Config{Face: 7, Nodes: []NodeSpec{
		{Name: "a", NAT: network.FullCone},
		{Name: "b", NAT: network.Symmetric, Circuits: true},
		{Name: "c", NAT: network.Symmetric, Role: RoleSybil},
		{Name: "d", NAT: 99},
	}}, func(*World) error { panic("it was played") })
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`nobody can join through "a"`, `"b" is to serve others from behind a NAT`, `"c" is to serve others from behind a NAT`,
		`there is no NAT(99), as "d" has`, `there is no face 7`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got\n%v\nwant %q too", err, want)
		}
	}
}

// Nodes behind NATs come back after a loss of power, to a NAT that has not
// forgotten them, and find circuits again.
func TestPowerIsLostBehindANAT(t *testing.T) {
	r, err := Run(natWorld(PacketFace, network.PortRestricted, network.Symmetric), func(w *World) error {
		if err := w.StartAll(time.Second); err != nil {
			return err
		}
		w.Sleep(5 * time.Minute)
		ada, bo := w.Node("ada"), w.Node("bo")
		if err := ada.Befriend(bo); err != nil {
			return err
		}
		w.Sleep(time.Minute)
		for _, n := range []*Node{ada, bo, w.Node("hub")} {
			n.Crash()
			w.Sleep(30 * time.Second)
			if err := n.Start(); err != nil {
				return err
			}
			if _, err := ada.Send(bo, "still here"); err != nil {
				return err
			}
			if _, err := bo.Send(ada, "so am I"); err != nil {
				return err
			}
			w.Settle()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Messages) != 6 || r.Nodes[2].Crashes != 1 || r.Nodes[2].NAT != "port-restricted" {
		t.Errorf("%d messages, ada is %+v", len(r.Messages), r.Nodes[2])
	}
	if p := r.Pairs[0]; p.Relayed < 0 || p.Direct >= 0 {
		t.Errorf("ada and bo: %+v, want them connected through circuits only", p)
	}
}
