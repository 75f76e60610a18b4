package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"starling/node/relay/station"
	"starling/node/store"
)

func (a *app) upCmd() *cobra.Command {
	var listen, announce, bootstrap []string
	flags := defaults() // of the flags that are given
	c := &cobra.Command{
		Use:   "up",
		Short: "Run the relay until Ctrl-C or SIGTERM",
		Long: `Run the relay until Ctrl-C or SIGTERM. In an empty folder it makes a key first.

Give it a public address, or forward UDP and TCP port 7827 to it. Flags come
before the settings in relay.toml.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.home()
			if err != nil {
				return err
			}
			s, err := readSettings(h.config, a.config != "")
			if err != nil {
				return err
			}
			set := cmd.Flags().Changed
			for name, use := range map[string]func(){
				"quota": func() { s.Quota = flags.Quota }, "traffic": func() { s.Traffic = flags.Traffic },
				"rate": func() { s.Rate = flags.Rate }, "admit": func() { s.Admit = flags.Admit },
				"metrics": func() { s.Metrics = flags.Metrics },
			} {
				if set(name) {
					use()
				}
			}
			for _, list := range []struct {
				name string
				from []string
				to   *[]listenAddr
			}{{"listen", listen, &s.Listen}, {"announce", announce, &s.Announce}} {
				if set(list.name) {
					*list.to = nil
				}
				for _, text := range list.from {
					var l listenAddr
					if err := l.UnmarshalText([]byte(text)); err != nil {
						return usage("--%s %s: %s", list.name, text, err)
					}
					*list.to = append(*list.to, l)
				}
			}
			for _, text := range bootstrap {
				var b bootstrapAddr
				if err := b.UnmarshalText([]byte(text)); err != nil {
					return usage("--bootstrap %s: %s", text, err)
				}
				s.Bootstrap = append(s.Bootstrap, b)
			}
			return a.up(cmd.Context(), h, s)
		},
	}
	f := c.Flags()
	f.StringSliceVar(&listen, "listen", nil, "listen on this `multiaddr` (can be repeated)")
	f.StringSliceVar(&announce, "announce", nil, "the `multiaddr` at which others reach the relay (can be repeated)")
	f.StringSliceVar(&bootstrap, "bootstrap", nil, "find the network by this `multiaddr` with /p2p too (can be repeated)")
	f.Var(&flags.Quota, "quota", "most bytes of messages on the disk")
	f.Var(&flags.Traffic, "traffic", "most bytes of requests and answers in a month, or unlimited")
	f.Var(&flags.Rate, "rate", "most bytes of these a second in the long run, or unlimited")
	f.Var(&flags.Admit, "admit", "who may make queues: token, whoever has a link with one; or open, anybody")
	f.Var(&flags.Metrics, "metrics", "serve /metrics, /healthz and /readyz at this address of this machine, or off")
	return c
}

// keys opens the relay's key and that of its store, and makes them in an empty
// folder.
func (h home) keys() (crypto.PrivKey, store.Key, error) {
	key, err := station.OpenKeyFile(h.path("relay.key"))
	if errors.Is(err, fs.ErrNotExist) {
		// Under another key every link that was given out would be dead.
		if _, serr := os.Stat(h.path("store")); serr == nil {
			return nil, store.Key{}, fail(exitError, "the relay's key is missing: %s", h.path("relay.key")).
				try("Put a backup of it there. Without one this relay is lost: remove %s, and it starts as another.", h.dir)
		}
		key, err = station.CreateKeyFile(h.path("relay.key"))
	}
	if err != nil {
		return nil, store.Key{}, err
	}
	rows, err := store.OpenKeyFile(h.path("store.key"), store.Protection{Plain: true})
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(h.path("store")); serr == nil {
			return nil, store.Key{}, fail(exitError, "the key of the store is missing: %s", h.path("store.key")).
				try("Without it the queues cannot be read. Remove %s and %s: links stay valid, and users make their queues anew.", h.path("store"), h.path("spool"))
		}
		rows, err = store.CreateKeyFile(h.path("store.key"), store.Protection{Plain: true})
	}
	return key, rows, err
}

// up runs the relay.
func (a *app) up(ctx context.Context, h home, s settings) (err error) {
	held, err := h.take()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.release()) }()
	key, rows, err := h.keys()
	if err != nil {
		return err
	}
	log := a.logger(s)
	db, err := store.Open(store.Config{Dir: h.path("store"), Key: rows, Log: log})
	if err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	cfg := station.Config{
		Store: db, Key: key, Dir: h.path("spool"),
		Quota: s.Quota.bytes, Traffic: uint64(s.Traffic.bytes), Rate: int(s.Rate.bytes), Open: s.Admit.text == "open",
		Local: s.Local, NoCircuits: !s.Circuits, NoPortMap: !s.PortMap || s.Local, Log: log,
	}
	for _, l := range s.Listen {
		cfg.Listen = append(cfg.Listen, l.text)
	}
	for _, l := range s.Announce {
		cfg.Announce = append(cfg.Announce, l.text)
	}
	for _, b := range s.Bootstrap {
		cfg.Bootstrap = append(cfg.Bootstrap, b.text)
	}
	st, err := station.Open(ctx, cfg)
	switch {
	case err != nil && strings.Contains(err.Error(), "address already in use"):
		return fail(exitError, "another program listens where this relay wants to: %s", strings.Join(cfg.Listen, " ")).
			try("End it, or listen elsewhere with --listen.")
	case err != nil:
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	return a.serve(ctx, h, s, st, log)
}

// serve runs the relay, its socket and its metrics until ctx ends or one of them
// fails.
func (a *app) serve(ctx context.Context, h home, s settings, st *station.Station, log *slog.Logger) error {
	ctl := &control{s: st, home: h}
	sock, err := h.listen()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if s.Metrics.text != "off" {
		l, err := net.Listen("tcp", s.Metrics.text)
		if err != nil {
			return errors.Join(fmt.Errorf("serving metrics: %w", err), sock.Close())
		}
		ctl.metrics = l.Addr().String()
		// A registry of our own: the common one holds what any package adds.
		r := prometheus.NewRegistry()
		r.MustRegister(st.Collector(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
		handler := watched(st, promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
		g.Go(func() error { return serveHTTP(ctx, l, handler) })
	}
	g.Go(func() error { return st.Run(ctx) })
	g.Go(func() error { return serveHTTP(ctx, sock, ctl.handler()) })
	now := st.Status()
	log.Info("relay is up", "peer", now.PeerID, "home", h.dir, "quota", s.Quota.text, "traffic", s.Traffic.text, "rate", s.Rate.text, "admit", s.Admit.text)
	if a.terminal && !a.json {
		fmt.Fprintf(a.err, "The relay is up. In another terminal:\n  %s\n  %s\nCtrl-C stops it.\n", h.command("link --token"), h.command("status"))
	}
	// There is nobody to tell without systemd, and nothing to do if it does not
	// hear.
	systemd.SdNotify(false, systemd.SdNotifyReady+"\nSTATUS=keeping messages")
	context.AfterFunc(ctx, func() { systemd.SdNotify(false, systemd.SdNotifyStopping) })
	err = g.Wait()
	if err == nil {
		log.Info("relay stopped")
	}
	return err
}

// logger makes the relay's log, on standard error.
func (a *app) logger(s settings) *slog.Logger {
	level := s.LogLevel.level
	if a.verbose {
		level = slog.LevelDebug
	}
	h := slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level})
	gologshim.SetDefaultHandler(networkLog{h})
	return slog.New(h)
}

// A networkLog routes the log of libp2p, which has one for the process, into
// ours: at debug level, and without attributes, which name peers and addresses.
type networkLog struct{ to slog.Handler }

func (l networkLog) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && l.to.Enabled(ctx, slog.LevelDebug)
}

func (l networkLog) Handle(ctx context.Context, r slog.Record) error {
	return l.to.Handle(ctx, slog.NewRecord(r.Time, slog.LevelDebug, "libp2p: "+r.Message, 0))
}

func (l networkLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l networkLog) WithGroup(string) slog.Handler      { return l }
