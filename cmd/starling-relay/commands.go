package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"starling/node/relay/station"
	"starling/protocol"
)

func (a *app) linkCmd() *cobra.Command {
	var req linkRequest
	c := &cobra.Command{
		Use:   "link",
		Short: "Make a link to this relay, for starling relay add",
		Long: `Make a link to this relay. Whoever gets it adds it with starling relay add.

With --token the link lets its bearers make queues; what is kept for all of them
counts on one account, so make one for each person or household. Treat it as a
secret.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.home()
			if err != nil {
				return err
			}
			var l linkShape
			if err := h.ask(cmd.Context(), "POST", "/v1/link", req, &l); err != nil {
				return err
			}
			if a.json {
				printJSON(a.out, l)
				return nil
			}
			fmt.Fprintln(a.out, l.Link)
			if l.Token {
				fmt.Fprintf(a.err, "It can be taken back: %s\n", h.command("link revoke "+l.ID[:8]))
			}
			switch {
			case l.Admit == "token" && !l.Token:
				fmt.Fprintf(a.err, "Nobody new can use the relay with this link. To let somebody in: %s\n", h.command("link --token"))
			case l.Reach == "lan":
				fmt.Fprintln(a.err, "This link works on this network only.")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&req.Token, "token", false, "put a new admission token into it")
	c.Flags().StringVar(&req.Name, "name", "", "with a token that link list shows by this `name`")
	c.Flags().BoolVar(&req.LAN, "lan", false, "with addresses of this network, for people on it")
	c.AddCommand(a.linkListCmd(), a.linkRevokeCmd())
	return c
}

func (a *app) linkListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the links with a token, and what is kept for each",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.home()
			if err != nil {
				return err
			}
			var list []tokenShape
			if err := h.ask(cmd.Context(), "GET", "/v1/links", nil, &list); err != nil {
				return err
			}
			for _, t := range list {
				if a.json {
					printJSON(a.out, t)
					continue
				}
				fmt.Fprintf(a.out, "%s  %s  %d queues, %s  %s\n", t.ID, t.Created.Local().Format(time.DateOnly), t.Queues, size(t.Bytes), t.Name)
			}
			return nil
		},
	}
}

func (a *app) linkRevokeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Take a link's token back",
		Long: `Take a link's token back. Nobody makes a queue with it any more, and those that
were made with it end when they run out, 60 days at most.`,
		Args: exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := a.home()
			if err != nil {
				return err
			}
			var t tokenShape
			if err := h.ask(cmd.Context(), "POST", "/v1/revoke", revokeRequest{args[0]}, &t); err != nil {
				return err
			}
			if a.json {
				printJSON(a.out, t)
				return nil
			}
			fmt.Fprintf(a.out, "The link of %s is taken back.\n", t.Created.Local().Format(time.DateOnly))
			return nil
		},
	}
}

// size spells a number of bytes.
func size[N int | int64 | uint64](n N) string {
	f := float64(n)
	for _, u := range []string{"B", "kB", "MB", "GB"} {
		if f < 1000 {
			return strings.TrimSuffix(strconv.FormatFloat(f, 'f', min(len(u)-1, 1), 64), ".0") + " " + u
		}
		f /= 1000
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + " TB"
}

// of spells how much of a limit is used.
func of[N int | int64 | uint64](n, limit N) string {
	if limit == 0 {
		return size(n) + ", no limit"
	}
	return fmt.Sprintf("%s of %s (%d %%)", size(n), size(limit), uint64(float64(n)/float64(limit)*100))
}

var reachWords = map[string]string{
	"announced": "announced by you",
	"confirmed": "confirmed: others have dialled it",
	"unknown":   "unknown: nobody has tried yet",
	"none":      "none: others tried to dial it and could not",
}

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what the relay holds and costs",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.home()
			if err != nil {
				return err
			}
			var st statusShape
			if err := h.ask(cmd.Context(), "GET", "/v1/status", nil, &st); err != nil {
				return err
			}
			if a.json {
				printJSON(a.out, st)
				return nil
			}
			a.showStatus(st)
			return nil
		},
	}
}

func (a *app) showStatus(st statusShape) {
	title := "runs"
	switch {
	case st.Draining != nil:
		title = "takes nothing new; its users have until " + st.Draining.Local().Format("2 January 2006 at 15:04") + ", then stop it"
	case !st.Ready:
		title = "runs, but takes nothing: " + st.NotReady
	}
	fmt.Fprintf(a.out, "The relay %s\n", title)
	who := map[string]string{"open": "anybody", "token": "who has a link with a token"}[st.Admit]
	rate := "no limit"
	if st.Rate > 0 {
		rate = size(st.Rate) + "/s"
	}
	rows := [][2]string{
		{"peer", st.PeerID},
		{"reach", reachWords[st.Reach]},
		{"messages", fmt.Sprintf("%d in %d queues", st.Messages, st.Queues)},
		{"disk", of(st.Disk, st.Quota)},
		{"this month", of(st.Traffic, st.TrafficLimit)},
		{"rate", rate},
		{"admits", fmt.Sprintf("%s (%d tokens given out, %d accounts in use)", who, st.Tokens, st.Accounts)},
		{"readers", fmt.Sprintf("%d streams, %d connections", st.Streams, st.Connections)},
		{"DHT", fmt.Sprintf("%d peers, %d records held", st.DHTPeers, st.DHTRecords)},
		{"network", fmt.Sprintf("%s sent, %s received since the start, of these %s carried for others", size(st.Sent), size(st.Received), size(st.Circuits))},
		{"metrics", st.Metrics},
		{"started", st.Started.Local().Format("2 January 2006 at 15:04")},
		{"process", fmt.Sprint(st.Pid)},
		{"home", st.Home},
	}
	if st.Damaged > 0 {
		rows = append(rows, [2]string{"damaged", fmt.Sprintf("%d slots: look at the disk", st.Damaged)})
	}
	for _, b := range st.BootstrapAddrs {
		rows = append(rows, [2]string{"address", b})
	}
	a.facts(rows...)
}

func (a *app) checkCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Ask peers to dial this relay back",
		Long: `Ask peers to dial this relay back, and say which addresses they reached: other
relays that it is connected to at once, and any peers as far as they do so by
themselves. It takes up to half a minute. Exits 1 if none was reached.

What was reached goes into links from then on.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.home()
			if err != nil {
				return err
			}
			var c checkShape
			if err := h.ask(cmd.Context(), "GET", "/v1/check", nil, &c); err != nil {
				return err
			}
			if a.json {
				printJSON(a.out, c)
			} else {
				words := map[string]string{
					string(station.Confirmed): "reached from outside", string(station.Failed): "not reached from outside",
					string(station.Unconfirmed): "not tried", string(station.Private): "of this network only",
				}
				for _, ad := range c.Addresses {
					said := words[ad.State]
					if ad.Announced {
						said += ", announced"
					}
					fmt.Fprintf(a.out, "%s  %s\n", ad.Addr, said)
				}
			}
			switch {
			case c.Confirmed:
				return nil
			case c.Peers == 0:
				return fail(exitError, "there is no peer to ask").try("Join a network first: %s", h.command("up --bootstrap MULTIADDR"))
			}
			return fail(exitError, "none of %d peers has reached this relay from outside", c.Peers).
				try("Forward UDP and TCP port %d to this machine, and open them in its firewall.", station.DefaultPort)
		},
	}
}

// parseUntil reads a time: a date, a moment of RFC 3339, or a number of days or
// hours from now.
func parseUntil(s string, now time.Time) (time.Time, error) {
	bad := usage("%q is no time to come", s).try("Give a date such as %s, or a time from now such as 14d or 36h.", now.AddDate(0, 0, 14).Format(time.DateOnly))
	var at time.Time
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n < 0 || n > 3650 {
			return at, bad
		}
		at = now.Add(time.Duration(n) * 24 * time.Hour)
	} else if d, err := time.ParseDuration(s); err == nil {
		at = now.Add(d)
	} else if at, err = time.Parse(time.RFC3339, s); err != nil {
		if at, err = time.ParseInLocation(time.DateOnly, s, now.Location()); err != nil {
			return at, bad
		}
	}
	if at.Before(now) {
		return at, bad
	}
	return at, nil
}

func (a *app) drainCmd() *cobra.Command {
	var until string
	var cancel bool
	c := &cobra.Command{
		Use:   "drain",
		Short: "Take nothing new, and tell users to move away",
		Long: `Take nothing new from now on, and tell users until when the relay will be there.
They move to others and fetch what is kept for them. Nothing stops by itself:
stop the relay when the time has come. The default is two weeks, for which the
relay has promised to keep its newest messages.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := a.home()
			if err != nil {
				return err
			}
			var req drainRequest
			switch {
			case cancel && cmd.Flags().Changed("until"):
				return usage("--cancel and --until exclude each other")
			case cancel:
			case until == "":
				req.Until = time.Now().Add(protocol.MessageLife).Unix()
			default:
				at, err := parseUntil(until, time.Now())
				if err != nil {
					return err
				}
				req.Until = at.Unix()
			}
			var st statusShape
			if err := h.ask(cmd.Context(), "POST", "/v1/drain", req, &st); err != nil {
				return err
			}
			if a.json {
				printJSON(a.out, st)
				return nil
			}
			if st.Draining == nil {
				fmt.Fprintln(a.out, "The relay takes messages again.")
				return nil
			}
			fmt.Fprintf(a.out, "The relay takes nothing new. Its users have until %s. To take it back: %s\n",
				st.Draining.Local().Format("2 January 2006 at 15:04"), h.command("drain --cancel"))
			return nil
		},
	}
	c.Flags().StringVar(&until, "until", "", "a `time`: a date, or 14d, or 36h (default 14d)")
	c.Flags().BoolVar(&cancel, "cancel", false, "take it back")
	return c
}

func (a *app) keyCmd() *cobra.Command {
	backup := &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy the relay's key to a new file",
		Long: `Copy the relay's key to a new file, which only you can read. Keep it where this
disk cannot take it along. To restore: put it into an empty folder as relay.key,
mode 600, and start the relay. Every link stays valid, also one that was taken
back: take it back once more. What was kept is lost; its senders notice within
hours, and leave it again.`,
		Args: exactly("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			h, err := a.home()
			if err != nil {
				return err
			}
			err = station.BackupKeyFile(h.path("relay.key"), args[0])
			switch {
			case errors.Is(err, fs.ErrExist):
				return fail(exitError, "%s is there already", args[0]).try("Choose another name.")
			case errors.Is(err, fs.ErrNotExist):
				return fail(exitError, "%s", err).try("The first start makes the key: %s", h.command("up"))
			case err != nil:
				return err
			}
			if a.json {
				printJSON(a.out, map[string]string{"backup": args[0]})
				return nil
			}
			fmt.Fprintf(a.out, "The relay's key is in %s. Whoever has it can be this relay.\n", args[0])
			return nil
		},
	}
	c := &cobra.Command{Use: "key", Short: "Keep the relay's key safe", Args: subcommand, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(backup)
	return c
}
