package scenario

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"starling/protocol"
	"starling/simulation"
)

// A relays is relays of one kind.
type relays struct {
	group
	none  bool // count = 0
	quota int64
	bad   simulation.Bad
}

// names returns the names of the group's relays.
func (g relays) names() []string {
	if g.none {
		return nil
	}
	return g.group.names()
}

func (p *plan) readRelays(s section) {
	s.need("name")
	g := relays{group: group{name: s.text("name")}}
	if s.has("count") {
		g.count = s.count("count", 1, 0, maxNodes)
		g.none = g.count == 0
	}
	g.regions = s.words("region")
	g.up, g.down = s.rate("up"), s.rate("down")
	const mib = 1 << 20
	g.quota = int64(s.count("quota", 64, 16, 1<<20)) * mib
	words := []string{"no"}
	for _, b := range simulation.BadKinds() {
		words = append(words, string(b))
	}
	if bad := s.choice("bad", words...); bad != words[0] {
		g.bad = simulation.Bad(bad)
	}
	s.done()
	p.relays = append(p.relays, g)
}

// relayCount returns how many relays there are.
func (p *plan) relayCount() int {
	n := 0
	for _, g := range p.relays {
		n += len(g.names())
	}
	return n
}

// relaySpecs returns the relays of the world.
func (p *plan) relaySpecs() []simulation.RelaySpec {
	var list []simulation.RelaySpec
	for _, g := range p.relays {
		for i, name := range g.names() {
			list = append(list, simulation.RelaySpec{
				Name: name, Region: p.region(g.group, i), Up: g.up, Down: g.down, Quota: g.quota, Bad: g.bad,
			})
		}
	}
	return list
}

// checkRelays checks names and regions of relays, and that people name some that
// there are.
func (p *plan) checkRelays(top section) {
	seen := map[string]bool{}
	for _, g := range p.groups {
		for _, name := range g.names() {
			seen[name] = true
		}
	}
	known := map[string]bool{}
	for i, s := range top.subs("relays") {
		g := p.relays[i]
		known[g.name] = true
		for _, name := range g.names() {
			if seen[name] {
				s.clash("name", "two nodes or relays are named %q", name)
				break
			}
			seen[name], known[name] = true, true
		}
		p.checkRegions(s, g.regions)
	}
	for i, s := range top.subs("nodes") {
		for _, name := range p.groups[i].uses {
			if !known[name] {
				s.clash("uses", "there is no relay and no group of relays %q", name)
			}
		}
	}
}

// used returns the names of the relays that a group may name.
func (p *plan) used(g group) []string {
	var list []string
	for _, r := range p.relays {
		names := r.names()
		if !slices.Contains(g.uses, r.name) {
			names = slices.DeleteFunc(names, func(name string) bool { return !slices.Contains(g.uses, name) })
		}
		list = append(list, names...)
	}
	return list
}

// A commute is people who are there once a day.
type commute struct {
	online time.Duration
	apart  bool
	crash  float64
}

// day is how far apart the visits of one person are.
const day = 24 * time.Hour

func (p *plan) readCommute(s, top section) {
	s.need("online")
	c := &commute{online: s.duration("online", 2*time.Hour, settled+time.Minute)}
	c.apart = s.flag("apart", false)
	c.crash = s.share("crash", 0)
	s.done()
	if c.online > day {
		s.clash("online", "%v is more than a day", c.online)
	}
	if n := time.Duration(max(p.peers, 1)); c.apart && c.online > day/n-settled {
		s.clash("apart", "%d people who are there for %v each, and never two at once, need more than a day", p.peers, c.online)
	}
	if p.relayCount() == 0 {
		s.follow(s.table.at, "[commute] needs [[relays]]: nobody else is there to join through")
	}
	for _, other := range []string{"churn", "eclipse", "flood", "drain"} {
		if it := top.known(other); it != nil {
			s.clash("online", "who commutes is not there for [%s]", other)
		}
	}
	p.commute = c
	p.started -= p.peers
	p.config.Away = 2 * day // a text is there a day later, and its receipt another one
}

// settled is how long after their coming somebody does what needs the network,
// and the least pause between two visits of people who are there one by one.
const settled = 10 * time.Minute

// visits returns the offsets within a day at which people come.
func (c *commute) visits(r *rand.Rand, people int) []time.Duration {
	list := make([]time.Duration, people)
	order := r.Perm(people)
	for i := range list {
		if c.apart {
			list[order[i]] = day * time.Duration(i) / time.Duration(people)
		} else {
			list[i] = time.Duration(r.Int64N(int64(day - c.online + 1)))
		}
	}
	return list
}

// visit returns the visit of person i that is under way at t, or else their next
// one.
func (c *cast) visit(i int, t time.Duration) (from, to time.Duration) {
	from = c.comes[i]
	if t > from {
		from += (t - from) / day * day
	}
	if t >= from+c.commute.online {
		from += day
	}
	return from, from + c.commute.online
}

// there returns the time when person i has been there for d since t: everybody
// always is who does not commute.
func (c *cast) there(i int, t, d time.Duration) time.Duration {
	if c.commute == nil {
		return t + d
	}
	for {
		from, to := c.visit(i, t)
		t = max(t, from+settled/2)
		if t+d < to {
			return t + d
		}
		d -= max(0, to-t)
		t = to
	}
}

// open starts relays, and then everybody who does not commute, and has them name
// their relays.
func (c *cast) open() error {
	if err := c.w.StartRelays(); err != nil {
		return err
	}
	if c.commute != nil {
		c.comes = c.commute.visits(c.w.Rand("visits"), len(c.people))
		return nil
	}
	if err := c.w.StartAll(c.start); err != nil {
		return err
	}
	for _, n := range c.people {
		if err := c.use(n); err != nil {
			return err
		}
	}
	return nil
}

// use has a person name relays: those of their group, or three of them.
func (c *cast) use(n *simulation.Node) error {
	i := slices.IndexFunc(c.groups, func(g group) bool { return slices.Contains(g.names(), n.Name()) })
	names := c.used(c.groups[i])
	if len(names) > protocol.MaxRelays {
		r := c.w.Rand("relays of " + n.Name())
		r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		names = names[:protocol.MaxRelays]
	}
	var list []*simulation.Relay
	for _, name := range names {
		if r := c.w.Relay(name); r.Running() {
			list = append(list, r)
		}
	}
	return n.Use(list...)
}

// commuteAll has everybody come and go.
func (c *cast) commuteAll() {
	for i, a := range c.actors {
		r := c.w.Rand("commute " + a.Name())
		c.w.Go(func() {
			if err := c.comeDaily(i, a, r); err != nil {
				c.fail(err)
			}
		})
	}
}

func (c *cast) comeDaily(i int, a *actor, r *rand.Rand) error {
	for first := true; ; first = false {
		from, to := c.visit(i, c.w.Now())
		c.w.SleepUntil(from)
		if c.home.Load() {
			return nil
		}
		if err := a.start(c.w); err != nil {
			return err
		}
		if first {
			if err := c.use(a.Node); err != nil {
				return err
			}
		}
		for c.w.Now() < to {
			c.w.SleepUntil(min(c.w.Now()+time.Minute, to))
			if c.home.Load() {
				return nil
			}
		}
		if r.Float64() < c.commute.crash {
			a.crash()
		} else if err := a.stop(); err != nil {
			return err
		}
	}
}

// meetInTurn has person b make a link on their first visit, and a add it on their
// next one.
func (c *cast) meetInTurn(a, b int) {
	c.w.Go(func() {
		at := c.there(b, 0, settled)
		c.w.SleepUntil(at)
		link, err := c.people[b].Invite(false)
		if err == nil {
			c.w.SleepUntil(c.there(a, at, settled))
			err = c.people[a].Add(c.people[b], link)
		}
		if err != nil {
			c.fail(fmt.Errorf("making friends: %w", err))
		}
	})
}

// crashRelays crashes some relays, and starts them again if the fault ends before
// the scenario does.
func (c *cast) crashRelays(r *rand.Rand, f fault) {
	list := slices.DeleteFunc(c.w.Relays(), func(r *simulation.Relay) bool { return !r.Running() })
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	list = list[:min(len(list), f.nodes)]
	for _, relay := range list {
		relay.Crash()
	}
	if !f.ends {
		return
	}
	c.w.Sleep(f.last)
	for _, relay := range list {
		if f.lost {
			relay.LoseDisk()
		}
		if err := relay.Start(); err != nil {
			c.fail(err)
		}
	}
}

// A drain is [simulation.Drain] in a file.
type drain struct {
	victim string
	at     time.Duration
	away   time.Duration
	work   []string // names of who comes by a public link
	tokens []string // of who comes by a link of their own
}

func (p *plan) readDrain(s section) {
	s.need("victim", "at", "public", "invited")
	d := &drain{victim: s.text("victim"), at: s.duration("at", p.ready(), 0)}
	d.away = s.duration("away", time.Hour, settled)
	named := p.named()
	newcomers := func(key string) (list []string) {
		for _, word := range s.words(key) {
			if named[word] == nil || slices.Contains(named[word], d.victim) {
				s.clash(key, "there is nobody %q beside the victim", word)
			}
			list = append(list, named[word]...)
		}
		return list
	}
	d.work, d.tokens = newcomers("public"), newcomers("invited")
	s.done()
	p.checkAttack(s, "victim", d.victim, d.at, d.away+settled+drainTime)
	if p.relayCount() == 0 {
		s.follow(s.table.at, "[drain] needs [[relays]]")
	}
	p.drain = d
}

// drainTime is what draining takes, work aside, and writing afterwards.
const drainTime = 5 * time.Minute

// play has the victim go away, its pools drained, and newcomers write to it.
func (d *drain) play(w *simulation.World) error {
	return w.Drain(simulation.Drain{
		Victim: w.Node(d.victim), Public: nodesOf(w, d.work), Invited: nodesOf(w, d.tokens), Away: d.away,
	})
}
