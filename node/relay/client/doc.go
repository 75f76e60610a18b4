// Package client is the user's end of SPEC §13: what leaves things at relays,
// and what reads there.
//
//	Dialer, Conn   one stream: each request of §13.4 that a user makes, typed
//	Hosts          fresh hosts under fresh keys, so that a relay sees no node
//	Depositor      a throw-away host for one relay and one batch
//	Reader         reads one relay for as long as a node runs
//
// A relay is trusted with nothing but being there. Its answers are bounded in
// time and size and have to fit their requests; receipts are verified under the
// relay's key; entries have to be of queues that were attached. One that breaks
// this loses the stream. A relay can still withhold, repeat and delay, ask for
// work up to [Dialer.MaxBits], and send garbage as fast as the line lets it: who
// takes entries bounds what it does with each.
//
// A [Conn] belongs to one goroutine, except for its Close. A [Depositor] may be
// used by many at once. A [Reader] runs in one goroutine, which calls what its
// config gives it; Kick and Status may be called by any.
//
// What it does not do: keep rows (who leaves or reads knows what it left and
// has), seal or open what is carried, choose relays and expiries (relay.Expiry),
// read logs ([Reader] does not; [Poll] has the cursors), leave blobs, or have
// itself dialled back.
package client
