package api

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSocketAndFolderModes(t *testing.T) {
	if !modesMatter {
		t.Skip("this system keeps no modes")
	}
	d := start(t, false, nil)
	wantMode(t, filepath.Join(d.home, runFolder), fs.ModeDir|0o700)
	wantMode(t, filepath.Join(d.home, runFolder, sockName), fs.ModeSocket|0o600)
	wantMode(t, filepath.Join(d.home, runFolder, lockName), 0o600)
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode() != want {
		t.Errorf("%s has mode %s, want %s", filepath.Base(path), fi.Mode(), want)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// listenHere listens for a profile and closes with the test.
func listenHere(t *testing.T, home, runtime string) *socket {
	t.Helper()
	s, err := listen(home, runtime, systemUser, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestPlantedFilesAreRefusedAndKept(t *testing.T) {
	for _, name := range []string{sockName, lockName, pointerName} {
		for kind, plant := range map[string]func(path, target string) error{
			"symlink to a file": func(path, target string) error {
				if err := os.WriteFile(target, []byte("precious"), 0o644); err != nil {
					return err
				}
				return os.Symlink(target, path)
			},
			"dangling symlink": func(path, target string) error { return os.Symlink(target, path) },
			"folder":           func(path, _ string) error { return os.Mkdir(path, 0o755) },
		} {
			home := t.TempDir()
			run := filepath.Join(home, runFolder)
			if err := os.Mkdir(run, 0o700); err != nil {
				t.Fatal(err)
			}
			path, target := filepath.Join(run, name), filepath.Join(home, "target")
			if err := plant(path, target); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			s, err := listen(home, home, systemUser, quiet())
			if err == nil {
				s.Close()
				t.Errorf("%s as %s: not refused", name, kind)
				continue
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("%s as %s: removed", name, kind)
			}
			if b, err := os.ReadFile(target); err == nil && string(b) != "precious" {
				t.Errorf("%s as %s: the target was written", name, kind)
			} else if errors.Is(err, fs.ErrNotExist) && kind == "symlink to a file" {
				t.Errorf("%s as %s: the target is gone", name, kind)
			} else if err == nil && kind == "dangling symlink" {
				t.Errorf("%s as %s: the target was made", name, kind)
			}
		}
	}
}

func TestPlantedFolderIsRefused(t *testing.T) {
	home, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(home, runFolder)); err != nil {
		t.Fatal(err)
	}
	if s, err := listen(home, home, systemUser, quiet()); err == nil {
		s.Close()
		t.Error("a symlink in place of the folder was followed")
	}
	if _, err := Dial(t.Context(), home); err == nil || errors.Is(err, ErrNotRunning) {
		t.Errorf("Dial through a symlink: %v", err)
	}
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) != 0 {
		t.Errorf("the symlink's target holds %v, %v", left, err)
	}
	home = t.TempDir()
	if err := os.WriteFile(filepath.Join(home, runFolder), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := listen(home, home, systemUser, quiet()); err == nil {
		s.Close()
		t.Error("a file in place of the folder was accepted")
	}
}

func TestStaleSocketIsReplacedAndALiveOneIsNot(t *testing.T) {
	home := t.TempDir()
	run := filepath.Join(home, runFolder)
	if err := os.Mkdir(run, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(run, sockName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if s, err := listen(home, home, systemUser, quiet()); !errors.Is(err, ErrRunning) {
		t.Errorf("somebody listens: got %v, want ErrRunning", err)
		if s != nil {
			s.Close()
		}
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("a live socket was removed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), home); !errors.Is(err, ErrStale) {
		t.Errorf("Dial: got %v, want ErrStale", err)
	}
	listenHere(t, home, home)
	if modesMatter {
		wantMode(t, run, fs.ModeDir|0o700)
		wantMode(t, path, fs.ModeSocket|0o600)
	}
}

func TestLongPathsGoElsewhere(t *testing.T) {
	home := filepath.Join(t.TempDir(), strings.Repeat("long/", 20))
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	runtime, err := os.MkdirTemp("", "st")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(runtime)
	d := &daemon{t: t, home: home, states: make(chan string, 100), result: make(chan error, 1)}
	cfg := d.newConfig(false)
	cfg.Runtime = runtime
	d.run(cfg)
	d.await(StateRunning)
	made, err := os.ReadDir(runtime)
	if err != nil || len(made) != 1 || !strings.HasPrefix(made[0].Name(), "starling-") {
		t.Fatalf("made %v, %v", made, err)
	}
	dir := filepath.Join(runtime, made[0].Name())
	if modesMatter {
		wantMode(t, dir, fs.ModeDir|0o700)
		wantMode(t, filepath.Join(dir, sockName), fs.ModeSocket|0o600)
		wantMode(t, filepath.Join(home, runFolder, pointerName), 0o600)
	}
	c := d.client()
	if _, err := Call(t.Context(), c.Stop, &StopRequest{}); err != nil {
		t.Error(err)
	}
	if err := WaitGone(t.Context(), home); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(runtime); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if _, err := Dial(t.Context(), home); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Dial: got %v, want ErrNotRunning", err)
	}

	// A planted folder, and a place where others may rename ours, are refused.
	if err := os.Symlink(home, dir); err != nil {
		t.Fatal(err)
	}
	if s, err := listen(home, runtime, systemUser, quiet()); err == nil {
		s.Close()
		t.Error("a planted symlink was followed")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if modesMatter {
		if err := os.Chmod(runtime, 0o777); err != nil {
			t.Fatal(err)
		}
		if s, err := listen(home, runtime, systemUser, quiet()); err == nil {
			s.Close()
			t.Error("a folder that others may write to was accepted")
		}
		if err := os.Chmod(runtime, 0o777|fs.ModeSticky); err != nil {
			t.Fatal(err)
		}
		listenHere(t, home, runtime)
	}
	if _, err := listen(home+"x", strings.Repeat("/long", 30), systemUser, quiet()); err == nil {
		t.Error("two paths that are too long were accepted")
	}
}

func TestDialTellsWhatIsWrong(t *testing.T) {
	home := t.TempDir()
	if _, err := Dial(t.Context(), home); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nothing there: got %v, want ErrNotRunning", err)
	}
	if _, err := Dial(t.Context(), filepath.Join(home, "nowhere")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no profile: got %v, want ErrNotRunning", err)
	}
	// A daemon between its lock and its socket.
	s := listenHere(t, home, home)
	_ = s.listener.Close()
	if _, err := Dial(t.Context(), home); !errors.Is(err, ErrStarting) {
		t.Errorf("lock without socket: got %v, want ErrStarting", err)
	}
	s.Close()
	if err := os.Mkdir(filepath.Join(home, runFolder, sockName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), home); !errors.Is(err, ErrPermission) {
		t.Errorf("not a socket: got %v, want ErrPermission", err)
	}
}

func TestAnotherVersionIsTold(t *testing.T) {
	home := t.TempDir()
	s := listenHere(t, home, home)
	hs := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/proto")
		_, _ = w.Write([]byte{0x0a, 7, 'r', 'u', 'n', 'n', 'i', 'n', 'g', 0x18, 2}) // state running, api 2
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = hs.Serve(s.listener)
	}()
	c, err := Dial(t.Context(), home)
	if !errors.Is(err, ErrVersion) || c == nil {
		t.Errorf("got %v, want ErrVersion", err)
	} else {
		_ = c.Close()
	}
	_ = hs.Close()
	<-done
}

// Another user, as the kernel's answer would have it: on the daemon's side no
// byte is read, and on the client's none is written.
func TestAnotherUserByCredentials(t *testing.T) {
	other := func(*net.UnixConn) (uint32, error) { return uint32(os.Geteuid()) + 1, nil }
	unknown := func(*net.UnixConn) (uint32, error) { return 0, errors.New("no credentials") }
	for name, user := range map[string]peerUser{"other": other, "unknown": unknown} {
		d := start(t, false, func(_ *daemon, cfg *Config) { cfg.user = user })
		path := filepath.Join(d.home, runFolder, sockName)
		if code, _ := exchange(t, path, good(t).bytes()); code != 0 {
			t.Errorf("%s user: answered with %d", name, code)
		}
		if _, err := Dial(t.Context(), d.home); err == nil {
			t.Errorf("%s user: Dial succeeded", name)
		}
		if n := d.backend().calls.Load(); n != 0 {
			t.Errorf("%s user: %d calls reached the backend", name, n)
		}

		d = start(t, false, nil)
		if _, err := dial(t.Context(), d.home, user); !errors.Is(err, ErrPermission) {
			t.Errorf("a daemon of the %s user: got %v, want ErrPermission", name, err)
		}
		if n := d.backend().calls.Load(); n != 0 {
			t.Errorf("a daemon of the %s user: %d calls", name, n)
		}
	}
}

// Where the kernel does not tell, a token does.
func TestTokenStandsInForCredentials(t *testing.T) {
	d := start(t, false, func(_ *daemon, cfg *Config) { cfg.user, cfg.noToken = nil, true })
	token := filepath.Join(d.home, runFolder, tokenName)
	if modesMatter {
		wantMode(t, token, 0o600)
	}
	c, err := dial(t.Context(), d.home, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Call(t.Context(), c.RotateInvites, &RotateInvitesRequest{}); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	b := d.backend()
	before := b.calls.Load()
	path := filepath.Join(d.home, runFolder, sockName)
	for name, h := range map[string][]string{
		"none":  nil,
		"empty": {"Authorization: Bearer "},
		"wrong": {"Authorization: Bearer " + strings.Repeat("0", 64)},
		"short": {"Authorization: Bearer 0"},
		"twice": {"Authorization: Bearer 0", "Authorization: Bearer 0"},
	} {
		f := good(t)
		f.headers = append(f.headers, h...)
		if code, _ := exchange(t, path, f.bytes()); code != http.StatusUnauthorized {
			t.Errorf("token %s: status %d, want 401", name, code)
		}
	}
	if b.calls.Load() != before {
		t.Error("a request without the token reached the backend")
	}
	d.server.Stop()
	if err := WaitGone(t.Context(), d.home); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(token); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the token outlived the daemon: %v", err)
	}
}
