package relay

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"starling/node/relay/spool"
	"starling/node/store"
	"starling/node/stream"
	"starling/protocol"
	"starling/protocol/envelope"
	"starling/protocol/identity"
	"starling/protocol/relay"
)

// expireEvery is the pause between two looks for what is over.
const expireEvery = 10 * time.Minute

// expireBoxes is the pause between two looks through the keys, records and blobs
// of all boxes, which read and write each box: they end at the end of a day, or
// are not given out when they are over.
const expireBoxes = 3 * time.Hour

// ErrClosed means that the service was closed.
var ErrClosed = errors.New("relay: closed")

// A Service is a relay. Its methods are safe for concurrent use.
type Service struct {
	cfg      Config
	log      *slog.Logger
	now      func() time.Time
	self     identity.Transport
	db       *store.DB
	spool    *spool.Spool
	storeID  [relay.StoreIDSize]byte
	blockID  [sha256.Size]byte // key of the hashes of address blocks
	traffic  *traffic
	counters counters
	records  atomic.Bool // some were left since the last look

	closing chan struct{} // closed by Close
	once    sync.Once
	closed  error
	running sync.WaitGroup // calls of Run

	mu        sync.Mutex // guards what follows; never held across a wait or the disk
	ended     bool
	queues    map[relay.QueueID]*queue
	shares    map[string]*share // by the share of a queue's row
	anybody   share             // all of those of address blocks
	coming    map[relay.Leaf]*deposit
	making    int   // queues on their way into the store
	boxes     int64 // bytes in contact boxes
	toBoxes   int64 // on their way there
	blobs     map[blobName]*shelved
	shelf     int64                    // bytes of blobs, each counted whole
	shelving  map[spool.Queue]struct{} // chunks on their way into the spool
	draining  int64                    // unix seconds, or 0
	streams   int
	attached  int
	dialling  int      // back, requests
	free      int      // bytes of the memory for requests and answers
	stamps    int      // of deposits, in all queues
	keyStamps stamps   // of requests for one-time keys
	filling   pressure // of all contact boxes
	emptying  pressure // of all pools
	blocks    map[netip.Prefix]*block
	others    *block // those there is no room for
	swept     time.Time
	boxed     int64 // unix seconds; the last look through what boxes hold beside messages
}

// New opens a relay: it reads the store and the spool, makes them agree, and
// serves nothing before Run. PutRecords without [Config.Publish], and DialBack
// without [Config.DialBack], are MALFORMED here.
//
// The errors are the config's, the spool's and the store's. After one nothing
// it started is left running.
func New(cfg Config) (_ *Service, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	raw, err := cfg.Key.GetPublic().Raw()
	if err != nil {
		return nil, fmt.Errorf("reading the relay's key: %w", err)
	}
	self, err := identity.ParseTransport(raw)
	if err != nil {
		return nil, fmt.Errorf("reading the relay's key: %w", err)
	}
	s := &Service{
		cfg:       cfg,
		log:       cfg.Log,
		now:       cfg.Now,
		self:      self,
		db:        cfg.Store,
		traffic:   newTraffic(cfg.Traffic, cfg.Rate),
		closing:   make(chan struct{}),
		queues:    map[relay.QueueID]*queue{},
		shares:    map[string]*share{},
		coming:    map[relay.Leaf]*deposit{},
		blobs:     map[blobName]*shelved{},
		shelving:  map[spool.Queue]struct{}{},
		free:      cfg.Limits.Memory,
		keyStamps: stamps{},
		blocks:    map[netip.Prefix]*block{},
	}
	s.others = s.newBlock(netip.Prefix{})
	sealed := envelope.SealedSizes()
	sc := spool.Config{Dir: cfg.Dir, Sizes: append(sealed[:], protocol.BlobChunk), Quota: cfg.Quota, Attest: s.attest, Now: cfg.Now}
	if cfg.Disk != nil {
		s.spool, err = spool.OpenMemory(sc, cfg.Disk)
	} else {
		s.spool, err = spool.Open(sc)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the spool: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.spool.Close())
		}
	}()
	if err := s.loadState(); err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	if err := s.loadQueues(); err != nil {
		return nil, fmt.Errorf("reading the queues: %w", err)
	}
	return s, nil
}

// marker is the queue whose one entry is the store ID, in the spool. No reader
// key has this hash.
var marker = spool.Queue(sha256.Sum256([]byte("starling relay: store ID")))

// loadState reads the state, and draws another store ID if the spool is not the
// one that belongs to the store.
func (s *Service) loadState() error {
	state := new(store.RelayState)
	if err := s.db.View(func(tx *store.Tx) error {
		row, err := store.RelayStates.Get(tx, store.RelayStateKey())
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		state = row
		return err
	}); err != nil {
		return err
	}
	agree := len(state.Store) == relay.StoreIDSize && len(state.Blocks) == sha256.Size
	old := s.spool.List(marker, 0, 2)
	if agree {
		agree = len(old) == 1
	}
	if agree {
		b, err := s.spool.Read(marker, old[0].ID, nil)
		agree = err == nil && [relay.StoreIDSize]byte(b) == [relay.StoreIDSize]byte(state.Store)
	}
	s.traffic.month, s.traffic.spent = state.Month, state.Traffic
	if !agree {
		if len(state.Store) > 0 {
			s.log.Warn("messages or queues were lost since the last run; the store ID changes")
		}
		if err := s.newStore(state); err != nil {
			return err
		}
	}
	s.storeID, s.blockID = [relay.StoreIDSize]byte(state.Store), [sha256.Size]byte(state.Blocks)
	s.draining = state.Draining
	return s.writeTraffic(false)
}

// newStore draws a store ID. It is in the spool first: after a crash in between
// the two differ still, and another is drawn.
func (s *Service) newStore(state *store.RelayState) error {
	id, key := make([]byte, relay.StoreIDSize), make([]byte, sha256.Size)
	rand.Read(id)
	rand.Read(key)
	ctx := context.Background()
	if err := s.spool.Drop(ctx, marker); err != nil {
		return err
	}
	if _, err := s.spool.Put(ctx, []spool.Entry{{Queue: marker, Expires: math.MaxInt64, Blob: id}}); err != nil {
		return err
	}
	state.Store = id
	if len(state.Blocks) == 0 {
		state.Blocks = key
	}
	return s.db.Update(func(tx *store.Tx) error {
		return store.RelayStates.Put(tx, store.RelayStateKey(), proto.CloneOf(state))
	})
}

// changeState changes the state's row.
func (s *Service) changeState(fn func(*store.RelayState)) error {
	return s.db.Update(func(tx *store.Tx) error {
		row, err := store.RelayStates.Get(tx, store.RelayStateKey())
		if err != nil {
			return err
		}
		fn(row)
		return store.RelayStates.Put(tx, store.RelayStateKey(), row)
	})
}

// writeTraffic writes what the month may come to until the next time, or at the
// end what it has come to.
func (s *Service) writeTraffic(end bool) error {
	month, ahead := s.traffic.next(s.now())
	if end {
		ahead = s.traffic.used(s.now())
	}
	if err := s.changeState(func(row *store.RelayState) { row.Month, row.Traffic = month, ahead }); err != nil {
		return err
	}
	s.traffic.wrote(month, ahead)
	return nil
}

// loadQueues reads the queues and blobs, and drops the entries of those that are
// gone.
func (s *Service) loadQueues() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.db.View(func(tx *store.Tx) error {
		for row, err := range store.RelayQueues.Scan(tx, nil, nil) {
			if errors.Is(err, store.ErrDamaged) {
				s.log.Warn("a queue is damaged; it is lost", "error", err)
				continue
			}
			if err != nil {
				return err
			}
			s.measureLocked(s.addLocked(relay.QueueID(row.Key), row.Value))
		}
		return s.loadBlobsLocked(tx)
	}); err != nil {
		return err
	}
	all := s.spool.Queues()
	left := make(map[spool.Queue]bool, len(all))
	for _, id := range all {
		left[id] = s.queues[relay.QueueID(id)] == nil && id != marker
	}
	for name, b := range s.blobs {
		for i := range b.count {
			delete(left, name.chunk(i))
		}
	}
	return s.spool.Drop(context.Background(), slices.DeleteFunc(all, func(id spool.Queue) bool { return !left[id] })...)
}

// attest signs a group of deposits that is on the disk. Without a signature
// nobody gets a receipt, and each is asked to deposit again.
func (s *Service) attest(leaves []spool.Leaf) func(i int) any {
	ls := make([]relay.Leaf, len(leaves))
	for i, l := range leaves {
		ls[i] = relay.Leaf(l)
	}
	g, err := relay.SignGroup(ls, s.now(), s.cfg.Key)
	if err != nil {
		s.log.Error("signing receipts", "error", err)
		return func(int) any { return nil }
	}
	s.counters.group(len(leaves))
	return func(i int) any { return g.Receipt(i).Wire() }
}

// Run serves streams until ctx ends or the service is closed, deletes what is
// over and publishes what is due. When it returns, all that it started has
// ended, and it may be called again.
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return ErrClosed
	}
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	l := s.cfg.Limits
	remove := stream.Handle(s.cfg.Host, protocol.StreamRelay, stream.Limits{
		Peer:     l.Peer,
		Streams:  l.Streams,
		Base:     1,
		PeerRate: 1 << 17, // limited by address block instead
		Rate:     1 << 18,
		Memory:   l.Memory,
		Block:    blockOf,
	}, s.serve)
	defer remove()
	var publishing sync.WaitGroup
	defer publishing.Wait()
	defer cancel()
	if s.cfg.Publish != nil {
		publishing.Go(func() { s.publish(ctx) })
	}
	every := time.NewTicker(expireEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.closing:
			return nil
		case <-s.traffic.write:
			if err := s.writeTraffic(false); err != nil {
				s.log.Warn("writing the month's traffic", "error", err)
			}
		case <-every.C:
			if err := s.expire(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("deleting what is over", "error", err)
			}
		}
	}
}

// Drain makes the relay take nothing new from now on, and say that it will stop
// at until, also after a restart; the zero time takes it back.
func (s *Service) Drain(until time.Time) error {
	at := int64(0)
	if !until.IsZero() {
		at = max(until.Unix(), 1)
	}
	if err := s.changeState(func(row *store.RelayState) { row.Draining = at }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = at
	return nil
}

// Close ends Run, waits for it, and closes the spool. The store stays open.
// Calling it again returns the same.
func (s *Service) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		s.ended = true
		s.mu.Unlock()
		close(s.closing)
		s.running.Wait()
		err := s.writeTraffic(true)
		if errors.Is(err, store.ErrClosed) {
			err = nil // what is written is ahead
		}
		s.closed = errors.Join(err, s.spool.Close())
	})
	return s.closed
}
