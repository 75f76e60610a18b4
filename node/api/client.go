package api

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/gofrs/flock"
)

// dialTimeout is how long a daemon may take to say how it is.
const dialTimeout = 10 * time.Second

// A Client talks to the daemon of one profile. Its methods are those of the
// service; [Call] makes them convenient. It is safe for concurrent use.
type Client struct {
	StarlingClient
	home      string
	transport *http.Transport
}

// Dial connects to the daemon of the profile in home and asks for its state.
// Its error says what is wrong: [ErrNotRunning], [ErrStale], [ErrPermission],
// [ErrStarting], [ErrLocked] or [ErrVersion].
//
// With the last three the client is returned too, since Status, Unlock and Stop
// still make sense. The caller closes every client it gets.
func Dial(ctx context.Context, home string) (*Client, error) {
	home, err := filepath.Abs(home)
	if err != nil {
		return nil, err
	}
	return dial(ctx, home, systemUser)
}

func dial(ctx context.Context, home string, user peerUser) (*Client, error) {
	c := &Client{home: home}
	c.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := connectSocket(ctx, home, user)
			if err != nil {
				return nil, &dialError{err}
			}
			return conn, nil
		},
		DisableCompression: true,
		IdleConnTimeout:    restTimeout / 2,
	}
	c.StarlingClient = NewStarlingClient(
		&http.Client{Transport: &authorise{home: home, next: c.transport, needed: user == nil}},
		"http://"+socketHost,
		connect.WithAcceptCompression("gzip", nil, nil),
	)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	st, err := Call(ctx, c.Status, &StatusRequest{})
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	if st.Api != Version {
		return c, fmt.Errorf("%w: it is %s with API %d, this program speaks API %d", ErrVersion, st.Version, st.Api, Version)
	}
	switch st.State {
	case StateRunning:
		return c, nil
	case StateLocked:
		return c, ErrLocked
	case StateStarting, StateUnlocking:
		return c, ErrStarting
	case StateStopping:
		_ = c.Close()
		return nil, &wrapped{msg: "the daemon is stopping", err: ErrNotRunning}
	}
	return c, fmt.Errorf("%w: it is in the state %q", ErrVersion, st.State)
}

// Close gives up the connections.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// Alive reports whether a daemon holds the profile in home, in whatever state.
func Alive(home string) (bool, error) {
	path := filepath.Join(home, runFolder, lockName)
	if err := plainFile(path); err != nil {
		return false, err
	}
	if _, err := os.Lstat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	l := flock.New(path, flock.SetFlag(os.O_RDONLY))
	ok, err := l.TryRLock()
	if err != nil {
		return false, err
	}
	return !ok, l.Unlock()
}

// WaitGone returns when no daemon holds the profile in home, or with the cause
// when ctx ends: after Stop answered, the daemon still closes its store.
func WaitGone(ctx context.Context, home string) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		if alive, err := Alive(home); err != nil || !alive {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// connectSocket finds the socket of the profile, makes sure that it and the
// daemon behind it are ours, and connects. A passphrase goes over this line, so
// a socket that somebody else has put there is as bad as a wrong client.
func connectSocket(ctx context.Context, home string, user peerUser) (net.Conn, error) {
	run := filepath.Join(home, runFolder)
	if _, err := ourFolder(run); err != nil {
		return nil, absent(home, err)
	}
	path := filepath.Join(run, sockName)
	if len(path) > maxSocketPath {
		b, err := readSmall(filepath.Join(run, pointerName))
		if err != nil {
			return nil, absent(home, err)
		}
		if path, err = parsePointer(b); err != nil {
			return nil, err
		}
		if _, err := ourFolder(filepath.Dir(path)); err != nil {
			return nil, absent(home, err)
		}
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, absent(home, err)
	}
	if !isSocket(fi) || !ours(fi) {
		return nil, fmt.Errorf("%w: %s is not a socket of ours", ErrPermission, path)
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		if refused(err) {
			if alive, _ := Alive(home); alive {
				return nil, ErrStarting
			}
			return nil, ErrStale
		}
		return nil, absent(home, err)
	}
	if user != nil {
		uid, err := user(c.(*net.UnixConn))
		if err != nil || uid != uint32(max(os.Geteuid(), 0)) {
			_ = c.Close()
			return nil, fmt.Errorf("%w: the daemon runs as another user", ErrPermission)
		}
	}
	return c, nil
}

// absent says what it means that a file could not be reached.
func absent(home string, err error) error {
	switch {
	case errors.Is(err, ErrPermission):
		return err
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, fs.ErrNotExist):
		if alive, _ := Alive(home); alive {
			return ErrStarting
		}
		return ErrNotRunning
	}
	return err
}

// readSmall reads a file of at most 4 KiB.
func readSmall(path string) ([]byte, error) {
	if err := plainFile(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 4<<10))
}

// An authorise adds the token to every request where one is needed.
type authorise struct {
	home   string
	next   http.RoundTripper
	needed bool
}

func (a *authorise) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.needed {
		b, err := readSmall(filepath.Join(a.home, runFolder, tokenName))
		if err != nil {
			return nil, &dialError{absent(a.home, err)}
		}
		token := strings.TrimSuffix(string(b), "\n")
		if _, err := hex.DecodeString(token); err != nil {
			return nil, errors.New("the file with the token is damaged")
		}
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return a.next.RoundTrip(r)
}

// A dialError is what the client's own end found out, in the chain of what
// transports made of it.
type dialError struct{ err error }

func (d *dialError) Error() string { return d.err.Error() }
func (d *dialError) Unwrap() error { return d.err }

// gone reports whether an error of a connection means that its other end went
// away.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
