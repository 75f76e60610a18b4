package relay

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"starling/protocol"
	"starling/protocol/identity"
)

// A relay link is a URI whose path is the upper-case base32, without padding,
// of
//
//	version    [1]byte   // 0x01
//	flags      [1]byte   // 0x01 has an admission token; 0x0e number of hints
//	transport  [32]byte
//	admission  [16]byte  // if flagged
//	hints      ...       // as in an invite link, without transport keys
//	checksum   [5]byte   // over everything before; the same in every version
const (
	linkScheme   = "STARLING-RELAY:"
	linkVersion  = 1
	linkChecksum = 5 // bytes: damage passes once in 2^40

	flagAdmission = 0x01
	hintShift     = 1
	flagsKnown    = flagAdmission | 0x07<<hintShift
)

var linkEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// ErrLink means that a text is not a relay link, or is damaged. The error that
// wraps it says more; show it to the user, who asks for the link again.
var ErrLink = errors.New("this relay link is damaged")

// A Link says where a relay is and, with an admission token, lets its reader
// make queues there (SPEC §13.9).
type Link struct {
	Transport identity.Transport
	Admission Admission       // zero: none
	Hints     []identity.Hint // of the relay itself, 1 to [protocol.MaxRelayHints]
}

// Check returns why l has no text form, or nil: no hint or too many, one of
// another node or of no use, or a text of more than [protocol.MaxLink]
// characters. Parsed links pass.
func (l Link) Check() error {
	if n := len(l.Hints); n == 0 || n > protocol.MaxRelayHints {
		return fmt.Errorf("relay: a link holds 1 to %d hints", protocol.MaxRelayHints)
	}
	for i, h := range l.Hints {
		if err := h.Check(); err != nil {
			return err
		}
		if h.Transport != l.Transport {
			return errors.New("relay: a hint is of another node than the link")
		}
		for _, other := range l.Hints[:i] {
			if h == other {
				return errors.New("relay: a link repeats a hint")
			}
		}
	}
	if n := len(l.body()) + linkChecksum; len(linkScheme)+linkEncoding.EncodedLen(n) > protocol.MaxLink {
		return fmt.Errorf("relay: a link has at most %d characters", protocol.MaxLink)
	}
	return nil
}

// String returns the link as text. It panics if [Link.Check] gives an error.
func (l Link) String() string {
	if err := l.Check(); err != nil {
		panic("relay: internal error: " + err.Error())
	}
	b := l.body()
	return linkScheme + linkEncoding.EncodeToString(append(b, linkSum(b)...))
}

func (l Link) body() []byte {
	flags := byte(len(l.Hints) << hintShift)
	if l.Admission != (Admission{}) {
		flags |= flagAdmission
	}
	b := append([]byte{linkVersion, flags}, l.Transport[:]...)
	if l.Admission != (Admission{}) {
		b = append(b, l.Admission[:]...)
	}
	for _, h := range l.Hints {
		b = h.AppendOwn(b)
	}
	return b
}

func linkSum(b []byte) []byte {
	sum := sha256.Sum256(protocol.LabelRelayLink.Bind(b))
	return sum[:linkChecksum]
}

// LogValue keeps the link out of logs: it may hold an admission token.
func (Link) LogValue() slog.Value { return slog.StringValue("[secret]") }

// ParseLink returns the link that s holds, in upper or lower case, with or
// without space around it. The error wraps [ErrLink] or
// [identity.ErrLinkVersion], and its text is for the user.
func ParseLink(s string) (Link, error) {
	damaged := func(why string) (Link, error) { return Link{}, fmt.Errorf("%w: %s", ErrLink, why) }
	s = strings.TrimSpace(s)
	if len(s) > protocol.MaxLink {
		return damaged("it is too long for a link")
	}
	for _, c := range []byte(s) {
		// Beyond ASCII, changing the case of a text can turn a foreign letter
		// into one of ours.
		if c >= 0x80 {
			return damaged("it has a character that no link has")
		}
	}
	upper := strings.ToUpper(s)
	body, ok := strings.CutPrefix(upper, linkScheme)
	switch {
	case strings.HasPrefix(upper, "STARLING:"):
		return damaged("it is an invite to a person; add it as a contact")
	case !ok:
		return damaged("it does not start with starling-relay:")
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
	case errors.Is(err, identity.ErrLinkVersion):
		return Link{}, err
	case err != nil:
		return Link{}, fmt.Errorf("%w: %w", ErrLink, err)
	}
	return l, nil
}

// parseLink parses a link's binary form without its checksum.
func parseLink(b []byte) (Link, error) {
	short := errors.New("it has the wrong length")
	if b[0] != linkVersion {
		return Link{}, identity.ErrLinkVersion
	}
	if len(b) < 2+identity.KeySize {
		return Link{}, short
	}
	flags := b[1]
	if flags&^flagsKnown != 0 {
		return Link{}, identity.ErrLinkVersion
	}
	var l Link
	var err error
	if l.Transport, err = identity.ParseTransport(b[2:][:identity.KeySize]); err != nil {
		return Link{}, err
	}
	b = b[2+identity.KeySize:]
	if flags&flagAdmission != 0 {
		if len(b) < AdmissionSize {
			return Link{}, short
		}
		l.Admission, b = Admission(b), b[AdmissionSize:]
		if l.Admission == (Admission{}) {
			return Link{}, errors.New("its admission token is zero")
		}
	}
	hints := int(flags >> hintShift)
	if hints > protocol.MaxRelayHints {
		return Link{}, identity.ErrLinkVersion
	}
	for range hints {
		var h identity.Hint
		if h, b, err = identity.ParseOwn(b, l.Transport); err != nil {
			return Link{}, err
		}
		l.Hints = append(l.Hints, h)
	}
	if len(b) > 0 {
		return Link{}, short
	}
	if l.Check() != nil {
		return Link{}, errors.New("it holds no address, or one twice")
	}
	return l, nil
}
