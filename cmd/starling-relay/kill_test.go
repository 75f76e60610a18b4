package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"starling/node/relay/client"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// A victim is a relay as its operator runs it, which is killed again and again.
type victim struct {
	t    testing.TB
	home home
	args []string // of up, at the same place each time
	at   identity.Endpoint
	peer peer.ID
	cmd  *exec.Cmd
	log  strings.Builder
	left atomic.Int64 // answers until it is killed
}

// newVictim makes a relay with a quota, and starts it.
func newVictim(t testing.TB, args ...string) *victim {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs SIGKILL")
	}
	dir := filepath.Join(t.TempDir(), "h")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "relay.toml"), []byte("local = true\ncircuits = false\nmetrics = \"off\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	v := &victim{t: t, home: home{dir: dir}, args: append([]string{"up", "--listen", "/ip4/127.0.0.1/tcp/0"}, args...)}
	v.start()
	var st statusShape
	if err := v.home.ask(t.Context(), "GET", "/v1/status", nil, &st); err != nil {
		t.Fatal(err)
	}
	info, err := peer.AddrInfoFromString(st.BootstrapAddrs[0])
	if err != nil {
		t.Fatal(err)
	}
	var l linkShape
	if err := v.home.ask(t.Context(), "POST", "/v1/link", linkRequest{LAN: true}, &l); err != nil {
		t.Fatal(err)
	}
	link, err := relay.ParseLink(l.Link)
	if err != nil {
		t.Fatal(err)
	}
	v.peer, v.at = info.ID, identity.Endpoint{Transport: link.Transport, Addrs: [][]byte{info.Addrs[0].Bytes()}}
	v.args[2] = info.Addrs[0].String()
	return v
}

// start starts the relay and waits until it answers on its socket.
func (v *victim) start() {
	v.t.Helper()
	v.cmd = program(context.Background(), v.t, v.home.dir, v.args...)
	v.log.Reset()
	v.cmd.Stderr = &v.log
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = v.cmd.Process.Kill() })
	end := time.NewTimer(patience)
	defer end.Stop()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		var st statusShape
		if v.home.ask(v.t.Context(), "GET", "/v1/status", nil, &st) == nil && st.Ready {
			return
		}
		select {
		case <-tick.C:
		case <-end.C:
			_ = v.cmd.Process.Kill()
			_ = v.cmd.Wait()
			v.t.Fatalf("the relay is not up within %v: %s", patience, &v.log)
		}
	}
}

// answered counts answers, and kills the relay in the midst of what follows the
// last of this life.
func (v *victim) answered(n int) {
	if left := v.left.Add(-int64(n)); left <= 0 && left+int64(n) > 0 {
		if err := v.cmd.Process.Kill(); err != nil {
			v.t.Errorf("killing the relay: %v", err)
		}
	}
}

// A sender leaves messages in a queue and reads them, on an account of its own.
type sender struct {
	v     *victim
	host  host.Host
	key   *relay.ReaderKey
	queue client.NewQueue
	rng   *mathrand.Rand

	kept    map[[32]byte]bool // acknowledged, and not known to be deleted
	doubted map[[32]byte]bool // about to be deleted
	gone    map[[32]byte]bool // deleted
	open    []client.Deposit  // not answered: to be repeated
	stored  int               // acknowledged in all
	full    int               // answers QUOTA
}

func (v *victim) sender(seed uint64) *sender {
	v.t.Helper()
	var l linkShape
	if err := v.home.ask(v.t.Context(), "POST", "/v1/link", linkRequest{Token: true, LAN: true}, &l); err != nil {
		v.t.Fatal(err)
	}
	link, err := relay.ParseLink(l.Link)
	if err != nil {
		v.t.Fatal(err)
	}
	secret, err := identity.NewSecret(rand.Reader)
	if err != nil {
		v.t.Fatal(err)
	}
	c, err := relay.NewCapability(rand.Reader)
	if err != nil {
		v.t.Fatal(err)
	}
	return &sender{
		v: v, host: v.client(), key: relay.NewReaderKey(secret), rng: mathrand.New(mathrand.NewPCG(seed, 7)),
		queue: client.NewQueue{
			Kind: wire.QueueKind_QUEUE_KIND_PAIRWISE, Capability: &c, Expires: time.Now().Add(30 * 24 * time.Hour), Admission: link.Admission,
		},
		kept: map[[32]byte]bool{}, doubted: map[[32]byte]bool{}, gone: map[[32]byte]bool{},
	}
}

// client returns a host that only dials.
func (v *victim) client() host.Host {
	v.t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.Ping(false), libp2p.DisableIdentifyAddressDiscovery())
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { h.Close() })
	return h
}

// dial connects anew: what is left of an earlier life of the relay goes.
func (s *sender) dial() *client.Conn {
	t := s.v.t
	t.Helper()
	_ = s.host.Network().ClosePeer(s.v.peer)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := client.Dial(ctx, s.host, s.v.at)
	if err != nil {
		t.Fatalf("dialling the relay: %v; it says %s", err, &s.v.log)
	}
	if _, err := c.Create(ctx, s.key, s.queue); err != nil {
		t.Fatalf("making or attaching a queue: %v", err)
	}
	return c
}

// fresh returns a deposit that nobody made before.
func (s *sender) fresh(size int) client.Deposit {
	blob := make([]byte, size)
	rand.Read(blob)
	return client.Deposit{
		Queue: s.key.Reader().Queue(), Capability: s.queue.Capability, Blob: blob, Expires: time.Now().Add(24 * time.Hour).Unix(),
	}
}

// use leaves and takes messages until the relay is gone.
func (s *sender) use(c *client.Conn) {
	ctx := s.v.t.Context()
	for {
		batch := s.open
		for range 1 + s.rng.IntN(24) {
			batch = append(batch, s.fresh([]int{2160, 2160, 5232, 17520}[s.rng.IntN(4)]))
		}
		s.open = nil
		answers := 0
		for i, o := range c.Deposit(ctx, batch) {
			switch {
			case o.Err == nil: // its receipt was verified
				s.kept[sha256.Sum256(batch[i].Blob)] = true
				s.stored++
				answers++
			case errors.Is(o.Err, client.ErrQuota):
				s.full++
				answers++
			case c.Err() != nil:
				s.open = append(s.open, batch[i])
			default:
				s.v.t.Errorf("a deposit: %v", o.Err)
			}
		}
		s.v.answered(answers)
		if c.Err() != nil || len(s.kept) > 30+s.rng.IntN(60) && !s.take(ctx, c) {
			return
		}
	}
}

// take reads some messages and deletes them; false says that the relay is gone.
func (s *sender) take(ctx context.Context, c *client.Conn) bool {
	page, err := c.Poll(ctx, client.Poll{Limit: 1 + s.rng.IntN(60)})
	if err != nil {
		return false
	}
	s.v.answered(1)
	for _, e := range page.Entries {
		s.doubted[sha256.Sum256(e.Blob)] = true
	}
	if err := c.Delete(ctx, page.Entries); err != nil {
		return false
	}
	s.v.answered(1)
	for h := range s.doubted {
		delete(s.kept, h)
		s.gone[h] = true
	}
	clear(s.doubted)
	return c.Err() == nil
}

// check holds what is there against what was acknowledged.
func (s *sender) check(c *client.Conn) {
	t := s.v.t
	t.Helper()
	open := map[[32]byte]bool{}
	for _, d := range s.open {
		open[sha256.Sum256(d.Blob)] = true
	}
	seen := map[[32]byte]bool{}
	for p, more := (client.Poll{}), true; more; {
		page, err := c.Poll(t.Context(), p)
		if err != nil {
			t.Fatalf("reading a queue: %v", err)
		}
		for _, e := range page.Entries {
			h := sha256.Sum256(e.Blob)
			p.After = e.ID
			switch {
			case seen[h]:
				t.Error("a message is there twice")
			case s.gone[h]:
				t.Error("a message was deleted and is back")
			case !s.kept[h] && !open[h]:
				t.Error("a message is there that nobody left, or not as it was left")
			}
			seen[h] = true
		}
		more = page.More
	}
	for h := range s.kept {
		if seen[h] {
			continue
		}
		if !s.doubted[h] {
			t.Error("a deposit was acknowledged and is lost")
		}
		s.gone[h] = true
		delete(s.kept, h)
	}
	clear(s.doubted)
}

// diskUse returns the bytes of the files below a folder.
func diskUse(t testing.TB, dir string) (size int64) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return size
}

// The whole program, with its files on the disk, is killed under load again and
// again. What it acknowledged is there afterwards, whole and once, what was
// deleted is not, and its messages never take more of the disk than the quota and
// a hundredth. Its users fill it up to there.
func TestKilledRelayKeepsItsWord(t *testing.T) {
	const quota = 2_000_000
	kills := 100
	switch {
	case *long:
		kills = 1000
	case testing.Short():
		kills = 5
	}
	v := newVictim(t, "--quota", "2MB", "--rate", "unlimited", "--traffic", "unlimited")
	rng := mathrand.New(mathrand.NewPCG(5, 6))
	senders := []*sender{v.sender(1), v.sender(2), v.sender(3)}
	most := int64(0)
	life := func(answers int64) {
		conns := make([]*client.Conn, len(senders))
		for i, s := range senders {
			conns[i] = s.dial()
			s.check(conns[i])
		}
		if answers == 0 || t.Failed() {
			return
		}
		v.left.Store(answers)
		var using sync.WaitGroup
		for i, s := range senders {
			using.Go(func() { s.use(conns[i]) })
		}
		using.Wait()
		if err := v.cmd.Wait(); err == nil || v.cmd.ProcessState.Exited() {
			t.Fatalf("the relay ended by itself: %v: %s", err, &v.log)
		}
	}
	for round := range kills {
		life(1 + rng.Int64N(300))
		if most = max(most, diskUse(t, v.home.path("spool"))); most > quota+quota/100 {
			t.Errorf("%d bytes of messages on the disk, quota %d", most, quota)
		}
		if t.Failed() {
			t.Fatalf("after %d kills", round+1)
		}
		v.start()
	}
	life(0)
	stored, full := 0, 0
	for _, s := range senders {
		stored, full = stored+s.stored, full+s.full
	}
	t.Logf("%d kills, %d deposits acknowledged, %d answers QUOTA; at most %d bytes of messages, and %d of other files", kills, stored, full, most, diskUse(t, v.home.path("store")))
	if stored < kills || full == 0 && kills >= 100 || most < quota/2 && kills >= 100 {
		t.Errorf("%d deposits, %d answers QUOTA, %d bytes: the load was none", stored, full, most)
	}
}

// Strangers deposit by the ten thousand a second, and who has a capability still
// gets through. On loopback no limit of an address block helps: what they take
// here is the machine.
func TestHonestDepositsGetThroughAFlood(t *testing.T) {
	if !*long {
		t.Skip("takes the machine for half a minute: -long")
	}
	const strangers, rate, lasts = 16, 10_000, 20 * time.Second
	v := newVictim(t, "--quota", "100MB", "--rate", "unlimited", "--traffic", "unlimited")
	s := v.sender(1)
	c := s.dial()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var refused atomic.Int64
	var flood sync.WaitGroup
	for range strangers {
		x := v.sender(2)
		flood.Go(func() {
			line, err := client.Dial(ctx, x.host, v.at)
			if err != nil {
				t.Logf("a stranger gave up: %v", err)
				return
			}
			batch := make([]client.Deposit, 64)
			for i := range batch {
				batch[i] = x.fresh(2160) // for a queue that there is not
			}
			tick := time.NewTicker(time.Second * strangers * time.Duration(len(batch)) / rate)
			defer tick.Stop()
			for line.Err() == nil {
				for _, o := range line.Deposit(ctx, batch) {
					if errors.Is(o.Err, client.ErrRefused) || errors.Is(o.Err, client.ErrBusy) {
						refused.Add(1)
					}
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	end := time.NewTimer(lasts)
	begin, all, good := time.Now(), 0, 0
	tick := time.NewTicker(20 * time.Millisecond)
	for over := false; !over; {
		select {
		case <-end.C:
			over = true
		case <-tick.C:
			all++
			limit, done := context.WithTimeout(ctx, 10*time.Second)
			if o := c.Deposit(limit, []client.Deposit{s.fresh(2160)})[0]; o.Err == nil {
				good++
			} else if c.Err() != nil {
				c = s.dial()
			}
			done()
			if all%100 == 0 {
				page, err := c.Poll(ctx, client.Poll{})
				if err == nil {
					err = c.Delete(ctx, page.Entries)
				}
				if err != nil {
					t.Error(err)
				}
			}
		}
	}
	cancel()
	flood.Wait()
	t.Logf("%.0f deposits of strangers a second; %d of %d honest ones were kept", float64(refused.Load())/time.Since(begin).Seconds(), good, all)
	if all == 0 || good*100 < all*99 || refused.Load() == 0 {
		t.Errorf("%d of %d honest deposits were kept beside %d of strangers", good, all, refused.Load())
	}
	if used := diskUse(t, v.home.path("spool")); used > 101_000_000 {
		t.Errorf("%d bytes of messages on the disk", used)
	}
}

// A relay that another has dialled back gives out a link that needs no address
// from its operator.
func TestCheckByAnotherRelay(t *testing.T) {
	first := filepath.Join(t.TempDir(), "a")
	up(t, first, loopback...)
	at := parsed[statusShape](t, first, "status").BootstrapAddrs[0]
	dir := filepath.Join(t.TempDir(), "b")
	up(t, dir, append([]string{"--bootstrap", at}, loopback...)...)
	exits(t, exitError, dir, "link")
	end := time.Now().Add(patience)
	for {
		var c checkShape
		if err := (home{dir: dir}).ask(t.Context(), "GET", "/v1/check", nil, &c); err != nil {
			t.Fatal(err)
		}
		if c.Confirmed && c.Relays == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not reached: %+v", c)
		}
	}
	if out, _ := exits(t, exitOK, dir, "check"); strings.Count(out, "reached from outside") != 2 {
		t.Errorf("check prints\n%s", out)
	}
	l := parsed[linkShape](t, dir, "link")
	if back, err := relay.ParseLink(l.Link); err != nil || l.Reach != "confirmed" || len(back.Hints) != 2 {
		t.Errorf("link %+v, %v", l, err)
	}
}
