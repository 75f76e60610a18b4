package node

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"starling/node/store"
	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
)

// A crawler that dials every peer ID learns of none whose account it is: who
// does not prove to know A and L is answered as by a node that does not speak
// the protocol, and no key is made for them.
func TestCrawlerLearnsNoAccount(t *testing.T) {
	w := newWorld(t)
	a, other := w.person("Ada"), w.person("Bo")
	c := w.caller(nil)
	c.dial(w, a)
	c.dial(w, other)
	link, err := identity.ParseLink(a.invite(true))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*person{a, other} {
		w.eventually("the keys of the days", func() bool { return p.own.get() != nil })
	}

	// An answer is what the crawler sees: what it reads, and how the stream ends.
	type answer struct {
		read  int
		error string
	}
	end := func(err error) string {
		code := network.StreamErrorCode(0)
		if e, ok := errors.AsType[*network.StreamError](err); ok {
			code = e.ErrorCode
		}
		return fmt.Sprintf("refused %t, code %#x", errors.Is(err, stream.ErrRefused), code)
	}
	tries := map[string]func(req *prekey.Request) []byte{
		"nothing":        func(*prekey.Request) []byte { return nil },
		"no request":     func(*prekey.Request) []byte { return []byte("hello") },
		"no proof":       func(r *prekey.Request) []byte { return request(r.RequesterNonce[:], nil) },
		"a short nonce":  func(r *prekey.Request) []byte { p := r.Proof(); return request(r.RequesterNonce[:31], p[:]) },
		"the zero proof": func(r *prekey.Request) []byte { return request(r.RequesterNonce[:], make([]byte, 32)) },
		"a zero L": func(r *prekey.Request) []byte {
			r.Lookup = identity.LookupSecret{}
			p := r.Proof()
			return request(r.RequesterNonce[:], p[:])
		},
		"somebody's nonce": func(r *prekey.Request) []byte {
			r.ResponderNonce[0] ^= 1
			p := r.Proof()
			return request(r.RequesterNonce[:], p[:])
		},
		"another's requests": func(r *prekey.Request) []byte {
			r.Requester, r.Responder = r.Responder, r.Requester
			p := r.Proof()
			return request(r.RequesterNonce[:], p[:])
		},
	}
	try := func(p *person, make func(*prekey.Request) []byte) answer {
		t.Helper()
		conn, err := stream.Open(w.ctx, c.Host, p.host.ID(), protocol.StreamPreKey)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		b, err := conn.Read(maxPreKeyFrame)
		if err != nil {
			t.Fatal(err)
		}
		got := answer{read: len(b)}
		var challenge wire.PreKeyChallenge
		if err := wire.Parse(b, maxPreKeyFrame, &challenge); err != nil {
			t.Fatal(err)
		}
		req := prekey.Request{Account: link.Account, Lookup: link.Lookup}
		req.Requester, _ = transportOf(c.ID())
		req.Responder, _ = transportOf(p.host.ID())
		copy(req.ResponderNonce[:], challenge.Nonce)
		crand.Read(req.RequesterNonce[:])
		if m := make(&req); m != nil {
			b, err = conn.Exchange(w.ctx, m, prekey.MaxAnswer)
		} else {
			b, err = conn.Exchange(w.ctx, []byte{}, prekey.MaxAnswer)
		}
		got.read += len(b)
		got.error = end(err)
		return got
	}
	unspoken, err := stream.Open(w.ctx, c.Host, a.host.ID(), "/starling/nonsense/1")
	if err == nil {
		defer unspoken.Close()
		_, err = unspoken.Exchange(w.ctx, []byte("hello"), 100)
	}
	if !errors.Is(err, stream.ErrRefused) {
		t.Fatalf("a protocol that is not spoken gives %v", err)
	}
	keys := func(p *person) int { return rows(p, sizeOf(store.PreKeys)) }
	before := keys(a)
	var want *answer
	for name, make := range tries {
		for _, p := range []*person{a, other} {
			got := try(p, make)
			if want == nil {
				want = &got
				if !strings.HasPrefix(got.error, "refused true") || !strings.HasSuffix(got.error, fmt.Sprintf("%#x", network.StreamProtocolNegotiationFailed)) {
					t.Fatalf("%s is answered %+v", name, got)
				}
			}
			if got != *want {
				t.Errorf("%s is answered %+v by %s, others %+v", name, got, p.name, *want)
			}
		}
	}
	if got := try(other, func(r *prekey.Request) []byte { p := r.Proof(); return request(r.RequesterNonce[:], p[:]) }); got != *want {
		t.Errorf("the right proof is answered %+v by the wrong node", got)
	}
	if got := keys(a); got != before {
		t.Errorf("%d keys were made", got-before)
	}
	if _, err := c.ask(w, a, link.Account, link.Lookup); err != nil {
		t.Errorf("with the proof: %v", err)
	}
	if got := keys(a); got != before+1 {
		t.Errorf("with the proof, %d keys were made", got-before)
	}
}

func request(nonce, proof []byte) []byte {
	return wire.Marshal(&wire.PreKeyRequest{Nonce: nonce, Proof: proof})
}

// poses makes a host with the stolen transport key of a person answer what is
// delivered to it. It returns how often it was asked, and how to end it.
func (w *world) poses(p *person, seed []byte, answer func(envelope []byte) *wire.Outcome) (asked func() int, end func()) {
	w.Helper()
	c := w.caller(seed)
	calls := make(chan int, 1) // holds the count
	calls <- 0
	remove := stream.Handle(c.Host, protocol.StreamMessage, stream.Limits{}, func(_ context.Context, conn *stream.Conn) error {
		for {
			b, err := conn.Read(protocol.MaxFrame)
			if err != nil {
				return err
			}
			var d wire.Delivery
			if err := wire.Parse(b, protocol.MaxFrame, &d); err != nil {
				return err
			}
			a := &wire.DeliveryAnswer{}
			for _, e := range d.Envelopes {
				a.Outcomes = append(a.Outcomes, answer(e))
			}
			calls <- 1 + <-calls
			if err := conn.Write(wire.Marshal(a)); err != nil {
				return err
			}
		}
	})
	c.dial(w, p)
	asked = func() int {
		n := <-calls
		calls <- n
		return n
	}
	end = func() {
		remove()
		c.Close()
	}
	w.Cleanup(end)
	return asked, end
}

// Whoever has stolen a transport key stands where the contact stood, and can
// neither make a message seem delivered nor a session be renewed.
func TestStolenTransportKey(t *testing.T) {
	for name, forge := range map[string]func(e []byte, m *person) *wire.Outcome{
		"forged acknowledgement": func([]byte, *person) *wire.Outcome {
			o := &wire.Outcome{Status: wire.Status_STATUS_DELIVERED, Ack: make([]byte, 32)}
			crand.Read(o.Ack)
			return o
		},
		"acknowledgement without proof": func([]byte, *person) *wire.Outcome {
			return &wire.Outcome{Status: wire.Status_STATUS_DELIVERED}
		},
		"forged decryption error": func(e []byte, m *person) *wire.Outcome {
			// By somebody with a device, though not the contact's.
			var from identity.Device
			crand.Read(from[:])
			parsed, err := envelope.Parse(e)
			if err != nil {
				return dropped()
			}
			d := envelope.NewDecryptionError(m.self.device.DH(), m.self.device.DH().Public(), m.self.device.Device(), from,
				envelope.HashOf(e), [32]byte(parsed.Session), wire.Reason_REASON_CANNOT_OPEN)
			return &wire.Outcome{Status: wire.Status_STATUS_ERROR, Error: d}
		},
		"error without proof": func(e []byte, _ *person) *wire.Outcome {
			hash := envelope.HashOf(e)
			return &wire.Outcome{Status: wire.Status_STATUS_ERROR, Error: &wire.DecryptionError{
				Envelope: hash[:], Session: make([]byte, 32), Reason: wire.Reason_REASON_NO_SESSION, Mac: make([]byte, 32),
			}}
		},
		"no error at all": func([]byte, *person) *wire.Outcome {
			return &wire.Outcome{Status: wire.Status_STATUS_ERROR}
		},
		"nonsense": func([]byte, *person) *wire.Outcome { return &wire.Outcome{Status: 77} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b, m := w.person("Ada", quick), w.person("Bo"), w.person("Mallory")
			a.meet(b)
			a.tell(b, "before")
			seed := b.self.transport
			b.stop()
			before := sessionsOf(a, b.id)
			asked, end := w.poses(a, seed, func(e []byte) *wire.Outcome { return forge(e, m) })
			id := a.say("Bo", "for you alone")
			w.eventually("some attempts", func() bool { return asked() >= 4 })
			msg, err := a.WaitMessage(w.ctx, id, "delivered", 0)
			if err != nil || msg.State != "queued" {
				t.Fatalf("the message is %s, %v", msg.State, err)
			}
			if got := sessionsOf(a, b.id); got != before {
				t.Fatalf("the sessions were %s and are %s", before, got)
			}
			end()
			b.start()
			a.delivered(id)
			b.heard("Ada", "for you alone")
		})
	}
}

// sessionsOf says which sessions there are with an account.
func sessionsOf(p *person, a identity.Account) string {
	p.w.Helper()
	var list []string
	err := p.store.View(func(tx *store.Tx) error {
		for r, err := range store.Sessions.Scan(tx, store.SessionsOf(a), nil) {
			if err != nil {
				return err
			}
			id := r.Key.Session()
			list = append(list, fmt.Sprintf("%x live %t", id[:4], r.Value.Archived == 0))
		}
		c, err := store.Contacts.Get(tx, store.ContactKey(a))
		if err == nil {
			list = append(list, fmt.Sprintf("renew %t", c.Renew))
		}
		return err
	})
	if err != nil {
		p.w.Fatal(err)
	}
	return strings.Join(list, ", ")
}

// The same first message again is answered as before and shown once; its
// handshake around other bytes is refused without a word.
func TestReplayedHandshake(t *testing.T) {
	w := newWorld(t)
	a, u := w.person("Ada"), w.puppet("Bo")
	c := w.caller(nil)
	c.dial(w, a)
	link := a.invite(false)
	token := tokenOf(t, link)
	u.begin(a, c.bundles(w, a, link), &token, nil)
	first := u.text(a, "hello")
	got := c.deliver(w, a, first)
	w.wantStatus(got, wire.Status_STATUS_DELIVERED)
	again := w.caller(nil)
	again.dial(w, a)
	repeated := again.deliver(w, a, first, first)
	w.wantStatus(repeated, wire.Status_STATUS_DELIVERED)
	if !slices.Equal(repeated[0].Ack, got[0].Ack) {
		t.Error("the same bytes are acknowledged in another way")
	}
	a.heard("Bo", "hello")

	e, err := envelope.Parse(first)
	if err != nil {
		t.Fatal(err)
	}
	events := a.now()
	other := [32]byte{1}
	message := slices.Clone(e.Message)
	message[len(message)-1] ^= 1
	for name, b := range map[string][]byte{
		"another session": envelope.Seal(other, e.Handshake, e.Message),
		"other bytes":     envelope.Seal(other, e.Handshake, message),
	} {
		for _, o := range c.deliver(w, a, b) {
			if o.Status != wire.Status_STATUS_DROPPED || o.Error != nil || o.Ack != nil {
				t.Errorf("%s: answered %+v", name, o)
			}
		}
	}
	if a.now() != events {
		t.Error("a replay is in the journal")
	}
}

// A transcript that is known leads to its session; when that is gone, the
// envelope is dropped, and nobody is made to renew anything.
func TestKnownTranscriptWithoutItsSession(t *testing.T) {
	w := newWorld(t)
	a, u := w.person("Ada"), w.puppet("Bo")
	c := w.caller(nil)
	c.dial(w, a)
	u.profile.Endpoints = []identity.Endpoint{c.endpoint()}
	link := a.invite(false)
	token := tokenOf(t, link)
	u.begin(a, c.bundles(w, a, link), &token, nil)
	first := u.text(a, "hello")
	w.wantStatus(c.deliver(w, a, first), wire.Status_STATUS_DELIVERED)
	second := u.text(a, "on the same handshake") // nothing was acknowledged: it carries the handshake
	err := a.store.Update(func(tx *store.Tx) error {
		for r, err := range store.Sessions.Scan(tx, store.SessionsOf(u.id()), nil) {
			if err != nil {
				return err
			}
			if err := errors.Join(store.SessionOwners.Delete(tx, store.SessionOwnerKey(r.Key.Session())), store.Sessions.Delete(tx, r.Key)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	events := a.now()
	got := c.deliver(w, a, second)
	if got[0].Status != wire.Status_STATUS_DROPPED || got[0].Error != nil {
		t.Errorf("answered %+v", got[0])
	}
	w.wantStatus(c.deliver(w, a, first), wire.Status_STATUS_DELIVERED) // these very bytes were taken
	if a.now() != events || len(a.texts("Bo")) != 1 {
		t.Error("something came of it")
	}
}

// A contact who says that somebody else's transport key is theirs gets nothing
// by it, and takes nothing from its owner.
func TestClaimedTransportKey(t *testing.T) {
	w := newWorld(t)
	a, b, m := w.person("Ada"), w.person("Bo", quick), w.puppet("Mallory")
	a.meet(b)
	c := w.caller(nil)
	c.dial(w, a)
	stolen, _ := transportOf(b.host.ID())
	m.profile.Endpoints = []identity.Endpoint{{Transport: stolen}}
	for _, claimant := range []bool{true, false} { // as a contact, and as a request
		link := a.invite(!claimant)
		token := tokenOf(t, link)
		m.begin(a, c.bundles(w, a, link), &token, nil)
		c.deliver(w, a, m.text(a, "that is me over there"))
		b.tell(a, fmt.Sprint("and yet it is me, contact ", claimant))
		a.tell(b, fmt.Sprint("so it is, contact ", claimant))
		m = w.puppet("Mallory too")
		m.profile.Endpoints = []identity.Endpoint{{Transport: stolen}}
	}
	// Also after a restart, when nobody was heard over anything yet, and when a
	// session has to be renewed.
	a.restart()
	b.tell(a, "after a restart")
	err := a.store.Update(func(tx *store.Tx) error {
		for r, err := range store.Sessions.Scan(tx, store.SessionsOf(b.account()), nil) {
			if err != nil {
				return err
			}
			if err := errors.Join(store.SessionOwners.Delete(tx, store.SessionOwnerKey(r.Key.Session())), store.Sessions.Delete(tx, r.Key)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.tell(a, "on a session that is gone")
	a.tell(b, "and renewed")
}

// An envelope that nobody can open does not take those before it along. What
// comes after it was sent later, and waits.
func TestHostileEnvelopeInABatch(t *testing.T) {
	w := newWorld(t)
	a, u := w.person("Ada"), w.puppet("Bo")
	c := w.caller(nil)
	c.dial(w, a)
	link := a.invite(false)
	token := tokenOf(t, link)
	u.begin(a, c.bundles(w, a, link), &token, nil)
	w.wantStatus(c.deliver(w, a, u.text(a, "one")), wire.Status_STATUS_DELIVERED)
	two, broken, three := u.text(a, "two"), u.text(a, "never"), u.text(a, "three")
	flipped := slices.Clone(broken)
	flipped[len(flipped)-1] ^= 1
	for _, bad := range [][]byte{{}, []byte("nonsense"), make([]byte, protocol.MaxEnvelope), make([]byte, protocol.MaxEnvelope+1)} {
		got := c.deliver(w, a, two, bad, three)
		w.wantStatus(got, wire.Status_STATUS_DELIVERED, wire.Status_STATUS_DROPPED, wire.Status_STATUS_BUSY)
	}
	got := c.deliver(w, a, flipped, three)
	w.wantStatus(got, wire.Status_STATUS_ERROR, wire.Status_STATUS_BUSY)
	w.wantStatus(c.deliver(w, a, broken, three), wire.Status_STATUS_DELIVERED)
	if got := a.texts("Bo"); !slices.Equal(got, []string{"one", "two", "never", "three"}) {
		t.Fatalf("texts %q", got)
	}
	w.wantObserved(4, 5) // bytes that were opened before are neither
}

// The largest batch of the longest texts is more than one transaction holds.
func TestLargestBatchArrives(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada"), w.person("Bo", quick)
	a.meet(b)
	a.stop()
	var ids, want []string
	for i := range 2 * protocol.MaxBatch {
		text := fmt.Sprintf("%03d", i) + strings.Repeat("x", 15700)
		if i%20 == 0 {
			text += strings.Repeat("x", protocol.MaxText-len(text))
		}
		want = append(want, text)
		ids = append(ids, b.say("Ada", text))
	}
	a.start()
	for _, id := range ids {
		b.delivered(id)
	}
	if got := a.texts("Bo"); !slices.Equal(got, want) {
		t.Fatalf("%d texts arrived, or in another order", len(got))
	}
}

// A text whose time is over by our clock is not shown, and its sender is not
// told that it was.
func TestExpiredTextIsNotAcknowledged(t *testing.T) {
	w := newWorld(t)
	a, u := w.person("Ada"), w.puppet("Bo")
	c := w.caller(nil)
	c.dial(w, a)
	link := a.invite(false)
	token := tokenOf(t, link)
	u.begin(a, c.bundles(w, a, link), &token, nil)
	w.wantStatus(c.deliver(w, a, u.text(a, "fresh")), wire.Status_STATUS_DELIVERED)
	late := "late"
	sent := time.Now().Add(-protocol.MessageLife - time.Minute)
	stale := u.seal(a, envelope.Content{Text: &late, Sent: sent})
	w.wantStatus(c.deliver(w, a, stale, u.text(a, "fresh too")), wire.Status_STATUS_DROPPED, wire.Status_STATUS_DELIVERED)
	if got := a.texts("Bo"); !slices.Equal(got, []string{"fresh", "fresh too"}) {
		t.Fatalf("texts %q", got)
	}
	w.wantObserved(3, 1) // it opened, and was discarded
}
