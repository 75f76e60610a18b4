package relay

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// expiryStep is what the expiry of a deposit is rounded to, in seconds, and the
// most that is taken off it before.
const expiryStep = 3600

// Expiry returns the expiry, in unix seconds, of a deposit that has to end by
// until (SPEC §13.5): up to two hours earlier, on a whole hour. Call it once for
// each relay. The message's own expiry, to the second, would be in both relays'
// copies, and say which belong together and when the message was written.
//
// The result may be in the past if until is near; such a message is not worth
// leaving at a relay.
func Expiry(rand io.Reader, until time.Time) (int64, error) {
	var b [8]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return 0, fmt.Errorf("relay: drawing an expiry: %w", err)
	}
	off := int64(binary.BigEndian.Uint64(b[:]) % expiryStep)
	return (until.Unix() - off) / expiryStep * expiryStep, nil
}
