package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"starling/simulation"
	"starling/simulation/exact"
	"starling/simulation/network"
	"starling/simulation/report"
)

// runFlags are the flags of run.
type runFlags struct {
	seed    uint64
	set     []string
	out     string
	exact   bool
	packets string
	profile string
}

// resultShape is what run prints under --json.
type resultShape struct {
	Outcome   string             `json:"outcome"`
	Error     string             `json:"error,omitempty"`
	Dir       string             `json:"dir"`
	Report    string             `json:"report"`
	TraceHash string             `json:"trace_hash,omitempty"`
	Metrics   map[string]float64 `json:"metrics"`
}

func (a *app) runCmd() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run SCENARIO",
		Short: "Run a scenario, and write a folder with its results",
		Long: `Run a scenario that comes with the program, or a file. The results go into a new
folder; the last line printed is the path of the report. Ctrl-C ends the run and
writes what there is.

The file of --packets has a line for all that leaves a node at once: sent_s, seconds
of virtual time from the start; from and to, the rows of the nodes in nodes.csv,
from 0, and behind them those of relays.csv; arrival_unix_ns, when it arrives by the clock of the world in nanoseconds
since 1970, empty if it is lost or nobody knows yet; bytes; and face, stream or
packet.`,
		Args: named("the scenario"),
		RunE: func(c *cobra.Command, args []string) error { return a.run(c.Context(), args[0], f) },
	}
	c.Flags().Uint64Var(&f.seed, "seed", 1, "what chance decides follows from it")
	c.Flags().StringArrayVar(&f.set, "set", nil, "set a parameter of the scenario: `K=V`; again for more")
	c.Flags().StringVar(&f.out, "out", "", "`folder` for the results, new or empty (default results/SCENARIO-SEED, or that with -2, -3… behind if it is there)")
	c.Flags().BoolVar(&f.exact, "exact", false, "refuse to run unless the run repeats bit for bit")
	c.Flags().StringVar(&f.packets, "packets", "", "write all that is sent into a new CSV `file`")
	c.Flags().StringVar(&f.profile, "cpuprofile", "", "write a CPU profile into a `file`")
	return c
}

func (a *app) run(ctx context.Context, name string, f runFlags) error {
	if f.exact && !exact.Enabled() {
		return usage("this is an ordinary build: its runs are statistically reproducible, not bit for bit").
			try("Build one that is exact, and run that: starling-sim exact-build -o starling-sim-exact")
	}
	if err := exact.Reexec(f.seed); err != nil {
		return err
	}
	s, err := open(name)
	if err != nil {
		return err
	}
	set, err := pairs(f.set)
	if err != nil {
		return err
	}
	cfg, play, err := s.Build(f.seed, set)
	if err != nil {
		return usage("%s", err).try("See starling-sim list.")
	}
	outline, err := s.Outline(set)
	if err != nil {
		return usage("%s", err)
	}
	cfg.Repeat = repeat(name, f)
	dir := f.out
	if dir == "" {
		dir = free(filepath.Join("results", fmt.Sprintf("%s-%d", s.Name(), f.seed)))
	}
	folder, err := report.Create(dir, simulation.Manifest{
		Scenario: s.Name(), Source: s.Source(), Seed: f.seed, Params: set, Repeat: cfg.Repeat, Nodes: len(cfg.Nodes),
	})
	if err != nil {
		return fail(exitError, "%s", err).try("Choose another folder with --out.")
	}
	for _, note := range outline.Notes {
		fmt.Fprintf(a.err, "note: %s\n", plain(note))
	}
	if f.profile != "" {
		stop, err := profile(f.profile)
		if err != nil {
			return err
		}
		defer stop()
	}
	finish := func() error { return nil }
	if f.packets == "" && exact.Enabled() {
		// Writing makes stacks grow, and these move whatever is allocated later. So
		// an exact run always writes.
		f.packets = os.DevNull
	}
	if f.packets != "" {
		if cfg.Packets, finish, err = packets(f.packets); err != nil {
			return err
		}
	}
	tell, told := a.progress(s.Name(), outline.Duration).follow(func() {
		_ = folder.Flush() // for somebody who looks meanwhile; Finish reports the error again
	})
	cfg.Sink = func(e simulation.Event) {
		_ = folder.Event(e) // Finish reports it again, and the run is worth going on
	}
	cfg.Progress = tell
	cfg.Interrupted = func() bool { return ctx.Err() != nil }
	r, runErr := simulation.Run(cfg, play)
	told()
	if r == nil {
		return usage("%s", runErr)
	}
	if err = errors.Join(folder.Finish(r), finish()); err != nil {
		err = fail(exitError, "%s", err).try("What could be written is in %s.", dir)
	}
	a.result(dir, r)
	return errors.Join(a.verdict(r, runErr), err)
}

// verdict says how the run ended, or nil if every promise was kept.
func (a *app) verdict(r *simulation.Result, err error) error {
	switch v, violated := errors.AsType[*simulation.Violation](err); {
	case err == nil:
		return nil
	case violated:
		return fail(exitViolated, "a promise was not kept (%s), %s after the start: %s", v.Oracle, report.Time(v.At), v.What).
			try("Repeat it with: %s", v.Repeat)
	case r.Manifest.Outcome == "interrupted":
		return fail(exitInterrupted, "interrupted after %s of virtual time", whole(time.Duration(r.Manifest.Simulated)))
	}
	return fail(exitError, "%s", err)
}

// result prints what came of a run; the report's path is the last line, if it
// could be written.
func (a *app) result(dir string, r *simulation.Result) {
	if a.json {
		a.resultJSON(dir, r)
		return
	}
	fmt.Fprintln(a.out, report.Headline(r))
	if r.Manifest.TraceHash != "" {
		fmt.Fprintf(a.out, "trace hash %s\n", r.Manifest.TraceHash)
	}
	if page := pageOf(dir); page != "" {
		fmt.Fprintf(a.out, "report: %s\n", page)
	}
}

func (a *app) resultJSON(dir string, r *simulation.Result) {
	m := r.Manifest
	a.print(a.out, resultShape{m.Outcome, m.Error, dir, pageOf(dir), m.TraceHash, numbers(report.Summary(r))})
}

// pageOf returns the path of the report in a folder, empty if it has none.
func pageOf(dir string) string {
	page := filepath.Join(dir, "report.html")
	if _, err := os.Stat(page); err != nil {
		return ""
	}
	return page
}

// numbers returns metrics by name.
func numbers(list []simulation.Metric) map[string]float64 {
	m := map[string]float64{}
	for _, v := range list {
		if !math.IsNaN(v.Value) && !math.IsInf(v.Value, 0) { // JSON has no number for them
			m[v.Name] = v.Value
		}
	}
	return m
}

// pairs reads flags of the form K=V.
func pairs(list []string) (map[string]string, error) {
	m := map[string]string{}
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, usage("--set %s is not of the form K=V", kv)
		}
		if _, twice := m[k]; twice {
			return nil, usage("--set %s is there twice", k)
		}
		m[k] = v
	}
	return m, nil
}

// repeat returns the command that repeats a run.
func repeat(name string, f runFlags) string {
	words := []string{"starling-sim", "run", quoted(name), fmt.Sprintf("--seed=%d", f.seed)}
	for _, kv := range slices.Sorted(slices.Values(f.set)) {
		words = append(words, "--set="+quoted(kv))
	}
	if exact.Enabled() {
		words = append(words, "--exact")
	}
	return strings.Join(words, " ")
}

// quoted returns s as a shell takes it for one word.
func quoted(s string) string {
	if s != "" && !strings.ContainsAny(s, " \t\n'\"\\$`;&|<>()*?[]#~!{}") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// free returns dir, or dir with the first number that makes it one that is not
// there.
func free(dir string) string {
	name := dir
	for i := 2; ; i++ {
		if _, err := os.Lstat(name); errors.Is(err, os.ErrNotExist) {
			return name
		}
		name = fmt.Sprintf("%s-%d", dir, i)
	}
}

// packets returns what writes a table of all that is sent, and what finishes it.
func packets(name string) (write func(time.Duration, network.Chunk), finish func() error, err error) {
	how := os.O_WRONLY | os.O_CREATE | os.O_EXCL // results are never mixed
	if name == os.DevNull {
		how = os.O_WRONLY
	}
	file, err := os.OpenFile(name, how, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("making a table of packets: %w", err)
	}
	w := bufio.NewWriterSize(file, 1<<20)
	fmt.Fprintln(w, "sent_s,from,to,arrival_unix_ns,bytes,face")
	line := make([]byte, 0, 128) // used again, so that an exact run allocates what it does without a table
	write = func(at time.Duration, c network.Chunk) {
		line = strconv.AppendFloat(line[:0], at.Seconds(), 'f', 9, 64)
		line = strconv.AppendInt(append(line, ','), int64(c.From), 10)
		line = strconv.AppendInt(append(line, ','), int64(c.To), 10)
		line = append(line, ',')
		if !c.Arrival.IsZero() { // else it is lost, or nobody knows yet
			line = strconv.AppendInt(line, c.Arrival.UnixNano(), 10)
		}
		line = strconv.AppendInt(append(line, ','), int64(c.Size), 10)
		face := simulation.StreamFace
		if c.Datagram {
			face = simulation.PacketFace
		}
		line = append(append(line, ','), face.String()...)
		_, _ = w.Write(append(line, '\n')) // Flush reports it
	}
	return write, func() error { return errors.Join(w.Flush(), file.Close()) }, nil
}

// profile starts a CPU profile, outside of virtual time.
func profile(name string) (stop func(), err error) {
	w, err := os.Create(name)
	if err != nil {
		return nil, fmt.Errorf("making a profile: %w", err)
	}
	if err := pprof.StartCPUProfile(w); err != nil {
		w.Close()
		return nil, fmt.Errorf("making a profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		w.Close()
	}, nil
}
