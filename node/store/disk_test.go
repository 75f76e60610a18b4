package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var long = flag.Bool("long", false, "kill the database 1,000 times instead of 30")

// children are what the test binary does when it is started by a test.
var children = map[string]func(dir string) error{"write": writeForever, "damaged": readDamaged}

func TestMain(m *testing.M) {
	if child := os.Getenv("STORE_TEST_CHILD"); child != "" {
		if err := children[child](os.Getenv("STORE_TEST_DIR")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func startChild(t *testing.T, child, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+child, "STORE_TEST_DIR="+dir)
	return cmd
}

// TestEmptyMemoryTableIsRemoved provokes badger issue 2207: a crash between
// making a memory table's log and sizing it.
func TestEmptyMemoryTableIsRemoved(t *testing.T) {
	m := diskMedium{t.TempDir()}
	db := mustOpen(t, m)
	mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "a", "1") })
	m = m.crash(t).(diskMedium)
	for _, name := range []string{"00002.mem", "00099.mem"} {
		if err := os.WriteFile(filepath.Join(m.dir, nameRows, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db = mustOpen(t, m)
	wantMeta(t, db, "a", "1")
	mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "b", "1") })
	mustClose(t, db)
}

// TestFolderShowsNothing writes needles into every table and looks for them in
// the raw bytes of the folder, as they are and in usual encodings, while the
// database runs, after a clean close, and after the writes were compacted.
func TestFolderShowsNothing(t *testing.T) {
	m := diskMedium{t.TempDir()}
	db := mustOpen(t, m)
	var needles [][]byte
	needle := func(n int) []byte { // printable, so that no encoding hides it by chance
		b := fmt.Appendf(nil, "needle-%04d-%s", len(needles), strings.Repeat("q", n))[:n]
		needles = append(needles, b)
		return b
	}
	n16, n32 := func() [16]byte { return [16]byte(needle(16)) }, func() [32]byte { return [32]byte(needle(32)) }
	const order = 0x6e6565646c653031
	b := func() []byte { return needle(40) }
	s := func() string { return string(needle(40)) }
	mustUpdate(t, db, func(tx *Tx) error {
		return errors.Join(
			Selves.Put(tx, SelfKey(), &Self{AccountSecret: needle(32), DeviceSeed: needle(32), DhSeed: needle(32), TransportSeed: needle(32), LookupSecret: needle(16), Name: s()}),
			PreKeys.Put(tx, PreKeyKey(n16()), &PreKey{X25519Seed: needle(32), KemSeed: needle(64), Bundle: b()}),
			Handshakes.Put(tx, HandshakeKey(n32()), &Handshake{Session: b(), Account: b()}),
			Contacts.Put(tx, ContactKey(n32()), &Contact{Account: b(), Name: s(), ProfileName: s(), LookupSecret: b()}),
			Names.Put(tx, NameKey(s()), &Blob{Data: b()}),
			Invites.Put(tx, InviteKey(n16()), &Invite{Token: b(), Link: s()}),
			Sessions.Put(tx, SessionKey(n32(), n32(), n32()), &Session{Account: b(), State: b()}),
			SessionOwners.Put(tx, SessionOwnerKey(n32()), &Blob{Data: b()}),
			SkippedKeys.Put(tx, SkippedKey(n32(), n32(), 1), &Skipped{Key: needle(32)}),
			Outbox.Put(tx, OutboxKey(n32(), order), &Outgoing{Content: b(), Envelope: bytes.Repeat(b(), 4000)}),
			Unacked.Put(tx, UnackedKey(n32()), &Unacknowledged{Account: b()}),
			History.Put(tx, HistoryKey(n32(), order), &Entry{Id: b(), From: b(), Text: s()}),
			History.Put(tx, HistoryKey(n32(), order), &Entry{Text: strings.Repeat(s(), 400)}),
			Messages.Put(tx, MessageKey(n16()), &EntryRef{Account: b()}),
			SeenIDs.Put(tx, SeenKey(n32(), n16()), &Seen{}),
			ReceivedEnvelopes.Put(tx, ReceivedKey(n32()), &Received{Ack: b(), Account: b()}),
			Journal.Put(tx, JournalKey(order), &Event{Account: b(), Text: s(), Name: s()}),
			Peers.Put(tx, PeerKey(n32()), &Peer{TransportKey: b()}),
			Bootstrap.Put(tx, PeerKey(n32()), &Peer{TransportKey: b()}),
			Meta.Put(tx, MetaKey(s()), &Blob{Data: b()}))
	})
	cfg := testConfig()
	for _, use := range []string{"engine", "rows", "files"} {
		needles = append(needles, cfg.Key.derive(use))
	}
	for _, k := range db.ring.Load().keys {
		needles = append(needles, bytes.Clone(k.raw[:]))
	}
	needles = append(needles, bytes.Clone(cfg.Key.b[:]), binary.BigEndian.AppendUint64(nil, order))
	var forms [][]byte
	for _, n := range needles {
		r := bytes.Clone(n)
		slices.Reverse(r)
		for _, b := range [][]byte{n, r} {
			forms = append(forms, b, []byte(hex.EncodeToString(b)), []byte(strings.ToUpper(hex.EncodeToString(b))))
			for skip := range 3 { // base64 at each alignment, without the characters that hang on neighbours
				if e := base64.RawStdEncoding.EncodeToString(b[skip:]); len(e) > 10 {
					forms = append(forms, []byte(e[:len(e)-2]), []byte(base64.RawURLEncoding.EncodeToString(b[skip:])[:len(e)-2]))
				}
			}
		}
		forms = append(forms, n[:8]) // the start alone: values may be cut
	}
	search := func(dir, when string) {
		t.Helper()
		files := 0
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files++
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			raw = bytes.TrimRight(raw, "\x00")
			for _, f := range forms {
				if bytes.Contains(raw, f) || strings.Contains(path[len(dir):], string(f)) {
					t.Errorf("%s: %s shows %q", when, filepath.Base(path), f)
				}
			}
			return nil
		}); err != nil || files < 5 {
			t.Errorf("%s: %d files searched (%v)", when, files, err)
		}
	}
	search(m.crash(t).(diskMedium).dir, "running")
	if err := db.rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	search(m.dir, "closed")
	db = mustOpen(t, m)
	if err := db.engine.(*badgerEngine).db.Flatten(2); err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	search(m.dir, "compacted")
	// The search does find: the same bytes unsealed.
	if err := os.WriteFile(filepath.Join(m.dir, "control"), needles[3], 0o600); err != nil {
		t.Fatal(err)
	}
	b2, _ := os.ReadFile(filepath.Join(m.dir, "control"))
	if !slices.ContainsFunc(forms, func(f []byte) bool { return bytes.Contains(b2, f) }) {
		t.Error("the search does not find a needle that lies open")
	}
}

// damagedRows is what the damage tests write: enough for several blocks.
const damagedRows = 300

func damagedRow(i int) (RowKey, *Entry) {
	return HistoryKey(account(1), uint64(i)), &Entry{Text: fmt.Sprint("row ", i), Reason: strings.Repeat("x", i)}
}

// readDamaged is a child: it opens a folder someone tampered with, and fails
// only if it reads something that was never written.
func readDamaged(dir string) error {
	db, err := diskMedium{dir}.open(testConfig())
	if err != nil {
		fmt.Println("refused:", err)
		return nil
	}
	defer db.Close()
	missing, damaged := 0, 0
	if err := db.View(func(tx *Tx) error {
		for i := range damagedRows {
			k, want := damagedRow(i)
			got, err := History.Get(tx, k)
			switch {
			case errors.Is(err, ErrNotFound):
				missing++
			case errors.Is(err, ErrDamaged):
				damaged++
			case err != nil:
				return err
			case got.Text != want.Text || got.Reason != want.Reason:
				return fmt.Errorf("row %d reads %q", i, got.Text)
			case missing > 0:
				return fmt.Errorf("row %d is there and an earlier one is missing", i)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := db.Update(func(tx *Tx) error { return putMeta(tx, "a", "1") }); err != nil {
		fmt.Println("refused:", err)
	}
	if missing > 0 && !db.RolledBack() {
		return fmt.Errorf("%d rows are missing and nobody noticed", missing)
	}
	switch {
	case damaged > 0:
		fmt.Println("rows damaged:", damaged)
	case db.RolledBack():
		fmt.Println("noticed as a rollback:", missing)
	default:
		fmt.Println("nothing lost:")
	}
	return nil
}

// TestDamagedFilesNeverGiveWrongData flips bits all over every file of a closed
// database and of one that crashed. Each is opened in a process of its own: some
// of badger's parsers end the process on bad bytes, which is an answer too.
func TestDamagedFilesNeverGiveWrongData(t *testing.T) {
	t.Parallel()
	m := diskMedium{t.TempDir()}
	db := mustOpen(t, m)
	for i := range damagedRows { // in order, one commit each: a cut log loses the last ones
		mustUpdate(t, db, func(tx *Tx) error { k, row := damagedRow(i); return History.Put(tx, k, row) })
	}
	crashed := m.crash(t).(diskMedium)
	mustClose(t, db)
	rng := rand.New(rand.NewPCG(3, 4))
	flips := 2
	if *long {
		flips = 200
	}
	outcomes := map[string]int{}
	for _, state := range []struct{ name, dir string }{{"closed", m.dir}, {"crashed", crashed.dir}} {
		if err := filepath.WalkDir(state.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			written := len(bytes.TrimRight(raw, "\x00"))
			for range min(flips, written) {
				dir := copyOf(t, state.dir)
				name := filepath.Join(dir, path[len(state.dir):])
				at := rng.IntN(written)
				f, err := os.OpenFile(name, os.O_RDWR, 0)
				if err != nil {
					return err
				}
				_, err = f.WriteAt([]byte{raw[at] ^ 1<<rng.IntN(8)}, int64(at))
				if err := errors.Join(err, f.Close()); err != nil {
					return err
				}
				var errs strings.Builder
				cmd := startChild(t, "damaged", dir)
				cmd.Stderr = &errs
				out, err := cmd.Output()
				text, _, _ := strings.Cut(string(out), ":")
				outcomes[strings.TrimSpace(text)]++
				if err != nil && !strings.Contains(errs.String(), "badger") {
					t.Errorf("%s: %s, byte %d of %d flipped: %v: %s", state.name, d.Name(), at, written, err, errs.String())
				}
				if err := os.RemoveAll(dir); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	t.Log(outcomes)
}

// mountTmpfs mounts a file system of the given size, or skips to the caller's
// fallback by returning "".
func mountTmpfs(t *testing.T, size string) string {
	t.Helper()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		return ""
	}
	dir := t.TempDir()
	if err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).Run(); err != nil {
		return ""
	}
	t.Cleanup(func() { exec.Command("umount", dir).Run() })
	return dir
}

// TestFullDisk fills the disk under a running database: updates are refused,
// nothing is lost, and they go on when there is space again. On a real file
// system where one may be mounted, and with an injected measure everywhere.
func TestFullDisk(t *testing.T) {
	test := func(t *testing.T, m diskMedium, fill func(db *DB, full bool)) {
		db := mustOpen(t, m)
		mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "a", "1") })
		fill(db, true)
		for range 3 {
			if err := db.Update(func(tx *Tx) error { return putMeta(tx, "a", "2") }); !errors.Is(err, ErrFull) {
				t.Errorf("Update on a full disk: %v, want ErrFull", err)
			}
		}
		wantMeta(t, db, "a", "1")
		fill(db, false)
		mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "b", "1") })
		fill(db, true)
		mustClose(t, db)
		fill(nil, false)
		db = mustOpen(t, m)
		wantMeta(t, db, "a", "1")
		wantMeta(t, db, "b", "1")
		if db.RolledBack() {
			t.Error("RolledBack after a full disk")
		}
	}
	t.Run("injected", func(t *testing.T) {
		test(t, diskMedium{t.TempDir()}, func(db *DB, full bool) {
			if db == nil {
				return
			}
			db.engine.(*badgerEngine).space = func(string) (uint64, error) {
				if full {
					return reserve - 1, nil
				}
				return reserve, nil
			}
		})
	})
	t.Run("tmpfs", func(t *testing.T) {
		dir := mountTmpfs(t, "160m")
		if dir == "" {
			t.Skip("no tmpfs may be mounted here; the injected case stands for it")
		}
		ballast := filepath.Join(dir, "ballast")
		test(t, diskMedium{filepath.Join(dir, "db")}, func(_ *DB, full bool) {
			if !full {
				if err := os.Remove(ballast); err != nil {
					t.Fatal(err)
				}
				return
			}
			f, err := os.Create(ballast)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for free := uint64(math.MaxUint64); free > reserve/2; {
				if _, err := f.Write(make([]byte, 1<<20)); err != nil {
					t.Fatal(err)
				}
				if free, err = freeSpace(dir); err != nil {
					t.Fatal(err)
				}
			}
		})
		// Without a byte left nothing starts, and it says why.
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 64<<10))
		}
		if _, err := (diskMedium{filepath.Join(dir, "other")}).open(testConfig()); !errors.Is(err, ErrFull) {
			t.Errorf("Open on a full disk: %v, want ErrFull", err)
		}
	})
}

func TestReadOnlyDisk(t *testing.T) {
	t.Run("injected", func(t *testing.T) {
		disk := NewDisk()
		db := mustOpen(t, memoryMedium{disk})
		mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "a", "1") })
		disk.Fail(ErrReadOnly)
		if err := db.Update(func(tx *Tx) error { return putMeta(tx, "a", "2") }); !errors.Is(err, ErrReadOnly) {
			t.Errorf("Update: %v, want ErrReadOnly", err)
		}
		wantMeta(t, db, "a", "1")
		mustClose(t, db)
		if _, err := OpenMemory(testConfig(), disk); !errors.Is(err, ErrReadOnly) {
			t.Errorf("Open: %v, want ErrReadOnly", err)
		}
		disk.Fail(nil)
		wantMeta(t, mustOpen(t, memoryMedium{disk}), "a", "1")
	})
	t.Run("tmpfs", func(t *testing.T) {
		dir := mountTmpfs(t, "160m")
		if dir == "" {
			t.Skip("no tmpfs may be mounted here; the injected case stands for it")
		}
		m := diskMedium{filepath.Join(dir, "db")}
		db := mustOpen(t, m)
		mustUpdate(t, db, func(tx *Tx) error { return putMeta(tx, "a", "1") })
		mustClose(t, db)
		if out, err := exec.Command("mount", "-o", "remount,ro", dir).CombinedOutput(); err != nil {
			t.Skipf("remounting: %v: %s", err, out)
		}
		if _, err := m.open(testConfig()); !errors.Is(err, ErrReadOnly) {
			t.Errorf("Open: %v, want ErrReadOnly", err)
		}
		if out, err := exec.Command("mount", "-o", "remount,rw", dir).CombinedOutput(); err != nil {
			t.Fatalf("remounting: %v: %s", err, out)
		}
		wantMeta(t, mustOpen(t, m), "a", "1")
	})
}

// Writers of the kill test, each with a counter of its own.
const killWriters = 8

// writeForever is a child: it counts up in several goroutines, each number in
// two rows of one update, and prints a number once it is durable. It also
// rotates the erase key all the time.
func writeForever(dir string) error {
	db, err := diskMedium{dir}.open(testConfig())
	if err != nil {
		return err
	}
	if db.RolledBack() {
		return errors.New("taken for a rollback")
	}
	fmt.Println("open")
	var out sync.Mutex
	failed := make(chan error)
	for w := range byte(killWriters) {
		go func() {
			n := uint64(0)
			if row, err := get(db, Sessions, sessionAt(w)); err == nil {
				n = uint64(row.Created)
			}
			for {
				n++
				if err := db.Update(func(tx *Tx) error {
					return errors.Join(
						Sessions.Put(tx, sessionAt(w), &Session{Created: int64(n), State: bytes.Repeat([]byte{w}, int(n*997%3000))}),
						History.Put(tx, HistoryKey(account(w), n), &Entry{Received: int64(n)}))
				}); err != nil {
					failed <- err
				}
				out.Lock()
				fmt.Println(w, n)
				out.Unlock()
			}
		}()
	}
	go func() {
		for {
			time.Sleep(20 * time.Millisecond) // a child's pace, not a test's deadline
			if err := db.rotate(context.Background()); err != nil {
				failed <- err
			}
		}
	}()
	return <-failed
}

// TestKill ends a writing process with SIGKILL again and again: what it said
// was durable is there, no update is there by half, and every start succeeds.
func TestKill(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs SIGKILL")
	}
	t.Parallel()
	rounds := 30
	if *long {
		rounds = 1000
	}
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(5, 6))
	var acked [killWriters]uint64
	total := uint64(0)
	for round := range rounds {
		cmd := startChild(t, "write", dir)
		var errs strings.Builder
		cmd.Stderr = &errs
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		// The kill comes after a number of acknowledgements; now and then
		// during the opening itself.
		until, seen := 1+rng.IntN(400), 0
		if round%10 == 9 {
			until = 0
			time.AfterFunc(time.Duration(rng.IntN(40))*time.Millisecond, func() { cmd.Process.Kill() })
		}
		for lines.Scan() {
			ws, ns, ok := strings.Cut(lines.Text(), " ")
			if !ok {
				continue // "open"
			}
			w, _ := strconv.Atoi(ws)
			n, _ := strconv.ParseUint(ns, 10, 64)
			acked[w] = max(acked[w], n)
			if seen++; seen == until {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		if errs.Len() > 0 {
			t.Fatalf("round %d: the process failed: %s", round, errs.String())
		}
		if round%5 != 4 && round != rounds-1 {
			continue // the next process finds it as it is
		}
		db, err := diskMedium{dir}.open(testConfig())
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if db.RolledBack() {
			t.Fatalf("round %d: taken for a rollback", round)
		}
		total = 0
		if err := db.View(func(tx *Tx) error {
			for w := range byte(killWriters) {
				s, err := Sessions.Get(tx, sessionAt(w))
				if errors.Is(err, ErrNotFound) && acked[w] == 0 {
					continue
				} else if err != nil {
					return err
				}
				if uint64(s.Created) < acked[w] {
					t.Errorf("round %d: writer %d: acknowledged %d, found %d", round, w, acked[w], s.Created)
				}
				n := uint64(0)
				for row, err := range History.Scan(tx, HistoryOf(account(w)), nil) {
					if n++; err != nil || row.Key.Order() != n {
						return fmt.Errorf("line %d is number %d: %w", n, row.Key.Order(), err)
					}
				}
				if n != uint64(s.Created) {
					t.Errorf("round %d: writer %d: a torn update: %d lines, session at %d", round, w, n, s.Created)
				}
				total += n
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		mustClose(t, db)
	}
	t.Logf("%d kills, %d updates, none lost, none torn", rounds, total)
}
