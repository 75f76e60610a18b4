package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"starling/node/outbox"
	"starling/node/relay/client"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// Tuning of what is left at relays.
const (
	leaveTime    = 2 * time.Minute  // one batch at one relay, work included
	answerPace   = 5 * time.Minute  // between two attempts to leave the same answer
	strangerTime = 20 * time.Second // one attempt to leave an answer for somebody who is no contact
	checkSoon    = 5 * time.Minute  // from the start to the first look whether relays still have what was left: some are never here for long
	checkEvery   = 6 * time.Hour    // between two of these looks
	checkTime    = 30 * time.Second // one look at one relay
)

// errNoKey says, for the user, why nothing can be left for a contact.
var errNoKey = errors.New("no key of theirs is known to seal with for a relay; their record is looked for")

// errLong says, for the user, why a message to somebody who has not answered yet
// is at no relay.
var errLong = errors.New("too long to wait at a relay for somebody who has not answered yet: about 3,000 bytes can; it goes when both of you are online, or when they have answered")

// A drop is where and how something is left for a contact.
type drop struct {
	boxes []relay.Mailbox
	token *identity.Token // for a contact box
	to    identity.DeviceEntry
	key   *envelope.SealingKey
	from  envelope.Sender
}

// dropFor returns where a contact takes messages: in queues for this user alone,
// if they told of any, otherwise in the contact boxes of their record. A nil drop
// means that no place is known.
func (n *Node) dropFor(a identity.Account) (d *drop, err error) {
	err = n.store.View(func(tx *store.Tx) error {
		c, err := store.Contacts.Get(tx, store.ContactKey(a))
		if err != nil {
			return err
		}
		if d, err = n.dropAt(tx, a, c.Manifest, openMail(c.Mail, true), openMail(c.Boxes, false)); d != nil && len(c.Token) == identity.TokenSize {
			t := identity.Token(c.Token)
			d.token = &t
		}
		return err
	})
	return d, err
}

// dropAt returns where an account takes messages: in the mailboxes of own, or if
// there is none, of public.
func (n *Node) dropAt(tx *store.Tx, a identity.Account, manifest []byte, own, public relay.Mail) (*drop, error) {
	boxes := own.Mailboxes
	if len(boxes) == 0 {
		boxes = public.Mailboxes
	}
	if len(boxes) == 0 {
		return nil, nil
	}
	me, err := store.Selves.Get(tx, store.SelfKey())
	if err != nil {
		return nil, err
	}
	d := &drop{boxes: boxes, from: envelope.Sender{Key: n.self.device, Manifest: me.Manifest}}
	d.to, d.key, err = n.sealingKeyOf(a, manifest, slices.Concat(own.Sealing, public.Sealing))
	return d, err
}

// openMail reads what a contact's row says of relays; nothing, if it cannot be
// read.
func openMail(b []byte, capabilities bool) relay.Mail {
	var w wire.Mail
	if wire.Parse(b, protocol.MaxRecord, &w) != nil {
		return relay.Mail{}
	}
	m, err := relay.OpenMail(&w, capabilities)
	if err != nil {
		return relay.Mail{}
	}
	return m
}

// sealingKeyOf chooses among an account's sealing keys: one for this week if there
// is one, and the latest of those.
func (n *Node) sealingKeyOf(a identity.Account, manifest []byte, signed [][]byte) (d identity.DeviceEntry, best *envelope.SealingKey, err error) {
	now := n.cfg.Now()
	m, err := identity.OpenManifest(manifest, a, now.Add(100*365*24*time.Hour)) // what is kept was in time when it came
	if err != nil {
		return d, nil, errNoKey
	}
	for _, e := range m.Devices {
		for _, b := range signed {
			k, err := envelope.OpenSealingKey(b, a, e.Key, now)
			if err != nil {
				continue
			}
			better := best == nil || k.Fresh(now) && !best.Fresh(now) || k.Fresh(now) == best.Fresh(now) && k.Week > best.Week
			if better {
				d, best = e, k
			}
		}
	}
	if best == nil {
		return d, nil, errNoKey
	}
	return d, best, nil
}

// A mailer is the node as the outbox sees it: it leaves envelopes at relays.
type mailer struct{ n *Node }

// Leave implements outbox.Mailer.
func (m mailer) Leave(ctx context.Context, peer identity.Account, letters []outbox.Letter) (outbox.Left, error) {
	n := m.n
	d, err := n.dropFor(peer)
	if errors.Is(err, errNoKey) {
		n.look(ctx, peer)
		d, err = n.dropFor(peer)
	}
	if err != nil || d == nil {
		return outbox.Left{}, err
	}
	left := outbox.Left{Relays: len(d.boxes), Copies: make([][]*store.Copy, len(letters))}
	want := min(protocol.DepositRelays, len(d.boxes))
	lacks := func(i int) int { return want - len(letters[i].Copies) - len(left.Copies[i]) }
	var errs []error
	// As many relays at once as copies are missing; the next ones for what failed.
	for next := 0; next < len(d.boxes); {
		missing := 0
		for i := range letters {
			missing = max(missing, lacks(i))
		}
		if missing == 0 {
			return left, nil
		}
		round := d.boxes[next:min(next+missing, len(d.boxes))]
		next += len(round)
		var mu sync.Mutex // guards left and errs while the round lasts
		var g errgroup.Group
		for _, box := range round {
			var batch []int
			for i, l := range letters {
				if lacks(i) > 0 && !slices.ContainsFunc(l.Copies, func(c *store.Copy) bool { return string(c.Relay) == string(box.Relay.Transport[:]) }) {
					batch = append(batch, i)
				}
			}
			g.Go(func() error {
				copies, err := n.leaveAt(ctx, d, box, letters, batch)
				mu.Lock()
				defer mu.Unlock()
				for i, c := range copies {
					left.Copies[i] = append(left.Copies[i], c)
				}
				if err != nil {
					errs = append(errs, err)
				}
				return nil
			})
		}
		g.Wait() //nolint:errcheck // no function returns an error
	}
	for i := range letters {
		if lacks(i) > 0 {
			if len(errs) > 0 && !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, errLong) }) {
				return left, errLong
			}
			return left, errors.Join(errs...)
		}
	}
	return left, nil
}

// leaveAt leaves some of letters, given by their index, at one relay. What it
// returns counts also beside an error.
func (n *Node) leaveAt(ctx context.Context, d *drop, box relay.Mailbox, letters []outbox.Letter, batch []int) (map[int]*store.Copy, error) {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	copies := map[int]*store.Copy{}
	var refused error
	long := false
	err := n.depositor.Do(ctx, box.Relay, func(c *client.Conn) error {
		info := c.Info()
		n.heed(box.Relay.Transport, info)
		if !info.Draining.IsZero() {
			return client.ErrDraining // what it takes nevertheless would be left again
		}
		var deposits []client.Deposit
		var of []int
		for _, i := range batch {
			x, ok, err := n.sealed(d, box, c, letters[i])
			if errors.Is(err, errLong) {
				long = true
				continue
			}
			if err != nil {
				return err
			}
			if ok {
				deposits, of = append(deposits, x), append(of, i)
			}
		}
		outcomes := c.Deposit(ctx, deposits)
		outcomes = n.workInstead(ctx, c, deposits, outcomes)
		for j, o := range outcomes {
			if o.Err != nil {
				refused = o.Err
				continue
			}
			copies[of[j]] = &store.Copy{
				Relay: box.Relay.Transport[:], Store: info.Store[:], Queue: box.Queue[:],
				Until: deposits[j].Expires, Stored: o.Receipt.Time, Receipt: wire.Marshal(o.Receipt.Wire()),
			}
		}
		return nil
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		err = fmt.Errorf("relay %s: %w", shortID(peerOf(box.Relay.Transport).String()), err)
	} else if long {
		err = errLong
	}
	return copies, err
}

// workInstead repeats by work what a token did not admit: the relay may not know
// of it yet, or others used it up.
func (n *Node) workInstead(ctx context.Context, c *client.Conn, deposits []client.Deposit, outcomes []client.Outcome) []client.Outcome {
	var again []client.Deposit
	var of []int
	for i, o := range outcomes {
		if errors.Is(o.Err, client.ErrRefused) && deposits[i].Token != nil {
			d := deposits[i]
			d.Token = nil
			again, of = append(again, d), append(of, i)
		}
	}
	for j, o := range c.Deposit(ctx, again) {
		outcomes[of[j]] = o
	}
	return outcomes
}

// sealed makes the deposit of a letter at a relay; ok is false if it is not worth
// it any more. The error is errLong if it does not fit.
func (n *Node) sealed(d *drop, box relay.Mailbox, c *client.Conn, l outbox.Letter) (x client.Deposit, ok bool, err error) {
	kind := wire.QueueKind_QUEUE_KIND_BOX
	life := protocol.BoxLife
	if box.Capability != nil {
		kind, life = wire.QueueKind_QUEUE_KIND_PAIRWISE, protocol.MessageLife
	}
	if q, ok := c.Info().Quota(kind); ok {
		life = min(life, q.Life)
	}
	until := c.Time().Add(life)
	if l.Expires.Before(until) {
		until = l.Expires
	}
	expires, err := relay.Expiry(n.cfg.Rand, until)
	if err != nil {
		return x, false, err
	}
	blob, err := envelope.SealFor(d.to, d.key, box.Queue, d.from, l.Envelope)
	if err != nil {
		return x, false, err
	}
	if expires <= c.Time().Unix() {
		return x, false, nil
	}
	if box.Capability == nil && len(blob) > protocol.BoxDeposit {
		return x, false, errLong
	}
	x = client.Deposit{Queue: box.Queue, Blob: blob, Expires: expires, Capability: box.Capability}
	if box.Capability == nil {
		x.Token = d.token
	}
	return x, true, nil
}

// heed has what was left at a relay left again if its store is gone, and
// elsewhere in time if it will stop.
func (n *Node) heed(t identity.Transport, info client.Info) {
	n.inSteps("noting that a relay lost its store", func(tx *store.Tx) (bool, error) { return n.outbox.Lost(tx, t, info.Store) })
	if !info.Draining.IsZero() {
		n.inSteps("noting that a relay stops", func(tx *store.Tx) (bool, error) { return n.outbox.Stops(tx, t, info.Draining) })
	}
}

// inSteps runs step, a transaction each, while it reports more.
func (n *Node) inSteps(what string, step func(*store.Tx) (more bool, err error)) {
	for more := true; more; {
		err := n.store.Update(func(tx *store.Tx) (err error) {
			more, err = step(tx)
			return err
		})
		if err != nil {
			n.log.Warn(what, "err", err)
			return
		}
	}
}

// checkCopies looks now and then whether the relays at which something was left
// still have the store that they had then, and will go on, until ctx ends.
func (n *Node) checkCopies(ctx context.Context) error {
	timer := time.NewTimer(checkSoon)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			timer.Reset(checkEvery)
		}
		at, err := n.depositsAt()
		if err != nil {
			n.log.Warn("reading where something was left", "err", err)
			continue
		}
		for _, e := range at {
			n.checkRelay(ctx, e)
		}
	}
}

func (n *Node) checkRelay(ctx context.Context, e identity.Endpoint) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	err := n.depositor.Do(ctx, e, func(c *client.Conn) error {
		n.heed(e.Transport, c.Info())
		return nil
	})
	if err != nil {
		n.log.Debug("a relay at which something was left does not answer", "err", err)
	}
}

// depositsAt returns the relays that keep something of this user for contacts.
func (n *Node) depositsAt() ([]identity.Endpoint, error) {
	at := map[identity.Transport]identity.Endpoint{}
	err := n.store.View(func(tx *store.Tx) error {
		used := map[string]map[identity.Account]bool{}
		for row, err := range store.Outbox.Scan(tx, nil, nil) {
			if err != nil {
				return err
			}
			for _, c := range row.Value.Copies {
				if used[string(c.Relay)] == nil {
					used[string(c.Relay)] = map[identity.Account]bool{}
				}
				used[string(c.Relay)][row.Key.Account()] = true
			}
		}
		for t, accounts := range used {
			for a := range accounts {
				c, err := store.Contacts.Get(tx, store.ContactKey(a))
				if err != nil {
					continue // it was removed
				}
				for _, box := range append(openMail(c.Mail, true).Mailboxes, openMail(c.Boxes, false).Mailboxes...) {
					if string(box.Relay.Transport[:]) == t {
						at[box.Relay.Transport] = box.Relay
					}
				}
			}
		}
		return nil
	})
	list := make([]identity.Endpoint, 0, len(at))
	for _, e := range at {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b identity.Endpoint) int { return slices.Compare(a.Transport[:], b.Transport[:]) })
	return list, err
}

// leaveAnswers leaves decryption errors with those who are to know, until ctx
// ends.
func (n *Node) leaveAnswers(ctx context.Context) error {
	tick := time.NewTicker(answerPace)
	defer tick.Stop()
	for {
		var rows, strangers []store.Row[*store.Answer]
		err := n.store.View(func(tx *store.Tx) error {
			for row, err := range store.Answers.Scan(tx, nil, nil) {
				if err != nil {
					return err
				}
				switch {
				case row.Value.Left || row.Value.Dies <= n.cfg.Now().UnixMilli():
				case row.Value.Stranger:
					strangers = append(strangers, row)
				default:
					rows = append(rows, row)
				}
			}
			return nil
		})
		if err != nil {
			n.log.Warn("reading which answers wait", "err", err)
		}
		for _, row := range slices.Concat(rows, strangers) {
			if err := n.leaveAnswer(ctx, row); err != nil {
				n.log.Debug("an answer was not left", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.answers:
		case <-tick.C:
		}
	}
}

// leaveAnswer leaves one decryption error at one relay.
func (n *Node) leaveAnswer(ctx context.Context, row store.Row[*store.Answer]) error {
	v := row.Value
	if v.Stranger { // whose relay may be a slow one
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, strangerTime)
		defer cancel()
	}
	var e wire.DecryptionError
	if err := wire.Parse(v.Error, protocol.MaxEnvelope, &e); err != nil {
		return fmt.Errorf("reading an answer: %w", store.ErrDamaged)
	}
	to := identity.Account(v.Account)
	d, err := n.dropFor(to)
	if d == nil && len(v.Mail) > 0 {
		err = n.store.View(func(tx *store.Tx) (err error) {
			d, err = n.dropAt(tx, to, v.Manifest, openMail(v.Mail, true), relay.Mail{})
			return err
		})
	}
	if err != nil || d == nil {
		return err
	}
	letter := outbox.Letter{Envelope: envelope.SealError(&e), Expires: n.cfg.Now().Add(protocol.MessageLife)}
	for _, box := range d.boxes {
		var copies map[int]*store.Copy
		if copies, err = n.leaveAt(ctx, d, box, []outbox.Letter{letter}, []int{0}); len(copies) > 0 {
			v.Left, v.Dies = true, n.cfg.Now().Add(answerMemory).UnixMilli()
			return n.store.Update(func(tx *store.Tx) error { return store.Answers.Put(tx, row.Key, v) })
		}
	}
	return err
}
