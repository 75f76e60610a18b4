package scenario

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Param is a value of a scenario that can be set from outside.
type Param struct {
	Name    string
	Kind    string // number, duration or share
	Default string
	Doc     string
}

// parse reads a value of the parameter.
func (p Param) parse(text string) (any, error) {
	switch p.Kind {
	case kindDuration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a duration, such as 90s or 2h", text)
		}
		return d, nil
	default:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, fmt.Errorf("%q is not a number", text)
		}
		if p.Kind == kindShare && (f < 0 || f > 1) {
			return nil, fmt.Errorf("%s is not a share, which is 0 to 1", text)
		}
		return f, nil
	}
}

// Kinds of parameters, as files spell them.
const (
	kindNumber   = "number"
	kindDuration = "duration"
	kindShare    = "share"
)

// A reader reads the sections of one document and gathers what is wrong.
type reader struct {
	file     string
	params   []Param
	values   map[string]any // of params: a float64 or a time.Duration
	used     map[string]bool
	keys     map[string][]string // known keys, by section
	problems []problem
}

// problem notes what is wrong whatever else the file says.
func (r *reader) problem(at position, format string, args ...any) {
	r.note(problem{at: at, text: fmt.Sprintf(format, args...)})
}

// follow notes what is wrong if everything else is in order.
func (r *reader) follow(at position, format string, args ...any) {
	r.note(problem{at: at, text: fmt.Sprintf(format, args...), follows: true})
}

func (r *reader) note(p problem) {
	p.file = r.file
	if !slices.Contains(r.problems, p) { // a value that several sections look at
		r.problems = append(r.problems, p)
	}
}

// A section reads one table. Whatever it is asked for is a key that it knows;
// done refuses all others.
type section struct {
	*reader
	name  string // as the file spells its head
	table *table // nil if the file has none: all keys have their defaults
}

func (r *reader) section(name string, t *table) section { return section{r, name, t} }

// known notes a key as one of the section's, and returns it, or nil.
func (s section) known(key string) *item {
	if !slices.Contains(s.keys[s.name], key) {
		s.keys[s.name] = append(s.keys[s.name], key)
	}
	if s.table == nil {
		return nil
	}
	return s.table.keys[key]
}

func (s section) has(key string) bool { return s.known(key) != nil }

// at returns where a key stands, or the section if it does not have it.
func (s section) at(key string) position {
	if it := s.known(key); it != nil {
		return it.at
	}
	if s.table != nil {
		return s.table.at
	}
	return position{1, 1}
}

// wrong notes a problem of the value of a key.
func (s section) wrong(key, format string, args ...any) {
	s.note(problem{at: s.at(key), text: key + ": " + fmt.Sprintf(format, args...), section: s.name, param: s.param(key)})
}

// clash notes that the value of a key does not go with others.
func (s section) clash(key, format string, args ...any) {
	s.note(problem{at: s.at(key), text: key + ": " + fmt.Sprintf(format, args...), section: s.name, follows: true})
}

// param returns the parameter that stands for the value of a key, or nothing.
func (s section) param(key string) string {
	it := s.known(key)
	if it == nil {
		return ""
	}
	list, ok := it.value.([]any)
	if !ok {
		list = []any{it.value}
	}
	for _, v := range list {
		text, _ := v.(string)
		if m := mention.FindStringSubmatch(text); m != nil {
			return m[2]
		}
	}
	return ""
}

// need refuses a section without the keys. One that is misspelt is not missing.
func (s section) need(keys ...string) {
	for _, key := range keys {
		if s.has(key) {
			continue
		}
		if typo := near(key, s.unknown()); typo != "" {
			s.misspelt(typo, key)
		} else {
			s.problem(s.at(key), "%s needs %q", s.name, key)
		}
	}
}

// one refuses a section with two of the keys, and returns the one that it has,
// or nothing.
func (s section) one(keys ...string) string {
	got := ""
	for _, key := range keys {
		switch {
		case !s.has(key):
		case got == "":
			got = key
		default:
			s.wrong(key, "there is %q already", got)
		}
	}
	return got
}

// done refuses keys that nobody asked for.
func (s section) done() {
	if s.table == nil {
		return
	}
	known := slices.Sorted(slices.Values(s.keys[s.name]))
	for _, key := range s.unknown() {
		if meant := near(key, known); meant != "" {
			s.misspelt(key, meant)
		} else {
			s.problem(s.table.keys[key].at, "unknown key %q in %s; it knows %s", key, s.name, strings.Join(known, ", "))
		}
	}
}

// unknown returns the keys that nobody has asked for so far.
func (s section) unknown() []string {
	if s.table == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.table.keys)), func(key string) bool {
		return slices.Contains(s.keys[s.name], key)
	})
}

func (s section) misspelt(key, meant string) {
	s.problem(s.table.keys[key].at, "unknown key %q in %s; did you mean %q?", key, s.name, meant)
}

// sub returns the section below a key; its table is nil if there is none.
func (s section) sub(key string) section {
	name := "[" + key + "]"
	it := s.known(key)
	if it == nil {
		return s.section(name, nil)
	}
	t, ok := it.value.(*table)
	if !ok {
		s.wrong(key, "this is a table: write %s", name)
	}
	return s.section(name, t)
}

// subs returns the sections below a key.
func (s section) subs(key string) []section {
	name := "[[" + key + "]]"
	it := s.known(key)
	if it == nil {
		return nil
	}
	tables, ok := it.value.([]*table)
	if !ok {
		s.wrong(key, "there may be several: write %s", name)
	}
	var list []section
	for _, t := range tables {
		list = append(list, s.section(name, t))
	}
	return list
}

// mention matches a parameter that stands for a value.
var mention = regexp.MustCompile(`^(-?)\$([A-Za-z][A-Za-z0-9_-]*)$`)

// resolve replaces a reference to a parameter by its value, of one of the kinds
// given. A value that is not one it returns as it is.
func (s section) resolve(key string, v any, kinds ...string) (any, bool) {
	text, ok := v.(string)
	if !ok || !strings.Contains(text, "$") {
		return v, true
	}
	m := mention.FindStringSubmatch(text)
	if m == nil {
		s.wrong(key, "%q is not a parameter, such as \"$nodes\"", text)
		return nil, false
	}
	i := slices.IndexFunc(s.params, func(p Param) bool { return p.Name == m[2] })
	if i < 0 {
		s.wrong(key, "there is no parameter %q%s", m[2], insteadOf(m[2], s.params))
		return nil, false
	}
	p := s.params[i]
	s.used[p.Name] = true
	if !slices.Contains(kinds, p.Kind) {
		s.wrong(key, "parameter %q is a %s, and this is a %s", p.Name, p.Kind, strings.Join(kinds, " or a "))
		return nil, false
	}
	switch v := s.values[p.Name].(type) {
	case float64:
		if m[1] != "" {
			v = -v
		}
		return v, true
	case time.Duration:
		if m[1] != "" {
			v = -v
		}
		return v, true
	}
	return nil, false // it has a problem of its own
}

// insteadOf names the parameter that was meant, or all of them, for errors.
func insteadOf(name string, params []Param) string {
	if len(params) == 0 {
		return "; the scenario has none"
	}
	names := make([]string, len(params))
	for i, p := range params {
		names[i] = p.Name
	}
	if meant := near(name, names); meant != "" {
		return fmt.Sprintf("; did you mean %q?", meant)
	}
	return "; there are " + strings.Join(names, ", ")
}

// text returns a string. It is at least one byte long.
func (s section) text(key string) string {
	it := s.known(key)
	if it == nil {
		return ""
	}
	text, ok := it.value.(string)
	if !ok || text == "" {
		s.wrong(key, "%s is not a text", shown(it.value))
	}
	return text
}

// choice returns one of some words, the first by default.
func (s section) choice(key string, words ...string) string {
	it := s.known(key)
	if it == nil {
		return words[0]
	}
	if text, ok := it.value.(string); ok && slices.Contains(words, text) {
		return text
	}
	meant, _ := it.value.(string)
	if meant = near(meant, words); meant != "" {
		meant = fmt.Sprintf("; did you mean %q?", meant)
	}
	s.wrong(key, "%s is not one of %s%s", shown(it.value), strings.Join(words, ", "), meant)
	return words[0]
}

// flag returns a bool.
func (s section) flag(key string, or bool) bool {
	it := s.known(key)
	if it == nil {
		return or
	}
	v, ok := it.value.(bool)
	if !ok {
		s.wrong(key, "%s is not true or false", shown(it.value))
	}
	return v
}

// number returns a number between least and most.
func (s section) number(key string, or, least, most float64) float64 {
	it := s.known(key)
	if it == nil {
		return or
	}
	return s.numberOf(key, it.value, least, most)
}

func (s section) numberOf(key string, v any, least, most float64) float64 {
	v, ok := s.resolve(key, v, kindNumber)
	if !ok {
		return least
	}
	var f float64
	switch v := v.(type) {
	case int64:
		f = float64(v)
	case float64:
		f = v
	case string:
		if _, err := strconv.ParseFloat(v, 64); err == nil {
			s.wrong(key, "%q is a text, and this is a number: write it without quotes", v)
			return least
		}
		s.wrong(key, "%q is not a number", v)
		return least
	default:
		s.wrong(key, "%s is not a number", shown(v))
		return least
	}
	if !(f >= least && f <= most) {
		s.wrong(key, "%g is not between %g and %g", f, least, most)
		return least
	}
	return f
}

// count returns a whole number between least and most.
func (s section) count(key string, or, least, most int) int {
	it := s.known(key)
	if it == nil {
		return or
	}
	return s.countOf(key, it.value, least, most)
}

func (s section) countOf(key string, v any, least, most int) int {
	f := s.numberOf(key, v, float64(least), float64(most))
	if f != math.Trunc(f) {
		s.wrong(key, "%g is not a whole number", f)
		return least
	}
	return int(f)
}

// counts returns the bounds of a range: one whole number, or a list of two.
func (s section) counts(key string, or [2]int, least, most int) [2]int {
	return readRange(s, key, or, func(v any) int { return s.countOf(key, v, least, most) })
}

// share returns a part of a whole, 0 to 1.
func (s section) share(key string, or float64) float64 {
	it := s.known(key)
	if it == nil {
		return or
	}
	v, ok := s.resolve(key, it.value, kindShare)
	if !ok {
		return 0
	}
	var f float64
	switch v := v.(type) {
	case int64:
		f = float64(v)
	case float64:
		f = v
	default:
		s.wrong(key, "%s is not a share, which is 0 to 1", shown(v))
		return 0
	}
	if !(f >= 0 && f <= 1) {
		s.wrong(key, "%g is not a share, which is 0 to 1", f)
		return 0
	}
	return f
}

// longest is the longest duration of a scenario.
const longest = 10 * 365 * 24 * time.Hour

// duration returns a duration of at least least.
func (s section) duration(key string, or, least time.Duration) time.Duration {
	it := s.known(key)
	if it == nil {
		return or
	}
	return s.durationOf(key, it.value, least)
}

// latency returns the latency of a link, one way, or its jitter.
func (s section) latency(key string, or time.Duration) time.Duration {
	d := s.duration(key, or, 0)
	if d > maxLatency {
		s.wrong(key, "%v is more than %v", d, maxLatency)
	}
	return d
}

func (s section) durationOf(key string, v any, least time.Duration) time.Duration {
	v, ok := s.resolve(key, v, kindDuration)
	if !ok {
		return least
	}
	var d time.Duration
	switch v := v.(type) {
	case time.Duration:
		d = v
	case string:
		var err error
		if d, err = time.ParseDuration(v); err != nil {
			s.wrong(key, "%q is not a duration, such as \"90s\" or \"2h\"", v)
			return least
		}
	default:
		s.wrong(key, "%s is not a duration, such as \"90s\" or \"2h\"", shown(v))
		return least
	}
	if d < least || d > longest {
		s.wrong(key, "%v is not between %v and %v", d, least, longest)
		return least
	}
	return d
}

// durations returns the bounds of a range: one duration, or a list of two.
func (s section) durations(key string, or [2]time.Duration, least time.Duration) [2]time.Duration {
	return readRange(s, key, or, func(v any) time.Duration { return s.durationOf(key, v, least) })
}

// readRange returns the bounds of a range, lower first.
func readRange[T int | time.Duration](s section, key string, or [2]T, read func(any) T) [2]T {
	it := s.known(key)
	if it == nil {
		return or
	}
	list, ok := it.value.([]any)
	if !ok {
		v := read(it.value)
		return [2]T{v, v}
	}
	if len(list) != 2 {
		s.wrong(key, "a range has 2 bounds, and this has %d", len(list))
		return or
	}
	bounds := [2]T{read(list[0]), read(list[1])}
	if bounds[0] > bounds[1] {
		s.clash(key, "the range begins at %v, above its end at %v", bounds[0], bounds[1])
	}
	return bounds
}

// words returns a string, or a list of them.
func (s section) words(key string) []string {
	it := s.known(key)
	if it == nil {
		return nil
	}
	return s.wordsOf(key, it.value)
}

func (s section) wordsOf(key string, v any) []string {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var words []string
	for _, v := range list {
		text, ok := v.(string)
		if !ok || text == "" {
			s.wrong(key, "%s is not a text", shown(v))
			continue
		}
		words = append(words, text)
	}
	return words
}

// bandwidth matches what rate reads.
var bandwidth = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) ?([kMG]?)bit/s$`)

// rate returns a bandwidth in bits per second, or 0 if there is none.
func (s section) rate(key string) int64 {
	it := s.known(key)
	if it == nil {
		return 0
	}
	text, ok := it.value.(string)
	m := bandwidth.FindStringSubmatch(text)
	if !ok || m == nil {
		s.wrong(key, "%s is not a bandwidth, such as \"50 Mbit/s\"", shown(it.value))
		return 0
	}
	f, err := strconv.ParseFloat(m[1], 64)
	f *= map[string]float64{"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[m[2]]
	if err != nil || f < 1000 || f > 1e12 {
		s.wrong(key, "%s is not between 1 kbit/s and 1000 Gbit/s", text)
		return 0
	}
	return int64(f)
}

// shown is a value as an error says it.
func shown(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case *table, []*table:
		return "a table"
	case []any:
		return "a list"
	}
	return fmt.Sprint(v)
}

// readParams reads the parameters and their defaults.
func (r *reader) readParams(s section) {
	if s.table == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(s.table.keys)) {
		it := s.table.keys[name]
		t, ok := it.value.(*table)
		if !ok || !mention.MatchString("$"+name) {
			r.problem(it.at, "%s: a parameter is a word and a table, such as nodes = { number = 12, about = \"people\" }", name)
			continue
		}
		p := r.section("[params]", t)
		kind := p.one(kindNumber, kindDuration, kindShare)
		param := Param{Name: name, Kind: kind, Doc: p.text("about")}
		p.need("about")
		if text, ok := t.value(kind).(string); ok && strings.Contains(text, "$") {
			r.problem(it.at, "%s: a default does not refer to another parameter", name)
			kind = "" // one problem is enough
		}
		switch kind {
		case "":
			if param.Kind == "" {
				r.follow(it.at, "%s: a parameter needs its default, as a number, duration or share", name)
			}
		case kindNumber:
			f := p.number(kind, 0, -1e15, 1e15)
			param.Default, r.values[name] = strconv.FormatFloat(f, 'f', -1, 64), f
		case kindShare:
			f := p.share(kind, 0)
			param.Default, r.values[name] = strconv.FormatFloat(f, 'f', -1, 64), f
		case kindDuration:
			d := p.duration(kind, 0, -longest)
			param.Default, r.values[name] = shortDuration(d), d
		}
		p.done()
		r.params = append(r.params, param)
	}
	slices.SortStableFunc(r.params, func(a, b Param) int {
		x, y := s.table.keys[a.Name].at, s.table.keys[b.Name].at
		return (x.line-y.line)*1e6 + x.column - y.column
	})
}

// value returns the value of a key, or nil.
func (t *table) value(key string) any {
	if it := t.keys[key]; it != nil {
		return it.value
	}
	return nil
}

// shortDuration writes a duration without units of which there are none.
func shortDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
