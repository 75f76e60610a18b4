package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"starling/protocol"
)

// The text form of an account ID (SPEC §4): the prefix, whose digit is the
// version, and the base32 of key ‖ checksum.
const (
	idPrefix   = "st1"
	idChecksum = 5                                          // bytes: a typo passes once in 2^40
	idLength   = 3 + ((KeySize+idChecksum)*8+4)/5           // characters
	shortID    = 8                                          // characters of Account.Short
	lowerBase  = "abcdefghijklmnopqrstuvwxyz234567"         // RFC 4648 §6, in lower case
	damagedID  = "; compare it with the one you were given" // what to do, at the end of an ErrID
)

var (
	idEncoding   = base32.NewEncoding(lowerBase).WithPadding(base32.NoPadding)
	linkEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)
)

// ErrID means that a text is not an account ID, or has a typo. The error that
// wraps it says more; show it to the user.
var ErrID = errors.New("not a valid account ID")

// String returns the account ID: st1 and 60 lower-case letters and digits.
func (a Account) String() string {
	return idPrefix + idEncoding.EncodeToString(append(a[:], idSum(a[:])...))
}

// Short returns the first characters of the account ID, enough to recognise
// one in a log and too few to look it up.
func (a Account) Short() string { return a.String()[len(idPrefix):][:shortID] }

// LogValue logs the short form: a full ID in a log says who talks to whom.
func (a Account) LogValue() slog.Value { return slog.StringValue(a.Short()) }

func idSum(key []byte) []byte {
	sum := sha256.Sum256(protocol.LabelAccountID.Bind(key))
	return sum[:idChecksum]
}

// ParseAccountID returns the account that the account ID s names. It accepts
// upper or lower case, not a mixture, and returns an error that wraps [ErrID]
// for anything else than an ID without a typo.
func ParseAccountID(s string) (Account, error) {
	if len(s) > 2*idLength || !ascii(s) {
		return Account{}, fmt.Errorf("%w: an ID is %d letters and digits"+damagedID, ErrID, idLength)
	}
	lower := strings.ToLower(s)
	switch {
	case !strings.HasPrefix(lower, "st") || len(lower) < len(idPrefix):
		return Account{}, fmt.Errorf("%w: an ID starts with %s", ErrID, idPrefix)
	case !strings.HasPrefix(lower, idPrefix) && len(lower) > shortID && lower[2] >= '0' && lower[2] <= '9':
		return Account{}, fmt.Errorf("%w: its version is not known here; a newer Starling may read it", ErrID)
	case !strings.HasPrefix(lower, idPrefix):
		return Account{}, fmt.Errorf("%w: an ID starts with %s", ErrID, idPrefix)
	case len(s) != idLength:
		return Account{}, fmt.Errorf("%w: it has %d characters, an ID has %d"+damagedID, ErrID, len(s), idLength)
	case s != lower && s != strings.ToUpper(s):
		return Account{}, fmt.Errorf("%w: it mixes upper and lower case"+damagedID, ErrID)
	}
	b, err := idEncoding.DecodeString(lower[len(idPrefix):])
	if err != nil {
		return Account{}, fmt.Errorf("%w: it has a character that no ID has"+damagedID, ErrID)
	}
	// The last character holds four bits too many; they are zero.
	exact := idEncoding.EncodeToString(b) == lower[len(idPrefix):]
	if !exact || !bytes.Equal(b[KeySize:], idSum(b[:KeySize])) {
		return Account{}, fmt.Errorf("%w: it has a typo"+damagedID, ErrID)
	}
	a, err := ParseAccount(b[:KeySize])
	if err != nil {
		return Account{}, fmt.Errorf("%w: %w", ErrID, err)
	}
	return a, nil
}

// ascii reports whether s is ASCII. Beyond it, changing the case of a text can
// turn a foreign letter into one of ours.
func ascii(s string) bool {
	for _, c := range []byte(s) {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
