package client_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log"
	"time"

	"starling/node/relay/client"
	"starling/protocol"
	"starling/protocol/relay"
	"starling/protocol/wire"
)

// How a sender leaves a sealed envelope in a contact's mailbox.
func ExampleDepositor() {
	d := client.NewDepositor(client.NewHosts(), client.Dialer{})
	leave := func(ctx context.Context, at relay.Mailbox, sealed []byte, end time.Time) (evidence []byte, err error) {
		err = d.Do(ctx, at.Relay, func(c *client.Conn) error {
			life := protocol.BoxLife
			if at.Capability != nil {
				life = protocol.MessageLife
			}
			until := c.Time().Add(life)
			if end.Before(until) {
				until = end
			}
			expires, err := relay.Expiry(rand.Reader, until)
			if err != nil {
				return err
			}
			out := c.Deposit(ctx, []client.Deposit{{Queue: at.Queue, Blob: sealed, Expires: expires, Capability: at.Capability}})[0]
			if out.Err == nil {
				evidence = wire.Marshal(out.Receipt.Wire())
			}
			return out.Err
		})
		return evidence, err
	}

	var mailbox relay.Mailbox // from the contact's profile or record
	_, err := leave(context.Background(), mailbox, make([]byte, 2160), time.Now().Add(protocol.MessageLife))
	switch {
	case errors.Is(err, relay.ErrReceipt):
		log.Print("the relay lies: use it no more")
	case errors.Is(err, client.ErrRefused):
		log.Print("the queue is closed: do not repeat it there")
	case err != nil:
		log.Print("try later, and at another relay: ", err)
	}
}
