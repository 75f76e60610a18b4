package session_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
)

const (
	day  = 24 * time.Hour
	week = 7 * day
)

// queue is where everybody here has what is left for them.
var queue = [32]byte{1, 2, 3}

func (p *person) entry() identity.DeviceEntry {
	return identity.DeviceEntry{Key: p.device.Device(), DH: p.device.DH().Public()}
}

func (p *person) sealingKeys() (signed [][]byte) {
	p.t.Helper()
	p.update(func(tx *store.Tx) (err error) {
		signed, err = p.m.SealingKeys(tx, p.w.now)
		return err
	})
	return signed
}

// keyOf returns p's sealing key of a week, as a reader knew it in that week.
func (p *person) keyOf(signed []byte, week uint32) *envelope.SealingKey {
	p.t.Helper()
	k := must(envelope.OpenSealingKey(signed, p.account, p.device.Device(), envelope.WeekStart(week)))(p.t)
	if k.Week != week {
		p.t.Fatalf("a sealing key of week %d, want %d", k.Week, week)
	}
	return k
}

// best returns the key that a sender uses now who was given these: the fresh
// one of the latest week, otherwise the latest late one, otherwise nil.
func (p *person) best(signed [][]byte) (best *envelope.SealingKey) {
	p.t.Helper()
	for _, b := range signed {
		k, err := envelope.OpenSealingKey(b, p.account, p.device.Device(), p.w.now)
		if errors.Is(err, envelope.ErrKeyExpired) {
			continue
		} else if err != nil {
			p.t.Fatal(err)
		}
		if best == nil || !best.Fresh(p.w.now) || k.Fresh(p.w.now) {
			best = k
		}
	}
	return best
}

// sealedFor returns p's envelope for q as a relay gets it.
func (p *person) sealedFor(q *person, k *envelope.SealingKey, e []byte) []byte {
	p.t.Helper()
	from := envelope.Sender{Key: p.device, Manifest: p.manifest}
	return must(envelope.SealFor(q.entry(), k, queue, from, e))(p.t)
}

// openSealed opens one thing of p's queue, and keeps what that leaves.
func (p *person) openSealed(b []byte) (o envelope.Opened, err error) {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		o, err = p.m.OpenSealed(tx, p.w.now, queue, b)
		return nil
	})
	return o, err
}

// weeks returns the weeks of which p has a private half.
func (p *person) weeks() (weeks []uint32) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		for r, err := range store.SealingKeys.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			weeks = append(weeks, r.Key.Week())
		}
		return nil
	})
	return weeks
}

func (p *person) restart() {
	p.t.Helper()
	p.disk.Crash()
	p.db.Close()
	p.open()
}

// The keys of this week and the next two are made once, each good in its week.
func TestSealingKeysAreMadeAhead(t *testing.T) {
	w, a, b := pair(t, 400)
	this := envelope.WeekOf(w.now)
	first := b.sealingKeys()
	if len(first) != 1+protocol.WeeksAhead {
		t.Fatalf("%d sealing keys, want %d", len(first), 1+protocol.WeeksAhead)
	}
	b.restart()
	again := b.sealingKeys()
	for i := range first {
		if !bytes.Equal(first[i], again[i]) {
			t.Errorf("the key %d weeks ahead was made twice", i)
		}
		k := b.keyOf(first[i], this+uint32(i))
		o, err := b.openSealed(a.sealedFor(b, k, []byte("envelope")))
		if err != nil || string(o.Envelope) != "envelope" || o.Device != a.entry() || o.Manifest.Account != a.account {
			t.Errorf("what is sealed to the key %d weeks ahead: %q, %v", i, o.Envelope, err)
		}
	}
	w.now = w.now.Add(week)
	next := b.sealingKeys()
	if !bytes.Equal(next[0], first[1]) || !bytes.Equal(next[1], first[2]) {
		t.Error("a week later the keys made ahead are others")
	}
	b.keyOf(next[2], this+3)
}

// What a stranger makes leaves nothing behind, and is one error; what opens is
// remembered, also over a restart, for as long as a key could open it.
func TestSealedEnvelopeOpensOnce(t *testing.T) {
	w, a, b := pair(t, 401)
	eve := w.person("Eve")
	k := b.best(b.sealingKeys())
	honest := a.sealedFor(b, k, []byte("envelope"))
	rows := func() (n int) {
		b.view(func(tx *store.Tx) error {
			for range store.SeenSealed.Scan(tx, nil, nil) {
				n++
			}
			return nil
		})
		return n
	}
	change := func(at int) []byte {
		c := bytes.Clone(honest)
		c[at] ^= 1
		return c
	}
	elsewhere := must(envelope.SealFor(b.entry(), k, [32]byte{9}, envelope.Sender{Key: eve.device, Manifest: eve.manifest}, []byte("x")))(t)
	stranger := w.person("somebody whose key this is not")
	for name, forged := range map[string][]byte{
		"nothing":          nil,
		"another size":     honest[1:],
		"far too much":     make([]byte, protocol.MaxSealed+1),
		"zeros":            make([]byte, envelope.SealedSizes()[1]),
		"changed enc":      change(3),
		"changed X25519":   change(1119),
		"changed inside":   change(1300),
		"changed tag":      change(len(honest) - 1),
		"of another queue": elsewhere,
		"to another":       a.sealedFor(stranger, stranger.best(stranger.sealingKeys()), []byte("x")),
	} {
		if _, err := b.openSealed(forged); err != envelope.ErrSealed {
			t.Errorf("%s: %v, want ErrSealed", name, err)
		}
	}
	if n := rows(); n != 0 {
		t.Fatalf("what does not open left %d rows", n)
	}

	if o, err := b.openSealed(honest); err != nil || string(o.Envelope) != "envelope" {
		t.Fatalf("the honest one: %q, %v", o.Envelope, err)
	}
	for _, again := range []func(){func() {}, b.restart, func() { w.now = w.now.Add(protocol.DedupeLife - time.Second) }} {
		again()
		if _, err := b.openSealed(honest); !errors.Is(err, session.ErrSeenSealed) {
			t.Errorf("the same bytes again: %v, want ErrSeenSealed", err)
		}
	}
	if n := rows(); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	b.sealingKeys()
	w.now = w.now.Add(time.Second)
	if _, err := b.openSealed(honest); err != envelope.ErrSealed {
		t.Errorf("when the memory of it ends: %v, want ErrSealed", err)
	}
}

// A transaction that is discarded leaves no key behind, in memory either.
func TestDiscardedSealingKeysOpenNothing(t *testing.T) {
	_, a, b := pair(t, 402)
	var lost [][]byte
	discard := errors.New("discard")
	if err := b.db.Update(func(tx *store.Tx) (err error) {
		if lost, err = b.m.SealingKeys(tx, b.w.now); err != nil {
			return err
		}
		if _, err = b.m.OpenSealed(tx, b.w.now, queue, a.sealedFor(b, b.best(lost), []byte("x"))); err != nil {
			return err
		}
		return discard
	}); err != discard {
		t.Fatal(err)
	}
	kept := b.sealingKeys()
	if _, err := b.openSealed(a.sealedFor(b, b.best(lost), []byte("x"))); err != envelope.ErrSealed {
		t.Errorf("what is sealed to a key that was never committed: %v", err)
	}
	if _, err := b.openSealed(a.sealedFor(b, b.best(kept), []byte("x"))); err != nil {
		t.Errorf("what is sealed to the key that was: %v", err)
	}
	// Nor does a memory of what was opened.
	sealed := a.sealedFor(b, b.best(kept), []byte("x"))
	if err := b.db.Update(func(tx *store.Tx) error {
		if _, err := b.m.OpenSealed(tx, b.w.now, queue, sealed); err != nil {
			return err
		}
		return discard
	}); err != discard {
		t.Fatal(err)
	}
	if _, err := b.openSealed(sealed); err != nil {
		t.Errorf("what was opened in a discarded transaction does not open again: %v", err)
	}
}

// A sealingModel is what SPEC §7.6 says of one device's keys.
type sealingModel map[uint32]*modelKey

type modelKey struct {
	key  *envelope.SealingKey
	dies time.Time // zero: it has no successor
}

func (k *modelKey) lives(now time.Time) bool { return k.dies.IsZero() || now.Before(k.dies) }

// published notes what a call of SealingKeys returned.
func (m sealingModel) published(t *testing.T, p *person, signed [][]byte) {
	t.Helper()
	first := envelope.WeekOf(p.w.now)
	newest := first + protocol.WeeksAhead
	for i, b := range signed {
		k := p.keyOf(b, first+uint32(i))
		if _, ok := m[k.Week]; !ok {
			m[k.Week] = &modelKey{key: k}
		}
	}
	for n, k := range m {
		if k.dies.IsZero() && n < newest {
			k.dies = envelope.WeekStart(n + 1).Add(15 * day)
			if successor := p.w.now.Add(15 * day); successor.After(k.dies) {
				k.dies = successor
			}
		}
	}
}

// Weeks roll, in random steps of minutes to weeks, over crashes and discarded
// transactions: a key opens what is sealed to it until both of its times are
// over, then never again, and then its row is gone.
func TestDeadSealingKeysStayDead(t *testing.T) {
	for seed := range uint64(max(1, 10/slower)) {
		w, a, b := pair(t, 410+seed)
		model, end, most := sealingModel{}, w.now.Add(10*week), 0
		for step := 0; w.now.Before(end); step++ {
			switch w.rng.IntN(8) {
			case 0:
				w.now = w.now.Add(13 * day)
			case 1:
				w.now = w.now.Add(time.Duration(w.rng.Int64N(int64(5 * week))))
			default:
				w.now = w.now.Add(time.Duration(w.rng.Int64N(int64(2 * day))))
			}
			switch w.rng.IntN(4) {
			case 0:
				b.restart()
			case 1:
				if err := b.db.Update(func(tx *store.Tx) error {
					_, err := b.m.SealingKeys(tx, w.now)
					return errors.Join(err, errors.New("discard"))
				}); err == nil {
					t.Fatal("a transaction was not discarded")
				}
			default:
				model.published(t, b, b.sealingKeys())
				weeks := b.weeks()
				most = max(most, len(weeks))
				living := 0
				for _, k := range model {
					if k.lives(w.now) {
						living++
					}
				}
				if len(weeks) != living {
					t.Fatalf("seed %d, step %d: private halves of weeks %v are kept, want %d", seed, step, weeks, living)
				}
			}
			for n, k := range model {
				if w.rng.IntN(3) > 0 {
					continue
				}
				_, err := b.openSealed(a.sealedFor(b, k.key, []byte("x")))
				if want := k.lives(w.now); want != (err == nil) || err != nil && err != envelope.ErrSealed {
					t.Fatalf("seed %d, step %d: the key of week %d, %v after its end: %v; living %t",
						seed, step, n, w.now.Sub(envelope.WeekStart(n+1)), err, want)
				}
			}
		}
		if most > 7 {
			t.Errorf("seed %d: %d private halves at once", seed, most)
		}
		a.db.Close()
		b.db.Close()
	}
}

// Ten weeks, day by day: a sender who hears of the keys now and then leaves an
// envelope every day, and its reader fetches it up to 14 days later.
func TestEnvelopesOfTenWeeksOpen(t *testing.T) {
	w, a, b := pair(t, 420)
	type left struct {
		sealed []byte
		at     time.Time
	}
	var waiting []left
	var known [][]byte
	opened := 0
	for d := range 70 {
		w.now = w.now.Add(day)
		if signed := b.sealingKeys(); d == 0 || w.rng.IntN(5) == 0 {
			known = signed
		}
		waiting = append(waiting, left{
			a.sealedFor(b, b.best(known), fmt.Append(nil, d)),
			w.now.Add(time.Duration(w.rng.Int64N(int64(protocol.MessageLife)))),
		})
		rest := waiting[:0]
		for _, l := range waiting {
			if w.now.Before(l.at) {
				rest = append(rest, l)
				continue
			}
			if _, err := b.openSealed(l.sealed); err != nil {
				t.Fatalf("day %d: %v", d, err)
			}
			opened++
		}
		waiting = rest
	}
	if opened < 50 {
		t.Errorf("%d envelopes were opened", opened)
	}
	if n := len(b.weeks()); n > 6 {
		t.Errorf("%d private halves are kept", n)
	}
}

// Who was away comes back to what was left with the keys made ahead, and gives
// out newer ones before or after reading it; the last old key lives for 15 days
// more.
func TestOwnerAway(t *testing.T) {
	for name, away := range map[string]time.Duration{"13 days": 13 * day, "5 weeks": 5 * week} {
		for _, readFirst := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, read first %t", name, readFirst), func(t *testing.T) {
				w, a, b := pair(t, 430)
				known := b.sealingKeys()
				back, last := w.now.Add(away), b.keyOf(known[2], envelope.WeekOf(w.now)+2)
				left := map[time.Time][]byte{}
				for ; w.now.Before(back); w.now = w.now.Add(day) {
					k := b.best(known)
					if k == nil {
						if late := envelope.WeekStart(last.Week + 1).Add(protocol.SealingLate); w.now.Before(late) {
							t.Fatalf("no key on %v, the last one may be used until %v", w.now, late)
						}
						continue
					}
					left[w.now] = a.sealedFor(b, k, []byte("x"))
				}
				b.restart()
				if !readFirst {
					b.sealingKeys()
				}
				alive := 0
				for made, sealed := range left {
					if !w.now.Before(made.Add(protocol.MessageLife)) {
						continue // expired: a relay holds it no more
					}
					alive++
					if _, err := b.openSealed(sealed); err != nil {
						t.Errorf("left %v before the return: %v", w.now.Sub(made), err)
					}
				}
				if alive < 8 {
					t.Errorf("only %d envelopes waited", alive)
				}
				b.sealingKeys()

				// The last key made ahead was given a successor today.
				dies := envelope.WeekStart(last.Week + 1).Add(15 * day)
				if successor := back.Add(15 * day); successor.After(dies) {
					dies = successor
				}
				for _, c := range []struct {
					at   time.Time
					want error
				}{{dies.Add(-time.Second), nil}, {dies, envelope.ErrSealed}} {
					w.now = c.at
					if _, err := b.openSealed(a.sealedFor(b, last, []byte("x"))); err != c.want {
						t.Errorf("%v after the return: %v, want %v", w.now.Sub(back), err, c.want)
					}
				}
				b.sealingKeys()
				if slices.Contains(b.weeks(), last.Week) {
					t.Error("the last key made ahead is still on the disk")
				}
			})
		}
	}
}

// A clock that was years ahead for a while makes no key of today live for years.
func TestClockThatWasAhead(t *testing.T) {
	w, a, b := pair(t, 440)
	today := w.now
	k := b.best(b.sealingKeys())
	w.now = today.AddDate(5, 0, 0)
	b.m = session.New(session.Config{Key: b.device, Account: b.account, Rand: b.rand})
	if _, err := b.openSealed(a.sealedFor(b, k, []byte("x"))); err != envelope.ErrSealed {
		t.Errorf("a key of five years ago: %v", err)
	}
	future := b.sealingKeys()
	w.now = today.Add(time.Hour)
	now := b.sealingKeys()
	last := envelope.WeekOf(w.now) + 2
	if _, err := b.openSealed(a.sealedFor(b, b.best(now), []byte("x"))); err != nil {
		t.Errorf("today's key after the clock was ahead: %v", err)
	}
	for range 6 {
		w.now = w.now.Add(week)
		b.sealingKeys()
	}
	if n, most := len(b.weeks()), 6+len(future); n > most {
		t.Errorf("%d private halves are kept, want at most %d", n, most)
	}
	if slices.Contains(b.weeks(), last) {
		t.Error("the key that had no successor when the clock was ahead is still there")
	}
}

func BenchmarkOpenSealed(b *testing.B) {
	w, a, p := pair(b, 450)
	known := p.sealingKeys()
	for range 3 {
		w.now = w.now.Add(week)
		known = p.sealingKeys()
	}
	k := p.best(known)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		b.StopTimer()
		var batch [64][]byte
		for i := range batch {
			batch[i] = a.sealedFor(p, k, []byte("envelope"))
		}
		b.StartTimer()
		p.update(func(tx *store.Tx) error {
			for _, sealed := range batch {
				if _, err := p.m.OpenSealed(tx, w.now, queue, sealed); err != nil {
					return err
				}
			}
			return nil
		})
		n += len(batch)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "envelopes/s")
}
