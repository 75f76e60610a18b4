package ratchet

import (
	"encoding/binary"
	"errors"

	"starling/protocol"
	"starling/protocol/x25519"
)

// The stored form of a session is
//
//	version    [1]byte  // 0x01
//	chains     [1]byte  // bit 0: sending chain; bit 1: receiving chain; bit 2: the one before it
//	id         [32]byte
//	associated [32]byte
//	root       [32]byte // RK
//	seed       [32]byte // DHs, private
//	own        [32]byte // DHs, public
//	peer       [32]byte // DHr
//	sending    [32]byte // CKs
//	receiving  [32]byte // CKr
//	before     [32]byte // DHr before the last step
//	ns, nr, pn [4]byte each
//	nbefore    [4]byte  // length of the chain under before
//	skipped    [4]byte  // keys stored by the caller
//
// with big-endian numbers. What does not exist is zero, so that a state has one
// encoding.
const (
	stateVersion = 1
	stateFields  = 9 // of 32 bytes
	stateNumbers = 5 // of 4 bytes

	// StateSize is the length of every marshalled session.
	StateSize = 2 + stateFields*32 + stateNumbers*4
)

const (
	hasSend   = 1 << 0
	hasRecv   = 1 << 1
	hasBefore = 1 << 2
)

// errState means that a stored session is damaged, or newer than this program.
var errState = errors.New("ratchet: not a session state")

// Marshal returns the state of s for storage, [StateSize] bytes. It holds the
// session's keys: store it encrypted.
func (s *Session) Marshal() []byte {
	var chains byte
	if s.send.exists {
		chains |= hasSend
	}
	if s.recv.exists {
		chains |= hasRecv
	}
	if s.before.known {
		chains |= hasBefore
	}
	b := make([]byte, 0, StateSize)
	b = append(b, stateVersion, chains)
	seed, own := s.own.Seed(), s.own.Public()
	for _, f := range [stateFields]*[32]byte{
		&s.id, &s.associated, &s.root.b, &seed, (*[32]byte)(&own), (*[32]byte)(&s.peer),
		&s.send.key.b, &s.recv.key.b, (*[32]byte)(&s.before.peer),
	} {
		b = append(b, f[:]...)
	}
	for _, n := range [stateNumbers]uint32{s.send.n, s.recv.n, s.previous, s.before.n, s.skipped} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b
}

// Parse returns the session that Marshal stored as b. It refuses what Marshal
// cannot have made, except that it does not check that the private key belongs
// to the public one, which would cost as much as drawing a new one.
func Parse(b []byte) (*Session, error) {
	if len(b) != StateSize || b[0] != stateVersion {
		return nil, errState
	}
	chains, b := b[1], b[2:]
	var seed, own, peer, before [32]byte
	s := new(Session)
	for _, f := range [stateFields]*[32]byte{
		&s.id, &s.associated, &s.root.b, &seed, &own, &peer,
		&s.send.key.b, &s.recv.key.b, &before,
	} {
		*f, b = [32]byte(b), b[32:]
	}
	for _, n := range [stateNumbers]*uint32{&s.send.n, &s.recv.n, &s.previous, &s.before.n, &s.skipped} {
		*n, b = binary.BigEndian.Uint32(b), b[4:]
	}
	s.own = x25519.Restore(seed, own)
	s.peer, s.before.peer = peer, before
	s.send.exists = chains&hasSend != 0
	s.recv.exists = chains&hasRecv != 0
	s.before.known = chains&hasBefore != 0
	if chains >= hasBefore<<1 || !s.valid() {
		return nil, errState
	}
	return s, nil
}

// valid reports whether the parts of s fit together.
func (s *Session) valid() bool {
	for _, k := range []x25519.Public{s.own.Public(), s.peer, s.before.peer} {
		if _, err := x25519.Parse(k[:]); err != nil {
			return false
		}
	}
	var zero [32]byte
	switch {
	case !s.send.exists && (s.send.n != 0 || s.send.key.b != zero),
		!s.recv.exists && (s.recv.n != 0 || s.recv.key.b != zero),
		!s.before.known && (s.before.n != 0 || s.before.peer != zero),
		!s.recv.exists && (s.before.known || s.previous != 0),
		!s.CanSend() && s.peer != zero,
		!s.recv.exists && s.skipped != 0,
		s.skipped > protocol.MaxSkip:
		return false
	}
	return true
}
