package identity

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"

	"starling/protocol"
)

// An invite link is a URI whose path is the upper-case base32, without padding,
// of
//
//	version   [1]byte   // 0x01
//	flags     [1]byte   // 0x01 public; 0x02 has a token; 0x0c number of hints
//	account   [32]byte
//	lookup    [16]byte
//	token     [16]byte  // if flagged
//	hints     ...
//	checksum  [5]byte   // over everything before; the same in every version
//
// and a hint is
//
//	kind      [1]byte   // 0x0f family: 1 IPv4, 2 IPv6, 3 DNS; 0x10 TCP, not QUIC; 0x20 same transport key as the hint before
//	transport [32]byte  // unless the same
//	address   [4]byte, [16]byte, or one byte of length and a name
//	port      [2]byte   // big-endian
//
// Scheme and base32 in upper case keep a QR code in alphanumeric mode.
const (
	linkScheme   = "STARLING:"
	linkVersion  = 1
	linkChecksum = 5 // bytes: damage passes once in 2^40

	flagPublic = 0x01
	flagToken  = 0x02
	hintShift  = 2
	flagsKnown = flagPublic | flagToken | 0x03<<hintShift

	familyIPv4 = 1
	familyIPv6 = 2
	familyDNS  = 3
	familyMask = 0x0f
	kindTCP    = 0x10
	kindSame   = 0x20
	kindsKnown = familyMask | kindTCP | kindSame
)

// MaxHints is the most hints a link holds. A link with an IPv6 or DNS hint
// holds one, so that its QR code fits a terminal.
const MaxHints = 2

// MaxHintName is the longest DNS name in a hint, in bytes. It keeps a link
// within [protocol.MaxLink].
const MaxHintName = 200

// ErrLink means that a text is not an invite link, or is damaged. The error
// that wraps it says more; show it to the user, who asks for the link again.
var ErrLink = errors.New("this link is damaged")

// ErrLinkVersion means that the link is whole, and holds something that this
// version does not know. Tell the user to update.
var ErrLinkVersion = errors.New("this link was made by a newer Starling; update yours, then try again")

// A Network is the transport protocol of a [Hint].
type Network uint8

// The transport protocols of hints: QUIC version 1 over UDP, and TCP.
const (
	QUIC Network = iota
	TCP
)

// A Hint is a node to ask for an account's record before any DHT lookup: the
// inviter itself, or a relay.
type Hint struct {
	Transport Transport
	Network   Network
	Addr      netip.Addr // unset if Name is set
	Name      string     // DNS name in lower case, at most [MaxHintName] bytes
	Port      uint16
}

// A Link is an invite link (SPEC §4). It holds what a stranger needs to find
// the account and, with a token, to be let in: treat it as a secret.
type Link struct {
	Account Account
	Lookup  LookupSecret
	Token   Token // zero: none
	Public  bool  // reusable; leads to a contact request
	Hints   []Hint
}

// Check returns why l has no text form, or nil: too many hints, or a hint with
// an address that is of no use to anyone. Parsed links pass.
func (l Link) Check() error {
	if len(l.Hints) > MaxHints {
		return fmt.Errorf("identity: a link holds at most %d hints", MaxHints)
	}
	for _, h := range l.Hints {
		if err := h.Check(); err != nil {
			return err
		}
		if len(l.Hints) > 1 && !h.Addr.Is4() {
			return errors.New("identity: a link with an IPv6 or DNS hint holds no other")
		}
	}
	return nil
}

// Check returns why a link cannot hold h, or nil: an address that is of no use
// to anyone. Parsed hints pass where the link that holds them was parsed.
func (h Hint) Check() error {
	switch {
	case h.Network > TCP:
		return errors.New("identity: a hint's network is QUIC or TCP")
	case h.Port == 0:
		return errors.New("identity: a hint has no port")
	case h.Name != "" && h.Addr.IsValid():
		return errors.New("identity: a hint has both a name and an address")
	case h.Name != "":
		return checkDNS(h.Name)
	case !h.Addr.IsValid(), h.Addr.IsUnspecified(), h.Addr.IsMulticast(), h.Addr.Is4In6(), h.Addr.Zone() != "":
		return errors.New("identity: a hint's address is missing or names no single host")
	}
	return nil
}

// checkDNS accepts dot-separated labels of lower-case letters, digits and inner
// hyphens (RFC 1123 §2.1), of which the last has a letter, so that no address
// passes for a name.
func checkDNS(name string) error {
	bad := errors.New("identity: a hint's name is not a DNS name")
	if len(name) > MaxHintName {
		return bad
	}
	letter := false
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad
		}
		letter = false
		for _, c := range []byte(label) {
			switch {
			case c >= 'a' && c <= 'z':
				letter = true
			case c >= '0' && c <= '9', c == '-':
			default:
				return bad
			}
		}
	}
	if !letter {
		return bad
	}
	return nil
}

// String returns the link as text. It panics if [Link.Check] gives an error.
func (l Link) String() string {
	if err := l.Check(); err != nil {
		panic("identity: internal error: " + err.Error())
	}
	flags := byte(len(l.Hints) << hintShift)
	if l.Public {
		flags |= flagPublic
	}
	if l.Token != (Token{}) {
		flags |= flagToken
	}
	b := []byte{linkVersion, flags}
	b = append(b, l.Account[:]...)
	b = append(b, l.Lookup[:]...)
	if l.Token != (Token{}) {
		b = append(b, l.Token[:]...)
	}
	for i, h := range l.Hints {
		b = h.append(b, i > 0 && h.Transport == l.Hints[i-1].Transport)
	}
	b = append(b, linkSum(b)...)
	return linkScheme + linkEncoding.EncodeToString(b)
}

// append appends the hint's binary form. same says that the hint before has
// the same transport key.
func (h Hint) append(b []byte, same bool) []byte {
	var kind byte
	var addr []byte
	switch {
	case h.Name != "":
		kind, addr = familyDNS, append([]byte{byte(len(h.Name))}, h.Name...)
	case h.Addr.Is4():
		kind, addr = familyIPv4, h.Addr.AsSlice()
	default:
		kind, addr = familyIPv6, h.Addr.AsSlice()
	}
	if h.Network == TCP {
		kind |= kindTCP
	}
	if same {
		kind |= kindSame
	}
	b = append(b, kind)
	if !same {
		b = append(b, h.Transport[:]...)
	}
	b = append(b, addr...)
	return binary.BigEndian.AppendUint16(b, h.Port)
}

func linkSum(b []byte) []byte {
	sum := sha256.Sum256(protocol.LabelLink.Bind(b))
	return sum[:linkChecksum]
}

// LogValue keeps the link out of logs: whoever reads it can use it.
func (Link) LogValue() slog.Value { return slog.StringValue("[secret]") }

// ParseLink returns the link that s holds, in upper or lower case, with or
// without space around it. The error wraps [ErrLink] or [ErrLinkVersion], and
// its text is for the user.
func ParseLink(s string) (Link, error) {
	damaged := func(why string) (Link, error) { return Link{}, fmt.Errorf("%w: %s", ErrLink, why) }
	s = strings.TrimSpace(s)
	if len(s) > protocol.MaxLink {
		return damaged("it is too long for a link")
	}
	if !ascii(s) {
		return damaged("it has a character that no link has")
	}
	body, ok := strings.CutPrefix(strings.ToUpper(s), linkScheme)
	if !ok {
		return damaged("it does not start with starling:")
	}
	b, err := linkEncoding.DecodeString(body)
	if err != nil {
		return damaged("it is cut short, or has a character that no link has")
	}
	// The checksum comes before the version, so that a typo in the version is a
	// typo and not a newer link.
	n := len(b) - linkChecksum
	exact := linkEncoding.EncodeToString(b) == body
	if n < 1 || !exact || !bytes.Equal(b[n:], linkSum(b[:n])) {
		return damaged("a part is missing or mistyped; copy it again, whole")
	}
	l, err := parseLink(b[:n])
	switch {
	case errors.Is(err, ErrLinkVersion):
		return Link{}, err
	case err != nil:
		return Link{}, fmt.Errorf("%w: %w", ErrLink, err)
	}
	return l, nil
}

// parseLink parses a link's binary form without its checksum.
func parseLink(b []byte) (Link, error) {
	r := reader{b: b}
	if r.byte() != linkVersion {
		return Link{}, ErrLinkVersion
	}
	flags := r.byte()
	if flags&^flagsKnown != 0 {
		return Link{}, ErrLinkVersion
	}
	l := Link{Public: flags&flagPublic != 0}
	var err error
	if l.Account, err = ParseAccount(r.take(KeySize)); err != nil {
		return Link{}, err
	}
	copy(l.Lookup[:], r.take(LookupSize))
	if flags&flagToken != 0 {
		copy(l.Token[:], r.take(TokenSize))
		if l.Token == (Token{}) {
			return Link{}, errors.New("its token is zero")
		}
	}
	var before *Hint
	for range flags >> hintShift {
		h, err := r.hint(before)
		if err != nil {
			return Link{}, err
		}
		l.Hints = append(l.Hints, h)
		before = &h
	}
	if r.short || len(r.b) > 0 {
		return Link{}, errors.New("it has the wrong length")
	}
	if l.Check() != nil {
		return Link{}, errors.New("it holds an address of no use")
	}
	return l, nil
}

// A reader takes fields off the front of b. Past the end it gives zeros, and
// sets short.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.short, r.b = true, nil
		return make([]byte, n)
	}
	f := r.b[:n]
	r.b = r.b[n:]
	return f
}

func (r *reader) byte() byte { return r.take(1)[0] }

// hint takes a hint; before is the one before it, if any.
func (r *reader) hint(before *Hint) (Hint, error) {
	kind := r.byte()
	if kind&^kindsKnown != 0 {
		return Hint{}, ErrLinkVersion
	}
	var h Hint
	if kind&kindTCP != 0 {
		h.Network = TCP
	}
	if kind&kindSame != 0 {
		if before == nil {
			return Hint{}, errors.New("its first hint refers to one before it")
		}
		h.Transport = before.Transport
	} else {
		var err error
		if h.Transport, err = ParseTransport(r.take(KeySize)); err != nil {
			return Hint{}, err
		}
		if before != nil && h.Transport == before.Transport {
			return Hint{}, errors.New("it repeats a transport key")
		}
	}
	switch kind & familyMask {
	case familyIPv4:
		h.Addr = netip.AddrFrom4([4]byte(r.take(4)))
	case familyIPv6:
		h.Addr = netip.AddrFrom16([16]byte(r.take(16)))
	case familyDNS:
		if h.Name = string(r.take(int(r.byte()))); h.Name == "" {
			return Hint{}, errors.New("a hint's name is empty")
		}
	default:
		return Hint{}, ErrLinkVersion
	}
	h.Port = binary.BigEndian.Uint16(r.take(2))
	return h, nil
}

// AppendOwn appends h's binary form without its transport key, for a place that
// has the key already. h passes [Hint.Check].
func (h Hint) AppendOwn(b []byte) []byte { return h.append(b, true) }

// ParseOwn takes a hint that [Hint.AppendOwn] wrote off the front of b, and
// gives it the transport key t. The error is [ErrLinkVersion], or says what is
// wrong with b.
func ParseOwn(b []byte, t Transport) (h Hint, rest []byte, err error) {
	if len(b) > 0 && b[0]&kindSame == 0 {
		return Hint{}, nil, errors.New("its hint has a transport key of its own")
	}
	r := reader{b: b}
	h, err = r.hint(&Hint{Transport: t})
	switch {
	case err != nil:
		return Hint{}, nil, err
	case r.short:
		return Hint{}, nil, errors.New("it has the wrong length")
	case h.Check() != nil:
		return Hint{}, nil, errors.New("it holds an address of no use")
	}
	return h, r.b, nil
}

// ID names the token without giving it away: SHA-256 under LabelTokenID, 16
// bytes.
func (t Token) ID() [16]byte {
	sum := sha256.Sum256(protocol.LabelTokenID.Bind(t[:]))
	return [16]byte(sum[:16])
}

// MAC proves knowledge of the token over a handshake's transcript. Compare MACs
// with hmac.Equal.
func (t Token) MAC(transcript [32]byte) [32]byte {
	h := hmac.New(sha256.New, t[:])
	h.Write(protocol.LabelTokenMAC.Bind(transcript[:]))
	return [32]byte(h.Sum(nil))
}

// LogValue keeps the token out of logs.
func (Token) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the token out of everything that package fmt prints.
func (Token) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// LogValue keeps the lookup secret out of logs.
func (LookupSecret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the lookup secret out of everything that package fmt prints.
func (LookupSecret) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }
