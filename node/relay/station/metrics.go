package station

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// prefix begins the name of every metric of a relay.
const prefix = "starling_relay_"

// A metric is one number of a Status. None has a label that tells clients apart.
type metric struct {
	name, help string
	counter    bool
	value      func(Status) float64
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var metricsOf = []metric{
	{"serving", "Whether the relay serves.", false, func(s Status) float64 { return flag(s.Serving) }},
	{"started_seconds", "When the relay was started, unix time.", false, func(s Status) float64 { return float64(s.Started.Unix()) }},
	{"draining", "Whether the relay takes nothing new.", false, func(s Status) float64 { return flag(!s.Service.Draining.IsZero()) }},
	{"reachable", "Whether an address is announced or confirmed.", false, func(s Status) float64 {
		return flag(s.Reach == ReachAnnounced || s.Reach == ReachConfirmed)
	}},
	{"quota_bytes", "The most bytes of messages on the disk.", false, func(s Status) float64 { return float64(s.Quota) }},
	{"disk_bytes", "Bytes of messages on the disk, free slots included.", false, func(s Status) float64 { return float64(s.Service.Spool.Bytes) }},
	{"messages", "Messages held.", false, func(s Status) float64 { return float64(s.Messages) }},
	{"damaged_slots", "Slots whose checksum did not hold.", false, func(s Status) float64 { return float64(s.Service.Spool.Damaged) }},
	{"queues", "Queues held.", false, func(s Status) float64 { return float64(s.Service.Queues) }},
	{"accounts", "Admission tokens and address blocks with a queue.", false, func(s Status) float64 { return float64(s.Service.Shares) }},
	{"admission_tokens", "Admission tokens that were issued and not revoked.", false, func(s Status) float64 { return float64(s.Tokens) }},
	{"box_bytes", "Bytes in contact boxes.", false, func(s Status) float64 { return float64(s.Service.Boxes) }},
	{"anybody_bytes", "Bytes on the accounts of address blocks, which need no token.", false, func(s Status) float64 { return float64(s.Service.Anybody) }},
	{"blobs", "Encrypted files held.", false, func(s Status) float64 { return float64(s.Service.Blobs) }},
	{"blob_bytes", "Bytes of these, each counted whole.", false, func(s Status) float64 { return float64(s.Service.Shelf) }},
	{"streams", "Relay streams open.", false, func(s Status) float64 { return float64(s.Service.Streams) }},
	{"attached_queues", "Queues attached, on all streams.", false, func(s Status) float64 { return float64(s.Service.Attached) }},
	{"work_bits", "Bits of work asked of strangers now.", false, func(s Status) float64 { return float64(s.Service.WorkBits) }},
	{"traffic_bytes", "Bytes of requests and answers this month.", false, func(s Status) float64 { return float64(s.Service.Traffic) }},
	{"traffic_limit_bytes", "The most bytes of a month; 0: no limit.", false, func(s Status) float64 { return float64(s.Traffic) }},
	{"connections", "Connections open.", false, func(s Status) float64 { return float64(s.Conns) }},
	{"dht_peers", "Peers in the DHT's routing table.", false, func(s Status) float64 { return float64(s.Peers) }},
	{"dht_records", "DHT records held for others.", false, func(s Status) float64 { return float64(s.Records) }},
	{"dht_record_bytes", "Bytes of these, in memory.", false, func(s Status) float64 { return float64(s.RecordSize) }},
	{"requests_total", "Requests read.", true, func(s Status) float64 { return float64(s.Service.Counters.Requests) }},
	{"request_bytes_total", "Bytes of requests.", true, func(s Status) float64 { return float64(s.Service.Counters.BytesIn) }},
	{"answer_bytes_total", "Bytes of answers.", true, func(s Status) float64 { return float64(s.Service.Counters.BytesOut) }},
	{"turned_away_total", "Streams that their address block had no room for.", true, func(s Status) float64 { return float64(s.Service.Counters.TurnedAway) }},
	{"deposits_total", "Messages taken.", true, func(s Status) float64 { return float64(s.Service.Counters.Deposits) }},
	{"deposit_bytes_total", "Bytes of these.", true, func(s Status) float64 { return float64(s.Service.Counters.DepositBytes) }},
	{"repeated_deposits_total", "Messages that were there already.", true, func(s Status) float64 { return float64(s.Service.Counters.Repeated) }},
	{"polls_total", "Polls answered.", true, func(s Status) float64 { return float64(s.Service.Counters.Polls) }},
	{"given_out_total", "Messages given to their readers, each as often as it was.", true, func(s Status) float64 { return float64(s.Service.Counters.Entries) }},
	{"one_time_keys_total", "One-time keys given out.", true, func(s Status) float64 { return float64(s.Service.Counters.Keys) }},
	{"blob_chunks_total", "Pieces of encrypted files given out.", true, func(s Status) float64 { return float64(s.Service.Counters.Chunks) }},
	{"sent_bytes_total", "Bytes sent on all streams.", true, func(s Status) float64 { return float64(s.Sent) }},
	{"received_bytes_total", "Bytes received on all streams.", true, func(s Status) float64 { return float64(s.Received) }},
	{"circuit_sent_bytes_total", "Bytes sent that were carried for others.", true, func(s Status) float64 { return float64(s.CircuitOut) }},
	{"circuit_received_bytes_total", "Bytes received that were carried for others.", true, func(s Status) float64 { return float64(s.CircuitIn) }},
}

// A collector makes metrics of a status when somebody asks.
type collector struct {
	s     *Station
	descs []*prometheus.Desc

	sizes, refused, groups *prometheus.Desc
}

// Collector returns the relay's metrics: numbers of the whole, and none that
// tells a client, a queue or an address from another. The names begin with
// starling_relay_.
func (s *Station) Collector() prometheus.Collector {
	c := &collector{
		s:       s,
		sizes:   prometheus.NewDesc(prefix+"messages_by_size", "Messages held, by the size of their envelopes.", []string{"bytes"}, nil),
		refused: prometheus.NewDesc(prefix+"refused_total", "Requests not granted, by the answer.", []string{"status"}, nil),
		groups:  prometheus.NewDesc(prefix+"group_deposits", "Messages that one write to the disk and one signature were for.", nil, nil),
	}
	for _, m := range metricsOf {
		c.descs = append(c.descs, prometheus.NewDesc(prefix+m.name, m.help, nil, nil))
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
	ch <- c.sizes
	ch <- c.refused
	ch <- c.groups
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	st := c.s.Status()
	for i, m := range metricsOf {
		kind := prometheus.GaugeValue
		if m.counter {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(c.descs[i], kind, m.value(st))
	}
	for _, size := range st.Service.Spool.Sizes {
		ch <- prometheus.MustNewConstMetric(c.sizes, prometheus.GaugeValue, float64(size.Entries), strconv.Itoa(size.Size))
	}
	did := st.Service.Counters
	for status, n := range did.Refused {
		ch <- prometheus.MustNewConstMetric(c.refused, prometheus.CounterValue, float64(n), status)
	}
	buckets, all := map[float64]uint64{}, uint64(0)
	for i, n := range did.Groups {
		all += n
		buckets[float64(uint64(2)<<i-1)] = all // groups of up to so many
	}
	ch <- prometheus.MustNewConstHistogram(c.groups, all, float64(did.Receipts), buckets)
}
