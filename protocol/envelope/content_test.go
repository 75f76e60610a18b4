package envelope

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

var sent = time.UnixMilli(1780315200123).UTC()

func text(s string) *Content {
	return &Content{ID: ID{1, 2, 3}, Sent: sent, Expires: sent.Add(protocol.MessageLife), Seq: 7, Text: &s}
}

func with(edit func(*Content)) *Content {
	c := text("")
	c.Text = nil
	edit(c)
	return c
}

func news() *News {
	return &News{
		Manifest: wire.Marshal(&wire.Signed{Body: []byte("manifest"), Signature: make([]byte, 64)}),
		Profile: identity.Profile{
			Name:   "Ada",
			Lookup: identity.LookupSecret{9},
			Endpoints: []identity.Endpoint{{
				Transport: transport,
				Addrs:     [][]byte{{4, 127, 0, 0, 1, 6, 0, 80}},
			}},
		},
	}
}

// transport is a key that passes strict import: the public key of RFC 8032
// §7.1, test 1.
var transport = identity.Transport{
	0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
	0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
}

// mail is opaque to this package beyond its bounds.
func mail() *wire.Mail {
	return &wire.Mail{
		Mailboxes: [][]byte{{1, 2, 3}},
		Sealing:   []*wire.Signed{{Body: []byte("sealing key"), Signature: make([]byte, 64)}},
	}
}

func contents() map[string]*Content {
	return map[string]*Content{
		"text":              text("hello"),
		"long text":         text(strings.Repeat("ü", protocol.MaxText/2)),
		"text of NULs":      text("\x00\x00"),
		"delivered":         with(func(c *Content) { c.Receipt = &Receipt{Delivered: []ID{{1}, {2}}} }),
		"read":              with(func(c *Content) { c.Receipt = &Receipt{Read: []ID{{3}}} }),
		"longest receipt":   with(func(c *Content) { c.Receipt = &Receipt{Read: make([]ID, protocol.MaxReceipt)} }),
		"news":              with(func(c *Content) { c.News = news() }),
		"accept":            with(func(c *Content) { c.Accept = news() }),
		"short life":        with(func(c *Content) { c.Expires, c.Receipt = sent.Add(time.Millisecond), &Receipt{Read: []ID{{}}} }),
		"last sequence":     with(func(c *Content) { c.Seq, c.Receipt = 1<<64-1, &Receipt{Read: []ID{{}}} }),
		"name is not given": with(func(c *Content) { c.News = news(); c.News.Profile.Name = "" }),
		"news of mail":      with(func(c *Content) { c.News = news(); c.News.Profile.Mail = mail() }),
		"no mail any more":  with(func(c *Content) { c.News = news(); c.News.Profile.Mail = &wire.Mail{} }),
		"longest mail":      with(func(c *Content) { c.Accept = news(); c.Accept.Profile.Mail = longestMail() }),
	}
}

func TestContentRoundTrip(t *testing.T) {
	for name, c := range contents() {
		b, err := MarshalContent(c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := ParseContent(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(c, got, protocmp.Transform()); d != "" {
			t.Errorf("%s changed on its way (-sent +received):\n%s", name, d)
		}
	}
}

func TestShortTextsShareASize(t *testing.T) {
	var lengths []int
	for _, s := range []string{"y", "yes", strings.Repeat("x", 190)} {
		b, err := MarshalContent(text(s))
		if err != nil {
			t.Fatal(err)
		}
		lengths = append(lengths, len(b))
	}
	if !reflect.DeepEqual(lengths, []int{256, 256, 256}) {
		t.Errorf("short texts have the lengths %v, want 256 for each", lengths)
	}
}

func TestMarshalRefusesWhatParseWould(t *testing.T) {
	for name, c := range map[string]*Content{
		"no body":          with(func(*Content) {}),
		"two bodies":       with(func(c *Content) { c.News, c.Accept = news(), news() }),
		"text and receipt": with(func(c *Content) { s := "x"; c.Text, c.Receipt = &s, &Receipt{Read: []ID{{}}} }),
		"empty text":       text(""),
		"text too long":    text(strings.Repeat("x", protocol.MaxText+1)),
		"text not UTF-8":   text("\xff"),
		"surrogate":        text("\xed\xa0\x80"),
		"empty receipt":    with(func(c *Content) { c.Receipt = &Receipt{} }),
		"receipt too long": with(func(c *Content) {
			c.Receipt = &Receipt{Read: make([]ID, protocol.MaxReceipt), Delivered: make([]ID, 1)}
		}),
		"no sequence number": func() *Content { c := text("x"); c.Seq = 0; return c }(),
		"zero times":         func() *Content { c := text("x"); c.Sent, c.Expires = time.Time{}, time.Time{}; return c }(),
		"sent in 1969":       func() *Content { c := text("x"); c.Sent, c.Expires = time.UnixMilli(-1), time.UnixMilli(1); return c }(),
		"sent far away": func() *Content {
			c := text("x")
			c.Sent = time.UnixMilli(1 << 51)
			c.Expires = c.Sent.Add(1e9)
			return c
		}(),
		"expired when sent": func() *Content { c := text("x"); c.Expires = c.Sent; return c }(),
		"expires too late":  func() *Content { c := text("x"); c.Expires = c.Expires.Add(time.Millisecond); return c }(),
		"news of nothing":   with(func(c *Content) { c.News = &News{} }),
		"news not a manifest": with(func(c *Content) {
			c.News = news()
			c.News.Manifest = []byte{0xff}
		}),
		"manifest too long": with(func(c *Content) {
			c.News = news()
			c.News.Manifest = wire.Marshal(&wire.Signed{Body: make([]byte, protocol.MaxManifest)})
		}),
		"name with a control code": with(func(c *Content) { c.Accept = news(); c.Accept.Profile.Name = "a\nb" }),
	} {
		if _, err := MarshalContent(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestParseContentIsStrict pads encodings that no honest peer makes.
func TestParseContentIsStrict(t *testing.T) {
	id := make([]byte, IDSize)
	ms := sent.UnixMilli()
	sound := func() *wire.Content {
		return &wire.Content{Id: id, Sent: ms, Expires: ms + 1, Seq: 1, Body: &wire.Content_Text{Text: &wire.Text{Text: "x"}}}
	}
	manifest := &wire.Signed{Body: []byte{1}, Signature: make([]byte, 64)}
	profile := news().Profile.Wire()
	for name, edit := range map[string]func(*wire.Content){
		"":                    func(*wire.Content) {},
		"no ID":               func(m *wire.Content) { m.Id = nil },
		"long ID":             func(m *wire.Content) { m.Id = make([]byte, 17) },
		"no body":             func(m *wire.Content) { m.Body = nil },
		"empty text":          func(m *wire.Content) { m.Body = &wire.Content_Text{Text: &wire.Text{}} },
		"sent below zero":     func(m *wire.Content) { m.Sent = -1 << 63 },
		"expires at the end":  func(m *wire.Content) { m.Expires = 1<<63 - 1 },
		"both at the end":     func(m *wire.Content) { m.Sent, m.Expires = 1<<63-2, 1<<63-1 },
		"no sequence number":  func(m *wire.Content) { m.Seq = 0 },
		"short ID in receipt": func(m *wire.Content) { m.Body = receiptBody([]byte{1}) },
		"empty receipt":       func(m *wire.Content) { m.Body = &wire.Content_Receipt{Receipt: &wire.Receipt{}} },
		"receipt too long": func(m *wire.Content) {
			m.Body = receiptBody(bytesOf(protocol.MaxReceipt+1, id)...)
		},
		"news without all":      func(m *wire.Content) { m.Body = &wire.Content_News{News: &wire.News{}} },
		"news without manifest": func(m *wire.Content) { m.Body = &wire.Content_News{News: &wire.News{Profile: profile}} },
		"news without profile":  func(m *wire.Content) { m.Body = &wire.Content_News{News: &wire.News{Manifest: manifest}} },
		"unsigned manifest": func(m *wire.Content) {
			m.Body = &wire.Content_News{News: &wire.News{Manifest: &wire.Signed{Body: []byte{1}}, Profile: profile}}
		},
		"empty manifest": func(m *wire.Content) {
			m.Body = &wire.Content_News{News: &wire.News{Manifest: &wire.Signed{Signature: make([]byte, 64)}, Profile: profile}}
		},
		"accept without news": func(m *wire.Content) { m.Body = &wire.Content_Accept{Accept: &wire.Accept{}} },
	} {
		m := sound()
		edit(m)
		b, err := Pad(wire.Marshal(m))
		if err != nil {
			t.Fatal(err)
		}
		if c, err := ParseContent(b); (err == nil) != (name == "") {
			t.Errorf("%q: error %v, content %+v", name, err, c)
		}
	}
	for name, b := range map[string][]byte{
		"no padding":   wire.Marshal(sound()),
		"not protobuf": mustPad(t, []byte{0xff}),
		"empty":        mustPad(t, nil),
		"two texts":    mustPad(t, append(wire.Marshal(sound()), wire.Marshal(sound())...)),
	} {
		if _, err := ParseContent(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func receiptBody(read ...[]byte) *wire.Content_Receipt {
	return &wire.Content_Receipt{Receipt: &wire.Receipt{Read: read}}
}

func bytesOf(n int, b []byte) [][]byte {
	bs := make([][]byte, n)
	for i := range bs {
		bs[i] = b
	}
	return bs
}

func mustPad(t testing.TB, b []byte) []byte {
	t.Helper()
	b, err := Pad(b)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestUnknownFieldsOfALaterVersionAreIgnored(t *testing.T) {
	b, err := MarshalContent(text("hello"))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := Unpad(b)
	if err != nil {
		t.Fatal(err)
	}
	later := append(bytes.Clone(plain), 0xf2, 0x01, 1, 42) // field 30, one byte
	c, err := ParseContent(mustPad(t, later))
	if err != nil || c.Text == nil || *c.Text != "hello" {
		t.Errorf("a content with an unknown field: %+v, %v", c, err)
	}
}
