package prekey

import (
	"bytes"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// now lies in the middle of a day, so that no test depends on midnight.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// A stream is the randomness of a test: SHA-256 of a name and a counter.
type stream struct {
	name string
	n    uint64
	left []byte
}

func (s *stream) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		if len(s.left) == 0 {
			h := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(s.name), s.n))
			s.n++
			s.left = h[:]
		}
		m := copy(b[n:], s.left)
		n, s.left = n+m, s.left[m:]
	}
	return n, nil
}

// A node is one end: an account with one device and the keys of today.
type node struct {
	account  *identity.AccountKey
	dk       *identity.DeviceKey
	self     Party
	manifest []byte
	profile  identity.Profile
	caps     uint64

	day, oneTime             Private
	dayBytes, oneTimeBytes   []byte
	dayBundle, oneTimeBundle *Bundle
}

func newNode(t testing.TB, name string, caps uint64) *node {
	t.Helper()
	r := &stream{name: name}
	secret := func() identity.Secret {
		s, err := identity.NewSecret(r)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	private := func() Private {
		p, err := NewPrivate(r)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	n := &node{account: identity.NewAccountKey(secret()), caps: caps}
	dh, err := x25519.Generate(r)
	if err != nil {
		t.Fatal(err)
	}
	n.dk = identity.NewDeviceKey(secret(), dh)
	n.self = Party{Account: n.account.Account(), Device: n.dk.Device(), DH: dh.Public(), Capabilities: caps}
	n.manifest = identity.SignManifest(n.account, uint64(now.Unix()), []identity.DeviceEntry{{Key: n.self.Device, DH: n.self.DH}})
	n.profile = identity.Profile{Name: name}
	r.Read(n.profile.Lookup[:])

	n.day, n.oneTime = private(), private()
	n.dayBytes = SignBundle(n.dk, n.self.Account, wire.Role_ROLE_DAY, caps, DayStart(DayOf(now)), DayStart(DayOf(now)+1), &n.day)
	n.oneTimeBytes = SignBundle(n.dk, n.self.Account, wire.Role_ROLE_ONE_TIME, caps, now, now.Add(protocol.OneTimeLife), &n.oneTime)
	n.dayBundle = n.open(t, n.dayBytes, wire.Role_ROLE_DAY)
	n.oneTimeBundle = n.open(t, n.oneTimeBytes, wire.Role_ROLE_ONE_TIME)
	return n
}

func (n *node) open(t testing.TB, b []byte, role wire.Role) *Bundle {
	t.Helper()
	bundle, err := OpenBundle(b, n.self.Account, n.self.Device, role, now)
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

// initiate starts a session from n to peer, with fixed randomness.
func (n *node) initiate(t testing.TB, peer *node, oneTime *Bundle, replaces *SessionID, token *identity.Token) (Secrets, *wire.Handshake) {
	t.Helper()
	s, hs, err := n.tryInitiate(peer.self, peer.dayBundle, oneTime, replaces, token)
	if err != nil {
		t.Fatal(err)
	}
	return s, hs
}

func (n *node) tryInitiate(peer Party, day, oneTime *Bundle, replaces *SessionID, token *identity.Token) (Secrets, *wire.Handshake, error) {
	r := &stream{name: "handshake"}
	eph, err := x25519.Generate(r)
	if err != nil {
		return Secrets{}, nil, err
	}
	return initiate(&eph, encapsulateFrom(r), n.dk, n.self, peer, day, oneTime, replaces,
		Introduction{Manifest: n.manifest, Profile: n.profile, Token: token})
}

func encapsulateFrom(r io.Reader) func(*mlkem.EncapsulationKey1024) (ss, ct []byte) {
	return func(ek *mlkem.EncapsulationKey1024) (ss, ct []byte) {
		var m [32]byte
		if _, err := io.ReadFull(r, m[:]); err != nil {
			panic(err)
		}
		ss, ct, err := mlkemtest.Encapsulate1024(ek, m[:])
		if err != nil {
			panic(err)
		}
		return ss, ct
	}
}

func (n *node) introduction(hs *wire.Handshake) (Introduced, error) {
	return OpenIntroduction(n.dk, n.self.Account, &n.day, n.dayBundle, hs, now)
}

// respond runs both steps of the responder, with the one-time keys if hs names
// some.
func (n *node) respond(t testing.TB, hs *wire.Handshake) (Secrets, Introduced) {
	t.Helper()
	in, err := n.introduction(hs)
	if err != nil {
		t.Fatal(err)
	}
	var oneTime *Private
	var bundle *Bundle
	if _, id, err := Keys(hs); err != nil {
		t.Fatal(err)
	} else if id != nil {
		oneTime, bundle = &n.oneTime, n.oneTimeBundle
	}
	s, err := Respond(n.dk, n.self.Account, &n.day, n.dayBundle, oneTime, bundle, hs, in)
	if err != nil {
		t.Fatal(err)
	}
	return s, in
}

// equal compares every part of two secrets; a test needs no constant time.
func equal(a, b Secrets) bool {
	return a.Root == b.Root && a.PQSeed == b.PQSeed && a.Session == b.Session &&
		a.Associated == b.Associated && a.Transcript == b.Transcript
}

func clone(hs *wire.Handshake) *wire.Handshake { return proto.Clone(hs).(*wire.Handshake) }

func flip(b []byte, bit int) []byte {
	b = bytes.Clone(b)
	b[bit/8] ^= 1 << (bit % 8)
	return b
}

func TestBothSidesDeriveTheSame(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 2)
	old := SessionID{1, 2, 3}
	token := identity.Token{4, 5, 6}
	seen := map[SessionID]string{}
	for _, oneTime := range []*Bundle{nil, bob.oneTimeBundle} {
		for _, replaces := range []*SessionID{nil, &old} {
			for _, tok := range []*identity.Token{nil, &token} {
				name := fmt.Sprintf("one-time %v, replaces %v, token %v", oneTime != nil, replaces != nil, tok != nil)
				want, sent := alice.initiate(t, bob, oneTime, replaces, tok)

				var hs wire.Handshake
				if err := wire.Parse(wire.Marshal(sent), protocol.MaxEnvelope, &hs); err != nil {
					t.Fatal(err)
				}
				got, in := bob.respond(t, &hs)
				if !equal(got, want) {
					t.Errorf("%s: the two sides derived different secrets", name)
				}
				if other, ok := seen[got.Session]; ok && (oneTime != nil || replaces != nil) && tok == nil {
					t.Errorf("%s: same session as with %s", name, other)
				}
				seen[got.Session] = name

				if in.Peer != alice.self {
					t.Errorf("%s: peer is %+v, want %+v", name, in.Peer, alice.self)
				}
				if !bytes.Equal(in.ManifestBytes, alice.manifest) || in.Manifest.Account != alice.self.Account {
					t.Errorf("%s: another manifest arrived", name)
				}
				if in.Profile.Name != "alice" || in.Profile.Lookup != alice.profile.Lookup {
					t.Errorf("%s: profile is %+v, want %+v", name, in.Profile, alice.profile)
				}
				if (in.Replaces == nil) != (replaces == nil) || replaces != nil && *in.Replaces != *replaces {
					t.Errorf("%s: replaces %v, want %v", name, in.Replaces, replaces)
				}
				if got, want := in.CheckToken(token, got), tok != nil; got != want {
					t.Errorf("%s: CheckToken = %v, want %v", name, got, want)
				}
			}
		}
	}
}

func TestPublicInitiateDrawsFreshKeys(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	intro := Introduction{Manifest: alice.manifest, Profile: alice.profile}
	r := &stream{name: "fresh"}
	s1, hs1, err := Initiate(r, alice.dk, alice.self, bob.self, bob.dayBundle, nil, nil, intro)
	if err != nil {
		t.Fatal(err)
	}
	s2, hs2, err := Initiate(r, alice.dk, alice.self, bob.self, bob.dayBundle, nil, nil, intro)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(hs1.Ephemeral, hs2.Ephemeral) || bytes.Equal(hs1.Ciphertext, hs2.Ciphertext) || s1.Session == s2.Session {
		t.Error("two handshakes share an ephemeral key, a ciphertext or a session")
	}
	if got, _ := bob.respond(t, hs1); !equal(got, s1) {
		t.Error("the two sides derived different secrets")
	}
	if _, _, err := Initiate(strings.NewReader("short"), alice.dk, alice.self, bob.self, bob.dayBundle, nil, nil, intro); err == nil {
		t.Error("Initiate went on without randomness")
	}
}

func TestReplayHasTheSameTranscript(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	_, hs := alice.initiate(t, bob, nil, nil, nil)
	first, _ := bob.respond(t, hs)
	second, _ := bob.respond(t, clone(hs))
	if !equal(first, second) {
		t.Error("a replayed handshake has another transcript")
	}
	if HandshakeID(hs) != HandshakeID(clone(hs)) {
		t.Error("a replayed handshake has another ID")
	}
	// What the receiver's table is keyed by cannot be changed through the one
	// field that it leaves out.
	altered := clone(hs)
	altered.Introduction = flip(altered.Introduction, 0)
	if HandshakeID(altered) != HandshakeID(hs) {
		t.Error("the ID depends on the introduction")
	}
}

// TestEveryHandshakeFieldIsAuthenticated changes each field in flight.
func TestEveryHandshakeFieldIsAuthenticated(t *testing.T) {
	alice, bob := newNode(t, "alice", 3), newNode(t, "bob", 3)
	old := SessionID{9}
	_, hs := alice.initiate(t, bob, bob.oneTimeBundle, &old, &identity.Token{1})
	id := HandshakeID(hs)

	fields := hs.ProtoReflect().Descriptor().Fields()
	if fields.Len() != 8 {
		t.Fatalf("a handshake has %d fields; this test knows 8", fields.Len())
	}
	mutations := map[string]func(*wire.Handshake){
		"suite 0":                func(hs *wire.Handshake) { hs.Suite = 0 },
		"suite 2":                func(hs *wire.Handshake) { hs.Suite = 2 },
		"fewer capabilities":     func(hs *wire.Handshake) { hs.Capabilities = 1 },
		"no capabilities":        func(hs *wire.Handshake) { hs.Capabilities = 0 },
		"one-time key dropped":   func(hs *wire.Handshake) { hs.OneTimeKey = nil },
		"one-time key zero":      func(hs *wire.Handshake) { hs.OneTimeKey = make([]byte, KeyIDSize) },
		"replaces dropped":       func(hs *wire.Handshake) { hs.Replaces = nil },
		"replaces zero":          func(hs *wire.Handshake) { hs.Replaces = make([]byte, 32) },
		"ciphertext swapped":     func(hs *wire.Handshake) { _, hs.Ciphertext = bob.oneTimeBundle.KEM.Encapsulate() },
		"ciphertext to day key":  func(hs *wire.Handshake) { _, hs.Ciphertext = bob.dayBundle.KEM.Encapsulate() },
		"introduction dropped":   func(hs *wire.Handshake) { hs.Introduction = nil },
		"introduction truncated": func(hs *wire.Handshake) { hs.Introduction = hs.Introduction[:len(hs.Introduction)-1] },
		"introduction too long":  func(hs *wire.Handshake) { hs.Introduction = make([]byte, protocol.MaxIntro+1) },
		"another day's key":      func(hs *wire.Handshake) { hs.DayKey = bob.oneTimeBundle.ID[:] },
		"ephemeral not canonical": func(hs *wire.Handshake) {
			hs.Ephemeral = bytes.Clone(hs.Ephemeral)
			hs.Ephemeral[31] |= 0x80
		},
	}
	for _, name := range []string{"ephemeral", "day_key", "one_time_key", "ciphertext", "replaces", "introduction"} {
		f := fields.ByTextName(name)
		b := hs.ProtoReflect().Get(f).Bytes()
		for _, bit := range []int{0, 5, len(b) * 4, len(b)*8 - 1} {
			mutations[fmt.Sprintf("%s, bit %d", name, bit)] = func(hs *wire.Handshake) {
				m := hs.ProtoReflect()
				m.Set(f, protoreflect.ValueOfBytes(flip(m.Get(f).Bytes(), bit)))
			}
		}
		mutations[name+" longer"] = func(hs *wire.Handshake) {
			m := hs.ProtoReflect()
			m.Set(f, protoreflect.ValueOfBytes(append(bytes.Clone(m.Get(f).Bytes()), 0)))
		}
	}
	for name, mutate := range mutations {
		bad := clone(hs)
		mutate(bad)
		if proto.Equal(bad, hs) {
			t.Errorf("%s: nothing was changed", name)
		}
		if _, err := bob.introduction(bad); err == nil {
			t.Errorf("%s: the introduction opened", name)
		}
		if _, _, err := Keys(bad); err == nil && !strings.HasPrefix(name, "introduction") && HandshakeID(bad) == id {
			t.Errorf("%s: the handshake keeps its ID", name)
		}
	}
	if _, err := bob.introduction(nil); err == nil {
		t.Error("no handshake at all has an introduction")
	}
}

// TestTranscriptCoversEverything changes each input of the hash by itself, as a
// dishonest end would, and wants a hash of its own for each.
func TestTranscriptCoversEverything(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	old := SessionID{}
	_, hs := alice.initiate(t, bob, bob.oneTimeBundle, &old, nil)

	type input struct {
		hs           *wire.Handshake
		a, b         Party
		day, oneTime Bundle
		noOneTime    bool
	}
	otherKEM := newNode(t, "carol", 1).dayBundle.KEM
	mutations := map[string]func(*input){
		"nothing":                func(*input) {},
		"suite":                  func(in *input) { in.hs.Suite++ },
		"initiator capabilities": func(in *input) { in.hs.Capabilities++ },
		"day capabilities":       func(in *input) { in.day.Capabilities++ },
		"one-time capabilities":  func(in *input) { in.oneTime.Capabilities++ },
		"ephemeral":              func(in *input) { in.hs.Ephemeral[0]++ },
		"day key ID":             func(in *input) { in.hs.DayKey[0]++ },
		"one-time key ID":        func(in *input) { in.hs.OneTimeKey[15]++ },
		"no one-time key":        func(in *input) { in.hs.OneTimeKey, in.noOneTime = nil, true },
		"ciphertext":             func(in *input) { in.hs.Ciphertext[1567]++ },
		"replaced session":       func(in *input) { in.hs.Replaces[31]++ },
		"no replaced session":    func(in *input) { in.hs.Replaces = nil },
		"initiator account":      func(in *input) { in.a.Account[0]++ },
		"initiator device":       func(in *input) { in.a.Device[0]++ },
		"initiator identity DH":  func(in *input) { in.a.DH[0]++ },
		"responder account":      func(in *input) { in.b.Account[0]++ },
		"responder device":       func(in *input) { in.b.Device[0]++ },
		"responder identity DH":  func(in *input) { in.b.DH[0]++ },
		"direction":              func(in *input) { in.a, in.b = in.b, in.a },
		"day X25519":             func(in *input) { in.day.X25519[0]++ },
		"one-time X25519":        func(in *input) { in.oneTime.X25519[0]++ },
		"KEM key":                func(in *input) { in.oneTime.KEM = otherKEM },
	}
	seen := map[[32]byte]string{}
	for name, mutate := range mutations {
		in := &input{hs: clone(hs), a: alice.self, b: bob.self, day: *bob.dayBundle, oneTime: *bob.oneTimeBundle}
		mutate(in)
		oneTime := &in.oneTime
		if in.noOneTime {
			oneTime = nil
		}
		h := transcript(HandshakeID(in.hs), &in.a, &in.b, &in.day, oneTime)
		if other, ok := seen[h]; ok {
			t.Errorf("%s: same transcript as %s", name, other)
		}
		seen[h] = name
	}
	if got, want := len(public(hs)), publicSize; got != want {
		t.Errorf("the public part has %d bytes, want %d", got, want)
	}
}

// TestTranscriptIsInTheKeys shows that two ends that disagree on anything the
// transcript covers share no secret, even though every DH value is equal.
func TestTranscriptIsInTheKeys(t *testing.T) {
	alice, bob := newNode(t, "alice", 3), newNode(t, "bob", 3)
	want, hs := alice.initiate(t, bob, nil, nil, nil)
	in, err := bob.introduction(hs)
	if err != nil {
		t.Fatal(err)
	}
	respond := func(mutate func(day *Bundle, in *Introduced)) Secrets {
		day, in := *bob.dayBundle, in
		mutate(&day, &in)
		s, err := Respond(bob.dk, bob.self.Account, &bob.day, &day, nil, nil, hs, in)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if got := respond(func(*Bundle, *Introduced) {}); !equal(got, want) {
		t.Fatal("the two sides derived different secrets")
	}
	for name, mutate := range map[string]func(*Bundle, *Introduced){
		"capabilities downgraded": func(day *Bundle, _ *Introduced) { day.Capabilities = 1 },
		"another account":         func(_ *Bundle, in *Introduced) { in.Peer.Account[0] ^= 1 },
		"another device":          func(_ *Bundle, in *Introduced) { in.Peer.Device[0] ^= 1 },
	} {
		got := respond(mutate)
		if got.Transcript == want.Transcript || got.Root == want.Root || got.PQSeed == want.PQSeed || got.Session == want.Session {
			t.Errorf("%s: the two sides still share something", name)
		}
	}
}

// TestSwappedCiphertextSharesNoSecret is a dishonest initiator's, who can seal
// an introduction that fits: decapsulation never fails, so the secrets differ.
func TestSwappedCiphertextSharesNoSecret(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	want, hs := alice.initiate(t, bob, nil, nil, nil)
	_, hs.Ciphertext = bob.dayBundle.KEM.Encapsulate()
	alice.reseal(t, bob, hs, func(*wire.Introduction) {})
	got, _ := bob.respond(t, hs)
	if got.Root == want.Root || got.Session == want.Session {
		t.Error("secrets do not depend on the KEM ciphertext")
	}
}

// reseal replaces the introduction of a handshake that n made with
// [node.initiate], after edit changed it. The sender tag is made anew.
func (n *node) reseal(t testing.TB, peer *node, hs *wire.Handshake, edit func(*wire.Introduction)) {
	t.Helper()
	eph, err := x25519.Generate(&stream{name: "handshake"})
	if err != nil {
		t.Fatal(err)
	}
	shared := func(k *x25519.Private, pub x25519.Public) [32]byte {
		z, err := k.Shared(pub)
		if err != nil {
			t.Fatal(err)
		}
		return z
	}
	dh2, dh3 := shared(&eph, peer.self.DH), shared(&eph, peer.dayBundle.X25519)
	static := shared(n.dk.DH(), peer.self.DH)
	var manifest wire.Signed
	if err := wire.Parse(n.manifest, protocol.MaxManifest, &manifest); err != nil {
		t.Fatal(err)
	}
	tag := senderTag(&static, &n.self, &peer.self, HandshakeID(hs))
	m := &wire.Introduction{Manifest: &manifest, Device: n.self.Device[:], SenderTag: tag[:], Profile: n.profile.Wire()}
	edit(m)
	hs.Introduction = introductionAEAD(HandshakeID(hs), &peer.self, &dh2, &dh3).Seal(nil, make([]byte, gcmNonceSize), wire.Marshal(m), nil)
}

func TestIntroductionOpensWithoutTheOneTimeKey(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	_, hs := alice.initiate(t, bob, bob.oneTimeBundle, nil, nil)
	in, err := bob.introduction(hs)
	if err != nil {
		t.Fatal(err)
	}
	if in.Peer != alice.self {
		t.Error("the introduction names somebody else")
	}
	_, err = Respond(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, nil, nil, hs, in)
	if !errors.Is(err, ErrKeyGone) {
		t.Errorf("Respond without the one-time key: %v, want ErrKeyGone", err)
	}
}

func TestRespondRefusesWhatDoesNotBelongTogether(t *testing.T) {
	alice, bob, carol := newNode(t, "alice", 1), newNode(t, "bob", 1), newNode(t, "carol", 1)
	_, plain := alice.initiate(t, bob, nil, nil, nil)
	_, once := alice.initiate(t, bob, bob.oneTimeBundle, nil, nil)
	inPlain, err := bob.introduction(plain)
	if err != nil {
		t.Fatal(err)
	}
	inOnce, err := bob.introduction(once)
	if err != nil {
		t.Fatal(err)
	}
	for name, fn := range map[string]func() (Secrets, error){
		"introduction of another handshake": func() (Secrets, error) {
			return Respond(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, nil, nil, plain, inOnce)
		},
		"one-time key that was not used": func() (Secrets, error) {
			return Respond(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, &bob.oneTime, bob.oneTimeBundle, plain, inPlain)
		},
		"one-time bundle of another": func() (Secrets, error) {
			return Respond(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, &carol.oneTime, carol.oneTimeBundle, once, inOnce)
		},
		"day bundle in the one-time place": func() (Secrets, error) {
			return Respond(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, &bob.day, bob.dayBundle, once, inOnce)
		},
		"day bundle of another": func() (Secrets, error) {
			return Respond(bob.dk, bob.self.Account, &carol.day, carol.dayBundle, nil, nil, plain, inPlain)
		},
		"another account": func() (Secrets, error) {
			return Respond(bob.dk, carol.self.Account, &bob.day, bob.dayBundle, nil, nil, plain, inPlain)
		},
		"no handshake": func() (Secrets, error) {
			return Respond(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, nil, nil, nil, inPlain)
		},
	} {
		if _, err := fn(); err == nil || errors.Is(err, ErrKeyGone) {
			t.Errorf("%s: error %v, want a refusal", name, err)
		}
	}
}

func TestInitiateRefusesForeignBundles(t *testing.T) {
	alice, bob, carol := newNode(t, "alice", 1), newNode(t, "bob", 1), newNode(t, "carol", 1)
	type args struct {
		self, peer   Party
		day, oneTime *Bundle
	}
	for name, mutate := range map[string]func(*args){
		"no day bundle":                    func(a *args) { a.day = nil },
		"day bundle of another device":     func(a *args) { a.day = carol.dayBundle },
		"one-time bundle of another":       func(a *args) { a.oneTime = carol.oneTimeBundle },
		"one-time bundle in the day place": func(a *args) { a.day = bob.oneTimeBundle },
		"day bundle in the one-time place": func(a *args) { a.oneTime = bob.dayBundle },
		"peer of another account":          func(a *args) { a.peer.Account = carol.self.Account },
		"own device as the peer":           func(a *args) { a.peer, a.day, a.oneTime = alice.self, alice.dayBundle, nil },
		"self with another device key":     func(a *args) { a.self.Device = carol.self.Device },
		"self with another DH key":         func(a *args) { a.self.DH = carol.self.DH },
	} {
		a := args{alice.self, bob.self, bob.dayBundle, bob.oneTimeBundle}
		mutate(&a)
		_, _, err := Initiate(&stream{name: "x"}, alice.dk, a.self, a.peer, a.day, a.oneTime, nil,
			Introduction{Manifest: alice.manifest, Profile: alice.profile})
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, intro := range map[string]Introduction{
		"no manifest":        {Profile: alice.profile},
		"not protobuf":       {Manifest: []byte{0xff}, Profile: alice.profile},
		"another's manifest": {Manifest: carol.manifest, Profile: alice.profile},
		"too long":           {Manifest: alice.manifest, Profile: identity.Profile{Name: strings.Repeat("x", protocol.MaxIntro)}},
	} {
		if _, _, err := Initiate(&stream{name: "x"}, alice.dk, alice.self, bob.self, bob.dayBundle, nil, nil, intro); err == nil {
			t.Errorf("introduction with %s: accepted", name)
		}
	}
}

// lowOrder are the canonical u-coordinates of the points of small order on the
// curve and its twist (vectors x25519-low-order-u; the rest are not canonical).
var lowOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
	"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
}

func TestLowOrderKeysAreRefused(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	_, hs := alice.initiate(t, bob, nil, nil, nil)
	for _, s := range lowOrder {
		pub, err := x25519.Parse(unhex(t, s))
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}

		day, oneTime, peer := *bob.dayBundle, *bob.oneTimeBundle, bob.self
		day.X25519, oneTime.X25519, peer.DH = pub, pub, pub
		for name, fn := range map[string]func() error{
			"day": func() error { _, _, err := alice.tryInitiate(bob.self, &day, nil, nil, nil); return err },
			"one-time": func() error {
				_, _, err := alice.tryInitiate(bob.self, bob.dayBundle, &oneTime, nil, nil)
				return err
			},
			"identity DH": func() error { _, _, err := alice.tryInitiate(peer, bob.dayBundle, nil, nil, nil); return err },
			"ephemeral": func() error {
				bad := clone(hs)
				bad.Ephemeral = pub[:]
				_, err := bob.introduction(bad)
				return err
			},
			"initiator's identity DH": func() error {
				mallory := *alice
				mallory.self.DH = pub
				mallory.manifest = identity.SignManifest(mallory.account, uint64(now.Unix()),
					[]identity.DeviceEntry{{Key: mallory.self.Device, DH: pub}})
				bad := clone(hs)
				mallory.reseal(t, bob, bad, func(*wire.Introduction) {})
				_, err := bob.introduction(bad)
				return err
			},
		} {
			if err := fn(); !errors.Is(err, x25519.ErrKey) {
				t.Errorf("%s key %s: error %v, want x25519.ErrKey", name, s, err)
			}
		}
	}
}

// TestIntroductionIsChecked is a dishonest initiator's: everything inside the
// layer that could be wrong.
func TestIntroductionIsChecked(t *testing.T) {
	alice, bob, carol := newNode(t, "alice", 1), newNode(t, "bob", 1), newNode(t, "carol", 1)
	signed := func(b []byte) *wire.Signed {
		var s wire.Signed
		if err := wire.Parse(b, protocol.MaxManifest, &s); err != nil {
			t.Fatal(err)
		}
		return &s
	}
	entry := identity.DeviceEntry{Key: alice.self.Device, DH: alice.self.DH}
	future := identity.SignManifest(alice.account, uint64(now.Add(48*time.Hour).Unix()), []identity.DeviceEntry{entry})
	for name, edit := range map[string]func(*wire.Introduction){
		"":                            func(*wire.Introduction) {},
		"no manifest":                 func(m *wire.Introduction) { m.Manifest = nil },
		"empty manifest":              func(m *wire.Introduction) { m.Manifest = &wire.Signed{} },
		"manifest of another account": func(m *wire.Introduction) { m.Manifest = signed(carol.manifest) },
		"forged manifest":             func(m *wire.Introduction) { m.Manifest.Signature = flip(m.Manifest.Signature, 3) },
		"manifest from the future":    func(m *wire.Introduction) { m.Manifest = signed(future) },
		"device not in the manifest":  func(m *wire.Introduction) { m.Device = carol.self.Device[:] },
		"no device":                   func(m *wire.Introduction) { m.Device = nil },
		"no sender tag":               func(m *wire.Introduction) { m.SenderTag = nil },
		"short sender tag":            func(m *wire.Introduction) { m.SenderTag = m.SenderTag[:16] },
		"wrong sender tag":            func(m *wire.Introduction) { m.SenderTag = flip(m.SenderTag, 255) },
		"no profile":                  func(m *wire.Introduction) { m.Profile = nil },
		"profile with a control code": func(m *wire.Introduction) { m.Profile.Name = "a\x1b[2J" },
		"profile with four mailboxes": func(m *wire.Introduction) {
			m.Profile.Mail = &wire.Mail{Mailboxes: [][]byte{{1}, {2}, {3}, {4}}}
		},
		"token without a MAC":       func(m *wire.Introduction) { m.TokenId = make([]byte, 16) },
		"MAC without a token":       func(m *wire.Introduction) { m.TokenMac = make([]byte, 32) },
		"token of the wrong length": func(m *wire.Introduction) { m.TokenId, m.TokenMac = make([]byte, 15), make([]byte, 32) },
		// Carol's manifest, device and tag key: an impersonation by whoever
		// holds neither of the two identity DH keys.
		"another's manifest and device": func(m *wire.Introduction) {
			m.Manifest, m.Device = signed(carol.manifest), carol.self.Device[:]
		},
		"the recipient itself": func(m *wire.Introduction) {
			m.Manifest, m.Device = signed(bob.manifest), bob.self.Device[:]
		},
	} {
		_, hs := alice.initiate(t, bob, nil, nil, nil)
		alice.reseal(t, bob, hs, edit)
		_, err := bob.introduction(hs)
		if (err == nil) != (name == "") {
			t.Errorf("%q: error %v", name, err)
		}
	}
}

// TestSenderTagBindsBothManifests shows that a tag does not serve for another
// pair, direction or handshake.
func TestSenderTagBindsBothManifests(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	static, err := alice.dk.DH().Shared(bob.self.DH)
	if err != nil {
		t.Fatal(err)
	}
	id := [32]byte{1}
	want := senderTag(&static, &alice.self, &bob.self, id)
	if senderTag(&static, &bob.self, &alice.self, id) == want {
		t.Error("a tag can be reflected")
	}
	if senderTag(&static, &alice.self, &bob.self, [32]byte{2}) == want {
		t.Error("a tag serves for another handshake")
	}
	for i, mutate := range []func(a, b *Party){
		func(a, _ *Party) { a.Account[0] ^= 1 },
		func(a, _ *Party) { a.Device[0] ^= 1 },
		func(a, _ *Party) { a.DH[0] ^= 1 },
		func(_, b *Party) { b.Account[0] ^= 1 },
		func(_, b *Party) { b.Device[0] ^= 1 },
		func(_, b *Party) { b.DH[0] ^= 1 },
	} {
		a, b := alice.self, bob.self
		mutate(&a, &b)
		if senderTag(&static, &a, &b, id) == want {
			t.Errorf("case %d: a tag serves for another pair", i)
		}
	}
}

func TestTokenCountsForItsHandshakeOnly(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	token, other := identity.Token{1}, identity.Token{2}
	_, hs := alice.initiate(t, bob, nil, nil, &token)
	s, in := bob.respond(t, hs)
	if !in.CheckToken(token, s) {
		t.Fatal("the right token is refused")
	}
	if in.CheckToken(other, s) {
		t.Error("a wrong token is accepted")
	}
	if id := token.ID(); in.TokenID == nil || *in.TokenID != id {
		t.Error("the introduction names another token")
	}

	// Mallory saw a token's ID and MAC in her own conversation and moves them
	// into another one.
	mallory := newNode(t, "mallory", 1)
	_, moved := mallory.initiate(t, bob, nil, nil, nil)
	mallory.reseal(t, bob, moved, func(m *wire.Introduction) { m.TokenId, m.TokenMac = in.TokenID[:], in.TokenMAC[:] })
	s2, in2 := bob.respond(t, moved)
	if in2.CheckToken(token, s2) {
		t.Error("a token's MAC serves in another handshake")
	}

	wrong := in
	wrong.TokenMAC[0] ^= 1
	if wrong.CheckToken(token, s) {
		t.Error("a wrong MAC is accepted")
	}
	if _, hs := alice.initiate(t, bob, nil, nil, nil); true {
		s, in := bob.respond(t, hs)
		if in.TokenID != nil || in.CheckToken(identity.Token{}, s) {
			t.Error("a handshake without a token has one")
		}
	}
}

func TestKnownManifestIsNotCheckedAgain(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	_, hs := alice.initiate(t, bob, nil, nil, nil)
	m, err := identity.OpenManifest(alice.manifest, alice.self.Account, now)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	known := func(b []byte) (identity.Manifest, bool) {
		asked++
		return m, bytes.Equal(b, alice.manifest)
	}
	in, err := OpenKnownIntroduction(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, hs, known, now)
	if err != nil || asked != 1 || in.Peer != alice.self {
		t.Errorf("error %v, asked %d times, peer %+v", err, asked, in.Peer)
	}
	unknown := func([]byte) (identity.Manifest, bool) { return identity.Manifest{}, false }
	if in, err := OpenKnownIntroduction(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, hs, unknown, now); err != nil || in.Peer != alice.self {
		t.Errorf("an unknown manifest was not opened: %v", err)
	}
	alice.reseal(t, bob, hs, func(m *wire.Introduction) { m.Manifest.Signature = flip(m.Manifest.Signature, 0) })
	if _, err := OpenKnownIntroduction(bob.dk, bob.self.Account, &bob.day, bob.dayBundle, hs, known, now); err == nil {
		t.Error("a forged manifest passes as the known one")
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	alice, bob := newNode(t, "alice", 1), newNode(t, "bob", 1)
	s, hs := alice.initiate(t, bob, nil, nil, nil)
	in, err := bob.introduction(hs)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{s, &s, bob.day, &bob.day, in, &in} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s", "%d"} {
			if got := fmt.Sprintf(verb, v); got != "[secret]" {
				t.Errorf("%T prints as %s", v, got)
			}
		}
	}
}
