package node

import "time"

// The types below are what a node says to its user. The local API
// (node/api/api.proto) carries them field by field; a zero time means none.
// Text that came from peers is valid UTF-8 and otherwise as they wrote it:
// whoever prints it escapes it.

// Status says how the node stands.
type Status struct {
	Account        string    // text form of the account ID
	Name           string    // own profile name
	PeerID         string    // libp2p peer ID of the transport key
	Addrs          []string  // listen addresses, multiaddr text
	BootstrapAddrs []string  // the same with /p2p, to hand to other nodes
	Confirmed      []string  // public addresses at which peers were seen to reach this node (AutoNAT v2)
	Reach          string    // lan, direct, relay or none
	Relays         []string  // IDs of the relays that this user names
	Contacts       int       // contacts, requests not counted
	Requests       int       // contact requests that wait for an answer
	Queued         int       // messages not yet delivered
	Connected      int       // peers connected
	DHTPeers       int       // peers in the routing table
	DHTMode        string    // server or client
	Started        time.Time // when the node opened
	Published      time.Time // the newest own record confirmed by read-back
	Journal        uint64    // newest event
	RolledBack     bool      // the store came back from an old copy at the last start

	Connections []Connection // to contacts, by name: the best one to each who is connected
}

// A Path says how a connection runs.
type Path string

const (
	PathDirect  Path = "direct"  // from node to node
	PathCircuit Path = "circuit" // through a circuit relay, which cuts it after some time and bytes
)

// A Connection is one to a contact.
type Connection struct {
	Contact string // name
	Account string
	Path    Path
	Addr    string    // multiaddr that the contact is seen at; of a circuit, the relay's
	Opened  time.Time // when it came to be
}

// A Relay is a relay that this user names.
type Relay struct {
	ID        string    // peer ID
	Addrs     []string  // multiaddr text
	State     string    // new, used, waiting, refused, draining, dropped or leaving
	Detail    string    // the state in plain words
	Added     time.Time // when it was named first
	Heard     time.Time // when it last answered; zero: not since the start
	Queues    int       // of this user, at the relay
	Connected bool
}

// An Invite is an invite link and what became of it.
type Invite struct {
	ID      string
	Link    string
	Reach   string // lan, direct, relay or none
	Hint    string // what to do about a reach of lan or none, or empty
	Public  bool   // reusable; leads to a contact request
	Created time.Time
	Expires time.Time // zero for a public one
	State   string    // open, used, revoked or expired
	UsedBy  string    // contact name
}

// A Contact is a local entry pinned to one account key.
type Contact struct {
	Account     string // text form of the account ID
	Name        string // local name
	ProfileName string // what they call themselves
	State       string // pending, requested, accepted, request, blocked, key_changed or held
	Detail      string // the state in plain words
	Verified    bool   // the safety number was compared
	Added       time.Time
	LastSeen    time.Time // last authenticated word from them
	Connected   bool
	Path        Path // how, if Connected
	Queued      int
	Unread      int
	Warning     string // "not the NAME you know", or empty
	NewAccount  string // with key_changed: the account that was offered
}

// A Message is one entry of a chat's history.
type Message struct {
	ID       string // hexadecimal
	Chat     string // contact name
	From     string // account
	To       string // account of the chat
	Text     string
	State    string    // queued, stored, delivered, read or failed; received
	Time     time.Time // when it was sent
	Received time.Time // when it was committed here
	Expires  time.Time
	Reason   string    // with failed, and with queued: what is waited for
	Kind     string    // text, or notice: what the chat must show although nobody wrote it
	Copies   int       // with stored: relays that have it,
	Relays   int       // of how many that the recipient has,
	Until    time.Time // and when the last copy ends
}

// An Event is one entry of the journal.
type Event struct {
	Seq   uint64 // counts from 1 without a gap
	Type  string // message, state, contact, request, invite, notice, session or node
	Time  time.Time
	Chat  string // contact name
	ID    string // message
	State string
	From  string // account
	Text  string
}

// A Finding is one answer of the doctor.
type Finding struct {
	Check string // network, record, relays, clock, disk, contact or queue
	Level string // ok, warn or bad
	Text  string // one plain sentence
	Hint  string // what to do, or empty
}

// A Kind says what the caller can do about an [Error].
type Kind int

// Kinds are told apart because programs act on them differently; the text says
// the rest to people.
const (
	KindInvalid     Kind = iota + 1 // the argument is wrong: do not repeat it
	KindNotFound                    // no such contact, message, invite or address
	KindAmbiguous                   // the name fits several; the hint lists them
	KindExists                      // it is there already; nothing was changed
	KindKeyChanged                  // the contact's account key changed: the user decides before anything is sent
	KindHeld                        // the contact set up a new device: the user decides before anything is sent
	KindBlocked                     // the contact is blocked
	KindUnreachable                 // nobody answered; trying again later may help
	KindInternal                    // a fault of this program or its disk
)

// String returns the kind as the local API spells it.
func (k Kind) String() string {
	switch k {
	case KindInvalid:
		return "invalid"
	case KindNotFound:
		return "not_found"
	case KindAmbiguous:
		return "ambiguous"
	case KindExists:
		return "exists"
	case KindKeyChanged:
		return "key_changed"
	case KindHeld:
		return "held"
	case KindBlocked:
		return "blocked"
	case KindUnreachable:
		return "unreachable"
	case KindInternal:
		return "internal"
	}
	return "unknown"
}

// An Error is an answer to the user that is not the one hoped for.
type Error struct {
	Kind Kind
	Msg  string // what happened and to what, one plain sentence without a period
	Hint string // what to do about it, or empty
}

// Error returns the message without the hint.
func (e *Error) Error() string { return e.Msg }
