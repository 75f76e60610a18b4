package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"starling/node/api"
)

// A child is a daemon in a process of its own, which a test kills and starts
// again. It has its profile in a folder of its own. Its fields but c belong to
// whoever starts and ends it; c serves every process that the child ever is.
type child struct {
	name    string
	home    string
	log     string
	args    []string // of up
	wrap    []string // runs the program, such as ip netns exec NAME
	c       *api.Client
	account string

	cmd   *exec.Cmd // nil unless it runs
	stdin io.Closer
	ended chan struct{} // closed when the process has ended
}

// onLoopback are the flags of up that give a daemon a new port on loopback,
// and no help from the network.
var onLoopback = []string{"--local", "--no-mdns", "--dht", "server", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"}

// onPort is onLoopback with a port that stays.
func onPort(port int) []string {
	return append(onLoopback[:len(onLoopback)-1:len(onLoopback)-1], fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", port))
}

// freeUDP returns a UDP port of loopback that is free now.
func freeUDP(t testing.TB) int {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// newChild makes a profile with the given name in dir, for a daemon with the
// given flags. The process that it may be at the end of the test is killed.
func newChild(t *testing.T, dir, name string, args []string, wrap ...string) *child {
	t.Helper()
	d := &child{name: name, home: filepath.Join(dir, name), log: filepath.Join(t.TempDir(), name+".log"), args: args, wrap: wrap}
	if out, code := d.run(t, "init", "--no-passphrase", "--name", name); code != 0 {
		t.Fatalf("init of %s exited %d: %s", name, code, out)
	}
	t.Cleanup(func() {
		d.kill()
		if d.c != nil {
			d.c.Close()
		}
		if t.Failed() {
			t.Logf("the end of %s's log:\n%s", name, d.tail())
		}
	})
	return d
}

func (d *child) command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("starling")
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{path, "--home", d.home}, args...)
	args = append(d.wrap[:len(d.wrap):len(d.wrap)], args...)
	c := exec.Command(args[0], args[1:]...)
	c.Env = append(os.Environ(), "STARLING_HOME=", "NO_COLOR=1")
	return c
}

// run runs a command of the program to its end, and returns what it printed and
// its exit code.
func (d *child) run(t testing.TB, args ...string) (string, int) {
	t.Helper()
	c := d.command(t, args...)
	out, err := c.CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), e.ExitCode()
	}
	if err != nil {
		t.Fatalf("running %s: %v", strings.Join(args, " "), err)
	}
	return string(out), 0
}

// launch starts the process and does not wait for it.
func (d *child) launch(t testing.TB) error {
	log, err := os.OpenFile(d.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := d.command(t, append([]string{"up", "--until-stdin-closes"}, d.args...)...)
	c.Stdout, c.Stderr = log, log
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	d.cmd, d.stdin, d.ended = c, in, ended
	go func() { // ends with the process, which kill and stop wait for
		c.Wait()
		close(ended)
	}()
	return nil
}

// startTime bounds a start, on a machine that is busy with others.
const startTime = 60 * time.Second

// ready waits until status says that the daemon runs.
func (d *child) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	var last error
	err := poll(ctx, d.name+" to answer status", func() (bool, error) {
		select {
		case <-d.ended:
			return false, fmt.Errorf("%s ended with %v: %s", d.name, d.cmd.ProcessState, d.tail())
		default:
		}
		var c *api.Client
		if c, last = api.Dial(ctx, d.home); last != nil {
			if c != nil {
				c.Close()
			}
			return false, nil
		}
		if d.c != nil {
			return true, c.Close()
		}
		d.c = c
		st, err := api.Call(ctx, c.Status, &api.StatusRequest{})
		d.account = st.GetAccount()
		return true, err
	})
	if err != nil {
		return fmt.Errorf("%w (%v)", err, last)
	}
	return nil
}

// start starts the daemon and waits until it runs.
func (d *child) start(t *testing.T) {
	t.Helper()
	if err := d.launch(t); err != nil {
		t.Fatal(err)
	}
	if err := d.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// kill ends the process as a power cut does, if there is one.
func (d *child) kill() {
	if d.cmd != nil {
		d.cmd.Process.Kill()
		<-d.ended
		d.stdin.Close()
		d.cmd = nil
	}
}

// stop ends the daemon in order.
func (d *child) stop(t *testing.T) {
	t.Helper()
	d.stdin.Close()
	select {
	case <-d.ended:
	case <-time.After(startTime):
		t.Fatalf("%s does not stop", d.name)
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("%s ended with %v", d.name, d.cmd.ProcessState)
	}
	d.cmd = nil
}

// tail returns the end of the daemon's log.
func (d *child) tail() string {
	b, _ := os.ReadFile(d.log)
	lines := bytes.SplitAfter(b, []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-30):], nil))
}

// poll asks every 20 ms until done says yes, fails, or ctx ends.
func poll(ctx context.Context, what string, done func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s", what)
		}
	}
}

// eventually polls within a minute, and fails the test if that is not enough.
func eventually(t *testing.T, what string, done func(ctx context.Context) (bool, error)) {
	t.Helper()
	within(t, time.Minute, what, done)
}

func within(t *testing.T, d time.Duration, what string, done func(ctx context.Context) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := poll(ctx, what, func() (bool, error) { return done(ctx) }); err != nil {
		t.Fatal(err)
	}
}

// away reports whether err only says that the daemon is not there just now, so
// that a client with an idempotent call tries again.
func away(err error) bool {
	return errors.Is(err, api.ErrNotRunning) || errors.Is(err, api.ErrStale) || errors.Is(err, api.ErrStarting)
}

// accept sends a message with a client-made id until the daemon takes it, as a
// bot does.
func (d *child) accept(ctx context.Context, to *child, text string, id []byte) (m *api.Message, err error) {
	err = poll(ctx, d.name+" to accept a message", func() (bool, error) {
		m, err = api.Call(ctx, d.c.Send, &api.SendRequest{To: to.name, Text: text, Id: id})
		if away(err) {
			return false, nil
		}
		return err == nil, err
	})
	return m, err
}

// deliver sends a message and waits until it was delivered.
func (d *child) deliver(ctx context.Context, to *child, text string) error {
	m, err := api.Call(ctx, d.c.Send, &api.SendRequest{To: to.name, Text: text})
	if err != nil {
		return fmt.Errorf("%s sends to %s: %w", d.name, to.name, err)
	}
	return d.delivered(ctx, m.Id)
}

// delivered waits until a message was delivered.
func (d *child) delivered(ctx context.Context, id string) error {
	left := time.Minute
	if end, ok := ctx.Deadline(); ok {
		left = time.Until(end)
	}
	m, err := api.Call(ctx, d.c.WaitMessage, &api.WaitMessageRequest{Id: id, State: "delivered", Timeout: max(left-time.Second, 0).Milliseconds()})
	if err != nil {
		return fmt.Errorf("%s waits for a message: %w", d.name, err)
	}
	if m.State != "delivered" {
		return fmt.Errorf("%s's message %q is %s: %s", d.name, m.Text, m.State, m.Reason)
	}
	return nil
}

// talk has a and b send each other a message, one after the other.
func talk(t *testing.T, a, b *child, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, way := range [][2]*child{{a, b}, {b, a}} {
		if err := way[0].deliver(ctx, way[1], text); err != nil {
			t.Fatal(err)
		}
	}
}

// contact returns what d knows of another, or nil.
func (d *child) contact(ctx context.Context, other *child) (*api.Contact, error) {
	r, err := api.Call(ctx, d.c.ListContacts, &api.ListContactsRequest{})
	if err != nil {
		return nil, err
	}
	for _, c := range r.Contacts {
		if c.Account == other.account {
			return c, nil
		}
	}
	return nil, nil
}

// invite returns a link of d.
func (d *child) invite(t *testing.T) string {
	t.Helper()
	inv, err := api.Call(t.Context(), d.c.CreateInvite, &api.CreateInviteRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return inv.Link
}

// add has d add the owner of a link.
func (d *child) add(t *testing.T, link string, owner *child) {
	t.Helper()
	if _, err := api.Call(t.Context(), d.c.AddContact, &api.AddContactRequest{Link: link, As: owner.name}); err != nil {
		t.Fatal(err)
	}
}

// befriended waits until each is an accepted contact of the other.
func befriended(t *testing.T, a, b *child) {
	t.Helper()
	for _, way := range [][2]*child{{a, b}, {b, a}} {
		within(t, 2*time.Minute, way[0].name+" to have "+way[1].name+" as a contact", func(ctx context.Context) (bool, error) {
			c, err := way[0].contact(ctx, way[1])
			return c.GetState() == "accepted", err
		})
	}
}

// history returns the whole chat of d with another, oldest first.
func (d *child) history(ctx context.Context, other *child) (all []*api.Message, err error) {
	const page = 1000
	before := ""
	for {
		r, err := api.Call(ctx, d.c.History, &api.HistoryRequest{Chat: other.name, Limit: page, Before: before})
		if err != nil {
			return nil, err
		}
		all = append(r.Messages, all...)
		if len(r.Messages) < page {
			return all, nil
		}
		before = r.Messages[0].Id
	}
}

// texts returns what the other wrote in the chat of d with them, as d shows it.
func (d *child) texts(t *testing.T, other *child) []string {
	t.Helper()
	all, err := d.history(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, m := range all {
		if m.Kind == "text" && m.From == other.account {
			list = append(list, m.Text)
		}
	}
	return list
}
