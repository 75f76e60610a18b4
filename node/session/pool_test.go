package session_test

import (
	"errors"
	"testing"
	"time"

	"starling/node/session"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/prekey"
	"starling/protocol/wire"
)

// Two relays with a pool of everybody's.
var (
	relay1 = identity.Transport{1}
	relay2 = identity.Transport{2}
)

func (p *person) mint(at time.Time, relay identity.Transport, n int) (bundles [][]byte) {
	p.t.Helper()
	p.update(func(tx *store.Tx) (err error) {
		bundles, err = p.m.MintPool(tx, at, relay, n)
		return err
	})
	return bundles
}

// startWith opens a session with q from bundles that were opened before.
func (p *person) startWith(q *person, oneTime *prekey.Bundle) {
	p.t.Helper()
	m := must(identity.OpenManifest(q.manifest, q.account, p.w.now))(p.t)
	day := must(prekey.OpenBundle(q.give(false).day, q.account, q.device.Device(), wire.Role_ROLE_DAY, p.w.now))(p.t)
	p.update(func(tx *store.Tx) error {
		return p.m.Start(tx, p.w.now, m, q.device.Device(), day, oneTime, prekey.Introduction{Manifest: p.manifest, Profile: p.profile()}, nil)
	})
}

// bundle opens a one-time bundle of p, as a stranger does.
func (p *person) bundle(b []byte) *prekey.Bundle {
	p.t.Helper()
	return must(prekey.OpenBundle(b, p.account, p.device.Device(), wire.Role_ROLE_ONE_TIME, p.w.now))(p.t)
}

// first returns a first message of p to q, on the only session that p has.
func (p *person) first(q *person, oneTime *prekey.Bundle) []byte {
	p.t.Helper()
	p.lose()
	p.startWith(q, oneTime)
	return must(p.seal(q, "hello"))(p.t).Envelope
}

// gone opens e at p, which must fail because its one-time key is gone, and
// returns what is said of a relay that repeats itself.
func (p *person) gone(from *person, e []byte) *session.Repeated {
	p.t.Helper()
	var relay *session.Repeated
	p.update(func(tx *store.Tx) error {
		_, err := p.m.Open(tx, p.w.now, nil, e)
		u, ok := err.(*session.Undecryptable)
		if !ok || u.Answer.Reason != wire.Reason_REASON_KEY_GONE || u.Peer != from.account {
			p.t.Errorf("a handshake whose one-time key is gone: %v", err)
			return nil
		}
		relay = u.Repeated
		return nil
	})
	return relay
}

func (p *person) mustOpen(e []byte) {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		if _, err := p.m.Open(tx, p.w.now, nil, e); err != nil {
			p.t.Errorf("a first message: %v", err)
		}
		return nil
	})
}

// wantRefused checks whether p knows of a one-time key that q refused.
func (p *person) wantRefused(q *person, want bool) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		if got := must(p.m.KeyRefused(tx, p.w.now, q.account))(p.t); got != want {
			p.t.Errorf("a key of %s was refused: %v, want %v", q.name, got, want)
		}
		return nil
	})
}

// pool counts p's keys for pools and its memories of used ones.
func (p *person) pool() (keys, used int) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		for range store.PoolKeys.Scan(tx, nil, nil) {
			keys++
		}
		for r := range store.UsedOneTime.Scan(tx, nil, nil) {
			if len(r.Value.Handshake) != 32 || string(r.Value.Relay) != string(relay1[:]) {
				p.t.Errorf("a used key of relay %x with a handshake of %d bytes", r.Value.Relay, len(r.Value.Handshake))
			}
			used++
		}
		return nil
	})
	return keys, used
}

// A key of a pool opens one session. Whoever gets it after somebody else
// is told that it is gone, and the owner is told which relay gave it out twice.
func TestPoolKeyOpensOneSession(t *testing.T) {
	w, a, b := pair(t, 500)
	eve := w.person("Eve")
	eve.knows(b)
	given := b.mint(w.now, relay1, 3)
	if k := b.bundle(given[0]); k.NotAfter.Sub(k.NotBefore) != protocol.PoolKeyLife {
		t.Errorf("a bundle of a pool is valid for %v", k.NotAfter.Sub(k.NotBefore))
	}
	b.restart()
	e := a.first(b, b.bundle(given[0]))
	if hs := must(envelope.Parse(e))(t).Handshake; len(hs.OneTimeKey) == 0 {
		t.Fatal("the handshake uses no one-time key")
	}
	b.mustOpen(e)
	if keys, used := b.pool(); keys != 2 || used != 1 {
		t.Errorf("%d keys and %d used ones are kept, want 2 and 1", keys, used)
	}

	// The same account once more, which is not the relay's doing.
	if relay := b.gone(a, a.first(b, b.bundle(given[0]))); relay != nil {
		t.Error("one account used a key twice, and its relay is blamed")
	}
	repeated := b.bundle(given[0])
	b.restart()
	if relay := b.gone(eve, eve.first(b, repeated)); relay == nil || *relay != (session.Repeated{Relay: relay1, First: a.account}) {
		t.Errorf("two accounts used one key of a pool, and %v is blamed", relay)
	}
	if keys, used := b.pool(); keys != 2 || used != 1 {
		t.Errorf("%d keys and %d used ones are kept, want 2 and 1", keys, used)
	}
	// The other keys are good.
	b.mustOpen(eve.first(b, b.bundle(given[1])))
	// After the memory of it nobody is blamed; the key stays gone.
	forgotten := w.now.Add(protocol.DedupeLife)
	w.now = repeated.NotAfter
	late := eve.first(b, repeated)
	w.now = forgotten
	if relay := b.gone(eve, late); relay != nil {
		t.Error("a relay is blamed for what was long ago")
	}
}

// No message is lost to a relay that gives out one key twice, and the hour
// between renewals does not count. Whoever was refused asks for no key again
// until the next session has begun.
func TestRepeatedPoolKeyLosesNoMessage(t *testing.T) {
	_, a, b := pair(t, 501)
	eve := b.w.person("Eve")
	eve.knows(b)
	b.knows(eve)
	k := b.bundle(b.mint(b.w.now, relay1, 1)[0])
	for _, p := range []*person{a, eve} {
		p.wantRefused(b, false)
		p.startWith(b, k)
		p.wantRefused(b, false)
		p.queue(b, "hello of "+p.name)
		s := p.next(b)
		p.settle(b, s, b.take(p, s.out.Envelope))
		p.wantRefused(b, p == eve)
		p.flush(b, true)
		p.wantRefused(b, false)
		b.wantRead(p, map[string]bool{"hello of " + p.name: true})
	}
}

// Keys minted on a stream are nobody's fault, and leave nothing.
func TestUsedKeyOfAStreamLeavesNoRow(t *testing.T) {
	w, a, b := pair(t, 502)
	eve := w.person("Eve")
	eve.knows(b)
	k := b.bundle(b.give(true).oneTime)
	b.mustOpen(a.first(b, k))
	if relay := b.gone(eve, eve.first(b, k)); relay != nil {
		t.Errorf("relay %x is blamed for a key of no pool", relay.Relay)
	}
	if keys, used := b.pool(); keys != 0 || used != 0 {
		t.Errorf("%d keys of pools and %d used ones are kept", keys, used)
	}
}

// A key that nobody used dies 15 days after its bundle, and leaves nothing.
func TestPoolKeysDieUnused(t *testing.T) {
	w, a, b := pair(t, 503)
	given := b.mint(w.now, relay1, 2)
	k := [2]*prekey.Bundle{b.bundle(given[0]), b.bundle(given[1])}
	dies := k[0].NotAfter.Add(15 * 24 * time.Hour)
	w.now = k[0].NotAfter
	last := [2][]byte{a.first(b, k[0]), a.first(b, k[1])}
	w.now = k[0].NotAfter.Add(protocol.BundleSkew)
	if _, err := prekey.OpenBundle(given[0], b.account, b.device.Device(), wire.Role_ROLE_ONE_TIME, w.now); !errors.Is(err, prekey.ErrExpired) {
		t.Errorf("a bundle a day after its validity: %v", err)
	}
	w.now = dies.Add(-time.Minute)
	b.mustOpen(last[0])
	w.now = dies
	if relay := b.gone(a, last[1]); relay != nil {
		t.Error("a key that died is held against the relay")
	}
	b.mint(w.now, relay2, 0)
	if keys, used := b.pool(); keys != 0 || used != 1 {
		t.Errorf("%d keys and %d used ones are kept, want 0 and 1", keys, used)
	}
}

// However often a pool is drained, a bounded number of keys lives, the newest,
// and other relays and the peers that ask on a stream have what is theirs.
func TestPoolKeysAreBounded(t *testing.T) {
	w, a, b := pair(t, 504)
	others := b.mint(w.now, relay2, 3)
	var batches [][][]byte
	for range session.MaxPool/protocol.PoolKeys + 1 {
		w.now = w.now.Add(time.Hour)
		batches = append(batches, b.mint(w.now, relay1, protocol.PoolKeys))
	}
	if keys, _ := b.pool(); keys != session.MaxPool+len(others) {
		t.Errorf("%d keys are kept, want %d", keys, session.MaxPool+len(others))
	}
	b.gone(a, a.first(b, b.bundle(batches[0][7])))
	for _, given := range [][]byte{others[2], batches[1][7], batches[len(batches)-1][99]} {
		b.mustOpen(a.first(b, b.bundle(given)))
	}
	if b.give(true).oneTime == nil {
		t.Error("keys of pools count as keys minted on a stream")
	}
	b.update(func(tx *store.Tx) error {
		for _, n := range []int{-1, protocol.PoolKeys + 1} {
			if _, err := b.m.MintPool(tx, w.now, relay1, n); err == nil {
				t.Errorf("%d keys were minted", n)
			}
		}
		return nil
	})
}

// Rolling back deletes the pools' keys, and leaves sealing keys.
func TestArchiveAllDropsPoolKeys(t *testing.T) {
	w, a, b := pair(t, 505)
	k := b.bundle(b.mint(w.now, relay1, 100)[50])
	sealing := b.sealingKeys()
	for more := true; more; {
		b.update(func(tx *store.Tx) (err error) {
			more, err = b.m.ArchiveAll(tx, w.now)
			return err
		})
	}
	if relay := b.gone(a, a.first(b, k)); relay != nil {
		t.Error("a key that was deleted is held against the relay")
	}
	if again := b.sealingKeys(); string(again[0]) != string(sealing[0]) {
		t.Error("a rollback replaced the sealing keys")
	}
}

// A session from a one-time bundle that nobody acknowledged ends with the
// bundle, or with the day's if that is earlier, whoever's clock is wrong.
func TestStalenessOfOneTimeKeys(t *testing.T) {
	for name, c := range map[string]struct {
		pool   bool
		minted time.Duration // on the owner's clock, from now
		life   time.Duration // of the session
	}{
		"a pool's, fresh":                      {true, 0, 36 * time.Hour}, // noon to the end of the day, and the skew
		"a pool's, an hour before its end":     {true, time.Hour - protocol.PoolKeyLife, time.Hour},
		"a pool's, a minute before its end":    {true, time.Minute - protocol.PoolKeyLife, protocol.OneTimeLife},
		"a pool's, over by a day but an hour":  {true, time.Hour - protocol.PoolKeyLife - protocol.BundleSkew, protocol.OneTimeLife},
		"a pool's, over by a day but a minute": {true, time.Minute - protocol.PoolKeyLife - protocol.BundleSkew, time.Minute},
		"a stream's":                           {false, 0, protocol.OneTimeLife},
		"a stream's, clock behind":             {false, -time.Hour, protocol.OneTimeLife},
		"a stream's, clock ahead":              {false, time.Hour, protocol.OneTimeLife},
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := pair(t, 506)
			at := w.now.Add(c.minted)
			var given []byte
			if c.pool {
				given = b.mint(at, relay1, 1)[0]
			} else {
				b.update(func(tx *store.Tx) (err error) {
					given, err = b.m.MintOneTime(tx, at)
					return err
				})
			}
			a.startWith(b, b.bundle(given))
			w.now = w.now.Add(c.life - time.Second)
			if !a.ready(b) {
				t.Errorf("the session is not sent on a second before %v", c.life)
			}
			w.now = w.now.Add(time.Second)
			if a.ready(b) {
				t.Errorf("the session is sent on after %v", c.life)
			}
		})
	}
}
