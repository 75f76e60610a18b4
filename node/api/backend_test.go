package api

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"starling/node"
)

// A fakeBackend counts its calls, and keeps a journal that a test writes.
type fakeBackend struct {
	calls   atomic.Int64
	entered chan struct{} // sent by every call while there is room
	closed  atomic.Bool
	err     error // returned by every method that can

	mu      sync.Mutex // guards what follows
	journal []node.Event
	more    chan struct{} // closed and replaced when the journal grows
	reads   int           // calls of Events
	reading int           // of them under way
	sent    []node.Message
}

func newBackend() *fakeBackend {
	return &fakeBackend{more: make(chan struct{}), entered: make(chan struct{}, 1000)}
}

func (b *fakeBackend) call() error {
	b.calls.Add(1)
	select {
	case b.entered <- struct{}{}:
	default:
	}
	if b.closed.Load() {
		panic("a call into a closed backend")
	}
	return b.err
}

func (b *fakeBackend) append(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range n {
		seq := uint64(len(b.journal) + 1)
		b.journal = append(b.journal, node.Event{Seq: seq, Type: "message", Time: time.UnixMilli(int64(seq)), Text: fmt.Sprint("event ", seq)})
	}
	close(b.more)
	b.more = make(chan struct{})
}

func (b *fakeBackend) Status() node.Status {
	_ = b.call()
	return node.Status{
		Account: "st1account", Name: "bad \xff name", PeerID: "12D3", Addrs: []string{"/ip4/127.0.0.1/tcp/1"},
		Contacts: 3, Queued: -1, Started: time.UnixMilli(1000), Journal: 7, Confirmed: []string{"/ip4/9.9.9.9/tcp/1"},
		Connections: []node.Connection{{Contact: "bad \xff name", Account: "st1bo", Path: node.PathCircuit, Addr: "/ip4/9.9.9.9/tcp/2", Opened: time.UnixMilli(6)}},
	}
}

func (b *fakeBackend) CreateInvite(_ context.Context, public bool) (node.Invite, error) {
	return node.Invite{ID: "i", Link: "STARLING:X", Public: public, Expires: time.UnixMilli(5)}, b.call()
}

func (b *fakeBackend) Invites(context.Context) ([]node.Invite, error) {
	return []node.Invite{{ID: "a"}, {ID: "b"}}, b.call()
}
func (b *fakeBackend) RevokeInvite(context.Context, string) error { return b.call() }
func (b *fakeBackend) RotateInvites(context.Context) error        { return b.call() }

func (b *fakeBackend) contact(name string) (node.Contact, error) {
	return node.Contact{Account: "st1" + name, Name: name, ProfileName: "esc\x1b[31m \xe2\x82", State: "accepted"}, b.call()
}

func (b *fakeBackend) AddContact(_ context.Context, _, as string) (node.Contact, error) {
	return b.contact(as)
}

func (b *fakeBackend) Contacts(_ context.Context, requests bool) ([]node.Contact, error) {
	c, err := b.contact(fmt.Sprint("requests ", requests))
	return []node.Contact{c}, err
}

func (b *fakeBackend) AcceptContact(_ context.Context, _, as string) (node.Contact, error) {
	return b.contact(as)
}
func (b *fakeBackend) RejectContact(context.Context, string) error { return b.call() }
func (b *fakeBackend) RenameContact(_ context.Context, _, name string) (node.Contact, error) {
	return b.contact(name)
}

func (b *fakeBackend) BlockContact(_ context.Context, who string) (node.Contact, error) {
	return b.contact(who)
}

func (b *fakeBackend) UnblockContact(_ context.Context, who string) (node.Contact, error) {
	return b.contact(who)
}
func (b *fakeBackend) RemoveContact(context.Context, string) error { return b.call() }
func (b *fakeBackend) TrustContact(_ context.Context, who string) (node.Contact, error) {
	return b.contact(who)
}

func (b *fakeBackend) Send(_ context.Context, to, text string, id []byte) (node.Message, error) {
	m := node.Message{ID: fmt.Sprintf("%x", id), Chat: to, Text: text, State: "queued"}
	b.mu.Lock()
	b.sent = append(b.sent, m)
	b.mu.Unlock()
	return m, b.call()
}

func (b *fakeBackend) WaitMessage(ctx context.Context, id, state string, timeout time.Duration) (node.Message, error) {
	if err := b.call(); err != nil {
		return node.Message{}, err
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-t.C:
		return node.Message{ID: id, State: state}, nil
	case <-ctx.Done():
		return node.Message{}, ctx.Err()
	}
}

func (b *fakeBackend) History(_ context.Context, chat string, limit int, before string) ([]node.Message, error) {
	return []node.Message{{ID: before, Chat: chat, Text: fmt.Sprint(limit)}}, b.call()
}
func (b *fakeBackend) MarkRead(context.Context, string, string) error { return b.call() }

func (b *fakeBackend) Events(ctx context.Context, since uint64, follow bool, fn func(node.Event) error) error {
	if err := b.call(); err != nil {
		return err
	}
	b.mu.Lock()
	b.reads++
	b.reading++
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.reading--
		b.mu.Unlock()
	}()
	for {
		b.mu.Lock()
		next, more := b.journal[min(since, uint64(len(b.journal))):], b.more
		b.mu.Unlock()
		for _, e := range next {
			if err := fn(e); err != nil {
				return err
			}
			since = e.Seq
		}
		if !follow {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
func (b *fakeBackend) AddBootstrap(context.Context, string) error { return b.call() }
func (b *fakeBackend) ListBootstrap(context.Context) ([]string, error) {
	return []string{"/a"}, b.call()
}
func (b *fakeBackend) RemoveBootstrap(context.Context, string) error { return b.call() }
func (b *fakeBackend) AddRelay(_ context.Context, link string) (node.Relay, error) {
	return node.Relay{ID: link}, b.call()
}

func (b *fakeBackend) Relays(context.Context) ([]node.Relay, error) {
	return []node.Relay{{ID: "r", Queues: 2, Connected: true}}, b.call()
}
func (b *fakeBackend) RemoveRelay(context.Context, string) error { return b.call() }
func (b *fakeBackend) Doctor(_ context.Context, contact string) ([]node.Finding, error) {
	return []node.Finding{{Check: "contact", Level: "ok", Text: contact}}, b.call()
}

func (b *fakeBackend) Close() error {
	if b.closed.Swap(true) {
		return errors.New("closed twice")
	}
	return nil
}

// A daemon is a server that a test runs, its profile and its backends.
type daemon struct {
	t      *testing.T
	home   string
	server *Server
	states chan string // sent by OnState, in order; capacity above any test's count
	result chan error  // of Run

	mu       sync.Mutex // guards what follows
	backends []*fakeBackend
	setup    func(*fakeBackend)
}

// The node itself is what the server serves.
var _ Backend = (*node.Node)(nil)

const rightPassphrase = "correct horse"

// newConfig returns a Config whose Open wants a passphrase if locked says so.
func (d *daemon) newConfig(locked bool) Config {
	return Config{
		Home:    d.home,
		Version: "test",
		Runtime: d.home,
		Open: func(_ context.Context, passphrase []byte) (Backend, error) {
			switch {
			case !locked:
			case passphrase == nil:
				return nil, ErrLocked
			case string(passphrase) != rightPassphrase:
				return nil, ErrPassphrase
			}
			b := newBackend()
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.setup != nil {
				d.setup(b)
			}
			d.backends = append(d.backends, b)
			return b, nil
		},
		ChangePassphrase: func(_ context.Context, old, _ []byte) error {
			if string(old) != rightPassphrase {
				return ErrPassphrase
			}
			return nil
		},
		OnState: func(s string) { d.states <- s },
	}
}

// start runs a server; it is stopped with the test.
func start(t *testing.T, locked bool, change func(*daemon, *Config)) *daemon {
	t.Helper()
	d := &daemon{t: t, home: t.TempDir(), states: make(chan string, 100), result: make(chan error, 1)}
	cfg := d.newConfig(locked)
	if change != nil {
		change(d, &cfg)
	}
	d.run(cfg)
	if locked {
		d.await(StateLocked)
	} else {
		d.await(StateRunning)
	}
	return d
}

func (d *daemon) run(cfg Config) {
	d.t.Helper()
	s, err := New(cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	d.server = s
	go func() { d.result <- s.Run(context.Background()) }()
	d.t.Cleanup(func() {
		s.Stop()
		if err := <-d.result; err != nil {
			d.t.Errorf("Run: %v", err)
		}
	})
}

// await waits until the daemon has been in a state.
func (d *daemon) await(state string) {
	d.t.Helper()
	for {
		select {
		case s := <-d.states:
			if s == state {
				return
			}
		case err := <-d.result:
			d.result <- nil
			d.t.Fatalf("Run ended while %s was awaited: %v", state, err)
		case <-time.After(time.Minute):
			d.t.Fatalf("no state %s", state)
		}
	}
}

func (d *daemon) backend() *fakeBackend {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.backends) == 0 {
		d.t.Fatal("no backend was opened")
	}
	return d.backends[len(d.backends)-1]
}

func (d *daemon) client() *Client {
	d.t.Helper()
	c, err := Dial(d.t.Context(), d.home)
	if c == nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = c.Close() })
	return c
}

// newConfigOf returns an Open that opens b.
func newConfigOf(b *fakeBackend) func(context.Context, []byte) (Backend, error) {
	return func(context.Context, []byte) (Backend, error) { return b, nil }
}

func newChange(context.Context, []byte, []byte) error { return nil }
