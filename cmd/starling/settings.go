package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/pelletier/go-toml/v2"

	"starling/node"
)

// settings is starling.toml. The program reads it and never writes it. Flags
// of up come first.
type settings struct {
	Listen        []listenAddr    `toml:"listen"`         // multiaddrs to listen on
	Announce      []listenAddr    `toml:"announce"`       // multiaddrs to publish in place of those found out
	Bootstrap     []bootstrapAddr `toml:"bootstrap"`      // multiaddrs with /p2p to find the network by
	DHT           dhtMode         `toml:"dht"`            // auto, server or client
	MDNS          *bool           `toml:"mdns"`           // find nodes on the local network; default true
	Local         bool            `toml:"local"`          // a network without public addresses
	Reach         reach           `toml:"reach"`          // auto, public or private
	Circuits      bool            `toml:"circuits"`       // offer circuits to nodes that nobody can dial
	CircuitRelays []bootstrapAddr `toml:"circuit_relays"` // multiaddrs with /p2p to be dialled through
	ReadReceipts  bool            `toml:"read_receipts"`  // tell contacts what was read
	LogLevel      logLevel        `toml:"log_level"`      // debug, info, warn or error
}

const knownKeys = "listen, announce, bootstrap, dht, mdns, local, reach, circuits, circuit_relays, read_receipts, log_level"

// settingsHelp is what starling help settings prints. It names every key.
const settingsHelp = `The file is starling.toml in the profile folder, or in starling below the
configuration folder where the profile has no folder of its own. Starling reads
it at the start and never writes it; a key it does not know is an error. Flags
of starling up come first.

  listen = ["/ip4/0.0.0.0/udp/4001/quic-v1"]
      Multiaddrs to listen on. Default: QUIC and TCP, on a port that is chosen
      once and kept.
  announce = ["/dns4/ada.example/udp/4001/quic-v1"]
      Multiaddrs to publish in place of those found out.
  bootstrap = ["/ip4/…/udp/…/quic-v1/p2p/…"]
      Nodes to find the network by, besides those of starling bootstrap.
  dht = "auto"
      Hold records for others: auto (unless nobody can dial this node), server
      (always) or client (never).
  mdns = true
      Find nodes on the local network.
  local = false
      The network has no public addresses: a LAN without internet, or one machine.
  reach = "auto"
      Whether others can dial this node: auto (peers are asked to try), public or
      private. If you say it and it is not so, others may not reach you.
  circuits = false
      Offer circuits to nodes that nobody can dial. You see who talks to whom
      by address, and not a word of what they say. Takes effect once others can
      dial this node.
  circuit_relays = ["/ip4/…/udp/…/quic-v1/p2p/…"]
      Nodes that offer circuits, for others to dial this node through when they
      cannot dial it directly. Default: peers that happen to offer them.
  read_receipts = false
      Tell contacts when you have read what they wrote.
  log_level = "info"
      debug, info, warn or error.`

// The types of values that are checked as they are read, so that a problem has
// a line and a column. They are structs because the decoder asks no string.
type (
	listenAddr    struct{ text string }
	bootstrapAddr struct{ text string }
	dhtMode       struct{ text string }
	reach         struct{ is node.Reach }
	logLevel      struct{ level slog.Level }
)

func (l *listenAddr) UnmarshalText(b []byte) error {
	if _, err := multiaddr.NewMultiaddr(string(b)); err != nil {
		return errors.New("not a multiaddr, such as /ip4/0.0.0.0/udp/4001/quic-v1")
	}
	l.text = string(b)
	return nil
}

func (l *bootstrapAddr) UnmarshalText(b []byte) error {
	if _, err := peer.AddrInfoFromString(string(b)); err != nil {
		return errors.New("not a multiaddr that ends in /p2p/PEER")
	}
	l.text = string(b)
	return nil
}

func (m *dhtMode) UnmarshalText(b []byte) error {
	switch s := string(b); s {
	case "auto", "server", "client":
		m.text = s
		return nil
	}
	return errors.New("must be auto, server or client")
}

func (r *reach) UnmarshalText(b []byte) error {
	is, ok := map[string]node.Reach{"auto": node.ReachAuto, "public": node.ReachPublic, "private": node.ReachPrivate}[string(b)]
	if !ok {
		return errors.New("must be auto, public or private")
	}
	r.is = is
	return nil
}

func (l *logLevel) UnmarshalText(b []byte) error {
	switch string(b) {
	case "debug", "info", "warn", "error":
		return l.level.UnmarshalText(b)
	}
	return errors.New("must be debug, info, warn or error")
}

func (l listenAddr) String() string    { return l.text }
func (l bootstrapAddr) String() string { return l.text }

// The methods of pflag.Value, so that a flag is checked as the file is.
func (m *dhtMode) Set(s string) error { return m.UnmarshalText([]byte(s)) }
func (m *dhtMode) String() string     { return m.text }
func (m *dhtMode) Type() string       { return "mode" }

// readSettings reads the file of the profile; a profile without one has the
// defaults. Every problem is told with its line and column.
func (p profile) readSettings() (settings, error) {
	s := settings{DHT: dhtMode{"auto"}}
	b, err := os.ReadFile(p.config)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	d := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields()
	err = d.Decode(&s)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var problems []string
		for _, e := range strict.Errors {
			problems = append(problems, p.at(&e)+"unknown key "+strings.Join(e.Key(), "."))
		}
		return s, usage("%s", strings.Join(problems, "\n")).try("Known keys: %s.", knownKeys)
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		return s, usage("%s%s", p.at(e), plainProblem(e.Error()))
	}
	if err != nil {
		return s, usage("%s: %s", p.config, plainProblem(err.Error()))
	}
	if s.Circuits && s.Reach.is == node.ReachPrivate {
		return s, usage("%s: circuits are offered by nodes that others can dial, and reach says private", p.config)
	}
	return s, nil
}

func (p profile) at(e *toml.DecodeError) string {
	line, column := e.Position()
	return fmt.Sprintf("%s:%d:%d: ", p.config, line, column)
}

// wrongType matches how the decoder tells of a value of the wrong type.
var wrongType = regexp.MustCompile(`^cannot decode TOML (\S+) into struct field \S+ of type \S+$`)

// plainProblem takes the names of our own code out of an error of the decoder.
func plainProblem(msg string) string {
	msg = strings.TrimPrefix(msg, "toml: ")
	if m := wrongType.FindStringSubmatch(msg); m != nil {
		return fmt.Sprintf("a %s is not what belongs here", m[1])
	}
	return msg
}

// addresses returns a list from the flags, or else from the file.
func addresses[T fmt.Stringer](flags []string, file []T) []string {
	if len(flags) > 0 {
		return flags
	}
	out := make([]string, len(file))
	for i, f := range file {
		out[i] = f.String()
	}
	return out
}
