// Package simulation runs whole networks of real nodes in one process, in
// virtual time, from a seed.
//
// [Run] opens a bubble of virtual time, builds the [World] of a [Config], plays
// a scenario in it, and returns a [Result]. The nodes are those of the daemon:
// the same libp2p hosts, DHT, sessions, outboxes and stores. What is replaced
// is the network below libp2p (simulation/network), the disk below the store,
// the clock, and the source of randomness.
//
// In every run an oracle (oracle.go) watches what users could see and what the
// sessions did, and stops the run at the first promise that was not kept.
//
// A run is a function of its seed, up to the order in which the Go scheduler
// runs what is due at the same instant: statistically reproducible. Built with
// simulation/exact it repeats bit for bit.
//
// What it does not do: read scenario files (simulation/scenario) or write
// results (simulation/report).
package simulation

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"starling/simulation/bubble"
	"starling/simulation/network"
)

// A World is a running simulation, in a bubble of its own. Its methods may be
// called from the scenario and from what it started with [World.Go] and
// [World.At]; once the run is over they do not return, and end the goroutine
// that called them.
type World struct {
	cfg    Config
	net    *network.Net
	nodes  []*Node
	byName map[string]*Node
	relays []*Relay
	nobody *network.Port // where accomplices are; nil in a world without relays
	epoch  time.Time
	oracle *oracle
	log    *recorder

	dog *bubble.Watchdog

	ctx   context.Context // ends with the run
	end   context.CancelCauseFunc
	over  atomic.Bool    // ctx has ended; actors must not go on
	group sync.WaitGroup // what Go and At started
	loose sync.WaitGroup // nodes that are closing

	mu      sync.Mutex // guards what follows; never held across a wait
	faults  []Fault
	losses  []loss
	quiet   time.Duration    // when the last fault ended
	split   int              // index in faults of the partition that lasts, or -1
	closers []func() error   // what else is closed at the end
	pairs   map[[2]int]*Pair // by index; nil in a world without NATs
	friends map[*Pair]bool   // those of pairs whose people are friends
	peers   map[string]*Node // by peer ID, in its text form

	accomplices map[peer.ID]bool // hosts of bad relays, and of who drains one
}

// Clock returns what a clock shows that is right.
func (w *World) Clock() time.Time { return time.Now() }

// Now returns how long virtual time has run.
func (w *World) Now() time.Duration { return time.Since(w.epoch) }

// Sleep lets virtual time pass.
func (w *World) Sleep(d time.Duration) {
	w.alive()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.ctx.Done():
	}
	w.alive()
}

// SleepUntil lets virtual time pass until t after the start.
func (w *World) SleepUntil(t time.Duration) { w.Sleep(t - w.Now()) }

// alive ends the calling goroutine if the run is over.
func (w *World) alive() {
	if w.over.Load() {
		runtime.Goexit()
	}
}

// Go runs fn beside the scenario. The run does not end before fn returns,
// unless it ends early.
func (w *World) Go(fn func()) {
	w.alive()
	w.group.Go(func() {
		returned := false
		defer func() {
			if !returned {
				w.leftEarly()
			}
		}()
		fn()
		returned = true
	})
}

// leftEarly ends the run because somebody ended his goroutine (runtime.Goexit),
// as tests do that fail. Once the run is over all do.
func (w *World) leftEarly() {
	if !w.over.Load() {
		w.stop(errLeftEarly)
	}
}

var errLeftEarly = errors.New("simulation: the scenario ended its goroutine instead of returning")

// At runs fn at t after the start, beside the scenario.
func (w *World) At(t time.Duration, fn func()) {
	w.Go(func() {
		w.SleepUntil(t)
		fn()
	})
}

// Wait returns when everything that was started with Go and At has returned.
func (w *World) Wait() {
	w.group.Wait()
	w.alive()
}

// Rand returns the random stream of a name. The same name gives the same stream
// in every run with one seed, whatever else draws. It is not safe for
// concurrent use, and every call begins it anew.
func (w *World) Rand(name string) *rand.Rand { return rand.New(source(w.cfg.Seed, name)) }

// source returns the random stream of a seed and a name.
func source(seed uint64, name string) *rand.ChaCha8 {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, seed))
	io.WriteString(h, name)
	return rand.NewChaCha8([32]byte(h.Sum(nil)))
}

// Nodes returns all nodes, in the order of [Config.Nodes].
func (w *World) Nodes() []*Node { return slices.Clone(w.nodes) }

// Node returns the node of a name. It panics if there is none.
func (w *World) Node(name string) *Node {
	n, ok := w.byName[name]
	if !ok {
		panic(fmt.Sprintf("simulation: there is no node %q", name))
	}
	return n
}

// StartAll starts all nodes that do not run, pause apart, each joining through
// earlier ones. Sybils are started by their attack.
func (w *World) StartAll(pause time.Duration) error {
	for _, n := range w.nodes {
		if n.Running() || n.spec.Role == RoleSybil {
			continue
		}
		if err := n.Start(); err != nil {
			return err
		}
		w.Sleep(pause)
	}
	return nil
}

// Partition splits the network: nodes in different groups do not hear each
// other, and nodes in no group form one more, with the relays. It takes the place of an earlier
// partition.
func (w *World) Partition(groups ...[]*Node) {
	w.alive()
	w.Heal()
	sites := make([][]int, len(groups))
	sizes := make([]int, len(groups))
	rest := len(w.nodes) + len(w.relays)
	for i, g := range groups {
		for _, n := range g {
			sites[i] = append(sites[i], n.index)
		}
		sizes[i] = len(g)
		rest -= len(g)
	}
	if rest > 0 {
		sizes = append(sizes, rest)
	}
	w.net.Partition(sites...)
	w.mu.Lock()
	w.split = len(w.faults)
	w.mu.Unlock()
	what := fmt.Sprintf("groups of %v", sizes)
	for _, g := range groups {
		names := make([]string, len(g))
		for i, n := range g {
			names[i] = n.spec.Name
		}
		what += "; apart: " + strings.Join(names, " ")
	}
	w.begin("partition", what)
	w.log.add(Event{Type: "partition", Text: what})
}

// Heal ends a partition. Without one it does nothing.
func (w *World) Heal() {
	w.alive()
	w.mu.Lock()
	i := w.split
	w.split = -1
	w.mu.Unlock()
	if i < 0 {
		return
	}
	w.net.Heal()
	w.ended(i)
	w.log.add(Event{Type: "heal"})
}

// SetLink replaces the link between two nodes, both ways; nil puts back what
// the topology says. It counts as no fault.
func (w *World) SetLink(a, b *Node, l *network.Link) {
	w.alive()
	w.net.Set(a.index, b.index, l)
	text := "back to the topology"
	if l != nil {
		text = fmt.Sprintf("%v, jitter %v, loss %g", l.Latency, l.Jitter, l.Loss)
	}
	w.log.add(Event{Type: "link", Node: a.spec.Name, Peer: b.spec.Name, Text: text})
}

// SetLoss sets the loss that is added to every link, and lasts as a fault until
// the returned function is called. Of several the one that began last holds.
func (w *World) SetLoss(p float64) (end func()) {
	w.alive()
	i := w.begin("loss", fmt.Sprintf("%g %%", 100*p))
	w.changeLoss(func() { w.losses = append(w.losses, loss{i, p}) })
	return func() {
		w.changeLoss(func() { w.losses = slices.DeleteFunc(w.losses, func(l loss) bool { return l.fault == i }) })
		w.ended(i)
	}
}

// A loss is a fault, and the loss it adds to every link.
type loss struct {
	fault int
	p     float64
}

func (w *World) changeLoss(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	p := w.cfg.Loss
	if n := len(w.losses); n > 0 {
		p = w.losses[n-1].p
	}
	w.net.SetLoss(p)
	w.log.add(Event{Type: "loss", Text: fmt.Sprint(p)})
}

// Fault notes that something bad of the scenario's own lasts until the returned
// function is called, such as links that are worse than they should be.
func (w *World) Fault(kind, what string) (end func()) {
	w.alive()
	i := w.begin(kind, what)
	w.log.add(Event{Type: "fault", Text: kind + ": " + what})
	return func() {
		w.ended(i)
		w.log.add(Event{Type: "mended", Text: kind + ": " + what})
	}
}

// Note writes a remark into the log of the run.
func (w *World) Note(text string) {
	w.alive()
	w.log.add(Event{Type: "note", Text: text})
}

// Report adds a number of the scenario's own to the results.
func (w *World) Report(m Metric) {
	w.alive()
	w.log.metric(m)
}

// Settle waits until every message that was accepted is confirmed to its
// sender. It is a violation if that takes longer than [Config.Promise], and
// [Config.Away] beyond it, from now
// or from the end of the last fault, whichever is later.
func (w *World) Settle() {
	from := w.Now()
	for {
		w.Sleep(settleEvery) // first, so that what journals say by now was heard
		if w.oracle.pending() == 0 {
			return
		}
		w.mu.Lock()
		from = max(from, w.quiet)
		w.mu.Unlock()
		if w.Now() > from+w.cfg.Promise+w.cfg.Away {
			w.oracle.late()
		}
	}
}

const settleEvery = time.Second

// onClose has fn called when the world is taken down.
func (w *World) onClose(fn func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closers = append(w.closers, fn)
}

// begin notes that a fault begins, and returns its index.
func (w *World) begin(kind, what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, Fault{Kind: kind, What: what, From: w.Now(), To: -1})
	return len(w.faults) - 1
}

// calm reports whether no fault that touches two nodes is under way, wrong clocks
// aside, and since when. That others have crashed, or relays, touches only who is
// behind a NAT, and so needs them.
func (w *World) calm(a, b *Node) (calm bool, since time.Duration) {
	alone := a.spec.NAT == network.NoNAT && b.spec.NAT == network.NoNAT
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		if f.Kind == "skew" || f.Kind == faultRelay && alone {
			continue
		}
		if n := w.byName[f.What]; f.Kind == "crash" && alone && n != nil && n != a && n != b {
			continue
		}
		if f.To < 0 {
			return false, 0
		}
		since = max(since, f.To)
	}
	return true, since
}

// ended notes that a fault is over.
func (w *World) ended(i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[i].To = w.Now()
	w.quiet = w.Now()
}
