package report

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"starling/simulation"
)

// A comparison is the metrics of several runs side by side.
type comparison struct {
	dirs    []string
	results []*simulation.Result
	facts   [][]string // what the manifests differ in: name, then a value a run
	metrics [][]string // name, a value a run, and the change if there are two
}

func compare(dirs []string) (comparison, error) {
	c := comparison{dirs: dirs}
	if len(dirs) < 2 {
		return c, errors.New("report: comparing takes two results folders or more")
	}
	var errs []error
	for _, dir := range dirs {
		r, err := Load(dir)
		errs = append(errs, err)
		c.results = append(c.results, r)
	}
	if err := errors.Join(errs...); err != nil {
		return c, err
	}
	keys := map[string]bool{}
	for _, r := range c.results {
		for k := range r.Manifest.Params {
			keys[k] = true
		}
	}
	fact := func(name string, of func(m simulation.Manifest) string) {
		row := []string{name}
		differ := false
		for _, r := range c.results {
			row = append(row, or(of(r.Manifest), none))
			differ = differ || row[1] != row[len(row)-1]
		}
		if differ {
			c.facts = append(c.facts, row)
		}
	}
	fact("scenario", func(m simulation.Manifest) string { return m.Scenario })
	fact("scenario file", func(m simulation.Manifest) string { return sum(m.Source) })
	fact("seed", func(m simulation.Manifest) string { return fmt.Sprint(m.Seed) })
	delete(keys, "nodes") // a fact of its own
	for _, k := range sortedKeys(keys) {
		first := inEffect(c.results[0].Manifest, k)
		fact(k, func(m simulation.Manifest) string {
			if v := inEffect(m, k); !alike(first, v) {
				return v
			}
			return first
		})
	}
	fact("nodes", func(m simulation.Manifest) string { return integer(m.Nodes) })
	fact("store", func(m simulation.Manifest) string { return m.Store })
	fact("face", func(m simulation.Manifest) string { return m.Face })
	fact("security", func(m simulation.Manifest) string { return m.Security })
	fact("version", func(m simulation.Manifest) string { return m.Version })
	fact("go", func(m simulation.Manifest) string { return m.Go })
	fact("machine", func(m simulation.Manifest) string { return m.OS + "/" + m.Arch })
	fact("epoch", func(m simulation.Manifest) string { return m.Epoch.UTC().Format(time.RFC3339) })
	fact("trace hash", func(m simulation.Manifest) string { return m.TraceHash })
	fact("outcome", func(m simulation.Manifest) string { return m.Outcome })

	var names []simulation.Metric
	values := make([]map[string]float64, len(c.results))
	seen := map[string]bool{}
	for i, r := range c.results {
		values[i] = map[string]float64{}
		for _, m := range Summary(r) {
			if !seen[m.Name] {
				seen[m.Name] = true
				names = append(names, m)
			}
			values[i][m.Name] = m.Value
		}
	}
	for _, m := range names {
		name := label(m.Name)
		if _, unit := apart(m.Value, m.Unit); labels[m.Name] == "" && unit != "" {
			name += ", " + unit
		}
		row := []string{name}
		var v []float64
		for i := range c.results {
			x, ok := values[i][m.Name]
			if !ok {
				x = math.NaN()
			}
			v = append(v, x)
			written, _ := apart(x, m.Unit)
			row = append(row, written)
		}
		if len(v) == 2 {
			row = append(row, change(v[0], v[1], m.Unit))
		}
		c.metrics = append(c.metrics, row)
	}
	return c, nil
}

// inEffect returns the value that a parameter had in a run: the one that was
// set, or the default in its scenario file.
func inEffect(m simulation.Manifest, key string) string {
	if v, ok := m.Params[key]; ok {
		return v
	}
	return cmp.Or(m.Defaults[key], "default")
}

// alike says whether two values of a parameter are the same, however written.
func alike(a, b string) bool {
	x, isX := quantity(a)
	y, isY := quantity(b)
	return a == b || isX && isY && x == y
}

// change writes how much more b is than a; of shares, in points of a hundred.
func change(a, b float64, unit string) string {
	switch {
	case math.IsNaN(a) || math.IsNaN(b):
		return none
	case a == b:
		return "same"
	case unit == "share":
		return fmt.Sprintf("%+.1f%spoints", (b-a)*100, nbsp)
	case a == 0:
		return "new"
	}
	return fmt.Sprintf("%+.1f%s%%", (b-a)/math.Abs(a)*100, nbsp)
}

// cut says which runs did not end by themselves; empty if all did.
func (c comparison) cut() string {
	var names []string
	for i, r := range c.results {
		if r.Manifest.Outcome != "held" {
			names = append(names, fmt.Sprintf("%s (%s after %s)", letter(i), r.Manifest.Outcome, Time(seconds(r.Manifest.Simulated))))
		}
	}
	if names == nil {
		return ""
	}
	return strings.Join(names, ", ") + " did not run to the end, so totals and what was delivered are not comparable."
}

// letter names run i of a comparison.
func letter(i int) string {
	if i < 26 {
		return string(rune('A' + i))
	}
	return fmt.Sprintf("R%d", i+1)
}

// Compare writes the metrics of two or more results folders side by side, as a
// table for a terminal.
func Compare(w io.Writer, dirs ...string) error {
	c, err := compare(dirs)
	if err != nil {
		return err
	}
	var b strings.Builder
	for i, r := range c.results {
		fmt.Fprintf(&b, "%s  %s: %s, %s\n", letter(i), dirs[i], title(r.Manifest), r.Manifest.Outcome)
	}
	if cut := c.cut(); cut != "" {
		b.WriteString("\nMind: " + cut + "\n")
	}
	head := []string{""}
	for i := range c.results {
		head = append(head, letter(i))
	}
	if len(c.facts) > 0 {
		b.WriteByte('\n')
		writeText(&b, append([][]string{append([]string{"Differ in"}, head[1:]...)}, c.facts...))
	}
	if len(c.results) == 2 {
		head = append(head, "change")
	}
	b.WriteByte('\n')
	writeText(&b, append([][]string{head}, c.metrics...))
	_, err = io.WriteString(w, strings.Map(func(r rune) rune {
		if r == '\n' {
			return r
		}
		return []rune(visible(string(r)))[0]
	}, b.String()))
	return err
}

// writeText lines columns up: the first at its left, the others at their right.
func writeText(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, s := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(s))
		}
	}
	for _, row := range rows {
		for i, s := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(s))
			if i == 0 {
				b.WriteString(s + pad)
			} else {
				b.WriteString("  " + pad + s)
			}
		}
		b.WriteByte('\n')
	}
}

// A comparePage is the page of a comparison.
type comparePage struct {
	page
	Runs, Facts, Metrics *grid
	Figure               *figure
}

// CompareHTML writes the comparison as one page that needs no other file.
func CompareHTML(w io.Writer, dirs ...string) error {
	c, err := compare(dirs)
	if err != nil {
		return err
	}
	p := comparePage{page: page{CSS: style, Title: "Runs side by side – Starling simulation", About: []string{"Starling simulation", "comparison"}}}
	p.Headline = c.headline()
	p.Runs = &grid{Caption: "The runs", Head: columns("", "Folder~", "Scenario", "Seed#", "Outcome"), Quiet: true}
	heads, plain := []string{""}, []string{""}
	var samples []sample
	for i, r := range c.results {
		p.Runs.add(letter(i), dirs[i], r.Manifest.Scenario, fmt.Sprint(r.Manifest.Seed), r.Manifest.Outcome)
		heads, plain = append(heads, letter(i)+"#"), append(plain, letter(i))
		if d := digestOf(r); len(d.delivery) > 0 {
			samples = append(samples, sample{letter(i), d.delivery})
		}
		for _, a := range alarms(r) {
			a.Title = letter(i) + ": " + a.Title
			p.Alarms = append(p.Alarms, a)
		}
	}
	if cut := c.cut(); cut != "" {
		p.Alarms = append(p.Alarms, alarm{Title: "Not all runs are whole", What: cut})
	}
	if len(c.facts) > 0 {
		p.Facts = &grid{Caption: "What the runs differ in", Head: columns(plain...)}
		for _, row := range c.facts {
			p.Facts.add(row...)
		}
	}
	if len(c.results) == 2 {
		heads = append(heads, "Change#")
	}
	p.Metrics = &grid{Caption: "Metrics", Head: columns(heads...), Quiet: true}
	for _, row := range c.metrics {
		p.Metrics.add(row...)
	}
	if len(samples) > 0 && len(samples) <= mostCurves {
		f := deliveryFigure(samples)
		p.Figure = &f
	}
	return templates.ExecuteTemplate(w, "compare.html", p)
}

func (c comparison) headline() string {
	parts := make([]string, len(c.results))
	for i, r := range c.results {
		d := digestOf(r)
		parts[i] = fmt.Sprintf("%s delivered %s", letter(i), percent(ratio(len(d.delivery), d.accepted)))
		if d.accepted == 0 {
			parts[i] = letter(i) + " sent no messages"
		} else if len(d.delivery) > 0 {
			parts[i] += ", half within " + value(percentile(d.delivery, 500), "s")
		}
		if i == 3 && len(c.results) > 4 {
			return strings.Join(parts[:4], "; ") + fmt.Sprintf("; and %d more runs.", len(c.results)-4)
		}
	}
	return strings.Join(parts, "; ") + "."
}
