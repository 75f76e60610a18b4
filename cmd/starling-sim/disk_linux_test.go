package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestFullDiskKeepsWhatFits(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=48k,mode=700"); err != nil {
		t.Skip("mounting a disk needs root and a kernel that lets it:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	d := sim(t, dir, "run", "hello", "--out", "small").want(exitError, "", "no space left")
	if !strings.Contains(d.err, "What could be written is in small") {
		t.Errorf("it does not say what is kept: %s", d.err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "small", "manifest.json"))
	if err != nil || !strings.Contains(string(b), `"outcome": "held"`) {
		t.Errorf("the manifest: %v\n%s", err, b)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "small", "*"))
	for _, f := range left {
		if strings.Contains(filepath.Base(f), "tmp") {
			t.Errorf("%s was left", f)
		}
	}
}
