package scenario

import (
	"fmt"
	"slices"
	"time"

	"starling/protocol"
	"starling/simulation"
)

// An eclipse is [simulation.Eclipse] and [simulation.Reading] in a file.
type eclipse struct {
	target  string
	at      time.Duration
	replica int
	lie     simulation.Lie
	readers int
	rounds  int
	away    time.Duration
	back    time.Duration
}

// A flood is [simulation.Flood] in a file.
type flood struct {
	victim  string
	at      time.Duration
	friends int
	insider bool
	rate    float64
	size    int
	pace    time.Duration
	calm    time.Duration
	last    time.Duration
}

func (p *plan) readEclipse(s section) {
	s.need("target", "at", "readers")
	e := &eclipse{target: s.text("target"), at: s.duration("at", p.ready(), 0)}
	e.replica = s.count("replica", 0, 0, 1)
	lies := []simulation.Lie{simulation.LieOld, simulation.LieNothing, simulation.LieGarbage}
	words := make([]string, len(lies))
	for i, l := range lies {
		words[i] = l.String()
	}
	e.lie = lies[slices.Index(words, s.choice("lie", words...))]
	e.readers = s.count("readers", 1, 1, maxNodes)
	e.rounds = s.count("rounds", 4, 1, 1000)
	e.away = s.duration("away", 30*time.Minute, time.Second)
	e.back = s.duration("back", 5*time.Minute, time.Second)
	s.done()
	p.checkAttack(s, "target", e.target, e.at, e.back+time.Duration(e.rounds)*(time.Duration(e.readers)*time.Second+e.away+e.back))
	if e.readers >= p.peers {
		s.clash("readers", "%d are more than the %d people beside the target", e.readers, p.peers-1)
	}
	if len(p.with(simulation.RoleSybil)) == 0 {
		s.follow(s.table.at, "[eclipse] needs [[nodes]] with role = %q", simulation.RoleSybil)
	}
	p.eclipse = e
}

func (p *plan) readFlood(s section) {
	s.need("victim", "at", "friends")
	f := &flood{victim: s.text("victim"), at: s.duration("at", p.ready(), 0)}
	f.friends = s.count("friends", 1, 1, maxNodes)
	f.insider = s.flag("insider", false)
	f.rate = s.number("rate", 1, 0.001, 1000)
	f.size = s.count("size", 500, 1, protocol.MaxText)
	f.pace = s.duration("pace", 20*time.Second, time.Second)
	f.calm = s.duration("calm", 10*time.Minute, time.Second)
	f.last = s.duration("for", 10*time.Minute, time.Second)
	s.done()
	p.checkAttack(s, "victim", f.victim, f.at, f.calm+f.last)
	others, beside := p.peers-1, "the victim"
	if e := p.eclipse; e != nil { // read before
		if e.target == f.victim {
			s.clash("victim", "%s is the target of [eclipse], which goes away", f.victim)
		}
		others, beside = others-1, "the victim and the target of [eclipse]"
	}
	if f.friends > others {
		s.clash("friends", "%d are more than the %d people beside %s", f.friends, others, beside)
	}
	if len(p.with(simulation.RoleSpammer)) == 0 {
		s.follow(s.table.at, "[flood] needs [[nodes]] with role = %q", simulation.RoleSpammer)
	}
	p.flood = f
}

// checkAttack checks whom an attack is against, and that there is time for it.
func (p *plan) checkAttack(s section, key, name string, at, lasts time.Duration) {
	if s.has(key) && !slices.Contains(p.people(), name) {
		s.clash(key, "there is no node %q with role = %q", name, rolePeer)
	}
	switch {
	case at < p.ready():
		s.clash("at", "%v is before all %d nodes have been started, which takes %v", at, p.started, p.ready())
	case at+lasts > p.duration:
		s.clash("at", "the attack lasts until %v, after the end of the scenario at %v", at+lasts, p.duration)
	}
}

// cohort draws who else an attack involves: these nodes run throughout, as the
// target of an eclipse does not.
func (p *plan) cohort(w *simulation.World, stream, but string, k int) []*simulation.Node {
	names := slices.DeleteFunc(p.people(), func(name string) bool {
		return name == but || p.eclipse != nil && name == p.eclipse.target
	})
	r := w.Rand(stream)
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return nodesOf(w, names[:k])
}

func nodesOf(w *simulation.World, names []string) []*simulation.Node {
	list := make([]*simulation.Node, len(names))
	for i, name := range names {
		list[i] = w.Node(name)
	}
	return list
}

// attack starts the attacks, each at its time.
func (c *cast) attack() {
	if e := c.eclipse; e != nil {
		readers := c.cohort(c.w, "readers", e.target, e.readers)
		c.spare(append(slices.Clone(readers), c.w.Node(e.target)))
		c.w.At(e.at, func() {
			if err := e.play(c.w, readers, nodesOf(c.w, c.with(simulation.RoleSybil))); err != nil {
				c.fail(fmt.Errorf("playing the eclipse: %w", err))
			}
		})
	}
	if d := c.drain; d != nil {
		c.spare(nodesOf(c.w, append(append([]string{d.victim}, d.work...), d.tokens...)))
		c.w.At(d.at, func() {
			if err := d.play(c.w); err != nil {
				c.fail(fmt.Errorf("playing the drain: %w", err))
			}
		})
	}
	if f := c.flood; f != nil {
		friends := c.cohort(c.w, "friends of the victim", f.victim, f.friends)
		c.spare(append(slices.Clone(friends), c.w.Node(f.victim)))
		c.w.At(f.at, func() {
			if err := f.play(c.w, friends, nodesOf(c.w, c.with(simulation.RoleSpammer))); err != nil {
				c.fail(fmt.Errorf("playing the flood: %w", err))
			}
		})
	}
}

func (e *eclipse) play(w *simulation.World, readers, sybils []*simulation.Node) error {
	attack, err := w.Eclipse(simulation.Eclipse{Target: w.Node(e.target), Sybils: sybils, Replica: e.replica, Lie: e.lie})
	if err != nil {
		return err
	}
	if err := attack.Read(simulation.Reading{Readers: readers, Rounds: e.rounds, Away: e.away, Back: e.back}); err != nil {
		return err
	}
	return attack.Report()
}

func (f *flood) play(w *simulation.World, friends, spammers []*simulation.Node) error {
	attack := simulation.Flood{
		Victim: w.Node(f.victim), Friends: friends, Spammers: spammers,
		Rate: f.rate, Size: f.size, Pace: f.pace, Calm: f.calm, Lasts: f.last,
	}
	if f.insider {
		attack.Insider, attack.Spammers = spammers[0], spammers[1:]
	}
	return w.Flood(attack)
}
