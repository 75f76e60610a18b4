package ratchet

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A vector is one entry of testdata/published.json: values that others
// published or computed, with their source.
type vector struct {
	ID     string   `json:"id"`
	Kind   string   `json:"kind"`
	Source string   `json:"source"`
	Points []string `json:"u_coordinates"`

	IKM, Salt, Info, OKM string

	ChainKey     string `json:"chain_key"`
	MessageKey   string `json:"message_key_seed"`
	NextChainKey string `json:"next_chain_key"`

	DH          string `json:"dh"`
	OurPrivate  string `json:"our_private"`
	TheirPublic string `json:"their_public"`
	RootKey     string `json:"root_key"`
	NextRoot    string `json:"next_root"`
	NextChain   string `json:"next_chain"`
}

type vectors []vector

func readVectors(t testing.TB) vectors {
	t.Helper()
	b, err := os.ReadFile("testdata/published.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (vs vectors) find(t testing.TB, id string) vector {
	t.Helper()
	for _, v := range vs {
		if v.ID == id {
			return v
		}
	}
	t.Fatalf("no vector %s", id)
	return vector{}
}

func TestChainStepMatchesPublishedVector(t *testing.T) {
	v := readVectors(t).find(t, "chainkey-v3")
	c := chain{exists: true}
	c.key.b = [32]byte(unhex(t, v.ChainKey))
	mk := c.step()
	if got := hex.EncodeToString(mk.b[:]); got != v.MessageKey {
		t.Errorf("message key = %s, want %s", got, v.MessageKey)
	}
	if got := hex.EncodeToString(c.key.b[:]); got != v.NextChainKey {
		t.Errorf("next chain key = %s, want %s", got, v.NextChainKey)
	}
}
