package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/spf13/cobra"

	"starling/node/api"
)

// upOptions are the flags of up.
type upOptions struct {
	passphraseFile   string
	detach           bool
	listen           []string
	announce         []string
	bootstrap        []string
	dht              dhtMode
	noMDNS           bool
	local            bool
	untilStdinCloses bool
}

func (a *app) upCmd() *cobra.Command {
	var o upOptions
	c := &cobra.Command{
		Use:   "up",
		Short: "Start the node",
		Long: `Start the node and keep it running until Ctrl-C, or with --detach in the
background. On an empty profile at a terminal it makes one first, as init does.

A profile with a passphrase asks for it at a terminal. Without one the node runs
locked until: starling unlock. Under systemd the passphrase can be a credential
named "passphrase".`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.up(cmd.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.passphraseFile, "passphrase-file", "", passphraseFileHelp)
	f.BoolVar(&o.detach, "detach", false, "run in the background; return when it answers")
	f.StringSliceVar(&o.listen, "listen", nil, "listen on this `multiaddr` (can be repeated)")
	f.StringSliceVar(&o.announce, "announce", nil, "publish this `multiaddr` in place of those found out (can be repeated)")
	f.StringSliceVar(&o.bootstrap, "bootstrap", nil, "find the network by this `multiaddr` with /p2p too (can be repeated)")
	f.Var(&o.dht, "dht", "role in the DHT: auto, server or client")
	f.BoolVar(&o.noMDNS, "no-mdns", false, "do not look for nodes on the local network")
	f.BoolVar(&o.local, "local", false, "the network has no public addresses: a LAN without internet, or one machine")
	f.BoolVar(&o.untilStdinCloses, "until-stdin-closes", false, "stop when standard input ends, as a child of another program")
	f.MarkHidden("until-stdin-closes")
	return c
}

func (a *app) up(ctx context.Context, o upOptions) error {
	p, err := a.profile()
	if err != nil {
		return err
	}
	s, err := p.readSettings()
	if err != nil {
		return err
	}
	exists, err := p.exists()
	if err != nil {
		return err
	}
	var pass []byte
	if !exists {
		if !a.interactive() {
			return usage("there is no profile in %s, and no terminal to ask at; nothing was written", p.dir).try("%s", threeWays(p, "up"))
		}
		if _, pass, err = a.initProfile(ctx, p, initOptions{}); err != nil {
			return err
		}
	}
	if _, st, err := a.ask(ctx, p); err == nil {
		return alreadyUp(p, st)
	}
	if pass == nil {
		if pass, err = a.startPassphrase(ctx, p, o); err != nil {
			return err
		}
	}
	if o.detach {
		return a.detach(ctx, p, o, pass)
	}
	return a.serve(ctx, p, s, o, pass)
}

// alreadyUp is the failure of starting a node twice.
func alreadyUp(p profile, st *api.StatusResponse) error {
	switch {
	case st.State == api.StateLocked:
		return fail(exitError, "the node is up already (process %d), and locked", st.Pid).try("Unlock it with: %s", p.command("unlock"))
	case st.Pid == 0:
		return fail(exitError, "the node is being started already").try("%s", p.stuck())
	}
	return fail(exitError, "the node is up already (process %d)", st.Pid).try("To start it anew: %s && %s", p.command("stop"), p.command("up"))
}

// startPassphrase finds the passphrase of the profile, and checks it: a file
// first, then a systemd credential, then the terminal. It returns nil if the
// profile needs none, or none can be had and the node runs locked.
func (a *app) startPassphrase(ctx context.Context, p profile, o upOptions) ([]byte, error) {
	need, err := p.needsPassphrase()
	if err != nil || !need {
		return nil, err
	}
	var pass []byte
	if o.passphraseFile != "" {
		pass, err = a.filePassphrase(o.passphraseFile)
	} else {
		pass, err = a.credential()
	}
	if err != nil {
		return nil, err
	}
	if pass != nil {
		if _, err := p.openKey(pass); err != nil {
			return nil, err
		}
		return pass, nil
	}
	if !a.interactive() {
		return nil, nil
	}
	for try := 1; ; try++ {
		if pass, err = a.askPassphrase(ctx, "Passphrase: "); err != nil {
			return nil, err
		}
		_, err := p.openKey(pass)
		if err == nil {
			return pass, nil
		}
		if !errors.Is(err, api.ErrPassphrase) || try == 3 {
			return nil, err
		}
		fmt.Fprintln(a.err, "Wrong passphrase.")
	}
}

// serve runs the daemon until it is told to stop: by a signal, by stop, or by
// the end of standard input.
func (a *app) serve(ctx context.Context, p profile, s settings, o upOptions, pass []byte) error {
	noCoreDumps()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	log := a.logger(s)
	cfg, err := p.nodeConfig(s, o, log)
	if err != nil {
		return err
	}
	if o.untilStdinCloses {
		// Standard input cannot be given up reading; the end of the program
		// ends it where something else came first.
		go func() {
			io.Copy(io.Discard, a.in)
			stop()
		}()
	}
	account := ""
	open := func(ctx context.Context, given []byte) (api.Backend, error) {
		if given == nil {
			given, pass = pass, nil // the first opening uses what up was given
		}
		key, err := p.openKey(given)
		if err != nil {
			return nil, err
		}
		n, err := openNode(ctx, p, cfg, key)
		if err != nil {
			return nil, err
		}
		account = n.Status().Account
		go func() { // ends with the node, which the server closes
			<-n.Done()
			if !n.closing.Load() {
				stop() // a part failed; closing it says why
			}
		}()
		return n, nil
	}
	tell := a.ready(p)
	server, err := api.New(api.Config{
		Home:             p.dir,
		Version:          version,
		Open:             open,
		ChangePassphrase: func(_ context.Context, old, fresh []byte) error { return p.changePassphrase(old, fresh) },
		OnState:          func(state string) { tell(state, account) },
		Runtime:          os.Getenv("XDG_RUNTIME_DIR"),
		Log:              log,
	})
	if err != nil {
		return err
	}
	err = server.Run(ctx)
	switch {
	case errors.Is(err, api.ErrRunning):
		return fail(exitError, "%s", err).try("Stop it first: %s", p.command("stop"))
	case err != nil && strings.Contains(err.Error(), "address already in use"):
		return fail(exitError, "another program listens where this node wants to: %s", strings.Join(cfg.Listen, " ")).
			try("End it, or listen elsewhere with --listen. Without %s the next start chooses another port.", p.port())
	case err != nil:
		return err
	}
	a.note("Stopped.")
	return nil
}

// ready returns what is called with each state that the daemon enters: it
// tells systemd, and the person who waits.
func (a *app) ready(p profile) func(state, account string) {
	said := false
	return func(state, account string) {
		switch state {
		case api.StateRunning, api.StateLocked:
			// There is nobody to tell without systemd, and nothing to do if it
			// does not hear.
			systemd.SdNotify(false, systemd.SdNotifyReady+"\nSTATUS="+state)
		case api.StateStopping:
			systemd.SdNotify(false, systemd.SdNotifyStopping)
		}
		if a.json || !a.err.terminal && !a.verbose {
			return
		}
		switch {
		case state == api.StateLocked:
			fmt.Fprintf(a.err, "Starling runs locked. Unlock it with: %s\n", p.command("unlock"))
		case state == api.StateRunning && !said:
			said = true
			fmt.Fprintf(a.err, "%s\n", a.err.paint(green, "Starling is up."))
			a.err.facts([2]string{"account", account}, [2]string{"home", p.dir})
			fmt.Fprintf(a.err, "\nLeave it running, and in another terminal:\n  %-28s make a link for someone\n  %-28s talk\nCtrl-C stops it.\n", p.command("invite"), p.command("chat NAME"))
		}
	}
}

// logger makes the daemon's log: on standard error, and to a person only what
// a person should look at.
func (a *app) logger(s settings) *slog.Logger {
	level := s.LogLevel.level
	if a.err.terminal && !a.verbose && level < slog.LevelWarn {
		level = slog.LevelWarn
	}
	h := slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level})
	gologshim.SetDefaultHandler(networkLog{h})
	return slog.New(h)
}

// A networkLog routes the log of libp2p, which has one for the process, into
// the daemon's: at debug level, and without attributes, which name peers and
// addresses.
type networkLog struct{ to slog.Handler }

func (l networkLog) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && l.to.Enabled(ctx, slog.LevelDebug)
}

func (l networkLog) Handle(ctx context.Context, r slog.Record) error {
	return l.to.Handle(ctx, slog.NewRecord(r.Time, slog.LevelDebug, "libp2p: "+r.Message, 0))
}

func (l networkLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l networkLog) WithGroup(string) slog.Handler      { return l }
