package relay

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"
)

// Two relays' copies of one message do not share its expiry to the second, and
// no deposit outlives its message.
func TestExpirySaysLittleOfTheMessage(t *testing.T) {
	until := time.Unix(1_800_000_000, 0).Add(17*time.Minute + 3*time.Second)
	seen := map[int64]bool{}
	for range 1000 {
		e, err := Expiry(rand.Reader, until)
		if err != nil {
			t.Fatal(err)
		}
		if e%expiryStep != 0 || e > until.Unix() || e <= until.Unix()-2*expiryStep {
			t.Fatalf("Expiry(%d) = %d, want a whole hour at most two hours earlier", until.Unix(), e)
		}
		seen[e] = true
	}
	if len(seen) != 2 {
		t.Errorf("%d expiries were drawn, want 2", len(seen))
	}
	if _, err := Expiry(bytes.NewReader(nil), until); err == nil {
		t.Error("Expiry succeeds without randomness")
	}
}
