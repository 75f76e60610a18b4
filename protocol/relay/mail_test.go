package relay

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/ratchet"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// noon lies in the middle of a day and of a week.
var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// testMail is two pairwise queues, or contact boxes, and the bytes of something
// signed.
func testMail(t testing.TB, capabilities bool) Mail {
	t.Helper()
	var m Mail
	for i := range byte(2) {
		box := testMailbox(t)
		box.Relay.Transport, box.Queue = transport(20+i), QueueID{i}
		if !capabilities {
			box.Capability = nil
		}
		m.Mailboxes = append(m.Mailboxes, box)
		m.Sealing = append(m.Sealing, wire.Marshal(&wire.Signed{Body: []byte{1, i}, Signature: make([]byte, identity.SignatureSize)}))
	}
	return m
}

func TestMailIsReadAsWritten(t *testing.T) {
	for _, capabilities := range []bool{false, true} {
		full := testMail(t, capabilities)
		for what, want := range map[string]Mail{
			"full":                 full,
			"nothing any more":     {},
			"without sealing keys": {Mailboxes: full.Mailboxes},
			"without mailboxes":    {Sealing: full.Sealing},
		} {
			w, err := want.Wire(capabilities)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			read := new(wire.Mail)
			if err := wire.Parse(wire.Marshal(w), protocol.MaxFrame, read); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			got, err := OpenMail(read, capabilities)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			again, err := got.Wire(capabilities)
			if err != nil || !proto.Equal(again, w) {
				t.Errorf("%s: written again as %v, %v", what, again, err)
			}
			if len(got.Mailboxes) != len(want.Mailboxes) || !slices.EqualFunc(got.Sealing, want.Sealing, bytes.Equal) {
				t.Errorf("%s: %d mailboxes and %d sealing keys come back, want %d and %d", what, len(got.Mailboxes), len(got.Sealing), len(want.Mailboxes), len(want.Sealing))
			}
			for i, box := range got.Mailboxes {
				if (box.Capability != nil) != capabilities || box.Queue != want.Mailboxes[i].Queue || box.Relay.Transport != want.Mailboxes[i].Relay.Transport {
					t.Errorf("%s: mailbox %d came back as another", what, i)
				}
			}
		}
	}
}

func TestOpenMailRefuses(t *testing.T) {
	box := func(edit func(*Mailbox)) []byte {
		m := testMailbox(t)
		edit(&m)
		b, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for what, edit := range map[string]func(m *wire.Mail){
		"garbage":    func(m *wire.Mail) { m.Mailboxes[1] = []byte{0xff} },
		"no mailbox": func(m *wire.Mail) { m.Mailboxes[1] = nil },
		"a long one": func(m *wire.Mail) { m.Mailboxes[1] = make([]byte, protocol.MaxMailbox+1) },
		"a relay twice": func(m *wire.Mail) {
			m.Mailboxes[1] = box(func(b *Mailbox) { b.Relay.Transport, b.Queue = transport(20), QueueID{99} })
		},
		"a mailbox twice":   func(m *wire.Mail) { m.Mailboxes[1] = m.Mailboxes[0] },
		"one without a key": func(m *wire.Mail) { m.Mailboxes[1] = box(func(b *Mailbox) { b.Capability = nil }) },
		"a fourth": func(m *wire.Mail) {
			for i := range byte(2) {
				m.Mailboxes = append(m.Mailboxes, box(func(b *Mailbox) { b.Relay.Transport = transport(30 + i) }))
			}
		},
		"a seventh sealing key":         func(m *wire.Mail) { m.Sealing = slices.Repeat(m.Sealing[:1], protocol.MaxSealingKeys+1) },
		"a sealing key with no body":    func(m *wire.Mail) { m.Sealing[0].Body = nil },
		"an unsigned sealing key":       func(m *wire.Mail) { m.Sealing[0].Signature = nil },
		"a sealing key that is too big": func(m *wire.Mail) { m.Sealing[0].Body = make([]byte, protocol.MaxSealing) },
	} {
		w, err := testMail(t, true).Wire(true)
		if err != nil {
			t.Fatal(err)
		}
		edit(w)
		if m, err := OpenMail(w, true); !errors.Is(err, ErrMailbox) {
			t.Errorf("%s: %v, want ErrMailbox", what, err)
		} else if m.Mailboxes != nil || m.Sealing != nil {
			t.Errorf("%s: refused, and partly read", what)
		}
	}
	if _, err := OpenMail(nil, false); !errors.Is(err, ErrMailbox) {
		t.Errorf("what was not said: %v, want ErrMailbox", err)
	}
}

// A capability in a record would let everybody who has the link fill a queue
// that is one contact's; a mailbox in a profile without one is of no use.
func TestCapabilitiesStayOutOfRecords(t *testing.T) {
	for _, has := range []bool{false, true} {
		m := testMail(t, has)
		w, err := m.Wire(has)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Wire(!has); !errors.Is(err, ErrMailbox) {
			t.Errorf("with capabilities %v, written for the other place: %v, want ErrMailbox", has, err)
		}
		if _, err := OpenMail(w, !has); !errors.Is(err, ErrMailbox) {
			t.Errorf("with capabilities %v, read in the other place: %v, want ErrMailbox", has, err)
		}
	}
}

func FuzzOpenMail(f *testing.F) {
	for _, capabilities := range []bool{false, true} {
		w, err := testMail(f, capabilities).Wire(capabilities)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire.Marshal(w), capabilities)
	}
	f.Fuzz(func(t *testing.T, b []byte, capabilities bool) {
		w := new(wire.Mail)
		if wire.Parse(b, protocol.MaxFrame, w) != nil {
			return
		}
		m, err := OpenMail(w, capabilities)
		if err != nil {
			if !errors.Is(err, ErrMailbox) {
				t.Fatalf("OpenMail = %v, want ErrMailbox", err)
			}
			return
		}
		w2, err := m.Wire(capabilities)
		if err != nil {
			t.Fatalf("%x is read and cannot be written: %v", b, err)
		}
		again, err := OpenMail(w2, capabilities)
		if err != nil {
			t.Fatalf("%x is read, and not when written again: %v", b, err)
		}
		if w3, err := again.Wire(capabilities); err != nil || !proto.Equal(w2, w3) {
			t.Fatalf("%x has two encodings: %v and %v", b, w2, w3)
		}
	})
}

// A someone is an account with one device.
type someone struct {
	account  *identity.AccountKey
	dk       *identity.DeviceKey
	party    prekey.Party
	manifest []byte
	signed   identity.Manifest
}

func newSomeone(t testing.TB, n byte) *someone {
	t.Helper()
	s := &someone{account: identity.NewAccountKey(seed(n)), dk: identity.NewDeviceKey(seed(n+1), x25519.FromSeed([32]byte{n + 2}))}
	s.party = prekey.Party{Account: s.account.Account(), Device: s.dk.Device(), DH: s.dk.DH().Public()}
	s.manifest = identity.SignManifest(s.account, uint64(noon.Unix()), []identity.DeviceEntry{{Key: s.party.Device, DH: s.party.DH}})
	var err error
	if s.signed, err = identity.OpenManifest(s.manifest, s.party.Account, noon); err != nil {
		t.Fatal(err)
	}
	return s
}

// sealingKey returns the device's key of the week after noon by that many, and
// its private half.
func (s *someone) sealingKey(t testing.TB, later uint32) ([]byte, *envelope.SealingPrivate) {
	t.Helper()
	p := envelope.RestoreSealingPrivate([32]byte{byte(later), s.party.Device[0]})
	return envelope.SignSealingKey(s.dk, s.party.Account, envelope.WeekOf(noon)+later, p), p
}

// TestFirstMessageFitsAContactBox makes a whole first message to somebody who is
// away, as a usual client with three relays does, and reads what it says.
func TestFirstMessageFitsAContactBox(t *testing.T) {
	alice, bob := newSomeone(t, 40), newSomeone(t, 50)
	random := rand.NewChaCha8(hashOf("first message"))

	// What Alice has of Bob.
	bundle := func(role wire.Role, from, until time.Time) (*prekey.Bundle, prekey.Private) {
		private, err := prekey.NewPrivate(random)
		if err != nil {
			t.Fatal(err)
		}
		b, err := prekey.OpenBundle(prekey.SignBundle(bob.dk, bob.party.Account, role, 0, from, until, &private), bob.party.Account, bob.party.Device, role, noon)
		if err != nil {
			t.Fatal(err)
		}
		return b, private
	}
	today := prekey.DayOf(noon)
	day, dayPrivate := bundle(wire.Role_ROLE_DAY, prekey.DayStart(today), prekey.DayStart(today+1))
	oneTime, oneTimePrivate := bundle(wire.Role_ROLE_ONE_TIME, noon.Add(-24*time.Hour), noon.Add(protocol.PoolKeyLife-24*time.Hour))
	signedKey, sealingPrivate := bob.sealingKey(t, 0)
	sealingKey, err := envelope.OpenSealingKey(signedKey, bob.party.Account, bob.party.Device, noon)
	if err != nil {
		t.Fatal(err)
	}
	queue := QueueID{7}

	// What Alice says of herself: queues for Bob at three relays.
	ip4 := []byte{4, 192, 0, 2, 1, 0x91, 0x02, 15, 161, 0xcd, 0x03}                                                 // /ip4/…/udp/4001/quic-v1
	ip6 := slices.Concat([]byte{41}, make([]byte, 16), []byte{0x91, 0x02, 15, 161, 0xcd, 0x03})                     // /ip6/…
	name := slices.Concat([]byte{0x36, 64}, bytes.Repeat([]byte{'x'}, 64), []byte{0x91, 0x02, 15, 161, 0xcd, 0x03}) // /dns4/…
	var mail Mail
	for i := range byte(protocol.MaxRelays) {
		c := capability(t, 60+i)
		mail.Mailboxes = append(mail.Mailboxes, Mailbox{
			Relay: identity.Endpoint{Transport: transport(70 + i), Addrs: [][]byte{ip6, name}}, Queue: QueueID{80 + i}, Capability: &c,
		})
	}
	for later := range uint32(2) {
		k, _ := alice.sealingKey(t, later)
		mail.Sealing = append(mail.Sealing, k)
	}
	token := identity.Token(bytes.Repeat([]byte{6}, 16))
	intro := prekey.Introduction{Manifest: alice.manifest, Token: &token, Profile: identity.Profile{
		Name:      string(bytes.Repeat([]byte{'a'}, protocol.MaxName)),
		Lookup:    identity.LookupSecret{1},
		Endpoints: []identity.Endpoint{{Transport: transport(90), Addrs: [][]byte{ip4, ip6, ip4, ip6}}},
	}}
	if intro.Profile.Mail, err = mail.Wire(true); err != nil {
		t.Fatal(err)
	}

	secrets, hs, err := prekey.Initiate(random, alice.dk, alice.party, bob.party, day, oneTime, &prekey.SessionID{1}, intro)
	if err != nil {
		t.Fatal(err)
	}
	session, err := ratchet.NewInitiator(random, secrets.Session, secrets.Root, secrets.Associated, day.X25519)
	if err != nil {
		t.Fatal(err)
	}
	to, _ := bob.signed.Device(bob.party.Device)
	var sealed []byte
	for _, test := range []struct {
		text int
		fits bool
	}{{4 << 10, false}, {3400, true}, {1 << 10, true}} {
		words := string(bytes.Repeat([]byte{'w'}, test.text))
		content, err := envelope.MarshalContent(&envelope.Content{ID: envelope.ID{1}, Sent: noon, Expires: noon.Add(protocol.MessageLife), Seq: 1, Text: &words})
		if err != nil {
			t.Fatal(err)
		}
		out, err := session.Seal(random, content)
		if err != nil {
			t.Fatal(err)
		}
		open := envelope.Seal(secrets.Session, hs, out.Message)
		if sealed, err = envelope.SealFor(to, sealingKey, queue, envelope.Sender{Key: alice.dk, Manifest: alice.manifest}, open); err != nil {
			t.Fatal(err)
		}
		t.Logf("text of %d bytes, padded %d; mail of %d, introduction of %d, envelope of %d, sealed %d",
			test.text, len(content), proto.Size(intro.Profile.Mail), len(hs.Introduction), len(open), len(sealed))
		if (len(sealed) <= protocol.BoxDeposit) != test.fits {
			t.Errorf("a first message with a text of %d bytes has %d bytes sealed, a contact box takes %d", test.text, len(sealed), protocol.BoxDeposit)
		}
	}

	// Bob can answer it.
	opened, err := envelope.OpenSealed([]*envelope.SealingPrivate{sealingPrivate}, bob.dk, queue, sealed, noon)
	if err != nil {
		t.Fatal(err)
	}
	e, err := envelope.ParseRelayed(opened.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	in, err := prekey.OpenIntroduction(bob.dk, bob.party.Account, &dayPrivate, day, e.Handshake, noon)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := prekey.Respond(bob.dk, bob.party.Account, &dayPrivate, day, &oneTimePrivate, oneTime, e.Handshake, in); err != nil || !in.CheckToken(token, s) {
		t.Errorf("the token does not count: %v", err)
	}
	got, err := OpenMail(in.Profile.Mail, true)
	if err != nil || len(got.Mailboxes) != protocol.MaxRelays || len(got.Sealing) != 2 {
		t.Fatalf("%d mailboxes and %d sealing keys arrive, %v", len(got.Mailboxes), len(got.Sealing), err)
	}
	if k, err := envelope.OpenSealingKey(got.Sealing[0], in.Peer.Account, in.Peer.Device, noon); err != nil || !k.Fresh(noon) {
		t.Errorf("the sealing key of this week: %v", err)
	}
}
