package node

import (
	"fmt"
	"testing"
	"time"
)

// A network of DHT servers that keep few connections is still one network: each
// stays below its bound nearly always (a search may exceed it for seconds),
// though its routing table has more peers, and a record is found by whoever was
// not connected to its holders.
func TestConns(t *testing.T) {
	const people, most = 10, 5
	inMemory(t, func(w *world, m *memory) {
		var all []*person
		for i := range people {
			with := []func(*person){m.at(i + 1), func(p *person) { p.cfg.Conns, p.cfg.DHTRefresh = most, -1 }}
			if i > 0 {
				with = append(with, bootstrap(all[0]))
			}
			all = append(all, w.person(fmt.Sprint("person ", i), with...))
		}
		time.Sleep(10 * time.Minute)
		const looks = 100
		above := map[*person]int{}
		for range looks {
			time.Sleep(17 * time.Second)
			for _, p := range all {
				if len(p.host.Network().Peers()) > most {
					above[p]++
				}
			}
		}
		for _, p := range all {
			if table := p.dht.Peers(); above[p] > looks/2 || table <= most {
				t.Errorf("%s has more than %d connections in %d of %d looks, and %d peers in its table", p.name, most, above[p], looks, table)
			}
		}
		a, b := all[people-1], all[1]
		a.add(w.bare(b.invite(false)), b.name)
		a.until(contactIs(b.name, "accepted"))
		for _, p := range all {
			p.stop()
		}
	})
}

func TestWatermarks(t *testing.T) {
	for _, tt := range []struct {
		conns, low, high int
		grace            time.Duration
	}{{0, 96, 160, time.Minute}, {24, 16, 24, 9 * time.Second}, {320, 213, 320, 2 * time.Minute}} {
		if low, high, grace := watermarks(tt.conns); low != tt.low || high != tt.high || grace != tt.grace {
			t.Errorf("Conns %d: from %d down to %d after %v, want %d, %d, %v", tt.conns, high, low, grace, tt.high, tt.low, tt.grace)
		}
	}
}
