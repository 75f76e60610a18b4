package bubble

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestOutside(t *testing.T) {
	do, stop := Outside()
	defer stop()
	file := filepath.Join(t.TempDir(), "profile")
	var here, there string
	Test(t, 1, func() {
		here = head()
		began := time.Now()
		var wg sync.WaitGroup
		for range 3 { // at once
			wg.Go(func() {
				do(func() {
					there = head()
					f, err := os.Create(file)
					if err != nil {
						t.Error(err)
						return
					}
					if err := errors.Join(pprof.StartCPUProfile(f), f.Sync()); err != nil {
						t.Error(err)
					}
					pprof.StopCPUProfile()
					if err := f.Close(); err != nil {
						t.Error(err)
					}
				})
			})
		}
		wg.Wait()
		if d := time.Since(began); d != 0 {
			t.Errorf("virtual time moved by %v", d)
		}
		time.Sleep(time.Hour)
	})
	if !strings.Contains(here, "synctest bubble") || strings.Contains(there, "synctest bubble") {
		t.Errorf("in the bubble: %s outside: %s", here, there)
	}
	if fi, err := os.Stat(file); err != nil || fi.Size() == 0 {
		t.Errorf("no profile: %v", err)
	}
}

func TestOutsidePassesAPanicOn(t *testing.T) {
	do, stop := Outside()
	defer stop()
	cause := errors.New("disk on fire")
	for range 2 { // the goroutine survives it
		if err := Run(1, func() { do(func() { panic(cause) }) }); !errors.Is(err, cause) {
			t.Errorf("got %v, want %v", err, cause)
		}
	}
}

// head returns the line of the caller's stack that says what its goroutine is.
func head() string {
	b := make([]byte, 256)
	line, _, _ := strings.Cut(string(b[:runtime.Stack(b, false)]), "\n")
	return line
}

func TestWatchdogBarksWhenVirtualTimeStops(t *testing.T) {
	var out bytes.Buffer
	stuck := make(chan struct{}) // made outside: waiting for it stops virtual time
	d := Watchdog{After: 20 * time.Millisecond, Out: &out, Bark: func() { close(stuck) }}
	stop := d.Watch()
	Test(t, 1, func() { waitForever(stuck) })
	stop()
	if s := out.String(); !strings.Contains(s, "has not moved for 20ms") || !strings.Contains(s, "bubble.waitForever(") {
		t.Errorf("the report does not say who waits:\n%s", s)
	}
}

func waitForever(c chan struct{}) { <-c }

func TestWatchdogIsQuietWhileVirtualTimeMoves(t *testing.T) {
	d := Watchdog{After: time.Hour, Out: &bytes.Buffer{}}
	// In a bubble the dog's hours are virtual, too, and exact. It barks once.
	barked := -1
	Test(t, 1, func() {
		began := time.Now()
		d.Bark = func() { barked = int(time.Since(began).Minutes()) }
		stop := d.Watch()
		defer stop()
		for range 100 {
			time.Sleep(59 * time.Minute)
			d.Bump()
		}
		time.Sleep(90 * time.Minute)
	})
	if last := 100 * 59; barked < last+60 || barked > last+90 {
		t.Errorf("it barked after %d minutes; the last bump was after %d", barked, last)
	}
}

var garbage []byte // so that the compiler does not leave it out

func TestCollect(t *testing.T) {
	for _, c := range []struct{ floor, least, most int64 }{
		{floor: 1 << 40, least: 0, most: 0},
		{floor: 100 << 20, least: 9, most: 11},
	} {
		var before, after runtime.MemStats
		Test(t, 1, func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			runtime.ReadMemStats(&before)
			go func() { // garbage: a thousand megabytes, at odd instants
				for range 1000 {
					time.Sleep(50 * time.Millisecond)
					garbage = make([]byte, 1<<20)
				}
			}()
			Collect(ctx, c.floor)
			runtime.ReadMemStats(&after)
		})
		if n := int64(after.NumForcedGC - before.NumForcedGC); n < c.least || n > c.most {
			t.Errorf("with a floor of %d: %d collections in a minute, want %d to %d", c.floor, n, c.least, c.most)
		}
	}
}
