package store

import (
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"math"
	"strings"
)

// MaxUpdate bounds what one [DB.Update] writes, as the sum over its writes of
// key, row and [rowCost]. It is what fits into one badger transaction.
const MaxUpdate = 1792 << 10 // bytes

// rowCost is what a row costs beside its own bytes: seals, headers, index.
const rowCost = 112 // bytes

// maxGroup is the most functions that share one commit. It bounds how long the
// first of them waits for the others.
const maxGroup = 256

// A Tx is the view that a function given to [DB.View] or [DB.Update] has of
// the database. It is not safe for concurrent use and dead when the function
// returns.
type Tx struct {
	db       *DB
	ring     *ring
	snap     snapshot
	pending  tree // uncommitted rows, unsealed; nil for deleted
	log      []op // the writes of the function that runs now, in order
	cost     int  // of log
	hooks    []func()
	writable bool
	over     bool
}

func (tx *Tx) check() {
	if tx.over {
		panic("store: internal error: transaction used after its function returned")
	}
}

// get returns the row at place, which the caller owns; nil if there is none.
func (tx *Tx) get(place string) ([]byte, error) {
	tx.check()
	if raw, ok := tx.pending.get(place); ok {
		return raw, nil // parsing does not change it
	}
	b, err := tx.snap.get(place)
	if b == nil || err != nil {
		return nil, err
	}
	return tx.db.openRow(tx.ring, place, b)
}

func (tx *Tx) has(place string) (bool, error) {
	tx.check()
	if raw, ok := tx.pending.get(place); ok {
		return raw != nil, nil
	}
	b, err := tx.snap.get(place)
	return b != nil, err
}

// put sets the row at place, which tx then owns; nil deletes.
func (tx *Tx) put(place string, raw []byte) error {
	if tableOf(place).secret {
		tx.db.active.Store(true)
	}
	return tx.write(place, raw)
}

// write is put where nothing is there to be erased.
func (tx *Tx) write(place string, raw []byte) error {
	tx.check()
	if !tx.writable {
		panic("store: internal error: write in a View")
	}
	cost := len(place) + len(raw) + rowCost
	if tx.cost+cost > MaxUpdate {
		return ErrTooBig
	}
	tx.cost += cost
	tx.pending = tx.pending.put(place, raw)
	tx.log = append(tx.log, op{place, raw})
	return nil
}

// scan yields the places under prefix and how to read the row at each, which
// works until the next one is asked for.
func (tx *Tx) scan(prefix, from string, backward bool) iter.Seq2[string, func() ([]byte, error)] {
	return func(yield func(string, func() ([]byte, error)) bool) {
		tx.check()
		if !strings.HasPrefix(from, prefix) {
			switch {
			case !backward && from < prefix:
				from = prefix
			case backward && from > prefix:
				from = first(prefix, backward)
			default:
				return // from lies behind all rows
			}
		}
		stored := tx.snap.walk(prefix, from, backward)
		defer stored.close()
		fresh := &prefixCursor{c: tx.pending.walk(from, backward), prefix: prefix}
		for {
			s, sok := stored.key()
			f, fok := fresh.key()
			switch {
			case !sok && !fok:
				return
			case fok && (!sok || s == f || (f < s) != backward):
				raw := fresh.c.at().value
				if raw != nil && !yield(f, func() ([]byte, error) { return raw, nil }) {
					return
				}
				fresh.next()
				if sok && s == f {
					stored.next()
				}
			default:
				if !yield(s, func() ([]byte, error) {
					b, err := stored.value()
					if err != nil {
						return nil, err
					}
					return tx.db.openRow(tx.ring, s, b)
				}) {
					return
				}
				stored.next()
			}
		}
	}
}

// A mark is where a transaction can go back to.
type mark struct {
	pending   tree
	log, hook int
	cost      int
}

func (tx *Tx) mark() mark { return mark{tx.pending, len(tx.log), len(tx.hooks), tx.cost} }

func (tx *Tx) rollback(m mark) {
	tx.pending, tx.log, tx.hooks, tx.cost = m.pending, tx.log[:m.log], tx.hooks[:m.hook], m.cost
}

// Try runs fn as a part of the transaction: if it returns an error or panics,
// what it wrote and its OnCommit functions are discarded, and what came before
// stays.
func (tx *Tx) Try(fn func(*Tx) error) error {
	m, done := tx.mark(), false
	defer func() {
		if !done {
			tx.rollback(m)
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	done = true
	return nil
}

// Digest returns a hash of what the function that runs now has written so far,
// in whatever table, and what [Tx.Try] discarded left out. Two that are equal
// mean that nothing was written between them.
func (tx *Tx) Digest() (sum [sha256.Size]byte) {
	tx.check()
	h := sha256.New()
	var size [16]byte
	for _, o := range tx.log {
		n := uint64(len(o.value))
		if o.value == nil {
			n = math.MaxUint64 // deleted
		}
		binary.BigEndian.PutUint64(size[:8], uint64(len(o.key)))
		binary.BigEndian.PutUint64(size[8:], n)
		h.Write(size[:])
		h.Write([]byte(o.key))
		h.Write(o.value)
	}
	h.Sum(sum[:0])
	return sum
}

// OnCommit has fn run once the transaction is durable, before [DB.Update]
// returns: in the order of the calls, on the writer's goroutine. It must not
// block, call the database or panic. In a View it is not called.
func (tx *Tx) OnCommit(fn func()) {
	tx.check()
	tx.hooks = append(tx.hooks, fn)
}

// ops returns what the engine has to do, sealed.
func (tx *Tx) ops(r *ring) (ops []op, err error) {
	tx.pending.each(func(place string, raw []byte) bool {
		o := op{key: place}
		if raw != nil {
			if o.value, err = tx.db.sealRow(r, place, raw); err != nil {
				return false
			}
		}
		ops = append(ops, o)
		return true
	})
	return ops, err
}

// carve returns a transaction's pending rows without those before m.
func (tx *Tx) carve(m mark) (t tree) {
	for _, o := range tx.log[m.log:] {
		t = t.put(o.key, o.value)
	}
	return t
}
