package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"starling/node/api"
	"starling/protocol"
)

func (a *app) sendCmd() *cobra.Command {
	var (
		wait    string
		timeout time.Duration
		id      string
	)
	c := &cobra.Command{
		Use:   "send TO TEXT|-",
		Short: "Send a message",
		Long: `Send a message to a contact, by name or account ID. The command returns when the
message is safe on disk; from then on it is delivered as soon as they can be
reached, whatever happens here.

With --wait it returns when the message is delivered (or stored at a relay, or
read); it exits 6 if that takes longer than --timeout. The message stays queued.`,
		Example: `  starling send Bo "see you at eight"
  starling send Bo --wait delivered -- "-- dashes first --"
  date | starling send Bo -`,
		Args: func(c *cobra.Command, got []string) error {
			if len(got) > 2 {
				return usage("the text is more than one argument").try("Put it in quotes, or read it from standard input with -.")
			}
			return exactly("TO", "TEXT")(c, got)
		},
		ValidArgsFunction: a.contactNames(0, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if wait != "" && !validState[wait] {
				return usage("--wait is stored, delivered or read, not %q", wait)
			}
			if timeout <= 0 {
				return usage("--timeout must be more than nothing")
			}
			key, err := messageID(id)
			if err != nil {
				return err
			}
			text, err := a.messageText(args[1])
			if err != nil {
				return err
			}
			d, err := a.connect(ctx)
			if err != nil {
				return err
			}
			m, err := api.Call(ctx, d.Send, &api.SendRequest{To: args[0], Text: text, Id: key})
			if err != nil {
				return a.sendFailure(err, key)
			}
			if wait != "" {
				a.note("Waiting for the message to be %s …", wait)
				if m, err = a.await(ctx, d, m, wait, timeout); err != nil {
					return err
				}
			}
			if a.json {
				a.print(messageOf(m))
			} else {
				fmt.Fprintf(a.out, "%s  to %s%s\n", a.stateWords(m), escape(m.Chat), a.where(m))
			}
			return undelivered(m, wait, timeout)
		},
	}
	c.Flags().StringVar(&wait, "wait", "", "return when the message reached this `state`: stored, delivered or read")
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "give up waiting after this `time`")
	c.Flags().StringVar(&id, "id", "", "32 hexadecimal `digits` that name the message: repeating the command with them cannot send twice")
	c.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions([]cobra.Completion{"stored", "delivered", "read"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// validState are the states that can be waited for.
var validState = map[string]bool{"stored": true, "delivered": true, "read": true}

// rank orders the states of a message on its way.
var rank = map[string]int{"queued": 1, "stored": 2, "delivered": 3, "read": 4}

// messageID returns the ID that a script chose, or a fresh one.
func messageID(s string) ([]byte, error) {
	if s == "" {
		b := make([]byte, 16)
		rand.Read(b) // never fails
		return b, nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		return nil, usage("--id needs 32 hexadecimal digits")
	}
	return b, nil
}

// messageText returns the text of the argument, or standard input for "-".
func (a *app) messageText(arg string) (string, error) {
	text := arg
	if arg == "-" {
		if a.interactive() {
			a.note("Reading the message until Ctrl-D …")
		}
		b, err := io.ReadAll(io.LimitReader(a.in, protocol.MaxText+2))
		if err != nil {
			return "", fmt.Errorf("reading standard input: %w", err)
		}
		text = strings.TrimSuffix(string(b), "\n")
	}
	switch {
	case text == "":
		return "", usage("the message is empty")
	case len(text) > protocol.MaxText:
		return "", usage("the message is longer than %d bytes", protocol.MaxText)
	case !utf8.ValidString(text):
		return "", usage("the message is not text in UTF-8")
	}
	return text, nil
}

// sendFailure tells how to repeat a send whose answer got lost, without
// sending twice.
func (a *app) sendFailure(err error, key []byte) error {
	if f := a.apiFailure(err); f != nil && f.code == exitUnreachable {
		return f.try("It may or may not be queued. Repeat the command with --id %x: it cannot be sent twice.", key)
	}
	return err
}

// await waits until m reached a state or failed. The daemon answers each call
// in its own time, so one call may not be enough.
func (a *app) await(ctx context.Context, d daemon, m *api.Message, state string, timeout time.Duration) (*api.Message, error) {
	for end := time.Now().Add(timeout); ; {
		left := time.Until(end)
		if left <= 0 || m.State == "failed" || rank[m.State] >= rank[state] {
			return m, nil
		}
		next, err := api.Call(ctx, d.WaitMessage, &api.WaitMessageRequest{Id: m.Id, State: state, Timeout: max(left.Milliseconds(), 1)})
		if err != nil {
			return nil, err
		}
		m = next
	}
}

// undelivered is the failure of a send that waited and did not see its state.
func undelivered(m *api.Message, wait string, timeout time.Duration) error {
	switch {
	case m.State == "failed":
		return fail(exitError, "the message failed: %s", escape(m.Reason))
	case wait != "" && rank[m.State] < rank[wait]:
		f := fail(exitUndelivered, "not %s after %s", wait, timeout)
		if m.Reason != "" {
			f.msg += ": " + escape(m.Reason)
		}
		if m.State == "stored" {
			return f.try("%s gets it from a relay, even if this machine is off.", escape(m.Chat))
		}
		return f.try("It stays queued and is sent as soon as %s can be reached.", escape(m.Chat))
	}
	return nil
}

// where says of a stored message at how many relays it is, and until when.
func (a *app) where(m *api.Message) string {
	if m.State != "stored" || m.Reason == "" {
		return ""
	}
	return " " + a.out.paint(dim, "("+escape(m.Reason)+")")
}

// stateWords shows the state of an own message: ticks for the eye, a word for
// everybody.
func (a *app) stateWords(m *api.Message) string {
	switch m.State {
	case "queued":
		return a.out.paint(dim, "… queued")
	case "stored":
		return a.out.paint(dim, "✓ stored")
	case "delivered":
		return a.out.paint(green, "✓✓ delivered")
	case "read":
		return a.out.paint(green, "✓✓ read")
	case "failed":
		return a.out.paint(red, "✗ failed")
	}
	return escape(m.State)
}
