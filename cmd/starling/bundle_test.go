package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"starling/node/api"
)

// A report names nobody and no place, whatever the findings say, and still says
// what is the matter.
func TestReportNamesNobody(t *testing.T) {
	const (
		account = "st1aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4777q2a"
		other   = "st1mfrggzdfmztwq2lknnwg23tpobyxe43uov3ho6dzpiydcmrtgq2tm"
		peer    = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
		relay   = "12D3KooWKRyzVWW6ChFjQjK4miCty85Niy48tpPV95XdKu1BcvMA"
	)
	who := &acquaintances{
		status: &api.StatusResponse{State: api.StateRunning, Account: account, PeerId: peer, Name: "Ada Adlerberg", Reach: "lan", Queued: 3},
		contacts: []*api.Contact{
			{Account: other, Name: "Bo", ProfileName: "Bo Bergstrom", State: "accepted", Queued: 3, LastSeen: 1},
			{Account: "st1ccc", Name: "Zoë (work)", State: "pending"},
			{Account: "st1ddd", Name: "takes", State: "accepted"}, // a word that the doctor uses
		},
		relays: []*api.Relay{{Id: relay, State: "waiting", Detail: "not reached: dial tcp 198.51.100.7:7827: connect: connection refused"}},
	}
	secrets := []string{
		account, other, peer, relay, relay[len(relay)-8:], "Bo", "Bergstrom", "Ada", "Zoë", "(work)", "198.51.100.7", "203.0.113.9", "2001:db8::17", "fe80::1", "7827",
		"relay.example.org", "/home/ada", "4001", "deadbeefdeadbeefdeadbeef", "AEBKFMDCDZZZZ", "secretsecretsecretsecretsecret", "alice.local", "6nXTN", `Users`, "AbCdEfGh",
	}
	fs := []*api.Finding{
		{Check: "contact", Level: "ok", Text: "Bo is a contact"},
		{Check: "network", Level: "warn", Text: "Bo is not connected, and was last heard of 3 hours ago", Hint: "dialling /ip4/203.0.113.9/udp/4001/quic-v1/p2p/" + peer + ": no route to 2001:db8::17: at 10:51:34"},
		{Check: "relays", Level: "warn", Text: "Bo takes messages at 2 relays while away: " + relay[len(relay)-8:] + " keeps 1, AbCdEfGh keeps 0", Hint: "failed: relay AbCdEfGh: <peer.ID 12*6nXTN>: lookup relay.example.org on [fe80::1%eth0]:53: no such host"},
		{Check: "queue", Level: "warn", Text: "3 messages to Zoë (work) not delivered yet", Hint: "alice.local answered deadbeefdeadbeefdeadbeef and secretsecretsecretsecretsecret"},
		{Check: "profile", Level: "ok", Text: "the profile is in /home/ada/.local/share/starling of Ada Adlerberg, not of Bo Bergstrom, or C:\\Users\\ada"},
		{Check: "link", Level: "ok", Text: "STARLING-RELAY:AEBKFMDCDZZZZ and starling:AEBKFMDCDZZZZ"},
	}
	all := ""
	for _, f := range append(fs, &api.Finding{Text: account + other + who.relays[0].Detail + relay + " Ada"}) {
		all += f.Text + f.Hint
	}
	b, err := json.MarshalIndent(bundleOf(fs, who.status, who, time.Now()), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	for _, s := range secrets {
		if !strings.Contains(all, s) {
			t.Errorf("%q was not there to be found", s)
		}
		if strings.Contains(got, s) {
			t.Errorf("the report has %q", s)
		}
	}
	for _, s := range []string{
		" is not connected, and was last heard of 3 hours ago", " messages at 2 relays while away", "keeps 1, ", "connection refused", "no such host",
		"10:51:34", `"relay": "relay-1"`, `"queued": 3`, "relay-1 keeps 1, relay-2 keeps 0", " relay-2: (peer)",
	} {
		if !strings.Contains(got, s) {
			t.Errorf("the report does not say %q", s)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
	var r bundle
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	bo := strings.TrimSuffix(r.Findings[0].Text, " is a contact")
	if !strings.HasPrefix(bo, "contact-") || !strings.HasPrefix(r.Findings[1].Text, bo+" ") || !strings.HasPrefix(r.Findings[2].Text, bo+" ") {
		t.Errorf("one contact has several names: %+v", r.Findings)
	}

	// Where it is not known who there is to name, words are left out.
	b, err = json.Marshal(bundleOf(fs, nil, nil, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets {
		if strings.Contains(string(b), s) {
			t.Errorf("without the daemon, the report has %q", s)
		}
	}
}
