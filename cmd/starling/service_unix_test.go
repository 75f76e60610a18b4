//go:build unix

package main

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"starling/node"
	"starling/node/api"
)

// still is a backend without a node.
type still struct{ api.Backend }

func (still) Status() node.Status { return node.Status{Name: "Ada", Account: "st1…", Journal: 0} }
func (still) Close() error        { return nil }
func (still) Contacts(context.Context, bool) ([]node.Contact, error) {
	return []node.Contact{{Name: "Bo", State: "accepted"}}, nil
}

// serveStates serves the API for home; open decides how the profile opens.
func serveStates(t *testing.T, home string, open func(context.Context, []byte) (api.Backend, error)) {
	t.Helper()
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	states := make(chan string, 8) // more than a server has states
	s, err := api.New(api.Config{
		Home: home, Version: version, Open: open,
		ChangePassphrase: func(context.Context, []byte, []byte) error { return nil },
		OnState:          func(state string) { states <- state },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-states // clients can connect
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestACommandWaitsForADaemonThatStarts(t *testing.T) {
	home := filepath.Join(t.TempDir(), "h")
	opened := make(chan struct{})
	serveStates(t, home, func(ctx context.Context, _ []byte) (api.Backend, error) {
		select {
		case <-opened:
		case <-ctx.Done():
		}
		return still{}, nil
	})
	if got := must(t, home, "status"); !strings.Contains(got, "starting") {
		t.Errorf("status does not say that the daemon is starting:\n%s", got)
	}

	c := starling(t, home, "contact", "list", "-v")
	var out strings.Builder
	c.Stdout = &out
	errs, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(errs).ReadString('\n')
	if err != nil || said != "Waiting for starling to start …\n" {
		t.Errorf("said %q, %v", said, err)
	}
	close(opened)
	if err := c.Wait(); err != nil {
		t.Errorf("did not go on when the daemon was up: %v", err)
	}
	if !strings.Contains(out.String(), "Bo") {
		t.Errorf("got %q", out.String())
	}
}

func TestContactNamesComplete(t *testing.T) {
	home := filepath.Join(t.TempDir(), "h")
	serveStates(t, home, func(context.Context, []byte) (api.Backend, error) { return still{}, nil })
	must(t, home, "contact", "list") // by now it runs
	for _, args := range [][]string{{"send", ""}, {"history", "B"}, {"chat", ""}, {"contact", "block", ""}} {
		if got := must(t, home, append([]string{"__complete"}, args...)...); !strings.HasPrefix(got, "Bo\n") {
			t.Errorf("completion of %v: %q", args, got)
		}
	}
	if got := must(t, home, "__complete", "send", "Bo", ""); strings.Contains(got, "Bo") {
		t.Errorf("the text completes to a name: %q", got)
	}
}

func TestReadyIsToldToSystemd(t *testing.T) {
	dir := t.TempDir()
	home := filepath.Join(dir, "h")
	must(t, home, "init", "--no-passphrase", "--name", "Ada")
	path := filepath.Join(dir, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Skipf("no datagram sockets here: %v", err)
	}
	defer l.Close()
	c := starling(t, home, "up", "--local", "--no-mdns", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--until-stdin-closes")
	c.Env = append(c.Env, "NOTIFY_SOCKET="+path)
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	hear := func(want string) {
		t.Helper()
		if err := l.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 512)
		n, err := l.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), want) {
			t.Errorf("heard %q, %v, want %q", b[:n], err, want)
		}
	}
	hear("READY=1\nSTATUS=running")
	stdin.Close()
	hear("STOPPING=1")
	if err := c.Wait(); err != nil {
		t.Errorf("the end of standard input is no clean stop: %v", err)
	}
}

func TestAnotherUserIsToldSo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be another user")
	}
	dir, err := os.MkdirTemp("", "starling-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The program where the other user may run it.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "starling")
	if err := exec.Command("cp", self, program).Run(); err != nil {
		t.Skipf("cannot copy the program: %v", err)
	}
	home := filepath.Join(dir, "h")
	newDaemon(t, home, "Ada")
	c := starling(t, home, "status")
	c.Path = program
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var errs strings.Builder
	c.Stderr = &errs
	c.Run()
	if got := c.ProcessState.ExitCode(); got != exitUnreachable || !strings.Contains(errs.String(), "permission") || !strings.Contains(errs.String(), "another user") {
		t.Errorf("exited %d, said %q", got, errs.String())
	}
}

func TestDemoHolds(t *testing.T) {
	if testing.Short() {
		t.Skip("three nodes and a crash")
	}
	tmp := t.TempDir()
	c := starling(t, filepath.Join(tmp, "unused"), "demo", "--json")
	c.Env = append(c.Env, "TMPDIR="+tmp)
	out, err := c.Output()
	if err != nil {
		t.Errorf("demo: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(acts) {
		t.Errorf("%d acts were reported, of %d", len(lines), len(acts))
	}
	for _, line := range lines {
		if !strings.Contains(line, `"held":true`) {
			t.Error(line)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
