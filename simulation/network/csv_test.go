package network

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const matrixCSV = `# one way
ms,eu,us
eu,8,45
us,46.5,12
`

func TestMatrixGivesTheMeanOfBothWays(t *testing.T) {
	m, err := ParseMatrix(strings.NewReader(matrixCSV))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	eu, us := Site{Index: 0, Region: "eu"}, Site{Index: 1, Region: "us"}
	want := Link{Latency: 45_750 * time.Microsecond}
	if got := m.Link(1, eu, us); got != want {
		t.Errorf("link is %v, want %v", got, want)
	}
	m.Spread, m.Jitter = 0.1, time.Millisecond
	l := m.Link(1, eu, us)
	if l != m.Link(1, us, eu) {
		t.Error("the link depends on the direction")
	}
	if d := l.Latency - want.Latency; d == 0 || d.Abs() > want.Latency/10 || l.Jitter != time.Millisecond {
		t.Errorf("link is %v, want %v within a tenth", l, want.Latency)
	}
}

func TestJoinRefusesARegionThatTheMatrixLacks(t *testing.T) {
	m, err := ParseMatrix(strings.NewReader(matrixCSV))
	if err != nil {
		t.Fatal(err)
	}
	n := newNet(t, Config{Sites: 2, Topology: m})
	if _, err := n.Join(Site{Index: 0, Region: "mars"}, 0, 0); err == nil || !strings.Contains(err.Error(), `"mars"`) {
		t.Errorf("got %v, want an error that names the region", err)
	}
}

func TestTraceKnowsItsPairsAndDrawsTheOthers(t *testing.T) {
	top, err := ParseTrace(strings.NewReader("from,to,ms\n0,1,38.25\n2,0,71\n0,2,73\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		a, b int
		want time.Duration
	}{{0, 1, 38_250 * time.Microsecond}, {1, 0, 38_250 * time.Microsecond}, {2, 0, 72 * time.Millisecond}} {
		if got := top.Link(1, Site{Index: c.a}, Site{Index: c.b}).Latency; got != c.want {
			t.Errorf("from %d to %d: %v, want %v", c.a, c.b, got, c.want)
		}
	}
	var seen []time.Duration
	for i := range 40 {
		a, b := Site{Index: 10 + i}, Site{Index: 100}
		l := top.Link(1, a, b)
		if l != top.Link(1, b, a) {
			t.Error("the draw depends on the direction")
		}
		seen = append(seen, l.Latency)
	}
	slices.Sort(seen)
	if want := []time.Duration{38_250 * time.Microsecond, 72 * time.Millisecond}; !slices.Equal(slices.Compact(seen), want) {
		t.Errorf("other pairs draw %v, want %v", slices.Compact(seen), want)
	}
}

func TestParseErrorsNameTheLine(t *testing.T) {
	matrix := func(s string) error { _, err := ParseMatrix(strings.NewReader(s)); return err }
	trace := func(s string) error { _, err := ParseTrace(strings.NewReader(s)); return err }
	for _, c := range []struct {
		parse func(string) error
		in    string
		want  []string
	}{
		{matrix, "", []string{"line 1", "empty"}},
		{matrix, "ms\n", []string{"line 1", "0 regions"}},
		{matrix, "ms,eu,eu\n", []string{"line 1", "twice"}},
		{matrix, "ms,eu,us\neu,1,2\n", []string{"line 3", `"us"`}},
		{matrix, "ms,eu,us\nus,1,2\n", []string{"line 2", `"us"`, `"eu"`}},
		{matrix, "ms,eu,us\neu,1,2,3\n", []string{"line 2", "number of fields"}},
		{matrix, "# ms\nms,eu,us\neu,1,fast\n", []string{"line 3", `"fast"`, `"us"`}},
		{matrix, "ms,eu\neu,-1\n", []string{"line 2", `"-1"`}},
		{matrix, "ms,eu\neu,NaN\n", []string{"line 2", `"NaN"`}},
		{matrix, "ms,eu\neu,1\nus,2\n", []string{"line 3", "more lines"}},
		{matrix, "ms,\"eu\neu,1\n", []string{"line"}},
		{matrix, "ms," + strings.Repeat("x", maxMatrix), []string{"line", "too long"}},
		{trace, "", []string{"line 1", "empty"}},
		{trace, "from,to,ms\n", []string{"no latencies"}},
		{trace, "0,1\n", []string{"line 1", "2 cells"}},
		{trace, "0,1,5\n0,2\n", []string{"line 2"}},
		{trace, "0,1,5\n0,70000,5\n", []string{"line 2", `"70000"`}},
		{trace, "0,1,5\n\n3,3,5\n", []string{"line 3", "itself"}},
		{trace, "0,1,5\n0,2,5\n0,1,6\n", []string{"line 3", "line 1"}},
		{trace, "0,1,5\n1,0,5\n0,1,6\n", []string{"line 3", "line 1"}},
		{trace, "0,1,1e9\n", []string{"line 1", `"1e9"`}},
		{trace, "0,1," + strings.Repeat("1", 1000) + "\n", []string{"line 1", "1…"}},
	} {
		err := c.parse(c.in)
		if err == nil {
			t.Errorf("%.60q was accepted", c.in)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%.60q: error %q does not say %q", c.in, err, w)
			}
		}
		if len(err.Error()) > 300 {
			t.Errorf("%.60q: the error has %d bytes", c.in, len(err.Error()))
		}
	}
}

func TestNewReportsEveryProblem(t *testing.T) {
	_, err := New(Config{Sites: 0, Up: -1, Loss: 2, Topology: Matrix{Regions: []string{"eu"}, Spread: 3}})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, w := range []string{"Sites", "bandwidth", "Loss", "1 regions has 0 rows", "spread"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if _, err := New(Config{Sites: 1, Topology: Uniform(2, 1, 0)}); err == nil {
		t.Error("a range that ends before it begins was accepted")
	}
}

func FuzzParseMatrix(f *testing.F) {
	f.Add(matrixCSV)
	f.Add("ms,eu\neu,0\n")
	f.Add("ms,\"a,b\"\n\"a,b\",1e-3\n")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMatrix(strings.NewReader(s))
		if err != nil {
			return
		}
		if err := m.Check(); err != nil {
			t.Fatalf("parsed, but %v", err)
		}
		var b strings.Builder
		quote := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
		b.WriteString("ms")
		for _, r := range m.Regions {
			b.WriteString("," + quote(r))
		}
		for i, r := range m.Regions {
			b.WriteString("\n" + quote(r))
			for _, d := range m.Latency[i] {
				fmt.Fprintf(&b, ",%d.%06d", d/time.Millisecond, d%time.Millisecond)
			}
		}
		again, err := ParseMatrix(strings.NewReader(b.String()))
		if err != nil {
			t.Fatalf("%q: %v", b.String(), err)
		}
		same := slices.Equal(m.Regions, again.Regions) && slices.EqualFunc(m.Latency, again.Latency, slices.Equal)
		if !same {
			t.Errorf("got %v after writing and reading %v", again, m)
		}
	})
}

func FuzzParseTrace(f *testing.F) {
	f.Add("from,to,ms\n0,1,38.2\n0,2,71\n2,0,72\n")
	f.Add("0,65535,60000\n")
	f.Fuzz(func(t *testing.T, s string) {
		top, err := ParseTrace(strings.NewReader(s))
		if err != nil {
			return
		}
		tr := top.(*trace)
		if len(tr.pairs) > strings.Count(s, "\n")+strings.Count(s, "\r")+1 {
			t.Fatalf("%d pairs of %d bytes", len(tr.pairs), len(s))
		}
		if !slices.IsSorted(tr.pairs) || len(tr.pairs) != len(tr.delays) {
			t.Fatalf("%d pairs, %d delays, or not in order", len(tr.pairs), len(tr.delays))
		}
		var b strings.Builder
		to, first := 1, uint64(0) // the pairs with the higher site to begin at first
		for i, p := range tr.pairs {
			for p >= first+uint64(to) {
				first += uint64(to)
				to++
			}
			fmt.Fprintf(&b, "%d,%d,%d.%06d\n", p-first, to, tr.delays[i]/time.Millisecond, tr.delays[i]%time.Millisecond)
		}
		again, err := ParseTrace(strings.NewReader(b.String()))
		if err != nil {
			t.Fatalf("%q: %v", b.String(), err)
		}
		if r := again.(*trace); !slices.Equal(r.pairs, tr.pairs) || !slices.Equal(r.delays, tr.delays) {
			t.Errorf("got %v after writing and reading %v", r, tr)
		}
	})
}
