package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"starling/protocol"
	"starling/protocol/wire"
)

func TestFramesAreReadAsWritten(t *testing.T) {
	sizes := []int{0, 1, 127, 128, 64 * kib, 64*kib + 1, 200 * kib, protocol.MaxFrame}
	var buf bytes.Buffer
	for i, n := range sizes {
		if err := wire.WriteFrame(&buf, bytes.Repeat([]byte{byte(i)}, n)); err != nil {
			t.Fatalf("writing %d bytes: %v", n, err)
		}
	}
	for name, r := range map[string]io.Reader{
		"with ReadByte": bytes.NewReader(buf.Bytes()),
		"without":       iotest.HalfReader(bytes.NewReader(buf.Bytes())),
	} {
		t.Run(name, func(t *testing.T) {
			for i, n := range sizes {
				got, err := wire.ReadFrame(r, n)
				if err != nil {
					t.Fatalf("reading %d bytes: %v", n, err)
				}
				if !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, n)) {
					t.Errorf("frame of %d bytes changed", n)
				}
			}
			if _, err := wire.ReadFrame(r, kib); !errors.Is(err, io.EOF) {
				t.Errorf("after the last frame: %v, want io.EOF", err)
			}
		})
	}
}

func TestWriteFrameRefusesWhatNobodyReads(t *testing.T) {
	var buf bytes.Buffer
	if err := wire.WriteFrame(&buf, make([]byte, protocol.MaxFrame+1)); err == nil || buf.Len() > 0 {
		t.Errorf("WriteFrame = %v after %d bytes, want an error after none", err, buf.Len())
	}
}

func TestReadFrameRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		want error
	}{
		{"a length above the bound", []byte{0x81, 0x08}, wire.ErrMalformed},
		{"a huge length", binary.AppendUvarint(nil, 1<<63), wire.ErrMalformed},
		{"a length that overflows", bytes.Repeat([]byte{0xff}, 20), wire.ErrMalformed},
		{"a length that does not end", bytes.Repeat([]byte{0x80}, 20), wire.ErrMalformed},
		{"a length that is not minimal", []byte{0x81, 0x00}, wire.ErrMalformed},
		{"zero in two bytes", []byte{0x80, 0x00}, wire.ErrMalformed},
		{"an end inside the length", []byte{0x80}, io.ErrUnexpectedEOF},
		{"an end before the body", []byte{0x05}, io.ErrUnexpectedEOF},
		{"an end inside the body", []byte{0x05, 1, 2}, io.ErrUnexpectedEOF},
		{"nothing", nil, io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := wire.ReadFrame(bytes.NewReader(c.in), kib); !errors.Is(err, c.want) {
				t.Errorf("ReadFrame(%x) = %v, want %v", c.in, err, c.want)
			}
		})
	}
}

// A promise of a mebibyte costs us 64 KiB until it is kept.
func TestReadFrameMakesRoomAsBytesArrive(t *testing.T) {
	in := binary.AppendUvarint(nil, protocol.MaxFrame)
	const limit = 66 * kib
	got := allocated(limit, func() { wire.ReadFrame(bytes.NewReader(in), protocol.MaxFrame) })
	if got > limit {
		t.Errorf("a frame that never comes allocates %d bytes, want at most %d", got, limit)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x03, 1, 2, 3, 4})
	f.Add([]byte{0x80, 0x01})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		b, err := wire.ReadFrame(r, protocol.MaxFrame)
		if err == nil {
			var out bytes.Buffer
			if err := wire.WriteFrame(&out, b); err != nil {
				t.Fatal(err)
			}
			if used := in[:len(in)-r.Len()]; !bytes.Equal(out.Bytes(), used) {
				t.Fatalf("frame %x is written as %x", used, out.Bytes())
			}
		}
		limit := uint64(4*len(in) + 66*kib)
		if got := allocated(limit, func() { wire.ReadFrame(bytes.NewReader(in), protocol.MaxFrame) }); got > limit {
			t.Fatalf("%d bytes of input allocate %d, want at most %d", len(in), got, limit)
		}
	})
}

// Frames that are appended are those that WriteFrame writes of the same messages.
func TestAppendedFramesAreThoseWritten(t *testing.T) {
	var want bytes.Buffer
	var got []byte
	for _, n := range []int{0, 1, 100, 127, 128, 70 * kib} {
		m := &wire.RelayChunk{Chunk: bytes.Repeat([]byte{byte(n)}, n)}
		if err := wire.WriteFrame(&want, wire.Marshal(m)); err != nil {
			t.Fatal(err)
		}
		var err error
		if got, err = wire.AppendFrame(got, m); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("after a message of %d bytes they differ", n)
		}
	}
	after, err := wire.AppendFrame(got, &wire.RelayChunk{Chunk: make([]byte, protocol.MaxFrame)})
	if err == nil || !bytes.Equal(after, got) {
		t.Errorf("a message above the bound: %v, and %d bytes after %d", err, len(after), len(got))
	}
}
