package record

import (
	"crypto/sha256"
	"sync"
	"time"
)

// memoSize is how many records a [Memo] remembers, 32 bytes each. A lookup gets
// the same record from twenty peers, and a holder meets the one it holds again
// at every refresh.
const memoSize = 256

// A Memo is [Validate] with a memory: bytes whose signatures held are not
// checked again. The zero value is empty and ready. It is safe for concurrent
// use.
type Memo struct {
	mu   sync.Mutex // guards what follows
	good map[[sha256.Size]byte]bool
	ring [memoSize][sha256.Size]byte // the same, the oldest at next
	next int
}

// Validate is the package's [Validate].
func (m *Memo) Validate(key [KeySize]byte, rec []byte, now time.Time) error {
	if err := placed(key, rec, now); err != nil {
		return err
	}
	sum := sha256.Sum256(rec)
	if m.knows(sum) {
		return nil
	}
	if err := genuine(rec); err != nil {
		return err
	}
	m.learn(sum)
	return nil
}

func (m *Memo) knows(sum [sha256.Size]byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.good[sum]
}

func (m *Memo) learn(sum [sha256.Size]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.good[sum] {
		return // two checked it at once
	}
	if m.good == nil {
		m.good = make(map[[sha256.Size]byte]bool)
	}
	delete(m.good, m.ring[m.next])
	m.good[sum] = true
	m.ring[m.next] = sum
	m.next = (m.next + 1) % memoSize
}
