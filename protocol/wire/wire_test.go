package wire_test

import (
	"bytes"
	"errors"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/descriptorpb"

	"starling/protocol"
	"starling/protocol/wire"
)

const kib = 1 << 10

func sample() *wire.Introduction {
	return &wire.Introduction{
		Manifest:  &wire.Signed{Body: []byte("body"), Signature: bytes.Repeat([]byte{7}, 64)},
		Device:    bytes.Repeat([]byte{1}, 32),
		SenderTag: bytes.Repeat([]byte{2}, 32),
		Profile: &wire.Profile{
			Name:         "Ada",
			LookupSecret: bytes.Repeat([]byte{3}, 16),
			Endpoints:    []*wire.Endpoint{{TransportKey: []byte{4}, Addrs: [][]byte{{5}, {6}}}, {}},
		},
	}
}

func TestParseReadsWhatMarshalWrote(t *testing.T) {
	want := sample()
	b := wire.Marshal(want)
	got := &wire.Introduction{TokenId: []byte("stale")}
	if err := wire.Parse(b, len(b), got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("message changed (-want +got):\n%s", d)
	}
	if again := wire.Marshal(got); !bytes.Equal(again, b) {
		t.Errorf("encoding changed: %x, want %x", again, b)
	}
}

func TestParseKeepsNoReferenceToItsInput(t *testing.T) {
	b := wire.Marshal(&wire.Signed{Body: []byte("body")})
	var m wire.Signed
	if err := wire.Parse(b, kib, &m); err != nil {
		t.Fatal(err)
	}
	clear(b)
	if string(m.Body) != "body" {
		t.Errorf("body = %q after the input was overwritten, want %q", m.Body, "body")
	}
}

func TestParseDropsUnknownFields(t *testing.T) {
	b := wire.Marshal(&wire.Signed{Body: []byte("body")})
	want := bytes.Clone(b)
	b = protowire.AppendTag(b, 99, protowire.BytesType)
	b = protowire.AppendBytes(b, []byte("news from the future"))
	b = protowire.AppendTag(b, 99, protowire.VarintType)
	b = protowire.AppendVarint(b, 1)
	var m wire.Signed
	if err := wire.Parse(b, kib, &m); err != nil {
		t.Fatal(err)
	}
	if got := wire.Marshal(&m); !bytes.Equal(got, want) {
		t.Errorf("re-encoded as %x, want %x", got, want)
	}
}

// field returns one length-delimited field.
func field(num protowire.Number, body []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), body)
}

func TestParseRefuses(t *testing.T) {
	nested := func(levels int) []byte {
		var b []byte
		for range levels - 1 {
			b = field(3, b) // DescriptorProto.nested_type
		}
		return b
	}
	many := func(n int, f []byte) []byte { return bytes.Repeat(f, n) }
	packed := func(n int) []byte { return field(1, field(1, make([]byte, n))) } // SourceCodeInfo.location.path

	for _, c := range []struct {
		name string
		b    []byte
		m    proto.Message
		want string // part of the error; empty: accepted
	}{
		{"nothing", nil, &wire.Signed{}, ""},
		{"the longest", field(1, make([]byte, kib-3)), &wire.Signed{}, ""},
		{"one byte more", field(1, make([]byte, kib-2)), &wire.Signed{}, "1025 bytes"},
		{"garbage", []byte{0xff, 0xff, 0xff}, &wire.Signed{}, "not protobuf"},
		{"a field cut short", field(1, []byte("body"))[:4], &wire.Signed{}, "not protobuf"},
		{"a length beyond the end", []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x07}, &wire.Signed{}, "not protobuf"},
		{"field number 0", []byte{0x02, 0x00}, &wire.Signed{}, "not protobuf"},
		{"a group", []byte{0x9b, 0x06, 0x9c, 0x06}, &wire.Signed{}, "a group"},
		{"a singular field twice", many(2, field(1, []byte("x"))), &wire.Signed{}, "twice"},
		{"a submessage twice", many(2, field(1, nil)), &wire.Introduction{}, "twice"},
		{"two members of a oneof", append(field(10, nil), field(11, nil)...), &wire.Content{}, "twice"},
		{"a repeated field twice", many(2, field(1, []byte("x"))), &wire.Delivery{}, ""},
		{"a string that is not UTF-8", field(1, []byte{0xff}), &wire.Profile{}, "UTF-8"},
		{"as many levels as allowed", nested(wire.MaxDepth), &descriptorpb.DescriptorProto{}, ""},
		{"one level more", nested(wire.MaxDepth + 1), &descriptorpb.DescriptorProto{}, "levels"},
	} {
		t.Run(c.name, func(t *testing.T) { wantRefusal(t, c.b, kib, c.m, c.want) })
	}
	for _, c := range []struct {
		name string
		b    []byte
		m    proto.Message
		want string
	}{
		{"as many fields as allowed", many(wire.MaxFields, field(1, nil)), &wire.Delivery{}, ""},
		{"one field more", many(wire.MaxFields+1, field(1, nil)), &wire.Delivery{}, "fields"},
		{"as many unknown fields as allowed", many(wire.MaxFields, field(99, nil)), &wire.Delivery{}, ""},
		{"one unknown field more", many(wire.MaxFields+1, field(99, nil)), &wire.Delivery{}, "fields"},
		{"fields counted over the tree", many(wire.MaxFields/2+1, field(3, field(1, nil))), &wire.Manifest{}, "fields"},
		{"packed elements as allowed", packed(wire.MaxFields - 2), &descriptorpb.SourceCodeInfo{}, ""},
		{"one packed element more", packed(wire.MaxFields - 1), &descriptorpb.SourceCodeInfo{}, "fields"},
	} {
		t.Run(c.name, func(t *testing.T) { wantRefusal(t, c.b, protocol.MaxFrame, c.m, c.want) })
	}
}

// wantRefusal checks that parsing b into m gives an error with the text want,
// or none if want is empty, and that a refused message leaves m empty.
func wantRefusal(t *testing.T, b []byte, max int, m proto.Message, want string) {
	t.Helper()
	err := wire.Parse(b, max, m)
	if want == "" {
		if err != nil {
			t.Errorf("Parse(%d bytes) = %v, want none", len(b), err)
		}
		return
	}
	if !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), want) {
		t.Errorf("Parse(%d bytes) = %v, want ErrMalformed about %q", len(b), err, want)
	}
	if n := proto.Size(m); n != 0 {
		t.Errorf("the refused message kept %d bytes", n)
	}
}

// The check for fields given twice covers the first 64 fields of a message.
func TestNoMessageOutgrowsTheWalk(t *testing.T) {
	eachMessage(func(d protoreflect.MessageDescriptor) {
		if n := d.Fields().Len(); n > 64 {
			t.Errorf("%s has %d fields, want at most 64", d.Name(), n)
		}
	})
}

func TestMarshalPanicsOnTextThatIsNotUTF8(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("Marshal returned, want a panic")
		}
	}()
	wire.Marshal(&wire.Text{Text: "\xff"})
}

func eachMessage(fn func(protoreflect.MessageDescriptor)) {
	ms := wire.File_wire_proto.Messages()
	for i := range ms.Len() {
		fn(ms.Get(i))
	}
}

// types returns an empty message of each type of the schema.
func types() []proto.Message {
	return []proto.Message{
		&wire.Signed{}, &wire.Manifest{}, &wire.Device{}, &wire.Bundle{}, &wire.Handshake{},
		&wire.Introduction{}, &wire.Profile{}, &wire.Endpoint{}, &wire.Envelope{}, &wire.Content{},
		&wire.Text{}, &wire.Receipt{}, &wire.News{}, &wire.Accept{}, &wire.Delivery{},
		&wire.DeliveryAnswer{}, &wire.Outcome{}, &wire.DecryptionError{}, &wire.PreKeyChallenge{},
		&wire.PreKeyRequest{}, &wire.PreKeyAnswer{}, &wire.RecordBody{}, &wire.RecordRequest{},
		&wire.RecordAnswer{}, &wire.SealingKey{}, &wire.Sealed{},
		&wire.RelayRequest{}, &wire.RelayAnswer{}, &wire.RelayInfoRequest{}, &wire.RelayInfo{}, &wire.RelayQuota{},
		&wire.RelayClaim{}, &wire.RelayClaimBody{}, &wire.RelayCreate{}, &wire.RelayAttach{}, &wire.RelayQueues{},
		&wire.RelayQueue{}, &wire.RelayRenew{}, &wire.RelaySetAccess{}, &wire.RelayDrop{}, &wire.RelayDeposit{},
		&wire.RelayReceipt{}, &wire.RelayPoll{}, &wire.RelayCursor{}, &wire.RelayEntries{}, &wire.RelayEntry{},
		&wire.RelayDelete{}, &wire.RelayDeletion{}, &wire.RelayPutKeys{}, &wire.RelayTakeKey{}, &wire.RelayKeyWork{},
		&wire.RelayKey{}, &wire.RelayCountKeys{}, &wire.RelayCount{}, &wire.RelayPutRecords{}, &wire.RelayPutBlob{},
		&wire.RelayGetBlob{}, &wire.RelayChunk{}, &wire.RelayDropBlob{}, &wire.RelayDialBack{}, &wire.RelayDialed{},
		&wire.RelayDemand{}, &wire.Mailbox{}, &wire.Mail{},
	}
}

func TestTypesAreComplete(t *testing.T) {
	have := map[protoreflect.Name]bool{}
	for _, m := range types() {
		have[m.ProtoReflect().Descriptor().Name()] = true
	}
	eachMessage(func(d protoreflect.MessageDescriptor) {
		if !have[d.Name()] {
			t.Errorf("types() lacks %s: the fuzz target would not reach it", d.Name())
		}
	})
}

// allocated returns the bytes that fn allocates: the least of a few runs, since
// the counter is the process's and others allocate too.
func allocated(limit uint64, fn func()) uint64 {
	least := uint64(math.MaxUint64)
	for range 10 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fn()
		runtime.ReadMemStats(&after)
		if least = min(least, after.TotalAlloc-before.TotalAlloc); least <= limit {
			break
		}
	}
	return least
}

func allocLimit(n int) uint64 { return uint64(wire.AllocFactor*n + 4*kib) }

// The inputs that cost the most: runs of empty submessages and empty values.
func TestParseAllocatesWithinItsBound(t *testing.T) {
	worst := 0.0
	for _, m := range types() {
		fields := m.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			one := field(f.Number(), nil)
			if inner := f.Message(); inner != nil {
				// A submessage with each of its own submessages, all empty.
				var b []byte
				for j := range inner.Fields().Len() {
					if g := inner.Fields().Get(j); g.Message() != nil && g.ContainingOneof() == nil {
						b = append(b, field(g.Number(), nil)...)
					}
				}
				one = field(f.Number(), b)
			}
			b := one
			if f.IsList() {
				b = bytes.Repeat(one, wire.MaxFields/(1+len(one)/2))
			}
			if err := wire.Parse(b, protocol.MaxFrame, m); err != nil {
				t.Fatalf("%s: %v", f.FullName(), err)
			}
			got := allocated(0, func() { wire.Parse(b, protocol.MaxFrame, m) })
			if limit := allocLimit(len(b)); got > limit {
				t.Errorf("%s: %d bytes of input allocate %d, want at most %d", f.FullName(), len(b), got, limit)
			}
			if len(b) > kib {
				worst = max(worst, float64(got)/float64(len(b)))
			}
		}
	}
	t.Logf("worst: %.0f bytes allocated for a byte of input", worst)
}

func TestRefusalAllocatesNothingThatGrows(t *testing.T) {
	b := bytes.Repeat(field(1, nil), protocol.MaxFrame/2)
	var m wire.RecordAnswer
	if got := testing.AllocsPerRun(10, func() { wire.Parse(b, protocol.MaxFrame, &m) }); got > 2 {
		t.Errorf("refusing a frame of empty fields takes %.0f allocations, want at most 2", got)
	}
}

func FuzzParse(f *testing.F) {
	for i := range types() {
		f.Add(uint8(i), []byte{})
	}
	f.Add(uint8(5), wire.Marshal(sample()))
	f.Add(uint8(14), bytes.Repeat(field(1, nil), 100))
	f.Add(uint8(15), bytes.Repeat(field(1, field(3, nil)), 100))
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		all := types()
		m := all[int(kind)%len(all)]
		if err := wire.Parse(b, protocol.MaxFrame, m); err != nil {
			if !errors.Is(err, wire.ErrMalformed) {
				t.Fatalf("Parse(%x) = %v, want ErrMalformed", b, err)
			}
		} else {
			enc := wire.Marshal(m)
			again := m.ProtoReflect().New().Interface()
			if err := wire.Parse(enc, len(enc), again); err != nil {
				t.Fatalf("%x was accepted, its encoding %x is not: %v", b, enc, err)
			}
			if !proto.Equal(m, again) {
				t.Fatalf("%x changes when encoded and parsed again", b)
			}
			if enc2 := wire.Marshal(again); !bytes.Equal(enc, enc2) {
				t.Fatalf("%x has two encodings: %x and %x", b, enc, enc2)
			}
		}
		limit := allocLimit(len(b))
		if got := allocated(limit, func() { wire.Parse(b, protocol.MaxFrame, m) }); got > limit {
			t.Fatalf("%d bytes of input allocate %d, want at most %d", len(b), got, limit)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	enc := wire.Marshal(sample())
	var m wire.Introduction
	b.ReportAllocs()
	for b.Loop() {
		if err := wire.Parse(enc, kib, &m); err != nil {
			b.Fatal(err)
		}
	}
}
