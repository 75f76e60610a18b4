package envelope

import (
	"bytes"
	"reflect"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// checkAlloc runs fn and fails if it allocated more than limit bytes, each time
// of a few: the counter is the process's, and others allocate too.
func checkAlloc(t *testing.T, limit uint64, fn func()) {
	t.Helper()
	var got uint64
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fn()
		runtime.ReadMemStats(&after)
		if got = after.TotalAlloc - before.TotalAlloc; got <= limit {
			return
		}
	}
	t.Fatalf("allocated %d bytes, want at most %d", got, limit)
}

func parsed(n int) uint64 { return uint64(wire.AllocFactor*n) + 16<<10 }

func FuzzParse(f *testing.F) {
	f.Add(Seal([32]byte{1}, nil, message(256)))
	f.Add(Seal([32]byte{1}, handshake(), message(640)))
	f.Add(SealError(decryptionError()))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e, relayed *wire.Envelope
		var err, relayedErr error
		checkAlloc(t, parsed(min(len(b), protocol.MaxEnvelope)), func() { e, err = Parse(b) })
		checkAlloc(t, parsed(min(len(b), protocol.MaxEnvelope)), func() { relayed, relayedErr = ParseRelayed(b) })
		if relayedErr == nil && relayed.Error != nil {
			again, againErr := ParseRelayed(SealError(relayed.Error))
			if err == nil || againErr != nil || !proto.Equal(again, relayed) {
				t.Fatalf("error %x is accepted on a stream (%v), or its encoding gives %v, %v", b, err, again, againErr)
			}
			return
		}
		if (err == nil) != (relayedErr == nil) || err == nil && !proto.Equal(e, relayed) {
			t.Fatalf("%x, without an error inside, depends on its way: %v, %v", b, err, relayedErr)
		}
		if err != nil {
			return
		}
		enc := Seal([32]byte(e.Session), e.Handshake, e.Message)
		again, err := Parse(enc)
		if err != nil || !proto.Equal(again, e) {
			t.Fatalf("%x is accepted, and its encoding %x gives %v, %v", b, enc, again, err)
		}
		if !bytes.Equal(Seal([32]byte(again.Session), again.Handshake, again.Message), enc) {
			t.Fatalf("%x has two encodings", b)
		}
	})
}

// FuzzOpenSealed seals what it is given, as a stranger can who knows the sealing
// key; if tagged, under the tag that alice, a broken sender, would put there.
func FuzzOpenSealed(f *testing.F) {
	l := newLetter(f)
	sound := wire.Marshal(l.sound(openEnvelope(256)))
	f.Add(sound, false)
	f.Add(sound, true)
	for _, inner := range l.faults(f) {
		if b, ok := unpad(inner, buckets[:]); ok && len(b) < buckets[0] {
			f.Add(b, true)
		}
	}
	f.Add(l.context.seal(f, make([]byte, buckets[0])), false)
	seal := func(t *testing.T, b []byte) []byte {
		padded, ok := pad(b, buckets[:])
		if !ok {
			t.Skip("too long for a sender")
		}
		return l.context.seal(t, padded)
	}
	f.Fuzz(func(t *testing.T, b []byte, tagged bool) {
		if _, err := l.bob.open(b); err == nil {
			t.Errorf("%x is accepted from nobody", b)
		}
		var m wire.Sealed
		if tagged && wire.Parse(b, protocol.MaxSealed, &m) == nil && len(m.Device) == 32 {
			b = wire.Marshal(l.tagged(&m, l.alice.dk.DH(), identity.Device(m.Device), l.bob.entry.Key, l.context.enc))
		}
		sealed := seal(t, b)
		var got Opened
		var err error
		checkAlloc(t, parsed(2*len(b))+uint64(2*len(sealed)), func() { got, err = l.bob.open(sealed) })
		if err != nil {
			if err != ErrSealed || got.Envelope != nil {
				t.Errorf("%x is refused with %v and %d bytes", b, err, len(got.Envelope))
			}
			return
		}
		// Nobody forges a tag: it is alice's, and without her help it is the
		// very letter.
		if got.Device.DH != l.alice.entry.DH {
			t.Errorf("%x is accepted from somebody else", b)
		}
		if !tagged && (!bytes.Equal(got.ManifestBytes, l.alice.manifest) || !bytes.Equal(got.Envelope, openEnvelope(256))) {
			t.Errorf("%x is accepted with another content", b)
		}
		again, err := l.bob.open(seal(t, wire.Marshal(l.tagged(&wire.Sealed{
			Manifest: got.ManifestBytes, Device: got.Device.Key[:], Envelope: got.Envelope,
		}, l.alice.dk.DH(), got.Device.Key, l.bob.entry.Key, l.context.enc))))
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%x is accepted, and its encoding gives %+v, %v", b, again, err)
		}
	})
}

// FuzzOpenSealingKey opens bytes as they are, as a stranger sends them, and as
// the body of what a broken device signed.
func FuzzOpenSealingKey(f *testing.F) {
	p := newPerson(f, "bob")
	account := p.account.Account()
	var s wire.Signed
	if err := wire.Parse(p.signed, protocol.MaxSealing, &s); err != nil {
		f.Fatal(err)
	}
	f.Add(p.signed)
	f.Add(s.Body)
	f.Add([]byte{})
	public := p.private.key.PublicKey().Bytes()
	f.Fuzz(func(t *testing.T, b []byte) {
		open := func(b []byte) (k *SealingKey, err error) {
			// An expanded ML-KEM-768 key is the largest part of what is fixed.
			checkAlloc(t, parsed(2*min(len(b), protocol.MaxSealing))+64<<10, func() {
				k, err = OpenSealingKey(b, account, p.entry.Key, now)
			})
			return k, err
		}
		if k, err := open(b); err == nil && !bytes.Equal(k.key.Bytes(), public) {
			t.Errorf("%x is accepted, and nobody signed it", b)
		}
		k, err := open(wire.Marshal(&wire.Signed{Body: b, Signature: p.dk.Sign(protocol.LabelSealingKey, b)}))
		if err != nil {
			return
		}
		body := wire.Marshal(&wire.SealingKey{Account: k.Account[:], Device: k.Device[:], Week: k.Week, Key: k.key.Bytes()})
		again, err := open(wire.Marshal(&wire.Signed{Body: body, Signature: p.dk.Sign(protocol.LabelSealingKey, body)}))
		if err != nil || again.Week != k.Week || !bytes.Equal(again.key.Bytes(), k.key.Bytes()) {
			t.Errorf("%x is accepted, and its encoding %x is not the same: %v", b, body, err)
		}
		if _, err := SealFor(identity.DeviceEntry{Key: k.Device, DH: p.entry.DH}, k, queue, newPerson(t, "alice").sender(), []byte{1}); err != nil && !lowOrder(k) {
			t.Errorf("%x is accepted, and nothing can be sealed to it: %v", b, err)
		}
	})
}

// lowOrder reports whether nobody agrees with the X25519 half of k.
func lowOrder(k *SealingKey) bool {
	b := k.key.Bytes()
	own := x25519.FromSeed([32]byte{1})
	_, err := own.Shared(x25519.Public(b[len(b)-32:]))
	return err != nil
}

// FuzzParseContent pads its input first, because the padding would stop nearly
// all of it; the input is also tried as it is.
func FuzzParseContent(f *testing.F) {
	for _, c := range contents() {
		b, err := MarshalContent(c)
		if err != nil {
			f.Fatal(err)
		}
		plain, err := Unpad(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(plain)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ParseContent(b)
		padded, err := Pad(b)
		if err != nil {
			return
		}
		var c *Content
		checkAlloc(t, parsed(len(b)), func() { c, err = ParseContent(padded) })
		if err != nil {
			return
		}
		enc, err := MarshalContent(c)
		if err != nil {
			t.Fatalf("%x is accepted, and cannot be encoded: %v", b, err)
		}
		again, err := ParseContent(enc)
		if err != nil || !cmp.Equal(again, c, protocmp.Transform()) {
			t.Fatalf("%x is accepted, and its encoding %x gives %+v, %v", b, enc, again, err)
		}
	})
}
