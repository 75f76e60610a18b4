package node

import (
	"bufio"
	"bytes"
	"crypto/hpke"
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/multiformats/go-multibase"
	"google.golang.org/protobuf/proto"

	"starling/node/relay/client"
	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// A crook is a relay that keeps all it hears, and gives out what a test has it
// give. What it says of itself and what it signs is as from an honest one.
type crook struct {
	caller
	w    *world
	key  crypto.PrivKey
	self identity.Transport

	changed broadcast
	streams sync.WaitGroup

	mu      sync.Mutex // guards what follows; never held across a wait
	dens    map[relay.QueueID]*den
	entries []*wire.RelayEntry
	last    uint64                     // ID of an entry
	blobs   map[relay.QueueID][][]byte // what was deposited, in order
	from    map[relay.QueueID][]peer.ID
	readers map[peer.ID]bool
	heard   [][]byte // requests

	holds   func(relay.QueueID) bool // what is deposited there is not given out
	pools   bool                     // it wants one-time keys, whose making takes long; else it says that it has enough
	repeats bool                     // a one-time key is given out again and again
	flips   bool                     // it says that it stops, and takes it back, each time that it is asked
	asked   int                      // what it is
}

// A den is a queue of a crook.
type den struct {
	kind   wire.QueueKind
	tokens [][]byte // hashes
	pool   []byte
	keys   [][]byte
}

// crook starts one, with a key that sorts before under.
func (w *world) crook(under identity.Transport) *crook {
	w.Helper()
	c := &crook{
		w: w, changed: newBroadcast(), dens: map[relay.QueueID]*den{}, blobs: map[relay.QueueID][][]byte{},
		from: map[relay.QueueID][]peer.ID{}, readers: map[peer.ID]bool{},
	}
	var seed identity.Secret
	for first := true; first || bytes.Compare(c.self[:], under[:]) >= 0; first = false {
		seed = w.secret()
		key, err := transportKey(seed.Bytes())
		if err != nil {
			w.Fatal(err)
		}
		raw, err := key.GetPublic().Raw()
		if err != nil {
			w.Fatal(err)
		}
		c.key, c.self = key, identity.Transport(raw)
	}
	c.caller = w.caller(seed.Bytes())
	c.SetStreamHandler(protocol.StreamRelay, func(s network.Stream) {
		c.streams.Add(1)
		defer c.streams.Done()
		c.serve(s)
	})
	w.Cleanup(func() {
		_ = c.Close()
		c.streams.Wait()
	})
	return c
}

// anyKey is a key that most sort before.
var anyKey = identity.Transport(bytes.Repeat([]byte{0xff}, identity.KeySize))

func (c *crook) link() string {
	c.w.Helper()
	l := relay.Link{Transport: c.self}
	for _, a := range c.Addrs() {
		na, err := manet.ToNetAddr(a)
		if err != nil {
			c.w.Fatal(err)
		}
		at := na.(*net.TCPAddr).AddrPort()
		l.Hints = append(l.Hints, identity.Hint{Transport: c.self, Network: identity.TCP, Addr: at.Addr().Unmap(), Port: at.Port()})
	}
	return l.String()
}

// fooled names crooks as relays, and waits until they are in use.
func (p *person) fooled(cs ...*crook) {
	p.w.Helper()
	for _, c := range cs {
		if _, err := p.AddRelay(p.w.ctx, c.link()); err != nil {
			p.w.Fatal(err)
		}
	}
	p.w.eventually("the relays of "+p.name, func() bool {
		list, err := p.Relays(p.w.ctx)
		return err == nil && len(list) > 0 && !slices.ContainsFunc(list, func(r Relay) bool { return r.State != "used" })
	})
}

// serve answers the requests of a stream.
func (c *crook) serve(s network.Stream) {
	requests := make(chan []byte) // the reader sends, and closes
	var reading sync.WaitGroup
	over := make(chan struct{}) // closed below
	reading.Go(func() {
		defer close(requests)
		in := bufio.NewReader(s)
		for {
			b, err := wire.ReadFrame(in, protocol.MaxRelayRequest)
			if err != nil {
				return
			}
			select {
			case requests <- b:
			case <-over:
				return
			}
		}
	})
	defer func() {
		close(over)
		_ = s.Reset()
		reading.Wait()
	}()
	attached := map[relay.QueueID]bool{}
	for b, ok := <-requests; ok; {
		var next []byte
		var more bool
		r, err := relay.ParseRequest(b)
		if err != nil {
			c.w.Errorf("a crook is asked what no relay would be: %v", err)
			return
		}
		c.mu.Lock()
		c.heard = append(c.heard, b)
		c.mu.Unlock()
		var a *wire.RelayAnswer
		if m, is := r.Command.(*wire.RelayRequest_Poll); is {
			a, next, more = c.poll(m.Poll, attached, requests)
		} else {
			a = c.answer(s.Conn().RemotePeer(), r, attached)
		}
		if wire.WriteFrame(s, wire.Marshal(a)) != nil {
			return
		}
		if b, ok = next, more; b == nil {
			b, ok = <-requests
		}
	}
}

// poll returns entries of the queues that are attached, as soon as there are some
// or the client asks for something else: next, if more.
func (c *crook) poll(p *wire.RelayPoll, attached map[relay.QueueID]bool, requests <-chan []byte) (a *wire.RelayAnswer, next []byte, more bool) {
	over := time.NewTimer(time.Duration(p.Wait) * time.Second)
	defer over.Stop()
	for waiting := true; ; {
		changed := c.changed.wait()
		var es []*wire.RelayEntry
		c.mu.Lock()
		for _, e := range c.entries {
			if attached[relay.QueueID(e.Queue)] && e.Id > p.After && len(es) < min(int(p.Limit), 32) {
				es = append(es, e)
			}
		}
		c.mu.Unlock()
		if len(es) > 0 || !waiting {
			return okay(&wire.RelayAnswer{Result: &wire.RelayAnswer_Entries{Entries: &wire.RelayEntries{Entries: es}}}), next, more
		}
		select {
		case <-changed:
		case next, more = <-requests:
			waiting = false
		case <-over.C:
			waiting = false
		}
	}
}

func okay(a *wire.RelayAnswer) *wire.RelayAnswer {
	a.Status = wire.RelayStatus_RELAY_STATUS_OK
	return a
}

// answer answers what is no poll.
func (c *crook) answer(from peer.ID, r *wire.RelayRequest, attached map[relay.QueueID]bool) *wire.RelayAnswer {
	c.mu.Lock()
	defer c.mu.Unlock()
	expires := time.Now().Add(protocol.QueueLife).Unix()
	queues := func(known ...bool) *wire.RelayAnswer {
		qs := &wire.RelayQueues{}
		for _, k := range known {
			q := &wire.RelayQueue{Known: k}
			if k {
				q.Expires = expires
			}
			qs.Queues = append(qs.Queues, q)
		}
		return okay(&wire.RelayAnswer{Result: &wire.RelayAnswer_Queues{Queues: qs}})
	}
	count := func(n int) *wire.RelayAnswer {
		return okay(&wire.RelayAnswer{Result: &wire.RelayAnswer_Count{Count: &wire.RelayCount{Count: uint32(n)}}})
	}
	done := &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK}
	refused := &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_REFUSED}
	switch m := r.Command.(type) {
	case *wire.RelayRequest_Info:
		drains := int64(0)
		if c.asked++; c.flips && c.asked%2 == 0 {
			drains = time.Now().Add(48 * time.Hour).Unix()
		}
		return okay(&wire.RelayAnswer{Result: &wire.RelayAnswer_Info{Info: &wire.RelayInfo{
			Time: time.Now().Unix(), Store: c.self[:relay.StoreIDSize], DepositBits: 1, KeyBits: 1, Draining: drains,
		}}})
	case *wire.RelayRequest_Claim:
		claim, err := relay.ParseClaim(m.Claim)
		if err != nil {
			return refused
		}
		c.readers[from] = true
		var known []bool
		for _, k := range claim.Readers {
			id := k.Queue()
			if claim.Create != nil && c.dens[id] == nil {
				c.dens[id] = &den{kind: claim.Create.Kind}
			}
			known = append(known, c.dens[id] != nil)
			attached[id] = c.dens[id] != nil
		}
		return queues(known...)
	case *wire.RelayRequest_Renew:
		return queues(slices.Repeat([]bool{true}, len(m.Renew.Queues))...)
	case *wire.RelayRequest_Drop:
		delete(c.dens, relay.QueueID(m.Drop.Queue))
	case *wire.RelayRequest_SetAccess:
		if d := c.dens[relay.QueueID(m.SetAccess.Queue)]; d != nil {
			d.tokens = m.SetAccess.Tokens
		}
	case *wire.RelayRequest_Deposit:
		q := relay.QueueID(m.Deposit.Queue)
		if c.dens[q] == nil {
			return refused
		}
		c.blobs[q], c.from[q] = append(c.blobs[q], m.Deposit.Blob), append(c.from[q], from)
		if c.holds == nil || !c.holds(q) {
			c.putLocked(q, m.Deposit.Blob)
		}
		g, err := relay.SignGroup([]relay.Leaf{relay.NewLeaf(q, sha256.Sum256(m.Deposit.Blob), m.Deposit.Expires)}, time.Now(), c.key)
		if err != nil {
			c.w.Errorf("signing a receipt: %v", err)
			return refused
		}
		return okay(&wire.RelayAnswer{Result: &wire.RelayAnswer_Receipt{Receipt: g.Receipt(0).Wire()}})
	case *wire.RelayRequest_Delete:
		for _, d := range m.Delete.Deletions {
			c.entries = slices.DeleteFunc(c.entries, func(e *wire.RelayEntry) bool {
				return bytes.Equal(e.Queue, d.Queue) && slices.Contains(d.Ids, e.Id)
			})
		}
	case *wire.RelayRequest_PutKeys:
		d := c.dens[relay.QueueID(m.PutKeys.Queue)]
		d.pool, d.keys = m.PutKeys.Pool, append(d.keys, m.PutKeys.Keys...)
		return count(len(d.keys))
	case *wire.RelayRequest_CountKeys:
		if !c.pools {
			return count(protocol.PoolKeys)
		}
		return count(len(c.dens[relay.QueueID(m.CountKeys.Queue)].keys))
	case *wire.RelayRequest_TakeKey:
		d := c.dens[relay.QueueID(m.TakeKey.Queue)]
		if d == nil || len(d.keys) == 0 {
			return &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_EMPTY}
		}
		k := d.keys[0]
		if !c.repeats {
			d.keys = d.keys[1:]
		}
		return okay(&wire.RelayAnswer{Result: &wire.RelayAnswer_Key{Key: &wire.RelayKey{Key: k}}})
	case *wire.RelayRequest_PutRecords:
		return count(len(m.PutRecords.Records))
	default:
		return refused
	}
	return done
}

// put has an entry given out, under an ID of its own.
func (c *crook) put(q relay.QueueID, blobs ...[]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range blobs {
		c.putLocked(q, b)
	}
}

func (c *crook) putLocked(q relay.QueueID, blob []byte) {
	c.last++
	c.entries = append(c.entries, &wire.RelayEntry{Queue: q[:], Id: c.last, Blob: blob})
	c.changed.wake()
}

// hold has what is deposited from now on kept back if holds says so.
func (c *crook) hold(holds func(relay.QueueID) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holds = holds
}

func everything(relay.QueueID) bool { return true }

// left returns what was deposited in a queue, in order.
func (c *crook) left(q relay.QueueID) [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.blobs[q])
}

// taken waits until nothing is to be given out any more from queues: their reader
// had all of it deleted.
func (c *crook) taken(queues ...relay.QueueID) {
	c.w.Helper()
	c.w.eventually("what a crook gives out to be deleted", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !slices.ContainsFunc(c.entries, func(e *wire.RelayEntry) bool { return slices.Contains(queues, relay.QueueID(e.Queue)) })
	})
}

// queueFor returns a person's queue at a crook for a contact, or the contact box.
func (p *person) queueFor(c *crook, contact *person) relay.QueueID {
	p.w.Helper()
	var who []byte
	if contact != nil {
		who = contact.id[:]
	}
	var id relay.QueueID
	err := p.store.View(func(tx *store.Tx) error {
		q, found, err := ownQueue(tx, c.self, who)
		if err == nil && q == nil {
			err = store.ErrNotFound
		}
		id = found
		return err
	})
	if err != nil {
		p.w.Fatal(err)
	}
	return id
}

// together makes two people contacts of each other who have the same relays.
func (p *person) together(q *person, cs ...*crook) {
	p.w.Helper()
	p.meet(q)
	p.fooled(cs...)
	q.fooled(cs...)
	p.knows(q, len(cs))
	q.knows(p, len(cs))
	// What they have yet to say to each other is said.
	p.tell(q, "we both are here")
	q.tell(p, "so we are")
}

// What a relay alters, moves to another queue or makes up is not shown, changes
// nothing and is answered with nothing; what it was given still opens.
func TestRelayForgesNothing(t *testing.T) {
	w := newWorld(t)
	c := w.crook(anyKey)
	a, b, e := w.person("Ada", quick), w.person("Bo", quick), w.person("Eve", quick)
	a.together(b, c)
	e.together(b, c)
	ofAda, ofEve, box := b.queueFor(c, a), b.queueFor(c, e), b.queueFor(c, nil)
	b.stop()
	c.hold(everything)
	a.stored(a.say("Bo", "from Ada"), 1)
	e.stored(e.say("Bo", "from Eve"), 1)
	a.stop()
	e.stop()
	adas, eves := c.left(ofAda), c.left(ofEve)
	if len(adas) != 1 || len(eves) != 1 {
		t.Fatalf("%d and %d messages were left", len(adas), len(eves))
	}
	real, other := adas[0], eves[0]
	at := func(i int, b []byte) []byte {
		b = slices.Clone(b)
		b[(i+len(b))%len(b)] ^= 1
		return b
	}
	forged := map[string][]byte{
		"a bit of the ML-KEM ciphertext": at(0, real), "a bit of the X25519 key": at(1100, real),
		"a bit of the text": at(1300, real), "a bit of the tag": at(-1, real),
		"the beginning of one and the end of the other": slices.Concat(real[:1120], other[1120:]),
		"a longer size": slices.Concat(real, make([]byte, 5232-len(real))),
		"nothing":       make([]byte, 2160), "no size": real[:len(real)-1],
	}
	for _, x := range forged {
		c.put(ofAda, x)
	}
	c.put(ofAda, other)
	c.put(ofEve, real)
	c.put(box, real, other)
	b.start()
	before, sessions := b.rows(), sessionsOf(b, a.id)+sessionsOf(b, e.id)
	c.taken(ofAda, ofEve, box)
	if after := b.rows(); !maps.Equal(before, after) {
		t.Errorf("rows were %v and are %v", before, after)
	}
	if after := sessionsOf(b, a.id) + sessionsOf(b, e.id); sessions != after {
		t.Errorf("sessions were %s and are %s", sessions, after)
	}
	if got := len(b.texts("Ada")) + len(b.texts("Eve")); got != 2 { // those of before
		t.Errorf("%d texts are shown", got)
	}
	c.put(ofAda, real)
	c.put(ofEve, other)
	b.until(textOf("Ada", "from Ada"))
	b.until(textOf("Eve", "from Eve"))
	c.taken(ofAda, ofEve, box)
	b.heard("Ada", "from Ada")
	b.heard("Eve", "from Eve")
}

// A relay that deletes nothing, and gives everything out again and again, has
// nothing shown twice, nor answered twice: not at once, not from another relay,
// not after a new start.
func TestRelayShowsNothingTwice(t *testing.T) {
	w := newWorld(t)
	one, two := w.crook(anyKey), w.crook(anyKey)
	a, b := w.person("Ada", quick), w.person("Bo", quick)
	a.together(b, one, two)
	b.keepPort() // it has nothing to tell when it starts again
	b.stop()
	const texts = 5
	var ids []string
	for i := range texts {
		ids = append(ids, a.say("Bo", fmt.Sprint("number ", i)))
	}
	for _, id := range ids {
		a.stored(id, 2)
	}
	a.stop()
	adas := func(c *crook) relay.QueueID { return b.queueFor(c, a) }
	answers := func() (n int) {
		for _, c := range []*crook{one, two} {
			c.mu.Lock()
			for q, blobs := range c.blobs {
				if c.from[q] != nil {
					n += len(blobs)
				}
			}
			c.mu.Unlock()
		}
		return n
	}
	b.start()
	b.until(textOf("Ada", "number 4"))
	w.eventually("the receipts to be left", func() bool { return b.owes(a) == 0 })
	one.taken(adas(one))
	two.taken(adas(two))
	said, before := answers(), b.rows()
	check := func() {
		t.Helper()
		for i := range texts {
			b.heard("Ada", fmt.Sprint("number ", i))
		}
		if n := answers(); n != said || b.owes(a) != 0 {
			t.Errorf("%d deposits, want %d; %d are owed", n, said, b.owes(a))
		}
		if after := b.rows(); !maps.Equal(before, after) {
			t.Errorf("rows were %v and are %v", before, after)
		}
	}
	for range 10 {
		for _, c := range []*crook{one, two} {
			c.put(adas(c), c.left(adas(c))...)
			c.taken(adas(c))
		}
	}
	check()
	b.restart()
	for _, c := range []*crook{one, two} {
		c.put(adas(c), c.left(adas(c))...)
		c.taken(adas(c))
	}
	check()
	a.start()
	for _, id := range ids {
		a.delivered(id)
	}
}

// A relay has the hash of an invite token from its owner, and again from its
// bearer. Neither spends it: whoever comes with it only asks, and the bearer is
// let in still.
func TestRelaySpendsNoToken(t *testing.T) {
	w := newWorld(t)
	helper := w.volunteer() // of the DHT
	net := helper.Status().Bootstrap
	on := func(p *person) { p.cfg.Bootstrap = net }
	c := w.crook(anyKey)
	b := w.person("Bo", quick, on)
	b.keepPort()
	b.fooled(c)
	link, public := b.invite(false), b.invite(true)
	b.published(1)
	box := b.queueFor(c, nil)
	var hashes [][]byte
	w.eventually("the token's hash", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		hashes = c.dens[box].tokens
		return len(hashes) == 2
	})
	b.stop()
	c.hold(everything)
	a := w.person("Ada", quick, on)
	a.add(link, "Bo")
	id := a.say("Bo", "with a token")
	a.stored(id, 1)
	a.stop()
	shown := false // by its bearer
	for _, r := range c.requests() {
		d := r.GetDeposit().GetToken()
		shown = shown || d != nil && slices.ContainsFunc(hashes, func(h []byte) bool { return bytes.Equal(h, d) })
	}
	if !shown {
		t.Fatal("the bearer showed no token's hash: the test shows nothing")
	}

	b.start()
	thief := w.caller(nil)
	thief.dial(w, b)
	for i, h := range hashes {
		for _, t := range []identity.Token{identity.Token(h[:identity.TokenSize]), identity.Token(h[identity.TokenSize:])} {
			u := w.puppet(fmt.Sprint("Thief ", i))
			u.begin(b, thief.bundles(w, b, public), &t, nil)
			w.wantStatus(thief.deliver(w, b, u.text(b, "let me in")), wire.Status_STATUS_HELD)
		}
	}
	state := func() string {
		list, err := b.Invites(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list {
			if i.Link == link {
				return i.State
			}
		}
		return "gone"
	}
	if list, err := b.Contacts(w.ctx, false); err != nil || len(list) != 0 || state() != "open" {
		t.Errorf("a relay spent a token: contacts are %+v, %v, and the invite is %s", list, err, state())
	}
	c.put(box, c.left(box)...)
	b.until(textOf("Ada", "with a token"))
	if got := b.contact("Ada").State; got != "accepted" || state() != "used" {
		t.Errorf("the bearer is %s, and the invite %s", got, state())
	}
}

func (c *crook) requests() (list []*wire.RelayRequest) {
	c.w.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.heard {
		r, err := relay.ParseRequest(b)
		if err != nil {
			c.w.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

// A message that a relay keeps back is missed once a later one comes: the reader
// is told, if it does not come in time, and its sender is never told that it
// arrived. Withheld for a short time, it is not missed.
func TestRelayDropsNothingUnnoticed(t *testing.T) {
	w := newWorld(t)
	c := w.crook(anyKey)
	var ahead atomic.Int64 // of Bo's clock
	a, b := w.person("Ada", quick), w.person("Bo", quick, func(p *person) {
		p.cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	a.together(b, c)
	a.keepPort()
	b.keepPort()
	q := b.queueFor(c, a)
	b.stop()
	c.hold(everything)
	var ids []string
	for i := range 6 {
		ids = append(ids, a.say("Bo", fmt.Sprint("number ", i)))
		a.stored(ids[i], 1)
	}
	a.stop()
	b.start()
	blobs := c.left(q)
	c.put(q, blobs[0], blobs[4], blobs[2])
	b.until(textOf("Ada", "number 2"))
	c.put(q, blobs[1]) // late, and in time
	b.until(textOf("Ada", "number 1"))
	gaps := func() (n int) {
		for _, s := range b.notices("Ada") {
			if strings.Contains(s, "missing") {
				n++
			}
		}
		return n
	}
	if n := gaps(); n != 0 {
		t.Fatalf("%d lines say that something is missing that may still come", n)
	}
	since := b.now()
	ahead.Store(int64(gapGrace + time.Minute))
	c.put(q, blobs[5])
	b.after(since, func(e Event) bool { return e.Type == "notice" && e.Chat == "Ada" && e.State == "gap" })
	b.until(textOf("Ada", "number 5"))
	if n := gaps(); n != 1 {
		t.Errorf("%d lines say that something is missing", n)
	}
	for i, want := range []int{1, 1, 1, 0, 1, 1} {
		if n := len(slices.DeleteFunc(b.texts("Ada"), func(s string) bool { return s != fmt.Sprint("number ", i) })); n != want {
			t.Errorf("number %d is shown %d times", i, n)
		}
	}
	w.eventually("the receipts to be left", func() bool { return b.owes(a) == 0 })
	b.stop()
	c.hold(nil)
	for aq := range c.kinds() { // Ada is told what arrived
		if aq != q {
			c.put(aq, c.left(aq)...)
		}
	}
	a.start()
	a.delivered(ids[5])
	if m, err := a.WaitMessage(w.ctx, ids[3], "delivered", 0); err != nil || m.State != "stored" {
		t.Errorf("the message that was withheld is %s, %v", m.State, err)
	}
	// It comes after all, from Ada herself, and is not missed any more.
	b.start()
	a.delivered(ids[3])
	b.heard("Ada", "number 3")
	if n := gaps(); n != 1 {
		t.Errorf("%d lines say that something is missing", n)
	}
}

func (c *crook) kinds() map[relay.QueueID]wire.QueueKind {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := map[relay.QueueID]wire.QueueKind{}
	for q, d := range c.dens {
		m[q] = d.kind
	}
	return m
}

// What a contact's numbers say of what is missing stays small, whatever they are.
func TestGapsAreBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	noted := func(c *store.Contact) (s []uint64) {
		for _, g := range c.Gaps {
			s = append(s, g.First, g.Last)
		}
		return s
	}
	c := &store.Contact{}
	for _, step := range []struct {
		seq  uint64
		want []uint64
	}{
		{1, nil},
		{2, nil},
		{9, []uint64{3, 8}},
		{5, []uint64{3, 4, 6, 8}},
		{6, []uint64{3, 4, 7, 8}},
		{8, []uint64{3, 4, 7, 7}},
		{7, []uint64{3, 4}},
		{7, []uint64{3, 4}},
		{4, []uint64{3, 3}},
		{3, nil},
		{10, nil},
		{1<<64 - 1, []uint64{11, 1<<64 - 2}},
		{1, []uint64{11, 1<<64 - 2}},
	} {
		if missing := arrived(c, step.seq, now); missing != (len(step.want) > 0) || !slices.Equal(noted(c), step.want) {
			t.Fatalf("after %d, %v is missing, %t; want %v", step.seq, noted(c), missing, step.want)
		}
	}
	c = &store.Contact{}
	for seq := uint64(2); seq < 2000; seq += 2 {
		arrived(c, seq, now.Add(time.Duration(seq)*time.Second))
	}
	got := noted(c)
	if len(c.Gaps) != maxGaps || got[0] != 1 || got[len(got)-1] != 1997 || !time.UnixMilli(c.Gaps[0].Since).Equal(now.Add(2*time.Second)) {
		t.Errorf("%v is missing, since %s", got, time.UnixMilli(c.Gaps[0].Since))
	}
	arrived(c, 100, now) // in the middle of one, with no room for two
	if !slices.Equal(noted(c), got) {
		t.Errorf("%v is missing, want %v", noted(c), got)
	}
}

// A relay that gives one one-time key to everybody loses no message, and is
// dropped by its owner when enough people came with that key.
func TestRelayThatRepeatsKeysIsDropped(t *testing.T) {
	w := newWorld(t)
	honest := w.volunteer()
	net := honest.Status().Bootstrap
	on := func(p *person) { p.cfg.Bootstrap = net }
	link, err := relay.ParseLink(honest.link())
	if err != nil {
		t.Fatal(err)
	}
	c := w.crook(link.Transport) // it is asked first
	c.pools, c.repeats = true, true
	b := w.person("Bo", quick, on)
	b.keepPort()
	b.uses(honest)
	b.fooled(c)
	w.eventually("one-time keys", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.ContainsFunc(slices.Collect(maps.Values(c.dens)), func(d *den) bool { return len(d.keys) > 0 })
	})
	state := func() string {
		list, err := b.Relays(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			if r.ID == c.ID().String() {
				return r.State
			}
		}
		return "gone"
	}
	var links []string
	for range repeatsProof + 1 {
		links = append(links, b.invite(false))
	}
	b.published(2)
	b.stop()
	var strangers []*person
	for i, l := range links {
		p := w.person(fmt.Sprint("Stranger ", i), quick, on)
		p.add(l, "Bo")
		p.stored(p.say("Bo", "hello of "+p.name), 2)
		strangers = append(strangers, p)
	}
	taken := 0
	for _, r := range c.requests() {
		if r.GetTakeKey() != nil {
			taken++
		}
	}
	if taken != len(strangers) {
		t.Fatalf("%d keys were taken, want %d: the test shows nothing", taken, len(strangers))
	}
	b.start()
	for _, p := range strangers {
		b.until(textOf(p.name, "hello of "+p.name))
	}
	for _, p := range strangers {
		b.heard(p.name, "hello of "+p.name)
	}
	b.until(func(e Event) bool { return e.Type == "relay" && e.State == "dropped" && e.Text == c.ID().String() })
	if got := state(); got != "dropped" {
		t.Errorf("the relay is %s", got)
	}
	b.published(1) // strangers are told of the other alone
}

// Two people who agree cannot make a relay look like one that repeats keys, nor
// can one case; and whatever it looks like, the last relay stays.
func TestRelayIsNotFramedByTwo(t *testing.T) {
	w := newWorld(t)
	one, two := w.crook(anyKey), w.crook(anyKey)
	b := w.person("Bo", quick)
	b.fooled(one, two)
	now := time.Now()
	account := func(i byte) identity.Account { return identity.Account{i} }
	report := func(c *crook, at time.Time, first, second byte) string {
		t.Helper()
		err := b.store.Update(func(tx *store.Tx) error {
			return b.relayRepeats(tx, at, &session.Repeated{Relay: c.self, First: account(first)}, account(second))
		})
		if err != nil {
			t.Fatal(err)
		}
		r, err := b.relay(c.self)
		if err != nil {
			t.Fatal(err)
		}
		return r.State
	}
	for range 10 {
		for _, pair := range [][2]byte{{1, 2}, {2, 1}} {
			if got := report(one, now, pair[0], pair[1]); got == "dropped" {
				t.Fatal("two people framed a relay")
			}
		}
	}
	if got := report(one, now, 1, 3); got == "dropped" {
		t.Error("two cases are enough")
	}
	if got := report(one, now.Add(protocol.DedupeLife), 4, 5); got == "dropped" {
		t.Error("cases of a month ago count")
	}
	if got := report(one, now.Add(protocol.DedupeLife), 4, 6); got == "dropped" {
		t.Error("two cases are enough after a month")
	}
	if got := report(one, now.Add(protocol.DedupeLife), 7, 8); got != "dropped" {
		t.Errorf("after three cases the relay is %s", got)
	}
	for i := byte(10); i < 20; i++ {
		if got := report(two, now, i, 100+i); got == "dropped" {
			t.Fatal("the last relay was dropped")
		}
	}
}

// rows counts the rows of every table that what comes through a relay could
// write to.
func (p *person) rows() map[string]int {
	p.w.Helper()
	m := map[string]int{}
	for name, count := range map[string]func(*store.Tx) (int, error){
		"answers": sizeOf(store.Answers), "contacts": sizeOf(store.Contacts), "handshakes": sizeOf(store.Handshakes),
		"history": sizeOf(store.History), "journal": sizeOf(store.Journal), "messages": sizeOf(store.Messages),
		"names": sizeOf(store.Names), "outbox": sizeOf(store.Outbox), "owed": sizeOf(store.OwedReceipts),
		"pool keys": sizeOf(store.PoolKeys), "queues": sizeOf(store.OwnQueues), "received": sizeOf(store.ReceivedEnvelopes),
		"relays": sizeOf(store.OwnRelays), "sealing keys": sizeOf(store.SealingKeys), "seen": sizeOf(store.SeenIDs),
		"seen sealed": sizeOf(store.SeenSealed), "sessions": sizeOf(store.Sessions), "skipped": sizeOf(store.SkippedKeys),
		"unacknowledged": sizeOf(store.Unacked), "used keys": sizeOf(store.UsedOneTime),
	} {
		m[name] = rows(p, count)
	}
	return m
}

// A forger may deposit in a person's queues and knows what every contact does:
// the sealing key, and the manifests of others.
type forger struct {
	w   *world
	to  identity.DeviceEntry
	key hpke.PublicKey
	as  *wire.Sealed // whom it claims to be
}

func (w *world) forger(to, as *person) *forger {
	w.Helper()
	f := &forger{w: w, to: identity.DeviceEntry{Key: to.self.device.Device(), DH: to.self.device.DH().Public()}}
	device := as.self.device.Device()
	err := to.store.Update(func(tx *store.Tx) error {
		keys, err := to.sessions.SealingKeys(tx, time.Now())
		if err != nil {
			return err
		}
		var signed wire.Signed
		var key wire.SealingKey
		if err := errors.Join(wire.Parse(keys[0], protocol.MaxSealing, &signed), wire.Parse(signed.Body, protocol.MaxSealing, &key)); err != nil {
			return err
		}
		f.key, err = hpke.MLKEM768X25519().NewPublicKey(key.Key)
		return err
	})
	if err == nil {
		err = as.store.View(func(tx *store.Tx) error {
			me, err := store.Selves.Get(tx, store.SelfKey())
			f.as = &wire.Sealed{Manifest: me.GetManifest(), Device: device[:]}
			return err
		})
	}
	if err != nil {
		w.Fatal(err)
	}
	return f
}

// seal seals what is no envelope, or whatever else, for a queue.
func (f *forger) seal(q relay.QueueID, inside []byte, size int) []byte {
	f.w.Helper()
	padded := make([]byte, size)
	padded[copy(padded, inside)] = 0x80
	enc, sender, err := hpke.NewSender(f.key, hpke.HKDFSHA256(), hpke.AES256GCM(), protocol.LabelSealed.Bind(f.to.Key[:], q[:]))
	if err != nil {
		f.w.Fatal(err)
	}
	b, err := sender.Seal(nil, padded)
	if err != nil {
		f.w.Fatal(err)
	}
	return slices.Concat(enc, b)
}

func random(n int) []byte {
	b := make([]byte, n)
	crand.Read(b)
	return b
}

// kinds of what somebody leaves who is not the one that they claim to be.
func (f *forger) kinds(q relay.QueueID, inner []byte) [][]byte {
	claim := func(envelope []byte, size int) []byte {
		return f.seal(q, wire.Marshal(&wire.Sealed{Manifest: f.as.Manifest, Device: f.as.Device, Envelope: envelope, Tag: random(32)}), size)
	}
	shape := wire.Marshal(&wire.Envelope{Session: random(32), Message: random(337)})
	return [][]byte{
		claim(random(400), 1024), claim(shape, 1024), claim(inner, 4096), claim(random(12_000), 16384),
		f.seal(q, random(900), 1024), f.seal(q, f.as.Manifest, 1024), random(17_520), random(2160),
	}
}

// A thousand envelopes with a contact's manifest and garbage in them, from
// somebody who may deposit, in the contact box and in that contact's queue: no
// session is renewed, nothing is answered, and nothing grows: not the rows, not
// the disk, not memory.
func TestForgedEnvelopesLeaveNothing(t *testing.T) {
	w := newWorld(t)
	c := w.crook(anyKey)
	a, b := w.person("Ada", quick), w.person("Bo", quick, onDisk)
	a.together(b, c)
	ofAda, box := b.queueFor(c, a), b.queueFor(c, nil)
	w.eventually("no receipt to be owed", func() bool { return b.owes(a) == 0 && a.owes(b) == 0 })
	f := w.forger(b, a)
	inner := wire.Marshal(&wire.Envelope{Error: &wire.DecryptionError{
		Envelope: random(32), Session: random(32), Reason: wire.Reason_REASON_NO_SESSION, Mac: random(32),
	}})
	forge := func(n int) {
		for n > 0 {
			for _, q := range []relay.QueueID{ofAda, box} {
				kinds := f.kinds(q, inner)
				c.put(q, kinds[:min(n, len(kinds))]...)
				n -= min(n, len(kinds))
			}
			c.taken(ofAda, box)
		}
	}
	deposits := func() (n int) {
		for q := range c.kinds() {
			n += len(c.left(q))
		}
		return n
	}
	heap := func() uint64 {
		c.mu.Lock()
		c.heard = nil
		c.mu.Unlock()
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	forge(100) // caches are warm
	rows, sessions, said := b.rows(), sessionsOf(b, a.id)+sessionsOf(a, b.id), deposits()
	disk, memory := folderSize(t, b.home), heap()
	forge(900)
	if after := b.rows(); !maps.Equal(rows, after) {
		t.Errorf("rows were %v and are %v", rows, after)
	}
	if after := sessionsOf(b, a.id) + sessionsOf(a, b.id); sessions != after {
		t.Errorf("sessions were %s and are %s", sessions, after)
	}
	if after := deposits(); after != said {
		t.Errorf("%d answers were left", after-said)
	}
	// 900 of them are 5 MB.
	if after := folderSize(t, b.home); after > disk+(128<<10) {
		t.Errorf("the folder grew from %d to %d bytes", disk, after)
	}
	if after := heap(); after > memory+(3<<20) {
		t.Errorf("memory grew from %d to %d bytes", memory, after)
	}
	a.tell(b, "still here")
	b.tell(a, "so am I")
}

// sealingKey is what a person's record says to seal with.
func (p *person) sealingKey() (to identity.DeviceEntry, key *envelope.SealingKey) {
	p.w.Helper()
	err := p.store.Update(func(tx *store.Tx) error {
		keys, err := p.sessions.SealingKeys(tx, time.Now())
		if err != nil {
			return err
		}
		to = identity.DeviceEntry{Key: p.self.device.Device(), DH: p.self.device.DH().Public()}
		key, err = envelope.OpenSealingKey(keys[0], p.id, to.Key, time.Now())
		return err
	})
	if err != nil {
		p.w.Fatal(err)
	}
	return to, key
}

// Whoever may deposit can make up accounts, whose envelopes open and say nothing
// to this user: they leave nothing, and the relay that brings them without end is
// known by it.
func TestMadeUpAccountsLeaveNothing(t *testing.T) {
	w := newWorld(t)
	c := w.crook(anyKey)
	a, b := w.person("Ada", quick), w.person("Bo", quick)
	a.together(b, c)
	ofAda, box := b.queueFor(c, a), b.queueFor(c, nil)
	w.eventually("no receipt to be owed", func() bool { return b.owes(a) == 0 && a.owes(b) == 0 })
	to, key := b.sealingKey()
	before := b.rows()
	const many = 2 * maxAnswers
	for i := range many {
		nobody := w.puppet("Nobody")
		inside := wire.Marshal(&wire.Envelope{Session: random(32), Message: random(337)})
		queue := box
		switch i % 8 {
		case 0:
			inside = random(400)
		case 1:
			inside = wire.Marshal(&wire.Envelope{Error: &wire.DecryptionError{
				Envelope: random(32), Session: random(32), Reason: wire.Reason_REASON_NO_SESSION, Mac: random(32),
			}})
		case 2:
			queue = ofAda
		}
		sealed, err := envelope.SealFor(to, key, queue, envelope.Sender{Key: nobody.device, Manifest: nobody.manifest}, inside)
		if err != nil {
			t.Fatal(err)
		}
		c.put(queue, sealed)
	}
	c.taken(ofAda, box)
	if after := b.rows(); !maps.Equal(before, after) {
		t.Errorf("rows were %v and are %v", before, after)
	}
	if got, _ := b.readers.status(c.self); got.Useless < many {
		t.Errorf("the relay brought %d entries of no use, and the status says %d", many, got.Useless)
	}
	a.tell(b, "still here")
}

// Strangers whose envelopes do not open are answered if they say where, a few in an
// hour; contacts are as if there were none of them.
func TestStrangersTakeNoAnswerFromContacts(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada", quick), w.person("Bo", quick)
	a.meet(b)
	now := time.Now()
	owe := func(now time.Time, to identity.Account, mail *wire.Mail) {
		t.Helper()
		bad := &session.Undecryptable{Peer: to, Answer: &wire.DecryptionError{
			Envelope: random(32), Session: random(32), Reason: wire.Reason_REASON_CANNOT_OPEN, Mac: random(32),
		}, New: &prekey.Introduced{Profile: identity.Profile{Mail: mail}}}
		if err := b.store.Update(func(tx *store.Tx) error { return b.oweError(tx, now, bad) }); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (contact, strangers int) {
		err := b.store.View(func(tx *store.Tx) error {
			for row, err := range store.Answers.Scan(tx, nil, nil) {
				if err != nil {
					return err
				}
				if slices.Equal(row.Value.Account, a.id[:]) {
					contact++
				} else {
					strangers++
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return contact, strangers
	}
	for range 3 * maxAnswers {
		owe(now, identity.Account(random(32)), nil) // cannot be answered
	}
	one := identity.Account(random(32))
	for range maxStrangers {
		owe(now, one, &wire.Mail{Mailboxes: [][]byte{{1}}})
	}
	if _, n := count(); n != maxStrangers/4 {
		t.Errorf("%d answers are noted for one stranger", n)
	}
	for range 3 * maxAnswers {
		owe(now, identity.Account(random(32)), &wire.Mail{Mailboxes: [][]byte{{1}}})
	}
	for range maxAnswers {
		owe(now, a.id, nil)
	}
	if c, n := count(); c != maxAnswers/4 || n != maxStrangers {
		t.Errorf("%d answers are noted for a contact and %d for strangers", c, n)
	}
	owe(now.Add(answerMemory), identity.Account(random(32)), &wire.Mail{Mailboxes: [][]byte{{1}}})
	if _, n := count(); n != maxStrangers+1 {
		t.Errorf("an hour later %d answers are noted for strangers", n)
	}
}

// One stranger whose request waits leaves most of the contact box to others.
func TestOneRequestDoesNotFillTheContactBox(t *testing.T) {
	w := newWorld(t)
	c := w.crook(anyKey)
	a, b := w.person("Ada", quick), w.person("Bo", quick)
	a.together(b, c)
	box := b.queueFor(c, nil)
	host := w.caller(nil)
	host.dial(w, b)
	u := w.puppet("Nobody")
	u.begin(b, host.bundles(w, b, b.invite(true)), nil, nil)
	to, key := b.sealingKey()
	for i := range protocol.BoxMessages + maxRequestEntries {
		sealed, err := envelope.SealFor(to, key, box, envelope.Sender{Key: u.device, Manifest: u.manifest}, u.text(b, strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		c.put(box, sealed)
	}
	var n int
	w.eventually("most to be deleted", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		n = 0
		for _, e := range c.entries {
			if relay.QueueID(e.Queue) == box {
				n++
			}
		}
		return n <= maxHeldOf
	})
	if n != maxHeldOf {
		t.Errorf("%d entries stay, want %d", n, maxHeldOf)
	}
	if got := len(b.texts("Nobody")); got != maxRequestEntries {
		t.Errorf("the request has %d texts", got)
	}
}

// A relay that stops, goes on and stops, each time that it is asked, has its user
// tell their contacts of it once a day.
func TestRelayChangesItsMindOnceADay(t *testing.T) {
	w := newWorld(t)
	c := w.crook(anyKey)
	b := w.person("Bo", quick)
	b.fooled(c)
	host := w.caller(nil)
	if err := host.Connect(w.ctx, peer.AddrInfo{ID: c.ID(), Addrs: c.Addrs()}); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.flips = true
	c.mu.Unlock()
	changes := func() (n int) {
		for range 20 {
			conn, err := client.Dial(w.ctx, host, identity.Endpoint{Transport: c.self})
			if err != nil {
				t.Fatal(err)
			}
			d := &tending{n: b.Node, t: c.self, c: conn}
			if err := d.plan(); err != nil {
				t.Error(err)
			}
			if d.fresh {
				n++
			}
			conn.Close()
		}
		return n
	}
	events := b.rows()["journal"]
	if n := changes(); n != 1 {
		t.Errorf("contacts were to be told %d times", n)
	}
	if n := b.rows()["journal"] - events; n > 1 {
		t.Errorf("%d events", n)
	}
	err := b.store.Update(func(tx *store.Tx) error { // a day later
		r, err := store.OwnRelays.Get(tx, store.PeerKey(c.self))
		if err != nil {
			return err
		}
		r.Turned -= turnEvery.Milliseconds()
		return store.OwnRelays.Put(tx, store.PeerKey(c.self), r)
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := changes(); n != 1 {
		t.Errorf("on the next day contacts were to be told %d times", n)
	}
}

func folderSize(t testing.TB, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		i, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			n += i.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A depositor comes to each relay, and for each person, as somebody else: no
// transport key of theirs is seen twice, nor is it their node's. The reader's is
// not their node's either.
func TestDepositorIsNobody(t *testing.T) {
	w := newWorld(t)
	one, two := w.crook(anyKey), w.crook(anyKey)
	a, b, e := w.person("Ada", quick), w.person("Bo", quick), w.person("Eve", quick)
	a.together(b, one, two)
	a.meet(e)
	e.fooled(one, two)
	a.knows(e, 2)
	b.stop()
	e.stop()
	for _, to := range []string{"Bo", "Eve"} {
		a.stored(a.say(to, "hello "+to), 2)
	}
	b.start()
	e.start()
	places := map[peer.ID]string{a.host.ID(): "Ada's node", b.host.ID(): "Bo's node", e.host.ID(): "Eve's node"}
	deposits := 0
	for _, c := range []*crook{one, two} {
		c.mu.Lock()
		defer c.mu.Unlock()
		for p := range c.readers {
			if at, seen := places[p]; seen {
				t.Errorf("a reader is %s", at)
			}
			places[p] = "a reader"
		}
		for q, from := range c.from {
			at := fmt.Sprintf("in queue %x at relay %x", q[:2], c.self[:2])
			for _, p := range from {
				deposits++
				if other, seen := places[p]; seen && other != at {
					t.Errorf("who deposits %s also is %s", at, other)
				}
				places[p] = at
			}
		}
	}
	if deposits < 4 {
		t.Errorf("%d deposits: the test shows nothing", deposits)
	}
}

// What two relays have of one message is of one size, and has not eight bytes in
// common.
func TestTwoCopiesShareNothing(t *testing.T) {
	w := newWorld(t)
	one, two := w.crook(anyKey), w.crook(anyKey)
	a, b := w.person("Ada", quick), w.person("Bo", quick)
	a.together(b, one, two)
	b.stop()
	for _, text := range []string{"short", strings.Repeat("long, and the same again; ", 400)} {
		a.stored(a.say("Bo", text), 2)
		b.start()
		x, y := one.left(b.queueFor(one, a)), two.left(b.queueFor(two, a))
		b.stop()
		here, there := x[len(x)-1], y[len(y)-1]
		if len(here) != len(there) {
			t.Errorf("the copies have %d and %d bytes", len(here), len(there))
		}
		if i, ok := common(here, there, 8); ok {
			t.Errorf("the copies have %x in common", here[i:i+8])
		}
		// The search finds what is there.
		copy(there[777:], here[1001:1009])
		if i, ok := common(here, there, 8); !ok || i != 1001 {
			t.Errorf("eight bytes that are in both were not found")
		}
	}
}

// common returns where in a the first n bytes are that are anywhere in b.
func common(a, b []byte, n int) (at int, ok bool) {
	parts := map[string]bool{}
	for i := range len(b) - n + 1 {
		parts[string(b[i:i+n])] = true
	}
	for i := range len(a) - n + 1 {
		if parts[string(a[i:i+n])] {
			return i, true
		}
	}
	return 0, false
}

// A needle is something that is looked for, in every form in which it may have
// been written down.
type needle struct {
	what  string
	forms [][]byte
}

func needleOf(what string, b []byte) needle {
	n := needle{what, [][]byte{b, []byte(hex.EncodeToString(b)), []byte(strings.ToUpper(hex.EncodeToString(b)))}}
	text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b)
	n.forms = append(n.forms, []byte(text), []byte(strings.ToLower(text)))
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift, lost := range []int{0, 2, 3} { // wherever it begins in what was encoded
			s := enc.EncodeToString(append(make([]byte, shift), b...))
			if (shift+len(b))%3 != 0 {
				s = s[:len(s)-1]
			}
			n.forms = append(n.forms, []byte(s[lost:]))
		}
	}
	return n
}

func peerNeedle(t testing.TB, what string, id peer.ID) needle {
	t.Helper()
	n := needleOf(what, []byte(id))
	cid := peer.ToCid(id)
	base36, err := cid.StringOfBase(multibase.Base36)
	if err != nil {
		t.Fatal(err)
	}
	n.forms = append(n.forms, []byte(id.String()), []byte(cid.String()), []byte(base36))
	return n
}

func textNeedle(what, text string) needle { return needleOf(what, []byte(text)) }

// in returns the form of a needle that is in a haystack, or nil.
func (n needle) in(hay []byte) []byte {
	for _, f := range n.forms {
		if bytes.Contains(hay, f) {
			return f
		}
	}
	return nil
}

// needles returns all that tells who a person is, or what they can do.
func (p *person) needles() []needle {
	p.w.Helper()
	var lookup []byte
	var generation uint64
	err := p.store.View(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err == nil {
			lookup, generation = me.LookupSecret, me.Generation
		}
		return err
	})
	if err != nil || generation == 0 {
		p.w.Fatal(err)
	}
	device, dh := p.self.device.Device(), p.self.device.DH().Public()
	transport, _ := transportOf(p.host.ID())
	of := func(what string) string { return what + " of " + p.name }
	return []needle{
		needleOf(of("account key"), p.id[:]), textNeedle(of("account ID"), p.id.String()),
		needleOf(of("device signing key"), device[:]), needleOf(of("device DH key"), dh[:]),
		needleOf(of("transport key"), transport[:]), peerNeedle(p.w, of("peer ID"), p.host.ID()),
		textNeedle(of("name"), p.name), needleOf(of("lookup secret"), lookup),
	}
}

// dump writes down the rows of tables as they are before they are encrypted.
func dump(t testing.TB, db *store.DB, tables ...func(*store.Tx, *bytes.Buffer) error) []byte {
	t.Helper()
	var out bytes.Buffer
	err := db.View(func(tx *store.Tx) error {
		for _, table := range tables {
			if err := table(tx, &out); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func plain[T any, P interface {
	*T
	proto.Message
}](table store.Table[T, P]) func(*store.Tx, *bytes.Buffer) error {
	return func(tx *store.Tx, out *bytes.Buffer) error {
		for row, err := range table.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			out.Write(row.Key)
			out.Write(wire.Marshal(row.Value))
		}
		return nil
	}
}

// files returns the contents of all files in a folder, without pages of zeros.
func files(t testing.TB, dir string) []byte {
	t.Helper()
	const page = 4096
	var all []byte
	zeros := make([]byte, page)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for part := range slices.Chunk(b, page) {
			if !bytes.Equal(part, zeros[:len(part)]) {
				all = append(all, part...)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Two people meet, talk, and acknowledge what they read, all of it through relays
// with real folders. In what the relays keep, as it is on the disk and as they
// read it, is neither a key, an ID, a name, a text, a token nor a lookup secret
// of them.
func TestRelayDiskNamesNobody(t *testing.T) {
	w := newWorld(t)
	helper := w.volunteer()
	net := helper.Status().Bootstrap
	on := func(p *person) { p.cfg.Bootstrap = net }
	one, two := w.volunteer(net...), w.volunteer(net...)
	for i, v := range []*volunteer{one, two} {
		v.moves(filepath.Join(t.TempDir(), fmt.Sprint(i)))
	}
	b := w.person("Bo of the many letters", quick, on)
	b.uses(one, two)
	link := b.invite(false)
	b.published(2)
	needles := b.needles()
	parsed, err := identity.ParseLink(link)
	if err != nil {
		t.Fatal(err)
	}
	token := parsed.Token.ID()
	needles = append(needles, needleOf("token", parsed.Token[:]), needleOf("token ID", token[:]))
	b.stop()

	texts := []string{"a first word to somebody who is away", "an answer to one who left again", "a third and last word of them"}
	a := w.person("Ada with a long name", quick, on)
	a.uses(one, two)
	a.add(link, b.name)
	needles = append(needles, a.needles()...)
	id := a.say(b.name, texts[0])
	a.stored(id, 2)
	a.stop()
	b.start()
	b.until(textOf(a.name, texts[0]))
	b.told(a, 2)
	b.stop()
	a.start()
	a.delivered(id)
	a.knows(b, 2)
	a.stored(a.say(b.name, texts[2]), 2)
	for _, s := range texts {
		needles = append(needles, textNeedle("a text", s))
	}
	held := a.dumpAll() // Ada's messages are still at the relays
	a.stop()
	b.start()
	b.until(textOf(a.name, texts[2]))
	answer := b.say(a.name, texts[1])
	b.stored(answer, 2)
	held = append(held, b.dumpAll()...)
	b.stop()

	for _, n := range needles {
		if n.in(held) == nil {
			t.Errorf("what the people have themselves does not hold %s: the search finds nothing", n.what)
		}
	}
	for _, v := range []*volunteer{one, two} {
		v.stop()
		hay := files(t, v.home)
		db := v.db()
		hay = append(hay, dump(t, db, plain(store.RelayStates), plain(store.RelayQueues), plain(store.RelayKeys), plain(store.RelayRecords),
			plain(store.RelayAdmissions), plain(store.RelayBlobs), plain(store.Peers), plain(store.Bootstrap), plain(store.Meta))...)
		var queues [][]byte
		err := db.View(func(tx *store.Tx) error {
			for row, err := range store.RelayQueues.Scan(tx, nil, nil) {
				if err != nil {
					return err
				}
				queues = append(queues, row.Key)
			}
			return nil
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		if len(queues) != 4 {
			t.Errorf("the relay has %d queues, want 4", len(queues))
		}
		for _, n := range needles {
			if f := n.in(hay); f != nil {
				t.Errorf("what a relay keeps holds %s, as %q", n.what, f)
			}
		}
		// What the relay does keep is found, and so is what would be put there.
		for _, q := range queues {
			if needleOf("queue", q).in(hay) == nil {
				t.Error("a queue's ID is not in what the relay keeps: the search finds nothing")
			}
		}
		for _, n := range needles {
			for i, f := range n.forms {
				planted := slices.Concat(hay[:len(hay)/2], f, hay[len(hay)/2:])
				if i%4 == 0 && n.in(planted) == nil {
					t.Errorf("%s was put there, and is not found", n.what)
				}
			}
		}
	}
}

// dumpAll returns what a person's store says of people, in plain.
func (p *person) dumpAll() []byte {
	p.w.Helper()
	b := dump(p.w, p.store, plain(store.Selves), plain(store.Contacts), plain(store.History), plain(store.Invites), plain(store.Outbox))
	transport, _ := transportOf(p.host.ID())
	return slices.Concat(b, []byte(p.id.String()), []byte(p.host.ID()), transport[:])
}

// Nothing that a relay is asked when one-time keys are left and taken, nor what
// it is given, names the account that they are for. Who knows the account and
// its lookup secret finds the pool; two relays' pools have nothing in common.
func TestKeyRequestNamesNobody(t *testing.T) {
	w := newWorld(t)
	helper := w.volunteer()
	net := helper.Status().Bootstrap
	on := func(p *person) { p.cfg.Bootstrap = net }
	one, two := w.crook(anyKey), w.crook(anyKey)
	one.pools, two.pools = true, true
	b := w.person("Bo of the many letters", quick, on)
	b.fooled(one, two)
	link := b.invite(false)
	b.published(2)
	needles := b.needles()
	parsed, err := identity.ParseLink(link)
	if err != nil {
		t.Fatal(err)
	}
	needles = append(needles, needleOf("token", parsed.Token[:]))
	boxes := map[*crook]relay.QueueID{one: b.queueFor(one, nil), two: b.queueFor(two, nil)}
	b.stop()
	a := w.person("Ada with a long name", quick, on)
	needles = append(needles, a.needles()...)
	a.add(link, "Bo")
	a.stored(a.say("Bo", "hello"), 2)

	taken, pools := 0, map[relay.PoolID]bool{}
	var put [][]byte
	for _, c := range []*crook{one, two} {
		want := relay.NewPool(parsed.Account, parsed.Lookup, c.self, boxes[c]).ID()
		pools[want] = true
		for _, r := range c.requests() {
			b := wire.Marshal(r)
			for _, n := range needles {
				if f := n.in(b); f != nil {
					t.Errorf("a relay was told %s, as %q, by %T", n.what, f, r.Command)
				}
			}
			switch m := r.Command.(type) {
			case *wire.RelayRequest_TakeKey:
				taken++
				if relay.PoolID(m.TakeKey.Pool) != want || relay.QueueID(m.TakeKey.Queue) != boxes[c] {
					t.Error("a key was taken from another pool")
				}
			case *wire.RelayRequest_PutKeys:
				if relay.PoolID(m.PutKeys.Pool) != want {
					t.Error("keys were left in another pool")
				}
				put = append(put, m.PutKeys.Keys[0])
			}
		}
	}
	if taken == 0 || len(put) < 2 || len(pools) != 2 {
		t.Fatalf("%d keys were taken, %d times some were left in %d pools: the test shows nothing", taken, len(put), len(pools))
	}
	if i, ok := common(put[0], put[len(put)-1], 8); ok {
		t.Errorf("keys of two pools have %x in common", put[0][i:i+8])
	}
}
