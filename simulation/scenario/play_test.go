package scenario

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"starling/simulation"
)

// run plays a scenario, and checks that every promise was kept.
func run(t *testing.T, s *Scenario, seed uint64, set map[string]string) *simulation.Result {
	t.Helper()
	cfg, play, err := s.Build(seed, set)
	if err != nil {
		t.Fatal(err)
	}
	r, err := simulation.Run(cfg, play)
	if err != nil {
		t.Fatalf("%v\nrepeat it with: %s", err, cfg.Repeat)
	}
	return r
}

func shippedScenario(t *testing.T, name string) *Scenario {
	t.Helper()
	s, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// delivered returns how many messages were accepted, and how many were shown.
func delivered(r *simulation.Result) (accepted, shown int) {
	for _, m := range r.Messages {
		if m.Shown >= 0 {
			shown++
		}
	}
	return len(r.Messages), shown
}

func TestHelloHolds(t *testing.T) {
	r := run(t, shippedScenario(t, "hello"), 1, nil)
	accepted, shown := delivered(r)
	if accepted < 20 || shown != accepted {
		t.Errorf("%d messages were accepted, and %d shown", accepted, shown)
	}
	if r.Manifest.Outcome != "held" || len(r.Faults) != 0 {
		t.Errorf("outcome %s, faults %v", r.Manifest.Outcome, r.Faults)
	}
}

// Every kind of fault happens when the file says, is over when it says, and
// nothing is lost.
func TestFaultsAreSuffered(t *testing.T) {
	s, err := read("trouble", "trouble.toml", "", `about = "x"
duration = "2m"
[[nodes]]
name = "p"
count = 6
skew = ["-1m", "1m"]
[friends]
degree = 3
[chat]
pause = "10s"
[churn]
share = 0.34
up = "30s"
down = "10s"
crash = 0.5
[[fault]]
kind = "loss"
share = 0.2
at = "10s"
for = "20s"
[[fault]]
kind = "partition"
groups = 2
at = "15s"
for = "25s"
every = "50s"
[[fault]]
kind = "crash"
nodes = 2
at = "20s"
for = "10s"
[[fault]]
kind = "crash"
share = 0.5
boundary = [1, 3]
at = "40s"
for = "30s"
[[fault]]
kind = "link"
latency = "1s"
loss = 0.1
at = "50s"
for = "30s"
`)
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, s, 1, nil)
	if accepted, shown := delivered(r); accepted < 20 || shown != accepted {
		t.Errorf("%d messages were accepted, and %d shown", accepted, shown)
	}
	var spans []string
	crashes := 0
	for _, f := range r.Faults {
		switch f.Kind {
		case "link":
			if want := regexp.MustCompile(`^5 links of p\d: latency 1s, jitter 0s, loss 10 %$`); !want.MatchString(f.What) {
				t.Errorf("a fault is %q, want %s", f.What, want)
			}
			fallthrough
		case "loss", "partition":
			spans = append(spans, fmt.Sprintf("%s %v-%v", f.Kind, f.From, f.To))
		case "crash":
			crashes++
			if f.To < 0 || f.To > 2*time.Minute {
				t.Errorf("%s was down from %v to %v", f.What, f.From, f.To)
			}
		}
	}
	want := []string{"loss 10s-30s", "partition 15s-40s", "link 50s-1m20s", "partition 1m5s-1m30s"}
	if d := cmp.Diff(want, spans); d != "" {
		t.Error(d)
	}
	if crashes < 3 {
		t.Errorf("%d nodes crashed", crashes)
	}
	if i := slices.IndexFunc(r.Metrics, func(m simulation.Metric) bool { return m.Name == "texts_unsent" }); i < 0 || !strings.HasPrefix(r.Metrics[i].Goal, "never accepted: ") {
		t.Errorf("it is not reported how many texts nobody accepted, nor what that means: %v", r.Metrics)
	}
}

// Only who is down, or does not know the friend yet, may refuse a text.
func TestNodeThatRefusesTextsEndsThePlay(t *testing.T) {
	cfg, play, err := shippedScenario(t, "hello").Build(1, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = simulation.Run(cfg, func(w *simulation.World) error {
		w.At(30*time.Second, func() {
			for _, n := range w.Nodes() {
				for _, m := range w.Nodes() {
					if live := n.Live(); live != nil && n.Knows(m) {
						_, _ = live.BlockContact(t.Context(), m.Name())
					}
				}
			}
		})
		return play(w)
	})
	if err == nil || !strings.Contains(err.Error(), "is blocked") {
		t.Errorf("the run ended with %v", err)
	}
}

// What was written to people who were away had to wait for them.
func TestPlayCountsTextsToThoseAway(t *testing.T) {
	s, err := read("away", "away.toml", "", `about = "x"
duration = "4m"
[[nodes]]
name = "p"
count = 4
[friends]
degree = 2
[chat]
pause = "5s"
[churn]
share = 0.5
up = "20s"
down = "40s"
`)
	if err != nil {
		t.Fatal(err)
	}
	cfg, play, err := s.Build(1, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := simulation.Run(cfg, play)
	if err != nil {
		t.Fatal(err)
	}
	waited := 0
	for _, m := range r.Messages {
		if m.Shown-m.Accepted > 20*time.Second {
			waited++
		}
	}
	i := slices.IndexFunc(r.Metrics, func(m simulation.Metric) bool { return m.Name == "texts_to_away" })
	if i < 0 || waited == 0 || int(r.Metrics[i].Value) < waited || int(r.Metrics[i].Value) > len(r.Messages) {
		t.Errorf("%d of %d waited: %v", waited, len(r.Messages), r.Metrics)
	}
}

// Partitions follow groups, single nodes and regions if the file says so.
func TestPartitionsByName(t *testing.T) {
	s, err := read("apart", "apart.toml", "", `about = "x"
duration = "30s"
[[nodes]]
name = "eu"
count = 2
region = "europe"
[[nodes]]
name = "as"
count = 2
region = "asia"
[[nodes]]
name = "ada"
region = "europe"
[network]
matrix = "internet"
[[fault]]
kind = "partition"
between = [["eu"], ["as2", "ada"]]
at = "5s"
for = "5s"
[[fault]]
kind = "partition"
by = "region"
at = "15s"
for = "5s"
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range run(t, s, 1, nil).Faults {
		got = append(got, fmt.Sprintf("%v %s", f.From, f.What))
	}
	want := []string{
		"5s groups of [2 2 1]; apart: eu1 eu2; apart: as2 ada",
		"15s groups of [3 2]; apart: eu1 eu2 ada; apart: as1 as2",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// Of two faults of a link that overlap, the end of one does not end the other.
func TestLinkFaultsOverlap(t *testing.T) {
	s, err := read("overlap", "overlap.toml", "", `about = "x"
duration = "2m"
[[nodes]]
name = "p"
count = 3
[friends]
degree = 2
[chat]
pause = "30s"
[[fault]]
kind = "link"
share = 1
latency = "1s"
at = "10s"
for = "30s"
[[fault]]
kind = "link"
share = 1
latency = "2s"
at = "20s"
for = "30s"
`)
	if err != nil {
		t.Fatal(err)
	}
	cfg, play, err := s.Build(1, nil)
	if err != nil {
		t.Fatal(err)
	}
	var links []string // of p1 and p2
	cfg.Sink = func(e simulation.Event) {
		if e.Type == "link" && e.Node == "p1" && e.Peer == "p2" {
			latency, _, _ := strings.Cut(e.Text, ",")
			links = append(links, latency)
		}
	}
	if _, err := simulation.Run(cfg, play); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"1s", "2s", "back to the topology"}, slices.Compact(links)); d != "" {
		t.Error(d)
	}
}

// An actor who fails ends the play with the reason.
func TestFailureEndsThePlay(t *testing.T) {
	s, err := read("x", "x.toml", "", base)
	if err != nil {
		t.Fatal(err)
	}
	cfg, _, err := s.Build(1, nil)
	if err != nil {
		t.Fatal(err)
	}
	reader := s.reader()
	p := reader.read(s.root, "")
	bad := errors.New("bad")
	_, err = simulation.Run(cfg, func(w *simulation.World) error {
		c := p.cast(w)
		w.At(time.Minute, func() { c.fail(bad) })
		err := c.play()
		if w.Now() > 2*time.Minute {
			t.Errorf("the play went on until %v", w.Now())
		}
		return err
	})
	if !errors.Is(err, bad) {
		t.Errorf("the run ended with %v", err)
	}
}

// Attacks are played against those whom the file names, and report. They speak
// the face of the file.
func TestAttacksArePlayed(t *testing.T) {
	s, err := read("attacks", "attacks.toml", "", `about = "x"
duration = "5m"
[[nodes]]
name = "ada"
[[nodes]]
name = "p"
count = 4
[[nodes]]
name = "sybil"
count = 3
role = "sybil"
[[nodes]]
name = "spammer"
count = 2
role = "spammer"
[network]
face = "packet"
[churn]
share = 1
up = "1m"
down = "10s"
[eclipse]
target = "ada"
readers = 2
at = "1m"
lie = "nothing"
rounds = 1
away = "2m"
back = "30s"
[flood]
victim = "p1"
friends = 2
at = "1m"
calm = "20s"
for = "20s"
insider = true
pace = "5s"
`)
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, s, 1, nil)
	if r.Manifest.Face != "packet" {
		t.Errorf("face %s", r.Manifest.Face)
	}
	for _, name := range []string{"eclipse_lookup_success", "flood_requests_listed"} {
		if !slices.ContainsFunc(r.Metrics, func(m simulation.Metric) bool { return m.Name == name }) {
			t.Errorf("%s is not reported; there are %v", name, r.Metrics)
		}
	}
	for _, n := range r.Nodes {
		if want := map[string]int{"p1": 1, "ada": 3, "sybil1": 1, "spammer1": 1}[n.Name]; want > 0 && n.Starts != want {
			t.Errorf("%s was started %d times, want %d", n.Name, n.Starts, want)
		}
	}
}

// Who takes part in an attack runs throughout, and so is not who goes away.
func TestCohortStays(t *testing.T) {
	s, err := read("reference", "reference.toml", "", Reference())
	if err != nil {
		t.Fatal(err)
	}
	p := s.reader().read(s.root, s.folder)
	cfg, _, err := s.Build(1, nil)
	if err != nil {
		t.Fatal(err)
	}
	drawn := map[string]bool{}
	_, err = simulation.Run(cfg, func(w *simulation.World) error {
		for i := range 100 {
			for _, n := range p.cohort(w, fmt.Sprint("test ", i), p.flood.victim, p.flood.friends) {
				drawn[n.Name()] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if drawn[p.eclipse.target] || drawn[p.flood.victim] || len(drawn) != p.peers-2 {
		t.Errorf("of %d people %v were drawn", p.peers, drawn)
	}
}
