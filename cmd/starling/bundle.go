package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"starling/node/api"
)

// A bundle is what doctor --bundle writes, for somebody else's eyes: states,
// numbers and times, and words without anybody's name, address or key. Contacts
// and relays have other names, the same all over one bundle and others in the
// next.
type bundle struct {
	Made     string            `json:"made"`
	Version  versionShape      `json:"version"`
	Findings []findingShape    `json:"findings"`
	Node     map[string]any    `json:"node,omitempty"`
	Contacts []reportedContact `json:"contacts,omitempty"`
	Relays   []reportedRelay   `json:"relays,omitempty"`
}

type reportedContact struct {
	Contact   string `json:"contact"`
	State     string `json:"state"`
	Connected bool   `json:"connected"`
	Path      string `json:"path,omitempty"`
	Queued    uint32 `json:"queued"`
	Heard     string `json:"heard,omitempty"` // how long ago
}

type reportedRelay struct {
	Relay     string `json:"relay"`
	State     string `json:"state"`
	Detail    string `json:"detail,omitempty"`
	Queues    uint32 `json:"queues"`
	Connected bool   `json:"connected"`
	Heard     string `json:"heard,omitempty"`
}

// nameless are the checks whose text names nobody, and may be told although it is
// not known who there is to name.
var nameless = map[string]bool{"daemon": true, "version": true, "files": true, "dht": true, "record": true, "clock": true, "disk": true}

// acquaintances are who and what a bundle must not name.
type acquaintances struct {
	status   *api.StatusResponse
	contacts []*api.Contact
	relays   []*api.Relay
}

// acquainted asks the daemon whom a bundle must not name; nil if it does not
// answer.
func (a *app) acquainted(ctx context.Context, st *api.StatusResponse) *acquaintances {
	if st == nil || st.State != api.StateRunning {
		return nil
	}
	d, err := a.connect(ctx)
	if err != nil {
		return nil
	}
	all := &acquaintances{status: st}
	for _, requests := range []bool{false, true} {
		r, err := api.Call(ctx, d.ListContacts, &api.ListContactsRequest{Requests: requests})
		if err != nil {
			return nil
		}
		all.contacts = append(all.contacts, r.Contacts...)
	}
	r, err := api.Call(ctx, d.ListRelays, &api.ListRelaysRequest{})
	if err != nil {
		return nil
	}
	all.relays = r.Relays
	return all
}

// bundleOf makes the bundle. Without acquaintances, words that may name somebody
// are left out.
func bundleOf(fs []*api.Finding, st *api.StatusResponse, who *acquaintances, now time.Time) bundle {
	r := bundle{Made: now.UTC().Format(time.RFC3339), Version: readVersion(), Findings: []findingShape{}}
	m := newMask(who, fs)
	for _, f := range fs {
		s := findingShape{Check: f.Check, Level: f.Level, Text: "(left out)"}
		if who != nil || nameless[f.Check] {
			s.Text, s.Hint = m.words(f.Text), m.words(f.Hint)
		}
		r.Findings = append(r.Findings, s)
	}
	if st != nil {
		r.Node = map[string]any{
			"state": st.State, "version": st.Version, "reach": st.Reach, "contacts": st.Contacts, "queued": st.Queued,
			"connected": st.Connected, "paths": paths(st.Connections), "dht_peers": st.DhtPeers, "dht_mode": st.DhtMode, "started": stamp(st.Started), "published": stamp(st.Published), "rolled_back": st.RolledBack,
		}
	}
	if who == nil {
		return r
	}
	for _, c := range who.contacts {
		r.Contacts = append(r.Contacts, reportedContact{m.names[c.Account], c.State, c.Connected, c.Path, c.Queued, heardOf(c.LastSeen, now)})
	}
	for _, x := range who.relays {
		r.Relays = append(r.Relays, reportedRelay{m.names[x.Id], x.State, m.words(x.Detail), x.Queues, x.Connected, heardOf(x.Heard, now)})
	}
	slices.SortFunc(r.Contacts, func(a, b reportedContact) int { return cmp.Compare(a.Contact, b.Contact) })
	slices.SortFunc(r.Relays, func(a, b reportedRelay) int { return cmp.Compare(a.Relay, b.Relay) })
	return r
}

func heardOf(ms int64, now time.Time) string {
	if ms == 0 {
		return ""
	}
	return ago(when(ms), now)
}

// A mask takes out of words what names people, relays, machines and places.
type mask struct {
	names map[string]string // what stands for each
	order []string          // the names, longest first
}

// aRelay finds the relays of contacts in what the doctor says.
var aRelay = regexp.MustCompile(`\b([1-9A-HJ-NP-Za-km-z]{8})( keeps \d|: )`)

// newMask draws the names that stand for others.
func newMask(who *acquaintances, fs []*api.Finding) *mask {
	m := &mask{names: map[string]string{}}
	if who == nil {
		return m
	}
	add := func(name, as string) {
		if name != "" {
			m.names[name] = as
		}
	}
	for i, j := range rand.Perm(len(who.relays)) { // their order tells nothing
		x, as := who.relays[i], fmt.Sprintf("relay-%d", j+1)
		add(x.Id, as)
		add(x.Id[max(0, len(x.Id)-shortIDLen):], as)
	}
	n := len(who.relays)
	for _, f := range fs {
		for _, found := range aRelay.FindAllStringSubmatch(f.Text+" "+f.Hint, -1) {
			if m.names[found[1]] == "" {
				n++
				add(found[1], fmt.Sprintf("relay-%d", n))
			}
		}
	}
	add(who.status.Account, "me")
	add(who.status.PeerId, "me")
	add(who.status.Name, "me")
	for i, j := range rand.Perm(len(who.contacts)) {
		c, as := who.contacts[i], fmt.Sprintf("contact-%d", j+1)
		for _, name := range []string{c.Account, c.NewAccount, c.Name, c.ProfileName} {
			add(name, as)
		}
	}
	for name := range m.names {
		m.order = append(m.order, name)
	}
	slices.SortFunc(m.order, func(a, b string) int { return cmp.Or(len(b)-len(a), cmp.Compare(a, b)) })
	return m
}

// shortIDLen is how much of a relay's ID the doctor says.
const shortIDLen = 8

// cuts are what is no word: each is replaced by what it was.
var cuts = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`(?i)\bstarling(-relay)?:[a-z0-9-]\S*`), "(link)"},
	{regexp.MustCompile(`<peer\.ID [^>]*>`), "(peer)"},
	{regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://\S+`), "(address)"},
	{regexp.MustCompile(`/(ip4|ip6|ip6zone|dns|dns4|dns6|dnsaddr|p2p|tcp|udp)/[^\s,;"')\]]+`), "(address)"},
	{regexp.MustCompile(`\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b`), "(address)"},
	{regexp.MustCompile(`\b(st1[a-z2-7]{16,}|12D3Koo\w+|Qm\w{20,}|[0-9a-fA-F]{12,}|[A-Za-z0-9+/_=]{24,})`), "(key)"},
	{regexp.MustCompile(`(?i)\b([a-z0-9_-]+\.)+[a-z]{2,}\b`), "(host)"},
	{regexp.MustCompile(`(?i)\b[a-z]:\\[^\s"']+`), "(path)"},
	{regexp.MustCompile(`/[^\s"':,;)]+`), "(path)"},
}

// colons finds what may be an IPv6 address.
var colons = regexp.MustCompile(`[0-9A-Fa-f]*:[0-9A-Fa-f:.]*[0-9A-Fa-f:](%\w+)?`)

// words returns s without what names anybody or any place.
func (m *mask) words(s string) string {
	var parts []string // masked, and not looked at again, at odd places
	for len(s) > 0 {
		at, name := m.find(s)
		if at < 0 {
			break
		}
		parts = append(parts, cutOut(s[:at]), m.names[name])
		s = s[at+len(name):]
	}
	return strings.Join(append(parts, cutOut(s)), "")
}

// find returns the first place of s at which a name stands by itself, and the
// longest one there.
func (m *mask) find(s string) (at int, name string) {
	at = -1
	for _, n := range m.order {
		for from := 0; ; {
			i := strings.Index(s[from:], n)
			if i < 0 {
				break
			}
			i += from
			if at >= 0 && i >= at {
				break
			}
			if apart(s[:i], n) && apart(n, s[i+len(n):]) {
				at, name = i, n
				break
			}
			_, size := utf8.DecodeRuneInString(s[i:])
			from = i + size
		}
	}
	return at, name
}

// apart reports whether no word goes on from a to b.
func apart(a, b string) bool {
	last, _ := utf8.DecodeLastRuneInString(a)
	first, _ := utf8.DecodeRuneInString(b)
	inWord := func(r rune) bool { return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r)) }
	return !inWord(last) || !inWord(first)
}

// cutOut replaces what no name of an acquaintance is, and tells of somebody or
// some place all the same.
func cutOut(s string) string {
	for _, c := range cuts {
		s = c.what.ReplaceAllString(s, c.by)
	}
	return colons.ReplaceAllStringFunc(s, func(t string) string {
		for end := len(t); end > 0; end-- { // a colon may belong to the sentence
			if _, err := netip.ParseAddr(t[:end]); err == nil {
				return "(address)" + t[end:]
			}
			if t[end-1] != ':' && t[end-1] != '.' {
				break
			}
		}
		return t
	})
}

// writeBundle writes a bundle to a new file, which only the user can read.
func writeBundle(name string, b bundle) error {
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	if _, err := f.Write(append(text, '\n')); err != nil {
		f.Close()
		return fmt.Errorf("writing the report: %w", err)
	}
	return f.Close()
}
