package relay

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/bits"

	"starling/protocol"
	"starling/protocol/identity"
)

// A Stamp is what a proof of work is bound to: one use, at one relay, until one
// time (SPEC §13.6). Work for one stamp is of no use for another, so a relay
// that remembers the stamps it accepted until they expire counts each once.
type Stamp struct {
	relay   identity.Transport
	queue   QueueID
	subject [sha256.Size]byte
	expires int64 // unix seconds
}

// DepositStamp returns the stamp of depositing a blob, of which blob is the
// SHA-256, in a contact box. expires is that of the deposit, in unix seconds.
func DepositStamp(relay identity.Transport, queue QueueID, blob [sha256.Size]byte, expires int64) Stamp {
	return Stamp{relay, queue, blob, expires}
}

// KeyStamp returns the stamp of taking a one-time key from a pool. salt is drawn
// for each request; expires is in unix seconds, at most
// [protocol.KeyWorkLife] ahead of the relay's clock.
//
// The pool and the salt go in through a labelled hash, which no blob's hash can
// equal: work for a key does not pay for a deposit too.
func KeyStamp(relay identity.Transport, queue QueueID, pool PoolID, salt [16]byte, expires int64) Stamp {
	return Stamp{relay, queue, sha256.Sum256(protocol.LabelKeyWork.Bind(pool[:], salt[:])), expires}
}

// Hash names the stamp, for the memory of those that were used.
func (s Stamp) Hash() [sha256.Size]byte {
	var t [8]byte
	binary.BigEndian.PutUint64(t[:], uint64(s.expires))
	return sha256.Sum256(protocol.LabelWork.Bind(s.relay[:], s.queue[:], s.subject[:], t[:]))
}

// A tryInput is label ‖ 0x00 ‖ the stamp's hash, cut ‖ nonce: 55 bytes, the most
// that SHA-256 takes in one block. Nobody gains by keeping the state of a
// common beginning. It is shorter than the input of [Stamp.Hash], so the two
// uses of the label never meet.
type tryInput [tryLabel + tryStamp + 8]byte

const (
	tryLabel = len(protocol.LabelWork) + 1
	tryStamp = 30 // bytes of the stamp's hash
)

func newTry(s Stamp) *tryInput {
	h := s.Hash()
	var in tryInput
	copy(in[:], protocol.LabelWork.Bind(h[:tryStamp]))
	return &in
}

// bits returns the number of leading zero bits that nonce gives, up to 64.
func (in *tryInput) bits(nonce uint64) int {
	binary.BigEndian.PutUint64(in[tryLabel+tryStamp:], nonce)
	h := sha256.Sum256(in[:])
	return bits.LeadingZeros64(binary.BigEndian.Uint64(h[:]))
}

// slice is how many nonces [Work] tries between two looks at its context: well
// below a millisecond's worth, or two on a slow machine.
const slice = 1 << 13

// errWork is for a caller that did not compare what a relay asks for with what
// it is willing to do.
var errWork = errors.New("relay: more bits of work than the protocol allows")

// Work returns a nonce that proves 2^want hashes of work for s, on average. It
// returns ctx's error if ctx ends first, and an error at once if want is above
// [protocol.MaxWork]: no relay may ask for that. It uses one processor; 22 bits
// take half a second or so, and each bit more twice as long.
func Work(ctx context.Context, s Stamp, want int) (uint64, error) {
	if want > protocol.MaxWork {
		return 0, errWork
	}
	in := newTry(s)
	for nonce := uint64(0); ; nonce++ {
		if nonce%slice == 0 {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
		}
		if in.bits(nonce) >= want {
			return nonce, nil
		}
	}
}

// CheckWork returns nil if nonce proves at least want bits of work for s, and
// [ErrProof] otherwise. It costs two hashes; whether s was used before, and
// whether its time is right, is for the caller.
func CheckWork(s Stamp, nonce uint64, want int) error {
	if newTry(s).bits(nonce) < want {
		return ErrProof
	}
	return nil
}
