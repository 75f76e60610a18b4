package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/gofrs/flock"
)

// Names within [Config.Dir] beside the two sealed files; none says what it is
// for to someone who does not know this program.
const (
	nameLock = "lock" // locked while the database is open
	namePID  = "pid"  // of the process that holds the lock
	nameRows = "rows" // badger's folder
)

const tempSuffix = ".new" // of a file that is being replaced

// Open opens the database in cfg.Dir and makes it if it is not there. One
// process at a time has it open; another gets [ErrLocked]. After a crash it
// finds every update that returned, and of one that did not, all or nothing.
//
// Errors: [ErrLocked], [ErrKey], [ErrFull], [ErrReadOnly], [ErrNewer],
// [ErrDamaged], or what the system says. After an error nothing it started is
// left running.
func Open(cfg Config) (*DB, error) {
	f, err := openFolder(cfg.Dir)
	if err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return open(cfg, f, func(key []byte) (engine, error) {
		e, err := openBadger(filepath.Join(cfg.Dir, nameRows), key, log)
		if err != nil {
			return nil, err
		}
		return e, syncDir(cfg.Dir)
	})
}

// A diskFolder is the small files in a folder that it has locked.
type diskFolder struct {
	dir   string
	lock  *flock.Flock
	count *os.File                // kept open for poke; nil until then
	fault func(step string) error // injected by tests
}

func openFolder(dir string) (*diskFolder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, diskError("making the folder", err)
	}
	f := &diskFolder{dir: dir, lock: flock.New(filepath.Join(dir, nameLock), flock.SetPermissions(0o600))}
	ok, err := f.lock.TryLock()
	if err != nil {
		return nil, diskError("locking the folder", err)
	}
	pid := filepath.Join(dir, namePID)
	if !ok {
		f.lock.Close()
		if b, err := os.ReadFile(pid); err == nil {
			if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
				return nil, fmt.Errorf("%w (pid %d)", ErrLocked, n)
			}
		}
		return nil, ErrLocked
	}
	if err := os.WriteFile(pid, strconv.AppendInt(nil, int64(os.Getpid()), 10), 0o600); err != nil {
		return nil, errors.Join(diskError("writing the process ID", err), f.Close())
	}
	for _, name := range []string{fileErase, fileCount} { // left by a crash
		if err := os.Remove(filepath.Join(dir, name+tempSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(diskError("removing a temporary file", err), f.Close())
		}
	}
	return f, nil
}

func (f *diskFolder) read(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		return nil, diskError("reading a file", err)
	}
	return b, nil
}

func (f *diskFolder) replace(name string, data []byte) error {
	if name == fileCount && f.count != nil {
		f.count.Close()
		f.count = nil
	}
	return replaceFile(filepath.Join(f.dir, name), data, f.fault)
}

func (f *diskFolder) poke(name string, data []byte) error {
	if name != fileCount {
		panic("store: internal error: only the counter is written in place")
	}
	if f.count == nil {
		c, err := os.OpenFile(filepath.Join(f.dir, name), os.O_WRONLY, 0)
		if err != nil {
			return diskError("opening a file", err)
		}
		f.count = c
	}
	if _, err := f.count.WriteAt(data, 0); err != nil {
		return diskError("writing a file", err)
	}
	return nil
}

func (f *diskFolder) Close() error {
	if f.count != nil {
		f.count.Close()
	}
	return f.lock.Close()
}

// replaceFile sets a file's bytes whole or not at all: a temporary file,
// synced, takes its name, and the folder is synced. The bytes it had are then
// overwritten through the file that lost its name, which erases them on file
// systems and media that write in place, and does no harm on others.
//
// fault, if not nil, may fail every step: a test's crash.
func replaceFile(path string, data []byte, fault func(step string) error) error {
	step := func(name string) error {
		if fault == nil {
			return nil
		}
		return fault(name)
	}
	old, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		defer old.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return diskError("opening a file", err)
	}
	temp := path + tempSuffix
	if err := step("write"); err != nil {
		return err
	}
	err = func() error {
		f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(data); err != nil {
			return err
		}
		return f.Sync()
	}()
	if err != nil {
		return diskError("writing a file", err)
	}
	if err := step("rename"); err != nil {
		return err
	}
	if runtime.GOOS == "windows" && old != nil {
		old.Close() // an open file cannot be replaced there
		old = nil
	}
	if err := os.Rename(temp, path); err != nil {
		return diskError("renaming a file", err)
	}
	if err := step("sync"); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := step("overwrite"); err != nil || old == nil {
		return err
	}
	if info, err := old.Stat(); err == nil {
		if _, err := old.WriteAt(make([]byte, info.Size()), 0); err == nil {
			_ = old.Sync() // best effort, as said above
		}
	}
	return nil
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // has no such thing
	}
	d, err := os.Open(dir)
	if err != nil {
		return diskError("opening the folder", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return diskError("syncing the folder", err)
	}
	return nil
}

// diskError says in this package's errors what the system or badger said.
// Badger drops the chain of some errors, so their texts count too.
func diskError(doing string, err error) error {
	is := func(errno syscall.Errno) bool {
		return errors.Is(err, errno) || strings.Contains(err.Error(), errno.Error())
	}
	switch {
	case is(syscall.ENOSPC), is(syscall.EDQUOT):
		return fmt.Errorf("%s: %w: %w", doing, ErrFull, err)
	case is(syscall.EROFS), errors.Is(err, fs.ErrPermission), is(syscall.EACCES):
		return fmt.Errorf("%s: %w: %w", doing, ErrReadOnly, err)
	}
	return fmt.Errorf("store: %s: %w", doing, err)
}
