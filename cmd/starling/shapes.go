package main

import (
	"time"

	"starling/node/api"
)

// What --json prints. Fields are only ever added; a script ignores those it
// does not know. A time is RFC 3339 in UTC, and absent where there is none.

type statusShape struct {
	State          string   `json:"state"`
	Version        string   `json:"version"`
	API            uint32   `json:"api"`
	PID            int64    `json:"pid"`
	Home           string   `json:"home"`
	Account        string   `json:"account"`
	Name           string   `json:"name"`
	PeerID         string   `json:"peer_id"`
	Addrs          []string `json:"addrs"`
	BootstrapAddrs []string `json:"bootstrap_addrs"`
	Reach          string   `json:"reach"`
	Relays         []string `json:"relays"`
	Contacts       uint32   `json:"contacts"`
	Requests       uint32   `json:"requests"`
	Queued         uint32   `json:"queued"`
	Connected      uint32   `json:"connected"`
	DHTPeers       uint32   `json:"dht_peers"`
	DHTMode        string   `json:"dht_mode"`
	Started        string   `json:"started,omitempty"`
	Published      string   `json:"published,omitempty"`
	Journal        uint64   `json:"journal"`
	RolledBack     bool     `json:"rolled_back"`

	Connections []connectionShape `json:"connections"`
	Confirmed   []string          `json:"confirmed"`
}

type connectionShape struct {
	Contact string `json:"contact"`
	Account string `json:"account"`
	Path    string `json:"path"` // direct or circuit
	Addr    string `json:"addr"`
	Opened  string `json:"opened,omitempty"`
}

func statusOf(s *api.StatusResponse) statusShape {
	connections := []connectionShape{}
	for _, c := range s.Connections {
		connections = append(connections, connectionShape{c.Contact, c.Account, c.Path, c.Addr, stamp(c.Opened)})
	}
	return statusShape{
		s.State, s.Version, s.Api, s.Pid, s.Home, s.Account, s.Name, s.PeerId, list(s.Addrs), list(s.BootstrapAddrs), s.Reach, list(s.Relays),
		s.Contacts, s.Requests, s.Queued, s.Connected, s.DhtPeers, s.DhtMode, stamp(s.Started), stamp(s.Published), s.Journal, s.RolledBack,
		connections, list(s.Confirmed),
	}
}

type inviteShape struct {
	ID      string `json:"id"`
	Link    string `json:"link"`
	Reach   string `json:"reach"`
	Hint    string `json:"hint,omitempty"`
	Public  bool   `json:"public"`
	Created string `json:"created,omitempty"`
	Expires string `json:"expires,omitempty"`
	State   string `json:"state"`
	UsedBy  string `json:"used_by,omitempty"`
}

func inviteOf(i *api.Invite) inviteShape {
	return inviteShape{i.Id, i.Link, i.Reach, i.Hint, i.Public, stamp(i.Created), stamp(i.Expires), i.State, i.UsedBy}
}

type contactShape struct {
	Account     string `json:"account"`
	Name        string `json:"name"`
	ProfileName string `json:"profile_name"`
	State       string `json:"state"`
	Detail      string `json:"detail,omitempty"`
	Verified    bool   `json:"verified"`
	Added       string `json:"added,omitempty"`
	LastSeen    string `json:"last_seen,omitempty"`
	Connected   bool   `json:"connected"`
	Path        string `json:"path,omitempty"` // if connected: direct or circuit
	Queued      uint32 `json:"queued"`
	Unread      uint32 `json:"unread"`
	Warning     string `json:"warning,omitempty"`
	NewAccount  string `json:"new_account,omitempty"`
}

func contactOf(c *api.Contact) contactShape {
	return contactShape{c.Account, c.Name, c.ProfileName, c.State, c.Detail, c.Verified, stamp(c.Added), stamp(c.LastSeen), c.Connected, c.Path, c.Queued, c.Unread, c.Warning, c.NewAccount}
}

type messageShape struct {
	ID       string `json:"id"`
	Chat     string `json:"chat"`
	From     string `json:"from"` // account ID
	To       string `json:"to,omitempty"`
	Text     string `json:"text"`
	State    string `json:"state"`
	Time     string `json:"time"`
	Received string `json:"received,omitempty"`
	Expires  string `json:"expires,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Kind     string `json:"kind"`
	Copies   uint32 `json:"copies,omitempty"` // with stored: relays that have it,
	Relays   uint32 `json:"relays,omitempty"` // of how many that the recipient has,
	Until    string `json:"until,omitempty"`  // and when the last copy ends
}

func messageOf(m *api.Message) messageShape {
	return messageShape{
		m.Id, m.Chat, m.From, m.To, m.Text, m.State, stamp(m.Time), stamp(m.Received), stamp(m.Expires), m.Reason, m.Kind,
		m.Copies, m.Relays, stamp(m.Until),
	}
}

type relayShape struct {
	ID        string   `json:"id"`
	Addrs     []string `json:"addrs"`
	State     string   `json:"state"`
	Detail    string   `json:"detail,omitempty"`
	Added     string   `json:"added,omitempty"`
	Heard     string   `json:"heard,omitempty"`
	Queues    uint32   `json:"queues"`
	Connected bool     `json:"connected"`
}

func relayOf(r *api.Relay) relayShape {
	return relayShape{r.Id, list(r.Addrs), r.State, r.Detail, stamp(r.Added), stamp(r.Heard), r.Queues, r.Connected}
}

type eventShape struct {
	Seq   uint64 `json:"seq"`
	Type  string `json:"type"`
	Time  string `json:"time"`
	Chat  string `json:"chat,omitempty"`
	ID    string `json:"id,omitempty"`
	State string `json:"state,omitempty"`
	From  string `json:"from,omitempty"`
	Text  string `json:"text,omitempty"`
}

func eventOf(e *api.Event) eventShape {
	return eventShape{e.Seq, e.Type, stamp(e.Time), e.Chat, e.Id, e.State, e.From, e.Text}
}

type findingShape struct {
	Check string `json:"check"`
	Level string `json:"level"` // ok, warn or bad
	Text  string `json:"text"`
	Hint  string `json:"hint,omitempty"`
}

func findingOf(f *api.Finding) findingShape {
	return findingShape{f.Check, f.Level, f.Text, f.Hint}
}

// stamp writes unix milliseconds for --json; zero is no time.
func stamp(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// when turns unix milliseconds into a time; zero is the zero time.
func when(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// list keeps an empty list from being printed as null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
