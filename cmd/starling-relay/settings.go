package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/pelletier/go-toml/v2"

	"starling/node/relay/station"
)

// settings is relay.toml. The program reads it and never writes it; flags of up
// come first. dist/relay.toml documents each key with its default.
type settings struct {
	Listen    []listenAddr    `toml:"listen"`
	Announce  []listenAddr    `toml:"announce"`
	Bootstrap []bootstrapAddr `toml:"bootstrap"`
	Local     bool            `toml:"local"`
	Quota     amount          `toml:"quota"`
	Traffic   perMonth        `toml:"traffic"`
	Rate      perSecond       `toml:"rate"`
	Admit     admission       `toml:"admit"`
	Circuits  bool            `toml:"circuits"`
	PortMap   bool            `toml:"port_map"`
	Metrics   metricsAddr     `toml:"metrics"`
	LogLevel  logLevel        `toml:"log_level"`
}

// defaults are what an empty file and no file mean.
func defaults() settings {
	s := settings{
		Quota:    amount{station.DefaultQuota, "1GB"},
		Traffic:  perMonth{amount{50_000_000_000, "50GB/month"}},
		Rate:     perSecond{amount{2_000_000, "2MB/s"}},
		Admit:    admission{"token"},
		Circuits: true, PortMap: true,
		Metrics:  metricsAddr{"off"},
		LogLevel: logLevel{slog.LevelInfo},
	}
	for _, a := range station.Listen(station.DefaultPort) {
		s.Listen = append(s.Listen, listenAddr{a})
	}
	return s
}

// The types of values that are checked as they are read, from the file or as the
// value of a flag. They are structs because the decoder asks no string.
type (
	listenAddr    struct{ text string }
	bootstrapAddr struct{ text string }
	admission     struct{ text string }
	metricsAddr   struct{ text string }
	logLevel      struct{ level slog.Level }
	amount        struct {
		bytes int64
		text  string
	}
	perMonth  struct{ amount }
	perSecond struct{ amount }
)

func (l *listenAddr) UnmarshalText(b []byte) error {
	if _, err := multiaddr.NewMultiaddr(string(b)); err != nil {
		return fmt.Errorf("not a multiaddr, such as /ip4/0.0.0.0/udp/%d/quic-v1", station.DefaultPort)
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

func (m *admission) UnmarshalText(b []byte) error {
	if s := string(b); s != "open" && s != "token" {
		return errors.New("must be open or token")
	}
	m.text = string(b)
	return nil
}

// Metrics are for this machine: they are not encrypted and ask for no password.
func (m *metricsAddr) UnmarshalText(b []byte) error {
	s := string(b)
	if s != "off" {
		if a, err := netip.ParseAddrPort(s); err != nil || !a.Addr().IsLoopback() {
			return errors.New("must be off, or an address and port of this machine alone, such as 127.0.0.1:7828")
		}
	}
	m.text = s
	return nil
}

func (l *logLevel) UnmarshalText(b []byte) error {
	switch string(b) {
	case "debug", "info", "warn", "error":
		return l.level.UnmarshalText(b)
	}
	return errors.New("must be debug, info, warn or error")
}

// units of sizes: powers of 1000, and with an i of 1024.
var units = []struct {
	name string
	size float64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

// parseSize reads a number of bytes with its unit, such as 1GB or 1.5 GiB. A
// number without a unit is refused: nobody means a quota of 50 bytes.
func parseSize(s string) (int64, error) {
	bad := errors.New("not a size, such as 500MB, 1GB or 2GiB")
	for _, u := range units {
		number, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		number = strings.TrimSuffix(number, " ")
		if number == "" || strings.Trim(number, "0123456789.") != "" {
			return 0, bad
		}
		n, err := strconv.ParseFloat(number, 64)
		if n *= u.size; err != nil || n < 1 || n >= math.MaxInt64/2 {
			return 0, bad
		}
		return int64(n), nil
	}
	return 0, bad
}

func (a *amount) UnmarshalText(b []byte) error {
	n, err := parseSize(string(b))
	if err != nil {
		return err
	}
	*a = amount{n, string(b)}
	return nil
}

// read reads an amount in a time. "unlimited" is none at all.
func (a *amount) read(b []byte, per string) error {
	if string(b) == "unlimited" {
		*a = amount{0, string(b)}
		return nil
	}
	size, ok := strings.CutSuffix(string(b), per)
	n, err := parseSize(size)
	if !ok || err != nil {
		return fmt.Errorf("must be unlimited, or a size with %s, such as 50MB%s", per, per)
	}
	*a = amount{n, string(b)}
	return nil
}

func (p *perMonth) UnmarshalText(b []byte) error  { return p.read(b, "/month") }
func (p *perSecond) UnmarshalText(b []byte) error { return p.read(b, "/s") }

// The methods of pflag.Value, so that a flag is checked as the file is.
func (m *admission) Set(s string) error   { return m.UnmarshalText([]byte(s)) }
func (m *admission) Type() string         { return "who" }
func (m *admission) String() string       { return m.text }
func (m *metricsAddr) Set(s string) error { return m.UnmarshalText([]byte(s)) }
func (m *metricsAddr) Type() string       { return "addr" }
func (m *metricsAddr) String() string     { return m.text }
func (a *amount) Set(s string) error      { return a.UnmarshalText([]byte(s)) }
func (a *amount) Type() string            { return "size" }
func (a *amount) String() string          { return a.text }
func (p *perMonth) Set(s string) error    { return p.UnmarshalText([]byte(s)) }
func (p *perMonth) Type() string          { return "size/month" }
func (p *perSecond) Set(s string) error   { return p.UnmarshalText([]byte(s)) }
func (p *perSecond) Type() string         { return "size/s" }

// keys lists the keys of the file in their order.
func keys() (all []string) {
	for f := range reflect.TypeFor[settings]().Fields() {
		all = append(all, f.Tag.Get("toml"))
	}
	return all
}

// readSettings reads a file; one that is not there holds the defaults, unless it
// was asked for by name. Every problem is told with its line and column.
func readSettings(path string, required bool) (settings, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !required {
		return defaults(), nil
	}
	if err != nil {
		return settings{}, usage("the settings: %s", err)
	}
	return parseSettings(path, b)
}

func parseSettings(path string, b []byte) (settings, error) {
	s := defaults()
	err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&s)
	at := func(e *toml.DecodeError) string {
		line, column := e.Position()
		return fmt.Sprintf("%s:%d:%d: ", path, line, column)
	}
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var problems []string
		for _, e := range strict.Errors {
			problems = append(problems, at(&e)+"unknown key "+strings.Join(e.Key(), "."))
		}
		return s, usage("%s", strings.Join(problems, "\n")).try("Known keys: %s.", strings.Join(keys(), ", "))
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		return s, usage("%s%s", at(e), strings.TrimPrefix(e.Error(), "toml: "))
	}
	if err != nil {
		return s, usage("%s: %s", path, strings.TrimPrefix(err.Error(), "toml: "))
	}
	return s, nil
}
