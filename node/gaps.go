package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"starling/node/store"
)

// A relay can withhold what it holds. Contents are numbered (SPEC §7.3), so that
// somebody who gets a later one sees that an earlier one is missing.

const (
	// gapGrace is how long a later content is ahead before the user is told that
	// something is missing: what two relays have of one contact comes in any order,
	// and one of the two may be slow to connect.
	gapGrace = 10 * time.Minute

	// maxGaps bounds what is noted of one contact. Beyond it two gaps are noted as
	// one.
	maxGaps = 16
)

// arrived notes that the content seq of a contact came, and reports whether others
// are missing, of which the user is to be told in time.
func arrived(c *store.Contact, seq uint64, now time.Time) bool {
	switch {
	case seq <= c.PeerSeq:
		fillGap(c, seq)
	case seq > c.PeerSeq+1:
		openGap(c, &store.Gap{First: c.PeerSeq + 1, Last: seq - 1, Since: now.UnixMilli()})
	}
	c.PeerSeq = max(c.PeerSeq, seq)
	return len(c.Gaps) > 0
}

// openGap notes the newest gap.
func openGap(c *store.Contact, g *store.Gap) {
	if len(c.Gaps) == maxGaps {
		c.Gaps[1].First, c.Gaps[1].Since = c.Gaps[0].First, c.Gaps[0].Since // what lies between came
		c.Gaps = c.Gaps[1:]
	}
	c.Gaps = append(c.Gaps, g)
}

// fillGap takes seq out of the gap that it lies in. One in the middle, for whose
// halves there is no room, stays where it is.
func fillGap(c *store.Contact, seq uint64) {
	i := slices.IndexFunc(c.Gaps, func(g *store.Gap) bool { return g.First <= seq && seq <= g.Last })
	if i < 0 {
		return
	}
	g := c.Gaps[i]
	switch {
	case g.First == g.Last:
		c.Gaps = slices.Delete(c.Gaps, i, i+1)
	case seq == g.First:
		g.First++
	case seq == g.Last:
		g.Last--
	case len(c.Gaps) < maxGaps:
		c.Gaps = slices.Insert(c.Gaps, i+1, &store.Gap{First: seq + 1, Last: g.Last, Since: g.Since})
		g.Last = seq - 1
	}
}

// gapOpened has watchGaps look again.
func (n *Node) gapOpened() {
	select {
	case n.gaps <- struct{}{}:
	default: // it is noted already
	}
}

// watchGaps tells the user of contents that did not come although later ones did,
// until ctx ends.
func (n *Node) watchGaps(ctx context.Context) error {
	for {
		next, err := n.tellGaps()
		if err != nil {
			n.log.Warn("looking for what is missing", "err", err)
			next = gapGrace
		}
		var due <-chan time.Time // nil if nothing is missing
		if next > 0 {
			due = time.After(next)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.gaps:
		case <-due:
		}
	}
}

// tellGaps tells of the gaps that are due, and returns in how long the next one
// is; 0 means that there is none.
func (n *Node) tellGaps() (next time.Duration, err error) {
	now := n.cfg.Now()
	var due []store.RowKey
	err = n.store.View(func(tx *store.Tx) error {
		for row, err := range store.Contacts.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			switch in, is := gapDue(row.Value, now); {
			case !is:
			case in <= 0:
				due = append(due, row.Key)
			case next == 0 || in < next:
				next = in
			}
		}
		return nil
	})
	for _, k := range due {
		if err == nil {
			err = n.store.Update(func(tx *store.Tx) error { return n.tellGap(tx, now, k) })
		}
	}
	return next, err
}

// gapDue returns in how long the user is to be told of a gap, if there is one. Who
// only asks, or was shut out, sends nothing that is missed.
func gapDue(c *store.Contact, now time.Time) (in time.Duration, is bool) {
	if c.State == store.Contact_REQUEST || c.State == store.Contact_BLOCKED {
		return 0, false
	}
	for _, g := range c.Gaps {
		if d := gapIn(g, now); !is || d < in {
			in, is = d, true
		}
	}
	return in, is
}

func gapIn(g *store.Gap, now time.Time) time.Duration {
	return time.UnixMilli(g.Since).Add(gapGrace).Sub(now)
}

// tellGap puts one line into the chat with a contact for all gaps that are due.
func (n *Node) tellGap(tx *store.Tx, now time.Time, k store.RowKey) error {
	c, err := store.Contacts.Get(tx, k)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if in, is := gapDue(c, now); !is || in > 0 {
		return nil
	}
	c.Gaps = slices.DeleteFunc(c.Gaps, func(g *store.Gap) bool { return gapIn(g, now) <= 0 })
	if err := saveContact(tx, c); err != nil {
		return err
	}
	return n.noticeOf(tx, c, "gap", "something that "+c.Name+" sent before this is missing; it may still come, or ask them whether it was a message")
}
