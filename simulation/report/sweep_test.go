package report

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"starling/simulation"
)

// runOf makes up a run with one metric.
func runOf(seed uint64, params map[string]string, outcome string, value float64) Run {
	return Run{
		Manifest: simulation.Manifest{Scenario: "town", Seed: seed, Params: params, Version: "1", Go: "go1.26.0", Outcome: outcome},
		Metrics:  []simulation.Metric{{Name: "spread", Value: value, Unit: "s"}, {Name: "constant", Value: 4}},
	}
}

func TestSweepGroupsBySettingAndCountsWhatHeld(t *testing.T) {
	var runs []Run
	for i := range 5 { // 1..5: 3 ± 1.963243
		runs = append(runs, runOf(uint64(i), map[string]string{"loss": "0.1", "churn": "2"}, "held", float64(i+1)))
	}
	runs = append(runs,
		runOf(9, map[string]string{"loss": "0.1", "churn": "2"}, "violated", 1e6),
		runOf(1, map[string]string{"loss": "0.1", "churn": "10"}, "held", 7),
		runOf(1, map[string]string{"loss": "0.3", "churn": "2"}, "held", math.NaN()),
		runOf(2, map[string]string{"loss": "0.3", "churn": "2"}, "held", 8),
	)
	dir := t.TempDir()
	if err := Sweep(dir, runs); err != nil {
		t.Fatal(err)
	}
	got := rows(t, dir, "sweep.csv")
	want := [][]string{
		{"metric", "unit", "churn", "loss", "runs", "mean", "ci95_low", "ci95_high", "lowest", "highest"},
		{"spread", "s", "2", "0.1", "5", "3", "1.0367", "4.9632", "1", "5"},
		{"spread", "s", "2", "0.3", "1", "8", "", "", "8", "8"},
		{"spread", "s", "10", "0.1", "1", "7", "", "", "7", "7"},
	}
	for i, row := range want {
		for j, cell := range row {
			if v, err := strconv.ParseFloat(got[i][j], 64); err == nil && j > 4 {
				got[i][j] = strconv.FormatFloat(math.Trunc(v*1e4)/1e4, 'f', -1, 64)
			}
			if got[i][j] != cell {
				t.Errorf("sweep.csv, row %d, column %d: %q, want %q", i, j, got[i][j], cell)
			}
		}
	}
	if n := len(rows(t, dir, "runs.csv")); n != len(runs)+1 {
		t.Errorf("runs.csv has %d rows, want %d", n, len(runs)+1)
	}
	for name, there := range map[string]bool{"spread-by-churn.svg": true, "spread-by-loss.svg": true, "constant-by-loss.svg": false} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != there {
			t.Errorf("%s is there: %v, want %v", name, err == nil, there)
		}
	}
	page := read(t, dir, "index.html")
	for _, want := range []string{"9 runs of town over 2 values of churn and 2 values of loss", "Run violated – churn=2, loss=0.1, seed 9", "Left out: 1 run that"} {
		if !strings.Contains(page, want) {
			t.Errorf("the index does not say %q", want)
		}
	}
}

func TestSweepOverSeedsAlone(t *testing.T) {
	dir := t.TempDir()
	if err := Sweep(dir, []Run{runOf(1, nil, "held", 1), runOf(2, nil, "held", 3)}); err != nil {
		t.Fatal(err)
	}
	page := strings.ReplaceAll(read(t, dir, "index.html"), nbsp, " ")
	if !strings.Contains(page, "2 runs of town: no violation was seen.") || !strings.Contains(page, "0 s to 14.7 s") || !strings.Contains(page, "over two runs only") || !strings.Contains(page, "ends where the metric cannot be: at 0") {
		t.Error("the index lacks the headline or the interval")
	}
	if err := Sweep(t.TempDir(), nil); err == nil {
		t.Error("a sweep of no runs was taken")
	}
	if err := Sweep(t.TempDir(), []Run{runOf(1, nil, "failed", 1)}); err != nil {
		t.Errorf("a sweep in which nothing held: %v", err)
	}
}

func TestValuesInTheirOrder(t *testing.T) {
	pos, _ := positions([]string{"0", "10", "100"})
	if pos[1] != 10 {
		t.Errorf("numbers from 0 stand at %v", pos)
	}
	if pos, _ = positions([]string{"1", "10", "100"}); pos[2] != 2 {
		t.Errorf("numbers over two decades stand at %v", pos)
	}
	if pos, _ = positions([]string{"200ms", "1s"}); pos[0] != 0.2 || pos[1] != 1 {
		t.Errorf("durations stand at %v", pos)
	}
	if pos, _ = positions([]string{"3", "plain"}); pos[0] != 0 || pos[1] != 1 {
		t.Errorf("words stand at %v", pos)
	}
	if pos, _ = positions([]string{"1", "1.0"}); pos[0] == pos[1] {
		t.Errorf("two spellings of one number share a place: %v", pos)
	}
}

func TestOrderOfRunsIsOne(t *testing.T) {
	var runs []Run
	for _, params := range []map[string]string{nil, {"a": "2"}, {"a": "10"}, {"b": "1"}, {"a": "2", "b": "x"}} {
		runs = append(runs, runOf(1, params, "held", 1), runOf(2, params, "held", 1))
	}
	for _, a := range runs {
		for _, b := range runs {
			if compareRuns(a, b) != -compareRuns(b, a) {
				t.Errorf("%v and %v are in no order", a.Manifest.Params, b.Manifest.Params)
			}
		}
	}
	if compareRuns(runs[2], runs[4]) >= 0 {
		t.Error("2 does not stand before 10")
	}
}

func TestNamesOfRunsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range []simulation.Manifest{
		{Scenario: "town"},
		{Scenario: "town", Seed: 1},
		{Scenario: "Town", Seed: 1},
		{Scenario: "../town", Seed: 1},
		{Scenario: "town", Params: map[string]string{"a": "1", "b": "2"}},
		{Scenario: "town", Params: map[string]string{"a": "1,b=2"}},
		{Scenario: "town", Params: map[string]string{"a": strings.Repeat("x", 300)}},
		{Scenario: "town", Params: map[string]string{"a": "/"}},
		{Scenario: "town", Params: map[string]string{"a": "_"}},
	} {
		name := Name(m)
		if seen[name] || len(name) > 120 || !filepath.IsLocal(name) || strings.ContainsAny(name, `/\`) {
			t.Errorf("the name of %+v is %q", m, name)
		}
		seen[name] = true
	}
	if got, want := Name(simulation.Manifest{Scenario: "town", Seed: 7, Params: map[string]string{"loss": "0.1"}}), "town,loss=0.1,seed=7"; got != want {
		t.Errorf("Name = %q, want %q", got, want)
	}
}

func TestMergeJoinsMachines(t *testing.T) {
	dir := t.TempDir()
	at := func(machine string, seed uint64, change func(*simulation.Result)) string {
		r := small()
		r.Manifest.Seed = seed
		if change != nil {
			change(r)
		}
		return finish(t, filepath.Join(dir, machine, runsDir, Name(r.Manifest)), r)
	}
	at("a", 1, nil)
	at("a", 2, nil)
	at("b", 2, nil) // copied: the same
	single := at("b", 3, nil)
	if err := Merge(filepath.Join(dir, "all"), filepath.Join(dir, "a"), filepath.Join(dir, "b"), single); err != nil {
		t.Fatal(err)
	}
	runs, err := Runs(filepath.Join(dir, "all"))
	if err != nil || len(runs) != 3 {
		t.Fatalf("merged %d runs (%v), want 3", len(runs), err)
	}
	if !strings.Contains(read(t, dir, "all/index.html"), "3 runs of hello") {
		t.Error("the index does not count the runs")
	}
	if _, err := Load(runs[0].Dir); err != nil {
		t.Errorf("loading a merged run: %v", err)
	}

	at("other", 2, func(r *simulation.Result) { r.Messages[0].Shown++ })
	at("newer", 4, func(r *simulation.Result) { r.Manifest.Version = "2" })
	at("town", 5, func(r *simulation.Result) { r.Manifest.Scenario = "town" })
	at("edited", 6, func(r *simulation.Result) { r.Manifest.Source += "# edited\n" })
	for src, wants := range map[string][]string{
		"other": {"seed 2", "twice", filepath.Join("other", runsDir)}, "newer": {"version", `"1"`, `"2"`}, "town": {"scenario", `"hello"`, `"town"`}, "edited": {"the scenario file"},
	} {
		dst := filepath.Join(dir, "refused-"+src)
		err := Merge(dst, filepath.Join(dir, "a"), filepath.Join(dir, src))
		if _, ok := errors.AsType[*MixError](err); !ok {
			t.Errorf("merging %s: %v, want a MixError", src, err)
			continue
		}
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("merging %s: %q does not name %q", src, err, want)
			}
		}
		if _, err := os.Stat(dst); err == nil {
			t.Errorf("merging %s: it was refused, and yet wrote", src)
		}
	}

	if _, err := Create(filepath.Join(dir, "cut", "run"), small().Manifest); err != nil {
		t.Fatal(err)
	}
	if err := Merge(filepath.Join(dir, "no"), filepath.Join(dir, "a"), filepath.Join(dir, "cut")); !errors.Is(err, ErrRunning) {
		t.Errorf("merging a run that was cut off: %v, want ErrRunning", err)
	}
	if err := Merge(filepath.Join(dir, "all"), filepath.Join(dir, "a")); err == nil {
		t.Error("merged into results")
	}
	if err := Merge(filepath.Join(dir, "no"), t.TempDir()); err == nil || !strings.Contains(err.Error(), "no results") {
		t.Errorf("merging an empty folder: %v", err)
	}
}

func TestCompareSideBySide(t *testing.T) {
	dir := t.TempDir()
	a, b := small(), small()
	b.Manifest.Seed, b.Manifest.Params = 8, map[string]string{"loss": "0.2"}
	b.Messages = b.Messages[:10]
	finish(t, filepath.Join(dir, "a"), a)
	finish(t, filepath.Join(dir, "b"), b)
	var out strings.Builder
	if err := Compare(&out, filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(out.String(), nbsp, " ")
	for _, want := range []string{"\nloss ", "\nMessages accepted ", " 11  ", " -9.1 %\n", "+9.1 points\n", "\nSpam shown  "} {
		if !strings.Contains(text, want) {
			t.Errorf("the comparison lacks %q:\n%s", want, text)
		}
	}
	for _, same := range []string{"\nstore ", "\nversion "} {
		if strings.Contains(text, same) {
			t.Errorf("the comparison lists what is the same: %q", same)
		}
	}
	if err := Compare(&out, filepath.Join(dir, "a")); err == nil {
		t.Error("compared one run")
	}
	if err := Compare(&out, filepath.Join(dir, "a"), filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("comparing with a missing folder: %v", err)
	}
}

func TestCompareTakesDefaultsForWhatTheyAre(t *testing.T) {
	dir := t.TempDir()
	a, b := small(), small()
	for _, r := range []*simulation.Result{a, b} {
		r.Manifest.Defaults = map[string]string{"loss": "0.3", "skew": "20m", "nodes": "3"}
		r.Manifest.Params = nil
	}
	b.Manifest.Params = map[string]string{"loss": "0.30", "skew": "10m", "nodes": "4", "gone": "1"}
	b.Manifest.Nodes = 4
	var out strings.Builder
	if err := Compare(&out, finish(t, filepath.Join(dir, "a"), a), finish(t, filepath.Join(dir, "b"), b)); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.FieldsFunc(out.String(), func(r rune) bool { return r == ' ' }), " ")
	for _, want := range []string{"\nskew 20m 10m\n", "\ngone default 1\n", "\nnodes 3 4\n"} {
		if strings.Count(text, want) != 1 {
			t.Errorf("the comparison does not say %q once:\n%s", want, text)
		}
	}
	if strings.Contains(text, "\nloss ") || strings.Count(text, "\nnodes ") != 1 {
		t.Errorf("the comparison lists what is the same, or twice:\n%s", text)
	}

	if err := Sweep(filepath.Join(dir, "sweep"), []Run{runOf(1, nil, "held", 1)}); err != nil {
		t.Fatal(err)
	}
	err := Compare(&out, filepath.Join(dir, "sweep"), filepath.Join(dir, "a"))
	if want := "is a sweep; its runs are in " + filepath.Join(dir, "sweep", runsDir); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("comparing a sweep: %v, want %q", err, want)
	}
}

func TestSweepIsCitedAndShowsEachPlotOnce(t *testing.T) {
	var runs []Run
	for i, loss := range []string{"0", "0", "0.1", "0.1"} {
		r := runOf(uint64(i%2+4), map[string]string{"loss": loss, "nodes": "9"}, "held", float64(i))
		r.Manifest.Repeat, r.Manifest.Source = "starling-sim run town.toml --seed=4 --set=loss=0", "duration = \"<1h>\""
		r.Metrics = append(r.Metrics, simulation.Metric{Name: "copy", Value: float64(i), Unit: "s"})
		runs = append(runs, r)
	}
	dir := t.TempDir()
	if err := Sweep(dir, runs); err != nil {
		t.Fatal(err)
	}
	page := strings.ReplaceAll(read(t, dir, "index.html"), nbsp, " ")
	for _, want := range []string{
		"starling-sim sweep town.toml --seeds=4..5 --vary=loss=0,0.1 --set=nodes=9<", "scenario “town” with loss=0, 0.1; nodes=9; 4 runs, seeds 4..5, go1.26.0",
		"duration = &#34;&lt;1h&gt;&#34;", "Equal to it in every run: Copy.",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the index does not say %q", want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "copy-by-loss.svg")); err == nil {
		t.Error("a plot is there twice")
	}
	runs[0].Manifest.Params = nil
	if got := sweepOf(runs).command(runs); got != "" {
		t.Errorf("%q does not repeat a run without the parameter", got)
	}
}

func TestSweepCountsARunOnce(t *testing.T) {
	a, b := runOf(1, nil, "held", 1), runOf(1, nil, "held", 1)
	a.Dir, b.Dir = "runs/a", "runs/b"
	dir := filepath.Join(t.TempDir(), "sweep")
	err := Sweep(dir, []Run{a, runOf(2, nil, "held", 2), b})
	if mix, ok := errors.AsType[*MixError](err); !ok || !strings.Contains(err.Error(), "seed 1 is there twice, and counts once: runs/a and runs/b") {
		t.Errorf("%v (%v)", err, mix)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("it was refused, and yet wrote")
	}
}

// Whoever edits the outcome of a run does not make it one that held.
func TestViolationIsBrokenWhateverTheOutcomeSays(t *testing.T) {
	odd := runOf(2, nil, "held", 1e6)
	odd.Violation = &simulation.Violation{Oracle: "lost", What: "a letter is lost"}
	if s := sweepOf([]Run{runOf(1, nil, "held", 1), odd}); s.counted != 1 || len(s.broken) != 1 {
		t.Errorf("%d held and %d are broken, want 1 and 1", s.counted, len(s.broken))
	}
	for _, outcome := range []string{"held", "interrupted", "running"} {
		r := small()
		r.Manifest.Outcome, r.Violation = outcome, odd.Violation
		dir := finish(t, filepath.Join(t.TempDir(), "run"), r)
		run, err := ReadRun(dir)
		if err != nil || run.Manifest.Outcome != "violated" {
			t.Errorf("%s: ReadRun says %q, %v", outcome, run.Manifest.Outcome, err)
		}
		whole, err := Load(dir)
		if err != nil || whole.Manifest.Outcome != "violated" {
			t.Errorf("%s: Load: %v", outcome, err)
		}
	}
}

func TestSettingsAreToldApart(t *testing.T) {
	a := map[string]string{"a": "1, b=2", "b": "3", "c": "1"}
	b := map[string]string{"a": "1", "b": "2, b=3", "c": "1"}
	s := sweepOf([]Run{runOf(1, a, "held", 1), runOf(1, b, "held", 2), runOf(1, map[string]string{"a": "1", "b": "3", "c": "2"}, "held", 3)})
	if len(s.groups) != 3 {
		t.Errorf("%d groups, want 3", len(s.groups))
	}
	if curves, _ := s.curves(0, "c"); len(curves) != 3 {
		t.Errorf("%d curves, want 3", len(curves))
	}
}

func TestCompareWarnsOfRunsThatWereCut(t *testing.T) {
	dir := t.TempDir()
	a, b := small(), small()
	a.Violation, a.Manifest.Outcome = nil, "held"
	b.Violation, b.Manifest.Outcome = nil, "interrupted"
	finish(t, filepath.Join(dir, "a"), a)
	finish(t, filepath.Join(dir, "b"), b)
	const want = "B (interrupted after 1 min 40 s) did not run to the end"
	var text, page strings.Builder
	if err := errors.Join(Compare(&text, filepath.Join(dir, "a"), filepath.Join(dir, "b")), CompareHTML(&page, filepath.Join(dir, "a"), filepath.Join(dir, "b"))); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{text.String(), page.String()} {
		if !strings.Contains(s, want) {
			t.Errorf("it does not say %q:\n%.2000s", want, s)
		}
	}
	text.Reset()
	if err := Compare(&text, filepath.Join(dir, "a"), filepath.Join(dir, "a")); err != nil || strings.Contains(text.String(), "Mind") {
		t.Errorf("two whole runs: %v\n%s", err, text.String())
	}
}
