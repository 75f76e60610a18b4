package simulation

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"starling/node/store"
)

// A disk is what a node keeps through a crash.
type disk interface {
	open(store.Config) (*store.DB, error)
	crash() error               // what was not synced is gone, and the open store is dead
	crashAt(k int, then func()) // the same at the k-th coming write boundary
	steps() int                 // write boundaries passed
	remove() error
}

// memoryDisk is a medium in memory.
type memoryDisk struct{ d *store.Disk }

func (m memoryDisk) open(cfg store.Config) (*store.DB, error) { return store.OpenMemory(cfg, m.d) }
func (m memoryDisk) crash() error                             { m.d.Crash(); return nil }
func (m memoryDisk) crashAt(k int, then func())               { m.d.CrashAt(k, then) }
func (m memoryDisk) steps() int                               { return m.d.Steps() }
func (m memoryDisk) remove() error                            { return nil }

// folderDisk is a folder with the daemon's database. A crash leaves the folder
// behind as it is at that instant and goes on with a copy: so a process ends
// that is killed.
type folderDisk struct {
	root string // temporary; holds one folder a life
	life int
}

func (f *folderDisk) dir() string { return filepath.Join(f.root, fmt.Sprint(f.life)) }

func (f *folderDisk) open(cfg store.Config) (*store.DB, error) {
	cfg.Dir = f.dir()
	return store.Open(cfg)
}

func (f *folderDisk) crash() error {
	from := f.dir()
	f.life++
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil // it never ran
	}
	if err := copyAlive(f.dir(), from, os.CopyFS); err != nil {
		return fmt.Errorf("copying a crashed store: %w", err)
	}
	return nil
}

// copyAlive copies a folder that somebody still writes to. A file that goes away
// meanwhile ends a copy in the middle, so that another one is made.
func copyAlive(to, from string, copyFS func(string, fs.FS) error) error {
	const tries = 100
	var err error
	for range tries {
		if err = copyFS(to, os.DirFS(from)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
	return err
}

func (f *folderDisk) crashAt(int, func()) {
	panic("simulation: crashes at write boundaries need the store in memory")
}

func (f *folderDisk) steps() int    { return 0 }
func (f *folderDisk) remove() error { return os.RemoveAll(f.root) }
