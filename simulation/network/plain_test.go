package network

import (
	"context"
	"crypto/rand"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/p2p/security/insecure"
)

func TestPlainHandshakeEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		p, err := newPlain(insecure.ID, key)
		if err != nil {
			t.Fatal(err)
		}
		n := newNet(t, Config{Seed: 1, Sites: 2, Topology: Uniform(time.Millisecond, 2*time.Millisecond, 0)})
		a, b := connect(t, join(t, n, 0), join(t, n, 1))
		defer a.Close()
		defer b.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if _, err := p.SecureInbound(ctx, a, ""); err == nil {
			t.Error("a handshake with somebody silent succeeded")
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("it took %v, want a minute", took)
		}
	})
}
