package report

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"starling/simulation"
)

var keep = flag.String("keep", "", "an empty folder for the reports of made-up runs, to look at them")

// finish writes r to a new folder and returns it.
func finish(t *testing.T, dir string, r *simulation.Result) string {
	t.Helper()
	f, err := Create(dir, r.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Finish(r); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSamplesToLookAt(t *testing.T) {
	if *keep == "" {
		t.Skip("no -keep")
	}
	town := sampleRun(7)
	finish(t, filepath.Join(*keep, "town"), town)
	broken := sampleRun(8)
	broken.Manifest.Outcome = "violated"
	broken.Violation = &simulation.Violation{
		Oracle: "order", What: "bo-4 was shown message 3f2a1b90 from ada-0 before 77c01e55, which ada-0 sent earlier",
		At: 12*time.Minute + 3204118302, Repeat: broken.Manifest.Repeat,
	}
	for i := range broken.Messages {
		if i%40 == 0 {
			broken.Messages[i].Shown, broken.Messages[i].Confirmed = -1, -1
		}
	}
	finish(t, filepath.Join(*keep, "violated"), broken)
	sweepTo(t, filepath.Join(*keep, "sweep"), []string{"0", "0.1", "0.3"}, []string{"0", "2", "8"}, 10)
	page, err := os.Create(filepath.Join(*keep, "compare.html"))
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	for _, to := range []func() error{
		func() error {
			return Compare(os.Stdout, filepath.Join(*keep, "town"), filepath.Join(*keep, "violated"))
		},
		func() error {
			return CompareHTML(page, filepath.Join(*keep, "town"), filepath.Join(*keep, "violated"))
		},
	} {
		if err := to(); err != nil {
			t.Fatal(err)
		}
	}
	finish(t, filepath.Join(*keep, "empty"), &simulation.Result{Manifest: simulation.Manifest{
		Scenario: "hello", Seed: 1, Nodes: 5, Epoch: epoch, Outcome: "held", Version: "0.3.0", Go: "go1.26.0",
		Simulated: simulation.Seconds(10 * time.Second), Wall: simulation.Seconds(200 * time.Millisecond),
	}, Nodes: make([]simulation.NodeResult, 5)})
}

// sweepTo makes up a sweep of losses and churns and writes it to dir.
func sweepTo(t *testing.T, dir string, losses, churns []string, seeds int) {
	t.Helper()
	var runs []Run
	for i, loss := range losses {
		for j, churn := range churns {
			for seed := range seeds {
				r := rand.New(rand.NewPCG(uint64(seed), uint64(i*10+j)))
				m := sampleRun(1).Manifest
				m.Seed, m.Params = uint64(seed+1), map[string]string{"loss": loss, "churn": churn, "nodes": "100"}
				m.Repeat = fmt.Sprintf("starling-sim run town --seed %d --set loss=%s --set churn=%s", seed+1, loss, churn)
				run := Run{Dir: filepath.Join(dir, runsDir, Name(m)), Manifest: m}
				run.Metrics = []simulation.Metric{
					{Name: "accepted", Value: 2000, Unit: "messages"},
					{Name: "delivered_share", Value: min(1, 1-0.01*float64(i)+0.004*r.NormFloat64()), Unit: "share"},
					{Name: "delivery_p50", Value: 0.2 + 0.1*float64(i) + 0.03*r.NormFloat64(), Unit: "s"},
					{Name: "delivery_p99", Value: 2 + float64(i*j)*1.5 + 0.4*r.ExpFloat64(), Unit: "s"},
					{Name: "bytes_per_message", Value: 41000 + 6000*float64(j) + 900*r.NormFloat64(), Unit: "bytes"},
				}
				if i == 2 && j == 1 && seed == 3 {
					run.Manifest.Outcome = "violated"
					run.Violation = &simulation.Violation{Oracle: "lost", What: "ada-3 accepted 77c01e55 and bo-9 never showed it", At: 20 * time.Minute, Repeat: m.Repeat}
				}
				runs = append(runs, run)
			}
		}
	}
	if err := Sweep(dir, runs); err != nil {
		t.Fatal(err)
	}
}

func TestPageExplainsAProtocolThatReceivedNothing(t *testing.T) {
	r := small()
	r.Traffic = append(r.Traffic, simulation.Traffic{Node: 0, Protocol: "/push", Sent: 41})
	p := runPage{}
	if p.traffic(digestOf(r)); !strings.Contains(p.Traffic, "got no further than opening its streams") {
		t.Errorf("%q", p.Traffic)
	}
}

func TestCiteNamesTheProgramOnce(t *testing.T) {
	m := simulation.Manifest{Scenario: "town", Version: "starling 0123abc"}
	if got := cite(m); !strings.HasPrefix(got, "Starling simulator 0123abc, scenario") {
		t.Errorf("%q", got)
	}
}

// Times of delivery mean little without how many had to wait for somebody.
func TestHeadlineTellsOfThoseAway(t *testing.T) {
	r := small()
	r.Violation, r.Manifest.Outcome = nil, "held"
	r.Metrics = append(r.Metrics, simulation.Metric{Name: textsToAway, Value: 3, Unit: "texts"})
	if got := strings.ReplaceAll(Headline(r), nbsp, " "); !strings.Contains(got, "; 3 were for somebody who was away; ") {
		t.Errorf("%q", got)
	}
}
