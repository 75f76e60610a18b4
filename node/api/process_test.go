//go:build unix

package api

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if helper := os.Getenv("STARLING_TEST_HELPER"); helper != "" {
		os.Exit(runHelper(helper, os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

// runHelper is what this test binary does as a child process.
func runHelper(name string, args []string) int {
	switch name {
	case "daemon": // home: serve until killed
		s, err := New(Config{
			Home: args[0], Version: "test", Runtime: args[0],
			Open:             newConfigOf(newBackend()),
			ChangePassphrase: newChange,
			OnState:          func(state string) { fmt.Println(state) },
		})
		if err == nil {
			err = s.Run(context.Background())
		}
		fmt.Println(err)
	case "dial": // socket: say what happens to a request
		c, err := net.Dial("unix", args[0])
		if err != nil {
			fmt.Println("dial:", err)
			return 0
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = io.WriteString(c, "POST "+sendPath+" HTTP/1.1\r\nHost: "+socketHost+"\r\nContent-Type: application/proto\r\nContent-Length: 0\r\n\r\n")
		b, _ := io.ReadAll(io.LimitReader(c, 12))
		fmt.Printf("answer: %q\n", b)
	case "client": // home: say what Dial says
		_, err := Dial(context.Background(), args[0])
		fmt.Println(err)
	}
	return 0
}

func helper(t *testing.T, exe, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "STARLING_TEST_HELPER="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// A daemon is killed; whatever it left, with whatever modes, the next one
// serves on a folder and a socket that are closed to others.
func TestModesAfterACrash(t *testing.T) {
	home := t.TempDir()
	for i := range 3 {
		cmd := helper(t, self(t), "daemon", home)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != StateRunning {
		}
		c, err := Dial(t.Context(), home)
		if err != nil {
			t.Errorf("round %d: %v (the daemon said %q)", i, err, lines.Text())
		} else {
			_ = c.Close()
		}
		run := filepath.Join(home, runFolder)
		wantMode(t, run, fs.ModeDir|0o700)
		wantMode(t, filepath.Join(run, sockName), fs.ModeSocket|0o600)
		wantMode(t, filepath.Join(run, lockName), 0o600)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if _, err := Dial(t.Context(), home); err == nil || !strings.Contains(err.Error(), ErrStale.Error()) {
			t.Errorf("after a kill: got %v, want ErrStale", err)
		}
		// As if a restore had opened everything to everybody.
		for path, mode := range map[string]fs.FileMode{run: 0o777, filepath.Join(run, sockName): 0o666, filepath.Join(run, lockName): 0} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The umask neither opens nor breaks anything.
func TestUmaskDoesNotMatter(t *testing.T) {
	for _, mask := range []int{0, 0o777} {
		home := t.TempDir()
		old := syscall.Umask(mask)
		s, err := listen(home, home, systemUser, quiet())
		syscall.Umask(old)
		if err != nil {
			t.Errorf("umask %#o: %v", mask, err)
			continue
		}
		run := filepath.Join(home, runFolder)
		wantMode(t, run, fs.ModeDir|0o700)
		wantMode(t, filepath.Join(run, sockName), fs.ModeSocket|0o600)
		wantMode(t, filepath.Join(run, lockName), 0o600)
		s.Close()
	}
}

// Another user of the machine, for real: kept out by the folder, and with the
// folder and the socket opened to everybody, by the check of the user.
func TestAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user; TestAnotherUserByCredentials covers the check")
	}
	// The other user must be able to reach the program and the profile.
	open, err := os.MkdirTemp("", "st")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(open)
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(open, "helper")
	b, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(open, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, home: home, states: make(chan string, 100), result: make(chan error, 1)}
	d.run(d.newConfig(false))
	d.await(StateRunning)
	run := filepath.Join(home, runFolder)
	asNobody := func(name, arg string) string {
		t.Helper()
		cmd := helper(t, exe, name, arg)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s as another user: %v", name, err)
		}
		return string(out)
	}
	if got := asNobody("dial", filepath.Join(run, sockName)); !strings.Contains(got, "permission denied") {
		t.Errorf("with the folder closed: %s", got)
	}
	if got := asNobody("client", home); !strings.Contains(got, ErrPermission.Error()) {
		t.Errorf("Dial by another user: %s", got)
	}
	for path, mode := range map[string]fs.FileMode{run: 0o755, filepath.Join(run, sockName): 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if got := asNobody("dial", filepath.Join(run, sockName)); got != "answer: \"\"\n" {
		t.Errorf("with the folder open: %s", got)
	}
	if got := asNobody("client", home); !strings.Contains(got, ErrPermission.Error()) {
		t.Errorf("Dial by another user: %s", got)
	}
	if n := d.backend().calls.Load(); n != 0 {
		t.Errorf("%d calls reached the backend", n)
	}
}
