package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"starling/node/api"
)

// detachLimit bounds how long up --detach waits for the daemon to answer.
const detachLimit = 60 * time.Second

// detach starts this program again in a session of its own, with its log in
// the home, and returns when status answers. The passphrase goes to the child
// by unlock, never on a command line.
func (a *app) detach(ctx context.Context, p profile, o upOptions, pass []byte) error {
	if err := os.MkdirAll(filepath.Dir(p.log), 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	defer log.Close()
	begin, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	child := exec.Command(self, append(a.upArgs(), o.args()...)...)
	child.Stdout, child.Stderr = log, log
	// What systemd gave to this process is not the child's to use.
	child.Env = append(os.Environ(), "NOTIFY_SOCKET=", "CREDENTIALS_DIRECTORY=")
	ownSession(child)
	if err := child.Start(); err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	ended := make(chan error, 1) // sent once, when the child ends
	go func() { ended <- child.Wait() }()

	a.note("Starting …")
	for end := time.Now().Add(detachLimit); ; {
		d, st, err := a.ask(ctx, p)
		switch {
		case err == nil && st.State == api.StateLocked && pass != nil:
			if _, err := api.Call(ctx, d.Unlock, &api.UnlockRequest{Passphrase: pass}); err != nil {
				return err
			}
			continue
		case err == nil && (st.State == api.StateRunning || st.State == api.StateLocked):
			a.showDetached(p, st)
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(end):
			return fail(exitUnreachable, "the daemon does not answer after %s", spell(detachLimit)).try("Its log is %s", p.log)
		}
		select {
		case err := <-ended:
			return childFailure(p, begin, err)
		default:
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

func (a *app) showDetached(p profile, st *api.StatusResponse) {
	if a.json {
		a.print(statusOf(st))
		return
	}
	if st.State == api.StateLocked {
		fmt.Fprintf(a.out, "Starling runs locked (process %d).\n", st.Pid)
		fmt.Fprintf(a.err, "Unlock it with: %s\n", p.command("unlock"))
		return
	}
	fmt.Fprintf(a.out, "%s runs (process %d).\n", a.out.paint(bold, escape(st.Name)), st.Pid)
	a.next("Invite someone: %s", p.command("invite"))
}

// childFailure says why the daemon ended, by the end of what it logged.
func childFailure(p profile, begin int64, err error) error {
	code := exitError
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() > 0 {
		code = e.ExitCode()
	}
	f := fail(code, "the daemon ended at once").try("Its log is %s", p.log)
	if b, err := os.ReadFile(p.log); err == nil && int64(len(b)) > begin {
		said := strings.TrimSpace(string(b[begin:]))
		if _, after, ok := strings.Cut(said, "starling: "); ok {
			said = after // the failure that ended it comes last
		}
		f.msg += ": " + said
	}
	return f
}

// upArgs are the arguments that start the daemon of this profile.
func (a *app) upArgs() []string {
	if a.dir == "" {
		return []string{"up"}
	}
	return []string{"--home", a.dir, "up"}
}

// args spells the flags that the child needs.
func (o upOptions) args() []string {
	var args []string
	for _, l := range []struct {
		flag   string
		values []string
	}{{"--listen", o.listen}, {"--announce", o.announce}, {"--bootstrap", o.bootstrap}} {
		for _, v := range l.values {
			args = append(args, l.flag, v)
		}
	}
	if o.dht.text != "" {
		args = append(args, "--dht", o.dht.text)
	}
	if o.noMDNS {
		args = append(args, "--no-mdns")
	}
	if o.local {
		args = append(args, "--local")
	}
	return args
}
