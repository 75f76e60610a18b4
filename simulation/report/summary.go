package report

import (
	"cmp"
	"math"
	"slices"
	"time"

	"gonum.org/v1/gonum/stat/distuv"

	"starling/simulation"
)

// Summary returns the metrics that every run has, always the same and in the
// same order, and then the scenario's own. A value is NaN where there was
// nothing to measure, or too little for a percentile. Duplicates are envelopes that arrived after they had been
// opened, and were dropped. Percentiles are by nearest rank over what was
// delivered or found; bytes_per_message is all that all nodes sent, over the
// messages delivered.
//
// The units "s", "bytes" and "share" (from 0 to 1) are written for readers as
// times, sizes and percentages, in a scenario's metrics too; any other unit is a
// word behind the number.
func Summary(r *simulation.Result) []simulation.Metric {
	d := digestOf(r)
	m := r.Manifest
	var all []simulation.Metric
	add := func(name string, value float64, unit string) {
		all = append(all, simulation.Metric{Name: name, Value: value, Unit: unit})
	}
	add("accepted", float64(d.accepted), "messages")
	add("delivered", float64(len(d.delivery)), "messages")
	add("delivered_share", ratio(len(d.delivery), d.accepted), "share")
	add("confirmed", float64(d.confirmed), "messages")
	add("delivery_p50", percentile(d.delivery, 500), "s")
	add("delivery_p90", tail(d.delivery, 900), "s")
	add("delivery_p99", tail(d.delivery, 990), "s")
	add("delivery_max", percentile(d.delivery, 1000), "s")
	add("sealed", float64(r.Envelopes.Sealed), "envelopes")
	add("opened", float64(r.Envelopes.Opened), "envelopes")
	add("duplicates", float64(r.Envelopes.Repeated), "envelopes")
	add("refused", float64(r.Envelopes.Refused), "envelopes")
	add("bytes_sent", float64(d.sent), "bytes")
	add("bytes_per_message", ratio(d.sent, int64(len(d.delivery))), "bytes")
	add("lookups", float64(len(r.Lookups)), "lookups")
	add("lookup_success", ratio(len(d.found), len(r.Lookups)), "share")
	add("lookup_stale", float64(d.stale), "lookups")
	add("lookup_hops_mean", d.hopsMean, "hops")
	add("lookup_p50", percentile(d.found, 500), "s")
	add("lookup_p99", tail(d.found, 990), "s")
	add("friends_direct", d.direct, "share")
	add("friends_relayed", d.relayed, "share")
	add("crashes", float64(d.crashes), "crashes")
	add("simulated_s", seconds(m.Simulated).Seconds(), "s")
	add("wall_s", seconds(m.Wall).Seconds(), "s")
	add("cpu_s", seconds(m.CPU).Seconds(), "s")
	add("speed", ratio(m.Simulated, m.Wall), "times real time")
	add("peak_memory", float64(m.PeakMemory), "bytes")
	return append(all, r.Metrics...)
}

// A digest is a result, counted.
type digest struct {
	accepted, confirmed int
	delivery            []time.Duration // from accepted to shown, sorted
	pending             []int           // messages that were not shown
	found               []time.Duration // how long each successful lookup took, sorted
	hops                []count         // lookups by longest chain, shortest first
	hopsMean            float64         // of the successful ones
	stale, crashes      int
	skews               int     // faults that are wrong clocks
	direct, relayed     float64 // share of the pairs of friends; NaN if none were looked at
	sent, received      int64
	protocols           []traffic // busiest first
	nodes               []traffic // busiest first
}

// How two friends were connected: the best of all their connections.
const (
	directly = iota
	throughCircuit
	never
)

func how(p simulation.Pair) int {
	switch {
	case p.Direct >= 0:
		return directly
	case p.Relayed >= 0:
		return throughCircuit
	default:
		return never
	}
}

// A count says how many lookups had a value, and how many of those failed.
// Those with [mostHops] had as many or more.
type count struct{ value, n, failed int }

// mostHops is beyond any chain of referrals that a lookup of ours follows.
const mostHops = 64

type traffic struct {
	name           string
	node           int
	sent, received int64
}

// negotiation stands for no protocol: it is what is sent while the two ends of a
// stream agree on one.
const negotiation = "negotiation"

func (t traffic) total() int64 { return t.sent + t.received }

func digestOf(r *simulation.Result) digest {
	d := digest{accepted: len(r.Messages)}
	for i, m := range r.Messages {
		if m.Shown >= 0 {
			d.delivery = append(d.delivery, max(0, m.Shown-m.Accepted))
		} else {
			d.pending = append(d.pending, i)
		}
		if m.Confirmed >= 0 {
			d.confirmed++
		}
	}
	hops := 0
	var hopCounts [mostHops + 1]count
	for _, l := range r.Lookups {
		if l.Found {
			d.found = append(d.found, l.Took)
			hops += l.Hops
		}
		if l.Stale {
			d.stale++
		}
		h := &hopCounts[max(0, min(l.Hops, mostHops))]
		h.n++
		if !l.Found {
			h.failed++
		}
	}
	for hops, h := range hopCounts {
		if h.n > 0 {
			h.value = hops
			d.hops = append(d.hops, h)
		}
	}
	d.hopsMean = ratio(hops, len(d.found))
	slices.Sort(d.delivery)
	slices.Sort(d.found)
	direct, relayed := 0, 0
	for _, p := range r.Pairs {
		switch how(p) {
		case directly:
			direct++
		case throughCircuit:
			relayed++
		}
	}
	d.direct, d.relayed = ratio(direct, len(r.Pairs)), ratio(relayed, len(r.Pairs))
	d.nodes = make([]traffic, len(r.Nodes))
	for i, n := range r.Nodes {
		d.crashes += n.Crashes
		d.nodes[i] = traffic{name: n.Name, node: i}
	}
	for _, f := range r.Faults {
		if f.Kind == "skew" {
			d.skews++
		}
	}
	protocol := map[string]int{} // index in d.protocols
	for _, t := range r.Traffic {
		name := or(t.Protocol, negotiation)
		i, ok := protocol[name]
		if !ok {
			i = len(d.protocols)
			protocol[name] = i
			d.protocols = append(d.protocols, traffic{name: name})
		}
		d.protocols[i].add(t)
		if t.Node >= 0 && t.Node < len(d.nodes) {
			d.nodes[t.Node].add(t)
		}
		d.sent += t.Sent
		d.received += t.Received
	}
	busiest := func(a, b traffic) int { return cmp.Compare(b.total(), a.total()) }
	slices.SortStableFunc(d.protocols, busiest)
	slices.SortStableFunc(d.nodes, busiest)
	return d
}

func (t *traffic) add(u simulation.Traffic) {
	t.sent += u.Sent
	t.received += u.Received
}

// percentile returns the smallest of sorted that at least permille of them do
// not exceed, in seconds.
func percentile(sorted []time.Duration, permille int) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	rank := (len(sorted)*permille + 999) / 1000
	return sorted[max(rank, 1)-1].Seconds()
}

// tail is percentile, or NaN if nothing lies beyond it: then it would be the
// longest under a name that promises more. The median stands for any number.
func tail(sorted []time.Duration, permille int) float64 {
	if permille > 500 && len(sorted)*(1000-permille) < 1000 {
		return math.NaN()
	}
	return percentile(sorted, permille)
}

func ratio[T ~int | ~int64](a, b T) float64 {
	if b == 0 {
		return math.NaN()
	}
	return float64(a) / float64(b)
}

func seconds(s simulation.Seconds) time.Duration { return time.Duration(s) }

// An interval is the mean of N runs and where the true mean lies with 95 %
// confidence: from low to high, by Student's t. Both are NaN for fewer than two.
type interval struct {
	n                                int
	mean, low, high, lowest, highest float64
}

// intervalOf leaves out what is NaN.
func intervalOf(values []float64) interval {
	values = slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	iv := interval{n: len(values), mean: math.NaN(), low: math.NaN(), high: math.NaN(), lowest: math.NaN(), highest: math.NaN()}
	if iv.n == 0 {
		return iv
	}
	iv.lowest, iv.highest = slices.Min(values), slices.Max(values)
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	iv.mean = sum / float64(iv.n)
	if iv.n < 2 {
		return iv
	}
	squares := 0.0
	for _, v := range values {
		squares += (v - iv.mean) * (v - iv.mean)
	}
	free := float64(iv.n - 1)
	t := distuv.StudentsT{Sigma: 1, Nu: free}.Quantile(0.975)
	half := t * math.Sqrt(squares/free/float64(iv.n))
	iv.low, iv.high = iv.mean-half, iv.mean+half
	return iv
}

// within cuts off what the metric cannot be: no time, size, share or count is
// below 0, no part above the whole.
func (iv interval) within(m simulation.Metric) interval {
	_, ours := labels[m.Name]
	if iv.lowest >= 0 && (ours || m.Unit == "s" || m.Unit == "bytes" || m.Unit == "share") {
		iv.low = max(0, iv.low)
	}
	if iv.highest <= 1 && m.Unit == "share" {
		iv.high = min(1, iv.high)
	}
	return iv
}
