package network

import (
	"fmt"
	"net/netip"
	"time"
)

// A NAT is how the box between a site and the network translates addresses, if
// there is one. A node behind it has a private address, which nobody else can
// reach; others see the address of the site, and a port of the box.
//
// The kinds differ in what they do with datagrams (mapping and filtering in the
// words of RFC 4787):
//
//	kind             one mapping for each         lets in, to a mapping
//	FullCone         socket                       whatever comes
//	PortRestricted   socket                       addresses and ports written to
//	Symmetric        socket, address and port     the address and port it is for
//
// Streams cannot be dialled from outside, whatever the kind. No kind sends back
// what the node writes to its own site (hairpin).
type NAT uint8

// The kinds of NAT.
const (
	NoNAT NAT = iota // the node has the address of the site
	FullCone
	PortRestricted
	Symmetric
)

// String returns the name of a kind, such as "port-restricted".
func (k NAT) String() string {
	switch k {
	case NoNAT:
		return "none"
	case FullCone:
		return "full-cone"
	case PortRestricted:
		return "port-restricted"
	case Symmetric:
		return "symmetric"
	}
	return fmt.Sprintf("NAT(%d)", uint8(k))
}

// NATTimeout is how long a NAT keeps a mapping, and lets an address in, after
// the last datagram that left through it: the least that RFC 4787 allows
// (REQ-5). Datagrams that come in do not prolong it.
const NATTimeout = 2 * time.Minute

const (
	// maxKept is the most that one NAT remembers: mappings, and each address
	// that a PortRestricted one lets in. That is 1.8 MB at most. Beyond,
	// datagrams that need another one are dropped until some are over.
	maxKept = 8192

	firstMapped = 1024 // lowest port that a NAT gives away
)

// A table is what a NAT remembers. The times given to it never go back.
type table struct {
	kind  NAT
	draws source              // of ports
	out   map[flow]*mapping   // those that may be over included
	in    map[uint16]*mapping // by outer port; the same mappings
	kept  int                 // mappings, and what they have in sent
	swept time.Duration       // when those that are over were last forgotten
}

// A flow is what a mapping is for.
type flow struct {
	inner  uint16         // port of the socket
	remote netip.AddrPort // of a Symmetric NAT; else zero
}

type mapping struct {
	flow
	outer uint16
	used  time.Duration                    // when something last left through it
	sent  map[netip.AddrPort]time.Duration // of a PortRestricted NAT: when something last left for there
}

// newTable returns the table of a NAT, or nil if there is none. Its ports are
// drawn from draws.
func newTable(kind NAT, draws source) *table {
	if kind == NoNAT {
		return nil
	}
	return &table{kind: kind, draws: draws, out: make(map[flow]*mapping), in: make(map[uint16]*mapping)}
}

// fresh says whether what was last used at some time still counts.
func fresh(used, now time.Duration) bool { return now-used < NATTimeout }

// leave translates the port of a socket that sends to remote. It reports false
// if the table is full.
func (t *table) leave(now time.Duration, inner uint16, remote netip.AddrPort) (outer uint16, ok bool) {
	t.sweep(now)
	f := flow{inner: inner}
	if t.kind == Symmetric {
		f.remote = remote
	}
	m := t.out[f]
	if m != nil && !fresh(m.used, now) {
		t.forget(m)
		m = nil
	}
	if m == nil {
		if t.kept >= maxKept {
			return 0, false
		}
		t.kept++
		m = &mapping{flow: f, outer: t.port()}
		if t.kind == PortRestricted {
			m.sent = make(map[netip.AddrPort]time.Duration)
		}
		t.out[f], t.in[m.outer] = m, m
	}
	if t.kind == PortRestricted {
		if _, known := m.sent[remote]; !known {
			if t.kept >= maxKept {
				return 0, false
			}
			t.kept++
		}
		m.sent[remote] = now
	}
	m.used = now
	return m.outer, true
}

// enter translates back the port that remote sends to. It reports false if
// nothing of the kind is let in.
func (t *table) enter(now time.Duration, outer uint16, remote netip.AddrPort) (inner uint16, ok bool) {
	m := t.in[outer]
	if m == nil || !fresh(m.used, now) {
		return 0, false
	}
	switch t.kind {
	case FullCone:
		return m.inner, true
	case PortRestricted:
		sent, known := m.sent[remote]
		return m.inner, known && fresh(sent, now)
	default:
		return m.inner, m.remote == remote
	}
}

// port draws a port that no mapping has.
func (t *table) port() uint16 {
	for {
		p := uint16(firstMapped + t.draws.upTo(1<<16-1-firstMapped))
		if t.in[p] == nil {
			return p
		}
	}
}

// sweep forgets what is over, once in the time that it takes to be over.
func (t *table) sweep(now time.Duration) {
	if fresh(t.swept, now) {
		return
	}
	t.swept = now
	for _, m := range t.out {
		if !fresh(m.used, now) {
			t.forget(m)
			continue
		}
		for remote, sent := range m.sent {
			if !fresh(sent, now) {
				delete(m.sent, remote)
				t.kept--
			}
		}
	}
}

func (t *table) forget(m *mapping) {
	delete(t.out, m.flow)
	delete(t.in, m.outer)
	t.kept -= 1 + len(m.sent)
}
