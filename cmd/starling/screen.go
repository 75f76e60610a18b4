package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"
	"golang.org/x/text/width"
)

// A screen is standard output or standard error, and what it can show.
type screen struct {
	io.Writer
	terminal bool
	colour   bool
	wide     int // columns of the terminal, 0 without one
}

func newScreen(f *os.File) *screen {
	s := &screen{Writer: f, terminal: term.IsTerminal(int(f.Fd()))}
	if w, _, err := term.GetSize(int(f.Fd())); err == nil {
		s.wide = w
	}
	s.colour = s.terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return s
}

// Styles, as parameters of the escape sequence SGR. None is the only carrier
// of a meaning.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint returns text in a style, or as it is where there are no colours.
func (s *screen) paint(style, text string) string {
	if !s.colour || text == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// A cell of a table is escaped already, and painted when it is printed.
type cell struct{ text, style string }

// table prints rows with their columns aligned by what a terminal shows; the
// first row is the head.
func (s *screen) table(rows [][]cell) {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], columns(c.text))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, c := range row {
			b.WriteString(s.paint(c.style, c.text))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-columns(c.text)+2))
			}
		}
		fmt.Fprintln(s, strings.TrimRight(b.String(), " "))
	}
}

// facts prints a block of labels and values, leaving out empty values. A value
// that is too long for the terminal goes on below itself.
func (s *screen) facts(rows ...[2]string) {
	wide := 0
	for _, r := range rows {
		if r[1] != "" {
			wide = max(wide, columns(r[0]))
		}
	}
	for _, r := range rows {
		if r[1] != "" {
			lines := wrap(r[1], s.wide-wide-4)
			fmt.Fprintf(s, "  %s%s  %s\n", s.paint(dim, r[0]), strings.Repeat(" ", wide-columns(r[0])), strings.Join(lines, "\n"+strings.Repeat(" ", wide+4)))
		}
	}
}

// wrap breaks s at spaces into lines of at most n columns, where it can. Below
// 20 columns it does not try.
func wrap(s string, n int) []string {
	if n < 20 || columns(s) <= n {
		return []string{s}
	}
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && columns(line)+1+columns(word) > n {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

func head(names ...string) []cell {
	row := make([]cell, len(names))
	for i, n := range names {
		row[i] = cell{n, dim}
	}
	return row
}

// columns is the number of columns that a terminal gives s, near enough to
// align a table: two for wide runes, none for marks.
func columns(s string) int {
	n := 0
	for _, r := range s {
		switch k := width.LookupRune(r).Kind(); {
		case unicode.In(r, unicode.Mn, unicode.Me):
		case k == width.EastAsianWide || k == width.EastAsianFullwidth:
			n += 2
		default:
			n++
		}
	}
	return n
}

// shorten cuts s to n columns, with an ellipsis if anything was cut.
func shorten(s string, n int) string {
	if columns(s) <= n {
		return s
	}
	w := 0
	for i, r := range s {
		if w += columns(string(r)); w > n-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// plural returns "1 message" or "2 messages".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// ago says when t was or will be, seen from now, in words.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t)
	switch {
	case d > -5*time.Second && d < 5*time.Second:
		return "just now"
	case d < 0:
		return "in " + spell(nearest(-d))
	default:
		return spell(d) + " ago"
	}
}

// nearest rounds a duration to the unit by which spell names it.
func nearest(d time.Duration) time.Duration {
	for _, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute} {
		if d >= 2*unit {
			return d.Round(unit)
		}
	}
	return d.Round(time.Second)
}

// spell names a duration by its largest unit.
func spell(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return plural(int(d/time.Second), "second")
	case d < time.Hour:
		return plural(int(d/time.Minute), "minute")
	case d < 2*day:
		return plural(int(d/time.Hour), "hour")
	default:
		return plural(int(d/day), "day")
	}
}

// clock shows the time of day where the user is.
func clock(t time.Time) string { return t.Local().Format("15:04") }

// day names the day of t as people do.
func day(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	y, m, d := now.Date()
	midnight := time.Date(y, m, d, 0, 0, 0, 0, now.Location())
	switch {
	case !t.Before(midnight):
		return "today"
	case !t.Before(midnight.AddDate(0, 0, -1)):
		return "yesterday"
	case t.Year() == now.Year():
		return t.Format("Monday 2 January")
	default:
		return t.Format("Monday 2 January 2006")
	}
}
