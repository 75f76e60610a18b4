package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"starling/simulation"
	"starling/simulation/report"
)

// inside runs a command in this process, and returns its exit code and what it
// wrote to standard error.
func inside(t *testing.T, args ...string) (int, string) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	code := run(args, out, out)
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return code, string(b)
}

// Two runs of one setting would write into one folder at once.
func TestSweepRefusesAValueTwice(t *testing.T) {
	dir := t.TempDir()
	code, said := inside(t, "sweep", "hello", "--seeds", "1..1", "--vary", "nodes=5,6,5", "--out", dir)
	if code != exitUsage || !strings.Contains(said, "a value twice") {
		t.Errorf("exit code %d: %s", code, said)
	}
}

// The product of what varies is bounded before it is made.
func TestSweepRefusesTooManySettings(t *testing.T) {
	args := []string{"sweep", "town", "--out", t.TempDir()}
	for _, k := range []string{"nodes", "degree", "pause", "up"} {
		var values []string
		for i := range 100 {
			values = append(values, strings.Repeat("0", i)+"7")
		}
		args = append(args, "--vary", k+"="+strings.Join(values, ","))
	}
	if code, said := inside(t, args...); code != exitUsage || !strings.Contains(said, "are the most") {
		t.Errorf("exit code %d: %s", code, said)
	}
}

func TestSweepRefusesRunsOfAnotherFile(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "mine.toml")
	source := "about = \"a\"\nduration = \"1m\"\n[[nodes]]\nname = \"p\"\ncount = 3\n"
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	m := simulation.Manifest{Scenario: "mine", Source: "# an older one\n" + source, Seed: 1, Outcome: "held"}
	f, err := report.Create(filepath.Join(dir, "runs", report.Name(m)), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Finish(&simulation.Result{Manifest: m}); err != nil {
		t.Fatal(err)
	}
	code, said := inside(t, "sweep", file, "--seeds", "1..1", "--out", dir)
	if code != exitUsage || !strings.Contains(said, "another state of its file") {
		t.Errorf("exit code %d: %s", code, said)
	}
}

func TestCompareLeavesAFileAlone(t *testing.T) {
	page := filepath.Join(t.TempDir(), "notes.html")
	if err := os.WriteFile(page, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, said := inside(t, "compare", t.TempDir(), t.TempDir(), "--html", page); code != exitError {
		t.Errorf("exit code %d: %s", code, said)
	}
	if b, err := os.ReadFile(page); err != nil || string(b) != "mine" {
		t.Errorf("the file that was there holds %q, %v", b, err)
	}
}

func TestErrorsDoNotSteerTheTerminal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "evil.toml")
	source := "about = \"a\"\nduration = \"1m\"\n[[nodes]]\nname = \"p\\u001b]0;x\\u0007\"\ncount = 3\n"
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	code, said := inside(t, "run", file, "--out", filepath.Join(t.TempDir(), "r"))
	if code != exitError || strings.ContainsAny(said, "\x1b\x07") || !strings.Contains(said, "p·]0;x·") {
		t.Errorf("exit code %d: %q", code, said)
	}
}

// One run under several names would count as many.
func TestSweepDoesNotTrustTheNamesOfFolders(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "mine.toml")
	source := "about = \"a\"\nduration = \"1m\"\n[[nodes]]\nname = \"p\"\ncount = 3\n"
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	m := simulation.Manifest{Scenario: "mine", Source: source, Seed: 1, Version: simulation.Version(), Go: runtime.Version(), Outcome: "held"}
	for seed := range uint64(3) {
		name := m
		name.Seed = seed + 1
		f, err := report.Create(filepath.Join(dir, "runs", report.Name(name)), m)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Finish(&simulation.Result{Manifest: m}); err != nil {
			t.Fatal(err)
		}
	}
	code, said := inside(t, "sweep", file, "--seeds", "1..3", "--out", dir)
	if code != exitUsage || !strings.Contains(said, "holds mine,seed=2, which says that it is mine,seed=1") {
		t.Errorf("exit code %d: %s", code, said)
	}
}

func TestVersionSaysWhyItCannotBeCited(t *testing.T) {
	for version, want := range map[string]string{
		"starling revision unknown":    "-buildvcs=false",
		"starling 0123, changed since": "files that git does not know",
		"starling 0123":                "",
	} {
		if got := doubt(version); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q", version, got)
		}
	}
}

// A sweep leaves folders alone that are somebody's.
func TestSweepKeepsOutOfFoldersThatHoldNoSweep(t *testing.T) {
	dir := t.TempDir()
	letter := filepath.Join(dir, "letter.txt")
	if err := os.WriteFile(letter, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, said := inside(t, "sweep", "hello", "--seeds", "1..1", "--out", dir)
	if code != exitUsage || !strings.Contains(said, "holds no sweep") {
		t.Errorf("it ended with %d: %s", code, said)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("the folder holds %v: %v", left, err)
	}
}
