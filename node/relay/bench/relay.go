package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"starling/node/relay/client"
	"starling/node/relay/station"
	"starling/node/store"
	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

const (
	quota      = 4 << 30          // bytes on the disk, of either server
	readAtOnce = protocol.MaxPoll // messages
	inQueue    = flight           // messages: what is on its way may count twice, so no queue is full
	keep       = 24 * time.Hour   // how long a message may lie
	listen     = "/ip4/127.0.0.1/tcp/0"
)

// serveRelay starts a whole relay, open to anybody.
func serveRelay(dir string) (_ *running, err error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	db, err := store.Open(store.Config{Dir: filepath.Join(dir, "store")})
	if err != nil {
		return nil, err
	}
	cfg := station.Config{
		Store: db, Key: key, Dir: filepath.Join(dir, "spool"), Quota: quota,
		Open: true, Local: true, NoPortMap: true, NoAutoNAT: true, Listen: []string{listen},
	}
	cfg.Limits.Share, cfg.Limits.Anybody = quota, quota
	s, err := station.Open(context.Background(), cfg)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1) // of Run, once
	go func() { done <- s.Run(context.Background()) }()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	for _, a := range s.Addresses() {
		if strings.HasPrefix(a.Addr, "/ip4/127.0.0.1/tcp/") {
			return &running{at: a.Addr + "/p2p/" + id.String(), close: func() error { return errors.Join(s.Close(), <-done) }}, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("no address among %v", s.Addresses()), s.Close())
}

// relayClients are the clients of a relay: each a depositor and a reader, with a
// connection of their own.
type relayClients struct {
	hosts      []host.Host
	depositors []*client.Conn
	readers    []*client.Conn
	deposits   [][]client.Deposit // by client: those of a round
	capability relay.Capability   // of all queues
	random     []byte
	made       uint64 // blobs, so that none is like another
}

func dialRelay(ctx context.Context, at string) (_ service, err error) {
	addr, err := multiaddr.NewMultiaddr(at)
	if err != nil {
		return nil, err
	}
	info, err := peer.AddrInfoFromP2pAddr(addr)
	if err != nil {
		return nil, err
	}
	to, err := endpoint(info)
	if err != nil {
		return nil, err
	}
	c := &relayClients{deposits: make([][]client.Deposit, clients), random: make([]byte, *blob)}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	rand.Read(c.random)
	if c.capability, err = relay.NewCapability(rand.Reader); err != nil {
		return nil, err
	}
	hosts := client.NewHosts()
	dial := func() (*client.Conn, error) {
		h, err := hosts.New()
		if err != nil {
			return nil, err
		}
		c.hosts = append(c.hosts, h)
		return client.Dial(ctx, h, to)
	}
	for range clients {
		d, err := dial()
		if err != nil {
			return nil, err
		}
		r, err := dial()
		if err != nil {
			return nil, err
		}
		c.depositors, c.readers = append(c.depositors, d), append(c.readers, r)
	}
	return c, nil
}

// endpoint says where a relay is and which key it has.
func endpoint(info *peer.AddrInfo) (identity.Endpoint, error) {
	pub, err := info.ID.ExtractPublicKey()
	if err != nil {
		return identity.Endpoint{}, err
	}
	raw, err := pub.Raw()
	if err != nil {
		return identity.Endpoint{}, err
	}
	key, err := identity.ParseTransport(raw)
	return identity.Endpoint{Transport: key, Addrs: [][]byte{info.Addrs[0].Bytes()}}, err
}

// ready implements service: it makes queues, and blobs that nobody has seen.
func (c *relayClients) ready(ctx context.Context, n int) error {
	for i, r := range c.readers {
		for len(c.deposits[i]) < n {
			secret, err := identity.NewSecret(rand.Reader)
			if err != nil {
				return err
			}
			q, err := r.Create(ctx, relay.NewReaderKey(secret), client.NewQueue{
				Kind: wire.QueueKind_QUEUE_KIND_PAIRWISE, Capability: &c.capability, Expires: r.Time().Add(2 * keep),
			})
			if err != nil {
				return err
			}
			for range inQueue {
				c.deposits[i] = append(c.deposits[i], client.Deposit{Queue: q.ID, Blob: make([]byte, *blob), Capability: &c.capability})
			}
		}
		for k := range c.deposits[i] {
			d := &c.deposits[i][k]
			d.Expires = r.Time().Add(keep).Unix()
			copy(d.Blob, c.random)
			binary.BigEndian.PutUint64(d.Blob, c.made)
			c.made++
		}
	}
	return nil
}

// put implements service. The client verifies every receipt.
func (c *relayClients) put(ctx context.Context, i, n int, oneByOne bool) error {
	step := n
	if oneByOne {
		step = 1
	}
	for part := range slices.Chunk(c.deposits[i][:n], step) {
		for _, o := range c.depositors[i].Deposit(ctx, part) {
			if o.Err != nil {
				return o.Err
			}
		}
	}
	return nil
}

// drain implements service.
func (c *relayClients) drain(ctx context.Context, i, n int) error {
	for n > 0 {
		page, err := c.readers[i].Poll(ctx, client.Poll{Limit: readAtOnce})
		if err != nil {
			return err
		}
		if len(page.Entries) == 0 {
			return fmt.Errorf("%d messages are missing", n)
		}
		for _, e := range page.Entries {
			if len(e.Blob) != *blob {
				return fmt.Errorf("a message of %d bytes", len(e.Blob))
			}
		}
		if err := c.readers[i].Delete(ctx, page.Entries); err != nil {
			return err
		}
		n -= len(page.Entries)
	}
	return nil
}

func (c *relayClients) close() {
	for _, conn := range append(c.depositors, c.readers...) {
		_ = conn.Close()
	}
	for _, h := range c.hosts {
		_ = h.Close()
	}
}
