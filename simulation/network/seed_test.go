package network

import (
	"slices"
	"testing"
	"time"
)

func TestPermuteIsAPermutation(t *testing.T) {
	for width := 1; width <= 14; width++ {
		seen := make([]bool, 1<<width)
		for x := range uint64(1) << width {
			y := permute(7, width, x)
			if y >= uint64(len(seen)) || seen[y] {
				t.Fatalf("width %d: %d goes to %d, out of range or taken", width, x, y)
			}
			seen[y] = true
		}
	}
}

func TestPairNumbersPairsWithoutGaps(t *testing.T) {
	want := uint64(0)
	for b := range 50 {
		for a := range b {
			if got := pair(a, b); got != want || pair(b, a) != want {
				t.Fatalf("pair(%d, %d) = %d, want %d in both orders", a, b, got, want)
			}
			want++
		}
	}
}

// latencies joins n sites, in the order given, and returns the latency of
// every pair, by number.
func latencies(t *testing.T, seed uint64, order []int) []time.Duration {
	t.Helper()
	n := newNet(t, Config{Seed: seed, Sites: len(order), Topology: Uniform(10*time.Millisecond, 90*time.Millisecond, 0)})
	for _, i := range order {
		join(t, n, i)
	}
	var all []time.Duration
	for b := range order {
		for a := range b {
			l := n.Link(order[a], order[b])
			if back := n.Link(order[b], order[a]); back != l {
				t.Fatalf("from %d to %d it is %v, and %v back", order[a], order[b], l, back)
			}
			all = append(all, l.Latency)
		}
	}
	return all
}

func TestEveryPairOf1000SitesHasALatencyOfItsOwn(t *testing.T) {
	order := make([]int, 1000)
	for i := range order {
		order[i] = i
	}
	all := latencies(t, 1, order)
	if lo, hi := slices.Min(all), slices.Max(all); lo < 9*time.Millisecond || hi > 91*time.Millisecond {
		t.Errorf("latencies from %v to %v, want 10 to 90 ms within 0.6 ms", lo, hi)
	}
	slices.Sort(all)
	if n := len(slices.Compact(all)); n != 1000*999/2 {
		t.Errorf("%d different latencies, want %d", n, 1000*999/2)
	}
}

func TestLatencyIsAPureFunctionOfSeedAndPair(t *testing.T) {
	up, down := make([]int, 60), make([]int, 60)
	for i := range up {
		up[i], down[len(up)-1-i] = i, i
	}
	one := latencies(t, 1, up)
	again := latencies(t, 1, down)
	slices.Sort(one)
	slices.Sort(again)
	if !slices.Equal(one, again) {
		t.Error("the order of joining changes latencies")
	}
	other := latencies(t, 2, up)
	same := 0
	for _, d := range other {
		if _, ok := slices.BinarySearch(one, d); ok {
			same++
		}
	}
	if same > len(one)/100 {
		t.Errorf("%d of %d latencies are the same with another seed", same, len(one))
	}
}

func TestSourceDrawsEvenlyUpToAndIncludingItsBound(t *testing.T) {
	s := newSource(1)
	var got [4]int
	for range 40_000 {
		got[s.upTo(3)]++
	}
	for v, n := range got {
		if n < 9_500 || n > 10_500 {
			t.Errorf("%d was drawn %d times of 40,000, want about 10,000", v, n)
		}
	}
	if d := s.upTo(0); d != 0 {
		t.Errorf("upTo(0) = %v", d)
	}
}
