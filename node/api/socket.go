package api

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

// Files in HOME/run. The folder belongs to the API alone.
const (
	runFolder   = "run"
	sockName    = "api.sock"
	lockName    = "api.lock"  // held while a daemon lives; the kernel lets go of it in a crash
	pointerName = "api.path"  // where the socket is, if not here
	tokenName   = "api.token" // on systems that cannot tell a peer's user
)

const (
	// maxSocketPath is the longest path of a socket, in bytes. Systems allow
	// 104 to 108, with the final zero.
	maxSocketPath = 100

	// maxConns is the most connections at once. One client holds one or two,
	// each costs at most a request's body.
	maxConns = 64

	// lockPatience is how long to try for the lock: a client that looks whether
	// a daemon lives holds it for a moment.
	lockPatience = time.Second
)

// A peerUser returns the user at the other end of a connection, as the kernel
// knows it.
type peerUser func(*net.UnixConn) (uint32, error)

// A socket is the daemon's end, from lock to listener.
type socket struct {
	listener *listener
	token    string // required of clients, or empty
	path     string
	lock     *flock.Flock
	remove   []string // files and folders to remove at the end, in order
}

// listen takes the profile's lock and listens on its socket. runtime is where
// the socket's folder goes if the profile's path is too long. It returns
// [ErrRunning] if another daemon lives.
//
// Nothing here depends on the umask, and nothing follows a symlink: the folder
// is made or found 0700 and ours before anything is made in it, so the moment
// between making the socket and setting its mode is nobody's chance.
func listen(home, runtime string, user peerUser, log *slog.Logger) (*socket, error) {
	run := filepath.Join(home, runFolder)
	if err := secureFolder(run); err != nil {
		return nil, err
	}
	s := &socket{}
	if err := s.takeLock(filepath.Join(run, lockName)); err != nil {
		return nil, err
	}
	if err := s.open(home, run, runtime, user, log); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *socket) takeLock(path string) error {
	if err := plainFile(path); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("locking the socket's folder: %w", err)
	}
	s.lock = flock.New(path, flock.SetPermissions(0o600))
	for end := time.Now().Add(lockPatience); ; {
		ok, err := s.lock.TryLock()
		if err != nil {
			return fmt.Errorf("locking the socket's folder: %w", err)
		}
		if ok {
			break
		}
		if time.Now().After(end) {
			return ErrRunning
		}
		time.Sleep(lockPatience / 20)
	}
	if err := os.Chmod(path, 0o600); err != nil { // a umask may have taken it
		s.Close()
		return fmt.Errorf("locking the socket's folder: %w", err)
	}
	return nil
}

func (s *socket) open(home, run, runtime string, user peerUser, log *slog.Logger) error {
	s.path = filepath.Join(run, sockName)
	pointer := filepath.Join(run, pointerName)
	if err := removePlain(pointer); err != nil {
		return err
	}
	if len(s.path) > maxSocketPath {
		sum := sha256.Sum256([]byte(home))
		dir := filepath.Join(runtime, "starling-"+hex.EncodeToString(sum[:8]))
		s.path = filepath.Join(dir, sockName)
		if len(s.path) > maxSocketPath {
			return fmt.Errorf("no place for the socket: both %s and %s are longer than %d bytes", home, runtime, maxSocketPath)
		}
		if err := safeParent(runtime); err != nil {
			return err
		}
		if err := secureFolder(dir); err != nil {
			return err
		}
		s.remove = append(s.remove, pointer, dir)
	}
	if err := clearStale(s.path); err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listening on the socket: %w", err)
	}
	s.listener = newListener(l, user, log)
	if err := secureSocket(s.path); err != nil {
		return err
	}
	if user == nil {
		if s.token, err = newToken(filepath.Join(run, tokenName)); err != nil {
			return err
		}
		s.remove = append(s.remove, filepath.Join(run, tokenName))
	}
	if filepath.Dir(s.path) != run {
		return writeFile(pointer, []byte(s.path+"\n"))
	}
	return nil
}

// Close stops listening, removes what listen made and lets go of the lock.
func (s *socket) Close() {
	if s.listener != nil {
		_ = s.listener.Close() // unlinks the socket
	}
	for _, path := range s.remove {
		_ = os.Remove(path)
	}
	_ = s.lock.Unlock()
}

// secureFolder makes path a folder that is 0700 and ours, or says why it is
// not. An existing one of ours gets its mode back; one of somebody else, a
// symlink or a file is refused.
func secureFolder(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the socket's folder: %w", err)
	}
	before, err := ourFolder(path)
	if err != nil {
		return err
	}
	if !modesMatter || before.Mode().Perm() == 0o700 && before.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) == 0 {
		return nil
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return fmt.Errorf("closing the socket's folder to others: %w", err)
	}
	after, err := ourFolder(path)
	if err != nil {
		return err
	}
	if !os.SameFile(before, after) || after.Mode().Perm() != 0o700 {
		return fmt.Errorf("%s does not keep the mode 0700: the profile needs a file system that does", path)
	}
	return nil
}

// ourFolder returns what path is if it is a folder, itself and not through a
// symlink, that belongs to us.
func ourFolder(path string) (fs.FileInfo, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("looking at the socket's folder: %w", err)
	}
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		return nil, fmt.Errorf("%s is a symlink: remove it", path)
	case !fi.IsDir():
		return nil, fmt.Errorf("%s is not a folder: remove it", path)
	case !ours(fi):
		return nil, fmt.Errorf("%w: %s belongs to another user", ErrPermission, path)
	}
	return fi, nil
}

// safeParent refuses a folder in which others could move ours away.
func safeParent(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("looking for a place for the socket: %w", err)
	}
	if modesMatter && fi.Mode().Perm()&0o022 != 0 && fi.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("no place for the socket: others may rename what is in %s", path)
	}
	return nil
}

// plainFile refuses a path that is there and not a file of ours.
func plainFile(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking at the socket's folder: %w", err)
	case !fi.Mode().IsRegular() || !ours(fi):
		return fmt.Errorf("%s is not a file of ours: remove it", path)
	}
	return nil
}

// removePlain removes a file of ours that may be there.
func removePlain(path string) error {
	if err := plainFile(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cleaning up the socket's folder: %w", err)
	}
	return nil
}

// clearStale removes the socket of a daemon that died, after proving that
// nobody listens. Whatever else is in its place is refused, never removed.
func clearStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at the socket: %w", err)
	}
	if !isSocket(fi) || !ours(fi) {
		return fmt.Errorf("%s is not a socket of ours: remove it", path)
	}
	c, err := net.DialTimeout("unix", path, 5*time.Second)
	if err == nil {
		_ = c.Close()
		return ErrRunning
	}
	if !refused(err) {
		return fmt.Errorf("finding out whether anybody listens on the old socket: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing the old socket: %w", err)
	}
	return nil
}

// secureSocket sets the socket's mode and looks again.
func secureSocket(path string) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("closing the socket to others: %w", err)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("looking at the socket: %w", err)
	}
	if !isSocket(fi) || !ours(fi) || modesMatter && fi.Mode().Perm() != 0o600 {
		return fmt.Errorf("%s is not the socket that was made: somebody replaced it, or the file system keeps no modes", path)
	}
	return nil
}

// newToken makes a token and keeps it in a file.
func newToken(path string) (string, error) {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	token := hex.EncodeToString(b)
	if err := removePlain(path); err != nil {
		return "", err
	}
	return token, writeFile(path, []byte(token+"\n"))
}

// writeFile writes a new file that only we can read, whole or not at all.
func writeFile(path string, b []byte) error {
	temp := path + ".new"
	if err := removePlain(temp); err != nil {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing in the socket's folder: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o600), f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("writing in the socket's folder: %w", err)
	}
	return nil
}

// parsePointer reads the file that says where the socket is: one clean absolute
// path that fits into a socket address, and ends in the socket's name.
func parsePointer(b []byte) (string, error) {
	path, ok := strings.CutSuffix(string(b), "\n")
	switch {
	case !ok, len(path) > maxSocketPath, strings.ContainsAny(path, "\n\x00"),
		!filepath.IsAbs(path), filepath.Clean(path) != path, filepath.Base(path) != sockName:
		return "", errors.New("the file that names the socket is damaged")
	}
	return path, nil
}

// A listener accepts connections of one user, and of no more clients than
// maxConns at once; others are closed before a byte is read.
type listener struct {
	*net.UnixListener
	user  peerUser // nil where the system cannot tell
	want  uint32
	log   *slog.Logger
	slots chan struct{} // a value for each open connection; sent by Accept, taken by conn.Close; capacity maxConns
}

func newListener(l *net.UnixListener, user peerUser, log *slog.Logger) *listener {
	return &listener{
		UnixListener: l,
		user:         user,
		want:         uint32(max(os.Geteuid(), 0)),
		log:          log,
		slots:        make(chan struct{}, maxConns),
	}
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if l.user != nil {
			if uid, err := l.user(c); err != nil || uid != l.want {
				l.log.Warn("connection of another user refused", "uid", uid, "err", err)
				_ = c.Close()
				continue
			}
		}
		select {
		case l.slots <- struct{}{}:
			return &conn{UnixConn: c, slots: l.slots}, nil
		default:
			l.log.Warn("connection refused: too many clients", "max", maxConns)
			_ = c.Close()
		}
	}
}

// A conn gives its slot back when it is closed.
type conn struct {
	*net.UnixConn
	slots chan struct{}
	once  sync.Once
}

func (c *conn) Close() error {
	c.once.Do(func() { <-c.slots })
	return c.UnixConn.Close()
}
