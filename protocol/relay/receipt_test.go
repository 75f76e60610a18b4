package relay

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"testing"
	"time"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

func leaves(n int) []Leaf {
	ls := make([]Leaf, n)
	for i := range ls {
		ls[i] = NewLeaf(QueueID{byte(i), byte(i >> 8)}, hashOf(fmt.Sprint(i)), int64(1000+i))
	}
	return ls
}

var groupTime = time.Unix(1_790_000_000, 0)

func signGroup(t testing.TB, k relayKey, ls []Leaf) *Group {
	t.Helper()
	g, err := SignGroup(ls, groupTime, k)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// mth is the Merkle tree hash as RFC 6962 §2.1 writes it, with our labels.
func mth(ls []Leaf) [sha256.Size]byte {
	if len(ls) == 1 {
		return ls[0]
	}
	k := 1 << (bits.Len(uint(len(ls)-1)) - 1) // the largest power of two below
	return node(mth(ls[:k]), mth(ls[k:]))
}

// path is the audit path as RFC 6962 §2.1.1 writes it.
func path(m int, ls []Leaf) [][sha256.Size]byte {
	if len(ls) == 1 {
		return nil
	}
	k := 1 << (bits.Len(uint(len(ls)-1)) - 1)
	if m < k {
		return append(path(m, ls[:k]), mth(ls[k:]))
	}
	return append(path(m-k, ls[k:]), mth(ls[:k]))
}

func TestTreeIsThatOfRFC6962(t *testing.T) {
	k := newRelayKey(1)
	for n := 1; n <= 70; n++ {
		ls := leaves(n)
		g := signGroup(t, k, ls)
		if got, want := g.levels[len(g.levels)-1][0], mth(ls); got != want {
			t.Fatalf("root of %d leaves = %x, want %x", n, got, want)
		}
		for i := range ls {
			r := g.Receipt(i)
			if want := path(i, ls); !slices.Equal(r.Path, want) {
				t.Fatalf("path of leaf %d of %d = %x, want %x", i, n, r.Path, want)
			}
			if len(r.Path) != pathLength(uint32(i), uint32(n)) {
				t.Fatalf("pathLength(%d, %d) = %d, want %d", i, n, pathLength(uint32(i), uint32(n)), len(r.Path))
			}
		}
	}
}

func TestEveryDepositOfAGroupGetsItsReceipt(t *testing.T) {
	k := newRelayKey(1)
	for _, n := range []int{1, 2, 3, 7, 64, 1000, protocol.MaxGroup} {
		ls := leaves(n)
		g := signGroup(t, k, ls)
		v := NewVerifier(k.transport())
		for i, l := range ls {
			r, err := ReceiptFromWire(g.Receipt(i).Wire())
			if err != nil {
				t.Fatalf("receipt %d of %d: %v", i, n, err)
			}
			if err := v.Verify(l, r); err != nil {
				t.Fatalf("receipt %d of %d: %v", i, n, err)
			}
			if len(r.Path) > maxPath {
				t.Fatalf("a path of %d hashes, at most %d are expected", len(r.Path), maxPath)
			}
		}
	}
}

// A receipt proves one deposit, at one relay: one fault each.
func TestReceiptProvesNothingElse(t *testing.T) {
	k := newRelayKey(1)
	ls := leaves(5)
	good := signGroup(t, k, ls).Receipt(2)
	if err := good.Verify(k.transport(), ls[2]); err != nil {
		t.Fatal(err)
	}
	alone := signGroup(t, k, ls[:1]).Receipt(0)
	inner := Leaf(node(ls[0], ls[1])) // a node of the tree, claimed as a deposit
	for _, c := range []struct {
		what  string
		relay identity.Transport
		leaf  Leaf
		edit  func(r *Receipt)
	}{
		{"another relay", transport(2), ls[2], nil},
		{"another deposit of the group", k.transport(), ls[3], nil},
		{"another queue", k.transport(), NewLeaf(QueueID{9}, hashOf("2"), 1002), nil},
		{"another blob", k.transport(), NewLeaf(QueueID{2}, hashOf("9"), 1002), nil},
		{"a later expiry", k.transport(), NewLeaf(QueueID{2}, hashOf("2"), 1003), nil},
		{"another place", k.transport(), ls[2], func(r *Receipt) { r.Index = 3 }},
		{"a place beyond the end", k.transport(), ls[2], func(r *Receipt) { r.Index = 5 }},
		{"a group of more", k.transport(), ls[2], func(r *Receipt) { r.Count = 6 }},
		{"a group of fewer", k.transport(), ls[2], func(r *Receipt) { r.Count = 3 }},
		{"a group of none", k.transport(), ls[2], func(r *Receipt) { r.Count, r.Index = 0, 0 }},
		{"a group above the bound", k.transport(), ls[2], func(r *Receipt) { r.Count = protocol.MaxGroup + 1 }},
		{"another time", k.transport(), ls[2], func(r *Receipt) { r.Time++ }},
		{"a changed hash", k.transport(), ls[2], func(r *Receipt) { r.Path[1][0] ^= 1 }},
		{"a shorter path", k.transport(), ls[2], func(r *Receipt) { r.Path = r.Path[:2] }},
		{"a longer path", k.transport(), ls[2], func(r *Receipt) { r.Path = append(r.Path, hashOf("x")) }},
		{"a changed signature", k.transport(), ls[2], func(r *Receipt) { r.Signature[0] ^= 1 }},
		{"the signature of another group", k.transport(), ls[2], func(r *Receipt) { r.Signature = alone.Signature }},
		{"a place beyond the end of a group of one", k.transport(), ls[0], func(r *Receipt) {
			*r = alone
			r.Index, r.Path = 1, [][sha256.Size]byte{hashOf("x")}
		}},
		{"an inner node as a deposit", k.transport(), inner, func(r *Receipt) { r.Index, r.Count, r.Path = 0, 3, r.Path[1:] }},
		{"an inner node as a deposit, count kept", k.transport(), inner, func(r *Receipt) { r.Index, r.Path = 0, r.Path[1:] }},
	} {
		r := good
		r.Path = slices.Clone(good.Path)
		if c.edit != nil {
			c.edit(&r)
		}
		if err := r.Verify(c.relay, c.leaf); !errors.Is(err, ErrReceipt) {
			t.Errorf("%s: %v, want ErrReceipt", c.what, err)
		}
		// A verifier that knows the group is fooled no more than one that does
		// not.
		v := NewVerifier(c.relay)
		if c.relay == k.transport() {
			if err := v.Verify(ls[2], good); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.Verify(c.leaf, r); !errors.Is(err, ErrReceipt) {
			t.Errorf("%s, group known: %v, want ErrReceipt", c.what, err)
		}
	}
}

// A failed check teaches a verifier nothing.
func TestVerifierRemembersOnlyWhatItVerified(t *testing.T) {
	k := newRelayKey(1)
	ls := leaves(4)
	r := signGroup(t, newRelayKey(2), ls).Receipt(0)
	v := NewVerifier(k.transport())
	for range 2 {
		if err := v.Verify(ls[0], r); !errors.Is(err, ErrReceipt) {
			t.Fatalf("a receipt of another relay: %v, want ErrReceipt", err)
		}
	}
	var zero Receipt
	if err := v.Verify(Leaf{}, zero); !errors.Is(err, ErrReceipt) {
		t.Errorf("the zero receipt: %v, want ErrReceipt", err)
	}
	zero.Count = 1
	if err := v.Verify(Leaf{}, zero); !errors.Is(err, ErrReceipt) {
		t.Errorf("the zero receipt of one: %v, want ErrReceipt", err)
	}
}

func TestReceiptFromWireRefuses(t *testing.T) {
	k := newRelayKey(1)
	for _, c := range []struct {
		what string
		edit func(w *wire.RelayReceipt)
	}{
		{"no deposit", func(w *wire.RelayReceipt) { w.Count = 0 }},
		{"too many deposits", func(w *wire.RelayReceipt) { w.Count = protocol.MaxGroup + 1 }},
		{"an index beyond the end", func(w *wire.RelayReceipt) { w.Index = w.Count }},
		{"a path of another length", func(w *wire.RelayReceipt) { w.Path = w.Path[1:] }},
		{"a path of one hash more", func(w *wire.RelayReceipt) { w.Path = append(w.Path, make([]byte, 32)...) }},
		{"no signature", func(w *wire.RelayReceipt) { w.Signature = nil }},
		{"a signature of 65 bytes", func(w *wire.RelayReceipt) { w.Signature = make([]byte, 65) }},
		{"no time", func(w *wire.RelayReceipt) { w.Time = 0 }},
		{"a time out of range", func(w *wire.RelayReceipt) { w.Time = 1 << 40 }},
	} {
		w := signGroup(t, k, leaves(5)).Receipt(4).Wire()
		c.edit(w)
		if _, err := ReceiptFromWire(w); !errors.Is(err, ErrReceipt) {
			t.Errorf("%s: %v, want ErrReceipt", c.what, err)
		}
	}
	if _, err := ReceiptFromWire(nil); !errors.Is(err, ErrReceipt) {
		t.Errorf("nothing: %v, want ErrReceipt", err)
	}
}

type badSigner struct{ sig []byte }

func (b badSigner) Sign([]byte) ([]byte, error) {
	if b.sig == nil {
		return nil, errors.New("no key")
	}
	return b.sig, nil
}

func TestSignGroupNeedsAnEd25519Key(t *testing.T) {
	for _, s := range []badSigner{{nil}, {make([]byte, 71)}} {
		if _, err := SignGroup(leaves(2), groupTime, s); err == nil {
			t.Errorf("SignGroup with a signature of %d bytes succeeds", len(s.sig))
		}
	}
}

// FuzzReceipt verifies receipts that were changed: those that pass are the one
// that was made.
func FuzzReceipt(f *testing.F) {
	k := newRelayKey(1)
	ls := leaves(11)
	g := signGroup(f, k, ls)
	for _, i := range []int{0, 5, 10} {
		f.Add(wire.Marshal(g.Receipt(i).Wire()), uint8(i))
	}
	f.Fuzz(func(t *testing.T, b []byte, leaf uint8) {
		var w wire.RelayReceipt
		if wire.Parse(b, 1<<10, &w) != nil {
			return
		}
		r, err := ReceiptFromWire(&w)
		if err != nil {
			return
		}
		enc := wire.Marshal(r.Wire())
		var again wire.RelayReceipt
		if err := wire.Parse(enc, len(enc), &again); err != nil {
			t.Fatal(err)
		}
		r2, err := ReceiptFromWire(&again)
		if err != nil || string(wire.Marshal(r2.Wire())) != string(enc) {
			t.Fatalf("%x changes when written and read again: %v", b, err)
		}
		i := int(leaf) % len(ls)
		if r.Verify(k.transport(), ls[i]) == nil && string(enc) != string(wire.Marshal(g.Receipt(i).Wire())) {
			t.Fatalf("a receipt that nobody made passes for deposit %d: %x", i, b)
		}
	})
}

func BenchmarkSignGroup(b *testing.B) {
	k, ls := newRelayKey(1), leaves(512)
	b.ReportAllocs()
	for b.Loop() {
		g, err := SignGroup(ls, groupTime, k)
		if err != nil {
			b.Fatal(err)
		}
		for i := range ls {
			g.Receipt(i).Wire()
		}
	}
	b.ReportMetric(float64(b.N*len(ls))/b.Elapsed().Seconds(), "receipts/s")
}

func BenchmarkVerifyGroup(b *testing.B) {
	k, ls := newRelayKey(1), leaves(512)
	g := signGroup(b, k, ls)
	rs := make([]Receipt, len(ls))
	for i := range rs {
		rs[i] = g.Receipt(i)
	}
	b.ReportAllocs()
	for b.Loop() {
		v := NewVerifier(k.transport())
		for i, r := range rs {
			if err := v.Verify(ls[i], r); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.N*len(ls))/b.Elapsed().Seconds(), "receipts/s")
}
