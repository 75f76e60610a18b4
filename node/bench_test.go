package node_test

import (
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"starling/node"
	"starling/node/store"
)

// benchNode opens a node with a store on disk.
func benchNode(b *testing.B, name string) *node.Node {
	b.Helper()
	key, err := store.NewKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	db, err := store.Open(store.Config{Dir: b.TempDir(), Key: key})
	if err != nil {
		b.Fatal(err)
	}
	n, err := node.Open(b.Context(), node.Config{
		Store: db, Name: name, Local: true, Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1"},
		NoMDNS: true, NoPortMap: true, NoAutoNAT: true, NoRelayClient: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := n.Close(); err != nil {
			b.Error(err)
		}
	})
	return n
}

func benchContacts(b *testing.B) (ada, bo *node.Node) {
	b.Helper()
	ada, bo = benchNode(b, "Ada"), benchNode(b, "Bo")
	inv, err := ada.CreateInvite(b.Context(), false)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := bo.AddContact(b.Context(), inv.Link, "Ada"); err != nil {
		b.Fatal(err)
	}
	benchExchange(b, bo, "Ada")
	return ada, bo
}

func benchExchange(b *testing.B, from *node.Node, to string) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	m, err := from.Send(ctx, to, strings.Repeat("x", 200), nil)
	if err == nil {
		m, err = from.WaitMessage(ctx, m.ID, "delivered", time.Minute)
	}
	if err != nil || m.State != "delivered" {
		b.Fatalf("state %s, %v", m.State, err)
	}
}

// BenchmarkExchange is one message from Send to its acknowledgement, committed
// and synced on both sides; both nodes run in this process.
func BenchmarkExchange(b *testing.B) {
	_, bo := benchContacts(b)
	for b.Loop() {
		benchExchange(b, bo, "Ada")
	}
}

// BenchmarkStream sends from 24 callers at once, until the last message was
// acknowledged.
func BenchmarkStream(b *testing.B) {
	_, bo := benchContacts(b)
	const callers = 24
	b.ResetTimer()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range b.N/callers + 1 {
				if _, err := bo.Send(b.Context(), "Ada", strings.Repeat("x", 200), nil); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	benchExchange(b, bo, "Ada")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
}
