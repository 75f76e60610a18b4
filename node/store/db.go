package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// A Config says which database to open and how.
type Config struct {
	// Dir is the database's folder, made if missing; unused in memory.
	Dir string
	// Key is the master key.
	Key Key
	// EraseEvery is the time of activity after which deleted secrets cannot be
	// opened any more. Default 15 min.
	EraseEvery time.Duration
	// Now is the wall clock by which rows die. Default time.Now.
	Now func() time.Time
	// Log receives what an operator should know. Default: discarded.
	Log *slog.Logger
	// Rand is the source of keys and nonces. Default crypto/rand.
	Rand io.Reader
}

// A DB is an open database. Its methods are safe for concurrent use.
type DB struct {
	log        *slog.Logger
	rand       io.Reader
	now        func() time.Time
	eraseEvery time.Duration

	engine engine
	folder folder
	rows   *sealer // outer seal of every row
	files  *sealer // the erase file and the counter file

	ring   atomic.Pointer[ring] // stored by the writer or while it does not run
	active atomic.Bool          // a secret table changed since the last rotation
	rolled atomic.Bool

	jobs    chan *job     // callers send, the writer receives; unbuffered, so that none is left behind by Close
	closing chan struct{} // closed by Close: no more updates
	closed  chan struct{} // closed when Close is done
	chores  chan struct{} // one token: held by whoever rotates or sweeps
	writer  sync.WaitGroup
	once    atomic.Bool
	err     error // of Close; read after closed

	// Owned by the writer, and by Open and Close while it does not run.
	count  uint64 // commits ever
	broken error  // the engine failed in a commit

	mu     sync.Mutex    // guards the two below; never held across a wait
	views  int           // -1 once no more may start
	unused chan struct{} // closed by the last view after Close asked
}

// internal rows.
const (
	rowSchema = "schema"      // version of the layout, u64
	rowCount  = "count"       // commits ever, u64; part of every commit
	rowErase  = "erase"       // ID of the newest erase key rows may be under, u64
	rowRolled = "rolled back" // present until Recovered
)

// schema is the version of the layout: what an older program would misread.
const schema = 1

// Files beside the engine. Both are sealed.
const (
	fileErase = "erase" // the ring of erase keys
	fileCount = "count" // commits ever, u64, and whether the database was closed, u8
)

// OpenMemory opens the database on disk, as [Open] does with a folder.
// [ErrLocked] means that it is still open.
func OpenMemory(cfg Config, disk *Disk) (*DB, error) {
	h, err := disk.open()
	if err != nil {
		return nil, err
	}
	return open(cfg, memoryFolder{h}, func([]byte) (engine, error) { return h, nil })
}

// open makes a DB of its parts, and closes them if it returns an error.
func open(cfg Config, f folder, start func(key []byte) (engine, error)) (_ *DB, err error) {
	db := &DB{
		log:        cfg.Log,
		rand:       cfg.Rand,
		now:        cfg.Now,
		eraseEvery: cfg.EraseEvery,
		folder:     f,
		jobs:       make(chan *job),
		closing:    make(chan struct{}),
		closed:     make(chan struct{}),
		chores:     make(chan struct{}, 1),
		unused:     make(chan struct{}),
	}
	if db.log == nil {
		db.log = slog.New(slog.DiscardHandler)
	}
	if db.rand == nil {
		db.rand = rand.Reader
	}
	if db.now == nil {
		db.now = time.Now
	}
	if db.eraseEvery <= 0 {
		db.eraseEvery = 15 * time.Minute
	}
	db.rows = newSealer(cfg.Key.derive("rows"), db.rand)
	db.files = newSealer(cfg.Key.derive("files"), db.rand)
	defer func() {
		if err != nil {
			if db.engine != nil {
				err = errors.Join(err, db.engine.close())
			}
			err = errors.Join(err, f.Close())
		}
	}()
	if db.engine, err = start(cfg.Key.derive("engine")); err != nil {
		return nil, err
	}
	if err := db.load(); err != nil {
		return nil, err
	}
	db.writer.Go(db.write)
	if db.RolledBack() {
		db.log.Warn("database is older than its counter; secrets that do not open are dropped")
		if err := db.purge(); err != nil {
			close(db.closing)
			db.writer.Wait()
			return nil, err
		}
	}
	return db, nil
}

// load reads what the database knows of itself, makes what is missing, and
// finds out whether it was rolled back.
func (db *DB) load() error {
	snap, err := db.engine.snapshot()
	if err != nil {
		return err
	}
	row := func(name string) (v uint64, err error) {
		place := internal.t.place(MetaKey(name))
		b, err := snap.get(place)
		if err != nil || b == nil {
			return 0, err
		}
		b, ok := db.rows.open(b, place)
		if !ok || len(b) != 8 {
			return 0, fmt.Errorf("opening row %q of %s: %w", name, internal.t.name, ErrDamaged)
		}
		return binary.BigEndian.Uint64(b), nil
	}
	version, errVersion := row(rowSchema)
	count, errCount := row(rowCount)
	erase, errErase := row(rowErase)
	rolled, errRolled := row(rowRolled)
	snap.discard()
	switch err := errors.Join(errVersion, errCount, errErase, errRolled); {
	case errVersion != nil && errors.Is(err, ErrDamaged) && errCount != nil:
		return ErrKey // badger tells before; in memory no row opens
	case err != nil:
		return err
	case version > schema:
		return ErrNewer
	}
	fresh := version == 0

	// The small files. One that is missing or does not open is as good as
	// rolled back: what stood in it cannot be checked.
	keys, errKeys := db.readRing()
	known, clean, errKnown := db.readCount()
	if err := errors.Join(keepUnreadable(errKeys), keepUnreadable(errKnown)); err != nil {
		return err
	}
	if known > count || !fresh && (keys == nil || errKnown != nil || !keys.has(erase)) {
		rolled = 1
	}
	if keys == nil {
		k, err := newEraseKey(db.rand)
		if err != nil {
			return err
		}
		keys = &ring{[]*eraseKey{k}}
		if err := db.writeRing(keys); err != nil {
			return err
		}
	}
	db.ring.Store(keys)
	db.active.Store(!fresh && !clean || len(keys.keys) > 1)
	db.rolled.Store(rolled != 0)
	db.count = max(count, known)

	// Each order is such that a crash in between does not turn one case into
	// another: a new database has its counter first, an old one its mark.
	if fresh {
		if err := db.writeCount(false); err != nil {
			return err
		}
	}
	if fresh || rolled != 0 {
		tx := &Tx{db: db}
		tx.setInternal(rowSchema, schema)
		tx.setInternal(rowErase, keys.keys[0].id)
		if rolled != 0 {
			tx.setInternal(rowRolled, 1)
		}
		if err := db.commit(tx.pending); err != nil {
			return err
		}
	}
	return db.writeCount(false)
}

// keepUnreadable drops the errors that mean a file's content is lost.
func keepUnreadable(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) {
		return nil
	}
	return err
}

func (tx *Tx) setInternal(name string, v uint64) {
	tx.pending = tx.pending.put(internal.t.place(MetaKey(name)), binary.BigEndian.AppendUint64(nil, v))
}

// readRing reads the erase file.
func (db *DB) readRing() (*ring, error) {
	b, err := db.folder.read(fileErase)
	if err != nil {
		return nil, err
	}
	if b, ok := db.files.open(b, fileErase); ok {
		if r := parseRing(b, db.rand); r != nil {
			return r, nil
		}
	}
	return nil, fmt.Errorf("opening the erase file: %w", ErrDamaged)
}

func (db *DB) writeRing(r *ring) error {
	b, err := db.files.seal(nil, r.marshal(), fileErase)
	if err != nil {
		return err
	}
	return db.folder.replace(fileErase, b)
}

// readCount reads the counter file.
func (db *DB) readCount() (count uint64, clean bool, err error) {
	b, err := db.folder.read(fileCount)
	if err != nil {
		return 0, false, err
	}
	if b, ok := db.files.open(b, fileCount); ok && len(b) == 9 {
		return binary.BigEndian.Uint64(b), b[8] == 1, nil
	}
	return 0, false, fmt.Errorf("opening the counter file: %w", ErrDamaged)
}

func (db *DB) sealCount(clean bool) ([]byte, error) {
	b := append(binary.BigEndian.AppendUint64(nil, db.count), 0)
	if clean {
		b[8] = 1
	}
	return db.files.seal(nil, b, fileCount)
}

func (db *DB) writeCount(clean bool) error {
	b, err := db.sealCount(clean)
	if err != nil {
		return err
	}
	return db.folder.replace(fileCount, b)
}

// RolledBack reports that the database is older than it should be, since Open
// and in every later one until [Tx.Recovered]: somebody put back an old copy of
// the database folder, or the erase file is lost. Secret rows that no longer
// open are gone already; others are old. Renew every session before anything is
// sealed under one.
//
// It is found by counting commits, in the database and in a file beside it, so
// it misses two things: an old copy of the whole folder with its files, which
// only peers and the hedge in every message can answer, and the last commits
// before a power failure, after which the file may lag behind.
func (db *DB) RolledBack() bool { return db.rolled.Load() }

// Recovered clears what [DB.RolledBack] reports once the transaction is
// committed; it belongs into the one that renews the sessions.
func (tx *Tx) Recovered() error {
	tx.OnCommit(func() { tx.db.rolled.Store(false) })
	return tx.put(internal.t.place(MetaKey(rowRolled)), nil)
}

// View runs fn on the state of the database after the newest commit; fn runs
// on the caller's goroutine, together with others, and may take its time. The
// error is fn's, [ErrClosed] or the disk's.
func (db *DB) View(fn func(*Tx) error) error {
	if !db.enter() {
		return ErrClosed
	}
	defer db.leave()
	tx, err := db.begin()
	if err != nil {
		return err
	}
	defer tx.end()
	return fn(tx)
}

func (db *DB) enter() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.views < 0 {
		return false
	}
	db.views++
	return true
}

func (db *DB) leave() {
	db.mu.Lock()
	defer db.mu.Unlock()
	switch {
	case db.views > 0:
		db.views--
	case db.views == -2:
		db.views = -1
		close(db.unused)
	default:
		db.views++
	}
}

// begin returns a transaction on the newest snapshot with the erase keys that
// its rows are under: those before and after taking it are the same.
func (db *DB) begin() (*Tx, error) {
	for {
		r := db.ring.Load()
		snap, err := db.engine.snapshot()
		if err != nil {
			return nil, err
		}
		if r == db.ring.Load() {
			return &Tx{db: db, ring: r, snap: snap}, nil
		}
		snap.discard()
	}
}

func (tx *Tx) end() {
	tx.over = true
	tx.snap.discard()
}

// A job is one call of Update. The caller waits for done; the rest is the
// writer's until then.
type job struct {
	fn       func(*Tx) error
	err      error
	panicked any
	exited   bool // fn ended its goroutine
	done     chan struct{}
}

// Update runs fn exactly once, alone, on the database's writer goroutine, and
// returns when what fn wrote is durable. Functions that wait at the same time
// run one after another, each seeing what the ones before it wrote, and share
// one commit.
//
// If fn returns an error, its writes alone are discarded and Update returns
// the error; a panic in fn goes on in the caller. If the commit fails, nothing
// of any of the functions is kept, and the error is [ErrFull], [ErrReadOnly],
// [ErrReopen] or what the disk said.
//
// fn must not block, nor call the database but through its [Tx].
func (db *DB) Update(fn func(*Tx) error) error {
	j := &job{fn: fn, done: make(chan struct{})}
	select {
	case <-db.closing:
		return ErrClosed
	case db.jobs <- j:
	}
	<-j.done
	if j.panicked != nil {
		panic(j.panicked)
	}
	if j.exited {
		runtime.Goexit()
	}
	return j.err
}

// write is the writer: it takes whoever waits into one group, commits it, and
// starts over, until Close.
func (db *DB) write() {
	for {
		select {
		case <-db.closing:
			return
		case j := <-db.jobs:
			db.group(j)
		}
	}
}

// A group is the functions that share a commit.
type group struct {
	db   *DB
	tx   *Tx
	jobs []*job
	cost int
}

func (db *DB) group(j *job) {
	g := &group{db: db}
	for n := 1; ; n++ {
		g.add(j)
		if n == maxGroup {
			break
		}
		select {
		case j = <-db.jobs:
			continue
		default:
		}
		break
	}
	g.finish()
}

// add runs a function within the group. If the group would become too big for
// one commit, what came before is committed first.
func (g *group) add(j *job) {
	if g.tx == nil {
		tx, err := g.db.begin()
		if err == nil && g.db.broken != nil {
			tx.end()
			err = g.db.broken
		}
		if err != nil {
			j.err = err
			close(j.done)
			return
		}
		tx.writable = true
		g.tx = tx
	}
	g.jobs = append(g.jobs, j)
	g.tx.log, g.tx.cost = nil, 0
	m := g.tx.mark()
	g.run(j, m)
	if g.cost+g.tx.cost <= MaxUpdate {
		g.cost += g.tx.cost
		return
	}
	pending, hooks := g.tx.carve(m), g.tx.hooks[m.hook:]
	rest := &group{db: g.db, jobs: []*job{j}, cost: g.tx.cost}
	g.tx.rollback(m)
	g.jobs = g.jobs[:len(g.jobs)-1]
	if err := g.finish(); err != nil {
		j.err = err // it saw what was not kept
		close(j.done)
		return
	}
	tx, err := g.db.begin()
	if err != nil {
		j.err = err
		close(j.done)
		return
	}
	tx.writable, tx.pending, tx.hooks = true, pending, hooks
	rest.tx = tx
	*g = *rest
}

// run calls the function and discards its writes if it does not return nil.
func (g *group) run(j *job, m mark) {
	returned := false
	defer func() {
		if returned && j.err == nil {
			return
		}
		g.tx.rollback(m)
		if returned {
			return
		}
		if j.panicked = recover(); j.panicked != nil {
			g.db.log.Error("panic in an update", "stack", string(debug.Stack()))
			return
		}
		// The function called runtime.Goexit, as a failing test does. This
		// goroutine is lost; another takes its place.
		j.exited = true
		g.db.writer.Go(func() {
			g.finish()
			g.db.write()
		})
	}()
	j.err = j.fn(g.tx)
	returned = true
}

// finish commits the group, runs its hooks and lets its callers go on.
func (g *group) finish() (err error) {
	tx, jobs := g.tx, g.jobs
	if tx == nil {
		return nil
	}
	g.tx, g.jobs, g.cost = nil, nil, 0
	tx.end()
	if tx.pending.root != nil {
		err = g.db.commit(tx.pending)
	}
	if err == nil {
		for _, hook := range tx.hooks {
			hook()
		}
	}
	for _, j := range jobs {
		if err != nil {
			j.err = err
		}
		close(j.done)
	}
	return err
}

// commit makes rows durable, and with them the number of the commit, which the
// file beside the database then catches up with.
func (db *DB) commit(rows tree) error {
	if db.broken != nil {
		return db.broken
	}
	tx := &Tx{db: db, pending: rows}
	tx.setInternal(rowCount, db.count+1)
	ops, err := tx.ops(db.ring.Load())
	if err != nil {
		return err
	}
	if err := db.engine.commit(ops); err != nil {
		if !errors.Is(err, ErrReopen) {
			if errors.Is(err, ErrFull) || errors.Is(err, ErrReadOnly) || errors.Is(err, ErrClosed) {
				return err
			}
			err = fmt.Errorf("%w: %w", ErrReopen, err)
		}
		db.broken = err
		return err
	}
	db.count++
	b, err := db.sealCount(false)
	if err == nil {
		err = db.folder.poke(fileCount, b)
	}
	if err != nil {
		db.log.Warn("writing the counter file", "error", err)
	}
	return nil
}

// Close ends the database: updates that wait return [ErrClosed], those that run
// and all views are waited for, and deleted secrets are erased. End Run first.
// Calling it again waits for the first and returns the same. Not from within a
// View or Update.
func (db *DB) Close() error {
	if !db.once.CompareAndSwap(false, true) {
		<-db.closed
		return db.err
	}
	defer close(db.closed)
	erased := true
	if db.active.Load() {
		if err := db.rotate(context.Background()); err != nil {
			db.log.Warn("erasing deleted secrets", "error", err)
			erased = false
		}
	}
	close(db.closing)
	db.writer.Wait()
	db.mu.Lock()
	if db.views == 0 {
		close(db.unused)
	}
	db.views = -1 - db.views
	db.mu.Unlock()
	<-db.unused
	if db.broken == nil {
		if err := db.writeCount(erased); err != nil && !errors.Is(err, ErrClosed) {
			db.log.Warn("writing the counter file", "error", err)
		}
	}
	db.err = errors.Join(db.engine.close(), db.folder.Close())
	return db.err
}
