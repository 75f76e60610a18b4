package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"starling/node/relay"
	"starling/node/relay/station"
)

// The commands talk to the relay by JSON over HTTP, on a socket that only the
// relay's user can reach: its folder is 0700.
//
//	GET  /v1/status                    statusShape
//	POST /v1/link   {token, name, lan} linkShape
//	GET  /v1/links                     list of tokenShape: tokens given out
//	POST /v1/revoke {id}               tokenShape, of one that was
//	GET  /v1/check                     checkShape, when others have been asked
//	POST /v1/drain  {until}            statusShape; unix seconds, 0 takes it back
//
// Another status than 200 has a failureShape. Additive changes keep v1; a
// program that asks for what is not there is of another version.
const (
	runFolder  = "run"
	sockName   = "relay.sock"
	lockName   = "relay.lock" // held while a relay lives; the kernel lets go of it in a crash. Holds its process ID
	maxRequest = 4 << 10      // bytes
	maxAnswer  = 1 << 20
	maxPath    = 100 // bytes of a socket's path; systems allow 104 to 108

	askTimeout    = 10 * time.Second
	checkPatience = 30 * time.Second // for others to dial back
	checkLook     = 500 * time.Millisecond
	partingTime   = 5 * time.Second
)

type linkRequest struct {
	Token bool   `json:"token"`
	Name  string `json:"name"` // of the token; empty: the day's
	LAN   bool   `json:"lan"`
}

type linkShape struct {
	Link  string `json:"link"`
	Reach string `json:"reach"`        // announced, confirmed or lan
	Token bool   `json:"token"`        // holds an admission token
	ID    string `json:"id,omitempty"` // of that token
	Admit string `json:"admit"`        // who may make queues: open or token
}

type revokeRequest struct {
	ID string `json:"id"`
}

// A tokenShape is an admission token. The relay knows its hash only, so no link
// can be shown again.
type tokenShape struct {
	ID      string    `json:"id"` // the first half of the hash, in hexadecimal
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Queues  int       `json:"queues"`
	Bytes   int64     `json:"bytes"` // kept on its account
}

type drainRequest struct {
	Until int64 `json:"until"`
}

type addressShape struct {
	Addr      string `json:"addr"`
	State     string `json:"state"` // confirmed, failed, unknown or private
	Announced bool   `json:"announced"`
}

type checkShape struct {
	Reach     string         `json:"reach"`
	Confirmed bool           `json:"confirmed"` // another peer has dialled an address
	Peers     int            `json:"peers"`     // connections, to ask over
	Relays    int            `json:"relays"`    // other relays that answered
	Addresses []addressShape `json:"addresses"`
}

type sizeShape struct {
	Bytes    int `json:"bytes"`
	Messages int `json:"messages"`
}

type statusShape struct {
	Version        string         `json:"version"`
	Pid            int            `json:"pid"`
	Home           string         `json:"home"`
	PeerID         string         `json:"peer_id"`
	Reach          string         `json:"reach"` // announced, confirmed, unknown or none
	Addresses      []addressShape `json:"addresses"`
	BootstrapAddrs []string       `json:"bootstrap_addrs"` // full /p2p
	Started        time.Time      `json:"started"`
	Draining       *time.Time     `json:"draining,omitempty"` // takes nothing new; stops then
	Ready          bool           `json:"ready"`
	NotReady       string         `json:"not_ready,omitempty"` // why
	Metrics        string         `json:"metrics,omitempty"`   // where they are served

	Messages int         `json:"messages"`
	Sizes    []sizeShape `json:"sizes"`
	Disk     int64       `json:"disk"`  // bytes of messages
	Quota    int64       `json:"quota"` // the most of these
	Damaged  int         `json:"damaged"`
	Queues   int         `json:"queues"`
	Accounts int         `json:"accounts"` // admission tokens and address blocks with a queue
	Admit    string      `json:"admit"`
	Tokens   int         `json:"tokens"`
	Streams  int         `json:"streams"`
	WorkBits int         `json:"work_bits"`

	Traffic      uint64 `json:"traffic"`       // bytes of this month
	TrafficLimit uint64 `json:"traffic_limit"` // 0: none
	Rate         int    `json:"rate"`          // bytes a second; 0: no limit
	Sent         uint64 `json:"sent"`          // bytes of all streams since the start
	Received     uint64 `json:"received"`
	Circuits     uint64 `json:"circuits"` // of these, carried for others

	Connections int `json:"connections"`
	DHTPeers    int `json:"dht_peers"`
	DHTRecords  int `json:"dht_records"`
}

type failureShape struct {
	Code  int    `json:"code"`
	Error string `json:"error"`
	Hint  string `json:"hint"`
}

// A control is the relay's end of the socket.
type control struct {
	s       *station.Station
	home    home
	metrics string // address, or empty
}

func admitOf(open bool) string {
	if open {
		return "open"
	}
	return "token"
}

func addresses(list []station.Address) []addressShape {
	all := make([]addressShape, len(list))
	for i, a := range list {
		all[i] = addressShape{a.Addr, string(a.State), a.Announced}
	}
	return all
}

func (c *control) status() statusShape {
	st := c.s.Status()
	sh := statusShape{
		Version: version, Pid: os.Getpid(), Home: c.home.dir, PeerID: st.PeerID, Reach: string(st.Reach),
		Addresses: addresses(st.Addresses), BootstrapAddrs: st.Bootstrap, Started: st.Started.UTC().Truncate(time.Second),
		Metrics:  c.metrics,
		Messages: st.Messages,
		Disk:     st.Service.Spool.Bytes, Quota: st.Quota, Damaged: st.Service.Spool.Damaged,
		Queues: st.Service.Queues, Accounts: st.Service.Shares, Admit: admitOf(st.Open), Tokens: st.Tokens,
		Streams: st.Service.Streams, WorkBits: st.Service.WorkBits,
		Traffic: st.Service.Traffic, TrafficLimit: st.Traffic, Rate: st.Rate,
		Sent: st.Sent, Received: st.Received, Circuits: st.CircuitIn + st.CircuitOut,
		Connections: st.Conns, DHTPeers: st.Peers, DHTRecords: st.Records,
	}
	for _, size := range st.Service.Spool.Sizes {
		sh.Sizes = append(sh.Sizes, sizeShape{size.Size, size.Entries})
	}
	if !st.Service.Draining.IsZero() {
		at := st.Service.Draining.UTC()
		sh.Draining = &at
	}
	err := c.s.Ready()
	sh.Ready = err == nil
	if err != nil {
		sh.NotReady = err.Error()
	}
	return sh
}

func (c *control) link(r linkRequest) (linkShape, error) {
	st := c.s.Status()
	r.Token = r.Token || r.Name != ""
	l, err := c.s.NamedLink(r.Token, r.LAN, r.Name)
	if errors.Is(err, station.ErrUnreachable) {
		return linkShape{}, fail(exitError, "%s", err).try(
			"If this machine has a public address or a forwarded port, say so: %s --announce /ip4/ADDRESS/udp/%d/quic-v1\nElse wait until peers have tried (%s), or make a link for this network: %s",
			c.home.command("up"), station.DefaultPort, c.home.command("check"), c.home.command("link --lan"))
	}
	if err != nil {
		return linkShape{}, err
	}
	sh := linkShape{Link: l.String(), Reach: string(st.Reach), Token: r.Token, Admit: admitOf(st.Open)}
	if r.Token {
		sh.ID = tokenID(sha256.Sum256(l.Admission[:]))
	}
	if r.LAN {
		sh.Reach = "lan"
	}
	return sh, nil
}

func tokenID(hash [sha256.Size]byte) string { return hex.EncodeToString(hash[:len(hash)/2]) }

func tokenOf(t relay.Issued) tokenShape {
	return tokenShape{tokenID(t.Hash), t.Name, t.Created.UTC(), t.Queues, t.Bytes}
}

func (c *control) links() ([]tokenShape, error) {
	issued, err := c.s.Issued()
	list := make([]tokenShape, len(issued))
	for i, t := range issued {
		list[i] = tokenOf(t)
	}
	slices.SortFunc(list, func(a, b tokenShape) int { return a.Created.Compare(b.Created) })
	return list, err
}

// revoke ends the one token whose ID begins as asked.
func (c *control) revoke(id string) (tokenShape, error) {
	issued, err := c.s.Issued()
	if err != nil {
		return tokenShape{}, err
	}
	issued = slices.DeleteFunc(issued, func(t relay.Issued) bool { return !strings.HasPrefix(hex.EncodeToString(t.Hash[:]), id) })
	switch {
	case len(issued) == 0:
		return tokenShape{}, fail(exitNotFound, "no link has the ID %s", id).try("See %s.", c.home.command("link list"))
	case len(issued) > 1:
		return tokenShape{}, usage("%d links have an ID that begins with %s", len(issued), id)
	}
	return tokenOf(issued[0]), c.s.Revoke(issued[0].Hash)
}

// check asks other relays to dial back, then waits until any peers have tried the
// addresses that are left, or have had the time.
func (c *control) check(ctx context.Context) checkShape {
	limit, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	relays := c.s.Check(limit)
	tick := time.NewTicker(checkLook)
	defer tick.Stop()
	for {
		st := c.s.Status()
		sh := checkShape{Reach: string(st.Reach), Peers: st.Conns, Relays: relays, Addresses: addresses(st.Addresses)}
		open := false
		for _, a := range st.Addresses {
			sh.Confirmed = sh.Confirmed || a.State == station.Confirmed
			open = open || a.State == station.Unconfirmed
		}
		// Without peers there is nobody to wait for, without public addresses
		// nothing.
		if !open || st.Conns == 0 || limit.Err() != nil {
			return sh
		}
		select {
		case <-limit.Done():
		case <-tick.C:
		}
	}
}

func (c *control) handler() http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any, err error) {
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			f, ok := errors.AsType[*failure](err)
			if !ok {
				f = fail(exitError, "%s", err)
			}
			w.WriteHeader(http.StatusConflict)
			v = failureShape{f.code, f.msg, f.hint}
		}
		_ = json.NewEncoder(w).Encode(v) // the client is gone, or has it
	}
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.status(), nil) })
	mux.HandleFunc("GET /v1/check", func(w http.ResponseWriter, r *http.Request) { answer(w, c.check(r.Context()), nil) })
	mux.HandleFunc("GET /v1/links", func(w http.ResponseWriter, _ *http.Request) {
		list, err := c.links()
		answer(w, list, err)
	})
	mux.HandleFunc("POST /v1/revoke", func(w http.ResponseWriter, r *http.Request) {
		req, err := readRequest[revokeRequest](r)
		var sh tokenShape
		if err == nil {
			sh, err = c.revoke(req.ID)
		}
		answer(w, sh, err)
	})
	mux.HandleFunc("POST /v1/link", func(w http.ResponseWriter, r *http.Request) {
		req, err := readRequest[linkRequest](r)
		var sh linkShape
		if err == nil {
			sh, err = c.link(req)
		}
		answer(w, sh, err)
	})
	mux.HandleFunc("POST /v1/drain", func(w http.ResponseWriter, r *http.Request) {
		req, err := readRequest[drainRequest](r)
		if err == nil {
			at := time.Time{}
			if req.Until != 0 {
				at = time.Unix(req.Until, 0)
			}
			err = c.s.Drain(at)
		}
		answer(w, c.status(), err)
	})
	return mux
}

func readRequest[T any](r *http.Request) (v T, err error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		err = usage("a request that does not parse: %s", err)
	}
	return v, err
}

// watched serves what a machine that watches over the relay asks: whether it
// lives, whether it takes messages, and its metrics.
func watched(s *station.Station, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	say := func(ask func() error) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if err := ask(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		}
	}
	mux.Handle("GET /healthz", say(s.Healthy))
	mux.Handle("GET /readyz", say(s.Ready))
	mux.Handle("GET /metrics", metrics)
	return mux
}

// serveHTTP serves until ctx ends, then lets answers under way be written.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadTimeout: askTimeout, WriteTimeout: checkPatience + askTimeout, IdleTimeout: askTimeout, MaxHeaderBytes: maxRequest,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		limit, cancel := context.WithTimeout(context.Background(), partingTime)
		defer cancel()
		if srv.Shutdown(limit) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// A claim is the relay's hold on its folder.
type claim struct{ lock *flock.Flock }

// take makes the folder and locks it. Another relay in it is a failure.
func (h home) take() (*claim, error) {
	run := h.path(runFolder)
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(run, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	fi, err := os.Lstat(run)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, fail(exitError, "%s is not a folder", run).try("Remove it.")
	}
	if runtime.GOOS != "windows" && fi.Mode().Perm() != 0o700 {
		if err := os.Chmod(run, 0o700); err != nil {
			return nil, fail(exitError, "others can reach the relay's socket: %s", err)
		}
	}
	path := filepath.Join(run, lockName)
	c := &claim{flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))}
	ok, err := c.lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	if !ok {
		who := "the relay of this folder is up already"
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 && len(b) < 20 {
			who += " (process " + strings.TrimSpace(string(b)) + ")"
		}
		return nil, fail(exitError, "%s", who).try("See %s, or choose another folder with --home DIR.", h.command("status"))
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600); err != nil {
		return nil, errors.Join(err, c.release())
	}
	return c, nil
}

func (c *claim) release() error { return c.lock.Unlock() }

// listen listens on the socket. Whoever holds the lock knows that a socket that
// is there is of a relay that died.
func (h home) listen() (net.Listener, error) {
	path := h.path(filepath.Join(runFolder, sockName))
	if len(path) > maxPath {
		return nil, fail(exitError, "%s is too long for a socket", path).try("Choose a shorter folder with --home DIR.")
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().IsRegular() || fi.IsDir() {
			return nil, fail(exitError, "%s is not a socket", path).try("Remove it.")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// ask sends a request to the relay that runs, and reads the answer into out.
func (h home) ask(ctx context.Context, method, path string, in, out any) error {
	sock := h.path(filepath.Join(runFolder, sockName))
	client := &http.Client{
		Timeout: checkPatience + askTimeout,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: askTimeout}).DialContext(ctx, "unix", sock)
		}},
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://relay.sock"+path, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrPermission):
		return fail(exitUnreachable, "no permission to reach the relay of %s", h.dir).try("It belongs to another user. Run this as that user.")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fail(exitUnreachable, "no relay runs in %s", h.dir).try("Start it with: %s", h.command("up"))
	default:
		return fail(exitUnreachable, "the relay does not answer: %s", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fail(exitUnreachable, "the relay does not answer: %s", err)
	}
	if resp.StatusCode != http.StatusOK {
		var f failureShape
		if resp.StatusCode == http.StatusConflict && json.Unmarshal(b, &f) == nil && f.Error != "" {
			return fail(f.Code, "%s", f.Error).try("%s", f.Hint)
		}
		return fail(exitVersion, "the relay that runs is of another version (%s)", strconv.Itoa(resp.StatusCode)).try("Start it anew with this program.")
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fail(exitVersion, "the relay that runs is of another version: %s", err).try("Start it anew with this program.")
	}
	return nil
}
