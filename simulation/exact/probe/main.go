// Command probe does, in one bubble, a little of everything that differs
// from run to run in an ordinary program, and prints a hash of what happened.
// The tests of simulation/exact build and run it.
//
//	probe SEED [IGNORED]...
//
// SEED 0 stops virtual time instead.
package main

import (
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"starling/simulation/bubble"
	"starling/simulation/exact"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) < 2 {
		return fmt.Errorf("usage: probe SEED [IGNORED]")
	}
	seed, err := strconv.ParseUint(os.Args[1], 10, 64)
	if err != nil {
		return err
	}
	if err := exact.Reexec(seed); err != nil {
		return err
	}
	do, stop := bubble.Outside()
	defer stop()
	var ready atomic.Bool // never
	l := log{h: sha256.New()}
	for range os.Getpid() % 61 { // what happened before must not matter
		runtime.Gosched()
	}
	var before [][]byte // nor what is left of it, and dies in the bubble
	for range 1000 {
		before = append(before, make([]byte, 16<<(os.Getpid()%8)))
	}
	for range os.Getpid() % 7 { // nor how many lots were drawn
		_ = rand.Uint64()
	}
	early := map[int]int{}
	for i := range 100 {
		early[i] = i
	}
	gone(os.Getpid() % 5) // nor how many goroutines there were; a hundred would show
	err = bubble.Run(seed, func() {
		for seed == 0 && !ready.Load() { // computes without end
		}
		l.add("before", len(before))
		before = nil
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { bubble.Collect(ctx, 1<<20) })
		for round := range 20 {
			l.selects()
			l.timers()
			l.maps(early)
			l.contexts()
			l.workers()
			l.crowd()
			outside := 0
			do(func() { outside = round })
			l.add("outside", outside)
			time.Sleep(time.Second)
		}
		cancel()
		wg.Wait()
	})
	if err != nil {
		return err
	}
	fmt.Println(hex.EncodeToString(l.h.Sum(nil)))
	return nil
}

// known is made before main begins, and its keys are addresses, as in the
// registries of many packages.
var known = func() *sync.Map {
	var m sync.Map
	for i := range 100 {
		m.Store(new([64]byte), i)
	}
	return &m
}()

// gone has n goroutines wait for each other, and end.
func gone(n int) {
	var wg sync.WaitGroup
	start := make(chan int) // closed below
	for range n {
		wg.Go(func() {
			for range n {
				defer func() { <-start }()
			}
		})
	}
	runtime.Gosched()
	close(start)
	wg.Wait()
}

// A log hashes what happens, in order.
type log struct {
	mu sync.Mutex
	h  hash.Hash
}

func (l *log) add(what string, n ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.h, what, n, time.Now().UnixNano())
}

// selects has several cases ready at a time.
func (l *log) selects() {
	var c [4]chan int
	for i := range c {
		c[i] = make(chan int, 100)
		for n := range 100 {
			c[i] <- n
		}
	}
	for range 100 {
		select {
		case n := <-c[0]:
			l.add("select", 0, n)
		case n := <-c[1]:
			l.add("select", 1, n)
		case n := <-c[2]:
			l.add("select", 2, n)
		case n := <-c[3]:
			l.add("select", 3, n)
		}
	}
}

// crowd wakes more goroutines at once than the queue of a processor holds.
func (l *log) crowd() {
	var wg sync.WaitGroup
	start := make(chan int) // closed below
	for i := range 700 {
		wg.Go(func() {
			<-start
			for n := range 3 {
				l.add("crowd", i, n)
				runtime.Gosched()
			}
		})
	}
	time.Sleep(time.Second)
	close(start)
	wg.Wait()
}

// timers has many due at one instant.
func (l *log) timers() {
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			time.Sleep(time.Second)
			l.add("timer", i)
		})
	}
	wg.Wait()
}

// maps iterates over maps, made before the bubble and in it, keyed by numbers and
// by addresses.
func (l *log) maps(early map[int]int) {
	for n := range early {
		l.add("early", n)
	}
	for _, n := range known.Range {
		l.add("known", n)
	}
	numbers, addresses := map[int]int{}, map[*[64]byte]int{}
	for i := range 100 {
		numbers[i] = i
		addresses[new([64]byte)] = i
	}
	for n := range numbers {
		l.add("number", n)
	}
	for _, n := range addresses {
		l.add("address", n)
	}
}

// contexts cancels many children at once.
func (l *log) contexts() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range 100 {
		child, end := context.WithCancel(ctx)
		wg.Go(func() {
			defer end()
			<-child.Done()
			l.add("context", i)
		})
	}
	time.Sleep(time.Millisecond)
	cancel()
	wg.Wait()
}

// workers compete for work that takes longer than a time slice, make garbage,
// make system calls and draw lots.
func (l *log) workers() {
	work := make(chan int)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range work {
				sum := sha256.Sum256(nil)
				for range 10_000 {
					sum = sha256.Sum256(sum[:])
				}
				waste := make([][]byte, 100)
				for k := range waste {
					waste[k] = make([]byte, 1000)
				}
				var b [8]byte
				if exact.Enabled() { // seeded there only
					_, _ = crand.Read(b[:]) // never fails
				}
				_ = bubble.Memory()
				l.add("work", i, n, len(waste), rand.Uint64(), b, sum)
			}
		})
	}
	for n := range 20 {
		work <- n
	}
	close(work)
	wg.Wait()
}
