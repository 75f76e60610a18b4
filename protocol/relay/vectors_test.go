package relay

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

// vectors are, in hex, what another implementation has to reproduce. Keys are
// made from seeds of one repeated byte.
type vectors struct {
	Queue struct {
		Seed   string `json:"reader_seed"`
		Reader string `json:"reader"`
		ID     string `json:"id"`
	} `json:"queue"`
	Claim struct {
		RelaySeed  string `json:"relay_seed"`
		ClientSeed string `json:"client_seed"`
		Create     string `json:"create"`
		Attach     string `json:"attach"` // of the queue above and one of seed 02…
	} `json:"claim"`
	Capability struct {
		Capability string `json:"capability"`
		Relay      string `json:"relay"`
		Queue      string `json:"queue"`
		Hash       string `json:"hash"`
	} `json:"capability"`
	Token struct {
		Token string `json:"token"`
		Relay string `json:"relay"`
		Hash  string `json:"hash"`
	} `json:"token"`
	Work []workVector `json:"work"`
	Leaf struct {
		Queue   string `json:"queue"`
		Blob    string `json:"blob_hash"`
		Expires int64  `json:"expires"`
		Leaf    string `json:"leaf"`
	} `json:"leaf"`
	Receipts struct {
		Relay    string   `json:"relay"`
		Leaves   []string `json:"leaves"`
		Root     string   `json:"root"`
		Time     int64    `json:"time"`
		Receipts []string `json:"receipts"`
	} `json:"receipts"`
	Pool struct {
		Account string `json:"account"`
		Lookup  string `json:"lookup_secret"`
		Relay   string `json:"relay"`
		Box     string `json:"box"`
		ID      string `json:"id"`
		Nonce   string `json:"nonce"`
		Bundle  string `json:"bundle"`
		Blob    string `json:"blob"`
	} `json:"pool"`
	Mailbox string            `json:"mailbox"`
	Mail    map[string]string `json:"mail"` // in a profile, in a record, and empty; the sealing keys are opaque
	Links   map[string]string `json:"links"`
}

type workVector struct {
	Kind    string `json:"kind"`
	Relay   string `json:"relay"`
	Queue   string `json:"queue"`
	Blob    string `json:"blob_hash,omitempty"`
	Pool    string `json:"pool,omitempty"`
	Salt    string `json:"salt,omitempty"`
	Expires int64  `json:"expires"`
	Stamp   string `json:"stamp"`
	Bits    int    `json:"bits"`
	Nonce   uint64 `json:"nonce"` // the least that proves so many bits
}

func TestVectors(t *testing.T) {
	key := newRelayKey(3)
	relay, client := key.transport(), transport(4)
	k, k2 := NewReaderKey(seed(1)), NewReaderKey(seed(2))
	reader, blob := k.Reader(), hashOf("blob")
	queue := reader.Queue()
	var v vectors

	v.Queue.Seed, v.Queue.Reader, v.Queue.ID = enc(k.Seed().Bytes()), enc(reader[:]), enc(queue[:])
	v.Claim.RelaySeed, v.Claim.ClientSeed = strings.Repeat("03", 32), strings.Repeat("04", 32)
	v.Claim.Create = enc(wire.Marshal(NewCreate(k, testCreate(), relay, client)))
	v.Claim.Attach = enc(wire.Marshal(NewAttach([]*ReaderKey{k, k2}, relay, client)))

	c := capability(t, 5)
	ch := c.Hash(relay, queue)
	v.Capability.Capability, v.Capability.Relay, v.Capability.Queue, v.Capability.Hash = enc(c.Bytes()), enc(relay[:]), enc(queue[:]), enc(ch[:])
	token := identity.Token(bytes.Repeat([]byte{6}, 16))
	th := TokenHash(token, relay)
	v.Token.Token, v.Token.Relay, v.Token.Hash = enc(token[:]), enc(relay[:]), enc(th[:])

	pool, salt := PoolID(b32(7)), [16]byte(bytes.Repeat([]byte{8}, 16))
	for _, w := range []workVector{
		{Kind: "deposit", Blob: enc(blob[:]), Bits: 16},
		{Kind: "key", Pool: enc(pool[:]), Salt: enc(salt[:]), Bits: 16},
	} {
		w.Relay, w.Queue, w.Expires = enc(relay[:]), enc(queue[:]), later
		s := DepositStamp(relay, queue, blob, later)
		if w.Kind == "key" {
			s = KeyStamp(relay, queue, pool, salt, later)
		}
		h := s.Hash()
		nonce, err := Work(t.Context(), s, w.Bits)
		if err != nil {
			t.Fatal(err)
		}
		w.Stamp, w.Nonce = enc(h[:]), nonce
		v.Work = append(v.Work, w)
	}

	leaf := NewLeaf(queue, blob, later)
	v.Leaf.Queue, v.Leaf.Blob, v.Leaf.Expires, v.Leaf.Leaf = enc(queue[:]), enc(blob[:]), later, enc(leaf[:])
	ls := leaves(5)
	g := signGroup(t, key, ls)
	root := g.levels[len(g.levels)-1][0]
	v.Receipts.Relay, v.Receipts.Root, v.Receipts.Time = enc(relay[:]), enc(root[:]), groupTime.Unix()
	for i, l := range ls {
		v.Receipts.Leaves = append(v.Receipts.Leaves, enc(l[:]))
		v.Receipts.Receipts = append(v.Receipts.Receipts, enc(wire.Marshal(g.Receipt(i).Wire())))
	}

	account, lookup := identity.Account(transport(9)), identity.LookupSecret(bytes.Repeat([]byte{10}, 16))
	p := NewPool(account, lookup, relay, queue)
	id, nonce, bundle := p.ID(), [blobNonce]byte(bytes.Repeat([]byte{11}, blobNonce)), []byte("a signed bundle")
	v.Pool.Account, v.Pool.Lookup, v.Pool.Relay, v.Pool.Box = enc(account[:]), enc(lookup[:]), enc(relay[:]), enc(queue[:])
	v.Pool.ID, v.Pool.Nonce, v.Pool.Bundle, v.Pool.Blob = enc(id[:]), enc(nonce[:]), enc(bundle), enc(p.seal(nonce, bundle))

	mailbox, err := testMailbox(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	v.Mailbox = enc(mailbox)
	v.Mail = map[string]string{}
	for name, m := range map[string]Mail{"profile": testMail(t, true), "record": testMail(t, false), "none any more": {}} {
		w, err := m.Wire(name == "profile")
		if err != nil {
			t.Fatal(err)
		}
		v.Mail[name] = enc(wire.Marshal(w))
	}
	v.Links = map[string]string{}
	for name, l := range testLinks() {
		v.Links[name] = l.String()
	}

	got, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/vectors.json"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("what is made differs from %s; run with -update and read the difference", file)
	}
}

// TestPublishedReceiptsVerify reads the vectors as another implementation would:
// what they hold is accepted, and each receipt for its own leaf only.
func TestPublishedReceiptsVerify(t *testing.T) {
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	relay, err := identity.ParseTransport(unhex(v.Receipts.Relay))
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Receipts.Receipts) < 5 {
		t.Fatalf("%d receipts, want 5", len(v.Receipts.Receipts))
	}
	for i, s := range v.Receipts.Receipts {
		var w wire.RelayReceipt
		if err := wire.Parse(unhex(s), 1<<10, &w); err != nil {
			t.Fatal(err)
		}
		r, err := ReceiptFromWire(&w)
		if err != nil {
			t.Fatal(err)
		}
		for j, l := range v.Receipts.Leaves {
			if got := r.Verify(relay, Leaf(unhex(l))) == nil; got != (i == j) {
				t.Errorf("receipt %d verifies for leaf %d = %v", i, j, got)
			}
		}
	}
	p := NewPool(identity.Account(unhex(v.Pool.Account)), identity.LookupSecret(unhex(v.Pool.Lookup)), identity.Transport(unhex(v.Pool.Relay)), QueueID(unhex(v.Pool.Box)))
	if got, err := p.Open(unhex(v.Pool.Blob)); err != nil || enc(got) != v.Pool.Bundle {
		t.Errorf("the blob opens to %x, %v", got, err)
	}
	if len(v.Pool.Blob) != 2*protocol.KeyBlob {
		t.Errorf("the blob has %d bytes, want %d", len(v.Pool.Blob)/2, protocol.KeyBlob)
	}
}

func enc(b []byte) string { return hex.EncodeToString(b) }
