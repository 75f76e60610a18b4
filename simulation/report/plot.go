package report

import (
	"bytes"
	"fmt"
	"html"
	"html/template"
	"image/color"
	"math"
	"regexp"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The colours of a plot on paper. On the page each becomes the CSS variable of
// the same name, which has a second value for dark screens; no two may be equal.
var (
	ink    = color.RGBA{0x23, 0x29, 0x2F, 0xFF} // --ink
	muted  = color.RGBA{0x5A, 0x64, 0x6E, 0xFF} // --muted
	rule   = color.RGBA{0xDE, 0xE1, 0xE4, 0xFF} // --rule
	paper  = color.RGBA{0xFF, 0xFF, 0xFE, 0xFF} // --paper
	curves = []color.RGBA{
		{0x2A, 0x67, 0x8F, 0xFF}, // --c0
		{0xA8, 0x65, 0x12, 0xFF}, // --c1
		{0x87, 0x4A, 0x7C, 0xFF}, // --c2
		{0x3B, 0x76, 0x54, 0xFF}, // --c3
		{0xB0, 0x45, 0x38, 0xFF}, // --c4
		{0x55, 0x63, 0x8A, 0xFF}, // --c5
	}
)

// dashes and glyphs tell curves apart without their colours.
var (
	dashes = [][]vg.Length{nil, {6, 3}, {2, 2}, {9, 3, 2, 3}, {4, 2}, {1, 3}}
	glyphs = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}, draw.RingGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}}
)

// Widths in points, which are CSS pixels where the page shows a plot at its
// natural size. A figure is drawn twice, so that its text is as large on a
// phone as on a desk.
const (
	fullWidth  = 1032
	halfWidth  = 500
	phoneWidth = 366
	thirdWidth = 326
)

// A figure is one plot.
type figure struct {
	name    string // of its file, without .svg; also its id on the page
	title   string
	text    string // what it shows, for those who do not see it
	unit    string // of the vertical axis
	lanes   bool   // below 0 are lanes, not values
	legend  []entry
	width   vg.Length
	height  vg.Length
	prepare func(p *plot.Plot, width vg.Length)
}

// An entry explains a mark.
type entry struct {
	name  string
	line  draw.LineStyle
	glyph draw.GlyphDrawer // or nil
	fill  color.Color      // a box instead of a line, or nil
}

// paint is a plotter made of a function.
type paint func(c *draw.Canvas, x, y func(float64) vg.Length)

// Plot implements [plot.Plotter].
func (f paint) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	f(&c, x, y)
}

func textStyle(clr color.Color, points vg.Length) text.Style {
	return text.Style{
		Color:   clr,
		Font:    font.Font{Typeface: "Liberation", Variant: "Sans", Size: points},
		XAlign:  draw.XLeft,
		YAlign:  draw.YTop,
		Handler: plot.DefaultTextHandler,
	}
}

func solid(clr color.Color, width vg.Length) draw.LineStyle {
	return draw.LineStyle{Color: clr, Width: width}
}

// line is the style of curve i.
func line(i int) draw.LineStyle {
	return draw.LineStyle{Color: curves[i%len(curves)], Width: 1.75, Dashes: dashes[i%len(dashes)]}
}

const textSize = 11.5

// svg draws the figure as vgsvg writes it.
func (f figure) svg(width, height vg.Length) string {
	p := plot.New()
	p.BackgroundColor = nil
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		style := textStyle(muted, textSize)
		style.XAlign, style.YAlign = a.Tick.Label.XAlign, a.Tick.Label.YAlign
		a.Tick.Label = style
		a.Padding = 0
		a.LineStyle = draw.LineStyle{}
		a.Tick.LineStyle = draw.LineStyle{}
	}
	p.X.LineStyle = solid(muted, 0.75)
	p.X.Tick.LineStyle = solid(muted, 0.75)
	p.X.Tick.Length = 4
	p.Add(paint(func(c *draw.Canvas, _, y func(float64) vg.Length) {
		for _, t := range p.Y.Tick.Marker.Ticks(p.Y.Min, p.Y.Max) {
			if t.Value >= 0 || !f.lanes {
				c.StrokeLine2(solid(rule, 0.75), c.Min.X, y(t.Value), c.Max.X, y(t.Value))
			}
		}
	}))
	f.prepare(p, width)
	canvas := vgsvg.New(width, height)
	dc := draw.Crop(draw.New(canvas), 1, -2, 1, -2)
	// The plot would centre its own label by the data, wrongly on a logarithmic
	// axis, and make room for it there.
	under := p.X.Label.Text
	p.X.Label.Text = ""
	area := draw.Crop(dc, 0, 0, textSize+4, -f.head(dc))
	p.Draw(area)
	style := textStyle(muted, textSize)
	style.XAlign, style.YAlign = draw.XCenter, draw.YBottom
	data := p.DataCanvas(area)
	dc.FillText(style, vg.Point{X: data.Center().X, Y: dc.Min.Y + 3}, under)
	var b bytes.Buffer
	canvas.WriteTo(&b) // a buffer takes everything
	return b.String()
}

// head writes the unit and the legend, and returns how high they are.
func (f figure) head(c draw.Canvas) vg.Length {
	const row, gap = 17, 16
	style := textStyle(muted, textSize)
	y := c.Max.Y
	if f.unit != "" {
		c.FillText(style, vg.Point{X: c.Min.X, Y: y}, short(visible(f.unit), 60))
		y -= row
	}
	x := c.Min.X
	style.Color = ink
	for i, e := range f.legend {
		name := short(visible(e.name), 40)
		sample := vg.Length(22)
		if e.fill != nil {
			sample = 14
		}
		w := sample + 6 + style.Width(name)
		if i > 0 && x+w > c.Max.X {
			x = c.Min.X
			y -= row
		}
		middle := y - row/2 + 2
		if e.fill != nil {
			box(&c, e.fill, e.line, x, middle-4, x+sample, middle+4)
		} else {
			c.StrokeLine2(e.line, x, middle, x+sample, middle)
		}
		if e.glyph != nil {
			mark(&c, e.glyph, e.line.Color, vg.Point{X: x + sample/2, Y: middle})
		}
		c.FillText(style, vg.Point{X: x + sample + 6, Y: y}, name)
		x += w + gap
	}
	if len(f.legend) > 0 {
		y -= row
	}
	return c.Max.Y - y + 6
}

// mark draws a glyph, with no line behind it to be seen through it.
func mark(c *draw.Canvas, glyph draw.GlyphDrawer, clr color.Color, at vg.Point) {
	c.DrawGlyph(draw.GlyphStyle{Color: paper, Radius: 4.5, Shape: draw.CircleGlyph{}}, at)
	c.DrawGlyph(draw.GlyphStyle{Color: clr, Radius: 3, Shape: glyph}, at)
}

// box fills a rectangle and draws its edge, if it has one.
func box(c *draw.Canvas, fill color.Color, edge draw.LineStyle, x0, y0, x1, y1 vg.Length) {
	corners := []vg.Point{{X: x0, Y: y0}, {X: x1, Y: y0}, {X: x1, Y: y1}, {X: x0, Y: y1}}
	c.FillPolygon(fill, corners)
	if edge.Width > 0 {
		c.StrokeLines(edge, append(corners, corners[0]))
	}
}

var (
	svgOpen = regexp.MustCompile(`(?s)^.*?<svg[^>]*>`)
	svgFont = regexp.MustCompile(`font-family:[^;"]*;font-variant:[^;"]*;font-weight:[^;"]*;font-style:[^;"]*;`)
)

// standalone returns the figure as a file for a paper: its own colours on white.
func (f figure) standalone() []byte {
	svg := svgFont.ReplaceAllString(f.svg(f.width, f.height), "font-family:Helvetica,Arial,Liberation Sans,sans-serif;")
	open := fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="%[1]g" height="%[2]g" viewBox="-8 -8 %[1]g %[2]g" role="img">
<title>%[3]s</title>
<desc>%[4]s</desc>
<rect x="-8" y="-8" width="100%%" height="100%%" fill="%[5]s"/>`,
		f.width.Points()+16, f.height.Points()+16, html.EscapeString(visible(f.title)), html.EscapeString(visible(f.text)), web(paper))
	return []byte(replaceFirst(svg, open))
}

// Inline returns the figure for the page: once for wide screens, and once for
// narrow ones if it is wider than those.
func (f figure) Inline() template.HTML {
	if f.width <= phoneWidth {
		return f.inline("", f.width, f.height)
	}
	return f.inline("wide", f.width, f.height) + f.inline("narrow", phoneWidth, f.height)
}

func (f figure) inline(class string, width, height vg.Length) template.HTML {
	id := "fig-" + f.name + class
	svg := svgFont.ReplaceAllString(f.svg(width, height), "")
	svg = variables.Replace(svg)
	open := fmt.Sprintf(`<svg class="%[1]s" viewBox="0 0 %[2]g %[3]g" role="img" aria-labelledby="%[4]s-t %[4]s-d"><title id="%[4]s-t">%[5]s</title><desc id="%[4]s-d">%[6]s</desc>`,
		class, width.Points(), height.Points(), html.EscapeString(id), html.EscapeString(f.title), html.EscapeString(f.text))
	// All of it is ours but names, which vgsvg and the line above escape.
	return template.HTML(replaceFirst(svg, open))
}

func replaceFirst(svg, open string) string {
	return open + svg[len(svgOpen.FindString(svg)):]
}

// variables turns the colours of paper into those of the page.
var variables = func() *strings.Replacer {
	pairs := []string{web(ink), "var(--ink)", web(muted), "var(--muted)", web(rule), "var(--rule)", web(paper), "var(--paper)"}
	for i, c := range curves {
		pairs = append(pairs, web(c), fmt.Sprintf("var(--c%d)", i))
	}
	return strings.NewReplacer(pairs...)
}()

func web(c color.RGBA) string { return fmt.Sprintf("#%02X%02X%02X", c.R, c.G, c.B) }

// A shade is a colour that lets what is behind it through.
type shade struct {
	of    color.RGBA
	alpha float64
}

// RGBA implements [color.Color]. vgsvg divides by alpha again and cuts off, so
// that each value is one above: the colour must come out as it is written here.
func (s shade) RGBA() (r, g, b, a uint32) {
	a = uint32(s.alpha * 0xFFFF)
	by := func(c uint8) uint32 { return uint32(c)*a/0xFF + 1 }
	return by(s.of.R), by(s.of.G), by(s.of.B), a
}

// round returns ticks at round values from lo to hi, about n.
func round(lo, hi float64, n int, write func(float64) string) plot.ConstantTicks {
	if !(hi > lo) {
		return plot.ConstantTicks{{Value: lo, Label: write(lo)}}
	}
	step := math.Pow(10, math.Floor(math.Log10((hi-lo)/float64(n))))
	for _, f := range []float64{1, 2, 5, 10} {
		if (hi-lo)/(step*f) <= float64(n) {
			step *= f
			break
		}
	}
	return every(lo, hi, step, write)
}

func every(lo, hi, step float64, write func(float64) string) plot.ConstantTicks {
	var ticks plot.ConstantTicks
	const most = 1000 // more would be a numerical mishap: numbers so large that adding 1 is lost
	for i := math.Ceil(lo/step - 1e-9); i*step <= hi+step*1e-9 && len(ticks) < most; i++ {
		v := i*step + 0 // not -0
		ticks = append(ticks, plot.Tick{Value: v, Label: write(v)})
	}
	return ticks
}

// clock marks a time axis in the unit that suits its length, which it returns.
func clock(hi float64, n int) (plot.ConstantTicks, string) {
	units := []struct {
		most, unit float64 // seconds
		name       string
		steps      []float64 // in units
	}{
		{150, 1, "seconds", []float64{0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60}},
		{2.5 * 3600, 60, "minutes", []float64{0.5, 1, 2, 5, 10, 15, 30, 60}},
		{72 * 3600, 3600, "hours", []float64{0.5, 1, 2, 3, 6, 12, 24}},
		{math.Inf(1), 86400, "days", []float64{0.5, 1, 2, 5, 10, 20, 50, 100, 365}},
	}
	for _, u := range units {
		if hi > u.most {
			continue
		}
		for _, s := range u.steps {
			if hi/u.unit/s <= float64(n) {
				return every(0, hi, s*u.unit, func(v float64) string { return plainNumber(math.Round(v/u.unit*10) / 10) }), u.name
			}
		}
	}
	return round(0, hi, n, func(v float64) string { return plainNumber(v / 86400) }), "days"
}

// logTime marks a logarithmic time axis.
func logTime(lo, hi float64) plot.ConstantTicks {
	factors := []float64{1}
	if hi/lo < 150 {
		factors = []float64{1, 2, 5}
	}
	var ticks plot.ConstantTicks
	for e := math.Floor(math.Log10(lo)); e <= math.Ceil(math.Log10(hi)); e++ {
		for _, f := range factors {
			if v := f * math.Pow(10, e); v >= lo*0.999 && v <= hi*1.001 {
				ticks = append(ticks, plot.Tick{Value: v, Label: tickTime(v)})
			}
		}
	}
	return ticks
}

func tickTime(v float64) string {
	if v < 0.9 {
		return plainNumber(math.Round(v*1e6)/1e3) + " ms"
	}
	return plainNumber(math.Round(v)) + " s"
}

// thin keeps about n of the points, and both ends.
func thin[T any](points []T, n int) []T {
	if len(points) <= n {
		return points
	}
	kept := make([]T, 0, n)
	for i := range n {
		kept = append(kept, points[i*(len(points)-1)/(n-1)])
	}
	return kept
}

func toSeconds(d []time.Duration) []float64 {
	s := make([]float64, len(d))
	for i, d := range d {
		s[i] = d.Seconds()
	}
	return s
}
