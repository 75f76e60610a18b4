// Package report keeps what a simulated run left: a folder of tables, plots and
// one page to read. It also puts runs side by side ([Compare]), draws metrics
// against what was varied ([Sweep]) and joins the folders of several machines
// ([Merge]).
//
// A folder holds
//
//	manifest.json  what was run, with what, and how it ended; the violation, if any
//	events.jsonl   one event a line: {"t":seconds,"type",…}, in the order reported
//	messages.csv   id, from, to, size_bytes, accepted_s, shown_s, confirmed_s
//	lookups.csv    by, at_s, took_s, hops, asked, found, stale
//	traffic.csv    node, protocol, sent_bytes, received_bytes
//	faults.csv     kind, what, from_s, to_s
//	nodes.csv      name, region, role, nat, starts, crashes, up_s
//	pairs.csv      a, b, relayed_s, direct_s: friends, and when they were first connected
//	               through a circuit and directly; no rows in a run without NATs
//	relays.csv     name, region, bad, starts, crashes, disks_lost, up_s, what became of its
//	               receipts (receipts, honoured, broken, void, unread, waiting), repeated, refused,
//	               keys_to_tokens, keys_to_work, keys_denied, keys_repeated, sent_bytes, received_bytes
//	usage.csv      at_s, wall_s, cpu_s, memory_bytes, goroutines
//	envelopes.csv  sealed, opened, repeated, refused; one row
//	sightings.csv  observer, sees, median, most, unit
//	metrics.csv    name, value, unit, goal, of (run: as [Summary]; scenario: its own)
//	*.svg          delivery, timeline, nodes, hops, speed, cpu, memory
//	report.html    all of it for a reader; it needs no other file and no network
//
// Every table has one header line, columns in this order, and rows in the order
// of the [simulation.Result]. Nodes are numbered by their row in nodes.csv, from
// 0. Times are seconds with nine digits from the start of virtual time (wall_s
// and cpu_s: real seconds); an empty time means never, or to the end. An empty
// number is one that there was nothing to measure for. A text that a spreadsheet
// would take for a formula, beginning with =, +, - or @, has an apostrophe before
// it, and so has one that begins with an apostrophe.
//
// A folder is a function of its Result: the same Result gives the same bytes.
// Files are written under a temporary name and renamed, so that a full disk
// leaves what was there.
//
// What it does not do: run anything (simulation), or start programs for a sweep
// (cmd/starling-sim).
package report

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"starling/simulation"
)

const (
	manifestFile = "manifest.json"
	eventsFile   = "events.jsonl"
	pageFile     = "report.html"
)

// running is the outcome in the manifest of a folder that nobody finished.
const running = "running"

// violated is the outcome of a run that broke a promise.
const violated = "violated"

// ErrRunning means that a folder holds a run that has not ended, or that was
// killed before it could write its tables. Wait for it, or run it again; its
// events.jsonl can be read meanwhile.
var ErrRunning = errors.New("report: the run has not finished")

// A Folder receives the results of one run. It is safe for concurrent use.
type Folder struct {
	dir string
	out output

	mu     sync.Mutex // guards what follows
	file   io.WriteCloser
	events *bufio.Writer
	err    error // the first that events met; nothing is logged after it
	closed bool
}

// Create makes the folder dir, which must not exist or must be empty, writes a
// manifest with the outcome "running" and opens the log of events. If it
// returns an error, it left nothing behind. End it with [Folder.Finish].
func Create(dir string, m simulation.Manifest) (*Folder, error) {
	return create(dir, m, disk)
}

func create(dir string, m simulation.Manifest, out output) (*Folder, error) {
	made, err := makeEmpty(dir)
	if err != nil {
		return nil, err
	}
	f := &Folder{dir: dir, out: out}
	m.Outcome = running
	err = f.out.write(filepath.Join(dir, manifestFile), manifestWriter(m, nil))
	if err == nil {
		f.file, err = f.out(filepath.Join(dir, eventsFile))
	}
	if err != nil {
		os.Remove(filepath.Join(dir, manifestFile))
		if made {
			os.Remove(dir)
		}
		return nil, fmt.Errorf("report: making %s: %w", dir, err)
	}
	f.events = bufio.NewWriterSize(f.file, 64<<10)
	return f, nil
}

// makeEmpty makes dir and says whether it did, or accepts an empty one.
func makeEmpty(dir string) (made bool, err error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return false, fmt.Errorf("report: making %s: %w", dir, err)
		}
		return true, nil
	case err != nil:
		return false, fmt.Errorf("report: reading %s: %w", dir, err)
	case len(entries) > 0:
		return false, fmt.Errorf("report: %s is not empty: results are never mixed; choose another folder", dir)
	}
	return false, nil
}

// Event adds a line to the log. Lines reach the file in blocks; see
// [Folder.Flush]. After an error the log takes no more lines: go on with the
// run, Finish reports the error again.
func (f *Folder) Event(e simulation.Event) error {
	line, err := json.Marshal(struct {
		T    simulation.Seconds `json:"t"`
		Type string             `json:"type"`
		Node string             `json:"node,omitempty"`
		Peer string             `json:"peer,omitempty"`
		ID   string             `json:"id,omitempty"`
		Text string             `json:"text,omitempty"`
	}{simulation.Seconds(e.At), e.Type, e.Node, e.Peer, e.ID, e.Text})
	if err != nil {
		return fmt.Errorf("report: writing an event: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errors.New("report: an event after the end of the run")
	}
	if f.err == nil {
		_, f.err = f.events.Write(append(line, '\n'))
	}
	return f.eventsErrorLocked()
}

// Flush hands the events so far to the file, for somebody who wants to see them
// while the run goes on or hangs.
func (f *Folder) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flushLocked()
	return f.eventsErrorLocked()
}

func (f *Folder) flushLocked() {
	if f.err == nil && !f.closed {
		f.err = f.events.Flush()
	}
}

func (f *Folder) eventsErrorLocked() error {
	if f.err == nil {
		return nil
	}
	return fmt.Errorf("report: writing %s: %w", eventsFile, f.err)
}

// Finish ends the log and writes everything that r holds. What cannot be
// written is named in the error, the rest is written, and what was there before
// stays. After an error it may be called again, say once the disk has room.
func (f *Folder) Finish(r *simulation.Result) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.flushLocked()
		f.closed = true
		if err := f.file.Close(); f.err == nil {
			f.err = err
		}
	}
	errs := []error{f.eventsErrorLocked()}
	w := writer{dir: f.dir, out: f.out}
	w.result(r)
	return errors.Join(append(errs, w.errs...)...)
}

// manifest is manifest.json.
type manifest struct {
	simulation.Manifest
	Violation *violation `json:"violation,omitempty"`
}

type violation struct {
	Oracle string             `json:"oracle"`
	What   string             `json:"what"`
	At     simulation.Seconds `json:"at_s"`
	Repeat string             `json:"repeat"`
}

func (m manifest) broken() *simulation.Violation {
	if m.Violation == nil {
		return nil
	}
	v := m.Violation
	return &simulation.Violation{Oracle: v.Oracle, What: v.What, At: seconds(v.At), Repeat: v.Repeat}
}

func manifestWriter(m simulation.Manifest, v *simulation.Violation) func(io.Writer) error {
	all := manifest{Manifest: m}
	if v != nil {
		all.Violation = &violation{v.Oracle, v.What, simulation.Seconds(v.At), v.Repeat}
	}
	return func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false) // the source of a scenario is meant to be read
		e.SetIndent("", "  ")
		return e.Encode(all)
	}
}

// output makes a file. Tests put a disk in its place that is full.
type output func(path string) (io.WriteCloser, error)

func disk(path string) (io.WriteCloser, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
}

// write has fill write the file at path, whole or not at all.
func (o output) write(path string, fill func(io.Writer) error) error {
	tmp := path + ".tmp"
	os.Remove(tmp) // left by one who was killed
	file, err := o(tmp)
	if err != nil {
		return err
	}
	b := bufio.NewWriter(file)
	err = fill(b)
	if err == nil {
		err = b.Flush()
	}
	if e := file.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

// A writer fills a folder and keeps going: errs has one error a file.
type writer struct {
	dir   string
	out   output
	nodes roster
	errs  []error
}

func (w *writer) file(name string, fill func(io.Writer) error) {
	if err := w.out.write(filepath.Join(w.dir, name), fill); err != nil {
		w.errs = append(w.errs, fmt.Errorf("report: writing %s: %w", name, err))
	}
}

// result writes everything but the events.
func (w *writer) result(r *simulation.Result) {
	// The small and important come first, in case room runs out.
	w.file(manifestFile, manifestWriter(r.Manifest, r.Violation))
	w.tables(r)
	figures := runFigures(r)
	w.figures(figures)
	w.file(pageFile, func(w io.Writer) error { return writePage(w, r, figures) })
}

func (w *writer) figures(figures []figure) {
	for _, f := range figures {
		w.file(f.name+".svg", func(w io.Writer) error {
			_, err := w.Write(f.standalone())
			return err
		})
	}
}

// Load reads a folder that [Folder.Finish] wrote. It returns [ErrRunning] for
// one that nobody finished, and otherwise names every file that is missing or
// not as it should be. Times that were negative come back as -1 ns, and a run with
// a violation as "violated", whatever its manifest says of the outcome.
func Load(dir string) (*simulation.Result, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	r := &simulation.Result{Manifest: m.Manifest, Violation: m.broken()}
	if err := readTables(dir, r); err != nil {
		return nil, err
	}
	return r, nil
}

// Bounds of what is read, which may be somebody else's and made to fill the
// memory or the disk. A run beyond them is written and not read again: it would
// need tens of gigabytes to run.
const (
	// A manifest holds a scenario file, of 1 MiB at most, six times as long in
	// JSON at worst.
	maxManifest = 16 << 20  // bytes
	maxTable    = 512 << 20 // bytes
	maxRows     = 4 << 20   // of a table
	maxEvents   = 8 << 30   // bytes; they are only copied
)

// errTooLarge is the error of a reader that is bounded.
var errTooLarge = errors.New("the file is larger than any that is written here")

// A bounded reader fails beyond its bound: what is cut off may look whole.
type bounded struct {
	r    io.Reader
	left int64
}

// Read implements [io.Reader].
func (b *bounded) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// A boundedFile is a file of which no more than a bound is read, however it
// grows meanwhile.
type boundedFile struct {
	bounded
	io.Closer
}

// openFile opens a file of a results folder, which may be somebody else's: no
// pipe that nobody writes to, no link that leads out of it, and nothing longer
// than most bytes.
func openFile(path string, most int64) (*boundedFile, error) {
	before, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	after, err := file.Stat()
	switch {
	case err != nil:
	case !os.SameFile(before, after): // somebody put another in its place meanwhile
		err = fmt.Errorf("%s is not a regular file", path)
	case after.Size() > most:
		err = fmt.Errorf("%s has more than %d bytes: %w", path, most, errTooLarge)
	default:
		return &boundedFile{bounded{r: file, left: most}, file}, nil
	}
	file.Close()
	return nil, err
}

func readFile(path string, most int64) ([]byte, error) {
	file, err := openFile(path, most)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return b, nil
}

func readManifest(dir string) (manifest, error) {
	var m manifest
	b, err := readFile(filepath.Join(dir, manifestFile), maxManifest)
	if err != nil {
		if _, missing := os.Lstat(filepath.Join(dir, sweepFile)); missing == nil {
			return m, fmt.Errorf("report: %s is a sweep; its runs are in %s", dir, filepath.Join(dir, runsDir))
		}
		if errors.Is(err, os.ErrNotExist) {
			return m, fmt.Errorf("report: %s holds no results of a run: %w", dir, os.ErrNotExist)
		}
		return m, fmt.Errorf("report: reading a results folder: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&m); err != nil {
		return m, fmt.Errorf("report: reading %s: %w", filepath.Join(dir, manifestFile), err)
	}
	if m.Violation != nil {
		m.Outcome = violated // whatever else it says
	}
	if m.Outcome == running {
		return m, fmt.Errorf("%w: %s", ErrRunning, dir)
	}
	return m, nil
}
