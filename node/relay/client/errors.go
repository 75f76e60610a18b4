package client

import (
	"errors"
	"fmt"

	"starling/protocol/wire"
)

// What a relay answered other than OK (SPEC §13.4). The stream is in order, and
// nothing was done.
var (
	// ErrQuota means that the queue, the account or the relay is full. Keep what
	// was to be left, and try later and elsewhere.
	ErrQuota = errors.New("client: the relay has no room for it")

	// ErrRefused means that the queue is unknown, or that what was shown does not
	// admit: a capability, a token, a proof, used work. Do not repeat it. A reader
	// whose queue it is makes it anew.
	ErrRefused = errors.New("client: the relay refuses it")

	// ErrBusy means that the relay did not look at the request, or said something
	// that is not known here. Ask again soon.
	ErrBusy = errors.New("client: the relay is busy")

	// ErrMalformed means that the request is acceptable to no relay, or names a
	// time out of bounds. Do not repeat it. It is also returned for a request that
	// was not sent because of that.
	ErrMalformed = errors.New("client: the request is malformed")

	// ErrTooBig means that it is longer than its place takes. Do not repeat it.
	ErrTooBig = errors.New("client: it is too big for its place")

	// ErrDraining means that the relay takes nothing new, since it will stop at
	// [Info].Draining. Move away; read until then.
	ErrDraining = errors.New("client: the relay is about to stop")

	// ErrEmpty means that there is no one-time key for who asks. Go on without.
	ErrEmpty = errors.New("client: the relay has no one-time key")
)

// A WorkError means that the relay wants more work than [Dialer.MaxBits], or
// more each time. Go elsewhere, or try again when it is pressed less.
type WorkError struct {
	Bits int // that the relay asked for
}

// Error implements error.
func (e *WorkError) Error() string {
	return fmt.Sprintf("client: the relay asks for %d bits of work", e.Bits)
}

// ErrClosed means that the stream had ended before: it was closed, or an earlier
// request found it broken, of which the text tells. Dial again.
var ErrClosed = errors.New("client: the stream has ended")

// statusError returns the error of a status, nil for OK.
func statusError(a *wire.RelayAnswer) error {
	switch a.Status {
	case wire.RelayStatus_RELAY_STATUS_OK:
		return nil
	case wire.RelayStatus_RELAY_STATUS_QUOTA:
		return ErrQuota
	case wire.RelayStatus_RELAY_STATUS_REFUSED:
		return ErrRefused
	case wire.RelayStatus_RELAY_STATUS_MALFORMED:
		return ErrMalformed
	case wire.RelayStatus_RELAY_STATUS_TOO_BIG:
		return ErrTooBig
	case wire.RelayStatus_RELAY_STATUS_DRAINING:
		return ErrDraining
	case wire.RelayStatus_RELAY_STATUS_WORK:
		return &WorkError{int(a.GetDemand().GetBits())}
	case wire.RelayStatus_RELAY_STATUS_EMPTY:
		return ErrEmpty
	}
	return ErrBusy
}
