package identity

import (
	"strings"
	"testing"
)

func TestSafetyNumberIsTheSameOnBothSides(t *testing.T) {
	a, b := testAccount(1), testAccount(2)
	n := SafetyNumber(a, b)
	if len(n) != 60 || strings.Trim(n, "0123456789") != "" {
		t.Errorf("SafetyNumber = %q, want 60 digits", n)
	}
	if other := SafetyNumber(b, a); other != n {
		t.Errorf("the other side sees %s, want %s", other, n)
	}
	if other := SafetyNumber(a, testAccount(3)); other == n {
		t.Error("another account has the same number")
	}
}

func TestSafetyNumberHasOneValue(t *testing.T) {
	const want = "043763235621967026373929296511242611467010846301037173282047"
	if got := SafetyNumber(testAccount(1), testAccount(2)); got != want {
		t.Errorf("SafetyNumber = %s, want %s: changing it makes every compared number false", got, want)
	}
}

// The number of another messenger with the same key is another.
func TestSafetyNumberHasVersionBytesOfItsOwn(t *testing.T) {
	a := testAccount(1)
	if fingerprint(0, a[:], nil, safetyIterations) == fingerprint(safetyVersion, a[:], nil, safetyIterations) {
		t.Error("the version bytes do not count")
	}
}

func BenchmarkSafetyNumber(b *testing.B) {
	x, y := testAccount(1), testAccount(2)
	for b.Loop() {
		SafetyNumber(x, y)
	}
}
