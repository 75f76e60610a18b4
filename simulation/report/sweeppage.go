package report

import (
	"fmt"
	"io"
	"strings"

	"starling/simulation"
)

// A sweepPage is the index of a sweep.
type sweepPage struct {
	page
	Varied      []variedMetric
	Constant    *grid
	Runs        *grid
	Explanation string
}

// A variedMetric is a section: a metric that was not the same in all runs.
type variedMetric struct {
	ID, Title string
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
	if len(s.broken) > 0 {
		p.Explanation += fmt.Sprintf(" Left out: %s that did not end well.", plural(len(s.broken), "run", "runs"))
	}
	next := 0
	for i, metric := range s.metrics {
		if !s.varied(i) {
			if p.Constant == nil {
				p.Constant = &grid{Caption: "The same in every run", Head: columns("Metric", "Value#"), Quiet: true}
			}
			p.Constant.add(label(metric.Name), value(s.first(i), metric.Unit))
			continue
		}
		v := variedMetric{ID: fmt.Sprintf("metric-%d", i), Title: label(metric.Name), Figures: figures[next], Means: s.means(i)}
		next++
		p.Varied = append(p.Varied, v)
	}
	p.Runs = s.list(dir, runs)
	return templates.ExecuteTemplate(w, "sweep.html", p)
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
	g := &grid{Caption: "All runs", Head: columns("Run", "Outcome", "Delivered#", "Median#", "99 %#"), Tall: true, Quiet: true}
	for _, r := range runs {
		g.add(s.name(r.Manifest), r.Manifest.Outcome, percent(metric(r, "delivered_share")), value(metric(r, "delivery_p50"), "s"), value(metric(r, "delivery_p99"), "s"))
		if rel := relative(dir, r.Dir); rel != "" {
			g.Rows[len(g.Rows)-1][0].Link = rel + "/" + pageFile
		}
	}
	return g
}
