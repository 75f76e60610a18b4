package report

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"starling/simulation"
)

const (
	indexFile = "index.html"
	sweepFile = "sweep.csv"
	runsDir   = "runs"
)

// A MixError means that runs cannot be put together. Nothing was written.
type MixError struct {
	What string   // differs: scenario, version, …; "results" or "copies" of what is there twice
	A, B string   // the two values, or the run that is there twice
	Dirs []string // one folder for each
}

// Error implements error.
func (e *MixError) Error() string {
	if e.A == e.B && e.What == copies {
		return fmt.Sprintf("report: %s is there twice, and counts once: %s", e.A, strings.Join(e.Dirs, " and "))
	}
	if e.A == e.B {
		return fmt.Sprintf("report: %s is there twice, with different results: %s", e.A, strings.Join(e.Dirs, " and "))
	}
	return fmt.Sprintf("report: the runs differ in %s: %s in %s, %s in %s", e.What, e.A, e.Dirs[0], e.B, e.Dirs[1])
}

// copies is what a [MixError] is about if one run is there twice.
const copies = "copies"

// distinct refuses one run under two names: it would count as two.
func distinct(runs []Run) error {
	first := map[string]Run{} // by identity
	for _, r := range runs {
		id := identity(r.Manifest)
		if before, twice := first[id]; twice {
			return &MixError{What: copies, A: id, B: id, Dirs: []string{before.Dir, r.Dir}}
		}
		first[id] = r
	}
	return nil
}

// sameKind refuses runs of different programs or scenarios: their metrics do
// not measure the same.
func sameKind(runs []Run) error {
	for _, r := range runs {
		first := runs[0]
		for _, f := range []struct {
			what string
			of   func(m simulation.Manifest) string
		}{
			{"scenario", func(m simulation.Manifest) string { return strconv.Quote(m.Scenario) }},
			{"version", func(m simulation.Manifest) string { return strconv.Quote(m.Version) }},
			{"the version of Go", func(m simulation.Manifest) string { return strconv.Quote(m.Go) }},
			{"the scenario file", func(m simulation.Manifest) string { return "SHA-256 " + sum(m.Source) + "…" }},
		} {
			if a, b := f.of(first.Manifest), f.of(r.Manifest); a != b {
				return &MixError{f.what, a, b, []string{first.Dir, r.Dir}}
			}
		}
	}
	return nil
}

// A group is the runs of one setting.
type group struct {
	params  map[string]string
	metrics []interval // parallel to sweep.metrics
}

// A sweep is its runs by setting.
type sweep struct {
	keys    []string            // that vary, sorted
	values  map[string][]string // of each key, sorted
	metrics []simulation.Metric // whose values mean nothing here
	groups  []group             // in the order of their values
	counted int                 // runs that held
	broken  []Run               // the others
}

// Sweep writes what many runs of one scenario say together into the folder dir,
// which may exist: index.html; sweep.csv, with the mean of every metric for
// every setting and its 95 % confidence interval over the seeds (Student's t);
// runs.csv, with one row a run; and metric-by-key.svg for every metric that
// varied. Only runs whose outcome is "held" and that broke no promise count. Runs
// of several scenarios or versions, and one run that is there twice, are refused
// with a [MixError].
func Sweep(dir string, runs []Run) error {
	if len(runs) == 0 {
		return errors.New("report: a sweep of no runs")
	}
	if err := sameKind(runs); err != nil {
		return err
	}
	if err := distinct(runs); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("report: making %s: %w", dir, err)
	}
	runs = slices.Clone(runs)
	slices.SortStableFunc(runs, compareRuns)
	s := sweepOf(runs)
	w := writer{dir: dir, out: disk}
	w.file(sweepFile, s.writeIntervals)
	w.file("runs.csv", func(w io.Writer) error { return writeRuns(w, dir, runs, s.metrics) })
	figures := s.figures()
	for _, f := range figures {
		w.figures(f)
	}
	w.file(indexFile, func(w io.Writer) error { return s.writePage(w, dir, runs, figures) })
	return errors.Join(w.errs...)
}

func sweepOf(runs []Run) sweep {
	s := sweep{values: map[string][]string{}}
	for _, r := range runs {
		for k := range r.Manifest.Params {
			s.values[k] = nil
		}
	}
	for k := range s.values {
		for _, r := range runs {
			if v := r.Manifest.Params[k]; !slices.Contains(s.values[k], v) {
				s.values[k] = append(s.values[k], v)
			}
		}
		slices.SortFunc(s.values[k], compareValues)
	}
	for _, k := range sortedKeys(s.values) {
		if len(s.values[k]) > 1 {
			s.keys = append(s.keys, k)
		}
	}
	samples := map[string][]Run{} // by setting
	for _, r := range runs {
		if r.Manifest.Outcome != "held" || r.Violation != nil {
			s.broken = append(s.broken, r)
			continue
		}
		s.counted++
		at := settingKey(r.Manifest.Params, s.keys)
		if samples[at] == nil {
			s.groups = append(s.groups, group{params: r.Manifest.Params})
		}
		samples[at] = append(samples[at], r)
		for _, m := range r.Metrics {
			if s.index(m.Name) < 0 {
				s.metrics = append(s.metrics, m)
			}
		}
	}
	slices.SortStableFunc(s.groups, func(a, b group) int {
		for _, k := range s.keys {
			if order := compareValues(a.params[k], b.params[k]); order != 0 {
				return order
			}
		}
		return 0
	})
	for i, g := range s.groups {
		for _, m := range s.metrics {
			var values []float64
			for _, r := range samples[settingKey(g.params, s.keys)] {
				values = append(values, metric(r, m.Name))
			}
			s.groups[i].metrics = append(s.groups[i].metrics, intervalOf(values).within(m))
		}
	}
	return s
}

func (s sweep) index(name string) int {
	return slices.IndexFunc(s.metrics, func(m simulation.Metric) bool { return m.Name == name })
}

// metric returns a value of r; NaN if it has none or nothing that can be drawn.
func metric(r Run, name string) float64 {
	for _, m := range r.Metrics {
		if m.Name == name && !math.IsInf(m.Value, 0) {
			return m.Value
		}
	}
	return math.NaN()
}

// varied says whether metric i was not the same in all runs.
func (s sweep) varied(i int) bool {
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, g := range s.groups {
		if g.metrics[i].n > 0 {
			lo, hi = min(lo, g.metrics[i].lowest), max(hi, g.metrics[i].highest)
		}
	}
	return lo < hi
}

func (s sweep) writeIntervals(w io.Writer) error {
	c := csv.NewWriter(w)
	rows := [][]string{slices.Concat([]string{"metric", "unit"}, each(s.keys, shielded), []string{"runs", "mean", "ci95_low", "ci95_high", "lowest", "highest"})}
	for i, m := range s.metrics {
		for _, g := range s.groups {
			row := []string{shielded(m.Name), shielded(m.Unit)}
			for _, k := range s.keys {
				row = append(row, setCell(g.params[k]))
			}
			iv := g.metrics[i]
			row = append(row, strconv.Itoa(iv.n))
			for _, v := range []float64{iv.mean, iv.low, iv.high, iv.lowest, iv.highest} {
				row = append(row, number(v))
			}
			rows = append(rows, row)
		}
	}
	return c.WriteAll(rows)
}

func each(list []string, fn func(string) string) []string {
	all := make([]string, len(list))
	for i, s := range list {
		all[i] = fn(s)
	}
	return all
}

func writeRuns(w io.Writer, dir string, runs []Run, metrics []simulation.Metric) error {
	params := map[string]bool{}
	for _, r := range runs {
		for k := range r.Manifest.Params {
			params[k] = true
		}
	}
	keys := sortedKeys(params)
	head := slices.Concat([]string{"folder", "seed", "outcome"}, each(keys, shielded))
	for _, m := range metrics {
		head = append(head, shielded(m.Name))
	}
	rows := [][]string{head}
	for _, r := range runs {
		row := []string{shielded(relative(dir, r.Dir)), strconv.FormatUint(r.Manifest.Seed, 10), shielded(r.Manifest.Outcome)}
		for _, k := range keys {
			row = append(row, setCell(r.Manifest.Params[k]))
		}
		for _, m := range metrics {
			row = append(row, number(metric(r, m.Name)))
		}
		rows = append(rows, row)
	}
	return csv.NewWriter(w).WriteAll(rows)
}

// relative names the folder of a run as seen from dir; empty if it cannot.
func relative(dir, run string) string {
	if run == "" {
		return ""
	}
	a, errA := filepath.Abs(dir)
	b, errB := filepath.Abs(run)
	rel, err := filepath.Rel(a, b)
	if errors.Join(errA, errB, err) != nil {
		return ""
	}
	return filepath.ToSlash(rel)
}

// A curve is a metric against one key, the other keys held.
type curve struct {
	id   string // no other setting of the other keys has it
	name string
	at   []float64 // positions of the values of the key
	y    []interval
}

// twin returns the first metric that has the values of metric i in every
// setting: i itself, or one whose plots are the same.
func (s sweep) twin(i int) int {
	return slices.IndexFunc(s.metrics[:i+1], func(m simulation.Metric) bool {
		j := s.index(m.Name)
		return i == j || m.Unit == s.metrics[i].Unit && !slices.ContainsFunc(s.groups, func(g group) bool {
			return fmt.Sprint(g.metrics[i]) != fmt.Sprint(g.metrics[j]) // NaN is like NaN
		})
	})
}

// figures returns a figure for every key, for each metric that varied and is
// the first of its twins.
func (s sweep) figures() [][]figure {
	all := make([][]figure, len(s.metrics))
	taken := map[string]bool{}
	for i, m := range s.metrics {
		if !s.varied(i) || s.twin(i) != i {
			continue
		}
		for _, key := range s.keys {
			f := s.figure(i, key)
			base := fileName(m.Name + "-by-" + key)
			f.name = base
			for n := 2; taken[f.name]; n++ {
				f.name = fmt.Sprintf("%s-%d", base, n)
			}
			taken[f.name] = true
			all[i] = append(all[i], f)
		}
	}
	return all
}

func fileName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, s)
	return s[:min(len(s), 80)]
}

// most curves that can be told apart.
const mostCurves = 6

func (s sweep) figure(i int, key string) figure {
	m := s.metrics[i]
	curves, left := s.curves(i, key)
	pos, ticks := positions(s.values[key])
	lo, hi := math.Inf(1), math.Inf(-1)
	var text strings.Builder
	for _, c := range curves {
		for j, iv := range c.y {
			lo, hi = min(lo, iv.mean), max(hi, iv.mean)
			if iv.low < iv.high {
				lo, hi = min(lo, iv.low), max(hi, iv.high)
			}
			fmt.Fprintf(&text, "%s %s: %s. ", c.name, ticks[slices.Index(pos, c.at[j])].Label, value(iv.mean, m.Unit)+" ("+reach(iv, m.Unit)+")")
		}
	}
	lo, hi = bounds(lo, hi)
	f := figure{title: label(m.Name) + " by " + key, text: strings.TrimSpace(text.String()), width: halfWidth, height: 280}
	f.unit = label(m.Name)
	if m.Unit != "" && m.Unit != "share" {
		f.unit += ", " + m.Unit
	}
	if left > 0 {
		f.unit += fmt.Sprintf(" (%d more settings in sweep.csv)", left)
	}
	for j, c := range curves {
		if len(curves) > 1 {
			f.legend = append(f.legend, entry{name: c.name, line: line(j), glyph: glyphs[j]})
		}
	}
	f.prepare = func(p *plot.Plot, width vg.Length) {
		pad := (pos[len(pos)-1] - pos[0]) * 0.06
		p.X.Min, p.X.Max = pos[0]-pad, pos[len(pos)-1]+pad
		p.X.Tick.Marker = spaced(ticks, p.X.Max-p.X.Min, width)
		p.X.Label.Text = short(visible(key), 30)
		p.Y.Min, p.Y.Max = lo, hi
		p.Y.Tick.Marker = round(lo, hi, 5, func(v float64) string {
			if m.Unit == "share" {
				return plainNumber(math.Round(v*1e6)/1e4) + " %"
			}
			if m.Unit == "bytes" {
				return roundSize(v)
			}
			return plainNumber(v)
		})
		p.Add(paint(func(c *draw.Canvas, x, y func(float64) vg.Length) {
			for j, curve := range curves {
				// Beside each other, so that no interval hides another.
				aside := (vg.Length(j) - vg.Length(len(curves)-1)/2) * 4
				style := line(j)
				bar := solid(style.Color, 1)
				var pts []vg.Point
				for k, iv := range curve.y {
					pts = append(pts, vg.Point{X: x(curve.at[k]) + aside, Y: y(iv.mean)})
				}
				c.StrokeLines(style, pts)
				for k, iv := range curve.y {
					pt := pts[k]
					mark(c, glyphs[j], style.Color, pt)
					if iv.low < iv.high {
						top, bottom := y(iv.high), y(iv.low)
						c.StrokeLine2(bar, pt.X, bottom, pt.X, top)
						c.StrokeLine2(bar, pt.X-3, top, pt.X+3, top)
						c.StrokeLine2(bar, pt.X-3, bottom, pt.X+3, bottom)
					}
				}
			}
		}))
	}
	return f
}

// bounds gives lo and hi air, and starts at 0 unless that would hide the rest.
func bounds(lo, hi float64) (float64, float64) {
	if !(hi > lo) {
		return lo - 1, lo + 1
	}
	if lo >= 0 && lo < hi*0.6 {
		return 0, hi * 1.05
	}
	air := (hi - lo) * 0.08
	if lo >= 0 {
		return max(0, lo-air), hi + air
	}
	return lo - air, hi + air
}

// curves returns metric i against key, one curve for each setting of the other
// keys, and how many more there are than can be told apart.
func (s sweep) curves(i int, key string) (curves []curve, left int) {
	others := slices.DeleteFunc(slices.Clone(s.keys), func(k string) bool { return k == key })
	pos, _ := positions(s.values[key])
	for _, g := range s.groups {
		if g.metrics[i].n == 0 {
			continue
		}
		id := settingKey(g.params, others)
		j := slices.IndexFunc(curves, func(c curve) bool { return c.id == id })
		if j < 0 {
			j = len(curves)
			curves = append(curves, curve{id: id, name: setting(g.params, others)})
		}
		curves[j].at = append(curves[j].at, pos[slices.Index(s.values[key], g.params[key])])
		curves[j].y = append(curves[j].y, g.metrics[i])
	}
	if left = len(curves) - mostCurves; left > 0 {
		return curves[:mostCurves], left
	}
	return curves, 0
}

// positions places the values of a key: as numbers if all are, as their
// logarithms if they span more than fifty times, and else one after the other.
func positions(values []string) ([]float64, []plot.Tick) {
	pos := make([]float64, len(values))
	numbers, distinct := true, map[float64]bool{}
	for i, v := range values {
		q, ok := quantity(v)
		numbers = numbers && ok
		pos[i] = q
		distinct[q] = true
	}
	if !numbers || len(distinct) < len(values) {
		for i := range pos {
			pos[i] = float64(i)
		}
	} else if pos[0] > 0 && pos[len(pos)-1] > 50*pos[0] {
		for i := range pos {
			pos[i] = math.Log10(pos[i])
		}
	}
	ticks := make([]plot.Tick, len(values))
	for i, v := range values {
		ticks[i] = plot.Tick{Value: pos[i], Label: short(visible(or(v, "(unset)")), 14)}
	}
	return pos, ticks
}

// spaced leaves out labels that would touch the one before.
func spaced(ticks []plot.Tick, reach float64, width vg.Length) plot.ConstantTicks {
	style := textStyle(muted, textSize)
	var kept plot.ConstantTicks
	free := math.Inf(-1) // where the label before ends
	for _, t := range ticks {
		half := (style.Width(t.Label).Points()/2 + 3) / (width.Points() - 60) * reach
		if t.Value-half >= free {
			free = t.Value + half
			kept = append(kept, t)
		}
	}
	return kept
}

// reach writes the interval of a mean; none for one value.
func reach(iv interval, unit string) string {
	if math.IsNaN(iv.low) {
		return none
	}
	return value(iv.low, unit) + " to " + value(iv.high, unit)
}
