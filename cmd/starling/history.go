package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"starling/node/api"
)

func (a *app) historyCmd() *cobra.Command {
	var n uint32
	c := &cobra.Command{
		Use:               "history CHAT",
		Short:             "Show a conversation, oldest first",
		Args:              exactly("CHAT"),
		ValidArgsFunction: a.contactNames(0, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if n == 0 {
				return usage("-n must be at least 1")
			}
			d, err := a.connect(ctx)
			if err != nil {
				return err
			}
			ms, err := readHistory(ctx, d, args[0], int(n))
			if err != nil {
				return err
			}
			if a.json {
				for _, m := range ms {
					a.print(messageOf(m))
				}
				return nil
			}
			if len(ms) == 0 {
				a.next("Nothing was said yet. Begin: starling send %s hello", shellQuote(escape(args[0])))
				return nil
			}
			a.showHistory(ms, time.Now())
			if a.out.terminal { // somebody looked at it
				return markRead(ctx, d, args[0], ms)
			}
			return nil
		},
	}
	c.Flags().Uint32VarP(&n, "number", "n", 50, "show the newest `n` messages")
	return c
}

// historyPage is the most messages the daemon gives in one answer.
const historyPage = 1000

// readHistory returns the newest n messages of a chat, oldest first.
func readHistory(ctx context.Context, d daemon, chat string, n int) ([]*api.Message, error) {
	var pages [][]*api.Message
	before := ""
	for n > 0 {
		page := min(n, historyPage)
		r, err := api.Call(ctx, d.History, &api.HistoryRequest{Chat: chat, Limit: uint32(page), Before: before})
		if err != nil {
			return nil, err
		}
		pages = append(pages, r.Messages)
		if len(r.Messages) < page {
			break
		}
		n -= page
		before = r.Messages[0].Id
	}
	slices.Reverse(pages)
	return slices.Concat(pages...), nil
}

// markRead tells the daemon that the user saw the newest message of a chat.
func markRead(ctx context.Context, d daemon, chat string, ms []*api.Message) error {
	for _, m := range slices.Backward(ms) {
		if m.State == "received" {
			_, err := api.Call(ctx, d.MarkRead, &api.MarkReadRequest{Chat: chat, Id: m.Id})
			return err
		}
	}
	return nil
}

// showHistory prints messages under a line for each day.
func (a *app) showHistory(ms []*api.Message, now time.Time) {
	wide := columns("you")
	for _, m := range ms {
		wide = max(wide, columns(a.speaker(m)))
	}
	last := ""
	for _, m := range ms {
		if d := day(when(m.Time), now); d != last {
			fmt.Fprintf(a.out, "%s\n", a.out.paint(dim, "— "+d+" —"))
			last = d
		}
		a.showMessage(m, wide)
	}
}

// speaker names who wrote m.
func (a *app) speaker(m *api.Message) string {
	switch {
	case m.Kind == "notice":
		return "*"
	case m.State == "received":
		return shorten(escape(m.Chat), 20)
	}
	return "you"
}

// showMessage prints one message. Its further lines are indented below the
// first, where nothing of ours ever stands.
func (a *app) showMessage(m *api.Message, wide int) {
	who, style := a.speaker(m), bold
	if m.Kind == "notice" {
		style = yellow
	} else if m.State != "received" {
		style = dim
	}
	indent := strings.Repeat(" ", len("15:04  ")+wide+2)
	text := strings.ReplaceAll(escapeBlock(m.Text), "\n", "\n"+indent)
	if m.Kind == "notice" {
		text = a.out.paint(yellow, text)
	}
	fmt.Fprintf(a.out, "%s  %s%s  %s", a.out.paint(dim, clock(when(m.Time))), a.out.paint(style, who), strings.Repeat(" ", wide-columns(who)), text)
	if m.Kind != "notice" && m.State != "received" {
		fmt.Fprintf(a.out, "  %s", a.stateWords(m))
		if m.Reason != "" {
			fmt.Fprintf(a.out, " %s", a.out.paint(dim, "("+escape(m.Reason)+")"))
		}
	}
	fmt.Fprintln(a.out)
}
