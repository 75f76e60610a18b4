package spool

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"hash/crc32"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/layout.json anew")

// A vector is bytes as they are on disk, in hex.
type vector struct {
	Size    int    // of the slots of the file
	Bound   uint64 // of the file
	Header  string
	Number  uint32 // of the slot
	Queue   string
	ID      uint64
	Expires int64
	Blob    string
	Slot    string
}

// TestLayout holds the bytes on disk against those of earlier programs.
func TestLayout(t *testing.T) {
	const name = "testdata/layout.json"
	var got []vector
	for i, v := range []vector{
		{Size: 10, Bound: 1, Number: 0, ID: 1, Expires: 2, Blob: "61"},
		{Size: 10, Bound: 1<<64 - 1, Number: maxSlots, ID: 1<<64 - 1, Expires: -1, Blob: "30313233343536373839"},
	} {
		q := Queue(bytes.Repeat([]byte{byte(0x10 * (i + 1))}, 32))
		blob, err := hex.DecodeString(v.Blob)
		if err != nil {
			t.Fatal(err)
		}
		slot := bytes.Repeat([]byte{0xaa}, slotHeader+v.Size)
		putSlot(slot, v.Number, record{q, v.ID, v.Expires, blob})
		v.Queue, v.Slot, v.Header = hex.EncodeToString(q[:]), hex.EncodeToString(slot), hex.EncodeToString(marshalHeader(v.Size, v.Bound))
		got = append(got, v)
	}
	if *update {
		b, err := json.MarshalIndent(got, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, append(b, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var want []vector
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the layout changed (-want +got):\n%s", diff)
	}
}

func FuzzParseSlot(f *testing.F) {
	b := make([]byte, slotHeader+40)
	f.Add(bytes.Clone(b), uint32(0), false)
	putSlot(b, 7, record{queue(1), 5, 6, []byte("blob")})
	f.Add(bytes.Clone(b), uint32(7), false)
	b[4] = version + 1
	f.Add(b, uint32(7), true)
	f.Fuzz(func(t *testing.T, b []byte, number uint32, sum bool) {
		if len(b) < slotHeader+1 {
			return // slots have at least that
		}
		if n := int64(b[8])<<24 | int64(b[9])<<16 | int64(b[10])<<8 | int64(b[11]); sum && n <= int64(len(b)-slotHeader) {
			s := slotSum(b, number, int(n)) // let the fuzzer past the checksum
			b[0], b[1], b[2], b[3] = byte(s>>24), byte(s>>16), byte(s>>8), byte(s)
		}
		r, state := parseSlot(b, number)
		if state != slotValid {
			if r.blob != nil {
				t.Errorf("a blob of a slot that is not valid")
			}
			return
		}
		again := make([]byte, len(b))
		putSlot(again, number, r)
		r2, state := parseSlot(again, number)
		if state != slotValid || r2.queue != r.queue || r2.id != r.id || r2.expires != r.expires || !bytes.Equal(r2.blob, r.blob) {
			t.Errorf("slot reads %+v, written again %+v", r, r2)
		}
		if _, state := parseSlot(again, number^1); state != slotDamaged {
			t.Errorf("slot is valid in the place of another")
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	f.Add(marshalHeader(100, 5), 100)
	f.Add(make([]byte, fileHeader), 100)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		if len(b) != fileHeader || size < 1 || size > maxSize {
			return
		}
		binary.BigEndian.PutUint32(b, crc32.Checksum(b[checkFrom:], castagnoli)) // let the fuzzer past it
		bound, state := parseHeader(b, size)
		if again, state2 := parseHeader(marshalHeader(size, bound), size); state == slotValid && (again != bound || state2 != slotValid) {
			t.Errorf("bound %d, written again %d (%d)", bound, again, state2)
		}
		if _, state := parseHeader(marshalHeader(size, bound), size%maxSize+1); state != slotDamaged {
			t.Errorf("header is valid for another size")
		}
	})
}
