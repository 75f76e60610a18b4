package bubble

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fromMain is what Run returned in TestMain, where no test runs yet.
var fromMain error

func TestMain(m *testing.M) {
	fromMain = Run(1, func() { time.Sleep(time.Hour) })
	os.Exit(m.Run())
}

func ExampleRun() {
	err := Run(1, func() {
		began := time.Now()
		time.Sleep(24 * time.Hour)
		fmt.Println(began.UTC().Format(time.DateOnly), time.Since(began))
	})
	fmt.Println(err)
	// Output:
	// 2000-01-01 24h0m0s
	// <nil>
}

func TestRunInTestMain(t *testing.T) {
	if fromMain != nil {
		t.Error(fromMain)
	}
}

func TestRunAThousandInARow(t *testing.T) {
	procs, args, out, flags := runtime.GOMAXPROCS(0), len(os.Args), os.Stdout, flag.CommandLine
	slept := 0
	for i := range 1000 {
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := Run(uint64(i), func() { time.Sleep(time.Hour); slept++ }); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
	}
	if slept != 1000 {
		t.Errorf("%d of 1,000 functions ran", slept)
	}
	if runtime.GOMAXPROCS(0) != procs || len(os.Args) != args || os.Stdout != out || flag.CommandLine != flags {
		t.Error("Run changed GOMAXPROCS, os.Args, os.Stdout or flag.CommandLine")
	}
}

func TestRunAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := Run(1, func() { time.Sleep(time.Duration(i) * time.Hour); synctest.Wait() }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestRunReportsAPanic(t *testing.T) {
	cause := errors.New("boom")
	err := Run(1, func() {
		go func() { select {} }() // what the panic leaves behind is not the news
		panic(cause)
	})
	p, ok := errors.AsType[*PanicError](err)
	if !ok || !errors.Is(err, cause) || !bytes.Contains(p.Stack, []byte("TestRunReportsAPanic")) {
		t.Errorf("got %v, want a PanicError with its value and stack", err)
	}
}

func TestRunReportsGoexit(t *testing.T) {
	if err := Run(1, runtime.Goexit); !errors.Is(err, ErrExited) {
		t.Errorf("got %v, want %v", err, ErrExited)
	}
}

func TestRunReportsALeak(t *testing.T) {
	err := Run(1, func() {
		for range 3 {
			go leak()
		}
		go time.Sleep(time.Hour) // virtual time ends with the function
	})
	e, ok := errors.AsType[*LeakError](err)
	if !ok || e.Stuck || e.Goroutines != 4 || bytes.Count(e.Stacks, []byte("bubble.leak()")) != 3 {
		t.Errorf("got %v, want a LeakError with 4 goroutines", err)
	}
	if ok && !strings.Contains(err.Error(), "synctest bubble") {
		t.Errorf("no stack in %q", err)
	}
	if err := Run(1, func() { time.Sleep(time.Hour) }); err != nil {
		t.Errorf("after a leak: %v", err)
	}
}

func leak() { select {} }

func TestRunReportsThatNothingCanHappen(t *testing.T) {
	err := Run(1, leak)
	e, ok := errors.AsType[*LeakError](err)
	if !ok || !e.Stuck || e.Goroutines != 1 || !bytes.Contains(e.Stacks, []byte("bubble.leak()")) {
		t.Errorf("got %v, want a LeakError that is stuck with one goroutine", err)
	}
}

func TestRunInABubblePanics(t *testing.T) {
	err := Run(1, func() { _ = Run(2, func() {}) })
	if p, ok := errors.AsType[*PanicError](err); !ok || !strings.Contains(fmt.Sprint(p.Value), "within a synctest bubble") {
		t.Errorf("got %v, want a panic that says where Run was called", err)
	}
}

func TestClocksInABubble(t *testing.T) {
	Test(t, 1, func() {
		wall, cpu := Wall(), CPU()
		time.Sleep(1000 * time.Hour)
		for sum := 0; CPU() < cpu+5*time.Millisecond; sum++ {
			_ = sum * sum
		}
		if d := Wall() - wall; d <= 0 || d > 10*time.Minute {
			t.Errorf("Wall advanced by %v", d)
		}
		if m := Memory(); m < 1<<20 || m > 1<<40 {
			t.Errorf("Memory says %d bytes", m)
		}
	})
}
