package record

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// boxes returns contact boxes at n relays, each with an IPv6 address and one
// with a name of 64 bytes, and the sealing keys of the given number of devices.
func boxes(t testing.TB, k *identity.AccountKey, n, devices int) relay.Mail {
	t.Helper()
	r := seeded("mail")
	var m relay.Mail
	for range n {
		seed := make([]byte, ed25519.SeedSize)
		r.Read(seed)
		m.Mailboxes = append(m.Mailboxes, relay.Mailbox{
			Relay: identity.Endpoint{
				Transport: identity.Transport(ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)),
				Addrs: [][]byte{
					slices.Concat([]byte{41}, make([]byte, 16), []byte{0x91, 0x02, 15, 161, 0xcd, 0x03}),                    // /ip6/…/udp/4001/quic-v1
					slices.Concat([]byte{0x36, 64}, bytes.Repeat([]byte{'x'}, 64), []byte{0x91, 0x02, 15, 161, 0xcd, 0x03}), // /dns4/…
				},
			},
			Queue: relay.QueueID(seed),
		})
	}
	for range devices {
		seed, err := identity.NewSecret(r)
		if err != nil {
			t.Fatal(err)
		}
		dh, err := x25519.Generate(r)
		if err != nil {
			t.Fatal(err)
		}
		p, err := envelope.NewSealingPrivate(r)
		if err != nil {
			t.Fatal(err)
		}
		m.Sealing = append(m.Sealing, envelope.SignSealingKey(identity.NewDeviceKey(seed, dh), k.Account(), envelope.WeekOf(noon), p))
	}
	return m
}

func TestRecordCarriesMail(t *testing.T) {
	k, l := newAccount(t, "alice")
	today := DayOf(noon)
	for _, test := range []struct{ devices, relays, most int }{
		{1, 1, 4 << 10},
		{1, protocol.MaxRelays, 8 << 10},
		{2, protocol.MaxRelays, 8 << 10},
		{3, protocol.MaxRelays, 16 << 10},
	} {
		b := newBody(t, k, today, 5, test.devices)
		mail := boxes(t, k, test.relays, test.devices)
		var err error
		if b.Mail, err = mail.Wire(false); err != nil {
			t.Fatal(err)
		}
		plain, err := marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		_, rec, err := Make(seeded("x"), k, l, 0, 3, b)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d devices, %d relays: mail of %d bytes, body of %d, record of %d", test.devices, test.relays, proto.Size(b.Mail), len(plain), len(rec))
		if len(rec) > test.most {
			t.Errorf("a record of %d devices and %d relays has %d bytes, want at most %d", test.devices, test.relays, len(rec), test.most)
		}
		got, err := Open(rec, k.Account(), l, noon)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got.Mail, b.Mail) {
			t.Errorf("another mail came back: %v", got.Mail)
		}
		opened, err := relay.OpenMail(got.Mail, false)
		if err != nil || len(opened.Mailboxes) != test.relays || len(opened.Sealing) != test.devices {
			t.Errorf("the mail opens to %d mailboxes and %d sealing keys, %v", len(opened.Mailboxes), len(opened.Sealing), err)
		}
	}
	// Nothing said of mail, and no mail.
	b := newBody(t, k, today, 5, 1)
	for _, m := range []*wire.Mail{nil, {}} {
		b.Mail = m
		_, rec, err := Make(seeded("x"), k, l, 0, 3, b)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Open(rec, k.Account(), l, noon); err != nil || (got.Mail == nil) != (m == nil) {
			t.Errorf("mail %v comes back as %v, %v", m, got.Mail, err)
		}
	}
}

func TestMailOfARecordIsBounded(t *testing.T) {
	k, l := newAccount(t, "alice")
	today := DayOf(noon)
	for what, edit := range map[string]func(*wire.Mail){
		"a fourth mailbox":               func(m *wire.Mail) { m.Mailboxes = append(m.Mailboxes, []byte{1}) },
		"an empty mailbox":               func(m *wire.Mail) { m.Mailboxes[0] = nil },
		"a long mailbox":                 func(m *wire.Mail) { m.Mailboxes[0] = make([]byte, protocol.MaxMailbox+1) },
		"a seventh sealing key":          func(m *wire.Mail) { m.Sealing = slices.Repeat(m.Sealing, protocol.MaxSealingKeys+1) },
		"a sealing key that is unsigned": func(m *wire.Mail) { m.Sealing[0].Signature = nil },
		"a long sealing key":             func(m *wire.Mail) { m.Sealing[0].Body = make([]byte, protocol.MaxSealing) },
	} {
		b := newBody(t, k, today, 1, 1)
		mail, err := boxes(t, k, protocol.MaxRelays, 1).Wire(false)
		if err != nil {
			t.Fatal(err)
		}
		edit(mail)
		plain, err := marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		var m wire.RecordBody
		if err := wire.Parse(plain, protocol.MaxRecord, &m); err != nil {
			t.Fatal(err)
		}
		m.Mail = mail
		if _, err := unmarshal(wire.Marshal(&m), k.Account(), noon); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: read: %v, want ErrInvalid", what, err)
		}
		b.Mail = mail
		if _, _, err := Make(seeded("x"), k, l, 0, 0, b); err == nil {
			t.Errorf("%s: published", what)
		}
	}
}
