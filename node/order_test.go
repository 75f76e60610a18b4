package node

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"starling/protocol"
)

// A client that repeats a call with its own message ID sends once.
func TestSameIDSendsOnce(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.person("Ada"), w.person("Bo"), w.person("Cy")
	a.meet(b)
	a.meet(c)
	id := []byte("0123456789abcdef")
	var ids [8]string
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			m, err := a.Send(w.ctx, "Bo", "once", id)
			if err != nil {
				t.Error(err)
			}
			ids[i] = m.ID
		})
	}
	wg.Wait()
	for _, other := range ids {
		if other != ids[0] {
			t.Fatalf("the same ID gave %q", ids)
		}
	}
	a.delivered(ids[0])
	if m, err := a.Send(w.ctx, "Bo", "once", id); err != nil || m.State != "delivered" {
		t.Fatalf("repeated after it was delivered: %+v, %v", m, err)
	}
	a.tell(b, "and then")
	b.heard("Ada", "once")
	_, err := a.Send(w.ctx, "Bo", "something else", id)
	wantKind(t, err, KindExists)
	_, err = a.Send(w.ctx, "Cy", "once", id)
	wantKind(t, err, KindExists)

	// What was accepted stays accepted, whatever becomes of the contact; and an
	// ID that came from somebody else is not ours.
	if _, err := a.BlockContact(w.ctx, "Bo"); err != nil {
		t.Fatal(err)
	}
	if m, err := a.Send(w.ctx, "Bo", "once", id); err != nil || m.ID != ids[0] {
		t.Fatalf("repeated to a blocked contact: %+v, %v", m, err)
	}
	_, err = b.Send(w.ctx, "Ada", "once", id)
	wantKind(t, err, KindExists)
	for _, bad := range [][]byte{{}, []byte("short")} {
		if len(bad) > 0 {
			_, err = a.Send(w.ctx, "Cy", "text", bad)
			wantKind(t, err, KindInvalid)
		}
	}
	for _, text := range []string{"", "\xff", strings.Repeat("x", protocol.MaxText+1)} {
		_, err = a.Send(w.ctx, "Cy", text, nil)
		wantKind(t, err, KindInvalid)
	}
}

// 200 texts by four callers, while the receiver is restarted and crashes: each
// arrives once, in the order in which they were accepted.
func TestOrderThroughRestarts(t *testing.T) {
	w := newWorld(t)
	a, b := w.person("Ada", quick), w.person("Bo", quick)
	a.meet(b)
	const callers, each = 4, 50
	progress := make(chan struct{}, callers*each) // one for each text accepted
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for n := range each {
				if _, err := b.Send(w.ctx, "Ada", fmt.Sprintf("caller %d text %d", i, n), nil); err != nil {
					t.Error(err)
				}
				progress <- struct{}{}
			}
		})
	}
	for round := range 6 {
		for range callers * each / 6 {
			<-progress
		}
		if round%2 == 0 {
			a.restart()
		} else {
			a.crash()
		}
	}
	wg.Wait()
	b.delivered(b.say("Ada", "the last"))
	sent, err := b.History(w.ctx, "Ada", historyMost, "")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range sent {
		want = append(want, m.Text)
	}
	if got := a.texts("Bo"); len(got) != callers*each+1 || !slices.Equal(got, want) {
		t.Fatalf("%d of %d texts arrived, or in another order", len(got), callers*each+1)
	}
}
