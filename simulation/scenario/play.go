package scenario

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"starling/simulation"
	"starling/simulation/network"
)

// A cast is a plan being played on a world.
type cast struct {
	*plan
	w      *simulation.World
	people []*simulation.Node
	actors []*actor        // of people
	comes  []time.Duration // of people: when in a day; nil if they do not commute
	unsent atomic.Int64    // texts that nobody accepted
	toAway atomic.Int64    // accepted texts to friends whose node was down
	home   atomic.Bool     // who commutes goes no more

	mu  sync.Mutex // guards what follows; never held across a wait
	err error      // the first one of anybody
	bad map[link][]*network.Link
}

// A link is two nodes, the earlier one first.
type link [2]*simulation.Node

// An actor is a node that several things happen to. World wants them one after
// another.
type actor struct {
	*simulation.Node
	turn   chan struct{} // who has put something in may start and stop it; capacity 1
	brink  atomic.Bool   // it was to crash at a write boundary, which may be in the middle of a start
	spared bool          // it neither comes and goes nor crashes
}

// retry is how long after a start that a crash cut short the next one comes.
const retry = time.Second

func (a *actor) start(w *simulation.World) error {
	a.turn <- struct{}{}
	defer func() { <-a.turn }()
	err := a.Start()
	if err != nil && a.brink.Swap(false) {
		w.Sleep(retry)
		err = a.Start()
	}
	return err
}

func (a *actor) stop() error {
	a.turn <- struct{}{}
	defer func() { <-a.turn }()
	if err := a.Stop(); err != nil && !a.brink.Swap(false) {
		return err
	}
	return nil
}

func (a *actor) crash() {
	a.turn <- struct{}{}
	defer func() { <-a.turn }()
	if a.Running() {
		a.Crash()
	}
}

// unsentMetric counts the texts that nobody accepted.
const unsentMetric = "texts_unsent"

// play plays the plan.
func (p *plan) play(w *simulation.World) error { return p.cast(w).play() }

// cast gives the parts of the plan to the nodes of a world.
func (p *plan) cast(w *simulation.World) *cast {
	c := &cast{plan: p, w: w, people: nodesOf(w, p.people()), bad: map[link][]*network.Link{}}
	for _, n := range c.people {
		c.actors = append(c.actors, &actor{Node: n, turn: make(chan struct{}, 1)})
	}
	return c
}

// play plays the plan: everybody starts and meets; then all that the file says
// happens, each at its time; then everything is mended, and what was accepted
// has to arrive.
func (c *cast) play() error {
	p, w := c.plan, c.w
	if err := c.open(); err != nil {
		return err
	}
	friends, err := c.meet()
	if err != nil {
		return err
	}
	c.attack()
	if p.chat != nil {
		for i := range c.people {
			w.Go(func() { c.talk(i, friends[i]) })
		}
	}
	if p.churn != nil {
		c.churnAll()
	}
	if p.commute != nil {
		c.commuteAll()
	}
	for i, f := range p.faults {
		w.Go(func() { c.suffer(fmt.Sprintf("fault %d", i), f) })
	}
	for w.Now() < p.duration {
		w.Sleep(min(time.Second, p.duration-w.Now()))
		if err := c.failure(); err != nil {
			return err
		}
	}
	if p.commute == nil { // who commutes goes on
		w.Wait()
	}
	if err := c.mend(); err != nil {
		return err
	}
	if p.settle {
		w.Settle()
	}
	if p.commute != nil {
		c.home.Store(true)
		w.Wait()
	}
	if p.chat != nil {
		w.Report(simulation.Metric{
			Name: unsentMetric, Value: float64(c.unsent.Load()), Unit: "texts",
			Goal: "never accepted: the writer's node was down, or did not know the friend yet",
		})
		w.Report(simulation.Metric{
			Name: "texts_to_away", Value: float64(c.toAway.Load()), Unit: "texts",
			Goal: "accepted while the friend's node was down: delivery times include the wait for its return",
		})
	}
	return c.failure()
}

// fail ends the play with an error, unless one has already.
func (c *cast) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

func (c *cast) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// mend starts whoever is down and heals the network.
func (c *cast) mend() error {
	c.w.Heal()
	if c.commute != nil {
		return c.failure()
	}
	for _, a := range c.actors {
		if err := a.start(c.w); err != nil {
			return err
		}
	}
	return c.failure()
}

// meet draws who is friends with whom, and has them exchange links. It returns
// the friends of each.
func (c *cast) meet() ([][]*simulation.Node, error) {
	friends := make([][]*simulation.Node, len(c.people))
	if c.friends == 0 {
		return friends, nil
	}
	for _, e := range edges(c.w.Rand("friends"), len(c.people), c.friends) {
		a, b := c.people[e[0]], c.people[e[1]]
		if c.commute != nil {
			c.meetInTurn(e[0], e[1])
		} else if err := a.Befriend(b); err != nil {
			return nil, fmt.Errorf("making friends: %w", err)
		}
		friends[e[0]] = append(friends[e[0]], b)
		friends[e[1]] = append(friends[e[1]], a)
	}
	return friends, nil
}

// edges draws a graph of n people with the mean degree given, at least 1, in
// which nobody is alone.
func edges(r *rand.Rand, n int, degree float64) [][2]int {
	want := min(int(float64(n)*degree/2+0.5), n*(n-1)/2)
	seen := map[[2]int]bool{}
	var list [][2]int
	add := func(a, b int) {
		e := [2]int{min(a, b), max(a, b)}
		if a != b && !seen[e] {
			seen[e] = true
			list = append(list, e)
		}
	}
	order := r.Perm(n)
	for i := 0; i < n; i += 2 {
		add(order[i], order[(i+1)%n])
	}
	if want > n*(n-1)/4 { // dense: drawing would meet the same pairs over and over
		all := make([][2]int, 0, n*(n-1)/2)
		for a := range n {
			for b := a + 1; b < n; b++ {
				all = append(all, [2]int{a, b})
			}
		}
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, e := range all {
			if len(list) >= want {
				break
			}
			add(e[0], e[1])
		}
	}
	for len(list) < want {
		add(r.IntN(n), r.IntN(n))
	}
	return list
}

// talk has a person write to one friend after another until the chat is over,
// whether they are there or not. What nobody accepts is not written again: the
// person's node is down, or does not know the friend yet.
func (c *cast) talk(i int, friends []*simulation.Node) {
	me := c.people[i]
	r := c.w.Rand("chat " + me.Name())
	if len(friends) == 0 {
		return
	}
	next := max(c.w.Now(), c.chat.from)
	for {
		next = c.there(i, next, exponential(r, c.chat.pause))
		if next >= c.chat.until {
			return
		}
		friend := friends[r.IntN(len(friends))]
		text := words(r, between(r, c.chat.size))
		c.w.SleepUntil(next)
		away := !friend.Running()
		if _, err := me.Send(friend, text); err != nil {
			c.unsent.Add(1)
			if simulation.Refused(err) {
				c.fail(err)
				return
			}
		} else if away {
			c.toAway.Add(1)
		}
	}
}

// exponential draws the pause between two events of a Poisson process.
func exponential(r *rand.Rand, mean time.Duration) time.Duration {
	const most = 50 // means; beyond it nobody draws
	return time.Duration(min(r.ExpFloat64(), most) * float64(mean))
}

// words draws a text.
func words(r *rand.Rand, size int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz      "
	b := make([]byte, size)
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	return string(b)
}

// pick draws k of the actors that nothing spares.
func (c *cast) pick(r *rand.Rand, k int) []*actor {
	list := slices.DeleteFunc(slices.Clone(c.actors), func(a *actor) bool { return a.spared })
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[:min(k, len(list))]
}

// spare keeps nodes from coming, going and crashing.
func (c *cast) spare(nodes []*simulation.Node) {
	for _, a := range c.actors {
		a.spared = a.spared || slices.Contains(nodes, a.Node)
	}
}

// churnAll chooses who comes and goes, and has them do it.
func (c *cast) churnAll() {
	k := int(c.churn.share*float64(len(c.people)) + 0.5)
	for _, a := range c.pick(c.w.Rand("churn"), k) {
		r := c.w.Rand("churn " + a.Name())
		c.w.Go(func() {
			if err := c.comeAndGo(a, r); err != nil {
				c.fail(err)
			}
		})
	}
}

func (c *cast) comeAndGo(a *actor, r *rand.Rand) error {
	next := max(c.w.Now(), c.churn.from)
	for {
		next += exponential(r, c.churn.up)
		crash, away := r.Float64() < c.churn.crash, exponential(r, c.churn.down)
		if next >= c.churn.until {
			return nil
		}
		c.w.SleepUntil(next)
		if crash {
			a.crash()
		} else if err := a.stop(); err != nil {
			return err
		}
		next = min(next+away, c.churn.until)
		c.w.SleepUntil(next)
		if err := a.start(c.w); err != nil {
			return err
		}
	}
}

// suffer has a fault occur, each of its times.
func (c *cast) suffer(name string, f fault) {
	r := c.w.Rand(name)
	for _, t := range f.times() {
		c.w.SleepUntil(t)
		switch f.kind {
		case faultPartition:
			c.w.Partition(c.sides(r, f)...)
			c.w.Sleep(f.last)
			c.w.Heal()
		case faultLoss:
			end := c.w.SetLoss(f.share)
			c.w.Sleep(f.last)
			end()
		case faultCrash:
			c.crash(r, f)
		case faultLink:
			c.degrade(r, f)
		case faultRelay:
			c.crashRelays(r, f)
		}
	}
}

// sides returns the parts of a partition, and draws those that have no names.
// What is drawn has everybody in it, attackers too.
func (c *cast) sides(r *rand.Rand, f fault) [][]*simulation.Node {
	if f.parts != nil {
		sides := make([][]*simulation.Node, len(f.parts))
		for i, names := range f.parts {
			sides[i] = nodesOf(c.w, names)
		}
		return sides
	}
	nodes := c.w.Nodes()
	r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	if f.groups == 0 {
		k := int(f.share*float64(len(nodes)) + 0.5)
		return [][]*simulation.Node{nodes[:k], nodes[k:]}
	}
	sides := make([][]*simulation.Node, f.groups)
	for i, n := range nodes {
		sides[i%len(sides)] = append(sides[i%len(sides)], n)
	}
	return sides
}

// crash crashes some nodes, at once or at a write boundary of theirs, and
// starts them again. One that writes too little to get to its boundary does not
// crash.
func (c *cast) crash(r *rand.Rand, f fault) {
	victims := c.pick(r, f.nodes)
	for _, a := range victims {
		if k := between(r, f.boundary); k > 0 && a.Running() {
			a.brink.Store(true)
			a.CrashAt(k)
		} else if k == 0 {
			a.crash()
		}
	}
	c.w.Sleep(f.last)
	for _, a := range victims {
		if a.brink.Load() {
			a.CrashAt(0)
		}
		if err := a.start(c.w); err != nil {
			c.fail(err)
		}
		a.brink.Store(false)
	}
}

// degrade gives some nodes a bad line to everybody.
func (c *cast) degrade(r *rand.Rand, f fault) {
	victims := c.pick(r, f.nodes)
	each := func(fn func(link, *network.Link)) {
		for _, v := range victims {
			for _, n := range c.w.Nodes() {
				switch {
				case n.Index() < v.Index():
					fn(link{n, v.Node}, &f.link)
				case n != v.Node:
					fn(link{v.Node, n}, &f.link)
				}
			}
		}
	}
	k := len(victims)
	names := make([]string, k)
	for i, v := range victims {
		names[i] = v.Name()
	}
	end := c.w.Fault(faultLink, fmt.Sprintf("%d links of %s: latency %v, jitter %v, loss %g %%",
		k*(len(c.w.Nodes())-1)-k*(k-1)/2, strings.Join(names, " "), f.link.Latency, f.link.Jitter, 100*f.link.Loss))
	each(c.worsen)
	c.w.Sleep(f.last)
	each(c.restore)
	end()
}

// worsen puts a bad link in the place of what is between two nodes.
func (c *cast) worsen(at link, l *network.Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bad[at] = append(c.bad[at], l)
	c.w.SetLink(at[0], at[1], l)
}

// restore takes it away: another fault may last, or else the topology's link is
// back.
func (c *cast) restore(at link, l *network.Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := slices.DeleteFunc(c.bad[at], func(b *network.Link) bool { return b == l })
	c.bad[at] = rest
	if len(rest) > 0 {
		c.w.SetLink(at[0], at[1], rest[len(rest)-1])
		return
	}
	c.w.SetLink(at[0], at[1], nil)
}
