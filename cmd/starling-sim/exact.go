package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"starling/simulation/exact"
)

func (a *app) exactCmd() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "exact-build",
		Short: "Build a starling-sim whose runs repeat bit for bit",
		Long: `Build a starling-sim whose runs repeat bit for bit: with one seed, every packet
leaves and arrives at the same nanosecond in every run. That takes changes to
the scheduler and the sources of randomness of the standard library, which are
made from the Go that is installed and never touch it. A version of Go that is
not known is refused.

It is built from the source in the current folder, and takes a minute or two.`,
		Args: named(),
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := filepath.Abs(out)
			if err != nil {
				return err
			}
			if !a.json {
				fmt.Fprintln(a.err, "building the standard library and the simulator; this takes a minute or two")
			}
			if err := exact.Build(c.Context(), path, "starling/cmd/starling-sim"); err != nil {
				return fail(exitError, "%s", err).try("It is built from the source: run it in the folder that holds go.mod.")
			}
			if a.json {
				a.print(a.out, struct {
					File string `json:"file"`
				}{path})
				return nil
			}
			_, err = fmt.Fprintln(a.out, path)
			return err
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "starling-sim-exact", "the `file` to build")
	return c
}
