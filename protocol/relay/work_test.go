package relay

import (
	"context"
	"errors"
	"testing"

	"starling/protocol"
)

const workBits = 12 // some 4,000 hashes

func TestWorkIsFoundAndChecked(t *testing.T) {
	s := DepositStamp(transport(1), QueueID{2}, hashOf("blob"), 1000)
	for _, want := range []int{0, 1, workBits} {
		nonce, err := Work(t.Context(), s, want)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckWork(s, nonce, want); err != nil {
			t.Errorf("%d bits: %v", want, err)
		}
		if have := newTry(s).bits(nonce); CheckWork(s, nonce, have+1) == nil {
			t.Errorf("a nonce of %d bits passes for %d", have, have+1)
		}
	}
}

// Work counts for one deposit at one relay, and work for a key for no deposit.
func TestWorkIsBoundToItsUse(t *testing.T) {
	relay, queue, blob := transport(1), QueueID{2}, hashOf("blob")
	pool, salt := PoolID{3}, [16]byte{4}
	s := DepositStamp(relay, queue, blob, 1000)
	k := KeyStamp(relay, queue, pool, salt, 1000)
	stamps := map[string]Stamp{
		"another relay":           DepositStamp(transport(9), queue, blob, 1000),
		"another queue":           DepositStamp(relay, QueueID{9}, blob, 1000),
		"another blob":            DepositStamp(relay, queue, hashOf("other"), 1000),
		"another expiry":          DepositStamp(relay, queue, blob, 1001),
		"a key":                   k,
		"a key with another pool": KeyStamp(relay, queue, PoolID{9}, salt, 1000),
		"a key with another salt": KeyStamp(relay, queue, pool, [16]byte{9}, 1000),
		"a key at another time":   KeyStamp(relay, queue, pool, salt, 1001),
	}
	nonce, err := Work(t.Context(), s, workBits)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[32]byte]string{s.Hash(): "the deposit"}
	for what, other := range stamps {
		if before, taken := seen[other.Hash()]; taken {
			t.Errorf("%s and %s have one stamp", what, before)
		}
		seen[other.Hash()] = what
		if CheckWork(other, nonce, workBits) == nil {
			t.Errorf("work for a deposit counts for %s", what)
		}
	}
}

func TestWorkEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Work(ctx, Stamp{}, protocol.MaxWork); !errors.Is(err, context.Canceled) {
		t.Errorf("Work = %v, want context.Canceled", err)
	}
	if _, err := Work(t.Context(), Stamp{}, protocol.MaxWork+1); err == nil {
		t.Error("Work does more than any relay may ask for")
	}
}

func TestTryFitsOneBlock(t *testing.T) {
	if n := len(tryInput{}); n != 55 {
		t.Errorf("one try hashes %d bytes, want 55: one block of SHA-256", n)
	}
}

func BenchmarkWork(b *testing.B) {
	in := newTry(Stamp{})
	nonce := uint64(0)
	for b.Loop() {
		in.bits(nonce)
		nonce++
	}
}
