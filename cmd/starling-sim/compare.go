package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"starling/simulation/report"
)

func (a *app) compareCmd() *cobra.Command {
	var page string
	c := &cobra.Command{
		Use:   "compare DIR DIR…",
		Short: "Put the results of runs side by side",
		Args:  named("the first folder", "the second folder…"),
		RunE: func(_ *cobra.Command, dirs []string) error {
			if page != "" {
				var b bytes.Buffer // whole, so that a mistake costs nobody an older file
				if err := report.CompareHTML(&b, dirs...); err != nil {
					return err
				}
				if err := os.WriteFile(page, b.Bytes(), 0o644); err != nil {
					return err
				}
			}
			if a.json {
				return a.compareJSON(dirs)
			}
			return report.Compare(a.out, dirs...)
		},
	}
	c.Flags().StringVar(&page, "html", "", "write a page to a `file` as well")
	return c
}

// compareJSON prints one object a run.
func (a *app) compareJSON(dirs []string) error {
	for _, dir := range dirs {
		r, err := report.Load(dir)
		if err != nil {
			return err
		}
		a.resultJSON(dir, r)
	}
	return nil
}

func (a *app) mergeCmd() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "merge DIR…",
		Short: "Join results from several machines into one folder",
		Args:  named("a folder…"),
		RunE: func(_ *cobra.Command, dirs []string) error {
			if err := report.Merge(out, dirs...); err != nil {
				return err
			}
			return a.index(out)
		},
	}
	c.Flags().StringVar(&out, "out", filepath.Join("results", "merged"), "the new `folder`")
	return c
}

// index prints where the page of several runs is.
func (a *app) index(dir string) error {
	page := filepath.Join(dir, "index.html")
	if a.json {
		a.print(a.out, struct {
			Dir    string `json:"dir"`
			Report string `json:"report"`
		}{dir, page})
		return nil
	}
	_, err := fmt.Fprintf(a.out, "report: %s\n", page)
	return err
}
