package report

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"starling/simulation"
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// sampleRun makes up a run of a town: a hundred nodes, two thousand messages, an
// evening with a partition, loss and crashes. The same seed makes the same run.
func sampleRun(seed uint64) *simulation.Result {
	r := rand.New(rand.NewPCG(seed, 1))
	const nodes, lasted = 100, 30 * time.Minute
	res := &simulation.Result{
		Manifest: simulation.Manifest{
			Scenario: "town",
			Source:   "name = \"town\"\nnodes = 100\n\n[[fault]]\nat = \"6m\"\nkind = \"partition\"\nlasts = \"4m\"\n",
			Seed:     seed, Params: map[string]string{"churn": "2", "loss": "0.1"}, Nodes: nodes,
			Store: "memory", Security: "plain", Version: "0.3.0", Go: "go1.26.0", OS: "linux", Arch: "amd64",
			Epoch: epoch, Simulated: simulation.Seconds(lasted), Wall: simulation.Seconds(29412 * time.Millisecond),
			CPU: simulation.Seconds(31078 * time.Millisecond), PeakMemory: 486_000_000,
			Repeat:  fmt.Sprintf("starling-sim run town --seed %d --set churn=2 --set loss=0.1", seed),
			Outcome: "held",
		},
		Envelopes: simulation.Envelopes{Sealed: 4180, Opened: 4112, Repeated: 61, Refused: 7},
	}
	regions := []string{"europe", "america", "asia"}
	at := func(share float64) time.Duration { return time.Duration(share * float64(lasted)) }
	part, healed := at(0.2), at(0.34)
	res.Faults = append(res.Faults, simulation.Fault{Kind: "partition", What: "europe | america, asia", From: part, To: healed})
	res.Faults = append(res.Faults, simulation.Fault{Kind: "loss", What: "30 % on all links", From: at(0.55), To: at(0.68)})
	res.Faults = append(res.Faults, simulation.Fault{Kind: "skew", What: "ada-17 is 40 s fast", From: at(0.4), To: -1})
	for i := range nodes {
		n := simulation.NodeResult{Name: fmt.Sprintf("%s-%d", []string{"ada", "bo", "cy"}[i%3], i), Region: regions[i%3], Role: "peer", Starts: 1, Up: lasted}
		if r.IntN(3) == 0 {
			from := at(r.Float64() * 0.9)
			to := from + time.Duration(r.IntN(150)+5)*time.Second
			n.Starts, n.Crashes, n.Up = 2, 1, lasted-(to-from)
			res.Faults = append(res.Faults, simulation.Fault{Kind: "crash", What: n.Name + " loses power", From: from, To: min(to, lasted)})
		}
		res.Nodes = append(res.Nodes, n)
		busy := 0.5 + r.ExpFloat64()
		for _, p := range []struct {
			id   string
			mean float64
		}{{"/starling/kad/1.0.0", 310e3}, {"transport", 180e3}, {"/starling/envelope/1", 90e3}, {"/ipfs/id/1.0.0", 42e3}, {"/ipfs/ping/1.0.0", 2e3}} {
			res.Traffic = append(res.Traffic, simulation.Traffic{
				Node: i, Protocol: p.id,
				Sent: int64(p.mean * busy * (0.8 + 0.4*r.Float64())), Received: int64(p.mean * busy * (0.8 + 0.4*r.Float64())),
			})
		}
	}
	slices.SortStableFunc(res.Faults, func(a, b simulation.Fault) int { return int(a.From - b.From) })
	for i := range 2000 {
		sent := at(0.02 + 0.9*r.Float64())
		took := time.Duration((0.06 + 0.25*r.ExpFloat64()) * float64(time.Second))
		if r.IntN(20) == 0 {
			took += time.Duration(r.ExpFloat64() * 9 * float64(time.Second))
		}
		from, to := r.IntN(nodes), r.IntN(nodes)
		if sent > part && sent < healed && (from%3 == 0) != (to%3 == 0) {
			took += healed - sent + time.Duration(r.IntN(9000))*time.Millisecond
		}
		res.Messages = append(res.Messages, simulation.Message{
			ID: fmt.Sprintf("%08x%08x", r.Uint32(), i), From: from, To: to, Size: 20 + r.IntN(400),
			Accepted: sent, Shown: sent + took, Confirmed: sent + took + 80*time.Millisecond,
		})
	}
	slices.SortFunc(res.Messages, func(a, b simulation.Message) int { return int(a.Accepted - b.Accepted) })
	for range 640 {
		hops := min(6, 1+int(r.ExpFloat64()*1.3))
		res.Lookups = append(res.Lookups, simulation.Lookup{
			By: r.IntN(nodes), At: at(r.Float64()), Took: time.Duration(hops*90+r.IntN(300)) * time.Millisecond,
			Hops: hops, Asked: 3 + hops*3, Found: r.IntN(40) > 0, Stale: r.IntN(200) == 0,
		})
	}
	for i := range 30 {
		wall := time.Duration(i) * 980 * time.Millisecond
		res.Usage = append(res.Usage, simulation.Usage{
			At: at(float64(i*i+12*i) / (29*29 + 12*29)), Wall: wall, CPU: time.Duration(float64(wall) * (1.02 + 0.05*r.Float64())),
			Memory: 210e6 + int64(i)*8_600_000 + int64(r.IntN(30e6)), Goroutines: 9200 + r.IntN(600),
		})
	}
	res.Sightings = []simulation.Sighting{
		{Observer: "the network of a node", Sees: "addresses its node talks to", Median: 38, Most: 61, Unit: "addresses"},
		{Observer: "a DHT peer", Sees: "blinded records it was asked to keep", Median: 12, Most: 31, Unit: "records"},
		{Observer: "a DHT peer", Sees: "addresses that asked it for a record", Median: 21, Most: 57, Unit: "addresses"},
		{Observer: "a contact", Sees: "when its friend's node was reachable", Median: 0.82, Most: 1, Unit: "share"},
	}
	res.Metrics = []simulation.Metric{
		{Name: "caught_up_after_heal", Value: 41.2, Unit: "s", Goal: "at most 10 min"},
		{Name: "records_rolled_back", Value: 0, Unit: "records", Goal: "none"},
	}
	return res
}
