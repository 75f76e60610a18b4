package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"starling/node/api"
)

func (a *app) contactCmd() *cobra.Command {
	return group("contact", "Add people, and decide who may write to you",
		a.contactAddCmd(), a.contactListCmd(), a.contactRequestsCmd(),
		a.contactAcceptCmd(), a.contactRejectCmd(), a.contactRenameCmd(),
		a.contactBlockCmd(), a.contactUnblockCmd(), a.contactRemoveCmd(), a.contactTrustCmd())
}

func (a *app) contactAddCmd() *cobra.Command {
	var as string
	c := &cobra.Command{
		Use:   "add LINK",
		Short: "Add somebody by the link they gave you",
		Long: `Add somebody by the link they gave you. It needs no network: if they cannot be
found yet, starling keeps looking, and what you send meanwhile waits.

With --as NAME of a contact you have, the link is checked against the key you
know. Another key is another person until you say otherwise: sending stops, and
the command exits 7.`,
		Example: "  starling contact add STARLING:… --as Bo",
		Args:    exactly("LINK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			c, err := api.Call(cmd.Context(), d.AddContact, &api.AddContactRequest{Link: args[0], As: as})
			if err != nil {
				return err
			}
			if c, err = a.introduced(cmd.Context(), d, c); err != nil {
				return err
			}
			next := "Say hello: starling send " + shellQuote(c.Name) + " hello"
			if c.State == "pending" || c.State == "requested" {
				next = "What you write already is sent then: starling send " + shellQuote(c.Name) + " hello"
				if as == "" && c.ProfileName == "" {
					next = "They are called " + shellQuote(c.Name) + " until they give their name.\n" + next
				}
			}
			a.showChange(c, "%s is added.", next)
			return a.identityChanged(c)
		},
	}
	c.Flags().StringVar(&as, "as", "", "the `name` you call them by")
	c.RegisterFlagCompletionFunc("as", a.contactNames(1, false))
	return c
}

// introduceLimit is how long a person waits to see an added contact answer.
// Somebody who is online does so at once, and then has a name.
const introduceLimit = 3 * time.Second

// introduced returns c as it is when they introduced themselves or the limit
// is over. A script does not wait: it sees the state, and follows events.
func (a *app) introduced(ctx context.Context, d daemon, c *api.Contact) (*api.Contact, error) {
	if a.json || !a.out.terminal || !a.err.terminal {
		return c, nil
	}
	waits := func() bool {
		return c.State == "pending" || c.State == "requested" || c.State == "accepted" && c.ProfileName == ""
	}
	for said, end := false, time.Now().Add(introduceLimit); waits() && time.Now().Before(end); {
		if !said {
			said = true
			a.note("Looking for them …")
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
		r, err := api.Call(ctx, d.ListContacts, &api.ListContactsRequest{})
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(r.Contacts, func(o *api.Contact) bool { return o.Account == c.Account }); i >= 0 {
			c = r.Contacts[i]
		}
	}
	return c, nil
}

// showChange prints a contact after a command changed it: what was done, the
// state it is in, and a next step.
func (a *app) showChange(c *api.Contact, done, next string) {
	if a.json {
		a.print(contactOf(c))
		return
	}
	if c.State == "key_changed" || c.State == "held" {
		return // identityChanged says it
	}
	fmt.Fprintf(a.out, done+"\n", a.out.paint(bold, escape(c.Name)))
	if c.Detail != "" && c.State != "accepted" {
		fmt.Fprintf(a.out, "  %s\n", escape(c.Detail))
	}
	if c.Warning != "" {
		fmt.Fprintf(a.out, "  %s %s\n", a.out.paint(yellow, "Careful:"), escape(c.Warning))
	}
	if next != "" {
		a.next("%s", next)
	}
}

// identityChanged is the failure of meeting a contact under another key, or
// nil.
func (a *app) identityChanged(c *api.Contact) error {
	p, err := a.profile()
	if err != nil {
		return err
	}
	who := shellQuote(c.Name)
	switch c.State {
	case "key_changed":
		return fail(exitIdentity, "%s's safety number has changed", escape(c.Name)).
			try("Somebody may be posing as them. Nothing is sent until you decide. Ask them in person; then:\n  %s   the new key is really theirs\n  %s     it is not",
				p.command("contact trust "+who), p.command("contact reject "+who))
	case "held":
		return fail(exitIdentity, "%s set up a new device", escape(c.Name)).
			try("Nothing is sent to it until you decide. Ask them; then: %s", p.command("contact trust "+who))
	}
	return nil
}

func (a *app) contactListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List your contacts",
		Args:  exactly(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.listContacts(cmd.Context(), false) },
	}
}

func (a *app) contactRequestsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "requests",
		Short: "List those who ask to be your contact",
		Args:  exactly(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.listContacts(cmd.Context(), true) },
	}
}

func (a *app) listContacts(ctx context.Context, requests bool) error {
	d, err := a.connect(ctx)
	if err != nil {
		return err
	}
	r, err := api.Call(ctx, d.ListContacts, &api.ListContactsRequest{Requests: requests})
	if err != nil {
		return err
	}
	if a.json {
		for _, c := range r.Contacts {
			a.print(contactOf(c))
		}
		return nil
	}
	switch {
	case len(r.Contacts) == 0 && requests:
		a.next("Nobody asks.")
		return nil
	case len(r.Contacts) == 0:
		a.next("No contacts yet. Give somebody a link (starling invite), or add theirs (starling contact add LINK).")
		return nil
	case requests:
		a.showRequests(r.Contacts, time.Now())
	default:
		a.showContacts(r.Contacts, time.Now())
	}
	return nil
}

// contactWords says what the states mean, where they need saying.
var contactWords = map[string]struct{ text, style string }{
	"pending":     {"not found yet", yellow},
	"requested":   {"waits for their answer", yellow},
	"blocked":     {"blocked", red},
	"key_changed": {"SAFETY NUMBER CHANGED", red},
	"held":        {"new device: decide", yellow},
}

func (a *app) showContacts(cs []*api.Contact, now time.Time) {
	rows := [][]cell{head("NAME", "STATE", "LAST SEEN", "UNREAD", "WAITING", "ACCOUNT")}
	for _, c := range cs {
		word, style := "contact", ""
		if c.Verified {
			word = "verified"
		}
		seen := ago(when(c.LastSeen), now)
		if c.Connected {
			seen, style = "connected", ""
			if c.Path == api.PathCircuit {
				seen = "connected (circuit)"
			}
		}
		if w, ok := contactWords[c.State]; ok {
			word, style = w.text, w.style
		}
		rows = append(rows, []cell{{shorten(escape(c.Name), 24), bold}, {word, style}, {seen, ""}, count(c.Unread), count(c.Queued), {shorten(c.Account, 14), dim}})
	}
	a.out.table(rows)
	for _, c := range cs {
		if c.Warning != "" {
			fmt.Fprintf(a.out, "%s %s\n", a.out.paint(yellow, escape(c.Name)+":"), escape(c.Warning))
		}
	}
}

// count leaves a zero empty, so that the others stand out.
func count(n uint32) cell {
	if n == 0 {
		return cell{"-", dim}
	}
	return cell{fmt.Sprint(n), bold}
}

func (a *app) showRequests(cs []*api.Contact, now time.Time) {
	rows := [][]cell{head("NAME", "ASKED", "ACCOUNT", "")}
	for _, c := range cs {
		rows = append(rows, []cell{{shorten(escape(c.Name), 24), bold}, {ago(when(c.Added), now), ""}, {shorten(c.Account, 14), dim}, {escape(c.Warning), yellow}})
	}
	a.out.table(rows)
	a.next("\nAccept or reject: starling contact accept NAME, starling contact reject NAME")
}

// contactChange is a command that names a contact and answers with it.
func (a *app) contactChange(use, short, done, next string, requests bool, do func(context.Context, daemon, string) (*api.Contact, error)) *cobra.Command {
	return &cobra.Command{
		Use:               use,
		Short:             short,
		Args:              exactly("CONTACT"),
		ValidArgsFunction: a.contactNames(0, requests),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			c, err := do(cmd.Context(), d, args[0])
			if err != nil {
				return err
			}
			a.showChange(c, done, next)
			return nil
		},
	}
}

func (a *app) contactAcceptCmd() *cobra.Command {
	var as string
	c := a.contactChange("accept CONTACT", "Make somebody who asks your contact", "%s is your contact now.", "", true,
		func(ctx context.Context, d daemon, who string) (*api.Contact, error) {
			return api.Call(ctx, d.AcceptContact, &api.AcceptContactRequest{Contact: who, As: as})
		})
	c.Flags().StringVar(&as, "as", "", "the `name` you call them by")
	return c
}

func (a *app) contactBlockCmd() *cobra.Command {
	return a.contactChange("block CONTACT", "Refuse everything from a contact, without telling them", "%s is blocked.", "", false,
		func(ctx context.Context, d daemon, who string) (*api.Contact, error) {
			return api.Call(ctx, d.BlockContact, &api.BlockContactRequest{Contact: who})
		})
}

func (a *app) contactUnblockCmd() *cobra.Command {
	return a.contactChange("unblock CONTACT", "Take back a block", "%s is no longer blocked.", "", false,
		func(ctx context.Context, d daemon, who string) (*api.Contact, error) {
			return api.Call(ctx, d.UnblockContact, &api.UnblockContactRequest{Contact: who})
		})
}

func (a *app) contactTrustCmd() *cobra.Command {
	return a.contactChange("trust CONTACT", "Accept a contact's changed key or new device", "%s is trusted with the new key or device; sending goes on.", "", false,
		func(ctx context.Context, d daemon, who string) (*api.Contact, error) {
			return api.Call(ctx, d.TrustContact, &api.TrustContactRequest{Contact: who})
		})
}

func (a *app) contactRenameCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rename CONTACT NAME",
		Short:             "Call a contact by another name; they do not see it",
		Args:              exactly("CONTACT", "NAME"),
		ValidArgsFunction: a.contactNames(0, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(args[1]) == "" {
				return usage("the name is empty")
			}
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			c, err := api.Call(cmd.Context(), d.RenameContact, &api.RenameContactRequest{Contact: args[0], Name: args[1]})
			if err != nil {
				return err
			}
			a.showChange(c, escape(args[0])+" is now called %s.", "")
			return nil
		},
	}
}

func (a *app) contactRejectCmd() *cobra.Command {
	return contactEnd(a, "reject CONTACT", "Refuse somebody who asks, or a changed key", "rejected", true,
		daemon.RejectContact, func(who string) *api.RejectContactRequest { return &api.RejectContactRequest{Contact: who} })
}

func (a *app) contactRemoveCmd() *cobra.Command {
	return contactEnd(a, "remove CONTACT", "Forget a contact and the conversation", "removed", false,
		daemon.RemoveContact, func(who string) *api.RemoveContactRequest { return &api.RemoveContactRequest{Contact: who} })
}

// contactEnd is a command after which there is no such contact.
func contactEnd[Q, A any](a *app, use, short, state string, requests bool,
	method func(daemon, context.Context, *connect.Request[Q]) (*connect.Response[A], error), request func(who string) *Q,
) *cobra.Command {
	return &cobra.Command{
		Use:               use,
		Short:             short,
		Args:              exactly("CONTACT"),
		ValidArgsFunction: a.contactNames(0, requests),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if _, err := method(d, cmd.Context(), connect.NewRequest(request(args[0]))); err != nil {
				return api.DecodeError(err)
			}
			a.done(map[string]any{"contact": args[0], "state": state}, "%s is %s.", escape(args[0]), state)
			return nil
		},
	}
}
