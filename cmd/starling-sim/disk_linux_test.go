package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestFullDiskKeepsWhatFits(t *testing.T) {
	dir := tinyDisk(t, "48k")
	d := sim(t, dir, "run", "hello", "--out", "small").want(exitError, "", "no space left")
	if !strings.Contains(d.err, "What could be written is in small") {
		t.Errorf("it does not say what is kept: %s", d.err)
	}
	page := filepath.Join("small", "report.html")
	if _, err := os.Stat(filepath.Join(dir, page)); (err == nil) != strings.Contains(d.out, page) {
		t.Errorf("the report: %v, and it says %s", err, d.out)
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

// Whoever reads JSON learns where the results are, and that there is no report.
func TestFullDiskNamesNoReportThatIsNotThere(t *testing.T) {
	dir := tinyDisk(t, "16k")
	d := sim(t, dir, "run", "hello", "--out", "small", "--json").want(exitError, "", "no space left")
	var r resultShape
	if err := json.Unmarshal([]byte(d.out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Dir != "small" || r.Report != "" {
		t.Errorf("results in %q, report %q; want small and none", r.Dir, r.Report)
	}
	if text := sim(t, tinyDisk(t, "16k"), "run", "hello", "--out", "small"); strings.Contains(text.out, "report:") {
		t.Errorf("it names a report: %s", text.out)
	}
}

// tinyDisk mounts a disk for the time of a test.
func tinyDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=700"); err != nil {
		t.Skip("mounting a disk needs root and a kernel that lets it:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return dir
}
