package envelope

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"starling/protocol"
	"starling/protocol/wire"
)

func TestWeeks(t *testing.T) {
	day := 24 * time.Hour
	for _, c := range []struct {
		at   time.Time
		want uint32
	}{
		{time.Unix(-1, 0), 0},
		{time.Unix(0, 0), 0},
		{time.Unix(7*86400-1, 0), 0},
		{time.Unix(7*86400, 0), 1},
		{now, 2943},
		{time.Date(2026, 5, 27, 23, 59, 59, 0, time.UTC), 2942}, // a Wednesday
		{time.Date(2026, 5, 28, 0, 0, 0, 0, time.UTC), 2943},
	} {
		if got := WeekOf(c.at); got != c.want {
			t.Errorf("WeekOf(%v) = %d, want %d", c.at, got, c.want)
		}
	}
	start := WeekStart(2943)
	if want := time.Date(2026, 5, 28, 0, 0, 0, 0, time.UTC); !start.Equal(want) || start.Location() != time.UTC {
		t.Errorf("WeekStart(2943) = %v, want %v", start, want)
	}
	if got, want := SealingKeyDeath(2943), start.Add(7*day+15*day); !got.Equal(want) {
		t.Errorf("SealingKeyDeath(2943) = %v, want %v", got, want)
	}
	if last := uint32(1<<32 - 1); !SealingKeyDeath(last).After(WeekStart(last)) {
		t.Error("the last week has no end")
	}
}

func TestSealingKeyIsRefusedOutsideItsTime(t *testing.T) {
	p := newPerson(t, "bob")
	start := WeekStart(WeekOf(now))
	end := start.Add(7 * 24 * time.Hour)
	const fresh, late, not = "fresh", "late", "not"
	for _, c := range []struct {
		at   time.Time
		want string
	}{
		{start.Add(-24*time.Hour - 1), not},
		{start.Add(-24 * time.Hour), fresh},
		{start, fresh},
		{end.Add(24*time.Hour - 1), fresh},
		{end.Add(24 * time.Hour), late},
		{end.Add(14*24*time.Hour - 1), late},
		{end.Add(14 * 24 * time.Hour), not},
		{time.Time{}, not},
		{time.Unix(1<<50, 0), not},
	} {
		k, err := OpenSealingKey(p.signed, p.account.Account(), p.entry.Key, c.at)
		switch {
		case c.want == not:
			if err != ErrKeyExpired || k != nil {
				t.Errorf("at %v: error %v, want ErrKeyExpired", c.at, err)
			}
		case err != nil:
			t.Errorf("at %v: %v", c.at, err)
		case k.Fresh(c.at) != (c.want == fresh):
			t.Errorf("at %v: Fresh = %t, want it %s", c.at, k.Fresh(c.at), c.want)
		}
	}
}

// TestSealingKeyOutlivesItsMessages walks through the times at which a content
// may be made for a fresh key: it has expired when the private half may go.
func TestSealingKeyOutlivesItsMessages(t *testing.T) {
	p := newPerson(t, "bob")
	for at := WeekStart(p.key.Week).Add(-48 * time.Hour); at.Before(SealingKeyDeath(p.key.Week)); at = at.Add(time.Hour) {
		if p.key.Fresh(at) && at.Add(protocol.MessageLife).After(SealingKeyDeath(p.key.Week)) {
			t.Errorf("a content made at %v outlives the key, which dies at %v", at, SealingKeyDeath(p.key.Week))
		}
	}
	// Records made ahead for the coming days carry keys that exist.
	last := now.Add(protocol.DaysAhead * 24 * time.Hour)
	if WeekOf(last) > WeekOf(now)+protocol.WeeksAhead {
		t.Errorf("the record of %v needs a key of week %d, made ahead are those to %d", last, WeekOf(last), WeekOf(now)+protocol.WeeksAhead)
	}
}

func TestEveryChangedByteOfASealingKeyIsRefused(t *testing.T) {
	p := newPerson(t, "bob")
	for i := range p.signed {
		changed := bytes.Clone(p.signed)
		changed[i] ^= 1 << (i % 8)
		if _, err := OpenSealingKey(changed, p.account.Account(), p.entry.Key, now); err == nil || errors.Is(err, ErrKeyExpired) {
			t.Errorf("bit %d of byte %d changed: error %v", i%8, i, err)
		}
	}
	for n := range len(p.signed) {
		if _, err := OpenSealingKey(p.signed[:n], p.account.Account(), p.entry.Key, now); err == nil {
			t.Errorf("the first %d bytes are accepted", n)
		}
	}
}

// TestSignedNonsenseIsNoSealingKey signs what an honest device never makes.
func TestSignedNonsenseIsNoSealingKey(t *testing.T) {
	p, other := newPerson(t, "bob"), newPerson(t, "carol")
	account, stranger := p.account.Account(), other.account.Account()
	sound := func() *wire.SealingKey {
		return &wire.SealingKey{Account: account[:], Device: p.entry.Key[:], Week: WeekOf(now), Key: p.private.key.PublicKey().Bytes()}
	}
	for name, edit := range map[string]func(*wire.SealingKey){
		"":                       func(*wire.SealingKey) {},
		"another account":        func(m *wire.SealingKey) { m.Account = stranger[:] },
		"another device":         func(m *wire.SealingKey) { m.Device = other.entry.Key[:] },
		"no account":             func(m *wire.SealingKey) { m.Account = nil },
		"no device":              func(m *wire.SealingKey) { m.Device = nil },
		"no key":                 func(m *wire.SealingKey) { m.Key = nil },
		"a short key":            func(m *wire.SealingKey) { m.Key = m.Key[:sealingKeySize-1] },
		"a long key":             func(m *wire.SealingKey) { m.Key = append(m.Key, 0) },
		"ML-KEM above the field": func(m *wire.SealingKey) { m.Key[0], m.Key[1] = 0xff, 0xff },
		"X25519 not canonical":   func(m *wire.SealingKey) { m.Key[sealingKeySize-1] |= 0x80 },
		"week 0":                 func(m *wire.SealingKey) { m.Week = 0 },
		"the last week":          func(m *wire.SealingKey) { m.Week = 1<<32 - 1 },
	} {
		m := sound()
		edit(m)
		body := wire.Marshal(m)
		b := wire.Marshal(&wire.Signed{Body: body, Signature: p.dk.Sign(protocol.LabelSealingKey, body)})
		_, err := OpenSealingKey(b, account, p.entry.Key, now)
		if (err == nil) != (name == "") || errors.Is(err, ErrKeyExpired) != strings.Contains(name, "week") {
			t.Errorf("%q: error %v", name, err)
		}
	}
	body := wire.Marshal(sound())
	for name, label := range map[string]protocol.Label{"a bundle": protocol.LabelBundle, "a manifest": protocol.LabelManifest} {
		b := wire.Marshal(&wire.Signed{Body: body, Signature: p.dk.Sign(label, body)})
		if _, err := OpenSealingKey(b, account, p.entry.Key, now); err == nil {
			t.Errorf("what was signed as %s is accepted", name)
		}
	}
	if _, err := OpenSealingKey(longer(p.signed, protocol.MaxSealing+1), account, p.entry.Key, now); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("above the bound: error %v, want wire.ErrMalformed", err)
	}
	if _, err := OpenSealingKey(longer(p.signed, protocol.MaxSealing), account, p.entry.Key, now); err != nil {
		t.Errorf("at the bound: %v", err)
	}
}

func TestSealingPrivateIsRestored(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	sealed := sealFor(t, alice, bob, openEnvelope(256))
	restored := RestoreSealingPrivate(bob.private.Seed())
	if _, err := OpenSealed([]*SealingPrivate{restored}, bob.dk, queue, sealed, now); err != nil {
		t.Errorf("the restored key: %v", err)
	}
	if _, err := NewSealingPrivate(iotest.ErrReader(errors.New("no randomness"))); err == nil {
		t.Error("a key is made without randomness")
	}
}

func TestSealingPrivateDoesNotPrint(t *testing.T) {
	p := RestoreSealingPrivate([32]byte{0xab, 0xcd, 0xef})
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "pointer", p, "value", *p)
	out := []string{log.String()}
	for _, v := range []any{p, *p, []SealingPrivate{*p}, []*SealingPrivate{p}, struct{ K *SealingPrivate }{p}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%X", "%s", "%q", "%d"} {
			out = append(out, fmt.Sprintf(verb, v))
		}
	}
	for _, s := range out {
		low := strings.ToLower(s)
		if strings.Contains(low, "abcdef") || strings.Contains(low, "171 205 239") || strings.Contains(low, "0xab, 0xcd") || len(s) > 200 {
			t.Errorf("the key prints as %.200s", s)
		}
	}
}
