// Package dht publishes, finds and holds account records (dht/record) in
// Starling's own Kademlia network, /starling/kad/1.0.0 (SPEC §10), and over the
// record stream, /starling/record/1 (SPEC §9). It is the only importer of
// kad-dht.
//
// [New] joins nothing yet: [DHT.Run] dials bootstrap addresses and remembered
// peers, again and again until some answer, and remembers good ones.
// [DHT.RunPublisher] keeps our records in the network. [DHT.Lookup] asks the
// network, [DHT.Fetch] asks one peer. All may be called at once; [DHT.Close]
// ends and waits for all.
//
// What others may do to us is bounded. Records of others are held in memory, 64
// MiB of them, those nearest to our own ID. PUTs, requests and streams are
// limited by peer and by network; identities other than Ed25519 are refused.
// Our address book is not readable through FIND_NODE, and private addresses are
// told to nobody unless Config says so.
//
// The DHT promises little. Holders can withhold a record or serve an older one
// of the same day, so readers pass the highest version they have seen, and
// nothing lower comes back. Holders see the IP address and peer ID of who
// publishes and who asks.
//
// What it does not do: decide what is in a record (node), remember versions
// (node), or open pre-key bundles (protocol/prekey).
package dht

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"

	"starling/dht/record"
	"starling/protocol"
)

// Kademlia's parameters. Those that kad-dht has defaults for keep them.
const (
	defaultTable  = 20                 // k: holders of a record, peers in a bucket
	maxRecordAge  = 72 * time.Hour     // a record is valid on the day before, its day and the day after
	defaultBytes  = 64 << 20           // bound of the record store
	perNetwork    = 3                  // peers of one IP group in the routing table
	perBucket     = 2                  // and at one distance
	sweepEvery    = time.Hour          // between removals of records past their days
	kadProtocol   = "/kad/1.0.0"       // what kad-dht appends to the prefix
	maxRequestKey = 2 * record.KeySize // bytes of the key of any request: a record's key, or a peer ID
)

// What one peer and one network may ask of us. A publisher puts two records
// every six hours, four near midnight; a relay does so for many accounts, and a
// holder sees its share of them.
var (
	putsByPeer        = limit{rate: 1, burst: 60}
	putsByNetwork     = limit{rate: 4, burst: 240}
	requestsByPeer    = limit{rate: 20, burst: 400}
	requestsByNetwork = limit{rate: 100, burst: 2000}
)

// ErrClosed means that Close has been called.
var ErrClosed = errors.New("dht: closed")

// ErrNoPeers means that we know nobody in the network. Run is trying to change
// that; try again later, or ask the user for a bootstrap address.
var ErrNoPeers = errors.New("dht: connected to nobody in the network")

// ErrNotFound means that nobody who answered has a readable record of the
// account. Try again later: the owner may not have published yet.
var ErrNotFound = errors.New("dht: no record found")

// ErrStale means that only records below the highest version seen were found:
// the holders have not got the newest, or are offering an old one. Keep what is
// known and try again later. It is an [ErrNotFound] too.
var ErrStale = fmt.Errorf("%w that is as new as one seen before", ErrNotFound)

// A Mode says whether we hold records for others.
type Mode int

const (
	// ModeAuto serves unless AutoNAT finds that nobody can reach us. Until it
	// has found out, and on a network without it, we serve.
	ModeAuto   Mode = iota
	ModeServer      // always serves: relays, tests, demonstrations
	ModeClient      // never serves
)

// A PeerStore remembers good peers across restarts, so that a restart needs no
// bootstrap address. Both are called from one goroutine.
type PeerStore interface {
	// LoadPeers returns what SavePeers was given last.
	LoadPeers() ([]peer.AddrInfo, error)
	// SavePeers replaces what is remembered; there are at most 32 peers with at
	// most 8 addresses each.
	SavePeers([]peer.AddrInfo) error
}

// Config says how a [DHT] is made.
type Config struct {
	// Host is the node's libp2p host. It must outlive the DHT. Required.
	Host host.Host

	// Mode says whether we hold records for others. Default ModeAuto.
	Mode Mode

	// AllowPrivate lets private and loopback addresses pass from peer to peer,
	// for networks that have no others: tests, demonstrations, namespaces.
	// Default false: peers we are connected to are used whatever their
	// addresses, and only public addresses are told on.
	AllowPrivate bool

	// NoDiversity lets many peers of one IP group (an IPv4 /16) into the
	// routing table. A network inside one group needs it; a public one is
	// easier to take over with it. Default false: 3, and 2 at one distance.
	NoDiversity bool

	// Bootstrap lists the peers that lead into the network. [DHT.SetBootstrap]
	// replaces it. Default none.
	Bootstrap []peer.AddrInfo

	// Peers remembers good peers. Default nil: they are forgotten.
	Peers PeerStore

	// Own returns the records of this node's account, which the record stream
	// serves beside those held for others. It is called from many goroutines.
	// Default nil: none.
	Own func() [][]byte

	// OnPublished is told of every publication by RunPublisher, from its
	// goroutine: how many peers hold the record now, and the error of
	// [DHT.Publish]. It must not block. Default nil.
	OnPublished func(r Record, holders int, err error)

	// OnLookup is told how every [DHT.Lookup] went, from its goroutine. It must
	// not block. Default nil: nothing is measured.
	OnLookup func(Report)

	// MaxBytes bounds the records held for others. Default 64 MiB.
	MaxBytes int64

	// Refresh is the pause between refreshes of the routing table. Default 10
	// minutes; negative means never, for large simulations.
	Refresh time.Duration

	// Now is the wall clock by which records are made, asked for and judged.
	// Default time.Now.
	Now func() time.Time

	// Table is Kademlia's k: how many peers a bucket of the routing table has, how
	// many an answer names, and how many hold a record. Everybody in a network
	// should have the same. Fewer make large simulations cheaper, and records
	// easier to lose. Default 20.
	Table int

	// Yield lets the host's connection manager close connections to peers of
	// the routing table, which stay in it and are dialled again when they are
	// asked. Default false: those in the two farthest buckets, 40 at most, are
	// protected, and a server stays above any lower bound that the manager has.
	Yield bool

	// Log takes what happens. Default nil: discard.
	Log *slog.Logger

	unlimited bool // tests only: what one peer may ask of us
}

// A Record is a record and the key it is published under.
type Record struct {
	Key   [record.KeySize]byte
	Bytes []byte
}

// A DHT is this node's part in the network. It is safe for concurrent use.
type DHT struct {
	cfg    Config
	log    *slog.Logger
	host   host.Host
	kadID  libp2p.ID
	kad    *kaddht.IpfsDHT
	sender *sender
	store  *store

	memo record.Memo // of records that were checked

	puts     gate // PUT_VALUE
	requests gate // every Kademlia request
	records  gate // requests on the record stream
	serving  serving

	kick      chan struct{} // to RunPublisher: publish now. Anyone sends; capacity 1, since two wishes are one; never closed.
	rejoin    chan struct{} // to Run: look at the peers now. Likewise.
	published atomic.Int64  // unix nanoseconds of the last success; 0 if none

	bootstrapMu sync.Mutex // guards bootstrap
	bootstrap   []peer.AddrInfo

	ctx    context.Context // ends with Close; see begin
	cancel context.CancelFunc

	mu       sync.Mutex // guards closed, and wg against Add after Wait
	closed   bool
	wg       sync.WaitGroup // operations and handlers under way
	ended    chan struct{}  // closed by the first Close when all has ended; not a sync.Once, whose lock a second Close would wait for
	closeErr error          // written before ended is closed
}

// New makes the node's DHT on cfg.Host. The routing table listens to the host's
// connections from then on, so Close must be called. If New returns an error,
// nothing it started is left running.
func New(cfg Config) (*DHT, error) {
	var errs []error
	if cfg.Host == nil {
		errs = append(errs, errors.New("dht: Config.Host is missing"))
	} else if !acceptable(cfg.Host.ID()) {
		errs = append(errs, errors.New("dht: the host's key is not an Ed25519 key"))
	}
	mode, ok := map[Mode]kaddht.ModeOpt{ModeAuto: kaddht.ModeAutoServer, ModeServer: kaddht.ModeServer, ModeClient: kaddht.ModeClient}[cfg.Mode]
	if !ok {
		errs = append(errs, fmt.Errorf("dht: there is no mode %d", cfg.Mode))
	}
	if cfg.MaxBytes < 0 {
		errs = append(errs, fmt.Errorf("dht: Config.MaxBytes is %d", cfg.MaxBytes))
	}
	if cfg.Table < 0 {
		errs = append(errs, fmt.Errorf("dht: Config.Table is %d", cfg.Table))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Table == 0 {
		cfg.Table = defaultTable
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultBytes
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}

	d := &DHT{
		cfg:       cfg,
		log:       cfg.Log,
		host:      cfg.Host,
		kadID:     protocol.KadPrefix + kadProtocol,
		store:     newStore(cfg.Host.ID(), cfg.MaxBytes),
		puts:      newGate(putsByPeer, putsByNetwork),
		requests:  newGate(requestsByPeer, requestsByNetwork),
		records:   newGate(recordsByPeer, recordsByNetwork),
		serving:   serving{peers: make(map[peer.ID]int)},
		kick:      make(chan struct{}, 1),
		rejoin:    make(chan struct{}, 1),
		bootstrap: slices.Clone(cfg.Bootstrap),
		ended:     make(chan struct{}),
	}
	if cfg.unlimited {
		all := limit{rate: 1e12, burst: 1e12}
		d.puts, d.requests, d.records = newGate(all, all), newGate(all, all), newGate(all, all)
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.sender = &sender{host: d.host, kad: []libp2p.ID{d.kadID}}

	shown := &shownPeers{Peerstore: d.host.Peerstore(), self: d.host.ID(), private: cfg.AllowPrivate}
	kad, err := kaddht.New(&kadHost{Host: d.host, shown: shown, serve: d.serveKad, yield: cfg.Yield}, d.options(mode)...)
	if err != nil {
		d.cancel()
		d.host.RemoveStreamHandler(d.kadID)
		return nil, fmt.Errorf("dht: starting Kademlia: %w", err)
	}
	d.kad = kad
	shown.table.Store(&table{rt: kad.RoutingTable()})
	d.host.SetStreamHandler(protocol.StreamRecord, d.serveRecords)
	return d, nil
}

func (d *DHT) options(mode kaddht.ModeOpt) []kaddht.Option {
	opts := []kaddht.Option{
		kaddht.ProtocolPrefix(protocol.KadPrefix),
		kaddht.Mode(mode),
		kaddht.DisableProviders(),
		kaddht.Validator(validator{d.cfg.Now, &d.memo}),
		kaddht.ValueDatastore(d.store),
		kaddht.Datastore(d.store),
		kaddht.MaxRecordAge(maxRecordAge),
		kaddht.ValueGCInterval(0), // Run sweeps, by day
		kaddht.BucketSize(d.cfg.Table),
		kaddht.OnRequestHook(d.onRequest),
		kaddht.WithCustomMessageSender(func(host.Host, []libp2p.ID) pb.MessageSenderWithDisconnect { return d.sender }),
		kaddht.RoutingTableFilter(func(_ any, p peer.ID) bool { return acceptable(p) }),
		kaddht.QueryFilter(func(_ any, p peer.AddrInfo) bool {
			return acceptable(p.ID) && (d.cfg.AllowPrivate || len(public(p.Addrs)) > 0 ||
				d.host.Network().Connectedness(p.ID) == network.Connected)
		}),
	}
	if !d.cfg.AllowPrivate {
		opts = append(opts, kaddht.AddressFilter(public))
	}
	if !d.cfg.NoDiversity {
		opts = append(opts, kaddht.RoutingTablePeerDiversityFilter(
			kaddht.NewRTPeerDiversityFilter(d.host, perBucket, perNetwork)))
	}
	switch {
	case d.cfg.Refresh > 0:
		opts = append(opts, kaddht.RoutingTableRefreshPeriod(d.cfg.Refresh))
	case d.cfg.Refresh < 0:
		opts = append(opts, kaddht.DisableAutoRefresh())
	}
	return opts
}

// kadKey returns the DHT key of a record's key.
func kadKey(key [record.KeySize]byte) string { return protocol.KadPrefix + "/" + string(key[:]) }

func parseKadKey(s string) (key [record.KeySize]byte, ok bool) {
	const prefix = protocol.KadPrefix + "/"
	if len(s) != len(prefix)+record.KeySize || s[:len(prefix)] != prefix {
		return key, false
	}
	return [record.KeySize]byte([]byte(s[len(prefix):])), true
}

// A validator is what kad-dht asks about records.
type validator struct {
	now  func() time.Time
	memo *record.Memo
}

// Validate implements kad-dht's validator.
func (v validator) Validate(key string, rec []byte) error {
	k, ok := parseKadKey(key)
	if !ok {
		return record.ErrInvalid
	}
	return v.memo.Validate(k, rec, v.now())
}

// Select implements kad-dht's validator.
func (validator) Select(_ string, recs [][]byte) (int, error) {
	i := record.Select(recs)
	if i < 0 {
		return 0, record.ErrInvalid
	}
	return i, nil
}

// onRequest sees every Kademlia request before kad-dht does. It cannot refuse
// one by itself, so it takes away what the handler needs: the handler then
// resets the stream, and the requester learns nothing.
func (d *DHT) onRequest(_ context.Context, s network.Stream, m *pb.Message) {
	if len(m.GetKey()) > maxRequestKey || !d.requests.allow(s.Conn()) {
		m.Type = -1
		return
	}
	if m.GetType() != pb.Message_PUT_VALUE {
		return
	}
	if rec := m.GetRecord(); rec != nil && (len(rec.GetValue()) > protocol.MaxRecord || !d.puts.allow(s.Conn())) {
		m.Record = nil
	}
}

// serveKad runs kad-dht's handler where Close can wait for it.
func (d *DHT) serveKad(s network.Stream, fn network.StreamHandler) {
	_, end, err := d.begin(d.ctx)
	if err != nil || !acceptable(s.Conn().RemotePeer()) {
		s.Reset()
		if err == nil {
			end()
		}
		return
	}
	defer end()
	defer context.AfterFunc(d.ctx, func() { s.Reset() })()
	fn(s)
}

// begin registers an operation that Close ends and waits for. The context it
// returns ends with ctx or with Close; the caller must call end.
func (d *DHT) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, ErrClosed
	}
	d.wg.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		d.wg.Done()
	}, nil
}

// Close ends everything that is under way, waits for it, and takes the handlers
// off the host, which stays open. It is idempotent. Calls after it return
// [ErrClosed].
func (d *DHT) Close() error {
	d.mu.Lock()
	first := !d.closed
	d.closed = true
	d.mu.Unlock()
	if !first {
		<-d.ended
		return d.closeErr
	}
	defer close(d.ended)
	d.cancel()
	d.host.RemoveStreamHandler(protocol.StreamRecord)
	d.host.RemoveStreamHandler(d.kadID)
	if err := d.kad.Close(); err != nil {
		d.closeErr = fmt.Errorf("dht: stopping Kademlia: %w", err)
	}
	// A change of reachability may have put the handler back meanwhile.
	d.host.RemoveStreamHandler(d.kadID)
	d.sender.close()
	d.wg.Wait()
	return d.closeErr
}

// Peers returns the number of peers in the routing table.
func (d *DHT) Peers() int { return d.kad.RoutingTable().Size() }

// Mode returns "server" while we hold records for others, and "client"
// otherwise.
func (d *DHT) Mode() string {
	if slices.Contains(d.host.Mux().Protocols(), d.kadID) {
		return "server"
	}
	return "client"
}

// Held returns the number of records held for others, and the bytes they are
// counted with.
func (d *DHT) Held() (records int, bytes int64) { return d.store.usage() }

// LastPublished returns when a publication last reached at least one peer, or
// the zero time.
func (d *DHT) LastPublished() time.Time {
	if n := d.published.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// wake sends on a channel of capacity 1 whose reader takes two wishes for one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
