package network

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Site is a place where a node stands.
type Site struct {
	Index  int    // from 0, below Config.Sites
	Region string // of a Matrix; any other topology ignores it
	NAT    NAT    // what is between the node and the network; every topology ignores it
}

// A Link is what lies between two sites, one way. Both ways are alike.
type Link struct {
	Latency time.Duration
	Jitter  time.Duration // most that is added to the latency of a chunk, drawn evenly from 0
	Loss    float64       // probability, 0 to 1, that a segment of 1,400 bytes is lost
}

// A Topology says how far sites are from each other. Link is a pure function,
// gives the same for (a, b) and (b, a), and is called once for each pair of
// different sites of a [Net].
//
// A topology may also have Check() error, which [New] calls, and Place(Site)
// error, which [Net.Join] calls to find out whether it knows a site.
type Topology interface {
	Link(seed uint64, a, b Site) Link
}

// Uniform draws the latency of each pair evenly from min to max.
func Uniform(min, max, jitter time.Duration) Topology { return uniform{min, max, jitter} }

type uniform struct{ min, max, jitter time.Duration }

func (u uniform) Link(seed uint64, a, b Site) Link {
	s := drawsOf(seed, a, b)
	return Link{Latency: u.min + s.upTo(u.max-u.min), Jitter: u.jitter}
}

// Check reports bounds that make no sense.
func (u uniform) Check() error {
	if u.min < 0 || u.max < u.min || u.max > maxLatency || u.jitter < 0 || u.jitter > maxLatency {
		return fmt.Errorf("network: latency from %v to %v with jitter up to %v", u.min, u.max, u.jitter)
	}
	return nil
}

// drawsOf returns the source of a pair, the same in both orders.
func drawsOf(seed uint64, a, b Site) source {
	return newSource(seed, uint64(min(a.Index, b.Index)), uint64(max(a.Index, b.Index)))
}

// maxLatency is the longest latency that is believed. More is a mistake of units.
const maxLatency = time.Minute

// A Matrix gives the latencies between regions.
type Matrix struct {
	Regions []string
	Latency [][]time.Duration // by region, one way; of both ways the mean counts
	Jitter  time.Duration
	Spread  float64 // pairs of sites differ evenly by up to this share of the latency, 0 to 1, both ways
}

// Check reports every mistake in m.
func (m Matrix) Check() error {
	var errs []error
	if len(m.Regions) == 0 {
		errs = append(errs, errors.New("network: matrix without regions"))
	}
	if len(m.Latency) != len(m.Regions) {
		errs = append(errs, fmt.Errorf("network: matrix of %d regions has %d rows", len(m.Regions), len(m.Latency)))
	}
	for i, r := range m.Regions {
		if r == "" || slices.Index(m.Regions, r) != i {
			errs = append(errs, fmt.Errorf("network: region %q is empty or named twice", r))
		}
	}
	for i, row := range m.Latency {
		if len(row) != len(m.Regions) {
			errs = append(errs, fmt.Errorf("network: row %d of a matrix of %d regions has %d columns", i+1, len(m.Regions), len(row)))
		}
		for _, d := range row {
			if d < 0 || d > maxLatency {
				errs = append(errs, fmt.Errorf("network: latency %v in row %d", d, i+1))
			}
		}
	}
	if m.Jitter < 0 || m.Jitter > maxLatency {
		errs = append(errs, fmt.Errorf("network: jitter %v", m.Jitter))
	}
	if !(m.Spread >= 0 && m.Spread <= 1) {
		errs = append(errs, fmt.Errorf("network: spread %v, not 0 to 1", m.Spread))
	}
	return errors.Join(errs...)
}

// Place reports a site whose region m does not have.
func (m Matrix) Place(s Site) error {
	if !slices.Contains(m.Regions, s.Region) {
		return fmt.Errorf("network: site %d is in region %q; there are %q", s.Index, s.Region, m.Regions)
	}
	return nil
}

// Link implements [Topology] for sites that Place accepts.
func (m Matrix) Link(seed uint64, a, b Site) Link {
	i, j := slices.Index(m.Regions, a.Region), slices.Index(m.Regions, b.Region)
	d := (m.Latency[i][j] + m.Latency[j][i]) / 2
	s := drawsOf(seed, a, b)
	d += time.Duration(float64(d) * m.Spread * (2*s.float() - 1))
	return Link{Latency: d, Jitter: m.Jitter}
}
