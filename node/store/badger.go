package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Sizes of badger, kept small: its defaults cost hundreds of MiB.
const (
	memTableSize   = 12 << 20  // bytes; twice that in the log of each table. One commit may be 15 % of it: see MaxUpdate
	blockCacheSize = 2 << 20   // bytes; zero panics with encryption
	indexCacheSize = 8 << 20   // bytes, taken as needed; an index that does not fit is decrypted for every block read. Zero panics with encryption
	logFileSize    = 16 << 20  // bytes of a value log file
	valueThreshold = 512 << 10 // bytes; values from this size on go to the value log
)

// resident is the size of tables from which on badger is opened again after
// they were verified: about 30 ms against their size in memory.
const resident = 8 << 20 // bytes

// reserve is the space below which commits are refused. Badger writes through
// memory maps, where a full disk is not an error but a SIGBUS that no program
// survives; so it must not come to that. It covers a memory table's log, its
// flush and a compaction.
const reserve = 64 << 20 // bytes

// A badgerEngine is the engine on disk. It is the only user of badger in the
// house.
type badgerEngine struct {
	db    *badger.DB
	dir   string
	log   *slog.Logger
	space func(dir string) (free uint64, err error)
	busy  busyKeys

	// Why a commit failed, nil if none did. Badger may be without a memory
	// table then: it panics where it is read, and never ends where it is closed.
	failed atomic.Pointer[error]
	wrote  bool // since it was opened; the writer's, and then that of close
}

// openBadger opens the database in dir, which the caller has locked.
func openBadger(dir string, key []byte, log *slog.Logger) (*badgerEngine, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, diskError("making the folder", err)
	}
	e := &badgerEngine{dir: dir, log: log, space: freeSpace}
	if err := e.room(); err != nil {
		return nil, err
	}
	opt := badger.DefaultOptions(dir).
		WithLogger(badgerLog{log}).
		WithSyncWrites(true).
		WithEncryptionKey(key).
		WithMemTableSize(memTableSize).
		WithNumMemtables(2).
		WithNumCompactors(2).
		WithBlockCacheSize(blockCacheSize).
		WithIndexCacheSize(indexCacheSize).
		WithValueLogFileSize(logFileSize).
		WithValueThreshold(valueThreshold).
		WithCompression(options.None). // sealed values do not shrink
		WithChecksumVerificationMode(options.OnBlockRead).
		WithMetricsEnabled(false).
		WithDetectConflicts(false) // one writer
	var err error
	for range 2 {
		// A crash between making a memory table's log and giving it its size
		// leaves an empty file, on which badger stops (its issue 2207). There
		// is nothing in it.
		if err := removeEmptyTables(dir); err != nil {
			return nil, err
		}
		if e.db, err = tryBadger(opt); err == nil {
			e.busy.load(e.db)
			return e, nil
		}
		if !strings.Contains(err.Error(), "Create a new file") {
			break
		}
	}
	return nil, err
}

// tryBadger opens badger and reads every block once. Later a block that does
// not match its checksum would end a scan without an error.
func tryBadger(opt badger.Options) (db *badger.DB, err error) {
	defer func() {
		if p := recover(); p != nil { // what bad bytes do to its parsers
			db, err = nil, fmt.Errorf("opening the database: %w: %v", ErrDamaged, p)
		}
	}()
	db, err = badger.Open(opt)
	switch {
	case errors.Is(err, badger.ErrEncryptionKeyMismatch):
		return nil, ErrKey
	case err != nil:
		return nil, diskError("opening the database", err)
	}
	if err := verify(db); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the database: %w", err), db.Close())
	}
	if tablesSize(opt.Dir) <= resident {
		return db, nil
	}
	// What was read stays mapped, and counts as this process's memory.
	if err := db.Close(); err != nil {
		return nil, diskError("closing the database", err)
	}
	if db, err = badger.Open(opt); err != nil {
		return nil, diskError("opening the database", err)
	}
	return db, nil
}

func tablesSize(dir string) (size int64) {
	names, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		panic("store: internal error: a constant pattern")
	}
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			size += info.Size()
		}
	}
	return size
}

func verify(db *badger.DB) (err error) {
	defer func() {
		if recover() != nil {
			err = ErrDamaged
		}
	}()
	if err := db.VerifyChecksum(); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

func removeEmptyTables(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		panic("store: internal error: a constant pattern")
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if err == nil && info.Size() == 0 {
			err = os.Remove(name)
		}
		if err != nil {
			return diskError("removing an empty table", err)
		}
	}
	return nil
}

// room returns ErrFull if the disk has less than the reserve.
func (e *badgerEngine) room() error {
	free, err := e.space(e.dir)
	if err != nil {
		return diskError("asking for free space", err)
	}
	if free < reserve {
		return fmt.Errorf("%w: %d MiB left, %d needed", ErrFull, free>>20, uint64(reserve)>>20)
	}
	return nil
}

func (e *badgerEngine) commit(ops []op) error {
	if err := e.room(); err != nil {
		return err
	}
	e.wrote = true
	txn := e.db.NewTransaction(true)
	defer txn.Discard()
	for _, o := range ops {
		var err error
		if o.value == nil {
			err = txn.Delete([]byte(o.key))
		} else {
			err = txn.Set([]byte(o.key), o.value)
		}
		if errors.Is(err, badger.ErrTxnTooBig) {
			panic("store: internal error: MaxUpdate bounds what a commit writes")
		}
		if err != nil {
			return diskError("writing", err)
		}
	}
	if err := e.busy.commit(ops, txn.Commit); err != nil {
		return e.fail(diskError("committing", err))
	}
	return nil
}

// fail notes that a commit failed, for good. What badger says of it goes to the
// log where there is a plain word for it.
func (e *badgerEngine) fail(err error) error {
	e.log.Error("a commit failed", "error", err)
	for _, plain := range []error{ErrFull, ErrReadOnly} {
		if errors.Is(err, plain) {
			err = plain
		}
	}
	err = fmt.Errorf("%w: %w", ErrReopen, err)
	e.failed.Store(&err)
	return err
}

func (e *badgerEngine) snapshot() (snapshot, error) {
	if err := e.failed.Load(); err != nil {
		return nil, *err
	}
	txn, busy := e.busy.snapshot(e.db)
	return badgerSnapshot{txn, busy}, nil
}

func (e *badgerEngine) collect() (bool, error) {
	if err := e.failed.Load(); err != nil {
		return true, *err
	}
	if err := e.room(); err != nil {
		return true, err
	}
	err := e.db.RunValueLogGC(0.5)
	if errors.Is(err, badger.ErrNoRewrite) || errors.Is(err, badger.ErrRejected) {
		return true, nil
	}
	return err != nil, err
}

// closeRoom is the space below which badger is not closed but left: its end
// writes the memory tables, which on a full disk is a SIGBUS as above.
const closeRoom = 2 * memTableSize // bytes

// close ends badger, or where that cannot succeed leaves it as a crash does.
// Nothing is lost by that, as every commit is in a synced log; but the database
// cannot be opened again in this process.
func (e *badgerEngine) close() error {
	free, err := freeSpace(e.dir)
	if full := err == nil && free < closeRoom && e.wrote; full || e.failed.Load() != nil {
		e.log.Warn("database left as after a crash; the next start puts it in order", "disk_full", full)
		return nil
	}
	return e.db.Close()
}

// A badgerSnapshot is a read-only transaction. Errors say nothing of keys,
// which badger's own texts do.
type badgerSnapshot struct {
	txn  *badger.Txn
	busy *tree // keys of the busy tables, or nil
}

func (s badgerSnapshot) get(key string) ([]byte, error) {
	item, err := s.txn.Get([]byte(key))
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		return nil, nil
	case errors.Is(err, badger.ErrDBClosed):
		return nil, ErrClosed
	case err != nil:
		return nil, unreadable(key)
	}
	b, err := item.ValueCopy(nil)
	if err != nil {
		return nil, unreadable(key)
	}
	return b, nil
}

func unreadable(key string) error {
	return fmt.Errorf("reading a row of %s: %w", tableOf(key).name, ErrDamaged)
}

func (s badgerSnapshot) walk(prefix, from string, backward bool) cursor {
	if s.busy != nil && tableOf(prefix).busy {
		return &busyCursor{prefixCursor{c: s.busy.walk(from, backward), prefix: prefix}, s}
	}
	it := s.txn.NewIterator(badger.IteratorOptions{Reverse: backward, Prefix: []byte(prefix)})
	it.Seek([]byte(from))
	return badgerCursor{it}
}

func (s badgerSnapshot) discard() { s.txn.Discard() }

type badgerCursor struct{ it *badger.Iterator }

func (c badgerCursor) key() (string, bool) {
	if !c.it.Valid() {
		return "", false
	}
	return string(c.it.Item().Key()), true
}

func (c badgerCursor) value() ([]byte, error) {
	b, err := c.it.Item().ValueCopy(nil)
	if err != nil {
		return nil, unreadable(string(c.it.Item().Key()))
	}
	return b, nil
}

func (c badgerCursor) next()  { c.it.Next() }
func (c badgerCursor) close() { c.it.Close() }

// badgerLog routes badger's log into ours. It passes on the message but for
// its arguments, among which are keys, and keys name accounts.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(format string, args ...any)   { l.put(slog.LevelWarn, format) }
func (l badgerLog) Warningf(format string, args ...any) { l.put(slog.LevelInfo, format) }
func (l badgerLog) Infof(format string, args ...any)    { l.put(slog.LevelDebug, format) }
func (l badgerLog) Debugf(format string, args ...any)   { l.put(slog.LevelDebug, format) }

func (l badgerLog) put(level slog.Level, format string) {
	l.log.Log(context.Background(), level, "badger", "message", strings.TrimSpace(format))
}
