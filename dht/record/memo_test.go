package record

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestMemoSaysWhatValidateSays(t *testing.T) {
	k, l := newAccount(t, "ada")
	now := noon
	var memo Memo
	type made struct {
		key [KeySize]byte
		rec []byte
	}
	var all []made
	for i := range memoSize + 10 {
		key, rec, err := Make(seeded(fmt.Sprint("memo", i)), k, l, byte(i%Replicas), uint64(i), newBody(t, k, DayOf(now), uint64(i), 1))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, made{key, rec})
		if i > 20 && i < memoSize {
			continue // each costs two signatures to check; those that push others out are enough
		}
		for range 2 {
			if err := memo.Validate(key, rec, now); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, m := range all[:20] {
		for i := range len(m.rec) {
			if i%97 != 0 {
				continue
			}
			bad := append([]byte(nil), m.rec...)
			bad[i] ^= 1
			if err := memo.Validate(m.key, bad, now); !errors.Is(err, ErrInvalid) {
				t.Fatalf("byte %d changed: %v", i, err)
			}
		}
		if err := memo.Validate(all[20].key, m.rec, now); m.key != all[20].key && !errors.Is(err, ErrInvalid) {
			t.Errorf("under another key: %v", err)
		}
		if err := memo.Validate(m.key, m.rec, now.Add(3*24*time.Hour)); !errors.Is(err, ErrInvalid) {
			t.Errorf("three days later: %v", err)
		}
	}
}

func TestMemoIsBounded(t *testing.T) {
	var memo Memo
	for i := range 3 * memoSize {
		memo.learn([32]byte{byte(i), byte(i >> 8), 1})
	}
	if len(memo.good) != memoSize {
		t.Errorf("%d records are remembered, want %d", len(memo.good), memoSize)
	}
	if first, last := 2*memoSize, 3*memoSize-1; !memo.knows([32]byte{byte(first), byte(first >> 8), 1}) || !memo.knows([32]byte{byte(last), byte(last >> 8), 1}) {
		t.Error("a recent record is forgotten")
	}
}
