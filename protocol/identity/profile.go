package identity

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"

	"starling/protocol"
	"starling/protocol/wire"
)

// An Endpoint is a transport key and where it was last reachable.
type Endpoint struct {
	Transport Transport
	Addrs     [][]byte // binary multiaddrs without /p2p, opaque here
}

// A Profile is what an account tells its contacts of itself: how to name it
// and how to find it.
type Profile struct {
	Name      string // see [ParseName]; may be empty
	Lookup    LookupSecret
	Endpoints []Endpoint

	// Mail is where it takes messages while it is away, bounded and otherwise
	// opaque here: relay.OpenMail reads it. Nil says nothing: what was told
	// before still holds.
	Mail *wire.Mail

	// Version orders the profiles of an account: messages arrive in any order, and
	// an older profile replaces no newer one. By convention it is the time in ms
	// since 1970 at which the profile was made.
	Version uint64
}

// LogValue keeps the capabilities in Mail, and names, out of logs.
func (Profile) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps them out of everything that package fmt prints.
func (Profile) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// ErrName means that a name cannot be shown safely, or is too long. The error
// that wraps it says why; show it to the user whose name it is.
var ErrName = errors.New("this name cannot be used")

// ParseName returns s without the space around it, or an error that wraps
// [ErrName]. A name has at most [protocol.MaxName] bytes of UTF-8, and no
// character that is invisible, moves others, or means different things on
// different systems: one who can write such a name can pass for someone else.
func ParseName(s string) (string, error) {
	s = strings.TrimSpace(s)
	switch {
	case len(s) > protocol.MaxName:
		return "", fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrName, len(s), protocol.MaxName)
	case !utf8.ValidString(s):
		return "", fmt.Errorf("%w: it is not UTF-8", ErrName)
	}
	for _, r := range s {
		if deceptive(r) {
			return "", fmt.Errorf("%w: it contains the invisible or reserved character %U", ErrName, r)
		}
	}
	return s, nil
}

// deceptive reports whether r has no place in a name: control and format
// characters (zero-width, bidirectional), line and paragraph separators,
// private use, and letters and marks that draw nothing. Variation selectors
// stay: emoji need them.
func deceptive(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs, unicode.Zl, unicode.Zp,
		unicode.Other_Default_Ignorable_Code_Point, unicode.Noncharacter_Code_Point)
}

// Wire returns the profile's message.
func (p Profile) Wire() *wire.Profile {
	return &wire.Profile{Name: p.Name, LookupSecret: p.Lookup[:], Endpoints: EndpointsWire(p.Endpoints), Mail: p.Mail, Version: p.Version}
}

// ProfileFromWire returns the profile that w holds. Any error means that w is
// refused as a whole. A nil w has no lookup secret and is refused. Addresses and
// mail are not copied.
func ProfileFromWire(w *wire.Profile) (Profile, error) {
	name, err := ParseName(w.GetName())
	if err != nil {
		return Profile{}, fmt.Errorf("reading a profile: %w", err)
	}
	p := Profile{Name: name, Version: w.GetVersion()}
	if len(w.GetLookupSecret()) != LookupSize {
		return Profile{}, fmt.Errorf("reading a profile: the lookup secret has %d bytes, want %d", len(w.GetLookupSecret()), LookupSize)
	}
	copy(p.Lookup[:], w.GetLookupSecret())
	if p.Endpoints, err = EndpointsFromWire(w.GetEndpoints()); err != nil {
		return Profile{}, fmt.Errorf("reading a profile: %w", err)
	}
	if err := CheckMail(w.GetMail()); err != nil {
		return Profile{}, fmt.Errorf("reading a profile: %w", err)
	}
	p.Mail = w.GetMail()
	return p, nil
}

// CheckMail returns nil if w is nil or within its bounds: at most
// [protocol.MaxRelays] mailboxes of 1 to [protocol.MaxMailbox] bytes, and at
// most [protocol.MaxSealingKeys] sealing keys of at most [protocol.MaxSealing]
// bytes, each with a body and a signature of the right length. What they say is
// for protocol/relay and protocol/envelope.
func CheckMail(w *wire.Mail) error {
	if len(w.GetMailboxes()) > protocol.MaxRelays {
		return fmt.Errorf("identity: %d mailboxes, at most %d are allowed", len(w.GetMailboxes()), protocol.MaxRelays)
	}
	for _, b := range w.GetMailboxes() {
		if len(b) == 0 || len(b) > protocol.MaxMailbox {
			return fmt.Errorf("identity: a mailbox of %d bytes, 1 to %d are allowed", len(b), protocol.MaxMailbox)
		}
	}
	if len(w.GetSealing()) > protocol.MaxSealingKeys {
		return fmt.Errorf("identity: %d sealing keys, at most %d are allowed", len(w.GetSealing()), protocol.MaxSealingKeys)
	}
	for _, s := range w.GetSealing() {
		if len(s.GetBody()) == 0 || len(s.GetSignature()) != SignatureSize || len(wire.Marshal(s)) > protocol.MaxSealing {
			return fmt.Errorf("identity: a sealing key of %d bytes and a signature of %d", len(s.GetBody()), len(s.GetSignature()))
		}
	}
	return nil
}

// EndpointsWire returns the endpoints' messages.
func EndpointsWire(es []Endpoint) []*wire.Endpoint {
	var ws []*wire.Endpoint
	for _, e := range es {
		ws = append(ws, &wire.Endpoint{TransportKey: e.Transport[:], Addrs: e.Addrs})
	}
	return ws
}

// EndpointsFromWire returns the endpoints that ws holds, at most
// [protocol.MaxEndpoints], with at most [protocol.MaxAddrs] addresses each. It
// checks keys and lengths; whether an address makes sense is for whoever dials
// it. The addresses are not copied.
func EndpointsFromWire(ws []*wire.Endpoint) ([]Endpoint, error) {
	if len(ws) > protocol.MaxEndpoints {
		return nil, fmt.Errorf("identity: %d endpoints, at most %d are allowed", len(ws), protocol.MaxEndpoints)
	}
	var es []Endpoint
	for _, w := range ws {
		key, err := ParseTransport(w.GetTransportKey())
		if err != nil {
			return nil, err
		}
		if len(w.GetAddrs()) > protocol.MaxAddrs {
			return nil, fmt.Errorf("identity: an endpoint has %d addresses, at most %d are allowed", len(w.GetAddrs()), protocol.MaxAddrs)
		}
		for _, a := range w.GetAddrs() {
			if len(a) == 0 || len(a) > protocol.MaxAddr {
				return nil, fmt.Errorf("identity: an address of %d bytes, 1 to %d are allowed", len(a), protocol.MaxAddr)
			}
		}
		for _, e := range es {
			if e.Transport == key {
				return nil, errors.New("identity: two endpoints with one transport key")
			}
		}
		es = append(es, Endpoint{Transport: key, Addrs: w.GetAddrs()})
	}
	return es, nil
}
