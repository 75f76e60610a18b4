package report

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Merge joins the results of several machines into the new folder dst: it
// copies every results folder at or below src to dst/runs and writes a [Sweep].
// A run that is there twice is taken once if both are equal. It refuses, with a
// [MixError] and before it writes anything, runs of several scenarios or
// versions, and two different results of one scenario, setting and seed. It
// refuses runs that have not finished with [ErrRunning].
func Merge(dst string, src ...string) error {
	runs, err := Runs(src...)
	if err != nil {
		return err
	}
	if len(runs) == 0 {
		return errors.New("report: nothing to merge")
	}
	if err := sameKind(runs); err != nil {
		return err
	}
	first := map[string]Run{} // by identity
	kept := runs[:0]
	for _, r := range runs {
		id := identity(r.Manifest)
		before, twice := first[id]
		if !twice {
			first[id] = r
			kept = append(kept, r)
			continue
		}
		same, err := equal(before.Dir, r.Dir)
		if err != nil {
			return err
		}
		if !same {
			return &MixError{What: "results", A: id, B: id, Dirs: []string{before.Dir, r.Dir}}
		}
	}
	if _, err := makeEmpty(dst); err != nil {
		return err
	}
	for i, r := range kept {
		to := filepath.Join(dst, runsDir, Name(r.Manifest))
		if err := copyRun(to, r.Dir); err != nil {
			return fmt.Errorf("report: copying %s: %w", r.Dir, err)
		}
		kept[i].Dir = to
	}
	return Sweep(dst, kept)
}

// equal says whether two folders hold one run. The manifest has the real time
// and the memory that it took, which no second run repeats.
func equal(a, b string) (bool, error) {
	for _, name := range []string{manifestFile, metricsTable.name, messagesTable.name} {
		x, err := readFile(filepath.Join(a, name))
		if err != nil {
			return false, fmt.Errorf("report: comparing results: %w", err)
		}
		y, err := readFile(filepath.Join(b, name))
		if err != nil {
			return false, fmt.Errorf("report: comparing results: %w", err)
		}
		if string(x) != string(y) {
			return false, nil
		}
	}
	return true, nil
}

// copyRun copies the files of a results folder; it follows no link and enters
// no folder, since a run has neither.
func copyRun(dst, src string) error {
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		err := output(disk).write(filepath.Join(dst, e.Name()), func(w io.Writer) error {
			file, err := os.Open(filepath.Join(src, e.Name()))
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = io.Copy(w, file)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
