package client

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"golang.org/x/time/rate"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
)

const (
	// maxBackoff is the ceiling of pauses after failures.
	maxBackoff = 5 * time.Minute

	// maxRest is the longest pause between two requests of a stream, on which a
	// relay waits for two minutes.
	maxRest = time.Minute

	// sparePer and spareMost are how many entries of no use cost a relay no pause:
	// one in sparePer, and so many at once. An honest relay shows again what it was
	// not told to delete when the last stream broke.
	sparePer  = 10 * time.Second
	spareMost = 1024

	// steadyAfter is how long a connection has to last to make up for the failures
	// before it: a relay that takes every connection and drops it gains nothing.
	steadyAfter = 5 * time.Minute

	// infoLife is for how long what a relay says of itself is good enough to tend
	// by.
	infoLife = time.Minute

	day = 24 * time.Hour
)

// A ReaderConfig says what a [Reader] reads, and what it does with it.
type ReaderConfig struct {
	// Relay is the relay's key and where it is. Required.
	Relay identity.Endpoint

	// Hosts make the reader's host of each day. Required.
	Hosts Hosts

	// Queues returns the keys of the queues to read, none twice. It is called
	// before Tend. Those beyond [protocol.MaxAttached] are not read: [Status].Left.
	// Required.
	Queues func() ([]*relay.ReaderKey, error)

	// Tend sees to what is kept at the relay: it makes the queues of Queues that
	// the relay does not know ([Conn.Queue]; it leaves those that were not asked
	// for, which are too many), renews them, tops up one-time keys.
	// It is called after connecting, after [Reader.Kick] and every TendEvery, and
	// again after an error, soon at first. The context ends with Run's. Required.
	Tend func(ctx context.Context, c *Conn) error

	// Take commits what can be taken of entries, and returns those that may be
	// deleted: they were committed, now or before, or cannot be opened. Others are
	// shown again on the next stream. What it returns with an error is deleted too;
	// the error ends the stream. useless is how many of them were of no use, since
	// they cannot be opened or were taken before: a relay that brings little else
	// is asked less often. Its duration delays what comes after. Required.
	Take func(ctx context.Context, entries []Entry) (done []Entry, useless int, err error)

	// Dialer opens the streams.
	Dialer Dialer

	// Now is the wall clock, of which the UTC day and the times of Status are.
	// Default time.Now.
	Now func() time.Time

	// Rand is where pauses come from, and the minute at which a day's host is
	// replaced. Default crypto/rand.
	Rand io.Reader

	// Log receives connections and their ends. Default: discarded.
	Log *slog.Logger

	// TendEvery is the pause between two calls of Tend. Default 1 h.
	TendEvery time.Duration
}

func (c *ReaderConfig) validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New("client: a reader without "+what))
		}
	}
	need(len(c.Relay.Addrs) > 0, "an address of its relay")
	need(c.Hosts != nil, "hosts")
	need(c.Queues != nil, "queues")
	need(c.Tend != nil, "Tend")
	need(c.Take != nil, "Take")
	return errors.Join(errs...)
}

func (c *ReaderConfig) setDefaults() {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.TendEvery <= 0 {
		c.TendEvery = time.Hour
	}
}

// A Reader reads the queues of one account at one relay: it connects, attaches
// them, and polls, for as long as it runs.
//
//	dial ── attach, tend ── poll ⇄ take, delete
//	  ↑           ↑          │ kick, TendEvery
//	  │           └──────────┤
//	  └── pause ── failure ──┘ a new day: another host
//
// Every UTC day, at a random minute of it, the host is replaced by one with
// another key. Until then a lost stream is dialled anew with the same host: to
// the relay, which sees the same queues, another would say nothing else.
//
// Each stream begins with the first entry in the queues. Afterwards only later
// ones are asked for, so what Take leaves costs nothing until the next stream.
type Reader struct {
	cfg  ReaderConfig
	id   peer.ID       // of the relay
	kick chan struct{} // Kick sends; one token is enough

	spare *rate.Limiter // of entries of no use

	mu     sync.Mutex // guards status
	status Status
}

// A Status is how it stands with a relay. Times are of [ReaderConfig.Now].
type Status struct {
	Connected bool
	Since     time.Time // since when it is connected, or is not
	LastError error     // of the last stream or attempt; nil after an answer to a poll
	TendError error     // of the last call of Tend
	Info      Info      // as last told; zero: never
	Queues    int       // attached; 0 without a connection
	Left      int       // queues that are one stream's too many, and are not read
	LastPoll  time.Time // when a poll was last answered; zero: never
	NextTry   time.Time // when it dials again; zero while it dials or is connected
	Useless   int       // entries of no use since the last one that was of some
}

// NewReader returns a reader. It does nothing until [Reader.Run].
func NewReader(cfg ReaderConfig) (*Reader, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	return &Reader{
		cfg: cfg, id: addrInfo(cfg.Relay).ID,
		kick:   make(chan struct{}, 1),
		spare:  rate.NewLimiter(rate.Every(sparePer), spareMost),
		status: Status{Since: cfg.Now()},
	}, nil
}

// Kick has Tend called soon: at once if the reader is connected, ending a poll
// that waits, else after it has connected, which it does not hasten. It does not
// block.
func (r *Reader) Kick() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Status returns how it stands.
func (r *Reader) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

func (r *Reader) note(change func(s *Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.status)
}

// Run reads until ctx ends, and returns nil when all it started has stopped. It
// is called once.
func (r *Reader) Run(ctx context.Context) error {
	var at term
	defer func() { at.end(r) }()
	for failures := 0; ctx.Err() == nil; {
		lasted, err := r.attempt(ctx, &at)
		if err == nil || ctx.Err() != nil {
			continue // the host's day is over, or all is
		}
		if lasted >= steadyAfter {
			failures = 0
		}
		pause := r.backoff(failures)
		failures++
		r.cfg.Log.Debug("relay not reached", "relay", r.id.ShortString(), "error", err, "pause", pause)
		r.note(func(s *Status) { s.LastError, s.NextTry = err, r.cfg.Now().Add(pause) })
		sleep(ctx, pause)
		r.note(func(s *Status) { s.NextTry = time.Time{} })
	}
	return nil
}

// A term is a host and the time for which it is used.
type term struct {
	host     host.Host // nil: none
	from, to time.Time // wall clock; from is the beginning of its first day
}

// over reports whether it is time for another host. A clock that was set back
// ends the term too: its end may be years away.
func (t *term) over(now time.Time) bool {
	return t.host == nil || now.Before(t.from) || !now.Before(t.to)
}

func (t *term) end(r *Reader) {
	if t.host == nil {
		return
	}
	if err := t.host.Close(); err != nil {
		r.cfg.Log.Debug("closing a host", "error", err)
	}
	t.host = nil
}

// attempt dials and reads until the stream fails, or returns nil when the host's
// term is over. It returns how long the stream lasted.
func (r *Reader) attempt(ctx context.Context, at *term) (lasted time.Duration, err error) {
	if now := r.cfg.Now(); at.over(now) {
		at.end(r)
		h, err := r.cfg.Hosts.New()
		if err != nil {
			return 0, err
		}
		today := now.UTC().Truncate(day)
		*at = term{h, today, today.Add(day + r.jitter(day).Truncate(time.Minute))}
	}
	// What dialled in vain before says nothing about now; the pauses are ours.
	if s, ok := at.host.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(r.id)
	}
	conn, err := r.cfg.Dialer.Dial(ctx, at.host, r.cfg.Relay)
	// A connection that is dead without knowing it must not be used again.
	defer func() { _ = at.host.Network().ClosePeer(r.id) }()
	if err != nil {
		return 0, err
	}
	defer conn.Close()

	begun := time.Now()
	r.note(func(s *Status) { s.Connected, s.Since, s.Info = true, r.cfg.Now(), conn.Info() })
	r.cfg.Log.Debug("relay connected", "relay", r.id.ShortString())
	s := &session{Reader: r, conn: conn}
	err = s.run(ctx, at)
	r.note(func(s *Status) { s.Connected, s.Since, s.Queues = false, r.cfg.Now(), 0 })
	return time.Since(begun), err
}

// A session is one stream of a reader.
type session struct {
	*Reader
	conn *Conn

	after  uint64    // entries above it were not asked for yet
	owed   []Entry   // were taken, and are to be deleted
	tend   time.Time // when Tend is due
	failed int       // calls of Tend that failed, in a row
	hasty  int       // polls that were of no use and did not wait, in a row
}

// run serves the stream until it fails, or returns nil when ctx or the host's
// term ends.
func (s *session) run(ctx context.Context, at *term) error {
	for ctx.Err() == nil && !at.over(s.cfg.Now()) {
		if !time.Now().Before(s.tend) {
			if err := s.tending(ctx); err != nil {
				return err
			}
		}
		if err := s.step(ctx); errors.Is(err, ErrBusy) {
			s.note(func(st *Status) { st.LastError = err })
			s.hasty++
		} else if err != nil {
			return err
		}
		if s.hasty > 0 {
			s.rest(ctx)
		}
	}
	return nil
}

// rest pauses between two polls, or until Tend is wanted.
func (s *session) rest(ctx context.Context) {
	t := time.NewTimer(min(s.backoff(s.hasty-1), maxRest))
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.kick:
		s.tend = time.Time{}
	case <-ctx.Done():
	}
}

// tending attaches what is new and calls Tend. An error is of the stream, or of
// the caller's queues.
func (s *session) tending(ctx context.Context) error {
	select {
	case <-s.kick: // whatever it was for is there now
	default:
	}
	// What it said when it was dialled may be hours old: that it will stop, say.
	if time.Since(s.conn.asked) > infoLife {
		if _, err := s.conn.Refresh(ctx); err != nil && s.conn.Err() != nil {
			return fmt.Errorf("asking what the relay is: %w", err)
		}
	}
	left, err := s.attach(ctx)
	if err != nil {
		return err
	}
	err = s.cfg.Tend(ctx, s.conn)
	if ended := s.conn.Err(); ended != nil {
		if err == nil {
			err = ended
		}
		return fmt.Errorf("tending queues: %w", err)
	}
	s.tend = time.Now().Add(s.cfg.TendEvery)
	if err != nil {
		s.tend = time.Now().Add(min(s.backoff(s.failed), s.cfg.TendEvery))
		s.failed++
	} else {
		s.failed = 0
	}
	if s.conn.older {
		s.conn.older = false
		s.after = 0
	}
	attached := 0
	for _, q := range s.conn.queues {
		if q.Known {
			attached++
		}
	}
	s.note(func(st *Status) { st.TendError, st.Queues, st.Left, st.Info = err, attached, left, s.conn.Info() })
	return nil
}

// attach attaches the queues that are not, as far as the stream has room, and
// returns how many were left out.
func (s *session) attach(ctx context.Context) (left int, err error) {
	keys, err := s.cfg.Queues()
	if err != nil {
		return 0, fmt.Errorf("listing queues: %w", err)
	}
	wanted := make(map[relay.QueueID]bool, len(keys))
	var missing []*relay.ReaderKey
	for _, k := range keys {
		id := k.Reader().Queue()
		if q, _ := s.conn.Queue(id); !q.Known && !wanted[id] {
			missing = append(missing, k)
		}
		wanted[id] = true
	}
	attached := 0
	for _, q := range s.conn.queues {
		if q.Known {
			attached++
		}
	}
	if room := max(0, protocol.MaxAttached-attached); len(missing) > room {
		missing, left = missing[:room], len(missing)-room
	}
	if _, err := s.conn.Attach(ctx, missing); err != nil {
		return left, fmt.Errorf("attaching queues: %w", err)
	}
	return left, nil
}

// step deletes what was taken, polls once, and has what comes taken. It counts
// polls that were of no use and came back at once, in hasty: there is a pause
// after them, so that neither a relay nor entries that nobody takes keep us
// busy.
func (s *session) step(ctx context.Context) error {
	if err := s.delete(ctx); err != nil {
		return err
	}
	wait := max(min(protocol.PollWait, time.Until(s.tend)), time.Second)
	begun := time.Now()
	page, err := s.conn.Poll(ctx, Poll{After: s.after, Wait: wait, End: s.kick})
	if page.Ended {
		s.tend = time.Time{}
	}
	if err != nil {
		return err
	}
	s.note(func(st *Status) { st.LastPoll, st.LastError, st.Info = s.cfg.Now(), nil, s.conn.Info() })
	if n := len(page.Entries); n > 0 {
		done, useless, err := s.cfg.Take(ctx, page.Entries)
		s.owed = append(s.owed, done...)
		s.note(func(st *Status) {
			if st.Useless += useless; len(done) > useless {
				st.Useless = 0
			}
		})
		s.after = page.Entries[n-1].ID
		if err != nil {
			_ = s.delete(ctx) // if it fails they are shown again
			return fmt.Errorf("taking entries: %w", err)
		}
		if len(done) > useless {
			s.hasty = 0
			return s.delete(ctx)
		}
		if useless > 0 && s.spare.AllowN(time.Now(), useless) {
			return s.delete(ctx)
		}
	}
	if page.Ended || time.Since(begun) >= wait/2 {
		s.hasty = 0
	} else {
		s.hasty++
	}
	return nil
}

// delete deletes what is owed.
func (s *session) delete(ctx context.Context) error {
	if len(s.owed) == 0 {
		return nil
	}
	err := s.conn.Delete(ctx, s.owed)
	if errors.Is(err, ErrRefused) {
		// A queue was dropped meanwhile, perhaps by another device. It takes none of
		// the others with it.
		for _, e := range s.owed {
			if err = s.conn.Delete(ctx, []Entry{e}); err != nil && !errors.Is(err, ErrRefused) {
				break
			}
			err = nil
		}
	}
	switch {
	case err == nil:
		s.owed = nil
	case !errors.Is(err, ErrBusy):
		err = fmt.Errorf("deleting entries: %w", err)
	}
	return err
}

// backoff is the pause after a number of failures before this one: full jitter
// under a ceiling of 1, 2, 4 … 300 s.
func (r *Reader) backoff(failures int) time.Duration {
	return r.jitter(min(time.Second<<min(failures, 16), maxBackoff))
}

// jitter returns a random part of d.
func (r *Reader) jitter(d time.Duration) time.Duration {
	var b [8]byte
	if _, err := io.ReadFull(r.cfg.Rand, b[:]); err != nil {
		return d // waiting longer is safe
	}
	return time.Duration(float64(d) * float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53))
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
