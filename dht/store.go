package dht

import (
	"bytes"
	"container/heap"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"starling/dht/record"
	"starling/protocol"
)

// entryOverhead is counted for each record beside its bytes: map, heap and
// allocation, in bytes.
const entryOverhead = 512

// errFull means that the store is full of records nearer to our ID.
var errFull = errors.New("dht: the record store is full of nearer records")

// errWorse means that a better record of the same key is held.
var errWorse = errors.New("dht: a better record is held")

// A store holds the records of others, in memory and within a bound: kad-dht
// asks for neither distance nor size, so whoever makes valid records would
// fill any disk. When it is full, the record farthest from our own ID goes, or
// is not let in: those near our ID are the ones that readers come for.
//
// It is a batching datastore for kad-dht, which files a record under "/" ‖
// namespace ‖ "/" ‖ base32(DHT key) as a protobuf record. Other keys and other
// values are refused. It is safe for concurrent use.
type store struct {
	self [sha256.Size]byte // where we are in the key space
	max  int64             // bytes

	mu    sync.Mutex // guards the rest
	bytes int64
	held  map[[record.KeySize]byte]*entry
	far   farthest // the same entries
}

type entry struct {
	key      [record.KeySize]byte
	distance [sha256.Size]byte // from our own ID
	stored   []byte            // protobuf record; never changed
	rec      []byte            // the record inside, a part of stored
	index    int               // in the heap
}

// newEntry returns the entry of a protobuf record in which rec was found.
func newEntry(key [record.KeySize]byte, stored, rec []byte) *entry {
	i := bytes.Index(stored, rec)
	return &entry{key: key, stored: stored, rec: stored[i : i+len(rec) : i+len(rec)]}
}

func (e *entry) size() int64 { return int64(len(e.stored) + entryOverhead) }

func newStore(self peer.ID, max int64) *store {
	return &store{self: sha256.Sum256([]byte(self)), max: max, held: make(map[[record.KeySize]byte]*entry)}
}

// distance returns how far from our ID kad-dht places the key.
func (s *store) distance(key [record.KeySize]byte) (d [sha256.Size]byte) {
	at := sha256.Sum256([]byte(kadKey(key)))
	subtle.XORBytes(d[:], at[:], s.self[:])
	return d
}

// get returns the record held under key.
func (s *store) get(key [record.KeySize]byte) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.held[key]
	if !ok {
		return nil, false
	}
	return e.rec, true
}

// put files rec, which passed the validator, as received now.
func (s *store) put(key [record.KeySize]byte, rec []byte, now time.Time) error {
	m := &recpb.Record{Key: []byte(kadKey(key)), Value: rec, TimeReceived: now.UTC().Format(time.RFC3339Nano)}
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("dht: encoding a record: %w", err)
	}
	return s.add(newEntry(key, b, rec))
}

func (s *store) add(e *entry) error {
	e.distance = s.distance(e.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.held[e.key]
	// kad-dht has asked the validator to select already. It does so while the
	// store may change, and an old record must not win because of that.
	if old != nil && record.Select([][]byte{e.rec, old.rec}) != 0 {
		return errWorse
	}
	free := s.max - s.bytes
	if old != nil {
		free += old.size()
	}
	// First see whether there is room, so that nothing is thrown out in vain.
	if free < e.size() && !s.roomLocked(e, old, free) {
		return errFull
	}
	if old != nil {
		s.removeLocked(old)
	}
	for s.max-s.bytes < e.size() {
		s.removeLocked(s.far[0])
	}
	s.bytes += e.size()
	s.held[e.key] = e
	heap.Push(&s.far, e)
	return nil
}

// roomLocked reports whether throwing out records farther away than e makes
// room for it.
func (s *store) roomLocked(e, old *entry, free int64) bool {
	if len(s.far) == 0 || bytes.Compare(s.far[0].distance[:], e.distance[:]) <= 0 {
		return false
	}
	for _, f := range s.far {
		if f == old || bytes.Compare(f.distance[:], e.distance[:]) <= 0 {
			continue
		}
		if free += f.size(); free >= e.size() {
			return true
		}
	}
	return false
}

func (s *store) removeLocked(e *entry) {
	heap.Remove(&s.far, e.index)
	delete(s.held, e.key)
	s.bytes -= e.size()
}

// sweep drops the records that nobody would accept any more.
func (s *store) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	yesterday := record.DayOf(now) - 1
	for _, e := range s.held {
		if record.Day(e.rec) < yesterday {
			s.removeLocked(e)
		}
	}
}

// usage returns the number of records and the bytes counted for them.
func (s *store) usage() (records int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held), s.bytes
}

var _ ds.Batching = (*store)(nil)

var base32raw = base32.StdEncoding.WithPadding(base32.NoPadding)

// parseKey returns the record key inside a key of kad-dht's value store.
func parseKey(k ds.Key) (key [record.KeySize]byte, err error) {
	name, ok := strings.CutPrefix(k.String(), protocol.KadPrefix+"/")
	if ok {
		if b, err := base32raw.DecodeString(name); err == nil {
			if key, ok := parseKadKey(string(b)); ok {
				return key, nil
			}
		}
	}
	return key, errors.New("dht: not a record's key")
}

// Get implements [ds.Datastore].
func (s *store) Get(_ context.Context, k ds.Key) ([]byte, error) {
	key, err := parseKey(k)
	if err != nil {
		return nil, ds.ErrNotFound
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.held[key]; ok {
		return e.stored, nil
	}
	return nil, ds.ErrNotFound
}

// Has implements [ds.Datastore].
func (s *store) Has(ctx context.Context, k ds.Key) (bool, error) {
	_, err := s.Get(ctx, k)
	return err == nil, nil
}

// GetSize implements [ds.Datastore].
func (s *store) GetSize(ctx context.Context, k ds.Key) (int, error) {
	b, err := s.Get(ctx, k)
	if err != nil {
		return -1, err
	}
	return len(b), nil
}

// Query implements [ds.Datastore].
func (s *store) Query(_ context.Context, q query.Query) (query.Results, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := make([]query.Entry, 0, len(s.held))
	for key, e := range s.held {
		k := protocol.KadPrefix + "/" + base32raw.EncodeToString([]byte(kadKey(key)))
		entries = append(entries, query.Entry{Key: k, Value: e.stored, Size: len(e.stored)})
	}
	return query.NaiveQueryApply(q, query.ResultsWithEntries(q, entries)), nil
}

// Put implements [ds.Datastore].
func (s *store) Put(_ context.Context, k ds.Key, value []byte) error {
	key, err := parseKey(k)
	if err != nil {
		return err
	}
	m := new(recpb.Record)
	if err := proto.Unmarshal(value, m); err != nil {
		return fmt.Errorf("dht: not a stored record: %w", err)
	}
	rec := m.GetValue()
	if record.Select([][]byte{rec}) != 0 || string(m.GetKey()) != kadKey(key) || record.KeyOf(rec) != key {
		return errors.New("dht: not a stored record")
	}
	return s.add(newEntry(key, value, rec))
}

// Delete implements [ds.Datastore].
func (s *store) Delete(_ context.Context, k ds.Key) error {
	key, err := parseKey(k)
	if err != nil {
		return nil // never held
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.held[key]; ok {
		s.removeLocked(e)
	}
	return nil
}

// Batch implements [ds.Batching].
func (s *store) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(s), nil }

// Sync implements [ds.Datastore]. There is nothing to sync.
func (s *store) Sync(context.Context, ds.Key) error { return nil }

// Close implements [ds.Datastore]. There is nothing to close.
func (s *store) Close() error { return nil }

// farthest is a heap of records, the farthest first.
type farthest []*entry

func (f farthest) Len() int           { return len(f) }
func (f farthest) Less(i, j int) bool { return bytes.Compare(f[i].distance[:], f[j].distance[:]) > 0 }

func (f farthest) Swap(i, j int) {
	f[i], f[j] = f[j], f[i]
	f[i].index, f[j].index = i, j
}

// Push implements [heap.Interface].
func (f *farthest) Push(x any) {
	e := x.(*entry)
	e.index = len(*f)
	*f = append(*f, e)
}

// Pop implements [heap.Interface].
func (f *farthest) Pop() any {
	last := len(*f) - 1
	e := (*f)[last]
	(*f)[last] = nil
	*f = (*f)[:last]
	return e
}
