package ratchet

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"starling/protocol/x25519"
)

var update = flag.Bool("update", false, "write testdata/exchange.json anew; review the difference")

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A vector is one entry of testdata/published.json: values that others
// published or computed, with their source.
type vector struct {
	ID     string   `json:"id"`
	Kind   string   `json:"kind"`
	Source string   `json:"source"`
	Points []string `json:"u_coordinates"`

	IKM, Salt, Info, OKM string

	ChainKey     string `json:"chain_key"`
	MessageKey   string `json:"message_key_seed"`
	NextChainKey string `json:"next_chain_key"`

	DH          string `json:"dh"`
	OurPrivate  string `json:"our_private"`
	TheirPublic string `json:"their_public"`
	RootKey     string `json:"root_key"`
	NextRoot    string `json:"next_root"`
	NextChain   string `json:"next_chain"`
}

type vectors []vector

func readVectors(t testing.TB) vectors {
	t.Helper()
	b, err := os.ReadFile("testdata/published.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (vs vectors) find(t testing.TB, id string) vector {
	t.Helper()
	for _, v := range vs {
		if v.ID == id {
			return v
		}
	}
	t.Fatalf("no vector %s", id)
	return vector{}
}

func TestChainStepMatchesPublishedVector(t *testing.T) {
	v := readVectors(t).find(t, "chainkey-v3")
	c := chain{exists: true}
	c.key.b = [32]byte(unhex(t, v.ChainKey))
	mk := c.step()
	if got := hex.EncodeToString(mk.b[:]); got != v.MessageKey {
		t.Errorf("message key = %s, want %s", got, v.MessageKey)
	}
	if got := hex.EncodeToString(c.key.b[:]); got != v.NextChainKey {
		t.Errorf("next chain key = %s, want %s", got, v.NextChainKey)
	}
}

func TestRootStepMatchesDerivedVector(t *testing.T) {
	v := readVectors(t).find(t, "rootkey-v3-derived")
	var rk rootKey
	rk.b = [32]byte(unhex(t, v.RootKey))
	own := x25519.FromSeed([32]byte(unhex(t, v.OurPrivate)))
	dh, err := own.Shared(x25519.Public(unhex(t, v.TheirPublic)))
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(dh[:]); got != v.DH {
		t.Fatalf("agreement = %s, want %s", got, v.DH)
	}
	next, ck := kdfRK(&rk, &dh, v.Info)
	if got := hex.EncodeToString(next.b[:]); got != v.NextRoot {
		t.Errorf("next root key = %s, want %s", got, v.NextRoot)
	}
	if got := hex.EncodeToString(ck.b[:]); got != v.NextChain {
		t.Errorf("chain key = %s, want %s", got, v.NextChain)
	}
}

func TestHKDFMatchesPublishedVectors(t *testing.T) {
	for _, id := range []string{"hkdf-v3-1", "hkdf-v3-2"} {
		v := readVectors(t).find(t, id)
		prk := hkdfExtract(unhex(t, v.Salt), unhex(t, v.IKM))
		okm := make([]byte, len(v.OKM)/2)
		hkdfExpand(okm, &prk, string(unhex(t, v.Info)))
		if got := hex.EncodeToString(okm); got != v.OKM {
			t.Errorf("%s: %s, want %s", id, got, v.OKM)
		}
	}
}

func TestHMACAgreesWithStandardLibrary(t *testing.T) {
	for _, k := range []int{0, 1, 24, 32, 63, 64, 65, 200} {
		for _, n := range []int{0, 1, 32, 55, 56, 64, 191, 192, 193, 500} {
			key, data := bytes.Repeat([]byte{0xa5}, k), bytes.Repeat([]byte{0x5a}, n)
			h := hmac.New(sha256.New, key)
			h.Write(data)
			if got, want := hmacSHA256(key, data), h.Sum(nil); !bytes.Equal(got[:], want) {
				t.Errorf("HMAC of %d bytes under %d = %x, want %x", n, k, got, want)
			}
		}
	}
}

// A step of testdata/exchange.json: from seals a message with the given
// randomness, or, where there is only deliver, the message of that step opens.
// All is hex but the plaintext.
type step struct {
	From      string `json:"from,omitempty"` // alice or bob
	Fresh     string `json:"fresh,omitempty"`
	Hedge     string `json:"hedge,omitempty"`
	Plaintext string `json:"plaintext,omitempty"`
	Message   string `json:"message,omitempty"`
	AckMAC    string `json:"ack_mac,omitempty"` // of an envelope hash of zeros
	Deliver   *int   `json:"deliver,omitempty"`
	State     string `json:"state"` // of the side that acted
}

// An exchange is a whole conversation, from the output of the key agreement.
type exchange struct {
	ID         string `json:"id"`
	Root       string `json:"root"`
	Associated string `json:"associated"`
	PreKey     string `json:"pre_key"` // private, of bob
	First      string `json:"first"`   // first ratchet key of alice, private
	Steps      []step `json:"steps"`
}

// script seals where it names a side, and delivers the message of the step it
// numbers: in order, with gaps, late, over steps.
var script = []any{"alice", 0, "alice", "alice", 3, "bob", 5, "bob", "alice", 8, 2, "bob", 11, 7, "alice", "alice", 15, 14}

// bytes32 returns 32 bytes that only mean to be recognisable.
func bytes32(s string) [32]byte { return sha256.Sum256([]byte(s)) }

func TestExchangeMatchesVectors(t *testing.T) {
	const file = "testdata/exchange.json"
	id, root, associated, first := bytes32("id"), bytes32("root"), bytes32("associated"), bytes32("first")
	spk := bytes32("pre-key")
	alice, err := newInitiator(x25519.FromSeed(first), id, root, associated, preKeyPublic(spk))
	if err != nil {
		t.Fatal(err)
	}
	bob := NewResponder(id, root, associated, x25519.FromSeed(spk))
	x := exchange{ID: hex.EncodeToString(id[:]), Root: hex.EncodeToString(root[:]), Associated: hex.EncodeToString(associated[:]), PreKey: hex.EncodeToString(spk[:]), First: hex.EncodeToString(first[:])}
	tables := map[*Session]rows{alice: {}, bob: {}}
	sides := map[string]*Session{"alice": alice, "bob": bob}
	for i, what := range script {
		var st step
		var s *Session
		switch what := what.(type) {
		case string:
			s = sides[what]
			st.From, st.Plaintext = what, "message "+strings.Repeat("x", i)
			var fresh x25519.Private
			if !s.send.exists {
				seed := bytes32("fresh" + st.Plaintext)
				fresh, st.Fresh = x25519.FromSeed(seed), hex.EncodeToString(seed[:])
			}
			h := bytes32("hedge" + st.Plaintext)
			m, err := s.seal(fresh, [HedgeSize]byte(h[:]), []byte(st.Plaintext))
			if err != nil {
				t.Fatal(err)
			}
			mac := m.Ack.MAC([32]byte{})
			st.Hedge, st.Message, st.AckMAC = hex.EncodeToString(h[:HedgeSize]), hex.EncodeToString(m.Message), hex.EncodeToString(mac[:])
		case int:
			st.Deliver = &what
			from := x.Steps[what]
			s = alice
			if from.From == "alice" {
				s = bob
			}
			o, err := s.Open(unhex(t, from.Message), tables[s].lookup)
			if err != nil {
				t.Fatalf("step %d: Open = %v", i, err)
			}
			mac := o.Ack.MAC([32]byte{})
			if string(o.Plaintext) != from.Plaintext || hex.EncodeToString(mac[:]) != from.AckMAC {
				t.Fatalf("step %d: Open = %q, want %q", i, o.Plaintext, from.Plaintext)
			}
			tables[s].commit(o)
		}
		st.State = hex.EncodeToString(s.Marshal())
		x.Steps = append(x.Steps, st)
	}
	got, err := json.MarshalIndent(x, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
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
		t.Errorf("the exchange is not that of %s: the format has changed", file)
	}
}

func preKeyPublic(seed [32]byte) x25519.Public {
	k := x25519.FromSeed(seed)
	return k.Public()
}

// The first message of testdata/exchange.json, computed with the standard
// library alone and nothing of this package, from the text of SPEC §6.
func TestFirstMessageByHand(t *testing.T) {
	b, err := os.ReadFile("testdata/exchange.json")
	if err != nil {
		t.Fatal(err)
	}
	var x exchange
	if err := json.Unmarshal(b, &x); err != nil {
		t.Fatal(err)
	}
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	hmac256 := func(key, data []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(data)
		return h.Sum(nil)
	}
	own, err := ecdh.X25519().NewPrivateKey(unhex(t, x.First))
	if err != nil {
		t.Fatal(err)
	}
	spk, err := ecdh.X25519().NewPrivateKey(unhex(t, x.PreKey))
	if err != nil {
		t.Fatal(err)
	}
	first := x.Steps[0]
	hedge := unhex(t, first.Hedge)

	dh := must(own.ECDH(spk.PublicKey()))
	okm := must(hkdf.Key(sha256.New, dh, unhex(t, x.Root), "starling/v1/ratchet-root", 64))
	mk := hmac256(okm[32:], []byte{1})
	key := must(hkdf.Key(sha256.New, mk, hedge, "starling/v1/ratchet-message", 44))
	ack := must(hkdf.Key(sha256.New, mk, hedge, "starling/v1/ratchet-ack", 32))

	header := slices.Concat([]byte{1}, own.PublicKey().Bytes(), make([]byte, 4), make([]byte, 4), hedge)
	block, err := aes.NewCipher(key[:32])
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	message := gcm.Seal(header, key[32:], []byte(first.Plaintext), slices.Concat(unhex(t, x.Associated), header))
	if got := hex.EncodeToString(message); got != first.Message {
		t.Errorf("message = %s, want %s", got, first.Message)
	}
	if got := hex.EncodeToString(hmac256(ack, slices.Concat([]byte("starling/v1/ack\x00"), make([]byte, 32)))); got != first.AckMAC {
		t.Errorf("acknowledgement = %s, want %s", got, first.AckMAC)
	}
}

// A hash over every message, state and stored key of a long exchange. It
// changes if any byte does; if that is meant, so does the protocol's version.
func TestLongExchangeHash(t *testing.T) {
	const want = "049355f772c6be503f14dbd28aad7904f100fba231b9ab16dfd32c54fdb6eaf7"
	r := newRandomness(1)
	alice, err := NewInitiator(&r, bytes32("id"), bytes32("root"), bytes32("associated"), preKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	bob := NewResponder(bytes32("id"), bytes32("root"), bytes32("associated"), preKey)
	sides, tables := [2]*Session{alice, bob}, [2]rows{{}, {}}
	var late [2][][]byte
	all := sha256.New()
	for i := range 3000 {
		who := int(r.Uint64() % 2)
		if !sides[who].CanSend() {
			who = 1 - who
		}
		text := binary.BigEndian.AppendUint32(make([]byte, r.Uint64()%300), uint32(i))
		m, err := sides[who].Seal(&r, text)
		if err != nil {
			t.Fatal(err)
		}
		to, queue := 1-who, [][]byte{m.Message}
		mac := m.Ack.MAC(bytes32("envelope"))
		all.Write(mac[:])
		switch {
		case r.Uint64()%4 == 0:
			late[to], queue = append(late[to], m.Message), nil
		case r.Uint64()%8 == 0:
			queue, late[to] = append(queue, late[to]...), nil
		}
		for _, m := range queue {
			o, err := sides[to].Open(m, tables[to].lookup)
			if err != nil {
				t.Fatal(err)
			}
			tables[to].commit(o)
			for _, k := range o.Store {
				all.Write(k.ID.Ratchet[:])
				all.Write(binary.BigEndian.AppendUint32(nil, k.ID.N))
				all.Write(k.Key[:])
			}
			all.Write(o.Plaintext)
		}
		all.Write(m.Message)
		all.Write(sides[who].Marshal())
		all.Write(sides[to].Marshal())
	}
	if got := hex.EncodeToString(all.Sum(nil)); got != want {
		t.Errorf("hash = %s, want %s", got, want)
	}
}
