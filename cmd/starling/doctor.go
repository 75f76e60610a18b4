package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"starling/node/api"
)

func (a *app) doctorCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "doctor [CONTACT]",
		Short: "Find out why something does not work, in plain words",
		Long: `Find out why something does not work. With a contact, also why messages to them
are not delivered: how old their record is, which relays have something for them,
what they acknowledged last, what waits, and how each of you is reached. Works
without a running node too. Exits 0 if nothing is bad.

With --bundle the findings go into a new file for a bug report, with states,
numbers, times, versions and errors, and contact-1 or relay-2 in place of names:
no texts, keys, IDs or addresses. Read it before you hand it on.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.contactNames(0, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			who := ""
			if len(args) == 1 {
				who = args[0]
			}
			fs, st, err := a.examine(cmd.Context(), who)
			for _, f := range fs {
				if a.json {
					a.print(findingOf(f))
				} else {
					a.showFinding(f)
				}
			}
			if file != "" {
				if werr := writeBundle(file, bundleOf(fs, st, a.acquainted(cmd.Context(), st), time.Now())); werr != nil {
					return werr
				}
				a.next("Written to %s. Read it before you hand it on.", file)
			}
			if err != nil {
				return err
			}
			for _, f := range fs {
				if f.Level == "bad" {
					return fail(exitError, "") // the findings said it
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "bundle", "", "write a report without names to `file`")
	return c
}

// examine looks at what can be seen from here, then asks the daemon. An error
// is that of the daemon not answering.
func (a *app) examine(ctx context.Context, who string) ([]*api.Finding, *api.StatusResponse, error) {
	p, err := a.profile()
	if err != nil {
		return nil, nil, err
	}
	fs := append(p.checkFolder(), p.checkSettings(), checkFiles())
	d, st, err := a.ask(ctx, p)
	if err != nil {
		f := a.asFailure(ctx, err)
		return append(fs, &api.Finding{Check: "daemon", Level: "bad", Text: f.msg, Hint: f.hint}), nil, fail(f.code, "")
	}
	if st.State != api.StateRunning {
		f := &api.Finding{Check: "daemon", Level: "bad", Text: "the daemon is " + st.State}
		if st.State == api.StateLocked {
			f.Hint = "Unlock it with: " + p.command("unlock")
			return append(fs, f), st, fail(exitLocked, "")
		}
		return append(fs, f), st, fail(exitUnreachable, "")
	}
	fs = append(fs, &api.Finding{Check: "daemon", Level: "ok", Text: "the daemon runs, started " + ago(when(st.Started), time.Now())})
	if st.Version != version {
		fs = append(fs, &api.Finding{
			Check: "version", Level: "warn", Text: fmt.Sprintf("the daemon is starling %s, this program %s", st.Version, version),
			Hint: "Restart it: " + p.command("stop") + " && " + p.command("up --detach"),
		})
	}
	a.note("Asking the node …")
	r, err := api.Call(ctx, d.Doctor, &api.DoctorRequest{Contact: who})
	if err != nil {
		return fs, st, err
	}
	return append(fs, r.Findings...), st, nil
}

func (p profile) checkFolder() []*api.Finding {
	ok, err := p.exists()
	switch {
	case err != nil:
		return []*api.Finding{{Check: "profile", Level: "bad", Text: err.Error()}}
	case !ok:
		return []*api.Finding{{Check: "profile", Level: "bad", Text: "there is no profile in " + p.dir, Hint: "Make one with: " + p.command("init")}}
	}
	fs := []*api.Finding{{Check: "profile", Level: "ok", Text: "the profile is in " + p.dir}}
	if info, err := os.Stat(p.dir); err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		fs = append(fs, &api.Finding{Check: "profile", Level: "warn", Text: fmt.Sprintf("other users may look into %s (mode %04o)", p.dir, info.Mode().Perm()), Hint: "chmod 700 " + shellQuote(p.dir)})
	}
	return fs
}

func (p profile) checkSettings() *api.Finding {
	if _, err := p.readSettings(); err != nil {
		return &api.Finding{Check: "settings", Level: "bad", Text: err.Error()}
	}
	return &api.Finding{Check: "settings", Level: "ok", Text: "the settings are in order"}
}

// minFiles is how many open files a node in a large network may come to need:
// connections, and the tables of the store.
const minFiles = 1024

func checkFiles() *api.Finding {
	n, ok := fileLimit()
	if ok && n < minFiles {
		return &api.Finding{Check: "files", Level: "warn", Text: fmt.Sprintf("this user may open %d files only", n), Hint: "Raise the limit: ulimit -n 4096"}
	}
	return &api.Finding{Check: "files", Level: "ok", Text: "enough files may be open at once"}
}

func (a *app) showFinding(f *api.Finding) {
	mark, style := "✓", green
	switch f.Level {
	case "warn":
		mark, style = "!", yellow
	case "bad":
		mark, style = "✗", red
	}
	fmt.Fprintf(a.out, "%s %-9s %s\n", a.out.paint(style, mark), escape(f.Check), escape(f.Text))
	if f.Hint != "" {
		fmt.Fprintf(a.out, "%12s%s\n", "", a.out.paint(dim, escape(f.Hint)))
	}
}

// paths counts how contacts are connected.
func paths(cs []*api.Connection) map[string]int {
	n := map[string]int{api.PathDirect: 0, api.PathCircuit: 0}
	for _, c := range cs {
		n[c.Path]++
	}
	return n
}
