package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"starling/node"
)

func TestEveryMethodReachesTheBackend(t *testing.T) {
	d := start(t, false, nil)
	c, b := d.client(), d.backend()
	ctx := t.Context()
	call := func(name string, f func() error) {
		t.Helper()
		before := b.calls.Load()
		if err := f(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := b.calls.Load() - before; got != 1 {
			t.Errorf("%s made %d calls of the backend, want 1", name, got)
		}
	}
	st, err := Call(ctx, c.Status, &StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.State != StateRunning || st.Version != "test" || st.Api != Version || st.Pid != int64(os.Getpid()) || st.Home != d.home ||
		st.Account != "st1account" || st.Contacts != 3 || st.Started != 1000 || st.Published != 0 || st.Queued != 0 || st.Journal != 7 {
		t.Errorf("status: %v", st)
	}
	if want := "bad \uFFFD name"; st.Name != want {
		t.Errorf("name %q, want %q", st.Name, want)
	}
	if c := st.Connections; len(c) != 1 || c[0].Contact != "bad \uFFFD name" || c[0].Account != "st1bo" || c[0].Path != PathCircuit || c[0].Addr != "/ip4/9.9.9.9/tcp/2" || c[0].Opened != 6 || len(st.Confirmed) != 1 {
		t.Errorf("connections %v, confirmed %q", c, st.Confirmed)
	}
	contact := func(want string) func(*Contact, error) error {
		return func(c *Contact, err error) error {
			if err == nil && (c.Name != want || c.ProfileName != "esc\x1b[31m \uFFFD") {
				err = fmt.Errorf("got contact %v", c)
			}
			return err
		}
	}
	call("CreateInvite", func() error {
		i, err := Call(ctx, c.CreateInvite, &CreateInviteRequest{Public: true})
		if err == nil && (!i.Public || i.Link != "STARLING:X" || i.Expires != 5 || i.Created != 0) {
			err = fmt.Errorf("got %v", i)
		}
		return err
	})
	call("ListInvites", func() error {
		l, err := Call(ctx, c.ListInvites, &ListInvitesRequest{})
		if err == nil && len(l.Invites) != 2 {
			err = fmt.Errorf("got %v", l)
		}
		return err
	})
	call("RevokeInvite", func() error { _, err := Call(ctx, c.RevokeInvite, &RevokeInviteRequest{Id: "a"}); return err })
	call("RotateInvites", func() error { _, err := Call(ctx, c.RotateInvites, &RotateInvitesRequest{}); return err })
	call("AddContact", func() error {
		return contact("bob")(Call(ctx, c.AddContact, &AddContactRequest{Link: "l", As: "bob"}))
	})
	call("ListContacts", func() error {
		l, err := Call(ctx, c.ListContacts, &ListContactsRequest{Requests: true})
		if err != nil || len(l.Contacts) != 1 {
			return fmt.Errorf("got %v, %v", l, err)
		}
		return contact("requests true")(l.Contacts[0], nil)
	})
	call("AcceptContact", func() error {
		return contact("x")(Call(ctx, c.AcceptContact, &AcceptContactRequest{Contact: "y", As: "x"}))
	})
	call("RejectContact", func() error { _, err := Call(ctx, c.RejectContact, &RejectContactRequest{}); return err })
	call("RenameContact", func() error {
		return contact("new")(Call(ctx, c.RenameContact, &RenameContactRequest{Contact: "old", Name: "new"}))
	})
	call("BlockContact", func() error { return contact("x")(Call(ctx, c.BlockContact, &BlockContactRequest{Contact: "x"})) })
	call("UnblockContact", func() error { return contact("x")(Call(ctx, c.UnblockContact, &UnblockContactRequest{Contact: "x"})) })
	call("RemoveContact", func() error { _, err := Call(ctx, c.RemoveContact, &RemoveContactRequest{}); return err })
	call("TrustContact", func() error { return contact("x")(Call(ctx, c.TrustContact, &TrustContactRequest{Contact: "x"})) })
	call("Send", func() error {
		m, err := Call(ctx, c.Send, &SendRequest{To: "bob", Text: "grüße", Id: make([]byte, 16)})
		if err == nil && (m.Chat != "bob" || m.Text != "grüße" || m.Id != strings.Repeat("00", 16)) {
			err = fmt.Errorf("got %v", m)
		}
		return err
	})
	call("WaitMessage", func() error {
		m, err := Call(ctx, c.WaitMessage, &WaitMessageRequest{Id: "m", State: "read", Timeout: 1})
		if err == nil && (m.Id != "m" || m.State != "read") {
			err = fmt.Errorf("got %v", m)
		}
		return err
	})
	for limit, want := range map[uint32]string{0: "50", 7: "7", 1 << 31: "1000"} {
		call("History", func() error {
			l, err := Call(ctx, c.History, &HistoryRequest{Chat: "bob", Limit: limit, Before: "m"})
			if err == nil && (len(l.Messages) != 1 || l.Messages[0].Text != want) {
				err = fmt.Errorf("limit %d: got %v", limit, l)
			}
			return err
		})
	}
	call("MarkRead", func() error { _, err := Call(ctx, c.MarkRead, &MarkReadRequest{}); return err })
	call("AddBootstrap", func() error { _, err := Call(ctx, c.AddBootstrap, &AddBootstrapRequest{}); return err })
	call("ListBootstrap", func() error {
		l, err := Call(ctx, c.ListBootstrap, &ListBootstrapRequest{})
		if err == nil && !reflect.DeepEqual(l.Addrs, []string{"/a"}) {
			err = fmt.Errorf("got %v", l)
		}
		return err
	})
	call("RemoveBootstrap", func() error { _, err := Call(ctx, c.RemoveBootstrap, &RemoveBootstrapRequest{}); return err })
	call("AddRelay", func() error {
		r, err := Call(ctx, c.AddRelay, &AddRelayRequest{Link: "l"})
		if err == nil && r.Id != "l" {
			err = fmt.Errorf("got %v", r)
		}
		return err
	})
	call("ListRelays", func() error {
		l, err := Call(ctx, c.ListRelays, &ListRelaysRequest{})
		if err == nil && (len(l.Relays) != 1 || l.Relays[0].Id != "r" || l.Relays[0].Queues != 2 || !l.Relays[0].Connected) {
			err = fmt.Errorf("got %v", l)
		}
		return err
	})
	call("RemoveRelay", func() error { _, err := Call(ctx, c.RemoveRelay, &RemoveRelayRequest{}); return err })
	call("Doctor", func() error {
		l, err := Call(ctx, c.Doctor, &DoctorRequest{Contact: "bob"})
		if err == nil && (len(l.Findings) != 1 || l.Findings[0].Text != "bob") {
			err = fmt.Errorf("got %v", l)
		}
		return err
	})
	before := b.calls.Load()
	for _, r := range []*WaitMessageRequest{{Timeout: -1}, {Timeout: 1 << 62}} {
		_, err := Call(ctx, c.WaitMessage, r)
		wantKind(t, err, node.KindInvalid)
	}
	_, err = Call(ctx, c.Send, &SendRequest{Id: make([]byte, 15)})
	wantKind(t, err, node.KindInvalid)
	if b.calls.Load() != before {
		t.Error("an invalid request reached the backend")
	}
}

func wantKind(t *testing.T, err error, want node.Kind) {
	t.Helper()
	ne, ok := errors.AsType[*node.Error](err)
	if !ok || ne.Kind != want {
		t.Errorf("got %v, want kind %s", err, want)
	}
}

func TestErrorsArriveAsTheyWere(t *testing.T) {
	var want error
	d := start(t, false, func(d *daemon, _ *Config) {
		d.setup = func(b *fakeBackend) { b.err = errors.New("set below") }
	})
	c, b := d.client(), d.backend()
	for k := node.KindInvalid; k <= node.KindInternal; k++ {
		want = &node.Error{Kind: k, Msg: "it is so: \"ä\"", Hint: "do: 1 % of\nthis, ünd"}
		b.err = fmt.Errorf("wrapped: %w", want)
		_, err := Call(t.Context(), c.RotateInvites, &RotateInvitesRequest{})
		if !reflect.DeepEqual(err, want) {
			t.Errorf("kind %s: got %#v", k, err)
		}
	}
	b.err = errors.New("disk is on fire")
	_, err := Call(t.Context(), c.RotateInvites, &RotateInvitesRequest{})
	wantKind(t, err, node.KindInternal)
	if err == nil || err.Error() != "disk is on fire" {
		t.Errorf("got %v", err)
	}
	s, err := c.Events(t.Context(), connect.NewRequest(&EventsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if s.Receive() {
		t.Error("an event without a journal")
	}
	wantKind(t, DecodeError(s.Err()), node.KindInternal)
	_ = s.Close()
}

func TestLockedProfile(t *testing.T) {
	d := start(t, true, nil)
	c, err := Dial(t.Context(), d.home)
	if !errors.Is(err, ErrLocked) || c == nil {
		t.Fatalf("Dial: %v, %v", c, err)
	}
	defer c.Close()
	ctx := t.Context()
	send := func() error {
		_, err := Call(ctx, c.Send, &SendRequest{To: "bob", Text: "hi"})
		return err
	}
	if err := send(); !errors.Is(err, ErrLocked) {
		t.Errorf("Send: %v, want ErrLocked", err)
	}
	st, err := Call(ctx, c.Status, &StatusRequest{})
	if err != nil || st.State != StateLocked || st.Account != "" {
		t.Errorf("Status: %v, %v", st, err)
	}
	unlock := func(p string) error {
		_, err := Call(ctx, c.Unlock, &UnlockRequest{Passphrase: []byte(p)})
		return err
	}
	if err := unlock("wrong"); !errors.Is(err, ErrPassphrase) {
		t.Errorf("Unlock: %v, want ErrPassphrase", err)
	}
	if err := unlock(""); !errors.Is(err, ErrLocked) {
		t.Errorf("Unlock without a passphrase: %v, want ErrLocked", err)
	}
	if _, err := Call(ctx, c.ChangePassphrase, &ChangePassphraseRequest{Old: []byte("wrong")}); !errors.Is(err, ErrPassphrase) {
		t.Errorf("ChangePassphrase: %v, want ErrPassphrase", err)
	}
	if _, err := Call(ctx, c.Lock, &LockRequest{}); err != nil {
		t.Errorf("Lock of a locked profile: %v", err)
	}
	for range 3 {
		if err := unlock(rightPassphrase); err != nil {
			t.Fatal(err)
		}
		if err := unlock("anything"); err != nil {
			t.Errorf("Unlock of a running profile: %v", err)
		}
		if err := send(); err != nil {
			t.Error(err)
		}
		b := d.backend()
		waited := make(chan error, 2)
		go func() {
			_, err := Call(ctx, c.WaitMessage, &WaitMessageRequest{Id: "x", State: "read", Timeout: 3600_000})
			waited <- err
		}()
		s, err := c.Events(ctx, connect.NewRequest(&EventsRequest{Follow: true}))
		if err != nil || !s.Receive() {
			t.Fatal(err)
		}
		go func() {
			for s.Receive() {
			}
			waited <- DecodeError(s.Err())
		}()
		for range 3 { // Send, WaitMessage, Events
			<-b.entered
		}
		if _, err := Call(ctx, c.Lock, &LockRequest{}); err != nil {
			t.Error(err)
		}
		if !b.closed.Load() {
			t.Error("Lock answered before the backend was closed")
		}
		for range 2 {
			if err := <-waited; !errors.Is(err, ErrLocked) {
				t.Errorf("a call in flight: %v, want ErrLocked", err)
			}
		}
		_ = s.Close()
	}
	if err := send(); !errors.Is(err, ErrLocked) {
		t.Errorf("Send: %v, want ErrLocked", err)
	}
}

// A daemon that nobody can reach any more ends, so that another can start.
func TestRemovedSocketEndsTheDaemon(t *testing.T) {
	d := start(t, false, nil)
	if err := os.Remove(filepath.Join(d.home, "run", "api.sock")); err != nil {
		path, perr := os.ReadFile(filepath.Join(d.home, "run", pointerName))
		if perr != nil {
			t.Fatal(err)
		}
		if err := os.Remove(strings.TrimSpace(string(path))); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-d.result:
		d.result <- nil
		if err == nil || !strings.Contains(err.Error(), "socket was removed") {
			t.Errorf("Run returned %v, want the reason", err)
		}
	case <-time.After(time.Minute):
		t.Error("the daemon goes on")
	}
}

func TestStartingAndStopping(t *testing.T) {
	gate := make(chan struct{})
	d := &daemon{t: t, home: t.TempDir(), states: make(chan string, 100), result: make(chan error, 1)}
	cfg := d.newConfig(false)
	inner := cfg.Open
	cfg.Open = func(ctx context.Context, p []byte) (Backend, error) {
		<-gate
		return inner(ctx, p)
	}
	d.run(cfg)
	d.await(StateStarting)
	c, err := Dial(t.Context(), d.home)
	if !errors.Is(err, ErrStarting) || c == nil {
		t.Fatalf("Dial: %v, %v", c, err)
	}
	defer c.Close()
	for name, err := range map[string]error{
		"Send":   func() error { _, err := Call(t.Context(), c.Send, &SendRequest{}); return err }(),
		"Unlock": func() error { _, err := Call(t.Context(), c.Unlock, &UnlockRequest{}); return err }(),
		"Lock":   func() error { _, err := Call(t.Context(), c.Lock, &LockRequest{}); return err }(),
	} {
		if !errors.Is(err, ErrStarting) {
			t.Errorf("%s: %v, want ErrStarting", name, err)
		}
	}
	close(gate)
	d.await(StateRunning)
	if _, err := Call(t.Context(), c.Stop, &StopRequest{}); err != nil {
		t.Error(err)
	}
	if err := WaitGone(t.Context(), d.home); err != nil {
		t.Error(err)
	}
	if !d.backend().closed.Load() {
		t.Error("the daemon was gone before its backend was closed")
	}
	if _, err := Dial(t.Context(), d.home); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Dial: %v, want ErrNotRunning", err)
	}
	if _, err := Call(t.Context(), c.Send, &SendRequest{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Send: %v, want ErrNotRunning", err)
	}
	left, err := os.ReadDir(filepath.Join(d.home, runFolder))
	if err != nil || len(left) != 1 || left[0].Name() != lockName {
		t.Errorf("a stopped daemon left %v, %v", left, err)
	}
}

func TestRunFailsWithOpen(t *testing.T) {
	d := &daemon{t: t, home: t.TempDir()}
	cfg := d.newConfig(false)
	want := errors.New("the store is damaged")
	cfg.Open = func(context.Context, []byte) (Backend, error) { return nil, want }
	cfg.OnState = nil
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if alive, err := Alive(d.home); alive || err != nil {
		t.Errorf("Alive: %t, %v", alive, err)
	}
}

func TestNewNamesEveryProblem(t *testing.T) {
	_, err := New(Config{})
	for _, want := range []string{"Home", "Version", "Open", "ChangePassphrase"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	d := start(t, false, nil)
	cfg := d.newConfig(false)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, ErrRunning) {
		t.Errorf("got %v, want ErrRunning", err)
	}
	if _, err := Call(t.Context(), d.client().Status, &StatusRequest{}); err != nil {
		t.Errorf("the first daemon: %v", err)
	}
}

func TestEventsFollowTheJournalFromACursor(t *testing.T) {
	d := start(t, false, nil)
	c, b := d.client(), d.backend()
	b.append(1000)
	read := func(s *connect.ServerStreamForClient[Event], from, to uint64) {
		t.Helper()
		for want := from; want <= to; want++ {
			for {
				if !s.Receive() {
					t.Fatalf("the stream ended before event %d: %v", want, s.Err())
				}
				if s.Msg().Seq != 0 {
					break
				}
			}
			if e := s.Msg(); e.Seq != want || e.Time != int64(want) || e.Text != fmt.Sprint("event ", want) {
				t.Fatalf("got %v, want event %d", e, want)
			}
		}
	}
	s, err := c.Events(t.Context(), connect.NewRequest(&EventsRequest{Since: 0}))
	if err != nil {
		t.Fatal(err)
	}
	read(s, 1, 1000)
	if s.Receive() || s.Err() != nil {
		t.Errorf("after the newest event: %v, %v", s.Msg(), s.Err())
	}
	_ = s.Close()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err = c.Events(ctx, connect.NewRequest(&EventsRequest{Since: 990, Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	read(s, 991, 1000)
	b.append(5)
	read(s, 1001, 1005)
	b.append(5000)
	read(s, 1006, 6005)
	cancel()
	for s.Receive() {
	}
	if err := DecodeError(s.Err()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	_ = s.Close()
}

func TestLockDoesNotWaitForAReaderThatDoesNotRead(t *testing.T) {
	d := start(t, false, nil)
	c, b := d.client(), d.backend()
	s, err := c.Events(t.Context(), connect.NewRequest(&EventsRequest{Follow: true}))
	if err != nil || !s.Receive() {
		t.Fatal(err)
	}
	b.mu.Lock()
	for i := range 200 {
		b.journal = append(b.journal, node.Event{Seq: uint64(i + 1), Text: strings.Repeat("x", 64<<10)})
	}
	b.mu.Unlock()
	b.append(1)
	before := time.Now()
	if _, err := Call(t.Context(), c.Lock, &LockRequest{}); err != nil {
		t.Error(err)
	}
	if took := time.Since(before); took > writeTimeout/2 {
		t.Errorf("Lock took %v", took)
	}
	_ = s.Close()
}

// In virtual time, against the handler itself: a reader that does not read
// holds a bounded number of events and never the journal, and is given every
// event when it reads on; a quiet stream says something every 15 s.
func TestSlowReadersCatchUpFromTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		h := &handler{}
		gate := make(chan struct{})
		var got []uint64
		var beats atomic.Int64
		done := make(chan error, 1)
		go func() {
			since := uint64(0)
			for {
				n, err := h.feed(ctx, b, since, true, func(e *Event) error {
					<-gate
					got = append(got, e.Seq)
					return nil
				}, func() error { beats.Add(1); return nil })
				since = n
				if !errors.Is(err, errSlow) {
					done <- err
					return
				}
			}
		}()
		b.append(10 * eventBuffer)
		synctest.Wait()
		b.mu.Lock()
		if b.reads != 1 || b.reading != 0 {
			t.Errorf("a reader that does not read caused %d reads of the journal and holds %d", b.reads, b.reading)
		}
		b.mu.Unlock()
		close(gate)
		synctest.Wait()
		if len(got) != 10*eventBuffer || got[len(got)-1] != 10*eventBuffer {
			t.Errorf("%d events, the last %v", len(got), got[len(got)-1])
		}
		for i, seq := range got {
			if seq != uint64(i+1) {
				t.Fatalf("event %d at place %d", seq, i)
			}
		}
		before := beats.Load()
		time.Sleep(10*heartbeat + time.Second)
		synctest.Wait()
		if n := beats.Load() - before; n != 10 {
			t.Errorf("%d heartbeats in 151 s, want 10", n)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// The deadline for a request's body must not end the call.
func TestLongCallsOutliveTheBodyDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Home: "/", Version: "test", Open: newConfigOf(newBackend()), ChangePassphrase: newChange})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.open(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		l := newPipeListener()
		hs := s.httpServer("", t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = hs.Serve(l)
		}()
		tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return l.dial(), nil }}
		c := NewStarlingClient(&http.Client{Transport: tr}, "http://"+socketHost, connect.WithAcceptCompression("gzip", nil, nil))
		for range 2 {
			m, err := Call(t.Context(), c.WaitMessage, &WaitMessageRequest{Id: "m", State: "read", Timeout: time.Hour.Milliseconds()})
			if err != nil || m.Id != "m" {
				t.Errorf("got %v, %v", m, err)
			}
		}
		tr.CloseIdleConnections()
		_ = hs.Close()
		<-done
	})
}

func BenchmarkCall(b *testing.B) {
	d := startBench(b)
	c, err := Dial(b.Context(), d)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	req := &SendRequest{To: "bob", Text: strings.Repeat("x", 256), Id: make([]byte, 16)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Call(b.Context(), c.Send, req); err != nil {
			b.Fatal(err)
		}
	}
}

// startBench runs a server on a profile whose folder it returns.
func startBench(b *testing.B) string {
	b.Helper()
	home := b.TempDir()
	running := make(chan struct{})
	s, err := New(Config{
		Home: home, Version: "test", Runtime: home, Open: newConfigOf(newBackend()), ChangePassphrase: newChange,
		OnState: func(state string) {
			if state == StateRunning {
				close(running)
			}
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	b.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	select {
	case <-running:
	case err := <-done:
		b.Fatal(err)
	}
	return home
}

func TestPanicsAreErrors(t *testing.T) {
	d := start(t, false, nil)
	c, b := d.client(), d.backend()
	b.closed.Store(true)
	_, err := Call(t.Context(), c.RotateInvites, &RotateInvitesRequest{})
	wantKind(t, err, node.KindInternal)
	b.closed.Store(false)
	if _, err := Call(t.Context(), c.RotateInvites, &RotateInvitesRequest{}); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

func TestVersionSkew(t *testing.T) {
	err := decodeError(connect.NewError(connect.CodeUnimplemented, errors.New("no such method")))
	if !errors.Is(err, ErrVersion) {
		t.Errorf("got %v, want ErrVersion", err)
	}
}
