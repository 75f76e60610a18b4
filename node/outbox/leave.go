package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
)

// Tuning of what is left at relays.
const (
	depositAfter = 3 * time.Second // an attempt that lasts longer counts as one that failed, for leaving
	renewBefore  = 25 * time.Hour  // a copy that ends sooner, and before its message, is replaced,
	warnBefore   = 24 * time.Hour  // so that the end of the last one is warned of only if that did not succeed
	expiryBlur   = 2 * time.Hour   // a deposit ends up to so much before the message does (SPEC §13.5)
	relapseLife  = time.Hour       // copies that go sooner after others went are replaced after a pause
)

// window is how many contents, from the first undelivered one on, are sealed
// and left ahead: as many as a pairwise queue holds. Receipts further back are
// left too, a few at a time: otherwise two people who are never online together,
// each with a full window, would wait for each other's receipts for ever.
const (
	window = protocol.QueueMessages
	beyond = 16
)

// A Mailer leaves envelopes where a peer that is away finds them: at its
// relays, sealed anew for each.
type Mailer interface {
	// Leave leaves letters for peer at relays of its, until each has
	// [protocol.DepositRelays] copies or as many as peer has relays, and returns
	// the copies that were made now. It is called for one peer at a time and for
	// different peers at once, bounds itself in time, and returns soon after ctx
	// ends. What it returns counts also beside an error, which says, for the
	// user, why some copies are missing. A zero Left and nil: peer has no mailbox
	// that is known.
	//
	// A copy that was made and could not be noted, since the machine lost power,
	// is made again, in other bytes: the recipient knows the envelope inside.
	Leave(ctx context.Context, peer identity.Account, letters []Letter) (Left, error)
}

// A Letter is an envelope to be left at relays.
type Letter struct {
	Envelope []byte // the same as goes on a direct stream
	Hash     envelope.Hash
	Expires  time.Time     // of the content: no copy outlives it
	Copies   []*store.Copy // that are there already; their relays need none
}

// Left is what came of leaving letters.
type Left struct {
	Relays int             // that the peer has, as far as known
	Copies [][]*store.Copy // made now: one list for each letter, in order; the outbox owns them
}

// A Deposit says how leaving a peer's contents at relays goes.
type Deposit struct {
	Failures int       // attempts in a row that left something undone
	Last     time.Time // end of the newest attempt, by Config.Now; zero before the first
	Next     time.Time // of the next one; zero if it waits for something to leave, or for the peer to be away
	Relays   int       // that the peer has, by the newest attempt
	Err      error     // of the newest attempt, nil if all that could be left was
}

// begin notes that an attempt to reach the peer begins.
func (o *Outbox) begin(w *worker) {
	if o.cfg.Mailer == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	w.since = time.Now()
	if !w.timing { // else it looks in time
		offer(w.post, look)
	}
}

// end notes that the attempt has ended, and whether the peer answered.
func (o *Outbox) end(w *worker, reached bool) {
	if o.cfg.Mailer == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	w.since, w.away = time.Time{}, !reached
	if w.away {
		offer(w.post, look)
	}
}

// isAway reports whether the peer has to be taken for away; if not, in says when
// that may change without a signal, 0 for never.
func (o *Outbox) isAway(w *worker) (away bool, in time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.timing = false
	if w.since.IsZero() {
		return w.away, 0
	}
	if in = depositAfter - time.Since(w.since); in > 0 {
		w.timing = true
		return false, in
	}
	return true, 0
}

// accompany leaves at relays what waits for peer, beside its worker. The
// function it returns ends that, and returns when it has ended.
func (o *Outbox) accompany(ctx context.Context, peer identity.Account, w *worker) (stop func()) {
	if o.cfg.Mailer == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var leaving sync.WaitGroup
	leaving.Go(func() { o.leave(ctx, peer, w) })
	return func() {
		cancel()
		leaving.Wait()
	}
}

// leave leaves what waits for peer at relays while the peer is away, until ctx
// ends.
func (o *Outbox) leave(ctx context.Context, peer identity.Account, w *worker) {
	failures := 0
	for ctx.Err() == nil {
		if away, in := o.isAway(w); !away {
			rest(ctx, w, in)
			continue
		}
		if pause := o.relapsed(w); pause > 0 {
			o.pause(ctx, w.post, time.Now(), pause, softPause)
			continue
		}
		parcels, letters, blocked, err := o.ahead(peer)
		o.block(w, blocked)
		if err == nil && len(letters) == 0 {
			rest(ctx, w, 0)
			continue
		}
		var left Left
		lacking := true
		if err == nil {
			left, err = o.cfg.Mailer.Leave(ctx, peer, letters)
			// Copies that were made count, also if ctx has ended meanwhile.
			var noted error
			lacking, noted = o.left(peer, parcels, letters, left)
			err = errors.Join(err, noted)
		}
		if ctx.Err() != nil {
			return
		}
		now := o.cfg.Now()
		if err == nil && !lacking {
			failures = 0
			o.noteDeposit(w, Deposit{Last: now, Relays: left.Relays})
			rest(ctx, w, 0)
			continue
		}
		pause := o.backoff(failures)
		failures++
		o.noteDeposit(w, Deposit{Failures: failures, Last: now, Next: now.Add(pause), Relays: left.Relays, Err: err})
		o.cfg.Log.Debug("contents not left at relays", "failures", failures, "err", err)
		if o.pause(ctx, w.post, time.Now(), pause, softPause) {
			failures = 0
		}
	}
}

// rest waits until something may have changed for leaving: a signal, or d if it
// is not 0.
func rest(ctx context.Context, w *worker, d time.Duration) {
	var over <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-w.post:
	case <-over:
	case <-ctx.Done():
	}
}

func (o *Outbox) noteDeposit(w *worker, d Deposit) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.deposit = d
}

// block notes whether leaving waits for a session that is missing.
func (o *Outbox) block(w *worker, is bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.blocked = is
}

func (o *Outbox) isBlocked(w *worker) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return w.blocked
}

// ahead seals what is in the window and returns, in order, what of it has too
// few copies. blocked says that the rest waits for a session.
func (o *Outbox) ahead(peer identity.Account) (parcels []parcel, letters []Letter, blocked bool, err error) {
	for {
		now := o.cfg.Now()
		ready := false // to seal what waits
		err = o.cfg.Store.View(func(tx *store.Tx) (err error) {
			if parcels, letters, blocked, err = o.lacking(tx, now, peer); err == nil && blocked {
				ready, err = o.cfg.Sealer.Ready(tx, now, peer)
			}
			return err
		})
		if err != nil || !ready {
			return parcels, letters, blocked, err
		}
		err = o.cfg.Store.Update(func(tx *store.Tx) error {
			paused, err := o.cfg.Gate.Paused(tx, peer)
			if paused || err != nil {
				return err
			}
			if ready, err := o.cfg.Sealer.Ready(tx, now, peer); !ready || err != nil {
				return err
			}
			return o.seal(tx, now, peer, window, true)
		})
		if err != nil {
			return nil, nil, false, err
		}
	}
}

// lacking reads what of the window is sealed and has too few copies, up to what
// waits to be sealed. There is nothing if the peer is paused.
func (o *Outbox) lacking(tx *store.Tx, now time.Time, peer identity.Account) (parcels []parcel, letters []Letter, waits bool, err error) {
	if paused, err := o.cfg.Gate.Paused(tx, peer); paused || err != nil {
		return nil, nil, false, err
	}
	n, behind := 0, 0
	for r, err := range store.Outbox.Scan(tx, store.OutboxOf(peer), nil) {
		if err != nil {
			return nil, nil, false, err
		}
		out := r.Value
		if n++; n > window {
			if !out.Receipt {
				continue
			}
			if behind++; behind > beyond {
				break
			}
		}
		if len(out.Envelope) == 0 {
			return parcels, letters, true, nil // nothing overtakes it
		}
		expires := time.UnixMilli(out.Expires)
		counting := slices.DeleteFunc(slices.Clone(out.Copies), func(c *store.Copy) bool { return !counts(c, now, expires) })
		if relaysOf(counting) >= protocol.DepositRelays || expires.Sub(now) <= expiryBlur {
			continue
		}
		p := parcel{key: r.Key, hash: envelope.Hash(out.Hash), envelope: out.Envelope}
		parcels = append(parcels, p)
		letters = append(letters, Letter{Envelope: p.envelope, Hash: p.hash, Expires: expires, Copies: counting})
	}
	return parcels, letters, false, nil
}

// counts reports whether a copy is as good as any: it ends with its message, or
// not soon, and an answer to it would not be lost.
func counts(c *store.Copy, now, expires time.Time) bool {
	until := time.Unix(c.Until, 0)
	return !c.Doubted && (until.After(now.Add(renewBefore)) || until.After(now) && !until.Add(expiryBlur).Before(expires))
}

// relaysOf returns how many relays have copies.
func relaysOf(copies []*store.Copy) int {
	n := 0
	for i, c := range copies {
		if !slices.ContainsFunc(copies[:i], func(b *store.Copy) bool { return string(b.Relay) == string(c.Relay) }) {
			n++
		}
	}
	return n
}

// left writes down which copies were made; lacking says that some letter could
// have more.
func (o *Outbox) left(peer identity.Account, parcels []parcel, letters []Letter, left Left) (lacking bool, err error) {
	want := min(protocol.DepositRelays, left.Relays)
	now := o.cfg.Now()
	err = o.inParts(len(parcels), func(tx *store.Tx, i int) error {
		var fresh []*store.Copy
		if i < len(left.Copies) {
			fresh = left.Copies[i]
		}
		n := relaysOf(slices.Concat(letters[i].Copies, fresh))
		lacking = lacking || n < want
		if n == 0 {
			return nil
		}
		out, err := row(tx, parcels[i])
		if out == nil || err != nil {
			return err // delivered meanwhile
		}
		if out.Receipt && left.Relays > 0 && n >= want {
			return discard(tx, parcels[i].key, out)
		}
		if len(fresh) == 0 {
			return nil
		}
		out.Copies = merge(out.Copies, fresh, now)
		if err := store.Outbox.Put(tx, parcels[i].key, out); err != nil {
			return err
		}
		return o.restate(tx, now, peer, out, left.Relays, "")
	})
	return lacking, err
}

// merge returns those of old that are there at now, with fresh in the place of
// what was in the same queue.
func merge(old, fresh []*store.Copy, now time.Time) []*store.Copy {
	old = slices.DeleteFunc(old, func(c *store.Copy) bool { return !time.Unix(c.Until, 0).After(now) })
	for _, f := range fresh {
		old = slices.DeleteFunc(old, func(c *store.Copy) bool {
			return string(c.Relay) == string(f.Relay) && string(c.Queue) == string(f.Queue)
		})
		old = append(old, f)
	}
	return old
}

// inParts runs fn for 0 to n-1, in order and in as few transactions as hold
// what it writes. It may run again for an index whose writes were discarded.
func (o *Outbox) inParts(n int, fn func(tx *store.Tx, i int) error) error {
	for i := 0; i < n; {
		first := i
		err := o.cfg.Store.Update(func(tx *store.Tx) error {
			for ; i < n; i++ {
				err := tx.Try(func(tx *store.Tx) error { return fn(tx, i) })
				if errors.Is(err, store.ErrTooBig) && i > first {
					return nil // the next transaction has room for it
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Why copies do not count any more, for the user.
const (
	goneLost   = "the relay that kept it lost it; it is sent again"
	goneEnded  = "no relay keeps it any more; it is sent again"
	goneSealed = "what was at relays could not be opened; it is sent again"
)

// restate puts into the history what the copies of a text to peer say: that it
// is stored, where and until when, or that it is not any more, for the reason
// gone. relays is how many the peer has, 0 if that is not known now.
func (o *Outbox) restate(tx *store.Tx, now time.Time, peer identity.Account, out *store.Outgoing, relays int, gone string) error {
	if out.Control || len(out.Id) != envelope.IDSize {
		return nil
	}
	ref, e, err := entry(tx, envelope.ID(out.Id))
	if e == nil || err != nil {
		return err
	}
	if string(ref.Account) != string(peer[:]) || string(e.From) != string(o.cfg.Account[:]) {
		return nil
	}
	if e.State != store.Entry_QUEUED && e.State != store.Entry_STORED {
		return nil
	}
	was := stateOf(e)
	copies, last := relaysOf(out.Copies), time.Time{}
	for _, c := range out.Copies {
		if until := time.Unix(c.Until, 0).UTC(); until.After(last) {
			last = until
		}
	}
	switch {
	case copies > 0:
		if relays == 0 {
			relays = int(e.Relays)
		}
		relays = max(relays, copies)
		e.State, e.Copies, e.Relays, e.Until = store.Entry_STORED, uint32(copies), uint32(relays), last.UnixMilli()
		e.Reason = fmt.Sprintf("at %d of %d relays, until %s", copies, relays, last.Format("2 January 2006"))
		if last.Sub(now) <= warnBefore {
			e.Reason = fmt.Sprintf("not fetched yet, and at %d of %d relays only until %s", copies, relays, last.Format("2 January 2006, 15:04 MST"))
		}
	case e.State == store.Entry_STORED:
		unstore(e)
		e.State, e.Reason = store.Entry_QUEUED, gone
	default:
		return nil
	}
	is := stateOf(e)
	if is == was {
		return nil
	}
	if err := store.History.Put(tx, store.HistoryKey(peer, ref.Order), e); err != nil {
		return err
	}
	if is.state == was.state && is.reason == was.reason {
		return nil
	}
	return o.cfg.Changed(tx, peer, e)
}

// An entryState is what restate may change of a line.
type entryState struct {
	state          store.Entry_State
	reason         string
	copies, relays uint32
	until          int64
}

func stateOf(e *store.Entry) entryState {
	return entryState{e.State, e.Reason, e.Copies, e.Relays, e.Until}
}

// unstore takes from a line what it says of relays.
func unstore(e *store.Entry) { e.Copies, e.Relays, e.Until = 0, 0, 0 }

// Lost takes word that a relay has a store of that ID now: copies that it gave
// its receipt for under another ID are gone. Their texts fall back to being
// stored at fewer relays, or queued, and are left again. Call it when a relay
// names a store ID that differs from the one it named before, a transaction each
// while it reports more.
func (o *Outbox) Lost(tx *store.Tx, relay identity.Transport, storeID [16]byte) (more bool, err error) {
	return o.recount(tx, func(out *store.Outgoing) bool {
		n := len(out.Copies)
		out.Copies = slices.DeleteFunc(out.Copies, func(c *store.Copy) bool {
			return string(c.Relay) == string(relay[:]) && string(c.Store) != string(storeID[:])
		})
		return len(out.Copies) != n
	})
}

// Stops takes word that a relay stops at a time: no copy there outlasts it, and
// what would have is left elsewhere in time. Call it as [Outbox.Lost].
func (o *Outbox) Stops(tx *store.Tx, relay identity.Transport, at time.Time) (more bool, err error) {
	over := !at.After(o.cfg.Now())
	return o.recount(tx, func(out *store.Outgoing) (changed bool) {
		out.Copies = slices.DeleteFunc(out.Copies, func(c *store.Copy) bool {
			if string(c.Relay) != string(relay[:]) || c.Until <= at.Unix() {
				return false
			}
			c.Until, changed = at.Unix(), true
			return over
		})
		return changed
	})
}

// Doubt takes word that receipts for this user may be lost, since a relay at which
// others leave them lost its store: a receipt that was stored has done its duty,
// and nobody sends it again. What has copies is left once more, and whoever has
// read it gives another receipt; until then it stays stored. Call it as
// [Outbox.Lost].
func (o *Outbox) Doubt(tx *store.Tx) (more bool, err error) {
	return o.recount(tx, func(out *store.Outgoing) (changed bool) {
		if out.Receipt { // nobody answers it
			return false
		}
		for _, c := range out.Copies {
			if !c.Doubted {
				c.Doubted, changed = true, true
			}
		}
		return changed
	})
}

// Accepted takes word that peer has accepted this user: of what was left before
// that, peer may have had some deleted, and has read some. It is left once more, to
// the queue that peer has told of meanwhile, as far as one transaction holds it.
func (o *Outbox) Accepted(tx *store.Tx, peer identity.Account) error {
	size := 0
	for r, err := range store.Outbox.Scan(tx, store.OutboxOf(peer), nil) {
		if err != nil {
			return err
		}
		out := r.Value
		if len(out.Copies) == 0 || out.Receipt {
			continue
		}
		if size += len(out.Content) + len(out.Envelope); size > sealBytes {
			break
		}
		for _, c := range out.Copies {
			c.Doubted = true
		}
		if err := store.Outbox.Put(tx, r.Key, out); err != nil {
			return err
		}
	}
	if size > 0 {
		tx.OnCommit(func() { o.relapse(peer) })
	}
	return nil
}

// recount has change look at the copies of everything that waits, puts into the
// history what they say now, and has the peers' workers leave what lacks some.
func (o *Outbox) recount(tx *store.Tx, change func(*store.Outgoing) bool) (more bool, err error) {
	now, size := o.cfg.Now(), 0
	peers := map[identity.Account]bool{}
	tx.OnCommit(func() {
		for p := range peers {
			o.relapse(p)
		}
	})
	for r, err := range store.Outbox.Scan(tx, nil, nil) {
		if err != nil {
			return false, err
		}
		out := r.Value
		if !change(out) {
			continue
		}
		if size += len(out.Content) + len(out.Envelope); size > sealBytes {
			return true, nil
		}
		if err := store.Outbox.Put(tx, r.Key, out); err != nil {
			return false, err
		}
		peer := r.Key.Account()
		if err := o.restate(tx, now, peer, out, 0, goneLost); err != nil {
			return false, err
		}
		peers[peer] = true
	}
	return false, nil
}

// relapse has peer's worker, if there is one, look for copies that have gone. A
// relay that takes everything and says at once that it has nothing would keep it
// busy: the first time within an hour it looks at once, then after pauses, as
// after failures.
func (o *Outbox) relapse(peer identity.Account) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w, ok := o.workers[peer]
	if !ok {
		return
	}
	if time.Since(w.relapsed) >= relapseLife {
		w.relapses = 0
	}
	w.relapses++
	w.relapsed, w.wary = time.Now(), true
	offer(w.post, look)
}

// relapsed returns how long to wait before copies are replaced that have gone
// since it was asked last.
func (o *Outbox) relapsed(w *worker) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !w.wary || w.relapses < 2 {
		return 0
	}
	w.wary = false
	return o.backoff(w.relapses - 2)
}

// refresh takes out copies that ended, and warns of those that end soon.
func (o *Outbox) refresh(peer identity.Account) error {
	var keys []store.RowKey
	now := o.cfg.Now()
	err := o.cfg.Store.View(func(tx *store.Tx) error {
		for r, err := range store.Outbox.Scan(tx, store.OutboxOf(peer), nil) {
			if err != nil {
				return err
			}
			if len(r.Value.Copies) > 0 {
				keys = append(keys, r.Key)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return o.inParts(len(keys), func(tx *store.Tx, i int) error {
		out, err := store.Outbox.Get(tx, keys[i])
		if errors.Is(err, store.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		gone, n := goneEnded, len(out.Copies)
		if time.UnixMilli(out.Expires).Sub(now) > expiryBlur { // else they end with their message
			out.Copies = slices.DeleteFunc(out.Copies, func(c *store.Copy) bool { return !time.Unix(c.Until, 0).After(now) })
		}
		if len(out.Envelope) == 0 {
			gone, out.Copies = goneSealed, nil
		}
		if len(out.Copies) != n {
			if err := store.Outbox.Put(tx, keys[i], out); err != nil {
				return err
			}
		}
		return o.restate(tx, now, peer, out, 0, gone)
	})
}
