package network

import (
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of what is parsed. The largest public traces have 3 million pairs.
const (
	maxRegions = 256
	maxMatrix  = 2 << 20  // bytes
	maxTrace   = 64 << 20 // bytes
	maxPairs   = 4 << 20  // rows of a trace
)

// ParseMatrix reads a latency matrix in CSV:
//
//	ms,eu,us
//	eu,8,45
//	us,46,12
//
// The first line names the regions after a cell that is ignored; each other
// line has a region, in the same order, and its latency one way to each, in
// milliseconds. Lines that start with # are comments. An error names the line.
func ParseMatrix(r io.Reader) (Matrix, error) {
	rows := reader(r, maxMatrix)
	head, err := rows.next()
	if err != nil {
		return Matrix{}, fmt.Errorf("network: matrix: %w", err)
	}
	m := Matrix{Regions: slices.Clone(head[1:])}
	if n := len(m.Regions); n == 0 || n > maxRegions {
		return Matrix{}, fmt.Errorf("network: matrix: line %d: %d regions, not 1 to %d", rows.line, n, maxRegions)
	}
	for i, name := range m.Regions {
		if name == "" || slices.Index(m.Regions, name) != i {
			return Matrix{}, fmt.Errorf("network: matrix: line %d: region %q is empty or named twice", rows.line, name)
		}
	}
	for i, name := range m.Regions {
		row, err := rows.next()
		if errors.Is(err, io.EOF) {
			return Matrix{}, fmt.Errorf("network: matrix: line %d: no line for region %q", rows.line+1, name)
		}
		if err != nil {
			return Matrix{}, fmt.Errorf("network: matrix: %w", err)
		}
		if row[0] != name {
			return Matrix{}, fmt.Errorf("network: matrix: line %d: region %q where the first line has %q", rows.line, row[0], name)
		}
		m.Latency = append(m.Latency, make([]time.Duration, len(m.Regions)))
		for j, cell := range row[1:] {
			if m.Latency[i][j], err = parseMS(cell); err != nil {
				return Matrix{}, fmt.Errorf("network: matrix: line %d: from %q to %q: %w", rows.line, name, m.Regions[j], err)
			}
		}
	}
	if _, err := rows.next(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = fmt.Errorf("line %d: more lines than regions", rows.line)
		}
		return Matrix{}, fmt.Errorf("network: matrix: %w", err)
	}
	return m, nil
}

// A trace is a list of measured latencies, by pair.
type trace struct {
	pairs  []uint64        // in order
	delays []time.Duration // of the pairs
}

// ParseTrace reads a trace of latencies in CSV, such as those of the King
// measurements:
//
//	from,to,ms
//	0,1,38.2
//	0,2,71
//
// Each line has two site indices and the latency between them one way, in
// milliseconds. The first line may be left out. If both ways of a pair are
// given, their mean counts. Lines that start with # are comments. An error
// names the line.
//
// A pair that is not in the trace gets, decided by the seed, the latency of
// one that is.
func ParseTrace(r io.Reader) (Topology, error) {
	rows := reader(r, maxTrace)
	type entry struct {
		pair uint64
		back bool
		line int
		d    time.Duration
	}
	var all []entry
	for {
		row, err := rows.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("network: trace: %w", err)
		}
		if len(row) != 3 {
			return nil, fmt.Errorf("network: trace: line %d: %d cells, not from,to,ms", rows.line, len(row))
		}
		if rows.count == 1 && slices.Equal(row, []string{"from", "to", "ms"}) {
			continue
		}
		if len(all) == maxPairs {
			return nil, fmt.Errorf("network: trace: line %d: more than %d latencies", rows.line, maxPairs)
		}
		from, err1 := parseSite(row[0])
		to, err2 := parseSite(row[1])
		d, err3 := parseMS(row[2])
		if err := cmp.Or(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("network: trace: line %d: %w", rows.line, err)
		}
		if from == to {
			return nil, fmt.Errorf("network: trace: line %d: from site %d to itself", rows.line, from)
		}
		all = append(all, entry{pair(from, to), from > to, rows.line, d})
	}
	if len(all) == 0 {
		return nil, errors.New("network: trace: no latencies")
	}
	slices.SortStableFunc(all, func(a, b entry) int { return cmp.Compare(a.pair, b.pair) })
	t := &trace{}
	for i := 0; i < len(all); {
		j := i + 1
		sum := all[i].d
		for ; j < len(all) && all[j].pair == all[i].pair; j++ {
			if j > i+1 || all[j].back == all[i].back {
				return nil, fmt.Errorf("network: trace: line %d: these two sites were on line %d already", all[j].line, all[i].line)
			}
			sum += all[j].d
		}
		t.pairs = append(t.pairs, all[i].pair)
		t.delays = append(t.delays, sum/time.Duration(j-i))
		i = j
	}
	return t, nil
}

// Link implements [Topology].
func (t *trace) Link(seed uint64, a, b Site) Link {
	i, ok := slices.BinarySearch(t.pairs, pair(a.Index, b.Index))
	if !ok {
		s := drawsOf(seed, a, b)
		i = int(s.upTo(time.Duration(len(t.delays) - 1)))
	}
	return Link{Latency: t.delays[i]}
}

func parseSite(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not a site, 0 to %d", short(s), maxSites-1)
	}
	return int(n), nil
}

func parseMS(s string) (time.Duration, error) {
	ms, err := strconv.ParseFloat(s, 64)
	if err != nil || !(ms >= 0 && ms <= float64(maxLatency/time.Millisecond)) {
		return 0, fmt.Errorf("%q is not a latency, 0 to %d milliseconds", short(s), maxLatency/time.Millisecond)
	}
	return time.Duration(math.Round(ms * float64(time.Millisecond))), nil
}

// short keeps an error readable whatever the file holds.
func short(s string) string {
	if len(s) > 20 {
		return s[:20] + "…"
	}
	return s
}

// rows reads CSV of a bounded size. Its errors name the line.
type rows struct {
	csv   *csv.Reader
	line  int // of the last record
	count int // of records so far
}

func reader(r io.Reader, size int64) *rows {
	c := csv.NewReader(&bounded{r: r, left: size + 1})
	c.Comment = '#'
	c.TrimLeadingSpace = true
	c.ReuseRecord = true
	return &rows{csv: c}
}

// next returns a record, or io.EOF after the last. Every record has as many
// cells as the first.
func (r *rows) next() ([]string, error) {
	row, err := r.csv.Read()
	if err == nil {
		r.line, _ = r.csv.FieldPos(0)
		r.count++
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
		}
		return row, nil
	}
	if e, ok := errors.AsType[*csv.ParseError](err); ok {
		return nil, fmt.Errorf("line %d: %w", e.Line, e.Err)
	}
	if errors.Is(err, io.EOF) && r.count > 0 {
		return nil, io.EOF
	}
	if errors.Is(err, io.EOF) {
		return nil, errors.New("line 1: empty")
	}
	return nil, fmt.Errorf("after line %d: %w", r.line, err)
}

// bounded fails where a limit would silently end.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("the file is too long")
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}
