package store

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
)

// message is a row's type: a generated struct whose pointer is a message.
type message[T any] interface {
	*T
	proto.Message
}

// A Table is one kind of row under one kind of key. Its methods are safe
// wherever the transaction is: only within the function that got it.
type Table[T any, P message[T]] struct{ t *table }

// A table is what the database knows of a Table.
type table struct {
	id     byte
	name   string
	size   int // of a key in bytes; -1: up to maxKey
	secret bool
	busy   bool // rows come and go or change often, and are scanned: see busy.go
	// dies returns when a row dies in unix milliseconds, 0 for never; nil if no
	// row does. Rows are swept at most every pause.
	dies  func(raw []byte) (int64, error)
	pause time.Duration
}

// maxKey bounds keys of tables without a fixed size.
const maxKey = 255 // bytes

func newTable[T any, P message[T]](t table) Table[T, P] { return Table[T, P]{&t} }

// place returns the engine key of a row, or of rows with a common beginning.
func (t *table) place(k RowKey) string { return string(append([]byte{t.id}, k...)) }

// full is place for a whole key.
func (t *table) full(k RowKey) string {
	if t.size >= 0 && len(k) != t.size || len(k) > maxKey {
		panic(fmt.Sprintf("store: internal error: a key of %s with %d bytes", t.name, len(k)))
	}
	return t.place(k)
}

// Get returns the row, which the caller owns, or [ErrNotFound].
func (t Table[T, P]) Get(tx *Tx, k RowKey) (P, error) {
	raw, err := tx.get(t.t.full(k))
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return nil, ErrNotFound
	}
	return t.parse(raw)
}

// Has reports whether the row exists, without opening it.
func (t Table[T, P]) Has(tx *Tx, k RowKey) (bool, error) { return tx.has(t.t.full(k)) }

// Put sets the row; the caller keeps it. The error is [ErrTooBig], or the
// disk's.
func (t Table[T, P]) Put(tx *Tx, k RowKey, row P) error {
	raw, err := proto.MarshalOptions{}.MarshalAppend([]byte{}, row) // not nil, which deletes
	if err != nil {
		return fmt.Errorf("store: writing a row of %s: %w", t.t.name, err)
	}
	return tx.put(t.t.full(k), raw)
}

// Delete removes the row; that there is none is no error.
func (t Table[T, P]) Delete(tx *Tx, k RowKey) error { return tx.put(t.t.full(k), nil) }

// A Row is what a scan yields; the receiver owns both.
type Row[P any] struct {
	Key   RowKey
	Value P
}

// Scan yields the rows whose keys begin with prefix, in order, from the first
// key ≥ from; a nil from is the first of all. It sees the writes of its own
// transaction that came before it, and none that are made while it runs, so
// rows may be changed and deleted on the way.
//
// With an error the row's value is nil. After [ErrDamaged] the key is set and
// the scan goes on if the loop does, so that one bad row does not hide the
// others; any other error is the last.
func (t Table[T, P]) Scan(tx *Tx, prefix, from RowKey) iter.Seq2[Row[P], error] {
	return t.scan(tx, prefix, from, false)
}

// ScanBack is [Table.Scan] in descending order, from the last key ≤ from; a
// nil from is the last of all.
func (t Table[T, P]) ScanBack(tx *Tx, prefix, from RowKey) iter.Seq2[Row[P], error] {
	return t.scan(tx, prefix, from, true)
}

func (t Table[T, P]) scan(tx *Tx, prefix, from RowKey, backward bool) iter.Seq2[Row[P], error] {
	return func(yield func(Row[P], error) bool) {
		start := t.t.place(from)
		if from == nil {
			start = first(t.t.place(prefix), backward)
		}
		for place, raw := range tx.scan(t.t.place(prefix), start, backward) {
			row := Row[P]{Key: RowKey(place[min(1, len(place)):])}
			b, err := raw()
			if err == nil {
				row.Value, err = t.parse(b)
			}
			if !yield(row, err) || err != nil && !errors.Is(err, ErrDamaged) {
				return
			}
		}
	}
}

func (t Table[T, P]) parse(raw []byte) (P, error) {
	row := P(new(T))
	// Unknown fields are kept: a newer program may have written them.
	if err := proto.Unmarshal(raw, row); err != nil {
		return nil, fmt.Errorf("reading a row of %s: %w", t.t.name, errors.Join(ErrDamaged, err))
	}
	return row, nil
}

// first returns where a walk over a prefix begins.
func first(prefix string, backward bool) string {
	if !backward {
		return prefix
	}
	return prefix + last
}

// last is above every key's remainder.
var last = string(slices.Repeat([]byte{0xff}, maxKey+1))

// ignoreDamage drops the error that one bad row causes.
func ignoreDamage(err error) error {
	if errors.Is(err, ErrDamaged) {
		return nil
	}
	return err
}
