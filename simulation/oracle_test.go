package simulation

import (
	"encoding/hex"
	"errors"
	"iter"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"starling/node/session"
	"starling/node/store"
	"starling/protocol/identity"
	"starling/protocol/ratchet"
)

// The tests in this file put a bug into a world and see that the oracle that is
// there for it stops the run.

// couple is a world of two friends, bo and ada, and a third node to join
// through.
func couple(seed uint64) Config {
	return Config{Seed: seed, Nodes: []NodeSpec{{Name: "cy"}, {Name: "ada"}, {Name: "bo"}}, Refresh: -1, Repeat: "go test"}
}

// acquaint starts the world and waits until ada and bo are friends.
func acquaint(w *World) (ada, bo *Node, err error) {
	ada, bo = w.Node("ada"), w.Node("bo")
	if err := w.StartAll(100 * time.Millisecond); err != nil {
		return nil, nil, err
	}
	if err := ada.Befriend(bo); err != nil {
		return nil, nil, err
	}
	for !ada.Knows(bo) || !bo.Knows(ada) {
		w.Sleep(time.Second)
	}
	return ada, bo, nil
}

// caught checks that a run ended with the violation that its plant causes.
func caught(t *testing.T, r *Result, err error, oracle string) {
	t.Helper()
	v, ok := errors.AsType[*Violation](err)
	if !ok {
		t.Fatalf("the run ended with %v, want a violation", err)
	}
	if v.Oracle != oracle {
		t.Errorf("oracle %q caught it, want %q: %v", v.Oracle, oracle, v)
	}
	if v.At <= 0 || v.What == "" || !strings.Contains(v.Error(), "go test") {
		t.Errorf("the violation %+v does not say what, when and how to repeat it", v)
	}
	if r == nil || r.Manifest.Outcome != "violated" || r.Violation != v {
		t.Errorf("the result does not hold the violation")
	}
}

func TestHonestWorldHolds(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		for range 5 {
			for _, p := range [][2]*Node{{ada, bo}, {bo, ada}} {
				if _, err := p[0].Send(p[1], "hello"); err != nil {
					return err
				}
			}
			w.Sleep(time.Second)
		}
		bo.Crash()
		if _, err := ada.Send(bo, "are you there?"); err != nil {
			return err
		}
		w.Sleep(time.Minute)
		if err := bo.Start(); err != nil {
			return err
		}
		w.Settle()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Messages) != 11 || r.Manifest.Outcome != "held" || r.Envelopes.Opened < 11 || r.Envelopes.Refused != 0 {
		t.Errorf("%d messages, outcome %q, envelopes %+v", len(r.Messages), r.Manifest.Outcome, r.Envelopes)
	}
	for _, m := range r.Messages {
		if m.Shown < m.Accepted || m.Confirmed < m.Shown {
			t.Errorf("message %s: accepted %v, shown %v, confirmed %v", m.ID, m.Accepted, m.Shown, m.Confirmed)
		}
	}
	if r.Nodes[2].Crashes != 1 || r.Nodes[2].Starts != 2 || len(r.Faults) != 1 || r.Faults[0].To-r.Faults[0].From < time.Minute {
		t.Errorf("bo: %+v, faults %+v", r.Nodes[2], r.Faults)
	}
}

func TestDiskThatLiesLosesWhatWasShown(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		bo.disk.(memoryDisk).d.Lie(true)
		if _, err := ada.Send(bo, "hello"); err != nil {
			return err
		}
		w.Sleep(10 * time.Second)
		bo.Crash()
		w.Sleep(time.Second)
		if err := bo.Start(); err != nil {
			return err
		}
		w.Settle()
		return nil
	})
	caught(t, r, err, oracleLost)
}

func TestMessageThatNeverComesIsLate(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		bo.Crash() // for good
		if _, err := ada.Send(bo, "hello"); err != nil {
			return err
		}
		w.Settle()
		return nil
	})
	caught(t, r, err, oracleLost)
}

func TestReceiverThatForgetsShowsTwice(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		if _, err := ada.Send(bo, "hello"); err != nil {
			return err
		}
		w.Sleep(10 * time.Second)
		if err := bo.db.Update(showAgain); err != nil {
			return err
		}
		bo.Crash() // a restart reads the journal on
		w.Sleep(time.Second)
		return bo.Start()
	})
	caught(t, r, err, oracleTwice)
}

// showAgain puts the newest message that was received into the journal again.
func showAgain(tx *store.Tx) error {
	last := uint64(0)
	var again *store.Event
	for row, err := range store.Journal.ScanBack(tx, nil, nil) {
		if err != nil {
			return err
		}
		last = max(last, row.Key.Order())
		if row.Value.Type == "message" && row.Value.State == "received" {
			again = row.Value
			break
		}
	}
	return store.Journal.Put(tx, store.JournalKey(last+1), again)
}

func TestOutboxOutOfOrderIsSeen(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		bo.Crash()
		for _, text := range []string{"first", "second"} {
			if _, err := ada.Send(bo, text); err != nil {
				return err
			}
		}
		if err := tamper(ada, swapOutbox); err != nil {
			return err
		}
		w.Sleep(time.Second)
		if err := bo.Start(); err != nil {
			return err
		}
		w.Settle()
		return nil
	})
	caught(t, r, err, oracleOrder)
}

// tamper changes what a node keeps while the node is down.
func tamper(n *Node, change func(*store.Tx) error) error {
	n.Crash()
	db, err := n.disk.open(store.Config{Key: n.key, Rand: n.rand, Now: n.Clock})
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(change), db.Close()); err != nil {
		return err
	}
	return n.Start()
}

// swapOutbox exchanges the first two contents that wait, sealed or not.
func swapOutbox(tx *store.Tx) error {
	var keys []store.RowKey
	var rows []*store.Outgoing
	for row, err := range store.Outbox.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		keys, rows = append(keys, slices.Clone(row.Key)), append(rows, row.Value)
	}
	for i, k := range keys[:2] {
		out := &store.Outgoing{}
		proto.Merge(out, rows[1-i])
		out.Envelope, out.Hash, out.Session, out.Ack = nil, nil, nil, nil // as if it were sealed anew
		if err := store.Outbox.Put(tx, k, out); err != nil {
			return err
		}
	}
	return nil
}

func TestSessionThatForgetsRepeatsItsNonce(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		w.Sleep(10 * time.Second)
		ada.Stop()
		ada.rand = zeros{}
		if err := ada.Start(); err != nil {
			return err
		}
		before := map[string]*store.Session{}
		err = ada.db.View(func(tx *store.Tx) error {
			for row, err := range store.Sessions.Scan(tx, nil, nil) {
				if err != nil {
					return err
				}
				before[string(row.Key)] = row.Value
			}
			return nil
		})
		if err != nil {
			return err
		}
		for range 2 {
			if _, err := ada.Send(bo, "hello"); err != nil {
				return err
			}
			w.Sleep(10 * time.Second)
			err := ada.db.Update(func(tx *store.Tx) error {
				for key, row := range before {
					if err := store.Sessions.Put(tx, store.RowKey(key), row); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		w.Settle()
		return nil
	})
	caught(t, r, err, oracleNonce)
}

// zeros is a source of randomness that has broken.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestOpenedButNeverSealedIsForged(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		w.Node("ada").eyes = unseen{} // what it seals nobody notes
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		_, err = ada.Send(bo, "hello")
		w.Sleep(10 * time.Second)
		return err
	})
	caught(t, r, err, oracleForged)
}

type unseen struct{}

func (unseen) Sealed(ratchet.Observation) {}
func (unseen) Opened(ratchet.Observation) {}
func (unseen) Repeated()                  {}
func (unseen) Refused(_, _ [32]byte)      {}

func TestTextThatNobodySentIsForged(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, _, err := acquaint(w)
		if err != nil {
			return err
		}
		_, err = ada.Live().Send(w.ctx, "bo", "behind the scenario's back", nil)
		w.Sleep(10 * time.Second)
		return err
	})
	caught(t, r, err, oracleForged)
}

// Who refuses a text and sends it all the same has not told the truth.
func TestRefusedTextThatIsSentIsForged(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		if _, err := ada.Live().BlockContact(w.ctx, "bo"); err != nil {
			return err
		}
		if _, err := ada.Send(bo, "hello"); err == nil {
			return errors.New("it was not refused")
		}
		if _, err := ada.Live().UnblockContact(w.ctx, "bo"); err != nil {
			return err
		}
		for id := range w.oracle.messages {
			raw, err := hex.DecodeString(id)
			if err != nil {
				return err
			}
			if _, err := ada.Live().Send(w.ctx, "bo", "hello", raw); err != nil {
				return err
			}
		}
		w.Sleep(10 * time.Second)
		return nil
	})
	caught(t, r, err, oracleForged)
}

// A text that both ends keep must be the one that was sent, in the chat of the
// one it was sent to or came from.
func TestHistoryThatChangesIsForged(t *testing.T) {
	text := func(e *store.Entry, _ *identity.Account, _ identity.Account) { e.Text = "I owe you 1,000" }
	chat := func(_ *store.Entry, with *identity.Account, other identity.Account) { *with = other }
	for name, tt := range map[string]struct {
		at     string
		change func(e *store.Entry, with *identity.Account, other identity.Account)
	}{
		"the sender's text":    {"ada", text},
		"the recipient's text": {"bo", text},
		"the sender's chat":    {"ada", chat},
		"the recipient's chat": {"bo", chat},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Run(couple(1), func(w *World) error {
				ada, bo, err := acquaint(w)
				if err != nil {
					return err
				}
				if _, err := ada.Send(bo, "hello"); err != nil {
					return err
				}
				w.Settle()
				other, err := identity.ParseAccountID(w.Node("cy").account)
				if err != nil {
					return err
				}
				return w.Node(tt.at).db.Update(func(tx *store.Tx) error {
					for row, err := range store.History.Scan(tx, nil, nil) {
						if err != nil {
							return err
						}
						if row.Value.Text != "hello" {
							continue
						}
						with := row.Key.Account()
						tt.change(row.Value, &with, other)
						return errors.Join(store.History.Delete(tx, row.Key), store.History.Put(tx, store.HistoryKey(with, row.Key.Order()), row.Value))
					}
					return errors.New("nothing to change")
				})
			})
			caught(t, r, err, oracleForged)
		})
	}
}

// What a refusal changes is seen wherever it is: also in sessions that the
// envelope does not name, if it names any, and beside sessions.
func TestRefusalThatChangesAnythingIsSeen(t *testing.T) {
	for name, spoil := range map[string]func(*store.Tx) error{
		"sessions":   func(tx *store.Tx) error { return forget(tx, store.Sessions.Scan, store.Sessions.Delete) },
		"handshakes": func(tx *store.Tx) error { return forget(tx, store.Handshakes.Scan, store.Handshakes.Delete) },
		"pre-keys":   func(tx *store.Tx) error { return forget(tx, store.PreKeys.Scan, store.PreKeys.Delete) },
		"received": func(tx *store.Tx) error {
			return forget(tx, store.ReceivedEnvelopes.Scan, store.ReceivedEnvelopes.Delete)
		},
		"contacts": func(tx *store.Tx) error { return forget(tx, store.Contacts.Scan, store.Contacts.Delete) },
		"":         func(*store.Tx) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Run(couple(1), func(w *World) error {
				bo := w.Node("bo")
				bo.eyes = spoiling{bo.eyes, spoil}
				ada, bo, err := acquaint(w)
				if err != nil {
					return err
				}
				// bo does not know the session any more that ada names: the envelope is
				// refused.
				err = bo.db.Update(func(tx *store.Tx) error {
					return forget(tx, store.SessionOwners.Scan, store.SessionOwners.Delete)
				})
				if err != nil {
					return err
				}
				_, err = ada.Send(bo, "hello")
				w.Sleep(10 * time.Second)
				return err
			})
			if name != "" {
				caught(t, r, err, oracleState)
			} else if err != nil || r.Envelopes.Refused == 0 {
				t.Errorf("%d envelopes were refused and nothing was changed: %v", r.Envelopes.Refused, err)
			}
		})
	}
}

// forget deletes all rows of a table, of which there is one at least.
func forget[P any](tx *store.Tx, scan func(*store.Tx, store.RowKey, store.RowKey) iter.Seq2[store.Row[P], error], del func(*store.Tx, store.RowKey) error) error {
	n := 0
	for row, err := range scan(tx, nil, nil) {
		if err == nil {
			err = del(tx, row.Key)
		}
		if err != nil {
			return err
		}
		n++
	}
	if n == 0 {
		return errors.New("the table is empty")
	}
	return nil
}

// spoiling is the view of a node that changes something when it refuses an
// envelope.
type spoiling struct {
	session.Observer
	spoil func(*store.Tx) error
}

func (spoiling) Early() time.Duration       { return 0 }
func (s spoiling) Spoil(tx *store.Tx) error { return s.spoil(tx) }

func TestGoroutineLeftIsSeen(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		go time.Sleep(2 * lingering)
		return nil
	})
	caught(t, r, err, oracleGoroutine)
}

func TestMessageThatVanishesIsLateWithoutSettle(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		bo.Crash()
		if _, err := ada.Send(bo, "hello"); err != nil {
			return err
		}
		if err := tamper(ada, emptyOutbox); err != nil {
			return err
		}
		w.Sleep(time.Second)
		if err := bo.Start(); err != nil {
			return err
		}
		w.Sleep(time.Hour)
		return nil
	})
	caught(t, r, err, oracleLost)
}

// A run may end before the promise is due. What is on its way then must still be
// tried.
func TestMessageThatVanishesIsLostThoughTheRunEndsBeforeItIsLate(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		if err := vanish(w); err != nil {
			return err
		}
		w.Sleep(9 * time.Minute)
		return nil
	})
	caught(t, r, err, oracleLost)
}

// vanish has ada forget a text for bo that she has accepted.
func vanish(w *World) error {
	ada, bo, err := acquaint(w)
	if err != nil {
		return err
	}
	bo.Crash()
	if _, err := ada.Send(bo, "hello"); err != nil {
		return err
	}
	if err := tamper(ada, emptyOutbox); err != nil {
		return err
	}
	w.Sleep(time.Second)
	return bo.Start()
}

func TestFaultsOfOthersDoNotExcuse(t *testing.T) {
	cfg := couple(1)
	cfg.Nodes = append(cfg.Nodes, NodeSpec{Name: "dee"})
	r, err := Run(cfg, func(w *World) error {
		if err := vanish(w); err != nil {
			return err
		}
		w.Node("dee").Crash() // for good
		w.Sleep(time.Hour)
		return errors.New("nobody noticed")
	})
	caught(t, r, err, oracleLost)
	if err != nil && strings.Contains(err.Error(), "nobody noticed") {
		t.Error("it was noticed only at the end")
	}
}

// Who knew a friend and cannot say so any more is held to the promise too.
func TestForgottenFriendDoesNotExcuse(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		if _, err := bo.Send(ada, "hello"); err != nil {
			return err
		}
		w.Sleep(time.Second)
		if err := vanish(w); err != nil {
			return err
		}
		if err := bo.Live().RemoveContact(w.ctx, "ada"); err != nil {
			return err
		}
		w.Sleep(time.Hour)
		return errors.New("nobody noticed")
	})
	caught(t, r, err, oracleLost)
	if err != nil && strings.Contains(err.Error(), "nobody noticed") {
		t.Error("it was noticed only at the end")
	}
}

// What is on its way at the end is neither lost nor delivered.
func TestPendingMessagesAreCounted(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		w.At(w.Now()+30*time.Second, func() { // after Settle
			bo.Crash()
			_, _ = ada.Send(bo, "hello")
		})
		w.Settle()
		return nil
	})
	if err != nil || r.Manifest.Outcome != "held" || r.Manifest.Pending != 1 {
		t.Errorf("outcome %q, %d pending, want held and 1: %v", r.Manifest.Outcome, r.Manifest.Pending, err)
	}
}

func TestScenarioThatEndsItsGoroutineFails(t *testing.T) {
	for name, play := range map[string]func(w *World) error{
		"itself": func(*World) error { runtime.Goexit(); return nil },
		"beside it": func(w *World) error {
			w.Go(runtime.Goexit)
			w.Wait()
			return nil
		},
	} {
		r, err := Run(couple(1), play)
		if !errors.Is(err, errLeftEarly) || r.Manifest.Outcome != "failed" {
			t.Errorf("%s: outcome %q, %v", name, r.Manifest.Outcome, err)
		}
	}
}

// emptyOutbox forgets everything that waits.
func emptyOutbox(tx *store.Tx) error {
	for row, err := range store.Outbox.Scan(tx, nil, nil) {
		if err != nil {
			return err
		}
		if err := store.Outbox.Delete(tx, row.Key); err != nil {
			return err
		}
	}
	return nil
}

func TestViolationOutranksWhateverElseWentWrong(t *testing.T) {
	r, err := Run(couple(1), func(*World) error {
		go time.Sleep(2 * lingering)
		return errors.New("the scenario has had enough")
	})
	caught(t, r, err, oracleGoroutine)
	if !strings.Contains(err.Error(), "had enough") {
		t.Errorf("the other error is gone: %v", err)
	}
}

// Whatever ends the run, and whether a node runs then, what it kept is read.
func TestForgottenChatIsSeenThoughTheRunWasInterrupted(t *testing.T) {
	stop := false
	cfg := couple(1)
	cfg.Interrupted = func() bool { return stop }
	r, err := Run(cfg, func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		if _, err := ada.Send(bo, "hello"); err != nil {
			return err
		}
		w.Sleep(10 * time.Second)
		err = bo.db.Update(func(tx *store.Tx) error {
			for row, err := range store.History.Scan(tx, nil, nil) {
				if err != nil {
					return err
				}
				if err := store.History.Delete(tx, row.Key); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := bo.Stop(); err != nil {
			return err
		}
		stop = true
		w.Sleep(time.Hour)
		return nil
	})
	caught(t, r, err, oracleLost)
}

// That something does not close, or that a disk cannot be read, excuses nobody
// else.
func TestForgottenChatIsSeenThoughAnotherEndsBadly(t *testing.T) {
	bad := errors.New("it does not close")
	for name, plant := range map[string]func(w *World){
		"closing": func(w *World) { w.onClose(func() error { return bad }) },
		"reading": func(w *World) { w.Node("cy").disk = brokenDisk{w.Node("cy").disk, bad} },
	} {
		for chats, want := range map[string]bool{"lost": true, "kept": false} {
			t.Run(name+", "+chats, func(t *testing.T) {
				r, err := Run(couple(1), func(w *World) error {
					ada, bo, err := acquaint(w)
					if err != nil {
						return err
					}
					plant(w)
					if _, err := ada.Send(bo, "hello"); err != nil {
						return err
					}
					w.Settle()
					if !want {
						return nil
					}
					return bo.db.Update(func(tx *store.Tx) error { return forget(tx, store.History.Scan, store.History.Delete) })
				})
				if !errors.Is(err, bad) {
					t.Errorf("the other error is gone: %v", err)
				}
				if want {
					caught(t, r, err, oracleLost)
				} else if r.Violation != nil {
					t.Errorf("all was kept, and the oracle says %v", r.Violation)
				}
			})
		}
	}
}

// brokenDisk is a disk that does not open again.
type brokenDisk struct {
	disk
	err error
}

func (b brokenDisk) open(store.Config) (*store.DB, error) { return nil, b.err }

func TestNodeThatComesBackAsSomebodyElseIsSeen(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		_, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		bo.Crash()
		bo.disk = memoryDisk{store.NewDisk()}
		return bo.Start()
	})
	caught(t, r, err, oracleLost)
	if err != nil && !strings.Contains(err.Error(), "another account") {
		t.Error(err)
	}
}

func TestJournalThatCannotBeReadEndsTheRun(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, _, err := acquaint(w)
		if err != nil {
			return err
		}
		if err := ada.db.Close(); err != nil {
			return err
		}
		go ada.follow(w.ctx, ada.Live())
		w.Sleep(time.Hour)
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "journal of ada") || r.Manifest.Outcome != "failed" {
		t.Errorf("the run ended with %v", err)
	}
}

func TestNodeThatRunsWithoutItsDiskEndsTheRun(t *testing.T) {
	r, err := Run(couple(1), func(w *World) error {
		ada, bo, err := acquaint(w)
		if err != nil {
			return err
		}
		if err := ada.db.Close(); err != nil {
			return err
		}
		_, _ = ada.Send(bo, "hello") // a user would only see that it failed
		w.Sleep(time.Hour)
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "ada runs, and refuses a text") || r.Manifest.Outcome != "failed" {
		t.Errorf("the run ended with %v", err)
	}
}
