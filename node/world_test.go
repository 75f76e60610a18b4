package node

import (
	"context"
	crand "crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"starling/dht"
	"starling/node/store"
	"starling/protocol/identity"
	"starling/protocol/ratchet"
)

var long = flag.Bool("long", false, "run campaigns at full length")

// patience is far beyond what anything here needs.
const patience = 5 * time.Minute

// A world is the people of one test.
type world struct {
	testing.TB
	ctx      context.Context
	tick     time.Duration // between two looks at what is in no journal
	patience time.Duration // with one thing

	mu      sync.Mutex // guards all below
	used    map[nonceUse]int
	sealed  map[ratchet.Observation]bool
	opened  int
	refused int
}

// A nonceUse is what must never be the same for two messages: the key and nonce
// of a message are derived from these and from secrets that they name.
type nonceUse struct {
	session [32]byte
	ratchet [32]byte
	n       uint32
	hedge   [24]byte
}

// newWorld returns an empty world. When the test is over, nothing may be left
// running, no key and nonce may have been used twice, nothing opened that was not
// sealed, and nothing refused may have changed a session.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, tick: 5 * time.Millisecond, patience: patience, used: map[nonceUse]int{}, sealed: map[ratchet.Observation]bool{}}
	t.Cleanup(func() { goleak.VerifyNone(t) })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	w.ctx = ctx
	t.Cleanup(func() {
		for _, times := range w.used {
			if times > 1 {
				t.Errorf("a key and nonce were used %d times", times)
			}
		}
	})
	return w
}

func (w *world) Sealed(o ratchet.Observation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.used[nonceUse{o.Session, [32]byte(o.Ratchet), o.N, o.Hedge}]++
	w.sealed[o] = true
}

func (w *world) Opened(o ratchet.Observation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opened++
	if !w.sealed[o] {
		w.Errorf("message %d of a chain opened, and nobody sealed it", o.N)
	}
}

func (w *world) Repeated() {}

func (w *world) Refused(before, after [32]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused++
	if before != after {
		w.Errorf("an envelope that was refused changed its session")
	}
}

// wantObserved checks how many envelopes opened and were refused so far.
func (w *world) wantObserved(opened, refused int) {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.opened != opened || w.refused != refused {
		w.Errorf("%d messages opened and %d envelopes were refused, want %d and %d", w.opened, w.refused, opened, refused)
	}
}

// A person is a node and what it takes to start it again.
type person struct {
	*Node // of now; nil while stopped
	w     *world
	name  string
	cfg   Config
	key   store.Key
	disk  *store.Disk // in memory, unless home is set
	home  string
	id    identity.Account
}

// Settings of a person, to be given to [world.person].
func onDisk(p *person) { p.home = filepath.Join(p.w.TempDir(), p.name) }

func listening(addrs ...string) func(*person) {
	return func(p *person) { p.cfg.Listen = addrs }
}

func quick(p *person) { p.cfg.Rand = quickRand{} }

// wrong makes a person's clock fast, or slow if d is negative.
func wrong(d time.Duration) func(*person) {
	return func(p *person) { p.cfg.Now = func() time.Time { return time.Now().Add(d) } }
}

func dhtClient(p *person) { p.cfg.DHT = dht.ModeClient }

func bootstrap(from *person) func(*person) {
	return func(p *person) { p.cfg.Bootstrap = from.Status().BootstrapAddrs }
}

// person opens a node with an account of its own.
func (w *world) person(name string, with ...func(*person)) *person {
	w.Helper()
	key, err := store.NewKey(crand.Reader)
	if err != nil {
		w.Fatal(err)
	}
	p := &person{w: w, name: name, key: key, disk: store.NewDisk(), cfg: Config{
		Name: name, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Local: true, DHT: dht.ModeServer, Observe: w,
		NoMDNS: true, NoPortMap: true, NoAutoNAT: true, NoHolePunch: true, NoRelayClient: true, NoAddressDiscovery: true,
	}}
	for _, f := range with {
		f(p)
	}
	w.Cleanup(p.stop)
	p.start()
	return p
}

func (p *person) db() *store.DB {
	p.w.Helper()
	var db *store.DB
	var err error
	if p.home != "" {
		db, err = store.Open(store.Config{Dir: p.home, Key: p.key, Now: p.cfg.Now})
	} else {
		db, err = store.OpenMemory(store.Config{Key: p.key, Now: p.cfg.Now}, p.disk)
	}
	if err != nil {
		p.w.Fatalf("opening the store of %s: %v", p.name, err)
	}
	return db
}

func (p *person) start() {
	p.w.Helper()
	cfg := p.cfg
	cfg.Store = p.db()
	n, err := Open(p.w.ctx, cfg)
	if err != nil {
		p.w.Fatalf("opening the node of %s: %v", p.name, err)
	}
	p.Node, p.id = n, n.account()
}

func (p *person) stop() {
	if p.Node == nil {
		return
	}
	if err := p.Close(); err != nil {
		p.w.Errorf("closing the node of %s: %v", p.name, err)
	}
	p.Node = nil
}

// restart is a clean end and a new start, on a new port.
func (p *person) restart() {
	p.w.Helper()
	p.stop()
	p.start()
}

// crash is the machine losing power, and a new start. Only in memory.
func (p *person) crash() {
	p.w.Helper()
	p.disk.Crash()
	_ = p.Close() // it cannot write any more
	p.Node = nil
	p.start()
}

// keepPort makes the next start listen where this one does.
func (p *person) keepPort() {
	p.cfg.Listen = nil
	for _, a := range p.host.Addrs() {
		p.cfg.Listen = append(p.cfg.Listen, a.String())
	}
}

// invite returns a link.
func (p *person) invite(public bool) string {
	p.w.Helper()
	inv, err := p.CreateInvite(p.w.ctx, public)
	if err != nil {
		p.w.Fatal(err)
	}
	return inv.Link
}

// add adds the account of a link under a name.
func (p *person) add(link, as string) Contact {
	p.w.Helper()
	c, err := p.AddContact(p.w.ctx, link, as)
	if err != nil {
		p.w.Fatalf("%s adds %s: %v", p.name, as, err)
	}
	return c
}

// contact returns a contact by name, whatever its state.
func (p *person) contact(name string) Contact {
	p.w.Helper()
	for _, requests := range []bool{false, true} {
		list, err := p.Contacts(p.w.ctx, requests)
		if err != nil {
			p.w.Fatal(err)
		}
		for _, c := range list {
			if c.Name == name {
				return c
			}
		}
	}
	p.w.Fatalf("%s has no contact %q", p.name, name)
	panic("unreachable")
}

// has reports whether there is such a contact or request.
func (p *person) has(name string) bool {
	p.w.Helper()
	var list []Contact
	for _, requests := range []bool{false, true} {
		l, err := p.Contacts(p.w.ctx, requests)
		if err != nil {
			p.w.Fatal(err)
		}
		list = append(list, l...)
	}
	return slices.ContainsFunc(list, func(c Contact) bool { return c.Name == name })
}

// meet makes two people contacts of each other, under their names.
func (p *person) meet(q *person) {
	p.w.Helper()
	q.add(p.invite(false), p.name)
	p.until(contactIs(q.name, "accepted"))
	q.until(contactIs(p.name, "accepted"))
}

// say queues a text and returns its ID.
func (p *person) say(to, text string) string {
	p.w.Helper()
	m, err := p.Send(p.w.ctx, to, text, nil)
	if err != nil {
		p.w.Fatalf("%s writes to %s: %v", p.name, to, err)
	}
	return m.ID
}

// tell sends a text and waits until it was delivered.
func (p *person) tell(q *person, text string) {
	p.w.Helper()
	p.delivered(p.say(q.name, text))
	q.heard(p.name, text)
}

// delivered waits until a message was.
func (p *person) delivered(id string) {
	p.w.Helper()
	m, err := p.WaitMessage(p.w.ctx, id, "delivered", p.w.patience)
	if err != nil || m.State != "delivered" {
		p.w.Fatalf("%s: message is %s, not delivered (%s), %v", p.name, m.State, m.Reason, err)
	}
}

// texts returns what a contact wrote, oldest first.
func (p *person) texts(from string) []string {
	p.w.Helper()
	list, err := p.History(p.w.ctx, from, historyMost, "")
	if err != nil {
		p.w.Fatal(err)
	}
	var texts []string
	for _, m := range list {
		if m.State == "received" && m.Kind == "text" {
			texts = append(texts, m.Text)
		}
	}
	return texts
}

// heard checks that a text is in the chat exactly once.
func (p *person) heard(from, text string) {
	p.w.Helper()
	n := 0
	for _, s := range p.texts(from) {
		if s == text {
			n++
		}
	}
	if n != 1 {
		p.w.Fatalf("%s has the text %q of %s %d times", p.name, text, from, n)
	}
}

// notices returns the lines that nobody wrote.
func (p *person) notices(chat string) []string {
	p.w.Helper()
	list, err := p.History(p.w.ctx, chat, historyMost, "")
	if err != nil {
		p.w.Fatal(err)
	}
	var texts []string
	for _, m := range list {
		if m.Kind == "notice" {
			texts = append(texts, m.Text)
		}
	}
	return texts
}

// until waits for an event, past ones included.
func (p *person) until(want func(Event) bool) Event { p.w.Helper(); return p.after(0, want) }

// after waits for an event with a number above since.
func (p *person) after(since uint64, want func(Event) bool) Event {
	p.w.Helper()
	found := errors.New("found")
	var got Event
	var seen []string
	ctx, cancel := context.WithTimeout(p.w.ctx, p.w.patience)
	defer cancel()
	err := p.Events(ctx, since, true, func(e Event) error {
		if want(e) {
			got = e
			return found
		}
		seen = append(seen, fmt.Sprintf("%s %s %s %.40q", e.Type, e.Chat, e.State, e.Text))
		return nil
	})
	if err != found {
		p.w.Fatalf("%s waits for an event: %v; there were: %s", p.name, err, strings.Join(seen, "; "))
	}
	return got
}

// now is the number of the newest event.
func (p *person) now() uint64 { return p.Status().Journal }

func contactIs(name, state string) func(Event) bool {
	return func(e Event) bool { return e.Type == "contact" && e.Chat == name && e.State == state }
}

func requestOf(name string) func(Event) bool {
	return func(e Event) bool { return e.Type == "request" && e.Chat == name }
}

func textOf(name, text string) func(Event) bool {
	return func(e Event) bool {
		return (e.Type == "message" || e.Type == "request") && e.Chat == name && e.State == "received" && e.Text == text
	}
}

// eventually waits for something that is in no journal.
func (w *world) eventually(what string, ok func() bool) {
	w.Helper()
	tick := time.NewTicker(w.tick)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(w.ctx, w.patience)
	defer cancel()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.Fatalf("waited for %s in vain", what)
		}
	}
}

// wantKind checks the kind of an error.
func wantKind(t testing.TB, err error, want Kind) {
	t.Helper()
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != want || e.Msg == "" {
		t.Fatalf("got %v, want an error of kind %v", err, want)
	}
}

// quickRand makes pauses short: they are the only reads of 8 bytes. Everything
// else is as random as ever.
type quickRand struct{}

func (quickRand) Read(b []byte) (int, error) {
	if len(b) == 8 {
		clear(b)
		b[0] = 1 // 1/256 of the longest pause
		return 8, nil
	}
	return crand.Read(b)
}

// A caller is a bare libp2p host.
type caller struct{ host.Host }

// caller returns a host with the transport key of seed, or a key of its own.
func (w *world) caller(seed []byte) caller {
	w.Helper()
	return w.callerAt(seed, "/ip4/127.0.0.1/tcp/0")
}

func (w *world) callerAt(seed []byte, addr string) caller {
	w.Helper()
	opts := []libp2p.Option{
		libp2p.ListenAddrStrings(addr), libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.DisableIdentifyAddressDiscovery(), libp2p.Ping(false),
	}
	if seed != nil {
		key, err := transportKey(seed)
		if err != nil {
			w.Fatal(err)
		}
		opts = append(opts, libp2p.Identity(key))
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = h.Close() })
	return caller{h}
}

// dial connects c to a person. On a busy machine a handshake may take longer than
// libp2p has patience.
func (c caller) dial(w *world, p *person) {
	w.Helper()
	to := peer.AddrInfo{ID: p.host.ID(), Addrs: p.host.Addrs()}
	var err error
	for range 20 {
		if err = c.Connect(network.WithForceDirectDial(w.ctx, "test"), to); err == nil { // without a back-off
			return
		}
	}
	w.Fatal(err)
}

// bare takes the hints from a link.
func (w *world) bare(link string) string {
	w.Helper()
	l, err := identity.ParseLink(link)
	if err != nil {
		w.Fatal(err)
	}
	l.Hints = nil
	return l.String()
}

// copyTree copies a folder.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
