package report

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"starling/simulation"
)

func TestHeadlineDoesNotSteerTheTerminal(t *testing.T) {
	r := small()
	r.Violation, r.Manifest.Outcome, r.Manifest.Error = nil, "failed", "starting p\x1b]0;x\x07\n\tat once"
	if s := Headline(r); strings.ContainsAny(s, "\x1b\x07\t") || !strings.Contains(s, "p·]0;x·\n    at once") {
		t.Errorf("%q", s)
	}
}

// A run that did not wait for its messages does not know that none was lost.
func TestHeadlineClaimsNothingOfWhatIsOnItsWay(t *testing.T) {
	r := small()
	r.Violation, r.Manifest.Outcome = nil, "held"
	r.Messages[0].Shown, r.Messages[0].Confirmed = -1, -1
	if s := Headline(r); strings.Contains(s, "lost") || !strings.Contains(s, "still on the way at the end; nothing was shown twice") {
		t.Errorf("%q", s)
	}
}

// replaceIn edits a file.
func replaceIn(t *testing.T, path, old, new string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(b), old) {
		t.Fatalf("%s has no %q: %v", path, old, err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), old, new, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A page from another machine could hold any script, under our name.
func TestMergeTakesNoPageFromElsewhere(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	f, err := Create(src, small().Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Event(simulation.Event{Type: "sealed"}); err != nil {
		t.Fatal(err)
	}
	if err := f.Finish(small()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{pageFile, "delivery.svg", "more.html", "evil.svg"} {
		if err := os.WriteFile(filepath.Join(src, name), []byte("<script>evil()</script>"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Merge(dst, src); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dst, runsDir, Name(small().Manifest))
	fresh := finish(t, filepath.Join(t.TempDir(), "fresh"), small())
	entries, err := os.ReadDir(run)
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := os.ReadDir(fresh); len(entries) != len(want) {
		t.Errorf("the run has %d files, want %d", len(entries), len(want))
	}
	for _, e := range entries {
		got := read(t, run, e.Name())
		if e.Name() == eventsFile {
			if !strings.Contains(got, "sealed") {
				t.Errorf("the events are %q", got)
			}
		} else if got != read(t, fresh, e.Name()) {
			t.Errorf("%s is not as a run writes it", e.Name())
		}
	}
}

func TestReadersAreBounded(t *testing.T) {
	if b, err := io.ReadAll(&bounded{r: strings.NewReader("12345"), left: 5}); err != nil || string(b) != "12345" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := io.ReadAll(&bounded{r: strings.NewReader("123456"), left: 5}); !errors.Is(err, errTooLarge) {
		t.Errorf("%v", err)
	}
	for name, size := range map[string]int64{manifestFile: maxManifest, messagesTable.name: maxTable} {
		dir := finish(t, filepath.Join(t.TempDir(), "run"), small())
		path := filepath.Join(dir, name)
		if err := os.Truncate(path, size+1); err != nil { // with a hole: it takes no room
			t.Fatal(err)
		}
		if _, err := Load(dir); !errors.Is(err, errTooLarge) {
			t.Errorf("%s of %d bytes: %v", name, size+1, err)
		}
	}
}

// Counting, drawing and adding up end, whatever the tables say.
func TestTablesOfNonsense(t *testing.T) {
	for name, edit := range map[string][2]string{
		lookupsTable.name: {",9,9,false", ",9223372036854775807,9,false"},
		trafficTable.name: {",700,300", ",-700,300"},
	} {
		dir := finish(t, filepath.Join(t.TempDir(), "run"), small())
		replaceIn(t, filepath.Join(dir, name), edit[0], edit[1])
		if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "is not a number from 0 to") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := small()
	for i := range 200_000 {
		r.Lookups = append(r.Lookups, simulation.Lookup{At: time.Duration(i), Hops: i * 1000, Found: true})
	}
	r.Lookups = append(r.Lookups, simulation.Lookup{Hops: 1<<63 - 1}, simulation.Lookup{Hops: -1})
	began := time.Now()
	if d := digestOf(r); len(d.hops) > mostHops+1 {
		t.Errorf("%d bins", len(d.hops))
	}
	finish(t, filepath.Join(t.TempDir(), "run"), r)
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %v", took)
	}
	if n := len(every(1e300, 1e300, 1, plainNumber)); n > 1000 {
		t.Errorf("%d ticks", n)
	}
}

// A spreadsheet runs what begins with an equals sign, and more.
func TestTablesHoldNoFormulas(t *testing.T) {
	names := []string{"=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "'quoted", "-7", "\r=1"}
	r := small()
	for i, name := range names {
		r.Nodes = append(r.Nodes, simulation.NodeResult{Name: name, Region: name, Role: "peer"})
		r.Messages = append(r.Messages, simulation.Message{ID: name, From: 3 + i, Shown: -1, Confirmed: -1})
	}
	r.Metrics = append(r.Metrics, simulation.Metric{Name: "=evil()", Value: -1, Unit: "@", Goal: "+"})
	dir := finish(t, filepath.Join(t.TempDir(), "run"), r)
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.Nodes, got.Nodes); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(r.Messages, got.Messages); diff != "" {
		t.Error(diff)
	}
	run, err := ReadRun(dir)
	if err != nil {
		t.Fatal(err)
	}
	run.Manifest.Params = map[string]string{"=k": "=v", "skew": "-5m"}
	other := run
	other.Manifest.Params = map[string]string{"=k": "=w", "skew": "-7m"}
	sweep := t.TempDir()
	if err := Sweep(sweep, []Run{run, other}); err != nil {
		t.Fatal(err)
	}
	for _, table := range [][][]string{rows(t, dir, nodesTable.name), rows(t, dir, messagesTable.name), rows(t, dir, metricsTable.name), rows(t, sweep, "sweep.csv"), rows(t, sweep, "runs.csv")} {
		for _, row := range table {
			for _, cell := range row {
				_, number := quantity(cell)
				if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) && !number {
					t.Errorf("%q is a formula, in %q", cell, row)
				}
			}
		}
	}
}
