package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes this binary the program itself when it is called by its name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"starling-relay": main})
}

// patience is far beyond what anything here needs.
const patience = 90 * time.Second

// program returns a command of the program on a folder.
func program(ctx context.Context, t testing.TB, dir string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("starling-relay") // testscript.Main put it there
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(ctx, path, args...)
	c.Env = append(os.Environ(), "STARLING_RELAY_HOME="+dir, "XDG_DATA_HOME=", "NOTIFY_SOCKET=")
	return c
}

// exits runs the program and checks its exit code.
func exits(t testing.TB, want int, dir string, args ...string) (out, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience) // what should fail at once must not serve instead
	defer cancel()
	c := program(ctx, t, dir, args...)
	var o, e bytes.Buffer
	c.Stdout, c.Stderr = &o, &e
	if err := c.Run(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Fatal(err)
		}
	}
	if got := c.ProcessState.ExitCode(); got != want {
		t.Fatalf("starling-relay %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got, want, o.String(), e.String())
	}
	return o.String(), e.String()
}

// parsed runs the program with --json and parses what it prints.
func parsed[T any](t testing.TB, dir string, args ...string) (v T) {
	t.Helper()
	out, _ := exits(t, exitOK, dir, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return v
}

// A daemon is a relay that runs.
type daemon struct {
	t    testing.TB
	cmd  *exec.Cmd
	dir  string
	errs *bytes.Buffer
	done chan error // receives once
}

// loopback is for relays that have no network but this machine.
var loopback = []string{"--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--listen", "/ip4/127.0.0.1/tcp/0"}

// up starts a relay and waits until it answers.
func up(t testing.TB, dir string, args ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: dir, errs: new(bytes.Buffer), done: make(chan error, 1)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "relay.toml"), []byte("local = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.cmd = program(t.Context(), t, dir, append([]string{"up"}, args...)...)
	d.cmd.Stderr = d.errs
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.done <- d.cmd.Wait() }()
	t.Cleanup(func() { d.cmd.Process.Kill() })
	end := time.Now().Add(patience)
	for {
		c := program(t.Context(), t, dir, "status")
		if c.Run() == nil {
			return d
		}
		select {
		case err := <-d.done:
			t.Fatalf("up ended: %v\n%s", err, d.errs)
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("not up within %v\n%s", patience, d.errs)
		}
	}
}

// ends waits for the relay to end by itself and returns its exit code.
func (d *daemon) ends() int {
	d.t.Helper()
	select {
	case <-d.done:
		return d.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		d.t.Fatalf("runs still\n%s", d.errs)
		return -1
	}
}

func get(t testing.TB, addr, path string) (code int, body string) {
	t.Helper()
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// The life of a relay, in real processes.
func TestARelayFromUpToStop(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no signals")
	}
	dir := filepath.Join(t.TempDir(), "h")
	exits(t, exitUnreachable, dir, "status")
	d := up(t, dir, append(loopback, "--metrics", "127.0.0.1:0", "--quota", "100MB", "--traffic", "unlimited", "--rate", "1MiB/s")...)

	st := parsed[statusShape](t, dir, "status")
	if !st.Ready || st.Quota != 100_000_000 || st.TrafficLimit != 0 || st.Rate != 1<<20 || st.Admit != "token" || st.Reach != "unknown" || len(st.BootstrapAddrs) != 2 || st.Messages != 0 {
		t.Errorf("status %+v", st)
	}
	if out, _ := exits(t, exitOK, dir, "status"); !strings.Contains(out, "0 B, no limit") || !strings.Contains(out, st.PeerID) {
		t.Errorf("status prints:\n%s", out)
	}
	for name, want := range map[string]fs.FileMode{"relay.key": 0o600, "store.key": 0o600, "run": 0o700, "run/relay.sock": 0o600} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", name, fi.Mode(), err, want)
		}
	}

	if _, errs := exits(t, exitError, dir, "link", "--token"); !strings.Contains(errs, "--announce") || !strings.Contains(errs, "--lan") {
		t.Errorf("link without an address says %q", errs)
	}
	link := parsed[linkShape](t, dir, "link", "--lan")
	with := parsed[linkShape](t, dir, "link", "--lan", "--token")
	if !strings.HasPrefix(link.Link, "STARLING-RELAY:") || !strings.HasPrefix(with.Link, "STARLING-RELAY:") || link.Token || !with.Token || with.Reach != "lan" {
		t.Errorf("links %+v, %+v", link, with)
	}
	if out, errs := exits(t, exitOK, dir, "link", "--lan"); strings.TrimSpace(out) != link.Link || !strings.Contains(errs, "--token") {
		t.Errorf("link prints %q and %q", out, errs)
	}
	_, says := exits(t, exitOK, dir, "link", "--lan", "--name", "a household")
	out, _ := exits(t, exitOK, dir, "link", "list")
	ids := strings.Fields(out)
	if n := strings.Count(out, "0 queues, 0 B  "); n != 2 || !strings.Contains(out, "0 B  a household\n") {
		t.Fatalf("link list prints\n%s", out)
	}
	if i := strings.Index(says, "link revoke "); i < 0 || !strings.Contains(out, strings.Fields(says[i:])[2]) {
		t.Errorf("making a link says %q", says)
	}
	exits(t, exitUsage, dir, "link", "revoke", "")
	exits(t, exitNotFound, dir, "link", "revoke", "none")
	if got := parsed[tokenShape](t, dir, "link", "revoke", ids[0]); got.ID != ids[0] {
		t.Errorf("revoked %+v, want %s", got, ids[0])
	}
	exits(t, exitNotFound, dir, "link", "revoke", ids[0])
	if _, errs := exits(t, exitError, dir, "check"); !strings.Contains(errs, "no peer") {
		t.Errorf("check says %q", errs)
	}
	if _, errs := exits(t, exitError, dir, append([]string{"up"}, loopback...)...); !strings.Contains(errs, fmt.Sprintf("up already (process %d)", st.Pid)) {
		t.Errorf("a second start says %q", errs)
	}

	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": "starling_relay_queues 0"} {
		if code, body := get(t, st.Metrics, path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	testDashboard(t, st.Metrics)

	drained := parsed[statusShape](t, dir, "drain", "--until", "2d")
	if drained.Draining == nil || time.Until(*drained.Draining) < 47*time.Hour || drained.Ready {
		t.Errorf("after drain: %+v", drained)
	}
	if code, body := get(t, st.Metrics, "/readyz"); code != 503 || !strings.Contains(body, "draining") {
		t.Errorf("/readyz while draining: %d %q", code, body)
	}
	if code, _ := get(t, st.Metrics, "/healthz"); code != 200 {
		t.Errorf("/healthz while draining: %d", code)
	}
	exits(t, exitUsage, dir, "drain", "--until", "yesterday")

	backup := filepath.Join(t.TempDir(), "backup")
	exits(t, exitOK, dir, "key", "backup", backup)
	exits(t, exitError, dir, "key", "backup", backup)
	exits(t, exitUsage, dir, "key", "backup")

	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := d.ends(); code != exitOK {
		t.Errorf("Ctrl-C: exit %d\n%s", code, d.errs)
	}
	exits(t, exitUnreachable, dir, "status")
	if strings.Contains(d.errs.String(), "level=ERROR") || strings.Contains(d.errs.String(), "level=WARN") {
		t.Errorf("the log:\n%s", d.errs)
	}

	// On the same addresses: after a power failure, and with the saved key.
	var same []string
	for _, a := range st.BootstrapAddrs {
		same = append(same, "--listen", strings.TrimSuffix(a, "/p2p/"+st.PeerID))
	}
	d = up(t, dir, same...)
	if st := parsed[statusShape](t, dir, "status"); st.Draining == nil || st.Tokens != 1 {
		t.Errorf("after a restart: %+v", st)
	}
	if st := parsed[statusShape](t, dir, "drain", "--cancel"); st.Draining != nil || !st.Ready {
		t.Errorf("after drain --cancel: %+v", st)
	}
	d.cmd.Process.Kill()
	d.ends()
	d = up(t, dir, same...) // its socket is there still
	if got := parsed[linkShape](t, dir, "link", "--lan"); got.Link != link.Link {
		t.Errorf("after a kill the link is %s, was %s", got.Link, link.Link)
	}
	if err := d.cmd.Process.Signal(terminate); err != nil {
		t.Fatal(err)
	}
	if code := d.ends(); code != exitOK {
		t.Errorf("SIGTERM: exit %d\n%s", code, d.errs)
	}

	if err := os.Remove(filepath.Join(dir, "relay.key")); err != nil {
		t.Fatal(err)
	}
	if _, errs := exits(t, exitError, dir, append([]string{"up"}, same...)...); !strings.Contains(errs, "key is missing") {
		t.Errorf("without its key: %q", errs)
	}
	fresh := filepath.Join(t.TempDir(), "fresh")
	if err := os.Mkdir(fresh, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(backup, filepath.Join(fresh, "relay.key")); err != nil {
		t.Fatal(err)
	}
	up(t, fresh, same...)
	if got := parsed[linkShape](t, fresh, "link", "--lan"); got.Link != link.Link {
		t.Errorf("with the saved key the link is %s, was %s", got.Link, link.Link)
	}
}

// Another program on the port is an error that names the cure.
func TestAPortThatIsTaken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "h")
	up(t, dir, loopback...)
	st := parsed[statusShape](t, dir, "status")
	other := filepath.Join(t.TempDir(), "o")
	taken := strings.TrimSuffix(st.BootstrapAddrs[0], "/p2p/"+st.PeerID)
	if _, errs := exits(t, exitError, other, "up", "--listen", taken); !strings.Contains(errs, "another program listens") {
		t.Errorf("said %q", errs)
	}
}

func TestErrorsOfTheCommandLine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "h")
	for _, args := range [][]string{
		{"dance"},
		{"key", "dance"},
		{"up", "now"},
		{"up", "--quota", "5"},
		{"up", "--traffic", "5GB"},
		{"up", "--rate", "2MB"},
		{"up", "--admit", "friends"},
		{"up", "--metrics", "0.0.0.0:1"},
		{"up", "--listen", "here"},
		{"up", "--bootstrap", "/ip4/1.2.3.4/tcp/1"},
		{"link", "--tokens"},
		{"drain", "--cancel", "--until", "2d"},
		{"--config", "nowhere.toml", "up"},
	} {
		_, errs := exits(t, exitUsage, dir, append(args, "--json")...)
		var f failureShape
		if err := json.Unmarshal([]byte(errs), &f); err != nil || f.Code != exitUsage || f.Error == "" {
			t.Errorf("%v: %v: %s", args, err, errs)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a wrong command line made a folder: %v", err)
	}
	if _, errs := exits(t, exitUnreachable, dir, "link"); !strings.Contains(errs, "starling-relay up") {
		t.Errorf("without a relay: %q", errs)
	}
}
