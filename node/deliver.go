package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"starling/dht/record"
	"starling/node/relay/client"
	"starling/node/session"
	"starling/node/store"
	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// courier is the node as the outbox sees it: it opens sessions and carries
// envelopes over direct streams.
type courier struct{ n *Node }

// introSealing is how many weeks' sealing keys a first message carries.
const introSealing = 2

// awayAfter is how long a peer is tried to be reached before a session is opened
// with what its record and its relays have. An attempt to reach it goes on.
const awayAfter = 3 * time.Second

// Prepare makes sure that there is a session to send on: it reaches the peer
// and asks it for a one-time key (T1). If that takes too long, and the peer has a
// contact box, it takes a one-time key from a relay (T2), or does without (T3).
func (k courier) Prepare(ctx context.Context, a identity.Account) error {
	n := k.n
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reached := make(chan error, 1)
	go func() { reached <- n.prepareThere(ctx, a) }()
	timer := time.NewTimer(awayAfter)
	defer timer.Stop()
	var err error
	select {
	case err = <-reached:
		if err == nil {
			return nil
		}
		reached = nil
	case <-timer.C:
	}
	awayErr := n.prepareAway(ctx, a)
	if awayErr == nil {
		cancel() // whoever is there after all has the session all the same
	}
	if reached != nil {
		err = <-reached
	}
	if awayErr == nil || err == nil {
		return nil
	}
	return err
}

// prepareThere opens a session with a peer that is reached.
func (n *Node) prepareThere(ctx context.Context, a identity.Account) error {
	p, err := n.reachPeer(ctx, a)
	if err != nil {
		return err
	}
	answer, err := n.askPreKey(ctx, p, a)
	if err == nil {
		return n.startSession(a, answer)
	}
	answers, recordErr := n.dayKeys(ctx, p, a)
	if recordErr != nil {
		return fmt.Errorf("asking for a one-time key: %w", err)
	}
	for _, answer := range answers {
		if err = n.startSession(a, answer); err == nil {
			return nil
		}
	}
	return err
}

// dayKeys reads the record that p has of an account: one answer for each
// device, without one-time keys.
func (n *Node) dayKeys(ctx context.Context, p peer.ID, a identity.Account) ([]*wire.PreKeyAnswer, error) {
	var c *store.Contact
	err := n.store.View(func(tx *store.Tx) (err error) {
		c, err = store.Contacts.Get(tx, store.ContactKey(a))
		return err
	})
	if err != nil {
		return nil, err
	}
	body, ok := n.fetch(ctx, p, c)
	if !ok {
		return nil, errNotFound
	}
	if err := n.found(a, body); err != nil {
		return nil, err
	}
	return dayAnswers(body)
}

// dayAnswers returns what a record says as answers without one-time keys, one for
// each device.
func dayAnswers(body record.Body) ([]*wire.PreKeyAnswer, error) {
	var answers []*wire.PreKeyAnswer
	for _, bundle := range body.Bundles {
		answer := &wire.PreKeyAnswer{Manifest: new(wire.Signed), Day: new(wire.Signed)}
		if err := wire.Parse(body.ManifestBytes, protocol.MaxManifest, answer.Manifest); err != nil {
			return nil, err
		}
		if err := wire.Parse(bundle, protocol.MaxBundle, answer.Day); err != nil {
			return nil, err
		}
		answers = append(answers, answer)
	}
	if len(answers) == 0 {
		return nil, errNotFound
	}
	return answers, nil
}

// errNoBox means that a session would be of no use: there is nowhere to leave
// what is sealed on it.
var errNoBox = errors.New("they are not there, and have no relay")

// look looks an account up in the DHT, and takes over what its record says.
func (n *Node) look(ctx context.Context, a identity.Account) (record.Body, error) {
	var c *store.Contact
	err := n.store.View(func(tx *store.Tx) (err error) {
		c, err = store.Contacts.Get(tx, store.ContactKey(a))
		return err
	})
	if err != nil {
		return record.Body{}, err
	}
	bodies, err := n.askDHT(ctx, c)
	if err != nil {
		return record.Body{}, err
	}
	if len(bodies) == 0 {
		return record.Body{}, errNotFound
	}
	return bodies[0], n.found(a, bodies[0])
}

// prepareAway opens a session with somebody who is away: with the keys of the
// day from their record, and a one-time key from one of their relays if there is
// one (T2).
func (n *Node) prepareAway(ctx context.Context, a identity.Account) error {
	body, err := n.look(ctx, a)
	if err != nil {
		return err
	}
	mail, err := relay.OpenMail(body.Mail, false)
	if err != nil || len(mail.Mailboxes) == 0 {
		return errNoBox
	}
	answers, err := dayAnswers(body)
	if err != nil {
		return err
	}
	n.awaitQueues(ctx, a)
	boxes := mail.Mailboxes
	err = n.store.View(func(tx *store.Tx) error {
		refused, err := n.sessions.KeyRefused(tx, n.cfg.Now(), a)
		if refused {
			boxes = nil
		}
		return err
	})
	if err != nil {
		return err
	}
	var last error
	for _, answer := range answers {
		for _, box := range boxes {
			bundle, err := n.takeKey(ctx, a, box)
			if err != nil {
				n.log.Debug("no one-time key from a relay", "err", err)
				continue
			}
			answer.OneTime = bundle
			break
		}
		if last = n.startSession(a, answer); last == nil {
			return nil
		}
		if answer.OneTime == nil {
			continue
		}
		answer.OneTime = nil // it may be of another device, or no key at all
		if last = n.startSession(a, answer); last == nil {
			return nil
		}
	}
	return last
}

// takeKeyTime bounds taking one one-time key, its work included: first contact
// goes on without.
const takeKeyTime = 20 * time.Second

// takeKey takes a one-time key of an account from its pool at a relay.
func (n *Node) takeKey(ctx context.Context, a identity.Account, box relay.Mailbox) (*wire.Signed, error) {
	ctx, cancel := context.WithTimeout(ctx, takeKeyTime)
	defer cancel()
	var pool *relay.Pool
	var token *identity.Token
	err := n.store.View(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(a))
		if err != nil {
			return err
		}
		pool = relay.NewPool(a, identity.LookupSecret(c.LookupSecret), box.Relay.Transport, box.Queue)
		if len(c.Token) == identity.TokenSize {
			t := identity.Token(c.Token)
			token = &t
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var blob []byte
	err = n.depositor.Do(ctx, box.Relay, func(c *client.Conn) (err error) {
		blob, err = c.TakeKey(ctx, box.Queue, pool.ID(), token)
		if errors.Is(err, client.ErrRefused) && token != nil { // the relay does not know of it yet
			blob, err = c.TakeKey(ctx, box.Queue, pool.ID(), nil)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	b, err := pool.Open(blob)
	if err != nil {
		return nil, err
	}
	bundle := new(wire.Signed)
	return bundle, wire.Parse(b, protocol.MaxBundle, bundle)
}

// askPreKey asks the peer itself for a one-time key.
func (n *Node) askPreKey(ctx context.Context, p peer.ID, a identity.Account) (*wire.PreKeyAnswer, error) {
	req := prekey.Request{Account: a}
	err := n.store.View(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(a))
		if err == nil {
			copy(req.Lookup[:], c.LookupSecret)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var ok bool
	if req.Requester, ok = transportOf(n.host.ID()); !ok {
		return nil, identity.ErrKey
	}
	if req.Responder, ok = transportOf(p); !ok {
		return nil, identity.ErrKey
	}
	conn, err := stream.Open(ctx, n.host, p, protocol.StreamPreKey)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, conn.Refuse)()
	b, err := conn.Read(maxPreKeyFrame)
	if err != nil {
		return nil, err
	}
	var challenge wire.PreKeyChallenge
	if err := wire.Parse(b, maxPreKeyFrame, &challenge); err != nil || len(challenge.Nonce) != prekey.NonceSize {
		return nil, prekey.ErrAnswer
	}
	copy(req.ResponderNonce[:], challenge.Nonce)
	if _, err := io.ReadFull(n.cfg.Rand, req.RequesterNonce[:]); err != nil {
		return nil, err
	}
	proof := req.Proof()
	b, err = conn.Exchange(ctx, wire.Marshal(&wire.PreKeyRequest{Nonce: req.RequesterNonce[:], Proof: proof[:]}), prekey.MaxAnswer)
	if err != nil {
		return nil, err
	}
	return req.OpenAnswer(b)
}

// maxPreKeyFrame bounds the frames of a request for a one-time key, in bytes.
const maxPreKeyFrame = 128

// startSession opens a session with the bundles of an answer.
func (n *Node) startSession(a identity.Account, answer *wire.PreKeyAnswer) error {
	now := n.cfg.Now()
	signed := wire.Marshal(answer.Manifest)
	manifest, err := identity.OpenManifest(signed, a, now)
	if err != nil {
		return err
	}
	device, day, oneTime, err := openBundles(manifest, answer, now)
	if err != nil {
		return err
	}
	return n.store.Update(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(a))
		if err != nil {
			return err
		}
		if _, err := n.learnManifest(tx, c, signed); err != nil {
			return err
		}
		if err := saveContact(tx, c); err != nil {
			return err
		}
		if !sendable(c.State) {
			return nil // held: the new device waits for the user
		}
		if kept, err := identity.OpenManifest(c.Manifest, a, now); err == nil && manifest.Generation < kept.Generation {
			return errors.New("their node answered with keys that are out of date")
		}
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err != nil {
			return err
		}
		profile, err := n.newProfile(tx, me, c.Account)
		if err != nil {
			return err
		}
		if s := profile.Mail.GetSealing(); len(s) > introSealing {
			profile.Mail.Sealing = s[:introSealing] // more would not fit into a contact box
		}
		intro := prekey.Introduction{Manifest: me.Manifest, Profile: profile}
		if len(c.Token) == identity.TokenSize {
			t := identity.Token(c.Token)
			intro.Token = &t
		}
		return n.sessions.Start(tx, now, manifest, device, day, oneTime, intro, nil)
	})
}

// openBundles finds the device of a manifest that signed the bundles.
// The one-time bundle may be missing: the peer has too many of them alive.
func openBundles(m identity.Manifest, answer *wire.PreKeyAnswer, now time.Time) (identity.Device, *prekey.Bundle, *prekey.Bundle, error) {
	var last error = errors.New("node: the manifest lists no device")
	for _, d := range m.Devices {
		day, err := prekey.OpenBundle(wire.Marshal(answer.Day), m.Account, d.Key, wire.Role_ROLE_DAY, now)
		if err != nil {
			last = err
			continue
		}
		if answer.OneTime == nil {
			return d.Key, day, nil, nil
		}
		oneTime, err := prekey.OpenBundle(wire.Marshal(answer.OneTime), m.Account, d.Key, wire.Role_ROLE_ONE_TIME, now)
		if err != nil {
			last = err
			continue
		}
		return d.Key, day, oneTime, nil
	}
	return identity.Device{}, nil, nil, last
}

// servePreKey answers a request for a one-time key. Whoever does not prove that
// it knows A and L is answered as by a node that does not speak the protocol,
// before any key is made (SPEC §9).
func (n *Node) servePreKey(_ context.Context, conn *stream.Conn) error {
	req := prekey.Request{Account: n.account()}
	var ok bool
	if req.Requester, ok = transportOf(conn.Remote()); !ok {
		return identity.ErrKey
	}
	req.Responder, _ = transportOf(n.host.ID())
	if _, err := io.ReadFull(n.cfg.Rand, req.ResponderNonce[:]); err != nil {
		return err
	}
	if err := conn.Write(wire.Marshal(&wire.PreKeyChallenge{Nonce: req.ResponderNonce[:]})); err != nil {
		return err
	}
	b, err := conn.Read(maxPreKeyFrame)
	if err != nil {
		return err
	}
	var m wire.PreKeyRequest
	if err := wire.Parse(b, maxPreKeyFrame, &m); err != nil || len(m.Nonce) != prekey.NonceSize {
		return prekey.ErrAnswer
	}
	copy(req.RequesterNonce[:], m.Nonce)
	err = n.store.View(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err == nil {
			copy(req.Lookup[:], me.LookupSecret)
		}
		return err
	})
	if err != nil {
		return err
	}
	if !req.Check(m.Proof) {
		return prekey.ErrAnswer
	}
	var answer wire.PreKeyAnswer
	now := n.cfg.Now()
	err = n.store.Update(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err != nil {
			return err
		}
		day, err := n.sessions.DayBundle(tx, now, prekey.DayOf(now))
		if err != nil {
			return err
		}
		oneTime, err := n.sessions.MintOneTime(tx, now)
		if err != nil && !errors.Is(err, session.ErrBusy) {
			return err
		}
		for _, f := range []struct {
			from []byte
			to   **wire.Signed
		}{{me.Manifest, &answer.Manifest}, {day, &answer.Day}, {oneTime, &answer.OneTime}} {
			if f.from == nil {
				continue
			}
			*f.to = new(wire.Signed)
			if err := wire.Parse(f.from, protocol.MaxManifest, *f.to); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	answer.Endpoints = identity.EndpointsWire([]identity.Endpoint{n.endpoint(true)})
	return conn.Write(req.SealAnswer(&answer))
}

// Deliver carries envelopes to the peer and returns its answers, one each; of
// those that are too many for a circuit, to the first ones. The stream is kept
// for the next delivery while there is work.
func (k courier) Deliver(ctx context.Context, a identity.Account, envelopes [][]byte) ([]*wire.Outcome, error) {
	n := k.n
	ctx, cancel := context.WithTimeout(ctx, deliverTime)
	defer cancel()
	conn, kept := n.lines.take(a)
	if kept && conn.Limited() && n.direct(conn.Remote()) {
		// A hole was punched since: what the relay would cut goes there.
		conn.Close()
		kept = false
	}
	if !kept {
		var err error
		if conn, err = n.openLine(ctx, a); err != nil {
			return nil, err
		}
	}
	part := portion(conn, envelopes)
	b, err := conn.Exchange(ctx, wire.Marshal(&wire.Delivery{Envelopes: part}), protocol.MaxFrame)
	if err != nil && (kept || conn.Limited()) {
		// A stream that rested too long is gone without a fault of anybody, and so
		// is one that a circuit's relay has cut.
		conn.Close()
		if conn, err = n.openLine(ctx, a); err != nil {
			return nil, err
		}
		part = portion(conn, envelopes)
		b, err = conn.Exchange(ctx, wire.Marshal(&wire.Delivery{Envelopes: part}), protocol.MaxFrame)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	var answer wire.DeliveryAnswer
	if err := wire.Parse(b, protocol.MaxFrame, &answer); err != nil || len(answer.Outcomes) != len(part) {
		conn.Refuse()
		return nil, errors.New("node: the answer to a delivery does not fit it")
	}
	n.lines.put(a, conn)
	return answer.Outcomes, n.noteHeld(a, answer.Outcomes)
}

// circuitBytes bounds the envelopes of one delivery through a circuit, but for a
// single larger one. A relay cuts a circuit after 128 KiB, and of a delivery that
// it cuts nothing is known: what does not fit into a new circuit would be sent
// again and again, and never arrive.
const circuitBytes = 32 << 10

// portion returns the envelopes, from the first one on, that conn can carry at
// once.
func portion(conn *stream.Conn, envelopes [][]byte) [][]byte {
	if !conn.Limited() {
		return envelopes
	}
	size := 0
	for i, e := range envelopes {
		if size += len(e); i > 0 && size > circuitBytes {
			return envelopes[:i]
		}
	}
	return envelopes
}

// deliverTime bounds one delivery, search and dialling included.
const deliverTime = 2 * time.Minute

func (n *Node) openLine(ctx context.Context, a identity.Account) (*stream.Conn, error) {
	p, err := n.reachPeer(ctx, a)
	if err != nil {
		return nil, err
	}
	return stream.Open(ctx, n.host, p, protocol.StreamMessage)
}

// lines are open message streams to contacts that rest between deliveries. The
// peer closes them when they rest too long.
type lines struct {
	mu sync.Mutex // guards m; never held across a wait
	m  map[identity.Account]*stream.Conn
}

// maxLines bounds how many rest at once.
const maxLines = 64

func (l *lines) take(a identity.Account) (*stream.Conn, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.m[a]
	delete(l.m, a)
	return c, ok
}

// put keeps c for the next delivery, unless there is one already or too many.
func (l *lines) put(a identity.Account, c *stream.Conn) {
	l.mu.Lock()
	if l.m == nil {
		l.m = make(map[identity.Account]*stream.Conn)
	}
	_, dup := l.m[a]
	keep := !dup && len(l.m) < maxLines
	if keep {
		l.m[a] = c
	}
	l.mu.Unlock()
	if !keep {
		c.Close()
	}
}

// drop closes the stream of a, or of everybody with a nil a.
func (l *lines) closeAll() {
	l.mu.Lock()
	m := l.m
	l.m = nil
	l.mu.Unlock()
	for _, c := range m {
		c.Close()
	}
}
