package client

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	libnet "github.com/libp2p/go-libp2p/core/network"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// 128 deposits take a few round trips and not 128, over a good link and over one
// that loses a tenth of what it carries.
func TestDepositsArePipelined(t *testing.T) {
	for name, c := range map[string]struct {
		loss float64
		most time.Duration
	}{
		"good":  {0, 2 * time.Second},
		"lossy": {0.1, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, c.loss, func(l *lab) {
				l.up()
				reader, sender := l.dial(l.join(1), Dialer{}), l.dial(l.join(2), Dialer{})
				p := newPlace(l)
				p.mustCreate(l, reader, pairwise)
				begun := time.Now()
				want := p.mustDeposit(l, sender, protocol.QueueMessages)
				if took := time.Since(begun); took > c.most {
					l.Errorf("it took %s, a round trip takes 100 ms", took)
				}
				page, err := reader.Poll(l.Context(), Poll{})
				if err != nil || !sameBlobs(blobsOf(page.Entries), want) {
					l.Errorf("%d entries, or not the deposits: %v", len(page.Entries), err)
				}
			})
		})
	}
}

// No more is on its way than a relay and a slow line bear, whatever the sizes.
func TestDepositsAreBounded(t *testing.T) {
	for _, c := range []struct{ size, most int }{{2160, window}, {protocol.MaxSealed, windowBytes / protocol.MaxSealed}} {
		inLab(t, 0, func(l *lab) {
			var mu sync.Mutex
			var waiting []*wire.RelayRequest
			most := 0
			l.fake(func(s libnet.Stream, n int, req *wire.RelayRequest) bool {
				if req.GetInfo() != nil {
					return sayInfo(s)
				}
				mu.Lock()
				defer mu.Unlock()
				waiting = append(waiting, req)
				most = max(most, len(waiting))
				if n == 1 { // answers begin when nothing more comes
					time.AfterFunc(10*time.Second, func() {
						mu.Lock()
						defer mu.Unlock()
						for len(waiting) > 0 {
							if !sayReceipt(l, s, l.key, waiting[0]) {
								return
							}
							waiting = waiting[1:]
						}
					})
					return true
				}
				if n > c.most {
					waiting = waiting[:len(waiting)-1]
					return sayReceipt(l, s, l.key, req)
				}
				return true
			})
			conn := l.dial(l.join(1), Dialer{})
			p := newPlace(l)
			for i, o := range conn.Deposit(l.Context(), p.deposits(conn, 100, c.size)) {
				if o.Err != nil {
					l.Fatalf("deposit %d of %d bytes: %v", i, c.size, o.Err)
				}
			}
			if most != c.most {
				l.Errorf("%d deposits of %d bytes at once, want %d", most, c.size, c.most)
			}
		})
	}
}

// A relay that stops answering in between costs its time once, and what was
// answered stays so.
func TestDepositsSurviveTheEndOfAStream(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.fake(func(s libnet.Stream, n int, req *wire.RelayRequest) bool {
			switch {
			case req.GetInfo() != nil:
				return sayInfo(s)
			case n <= 10:
				return sayReceipt(l, s, l.key, req)
			case n == 11:
				return sayStatus(s, wire.RelayStatus_RELAY_STATUS_QUOTA)
			}
			return true
		})
		conn := l.dial(l.join(1), Dialer{})
		begun := time.Now()
		out := conn.Deposit(l.Context(), newPlace(l).deposits(conn, 100, 2160))
		if took := time.Since(begun); took > answerTimeout+time.Second {
			l.Errorf("it took %s", took)
		}
		for i, o := range out {
			switch {
			case i < 10 && o.Err != nil, i == 10 && !errors.Is(o.Err, ErrQuota), i > 11 && !errors.Is(o.Err, ErrClosed):
				l.Errorf("outcome %d: %v", i, o.Err)
			case i == 11 && (o.Err == nil || errors.Is(o.Err, ErrClosed)):
				l.Errorf("what ended the stream: %v", o.Err)
			}
		}
	})
}

// noted are hosts that tell of each host made.
type noted struct {
	Hosts
	mu   sync.Mutex
	made []host.Host
	open int // now, hosts that were not closed
	most int // ever
}

type notedHost struct {
	host.Host
	n    *noted
	once sync.Once
}

func (n *noted) New() (host.Host, error) {
	h, err := n.Hosts.New()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.made = append(n.made, h)
	n.open++
	n.most = max(n.most, n.open)
	return &notedHost{Host: h, n: n}, nil
}

func (h *notedHost) Close() error {
	h.once.Do(func() {
		h.n.mu.Lock()
		h.n.open--
		h.n.mu.Unlock()
	})
	return h.Host.Close()
}

// Each batch comes from another key, four at a time, and nothing is left of it.
func TestDepositor(t *testing.T) {
	inLab(t, 0, func(l *lab) {
		l.up()
		reader := l.dial(l.join(1), Dialer{})
		p := newPlace(l)
		p.mustCreate(l, reader, pairwise)
		hosts := &noted{Hosts: NewHosts(l.join(2).Options()...)}
		d := NewDepositor(hosts, Dialer{})
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if err := d.Do(l.Context(), l.endpoint(), func(c *Conn) error {
					p.mustDeposit(l, c, 2)
					return nil
				}); err != nil {
					l.Error(err)
				}
			})
		}
		all.Wait()
		oops := errors.New("oops")
		wantErr(l, "the caller's error", d.Do(l.Context(), l.endpoint(), func(*Conn) error { return oops }), oops)
		if page, err := reader.Poll(l.Context(), Poll{}); err != nil || len(page.Entries) != 20 {
			l.Errorf("%d entries, want 20: %v", len(page.Entries), err)
		}
		var keys []identity.Transport
		for _, h := range hosts.made {
			k, _ := transportOf(h.ID())
			if slices.Contains(keys, k) {
				l.Error("a transport key was used twice")
			}
			keys = append(keys, k)
		}
		if len(keys) != 11 || hosts.open != 0 || hosts.most != atOnce {
			l.Errorf("%d hosts, %d open, %d at most; want 11, 0, %d", len(keys), hosts.open, hosts.most, atOnce)
		}
	})
}
