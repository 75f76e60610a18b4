package exact

import (
	"bytes"
	"errors"
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var long = flag.Bool("exact", false, "build exact programs, too: minutes of CPU the first time")

// source returns a copy of the installed files that are changed.
func source(t *testing.T) (src, version string) {
	t.Helper()
	out, err := command(exec.Command("go", "env", "GOROOT", "GOVERSION"))
	if err != nil {
		t.Fatal(err)
	}
	root, version, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	src = t.TempDir()
	for _, p := range patches {
		b, err := os.ReadFile(filepath.Join(root, "src", p.file))
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(src, p.file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o777), os.WriteFile(to, b, 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	return src, version
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	overlay, err := Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(overlay)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range patches {
		if !bytes.Contains(b, []byte(strings.ReplaceAll(p.file, "/", "_"))) {
			t.Errorf("%s does not mention %s", overlay, p.file)
		}
	}
}

func TestWriteRefusesAnUnknownVersion(t *testing.T) {
	src, _ := source(t)
	_, err := write(t.TempDir(), src, "go1.99.1", versions)
	e, ok := errors.AsType[*VersionError](err)
	if !ok || e.Found != "go1.99.1" || !slices.Equal(e.Known, Versions()) || e.File != "" {
		t.Fatalf("got %v, want a VersionError", err)
	}
	for _, want := range append(Versions(), "go1.99.1") {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
}

func TestWriteRefusesAPatchedDistribution(t *testing.T) {
	for _, p := range patches {
		src, version := source(t)
		f, err := os.OpenFile(filepath.Join(src, p.file), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("// mended by the distribution\n"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = write(t.TempDir(), src, version, versions)
		if e, ok := errors.AsType[*VersionError](err); !ok || e.File != p.file {
			t.Errorf("with another %s: got %v, want a VersionError that names it", p.file, err)
		}
	}
}

func TestEveryTextToBeChangedMustOccurOnce(t *testing.T) {
	src, _ := source(t)
	for _, p := range patches {
		b, err := os.ReadFile(filepath.Join(src, p.file))
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range p.edits {
			for n, changed := range map[int]string{
				0: strings.Replace(string(b), e.old, "", 1),
				2: strings.Replace(string(b), e.old, e.old+e.old, 1),
			} {
				_, err := p.apply(changed)
				if err == nil || !strings.Contains(err.Error(), p.file) || !strings.Contains(err.Error(), strconv.Itoa(n)+" times") {
					t.Errorf("%s, text %d there %d times: got %v", p.file, i, n, err)
				}
			}
		}
	}
}

func TestTableOfVersionsIsWhole(t *testing.T) {
	for version, sums := range versions {
		var files []string
		for _, p := range patches {
			files = append(files, p.file)
		}
		slices.Sort(files)
		if got := slices.Sorted(maps.Keys(sums)); !slices.Equal(got, files) {
			t.Errorf("%s has %v, want %v", version, got, files)
		}
	}
}

func TestEnviron(t *testing.T) {
	got := environ([]string{"PATH=/bin", "GOGC=50", "HOME=/h", "HOMER=1", "GOSIM_SEED=3", "LONG=" + strings.Repeat("x", 1000)}, 7)
	want := append([]string{"HOME=/h", "PATH=/bin"}, Env(7)...)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestReexecLeavesAnOrdinaryProgramAlone(t *testing.T) {
	if Enabled() {
		t.Fatal("a test is exact")
	}
	if err := Reexec(1); err != nil {
		t.Error(err)
	}
}

func TestStarted(t *testing.T) {
	if Started(7) {
		t.Fatal("without variables")
	}
	for _, kv := range Env(7) {
		key, value, _ := strings.Cut(kv, "=")
		t.Setenv(key, value)
	}
	if !Started(7) || Started(8) {
		t.Errorf("with the variables of 7: Started(7) = %v, Started(8) = %v", Started(7), Started(8))
	}
}

// probe runs the program and returns what it prints.
func probe(t *testing.T, program string, seed int, more ...string) string {
	t.Helper()
	out, err := command(exec.CommandContext(t.Context(), program, append([]string{strconv.Itoa(seed)}, more...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// busy keeps all processors busy until the function it returns is called.
func busy() (rest func()) {
	var end atomic.Bool
	var wg sync.WaitGroup
	for range runtime.NumCPU() + 1 {
		wg.Go(func() {
			for !end.Load() {
			}
		})
	}
	return func() { end.Store(true); wg.Wait() }
}

func TestExactProgramsRepeatThemselves(t *testing.T) {
	if !*long {
		t.Skip("only with -exact")
	}
	dir := t.TempDir()
	program, ordinary := filepath.Join(dir, "exact"), filepath.Join(dir, "ordinary")
	if err := Build(t.Context(), program, "./probe"); err != nil {
		t.Fatal(err)
	}
	if _, err := command(exec.CommandContext(t.Context(), "go", "build", "-o", ordinary, "./probe")); err != nil {
		t.Fatal(err)
	}
	want := probe(t, program, 1)
	for range 10 {
		if got := probe(t, program, 1); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	rest := busy()
	for range 10 {
		if got := probe(t, program, 1); got != want {
			t.Errorf("on a busy machine: got %s, want %s", got, want)
		}
	}
	rest()
	if got := probe(t, program, 1, "with", "more", "arguments", "and", strings.Repeat("longer ", 500)); got != want {
		t.Errorf("with other arguments: got %s, want %s", got, want)
	}
	t.Setenv("LONG", strings.Repeat("x", 5000))
	t.Setenv("TMPDIR", t.TempDir()+strings.Repeat("/", 500))
	if got := probe(t, program, 1); got != want {
		t.Errorf("in another environment: got %s, want %s", got, want)
	}
	if probe(t, program, 2) == want {
		t.Error("another seed gives the same")
	}
	stuck := exec.CommandContext(t.Context(), program, "0")
	stuck.Env = append(os.Environ(), stallKey+"=1")
	if _, err := command(stuck); err == nil || !strings.Contains(err.Error(), "virtual time has stopped") || !strings.Contains(err.Error(), "main.run") {
		t.Errorf("when virtual time stops: %v", err)
	}
	// What the test above sees as equal is not so by itself.
	first, differs := probe(t, ordinary, 1), false
	for range 10 {
		differs = differs || probe(t, ordinary, 1) != first
	}
	if !differs {
		t.Error("an ordinary program repeats itself, too")
	}
}
