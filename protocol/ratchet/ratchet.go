// Package ratchet implements the Double Ratchet of "The Double Ratchet
// Algorithm", revision 1, 2016-11-20 (cited as DR), §3, over X25519,
// HKDF-SHA-256, HMAC-SHA-256 and AES-256-GCM (SPEC §6).
//
// A message on the wire is
//
//	version  [1]byte  // 0x01
//	ratchet  [32]byte // sender's ratchet key, canonical
//	previous [4]byte  // PN, big-endian: length of the sender's previous sending chain
//	number   [4]byte  // N, big-endian: position in the sending chain
//	hedge    [24]byte // random; salt of the AEAD key
//	body     [...]byte // sealed: at most protocol.MaxContent bytes of plaintext, tag 16
//
// Four things differ from DR, and SPEC §6 gives the reasons: the AEAD key
// depends on the hedge as well as on the message key, so that a state restored
// from an old copy never repeats a (key, nonce) pair; the sending half of a DH
// ratchet step waits for the next Seal; skipped message keys are values that
// the caller stores and looks up; and a step that no honest peer can cause is
// refused before any work.
//
// A [Session] is a value: Seal and Open either advance it whole or leave it as
// it was. It is not safe for concurrent use; one goroutine owns it.
//
// What it does not do: agree on the first keys (protocol/prekey), choose among
// sessions or store them (node/session), encrypt headers (the stream or the
// sealed envelope around the message does), or hide lengths
// (protocol/envelope pads).
package ratchet

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"

	"starling/protocol"
	"starling/protocol/x25519"
)

// Sizes in bytes.
const (
	HedgeSize = 24 // random hedges of one position collide with probability 2^-192
	tagSize   = 16

	ratchetAt  = 1
	previousAt = ratchetAt + x25519.Size
	numberAt   = previousAt + 4
	hedgeAt    = numberAt + 4
	headerSize = hedgeAt + HedgeSize

	// Overhead is how much longer a message is than its plaintext.
	Overhead = headerSize + tagSize
)

// messageVersion is the first byte of every message. Another value is another
// format, and is refused.
const messageVersion = 1

// ErrOpen means that the message is malformed, forged, or made in a state this
// session does not share: one side may have been restored from an old copy.
// The session is intact. Answer with a decryption error, so that an honest
// sender renews the session (SPEC §8).
var ErrOpen = errors.New("ratchet: message does not open")

// ErrDuplicate means that the message claims a position whose key is spent: it
// was opened before, or its skipped key has expired. The session is intact.
// Drop the message and answer no error. The claim is not authenticated, since
// the key that could prove it is gone.
var ErrDuplicate = errors.New("ratchet: message key already used")

// A SkipError means that opening the message would skip more message keys than
// [protocol.MaxSkip], or store more than that. No key was derived and the
// session is intact. Treat it as [ErrOpen]: only a fresh session helps.
type SkipError struct {
	Jump   uint64 // keys that the message would skip
	Stored uint32 // keys that the session has stored already
}

func (e *SkipError) Error() string {
	return fmt.Sprintf("ratchet: message skips %d keys with %d stored; the limit is %d", e.Jump, e.Stored, protocol.MaxSkip)
}

// A SkippedID names a skipped message key within its session: the sender's
// ratchet key and the position in its chain (the index of MKSKIPPED, DR §3.2).
type SkippedID struct {
	Ratchet x25519.Public
	N       uint32
}

// A SkippedKey is the message key of a message that has not arrived. It opens
// that message and no other. Delete it when Open reports it as used, or after
// [protocol.SkippedLife]. It does not print.
type SkippedKey struct {
	ID  SkippedID
	Key [32]byte
}

// LogValue keeps the key out of logs.
func (SkippedKey) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the key out of everything that package fmt prints.
func (SkippedKey) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// A Lookup returns the stored key of a skipped message, and whether there is
// one. Open calls it at most once, and only for a position that may have been
// skipped.
type Lookup func(SkippedID) (key [32]byte, ok bool)

// An Observation is what an observer may see of one message, and no secret:
// enough to prove that no (key, nonce) pair repeats and that nothing opens that
// was not sealed. Session, Ratchet and N determine the message key; with Hedge,
// the AEAD key and nonce. Sealing a message and opening it give equal values.
type Observation struct {
	Session    [32]byte
	Ratchet    x25519.Public
	N          uint32
	Hedge      [HedgeSize]byte
	Ciphertext [32]byte // SHA-256 of the sealed body
}

// Sealed is a sealed message and what its sender keeps about it. It does not
// print.
type Sealed struct {
	Message     []byte // for the wire
	Ack         AckKey // the recipient alone knows it too, once the message is open
	Observation Observation
}

// LogValue keeps the acknowledgement key out of logs.
func (Sealed) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the acknowledgement key out of everything that package fmt
// prints.
func (Sealed) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// Opened is an opened message and what its recipient must commit together with
// the advanced session. It does not print.
type Opened struct {
	Plaintext []byte
	Ack       AckKey
	Store     []SkippedKey // new rows to keep
	Used      *SkippedID   // row to delete; nil if no stored key was used
	Stepped   bool         // the message brought a new ratchet key

	Observation Observation
}

// LogValue keeps plaintext and keys out of logs.
func (Opened) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps plaintext and keys out of everything that package fmt prints.
func (Opened) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// A Session is one side's state of a Double Ratchet (DR §3.2), with the names
// of DR in brackets. It does not print.
//
//	         NewResponder                  NewInitiator
//	              │                             │
//	              ▼        first Open           ▼
//	           no chain ───────────────┐   sends only
//	                                   ▼        │ Open, new ratchet key
//	        ┌── Seal: new own key ── receives ◄─┘
//	        ▼                          ▲
//	sends and receives ────────────────┘ Open, new ratchet key
type Session struct {
	_ [0]func() // not comparable: == is not constant-time

	id         [32]byte
	associated [32]byte

	root     rootKey        // RK
	own      x25519.Private // DHs; spent when send does not exist, but still the half that recv came from
	peer     x25519.Public  // DHr; known when either chain exists
	send     chain          // CKs and Ns; missing until the next Seal when a DH step is half done
	recv     chain          // CKr and Nr
	previous uint32         // PN

	// The receiving chain before recv, to tell a late duplicate from a message
	// under an unknown key. Its keys are gone. Known if before.known.
	before struct {
		known bool
		peer  x25519.Public
		n     uint32 // its length, as the peer stated it
	}

	skipped uint32 // message keys the caller stores for this session
}

// NewInitiator starts the session of the side that ran PQXDH as initiator
// (RatchetInitAlice, DR §3.3): it can send at once. Id, root and associated
// come from the key agreement; peer is the X25519 key of the day bundle used.
// An error is a failure of rand, or an unacceptable key.
func NewInitiator(rand io.Reader, id, root, associated [32]byte, peer x25519.Public) (*Session, error) {
	own, err := x25519.Generate(rand)
	if err != nil {
		return nil, fmt.Errorf("ratchet: starting a session: %w", err)
	}
	return newInitiator(own, id, root, associated, peer)
}

// newInitiator is NewInitiator with a given first ratchet key.
func newInitiator(own x25519.Private, id, root, associated [32]byte, peer x25519.Public) (*Session, error) {
	if _, err := x25519.Parse(peer[:]); err != nil {
		return nil, fmt.Errorf("ratchet: starting a session: %w", err)
	}
	s := &Session{id: id, associated: associated, root: rootKey{secret{b: root}}, peer: peer}
	if err := s.stepSending(own); err != nil {
		return nil, fmt.Errorf("ratchet: starting a session: %w", err)
	}
	return s, nil
}

// NewResponder starts the session of the side that was written to
// (RatchetInitBob, DR §3.3). Own is the private half of the day bundle's
// X25519 key. It cannot send before it has opened a message.
func NewResponder(id, root, associated [32]byte, own x25519.Private) *Session {
	return &Session{id: id, associated: associated, root: rootKey{secret{b: root}}, own: own}
}

// ID returns the session id from the key agreement.
func (s *Session) ID() [32]byte { return s.id }

// CanSend reports whether Seal can succeed. A responder cannot send before its
// first Open.
func (s *Session) CanSend() bool { return s.send.exists || s.recv.exists }

// Stored returns how many skipped keys the session believes are stored.
func (s *Session) Stored() int { return int(s.skipped) }

// Forget tells the session that n of its stored skipped keys have expired and
// been deleted, which makes room for others. Keys that Open reported as used
// are counted already.
func (s *Session) Forget(n int) {
	if n > 0 {
		s.skipped -= uint32(min(n, int(s.skipped)))
	}
}

// Seal encrypts plaintext and advances s (RatchetEncrypt, DR §3.4). If the last
// DH step is half done, it draws a new ratchet key first. Commit s before the
// message leaves. If it returns an error, s is unchanged: the plaintext is over
// [protocol.MaxContent], s cannot send yet, the chain is used up, or rand
// failed.
func (s *Session) Seal(rand io.Reader, plaintext []byte) (Sealed, error) {
	if err := s.checkSeal(plaintext); err != nil {
		return Sealed{}, err
	}
	var fresh x25519.Private
	if !s.send.exists {
		k, err := x25519.Generate(rand)
		if err != nil {
			return Sealed{}, fmt.Errorf("ratchet: sealing: %w", err)
		}
		fresh = k
	}
	var hedge [HedgeSize]byte
	if _, err := io.ReadFull(rand, hedge[:]); err != nil {
		return Sealed{}, fmt.Errorf("ratchet: drawing a hedge: %w", err)
	}
	return s.seal(fresh, hedge, plaintext)
}

// checkSeal returns why s cannot seal plaintext, or nil.
func (s *Session) checkSeal(plaintext []byte) error {
	switch {
	case len(plaintext) > protocol.MaxContent:
		return fmt.Errorf("ratchet: plaintext has %d bytes; the limit is %d", len(plaintext), protocol.MaxContent)
	case !s.CanSend():
		return errors.New("ratchet: a responder cannot send before its first message")
	case s.send.exists && s.send.n == math.MaxUint32:
		return errors.New("ratchet: sending chain is used up")
	}
	return nil
}

// seal is Seal with given randomness. Fresh is the new ratchet key, used only
// if the sending chain is missing.
func (s *Session) seal(fresh x25519.Private, hedge [HedgeSize]byte, plaintext []byte) (Sealed, error) {
	next := *s
	if !next.send.exists {
		if err := next.stepSending(fresh); err != nil {
			return Sealed{}, fmt.Errorf("ratchet: sealing: %w", err)
		}
	}
	h := header{ratchet: next.own.Public(), previous: next.previous, number: next.send.n, hedge: hedge}
	mk := next.send.step()
	message, ack := mk.seal(&next.associated, &h, plaintext)
	*s = next
	return Sealed{
		Message: message,
		Ack:     ack,

		Observation: s.observe(&h, message),
	}, nil
}

// observe returns what an observer may see of the message m, whose header is h.
func (s *Session) observe(h *header, m []byte) Observation {
	return Observation{Session: s.id, Ratchet: h.ratchet, N: h.number, Hedge: h.hedge, Ciphertext: hash(m[headerSize:])}
}

// stepSending does the sending half of a DH ratchet step (DHRatchet, DR §3.5)
// with own as the new ratchet key.
func (s *Session) stepSending(own x25519.Private) error {
	z, err := own.Shared(s.peer)
	if err != nil {
		return err
	}
	s.own = own
	s.root, s.send.key = s.root.step(&z)
	s.send.exists, s.send.n = true, 0
	return nil
}

// Open decrypts m and advances s (RatchetDecrypt, DR §3.5). It draws nothing:
// the same session and message give the same result. Skipped finds stored
// keys; nil means that there are none. Commit s, the rows to store and the row
// to delete in one transaction. If it returns an error, s is unchanged; the
// error is [ErrOpen], [ErrDuplicate] or a [*SkipError].
func (s *Session) Open(m []byte, skipped Lookup) (Opened, error) {
	h, ok := parseHeader(m)
	if !ok {
		return Opened{}, ErrOpen
	}
	next := *s
	o, err := next.open(&h, m, skipped)
	if err != nil {
		return Opened{}, err
	}
	*s = next
	o.Observation = s.observe(&h, m)
	return o, nil
}

// open is Open on a clone: it may leave s half advanced when it fails.
func (s *Session) open(h *header, m []byte, skipped Lookup) (Opened, error) {
	current := s.recv.exists && h.ratchet == s.peer
	if current && h.number >= s.recv.n {
		return s.openNext(h, m)
	}
	// Everything else is late or the start of a new chain.
	if s.skipped > 0 && skipped != nil {
		id := SkippedID{Ratchet: h.ratchet, N: h.number}
		if key, ok := skipped(id); ok {
			return s.openSkipped(h, m, id, messageKey{secret{b: key}})
		}
	}
	switch {
	case current:
		return Opened{}, ErrDuplicate
	case s.before.known && h.ratchet == s.before.peer:
		if h.number < s.before.n {
			return Opened{}, ErrDuplicate
		}
		return Opened{}, ErrOpen // past the end that the peer stated
	case s.CanSend() && (!s.send.exists || h.ratchet == s.peer):
		// The peer takes a new ratchet key only after it has seen our next
		// one, which does not exist yet; or the message claims the pre-key
		// that nobody sends under. No honest peer does either.
		return Opened{}, ErrOpen
	}
	return s.openStep(h, m)
}

// openSkipped opens a message whose key was stored.
func (s *Session) openSkipped(h *header, m []byte, id SkippedID, mk messageKey) (Opened, error) {
	plaintext, ack, ok := mk.open(&s.associated, h, m)
	if !ok {
		return Opened{}, ErrOpen
	}
	s.skipped--
	return Opened{Plaintext: plaintext, Ack: ack, Used: &id}, nil
}

// openNext opens a message at or beyond the end of the receiving chain.
func (s *Session) openNext(h *header, m []byte) (Opened, error) {
	jump := h.number - s.recv.n
	if err := s.checkSkip(uint64(jump)); err != nil {
		return Opened{}, err
	}
	store := make([]SkippedKey, 0, jump)
	store = s.recv.skip(store, s.peer, h.number)
	mk := s.recv.step()
	plaintext, ack, ok := mk.open(&s.associated, h, m)
	if !ok {
		return Opened{}, ErrOpen
	}
	s.skipped += jump
	return Opened{Plaintext: plaintext, Ack: ack, Store: store}, nil
}

// openStep opens the first message seen under a new ratchet key. It does the
// receiving half of the DH ratchet step (DR §3.5); the sending half waits for
// the next Seal, so that the new private key lives for a shorter time and a
// side that only listens computes nothing for it (DR §6.5).
func (s *Session) openStep(h *header, m []byte) (Opened, error) {
	old, oldPeer := s.recv, s.peer
	var left uint32 // keys the old chain still owes
	if old.exists && h.previous > old.n {
		left = h.previous - old.n
	}
	jump := uint64(left) + uint64(h.number)
	if err := s.checkSkip(jump); err != nil {
		return Opened{}, err
	}
	z, err := s.own.Shared(h.ratchet)
	if err != nil {
		return Opened{}, ErrOpen
	}
	s.root, s.recv.key = s.root.step(&z)
	s.recv.exists, s.recv.n = true, 0
	s.peer = h.ratchet
	s.previous, s.send = s.send.n, chain{}

	store := make([]SkippedKey, 0, jump)
	store = s.recv.skip(store, s.peer, h.number)
	mk := s.recv.step()
	plaintext, ack, ok := mk.open(&s.associated, h, m)
	if !ok {
		return Opened{}, ErrOpen
	}
	// The old chain comes last: a forgery does not get this far.
	if old.exists {
		store = old.skip(store, oldPeer, old.n+left)
		s.before.known, s.before.peer, s.before.n = true, oldPeer, old.n
	}
	s.skipped += uint32(jump)
	return Opened{Plaintext: plaintext, Ack: ack, Store: store, Stepped: true}, nil
}

// checkSkip returns a *SkipError if jump more skipped keys would be too many.
func (s *Session) checkSkip(jump uint64) error {
	if jump+uint64(s.skipped) > protocol.MaxSkip {
		return &SkipError{Jump: jump, Stored: s.skipped}
	}
	return nil
}

// LogValue keeps the session out of logs.
func (Session) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the session out of everything that package fmt prints.
func (Session) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }
