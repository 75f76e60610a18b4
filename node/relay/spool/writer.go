package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
)

// An again is an entry that is there, to be attested once more.
type again struct {
	Key
	leaf Leaf
}

// A call is a Put, a Delete or an Again. All but group is the writer's from the time it
// takes the group until the group is done.
type call struct {
	group   *group
	puts    []Entry
	tags    []uint64 // of the blobs put
	deletes []Key
	again   *again

	err   error
	id    uint64 // of the first entry put
	leaf  int    // the place of it, or of what is attested again, in the group's leaves
	slots []int  // of the entries put
}

// entries is how many the call counts for in a group.
func (c *call) entries() int {
	n := len(c.puts) + len(c.deletes)
	if c.again != nil {
		n++
	}
	return n
}

func (c *call) blobs() (n int) {
	for _, e := range c.puts {
		n += len(e.Blob)
	}
	return n
}

// A group is calls that share a commit.
type group struct {
	done chan struct{} // closed by the writer when all calls know how they ended

	// Guarded by Spool.waiting until taken.
	taken   bool
	calls   []*call
	entries int // put, deleted or attested again
	bytes   int // of blobs

	leaves []Leaf
	attest func() func(int) any // calls Config.Attest, once; nil if there is none
}

func (s *Spool) newGroup() *group {
	g := &group{done: make(chan struct{})}
	if s.cfg.Attest != nil {
		g.attest = sync.OnceValue(func() func(int) any { return s.cfg.Attest(g.leaves) })
	}
	return g
}

// do puts a call into the next group and waits for it.
func (s *Spool) do(ctx context.Context, c *call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.join(c); err != nil {
		return err
	}
	select {
	case <-c.group.done:
	case <-ctx.Done():
		if s.leave(c) {
			return ctx.Err()
		}
		<-c.group.done // the blobs are being read
	}
	return c.err
}

// join puts a call into the next group.
func (s *Spool) join(c *call) error {
	entries, bytes := c.entries(), c.blobs()
	s.waiting.Lock()
	if s.ended {
		s.waiting.Unlock()
		return ErrClosed
	}
	var g *group
	if n := len(s.groups); n > 0 && s.groups[n-1].entries+entries <= MaxGroup && s.groups[n-1].bytes < maxGroupBytes {
		g = s.groups[n-1]
	} else {
		g = s.newGroup()
		s.groups = append(s.groups, g)
	}
	c.group = g
	g.calls = append(g.calls, c)
	g.entries += entries
	g.bytes += bytes
	s.waiting.Unlock()

	select {
	case s.wake <- struct{}{}:
	default: // the writer knows
	}
	return nil
}

// leave takes a call out of its group, and reports whether it was in time.
func (s *Spool) leave(c *call) bool {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	g := c.group
	if g.taken {
		return false
	}
	g.calls = slices.DeleteFunc(g.calls, func(other *call) bool { return other == c })
	g.entries -= c.entries()
	g.bytes -= c.blobs()
	return true
}

// write is the writer: it commits groups until Close, and those that wait then.
func (s *Spool) write() {
	for {
		ended := false
		select {
		case <-s.wake:
			// Callers that the last commit has released are about to call again.
			// Without this the first of them would have a commit of its own, and
			// all others wait for two.
			runtime.Gosched()
		case <-s.closing:
			ended = true
		}
		for g := s.takeGroup(); g != nil; g = s.takeGroup() {
			s.commit(g)
			close(g.done)
		}
		if ended {
			return
		}
	}
}

// takeGroup returns the first group that waits, or nil.
func (s *Spool) takeGroup() *group {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	if len(s.groups) == 0 {
		return nil
	}
	g := s.groups[0]
	s.groups = slices.Delete(s.groups, 0, 1)
	g.taken = true
	return g
}

// A put is an entry on its way to a slot.
type put struct {
	entry *Entry
	id    uint64
	slot  int
}

// A batch is what a group does to the disk.
type batch struct {
	deletes []deletion
	bad     []bad
	puts    [][]put // by class; slots ascend
	slots   []int   // by class: in the file before
}

// A deletion is an entry that a call deletes.
type deletion struct {
	Key
	item item
}

// commit does what the calls of a group want and sets how each ended.
func (s *Spool) commit(g *group) {
	if s.broken != nil {
		g.fail(s.broken)
		return
	}
	b := batch{puts: make([][]put, len(s.classes)), slots: make([]int, len(s.classes))}
	err := s.makeRoom(g)
	if err == nil {
		for i, c := range s.classes {
			b.slots[i] = c.slots
		}
		s.findDeletes(g, &b)
		s.admit(g, &b)
		s.growAhead(&b)
		err = s.writeBatch(g, &b)
	}
	if err != nil {
		if !errors.Is(err, ErrClosed) {
			err = fmt.Errorf("%w: %w", ErrReopen, err)
		}
		s.broken = err
		g.fail(err)
		return
	}
	s.apply(g, &b)
}

// fail gives all calls the same error.
func (g *group) fail(err error) {
	for _, c := range g.calls {
		c.err = err
	}
}

// findDeletes looks up what is to be deleted, once each.
func (s *Spool) findDeletes(g *group, b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.bad, s.bad = s.bad, nil
	for _, c := range g.calls {
		for _, k := range c.deletes {
			if it, ok := s.index.find(k.Queue, k.ID); ok {
				b.deletes = append(b.deletes, deletion{k, it})
			}
		}
	}
	slices.SortFunc(b.deletes, func(x, y deletion) int {
		return cmp.Or(cmp.Compare(x.item.class(), y.item.class()), cmp.Compare(x.item.slot, y.item.slot))
	})
	b.deletes = slices.CompactFunc(b.deletes, func(x, y deletion) bool { return x.Key == y.Key })
}

// admit gives every entry that there is room for a slot and an ID.
func (s *Spool) admit(g *group, b *batch) {
	for _, c := range g.calls {
		for i := range c.puts {
			slot, ok := s.alloc(s.classFor(len(c.puts[i].Blob)))
			if !ok {
				break
			}
			c.slots = append(c.slots, slot)
		}
		if len(c.slots) < len(c.puts) {
			for i, slot := range c.slots {
				s.classFor(len(c.puts[i].Blob)).release(slot)
			}
			c.err = ErrFull
		}
		if c.err != nil || len(c.puts) == 0 {
			continue
		}
		if g.leaves == nil {
			s.last = max(s.last, uint64(max(s.cfg.Now().UnixMicro(), 1))-1)
			g.leaves = make([]Leaf, 0, g.entries)
		}
		c.id, c.leaf = s.last+1, len(g.leaves)
		for i := range c.puts {
			e := &c.puts[i]
			s.last++
			class := s.classFor(len(e.Blob)).index
			b.puts[class] = append(b.puts[class], put{e, s.last, c.slots[i]})
			g.leaves = append(g.leaves, e.Leaf)
		}
	}
	for _, puts := range b.puts {
		slices.SortFunc(puts, func(x, y put) int { return cmp.Compare(x.slot, y.slot) })
	}
}

// grow makes a file longer, in memory so far.
func (s *Spool) grow(c *class, slots int) {
	c.resize(c.slots + slots)
	s.bytes += int64(slots) * int64(c.slotSize())
}

// growAhead lets the files that a batch makes longer grow more than it needs,
// and a part of what the quota leaves.
func (s *Spool) growAhead(b *batch) {
	for i, c := range s.classes {
		if c.slots > b.slots[i] {
			ahead := min(growBytes, (s.cfg.Quota-s.bytes)/8)
			s.grow(c, min(int(ahead)/c.slotSize(), maxSlots-c.slots))
		}
	}
}

// alloc returns a free slot, of a longer file if the quota allows it.
func (s *Spool) alloc(c *class) (slot int, ok bool) {
	if s.bytes > s.cfg.Quota {
		return 0, false
	}
	if c.free == 0 {
		if s.bytes+int64(c.slotSize()) > s.cfg.Quota || c.slots == maxSlots {
			return 0, false
		}
		s.grow(c, 1)
	}
	return c.take(), true
}

// writeBatch makes a batch durable. An error means that the disk is in an
// unknown state; if there is merely no room on it for the entries, the calls
// that put them have that error, the batch loses them and the rest goes on.
func (s *Spool) writeBatch(g *group, b *batch) error {
	for _, d := range b.deletes {
		if err := s.classes[d.item.class()].clear(int(d.item.slot)); err != nil {
			return err
		}
	}
	for _, bad := range b.bad {
		if err := s.classes[bad.class].clear(bad.slot); err != nil {
			return err
		}
	}
	err := s.writePuts(b)
	if errors.Is(err, ErrDiskFull) {
		err = s.undo(g, b, err)
	}
	if err != nil {
		return err
	}
	for _, c := range s.classes {
		if err := c.sync(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spool) writePuts(b *batch) error {
	for i, c := range s.classes {
		if err := c.extend(); err != nil {
			return err
		}
		puts := b.puts[i]
		if len(puts) == 0 {
			continue
		}
		if c.bound <= s.last {
			if err := c.writeBound(s.last + 1 + boundAhead); err != nil {
				return err
			}
		}
		// Neighbours go in one write.
		for len(puts) > 0 {
			n := 1
			for n < len(puts) && puts[n].slot == puts[0].slot+n && n*c.slotSize() < ioBytes {
				n++
			}
			buf := slices.Grow(s.buf[:0], n*c.slotSize())[:n*c.slotSize()]
			s.buf = buf
			for j, p := range puts[:n] {
				r := record{p.entry.Queue, p.id, p.entry.Expires, p.entry.Blob}
				putSlot(buf[j*c.slotSize():][:c.slotSize()], uint32(p.slot), r)
			}
			if err := c.write(buf, c.offset(puts[0].slot)); err != nil {
				return err
			}
			puts = puts[n:]
		}
	}
	return nil
}

// undo takes back the writes of a batch's entries for which the disk has no
// room: why. Their slots were free before, and are so again.
func (s *Spool) undo(g *group, b *batch, why error) error {
	for i, c := range s.classes {
		for _, p := range b.puts[i] {
			c.release(p.slot)
			if p.slot >= b.slots[i] {
				continue // cut below
			}
			if err := c.clear(p.slot); err != nil {
				return err
			}
		}
		if c.slots == b.slots[i] {
			continue
		}
		s.bytes -= c.offset(c.slots) - c.offset(b.slots[i])
		if err := c.cut(b.slots[i]); err != nil {
			return err
		}
	}
	for _, c := range g.calls {
		if len(c.puts) > 0 && c.err == nil {
			c.err = why
		}
	}
	clear(b.puts)
	g.leaves = nil
	return nil
}

// apply shows everybody what is durable now.
func (s *Spool) apply(g *group, b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range b.deletes {
		if s.index.remove(d.Queue, d.ID) { // else it was lost meanwhile, and its slot waits among the bad ones
			s.classes[d.item.class()].release(int(d.item.slot))
		}
	}
	for _, bad := range b.bad {
		s.classes[bad.class].release(bad.slot)
	}
	for _, c := range g.calls {
		if c.err != nil {
			continue
		}
		for i, e := range c.puts {
			class := s.classFor(len(e.Blob))
			s.index.add(e.Queue, newItem(c.id+uint64(i), e.Expires, class.index, uint32(c.slots[i]), len(e.Blob), c.tags[i]))
		}
	}
	s.attestAgain(g)
	s.measure()
}

// attestAgain adds the entries that are to be attested again to the group's
// leaves. What the group deletes is gone by now.
func (s *Spool) attestAgain(g *group) {
	for _, c := range g.calls {
		if c.again == nil || c.err != nil {
			continue
		}
		if _, ok := s.index.find(c.again.Queue, c.again.ID); !ok {
			c.err = ErrNotFound
			continue
		}
		c.leaf = len(g.leaves)
		g.leaves = append(g.leaves, c.again.leaf)
	}
}

// makeRoom gives the space that other sizes do not use to the sizes that a
// group needs, as far as there is any.
func (s *Spool) makeRoom(g *group) error {
	need := make([]int, len(s.classes))
	puts := false
	for _, c := range g.calls {
		for _, e := range c.puts {
			need[s.classFor(len(e.Blob)).index]++
			puts = true
		}
	}
	if !puts {
		return nil
	}
	short := s.bytes - s.cfg.Quota
	for i, c := range s.classes {
		short += int64(max(need[i]-c.free, 0)) * int64(c.slotSize())
	}
	for i, c := range s.classes {
		if short <= 0 {
			break
		}
		// A little more than needed, so that few groups pay for it.
		slots := min(c.free-need[i], int((max(short, growBytes)-1)/int64(c.slotSize()))+1)
		if slots <= 0 {
			continue
		}
		if err := s.shrink(c, slots); err != nil {
			return err
		}
		short -= int64(slots * c.slotSize())
	}
	return nil
}

// shrink takes free slots from a file: entries in its last ones move down, and
// it is cut. The moved entries are durable before that. A crash in between
// leaves two copies, of which Open clears one.
func (s *Spool) shrink(c *class, slots int) error {
	type move struct {
		Key
		from item
		to   int
	}
	var moves []move
	keep := c.slots - slots
	b := make([]byte, c.slotSize())
	for slot := keep; slot < c.slots; slot++ {
		if !c.isUsed(slot) {
			continue
		}
		q, it, ok := s.itemAt(c, slot, b)
		if !ok {
			continue
		}
		r, state := parseSlot(b, uint32(slot))
		if state != slotValid || r.queue != q || r.id != it.id {
			s.lose(q, it)
			continue
		}
		// There are as many free slots below keep as used ones from there on,
		// since slots is not more than what is free.
		to := c.take()
		putSlot(b, uint32(to), record{r.queue, r.id, r.expires, slices.Clone(r.blob)})
		if err := c.write(b, c.offset(to)); err != nil {
			return err
		}
		moves = append(moves, move{Key{q, it.id}, it, to})
	}
	if len(moves) > 0 {
		if err := c.sync(); err != nil {
			return err
		}
	}

	s.mu.Lock()
	for _, m := range moves {
		if it, ok := s.index.find(m.Queue, m.ID); ok && it == m.from {
			s.index.move(m.Queue, m.ID, uint32(m.to))
			c.release(int(m.from.slot))
		} else { // lost meanwhile
			s.bad = append(s.bad, bad{c.index, m.to})
		}
	}
	s.bad = slices.DeleteFunc(s.bad, func(x bad) bool {
		if x.class != c.index || x.slot < keep {
			return false
		}
		c.release(x.slot) // and gone with the end of the file
		return true
	})
	s.mu.Unlock()

	s.bytes -= c.offset(c.slots) - c.offset(keep)
	if err := c.cut(keep); err != nil {
		return err
	}
	return c.sync()
}

// itemAt reads a slot into b and returns the entry that is known to be in it, if
// it was not lost. b holds zeros if the disk cannot read.
func (s *Spool) itemAt(c *class, slot int, b []byte) (q Queue, it item, ok bool) {
	if _, err := c.file.ReadAt(b, c.offset(slot)); err != nil {
		clear(b)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r, state := parseSlot(b, uint32(slot)); state == slotValid {
		if it, ok := s.index.find(r.queue, r.id); ok && it.class() == c.index && int(it.slot) == slot {
			return r.queue, it, true
		}
	}
	// What it says is wrong: look for who should be there.
	for q, items := range s.index.queues {
		for _, it := range items.items {
			if it.class() == c.index && int(it.slot) == slot {
				return q, it, true
			}
		}
	}
	return Queue{}, item{}, false
}
