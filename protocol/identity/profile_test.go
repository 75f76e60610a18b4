package identity

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"starling/protocol"
	"starling/protocol/wire"
)

func testProfile() Profile {
	return Profile{
		Name:   "Ada",
		Lookup: LookupSecret{1, 2, 3},
		Endpoints: []Endpoint{
			{Transport: testTransport(2), Addrs: [][]byte{{4, 192, 0, 2, 1, 6, 15, 161}, {1}}},
			{Transport: testTransport(3)},
		},
		Mail: &wire.Mail{
			Mailboxes: [][]byte{{1, 2, 3}, {4}},
			Sealing:   []*wire.Signed{{Body: []byte{5}, Signature: make([]byte, SignatureSize)}},
		},
		Version: 7,
	}
}

// Nothing said of mail, and no mail any more, are two things.
func TestProfileIsReadAsWritten(t *testing.T) {
	for name, want := range map[string]Profile{"full": testProfile(), "empty": {}, "no mail any more": {Mail: &wire.Mail{}}} {
		t.Run(name, func(t *testing.T) {
			var w wire.Profile
			if err := wire.Parse(wire.Marshal(want.Wire()), protocol.MaxFrame, &w); err != nil {
				t.Fatal(err)
			}
			got, err := ProfileFromWire(&w)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
				t.Errorf("profile changed (-want +got):\n%s", d)
			}
		})
	}
}

func TestProfileFromWireRefuses(t *testing.T) {
	p := readPublished(t)
	edit := func(fn func(*wire.Profile)) *wire.Profile {
		w := proto.CloneOf(testProfile().Wire())
		fn(w)
		return w
	}
	key := func(n byte) []byte { k := testTransport(n); return k[:] }
	for name, w := range map[string]*wire.Profile{
		"nothing":                 nil,
		"no lookup secret":        edit(func(w *wire.Profile) { w.LookupSecret = nil }),
		"a long lookup secret":    edit(func(w *wire.Profile) { w.LookupSecret = make([]byte, 17) }),
		"a name that deceives":    edit(func(w *wire.Profile) { w.Name = "Ada\u202e" }),
		"too many endpoints":      edit(func(w *wire.Profile) { w.Endpoints = make([]*wire.Endpoint, protocol.MaxEndpoints+1) }),
		"an endpoint twice":       edit(func(w *wire.Profile) { w.Endpoints[1].TransportKey = key(2) }),
		"an endpoint without key": edit(func(w *wire.Profile) { w.Endpoints[0].TransportKey = nil }),
		"a torsioned key":         edit(func(w *wire.Profile) { w.Endpoints[0].TransportKey = p.Torsioned.Public }),
		"too many addresses":      edit(func(w *wire.Profile) { w.Endpoints[0].Addrs = make([][]byte, protocol.MaxAddrs+1) }),
		"an empty address":        edit(func(w *wire.Profile) { w.Endpoints[0].Addrs[0] = nil }),
		"a long address":          edit(func(w *wire.Profile) { w.Endpoints[0].Addrs[0] = make([]byte, protocol.MaxAddr+1) }),
		"too many mailboxes":      edit(func(w *wire.Profile) { w.Mail.Mailboxes = slices.Repeat([][]byte{{1}}, protocol.MaxRelays+1) }),
		"an empty mailbox":        edit(func(w *wire.Profile) { w.Mail.Mailboxes[1] = nil }),
		"a long mailbox":          edit(func(w *wire.Profile) { w.Mail.Mailboxes[1] = make([]byte, protocol.MaxMailbox+1) }),
		"too many sealing keys": edit(func(w *wire.Profile) {
			w.Mail.Sealing = slices.Repeat(w.Mail.Sealing, protocol.MaxSealingKeys+1)
		}),
		"a sealing key without body": edit(func(w *wire.Profile) { w.Mail.Sealing[0].Body = nil }),
		"a short signature":          edit(func(w *wire.Profile) { w.Mail.Sealing[0].Signature = make([]byte, 63) }),
		"a long sealing key":         edit(func(w *wire.Profile) { w.Mail.Sealing[0].Body = make([]byte, protocol.MaxSealing-68) }),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := ProfileFromWire(w); err == nil {
				t.Errorf("ProfileFromWire = %+v, want an error", got)
			}
		})
	}
}

func TestParseName(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "",
		"  Ada \n":              "Ada",
		"Ada Lovelace":          "Ada Lovelace",
		"José Ñ":                "José Ñ",
		"山田　太郎":                 "山田　太郎",
		"Анна":                  "Анна",
		"❤️":                    "❤️",
		strings.Repeat("a", 64): strings.Repeat("a", 64),
	} {
		if got, err := ParseName(in); err != nil || got != want {
			t.Errorf("ParseName(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		strings.Repeat("a", 65),
		"a\xff", "a\x00b", "a\nb", "a\x1b[31m", "a\u007f", "a\u0085b",
		"a\u200bb", "a\u200db", "a\u200eb", "a\u202eb", "a\u2066b", "a\ufeffb", "a\u2060b", "a\u00adb", // format
		"a\u2028b", "a\u2029b", // separators
		"\u115f", "\u3164", "\uffa0", "a\u034fb", "a\U000e0041", // draw nothing
		"\ue000", "\U000f0000", "a\uffff", // private use, not a character
	} {
		if got, err := ParseName(in); !errors.Is(err, ErrName) {
			t.Errorf("ParseName(%+q) = %q, %v; want ErrName", in, got, err)
		}
	}
}

func FuzzProfileFromWire(f *testing.F) {
	f.Add(wire.Marshal(testProfile().Wire()))
	f.Add(wire.Marshal(Profile{}.Wire()))
	f.Fuzz(func(t *testing.T, b []byte) {
		var w wire.Profile
		if wire.Parse(b, protocol.MaxFrame, &w) != nil {
			return
		}
		p, err := ProfileFromWire(&w)
		if err != nil {
			return
		}
		enc := wire.Marshal(p.Wire())
		var w2 wire.Profile
		if err := wire.Parse(enc, len(enc), &w2); err != nil {
			t.Fatalf("%x was accepted, its encoding is not: %v", b, err)
		}
		p2, err := ProfileFromWire(&w2)
		if err != nil {
			t.Fatalf("%x was accepted, read again it is not: %v", b, err)
		}
		if d := cmp.Diff(p, p2, protocmp.Transform()); d != "" {
			t.Fatalf("%x changed:\n%s", b, d)
		}
		if !bytes.Equal(wire.Marshal(p2.Wire()), enc) {
			t.Fatalf("%x has two encodings", b)
		}
	})
}

func TestMailAtItsBoundsIsAccepted(t *testing.T) {
	w := &wire.Mail{Mailboxes: slices.Repeat([][]byte{make([]byte, protocol.MaxMailbox)}, protocol.MaxRelays)}
	for range protocol.MaxSealingKeys {
		w.Sealing = append(w.Sealing, &wire.Signed{Body: make([]byte, protocol.MaxSealing-69), Signature: make([]byte, SignatureSize)})
	}
	if n := proto.Size(w.Sealing[0]); n != protocol.MaxSealing {
		t.Fatalf("the longest sealing key has %d bytes, want %d", n, protocol.MaxSealing)
	}
	if err := CheckMail(w); err != nil {
		t.Error(err)
	}
	if err := CheckMail(nil); err != nil {
		t.Errorf("nothing said of mail: %v", err)
	}
}
