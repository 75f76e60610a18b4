package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"starling/node/api"
)

var (
	withNAT   = flag.Bool("nat", false, "put daemons behind NATs of nftables, and see who reaches whom how")
	natRounds = flag.Int("natrounds", 1, "how often two meet behind each pair of NATs")
)

// A wan is an internet that nothing leaves: namespaces with globally routable
// addresses, as libp2p takes no others for public, on one wire. Nobody routes
// there; each finds all others by ARP.
type wan struct {
	prefix string // of the names of its namespaces
	spaces int    // made so far
}

var wans atomic.Int32 // made so far: no two namespaces have one name

// newWAN makes a wan that is gone after the test, or skips the test where that
// is not possible or not asked for.
func newWAN(t *testing.T) *wan {
	t.Helper()
	if !*withNAT {
		t.Skip("it takes minutes and makes NATs: run it as root with -nat")
	}
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("NATs need ip of iproute2 and nft of nftables:", err)
		}
	}
	sweepWANs(t)
	w := &wan{prefix: fmt.Sprintf("starling-nat-%d-%d-", os.Getpid(), wans.Add(1))}
	w.space(t, "wire")
	w.ip(t, "wire", "link", "add", "wire0", "type", "bridge")
	w.ip(t, "wire", "link", "set", "wire0", "up")
	return w
}

// sweepWANs removes the namespaces of tests that were killed.
func sweepWANs(t *testing.T) {
	t.Helper()
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		t.Skip("no network namespaces here:", err)
	}
	for line := range strings.Lines(string(out)) {
		name := strings.Fields(line)[0]
		var pid, number int
		if n, _ := fmt.Sscanf(name, "starling-nat-%d-%d-", &pid, &number); n != 2 {
			continue
		}
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); os.IsNotExist(err) {
			ip("netns", "del", name) //nolint:errcheck // another test may be sweeping too
		}
	}
}

// space makes a namespace.
func (w *wan) space(t *testing.T, name string) {
	t.Helper()
	if err := ip("netns", "add", w.prefix+name); err != nil {
		t.Skip("no network namespaces here:", err)
	}
	t.Cleanup(func() {
		if err := ip("netns", "del", w.prefix+name); err != nil {
			t.Error(err)
		}
	})
	w.ip(t, name, "link", "set", "lo", "up")
}

// ip runs ip in a namespace.
func (w *wan) ip(t *testing.T, name string, args ...string) {
	t.Helper()
	if err := ip(append([]string{"-n", w.prefix + name}, args...)...); err != nil {
		t.Fatal(err)
	}
}

// host makes a machine with an address of its own on the wire. Every one is in
// another /8, so that no limit on neighbours holds.
func (w *wan) host(t *testing.T, name string) (addr string) {
	t.Helper()
	w.space(t, name)
	w.spaces++
	addr = fmt.Sprintf("%d.1.0.1", 20+w.spaces)
	plug := fmt.Sprintf("plug%d", w.spaces)
	if err := ip("link", "add", plug, "netns", w.prefix+"wire", "type", "veth", "peer", "name", "wan0", "netns", w.prefix+name); err != nil {
		t.Skip("no virtual interfaces here:", err)
	}
	w.ip(t, "wire", "link", "set", plug, "master", "wire0", "up")
	w.ip(t, name, "address", "add", addr+"/32", "dev", "wan0")
	w.ip(t, name, "link", "set", "wan0", "up")
	w.ip(t, name, "route", "add", "default", "dev", "wan0")
	return addr
}

// A nat is a kind of NAT.
type nat string

const (
	noNAT     nat = "no NAT"
	cone      nat = "cone"      // keeps the port, whoever is written to, and lets in who was written to
	symmetric nat = "symmetric" // another port for everybody who is written to
	forwarded nat = "forwarded" // cone, and passes forwardedPort on to whoever is behind it
)

const forwardedPort = 4001

// rules are what all NATs have: nothing comes in that was not asked for. It is
// dropped, not refused, and leaves no trace: an entry in the table of
// connections would take the port away from who is about to punch a hole there.
const rules = `table ip box {
	chain input {
		type filter hook input priority filter; policy drop;
		iifname "lan0" accept
		ct state established,related accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		iifname "lan0" accept
		ct state established,related accept
		ct status dnat accept
	}
	chain in {
		type nat hook prerouting priority dstnat;
		%s
	}
	chain out {
		type nat hook postrouting priority srcnat;
		oifname "wan0" masquerade %s
	}
}
`

// behind makes a machine behind a NAT, with the address that every home has.
// It returns the address of the NAT.
func (w *wan) behind(t *testing.T, kind nat, name string) (addr string) {
	t.Helper()
	if kind == noNAT {
		return w.host(t, name)
	}
	box := name + "-nat"
	addr = w.host(t, box)
	w.space(t, name)
	if err := ip("link", "add", "lan0", "netns", w.prefix+box, "type", "veth", "peer", "name", "lan0", "netns", w.prefix+name); err != nil {
		t.Fatal(err)
	}
	for i, s := range []string{box, name} {
		w.ip(t, s, "address", "add", fmt.Sprintf("192.168.1.%d/24", i+1), "dev", "lan0")
		w.ip(t, s, "link", "set", "lan0", "up")
	}
	w.ip(t, name, "route", "add", "default", "via", "192.168.1.1")
	in, out := "", ""
	switch kind {
	case symmetric:
		out = "random"
	case forwarded:
		in = fmt.Sprintf(`iifname "wan0" meta l4proto { tcp, udp } th dport %d dnat to 192.168.1.2`, forwardedPort)
	}
	for _, c := range []*exec.Cmd{
		exec.Command("ip", "netns", "exec", w.prefix+box, "nft", "-f", "-"),
		exec.Command("ip", "netns", "exec", w.prefix+box, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"),
	} {
		c.Stdin = strings.NewReader(fmt.Sprintf(rules, in, out))
		if b, err := c.CombinedOutput(); err != nil {
			t.Skipf("no NAT here: %v: %s", err, b)
		}
	}
	return addr
}

// child makes a profile with settings whose daemon runs on a machine.
func (w *wan) child(t *testing.T, machine, name, settings string, args ...string) *child {
	t.Helper()
	d := newChild(t, t.TempDir(), name, args, "ip", "netns", "exec", w.prefix+machine)
	if err := os.WriteFile(filepath.Join(d.home, "starling.toml"), []byte("mdns = false\n"+settings), 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

// status returns what the daemon says of itself.
func (d *child) status(t *testing.T) *api.StatusResponse {
	t.Helper()
	st, err := api.Call(t.Context(), d.c.Status, &api.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// at returns the addresses of a daemon at an IP address, as a list of TOML.
func (d *child) at(t *testing.T, addr string) string {
	t.Helper()
	var list []string
	for _, a := range d.status(t).BootstrapAddrs {
		if strings.HasPrefix(a, "/ip4/"+addr+"/") {
			list = append(list, strconv.Quote(a))
		}
	}
	if len(list) != 2 {
		t.Fatalf("%s has the addresses %q at %s, want one for QUIC and one for TCP", d.name, list, addr)
	}
	return "[" + strings.Join(list, ", ") + "]"
}

// line returns how d is connected to another, or nil.
func (d *child) line(ctx context.Context, other *child) (*api.Connection, error) {
	st, err := api.Call(ctx, d.c.Status, &api.StatusRequest{})
	if err != nil {
		return nil, err
	}
	for _, c := range st.Connections {
		if c.Account == other.account {
			return c, nil
		}
	}
	return nil, nil
}

// natTime bounds what takes libp2p several attempts.
const natTime = 4 * time.Minute

// reaches waits until d says that it can be reached in this way.
func (d *child) reaches(t *testing.T, want string) {
	t.Helper()
	within(t, natTime, d.name+" to be reached: "+want, func(ctx context.Context) (bool, error) {
		st, err := api.Call(ctx, d.c.Status, &api.StatusRequest{})
		return st.GetReach() == want, err
	})
}

// punchTime is how long libp2p tries to punch a hole: it dials once, then three
// times with the other's help, ten seconds each.
const punchTime = 45 * time.Second

// Two people behind NATs meet through a circuit, and go on without its relay
// where their NATs allow it. What does not (RFC 5128, §3.3.3) is a NAT with
// another port for everybody against one that lets in only what was written to:
// the port that others have seen is not the one that a punch comes from.
func TestNATs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b nat
		path string
	}{
		{cone, cone, api.PathDirect},
		{symmetric, symmetric, api.PathCircuit},
		{cone, symmetric, api.PathCircuit},
		{noNAT, symmetric, api.PathDirect},
	} {
		t.Run(fmt.Sprintf("%s and %s", tt.a, tt.b), func(t *testing.T) {
			t.Parallel()
			w := newWAN(t)
			at := w.host(t, "relay")
			w.behind(t, tt.a, "a")
			w.behind(t, tt.b, "b")
			relay := w.child(t, "relay", "relay", "reach = \"public\"\ncircuits = true\n", "--listen", fmt.Sprintf("/ip4/0.0.0.0/udp/%d/quic-v1,/ip4/0.0.0.0/tcp/%d", forwardedPort, forwardedPort))
			relay.start(t)
			settings := func(kind nat) string {
				addrs := relay.at(t, at)
				if kind == noNAT {
					return "reach = \"public\"\nbootstrap = " + addrs
				}
				return "reach = \"private\"\nbootstrap = " + addrs + "\ncircuit_relays = " + addrs
			}
			for round := range *natRounds {
				ada := w.child(t, "a", fmt.Sprint("ada", round), settings(tt.a))
				bo := w.child(t, "b", fmt.Sprint("bo", round), settings(tt.b))
				meet(t, round, relay, ada, bo, tt.a, tt.b, tt.path)
				ada.stop(t)
				bo.stop(t)
			}
		})
	}
}

// meet has two people meet who know nothing of each other but a link, and
// checks that they are connected as they should be: by what status says, and by
// what becomes of them when the relay is killed.
func meet(t *testing.T, round int, relay, ada, bo *child, a, b nat, path string) {
	t.Helper()
	var said []string
	begin := time.Now()
	note := func(what string) {
		said = append(said, fmt.Sprintf("%s %.1f s", what, time.Since(begin).Seconds()))
	}
	ada.start(t)
	bo.start(t)
	for _, p := range []struct {
		*child
		nat
	}{{ada, a}, {bo, b}} {
		if p.nat == noNAT {
			p.reaches(t, "direct")
		} else {
			p.reaches(t, "relay")
		}
	}
	note("after the start: reachable")
	begin = time.Now()
	bo.add(t, ada.invite(t), ada)
	befriended(t, ada, bo)
	note("after the link was used: contacts")
	talk(t, ada, bo, "hello")
	note("messages both ways")
	if path == api.PathDirect {
		within(t, natTime, "a direct connection", func(ctx context.Context) (bool, error) {
			both, err := pathsOf(ctx, ada, bo)
			return err == nil && both == [2]string{path, path}, err
		})
		note("direct")
	} else {
		burst(t, ada, bo)
		note("what two circuits carry delivered")
		for time.Since(begin) < punchTime {
			if both, err := pathsOf(t.Context(), ada, bo); err != nil || slices.Contains(both[:], api.PathDirect) {
				t.Fatalf("they are connected by %q (%v), want a circuit at most", both, err)
			}
			time.Sleep(time.Second)
		}
		note("no direct connection for")
		talk(t, ada, bo, "on a circuit") // which the relay may have cut since
		if both, err := pathsOf(t.Context(), ada, bo); err != nil || both != [2]string{path, path} {
			t.Fatalf("they are connected by %q (%v), want %s", both, err, path)
		}
	}
	words := map[string]string{api.PathDirect: " directly", api.PathCircuit: " through a circuit"}
	for _, way := range [][2]*child{{ada, bo}, {bo, ada}} {
		out, _ := way[0].run(t, "status")
		if !strings.Contains(out, way[1].name+words[path]) {
			t.Errorf("status does not say %q:\n%s", way[1].name+words[path], out)
		}
	}
	c, err := ada.line(t.Context(), bo)
	if err != nil {
		t.Fatal(err)
	}

	// Without the relay, who has a direct connection goes on, and the others wait
	// for it to come back.
	relay.kill()
	if path == api.PathDirect {
		begin = time.Now()
		talk(t, ada, bo, "without a relay")
		note("without the relay, messages both ways in")
		relay.start(t)
	} else {
		m, err := api.Call(t.Context(), ada.c.Send, &api.SendRequest{To: bo.name, Text: "without a relay"})
		if err != nil {
			t.Fatal(err)
		}
		wait := &api.WaitMessageRequest{Id: m.Id, State: "delivered", Timeout: 2000}
		if m, err = api.Call(t.Context(), ada.c.WaitMessage, wait); err != nil || m.State != "queued" {
			t.Fatalf("without the relay the message is %s (%v), want it queued", m.GetState(), err)
		}
		relay.start(t)
		begin = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), natTime)
		defer cancel()
		if err := ada.delivered(ctx, m.Id); err != nil {
			t.Fatal(err)
		}
		note("after the relay came back, delivered in")
	}
	t.Logf("round %d: %s; bo is seen at %s", round+1, strings.Join(said, ", "), c.GetAddr())
}

// pathsOf says how two are connected, as each of them sees it.
func pathsOf(ctx context.Context, a, b *child) (both [2]string, err error) {
	for i, way := range [][2]*child{{a, b}, {b, a}} {
		c, err := way[0].line(ctx, way[1])
		if err != nil {
			return both, err
		}
		both[i] = c.GetPath()
	}
	return both, nil
}

// burst has a send b more than a circuit carries before the relay cuts it, and
// checks that b has all of it once.
func burst(t *testing.T, a, b *child) {
	t.Helper()
	const letters, size = 20, 12_000 // of the 128 KiB of a circuit, nearly twice
	ctx, cancel := context.WithTimeout(t.Context(), natTime)
	defer cancel()
	var ids []string
	for i := range letters {
		m, err := api.Call(ctx, a.c.Send, &api.SendRequest{To: b.name, Text: fmt.Sprintf("%d: %s", i, strings.Repeat("x", size))})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.Id)
	}
	for _, id := range ids {
		if err := a.delivered(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	got := make(map[string]int)
	for _, text := range b.texts(t, a) {
		if number, rest, _ := strings.Cut(text, ": "); len(rest) == size {
			got[number]++
		}
	}
	for i := range letters {
		if n := got[fmt.Sprint(i)]; n != 1 {
			t.Errorf("letter %d came %d times", i, n)
		}
	}
}

// Nobody tells these nodes who they are: they ask each other to dial back. Those
// with public addresses find that they are reached there and offer circuits; so
// does one whose NAT forwards its port, at its NAT's address; one behind a NAT
// finds that nobody reaches it, and a place at the others.
func TestAutoNAT(t *testing.T) {
	t.Parallel()
	w := newWAN(t)
	var first string // address list of the first
	const public = 5 // libp2p believes in an address that four have seen
	listen := []string{"--listen", fmt.Sprintf("/ip4/0.0.0.0/udp/%d/quic-v1,/ip4/0.0.0.0/tcp/%d", forwardedPort, forwardedPort)}
	var all []*child
	var reached []string // at which address each of all should be reached; empty for by a relay
	begin := time.Now()
	for i := range public {
		name := fmt.Sprint("hub", i)
		at := w.host(t, name)
		settings := "circuits = true\n"
		if i > 0 {
			settings += "bootstrap = " + first
		}
		d := w.child(t, name, name, settings, listen...)
		d.start(t)
		if i == 0 {
			first = d.at(t, at)
		}
		all, reached = append(all, d), append(reached, at)
	}
	at := w.behind(t, forwarded, "fay")
	w.behind(t, cone, "ada")
	fay := w.child(t, "fay", "fay", "bootstrap = "+first, listen...)
	ada := w.child(t, "ada", "ada", "bootstrap = "+first, listen...)
	fay.start(t)
	ada.start(t)
	all, reached = append(all, fay, ada), append(reached, at, "")
	for i, d := range all {
		want := "relay"
		if reached[i] != "" {
			want = "direct"
		}
		within(t, 3*natTime, d.name+" to find out who reaches it", func(ctx context.Context) (bool, error) {
			st, err := api.Call(ctx, d.c.Status, &api.StatusRequest{})
			if err != nil || st.Reach != want {
				return false, err
			}
			if want == "relay" {
				return len(st.Confirmed) == 0, nil
			}
			return slices.ContainsFunc(st.Confirmed, func(a string) bool { return strings.HasPrefix(a, "/ip4/"+reached[i]+"/") }), nil
		})
		st := d.status(t)
		t.Logf("%.0f s: %s is reached: %s; confirmed: %q", time.Since(begin).Seconds(), d.name, st.Reach, st.Confirmed)
	}
	begin = time.Now()
	fay.add(t, ada.invite(t), ada)
	befriended(t, ada, fay)
	talk(t, ada, fay, "hello")
	within(t, natTime, "a direct connection", func(ctx context.Context) (bool, error) {
		both, err := pathsOf(ctx, ada, fay)
		return both == [2]string{api.PathDirect, api.PathDirect}, err
	})
	t.Logf("messages both ways and a direct connection %.1f s after the link was used", time.Since(begin).Seconds())
}
