package dht

import (
	"context"
	"sync"
	"time"

	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/peer"

	"starling/dht/record"
	"starling/protocol/identity"
)

// A Report says how one [DHT.Lookup] went, for measurements.
type Report struct {
	Account identity.Account // whose record was looked for
	Took    time.Duration
	Hops    int            // longest chain of peers asked, each named by the one before
	Asked   int            // different peers asked
	Found   bool           // a record that is not below the highest version seen
	Stale   bool           // a record below it was offered
	Version record.Version // of what was found
}

// A gauge measures the searches of one lookup by the events of kad-dht.
type gauge struct {
	hops  map[peer.ID]int // of peers that answered, and of those they named
	asked map[peer.ID]bool
	deep  int
	wg    sync.WaitGroup
}

// watch returns a context whose searches g follows, and a function that ends
// this and waits. The context ends with it.
func (g *gauge) watch(ctx context.Context) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	ctx, events := kaddht.RegisterForLookupEvents(ctx)
	g.hops, g.asked = map[peer.ID]int{}, map[peer.ID]bool{}
	g.wg.Go(func() {
		for e := range events { // closed soon after ctx has ended
			g.see(e)
		}
	})
	return ctx, func() {
		cancel()
		g.wg.Wait()
	}
}

func (g *gauge) see(e *kaddht.LookupEvent) {
	if e.Request != nil {
		for _, p := range e.Request.Waiting { // it is asked now
			g.asked[p.Peer] = true
			if _, named := g.hops[p.Peer]; !named {
				g.hops[p.Peer] = 1 // from our own table
			}
			g.deep = max(g.deep, g.hops[p.Peer])
		}
	}
	if e.Response != nil && e.Response.Cause != nil && e.Response.Cause.Peer != e.Node.Peer {
		for _, p := range e.Response.Heard {
			if _, known := g.hops[p.Peer]; !known {
				g.hops[p.Peer] = g.hops[e.Response.Cause.Peer] + 1
			}
		}
	}
}
