package ratchet

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"starling/protocol/x25519"
)

var (
	schedules = flag.Int("schedules", 10_000, "schedules that the two-party model plays")
	long      = flag.Bool("long", false, "play 1,000,000 schedules; give -timeout 0 too")
)

// An event is one thing that happens to two parties and the network between
// them. The party that acts, or receives, is who; arg picks a message or a bit.
type event struct {
	kind kind
	who  int
	arg  int
}

type kind string

const (
	send            kind = "send"
	burst           kind = "burst"             // up to four in a row
	deliver         kind = "deliver"           // one message in flight, any of them
	deliverAll      kind = "deliver all"       // in order
	drop            kind = "drop"              // one message in flight
	shuffle         kind = "shuffle"           // what is in flight
	duplicate       kind = "duplicate"         // one message in flight
	snapshot        kind = "snapshot"          // copy a party's disk
	restore         kind = "restore"           // put the copy back
	crashBeforeSeal kind = "crash before seal" // sealed, and the commit is lost
	crashAfterSeal  kind = "crash after seal"  // committed, and nothing left
	crashBeforeOpen kind = "crash before open" // opened, and the commit is lost
	crashAfterOpen  kind = "crash after open"  // committed, and the acknowledgement is lost
	forge           kind = "forge"             // a bit of a message in flight flips
	expire          kind = "expire"            // a skipped key dies
)

// kinds has each kind as often as its weight. Rapid favours the front.
var kinds = []kind{
	deliver, send, deliver, burst, send, deliverAll, deliver, drop, shuffle, duplicate, deliver, send,
	snapshot, crashBeforeOpen, crashAfterOpen, restore, crashBeforeSeal, crashAfterSeal, deliver, forge, burst, expire, deliver, snapshot, restore,
}

var schedule = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) event {
	return event{
		kind: rapid.SampledFrom(kinds).Draw(t, "kind"),
		who:  rapid.IntRange(0, 1).Draw(t, "who"),
		arg:  rapid.IntRange(0, 255).Draw(t, "arg"),
	}
}), 12, 60)

// A letter is one sealed message on its way, or one to be sealed.
type letter struct {
	id      int // of its content, across sessions
	serial  int // of its bytes, never repeated; 0 while it is not sealed
	from    int
	session int // generation of the session it was sealed in
	bytes   []byte
	offer   *Session // the handshake: what the recipient starts from; nil if it is the initiator
}

func (l letter) text() string { return "letter " + strconv.Itoa(l.id) }

// A disk is what one party has committed.
type disk struct {
	session    *Session // nil before the first
	generation int
	offer      *Session // sent along with every letter, if this side initiated the session
	rows       rows
	opened     map[int]bool // serials
	known      map[int]bool // generations, as the table of transcripts does
	outbox     []letter     // unacknowledged
}

func (d *disk) clone() *disk {
	c := *d
	if d.session != nil {
		s := *d.session
		c.session = &s
	}
	c.rows, c.outbox = maps.Clone(d.rows), slices.Clone(d.outbox)
	c.opened, c.known = maps.Clone(d.opened), maps.Clone(d.known)
	return &c
}

func (d *disk) canSend() bool { return d.session != nil && d.session.CanSend() }

// waiting reports whether this side initiated its session and has not heard
// from the other in it.
func (d *disk) waiting() bool { return d.offer != nil && !d.session.recv.exists }

// begin puts a new session in the place of the old one. What is not
// acknowledged will be sealed anew.
func (d *disk) begin(s, offer *Session, generation int) {
	d.session, d.offer, d.generation, d.rows = s, offer, generation, rows{}
	d.known[generation] = true
	for i, l := range d.outbox {
		d.outbox[i] = letter{id: l.id, from: l.from}
	}
}

// A position is what determines a message key; with the hedge, a (key, nonce)
// pair.
type position struct {
	session [32]byte
	ratchet x25519.Public
	n       uint32
}

// A world is two parties, the network between them, and the oracle.
type world struct {
	rand       io.Reader
	disks      [2]*disk
	saved      [2]*disk
	net        [2][]letter // in flight to each party
	generation int         // newest session pair
	torn       bool        // a party went back in time, or lost a key
	ids        int
	serials    int

	pairs     map[position][][HedgeSize]byte
	forgetful bool // sabotage: the used row is not deleted
	stats     stats
}

// stats counts what happened, so that the test can tell that it tested it.
type stats map[string]int

// randomness is deterministic, so that rapid can repeat and shrink a schedule.
// It is no part of a disk: a restore does not bring random numbers back.
type randomness struct {
	*rand.ChaCha8
	noHedge bool // sabotage: hedges are zero
}

func (r randomness) Read(b []byte) (int, error) {
	if r.noHedge && len(b) == HedgeSize {
		clear(b)
		return len(b), nil
	}
	return r.ChaCha8.Read(b)
}

func newRandomness(seed uint64) randomness {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	return randomness{ChaCha8: rand.NewChaCha8(s)}
}

// preKey stands for the day bundle's key. It is no part of what is tested, so
// that all sessions share one.
var preKey = x25519.FromSeed([32]byte{'p', 'r', 'e'})

func newWorld(r io.Reader, stats stats) (*world, error) {
	w := &world{rand: r, pairs: map[position][][HedgeSize]byte{}, stats: stats}
	for i := range w.disks {
		w.disks[i] = &disk{opened: map[int]bool{}, known: map[int]bool{}}
	}
	return w, w.renew(0)
}

// renew starts a session of the initiator's that replaces the old one, as
// recovery does (SPEC §8). The other side learns of it from the first letter
// that it opens, and creates its half in that transaction.
func (w *world) renew(initiator int) error {
	w.generation++
	var id, root, associated [32]byte
	binary.BigEndian.PutUint64(id[:], uint64(w.generation))
	if _, err := io.ReadFull(w.rand, root[:]); err != nil {
		return err
	}
	a, err := NewInitiator(w.rand, id, root, associated, preKey.Public())
	if err != nil {
		return err
	}
	w.disks[initiator].begin(a, NewResponder(id, root, associated, preKey), w.generation)
	return nil
}

// seal seals l on s, and counts its (key, nonce) pair.
func (w *world) seal(s *Session, l letter, d *disk) (letter, error) {
	before := s.Marshal()
	m, err := s.Seal(w.rand, []byte(l.text()))
	if err != nil {
		return l, err
	}
	if bytes.Equal(before, s.Marshal()) {
		return l, errors.New("sealing did not advance the session")
	}
	o := m.Observation
	p := position{o.Session, o.Ratchet, o.N}
	if len(w.pairs[p]) > 0 {
		w.stats["positions sealed again"]++
	}
	if slices.Contains(w.pairs[p], o.Hedge) {
		return l, fmt.Errorf("(key, nonce) pair repeats in position %d of session %x", o.N, o.Session[:8])
	}
	w.pairs[p] = append(w.pairs[p], o.Hedge)
	w.serials++
	l.serial, l.session, l.bytes, l.offer = w.serials, d.generation, m.Message, d.offer
	return l, nil
}

// post seals what waits in the outbox of who, if the session can, and hands the
// whole outbox to the network.
func (w *world) post(who int) error {
	d := w.disks[who]
	for i, l := range d.outbox {
		if l.serial == 0 {
			if !d.canSend() {
				continue
			}
			sealed, err := w.seal(d.session, l, d)
			if err != nil {
				return err
			}
			d.outbox[i] = sealed
		}
		w.net[1-who] = append(w.net[1-who], d.outbox[i])
	}
	return nil
}

// write adds a new letter to the outbox of who, sealed if the session can, and
// returns it.
func (w *world) write(who int) (letter, error) {
	d := w.disks[who]
	w.ids++
	l := letter{id: w.ids, from: who}
	if d.canSend() {
		var err error
		if l, err = w.seal(d.session, l, d); err != nil {
			return l, err
		}
	}
	d.outbox = append(d.outbox, l)
	return l, nil
}

func (w *world) acknowledge(l letter) {
	d := w.disks[l.from]
	d.outbox = slices.DeleteFunc(d.outbox, func(o letter) bool { return o.id == l.id })
}

// receive lets party to open l, commit, and acknowledge if it gets that far.
func (w *world) receive(to int, l letter, acknowledge bool) error {
	d := w.disks[to]
	session, table := d.session, d.rows
	if l.session != d.generation {
		switch {
		case l.session != w.disks[l.from].generation:
			w.stats["of a replaced session"]++ // its content is sealed anew
			return nil
		case d.waiting() && l.session < d.generation:
			w.stats["while a handshake is under way"]++ // it will bring the other along
			return nil
		case l.offer == nil || d.known[l.session]:
			w.stats["of a session that is gone"]++
			return w.recover(l)
		}
		s := *l.offer
		session, table = &s, rows{}
	}
	before := session.Marshal()
	o, err := session.Open(l.bytes, table.lookup)
	if err != nil {
		if !bytes.Equal(before, session.Marshal()) {
			return fmt.Errorf("session changed on %v", err)
		}
		if !errors.Is(err, ErrOpen) && !errors.Is(err, ErrDuplicate) {
			return fmt.Errorf("opening: unexpected error %v", err)
		}
		if d.opened[l.serial] {
			w.stats["duplicate refused"]++
			w.acknowledge(l)
			return nil
		}
		if !w.torn {
			return fmt.Errorf("honest %s does not open, and nobody went back in time: %v", l.text(), err)
		}
		w.stats["honest message refused"]++
		return w.recover(l)
	}
	switch {
	case d.opened[l.serial]:
		return fmt.Errorf("%s opened twice", l.text())
	case string(o.Plaintext) != l.text():
		return fmt.Errorf("opened %q, want %q", o.Plaintext, l.text())
	}
	d.opened[l.serial] = true
	if session != d.session {
		d.begin(session, nil, l.session)
	}
	if w.forgetful && o.Used != nil {
		d.session.skipped++
		o.Used = nil
	}
	d.rows.commit(o)
	if got, want := d.session.Stored(), len(d.rows); got != want {
		return fmt.Errorf("session counts %d stored keys of %d", got, want)
	}
	w.stats["opened"]++
	if len(o.Store) > 0 {
		w.stats["opened over a gap"]++
	}
	if o.Used != nil {
		w.stats["opened with a stored key"]++
	}
	if acknowledge {
		w.acknowledge(l)
	}
	return nil
}

// recover does what the decryption error that answers l leads to.
func (w *world) recover(l letter) error {
	w.stats["recovered"]++
	if err := w.renew(l.from); err != nil {
		return err
	}
	return w.post(l.from)
}

// take removes one letter in flight to who.
func (w *world) take(who, arg int) (letter, bool) {
	q := w.net[who]
	if len(q) == 0 {
		return letter{}, false
	}
	i := arg % len(q)
	l := q[i]
	w.net[who] = slices.Delete(slices.Clone(q), i, i+1)
	return l, true
}

// drain delivers what is in flight to who, in order, until nothing is.
func (w *world) drain(who int) error {
	for len(w.net[who]) > 0 {
		l := w.net[who][0]
		w.net[who] = w.net[who][1:]
		if err := w.receive(who, l, true); err != nil {
			return err
		}
	}
	return nil
}

// apply makes e happen. An error is a broken promise of the package.
func (w *world) apply(e event) error {
	w.stats[string(e.kind)]++
	d := w.disks[e.who]
	switch e.kind {
	case send, burst:
		n := 1
		if e.kind == burst {
			n += 1 + e.arg%3
		}
		for range n {
			l, err := w.write(e.who)
			if err != nil {
				return err
			}
			if l.serial != 0 {
				w.net[1-e.who] = append(w.net[1-e.who], l)
			}
		}
	case deliver, crashAfterOpen:
		if l, ok := w.take(e.who, e.arg); ok {
			return w.receive(e.who, l, e.kind == deliver)
		}
	case deliverAll:
		return w.drain(e.who)
	case drop:
		w.take(e.who, e.arg)
	case shuffle:
		r := rand.New(rand.NewPCG(uint64(e.arg), 0))
		q := slices.Clone(w.net[e.who])
		r.Shuffle(len(q), func(i, j int) { q[i], q[j] = q[j], q[i] })
		w.net[e.who] = q
	case duplicate:
		if q := w.net[e.who]; len(q) > 0 {
			w.net[e.who] = append(q, q[e.arg%len(q)])
		}
	case snapshot:
		w.saved[e.who] = d.clone()
	case restore:
		if s := w.saved[e.who]; s != nil {
			w.disks[e.who] = s.clone()
			w.torn = true
		}
	case crashBeforeSeal:
		if d.canSend() {
			lost := *d.session
			w.ids++
			_, err := w.seal(&lost, letter{id: w.ids, from: e.who}, d)
			return err
		}
	case crashAfterSeal:
		_, err := w.write(e.who)
		return err
	case crashBeforeOpen:
		if q := w.net[e.who]; len(q) > 0 && d.session != nil {
			lost := *d.session
			lost.Open(q[e.arg%len(q)].bytes, d.rows.lookup)
		}
	case forge:
		if q := w.net[e.who]; len(q) > 0 && d.session != nil {
			m := slices.Clone(q[e.arg%len(q)].bytes)
			m[e.arg%len(m)] ^= 1 << (e.arg / 32)
			before := d.session.Marshal()
			if _, err := d.session.Open(m, d.rows.lookup); err == nil {
				return errors.New("forgery opened")
			}
			if !bytes.Equal(before, d.session.Marshal()) {
				return errors.New("session changed by a forgery")
			}
		}
	case expire:
		// The order of a map would make the schedule impossible to repeat.
		ids := slices.SortedFunc(maps.Keys(d.rows), func(a, b SkippedID) int {
			return cmp.Or(bytes.Compare(a.Ratchet[:], b.Ratchet[:]), cmp.Compare(a.N, b.N))
		})
		if len(ids) > 0 {
			delete(d.rows, ids[e.arg%len(ids)])
			d.session.Forget(1)
			w.torn = true
		}
	default:
		panic("no such kind of event: " + string(e.kind))
	}
	return nil
}

// quiesce lets the network be kind until both sides agree: a new letter of each
// opened at once, nothing unacknowledged, and one's sending chain is the
// other's receiving chain.
func (w *world) quiesce() error {
	for who := range w.disks {
		if err := w.drain(who); err != nil {
			return err
		}
	}
	const limit = 10
	for i := range limit {
		recovered, quiet := w.stats["recovered"], true
		for who := range w.disks {
			l, err := w.write(who)
			if err != nil {
				return err
			}
			quiet = quiet && l.serial != 0
			if err := errors.Join(w.post(who), w.drain(1-who)); err != nil {
				return err
			}
		}
		a, b := w.disks[0], w.disks[1]
		if quiet && w.stats["recovered"] == recovered && len(a.outbox)+len(b.outbox) == 0 {
			if a.session.recv.key.b != b.session.send.key.b || a.session.recv.n != b.session.send.n {
				return errors.New("messages pass, and the chains differ")
			}
			w.stats[fmt.Sprintf("agreed after %d", i+1)]++
			return nil
		}
	}
	return fmt.Errorf("no agreement after %d exchanges", limit)
}

// play plays a whole schedule. An error is a broken promise of the package.
func (w *world) play(events []event) error {
	for i, e := range events {
		if err := w.apply(e); err != nil {
			return fmt.Errorf("event %d, %v: %w", i, e, err)
		}
	}
	if err := w.quiesce(); err != nil {
		return fmt.Errorf("after %d events: %w", len(events), err)
	}
	return nil
}

// TestTwoPartyModel plays schedules of everything that can happen to two
// parties. Each message opens at most once in the life of a disk; only what was
// sent opens; a refused message changes nothing; an honest message is refused
// only after somebody went back in time; no (key, nonce) pair repeats even
// then; and once the network is kind, both sides agree within 10 exchanges.
func TestTwoPartyModel(t *testing.T) {
	n := *schedules
	if *long {
		n = 1_000_000
	}
	seed := flag.Lookup("rapid.seed").Value.String()
	if seed == "0" {
		seed = strconv.FormatUint(rand.Uint64(), 10)
		setFlag(t, "rapid.seed", seed)
	}
	setFlag(t, "rapid.checks", strconv.Itoa(n))

	played, events, stats, start := 0, 0, stats{}, time.Now()
	rapid.Check(t, func(t *rapid.T) {
		es := schedule.Draw(t, "schedule")
		w, err := newWorld(newRandomness(rapid.Uint64().Draw(t, "randomness")), stats)
		if err == nil {
			err = w.play(es)
		}
		if err != nil {
			t.Fatal(err)
		}
		played++
		events += len(es)
	})
	t.Logf("%d schedules, %d events, -rapid.seed=%s, %v", played, events, seed, time.Since(start).Round(time.Millisecond))
	for _, k := range slices.Sorted(maps.Keys(stats)) {
		t.Logf("%8d %s", stats[k], k)
	}
	if !testing.Short() && played < n {
		t.Errorf("played %d schedules, want %d: give more -timeout", played, n)
	}
	if n < 1000 {
		return
	}
	for _, k := range []string{
		"opened", "opened over a gap", "opened with a stored key", "duplicate refused", "honest message refused", "of a replaced session",
		"of a session that is gone", "while a handshake is under way", "recovered", "positions sealed again", "agreed after 1", "agreed after 2",
	} {
		if stats[k] == 0 {
			t.Errorf("%q never happened: the model does not test it", k)
		}
	}
}

// setFlag sets a flag of the rapid package until the test ends.
func setFlag(t *testing.T, name, value string) {
	t.Helper()
	old := flag.Lookup(name).Value.String()
	if err := flag.Set(name, value); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { flag.Set(name, old) })
}

// TestModelNoticesSabotage plays schedules against a package that breaks its
// promises: without hedges a restore repeats a (key, nonce) pair, and with the
// used rows left in place a message opens twice. The oracle must say so, and
// must notice a damaged state.
func TestModelNoticesSabotage(t *testing.T) {
	for name, sabotage := range map[string]func(*world, *randomness){
		"no hedge":        func(_ *world, r *randomness) { r.noHedge = true },
		"row not deleted": func(w *world, _ *randomness) { w.forgetful = true },
		"state damaged":   func(w *world, _ *randomness) { w.disks[0].session.root.b[0] ^= 1 },
	} {
		const tries = 2000
		caught := 0
		for seed := range tries {
			r := newRandomness(uint64(seed))
			w, err := newWorld(&r, stats{})
			if err != nil {
				t.Fatal(err)
			}
			sabotage(w, &r)
			if w.play(schedule.Example(seed)) != nil {
				caught = seed + 1
				break
			}
		}
		if caught == 0 {
			t.Errorf("%s: not noticed in %d schedules", name, tries)
		} else {
			t.Logf("%s: noticed in schedule %d", name, caught)
		}
	}
}
