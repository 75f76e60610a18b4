package simulation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"starling/node/relay/client"
	"starling/node/store"
	"starling/protocol/identity"
	"starling/protocol/relay"
)

// A Drain is a stranger who takes all one-time keys of a victim: from every relay
// that runs and that the victim names, all that a public link and work pay for,
// while the victim is away. Meanwhile newcomers write to the victim: those of
// Public by that link, those of Invited each by a link of their own. First contact
// goes on: by the record's keys (T3), and by those that relays keep for tokens
// (T2).
type Drain struct {
	Victim  *Node
	Public  []*Node
	Invited []*Node
	Away    time.Duration // of the victim. Default an hour
}

// drainSettle is how long the victim is there before, so that its relays know of
// its links.
const drainSettle = 10 * time.Minute

// Drain plays a drain to its end, and reports it. All its nodes must run, and so
// does the victim afterwards.
func (w *World) Drain(d Drain) error {
	w.alive()
	if d.Victim == nil || len(d.Public)+len(d.Invited) == 0 {
		return errors.New("simulation: a drain has a victim and newcomers")
	}
	public, err := d.Victim.Invite(true)
	if err != nil {
		return err
	}
	stolen, err := identity.ParseLink(public)
	if err != nil {
		return fmt.Errorf("reading a link of %s: %w", d.Victim.Name(), err)
	}
	newcomers := append(append([]*Node(nil), d.Public...), d.Invited...)
	links := map[*Node]string{}
	for _, n := range newcomers {
		links[n] = public
	}
	for _, n := range d.Invited {
		if links[n], err = d.Victim.Invite(false); err != nil {
			return err
		}
	}
	w.Sleep(drainSettle)
	pools, err := d.Victim.pools()
	if err != nil {
		return err
	}
	if err := d.Victim.Stop(); err != nil {
		return err
	}
	over := w.Fault("drain", "of the one-time keys of "+d.Victim.Name())
	taken, left := 0, 0
	for _, p := range pools {
		n, dry, err := w.drain(p, stolen.Token)
		if err != nil {
			return fmt.Errorf("draining %s: %w", p.at.spec.Name, err)
		}
		taken += n
		if !dry {
			left++
		}
	}
	before := w.keys()
	for _, n := range newcomers {
		if err := n.Add(d.Victim, links[n]); err != nil {
			return err
		}
		if _, err := n.Send(d.Victim, "we have not met"); err != nil {
			return err
		}
	}
	w.Sleep(orDefault(d.Away, time.Hour))
	after := w.keys()
	over()
	if err := d.Victim.Start(); err != nil {
		return err
	}
	if err := d.accept(w); err != nil {
		return err
	}
	w.Report(Metric{Name: "keys_drained", Value: float64(taken), Unit: "keys", Goal: "what a stranger takes by work"})
	w.Report(Metric{Name: "pools_not_drained", Value: float64(left), Unit: "pools", Goal: "where the work became too much"})
	w.Report(Metric{Name: "keys_to_tokens", Value: float64(after.KeysToTokens - before.KeysToTokens), Unit: "keys", Goal: "given to the bearers of tokens all the same"})
	w.Report(Metric{Name: "keys_denied", Value: float64(after.KeysDenied - before.KeysDenied), Unit: "requests", Goal: "newcomers who go on with the record's keys"})
	return nil
}

// accept has the victim accept who came by its public link, so that their texts
// are confirmed to them.
func (d Drain) accept(w *World) error {
	for _, n := range d.Public {
		for limit := w.Now() + w.cfg.Promise; ; w.Sleep(settleEvery) {
			_, err := d.Victim.Live().AcceptContact(w.ctx, n.spec.Name, "")
			if err == nil {
				break
			}
			if w.Now() > limit {
				return fmt.Errorf("%s accepts %s: %w", d.Victim.Name(), n.Name(), err)
			}
		}
	}
	return nil
}

// keys returns how many one-time keys all relays have given to whom.
func (w *World) keys() (all RelayResult) {
	for _, r := range w.relays {
		res := r.results()
		all.KeysToTokens += res.KeysToTokens
		all.KeysToWork += res.KeysToWork
		all.KeysDenied += res.KeysDenied
	}
	return all
}

// A pool is one-time keys of somebody at a relay, as whoever has their public
// link finds them.
type pool struct {
	at  *Relay
	box relay.QueueID
	id  relay.PoolID
}

// pools returns the pools of the node's user. It reads in the node's store what
// the record says.
func (n *Node) pools() (list []pool, err error) {
	n.mu.Lock()
	db := n.db
	n.mu.Unlock()
	account, err := identity.ParseAccountID(n.account)
	if err != nil {
		return nil, err
	}
	err = db.View(func(tx *store.Tx) error {
		me, err := store.Selves.Get(tx, store.SelfKey())
		if err != nil {
			return err
		}
		for _, r := range n.w.relays {
			for row, err := range store.OwnQueues.Scan(tx, store.OwnQueuesAt(r.self), nil) {
				if err != nil {
					return err
				}
				if q := row.Value; len(q.Contact) > 0 || q.Over || q.Expires == 0 {
					continue
				}
				box := row.Key.Queue()
				p := relay.NewPool(account, identity.LookupSecret(me.LookupSecret), r.self, box)
				list = append(list, pool{r, box, p.ID()})
			}
		}
		return nil
	})
	return list, err
}

// drain takes keys of a pool, for a token and then by work, until there are none,
// which dry reports, or until the relay wants more work than a client does.
func (w *World) drain(p pool, token identity.Token) (taken int, dry bool, err error) {
	if !p.at.Running() {
		return 0, true, nil
	}
	_, options := w.speaks(w.nobody)
	// Work takes the processor of the run: the stranger does no more than this.
	dialer := client.Dialer{MaxBits: relayWork + 12, Rand: rand.Reader}
	err = client.NewDepositor(client.NewHosts(options...), dialer).Do(w.ctx, p.at.endpoint(), func(c *client.Conn) error {
		pays := &token
		for {
			ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
			_, err := c.TakeKey(ctx, p.box, p.id, pays)
			cancel()
			tooMuch := false
			if _, ok := errors.AsType[*client.WorkError](err); ok {
				tooMuch = true
			}
			switch {
			case err == nil:
				taken++
			case errors.Is(err, client.ErrRefused) && pays != nil:
				pays = nil // it has had its share
			case errors.Is(err, client.ErrEmpty):
				dry = true
				return nil
			case tooMuch:
				return nil
			default:
				return err
			}
		}
	})
	return taken, dry, err
}
