package scenario

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A position is a place in a file; both count from 1.
type position struct{ line, column int }

// A table is a table of a TOML document.
type table struct {
	at   position // of its header, or of its key if it stands in a line
	keys map[string]*item
}

// An item is a key of a [table] and its value: a string, an int64, a float64, a
// bool, a *table, a []*table, or a []any of the first four or of lists. Anything else no
// scenario uses.
type item struct {
	at    position // of the key
	value any
}

// A problem is something wrong with a scenario file.
type problem struct {
	file string
	at   position
	text string

	section string // or empty
	param   string // that stands for the value; or empty
	follows bool   // may come of another problem, and counts only if there is no other kind
}

func (p problem) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", p.file, p.at.line, p.at.column, p.text)
}

// parse reads a TOML document. Its error is a [problem].
func parse(file, source string) (*table, error) {
	var values map[string]any
	if err := toml.Unmarshal([]byte(source), &values); err != nil {
		if e, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := e.Position()
			return nil, problem{file: file, at: position{line, column}, text: strings.TrimPrefix(e.Error(), "toml: ")}
		}
		return nil, problem{file: file, at: position{1, 1}, text: strings.TrimPrefix(err.Error(), "toml: ")}
	}
	return newTable("", position{1, 1}, values, locate(source)), nil
}

// newTable joins the values that the decoder found with the places that locate
// did. A key that locate does not know takes the place of its table.
func newTable(path string, at position, values map[string]any, places map[string]position) *table {
	t := &table{at: at, keys: make(map[string]*item, len(values))}
	for key, v := range values {
		t.keys[key] = newItem(path+"."+key, at, v, places)
	}
	return t
}

func newItem(path string, at position, v any, places map[string]position) *item {
	if p, ok := places[path]; ok {
		at = p
	}
	switch v := v.(type) {
	case map[string]any:
		return &item{at, newTable(path, at, v, places)}
	case []any:
		if tables := newTables(path, at, v, places); tables != nil {
			return &item{at, tables}
		}
	}
	return &item{at, v}
}

// newTables returns a list of tables, or nil if it is one of something else.
func newTables(path string, at position, list []any, places map[string]position) []*table {
	var tables []*table
	for i, v := range list {
		values, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		path := element(path, i)
		at := at
		if p, ok := places[path]; ok {
			at = p
		}
		tables = append(tables, newTable(path, at, values, places))
	}
	return tables
}

// element is the path of an element of a list.
func element(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// locate returns where each key of a valid document stands. A path is the keys
// from the top, a point before each; elements of lists have their index.
func locate(source string) map[string]position {
	l := locator{places: map[string]position{}, lists: map[string]int{}}
	l.p.Reset([]byte(source))
	table := ""
	for l.p.NextExpression() {
		switch e := l.p.Expression(); e.Kind {
		case unstable.Table:
			table = l.header(e)
		case unstable.ArrayTable:
			path := l.header(e)
			table = element(path, l.lists[path])
			l.lists[path]++
			l.places[table] = l.places[path]
		case unstable.KeyValue:
			l.pair(table, e)
		}
	}
	return l.places
}

type locator struct {
	p      unstable.Parser
	places map[string]position
	lists  map[string]int // how many elements [[…]] began, by path
}

// at returns where a node stands.
func (l *locator) at(n *unstable.Node) position {
	s := l.p.Shape(n.Raw).Start
	return position{s.Line, s.Column}
}

// header returns the path that the head of a table names. Names of lists stand
// for their last element, but for the last name.
func (l *locator) header(e *unstable.Node) string {
	path := ""
	for k := e.Key(); k.Next(); {
		if n := l.lists[path]; n > 0 {
			path = element(path, n-1)
		}
		path += "." + string(k.Node().Data)
		l.places[path] = l.at(k.Node())
	}
	return path
}

// pair notes a key and what is in its value.
func (l *locator) pair(path string, e *unstable.Node) {
	var at position
	for k := e.Key(); k.Next(); {
		path += "." + string(k.Node().Data)
		at = l.at(k.Node())
		l.places[path] = at
	}
	l.value(path, at, e.Value())
}

func (l *locator) value(path string, at position, v *unstable.Node) {
	switch v.Kind {
	case unstable.InlineTable:
		for c := v.Children(); c.Next(); {
			l.pair(path, c.Node())
		}
	case unstable.Array:
		i := 0
		for c := v.Children(); c.Next(); {
			if c.Node().Kind == unstable.Comment {
				continue
			}
			p := element(path, i)
			l.places[p] = at
			if c.Node().Kind == unstable.InlineTable {
				l.places[p] = l.at(c.Node())
			}
			l.value(p, at, c.Node())
			i++
		}
	}
}

// genuine returns the problems that cannot come of others, or all if there are
// no such, in the order of the file.
func genuine(problems []problem) []problem {
	follows := func(p problem) bool { return p.follows }
	first := slices.DeleteFunc(slices.Clone(problems), follows)
	if len(first) > 0 {
		problems = first
	}
	slices.SortStableFunc(problems, func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.at.line, b.at.line), cmp.Compare(a.at.column, b.at.column))
	})
	return problems
}

// join makes one error of problems, and nil of none.
func join(problems []problem) error {
	problems = genuine(problems)
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}
