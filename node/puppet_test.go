package node

import (
	crand "crypto/rand"
	"time"

	"starling/node/session"
	"starling/node/store"
	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// A puppet is an account with sessions and without a will: it says on the wire
// exactly what a test tells it to. It borrows a host to say it through.
type puppet struct {
	w        *world
	account  *identity.AccountKey
	device   *identity.DeviceKey
	manifest []byte
	profile  identity.Profile
	db       *store.DB
	sessions *session.Manager
	seq      uint64
}

func (w *world) puppet(name string) *puppet {
	w.Helper()
	u := w.device(identity.NewAccountKey(w.secret()))
	u.profile.Name = name
	u.sign(1, u.entry())
	return u
}

// device returns a puppet of an account that exists, on a device of its own.
func (w *world) device(account *identity.AccountKey) *puppet {
	w.Helper()
	dh, err := x25519.Generate(crand.Reader)
	if err != nil {
		w.Fatal(err)
	}
	u := &puppet{w: w, account: account, device: identity.NewDeviceKey(w.secret(), dh), db: w.memory()}
	u.sessions = session.New(session.Config{Key: u.device, Account: u.id(), Rand: crand.Reader, Observe: w})
	return u
}

func (u *puppet) sign(generation uint64, devices ...identity.DeviceEntry) {
	u.manifest = identity.SignManifest(u.account, generation, devices)
}

func (u *puppet) entry() identity.DeviceEntry {
	return identity.DeviceEntry{Key: u.device.Device(), DH: u.device.DH().Public()}
}

func (u *puppet) id() identity.Account { return u.account.Account() }

func (w *world) secret() identity.Secret {
	w.Helper()
	s, err := identity.NewSecret(crand.Reader)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

func (w *world) memory() *store.DB {
	w.Helper()
	key, err := store.NewKey(crand.Reader)
	if err != nil {
		w.Fatal(err)
	}
	db, err := store.OpenMemory(store.Config{Key: key}, store.NewDisk())
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { db.Close() })
	return db
}

// linkTo returns a public link to a puppet, whom nobody can reach.
func (w *world) linkTo(u *puppet) string {
	return identity.Link{Account: u.id(), Public: true}.String()
}

// ask gets bundles from a person over a host that is connected to theirs.
func (c caller) ask(w *world, p *person, a identity.Account, l identity.LookupSecret) (*wire.PreKeyAnswer, error) {
	req := prekey.Request{Account: a, Lookup: l}
	req.Requester, _ = transportOf(c.ID())
	req.Responder, _ = transportOf(p.host.ID())
	conn, err := stream.Open(w.ctx, c.Host, p.host.ID(), protocol.StreamPreKey)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	b, err := conn.Read(maxPreKeyFrame)
	if err != nil {
		return nil, err
	}
	var challenge wire.PreKeyChallenge
	if err := wire.Parse(b, maxPreKeyFrame, &challenge); err != nil {
		return nil, err
	}
	copy(req.ResponderNonce[:], challenge.Nonce)
	crand.Read(req.RequesterNonce[:])
	proof := req.Proof()
	b, err = conn.Exchange(w.ctx, wire.Marshal(&wire.PreKeyRequest{Nonce: req.RequesterNonce[:], Proof: proof[:]}), prekey.MaxAnswer)
	if err != nil {
		return nil, err
	}
	return req.OpenAnswer(b)
}

// bundles gets bundles from a person by their link.
func (c caller) bundles(w *world, p *person, link string) *wire.PreKeyAnswer {
	w.Helper()
	l, err := identity.ParseLink(link)
	if err != nil {
		w.Fatal(err)
	}
	answer, err := c.ask(w, p, l.Account, l.Lookup)
	if err != nil {
		w.Fatalf("asking %s for bundles: %v", p.name, err)
	}
	return answer
}

// begin starts a session with the bundles of an answer. token may be nil.
func (u *puppet) begin(p *person, answer *wire.PreKeyAnswer, token *identity.Token, replaces *prekey.SessionID) {
	u.w.Helper()
	now := time.Now()
	manifest, err := identity.OpenManifest(wire.Marshal(answer.Manifest), p.account(), now)
	if err != nil {
		u.w.Fatal(err)
	}
	device, day, oneTime, err := openBundles(manifest, answer, now)
	if err != nil {
		u.w.Fatal(err)
	}
	intro := prekey.Introduction{Manifest: u.manifest, Profile: u.profile, Token: token}
	err = u.db.Update(func(tx *store.Tx) error {
		return u.sessions.Start(tx, now, manifest, device, day, oneTime, intro, replaces)
	})
	if err != nil {
		u.w.Fatal(err)
	}
}

// seal encrypts a content for a person. What is missing in it is filled in.
func (u *puppet) seal(p *person, c envelope.Content) []byte {
	u.w.Helper()
	if c.ID == (envelope.ID{}) {
		crand.Read(c.ID[:])
	}
	if c.Sent.IsZero() {
		c.Sent = time.Now()
	}
	if c.Expires.IsZero() {
		c.Expires = c.Sent.Add(protocol.MessageLife)
	}
	u.seq++
	c.Seq = u.seq
	padded, err := envelope.MarshalContent(&c)
	if err != nil {
		u.w.Fatal(err)
	}
	return u.sealRaw(p, padded)
}

func (u *puppet) sealRaw(p *person, plain []byte) []byte {
	u.w.Helper()
	var s session.Sealed
	err := u.db.Update(func(tx *store.Tx) (err error) {
		s, err = u.sessions.Seal(tx, time.Now(), p.account(), plain)
		return err
	})
	if err != nil {
		u.w.Fatal(err)
	}
	return s.Envelope
}

func (u *puppet) text(p *person, text string) []byte {
	u.w.Helper()
	return u.seal(p, envelope.Content{Text: &text})
}

func (u *puppet) news() *envelope.News {
	return &envelope.News{Manifest: u.manifest, Profile: u.profile}
}

// open opens an envelope that a person sealed for the puppet.
func (u *puppet) open(p *person, b []byte) (session.Opened, error) {
	var o session.Opened
	a := p.account()
	err := u.db.Update(func(tx *store.Tx) (err error) {
		o, err = u.sessions.Open(tx, time.Now(), &a, b)
		return err
	})
	return o, err
}

// deliver brings envelopes to a person and returns the answers.
func (c caller) deliver(w *world, p *person, envelopes ...[]byte) []*wire.Outcome {
	w.Helper()
	conn, err := stream.Open(w.ctx, c.Host, p.host.ID(), protocol.StreamMessage)
	if err != nil {
		w.Fatal(err)
	}
	defer conn.Close()
	b, err := conn.Exchange(w.ctx, wire.Marshal(&wire.Delivery{Envelopes: envelopes}), protocol.MaxFrame)
	if err != nil {
		w.Fatalf("delivering to %s: %v", p.name, err)
	}
	var answer wire.DeliveryAnswer
	if err := wire.Parse(b, protocol.MaxFrame, &answer); err != nil || len(answer.Outcomes) != len(envelopes) {
		w.Fatalf("%d outcomes for %d envelopes, %v", len(answer.Outcomes), len(envelopes), err)
	}
	return answer.Outcomes
}

// wantStatus checks the answers to a delivery.
func (w *world) wantStatus(got []*wire.Outcome, want ...wire.Status) {
	w.Helper()
	for i, o := range got {
		if o.GetStatus() != want[min(i, len(want)-1)] {
			w.Fatalf("answer %d is %v, want %v", i, o.GetStatus(), want[min(i, len(want)-1)])
		}
		if (o.GetStatus() == wire.Status_STATUS_DELIVERED) != (len(o.Ack) == 32) {
			w.Fatalf("answer %d is %v with an acknowledgement of %d bytes", i, o.GetStatus(), len(o.Ack))
		}
	}
}

// endpoint is where a host says it can be dialled.
func (c caller) endpoint() identity.Endpoint {
	t, _ := transportOf(c.ID())
	e := identity.Endpoint{Transport: t}
	for _, a := range c.Addrs() {
		e.Addrs = append(e.Addrs, a.Bytes())
	}
	return e
}

// rows counts the rows of a table under a prefix.
func rows(p *person, count func(tx *store.Tx) (int, error)) int {
	p.w.Helper()
	var n int
	if err := p.store.View(func(tx *store.Tx) (err error) { n, err = count(tx); return err }); err != nil {
		p.w.Fatal(err)
	}
	return n
}
