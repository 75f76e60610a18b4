//go:build unix

package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A pipe that nobody writes to would be waited for without end.
func TestPipesAreNoFiles(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe.csv")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	files := []string{pipe}
	for _, key := range []string{"matrix", "trace"} {
		source := fmt.Sprintf("about = \"a\"\nduration = \"1m\"\n[[nodes]]\nname = \"p\"\n[network]\n%s = \"pipe.csv\"\n", key)
		file := filepath.Join(dir, key+".toml")
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	for _, file := range files {
		if _, err := Open(file); err == nil || !strings.Contains(err.Error(), "pipe.csv is not a file but") {
			t.Errorf("%s: %v", filepath.Base(file), err)
		}
	}
}
