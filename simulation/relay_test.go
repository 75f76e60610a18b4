package simulation

import (
	"errors"
	"flag"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	"google.golang.org/protobuf/proto"

	"starling/protocol/wire"
)

var (
	long  = flag.Bool("long", false, "play 200 worlds in TestNeverOnlineTogether")
	weeks = flag.Int("weeks", 20, "how many worlds TestNeverOnlineTogether plays otherwise")
)

// addrsEvery is how often libp2p looks whether the addresses of a host have
// changed. In weeks in which nothing happens the looks take a third of the
// processor, and nobody in the worlds of this file gets another address.
//
//go:linkname addrsEvery github.com/libp2p/go-libp2p/p2p/host/basic.addrChangeTickrInterval
var addrsEvery time.Duration

// hurry makes worlds take less of the processor, until the test and all of its
// parts are over: they keep memory longer, and look for addresses seldom.
func hurry(t *testing.T) {
	was, percent := addrsEvery, debug.SetGCPercent(400)
	addrsEvery = time.Hour
	t.Cleanup(func() {
		addrsEvery = was
		debug.SetGCPercent(percent)
	})
}

// mailWorld is relays, and two people who name all of them.
func mailWorld(seed uint64, relays ...RelaySpec) Config {
	return Config{
		Seed: seed, Refresh: -1, Away: 48 * time.Hour, Relays: relays,
		Nodes: []NodeSpec{{Name: "ada"}, {Name: "bo"}},
	}
}

var threeRelays = []RelaySpec{{Name: "r1"}, {Name: "r2"}, {Name: "r3"}}

// visit has a node's user there for a while: do is called once they have been
// there for five minutes.
func visit(n *Node, last time.Duration, do func() error) error {
	const settled = 5 * time.Minute
	if err := n.Start(); err != nil {
		return err
	}
	n.w.Sleep(settled)
	if err := do(); err != nil {
		return err
	}
	n.w.Sleep(last - settled)
	return n.Stop()
}

// Two people are never online together for a week, from before they know each
// other. One of three relays is lost in the middle of it, and every fifth segment
// on every link. Everything arrives, once, and its sender learns so.
func TestNeverOnlineTogether(t *testing.T) {
	const (
		writing = 5 // visits, and three more for what is on its way
		texts   = writing * perVisit
	)
	hurry(t)
	n := *weeks
	if *long {
		n = 200
	}
	for seed := range n {
		t.Run(fmt.Sprint(seed+1), func(t *testing.T) {
			t.Parallel()
			cfg := mailWorld(uint64(seed+1), threeRelays...)
			cfg.Loss = 0.2
			together := false
			r, err := Run(cfg, func(w *World) error { return apart(w, writing, "r2", &together) })
			if err != nil {
				t.Fatal(err)
			}
			if together {
				t.Error("they were online together")
			}
			if time.Duration(r.Manifest.Simulated) < 7*24*time.Hour {
				t.Errorf("the week took %v", r.Manifest.Simulated)
			}
			if len(r.Messages) != texts {
				t.Errorf("%d messages were accepted, want %d", len(r.Messages), texts)
			}
			for _, m := range r.Messages {
				if m.Shown < 0 || m.Confirmed < 0 {
					t.Errorf("message of %d, accepted at %v, was shown at %v and confirmed at %v", m.From, m.Accepted, m.Shown, m.Confirmed)
				}
			}
			t.Logf("%v of cpu; %+v", time.Duration(r.Manifest.CPU), r.Relays)
		})
	}
}

// perVisit is how many texts somebody writes on one visit of [apart].
const perVisit = 4

// apart has bo and ada, who have not met, be there in turn for half an hour, once
// in 21 hours, so never together and eight times in a week. On the first visit bo
// makes a link, on the next ones who is there writes; on three more they read, and
// learn what was read. A relay is lost in the middle, if one is named.
func apart(w *World, writing int, lost string, together *bool) error {
	const there, every = 30 * time.Minute, 21 * time.Hour
	if err := w.StartRelays(); err != nil {
		return err
	}
	ada, bo, link := w.Node("ada"), w.Node("bo"), ""
	for v := range writing + 3 {
		if v == (writing+3)/2 && lost != "" {
			w.Relay(lost).Crash() // for good
		}
		me, friend := bo, ada
		if v%2 == 1 {
			me, friend = ada, bo
		}
		err := visit(me, there, func() (err error) {
			*together = *together || friend.Running()
			if v < 2 {
				if err := me.Use(w.Relays()...); err != nil {
					return err
				}
			}
			switch {
			case v == 0:
				link, err = bo.Invite(false)
				return err
			case v == 1:
				if err := ada.Add(bo, link); err != nil {
					return err
				}
			case v > writing:
				return nil
			}
			for i := range perVisit {
				w.Sleep(2 * time.Minute)
				if _, err := me.Send(friend, fmt.Sprintf("visit %d, %d", v, i)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		w.Sleep(every - there)
	}
	return nil
}

// A relay that signs for what it does not keep breaks the world's promise if it
// passes for honest, and is a finding of the run otherwise: with its name both
// times.
func TestBrokenReceiptIsReported(t *testing.T) {
	hurry(t)
	for _, planted := range []bool{true, false} {
		name := "found"
		if planted {
			name = "planted"
		}
		t.Run(name, func(t *testing.T) {
			spec := RelaySpec{Name: "r2"}
			if !planted {
				spec.Bad = BadDrops
			}
			r, err := Run(mailWorld(1, RelaySpec{Name: "r1"}, spec), func(w *World) error {
				if planted {
					w.Relay("r2").meddler = dropper{r: w.Relay("r2")}
				}
				together := false
				return apart(w, 1, "", &together)
			})
			if planted {
				if r.Violation == nil || r.Violation.Oracle != oracleReceipt || !strings.HasPrefix(r.Violation.What, "r2 signed at ") {
					t.Errorf("got %v, want a broken receipt of r2", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if good, bad := r.Relays[0], r.Relays[1]; bad.Broken == 0 || bad.Honoured != 0 || good.Broken != 0 || good.Honoured == 0 {
				t.Errorf("the relays: %+v", r.Relays)
			}
		})
	}
}

// Through one relay texts come in the order in which they were written; the
// world's promise is broken by one that gives them in another.
func TestOrderThroughOneRelay(t *testing.T) {
	hurry(t)
	for _, planted := range []bool{false, true} {
		t.Run(fmt.Sprintf("planted=%v", planted), func(t *testing.T) {
			cfg := mailWorld(1, RelaySpec{Name: "r1"})
			cfg.Loss = 0.2
			r, err := Run(cfg, func(w *World) error {
				if planted {
					w.Relay("r1").meddler = swapper{}
				}
				together := false
				return apart(w, 2, "", &together)
			})
			switch {
			case planted && (r.Violation == nil || r.Violation.Oracle != oracleOrder):
				t.Errorf("got %v, want a text of ada or bo that overtook another", err)
			case !planted && err != nil:
				t.Fatal(err)
			case !planted && len(r.Messages) != 2*perVisit:
				t.Errorf("%d messages were accepted, want %d", len(r.Messages), 2*perVisit)
			}
		})
	}
}

// swapper is a relay that turns the order of what it gives to readers.
type swapper struct{ honest }

func (swapper) answer(_ *line, _ *wire.RelayRequest, a *wire.RelayAnswer) *wire.RelayAnswer {
	e := a.GetEntries()
	if e == nil || len(e.Entries) < 2 {
		return a
	}
	a = proto.CloneOf(a)
	list := a.GetEntries().Entries
	for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
		if slices.Equal(list[i].Queue, list[j].Queue) {
			list[i].Blob, list[j].Blob = list[j].Blob, list[i].Blob
		}
	}
	return a
}

// A text that is at a relay is due when its recipient has been there with the
// relay for ten minutes, wherever its sender is.
func TestTextAtARelayIsDue(t *testing.T) {
	cfg := mailWorld(1, RelaySpec{Name: "r1"})
	r, err := Run(cfg, func(w *World) error {
		r1, ada, bo, link := w.Relay("r1"), w.Node("ada"), w.Node("bo"), ""
		r1.meddler = deaf{}
		if err := w.StartRelays(); err != nil {
			return err
		}
		return errors.Join(
			visit(bo, 20*time.Minute, func() (err error) {
				link, err = bo.Invite(false)
				return errors.Join(err, bo.Use(r1))
			}),
			visit(ada, 20*time.Minute, func() error {
				err := errors.Join(ada.Use(r1), ada.Add(bo, link))
				w.Sleep(time.Minute)
				_, sendErr := ada.Send(bo, "we have not met")
				return errors.Join(err, sendErr)
			}),
			visit(bo, 30*time.Minute, func() error { return nil }),
		)
	})
	if r.Violation == nil || r.Violation.Oracle != oracleLost || !strings.Contains(r.Violation.What, "is at the relay r1 since ") {
		t.Errorf("got %v, want a text that is late at r1", err)
	}
}

// deaf is a relay whose readers are never answered.
type deaf struct{ honest }

func (deaf) answer(_ *line, req *wire.RelayRequest, a *wire.RelayAnswer) *wire.RelayAnswer {
	if e := a.GetEntries(); e != nil && len(e.Entries) > 0 {
		return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_BUSY}
	}
	return a
}
