package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"

	"starling/node/store"
	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

var long = flag.Bool("long", false, "kill the relay 1,000 times instead of 20, ask for a million one-time keys, wait with 10,000 readers")

// TestMain lets the test binary be the relay that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("RELAY_TEST_DIR"); dir != "" {
		quota, err := strconv.ParseInt(os.Getenv("RELAY_TEST_QUOTA"), 10, 64)
		if err == nil {
			err = relayUntilEOF(dir, quota)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	os.Exit(m.Run())
}

const killQuota = 1 << 20

// relayUntilEOF is a relay in dir, with the key that is there, which ends in good
// order when its standard input does. It prints its address, and a line for each
// byte that it reads, when it has given its garbage back to the system.
func relayUntilEOF(dir string, quota int64) (err error) {
	raw, err := os.ReadFile(filepath.Join(dir, "key"))
	if err != nil {
		return err
	}
	key, err := crypto.UnmarshalPrivateKey(raw)
	if err != nil {
		return err
	}
	h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(),
		libp2p.DisableMetrics(), libp2p.Ping(false), libp2p.DisableIdentifyAddressDiscovery())
	if err != nil {
		return err
	}
	defer h.Close()
	db, err := store.Open(store.Config{Dir: filepath.Join(dir, "store")})
	if err != nil {
		return err
	}
	defer func() {
		if e := db.Close(); err == nil {
			err = e
		}
	}()
	s, err := New(Config{
		Host: h, Key: key, Store: db, Dir: filepath.Join(dir, "spool"), Quota: quota,
		Limits: Limits{WorkBits: 2, Peer: 16, Share: quota, Anybody: quota, Boxes: quota},
	})
	if err != nil {
		return err
	}
	defer func() {
		if e := s.Close(); err == nil {
			err = e
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer cancel()
		for b := make([]byte, 1); ; {
			if _, err := os.Stdin.Read(b); err != nil {
				return
			}
			debug.FreeOSMemory()
			fmt.Println("freed")
		}
	}()
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	for !speaks(h) {
		runtime.Gosched()
	}
	if _, err := fmt.Println(h.Addrs()[0]); err != nil {
		return err
	}
	return <-ran
}

// A victim is a relay in a process of its own, and what its clients know over all
// of its lives.
type victim struct {
	*world
	dir   string
	quota int64
	id    peer.ID
	host  host.Host // the clients'
	rng   *mathrand.Rand

	// Of one life.
	cmd    *exec.Cmd
	stderr bytes.Buffer
	stdin  io.WriteCloser
	stdout *bufio.Reader
	until  int // answers that the clients wait for before it is killed

	mu      sync.Mutex // guards what follows, and until
	users   []*user
	stored  int            // deposits acknowledged
	answers int            // in all
	keys    map[string]int // one-time keys that were put, and how often each was given
	pool    []byte
	box     *made
}

// A user is a depositor and the reader of its queue.
type user struct {
	v       *victim
	m       *made
	kept    map[[32]byte]bool               // acknowledged, and not known to be deleted
	doubted map[[32]byte]bool               // about to be deleted
	gone    map[[32]byte]bool               // deleted
	open    map[[32]byte]*wire.RelayRequest // not answered: to be repeated
}

func newVictim(t testing.TB, users int) *victim {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs SIGKILL")
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	self, _ := transportOf(id)
	v := &victim{
		world: &world{t: t, clock: &clock{time.Now()}, Service: &Service{self: self}},
		dir:   t.TempDir(), quota: killQuota, id: id, host: quiet(t), rng: mathrand.New(mathrand.NewPCG(3, 4)),
		keys: map[string]int{}, pool: blob(32),
	}
	if err := os.WriteFile(filepath.Join(v.dir, "key"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	v.box = v.makeable(box)
	for range users {
		v.users = append(v.users, &user{
			v: v, m: v.makeable(pairwise),
			kept: map[[32]byte]bool{}, doubted: map[[32]byte]bool{}, gone: map[[32]byte]bool{}, open: map[[32]byte]*wire.RelayRequest{},
		})
	}
	return v
}

// start starts the process and finds its address.
func (v *victim) start() {
	v.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		v.t.Fatal(err)
	}
	v.cmd = exec.Command(exe)
	v.cmd.Env = append(os.Environ(), "RELAY_TEST_DIR="+v.dir, fmt.Sprint("RELAY_TEST_QUOTA=", v.quota))
	v.stderr.Reset()
	v.clock.at = time.Now()
	v.cmd.Stderr = &v.stderr
	in, err := v.cmd.StdinPipe()
	if err != nil {
		v.t.Fatal(err)
	}
	v.stdin = in
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		v.t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	v.stdout = bufio.NewReader(out)
	line, err := v.stdout.ReadString('\n')
	if err != nil {
		_ = v.cmd.Process.Kill()
		v.t.Fatalf("the relay did not start: %v, %v: %s", err, v.cmd.Wait(), v.stderr.Bytes())
	}
	addr, err := ma.NewMultiaddr(strings.TrimSpace(line))
	if err != nil {
		v.t.Fatal(err)
	}
	_ = v.host.Network().ClosePeer(v.id) // what is left of its last life
	v.host.Peerstore().ClearAddrs(v.id)
	v.host.Peerstore().AddAddr(v.id, addr, peerstore.PermanentAddrTTL)
}

// stop ends the process in good order.
func (v *victim) stop() {
	v.t.Helper()
	_ = v.stdin.Close()
	if err := v.cmd.Wait(); err != nil {
		v.t.Fatalf("the relay ended with %v: %s", err, v.stderr.Bytes())
	}
}

// line opens a stream to the relay.
func (v *victim) line() *line { return v.lineFrom(v.host) }

func (v *victim) lineFrom(h host.Host) *line {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := stream.Open(ctx, h, v.id, protocol.StreamRelay)
	if err != nil {
		v.t.Fatal(err)
	}
	key, ok := transportOf(h.ID())
	if !ok {
		v.t.Fatal("a host without an Ed25519 key")
	}
	return &line{conn, &caller{v.world, &client{s: v.Service, key: key}}}
}

// ask sends requests ahead and returns their answers, nil for those that did not
// come: then the relay is gone.
func (v *victim) ask(l *line, reqs ...*wire.RelayRequest) (answers []*wire.RelayAnswer, on bool) {
	answers = make([]*wire.RelayAnswer, len(reqs))
	for _, req := range reqs {
		if err := l.Write(wire.Marshal(req)); err != nil {
			return answers, false
		}
	}
	for i, req := range reqs {
		b, err := l.Read(protocol.MaxFrame)
		if err != nil {
			return answers, false
		}
		if answers[i], err = relay.ParseAnswer(b, req); err != nil {
			v.t.Errorf("answer to %T: %v", req.Command, err)
			return answers, false
		}
		v.heard()
	}
	return answers, true
}

// heard counts an answer, and kills the relay in the midst of what follows it if
// that was the last of this life.
func (v *victim) heard() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.answers++
	if v.until--; v.until == 0 {
		if err := v.cmd.Process.Kill(); err != nil {
			v.t.Errorf("killing the relay: %v", err)
		}
	}
}

// use leaves and takes messages until the relay is gone. Deposits without an
// answer are repeated first.
func (u *user) use(l *line, rng *mathrand.Rand) {
	again := u.open
	u.open = map[[32]byte]*wire.RelayRequest{}
	var reqs []*wire.RelayRequest
	for _, req := range again {
		reqs = append(reqs, req)
	}
	for {
		for range 1 + rng.IntN(16) {
			reqs = append(reqs, u.v.deposit(u.m, []int{2160, 2160, 5232}[rng.IntN(3)]))
		}
		for _, req := range reqs {
			u.open[sha256.Sum256(req.GetDeposit().Blob)] = req
		}
		answers, on := u.v.ask(l, reqs...)
		for i, a := range answers {
			if a == nil {
				continue
			}
			h := sha256.Sum256(reqs[i].GetDeposit().Blob)
			delete(u.open, h)
			switch a.Status {
			case isOK:
				u.v.wantReceipt(reqs[i], a)
				u.kept[h] = true
				u.v.mu.Lock()
				u.v.stored++
				u.v.mu.Unlock()
			case isQuota:
			default:
				u.v.t.Errorf("deposit: %v", a.Status)
			}
		}
		if !on {
			return
		}
		reqs = nil
		if len(u.kept) > 40+rng.IntN(60) && !u.take(l, rng) {
			return
		}
		if rng.IntN(8) == 0 && !u.v.oneTimeKeys(l) {
			return
		}
	}
}

// take deletes some messages; false says that the relay is gone.
func (u *user) take(l *line, rng *mathrand.Rand) bool {
	polled, on := u.v.ask(l, pollRequest(uint32(1+rng.IntN(40))))
	if !on {
		return false
	}
	var ids []uint64
	for _, e := range polled[0].GetEntries().GetEntries() {
		ids = append(ids, e.Id)
		u.doubted[sha256.Sum256(e.Blob)] = true
	}
	if len(ids) == 0 {
		u.v.t.Errorf("a poll of a queue with %d messages: %v", len(u.kept), polled[0].Status)
		return true
	}
	deleted, on := u.v.ask(l, deletion(u.m.id, ids...))
	if deleted[0].GetStatus() == isOK {
		for h := range u.doubted {
			u.gone[h] = true
			delete(u.kept, h)
		}
		clear(u.doubted)
	}
	return on
}

// oneTimeKeys puts some and takes some.
func (v *victim) oneTimeKeys(l *line) bool {
	put := putKeys(v.box.id, v.pool, v.clock.at.Add(time.Hour).Unix(), 4)
	v.mu.Lock()
	for _, k := range put.GetPutKeys().Keys {
		v.keys[string(k)] = 0
	}
	v.mu.Unlock()
	take := v.takeByWork(v.box.id, v.pool, 6)
	answers, on := v.ask(l, put, take)
	if a := answers[1]; a.GetStatus() == isOK {
		v.mu.Lock()
		defer v.mu.Unlock()
		if n, known := v.keys[string(a.GetKey().Key)]; !known || n > 0 {
			v.t.Errorf("a one-time key that was given %d times before, or never put", n)
		}
		v.keys[string(a.GetKey().Key)]++
	}
	return on
}

// check holds what is there against what the user knows.
func (u *user) check(l *line) {
	t := u.v.t
	seen := map[[32]byte]bool{}
	req := pollRequest(protocol.MaxPoll)
	for more := true; more; {
		a := l.ask(t, req)
		if a.Status != isOK {
			t.Fatalf("poll: %v", a.Status)
		}
		for _, e := range a.GetEntries().Entries {
			h := sha256.Sum256(e.Blob)
			req.GetPoll().After = e.Id
			switch {
			case seen[h]:
				t.Errorf("entry %d is there twice", e.Id)
			case u.gone[h]:
				t.Errorf("entry %d was deleted and is back", e.Id)
			case !u.kept[h] && u.open[h] == nil:
				t.Errorf("entry %d is none that was deposited", e.Id)
			}
			seen[h] = true
		}
		more = a.GetEntries().More
	}
	for h := range u.kept {
		if seen[h] {
			continue
		}
		if !u.doubted[h] {
			t.Error("a deposit was acknowledged and is lost")
		}
		u.gone[h] = true
		delete(u.kept, h)
	}
	clear(u.doubted)
}

// live attaches or makes the queues, checks what is there, and uses the relay
// until it is killed or, with until 0, not at all.
func (v *victim) live(until int) {
	v.t.Helper()
	lines := make([]*line, len(v.users))
	for i, u := range v.users {
		l := v.line()
		lines[i] = l
		if a := l.ask(v.t, l.c.createRequest(u.m)); a.Status != isOK {
			v.t.Fatalf("making a queue: %v", a.Status)
		}
		u.check(l)
		if a := l.ask(v.t, l.c.createRequest(v.box)); a.Status != isOK {
			v.t.Fatalf("making the box: %v", a.Status)
		}
	}
	if until == 0 || v.t.Failed() {
		return
	}
	v.mu.Lock()
	v.until = until
	v.mu.Unlock()
	var wg sync.WaitGroup
	for i, u := range v.users {
		rng := mathrand.New(mathrand.NewPCG(v.rng.Uint64(), uint64(i)))
		wg.Go(func() { u.use(lines[i], rng) })
	}
	wg.Wait()
	if err := v.cmd.Wait(); err == nil || v.stderr.Len() > 0 {
		v.t.Fatalf("the relay ended by itself: %v: %s", err, v.stderr.Bytes())
	}
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

// A relay under load, a process with its files on the disk, is killed again and
// again. What it acknowledged is there afterwards, whole and once; what was
// deleted is not; no one-time key is given twice; a deposit without an answer may
// be repeated; and the messages never take more than the quota. The system
// survives, and its cache too: what a loss of power adds is for
// TestCrashAtEveryWriteBoundary.
func TestKilledRelayLosesNothing(t *testing.T) {
	rounds := 20
	if *long {
		rounds = 1000
	}
	v := newVictim(t, 4)
	var most int64
	for round := range rounds {
		v.start()
		v.live(1 + v.rng.IntN(400))
		size := diskUse(t, filepath.Join(v.dir, "spool"))
		if most = max(most, size); size > killQuota {
			t.Errorf("%d bytes of messages on the disk, quota %d", size, killQuota)
		}
		if t.Failed() {
			t.Fatalf("after %d kills", round+1)
		}
	}
	v.start()
	v.live(0)
	v.stop()
	given := 0
	for _, n := range v.keys {
		given += n
	}
	t.Logf("%d kills, %d answers, %d deposits acknowledged, %d of %d one-time keys given; at most %d bytes of messages, and %d of other files",
		rounds, v.answers, v.stored, given, len(v.keys), most, diskUse(t, filepath.Join(v.dir, "store")))
	if v.stored < rounds || given == 0 {
		t.Errorf("%d deposits and %d keys: the load was none", v.stored, given)
	}
}

// A relay whose disk is lost and whose key was saved is the same relay: its
// address book entry, its readers' queues and its senders' capabilities are good
// again as soon as the readers come. The store ID tells senders to deposit again
// what was not delivered.
func TestLostDiskWithSavedKey(t *testing.T) {
	v := newVictim(t, 1)
	u := v.users[0]
	v.start()
	l := v.line()
	l.ask(t, l.c.createRequest(u.m))
	before := l.ask(t, infoRequest).GetInfo().GetStore()
	reqs := []*wire.RelayRequest{v.deposit(u.m, 2160), v.deposit(u.m, 5232)}
	for _, req := range reqs {
		v.wantReceipt(req, l.ask(t, req))
	}
	v.stop()
	for _, lost := range []string{"store", "spool"} {
		if err := os.RemoveAll(filepath.Join(v.dir, lost)); err != nil {
			t.Fatal(err)
		}
		v.start()
		l = v.line()
		info := l.ask(t, infoRequest).GetInfo()
		if bytes.Equal(info.GetStore(), before) {
			t.Errorf("without its %s the relay has the same store ID", lost)
		}
		before = info.GetStore()
		if lost == "store" { // nobody deposits before the reader came
			if a := l.ask(t, reqs[0]); a.Status != isRefused {
				t.Errorf("deposit before the reader came: %v, want REFUSED", a.Status)
			}
		}
		if a := l.ask(t, l.c.createRequest(u.m)); a.Status != isOK || a.GetQueues().Queues[0].Messages != 0 {
			t.Errorf("the reader makes its queue again: %v", a)
		}
		for _, req := range reqs {
			v.wantReceipt(req, l.ask(t, req))
		}
		if got := l.ask(t, pollRequest(10)).GetEntries().GetEntries(); len(got) != len(reqs) {
			t.Errorf("%d entries after the senders came again, want %d", len(got), len(reqs))
		}
		v.stop()
	}
}
