package relay

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"time"

	"starling/node/store"
	"starling/protocol"
	"starling/protocol/relay"
)

// ErrNoToken means that no such admission token was issued, or that it was
// revoked already.
var ErrNoToken = errors.New("relay: no such admission token")

// An Issued is an admission token as the relay keeps it: by its hash, so that
// nobody who copies the disk can use it.
type Issued struct {
	Hash    [sha256.Size]byte
	Name    string // the operator's, at most 64 bytes
	Created time.Time
	Queues  int   // made with it
	Bytes   int64 // kept on its account
}

// Issue draws an admission token: it lets its bearers make queues, all on one
// account. It is shown once. Name is for the operator alone.
//
// The token proves that this relay's key made it. So it is good also for a relay
// that has lost its store and kept its key, which knows no name of it then, and
// not that it was revoked.
func (s *Service) Issue(name string) (relay.Admission, error) {
	if len(name) > 64 {
		return relay.Admission{}, errors.New("relay: a name of more than 64 bytes")
	}
	var t relay.Admission
	rand.Read(t[:admissionID])
	copy(t[admissionID:], s.admissionMAC(t[:admissionID]))
	return t, s.db.Update(func(tx *store.Tx) error {
		return store.RelayAdmissions.Put(tx, store.RelayAdmissionKey(sha256.Sum256(t[:])),
			&store.RelayAdmission{Name: name, Created: s.now64()})
	})
}

// admissionID is how many bytes of an admission token name it; the others are
// their MAC.
const admissionID = 6

func (s *Service) admissionMAC(id []byte) []byte {
	raw, err := s.cfg.Key.Raw()
	if err != nil {
		panic("relay: internal error: a key without bytes: " + err.Error())
	}
	key, err := hkdf.Key(sha256.New, raw[:ed25519.SeedSize], make([]byte, sha256.Size), string(protocol.LabelAdmission.Bind()), sha256.Size)
	if err != nil {
		panic("relay: internal error: " + err.Error())
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(id)
	return mac.Sum(nil)[:relay.AdmissionSize-admissionID]
}

// admit returns nil if an admission token was issued and not revoked.
func (s *Service) admit(tx *store.Tx, token []byte) error {
	k := store.RelayAdmissionKey(sha256.Sum256(token))
	has, err := store.RelayAdmissions.Has(tx, k)
	if err != nil {
		return err
	}
	if !has && len(token) == relay.AdmissionSize && hmac.Equal(token[admissionID:], s.admissionMAC(token[:admissionID])) {
		// Of a store that was lost.
		if err := store.RelayAdmissions.Put(tx, k, &store.RelayAdmission{Created: s.now64()}); err != nil {
			return err
		}
	}
	return admitted(tx, k)
}

// Issued returns the admission tokens that were issued and not revoked.
func (s *Service) Issued() ([]Issued, error) {
	var all []Issued
	err := s.db.View(func(tx *store.Tx) error {
		for r, err := range store.RelayAdmissions.Scan(tx, nil, nil) {
			if errors.Is(err, store.ErrDamaged) {
				continue
			}
			if err != nil {
				return err
			}
			if r.Value.Revoked {
				continue
			}
			all = append(all, Issued{
				Hash: [sha256.Size]byte(r.Key), Name: r.Value.Name, Created: time.Unix(r.Value.Created, 0),
			})
		}
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range all {
		if sh := s.shares[string(all[i].Hash[:])]; sh != nil {
			all[i].Queues, all[i].Bytes = sh.queues, sh.bytes
		}
	}
	return all, err
}

// Revoke ends an admission token: its bearers make no queue with it any more, and
// those they have are not renewed. Or it returns [ErrNoToken].
func (s *Service) Revoke(hash [sha256.Size]byte) error {
	return s.db.Update(func(tx *store.Tx) error {
		k := store.RelayAdmissionKey(hash)
		row, err := store.RelayAdmissions.Get(tx, k)
		if errors.Is(err, store.ErrNotFound) || err == nil && row.Revoked {
			err = ErrNoToken
		}
		if err != nil {
			return err
		}
		row.Revoked = true // it would be good again without its row
		return store.RelayAdmissions.Put(tx, k, row)
	})
}
