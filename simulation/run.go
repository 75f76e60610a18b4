package simulation

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"starling/node/store"
	"starling/protocol"
	"starling/simulation/bubble"
	"starling/simulation/exact"
	"starling/simulation/network"
)

// Run builds the world of cfg, plays a scenario in it and takes it down. The
// scenario is called in a bubble of virtual time (testing/synctest): whatever
// it waits for must be in the bubble too. Its nodes are made and not started.
//
// The result is not nil unless cfg is wrong, and holds what was measured so
// far even if the run ended early. The error is a [*Violation] if a promise was
// not kept, the scenario's own, or that of a node that did not start.
//
// Several runs may be under way at once, unless the program is exact. If virtual
// time stops, which is a bug, the stacks of all goroutines go to standard error
// and the process ends.
func Run(cfg Config, play func(*World) error) (*Result, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	var r *Result
	c := clocks{wall: bubble.Wall(), cpu: bubble.CPU()}
	c.dog.After = stalled
	unwatch := c.dog.Watch()
	bubbleErr := bubble.Run(cfg.Seed, func() { r, err = run(cfg, play, &c) })
	unwatch()
	if r == nil {
		return nil, errors.Join(err, bubbleErr)
	}
	err = errors.Join(err, bubbleErr)
	u := c.read()
	r.Manifest.Wall, r.Manifest.CPU = Seconds(u.Wall), Seconds(u.CPU)
	r.Manifest.Outcome, r.Manifest.Error = outcome(err)
	return r, err
}

// outcome returns how a run ended, as manifests spell it, and why.
func outcome(err error) (string, string) {
	if err == nil {
		return "held", ""
	}
	if v, ok := errors.AsType[*Violation](err); ok {
		return "violated", v.Error()
	}
	if errors.Is(err, errInterrupted) {
		return "interrupted", ""
	}
	return "failed", err.Error()
}

// run is Run inside the bubble.
func run(cfg Config, play func(*World) error, c *clocks) (*Result, error) {
	time.Sleep(time.Until(cfg.Epoch)) // a bubble begins in the year 2000
	w, err := newWorld(cfg, &c.dog)
	if err != nil {
		return nil, err
	}
	defer w.remove()

	finished := make(chan error, 1) // the scenario sends once or closes; capacity 1, as nobody may listen
	go func() {                     // joined below: it ends with play, or with the world
		defer close(finished)
		returned := false
		defer func() {
			if !returned {
				w.leftEarly()
			}
		}()
		err := play(w)
		returned = true
		if err == nil {
			w.group.Wait()
		}
		finished <- err
	}()
	var measuring sync.WaitGroup
	measured, stopMeasuring := context.WithCancel(context.Background())
	measuring.Go(func() { w.measure(measured, c) })
	if exact.Enabled() {
		measuring.Go(func() { bubble.Collect(measured, collectAt) })
	}
	select {
	case err = <-finished:
	case <-w.ctx.Done():
		<-finished // each of its calls into the world ends it now
		w.group.Wait()
	}
	w.stop(err)
	hash := w.log.closeTrace() // nodes end all at once, in any order
	simulated := w.Now()
	stopMeasuring()
	measuring.Wait()
	endErr := errors.Join(w.closeAll(), w.oracle.audit()) // one node that does not close excuses no other
	w.oracle.goroutines()

	r := w.result(simulated, hash)
	if cause := context.Cause(w.ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if v := r.Violation; v != nil && !errors.Is(err, v) { // whatever else went wrong
		err = errors.Join(v, err)
	}
	return r, errors.Join(err, endErr)
}

// newWorld makes the nodes of a world, and starts none.
func newWorld(cfg Config, dog *bubble.Watchdog) (*World, error) {
	w := &World{cfg: cfg, dog: dog, byName: map[string]*Node{}, accomplices: map[peer.ID]bool{}, epoch: time.Now(), split: -1}
	w.log = &recorder{epoch: w.epoch, dog: dog, sink: cfg.Sink, packets: cfg.Packets, trace: sha256.New()}
	if cfg.hasNATs() {
		w.pairs, w.friends, w.peers = map[[2]int]*Pair{}, map[*Pair]bool{}, map[string]*Node{}
	}
	w.oracle = newOracle(w)
	w.ctx, w.end = context.WithCancelCause(context.Background())
	var err error
	w.net, err = network.New(network.Config{
		Seed: cfg.Seed, Sites: sites(cfg), Topology: cfg.Topology, Loss: cfg.Loss, Noise: cfg.Noise, Tap: w.log.chunk,
	})
	if err != nil {
		return nil, err
	}
	for i, spec := range cfg.Nodes {
		spec.Role = orDefault(spec.Role, rolePeer)
		n := &Node{w: w, index: i, spec: spec, meter: newMeter(), down: -1}
		n.rand, n.ids = newRand(cfg.Seed, "node "+spec.Name), newRand(cfg.Seed, "messages of "+spec.Name)
		n.eyes = w.oracle.observer(n)
		n.result = NodeResult{Name: spec.Name, Region: spec.Region, Role: spec.Role, NAT: spec.NAT.String()}
		if n.port, err = w.net.Join(network.Site{Index: i, Region: spec.Region, NAT: spec.NAT}, spec.Up, spec.Down); err != nil {
			return nil, err
		}
		if n.key, err = store.NewKey(n.rand); err != nil {
			return nil, err
		}
		if n.disk, err = newDisk(cfg.Store); err != nil {
			return nil, err
		}
		w.nodes = append(w.nodes, n)
		w.byName[spec.Name] = n
	}
	for i, spec := range cfg.Relays {
		r, err := w.newRelay(len(cfg.Nodes)+i, spec)
		if err != nil {
			return nil, err
		}
		w.relays = append(w.relays, r)
	}
	if len(w.relays) > 0 {
		at := network.Site{Index: sites(cfg) - 1, Region: cfg.Relays[0].Region}
		if w.nobody, err = w.net.Join(at, 0, 0); err != nil {
			return nil, err
		}
	}
	for _, n := range w.nodes {
		if n.spec.Skew != 0 {
			w.begin("skew", fmt.Sprintf("%s is wrong by %v", n.spec.Name, n.spec.Skew))
		}
	}
	return w, nil
}

// sites returns how many places the network has: one for each node and relay,
// and if there are relays, one for nobody.
func sites(cfg Config) int {
	if len(cfg.Relays) == 0 {
		return len(cfg.Nodes)
	}
	return len(cfg.Nodes) + len(cfg.Relays) + 1
}

func newDisk(kind StoreKind) (disk, error) {
	if kind == Memory {
		return memoryDisk{store.NewDisk()}, nil
	}
	root, err := os.MkdirTemp("", "starling-sim-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for a store: %w", err)
	}
	return &folderDisk{root: root}, nil
}

// stop ends the run, with the reason unless there is one already.
func (w *World) stop(cause error) {
	w.over.Store(true)
	w.end(cause)
}

// stalled is the real time in which nothing at all happens after which a run is
// given up: no packet, no event, no second of virtual time.
const stalled = 3 * time.Minute

// collectAt is the heap, in bytes, from which an exact run collects garbage.
const collectAt = 128 << 20

// clocks are the real clocks of a run, and the dog that watches virtual time.
type clocks struct {
	wall, cpu time.Duration // at the start
	dog       bubble.Watchdog
}

// read returns what the run took so far.
func (c *clocks) read() Usage {
	return Usage{
		Wall: bubble.Wall() - c.wall, CPU: bubble.CPU() - c.cpu, Memory: bubble.Memory(), Goroutines: runtime.NumGoroutine(),
	}
}

// How often virtual time looks at the real clocks. An exact run must not do
// anything that depends on them, and so it samples at fixed times.
const (
	lookEvery  = time.Second           // of virtual time
	lookSeldom = 10 * time.Second      // likewise, while real time hardly moves
	hardly     = 20 * time.Millisecond // of real time
	exactEvery = time.Minute           // of virtual time

	overdueEvery = time.Minute // how often the oracle looks for what is late
)

// measure samples what the run takes, about once a second of real time, and
// ends the run if it was interrupted. It returns when ctx ends.
func (w *World) measure(ctx context.Context, c *clocks) {
	every := lookEvery
	if exact.Enabled() {
		every = exactEvery
	}
	tick := time.NewTimer(every)
	defer tick.Stop()
	last, next := time.Duration(0), time.Duration(0)
	look := overdueEvery
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.log.used(w.usage(c))
			return
		}
		c.dog.Bump()
		if w.Now() >= look {
			look = w.Now() + overdueEvery
			w.oracle.overdue()
			w.oracle.waitsAtRelay()
		}
		if exact.Enabled() {
			w.log.used(w.usage(c))
		} else {
			now := bubble.Wall()
			if every = lookEvery; now < last+hardly {
				every = lookSeldom
			}
			last = now
			if now >= next {
				next = now + time.Second
				u := w.usage(c)
				w.log.used(u)
				w.cfg.Progress(u)
			}
		}
		if w.cfg.Interrupted() {
			w.stop(errInterrupted)
		}
		tick.Reset(every)
	}
}

func (w *World) usage(c *clocks) Usage {
	u := c.read()
	u.At = w.Now()
	return u
}

// closeAll stops every node and waits for those that crashed.
func (w *World) closeAll() error {
	errs := make([]error, len(w.nodes))
	for i, n := range w.nodes {
		w.loose.Go(func() {
			if live := n.take(false); live != nil {
				errs[i] = live.Close()
				close(n.closing)
				w.dog.Bump()
			}
		})
	}
	relays := make([]error, len(w.relays))
	for i, r := range w.relays {
		w.loose.Go(func() {
			if live := r.take(""); live != nil {
				relays[i] = live.Close()
				close(r.closing)
				w.dog.Bump()
			}
		})
	}
	var more []error // not in errs, which the goroutines above write to
	for _, fn := range w.closers {
		more = append(more, fn())
	}
	w.loose.Wait()
	return errors.Join(append(append(errs, relays...), more...)...)
}

// remove deletes what the world had on disk.
func (w *World) remove() {
	for _, n := range w.nodes {
		_ = n.disk.remove() // a temporary folder; the system removes what is left
	}
}

// result gathers what a run leaves.
func (w *World) result(simulated time.Duration, hash string) *Result {
	r, pending := &Result{Faults: w.faults}, 0
	r.Messages, r.Envelopes, r.Violation = w.oracle.results()
	w.log.fill(r)
	for _, n := range w.nodes {
		r.Nodes = append(r.Nodes, n.result)
		r.Traffic = append(r.Traffic, n.traffic()...)
	}
	for _, relay := range w.relays {
		r.Relays = append(r.Relays, relay.results())
	}
	for _, m := range r.Messages {
		if m.Confirmed < 0 {
			pending++
		}
	}
	r.Sightings = w.sightings()
	r.Pairs = w.friendPairs()
	r.Manifest = Manifest{
		Scenario: w.cfg.Scenario, Source: w.cfg.Source, Seed: w.cfg.Seed, Params: w.cfg.Params, Defaults: w.cfg.Defaults, Nodes: len(w.nodes),
		Store: w.cfg.Store.String(), Face: w.cfg.Face.String(), Security: w.cfg.security(), Exact: exact.Enabled(), Version: Version(),
		Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Epoch: w.cfg.Epoch, Simulated: Seconds(simulated),
		Repeat: w.cfg.Repeat, Pending: pending,
	}
	if exact.Enabled() {
		r.Manifest.TraceHash = hash
	}
	for _, u := range r.Usage {
		r.Manifest.PeakMemory = max(r.Manifest.PeakMemory, u.Memory)
	}
	return r
}

// traffic returns what the node sent and received, by protocol.
func (n *Node) traffic() []Traffic {
	n.meter.mu.Lock()
	defer n.meter.mu.Unlock()
	var list []Traffic
	for _, id := range slices.Sorted(slices.Values(n.meter.order)) {
		t := n.meter.protocols[id]
		list = append(list, Traffic{Node: n.index, Protocol: string(id), Sent: t.sent, Received: t.received})
	}
	return list
}

// Version returns what this program is: its name and the revision of its
// source, which go build notes in a checkout.
func Version() string {
	revision, changed := "revision unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				revision = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				changed = ", changed since"
			}
		}
	}
	return protocol.Agent + " " + revision + changed
}
