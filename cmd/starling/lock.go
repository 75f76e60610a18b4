package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"starling/node/api"
)

func (a *app) stopCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "Stop the node; what is queued waits on disk",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			p, err := a.profile()
			if err != nil {
				return err
			}
			// A daemon of another version can be stopped too.
			c, err := api.Dial(ctx, p.dir)
			if c == nil {
				switch err = a.noAnswer(ctx, p, err); {
				case errors.Is(err, api.ErrStarting):
					return fail(exitUnreachable, "%s", err).try("%s", p.stuck())
				case errors.Is(err, api.ErrNotRunning):
					return fail(exitUnreachable, "%s", err) // nothing is left to do
				}
				return err
			}
			defer c.Close()
			if _, err := api.Call(ctx, c.Stop, &api.StopRequest{}); err != nil {
				return err
			}
			a.note("Waiting for starling to finish …")
			limited, cancel := context.WithTimeout(ctx, stopLimit)
			defer cancel()
			if err := api.WaitGone(limited, p.dir); err != nil {
				if ctx.Err() == nil && limited.Err() != nil {
					return fail(exitError, "starling was told to stop and still runs after %s", spell(stopLimit)).try("Its log is %s", p.log)
				}
				return err
			}
			a.done(map[string]any{"stopped": true}, "Stopped.")
			return nil
		},
	}
}

// stopLimit bounds how long stop waits for the daemon to end.
const stopLimit = 30 * time.Second

func (a *app) lockCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "lock",
		Short: "Close the store until the passphrase is given again",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, _, err := a.connectAny(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := api.Call(cmd.Context(), d.Lock, &api.LockRequest{}); err != nil {
				return err
			}
			a.done(map[string]any{"state": "locked"}, "Locked. Nothing is sent or received until: starling unlock")
			return nil
		},
	}
}

func (a *app) unlockCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "unlock",
		Short: "Open the store with the passphrase",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			d, st, err := a.connectAny(ctx)
			if err != nil {
				return err
			}
			if st.State == api.StateLocked {
				pass, err := a.unlockSecret(cmd, file)
				if err != nil {
					return err
				}
				a.note("Opening the profile …")
				if _, err := api.Call(ctx, d.Unlock, &api.UnlockRequest{Passphrase: pass}); err != nil {
					return err
				}
			}
			a.done(map[string]any{"state": "running"}, "Unlocked.")
			return nil
		},
	}
	c.Flags().StringVar(&file, "passphrase-file", "", passphraseFileHelp)
	return c
}

// unlockSecret returns the passphrase, or nothing for a profile that has none.
func (a *app) unlockSecret(cmd *cobra.Command, file string) ([]byte, error) {
	p, err := a.profile()
	if err != nil {
		return nil, err
	}
	if need, err := p.needsPassphrase(); err != nil || !need {
		return nil, err
	}
	return a.passphraseFrom(cmd.Context(), file, "Passphrase: ")
}
