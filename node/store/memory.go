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
	fault   func(step string) error // injected failures; nil for none
}

// NewDisk returns an empty medium.
func NewDisk() *Disk {
	return &Disk{files: map[string][]byte{}, durable: map[string][]byte{}}
}

// Crash is the machine losing power: what was not synced is gone, and the DB
// that has the Disk open can neither read nor write any more. Close it, and
// open the Disk again.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owner = nil
	d.rows = d.synced
	d.files = map[string][]byte{}
	for name, b := range d.durable {
		d.files[name] = b
	}
}

// Fail makes every later write fail with err, as a full or broken disk does,
// until Fail(nil). A write that fails changes nothing; with [ErrFull] the
// database carries on once there is space, with any other error it must be
// reopened.
func (d *Disk) Fail(err error) {
	d.setFault(func(string) error { return err })
}

// setFault has fn decide before every step that writes.
func (d *Disk) setFault(fn func(step string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = fn
}

func (d *Disk) stepLocked(name string) error {
	if d.fault == nil {
		return nil
	}
	return d.fault(name)
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
	defer h.d.mu.Unlock()
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
	h.d.synced = rows
	return nil
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
	defer f.h.d.mu.Unlock()
	if err := f.h.d.stepLocked("write " + name); err != nil {
		return err
	}
	f.h.d.files[name] = slices.Clone(data)
	if err := f.h.d.stepLocked("rename " + name); err != nil {
		return err
	}
	f.h.d.durable[name] = f.h.d.files[name]
	return nil
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
