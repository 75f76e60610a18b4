package report

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// Merge joins the results of several machines into the new folder dst: it takes
// every results folder at or below src over to dst/runs and writes a [Sweep].
// Pages and plots are drawn anew, so that none comes from elsewhere. A run that is there twice is taken once if both are equal. It refuses, with a
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
		if err := takeOver(to, r.Dir); err != nil {
			return err
		}
		if kept[i], err = ReadRun(to); err != nil {
			return err
		}
	}
	return Sweep(dst, kept)
}

// equal says whether two folders hold one run. The manifest has the real time
// and the memory that it took, which no second run repeats.
func equal(a, b string) (bool, error) {
	for _, name := range []string{manifestFile, metricsTable.name, messagesTable.name} {
		x, err := readFile(filepath.Join(a, name), maxTable)
		if err != nil {
			return false, fmt.Errorf("report: comparing results: %w", err)
		}
		y, err := readFile(filepath.Join(b, name), maxTable)
		if err != nil {
			return false, fmt.Errorf("report: comparing results: %w", err)
		}
		if string(x) != string(y) {
			return false, nil
		}
	}
	return true, nil
}

// takeOver writes the results in src, which may be somebody else's, into the new
// folder dst. Of the files it takes the manifest, the tables and the events; the
// page and the plots are made anew of these, since a page can hold anything.
func takeOver(dst, src string) error {
	r, err := Load(src)
	if err != nil {
		return err
	}
	if _, err := makeEmpty(dst); err != nil {
		return err
	}
	w := writer{dir: dst, out: disk}
	w.file(eventsFile, func(w io.Writer) error {
		file, err := openFile(filepath.Join(src, eventsFile), maxEvents)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.Copy(w, file)
		return err
	})
	w.result(r)
	return errors.Join(w.errs...)
}
