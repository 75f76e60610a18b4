package relay

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"starling/protocol"
	"starling/protocol/identity"
)

func hint(addr string, port uint16) identity.Hint {
	return identity.Hint{Transport: transport(1), Addr: netip.MustParseAddr(addr), Port: port}
}

func testLinks() map[string]Link {
	tcp := hint("192.0.2.1", 4001)
	tcp.Network = identity.TCP
	dns := identity.Hint{Transport: transport(1), Name: "relay.example.org", Port: 443, Network: identity.TCP}
	long := dns
	long.Name = strings.Repeat(strings.Repeat("a", 49)+".", identity.MaxHintName/50-1) + strings.Repeat("a", 50)
	admission := Admission{1, 2, 3}
	of := func(a Admission, hs ...identity.Hint) Link {
		return Link{Transport: transport(1), Admission: a, Hints: hs}
	}
	return map[string]Link{
		"open, one IPv4 hint":             of(Admission{}, hint("192.0.2.1", 4001)),
		"token, one IPv4 hint":            of(admission, hint("192.0.2.1", 4001)),
		"token, QUIC and TCP":             of(admission, hint("192.0.2.1", 4001), tcp),
		"token, four hints":               of(admission, hint("192.0.2.1", 4001), tcp, hint("2001:db8::1", 4001), dns),
		"token, the longest DNS hint":     of(admission, long),
		"open, an address of the network": of(Admission{}, hint("10.0.0.1", 1)),
	}
}

func TestLinkIsReadAsWritten(t *testing.T) {
	for name, want := range testLinks() {
		s := want.String()
		if len(s) > protocol.MaxLink {
			t.Errorf("%s: %d characters, at most %d are allowed", name, len(s), protocol.MaxLink)
		}
		if strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567:-") != "" {
			t.Errorf("%s: %s does not fit a QR code's alphanumeric mode", name, s)
		}
		for _, in := range []string{s, strings.ToLower(s), " \r\n\t" + s + "\n"} {
			got, err := ParseLink(in)
			if err != nil {
				t.Fatalf("%s: ParseLink(%q) = %v", name, in, err)
			}
			if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Errorf("%s: link changed (-want +got):\n%s", name, d)
			}
			if got.String() != s {
				t.Errorf("%s: written again as %s, want %s", name, got, s)
			}
		}
	}
}

func TestLinkCatchesTypos(t *testing.T) {
	s := testLinks()["token, one IPv4 hint"].String()
	for i := len(linkScheme); i < len(s); i++ {
		for _, c := range "AZ27" {
			typo := s[:i] + string(c) + s[i+1:]
			if typo == s {
				continue
			}
			if _, err := ParseLink(typo); !errors.Is(err, ErrLink) {
				t.Fatalf("a typo at %d: %v, want ErrLink", i, err)
			}
		}
		if _, err := ParseLink(s[:i]); !errors.Is(err, ErrLink) {
			t.Fatalf("cut at %d: %v, want ErrLink", i, err)
		}
	}
}

// text gives body a checksum and a text, as a maker of odd links would.
func text(body []byte) string {
	b := append([]byte(nil), body...)
	return linkScheme + linkEncoding.EncodeToString(append(b, linkSum(b)...))
}

func TestParseLinkRefusesWhatHasAChecksum(t *testing.T) {
	good := testLinks()["token, one IPv4 hint"]
	body := good.body()
	edit := func(fn func(b []byte) []byte) string { return text(fn(append([]byte(nil), body...))) }
	const hintAt = 2 + 32 + AdmissionSize
	twice := Link{Transport: good.Transport, Hints: []identity.Hint{good.Hints[0], good.Hints[0]}}
	for _, c := range []struct {
		what, s string
		want    error
	}{
		{"another version", edit(func(b []byte) []byte { b[0] = 2; return b }), identity.ErrLinkVersion},
		{"another version, and nothing else", text([]byte{2}), identity.ErrLinkVersion},
		{"an unknown flag", edit(func(b []byte) []byte { b[1] |= 0x10; return b }), identity.ErrLinkVersion},
		{"five hints", edit(func(b []byte) []byte { b[1] = flagAdmission | 5<<hintShift; return b }), identity.ErrLinkVersion},
		{"an unknown kind of hint", edit(func(b []byte) []byte { b[hintAt] |= 0x40; return b }), identity.ErrLinkVersion},
		{"an unknown family", edit(func(b []byte) []byte { b[hintAt] |= 0x0f; return b }), identity.ErrLinkVersion},
		{"the version alone", text([]byte{1}), ErrLink},
		{"no hint", edit(func(b []byte) []byte { b[1] = flagAdmission; return b[:hintAt] }), ErrLink},
		{"a weak key", edit(func(b []byte) []byte { clear(b[2:34]); return b }), ErrLink},
		{"an admission token of zero", edit(func(b []byte) []byte { clear(b[34:hintAt]); return b }), ErrLink},
		{"cut in the admission token", edit(func(b []byte) []byte { return b[:hintAt-1] }), ErrLink},
		{"a hint with a key of its own", edit(func(b []byte) []byte { b[hintAt] &^= 0x20; return b }), ErrLink},
		{"a hint cut short", edit(func(b []byte) []byte { return b[:len(b)-1] }), ErrLink},
		{"a hint missing", edit(func(b []byte) []byte { return b[:hintAt] }), ErrLink},
		{"a byte too many", edit(func(b []byte) []byte { return append(b, 0) }), ErrLink},
		{"port 0", edit(func(b []byte) []byte { clear(b[len(b)-2:]); return b }), ErrLink},
		{"a hint twice", text(twice.body()), ErrLink},
		{"an invite link", identity.Link{Account: identity.Account(transport(1)), Token: identity.Token{1}}.String(), ErrLink},
		{"nothing", "", ErrLink},
		{"too long", linkScheme + strings.Repeat("A", protocol.MaxLink), ErrLink},
		{"letters beyond ASCII", linkScheme + "ſ", ErrLink},
	} {
		if _, err := ParseLink(c.s); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
	if _, err := ParseLink(identity.Link{Account: identity.Account(transport(1))}.String()); err == nil || !strings.Contains(err.Error(), "contact") {
		t.Errorf("an invite link: %v, want to be told what it is", err)
	}
}

func TestLinkCheck(t *testing.T) {
	good := testLinks()["token, four hints"]
	other := good
	other.Hints = []identity.Hint{{Transport: transport(2), Addr: netip.MustParseAddr("192.0.2.1"), Port: 1}}
	none := good
	none.Hints = nil
	five := good
	five.Hints = append([]identity.Hint{hint("192.0.2.9", 1)}, good.Hints...)
	useless := good
	useless.Hints = []identity.Hint{hint("0.0.0.0", 1)}
	long := good
	long.Hints = nil
	for _, c := range "abc" {
		h := testLinks()["token, the longest DNS hint"].Hints[0]
		h.Name = string(c) + h.Name[1:]
		long.Hints = append(long.Hints, h)
	}
	for what, l := range map[string]Link{"a hint of another node": other, "no hint": none, "five hints": five, "a useless address": useless, "too long": long} {
		if l.Check() == nil {
			t.Errorf("%s: Check = nil, want an error", what)
		}
	}
}

func FuzzParseLink(f *testing.F) {
	for _, l := range testLinks() {
		f.Add(l.body(), l.String())
	}
	f.Fuzz(func(t *testing.T, b []byte, s string) {
		for _, in := range []string{s, text(b)} {
			l, err := ParseLink(in)
			if err != nil {
				if !errors.Is(err, ErrLink) && !errors.Is(err, identity.ErrLinkVersion) {
					t.Fatalf("ParseLink(%q) = %v, want ErrLink or ErrLinkVersion", in, err)
				}
				continue
			}
			if got := l.String(); got != strings.ToUpper(strings.TrimSpace(in)) {
				t.Fatalf("%q is written again as %q", in, got)
			}
		}
	})
}
