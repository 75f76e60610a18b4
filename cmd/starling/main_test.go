package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/rogpeppe/go-internal/testscript"

	"starling/node/api"
)

// TestMain makes this binary the program itself when it is called by the name
// starling, which the scripts and the program's own children do.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"starling": main})
}

// TestScripts runs the scripts against the program as a user has it. The
// commands beside those of testscript:
//
//	exits CODE ARGS…     run starling and check its exit code
//	field NAME KEY       put the value of a string field of the JSON on stdout into $NAME
//	dies HOME            kill the daemon of HOME with SIGKILL
//	until REGEXP ARGS…   repeat starling ARGS until its stdout matches
//	pretend HOME API     serve HOME's socket as a daemon of another API version
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Deadline:            time.Now().Add(scriptLimit),
		Setup: func(e *testscript.Env) error {
			// The shorter, the fewer sockets need a folder of their own.
			for k, v := range map[string]string{"XDG_DATA_HOME": "", "XDG_CONFIG_HOME": "", "XDG_STATE_HOME": "", "XDG_RUNTIME_DIR": "", "CREDENTIALS_DIRECTORY": "", "HOME": e.WorkDir, "USER": "tester", "STARLING_HOME": filepath.Join(e.WorkDir, "h"), "NO_COLOR": ""} {
				e.Setenv(k, v)
			}
			e.Defer(func() { stopAll(t, e.WorkDir) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   cmdExits,
			"field":   cmdField,
			"dies":    cmdDies,
			"until":   cmdUntil,
			"pretend": cmdPretend,
		},
	})
}

// scriptLimit ends a script that waits for what never comes.
const scriptLimit = 2 * time.Minute

// stopAll ends every daemon whose home is below dir, so that a failing script
// leaves none behind.
func stopAll(t *testing.T, dir string) {
	socks, err := filepath.Glob(filepath.Join(dir, "*", "run"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range socks {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		c, _ := api.Dial(ctx, filepath.Dir(s))
		if c != nil {
			api.Call(ctx, c.Stop, &api.StopRequest{})
			api.WaitGone(ctx, filepath.Dir(s))
			c.Close()
		}
		cancel()
	}
}

func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: exits CODE ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec("starling", args[1:]...)
	got := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("starling %s exited %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

func cmdField(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: field NAME KEY")
	}
	m := regexp.MustCompile(`"` + args[1] + `":\[?"([^"]*)"`).FindStringSubmatch(ts.ReadFile("stdout"))
	if m == nil {
		ts.Fatalf("stdout has no %s", args[1])
	}
	ts.Setenv(args[0], m[1])
}

func cmdDies(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: dies HOME")
	}
	home := ts.MkAbs(args[0])
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := api.Dial(ctx, home)
	if c == nil {
		ts.Check(err)
	}
	defer c.Close()
	st, err := api.Call(ctx, c.Status, &api.StatusRequest{})
	ts.Check(err)
	p, err := os.FindProcess(int(st.Pid))
	ts.Check(err)
	ts.Check(p.Kill())
	ts.Check(api.WaitGone(ctx, home))
}

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP ARGS…")
	}
	re := regexp.MustCompile(args[0])
	for end := time.Now().Add(30 * time.Second); ; {
		err := ts.Exec("starling", args[1:]...)
		if err == nil && re.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("starling %s never printed %s: %v", strings.Join(args[1:], " "), args[0], err)
		}
	}
}

// elsewhere is a daemon of another API version.
type elsewhere struct {
	api.UnimplementedStarlingHandler
	api uint32
}

func (e elsewhere) Status(context.Context, *connect.Request[api.StatusRequest]) (*connect.Response[api.StatusResponse], error) {
	return connect.NewResponse(&api.StatusResponse{State: api.StateRunning, Api: e.api, Version: "9.9", Pid: int64(os.Getpid())}), nil
}

func cmdPretend(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: pretend HOME API")
	}
	version, err := strconv.ParseUint(args[1], 10, 32)
	ts.Check(err)
	run := filepath.Join(ts.MkAbs(args[0]), "run")
	ts.Check(os.MkdirAll(run, 0o700))
	l, err := net.Listen("unix", filepath.Join(run, "api.sock"))
	ts.Check(err)
	path, h := api.NewStarlingHandler(elsewhere{api: uint32(version)})
	mux := http.NewServeMux()
	mux.Handle(path, h)
	s := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() {
		s.Serve(l)
		close(done)
	}()
	ts.Defer(func() {
		s.Close()
		<-done
	})
}

// starling returns the command that runs the program on a home.
func starling(t *testing.T, home string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("starling")
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path, append([]string{"--home", home}, args...)...)
	c.Env = append(os.Environ(), "USER=tester", "TERM=xterm", "NO_COLOR=1", "STARLING_HOME=")
	return c
}

// must runs the program and returns its standard output.
func must(t *testing.T, home string, args ...string) string {
	t.Helper()
	c := starling(t, home, args...)
	var out, errs strings.Builder
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("starling %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// newDaemon makes a profile and runs its daemon on loopback until the test ends.
func newDaemon(t *testing.T, home, name string) {
	t.Helper()
	must(t, home, "init", "--no-passphrase", "--name", name)
	must(t, home, "up", "--detach", "--local", "--no-mdns", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1")
	t.Cleanup(func() { stopAll(t, filepath.Dir(home)) })
}

func TestHalfBlocksKeepEveryModule(t *testing.T) {
	black := func(x, y int) bool { return x >= 0 && y >= 0 && x < 3 && y < 3 && (x+y)%2 == 0 }
	want := strings.Join([]string{
		"███████",
		"██▄▀▄██",
		"██▄█▄██",
		"▀▀▀▀▀▀▀",
	}, "\n") + "\n"
	if got := halfBlocks(3, black, false); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
