package simulation

import (
	"slices"

	"starling/protocol"
)

// sightings says how much observers in different places could see, by counting
// who spoke to whom over which protocol. What is inside is encrypted in every
// case, or says nothing of accounts (SPEC §12).
func (w *World) sightings() []Sighting {
	var any, contacts, askers, records []float64
	for _, n := range w.nodes {
		n.meter.mu.Lock()
		peers := map[string]bool{}
		for _, id := range n.meter.order {
			for p := range n.meter.protocols[id].peers {
				peers[string(p)] = true
			}
		}
		count := func(id string) float64 {
			for _, p := range n.meter.order {
				if string(p) == id {
					return float64(len(n.meter.protocols[p].peers))
				}
			}
			return 0
		}
		any = append(any, float64(len(peers)))
		contacts = append(contacts, count(string(protocol.StreamMessage)))
		askers = append(askers, count(string(protocol.KadPrefix+"/kad/1.0.0")))
		records = append(records, count(string(protocol.StreamRecord)))
		n.meter.mu.Unlock()
	}
	return []Sighting{
		sighting("the network a node is in", "addresses it exchanges anything with", any),
		sighting("the network a node is in", "addresses that are contacts of its user, if it can tell messages from the rest by size and time", contacts),
		sighting("a DHT peer", "addresses that ask it for something or tell it something; not what about", askers),
		sighting("a contact, or a node named in a link", "addresses that ask it for a record directly", records),
	}
}

func sighting(observer, sees string, counts []float64) Sighting {
	slices.Sort(counts)
	return Sighting{Observer: observer, Sees: sees, Median: counts[len(counts)/2], Most: counts[len(counts)-1], Unit: "addresses"}
}
