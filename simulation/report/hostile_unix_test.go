//go:build unix

package report

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A results folder from somebody else may hold a pipe, which would be waited
// for, or a link to what never ends.
func TestReadersTakeOnlyRegularFiles(t *testing.T) {
	for _, name := range []string{manifestFile, metricsTable.name} {
		for what, put := range map[string]func(path string) error{
			"pipe": func(path string) error { return syscall.Mkfifo(path, 0o600) },
			"link": func(path string) error { return os.Symlink("/dev/zero", path) },
		} {
			dir := filepath.Join(t.TempDir(), "run")
			r := small()
			f, err := Create(dir, r.Manifest)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Finish(r); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, name)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadRun(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("%s is a %s: %v", name, what, err)
			}
		}
	}
}
