package station

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"starling/protocol"
)

// The resource manager lets in as many readers as there may be streams, each
// from an address of its own, and not many more; and of one address an office,
// not a botnet.
func TestResourcesFitTheStreams(t *testing.T) {
	m, err := newResources(defaultStreams)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	enter := func(a string, who peer.ID) error {
		c, err := m.OpenConnection(network.DirInbound, false, multiaddr.StringCast(a)) // QUIC: TCP takes file descriptors too
		if err != nil {
			return err
		}
		if err := c.SetPeer(who); err != nil {
			return fmt.Errorf("after the handshake: %w", err)
		}
		s, err := m.OpenStream(who, network.DirInbound)
		if err != nil {
			return fmt.Errorf("a stream: %w", err)
		}
		if err := s.ReserveMemory(yamuxWindow, network.ReservationPriorityAlways); err != nil {
			return fmt.Errorf("its window: %w", err)
		}
		if err := s.SetProtocol(protocol.StreamRelay); err != nil {
			return fmt.Errorf("its protocol: %w", err)
		}
		return nil
	}
	for i := range defaultStreams {
		a := fmt.Sprintf("/ip4/%d.%d.%d.1/udp/1/quic-v1", 20+i>>16, i>>8&0xff, i&0xff)
		if err := enter(a, peer.ID(fmt.Sprint("reader ", i))); err != nil {
			t.Fatalf("reader %d: %v", i, err)
		}
	}
	if err := enter("/ip4/9.9.9.9/udp/1/quic-v1", "one too many"); err == nil {
		t.Error("one stream too many was let in")
	}

	m, err = newResources(defaultStreams)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	n := 0
	for n < 10*connsByAddress && enter("/ip4/8.8.8.8/udp/1/quic-v1", peer.ID(fmt.Sprint("colleague ", n))) == nil {
		n++
	}
	if n != connsByAddress {
		t.Errorf("%d connections from one address, want %d", n, connsByAddress)
	}
}

// Metrics are well named, and none has a label that tells clients apart.
func TestMetricsAreOfTheWhole(t *testing.T) {
	s := newPlace(t, nil).open()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(s.Collector()); err != nil {
		t.Fatal(err)
	}
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{prefix + "messages_by_size": "bytes", prefix + "refused_total": "status"}
	if want := len(metricsOf) + len(labels) + 1; len(all) != want { // and the histogram of groups
		t.Errorf("%d metrics, want %d", len(all), want)
	}
	for _, f := range all {
		if !strings.HasPrefix(f.GetName(), prefix) || f.GetHelp() == "" {
			t.Errorf("metric %s: %q", f.GetName(), f.GetHelp())
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() != labels[f.GetName()] {
					t.Errorf("metric %s has a label %s", f.GetName(), l.GetName())
				}
			}
		}
	}
}

func testKeyFileRefuses(t *testing.T, dir string) {
	t.Helper()
	good, err := os.ReadFile(dir + "/relay.key")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"empty": "", "text": "no key", "twice": string(good) + string(good), "cut": string(good[:len(good)-40]),
		"another kind": strings.ReplaceAll(string(good), "PRIVATE KEY", "PUBLIC KEY"),
		"huge":         strings.Repeat(string(good), 100),
	} {
		path := dir + "/bad"
		if err := os.WriteFile(path, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenKeyFile(path); !errors.Is(err, ErrKeyFile) {
			t.Errorf("%s: %v, want ErrKeyFile", name, err)
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := os.Chmod(dir+"/relay.key", 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyFile(dir + "/relay.key"); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
}
