package spool

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
)

// A file is what a spool needs of one. Sync makes all that was written before
// durable, with the file's length. Writes that were not synced may be kept in a
// crash or not, each 512 bytes by themselves.
type file interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() (int64, error)
	Truncate(size int64) error
	io.Closer
}

// A folder is where the files of a spool are, locked.
type folder interface {
	// open opens a file, and makes it if it is not there; its name is durable.
	open(name string) (file, error)
	names() ([]string, error)
	io.Closer // unlocks
}

const ioBytes = 1 << 20 // at most, but for one slot, in one read or write

// A class is the slots of one size. It belongs to the writer; what others may
// read of it is copied to [Usage] in time.
type class struct {
	index   int  // among the spool's classes
	size    int  // of the largest blob
	current bool // configured: takes new entries
	file    file

	used   []uint64 // a bit for each slot: 1 if it holds an entry, or one that is on its way
	slots  int      // in the file, or soon
	free   int      // of these
	hint   int      // no slot below it is free
	onDisk int      // slots within the length of the file

	bound uint64 // on disk; no ID at or above it was given out
	turn  int    // copy of the header to write next
	dirty bool   // written and not yet synced
}

func (c *class) slotSize() int { return slotHeader + c.size }

func (c *class) offset(slot int) int64 { return firstSlot + int64(slot)*int64(c.slotSize()) }

// bytes is the length of the file, or will be soon.
func (c *class) bytes() int64 { return c.offset(c.slots) }

func (c *class) isUsed(slot int) bool { return c.used[slot/64]>>(slot%64)&1 == 1 }

// take returns the first free slot and marks it; there must be one.
func (c *class) take() int {
	for w := c.hint / 64; ; w++ {
		if c.used[w] != ^uint64(0) {
			slot := w*64 + bits.TrailingZeros64(^c.used[w])
			c.mark(slot)
			c.hint = slot + 1
			return slot
		}
	}
}

func (c *class) mark(slot int) {
	c.used[slot/64] |= 1 << (slot % 64)
	c.free--
}

func (c *class) release(slot int) {
	if !c.isUsed(slot) {
		panic("spool: internal error: a slot was freed twice; every release follows the removal of its one entry")
	}
	c.used[slot/64] &^= 1 << (slot % 64)
	c.free++
	c.hint = min(c.hint, slot)
}

// resize sets the number of slots; those above must be free.
func (c *class) resize(slots int) {
	c.free += slots - c.slots
	c.slots = slots
	words := (slots + 63) / 64
	for len(c.used) < words {
		c.used = append(c.used, 0)
	}
	c.used = c.used[:words]
	c.hint = min(c.hint, slots)
}

// write writes at an offset and remembers that it needs a sync.
func (c *class) write(b []byte, off int64) error {
	c.dirty = true
	if _, err := c.file.WriteAt(b, off); err != nil {
		return diskError("writing a slot", err)
	}
	return nil
}

// clear makes a slot free on disk, once it is synced.
func (c *class) clear(slot int) error {
	return c.write(make([]byte, slotHeader), c.offset(slot))
}

// extend writes the slots that the file does not have yet. They are written
// rather than left as a hole, since a sync takes less than half the time if the
// file has its blocks already.
func (c *class) extend() error {
	for at, end := c.offset(c.onDisk), c.bytes(); at < end; {
		n := min(end-at, ioBytes)
		if err := c.write(make([]byte, n), at); err != nil {
			return err
		}
		at += n
	}
	c.onDisk = c.slots
	return nil
}

// cut drops the slots from the given one on. They are free on disk too.
func (c *class) cut(slots int) error {
	c.resize(slots)
	c.onDisk = min(c.onDisk, slots)
	c.dirty = true
	if err := c.file.Truncate(c.offset(slots)); err != nil {
		return diskError("cutting a file", err)
	}
	return nil
}

// writeBound makes bound the one of the file.
func (c *class) writeBound(bound uint64) error {
	if err := c.write(marshalHeader(c.size, bound), int64(c.turn)*headerStep); err != nil {
		return err
	}
	c.bound, c.turn = bound, (c.turn+1)%headers
	return nil
}

func (c *class) sync() error {
	if !c.dirty {
		return nil
	}
	if err := c.file.Sync(); err != nil {
		return diskError("syncing a file", err)
	}
	c.dirty = false
	return nil
}

// load reads the whole file and calls each for every entry, in order of slots.
// It returns how many slots were damaged. Nothing is written but the headers of
// a new file.
func (c *class) load(each func(slot int, r record)) (damaged int, err error) {
	size, err := c.file.Size()
	if err != nil {
		return 0, diskError("measuring a file", err)
	}
	fresh, err := c.loadHeader(size)
	if err != nil || fresh {
		return 0, err
	}
	count := max(size-firstSlot, 0) / int64(c.slotSize())
	if count > maxSlots {
		return 0, fmt.Errorf("file of %d slots: %w", count, ErrTooBig)
	}
	c.resize(int(count))
	c.onDisk = c.slots

	step := max(ioBytes/c.slotSize(), 1)
	buf := make([]byte, step*c.slotSize())
	for first := 0; first < c.slots; first += step {
		n := min(step, c.slots-first)
		b := buf[:n*c.slotSize()]
		_, err := c.file.ReadAt(b, c.offset(first))
		whole := err == nil
		for i := range n {
			b, slot := b[i*c.slotSize():][:c.slotSize()], first+i
			if !whole { // the disk cannot read some of them: find out which
				if _, err := c.file.ReadAt(b, c.offset(slot)); errors.Is(err, ErrClosed) {
					return 0, err
				} else if err != nil {
					damaged++
					continue
				}
			}
			switch r, state := parseSlot(b, uint32(slot)); state {
			case slotNewer:
				return 0, ErrNewer
			case slotDamaged:
				damaged++
			case slotValid:
				each(slot, r)
			case slotFree:
			}
		}
	}
	return damaged, nil
}

// loadHeader reads the headers, or writes those of a new file.
func (c *class) loadHeader(size int64) (fresh bool, err error) {
	var states [headers]slotState
	for i := range headers {
		var b [fileHeader]byte
		if _, err := c.file.ReadAt(b[:], int64(i)*headerStep); errors.Is(err, ErrClosed) {
			return false, err
		} else if err != nil {
			states[i] = slotDamaged // beyond the end, or unreadable
			continue
		}
		bound, state := parseHeader(b[:], c.size)
		if states[i] = state; state == slotValid && bound >= c.bound {
			c.bound, c.turn = bound, (i+1)%headers
		}
	}
	switch {
	case slices.Contains(states[:], slotValid):
		return false, nil
	case slices.Contains(states[:], slotNewer):
		return false, ErrNewer
	case size > firstSlot:
		return false, fmt.Errorf("reading the headers of the file for %d bytes: %w", c.size, ErrDamaged)
	}
	// New, or its making was cut short: no slot is written before this is synced.
	for range headers {
		if err := c.writeBound(0); err != nil {
			return false, err
		}
	}
	if err := c.cut(0); err != nil { // to whole headers
		return false, err
	}
	return true, c.sync()
}
