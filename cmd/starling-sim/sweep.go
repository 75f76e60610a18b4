package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"starling/simulation"
	"starling/simulation/exact"
	"starling/simulation/report"
	"starling/simulation/scenario"
)

// sweepFlags are the flags of sweep.
type sweepFlags struct {
	seeds string
	set   []string
	vary  []string
	out   string
	jobs  int
	shard string
}

// maxRuns bounds a sweep, against a slip of the finger.
const maxRuns = 1_000_000

func (a *app) sweepCmd() *cobra.Command {
	var f sweepFlags
	c := &cobra.Command{
		Use:   "sweep SCENARIO",
		Short: "Run a scenario with many seeds and parameters, and plot what varies",
		Long: `Run a scenario with every combination of the varied parameters, each with every
seed, some runs at once. The page of the results plots each metric against each
parameter with 95 % confidence intervals over the seeds.

A sweep that was interrupted goes on where it was if it is started again with
the same --out. On several machines give each its part with --shard 1/3, 2/3 and
so on, and join the folders with starling-sim merge.`,
		Args: named("the scenario"),
		RunE: func(c *cobra.Command, args []string) error { return a.sweep(c.Context(), args[0], f) },
	}
	c.Flags().StringVar(&f.seeds, "seeds", "1..10", "the seeds: `A..B`, or one")
	c.Flags().StringArrayVar(&f.vary, "vary", nil, "values of a parameter: `K=V,V,…`; again for more")
	c.Flags().StringArrayVar(&f.set, "set", nil, "set a parameter for all runs: `K=V`; again for more")
	c.Flags().StringVar(&f.out, "out", "", "`folder` for the results (default results/SCENARIO-sweep)")
	c.Flags().IntVar(&f.jobs, "jobs", runtime.NumCPU(), "how many runs at once")
	c.Flags().StringVar(&f.shard, "shard", "1/1", "which `part` of the runs to do")
	return c
}

// A job is one run of a sweep.
type job struct {
	seed uint64
	set  map[string]string
	dir  string
}

func (a *app) sweep(ctx context.Context, name string, f sweepFlags) error {
	s, err := open(name)
	if err != nil {
		return err
	}
	jobs, err := plan(s, f)
	if err != nil {
		return err
	}
	out := f.out
	if out == "" {
		out = filepath.Join("results", s.Name()+"-sweep")
	}
	for i := range jobs {
		j := &jobs[i]
		j.dir = filepath.Join(out, "runs", report.Name(simulation.Manifest{Scenario: s.Name(), Params: j.set, Seed: j.seed}))
	}
	if err := fits(out, s, jobs); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(out, "runs"), 0o755); err != nil {
		return err
	}
	failed, err := a.runAll(ctx, name, jobs, f.jobs)
	if err != nil {
		return err
	}
	mine := map[string]bool{} // the folder may hold runs of more seeds
	for _, j := range jobs {
		mine[filepath.Base(j.dir)] = true
	}
	all, err := report.Runs(filepath.Join(out, "runs"))
	runs := slices.DeleteFunc(all, func(r report.Run) bool {
		return r.Manifest.Outcome == "interrupted" || !mine[filepath.Base(r.Dir)] || report.Name(r.Manifest) != filepath.Base(r.Dir)
	})
	if len(runs) == 0 && ctx.Err() != nil {
		return fail(exitInterrupted, "interrupted before a run ended").try("Start it again with --out %s to go on.", quoted(out))
	}
	if len(runs) == 0 {
		return errors.Join(err, errors.New("no run left results"))
	}
	if err := errors.Join(err, report.Sweep(out, runs)); err != nil {
		return err
	}
	if a.json {
		for _, r := range runs {
			a.print(a.out, runShapeOf(r))
		}
	}
	if err := a.index(out); err != nil {
		return err
	}
	switch {
	case ctx.Err() != nil:
		return fail(exitInterrupted, "interrupted; the page shows what had ended, %d of %d", len(runs), len(jobs)).
			try("Start it again with --out %s to go on.", quoted(out))
	case len(failed) > 0:
		code := exitError
		if slices.ContainsFunc(runs, func(r report.Run) bool { return r.Violation != nil }) {
			code = exitViolated
		}
		return fail(code, "%d of %d runs did not hold, the first: %s", len(failed), len(jobs), failed[0])
	}
	return nil
}

// plan lists the runs of a sweep.
func plan(s *scenario.Scenario, f sweepFlags) ([]job, error) {
	first, last, err := between(f.seeds)
	if err != nil {
		return nil, err
	}
	part, parts, err := shardOf(f.shard)
	if err != nil {
		return nil, err
	}
	if f.jobs < 1 {
		return nil, usage("--jobs is %d", f.jobs)
	}
	fixed, err := pairs(f.set)
	if err != nil {
		return nil, err
	}
	settings := []map[string]string{fixed}
	for _, v := range f.vary {
		k, values, ok := strings.Cut(v, "=")
		if !ok || k == "" || values == "" {
			return nil, usage("--vary %s is not of the form K=V,V,…", v)
		}
		if _, twice := settings[0][k]; twice {
			return nil, usage("parameter %s is there twice", k)
		}
		list := strings.Split(values, ",")
		if sorted := slices.Sorted(slices.Values(list)); len(slices.Compact(sorted)) < len(list) {
			return nil, usage("--vary %s has a value twice", v) // two runs in one folder
		}
		if n := len(settings) * len(list); n > maxRuns {
			return nil, usage("that would be %d runs or more, and %d are the most", n, maxRuns)
		}
		var next []map[string]string
		for _, old := range settings {
			for _, value := range list {
				m := map[string]string{k: value}
				for k, v := range old {
					m[k] = v
				}
				next = append(next, m)
			}
		}
		settings = next
	}
	if n := float64(len(settings)) * (float64(last-first) + 1); n > maxRuns {
		return nil, usage("that would be %.0f runs, and %d are the most", n, maxRuns)
	}
	var jobs []job
	n := 0
	for _, set := range settings {
		if _, _, err := s.Build(first, set); err != nil {
			return nil, usage("%s", err).try("See starling-sim list.")
		}
		for seed := first; ; seed++ {
			if n%parts == part-1 {
				jobs = append(jobs, job{seed: seed, set: set})
			}
			n++
			if seed == last {
				break
			}
		}
	}
	return jobs, nil
}

// between reads a range of seeds.
func between(s string) (first, last uint64, err error) {
	a, b, ok := strings.Cut(s, "..")
	if !ok {
		b = a
	}
	first, errA := strconv.ParseUint(a, 10, 64)
	last, errB := strconv.ParseUint(b, 10, 64)
	if errA != nil || errB != nil || first > last {
		return 0, 0, usage("--seeds %s is not of the form A..B", s)
	}
	return first, last, nil
}

// shardOf reads which part of how many.
func shardOf(s string) (part, parts int, err error) {
	a, b, _ := strings.Cut(s, "/")
	part, errA := strconv.Atoi(a)
	parts, errB := strconv.Atoi(b)
	if errA != nil || errB != nil || part < 1 || part > parts {
		return 0, 0, usage("--shard %s is not of the form 1/3", s)
	}
	return part, parts, nil
}

// fits returns why the results of a sweep do not belong into a folder that is
// there already, or nil.
func fits(out string, s *scenario.Scenario, jobs []job) error {
	choose := func(format string, args ...any) error {
		return usage(format, args...).try("Choose another folder with --out.")
	}
	if _, err := os.Stat(filepath.Join(out, "manifest.json")); err == nil {
		return choose("%s holds the results of a run", out)
	}
	found, err := os.ReadDir(filepath.Join(out, "runs"))
	if err != nil {
		if other, _ := os.ReadDir(out); len(other) > 0 {
			return choose("%s is not empty, and holds no sweep", out)
		}
		return nil // there is nothing yet
	}
	if len(jobs) == 0 {
		return nil
	}
	for _, dir := range found {
		run, err := report.ReadRun(filepath.Join(out, "runs", dir.Name()))
		if err != nil {
			continue // half a run: it is run again, or named at the end
		}
		m := run.Manifest
		if name := report.Name(m); name != dir.Name() {
			return choose("%s holds %s, which says that it is %s: it was copied or renamed", filepath.Join(out, "runs"), dir.Name(), name)
		}
		same := len(m.Params) == len(jobs[0].set)
		for k := range jobs[0].set {
			_, ok := m.Params[k]
			same = same && ok
		}
		switch {
		case m.Scenario != s.Name() || m.Source != s.Source():
			return choose("%s holds runs of another scenario, or of another state of its file", out)
		case m.Version != simulation.Version() || m.Go != runtime.Version() || m.Exact != exact.Enabled():
			return choose("%s holds runs of another build of this program: %s, %s", out, m.Version, m.Go)
		case !same:
			return choose("%s holds runs in which other parameters were set", out)
		}
	}
	return nil
}

// runShape is what sweep prints of a run under --json.
type runShape struct {
	Dir     string             `json:"dir"`
	Seed    uint64             `json:"seed"`
	Params  map[string]string  `json:"params"`
	Outcome string             `json:"outcome"`
	Metrics map[string]float64 `json:"metrics"`
}

func runShapeOf(r report.Run) runShape {
	return runShape{r.Dir, r.Manifest.Seed, r.Manifest.Params, r.Manifest.Outcome, numbers(r.Metrics)}
}

// said returns in words how a run ended, and whether it held.
func said(r report.Run) (outcome string, held bool) {
	switch {
	case r.Violation != nil:
		return fmt.Sprintf("violated (%s) after %s: %s", r.Violation.Oracle, report.Time(r.Violation.At), r.Violation.What), false
	case r.Manifest.Outcome == "failed":
		return "failed: " + r.Manifest.Error, false
	}
	return r.Manifest.Outcome, r.Manifest.Outcome == "held"
}

// runAll runs every job that has no results yet, some at once, each in a
// process of its own: a run uses one processor, and one that fails takes no
// other along. It returns which did not hold, and how.
func (a *app) runAll(ctx context.Context, name string, jobs []job, atOnce int) (failed []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	results := make([]string, len(jobs))
	before := 0
	var ended atomic.Int64
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, j := range jobs {
		if ctx.Err() != nil {
			break
		}
		if run, err := report.ReadRun(j.dir); err == nil && run.Manifest.Outcome != "interrupted" {
			before++ // of an earlier start of this sweep
			ended.Add(1)
			if outcome, held := said(run); !held {
				results[i] = filepath.Base(j.dir) + ": " + outcome
			}
			continue
		}
		g.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			if err := os.RemoveAll(j.dir); err != nil { // half a run
				return err
			}
			outcome, held := a.runOne(ctx, self, name, j)
			fmt.Fprintf(a.err, "%d of %d, %s: %s\n", ended.Add(1), len(jobs), filepath.Base(j.dir), plain(outcome))
			if !held {
				results[i] = filepath.Base(j.dir) + ": " + outcome
			}
			return nil
		})
	}
	err = g.Wait()
	if before > 0 {
		fmt.Fprintf(a.err, "%d of %d runs were there already\n", before, len(jobs))
	}
	return slices.DeleteFunc(results, func(s string) bool { return s == "" }), err
}

// runOne runs one job in a process of its own, and returns in words how it
// ended.
func (a *app) runOne(ctx context.Context, self, name string, j job) (outcome string, held bool) {
	args := []string{"run", name, "--seed", strconv.FormatUint(j.seed, 10), "--out", j.dir}
	for k, v := range j.set {
		args = append(args, "--set", k+"="+v)
	}
	c := exec.CommandContext(ctx, self, args...)
	c.Env = append(os.Environ(), "GOMAXPROCS=1")
	ownGroup(c)                                                          // Ctrl-C on a terminal would be a second signal, which kills
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) } // it writes what there is
	c.WaitDelay = time.Minute
	var errs excerpt
	c.Stderr = &errs
	err := c.Run()
	if run, readErr := report.ReadRun(j.dir); readErr == nil {
		return said(run)
	}
	if ctx.Err() != nil {
		return "interrupted", false
	}
	return fmt.Sprintf("left no results (%v): %s", err, strings.TrimSpace(string(errs.text))), false
}

// keptOfErrors is how much of what a run writes to standard error is kept: half of
// it from the beginning, where a panic says why, and half from the end.
const keptOfErrors = 64 << 10 // bytes

// An excerpt is the beginning and the end of what was written to it.
type excerpt struct{ text []byte }

// Write implements [io.Writer].
func (e *excerpt) Write(p []byte) (int, error) {
	e.text = append(e.text, p...)
	if over := len(e.text) - keptOfErrors; over > 0 {
		const half = keptOfErrors / 2
		e.text = slices.Delete(e.text, half, half+over)
	}
	return len(p), nil
}
