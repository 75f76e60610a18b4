package network

import (
	"context"
	"net"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/security/insecure"
)

// plain is libp2p's plaintext, whose handshakes end with their context: the
// original waits for a peer that lost its power as long as it takes.
type plain struct{ *insecure.Transport }

func newPlain(id protocol.ID, key crypto.PrivKey) (plain, error) {
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return plain{}, err
	}
	return plain{insecure.NewWithIdentity(id, self, key)}, nil
}

func (p plain) SecureInbound(ctx context.Context, c net.Conn, id peer.ID) (sec.SecureConn, error) {
	defer bound(ctx, c)()
	return p.Transport.SecureInbound(ctx, c, id)
}

func (p plain) SecureOutbound(ctx context.Context, c net.Conn, id peer.ID) (sec.SecureConn, error) {
	defer bound(ctx, c)()
	return p.Transport.SecureOutbound(ctx, c, id)
}

// bound makes c fail when ctx ends, until the function returned is called.
func bound(ctx context.Context, c net.Conn) (release func()) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}
