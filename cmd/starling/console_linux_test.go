package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A console is the program at a terminal: a pseudo-terminal of its own is its
// standard input, output and error, and what /dev/tty opens.
type console struct {
	t     *testing.T
	cmd   *exec.Cmd
	tty   *os.File // the side of the person
	ended chan struct{}

	mu      sync.Mutex
	screen  string        // everything it ever showed
	seen    int           // how much of it the test has dealt with
	changed chan struct{} // closed and replaced when screen grows
}

// patience is how long a test waits for something to be shown.
const patience = 30 * time.Second

func atTerminal(t *testing.T, home string, args ...string) *console {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(ptmx.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 120}); err != nil {
		t.Fatal(err)
	}
	pts, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pts.Close()
	c := &console{t: t, tty: ptmx, cmd: starling(t, home, args...), ended: make(chan struct{}), changed: make(chan struct{})}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = pts, pts, pts
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(c.read)
	wg.Go(func() {
		c.cmd.Wait()
		close(c.ended)
	})
	t.Cleanup(func() {
		c.cmd.Process.Kill()
		<-c.ended
		ptmx.Close()
		wg.Wait()
	})
	return c
}

func (c *console) read() {
	b := make([]byte, 4096)
	for {
		n, err := c.tty.Read(b)
		c.mu.Lock()
		c.screen += string(b[:n])
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if err != nil { // EIO: the program let go of the terminal
			return
		}
	}
}

// see waits until text is shown after what was seen before.
func (c *console) see(text string) {
	c.t.Helper()
	late := time.After(patience)
	for {
		c.mu.Lock()
		i := strings.Index(c.screen[c.seen:], text)
		if i >= 0 {
			c.seen += i + len(text)
		}
		changed := c.changed
		c.mu.Unlock()
		if i >= 0 {
			return
		}
		select {
		case <-changed:
		case <-late:
			c.t.Fatalf("never saw %q in:\n%s", text, c.shown())
		}
	}
}

// shown returns everything that was shown.
func (c *console) shown() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(c.screen, "\r\n", "\n")
}

// types types text as a person does.
func (c *console) types(text string) {
	c.t.Helper()
	if _, err := c.tty.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
}

// silent waits until the terminal does not echo, as it must not while a
// passphrase is typed.
func (c *console) silent() {
	c.t.Helper()
	c.until("the terminal stops echoing", func(mode *unix.Termios) bool { return mode.Lflag&unix.ECHO == 0 })
}

func (c *console) until(what string, ok func(*unix.Termios) bool) {
	c.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		mode, err := unix.IoctlGetTermios(int(c.tty.Fd()), unix.TCGETS)
		if err != nil {
			c.t.Fatal(err)
		}
		if ok(mode) {
			return
		}
	}
	c.t.Fatalf("waited in vain until %s:\n%s", what, c.shown())
}

// echoes reports whether the terminal was given back as it was.
func (c *console) echoes() bool {
	mode, err := unix.IoctlGetTermios(int(c.tty.Fd()), unix.TCGETS)
	return err == nil && mode.Lflag&(unix.ECHO|unix.ICANON) == unix.ECHO|unix.ICANON
}

// exits waits for the end of the program and checks its exit code.
func (c *console) exits(code int) {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(patience):
		c.t.Fatalf("does not end:\n%s", c.shown())
	}
	if got := c.cmd.ProcessState.ExitCode(); got != code {
		c.t.Errorf("exited %d, want %d:\n%s", got, code, c.shown())
	}
}

const (
	ctrlC = "\x03"
	ctrlD = "\x04"
)

func TestFirstRunAtATerminal(t *testing.T) {
	home := t.TempDir() + "/h"
	c := atTerminal(t, home, "up", "--local", "--no-mdns", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1")
	c.see("Your name, as new contacts see it [")
	c.types("Ada\n")
	c.see("Passphrase (at least 8 characters): ")
	c.silent()
	c.types("kurz\n")
	c.see("it needs at least 8")
	c.see("Passphrase (at least 8 characters): ")
	c.silent()
	c.types("correct horse\n")
	c.see("Once more: ")
	c.silent()
	c.types("correct horse\n")
	c.see("Starling is up.")
	c.see("Ctrl-C stops it.")
	if strings.Contains(c.shown(), "correct") {
		t.Errorf("the passphrase was shown:\n%s", c.shown())
	}
	c.types(ctrlC)
	c.see("Stopped.")
	c.exits(exitOK)

	c = atTerminal(t, home, "up", "--local", "--no-mdns", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1")
	c.see("Passphrase: ")
	c.silent()
	c.types("wrong horse\n")
	c.see("Wrong passphrase.")
	c.see("Passphrase: ")
	c.silent()
	c.types("correct horse\n")
	c.see("Starling is up.")
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.exits(exitOK)
}

func TestInterruptedPassphraseLeavesNothing(t *testing.T) {
	home := t.TempDir() + "/h"
	c := atTerminal(t, home, "init", "--name", "Ada")
	c.see("Passphrase")
	c.silent()
	c.types("half of it" + ctrlC)
	c.exits(exitInterrupted)
	if !c.echoes() {
		t.Error("the terminal stays silent")
	}
	if _, err := os.Stat(home); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
}

// acquainted starts Ada and Bo and makes them contacts.
func acquainted(t *testing.T) (ada, bo string) {
	t.Helper()
	dir := t.TempDir()
	ada, bo = dir+"/a", dir+"/b"
	newDaemon(t, ada, "Ada")
	newDaemon(t, bo, "Bo")
	link := strings.TrimSpace(must(t, ada, "invite"))
	must(t, bo, "contact", "add", link, "--as", "Ada")
	must(t, bo, "send", "Ada", "hello Ada", "--wait", "delivered")
	return ada, bo
}

func TestChatAtATerminal(t *testing.T) {
	ada, bo := acquainted(t)
	c := atTerminal(t, ada, "chat", "Bo", "--plain")
	c.see("A line you type is sent; Ctrl-D ends.")
	c.see("hello Ada")
	c.see("> ")

	c.types("hello Bo\r")
	c.see("✓✓ delivered: hello Bo")
	if got := must(t, bo, "history", "Ada"); !strings.Contains(got, "hello Bo") {
		t.Errorf("Bo's history has no line of Ada's:\n%s", got)
	}

	// What arrives while a line is typed does not tear it.
	c.types("half a li")
	c.see("half a li")
	must(t, bo, "send", "Ada", "an interruption \x1b[31m", "--wait", "delivered")
	c.see(`Bo   an interruption \x1b[31m`)
	c.see("half a li")
	c.types("ne\r")
	c.see("✓✓ delivered: half a line")

	// What is pasted is one message.
	c.types("\x1b[200~first\rsecond\x1b[201~\r")
	c.see("✓✓ delivered: first")
	if got := must(t, bo, "history", "Ada"); !strings.Contains(got, "first\n            second") {
		t.Errorf("what was pasted did not arrive as one message:\n%s", got)
	}

	// Another key under his name: said in words, and nothing is sent.
	mallory := t.TempDir() + "/m"
	newDaemon(t, mallory, "Bo")
	link := strings.TrimSpace(must(t, mallory, "invite"))
	starling(t, ada, "contact", "add", link, "--as", "Bo").Run()
	c.see("safety number has changed")
	c.types("secret\r")
	c.exits(exitIdentity)
	if !c.echoes() {
		t.Error("the terminal was not given back")
	}

	must(t, ada, "contact", "reject", "Bo")
	c = atTerminal(t, ada, "chat", "Bo", "--plain")
	c.see("> ")
	c.types(ctrlD)
	c.exits(exitOK)

	// Nobody there: said, with the reason, and delivered when he is back.
	must(t, bo, "stop")
	c = atTerminal(t, ada, "chat", "Bo", "--plain")
	c.see("> ")
	c.types("are you there?\r")
	c.see("… queued: ")
	must(t, bo, "up", "--detach", "--local", "--no-mdns", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1")
	c.see("✓✓ delivered: are you there?")
	must(t, ada, "stop")
	c.see("The chat ends")
	c.exits(exitUnreachable)
}

func TestHumanOutputAtATerminal(t *testing.T) {
	ada, _ := acquainted(t)
	c := atTerminal(t, ada, "invite", "--qr")
	c.see("STARLING:")
	c.see("██████")
	c.see("works once; expires in 7 days")
	c.see("Give it to one person you trust")
	c.exits(exitOK)
	c = atTerminal(t, ada, "history", "Bo")
	c.see("Bo   hello Ada")
	c.exits(exitOK)
	if got := must(t, ada, "contact", "list", "--json"); !strings.Contains(got, `"unread":0`) {
		t.Errorf("what was looked at is still unread: %s", got)
	}
}

func TestInterruptExits130(t *testing.T) {
	home := t.TempDir() + "/h"
	newDaemon(t, home, "Ada")
	must(t, home, "invite")
	c := atTerminal(t, home, "events")
	c.see("invite")
	c.types(ctrlC)
	c.exits(exitInterrupted)
}
