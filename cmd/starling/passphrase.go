package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"starling/node/api"
)

// minPassphrase is what the shortest passphrase has in characters. The key is
// stretched by Argon2id; shorter ones fall to a list all the same.
const minPassphrase = 8

// maxPassphrase bounds what is read from a file, in bytes.
const maxPassphrase = 1024

const passphraseFileHelp = "read the passphrase from the first line of `file` (- is standard input)"

// filePassphrase reads a passphrase from the first line of a file, or from
// standard input for "-". A passphrase never comes from the command line,
// which every process on the machine can read.
func (a *app) filePassphrase(name string) ([]byte, error) {
	in := io.Reader(a.in)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, usage("the passphrase file: %s", err)
		}
		defer f.Close()
		in = f
	}
	line, err := readLine(in)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("reading the passphrase: %w", err)
	}
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return nil, usage("the passphrase file is empty")
	}
	return []byte(line), nil
}

// credential returns the passphrase that systemd handed over, or nil.
func (a *app) credential() ([]byte, error) {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, nil
	}
	name := filepath.Join(dir, "passphrase")
	if _, err := os.Stat(name); err != nil {
		return nil, nil
	}
	return a.filePassphrase(name)
}

// askPassphrase asks at the terminal, without echo.
func (a *app) askPassphrase(ctx context.Context, prompt string) ([]byte, error) {
	tty, err := openTerminal()
	if err != nil {
		return nil, usage("there is no terminal to ask at").try("Use --passphrase-file FILE.")
	}
	defer tty.Close()
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	fmt.Fprint(a.err, prompt)
	type answer struct {
		b   []byte
		err error
	}
	// After Ctrl-C nothing can end the read but the end of the program, which
	// follows; the terminal must echo again by then.
	got := make(chan answer, 1)
	go func() {
		b, err := term.ReadPassword(fd)
		got <- answer{b, err}
	}()
	select {
	case r := <-got:
		fmt.Fprintln(a.err)
		if r.err == io.EOF {
			return nil, fail(exitInterrupted, "")
		}
		return r.b, r.err
	case <-ctx.Done():
		term.Restore(fd, before)
		fmt.Fprintln(a.err)
		return nil, ctx.Err()
	}
}

// askNewPassphrase asks twice, until both agree and are long enough, at most
// three times.
func (a *app) askNewPassphrase(ctx context.Context, prompt string) ([]byte, error) {
	for range 3 {
		p, err := a.askPassphrase(ctx, prompt)
		if err != nil {
			return nil, err
		}
		if err := checkPassphrase(p); err != nil {
			fmt.Fprintf(a.err, "%s\n", err)
			continue
		}
		again, err := a.askPassphrase(ctx, "Once more: ")
		if err != nil {
			return nil, err
		}
		if bytes.Equal(p, again) {
			return p, nil
		}
		fmt.Fprintln(a.err, "These two differ.")
	}
	return nil, fail(exitError, "no passphrase was chosen; nothing was written")
}

func checkPassphrase(p []byte) error {
	if n := utf8.RuneCount(p); n < minPassphrase {
		return usage("the passphrase has %s; it needs at least %d", plural(n, "character"), minPassphrase).
			try("Four or five unrelated words are easy to keep in mind and hard to guess.")
	}
	return nil
}

// askLine asks at the terminal, with an answer to take if none is given.
func (a *app) askLine(ctx context.Context, prompt, otherwise string) (string, error) {
	tty, err := openTerminal()
	if err != nil {
		return "", usage("there is no terminal to ask at")
	}
	defer tty.Close()
	fmt.Fprintf(a.err, "%s [%s]: ", prompt, escape(otherwise))
	got := make(chan string, 1) // closed without a value at the end of input; see askPassphrase
	go func() {
		defer close(got)
		if line, err := readLine(tty); err == nil {
			got <- line
		}
	}()
	select {
	case line, ok := <-got:
		if !ok {
			fmt.Fprintln(a.err)
			return "", fail(exitInterrupted, "")
		}
		if line = strings.TrimSpace(line); line == "" {
			return otherwise, nil
		}
		return line, nil
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return "", ctx.Err()
	}
}

// readLine reads to the end of the line and not a byte further: what follows
// belongs to the next question. At the end of input it returns what there is.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for one := make([]byte, 1); len(line) < maxPassphrase; {
		n, err := r.Read(one)
		if n == 1 && one[0] == '\n' {
			return string(line), nil
		}
		line = append(line, one[:n]...)
		if err != nil {
			return string(line), err
		}
	}
	return "", usage("the line is longer than %d bytes", maxPassphrase)
}

func (a *app) passphraseCmd() *cobra.Command {
	var oldFile, newFile string
	change := &cobra.Command{
		Use:   "change",
		Short: "Change the passphrase that protects the profile",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, _, err := a.connectAny(cmd.Context())
			if err != nil {
				return err
			}
			p, err := a.profile()
			if err != nil {
				return err
			}
			need, err := p.needsPassphrase()
			if err != nil {
				return err
			}
			var old, fresh []byte
			if need {
				if old, err = a.passphraseFrom(cmd.Context(), oldFile, "Old passphrase: "); err != nil {
					return err
				}
			}
			if newFile != "" {
				if fresh, err = a.filePassphrase(newFile); err == nil {
					err = checkPassphrase(fresh)
				}
			} else if a.interactive() {
				fresh, err = a.askNewPassphrase(cmd.Context(), "New passphrase: ")
			} else {
				err = usage("there is no terminal to ask for the new passphrase").try("Use --new-file FILE.")
			}
			if err != nil {
				return err
			}
			if _, err := api.Call(cmd.Context(), d.ChangePassphrase, &api.ChangePassphraseRequest{Old: old, New: fresh}); err != nil {
				return err
			}
			a.done(map[string]any{"changed": true}, "The passphrase is changed.")
			return nil
		},
	}
	change.Flags().StringVar(&oldFile, "passphrase-file", "", "read the old passphrase from the first line of `file` (- is standard input)")
	change.Flags().StringVar(&newFile, "new-file", "", "read the new passphrase from the first line of `file`")
	return group("passphrase", "Change the passphrase", change)
}

// passphraseFrom takes a passphrase from a file, or asks.
func (a *app) passphraseFrom(ctx context.Context, file, prompt string) ([]byte, error) {
	if file != "" {
		return a.filePassphrase(file)
	}
	if !a.interactive() {
		return nil, usage("there is no terminal to ask for the passphrase").try("Use --passphrase-file FILE.")
	}
	return a.askPassphrase(ctx, prompt)
}
