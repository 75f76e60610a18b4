package simulation

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"starling/node"
	"starling/node/store"
	"starling/protocol/identity"
	"starling/protocol/ratchet"
)

// The promises that every run is held to, by the name of their oracle.
const (
	oracleLost      = "lost"      // what was accepted, or was once shown, is gone or comes too late
	oracleTwice     = "twice"     // a text was shown twice
	oracleOrder     = "order"     // a text was shown before one that its sender wrote earlier
	oracleNonce     = "nonce"     // two messages were sealed under one key and nonce
	oracleForged    = "forged"    // something was opened or shown that nobody sent
	oracleReceipt   = "receipt"   // a relay signed for a message and did not have it for its reader
	oracleState     = "state"     // an envelope that was refused changed a session
	oracleGoroutine = "goroutine" // something runs on after everything was closed
)

// An oracle holds a world to its promises. It knows what the scenario sent,
// reads every journal as users do, and sees what sessions seal and open.
type oracle struct {
	w *World

	mu       sync.Mutex // guards what follows; never held across a wait
	accounts map[string]*Node
	messages map[string]*letter
	accepted []*letter
	pairs    map[[2]int]*pair
	known    map[[2]int]bool // the first has had the second as a contact
	open     int             // accepted and not confirmed, nuisances aside
	waiting  []*letter       // those, and some that were confirmed lately
	sealed   map[nonceUse][32]byte
	count    Envelopes
	verdict  *Violation // the first one
}

// A letter is a text on its way, as the oracle knows it.
type letter struct {
	Message
	text     [sha256.Size]byte
	accepted bool                                 // promised, or in the sender's journal
	number   int                                  // among those of its pair, in the order of the sender's journal; 0 until it is there
	promised bool                                 // Send returned
	refused  bool                                 // Send said that it was not accepted
	nuisance bool                                 // of a spammer: nobody promises that it arrives
	held     map[identity.Transport]time.Duration // since when it is at relays
}

// A pair is the texts of one node for another.
type pair struct {
	sent  int // numbers given
	shown int // highest number shown
}

// A nonceUse is what determines the key and nonce of a message, secrets aside.
type nonceUse struct {
	session, ratchet [32]byte
	n                uint32
	hedge            [24]byte
}

func useOf(o ratchet.Observation) nonceUse {
	return nonceUse{o.Session, [32]byte(o.Ratchet), o.N, o.Hedge}
}

func newOracle(w *World) *oracle {
	return &oracle{
		w: w, accounts: map[string]*Node{}, messages: map[string]*letter{}, pairs: map[[2]int]*pair{},
		known: map[[2]int]bool{}, sealed: map[nonceUse][32]byte{},
	}
}

// violatedLocked notes the first broken promise and ends the run.
func (o *oracle) violatedLocked(which, format string, args ...any) {
	if o.verdict != nil {
		return
	}
	o.verdict = &Violation{Oracle: which, What: fmt.Sprintf(format, args...), At: o.w.Now(), Repeat: o.w.cfg.Repeat}
	o.w.log.add(Event{Type: "violation", Text: which + ": " + o.verdict.What})
	o.w.stop(o.verdict)
}

// started notes who a node is, that it is who it was, if it ran before, and that
// its journal did not lose anything.
func (o *oracle) started(n *Node, was string, journal uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.accounts[n.account] = n
	if was != "" && was != n.account {
		o.violatedLocked(oracleLost, "%s came back as another account", n.spec.Name)
	}
	if journal < n.seen {
		o.violatedLocked(oracleLost, "%s had shown %d events before it went down, and has %d now", n.spec.Name, n.seen, journal)
	}
}

// offered notes a text before its sender is asked to accept it.
func (o *oracle) offered(id string, from, to *Node, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.messages[id] = &letter{
		Message: Message{ID: id, From: from.index, To: to.index, Size: len(text), Shown: -1, Confirmed: -1},
		text:    digest(text), nuisance: from.spec.Role == RoleSpammer,
	}
}

// promised notes that the sender accepted a text.
func (o *oracle) promised(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.messages[id]
	m.promised = true
	o.acceptLocked(m)
}

// refused notes that the sender refused a text. After any other error of Send,
// accepted or not, both are right.
func (o *oracle) refused(n *Node, id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.messages[id]
	m.refused = true
	o.refusalLocked(n, m)
}

// refusalLocked wants that a text was not both accepted and refused.
func (o *oracle) refusalLocked(n *Node, m *letter) {
	if m.refused && m.accepted {
		o.violatedLocked(oracleForged, "%s refused message %s, and has it in its journal", n.spec.Name, m.ID)
	}
}

func (o *oracle) acceptLocked(m *letter) {
	if m.accepted {
		return
	}
	m.accepted = true
	m.Accepted = o.w.Now()
	o.known[[2]int{m.From, m.To}] = true
	o.accepted = append(o.accepted, m)
	if !m.nuisance {
		o.open++
		o.waiting = append(o.waiting, m)
	}
	o.w.log.add(Event{Type: "accepted", Node: o.w.nodes[m.From].spec.Name, Peer: o.w.nodes[m.To].spec.Name, ID: m.ID})
}

// heard takes one event of a node's journal.
func (o *oracle) heard(n *Node, e node.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case e.Type == "message" && e.State == "queued":
		o.queuedLocked(n, e)
	case e.Type == "message" && e.State == "received", e.Type == "request" && e.State == "received":
		o.shownLocked(n, e)
	case e.Type == "state" && (e.State == "delivered" || e.State == "read"):
		o.confirmedLocked(n, e)
	case e.Type == "state" && e.State == "failed":
		if m := o.messages[e.ID]; m != nil {
			o.violatedLocked(oracleLost, "%s gave up message %s for %s: %s", n.spec.Name, e.ID, o.w.nodes[m.To].spec.Name, e.Text)
		}
	}
}

// stored notes the relays that hold a message.
func (o *oracle) stored(id string, at []identity.Transport) {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.messages[id]
	if m == nil {
		return // a control content
	}
	if m.held == nil {
		m.held = map[identity.Transport]time.Duration{}
	}
	for _, t := range at {
		if _, known := m.held[t]; !known {
			m.held[t] = o.w.Now()
		}
	}
}

func (o *oracle) queuedLocked(n *Node, e node.Event) {
	m := o.messages[e.ID]
	if m == nil || m.From != n.index {
		o.violatedLocked(oracleForged, "%s has a message %s in its journal that it was not asked to send", n.spec.Name, e.ID)
		return
	}
	o.acceptLocked(m)
	o.refusalLocked(n, m)
	if m.number == 0 {
		p := o.pairLocked(m)
		p.sent++
		m.number = p.sent
	}
}

func (o *oracle) pairLocked(m *letter) *pair {
	k := [2]int{m.From, m.To}
	p := o.pairs[k]
	if p == nil {
		p = new(pair)
		o.pairs[k] = p
	}
	return p
}

func (o *oracle) shownLocked(n *Node, e node.Event) {
	m := o.messages[e.ID]
	switch from := o.accounts[e.From]; {
	case m == nil || from == nil || m.number == 0:
		o.violatedLocked(oracleForged, "%s shows a message %s that nobody sent", n.spec.Name, e.ID)
		return
	case m.From != from.index || m.To != n.index || m.text != digest(e.Text):
		o.violatedLocked(oracleForged, "%s shows message %s with another text, sender or recipient than it was sent with", n.spec.Name, e.ID)
		return
	case m.Shown >= 0:
		o.violatedLocked(oracleTwice, "%s shows message %s of %s twice", n.spec.Name, e.ID, from.spec.Name)
		return
	}
	p := o.pairLocked(m)
	if m.number < p.shown && o.ordered() {
		o.violatedLocked(oracleOrder, "%s shows message %d of %s after number %d", n.spec.Name, m.number, o.w.nodes[m.From].spec.Name, p.shown)
		return
	}
	p.shown = max(p.shown, m.number)
	if e.Type == "message" {
		o.known[[2]int{m.To, m.From}] = true
	}
	m.Shown = o.w.Now()
	o.w.log.add(Event{Type: "shown", Node: n.spec.Name, Peer: o.w.nodes[m.From].spec.Name, ID: m.ID})
}

// ordered reports whether texts are shown in the order in which they were
// written. What is left at one relay is read there in the order in which it was
// left, and so it is on a stream. Whoever reads several relays gets their texts as
// they come: seq tells of a gap and orders nothing (SPEC §7.3). A lost disk takes
// some that others do not wait for.
func (o *oracle) ordered() bool {
	switch len(o.w.relays) {
	case 0:
		return true
	case 1:
		r := o.w.relays[0]
		return r.spec.Bad == "" && !r.voidSince(0)
	}
	return false
}

func (o *oracle) confirmedLocked(n *Node, e node.Event) {
	m := o.messages[e.ID]
	if m == nil || m.From != n.index {
		return // a control content, or one of before the world
	}
	if m.Shown < 0 {
		o.violatedLocked(oracleLost, "%s was told that message %s was delivered, and %s does not show it", n.spec.Name, e.ID, o.w.nodes[m.To].spec.Name)
		return
	}
	if m.Confirmed < 0 {
		m.Confirmed = o.w.Now()
		if !m.nuisance {
			o.open--
		}
		o.w.log.add(Event{Type: "confirmed", Node: n.spec.Name, Peer: o.w.nodes[m.To].spec.Name, ID: m.ID})
	}
}

// pending returns how many accepted texts are not confirmed.
func (o *oracle) pending() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.open
}

// late says that accepted texts were not delivered in time.
func (o *oracle) late() {
	o.mu.Lock()
	defer o.mu.Unlock()
	var first *letter
	for _, m := range o.accepted {
		if m.Confirmed < 0 && !m.nuisance {
			first = m
			break
		}
	}
	if first == nil {
		return // confirmed in this very instant
	}
	what := "not delivered"
	if first.Shown >= 0 {
		what = "delivered, and not confirmed to its sender"
	}
	o.violatedLocked(oracleLost, "%d accepted messages are still on their way %v after the last fault, or after they were accepted; the oldest, %s of %s for %s, accepted at %v, is %s",
		o.open, o.w.cfg.Promise, first.ID, o.w.nodes[first.From].spec.Name, o.w.nodes[first.To].spec.Name, first.Accepted, what)
}

// An observer is the oracle's view into one node's sessions.
type observer struct {
	o *oracle
	n *Node
}

func (o *oracle) observer(n *Node) observer { return observer{o, n} }

// Sealed implements session.Observer. The transaction may be discarded yet, but
// nothing hinders a crash from coming after the envelope left, so that the next
// one must differ all the same.
func (v observer) Sealed(b ratchet.Observation) {
	v.o.mu.Lock()
	defer v.o.mu.Unlock()
	v.o.count.Sealed++
	if _, used := v.o.sealed[useOf(b)]; used {
		v.o.violatedLocked(oracleNonce, "%s sealed two messages under one key and nonce", v.n.spec.Name)
	}
	v.o.sealed[useOf(b)] = b.Ciphertext
}

// Opened implements session.Observer.
func (v observer) Opened(b ratchet.Observation) {
	v.o.mu.Lock()
	defer v.o.mu.Unlock()
	v.o.count.Opened++
	if sum, sent := v.o.sealed[useOf(b)]; !sent || sum != b.Ciphertext {
		v.o.violatedLocked(oracleForged, "%s opened an envelope that nobody sealed", v.n.spec.Name)
	}
}

// Repeated implements session.Observer.
func (v observer) Repeated() {
	v.o.mu.Lock()
	defer v.o.mu.Unlock()
	v.o.count.Repeated++
}

// Refused implements session.Observer.
func (v observer) Refused(before, after [32]byte) {
	v.o.mu.Lock()
	defer v.o.mu.Unlock()
	v.o.count.Refused++
	if before != after {
		v.o.violatedLocked(oracleState, "%s refused an envelope, and its session changed", v.n.spec.Name)
	}
}

// audit opens the disk of every node, after all were closed, and compares what
// it holds with what was sent and shown: the rest of the journal, every chat, and
// what waits to be delivered. A disk that cannot be read is an error, and the
// others are compared all the same.
func (o *oracle) audit() error {
	var errs []error
	unknown := map[int]bool{} // what these nodes kept
	found := holdings{shown: map[string]int{}, kept: map[string]bool{}, waits: map[string]bool{}}
	var rest []unread
	for _, n := range o.w.nodes {
		if n.account == "" {
			continue // it never ran
		}
		events, err := o.read(n, found)
		if err != nil {
			errs = append(errs, fmt.Errorf("reading what %s kept: %w", n.spec.Name, err))
			unknown[n.index] = true
			continue
		}
		rest = append(rest, events...)
		o.w.dog.Bump()
	}
	// What was written comes before what was shown, and that before what was
	// confirmed, whatever the order of the nodes.
	slices.SortStableFunc(rest, func(a, b unread) int { return cmp.Compare(a.rank(), b.rank()) })
	for _, u := range rest {
		if m := o.letter(u.e.ID); m == nil || !unknown[m.From] {
			o.heard(u.n, u.e)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range o.accepted {
		from, to := o.w.nodes[m.From].spec.Name, o.w.nodes[m.To].spec.Name
		switch {
		case !found.kept[m.ID] && m.promised && !unknown[m.From]:
			o.violatedLocked(oracleLost, "%s accepted message %s for %s and has forgotten it", from, m.ID, to)
		case m.Confirmed < 0 && !m.nuisance && !found.waits[m.ID] && !unknown[m.From]:
			o.violatedLocked(oracleLost, "%s accepted message %s for %s at %v, was never told that it was delivered, and does not try any more", from, m.ID, to, m.Accepted)
		case m.Shown >= 0 && found.shown[m.ID] == 0 && !unknown[m.To]:
			o.violatedLocked(oracleLost, "%s showed message %s of %s and has forgotten it", to, m.ID, from)
		case found.shown[m.ID] > 1:
			o.violatedLocked(oracleTwice, "%s has message %s of %s %d times in its history", to, m.ID, from, found.shown[m.ID])
		}
	}
	return errors.Join(errs...)
}

func (o *oracle) letter(id string) *letter {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.messages[id]
}

// holdings are the texts that the disks of all nodes hold, by message.
type holdings struct {
	shown map[string]int  // how often, at the recipient
	kept  map[string]bool // in the sender's chat
	waits map[string]bool // in the sender's outbox
}

// An unread is an event of a journal that nobody read while its node ran.
type unread struct {
	n *Node
	e node.Event
}

func (u unread) rank() int {
	switch u.e.State {
	case "queued":
		return 0
	case "received":
		return 1
	}
	return 2
}

// read notes what a node's disk holds, and that it is in order. It returns what
// is in the journal beyond what was read.
func (o *oracle) read(n *Node, found holdings) (rest []unread, err error) {
	db, err := n.disk.open(store.Config{Key: n.key, Rand: n.rand, Now: n.Clock})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *store.Tx) error {
		last := uint64(0)
		for row, err := range store.Journal.ScanBack(tx, nil, nil) {
			if err != nil {
				return err
			}
			last = row.Key.Order()
			break
		}
		if last < n.seen {
			o.mu.Lock()
			o.violatedLocked(oracleLost, "%s had shown %d events, and has %d", n.spec.Name, n.seen, last)
			o.mu.Unlock()
		}
		for row, err := range store.Journal.Scan(tx, nil, store.JournalKey(n.seen+1)) {
			if err != nil {
				return err
			}
			e := node.Event{Seq: row.Key.Order(), Type: row.Value.Type, State: row.Value.State, ID: hex.EncodeToString(row.Value.Id), Text: row.Value.Text}
			if from, err := identity.ParseAccount(row.Value.From); err == nil {
				e.From = from.String()
			}
			rest = append(rest, unread{n, e})
		}
		lines := map[identity.Account]int{} // highest number of a chat so far
		for row, err := range store.History.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			if row.Value.Notice {
				continue
			}
			id := hex.EncodeToString(row.Value.Id)
			chat := row.Key.Account()
			if row.Value.State != store.Entry_RECEIVED {
				found.kept[id] = true
				o.keptCopy(n, chat, id, row.Value.Text)
				continue
			}
			found.shown[id]++
			lines[chat] = max(lines[chat], o.keptLine(n, chat, id, row.Value.Text, lines[chat]))
		}
		for row, err := range store.Outbox.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			found.waits[hex.EncodeToString(row.Value.Id)] = true
		}
		return nil
	})
	return rest, err
}

// keptCopy checks a line of a chat that is its owner's own.
func (o *oracle) keptCopy(n *Node, chat identity.Account, id, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m := o.messages[id]; m == nil || m.From != n.index || !o.isLocked(chat, m.To) || m.text != digest(text) {
		o.violatedLocked(oracleForged, "%s has a message %s of its own in its history that it was not asked to send like that", n.spec.Name, id)
	}
}

// isLocked reports whether an account is that of a node.
func (o *oracle) isLocked(a identity.Account, index int) bool {
	n := o.accounts[a.String()]
	return n != nil && n.index == index
}

// keptLine checks a line of a chat that follows number last of its sender, and
// returns its number.
func (o *oracle) keptLine(n *Node, chat identity.Account, id, text string, last int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.messages[id]
	switch {
	case m == nil || m.To != n.index || !o.isLocked(chat, m.From) || m.text != digest(text):
		o.violatedLocked(oracleForged, "%s has a message %s in its history that nobody sent like that", n.spec.Name, id)
		return last
	case m.number > 0 && m.number < last && o.ordered(): // 0: the rest of its sender's journal is not read yet
		o.violatedLocked(oracleOrder, "%s has message %d of %s after number %d in its history", n.spec.Name, m.number, o.w.nodes[m.From].spec.Name, last)
	}
	return m.number
}

// overdue looks for a text that should have arrived: its sender and its
// recipient are friends and have run, and nothing was wrong with them or with
// the network, for as long as the promise says. Scenarios that do not wait for
// what they sent are held to it too.
func (o *oracle) overdue() {
	now := o.w.Now()
	o.mu.Lock()
	o.waiting = slices.DeleteFunc(o.waiting, func(m *letter) bool { return m.Confirmed >= 0 || m.nuisance })
	var late []*letter
	for _, m := range o.waiting {
		if now > m.Accepted+o.w.cfg.Promise {
			late = append(late, m)
		}
	}
	o.mu.Unlock()
	for _, m := range late {
		from, to := o.w.nodes[m.From], o.w.nodes[m.To]
		if now <= max(from.upSince(), to.upSince())+o.w.cfg.Promise || !from.Running() || !to.Running() {
			continue
		}
		if calm, quiet := o.w.calm(from, to); !calm || now <= quiet+o.w.cfg.Promise || !o.acquainted(to, from) {
			continue
		}
		o.mu.Lock()
		if m.Confirmed < 0 {
			o.violatedLocked(oracleLost, "message %s of %s for %s, accepted at %v, has not arrived, and nothing was wrong for %v",
				m.ID, from.spec.Name, to.spec.Name, m.Accepted, o.w.cfg.Promise)
		}
		o.mu.Unlock()
	}
}

// waitsAtRelay looks for a text that is at a relay and should have been shown:
// relay and recipient have run together, and nothing was wrong with them or with
// the network, for as long as the promise says. Where its sender is does not
// matter.
func (o *oracle) waitsAtRelay() {
	now := o.w.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	behind := map[[2]int]bool{} // pairs with an earlier text that is not due: nothing overtakes it
	for _, m := range o.waiting {
		k := [2]int{m.From, m.To}
		if m.Shown >= 0 || behind[k] {
			continue
		}
		to := o.w.nodes[m.To]
		r := o.dueLocked(m, to, now)
		if r == nil {
			behind[k] = true
			continue
		}
		o.violatedLocked(oracleLost, "message %s of %s for %s, accepted at %v, is at the relay %s since %v, and nothing was wrong with the two for %v",
			m.ID, o.w.nodes[m.From].spec.Name, to.spec.Name, m.Accepted, r.spec.Name, m.held[r.self], o.w.cfg.Promise)
	}
}

// dueLocked returns a relay from which its recipient should have a text by now,
// nil if there is none. Where a relay repeats one-time keys, a first message may
// have to be sealed again, whoever keeps it.
func (o *oracle) dueLocked(m *letter, to *Node, now time.Duration) *Relay {
	if !to.Running() || now <= to.upSince()+o.w.cfg.Promise {
		return nil
	}
	repeats := slices.ContainsFunc(o.w.relays, func(r *Relay) bool { return r.spec.Bad == BadRepeatsKeys })
	if repeats && !o.known[[2]int{m.To, m.From}] {
		return nil
	}
	for _, r := range o.w.relays {
		since, ok := m.held[r.self]
		up, running := r.upSince()
		if !ok || !running || r.spec.Bad != "" || r.voidSince(since) || now <= max(since, up)+o.w.cfg.Promise {
			continue
		}
		if calm, quiet := o.w.calm(to, to); calm && now > quiet+o.w.cfg.Promise {
			return r
		}
	}
	return nil
}

// acquainted reports whether n has or ever had m as a contact.
func (o *oracle) acquainted(n, m *Node) bool {
	k := [2]int{n.index, m.index}
	o.mu.Lock()
	known := o.known[k]
	o.mu.Unlock()
	if known || !n.knows(m) {
		return known
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.known[k] = true
	return true
}

// lingering is how long after the end of everything what was told to end may
// take: longer than any time-out in it.
const lingering = 5 * time.Minute

// goroutines looks for what still runs in the bubble after everything was
// closed. It returns the stacks.
func (o *oracle) goroutines() {
	time.Sleep(lingering)
	var left []string
	all := stacks()
	_, mine, _ := strings.Cut(all[0], ", synctest bubble ") // the caller's own comes first
	mine, _, _ = strings.Cut(mine, "]")
	for _, g := range all[1:] {
		head, _, _ := strings.Cut(g, "\n")
		if strings.HasSuffix(head, ", synctest bubble "+mine+"]:") && !strings.Contains(g, "testing/synctest.") { // the bubble itself
			left = append(left, g)
		}
	}
	if len(left) == 0 {
		return
	}
	slices.Sort(left)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.violatedLocked(oracleGoroutine, "%d goroutines run on after every node was closed, the first:\n%s", len(left), left[0])
}

// stacks returns the stack of every goroutine of the process.
func stacks() []string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			return strings.Split(string(bytes.TrimSpace(buf[:n])), "\n\n")
		}
		buf = make([]byte, 2*len(buf))
	}
}

// results returns the messages in the order in which they were accepted, those
// of spammers left out.
func (o *oracle) results() ([]Message, Envelopes, *Violation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []Message
	for _, m := range o.accepted {
		if !m.nuisance {
			list = append(list, m.Message)
		}
	}
	slices.SortStableFunc(list, func(a, b Message) int { return cmp.Compare(a.Accepted, b.Accepted) })
	return list, o.count, o.verdict
}

// errInterrupted means that the run was asked to end early.
var errInterrupted = errors.New("simulation: interrupted")
