package main

import (
	"fmt"
	"sync"
	"time"

	"starling/simulation"
	"starling/simulation/report"
)

// quietEvery is how often progress is told to a log, which nobody watches.
const quietEvery = 30 * time.Second

// progress tells on standard error how far a run is: to a person on one line
// that changes, to a log on a line now and then.
type progress struct {
	a      *app
	name   string
	total  time.Duration // that the scenario lasts; then it settles
	live   bool
	last   simulation.Usage // shown last
	shown  bool
	before simulation.Usage // a moment ago, for the speed
}

func (a *app) progress(name string, total time.Duration) *progress {
	return &progress{a: a, name: name, total: total, live: a.terminal()}
}

// whole writes a time in whole seconds.
func whole(d time.Duration) string { return report.Time(d.Round(time.Second)) }

// show is called about once a second.
func (p *progress) show(u simulation.Usage) {
	speed := 0.0
	if d := u.Wall - p.before.Wall; d > 0 {
		speed = float64(u.At-p.before.At) / float64(d)
	}
	p.before = u
	if !p.live && p.shown && u.Wall-p.last.Wall < quietEvery {
		return
	}
	p.last, p.shown = u, true
	line := fmt.Sprintf("%s: %s of %s simulated, %.0f times as fast as real time, %d MB", p.name, whole(u.At), whole(p.total), speed, u.Memory/1_000_000)
	if p.live {
		fmt.Fprintf(p.a.err, "\r%s\x1b[K", line)
		return
	}
	fmt.Fprintln(p.a.err, line)
}

// follow returns a function that tells the progress of a run, and one that ends
// the telling and leaves the line. Virtual time calls the first and must not wait
// for a disk or a terminal: it hands over, and drops what comes too fast. each is
// called with what is told, outside of virtual time, one after another.
func (p *progress) follow(each func()) (tell func(simulation.Usage), end func()) {
	news := make(chan simulation.Usage, 1) // tell sends if there is room; end closes it
	var wg sync.WaitGroup
	wg.Go(func() {
		for u := range news {
			p.show(u)
			each()
		}
	})
	tell = func(u simulation.Usage) {
		select {
		case news <- u:
		default:
		}
	}
	return tell, func() {
		close(news)
		wg.Wait()
		p.leave()
	}
}

// leave leaves the line; a log that has some gets one that says it is over.
func (p *progress) leave() {
	switch {
	case p.shown && p.live:
		fmt.Fprint(p.a.err, "\r\x1b[K")
	case p.shown:
		fmt.Fprintf(p.a.err, "%s: ended; writing the results\n", p.name)
	}
}
