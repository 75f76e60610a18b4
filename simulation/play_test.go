package simulation_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"starling/simulation"
)

// The tests in this file read like plays. Whatever happens in them, the oracle
// of the world holds it to its promises too.

func TestFriendIsAway(t *testing.T) {
	stage(t, "ada", "bo").play(func(s *scene) {
		ada, bo := s.friends("ada", "bo")
		ada.writes(bo, "are you awake?")
		s.pass(time.Second)
		bo.has(ada, "are you awake?")

		bo.leaves()
		ada.writes(bo, "you are not")
		ada.writes(bo, "good night")
		s.pass(time.Hour)
		bo.returns()
		s.pass(10 * time.Minute)
		bo.has(ada, "are you awake?", "you are not", "good night")

		bo.writes(ada, "good morning")
		s.pass(time.Second)
		ada.has(bo, "good morning")
	})
}

// They are there together only at the end.
func TestFriendsTakeTurns(t *testing.T) {
	stage(t, "ada", "bo").play(func(s *scene) {
		ada, bo := s.friends("ada", "bo")
		ada.leaves()
		bo.writes(ada, "where are you?")
		s.pass(20 * time.Minute)
		bo.leaves()
		ada.returns()
		ada.writes(bo, "here, and you?")
		s.pass(20 * time.Minute)
		ada.has(bo) // nobody carried it
		bo.returns()
		s.pass(10 * time.Minute)
		ada.has(bo, "where are you?")
		bo.has(ada, "here, and you?")
	})
}

func TestNetworkFallsApart(t *testing.T) {
	stage(t, "ada", "bo").play(func(s *scene) {
		ada, bo := s.friends("ada", "bo")
		s.apart(ada, bo)
		ada.writes(bo, "one")
		bo.writes(ada, "eins")
		s.pass(10 * time.Minute)
		ada.writes(bo, "two")
		bo.writes(ada, "zwei")
		s.pass(10 * time.Minute)
		ada.has(bo)
		bo.has(ada)

		s.together()
		s.pass(10 * time.Minute)
		bo.has(ada, "one", "two")
		ada.has(bo, "eins", "zwei")
	})
}

// Power is lost at each of the first writes that a message causes, at the one
// who writes it. If it was accepted it arrives.
func TestPowerIsLostWhileWriting(t *testing.T) {
	stage(t, "ada", "bo").play(func(s *scene) {
		ada, bo := s.friends("ada", "bo")
		for k := 1; k <= 9; k++ {
			ada.CrashAt(k)
			ada.tries(bo, fmt.Sprint("attempt ", k))
			s.pass(20 * time.Second)
			ada.CrashAt(0)
			ada.returns()
			s.pass(10 * time.Second)
		}
		s.pass(5 * time.Minute)
		bo.hasAtLeast(ada, ada.accepted...)
	})
}

// The same at the one who reads it.
func TestPowerIsLostWhileReading(t *testing.T) {
	stage(t, "ada", "bo").play(func(s *scene) {
		ada, bo := s.friends("ada", "bo")
		for k := 1; k <= 9; k++ {
			bo.CrashAt(k)
			ada.tries(bo, fmt.Sprint("attempt ", k))
			s.pass(20 * time.Second)
			bo.CrashAt(0)
			bo.returns()
			s.pass(10 * time.Second)
		}
		s.pass(5 * time.Minute)
		bo.has(ada, ada.accepted...)
	})
}

// A message of the longest kind is under way when both lose power and the
// network falls apart.
func TestEverythingAtOnce(t *testing.T) {
	stage(t, "ada", "bo").play(func(s *scene) {
		ada, bo := s.friends("ada", "bo")
		long := string(slices.Repeat([]byte("long "), 3000))
		ada.writes(bo, long)
		s.pass(50 * time.Millisecond)
		s.apart(ada, bo)
		ada.Crash()
		bo.Crash()
		s.pass(time.Hour)
		ada.returns()
		bo.returns()
		s.pass(time.Minute)
		s.together()
		s.pass(10 * time.Minute)
		bo.has(ada, long)
	})
}

// A stage is a world before the play.
func stage(t *testing.T, names ...string) *scene {
	return &scene{T: t, names: names}
}

// A scene is a world during the play.
type scene struct {
	*testing.T
	*simulation.World
	names []string
}

// play plays a play on a world of the people named and two passers-by, through
// whom all join.
func (s *scene) play(acts func(*scene)) {
	s.Helper()
	cfg := simulation.Config{Seed: 1, Nodes: []simulation.NodeSpec{{Name: "cy"}, {Name: "dee"}}}
	for _, name := range s.names {
		cfg.Nodes = append(cfg.Nodes, simulation.NodeSpec{Name: name})
	}
	_, err := simulation.Run(cfg, func(w *simulation.World) error {
		s.World = w
		if err := w.StartAll(100 * time.Millisecond); err != nil {
			return err
		}
		acts(s)
		w.Settle()
		return nil
	})
	if err != nil {
		s.Error(err)
	}
}

// give ends the play for an error.
func (s *scene) give(err error) {
	s.Helper()
	if err != nil {
		s.Error(err)
		runtime.Goexit()
	}
}

// friends makes two people friends.
func (s *scene) friends(name, other string) (a, b *player) {
	s.Helper()
	a, b = &player{Node: s.Node(name), s: s}, &player{Node: s.Node(other), s: s}
	s.give(a.Befriend(b.Node))
	for !a.Knows(b.Node) || !b.Knows(a.Node) {
		s.Sleep(time.Second)
	}
	return a, b
}

func (s *scene) pass(d time.Duration) { s.Sleep(d) }
func (s *scene) apart(a, b *player) {
	s.Partition([]*simulation.Node{a.Node}, []*simulation.Node{b.Node})
}
func (s *scene) together() { s.Heal() }

// A player is somebody in a play.
type player struct {
	*simulation.Node
	s        *scene
	accepted []string
}

func (p *player) leaves()  { p.s.Helper(); p.s.give(p.Stop()) }
func (p *player) returns() { p.s.Helper(); p.s.give(p.Start()) }

// writes has the person write to another.
func (p *player) writes(to *player, text string) {
	p.s.Helper()
	_, err := p.Send(to.Node, text)
	p.s.give(err)
}

// tries is writes where it may fail.
func (p *player) tries(to *player, text string) {
	if _, err := p.Send(to.Node, text); err == nil {
		p.accepted = append(p.accepted, text)
	}
}

// has checks what the person has read of another.
func (p *player) has(from *player, want ...string) {
	p.s.Helper()
	if got := p.read(from); !slices.Equal(got, want) {
		p.s.Errorf("%s has %.80q of %s, want %.80q", p.Name(), got, from.Name(), want)
	}
}

// hasAtLeast is has where there may be more: who lost power before they knew
// whether a text was accepted may find that it was.
func (p *player) hasAtLeast(from *player, want ...string) {
	p.s.Helper()
	got := p.read(from)
	for _, text := range want {
		if !slices.Contains(got, text) {
			p.s.Errorf("%s has %.80q of %s, without %.80q", p.Name(), got, from.Name(), text)
		}
	}
	if len(want) == 0 {
		p.s.Errorf("%s was not promised anything", p.Name())
	}
}

// read returns what the player has of another.
func (p *player) read(from *player) []string {
	p.s.Helper()
	if !p.Running() {
		p.s.give(fmt.Errorf("%s is not there", p.Name()))
	}
	list, err := p.Live().History(p.s.Context(), from.Name(), 100, "")
	p.s.give(err)
	var texts []string
	for _, m := range list {
		if m.State == "received" && m.Kind == "text" {
			texts = append(texts, m.Text)
		}
	}
	return texts
}
