package dht

import (
	"errors"
	"testing"
	"time"

	"starling/dht/record"
)

// A lookup is reported with what it took: nobody asked where there is nobody,
// the holder alone, and a chain of two where the first peer names the holder.
func TestReport(t *testing.T) {
	var reports []Report
	reader := node(t, func(cfg *Config) {
		cfg.Refresh, cfg.OnLookup = -1, func(r Report) { reports = append(reports, r) }
	})
	between := node(t, func(cfg *Config) { cfg.Refresh = -1 })
	holder := node(t, func(cfg *Config) { cfg.Refresh = -1 })
	a := newAccount(t, "Ada")
	for replica := range byte(record.Replicas) {
		r := a.today(replica, 1, 5)
		if err := holder.store.put(r.Key, r.Bytes, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	last := func() Report {
		t.Helper()
		if len(reports) != 1 {
			t.Fatalf("%d reports of one lookup", len(reports))
		}
		r := reports[0]
		reports = nil
		if r.Account != a.id() || r.Took <= 0 {
			t.Errorf("a report of %x after %v", r.Account, r.Took)
		}
		return r
	}

	if _, err := lookup(t, reader, a, record.Version{}); !errors.Is(err, ErrNoPeers) {
		t.Fatal(err)
	}
	if r := last(); r.Hops != 0 || r.Asked != 0 || r.Found || r.Stale {
		t.Errorf("alone: %+v", r)
	}

	connect(t, between.host, holder.host)
	until(t, "between knows the holder", func() bool { return between.Peers() == 1 })
	connect(t, reader.host, between.host)
	until(t, "the reader knows between", func() bool { return reader.Peers() == 1 })
	if _, err := lookup(t, reader, a, record.Version{}); err != nil {
		t.Fatal(err)
	}
	if r := last(); r.Hops != 2 || r.Asked != 2 || !r.Found || r.Stale || r.Version != version(5) {
		t.Errorf("over one who knows the holder: %+v", r)
	}

	until(t, "the reader knows the holder", func() bool { return reader.Peers() == 2 })
	if _, err := lookup(t, reader, a, version(6)); !errors.Is(err, ErrStale) {
		t.Fatal(err)
	}
	if r := last(); r.Hops < 1 || r.Asked != 2 || r.Found || !r.Stale || r.Version != (record.Version{}) {
		t.Errorf("a record that is too old: %+v", r)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := lookup(t, reader, a, record.Version{}); !errors.Is(err, ErrClosed) || len(reports) != 0 {
		t.Errorf("after Close: %v, and %d reports", err, len(reports))
	}
}
