package spool

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestMain lets the test binary be the process that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SPOOL_TEST_DIR"); dir != "" {
		if err := useForever(dir, os.Getenv("SPOOL_TEST_LIFE")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	killWriters = 8
	killQuota   = 2 << 20
)

var killSizes = []int{300, 2160}

// killEntry is the nth of a writer in one life of the process.
func killEntry(life string, writer byte, n uint64) Entry {
	e := entry(queue(writer), killSizes[n%2], n*killWriters+uint64(writer))
	copy(e.Blob[8:], life+"................")
	return e
}

// useForever puts and deletes until the process is killed. It says on standard
// output what it was told is done, and before it what it is about to delete:
//
//	put WRITER N ID
//	delete ID
//	deleted ID
func useForever(dir, life string) error {
	s, err := Open(Config{Dir: dir, Sizes: killSizes, Quota: killQuota})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, killWriters)
	for w := range byte(killWriters) {
		wg.Go(func() { errs[w] = useQueue(s, life, w) })
	}
	wg.Wait()
	return errors.Join(append(errs, s.Close())...)
}

// useQueue is one writer. Its queue is its own, and never long.
func useQueue(s *Spool, life string, w byte) error {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(uint64(w), uint64(time.Now().UnixNano())))
	for n := uint64(0); ; n++ {
		stored, err := s.Put(ctx, []Entry{killEntry(life, w, n)})
		switch {
		case err == nil:
			if _, err := fmt.Printf("put %d %d %d\n", w, n, stored[0].ID); err != nil {
				return err
			}
		case !errors.Is(err, ErrFull):
			return err
		}
		list := s.List(queue(w), 0, 0)
		if err == nil && len(list) < 20+rng.IntN(200) {
			continue
		}
		var ids []uint64
		for range 1 + rng.IntN(8) {
			id := list[rng.IntN(len(list))].ID
			ids = append(ids, id)
			if _, err := fmt.Printf("delete %d\n", id); err != nil {
				return err
			}
		}
		if err := s.Delete(ctx, queue(w), ids...); err != nil {
			return err
		}
		for _, id := range ids {
			if _, err := fmt.Printf("deleted %d\n", id); err != nil {
				return err
			}
		}
	}
}

// A killed is what the process said over all its lives.
type killed struct {
	blobs   map[uint64][]byte // by ID: acknowledged
	doubted map[uint64]bool   // about to be deleted
	gone    map[uint64]bool   // deleted
	puts    int
}

// hear takes in one line.
func (k *killed) hear(line, life string) error {
	var w byte
	var n, id uint64
	if _, err := fmt.Sscanf(line, "put %d %d %d", &w, &n, &id); err == nil {
		k.blobs[id] = killEntry(life, w, n).Blob
		k.puts++
		return nil
	}
	if _, err := fmt.Sscanf(line, "delete %d", &id); err == nil {
		k.doubted[id] = true
		return nil
	}
	if _, err := fmt.Sscanf(line, "deleted %d", &id); err == nil {
		k.gone[id] = true
		delete(k.blobs, id)
		return nil
	}
	return fmt.Errorf("line %q", line)
}

// TestKill ends a process that puts and deletes with SIGKILL again and again:
// what it said was kept is there, whole and once, and what it said was deleted
// is not. The system survives, so its cache does too; what a loss of power adds
// is for the tests in memory.
func TestKill(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs SIGKILL")
	}
	rounds := 10
	if *long {
		rounds = 1000
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "spool")
	k := &killed{map[uint64][]byte{}, map[uint64]bool{}, map[uint64]bool{}, 0}
	rng := rand.New(rand.NewPCG(5, 6))
	for round := range rounds {
		life := fmt.Sprint("life", round)
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), "SPOOL_TEST_DIR="+dir, "SPOOL_TEST_LIFE="+life)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It is killed in the midst of what follows some line.
		until := rng.IntN(3000)
		lines := bufio.NewReader(out)
		for heard := 0; ; heard++ {
			line, err := lines.ReadString('\n')
			if errors.Is(err, io.EOF) {
				break // and a line that was cut says nothing
			}
			if err == nil {
				err = k.hear(line, life)
			}
			if err != nil {
				t.Fatal(err)
			}
			if heard == until {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || stderr.Len() > 0 {
			t.Fatalf("the process ended by itself: %v: %s", err, stderr.Bytes())
		}
		k.check(t, dir)
		if t.Failed() {
			t.Fatalf("after %d kills", round+1)
		}
	}
	t.Logf("%d kills, %d entries put", rounds, k.puts)
}

// check opens what a killed process left.
func (k *killed) check(t *testing.T, dir string) {
	t.Helper()
	var size int64
	files, err := filepath.Glob(filepath.Join(dir, filePrefix+"*"))
	if err != nil || len(files) > len(killSizes) {
		t.Fatalf("files %v (%v)", files, err)
	}
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > killQuota {
		t.Errorf("%d bytes on disk, quota %d", size, killQuota)
	}
	s := mustOpen(t, Config{Dir: dir, Sizes: killSizes, Quota: killQuota}, nil)
	defer mustClose(t, s)
	left := map[uint64]bool{}
	seen := map[string]bool{}
	for _, q := range s.Queues() {
		for _, it := range s.List(q, 0, 0) {
			b, err := s.Read(q, it.ID, nil)
			if err != nil {
				t.Errorf("Read: %v", err)
			}
			want, acked := k.blobs[it.ID]
			switch {
			case seen[string(b)]:
				t.Errorf("entry %d is there twice", it.ID)
			case k.gone[it.ID]:
				t.Errorf("entry %d was deleted and is back", it.ID)
			case acked && !bytes.Equal(b, want):
				t.Errorf("entry %d is not what was put", it.ID)
			}
			seen[string(b)], left[it.ID] = true, true
			k.blobs[it.ID] = b // one that was put and not acknowledged stays from now on
		}
	}
	for id := range k.blobs {
		if left[id] {
			continue
		}
		if !k.doubted[id] {
			t.Errorf("entry %d was acknowledged and is lost", id)
		}
		delete(k.blobs, id)
		k.gone[id] = true
	}
	clear(k.doubted)
}
