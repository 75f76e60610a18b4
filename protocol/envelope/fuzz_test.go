package envelope

import (
	"bytes"
	"reflect"
	"runtime"
	"testing"

	"google.golang.org/protobuf/proto"

	"starling/protocol"
	"starling/protocol/wire"
)

// checkAlloc runs fn and fails if it allocated more than limit bytes, each time
// of a few: the counter is the process's, and others allocate too.
func checkAlloc(t *testing.T, limit uint64, fn func()) {
	t.Helper()
	var got uint64
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fn()
		runtime.ReadMemStats(&after)
		if got = after.TotalAlloc - before.TotalAlloc; got <= limit {
			return
		}
	}
	t.Fatalf("allocated %d bytes, want at most %d", got, limit)
}

func parsed(n int) uint64 { return uint64(wire.AllocFactor*n) + 16<<10 }

func FuzzParse(f *testing.F) {
	f.Add(Seal([32]byte{1}, nil, message(256)))
	f.Add(Seal([32]byte{1}, handshake(), message(640)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e *wire.Envelope
		var err error
		checkAlloc(t, parsed(min(len(b), protocol.MaxEnvelope)), func() { e, err = Parse(b) })
		if err != nil {
			return
		}
		enc := Seal([32]byte(e.Session), e.Handshake, e.Message)
		again, err := Parse(enc)
		if err != nil || !proto.Equal(again, e) {
			t.Fatalf("%x is accepted, and its encoding %x gives %v, %v", b, enc, again, err)
		}
		if !bytes.Equal(Seal([32]byte(again.Session), again.Handshake, again.Message), enc) {
			t.Fatalf("%x has two encodings", b)
		}
	})
}

// FuzzParseContent pads its input first, because the padding would stop nearly
// all of it; the input is also tried as it is.
func FuzzParseContent(f *testing.F) {
	for _, c := range contents() {
		b, err := MarshalContent(c)
		if err != nil {
			f.Fatal(err)
		}
		plain, err := Unpad(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(plain)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ParseContent(b)
		padded, err := Pad(b)
		if err != nil {
			return
		}
		var c *Content
		checkAlloc(t, parsed(len(b)), func() { c, err = ParseContent(padded) })
		if err != nil {
			return
		}
		enc, err := MarshalContent(c)
		if err != nil {
			t.Fatalf("%x is accepted, and cannot be encoded: %v", b, err)
		}
		again, err := ParseContent(enc)
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%x is accepted, and its encoding %x gives %+v, %v", b, enc, again, err)
		}
	})
}
