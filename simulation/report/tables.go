package report

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"starling/simulation"
)

// A table is a CSV file of rows of T. fields returns pointers to the fields of a
// row, one a column, for reading and for writing.
type table[T any] struct {
	name    string
	columns []string
	fields  func(row *T) []any
}

// A place is a field that holds a node: a file names it.
type place struct{ index *int }

// A roster names nodes in files, and finds them again.
type roster struct {
	names []string
	index map[string]int // of the names that are one node's alone, and no number
}

func rosterOf(nodes []simulation.NodeResult) roster {
	all := roster{index: map[string]int{}}
	for i, n := range nodes {
		all.names = append(all.names, n.Name)
		_, twice := all.index[n.Name]
		if _, err := strconv.Atoi(n.Name); err == nil || twice {
			i = -1
		}
		all.index[n.Name] = i
	}
	return all
}

// write names node i; by its number if its name does not say which it is.
func (r roster) write(i int) string {
	if i >= 0 && i < len(r.names) && r.index[r.names[i]] == i {
		return shielded(r.names[i])
	}
	return strconv.Itoa(i)
}

func (r roster) read(s string) (int, error) {
	if i, err := strconv.Atoi(s); err == nil {
		return i, nil
	}
	if i, ok := r.index[bare(s)]; ok && i >= 0 {
		return i, nil
	}
	return 0, fmt.Errorf("%q is not the name of one node of %s", s, nodesTable.name)
}

// ofRow is a row of metrics.csv: who measured it is a column.
type ofRow struct {
	simulation.Metric
	of string
}

const (
	ofRun      = "run"
	ofScenario = "scenario"
)

var (
	messagesTable = table[simulation.Message]{
		"messages.csv",
		[]string{"id", "from", "to", "size_bytes", "accepted_s", "shown_s", "confirmed_s"},
		func(r *simulation.Message) []any {
			return []any{&r.ID, place{&r.From}, place{&r.To}, &r.Size, &r.Accepted, &r.Shown, &r.Confirmed}
		},
	}
	lookupsTable = table[simulation.Lookup]{
		"lookups.csv",
		[]string{"by", "at_s", "took_s", "hops", "asked", "found", "stale"},
		func(r *simulation.Lookup) []any {
			return []any{place{&r.By}, &r.At, &r.Took, &r.Hops, &r.Asked, &r.Found, &r.Stale}
		},
	}
	trafficTable = table[simulation.Traffic]{
		"traffic.csv",
		[]string{"node", "protocol", "sent_bytes", "received_bytes"},
		func(r *simulation.Traffic) []any {
			return []any{place{&r.Node}, &r.Protocol, &r.Sent, &r.Received}
		},
	}
	faultsTable = table[simulation.Fault]{
		"faults.csv",
		[]string{"kind", "what", "from_s", "to_s"},
		func(r *simulation.Fault) []any {
			return []any{&r.Kind, &r.What, &r.From, &r.To}
		},
	}
	nodesTable = table[simulation.NodeResult]{
		"nodes.csv",
		[]string{"name", "region", "role", "nat", "starts", "crashes", "up_s"},
		func(r *simulation.NodeResult) []any {
			return []any{&r.Name, &r.Region, &r.Role, &r.NAT, &r.Starts, &r.Crashes, &r.Up}
		},
	}
	pairsTable = table[simulation.Pair]{
		"pairs.csv",
		[]string{"a", "b", "relayed_s", "direct_s"},
		func(r *simulation.Pair) []any {
			return []any{place{&r.A}, place{&r.B}, &r.Relayed, &r.Direct}
		},
	}
	relaysTable = table[simulation.RelayResult]{
		"relays.csv",
		[]string{
			"name", "region", "bad", "starts", "crashes", "disks_lost", "up_s", "receipts", "honoured", "broken", "void", "unread", "waiting",
			"repeated", "refused", "keys_to_tokens", "keys_to_work", "keys_denied", "keys_repeated", "sent_bytes", "received_bytes",
		},
		func(r *simulation.RelayResult) []any {
			return []any{
				&r.Name, &r.Region, &r.Bad, &r.Starts, &r.Crashes, &r.Lost, &r.Up, &r.Receipts, &r.Honoured, &r.Broken, &r.Void, &r.Unread, &r.Waiting,
				&r.Repeated, &r.Refused, &r.KeysToTokens, &r.KeysToWork, &r.KeysDenied, &r.KeysRepeated, &r.Sent, &r.Received,
			}
		},
	}
	usageTable = table[simulation.Usage]{
		"usage.csv",
		[]string{"at_s", "wall_s", "cpu_s", "memory_bytes", "goroutines"},
		func(r *simulation.Usage) []any {
			return []any{&r.At, &r.Wall, &r.CPU, &r.Memory, &r.Goroutines}
		},
	}
	sightingsTable = table[simulation.Sighting]{
		"sightings.csv",
		[]string{"observer", "sees", "median", "most", "unit"},
		func(r *simulation.Sighting) []any {
			return []any{&r.Observer, &r.Sees, &r.Median, &r.Most, &r.Unit}
		},
	}
	envelopesTable = table[simulation.Envelopes]{
		"envelopes.csv",
		[]string{"sealed", "opened", "repeated", "refused"},
		func(r *simulation.Envelopes) []any {
			return []any{&r.Sealed, &r.Opened, &r.Repeated, &r.Refused}
		},
	}
	metricsTable = table[ofRow]{
		"metrics.csv",
		[]string{"name", "value", "unit", "goal", "of"},
		func(r *ofRow) []any {
			return []any{&r.Name, &r.Value, &r.Unit, &r.Goal, &r.of}
		},
	}
)

func (w *writer) tables(r *simulation.Result) {
	w.nodes = rosterOf(r.Nodes)
	writeTable(w, metricsTable, metricRows(r))
	writeTable(w, envelopesTable, []simulation.Envelopes{r.Envelopes})
	writeTable(w, faultsTable, r.Faults)
	writeTable(w, sightingsTable, r.Sightings)
	writeTable(w, nodesTable, r.Nodes)
	writeTable(w, pairsTable, r.Pairs)
	writeTable(w, relaysTable, r.Relays)
	writeTable(w, usageTable, r.Usage)
	traffic := slices.Clone(r.Traffic)
	for i, t := range traffic {
		traffic[i].Protocol = or(t.Protocol, negotiation)
	}
	writeTable(w, trafficTable, traffic)
	writeTable(w, lookupsTable, r.Lookups)
	writeTable(w, messagesTable, r.Messages)
}

func metricRows(r *simulation.Result) []ofRow {
	var rows []ofRow
	all := Summary(r)
	for i, m := range all {
		of := ofRun
		if i >= len(all)-len(r.Metrics) {
			of = ofScenario
		}
		rows = append(rows, ofRow{m, of})
	}
	return rows
}

func readTables(dir string, r *simulation.Result) error {
	rows, err := readTable(dir, metricsTable, roster{})
	for _, row := range rows {
		if row.of == ofScenario {
			r.Metrics = append(r.Metrics, row.Metric)
		}
	}
	var envelopes []simulation.Envelopes
	err = errors.Join(err, fill(&envelopes, dir, envelopesTable, roster{}), fill(&r.Nodes, dir, nodesTable, roster{}))
	if len(envelopes) == 1 {
		r.Envelopes = envelopes[0]
	}
	nodes := rosterOf(r.Nodes)
	return errors.Join(
		err,
		fill(&r.Faults, dir, faultsTable, nodes),
		fill(&r.Sightings, dir, sightingsTable, nodes),
		fill(&r.Pairs, dir, pairsTable, nodes),
		fill(&r.Relays, dir, relaysTable, nodes),
		fill(&r.Usage, dir, usageTable, nodes),
		fill(&r.Traffic, dir, trafficTable, nodes),
		fill(&r.Lookups, dir, lookupsTable, nodes),
		fill(&r.Messages, dir, messagesTable, nodes),
	)
}

func fill[T any](rows *[]T, dir string, t table[T], nodes roster) (err error) {
	*rows, err = readTable(dir, t, nodes)
	return err
}

func writeTable[T any](w *writer, t table[T], rows []T) {
	nodes := w.nodes
	w.file(t.name, func(w io.Writer) error {
		c := csv.NewWriter(w)
		if err := c.Write(t.columns); err != nil {
			return err
		}
		cells := make([]string, len(t.columns))
		for i := range rows {
			for j, p := range t.fields(&rows[i]) {
				cells[j] = cell(p, nodes)
			}
			if err := c.Write(cells); err != nil {
				return err
			}
		}
		c.Flush()
		return c.Error()
	})
}

func readTable[T any](dir string, t table[T], nodes roster) ([]T, error) {
	path := filepath.Join(dir, t.name)
	file, err := openFile(path, maxTable)
	if err != nil {
		return nil, fmt.Errorf("report: reading a table: %w", err)
	}
	defer file.Close()
	c := csv.NewReader(file)
	c.ReuseRecord = true
	head, err := c.Read()
	if err != nil {
		return nil, fmt.Errorf("report: reading the header of %s: %w", path, err)
	}
	if !slices.Equal(head, t.columns) {
		return nil, fmt.Errorf("report: %s has the columns %q, not %q: was it written by another version?", path, head, t.columns)
	}
	var rows []T
	for {
		cells, err := c.Read()
		if err == io.EOF {
			return rows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("report: reading %s: %w", path, err)
		}
		if len(rows) == maxRows {
			return nil, fmt.Errorf("report: reading %s: it has more than %d rows", path, maxRows)
		}
		var row T
		for j, p := range t.fields(&row) {
			if err := parseCell(p, cells[j], nodes); err != nil {
				line, _ := c.FieldPos(j)
				return nil, fmt.Errorf("report: reading %s, line %d, column %s: %w", path, line, t.columns[j], err)
			}
		}
		rows = append(rows, row)
	}
}

// cell writes the field that p points to.
func cell(p any, nodes roster) string {
	switch p := p.(type) {
	case place:
		return nodes.write(*p.index)
	case *string:
		return shielded(*p)
	case *int:
		return strconv.Itoa(*p)
	case *int64:
		return strconv.FormatInt(*p, 10)
	case *bool:
		return strconv.FormatBool(*p)
	case *float64:
		return number(*p)
	case *time.Duration:
		if *p < 0 {
			return ""
		}
		// As digits with a point in them; Sprintf would take most of a large run.
		b := strconv.AppendInt(nil, int64(*p), 10)
		if len(b) < 10 {
			b = append([]byte("0000000000")[:10-len(b)], b...)
		}
		return string(slices.Insert(b, len(b)-9, '.'))
	}
	panic(fmt.Sprintf("report: internal error: no cell for %T", p))
}

// shielded puts an apostrophe before a text that a spreadsheet would take for a
// formula, and before one that begins with an apostrophe: names in scenarios and
// results may be somebody else's.
func shielded(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r'", rune(s[0])) {
		return "'" + s
	}
	return s
}

// bare undoes shielded.
func bare(s string) string { return strings.TrimPrefix(s, "'") }

// setCell writes the value of a parameter; a number needs no shield.
func setCell(s string) string {
	if _, ok := quantity(s); ok {
		return s
	}
	return shielded(s)
}

// number writes a number as short as it reads back the same; nothing for NaN.
func number(v float64) string {
	if math.IsNaN(v) {
		return ""
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// parseCell reads s into the field that p points to.
func parseCell(p any, s string, nodes roster) (err error) {
	switch p := p.(type) {
	case place:
		*p.index, err = nodes.read(s)
	case *string:
		*p = bare(s)
	case *int:
		var n int64
		n, err = parseCount(s)
		*p = int(n)
	case *int64:
		*p, err = parseCount(s)
	case *bool:
		*p, err = strconv.ParseBool(s)
	case *float64:
		*p = math.NaN()
		if s != "" {
			*p, err = strconv.ParseFloat(s, 64)
		}
	case *time.Duration:
		*p, err = parseSeconds(s)
	default:
		panic(fmt.Sprintf("report: internal error: no cell for %T", p))
	}
	return err
}

// maxCount is the largest number of anything in a table. Twice the sum of a
// column is an int64.
const maxCount = 1<<40 - 1

// parseCount reads a number of things.
func parseCount(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n > maxCount {
		return 0, fmt.Errorf("%q is not a number from 0 to %d", s, int64(maxCount))
	}
	return int64(n), nil
}

// parseSeconds reads what cell wrote; a float64 would lose nanoseconds.
func parseSeconds(s string) (time.Duration, error) {
	if s == "" {
		return -1, nil
	}
	whole, fraction, ok := strings.Cut(s, ".")
	if !ok || len(fraction) != 9 {
		return 0, fmt.Errorf("%q is not a number of seconds with nine digits", s)
	}
	n, err := strconv.ParseUint(whole+fraction, 10, 63)
	return time.Duration(n), err
}
