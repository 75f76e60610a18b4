package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"starling/node/api"
)

func (a *app) eventsCmd() *cobra.Command {
	var (
		since string
		idle  time.Duration
	)
	c := &cobra.Command{
		Use:   "events",
		Short: "Follow what happens: messages, states, contacts",
		Long: `Follow what happens. Events are numbered without a gap and kept on disk: a
program that remembers the number of the last event it handled, and starts again
with --since that number, misses nothing and sees nothing twice.`,
		Example: `  starling events --json --since "$(cat cursor)" |
  while read -r event; do
    … handle it, then: echo "$event" | jq .seq > cursor
  done`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := strconv.ParseUint(since, 10, 64)
			if err != nil && since != "now" {
				return usage("--since is the number of an event, or now, not %q", since)
			}
			if idle < 0 {
				return usage("--until-idle must not be negative")
			}
			ctx := cmd.Context()
			d, st, err := a.connectAny(ctx)
			if err != nil {
				return err
			}
			if st.State == api.StateLocked {
				return a.locked()
			}
			if since == "now" {
				from = st.Journal
			}
			return a.follow(ctx, d, from, idle, func(e *api.Event) {
				if a.json {
					a.print(eventOf(e))
				} else {
					a.showEvent(e)
				}
			})
		},
	}
	c.Flags().StringVar(&since, "since", "0", "begin after the event of this `number`; now: only what happens from now on")
	c.Flags().DurationVar(&idle, "until-idle", 0, "end when nothing happened for this `time`")
	return c
}

// follow gives every event after since to fn, until ctx ends, the daemon goes
// away, or, with idle, nothing happened for that long.
func (a *app) follow(ctx context.Context, d daemon, since uint64, idle time.Duration, fn func(*api.Event)) error {
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var quiet atomic.Bool // idle ended the stream
	rest := func() {}
	if idle > 0 {
		timer := time.AfterFunc(idle, func() { quiet.Store(true); cancel() })
		defer timer.Stop()
		rest = func() { timer.Reset(idle) }
	}
	s, err := d.Events(sctx, connect.NewRequest(&api.EventsRequest{Since: since, Follow: true}))
	if err == nil {
		defer s.Close()
		for s.Receive() {
			if e := s.Msg(); e.Seq != 0 { // 0 is a heartbeat
				fn(e)
				rest()
			}
		}
		err = s.Err()
	}
	switch {
	case quiet.Load():
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		return fail(exitUnreachable, "starling stopped")
	}
	return api.DecodeError(err)
}

func (a *app) showEvent(e *api.Event) {
	var b strings.Builder
	add := func(style, s string) {
		if s != "" {
			b.WriteString("  " + a.out.paint(style, s))
		}
	}
	add(bold, escape(e.Chat))
	add("", escape(e.State))
	add("", escape(e.Text))
	fmt.Fprintf(a.out, "%s  %s  %s%s\n", a.out.paint(dim, fmt.Sprintf("%6d", e.Seq)), a.out.paint(dim, when(e.Time).Local().Format(time.DateTime)), fmt.Sprintf("%-8s", e.Type), b.String())
}
