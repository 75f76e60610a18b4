package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// patience is far beyond what anything here needs.
const patience = time.Minute

// serveNATS starts a NATS server with JetStream, which syncs every message.
func serveNATS(dir string) (*running, error) {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: dir, SyncAlways: true,
		JetStreamMaxMemory: 1 << 30, JetStreamMaxStore: quota,
	})
	if err != nil {
		return nil, err
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		s.Shutdown()
		return nil, errors.New("the NATS server does not start")
	}
	return &running{at: s.ClientURL(), close: func() error {
		s.Shutdown()
		s.WaitForShutdown()
		return nil
	}}, nil
}

// natsClients are the clients of a NATS server.
type natsClients struct {
	conns     []*nats.Conn
	js        []jetstream.JetStream
	consumers []jetstream.Consumer
	message   []byte // random, as an envelope is
}

func dialNATS(ctx context.Context, at string) (_ service, err error) {
	c := &natsClients{message: make([]byte, payload)}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	rand.Read(c.message)
	for range clients {
		conn, err := nats.Connect(at)
		if err != nil {
			return nil, err
		}
		c.conns = append(c.conns, conn)
		js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(flight))
		if err != nil {
			return nil, err
		}
		c.js = append(c.js, js)
	}
	return c, nil
}

func subject(i int) string { return fmt.Sprintf("messages.%d.%d", i%*streams, i) }

// ready implements service: it makes the streams, and a consumer for each client.
func (c *natsClients) ready(ctx context.Context, _ int) error {
	if c.consumers != nil {
		return nil
	}
	for i := range *streams {
		if _, err := c.js[0].CreateStream(ctx, jetstream.StreamConfig{
			Name: fmt.Sprintf("stream%d", i), Subjects: []string{fmt.Sprintf("messages.%d.*", i)},
			Storage: jetstream.FileStorage, Retention: jetstream.WorkQueuePolicy,
		}); err != nil {
			return err
		}
	}
	for i, js := range c.js {
		consumer, err := js.CreateConsumer(ctx, fmt.Sprintf("stream%d", i%*streams), jetstream.ConsumerConfig{
			Durable: fmt.Sprintf("reader%d", i), FilterSubject: subject(i), AckPolicy: jetstream.AckExplicitPolicy,
		})
		if err != nil {
			return err
		}
		c.consumers = append(c.consumers, consumer)
	}
	return nil
}

// put implements service.
func (c *natsClients) put(ctx context.Context, i, n int, oneByOne bool) error {
	if oneByOne {
		for range n {
			if _, err := c.js[i].Publish(ctx, subject(i), c.message); err != nil {
				return err
			}
		}
		return nil
	}
	acks := make([]jetstream.PubAckFuture, n)
	for k := range acks {
		ack, err := c.js[i].PublishAsync(subject(i), c.message, jetstream.WithStallWait(patience))
		if err != nil {
			return err
		}
		acks[k] = ack
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return fmt.Errorf("publishing: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// drain implements service. The last acknowledgement of each batch is waited for.
func (c *natsClients) drain(ctx context.Context, i, n int) error {
	for n > 0 {
		batch, err := c.consumers[i].Fetch(min(n, readAtOnce))
		if err != nil {
			return err
		}
		var last jetstream.Msg
		for m := range batch.Messages() {
			if len(m.Data()) != payload {
				return fmt.Errorf("a message of %d bytes", len(m.Data()))
			}
			if last != nil {
				if err := last.Ack(); err != nil {
					return err
				}
			}
			last = m
			n--
		}
		if err := batch.Error(); err != nil {
			return err
		}
		if last == nil {
			return fmt.Errorf("%d messages are missing", n)
		}
		if err := last.DoubleAck(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (c *natsClients) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
}
