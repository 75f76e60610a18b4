package client

import (
	"context"
	"errors"
	"fmt"

	"starling/protocol/identity"
)

// atOnce is the most hosts of one [Depositor] at a time. Each takes some
// hundreds of KiB and a few sockets.
const atOnce = 4

// A Depositor speaks to relays of others as nobody: under a throw-away key for
// each relay and each batch, so that a relay cannot tell from the protocol that
// two batches, or those for two people, have one sender (SPEC §13.12). It is
// safe for concurrent use.
type Depositor struct {
	hosts  Hosts
	dialer Dialer
	places chan struct{} // who works has put one in; atOnce fit
}

// NewDepositor returns a depositor on hosts, which dials as dialer does.
func NewDepositor(hosts Hosts, dialer Dialer) *Depositor {
	return &Depositor{hosts: hosts, dialer: dialer, places: make(chan struct{}, atOnce)}
}

// Do calls fn with a stream to a relay, on a host that lives as long as the call,
// and returns fn's error or that of dialling ([Dialer.Dial]). It waits while four
// others work. What concerns two people belongs in two calls. fn must not keep
// the stream. When Do returns, nothing that it started is left.
func (d *Depositor) Do(ctx context.Context, relay identity.Endpoint, fn func(*Conn) error) (err error) {
	select {
	case d.places <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-d.places }()
	h, err := d.hosts.New()
	if err != nil {
		return err
	}
	defer func() {
		if e := h.Close(); e != nil {
			err = errors.Join(err, fmt.Errorf("closing a host: %w", e))
		}
	}()
	c, err := d.dialer.Dial(ctx, h, relay)
	if err != nil {
		return err
	}
	defer c.Close()
	return fn(c)
}
