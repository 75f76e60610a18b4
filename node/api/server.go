package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"
)

// socketHost is the Host of every request on the socket. A name that no
// resolver knows: a page that got hold of the socket could still not send it.
const socketHost = "starling.sock"

const (
	headerTimeout = 5 * time.Second  // for the header of a request
	restTimeout   = 2 * time.Minute  // for a connection without a request
	partingTime   = 5 * time.Second  // for the last answers when the server stops
	watchEvery    = 2 * time.Second  // between two looks at whether the socket is still there
	writeTimeout  = 30 * time.Second // for one event to a slow reader
	maxHeader     = 16 << 10         // bytes of a request's header; net/http adds 4 KiB of slack
)

// Config says what a server serves.
type Config struct {
	// Home is the folder of the profile. Required; it must exist.
	Home string

	// Version is that of the program. Required.
	Version string

	// Open opens the profile. Required. The passphrase is nil when nobody was
	// asked for one; if one is needed, Open returns [ErrLocked]. A wrong one is
	// [ErrPassphrase]. Open may keep nothing of it. ctx ends when the server
	// stops.
	Open func(ctx context.Context, passphrase []byte) (Backend, error)

	// ChangePassphrase replaces the passphrase, while the profile is locked or
	// running. Required. A wrong old one is [ErrPassphrase].
	ChangePassphrase func(ctx context.Context, old, new []byte) error

	// OnState is told each state, the first when clients can connect. It must
	// not block. Default nil.
	OnState func(state string)

	// Runtime is the folder in which the socket's folder is made if the path of
	// the profile is too long for a socket. Default [os.TempDir].
	Runtime string

	// Log receives what an operator should know. Default: nothing is logged.
	Log *slog.Logger

	user    peerUser // of this system; tests put their own
	noToken bool     // tests: user nil asks for a token
}

// A Server is the daemon's end of the API.
//
//	starting ──▶ running ◀──▶ (Lock, Unlock) ◀──▶ locked
//	   │                         unlocking           ▲
//	   └──────── Open: ErrLocked ────────────────────┘
//	any ──▶ stopping
//
// Status answers in every state. Everything else that needs the node answers
// [ErrStarting] or [ErrLocked] outside of running.
type Server struct {
	cfg  Config
	log  *slog.Logger
	wg   sync.WaitGroup // transitions and the HTTP server
	turn chan struct{}  // capacity 1: holds a value while a transition is under way

	stop chan struct{} // closed by the first Stop
	once sync.Once     // closes stop

	mu    sync.Mutex // guards what follows; never held across a wait
	state string
	cur   *session
}

// A session is an open backend and the calls in it.
type session struct {
	b      Backend
	ctx    context.Context // ends when the profile is locked or the server stops
	cancel context.CancelFunc
	calls  sync.WaitGroup // Add under Server.mu, while the session is current
}

// New checks cfg and returns a server that has started nothing.
func New(cfg Config) (*Server, error) {
	var errs []error
	if cfg.Home == "" {
		errs = append(errs, errors.New("api: Home is required"))
	}
	if cfg.Version == "" {
		errs = append(errs, errors.New("api: Version is required"))
	}
	if cfg.Open == nil {
		errs = append(errs, errors.New("api: Open is required"))
	}
	if cfg.ChangePassphrase == nil {
		errs = append(errs, errors.New("api: ChangePassphrase is required"))
	}
	home, err := filepath.Abs(cfg.Home)
	if err != nil {
		errs = append(errs, fmt.Errorf("api: Home: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	cfg.Home = home
	if cfg.Runtime == "" {
		cfg.Runtime = os.TempDir()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.user == nil && !cfg.noToken {
		cfg.user = systemUser
	}
	return &Server{
		cfg:   cfg,
		log:   cfg.Log,
		turn:  make(chan struct{}, 1),
		stop:  make(chan struct{}),
		state: StateStarting,
	}, nil
}

// Run listens, opens the profile and serves until ctx ends or a client asks to
// stop; then it closes the backend, joins everything and returns nil. It
// returns [ErrRunning] if another daemon serves the profile, and the error of
// Open if the profile cannot be opened at all. Run is called once.
func (s *Server) Run(ctx context.Context) error {
	sock, err := listen(s.cfg.Home, s.cfg.Runtime, s.cfg.user, s.log)
	if err != nil {
		return err
	}
	defer sock.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	hs := s.httpServer(sock.token, ctx)
	failed := make(chan error, 2) // one each from the two goroutines below
	s.turn <- struct{}{}
	s.tell(StateStarting)
	s.wg.Go(func() {
		if err := hs.Serve(sock.listener); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serving the API: %w", err)
		}
	})
	s.wg.Go(func() {
		defer func() { <-s.turn }()
		switch err := s.open(ctx, nil); {
		case errors.Is(err, ErrLocked):
			s.move(StateLocked, nil)
		case err != nil:
			failed <- err
		}
	})

	watch := time.NewTicker(watchEvery)
	defer watch.Stop()
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true
		case <-s.stop:
			over = true
		case err = <-failed:
			over = true
		case <-watch.C:
			if _, gone := os.Lstat(sock.path); errors.Is(gone, fs.ErrNotExist) {
				err, over = errors.New("api: the socket was removed, so nobody reaches this daemon any more"), true
			}
		}
	}

	s.mu.Lock()
	s.state = StateStopping // from here on nothing else moves it
	sess := s.cur
	s.mu.Unlock()
	s.tell(StateStopping)
	cancel()
	if sess != nil {
		sess.cancel() // long calls end, so that the server can
	}
	parting, done := context.WithTimeout(context.WithoutCancel(ctx), partingTime)
	if hs.Shutdown(parting) != nil {
		_ = hs.Close()
	}
	done()
	s.wg.Wait()
	s.turn <- struct{}{} // never given back: nothing follows
	if cerr := s.endSession(); err == nil {
		err = cerr
	}
	return err
}

// Stop makes Run return, as when its context ends.
func (s *Server) Stop() { s.once.Do(func() { close(s.stop) }) }

// httpServer returns the server of the socket, not yet serving.
func (s *Server) httpServer(token string, run context.Context) *http.Server {
	hs := &http.Server{
		Handler:                      s.handler(token, run),
		ReadHeaderTimeout:            headerTimeout,
		IdleTimeout:                  restTimeout,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		Protocols:                    new(http.Protocols),
	}
	hs.Protocols.SetHTTP1(true)
	return hs
}

// handler builds the chain: guard, then Connect without compression.
func (s *Server) handler(token string, run context.Context) http.Handler {
	path, h := NewStarlingHandler(&handler{s: s, run: run},
		connect.WithReadMaxBytes(maxBody),
		connect.WithCompression("gzip", nil, nil),
		connect.WithRecover(func(_ context.Context, spec connect.Spec, _ http.Header, v any) error {
			s.log.Error("panic in a call", "method", spec.Procedure, "panic", v)
			return newError(connect.CodeInternal, "internal", "internal error: the daemon's log says more", "")
		}),
	)
	methods := make(map[string][]string)
	list := File_api_proto.Services().ByName("Starling").Methods()
	for i := range list.Len() {
		m := list.Get(i)
		types := []string{"application/proto", "application/json"}
		if m.IsStreamingServer() {
			types = []string{"application/connect+proto", "application/connect+json"}
		}
		methods[path+string(m.Name())] = types
	}
	return &guard{hosts: []string{socketHost}, token: token, methods: methods, next: h}
}

// tell reports a state.
func (s *Server) tell(state string) {
	s.log.Info("state of the profile", "state", state)
	if s.cfg.OnState != nil {
		s.cfg.OnState(state)
	}
}

// move changes the state unless the server is stopping. The caller holds the
// turn.
func (s *Server) move(state string, cur *session) bool {
	s.mu.Lock()
	ok := s.state != StateStopping
	if ok {
		s.state, s.cur = state, cur
	}
	s.mu.Unlock()
	if ok {
		s.tell(state)
	}
	return ok
}

// open opens the profile and moves to running. The caller holds the turn and
// sets the state if it fails.
func (s *Server) open(ctx context.Context, passphrase []byte) error {
	b, err := s.cfg.Open(ctx, passphrase)
	if err != nil {
		return err
	}
	sess := &session{b: b}
	sess.ctx, sess.cancel = context.WithCancel(ctx)
	if !s.move(StateRunning, sess) {
		sess.cancel()
		return b.Close()
	}
	return nil
}

// endSession closes the backend, if there is one, after the calls in it. The
// caller holds the turn.
func (s *Server) endSession() error {
	s.mu.Lock()
	sess := s.cur
	s.cur = nil
	s.mu.Unlock()
	if sess == nil {
		return nil
	}
	sess.cancel()
	sess.calls.Wait()
	if err := sess.b.Close(); err != nil {
		return fmt.Errorf("closing the profile: %w", err)
	}
	return nil
}

// enter counts a call into the backend, or says why there is none. The caller
// calls leave.
func (s *Server) enter() (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != StateRunning || s.cur == nil {
		return nil, s.stateErrorLocked()
	}
	s.cur.calls.Add(1)
	return s.cur, nil
}

func (c *session) leave() { c.calls.Done() }

// stateErrorLocked returns what to answer outside of running.
func (s *Server) stateErrorLocked() error {
	switch s.state {
	case StateStarting:
		return ErrStarting
	case StateUnlocking:
		return &wrapped{msg: "the daemon is unlocking the profile", err: ErrStarting}
	case StateStopping:
		return &wrapped{msg: "the daemon is stopping", err: ErrNotRunning}
	}
	return ErrLocked
}

// transition runs f while nothing else changes the state, given the state it
// starts from: locked or running. It fails in the others. f goes on even if the
// client leaves, and Run waits for it: a half-opened profile helps nobody.
func (s *Server) transition(ctx context.Context, f func(state string) error) error {
	if _, err := s.settled(); err != nil {
		return err
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.turn }()
	state, err := s.settled()
	if err != nil {
		return err
	}
	return f(state)
}

// settled returns the state if it is locked or running, else what to answer.
func (s *Server) settled() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == StateLocked || s.state == StateRunning {
		return s.state, nil
	}
	return "", s.stateErrorLocked()
}

// unlock opens a locked profile; it does nothing to a running one.
func (s *Server) unlock(ctx, run context.Context, passphrase []byte) error {
	return s.transition(ctx, func(state string) error {
		if state == StateRunning || !s.move(StateUnlocking, nil) {
			return nil
		}
		err := s.open(run, passphrase)
		if err != nil {
			s.move(StateLocked, nil)
		}
		return err
	})
}

// lock closes a running profile; it does nothing to a locked one.
func (s *Server) lock(ctx context.Context) error {
	return s.transition(ctx, func(state string) error {
		if state == StateLocked {
			return nil
		}
		s.mu.Lock()
		if s.state != StateRunning { // stopping: Run closes the profile
			s.mu.Unlock()
			return nil
		}
		s.state = StateLocked // no call enters any more
		s.mu.Unlock()
		s.tell(StateLocked)
		return s.endSession()
	})
}
