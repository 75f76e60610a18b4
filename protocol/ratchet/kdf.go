package ratchet

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math"

	"starling/protocol"
	"starling/protocol/x25519"
)

// A secret is 32 bytes that do not print.
type secret struct {
	_ [0]func() // not comparable: == is not constant-time
	b [32]byte
}

// LogValue keeps the secret out of logs.
func (secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Format keeps the secret out of everything that package fmt prints.
func (secret) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// A rootKey is the state of the root chain (RK, DR §3.2).
type rootKey struct{ secret }

// A chainKey is one link of a sending or receiving chain (CK, DR §2.1).
type chainKey struct{ secret }

// A messageKey belongs to one position of one chain (mk, DR §2.2).
type messageKey struct{ secret }

// An AckKey authenticates the acknowledgement of one message: only those who
// can open the message can derive it. It does not print.
type AckKey struct{ secret }

// MAC returns the acknowledgement of the envelope with the given hash (SPEC
// §8). Compare it in constant time.
func (k AckKey) MAC(envelopeHash [32]byte) [32]byte {
	return hmacSHA256(k.b[:], protocol.LabelAck.Bind(envelopeHash[:]))
}

// step implements KDF_RK (DR §5.2): the root key salts the extraction, so that
// either input alone is enough to keep the outputs secret.
func (rk *rootKey) step(dh *[x25519.Size]byte) (rootKey, chainKey) {
	return kdfRK(rk, dh, string(protocol.LabelRootKDF))
}

// kdfRK is KDF_RK for any application string, so that published values can be
// fed to it.
func kdfRK(rk *rootKey, dh *[x25519.Size]byte, info string) (next rootKey, ck chainKey) {
	prk := hkdfExtract(rk.b[:], dh[:])
	var okm [64]byte
	hkdfExpand(okm[:], &prk, info)
	next.b, ck.b = [32]byte(okm[:32]), [32]byte(okm[32:])
	return next, ck
}

// step implements KDF_CK (DR §5.2). The constants separate the message key
// from the next chain key, so that neither reveals the other.
func (ck *chainKey) step() (next chainKey, mk messageKey) {
	mk.b = hmacSHA256(ck.b[:], []byte{0x01})
	next.b = hmacSHA256(ck.b[:], []byte{0x02})
	return next, mk
}

// A chain is a sending or receiving chain that may not exist yet.
type chain struct {
	exists bool
	key    chainKey
	n      uint32 // position of the next message: Ns or Nr
}

// step returns the next message key and advances the chain.
func (c *chain) step() messageKey {
	if !c.exists {
		// A chain key of zeros would be known to everybody. Callers check
		// for the chain before they get here.
		panic("ratchet: internal error: KDF_CK on a missing chain")
	}
	if c.n == math.MaxUint32 {
		panic("ratchet: internal error: chain past its end") // Seal and parseHeader refuse the last number
	}
	next, mk := c.key.step()
	c.key, c.n = next, c.n+1
	return mk
}

// skip appends to rows the keys of the positions before until, and advances the
// chain to it (SkipMessageKeys, DR §3.5). The caller has checked the limits.
func (c *chain) skip(rows []SkippedKey, ratchet x25519.Public, until uint32) []SkippedKey {
	for c.n < until {
		id := SkippedID{Ratchet: ratchet, N: c.n}
		rows = append(rows, SkippedKey{ID: id, Key: c.step().b})
	}
	return rows
}

// A header is the part of a message before its body.
type header struct {
	ratchet  x25519.Public
	previous uint32 // PN
	number   uint32 // N
	hedge    [HedgeSize]byte
}

// parseHeader returns the header of the message m. It checks everything that
// can be checked without a key: both lengths, the version, that the ratchet key
// is canonical, and that N leaves room for the number after it.
func parseHeader(m []byte) (h header, ok bool) {
	if len(m) < Overhead || len(m) > Overhead+protocol.MaxContent || m[0] != messageVersion {
		return header{}, false
	}
	key, err := x25519.Parse(m[ratchetAt:previousAt])
	if err != nil {
		return header{}, false
	}
	h = header{
		ratchet:  key,
		previous: binary.BigEndian.Uint32(m[previousAt:]),
		number:   binary.BigEndian.Uint32(m[numberAt:]),
		hedge:    [HedgeSize]byte(m[hedgeAt:headerSize]),
	}
	return h, h.number < math.MaxUint32
}

// append appends the header's encoding to b.
func (h *header) append(b []byte) []byte {
	b = append(b, messageVersion)
	b = append(b, h.ratchet[:]...)
	b = binary.BigEndian.AppendUint32(b, h.previous)
	b = binary.BigEndian.AppendUint32(b, h.number)
	return append(b, h.hedge[:]...)
}

// derive turns the message key and a message's hedge into the message's AEAD
// and nonce, and its acknowledgement key. The extraction is shared; the labels
// separate the outputs.
func (mk *messageKey) derive(hedge *[HedgeSize]byte) (aead cipher.AEAD, nonce []byte, ack AckKey) {
	prk := hkdfExtract(hedge[:], mk.b[:])
	okm := make([]byte, 44)
	hkdfExpand(okm, &prk, string(protocol.LabelMessageKDF))
	hkdfExpand(ack.b[:], &prk, string(protocol.LabelAckKDF))
	block, err := aes.NewCipher(okm[:32])
	if err != nil {
		panic("ratchet: internal error: AES-256 takes 32 bytes")
	}
	aead, err = cipher.NewGCM(block)
	if err != nil {
		panic("ratchet: internal error: AES has the block size of GCM")
	}
	return aead, okm[32:], ack
}

// seal is ENCRYPT (DR §3.1): it returns the whole message. The associated data
// is that of the session and the header; both have fixed lengths (CONCAT).
func (mk *messageKey) seal(associated *[32]byte, h *header, plaintext []byte) ([]byte, AckKey) {
	aead, nonce, ack := mk.derive(&h.hedge)
	// One buffer: the associated data is what stands before the body.
	b := make([]byte, 0, len(associated)+Overhead+len(plaintext))
	b = append(b, associated[:]...)
	b = h.append(b)
	b = aead.Seal(b, nonce, plaintext, b)
	return b[len(associated):], ack
}

// open is DECRYPT (DR §3.1) on the whole message m, whose header is h.
func (mk *messageKey) open(associated *[32]byte, h *header, m []byte) (plaintext []byte, ack AckKey, ok bool) {
	aead, nonce, ack := mk.derive(&h.hedge)
	ad := make([]byte, 0, len(associated)+headerSize)
	ad = append(ad, associated[:]...)
	ad = append(ad, m[:headerSize]...)
	plaintext, err := aead.Open(nil, nonce, m[headerSize:], ad)
	if err != nil {
		return nil, AckKey{}, false
	}
	return plaintext, ack, true
}

// hash is SHA-256.
func hash(b []byte) [32]byte { return sha256.Sum256(b) }

// hkdfExtract is HKDF-Extract (RFC 5869 §2.2).
func hkdfExtract(salt, ikm []byte) [32]byte { return hmacSHA256(salt, ikm) }

// hkdfExpand is HKDF-Expand (RFC 5869 §2.3) into okm, of at most 255 blocks.
func hkdfExpand(okm []byte, prk *[32]byte, info string) {
	var buf [128]byte
	b := buf[:0]
	for i := byte(1); len(okm) > 0; i++ {
		b = append(b, info...)
		t := hmacSHA256(prk[:], append(b, i))
		okm = okm[copy(okm, t[:]):]
		b = append(b[:0], t[:]...)
	}
}

// hmacSHA256 is HMAC-SHA-256 (RFC 2104), written out because the ratchet does
// a dozen of them a message, of one short block each: on the stack it takes a
// third of the time of crypto/hmac, which the tests hold it against.
func hmacSHA256(key, data []byte) [32]byte {
	if len(key) > sha256.BlockSize {
		k := sha256.Sum256(key)
		key = k[:]
	}
	var buf [256]byte
	inner := buf[:sha256.BlockSize]
	copy(inner, key)
	for i := range inner {
		inner[i] ^= 0x36
	}
	sum := sha256.Sum256(append(inner, data...))

	var outer [sha256.BlockSize + sha256.Size]byte
	copy(outer[:], key)
	for i := range sha256.BlockSize {
		outer[i] ^= 0x5c
	}
	copy(outer[sha256.BlockSize:], sum[:])
	return sha256.Sum256(outer[:])
}
