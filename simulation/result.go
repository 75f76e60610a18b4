package simulation

import (
	"fmt"
	"math"
	"time"
)

// A Result is what a run leaves. All times are offsets from the start of
// virtual time, unless their comment says otherwise.
type Result struct {
	Manifest  Manifest
	Nodes     []NodeResult
	Messages  []Message // in the order in which they were accepted
	Faults    []Fault   // in the order in which they began
	Lookups   []Lookup  // in the order in which they ended
	Traffic   []Traffic // by node and protocol
	Usage     []Usage   // what the run itself took, about once a second of real time
	Sightings []Sighting
	Pairs     []Pair        // of friends, by index; only if somebody is behind a NAT
	Relays    []RelayResult // in the order of the config
	Envelopes Envelopes
	Metrics   []Metric // what the scenario measured itself, in the order reported
	Violation *Violation
}

// A Manifest says what was run, and with what, so that somebody else can run
// it again.
type Manifest struct {
	Scenario   string            `json:"scenario"`
	Source     string            `json:"source,omitempty"` // the scenario file, whole
	Seed       uint64            `json:"seed"`
	Params     map[string]string `json:"params,omitempty"`   // as set from outside
	Defaults   map[string]string `json:"defaults,omitempty"` // the values of the other parameters
	Nodes      int               `json:"nodes"`
	Store      string            `json:"store"`    // memory or badger
	Face       string            `json:"face"`     // stream, packet or both
	Security   string            `json:"security"` // of streams plain or noise, of packets tls
	Exact      bool              `json:"exact"`
	TraceHash  string            `json:"trace_hash,omitempty"` // exact mode: SHA-256 over everything that happened, hexadecimal
	Version    string            `json:"version"`              // of this program
	Go         string            `json:"go"`
	OS         string            `json:"os"`
	Arch       string            `json:"arch"`
	Epoch      time.Time         `json:"epoch"`       // when virtual time began
	Simulated  Seconds           `json:"simulated_s"` // how long virtual time ran
	Wall       Seconds           `json:"wall_s"`      // real time
	CPU        Seconds           `json:"cpu_s"`       // of the process
	PeakMemory int64             `json:"peak_memory_bytes"`
	Repeat     string            `json:"repeat"`  // the command that repeats the run
	Outcome    string            `json:"outcome"` // held, violated, failed or interrupted
	Error      string            `json:"error,omitempty"`
	Pending    int               `json:"pending,omitempty"` // accepted and not confirmed at the end: of these a run that held has lost none so far
}

// Seconds is a duration that is written as a number of seconds.
type Seconds time.Duration

// MarshalJSON implements [json.Marshaler].
func (s Seconds) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%.9f", time.Duration(s).Seconds()), nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (s *Seconds) UnmarshalJSON(b []byte) error {
	var f float64
	if _, err := fmt.Sscanf(string(b), "%g", &f); err != nil {
		return fmt.Errorf("simulation: %q is not a number of seconds", b)
	}
	*s = Seconds(math.Round(f * float64(time.Second)))
	return nil
}

// A NodeResult is one node of a world.
type NodeResult struct {
	Name    string
	Region  string
	Role    string // peer, sybil, spammer, …
	NAT     string // none, or its kind
	Starts  int
	Crashes int
	Up      time.Duration // how long it ran
}

// A RelayResult is one relay of a world. Its receipts are Honoured, Broken, Void,
// Unread or Waiting.
type RelayResult struct {
	Name    string
	Region  string
	Bad     string // what was wrong with it; empty: nothing
	Starts  int
	Crashes int
	Lost    int           // disks
	Up      time.Duration // how long it ran

	Receipts int // handed out, one for each blob in a queue
	Honoured int // the reader got what they were for
	Broken   int // the reader did not, though it was there in time and had not deleted it
	Void     int // the disk was lost before the reader came
	Unread   int // expired before the reader came, or the reader gave the queue up
	Waiting  int // for the reader, at the end
	Repeated int // entries that a reader was shown again after deleting them
	Refused  int // deposits without a receipt

	KeysToTokens int // one-time keys given for invite tokens
	KeysToWork   int // for work
	KeysDenied   int // requests that got none
	KeysRepeated int // given before, to somebody else

	Sent, Received int64 // bytes on the network, headers included
}

// A Pair is two nodes whose people are friends, and how the two were connected.
type Pair struct {
	A, B    int           // indices of Nodes; A is the lower
	Relayed time.Duration // first connection through a circuit; negative if there was none
	Direct  time.Duration // first connection of their own; likewise
}

// A Message is one text that a node accepted from its user.
type Message struct {
	ID        string
	From, To  int // indices of Nodes
	Size      int // bytes of text
	Accepted  time.Duration
	Shown     time.Duration // at the recipient; negative while it was not
	Confirmed time.Duration // the sender learnt of it; negative while it has not
}

// Envelopes counts what the sessions of all nodes did.
type Envelopes struct {
	Sealed   int // messages sealed; more than contents if a session was renewed
	Opened   int // opened for the first time
	Repeated int // arrived again after they had been opened
	Refused  int // did not open
}

// A Fault is something bad that happened to the network or to a node.
type Fault struct {
	Kind     string        // crash, stop, partition, loss, skew, …
	What     string        // in words: which node, how much
	From, To time.Duration // To is negative if it lasted to the end
}

// A Lookup is one search for a contact's record in the DHT.
type Lookup struct {
	By       int           // index of Nodes
	At, Took time.Duration // when it ended, and how long it took
	Hops     int           // longest chain of referrals that was followed
	Asked    int           // peers asked
	Found    bool
	Stale    bool // only records below the newest known were offered
}

// Traffic is what one node sent and received over one protocol.
type Traffic struct {
	Node     int    // index of Nodes
	Protocol string // libp2p protocol ID
	Sent     int64  // bytes
	Received int64  // bytes
}

// A Usage is a sample of what the run takes.
type Usage struct {
	At         time.Duration // virtual
	Wall, CPU  time.Duration // real, since the start
	Memory     int64         // resident bytes
	Goroutines int
}

// A Sighting says how much one kind of observer could see.
type Sighting struct {
	Observer string // "the network of a node", "a DHT peer", "a contact"
	Sees     string // what, in words
	Median   float64
	Most     float64
	Unit     string
}

// A Metric is a number that a scenario reports under a name of its own.
type Metric struct {
	Name  string // snake_case, as a column
	Value float64
	Unit  string
	Goal  string // in words, or empty
}

// An Event is one line of the log of a run.
type Event struct {
	At   time.Duration
	Type string // start, stop, crash, disk lost, broken receipt, partition, heal, link, skew, accepted, shown, confirmed, failed, lookup, violation, note
	Node string // name, or empty
	Peer string // name of the other side, or empty
	ID   string // message, or empty
	Text string // details, or empty; never what somebody wrote
}

// A Violation is a promise that was not kept.
type Violation struct {
	Oracle string        // which: lost, twice, order, nonce, forged, receipt, state, goroutine
	What   string        // what happened, one sentence
	At     time.Duration // when it was noticed
	Repeat string        // the command that repeats it
}

// Error implements error.
func (v *Violation) Error() string {
	return fmt.Sprintf("simulation: oracle %q at %v: %s; repeat it with: %s", v.Oracle, v.At, v.What, v.Repeat)
}
