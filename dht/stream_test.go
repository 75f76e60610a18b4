package dht

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	ma "github.com/multiformats/go-multiaddr"

	"starling/dht/record"
	"starling/protocol"
	"starling/protocol/wire"
)

func frame(b []byte) []byte {
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

func request(keys ...[]byte) []byte { return wire.Marshal(&wire.RecordRequest{Keys: keys}) }

// Every node serves its own records and those it stores, to whoever knows the
// key.
func TestFetchFromOneself(t *testing.T) {
	alice, bob := newAccount(t, "alice"), newAccount(t, "bob")
	own := [][]byte{alice.today(0, 1, 3).Bytes, alice.record(record.DayOf(time.Now())+1, 1, 1, 0).Bytes}
	server := node(t, func(cfg *Config) {
		cfg.Mode = ModeClient // the record stream is not Kademlia
		cfg.Own = func() [][]byte { return own }
	})
	r := bob.today(1, 1, 1)
	if err := server.store.put(r.Key, r.Bytes, time.Now()); err != nil {
		t.Fatal(err)
	}
	asker := node(t, nil)
	connect(t, asker.host, server.host)
	p := server.host.ID()
	body, err := asker.Fetch(t.Context(), p, alice.id(), alice.lookup, record.Version{})
	if err != nil || body.Day != record.DayOf(time.Now())+1 {
		t.Errorf("its own record: day %d, %v; want tomorrow's, which is newer", body.Day, err)
	}
	if _, err := asker.Fetch(t.Context(), p, bob.id(), bob.lookup, record.Version{}); err != nil {
		t.Errorf("a record it stores: %v", err)
	}
	if _, err := asker.Fetch(t.Context(), p, alice.id(), bob.lookup, record.Version{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("without the lookup secret: %v, want ErrNotFound", err)
	}
	if _, err := asker.Fetch(t.Context(), newHost(t).ID(), alice.id(), alice.lookup, record.Version{}); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("from a peer without an address: %v, want an error of the network", err)
	}
}

// Over QUIC the server's close cancels what the asker still writes, which must
// not cost the asker a good answer.
func TestFetchOverQUIC(t *testing.T) {
	quic := func(cfg *Config) {
		h, err := libp2p.New(
			libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1"), libp2p.Transport(libp2pquic.NewTransport),
			libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.DisableIdentifyAddressDiscovery(), libp2p.Ping(false),
		)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		cfg.Host = h
	}
	alice := newAccount(t, "alice")
	server := node(t, func(cfg *Config) {
		quic(cfg)
		cfg.Own = func() [][]byte { return [][]byte{alice.today(0, 1, 1).Bytes} }
	})
	asker := node(t, quic)
	connect(t, asker.host, server.host)
	for i := range 20 {
		if _, err := asker.Fetch(t.Context(), server.host.ID(), alice.id(), alice.lookup, record.Version{}); err != nil {
			t.Fatalf("fetch %d: %v", i, err)
		}
	}
}

func TestMalformedRecordRequestsAreReset(t *testing.T) {
	alice := newAccount(t, "alice")
	own := [][]byte{alice.today(0, 1, 1).Bytes}
	d := node(t, func(cfg *Config) {
		cfg.unlimited = true
		cfg.Own = func() [][]byte { return own }
	})
	h := newHost(t)
	connect(t, h, d.host)
	key := record.Key(alice.id(), alice.lookup, record.DayOf(time.Now()), 0)
	k := key[:]
	ask := func(b []byte) (answer []byte, err error) {
		t.Helper()
		s, err := h.NewStream(t.Context(), d.host.ID(), protocol.StreamRecord)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Reset()
		s.SetDeadline(time.Now().Add(patience))
		if _, err := s.Write(b); err != nil {
			return nil, err
		}
		s.CloseWrite()
		return wire.ReadFrame(s, maxRecordAnswer)
	}

	for what, b := range map[string][]byte{
		"nothing":                         nil,
		"no keys":                         frame(nil),
		"seven keys":                      frame(request(k, k, k, k, k, k, k)),
		"a short key":                     frame(request(k[:31])),
		"a long key":                      frame(request(append(bytes.Clone(k), 0))),
		"an empty key":                    frame(request(k, nil)),
		"half a frame":                    frame(request(k))[:20],
		"not protobuf":                    frame([]byte{0xff, 0xff, 0xff}),
		"a group":                         frame([]byte{0x0b, 0x0c}),
		"another wire type":               frame([]byte{0x08, 1}),
		"a frame of 1 GiB":                {0x80, 0x80, 0x80, 0x80, 0x04},
		"a length without end":            bytes.Repeat([]byte{0xff}, 64),
		"a length that is padded":         append([]byte{0xa2, 0x00}, request(k)...),
		"unknown fields beyond the bound": frame(append(request(k), bytes.Repeat([]byte{0x78, 1}, 200)...)),
		"a Kademlia request":              frame([]byte("\x08\x04\x12\x20" + string(k))),
	} {
		if b, err := ask(b); err == nil {
			t.Errorf("%s: answered with %d bytes", what, len(b))
		} else if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: neither answered nor reset", what)
		}
	}

	// And it still answers: one key, six, one six times, with an unknown field.
	for what, test := range map[string]struct {
		b    []byte
		want int
	}{
		"one key":          {request(k), 1},
		"six keys":         {request(k, make([]byte, 32), k, k, k, k), 1},
		"an unknown key":   {request(make([]byte, 32)), 0},
		"an unknown field": {append(request(k), 0x78, 1), 1},
	} {
		b, err := ask(frame(test.b))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if recs, err := parseAnswer(b); err != nil || len(recs) != test.want {
			t.Errorf("%s: %d records, %v; want %d", what, len(recs), err, test.want)
		}
	}
}

// Answers from a hostile peer.
func TestMalformedRecordAnswersAreRefused(t *testing.T) {
	alice := newAccount(t, "alice")
	d := node(t, nil)
	h := newHost(t)
	connect(t, d.host, h)
	rec := alice.today(0, 1, 1).Bytes
	answer := func(recs ...[]byte) []byte { return frame(wire.Marshal(&wire.RecordAnswer{Records: recs})) }
	for what, test := range map[string]struct {
		b        []byte
		notFound bool // as if it had none, not an error of the exchange
	}{
		"nothing":           {nil, false},
		"a frame of 1 GiB":  {[]byte{0x80, 0x80, 0x80, 0x80, 0x04}, false},
		"seven records":     {answer(rec, rec, rec, rec, rec, rec, rec), false},
		"not protobuf":      {frame([]byte{0xff}), false},
		"none":              {answer(), true},
		"an empty record":   {answer(nil), true},
		"another's records": {answer(newAccount(t, "bob").today(0, 1, 1).Bytes), true},
		"a cut record":      {answer(rec[:4000]), true},
		"too old":           {answer(alice.record(record.DayOf(time.Now())-2, 0, 1, 1).Bytes), true},
	} {
		h.SetStreamHandler(protocol.StreamRecord, func(s network.Stream) {
			s.Write(test.b)
			s.Close()
		})
		_, err := d.Fetch(t.Context(), h.ID(), alice.id(), alice.lookup, record.Version{})
		if err == nil || errors.Is(err, ErrNotFound) != test.notFound {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A good one among bad ones is found.
	h.SetStreamHandler(protocol.StreamRecord, func(s network.Stream) {
		s.Write(answer(nil, rec[:4000], newAccount(t, "bob").today(0, 1, 1).Bytes, rec))
		s.Close()
	})
	if _, err := d.Fetch(t.Context(), h.ID(), alice.id(), alice.lookup, record.Version{}); err != nil {
		t.Error(err)
	}
}

func TestRecordStreamLimits(t *testing.T) {
	alice := newAccount(t, "alice")
	d, asker := node(t, nil), node(t, nil)
	connect(t, asker.host, d.host)
	begun := time.Now()
	answered := 0
	for range 60 {
		if _, err := asker.Fetch(t.Context(), d.host.ID(), alice.id(), alice.lookup, record.Version{}); errors.Is(err, ErrNotFound) {
			answered++
		}
	}
	if most := recordsByPeer.burst + recordsByPeer.rate*time.Since(begun).Seconds(); answered < int(recordsByPeer.burst) || answered > int(most) {
		t.Errorf("%d of 60 requests answered, want %v to %v", answered, recordsByPeer.burst, most)
	}

	var s serving
	s.peers = map[peer.ID]int{}
	for i := range 100 {
		if got, want := s.enter("a"), i < streamsByPeer; got != want {
			t.Errorf("stream %d of one peer: %v", i, got)
		}
	}
	n := streamsByPeer
	for i := range 1000 {
		if s.enter(peer.ID([]byte{byte(i), byte(i >> 8)})) {
			n++
		}
	}
	if n != streamsInAll {
		t.Errorf("%d streams at once, want %d", n, streamsInAll)
	}
	s.leave("a")
	if !s.enter("b") {
		t.Error("no place after one became free")
	}
}

// A pipeStream is a stream over net.Pipe, whose deadlines follow virtual time.
type pipeStream struct {
	network.Stream
	pipe net.Conn
}

func (s *pipeStream) Read(b []byte) (int, error)    { return s.pipe.Read(b) }
func (s *pipeStream) Write(b []byte) (int, error)   { return s.pipe.Write(b) }
func (s *pipeStream) Reset() error                  { return s.pipe.Close() }
func (s *pipeStream) SetDeadline(t time.Time) error { return s.pipe.SetDeadline(t) }
func (s *pipeStream) Scope() network.StreamScope    { return &network.NullScope{} }
func (s *pipeStream) Conn() network.Conn            { return pipeConn{} }

type pipeConn struct{ network.Conn }

func (pipeConn) RemotePeer() peer.ID { return testSelf }
func (pipeConn) RemoteMultiaddr() ma.Multiaddr {
	return ma.StringCast("/ip4/192.0.2.1/tcp/1")
}

// Who opens a stream and says nothing, or reads nothing, is gone after ten
// seconds.
func TestSilentRecordStreamIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &DHT{records: newGate(recordsByPeer, recordsByNetwork), serving: serving{peers: map[peer.ID]int{}}, store: newStore(testSelf, 1<<20)}
		d.ctx, d.cancel = context.WithCancel(t.Context())
		defer d.cancel()
		for what, send := range map[string][]byte{"says nothing": nil, "half a frame": {34, 10, 32, 1}, "reads no answer": frame(request(make([]byte, 32)))} {
			ours, theirs := net.Pipe()
			if send != nil {
				go theirs.Write(send)
			}
			begun := time.Now()
			err := d.answer(&pipeStream{pipe: ours})
			if took := time.Since(begun); err == nil || took != serveTimeout {
				t.Errorf("%s: %v after %v, want an error after %v", what, err, took, serveTimeout)
			}
			ours.Close()
			theirs.Close()
			if d.serving.all != 0 || len(d.serving.peers) != 0 {
				t.Errorf("%s: still counted", what)
			}
		}
	})
}

func FuzzRecordRequest(f *testing.F) {
	f.Add(request(make([]byte, 32)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := parseRequest(b)
		if err == nil && (len(keys) == 0 || len(keys) > maxKeys) {
			t.Fatalf("%d keys accepted", len(keys))
		}
		if err != nil && !errors.Is(err, wire.ErrMalformed) {
			t.Fatal(err)
		}
	})
}

func FuzzRecordAnswer(f *testing.F) {
	a := newAccount(f, "alice")
	now := time.Now()
	f.Add(wire.Marshal(&wire.RecordAnswer{Records: [][]byte{a.today(0, 1, 1).Bytes}}))
	f.Add([]byte{0x0a, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		recs, err := parseAnswer(b)
		if err != nil && !errors.Is(err, wire.ErrMalformed) {
			t.Fatal(err)
		}
		if len(recs) > maxKeys {
			t.Fatalf("%d records accepted", len(recs))
		}
		best := best{account: a.id(), lookup: a.lookup}
		for _, r := range recs {
			best.offer(r, now)
		}
		if len(b) > maxRecordAnswer && err == nil {
			t.Fatal("an answer above the bound accepted")
		}
		if _, err := wire.ReadFrame(bytes.NewReader(b), maxRecordAnswer); err == nil && len(b) == 0 {
			t.Fatal(io.ErrUnexpectedEOF)
		}
	})
}
