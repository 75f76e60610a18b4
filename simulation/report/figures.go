package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"starling/simulation"
)

// points bounds what one curve takes in a file; a screen has no more.
const points = 400

// runFigures returns the figures that r has data for.
func runFigures(r *simulation.Result) []figure {
	d := digestOf(r)
	var figures []figure
	if len(d.delivery) > 0 {
		figures = append(figures, deliveryFigure([]sample{{"delivered", d.delivery}}))
	}
	if len(r.Messages)+len(r.Faults) > 0 {
		figures = append(figures, timelineFigure(r))
	}
	if d.sent+d.received > 0 && len(d.nodes) > 1 {
		figures = append(figures, nodesFigure(d))
	}
	if len(r.Lookups) > 0 {
		figures = append(figures, hopsFigure(d))
	}
	if len(r.Usage) > 1 {
		figures = append(figures, usageFigures(r.Usage)...)
	}
	return figures
}

// A sample is a set of delivery times under a name.
type sample struct {
	name   string
	sorted []time.Duration
}

// deliveryFigure draws cumulative distributions over a logarithmic time axis,
// and marks percentiles if there is only one.
func deliveryFigure(samples []sample) figure {
	lo, hi := math.Inf(1), 0.0
	curve := make([][]float64, len(samples))
	for i, s := range samples {
		curve[i] = toSeconds(s.sorted)
		for j, v := range curve[i] {
			curve[i][j] = max(v, 1e-4) // a logarithm has no 0; nobody sees a tenth of a millisecond
		}
		if n := len(curve[i]); n > 0 {
			lo, hi = min(lo, curve[i][0]), max(hi, curve[i][n-1])
		}
	}
	if hi == 0 {
		lo, hi = 0.01, 1
	}
	lo, hi = lo*0.9, hi*1.1
	if hi/lo < 10 {
		lo, hi = lo/2, hi*2
	}
	f := figure{
		name: "delivery", title: "Time to deliver", unit: "share of the delivered messages",
		width: halfWidth, height: 290,
	}
	for i, s := range samples {
		f.text += s.name + ": "
		for _, at := range []int{500, 900, 990} {
			if v := tail(s.sorted, at); !math.IsNaN(v) {
				f.text += fmt.Sprintf("%d %% within %s, ", at/10, value(v, "s"))
			}
		}
		f.text += "all within " + value(percentile(s.sorted, 1000), "s") + ". "
		if len(samples) > 1 {
			f.legend = append(f.legend, entry{name: s.name, line: line(i)})
		}
	}
	f.prepare = func(p *plot.Plot, width vg.Length) {
		p.X.Min, p.X.Max, p.X.Scale = lo, hi, plot.LogScale{}
		p.X.Tick.Marker = logTime(lo, hi)
		p.X.Label.Text = "from accepted to shown, logarithmic"
		p.Y.Min, p.Y.Max = 0, 1
		p.Y.Tick.Marker = every(0, 1, 0.25, func(v float64) string { return fmt.Sprintf("%.0f %%", v*100) })
		p.Add(paint(func(c *draw.Canvas, x, y func(float64) vg.Length) {
			for i, times := range curve {
				c.StrokeLines(line(i), steps(times, hi, x, y))
			}
			if len(samples) != 1 {
				return
			}
			style := textStyle(ink, textSize)
			for _, at := range []int{500, 900, 990} {
				v := max(tail(samples[0].sorted, at), 1e-4)
				if math.IsNaN(v) {
					continue
				}
				pt := vg.Point{X: x(v), Y: y(float64(at) / 1000)}
				mark(c, draw.CircleGlyph{}, curves[0], pt)
				name := fmt.Sprintf("p%d", at/10)
				pt.X += 7
				if pt.X+style.Width(name) > c.Max.X {
					pt.X -= 14 + style.Width(name)
					pt.Y -= 6 // below the curve, which comes from there
				}
				pt.Y -= 3
				c.FillText(style, pt, name)
			}
		}))
	}
	return f
}

// steps returns the distribution of sorted as a staircase that runs on to hi.
func steps(sorted []float64, hi float64, x, y func(float64) vg.Length) []vg.Point {
	if len(sorted) == 0 {
		return nil
	}
	ranks := make([]int, len(sorted))
	for i := range ranks {
		ranks[i] = i
	}
	pts := []vg.Point{{X: x(sorted[0]), Y: y(0)}}
	last := 0.0
	for _, i := range thin(ranks, points) {
		share := float64(i+1) / float64(len(sorted))
		pts = append(pts, vg.Point{X: x(sorted[i]), Y: y(last)}, vg.Point{X: x(sorted[i]), Y: y(share)})
		last = share
	}
	return append(pts, vg.Point{X: x(hi), Y: y(1)})
}

// steady says whether f lasted nearly all of a run that ended at end, so that a
// plot of it would say nothing about when.
func steady(f simulation.Fault, end time.Duration) bool {
	to := f.To
	if to < 0 {
		to = end
	}
	return end > 0 && to-f.From >= end*9/10
}

// A window is a time during which something lasted, in seconds.
type window struct{ from, to float64 }

// union returns the times during which any of the faults lasted, in order.
func union(faults []simulation.Fault, end float64) []window {
	var all []window
	for _, f := range faults {
		to := end
		if f.To >= 0 {
			to = max(f.To, f.From).Seconds()
		}
		all = append(all, window{f.From.Seconds(), to})
	}
	slices.SortFunc(all, func(a, b window) int { return cmp.Compare(a.from, b.from) })
	var joined []window
	for _, w := range all {
		if n := len(joined); n > 0 && w.from <= joined[n-1].to {
			joined[n-1].to = max(joined[n-1].to, w.to)
		} else {
			joined = append(joined, w)
		}
	}
	return joined
}

// timelineFigure draws what was accepted and delivered over virtual time, with
// a lane for each kind of fault that did not last the whole run.
func timelineFigure(r *simulation.Result) figure {
	var accepted, shown []float64
	end := seconds(r.Manifest.Simulated).Seconds()
	for _, m := range r.Messages {
		accepted = append(accepted, m.Accepted.Seconds())
		if m.Shown >= 0 {
			shown = append(shown, m.Shown.Seconds())
		}
	}
	slices.Sort(accepted)
	slices.Sort(shown)
	for _, s := range [][]float64{accepted, shown} {
		if len(s) > 0 {
			end = max(end, s[len(s)-1])
		}
	}
	for _, f := range r.Faults {
		end = max(end, f.From.Seconds(), f.To.Seconds())
	}
	end = max(end, 1e-3)
	passing := slices.DeleteFunc(slices.Clone(r.Faults), func(f simulation.Fault) bool { return steady(f, seconds(r.Manifest.Simulated)) })
	kinds := kindsOf(passing)
	windows := make([][]window, len(kinds))
	for i, k := range kinds {
		windows[i] = union(slices.DeleteFunc(slices.Clone(passing), func(f simulation.Fault) bool { return !k.holds(f.Kind) }), end)
	}
	most := max(float64(len(accepted)), 1)
	lane := most * 0.1
	f := figure{
		name: "timeline", title: "Delivered over time", unit: "messages",
		text: fmt.Sprintf("%s accepted and %s delivered over %s. %s.", integer(len(accepted)), integer(len(shown)),
			span(time.Duration(end*float64(time.Second))), faultCounts(r.Faults)),
		lanes: true, width: fullWidth, height: 270 + 22*vg.Length(len(kinds)),
		legend: []entry{
			{name: "accepted", line: draw.LineStyle{Color: curves[1], Width: 1.5, Dashes: dashes[1]}},
			{name: "delivered", line: line(0)},
		},
	}
	if len(kinds) > 0 {
		f.legend = append(f.legend, entry{name: "fault", fill: shade{curves[4], 0.6}})
	}
	f.prepare = func(p *plot.Plot, width vg.Length) {
		n := int(width / 90)
		ticks, unit := clock(end, max(n, 4))
		p.X.Min, p.X.Max, p.X.Tick.Marker = 0, end, ticks
		p.X.Label.Text = unit + " of virtual time"
		p.Y.Min, p.Y.Max = -lane*(float64(len(kinds))+0.3), most
		if len(kinds) == 0 {
			p.Y.Min = 0
		}
		marks := round(0, most, 5, func(v float64) string { return integer(int(v)) })
		if most < 5 {
			marks = every(0, most, 1, func(v float64) string { return integer(int(v)) })
		}
		for i, k := range kinds {
			marks = append(marks, plot.Tick{Value: -lane * (float64(i) + 0.8), Label: short(visible(k.name), 12)})
		}
		p.Y.Tick.Marker = marks
		p.Add(paint(func(c *draw.Canvas, x, y func(float64) vg.Length) {
			for i := range kinds {
				middle := y(-lane * (float64(i) + 0.8))
				for _, w := range windows[i] {
					from := x(w.from)
					to := max(x(w.to), from+1.5)
					box(c, shade{curves[4], 0.08}, draw.LineStyle{}, from, y(0), to, y(most))
					box(c, shade{curves[4], 0.6}, draw.LineStyle{}, from, middle-4.5, to, middle+4.5)
				}
			}
			for i, s := range [][]float64{accepted, shown} {
				c.StrokeLines(f.legend[i].line, staircase(s, end, x, y))
			}
		}))
	}
	return f
}

// staircase counts the times in sorted up to end.
func staircase(sorted []float64, end float64, x, y func(float64) vg.Length) []vg.Point {
	pts := []vg.Point{{X: x(0), Y: y(0)}}
	ranks := make([]int, len(sorted))
	for i := range ranks {
		ranks[i] = i
	}
	last := 0.0
	for _, i := range thin(ranks, points) {
		pts = append(pts, vg.Point{X: x(sorted[i]), Y: y(last)}, vg.Point{X: x(sorted[i]), Y: y(float64(i + 1))})
		last = float64(i + 1)
	}
	return append(pts, vg.Point{X: x(end), Y: y(last)})
}

// A kind is a lane of faults; the last may gather all others.
type kind struct {
	name  string
	n     int
	other []string
}

func (k kind) holds(name string) bool {
	return k.name == name && k.other == nil || slices.Contains(k.other, name)
}

const lanes = 6

// kindsOf returns the kinds of faults in the order in which they first struck.
func kindsOf(faults []simulation.Fault) []kind {
	var kinds []kind
	for _, f := range faults {
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == f.Kind })
		if i < 0 {
			i = len(kinds)
			kinds = append(kinds, kind{name: f.Kind})
		}
		kinds[i].n++
	}
	if len(kinds) > lanes {
		rest := kind{name: "other"}
		for _, k := range kinds[lanes-1:] {
			rest.n += k.n
			rest.other = append(rest.other, k.name)
		}
		kinds = append(kinds[:lanes-1], rest)
	}
	return kinds
}

func faultCounts(faults []simulation.Fault) string {
	if len(faults) == 0 {
		return "No fault was injected"
	}
	s := "Faults: "
	for i, k := range kindsOf(faults) {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprintf("%s × %s", k.name, integer(k.n))
	}
	return s
}

// steadyFaults names in words what lasted the whole run, and is not drawn;
// empty if nothing did.
func steadyFaults(r *simulation.Result) string {
	lasting := slices.DeleteFunc(slices.Clone(r.Faults), func(f simulation.Fault) bool { return !steady(f, seconds(r.Manifest.Simulated)) })
	var parts []string
	for _, k := range kindsOf(lasting) {
		var what []string
		for _, f := range lasting {
			if k.holds(f.Kind) {
				what = append(what, rounded(f.What))
			}
		}
		part := fmt.Sprintf("%s × %s", k.name, integer(k.n))
		if k.n == 1 {
			part = fmt.Sprintf("%s (%s)", k.name, what[0])
		} else if k.n <= few {
			part += " (" + strings.Join(what, ", ") + ")"
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return ""
	}
	return "Not drawn, since it lasted nearly the whole run: " + strings.Join(parts, "; ") + "."
}

// nodesFigure is a histogram of what each node sent and received.
func nodesFigure(d digest) figure {
	most := float64(d.nodes[0].total())
	return figure{
		name: "nodes", title: "Bytes by node", unit: "nodes", width: halfWidth, height: 250,
		text: fmt.Sprintf("Most: %s with %s. Median: %s.", d.nodes[0].name, size(most), size(float64(d.nodes[len(d.nodes)/2].total()))),
		prepare: func(p *plot.Plot, width vg.Length) {
			ticks := round(0, most, int(width/70), roundSize)
			step := ticks[1].Value / 4
			bins := make([]float64, int(math.Floor(most/step))+1)
			for _, n := range d.nodes {
				bins[int(float64(n.total())/step)]++
			}
			top := slices.Max(bins)
			p.X.Min, p.X.Max, p.X.Tick.Marker = 0, float64(len(bins))*step, ticks
			p.X.Label.Text = "sent and received"
			p.Y.Min, p.Y.Max, p.Y.Tick.Marker = 0, top, counts(top)
			p.Add(paint(func(c *draw.Canvas, x, y func(float64) vg.Length) {
				for i, n := range bins {
					if n > 0 {
						box(c, curves[0], draw.LineStyle{}, x(float64(i)*step)+0.75, y(0), x(float64(i+1)*step)-0.75, y(n))
					}
				}
			}))
		},
	}
}

// counts marks an axis of whole numbers.
func counts(top float64) plot.ConstantTicks {
	if top < 5 {
		return every(0, top, 1, plainNumber)
	}
	return round(0, top, 5, plainNumber)
}

// hopsFigure is a histogram of lookups by their longest chain of referrals.
func hopsFigure(d digest) figure {
	hollow := draw.LineStyle{Color: curves[4], Width: 1.25}
	f := figure{
		name: "hops", title: "Hops of a lookup", unit: "lookups", width: halfWidth, height: 250,
		legend: []entry{{name: "found", fill: curves[0]}, {name: "not found", fill: paper, line: hollow}},
	}
	top := 0
	for _, c := range d.hops {
		top = max(top, c.n)
		hops := plural(c.value, "hop", "hops")
		if c.value == mostHops {
			hops += " or more"
		}
		f.text += fmt.Sprintf("%s: %s, of which %s not found. ", hops, integer(c.n), integer(c.failed))
	}
	most := d.hops[len(d.hops)-1].value
	f.prepare = func(p *plot.Plot, width vg.Length) {
		p.X.Min, p.X.Max = -0.6, float64(most)+0.6
		p.X.Tick.Marker = every(0, float64(most), math.Ceil(float64(most+1)/12), plainNumber)
		p.X.Label.Text = "longest chain of referrals followed"
		p.Y.Min, p.Y.Max, p.Y.Tick.Marker = 0, float64(top), counts(float64(top))
		p.Add(paint(func(c *draw.Canvas, x, y func(float64) vg.Length) {
			half := min(vg.Length(18), (x(1)-x(0))*0.38)
			for _, h := range d.hops {
				middle := x(float64(h.value))
				found := float64(h.n - h.failed)
				if found > 0 {
					box(c, curves[0], draw.LineStyle{}, middle-half, y(0), middle+half, y(found))
				}
				if h.failed > 0 {
					box(c, paper, hollow, middle-half+0.6, y(found)+0.6, middle+half-0.6, max(y(float64(h.n)), y(found)+2))
				}
			}
		}))
	}
	return f
}

// usageFigures draws what the run itself took, over real time.
func usageFigures(usage []simulation.Usage) []figure {
	var at, speed, cpu, memory []float64
	for i, u := range usage[1:] {
		before := usage[i]
		wall := (u.Wall - before.Wall).Seconds()
		if wall <= 0 {
			continue
		}
		at = append(at, u.Wall.Seconds())
		speed = append(speed, (u.At-before.At).Seconds()/wall)
		cpu = append(cpu, (u.CPU-before.CPU).Seconds()/wall)
		memory = append(memory, float64(u.Memory)/1e6)
	}
	if len(at) < 3 {
		return nil // no curve; the page says it in words
	}
	return []figure{
		usageFigure("speed", "Speed", "simulated seconds per second", at, speed),
		usageFigure("cpu", "Processor", "cores in use", at, cpu),
		usageFigure("memory", "Memory", "MB resident", at, memory),
	}
}

func usageFigure(name, title, unit string, at, values []float64) figure {
	top := max(slices.Max(values), 1e-3)
	end := at[len(at)-1]
	ranks := make([]int, len(at))
	for i := range ranks {
		ranks[i] = i
	}
	return figure{
		name: name, title: title, unit: unit, width: thirdWidth, height: 190,
		text: fmt.Sprintf("Between %s and %s over %s of real time.", plainNumber(slices.Min(values)), plainNumber(top), span(time.Duration(end*float64(time.Second)))),
		prepare: func(p *plot.Plot, width vg.Length) {
			ticks, in := clock(end, 5)
			p.X.Min, p.X.Max, p.X.Tick.Marker = 0, end, ticks
			p.X.Label.Text = in + " of real time"
			p.Y.Min, p.Y.Max, p.Y.Tick.Marker = 0, top*1.05, round(0, top, 4, plainNumber)
			p.Add(paint(func(c *draw.Canvas, x, y func(float64) vg.Length) {
				var pts []vg.Point
				for _, i := range thin(ranks, points) {
					pts = append(pts, vg.Point{X: x(at[i]), Y: y(values[i])})
				}
				c.StrokeLines(solid(curves[0], 1.5), pts)
			}))
		},
	}
}
