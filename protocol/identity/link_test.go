package identity

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"rsc.io/qr/coding"

	"starling/protocol"
)

func ipHint(n byte, addr string) Hint {
	return Hint{Transport: testTransport(n), Addr: netip.MustParseAddr(addr), Port: 4001}
}

func testLink(hints ...Hint) Link {
	return Link{Account: testAccount(1), Lookup: LookupSecret{1, 2, 3}, Token: Token{4, 5, 6}, Hints: hints}
}

func testLinks() map[string]Link {
	tcp := ipHint(2, "192.0.2.1")
	tcp.Network = TCP
	public := testLink(ipHint(2, "192.0.2.1"))
	public.Public, public.Token = true, Token{}
	return map[string]Link{
		"no hint":                 testLink(),
		"one IPv4 hint":           testLink(ipHint(2, "192.0.2.1")),
		"two IPv4 hints":          testLink(ipHint(2, "192.0.2.1"), ipHint(3, "198.51.100.1")),
		"two IPv4 hints, one key": testLink(ipHint(2, "192.0.2.1"), tcp),
		"IPv6 hint":               testLink(ipHint(2, "2001:db8::1")),
		"DNS hint":                testLink(Hint{Transport: testTransport(2), Name: "relay.example.org", Port: 443, Network: TCP}),
		"longest DNS hint":        testLink(Hint{Transport: testTransport(2), Name: longName(), Port: 443}),
		"public, one IPv4 hint":   public,
	}
}

// longName is a DNS name of MaxHintName bytes.
func longName() string {
	return strings.Repeat(strings.Repeat("a", 49)+".", MaxHintName/50-1) + strings.Repeat("a", 50)
}

func TestLinkIsReadAsWritten(t *testing.T) {
	for name, want := range testLinks() {
		t.Run(name, func(t *testing.T) {
			s := want.String()
			for _, in := range []string{s, strings.ToLower(s), " \r\n\t" + s + "\n", "Starling:" + s[9:]} {
				got, err := ParseLink(in)
				if err != nil {
					t.Fatalf("ParseLink(%q) = %v", in, err)
				}
				if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
					t.Errorf("link changed (-want +got):\n%s", d)
				}
				if got.String() != s {
					t.Errorf("written again as %s, want %s", got, s)
				}
			}
		})
	}
}

// The lengths are a contract: two IPv4 hints fit a terminal of 80 by 29 cells
// in half blocks, quiet zone included.
func TestLinkLengths(t *testing.T) {
	for name, want := range map[string]struct{ length, modules int }{
		"no hint":                 {123, 37},
		"one IPv4 hint":           {185, 41},
		"two IPv4 hints":          {248, 49},
		"two IPv4 hints, one key": {197, 45},
		"IPv6 hint":               {205, 45},
		"DNS hint":                {208, 45},
		"longest DNS hint":        {501, 65},
		"public, one IPv4 hint":   {160, 41},
	} {
		s := testLinks()[name].String()
		if len(s) != want.length {
			t.Errorf("%s: %d characters, want %d", name, len(s), want.length)
		}
		if len(s) > protocol.MaxLink {
			t.Errorf("%s: %d characters, the bound is %d", name, len(s), protocol.MaxLink)
		}
		alpha := coding.Alpha(s)
		if err := alpha.Check(); err != nil {
			t.Errorf("%s does not fit a QR code's alphanumeric mode: %v", name, err)
		}
		v := coding.Version(1)
		for alpha.Bits(v) > v.DataBytes(coding.L)*8 {
			v++
		}
		if got := int(v)*4 + 17; got != want.modules {
			t.Errorf("%s: a QR code of %d modules, want %d", name, got, want.modules)
		}
	}
}

func TestLinkHasOneText(t *testing.T) {
	const want = "STARLING:AEDA5PVV6MRE5XNCTPUI7BRNGET4FO3YCGRK4HFWICIULKIC3TODIWQBAIBQAAAAAAAAAAAAAAAAAAAAAQCQMAAAAAAAAAAAAAAAAAAAAAAUTQGTORJFYLALS7MTXXOKSBOOXRJIAKPPQPOYA56IFZ3WAXF64P6AAABACD5BVO7TUACS"
	if got := testLink(ipHint(2, "192.0.2.1")).String(); got != want {
		t.Errorf("link = %s, want %s: changing the form breaks every link in use", got, want)
	}
}

// Every single typo: any character replaced by any other, dropped, doubled, or
// swapped with its neighbour; and every end cut off.
func TestLinkCatchesTypos(t *testing.T) {
	s := testLink(ipHint(2, "192.0.2.1")).String()
	check := func(in string) {
		t.Helper()
		if in == s {
			return
		}
		if _, err := ParseLink(in); !errors.Is(err, ErrLink) || !strings.HasPrefix(err.Error(), "this link is damaged: ") {
			t.Fatalf("ParseLink(%q) = %v, want ErrLink", in, err)
		}
	}
	for i := range s {
		for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:- " {
			if c == ' ' && i == len(s)-1 {
				continue // space at the end is trimmed: a cut, below
			}
			check(s[:i] + string(c) + s[i+1:])
		}
		check(s[:i])
		check(s[:i] + s[i+1:])
		check(s[:i] + s[i:i+1] + s[i:])
		if i > 0 {
			check(s[:i-1] + s[i:i+1] + s[i-1:i] + s[i+1:])
		}
	}
}

// seal returns the link whose binary form, without the checksum, is b.
func seal(b []byte) string { return linkScheme + linkEncoding.EncodeToString(append(b, linkSum(b)...)) }

// open is the reverse of seal.
func open(t testing.TB, s string) []byte {
	t.Helper()
	b, err := linkEncoding.DecodeString(s[len(linkScheme):])
	if err != nil {
		t.Fatal(err)
	}
	return b[:len(b)-linkChecksum]
}

func TestParseLinkRefusesWhatHasAChecksum(t *testing.T) {
	p := readPublished(t)
	const token, hint = 2 + KeySize + LookupSize, 2 + KeySize + LookupSize + TokenSize // offsets
	edit := func(l Link, fn func(b []byte) []byte) string { return seal(fn(open(t, l.String()))) }
	set := func(i int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[i:], v); return b }
	}
	one := testLink(ipHint(2, "192.0.2.1"))
	two := testLink(ipHint(2, "192.0.2.1"), ipHint(3, "198.51.100.1"))
	six := testLink(ipHint(2, "2001:db8::1"))
	key := testTransport(2)
	// secondHint replaces the second hint of two.
	secondHint := func(h ...byte) string {
		return edit(two, func(b []byte) []byte { return append(b[:hint+39], h...) })
	}
	dns := func(name string) string {
		h := append([]byte{familyDNS}, key[:]...)
		h = append(h, byte(len(name)))
		h = append(h, name...)
		return edit(one, func(b []byte) []byte { return binary.BigEndian.AppendUint16(append(b[:hint], h...), 1) })
	}
	mapped := netip.MustParseAddr("::ffff:192.0.2.1").As16()

	for _, c := range []struct {
		name, s string
		want    error
	}{
		{"version 0", edit(one, set(0, 0)), ErrLinkVersion},
		{"version 2", edit(one, set(0, 2)), ErrLinkVersion},
		{"version 2, as short as can be", seal([]byte{2}), ErrLinkVersion},
		{"a flag we do not know", edit(one, set(1, 0x80|1<<hintShift|flagToken)), ErrLinkVersion},
		{"a hint's kind we do not know", edit(one, set(hint, 0x80|familyIPv4)), ErrLinkVersion},
		{"a hint's family we do not know", edit(one, set(hint, 4)), ErrLinkVersion},
		{"no version", seal(nil), ErrLink},
		{"no checksum", linkScheme, ErrLink},
		{"only a version", seal([]byte{linkVersion}), ErrLink},
		{"a byte too few", edit(one, func(b []byte) []byte { return b[:len(b)-1] }), ErrLink},
		{"a byte too many", edit(one, func(b []byte) []byte { return append(b, 0) }), ErrLink},
		{"fewer hints than announced", edit(one, set(1, 2<<hintShift|flagToken)), ErrLink},
		{"more hints than announced", edit(two, set(1, 1<<hintShift|flagToken)), ErrLink},
		{"three hints", edit(two, func(b []byte) []byte {
			b[1] = 3<<hintShift | flagToken
			return append(b, familyIPv4|kindSame, 192, 0, 2, 9, 0, 1)
		}), ErrLink},
		{"a zero token", edit(one, set(token, make([]byte, TokenSize)...)), ErrLink},
		{"a torsioned account", edit(one, set(2, p.Torsioned.Public...)), ErrLink},
		{"the identity point as account", edit(one, set(2, p.Forgery.Public...)), ErrLink},
		{"a small-order transport key", edit(one, set(hint+1, p.SmallOrder[4]...)), ErrLink},
		{"a transport key that is not canonical", edit(one, set(hint+1, p.Forgery.NonCanonical...)), ErrLink},
		{"port 0", edit(one, set(hint+37, 0, 0)), ErrLink},
		{"address 0.0.0.0", edit(one, set(hint+33, 0, 0, 0, 0)), ErrLink},
		{"a multicast address", edit(one, set(hint+33, 224, 0, 0, 1)), ErrLink},
		{"an IPv4 address as IPv6", edit(six, set(hint+33, mapped[:]...)), ErrLink},
		{"a first hint that refers back", edit(one, set(hint, familyIPv4|kindSame)), ErrLink},
		{"a second hint that repeats the key", secondHint(append(append([]byte{familyIPv4}, key[:]...), 192, 0, 2, 9, 0, 1)...), ErrLink},
		{"an IPv6 hint beside another", secondHint(append([]byte{familyIPv6 | kindSame}, make([]byte, 18)...)...), ErrLink},
		{"a DNS hint beside another", secondHint(familyDNS|kindSame, 1, 'a', 0, 1), ErrLink},
		{"an empty name", dns(""), ErrLink},
		{"a name that is an address", dns("192.0.2.1"), ErrLink},
		{"a name in upper case", dns("Relay.example.org"), ErrLink},
		{"a name with an empty label", dns("relay..org"), ErrLink},
		{"a name that ends in a dot", dns("relay.org."), ErrLink},
		{"a name with a hyphen at an end", dns("-relay.org"), ErrLink},
		{"a name with a path", dns("relay.org/x"), ErrLink},
		{"a name with a long label", dns(strings.Repeat("a", 64)), ErrLink},
		{"a name too long", dns("a." + longName()), ErrLink},
		{"another scheme", "https:" + one.String()[9:], ErrLink},
		{"two slashes", "STARLING://" + one.String()[9:], ErrLink},
		{"padding", one.String() + "======", ErrLink},
		{"a foreign letter", strings.Replace(one.String(), "S", "ſ", 1), ErrLink},
		{"a book", strings.Repeat("A", 1<<20), ErrLink},
		{"nothing", "", ErrLink},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := ParseLink(c.s)
			if !errors.Is(err, c.want) {
				t.Errorf("ParseLink = %v, want %v", err, c.want)
			}
			if l.Account != (Account{}) || l.Hints != nil {
				t.Error("a refused link is returned")
			}
		})
	}
	if _, err := ParseLink(dns("relay-1.example.org")); err != nil {
		t.Errorf("the DNS link before editing: %v", err)
	}
	if _, err := ParseLink(secondHint(familyIPv4|kindSame, 192, 0, 2, 9, 0, 1)); err != nil {
		t.Errorf("the second hint before editing: %v", err)
	}
}

func TestLinkCheckAgreesWithParse(t *testing.T) {
	named := Hint{Transport: testTransport(2), Name: "relay.example.org", Port: 443}
	for name, l := range map[string]Link{
		"three hints":       testLink(ipHint(2, "192.0.2.1"), ipHint(3, "192.0.2.2"), ipHint(4, "192.0.2.3")),
		"two IPv6 hints":    testLink(ipHint(2, "2001:db8::1"), ipHint(3, "2001:db8::2")),
		"DNS and IPv4":      testLink(named, ipHint(3, "192.0.2.2")),
		"no address":        testLink(Hint{Transport: testTransport(2), Port: 1}),
		"no port":           testLink(Hint{Transport: testTransport(2), Name: "a"}),
		"a zone":            testLink(ipHint(2, "fe80::1%eth0")),
		"name and address":  testLink(Hint{Transport: testTransport(2), Name: "a", Addr: netip.MustParseAddr("192.0.2.1"), Port: 1}),
		"a network unknown": testLink(Hint{Transport: testTransport(2), Name: "a", Port: 1, Network: 9}),
	} {
		t.Run(name, func(t *testing.T) {
			if l.Check() == nil {
				t.Error("Check = nil, want an error")
			}
			defer func() {
				if recover() == nil {
					t.Error("String returned, want a panic")
				}
			}()
			_ = l.String()
		})
	}
}

func TestTokenDerivations(t *testing.T) {
	a, b := Token{1}, Token{2}
	id, mac := a.ID(), a.MAC([32]byte{3})
	if got, want := hex.EncodeToString(id[:]), "32483847d4f5794f8014b058cb182ff2"; got != want {
		t.Errorf("ID = %s, want %s", got, want)
	}
	if got, want := hex.EncodeToString(mac[:]), "235401cafc8af31b209a5a74bef488f3beaf612cb3f2d57bf824add722d73b9e"; got != want {
		t.Errorf("MAC = %s, want %s", got, want)
	}
	if b.ID() == id || b.MAC([32]byte{3}) == mac || a.MAC([32]byte{4}) == mac {
		t.Error("another token or transcript gives the same value")
	}
}

func FuzzParseLink(f *testing.F) {
	for _, l := range testLinks() {
		f.Add(open(f, l.String()), "")
		f.Add([]byte{}, l.String())
	}
	// The input is a text, or if that is empty a binary form that is given its
	// checksum, which the fuzzer could not guess.
	f.Fuzz(func(t *testing.T, b []byte, s string) {
		if s == "" {
			s = seal(b)
		}
		l, err := ParseLink(s)
		if err != nil {
			if !errors.Is(err, ErrLink) && !errors.Is(err, ErrLinkVersion) {
				t.Fatalf("ParseLink(%q) = %v, want ErrLink or ErrLinkVersion", s, err)
			}
			return
		}
		if got, want := l.String(), strings.ToUpper(strings.TrimSpace(s)); got != want {
			t.Fatalf("%q is parsed and written as %q", want, got)
		}
	})
}

// A hint of one's own leaves out the key that its place has already.
func TestOwnHintIsReadAsWritten(t *testing.T) {
	tcp := ipHint(2, "192.0.2.1")
	tcp.Network = TCP
	for _, want := range []Hint{ipHint(2, "192.0.2.1"), tcp, ipHint(2, "2001:db8::1"), {Transport: testTransport(2), Name: "relay.example.org", Port: 443}} {
		b := append(want.AppendOwn(nil), "rest"...)
		got, rest, err := ParseOwn(b, want.Transport)
		if err != nil || got != want || string(rest) != "rest" {
			t.Errorf("ParseOwn = %v, %q, %v; want %v", got, rest, err, want)
		}
		for n := range len(b) - len("rest") {
			if _, _, err := ParseOwn(b[:n], want.Transport); err == nil {
				t.Errorf("%v cut to %d bytes is accepted", want, n)
			}
		}
	}
	if _, _, err := ParseOwn(ipHint(2, "192.0.2.1").append(nil, false), testTransport(2)); err == nil {
		t.Error("a hint with a key of its own is accepted")
	}
	if _, _, err := ParseOwn([]byte{0x4f | kindSame}, testTransport(2)); !errors.Is(err, ErrLinkVersion) {
		t.Errorf("an unknown kind: %v, want ErrLinkVersion", err)
	}
}
