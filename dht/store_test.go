package dht

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"starling/dht/record"
	"starling/protocol"
)

const testSelf = peer.ID(ed25519Prefix + "0123456789abcdef0123456789abcdef")

// flood returns n valid records of n accounts, the nearest to the store first.
func flood(t testing.TB, s *store, n int) []Record {
	t.Helper()
	var recs []Record
	for i := range n {
		recs = append(recs, newAccount(t, fmt.Sprint("flood/", i)).today(byte(i%2), 1, 1))
	}
	slices.SortFunc(recs, func(a, b Record) int {
		x, y := s.distance(a.Key), s.distance(b.Key)
		return bytes.Compare(x[:], y[:])
	})
	return recs
}

// A stranger makes as many valid records as he likes; the store stays within
// its bound and keeps exactly the nearest, whatever the order of arrival.
func TestFloodStaysWithinTheBoundAndKeepsTheNearest(t *testing.T) {
	honest, bound := fewer(60), int64(fewer(1<<20))
	recs := flood(t, newStore(testSelf, bound), fewer(1500))
	near, foreign := recs[:honest], recs[honest:]
	shuffled := slices.Clone(recs)
	r := seeded("order")
	for i := range shuffled {
		j := int(r.Uint64() % uint64(i+1))
		shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
	}
	for what, order := range map[string][]Record{
		"honest first": slices.Concat(near, foreign),
		"flood first":  slices.Concat(foreign, near),
		"mixed":        shuffled,
	} {
		s := newStore(testSelf, bound)
		values := records.NewValueStore(s, validator{time.Now, new(record.Memo)}, maxRecordAge)
		if what != "mixed" {
			values = nil // straight into the store, which is what is tested; once through kad-dht is enough
		}
		for _, r := range order {
			var err error
			if values != nil {
				err = values.Put(t.Context(), kadKey(r.Key), &recpb.Record{Key: []byte(kadKey(r.Key)), Value: r.Bytes})
			} else {
				err = s.put(r.Key, r.Bytes, time.Now())
			}
			if err != nil && !errors.Is(err, errFull) {
				t.Fatal(err)
			}
			if _, b := s.usage(); b > bound {
				t.Fatalf("%s: %d bytes held, the bound is %d", what, b, bound)
			}
		}
		n, b := s.usage()
		if n < honest*2 || b < bound*9/10 {
			t.Errorf("%s: %d records, %d bytes: the store is not full", what, n, b)
		}
		for i, r := range recs {
			if _, ok := s.get(r.Key); ok != (i < n) {
				t.Fatalf("%s: record %d by distance held: %v, and %d are held", what, i, ok, n)
			}
		}
	}
}

// Records of different sizes: nothing near is thrown out for something far, and
// nothing is thrown out in vain.
func TestStoreMakesRoomOnlyWithWhatIsFarther(t *testing.T) {
	s := newStore(testSelf, 24<<10)
	recs := flood(t, s, 8)
	for _, r := range []Record{recs[0], recs[2], recs[4], recs[6], recs[7]} {
		if err := s.put(r.Key, r.Bytes, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	_, before := s.usage()
	big := newStoreEntry(t, s, recs[5], 12<<10)
	if err := s.add(big); !errors.Is(err, errFull) { // only 6 and 7 are farther: too little
		t.Errorf("adding 12 KiB: %v, want errFull", err)
	}
	if _, after := s.usage(); after != before {
		t.Error("a refused record changed the store")
	}
	big = newStoreEntry(t, s, recs[3], 12<<10) // 4, 6 and 7 are farther: enough
	if err := s.add(big); err != nil {
		t.Error(err)
	}
	for i, want := range []bool{true, false, true, true, false, false, false, false} {
		if _, ok := s.get(recs[i].Key); ok != want {
			t.Errorf("record %d held: %v, want %v", i, ok, want)
		}
	}
}

func newStoreEntry(t testing.TB, s *store, r Record, size int) *entry {
	t.Helper()
	stored := append(bytes.Clone(r.Bytes), make([]byte, size-len(r.Bytes))...)
	return newEntry(r.Key, stored, stored[:len(r.Bytes)])
}

// While the store holds a record, kad-dht puts no older one in its place: 1,000
// are offered, none is taken.
func TestStoreRefusesAThousandRollbacks(t *testing.T) {
	s := newStore(testSelf, defaultBytes)
	values := records.NewValueStore(s, validator{time.Now, new(record.Memo)}, maxRecordAge)
	alice := newAccount(t, "alice")
	put := func(r Record) error {
		return values.Put(t.Context(), kadKey(r.Key), &recpb.Record{Key: []byte(kadKey(r.Key)), Value: r.Bytes})
	}
	newest := alice.today(0, 9, 200)
	if err := put(newest); err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for i := range uint64(fewer(1000)) {
		old := alice.today(0, i%10, i%200) // counter up to 9, seq below 200
		if put(old) == nil || s.put(old.Key, old.Bytes, time.Now()) == nil {
			accepted++
		}
	}
	if held, _ := s.get(newest.Key); accepted != 0 || !bytes.Equal(held, newest.Bytes) {
		t.Errorf("%d older records accepted", accepted)
	}
	// The same bytes again only make it fresh.
	if err := put(newest); err != nil {
		t.Errorf("putting the same record again: %v", err)
	}
	if n, b := s.usage(); n != 1 || b > 8<<10 {
		t.Errorf("%d records, %d bytes", n, b)
	}
}

// Even if two writers race past kad-dht's own comparison, the better stays.
func TestStoreKeepsTheBestOfConcurrentPuts(t *testing.T) {
	s := newStore(testSelf, defaultBytes)
	alice := newAccount(t, "alice")
	var recs []Record
	for seq := range uint64(40) {
		recs = append(recs, alice.today(0, 1, seq))
	}
	var writers sync.WaitGroup
	for _, r := range recs {
		writers.Go(func() { s.put(r.Key, r.Bytes, time.Now()) })
	}
	writers.Wait()
	if held, _ := s.get(recs[0].Key); !bytes.Equal(held, recs[39].Bytes) {
		t.Error("not the best record is held")
	}
}

func TestStoreSweepsDeadDays(t *testing.T) {
	s := newStore(testSelf, defaultBytes)
	alice := newAccount(t, "alice")
	today := record.DayOf(time.Now())
	var recs []Record
	for day := today - 3; day <= today+1; day++ {
		r := alice.record(day, 0, 1, 1)
		if err := s.put(r.Key, r.Bytes, time.Now()); err != nil {
			t.Fatal(err)
		}
		recs = append(recs, r)
	}
	s.sweep(time.Now())
	for i, want := range []bool{false, false, true, true, true} {
		if _, ok := s.get(recs[i].Key); ok != want {
			t.Errorf("record of day %+d held: %v, want %v", i-3, ok, want)
		}
	}
}

func TestStoreIsABatchingDatastore(t *testing.T) {
	s := newStore(testSelf, defaultBytes)
	ctx := t.Context()
	r := newAccount(t, "alice").today(0, 1, 1)
	if err := s.put(r.Key, r.Bytes, time.Now()); err != nil {
		t.Fatal(err)
	}
	k := ds.NewKey(protocol.KadPrefix + "/" + base32raw.EncodeToString([]byte(kadKey(r.Key))))
	stored, err := s.Get(ctx, k)
	if err != nil {
		t.Fatal(err)
	}
	// kad-dht reads what put wrote.
	got, err := records.NewValueStore(s, validator{time.Now, new(record.Memo)}, maxRecordAge).Get(ctx, kadKey(r.Key))
	if err != nil || !bytes.Equal(got.GetValue(), r.Bytes) {
		t.Errorf("kad-dht reads %d bytes: %v", len(got.GetValue()), err)
	}
	if n, err := s.GetSize(ctx, k); err != nil || n != len(stored) {
		t.Errorf("GetSize = %d, %v", n, err)
	}
	if ok, err := s.Has(ctx, k); err != nil || !ok {
		t.Errorf("Has = %v, %v", ok, err)
	}
	res, err := s.Query(ctx, query.Query{Prefix: protocol.KadPrefix})
	if err != nil {
		t.Fatal(err)
	}
	if all, err := res.Rest(); err != nil || len(all) != 1 || all[0].Key != k.String() {
		t.Errorf("Query: %v, %v", all, err)
	}
	b, err := s.Batch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(ctx, k); err != nil {
		t.Error(err)
	}
	if err := b.Commit(ctx); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, k); !errors.Is(err, ds.ErrNotFound) {
		t.Errorf("Get after Delete: %v", err)
	}
	if n, size := s.usage(); n != 0 || size != 0 {
		t.Errorf("empty store: %d records, %d bytes", n, size)
	}

	// What kad-dht would never file.
	other := newAccount(t, "bob").today(0, 1, 1)
	for what, e := range map[string]struct {
		key   ds.Key
		value []byte
	}{
		"not protobuf":   {k, []byte{1}},
		"no record":      {k, nil},
		"another's":      {ds.NewKey(protocol.KadPrefix + "/" + base32raw.EncodeToString([]byte(kadKey(other.Key)))), stored},
		"short key":      {ds.NewKey(protocol.KadPrefix + "/AAAA"), stored},
		"not base32":     {ds.NewKey(protocol.KadPrefix + "/a-b"), stored},
		"other subtree":  {ds.NewKey("/pk/" + k.BaseNamespace()), stored},
		"no subtree":     {ds.NewKey("/x"), stored},
		"provider store": {ds.NewKey("/providers/a/b"), stored},
	} {
		if s.Put(ctx, e.key, e.value) == nil {
			t.Errorf("%s: stored", what)
		}
		if err := s.Delete(ctx, e.key); err != nil {
			t.Errorf("%s: Delete: %v", what, err)
		}
	}
}

// A stranger fills the store to its real bound: what it costs to hold and to
// refuse.
func BenchmarkStoreWhenFull(b *testing.B) {
	s := newStore(testSelf, 4<<20)
	recs := flood(b, s, 1200)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r := recs[i%len(recs)]
		s.put(r.Key, r.Bytes, time.Now())
	}
}

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter[int](limit{rate: 2, burst: 10})
		take := func(k int) (n int) {
			for l.allow(k, time.Now()) {
				n++
			}
			return n
		}
		for i, want := range []int{10, 6, 10} {
			if got := take(1); got != want {
				t.Errorf("round %d: %d allowed, want %d", i, got, want)
			}
			time.Sleep([]time.Duration{3 * time.Second, time.Hour, 0}[i])
		}
		if got := take(2); got != 10 {
			t.Errorf("another key: %d allowed, want 10", got)
		}

		// A flood of keys is held to a single bucket, and to bounded memory.
		time.Sleep(time.Hour)
		for k := range tracked {
			l.allow(k, time.Now())
		}
		extra := 0
		for k := range 10 * tracked {
			if l.allow(tracked+k, time.Now()) {
				extra++
			}
		}
		if extra != 10 || len(l.buckets) > tracked {
			t.Errorf("%d keys beyond those tracked allowed, %d buckets; want 10 and at most %d", extra, len(l.buckets), tracked)
		}
		// Who was known before the flood is not hurt by it.
		if got := take(1); got != 9 {
			t.Errorf("a known key during the flood: %d allowed, want 9", got)
		}
		// It passes.
		time.Sleep(time.Minute)
		if got := take(10 * tracked); got != 10 {
			t.Errorf("a newcomer after the flood: %d allowed, want 10", got)
		}
	})
}

func TestNetworkOf(t *testing.T) {
	for addr, want := range map[string]string{
		"/ip4/192.0.2.7/tcp/1":                    "192.0.2.7/32",
		"/ip6/2001:db8:1:2:3:4:5:6/udp/1/quic-v1": "2001:db8:1:2::/64",
		"/ip6/2001:db8:1:2:ffff::/tcp/1":          "2001:db8:1:2::/64",
		"/ip6/::ffff:192.0.2.7/tcp/1":             "192.0.2.7/32",
		"/ip4/127.0.0.1/tcp/1":                    "none",
		"/ip6/::1/tcp/1":                          "none",
		"/dns4/example.org/tcp/1":                 "none",
	} {
		got := "none"
		if n, ok := networkOf(multiaddr(t, addr)); ok {
			got = n.String()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func TestDistanceIsKadDHTs(t *testing.T) {
	s := newStore(testSelf, 1)
	key := [record.KeySize]byte{1, 2, 3}
	at, self := sha256.Sum256([]byte(kadKey(key))), sha256.Sum256([]byte(testSelf))
	d := s.distance(key)
	for i := range d {
		if d[i] != at[i]^self[i] {
			t.Fatal("not the XOR of the SHA-256 of key and peer ID")
		}
	}
}
