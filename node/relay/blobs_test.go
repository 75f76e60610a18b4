package relay

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"starling/node/relay/spool"
	"starling/protocol"
	"starling/protocol/wire"
)

func putBlob(m *made, handle []byte, index, count uint32, chunk []byte, expires time.Time) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_PutBlob{PutBlob: &wire.RelayPutBlob{
		Queue: m.id[:], Handle: handle, Index: index, Count: count, Chunk: chunk, Expires: expires.Unix(),
	}}}
}

func getBlob(handle []byte, index uint32) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_GetBlob{GetBlob: &wire.RelayGetBlob{Handle: handle, Index: index}}}
}

func dropBlob(m *made, handle []byte) *wire.RelayRequest {
	return &wire.RelayRequest{Command: &wire.RelayRequest_DropBlob{DropBlob: &wire.RelayDropBlob{Queue: m.id[:], Handle: handle}}}
}

// wantShelf checks how many blobs and chunks there are beside the store ID.
func (w *world) wantShelf(blobs, reserved, chunks int) {
	w.t.Helper()
	s := w.Status()
	if s.Blobs != blobs || s.Shelf != int64(reserved)*protocol.BlobChunk || s.Spool.Entries != chunks+1 {
		w.t.Errorf("%d blobs of %d bytes, %d entries; want %d, %d chunks, %d entries", s.Blobs, s.Shelf, s.Spool.Entries, blobs, reserved, chunks+1)
	}
}

// roomForBlobs is a config with room for some.
func roomForBlobs(cfg *Config) { cfg.Limits.Share = 4 << 20 }

// Chunks come in any order, each is kept once, and whoever knows the handle has
// them, also after a restart and from a draining relay.
func TestBlobIsKeptChunkByChunk(t *testing.T) {
	w := newWorld(t, roomForBlobs)
	owner, other := w.caller(), w.caller()
	b, handle, until := owner.queue(box), blob(32), start.Add(24*time.Hour)
	chunks := [][]byte{blob(protocol.BlobChunk), blob(protocol.BlobChunk), blob(protocol.BlobChunk)}
	other.want(isRefused, getBlob(handle, 0))
	owner.want(isOK, putBlob(b, handle, 2, 3, chunks[2], until))
	owner.want(isOK, putBlob(b, handle, 0, 3, chunks[0], until))
	owner.want(isOK, putBlob(b, handle, 0, 3, chunks[0], until)) // the answer was lost
	owner.want(isRefused, putBlob(b, handle, 0, 3, chunks[1], until))
	w.wantShelf(1, 3, 2)
	get := func(i uint32) {
		t.Helper()
		a := other.want(isOK, getBlob(handle, i)).GetChunk()
		if a.GetCount() != 3 || !bytes.Equal(a.GetChunk(), chunks[i]) {
			t.Errorf("chunk %d is another one, of %d", i, a.GetCount())
		}
	}
	get(0)
	get(2)
	other.want(isEmpty, getBlob(handle, 1)) // not there yet
	other.want(isRefused, getBlob(handle, 3))
	w.reopen()
	owner, other = w.caller(), w.caller()
	w.wantShelf(1, 3, 2)
	get(2)
	owner.want(isRefused, putBlob(b, handle, 1, 3, chunks[1], until)) // not attached on this stream
	owner.want(isOK, owner.attachRequest(b))
	owner.want(isOK, putBlob(b, handle, 1, 3, chunks[1], until))
	get(1)
	if n := w.Status().Counters.Chunks; n != 2 {
		t.Errorf("%d chunks were given out, want 2 since the restart", n)
	}
	w.drain()
	get(0)
	owner.want(isDraining, putBlob(b, blob(32), 0, 1, chunks[0], until))
	other.want(isRefused, dropBlob(b, handle))
	owner.want(isOK, dropBlob(b, handle))
	owner.want(isRefused, dropBlob(b, handle))
	other.want(isRefused, getBlob(handle, 0))
	w.wantShelf(0, 0, 0)
	if n := w.anybody; n.bytes != 0 || n.inflight != 0 {
		t.Errorf("the account still has %+v", n)
	}
}

// What is not the blob that its first chunk announced is refused, and so is who
// has no box.
func TestBlobIsOneBlob(t *testing.T) {
	w := newWorld(t, roomForBlobs)
	owner, other := w.caller(), w.caller()
	b, second, pair, theirs := owner.queue(box), owner.queue(box), owner.queue(pairwise), other.queue(box)
	handle, chunk, until := blob(32), blob(protocol.BlobChunk), start.Add(24*time.Hour)
	owner.want(isOK, putBlob(b, handle, 0, 2, chunk, until))
	for name, x := range map[string]struct {
		from   *caller
		req    *wire.RelayRequest
		status wire.RelayStatus
	}{
		"another count":          {owner, putBlob(b, handle, 1, 3, chunk, until), isRefused},
		"another expiry":         {owner, putBlob(b, handle, 1, 2, chunk, until.Add(time.Second)), isRefused},
		"another box":            {owner, putBlob(second, handle, 1, 2, chunk, until), isRefused},
		"another reader's box":   {other, putBlob(b, handle, 1, 2, chunk, until), isRefused},
		"another reader":         {other, putBlob(theirs, handle, 1, 2, chunk, until), isRefused},
		"a pairwise queue":       {owner, putBlob(pair, blob(32), 0, 1, chunk, until), isRefused},
		"an expiry that is over": {owner, putBlob(b, blob(32), 0, 1, chunk, start), isMalformed},
		"a longer life": {
			owner, putBlob(b, blob(32), 0, 1, chunk, start.Add(protocol.BlobLife+protocol.RelaySkew+time.Second)), isMalformed,
		},
		"no blob at all":       {owner, putBlob(b, blob(32), 0, 0, chunk, until), isMalformed},
		"a chunk beyond it":    {owner, putBlob(b, blob(32), 2, 2, chunk, until), isMalformed},
		"a chunk of less":      {owner, putBlob(b, blob(32), 0, 1, chunk[1:], until), isMalformed},
		"too many chunks":      {owner, putBlob(b, blob(32), 0, protocol.MaxBlobChunks+1, chunk, until), isMalformed},
		"a drop by another":    {other, dropBlob(theirs, handle), isRefused},
		"a drop from a box":    {owner, dropBlob(second, handle), isRefused},
		"a get of another one": {owner, getBlob(blob(32), 0), isRefused},
	} {
		if a := x.from.ask(x.req); a.Status != x.status {
			t.Errorf("%s: %v, want %v", name, a.Status, x.status)
		}
	}
	w.wantShelf(1, 2, 1)
}

// A blob takes the room of the whole with its first chunk: of its box, of its
// account and of the shelf.
func TestBlobsHaveQuotas(t *testing.T) {
	const size = protocol.BlobChunk
	w := newWorld(t, func(cfg *Config) {
		cfg.Limits.Share, cfg.Limits.BoxBlobs, cfg.Limits.Blobs = 7*size, 4*size, 9*size
	})
	if in := w.caller().want(isOK, infoRequest).GetInfo(); in.BlobBytes != 4*size {
		t.Errorf("info says %d bytes of blobs", in.BlobBytes)
	}
	until, chunk := start.Add(24*time.Hour), blob(size)
	one := w.from("192.0.2.1")
	two := w.from("198.51.100.1")
	a, b := one.queue(box), one.queue(box)
	c := two.queue(box)
	first := blob(32)
	one.want(isQuota, putBlob(a, blob(32), 0, 5, chunk, until)) // more than a box has
	one.want(isOK, putBlob(a, first, 0, 3, chunk, until))
	one.want(isQuota, putBlob(a, blob(32), 0, 2, chunk, until))
	one.want(isOK, putBlob(a, blob(32), 0, 1, chunk, until))
	one.want(isQuota, putBlob(b, blob(32), 0, 4, chunk, until)) // more than the account has
	one.want(isOK, putBlob(b, blob(32), 0, 2, chunk, until))
	two.want(isQuota, putBlob(c, blob(32), 0, 4, chunk, until)) // more than the shelf has
	two.want(isOK, putBlob(c, blob(32), 0, 3, chunk, until))
	w.wantShelf(4, 9, 4)
	one.want(isOK, dropBlob(a, first))
	two.want(isOK, putBlob(c, blob(32), 0, 1, chunk, until))
	w.wantShelf(4, 7, 4)

	// A box that is dropped takes its blobs along, and what is over goes.
	one.want(isOK, dropRequest(b.id))
	w.wantShelf(3, 5, 3)
	w.clock.at = start.Add(24 * time.Hour)
	if err := w.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantShelf(0, 0, 0)
	for id, sh := range w.shares {
		if sh.bytes != 0 || sh.inflight != 0 {
			t.Errorf("account %x still has %d bytes, %d on their way", id, sh.bytes, sh.inflight)
		}
	}
}

// The same chunk by many at once is there once; none is told that it was refused.
func TestChunkAtTheSameTime(t *testing.T) {
	w := newWorld(t, roomForBlobs)
	owner := w.caller()
	b := owner.queue(box)
	req := putBlob(b, blob(32), 1, 4, blob(protocol.BlobChunk), start.Add(time.Hour))
	var wg sync.WaitGroup
	for range 20 {
		c := w.caller()
		c.want(isOK, c.attachRequest(b))
		wg.Go(func() {
			for {
				switch a := c.ask(req); a.Status {
				case isOK:
					return
				case isBusy:
				default:
					t.Errorf("a chunk: %v", a.Status)
					return
				}
			}
		})
	}
	wg.Wait()
	w.wantShelf(1, 4, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.shelving) != 0 {
		t.Errorf("%d chunks are left on their way", len(w.shelving))
	}
}

// Power fails at every write boundary of either disk: a chunk that was
// acknowledged is there, one that was dropped is not, and nothing is left of what
// has no row.
func TestBlobsAfterACrash(t *testing.T) {
	for name, plan := range map[string]func(w *world, n int){
		"store": func(w *world, n int) { w.rows.CrashAt(n, w.cfg.Disk.Crash) },
		"spool": func(w *world, n int) { w.cfg.Disk.CrashAt(n, w.rows.Crash) },
	} {
		t.Run(name, func(t *testing.T) {
			for n, done := 1, false; !done; n++ {
				w := newWorld(t, roomForBlobs)
				c := w.caller()
				b := c.queue(box)
				gone, stays, chunk := blob(32), blob(32), blob(protocol.BlobChunk)
				rows, slots := w.rows.Steps(), w.cfg.Disk.Steps()
				plan(w, n)
				var acked []wire.RelayStatus
				for _, req := range []*wire.RelayRequest{
					putBlob(b, gone, 1, 2, chunk, start.Add(time.Hour)), putBlob(b, stays, 0, 3, chunk, start.Add(time.Hour)),
					putBlob(b, gone, 0, 2, chunk, start.Add(time.Hour)), dropBlob(b, gone), putBlob(b, stays, 2, 3, chunk, start.Add(time.Hour)),
				} {
					a := c.ask(req)
					if acked = append(acked, a.Status); a.Status != isOK {
						break
					}
				}
				acked = append(acked, make([]wire.RelayStatus, 5)...)
				w.rows.CrashAt(0, nil)
				w.cfg.Disk.CrashAt(0, nil)
				done = w.rows.Steps()-rows < n
				if name == "spool" {
					done = w.cfg.Disk.Steps()-slots < n
				}
				w.rows.Crash()
				w.cfg.Disk.Crash()
				w.reopen()
				c = w.caller()
				there := 0
				at := func(handle []byte, i uint32) bool {
					a := c.ask(getBlob(handle, i))
					if a.Status == isOK {
						there++
						if !bytes.Equal(a.GetChunk().Chunk, chunk) {
							t.Error("another chunk")
						}
					}
					return a.Status == isOK
				}
				first, second := at(gone, 1), at(gone, 0)
				dropping := acked[2] == isOK // and perhaps done
				if acked[0] == isOK && !first && !dropping || acked[3] == isOK && (first || second) {
					t.Errorf("the dropped blob: %v, %v", first, second)
				}
				if kept := at(stays, 0); acked[1] == isOK && !kept {
					t.Error("an acknowledged chunk is lost")
				}
				if kept := at(stays, 2); acked[4] == isOK && !kept {
					t.Error("an acknowledged chunk is lost")
				}
				if n := w.Status().Spool.Entries; n != there+1 {
					t.Errorf("%d entries, want %d chunks and the store ID", n, there)
				}
				if t.Failed() {
					t.Fatalf("after a crash at boundary %d", n)
				}
			}
		})
	}
}

// The names of a blob in the store and in the spool are not its handle.
func TestHandleIsNotKept(t *testing.T) {
	w := newWorld(t, roomForBlobs)
	c := w.caller()
	b, handle := c.queue(box), blob(32)
	c.want(isOK, putBlob(b, handle, 0, 1, blob(protocol.BlobChunk), start.Add(time.Hour)))
	for name := range w.blobs {
		if bytes.Equal(name[:], handle) {
			t.Error("the handle is the blob's name")
		}
	}
	for _, q := range w.spool.Queues() {
		if q == spool.Queue(handle) {
			t.Error("the handle is a chunk's name")
		}
	}
}
