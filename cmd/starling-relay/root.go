package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// version is set by a release with -ldflags "-X main.version=…".
var version = "0.1.0-dev"

// Exit codes. They are a contract, and mean what those of starling mean.
const (
	exitOK          = 0
	exitError       = 1 // anything without a code of its own
	exitUsage       = 2 // wrong flags, arguments or settings
	exitUnreachable = 3 // the relay does not run, or cannot be talked to
	exitNotFound    = 5 // no such link
	exitVersion     = 8 // the relay is of another version of this program
	exitInterrupted = 130
)

// A failure is an error with an exit code and, mostly, with what to do next.
type failure struct {
	code int
	msg  string
	hint string
}

func (f *failure) Error() string { return f.msg }

func fail(code int, format string, args ...any) *failure {
	return &failure{code: code, msg: fmt.Sprintf(format, args...)}
}

func usage(format string, args ...any) *failure { return fail(exitUsage, format, args...) }

// try adds what to do next.
func (f *failure) try(format string, args ...any) *failure {
	f.hint = fmt.Sprintf(format, args...)
	return f
}

// app is one run of the program.
type app struct {
	out, err io.Writer
	terminal bool // standard error is one
	dir      string
	config   string // --config
	json     bool
	verbose  bool
	began    bool // a command began: errors are no longer about the command line
}

// run is the program. It returns the exit code.
func run(args []string, out, errs *os.File) int {
	a := &app{out: out, err: errs, terminal: term.IsTerminal(int(errs.Fd()))}
	// Flags that do not parse must be reported in the form that was asked for.
	a.json = slices.Contains(args, "--json")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once

	root := a.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	f, ok := errors.AsType[*failure](err)
	switch {
	case ok:
	case ctx.Err() != nil:
		f = fail(exitInterrupted, "interrupted")
	case !a.began:
		msg, _, _ := strings.Cut(err.Error(), "\n")
		f = usage("%s", msg).try("See starling-relay --help.")
	default:
		f = fail(exitError, "%s", err)
	}
	a.report(f)
	return f.code
}

func (a *app) report(f *failure) {
	if a.json {
		printJSON(a.err, struct {
			Code  int    `json:"code"`
			Error string `json:"error"`
			Hint  string `json:"hint"`
		}{f.code, f.msg, f.hint})
		return
	}
	fmt.Fprintf(a.err, "starling-relay: %s\n", f.msg)
	if f.hint != "" {
		fmt.Fprintln(a.err, f.hint)
	}
}

func printJSON(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		fmt.Fprintln(os.Stderr, "starling-relay: writing JSON:", err)
	}
}

// facts prints a block of labels and values, leaving out empty values.
func (a *app) facts(rows ...[2]string) {
	wide := 0
	for _, r := range rows {
		if r[1] != "" {
			wide = max(wide, len(r[0]))
		}
	}
	for _, r := range rows {
		if r[1] != "" {
			fmt.Fprintf(a.out, "  %-*s  %s\n", wide, r[0], r[1])
		}
	}
}

const longHelp = `A relay keeps encrypted messages for people who are away, and helps nodes to
find each other. It reads none of them, and knows nobody's name.

  starling-relay up             run it
  starling-relay link --token   make a link for somebody who may use it
  starling-relay status         see what it holds and costs

Its folder is $STARLING_RELAY_HOME, else ~/.local/share/starling-relay; its
settings are relay.toml there.`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "starling-relay", Short: "Keep encrypted messages for people who are away", Long: longHelp,
		Version: version, SilenceUsage: true, SilenceErrors: true,
		PersistentPreRun: func(*cobra.Command, []string) { a.began = true },
		Args:             subcommand,
		RunE:             func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	f := root.PersistentFlags()
	f.StringVar(&a.dir, "home", "", "`folder` of the relay (default $STARLING_RELAY_HOME, else the XDG folder)")
	f.StringVar(&a.config, "config", "", "settings `file` (default relay.toml in the folder)")
	f.BoolVar(&a.json, "json", a.json, "print JSON")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log more")
	cobra.EnableCommandSorting = false
	root.AddCommand(a.upCmd(), a.linkCmd(), a.statusCmd(), a.checkCmd(), a.drainCmd(), a.keyCmd())
	return root
}

// subcommand refuses a word that is no command.
func subcommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usage("%s has no command %q", c.CommandPath(), args[0]).try("See %s --help.", c.CommandPath())
}

// exactly checks the number of arguments and says what is missing by name.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		switch {
		case len(got) < len(names):
			return usage("%s is missing", names[len(got)]).try("Usage: %s", c.UseLine())
		case len(got) > len(names):
			return usage("%q is one argument too many", got[len(names)]).try("Usage: %s", c.UseLine())
		}
		return nil
	}
}

// A home is where one relay's things are.
type home struct {
	dir, config string
	flag        string // " --home DIR" where a command must name it, or empty
}

func (h home) path(name string) string    { return filepath.Join(h.dir, name) }
func (h home) command(args string) string { return "starling-relay" + h.flag + " " + args }

// home finds the folder: --home, then STARLING_RELAY_HOME, then the XDG folder.
func (a *app) home() (home, error) {
	h := home{dir: a.dir}
	switch {
	case a.dir != "":
		h.flag = " --home " + shellQuote(a.dir)
	case os.Getenv("STARLING_RELAY_HOME") != "":
		h.dir = os.Getenv("STARLING_RELAY_HOME")
	case filepath.IsAbs(os.Getenv("XDG_DATA_HOME")):
		h.dir = filepath.Join(os.Getenv("XDG_DATA_HOME"), "starling-relay")
	default:
		base, err := os.UserConfigDir()
		if runtime.GOOS != "windows" && runtime.GOOS != "darwin" {
			if base, err = os.UserHomeDir(); err == nil {
				base = filepath.Join(base, ".local", "share")
			}
		}
		if err != nil {
			return h, usage("there is no home folder: %s", err).try("Name one with --home DIR.")
		}
		h.dir = filepath.Join(base, "starling-relay")
	}
	dir, err := filepath.Abs(h.dir)
	if err != nil {
		return h, err
	}
	h.dir, h.config = dir, a.config
	if h.config == "" {
		h.config = h.path("relay.toml")
	}
	return h, nil
}

// shellQuote returns s as one word of a shell command.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:=@%,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
