package relay

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"starling/node/relay/spool"
	"starling/node/store"
	"starling/protocol"
)

// Admit says who may make queues.
type Admit int

// Anybody with room in the share of their address block; or who has a token of
// [Service.Issue], with room in its share.
const (
	AdmitAnybody Admit = iota
	AdmitTokens
)

// A Record is a DHT record that is due.
type Record struct {
	Key   [32]byte
	Bytes []byte
}

// A Config says what a relay keeps, where, and for whom.
type Config struct {
	// Host serves the streams; its key is the relay's, an Ed25519 key. Required.
	Host host.Host
	// Key is the host's private key: it signs receipts. Required.
	Key crypto.PrivKey
	// Store keeps all but messages. It stays the caller's, who closes it after
	// the service. Required.
	Store *store.DB
	// Dir is the spool's folder; Disk, if set, is a spool in memory instead. One
	// of them is required.
	Dir  string
	Disk *spool.Disk
	// Quota is the most bytes of messages and blobs on the disk. Required.
	Quota int64

	// Admit says who may make queues. Default: anybody.
	Admit Admit
	// Traffic is the most bytes of requests and answers in a month. Beyond it
	// every request gets BUSY. An address block that had more than a sixteenth of a
	// day's part of it, but loopback, gets BUSY until the next day (UTC). Default:
	// no limit.
	Traffic uint64
	// Rate is the most bytes of requests and answers a second, in the long run.
	// Beyond it streams are slowed down, then get BUSY. Default: no limit.
	Rate int
	// CheckRecord judges a DHT record of 1 byte to [protocol.MaxRecord] from a
	// stranger, for the day that it names: it returns that day, in days since
	// 1970-01-01, and the key under which the record is published, or an error if
	// no node would hold it on that day. It is called by many at once. Required
	// with Publish.
	CheckRecord func(rec []byte) (key [32]byte, day uint32, err error)
	// Publish puts a record into the DHT. It is called on the record's day, every
	// six hours, by at most four at once. Default: PutRecords is MALFORMED here.
	Publish func(context.Context, Record) error
	// DialBack dials a peer at each of up to eight addresses, from another port
	// than Host listens at and under a throw-away transport key, and returns for
	// each whether the peer was there. They are plain TCP or QUIC addresses at the
	// IP address that the peer asks from. An error is for troubles of our own, and
	// answered by BUSY. It is called by several at once and returns soon after ctx
	// ends, ten seconds later at most. Default: DialBack is MALFORMED here; see
	// [NewDialBack].
	DialBack func(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) (reached []bool, err error)
	// Now is the wall clock. Default time.Now.
	Now func() time.Time
	// Log receives what an operator should know. Default: discarded.
	Log *slog.Logger
	// Limits bound what clients can take.
	Limits Limits
}

// Limits bound what clients can take. Zero is the default.
type Limits struct {
	// Streams is the most streams at once; a sixteenth of them may come from one
	// address block, an IPv4 /24 or an IPv6 /48. Default 16384.
	Streams int
	// Peer is the most streams at once from one transport key. Default 4.
	Peer int
	// BlockRate is the most requests a second from one address block, after a
	// burst of two seconds. Beyond it they get BUSY. Loopback has no limit.
	// Default 2000.
	BlockRate int
	// Memory is the most bytes of requests and answers that are being worked on,
	// an eighth of them, or one answer, for one address block but loopback; and the
	// same again, with an eighth or 2 MiB, of frames being read. Default 64 MiB.
	Memory int
	// Queues is the most queues. Default 131072.
	Queues int
	// ShareQueues is the most queues on the account of one admission token, or
	// of one address block. Default 4096.
	ShareQueues int
	// Share is the most bytes on the account of one admission token, or of one
	// address block. Default a 32nd of Quota, at least 1 MiB.
	Share int64
	// Anybody is the most bytes on the accounts of all address blocks together, so
	// that who has no admission token leaves the rest to those who have. Default
	// half of Quota.
	Anybody int64
	// AnybodyQueues is the most queues on these accounts. Default half of Queues.
	AnybodyQueues int
	// Boxes is the most bytes in all contact boxes, so that strangers leave the
	// rest to contacts. Default a quarter of Quota.
	Boxes int64
	// Blobs is the most bytes of all blobs. Each counts whole from its first chunk
	// on. Default a quarter of Quota.
	Blobs int64
	// BoxBlobs is the most bytes of blobs on the account of one contact box, and so
	// of one blob. They count for Share, too. Default half of Share.
	BoxBlobs int64
	// Attached is the most queues attached on all streams; a sixteenth of them, or
	// what one stream may, on those from one address block. Default 262144.
	Attached int
	// WorkBits is the work that is asked for when nothing presses. Default
	// [protocol.WorkBits].
	WorkBits int
	// Stamps is the most proofs of work remembered for deposits, and again for
	// one-time keys; of the former a sixteenth for boxes on one account, and half
	// for those on the accounts of all address blocks. Default 262144.
	Stamps int
}

func (cfg *Config) validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New("relay: "+what))
		}
	}
	need(cfg.Host != nil, "no host")
	need(cfg.Key != nil && cfg.Key.Type() == crypto.Ed25519, "no Ed25519 key")
	need(cfg.Store != nil, "no store")
	need((cfg.Dir != "") != (cfg.Disk != nil), "want a folder or a disk in memory")
	need(cfg.Quota > 0, "no quota")
	need((cfg.Publish == nil) == (cfg.CheckRecord == nil), "want both of Publish and CheckRecord, or neither")
	need(cfg.Rate >= 0, "a negative rate")
	need(cfg.Limits.WorkBits <= protocol.MaxWork, "more bits of work than anybody does")
	return errors.Join(errs...)
}

func (cfg *Config) setDefaults() {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	l := &cfg.Limits
	def(&l.Streams, 16384)
	def(&l.Peer, 4)
	def(&l.BlockRate, 2000)
	def(&l.Memory, 64<<20)
	def(&l.Queues, 131072)
	def(&l.ShareQueues, 4096)
	def(&l.AnybodyQueues, (l.Queues+1)/2)
	def(&l.Attached, 262144)
	def(&l.WorkBits, protocol.WorkBits)
	def(&l.Stamps, 262144)
	if l.Share <= 0 {
		l.Share = max(1<<20, cfg.Quota/32)
	}
	if l.Anybody <= 0 {
		l.Anybody = cfg.Quota / 2
	}
	if l.Blobs <= 0 {
		l.Blobs = cfg.Quota / 4
	}
	if l.BoxBlobs <= 0 {
		l.BoxBlobs = l.Share / 2
	}
	if l.Boxes <= 0 {
		l.Boxes = cfg.Quota / 4
	}
}
