package spool

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Limits of a group, and so of the time a caller waits for others.
const (
	// MaxGroup is the most entries that share a commit, and the most that one
	// call may put. More would make the receipts' paths longer and a small
	// call wait longer; the disk is busy with far fewer.
	MaxGroup = 4096 // entries

	// maxGroupBytes is what a group's blobs come to before the next call opens
	// another one: a few milliseconds of a disk.
	maxGroupBytes = 4 << 20

	// growBytes is by how much a file grows at once, if the quota leaves eight
	// times as much, so that few groups pay for growing.
	growBytes = 1 << 20

	// boundAhead is how far a bound on disk is above the ID that needed it: the
	// IDs of one minute if they follow the clock.
	boundAhead = uint64(time.Minute / time.Microsecond)
)

// A Queue names the queue that an entry is in.
type Queue [32]byte

// A Leaf stands for an entry in what [Config.Attest] makes of a group. The
// spool does not look into it.
type Leaf [32]byte

// An Entry is what is put. The blob is read until Put returns.
type Entry struct {
	Queue   Queue
	Expires int64 // Unix seconds; it is there until [Spool.Expire] finds it over
	Leaf    Leaf  // given to [Config.Attest]; not kept
	Blob    []byte
}

// A Stored says what became of an entry that was put.
type Stored struct {
	// ID is above every earlier one, in all queues, and entries appear in order of
	// their IDs: a reader who has seen this one has missed none below.
	ID      uint64
	Receipt any // of [Config.Attest]; nil without it
}

// A Key names an entry.
type Key struct {
	Queue Queue
	ID    uint64
}

// An Item is an entry without its blob.
type Item struct {
	ID      uint64
	Expires int64 // Unix seconds
	Size    int   // of the blob, bytes
}

// A Config says which spool to open and how.
type Config struct {
	// Dir is the spool's folder, made if missing; unused in memory.
	Dir string
	// Sizes are the sizes of slots, bytes: up to 16, each from 1 to 1 MiB. A blob
	// takes the smallest that holds it. What lies in slots of sizes that are no
	// longer named here stays until it is deleted or over.
	Sizes []int
	// Quota is the most bytes that the files may come to, headers included. If
	// they are above it already, since it was higher, nothing is put until they
	// are below.
	Quota int64
	// Attest makes a promise over all entries of a group, when they are durable,
	// and returns what hands out each one's part, by the place of its leaf. It is
	// called once a group, on the goroutine of one of those who wait for it, while
	// the writer goes on, so for several groups at once; the part is asked for on
	// each caller's own goroutine, by several at once. Default: no receipts.
	Attest func(leaves []Leaf) func(i int) (receipt any)
	// Now is the wall clock that IDs follow. Default time.Now.
	Now func() time.Time
}

func (cfg *Config) validate() error {
	var errs []error
	if len(cfg.Sizes) == 0 || len(cfg.Sizes) > maxSizes {
		errs = append(errs, fmt.Errorf("spool: %d sizes, want 1 to %d", len(cfg.Sizes), maxSizes))
	}
	for i, size := range cfg.Sizes {
		if size < 1 || size > maxSize {
			errs = append(errs, fmt.Errorf("spool: size of %d bytes, want 1 to %d", size, maxSize))
		}
		if slices.Contains(cfg.Sizes[:i], size) {
			errs = append(errs, fmt.Errorf("spool: size of %d bytes given twice", size))
		}
	}
	if least := int64(len(cfg.Sizes)) * firstSlot; cfg.Quota < least {
		errs = append(errs, fmt.Errorf("spool: quota of %d bytes, want at least %d for the headers", cfg.Quota, least))
	}
	return errors.Join(errs...)
}

// A Spool is an open spool. Its methods are safe for concurrent use.
//
// Lock order: waiting before mu; neither is held across a wait or the disk.
type Spool struct {
	cfg     Config
	folder  folder
	classes []*class // in order of size; the slice never changes
	seed    maphash.Seed
	writer  sync.WaitGroup
	wake    chan struct{} // callers tell the writer of a group; one token is enough, since it takes all
	closing chan struct{} // closed by Close
	closed  chan struct{} // closed when Close is done
	err     error         // of Close; read after closed

	waiting sync.Mutex // guards the two below
	groups  []*group   // not yet taken by the writer; only the last takes more calls
	ended   bool       // Close was called

	mu    sync.RWMutex // guards the four below; only the writer, and losing an entry, write
	index index
	bad   []bad // slots of entries that were lost, to be cleared by the writer
	usage Usage // but for what index knows
	down  bool  // nothing can be read any more

	// Owned by the writer, and by Open and Close while it does not run.
	last   uint64 // ID given out
	bytes  int64  // lengths of the files, or soon
	broken error  // the disk failed
	buf    []byte // of writes
}

// A bad slot holds an entry that did not read back.
type bad struct{ class, slot int }

// Usage is what a spool holds.
type Usage struct {
	Entries int
	Bytes   int64 // lengths of the files, at most the quota (but see [Config.Quota])
	Quota   int64
	// Damaged counts slots whose checksum did not hold, when the spool was opened
	// or since: writes that a crash has torn, and entries that the disk lost.
	Damaged int
	Sizes   []SizeUsage // smallest first
}

// SizeUsage is what the slots of one size hold.
type SizeUsage struct {
	Size    int   // of a blob, bytes
	Entries int   // and so slots in use, but for some that are about to be
	Bytes   int64 // length of the file, free slots included
}

// Open opens the spool in cfg.Dir and makes it if it is not there. It reads all
// of it once. After a crash it finds every entry that Put returned, none that a
// Delete returned, and of calls that did not return any part, each entry whole.
//
// Errors: [ErrLocked], [ErrNewer], [ErrDamaged], [ErrDiskFull], what cfg lacks,
// or what the system says. After an error nothing it started is left running.
func Open(cfg Config) (*Spool, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	f, err := openFolder(cfg.Dir)
	if err != nil {
		return nil, err
	}
	return open(cfg, f)
}

// OpenMemory opens the spool on disk, as [Open] does with a folder.
func OpenMemory(cfg Config, disk *Disk) (*Spool, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	f, err := disk.open()
	if err != nil {
		return nil, err
	}
	return open(cfg, f)
}

// open makes a Spool of a folder, and closes it if it returns an error.
func open(cfg Config, f folder) (_ *Spool, err error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Sizes = slices.Clone(cfg.Sizes)
	s := &Spool{
		cfg:     cfg,
		folder:  f,
		seed:    maphash.MakeSeed(),
		wake:    make(chan struct{}, 1),
		closing: make(chan struct{}),
		closed:  make(chan struct{}),
		index:   index{queues: map[Queue]*queueItems{}},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeFiles())
		}
	}()
	if err := s.openFiles(); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.writer.Go(s.write)
	return s, nil
}

const filePrefix = "slots-" // followed by the size

// openFiles opens the files of all sizes that are configured or on disk.
func (s *Spool) openFiles() error {
	sizes := slices.Clone(s.cfg.Sizes)
	names, err := s.folder.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		text, ok := strings.CutPrefix(name, filePrefix)
		size, err := strconv.Atoi(text)
		if ok && err == nil && 0 < size && size <= maxSize && filePrefix+strconv.Itoa(size) == name {
			sizes = append(sizes, size)
		}
	}
	slices.Sort(sizes)
	sizes = slices.Compact(sizes)
	if len(sizes) > 1<<8 {
		return fmt.Errorf("spool: files of %d sizes", len(sizes))
	}
	for i, size := range sizes {
		f, err := s.folder.open(filePrefix + strconv.Itoa(size))
		if err != nil {
			return err
		}
		s.classes = append(s.classes, &class{index: i, size: size, current: slices.Contains(s.cfg.Sizes, size), file: f})
	}
	return nil
}

// load reads what the files hold.
func (s *Spool) load() error {
	for _, c := range s.classes {
		damaged, err := c.load(func(slot int, r record) {
			c.mark(slot)
			s.index.add(r.queue, newItem(r.id, r.expires, c.index, uint32(slot), len(r.blob), s.tag(r.blob)))
		})
		if err != nil {
			return fmt.Errorf("reading the file for %d bytes: %w", c.size, err)
		}
		s.usage.Damaged += damaged
		s.last = max(s.last, c.bound)
	}
	for _, items := range s.index.queues {
		slices.SortFunc(items.items, cmpItems)
		s.last = max(s.last, items.items[len(items.items)-1].id)
	}
	if err := s.dropCopies(); err != nil {
		return err
	}
	for _, c := range s.classes {
		slots := c.slots
		for slots > 0 && !c.isUsed(slots-1) {
			slots--
		}
		if err := c.cut(slots); err != nil {
			return err
		}
		if err := c.sync(); err != nil {
			return err
		}
		s.bytes += c.bytes()
	}
	s.measure()
	return nil
}

// dropCopies clears the second copy of each entry that a crash caught while it
// was moved: left there, it would outlive a delete of the first.
func (s *Spool) dropCopies() error {
	for _, q := range slices.SortedFunc(maps.Keys(s.index.queues), compareQueues) {
		items := s.index.queues[q]
		for i := len(items.items) - 1; i > 0; i-- {
			it := items.items[i]
			if items.items[i-1].id != it.id {
				continue
			}
			c := s.classes[it.class()]
			if err := c.clear(int(it.slot)); err != nil {
				return err
			}
			c.release(int(it.slot))
			items.items = slices.Delete(items.items, i, i+1)
			items.bytes -= int64(it.length())
			s.index.count--
		}
	}
	return nil
}

// measure copies what the writer knows to where others may read it; the caller
// holds mu or is alone.
func (s *Spool) measure() {
	s.usage.Bytes, s.usage.Quota = s.bytes, s.cfg.Quota
	if s.usage.Sizes == nil {
		s.usage.Sizes = make([]SizeUsage, len(s.classes))
	}
	for i, c := range s.classes {
		s.usage.Sizes[i] = SizeUsage{Size: c.size, Entries: c.slots - c.free, Bytes: c.bytes()}
	}
}

// Close waits for the calls that wait, refuses new ones with [ErrClosed], and
// closes the files. Calling it again waits for the first and returns the same.
func (s *Spool) Close() error {
	s.waiting.Lock()
	first := !s.ended
	s.ended = true
	s.waiting.Unlock()
	if !first {
		<-s.closed
		return s.err
	}
	close(s.closing)
	s.writer.Wait()
	s.mu.Lock()
	s.down = true
	s.mu.Unlock()
	s.err = s.closeFiles()
	close(s.closed)
	return s.err
}

func (s *Spool) closeFiles() error {
	var errs []error
	for _, c := range s.classes {
		errs = append(errs, c.file.Close())
	}
	return errors.Join(append(errs, s.folder.Close())...)
}

// Put keeps entries, all or none, and returns when they are durable: what became
// of each, in the order given, with IDs that grow by one. It writes what other
// calls that wait at the same time write, too, with one sync.
//
// Errors: [ErrFull], [ErrDiskFull], [ErrTooBig], [ErrClosed] and the context's
// mean that nothing was kept; the context counts only while the call waits for
// its turn. After [ErrReopen] any of the entries may be there.
func (s *Spool) Put(ctx context.Context, entries []Entry) ([]Stored, error) {
	c, err := s.newPut(entries)
	if err != nil || len(entries) == 0 {
		return nil, err
	}
	if err := s.do(ctx, c); err != nil {
		return nil, err
	}
	return c.stored(), nil
}

// newPut checks entries and makes the call that puts them.
func (s *Spool) newPut(entries []Entry) (*call, error) {
	if len(entries) > MaxGroup {
		return nil, fmt.Errorf("%d entries at once: %w", len(entries), ErrTooBig)
	}
	for _, e := range entries {
		if s.classFor(len(e.Blob)) == nil {
			return nil, fmt.Errorf("blob of %d bytes: %w", len(e.Blob), ErrTooBig)
		}
	}
	c := &call{puts: entries, tags: make([]uint64, len(entries))}
	for i, e := range entries {
		c.tags[i] = s.tag(e.Blob)
	}
	return c, nil
}

// stored is what became of the entries of a call whose group is done.
func (c *call) stored() []Stored {
	stored := make([]Stored, len(c.puts))
	for i := range stored {
		stored[i].ID = c.id + uint64(i)
		if c.group.attest != nil {
			stored[i].Receipt = c.group.attest()(c.leaf + i)
		}
	}
	return stored
}

// A Pending is a Put that goes on by itself.
type Pending struct{ call *call }

// Begin is [Spool.Put] of one entry without the wait, for a caller that has many
// on their way. Errors: [ErrTooBig], [ErrClosed].
func (s *Spool) Begin(e Entry) (Pending, error) {
	c, err := s.newPut([]Entry{e})
	if err == nil {
		err = s.join(c)
	}
	return Pending{c}, err
}

// Done is closed when the entry is durable, or will not be.
func (p Pending) Done() <-chan struct{} { return p.call.group.done }

// Stored waits for that, and returns as [Spool.Put]. Attest may run in it.
func (p Pending) Stored() (Stored, error) {
	<-p.Done()
	if p.call.err != nil {
		return Stored{}, p.call.err
	}
	return p.call.stored()[0], nil
}

// tag is what finds the copies of a blob: equal for equal blobs, and for others
// with a chance of 2^-64 that nobody can raise, since the seed is of this process.
func (s *Spool) tag(blob []byte) uint64 { return maphash.Bytes(s.seed, blob) }

// Find returns the number of an entry of a queue with this expiry and, but for a
// chance of 2^-64, this blob: [Spool.Read] makes sure. It looks at the queue's
// entries in memory, one after the other.
func (s *Spool) Find(q Queue, expires int64, blob []byte) (id uint64, ok bool) {
	tag := s.tag(blob)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index.like(q, expires, tag)
}

// Again makes the promise of [Config.Attest], which must be set, over an entry
// that is there already, together with what other calls put at the same time. It
// writes nothing.
//
// Errors: [ErrNotFound] if the entry is gone, [ErrClosed], [ErrReopen] and, while
// it waits for its turn, the context's.
func (s *Spool) Again(ctx context.Context, q Queue, id uint64, leaf Leaf) (receipt any, err error) {
	c := &call{again: &again{Key{q, id}, leaf}}
	if err := s.do(ctx, c); err != nil {
		return nil, err
	}
	return c.group.attest()(c.leaf), nil
}

// classFor returns the smallest size that holds n bytes, or nil.
func (s *Spool) classFor(n int) *class {
	if n > 0 {
		for _, c := range s.classes {
			if c.current && n <= c.size {
				return c
			}
		}
	}
	return nil
}

// Delete frees entries of a queue and returns when that is durable. IDs that the
// queue does not have are passed over. Errors: [ErrClosed], [ErrReopen] and,
// while it waits for its turn, the context's.
func (s *Spool) Delete(ctx context.Context, q Queue, ids ...uint64) error {
	keys := make([]Key, len(ids))
	for i, id := range ids {
		keys[i] = Key{q, id}
	}
	return s.DeleteAll(ctx, keys)
}

// DeleteAll is Delete for entries of several queues, with one wait for up to
// [MaxGroup] of them.
func (s *Spool) DeleteAll(ctx context.Context, keys []Key) error {
	for chunk := range slices.Chunk(keys, MaxGroup) {
		if err := s.do(ctx, &call{deletes: chunk}); err != nil {
			return err
		}
	}
	return nil
}

// Drop deletes all that queues have when Drop is called. Errors as Delete's;
// after one, some may be deleted.
func (s *Spool) Drop(ctx context.Context, queues ...Queue) error {
	var all []Key
	for _, q := range queues {
		for _, it := range s.List(q, 0, 0) {
			all = append(all, Key{q, it.ID})
		}
	}
	return s.DeleteAll(ctx, all)
}

// Expire deletes the entries whose time is over at now and returns how many
// they were. It lets other calls in between. Errors as Delete's; after one, some
// may be deleted.
func (s *Spool) Expire(ctx context.Context, now time.Time) (n int, err error) {
	var over []Key
	flush := func() error {
		if len(over) == 0 {
			return nil
		}
		err := s.do(ctx, &call{deletes: over})
		if err == nil {
			n += len(over)
		}
		over = nil
		return err
	}
	for _, q := range s.Queues() {
		for it := range s.items(q) {
			if it.Expires > now.Unix() {
				continue
			}
			if over = append(over, Key{q, it.ID}); len(over) == MaxGroup {
				if err := flush(); err != nil {
					return n, err
				}
			}
		}
	}
	return n, flush()
}

// Read returns the blob of an entry. It uses buf if that has room for the blob
// and 64 bytes more; the blob is not the spool's any more.
//
// Errors: [ErrNotFound]; [ErrDamaged], once, when the entry is lost; [ErrClosed];
// or what the disk said, after which it may be tried again.
func (s *Spool) Read(q Queue, id uint64, buf []byte) ([]byte, error) {
	for {
		s.mu.RLock()
		it, ok := s.index.find(q, id)
		down := s.down
		s.mu.RUnlock()
		switch {
		case down:
			return nil, ErrClosed
		case !ok:
			return nil, ErrNotFound
		}
		c := s.classes[it.class()]
		b := slices.Grow(buf[:0], slotHeader+it.length())[:slotHeader+it.length()]
		_, err := c.file.ReadAt(b, c.offset(int(it.slot)))
		if err == nil {
			if r, state := parseSlot(b, it.slot); state == slotValid && r.queue == q && r.id == id {
				return r.blob, nil
			}
		}
		// While it was read, the entry may have been deleted or moved.
		if s.has(q, it) {
			if err != nil {
				return nil, diskError("reading an entry", err)
			}
			if s.lose(q, it) {
				return nil, fmt.Errorf("reading an entry: %w", ErrDamaged)
			}
		}
	}
}

// has reports whether an entry is still where it was.
func (s *Spool) has(q Queue, it item) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	now, ok := s.index.find(q, it.id)
	return ok && now == it
}

// lose takes out an entry that does not read back, if it is still where it was.
func (s *Spool) lose(q Queue, it item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.index.find(q, it.id); !ok || now != it {
		return false
	}
	s.index.remove(q, it.id)
	s.bad = append(s.bad, bad{it.class(), int(it.slot)})
	s.usage.Damaged++
	return true
}

// List returns the entries of a queue with IDs above after, in order, at most
// limit of them; a limit of 0 is none.
func (s *Spool) List(q Queue, after uint64, limit int) []Item {
	s.mu.RLock()
	defer s.mu.RUnlock()
	items := s.index.queues[q]
	if items == nil {
		return nil
	}
	from, found := items.search(after)
	if found {
		from++
	}
	rest := items.items[from:]
	if limit > 0 {
		rest = rest[:min(limit, len(rest))]
	}
	list := make([]Item, len(rest))
	for i, it := range rest {
		list[i] = Item{it.id, it.expires, it.length()}
	}
	return list
}

// items is List in pieces.
func (s *Spool) items(q Queue) iter.Seq[Item] {
	return func(yield func(Item) bool) {
		const piece = 1024
		for after := uint64(0); ; {
			list := s.List(q, after, piece)
			for _, it := range list {
				if !yield(it) {
					return
				}
				after = it.ID
			}
			if len(list) < piece {
				return
			}
		}
	}
}

// Count returns how many entries a queue has, and the bytes of their blobs.
func (s *Spool) Count(q Queue) (entries int, bytes int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if items := s.index.queues[q]; items != nil {
		return len(items.items), items.bytes
	}
	return 0, 0
}

// Queues returns the queues that have entries, in order of their names.
func (s *Spool) Queues() []Queue {
	s.mu.RLock()
	queues := slices.AppendSeq(make([]Queue, 0, len(s.index.queues)), maps.Keys(s.index.queues))
	s.mu.RUnlock()
	slices.SortFunc(queues, compareQueues)
	return queues
}

// Usage returns what the spool holds now.
func (s *Spool) Usage() Usage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	u := s.usage
	u.Entries = s.index.count
	u.Sizes = slices.Clone(u.Sizes)
	return u
}
