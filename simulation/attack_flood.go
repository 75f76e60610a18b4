package simulation

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"starling/node"
)

// A Flood is users who are a nuisance. Spammers hold the victim's public link;
// each adds it and writes as fast as it may, adding it anew now and then, as
// every time a session begins with a handshake that the victim pays for. An
// insider is one whom the victim has accepted, and so may fill its chat.
// Meanwhile friends write to the victim, and the victim answers each line.
type Flood struct {
	Victim   *Node
	Friends  []*Node // honest; contacts of the victim, or made so first
	Spammers []*Node // of [RoleSpammer]
	Insider  *Node   // of [RoleSpammer]; nil: none

	Rate  float64       // lines a second, of every spammer. Default 1
	Size  int           // bytes of a line. Default 500
	Pace  time.Duration // between two lines of a friend. Default 20 s
	Calm  time.Duration // how long is measured before. Default 10 min
	Lasts time.Duration // how long is flooded and measured. Default 10 min
}

// addAnew is after how many lines a spammer adds the link again.
const addAnew = 16

// Flood plays a flood to its end and reports what it did to the victim. All
// its nodes must run.
func (w *World) Flood(f Flood) error {
	w.alive()
	f.Rate = orDefault(f.Rate, 1)
	f.Size = orDefault(f.Size, 500)
	f.Pace = orDefault(f.Pace, 20*time.Second)
	f.Calm = orDefault(f.Calm, 10*time.Minute)
	f.Lasts = orDefault(f.Lasts, 10*time.Minute)
	if err := f.check(); err != nil {
		return err
	}
	if err := f.acquaint(w); err != nil {
		return err
	}
	link, err := f.Victim.Invite(true)
	if err != nil {
		return err
	}

	calm := w.Now()
	if err := f.chatter(w, "before", f.Calm); err != nil {
		return err
	}
	storm := w.Now()
	fault := w.begin("flood", fmt.Sprintf("%d spammers write %g lines a second each to %s", len(f.all()), f.Rate, f.Victim.Name()))
	var spam nuisance
	for _, n := range f.all() {
		spam.group.Add(1)
		w.Go(func() {
			defer spam.group.Done()
			spam.note(f.spam(w, n, link))
		})
	}
	before := f.Victim.received()
	listed := &listing{n: f.Victim}
	w.Go(func() { listed.follow(w, storm+f.Lasts) })
	err = f.chatter(w, "during", f.Lasts)
	spam.group.Wait()
	w.alive()
	w.ended(fault)
	spam.received = f.Victim.received() - before
	if err != nil {
		return err
	}
	w.Settle()
	return f.report(w, calm, storm, &spam, listed)
}

func (f Flood) all() []*Node {
	if f.Insider == nil {
		return f.Spammers
	}
	return append(slices.Clone(f.Spammers), f.Insider)
}

// check returns what is wrong with a flood.
func (f Flood) check() error {
	var errs []error
	if f.Victim == nil || len(f.Friends) == 0 || len(f.all()) == 0 {
		errs = append(errs, errors.New("simulation: a flood has a victim, friends and spammers"))
	}
	if f.Rate < 0 || f.Size < 0 || f.Pace < 0 {
		errs = append(errs, errors.New("simulation: Flood.Rate, Size and Pace are not negative"))
	}
	for _, n := range f.all() {
		if n.Role() != RoleSpammer {
			errs = append(errs, fmt.Errorf("simulation: %s is a %s, not a spammer", n.Name(), n.Role()))
		}
	}
	return errors.Join(errs...)
}

// acquaint makes the friends and the insider contacts of the victim.
func (f Flood) acquaint(w *World) error {
	who := f.Friends
	if f.Insider != nil {
		who = append(slices.Clone(who), f.Insider)
	}
	for _, n := range who {
		if n.Knows(f.Victim) && f.Victim.Knows(n) {
			continue
		}
		if err := n.Befriend(f.Victim); err != nil {
			return err
		}
		if _, err := n.Send(f.Victim, "hello"); err != nil {
			return err
		}
	}
	for limit := w.Now() + w.cfg.Promise; ; w.Sleep(settleEvery) {
		if !slices.ContainsFunc(who, func(n *Node) bool { return !n.Knows(f.Victim) || !f.Victim.Knows(n) }) {
			return nil
		}
		if w.Now() > limit {
			return fmt.Errorf("simulation: %s and its friends have not become acquainted within %v", f.Victim.Name(), w.cfg.Promise)
		}
	}
}

// chatter lets every friend write to the victim at its pace, and the victim
// answer each line.
func (f Flood) chatter(w *World, phase string, lasts time.Duration) error {
	until := w.Now() + lasts
	errs := make([]error, len(f.Friends))
	var group sync.WaitGroup
	for i, n := range f.Friends {
		r := w.Rand("chatter " + phase + " " + n.Name())
		group.Add(1)
		w.Go(func() {
			defer group.Done()
			for line := 0; ; line++ {
				w.Sleep(f.Pace/2 + time.Duration(r.Int64N(int64(f.Pace))))
				if w.Now() >= until {
					return
				}
				if _, err := n.Send(f.Victim, fmt.Sprintf("%s: %d", phase, line)); err != nil {
					errs[i] = err
					return
				}
				if _, err := f.Victim.Send(n, fmt.Sprintf("%s: %d, too", phase, line)); err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	group.Wait()
	w.alive()
	w.SleepUntil(until)
	return errors.Join(errs...)
}

// A nuisance counts what spammers did.
type nuisance struct {
	group sync.WaitGroup

	mu    sync.Mutex // guards lines; never held across a wait
	lines int

	received int64 // bytes at the victim while it lasted, friends' included
}

func (s *nuisance) note(lines int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines += lines
}

// spam makes one spammer write for as long as the flood lasts, and returns how
// many lines its node took. What a node refuses its user is not sent.
func (f Flood) spam(w *World, n *Node, link string) (lines int) {
	r := w.Rand("spam " + n.Name())
	pause := time.Duration(float64(time.Second) / f.Rate)
	until := w.Now() + f.Lasts
	text := strings.Repeat("x", f.Size)
	for i := 0; ; i++ {
		w.Sleep(pause/2 + time.Duration(r.Int64N(int64(pause)+1)))
		if w.Now() >= until {
			return lines
		}
		if n != f.Insider && i%addAnew == 0 && n.Add(f.Victim, link) != nil {
			continue
		}
		if _, err := n.Send(f.Victim, text); err == nil {
			lines++
		}
	}
}

// received returns the bytes that the node has received over streams so far.
func (n *Node) received() (sum int64) {
	for _, t := range n.traffic() {
		sum += t.Received
	}
	return sum
}

// A listing watches what a victim's user sees of strangers.
type listing struct {
	n    *Node
	mu   sync.Mutex // guards most
	most int        // requests listed at once
}

func (l *listing) follow(w *World, until time.Duration) {
	for w.Now() < until {
		l.look()
		w.Sleep(10 * time.Second)
	}
}

func (l *listing) look() {
	live := l.n.Live()
	if live == nil {
		return
	}
	requests := live.Status().Requests
	l.mu.Lock()
	defer l.mu.Unlock()
	l.most = max(l.most, requests)
}

// manyLines is more than a node keeps of a request.
const manyLines = 100

// report writes what a flood did into the results.
func (f Flood) report(w *World, calm, storm time.Duration, spam *nuisance, listed *listing) error {
	live := f.Victim.Live()
	if live == nil {
		return fmt.Errorf("the victim %s: %w", f.Victim.Name(), errDown)
	}
	requests, err := live.Contacts(context.Background(), true)
	if err != nil {
		return fmt.Errorf("reading the requests of %s: %w", f.Victim.Name(), err)
	}
	most := 0
	for _, c := range requests {
		lines, err := live.History(context.Background(), c.Name, manyLines, "")
		if err != nil {
			return fmt.Errorf("reading a request of %s: %w", f.Victim.Name(), err)
		}
		lines = slices.DeleteFunc(lines, func(m node.Message) bool { return m.Kind != "text" })
		most = max(most, len(lines))
	}
	listed.look()
	messages, _, _ := w.oracle.results()
	end := storm + f.Lasts
	for _, phase := range []struct {
		name     string
		from, to time.Duration
	}{{"before", calm, storm}, {"during", storm, end}} {
		in := took(messages, phase.from, phase.to, func(m Message) bool { return m.To == f.Victim.index })
		out := took(messages, phase.from, phase.to, func(m Message) bool { return m.From == f.Victim.index })
		for _, m := range []Metric{
			{Name: "flood_honest_p50_" + phase.name, Value: percentile(in, 50), Unit: "s"},
			{Name: "flood_honest_p99_" + phase.name, Value: percentile(in, 99), Unit: "s"},
			{Name: "flood_answer_p99_" + phase.name, Value: percentile(out, 99), Unit: "s"},
		} {
			w.Report(m)
		}
		if phase.name == "during" {
			w.Report(Metric{Name: "flood_honest_in_a_minute", Value: within(in, time.Minute), Unit: "%", Goal: ">= 99 %"})
		}
	}
	for _, m := range []Metric{
		{Name: "flood_lines_written", Value: float64(spam.lines)},
		{Name: "flood_victim_received", Value: float64(spam.received), Unit: "bytes"},
		{Name: "flood_requests_listed", Value: float64(listed.most), Goal: "<= 100"},
		{Name: "flood_entries_most", Value: float64(most), Goal: "<= 8"},
	} {
		w.Report(m)
	}
	return nil
}

// took returns how long each of some messages took, in seconds and in
// ascending order; one that never arrived took for ever.
func took(messages []Message, from, to time.Duration, which func(Message) bool) []float64 {
	var list []float64
	for _, m := range messages {
		switch {
		case m.Accepted < from || m.Accepted >= to || !which(m):
		case m.Shown < 0:
			list = append(list, math.Inf(1))
		default:
			list = append(list, (m.Shown - m.Accepted).Seconds())
		}
	}
	slices.Sort(list)
	return list
}

// within returns how many percent of a sorted list took no longer than d, NaN of
// none.
func within(sorted []float64, d time.Duration) float64 {
	n, _ := slices.BinarySearch(sorted, math.Nextafter(d.Seconds(), math.Inf(1)))
	return 100 * float64(n) / float64(len(sorted))
}

// percentile returns the value that p percent of a sorted list do not exceed,
// NaN of none.
func percentile(sorted []float64, p int) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}
