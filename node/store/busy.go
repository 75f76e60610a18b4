package store

import (
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
)

// An LSM tree keeps every version of a row and a mark for every row deleted
// until it compacts, and an iterator walks over all of them. A scan of a queue
// whose head was just delivered, or of a session that was just written a
// thousand times, would cost what was done, not what is there. The keys of busy
// tables are therefore kept in memory as well, where a scan finds them.

// busyKeys are the keys of the busy tables after each commit.
type busyKeys struct {
	seq  atomic.Uint64 // odd while a commit runs
	keys atomic.Pointer[tree]
}

// load reads the keys once, when the database is opened.
func (b *busyKeys) load(db *badger.DB) {
	txn := db.NewTransaction(false)
	defer txn.Discard()
	var keys tree
	for _, t := range all {
		if !t.busy {
			continue
		}
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{t.id}})
		for it.Rewind(); it.Valid(); it.Next() {
			keys = keys.put(string(it.Item().Key()), nil)
		}
		it.Close()
	}
	b.keys.Store(&keys)
}

// commit runs write, and follows what it wrote if it succeeds. It is called
// from one goroutine at a time.
func (b *busyKeys) commit(ops []op, write func() error) error {
	b.seq.Add(1)
	defer b.seq.Add(1)
	if err := write(); err != nil {
		return err
	}
	keys := *b.keys.Load()
	for _, o := range ops {
		switch {
		case !tableOf(o.key).busy:
		case o.value == nil:
			keys = keys.remove(o.key)
		default:
			keys = keys.put(o.key, nil)
		}
	}
	b.keys.Store(&keys)
	return nil
}

// snapshot begins a transaction and returns the keys at that moment, or nil if
// a commit ran meanwhile and the two may differ.
func (b *busyKeys) snapshot(db *badger.DB) (*badger.Txn, *tree) {
	before := b.seq.Load()
	txn, keys := db.NewTransaction(false), b.keys.Load()
	if before%2 != 0 || b.seq.Load() != before {
		return txn, nil
	}
	return txn, keys
}

// A busyCursor walks over the keys in memory and reads values from badger.
type busyCursor struct {
	prefixCursor
	s badgerSnapshot
}

func (c *busyCursor) value() ([]byte, error) {
	key, _ := c.key()
	b, err := c.s.get(key)
	if b == nil && err == nil {
		return nil, unreadable(key)
	}
	return b, err
}
