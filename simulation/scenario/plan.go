package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"starling/protocol"
	"starling/simulation"
	"starling/simulation/network"
)

// A plan is what a scenario file says, with its parameters filled in.
type plan struct {
	duration time.Duration
	promise  time.Duration
	settle   bool
	groups   []group
	nodes    int // of all groups
	started  int // those that run a node of their own
	peers    int // those of people
	config   simulation.Config
	start    time.Duration // pause between the starts of two nodes
	regions  []string      // of the topology; nil if it has none
	friends  float64       // mean number of friends
	chat     *chat
	churn    *churn
	faults   []fault
	relays   []relays
	commute  *commute
	eclipse  *eclipse
	drain    *drain
	flood    *flood
	notes    []string // see [Outline]
}

// A group is nodes of one kind.
type group struct {
	name     string
	count    int // 0: one node, named as the group
	role     string
	regions  []string
	up, down int64
	skew     [2]time.Duration
	clients  float64
	nats     []natShare // the rest has none
	circuits bool
	uses     []string // names of relays, and of groups of them
}

// A natShare is how many of a group are behind a kind of NAT.
type natShare struct {
	kind  network.NAT
	share float64
}

// size returns how many nodes the group has.
func (g group) size() int { return max(g.count, 1) }

// names returns the names of the group's nodes.
func (g group) names() []string {
	if g.count == 0 {
		return []string{g.name}
	}
	names := make([]string, g.count)
	for i := range names {
		names[i] = fmt.Sprintf("%s%d", g.name, i+1)
	}
	return names
}

// A chat is how people write to their friends.
type chat struct {
	from, until time.Duration
	pause       time.Duration // mean; of one person, between two texts
	size        [2]int        // bytes
}

// A churn is how nodes come and go.
type churn struct {
	from, until time.Duration
	share       float64       // of the people
	up, down    time.Duration // means
	crash       float64       // share of the departures without a goodbye
}

// A fault is something that breaks, once or again and again.
type fault struct {
	kind     string
	at, last time.Duration
	every    time.Duration // 0: once
	until    time.Duration // of repetitions: all are over by then
	share    float64       // partition, loss
	groups   int           // partition; 0: share of the nodes against the others
	parts    [][]string    // partition: names of nodes; nil: drawn
	nodes    int           // crash, link
	boundary [2]int        // crash; 0: at once
	lost     bool          // relay: its disk
	ends     bool          // relay: before the scenario does
	link     network.Link
}

// times returns when the fault begins.
func (f fault) times() []time.Duration {
	list := []time.Duration{f.at}
	for f.every > 0 && list[len(list)-1]+f.every+f.last <= f.until {
		list = append(list, list[len(list)-1]+f.every)
	}
	return list
}

// Bounds of what a file may ask for.
const (
	maxNodes  = 1 << 16 // as the network has places
	maxFaults = 10_000

	maxLatency = time.Minute // as the network believes
)

// read reads a whole document.
func (r *reader) read(t *table, folder string) *plan {
	top := r.section("the scenario", t)
	p := &plan{}
	top.text("about")
	p.duration = top.duration("duration", time.Hour, time.Second)
	p.promise = top.duration("promise", 10*time.Minute, time.Second)
	p.settle = top.flag("settle", true)
	for _, s := range top.subs("nodes") {
		p.readGroup(s)
	}
	p.readNode(top.sub("node"))
	p.readNetwork(top.sub("network"), folder)
	p.checkGroups(top)
	p.checkNATs(top.subs("nodes"))
	for _, s := range top.subs("relays") {
		p.readRelays(s)
	}
	p.checkRelays(top)
	if s := top.sub("commute"); s.table != nil {
		p.readCommute(s, top)
	}
	if s := top.sub("friends"); s.table != nil {
		p.readFriends(s)
	}
	if s := top.sub("chat"); s.table != nil {
		p.readChat(s)
	}
	if s := top.sub("churn"); s.table != nil {
		p.readChurn(s)
	}
	for _, s := range top.subs("fault") {
		p.readFault(s)
	}
	if s := top.sub("eclipse"); s.table != nil {
		p.readEclipse(s)
	}
	if s := top.sub("flood"); s.table != nil {
		p.readFlood(s)
	}
	if s := top.sub("drain"); s.table != nil {
		p.readDrain(s)
	}
	top.known("params") // was read before all else
	top.need("about", "duration", "nodes")
	top.done()
	if t.keys["duration"] != nil && p.ready() >= p.duration {
		top.clash("duration", "%v is over before all %d nodes have been started, which takes %v", p.duration, p.started, p.ready())
	}
	for _, param := range r.params {
		if !r.used[param.Name] {
			r.follow(t.keys["params"].value.(*table).keys[param.Name].at, "nothing refers to parameter %q", param.Name)
		}
	}
	return p
}

// ready is when all nodes have been started, and people have met.
func (p *plan) ready() time.Duration { return time.Duration(p.started) * p.start }

// people returns the names of those who live in the world: all nodes that are
// not there for an attack.
func (p *plan) people() []string { return p.with(rolePeer) }

// with returns the names of the nodes of a role.
func (p *plan) with(role string) []string {
	var list []string
	for _, g := range p.groups {
		if g.role == role {
			list = append(list, g.names()...)
		}
	}
	return list
}

// rolePeer is the role of nodes that are what they seem.
const rolePeer = "peer"

func (p *plan) readGroup(s section) {
	s.need("name")
	g := group{name: s.text("name")}
	if s.has("count") {
		g.count = s.count("count", 1, 1, maxNodes)
	}
	g.role = s.choice("role", rolePeer, simulation.RoleSybil, simulation.RoleSpammer)
	g.regions = s.words("region")
	g.up, g.down = s.rate("up"), s.rate("down")
	g.skew = s.durations("skew", [2]time.Duration{}, -longest)
	g.clients = s.share("clients", 0)
	g.nats = readNAT(s)
	g.circuits = s.flag("circuits", false)
	g.uses = s.words("uses")
	if g.nats != nil && g.circuits {
		s.clash("circuits", "from behind a NAT nobody can offer them")
	}
	if g.nats != nil && g.role == simulation.RoleSybil {
		s.clash("nat", "a node of role %q serves others, which nobody can from behind a NAT", g.role)
	}
	s.done()
	p.groups = append(p.groups, g)
	p.nodes += g.size()
	if g.role != simulation.RoleSybil {
		p.started += g.size()
	}
	if g.role == rolePeer {
		p.peers += g.size()
	}
}

// kindsOfNAT are all of them, none first.
var kindsOfNAT = []network.NAT{network.NoNAT, network.FullCone, network.PortRestricted, network.Symmetric}

// readNAT reads the kind of NAT that a group is behind, or the share of each.
func readNAT(s section) []natShare {
	const key = "nat"
	it := s.known(key)
	if it == nil {
		return nil
	}
	if t, ok := it.value.(*table); ok {
		return readNATs(s.section("[nodes.nat]", t))
	}
	words := make([]string, len(kindsOfNAT))
	for i, k := range kindsOfNAT {
		words[i] = k.String()
	}
	kind := kindsOfNAT[slices.Index(words, s.choice(key, words...))]
	if kind == network.NoNAT {
		return nil
	}
	return []natShare{{kind, 1}}
}

func readNATs(s section) []natShare {
	var list []natShare
	sum := 0.0
	for _, k := range kindsOfNAT[1:] {
		share := s.share(k.String(), 0)
		if sum += share; sum > 1+1e-9 {
			s.clash(k.String(), "the shares are more than all: %g", sum)
		}
		if share > 0 {
			list = append(list, natShare{k, share})
		}
	}
	s.done()
	return list
}

// deal returns the NATs of the nodes of a group, drawn from r.
func (g group) deal(r *rand.Rand) []network.NAT {
	list := make([]network.NAT, g.size())
	if g.nats == nil {
		return list
	}
	order := r.Perm(len(list))
	next, sum := 0, 0.0
	for _, n := range g.nats {
		for sum += n.share; next < min(len(list), int(sum*float64(len(list))+0.5)); next++ {
			list[order[next]] = n.kind
		}
	}
	return list
}

// checkNATs refuses a world that nobody can join.
func (p *plan) checkNATs(groups []section) {
	first := slices.IndexFunc(p.groups, func(g group) bool { return g.role == rolePeer })
	if first >= 0 && p.groups[first].nats != nil {
		groups[first].clash("nat", "others join through the first nodes, so those have none")
	}
}

// checkGroups checks what no group can know alone.
func (p *plan) checkGroups(top section) {
	if p.nodes > maxNodes {
		top.clash("nodes", "%d nodes are more than %d", p.nodes, maxNodes)
		return
	}
	seen := map[string]bool{}
	for i, s := range top.subs("nodes") {
		g := p.groups[i]
		for _, name := range g.names() {
			if seen[name] {
				s.clash("name", "two nodes are named %q", name)
				break
			}
			seen[name] = true
		}
		p.checkRegions(s, g.regions)
	}
}

func (p *plan) checkRegions(s section, regions []string) {
	if p.regions == nil && regions != nil {
		s.clash("region", "the network has no regions; [network] matrix gives it some")
		return
	}
	for _, region := range regions {
		if !slices.Contains(p.regions, region) {
			s.clash("region", "the network has no region %q; it has %s", region, strings.Join(p.regions, ", "))
		}
	}
}

func (p *plan) readNode(s section) {
	p.start = s.duration("start", 100*time.Millisecond, 0)
	p.config.Conns = s.count("conns", 0, 1, maxNodes)
	p.config.Table = s.count("table", 0, 1, maxNodes)
	p.config.Entries = s.count("entries", 0, 1, maxNodes)
	if it := s.known("refresh"); it != nil && it.value == "never" {
		p.config.Refresh = -1
	} else {
		p.config.Refresh = s.duration("refresh", 0, time.Second)
	}
	if s.choice("store", "memory", "badger") == "badger" {
		p.config.Store = simulation.Badger
	}
	s.done()
}

func (p *plan) readNetwork(s section, folder string) {
	p.config.Loss = s.share("loss", 0)
	p.config.Noise = s.flag("noise", false)
	faces := []simulation.Face{simulation.StreamFace, simulation.PacketFace, simulation.BothFaces}
	words := make([]string, len(faces))
	for i, f := range faces {
		words[i] = f.String()
	}
	p.config.Face = faces[slices.Index(words, s.choice("face", words...))]
	jitter := s.latency("jitter", 0)
	switch s.one("latency", "matrix", "trace") {
	case "matrix":
		m := p.readMatrix(s, folder)
		m.Jitter, m.Spread = jitter, s.share("spread", 0.2)
		p.config.Topology, p.regions = m, m.Regions
	case "trace":
		if trace := p.readTrace(s, folder); trace != nil {
			p.config.Topology = shaky{trace, jitter}
		}
	default:
		r := s.durations("latency", [2]time.Duration{10 * time.Millisecond, 90 * time.Millisecond}, 0)
		if r[1] > maxLatency {
			s.wrong("latency", "%v is more than %v", r[1], maxLatency)
		}
		p.config.Topology = network.Uniform(r[0], r[1], jitter)
	}
	s.done()
}

// internet is the name of the matrix that the program brings along.
const internet = "internet"

func (p *plan) readMatrix(s section, folder string) network.Matrix {
	name := s.text("matrix")
	if name == internet {
		return Internet()
	}
	f, err := openFile(beside(folder, name))
	if err != nil {
		s.wrong("matrix", "%v", noFile(beside(folder, name), err))
		return network.Matrix{}
	}
	defer f.Close()
	m, err := network.ParseMatrix(f)
	if err != nil {
		s.wrong("matrix", "%s: %v", name, err)
	}
	return m
}

func (p *plan) readTrace(s section, folder string) network.Topology {
	name := s.text("trace")
	f, err := openFile(beside(folder, name))
	if err != nil {
		s.wrong("trace", "%v", noFile(beside(folder, name), err))
		return nil
	}
	defer f.Close()
	seen := &coverage{nodes: p.nodes}
	topology, err := network.ParseTrace(io.TeeReader(f, seen))
	if err != nil {
		s.wrong("trace", "%s: %v", name, err)
		return nil
	}
	seen.end(seen.line)
	if got, all := len(seen.pairs), p.nodes*(p.nodes-1)/2; got < all {
		p.notes = append(p.notes, fmt.Sprintf("the trace %s has %d of the %d pairs of nodes; each of the others gets the latency of a pair that it has, drawn from the seed", name, got, all))
	}
	return topology
}

// A coverage counts the pairs of nodes for which a trace that is written to it
// has a latency. It skips what is no line of a trace: the parser refuses that.
type coverage struct {
	nodes int
	line  []byte // as far as it has come
	pairs map[[2]int]bool
}

// Write implements [io.Writer].
func (c *coverage) Write(b []byte) (int, error) {
	n := len(b)
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			c.line = append(c.line, b...)
			return n, nil
		}
		c.end(append(c.line, b[:i]...))
		c.line, b = c.line[:0], b[i+1:]
	}
}

func (c *coverage) end(line []byte) {
	cells := strings.SplitN(string(line), ",", 3)
	if len(cells) < 3 {
		return
	}
	from, err1 := strconv.Atoi(strings.TrimSpace(cells[0]))
	to, err2 := strconv.Atoi(strings.TrimSpace(cells[1]))
	if err1 == nil && err2 == nil && max(from, to) < c.nodes {
		if c.pairs == nil {
			c.pairs = map[[2]int]bool{}
		}
		c.pairs[[2]int{min(from, to), max(from, to)}] = true
	}
}

// beside returns the path of a file that a scenario in folder names.
func beside(folder, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(folder, name)
}

// openFile opens a file, and nothing else: a pipe would be waited for.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file but a folder, a pipe or a device", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// noFile replaces the error of opening a file that there is not.
func noFile(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no file %s", path)
	}
	return err
}

// A shaky topology is another one with jitter on every link.
type shaky struct {
	network.Topology
	jitter time.Duration
}

// Link implements [network.Topology].
func (t shaky) Link(seed uint64, a, b network.Site) network.Link {
	l := t.Topology.Link(seed, a, b)
	l.Jitter += t.jitter
	return l
}

func (p *plan) readFriends(s section) {
	s.need("degree")
	p.friends = s.number("degree", 0, 1, maxNodes)
	s.done()
	if p.friends > float64(p.peers-1) {
		s.clash("degree", "%g friends are more than %d people can have", p.friends, p.peers)
	}
}

// window reads when something begins and ends, within the scenario.
func (p *plan) window(s section) (from, until time.Duration) {
	from = s.duration("from", 0, 0)
	until = s.duration("until", p.duration, 0)
	switch {
	case until > p.duration:
		s.clash("until", "%v is after the end of the scenario at %v", until, p.duration)
	case from >= until:
		s.clash("from", "%v is not before the end at %v", from, until)
	}
	return from, until
}

func (p *plan) readChat(s section) {
	s.need("pause")
	c := &chat{pause: s.duration("pause", time.Minute, time.Millisecond)}
	c.size = s.counts("size", [2]int{20, 400}, 1, protocol.MaxText)
	c.from, c.until = p.window(s)
	s.done()
	if p.friends == 0 {
		s.follow(s.table.at, "[chat] needs [friends]: nobody has anybody to write to")
	}
	p.chat = c
}

func (p *plan) readChurn(s section) {
	s.need("share", "up", "down")
	c := &churn{share: s.share("share", 0), crash: s.share("crash", 0)}
	c.up = s.duration("up", time.Hour, time.Second)
	c.down = s.duration("down", time.Hour, time.Second)
	c.from, c.until = p.window(s)
	s.done()
	p.churn = c
}

// Kinds of faults.
const (
	faultPartition = "partition"
	faultLoss      = "loss"
	faultCrash     = "crash"
	faultLink      = "link"
	faultRelay     = "relay"
)

func (p *plan) readFault(s section) {
	s.need("kind")
	f := fault{kind: s.choice("kind", faultPartition, faultLoss, faultCrash, faultLink, faultRelay)}
	if !s.has("kind") {
		return
	}
	s.name += " of kind " + f.kind
	s.known("kind")
	s.need("at")
	f.at = s.duration("at", p.ready(), 0)
	f.every = s.duration("every", 0, time.Millisecond)
	f.until = s.duration("until", p.duration, 0)
	f.last = s.duration("for", f.until-f.at, time.Millisecond)
	if f.every > 0 {
		s.need("for")
	}
	switch f.kind {
	case faultPartition:
		switch s.one("groups", "share", "between", "by") {
		case "":
			s.follow(s.table.at, "a partition needs \"groups\", \"share\", \"between\" or \"by\"")
		case "groups":
			f.groups = s.count("groups", 2, 2, maxNodes)
		case "share":
			f.share = s.share("share", 0)
		case "between":
			f.parts = p.readParts(s)
		case "by":
			s.choice("by", "region")
			if f.parts = p.byRegion(); len(f.parts) < 2 {
				s.clash("by", "all nodes are in one region, or in none")
			}
		}
	case faultLoss:
		s.need("share")
		f.share = s.share("share", 0)
	case faultCrash:
		if p.commute != nil {
			s.clash("kind", "who commutes is there at their own times; [commute] crash has them crash")
		}
		f.nodes = p.victims(s)
		f.boundary = s.counts("boundary", [2]int{}, 1, 1_000_000)
		if f.boundary[1] > 0 && p.config.Store != simulation.Memory {
			s.clash("boundary", "crashes at write boundaries need [node] store = \"memory\"")
		}
	case faultRelay:
		f.nodes = s.count("relays", 1, 1, maxNodes)
		f.lost = s.choice("disk", "kept", "lost") == "lost"
		if all := p.relayCount(); f.nodes > all {
			s.clash("relays", "%d are more than the %d relays", f.nodes, all)
		}
		f.ends = f.at+f.last < p.duration
	case faultLink:
		f.nodes = p.victims(s)
		s.need("latency")
		f.link = network.Link{
			Latency: s.latency("latency", 0), Jitter: s.latency("jitter", 0), Loss: s.share("loss", 0),
		}
	}
	s.done()
	p.checkFault(s, f)
	p.faults = append(p.faults, f)
}

// readParts reads the parts of a partition, each of groups and nodes.
func (p *plan) readParts(s section) [][]string {
	const key = "between"
	list, ok := s.known(key).value.([]any)
	if !ok {
		s.wrong(key, "%s is not a list of parts, such as [[\"ada\", \"bo\"], [\"cy\"]]", shown(s.known(key).value))
		return nil
	}
	named := p.named()
	var parts [][]string
	seen := map[string]bool{}
	for _, v := range list {
		var part []string
		for _, word := range s.wordsOf(key, v) {
			names := named[word]
			if names == nil {
				s.clash(key, "there is no node and no group %q", word)
				return nil
			}
			for _, name := range names {
				if seen[name] {
					s.clash(key, "%s is there twice", name)
				}
				seen[name] = true
				part = append(part, name)
			}
		}
		if len(part) > 0 {
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 || len(parts) == 1 && len(seen) == p.nodes {
		s.clash(key, "there is nobody on the other side")
	}
	return parts
}

// named returns the names of the nodes that a word stands for: those of a group,
// or one node's. A group goes before a node of its name.
func (p *plan) named() map[string][]string {
	list := map[string][]string{}
	for _, g := range p.groups {
		for _, name := range g.names() {
			list[name] = []string{name}
		}
	}
	for _, g := range p.groups {
		list[g.name] = g.names()
	}
	return list
}

// byRegion returns the names of the nodes of each region that has some.
func (p *plan) byRegion() [][]string {
	parts := make([][]string, len(p.regions))
	for _, g := range p.groups {
		for i, name := range g.names() {
			if k := slices.Index(p.regions, p.region(g, i)); k >= 0 {
				parts[k] = append(parts[k], name)
			}
		}
	}
	return slices.DeleteFunc(parts, func(part []string) bool { return part == nil })
}

// region returns where a node of a group stands, or nothing.
func (p *plan) region(g group, i int) string {
	regions := g.regions
	if regions == nil {
		regions = p.regions
	}
	if len(regions) == 0 {
		return ""
	}
	return regions[i%len(regions)]
}

// victims reads how many of the people a fault hits.
func (p *plan) victims(s section) int {
	if s.one("nodes", "share") == "share" {
		return int(s.share("share", 0)*float64(p.peers) + 0.5)
	}
	return s.count("nodes", 1, 1, maxNodes)
}

// checkFault checks that a fault fits into the scenario and to those before it.
func (p *plan) checkFault(s section, f fault) {
	if f.kind != faultRelay && f.nodes > p.peers {
		s.clash("nodes", "%d are more than the %d people", f.nodes, p.peers)
	}
	switch {
	case f.at < p.ready():
		s.clash("at", "%v is before all %d nodes have been started, which takes %v", f.at, p.started, p.ready())
	case f.until > p.duration:
		s.clash("until", "%v is after the end of the scenario at %v", f.until, p.duration)
	case f.at >= f.until:
		s.clash("at", "%v is not before the end at %v", f.at, f.until)
	case f.at+f.last > f.until:
		s.clash("for", "the fault lasts until %v, after the end at %v", f.at+f.last, f.until)
	case f.every > 0 && (f.until-f.at)/f.every > maxFaults:
		s.clash("every", "the fault would occur more than %d times", maxFaults)
	case f.every > 0 && f.every < f.last:
		s.clash("every", "the fault lasts %v, and would begin again before it is over", f.last)
	default:
		if f.kind == faultPartition || f.kind == faultLoss {
			p.checkOverlap(s, f)
		}
	}
}

// checkOverlap refuses two faults that would take each other's place.
func (p *plan) checkOverlap(s section, f fault) {
	for _, other := range p.faults {
		if other.kind != f.kind {
			continue
		}
		ours, theirs := f.times(), other.times()
		for len(ours) > 0 && len(theirs) > 0 {
			t, u := ours[0], theirs[0]
			switch {
			case t+f.last <= u:
				ours = ours[1:]
			case u+other.last <= t:
				theirs = theirs[1:]
			default:
				s.clash("at", "a %s is under way already at %v", f.kind, max(t, u))
				return
			}
		}
	}
}
