package node

import (
	"context"
	"fmt"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
)

// Doctor answers why messages do or do not get through: for this node, or for
// one contact.
func (n *Node) Doctor(ctx context.Context, contact string) ([]Finding, error) {
	st := n.Status()
	if contact != "" {
		return n.examineContact(contact)
	}
	list := []Finding{n.examineNetwork(st), n.examineDHT(st), n.examineRecord(st), n.examineQueue(st)}
	relays, err := n.examineRelays(ctx)
	if err != nil {
		return nil, err
	}
	list = append(list, relays...)
	if st.RolledBack {
		list = append(list, Finding{
			Check: "disk", Level: "warn", Text: "the profile came back from an older copy",
			Hint: "sessions are renewed by themselves; messages received after that copy was made are gone from here",
		})
	} else {
		list = append(list, Finding{Check: "disk", Level: "ok", Text: "the profile is the newest copy that this machine knows of"})
	}
	return list, nil
}

func (n *Node) examineNetwork(st Status) Finding {
	f := Finding{Check: "network", Level: "ok"}
	switch {
	case len(st.Addrs) == 0:
		f.Level, f.Text, f.Hint = "bad", "this node listens nowhere", "check --listen and the firewall, then restart the daemon"
	case st.Connected == 0:
		f.Level, f.Text = "warn", "no peer is connected"
		f.Hint = "add a bootstrap node (starling bootstrap add), or a contact that is online"
	default:
		f.Text = fmt.Sprintf("%s connected; reachable: %s", plural(st.Connected, "peer"), st.Reach)
	}
	return f
}

func (n *Node) examineDHT(st Status) Finding {
	if st.DHTPeers == 0 {
		return Finding{
			Check: "dht", Level: "warn", Text: "no DHT node is known, so contacts are found by link, neighbours and old addresses only",
			Hint: "starling bootstrap add takes the address of any node: starling status shows it there",
		}
	}
	return Finding{Check: "dht", Level: "ok", Text: fmt.Sprintf("%s in the routing table, as %s", plural(st.DHTPeers, "node"), st.DHTMode)}
}

func (n *Node) examineRecord(st Status) Finding {
	now := n.cfg.Now()
	switch {
	case st.Published.IsZero() && st.DHTPeers == 0:
		return Finding{Check: "record", Level: "warn", Text: "this account's record is not published, as there is no DHT node to hold it"}
	case st.Published.IsZero():
		return Finding{Check: "record", Level: "warn", Text: "this account's record is not confirmed yet; still trying"}
	case now.Sub(st.Published) > 24*time.Hour:
		return Finding{Check: "record", Level: "bad", Text: "this account's record was last confirmed " + age(st.Published, now), Hint: "check the clock and the connection"}
	}
	return Finding{Check: "record", Level: "ok", Text: "this account's record was confirmed " + age(st.Published, now)}
}

// examineRelays says how this user's relays stand, each that is not as it should
// be by itself.
func (n *Node) examineRelays(ctx context.Context) ([]Finding, error) {
	all, err := n.Relays(ctx)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return []Finding{{
			Check: "relays", Level: "warn", Text: "no relay is named, so messages reach you only while you are online",
			Hint: "starling relay add takes the link of a volunteer's relay",
		}}, nil
	}
	var list []Finding
	used := 0
	for _, r := range all {
		if r.State == "used" {
			used++
			continue
		}
		f := Finding{Check: "relays", Level: "warn", Text: "relay " + shortID(r.ID) + ": " + r.Detail}
		if r.State == "leaving" {
			f.Level = "ok"
		}
		list = append(list, f)
	}
	f := Finding{Check: "relays", Level: "ok", Text: plural(used, "relay") + " in use"}
	if used < protocol.DepositRelays {
		f.Level, f.Hint = "warn", fmt.Sprintf("with %d relays, one that is lost loses nothing", protocol.DepositRelays)
	}
	return append([]Finding{f}, list...), nil
}

// shortID is the part of a peer ID by which people tell two apart.
func shortID(id string) string { return id[max(0, len(id)-8):] }

func (n *Node) examineQueue(st Status) Finding {
	if st.Queued == 0 {
		return Finding{Check: "queue", Level: "ok", Text: "no message waits"}
	}
	return Finding{Check: "queue", Level: "warn", Text: plural(st.Queued, "message") + " not delivered yet", Hint: "starling doctor CONTACT says why"}
}

// examineContact says where messages to one contact are, and why.
func (n *Node) examineContact(who string) ([]Finding, error) {
	var c *store.Contact
	var view Contact
	var p post
	err := n.store.View(func(tx *store.Tx) (err error) {
		if c, err = resolve(tx, who); err != nil {
			return err
		}
		view = n.contactOf(tx, c)
		p, err = readPost(tx, accountOf(c))
		return err
	})
	if err != nil {
		return nil, err
	}
	state := Finding{Check: "contact", Level: "ok", Text: view.Name + " is a contact"}
	if view.State != "accepted" {
		state = Finding{Check: "contact", Level: "warn", Text: view.Name + ": " + view.Detail}
	}
	if e := mayWrite(c); e != nil {
		state.Level = "bad"
		if e, ok := e.(*Error); ok {
			state.Hint = e.Hint
		}
	}
	now := n.cfg.Now()
	network := Finding{Check: "network", Level: "ok", Text: view.Name + " is connected directly"}
	if view.Path == PathCircuit {
		network.Text = view.Name + " is connected through a circuit: there is no direct connection so far"
	}
	if !view.Connected {
		network = Finding{Check: "network", Level: "warn", Text: view.Name + " is not connected, " + heard(view.LastSeen, now)}
		if len(c.Endpoints) == 0 {
			network.Text = view.Name + " has no known address yet"
		}
		network.Hint = n.waiting(identity.Account(c.Account))
	}
	record := Finding{Check: "record", Level: "ok"}
	switch {
	case c.RecordDay == 0:
		record.Level, record.Text = "warn", "no record of "+view.Name+" was read yet"
	default:
		record.Text = fmt.Sprintf("the newest record of %s that was read is of %s", view.Name, recordDay(c.RecordDay, now))
	}
	receipts := Finding{Check: "receipts", Level: "ok", Text: view.Name + " has acknowledged no message yet"}
	if !p.acknowledged.IsZero() {
		receipts.Text = fmt.Sprintf("the newest message that %s acknowledged was sent %s", view.Name, age(p.acknowledged, now))
	}
	queue := Finding{Check: "queue", Level: "ok", Text: "no message to " + view.Name + " waits"}
	if p.waiting > 0 {
		queue = Finding{Check: "queue", Level: "warn", Hint: n.waiting(accountOf(c))}
		queue.Text = fmt.Sprintf("%s to %s not delivered yet, the oldest sent %s; at relays: %d", plural(p.waiting, "message"), view.Name, age(p.oldest, now), p.stored)
		if r, ok := n.outbox.Report(accountOf(c)); ok && r.Next.After(now) {
			queue.Text += "; next try at " + r.Next.UTC().Format("15:04:05 MST")
		}
	}
	return []Finding{state, network, n.examineReach(), record, n.examineDeposits(c, view, p), receipts, queue}, nil
}

// A post is what is on its way to a contact.
type post struct {
	waiting      int
	oldest       time.Time      // of these
	stored       int            // of these, at relays
	at           map[string]int // how many each relay keeps, by its transport key
	acknowledged time.Time      // when the newest was sent that arrived; zero: none
}

// ackedWithin is how many lines of a chat are looked through for what arrived.
const ackedWithin = 1000

func readPost(tx *store.Tx, a identity.Account) (post, error) {
	p := post{at: map[string]int{}}
	for row, err := range store.Outbox.Scan(tx, store.OutboxOf(a), nil) {
		if err != nil {
			return p, err
		}
		out := row.Value
		if out.Control {
			continue
		}
		if p.waiting++; p.waiting == 1 {
			p.oldest = time.UnixMilli(out.Created)
		}
		if len(out.Copies) > 0 {
			p.stored++
		}
		for _, c := range out.Copies {
			p.at[string(c.Relay)]++
		}
	}
	lines := 0
	for row, err := range store.History.ScanBack(tx, store.HistoryOf(a), nil) {
		if err != nil {
			return p, err
		}
		if e := row.Value; e.State == store.Entry_DELIVERED || e.State == store.Entry_READ {
			p.acknowledged = time.UnixMilli(e.Time)
			break
		}
		if lines++; lines == ackedWithin {
			break
		}
	}
	return p, nil
}

// examineReach says how others reach this node.
func (n *Node) examineReach() Finding {
	switch n.reach() {
	case "direct":
		return Finding{Check: "reach", Level: "ok", Text: "others reach this node directly"}
	case "relay":
		return Finding{Check: "reach", Level: "ok", Text: "others reach this node through a circuit relay, as its router lets nobody in"}
	case "lan":
		return Finding{
			Check: "reach", Level: "warn", Text: "only this local network is known to reach this node, so from elsewhere nobody connects to it",
			Hint: "it connects to others by itself; a forwarded port, or --announce with a public address, helps",
		}
	}
	return Finding{Check: "reach", Level: "warn", Text: "nobody reaches this node", Hint: "check --listen and the firewall"}
}

// examineDeposits says what is left for a contact at relays, and what each of them
// has a receipt for.
func (n *Node) examineDeposits(c *store.Contact, view Contact, p post) Finding {
	f := Finding{Check: "relays", Level: "ok"}
	boxes := openMail(c.Mail, true).Mailboxes
	what := "messages"
	if len(boxes) == 0 {
		boxes, what = openMail(c.Boxes, false).Mailboxes, "first messages"
	}
	if len(boxes) == 0 {
		f.Text = view.Name + " has told of no relay, so messages arrive only while both are online"
		f.Level = "warn"
	} else {
		f.Text = fmt.Sprintf("%s takes %s at %s while away", view.Name, what, plural(len(boxes), "relay"))
	}
	for i, box := range boxes {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		f.Text += fmt.Sprintf("%s%s keeps %d", sep, shortID(peerOf(box.Relay.Transport).String()), p.at[string(box.Relay.Transport[:])])
	}
	r, ok := n.outbox.Report(accountOf(c))
	if !ok || r.Deposit.Err == nil {
		return f
	}
	f.Level = "warn"
	f.Hint = "the last attempt to leave messages there, " + age(r.Deposit.Last, n.cfg.Now()) + ", failed: " + r.Deposit.Err.Error()
	return f
}

func heard(t, now time.Time) string {
	if t.IsZero() {
		return "and was not heard of yet"
	}
	return "and was last heard of " + age(t, now)
}

// recordDay says which day a record is of, and how old that is.
func recordDay(day uint32, now time.Time) string {
	start := time.Unix(int64(day)*86400, 0).UTC()
	old := "today"
	if days := int(now.Sub(start) / (24 * time.Hour)); days > 0 {
		old = plural(days, "day") + " ago"
	}
	return start.Format("2 January 2006") + ", " + old
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
