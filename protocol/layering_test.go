package protocol_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// This file holds the plan of the house and enforces it: which folder may
// import which, which are pure, who alone may import a module. A new folder
// takes a row here, with its reason, in the commit that adds it.

const module = "starling"

// topLevel are the folders at the top. Packaging lives with its program, tools
// beside what they generate.
var topLevel = []string{"cmd", "dht", "groups", "node", "protocol", "simulation"}

// vague are package names that say nothing of what a package provides.
var vague = []string{"internal", "util", "utils", "common", "types", "pkg", "helpers", "misc"}

// A folder is one row of the plan.
type folder struct {
	path    string   // cmd/* stands for every program
	pure    bool     // no clock, no randomness, no I/O, no goroutine
	imports []string // of this module; "x/..." is x and all below
	modules []string // pure only: every other module in the dependency tree
	why     string   // why it may import no more
}

const (
	modEdwards  = "filippo.io/edwards25519"
	modProtobuf = "google.golang.org/protobuf"
	modXCrypto  = "golang.org/x/crypto"
	modXSys     = "golang.org/x/sys" // of x/crypto: processor features
)

var house = []folder{
	{
		"protocol", true, nil, nil,
		"it is the ground floor: labels, limits and versions, which everything may import",
	},
	{
		"protocol/x25519", true, nil,
		[]string{modEdwards},
		"it is a leaf: identity and ratchet share its keys and must not need each other for them",
	},
	{
		"protocol/wire", true,
		[]string{"protocol"},
		[]string{modProtobuf},
		"it bounds and decodes bytes, and knows of no key or meaning",
	},
	{
		"protocol/identity", true,
		[]string{"protocol", "protocol/x25519", "protocol/wire"},
		[]string{modEdwards, modProtobuf},
		"who someone is does not depend on any session",
	},
	{
		"protocol/prekey", true,
		[]string{"protocol", "protocol/x25519", "protocol/wire", "protocol/identity"},
		[]string{modEdwards, modProtobuf},
		"a handshake ends with secrets, and does not know what is done with them",
	},
	{
		"protocol/ratchet", true,
		[]string{"protocol", "protocol/x25519"},
		[]string{modEdwards},
		"a session authenticates nobody: it knows ratchet keys and no identity, so that it can be reviewed alone",
	},
	{
		"protocol/envelope", true,
		[]string{"protocol", "protocol/x25519", "protocol/wire", "protocol/identity", "protocol/ratchet"},
		[]string{modEdwards, modProtobuf},
		"it wraps what a session sealed, and does not open sessions",
	},
	{
		"protocol/relay", true,
		[]string{"protocol", "protocol/x25519", "protocol/wire", "protocol/identity"},
		[]string{modEdwards, modProtobuf},
		"what a relay is shown and signs is the same for every message: it knows of no session and no envelope",
	},
	{
		"protocol/attachment", true,
		[]string{"protocol"},
		nil,
		"a file's encryption depends on its key alone",
	},
	{
		"groups/senderkey", true,
		[]string{"protocol/..."},
		[]string{modEdwards, modProtobuf},
		"a chain is distributed by the group and knows nothing of its roster",
	},
	{
		"groups", true,
		[]string{"groups/senderkey", "protocol/..."},
		[]string{modEdwards, modProtobuf},
		"a roster is a function of its log: events in, actions out, and the node performs them",
	},
	{
		"dht/record", true,
		[]string{"protocol/..."},
		[]string{modEdwards, modProtobuf, modXCrypto, modXSys},
		"whether a record is valid depends on its bytes and the time, not on the network that carries it",
	},
	{
		"dht", false,
		[]string{"dht/record", "protocol/..."},
		nil,
		"publishing and finding serve the node and do not know it",
	},
	{
		"node/store", false,
		[]string{"protocol/...", "dht/record", "groups", "groups/senderkey"},
		nil,
		"it keeps what pure packages define, and knows nothing of networks and sessions",
	},
	{
		"node/stream", false,
		[]string{"protocol", "protocol/wire"},
		nil,
		"it moves bounded frames and does not know what is in them",
	},
	{
		"node/session", false,
		[]string{"node/store", "protocol/..."},
		nil,
		"it turns contents into envelopes in one transaction; moving them is another's work",
	},
	{
		"node/outbox", false,
		[]string{"node/store", "protocol", "protocol/wire", "protocol/identity", "protocol/envelope"},
		nil,
		"it retries bytes that others sealed: it sees no session and no secret key",
	},
	{
		"node/relay", false,
		[]string{"node/relay/spool", "node/store", "node/stream", "protocol/..."},
		nil,
		"a relay is a shelf: it knows no session, no contact and no group",
	},
	{
		"node/relay/station", false,
		[]string{"dht", "dht/record", "node/relay", "node/relay/client", "node/relay/spool", "node/store", "protocol/..."},
		nil,
		"a volunteer's relay has no account: what knows people is not in it",
	},
	{
		"node/relay/spool", false,
		nil, nil,
		"it keeps bytes on a disk, and does not know whose, what they mean or what was promised for them",
	},
	{
		"node/relay/client", false,
		[]string{"node/stream", "protocol/..."},
		nil,
		"who leaves things at a relay keeps the rows: it knows no store, no session and no contact",
	},
	{
		"node/gossip", false,
		[]string{"node/stream", "groups", "groups/senderkey", "protocol/..."},
		nil,
		"it fans out ciphertext and keeps nothing",
	},
	{
		"node/blob", false,
		[]string{"node/store", "node/stream", "protocol", "protocol/wire", "protocol/attachment"},
		nil,
		"it serves ciphertext by handle and knows no chat",
	},
	{
		"node/directory", false,
		[]string{"node/store", "node/stream", "protocol/..."},
		nil,
		"the phone directory is optional: nothing of a node but store and streams is in it",
	},
	{
		"node", false,
		[]string{
			"protocol/...", "groups", "groups/senderkey", "dht", "dht/record", "node/store", "node/stream", "node/session",
			"node/outbox", "node/relay", "node/relay/client", "node/gossip", "node/blob", "node/directory",
		},
		nil,
		"a node runs without an interface: API, web page and terminal stand on it",
	},
	{
		"node/api", false,
		[]string{"node", "protocol"},
		nil,
		"it translates a node's methods and adds none: what is below the node is not its business",
	},
	{
		"node/web", false,
		[]string{"node/api"},
		nil,
		"the web page sees the API only, like any client",
	},
	{
		"node/tui", false,
		[]string{"node/api"},
		nil,
		"the terminal chat sees the API only, like any client",
	},
	{
		"simulation/bubble", false,
		[]string{"simulation/exact"},
		nil,
		"virtual time does not depend on what runs in it",
	},
	{
		"simulation/exact", false,
		nil, nil,
		"it patches the toolchain, whatever is built with it",
	},
	{
		"simulation/exact/probe", false,
		[]string{"simulation/bubble", "simulation/exact"},
		nil,
		"it is what the tests build to see that exact programs repeat, and nothing else",
	},
	{
		"simulation/network", false,
		nil, nil,
		"the simulated network carries bytes, and knows no node",
	},
	{
		"simulation", false,
		[]string{
			"protocol/...", "groups", "groups/senderkey", "dht", "dht/record", "node", "node/...",
			"simulation/bubble", "simulation/exact", "simulation/network",
		},
		nil,
		"it runs the shipped code and belongs to no program",
	},
	{
		"simulation/scenario", false,
		[]string{"protocol", "simulation", "simulation/network"},
		nil,
		"a scenario is played on a world through what the world offers everybody",
	},
	{
		"simulation/report", false,
		[]string{"simulation"},
		nil,
		"a report shows a result, and can be made long after the run",
	},
	{
		"cmd/*", false,
		[]string{"protocol", "node", "node/...", "simulation", "simulation/..."},
		nil,
		"a program holds flags, wiring and printing; logic lives below, where it is tested",
	},
}

// An exclusive is a module, or what its path starts with, that only some
// folders import.
type exclusive struct {
	module  string
	folders []string
	why     string
}

var exclusives = []exclusive{
	{
		"github.com/dgraph-io/badger",
		[]string{"node/store"},
		"one package knows the database, so that a twin in memory can take its place",
	},
	{
		"github.com/libp2p/go-libp2p-kad-dht",
		[]string{"dht", "simulation"},
		"one package knows Kademlia: its validator, store and limits are set in one place; the simulator's liars speak it falsely",
	},
	{
		"github.com/libp2p/go-libp2p-pubsub",
		[]string{"node/gossip"},
		"one package knows gossipsub: it guarantees nothing, and nobody else may rely on it",
	},
	{
		"github.com/libp2p/",
		[]string{"dht", "node", "node/stream", "node/relay", "node/relay/client", "node/relay/station", "node/gossip", "node/blob", "node/directory", "simulation", "simulation/network", "cmd/*"},
		"what stores, seals or shows messages does not touch the network",
	},
	{
		"github.com/prometheus/",
		[]string{"node/relay/station", "cmd/*"},
		"metrics are for who runs a relay: a node on somebody's own machine counts nothing for others",
	},
	{
		"github.com/cloudflare/circl",
		[]string{"node/directory"},
		"it is experimental, and serves the directory's OPRF only",
	},
	{
		modEdwards,
		[]string{"protocol/x25519", "protocol/identity", "protocol/ratchet", "dht/record"},
		"curve arithmetic stays where it is reviewed: keys and blinding",
	},
	{
		"connectrpc.com/connect",
		[]string{"node/api", "node/web", "cmd/*"},
		"the local API is the only RPC, and a node runs without it",
	},
	{
		"github.com/spf13/cobra",
		[]string{"cmd/*"},
		"command lines belong to programs",
	},
	{
		"github.com/pelletier/go-toml",
		[]string{"cmd/*", "simulation/scenario"},
		"settings files belong to programs, and scenario files to scenarios: below, configuration is a struct",
	},
	{
		"charm.land/",
		[]string{"node/tui"},
		"one package knows the terminal toolkit",
	},
	{
		"rsc.io/qr",
		[]string{"node/api", "cmd/*"},
		"QR codes are drawn where they are shown",
	},
	{
		"gonum.org/",
		[]string{"simulation/report"},
		"statistics and plots belong to reports",
	},
}

// Reasons of the rules that hold for many folders.
const (
	whyTopLevel = "the top level is fixed: " + "cmd, dht, groups, node, protocol, simulation"
	whyUnknown  = "the folder has no row in the plan of the house: say what it may import, and why"
	whyVague    = "the name says nothing of what the package provides"
	whyComment  = "a package comment says what the package does, promises and leaves to others"
	whyInit     = "func init runs in every program that imports the package, unasked: use a constructor"
	whyLevel    = "goroutines, channels and timers at package level belong to no node: nothing closes them, and virtual time cannot own them"
	whyTest     = "it holds fakes for tests, and is not part of a program"
	whyBelow    = "imports go downward, in tests too: a test of this folder that needs an upper floor belongs up there"
	whyModules  = "what a pure package pulls in has to be reviewed with it, the whole tree of it"

	whyClock  = "time comes into pure code as a time.Time, so that a run can be repeated"
	whyIO     = "pure code does no input or output"
	whyRandom = "randomness comes into pure code as an io.Reader, so that vectors can be made"
	whyGo     = "pure code starts no goroutine: the caller decides what runs when"
	whyLog    = "pure code returns values and does not log"
	whySlog   = "pure code uses log/slog only for types that must not print: slog.Value and slog.StringValue"
	whyDot    = "dot imports hide where a name comes from"
)

// A violation is one broken rule.
type violation struct {
	where string // file, with line if there is one
	what  string
	why   string
}

func (v violation) String() string { return v.where + ": " + v.what + ": " + v.why }

// An external is a package outside this module, as go list gives it.
type external struct {
	module  string // empty: standard library
	imports []string
}

// check returns every violation in the file tree. externals holds the
// dependencies of pure packages, by import path.
func check(tree fs.FS, externals map[string]external) ([]violation, error) {
	c := &checker{externals: externals, fset: token.NewFileSet(), packages: map[string]*pkg{}}
	if err := fs.WalkDir(tree, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p == ".":
			return nil
		case strings.HasPrefix(d.Name(), "."), strings.HasPrefix(d.Name(), "_"), d.Name() == "testdata", d.Name() == "node_modules":
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			if !strings.Contains(p, "/") && !slices.Contains(topLevel, p) {
				c.add(p, 0, "a folder at the top level", whyTopLevel)
				return fs.SkipDir
			}
			if _, err := fs.Stat(tree, path.Join(p, "go.mod")); err == nil {
				return fs.SkipDir // a module of its own
			}
			return nil
		case path.Ext(p) != ".go":
			return nil
		}
		src, err := fs.ReadFile(tree, p)
		if err != nil {
			return err
		}
		return c.parse(p, src)
	}); err != nil {
		return nil, err
	}
	for _, p := range c.packages {
		c.checkPackage(p)
	}
	slices.SortFunc(c.found, func(a, b violation) int { return strings.Compare(a.String(), b.String()) })
	return c.found, nil
}

type checker struct {
	externals map[string]external
	fset      *token.FileSet
	packages  map[string]*pkg // by folder
	found     []violation
}

type pkg struct {
	dir   string
	files []*file
}

type file struct {
	path    string
	test    bool
	ast     *ast.File
	imports []imported
}

type imported struct {
	path string
	name string // as the file uses it
	pos  token.Pos
}

func (c *checker) add(where string, pos token.Pos, what, why string) {
	if pos.IsValid() {
		where += ":" + strconv.Itoa(c.fset.Position(pos).Line)
	}
	c.found = append(c.found, violation{where, what, why})
}

func (c *checker) parse(p string, src []byte) error {
	f, err := parser.ParseFile(c.fset, p, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	for _, g := range f.Comments {
		for _, line := range g.List {
			if x, err := constraint.Parse(line.Text); err == nil && x.String() == "ignore" {
				return nil // a tool, run by hand
			}
		}
	}
	out := &file{path: p, test: strings.HasSuffix(p, "_test.go"), ast: f}
	for _, s := range f.Imports {
		i := imported{path: strings.Trim(s.Path.Value, "`\""), pos: s.Pos()}
		if i.name = path.Base(i.path); s.Name != nil {
			i.name = s.Name.Name
		}
		out.imports = append(out.imports, i)
	}
	dir := path.Dir(p)
	if c.packages[dir] == nil {
		c.packages[dir] = &pkg{dir: dir}
	}
	c.packages[dir].files = append(c.packages[dir].files, out)
	return nil
}

// rowOf returns the plan's row for a folder. A folder NAMEtest beside or below
// a known one holds its fakes and conformance tests: it may import what that
// one may, and that one.
func rowOf(dir string) (row folder, known bool) {
	for _, f := range house {
		if ok, _ := path.Match(f.path, dir); ok {
			return f, true
		}
	}
	if testFolder(dir) {
		if f, ok := rowOf(path.Dir(dir)); ok {
			return folder{path: dir, imports: append([]string{path.Dir(dir)}, f.imports...), why: whyTest}, true
		}
	}
	return folder{}, false
}

func testFolder(dir string) bool { return len(path.Base(dir)) > 4 && strings.HasSuffix(dir, "test") }

func within(dir string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if above, ok := strings.CutSuffix(p, "/..."); ok {
			return dir == above || strings.HasPrefix(dir, above+"/")
		}
		ok, _ := path.Match(p, dir)
		return ok
	})
}

func (c *checker) checkPackage(p *pkg) {
	row, known := rowOf(p.dir)
	if !known {
		c.add(p.dir, 0, "an unknown folder", whyUnknown)
	}
	if slices.Contains(vague, path.Base(p.dir)) {
		c.add(p.dir, 0, "the folder "+path.Base(p.dir), whyVague)
	}
	shipped, commented := false, false
	for _, f := range p.files {
		if name := f.ast.Name.Name; slices.Contains(vague, name) {
			c.add(f.path, f.ast.Name.Pos(), "package "+name, whyVague)
		}
		if !f.test {
			shipped = true
			want := "Package " + f.ast.Name.Name + " "
			if f.ast.Name.Name == "main" {
				want = "Command " + path.Base(p.dir) + " "
			}
			commented = commented || f.ast.Doc != nil && strings.HasPrefix(strings.ReplaceAll(f.ast.Doc.Text(), "\n", " "), want)
			c.checkPackageLevel(f)
		}
		if known {
			c.checkImports(f, row, p.dir)
		}
		if row.pure && !f.test {
			c.checkPurity(f)
		}
	}
	if shipped && !commented {
		c.add(p.dir, 0, "no comment that starts with Package or Command and its name", whyComment)
	}
	if row.pure {
		c.checkModules(p, row)
	}
}

func (c *checker) checkImports(f *file, row folder, dir string) {
	for _, i := range f.imports {
		if target, ok := strings.CutPrefix(i.path, module+"/"); ok {
			c.checkInternal(f, row, dir, target, i.pos)
			continue
		}
		for _, x := range exclusives {
			if i.path != x.module && !strings.HasPrefix(i.path, strings.TrimSuffix(x.module, "/")+"/") {
				continue
			}
			// Tests may look at their subject with whatever they need, except
			// with what has a single owner.
			if !within(dir, x.folders) && (!f.test || len(x.folders) == 1) {
				c.add(f.path, i.pos, "imports "+i.path, x.why)
			}
			break
		}
	}
}

func (c *checker) checkInternal(f *file, row folder, dir, target string, pos token.Pos) {
	allowed := within(target, row.imports)
	switch {
	case target == dir || allowed && !testFolder(target):
		return
	case testFolder(target) && (f.test || testFolder(dir)):
		return
	case testFolder(target):
		c.add(f.path, pos, "imports "+target, whyTest)
		return
	case !f.test:
		c.add(f.path, pos, "imports "+target, row.why)
		return
	}
	// A test may use any pure package, and what stands beside or below its own
	// folder; never a pure package's test a node, never anything's a program.
	t, known := rowOf(target)
	switch {
	case !known, t.pure:
	case row.pure, within(target, []string{"simulation", "cmd/..."}):
		c.add(f.path, pos, "imports "+target, whyBelow)
	}
}

// checkModules judges the dependency tree of a pure package.
func (c *checker) checkModules(p *pkg, row folder) {
	via := map[string]string{} // package → the import of p that leads to it
	var visit func(path, root string)
	visit = func(path, root string) {
		if _, seen := via[path]; seen {
			return
		}
		via[path] = root
		for _, i := range c.externals[path].imports {
			visit(i, root)
		}
	}
	reported := map[string]bool{}
	for _, f := range p.files {
		if f.test {
			continue
		}
		for _, i := range f.imports {
			visit(i.path, i.path)
			for dep, root := range via {
				m := c.externals[dep].module
				if root != i.path || m == "" || m == module || slices.Contains(row.modules, m) || reported[m] {
					continue
				}
				reported[m] = true
				c.add(f.path, i.pos, fmt.Sprintf("depends on module %s through %s", m, i.path), whyModules)
			}
		}
	}
}

// checkPurity judges direct imports and syntax.
func (c *checker) checkPurity(f *file) {
	names := map[string]string{} // name → import path
	for _, i := range f.imports {
		names[i.name] = i.path
		if i.name == "." {
			c.add(f.path, i.pos, "dot import of "+i.path, whyDot)
		}
		if why := impureImport(i.path); why != "" {
			c.add(f.path, i.pos, "imports "+i.path, why)
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			c.add(f.path, n.Pos(), "a go statement", whyGo)
		case *ast.CallExpr:
			if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Go" {
				c.add(f.path, n.Pos(), "a call of a method Go", whyGo)
			}
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if !ok {
				return true
			}
			if why := impureName(names[x.Name], n.Sel.Name); why != "" {
				c.add(f.path, n.Pos(), "uses "+x.Name+"."+n.Sel.Name, why)
			}
		}
		return true
	})
}

func impureImport(p string) string {
	root, _, _ := strings.Cut(p, "/")
	switch {
	case p == "net/netip", p == "log/slog": // values; slog is judged by use
		return ""
	case root == "os", root == "net", root == "syscall":
		return whyIO
	case root == "log":
		return whyLog
	case p == "math/rand", p == "math/rand/v2", p == "crypto/rand":
		return whyRandom
	}
	return ""
}

func impureName(pkg, name string) string {
	switch pkg {
	case "time":
		switch name {
		case "Now", "Since", "Until", "Sleep", "After", "Tick", "NewTimer", "NewTicker", "AfterFunc":
			return whyClock
		}
	case "context":
		switch name {
		case "WithTimeout", "WithTimeoutCause", "WithDeadline", "WithDeadlineCause":
			return whyClock
		case "AfterFunc":
			return whyGo
		}
	case "log/slog":
		if name != "Value" && name != "StringValue" {
			return whySlog
		}
	case "fmt":
		switch name {
		case "Print", "Printf", "Println", "Scan", "Scanf", "Scanln":
			return whyIO
		}
	}
	return ""
}

// checkPackageLevel judges what a package does or holds before anyone calls it.
func (c *checker) checkPackageLevel(f *file) {
	if ast.IsGenerated(f.ast) {
		return
	}
	names := map[string]string{}
	for _, i := range f.imports {
		names[i.name] = i.path
	}
	for _, d := range f.ast.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				c.add(f.path, d.Pos(), "func init", whyInit)
			}
		case *ast.GenDecl:
			if d.Tok != token.VAR {
				continue
			}
			ast.Inspect(d, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncType, *ast.FuncLit:
					return false // a function's own business, until it is called
				case *ast.ChanType:
					c.add(f.path, n.Pos(), "a channel at package level", whyLevel)
				case *ast.CallExpr:
					if lit, ok := n.Fun.(*ast.FuncLit); ok {
						c.checkCalledLiteral(f, names, lit)
					}
				case *ast.SelectorExpr:
					c.checkTimer(f, names, n)
				}
				return true
			})
		}
	}
}

// checkCalledLiteral judges a function literal that runs while the package is
// initialised.
func (c *checker) checkCalledLiteral(f *file, names map[string]string, lit *ast.FuncLit) {
	ast.Inspect(lit.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			c.add(f.path, n.Pos(), "a goroutine at package level", whyLevel)
		case *ast.ChanType:
			c.add(f.path, n.Pos(), "a channel at package level", whyLevel)
		case *ast.SelectorExpr:
			c.checkTimer(f, names, n)
		}
		return true
	})
}

func (c *checker) checkTimer(f *file, names map[string]string, s *ast.SelectorExpr) {
	x, ok := s.X.(*ast.Ident)
	if !ok || names[x.Name] != "time" {
		return
	}
	switch s.Sel.Name {
	case "After", "Tick", "NewTimer", "NewTicker", "AfterFunc", "Timer", "Ticker":
		c.add(f.path, s.Pos(), "time."+s.Sel.Name+" at package level", whyLevel)
	}
}

// listExternals runs go list once, for the dependencies of the pure packages
// that exist under root.
func listExternals(t *testing.T, root string) map[string]external {
	t.Helper()
	args := []string{"list", "-e", "-deps", "-json=ImportPath,Imports,Module,Standard"}
	for _, f := range house {
		if _, err := os.Stat(path.Join(root, f.path)); f.pure && err == nil {
			args = append(args, "./"+f.path)
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	return decodeExternals(t, out)
}

func decodeExternals(t *testing.T, out []byte) map[string]external {
	t.Helper()
	found := map[string]external{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
			Module     *struct{ Path string }
			Standard   bool
		}
		if err := dec.Decode(&p); err == io.EOF {
			return found
		} else if err != nil {
			t.Fatal(err)
		}
		switch {
		case p.Standard:
			found[p.ImportPath] = external{}
		case p.Module != nil:
			found[p.ImportPath] = external{p.Module.Path, p.Imports}
		default:
			found[p.ImportPath] = external{"unknown", p.Imports} // not resolved: no module provides it
		}
	}
}

func TestLayering(t *testing.T) {
	const root = ".."
	externals := listExternals(t, root)
	// The listing is the basis of the judgement: show that it is not empty.
	for _, p := range []string{"filippo.io/edwards25519", "google.golang.org/protobuf/proto"} {
		if externals[p].module == "" || len(externals[p].imports) == 0 {
			t.Errorf("go list does not know %s, which pure packages import", p)
		}
	}
	found, err := check(os.DirFS(root), externals)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range found {
		t.Error(v)
	}
}

// source returns a file of the package in dir that imports paths and holds
// body. comment says whether the package is commented.
func source(dir string, comment bool, body string, paths ...string) string {
	name := path.Base(dir)
	kind := "Package " + name
	if strings.HasPrefix(dir, "cmd/") {
		name, kind = "main", "Command "+name
	}
	var b strings.Builder
	if comment {
		fmt.Fprintf(&b, "// %s does one thing.\n", kind)
	}
	fmt.Fprintf(&b, "package %s\n", name)
	for _, p := range paths {
		fmt.Fprintf(&b, "import %q\n", p)
	}
	return b.String() + body
}

// plan returns a tree with one package for each row of the plan, each of which
// imports all it may.
func plan() fstest.MapFS {
	dirs := planned()
	tree := fstest.MapFS{
		"go.mod":             {Data: []byte("module starling\n")},
		".hidden/x.go":       {Data: []byte("not Go")},
		"dht/testdata/x.go":  {Data: []byte("not Go")},
		"dht/bench/go.mod":   {Data: []byte("module bench\n")},
		"dht/bench/x.go":     {Data: []byte("not Go")},
		"cmd/relay/dist/x":   {Data: []byte("packaging")},
		"dht/gen.go":         {Data: []byte("//go:build ignore\n\npackage main\nimport \"starling/cmd/x\"\nfunc init() {}\n")},
		"dht/generated.go":   {Data: []byte("// Code generated by x. DO NOT EDIT.\n\npackage dht\nfunc init() {}\nvar c chan int\n")},
		"node/store/tool.go": {Data: []byte(source("node/store", false, "", "github.com/dgraph-io/badger/v4"))},
	}
	for _, dir := range dirs {
		row, _ := rowOf(dir)
		var paths []string
		for _, other := range dirs {
			if other != dir && within(other, row.imports) {
				paths = append(paths, module+"/"+other)
			}
		}
		for _, m := range row.modules {
			if m != modXSys && (m != modEdwards || within(dir, edwardsUsers())) {
				paths = append(paths, m)
			}
		}
		tree[dir+"/ok.go"] = &fstest.MapFile{Data: []byte(source(dir, true, harmless, append(paths, "time", "log/slog", "net/netip", "fmt")...))}
		tree[dir+"/ok_test.go"] = &fstest.MapFile{Data: []byte(source(dir, false, "func init() { go func() { time.Sleep(1) }() }",
			"os", "time", "crypto/rand", "math/rand/v2", "testing", "pgregory.net/rapid", module+"/protocol/ratchet", module+"/node/store/storetest"))}
	}
	tree["node/store/storetest/x.go"] = &fstest.MapFile{Data: []byte(source("node/store/storetest", true, "", module+"/node/store", "testing"))}
	return tree
}

// edwardsUsers are the folders that may import curve arithmetic themselves.
func edwardsUsers() []string {
	i := slices.IndexFunc(exclusives, func(x exclusive) bool { return x.module == modEdwards })
	return exclusives[i].folders
}

// harmless is code that breaks no rule of pure packages.
const harmless = `
var day = time.Date(2016, 11, 20, 0, 0, 0, 0, time.UTC)
var later = func(t time.Time) bool { return t.After(day) }
var lazy = func() chan int { return make(chan int) }
func (k key) LogValue() slog.Value { return slog.StringValue("[secret]") }
func f(w io.Writer) error { return fmt.Errorf("x") }
`

// planned returns the folders of the plan, with a program for cmd/*.
func planned() []string {
	var dirs []string
	for _, f := range house {
		dirs = append(dirs, strings.ReplaceAll(f.path, "*", "starling"))
	}
	return dirs
}

// outside are the dependencies of the planted trees.
func outside() map[string]external {
	return map[string]external{
		modEdwards:                  {modEdwards, []string{"crypto/sha512"}},
		modProtobuf:                 {modProtobuf, nil},
		modXCrypto:                  {modXCrypto, []string{"golang.org/x/sys/cpu"}},
		"golang.org/x/sys/cpu":      {modXSys, nil},
		"crypto/sha512":             {},
		"example.org/leaf":          {"example.org/leaf", nil},
		"example.org/branch/inside": {"example.org/branch", []string{"example.org/leaf"}},
	}
}

func TestLayeringAcceptsThePlan(t *testing.T) {
	found, err := check(plan(), outside())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range found {
		t.Error(v)
	}
}

// TestLayeringFindsPlantedViolations plants one violation of each rule in a
// folder of the plan, which has none, and wants it found, alone, with the
// rule's reason.
func TestLayeringFindsPlantedViolations(t *testing.T) {
	clean := plan()
	plant := func(name, where, src, what, why string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			tree := fstest.MapFS{where: {Data: []byte(src)}}
			for p, f := range clean {
				if path.Dir(p) == path.Dir(where) && p != where {
					tree[p] = f
				}
			}
			found, err := check(tree, outside())
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != 1 {
				t.Fatalf("found %d violations %v, want 1", len(found), found)
			}
			v := found[0]
			if !strings.HasPrefix(v.where, path.Dir(where)) || !strings.Contains(v.what, what) || v.why != why {
				t.Errorf("found %q, want %s in %s because %q", v, what, where, why)
			}
		})
	}
	// in plants a file in dir.
	in := func(name, dir, what, why, body string, paths ...string) {
		t.Helper()
		plant(name, dir+"/bad.go", source(dir, false, body, paths...), what, why)
	}

	for _, dir := range planned() {
		row, _ := rowOf(dir)
		for _, other := range planned() {
			if other != dir && !within(other, row.imports) {
				in(dir+" imports "+other, dir, "imports "+other, row.why, "", module+"/"+other)
			}
		}
		in(dir+" imports fakes", dir, "imports node/store/storetest", whyTest, "", module+"/node/store/storetest")
		for _, x := range exclusives {
			if !within(dir, x.folders) && !row.pure {
				p := strings.TrimSuffix(x.module, "/") + "/some/package"
				in(dir+" imports "+p, dir, "imports "+p, x.why, "", p)
			}
		}
		in(dir+" has init", dir, "func init", whyInit, "func init() {}")

		if !row.pure {
			continue
		}
		for _, p := range []string{"os", "os/exec", "net", "net/http", "syscall"} {
			in(dir+" imports "+p, dir, "imports "+p, whyIO, "", p)
		}
		for _, p := range []string{"math/rand", "math/rand/v2", "crypto/rand"} {
			in(dir+" imports "+p, dir, "imports "+p, whyRandom, "", p)
		}
		in(dir+" imports log", dir, "imports log", whyLog, "", "log")
		in(dir+" has a go statement", dir, "a go statement", whyGo, "func g() { go g() }")
		in(dir+" depends on a module", dir, "module example.org/leaf", whyModules, "", "example.org/leaf")
	}

	const pure = "protocol/identity"
	for _, name := range []string{"Now", "Since", "Until", "Sleep", "After", "Tick", "NewTimer", "NewTicker", "AfterFunc"} {
		in("time."+name, pure, "time."+name, whyClock, "func g() { _ = time."+name+" }", "time")
	}
	plant("time under another name", pure+"/bad.go", "package identity\nimport clock \"time\"\nfunc g() { clock.Now() }", "clock.Now", whyClock)
	plant("time without a name", pure+"/bad.go", "package identity\nimport . \"time\"\nfunc g() { Now() }", "dot import", whyDot)
	in("context with a timer", pure, "context.WithTimeout", whyClock, "func g() { context.WithTimeout(nil, 1) }", "context")
	in("context with a goroutine", pure, "context.AfterFunc", whyGo, "func g() { context.AfterFunc(nil, nil) }", "context")
	in("WaitGroup.Go", pure, "method Go", whyGo, "func g(wg *sync.WaitGroup) { wg.Go(nil) }", "sync")
	in("printing", pure, "fmt.Println", whyIO, "func g() { fmt.Println() }", "fmt")
	for _, use := range []string{"Info", "Default", "Logger", "GroupValue"} {
		in("slog."+use, pure, "slog."+use, whySlog, "var _ = slog."+use, "log/slog")
	}

	t.Run("modules deep in the tree", func(t *testing.T) {
		tree := fstest.MapFS{
			"protocol/attachment/ok.go":  clean["protocol/attachment/ok.go"], // imports protocol
			"protocol/attachment/bad.go": {Data: []byte(source("protocol/attachment", false, "", "example.org/branch/inside"))},
		}
		deps := outside()
		deps["starling/protocol"] = external{module, []string{"example.org/below"}}
		deps["example.org/below"] = external{"example.org/below", nil}
		found, err := check(tree, deps)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range found {
			if v.why != whyModules {
				t.Errorf("found %v, want nothing but modules", v)
			}
			got = append(got, v.what)
		}
		want := []string{
			"depends on module example.org/branch through example.org/branch/inside", // imported
			"depends on module example.org/leaf through example.org/branch/inside",   // behind it
			"depends on module example.org/below through starling/protocol",          // behind a package of ours
		}
		if !slices.Equal(got, want) {
			t.Errorf("found %q, want %q", got, want)
		}
	})

	in("a channel", "node", "a channel", whyLevel, "var c = make(chan int)")
	in("a channel's type", "node", "a channel", whyLevel, "var c chan<- int")
	in("a channel in a map", "node", "a channel", whyLevel, "var c map[string]chan int")
	in("a channel made by a call", "node", "a channel", whyLevel, "var c = func() any { return make(chan int) }()")
	in("a goroutine", "node", "a goroutine", whyLevel, "var x = func() int { go f(); return 1 }()")
	in("a timer", "node", "time.NewTimer", whyLevel, "var x = time.NewTimer(1)", "time")
	in("a ticker", "node", "time.Tick", whyLevel, "var x = time.Tick(1)", "time")
	in("a timer in a struct", "node", "time.Timer", whyLevel, "var x struct { t *time.Timer }", "time")
	in("a timer made by a call", "node", "time.AfterFunc", whyLevel, "var x = func() any { return time.AfterFunc(1, nil) }()", "time")

	in("a foreign folder at the top", "internal", "top level", whyTopLevel, "")
	plant("an unknown folder", "node/mailbox/bad.go", source("node/mailbox", true, ""), "unknown folder", whyUnknown)
	plant("a folder too deep", "cmd/starling/flags/bad.go", "// Package flags is deep.\npackage flags", "unknown folder", whyUnknown)
	for _, name := range vague {
		plant("package "+name, "dht/bad.go", "package "+name, "package "+name, whyVague)
	}

	for _, dir := range planned() {
		plant("no comment in "+dir, dir+"/ok.go", source(dir, false, ""), "no comment", whyComment)
	}
	plant("a comment that names another", "dht/ok.go", "// Package other is not this one.\npackage dht", "no comment", whyComment)

	// Tests: anything pure, nothing above, and the owned modules stay owned.
	test := func(name, dir, what, why string, paths ...string) {
		t.Helper()
		plant(name, dir+"/bad_test.go", source(dir, false, "", paths...), what, why)
	}
	test("a pure test imports a node", "protocol/ratchet", "imports node/store", whyBelow, module+"/node/store")
	test("a test imports a program", "node/api", "imports cmd/starling", whyBelow, module+"/cmd/starling")
	test("a test imports the simulation", "node", "imports simulation", whyBelow, module+"/simulation")
	test("a test imports badger", "node/session", "imports github.com/dgraph-io/badger/v4", exclusives[0].why, "github.com/dgraph-io/badger/v4")
}

// A vague folder below the top is found twice: it has no row, and its name.
func TestLayeringFindsVagueFolders(t *testing.T) {
	tree := plan()
	tree["node/util/x.go"] = &fstest.MapFile{Data: []byte("// Package tool is named well.\npackage tool")}
	found, err := check(tree, outside())
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found[0].why != whyUnknown && found[1].why != whyUnknown || found[0].why != whyVague && found[1].why != whyVague {
		t.Errorf("found %v, want an unknown folder with a vague name", found)
	}
}
