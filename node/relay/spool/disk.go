package spool

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"

	"github.com/gofrs/flock"
)

const nameLock = "lock" // locked while the spool is open

// A diskFolder is a folder of the system, locked.
type diskFolder struct {
	dir  string
	lock *flock.Flock
}

func openFolder(dir string) (*diskFolder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, diskError("making the folder", err)
	}
	lock := flock.New(filepath.Join(dir, nameLock), flock.SetPermissions(0o600))
	ok, err := lock.TryLock()
	if err != nil {
		return nil, diskError("locking the folder", err)
	}
	if !ok {
		return nil, errors.Join(ErrLocked, lock.Close())
	}
	return &diskFolder{dir, lock}, nil
}

func (f *diskFolder) names() ([]string, error) {
	list, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, diskError("listing the folder", err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, nil
}

func (f *diskFolder) open(name string) (file, error) {
	h, err := os.OpenFile(filepath.Join(f.dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, diskError("opening a file", err)
	}
	if err := f.syncNames(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return diskFile{h}, nil
}

// syncNames makes the names in the folder durable.
func (f *diskFolder) syncNames() error {
	if runtime.GOOS == "windows" {
		return nil // has no such thing
	}
	d, err := os.Open(f.dir)
	if err != nil {
		return diskError("opening the folder", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return diskError("syncing the folder", err)
	}
	return nil
}

func (f *diskFolder) Close() error { return f.lock.Close() }

// A diskFile is a file of the system.
type diskFile struct{ *os.File }

// Sync makes the file's bytes and length durable, but not its times.
func (f diskFile) Sync() error { return syncData(f.File) }

func (f diskFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
