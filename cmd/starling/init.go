package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"strings"

	"github.com/spf13/cobra"
)

// initOptions are the flags of init; up on an empty profile has none of them.
type initOptions struct {
	name           string
	passphraseFile string
	keyring        bool
	noPassphrase   bool
}

func (a *app) initCmd() *cobra.Command {
	var o initOptions
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a profile on this machine",
		Long: `Make a profile: an account key, and a store that is encrypted on disk. At a
terminal it asks for a name and a passphrase. Without one, say how the store is
to be opened:

  --passphrase-file FILE  with a passphrase, from the first line of FILE (- is standard input)
  --keyring               with a key in the keyring of this system
  --no-passphrase         with a key in a file beside the store: who can read your files can read it`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.passphraseFile != "" && o.keyring || o.keyring && o.noPassphrase || o.noPassphrase && o.passphraseFile != "" {
				return usage("--passphrase-file, --keyring and --no-passphrase: choose one")
			}
			p, err := a.profile()
			if err != nil {
				return err
			}
			account, _, err := a.initProfile(cmd.Context(), p, o)
			if err != nil {
				return err
			}
			if a.json {
				a.print(map[string]any{"account": account.id, "name": account.name, "home": p.dir, "key": account.key})
				return nil
			}
			fmt.Fprintf(a.out, "The profile of %s is made.\n", a.out.paint(bold, escape(account.name)))
			a.out.facts([2]string{"account", account.id}, [2]string{"home", p.dir}, [2]string{"opened by", keyWords[account.key]})
			a.next("\nStart it with:       %s\nThen invite someone: %s", p.command("up --detach"), p.command("invite"))
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "your `name`, as new contacts see it (default: your login name)")
	f.StringVar(&o.passphraseFile, "passphrase-file", "", passphraseFileHelp)
	f.BoolVar(&o.keyring, "keyring", false, "keep the key in the keyring of this system")
	f.BoolVar(&o.noPassphrase, "no-passphrase", false, "keep the key in a file that is not protected")
	return c
}

// The ways to keep the key, as --json spells them.
const (
	keyPassphrase = "passphrase"
	keyKeyring    = "keyring"
	keyFile       = "file"
)

var keyWords = map[string]string{
	keyPassphrase: "a passphrase",
	keyKeyring:    "a key in the keyring of this system",
	keyFile:       "a key in a file that is not protected",
}

// created says what init made.
type created struct{ id, name, key string }

// initProfile makes a profile, whole or not at all, and returns the passphrase
// that it was given. Before it writes anything it has everything it needs.
func (a *app) initProfile(ctx context.Context, p profile, o initOptions) (c created, pass []byte, err error) {
	switch ok, err := p.exists(); {
	case err != nil:
		return c, nil, err
	case ok:
		return c, nil, fail(exitError, "there is a profile in %s already; nothing was changed", p.dir).
			try("Start it with: %s\nFor another one choose another folder with --home DIR.", p.command("up --detach"))
	}
	if _, err := p.readSettings(); err != nil {
		return c, nil, err
	}
	c.name = strings.TrimSpace(o.name)
	if c.name == "" && o.name != "" {
		return c, nil, usage("the name is empty")
	}
	asked := o.passphraseFile == "" && !o.keyring && !o.noPassphrase
	if asked && !a.interactive() {
		return c, nil, usage("there is no terminal to ask for a passphrase; nothing was written").try("%s", threeWays(p, "init"))
	}
	if asked {
		fmt.Fprintf(a.err, "A new profile in %s.\n\n", p.dir)
	}
	if c.name == "" {
		c.name = loginName()
		if asked {
			if c.name, err = a.askLine(ctx, "Your name, as new contacts see it", c.name); err != nil {
				return c, nil, err
			}
		}
	}
	switch {
	case o.keyring:
		c.key = keyKeyring
	case o.noPassphrase:
		c.key = keyFile
	case o.passphraseFile != "":
		c.key = keyPassphrase
		if pass, err = a.filePassphrase(o.passphraseFile); err == nil {
			err = checkPassphrase(pass)
		}
	default:
		c.key = keyPassphrase
		fmt.Fprintf(a.err, "A passphrase protects your messages on this disk. Nobody can reset it.\n")
		pass, err = a.askNewPassphrase(ctx, fmt.Sprintf("Passphrase (at least %d characters): ", minPassphrase))
		fmt.Fprintln(a.err)
	}
	if err != nil {
		return c, nil, err
	}
	c.id, err = p.create(ctx, c.name, c.key, pass)
	return c, pass, err
}

// threeWays names the ways to make a profile without a terminal.
func threeWays(p profile, verb string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Choose how the store is opened:")
	for _, way := range [][2]string{
		{"--passphrase-file FILE", "with a passphrase"},
		{"--keyring", "with a key in the keyring of this system"},
		{"--no-passphrase", "with a key in a file that is not protected"},
	} {
		fmt.Fprintf(&b, "\n  %-45s %s", p.command("init "+way[0]), way[1])
	}
	if verb == "up" {
		b.WriteString("\nThen start it again.")
	}
	return b.String()
}

// loginName is the name to offer where none was given.
func loginName() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username[strings.LastIndexByte(u.Username, '\\')+1:]
	}
	return orElse(os.Getenv("USER"), "me")
}
