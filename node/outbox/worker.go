package outbox

import (
	"context"
	"crypto/subtle"
	"errors"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// A worker brings the contents of one peer on their way, as long as there are
// any.
type worker struct {
	kick chan signal // wakers send by offer, the worker receives; one slot, since the strongest signal says it all
	post chan signal // likewise, for leaving at relays; the worker sends too
	// Guarded by Outbox.mu.
	again   bool // something changed since the worker last looked
	report  Report
	deposit Deposit
	since   time.Time // when the attempt that runs began; zero if none does
	away    bool      // the last attempt that ended did not reach the peer
	timing  bool      // who leaves at relays will look how long the attempt has lasted
	blocked bool      // and would leave more if there were a session

	relapses int       // how often copies have gone, each time within relapseLife of the time before
	relapsed time.Time // when they did last
	wary     bool      // and nobody has waited for that
}

// A signal wakes a part of a worker. A higher one outranks a lower.
type signal int

const (
	look   signal = iota // something may have changed; ends no pause after a failure
	fresh                // there is a new content
	kicked               // now
)

// offer leaves s in c, unless what lies there outranks it. Senders hold
// Outbox.mu.
func offer(c chan signal, s signal) {
	select {
	case old := <-c:
		s = max(s, old)
	default:
	}
	c <- s // nobody else sends meanwhile
}

// A Report says why a peer's contents have not arrived, for the user's doctor.
type Report struct {
	Failures int       // attempts in a row that brought nothing
	Last     time.Time // of the newest attempt, by Config.Now; zero before the first
	Next     time.Time // of the next one, zero if it runs now
	Held     bool      // the peer has them and has not accepted this user
	Err      error     // of the newest attempt, nil if the peer answered
	Deposit  Deposit   // how leaving them at relays goes
}

// Report returns the state of peer's worker; ok is false if there is none,
// because nothing waits or the peer is paused.
func (o *Outbox) Report(peer identity.Account) (r Report, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w, ok := o.workers[peer]
	if !ok {
		return Report{}, false
	}
	r = w.report
	r.Deposit = w.deposit
	return r, true
}

// Kick ends the pause of peer's worker, or starts one: the peer connected, a
// hold ended, the network came back. It does not block.
func (o *Outbox) Kick(peer identity.Account) {
	o.wake(peer, kicked)
	o.release(peer) // a hold may have ended
}

// KickAll kicks every worker there is: the network came back.
func (o *Outbox) KickAll() {
	o.mu.Lock()
	peers := slices.Collect(maps.Keys(o.workers))
	o.mu.Unlock()
	for _, p := range peers {
		o.Kick(p)
	}
}

// wake starts a worker for peer, or signals to the one there is.
func (o *Outbox) wake(peer identity.Account, s signal) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w, ok := o.workers[peer]
	if !ok {
		o.workers[peer] = &worker{kick: make(chan signal, 1), post: make(chan signal, 1)}
		o.waiting = append(o.waiting, peer)
		select {
		case o.start <- struct{}{}:
		default:
		}
		return
	}
	w.again = true
	offer(w.kick, s)
	offer(w.post, s)
}

// nudge has peer's worker, if there is one, look for what it could leave at
// relays.
func (o *Outbox) nudge(peer identity.Account) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w, ok := o.workers[peer]; ok {
		offer(w.post, fresh)
	}
}

// Run works until ctx ends, then waits for every worker and returns nil. It
// returns early, with the cause, only if the store cannot be read at the start.
func (o *Outbox) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	peers, err := o.peers()
	if err != nil {
		return err
	}
	for _, p := range peers {
		o.wake(p, fresh)
	}
	workers.Go(func() { o.acquit(ctx) })
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		for peer, w := range o.unstarted() {
			workers.Go(func() { o.work(ctx, peer, w) })
		}
		select {
		case <-o.start:
		case <-sweep.C:
			o.sweep()
		case <-ctx.Done():
			return nil
		}
	}
}

// unstarted returns the workers that have to be started.
func (o *Outbox) unstarted() map[identity.Account]*worker {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := make(map[identity.Account]*worker, len(o.waiting))
	for _, p := range o.waiting {
		m[p] = o.workers[p]
	}
	o.waiting = nil
	return m
}

// peers returns everybody for whom something waits.
func (o *Outbox) peers() (peers []identity.Account, err error) {
	err = o.cfg.Store.View(func(tx *store.Tx) error {
		var from store.RowKey
		for {
			found := false
			for r, err := range store.Outbox.Scan(tx, nil, from) {
				if err != nil && !errors.Is(err, store.ErrDamaged) {
					return err
				}
				found = true
				peers = append(peers, r.Key.Account())
				from = append(store.OutboxKey(r.Key.Account(), math.MaxUint64), 0)
				break
			}
			if !found {
				return nil
			}
		}
	})
	return peers, err
}

// sweep lets contents expire whose peer has no worker, since it is paused, and
// looks at what everybody's relays keep.
func (o *Outbox) sweep() {
	peers, err := o.peers()
	for _, p := range peers {
		if err != nil {
			break
		}
		if _, ok := o.Report(p); !ok {
			err = o.cfg.Store.Update(func(tx *store.Tx) error { return o.expire(tx, o.cfg.Now(), p) })
		}
		err = errors.Join(err, o.refresh(p))
	}
	if err == nil {
		err = o.promiseAll()
	}
	if err != nil {
		o.cfg.Log.Warn("what expired not swept", "err", err)
	}
}

// A verdict is what one step of a worker came to.
type verdict int

const (
	idle     verdict = iota // nothing to do for this peer
	moved                   // all of it was delivered: go on
	prepared                // there is a session now, or the user has to decide: go on
	stuck                   // some was delivered, and nothing may overtake what was not: pause
	renew                   // the peer could not open something, and it will be sealed anew
	held                    // the peer has not accepted this user
	failed                  // nothing arrived: pause
)

// work takes step after step until nothing is left for peer, or ctx ends.
func (o *Outbox) work(ctx context.Context, peer identity.Account, w *worker) {
	stop := o.accompany(ctx, peer, w)
	failures, renewals := 0, 0
	for {
		v, expires, err := o.step(ctx, peer, w)
		if ctx.Err() != nil {
			stop()
			o.retire(peer, w, true)
			return
		}
		now, last := o.cfg.Now(), time.Now()
		pause, soft := time.Duration(0), softPause
		switch v {
		case idle:
			stop() // before there can be another worker for peer
			if o.retire(peer, w, false) {
				return
			}
			stop = o.accompany(ctx, peer, w)
			continue
		case moved:
			failures, renewals = 0, 0
			continue
		case prepared:
			continue
		case stuck:
			failures, renewals = 0, 0
			pause = o.backoff(0)
		case renew:
			// The fresh session is worth trying at once, but not for ever: the
			// peer may answer anything.
			if renewals++; renewals <= 2 {
				continue
			}
			pause = o.backoff(failures)
		case held:
			pause, soft = heldPause/2+o.jitter(heldPause/2), softHeld
		case failed:
			pause = o.backoff(failures)
		}
		failures++
		if d := expires.Sub(now); !expires.IsZero() && d < pause {
			pause = max(d, 0)
		}
		o.note(w, Report{Failures: failures, Last: now, Next: now.Add(pause), Held: v == held, Err: err})
		if err != nil {
			o.cfg.Log.Debug("contents not delivered", "failures", failures, "err", err)
		}
		if o.pause(ctx, w.kick, last, pause, soft) {
			failures = 0
		}
	}
}

// pause waits for d after last, by package time, or less if the worker is
// kicked: the result says whether. A content that was just enqueued ends the
// pause only soft after the last attempt, so that many of them do not make many
// attempts.
func (o *Outbox) pause(ctx context.Context, signals <-chan signal, last time.Time, d, soft time.Duration) (wasKicked bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case s := <-signals:
			switch s {
			case kicked:
				return true
			case fresh:
				timer.Reset(max(0, min(time.Until(last.Add(d)), time.Until(last.Add(soft)))))
			}
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (o *Outbox) note(w *worker, r Report) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.report = r
}

// retire removes the worker, unless something changed since it looked.
func (o *Outbox) retire(peer identity.Account, w *worker, always bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w.again && !always {
		w.again = false
		return false
	}
	delete(o.workers, peer)
	return true
}

// A parcel is an outbox row on its way.
type parcel struct {
	key      store.RowKey
	hash     envelope.Hash
	envelope []byte
}

// A load is what a worker finds to do.
type load struct {
	batch    []parcel  // sealed, in order, from the first row on
	unsealed bool      // the row after the batch waits to be sealed
	ready    bool      // and could be
	expired  bool      // a row's time is over
	expires  time.Time // of the first row; zero if there is none
}

// step makes one attempt. expires is when the first content fails, zero if
// that does not matter.
func (o *Outbox) step(ctx context.Context, peer identity.Account, w *worker) (v verdict, expires time.Time, err error) {
	var l load
	now := o.cfg.Now()
	err = o.cfg.Store.View(func(tx *store.Tx) (err error) {
		l, err = o.look(tx, now, peer)
		return err
	})
	if err == nil && (l.expired || l.unsealed && l.ready) {
		err = o.cfg.Store.Update(func(tx *store.Tx) (err error) {
			l, err = o.pack(tx, now, peer)
			return err
		})
	}
	switch {
	case err != nil:
		return failed, time.Time{}, err
	case len(l.batch) > 0:
		v, err = o.deliver(ctx, peer, w, l.batch)
		if err != nil && ctx.Err() == nil && o.isBlocked(w) {
			// What was sealed waits for the peer; what was not could be read
			// before that, on another session.
			if p, err := o.prepare(ctx, peer); p == prepared {
				o.nudge(peer)
			} else {
				o.cfg.Log.Debug("no session for what is left at relays", "err", err)
			}
		}
		return v, l.expires, err
	case l.unsealed:
		v, err = o.prepare(ctx, peer)
		return v, l.expires, err
	default:
		return idle, time.Time{}, nil
	}
}

// look reads what there is to do: nothing, if peer is paused.
func (o *Outbox) look(tx *store.Tx, now time.Time, peer identity.Account) (load, error) {
	var l load
	paused, err := o.cfg.Gate.Paused(tx, peer)
	if err != nil {
		return l, err
	}
	size := 0
	for r, err := range store.Outbox.Scan(tx, store.OutboxOf(peer), nil) {
		if err != nil {
			return l, err
		}
		out := r.Value
		if l.expires.IsZero() {
			l.expires = time.UnixMilli(out.Expires)
		}
		l.expired = l.expired || out.Expires <= now.UnixMilli()
		if len(out.Envelope) == 0 {
			l.unsealed = true
			break
		}
		size += len(out.Envelope) + frameMargin
		if len(l.batch) == protocol.MaxBatch || len(l.batch) > 0 && size > protocol.MaxFrame-frameMargin {
			break
		}
		l.batch = append(l.batch, parcel{key: r.Key, hash: envelope.Hash(out.Hash), envelope: out.Envelope})
	}
	if paused {
		return load{expired: l.expired}, nil
	}
	if l.unsealed {
		l.ready, err = o.cfg.Sealer.Ready(tx, now, peer)
	}
	return l, err
}

// pack lets contents expire, seals those whose turn it is, and looks again.
func (o *Outbox) pack(tx *store.Tx, now time.Time, peer identity.Account) (load, error) {
	if err := o.expire(tx, now, peer); err != nil {
		return load{}, err
	}
	l, err := o.look(tx, now, peer)
	if err != nil || !l.unsealed || !l.ready {
		return l, err
	}
	if err := o.seal(tx, now, peer, protocol.MaxBatch, false); err != nil {
		return load{}, err
	}
	return o.look(tx, now, peer)
}

// seal seals contents to peer in order, as many as one transaction takes, among
// the first limit, and if told so the receipts behind them.
func (o *Outbox) seal(tx *store.Tx, now time.Time, peer identity.Account, limit int, receipts bool) error {
	n, size := 0, 0
	for r, err := range store.Outbox.Scan(tx, store.OutboxOf(peer), nil) {
		if err != nil {
			return err
		}
		out := r.Value
		if n++; n > limit && !receipts {
			return nil
		}
		if len(out.Envelope) > 0 || n > limit && !out.Receipt {
			continue
		}
		if size += len(out.Content); size > sealBytes && size > len(out.Content) {
			return nil
		}
		if err := o.cfg.Sealer.SealOutgoing(tx, now, peer, out); err != nil {
			return err
		}
		stored := len(out.Copies) > 0
		out.Copies = nil // they are of the envelope before
		if err := o.keep(tx, peer, r.Key.Order(), out); err != nil {
			return err
		}
		if stored {
			if err := o.restate(tx, now, peer, out, 0, goneSealed); err != nil {
				return err
			}
		}
	}
	return nil
}

// errNotReady means that a courier's Prepare succeeded and a session is still
// missing.
var errNotReady = errors.New("outbox: no session after preparing one")

func (o *Outbox) prepare(ctx context.Context, peer identity.Account) (verdict, error) {
	if err := o.cfg.Courier.Prepare(ctx, peer); err != nil {
		return failed, err
	}
	var ready, paused bool
	err := o.cfg.Store.View(func(tx *store.Tx) (err error) {
		if paused, err = o.cfg.Gate.Paused(tx, peer); paused || err != nil {
			return err
		}
		ready, err = o.cfg.Sealer.Ready(tx, o.cfg.Now(), peer)
		return err
	})
	switch {
	case err != nil:
		return failed, err
	case !ready && !paused:
		return failed, errNotReady
	}
	return prepared, nil
}

func (o *Outbox) deliver(ctx context.Context, peer identity.Account, w *worker, batch []parcel) (verdict, error) {
	envelopes := make([][]byte, len(batch))
	for i, p := range batch {
		envelopes[i] = p.envelope
	}
	o.begin(w)
	outcomes, err := o.cfg.Courier.Deliver(ctx, peer, envelopes)
	o.end(w, err == nil)
	if err != nil {
		return failed, err
	}
	var v verdict
	err = o.cfg.Store.Update(func(tx *store.Tx) (err error) {
		v, err = o.settle(tx, o.cfg.Now(), peer, batch, outcomes)
		return err
	})
	if err != nil {
		return failed, err
	}
	return v, nil
}

// settle writes down what peer answered. Proven deliveries count wherever they
// stand; of the rest only what stands first matters, since nothing may overtake
// it.
func (o *Outbox) settle(tx *store.Tx, now time.Time, peer identity.Account, batch []parcel, outcomes []*wire.Outcome) (verdict, error) {
	delivered := 0
	var rest []int
	for i, p := range batch {
		var answer *wire.Outcome
		if i < len(outcomes) {
			answer = outcomes[i]
		}
		ok := answer.GetStatus() == wire.Status_STATUS_DELIVERED
		if ok {
			var err error
			if ok, err = o.acknowledge(tx, now, peer, p, answer.GetAck()); err != nil {
				return failed, err
			}
		}
		if ok {
			delivered++
		} else if i < len(outcomes) {
			rest = append(rest, i)
		}
	}
	waits := false
	for _, i := range rest {
		if outcomes[i].GetStatus() == wire.Status_STATUS_HELD {
			if err := o.hold(tx, peer, batch[i]); err != nil {
				return failed, err
			}
			waits = true
			continue
		}
		if waits {
			break
		}
		acted, err := o.refused(tx, now, peer, batch[i], outcomes[i])
		if err != nil {
			return failed, err
		}
		if acted {
			return renew, nil
		}
		if delivered > 0 {
			return stuck, nil
		}
		return failed, nil
	}
	switch {
	case waits:
		return held, nil
	case delivered > 0:
		return moved, nil
	default:
		return failed, nil // no answer at all
	}
}

// acknowledge takes an acknowledgement if it is the one that only the
// recipient can make after opening the envelope.
func (o *Outbox) acknowledge(tx *store.Tx, now time.Time, peer identity.Account, p parcel, ack []byte) (bool, error) {
	out, err := row(tx, p)
	if err != nil {
		return false, err
	}
	if out == nil {
		return true, nil // a receipt was faster
	}
	if len(out.Ack) == 0 || subtle.ConstantTimeCompare(ack, out.Ack) != 1 {
		o.cfg.Log.Warn("acknowledgement does not verify")
		return false, nil
	}
	if len(out.Session) == 32 {
		if err := o.cfg.Sealer.Acknowledged(tx, now, [32]byte(out.Session)); err != nil {
			return false, err
		}
	}
	if !out.Control {
		if _, err := o.advance(tx, peer, envelope.ID(out.Id), store.Entry_DELIVERED, ""); err != nil {
			return false, err
		}
	}
	return true, discard(tx, p.key, out)
}

// row returns the outbox row of a parcel, nil if it is gone or was sealed anew.
func row(tx *store.Tx, p parcel) (*store.Outgoing, error) {
	out, err := store.Outbox.Get(tx, p.key)
	if errors.Is(err, store.ErrNotFound) || err == nil && string(out.Hash) != string(p.hash[:]) {
		return nil, nil
	}
	return out, err
}

// hold notes on a text that its recipient has not accepted this user.
func (o *Outbox) hold(tx *store.Tx, peer identity.Account, p parcel) error {
	out, err := row(tx, p)
	if out == nil || err != nil || out.Control {
		return err
	}
	c, err := store.Contacts.Get(tx, store.ContactKey(peer))
	if err != nil {
		return err
	}
	_, err = o.advance(tx, peer, envelope.ID(out.Id), store.Entry_QUEUED, "waiting for "+c.Name+" to accept")
	return err
}

// refused handles an answer that is neither delivered nor held; acted says that
// envelopes were cleared.
func (o *Outbox) refused(tx *store.Tx, now time.Time, peer identity.Account, p parcel, answer *wire.Outcome) (acted bool, err error) {
	out, err := row(tx, p)
	if out == nil || err != nil {
		return out == nil && err == nil, err
	}
	switch answer.GetStatus() {
	case wire.Status_STATUS_ERROR:
		return o.cfg.Sealer.HandleError(tx, now, peer, p.hash, answer.GetError())
	case wire.Status_STATUS_DROPPED:
		out.Dropped++
		if err := store.Outbox.Put(tx, p.key, out); err != nil {
			return false, err
		}
		if out.Dropped < suspectAt {
			return false, nil
		}
		return o.cfg.Sealer.Suspect(tx, now, peer, p.hash)
	default: // busy, or what a newer peer may say
		return false, nil
	}
}
