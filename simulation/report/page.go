package report

import (
	"embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"starling/simulation"
)

//go:embed page/*.html page/style.css
var pageFiles embed.FS

var (
	style     = mustRead("page/style.css")
	templates = template.Must(template.ParseFS(pageFiles, "page/*.html"))
)

func mustRead(name string) template.CSS {
	b, err := pageFiles.ReadFile(name)
	if err != nil {
		panic("report: internal error: an embedded file is missing: " + name)
	}
	return template.CSS(b) // ours
}

// A grid is a table on a page. Its first column names its rows.
type grid struct {
	Caption string
	Head    []column
	Rows    [][]field
	Tall    bool // scrolls in its own box, down as well as across
	Quiet   bool // the heading above says what the caption says
}

type column struct {
	Name   string
	Number bool // aligned at the right
	Wide   bool // holds sentences
}

type field struct {
	Text string
	Link string    // to a file beside the page, or empty
	Code bool      // as it is written
	Bar  []float64 // percent of the width, side by side; empty for none
}

// columns reads names; one that ends in # holds numbers, in ~ sentences.
func columns(names ...string) []column {
	head := make([]column, len(names))
	for i, n := range names {
		name, number := strings.CutSuffix(n, "#")
		name, wide := strings.CutSuffix(name, "~")
		head[i] = column{name, number, wide}
	}
	return head
}

func (g *grid) add(texts ...string) {
	row := make([]field, len(texts))
	for i, t := range texts {
		row[i].Text = t
	}
	g.Rows = append(g.Rows, row)
}

// A keyFigure is a number that stands alone.
type keyFigure struct{ Value, Label, Note string }

// An alarm is what must not be overlooked.
type alarm struct {
	Title, What string
	Facts       []keyFigure // label and value
	Command     string      // repeats it; may be empty
}

// A page is what every page has.
type page struct {
	CSS      template.CSS
	Title    string
	About    []string // what this is, in a few words each
	Headline string
	Alarms   []alarm
	Keys     []keyFigure
}

// A runPage is report.html.
type runPage struct {
	page
	figures []figure
	// Sentences stand where a section has nothing else to show, or before it.
	Delivery, Faults, Steady, Duplicates, Traffic, Lookups, Usage, Repeat string

	Percentiles, Slowest, Pending, FaultList, Envelopes, Protocols, Busiest *grid
	LookupFacts, Reach, Relays, Sightings, Metrics, Facts, Everything       *grid

	Manifest simulation.Manifest
	Cite     string
	Files    []field
}

// Figure returns a figure by its name, nil if there is none.
func (p runPage) Figure(name string) *figure {
	i := slices.IndexFunc(p.figures, func(f figure) bool { return f.name == name })
	if i < 0 {
		return nil
	}
	return &p.figures[i]
}

// Title is for the templates.
func (f figure) Title() string { return f.title }

func writePage(w io.Writer, r *simulation.Result, figures []figure) error {
	d := digestOf(r)
	m := r.Manifest
	p := runPage{
		page: page{
			CSS: style, Title: title(m) + " – Starling simulation",
			About:    []string{"Starling simulation", m.Scenario, fmt.Sprintf("seed %d", m.Seed), plural(m.Nodes, "node", "nodes"), span(seconds(m.Simulated))},
			Headline: firstLine(headline(r, d)),
			Alarms:   alarms(r),
			Keys:     keyFigures(r, d),
		},
		figures:  figures,
		Manifest: m,
		Cite:     cite(m),
	}
	for i, a := range p.Alarms {
		if firstLine(a.What) == a.What {
			p.Alarms[i].What = "" // the headline says it
		}
	}
	p.delivery(r, d)
	p.envelopes(r.Envelopes, r.Violation != nil)
	p.faults(r)
	p.traffic(d)
	p.lookups(r, d)
	p.reach(r)
	p.relays(r)
	p.run(r)
	for _, name := range []string{
		manifestFile, eventsFile, messagesTable.name, lookupsTable.name, trafficTable.name, faultsTable.name,
		nodesTable.name, pairsTable.name, relaysTable.name, usageTable.name, envelopesTable.name, sightingsTable.name, metricsTable.name,
	} {
		p.Files = append(p.Files, field{Text: name, Link: name})
	}
	for _, f := range figures {
		p.Files = append(p.Files, field{Text: f.name + ".svg", Link: f.name + ".svg"})
	}
	return templates.ExecuteTemplate(w, "run.html", p)
}

// Headline says in one sentence what happened, for a terminal.
func Headline(r *simulation.Result) string {
	lines := strings.Split(strings.ReplaceAll(headline(r, digestOf(r)), nbsp, " "), "\n") // a stack has several
	for i, line := range lines {
		lines[i] = visible(strings.ReplaceAll(line, "\t", "    "))
	}
	return strings.Join(lines, "\n")
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// textsToAway is the metric by which a scenario tells how many messages had to
// wait for somebody's return, which times of delivery include.
const textsToAway = "texts_to_away"

func headline(r *simulation.Result, d digest) string {
	lasted := span(seconds(r.Manifest.Simulated))
	delivered := fmt.Sprintf("%s of %s", integer(len(d.delivery)), plural(d.accepted, "message", "messages"))
	were := "were"
	if d.accepted == 1 {
		were = "was"
	}
	switch {
	case r.Violation != nil:
		return fmt.Sprintf("A promise was broken after %s: %s", span(r.Violation.At), rounded(sentence(r.Violation.What)))
	case r.Manifest.Outcome == "failed" && r.Manifest.Error != "":
		return fmt.Sprintf("The run failed after %s: %s", lasted, rounded(sentence(r.Manifest.Error)))
	case r.Manifest.Outcome == "failed":
		return fmt.Sprintf("The run failed after %s.", lasted)
	case r.Manifest.Outcome == "interrupted":
		return fmt.Sprintf("The run was stopped after %s; by then %s had been delivered.", lasted, delivered)
	case d.accepted == 0:
		return fmt.Sprintf("%s ran for %s and sent no messages; no promise was broken.", plural(len(r.Nodes), "node", "nodes"), lasted)
	}
	s := fmt.Sprintf("%s %s delivered", delivered, were)
	if len(d.delivery) > 1 {
		s += "; half within " + value(percentile(d.delivery, 500), "s")
		if p99 := tail(d.delivery, 990); math.IsNaN(p99) {
			s += ", the slowest within " + value(percentile(d.delivery, 1000), "s")
		} else {
			s += ", 99" + nbsp + "% within " + value(p99, "s")
		}
	} else if len(d.delivery) == 1 {
		s += fmt.Sprintf(", after %s", span(d.delivery[0]))
	}
	if i := slices.IndexFunc(r.Metrics, func(m simulation.Metric) bool { return m.Name == textsToAway }); i >= 0 {
		if n := r.Metrics[i].Value; n >= 1 && n < 1e15 {
			s += fmt.Sprintf("; %s for somebody who was away", plural(int(n), "was", "were"))
		}
	}
	if n := len(d.pending); n > 0 { // lost or late, nobody has waited to see
		s += fmt.Sprintf("; %s still on the way at the end; nothing was shown twice", integer(n))
		if ordered(r) {
			s += " or out of order"
		}
	} else if ordered(r) {
		s += "; nothing was lost, shown twice or out of order"
	} else {
		s += "; nothing was lost or shown twice"
	}
	for _, x := range r.Relays {
		if x.Broken > 0 {
			s += fmt.Sprintf("; %s broke %s of %s", x.Name, integer(x.Broken), plural(x.Receipts, "receipt", "receipts"))
		}
	}
	return s + "."
}

// ordered reports whether the run held texts to their order, as the oracle of
// package simulation does.
func ordered(r *simulation.Result) bool {
	return len(r.Relays) == 0 || len(r.Relays) == 1 && r.Relays[0].Bad == "" && r.Relays[0].Lost == 0
}

// sentence ends s with a full stop.
func sentence(s string) string {
	if s = strings.TrimSpace(s); strings.HasSuffix(s, ".") || s == "" {
		return s
	}
	return s + "."
}

func alarms(r *simulation.Result) []alarm {
	if v := r.Violation; v != nil {
		return []alarm{{
			Title: "Violation of “" + v.Oracle + "”",
			What:  sentence(v.What),
			Facts: []keyFigure{
				{Label: "Noticed at", Value: fmt.Sprintf("%.9f s of virtual time (%s)", v.At.Seconds(), r.Manifest.Epoch.Add(v.At).UTC().Format(time.RFC3339Nano))},
				{Label: "Seed", Value: fmt.Sprint(r.Manifest.Seed)},
			},
			Command: v.Repeat,
		}}
	}
	if e := r.Manifest.Error; e != "" || r.Manifest.Outcome == "failed" {
		return []alarm{{Title: "The run did not end as it should", What: sentence(e), Command: r.Manifest.Repeat}}
	}
	return nil
}

func keyFigures(r *simulation.Result, d digest) []keyFigure {
	late := keyFigure{value(tail(d.delivery, 990), "s"), "to deliver, 99" + nbsp + "%", noted("longest: ", percentile(d.delivery, 1000))}
	if late.Value == none {
		late = keyFigure{value(percentile(d.delivery, 1000), "s"), "to deliver, longest", "too few for 99" + nbsp + "%"}
	}
	faults := plural(len(r.Faults)-d.skews, "fault", "faults") + " in all"
	if d.skews > 0 {
		faults += "; " + plural(d.skews, "clock", "clocks") + " wrong"
	}
	keys := []keyFigure{
		{percent(ratio(len(d.delivery), d.accepted)), "delivered", fmt.Sprintf("%s of %s", integer(len(d.delivery)), integer(d.accepted))},
		{value(percentile(d.delivery, 500), "s"), "to deliver, median", noted("90"+nbsp+"%: ", tail(d.delivery, 900))},
		late,
		{integer(r.Envelopes.Repeated), "duplicates arrived", "of " + plural(r.Envelopes.Sealed, "envelope", "envelopes")},
		{size(ratio(d.sent, int64(len(d.delivery)))), "all traffic, per message", "in all: " + size(float64(d.sent))},
		{percent(ratio(len(d.found), len(r.Lookups))), "of lookups found", fmt.Sprintf("%s of %s", integer(len(d.found)), integer(len(r.Lookups)))},
		{integer(d.crashes), "crashes", faults},
		{value(ratio(r.Manifest.Simulated, r.Manifest.Wall), "times real time"), "real time", span(seconds(r.Manifest.Simulated)) + " in " + span(seconds(r.Manifest.Wall))},
	}
	if d.accepted == 0 {
		keys = slices.Delete(keys, 0, 5)
	}
	return slices.DeleteFunc(keys, func(k keyFigure) bool { return k.Value == none })
}

// noted writes a time behind its name, if there is one.
func noted(name string, v float64) string {
	if math.IsNaN(v) {
		return ""
	}
	return name + value(v, "s")
}

// few is how many rows a list of examples shows.
const few = 8

func (p *runPage) delivery(r *simulation.Result, d digest) {
	if d.accepted == 0 {
		p.Delivery = "No message was accepted, so there is nothing to deliver."
		return
	}
	if len(d.pending) > 0 {
		p.Pending = &grid{Caption: "Not delivered by the end", Head: columns("Message", "From", "To", "Accepted at#"), Tall: true}
		for _, i := range d.pending {
			m := r.Messages[i]
			p.Pending.add(m.ID, name(r, m.From), name(r, m.To), span(m.Accepted))
			p.Pending.Rows[len(p.Pending.Rows)-1][0].Code = true
			if len(p.Pending.Rows) == 100 {
				p.Pending.Caption += fmt.Sprintf(", the first 100 of %s", integer(len(d.pending)))
				break
			}
		}
	}
	if len(d.delivery) == 0 {
		p.Delivery = fmt.Sprintf("None of %s was delivered.", plural(d.accepted, "message", "messages"))
		return
	}
	p.Percentiles = &grid{Caption: "Within", Head: columns("Share of the delivered", "Time#")}
	for _, at := range []int{500, 900, 950, 990, 999} {
		if v := tail(d.delivery, at); !math.IsNaN(v) {
			p.Percentiles.add(strings.TrimSuffix(fmt.Sprintf("%.1f", float64(at)/10), ".0")+nbsp+"%", value(v, "s"))
		}
	}
	p.Percentiles.add("all", value(percentile(d.delivery, 1000), "s"))

	slow := make([]int, 0, len(r.Messages))
	for i, m := range r.Messages {
		if m.Shown >= 0 {
			slow = append(slow, i)
		}
	}
	took := func(i int) time.Duration { return r.Messages[i].Shown - r.Messages[i].Accepted }
	slices.SortStableFunc(slow, func(a, b int) int { return int(max(-1, min(1, took(b)-took(a)))) })
	p.Slowest = &grid{Caption: "Slowest", Head: columns("Message", "From", "To", "Accepted at#", "Took#")}
	for _, i := range slow[:min(few, len(slow))] {
		m := r.Messages[i]
		p.Slowest.add(short(m.ID, 12), name(r, m.From), name(r, m.To), span(m.Accepted), span(took(i)))
		p.Slowest.Rows[len(p.Slowest.Rows)-1][0].Code = true
	}
}

func (p *runPage) envelopes(e simulation.Envelopes, broken bool) {
	if e == (simulation.Envelopes{}) {
		p.Duplicates = "No envelope was sealed."
		return
	}
	p.Duplicates = "No envelope arrived twice."
	if e.Repeated > 0 {
		p.Duplicates = plural(e.Repeated, "envelope", "envelopes") + " arrived again after opening, and were dropped."
		if !broken {
			p.Duplicates += " Nothing was shown twice."
		}
	}
	if e.Opened > e.Sealed {
		p.Duplicates += " More were opened than sealed: a machine that lost power after opening an envelope and before committing it opens the same one again."
	}
	p.Envelopes = &grid{Caption: "Envelopes", Head: columns("", "Number#", "Of the sealed#", ""), Quiet: true}
	for _, row := range []struct {
		name string
		n    int
	}{{"Sealed", e.Sealed}, {"Opened", e.Opened}, {"Came again", e.Repeated}, {"Did not open", e.Refused}} {
		share := ratio(row.n, e.Sealed)
		p.Envelopes.add(row.name, integer(row.n), tenths(share), "")
		if e.Sealed > 0 {
			p.Envelopes.Rows[len(p.Envelopes.Rows)-1][3].Bar = []float64{percentOf(int64(row.n), 100/float64(e.Sealed))}
		}
	}
}

// name returns the name of node i, whatever a file said i is.
func name(r *simulation.Result, i int) string {
	if i < 0 || i >= len(r.Nodes) {
		return fmt.Sprintf("node %d", i)
	}
	return r.Nodes[i].Name
}

func (p *runPage) faults(r *simulation.Result) {
	p.Faults = faultCounts(r.Faults) + "."
	p.Steady = steadyFaults(r)
	if len(r.Faults) == 0 {
		return
	}
	p.FaultList = &grid{Caption: "Faults", Head: columns("Kind", "What~", "From#", "To#"), Tall: true}
	for i, f := range r.Faults {
		if i == 500 {
			p.FaultList.Caption = fmt.Sprintf("Faults, the first 500 of %s", integer(len(r.Faults)))
			break
		}
		to := "the end"
		if f.To >= 0 {
			to = span(f.To)
		}
		if f.To == f.From {
			to = "at once"
		}
		p.FaultList.add(f.Kind, rounded(f.What), span(f.From), to)
	}
}

func (p *runPage) traffic(d digest) {
	if d.sent+d.received == 0 {
		p.Traffic = "No traffic was counted."
		return
	}
	p.Traffic = fmt.Sprintf("The nodes sent %s and received %s.", size(float64(d.sent)), size(float64(d.received)))
	if slices.ContainsFunc(d.protocols, func(t traffic) bool { return t.name == negotiation }) {
		p.Traffic += " “" + negotiation + "” is what is sent while a stream agrees on its protocol."
	}
	if slices.ContainsFunc(d.protocols, func(t traffic) bool { return t.sent > 0 && t.received == 0 }) {
		p.Traffic += " A protocol that received nothing got no further than opening its streams: who opens one counts that as the protocol’s, the other as “" + negotiation + "”."
	}
	p.Protocols = &grid{Caption: "Bytes by protocol", Head: columns("Protocol", "Sent#", "Received#", "Share#", "Sent ▪ received ▫")}
	all := float64(d.sent + d.received)
	for _, t := range d.protocols {
		p.Protocols.add(t.name, size(float64(t.sent)), size(float64(t.received)), tenths(float64(t.total())/all), "")
		row := p.Protocols.Rows[len(p.Protocols.Rows)-1]
		row[0].Code = true
		scale := 100 / float64(max(d.protocols[0].total(), 1))
		row[4].Bar = []float64{percentOf(t.sent, scale), percentOf(t.received, scale)}
	}
	if len(d.nodes) == 0 {
		return
	}
	p.Busiest = &grid{Caption: "Busiest nodes", Head: columns("Node", "Sent#", "Received#", "Of all#")}
	for _, t := range d.nodes[:min(few, len(d.nodes))] {
		p.Busiest.add(t.name, size(float64(t.sent)), size(float64(t.received)), tenths(float64(t.total())/all))
	}
}

func percentOf(v int64, scale float64) float64 {
	return math.Round(max(0, min(100, float64(v)*scale))*100) / 100
}

func (p *runPage) lookups(r *simulation.Result, d digest) {
	n := len(r.Lookups)
	if n == 0 {
		p.Lookups = "Nobody looked for a record."
		return
	}
	asked := 0
	for _, l := range r.Lookups {
		asked += l.Asked
	}
	p.Lookups = fmt.Sprintf("%s of %s found their record (%s).", integer(len(d.found)), plural(n, "lookup", "lookups"), percent(ratio(len(d.found), n)))
	if d.stale > 0 {
		p.Lookups += fmt.Sprintf(" %s offered only records older than the newest known.", plural(d.stale, "was", "were"))
	}
	p.LookupFacts = &grid{Caption: "In numbers", Head: columns("", "#")}
	p.LookupFacts.add("Found", integer(len(d.found)))
	p.LookupFacts.add("Not found", integer(n-len(d.found)))
	p.LookupFacts.add("Offered only old records", integer(d.stale))
	p.LookupFacts.add("Hops of those that found, mean", value(d.hopsMean, ""))
	p.LookupFacts.add("Peers asked, mean", value(ratio(asked, n), ""))
	p.LookupFacts.add("Time to find, median", value(percentile(d.found, 500), "s"))
	if p99 := tail(d.found, 990); !math.IsNaN(p99) {
		p.LookupFacts.add("Time to find, 99"+nbsp+"%", value(p99, "s"))
	}
	p.LookupFacts.add("Time to find, longest", value(percentile(d.found, 1000), "s"))
}

// relays says what each relay kept, and whether it kept its word.
func (p *runPage) relays(r *simulation.Result) {
	if len(r.Relays) == 0 {
		return
	}
	p.Relays = &grid{
		Caption: "Receipts of each relay, and bytes on its line",
		Head: columns("Relay", "What is wrong with it", "Receipts#", "Honoured#", "Broken#", "Void with a disk#", "Never asked for#", "Waiting#",
			"Shown again#", "Deposits refused#", "One-time keys#", "Keys given twice#", "Sent#", "Received#"),
	}
	for _, x := range r.Relays {
		p.Relays.add(x.Name, or(x.Bad, "nothing"), integer(x.Receipts), integer(x.Honoured), integer(x.Broken), integer(x.Void), integer(x.Unread),
			integer(x.Waiting), integer(x.Repeated), integer(x.Refused), integer(x.KeysToTokens+x.KeysToWork), integer(x.KeysRepeated), size(float64(x.Sent)), size(float64(x.Received)))
	}
}

// reach says how friends were connected, by what they are behind.
func (p *runPage) reach(r *simulation.Result) {
	if len(r.Pairs) == 0 {
		return
	}
	behind := func(i int) int {
		if i < 0 || i >= len(r.Nodes) {
			return 0
		}
		return max(0, slices.Index(natKinds, r.Nodes[i].NAT))
	}
	rows := map[[2]int][never + 1]int{}
	var all [never + 1]int
	for _, pair := range r.Pairs {
		a, b := behind(pair.A), behind(pair.B)
		k := [2]int{min(a, b), max(a, b)}
		n := rows[k]
		n[how(pair)]++
		rows[k] = n
		all[how(pair)]++
	}
	p.Reach = &grid{
		Caption: "Friends, by the NATs they are behind",
		Head:    columns("One", "The other", "Pairs#", "Connected directly#", "Through a circuit only#", "Never#"),
	}
	add := func(a, b string, n [never + 1]int) {
		pairs := n[directly] + n[throughCircuit] + n[never]
		p.Reach.add(a, b, integer(pairs), integer(n[directly]), integer(n[throughCircuit]), integer(n[never]))
	}
	for a := range natKinds {
		for b := a; b < len(natKinds); b++ {
			if n, ok := rows[[2]int{a, b}]; ok {
				add(natKinds[a], natKinds[b], n)
			}
		}
	}
	add("all", "", all)
}

// natKinds are the kinds of NAT as results spell them, none first.
var natKinds = []string{"none", "full-cone", "port-restricted", "symmetric"}

// natCounts says how many nodes are behind which NAT, or nothing if none is.
func natCounts(nodes []simulation.NodeResult) string {
	counts := map[string]int{}
	for _, n := range nodes {
		counts[n.NAT]++
	}
	var parts []string
	for _, kind := range natKinds[1:] {
		if counts[kind] > 0 {
			parts = append(parts, integer(counts[kind])+" "+kind)
		}
	}
	if parts == nil {
		return ""
	}
	return strings.Join(parts, ", ") + ", of " + plural(len(nodes), "node", "nodes")
}

func (p *runPage) run(r *simulation.Result) {
	if len(r.Sightings) > 0 {
		p.Sightings = &grid{Caption: "Who could see what", Head: columns("Observer", "Sees~", "Median#", "Most#", "Unit"), Quiet: true}
		for _, s := range r.Sightings {
			median, unit := apart(s.Median, s.Unit)
			most, _ := apart(s.Most, s.Unit)
			p.Sightings.add(s.Observer, s.Sees, median, most, unit)
		}
	}
	if len(r.Metrics) > 0 {
		p.Metrics = &grid{Caption: "Measured by the scenario", Head: columns("Metric", "Value#", "Unit", "Goal, or what it counts~"), Quiet: true}
		for _, m := range r.Metrics {
			v, unit := apart(m.Value, m.Unit)
			p.Metrics.add(label(m.Name), v, unit, or(m.Goal, none))
		}
	}
	m := r.Manifest
	goroutines := 0
	for _, u := range r.Usage {
		goroutines = max(goroutines, u.Goroutines)
	}
	p.Usage = fmt.Sprintf("%s of virtual time took %s of real time", span(seconds(m.Simulated)), span(seconds(m.Wall)))
	if m.Wall > 0 {
		p.Usage += fmt.Sprintf(" (%s)", value(ratio(m.Simulated, m.Wall), "times real time"))
	}
	if m.CPU > 0 {
		p.Usage += fmt.Sprintf(" and %s of processor time", span(seconds(m.CPU)))
		if m.Wall > 0 {
			p.Usage += fmt.Sprintf(" (%s)", digits(ratio(m.CPU, m.Wall), 2)+nbsp+"cores")
		}
	}
	if m.PeakMemory > 0 {
		p.Usage += "; memory peaked at " + size(float64(m.PeakMemory))
	}
	if goroutines > 0 {
		p.Usage += fmt.Sprintf(", goroutines at %s", integer(goroutines))
	}
	p.Usage += "."

	p.Repeat = "In this mode a run is statistically reproducible: the same seed gives the same world, but not every event at the same nanosecond. An exact build repeats it bit for bit."
	if m.Exact {
		p.Repeat = "This was an exact run: the same seed, program and Go version give the same trace hash."
	}
	p.Facts = &grid{Caption: "What was run", Head: columns("", "~")}
	fact := func(name, v string) {
		if v != "" {
			p.Facts.add(name, v)
			p.Facts.Rows[len(p.Facts.Rows)-1][1].Code = true
		}
	}
	fact("Scenario", m.Scenario)
	fact("Seed", fmt.Sprint(m.Seed))
	fact("Parameters", setting(m.Params, sortedKeys(m.Params)))
	fact("Version", m.Version)
	fact("Go", strings.TrimSpace(m.Go+" "+m.OS+"/"+m.Arch))
	fact("Store", m.Store)
	fact("Face", m.Face)
	fact("Security", m.Security)
	fact("NATs", natCounts(r.Nodes))
	fact("Epoch", m.Epoch.UTC().Format(time.RFC3339Nano))
	fact("Exact", map[bool]string{true: "yes", false: "no"}[m.Exact])
	fact("Trace hash", m.TraceHash)
	fact("Outcome", m.Outcome)

	p.Everything = &grid{Caption: "All metrics", Head: columns("Metric", "Value#", "Unit", "As in metrics.csv"), Tall: true}
	for _, metric := range Summary(r) {
		v, unit := apart(metric.Value, metric.Unit)
		p.Everything.add(label(metric.Name), v, unit, metric.Name)
		p.Everything.Rows[len(p.Everything.Rows)-1][3].Code = true
	}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// revision returns a version without the program's name before it.
func revision(version string) string {
	if _, rest, ok := strings.Cut(version, " "); ok {
		return rest
	}
	return version
}

// cite is how a paper may name the run.
func cite(m simulation.Manifest) string {
	s := fmt.Sprintf("Starling simulator %s, scenario “%s”", revision(m.Version), m.Scenario)
	if len(m.Params) > 0 {
		s += " with " + setting(m.Params, sortedKeys(m.Params))
	}
	s += fmt.Sprintf(", seed %d, %s, virtual time from %s", m.Seed, m.Go, m.Epoch.UTC().Format(time.RFC3339))
	if m.Outcome == "interrupted" {
		s += ", interrupted after " + span(seconds(m.Simulated))
	}
	if m.TraceHash != "" {
		return s + ", exact, trace " + m.TraceHash + "."
	}
	return s + ", statistically reproducible."
}
