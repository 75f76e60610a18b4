package report

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"starling/simulation"
)

// A Run is what a sweep needs to know of one run. Its messages stay on disk.
type Run struct {
	Dir      string // its results folder
	Manifest simulation.Manifest
	Metrics  []simulation.Metric // as [Summary] returns them

	Violation *simulation.Violation
}

// ReadRun reads what a sweep needs of a results folder. It returns [ErrRunning]
// for one that nobody finished. A run with a violation comes back as "violated".
func ReadRun(dir string) (Run, error) {
	m, err := readManifest(dir)
	if err != nil {
		return Run{}, err
	}
	rows, err := readTable(dir, metricsTable, roster{})
	if err != nil {
		return Run{}, err
	}
	run := Run{Dir: dir, Manifest: m.Manifest, Violation: m.broken()}
	for _, row := range rows {
		run.Metrics = append(run.Metrics, row.Metric)
	}
	return run, nil
}

// Runs reads every results folder at or below dirs, in a fixed order. Folders
// that cannot be read are named in the error; the others are returned all the
// same.
func Runs(dirs ...string) ([]Run, error) {
	var runs []Run
	var errs []error
	for _, dir := range dirs {
		before := len(runs) + len(errs)
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return err
			}
			if _, err := os.Stat(filepath.Join(path, manifestFile)); err != nil {
				return nil
			}
			run, err := ReadRun(path)
			if err != nil {
				errs = append(errs, err)
			} else {
				runs = append(runs, run)
			}
			return fs.SkipDir
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("report: looking for results in %s: %w", dir, err))
		} else if len(runs)+len(errs) == before {
			errs = append(errs, fmt.Errorf("report: no results in %s", dir))
		}
	}
	slices.SortStableFunc(runs, compareRuns)
	return runs, errors.Join(errs...)
}

func compareRuns(a, b Run) int {
	keys := slices.Concat(sortedKeys(a.Manifest.Params), sortedKeys(b.Manifest.Params))
	slices.Sort(keys)
	order := cmp.Compare(a.Manifest.Scenario, b.Manifest.Scenario)
	for _, k := range keys {
		order = cmp.Or(order, compareValues(a.Manifest.Params[k], b.Manifest.Params[k]))
	}
	return cmp.Or(order, cmp.Compare(a.Manifest.Seed, b.Manifest.Seed), cmp.Compare(a.Dir, b.Dir))
}

// Name returns a name for the folder of a run that no other scenario, setting
// or seed has.
func Name(m simulation.Manifest) string {
	parts := []string{m.Scenario}
	for _, k := range sortedKeys(m.Params) {
		parts = append(parts, k+"="+m.Params[k])
	}
	whole := strings.Join(append(parts, "seed="+strconv.FormatUint(m.Seed, 10)), ",")
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune(".=-,0123456789abcdefghijklmnopqrstuvwxyz", r) {
			return r
		}
		return '_'
	}, whole)
	// A comma or an equals sign of a parameter's own could make two the same.
	own := strings.Count(whole, ",") + strings.Count(whole, "=")
	if name != whole || own != 2*len(m.Params)+2 || len(name) > 100 || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "-") {
		name = "run_" + name[:min(len(name), 80)] + "_" + sum(identity(m))
	}
	return name
}

// identity names what makes a run what it is.
func identity(m simulation.Manifest) string {
	s := strconv.Quote(m.Scenario)
	for _, k := range sortedKeys(m.Params) {
		s += fmt.Sprintf(", %q=%q", k, m.Params[k])
	}
	return s + ", seed " + strconv.FormatUint(m.Seed, 10)
}

// sum is a short name for a text.
func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:6])
}

// quantity reads a value of a parameter as a number, if it is one.
func quantity(s string) (float64, bool) {
	if v, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(s, "%")), 64); err == nil && v-v == 0 {
		return v, true
	}
	if d, err := time.ParseDuration(s); err == nil {
		return d.Seconds(), true
	}
	return 0, false
}

// compareValues puts numbers before words, and both in their order.
func compareValues(a, b string) int {
	x, isX := quantity(a)
	y, isY := quantity(b)
	switch {
	case isX && isY:
		return cmp.Or(cmp.Compare(x, y), cmp.Compare(a, b))
	case isX:
		return -1
	case isY:
		return 1
	}
	return cmp.Compare(a, b)
}
