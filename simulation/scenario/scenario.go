// Package scenario reads scenario files and plays them.
//
// A scenario is a TOML file that says which nodes there are, what the network
// is like, what people do and what goes wrong (reference.toml shows every key).
// [Open] reads one of those shipped with the program, or any other; a file with
// anything wrong or unknown in it is refused, with the line and the column of
// each problem. [Scenario.Build] makes a world of it:
//
//	s, err := scenario.Open("hello")
//	cfg, play, err := s.Build(1, map[string]string{"nodes": "7"})
//	result, err := simulation.Run(cfg, play)
//
// Whoever acts in a scenario draws from a random stream of their own, so that
// what they do does not depend on what others did before.
//
// What it does not do: run a world (package simulation) or write results
// (simulation/report).
package scenario

import (
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"starling/simulation"
)

//go:embed shipped/*.toml
var shipped embed.FS

//go:embed reference.toml
var reference string

// maxFile is the most bytes of a scenario file.
const maxFile = 1 << 20

// A Scenario is a scenario file that was read and found to be in order. It is
// safe for concurrent use.
type Scenario struct {
	name   string
	file   string // as errors and commands name it
	folder string // what the file names is relative to it
	source string
	about  string
	params []Param
	root   *table
}

// Names returns the names of the scenarios that are shipped, in the order in
// which one would try them.
func Names() []string {
	return []string{"hello", "town", "storm", "nat", "commuters", "relay-loss", "bad-relay", "drain-keys", "eclipse", "flood"}
}

// Reference returns a scenario file with every key there is, and what each
// means.
func Reference() string { return reference }

// Open reads a shipped scenario by its name, or a file. A name that is not
// shipped and has neither a path nor an extension is one that somebody
// mistyped: the error lists those shipped.
func Open(nameOrPath string) (*Scenario, error) {
	if slices.Contains(Names(), nameOrPath) {
		b, err := shipped.ReadFile("shipped/" + nameOrPath + ".toml")
		if err != nil {
			panic("scenario: internal error: a shipped scenario is not embedded: " + err.Error())
		}
		return read(nameOrPath, nameOrPath, "", string(b))
	}
	f, err := openFile(nameOrPath)
	if err != nil {
		if filepath.Base(nameOrPath) == nameOrPath && filepath.Ext(nameOrPath) == "" {
			meant := near(nameOrPath, Names())
			if meant != "" {
				meant = fmt.Sprintf("; did you mean %q?", meant)
			}
			return nil, fmt.Errorf("scenario: there is no scenario %q, nor such a file; shipped are %s%s", nameOrPath, strings.Join(Names(), ", "), meant)
		}
		return nil, fmt.Errorf("reading a scenario: %w", noFile(nameOrPath, err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading a scenario: %w", err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("scenario: %s is larger than %d bytes", nameOrPath, maxFile)
	}
	name := strings.TrimSuffix(filepath.Base(nameOrPath), filepath.Ext(nameOrPath))
	return read(name, nameOrPath, filepath.Dir(nameOrPath), string(b))
}

// read reads the text of a scenario and checks it with all its defaults.
func read(name, file, folder, source string) (*Scenario, error) {
	root, err := parse(file, source)
	if err != nil {
		return nil, err
	}
	s := &Scenario{name: name, file: file, folder: folder, source: source, root: root}
	s.about, _ = root.value("about").(string)
	s.about = strings.Join(strings.Fields(s.about), " ")
	r := s.reader()
	s.params = r.params
	r.read(root, folder)
	if err := join(r.problems); err != nil {
		return nil, err
	}
	return s, nil
}

// reader returns a reader that knows the parameters and their defaults.
func (s *Scenario) reader() *reader {
	r := &reader{file: s.file, values: map[string]any{}, used: map[string]bool{}, keys: map[string][]string{}}
	r.readParams(r.section("the scenario", s.root).sub("params"))
	return r
}

// Name returns the scenario's name: that of its file.
func (s *Scenario) Name() string { return s.name }

// Source returns the file, whole.
func (s *Scenario) Source() string { return s.source }

// About returns what the scenario is about: one paragraph, in one line.
func (s *Scenario) About() string { return s.about }

// Params returns the parameters that can be set, in the order of the file.
func (s *Scenario) Params() []Param { return slices.Clone(s.params) }

// Build makes a world of the scenario: what [simulation.Run] needs. set replaces
// the defaults of parameters. An error says which one there is not, is not of
// its kind, or leads to something that cannot be.
func (s *Scenario) Build(seed uint64, set map[string]string) (simulation.Config, func(*simulation.World) error, error) {
	p, err := s.plan(set)
	if err != nil {
		return simulation.Config{}, nil, err
	}
	cfg := p.config
	cfg.Scenario, cfg.Source, cfg.Params = s.name, s.source, maps.Clone(set)
	cfg.Defaults = map[string]string{}
	for _, p := range s.params {
		if _, isSet := set[p.Name]; !isSet {
			cfg.Defaults[p.Name] = p.Default
		}
	}
	cfg.Repeat = s.command(seed, set)
	cfg.Seed, cfg.Promise = seed, p.promise
	cfg.Nodes, cfg.Relays = p.specs(seed), p.relaySpecs()
	return cfg, p.play, nil
}

// An Outline is what a person wants to know of a scenario before it runs.
type Outline struct {
	Duration time.Duration // of what the file says; settling comes on top
	Notes    []string      // what somebody may have meant otherwise
}

// Outline returns the outline of a scenario with parameters set. Its errors are
// those of [Scenario.Build].
func (s *Scenario) Outline(set map[string]string) (Outline, error) {
	p, err := s.plan(set)
	if err != nil {
		return Outline{}, err
	}
	return Outline{p.duration, p.notes}, nil
}

// plan reads the scenario with parameters set.
func (s *Scenario) plan(set map[string]string) (*plan, error) {
	r := s.reader()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(set)) {
		i := slices.IndexFunc(s.params, func(p Param) bool { return p.Name == name })
		if i < 0 {
			errs = append(errs, fmt.Errorf("scenario: %s has no parameter %q%s", s.name, name, insteadOf(name, s.params)))
			continue
		}
		v, err := s.params[i].parse(set[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("scenario: parameter %s of %s: %w", name, s.name, err))
			continue
		}
		r.values[name] = v
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	p := r.read(s.root, s.folder)
	return p, s.blame(r.problems, set)
}

// blame makes an error of the problems of a scenario that was in order before
// parameters were set: it names those that may be the cause, and the line only
// if the file is the user's own.
func (s *Scenario) blame(problems []problem, set map[string]string) error {
	if len(set) == 0 {
		return join(problems)
	}
	var errs []error
	for _, p := range genuine(problems) {
		names := []string{p.param}
		if _, ok := set[p.param]; !ok {
			names = slices.Sorted(maps.Keys(set))
		}
		for i, name := range names {
			names[i] = name + "=" + set[name]
		}
		text := p.Error()
		if slices.Contains(Names(), s.file) {
			text = strings.TrimPrefix(p.section+": "+p.text, ": ")
		}
		errs = append(errs, fmt.Errorf("scenario: %s with %s: %s", s.name, strings.Join(names, ", "), text))
	}
	return errors.Join(errs...)
}

// command returns the command that runs the scenario.
func (s *Scenario) command(seed uint64, set map[string]string) string {
	words := []string{"starling-sim", "run", quoted(s.file), "--seed", strconv.FormatUint(seed, 10)}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		words = append(words, "--set", quoted(name+"="+set[name]))
	}
	return strings.Join(words, " ")
}

// quoted returns a word as a shell takes it.
func quoted(word string) string {
	if strings.ContainsFunc(word, func(c rune) bool { return !strings.ContainsRune("_./=+-:@%,", c) && !isAlphanumeric(c) }) {
		return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return word
}

func isAlphanumeric(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// specs returns the nodes of the world.
func (p *plan) specs(seed uint64) []simulation.NodeSpec {
	r, boxes := draw(seed, "nodes"), draw(seed, "nats")
	list := make([]simulation.NodeSpec, 0, p.nodes)
	for _, g := range p.groups {
		first, nats := len(list), g.deal(boxes)
		for i, name := range g.names() {
			n := simulation.NodeSpec{Name: name, Role: g.role, Region: p.region(g, i), Up: g.up, Down: g.down}
			n.Skew, n.NAT, n.Circuits = between(r, g.skew), nats[i], g.circuits
			list = append(list, n)
		}
		clients := int(g.clients*float64(g.size()) + 0.5)
		for _, i := range r.Perm(g.size())[:clients] {
			list[first+i].Client = true
		}
	}
	return list
}

// draw returns the random stream of a seed and a name, for what is drawn before
// there is a world.
func draw(seed uint64, name string) *rand.Rand {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("scenario "+name+" "), seed))
	return rand.New(rand.NewChaCha8(sum))
}

// between draws from a range, bounds included.
func between[T int | time.Duration](r *rand.Rand, bounds [2]T) T {
	return bounds[0] + T(r.Int64N(int64(bounds[1]-bounds[0])+1))
}
