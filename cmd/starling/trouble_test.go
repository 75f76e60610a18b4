package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"starling/node/api"
)

// friends returns two running daemons on loopback that are contacts, with no
// bootstrap and no mDNS. Ada stays on her port, and Bo has a new one after each
// start.
func friends(t *testing.T) (ada, bo *child) {
	t.Helper()
	dir := t.TempDir()
	ada, bo = newChild(t, dir, "ada", onPort(freeUDP(t))), newChild(t, dir, "bo", onLoopback)
	ada.start(t)
	bo.start(t)
	bo.add(t, ada.invite(t), ada)
	befriended(t, ada, bo)
	return ada, bo
}

// A crash of badger between making a memory table's log and giving it its size
// leaves an empty file, on which badger does not open (its issue 2207).
func TestEmptyMemoryTableIsSurvived(t *testing.T) {
	t.Parallel()
	ada, bo := friends(t)
	for _, end := range []struct {
		name  string
		how   func()
		after int // number of the empty file, counted from the newest
	}{
		{"killed, the next", ada.kill, 1},
		{"killed, a later one", ada.kill, 90},
		{"stopped, the next", func() { ada.stop(t) }, 1},
	} {
		talk(t, ada, bo, "before: "+end.name)
		end.how()
		rows := filepath.Join(ada.home, "store", "rows")
		empty := filepath.Join(rows, fmt.Sprintf("%05d.mem", newest(t, rows)+end.after))
		if err := os.WriteFile(empty, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		ada.start(t)
		talk(t, ada, bo, "after: "+end.name)
		if got := ada.texts(t, bo); !slices.Contains(got, "before: "+end.name) {
			t.Errorf("%s: ada shows %q", end.name, got)
		}
	}
}

// newest returns the highest number of a memory table's log in badger's folder,
// zero if there is none.
func newest(t *testing.T, rows string) (n int) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(rows, "*.mem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		var i int
		if _, err := fmt.Sscanf(filepath.Base(name), "%d.mem", &i); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		n = max(n, i)
	}
	return n
}

// A link whose owner is away is kept, says why it waits, and completes by
// itself. From then on each finds the other, whoever comes back where.
func TestLinkOfAbsentOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ada, bo := newChild(t, dir, "ada", onPort(freeUDP(t))), newChild(t, dir, "bo", onLoopback)
	ada.start(t)
	link := ada.invite(t)
	ada.stop(t)

	bo.start(t)
	out, code := bo.run(t, "contact", "add", link, "--as", "ada", "--json")
	if code != 0 || !strings.Contains(out, `"state":"pending"`) || !strings.Contains(out, "not found yet; still trying") {
		t.Fatalf("contact add of a link whose owner is away exited %d: %s", code, out)
	}
	eventually(t, "a reason why the contact is pending", func(ctx context.Context) (bool, error) {
		c, err := bo.contact(ctx, ada)
		if err == nil && c.GetState() != "pending" {
			err = fmt.Errorf("the contact is %s while its owner is away", c.GetState())
		}
		return strings.HasPrefix(c.GetDetail(), "not found yet; still trying: "), err
	})
	m, err := bo.accept(t.Context(), ada, "written while ada was away", nil)
	if err != nil {
		t.Fatal(err)
	}

	ada.start(t)
	befriended(t, ada, bo)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := bo.delivered(ctx, m.Id); err != nil {
		t.Fatal(err)
	}

	ada.args = onLoopback
	for round := range 2 {
		for _, d := range []*child{ada, bo} {
			d.stop(t)
			d.start(t)
			talk(t, ada, bo, fmt.Sprintf("round %d, after %s came back on another port", round, d.name))
		}
	}
	ada.kill()
	ada.start(t)
	talk(t, bo, ada, "after ada was killed")
}

// An old copy of a profile is put back: peers have seen keys that it will use
// again. Sessions are renewed without help, and nothing that is accepted from
// then on is lost.
func TestOldCopyOfProfile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		part   string // of the profile that is put back
		since  string // who wrote after the copy was made
		first  string // who writes first afterwards
		notice bool   // the profile can tell
	}{
		// The counter that would tell is as old as the rest.
		{"whole, its owner writes first", ".", "both", "ada", false},
		{"whole, the other writes first", ".", "both", "bo", false},
		{"whole, both write", ".", "both", "both", false},
		{"whole, only its owner wrote", ".", "ada", "ada", false},
		{"whole, only the other wrote", ".", "bo", "ada", false},
		{"database", "store/rows", "both", "ada", true},
		{"database, the other writes first", "store/rows", "both", "bo", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ada, bo := friends(t)
			talk(t, ada, bo, "hello")
			// Something is on its way in the copy, and arrives before it comes back.
			bo.stop(t)
			var queued []string
			for i := range 3 {
				m, err := ada.accept(t.Context(), bo, fmt.Sprintf("on its way %d", i), nil)
				if err != nil {
					t.Fatal(err)
				}
				queued = append(queued, m.Id)
			}
			ada.stop(t)
			part, kept := filepath.Join(ada.home, test.part), filepath.Join(t.TempDir(), "copy")
			copyFolder(t, part, kept)
			ada.start(t)
			bo.start(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			for _, id := range queued {
				if err := ada.delivered(ctx, id); err != nil {
					t.Fatal(err)
				}
			}
			ways := [][2]*child{{ada, bo}, {bo, ada}}
			for i := range 5 {
				for _, way := range ways {
					if test.since != "both" && test.since != way[0].name {
						continue
					}
					if err := way[0].deliver(ctx, way[1], fmt.Sprintf("forgotten %d", i)); err != nil {
						t.Fatal(err)
					}
				}
			}
			ada.stop(t)
			if err := os.RemoveAll(part); err != nil {
				t.Fatal(err)
			}
			copyFolder(t, kept, part)
			ada.start(t)
			if got := ada.rolledBack(t); got != test.notice {
				t.Errorf("rolled_back = %v, want %v", got, test.notice)
			}

			ctx, cancel = context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if test.first == "bo" {
				slices.Reverse(ways)
			}
			var ids [2][]string
			begin := time.Now()
			for i, way := range ways {
				for j := range 5 {
					m, err := way[0].accept(ctx, way[1], fmt.Sprintf("renewed %d", j), nil)
					if err != nil {
						t.Fatal(err)
					}
					ids[i] = append(ids[i], m.Id)
				}
				if test.first != "both" {
					for _, id := range ids[i] {
						if err := way[0].delivered(ctx, id); err != nil {
							t.Fatal(err)
						}
					}
					t.Logf("%s's messages were delivered after %.1f s", way[0].name, time.Since(begin).Seconds())
				}
			}
			for i, way := range ways {
				for _, id := range ids[i] {
					if err := way[0].delivered(ctx, id); err != nil {
						t.Fatal(err)
					}
				}
			}
			t.Logf("all were delivered after %.1f s", time.Since(begin).Seconds())
			want := []string{"hello", "on its way 0", "on its way 1", "on its way 2"}
			for i := 0; i < 5 && test.since != "bo"; i++ {
				want = append(want, fmt.Sprintf("forgotten %d", i))
			}
			renewed := []string{"renewed 0", "renewed 1", "renewed 2", "renewed 3", "renewed 4"}
			if got := bo.texts(t, ada); !slices.Equal(got, append(want, renewed...)) {
				t.Errorf("bo shows %q", got)
			}
			if got := ada.texts(t, bo); !slices.Equal(got, append([]string{"hello"}, renewed...)) {
				t.Errorf("ada shows %q", got)
			}
			talk(t, ada, bo, "once more")

			ada.stop(t)
			ada.start(t)
			if ada.rolledBack(t) {
				t.Error("rolled_back is still true after another start")
			}
			talk(t, ada, bo, "and again")
		})
	}
}

func (d *child) rolledBack(t *testing.T) bool {
	t.Helper()
	st, err := api.Call(t.Context(), d.c.Status, &api.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st.RolledBack
}

// copyFolder copies a folder as a user would.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	cp, err := exec.LookPath("cp")
	if err != nil {
		t.Skip("needs cp:", err)
	}
	if out, err := exec.Command(cp, "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}
