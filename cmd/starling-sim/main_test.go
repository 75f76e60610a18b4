package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain makes the test binary the program itself where a sweep, or a test,
// starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("STARLING_SIM_PROGRAM") == "yes" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Setenv("STARLING_SIM_PROGRAM", "yes") // for those it starts
	os.Exit(m.Run())
}

// patience is far beyond what anything here needs, but for -long.
var patience = 5 * time.Minute

// A done is what a command left.
type done struct {
	t        testing.TB
	code     int
	out, err string
}

// sim runs the program in a folder.
func sim(t testing.TB, dir string, args ...string) done {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return program(t, dir, self, args...)
}

func program(t testing.TB, dir, file string, args ...string) done {
	t.Helper()
	c := exec.CommandContext(t.Context(), file, args...)
	c.Dir = dir
	var out, errs strings.Builder
	c.Stdout, c.Stderr = &out, &errs
	timer := time.AfterFunc(patience, func() { c.Process.Kill() })
	defer timer.Stop()
	_ = c.Run() // the code says how it ended
	return done{t, c.ProcessState.ExitCode(), out.String(), errs.String()}
}

// want checks the exit code, and that the output contains some texts.
func (d done) want(code int, out, errs string) done {
	d.t.Helper()
	if d.code != code || !strings.Contains(d.out, out) || !strings.Contains(d.err, errs) {
		d.t.Fatalf("exit code %d, want %d\nstandard output, want %q:\n%s\nstandard error, want %q:\n%s", d.code, code, out, d.out, errs, d.err)
	}
	return d
}

func TestHelloLeavesAReport(t *testing.T) {
	dir := t.TempDir()
	d := sim(t, dir, "run", "hello").want(exitOK, "nothing was lost", "")
	lines := strings.Split(strings.TrimSpace(d.out), "\n")
	page, ok := strings.CutPrefix(lines[len(lines)-1], "report: ")
	if !ok {
		t.Fatalf("the last line is %q", lines[len(lines)-1])
	}
	b, err := os.ReadFile(filepath.Join(dir, page))
	if err != nil || !strings.Contains(string(b), "<svg") {
		t.Errorf("the report has %d bytes, %v", len(b), err)
	}
	for _, name := range []string{"manifest.json", "events.jsonl", "messages.csv", "traffic.csv", "delivery.svg"} {
		if info, err := os.Stat(filepath.Join(dir, filepath.Dir(page), name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A second run does not touch the first.
	sim(t, dir, "run", "hello").want(exitOK, "report: "+filepath.Join("results", "hello-1-2"), "")
}

// Without exact mode the seed decides what people do; only what is due at the
// same nanosecond may come in another order.
func TestTwoRunsWithOneSeedAgree(t *testing.T) {
	dir := t.TempDir()
	var got [2]resultShape
	for i := range got {
		d := sim(t, dir, "run", "hello", "--seed", "5", "--json").want(exitOK, "", "")
		if err := json.Unmarshal([]byte(d.out), &got[i]); err != nil {
			t.Fatal(err)
		}
	}
	a, b := got[0].Metrics, got[1].Metrics
	for _, name := range []string{"accepted", "delivered", "confirmed"} {
		if a[name] != b[name] || a[name] == 0 {
			t.Errorf("%s: %v and %v", name, a[name], b[name])
		}
	}
	for name, most := range map[string]float64{"delivery_p50": 1.25, "bytes_sent": 2} {
		if p, q := a[name], b[name]; p > q*most || q > p*most {
			t.Errorf("%s: %v and %v differ by more than a factor of %v", name, p, q, most)
		}
	}
}

func TestListShowsEveryScenarioAndParameter(t *testing.T) {
	d := sim(t, t.TempDir(), "list").want(exitOK, "hello", "")
	for _, word := range []string{"town", "storm", "eclipse", "flood", "--set nodes=", "--set loss="} {
		if !strings.Contains(d.out, word) {
			t.Errorf("%q is not in the list", word)
		}
	}
	sim(t, t.TempDir(), "show", "storm").want(exitOK, "[[fault]]", "")
	sim(t, t.TempDir(), "show", "reference").want(exitOK, "[params]", "")
}

func TestWrongUse(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	head := "about = \"x\"\nduration = \"1m\"\n[[nodes]]\nname = \"p\"\ncount = 3\n"
	for _, test := range []struct {
		name string
		args []string
		err  string
	}{
		{"no such command", []string{"walk"}, `no command "walk"`},
		{"nearly a command", []string{"swep"}, `did you mean "sweep"?`},
		{"nearly a scenario", []string{"run", "stormm"}, `did you mean "storm"?`},
		{"no number", []string{"run", "hello", "--seed", "x"}, "it is not such a number"},
		{"no scenario", []string{"run"}, "the scenario is missing"},
		{"no such scenario", []string{"run", "hallo"}, "hello, town, storm"},
		{"no such file", []string{"run", "gone.toml"}, "gone.toml"},
		{"no such parameter", []string{"run", "hello", "--set", "people=3"}, "people"},
		{"no value", []string{"run", "hello", "--set", "nodes"}, "K=V"},
		{"set twice", []string{"run", "hello", "--set", "nodes=3", "--set", "nodes=4"}, "twice"},
		{"seed", []string{"run", "hello", "--seed", "one"}, "seed"},
		{"exact in an ordinary build", []string{"run", "hello", "--exact"}, "exact-build"},
		{"unknown key", []string{"run", file("key.toml", head+"colour = 1\n")}, "key.toml:6:1"},
		{"not TOML", []string{"run", file("bad.toml", "about = \"x\nduration")}, "bad.toml:1:"},
		{"missing trace", []string{"run", file("trace.toml", head+"[network]\ntrace = \"gone.csv\"\n")}, "trace.toml:7:1"},
		{"seeds", []string{"sweep", "hello", "--seeds", "5..1"}, "A..B"},
		{"too many", []string{"sweep", "hello", "--seeds", "1..99999999999"}, "runs"},
		{"shard", []string{"sweep", "hello", "--shard", "4/3"}, "1/3"},
		{"vary", []string{"sweep", "hello", "--vary", "nodes"}, "K=V,V"},
		{"vary what is set", []string{"sweep", "hello", "--set", "nodes=3", "--vary", "nodes=3,4"}, "twice"},
		{"compare one", []string{"compare", "results"}, "second folder"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := sim(t, dir, test.args...).want(exitUsage, "", test.err)
			if strings.Contains(d.err, "goroutine") {
				t.Errorf("it panicked: %s", d.err)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(dir, "results")); err == nil {
		t.Error("wrong use left results")
	}
	sim(t, dir, "run", "hello", "--out", ".").want(exitError, "", "not empty")
	sim(t, dir, "compare", "gone", "gone").want(exitError, "", "gone")
	sim(t, dir, "merge", "gone").want(exitError, "", "gone")
}

func TestSweepPlotsWhatVaries(t *testing.T) {
	dir := t.TempDir()
	args := []string{"sweep", "hello", "--seeds", "1..3", "--vary", "nodes=4,5", "--set", "pause=20s"}
	sim(t, dir, args...).want(exitOK, "report: "+filepath.Join("results", "hello-sweep", "index.html"), "6 of 6, ")
	index, err := os.ReadFile(filepath.Join(dir, "results", "hello-sweep", "index.html"))
	if err != nil || !strings.Contains(string(index), "95") {
		t.Errorf("the page has %d bytes, %v", len(index), err)
	}
	plots, _ := filepath.Glob(filepath.Join(dir, "results", "hello-sweep", "*-by-nodes.svg"))
	if len(plots) == 0 {
		t.Error("there is no plot by nodes")
	}
	// Started again, it has nothing to do.
	again := sim(t, dir, args...).want(exitOK, "report: ", "")
	if strings.Contains(again.err, "held") {
		t.Errorf("it ran again: %s", again.err)
	}
	// Started with fewer seeds, it shows no others.
	fewer := sim(t, dir, "sweep", "hello", "--seeds", "2", "--vary", "nodes=4,5", "--set", "pause=20s", "--json").want(exitOK, "", "")
	if n := strings.Count(fewer.out, `"seed"`); n != 2 {
		t.Errorf("it shows %d runs, want 2:\n%s", n, fewer.out)
	}
	// The same in two parts, joined.
	for _, part := range []string{"1/2", "2/2"} {
		sim(t, dir, append(args, "--shard", part, "--out", "part"+part[:1])...).want(exitOK, "", "")
	}
	sim(t, dir, "merge", "part1", "part2", "--out", "joined").want(exitOK, "report: joined", "")
	runs := func(folder string) []string {
		list, _ := filepath.Glob(filepath.Join(dir, folder, "runs", "*"))
		for i := range list {
			list[i] = filepath.Base(list[i])
		}
		return list
	}
	if got, want := runs("joined"), runs(filepath.Join("results", "hello-sweep")); !slices.Equal(got, want) || len(got) != 6 {
		t.Errorf("joined %q, want %q", got, want)
	}
	two := runs("joined")[:2]
	sim(t, filepath.Join(dir, "joined", "runs"), "compare", two[0], two[1], "--html", "both.html").want(exitOK, "delivered", "")
}

// A run that failed broke no promise.
func TestSweepTellsFailuresFromViolations(t *testing.T) {
	dir := t.TempDir()
	args := []string{"sweep", "hello", "--seeds", "1", "--set", "pause=20s"}
	sim(t, dir, args...).want(exitOK, "report: ", "held")
	list, _ := filepath.Glob(filepath.Join(dir, "results", "hello-sweep", "runs", "*", "manifest.json"))
	if len(list) != 1 {
		t.Fatalf("there are %d runs", len(list))
	}
	b, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	failed := strings.Replace(string(b), `"outcome": "held"`, `"outcome": "failed", "error": "no more disk"`, 1)
	if err := os.WriteFile(list[0], []byte(failed), 0o644); err != nil {
		t.Fatal(err)
	}
	sim(t, dir, args...).want(exitError, "report: ", "no more disk")
}

func TestInterruptWritesWhatThereIs(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a program there cannot be interrupted from outside")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self, "run", "storm", "--set", "duration=10h", "--set", "nodes=6", "--out", "cut")
	c.Dir = dir
	var errs strings.Builder
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	wait := time.AfterFunc(patience, func() { c.Process.Kill() })
	defer wait.Stop()
	events := filepath.Join(dir, "cut", "events.jsonl")
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for began := time.Now(); ; <-look.C { // until something happened
		if info, err := os.Stat(events); err == nil && info.Size() > 0 {
			break
		}
		if time.Since(began) > patience {
			t.Fatal("nothing happened")
		}
	}
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // the code is looked at
	if code := c.ProcessState.ExitCode(); code != exitInterrupted {
		t.Fatalf("exit code %d, want %d: %s", code, exitInterrupted, errs.String())
	}
	b, err := os.ReadFile(filepath.Join(dir, "cut", "manifest.json"))
	if err != nil || !strings.Contains(string(b), `"outcome": "interrupted"`) {
		t.Errorf("the manifest: %v\n%s", err, b)
	}
	if _, err := os.Stat(filepath.Join(dir, "cut", "report.html")); err != nil {
		t.Error(err)
	}
}
