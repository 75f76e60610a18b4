package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"starling/node/api"
)

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the node stands",
		Long:  "Show how the node stands. Exits 4 if the profile is locked.",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := a.profile()
			if err != nil {
				return err
			}
			_, st, err := a.ask(cmd.Context(), p)
			if err != nil {
				return err
			}
			if a.json {
				a.print(statusOf(st))
			} else {
				a.showStatus(st, time.Now())
			}
			switch {
			case st.State == api.StateLocked:
				return a.locked()
			case st.Pid == 0:
				a.next("%s", p.stuck())
			}
			return nil
		},
	}
}

// reachWords says what each reach means to somebody who was handed a link.
var reachWords = map[string]string{
	"direct": "direct: anyone on the internet can reach this node",
	"relay":  "relay: reachable through a relay",
	"lan":    "lan: only from this local network",
	"none":   "none: nobody can reach this node yet",
}

func (a *app) showStatus(st *api.StatusResponse, now time.Time) {
	title := map[string]string{"running": "running", "locked": "locked: it waits for the passphrase"}[st.State]
	if title == "" {
		title = st.State
	}
	style := green
	if st.State != api.StateRunning {
		style = yellow
	}
	name := "Starling"
	if st.Name != "" {
		name = escape(st.Name)
	}
	fmt.Fprintf(a.out, "%s is %s\n", a.out.paint(bold, name), a.out.paint(style, title))
	rows := [][2]string{{"home", st.Home}}
	if st.Pid != 0 {
		rows = append(rows, [2]string{"process", fmt.Sprint(st.Pid)})
	}
	if st.State == api.StateRunning {
		people := plural(int(st.Contacts), "contact")
		if st.Requests > 0 {
			people += ", " + plural(int(st.Requests), "request") + " to answer (starling contact requests)"
		}
		waiting := "nothing waits to be delivered"
		if st.Queued > 0 {
			waiting = plural(int(st.Queued), "message") + " not yet delivered"
		}
		published := "not yet"
		if st.Published != 0 {
			published = ago(when(st.Published), now)
		}
		relays := "none, so messages reach you only while you are online"
		if n := len(st.Relays); n > 0 {
			relays = plural(n, "relay")
		}
		rows = [][2]string{
			{"account", st.Account},
			{"people", people},
			{"connected", connections(st.Connections)},
			{"messages", waiting},
			{"reach", orElse(reachWords[st.Reach], st.Reach)},
			{"relays", relays},
			{"network", fmt.Sprintf("%s connected, %d in the DHT (%s)", plural(int(st.Connected), "peer"), st.DhtPeers, st.DhtMode)},
			{"published", published},
			{"started", ago(when(st.Started), now)},
			{"home", st.Home},
			{"address", bestAddress(st.BootstrapAddrs)},
		}
	}
	a.out.facts(rows...)
	if st.RolledBack {
		fmt.Fprintf(a.out, "\n%s The store came back from an old copy. Sessions were renewed; nothing is lost.\n", a.out.paint(yellow, "Note:"))
	}
}

// connections says to whom there is a connection, and how it runs.
func connections(cs []*api.Connection) string {
	const most = 12 // --json has all
	var said []string
	for _, c := range cs[:min(len(cs), most)] {
		how := "directly"
		if c.Path == api.PathCircuit {
			how = "through a circuit"
		}
		said = append(said, escape(c.Contact)+" "+how)
	}
	if len(cs) > most {
		said = append(said, fmt.Sprintf("%d more", len(cs)-most))
	}
	return strings.Join(said, ", ")
}

// bestAddress picks the address that is most use to others; --json has all.
func bestAddress(addrs []string) string {
	best, most := "", -1
	for _, s := range addrs {
		score := 0
		if !strings.HasPrefix(s, "/ip4/127.") && !strings.HasPrefix(s, "/ip6/::1/") {
			score += 2
		}
		if strings.Contains(s, "/quic-v1/") {
			score++
		}
		if score > most {
			best, most = s, score
		}
	}
	if len(addrs) > 1 {
		best += fmt.Sprintf(" (and %d more)", len(addrs)-1)
	}
	return best
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
