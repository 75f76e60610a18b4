package node

import (
	"testing"
	"time"

	"starling/node/store"
)

// Two nodes over a network in memory, in virtual time: they find each other,
// talk, are restarted, and nothing of them is left.
func TestVirtualTime(t *testing.T) {
	inMemory(t, func(w *world, m *memory) {
		a := w.person("Ada", m.at(1))
		b := w.person("Bo", m.at(2), bootstrap(a))
		a.meet(b)
		a.tell(b, "hello")
		b.tell(a, "hello")
		time.Sleep(24 * time.Hour)
		a.restart()
		a.tell(b, "the next day")
		a.stop()
		b.stop()
	})
}

// Clocks that differ, by what Config.Now tolerates, on both sides of midnight:
// two people find each other's record in the DHT, become contacts and talk.
// What each of them stamps, it stamps by its own clock.
func TestWrongClocks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		at     time.Duration // of the day
		ada    time.Duration // how fast her clock is
		bo     time.Duration
		inTime bool // Bo finds a record that was never published before
	}{
		{"40 minutes", 23*time.Hour + 50*time.Minute, 20 * time.Minute, -20 * time.Minute, true},
		{"40 minutes, the other way", 10 * time.Minute, -20 * time.Minute, 20 * time.Minute, true},
		{"23 hours, the reader ahead", 23 * time.Hour, -11 * time.Hour, 12 * time.Hour, true},
		{"3 hours, the reader behind", 22*time.Hour + 40*time.Minute, 90 * time.Minute, -90 * time.Minute, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inMemory(t, func(w *world, m *memory) {
				time.Sleep(tt.at) // the bubble begins at midnight UTC
				relay := w.person("Cy", m.at(1))
				a := w.person("Ada", m.at(2), bootstrap(relay), wrong(tt.ada))
				b := w.person("Bo", m.at(3), bootstrap(relay), wrong(tt.bo))
				defer relay.stop()
				defer a.stop()
				defer b.stop()
				time.Sleep(time.Minute) // to publish
				start := time.Now()
				b.add(w.bare(a.invite(false)), "Ada")
				a.until(contactIs("Bo", "accepted"))
				b.until(contactIs("Ada", "accepted"))
				if d := time.Since(start); tt.inTime != (d < time.Minute) {
					t.Errorf("they met after %v", d)
				}

				sent := time.Now()
				a.tell(b, "hello")
				b.tell(a, "hello")
				list, err := b.History(w.ctx, "Ada", 10, "")
				if err != nil || len(list) == 0 {
					t.Fatalf("%d messages, %v", len(list), err)
				}
				for _, m := range list {
					by, received := tt.ada, tt.bo
					if m.State != "received" {
						by, received = tt.bo, 0
					}
					near(t, "sent", m.Time, sent.Add(by))
					if received != 0 {
						near(t, "received", m.Received, sent.Add(received))
					}
				}
				near(t, "started", a.Status().Started, start.Add(tt.ada))
				near(t, "an event", a.after(0, textOf("Bo", "hello")).Time, sent.Add(tt.ada))

				// What is kept until a time goes by the node's clock as well.
				time.Sleep(time.Hour)
				err = b.store.View(func(tx *store.Tx) error {
					for row, err := range store.ReceivedEnvelopes.Scan(tx, nil, nil) {
						if err != nil {
							return err
						}
						near(t, "the memory of an envelope", time.UnixMilli(row.Value.Dies), sent.Add(tt.bo).Add(30*24*time.Hour))
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// near checks a time to within what people wait for each other.
func near(t *testing.T, what string, got, want time.Time) {
	t.Helper()
	if d := got.Sub(want).Abs(); d > 5*time.Minute {
		t.Errorf("%s: %v, want about %v", what, got.UTC(), want.UTC())
	}
}
