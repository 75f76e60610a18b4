package network_test

import (
	"fmt"
	"log"
	"strings"
	"time"

	"starling/simulation/network"
)

func Example() {
	m, err := network.ParseMatrix(strings.NewReader("ms,eu,us\neu,8,45\nus,45,12\n"))
	if err != nil {
		log.Fatal(err)
	}
	n, err := network.New(network.Config{Seed: 1, Sites: 3, Topology: m, Loss: 0.01})
	if err != nil {
		log.Fatal(err)
	}
	ada, err := n.Join(network.Site{Index: 0, Region: "eu"}, 0, 0)
	if err != nil {
		log.Fatal(err)
	}
	bo, err := n.Join(network.Site{Index: 1, Region: "us"}, 5e6, 20e6)
	if err != nil {
		log.Fatal(err)
	}
	cy, err := n.Join(network.Site{Index: 2, Region: "us", NAT: network.PortRestricted}, 0, 0)
	if err != nil {
		log.Fatal(err)
	}
	// Each would give its Options and Listen to a node, or for QUIC its
	// QUICOptions and QUICListen.
	fmt.Println(ada.Listen(), bo.Listen())
	fmt.Println(cy.QUICListen(), "seen as", cy.Addr())
	fmt.Println(n.Link(0, 1).Latency.Round(time.Millisecond))
	// Output:
	// /ip4/1.0.0.1/tcp/4001 /ip4/1.1.0.1/tcp/4001
	// /ip4/10.0.2.2/udp/4001/quic-v1 seen as 1.2.0.1
	// 45ms
}
