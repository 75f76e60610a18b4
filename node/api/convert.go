package api

import (
	"strings"
	"time"

	"starling/node"
)

// valid returns s with every run of bytes that is not UTF-8 replaced by one
// replacement character: protobuf refuses to carry anything else, and one bad
// name must not hide a whole list.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func validAll(s []string) []string {
	out := make([]string, len(s))
	for i := range s {
		out[i] = valid(s[i])
	}
	return out
}

// millis returns t in unix milliseconds, or 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// Time returns the time of a field in unix milliseconds, in UTC; zero for 0.
func Time(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// count returns n as a field; a negative count is a bug that shows as zero.
func count(n int) uint32 { return uint32(min(max(n, 0), 1<<32-1)) }

func statusOf(s node.Status, r *StatusResponse) {
	r.Account = valid(s.Account)
	r.Name = valid(s.Name)
	r.PeerId = valid(s.PeerID)
	r.Addrs = validAll(s.Addrs)
	r.BootstrapAddrs = validAll(s.BootstrapAddrs)
	r.Reach = valid(s.Reach)
	r.Relays = validAll(s.Relays)
	r.Contacts = count(s.Contacts)
	r.Requests = count(s.Requests)
	r.Queued = count(s.Queued)
	r.Connected = count(s.Connected)
	r.DhtPeers = count(s.DHTPeers)
	r.DhtMode = valid(s.DHTMode)
	r.Started = millis(s.Started)
	r.Published = millis(s.Published)
	r.Journal = s.Journal
	r.RolledBack = s.RolledBack
	r.Confirmed = validAll(s.Confirmed)
	for _, c := range s.Connections {
		r.Connections = append(r.Connections, &Connection{
			Contact: valid(c.Contact),
			Account: valid(c.Account),
			Path:    valid(string(c.Path)),
			Addr:    valid(c.Addr),
			Opened:  millis(c.Opened),
		})
	}
}

func inviteOf(i node.Invite) *Invite {
	return &Invite{
		Id:      valid(i.ID),
		Link:    valid(i.Link),
		Reach:   valid(i.Reach),
		Hint:    valid(i.Hint),
		Public:  i.Public,
		Created: millis(i.Created),
		Expires: millis(i.Expires),
		State:   valid(i.State),
		UsedBy:  valid(i.UsedBy),
	}
}

func contactOf(c node.Contact) *Contact {
	return &Contact{
		Account:     valid(c.Account),
		Name:        valid(c.Name),
		ProfileName: valid(c.ProfileName),
		State:       valid(c.State),
		Detail:      valid(c.Detail),
		Verified:    c.Verified,
		Added:       millis(c.Added),
		LastSeen:    millis(c.LastSeen),
		Connected:   c.Connected,
		Queued:      count(c.Queued),
		Unread:      count(c.Unread),
		Warning:     valid(c.Warning),
		NewAccount:  valid(c.NewAccount),
		Path:        valid(string(c.Path)),
	}
}

func messageOf(m node.Message) *Message {
	return &Message{
		Id:       valid(m.ID),
		Chat:     valid(m.Chat),
		From:     valid(m.From),
		Text:     valid(m.Text),
		State:    valid(m.State),
		Time:     millis(m.Time),
		Received: millis(m.Received),
		Reason:   valid(m.Reason),
		Expires:  millis(m.Expires),
		To:       valid(m.To),
		Kind:     valid(m.Kind),
		Copies:   count(m.Copies),
		Relays:   count(m.Relays),
		Until:    millis(m.Until),
	}
}

func eventOf(e node.Event) *Event {
	return &Event{
		Seq:   e.Seq,
		Type:  valid(e.Type),
		Time:  millis(e.Time),
		Chat:  valid(e.Chat),
		Id:    valid(e.ID),
		State: valid(e.State),
		From:  valid(e.From),
		Text:  valid(e.Text),
	}
}

func relayOf(r node.Relay) *Relay {
	return &Relay{
		Id:        valid(r.ID),
		Addrs:     validAll(r.Addrs),
		State:     valid(r.State),
		Detail:    valid(r.Detail),
		Added:     millis(r.Added),
		Heard:     millis(r.Heard),
		Queues:    count(r.Queues),
		Connected: r.Connected,
	}
}

func findingOf(f node.Finding) *Finding {
	return &Finding{
		Check: valid(f.Check),
		Level: valid(f.Level),
		Text:  valid(f.Text),
		Hint:  valid(f.Hint),
	}
}

// each converts a slice.
func each[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i := range in {
		out[i] = f(in[i])
	}
	return out
}
