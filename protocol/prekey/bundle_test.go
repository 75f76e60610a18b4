package prekey

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

func TestDays(t *testing.T) {
	for _, c := range []struct {
		t    time.Time
		want uint32
	}{
		{time.Unix(0, 0), 0},
		{time.Unix(-1, 0), 0},
		{time.Unix(86399, 999), 0},
		{time.Unix(86400, 0), 1},
		{time.Date(2026, 6, 1, 23, 59, 59, 0, time.UTC), 20605},
		{time.Date(2026, 6, 2, 1, 0, 0, 0, time.FixedZone("", 2*60*60)), 20605},
	} {
		if got := DayOf(c.t); got != c.want {
			t.Errorf("DayOf(%v) = %d, want %d", c.t, got, c.want)
		}
	}
	for _, day := range []uint32{0, 1, 20605, 1 << 24} {
		start := DayStart(day)
		if DayOf(start) != day || DayOf(start.Add(24*time.Hour-1)) != day || DayOf(start.Add(24*time.Hour)) != day+1 {
			t.Errorf("day %d does not span from its start to the next", day)
		}
	}
}

// The lifetimes fit together: a message made with the last acceptable use of a
// day's key expires before the key dies.
func TestDayKeyOutlivesItsMessages(t *testing.T) {
	if last := 24*time.Hour + protocol.BundleSkew + protocol.MessageLife; last >= protocol.DayKeyLife {
		t.Errorf("a message may arrive %v into the life of a day's key, which has %v", last, protocol.DayKeyLife)
	}
}

func TestBundleReadsAsSigned(t *testing.T) {
	bob := newNode(t, "bob", 1<<63|5)
	for _, c := range []struct {
		b, other *Bundle
		p        *Private
		role     wire.Role
		from, to time.Time
	}{
		{bob.dayBundle, bob.oneTimeBundle, &bob.day, wire.Role_ROLE_DAY, DayStart(DayOf(now)), DayStart(DayOf(now) + 1)},
		{bob.oneTimeBundle, bob.dayBundle, &bob.oneTime, wire.Role_ROLE_ONE_TIME, now, now.Add(protocol.OneTimeLife)},
	} {
		x := c.p.X25519()
		if c.b.Account != bob.self.Account || c.b.Device != bob.self.Device || c.b.Role != c.role || c.b.Capabilities != 1<<63|5 ||
			!c.b.NotBefore.Equal(c.from) || !c.b.NotAfter.Equal(c.to) || c.b.X25519 != x.Public() ||
			!bytes.Equal(c.b.KEM.Bytes(), c.p.kem.EncapsulationKey().Bytes()) {
			t.Errorf("bundle reads as %+v", c.b)
		}
		if c.b.ID == c.other.ID || c.b.ID == (KeyID{}) {
			t.Error("two bundles share a key ID")
		}
	}
}

func TestRestoredKeysGoOn(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	x, kem := bob.day.Seeds()
	if len(kem) != KEMSeedSize {
		t.Fatalf("KEM seed has %d bytes, want %d", len(kem), KEMSeedSize)
	}
	day, err := RestorePrivate(x, kem)
	if err != nil {
		t.Fatal(err)
	}
	b, err := OwnBundle(bob.dayBytes, &day)
	if err != nil {
		t.Fatal(err)
	}
	want, hs := alice.initiate(t, bob, nil, nil, nil)
	in, err := OpenIntroduction(bob.dk, bob.self.Account, &day, b, hs, now.Add(15*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Respond(bob.dk, bob.self.Account, &day, b, nil, nil, hs, in)
	if err != nil || !equal(got, want) {
		t.Errorf("restored keys derive something else: %v", err)
	}

	if _, err := RestorePrivate(x, kem[:63]); err == nil {
		t.Error("a KEM seed of 63 bytes is accepted")
	}
	if _, err := OwnBundle(bob.dayBytes, &bob.oneTime); err == nil {
		t.Error("a bundle of other keys is accepted as own")
	}
	for _, b := range [][]byte{nil, {0xff}, wire.Marshal(&wire.Signed{Body: []byte{0xff}}), wire.Marshal(&wire.Signed{})} {
		if _, err := OwnBundle(b, &day); err == nil {
			t.Errorf("%x is accepted as an own bundle", b)
		}
	}
}

func TestNewPrivateNeedsItsRandomness(t *testing.T) {
	for _, n := range []int{0, 31, 32, 95} {
		if _, err := NewPrivate(bytes.NewReader(make([]byte, n))); err == nil {
			t.Errorf("a private half was made of %d random bytes", n)
		}
	}
	if _, err := NewPrivate(bytes.NewReader(make([]byte, 96))); err != nil {
		t.Error(err)
	}
}

func TestBundleIsRefusedOutsideItsTime(t *testing.T) {
	bob := newNode(t, "bob", 1)
	start, end := bob.dayBundle.NotBefore, bob.dayBundle.NotAfter
	for _, c := range []struct {
		at   time.Time
		want error
	}{
		{start, nil},
		{end.Add(-1), nil},
		{start.Add(-protocol.BundleSkew), nil},
		{start.Add(-protocol.BundleSkew - 1), ErrExpired},
		{end.Add(protocol.BundleSkew - 1), nil},
		{end.Add(protocol.BundleSkew), ErrExpired},
		{end.AddDate(1, 0, 0), ErrExpired},
	} {
		if _, err := OpenBundle(bob.dayBytes, bob.self.Account, bob.self.Device, wire.Role_ROLE_DAY, c.at); !errors.Is(err, c.want) {
			t.Errorf("%v after its start: error %v, want %v", c.at.Sub(start), err, c.want)
		}
	}
	// Only a sound bundle expires: a forged one is refused as forged.
	var s wire.Signed
	if err := wire.Parse(bob.dayBytes, protocol.MaxBundle, &s); err != nil {
		t.Fatal(err)
	}
	s.Signature = flip(s.Signature, 0)
	if _, err := OpenBundle(wire.Marshal(&s), bob.self.Account, bob.self.Device, wire.Role_ROLE_DAY, end.AddDate(1, 0, 0)); !errors.Is(err, identity.ErrSignature) {
		t.Errorf("a forged bundle out of its time: error %v, want ErrSignature", err)
	}
}

func TestBundleOfAnotherIsRefused(t *testing.T) {
	bob, carol := newNode(t, "bob", 1), newNode(t, "carol", 1)
	for name, err := range map[string]error{
		"another account": func() error {
			_, err := OpenBundle(bob.dayBytes, carol.self.Account, bob.self.Device, wire.Role_ROLE_DAY, now)
			return err
		}(),
		"another device": func() error {
			_, err := OpenBundle(bob.dayBytes, bob.self.Account, carol.self.Device, wire.Role_ROLE_DAY, now)
			return err
		}(),
		"another role": func() error {
			_, err := OpenBundle(bob.dayBytes, bob.self.Account, bob.self.Device, wire.Role_ROLE_ONE_TIME, now)
			return err
		}(),
		"the role reversed": func() error {
			_, err := OpenBundle(bob.oneTimeBytes, bob.self.Account, bob.self.Device, wire.Role_ROLE_DAY, now)
			return err
		}(),
	} {
		if err == nil || errors.Is(err, ErrExpired) {
			t.Errorf("%s: error %v, want a refusal", name, err)
		}
	}
	// Carol signs Bob's keys as her own. That is allowed, and it is another
	// bundle: the transcript names its device.
	stolen := SignBundle(carol.dk, carol.self.Account, wire.Role_ROLE_DAY, 1, bob.dayBundle.NotBefore, bob.dayBundle.NotAfter, &bob.day)
	if b := carol.open(t, stolen, wire.Role_ROLE_DAY); b.ID == bob.dayBundle.ID {
		t.Error("two devices' bundles share a key ID")
	}
}

func TestEveryChangedBitOfABundleIsRefused(t *testing.T) {
	bob := newNode(t, "bob", 1)
	for i := range len(bob.dayBytes) {
		b := flip(bob.dayBytes, 8*i+i%8)
		if _, err := OpenBundle(b, bob.self.Account, bob.self.Device, wire.Role_ROLE_DAY, now); err == nil {
			t.Errorf("bit %d of byte %d is not covered", i%8, i)
		}
	}
	if _, err := OpenBundle(append(bytes.Clone(bob.dayBytes), make([]byte, protocol.MaxBundle)...), bob.self.Account, bob.self.Device, wire.Role_ROLE_DAY, now); err == nil {
		t.Error("a bundle above the bound is accepted")
	}
}

// TestSignedNonsenseIsRefused signs bodies that no honest device makes.
func TestSignedNonsenseIsRefused(t *testing.T) {
	bob := newNode(t, "bob", 1)
	day := bob.dayBundle.NotBefore.Unix()
	x, kem := bob.dayBundle.X25519, bob.dayBundle.KEM.Bytes()
	for name, edit := range map[string]func(*wire.Bundle){
		"":                      func(*wire.Bundle) {},
		"role unspecified":      func(m *wire.Bundle) { m.Role = wire.Role_ROLE_UNSPECIFIED },
		"role 3":                func(m *wire.Bundle) { m.Role = 3 },
		"no validity":           func(m *wire.Bundle) { m.NotBefore, m.NotAfter = 0, 0 },
		"backwards":             func(m *wire.Bundle) { m.NotAfter = m.NotBefore - 86400 },
		"two days":              func(m *wire.Bundle) { m.NotAfter += 86400 },
		"not a day's start":     func(m *wire.Bundle) { m.NotBefore, m.NotAfter = m.NotBefore+1, m.NotAfter+1 },
		"half a day":            func(m *wire.Bundle) { m.NotAfter -= 43200 },
		"times that overflow":   func(m *wire.Bundle) { m.NotBefore, m.NotAfter = 1<<62-(1<<62)%86400, 1<<62+86400 },
		"negative times":        func(m *wire.Bundle) { m.NotBefore, m.NotAfter = -86400, 0 },
		"no X25519 key":         func(m *wire.Bundle) { m.X25519 = nil },
		"X25519 not canonical":  func(m *wire.Bundle) { m.X25519 = bytes.Repeat([]byte{0xff}, 32) },
		"no KEM key":            func(m *wire.Bundle) { m.Kem = nil },
		"ML-KEM-768 key length": func(m *wire.Bundle) { m.Kem = m.Kem[:1184] },
		"KEM not reduced":       func(m *wire.Bundle) { m.Kem = bytes.Repeat([]byte{0xff}, KEMKeySize) },
	} {
		m := &wire.Bundle{
			Account: bob.self.Account[:], Device: bob.self.Device[:], Role: wire.Role_ROLE_DAY, Capabilities: 1,
			NotBefore: day, NotAfter: day + 86400, X25519: x[:], Kem: kem,
		}
		edit(m)
		body := wire.Marshal(m)
		b := wire.Marshal(&wire.Signed{Body: body, Signature: bob.dk.Sign(protocol.LabelBundle, body)})
		_, err := OpenBundle(b, bob.self.Account, bob.self.Device, m.Role, now)
		if (err == nil) != (name == "") || errors.Is(err, ErrExpired) {
			t.Errorf("%q: error %v", name, err)
		}
	}
	// A signature made under another label counts for nothing.
	body := wire.Marshal(&wire.Bundle{
		Account: bob.self.Account[:], Device: bob.self.Device[:], Role: wire.Role_ROLE_DAY,
		NotBefore: day, NotAfter: day + 86400, X25519: x[:], Kem: kem,
	})
	b := wire.Marshal(&wire.Signed{Body: body, Signature: bob.dk.Sign(protocol.LabelManifest, body)})
	if _, err := OpenBundle(b, bob.self.Account, bob.self.Device, wire.Role_ROLE_DAY, now); !errors.Is(err, identity.ErrSignature) {
		t.Errorf("a bundle signed as a manifest: error %v, want ErrSignature", err)
	}
}

// A one-time bundle may wait in a relay's pool, but not longer than a message
// lives.
func TestOneTimeBundleIsBounded(t *testing.T) {
	bob := newNode(t, "bob", 1)
	for _, c := range []struct {
		life time.Duration
		ok   bool
	}{{time.Second, true}, {protocol.OneTimeLife, true}, {protocol.PoolKeyLife, true}, {protocol.PoolKeyLife + time.Second, false}, {0, false}} {
		b := SignBundle(bob.dk, bob.self.Account, wire.Role_ROLE_ONE_TIME, 1, now, now.Add(c.life), &bob.oneTime)
		if _, err := OpenBundle(b, bob.self.Account, bob.self.Device, wire.Role_ROLE_ONE_TIME, now); (err == nil) != c.ok {
			t.Errorf("a one-time bundle for %v: error %v", c.life, err)
		}
	}
}
