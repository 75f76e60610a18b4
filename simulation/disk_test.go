package simulation

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A file that the database deletes while it is copied must not cut the copy
// short.
func TestCopyOfALiveFolderIsWhole(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	calls := 0
	err := copyAlive(to, from, func(dst string, src fs.FS) error {
		if calls++; calls > 1 {
			return os.CopyFS(dst, src)
		}
		half := t.TempDir()
		if err := os.WriteFile(filepath.Join(half, "a"), []byte("half"), 0o600); err != nil {
			return err
		}
		return errors.Join(os.CopyFS(dst, os.DirFS(half)), &fs.PathError{Op: "open", Path: "b", Err: fs.ErrNotExist})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if b, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(b) != name {
			t.Errorf("%s is %q in the copy: %v", name, b, err)
		}
	}
	err = copyAlive(to, from, func(string, fs.FS) error { return fs.ErrNotExist })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that never holds still: %v", err)
	}
	never := &folderDisk{root: t.TempDir()}
	if err := never.crash(); err != nil {
		t.Errorf("a crash before the first start: %v", err)
	}
}
