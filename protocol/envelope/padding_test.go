package envelope

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"starling/protocol"
)

func TestPaddedSizes(t *testing.T) {
	if !slices.IsSorted(sizes[:]) || sizes[len(sizes)-1] != protocol.MaxContent {
		t.Fatalf("sizes are %v", sizes)
	}
	for _, c := range []struct{ content, want int }{
		{0, 256},
		{255, 256},
		{256, 640},
		{639, 640},
		{640, 1536},
		{1535, 1536},
		{1536, 3584},
		{3584, 15872},
		{15871, 15872},
		{15872, 32256},
		{32255, 32256},
	} {
		b, err := Pad(make([]byte, c.content))
		if err != nil || len(b) != c.want {
			t.Errorf("%d bytes are padded to %d (error %v), want %d", c.content, len(b), err, c.want)
		}
	}
	for _, n := range []int{32256, 32257, 1 << 20} {
		if _, err := Pad(make([]byte, n)); err == nil {
			t.Errorf("%d bytes are padded", n)
		}
	}
}

func TestUnpadInvertsPad(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Ends in the bytes that padding is made of are the hard ones.
		content := append(
			rapid.SliceOfN(rapid.Byte(), 0, 4000).Draw(t, "content"),
			rapid.SliceOfN(rapid.SampledFrom([]byte{0, 0x80}), 0, 20).Draw(t, "end")...)
		b, err := Pad(content)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unpad(b)
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("Unpad(Pad(%x)) = %x, %v", content, got, err)
		}
	})
}

// TestUnpadAcceptsOnlyWhatPadMakes draws near misses: every string that Unpad
// accepts is the padded form of its result.
func TestUnpadAcceptsOnlyWhatPadMakes(t *testing.T) {
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom(sizes[:4]).Draw(t, "size") + rapid.SampledFrom([]int{0, 0, 0, -1, 1}).Draw(t, "off")
		b := make([]byte, size)
		for range rapid.IntRange(0, 3).Draw(t, "bytes set") {
			at := rapid.IntRange(0, size-1).Draw(t, "at")
			b[at] = rapid.SampledFrom([]byte{0x80, 0x80, 1, 0xff}).Draw(t, "value")
		}
		content, err := Unpad(b)
		if err != nil {
			return
		}
		accepted++
		again, err := Pad(content)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("Unpad accepts %d bytes that Pad does not make", size)
		}
	})
	if accepted == 0 {
		t.Error("no drawn string was accepted: the property was not tested")
	}
}

func TestUnpadRefuses(t *testing.T) {
	full := func(size, marker int) []byte {
		b := make([]byte, size)
		b[marker] = 0x80
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":                nil,
		"only zeros":             make([]byte, 256),
		"no marker":              bytes.Repeat([]byte{1}, 256),
		"a size of nobody":       full(257, 256),
		"below the least size":   full(128, 0),
		"above the largest":      full(32257, 32256),
		"a size too large":       full(640, 255),
		"two sizes too large":    full(1536, 0),
		"the marker halved":      append(make([]byte, 255), 0x40),
		"something behind it":    append(full(255, 100), 1),
		"largest, far too loose": full(32256, 15871),
	} {
		if got, err := Unpad(b); err == nil {
			t.Errorf("%s: accepted, with content of %d bytes", name, len(got))
		}
	}
	if _, err := Unpad(full(640, 256)); err != nil {
		t.Errorf("the shortest content of 640 bytes: %v", err)
	}
}
