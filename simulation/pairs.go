package simulation

import (
	"cmp"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Who reached whom, and how, is kept only where NATs make it a question:
// World.pairs is nil elsewhere.

// known notes the node of a peer ID, in its text form.
func (w *World) known(id string, n *Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pairs != nil {
		w.peers[id] = n
	}
}

// befriended notes that the people of two nodes are friends.
func (w *World) befriended(n, m *Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pairs != nil {
		w.friends[w.pairLocked(n, m)] = true
	}
}

// connected notes a connection. One end is enough: whoever dials dials somebody
// who has started.
func (w *World) connected(n *Node, id peer.ID, direct bool) {
	now := w.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.peers[id.String()]
	if m == nil || m == n {
		return
	}
	p := w.pairLocked(n, m)
	if direct && p.Direct < 0 {
		p.Direct = now
	}
	if !direct && p.Relayed < 0 {
		p.Relayed = now
	}
}

// pairLocked returns the pair of two nodes.
func (w *World) pairLocked(n, m *Node) *Pair {
	k := [2]int{min(n.index, m.index), max(n.index, m.index)}
	p := w.pairs[k]
	if p == nil {
		p = &Pair{A: k[0], B: k[1], Relayed: -1, Direct: -1}
		w.pairs[k] = p
	}
	return p
}

// friendPairs returns the pairs whose people are friends.
func (w *World) friendPairs() []Pair {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []Pair
	for p := range w.friends {
		list = append(list, *p)
	}
	slices.SortFunc(list, func(p, q Pair) int { return cmp.Or(cmp.Compare(p.A, q.A), cmp.Compare(p.B, q.B)) })
	return list
}
