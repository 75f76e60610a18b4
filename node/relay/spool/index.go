package spool

import (
	"bytes"
	"cmp"
	"slices"
)

// An item is an entry as it is kept in memory: 32 bytes.
type item struct {
	id      uint64
	expires int64  // Unix seconds
	slot    uint32 // in its file
	what    uint32 // which file in the upper 8 bits, length of the blob in the lower 24
	tag     uint64 // of the blob: see Spool.tag
}

func newItem(id uint64, expires int64, class int, slot uint32, length int, tag uint64) item {
	return item{id, expires, slot, uint32(class)<<24 | uint32(length), tag}
}

func (it item) class() int  { return int(it.what >> 24) }
func (it item) length() int { return int(it.what & (1<<24 - 1)) }

// queueItems are the entries of one queue in order of ID.
type queueItems struct {
	items []item
	bytes int64 // of blobs
}

func (q *queueItems) search(id uint64) (int, bool) {
	return slices.BinarySearchFunc(q.items, id, func(it item, id uint64) int { return cmp.Compare(it.id, id) })
}

// An index finds entries. It holds no queue that is empty.
type index struct {
	queues map[Queue]*queueItems
	count  int
}

func (x *index) find(q Queue, id uint64) (item, bool) {
	if items := x.queues[q]; items != nil {
		if i, ok := items.search(id); ok {
			return items.items[i], true
		}
	}
	return item{}, false
}

// like returns an entry of a queue that expires then and has that tag.
func (x *index) like(q Queue, expires int64, tag uint64) (id uint64, ok bool) {
	if items := x.queues[q]; items != nil {
		for i := range items.items {
			if it := &items.items[i]; it.tag == tag && it.expires == expires {
				return it.id, true
			}
		}
	}
	return 0, false
}

// add adds an entry whose ID is above all others of its queue.
func (x *index) add(q Queue, it item) {
	items := x.queues[q]
	if items == nil {
		items = &queueItems{}
		x.queues[q] = items
	}
	items.items = append(items.items, it)
	items.bytes += int64(it.length())
	x.count++
}

// move notes that an entry is in another slot now.
func (x *index) move(q Queue, id uint64, slot uint32) {
	items := x.queues[q]
	i, _ := items.search(id)
	items.items[i].slot = slot
}

// remove reports whether the entry was there.
func (x *index) remove(q Queue, id uint64) bool {
	items := x.queues[q]
	if items == nil {
		return false
	}
	i, ok := items.search(id)
	if !ok {
		return false
	}
	items.bytes -= int64(items.items[i].length())
	x.count--
	switch {
	case len(items.items) == 1:
		delete(x.queues, q)
	case i == 0:
		items.items = items.items[1:] // the usual order of reading; the next append gives the room back
	default:
		items.items = slices.Delete(items.items, i, i+1)
	}
	return true
}

// cmpItems orders by ID; of two copies of an entry, that in the lower slot is
// first.
func cmpItems(a, b item) int {
	return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.slot, b.slot))
}

func compareQueues(a, b Queue) int { return bytes.Compare(a[:], b[:]) }
