// Package relay holds the pure part of the relay protocol (SPEC §13): what
// names a queue, who may read it, who may leave something in it, what a relay
// signs, and the bounds of every request and answer on /starling/relay/1.
//
// A relay keeps ciphertext for people who are away. It is trusted with nothing
// but availability, and this package is written against two attackers:
//
//   - One who has the relay's key, or is the relay. Whatever reaches it names
//     that relay ([Capability.Hash], [Prove], [TokenHash], [NewPool], [Work]),
//     so that nothing shown to one relay is of use at another, and two relays
//     see nothing equal. It can lose, delay and repeat what it holds; it cannot
//     make a receipt of another relay, or spend a token.
//   - One who has not. It cannot read, delete or take over a queue without the
//     reader key, deposit without a capability, a token or work, or have one
//     proof counted twice.
//
// A reader makes a [ReaderKey] for each queue; the queue's [QueueID] is its
// hash, so a queue cannot be taken by another and making it twice is making it
// once. A depositor verifies the [Receipt] of each deposit; a relay signs once
// for all deposits that reached its disk together ([SignGroup]).
//
// Requests and answers come from [ParseRequest], [ParseClaim] and
// [ParseAnswer], which check every length: conversions of their fields to
// arrays do not panic.
//
// What it does not do: keep queues (node/relay), seal what is deposited
// (protocol/envelope), judge DHT records (dht/record), count quotas.
package relay

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"starling/protocol"
	"starling/protocol/identity"
)

// Sizes in bytes.
const (
	QueueIDSize    = sha256.Size
	ProofSize      = ed25519.SignatureSize
	CapabilitySize = 32
	AdmissionSize  = 16
	StoreIDSize    = 16
)

// ErrProof means that a proof does not verify: a reader's over a claim, or a
// proof of work. Refuse the request, and do not say why.
var ErrProof = errors.New("relay: proof does not verify")

// A QueueID names a queue at a relay: SHA-256 of its reader key under
// LabelQueue (SPEC §13.2). Whoever knows the ID alone can do nothing with the
// queue.
type QueueID [QueueIDSize]byte

// LogValue logs the first bytes: a whole ID in a log says whose queue it is to
// whoever knows the contact's.
func (q QueueID) LogValue() slog.Value { return slog.StringValue(hex.EncodeToString(q[:4])) }

// A Reader is the public half of a [ReaderKey]. The relay gets it when the
// queue is made or attached and need not keep it; nobody else sees it.
type Reader [identity.KeySize]byte

// ParseReader returns the reader key that b holds, or [identity.ErrKey]; the
// import is strict (SPEC §3.2).
func ParseReader(b []byte) (Reader, error) {
	k, err := identity.ParseDevice(b)
	return Reader(k), err
}

// Queue returns the ID of the reader's queue.
func (r Reader) Queue() QueueID { return sha256.Sum256(protocol.LabelQueue.Bind(r[:])) }

// A ReaderKey is the private key of one queue: who has it reads and deletes
// what is in the queue. Of a log, its readers share it. It is drawn anew for
// each queue, so that queues of one reader have nothing in common.
type ReaderKey struct {
	seed identity.Secret
	key  ed25519.PrivateKey
}

// NewReaderKey makes the reader key with the given seed: random, or of a log
// derived from what its readers share.
func NewReaderKey(seed identity.Secret) *ReaderKey {
	return &ReaderKey{seed: seed, key: ed25519.NewKeyFromSeed(seed.Bytes())}
}

// Reader returns the public half.
func (k *ReaderKey) Reader() Reader { return Reader(k.key.Public().(ed25519.PublicKey)) }

// Seed returns the seed, for storage.
func (k *ReaderKey) Seed() identity.Secret { return k.seed }

// LogValue keeps the key out of logs.
func (*ReaderKey) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the key out of everything that package fmt prints.
func (*ReaderKey) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// Prove signs a claim (SPEC §13.4): body is the exact body of the request's
// RelayClaim, relay and client are the transport keys of the connection's two
// ends. The result has [ProofSize] bytes.
//
// The two keys take the place of a challenge. A proof is good between these two
// ends only, which authenticate each other; whoever could replay it there holds
// the client's transport key and is told what the client was told, and the claim
// changes nothing that the first one did not.
func (k *ReaderKey) Prove(relay, client identity.Transport, body []byte) []byte {
	return ed25519.Sign(k.key, claimInput(relay, client, body))
}

// CheckProof returns nil if proof is what [ReaderKey.Prove] makes of the other
// arguments, and [ErrProof] otherwise. relay is the checking relay's own key,
// client that of the connection, never one that a request names.
func (r Reader) CheckProof(relay, client identity.Transport, body, proof []byte) error {
	if len(proof) != ProofSize || !ed25519.Verify(r[:], claimInput(relay, client, body), proof) {
		return ErrProof
	}
	return nil
}

func claimInput(relay, client identity.Transport, body []byte) []byte {
	h := sha256.Sum256(body)
	return protocol.LabelReader.Bind(relay[:], client[:], h[:])
}

// A Capability lets its bearer deposit in one queue. The recipient draws it for
// exactly one contact and hands it over inside the session; replacing it, or
// dropping the queue, shuts that contact out.
type Capability struct {
	_ [0]func() // not comparable: == is not constant-time
	b [CapabilitySize]byte
}

// NewCapability draws a capability from rand.
func NewCapability(rand io.Reader) (Capability, error) {
	var c Capability
	if _, err := io.ReadFull(rand, c.b[:]); err != nil {
		return Capability{}, fmt.Errorf("relay: drawing a capability: %w", err)
	}
	return c, nil
}

// CapabilityFrom returns the capability that b holds; b must have
// [CapabilitySize] bytes.
func CapabilityFrom(b []byte) (Capability, error) {
	if len(b) != CapabilitySize {
		return Capability{}, errors.New("relay: a capability has 32 bytes")
	}
	return Capability{b: [CapabilitySize]byte(b)}, nil
}

// Bytes returns the capability itself, for storage and for a deposit.
func (c Capability) Bytes() []byte { return c.b[:] }

// Hash returns what a relay keeps of the capability. It binds relay and queue,
// so that one capability used twice by mistake does not tell two relays, or two
// queues, that they serve the same people.
func (c Capability) Hash(relay identity.Transport, queue QueueID) CapabilityHash {
	return sha256.Sum256(protocol.LabelCapability.Bind(relay[:], queue[:], c.b[:]))
}

// LogValue keeps the capability out of logs.
func (Capability) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the capability out of everything that package fmt prints.
func (Capability) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// A CapabilityHash is all that a relay keeps of a [Capability]: who copies the
// relay's disk cannot deposit with it.
type CapabilityHash [sha256.Size]byte

// Admits reports whether c is the capability of this hash, at this relay, for
// this queue, in constant time.
func (h CapabilityHash) Admits(relay identity.Transport, queue QueueID, c Capability) bool {
	got := c.Hash(relay, queue)
	return subtle.ConstantTimeCompare(h[:], got[:]) == 1
}

// TokenHash returns what the relay sees of an invite token, from the owner who
// admits it and from its bearer (SPEC §13.3). It is another at each relay, and
// the owner wants the token's MAC (SPEC §4.3), so a relay that knows the hash
// cannot spend the token.
func TokenHash(token identity.Token, relay identity.Transport) [sha256.Size]byte {
	return sha256.Sum256(protocol.LabelRelayToken.Bind(relay[:], token[:]))
}

// HasToken reports whether got is one of the token hashes that a contact box
// admits. It looks at all of them, in constant time.
func HasToken(admitted [][sha256.Size]byte, got [sha256.Size]byte) bool {
	found := 0
	for _, h := range admitted {
		found |= subtle.ConstantTimeCompare(h[:], got[:])
	}
	return found == 1
}

// An Admission is a relay's own token: it lets its bearer make queues there. The
// relay issues it inside a [Link], and counts what is kept for each.
type Admission [AdmissionSize]byte

// LogValue keeps the token out of logs.
func (Admission) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the token out of everything that package fmt prints.
func (Admission) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }
