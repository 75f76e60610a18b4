package client

import (
	"context"
	"fmt"
	"io"
	"time"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// PutKeys adds one-time keys (relay.Pool), at most [protocol.MaxPutKeys], to the
// pool of an attached contact box, until expires, at most 30 days ahead, and
// returns how many it holds then. Another pool's name empties the pool first.
//
// Keys are put once: after any error but ErrQuota, ErrRefused, ErrMalformed and
// ErrDraining the relay may have them, and may have given some away. Forget them
// and seal others.
func (c *Conn) PutKeys(ctx context.Context, box relay.QueueID, pool relay.PoolID, keys [][]byte, expires time.Time) (int, error) {
	return c.count(ctx, &wire.RelayRequest{Command: &wire.RelayRequest_PutKeys{PutKeys: &wire.RelayPutKeys{
		Queue: box[:], Pool: pool[:], Keys: keys, Expires: expires.Unix(),
	}}})
}

// CountKeys returns how many keys the pool of an attached contact box holds; 0
// if its name is another. Error: ErrRefused, ErrBusy.
func (c *Conn) CountKeys(ctx context.Context, box relay.QueueID, pool relay.PoolID) (int, error) {
	return c.count(ctx, &wire.RelayRequest{Command: &wire.RelayRequest_CountKeys{CountKeys: &wire.RelayCountKeys{
		Queue: box[:], Pool: pool[:],
	}}})
}

// PutRecords leaves signed DHT records of coming days, at most
// [protocol.MaxPutRecords], on the account of an attached contact box, for the
// relay to publish, and returns how many it holds then. With replace it forgets
// those it held. Errors: ErrRefused, ErrQuota, ErrDraining, ErrBusy;
// ErrMalformed also from a relay that publishes none.
func (c *Conn) PutRecords(ctx context.Context, box relay.QueueID, records [][]byte, replace bool) (int, error) {
	return c.count(ctx, &wire.RelayRequest{Command: &wire.RelayRequest_PutRecords{PutRecords: &wire.RelayPutRecords{
		Queue: box[:], Replace: replace, Records: records,
	}}})
}

func (c *Conn) count(ctx context.Context, req *wire.RelayRequest) (int, error) {
	a, err := c.ask(ctx, req)
	if err != nil {
		return 0, err
	}
	return int(a.GetCount().Count), nil
}

// TakeKey takes a one-time key from somebody's pool, for an invite token or, with
// nil, for work. It returns a blob for relay.Pool.Open. Errors: ErrEmpty,
// ErrRefused, ErrQuota, ErrBusy, *WorkError.
func (c *Conn) TakeKey(ctx context.Context, box relay.QueueID, pool relay.PoolID, token *identity.Token) ([]byte, error) {
	m := &wire.RelayTakeKey{Queue: box[:], Pool: pool[:]}
	if token != nil {
		h := relay.TokenHash(*token, c.relay)
		m.Admit = &wire.RelayTakeKey_Token{Token: h[:]}
		return c.takeKey(ctx, m)
	}
	var blob []byte
	err := c.working(&c.info.KeyBits, func(bits int) (err error) {
		var salt [16]byte
		if _, err := io.ReadFull(c.dialer.Rand, salt[:]); err != nil {
			return fmt.Errorf("drawing a salt: %w", err)
		}
		expires := c.Time().Add(protocol.KeyWorkLife).Unix()
		nonce, err := relay.Work(ctx, relay.KeyStamp(c.relay, box, pool, salt, expires), bits)
		if err != nil {
			return err // ctx's; nothing was asked
		}
		m.Admit = &wire.RelayTakeKey_Work{Work: &wire.RelayKeyWork{Salt: salt[:], Expires: expires, Nonce: nonce}}
		blob, err = c.takeKey(ctx, m)
		return err
	})
	return blob, err
}

func (c *Conn) takeKey(ctx context.Context, m *wire.RelayTakeKey) ([]byte, error) {
	a, err := c.ask(ctx, &wire.RelayRequest{Command: &wire.RelayRequest_TakeKey{TakeKey: m}})
	if err != nil {
		return nil, err
	}
	return a.GetKey().Key, nil
}
