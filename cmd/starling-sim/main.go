// Command starling-sim runs whole networks of Starling nodes in virtual time,
// from a scenario and a seed, and writes what happened into a folder.
//
// This package holds flags, wiring and printing. Scenarios are read and played
// by simulation/scenario, worlds are run by simulation, and results are written
// by simulation/report.
//
// What it promises to scripts: data on standard output, progress and hints on
// standard error; one JSON object, or one a line, with --json; and the exit
// codes below.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Exit codes. They are a contract.
const (
	exitOK          = 0
	exitError       = 1   // anything without a code of its own
	exitUsage       = 2   // wrong flags, arguments or scenario; or --exact in an ordinary build
	exitViolated    = 6   // a promise was not kept: the report says which, when, and how to repeat it
	exitInterrupted = 130 // Ctrl-C; what there was is written
)

// A failure is an error with an exit code and, mostly, with what to do next.
type failure struct {
	code int
	msg  string
	hint string // what to do, or empty
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
	out, err *os.File
	json     bool
	began    bool // a command began: errors are no longer about the command line
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, out, errs *os.File) int {
	// A collector that runs a quarter as often costs half the memory again, and
	// saves a sixth of the time. GOGC still decides where it is set.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(300)
	}
	// Nodes that lose power are no news here, and there may be thousands.
	gologshim.SetDefaultHandler(slog.DiscardHandler)

	a := &app{out: out, err: errs, json: slices.Contains(args, "--json")}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	root := a.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	if err := root.ExecuteContext(ctx); err != nil {
		return a.report(ctx, err)
	}
	return exitOK
}

// report prints an error and returns its exit code.
func (a *app) report(ctx context.Context, err error) int {
	f, ok := errors.AsType[*failure](err)
	switch {
	case ok:
	case ctx.Err() != nil:
		f = fail(exitInterrupted, "interrupted")
	case !a.began:
		text, _, internal := strings.Cut(err.Error(), ": strconv.") // how Go says it is of no use
		if internal {
			text += ": it is not such a number"
		}
		f = usage("%s", text).try("See starling-sim --help.")
	default:
		f = fail(exitError, "%s", err)
	}
	if a.json {
		a.print(a.err, struct {
			Code  int    `json:"code"`
			Error string `json:"error"`
			Hint  string `json:"hint"`
		}{f.code, f.msg, f.hint})
		return f.code
	}
	fmt.Fprintf(a.err, "starling-sim: %s\n", plain(f.msg))
	if f.hint != "" {
		fmt.Fprintln(a.err, plain(f.hint))
	}
	return f.code
}

// plain replaces what a terminal would obey: scenario files and results may be
// somebody else's, and name nodes as they like.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '·'
	}, s)
}

// print writes v as one line of JSON.
func (a *app) print(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil && !errors.Is(err, syscall.EPIPE) {
		fmt.Fprintf(a.err, "starling-sim: %s\n", err)
	}
}

// terminal reports whether a person watches standard error.
func (a *app) terminal() bool { return term.IsTerminal(int(a.err.Fd())) }

const longHelp = `Starling-sim runs real Starling nodes by the hundred in one process, in virtual
time, from a seed, and writes a report.

  starling-sim list                    which scenarios there are
  starling-sim run hello               run one; the last line is its report
  starling-sim show hello > mine.toml  take one as the beginning of your own
  starling-sim sweep storm --seeds 1..10 --vary loss=0.1,0.3 --vary nodes=12,24
                                       run it for every combination, and plot

Exit codes: 0 done, and every promise was kept; 1 the run or the command failed,
say on a full disk; 2 wrong flags, arguments or scenario; 6 a promise was broken;
130 interrupted.`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:              "starling-sim",
		Short:            "Networks of Starling nodes in virtual time",
		Long:             longHelp,
		SilenceUsage:     true,
		SilenceErrors:    true,
		PersistentPreRun: func(*cobra.Command, []string) { a.began = true },
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				if meant := c.SuggestionsFor(args[0]); len(meant) > 0 {
					return usage("starling-sim has no command %q; did you mean %q?", args[0], meant[0]).try("See starling-sim --help.")
				}
				return usage("starling-sim has no command %q", args[0]).try("See starling-sim --help.")
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.PersistentFlags().BoolVar(&a.json, "json", a.json, "print JSON, one object a line")
	root.SuggestionsMinimumDistance = 2
	cobra.EnableCommandSorting = false
	root.AddCommand(a.listCmd(), a.showCmd(), a.runCmd(), a.sweepCmd(), a.compareCmd(), a.mergeCmd(), a.exactCmd(), a.versionCmd())
	return root
}

// named checks the number of arguments and says what is missing by name. A last
// name that ends in … takes one or more.
func named(names ...string) cobra.PositionalArgs {
	many := len(names) > 0 && strings.HasSuffix(names[len(names)-1], "…")
	return func(c *cobra.Command, got []string) error {
		switch {
		case len(got) < len(names):
			return usage("%s is missing", strings.TrimSuffix(names[len(got)], "…")).try("Usage: %s", c.UseLine())
		case len(got) > len(names) && !many:
			return usage("%q is one argument too many", got[len(names)]).try("Usage: %s", c.UseLine())
		}
		return nil
	}
}
