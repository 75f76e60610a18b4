package network

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

// newNet returns a network. Without a topology, every link takes 50 ms, apart
// from what makes it distinct.
func newNet(t testing.TB, c Config) *Net {
	t.Helper()
	if c.Topology == nil {
		c.Topology = Uniform(50*time.Millisecond, 50*time.Millisecond, 0)
	}
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func join(t testing.TB, n *Net, site int) *Port {
	t.Helper()
	p, err := n.Join(Site{Index: site}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *Port) stream() *stream { return &stream{port: p, power: p.power} }

// A line is two ends of a connection between sites 0 and 1, over a link that
// takes 50 ms exactly.
type line struct {
	n    *Net
	port [2]*Port
	a, b *end // a dialled
}

const latency = 50 * time.Millisecond

// newLine makes a network of three sites and connects two of them. The test's
// bubble starts at the moment in which b has accepted.
func newLine(t testing.TB, c Config) *line {
	t.Helper()
	c.Sites = 3
	l := &line{n: newNet(t, c)}
	l.port = [2]*Port{join(t, l.n, 0), join(t, l.n, 1)}
	l.n.Set(0, 1, &Link{Latency: latency})
	l.a, l.b = connect(t, l.port[0], l.port[1])
	return l
}

// connect dials q from p and returns both ends.
func connect(t testing.TB, p, q *Port) (dialled, accepted *end) {
	t.Helper()
	at := netip.AddrPortFrom(q.addr, listenPort)
	l, err := q.listen(q.power, at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err = p.stream().dial(context.Background(), at)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return dialled, c.(*end)
}
