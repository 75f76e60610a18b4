package client

import (
	"context"

	ma "github.com/multiformats/go-multiaddr"

	"starling/protocol/wire"
)

// DialBack has the relay dial the host that this stream is of, at 1 to
// [protocol.MaxAddrs] addresses, and returns for each whether it was reached
// there. Those at another IP address than the relay sees the host at, names, and
// what is not plain TCP or QUIC are not dialled, and so not reached. Errors:
// ErrRefused through a circuit, ErrBusy; ErrMalformed also from a relay that
// dials nobody.
func (c *Conn) DialBack(ctx context.Context, addrs []ma.Multiaddr) (reached []bool, err error) {
	m := &wire.RelayDialBack{}
	for _, a := range addrs {
		m.Addrs = append(m.Addrs, a.Bytes())
	}
	a, err := c.ask(ctx, &wire.RelayRequest{Command: &wire.RelayRequest_DialBack{DialBack: m}})
	if err != nil {
		return nil, err
	}
	return a.GetDialed().Reached, nil
}
