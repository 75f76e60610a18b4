package node

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// A profile that comes back from an old copy: of the database alone, which is
// noticed, or of everything, which only the peers notice. Either way sessions
// renew by themselves, nothing that is sent from then on is lost, and no key
// and nonce are used twice (the world counts them).
func TestRollback(t *testing.T) {
	for _, tt := range []struct {
		name    string
		folder  string // within the home; what comes back
		noticed bool
	}{{"database", "rows", true}, {"home", "", false}} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.person("Ada", onDisk, quick), w.person("Bo", quick)
			a.meet(b)
			b.keepPort() // both will be away at once
			say := func(phase string, n int) (ids [2][]string) {
				for i := range n {
					ids[0] = append(ids[0], a.say("Bo", fmt.Sprint(phase, " to Bo ", i)))
					ids[1] = append(ids[1], b.say("Ada", fmt.Sprint(phase, " to Ada ", i)))
				}
				return ids
			}
			settle := func(ids [2][]string) {
				t.Helper()
				for _, id := range ids[0] {
					a.delivered(id)
				}
				for _, id := range ids[1] {
					b.delivered(id)
				}
			}
			settle(say("before", 3))
			// The copy is made with something on its way.
			b.stop()
			waiting := a.say("Bo", "on its way in the copy")
			a.stop()
			copied := filepath.Join(t.TempDir(), "copy")
			copyTree(t, filepath.Join(a.home, tt.folder), copied)

			b.start()
			a.start()
			a.delivered(waiting)
			settle(say("after the copy", 5))
			a.stop()
			unheard := b.say("Ada", "while Ada is away")
			copyTree(t, copied, filepath.Join(a.home, tt.folder))
			a.start()
			if got := a.Status().RolledBack; got != tt.noticed {
				t.Fatalf("rolled back: %t", got)
			}
			a.delivered(waiting) // it is waiting again, and is shown once
			b.heard("Ada", "on its way in the copy")
			b.delivered(unheard)
			a.heard("Bo", "while Ada is away")
			settle(say("afterwards", 5))
			for i := range 5 {
				a.heard("Bo", fmt.Sprint("afterwards to Ada ", i))
				b.heard("Ada", fmt.Sprint("afterwards to Bo ", i))
			}
			inOrder(t, a, "Bo", "afterwards")
			inOrder(t, b, "Ada", "afterwards")

			// It is over: the next start is like any other.
			a.restart()
			if a.Status().RolledBack {
				t.Fatal("still rolled back after the sessions were renewed")
			}
			settle(say("at last", 1))
		})
	}
}

// inOrder checks that the texts of a phase are in the order of their numbers.
func inOrder(t testing.TB, p *person, from, phase string) {
	t.Helper()
	next := 0
	for _, text := range p.texts(from) {
		if !strings.HasPrefix(text, phase) {
			continue
		}
		if !strings.HasSuffix(text, fmt.Sprint(" ", next)) {
			t.Fatalf("%s has %q where number %d belongs", p.name, text, next)
		}
		next++
	}
}
