package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"starling/node/api"
)

func (a *app) bootstrapCmd() *cobra.Command {
	return group("bootstrap", "Addresses by which the node finds the network",
		a.bootstrapAddCmd(), a.bootstrapListCmd(), a.bootstrapRemoveCmd())
}

func (a *app) bootstrapAddCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "add ADDR",
		Short:   "Add the address of a node that is mostly up",
		Example: "  starling bootstrap add /ip4/203.0.113.7/udp/4001/quic-v1/p2p/12D3Koo…",
		Args:    exactly("ADDR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := api.Call(cmd.Context(), d.AddBootstrap, &api.AddBootstrapRequest{Addr: args[0]}); err != nil {
				return err
			}
			a.done(map[string]any{"addr": args[0]}, "Added.")
			return nil
		},
	}
}

func (a *app) bootstrapListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the addresses",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			r, err := api.Call(cmd.Context(), d.ListBootstrap, &api.ListBootstrapRequest{})
			if err != nil {
				return err
			}
			for _, addr := range r.Addrs {
				if a.json {
					a.print(map[string]any{"addr": addr})
				} else {
					fmt.Fprintln(a.out, escape(addr))
				}
			}
			if len(r.Addrs) == 0 {
				a.next("None. The node finds others by invite links and on the local network; add one with: starling bootstrap add ADDR")
			}
			return nil
		},
	}
}

func (a *app) bootstrapRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ADDR",
		Short: "Remove an address",
		Args:  exactly("ADDR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := api.Call(cmd.Context(), d.RemoveBootstrap, &api.RemoveBootstrapRequest{Addr: args[0]}); err != nil {
				return err
			}
			a.done(map[string]any{"addr": args[0], "state": "removed"}, "Removed.")
			return nil
		},
	}
}
