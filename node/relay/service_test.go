package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"google.golang.org/protobuf/proto"

	"starling/node/relay/spool"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// A clock stands still until it is moved.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

// start is the tests' first moment.
var start = time.Date(2027, 3, 5, 12, 0, 0, 0, time.UTC)

// A world is a relay on disks that survive it, spoken to without a network.
type world struct {
	t     testing.TB
	clock *clock
	cfg   Config
	rows  *store.Disk
	db    *store.DB
	*Service
}

// noHost is a host for relays that are spoken to directly: nothing is asked of
// it.
type noHost struct{ host.Host }

func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, clock: &clock{start}, rows: store.NewDisk()}
	w.cfg = Config{
		Host: noHost{}, Key: key, Disk: spool.NewDisk(1), Quota: 64 << 20, Now: w.clock.now,
		Limits: Limits{WorkBits: 4},
	}
	if change != nil {
		change(&w.cfg)
	}
	w.open()
	t.Cleanup(w.close)
	return w
}

func (w *world) open() {
	w.t.Helper()
	db, err := store.OpenMemory(store.Config{Now: w.clock.now}, w.rows)
	if err != nil {
		w.t.Fatal(err)
	}
	w.db, w.cfg.Store = db, db
	if w.Service, err = New(w.cfg); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	if err := w.Service.Close(); err != nil && !errors.Is(err, spool.ErrClosed) {
		w.t.Errorf("closing: %v", err)
	}
	if err := w.db.Close(); err != nil && !errors.Is(err, store.ErrClosed) {
		w.t.Errorf("closing the store: %v", err)
	}
}

func (w *world) reopen() {
	w.t.Helper()
	w.close()
	w.open()
}

// A peer is a client with its stream, without a network.
type caller struct {
	w *world
	*client
}

func (w *world) caller() *caller {
	var key identity.Transport
	rand.Read(key[:])
	return &caller{w, &client{
		s: w.Service, ctx: context.Background(), key: key, block: w.others,
		attached: map[relay.QueueID]*queue{}, wake: make(chan struct{}, 1),
	}}
}

// ask sends a request and returns the answer, which must be one to it.
func (c *caller) ask(req *wire.RelayRequest) *wire.RelayAnswer {
	c.w.t.Helper()
	frame := wire.Marshal(req)
	c.endPoll()
	answer, err := c.handle(frame, 0)
	if err != nil {
		c.w.t.Fatalf("%T: %v", req.Command, err)
	}
	a, held := answer.wait()
	c.give(held)
	parsed, err := relay.ParseAnswer(wire.Marshal(a), req)
	if err != nil {
		c.w.t.Fatalf("answer %v to %T: %v", a.Status, req.Command, err)
	}
	return parsed
}

// want sends a request and checks the status of the answer.
func (c *caller) want(status wire.RelayStatus, req *wire.RelayRequest) *wire.RelayAnswer {
	c.w.t.Helper()
	a := c.ask(req)
	if a.Status != status {
		c.w.t.Errorf("%T: %v, want %v", req.Command, a.Status, status)
	}
	return a
}

const (
	isOK        = wire.RelayStatus_RELAY_STATUS_OK
	isQuota     = wire.RelayStatus_RELAY_STATUS_QUOTA
	isRefused   = wire.RelayStatus_RELAY_STATUS_REFUSED
	isBusy      = wire.RelayStatus_RELAY_STATUS_BUSY
	isMalformed = wire.RelayStatus_RELAY_STATUS_MALFORMED
	isTooBig    = wire.RelayStatus_RELAY_STATUS_TOO_BIG
	isDraining  = wire.RelayStatus_RELAY_STATUS_DRAINING
	isWork      = wire.RelayStatus_RELAY_STATUS_WORK
	isEmpty     = wire.RelayStatus_RELAY_STATUS_EMPTY

	pairwise = wire.QueueKind_QUEUE_KIND_PAIRWISE
	box      = wire.QueueKind_QUEUE_KIND_BOX
	logQueue = wire.QueueKind_QUEUE_KIND_LOG
)

func newReader(t testing.TB) *relay.ReaderKey {
	t.Helper()
	secret, err := identity.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return relay.NewReaderKey(secret)
}

func newCapability(t testing.TB) relay.Capability {
	t.Helper()
	c, err := relay.NewCapability(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A made is a queue as its reader and its depositors know it.
type made struct {
	key        *relay.ReaderKey
	id         relay.QueueID
	capability relay.Capability
	create     *wire.RelayCreate
}

func (w *world) makeable(kind wire.QueueKind) *made {
	k := newReader(w.t)
	m := &made{key: k, id: k.Reader().Queue(), capability: newCapability(w.t)}
	m.create = &wire.RelayCreate{Kind: kind, Expires: w.clock.at.Add(10 * 24 * time.Hour).Unix()}
	if kind != box {
		h := m.capability.Hash(w.self, m.id)
		m.create.Capability = h[:]
	}
	if kind == logQueue {
		m.create.Closes = w.clock.at.Add(24 * time.Hour).Unix()
	}
	return m
}

func claim(c *wire.RelayClaim) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_Claim{Claim: c}}
}

func (c *caller) createRequest(m *made) *wire.RelayRequest {
	return claim(relay.NewCreate(m.key, m.create, c.w.self, c.key))
}

func (c *caller) attachRequest(ms ...*made) *wire.RelayRequest {
	var keys []*relay.ReaderKey
	for _, m := range ms {
		keys = append(keys, m.key)
	}
	return claim(relay.NewAttach(keys, c.w.self, c.key))
}

// queue makes a queue.
func (c *caller) queue(kind wire.QueueKind) *made {
	c.w.t.Helper()
	m := c.w.makeable(kind)
	c.want(isOK, c.createRequest(m))
	return m
}

// admit lets the bearer of a token into a box and returns its hash.
func (c *caller) admit(m *made) []byte {
	c.w.t.Helper()
	hash := make([]byte, sha256.Size)
	rand.Read(hash)
	c.want(isOK, setAccess(&wire.RelaySetAccess{Queue: m.id[:], Tokens: [][]byte{hash}}))
	return hash
}

func setAccess(m *wire.RelaySetAccess) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_SetAccess{SetAccess: m}}
}

func blob(size int) []byte {
	b := make([]byte, size)
	rand.Read(b)
	return b
}

// deposit is a request that m's capability admits.
func (w *world) deposit(m *made, size int) *wire.RelayRequest {
	return depositRequest(&wire.RelayDeposit{
		Queue: m.id[:], Blob: blob(size), Expires: w.clock.at.Add(time.Hour).Unix(),
		Admit: &wire.RelayDeposit_Capability{Capability: m.capability.Bytes()},
	})
}

func depositRequest(d *wire.RelayDeposit) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_Deposit{Deposit: d}}
}

// tokenDeposit is a request that a token's hash admits.
func (w *world) tokenDeposit(m *made, hash []byte) *wire.RelayRequest {
	return depositRequest(&wire.RelayDeposit{
		Queue: m.id[:], Blob: blob(2160), Expires: w.clock.at.Add(time.Hour).Unix(),
		Admit: &wire.RelayDeposit_Token{Token: hash},
	})
}

// workDeposit is a request that work of so many bits admits.
func (w *world) workDeposit(m *made, bits int) *wire.RelayRequest {
	d := &wire.RelayDeposit{Queue: m.id[:], Blob: blob(2160), Expires: w.clock.at.Add(time.Hour).Unix()}
	stamp := relay.DepositStamp(w.self, m.id, sha256.Sum256(d.Blob), d.Expires)
	nonce, err := relay.Work(context.Background(), stamp, bits)
	if err != nil {
		w.t.Fatal(err)
	}
	d.Admit = &wire.RelayDeposit_Work{Work: nonce}
	return depositRequest(d)
}

func pollRequest(limit uint32) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_Poll{Poll: &wire.RelayPoll{Limit: limit}}}
}

func (c *caller) poll256() []*wire.RelayEntry {
	c.w.t.Helper()
	return c.want(isOK, pollRequest(protocol.MaxPoll)).GetEntries().GetEntries()
}

func deletion(id relay.QueueID, ids ...uint64) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_Delete{Delete: &wire.RelayDelete{
		Deletions: []*wire.RelayDeletion{{Queue: id[:], Ids: ids}},
	}}}
}

func dropRequest(id relay.QueueID) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_Drop{Drop: &wire.RelayDrop{Queue: id[:]}}}
}

func renewal(at time.Time, ids ...relay.QueueID) *wire.RelayRequest {
	m := &wire.RelayRenew{Expires: at.Unix()}
	for _, id := range ids {
		m.Queues = append(m.Queues, id[:])
	}
	return &wire.RelayRequest{Command: &wire.RelayRequest_Renew{Renew: m}}
}

var infoRequest = &wire.RelayRequest{Command: &wire.RelayRequest_Info{Info: &wire.RelayInfoRequest{}}}

// wantReceipt checks that a deposit's answer proves it.
func (w *world) wantReceipt(req *wire.RelayRequest, a *wire.RelayAnswer) {
	w.t.Helper()
	d := req.GetDeposit()
	r, err := relay.ReceiptFromWire(a.GetReceipt())
	if err == nil {
		err = r.Verify(w.self, relay.NewLeaf(relay.QueueID(d.Queue), sha256.Sum256(d.Blob), d.Expires))
	}
	if err != nil {
		w.t.Errorf("receipt: %v", err)
	}
}

func TestMessageGoesThroughTheRelay(t *testing.T) {
	w := newWorld(t, nil)
	reader, sender := w.caller(), w.caller()
	m := reader.queue(pairwise)
	var sent [][]byte
	for _, size := range []int{2160, 5232, 17520, 66672} {
		req := w.deposit(m, size)
		w.wantReceipt(req, sender.want(isOK, req))
		sent = append(sent, req.GetDeposit().Blob)
	}
	got := reader.poll256()
	if len(got) != len(sent) {
		t.Fatalf("%d entries, want %d", len(got), len(sent))
	}
	var ids []uint64
	for i, e := range got {
		if !bytes.Equal(e.Blob, sent[i]) || relay.QueueID(e.Queue) != m.id {
			t.Errorf("entry %d is another one", i)
		}
		ids = append(ids, e.Id)
	}
	reader.want(isOK, deletion(m.id, ids...))
	if got := reader.poll256(); len(got) != 0 {
		t.Errorf("%d entries after their deletion", len(got))
	}
	if s := w.Status(); s.Queues != 1 || s.Spool.Entries != 1 { // one is the marker
		t.Errorf("status %+v, want one queue and no message", s)
	}
}

func TestInfoSaysWhatTheRelayIs(t *testing.T) {
	w := newWorld(t, nil)
	in := w.caller().want(isOK, infoRequest).GetInfo()
	if in.Time != start.Unix() || in.Draining != 0 || in.Admission || in.DepositBits != 4 || in.KeyBits != 4 {
		t.Errorf("info %v", in)
	}
	if len(in.Sizes) != 4 || len(in.Kinds) != 3 || len(in.Quotas) != 3 {
		t.Errorf("info %v", in)
	}
	before := in.Store
	w.reopen()
	if in := w.caller().want(isOK, infoRequest).GetInfo(); !bytes.Equal(in.Store, before) {
		t.Error("the store ID changed with a restart")
	}
	w.close()
	w.cfg.Disk = spool.NewDisk(2)
	w.open()
	if in := w.caller().want(isOK, infoRequest).GetInfo(); bytes.Equal(in.Store, before) {
		t.Error("the store ID is the same although the spool was lost")
	}
}

// Each row is one fault in a request that would be good without it, and the
// status that SPEC §13.4 gives it.
func TestRefusals(t *testing.T) {
	type scene struct {
		w              *world
		owner, other   *caller
		pair, box, log *made
		token, pool    []byte
	}
	change := func(req *wire.RelayRequest, fn func(*wire.RelayDeposit)) *wire.RelayRequest {
		req = proto.CloneOf(req)
		fn(req.GetDeposit())
		return req
	}
	at := func(d time.Duration) int64 { return start.Add(d).Unix() }
	tests := []struct {
		name   string
		status wire.RelayStatus
		run    func(s *scene) (*caller, *wire.RelayRequest)
	}{
		{"deposit of another size", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, s.w.deposit(s.pair, 2161)
		}},
		{"deposit of another size in no queue", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, s.w.deposit(s.w.makeable(pairwise), 2161)
		}},
		{"deposit of the longest size in a box", isTooBig, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, change(s.w.tokenDeposit(s.box, s.token), func(d *wire.RelayDeposit) { d.Blob = blob(66672) })
		}},
		{"deposit in no queue", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, s.w.deposit(s.w.makeable(pairwise), 2160)
		}},
		{"deposit with another capability", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, change(s.w.deposit(s.pair, 2160), func(d *wire.RelayDeposit) {
				d.Admit = &wire.RelayDeposit_Capability{Capability: newCapability(s.w.t).Bytes()}
			})
		}},
		{"deposit with a capability in a box", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, s.w.deposit(s.box, 2160)
		}},
		{"deposit with a token in a pairwise queue", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, s.w.tokenDeposit(s.pair, s.token)
		}},
		{"deposit with another token", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, s.w.tokenDeposit(s.box, blob(32))
		}},
		{"deposit with work in a log", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, s.w.workDeposit(s.log, 4)
		}},
		{"deposit that is over", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, change(s.w.deposit(s.pair, 2160), func(d *wire.RelayDeposit) { d.Expires = at(0) })
		}},
		{"deposit for longer than a message lives", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, change(s.w.deposit(s.pair, 2160), func(d *wire.RelayDeposit) {
				d.Expires = at(protocol.MessageLife + protocol.RelaySkew + time.Second)
			})
		}},
		{"deposit for longer than a box takes", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, change(s.w.tokenDeposit(s.box, s.token), func(d *wire.RelayDeposit) {
				d.Expires = at(protocol.BoxLife + protocol.RelaySkew + time.Second)
			})
		}},
		{"deposit without work", isWork, func(s *scene) (*caller, *wire.RelayRequest) {
			// A nonce fails with fifteen of sixteen blobs.
			for {
				req := change(s.w.workDeposit(s.box, 0), func(*wire.RelayDeposit) {})
				d := req.GetDeposit()
				if relay.CheckWork(relay.DepositStamp(s.w.self, s.box.id, sha256.Sum256(d.Blob), d.Expires), d.GetWork(), 4) != nil {
					return s.other, req
				}
			}
		}},
		{"deposit with work that was used, and read", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			req := s.w.workDeposit(s.box, 4)
			s.other.want(isOK, req)
			for _, e := range s.owner.poll256() {
				s.owner.want(isOK, deletion(s.box.id, e.Id))
			}
			return s.other, req
		}},
		{"deposit in a queue that is over", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			s.w.clock.at = start.Add(10 * 24 * time.Hour)
			return s.other, s.w.deposit(s.pair, 2160)
		}},
		{"deposit in a log that is closed", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			s.w.clock.at = start.Add(24 * time.Hour)
			return s.other, s.w.deposit(s.log, 2160)
		}},
		{"deposit in a queue that its reader closed", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			s.owner.want(isOK, setAccess(&wire.RelaySetAccess{Queue: s.pair.id[:]}))
			return s.other, s.w.deposit(s.pair, 2160)
		}},
		{"deposit with a token too often", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			for range protocol.TokenDeposits {
				s.other.want(isOK, s.w.tokenDeposit(s.box, s.token))
			}
			return s.other, s.w.tokenDeposit(s.box, s.token)
		}},
		{"deposit in a full queue", isQuota, func(s *scene) (*caller, *wire.RelayRequest) {
			for range protocol.QueueMessages {
				s.other.want(isOK, s.w.deposit(s.pair, 2160))
			}
			return s.other, s.w.deposit(s.pair, 2160)
		}},
		{"deposit with another capability in a full queue", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			for range protocol.QueueMessages {
				s.other.want(isOK, s.w.deposit(s.pair, 2160))
			}
			return s.other, change(s.w.deposit(s.pair, 2160), func(d *wire.RelayDeposit) {
				d.Admit = &wire.RelayDeposit_Capability{Capability: newCapability(s.w.t).Bytes()}
			})
		}},
		{"deposit of too many bytes", isQuota, func(s *scene) (*caller, *wire.RelayRequest) {
			for range protocol.QueueBytes / 66672 {
				s.other.want(isOK, s.w.deposit(s.pair, 66672))
			}
			return s.other, s.w.deposit(s.pair, 66672)
		}},
		{"deposit in a draining relay", isDraining, func(s *scene) (*caller, *wire.RelayRequest) {
			s.w.drain()
			return s.other, s.w.deposit(s.w.makeable(pairwise), 2160)
		}},
		{"deposit of another size in a draining relay", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			s.w.drain()
			return s.other, s.w.deposit(s.pair, 2161)
		}},
		{"create in a draining relay", isDraining, func(s *scene) (*caller, *wire.RelayRequest) {
			s.w.drain()
			return s.other, s.other.createRequest(s.w.makeable(pairwise))
		}},
		{"renew in a draining relay", isDraining, func(s *scene) (*caller, *wire.RelayRequest) {
			s.w.drain()
			return s.owner, renewal(start.Add(24*time.Hour), s.pair.id)
		}},
		{"create with the proof of another client", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, s.owner.createRequest(s.w.makeable(pairwise))
		}},
		{"create again with the proof of another client", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, s.owner.createRequest(s.pair)
		}},
		{"create for too long", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			m := s.w.makeable(pairwise)
			m.create.Expires = at(protocol.QueueLife + protocol.RelaySkew + time.Second)
			return s.other, s.other.createRequest(m)
		}},
		{"create a log for too long", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			m := s.w.makeable(logQueue)
			m.create.Expires = at(protocol.LogLife + protocol.RelaySkew + time.Second)
			return s.other, s.other.createRequest(m)
		}},
		{"create with an admission token nobody issued", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			m := s.w.makeable(pairwise)
			m.create.Admission = blob(16)
			return s.other, s.other.createRequest(m)
		}},
		{"attach with one wrong proof", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			c := relay.NewAttach([]*relay.ReaderKey{s.pair.key, s.box.key}, s.w.self, s.other.key)
			c.Proofs[1][3] ^= 1
			return s.other, claim(c)
		}},
		{"renew what is not attached", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, renewal(start.Add(time.Hour), s.pair.id)
		}},
		{"renew a log", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.owner, renewal(start.Add(time.Hour), s.log.id)
		}},
		{"renew for too long", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.owner, renewal(start.Add(protocol.QueueLife+protocol.RelaySkew+time.Second), s.pair.id)
		}},
		{"drop what is not attached", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, dropRequest(s.pair.id)
		}},
		{"drop a log", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.owner, dropRequest(s.log.id)
		}},
		{"delete what is not attached", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, deletion(s.pair.id, 1)
		}},
		{"delete in a log", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.owner, deletion(s.log.id, 1)
		}},
		{"set access to what is not attached", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, setAccess(&wire.RelaySetAccess{Queue: s.pair.id[:]})
		}},
		{"set access to a log", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.owner, setAccess(&wire.RelaySetAccess{Queue: s.log.id[:]})
		}},
		{"set tokens of a pairwise queue", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.owner, setAccess(&wire.RelaySetAccess{Queue: s.pair.id[:], Tokens: [][]byte{blob(32)}})
		}},
		{"set the capability of a box", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.owner, setAccess(&wire.RelaySetAccess{Queue: s.box.id[:], Capability: blob(32)})
		}},
		{"put keys in a pairwise queue", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.owner, putKeys(s.pair.id, s.pool, at(time.Hour), 1)
		}},
		{"put keys in what is not attached", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, putKeys(s.box.id, s.pool, at(time.Hour), 1)
		}},
		{"put keys for too long", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.owner, putKeys(s.box.id, s.pool, at(protocol.BlobLife+protocol.RelaySkew+time.Second), 1)
		}},
		{"put too many keys", isQuota, func(s *scene) (*caller, *wire.RelayRequest) {
			s.owner.want(isOK, putKeys(s.box.id, s.pool, at(time.Hour), 50))
			s.owner.want(isOK, putKeys(s.box.id, s.pool, at(time.Hour), 50))
			return s.owner, putKeys(s.box.id, s.pool, at(time.Hour), 1)
		}},
		{"take a key of another pool", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, takeByToken(s.box.id, blob(32), s.token)
		}},
		{"take a key with another token", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			s.owner.want(isOK, putKeys(s.box.id, s.pool, at(time.Hour), 5))
			return s.other, takeByToken(s.box.id, s.pool, blob(32))
		}},
		{"take keys with a token too often", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			s.owner.want(isOK, putKeys(s.box.id, s.pool, at(time.Hour), 5))
			for range protocol.TokenKeys {
				s.other.want(isOK, takeByToken(s.box.id, s.pool, s.token))
			}
			return s.other, takeByToken(s.box.id, s.pool, s.token)
		}},
		{"take a key of an empty pool", isEmpty, func(s *scene) (*caller, *wire.RelayRequest) {
			s.owner.want(isOK, putKeys(s.box.id, s.pool, at(time.Hour), 0))
			return s.other, takeByToken(s.box.id, s.pool, s.token)
		}},
		{"take a key of the reserve with work", isEmpty, func(s *scene) (*caller, *wire.RelayRequest) {
			s.owner.want(isOK, putKeys(s.box.id, s.pool, at(time.Hour), protocol.PoolReserve))
			return s.other, s.w.takeByWork(s.box.id, s.pool, 4)
		}},
		{"take a key with work from too far ahead", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			s.owner.want(isOK, putKeys(s.box.id, s.pool, at(time.Hour), 50))
			req := s.w.takeByWork(s.box.id, s.pool, 4)
			req.GetTakeKey().GetWork().Expires = at(protocol.KeyWorkLife + protocol.RelaySkew + time.Second)
			return s.other, req
		}},
		{"take a key with work that was used", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			s.owner.want(isOK, putKeys(s.box.id, s.pool, at(time.Hour), 50))
			req := s.w.takeByWork(s.box.id, s.pool, 4)
			s.other.want(isOK, req)
			return s.other, req
		}},
		{"count keys of what is not attached", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, countRequest(s.box.id, s.pool)
		}},
		{"put records where nobody publishes", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.owner, recordsRequest(s.box.id, false)
		}},
		{"ask for a blob that is not there", isRefused, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, &wire.RelayRequest{Command: &wire.RelayRequest_GetBlob{GetBlob: &wire.RelayGetBlob{Handle: blob(32)}}}
		}},
		{"ask to be dialled by a relay that does not", isMalformed, func(s *scene) (*caller, *wire.RelayRequest) {
			return s.other, &wire.RelayRequest{Command: &wire.RelayRequest_DialBack{DialBack: &wire.RelayDialBack{Addrs: [][]byte{{4}}}}}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, nil)
			s := &scene{w: w, owner: w.caller(), other: w.caller(), pool: blob(32)}
			s.pair, s.box, s.log = s.owner.queue(pairwise), s.owner.queue(box), s.owner.queue(logQueue)
			s.token = s.owner.admit(s.box)
			from, req := test.run(s)
			from.want(test.status, req)
		})
	}
}

func (w *world) drain() {
	w.t.Helper()
	if err := w.Drain(w.clock.at.Add(24 * time.Hour)); err != nil {
		w.t.Fatal(err)
	}
}

func TestClaimsAreKept(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	m := c.queue(pairwise)
	c.want(isOK, w.deposit(m, 2160))

	// Made again, with another capability and another end: nothing changes.
	again := *m
	again.create = proto.CloneOf(m.create)
	again.create.Capability, again.create.Expires = blob(32), m.create.Expires+1000
	other := w.caller()
	got := other.want(isOK, other.createRequest(&again)).GetQueues().Queues[0]
	if !got.Known || got.Expires != m.create.Expires || got.Messages != 1 || got.Bytes != 2160 {
		t.Errorf("made again: %v", got)
	}
	c.want(isOK, w.deposit(m, 2160)) // the capability is the old one

	unknown := w.makeable(pairwise)
	qs := other.want(isOK, other.attachRequest(unknown, m)).GetQueues().Queues
	if qs[0].Known || !qs[1].Known || qs[1].Messages != 2 {
		t.Errorf("attached: %v", qs)
	}

	// Renewed to a later time, never to an earlier one; over a restart.
	later := start.Add(30 * 24 * time.Hour)
	if got := c.want(isOK, renewal(later, m.id)).GetQueues().Queues[0].Expires; got != later.Unix() {
		t.Errorf("renewed to %d, want %d", got, later.Unix())
	}
	if got := c.want(isOK, renewal(start.Add(time.Hour), m.id)).GetQueues().Queues[0].Expires; got != later.Unix() {
		t.Errorf("renewed back to %d, want %d", got, later.Unix())
	}
	w.reopen()
	c = w.caller()
	got = c.want(isOK, c.attachRequest(m)).GetQueues().Queues[0]
	if got.Expires != later.Unix() || got.Messages != 2 {
		t.Errorf("after a restart: %v", got)
	}

	// Dropped: gone with its messages, and it may be made again, empty.
	c.want(isOK, dropRequest(m.id))
	c.want(isRefused, w.deposit(m, 2160))
	c.want(isRefused, dropRequest(m.id))
	if got := c.want(isOK, c.attachRequest(m)).GetQueues().Queues[0]; got.Known {
		t.Errorf("dropped, and still known: %v", got)
	}
	if got := c.want(isOK, c.createRequest(m)).GetQueues().Queues[0]; got.Messages != 0 {
		t.Errorf("made again after a drop: %v", got)
	}
	c.want(isOK, w.deposit(m, 2160))
}

func TestAccessIsReplaced(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	m := c.queue(pairwise)
	old := w.deposit(m, 2160)
	m.capability = newCapability(t)
	h := m.capability.Hash(w.self, m.id)
	c.want(isOK, setAccess(&wire.RelaySetAccess{Queue: m.id[:], Capability: h[:]}))
	c.want(isRefused, old)
	c.want(isOK, w.deposit(m, 2160))

	b := c.queue(box)
	one, two := c.admit(b), blob(32)
	for range protocol.TokenDeposits {
		c.want(isOK, w.tokenDeposit(b, one))
	}
	c.want(isOK, setAccess(&wire.RelaySetAccess{Queue: b.id[:], Tokens: [][]byte{one, two, two}}))
	c.want(isRefused, w.tokenDeposit(b, one)) // its uses are kept
	c.want(isOK, w.tokenDeposit(b, two))
	c.want(isOK, setAccess(&wire.RelaySetAccess{Queue: b.id[:]}))
	c.want(isRefused, w.tokenDeposit(b, two))
	c.want(isOK, w.workDeposit(b, 8))
}

func TestLogIsReadByAllAndKept(t *testing.T) {
	w := newWorld(t, nil)
	one, two := w.caller(), w.caller()
	m := one.queue(logQueue)
	two.want(isOK, two.attachRequest(m))
	for range 5 {
		one.want(isOK, w.deposit(m, 2160))
	}
	first := one.poll256()
	if len(first) != 5 {
		t.Fatalf("%d entries, want 5", len(first))
	}
	req := pollRequest(2)
	req.GetPoll().Cursors = []*wire.RelayCursor{{Queue: m.id[:], After: first[1].Id}}
	a := two.want(isOK, req).GetEntries()
	if len(a.Entries) != 2 || a.Entries[0].Id != first[2].Id || !a.More {
		t.Errorf("above a cursor: %d entries, more %t", len(a.Entries), a.More)
	}
	if got := two.poll256(); len(got) != 5 {
		t.Errorf("the other reader has %d entries, want 5", len(got))
	}
}

// Answers are bounded by the longest frame, and go on where they ended.
func TestPollReturnsEverythingInOrder(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	queues := []*made{c.queue(pairwise), c.queue(pairwise), c.queue(logQueue)}
	for i := range 30 {
		c.want(isOK, w.deposit(queues[i%3], 66672))
	}
	free := w.free
	last, n, more := uint64(0), 0, true
	for more {
		req := pollRequest(protocol.MaxPoll)
		req.GetPoll().After = last
		a := c.want(isOK, req).GetEntries()
		for _, e := range a.Entries {
			if e.Id <= last || relay.QueueID(e.Queue) != queues[n%3].id {
				t.Errorf("entry %d: ID %d after %d", n, e.Id, last)
			}
			last, n = e.Id, n+1
		}
		more = a.More
		if more && len(a.Entries) == 0 {
			t.Fatal("more, and no entry")
		}
	}
	if n != 30 || w.free != free {
		t.Errorf("%d entries, want 30; %d bytes not given back", n, free-w.free)
	}
}

// The entries of many queues come in the order of their IDs, however few a poll
// takes, and none is left out.
func TestPollTakesTheFirstOfManyQueues(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	var queues []*made
	for range 40 {
		queues = append(queues, c.queue(pairwise))
	}
	want := map[relay.QueueID]int{}
	for i := range 400 {
		// Some queues are filled early, some late, some all the time.
		m := queues[(i/20+i%3*11)%len(queues)]
		c.want(isOK, w.deposit(m, 2160))
		want[m.id]++
	}
	last, got := uint64(0), map[relay.QueueID]int{}
	for page := 0; ; page++ {
		req := pollRequest(7)
		req.GetPoll().After = last
		a := c.want(isOK, req).GetEntries()
		for _, e := range a.Entries {
			if e.Id <= last {
				t.Fatalf("ID %d after %d", e.Id, last)
			}
			last = e.Id
			got[relay.QueueID(e.Queue)]++
		}
		if full := page < 400/7; a.More != full || full && len(a.Entries) != 7 {
			t.Fatalf("page %d: %d entries, more: %v", page, len(a.Entries), a.More)
		}
		if !a.More {
			break
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v of each queue, want %v", got, want)
	}
}

// Deleting from many queues costs the disk what deleting from one does.
func TestDeletingFromManyQueuesIsOneCommit(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	steps := func(queues int) int {
		ms := make([]*made, queues)
		for i := range ms {
			ms[i] = c.queue(pairwise)
		}
		for i := range 40 {
			c.want(isOK, w.deposit(ms[i%queues], 2160))
		}
		m := new(wire.RelayDelete)
		of := map[relay.QueueID]*wire.RelayDeletion{}
		for _, e := range c.poll256() {
			d := of[relay.QueueID(e.Queue)]
			if d == nil {
				d = &wire.RelayDeletion{Queue: e.Queue}
				of[relay.QueueID(e.Queue)] = d
				m.Deletions = append(m.Deletions, d)
			}
			d.Ids = append(d.Ids, e.Id)
		}
		if len(m.Deletions) != queues {
			t.Fatalf("entries of %d queues, want %d", len(m.Deletions), queues)
		}
		before := w.cfg.Disk.Steps()
		c.want(isOK, &wire.RelayRequest{Command: &wire.RelayRequest_Delete{Delete: m}})
		took := w.cfg.Disk.Steps() - before
		if left := c.poll256(); len(left) > 0 {
			t.Errorf("%d entries left of %d queues", len(left), queues)
		}
		for _, q := range ms {
			if n := w.queues[q.id].messages; n != 0 {
				t.Errorf("a queue counts %d messages", n)
			}
		}
		return took
	}
	if one, many := steps(1), steps(20); one != many {
		t.Errorf("%d steps of the disk for one queue, %d for twenty", one, many)
	}
}

func TestWhatIsOverGoes(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	m, b := c.queue(pairwise), c.queue(box)
	long := w.deposit(m, 2160)
	long.GetDeposit().Expires = start.Add(12 * 24 * time.Hour).Unix() // two days after its queue
	c.want(isOK, long)
	c.want(isOK, w.deposit(m, 2160))
	pool := blob(32)
	c.want(isOK, putKeys(b.id, pool, start.Add(time.Hour).Unix(), 3))

	step := func(d time.Duration) {
		w.clock.at = start.Add(d)
		if err := w.expire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	step(2 * time.Hour)
	if got := c.poll256(); len(got) != 1 {
		t.Errorf("%d entries, want the long-lived one", len(got))
	}
	if n := c.want(isOK, countRequest(b.id, pool)).GetCount().Count; n != 0 {
		t.Errorf("%d keys that are over", n)
	}
	step(11 * 24 * time.Hour)
	if got := c.poll256(); len(got) != 1 || w.Status().Queues != 1 {
		t.Errorf("%d entries, %d queues: want the queue to outlive its end with what is in it", len(got), w.Status().Queues)
	}
	step(13 * 24 * time.Hour)
	if s := w.Status(); s.Queues != 0 || s.Spool.Entries != 1 || s.Shares != 0 {
		t.Errorf("status %+v, want nothing", s)
	}
}

func TestAdmissionTokens(t *testing.T) {
	w := newWorld(t, func(cfg *Config) {
		cfg.Admit = AdmitTokens
		cfg.Limits.ShareQueues = 2
		cfg.Limits.Share = 3 * 2160
	})
	c := w.caller()
	c.want(isRefused, c.createRequest(w.makeable(pairwise)))
	token, err := w.Issue("a friend")
	if err != nil {
		t.Fatal(err)
	}
	bearer := func() *made {
		m := w.makeable(pairwise)
		m.create.Admission = token[:]
		return m
	}
	m := bearer()
	c.want(isOK, c.createRequest(m))
	c.want(isOK, c.createRequest(bearer()))
	c.want(isQuota, c.createRequest(bearer())) // its share of queues
	for range 3 {
		c.want(isOK, w.deposit(m, 2160))
	}
	c.want(isQuota, w.deposit(m, 2160)) // its share of bytes
	all, err := w.Issued()
	if err != nil || len(all) != 1 || all[0].Name != "a friend" || all[0].Queues != 2 || all[0].Bytes != 3*2160 {
		t.Fatalf("issued: %+v, %v", all, err)
	}
	if err := w.Revoke(all[0].Hash); err != nil {
		t.Fatal(err)
	}
	if err := w.Revoke(all[0].Hash); !errors.Is(err, ErrNoToken) {
		t.Errorf("revoked twice: %v, want ErrNoToken", err)
	}
	c.want(isRefused, renewal(start.Add(24*time.Hour), m.id))
	c.want(isOK, dropRequest(m.id))
	c.want(isRefused, c.createRequest(bearer()))
}

// Whoever keeps the relay's key and loses all else owes nobody a new link.
func TestTokensOutliveTheStore(t *testing.T) {
	var key crypto.PrivKey
	old := newWorld(t, func(cfg *Config) { cfg.Admit, key = AdmitTokens, cfg.Key })
	token, err := old.Issue("a friend")
	if err != nil {
		t.Fatal(err)
	}
	fresh := newWorld(t, func(cfg *Config) { cfg.Admit, cfg.Key = AdmitTokens, key })
	c := fresh.caller()
	create := func(w *world, token []byte) *wire.RelayRequest {
		m := w.makeable(pairwise)
		m.create.Admission = token
		return c.createRequest(m)
	}
	for i := range token {
		forged := token
		forged[i] ^= 1
		c.want(isRefused, create(fresh, forged[:]))
	}
	c.want(isOK, create(fresh, token[:]))
	c.want(isOK, create(fresh, token[:]))
	all, err := fresh.Issued()
	if err != nil || len(all) != 1 || all[0].Queues != 2 {
		t.Fatalf("issued: %+v, %v", all, err)
	}
	if err := fresh.Revoke(all[0].Hash); err != nil {
		t.Fatal(err)
	}
	c.want(isRefused, create(fresh, token[:]))
	other := newWorld(t, func(cfg *Config) { cfg.Admit = AdmitTokens })
	c = other.caller()
	c.want(isRefused, create(other, token[:]))
}

func TestDrainingRelayStillGives(t *testing.T) {
	w := newWorld(t, nil)
	c := w.caller()
	m, b := c.queue(pairwise), c.queue(box)
	token, pool := c.admit(b), blob(32)
	c.want(isOK, w.deposit(m, 2160))
	c.want(isOK, putKeys(b.id, pool, start.Add(time.Hour).Unix(), 1))
	w.drain()
	w.reopen()
	c = w.caller()
	c.want(isOK, c.attachRequest(m, b))
	entries := c.poll256()
	if len(entries) != 1 {
		t.Fatalf("%d entries, want 1", len(entries))
	}
	c.want(isOK, takeByToken(b.id, pool, token))
	c.want(isOK, deletion(m.id, entries[0].Id))
	c.want(isOK, dropRequest(m.id))
	if in := c.want(isOK, infoRequest).GetInfo(); in.Draining != start.Add(24*time.Hour).Unix() {
		t.Errorf("draining %d", in.Draining)
	}
	if err := w.Drain(time.Time{}); err != nil {
		t.Fatal(err)
	}
	c.queue(pairwise)
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an empty config was accepted")
	}
}

func TestBoundsOfMemory(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Limits.Memory = 100_000; cfg.Limits.Attached = 2; cfg.Limits.Queues = 6 })
	c := w.caller()
	m := c.queue(pairwise)
	c.queue(pairwise)
	c.want(isBusy, c.createRequest(w.makeable(pairwise))) // made, and no room to attach it
	c.want(isQuota, c.createRequest(w.makeable(pairwise)))
	c.want(isOK, w.deposit(m, 66672))
	c.want(isBusy, pollRequest(1))
	w.free += 100_000
	if got := c.poll256(); len(got) != 1 {
		t.Errorf("%d entries, want 1", len(got))
	}
}

// Who attaches the same queues on many streams, from one address, leaves places
// for others, and gets its own back when it goes.
func TestOneAddressAttachesItsPart(t *testing.T) {
	const queues, most = 128, protocol.MaxAttached
	w := newWorld(t, func(cfg *Config) { cfg.Limits.Attached = 4 * most })
	ms := make([]*made, queues)
	one, other := w.from("192.0.2.1"), w.from("198.51.100.1")
	for i := range ms {
		ms[i] = one.queue(pairwise)
	}
	streams := []*caller{one}
	for range most/queues - 1 {
		c := w.from("192.0.2.2")
		c.want(isOK, c.attachRequest(ms...))
		streams = append(streams, c)
	}
	c := w.from("192.0.2.3")
	c.want(isBusy, c.attachRequest(ms[0]))
	one.want(isOK, one.attachRequest(ms...)) // they are
	other.want(isOK, other.attachRequest(ms...))
	for _, c := range streams {
		c.block.streams++ // as enter does
		w.leave(c.client)
	}
	if n := w.Status().Attached; n != queues {
		t.Errorf("%d queues are attached, want those of the other address: %d", n, queues)
	}
	c.want(isOK, c.attachRequest(ms...))
}

// quiet is a libp2p host that listens on loopback.
func quiet(t testing.TB) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.Ping(false), libp2p.DisableIdentifyAddressDiscovery())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

var _ io.Closer = (*Service)(nil)
