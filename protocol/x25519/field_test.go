package x25519

import (
	"math/big"
	"math/rand/v2"
	"testing"
)

var prime = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))

func (r *element) big() *big.Int {
	n := new(big.Int)
	for i := 3; i >= 0; i-- {
		n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(r[i]))
	}
	return n
}

// limbs are those at which a carry is made or lost.
var limbs = []uint64{0, 1, 18, 19, 37, 38, 39, 1 << 63, 1<<63 - 19, 1<<63 - 1, 1<<64 - 39, 1<<64 - 38, 1<<64 - 20, 1<<64 - 19, 1<<64 - 1}

// elements returns every element made of a few edge limbs and n random ones,
// some of whose limbs are edges.
func elements(n int) []element {
	r := rand.New(rand.NewPCG(1, 2))
	var es []element
	for _, a := range limbs {
		for _, b := range []uint64{0, 1<<64 - 1} {
			for _, c := range []uint64{0, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
				es = append(es, element{a, b, b, c})
			}
		}
	}
	for range n {
		var e element
		for i := range e {
			if e[i] = r.Uint64(); r.IntN(2) == 0 {
				e[i] = limbs[r.IntN(len(limbs))]
			}
		}
		es = append(es, e)
	}
	return es
}

func TestFieldAgreesWithBigIntegers(t *testing.T) {
	es := elements(300)
	check := func(op string, got element, want *big.Int, in ...element) {
		t.Helper()
		b := got.bytes()
		n := new(big.Int)
		for i := len(b) - 1; i >= 0; i-- {
			n.Lsh(n, 8).Or(n, big.NewInt(int64(b[i])))
		}
		if want.Mod(want, prime).Cmp(n) != 0 {
			t.Fatalf("%s of %x = %x, want %x", op, in, n, want)
		}
	}
	for _, a := range es {
		var r element
		check("bytes", a, a.big(), a)
		r.square(&a)
		check("square", r, new(big.Int).Mul(a.big(), a.big()), a)
		for _, k := range []uint64{0, 1, 121665, 1<<32 - 1} {
			r.mulSmall(&a, k)
			check("mulSmall", r, new(big.Int).Mul(a.big(), new(big.Int).SetUint64(k)), a, element{k})
		}
		for _, b := range es {
			r.add(&a, &b)
			check("add", r, new(big.Int).Add(a.big(), b.big()), a, b)
			r.sub(&a, &b)
			check("sub", r, new(big.Int).Sub(a.big(), b.big()), a, b)
			r.mul(&a, &b)
			check("mul", r, new(big.Int).Mul(a.big(), b.big()), a, b)
		}
	}
}

func TestInvert(t *testing.T) {
	for _, a := range elements(50) {
		var r element
		r.invert(&a)
		r.mul(&r, &a)
		want := [Size]byte{1}
		if a.bytes() == ([Size]byte{}) {
			want = [Size]byte{}
		}
		if got := r.bytes(); got != want {
			t.Errorf("invert(%x) times it = %x, want %x", a, got, want)
		}
	}
}
