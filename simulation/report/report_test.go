package report

import (
	"encoding/csv"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"gonum.org/v1/plot/vg"

	"starling/simulation"
)

const second = time.Second

// small is a run whose numbers are known by hand.
func small() *simulation.Result {
	r := &simulation.Result{
		Manifest: simulation.Manifest{
			Scenario: "hello", Source: "nodes = 3\n", Seed: 1<<64 - 1, Params: map[string]string{"loss": "0.5"}, Nodes: 3,
			Store: "memory", Face: "packet", Security: "tls", Version: "1", Go: "go1.26.0", OS: "linux", Arch: "amd64", Epoch: epoch,
			Simulated: simulation.Seconds(100 * second), Wall: simulation.Seconds(4 * second), CPU: simulation.Seconds(5 * second),
			PeakMemory: 1 << 20, Repeat: "starling-sim run hello --seed 18446744073709551615", Outcome: "held",
		},
		Nodes: []simulation.NodeResult{
			{Name: "ada", Region: "europe", Role: "peer", Starts: 3, Crashes: 2, Up: 90 * second},
			{Name: "bo", Role: "peer", NAT: "none", Starts: 1, Up: 100 * second},
			{Name: "cy", Role: "spammer", NAT: "symmetric", Starts: 2, Crashes: 1, Up: 99999999999},
		},
		Faults: []simulation.Fault{
			{Kind: "crash", What: "ada", From: 10 * second, To: 15 * second},
			{Kind: "partition", What: "ada | bo, cy", From: 20 * second, To: -1},
		},
		Pairs: []simulation.Pair{
			{A: 0, B: 1, Relayed: -1, Direct: 1 * second},
			{A: 0, B: 2, Relayed: 2 * second, Direct: 3 * second},
			{A: 1, B: 2, Relayed: 4 * second, Direct: -1},
			{A: 2, B: 2, Relayed: -1, Direct: -1},
		},
		Relays: []simulation.RelayResult{
			{Name: "star", Region: "asia", Starts: 2, Crashes: 1, Lost: 1, Up: 99 * second, Receipts: 1240, Honoured: 1200, Void: 30, Waiting: 7, Unread: 3, KeysToTokens: 4, KeysToWork: 5, Sent: 1 << 33, Received: 7},
			{Name: "rogue", Bad: "drops", Starts: 1, Up: 100 * second, Receipts: 21, Broken: 21, Repeated: 8, Refused: 1, KeysDenied: 2, KeysRepeated: 3},
		},
		Lookups: []simulation.Lookup{
			{By: 0, At: 1 * second, Took: 100 * time.Millisecond, Hops: 1, Asked: 3, Found: true},
			{By: 1, At: 2 * second, Took: 300 * time.Millisecond, Hops: 4, Asked: 5, Found: true},
			{By: 2, At: 3 * second, Took: 900 * time.Millisecond, Hops: 9, Asked: 9, Stale: true},
			{By: 2, At: 4 * second, Took: 200 * time.Millisecond, Hops: 1, Asked: 3, Found: true},
		},
		Traffic: []simulation.Traffic{
			{Node: 0, Protocol: "/a/1", Sent: 700, Received: 300},
			{Node: 1, Protocol: "/a/1", Sent: 300, Received: 700},
			{Node: 1, Protocol: "transport", Sent: 1000, Received: 1000},
		},
		Usage: []simulation.Usage{
			{Memory: 500_000, Goroutines: 10},
			{At: 60*second + 1, Wall: second, CPU: second + 2, Memory: 1 << 20, Goroutines: 99},
			{At: 100 * second, Wall: 4 * second, CPU: 5 * second, Memory: 900_000, Goroutines: 80},
		},
		Sightings: []simulation.Sighting{{Observer: "a contact", Sees: "addresses", Median: 1.5, Most: 3, Unit: "addresses"}},
		Envelopes: simulation.Envelopes{Sealed: 25, Opened: 20, Repeated: 4, Refused: 1},
		Metrics:   []simulation.Metric{{Name: "spam_shown", Value: 0.1, Unit: "share", Goal: "none, with a \"quote\""}, {Name: "empty", Value: math.NaN()}},
	}
	for i := range 10 { // 1 s to 10 s, not in this order
		took := time.Duration(i*7%10+1) * second
		r.Messages = append(r.Messages, simulation.Message{
			ID: fmt.Sprintf("m%d", i), From: i % 3, To: (i + 1) % 3, Size: 10,
			Accepted: time.Duration(i) * second, Shown: time.Duration(i)*second + took, Confirmed: -1,
		})
	}
	r.Messages = append(r.Messages, simulation.Message{ID: "late", To: 1, Accepted: 99 * second, Shown: -1, Confirmed: -1})
	return r
}

func TestSummaryOfKnownRun(t *testing.T) {
	got := map[string]float64{}
	metrics := Summary(small())
	for _, m := range metrics {
		if _, twice := got[m.Name]; twice {
			t.Errorf("metric %q is there twice", m.Name)
		}
		got[m.Name] = m.Value
	}
	want := map[string]float64{
		"accepted": 11, "delivered": 10, "delivered_share": 10.0 / 11, "confirmed": 0,
		"delivery_p50": 5, "delivery_p90": 9, "delivery_p99": math.NaN(), "delivery_max": 10,
		"sealed": 25, "opened": 20, "duplicates": 4, "refused": 1, "bytes_sent": 2000, "bytes_per_message": 200,
		"lookups": 4, "lookup_success": 0.75, "lookup_stale": 1, "lookup_hops_mean": 2, "lookup_p50": 0.2, "lookup_p99": math.NaN(),
		"friends_direct": 0.5, "friends_relayed": 0.25,
		"crashes": 3, "simulated_s": 100, "wall_s": 4, "cpu_s": 5, "speed": 25, "peak_memory": 1 << 20,
		"spam_shown": 0.1, "empty": math.NaN(),
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	if last := metrics[len(metrics)-1].Name; last != "empty" {
		t.Errorf("the scenario's own metrics are not last: %s is", last)
	}
	for _, m := range Summary(&simulation.Result{}) {
		if strings.HasPrefix(m.Name, "delivery_") && !math.IsNaN(m.Value) {
			t.Errorf("%s of no messages is %v, want NaN", m.Name, m.Value)
		}
	}
}

func TestPercentileIsNearestRank(t *testing.T) {
	four := []time.Duration{1 * second, 2 * second, 3 * second, 4 * second}
	for permille, want := range map[int]float64{1: 1, 250: 1, 251: 2, 500: 2, 501: 3, 750: 3, 990: 4, 1000: 4} {
		if got := percentile(four, permille); got != want {
			t.Errorf("percentile(1..4 s, %d) = %v, want %v", permille, got, want)
		}
	}
}

func TestTailNeedsSomethingBeyondIt(t *testing.T) {
	for _, c := range []struct {
		n, permille int
		there       bool
	}{{1, 500, true}, {9, 900, false}, {10, 900, true}, {99, 990, false}, {100, 990, true}, {999, 999, false}, {1000, 999, true}} {
		if got := tail(make([]time.Duration, c.n), c.permille); math.IsNaN(got) == c.there {
			t.Errorf("tail of %d at %d ‰ is %v; want one: %v", c.n, c.permille, got, c.there)
		}
	}
}

func TestFaultsJoinAndWholeRunsAreWords(t *testing.T) {
	crash := func(from, to time.Duration) simulation.Fault {
		return simulation.Fault{Kind: "crash", From: from, To: to}
	}
	got := union([]simulation.Fault{crash(50*second, -1), crash(1*second, 3*second), crash(2*second, 2500*time.Millisecond), crash(3*second, 4*second), crash(9*second, 9*second)}, 60)
	if want := []window{{1, 4}, {9, 9}, {50, 60}}; !slices.Equal(got, want) {
		t.Errorf("union is %v, want %v", got, want)
	}

	r := small() // of 100 s
	before := timelineFigure(r)
	r.Faults = append(r.Faults, simulation.Fault{Kind: "loss", What: "30 %", From: 5 * second, To: 98 * second})
	for range 12 {
		r.Faults = append(r.Faults, simulation.Fault{Kind: "skew", What: "ada is wrong by 7m1.045065998s", To: -1})
	}
	if after := timelineFigure(r); after.svg(fullWidth, after.height) != before.svg(fullWidth, before.height) {
		t.Error("faults that last the whole run are drawn")
	}
	if got, want := steadyFaults(r), "Not drawn, since it lasted nearly the whole run: loss (30 %); skew × 12."; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDurationsInSentencesAreRounded(t *testing.T) {
	got := strings.ReplaceAll(rounded("bo waited 4m57.864381317s and -1h0m2.5000001s, 1.5s, 3.1415 and 12.345678ms"), nbsp, " ")
	if want := "bo waited 4 min 58 s and -1 h, 1.5s, 3.1415 and 12 ms"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFewSamplesAreWords(t *testing.T) {
	r := small()
	for _, f := range runFigures(r) {
		if f.name == "speed" || f.name == "memory" {
			t.Errorf("%s is drawn from %d samples", f.name, len(r.Usage))
		}
	}
}

func TestDeliveryStaircase(t *testing.T) {
	one := func(v float64) vg.Length { return vg.Length(v) }
	got := steps([]float64{1, 2, 2, 4}, 8, one, one)
	want := [][2]float64{{1, 0}, {1, 0}, {1, .25}, {2, .25}, {2, .5}, {2, .5}, {2, .75}, {4, .75}, {4, 1}, {8, 1}}
	if len(got) != len(want) {
		t.Fatalf("%d points, want %d: %v", len(got), len(want), got)
	}
	for i, p := range got {
		if [2]float64{float64(p.X), float64(p.Y)} != want[i] {
			t.Errorf("point %d is %v, want %v", i, p, want[i])
		}
	}
}

func TestConfidenceInterval(t *testing.T) {
	near := func(a, b float64) bool { return math.Abs(a-b) < 1e-5 }
	// 1..5: the deviation is √2.5, and t for 4 degrees of freedom 2.776445.
	got := intervalOf([]float64{5, 1, math.NaN(), 3, 2, 4})
	if got.n != 5 || got.mean != 3 || got.lowest != 1 || got.highest != 5 || !near(got.low, 3-1.963243) || !near(got.high, 3+1.963243) {
		t.Errorf("interval of 1..5 is %+v, want 3 ± 1.963243", got)
	}
	// Of two, t is 12.706205: 12.706205 · √2 / √2 / … = 12.706205 · 1.
	two := intervalOf([]float64{1, 3})
	if !near(two.low, 2-12.706205) || !near(two.high, 2+12.706205) {
		t.Errorf("interval of 1, 3 is %+v, want 2 ± 12.706205", two)
	}
	if got := intervalOf([]float64{7}); got.mean != 7 || !math.IsNaN(got.low) || !math.IsNaN(got.high) {
		t.Errorf("interval of one value is %+v, want 7 alone", got)
	}
	if got := two.within(simulation.Metric{Name: "delay", Unit: "s"}); got.low != 0 || got.high != two.high {
		t.Errorf("interval of a time is %+v, want it from 0", got)
	}
	if got := two.within(simulation.Metric{Name: "balance"}); got.low != two.low {
		t.Errorf("interval of what may be negative is %+v, want it whole", got)
	}
	if got := intervalOf([]float64{0.9, 1}).within(simulation.Metric{Unit: "share"}); !near(got.low, 0.95-0.05*12.706205) || got.high != 1 {
		t.Errorf("interval of a share is %+v, want it up to 1", got)
	}
}

func TestFolderReadsBack(t *testing.T) {
	want := small()
	want.Manifest.Outcome = "violated"
	want.Violation = &simulation.Violation{Oracle: "order", What: "m3 <before> m2", At: 12*second + 345678901, Repeat: want.Manifest.Repeat}
	dir := filepath.Join(t.TempDir(), "new", "run")
	f, err := Create(dir, want.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !errors.Is(err, ErrRunning) {
		t.Errorf("loading a running folder: %v, want ErrRunning", err)
	}
	for _, e := range []simulation.Event{
		{At: 1, Type: "start", Node: "ada"},
		{At: 2 * second, Type: "accepted", Node: "ada", Peer: "bo", ID: "m0", Text: "a\nb"},
	} {
		if err := f.Event(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	events := `{"t":0.000000001,"type":"start","node":"ada"}
{"t":2.000000000,"type":"accepted","node":"ada","peer":"bo","id":"m0","text":"a\nb"}
`
	if got := read(t, dir, "events.jsonl"); got != events {
		t.Errorf("events are\n%s\nwant\n%s", got, events)
	}
	if err := f.Finish(want); err != nil {
		t.Fatal(err)
	}
	if err := f.Event(simulation.Event{}); err == nil {
		t.Error("an event after Finish was taken")
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	if got, want := read(t, dir, "faults.csv"), "kind,what,from_s,to_s\ncrash,ada,10.000000000,15.000000000\npartition,\"ada | bo, cy\",20.000000000,\n"; got != want {
		t.Errorf("faults.csv is %q, want %q", got, want)
	}
	for name, want := range map[string]string{
		"messages.csv": "\nm0,ada,bo,", "pairs.csv": "\nada,cy,2.000000000,3.000000000\nbo,cy,4.000000000,\n", "nodes.csv": "\ncy,,spammer,symmetric,2,1,", "lookups.csv": "\nbo,2.0", "traffic.csv": "\nada,/a/1,",
		"relays.csv": "\nrogue,,drops,1,0,0,100.000000000,21,0,21,0,0,0,8,1,0,0,2,3,0,0\n",
	} {
		if got := read(t, dir, name); !strings.Contains(got, want) {
			t.Errorf("%s does not name nodes, as in %q:\n%s", name, want, got)
		}
	}
	run, err := ReadRun(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Summary(want), run.Metrics, cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("metrics of ReadRun (-want +got):\n%s", diff)
	}
}

func TestNodesThatShareANameAreNumbered(t *testing.T) {
	all := rosterOf([]simulation.NodeResult{{Name: "ada"}, {Name: "bo"}, {Name: "bo"}, {Name: "0"}, {}})
	for i, want := range map[int]string{0: "ada", 1: "1", 2: "2", 3: "3", -7: "-7", 99: "99"} {
		name := all.write(i)
		if got, err := all.read(name); name != want || got != i || err != nil {
			t.Errorf("node %d is written %q, want %q, and read as %d (%v)", i, name, want, got, err)
		}
	}
	for _, s := range []string{"bo", "cy"} {
		if i, err := all.read(s); err == nil {
			t.Errorf("%q is read as node %d", s, i)
		}
	}
}

func TestSameResultSameBytes(t *testing.T) {
	a, b := finish(t, filepath.Join(t.TempDir(), "a"), sampleRun(3)), finish(t, filepath.Join(t.TempDir(), "b"), sampleRun(3))
	entries, err := os.ReadDir(a)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) < 18 {
		t.Errorf("only %d files", len(entries))
	}
	for _, e := range entries {
		if read(t, a, e.Name()) != read(t, b, e.Name()) {
			t.Errorf("%s differs between two folders of one result", e.Name())
		}
	}
}

func TestCreateTakesOnlyAnEmptyFolder(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(dir, simulation.Manifest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Finish(&simulation.Result{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, simulation.Manifest{}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("creating over results: %v, want a refusal", err)
	}
}

func TestLoadNamesWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		file, text string
		want       []string
	}{
		"number":   {"lookups.csv", "by,at_s,took_s,hops,asked,found,stale\n0,1.000000000,x,1,1,true,false\n", []string{"lookups.csv", "line 2", "took_s"}},
		"columns":  {"faults.csv", "kind,what\n", []string{"faults.csv", "columns"}},
		"short":    {"messages.csv", "", []string{"messages.csv", "header"}},
		"manifest": {"manifest.json", "{", []string{"manifest.json"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := finish(t, filepath.Join(t.TempDir(), "run"), small())
			if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.text), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := Load(dir)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v does not name %q", err, want)
				}
			}
		})
	}
	dir := finish(t, filepath.Join(t.TempDir(), "run"), small())
	os.Remove(filepath.Join(dir, "usage.csv"))
	if _, err := Load(dir); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "usage.csv") {
		t.Errorf("a missing table: %v", err)
	}
}

// errFull is a disk without room.
var errFull = errors.New("no space left on device")

// limited is a file on a disk that has room for a number of bytes.
type limited struct {
	io.WriteCloser
	room *int
}

func (l limited) Write(p []byte) (int, error) {
	if len(p) > *l.room {
		n, _ := l.WriteCloser.Write(p[:*l.room])
		*l.room = 0
		return n, errFull
	}
	*l.room -= len(p)
	return l.WriteCloser.Write(p)
}

func TestFinishOnAFullDiskKeepsWhatItCan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	room := 1 << 20
	full := map[string]bool{}
	out := func(path string) (io.WriteCloser, error) {
		file, err := disk(path)
		if err != nil {
			return nil, err
		}
		if full[strings.TrimSuffix(filepath.Base(path), ".tmp")] {
			none := 0
			return limited{file, &none}, nil
		}
		return limited{file, &room}, nil
	}
	r := small()
	f, err := create(dir, r.Manifest, out)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Event(simulation.Event{Type: "note"}); err != nil {
		t.Fatal(err)
	}
	full["messages.csv"], full["delivery.svg"] = true, true
	err = f.Finish(r)
	if !errors.Is(err, errFull) {
		t.Fatalf("Finish: %v, want the disk's error", err)
	}
	for _, name := range []string{"messages.csv", "delivery.svg"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("error does not name %s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is there, though it was cut short", name)
		}
	}
	for _, name := range []string{"events.jsonl", "manifest.json", "metrics.csv", "lookups.csv", "hops.svg", "report.html"} {
		if read(t, dir, name) == "" {
			t.Errorf("%s is empty", name)
		}
		if strings.Contains(err.Error(), name) {
			t.Errorf("error names %s, which was written: %v", name, err)
		}
	}

	clear(full) // room again
	if err := f.Finish(r); err != nil {
		t.Fatalf("Finish after making room: %v", err)
	}
	before := read(t, dir, "report.html")
	room = 100
	if err := f.Finish(r); !errors.Is(err, errFull) {
		t.Fatalf("Finish without room: %v", err)
	}
	if read(t, dir, "report.html") != before {
		t.Error("a full disk took the report that was there")
	}
	if got, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); got != nil {
		t.Errorf("left behind: %v", got)
	}
	if _, err := Load(dir); err != nil {
		t.Errorf("loading what stayed: %v", err)
	}
}

func TestEventsOnAFullDisk(t *testing.T) {
	room := 2000 // the manifest fits, the events do not
	dir := filepath.Join(t.TempDir(), "run")
	f, err := create(dir, simulation.Manifest{}, func(path string) (io.WriteCloser, error) {
		file, err := disk(path)
		return limited{file, &room}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		f.Event(simulation.Event{Type: "note", Text: "a line of some length"})
	}
	if err := f.Flush(); !errors.Is(err, errFull) {
		t.Errorf("Flush: %v, want the disk's error", err)
	}
	if err := f.Event(simulation.Event{}); !errors.Is(err, errFull) {
		t.Errorf("Event: %v, want the disk's error", err)
	}
	room = 1 << 20
	if err := f.Finish(small()); !errors.Is(err, errFull) || !strings.Contains(err.Error(), "events.jsonl") {
		t.Errorf("Finish: %v, want the error of the events", err)
	}
	if _, err := Load(dir); err != nil {
		t.Errorf("the rest was not written: %v", err)
	}
}

func TestCreateOnAFullDiskLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	_, err := create(dir, simulation.Manifest{}, func(path string) (io.WriteCloser, error) { return nil, errFull })
	if !errors.Is(err, errFull) {
		t.Errorf("Create: %v, want the disk's error", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

var (
	external = regexp.MustCompile(`(?i)(src|href|action|url\()\s*=?\s*["']?\s*(https?:|//|data:|javascript:)|<script|<link|<iframe|<img|@import|\son[a-z]+=`)
	literal  = regexp.MustCompile(`(fill|stroke):#`)
)

func TestPagesStandAlone(t *testing.T) {
	dir := t.TempDir()
	finish(t, filepath.Join(dir, "a"), sampleRun(1))
	finish(t, filepath.Join(dir, "b"), sampleRun(2))
	sweepTo(t, filepath.Join(dir, "sweep"), []string{"0", "0.1"}, []string{"1", "2"}, 3)
	var compared strings.Builder
	if err := CompareHTML(&compared, filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	for name, page := range map[string]string{
		"run": read(t, dir, "a/report.html"), "sweep": read(t, dir, "sweep/index.html"), "comparison": compared.String(),
	} {
		if found := external.FindString(page); found != "" {
			t.Errorf("%s: the page reaches out or runs something: %q", name, found)
		}
		if found := literal.FindString(page); found != "" {
			t.Errorf("%s: a plot has a colour of its own: %q", name, found)
		}
		if strings.Contains(page, "font-family:Lib") {
			t.Errorf("%s: a plot has a font of its own", name)
		}
		for _, want := range []string{"<!doctype html>", `<html lang="en">`, "prefers-color-scheme: dark", `scope="col"`, `scope="row"`, "<desc", "viewBox"} {
			if !strings.Contains(page, want) {
				t.Errorf("%s: no %s", name, want)
			}
		}
	}
}

func TestHostileNamesStayText(t *testing.T) {
	const evil = "\"'><img src=x onerror=alert(1)><script>alert(1)</script>&\x1b[31m\x00\u202e{{.}}"
	r := sampleRun(5)
	r.Manifest = simulation.Manifest{
		Scenario: evil, Source: evil, Params: map[string]string{evil: evil}, Store: evil, Face: evil, Security: evil, TraceHash: evil, Version: evil,
		Go: evil, OS: evil, Arch: evil, Repeat: evil, Outcome: "violated", Error: evil,
	}
	for i := range r.Nodes {
		r.Nodes[i] = simulation.NodeResult{Name: evil, Region: evil, Role: evil, NAT: evil}
	}
	for i := range r.Messages {
		r.Messages[i].ID = evil
	}
	r.Pairs = []simulation.Pair{{A: -7, B: 1 << 40}, {A: 1}}
	r.Messages[3].From, r.Messages[4].Shown, r.Messages[4].To = -7, -1, 1<<40
	r.Messages[5].Shown = r.Messages[5].Accepted + 28*time.Minute
	r.Messages[5].From = 1 << 40
	for i := range r.Faults {
		r.Faults[i].Kind, r.Faults[i].What = fmt.Sprint(evil, i%9), evil
	}
	for i := range r.Traffic {
		r.Traffic[i].Protocol = evil
	}
	r.Sightings = []simulation.Sighting{{Observer: evil, Sees: evil, Unit: evil, Most: math.Inf(1)}}
	r.Metrics = []simulation.Metric{{Name: evil, Unit: evil, Goal: evil}}
	r.Violation = &simulation.Violation{Oracle: evil, What: evil, Repeat: evil}
	dir := t.TempDir()
	finish(t, filepath.Join(dir, "a"), r)
	finish(t, filepath.Join(dir, "b"), r)
	sweepDir := filepath.Join(dir, "sweep")
	var runs []Run
	for i, outcome := range []string{"held", "held", "violated"} {
		run, err := ReadRun(filepath.Join(dir, "a"))
		if err != nil {
			t.Fatal(err)
		}
		run.Manifest.Outcome = outcome
		run.Manifest.Params = map[string]string{evil: fmt.Sprint(evil, i)}
		run.Metrics = []simulation.Metric{{Name: evil, Unit: evil, Value: float64(i)}}
		run.Dir = filepath.Join(dir, evil[:8])
		runs = append(runs, run)
	}
	if err := Sweep(sweepDir, runs); err != nil {
		t.Fatal(err)
	}
	var page, text strings.Builder
	if err := CompareHTML(&page, filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := Compare(&text, filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(text.String(), "\x1b\x00\u202e") {
		t.Error("a control character reached the terminal")
	}
	for name, page := range map[string]string{"run": read(t, dir, "a/report.html"), "comparison": page.String(), "sweep": read(t, sweepDir, "index.html")} {
		if strings.Contains(page, "<script") || strings.Contains(page, "<img") {
			t.Errorf("%s: a name became markup", name)
		}
		if !strings.Contains(page, "&lt;script&gt;") {
			t.Errorf("%s: the name is not shown", name)
		}
	}
	plots, _ := filepath.Glob(filepath.Join(dir, "*", "*.svg"))
	if len(plots) < 9 {
		t.Errorf("only %d plots", len(plots))
	}
	for _, path := range plots {
		d := xml.NewDecoder(strings.NewReader(read(t, path, "")))
		for {
			token, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s is not XML: %v", filepath.Base(path), err)
			}
			if e, ok := token.(xml.StartElement); ok && (e.Name.Local == "script" || e.Name.Local == "img") {
				t.Errorf("%s: a name became markup", filepath.Base(path))
			}
		}
	}
}

func TestPageSaysWhatHappened(t *testing.T) {
	good := sampleRun(1)
	bad := small()
	bad.Manifest.Outcome = "violated"
	bad.Violation = &simulation.Violation{Oracle: "twice", What: "bo was shown m2 twice 1m1.987654321s apart", At: 12 * second, Repeat: "starling-sim run hello --seed 9"}
	stopped := small()
	stopped.Manifest.Outcome = "interrupted"
	storm := small()
	storm.Faults = append(storm.Faults, simulation.Fault{Kind: "skew", What: "ada", To: -1})
	storm.Traffic[0].Protocol = ""
	storm.Envelopes.Opened = 26
	failed := small()
	failed.Manifest.Outcome, failed.Manifest.Error = "failed", "the trace is missing"
	idle := &simulation.Result{Manifest: simulation.Manifest{Outcome: "held", Simulated: simulation.Seconds(time.Hour)}, Nodes: make([]simulation.NodeResult, 5)}
	waiting := small()
	nothing := &simulation.Result{Manifest: idle.Manifest, Messages: []simulation.Message{{Shown: -1, Confirmed: -1}}}
	instant := &simulation.Result{Manifest: idle.Manifest, Messages: []simulation.Message{{ID: "self"}}}
	mailed, through := *instant, *instant
	mailed.Relays, through.Relays = make([]simulation.RelayResult, 2), make([]simulation.RelayResult, 1)
	for name, c := range map[string]struct {
		r    *simulation.Result
		want []string
	}{
		"held":        {good, []string{"2,000 of 2,000 messages were delivered; half within 0.", "nothing was lost, shown twice or out of order.", "Faults: "}},
		"violated":    {bad, []string{"A promise was broken after 12 s: bo was shown m2 twice 62.0 s apart.", "Violation of “twice”", "12.000000000 s of virtual time", "starling-sim run hello --seed 9"}},
		"interrupted": {stopped, []string{"The run was stopped after 1 min 40 s; by then 10 of 11 messages had been delivered.", "interrupted after 1 min 40 s, statistically"}},
		"storm": {storm, []string{
			"half within 5 s, the slowest within 10 s", "to deliver, longest", "2 faults in all; 1 clock wrong", "lasted nearly the whole run: skew (ada).",
			"<code>negotiation</code>", "“negotiation” is what", "all traffic, per message", "<h2>Envelopes</h2>", "More were opened than sealed: ",
			"(25.0×)", "1.3 cores", "Who reached whom", "1 symmetric, of 3 nodes", "Friends connected through a circuit only",
			"What relays kept", `<th scope="row">rogue`, "1,240", "8.59 GB", "Shown again", "Keys given twice",
		}},
		"failed":  {failed, []string{"The run failed after 1 min 40 s: the trace is missing."}},
		"idle":    {idle, []string{"5 nodes ran for 1 h and sent no messages; no promise was broken.", "No message was accepted", "Nobody looked for a record.", "No fault was injected.", "No traffic was counted.", "No envelope was sealed.", "did not look at what others could see"}},
		"waiting": {waiting, []string{"10 of 11 messages were delivered", "1 still on the way at the end; nothing was shown twice; rogue broke 21 of 21 receipts.", "4 envelopes arrived again after opening, and were dropped. Nothing was shown twice."}},
		"none":    {nothing, []string{"0 of 1 message was delivered", "None of 1 message was delivered."}},
		"instant": {instant, []string{"1 of 1 message was delivered, after 0 s; nothing was lost"}},
		"relays":  {&mailed, []string{"after 0 s; nothing was lost or shown twice."}},
		"relay":   {&through, []string{"after 0 s; nothing was lost, shown twice or out of order."}},
	} {
		page := strings.ReplaceAll(read(t, finish(t, filepath.Join(t.TempDir(), name), c.r), "report.html"), nbsp, " ")
		for _, want := range c.want {
			if !strings.Contains(page, want) {
				t.Errorf("%s: the page does not say %q", name, want)
			}
		}
		if strings.Contains(page, "NaN") || strings.Contains(page, "%!") {
			t.Errorf("%s: the page shows NaN or a broken format", name)
		}
		if len(c.r.Pairs) == 0 && strings.Contains(page, "Who reached whom") {
			t.Errorf("%s: nobody is behind a NAT, and the page says who reached whom", name)
		}
		if len(c.r.Relays) == 0 && strings.Contains(page, "What relays kept") {
			t.Errorf("%s: there are no relays, and the page says what they kept", name)
		}
		if strings.Contains(page, "m2 twice 1m") || strings.Count(page, "m2 twice") > 1 {
			t.Errorf("%s: the page says what broke more than once", name)
		}
	}
}

func TestNumbersForReaders(t *testing.T) {
	for want, got := range map[string]string{
		"0.21 s": span(211 * time.Millisecond), "4.1 s": span(4123 * time.Millisecond), "85 ms": span(85 * time.Millisecond),
		"3 min 20 s": span(200 * second), "2 h 5 min": span(125 * time.Minute), "3 d": span(72 * time.Hour), "0.12 ms": span(123 * time.Microsecond),
		"9.96 s": span(9960 * time.Millisecond), "1,204": integer(1204), "-1,234,567": integer(-1234567),
		"100 %": percent(1), "> 99.9 %": percent(0.99999), "99.5 %": percent(0.995), "0 %": percent(0), "< 0.1 %": percent(1e-6),
		"999 B": size(999), "1.00 kB": size(1000), "1.50 MB": size(1.5e6), "–": percent(math.NaN()), "1.83": plainNumber(1.8272),
		"1,234,567": plainNumber(1234567.2), "-0.5": plainNumber(-0.5), "1.2e-09": plainNumber(1.2e-9),
	} {
		if got = strings.ReplaceAll(got, nbsp, " "); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func rows(t *testing.T, dir, name string) [][]string {
	t.Helper()
	rows, err := csv.NewReader(strings.NewReader(read(t, dir, name))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return rows
}
