// Bench measures a relay beside NATS JetStream, on one machine in one run:
//
//	go run . -rounds 5
//
// Both keep messages of 1 KiB and have each on the disk before they promise
// anything: JetStream with a file store and sync_interval always, acknowledged;
// the relay with a receipt over a sealed envelope, verified. What is sealed in the
// smallest envelope is 1,024 bytes, and the relay keeps 2,160; -blob 5232 is the
// envelope of a text of 1,024 bytes, with all that travels beside it. The blobs are
// random bytes, as an envelope is to a relay, so that sealing is not in the figures.
//
// Each server is a process of its own, with a folder of its own; this process is
// all of its clients. A round asks one and then the other for
//
//	deposits       512 on their way, from eight connections
//	one at a time  from one of them
//	drain          eight readers read and delete all of it; JetStream's streams are
//	               work queues, and every message is acknowledged
//
// and the table has the medians of the rounds, for each second that passed, each
// second of the server's processors, and each of all processors used.
//
// It is a module of its own, so that nobody who builds Starling needs NATS. It
// needs a Unix.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

const (
	clients = 8
	flight  = 512 / clients // messages of one client on their way
	payload = 1024          // bytes that JetStream is given
)

// Flags.
var (
	rounds   = flag.Int("rounds", 5, "how often each server is measured")
	messages = flag.Int("messages", 32768, "messages of a round, a multiple of 512")
	alone    = flag.Int("alone", 1000, "messages of a round that are sent one at a time, at most an eighth of the others")
	blob     = flag.Int("blob", 2160, "size of a sealed envelope")
	streams  = flag.Int("streams", 8, "streams that JetStream has for the eight clients, 1 to 8; with 8 it is faster")
	dir      = flag.String("dir", "", "folder of the servers' folders; default the system's for temporary files")
	only     = flag.String("only", "", "measure only nats or relay")
	profile  = flag.String("profile", "", "write a CPU profile of each server to the file with this name and the server's after it")
	serve    = flag.String("serve", "", "be a server, nats or relay, until the end of standard input (for the program itself)")
)

// A running server serves until its close is called. at tells clients where it is.
type running struct {
	at    string
	close func() error
}

// A service is a server as its clients see it. Client i is 0 to clients-1.
type service interface {
	// ready makes room for n messages of each client. It is not measured.
	ready(ctx context.Context, n int) error
	// put leaves n messages of a client, up to flight on their way, or one if it
	// is said, and returns when all of them were promised to be on the disk.
	put(ctx context.Context, i, n int, oneByOne bool) error
	// drain reads and deletes n messages of a client.
	drain(ctx context.Context, i, n int) error
	close()
}

// A contender is one of those measured.
type contender struct {
	name  string
	serve func(dir string) (*running, error)
	dial  func(ctx context.Context, at string) (service, error)
}

var contenders = map[string]contender{
	"nats":  {"NATS JetStream", serveNATS, dialNATS},
	"relay": {"Starling relay", serveRelay, dialRelay},
}

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case *serve != "":
		err = serveUntilEOF(*serve)
	case *rounds < 1, *messages < 1, *messages%(clients*flight) != 0, *alone < 1, *alone > *messages/clients, *streams < 1, *streams > clients:
		err = errors.New("wants one round or more, -messages a multiple of 512, -alone from 1 to an eighth of it, -streams from 1 to 8")
	default:
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// serveUntilEOF is the server's process: it says where it is, answers each line of
// standard input with the processor time that it has used, and ends with it.
func serveUntilEOF(name string) error {
	c, ok := contenders[name]
	if !ok {
		return fmt.Errorf("no server %q", name)
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer f.Close()
		defer pprof.StopCPUProfile()
	}
	s, err := c.serve(*dir)
	if err != nil {
		return err
	}
	fmt.Println(s.at)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(cpu().Nanoseconds())
	}
	return s.close()
}

// cpu returns the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic("bench: internal error: getrusage: " + err.Error())
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A process is a server's process, and the clients here.
type process struct {
	service
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// start starts a server's process and connects the clients.
func start(ctx context.Context, name, dir string) (_ *process, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"-serve", name, "-dir", dir, "-streams", strconv.Itoa(*streams)}
	if *profile != "" {
		args = append(args, "-profile", *profile+name)
	}
	p := &process{cmd: exec.Command(self, args...)}
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	at, err := p.out.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("starting the server %s: %w", name, err)
	}
	p.service, err = contenders[name].dial(ctx, strings.TrimSpace(at))
	return p, err
}

// used returns the processor time that the server has used.
func (p *process) used() (time.Duration, error) {
	if _, err := io.WriteString(p.in, "\n"); err != nil {
		return 0, err
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		return 0, err
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	return time.Duration(ns), err
}

func (p *process) stop() error {
	if p.service != nil {
		p.service.close()
	}
	return errors.Join(p.in.Close(), p.cmd.Wait())
}

// A figure is messages for each second: that passed, of the server's processors,
// of all of them.
type figure [3]float64

var seconds = [len(figure{})]string{"a second", "a second of the server's CPU", "a second of all CPU"}

// measure runs f, which treats n messages, on k clients at once.
func (p *process) measure(k, n int, f func(i int) error) (figure, error) {
	theirs, err := p.used()
	if err != nil {
		return figure{}, err
	}
	ours, began := cpu(), time.Now()
	errs := make([]error, k)
	var all sync.WaitGroup
	for i := range k {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	took := time.Since(began)
	ours = cpu() - ours
	now, err := p.used()
	theirs = now - theirs
	per := func(d time.Duration) float64 { return float64(n) / d.Seconds() }
	return figure{per(took), per(theirs), per(theirs + ours)}, errors.Join(append(errs, err)...)
}

// tasks are what a round measures, in order.
var tasks = []string{"deposits", "one at a time", "drain"}

// round measures all tasks once. It leaves nothing in the server.
func (p *process) round(ctx context.Context) (figures []figure, err error) {
	each := *messages / clients
	if err := p.ready(ctx, each); err != nil {
		return nil, fmt.Errorf("making room: %w", err)
	}
	drain := func(i int) error { return p.drain(ctx, i, each) }
	for _, task := range []struct {
		clients, messages int
		run               func(i int) error
	}{
		{clients, *messages, func(i int) error { return p.put(ctx, i, each, false) }},
		{clients, *messages, drain},
		{1, *alone, func(i int) error { return p.put(ctx, i, *alone, true) }},
		{1, *alone, func(i int) error { return p.drain(ctx, i, *alone) }},
	} {
		f, err := p.measure(task.clients, task.messages, task.run)
		if err != nil {
			return nil, err
		}
		figures = append(figures, f)
	}
	return []figure{figures[0], figures[2], figures[1]}, nil
}

// run measures everybody and prints the table.
func run(ctx context.Context) (err error) {
	folder, err := os.MkdirTemp(*dir, "starling-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	var names []string
	for _, name := range []string{"nats", "relay"} {
		if *only == "" || *only == name {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("no server %q", *only)
	}
	got := map[string][][]figure{} // by server and round
	processes := map[string]*process{}
	defer func() {
		for _, p := range processes {
			err = errors.Join(err, p.stop())
		}
	}()
	for _, name := range names {
		if processes[name], err = start(ctx, name, filepath.Join(folder, name)); err != nil {
			delete(processes, name)
			return err
		}
	}
	for r := range *rounds {
		for _, name := range names {
			figures, err := processes[name].round(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", contenders[name].name, err)
			}
			got[name] = append(got[name], figures)
			fmt.Fprintf(os.Stderr, "round %d, %s: %.0f, %.0f, %.0f\n", r+1, contenders[name].name, figures[0][0], figures[1][0], figures[2][0])
		}
	}
	return table(os.Stdout, names, got)
}

// table prints the medians.
func table(w io.Writer, names []string, got map[string][][]figure) error {
	fmt.Fprintf(w, "%d rounds of %d messages, %d processors for each process\n", *rounds, *messages, runtime.GOMAXPROCS(0))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "messages\t")
	for _, name := range names {
		fmt.Fprintf(t, "%s\t", contenders[name].name)
	}
	if len(names) == 2 {
		fmt.Fprint(t, "ratio\t")
	}
	fmt.Fprintln(t)
	for i, task := range tasks {
		for j, second := range seconds {
			fmt.Fprintf(t, "%s, %s\t", task, second)
			var medians []float64
			for _, name := range names {
				var all []float64
				for _, round := range got[name] {
					all = append(all, round[i][j])
				}
				slices.Sort(all)
				medians = append(medians, (all[len(all)/2]+all[(len(all)-1)/2])/2)
				fmt.Fprintf(t, "%.0f\t", medians[len(medians)-1])
			}
			if len(medians) == 2 {
				fmt.Fprintf(t, "%.2f\t", medians[1]/medians[0])
			}
			fmt.Fprintln(t)
		}
	}
	return t.Flush()
}
