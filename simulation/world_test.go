package simulation

import (
	"slices"
	"testing"
)

// Of two losses that overlap, the end of one does not end the other.
func TestLossesOverlap(t *testing.T) {
	cfg := couple(1)
	var got []string
	cfg.Sink = func(e Event) {
		if e.Type == "loss" {
			got = append(got, e.Text)
		}
	}
	_, err := Run(cfg, func(w *World) error {
		long := w.SetLoss(0.1)
		short := w.SetLoss(0.2)
		short()
		other := w.SetLoss(0.3)
		long()
		other()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"0.1", "0.2", "0.1", "0.3", "0.3", "0"}; !slices.Equal(got, want) {
		t.Errorf("the loss was %q, want %q", got, want)
	}
}
