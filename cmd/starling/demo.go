package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"

	"starling/node/api"
	"starling/node/relay/station"
	"starling/node/store"
)

func (a *app) demoCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "demo",
		Short: "See the whole story on this machine",
		Long: `Start three nodes and two relays on this machine, in temporary folders that are
removed at the end, and play the whole story with them: an invite, a
conversation, a crash, people who are never online together, a relay that dies,
an impostor. Nothing leaves the machine. Exits 0 if every act held.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context()) },
	}
	c.AddCommand(a.demoRelayCmd())
	return c
}

// demoRelayCmd is a relay of the play: the same as starling-relay runs, which is
// another program and may not be at hand.
func (a *app) demoRelayCmd() *cobra.Command {
	var bootstrap []string
	c := &cobra.Command{
		Use: "relay DIR", Hidden: true, Args: exactly("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.demoRelay(cmd.Context(), args[0], bootstrap) },
	}
	c.Flags().StringSliceVar(&bootstrap, "bootstrap", nil, "find the network by this multiaddr")
	return c
}

// demoRelay runs a relay in an empty folder until standard input ends. It prints
// its link when it listens.
func (a *app) demoRelay(ctx context.Context, dir string, bootstrap []string) (err error) {
	key, err := station.CreateKeyFile(filepath.Join(dir, "relay.key"))
	if err != nil {
		return err
	}
	rows, err := store.CreateKeyFile(filepath.Join(dir, "store.key"), store.Protection{Plain: true})
	if err != nil {
		return err
	}
	db, err := store.Open(store.Config{Dir: filepath.Join(dir, "store"), Key: rows})
	if err != nil {
		return err
	}
	s, err := station.Open(ctx, station.Config{
		Store: db, Key: key, Dir: filepath.Join(dir, "spool"), Quota: 64_000_000, Open: true, Bootstrap: bootstrap,
		Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, Local: true, NoPortMap: true, NoAutoNAT: true,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	link, err := s.Link(false, true)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, link)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the process at the latest
		_, _ = io.Copy(io.Discard, a.in)
		cancel()
	}()
	return s.Run(ctx)
}

// actLimit bounds one act; on a quiet machine the whole play takes less.
const actLimit = 20 * time.Second

// A stage is where the demo is played.
type stage struct {
	*app
	self string // this program
	dir  string // everything below it goes away at the end

	ada, bo, cy *actor
	rita, sam   *volunteer
	texts       []string // everything that was said, in order
}

// An actor is a person with a node.
type actor struct {
	name    string // as the others call them
	profile string // as they call themselves: long enough to search for
	home    string
	api     *api.Client
	account string
	peer    peer.ID
	process
}

// A volunteer is a person with a relay.
type volunteer struct {
	name, home, link string
	process
}

// A process is a child that ends when its standard input closes, so that nothing
// is left behind however the demo ends.
type process struct {
	stdin io.WriteCloser
	child *exec.Cmd
	ended chan struct{} // closed when the child has ended
}

// result is what one act came to.
type result struct {
	Act     string  `json:"act"`
	Played  bool    `json:"played"`
	Held    bool    `json:"held"`
	Seconds float64 `json:"seconds"`
	Detail  string  `json:"detail"`
}

func (r result) mark() cell {
	switch {
	case r.Held:
		return cell{"✓", green}
	case r.Played:
		return cell{"✗", red}
	}
	return cell{"-", dim}
}

func (a *app) demo(ctx context.Context) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "starling-demo-")
	if err != nil {
		return err
	}
	s := &stage{app: a, self: self, dir: dir}
	s.ada, s.bo, s.cy = s.actor("Ada", "Ada Adlerberg"), s.actor("Bo", "Bo Bergstrom"), s.actor("Cy", "Cy Castellan")
	s.rita, s.sam = s.volunteer("Rita"), s.volunteer("Sam")
	defer func() {
		s.strike()
		err = errors.Join(err, os.RemoveAll(dir))
	}()

	s.tell("%s\n", a.out.paint(bold, "Three people, three nodes, two relays, one machine. Nothing leaves it."))
	begin := time.Now()
	var results []result
	held := true
	for i, act := range acts {
		s.tell("%s", a.out.paint(bold, fmt.Sprintf("%d. %s", i+1, act.title)))
		r := result{Act: act.claim, Detail: "not played"}
		if held {
			r = s.play(ctx, act)
			held = r.Held
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if a.json {
			a.print(r)
		}
		c := r.mark()
		s.tell("   %s %s\n", a.out.paint(c.style, c.text), r.Detail)
		results = append(results, r)
	}
	s.summary(results, time.Since(begin))
	if !held {
		return fail(exitError, "the demo did not hold")
	}
	return nil
}

// play plays one act within its time.
func (s *stage) play(ctx context.Context, act act) result {
	ctx, cancel := context.WithTimeout(ctx, actLimit)
	defer cancel()
	begin := time.Now()
	detail, err := act.play(s, ctx)
	r := result{Act: act.claim, Played: true, Held: err == nil, Seconds: time.Since(begin).Seconds(), Detail: detail}
	if err != nil {
		r.Detail = escape(err.Error())
		if ctx.Err() != nil {
			r.Detail = fmt.Sprintf("gave up after %s: %s", spell(actLimit), r.Detail)
		}
	}
	return r
}

func (s *stage) summary(results []result, took time.Duration) {
	if s.json {
		return
	}
	rows := [][]cell{head("", "WHAT WAS SHOWN", "TIME")}
	n := 0
	for _, r := range results {
		if r.Held {
			n++
		}
		rows = append(rows, []cell{r.mark(), {r.Act, ""}, {fmt.Sprintf("%.1f s", r.Seconds), dim}})
	}
	s.out.table(rows)
	s.tell("\n%d of %d acts held, in %.1f s.", n, len(results), took.Seconds())
	if n == len(results) {
		s.next("Now with a real person: starling init")
	}
}

// tell prints a line of the story.
func (s *stage) tell(format string, args ...any) {
	if !s.json {
		fmt.Fprintf(s.out, format+"\n", args...)
	}
}

// says tells what somebody does.
func (s *stage) says(who *actor, format string, args ...any) { s.does(who.name, format, args...) }

func (s *stage) does(name, format string, args ...any) {
	s.tell("   %s %s", s.out.paint(bold, fmt.Sprintf("%-4s", name)), fmt.Sprintf(format, args...))
}

func (s *stage) actor(name, profile string) *actor {
	return &actor{name: name, profile: profile, home: filepath.Join(s.dir, strings.ToLower(name))}
}

func (s *stage) volunteer(name string) *volunteer {
	return &volunteer{name: name, home: filepath.Join(s.dir, strings.ToLower(name))}
}

// run runs this program as who would, and returns what it printed and its exit
// code.
func (s *stage) run(ctx context.Context, who *actor, args ...string) (string, int, error) {
	c := exec.CommandContext(ctx, s.self, append([]string{"--home", who.home}, args...)...)
	ownGroup(c)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() >= 0 {
		return out.String(), e.ExitCode(), nil
	}
	return out.String(), 0, err
}

// create makes the profiles of all, at once.
func (s *stage) create(ctx context.Context, all ...*actor) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, who := range all {
		wg.Go(func() {
			out, code, err := s.run(ctx, who, "init", "--no-passphrase", "--name", who.profile)
			if err == nil && code != 0 {
				err = fmt.Errorf("starling init of %s exited %d: %s", who.name, code, strings.TrimSpace(out))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// start starts the node of who and waits until it runs.
func (s *stage) start(ctx context.Context, who *actor, bootstrap ...string) error {
	args := []string{"--home", who.home, "up", "--until-stdin-closes", "--local", "--no-mdns", "--dht", "server", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"}
	for _, b := range bootstrap {
		args = append(args, "--bootstrap", b)
	}
	log, err := os.OpenFile(filepath.Join(who.home, "starling.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(s.self, args...)
	c.Stdout, c.Stderr = log, log
	if err := who.launch(c); err != nil {
		return err
	}
	return s.until(ctx, who.name+"'s node to run", func() (bool, error) {
		select {
		case <-who.ended:
			b, _ := os.ReadFile(log.Name())
			return false, fmt.Errorf("%s's node ended: %s", who.name, strings.TrimSpace(string(b)))
		default:
		}
		line, err := api.Dial(ctx, who.home)
		if err != nil {
			if line != nil {
				line.Close()
			}
			return false, nil
		}
		st, err := api.Call(ctx, line.Status, &api.StatusRequest{})
		if err != nil {
			return false, err
		}
		who.api, who.account = line, st.Account
		who.peer, err = peer.Decode(st.PeerId)
		return err == nil, err
	})
}

// open starts a relay and waits until it listens.
func (s *stage) open(who *volunteer, bootstrap ...string) error {
	if err := os.Mkdir(who.home, 0o700); err != nil {
		return err
	}
	args := []string{"demo", "relay", who.home}
	for _, b := range bootstrap {
		args = append(args, "--bootstrap", b)
	}
	log, err := os.Create(filepath.Join(who.home, "relay.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(s.self, args...)
	c.Stderr = log
	out, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	c.Stdout = w
	err = who.launch(c)
	w.Close()
	if err != nil {
		return err
	}
	if who.link, err = bufio.NewReader(out).ReadString('\n'); err != nil { // its end ends the line, too
		b, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%s's relay ended: %s", who.name, strings.TrimSpace(string(b)))
	}
	who.link = strings.TrimSpace(who.link)
	return nil
}

// launch starts a child.
func (p *process) launch(c *exec.Cmd) error {
	ownGroup(c)
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	p.stdin, p.child, p.ended = in, c, ended
	go func() { // ends with the child, which strike waits for
		c.Wait()
		close(ended)
	}()
	return nil
}

// cut ends a child as a power cut does.
func (p *process) cut() error {
	err := p.child.Process.Kill()
	<-p.ended
	p.child = nil
	return err
}

// finish ends a child in order, and returns its exit code.
func (p *process) finish(ctx context.Context) (int, error) {
	p.stdin.Close()
	select {
	case <-p.ended:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	code := p.child.ProcessState.ExitCode()
	p.child = nil
	return code, nil
}

// kill ends the node of who as a power cut does.
func (who *actor) kill() error {
	err := who.cut()
	who.leave()
	return err
}

// stop ends the node of who in order.
func (who *actor) stop(ctx context.Context) error {
	code, err := who.finish(ctx)
	if err != nil {
		return fmt.Errorf("waiting for %s's node to end: %w", who.name, err)
	}
	who.leave()
	if code != 0 {
		return fmt.Errorf("%s's node exited %d", who.name, code)
	}
	return nil
}

// leave closes the line to a node that ended.
func (who *actor) leave() {
	if who.api != nil {
		who.api.Close()
		who.api = nil
	}
}

// strike ends what still runs.
func (s *stage) strike() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	all := []*process{&s.ada.process, &s.bo.process, &s.cy.process, &s.rita.process, &s.sam.process}
	for _, p := range all {
		if p.child != nil {
			p.stdin.Close()
		}
	}
	for _, p := range all {
		if p.child == nil {
			continue
		}
		if _, err := p.finish(ctx); err != nil {
			p.cut()
		}
	}
	for _, who := range []*actor{s.ada, s.bo, s.cy} {
		who.leave()
	}
}

// until asks again and again until done says yes, and fails with what was
// waited for when ctx ends.
func (s *stage) until(ctx context.Context, what string, done func() (bool, error)) error {
	for {
		ok, err := done()
		if err != nil && ctx.Err() == nil {
			return err
		}
		if ok {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("waited for %s in vain", what)
		}
	}
}
