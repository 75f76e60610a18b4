package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A disk is a small one of its own, in memory.
type disk struct{ dir string }

const diskSize = 160 << 20 // bytes; the store keeps 64 MiB of it free

// newDisk mounts a disk that is gone after the test, or skips the test where
// that is not possible.
func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t.TempDir()}
	if err := syscall.Mount("tmpfs", d.dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", diskSize)); err != nil {
		t.Skip("mounting a disk needs root and a kernel that lets it:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(d.dir, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return d
}

func (d *disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill takes every byte that is left.
func (d *disk) fill(t *testing.T) {
	t.Helper()
	f, err := os.Create(d.ballast())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		switch _, err := f.Write(chunk); {
		case errors.Is(err, syscall.ENOSPC):
			chunk = chunk[:len(chunk)/2]
		case err != nil:
			t.Fatal(err)
		}
	}
}

func (d *disk) free(t *testing.T) {
	t.Helper()
	if err := os.Remove(d.ballast()); err != nil {
		t.Fatal(err)
	}
}

// readOnly mounts the disk again, so that it can or cannot be written.
func (d *disk) readOnly(t *testing.T, on bool) {
	t.Helper()
	flags := uintptr(syscall.MS_REMOUNT)
	if on {
		flags |= syscall.MS_RDONLY
	}
	if err := syscall.Mount("tmpfs", d.dir, "tmpfs", flags, fmt.Sprintf("size=%d,mode=700", diskSize)); err != nil {
		t.Fatalf("mounting again: %v", err)
	}
}

// friendsOn is friends with Ada's profile on a disk of its own.
func friendsOn(t *testing.T, d *disk) (ada, bo *child) {
	t.Helper()
	ada, bo = newChild(t, d.dir, "ada", onPort(freeUDP(t))), newChild(t, t.TempDir(), "bo", onLoopback)
	ada.start(t)
	bo.start(t)
	bo.add(t, ada.invite(t), ada)
	befriended(t, ada, bo)
	talk(t, ada, bo, "hello")
	return ada, bo
}

// refuses checks that a command ends with exit code 1 and says why in words.
func (d *child) refuses(t *testing.T, word string, args ...string) {
	t.Helper()
	out, code := d.run(t, args...)
	if code != 1 || !strings.Contains(out, word) || strings.Contains(out, "goroutine") {
		t.Errorf("starling %s exited %d, want 1 and the words %q: %s", strings.Join(args, " "), code, word, out)
	}
}

// A daemon on a full disk refuses what it cannot keep and loses nothing of what
// it accepted, and goes on once there is space, or after a restart.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	ada, bo := friendsOn(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	said := []string{"hello"}  // by bo
	wrote := []string{"hello"} // by ada, and accepted
	// meanwhile has bo write while ada's disk is full; it arrives later.
	var later []string
	meanwhile := func(text string) {
		t.Helper()
		m, err := bo.accept(ctx, ada, text, nil)
		if err != nil {
			t.Fatal(err)
		}
		said, later = append(said, text), append(later, m.Id)
	}
	arrived := func() {
		t.Helper()
		for _, id := range later {
			if err := bo.delivered(ctx, id); err != nil {
				t.Error(err)
			}
		}
		later = nil
		if got := ada.texts(t, bo); !slices.Equal(got, said) {
			t.Errorf("ada shows %q, want %q", got, said)
		}
		text := fmt.Sprintf("there is space again, after %d", len(said))
		if err := ada.deliver(ctx, bo, text); err != nil {
			t.Error(err)
		}
		wrote = append(wrote, text)
		if got := bo.texts(t, ada); !slices.Equal(got, wrote) {
			t.Errorf("bo shows %q, want %q", got, wrote)
		}
	}

	d.fill(t)
	ada.refuses(t, "disk full", "send", "bo", "not accepted")
	if out, code := ada.run(t, "status"); code != 0 {
		t.Errorf("status exited %d: %s", code, out)
	}
	if out, code := ada.run(t, "history", "bo"); code != 0 || !strings.Contains(out, "hello") || strings.Contains(out, "not accepted") {
		t.Errorf("history exited %d: %s", code, out)
	}
	meanwhile("while the disk is full")
	ada.refuses(t, "disk full", "send", "bo", "not accepted")
	d.free(t)
	arrived()

	d.fill(t)
	meanwhile("before a crash on a full disk")
	ada.kill()
	ada.refuses(t, "disk full", append([]string{"up"}, ada.args...)...)
	d.free(t)
	ada.start(t)
	arrived()

	d.fill(t)
	meanwhile("before an end on a full disk")
	ada.stop(t)
	ada.refuses(t, "disk full", append([]string{"up"}, ada.args...)...)
	d.free(t)
	ada.start(t)
	arrived()
	if ada.rolledBack(t) {
		t.Error("a full disk counts as an old copy")
	}
}

// A profile that cannot be written is refused at the start.
func TestReadOnlyDiskAtStart(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	ada, bo := friendsOn(t, d)
	ada.stop(t)
	d.readOnly(t, true)
	ada.refuses(t, "read-only", append([]string{"up"}, ada.args...)...)
	d.readOnly(t, false)
	ada.start(t)
	talk(t, ada, bo, "writable again")
	if got, want := ada.texts(t, bo), []string{"hello", "writable again"}; !slices.Equal(got, want) {
		t.Errorf("ada shows %q, want %q", got, want)
	}
}

// The folder of a live daemon becomes read-only: what is open can still be
// written, and nothing new can be made. At some point the store has to make a
// file, and from there on nothing is accepted.
func TestReadOnlyDiskUnderDaemon(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	ada, bo := friendsOn(t, d)
	lid := func() error {
		if err := syscall.Mount(ada.home, ada.home, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
		return syscall.Mount("", ada.home, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, "")
	}
	lift := func() { syscall.Unmount(ada.home, syscall.MNT_DETACH) }
	t.Cleanup(lift) // before the disk goes; nothing is left to do after the call below
	if err := lid(); err != nil {
		t.Skip("bind mounts are not possible here:", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	wrote := []string{"hello"}
	var refused error
	for i := 0; i < 5000 && refused == nil; i++ {
		text := fmt.Sprintf("%d %s", i, strings.Repeat("x", 8<<10))
		if _, refused = ada.accept(ctx, bo, text, nil); refused == nil {
			wrote = append(wrote, text)
		}
	}
	if refused == nil || !strings.Contains(refused.Error(), "read-only") {
		t.Fatalf("after %d messages: %v, want a refusal that says the disk is read-only", len(wrote)-1, refused)
	}
	ada.refuses(t, "read-only", "send", "bo", "not accepted")
	ada.refuses(t, "read-only", "history", "bo")
	if out, code := ada.run(t, "status"); code != 0 {
		t.Errorf("status exited %d: %s", code, out)
	}
	ada.stop(t)
	ada.refuses(t, "read-only", append([]string{"up"}, ada.args...)...)
	lift()
	ada.start(t)
	if err := ada.deliver(ctx, bo, "writable again"); err != nil {
		t.Error(err)
	}
	wrote = append(wrote, "writable again")
	if got := bo.texts(t, ada); !slices.Equal(got, wrote) {
		t.Errorf("bo shows %d messages, want %d", len(got), len(wrote))
	}
}
