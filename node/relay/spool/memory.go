package spool

import (
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// sectorSize is what a disk writes whole or not at all.
const sectorSize = 512

// A Disk is a medium in memory for the spool of a simulated relay. What was not
// synced may be lost in a crash, each sector of 512 bytes by itself: of what was
// written to it since the last sync, any number of the first writes is there
// afterwards. Its methods are safe for concurrent use.
type Disk struct {
	mu    sync.Mutex // guards everything below
	rng   *rand.Rand // what a crash keeps
	files map[string]*memoryFile
	owner *memoryFolder // that has it open; nil if none
	steps int           // write boundaries passed
	crash int           // value of steps at which power is lost; 0 is never
	then  func()        // called at that instant
	dead  func()        // then, until the lock is free
	fault error
	limit int64 // bytes of all files
}

// NewDisk returns an empty disk. The seed decides what crashes keep.
func NewDisk(seed uint64) *Disk {
	return &Disk{rng: rand.New(rand.NewPCG(seed, 0x73706f6f6c)), files: map[string]*memoryFile{}, limit: 1<<63 - 1}
}

// A memoryFile is a file of a Disk. Its bytes are those that a reader sees; what
// a crash may bring back stands beside them.
type memoryFile struct {
	data  []byte
	old   map[int64][][]byte // by sector: what it held before each write since the last sync, the first synced
	sizes []int              // the same of the length
}

// Crash is the machine losing power: the Spool that has the Disk open can
// neither read nor write any more. Close it, and open the Disk again. A crash
// that [Disk.CrashAt] has planned is off.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashLocked()
}

func (d *Disk) crashLocked() {
	d.owner = nil
	d.crash, d.then = 0, nil
	// Some crashes lose all, some nothing, most a part.
	keep := []float64{0, 1, 0.5, 0.9, 0.1}[d.rng.IntN(5)]
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		d.files[name].crash(d.rng, keep)
	}
}

// crash makes of the file what a medium may hold that lost power now. Each write
// to a sector, and each change of the length, came through with probability keep
// if the one before it did.
func (f *memoryFile) crash(rng *rand.Rand, keep float64) {
	survive := func(writes int) (n int) {
		for n < writes && rng.Float64() < keep {
			n++
		}
		return n
	}
	size := len(f.data)
	if n := survive(len(f.sizes)); n < len(f.sizes) {
		size = f.sizes[n]
	}
	for _, sector := range slices.Sorted(maps.Keys(f.old)) {
		old := f.old[sector]
		if n := survive(len(old)); n < len(old) {
			f.grow(int(sector+1) * sectorSize)
			copy(f.data[sector*sectorSize:], old[n])
		}
	}
	f.grow(size)
	clear(f.data[size:])
	f.data = f.data[:size]
	f.old, f.sizes = nil, nil
}

// grow makes the file at least size bytes long. What follows the end of data in
// its array is zero.
func (f *memoryFile) grow(size int) {
	if size > len(f.data) {
		f.data = slices.Grow(f.data, size-len(f.data))[:size]
	}
}

// remember keeps what the sectors from one offset to another hold.
func (f *memoryFile) remember(from, to int) {
	if f.old == nil {
		f.old = map[int64][][]byte{}
	}
	for at := from / sectorSize * sectorSize; at < to; at += sectorSize {
		b := make([]byte, sectorSize)
		if at < len(f.data) {
			copy(b, f.data[at:])
		}
		sector := int64(at / sectorSize)
		f.old[sector] = append(f.old[sector], b)
	}
}

func (f *memoryFile) write(b []byte, off int) {
	f.remember(off, off+len(b))
	if end := off + len(b); end > len(f.data) {
		f.sizes = append(f.sizes, len(f.data))
		f.grow(end)
	}
	copy(f.data[off:], b)
}

func (f *memoryFile) truncate(size int) {
	f.sizes = append(f.sizes, len(f.data))
	if size < len(f.data) {
		f.remember(size, len(f.data))
		clear(f.data[size:])
		f.data = f.data[:size]
	}
	f.grow(size)
}

// Steps returns how many write boundaries were passed: one before each write and
// each change of a length, one before and one after each sync.
func (d *Disk) Steps() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.steps
}

// CrashAt has the machine lose power at the nth write boundary from now, 1 being
// the next, as [Disk.Crash] does: calls that wait get [ErrClosed]. then is called
// once, at that instant and without the disk's lock, on the goroutine that
// writes: it must not wait for the Spool, nor for what waits for it. Nil is
// nothing to call. A second CrashAt replaces the first; n = 0 takes it back.
func (d *Disk) CrashAt(n int, then func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crash, d.then = 0, nil
	if n > 0 {
		d.crash, d.then = d.steps+n, then
	}
}

// Fail makes every later write, sync and change of a length fail with err, until
// Fail(nil). A write that fails changes nothing.
func (d *Disk) Fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = err
}

// Limit is the room on the disk, bytes: a write that needs more ends where the
// room does and fails with [ErrDiskFull]. A new disk has no limit.
func (d *Disk) Limit(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = bytes
}

// Size returns the length of all files, bytes.
func (d *Disk) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sizeLocked()
}

func (d *Disk) sizeLocked() (size int64) {
	for _, f := range d.files {
		size += int64(len(f.data))
	}
	return size
}

// open locks the disk for one Spool.
func (d *Disk) open() (*memoryFolder, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owner != nil {
		return nil, ErrLocked
	}
	d.owner = &memoryFolder{d}
	return d.owner, nil
}

// A memoryFolder is one Spool's use of a Disk, until it is closed or a crash
// ends it.
type memoryFolder struct{ d *Disk }

// lock fails once the folder's time is over; only if it does not, unlock follows.
func (h *memoryFolder) lock() error {
	h.d.mu.Lock()
	if h.d.owner != h {
		h.d.mu.Unlock()
		return ErrClosed
	}
	return nil
}

// unlock releases the disk, and tells of a loss of power meanwhile.
func (h *memoryFolder) unlock() {
	dead := h.d.dead
	h.d.dead = nil
	h.d.mu.Unlock()
	if dead != nil {
		dead()
	}
}

// stepLocked passes the write boundary before something that can fail. After an
// error the caller does nothing more.
func (h *memoryFolder) stepLocked() error {
	if err := h.passLocked(); err != nil {
		return err
	}
	return h.d.fault
}

// passLocked passes a write boundary, unless power is lost at it.
func (h *memoryFolder) passLocked() error {
	h.d.steps++
	if h.d.steps != h.d.crash {
		return nil
	}
	h.d.dead = h.d.then
	h.d.crashLocked()
	return ErrClosed
}

func (h *memoryFolder) names() ([]string, error) {
	if err := h.lock(); err != nil {
		return nil, err
	}
	defer h.unlock()
	return slices.Sorted(maps.Keys(h.d.files)), nil
}

func (h *memoryFolder) open(name string) (file, error) {
	if err := h.lock(); err != nil {
		return nil, err
	}
	defer h.unlock()
	f := h.d.files[name]
	if f == nil {
		f = &memoryFile{}
		h.d.files[name] = f
	}
	return memoryHandle{h, f}, nil
}

func (h *memoryFolder) Close() error {
	if h.lock() == nil {
		h.d.owner = nil
		h.unlock()
	}
	return nil
}

// A memoryHandle is an open file of a Disk.
type memoryHandle struct {
	h *memoryFolder
	f *memoryFile
}

func (m memoryHandle) ReadAt(b []byte, off int64) (n int, err error) {
	if err := m.h.lock(); err != nil {
		return 0, err
	}
	defer m.h.unlock()
	if off < int64(len(m.f.data)) {
		n = copy(b, m.f.data[off:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (m memoryHandle) WriteAt(b []byte, off int64) (n int, err error) {
	if err := m.h.lock(); err != nil {
		return 0, err
	}
	defer m.h.unlock()
	if err := m.h.stepLocked(); err != nil {
		return 0, err
	}
	room := m.h.d.limit - m.h.d.sizeLocked() + int64(len(m.f.data)) - off
	if room < int64(len(b)) && off+int64(len(b)) > int64(len(m.f.data)) {
		b, err = b[:max(room, 0)], ErrDiskFull
	}
	if len(b) > 0 {
		m.f.write(b, int(off))
	}
	return len(b), err
}

func (m memoryHandle) Sync() error {
	if err := m.h.lock(); err != nil {
		return err
	}
	defer m.h.unlock()
	if err := m.h.stepLocked(); err != nil {
		return err
	}
	m.f.old, m.f.sizes = nil, nil
	return m.h.passLocked()
}

func (m memoryHandle) Size() (int64, error) {
	if err := m.h.lock(); err != nil {
		return 0, err
	}
	defer m.h.unlock()
	return int64(len(m.f.data)), nil
}

func (m memoryHandle) Truncate(size int64) error {
	if err := m.h.lock(); err != nil {
		return err
	}
	defer m.h.unlock()
	if err := m.h.stepLocked(); err != nil {
		return err
	}
	m.f.truncate(int(size))
	return nil
}

func (m memoryHandle) Close() error { return nil }
