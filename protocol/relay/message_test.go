package relay

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

func b32(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }

const later = 1_800_000_000 // unix seconds

func testCreate() *wire.RelayCreate {
	return &wire.RelayCreate{Kind: wire.QueueKind_QUEUE_KIND_PAIRWISE, Capability: b32(1), Expires: later, Admission: make([]byte, AdmissionSize)}
}

func testClaims() map[string]*wire.RelayClaim {
	k, l := NewReaderKey(seed(1)), NewReaderKey(seed(2))
	relay, client := transport(3), transport(4)
	box := &wire.RelayCreate{Kind: wire.QueueKind_QUEUE_KIND_BOX, Expires: later}
	log := &wire.RelayCreate{Kind: wire.QueueKind_QUEUE_KIND_LOG, Capability: b32(1), Expires: later, Closes: later - 1}
	return map[string]*wire.RelayClaim{
		"pairwise": NewCreate(k, testCreate(), relay, client),
		"box":      NewCreate(k, box, relay, client),
		"log":      NewCreate(k, log, relay, client),
		"attach":   NewAttach([]*ReaderKey{k, l}, relay, client),
	}
}

// requests holds a good request of each kind.
func requests() map[string]*wire.RelayRequest {
	claims := testClaims()
	return map[string]*wire.RelayRequest{
		"info":        {Command: &wire.RelayRequest_Info{Info: &wire.RelayInfoRequest{}}},
		"create":      {Command: &wire.RelayRequest_Claim{Claim: claims["pairwise"]}},
		"attach":      {Command: &wire.RelayRequest_Claim{Claim: claims["attach"]}},
		"renew":       {Command: &wire.RelayRequest_Renew{Renew: &wire.RelayRenew{Queues: [][]byte{b32(1), b32(2)}, Expires: later}}},
		"set access":  {Command: &wire.RelayRequest_SetAccess{SetAccess: &wire.RelaySetAccess{Queue: b32(1), Capability: b32(2)}}},
		"set tokens":  {Command: &wire.RelayRequest_SetAccess{SetAccess: &wire.RelaySetAccess{Queue: b32(1), Tokens: [][]byte{b32(2)}}}},
		"drop":        {Command: &wire.RelayRequest_Drop{Drop: &wire.RelayDrop{Queue: b32(1)}}},
		"deposit":     {Command: &wire.RelayRequest_Deposit{Deposit: testDeposit()}},
		"poll":        {Command: &wire.RelayRequest_Poll{Poll: testPoll()}},
		"delete":      {Command: &wire.RelayRequest_Delete{Delete: &wire.RelayDelete{Deletions: []*wire.RelayDeletion{{Queue: b32(1), Ids: []uint64{1, 2}}}}}},
		"put keys":    {Command: &wire.RelayRequest_PutKeys{PutKeys: testPutKeys()}},
		"take key":    {Command: &wire.RelayRequest_TakeKey{TakeKey: testTakeKey()}},
		"count keys":  {Command: &wire.RelayRequest_CountKeys{CountKeys: &wire.RelayCountKeys{Queue: b32(1), Pool: b32(2)}}},
		"put records": {Command: &wire.RelayRequest_PutRecords{PutRecords: &wire.RelayPutRecords{Queue: b32(1), Records: [][]byte{make([]byte, 4096)}}}},
		"put blob":    {Command: &wire.RelayRequest_PutBlob{PutBlob: testPutBlob()}},
		"get blob":    {Command: &wire.RelayRequest_GetBlob{GetBlob: &wire.RelayGetBlob{Handle: b32(1), Index: 1}}},
		"drop blob":   {Command: &wire.RelayRequest_DropBlob{DropBlob: &wire.RelayDropBlob{Queue: b32(1), Handle: b32(2)}}},
		"dial back":   {Command: &wire.RelayRequest_DialBack{DialBack: &wire.RelayDialBack{Addrs: [][]byte{{1}}}}},
	}
}

func testDeposit() *wire.RelayDeposit {
	return &wire.RelayDeposit{Queue: b32(1), Blob: make([]byte, 2160), Expires: later, Admit: &wire.RelayDeposit_Capability{Capability: b32(2)}}
}

func testPoll() *wire.RelayPoll {
	return &wire.RelayPoll{After: 10, Limit: 3, Wait: 55, Cursors: []*wire.RelayCursor{{Queue: b32(2), After: 5}}}
}

func testPutKeys() *wire.RelayPutKeys {
	return &wire.RelayPutKeys{Queue: b32(1), Pool: b32(2), Keys: [][]byte{make([]byte, protocol.KeyBlob)}, Expires: later}
}

func testTakeKey() *wire.RelayTakeKey {
	return &wire.RelayTakeKey{Queue: b32(1), Pool: b32(2), Admit: &wire.RelayTakeKey_Work{Work: &wire.RelayKeyWork{Salt: make([]byte, 16), Expires: later, Nonce: 7}}}
}

func testPutBlob() *wire.RelayPutBlob {
	return &wire.RelayPutBlob{Queue: b32(1), Handle: b32(2), Index: 1, Count: 2, Chunk: make([]byte, protocol.BlobChunk), Expires: later}
}

func TestRequestsAreReadAsWritten(t *testing.T) {
	kinds := map[int]bool{}
	for what, want := range requests() {
		got, err := ParseRequest(wire.Marshal(want))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
			t.Errorf("%s changed (-want +got):\n%s", what, d)
		}
		m := want.ProtoReflect()
		kinds[m.WhichOneof(m.Descriptor().Oneofs().Get(0)).Index()] = true
	}
	if n := (&wire.RelayRequest{}).ProtoReflect().Descriptor().Fields().Len(); len(kinds) != n {
		t.Errorf("requests of %d kinds are tested, there are %d", len(kinds), n)
	}
}

// The largest requests of each kind fit their bound.
func TestLargestRequestsFit(t *testing.T) {
	deposit := testDeposit()
	deposit.Blob = make([]byte, protocol.MaxDeposit)
	keys := testPutKeys()
	keys.Keys = slices.Repeat(keys.Keys, protocol.MaxPutKeys)
	records := &wire.RelayPutRecords{Queue: b32(1), Records: slices.Repeat([][]byte{make([]byte, protocol.MaxRecord)}, protocol.MaxPutRecords)}
	var readers []*ReaderKey
	for i := range protocol.MaxClaim {
		s := bytes.Repeat([]byte{byte(i)}, identity.SecretSize)
		s[0] = 0xff
		secret, err := identity.SecretFrom(s)
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, NewReaderKey(secret))
	}
	var ids []uint64
	var scattered []*wire.RelayDeletion
	for i := range protocol.MaxDelete {
		ids = append(ids, maxID-uint64(i))
		scattered = append(scattered, &wire.RelayDeletion{Queue: b32(byte(i)), Ids: ids[i : i+1]})
	}
	tokens := &wire.RelaySetAccess{Queue: b32(1), Tokens: slices.Repeat([][]byte{b32(1)}, protocol.MaxTokens)}
	poll := testPoll()
	poll.Limit, poll.Cursors = protocol.MaxPoll, slices.Repeat(poll.Cursors, protocol.MaxCursors)
	for what, r := range map[string]*wire.RelayRequest{
		"deposit":                          {Command: &wire.RelayRequest_Deposit{Deposit: deposit}},
		"put keys":                         {Command: &wire.RelayRequest_PutKeys{PutKeys: keys}},
		"put records":                      {Command: &wire.RelayRequest_PutRecords{PutRecords: records}},
		"attach":                           {Command: &wire.RelayRequest_Claim{Claim: NewAttach(readers, transport(1), transport(2))}},
		"delete":                           {Command: &wire.RelayRequest_Delete{Delete: &wire.RelayDelete{Deletions: []*wire.RelayDeletion{{Queue: b32(1), Ids: ids}}}}},
		"delete of an entry in each queue": {Command: &wire.RelayRequest_Delete{Delete: &wire.RelayDelete{Deletions: scattered}}},
		"set tokens":                       {Command: &wire.RelayRequest_SetAccess{SetAccess: tokens}},
		"poll":                             {Command: &wire.RelayRequest_Poll{Poll: poll}},
	} {
		got, err := ParseRequest(wire.Marshal(r))
		if err != nil {
			t.Errorf("the largest %s: %v", what, err)
			continue
		}
		if c := got.GetClaim(); c != nil {
			if claim, err := ParseClaim(c); err != nil || claim.Check(protocol.MaxClaim-1, transport(1), transport(2)) != nil {
				t.Errorf("the largest attach: %v", err)
			}
		}
	}
	// So do the largest answers to a poll: by number, and by bytes.
	for what, size := range map[string][2]int{"as many as allowed": {protocol.MaxPoll, 2160}, "the longest": {15, protocol.MaxDeposit}} {
		var es []*wire.RelayEntry
		for i := range size[0] {
			es = append(es, &wire.RelayEntry{Queue: b32(1), Id: maxID - uint64(size[0]-i), Blob: make([]byte, size[1])})
		}
		a := &wire.RelayAnswer{Status: wire.RelayStatus_RELAY_STATUS_OK, Result: &wire.RelayAnswer_Entries{Entries: &wire.RelayEntries{Entries: es, More: true}}}
		if _, err := ParseAnswer(wire.Marshal(a), &wire.RelayRequest{Command: &wire.RelayRequest_Poll{Poll: poll}}); err != nil {
			t.Errorf("an answer with %s: %v", what, err)
		}
	}
}

func TestParseRequestRefuses(t *testing.T) {
	deposit := func(edit func(d *wire.RelayDeposit)) *wire.RelayRequest {
		d := testDeposit()
		edit(d)
		return &wire.RelayRequest{Command: &wire.RelayRequest_Deposit{Deposit: d}}
	}
	poll := func(edit func(p *wire.RelayPoll)) *wire.RelayRequest {
		p := testPoll()
		edit(p)
		return &wire.RelayRequest{Command: &wire.RelayRequest_Poll{Poll: p}}
	}
	keys := func(edit func(p *wire.RelayPutKeys)) *wire.RelayRequest {
		p := testPutKeys()
		edit(p)
		return &wire.RelayRequest{Command: &wire.RelayRequest_PutKeys{PutKeys: p}}
	}
	take := func(edit func(p *wire.RelayTakeKey)) *wire.RelayRequest {
		p := testTakeKey()
		edit(p)
		return &wire.RelayRequest{Command: &wire.RelayRequest_TakeKey{TakeKey: p}}
	}
	blob := func(edit func(p *wire.RelayPutBlob)) *wire.RelayRequest {
		p := testPutBlob()
		edit(p)
		return &wire.RelayRequest{Command: &wire.RelayRequest_PutBlob{PutBlob: p}}
	}
	access := func(a *wire.RelaySetAccess) *wire.RelayRequest {
		return &wire.RelayRequest{Command: &wire.RelayRequest_SetAccess{SetAccess: a}}
	}
	renew := func(r *wire.RelayRenew) *wire.RelayRequest {
		return &wire.RelayRequest{Command: &wire.RelayRequest_Renew{Renew: r}}
	}
	del := func(ds ...*wire.RelayDeletion) *wire.RelayRequest {
		return &wire.RelayRequest{Command: &wire.RelayRequest_Delete{Delete: &wire.RelayDelete{Deletions: ds}}}
	}
	records := func(rs ...[]byte) *wire.RelayRequest {
		return &wire.RelayRequest{Command: &wire.RelayRequest_PutRecords{PutRecords: &wire.RelayPutRecords{Queue: b32(1), Records: rs}}}
	}
	dial := func(as ...[]byte) *wire.RelayRequest {
		return &wire.RelayRequest{Command: &wire.RelayRequest_DialBack{DialBack: &wire.RelayDialBack{Addrs: as}}}
	}
	for what, r := range map[string]*wire.RelayRequest{
		"nothing":                          {},
		"deposit: a queue of 31 bytes":     deposit(func(d *wire.RelayDeposit) { d.Queue = d.Queue[1:] }),
		"deposit: no blob":                 deposit(func(d *wire.RelayDeposit) { d.Blob = nil }),
		"deposit: no expiry":               deposit(func(d *wire.RelayDeposit) { d.Expires = 0 }),
		"deposit: an expiry before 1970":   deposit(func(d *wire.RelayDeposit) { d.Expires = -1 }),
		"deposit: an expiry out of range":  deposit(func(d *wire.RelayDeposit) { d.Expires = 1 << 40 }),
		"deposit: nothing that admits":     deposit(func(d *wire.RelayDeposit) { d.Admit = nil }),
		"deposit: a capability of 33":      deposit(func(d *wire.RelayDeposit) { d.Admit = &wire.RelayDeposit_Capability{Capability: make([]byte, 33)} }),
		"deposit: a whole token":           deposit(func(d *wire.RelayDeposit) { d.Admit = &wire.RelayDeposit_Token{Token: make([]byte, 16)} }),
		"poll: no limit":                   poll(func(p *wire.RelayPoll) { p.Limit = 0 }),
		"poll: a limit above the bound":    poll(func(p *wire.RelayPoll) { p.Limit = protocol.MaxPoll + 1 }),
		"poll: a wait above the bound":     poll(func(p *wire.RelayPoll) { p.Wait = 56 }),
		"poll: a cursor of no queue":       poll(func(p *wire.RelayPoll) { p.Cursors[0].Queue = nil }),
		"poll: too many cursors":           poll(func(p *wire.RelayPoll) { p.Cursors = slices.Repeat(p.Cursors, protocol.MaxCursors+1) }),
		"put keys: a short key":            keys(func(p *wire.RelayPutKeys) { p.Keys[0] = p.Keys[0][1:] }),
		"put keys: too many":               keys(func(p *wire.RelayPutKeys) { p.Keys = slices.Repeat(p.Keys, protocol.MaxPutKeys+1) }),
		"put keys: no pool":                keys(func(p *wire.RelayPutKeys) { p.Pool = nil }),
		"put keys: no expiry":              keys(func(p *wire.RelayPutKeys) { p.Expires = 0 }),
		"take key: nothing that admits":    take(func(p *wire.RelayTakeKey) { p.Admit = nil }),
		"take key: no salt":                take(func(p *wire.RelayTakeKey) { p.GetWork().Salt = nil }),
		"take key: no expiry":              take(func(p *wire.RelayTakeKey) { p.GetWork().Expires = 0 }),
		"take key: empty work":             take(func(p *wire.RelayTakeKey) { p.Admit = &wire.RelayTakeKey_Work{Work: &wire.RelayKeyWork{}} }),
		"take key: a whole token":          take(func(p *wire.RelayTakeKey) { p.Admit = &wire.RelayTakeKey_Token{Token: make([]byte, 16)} }),
		"put blob: a short chunk":          blob(func(p *wire.RelayPutBlob) { p.Chunk = p.Chunk[1:] }),
		"put blob: a chunk beyond the end": blob(func(p *wire.RelayPutBlob) { p.Index = p.Count }),
		"put blob: too many chunks":        blob(func(p *wire.RelayPutBlob) { p.Count = protocol.MaxBlobChunks + 1 }),
		"set access: both":                 access(&wire.RelaySetAccess{Queue: b32(1), Capability: b32(2), Tokens: [][]byte{b32(3)}}),
		"set access: a whole token":        access(&wire.RelaySetAccess{Queue: b32(1), Tokens: [][]byte{make([]byte, 16)}}),
		"set access: too many tokens":      access(&wire.RelaySetAccess{Queue: b32(1), Tokens: slices.Repeat([][]byte{b32(1)}, protocol.MaxTokens+1)}),
		"set access: a short capability":   access(&wire.RelaySetAccess{Queue: b32(1), Capability: make([]byte, 31)}),
		"renew: no queue":                  renew(&wire.RelayRenew{Expires: later}),
		"renew: too many queues":           renew(&wire.RelayRenew{Expires: later, Queues: slices.Repeat([][]byte{b32(1)}, protocol.MaxClaim+1)}),
		"renew: no expiry":                 renew(&wire.RelayRenew{Queues: [][]byte{b32(1)}}),
		"drop: no queue":                   {Command: &wire.RelayRequest_Drop{Drop: &wire.RelayDrop{}}},
		"delete: nothing":                  del(),
		"delete: no ID":                    del(&wire.RelayDeletion{Queue: b32(1)}),
		"delete: too many IDs":             del(&wire.RelayDeletion{Queue: b32(1), Ids: make([]uint64, protocol.MaxDelete)}, &wire.RelayDeletion{Queue: b32(1), Ids: []uint64{1}}),
		"delete: no queue":                 del(&wire.RelayDeletion{Ids: []uint64{1}}),
		"count keys: no pool":              {Command: &wire.RelayRequest_CountKeys{CountKeys: &wire.RelayCountKeys{Queue: b32(1)}}},
		"put records: an empty one":        records(nil),
		"put records: one too long":        records(make([]byte, protocol.MaxRecord+1)),
		"put records: too many":            records(slices.Repeat([][]byte{{1}}, protocol.MaxPutRecords+1)...),
		"get blob: no handle":              {Command: &wire.RelayRequest_GetBlob{GetBlob: &wire.RelayGetBlob{}}},
		"get blob: an index out of range":  {Command: &wire.RelayRequest_GetBlob{GetBlob: &wire.RelayGetBlob{Handle: b32(1), Index: protocol.MaxBlobChunks}}},
		"drop blob: no handle":             {Command: &wire.RelayRequest_DropBlob{DropBlob: &wire.RelayDropBlob{Queue: b32(1)}}},
		"dial back: nothing":               dial(),
		"dial back: too many":              dial(slices.Repeat([][]byte{{1}}, protocol.MaxAddrs+1)...),
		"dial back: too long":              dial(make([]byte, protocol.MaxAddr+1)),
	} {
		if _, err := ParseRequest(wire.Marshal(r)); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v, want ErrRequest", what, err)
		}
	}
	big := deposit(func(d *wire.RelayDeposit) { d.Blob = make([]byte, protocol.MaxDeposit+1) })
	if _, err := ParseRequest(wire.Marshal(big)); !errors.Is(err, ErrTooBig) {
		t.Errorf("a deposit above the bound: %v, want ErrTooBig", err)
	}
	if _, err := ParseRequest(make([]byte, protocol.MaxRelayRequest+1)); !errors.Is(err, ErrRequest) {
		t.Errorf("a request above the bound: %v, want ErrRequest", err)
	}
}

func TestClaimsAreProven(t *testing.T) {
	relay, client := transport(3), transport(4)
	for what, w := range testClaims() {
		c, err := ParseClaim(w)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if (c.Create == nil) != (what == "attach") {
			t.Errorf("%s: Create = %v", what, c.Create)
		}
		for i, r := range c.Readers {
			if want := NewReaderKey(seed(byte(i + 1))).Reader(); r != want {
				t.Errorf("%s: reader %d = %x, want %x", what, i, r, want)
			}
			if err := c.Check(i, relay, client); err != nil {
				t.Errorf("%s: proof %d: %v", what, i, err)
			}
		}
	}
}

func TestParseClaimRefuses(t *testing.T) {
	create := func(edit func(c *wire.RelayCreate)) *wire.RelayClaim {
		k, c := NewReaderKey(seed(1)), testCreate()
		r := k.Reader()
		c.Reader = r[:]
		edit(c)
		body := wire.Marshal(&wire.RelayClaimBody{Claim: &wire.RelayClaimBody_Create{Create: c}})
		return &wire.RelayClaim{Body: body, Proofs: [][]byte{k.Prove(transport(3), transport(4), body)}}
	}
	attach := func(readers, proofs [][]byte) *wire.RelayClaim {
		body := wire.Marshal(&wire.RelayClaimBody{Claim: &wire.RelayClaimBody_Attach{Attach: &wire.RelayAttach{Readers: readers}}})
		return &wire.RelayClaim{Body: body, Proofs: proofs}
	}
	proof := make([]byte, ProofSize)
	with := func(proofs ...[]byte) *wire.RelayClaim {
		c := create(func(*wire.RelayCreate) {})
		c.Proofs = proofs
		return c
	}
	for what, w := range map[string]*wire.RelayClaim{
		"nothing":                      {},
		"garbage":                      {Body: []byte{0xff}},
		"no proof":                     with(),
		"two proofs":                   with(proof, proof),
		"a proof of 63 bytes":          with(proof[1:]),
		"no kind":                      create(func(c *wire.RelayCreate) { c.Kind = 0 }),
		"an unknown kind":              create(func(c *wire.RelayCreate) { c.Kind = 9 }),
		"no reader key":                create(func(c *wire.RelayCreate) { c.Reader = nil }),
		"a key that is no point":       create(func(c *wire.RelayCreate) { c.Reader = append([]byte{2}, make([]byte, 31)...) }),
		"no capability":                create(func(c *wire.RelayCreate) { c.Capability = nil }),
		"a box with a capability":      create(func(c *wire.RelayCreate) { c.Kind = wire.QueueKind_QUEUE_KIND_BOX }),
		"a box that closes":            create(func(c *wire.RelayCreate) { c.Kind, c.Capability, c.Closes = wire.QueueKind_QUEUE_KIND_BOX, nil, 1 }),
		"a pairwise queue that closes": create(func(c *wire.RelayCreate) { c.Closes = 1 }),
		"a log that does not close":    create(func(c *wire.RelayCreate) { c.Kind = wire.QueueKind_QUEUE_KIND_LOG }),
		"a log that closes too late":   create(func(c *wire.RelayCreate) { c.Kind, c.Closes = wire.QueueKind_QUEUE_KIND_LOG, later+1 }),
		"no expiry":                    create(func(c *wire.RelayCreate) { c.Expires = 0 }),
		"an admission of 15 bytes":     create(func(c *wire.RelayCreate) { c.Admission = make([]byte, 15) }),
		"attach: no key":               attach(nil, nil),
		"attach: a key twice":          attach([][]byte{b32(1), b32(1)}, [][]byte{proof, proof}),
		"attach: a key of 33 bytes":    attach([][]byte{make([]byte, 33)}, [][]byte{proof}),
		"attach: fewer proofs":         attach([][]byte{b32(1), b32(2)}, [][]byte{proof}),
		"attach: too many": attach(func() (rs [][]byte) {
			for i := range protocol.MaxClaim + 1 {
				rs = append(rs, append([]byte{byte(i), byte(i >> 8)}, make([]byte, 30)...))
			}
			return rs
		}(), slices.Repeat([][]byte{proof}, protocol.MaxClaim+1)),
	} {
		if _, err := ParseClaim(w); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v, want ErrRequest", what, err)
		}
	}
}

// answers holds a good answer to each of requests.
func answers() map[string]*wire.RelayAnswer {
	ok := func(r *wire.RelayAnswer) *wire.RelayAnswer {
		r.Status = wire.RelayStatus_RELAY_STATUS_OK
		return r
	}
	receipt := Receipt{Index: 0, Count: 1, Time: later}.Wire()
	queues := func(n int) *wire.RelayAnswer {
		q := &wire.RelayQueue{Known: true, Expires: later, Messages: 1, Bytes: 2160}
		return ok(&wire.RelayAnswer{Result: &wire.RelayAnswer_Queues{Queues: &wire.RelayQueues{Queues: slices.Repeat([]*wire.RelayQueue{q}, n)}}})
	}
	count := ok(&wire.RelayAnswer{Result: &wire.RelayAnswer_Count{Count: &wire.RelayCount{Count: 7}}})
	return map[string]*wire.RelayAnswer{
		"info": ok(&wire.RelayAnswer{Result: &wire.RelayAnswer_Info{Info: &wire.RelayInfo{
			Time: later, Store: make([]byte, StoreIDSize), Sizes: []uint32{2160, protocol.MaxDeposit}, DepositBits: protocol.WorkBits, KeyBits: protocol.MaxWork,
			Kinds: []wire.QueueKind{wire.QueueKind_QUEUE_KIND_BOX}, Quotas: []*wire.RelayQuota{{Kind: wire.QueueKind_QUEUE_KIND_BOX, Messages: protocol.BoxMessages}},
		}}}),
		"create":     queues(1),
		"attach":     queues(2),
		"renew":      queues(2),
		"set access": ok(&wire.RelayAnswer{}),
		"set tokens": ok(&wire.RelayAnswer{}),
		"drop":       ok(&wire.RelayAnswer{}),
		"deposit":    ok(&wire.RelayAnswer{Result: &wire.RelayAnswer_Receipt{Receipt: receipt}}),
		"poll": ok(&wire.RelayAnswer{Result: &wire.RelayAnswer_Entries{Entries: &wire.RelayEntries{More: true, Entries: []*wire.RelayEntry{
			{Queue: b32(2), Id: 6, Blob: []byte{1}}, {Queue: b32(1), Id: 11, Blob: []byte{2}},
		}}}}),
		"delete":      ok(&wire.RelayAnswer{}),
		"put keys":    count,
		"take key":    ok(&wire.RelayAnswer{Result: &wire.RelayAnswer_Key{Key: &wire.RelayKey{Key: make([]byte, protocol.KeyBlob)}}}),
		"count keys":  count,
		"put records": count,
		"put blob":    ok(&wire.RelayAnswer{}),
		"get blob":    ok(&wire.RelayAnswer{Result: &wire.RelayAnswer_Chunk{Chunk: &wire.RelayChunk{Count: 2, Chunk: make([]byte, protocol.BlobChunk)}}}),
		"drop blob":   ok(&wire.RelayAnswer{}),
		"dial back":   ok(&wire.RelayAnswer{Result: &wire.RelayAnswer_Dialed{Dialed: &wire.RelayDialed{Reached: []bool{true}}}}),
	}
}

// Each request takes its own answer, and no other's.
func TestAnswersFitTheirRequestsOnly(t *testing.T) {
	same := map[string]string{ // requests whose answers look alike
		"set access": "none", "set tokens": "none", "drop": "none", "delete": "none", "put blob": "none", "drop blob": "none",
		"put keys": "count", "count keys": "count", "put records": "count", "attach": "two queues", "renew": "two queues",
	}
	for what, to := range requests() {
		for other, a := range answers() {
			alike := what == other || same[what] != "" && same[what] == same[other]
			got, err := ParseAnswer(wire.Marshal(a), to)
			switch {
			case alike && err != nil:
				t.Errorf("%s: the answer to %s: %v", what, other, err)
			case alike && !proto.Equal(got, a):
				t.Errorf("%s: the answer changed", what)
			case !alike && !errors.Is(err, ErrAnswer):
				t.Errorf("%s: the answer to %s: %v, want ErrAnswer", what, other, err)
			}
		}
	}
}

func TestParseAnswerRefuses(t *testing.T) {
	for _, c := range []struct {
		what, to string
		edit     func(a *wire.RelayAnswer)
	}{
		{"no status", "drop", func(a *wire.RelayAnswer) { a.Status = 0 }},
		{"a result without success", "poll", func(a *wire.RelayAnswer) { a.Status = wire.RelayStatus_RELAY_STATUS_REFUSED }},
		{"work without a demand", "drop", func(a *wire.RelayAnswer) { a.Status = wire.RelayStatus_RELAY_STATUS_WORK }},
		{"more work than allowed", "drop", func(a *wire.RelayAnswer) {
			a.Status = wire.RelayStatus_RELAY_STATUS_WORK
			a.Result = &wire.RelayAnswer_Demand{Demand: &wire.RelayDemand{Bits: protocol.MaxWork + 1}}
		}},
		{"info: more work than allowed", "info", func(a *wire.RelayAnswer) { a.GetInfo().KeyBits = protocol.MaxWork + 1 }},
		{"info: sizes that do not ascend", "info", func(a *wire.RelayAnswer) { a.GetInfo().Sizes = []uint32{2, 2} }},
		{"info: a size above the bound", "info", func(a *wire.RelayAnswer) { a.GetInfo().Sizes = []uint32{protocol.MaxDeposit + 1} }},
		{"info: no store", "info", func(a *wire.RelayAnswer) { a.GetInfo().Store = nil }},
		{"info: no time", "info", func(a *wire.RelayAnswer) { a.GetInfo().Time = 0 }},
		{"info: too many quotas", "info", func(a *wire.RelayAnswer) { a.GetInfo().Quotas = slices.Repeat(a.GetInfo().Quotas, 9) }},
		{"info: a drain in the past of everything", "info", func(a *wire.RelayAnswer) { a.GetInfo().Draining = -1 }},
		{"attach: a queue without a time", "attach", func(a *wire.RelayAnswer) { a.GetQueues().Queues[0].Expires = 0 }},
		{"deposit: an impossible receipt", "deposit", func(a *wire.RelayAnswer) { a.GetReceipt().Index = 1 }},
		{"poll: more than asked for", "poll", func(a *wire.RelayAnswer) {
			e := a.GetEntries()
			e.Entries = append(e.Entries, &wire.RelayEntry{Queue: b32(1), Id: 12, Blob: []byte{1}}, &wire.RelayEntry{Queue: b32(1), Id: 13, Blob: []byte{1}})
		}},
		{"poll: an entry twice", "poll", func(a *wire.RelayAnswer) { a.GetEntries().Entries[1] = a.GetEntries().Entries[0] }},
		{"poll: out of order", "poll", func(a *wire.RelayAnswer) { slices.Reverse(a.GetEntries().Entries) }},
		{"poll: from before the cursor", "poll", func(a *wire.RelayAnswer) { a.GetEntries().Entries[1].Id = 10 }},
		{"poll: from before the queue's cursor", "poll", func(a *wire.RelayAnswer) { a.GetEntries().Entries[0].Id = 5 }},
		{"poll: an ID out of range", "poll", func(a *wire.RelayAnswer) { a.GetEntries().Entries[1].Id = maxID + 1 }},
		{"poll: an empty blob", "poll", func(a *wire.RelayAnswer) { a.GetEntries().Entries[1].Blob = nil }},
		{"poll: a blob above the bound", "poll", func(a *wire.RelayAnswer) { a.GetEntries().Entries[1].Blob = make([]byte, protocol.MaxDeposit+1) }},
		{"poll: no queue", "poll", func(a *wire.RelayAnswer) { a.GetEntries().Entries[1].Queue = nil }},
		{"take key: a short one", "take key", func(a *wire.RelayAnswer) { a.GetKey().Key = a.GetKey().Key[1:] }},
		{"get blob: a short chunk", "get blob", func(a *wire.RelayAnswer) { a.GetChunk().Chunk = a.GetChunk().Chunk[1:] }},
		{"get blob: fewer chunks than asked for", "get blob", func(a *wire.RelayAnswer) { a.GetChunk().Count = 1 }},
		{"dial back: more than asked for", "dial back", func(a *wire.RelayAnswer) { a.GetDialed().Reached = []bool{true, true} }},
	} {
		a := answers()[c.to]
		c.edit(a)
		if _, err := ParseAnswer(wire.Marshal(a), requests()[c.to]); !errors.Is(err, ErrAnswer) {
			t.Errorf("%s: %v, want ErrAnswer", c.what, err)
		}
	}
	for _, status := range []wire.RelayStatus{wire.RelayStatus_RELAY_STATUS_QUOTA, wire.RelayStatus_RELAY_STATUS_DRAINING, 99} {
		if a, err := ParseAnswer(wire.Marshal(&wire.RelayAnswer{Status: status}), requests()["poll"]); err != nil || a.Status != status {
			t.Errorf("status %d: %v", status, err)
		}
	}
}

func testMailbox(t testing.TB) Mailbox {
	c := capability(t, 2)
	return Mailbox{
		Relay:      identity.Endpoint{Transport: transport(1), Addrs: [][]byte{{1, 2}, {3}}},
		Queue:      QueueID{4},
		Capability: &c,
	}
}

func TestMailboxIsReadAsWritten(t *testing.T) {
	pairwise := testMailbox(t)
	box := pairwise
	box.Capability = nil
	for what, want := range map[string]Mailbox{"pairwise": pairwise, "box": box} {
		b, err := want.Marshal()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got, err := ParseMailbox(b)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		again, err := got.Marshal()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: written again as %x, want %x", what, again, b)
		}
		if d := cmp.Diff(want.Relay, got.Relay); d != "" || got.Queue != want.Queue || (got.Capability == nil) != (want.Capability == nil) {
			t.Errorf("%s changed (-want +got):\n%s", what, d)
		}
	}
}

func TestParseMailboxRefuses(t *testing.T) {
	for what, edit := range map[string]func(m *wire.Mailbox){
		"no relay":                 func(m *wire.Mailbox) { m.Relay = nil },
		"a weak key":               func(m *wire.Mailbox) { m.Relay.TransportKey = make([]byte, 32) },
		"no address":               func(m *wire.Mailbox) { m.Relay.Addrs = nil },
		"too many addresses":       func(m *wire.Mailbox) { m.Relay.Addrs = slices.Repeat([][]byte{{1}}, protocol.MaxAddrs+1) },
		"an empty address":         func(m *wire.Mailbox) { m.Relay.Addrs[0] = nil },
		"a queue of 31 bytes":      func(m *wire.Mailbox) { m.Queue = m.Queue[1:] },
		"a capability of 31 bytes": func(m *wire.Mailbox) { m.Capability = m.Capability[1:] },
		"too long":                 func(m *wire.Mailbox) { m.Relay.Addrs = slices.Repeat([][]byte{make([]byte, protocol.MaxAddr)}, 4) },
	} {
		m := testMailbox(t)
		key := m.Relay.Transport
		w := &wire.Mailbox{Relay: &wire.Endpoint{TransportKey: key[:], Addrs: slices.Clone(m.Relay.Addrs)}, Queue: m.Queue[:], Capability: m.Capability.Bytes()}
		edit(w)
		if _, err := ParseMailbox(wire.Marshal(w)); !errors.Is(err, ErrMailbox) {
			t.Errorf("%s: %v, want ErrMailbox", what, err)
		}
	}
	if _, err := (Mailbox{Relay: identity.Endpoint{Transport: transport(1)}}).Marshal(); err == nil {
		t.Error("a mailbox without an address is written")
	}
}

// FuzzParseRequest parses arbitrary requests, and claims as their bodies: what
// passes is encoded and parsed to the same, and holds no length that panics.
func FuzzParseRequest(f *testing.F) {
	for _, r := range requests() {
		if b := wire.Marshal(r); len(b) < 8<<10 {
			f.Add(b, false)
		}
	}
	for _, c := range testClaims() {
		f.Add(c.Body, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, claim bool) {
		if claim {
			w := &wire.RelayClaim{Body: b, Proofs: [][]byte{make([]byte, ProofSize)}}
			b = wire.Marshal(&wire.RelayRequest{Command: &wire.RelayRequest_Claim{Claim: w}})
		}
		r, err := ParseRequest(b)
		if err != nil {
			if !errors.Is(err, ErrRequest) && !errors.Is(err, ErrTooBig) {
				t.Fatalf("ParseRequest = %v, want ErrRequest or ErrTooBig", err)
			}
			return
		}
		enc := wire.Marshal(r)
		again, err := ParseRequest(enc)
		if err != nil || !proto.Equal(r, again) {
			t.Fatalf("%x changes when written and read again: %v", b, err)
		}
		if w := r.GetClaim(); w != nil {
			c, err := ParseClaim(w)
			if err != nil {
				return
			}
			for i, k := range c.Readers {
				// Of a key that strict import refuses there is no queue.
				if _, err := ParseReader(k[:]); err == nil && c.Check(i, transport(1), transport(2)) == nil {
					t.Fatalf("a claim that nobody made between these ends is proven: %x", b)
				}
			}
		}
	})
}

// FuzzParseAnswer parses arbitrary answers to each kind of request.
func FuzzParseAnswer(f *testing.F) {
	var kinds []string
	for what := range requests() {
		kinds = append(kinds, what)
	}
	slices.Sort(kinds)
	for i, what := range kinds {
		if b := wire.Marshal(answers()[what]); len(b) < 8<<10 {
			f.Add(uint8(i), b)
		}
	}
	all := requests()
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		to := all[kinds[int(kind)%len(kinds)]]
		a, err := ParseAnswer(b, to)
		if err != nil {
			if !errors.Is(err, ErrAnswer) {
				t.Fatalf("ParseAnswer = %v, want ErrAnswer", err)
			}
			return
		}
		again, err := ParseAnswer(wire.Marshal(a), to)
		if err != nil || !proto.Equal(a, again) {
			t.Fatalf("%x changes when written and read again: %v", b, err)
		}
	})
}

func FuzzParseMailbox(f *testing.F) {
	m := testMailbox(f)
	b, err := m.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMailbox(b)
		if err != nil {
			if !errors.Is(err, ErrMailbox) {
				t.Fatalf("ParseMailbox = %v, want ErrMailbox", err)
			}
			return
		}
		enc, err := m.Marshal()
		if err != nil {
			t.Fatalf("%x is read and cannot be written: %v", b, err)
		}
		again, err := ParseMailbox(enc)
		if err != nil {
			t.Fatal(err)
		}
		if enc2, err := again.Marshal(); err != nil || !bytes.Equal(enc, enc2) {
			t.Fatalf("%x has two encodings: %x and %x", b, enc, enc2)
		}
	})
}
