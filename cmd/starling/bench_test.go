package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"starling/node/api"
	"starling/protocol/identity"
)

// The benchmarks here time whole daemons in processes of their own, two on
// loopback with key-file profiles:
//
//	go test ./cmd/starling -run '^$' -bench . -benchtime 5s

// A benchDaemon is a child process with a profile in a temporary folder.
type benchDaemon struct {
	home string
	cmd  *exec.Cmd
	in   io.Closer
	c    *api.Client
}

var buildOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "starling-bench")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "starling")
	out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building: %w: %s", err, out)
	}
	return bin, nil
})

func benchProfile(b *testing.B, name string) *benchDaemon {
	b.Helper()
	bin, err := buildOnce()
	if err != nil {
		b.Fatal(err)
	}
	d := &benchDaemon{home: b.TempDir()}
	d.cmd = exec.Command(bin, "--home", d.home, "init", "--name", name, "--no-passphrase")
	if out, err := d.cmd.CombinedOutput(); err != nil {
		b.Fatalf("init: %v: %s", err, out)
	}
	return d
}

// start runs the daemon and returns once its API answers.
func (d *benchDaemon) start(b *testing.B) {
	b.Helper()
	bin, err := buildOnce()
	if err != nil {
		b.Fatal(err)
	}
	d.cmd = exec.Command(bin, "--home", d.home, "up", "--until-stdin-closes", "--local", "--no-mdns", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1")
	d.cmd.Stderr = os.Stderr
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		if d.c, err = api.Dial(ctx, d.home); err == nil {
			return
		}
		if d.c != nil { // it starts
			d.c.Close()
		}
		<-time.After(time.Millisecond)
	}
	b.Fatalf("the daemon does not answer: %v", err)
}

func (d *benchDaemon) stop(b *testing.B) {
	b.Helper()
	d.c.Close()
	d.in.Close()
	if err := d.cmd.Wait(); err != nil {
		b.Errorf("the daemon ended with %v", err)
	}
}

// benchPair returns two running daemons that are contacts: a has b as Bo, and b
// has a as Ada.
func benchPair(b *testing.B) (ada, bo *benchDaemon) {
	b.Helper()
	ada, bo = benchProfile(b, "Ada"), benchProfile(b, "Bo")
	ada.start(b)
	bo.start(b)
	inv, err := ada.c.CreateInvite(b.Context(), connect.NewRequest(&api.CreateInviteRequest{}))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := bo.c.AddContact(b.Context(), connect.NewRequest(&api.AddContactRequest{Link: inv.Msg.Link, As: "Ada"})); err != nil {
		b.Fatal(err)
	}
	bo.exchange(b, "Ada")
	return ada, bo
}

// exchange sends a message and waits until it was delivered.
func (d *benchDaemon) exchange(b *testing.B, to string) {
	b.Helper()
	m, err := d.c.Send(b.Context(), connect.NewRequest(&api.SendRequest{To: to, Text: strings.Repeat("x", 200)}))
	if err != nil {
		b.Fatal(err)
	}
	d.await(b, m.Msg.Id)
}

func (d *benchDaemon) await(b *testing.B, id string) {
	b.Helper()
	m, err := d.c.WaitMessage(b.Context(), connect.NewRequest(&api.WaitMessageRequest{Id: id, State: "delivered", Timeout: 60_000}))
	if err != nil {
		b.Fatal(err)
	}
	if m.Msg.State != "delivered" {
		b.Fatalf("state after a minute = %s (%s)", m.Msg.State, m.Msg.Reason)
	}
}

// BenchmarkStartToAcknowledged times a process from its start to its first
// acknowledged message, to a contact whose address it knows.
func BenchmarkStartToAcknowledged(b *testing.B) {
	ada, bo := benchPair(b)
	defer ada.stop(b)
	var took []time.Duration
	for b.Loop() {
		bo.stop(b)
		began := time.Now()
		bo.start(b)
		bo.exchange(b, "Ada")
		took = append(took, time.Since(began))
	}
	bo.stop(b)
	report(b, took)
}

// BenchmarkOfflineMessage times a message that waits at two relays, from the start
// of its recipient's process until it is in the journal, which is what a user
// interface shows. Its sender is not there any more.
func BenchmarkOfflineMessage(b *testing.B) {
	ada, bo := benchPair(b)
	for range 2 {
		if _, err := bo.c.AddRelay(b.Context(), connect.NewRequest(&api.AddRelayRequest{Link: benchRelay(b)})); err != nil {
			b.Fatal(err)
		}
	}
	waitFor(b, func() bool { // Ada knows of them
		says, err := ada.c.Doctor(b.Context(), connect.NewRequest(&api.DoctorRequest{Contact: "Bo"}))
		return err == nil && slices.ContainsFunc(says.Msg.Findings, func(f *api.Finding) bool { return strings.HasPrefix(f.Text, "Bo takes messages at 2 relays") })
	})
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		bo.stop(b)
		text := fmt.Sprintf("while you were away, %d", i)
		m, err := ada.c.Send(b.Context(), connect.NewRequest(&api.SendRequest{To: "Bo", Text: text}))
		if err != nil {
			b.Fatal(err)
		}
		waitFor(b, func() bool {
			at, err := ada.c.WaitMessage(b.Context(), connect.NewRequest(&api.WaitMessageRequest{Id: m.Msg.Id, State: "stored", Timeout: 60_000}))
			return err == nil && at.Msg.Copies == 2
		})
		ada.stop(b)
		began := time.Now()
		bo.start(b)
		events, err := bo.c.Events(b.Context(), connect.NewRequest(&api.EventsRequest{Follow: true}))
		if err != nil {
			b.Fatal(err)
		}
		for events.Receive() && events.Msg().Text != text {
		}
		took = append(took, time.Since(began))
		if err := events.Err(); err != nil {
			b.Fatal(err)
		}
		events.Close()
		ada.start(b)
	}
	bo.stop(b)
	ada.stop(b)
	report(b, took)
}

// benchRelay starts a relay, which ends with the benchmark, and returns its link.
func benchRelay(b *testing.B) string {
	b.Helper()
	bin, err := buildOnce()
	if err != nil {
		b.Fatal(err)
	}
	c := exec.Command(bin, "demo", "relay", b.TempDir())
	in, err := c.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		if err := c.Wait(); err != nil {
			b.Errorf("the relay ended with %v", err)
		}
	})
	link, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(link)
}

// waitFor waits for a minute at most.
func waitFor(b *testing.B, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(time.Minute); !ok(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatal("it did not come about within a minute")
		}
	}
}

// BenchmarkRoundTrip times one message at a time from the call of Send to its
// acknowledgement: committed and synced on both sides.
func BenchmarkRoundTrip(b *testing.B) {
	ada, bo := benchPair(b)
	defer ada.stop(b)
	defer bo.stop(b)
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		bo.exchange(b, "Ada")
		took = append(took, time.Since(began))
	}
	report(b, took)
}

// report adds the median and the 99th percentile in milliseconds.
func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	at := func(q float64) float64 { return took[int(q*float64(len(took)-1))].Seconds() * 1e3 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
}

// BenchmarkOneWay sends from 64 callers at once and counts messages a second
// until the last was acknowledged.
func BenchmarkOneWay(b *testing.B) {
	ada, bo := benchPair(b)
	defer ada.stop(b)
	defer bo.stop(b)
	const callers, each = 24, 250
	sent := 0
	began := time.Now()
	for b.Loop() {
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for range each {
					if _, err := bo.c.Send(b.Context(), connect.NewRequest(&api.SendRequest{To: "Ada", Text: strings.Repeat("x", 200)})); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		bo.exchange(b, "Ada") // in order: when this one arrived, all did
		sent += callers*each + 1
	}
	b.ReportMetric(float64(sent)/time.Since(began).Seconds(), "msgs/s")
}

// BenchmarkIdle watches a daemon with 200 contacts that has nothing to do.
func BenchmarkIdle(b *testing.B) {
	d := benchProfile(b, "Ada")
	d.start(b)
	defer d.stop(b)
	for i := range 200 {
		if _, err := d.c.AddContact(b.Context(), connect.NewRequest(&api.AddContactRequest{Link: strangersLink(b, i)})); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		<-time.After(10 * time.Second)
	}
	before := processTime(b, d.cmd.Process.Pid)
	const watch = 20 * time.Second
	<-time.After(watch)
	b.ReportMetric(100*(processTime(b, d.cmd.Process.Pid)-before).Seconds()/watch.Seconds(), "%core")
	b.ReportMetric(residentMiB(b, d.cmd.Process.Pid), "RSS-MiB")
}

// processTime returns the CPU time of a process so far.
func processTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skip("needs /proc:", err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

func residentMiB(b *testing.B, pid int) float64 {
	b.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		b.Skip("needs /proc:", err)
	}
	pages, _ := strconv.Atoi(strings.Fields(string(statm))[1])
	return float64(pages*os.Getpagesize()) / (1 << 20)
}

// strangersLink returns the link of an account that nobody runs.
func strangersLink(b *testing.B, i int) string {
	b.Helper()
	secret, err := identity.SecretFrom(append(make([]byte, 31), byte(i+1)))
	if err != nil {
		b.Fatal(err)
	}
	return identity.Link{Account: identity.NewAccountKey(secret).Account(), Lookup: identity.LookupSecret{1}}.String()
}
