package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"starling/node/api"
	"starling/protocol"
)

// version is set by a release with -ldflags "-X main.version=…".
var version = "0.1.0-dev"

// versionShape is what version prints under --json.
type versionShape struct {
	Version   string   `json:"version"`
	Commit    string   `json:"commit,omitempty"`   // revision of the source
	Modified  bool     `json:"modified,omitempty"` // the source was changed after it
	Built     string   `json:"built,omitempty"`    // time of the commit, RFC 3339
	Go        string   `json:"go"`
	Platform  string   `json:"platform"`
	API       uint32   `json:"api"` // version of the local API
	Protocols []string `json:"protocols"`
	Suite     int      `json:"suite"` // cipher suite
}

func readVersion() versionShape {
	v := versionShape{
		Version:   version,
		Go:        runtime.Version(),
		Platform:  runtime.GOOS + "/" + runtime.GOARCH,
		API:       api.Version,
		Protocols: []string{protocol.StreamMessage, protocol.StreamPreKey, protocol.StreamRecord, protocol.KadPrefix + "/kad/1.0.0"},
		Suite:     protocol.Suite,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Commit = s.Value
			case "vcs.time":
				v.Built = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	return v
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of the program and of its protocols",
		Args:  exactly(),
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			if a.json {
				a.print(v)
				return nil
			}
			fmt.Fprintf(a.out, "starling %s\n", v.Version)
			commit := v.Commit
			if v.Modified {
				commit += ", modified"
			}
			a.out.facts(
				[2]string{"commit", commit},
				[2]string{"of", v.Built},
				[2]string{"go", v.Go + " " + v.Platform},
				[2]string{"protocols", strings.Join(v.Protocols, " ")},
			)
			return nil
		},
	}
}
