package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"starling/node/api"
)

// A lan is two machines on one wire without a router: two network namespaces
// that a pair of virtual interfaces joins.
type lan struct{ spaces [2]string }

var lans atomic.Int32 // made so far: no two namespaces have one name

// newLAN makes a lan that is gone after the test, or skips the test where that
// is not possible.
func newLAN(t *testing.T) *lan {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("network namespaces need ip of iproute2:", err)
	}
	l := &lan{}
	number := lans.Add(1)
	for i := range l.spaces {
		l.spaces[i] = fmt.Sprintf("starling-%d-%d-%d", os.Getpid(), number, i)
		if err := ip("netns", "add", l.spaces[i]); err != nil {
			t.Skip("no network namespaces here:", err)
		}
		t.Cleanup(func() {
			if err := ip("netns", "del", l.spaces[i]); err != nil {
				t.Error(err)
			}
		})
	}
	if err := ip("link", "add", "wire0", "netns", l.spaces[0], "type", "veth", "peer", "name", "wire0", "netns", l.spaces[1]); err != nil {
		t.Skip("no virtual interfaces here:", err)
	}
	for i, s := range l.spaces {
		for _, args := range [][]string{
			{"address", "add", fmt.Sprintf("192.168.77.%d/24", i+1), "dev", "wire0"},
			{"link", "set", "lo", "up"},
			{"link", "set", "wire0", "multicast", "on", "up"},
		} {
			if err := ip(append([]string{"-n", s}, args...)...); err != nil {
				t.Fatal(err)
			}
		}
	}
	return l
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// newChild makes a profile whose daemon runs on a machine of the lan.
func (l *lan) newChild(t *testing.T, dir, name string, machine int, args ...string) *child {
	t.Helper()
	return newChild(t, dir, name, args, "ip", "netns", "exec", l.spaces[machine])
}

// On a network with nothing but two nodes, a link whose addresses are of no use
// leads to its owner by mDNS alone, and so does a contact who moved.
func TestLinkByMDNSAlone(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	for _, test := range []struct {
		name string
		args []string
	}{
		{"as a user starts it", nil},
		{"settings for a network without internet", []string{"--local"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			ada := l.newChild(t, dir, "ada", 0, test.args...)
			bo := l.newChild(t, dir, "bo", 1, test.args...)
			ada.start(t)
			link := ada.invite(t)
			ada.stop(t)
			// The link now names a port where nobody listens.
			if err := os.Remove(filepath.Join(ada.home, "port")); err != nil {
				t.Fatal(err)
			}
			ada.start(t)
			bo.start(t)
			begin := time.Now()
			bo.add(t, link, ada)
			befriended(t, ada, bo)
			t.Logf("found after %.1f s", time.Since(begin).Seconds())
			talk(t, ada, bo, "by mDNS")

			// Both move at once: neither has an address of the other that holds.
			for _, d := range []*child{ada, bo} {
				d.stop(t)
				if err := os.Remove(filepath.Join(d.home, "port")); err != nil {
					t.Fatal(err)
				}
			}
			ada.start(t)
			bo.start(t)
			begin = time.Now()
			talk(t, ada, bo, "by mDNS once more")
			t.Logf("found once more after %.1f s", time.Since(begin).Seconds())
		})
	}
}

// Without mDNS nothing leads there: what the test above shows is mDNS.
func TestNothingFoundWithoutMDNS(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	dir := t.TempDir()
	ada := l.newChild(t, dir, "ada", 0)
	bo := l.newChild(t, dir, "bo", 1, "--no-mdns")
	ada.start(t)
	link := ada.invite(t)
	ada.stop(t)
	if err := os.Remove(filepath.Join(ada.home, "port")); err != nil {
		t.Fatal(err)
	}
	ada.start(t)
	bo.start(t)
	bo.add(t, link, ada)
	eventually(t, "an attempt that finds nothing", func(ctx context.Context) (bool, error) {
		c, err := bo.contact(ctx, ada)
		if err == nil && c.GetState() != "pending" {
			err = fmt.Errorf("the contact is %s", c.GetState())
		}
		return strings.HasPrefix(c.GetDetail(), "not found yet; still trying: "), err
	})
	st, err := api.Call(t.Context(), bo.c.Status, &api.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.Connected != 0 {
		t.Errorf("connected to %d peers, want none", st.Connected)
	}
}
