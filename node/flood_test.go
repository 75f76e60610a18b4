package node

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	libproto "github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/encoding/protowire"

	"starling/dht/record"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// A live node survives 100,000 mutated frames on every protocol that it speaks
// without growing, and still hears a friend.
func TestMutatedFrames(t *testing.T) {
	total := 100_000
	switch {
	case testing.Short(), raced():
		total = 5_000
	case *long:
		total = 2_000_000
	}
	w := newWorld(t)
	a, b := w.person("Ada"), w.person("Bo", quick)
	a.meet(b)
	b.tell(a, "before")
	a.tell(b, "before, too")
	before := measure()
	corpus, batch := frames(w, a)

	// The hosts stand on many networks, as far as limits by network go.
	const workers, hostsEach = 8, 5
	hosts := make([][]caller, workers)
	for i := range hosts {
		for j := range hostsEach {
			c := w.callerAt(nil, fmt.Sprintf("/ip4/127.%d.0.1/tcp/0", 1+i*hostsEach+j))
			c.dial(w, a)
			hosts[i] = append(hosts[i], c)
		}
	}
	// So little lives here that a third of the time would be collection.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	start := time.Now()
	var sent, answered [len(spoken)]atomic.Int64
	var group sync.WaitGroup
	for i := range workers {
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 42))
			lines := make(map[string]*line)
			defer func() {
				for _, l := range lines {
					l.s.Reset() //nolint:errcheck // it is over
				}
			}()
			for n := range total / workers {
				p := 0 // half of them are envelopes
				if r.IntN(2) == 0 {
					p = 1 + r.IntN(len(spoken)-1)
				}
				h := r.IntN(hostsEach)
				if !slices.Contains(hosts[i][h].Network().Peers(), a.host.ID()) {
					hosts[i][h].dial(w, a) // it was sent away
				}
				frame := mutateFrame(r, corpus[p])
				if p == 0 && r.IntN(4) > 0 {
					frame = mutateEnvelopes(r, batch)
				}
				key := fmt.Sprint(h, p)
				sent[p].Add(1)
				l, ok := lines[key]
				if !ok {
					var err error
					if l, err = hosts[i][h].line(w, a, spoken[p]); err != nil {
						continue // at a limit: refused before it was read
					}
				}
				delete(lines, key)
				ok, whole := l.exchange(frame)
				if ok {
					answered[p].Add(1)
				}
				if ok && whole {
					lines[key] = l
				} else {
					l.s.Reset() //nolint:errcheck // it was refused
				}
				if i == 0 && n%2_000 == 0 {
					b.tell(a, fmt.Sprint("in the middle, ", n))
				}
			}
		})
	}
	group.Wait()
	t.Logf("sent after %v", time.Since(start))
	for i, p := range spoken {
		t.Logf("%s: %d frames, %d of them answered", p, sent[i].Load(), answered[i].Load())
	}
	if answered[0].Load() < sent[0].Load()/2 || answered[2].Load() == 0 || answered[3].Load() == 0 {
		t.Error("most frames were refused before they were read")
	}
	for _, list := range hosts {
		for _, c := range list {
			c.Close()
		}
	}
	b.tell(a, "after")
	a.tell(b, "still here")
	// A few come and go by themselves; what is left of each frame or peer would
	// be hundreds.
	w.eventually("nothing left of it", func() bool { return runtime.NumGoroutine() <= before.goroutines+8 })
	after := measure()
	t.Logf("before: %v; after: %v", before, after)
	const bound = 64 << 20
	if after.heap > before.heap+bound || after.resident > before.resident+bound && !raced() {
		t.Errorf("grown from %v to %v", before, after)
	}
	if got := a.Status(); got.Requests != 0 || got.Contacts != 1 {
		t.Errorf("%d requests and %d contacts came of it", got.Requests, got.Contacts)
	}
}

// raced reports whether the race detector watches, which takes ten times the
// time and five times the memory.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// spoken are the protocols of a node, message first.
var spoken = [...]libproto.ID{protocol.StreamMessage, protocol.StreamPreKey, protocol.StreamRecord, protocol.KadPrefix + "/kad/1.0.0"}

// frames returns valid frames of each protocol, as a person would be sent them,
// and envelopes.
func frames(w *world, p *person) (all [len(spoken)][][]byte, batch [][]byte) {
	w.Helper()
	c, u := w.caller(nil), w.puppet("Mallory")
	defer c.Close()
	c.dial(w, p)
	link, err := identity.ParseLink(p.invite(true))
	if err != nil {
		w.Fatal(err)
	}
	u.begin(p, c.bundles(w, p, link.String()), nil, nil)
	for _, b := range [][]byte{
		u.text(p, "hello"), u.text(p, strings.Repeat("x", 3000)), u.seal(p, envelope.Content{News: u.news()}),
	} {
		// Sent for real, they would make a request; cut short, none opens.
		b = b[:len(b)-1]
		batch = append(batch, b)
		all[0] = append(all[0], wire.Marshal(&wire.Delivery{Envelopes: [][]byte{b}}))
	}
	all[0] = append(all[0], wire.Marshal(&wire.Delivery{Envelopes: batch}), wire.Marshal(&wire.Delivery{Envelopes: slices.Repeat(batch[:1], protocol.MaxBatch)}))

	all[1] = [][]byte{request(make([]byte, 32), make([]byte, 32))}

	var keys [][]byte
	for _, k := range keysOf(p) {
		keys = append(keys, k[:])
	}
	all[2] = [][]byte{wire.Marshal(&wire.RecordRequest{Keys: keys}), wire.Marshal(&wire.RecordRequest{Keys: append(keys, make([]byte, record.KeySize))})}

	rec := p.own.get()[0]
	key := append([]byte(protocol.KadPrefix+"/"), keys[0]...)
	for kind := range 6 { // PUT_VALUE, GET_VALUE, ADD_PROVIDER, GET_PROVIDERS, FIND_NODE, PING
		var inner, m []byte
		inner = protowire.AppendBytes(protowire.AppendTag(inner, 1, protowire.BytesType), key)
		inner = protowire.AppendBytes(protowire.AppendTag(inner, 2, protowire.BytesType), rec)
		m = protowire.AppendVarint(protowire.AppendTag(m, 1, protowire.VarintType), uint64(kind))
		m = protowire.AppendBytes(protowire.AppendTag(m, 2, protowire.BytesType), key)
		if kind == 0 {
			m = protowire.AppendBytes(protowire.AppendTag(m, 3, protowire.BytesType), inner)
		}
		all[3] = append(all[3], m)
	}
	return all, batch
}

// mutateEnvelopes returns a frame that is sound, of envelopes that are not.
func mutateEnvelopes(r *rand.Rand, valid [][]byte) []byte {
	d := new(wire.Delivery)
	for range 1 + r.IntN(4) {
		d.Envelopes = append(d.Envelopes, mutate(r, valid))
	}
	b := wire.Marshal(d)
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

// mutateFrame returns one of the frames, changed, with its length before it,
// which now and then is another.
func mutateFrame(r *rand.Rand, valid [][]byte) []byte {
	body := mutate(r, valid)
	n := uint64(len(body))
	switch r.IntN(20) {
	case 0:
		n = r.Uint64() >> r.IntN(64)
	case 1:
		n += uint64(r.IntN(3)) - 1
	}
	return append(binary.AppendUvarint(nil, n), body...)
}

// mutate returns one of the byte strings, changed.
func mutate(r *rand.Rand, valid [][]byte) []byte {
	body := slices.Clone(valid[r.IntN(len(valid))])
	for range 1 + r.IntN(4) {
		if len(body) == 0 {
			break
		}
		at := r.IntN(len(body))
		switch r.IntN(7) {
		case 0, 1:
			body[at] ^= 1 << r.IntN(8)
		case 2:
			body[at] = byte(r.Uint32())
		case 3:
			body = body[:at]
		case 4: // something twice
			end := at + r.IntN(min(len(body)-at, 64)+1)
			body = slices.Insert(body, at, body[at:end]...)
		case 5: // something gone
			body = slices.Delete(body, at, at+r.IntN(min(len(body)-at, 64)+1))
		case 6: // an end of another
			other := valid[r.IntN(len(valid))]
			body = append(body[:at], other[r.IntN(len(other)):]...)
		}
	}
	return body
}

// A line is a stream on which frames are exchanged.
type line struct {
	s network.Stream
	r *bufio.Reader
}

// line opens a stream, and reads what the other side says first.
func (c caller) line(w *world, p *person, id libproto.ID) (*line, error) {
	s, err := c.NewStream(w.ctx, p.host.ID(), id)
	if err != nil {
		return nil, err
	}
	l := &line{s: s, r: bufio.NewReaderSize(s, 1<<10)}
	if id == protocol.StreamPreKey && !l.read() {
		s.Reset() //nolint:errcheck // it was refused
		return nil, os.ErrClosed
	}
	return l, nil
}

// answerTime bounds what takes a millisecond, however busy the machine is.
const answerTime = 2 * time.Minute

// exchange writes a frame and reports whether an answer came, and whether the
// stream is still good: the frame was as long as it says.
func (l *line) exchange(frame []byte) (ok, whole bool) {
	n, k := binary.Uvarint(frame)
	whole = k > 0 && n == uint64(len(frame)-k)
	if err := l.s.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return false, whole
	}
	if _, err := l.s.Write(frame); err != nil {
		return false, whole
	}
	if !whole { // this is all there will be
		l.s.CloseWrite() //nolint:errcheck // the read tells
	}
	return l.read(), whole
}

// read reads a frame and reports whether there was one.
func (l *line) read() bool {
	if err := l.s.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return false
	}
	_, err := wire.ReadFrame(l.r, protocol.MaxFrame)
	return err == nil
}

// A usage is what this process takes.
type usage struct {
	heap, resident int64 // bytes
	goroutines     int
}

func (u usage) String() string {
	return fmt.Sprintf("heap %d MiB, resident %d MiB, %d goroutines", u.heap>>20, u.resident>>20, u.goroutines)
}

func measure() usage {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u := usage{heap: int64(m.HeapAlloc), goroutines: runtime.NumGoroutine()}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil { // elsewhere the heap has to do
		if f := bytes.Fields(b); len(f) > 1 {
			var pages int64
			if _, err := fmt.Sscan(string(f[1]), &pages); err == nil {
				u.resident = pages * int64(os.Getpagesize())
			}
		}
	}
	return u
}
