package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"starling/node/api"
	"starling/protocol"
)

func (a *app) chatCmd() *cobra.Command {
	var n uint32
	c := &cobra.Command{
		Use:   "chat CONTACT",
		Short: "Talk to a contact, line by line",
		Long: `Talk to a contact, line by line: what they said last, then what they say now; a
line you type is sent. What becomes of your messages is told in words. Ctrl-D
ends the chat; what is queued is delivered all the same.`,
		Args:              exactly("CONTACT"),
		ValidArgsFunction: a.contactNames(0, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.json {
				return usage("chat is for people").try("For programs: starling events --json, starling send --json")
			}
			d, st, err := a.connectAny(cmd.Context())
			if err != nil {
				return err
			}
			if st.State == api.StateLocked {
				return a.locked()
			}
			who, err := findContact(cmd.Context(), d, args[0])
			if err != nil {
				return err
			}
			c := &chat{app: a, d: d, who: who, name: who.Name, sent: make(chan *api.Message, 1), texts: map[string]string{}, shown: map[string]bool{}}
			return c.run(cmd.Context(), st.Journal, int(n))
		},
	}
	c.Flags().Bool("plain", true, "line mode, the only one so far")
	c.Flags().Uint32VarP(&n, "number", "n", 10, "begin with the newest `n` messages")
	return c
}

// findContact returns the contact that TO names, so that the chat can say how
// they stand; what it does not find the daemon may still know, and says why not.
func findContact(ctx context.Context, d daemon, to string) (*api.Contact, error) {
	r, err := api.Call(ctx, d.ListContacts, &api.ListContactsRequest{})
	if err != nil {
		return nil, err
	}
	for _, c := range r.Contacts {
		if strings.EqualFold(c.Name, to) || strings.EqualFold(c.Account, to) {
			return c, nil
		}
	}
	// An answer of the daemon names the candidates of an ambiguous name.
	if _, err := api.Call(ctx, d.History, &api.HistoryRequest{Chat: to, Limit: 1}); err != nil {
		return nil, err
	}
	return &api.Contact{Name: to, Account: to, State: "request"}, nil
}

// A chat is one conversation in line mode. Two goroutines print: the one that
// reads lines and the one that follows events.
type chat struct {
	*app
	d    daemon
	who  *api.Contact   // as it was when the chat began
	line *term.Terminal // nil without a terminal

	// sent carries what was sent to explain; sendLine sends and never waits.
	// Capacity 1: those behind one message wait for the same.
	sent chan *api.Message

	mu    sync.Mutex        // guards what follows, and keeps lines whole
	name  string            // what the contact is called now
	texts map[string]string // own messages on their way, by ID
	shown map[string]bool   // messages printed already, by ID
}

// run prints the end of the history, then follows and sends until the input
// ends or ctx does.
func (c *chat) run(ctx context.Context, since uint64, tail int) error {
	end, err := c.openLine()
	if err != nil {
		return err
	}
	defer end()
	ms, err := readHistory(ctx, c.d, c.who.Account, tail)
	if err != nil {
		return err
	}
	c.begin(ms)
	if err := markRead(ctx, c.d, c.who.Account, ms); err != nil {
		return err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { c.explain(ctx) })
	wg.Go(func() {
		err := c.follow(ctx, c.d, since, 0, func(e *api.Event) { c.event(ctx, e) })
		if ctx.Err() == nil {
			c.say(yellow, "The chat ends: %s.", err)
		}
		cancel(err)
	})
	// A read from standard input cannot be interrupted; where the events end
	// first, the end of the program ends it.
	lines := make(chan error, 1)
	go func() { lines <- c.sendLines(ctx) }()
	select {
	case err = <-lines:
		cancel(nil)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	wg.Wait()
	return err
}

// openLine makes the terminal edit lines, so that what arrives does not tear
// what is being typed. The returned function gives the terminal back.
func (c *chat) openLine() (func(), error) {
	if !c.interactive() || !c.out.terminal || os.Getenv("TERM") == "dumb" {
		return func() {}, nil
	}
	fd := int(c.in.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("preparing the terminal: %w", err)
	}
	c.line = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{c.in, c.out.Writer}, "> ")
	if w, h, err := term.GetSize(fd); err == nil {
		c.line.SetSize(w, h)
	}
	c.line.SetBracketedPasteMode(true)
	raw := c.out
	c.app.out = &screen{Writer: c.line, terminal: true, colour: raw.colour}
	return func() {
		c.line.SetBracketedPasteMode(false)
		term.Restore(fd, before)
		fmt.Fprint(raw, "\r\x1b[K")
		c.app.out = raw
	}, nil
}

// begin says who this is with and what was said last.
func (c *chat) begin(ms []*api.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := escape(c.who.Name)
	state := "last seen " + ago(when(c.who.LastSeen), time.Now())
	if c.who.LastSeen == 0 {
		state = "not seen yet"
	}
	if c.who.Connected {
		state = "connected"
	}
	if w, ok := contactWords[c.who.State]; ok {
		state = w.text
	}
	fmt.Fprintf(c.out, "%s (%s). A line you type is sent; Ctrl-D ends.\n", c.out.paint(bold, name), state)
	for _, m := range ms {
		c.shown[m.Id] = true
		if m.State == "queued" || m.State == "stored" {
			c.texts[m.Id] = m.Text
		}
	}
	c.showHistory(ms, time.Now())
}

// say prints one line of our own.
func (c *chat) say(style, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintln(c.out, c.out.paint(style, "* "+fmt.Sprintf(format, args...)))
}

// sendLines sends every line until the input ends.
func (c *chat) sendLines(ctx context.Context) error {
	next := c.nextLine()
	for ctx.Err() == nil {
		line, err := next()
		if text := strings.TrimSpace(line); text != "" {
			if err := c.sendLine(ctx, line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading what you type: %w", err)
		}
	}
	return nil
}

// nextLine returns the reader of lines. Pasted lines are put into one message:
// nobody wants to send half of what they paste.
func (c *chat) nextLine() func() (string, error) {
	if c.line == nil {
		r := bufio.NewReaderSize(io.LimitReader(c.in, 1<<40), 4096)
		return func() (string, error) {
			line, err := r.ReadString('\n')
			return strings.TrimRight(line, "\r\n"), err
		}
	}
	var pasted []string
	return func() (string, error) {
		for {
			line, err := c.line.ReadLine()
			if errors.Is(err, term.ErrPasteIndicator) {
				pasted = append(pasted, line)
				continue
			}
			text := strings.Join(append(pasted, line), "\n")
			pasted = nil
			return text, err
		}
	}
}

// sendLine sends one message. Only what no later line can cure ends the chat.
func (c *chat) sendLine(ctx context.Context, text string) error {
	if len(text) > protocol.MaxText {
		c.say(red, "Not sent: longer than %d bytes.", protocol.MaxText)
		return nil
	}
	id := make([]byte, 16)
	rand.Read(id) // never fails
	c.mu.Lock()
	c.texts[fmt.Sprintf("%x", id)] = text
	c.shown[fmt.Sprintf("%x", id)] = true
	c.mu.Unlock()
	m, err := api.Call(ctx, c.d.Send, &api.SendRequest{To: c.who.Account, Text: text, Id: id})
	if err != nil {
		f := c.asFailure(ctx, err)
		if f.code == exitUsage || f.code == exitError {
			c.say(red, "Not sent: %s.", escape(f.msg))
			return nil
		}
		return err
	}
	select {
	case c.sent <- m:
	default:
	}
	return nil
}

// promptly is how soon a message is delivered to somebody who is there.
const promptly = 2 * time.Second

// explain says why a message is not delivered promptly, until ctx ends.
func (c *chat) explain(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-c.sent:
			m, err := api.Call(ctx, c.d.WaitMessage, &api.WaitMessageRequest{Id: m.Id, State: "delivered", Timeout: promptly.Milliseconds()})
			if err == nil && m.State == "queued" {
				c.say(dim, "… queued: %s", escape(orElse(m.Reason, "they cannot be reached yet; it is delivered when they can")))
			}
		}
	}
}

// event shows what concerns this chat.
func (c *chat) event(ctx context.Context, e *api.Event) {
	if !c.concerns(e) {
		return
	}
	switch e.Type {
	case "message", "notice":
		c.show(ctx, e)
	case "state":
		c.state(e)
	case "contact":
		if w, ok := contactWords[e.State]; ok {
			c.say(yellow, "%s: %s.", escape(e.Chat), w.text)
		} else if e.State == "accepted" {
			c.say(dim, "%s is your contact now.", escape(e.Chat))
		}
	}
}

// concerns reports whether e is about this chat. An event carries the name
// that the contact had then, which changes when they are found or renamed.
func (c *chat) concerns(e *api.Event) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.From == c.who.Account && e.Chat != "" {
		c.name = e.Chat
	}
	_, ours := c.texts[e.Id]
	return ours || e.Chat == c.name
}

// show prints a message that arrived, and says that it was read.
func (c *chat) show(ctx context.Context, e *api.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shown[e.Id] {
		return
	}
	m := &api.Message{Id: e.Id, Chat: e.Chat, Text: e.Text, Time: e.Time, State: orElse(e.State, "received"), Kind: "text"}
	if e.Type == "notice" {
		m.Kind = "notice"
	} else {
		c.shown[e.Id] = true
	}
	if m.State != "received" && m.Kind == "text" {
		// Sent by another window of this user.
		c.texts[e.Id] = e.Text
	}
	c.showMessage(m, max(columns("you"), columns(c.speaker(m))))
	if m.State == "received" && m.Kind == "text" {
		api.Call(ctx, c.d.MarkRead, &api.MarkReadRequest{Chat: c.who.Account, Id: e.Id})
	}
}

// state says in words what became of an own message.
func (c *chat) state(e *api.Event) {
	c.mu.Lock()
	text, ok := c.texts[e.Id]
	switch e.State {
	case "read", "failed":
		delete(c.texts, e.Id)
	}
	c.mu.Unlock()
	if !ok || e.State == "queued" {
		return
	}
	first, _, _ := strings.Cut(text, "\n")
	words := fmt.Sprintf("%s %s: %s", map[string]string{"stored": "✓", "delivered": "✓✓", "read": "✓✓", "failed": "✗"}[e.State], e.State, shorten(escape(first), 40))
	if e.State == "failed" && e.Text != "" {
		words += " (" + escape(e.Text) + ")"
	}
	c.say(dim, "%s", words)
}
