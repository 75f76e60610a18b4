package main

import (
	"fmt"
	"runtime"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"starling/simulation"
	"starling/simulation/exact"
	"starling/simulation/scenario"
)

// scenarioShape is what list and show print of a scenario under --json.
type scenarioShape struct {
	Name   string       `json:"name"`
	About  string       `json:"about"`
	Params []paramShape `json:"params"`
	Source string       `json:"source,omitempty"`
}

type paramShape struct {
	Name    string `json:"name"`
	Default string `json:"default"`
	About   string `json:"about"`
}

func shapeOf(s *scenario.Scenario) scenarioShape {
	shape := scenarioShape{Name: s.Name(), About: s.About(), Params: []paramShape{}}
	for _, p := range s.Params() {
		shape.Params = append(shape.Params, paramShape{p.Name, p.Default, p.Doc})
	}
	return shape
}

func (a *app) listCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the scenarios that come with the program",
		Args:  named(),
		RunE: func(*cobra.Command, []string) error {
			for i, name := range scenario.Names() {
				s, err := scenario.Open(name)
				if err != nil {
					return err
				}
				if a.json {
					a.print(a.out, shapeOf(s))
					continue
				}
				if i > 0 {
					fmt.Fprintln(a.out)
				}
				fmt.Fprintf(a.out, "%s\n%s\n", s.Name(), indent(s.About(), 76))
				t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
				for _, p := range s.Params() {
					fmt.Fprintf(t, "    --set %s=%s\t%s\n", p.Name, p.Default, p.Doc)
				}
				t.Flush()
			}
			return nil
		},
	}
}

func (a *app) showCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME|FILE",
		Short: "Print a scenario file; show reference explains every key",
		Args:  named("the scenario"),
		RunE: func(_ *cobra.Command, args []string) error {
			if args[0] == "reference" && !a.json {
				fmt.Fprint(a.out, scenario.Reference())
				return nil
			}
			s, err := open(args[0])
			if err != nil {
				return err
			}
			if a.json {
				shape := shapeOf(s)
				shape.Source = s.Source()
				a.print(a.out, shape)
				return nil
			}
			fmt.Fprint(a.out, s.Source())
			return nil
		},
	}
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print what a citation needs of this program",
		Args:  named(),
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				a.print(a.out, struct {
					Version string `json:"version"`
					Go      string `json:"go"`
					Exact   bool   `json:"exact"`
				}{simulation.Version(), runtime.Version(), exact.Enabled()})
				return nil
			}
			build := "ordinary"
			if exact.Enabled() {
				build = "exact"
			}
			if hint := doubt(simulation.Version()); hint != "" {
				fmt.Fprintln(a.err, hint)
			}
			_, err := fmt.Fprintf(a.out, "%s, %s, %s build\n", simulation.Version(), runtime.Version(), build)
			return err
		},
	}
}

// doubt says why a version does not name one state of the source, and what to
// do; empty if it does.
func doubt(version string) string {
	switch {
	case strings.HasSuffix(version, "revision unknown"):
		return "The revision is unknown: build with go build in a git checkout, without -buildvcs=false, for one that can be cited."
	case strings.HasSuffix(version, "changed since"):
		return "The checkout had changes when this was built, or files that git does not know, such as a scenario of your own: keep those elsewhere, and build again."
	}
	return ""
}

// open reads a scenario; what is wrong with it is the caller's to mend.
func open(name string) (*scenario.Scenario, error) {
	s, err := scenario.Open(name)
	if err != nil {
		return nil, usage("%s", err).try("See starling-sim list, and starling-sim show reference.")
	}
	return s, nil
}

// indent breaks text into lines of at most width and indents them.
func indent(text string, width int) string {
	var b strings.Builder
	line := "  "
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = "  "
		}
		if line != "  " {
			line += " "
		}
		line += word
	}
	return b.String() + line
}
