//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Ctrl-C on a terminal goes to every process of the sweep.
func TestInterruptedSweepWritesWhatThereIs(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self, "sweep", "storm", "--set", "duration=10h", "--set", "nodes=6", "--seeds", "1", "--out", "cut")
	c.Dir = dir
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var errs strings.Builder
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	wait := time.AfterFunc(patience, func() { c.Process.Kill() })
	defer wait.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	run := filepath.Join(dir, "cut", "runs", "*")
	for began := time.Now(); ; <-look.C { // until something happened
		if list, _ := filepath.Glob(filepath.Join(run, "events.jsonl")); len(list) > 0 {
			if info, err := os.Stat(list[0]); err == nil && info.Size() > 0 {
				break
			}
		}
		if time.Since(began) > patience {
			t.Fatal("nothing happened")
		}
	}
	if err := syscall.Kill(-c.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // the code is looked at
	if code := c.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("exit code %d, want %d: %s", code, exitInterrupted, errs.String())
	}
	list, _ := filepath.Glob(filepath.Join(run, "manifest.json"))
	if len(list) != 1 {
		t.Fatalf("%d runs left results: %s", len(list), errs.String())
	}
	if b, err := os.ReadFile(list[0]); err != nil || !strings.Contains(string(b), `"outcome": "interrupted"`) {
		t.Errorf("the manifest: %v\n%s", err, b)
	}
}
