package simulation_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"starling/node/outbox"
	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/ratchet"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// This file is the smallest world: two parties with real stores, sessions and
// outboxes, and between them a line that does what lines do, in virtual time
// and from a seed. There is no network stack, so that a hundred thousand seeds
// are a matter of minutes.
//
// A seed repeats exactly in a process that plays one seed at a time on one
// processor, because ML-KEM draws from a source that the whole process shares.
// TestPairs therefore runs a process for each processor.

var (
	pairSeeds = flag.Int("pairs", 300, "the number of seeds that TestPairs plays")
	pairFirst = flag.Int("pairfirst", 0, "the first of them")
	pairSeed  = flag.Int64("pairseed", -1, "the one seed that TestPairs plays instead, with a trace under -v")
	pairShard = flag.Int("pairshard", -1, "internal: the part of the seeds that this process plays")
	pairParts = flag.Int("pairparts", 1, "internal: into how many parts they are divided")
)

// regressions are seeds that found something, or that come close to it. They
// are played before all others. What a seed means changes with this file: look
// for others then, with the same story in their traces.
var regressions = []struct {
	seed uint64
	what string
}{
	{193, "a rollback that nobody noticed: spent positions are dropped three times, and the sender suspects its session"},
	{292, "after a rollback neither side opens what the other sends, and both renew"},
	{312, "two rollbacks, one of which takes a one-time key that is being used"},
	{1077, "a read receipt is on the line when the disk that wrote it is replaced by an old copy"},
	{1880, "two rollbacks within the hour: the second error may be acted on an hour after the first, and not earlier"},
	{79546, "the damage of a rollback shows eleven hours later, minutes before the next one, whose renewal has to wait"},
	{4885, "an acknowledgement is on the line when the disk that holds the text is replaced by an old copy"},
}

// promise is how long after the line has healed an accepted text may still be
// on its way. A peer can make a party renew its sessions once an hour (SPEC
// §8.3): where two rollbacks were, what the second broke may take so much
// longer, for the damage of the first may show as late as that of the second.
const promise = 10 * time.Minute

// An oracle is a promise that a world is held to.
type oracle string

const (
	lost      oracle = "lost"      // an accepted text did not arrive, was not confirmed in time, or is gone
	twice     oracle = "twice"     // a text was shown twice
	unordered oracle = "order"     // a text was shown before one that its sender wrote earlier
	reused    oracle = "nonce"     // two messages were sealed under one key and nonce
	forged    oracle = "forged"    // something was opened or shown that nobody sent
	polluted  oracle = "state"     // an envelope that was refused changed a session
	leftover  oracle = "outbox"    // an outbox or a send log has rows when nothing is on its way
	running   oracle = "goroutine" // something goes on after everything was closed
	broken    oracle = "error"     // a part returned an error that nothing explains
)

// A violation is a promise that was broken.
type violation struct {
	oracle oracle
	what   string
}

// A plant is a bug that is there on purpose, for an oracle to find.
type plant string

const (
	healthy      plant = ""
	plantForget  plant = "the receiver forgets what it opened and showed"
	plantHasty   plant = "an envelope leaves and its transaction is discarded"
	plantEarly   plant = "the receiver acknowledges before the commit"
	plantReverse plant = "the receiver opens a delivery from its end"
	plantStuck   plant = "the session is put back after sealing, and randomness stands still"
	plantGhost   plant = "the courier adds envelopes of a manager that nobody observes"
	plantHalf    plant = "the receiver refuses what it opened and keeps the session"
	plantOrphan  plant = "an acknowledgement leaves a row in the send log"
	plantMute    plant = "the courier says that it was not answered"
	plantLeak    plant = "a goroutine waits for ever"
)

// counts say what the seeds went through.
type counts struct {
	Seeds, Texts, Receipts, Unknown int // Unknown: sends of which nobody could say whether they were accepted

	Crashes, Boundaries, Restarts, Stillborn, Full, Rollbacks, Noticed, Rotations, Cuts, Jumps int // Stillborn: starts that failed

	Calls, Lost, Repeated, Late, Stale  int // of the line
	Openings, Crossed, OneTime, DayOnly int // sessions started; while the other side did; from which keys
	Opened, Duplicates, Errors, Dropped int // answers to envelopes
	Refused, Renewals, Unshown, Unsent  int // Renewals: sessions that replace one. Unshown and Unsent: what rollbacks took
}

func (c *counts) add(d counts) {
	a, b := c.fields(), d.fields()
	for i := range a {
		*a[i] += *b[i]
	}
}

func (c *counts) fields() []*int {
	return []*int{
		&c.Seeds, &c.Texts, &c.Receipts, &c.Unknown,
		&c.Crashes, &c.Boundaries, &c.Restarts, &c.Stillborn, &c.Full, &c.Rollbacks, &c.Noticed, &c.Rotations, &c.Cuts, &c.Jumps,
		&c.Calls, &c.Lost, &c.Repeated, &c.Late, &c.Stale,
		&c.Openings, &c.Crossed, &c.OneTime, &c.DayOnly,
		&c.Opened, &c.Duplicates, &c.Errors, &c.Dropped,
		&c.Refused, &c.Renewals, &c.Unshown, &c.Unsent,
	}
}

// A person is who a party is in every seed: keys, and a disk with the bundles
// of two weeks, since making them costs more than the rest of a seed.
type person struct {
	name     string
	key      *identity.DeviceKey
	account  identity.Account
	bytes    []byte // the manifest, signed
	manifest identity.Manifest
	store    store.Key
	disk     *store.Disk
	record   map[uint32][]byte // bundles by day
}

// epoch is when a bubble's time begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// people makes the two of them.
var people = sync.OnceValue(func() [2]*person {
	var both [2]*person
	for i, name := range []string{"Ada", "Bo"} {
		r := rand.NewChaCha8([32]byte{byte(i), 'p'})
		root := identity.NewAccountKey(must(identity.NewSecret(r)))
		device, dh := must(identity.NewSecret(r)), must(x25519.Generate(r))
		p := &person{name: name, account: root.Account(), key: identity.NewDeviceKey(device, dh), disk: store.NewDisk(), record: map[uint32][]byte{}}
		p.bytes = identity.SignManifest(root, 1, []identity.DeviceEntry{{Key: p.key.Device(), DH: dh.Public()}})
		p.manifest = must(identity.OpenManifest(p.bytes, p.account, epoch))
		p.store = must(store.NewKey(r))
		both[i] = p
	}
	for i, p := range both {
		r := rand.NewChaCha8([32]byte{byte(i), 'd'})
		db := must(store.OpenMemory(store.Config{Key: p.store, Rand: r}, p.disk))
		m := session.New(session.Config{Key: p.key, Account: p.account, Rand: r})
		if err := db.Update(func(tx *store.Tx) (err error) {
			first := prekey.DayOf(epoch) - 1 // for clocks that are slow
			for day := first; day <= first+protocol.DaysAhead; day++ {
				if p.record[day], err = m.DayBundle(tx, prekey.DayStart(first), day); err != nil {
					return err
				}
			}
			q := both[1-i]
			return store.Contacts.Put(tx, store.ContactKey(q.account), &store.Contact{
				Account: q.account[:], Name: q.name, State: store.Contact_ACCEPTED, Manifest: q.bytes,
			})
		}); err != nil {
			panic(err)
		}
		if err := db.Close(); err != nil {
			panic(err)
		}
	}
	return both
})

// A source is a party's randomness, which goes on through crashes and
// rollbacks.
type source struct {
	mu     sync.Mutex // guards what follows; never held across a wait
	r      *rand.ChaCha8
	frozen bool // plantStuck: it gives zeros
}

func (s *source) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen {
		clear(b)
		return len(b), nil
	}
	return s.r.Read(b)
}

func (s *source) freeze(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = on
}

// A pair is a world of two. Its main goroutine plays the seed's plan and alone
// starts and ends lives.
type pair struct {
	seed    uint64
	plant   plant
	verbose bool
	rng     *rand.Rand // of the main goroutine
	begin   time.Time
	parties [2]*party
	kicks   bool           // a new connection wakes the outboxes, as in the node
	dayOnly int            // percent of session starts that get the day's keys alone
	net     sync.WaitGroup // what is on the line
	fell    chan *party    // from a disk's writer to the main goroutine; has room for all that are planned at once

	texts map[envelope.ID]*text // the main goroutine's
	backs int                   // rollbacks; likewise

	mu         sync.Mutex // guards what follows; never held across a wait
	line       line
	cut        bool // nothing passes
	connected  bool
	preparing  [2]int // session starts that run
	sealed     map[ratchet.Observation][32]byte
	violations []violation
	trace      []string
	count      counts
}

// A line says what is done to those who talk over it.
type line struct {
	lose   int           // percent of requests, and of answers
	repeat int           // percent of calls of which a copy arrives as well
	stale  int           // percent of deliveries that are lost, and answered with what answers an earlier one
	slow   int           // percent of legs that take longer than anybody waits
	delay  time.Duration // of most legs, at most
}

// A party is a person in a pair, and what outlives its crashes.
type party struct {
	w    *pair
	i    int
	who  *person
	disk *store.Disk
	rand *source
	line *rand.Rand // what becomes of its calls; guarded by the pair's mutex
	live atomic.Pointer[life]
	up   time.Time     // when it starts again, if it is down
	skew time.Duration // how wrong its clock is
	copy *store.Disk   // an old copy of its disk, or nil
	aged bool          // it starts from an old copy, and knows it

	unheard int             // calls and answers on their way to it; guarded by the pair's mutex
	before  []*wire.Outcome // the answers to its call before; likewise
}

func (p *party) peer() *party { return p.w.parties[1-p.i] }

// now is what the party's clock shows.
func (p *party) now() time.Time { return time.Now().Add(p.skew) }

// A life is a party from a start to a crash.
type life struct {
	p      *party
	db     *store.DB
	m      *session.Manager
	ghost  *session.Manager // plantGhost
	o      *outbox.Outbox
	ctx    context.Context
	cancel context.CancelFunc
	parts  sync.WaitGroup // what runs on its database but for the outbox's workers
}

// A text is a message that a party was asked to send.
type text struct {
	id       envelope.ID
	from     int
	name     string // how the words begin
	words    string
	accepted bool
	unknown  bool // the party went down while it was asked
	gone     bool // and does not have it: it must not arrive
	lost     bool // its sender's disk was replaced by a copy from before
	unshown  bool // its recipient's was, after it was shown
	owed     bool // and its sender does not know that it was shown
}

func (w *pair) violate(o oracle, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violateLocked(o, format, args...)
}

func (w *pair) violateLocked(o oracle, format string, args ...any) {
	w.violations = append(w.violations, violation{o, fmt.Sprintf("%v after the start: ", time.Since(w.begin)) + fmt.Sprintf(format, args...)})
	w.logLocked("VIOLATION %s: "+format, append([]any{o}, args...)...)
}

func (w *pair) log(format string, args ...any) {
	if !w.verbose {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logLocked(format, args...)
}

func (w *pair) logLocked(format string, args ...any) {
	if w.verbose {
		w.trace = append(w.trace, fmt.Sprintf("%16v  ", time.Since(w.begin))+fmt.Sprintf(format, args...))
	}
}

func (w *pair) counted(n *int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*n++
}

// An eye is the oracle's view into one party's sessions.
type eye struct{ p *party }

func useOf(o ratchet.Observation) ratchet.Observation {
	o.Ciphertext = [32]byte{}
	return o
}

// Sealed implements session.Observer.
func (e eye) Sealed(o ratchet.Observation) {
	w := e.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, used := w.sealed[useOf(o)]; used {
		w.violateLocked(reused, "%s sealed two messages under one key and nonce, at position %d", e.p.who.name, o.N)
	}
	w.sealed[useOf(o)] = o.Ciphertext
}

// Opened implements session.Observer.
func (e eye) Opened(o ratchet.Observation) {
	w := e.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count.Opened++
	if sum, sent := w.sealed[useOf(o)]; !sent || sum != o.Ciphertext {
		w.violateLocked(forged, "%s opened a message that nobody sealed, at position %d", e.p.who.name, o.N)
	}
}

// Refused implements session.Observer.
func (e eye) Repeated() {}

func (e eye) Refused(before, after [32]byte) {
	w := e.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count.Refused++
	if before != after {
		w.violateLocked(polluted, "%s refused an envelope, and its session changed", e.p.who.name)
	}
}

// start begins a life on the party's disk. If it loses power meanwhile, or is
// full, there is another attempt later.
func (p *party) start() {
	w := p.w
	l := &life{p: p}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	p.up = time.Time{}
	var err error
	l.db, err = store.OpenMemory(store.Config{Key: p.who.store, Rand: p.rand, Now: p.now, EraseEvery: eraseEvery}, p.disk)
	if err != nil {
		w.log("%s does not start: %v", p.who.name, err)
		w.retry(p, err)
		return
	}
	l.m = session.New(session.Config{Key: p.who.key, Account: p.who.account, Rand: p.rand, Observe: eye{p}})
	if w.plant == plantGhost {
		l.ghost = session.New(session.Config{Key: p.who.key, Account: p.who.account, Rand: p.rand})
	}
	if p.aged || l.db.RolledBack() {
		w.counted(&w.count.Noticed)
		w.log("%s notices that its store went back", p.who.name)
		if err := l.renewAll(); err != nil {
			w.log("%s does not renew its sessions: %v", p.who.name, err)
			_ = l.db.Close()
			w.retry(p, err)
			return
		}
		p.aged = false
	}
	w.log("%s starts", p.who.name)
	l.o = outbox.New(outbox.Config{Store: l.db, Account: p.who.account, Sealer: sealer{l.m, l}, Courier: courier{l}, Rand: p.rand, Now: p.now})
	l.parts.Go(func() {
		if err := l.o.Run(l.ctx); err != nil && !harmless(err) {
			w.violate(broken, "the outbox of %s: %v", p.who.name, err)
		}
	})
	p.live.Store(l)
	synctest.Wait()
	p.resolve(l)
}

// harmless reports whether an error is that of a disk on which faults are
// played: it lost power, or is full.
func harmless(err error) bool {
	return errors.Is(err, store.ErrClosed) || errors.Is(err, store.ErrReopen) || errors.Is(err, store.ErrFull)
}

// retry has p start again after a failure.
func (w *pair) retry(p *party, err error) {
	if !harmless(err) {
		w.violate(broken, "starting %s: %v", p.who.name, err)
	}
	w.count.Stillborn++
	p.up = time.Now().Add(w.upTo(10 * time.Second))
}

// renewAll does what the node does after a rollback.
func (l *life) renewAll() error {
	for more := true; more; {
		if err := l.db.Update(func(tx *store.Tx) (err error) {
			more, err = l.m.ArchiveAll(tx, l.p.now())
			return err
		}); err != nil {
			return err
		}
	}
	return l.db.Update(func(tx *store.Tx) error { return tx.Recovered() })
}

// resolve finds out what became of texts that were being accepted when the
// party went down. Its user may ask again, under the same ID.
func (p *party) resolve(l *life) {
	w := p.w
	var open []*text
	for _, t := range w.texts {
		if t.unknown && t.from == p.i {
			open = append(open, t)
		}
	}
	if len(open) == 0 {
		return
	}
	slices.SortFunc(open, func(a, b *text) int { return strings.Compare(a.name, b.name) })
	c := w.chat(p, l.db)
	for _, t := range open {
		t.unknown = false
		if _, kept := c.own[t.id]; kept {
			t.accepted = true
			w.log("%s has %q after all", p.who.name, t.name)
			continue
		}
		if t.gone = !t.lost; w.rng.IntN(2) == 0 && t.gone {
			t.gone = false
			p.say(t)
		}
	}
}

// stop ends a life: by loss of power, or as its user would.
func (p *party) stop(crash bool) {
	l := p.live.Swap(nil)
	if crash {
		p.disk.Crash()
	}
	p.w.mu.Lock()
	p.w.connected = false
	p.w.mu.Unlock()
	if l == nil {
		return
	}
	l.cancel()
	l.parts.Wait()
	if err := l.db.Close(); err != nil && !crash {
		p.w.violate(broken, "closing the store of %s: %v", p.who.name, err)
	}
}

// A sealer is the manager, and the place of two planted bugs.
type sealer struct {
	*session.Manager
	l *life
}

func (s sealer) SealOutgoing(tx *store.Tx, now time.Time, peer identity.Account, out *store.Outgoing) error {
	if s.l.p.w.plant != plantStuck {
		return s.Manager.SealOutgoing(tx, now, peer, out)
	}
	rows := map[string]*store.Session{}
	for r, err := range store.Sessions.Scan(tx, store.SessionsOf(peer), nil) {
		if err != nil {
			return err
		}
		rows[string(r.Key)] = r.Value
	}
	s.l.p.rand.freeze(true)
	err := s.Manager.SealOutgoing(tx, now, peer, out)
	s.l.p.rand.freeze(false)
	for k, row := range rows {
		err = errors.Join(err, store.Sessions.Put(tx, store.RowKey(k), row))
	}
	return err
}

func (s sealer) Acknowledged(tx *store.Tx, now time.Time, id [32]byte) error {
	if s.l.p.w.plant == plantOrphan {
		a := s.l.p.peer().who.account
		if err := store.Unacked.Put(tx, store.UnackedKey(id), &store.Unacknowledged{Account: a[:], Order: 1}); err != nil {
			return err
		}
	}
	return s.Manager.Acknowledged(tx, now, id)
}

// A fate is what the line does with one copy of a call.
type fate struct {
	there, back         time.Duration
	lostThere, lostBack bool
	stale               bool
}

// fates draws what becomes of a call, and how long its caller waits.
func (w *pair) fates(p *party) (copies []fate, patience time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count.Calls++
	r := p.line
	odds := func(percent int) bool { return r.IntN(100) < percent }
	leg := func() time.Duration {
		if odds(w.line.slow) {
			return time.Duration(r.Int64N(int64(time.Minute)))
		}
		return time.Millisecond + time.Duration(r.Int64N(int64(w.line.delay)))
	}
	n := 1
	for n < 4 && odds(w.line.repeat) {
		n++
		w.count.Repeated++
	}
	for range n {
		copies = append(copies, fate{leg(), leg(), odds(w.line.lose), odds(w.line.lose), odds(w.line.stale)})
	}
	return copies, 5*time.Second + time.Duration(r.Int64N(int64(25*time.Second)))
}

var errLine = errors.New("the line is silent")

// call asks the peer of p, as often as the line repeats it, and returns the
// answer that comes first. With alone, who answers is not the peer itself, and
// ask gets no life.
func call[T any](ctx context.Context, p *party, alone bool, ask func(*life, fate) (T, error)) (answer T, err error) {
	w := p.w
	copies, patience := w.fates(p)
	answers := make(chan T, len(copies)) // the line sends, one a copy; nobody closes
	for _, f := range copies {
		if f.lostThere {
			w.counted(&w.count.Lost)
			continue
		}
		w.onWay(p.peer(), 1)
		w.net.Go(func() {
			time.Sleep(f.there)
			w.onWay(p.peer(), -1)
			l := p.peer().live.Load()
			if !w.pass() || l == nil && !alone {
				return
			}
			if !alone {
				w.connect(p)
			}
			a, err := ask(l, f)
			if err != nil {
				return
			}
			if f.lostBack {
				w.counted(&w.count.Lost)
				return
			}
			w.onWay(p, 1)
			time.Sleep(f.back)
			if w.pass() {
				answers <- a
			}
			w.onWay(p, -1)
		})
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case answer = <-answers:
		return answer, nil
	case <-timer.C:
		w.counted(&w.count.Late)
		return answer, errLine
	case <-ctx.Done():
		return answer, ctx.Err()
	}
}

func (w *pair) pass() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.cut
}

func (w *pair) onWay(p *party, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p.unheard += n
}

// connect wakes both outboxes soon if the two had no connection, as
// identification does in the node. The call is one of p.
func (w *pair) connect(p *party) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wake := w.kicks && !w.connected
	w.connected = true
	if !wake {
		return
	}
	for _, q := range w.parties {
		d := time.Duration(p.line.Int64N(int64(50 * time.Millisecond)))
		w.net.Go(func() {
			time.Sleep(d)
			if l := q.live.Load(); l != nil {
				l.o.Kick(q.peer().who.account)
			}
		})
	}
}

// A courier is the line as an outbox sees it.
type courier struct{ l *life }

// bundles are what a session is started from; oneTime may be nil.
type bundles struct{ day, oneTime []byte }

// Prepare implements outbox.Courier as the node does.
func (c courier) Prepare(ctx context.Context, _ identity.Account) error {
	p := c.l.p
	w, q := p.w, p.peer()
	w.mu.Lock()
	alone := p.line.IntN(100) < w.dayOnly
	w.preparing[p.i]++
	if w.preparing[q.i] > 0 {
		w.count.Crossed++
	}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.preparing[p.i]--
	}()
	b, err := call(ctx, p, alone, func(l *life, _ fate) (bundles, error) {
		if alone {
			return bundles{day: q.who.record[prekey.DayOf(q.now())]}, nil
		}
		return l.mint()
	})
	if err != nil {
		return err
	}
	now := p.now()
	a, d := q.who.account, q.who.key.Device()
	day, err := prekey.OpenBundle(b.day, a, d, wire.Role_ROLE_DAY, now)
	if err != nil {
		return err
	}
	var oneTime *prekey.Bundle
	if b.oneTime != nil {
		if oneTime, err = prekey.OpenBundle(b.oneTime, a, d, wire.Role_ROLE_ONE_TIME, now); err != nil {
			return err
		}
	}
	intro := prekey.Introduction{Manifest: p.who.bytes, Profile: identity.Profile{Name: p.who.name}}
	renewal := false
	err = c.l.db.Update(func(tx *store.Tx) error {
		contact, err := store.Contacts.Get(tx, store.ContactKey(a))
		if err != nil {
			return err
		}
		renewal = len(contact.Replaces) > 0
		return c.l.m.Start(tx, now, q.who.manifest, d, day, oneTime, intro, nil)
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count.Openings++
	if renewal {
		w.count.Renewals++
	}
	if oneTime != nil {
		w.count.OneTime++
	} else {
		w.count.DayOnly++
	}
	w.logLocked("%s opens a session (one-time key: %t, renewal: %t)", p.who.name, oneTime != nil, renewal)
	return nil
}

// mint answers a request for a one-time key.
func (l *life) mint() (b bundles, err error) {
	now := l.p.now()
	err = l.db.Update(func(tx *store.Tx) (err error) {
		if b.day, err = l.m.DayBundle(tx, now, prekey.DayOf(now)); err != nil {
			return err
		}
		b.oneTime, err = l.m.MintOneTime(tx, now)
		if errors.Is(err, session.ErrBusy) {
			return nil
		}
		return err
	})
	return b, err
}

// Deliver implements outbox.Courier as the node does.
func (c courier) Deliver(ctx context.Context, _ identity.Account, envelopes [][]byte) ([]*wire.Outcome, error) {
	p := c.l.p
	w := p.w
	sent, before := len(envelopes), w.old(p)
	if w.plant == plantGhost {
		if e := c.l.invent(); e != nil {
			envelopes = append([][]byte{e}, envelopes...)
		}
	}
	w.log("%s delivers %d", p.who.name, sent)
	outcomes, err := call(ctx, p, false, func(l *life, f fate) ([]*wire.Outcome, error) {
		if old := w.old(p); f.stale && old != nil {
			return old, nil
		}
		outcomes, err := l.receiveAll(envelopes)
		if err != nil {
			return nil, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		p.before = outcomes
		return outcomes, nil
	})
	if err != nil {
		w.log("%s is not answered", p.who.name)
		return nil, err
	}
	outcomes = outcomes[len(outcomes)-min(len(outcomes), sent):]
	w.log("%s is answered %s", p.who.name, brief(outcomes))
	if slices.Equal(outcomes, before) {
		w.counted(&w.count.Stale)
	}
	if len(outcomes) != sent || w.plant == plantMute {
		return nil, errLine
	}
	return outcomes, nil
}

// old returns the answers to an earlier delivery of p, nil if there are none.
func (w *pair) old(p *party) []*wire.Outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	return p.before
}

// invent seals a text that nobody wrote.
func (l *life) invent() (e []byte) {
	words, now := "boo", l.p.now()
	c := envelope.Content{Text: &words, Sent: now, Expires: now.Add(time.Hour), Seq: 1}
	_, _ = l.p.rand.Read(c.ID[:])
	_ = l.db.Update(func(tx *store.Tx) error {
		s, err := l.ghost.Seal(tx, now, l.p.peer().who.account, must(envelope.MarshalContent(&c)))
		e = s.Envelope
		return err
	})
	return e
}

func brief(outcomes []*wire.Outcome) string {
	var s []string
	for _, o := range outcomes {
		name := strings.TrimPrefix(o.Status.String(), "STATUS_")
		if o.Error != nil {
			name += " " + strings.TrimPrefix(o.Error.Reason.String(), "REASON_")
		}
		s = append(s, name)
	}
	return strings.Join(s, ", ")
}

// Reasons for which a transaction is discarded.
var (
	errDrop  = errors.New("dropped")
	errEarly = errors.New("planted: acknowledged before the commit")
)

// receiveAll takes a delivery as the node does: in order, up to the first
// envelope that does not open.
func (l *life) receiveAll(envelopes [][]byte) ([]*wire.Outcome, error) {
	if l.p.w.plant == plantReverse {
		envelopes = slices.Clone(envelopes)
		slices.Reverse(envelopes)
	}
	outcomes := make([]*wire.Outcome, 0, len(envelopes))
	all := func(tx *store.Tx) error {
		outcomes = outcomes[:0]
		for _, e := range envelopes {
			o, opens, err := l.receive(tx, e)
			if err != nil {
				return err
			}
			outcomes = append(outcomes, o)
			if !opens {
				for len(outcomes) < len(envelopes) {
					outcomes = append(outcomes, &wire.Outcome{Status: wire.Status_STATUS_BUSY})
				}
			}
			if len(outcomes) == len(envelopes) {
				break
			}
		}
		if l.p.w.plant == plantEarly {
			return errEarly
		}
		return nil
	}
	err := l.db.Update(all)
	if errors.Is(err, errEarly) {
		early := slices.Clone(outcomes)
		l.parts.Go(func() {
			select {
			case <-time.After(2 * time.Second):
			case <-l.ctx.Done():
			}
			_ = l.db.Update(func(tx *store.Tx) error { _ = all(tx); return nil })
		})
		return early, nil
	}
	if l.p.w.plant == plantReverse {
		slices.Reverse(outcomes)
	}
	return outcomes, err
}

// receive opens one envelope, and commits all that follows from it, or nothing.
func (l *life) receive(tx *store.Tx, e []byte) (outcome *wire.Outcome, opens bool, err error) {
	p := l.p
	w, q := p.w, p.peer().who
	try := tx.Try
	half := w.plant == plantHalf && e[len(e)-1]%4 == 0
	if half {
		try = func(fn func(*store.Tx) error) error { return fn(tx) }
	}
	outcome = &wire.Outcome{Status: wire.Status_STATUS_DROPPED}
	before := tx.Digest()
	err = try(func(tx *store.Tx) error {
		now := p.now()
		o, err := l.m.Open(tx, now, &q.account, e)
		if again, ok := errors.AsType[*session.Duplicate](err); ok {
			w.counted(&w.count.Duplicates)
			o = session.Opened{Peer: again.Peer, Ack: again.Ack}
		} else if err != nil {
			return err
		}
		if half && o.Content != nil {
			return errDrop
		}
		if o.Content != nil {
			if err := l.take(tx, now, o.Content); err != nil {
				return err
			}
		}
		outcome.Status, outcome.Ack = wire.Status_STATUS_DELIVERED, o.Ack[:]
		if w.plant == plantForget {
			return l.forget(tx)
		}
		return nil
	})
	if err != nil {
		(eye{p}).Refused(before, tx.Digest())
	}
	bad, undecryptable := errors.AsType[*session.Undecryptable](err)
	switch {
	case err == nil:
		return outcome, true, nil
	case undecryptable:
		w.counted(&w.count.Errors)
		return &wire.Outcome{Status: wire.Status_STATUS_ERROR, Error: bad.Answer}, false, nil
	case errors.Is(err, session.ErrDrop):
		w.counted(&w.count.Dropped)
		return outcome, false, nil
	case errors.Is(err, errDrop):
		return outcome, true, nil
	}
	return nil, false, err
}

// take acts on a content.
func (l *life) take(tx *store.Tx, now time.Time, b []byte) error {
	p := l.p
	w, from := p.w, p.peer().who.account
	c, err := envelope.ParseContent(b)
	if err != nil {
		w.violate(forged, "%s opened a content that does not parse: %v", p.who.name, err)
		return nil
	}
	key := store.SeenKey(from, c.ID)
	if seen, err := store.SeenIDs.Has(tx, key); err != nil || seen {
		return err
	}
	if err := store.SeenIDs.Put(tx, key, &store.Seen{Dies: now.Add(protocol.DedupeLife).UnixMilli()}); err != nil {
		return err
	}
	if c.Receipt != nil {
		return l.o.Receipt(tx, from, c.Receipt)
	}
	if !now.Before(c.Expires) {
		return errDrop
	}
	if w.verbose {
		words, _, _ := strings.Cut(*c.Text, " and")
		tx.OnCommit(func() { w.log("%s is shown %q", p.who.name, words) })
	}
	_, err = outbox.Append(tx, from, &store.Entry{Id: c.ID[:], From: from[:], Text: *c.Text, State: store.Entry_RECEIVED})
	return err
}

// forget is plantForget.
func (l *life) forget(tx *store.Tx) error {
	for r := range store.SeenIDs.Scan(tx, nil, nil) {
		if err := store.SeenIDs.Delete(tx, r.Key); err != nil {
			return err
		}
	}
	for r := range store.ReceivedEnvelopes.Scan(tx, nil, nil) {
		if err := store.ReceivedEnvelopes.Delete(tx, r.Key); err != nil {
			return err
		}
	}
	for r := range store.Sessions.Scan(tx, nil, nil) {
		if err := store.Sessions.Delete(tx, r.Key); err != nil {
			return err
		}
	}
	return nil
}

// say asks p to send t.
func (p *party) say(t *text) {
	w, l := p.w, p.live.Load()
	if l == nil {
		return
	}
	w.texts[t.id] = t
	w.counted(&w.count.Texts)
	w.log("%s sends %q", p.who.name, t.name)
	peer := p.peer()
	hasty := w.plant == plantHasty && t.id[0]%4 == 0
	var early []byte
	err := l.db.Update(func(tx *store.Tx) error {
		c := &envelope.Content{ID: t.id, Text: &t.words}
		if _, _, err := l.o.Enqueue(tx, p.now(), peer.who.account, c); err != nil || !hasty {
			return err
		}
		for r, err := range store.Outbox.ScanBack(tx, store.OutboxOf(peer.who.account), nil) {
			if err != nil {
				return err
			}
			early = r.Value.Envelope
			break
		}
		return store.ErrClosed
	})
	if q := peer.live.Load(); early != nil && q != nil {
		_, _ = q.receiveAll([][]byte{early})
	}
	switch {
	case err == nil:
		t.accepted = true
	case errors.Is(err, store.ErrFull):
		t.gone = true
	case harmless(err):
		t.unknown = true
		w.counted(&w.count.Unknown)
	default:
		w.violate(broken, "%s cannot send: %v", p.who.name, err)
	}
	if err != nil {
		w.log("%s is not told that it sent: %v", p.who.name, err)
	}
}

// sayNext asks p to send the next text.
func (w *pair) sayNext(p *party) {
	t := &text{from: p.i, name: fmt.Sprintf("%s %02d", p.who.name, len(w.texts))}
	t.words = t.name
	if w.rng.IntN(16) == 0 {
		t.words += strings.Repeat(" and so on", 200)
	}
	_, _ = p.rand.Read(t.id[:])
	p.say(t)
}

// read has p tell its peer what it read lately.
func (p *party) read() {
	l := p.live.Load()
	if l == nil {
		return
	}
	w := p.w
	c := w.chat(p, l.db)
	if len(c.shown) == 0 {
		return
	}
	r := &envelope.Receipt{Read: c.shown[max(0, len(c.shown)-3):]}
	content := &envelope.Content{Receipt: r}
	_, _ = p.rand.Read(content.ID[:])
	w.counted(&w.count.Receipts)
	w.log("%s sends a receipt for %d", p.who.name, len(r.Read))
	err := l.db.Update(func(tx *store.Tx) error {
		_, _, err := l.o.Enqueue(tx, p.now(), p.peer().who.account, content)
		return err
	})
	if err != nil && !harmless(err) {
		w.violate(broken, "%s cannot send a receipt: %v", p.who.name, err)
	}
}

// A chat is one side's history.
type chat struct {
	shown []envelope.ID // in order
	order []envelope.ID // own, in order
	own   map[envelope.ID]store.Entry_State
	words map[envelope.ID]string
}

func (c *chat) confirmed(id envelope.ID) bool {
	s := c.own[id]
	return s == store.Entry_DELIVERED || s == store.Entry_READ
}

// chat reads the history of p.
func (w *pair) chat(p *party, db *store.DB) *chat {
	c := &chat{own: map[envelope.ID]store.Entry_State{}, words: map[envelope.ID]string{}}
	err := db.View(func(tx *store.Tx) error {
		for r, err := range store.History.Scan(tx, store.HistoryOf(p.peer().who.account), nil) {
			if err != nil {
				return err
			}
			id := envelope.ID(r.Value.Id)
			c.words[id] = r.Value.Text
			if r.Value.State == store.Entry_RECEIVED {
				c.shown = append(c.shown, id)
			} else {
				c.order = append(c.order, id)
				c.own[id] = r.Value.State
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrClosed) {
		w.violate(broken, "reading the history of %s: %v", p.who.name, err)
	}
	return c
}

// kept reads what is durable on a disk of p, and leaves it as it is.
func (w *pair) kept(p *party, d *store.Disk) *chat {
	db, err := store.OpenMemory(store.Config{Key: p.who.store, Rand: p.rand}, d.Clone())
	if err != nil {
		w.violate(broken, "reading a disk of %s: %v", p.who.name, err)
		return &chat{}
	}
	c := w.chat(p, db)
	if err := db.Close(); err != nil {
		w.violate(broken, "closing a copy of %s: %v", p.who.name, err)
	}
	return c
}

// rollback replaces the disk of p, which is down, by its old copy, and notes
// what only the lost one knew:
//
//   - a text that p accepted since is promised no more; it may have arrived, or
//     arrive, but not twice, and nothing is said about its place;
//   - a text that p was shown since is gone from its history. It must appear
//     again if its sender was not told that it arrived, and otherwise may,
//     wherever.
func (p *party) rollback() {
	w, q := p.w, p.peer()
	was, is, theirs := w.kept(p, p.disk), w.kept(p, p.copy), w.kept(q, q.disk)
	w.mu.Lock()
	told := q.unheard > 0 // an acknowledgement, or a receipt
	q.before = nil        // nor does the line tell what only that disk knew
	w.mu.Unlock()
	for _, id := range was.order {
		if _, still := is.own[id]; !still {
			t := w.texts[id]
			t.accepted, t.unknown, t.lost = false, false, true
			w.count.Unsent++
		}
	}
	for _, id := range was.shown {
		if t := w.texts[id]; t != nil && !slices.Contains(is.shown, id) {
			t.unshown, t.owed = true, !told && !theirs.confirmed(id)
			w.count.Unshown++
		}
	}
	p.disk = p.copy.Clone()
}

// eraseEvery is the erase key's life while upkeep runs.
const eraseEvery = 20 * time.Second

// upkeep runs the store's own work for a while, in which the erase key is
// replaced.
func (l *life) upkeep() {
	l.parts.Go(func() {
		ctx, cancel := context.WithTimeout(l.ctx, eraseEvery+time.Second)
		defer cancel()
		if err := l.db.Run(ctx); err != nil && !harmless(err) {
			l.p.w.violate(broken, "the store of %s: %v", l.p.who.name, err)
		}
	})
}

// wait lets time pass. Parties that lose power at a write boundary meanwhile
// go down, and those that are due come up.
func (w *pair) wait(d time.Duration) {
	end := time.Now().Add(d)
	for {
		now, next := time.Now(), end
		for _, p := range w.parties {
			if p.up.IsZero() {
				continue
			}
			if !p.up.After(now) {
				p.start()
			} else if p.up.Before(next) {
				next = p.up
			}
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case p := <-w.fell:
			w.lostPower(p)
		case <-timer.C:
		}
		timer.Stop()
		synctest.Wait()
		if !time.Now().Before(end) && len(w.fell) == 0 {
			return
		}
	}
}

// lostPower ends a life whose disk lost power at a write boundary.
func (w *pair) lostPower(p *party) {
	w.count.Boundaries++
	l := p.live.Load()
	if l == nil || l.db.View(func(*store.Tx) error { return nil }) == nil {
		return // it happened to the life before, or to one that did not begin
	}
	w.log("%s loses power at a write boundary", p.who.name)
	p.stop(true)
	p.up = time.Now().Add(w.upTo(time.Minute))
}

func (w *pair) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d))) }

// gap draws a pause between two events: many cross, some do not.
func (w *pair) gap() time.Duration {
	switch n := w.rng.IntN(10); {
	case n < 2:
		return 0
	case n < 5:
		return w.upTo(300 * time.Millisecond)
	case n < 8:
		return w.upTo(10 * time.Second)
	default:
		return w.upTo(3 * time.Minute)
	}
}

// play plays the seed's plan until the line heals.
func (w *pair) play() {
	r := w.rng
	sends := 1 + r.IntN(6)
	if r.IntN(8) == 0 {
		sends = 8 + r.IntN(13)
	}
	var plan []func(*party)
	both := func(p *party) {
		w.sayNext(p)
		synctest.Wait()
		w.sayNext(p.peer())
	}
	for range sends {
		switch r.IntN(8) {
		case 0:
			plan = append(plan, both)
		case 1:
			plan = append(plan, (*party).read)
			plan = append(plan, w.sayNext)
		default:
			plan = append(plan, w.sayNext)
		}
	}
	faults := []func(*party){w.crash, w.boundary, w.boundary, w.boundary, w.restart, w.rotate, w.fill, w.partition, w.partition, w.jump}
	for range r.IntN(7) {
		plan = append(plan, faults[r.IntN(len(faults))])
	}
	r.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	if r.IntN(8) == 0 { // one rollback, and now and then a second
		for range 6 {
			plan = append(plan, w.sayNext)
		}
		for range 1 + r.IntN(5)/4 {
			p, noticed := w.parties[r.IntN(2)], r.IntN(2) == 0
			i := r.IntN(len(plan) / 2)
			j := i + r.IntN(len(plan)-i)
			plan = slices.Insert(plan, j, func(*party) { w.putBack(p, noticed) })
			plan = slices.Insert(plan, i, func(*party) {
				p.copy = p.disk.Clone()
				w.log("the disk of %s is copied", p.who.name)
			})
		}
	}
	if r.IntN(4) == 0 {
		plan = slices.Insert(plan, 0, both) // before there is any session
	}
	for _, do := range plan {
		do(w.parties[r.IntN(2)])
		synctest.Wait() // a seed must not depend on who comes first at one instant
		w.wait(w.gap())
	}
}

func (w *pair) crash(p *party) {
	if p.live.Load() == nil {
		return
	}
	w.count.Crashes++
	w.log("%s loses power", p.who.name)
	p.stop(true)
	p.up = time.Now().Add(w.upTo(2 * time.Minute))
}

func (w *pair) boundary(p *party) {
	n := 1 + w.rng.IntN(24)
	w.log("%s will lose power at write boundary %d", p.who.name, n)
	p.disk.CrashAt(n, func() { w.fell <- p })
}

// fill makes the disk of p refuse what is written for a while.
func (w *pair) fill(p *party) {
	w.count.Full++
	w.log("the disk of %s is full", p.who.name)
	p.disk.Fail(store.ErrFull)
	w.wait(w.gap())
	w.sayNext(p)
	w.wait(w.gap())
	p.disk.Fail(nil)
	w.log("the disk of %s has room again", p.who.name)
}

func (w *pair) restart(p *party) {
	if p.live.Load() == nil {
		return
	}
	w.count.Restarts++
	w.log("%s stops", p.who.name)
	p.disk.CrashAt(0, nil)
	p.stop(false)
	p.up = time.Now().Add(w.upTo(2 * time.Minute))
}

func (w *pair) rotate(p *party) {
	if l := p.live.Load(); l != nil {
		w.count.Rotations++
		w.log("%s looks after its store", p.who.name)
		l.upkeep()
	}
}

func (w *pair) partition(*party) {
	w.count.Cuts++
	w.log("the line is cut")
	w.setCut(true)
	w.wait(w.gap() + w.gap())
	w.log("the line is joined")
	w.setCut(false)
}

func (w *pair) setCut(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = on
	w.connected = false
}

func (w *pair) jump(*party) {
	w.count.Jumps++
	d := w.upTo(30 * time.Hour)
	w.log("%v pass", d)
	w.wait(d)
}

func (w *pair) putBack(p *party, noticed bool) {
	if p.copy == nil {
		return
	}
	w.count.Rollbacks++
	w.backs++
	w.log("the disk of %s is replaced by the copy (noticed: %t)", p.who.name, noticed)
	p.stop(true)
	p.rollback()
	p.aged = noticed
	p.up = time.Now().Add(w.upTo(2 * time.Minute))
}

// heal makes the line good and everybody run.
func (w *pair) heal() {
	w.mu.Lock()
	w.line = line{delay: 200 * time.Millisecond}
	w.mu.Unlock()
	w.setCut(false)
	for _, p := range w.parties {
		p.disk.CrashAt(0, nil)
		if p.live.Load() == nil {
			p.up = time.Now()
		}
	}
	w.log("the line heals")
	for w.wait(0); w.parties[0].live.Load() == nil || w.parties[1].live.Load() == nil; {
		w.wait(time.Second) // one had just lost power
	}
}

// waiting returns how many rows are in the outbox and in the send log of p.
func (w *pair) waiting(p *party) (outbox, log int) {
	err := p.live.Load().db.View(func(tx *store.Tx) error {
		for _, err := range store.Outbox.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			outbox++
		}
		for _, err := range store.Unacked.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			log++
		}
		return nil
	})
	if err != nil {
		w.violate(broken, "reading the outbox of %s: %v", p.who.name, err)
	}
	return outbox, log
}

// settle waits until nothing is on its way, at most for as long as is promised.
func (w *pair) settle() {
	healed, most := time.Now(), promise
	if w.backs > 1 {
		most += protocol.RenewEvery
	}
	for pause := time.Second; ; pause = min(2*pause, most-time.Since(healed)) {
		if pause <= 0 {
			break
		}
		w.wait(pause)
		a, b := 0, 0
		a, _ = w.waiting(w.parties[0])
		b, _ = w.waiting(w.parties[1])
		if a == 0 && b == 0 {
			w.log("nothing is on its way")
			return
		}
	}
	for _, p := range w.parties {
		if n, _ := w.waiting(p); n > 0 {
			r, _ := p.live.Load().o.Report(p.peer().who.account)
			w.violate(leftover, "%v after the line healed, %s has %d contents to deliver: %d failures, next attempt in %v, %v",
				most, p.who.name, n, r.Failures, time.Until(r.Next), r.Err)
		}
	}
}

// judge compares what was promised with what both sides have.
func (w *pair) judge() {
	var chats [2]*chat
	for i, p := range w.parties {
		chats[i] = w.chat(p, p.live.Load().db)
		if _, n := w.waiting(p); n > 0 {
			w.violate(leftover, "the send log of %s still has %d rows", p.who.name, n)
		}
	}
	for i, p := range w.parties {
		shown := map[envelope.ID]int{}
		for _, id := range chats[i].shown {
			shown[id]++
			if t := w.texts[id]; t == nil || t.from == i || t.words != chats[i].words[id] {
				w.violate(forged, "%s is shown %q, which nobody wrote so", p.who.name, chats[i].words[id])
			}
		}
		for _, t := range slices.SortedFunc(maps.Values(w.texts), func(a, b *text) int { return strings.Compare(a.name, b.name) }) {
			if t.from != i {
				w.judgeText(t, chats[1-i], shown[t.id])
			}
		}
		place := map[envelope.ID]int{}
		for n, id := range chats[1-i].order {
			place[id] = n + 1
		}
		last := 0
		for _, id := range chats[i].shown {
			t, n := w.texts[id], place[id]
			if t == nil || n == 0 || t.lost || t.unshown {
				continue
			}
			if n < last {
				w.violate(unordered, "%s is shown %q after a later one", p.who.name, t.name)
			}
			last = max(last, n)
		}
	}
}

// judgeText judges one text, which is n times in its recipient's history.
func (w *pair) judgeText(t *text, sender *chat, n int) {
	_, has := sender.own[t.id]
	excused := t.unshown && !t.owed
	switch {
	case n > 1:
		w.violate(twice, "%q is shown %d times", t.name, n)
	case t.gone && n > 0:
		w.violate(forged, "%q arrived, though its sender does not have it", t.name)
	case !t.accepted:
	case !has:
		w.violate(lost, "%q was accepted, and its sender has forgotten it", t.name)
	case n == 0 && !excused && sender.confirmed(t.id):
		w.violate(lost, "%q is said to have arrived, and its recipient does not have it", t.name)
	case n == 0 && !excused:
		w.violate(lost, "%q did not arrive in time: it is %s", t.name, sender.own[t.id])
	case !sender.confirmed(t.id):
		w.violate(lost, "%q arrived and was not confirmed in time: it is %s", t.name, sender.own[t.id])
	}
}

// run plays the world from beginning to end, within a bubble.
func (w *pair) run() {
	r := w.rng
	w.begin = time.Now()
	w.fell = make(chan *party, 16)
	w.texts = map[envelope.ID]*text{}
	w.sealed = map[ratchet.Observation][32]byte{}
	w.line = line{delay: 50*time.Millisecond + w.upTo(2*time.Second)}
	if r.IntN(5) > 0 {
		w.line.lose, w.line.repeat, w.line.stale, w.line.slow = r.IntN(40), r.IntN(40), r.IntN(8), r.IntN(15)
	}
	w.dayOnly = []int{0, 30, 100}[r.IntN(3)]
	w.kicks = r.IntN(4) > 0
	skewed := r.IntN(4) == 0
	for i, who := range people() {
		p := &party{w: w, i: i, who: who, disk: who.disk.Clone()}
		var key [32]byte
		for j := range key {
			key[j] = byte(r.Uint32())
		}
		p.rand = &source{r: rand.NewChaCha8(key)}
		if skewed {
			p.skew = w.upTo(20*time.Hour) - 10*time.Hour
		}
		p.line = rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		w.parties[i] = p
	}
	for _, p := range w.parties {
		p.start()
	}
	w.play()
	w.heal()
	w.settle()
	w.net.Wait() // what was repeated and is late
	w.wait(0)
	w.judge()
	for _, p := range w.parties {
		p.stop(true)
	}
	w.net.Wait()
	if w.plant == plantLeak {
		go func() { <-make(chan struct{}) }()
	}
	w.count.Seeds++
}

// playPair plays one seed. It needs a process without other tests, or else
// does not repeat exactly.
func playPair(t *testing.T, seed uint64, bug plant, verbose bool) (w *pair) {
	t.Helper()
	w = &pair{seed: seed, plant: bug, verbose: verbose, rng: rand.New(rand.NewPCG(seed, 0))}
	people()
	cryptotest.SetGlobalRandom(t, seed)
	dog := time.AfterFunc(watch, func() { panic(fmt.Sprintf("seed %d: virtual time stands still. %s", seed, again(seed))) })
	defer dog.Stop()
	defer func() {
		if r := recover(); r != nil {
			w.violations = append(w.violations, violation{running, fmt.Sprint(r)})
		}
	}()
	synctest.Test(t, func(*testing.T) { w.run() })
	return w
}

// watch is real time, far more than a seed takes on a busy machine under the
// race detector.
const watch = 2 * time.Minute

func again(seed uint64) string {
	return fmt.Sprintf("Repeat it: go test ./simulation -run '^TestPairs$' -v -pairseed %d", seed)
}

// report fails the test if the world broke a promise.
func (w *pair) report(t *testing.T) {
	t.Helper()
	for _, v := range w.violations {
		t.Errorf("seed %d: %s: %s", w.seed, v.oracle, v.what)
	}
	if len(w.violations) > 0 {
		t.Log(again(w.seed))
	}
}

// tally begins the line in which a part tells what it went through.
const tally = "pairs: "

// TestPairs plays worlds of two from seeds: see the top of this file.
func TestPairs(t *testing.T) {
	switch {
	case *pairSeed >= 0:
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		w := playPair(t, uint64(*pairSeed), healthy, true)
		t.Log("\n" + strings.Join(w.trace, "\n"))
		w.report(t)
	case *pairShard >= 0:
		playShard(t)
	default:
		playAll(t)
	}
}

// playShard plays this process's part of the seeds.
func playShard(t *testing.T) {
	debug.SetGCPercent(400)
	var sum counts
	play := func(seed uint64) {
		w := playPair(t, seed, healthy, false)
		w.report(t)
		sum.add(w.count)
	}
	if *pairShard == 0 {
		for _, r := range regressions {
			play(r.seed)
		}
	}
	for i := *pairShard; i < *pairSeeds; i += *pairParts {
		play(uint64(*pairFirst + i))
	}
	b, err := json.Marshal(sum)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s%s\n", tally, b)
}

// playAll plays the seeds in one process for each processor.
func playAll(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seeds, parts := *pairSeeds, runtime.GOMAXPROCS(0)
	if racing() {
		seeds = max(1, seeds/10)
	}
	began := time.Now()
	timeout := time.Duration(0)
	if end, ok := t.Deadline(); ok {
		timeout = max(time.Until(end), time.Second)
	}
	outs, errs := make([][]byte, parts), make([]error, parts)
	var wg sync.WaitGroup
	for i := range parts {
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestPairs$", fmt.Sprint("-test.timeout=", timeout),
				fmt.Sprint("-pairs=", seeds), fmt.Sprint("-pairfirst=", *pairFirst), fmt.Sprint("-pairshard=", i), fmt.Sprint("-pairparts=", parts))
			cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1")
			outs[i], errs[i] = cmd.CombinedOutput()
		})
	}
	wg.Wait()
	var sum counts
	for i, out := range outs {
		told := false
		for line := range strings.Lines(string(out)) {
			if b, ok := strings.CutPrefix(line, tally); ok {
				var c counts
				if err := json.Unmarshal([]byte(b), &c); err != nil {
					t.Fatal(err)
				}
				sum.add(c)
				told = true
			}
		}
		if errs[i] != nil || !told {
			t.Errorf("part %d of %d: %v\n%s", i, parts, errs[i], out)
		}
	}
	took := time.Since(began)
	t.Logf("%d seeds in %v, %v a seed and processor: %+v", sum.Seeds, took.Round(time.Millisecond),
		(took * time.Duration(parts) / time.Duration(max(1, sum.Seeds))).Round(time.Microsecond), sum)
	if t.Failed() {
		return
	}
	if err := sum.proves(); err != nil {
		t.Error(err)
	}
}

// proves returns an error if what it counts is nothing: seeds that do not go
// through something prove nothing about it. Some of it is rare, and wanted from
// often seeds on.
func (c *counts) proves() error {
	const often = 300
	wanted := c.fields()
	if c.Seeds < often {
		wanted = []*int{&c.Seeds, &c.Texts, &c.Calls, &c.Openings, &c.Opened}
	}
	for i, n := range wanted {
		if *n == 0 {
			return fmt.Errorf("count %d of %d is zero: %+v", i, len(wanted), *c)
		}
	}
	return nil
}

func TestPairsThatSayNothingProveNothing(t *testing.T) {
	for _, tt := range []struct {
		c    counts
		want bool
	}{
		{counts{Seeds: 30, Texts: 1, Calls: 1, Openings: 1, Opened: 1}, true},
		{counts{Seeds: 30, Calls: 1, Openings: 1, Opened: 1}, false},
		{counts{Seeds: 300, Texts: 1, Calls: 1, Openings: 1, Opened: 1}, false}, // nobody crashed
		{counts{}, false},
	} {
		if err := tt.c.proves(); (err == nil) != tt.want {
			t.Errorf("%+v: %v", tt.c, err)
		}
	}
}

// racing reports whether this is a build with the race detector, under which a
// seed costs ten times as much.
func racing() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// TestPairRepeats plays some seeds twice.
func TestPairRepeats(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for seed := range uint64(20) {
		one, two := playPair(t, seed, healthy, true), playPair(t, seed, healthy, true)
		if !slices.Equal(one.trace, two.trace) {
			t.Errorf("seed %d:\n%s\n\nand again:\n%s", seed, strings.Join(one.trace, "\n"), strings.Join(two.trace, "\n"))
		}
	}
}

// TestPairOracles shows that each oracle finds the bug that was planted for it.
func TestPairOracles(t *testing.T) {
	for _, tt := range []struct {
		bug  plant
		want oracle
	}{
		{plantForget, twice},
		{plantHasty, forged},
		{plantEarly, lost},
		{plantReverse, unordered},
		{plantStuck, reused},
		{plantGhost, forged},
		{plantHalf, polluted},
		{plantOrphan, leftover},
		{plantMute, leftover},
		{plantMute, lost},
		{plantLeak, running},
	} {
		t.Run(string(tt.want)+": "+string(tt.bug), func(t *testing.T) {
			for seed := range uint64(60) {
				w := playPair(t, seed, tt.bug, false)
				if slices.ContainsFunc(w.violations, func(v violation) bool { return v.oracle == tt.want }) {
					t.Logf("found by seed %d", seed)
					return
				}
			}
			t.Errorf("no seed found it")
		})
	}
}
