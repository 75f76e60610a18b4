package dht

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"starling/dht/record"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// The record stream (SPEC §9): one request, one answer.
const (
	recordService = "starling.record"

	maxKeys          = 6                                    // a day and its neighbours, two replicas
	maxRecordRequest = maxKeys * (2 + record.KeySize)       // bytes
	maxRecordAnswer  = maxKeys * (4 + protocol.MaxRecord)   // bytes
	recordMemory     = maxRecordRequest + 2*maxRecordAnswer // bytes reserved for an exchange

	serveTimeout = 10 * time.Second // for reading the request and writing the answer
	fetchTimeout = 15 * time.Second // for the whole exchange, the dial included

	streamsByPeer = 4  // exchanges at once
	streamsInAll  = 64 // exchanges at once
)

var (
	recordsByPeer    = limit{rate: 0.5, burst: 30}
	recordsByNetwork = limit{rate: 2, burst: 120}
)

// serving counts the exchanges under way.
type serving struct {
	mu    sync.Mutex // guards the rest
	peers map[peer.ID]int
	all   int
}

// enter reports whether p may have one more exchange; leave ends it.
func (s *serving) enter(p peer.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= streamsInAll || s.peers[p] >= streamsByPeer {
		return false
	}
	s.all++
	s.peers[p]++
	return true
}

func (s *serving) leave(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.peers[p]--; s.peers[p] == 0 {
		delete(s.peers, p)
	}
}

// serveRecords answers one request on the record stream. Whatever is wrong with
// it, the stream is reset and the reason is not given.
func (d *DHT) serveRecords(s network.Stream) {
	_, end, err := d.begin(d.ctx)
	if err != nil {
		s.Reset()
		return
	}
	defer end()
	if err := d.answer(s); err != nil {
		d.log.Debug("record request refused", "err", err)
		s.Reset()
		return
	}
	s.Close()
}

func (d *DHT) answer(s network.Stream) error {
	p := s.Conn().RemotePeer()
	if !acceptable(p) || !d.serving.enter(p) {
		return errRefused
	}
	defer d.serving.leave(p)
	if !d.records.allow(s.Conn()) {
		return errRefused
	}
	if err := s.Scope().SetService(recordService); err != nil {
		return fmt.Errorf("attaching to the service: %w", err)
	}
	if err := s.Scope().ReserveMemory(recordMemory, network.ReservationPriorityMedium); err != nil {
		return fmt.Errorf("reserving memory: %w", err)
	}
	defer s.Scope().ReleaseMemory(recordMemory)
	if err := s.SetDeadline(time.Now().Add(serveTimeout)); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	defer context.AfterFunc(d.ctx, func() { s.Reset() })()

	b, err := wire.ReadFrame(bufio.NewReader(s), maxRecordRequest)
	if err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	keys, err := parseRequest(b)
	if err != nil {
		return err
	}
	return wire.WriteFrame(s, wire.Marshal(&wire.RecordAnswer{Records: d.have(keys)}))
}

var errRefused = errors.New("dht: refused before reading")

// parseRequest returns the keys of an encoded request.
func parseRequest(b []byte) ([][record.KeySize]byte, error) {
	var m wire.RecordRequest
	if err := wire.Parse(b, maxRecordRequest, &m); err != nil {
		return nil, err
	}
	if len(m.Keys) == 0 || len(m.Keys) > maxKeys {
		return nil, fmt.Errorf("%w: %d keys", wire.ErrMalformed, len(m.Keys))
	}
	keys := make([][record.KeySize]byte, len(m.Keys))
	for i, k := range m.Keys {
		if len(k) != record.KeySize {
			return nil, fmt.Errorf("%w: a key of %d bytes", wire.ErrMalformed, len(k))
		}
		keys[i] = [record.KeySize]byte(k)
	}
	return keys, nil
}

// have returns the records under keys that are our own or held for others, at
// most one for each key.
func (d *DHT) have(keys [][record.KeySize]byte) [][]byte {
	own := make(map[[record.KeySize]byte][]byte)
	if d.cfg.Own != nil {
		for _, rec := range d.cfg.Own() {
			own[record.KeyOf(rec)] = rec
		}
	}
	var recs [][]byte
	for i, k := range keys {
		if slices.Contains(keys[:i], k) {
			continue // asked for twice, given once
		}
		rec, ok := own[k]
		if !ok {
			rec, ok = d.store.get(k)
		}
		if ok {
			recs = append(recs, rec)
		}
	}
	return recs
}

// Fetch asks p for the records of the account a with the lookup secret l, and
// returns the newest that is not below highest. p must be connected, or its
// address known to the host. The error is [ErrNotFound] or [ErrStale] if p
// answered without such a record, [ErrClosed], or that of the exchange. To a
// peer that was not given the link, the keys asked for mean nothing.
func (d *DHT) Fetch(ctx context.Context, p peer.ID, a identity.Account, l identity.LookupSecret, highest record.Version) (record.Body, error) {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return record.Body{}, err
	}
	defer end()
	now := d.cfg.Now()
	recs, err := d.fetch(ctx, p, keysOf(a, l, record.DayOf(now), record.DayOf(now)-1, record.DayOf(now)+1))
	if err != nil {
		return record.Body{}, fmt.Errorf("fetching a record: %w", err)
	}
	b := best{account: a, lookup: l, highest: highest}
	for _, rec := range recs {
		b.offer(rec, now)
	}
	return b.result()
}

func (d *DHT) fetch(ctx context.Context, p peer.ID, keys [][record.KeySize]byte) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	// A record is small enough for a circuit, and the peer may be reachable
	// through nothing else.
	s, err := d.host.NewStream(network.WithAllowLimitedConn(ctx, recordService), p, protocol.StreamRecord)
	if err != nil {
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	recs, err := exchange(s, keys)
	if err != nil {
		s.Reset()
		return nil, err
	}
	// The exchange is complete. Over QUIC a server that has closed its side
	// makes our close fail.
	s.Close()
	return recs, nil
}

func exchange(s network.Stream, keys [][record.KeySize]byte) ([][]byte, error) {
	if err := s.Scope().SetService(recordService); err != nil {
		return nil, fmt.Errorf("attaching to the service: %w", err)
	}
	if err := s.Scope().ReserveMemory(recordMemory, network.ReservationPriorityMedium); err != nil {
		return nil, fmt.Errorf("reserving memory: %w", err)
	}
	defer s.Scope().ReleaseMemory(recordMemory)
	if err := s.SetDeadline(time.Now().Add(fetchTimeout)); err != nil {
		return nil, fmt.Errorf("setting a deadline: %w", err)
	}
	m := new(wire.RecordRequest)
	for _, k := range keys {
		m.Keys = append(m.Keys, k[:])
	}
	if err := wire.WriteFrame(s, wire.Marshal(m)); err != nil {
		return nil, fmt.Errorf("writing a request: %w", err)
	}
	b, err := wire.ReadFrame(bufio.NewReader(s), maxRecordAnswer)
	if err != nil {
		return nil, fmt.Errorf("reading an answer: %w", err)
	}
	return parseAnswer(b)
}

// parseAnswer returns the records of an encoded answer, none of them checked.
func parseAnswer(b []byte) ([][]byte, error) {
	var m wire.RecordAnswer
	if err := wire.Parse(b, maxRecordAnswer, &m); err != nil {
		return nil, err
	}
	if len(m.Records) > maxKeys {
		return nil, fmt.Errorf("%w: %d records", wire.ErrMalformed, len(m.Records))
	}
	return m.Records, nil
}
