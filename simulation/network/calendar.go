package network

import (
	"slices"
	"sort"
	"time"
)

// A calendar is a line that carries one chunk at a time, known in advance.
// Chunks are entered when they are written, in the order of writing and not of
// arrival, so a new one goes into the first gap that holds it: a chunk from
// nearby does not queue behind one from afar that is still under way.
type calendar struct {
	busy []span // in order, apart from each other
}

type span struct{ from, to time.Duration }

// book reserves the line for d, not before at, and returns when it is done.
// What ended before now is forgotten, so at must not be before now.
func (c *calendar) book(now, at, d time.Duration) time.Duration {
	end, _ := c.bookWithin(now, at, d, never)
	return end
}

// bookWithin books likewise, unless the line is not free by latest. Then it
// reserves nothing, and reports false.
func (c *calendar) bookWithin(now, at, d, latest time.Duration) (end time.Duration, ok bool) {
	if d <= 0 {
		return at, true
	}
	past := 0
	for past < len(c.busy) && c.busy[past].to <= now {
		past++
	}
	if past > 0 {
		c.busy = c.busy[:copy(c.busy, c.busy[past:])]
	}
	i := sort.Search(len(c.busy), func(i int) bool { return c.busy[i].to > at })
	for i < len(c.busy) && c.busy[i].from < at+d {
		at = max(at, c.busy[i].to)
		i++
	}
	if at > latest {
		return 0, false
	}
	end = at + d
	before := i > 0 && c.busy[i-1].to == at
	after := i < len(c.busy) && c.busy[i].from == end
	switch {
	case before && after:
		c.busy[i-1].to = c.busy[i].to
		c.busy = slices.Delete(c.busy, i, i+1)
	case before:
		c.busy[i-1].to = end
	case after:
		c.busy[i].from = at
	default:
		c.busy = slices.Insert(c.busy, i, span{at, end})
	}
	return end, true
}
