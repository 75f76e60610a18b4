package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"starling/node/api"
)

func (a *app) relayCmd() *cobra.Command {
	return group("relay", "Relays, where messages wait while you are away",
		a.relayAddCmd(), a.relayListCmd(), a.relayRemoveCmd())
}

func (a *app) relayAddCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "add LINK",
		Short: "Have messages wait at a relay while you are away",
		Long: `Name a relay by the link that its operator gave you.

What your contacts send while your computer is off waits there, sealed, until
you are back. Name two or three relays, run by different people: each message is
left at two of them.`,
		Example: "  starling relay add STARLING-RELAY:AFAB…",
		Args:    exactly("LINK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			r, err := api.Call(cmd.Context(), d.AddRelay, &api.AddRelayRequest{Link: args[0]})
			if err != nil {
				return err
			}
			a.done(relayOf(r), "Added. "+a.out.paint(dim, "starling relay list says when it is in use."))
			return nil
		},
	}
}

func (a *app) relayListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the relays, and how each stands",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			l, err := api.Call(cmd.Context(), d.ListRelays, &api.ListRelaysRequest{})
			if err != nil {
				return err
			}
			for _, r := range l.Relays {
				if a.json {
					a.print(relayOf(r))
					continue
				}
				a.showRelay(r)
			}
			if len(l.Relays) == 0 {
				a.next("None, so messages reach you only while you are online. A volunteer's link adds one: starling relay add LINK")
			}
			return nil
		},
	}
}

// showRelay prints one relay: what it is called, how it stands, and where it is.
func (a *app) showRelay(r *api.Relay) {
	state := r.State
	if r.Connected {
		state += ", connected"
	}
	fmt.Fprintf(a.out, "%s  %s", a.out.paint(bold, escape(r.Id)), state)
	if r.Detail != "" {
		fmt.Fprintf(a.out, ": %s", escape(r.Detail))
	}
	fmt.Fprintln(a.out)
	for _, addr := range r.Addrs {
		fmt.Fprintf(a.out, "  %s\n", a.out.paint(dim, escape(addr)))
	}
}

func (a *app) relayRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove RELAY",
		Short: "Leave a relay",
		Long: `Leave a relay, named by its ID or the beginning of it.

Contacts are told to use it no more. What is on its way there is still read for
14 days, and then your mailboxes there are deleted.`,
		Args: exactly("RELAY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := api.Call(cmd.Context(), d.RemoveRelay, &api.RemoveRelayRequest{Relay: args[0]}); err != nil {
				return err
			}
			a.done(map[string]any{"relay": args[0], "state": "leaving"}, "Leaving it. What is on its way there still arrives.")
			return nil
		},
	}
}
