package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"starling/node/api"
)

// app is one run of the program: its streams and the flags that every command
// knows.
type app struct {
	in       *os.File
	out, err *screen
	dir      string // --home
	json     bool
	verbose  bool
	began    bool        // a command began: errors are no longer about the command line
	api      *api.Client // the line to the daemon, or nil
}

// run is the program. It returns the exit code.
func run(args []string, in, out, errs *os.File) int {
	a := &app{in: in, out: newScreen(out), err: newScreen(errs)}
	// Flags that do not parse must be reported in the form that was asked for.
	before, _, _ := cutArg(args, "--")
	a.json = slices.Contains(before, "--json")

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once

	defer a.hangUp()
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	if err := root.ExecuteContext(ctx); err != nil {
		f := a.asFailure(ctx, err)
		if f.msg != "" {
			a.report(f)
		}
		return f.code
	}
	return exitOK
}

func cutArg(args []string, sep string) (before, after []string, found bool) {
	if i := slices.Index(args, sep); i >= 0 {
		return args[:i], args[i+1:], true
	}
	return args, nil, false
}

const longHelp = `Starling is a messenger with no server in the middle. Every user runs a node;
nodes find each other in a distributed hash table and talk end-to-end encrypted.

  starling init             make a profile
  starling up               start the node
  starling invite           make a link for somebody you want to talk to
  starling contact add …    add somebody by the link they gave you
  starling chat NAME        talk

  starling demo             see the whole story on this machine first`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "starling",
		Short:         "A messenger with no server in the middle",
		Long:          longHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		// Only a command that parsed gets here.
		PersistentPreRun: func(*cobra.Command, []string) { a.began = true },
		Args:             subcommand,
		RunE:             func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := root.PersistentFlags()
	f.StringVar(&a.dir, "home", "", "profile `folder` (default $STARLING_HOME, else the XDG folders)")
	f.BoolVar(&a.json, "json", a.json, "print JSON, one object a line")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say what is waited for, even without a terminal")
	cobra.EnableCommandSorting = false

	for _, g := range []struct {
		id, title string
		cmds      []*cobra.Command
	}{
		{"node", "Your node", []*cobra.Command{a.initCmd(), a.upCmd(), a.stopCmd(), a.lockCmd(), a.unlockCmd(), a.passphraseCmd(), a.statusCmd(), a.doctorCmd(), a.relayCmd(), a.bootstrapCmd()}},
		{"people", "People", []*cobra.Command{a.inviteCmd(), a.contactCmd()}},
		{"talk", "Talking", []*cobra.Command{a.sendCmd(), a.historyCmd(), a.chatCmd(), a.eventsCmd()}},
		{"more", "More", []*cobra.Command{a.demoCmd(), a.versionCmd()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title + ":"})
		for _, c := range g.cmds {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	root.AddCommand(&cobra.Command{Use: "exit-codes", Short: "What the exit codes mean to a script", Long: exitHelp})
	root.AddCommand(&cobra.Command{Use: "settings", Short: "What starling.toml can say", Long: settingsHelp})
	root.SetHelpCommandGroupID("more")
	root.SetCompletionCommandGroupID("more")
	return root
}

// group makes a command that only holds others, and refuses to be called with
// a word that is none of them.
func group(use, short string, cmds ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: subcommand, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(cmds...)
	return c
}

func subcommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	f := usage("%s has no command %q", c.CommandPath(), args[0])
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		return f.try("Did you mean %s?", strings.Join(near, ", "))
	}
	return f.try("See %s --help.", c.CommandPath())
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

// interactive reports whether a person can be asked: standard input is a
// terminal. A script may own a terminal too, but has redirected its input.
func (a *app) interactive() bool { return term.IsTerminal(int(a.in.Fd())) }

// note says on standard error what is going on, to a person only.
func (a *app) note(format string, args ...any) {
	if a.verbose || a.err.terminal && !a.json {
		fmt.Fprintln(a.err, a.err.paint(dim, fmt.Sprintf(format, args...)))
	}
}

// next gives a person a hint at the next step.
func (a *app) next(format string, args ...any) {
	if a.err.terminal && !a.json {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

// print writes v to standard output as one line of JSON.
func (a *app) print(v any) { a.jsonTo(a.out, v) }

func (a *app) jsonTo(w io.Writer, v any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("starling: internal error: a value of our own does not encode: " + err.Error())
	}
	w.Write(escapeJSON(b.Bytes()))
}
