package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"starling/node"
	"starling/node/api"
)

// daemon is what the commands ask.
type daemon = api.StarlingClient

// ask dials the daemon of p, or uses the line there is, and asks for its
// status. A daemon that starts or is locked is an answer, not a failure.
func (a *app) ask(ctx context.Context, p profile) (daemon, *api.StatusResponse, error) {
	if a.api == nil {
		c, err := api.Dial(ctx, p.dir)
		switch {
		case err == nil, c != nil && (errors.Is(err, api.ErrLocked) || errors.Is(err, api.ErrStarting)):
			a.api = c
		case errors.Is(err, api.ErrStarting):
			return nil, &api.StatusResponse{State: api.StateStarting}, nil // its socket is not there yet
		default:
			if c != nil {
				c.Close()
			}
			return nil, nil, a.noAnswer(ctx, p, err)
		}
	}
	st, err := api.Call(ctx, a.api.Status, &api.StatusRequest{})
	if err != nil {
		a.hangUp()
		return nil, nil, a.noAnswer(ctx, p, err)
	}
	return a.api, st, nil
}

// hangUp gives up the line to the daemon.
func (a *app) hangUp() {
	if a.api != nil {
		a.api.Close()
		a.api = nil
	}
}

// noAnswer says why the daemon does not answer, and what to do.
func (a *app) noAnswer(ctx context.Context, p profile, err error) error {
	if errors.Is(err, api.ErrNotRunning) && ctx.Err() == nil {
		if ok, err := p.exists(); err != nil {
			return err
		} else if !ok {
			return fail(exitUnreachable, "there is no profile in %s", p.dir).try("Make one with: %s", p.command("init"))
		}
	}
	return err
}

// stuck is what to do about a daemon that lives and has no socket, or none
// yet. Nothing but its process is left to reach it by.
func (p profile) stuck() string {
	return fmt.Sprintf("Try again in a moment. Its log is %s\nIf that says it runs, its socket in %s was removed: end the process with kill, then start it again.",
		p.log, filepath.Join(p.dir, "run"))
}

// startLimit bounds how long a command waits for a daemon that starts.
const startLimit = 60 * time.Second

// connect returns the daemon of the profile once it runs. A failure says what
// is wrong and the exact command that cures it.
func (a *app) connect(ctx context.Context) (daemon, error) {
	d, st, err := a.connectAny(ctx)
	if err != nil {
		return nil, err
	}
	if st.State == api.StateLocked {
		return nil, a.locked()
	}
	return d, nil
}

// locked is the failure of a command that needs the store of a locked profile.
func (a *app) locked() error {
	p, err := a.profile()
	if err != nil {
		return err
	}
	return fail(exitLocked, "the profile is locked").try("Unlock it with: %s", p.command("unlock"))
}

// connectAny is connect for commands that make sense on a locked profile: the
// daemon is running or locked when it returns.
func (a *app) connectAny(ctx context.Context) (daemon, *api.StatusResponse, error) {
	p, err := a.profile()
	if err != nil {
		return nil, nil, err
	}
	for end, said := time.Now().Add(startLimit), ""; ; {
		d, st, err := a.ask(ctx, p)
		if err != nil {
			return nil, nil, err
		}
		switch st.State {
		case api.StateRunning, api.StateLocked:
			return d, st, nil
		case api.StateStopping:
			return nil, nil, fail(exitUnreachable, "starling is stopping").try("Start it again with: %s", p.command("up --detach"))
		}
		if time.Now().After(end) {
			return nil, nil, fail(exitUnreachable, "starling is still starting after %s", spell(startLimit)).try("%s", p.stuck())
		}
		if said != st.State {
			said = st.State
			a.note("%s", map[string]string{api.StateStarting: "Waiting for starling to start …", api.StateUnlocking: "Waiting for the profile to be unlocked …"}[said])
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, nil, err
		}
	}
}

// pause waits for d, or fails when ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// apiFailure gives an error of the daemon its exit code, or returns nil if err
// is none.
func (a *app) apiFailure(err error) *failure {
	command := func(args string) string {
		p, err := a.profile()
		if err != nil {
			return "starling " + args
		}
		return p.command(args)
	}
	if e, ok := errors.AsType[*node.Error](err); ok {
		f := fail(exitError, "%s", e.Msg)
		f.hint = sentence(e.Hint)
		switch e.Kind {
		case node.KindInvalid, node.KindAmbiguous:
			f.code = exitUsage
		case node.KindNotFound:
			f.code = exitNotFound
		case node.KindKeyChanged, node.KindHeld:
			f.code = exitIdentity
		}
		return f
	}
	f := fail(exitUnreachable, "%s", err)
	switch {
	case errors.Is(err, api.ErrLocked):
		f.code, f.hint = exitLocked, "Unlock it with: "+command("unlock")
	case errors.Is(err, api.ErrPassphrase):
		f.code = exitLocked
	case errors.Is(err, api.ErrVersion):
		f.code, f.hint = exitVersion, "Restart it with this program: "+command("stop")+" && "+command("up --detach")
	case errors.Is(err, api.ErrNotRunning), errors.Is(err, api.ErrStale):
		f.hint = "Start it with: " + command("up --detach")
	case errors.Is(err, api.ErrPermission):
		f.hint = "The profile belongs to another user. Run this as that user, or choose another with --home DIR."
	case errors.Is(err, api.ErrStarting):
		f.hint = "Try again in a moment."
	default:
		return nil
	}
	return f
}

// sentence begins a hint of the daemon as ours begin. One that begins with a
// command stays as it is to be typed.
func sentence(s string) string {
	if strings.HasPrefix(s, "starling ") {
		return s
	}
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + s[n:]
}

// done answers a command that changes something and has nothing to show: one
// object under --json, else one sentence.
func (a *app) done(v any, format string, args ...any) {
	if a.json {
		a.print(v)
		return
	}
	fmt.Fprintf(a.out, format+"\n", args...)
}

// contactNames completes the name of a contact, where the argument at the
// given position is one. A shell that completes must not wait for long.
func (a *app) contactNames(position int, requests bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) != position {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 500*time.Millisecond)
		defer cancel()
		p, err := a.profile()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		d, _, err := a.ask(ctx, p)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, err := api.Call(ctx, d.ListContacts, &api.ListContactsRequest{Requests: requests})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, c := range list.Contacts {
			names = append(names, escape(c.Name))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
