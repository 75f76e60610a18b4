package envelope

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"crypto/sha3"
	"encoding/binary"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// now lies in the middle of a week and of a day, so that no test depends on
// midnight.
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

// A person is an account with one device and the sealing key of this week.
type person struct {
	account  *identity.AccountKey
	dk       *identity.DeviceKey
	entry    identity.DeviceEntry
	manifest []byte
	private  *SealingPrivate
	signed   []byte
	key      *SealingKey
}

func newPerson(t testing.TB, name string) *person {
	t.Helper()
	r := &stream{name: name}
	secret := func() identity.Secret {
		s, err := identity.NewSecret(r)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	p := &person{account: identity.NewAccountKey(secret())}
	dh, err := x25519.Generate(r)
	if err != nil {
		t.Fatal(err)
	}
	p.dk = identity.NewDeviceKey(secret(), dh)
	p.entry = identity.DeviceEntry{Key: p.dk.Device(), DH: dh.Public()}
	p.manifest = p.sign(uint64(now.Unix()), p.entry)
	if p.private, err = NewSealingPrivate(r); err != nil {
		t.Fatal(err)
	}
	p.signed = SignSealingKey(p.dk, p.account.Account(), WeekOf(now), p.private)
	if p.key, err = OpenSealingKey(p.signed, p.account.Account(), p.entry.Key, now); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *person) sign(generation uint64, devices ...identity.DeviceEntry) []byte {
	return identity.SignManifest(p.account, generation, devices)
}

func (p *person) sender() Sender { return Sender{Key: p.dk, Manifest: p.manifest} }

func (p *person) open(sealed []byte) (Opened, error) {
	return OpenSealed([]*SealingPrivate{p.private}, p.dk, queue, sealed, now)
}

var queue = [32]byte{0: 9, 31: 9}

func sealFor(t testing.TB, from, to *person, envelope []byte) []byte {
	t.Helper()
	b, err := SealFor(to.entry, to.key, queue, from.sender(), envelope)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// openEnvelope is an envelope in the open form with a padded content of n bytes.
func openEnvelope(n int) []byte {
	return Seal([32]byte(bytes.Repeat([]byte{0x11}, 32)), nil, message(n))
}

func TestSealedSizes(t *testing.T) {
	if got, want := SealedSizes(), [4]int{2160, 5232, 17520, 66672}; got != want || got[3] != protocol.MaxSealed {
		t.Errorf("SealedSizes() = %v, want %v, the last MaxSealed = %d", got, want, protocol.MaxSealed)
	}
	if SealedOverhead != 1136 {
		t.Errorf("SealedOverhead = %d, want 1136", SealedOverhead)
	}
}

func TestSealedEnvelopeOpens(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	// The most that each bucket holds: 254 bytes of manifest, device, tag and
	// field headers, and the marker.
	around := len(alice.manifest) + 3 + 34 + 34 + 1
	for _, c := range []struct{ envelope, want int }{
		{1, 2160},
		{1024 - around - 3, 2160},
		{1024 - around - 2, 5232},
		{4096 - around - 3, 5232},
		{4096 - around - 2, 17520},
		{16384 - around - 3, 17520}, // three bytes hold lengths up to 16,383
		{16384 - around - 2, 66672},
		{protocol.MaxEnvelope, 66672},
		{len(openEnvelope(256)), 2160},
		{len(openEnvelope(640)), 2160},
		{len(openEnvelope(15872)), 17520},
		{len(openEnvelope(protocol.MaxContent)), 66672},
	} {
		envelope := bytes.Repeat([]byte{7}, c.envelope)
		sealed := sealFor(t, alice, bob, envelope)
		if len(sealed) != c.want {
			t.Errorf("an envelope of %d bytes is sealed as %d, want %d", c.envelope, len(sealed), c.want)
		}
		got, err := bob.open(sealed)
		if err != nil {
			t.Errorf("an envelope of %d bytes: %v", c.envelope, err)
			continue
		}
		manifest, err := identity.OpenManifest(alice.manifest, alice.account.Account(), now)
		if err != nil {
			t.Fatal(err)
		}
		want := Opened{Manifest: manifest, ManifestBytes: alice.manifest, Device: alice.entry, Envelope: envelope}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("an envelope of %d bytes changed (-sent +received):\n%s", c.envelope, d)
		}
	}
}

// TestEveryEnvelopeCanBeSealed takes the longest of everything, so that whether
// a content can be sent never depends on its way.
func TestEveryEnvelopeCanBeSealed(t *testing.T) {
	m := &wire.Sealed{
		Manifest: make([]byte, protocol.MaxManifest),
		Device:   make([]byte, 32),
		Envelope: make([]byte, protocol.MaxEnvelope),
		Tag:      make([]byte, 32),
	}
	if got, most := proto.Size(m), buckets[3]-1; got > most {
		t.Errorf("the longest plaintext has %d bytes, the largest bucket holds %d", got, most)
	}
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	devices := []identity.DeviceEntry{alice.entry}
	for len(devices) < protocol.MaxDevices {
		devices = append(devices, newPerson(t, fmt.Sprint("device ", len(devices))).entry)
	}
	alice.manifest = alice.sign(1, devices...)
	hs := handshake()
	hs.Introduction = make([]byte, protocol.MaxIntro)
	longest := Seal([32]byte{1}, hs, message(protocol.MaxContent))
	got, err := bob.open(sealFor(t, alice, bob, longest))
	if err != nil || !bytes.Equal(got.Envelope, longest) || len(got.Manifest.Devices) != protocol.MaxDevices {
		t.Errorf("the longest first message comes back with %d bytes, %v", len(got.Envelope), err)
	}
}

func TestCopiesOfAnEnvelopeShareNothingButTheSize(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	envelope := openEnvelope(256)
	first, second := sealFor(t, alice, bob, envelope), sealFor(t, alice, bob, envelope)
	if len(first) != len(second) {
		t.Errorf("copies have %d and %d bytes", len(first), len(second))
	}
	const window = 6 // two random copies share a window with probability 2^-25
	seen := map[[window]byte]bool{}
	for i := range len(first) - window + 1 {
		seen[[window]byte(first[i:])] = true
	}
	for i := range len(second) - window + 1 {
		if w := second[i : i+window]; seen[[window]byte(w)] {
			t.Errorf("both copies have %x", w)
		}
	}
	account := alice.account.Account()
	private := bob.private.key.PublicKey().Bytes()
	for name, b := range map[string][]byte{
		"sender's account":      account[:],
		"sender's device":       alice.entry.Key[:],
		"sender's DH key":       alice.entry.DH[:],
		"recipient's device":    bob.entry.Key[:],
		"recipient's DH key":    bob.entry.DH[:],
		"sealing key, ML-KEM":   private[:32],
		"sealing key, X25519":   private[len(private)-32:],
		"queue":                 queue[:],
		"session":               bytes.Repeat([]byte{0x11}, 32),
		"message":               message(256)[:32],
		"hash of the open form": func() []byte { h := HashOf(envelope); return h[:] }(),
	} {
		for at := range len(b) - window + 1 {
			if bytes.Contains(first, b[at:at+window]) {
				t.Errorf("the sealed form shows %d bytes of the %s", window, name)
				break
			}
		}
	}
}

func TestSealedIsForOneDeviceQueueAndKey(t *testing.T) {
	alice, bob, carol := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "carol")
	sealed := sealFor(t, alice, bob, openEnvelope(256))
	live := []*SealingPrivate{carol.private, alice.private, bob.private}
	for key, keys := range [][]*SealingPrivate{live[2:], live[1:], live} {
		got, err := OpenSealed(keys, bob.dk, queue, sealed, now)
		if err != nil || got.Key != key {
			t.Errorf("among %d keys, number %d opens (error %v), want %d", len(keys), got.Key, err, key)
		}
	}
	for name, try := range map[string]func() (Opened, error){
		"without keys":       func() (Opened, error) { return OpenSealed(nil, bob.dk, queue, sealed, now) },
		"with others' keys":  func() (Opened, error) { return OpenSealed(live[:2], bob.dk, queue, sealed, now) },
		"for another device": func() (Opened, error) { return OpenSealed(live, carol.dk, queue, sealed, now) },
		"from another queue": func() (Opened, error) { return OpenSealed(live, bob.dk, [32]byte{}, sealed, now) },
	} {
		if _, err := try(); err != ErrSealed {
			t.Errorf("%s: error %v, want ErrSealed", name, err)
		}
	}
	// The device's own keys, and another identity DH key: the tag is for the
	// identity, not for whoever has the sealing key.
	imposter := identity.NewDeviceKey(bob.dk.Seed(), x25519.FromSeed([32]byte{1}))
	if _, err := OpenSealed(live, imposter, queue, sealed, now); err != ErrSealed {
		t.Errorf("with another identity DH key: error %v, want ErrSealed", err)
	}
}

func TestEveryChangedByteOfASealedEnvelopeIsRefused(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	sealed := sealFor(t, alice, bob, openEnvelope(256))
	if _, err := bob.open(sealed); err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1 << (i % 8)
		if _, err := bob.open(changed); err != ErrSealed {
			t.Fatalf("bit %d of byte %d changed: error %v, want ErrSealed", i%8, i, err)
		}
	}
	// The bits that an X25519 key has no use for.
	changed := bytes.Clone(sealed)
	changed[encSize-1] ^= 0x80
	if _, err := bob.open(changed); err != ErrSealed {
		t.Errorf("bit 255 of the X25519 key: error %v, want ErrSealed", err)
	}
	copy(changed[encSize-32:], make([]byte, 32))
	if _, err := bob.open(changed); err != ErrSealed {
		t.Errorf("an X25519 key of low order: error %v, want ErrSealed", err)
	}
	for _, n := range []int{0, 1, 1136, 1137, 2159, 2161, 3184, 5231, 66671, 66673, 1 << 20} {
		if _, err := bob.open(append(bytes.Clone(sealed), make([]byte, 1<<20)...)[:n]); err != ErrSealed {
			t.Errorf("%d bytes: error %v, want ErrSealed", n, err)
		}
	}
}

// A context is HPKE's, made from fixed randomness with a key schedule of its
// own (RFC 9180 §5.1, X-Wing), so that it also judges how crypto/hpke is used.
type context struct{ enc, key, nonce []byte }

// newContext encapsulates to the public half of seed.
func newContext(t testing.TB, seed [32]byte, randomness io.Reader, info []byte) context {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	x := sha3.NewSHAKE256()
	x.Write(seed[:])
	var expanded [96]byte
	x.Read(expanded[:])
	dk, err := mlkem.NewDecapsulationKey768(expanded[:64])
	must(err)
	sk, err := ecdh.X25519().NewPrivateKey(expanded[64:])
	must(err)

	var r [64]byte
	_, err = io.ReadFull(randomness, r[:])
	must(err)
	ssM, ctM, err := mlkemtest.Encapsulate768(dk.EncapsulationKey(), r[:32])
	must(err)
	eph, err := ecdh.X25519().NewPrivateKey(r[32:])
	must(err)
	ssX, err := eph.ECDH(sk.PublicKey())
	must(err)
	ctX := eph.PublicKey().Bytes()
	shared := sha3.Sum256(bytes.Join([][]byte{ssM, ssX, ctX, sk.PublicKey().Bytes(), []byte(`\.//^\`)}, nil))

	suite := "HPKE\x64\x7a\x00\x01\x00\x02" // X-Wing, HKDF-SHA256, AES-256-GCM
	extract := func(salt []byte, label string, ikm []byte) []byte {
		prk, err := hkdf.Extract(sha256.New, append([]byte("HPKE-v1"+suite+label), ikm...), salt)
		must(err)
		return prk
	}
	schedule := append([]byte{0}, extract(nil, "psk_id_hash", nil)...)
	schedule = append(schedule, extract(nil, "info_hash", info)...)
	secret := extract(shared[:], "secret", nil)
	expand := func(label string, n int) []byte {
		b, err := hkdf.Expand(sha256.New, secret, string([]byte{0, byte(n)})+"HPKE-v1"+suite+label+string(schedule), n)
		must(err)
		return b
	}
	return context{enc: append(ctM, ctX...), key: expand("key", 32), nonce: expand("base_nonce", 12)}
}

func (c context) seal(t testing.TB, plaintext []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(c.key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.Clone(c.enc), gcm.Seal(nil, c.nonce, plaintext, nil)...)
}

// A letter is what the faults below are made in: a sound plaintext from alice
// to bob, and the context that it is for.
type letter struct {
	alice, bob, mallory *person
	context             context
}

func newLetter(t testing.TB) *letter {
	t.Helper()
	l := &letter{alice: newPerson(t, "alice"), bob: newPerson(t, "bob"), mallory: newPerson(t, "mallory")}
	l.context = newContext(t, l.bob.private.Seed(), &stream{name: "encapsulation"}, sealedInfo(l.bob.entry.Key, queue))
	return l
}

// sound returns the message of a sound plaintext around an envelope.
func (l *letter) sound(envelope []byte) *wire.Sealed {
	m := &wire.Sealed{Manifest: l.alice.manifest, Device: l.alice.entry.Key[:], Envelope: envelope}
	return l.tagged(m, l.alice.dk.DH(), l.alice.entry.Key, l.bob.entry.Key, l.context.enc)
}

// tagged sets m's tag with the DH key own.
func (l *letter) tagged(m *wire.Sealed, own *x25519.Private, from, to identity.Device, enc []byte) *wire.Sealed {
	tag, err := sealedTag(own, l.bob.entry.DH, from, to, enc, m)
	if err != nil {
		panic(err)
	}
	m.Tag = tag[:]
	return m
}

// faults returns padded plaintexts that have one fault each.
func (l *letter) faults(t testing.TB) map[string][]byte {
	envelope := openEnvelope(256)
	padded := func(b []byte) []byte {
		t.Helper()
		p, ok := pad(b, buckets[:])
		if !ok {
			t.Fatalf("%d bytes do not fit", len(b))
		}
		return p
	}
	to := func(b []byte, n int) []byte { return append(b, make([]byte, n-len(b))...) }
	sound := wire.Marshal(l.sound(envelope))

	faults := map[string][]byte{
		"no marker":          to(bytes.Clone(sound), 1024),
		"only zeros":         make([]byte, 1024),
		"a byte behind":      append(padded(sound)[:1023], 1),
		"a bucket too large": to(append(bytes.Clone(sound), marker), 4096),
		"empty":              padded(nil),
		"not protobuf":       padded([]byte{0xff}),
		"a field twice":      padded(append(bytes.Clone(sound), sound...)),
		"cut short":          padded(sound[:len(sound)-1]),
		"a group":            padded(protowire.AppendTag(bytes.Clone(sound), 9, protowire.StartGroupType)),
		"too many fields":    padded(append(bytes.Clone(sound), bytes.Repeat([]byte{9 << 3, 0}, wire.MaxFields)...)),
		"an envelope alone":  padded(envelope),
		"the tag left out":   padded(sound[:len(sound)-34]),
	}

	// What the sender says, under a tag that is right for it.
	for name, edit := range map[string]func(*wire.Sealed){
		"no manifest":            func(m *wire.Sealed) { m.Manifest = nil },
		"a manifest of nonsense": func(m *wire.Sealed) { m.Manifest = []byte("nonsense") },
		"an unsigned manifest":   func(m *wire.Sealed) { m.Manifest = resign(t, m.Manifest, func(s *wire.Signed) { s.Signature = nil }) },
		"a manifest badly signed": func(m *wire.Sealed) {
			m.Manifest = resign(t, m.Manifest, func(s *wire.Signed) { s.Signature[40] ^= 1 })
		},
		"a manifest too long":      func(m *wire.Sealed) { m.Manifest = longer(m.Manifest, protocol.MaxManifest+1) },
		"a manifest of tomorrow":   func(m *wire.Sealed) { m.Manifest = l.alice.sign(uint64(now.Unix())+86401, l.alice.entry) },
		"another's manifest":       func(m *wire.Sealed) { m.Manifest = l.mallory.manifest },
		"an account of low order":  func(m *wire.Sealed) { m.Manifest = trivial(l.alice.entry) },
		"no device":                func(m *wire.Sealed) { m.Device = nil },
		"a short device":           func(m *wire.Sealed) { m.Device = m.Device[:31] },
		"a long device":            func(m *wire.Sealed) { m.Device = append(bytes.Clone(m.Device), 0) },
		"a device of nobody":       func(m *wire.Sealed) { m.Device = bytes.Repeat([]byte{1}, 32) },
		"no envelope":              func(m *wire.Sealed) { m.Envelope = nil },
		"an envelope of 59 KiB, 1": func(m *wire.Sealed) { m.Envelope = make([]byte, protocol.MaxEnvelope+1) },
	} {
		m := l.sound(envelope)
		edit(m)
		from := l.alice.entry.Key
		if len(m.Device) == identity.KeySize {
			from = identity.Device(m.Device)
		}
		faults[name] = padded(wire.Marshal(l.tagged(m, l.alice.dk.DH(), from, l.bob.entry.Key, l.context.enc)))
	}
	self := &wire.Sealed{Manifest: l.bob.manifest, Device: l.bob.entry.Key[:], Envelope: envelope}
	faults["from the recipient"] = padded(wire.Marshal(l.tagged(self, l.bob.dk.DH(), l.bob.entry.Key, l.bob.entry.Key, l.context.enc)))

	// Alice's manifest, and no tag of hers: what anybody who can deposit can make.
	for name, edit := range map[string]func(*wire.Sealed){
		"no tag":             func(m *wire.Sealed) { m.Tag = nil },
		"a short tag":        func(m *wire.Sealed) { m.Tag = m.Tag[:16] },
		"a long tag":         func(m *wire.Sealed) { m.Tag = append(m.Tag, 0) },
		"a changed tag":      func(m *wire.Sealed) { m.Tag[31] ^= 0x80 },
		"a tag of zeros":     func(m *wire.Sealed) { m.Tag = make([]byte, 32) },
		"garbage":            func(m *wire.Sealed) { m.Envelope = []byte("garbage") },
		"a changed envelope": func(m *wire.Sealed) { m.Envelope[40] ^= 1 },
		"a newer manifest":   func(m *wire.Sealed) { m.Manifest = l.alice.sign(uint64(now.Unix())+1, l.alice.entry) },
		"a tag of mallory's": func(m *wire.Sealed) {
			l.tagged(m, l.mallory.dk.DH(), l.alice.entry.Key, l.bob.entry.Key, l.context.enc)
		},
		"a tag turned round": func(m *wire.Sealed) { l.tagged(m, l.alice.dk.DH(), l.bob.entry.Key, l.alice.entry.Key, l.context.enc) },
		"a tag for mallory": func(m *wire.Sealed) {
			l.tagged(m, l.alice.dk.DH(), l.alice.entry.Key, l.mallory.entry.Key, l.context.enc)
		},
		"a tag used before": func(m *wire.Sealed) {
			l.tagged(m, l.alice.dk.DH(), l.alice.entry.Key, l.bob.entry.Key, make([]byte, encSize))
		},
		"alice under mallory": func(m *wire.Sealed) { m.Manifest = l.mallory.sign(uint64(now.Unix()), l.alice.entry) },
	} {
		m := l.sound(bytes.Clone(envelope))
		edit(m)
		faults[name] = padded(wire.Marshal(m))
	}

	// The first field of the envelope, of a number that a manifest has not,
	// moves over: the bytes under the tag would be the same without lengths.
	moved := l.sound(append([]byte{15 << 3, 0}, envelope...))
	moved.Manifest, moved.Envelope = append(bytes.Clone(moved.Manifest), moved.Envelope[:2]...), moved.Envelope[2:]
	faults["bytes moved"] = padded(wire.Marshal(moved))
	return faults
}

// resign returns a signed message with an edit.
func resign(t testing.TB, b []byte, edit func(*wire.Signed)) []byte {
	t.Helper()
	var s wire.Signed
	if err := wire.Parse(b, len(b), &s); err != nil {
		t.Fatal(err)
	}
	edit(&s)
	return wire.Marshal(&s)
}

// longer returns a message that says the same in n bytes, at least 131 more: a
// later version's field follows it.
func longer(b []byte, n int) []byte {
	b = protowire.AppendTag(bytes.Clone(b), 15, protowire.BytesType)
	return protowire.AppendBytes(b, make([]byte, n-len(b)-2)) // two bytes of length
}

// trivial returns a manifest of the account whose key is the identity of the
// curve, under which one signature verifies for every message (SPEC §3.2).
func trivial(d identity.DeviceEntry) []byte {
	account := append([]byte{1}, make([]byte, 31)...)
	return wire.Marshal(&wire.Signed{
		Body: wire.Marshal(&wire.Manifest{
			Account:    account,
			Generation: 1,
			Devices:    []*wire.Device{{Key: d.Key[:], Dh: d.DH[:]}},
		}),
		Signature: append([]byte{1}, make([]byte, 63)...),
	})
}

// TestForgedSealedEnvelopeIsRefused takes what a stranger can make who knows
// the sealing key and alice's manifest, and what a broken sender can.
func TestForgedSealedEnvelopeIsRefused(t *testing.T) {
	l := newLetter(t)
	for _, n := range []int{256, 1536, 15872, protocol.MaxContent} {
		inner, ok := pad(wire.Marshal(l.sound(openEnvelope(n))), buckets[:])
		if !ok {
			t.Fatal("a sound plaintext does not fit")
		}
		if got, err := l.bob.open(l.context.seal(t, inner)); err != nil || !bytes.Equal(got.Envelope, openEnvelope(n)) {
			t.Fatalf("a sound letter: %v", err)
		}
	}
	later := protowire.AppendVarint(protowire.AppendTag(wire.Marshal(l.sound(openEnvelope(256))), 15, protowire.VarintType), 1)
	inner, _ := pad(later, buckets[:])
	if _, err := l.bob.open(l.context.seal(t, inner)); err != nil {
		t.Errorf("a field of a later version: %v", err)
	}
	for name, inner := range l.faults(t) {
		got, err := l.bob.open(l.context.seal(t, inner))
		if err != ErrSealed || got.Envelope != nil || got.ManifestBytes != nil {
			t.Errorf("%s: error %v, want ErrSealed and nothing else", name, err)
		}
	}
}

// TestKnownManifestIsNotOpenedAgain also holds what may be known: the device and
// the tag are judged all the same.
func TestKnownManifestIsNotOpenedAgain(t *testing.T) {
	l := newLetter(t)
	manifest, err := identity.OpenManifest(l.alice.manifest, l.alice.account.Account(), now)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	known := func(b []byte) (identity.Manifest, bool) {
		asked++
		return manifest, bytes.Equal(b, l.alice.manifest)
	}
	open := func(inner []byte) error {
		got, err := OpenKnownSealed([]*SealingPrivate{l.bob.private}, l.bob.dk, queue, l.context.seal(t, inner), known, now.AddDate(-1, 0, 0))
		if err == nil && (got.Device != l.alice.entry || !bytes.Equal(got.ManifestBytes, l.alice.manifest)) {
			t.Errorf("opened as from %v", got.Device)
		}
		return err
	}
	inner, _ := pad(wire.Marshal(l.sound(openEnvelope(256))), buckets[:])
	// A year ago the generation lay in the future: only a known one is let in.
	if err := open(inner); err != nil || asked != 1 {
		t.Errorf("a known manifest: error %v, asked %d times", err, asked)
	}
	for name, inner := range l.faults(t) {
		if err := open(inner); err != ErrSealed {
			t.Errorf("%s: error %v, want ErrSealed", name, err)
		}
	}
	carol := newPerson(t, "carol")
	if _, err := OpenKnownSealed([]*SealingPrivate{l.bob.private}, l.bob.dk, queue, sealFor(t, carol, l.bob, []byte{1}), known, now); err != nil {
		t.Errorf("a manifest that is not known: %v", err)
	}
}

func TestSealForRefuses(t *testing.T) {
	alice, bob, carol := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "carol")
	low := newLowOrderKey(t, bob)
	for name, try := range map[string]struct {
		to       identity.DeviceEntry
		key      *SealingKey
		from     Sender
		envelope []byte
	}{
		"an empty envelope":           {bob.entry, bob.key, alice.sender(), nil},
		"an envelope too long":        {bob.entry, bob.key, alice.sender(), make([]byte, protocol.MaxEnvelope+1)},
		"another's key":               {bob.entry, carol.key, alice.sender(), []byte{1}},
		"to itself":                   {alice.entry, alice.key, alice.sender(), []byte{1}},
		"another's manifest":          {bob.entry, bob.key, Sender{alice.dk, carol.manifest}, []byte{1}},
		"no manifest":                 {bob.entry, bob.key, Sender{alice.dk, nil}, []byte{1}},
		"nonsense for a manifest":     {bob.entry, bob.key, Sender{alice.dk, []byte("nonsense")}, []byte{1}},
		"a DH key of low order":       {identity.DeviceEntry{Key: bob.entry.Key}, bob.key, alice.sender(), []byte{1}},
		"a sealing key of low order":  {bob.entry, low, alice.sender(), []byte{1}},
		"a manifest of another's DH":  {bob.entry, bob.key, Sender{alice.dk, alice.sign(1, identity.DeviceEntry{Key: alice.entry.Key, DH: carol.entry.DH})}, []byte{1}},
		"a manifest without a device": {bob.entry, bob.key, Sender{alice.dk, wire.Marshal(&wire.Signed{})}, []byte{1}},
	} {
		if b, err := SealFor(try.to, try.key, queue, try.from, try.envelope); err == nil || b != nil {
			t.Errorf("%s: %d bytes, error %v", name, len(b), err)
		}
	}
}

// newLowOrderKey returns a sealing key that p signed and whose X25519 half is
// zero.
func newLowOrderKey(t *testing.T, p *person) *SealingKey {
	t.Helper()
	account := p.account.Account()
	key := p.private.key.PublicKey().Bytes()
	clear(key[len(key)-32:])
	body := wire.Marshal(&wire.SealingKey{Account: account[:], Device: p.entry.Key[:], Week: WeekOf(now), Key: key})
	b := wire.Marshal(&wire.Signed{Body: body, Signature: p.dk.Sign(protocol.LabelSealingKey, body)})
	k, err := OpenSealingKey(b, account, p.entry.Key, now)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestReplayIsKnownByItsHash holds what the memory of replays stands on: the
// form has none, the bytes are all there is, and the copies of other relays
// bring the same envelope.
func TestReplayIsKnownByItsHash(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	envelope := openEnvelope(256)
	first, second := sealFor(t, alice, bob, envelope), sealFor(t, alice, bob, envelope)
	hashes := map[Hash]bool{HashOf(envelope): true}
	for _, sealed := range [][]byte{first, first, second} {
		got, err := bob.open(sealed)
		if err != nil || HashOf(got.Envelope) != HashOf(envelope) {
			t.Errorf("another envelope came back, error %v", err)
		}
		hashes[HashOf(sealed)] = true
	}
	if len(hashes) != 3 {
		t.Errorf("an envelope and two sealed forms of it have %d hashes, want 3", len(hashes))
	}
}
