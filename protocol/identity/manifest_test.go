package identity

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"starling/protocol"
	"starling/protocol/wire"
)

var testNow = time.Unix(1_800_000_000, 0)

func testEntry(n byte) DeviceEntry {
	d := testDevice(n)
	return DeviceEntry{Key: d.Device(), DH: d.DH().Public()}
}

// testEntries returns n devices, sorted by key.
func testEntries(n int) []DeviceEntry {
	var es []DeviceEntry
	for i := range n {
		es = append(es, testEntry(byte(i+1)))
	}
	slices.SortFunc(es, func(a, b DeviceEntry) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	return es
}

func TestManifestIsReadAsSigned(t *testing.T) {
	for _, n := range []int{1, 2, protocol.MaxDevices} {
		es := testEntries(n)
		shuffled := slices.Clone(es)
		slices.Reverse(shuffled)
		given := slices.Clone(shuffled)
		b := SignManifest(testKey(1), 7, shuffled)
		if len(b) > protocol.MaxManifest {
			t.Errorf("a manifest of %d devices has %d bytes, the bound is %d", n, len(b), protocol.MaxManifest)
		}
		if !slices.Equal(shuffled, given) {
			t.Error("SignManifest reordered its argument")
		}
		got, err := OpenManifest(b, testAccount(1), testNow)
		if err != nil {
			t.Fatal(err)
		}
		want := Manifest{Account: testAccount(1), Generation: 7, Devices: es}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("manifest changed (-want +got):\n%s", d)
		}
		for _, e := range es {
			if got, ok := want.Device(e.Key); !ok || got != e {
				t.Errorf("Device(%x) = %v, %v", e.Key[:4], got, ok)
			}
		}
		if _, ok := got.Device(testDevice(99).Device()); ok {
			t.Error("Device finds one that is not listed")
		}
	}
}

// sign signs any body as k's manifest.
func sign(k *AccountKey, body []byte) []byte {
	return wire.Marshal(&wire.Signed{Body: body, Signature: k.Sign(protocol.LabelManifest, body)})
}

func TestOpenManifestRefuses(t *testing.T) {
	p := readPublished(t)
	k := testKey(1)
	a := k.Account()
	devices := func(es ...DeviceEntry) []*wire.Device {
		var ds []*wire.Device
		for _, e := range es {
			ds = append(ds, &wire.Device{Key: e.Key[:], Dh: e.DH[:]})
		}
		return ds
	}
	edit := func(fn func(*wire.Manifest)) []byte {
		m := &wire.Manifest{Account: a[:], Generation: 7, Devices: devices(testEntries(2)...)}
		fn(m)
		return sign(k, wire.Marshal(m))
	}
	good := SignManifest(k, 7, testEntries(2))
	if _, err := OpenManifest(edit(func(*wire.Manifest) {}), a, testNow); err != nil {
		t.Fatalf("the manifest before editing: %v", err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	other := testAccount(2)
	ahead := uint64(testNow.Add(protocol.GenerationSkew).Unix())
	reversed := testEntries(2)
	slices.Reverse(reversed)

	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"nothing", nil, "signature"},
		{"garbage", []byte("garbage"), "malformed"},
		{"a flipped bit", flipped, "signature"},
		{"a missing byte", good[:len(good)-1], "malformed"},
		{"too much", edit(func(m *wire.Manifest) { m.Account = make([]byte, protocol.MaxManifest) }), "at most"},
		{"another key's signature", SignManifest(testKey(2), 7, testEntries(2)), "signature"},
		{"a signature for another use", wire.Marshal(&wire.Signed{Body: []byte("x"), Signature: k.Sign(protocol.LabelBundle, []byte("x"))}), "signature"},
		{"a body that is no manifest", sign(k, []byte("garbage")), "malformed"},
		{"another account", edit(func(m *wire.Manifest) { m.Account = other[:] }), "another account"},
		{"no account", edit(func(m *wire.Manifest) { m.Account = nil }), "another account"},
		{"a generation too far ahead", edit(func(m *wire.Manifest) { m.Generation = ahead + 1 }), "future"},
		{"the last generation", edit(func(m *wire.Manifest) { m.Generation = math.MaxUint64 }), "future"},
		{"no device", edit(func(m *wire.Manifest) { m.Devices = nil }), "no device"},
		{"too many devices", edit(func(m *wire.Manifest) { m.Devices = devices(testEntries(protocol.MaxDevices + 1)...) }), "more than 16"},
		{"devices out of order", edit(func(m *wire.Manifest) { m.Devices = devices(reversed...) }), "out of order"},
		{"a device twice", edit(func(m *wire.Manifest) { m.Devices = devices(reversed[0], reversed[0]) }), "twice"},
		{"a device without key", edit(func(m *wire.Manifest) { m.Devices[0].Key = nil }), "Ed25519"},
		{"a torsioned device key", edit(func(m *wire.Manifest) { m.Devices[0].Key = p.Torsioned.Public }), "Ed25519"},
		{"the identity point as device key", edit(func(m *wire.Manifest) { m.Devices[0].Key = p.Forgery.Public }), "Ed25519"},
		{"a device without DH key", edit(func(m *wire.Manifest) { m.Devices[0].Dh = nil }), "x25519"},
		{"a DH key that is not canonical", edit(func(m *wire.Manifest) { m.Devices[0].Dh = bytes.Repeat([]byte{0xff}, 32) }), "x25519"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := OpenManifest(c.b, a, testNow)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("OpenManifest = %v, want an error about %q", err, c.want)
			}
			if m.Devices != nil || m.Account != (Account{}) {
				t.Error("a refused manifest is returned")
			}
		})
	}
	if _, err := OpenManifest(edit(func(m *wire.Manifest) { m.Generation = ahead }), a, testNow); err != nil {
		t.Errorf("a generation a day ahead: %v, want it accepted", err)
	}
}

// A manifest from a later version, with fields that we do not know, still
// verifies: nobody re-serialises what was signed.
func TestOpenManifestIgnoresFieldsFromTheFuture(t *testing.T) {
	var s wire.Signed
	if err := wire.Parse(SignManifest(testKey(1), 7, testEntries(2)), protocol.MaxManifest, &s); err != nil {
		t.Fatal(err)
	}
	body := append(s.Body, 0x9a, 0x06, 3, 'n', 'e', 'w') // field 99
	m, err := OpenManifest(sign(testKey(1), body), testAccount(1), testNow)
	if err != nil || len(m.Devices) != 2 {
		t.Errorf("OpenManifest = %d devices, %v; want 2", len(m.Devices), err)
	}
}

func TestSignManifestPanicsOnWhatNobodyAccepts(t *testing.T) {
	for name, es := range map[string][]DeviceEntry{
		"no device":        nil,
		"a device twice":   {testEntry(1), testEntry(1)},
		"too many devices": testEntries(protocol.MaxDevices + 1),
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("SignManifest returned, want a panic")
				}
			}()
			SignManifest(testKey(1), 7, es)
		})
	}
}

func TestNextGeneration(t *testing.T) {
	now := uint64(testNow.Unix())
	for _, c := range []struct {
		previous uint64
		at       time.Time
		want     uint64
	}{
		{0, testNow, now},
		{now - 1, testNow, now},
		{now, testNow, now + 1},
		{now + 5, testNow, now + 6},
		{5, time.Unix(-1, 0), 6},
		{0, time.Time{}, 1},
	} {
		if got := NextGeneration(c.previous, c.at); got != c.want {
			t.Errorf("NextGeneration(%d, %v) = %d, want %d", c.previous, c.at, got, c.want)
		}
	}
}

func FuzzOpenManifest(f *testing.F) {
	k := testKey(1)
	// The input is a body that is signed before it is opened, or, if whole, the
	// signed form itself: a stranger controls the first with a key of his own.
	for _, n := range []int{1, 16} {
		b := SignManifest(k, 7, testEntries(n))
		var s wire.Signed
		if err := wire.Parse(b, protocol.MaxManifest, &s); err != nil {
			f.Fatal(err)
		}
		f.Add(s.Body, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		if !whole {
			b = sign(k, b)
		}
		m, err := OpenManifest(b, k.Account(), testNow)
		if err != nil {
			return
		}
		again, err := OpenManifest(SignManifest(k, m.Generation, m.Devices), k.Account(), testNow)
		if err != nil {
			t.Fatalf("%x was accepted, and signed again it is not: %v", b, err)
		}
		if d := cmp.Diff(m, again); d != "" {
			t.Fatalf("%x changed:\n%s", b, d)
		}
	})
}

func TestErrorsOfManifestsNameNoKey(t *testing.T) {
	a := testAccount(1)
	_, err := OpenManifest(SignManifest(testKey(2), 7, testEntries(1)), a, testNow)
	if !errors.Is(err, ErrSignature) {
		t.Fatalf("OpenManifest = %v, want ErrSignature", err)
	}
	if s := err.Error(); strings.Contains(s, a.Short()) || strings.Contains(s, fmt.Sprintf("%x", a[:4])) {
		t.Errorf("the error names the account: %s", s)
	}
}

func BenchmarkOpenManifest(b *testing.B) {
	enc, a := SignManifest(testKey(1), 7, testEntries(1)), testAccount(1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := OpenManifest(enc, a, testNow); err != nil {
			b.Fatal(err)
		}
	}
}
