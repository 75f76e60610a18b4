package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// A profile is where one user's things are.
type profile struct {
	dir    string // the home: key, store, socket, listen port
	config string // starling.toml, written by the user only
	log    string // of a daemon in the background
	flag   string // " --home DIR" where a command must name it, or empty
}

func (p profile) key() string   { return filepath.Join(p.dir, "key") }
func (p profile) store() string { return filepath.Join(p.dir, "store") }
func (p profile) port() string  { return filepath.Join(p.dir, "port") }

// exists reports whether init ran here.
func (p profile) exists() (bool, error) {
	_, err := os.Stat(p.key())
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, fs.ErrPermission):
		return false, fail(exitUnreachable, "no permission to look into %s", p.dir).try("It belongs to another user. Choose a folder of your own with --home DIR.")
	}
	return false, err
}

// command spells a command line for this profile, for hints.
func (p profile) command(args string) string { return "starling" + p.flag + " " + args }

// profile finds the home: --home, then STARLING_HOME, then the XDG folders.
func (a *app) profile() (profile, error) {
	dir, flag := a.dir, ""
	if dir == "" {
		dir = os.Getenv("STARLING_HOME")
	} else {
		flag = " --home " + shellQuote(dir)
	}
	if dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return profile{}, err
		}
		return profile{dir: abs, config: filepath.Join(abs, "starling.toml"), log: filepath.Join(abs, "starling.log"), flag: flag}, nil
	}
	data, err := xdg("XDG_DATA_HOME", ".local/share")
	if err != nil {
		return profile{}, err
	}
	conf, err := xdg("XDG_CONFIG_HOME", ".config")
	if err != nil {
		return profile{}, err
	}
	state, err := xdg("XDG_STATE_HOME", ".local/state")
	if err != nil {
		return profile{}, err
	}
	return profile{dir: data, config: filepath.Join(conf, "starling.toml"), log: filepath.Join(state, "starling.log")}, nil
}

// xdg returns our folder under a base directory of the XDG specification,
// which ignores values that are not absolute. Where the system has a place of
// its own for such files, that is the default.
func xdg(env, fallback string) (string, error) {
	if base := os.Getenv(env); filepath.IsAbs(base) {
		return filepath.Join(base, "starling"), nil
	}
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		base, err := os.UserConfigDir()
		return filepath.Join(base, "starling"), err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", usage("there is no home folder: %s", err).try("Name one with --home DIR.")
	}
	return filepath.Join(home, fallback, "starling"), nil
}

// shellQuote returns s as one word of a shell command.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:=@%,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// readPort returns the listen port of the profile, or 0 if none was chosen.
func (p profile) readPort() (int, error) {
	b, err := os.ReadFile(p.port())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n < 1 || n > 65535 {
		return 0, fail(exitError, "%s does not hold a port", p.port()).try("Delete the file, and the next start chooses another port.")
	}
	return n, nil
}

// writePort keeps a port, whole or not at all.
func (p profile) writePort(n int) error {
	tmp := p.port() + ".new"
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "%d\n", n), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, p.port())
}
