package store

import "io"

// An engine is an ordered map of sealed values. There are two: badger on disk
// and a tree in memory; store_test.go holds what both promise.
type engine interface {
	// snapshot returns the state after the newest commit that returned. It is
	// safe for concurrent use; discard it.
	snapshot() (snapshot, error)
	// commit applies ops whole or not at all and returns once they are durable.
	// It is called from one goroutine at a time. ErrFull and ErrReadOnly mean
	// that nothing happened; after any other error that is unknown, and it is
	// not called again, or in vain after ErrClosed.
	commit(ops []op) error
	// collect gives space back to the disk; done once there is nothing to gain.
	collect() (done bool, err error)
	// close waits for what the engine runs. No snapshot may be in use.
	close() error
}

// An op sets a key, or deletes it if value is nil. The engine owns both after
// commit is called.
type op struct {
	key   string
	value []byte
}

// A snapshot is a state of an engine that later commits do not change. It
// serves one goroutine at a time.
type snapshot interface {
	// get returns a copy of key's value, nil if there is none.
	get(key string) ([]byte, error)
	// walk returns a cursor over the keys that begin with prefix, at the first
	// ≥ from or, backward, ≤ from. Close it before discard.
	walk(prefix, from string, backward bool) cursor
	discard()
}

// A cursor walks over rows in one direction.
type cursor interface {
	// key returns the key it stands on; ok is false at the end.
	key() (key string, ok bool)
	// value returns a copy of the value it stands on.
	value() ([]byte, error)
	next()
	close()
}

// A folder holds the few small files beside the engine. Names are constants of
// this package.
type folder interface {
	// read returns a file's bytes, or fs.ErrNotExist.
	read(name string) ([]byte, error)
	// replace sets a file's bytes: whole or not at all, durable when it returns,
	// and the old bytes overwritten where the file system does that in place.
	replace(name string, data []byte) error
	// poke overwrites the start of an existing file in place. What a crash of
	// the machine does not keep is no error.
	poke(name string, data []byte) error
	io.Closer
}
