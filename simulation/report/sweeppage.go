package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"starling/simulation"
)

// A sweepPage is the index of a sweep.
type sweepPage struct {
	page
	Varied      []variedMetric
	Constant    *grid
	Runs        *grid
	Explanation string

	Command, Cite, Source string
}

// A variedMetric is a section: a metric that was not the same in all runs.
type variedMetric struct {
	ID, Title string
	Same      []string // metrics that had the same values everywhere
	Figures   []figure
	Means     *grid
}

// loud is how many runs that did not hold are shown in boxes of their own.
const loud = 5

func (s sweep) writePage(w io.Writer, dir string, runs []Run, figures [][]figure) error {
	m := runs[0].Manifest
	p := sweepPage{page: page{
		CSS:      style,
		Title:    "Sweep of " + m.Scenario + " – Starling simulation",
		About:    []string{"Starling simulation", "sweep", m.Scenario, m.Version, m.Go},
		Headline: s.headline(m, len(runs)),
	}}
	for i, r := range s.broken {
		if i == loud {
			p.Alarms = append(p.Alarms, alarm{Title: fmt.Sprintf("%s more", integer(len(s.broken)-loud)), What: "They are in the list of runs below."})
			break
		}
		found := alarms(&simulation.Result{Manifest: r.Manifest, Violation: r.Violation})
		if found == nil {
			found = []alarm{{Title: "Run " + r.Manifest.Outcome, Command: r.Manifest.Repeat}}
		}
		found[0].Title += " – " + s.name(r.Manifest)
		p.Alarms = append(p.Alarms, found...)
	}
	p.Explanation = "Points are means over the seeds; bars are 95" + nbsp + "% confidence intervals (Student’s t)."
	if s.pairs() {
		p.Explanation += " Some are over two runs only, where such an interval is more than twelve times as wide as the spread of the two: run more seeds."
	}
	p.Explanation += " An interval ends where the metric cannot be: at 0, and for a share at 100" + nbsp + "%."
	if len(s.broken) > 0 {
		p.Explanation += fmt.Sprintf(" Left out: %s that did not end well.", plural(len(s.broken), "run", "runs"))
	}
	at := map[int]int{} // index in p.Varied of a metric
	for i, metric := range s.metrics {
		if !s.varied(i) {
			if p.Constant == nil {
				p.Constant = &grid{Caption: "The same in every run", Head: columns("Metric", "Value#"), Quiet: true}
			}
			p.Constant.add(label(metric.Name), value(s.first(i), metric.Unit))
			continue
		}
		if j := s.twin(i); j != i {
			of := &p.Varied[at[j]]
			of.Same = append(of.Same, label(metric.Name))
			continue
		}
		at[i] = len(p.Varied)
		p.Varied = append(p.Varied, variedMetric{ID: fmt.Sprintf("metric-%d", i), Title: label(metric.Name), Figures: figures[i], Means: s.means(i)})
	}
	p.Command, p.Cite, p.Source = s.command(runs), s.cite(runs), m.Source
	p.Runs = s.list(dir, runs)
	return templates.ExecuteTemplate(w, "sweep.html", p)
}

// pairs says whether an interval is over two runs only.
func (s sweep) pairs() bool {
	return slices.ContainsFunc(s.groups, func(g group) bool {
		return slices.ContainsFunc(g.metrics, func(iv interval) bool { return iv.n == 2 && iv.lowest < iv.highest })
	})
}

func (s sweep) headline(m simulation.Manifest, n int) string {
	what := fmt.Sprintf("%s of %s", plural(n, "run", "runs"), m.Scenario)
	var sizes []string
	for _, k := range s.keys {
		sizes = append(sizes, fmt.Sprintf("%d values of %s", len(s.values[k]), k))
	}
	if len(sizes) > 0 {
		what += " over " + strings.Join(sizes, " and ")
	}
	if len(s.broken) == 0 {
		return what + ": no violation was seen."
	}
	violated := 0
	for _, r := range s.broken {
		if r.Violation != nil {
			violated++
		}
	}
	switch violated {
	case 0:
		return fmt.Sprintf("%s: %d did not end well, and no promise was seen broken.", what, len(s.broken))
	case 1:
		return what + ": one broke a promise."
	}
	return fmt.Sprintf("%s: %s broke a promise.", what, integer(violated))
}

// seedsOf writes the seeds of the runs, and says whether they are all from the
// lowest to the highest.
func seedsOf(runs []Run) (string, bool) {
	var seeds []uint64
	for _, r := range runs {
		seeds = append(seeds, r.Manifest.Seed)
	}
	slices.Sort(seeds)
	seeds = slices.Compact(seeds)
	first, last := seeds[0], seeds[len(seeds)-1]
	return fmt.Sprintf("%d..%d", first, last), last-first == uint64(len(seeds)-1)
}

// command repeats the sweep; empty if no one command does.
func (s sweep) command(runs []Run) string {
	words := strings.Fields(runs[0].Manifest.Repeat)
	seeds, whole := seedsOf(runs)
	if len(words) < 3 || words[1] != "run" || strings.ContainsAny(words[2], `'"\`) || !whole {
		return ""
	}
	c := words[0] + " sweep " + words[2] + " --seeds=" + seeds
	for _, k := range sortedKeys(s.values) {
		option, list := " --set=", strings.Join(s.values[k], ",")
		if len(s.values[k]) > 1 {
			option = " --vary="
		}
		if slices.Contains(s.values[k], "") || strings.ContainsFunc(k+list, func(r rune) bool {
			return !strings.ContainsRune("._-,%+", r) && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
		}) {
			return "" // not set in all runs, or in need of quotes
		}
		c += option + k + "=" + list
	}
	return c
}

// cite is how a paper may name the sweep.
func (s sweep) cite(runs []Run) string {
	m := runs[0].Manifest
	c := fmt.Sprintf("Starling simulator %s, scenario “%s”", revision(m.Version), m.Scenario)
	for i, k := range sortedKeys(s.values) {
		c += []string{" with ", "; "}[min(i, 1)] + k + "=" + strings.Join(s.values[k], ", ")
	}
	seeds, whole := seedsOf(runs)
	if !whole {
		seeds += ", not all"
	}
	c += fmt.Sprintf("; %s, seeds %s, %s, virtual time from %s", plural(len(runs), "run", "runs"), seeds, m.Go, m.Epoch.UTC().Format(time.RFC3339))
	if slices.ContainsFunc(runs, func(r Run) bool { return !r.Manifest.Exact }) {
		return c + ", statistically reproducible."
	}
	return c + ", exact."
}

// name tells a run of the sweep from the others.
func (s sweep) name(m simulation.Manifest) string {
	if len(s.keys) == 0 {
		return fmt.Sprintf("seed %d", m.Seed)
	}
	return fmt.Sprintf("%s, seed %d", setting(m.Params, s.keys), m.Seed)
}

// first returns the value that metric i had whenever it had one.
func (s sweep) first(i int) float64 {
	for _, g := range s.groups {
		if g.metrics[i].n > 0 {
			return g.metrics[i].lowest
		}
	}
	return intervalOf(nil).mean
}

func (s sweep) means(i int) *grid {
	m := s.metrics[i]
	heads := append([]string{}, s.keys...)
	if len(heads) == 0 {
		heads = []string{"Setting"}
	}
	g := &grid{Caption: label(m.Name) + " by setting", Head: columns(append(heads, "Runs#", "Mean#", "95"+nbsp+"% interval#", "Lowest#", "Highest#")...), Quiet: true}
	for _, of := range s.groups {
		row := make([]string, 0, len(g.Head))
		for _, k := range s.keys {
			row = append(row, or(of.params[k], "(unset)"))
		}
		if len(s.keys) == 0 {
			row = append(row, "all seeds")
		}
		iv := of.metrics[i]
		g.add(append(row, integer(iv.n), value(iv.mean, m.Unit), reach(iv, m.Unit), value(iv.lowest, m.Unit), value(iv.highest, m.Unit))...)
	}
	return g
}

func (s sweep) list(dir string, runs []Run) *grid {
	g := &grid{Caption: "All runs", Head: columns("Run", "Outcome", "Delivered#", "Median#", "99"+nbsp+"%#", "Longest#"), Tall: true, Quiet: true}
	for _, r := range runs {
		g.add(s.name(r.Manifest), r.Manifest.Outcome, percent(metric(r, "delivered_share")), value(metric(r, "delivery_p50"), "s"), value(metric(r, "delivery_p99"), "s"), value(metric(r, "delivery_max"), "s"))
		if rel := relative(dir, r.Dir); rel != "" {
			g.Rows[len(g.Rows)-1][0].Link = rel + "/" + pageFile
		}
	}
	return g
}
