package store

import (
	"io/fs"
	"slices"
	"strings"
	"sync"
)

// A Disk is the medium of an in-memory database. It outlives the [DB] on it: a
// simulator closes or crashes a node and opens the same Disk again. Its bytes
// are sealed like those of a database on disk. Safe for concurrent use.
type Disk struct {
	mu      sync.Mutex // guards all below; never held across a wait
	owner   *handle    // whoever has it open
	rows    tree       // as written
	synced  tree       // as it survives a crash
	files   map[string][]byte
	durable map[string][]byte

	// Injected failures; see faults.go.
	fault func(step string) error // nil for none
	steps int                     // write boundaries passed
	crash int                     // the value of steps at which power is lost; 0 for never
	then  func()                  // called with it
	dead  func()                  // then, between the loss of power and the end of the lock
	lies  bool                    // what is written is not kept
	owed  bool                    // something was not kept, and may be yet
}

// NewDisk returns an empty medium.
func NewDisk() *Disk {
	return &Disk{files: map[string][]byte{}, durable: map[string][]byte{}}
}

// open makes the caller the disk's only user.
func (d *Disk) open() (*handle, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owner != nil {
		return nil, ErrLocked
	}
	d.owner = &handle{d: d}
	return d.owner, nil
}

// A handle is one opening of a Disk: engine and folder in one. It is dead once
// the Disk crashed.
type handle struct{ d *Disk }

// lock takes the disk's mutex if the handle is still its owner.
func (h *handle) lock() error {
	h.d.mu.Lock()
	if h.d.owner != h {
		h.d.mu.Unlock()
		return ErrClosed
	}
	return nil
}

// unlock releases the disk, and tells of a loss of power meanwhile.
func (h *handle) unlock() {
	dead := h.d.dead
	h.d.dead = nil
	h.d.mu.Unlock()
	if dead != nil {
		dead()
	}
}

func (h *handle) snapshot() (snapshot, error) {
	if err := h.lock(); err != nil {
		return nil, err
	}
	defer h.d.mu.Unlock()
	return treeSnapshot{h.d.rows}, nil
}

func (h *handle) commit(ops []op) error {
	if err := h.lock(); err != nil {
		return err
	}
	defer h.unlock()
	if err := h.d.stepLocked("commit"); err != nil {
		return err
	}
	rows := h.d.rows
	for _, o := range ops {
		if o.value == nil {
			rows = rows.remove(o.key)
		} else {
			rows = rows.put(o.key, o.value)
		}
	}
	h.d.rows = rows
	if err := h.d.stepLocked("sync"); err != nil {
		return err
	}
	h.d.syncLocked(func() { h.d.synced = rows })
	return h.d.passLocked()
}

func (h *handle) collect() (bool, error) { return true, nil }

// close serves both interfaces' ends: the disk is free for the next opening.
func (h *handle) close() error {
	if h.lock() == nil {
		h.d.owner = nil
		h.d.mu.Unlock()
	}
	return nil
}

// memoryFolder is the small files of a Disk.
type memoryFolder struct{ h *handle }

func (f memoryFolder) read(name string) ([]byte, error) {
	if err := f.h.lock(); err != nil {
		return nil, err
	}
	defer f.h.d.mu.Unlock()
	b, ok := f.h.d.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return slices.Clone(b), nil
}

func (f memoryFolder) replace(name string, data []byte) error {
	if err := f.h.lock(); err != nil {
		return err
	}
	defer f.h.unlock()
	if err := f.h.d.stepLocked("write " + name); err != nil {
		return err
	}
	f.h.d.files[name] = slices.Clone(data)
	if err := f.h.d.stepLocked("rename " + name); err != nil {
		return err
	}
	f.h.d.syncLocked(func() { f.h.d.durable[name] = f.h.d.files[name] })
	return f.h.d.passLocked()
}

func (f memoryFolder) poke(name string, data []byte) error {
	if err := f.h.lock(); err != nil {
		return err
	}
	defer f.h.d.mu.Unlock()
	f.h.d.files[name] = slices.Clone(data)
	return nil
}

func (f memoryFolder) Close() error { return nil }

// treeSnapshot is a state of a tree; nothing has to be given back.
type treeSnapshot struct{ t tree }

func (s treeSnapshot) get(key string) ([]byte, error) {
	b, _ := s.t.get(key)
	return slices.Clone(b), nil
}

func (s treeSnapshot) walk(prefix, from string, backward bool) cursor {
	return &prefixCursor{c: s.t.walk(from, backward), prefix: prefix}
}

func (s treeSnapshot) discard() {}

// A prefixCursor ends where the prefix does.
type prefixCursor struct {
	c      *treeCursor
	prefix string
}

func (p *prefixCursor) key() (string, bool) {
	n := p.c.at()
	if n == nil || !strings.HasPrefix(n.key, p.prefix) {
		return "", false
	}
	return n.key, true
}

func (p *prefixCursor) value() ([]byte, error) { return slices.Clone(p.c.at().value), nil }
func (p *prefixCursor) next()                  { p.c.next() }
func (p *prefixCursor) close()                 {}
