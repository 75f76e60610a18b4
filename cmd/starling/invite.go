package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"starling/node/api"
)

func (a *app) inviteCmd() *cobra.Command {
	var public, drawn bool
	c := group("invite", "Make a link that lets somebody reach you",
		a.inviteListCmd(), a.inviteRevokeCmd(), a.inviteRotateCmd())
	c.Long = `Make a link that lets somebody reach you. It works once, within 7 days, and
makes its bearer your contact at once: give it to one person you trust. Whoever
comes with a link that was used already becomes a contact request.

With --public the link works for anyone and for good; those who use it become
contact requests that you accept or reject.

The link alone goes to standard output, so that LINK=$(starling invite) works.`
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		d, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		i, err := api.Call(cmd.Context(), d.CreateInvite, &api.CreateInviteRequest{Public: public})
		if err != nil {
			return err
		}
		if a.json {
			a.print(inviteOf(i))
			return nil
		}
		fmt.Fprintln(a.out, i.Link)
		if drawn {
			if err := a.drawQR(i.Link); err != nil {
				return err
			}
		}
		a.explainInvite(i, time.Now())
		return nil
	}
	c.Flags().BoolVar(&public, "public", false, "reusable; whoever uses it asks first")
	c.Flags().BoolVar(&drawn, "qr", false, "draw the link as a QR code too")
	return c
}

// explainInvite says beside the link what it is good for.
func (a *app) explainInvite(i *api.Invite, now time.Time) {
	use := fmt.Sprintf("works once; expires %s (%s)", ago(when(i.Expires), now), when(i.Expires).Local().Format("Monday 2 January, 15:04"))
	then, answer := "Give it to one person you trust: it makes its bearer your contact at once.", ""
	if i.Public {
		use = "works for anyone, until you revoke it"
		then, answer = "Show it to anyone; those who use it ask first.", "See who asks: starling contact requests\n"
	}
	if !a.err.terminal || !a.out.terminal {
		if i.Hint != "" {
			fmt.Fprintln(a.err, escape(i.Hint))
		}
		return
	}
	fmt.Fprintln(a.err)
	a.err.facts([2]string{"use", use}, [2]string{"reach", orElse(reachWords[i.Reach], i.Reach)}, [2]string{"", escape(i.Hint)})
	fmt.Fprintf(a.err, "\n%s They type:\n  starling contact add %s…\n%s", then, i.Link[:min(len(i.Link), 20)], answer)
}

func (a *app) inviteListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the links you made",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			r, err := api.Call(cmd.Context(), d.ListInvites, &api.ListInvitesRequest{})
			if err != nil {
				return err
			}
			if a.json {
				for _, i := range r.Invites {
					a.print(inviteOf(i))
				}
				return nil
			}
			if len(r.Invites) == 0 {
				a.next("No links yet. Make one with: starling invite")
				return nil
			}
			now := time.Now()
			rows := [][]cell{head("ID", "KIND", "STATE", "MADE", "EXPIRES")}
			for _, i := range r.Invites {
				kind, expires := "once", ago(when(i.Expires), now)
				if i.Public {
					kind, expires = "public", "never"
				}
				state, style := i.State, ""
				if i.UsedBy != "" {
					state += " by " + escape(i.UsedBy)
				}
				if i.State == "open" {
					style = green
				}
				rows = append(rows, []cell{{i.Id, ""}, {kind, ""}, {state, style}, {ago(when(i.Created), now), ""}, {expires, ""}})
			}
			a.out.table(rows)
			return nil
		},
	}
}

func (a *app) inviteRevokeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Make one link useless",
		Args:  exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := api.Call(cmd.Context(), d.RevokeInvite, &api.RevokeInviteRequest{Id: args[0]}); err != nil {
				return err
			}
			a.done(map[string]any{"id": args[0], "state": "revoked"}, "Revoked.")
			return nil
		},
	}
}

func (a *app) inviteRotateCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Make every link useless at once; contacts are told the new secret",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := api.Call(cmd.Context(), d.RotateInvites, &api.RotateInvitesRequest{}); err != nil {
				return err
			}
			a.done(map[string]any{"rotated": true}, "All links made so far are useless now. Make a new one with: starling invite")
			return nil
		},
	}
}

// drawQR draws text as a QR code of half blocks, two rows of modules a line.
// It is for a camera: without a terminal there is nothing to draw on.
func (a *app) drawQR(text string) error {
	if !a.out.terminal {
		fmt.Fprintln(a.err, "The QR code is left out: standard output is not a terminal.")
		return nil
	}
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return fmt.Errorf("drawing the QR code: %w", err)
	}
	fmt.Fprint(a.out, "\n", halfBlocks(code.Size, code.Black, a.out.colour), "\n")
	return nil
}

// halfBlocks draws modules inside the quiet zone that scanners need. With
// colours it is black on white whatever the terminal's own are; without, light
// modules are drawn, as terminals are mostly dark.
func halfBlocks(size int, black func(x, y int) bool, colour bool) string {
	const quiet = 2
	light := func(x, y int) bool { return !black(x, y) } // black is false outside
	var b strings.Builder
	for y := -quiet; y < size+quiet; y += 2 {
		if colour {
			b.WriteString("\x1b[97;40m")
		}
		for x := -quiet; x < size+quiet; x++ {
			top, bottom := light(x, y), light(x, y+1) && y+1 < size+quiet
			switch {
			case top && bottom:
				b.WriteRune('█')
			case top:
				b.WriteRune('▀')
			case bottom:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		if colour {
			b.WriteString("\x1b[0m")
		}
		b.WriteByte('\n')
	}
	return b.String()
}
