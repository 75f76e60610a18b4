package scenario_test

import (
	"fmt"

	"starling/simulation"
	"starling/simulation/network"
	"starling/simulation/scenario"
)

// A world of one's own, on the latencies of the internet.
func ExampleInternet() {
	m := scenario.Internet()
	cfg := simulation.Config{Seed: 1, Topology: m, Nodes: []simulation.NodeSpec{
		{Name: "ada", Region: "europe"},
		{Name: "bo", Region: "asia"},
	}}
	a, b := network.Site{Index: 0, Region: "europe"}, network.Site{Index: 1, Region: "asia"}
	fmt.Println(m.Regions, cfg.Topology.Link(cfg.Seed, a, b).Latency)
	// Output: [europe north-america south-america africa asia oceania] 90ms
}
