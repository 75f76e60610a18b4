package client

import (
	"sync"
	"testing"

	"github.com/multiformats/go-multiaddr"

	"starling/protocol"
)

// BenchmarkDeposit leaves the smallest sealed envelopes over TCP on loopback, on
// the disk, with every receipt verified: 512 on their way, on 8 streams of 8
// hosts. The relay computes on the same machine. A log takes 4,096; when they
// are full, others are made, outside the time.
func BenchmarkDeposit(b *testing.B) {
	const streams = 8
	s := serve(b, b.TempDir(), "/ip4/127.0.0.1/tcp/0")
	hosts := NewHosts()
	conns := make([]*Conn, streams)
	for i := range conns {
		h, err := hosts.New()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = h.Close() })
		if conns[i], err = Dial(b.Context(), h, s.at(b, multiaddr.P_TCP)); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(2160)
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; {
		b.StopTimer()
		round := min((left+streams-1)/streams, protocol.LogMessages-window) // near its end a log may refuse what is counted twice
		left -= round * streams
		ds := make([][]Deposit, streams)
		for i, c := range conns {
			p := newPlace(b)
			p.mustCreate(b, c, logQueue)
			ds[i] = p.deposits(c, round, 2160)
		}
		b.StartTimer()
		var all sync.WaitGroup
		for i, c := range conns {
			all.Go(func() {
				for _, o := range c.Deposit(b.Context(), ds[i]) {
					if o.Err != nil {
						b.Error(o.Err)
						return
					}
				}
			})
		}
		all.Wait()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "deposits/s")
}

// BenchmarkThrowAway is what a batch of one costs: a host, a handshake, a
// deposit.
func BenchmarkThrowAway(b *testing.B) {
	s := serve(b, b.TempDir(), "/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0")
	d := NewDepositor(NewHosts(), Dialer{})
	for name, transport := range map[string]int{"quic": multiaddr.P_QUIC_V1, "tcp": multiaddr.P_TCP} {
		b.Run(name, func(b *testing.B) {
			to := s.at(b, transport)
			p := newPlace(b)
			if err := d.Do(b.Context(), to, func(c *Conn) error {
				p.mustCreate(b, c, logQueue)
				return nil
			}); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := d.Do(b.Context(), to, func(c *Conn) error {
					p.mustDeposit(b, c, 1)
					return nil
				}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
