package network

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	libnet "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const echo = "/echo/1"

// startHost starts a libp2p host at a port. It answers each stream with what
// the stream says.
func startHost(t *testing.T, p *Port) host.Host {
	t.Helper()
	h, err := libp2p.New(append(p.Options(),
		libp2p.ListenAddrStrings(p.Listen()),
		libp2p.DisableMetrics(), libp2p.DisableRelay(), libp2p.DisableIdentifyAddressDiscovery(),
	)...)
	if err != nil {
		t.Fatal(err)
	}
	h.SetStreamHandler(echo, func(s libnet.Stream) {
		defer s.Close()
		_, _ = io.Copy(s, s)
	})
	return h
}

func closeHost(t *testing.T, h host.Host) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func connectHosts(t *testing.T, a, b host.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.Connect(ctx, peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// ask sends text from a to b and wants it back.
func ask(t *testing.T, a, b host.Host, text string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := a.NewStream(ctx, b.ID(), echo)
	if err != nil {
		return err
	}
	defer s.Reset()
	if err := s.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := io.WriteString(s, text); err != nil {
		return err
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(s)
	if err != nil {
		return err
	}
	if string(got) != text {
		t.Errorf("got %d bytes back, want the %d that were sent", len(got), len(text))
	}
	return nil
}

// The bubble proves that closing the hosts leaves no goroutine.
func TestHostsTalk(t *testing.T) {
	for name, noise := range map[string]bool{"plain": false, "noise": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet(t, Config{Sites: 2, Noise: noise, Loss: 0.01})
				ada, bo := startHost(t, join(t, n, 0)), startHost(t, join(t, n, 1))
				connectHosts(t, ada, bo)
				long := make([]byte, 200_000)
				if err := ask(t, ada, bo, string(long)); err != nil {
					t.Error(err)
				}
				if err := ask(t, bo, ada, "hi"); err != nil {
					t.Error(err)
				}
				if r := ada.Network().Connectedness(bo.ID()); r != libnet.Connected {
					t.Errorf("connectedness is %v", r)
				}
				closeHost(t, ada)
				closeHost(t, bo)
			})
		})
	}
}

func TestHostsMeetAgainAfterPowerIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, Config{Sites: 2})
		at, bt := join(t, n, 0), join(t, n, 1)
		ada, bo := startHost(t, at), startHost(t, bt)
		connectHosts(t, ada, bo)

		bt.Cut()
		closeHost(t, bo)
		if ada.Network().Connectedness(bo.ID()) != libnet.Connected {
			t.Error("ada noticed without writing")
		}
		bt.Restore()
		again := startHost(t, bt)
		if err := ask(t, ada, bo, "are you there?"); err == nil {
			t.Error("the stale connection answered")
		}
		connectHosts(t, ada, again)
		if err := ask(t, ada, again, "hi"); err != nil {
			t.Error(err)
		}
		closeHost(t, ada)
		closeHost(t, again)
	})
}
