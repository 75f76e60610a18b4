package relay

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"

	"starling/protocol"
	"starling/protocol/identity"
)

func testPool() *Pool {
	return NewPool(identity.Account{1}, identity.LookupSecret{2}, transport(3), QueueID{4})
}

func TestPoolOpensWhatItSealed(t *testing.T) {
	p := testPool()
	for _, n := range []int{0, 1, 1700, protocol.MaxBundle} {
		bundle := bytes.Repeat([]byte{0x80, 0}, protocol.MaxBundle)[:n] // looks like padding
		one, err := p.Seal(rand.Reader, bundle)
		if err != nil {
			t.Fatal(err)
		}
		two, err := p.Seal(rand.Reader, bundle)
		if err != nil {
			t.Fatal(err)
		}
		if len(one) != protocol.KeyBlob || len(two) != protocol.KeyBlob || bytes.Equal(one, two) {
			t.Errorf("%d bytes are sealed to %d and %d bytes, want %d that differ", n, len(one), len(two), protocol.KeyBlob)
		}
		if got, err := testPool().Open(one); err != nil || !bytes.Equal(got, bundle) {
			t.Errorf("Open = %d bytes, %v; want the %d that were sealed", len(got), err, n)
		}
	}
	if _, err := p.Seal(rand.Reader, make([]byte, protocol.MaxBundle+1)); err == nil {
		t.Error("Seal takes a bundle above the bound")
	}
}

// A relay that gives a blob of another account, box or relay, or a changed one,
// is noticed.
func TestPoolOpensNothingElse(t *testing.T) {
	a, l, relay, box := identity.Account{1}, identity.LookupSecret{2}, transport(3), QueueID{4}
	blob, err := testPool().Seal(rand.Reader, []byte("bundle"))
	if err != nil {
		t.Fatal(err)
	}
	for what, p := range map[string]*Pool{
		"another account":       NewPool(identity.Account{9}, l, relay, box),
		"another lookup secret": NewPool(a, identity.LookupSecret{9}, relay, box),
		"another relay":         NewPool(a, l, transport(9), box),
		"another box":           NewPool(a, l, relay, QueueID{9}),
	} {
		if p.ID() == testPool().ID() {
			t.Errorf("%s has the same pool", what)
		}
		if _, err := p.Open(blob); !errors.Is(err, ErrBlob) {
			t.Errorf("%s: %v, want ErrBlob", what, err)
		}
	}
	p := testPool()
	for i := range blob {
		bad := bytes.Clone(blob)
		bad[i] ^= 1 << (i % 8)
		if _, err := p.Open(bad); !errors.Is(err, ErrBlob) {
			t.Fatalf("a bit of byte %d flipped: %v, want ErrBlob", i, err)
		}
	}
	for _, n := range []int{0, blobNonce, protocol.KeyBlob - 1} {
		if _, err := p.Open(blob[:n]); !errors.Is(err, ErrBlob) {
			t.Errorf("cut to %d bytes: %v, want ErrBlob", n, err)
		}
	}
	if _, err := p.Open(append(bytes.Clone(blob), 0)); !errors.Is(err, ErrBlob) {
		t.Errorf("one byte more: %v, want ErrBlob", err)
	}
}

// sealRaw seals a padded text as a holder of (A, L) could who does not follow
// the padding.
func sealRaw(p *Pool, padded []byte) []byte {
	var nonce [blobNonce]byte
	return p.aead.Seal(bytes.Clone(nonce[:]), nonce[:], padded, p.id[:])
}

func TestPoolRefusesOtherPadding(t *testing.T) {
	p := testPool()
	full := bytes.Repeat([]byte{1}, blobPadded)
	long := make([]byte, blobPadded)
	long[protocol.MaxBundle+1] = marker
	last := bytes.Clone(full)
	last[blobPadded-1] = marker
	for what, padded := range map[string][]byte{
		"no marker":                make([]byte, blobPadded),
		"no padding":               full,
		"a bundle above the bound": long,
		"a marker at the very end": last,
	} {
		if _, err := p.Open(sealRaw(p, padded)); !errors.Is(err, ErrBlob) {
			t.Errorf("%s: %v, want ErrBlob", what, err)
		}
	}
}

// FuzzPool opens arbitrary paddings under a right key, and arbitrary blobs.
func FuzzPool(f *testing.F) {
	p := testPool()
	f.Add([]byte("bundle\x80"), false)
	f.Add(p.seal([blobNonce]byte{}, []byte("bundle")), true)
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		if !whole {
			padded := make([]byte, blobPadded)
			copy(padded, b)
			b = sealRaw(p, padded)
		}
		bundle, err := p.Open(b)
		if err != nil {
			if !errors.Is(err, ErrBlob) {
				t.Fatalf("Open = %v, want ErrBlob", err)
			}
			return
		}
		if again := p.seal([blobNonce]byte(b), bundle); !bytes.Equal(again, b) {
			t.Fatalf("%x opens, and is not what Seal makes of its bundle", b)
		}
	})
}
