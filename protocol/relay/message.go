package relay

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// ErrRequest means that a request is not acceptable to any relay. Answer
// RELAY_STATUS_MALFORMED.
var ErrRequest = errors.New("relay: malformed request")

// ErrTooBig means that a request carries more than its place takes. Answer
// RELAY_STATUS_TOO_BIG.
var ErrTooBig = errors.New("relay: too big")

// ErrAnswer means that an answer is not one to its request. Close the stream,
// since requests and answers may have come out of step, and count it against
// the relay.
var ErrAnswer = errors.New("relay: malformed answer")

// ErrMailbox means that a mailbox is malformed. Go on without it.
var ErrMailbox = errors.New("relay: malformed mailbox")

// Bounds of numbers from outside. Times beyond the year 36812 and IDs that no
// clock reaches would leave no room for later ones.
const (
	maxTime = 1 << 40 // unix seconds
	maxID   = 1 << 62 // of an entry
)

func validTime(t int64) bool { return t > 0 && t < maxTime }

// A check collects the first thing that is wrong with a message.
type check struct {
	kind error
	err  error
}

func (c *check) that(ok bool, what string) {
	if !ok && c.err == nil {
		c.err = fmt.Errorf("%w: %s", c.kind, what)
	}
}

func (c *check) hash(b []byte, what string) { c.that(len(b) == sha256.Size, what) }

// ParseRequest returns the request that b holds, at most
// [protocol.MaxRelayRequest] bytes. Every field has a length that its place
// allows (SPEC §13.4), so that a conversion to an array does not panic; whether
// the sender may do what it asks is still to be judged. The error wraps
// [ErrRequest] or [ErrTooBig].
func ParseRequest(b []byte) (*wire.RelayRequest, error) {
	r := new(wire.RelayRequest)
	if err := wire.Parse(b, protocol.MaxRelayRequest, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	c := check{kind: ErrRequest}
	switch m := r.Command.(type) {
	case *wire.RelayRequest_Info:
	case *wire.RelayRequest_Claim: // by ParseClaim
	case *wire.RelayRequest_Renew:
		c.that(len(m.Renew.Queues) > 0 && len(m.Renew.Queues) <= protocol.MaxClaim, "number of queues")
		for _, q := range m.Renew.Queues {
			c.hash(q, "queue")
		}
		c.that(validTime(m.Renew.Expires), "expires")
	case *wire.RelayRequest_SetAccess:
		c.hash(m.SetAccess.Queue, "queue")
		c.that(len(m.SetAccess.Tokens) <= protocol.MaxTokens, "number of tokens")
		for _, t := range m.SetAccess.Tokens {
			c.hash(t, "token")
		}
		if len(m.SetAccess.Capability) > 0 {
			c.hash(m.SetAccess.Capability, "capability")
			c.that(len(m.SetAccess.Tokens) == 0, "both a capability and tokens")
		}
	case *wire.RelayRequest_Drop:
		c.hash(m.Drop.Queue, "queue")
	case *wire.RelayRequest_Deposit:
		if len(m.Deposit.Blob) > protocol.MaxDeposit {
			return nil, ErrTooBig
		}
		c.hash(m.Deposit.Queue, "queue")
		c.that(len(m.Deposit.Blob) > 0, "no blob")
		c.that(validTime(m.Deposit.Expires), "expires")
		switch a := m.Deposit.Admit.(type) {
		case *wire.RelayDeposit_Capability:
			c.that(len(a.Capability) == CapabilitySize, "capability")
		case *wire.RelayDeposit_Token:
			c.hash(a.Token, "token")
		case *wire.RelayDeposit_Work:
		default:
			c.that(false, "nothing that admits it")
		}
	case *wire.RelayRequest_Poll:
		c.that(m.Poll.Limit > 0 && m.Poll.Limit <= protocol.MaxPoll, "limit")
		c.that(float64(m.Poll.Wait) <= protocol.PollWait.Seconds(), "wait")
		c.that(len(m.Poll.Cursors) <= protocol.MaxCursors, "number of cursors")
		for _, q := range m.Poll.Cursors {
			c.hash(q.Queue, "queue")
		}
	case *wire.RelayRequest_Delete:
		ids := 0
		for _, d := range m.Delete.Deletions {
			c.hash(d.Queue, "queue")
			c.that(len(d.Ids) > 0, "no ID")
			ids += len(d.Ids)
		}
		c.that(ids > 0 && ids <= protocol.MaxDelete, "number of IDs")
	case *wire.RelayRequest_PutKeys:
		c.hash(m.PutKeys.Queue, "queue")
		c.hash(m.PutKeys.Pool, "pool")
		c.that(len(m.PutKeys.Keys) <= protocol.MaxPutKeys, "number of keys")
		for _, k := range m.PutKeys.Keys {
			c.that(len(k) == protocol.KeyBlob, "key")
		}
		c.that(validTime(m.PutKeys.Expires), "expires")
	case *wire.RelayRequest_TakeKey:
		c.hash(m.TakeKey.Queue, "queue")
		c.hash(m.TakeKey.Pool, "pool")
		switch a := m.TakeKey.Admit.(type) {
		case *wire.RelayTakeKey_Token:
			c.hash(a.Token, "token")
		case *wire.RelayTakeKey_Work:
			c.that(len(a.Work.GetSalt()) == 16, "salt")
			c.that(validTime(a.Work.GetExpires()), "expires")
		default:
			c.that(false, "nothing that admits it")
		}
	case *wire.RelayRequest_CountKeys:
		c.hash(m.CountKeys.Queue, "queue")
		c.hash(m.CountKeys.Pool, "pool")
	case *wire.RelayRequest_PutRecords:
		c.hash(m.PutRecords.Queue, "queue")
		c.that(len(m.PutRecords.Records) <= protocol.MaxPutRecords, "number of records")
		for _, x := range m.PutRecords.Records {
			c.that(len(x) > 0 && len(x) <= protocol.MaxRecord, "record")
		}
	case *wire.RelayRequest_PutBlob:
		c.hash(m.PutBlob.Queue, "queue")
		c.hash(m.PutBlob.Handle, "handle")
		c.that(m.PutBlob.Count <= protocol.MaxBlobChunks && m.PutBlob.Index < m.PutBlob.Count, "index")
		c.that(len(m.PutBlob.Chunk) == protocol.BlobChunk, "chunk")
		c.that(validTime(m.PutBlob.Expires), "expires")
	case *wire.RelayRequest_GetBlob:
		c.hash(m.GetBlob.Handle, "handle")
		c.that(m.GetBlob.Index < protocol.MaxBlobChunks, "index")
	case *wire.RelayRequest_DropBlob:
		c.hash(m.DropBlob.Queue, "queue")
		c.hash(m.DropBlob.Handle, "handle")
	case *wire.RelayRequest_DialBack:
		c.that(len(m.DialBack.Addrs) > 0 && len(m.DialBack.Addrs) <= protocol.MaxAddrs, "number of addresses")
		for _, a := range m.DialBack.Addrs {
			c.that(len(a) > 0 && len(a) <= protocol.MaxAddr, "address")
		}
	default:
		c.that(false, "no command that is known here")
	}
	if c.err != nil {
		return nil, c.err
	}
	return r, nil
}

// A Claim is a request to make a queue or to attach queues: what it names, and
// the proofs for it.
type Claim struct {
	Create  *wire.RelayCreate // nil: attach
	Readers []Reader          // one if it creates
	body    []byte
	proofs  [][]byte
}

// ParseClaim returns the claim that w holds, or an error that wraps
// [ErrRequest]. The reader key of a queue to be made has passed strict import.
// Those to be attached have not: that is done once, when the queue is made, and
// the queue's ID is the hash of the key that passed. Look the queue up first;
// only someone who knows the reader key of an existing queue can then make a
// relay verify a signature.
func ParseClaim(w *wire.RelayClaim) (*Claim, error) {
	var body wire.RelayClaimBody
	if err := wire.Parse(w.GetBody(), protocol.MaxRelayRequest, &body); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	c := check{kind: ErrRequest}
	claim := &Claim{body: w.GetBody(), proofs: w.GetProofs()}
	var readers [][]byte
	switch m := body.Claim.(type) {
	case *wire.RelayClaimBody_Create:
		claim.Create = m.Create
		readers = [][]byte{m.Create.Reader}
		c.that(validTime(m.Create.Expires), "expires")
		switch m.Create.Kind {
		case wire.QueueKind_QUEUE_KIND_PAIRWISE:
			c.hash(m.Create.Capability, "capability")
			c.that(m.Create.Closes == 0, "a pairwise queue that closes")
		case wire.QueueKind_QUEUE_KIND_BOX:
			c.that(len(m.Create.Capability) == 0, "a contact box with a capability")
			c.that(m.Create.Closes == 0, "a contact box that closes")
		case wire.QueueKind_QUEUE_KIND_LOG:
			c.hash(m.Create.Capability, "capability")
			c.that(m.Create.Closes > 0 && m.Create.Closes <= m.Create.Expires, "closes")
		default:
			c.that(false, "kind")
		}
		c.that(len(m.Create.Admission) == 0 || len(m.Create.Admission) == AdmissionSize, "admission")
		_, err := ParseReader(m.Create.Reader)
		c.that(err == nil, "reader key")
	case *wire.RelayClaimBody_Attach:
		readers = m.Attach.Readers
		c.that(len(readers) > 0 && len(readers) <= protocol.MaxClaim, "number of reader keys")
	default:
		c.that(false, "no claim that is known here")
	}
	c.that(len(claim.proofs) == len(readers), "number of proofs")
	for _, p := range claim.proofs {
		c.that(len(p) == ProofSize, "proof")
	}
	for _, r := range readers {
		c.that(len(r) == identity.KeySize, "reader key")
	}
	if c.err != nil {
		return nil, c.err
	}
	seen := make(map[Reader]bool, len(readers))
	for _, r := range readers {
		k := Reader(r)
		if seen[k] {
			return nil, fmt.Errorf("%w: a reader key twice", ErrRequest)
		}
		seen[k] = true
		claim.Readers = append(claim.Readers, k)
	}
	return claim, nil
}

// Check returns nil if the proof of reader i verifies, and [ErrProof]
// otherwise. relay is the checking relay's own key, client that of the
// connection.
func (c *Claim) Check(i int, relay, client identity.Transport) error {
	return c.Readers[i].CheckProof(relay, client, c.body, c.proofs[i])
}

// NewCreate returns the claim that makes a queue of k's, which proves that the
// client has k. m says what is wanted; its reader key is filled in.
func NewCreate(k *ReaderKey, m *wire.RelayCreate, relay, client identity.Transport) *wire.RelayClaim {
	r := k.Reader()
	m.Reader = r[:]
	body := wire.Marshal(&wire.RelayClaimBody{Claim: &wire.RelayClaimBody_Create{Create: m}})
	return &wire.RelayClaim{Body: body, Proofs: [][]byte{k.Prove(relay, client, body)}}
}

// NewAttach returns the claim that attaches the queues of keys, 1 to
// [protocol.MaxClaim] of them, none twice.
func NewAttach(keys []*ReaderKey, relay, client identity.Transport) *wire.RelayClaim {
	m := new(wire.RelayAttach)
	for _, k := range keys {
		r := k.Reader()
		m.Readers = append(m.Readers, r[:])
	}
	body := wire.Marshal(&wire.RelayClaimBody{Claim: &wire.RelayClaimBody_Attach{Attach: m}})
	c := &wire.RelayClaim{Body: body}
	for _, k := range keys {
		c.Proofs = append(c.Proofs, k.Prove(relay, client, body))
	}
	return c
}

// ParseAnswer returns the answer to the request to that b holds, at most
// [protocol.MaxFrame] bytes. It has the result that the request asks for,
// exactly when the status is OK, with as many parts, and every field has a
// length that its place allows; entries are above the cursors that were given
// and ascend. The relay may still lie. A status that is not known here is
// returned as it is: treat it as BUSY. The error wraps [ErrAnswer].
func ParseAnswer(b []byte, to *wire.RelayRequest) (*wire.RelayAnswer, error) {
	a := new(wire.RelayAnswer)
	if err := wire.Parse(b, protocol.MaxFrame, a); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	c := check{kind: ErrAnswer}
	switch a.Status {
	case wire.RelayStatus_RELAY_STATUS_UNSPECIFIED:
		c.that(false, "no status")
	case wire.RelayStatus_RELAY_STATUS_OK:
		c.result(a, to)
	case wire.RelayStatus_RELAY_STATUS_WORK:
		bits := a.GetDemand().GetBits()
		c.that(bits > 0 && bits <= protocol.MaxWork, "demand")
	default:
		c.that(a.Result == nil, "a result without success")
	}
	if c.err != nil {
		return nil, c.err
	}
	return a, nil
}

// result checks the result of an answer that says OK.
func (c *check) result(a *wire.RelayAnswer, to *wire.RelayRequest) {
	const wrong = "another result than was asked for"
	switch m := to.Command.(type) {
	case *wire.RelayRequest_Info:
		i := a.GetInfo()
		c.that(i != nil, wrong)
		c.that(validTime(i.GetTime()), "time")
		c.that(len(i.GetStore()) == StoreIDSize, "store")
		c.that(len(i.GetKinds()) <= 8 && len(i.GetQuotas()) <= 8 && len(i.GetSizes()) <= 16, "number of kinds or sizes")
		last := uint32(0)
		for _, s := range i.GetSizes() {
			c.that(s > last && s <= protocol.MaxDeposit, "size")
			last = s
		}
		c.that(i.GetDepositBits() <= protocol.MaxWork && i.GetKeyBits() <= protocol.MaxWork, "work")
		c.that(i.GetDraining() == 0 || validTime(i.GetDraining()), "draining")
	case *wire.RelayRequest_Claim:
		claim, err := ParseClaim(m.Claim)
		c.that(err == nil && a.GetQueues() != nil && len(a.GetQueues().GetQueues()) == len(claim.Readers), wrong)
		c.queues(a.GetQueues())
	case *wire.RelayRequest_Renew:
		c.that(a.GetQueues() != nil && len(a.GetQueues().GetQueues()) == len(m.Renew.Queues), wrong)
		c.queues(a.GetQueues())
	case *wire.RelayRequest_Deposit:
		c.that(a.GetReceipt() != nil, wrong)
		_, err := ReceiptFromWire(a.GetReceipt())
		c.that(err == nil, "receipt")
	case *wire.RelayRequest_Poll:
		c.that(a.GetEntries() != nil && len(a.GetEntries().GetEntries()) <= int(m.Poll.Limit), wrong)
		c.entries(a.GetEntries().GetEntries(), m.Poll)
	case *wire.RelayRequest_TakeKey:
		c.that(len(a.GetKey().GetKey()) == protocol.KeyBlob, wrong)
	case *wire.RelayRequest_PutKeys, *wire.RelayRequest_CountKeys, *wire.RelayRequest_PutRecords:
		c.that(a.GetCount() != nil, wrong)
	case *wire.RelayRequest_GetBlob:
		n := a.GetChunk().GetCount()
		c.that(len(a.GetChunk().GetChunk()) == protocol.BlobChunk, wrong)
		c.that(n <= protocol.MaxBlobChunks && m.GetBlob.Index < n, "number of chunks")
	case *wire.RelayRequest_DialBack:
		c.that(a.GetDialed() != nil && len(a.GetDialed().GetReached()) == len(m.DialBack.Addrs), wrong)
	default:
		c.that(a.Result == nil, wrong)
	}
}

func (c *check) queues(qs *wire.RelayQueues) {
	for _, q := range qs.GetQueues() {
		c.that(!q.Known || validTime(q.Expires), "expires")
	}
}

func (c *check) entries(es []*wire.RelayEntry, p *wire.RelayPoll) {
	own := map[QueueID]uint64{}
	for _, q := range p.Cursors {
		own[QueueID(q.Queue)] = q.After
	}
	last := uint64(0)
	for _, e := range es {
		c.hash(e.Queue, "queue")
		c.that(e.Id > last && e.Id <= maxID, "ID")
		c.that(len(e.Blob) > 0 && len(e.Blob) <= protocol.MaxDeposit, "blob")
		if c.err != nil {
			return
		}
		last = e.Id
		after, ok := own[QueueID(e.Queue)]
		if !ok {
			after = p.After
		}
		c.that(e.Id > after, "an entry from before the cursor")
	}
}

// A Mailbox says where a queue is (SPEC §13.10). In a record it is a contact
// box; inside a session a pairwise queue, with the capability that the relay
// knows the hash of.
type Mailbox struct {
	Relay      identity.Endpoint // with at least one address
	Queue      QueueID
	Capability *Capability // nil: a contact box
}

// Marshal returns the mailbox's bytes, or an error if a relay's endpoint is
// impossible or too long for [protocol.MaxMailbox].
func (m Mailbox) Marshal() ([]byte, error) {
	w := &wire.Mailbox{Relay: identity.EndpointsWire([]identity.Endpoint{m.Relay})[0], Queue: m.Queue[:]}
	if m.Capability != nil {
		w.Capability = m.Capability.Bytes()
	}
	b := wire.Marshal(w)
	if _, err := ParseMailbox(b); err != nil {
		return nil, err
	}
	return b, nil
}

// ParseMailbox returns the mailbox that b holds, or an error that wraps
// [ErrMailbox].
func ParseMailbox(b []byte) (Mailbox, error) {
	var w wire.Mailbox
	if err := wire.Parse(b, protocol.MaxMailbox, &w); err != nil {
		return Mailbox{}, fmt.Errorf("%w: %w", ErrMailbox, err)
	}
	es, err := identity.EndpointsFromWire([]*wire.Endpoint{w.Relay})
	switch {
	case err != nil:
		return Mailbox{}, fmt.Errorf("%w: %w", ErrMailbox, err)
	case len(es[0].Addrs) == 0:
		return Mailbox{}, fmt.Errorf("%w: no address", ErrMailbox)
	case len(w.Queue) != QueueIDSize:
		return Mailbox{}, fmt.Errorf("%w: queue", ErrMailbox)
	}
	m := Mailbox{Relay: es[0], Queue: QueueID(w.Queue)}
	if len(w.Capability) > 0 {
		c, err := CapabilityFrom(w.Capability)
		if err != nil {
			return Mailbox{}, fmt.Errorf("%w: %w", ErrMailbox, err)
		}
		m.Capability = &c
	}
	return m, nil
}
