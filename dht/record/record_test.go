package record

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"filippo.io/edwards25519"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

// noon is noon of the day that the tests call today.
var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

func seeded(s string) *rand.ChaCha8 { return rand.NewChaCha8(sha256.Sum256([]byte(s))) }

func newAccount(t testing.TB, name string) (*identity.AccountKey, identity.LookupSecret) {
	t.Helper()
	r := seeded(name)
	s, err := identity.NewSecret(r)
	if err != nil {
		t.Fatal(err)
	}
	var l identity.LookupSecret
	r.Read(l[:])
	return identity.NewAccountKey(s), l
}

// newBody returns the body of an account with the given number of devices,
// whose bundles have the size of real ones.
func newBody(t testing.TB, k *identity.AccountKey, day uint32, seq uint64, devices int) Body {
	t.Helper()
	r := seeded(k.Account().String())
	b := Body{Day: day, Seq: seq}
	var entries []identity.DeviceEntry
	for range devices {
		seed, err := identity.NewSecret(r)
		if err != nil {
			t.Fatal(err)
		}
		dh, err := x25519.Generate(r)
		if err != nil {
			t.Fatal(err)
		}
		d := identity.NewDeviceKey(seed, dh)
		entries = append(entries, identity.DeviceEntry{Key: d.Device(), DH: dh.Public()})
		body := make([]byte, 1700)
		r.Read(body)
		b.Bundles = append(b.Bundles, wire.Marshal(&wire.Signed{Body: body, Signature: d.Sign(protocol.LabelBundle, body)}))
	}
	b.ManifestBytes = identity.SignManifest(k, uint64(noon.Unix())-1000, entries)
	var err error
	if b.Manifest, err = identity.OpenManifest(b.ManifestBytes, k.Account(), noon); err != nil {
		t.Fatal(err)
	}
	transport := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)).Public().(ed25519.PublicKey)
	b.Endpoints = []identity.Endpoint{{Transport: identity.Transport(transport), Addrs: [][]byte{{4, 192, 0, 2, 1, 6, 15, 161}}}}
	return b
}

func makeRecord(t testing.TB, name string, day uint32, replica byte, counter, seq uint64) (key [KeySize]byte, rec []byte) {
	t.Helper()
	k, l := newAccount(t, name)
	key, rec, err := Make(seeded(fmt.Sprint("rand", name, day, replica, counter, seq)), k, l, replica, counter, newBody(t, k, day, seq, 1))
	if err != nil {
		t.Fatal(err)
	}
	return key, rec
}

func TestRecordOpensAsItWasMade(t *testing.T) {
	k, l := newAccount(t, "alice")
	today := DayOf(noon)
	for _, test := range []struct{ devices, size int }{{1, 4 << 10}, {3, 8 << 10}, {8, 16 << 10}} {
		for replica := range byte(Replicas) {
			want := newBody(t, k, today, 5, test.devices)
			key, rec, err := Make(seeded("x"), k, l, replica, 3, want)
			if err != nil {
				t.Fatal(err)
			}
			if len(rec) != test.size {
				t.Errorf("a record of %d devices has %d bytes, want %d", test.devices, len(rec), test.size)
			}
			if got := Key(k.Account(), l, today, replica); got != key {
				t.Errorf("Key = %x, Make said %x", got, key)
			}
			if err := Validate(key, rec, noon); err != nil {
				t.Errorf("Validate: %v", err)
			}
			got, err := Open(rec, k.Account(), l, noon)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("Open: %s", cmp.Diff(want, got))
			}
			if Counter(rec) != 3 || Day(rec) != today {
				t.Errorf("counter %d, day %d; want 3, %d", Counter(rec), Day(rec), today)
			}
		}
	}
	if _, _, err := Make(seeded("x"), k, l, 0, 0, newBody(t, k, today, 0, 12)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a body above 16 KiB: %v, want ErrTooLarge", err)
	}
	if _, _, err := Make(seeded("x"), k, l, Replicas, 0, newBody(t, k, today, 0, 1)); err == nil {
		t.Error("a third replica was made")
	}
}

// The first of two delegations signs many records; the account key is not
// asked again.
func TestDayKeySignsManyRecords(t *testing.T) {
	k, l := newAccount(t, "alice")
	today := DayOf(noon)
	d, err := Delegate(seeded("d"), k, l, today, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for seq := range uint64(5) {
		rec, err := d.Seal(seeded(fmt.Sprint(seq)), newBody(t, k, today, seq, 1))
		if err != nil {
			t.Fatal(err)
		}
		if err := Validate(d.Key(), rec, noon); err != nil {
			t.Error(err)
		}
		if b, err := Open(rec, k.Account(), l, noon); err != nil || b.Seq != seq {
			t.Errorf("seq %d: opened as %d: %v", seq, b.Seq, err)
		}
	}
	if _, err := d.Seal(seeded("x"), newBody(t, k, today+1, 0, 1)); err == nil {
		t.Error("a day key sealed another day's body")
	}
	if got := fmt.Sprintf("%v %+v %#v %x", d, *d, *d, d); got != "[secret] [secret] [secret] [secret]" {
		t.Errorf("a day key prints as %s", got)
	}
}

// crypto/ed25519 must accept what a blinded key signs, and h·A must be the
// public half of h·a: over thousands of random accounts, days and replicas.
func TestBlindedSignaturesAreEd25519(t *testing.T) {
	n := 3000
	if testing.Short() {
		n = 300
	}
	r := seeded("blinded")
	for i := range n {
		secret, err := identity.NewSecret(r)
		if err != nil {
			t.Fatal(err)
		}
		k := identity.NewAccountKey(secret)
		var l identity.LookupSecret
		r.Read(l[:])
		day, replica := uint32(r.Uint64()), byte(r.Uint64()%Replicas)
		b := blind(k, l, day, replica)
		if got := blindPublic(k.Account(), l, day, replica); got != b.public {
			t.Fatalf("%d: h·A = %x, public half of h·a = %x", i, got, b.public)
		}
		if _, err := identity.ParseAccount(b.public[:]); err != nil {
			t.Fatalf("%d: blinded key: %v", i, err)
		}
		body := make([]byte, r.Uint64()%256)
		r.Read(body)
		sig := b.sign(protocol.LabelDelegation, body)
		if !ed25519.Verify(b.public[:], protocol.LabelDelegation.Bind(body), sig) {
			t.Fatalf("%d: crypto/ed25519 refuses a blinded signature", i)
		}
		sig[r.Uint64()%64] ^= 1 << (r.Uint64() % 8)
		if ed25519.Verify(b.public[:], protocol.LabelDelegation.Bind(body), sig) {
			t.Fatalf("%d: a changed signature verifies", i)
		}
	}
}

func TestBlindedNoncesDiffer(t *testing.T) {
	k, l := newAccount(t, "alice")
	seen := map[string]bool{}
	for day := range uint32(20) {
		for replica := range byte(Replicas) {
			sig := blind(k, l, day, replica).sign(protocol.LabelDelegation, []byte("same"))
			if seen[string(sig[:32])] {
				t.Fatal("two blinded keys used one nonce point")
			}
			seen[string(sig[:32])] = true
		}
	}
}

// private returns rec without the fields that every reader may compare:
// version, day, replica, counter and seq.
func private(rec []byte) [][]byte {
	return [][]byte{
		rec[atBlinded:atDay], rec[atDayKey:atDelegation], rec[atDelegation:atSeq], rec[atNonce:],
	}
}

// window is the length of a run that two unrelated records do not share by
// chance: about 4096² pairs against 2^56.
const window = 7

func windows(rec []byte) map[string]bool {
	m := map[string]bool{}
	for _, part := range private(rec) {
		for i := range len(part) - window + 1 {
			m[string(part[i:i+window])] = true
		}
	}
	return m
}

// Promise 8: from the bytes of records, nobody can tell which belong together.
// Days, replicas and accounts are compared pairwise; so are two records of one
// day that a fresh delegation separates, which share the blinded key and
// nothing else.
func TestRecordsShareNoBytes(t *testing.T) {
	today := DayOf(noon)
	type made struct {
		what string
		rec  []byte
	}
	var all []made
	for _, name := range []string{"alice", "bob"} {
		for day := today - 1; day <= today+1; day++ {
			for replica := range byte(Replicas) {
				_, rec := makeRecord(t, name, day, replica, 1, 1)
				all = append(all, made{fmt.Sprint(name, " ", day, " ", replica), rec})
			}
		}
	}
	for i, a := range all {
		seen := windows(a.rec)
		for _, b := range all[i+1:] {
			for w := range windows(b.rec) {
				if seen[w] {
					t.Errorf("%s and %s share the bytes %x", a.what, b.what, w)
				}
			}
		}
	}

	_, first := makeRecord(t, "alice", today, 0, 1, 1)
	_, second := makeRecord(t, "alice", today, 0, 2, 1)
	if !bytes.Equal(first[atBlinded:atDay], second[atBlinded:atDay]) {
		t.Error("two records of one day have two blinded keys")
	}
	if bytes.Equal(first[atDayKey:atDelegation], second[atDayKey:atDelegation]) {
		t.Error("two delegations name one day key")
	}
	second = bytes.Clone(second)
	copy(second[atBlinded:atDay], make([]byte, identity.KeySize))
	seen := windows(first)
	for w := range windows(second) {
		if seen[w] && w != strings.Repeat("\x00", window) {
			t.Errorf("two records of one day share %x beside the blinded key", w)
		}
	}
}

// Promise 8: without A and L the record cannot be read, and it names nobody.
func TestAnotherNodeCannotReadARecord(t *testing.T) {
	k, l := newAccount(t, "alice")
	today := DayOf(noon)
	body := newBody(t, k, today, 1, 1)
	_, rec, err := Make(seeded("x"), k, l, 0, 1, body)
	if err != nil {
		t.Fatal(err)
	}

	// Nothing of the plaintext, of the account or of its transport is in it.
	a := k.Account()
	plain, err := marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	inside := map[string]bool{}
	for _, secret := range [][]byte{plain, a[:], l[:], []byte(a.String())} {
		for i := range len(secret) - window + 1 {
			inside[string(secret[i:i+window])] = true
		}
	}
	for w := range windows(rec) {
		if inside[w] {
			t.Errorf("the record shows %x of what it hides", w)
		}
	}

	// A alone, L alone, or another account's pair, do not open it.
	other, ol := newAccount(t, "mallory")
	for _, try := range []struct {
		a identity.Account
		l identity.LookupSecret
	}{{a, identity.LookupSecret{}}, {a, ol}, {other.Account(), l}, {other.Account(), ol}} {
		if _, err := Open(rec, try.a, try.l, noon); !errors.Is(err, ErrInvalid) {
			t.Errorf("opened by one who was not given the link: %v", err)
		}
		if Key(try.a, try.l, today, 0) == keyHash(rec[atBlinded:atDay]) {
			t.Error("found by one who was not given the link")
		}
		// Nor does the AEAD under what a holder can compute.
		if _, err := aead(try.a, try.l, rec[atBlinded:atDay]).Open(nil, rec[atNonce:atBody], rec[atBody:len(rec)-64], rec[:atNonce]); err == nil {
			t.Error("decrypted by one who was not given the link")
		}
	}
}

// A contact can encrypt under the body key; it must not pass for the account.
func TestContactCannotForgeABody(t *testing.T) {
	k, l := newAccount(t, "alice")
	key, rec := makeRecord(t, "alice", DayOf(noon), 0, 1, 1)
	forged := bytes.Clone(rec)
	end := len(rec) - 64
	padded, err := aead(k.Account(), l, rec[atBlinded:atDay]).Open(nil, rec[atNonce:atBody], rec[atBody:end], rec[:atNonce])
	if err != nil {
		t.Fatal(err)
	}
	padded[len(padded)-1] = 1
	aead(k.Account(), l, rec[atBlinded:atDay]).Seal(forged[:atBody], rec[atNonce:atBody], padded, rec[:atNonce])
	if err := Validate(key, forged, noon); !errors.Is(err, ErrInvalid) {
		t.Errorf("Validate: %v, want ErrInvalid", err)
	}
	if _, err := Open(forged, k.Account(), l, noon); !errors.Is(err, ErrInvalid) {
		t.Errorf("Open: %v, want ErrInvalid", err)
	}
	// Signed by the day key, the padding is still strict.
	forge := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	signAgain(k, l, forged, padded, forge)
	if _, err := Open(forged, k.Account(), l, noon); err == nil || !strings.Contains(err.Error(), "padding") {
		t.Errorf("Open with padding that is not zero: %v", err)
	}
}

// signAgain puts a day key, a delegation for it, a body and the signature into
// rec, as the owner could.
func signAgain(k *identity.AccountKey, l identity.LookupSecret, rec, padded []byte, day ed25519.PrivateKey) {
	copy(rec[atDayKey:], day.Public().(ed25519.PublicKey))
	b := blind(k, l, Day(rec), rec[atReplica])
	copy(rec[atDelegation:], b.sign(protocol.LabelDelegation, rec[atDay:atDelegation]))
	aead(k.Account(), l, b.public[:]).Seal(rec[:atBody], rec[atNonce:atBody], padded, rec[:atNonce])
	end := len(rec) - identity.SignatureSize
	copy(rec[end:], ed25519.Sign(day, protocol.LabelRecord.Bind(rec[:end])))
}

// What the owner itself gets wrong is refused too: readers of one record agree.
func TestOwnersFaultsAreRefused(t *testing.T) {
	k, l := newAccount(t, "alice")
	today := DayOf(noon)
	day := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	key, rec := makeRecord(t, "alice", today, 0, 1, 1)
	pad := func(b Body, n int) []byte {
		t.Helper()
		plain, err := marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, len(rec)-overhead)
		copy(p[lengthSize:], plain)
		binary.BigEndian.PutUint32(p, uint32(len(plain)+n))
		return p
	}
	good := newBody(t, k, today, 1, 1)
	wrongDay, wrongSeq, twoEndpoints, future := good, good, good, good
	wrongDay.Day++
	wrongSeq.Seq++
	twoEndpoints.Endpoints = append(twoEndpoints.Endpoints, twoEndpoints.Endpoints[0])
	future.ManifestBytes = identity.SignManifest(k, uint64(noon.Unix())+2*86400, good.Manifest.Devices)
	foreign, _ := newAccount(t, "bob")
	another := good
	another.ManifestBytes = newBody(t, foreign, today, 1, 1).ManifestBytes
	none := good
	none.ManifestBytes = nil
	for what, p := range map[string][]byte{
		"length beyond the body":     pad(good, len(rec)),
		"length of 4 GiB":            append([]byte{0xff, 0xff, 0xff, 0xff}, pad(good, 0)[4:]...),
		"length cuts the body":       pad(good, -1),
		"body of another day":        pad(wrongDay, 0),
		"body of another seq":        pad(wrongSeq, 0),
		"one transport key twice":    pad(twoEndpoints, 0),
		"manifest from the future":   pad(future, 0),
		"another account's manifest": pad(another, 0),
		"no manifest":                pad(none, 0),
		"nothing":                    make([]byte, len(rec)-overhead),
	} {
		r := bytes.Clone(rec)
		signAgain(k, l, r, p, day)
		if err := Validate(key, r, noon); err != nil {
			t.Errorf("%s: a holder cannot see the fault, yet Validate: %v", what, err)
		}
		if _, err := Open(r, k.Account(), l, noon); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Open: %v, want ErrInvalid", what, err)
		}
	}
	r := bytes.Clone(rec)
	signAgain(k, l, r, pad(good, 0), day)
	if _, err := Open(r, k.Account(), l, noon); err != nil {
		t.Errorf("without a fault: %v", err)
	}
}

func TestDayWindow(t *testing.T) {
	k, l := newAccount(t, "alice")
	today := DayOf(noon)
	for off := -3; off <= 3; off++ {
		key, rec := makeRecord(t, "alice", uint32(int(today)+off), 0, 0, 0)
		want := off >= -1 && off <= 1
		if err := Validate(key, rec, noon); (err == nil) != want {
			t.Errorf("Validate of a record %+d days from today: %v", off, err)
		}
		if _, err := Open(rec, k.Account(), l, noon); (err == nil) != want {
			t.Errorf("Open of a record %+d days from today: %v", off, err)
		}
	}
}

func TestSelect(t *testing.T) {
	today := DayOf(noon)
	rec := func(counter, seq uint64) []byte {
		_, r := makeRecord(t, "alice", today, 0, counter, seq)
		return r
	}
	low, high, highest := rec(1, 9), rec(2, 0), rec(2, 1)
	twin := bytes.Clone(highest)
	twin[len(twin)-1] ^= 1
	x, y := sha256.Sum256(highest), sha256.Sum256(twin)
	greater := 0
	if bytes.Compare(y[:], x[:]) > 0 {
		greater = 1
	}
	for _, test := range []struct {
		what string
		recs [][]byte
		want int
	}{
		{"none", nil, -1},
		{"only malformed", [][]byte{nil, low[:100], {}}, -1},
		{"counter beats seq", [][]byte{low, high}, 1},
		{"counter beats seq, other order", [][]byte{high, low}, 0},
		{"seq within a counter", [][]byte{high, highest, low}, 1},
		{"hash last", [][]byte{highest, twin}, greater},
		{"hash last, other order", [][]byte{twin, highest}, 1 - greater},
		{"equal bytes", [][]byte{high, bytes.Clone(high)}, 0},
		{"malformed loses", [][]byte{nil, low, high[:4095]}, 1},
	} {
		if got := Select(test.recs); got != test.want {
			t.Errorf("%s: %d, want %d", test.what, got, test.want)
		}
	}
}

func TestVersionCompare(t *testing.T) {
	in := []Version{{1, 1, 1}, {1, 1, 2}, {1, 2, 0}, {2, 0, 0}}
	for i, v := range in {
		for j, w := range in {
			if got, want := v.Compare(w), max(-1, min(1, i-j)); got != want {
				t.Errorf("%v against %v: %d, want %d", v, w, got, want)
			}
		}
	}
}

// negatives returns records that must be refused, each with one fault.
func negatives(t testing.TB) map[string]struct {
	key [KeySize]byte
	rec []byte
} {
	type entry = struct {
		key [KeySize]byte
		rec []byte
	}
	k, l := newAccount(t, "alice")
	today := DayOf(noon)
	key, rec := makeRecord(t, "alice", today, 0, 1, 1)
	out := map[string]entry{}
	change := func(what string, at int, b ...byte) {
		r := bytes.Clone(rec)
		copy(r[at:], b)
		out[what] = entry{key, r}
	}
	flip := func(what string, at int) { change(what, at, rec[at]^0x40) }

	flip("version", 0)
	flip("blinded key", atBlinded)
	flip("day", atDay+3)
	flip("counter", atCounter)
	flip("day key", atDayKey)
	flip("delegation, R", atDelegation)
	flip("delegation, S", atDelegation+32)
	flip("seq", atSeq)
	flip("nonce", atNonce)
	flip("body", atBody)
	flip("tag", len(rec)-65)
	flip("signature, R", len(rec)-64)
	flip("signature, S", len(rec)-32)
	change("replica 1", atReplica, 1)
	change("replica 2", atReplica, 2)
	out["empty"] = entry{key, nil}
	out["a byte short"] = entry{key, rec[:len(rec)-1]}
	out["a byte long"] = entry{key, append(bytes.Clone(rec), 0)}
	out["17 KiB"] = entry{key, append(bytes.Clone(rec), make([]byte, 13<<10)...)}
	out["18 KiB"] = entry{key, append(bytes.Clone(rec), make([]byte, 14<<10)...)}
	otherKey, other := makeRecord(t, "bob", today, 0, 1, 1)
	out["under another's key"] = entry{otherKey, rec}
	_, replica := makeRecord(t, "alice", today, 1, 1, 1)
	out["under the other replica's key"] = entry{key, replica}
	_, late := makeRecord(t, "alice", today-2, 0, 1, 1)
	out["two days old"] = entry{Key(k.Account(), l, today-2, 0), late}
	_, early := makeRecord(t, "alice", today+2, 0, 1, 1)
	out["two days ahead"] = entry{Key(k.Account(), l, today+2, 0), early}

	r := bytes.Clone(rec)
	copy(r[atDayKey:atSeq], other[atDayKey:atSeq])
	out["another's delegation"] = entry{key, r}

	// S + ℓ is the same scalar; RFC 8032 has verifiers refuse it.
	r = bytes.Clone(rec)
	addOrder(r[len(r)-32:])
	out["malleated signature"] = entry{key, r}
	r = bytes.Clone(rec)
	addOrder(r[atDelegation+32 : atSeq])
	out["malleated delegation"] = entry{key, r}

	// Under the identity point, R = B·S with S = 0 verifies for every message.
	identityPoint := append([]byte{1}, make([]byte, 31)...)
	trivial := append(bytes.Clone(identityPoint), make([]byte, 32)...)
	day := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))
	forge := func(public []byte) entry {
		r := bytes.Clone(rec)
		copy(r[atBlinded:], public)
		copy(r[atDayKey:], day.Public().(ed25519.PublicKey))
		copy(r[atDelegation:], trivial)
		end := len(r) - 64
		copy(r[end:], ed25519.Sign(day, protocol.LabelRecord.Bind(r[:end])))
		return entry{keyHash(public), r}
	}
	out["identity point as blinded key"] = forge(identityPoint)
	nonCanonical, _ := hex.DecodeString("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")
	out["identity point, not canonical"] = forge(nonCanonical)
	order8, _ := hex.DecodeString("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
	out["point of order 8 as blinded key"] = forge(order8)
	b := blind(k, l, today, 0)
	p, err := new(edwards25519.Point).SetBytes(b.public[:])
	if err != nil {
		t.Fatal(err)
	}
	torsion, err := new(edwards25519.Point).SetBytes(order8)
	if err != nil {
		t.Fatal(err)
	}
	out["torsioned blinded key"] = forge(p.Add(p, torsion).Bytes())
	out["blinded key off the curve"] = forge(append([]byte{2}, make([]byte, 31)...))

	// The owner may delegate to a key that anyone can sign for. Not here.
	r = bytes.Clone(rec)
	copy(r[atDayKey:], identityPoint)
	copy(r[atDelegation:], b.sign(protocol.LabelDelegation, r[atDay:atDelegation]))
	copy(r[len(r)-64:], trivial)
	out["identity point as day key"] = entry{key, r}

	// A signature of the account key itself is not one of its blinded key.
	r = bytes.Clone(rec)
	copy(r[atDelegation:], k.Sign(protocol.LabelDelegation, r[atDay:atDelegation]))
	out["delegation by the account key"] = entry{key, r}
	r = bytes.Clone(rec)
	copy(r[atDelegation:], b.sign(protocol.LabelRecord, r[atDay:atDelegation]))
	out["delegation under another label"] = entry{key, r}
	return out
}

func addOrder(s []byte) {
	order, _ := hex.DecodeString("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
	carry := 0
	for i := range s {
		carry += int(s[i]) + int(order[i])
		s[i] = byte(carry)
		carry >>= 8
	}
}

func TestFaultyRecordsAreRefused(t *testing.T) {
	k, l := newAccount(t, "alice")
	for what, n := range negatives(t) {
		if err := Validate(n.key, n.rec, noon); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Validate: %v, want ErrInvalid", what, err)
		}
		if strings.HasPrefix(what, "under ") {
			continue // Open goes by the account, not by the key
		}
		if _, err := Open(n.rec, k.Account(), l, noon); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Open: %v, want ErrInvalid", what, err)
		}
	}
}

// The trivial signature must really be one that crypto/ed25519 takes, or the
// negative records above prove nothing.
func TestTrivialSignatureVerifiesUnderTheIdentity(t *testing.T) {
	identityPoint := append([]byte{1}, make([]byte, 31)...)
	sig := append(bytes.Clone(identityPoint), make([]byte, 32)...)
	if !ed25519.Verify(identityPoint, []byte("any message"), sig) {
		t.Fatal("crypto/ed25519 refuses the identity point by itself now")
	}
}

// Any single changed bit makes a record invalid.
func TestEveryBitIsCovered(t *testing.T) {
	key, rec := makeRecord(t, "alice", DayOf(noon), 0, 1, 1)
	rapid.Check(t, func(t *rapid.T) {
		bit := rapid.IntRange(0, 8*len(rec)-1).Draw(t, "bit")
		r := bytes.Clone(rec)
		r[bit/8] ^= 1 << (bit % 8)
		if Validate(key, r, noon) == nil {
			t.Fatalf("bit %d is not covered", bit)
		}
	})
}

type vector struct {
	Name    string
	Account string // account secret
	Lookup  string
	Day     uint32
	Replica byte
	Counter uint64
	Seq     uint64
	Mail    string `json:",omitempty"` // in the body, encoded
	Factor  string // h
	Blinded string // A_e
	Key     string
	BodyKey string
	Record  string // SHA-256 of the record made with the seed "vector/NAME"
}

type vectors struct {
	Records []vector
	// Accumulated is SHA-256 over the 1,000 blinded keys and delegation
	// signatures of the accounts "volume/0" to "volume/999", one after another.
	Accumulated string
	// First is the whole first record.
	First string
}

func makeVectors(t *testing.T) vectors {
	var v vectors
	for i, name := range []string{"alice", "bob", "carol", "dora"} {
		r := seeded(name)
		secret, err := identity.NewSecret(r)
		if err != nil {
			t.Fatal(err)
		}
		k, l := newAccount(t, name)
		if name == "carol" {
			l = identity.LookupSecret{} // a listed account
		}
		for replica := range byte(Replicas) {
			day := DayOf(noon) + uint32(i)
			b := newBody(t, k, day, uint64(i), 1)
			mail := ""
			if name == "dora" { // two contact boxes and a sealing key
				if b.Mail, err = boxes(t, k, 2, 1).Wire(false); err != nil {
					t.Fatal(err)
				}
				mail = hex.EncodeToString(wire.Marshal(b.Mail))
			}
			key, rec, err := Make(seeded("vector/"+name), k, l, replica, uint64(i), b)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(rec)
			bl := blind(k, l, day, replica)
			v.Records = append(v.Records, vector{
				Name: name, Account: hex.EncodeToString(secret.Bytes()), Lookup: hex.EncodeToString(l[:]),
				Day: day, Replica: replica, Counter: uint64(i), Seq: uint64(i), Mail: mail,
				Factor:  hex.EncodeToString(factor(k.Account(), l, day, replica).Bytes()),
				Blinded: hex.EncodeToString(bl.public[:]),
				Key:     hex.EncodeToString(key[:]),
				BodyKey: hex.EncodeToString(bodyKey(k.Account(), l, bl.public[:])),
				Record:  hex.EncodeToString(sum[:]),
			})
			if v.First == "" {
				v.First = hex.EncodeToString(rec)
			}
		}
	}
	h := sha256.New()
	for i := range 1000 {
		k, l := newAccount(t, fmt.Sprint("volume/", i))
		b := blind(k, l, uint32(i), byte(i%Replicas))
		h.Write(b.public[:])
		h.Write(b.sign(protocol.LabelDelegation, binary.BigEndian.AppendUint32(nil, uint32(i))))
	}
	v.Accumulated = hex.EncodeToString(h.Sum(nil))
	return v
}

func TestVectors(t *testing.T) {
	path := filepath.Join("testdata", "vectors.json")
	got := makeVectors(t)
	if *update {
		b, err := json.MarshalIndent(got, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var want vectors
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzRecord(f *testing.F) {
	k, l := newAccount(f, "alice")
	for _, n := range negatives(f) {
		f.Add(n.rec)
	}
	_, good := makeRecord(f, "alice", DayOf(noon), 0, 1, 1)
	f.Add(good)
	f.Fuzz(func(t *testing.T, rec []byte) {
		var key [KeySize]byte
		if len(rec) >= atDay {
			key = keyHash(rec[atBlinded:atDay])
		}
		err := Validate(key, rec, noon)
		body, openErr := Open(rec, k.Account(), l, noon)
		if openErr == nil {
			if err != nil {
				t.Fatalf("Open accepts what Validate refuses: %v", err)
			}
			if body.Day != Day(rec) {
				t.Fatal("the body's day is not the record's")
			}
		}
		for _, e := range []error{err, openErr} {
			if e != nil && !errors.Is(e, ErrInvalid) {
				t.Fatalf("an error that is not ErrInvalid: %v", e)
			}
		}
		if i := Select([][]byte{rec, good}); i != 1 && wellFormed(rec) != nil {
			t.Fatalf("Select = %d: a malformed record wins", i)
		}
	})
}

// FuzzBody reaches what only a contact can send: a body under valid
// signatures.
func FuzzBody(f *testing.F) {
	k, _ := newAccount(f, "alice")
	plain, err := marshal(newBody(f, k, DayOf(noon), 1, 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	withMail := newBody(f, k, DayOf(noon), 1, 1)
	if withMail.Mail, err = boxes(f, k, 2, 1).Wire(false); err != nil {
		f.Fatal(err)
	}
	if plain, err = marshal(withMail); err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, plain []byte) {
		b, err := unmarshal(plain, k.Account(), noon)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("an error that is not ErrInvalid: %v", err)
			}
			return
		}
		again, err := marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		c, err := unmarshal(again, k.Account(), noon)
		if err != nil || !cmp.Equal(b, c, protocmp.Transform()) {
			t.Fatalf("parse, marshal, parse: %v", err)
		}
	})
}

func BenchmarkMake(b *testing.B) {
	k, l := newAccount(b, "alice")
	body := newBody(b, k, DayOf(noon), 1, 1)
	r := seeded("bench")
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Make(r, k, l, 0, 1, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	k, l := newAccount(b, "alice")
	body := newBody(b, k, DayOf(noon), 1, 1)
	r := seeded("bench")
	d, err := Delegate(r, k, l, body.Day, 0, 1)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Seal(r, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkKey(b *testing.B) {
	k, l := newAccount(b, "alice")
	for b.Loop() {
		Key(k.Account(), l, DayOf(noon), 0)
	}
}

func BenchmarkValidate(b *testing.B) {
	key, rec := makeRecord(b, "alice", DayOf(noon), 0, 1, 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := Validate(key, rec, noon); err != nil {
			b.Fatal(err)
		}
	}
}

// What a stranger can make us spend with bytes that are not signed.
func BenchmarkValidateForged(b *testing.B) {
	key, rec := makeRecord(b, "alice", DayOf(noon), 0, 1, 1)
	rec[atDelegation] ^= 1
	for b.Loop() {
		if Validate(key, rec, noon) == nil {
			b.Fatal("accepted")
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	k, l := newAccount(b, "alice")
	_, rec := makeRecord(b, "alice", DayOf(noon), 0, 1, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Open(rec, k.Account(), l, noon); err != nil {
			b.Fatal(err)
		}
	}
}

// A relay takes a record days ahead; whoever holds it then agrees.
func TestCheckIsValidateOnTheRecordsDay(t *testing.T) {
	for _, ahead := range []uint32{0, 1, 14} {
		day := DayOf(noon) + ahead
		key, rec := makeRecord(t, "alice", day, 1, 3, 0)
		gotKey, gotDay, err := Check(rec)
		if err != nil || gotKey != key || gotDay != day {
			t.Errorf("%d days ahead: day %d, the right key %t, %v; want day %d", ahead, gotDay, gotKey == key, err, day)
		}
		if err := Validate(gotKey, rec, time.Unix(int64(gotDay)*86400, 0)); err != nil {
			t.Errorf("%d days ahead: a holder refuses it: %v", ahead, err)
		}
	}
	_, rec := makeRecord(t, "alice", DayOf(noon), 0, 3, 0)
	for name, bad := range map[string][]byte{
		"empty": {}, "cut": rec[:len(rec)-1], "longer": append(bytes.Clone(rec), 0),
		"another day": flipped(rec, atDay+3), "another key": flipped(rec, atBlinded), "another body": flipped(rec, len(rec)-100),
	} {
		if _, _, err := Check(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func flipped(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 1
	return c
}
