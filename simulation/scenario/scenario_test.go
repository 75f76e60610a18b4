package scenario

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"starling/simulation"
	"starling/simulation/network"
)

// base is a scenario that is in order, for tests to add to.
const base = `about = "a test"
duration = "10m"
[[nodes]]
name = "p"
count = 5
`

func TestErrorsHaveAPlace(t *testing.T) {
	for _, tt := range []struct{ name, source, want string }{
		{"syntax", "about = \"x\"\nduration = = 3\n", `2:12: unexpected character`},
		{"a key twice", "about = \"x\"\nabout = \"y\"\n", `2:1: `},
		{"not UTF-8", "about = \"\xff\"\n", `1:10: `},
		{"nothing", "", `1:1: the scenario needs "about"`},
		{"no duration", "about = \"x\"\n[[nodes]]\nname = \"p\"\n", `1:1: the scenario needs "duration"`},
		{"no nodes", "about = \"x\"\nduration = \"1m\"\n", `1:1: the scenario needs "nodes"`},
		{"unknown key", "weather = \"bad\"\n" + base, `1:1: unknown key "weather" in the scenario; it knows about, `},
		{"unknown section", base + "[weather]\n", `6:2: unknown key "weather"`},
		{"unknown key below", base + "[network]\nlos = 0.1\n", `7:1: unknown key "los" in [network]; did you mean "loss"?`},
		{"unknown key in a list", base + "[[nodes]]\nname = \"q\"\nsise = 3\n", `8:1: unknown key "sise" in [[nodes]]`},
		{"unknown key unlike any", base + "[network]\nweather = 0.1\n", `7:1: unknown key "weather" in [network]; it knows face, jitter, latency, `},
		{"dotted key", base + "network.los = 0.1\n", `6:1: unknown key "network" in [[nodes]]`},
		{"key of another kind", base + "[[fault]]\nkind = \"loss\"\nshare = 0.1\nat = \"1m\"\nfor = \"1m\"\ngroups = 2\n", `11:1: unknown key "groups" in [[fault]] of kind loss`},
		{"table for a value", base + "[duration]\nx = 1\n", `6:2: `},
		{"value for a table", "network = 3\n" + base, `1:1: network: this is a table: write [network]`},
		{"value for a list", "fault = 3\n" + base, `1:1: fault: there may be several: write [[fault]]`},
		{"table for a list", base + "[fault]\nkind = \"loss\"\n", `6:2: fault: there may be several: write [[fault]]`},
		{"date for a number", base + "[friends]\ndegree = 1979-05-27\n", `7:1: degree: 1979-05-27 is not a number`},

		{"share", base + "[network]\nloss = 1.5\n", `7:1: loss: 1.5 is not a share, which is 0 to 1`},
		{"share that is none", base + "[network]\nloss = nan\n", `7:1: loss: NaN is not a share`},
		{"share as text", base + "[network]\nloss = \"30 %\"\n", `7:1: loss: "30 %" is not a share`},
		{"duration", strings.Replace(base, "10m", "ten", 1), `2:1: duration: "ten" is not a duration, such as "90s" or "2h"`},
		{"duration as a number", strings.Replace(base, `"10m"`, "10", 1), `2:1: duration: 10 is not a duration`},
		{"negative duration", strings.Replace(base, "10m", "-10m", 1), `2:1: duration: -10m0s is not between 1s and `},
		{"number", strings.Replace(base, "count = 5", `count = "five"`, 1), `5:1: count: "five" is not a number`},
		{"whole number", strings.Replace(base, "count = 5", "count = 5.5", 1), `5:1: count: 5.5 is not a whole number`},
		{"too many", strings.Replace(base, "count = 5", "count = 70000", 1), `5:1: count: 70000 is not between 1 and 65536`},
		{"too many in all", strings.Replace(base, "count = 5", "count = 65536\n[[nodes]]\nname=\"q\"", 1), `6:3: nodes: 65537 nodes are more than 65536`},
		{"bandwidth", base + "up = \"50 Mbps\"\n", `6:1: up: "50 Mbps" is not a bandwidth, such as "50 Mbit/s"`},
		{"too little bandwidth", base + "up = \"5 bit/s\"\n", `6:1: up: 5 bit/s is not between`},
		{"flag", base + "[network]\nnoise = \"yes\"\n", `7:1: noise: "yes" is not true or false`},
		{"choice", base + "[node]\nstore = \"disk\"\n", `7:1: store: "disk" is not one of memory, badger`},
		{"text", base + "[[nodes]]\nname = 3\n", `7:1: name: 3 is not a text`},
		{"range upside down", base + "[network]\nlatency = [\"90ms\", \"10ms\"]\n", `7:1: latency: the range begins at 90ms, above its end at 10ms`},
		{"range of three", base + "[network]\nlatency = [\"1ms\", \"2ms\", \"3ms\"]\n", `7:1: latency: a range has 2 bounds, and this has 3`},
		{"latency of hours", base + "[network]\nlatency = \"1h\"\n", `7:1: latency: 1h0m0s is more than 1m0s`},
		{"jitter of hours", base + "[network]\njitter = \"1h\"\n", `7:1: jitter: 1h0m0s is more than 1m0s`},

		{"unknown parameter", strings.Replace(base, "count = 5", `count = "$n"`, 1), `5:1: count: there is no parameter "n"; the scenario has none`},
		{"one of others", strings.Replace(base, "count = 5", `count = "$n"`, 1) + "[network]\nloss = \"$l\"\n[params]\nl = { share = 0.1, about = \"x\" }\n", `5:1: count: there is no parameter "n"; there are l`},
		{"parameter of another kind", base + "[network]\nloss = \"$l\"\n[params]\nl = { number = 0.1, about = \"x\" }\n", `7:1: loss: parameter "l" is a number, and this is a share`},
		{"no parameter", base + "[network]\nloss = \"$\"\n", `7:1: loss: "$" is not a parameter`},
		{"parameter of no use", base + "[params]\nl = { number = 1, about = \"x\" }\n", `7:1: nothing refers to parameter "l"`},
		{"parameter without a default", base + "[params]\nl = { about = \"x\" }\n", `7:1: l: a parameter needs its default`},
		{"parameter with two", base + "[params]\nl = { number = 1, share = 0.5, about = \"x\" }\n", `7:19: share: there is "number" already`},
		{"parameter about nothing", base + "[params]\nl = { number = 1 }\n", `7:1: [params] needs "about"`},
		{"parameter of a parameter", base + "[params]\nl = { duration = \"$m\", about = \"x\" }\n", `7:1: l: a default does not refer to another parameter`},
		{"parameter as a value", base + "[params]\nl = 3\n", `7:1: l: a parameter is a word and a table`},
		{"parameter with a bad default", base + "[params.l]\nshare = 7\nabout = \"x\"\n", `7:1: share: 7 is not a share`},

		{"unknown face", base + "[network]\nface = \"quic\"\n", `7:1: face: "quic" is not one of stream, packet, both`},
		{"unknown NAT", base + "[[nodes]]\nname = \"q\"\nnat = \"open\"\n", `8:1: nat: "open" is not one of none, full-cone, port-restricted, symmetric`},
		{"NATs of unknown kind", base + "[[nodes]]\nname = \"q\"\n[nodes.nat]\nsymetric = 0.5\n", `9:1: unknown key "symetric" in [nodes.nat]; did you mean "symmetric"?`},
		{"NATs that are no share", base + "[[nodes]]\nname = \"q\"\nnat = { full-cone = 2 }\n", `8:9: full-cone: 2 is not a share`},
		{"NATs for more than all", base + "[[nodes]]\nname = \"q\"\n[nodes.nat]\nfull-cone = 0.5\nsymmetric = 0.6\n", `10:1: symmetric: the shares are more than all: 1.1`},
		{"NAT of the first", base + "nat = \"symmetric\"\n", `6:1: nat: others join through the first nodes, so those have none`},
		{"NAT of who offers circuits", base + "[[nodes]]\nname = \"q\"\nnat = \"full-cone\"\ncircuits = true\n", `9:1: circuits: from behind a NAT nobody can offer them`},
		{"NAT of a sybil", base + "[[nodes]]\nname = \"q\"\nrole = \"sybil\"\nnat = \"full-cone\"\n", `9:1: nat: a node of role "sybil" serves others`},
		{"names twice", base + "[[nodes]]\nname = \"p3\"\n", `7:1: name: two nodes are named "p3"`},
		{"region without a map", base + "region = \"europe\"\n", `6:1: region: the network has no regions; [network] matrix gives it some`},
		{"unknown region", base + "region = [\"europe\", \"moon\"]\n[network]\nmatrix = \"internet\"\n", `6:1: region: the network has no region "moon"; it has europe, north-america, `},
		{"two networks", base + "[network]\nmatrix = \"internet\"\nlatency = \"1ms\"\n", `7:1: matrix: there is "latency" already`},
		{"missing trace", base + "[network]\ntrace = \"none.csv\"\n", `7:1: trace: there is no file testdata` + string(filepath.Separator) + `none.csv`},
		{"bad trace", base + "[network]\ntrace = \"bad.csv\"\n", `7:1: trace: bad.csv: network: trace: line 2: `},
		{"missing matrix", base + "[network]\nmatrix = \"none.csv\"\n", `7:1: matrix: there is no file testdata` + string(filepath.Separator) + `none.csv`},
		{"bad matrix", base + "[network]\nmatrix = \"bad.csv\"\n", `7:1: matrix: bad.csv: network: matrix: `},

		{"over before it began", strings.Replace(base, "10m", "1s", 1) + "[node]\nstart = \"1s\"\n", `2:1: duration: 1s is over before all 5 nodes have been started, which takes 5s`},
		{"too many friends", base + "[friends]\ndegree = 5\n", `7:1: degree: 5 friends are more than 5 people can have`},
		{"chat without friends", base + "[chat]\npause = \"1s\"\n", `6:2: [chat] needs [friends]`},
		{"chat after the end", base + "[friends]\ndegree = 2\n[chat]\npause = \"1s\"\nuntil = \"11m\"\n", `10:1: until: 11m0s is after the end of the scenario at 10m0s`},
		{"chat from its end", base + "[friends]\ndegree = 2\n[chat]\npause = \"1s\"\nfrom = \"10m\"\n", `10:1: from: 10m0s is not before the end at 10m0s`},
		{"chat of books", base + "[friends]\ndegree = 2\n[chat]\npause = \"1s\"\nsize = 20000\n", `10:1: size: 20000 is not between 1 and 16384`},
		{"churn of nobody knows", base + "[churn]\nshare = 0.2\n", `6:2: [churn] needs "up"`},
		{"fault of no kind", base + "[[fault]]\nat = \"1m\"\nfor = \"1m\"\n", `6:3: [[fault]] needs "kind"`},
		{"fault of unknown kind", base + "[[fault]]\nkind = \"flood\"\nat = \"1m\"\nfor = \"1m\"\n", `7:1: kind: "flood" is not one of partition, loss, crash, link, relay`},
		{"fault again and again without an end", base + "[[fault]]\nkind = \"loss\"\nshare = 0.3\nat = \"1m\"\nevery = \"2m\"\n", `6:3: [[fault]] of kind loss needs "for"`},
		{"fault from the end", base + "[[fault]]\nkind = \"loss\"\nshare = 0.3\nat = \"10m\"\n", `9:1: at: 10m0s is not before the end at 10m0s`},
		{"fault after the end", base + "[[fault]]\nkind = \"loss\"\nshare = 0.3\nat = \"9m\"\nfor = \"2m\"\n", `10:1: for: the fault lasts until 11m0s, after the end at 10m0s`},
		{"fault before the beginning", base + "[[fault]]\nkind = \"loss\"\nshare = 0.3\nat = \"100ms\"\nfor = \"2m\"\n", `9:1: at: 100ms is before all 5 nodes have been started, which takes 500ms`},
		{"faults after the end", base + "[[fault]]\nkind = \"loss\"\nshare = 0.3\nat = \"1m\"\nfor = \"1m\"\nuntil = \"1h\"\n", `11:1: until: 1h0m0s is after the end of the scenario`},
		{"fault within itself", base + "[[fault]]\nkind = \"loss\"\nshare = 0.3\nat = \"1m\"\nfor = \"1m\"\nevery = \"30s\"\n", `11:1: every: the fault lasts 1m0s, and would begin again before it is over`},
		{"fault all the time", base + "[[fault]]\nkind = \"loss\"\nshare = 0.3\nat = \"1m\"\nfor = \"1ms\"\nevery = \"2ms\"\n", `11:1: every: the fault would occur more than 10000 times`},
		{"two partitions", base + "[[fault]]\nkind = \"partition\"\ngroups = 2\nat = \"1m\"\nfor = \"1m\"\nevery = \"3m\"\n[[fault]]\nkind = \"partition\"\nshare = 0.3\nat = \"4m30s\"\nfor = \"1m\"\n", `15:1: at: a partition is under way already at 4m30s`},
		{"partition of nothing", base + "[[fault]]\nkind = \"partition\"\nat = \"1m\"\nfor = \"1m\"\n", `6:3: a partition needs "groups", "share", "between" or "by"`},
		{"partition between strangers", base + "[[fault]]\nkind = \"partition\"\nat = \"1m\"\nfor = \"1m\"\nbetween = [[\"p1\"], [\"eu\"]]\n", `10:1: between: there is no node and no group "eu"`},
		{"partition through a node", base + "[[fault]]\nkind = \"partition\"\nat = \"1m\"\nfor = \"1m\"\nbetween = [[\"p1\"], [\"p\"]]\n", `10:1: between: p1 is there twice`},
		{"partition from nobody", base + "[[fault]]\nkind = \"partition\"\nat = \"1m\"\nfor = \"1m\"\nbetween = [\"p\", []]\n", `10:1: between: there is nobody on the other side`},
		{"partition between numbers", base + "[[fault]]\nkind = \"partition\"\nat = \"1m\"\nfor = \"1m\"\nbetween = [1, 2]\n", `10:1: between: 1 is not a text`},
		{"partition between a word", base + "[[fault]]\nkind = \"partition\"\nat = \"1m\"\nfor = \"1m\"\nbetween = \"p\"\n", `10:1: between: "p" is not a list of parts`},
		{"partition by regions of none", base + "[[fault]]\nkind = \"partition\"\nat = \"1m\"\nfor = \"1m\"\nby = \"region\"\n", `10:1: by: all nodes are in one region, or in none`},
		{"partition by weather", base + "[[fault]]\nkind = \"partition\"\nat = \"1m\"\nfor = \"1m\"\nby = \"weather\"\n", `10:1: by: "weather" is not one of region`},
		{"partition of both", base + "[[fault]]\nkind = \"partition\"\nat = \"1m\"\nfor = \"1m\"\ngroups = 2\nshare = 0.3\n", `11:1: share: there is "groups" already`},
		{"crash of more than all", base + "[[fault]]\nkind = \"crash\"\nnodes = 6\nat = \"1m\"\nfor = \"1m\"\n", `8:1: nodes: 6 are more than the 5 people`},
		{"crash of both", base + "[[fault]]\nkind = \"crash\"\nnodes = 2\nshare = 0.2\nat = \"1m\"\nfor = \"1m\"\n", `9:1: share: there is "nodes" already`},
		{"boundaries on disk", base + "[[fault]]\nkind = \"crash\"\nboundary = 3\nat = \"1m\"\nfor = \"1m\"\n[node]\nstore = \"badger\"\n", `8:1: boundary: crashes at write boundaries need [node] store = "memory"`},
		{"relays of no name", base + "[[relays]]\ncount = 2\n", `6:3: [[relays]] needs "name"`},
		{"relay of a node's name", base + "[[relays]]\nname = \"p3\"\n", `7:1: name: two nodes or relays are named "p3"`},
		{"relay that is bad in no way", base + "[[relays]]\nname = \"r\"\nbad = \"drop\"\n", `8:1: bad: "drop" is not one of no, drops, delays, replays, repeats-keys, lies; did you mean "drops"?`},
		{"relay in no region", base + "[[relays]]\nname = \"r\"\nregion = \"europe\"\n", `8:1: region: the network has no regions`},
		{"unknown relay", base + "uses = [\"r\"]\n", `6:1: uses: there is no relay and no group of relays "r"`},
		{"commuters without relays", base + "[commute]\nonline = \"1h\"\n", `6:2: [commute] needs [[relays]]`},
		{"commuters without room", base + "[[relays]]\nname = \"r\"\n[commute]\nonline = \"5h\"\napart = true\n", `10:1: apart: 5 people who are there for 5h0m0s each`},
		{"commuters who churn", base + "[[relays]]\nname = \"r\"\n[commute]\nonline = \"5h\"\n[churn]\nshare = 1\nup = \"1m\"\ndown = \"1m\"\n", `9:1: online: who commutes is not there for [churn]`},
		{"commuters who crash", base + "[[relays]]\nname = \"r\"\n[commute]\nonline = \"5h\"\n[[fault]]\nkind = \"crash\"\nat = \"1m\"\n", `11:1: kind: who commutes is there at their own times`},
		{"loss of more relays than there are", base + "[[relays]]\nname = \"r\"\n[[fault]]\nkind = \"relay\"\nrelays = 2\nat = \"1m\"\n", `10:1: relays: 2 are more than the 1 relays`},
		{"drain of nobody", base + "[[relays]]\nname = \"r\"\n[drain]\nvictim = \"x\"\nat = \"1m\"\naway = \"10m\"\npublic = [\"p1\"]\ninvited = [\"p2\"]\n", `9:1: victim: there is no node "x" with role = "peer"`},
		{"drain for nobody", base + "[[relays]]\nname = \"r\"\n[drain]\nvictim = \"p1\"\nat = \"1m\"\naway = \"10m\"\npublic = [\"x\"]\ninvited = [\"p\"]\n", `12:1: public: there is nobody "x" beside the victim`},
		{"drain without relays", base + "[drain]\nvictim = \"p1\"\nat = \"1m\"\naway = \"10m\"\npublic = [\"p2\"]\ninvited = [\"p3\"]\n", `6:2: [drain] needs [[relays]]`},
		{"eclipse of nobody", base + "[eclipse]\ntarget = \"moon\"\nreaders = 1\nat = \"1m\"\nrounds = 1\naway = \"1m\"\nback = \"1m\"\n", `7:1: target: there is no node "moon" with role = "peer"`},
		{"eclipse without sybils", base + "[eclipse]\ntarget = \"p1\"\nreaders = 1\nat = \"1m\"\nrounds = 1\naway = \"1m\"\nback = \"1m\"\n", `6:2: [eclipse] needs [[nodes]] with role = "sybil"`},
		{"eclipse after the end", base + "[eclipse]\ntarget = \"p1\"\nreaders = 1\nat = \"1m\"\n", `9:1: at: the attack lasts until `},
		{"eclipse of a third replica", base + "[eclipse]\ntarget = \"p1\"\nreplica = 2\n", `8:1: replica: 2 is not between 0 and 1`},
		{"flood for nobody", base + "[flood]\nvictim = \"p1\"\nfriends = 5\nat = \"1m\"\ncalm = \"1m\"\nfor = \"1m\"\n", `8:1: friends: 5 are more than the 4 people beside the victim`},
		{"flood of who goes away", base + "[eclipse]\ntarget = \"p1\"\nreaders = 1\nat = \"1m\"\nrounds = 1\naway = \"1m\"\nback = \"1m\"\n[flood]\nvictim = \"p1\"\nfriends = 2\nat = \"1m\"\ncalm = \"1m\"\nfor = \"1m\"\n", `14:1: victim: p1 is the target of [eclipse], which goes away`},
		{"flood for too few", base + "[eclipse]\ntarget = \"p1\"\nreaders = 1\nat = \"1m\"\nrounds = 1\naway = \"1m\"\nback = \"1m\"\n[flood]\nvictim = \"p2\"\nfriends = 4\nat = \"1m\"\ncalm = \"1m\"\nfor = \"1m\"\n", `15:1: friends: 4 are more than the 3 people beside the victim and the target of [eclipse]`},
		{"flood without spammers", base + "[flood]\nvictim = \"p1\"\nfriends = 2\nat = \"1m\"\ncalm = \"1m\"\nfor = \"1m\"\n", `6:2: [flood] needs [[nodes]] with role = "spammer"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join("testdata", "x.toml")
			_, err := read("x", file, "testdata", tt.source)
			if err == nil {
				t.Fatalf("no error for\n%s", tt.source)
			}
			lines := strings.Split(err.Error(), "\n")
			if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, file+":"+tt.want) }) {
				t.Errorf("got\n%s\nwant a line that begins with\n%s:%s", err, file, tt.want)
			}
			for _, l := range lines {
				if !regexp.MustCompile(`^testdata.x\.toml:\d+:\d+: .`).MatchString(l) {
					t.Errorf("a problem without a place: %s", l)
				}
			}
		})
	}
}

// All problems of a file are told at once, in its order.
func TestErrorsAreGathered(t *testing.T) {
	_, err := read("x", "x.toml", "", "duration = 3\nabout = \"x\"\nfoo = 1\n[[nodes]]\nname = \"p\"\nup = 3\n")
	want := []string{"x.toml:1:1: ", "x.toml:3:1: ", "x.toml:6:1: "}
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Fatalf("got\n%s\nwant %d problems", err, len(want))
	}
	for i, l := range lines {
		if !strings.HasPrefix(l, want[i]) {
			t.Errorf("problem %d is %q, want %q", i, l, want[i])
		}
	}
}

// What only comes of a mistake is not told beside it.
func TestMistakesAreToldOnce(t *testing.T) {
	const chat = "[friends]\ndegree = 4\n[chat]\npause = \"$pause\"\nfrom = \"1m\"\n[params]\npause = { duration = \"1m\", about = \"x\" }\n"
	for _, tt := range []struct{ old, new, want string }{
		{"count = 5", "cuont = 5", `5:1: unknown key "cuont" in [[nodes]]; did you mean "count"?`},
		{"count = 5", `count = "20"`, `5:1: count: "20" is a text, and this is a number: write it without quotes`},
		{`"10m"`, "3600", `2:1: duration: 3600 is not a duration, such as "90s" or "2h"`},
		{`duration = "10m"`, `duratoin = "10m"`, `2:1: unknown key "duratoin" in the scenario; did you mean "duration"?`},
		{"$pause", "$puase", `9:1: pause: there is no parameter "puase"; did you mean "pause"?`},
		{"pause =", "puase =", `9:1: unknown key "puase" in [chat]; did you mean "pause"?`},
		{"degree = 4", "degree = true", `7:1: degree: true is not a number`},
		{"[friends]", "[freinds]", `6:2: unknown key "freinds" in the scenario; did you mean "friends"?`},
		{"[[nodes]]", "[nodes]", `3:2: nodes: there may be several: write [[nodes]]`},
		{"[params]", "[[fault]]\nknid = \"loss\"\nat = \"1m\"\n[params]", `12:1: unknown key "knid" in [[fault]]; did you mean "kind"?`},
		{"[params]", "[[fault]]\nkind = \"partition\"\ngruops = 2\nat = \"1m\"\n[params]", `13:1: unknown key "gruops" in [[fault]] of kind partition; did you mean "groups"?`},
	} {
		_, err := read("x", "x.toml", "", strings.Replace(base+chat, tt.old, tt.new, 1))
		if err == nil || err.Error() != "x.toml:"+tt.want {
			t.Errorf("%s for %s:\n%v\nwant only\n%s", tt.new, tt.old, err, tt.want)
		}
	}
	if _, err := read("x", "x.toml", "", base+chat); err != nil {
		t.Error(err)
	}
}

// Parameters that make a scenario impossible are named, with their values. The
// line is named if the file is the user's own.
func TestBuildNamesTheParameter(t *testing.T) {
	for _, tt := range []struct {
		set  map[string]string
		want string
	}{
		{map[string]string{"nodes": "2.5", "pause": "1s"}, `scenario: storm with nodes=2.5: [[nodes]]: count: 2.5 is not a whole number`},
		{map[string]string{"nodes": "3", "pause": "1s"}, `scenario: storm with nodes=3, pause=1s: [friends]: degree: 4 friends are more than 3 people can have`},
	} {
		_, _, err := shippedScenario(t, "storm").Build(1, tt.set)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%v: %v, want %s", tt.set, err, tt.want)
		}
	}
}

func TestNear(t *testing.T) {
	for _, tt := range []struct{ word, want string }{
		{"cuont", "count"},
		{"los", "loss"},
		{"Regions", "region"},
		{"nodes", "node"},
		{"weather", ""},
		{"l", ""},
		{"", ""},
		{strings.Repeat("count", 100), ""},
	} {
		if got := near(tt.word, []string{"n", "count", "loss", "region", "node"}); got != tt.want {
			t.Errorf("near(%q) = %q, want %q", tt.word, got, tt.want)
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "my world.toml")
	if err := os.WriteFile(file, []byte(base+"[network]\ntrace = \"t.csv\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); err == nil || !strings.HasPrefix(err.Error(), file+":7:1: trace: ") || !strings.Contains(err.Error(), filepath.Join(dir, "t.csv")) {
		t.Errorf("without its trace: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "t.csv"), []byte("from,to,ms\n0,1,35\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg, _, err := s.Build(7, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.Topology.Link(7, network.Site{Index: 1}, network.Site{Index: 0}).Latency; got != 35*time.Millisecond {
		t.Errorf("latency of the trace is %v", got)
	}
	if want := "starling-sim run '" + file + "' --seed 7"; s.Name() != "my world" || cfg.Scenario != "my world" || cfg.Repeat != want {
		t.Errorf("name %q, repeat %q, want %q", s.Name(), cfg.Repeat, want)
	}
	for _, tt := range []struct{ name, want string }{
		{"helo", `there is no scenario "helo", nor such a file; shipped are hello, `},
		{filepath.Join(dir, "none.toml"), "there is no file " + filepath.Join(dir, "none.toml")},
		{dir, "is not a file"},
	} {
		if _, err := Open(tt.name); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Open(%q): %v, want %q", tt.name, err, tt.want)
		}
	}
}

// Every shipped scenario is in order with its defaults, and can be set in each
// of its parameters.
func TestShipped(t *testing.T) {
	files, err := shipped.ReadDir("shipped")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(Names()) {
		t.Errorf("%d files, and %d names", len(files), len(Names()))
	}
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			s, err := Open(name)
			if err != nil {
				t.Fatal(err)
			}
			if len(s.About()) < 40 || strings.Contains(s.About(), "\n") {
				t.Errorf("about: %q", s.About())
			}
			cfg, play, err := s.Build(1, nil)
			if err != nil || play == nil || len(cfg.Nodes) == 0 {
				t.Fatalf("building: %d nodes, %v", len(cfg.Nodes), err)
			}
			if cfg.Source != s.Source() || cfg.Scenario != name || cfg.Repeat != "starling-sim run "+name+" --seed 1" {
				t.Errorf("scenario %q, repeat %q", cfg.Scenario, cfg.Repeat)
			}
			set := map[string]string{}
			for _, p := range s.Params() {
				if p.Doc == "" || p.Default == "" {
					t.Errorf("parameter %q has no default or says nothing", p.Name)
				}
				set[p.Name] = p.Default
			}
			same, _, err := s.Build(1, set)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(cfg.Nodes, same.Nodes); d != "" {
				t.Errorf("setting all parameters to their defaults changes the world:\n%s", d)
			}
			if d := cmp.Diff(cfg.Relays, same.Relays); d != "" {
				t.Errorf("or its relays:\n%s", d)
			}
		})
	}
}

// The reference is a scenario, and shows every key that there is.
func TestReferenceShowsEveryKey(t *testing.T) {
	s, err := read("reference", "reference.toml", "", Reference())
	if err != nil {
		t.Fatal(err)
	}
	r := s.reader()
	r.read(s.root, "")
	commuters := shippedScenario(t, "commuters") // which the reference cannot be, too
	away := commuters.reader()
	away.read(commuters.root, "")
	const commute = "[commute]"
	if r.keys[commute] = away.keys[commute]; len(r.keys[commute]) != 3 {
		t.Errorf("%s has the keys %v", commute, r.keys[commute])
	}
	for section, keys := range r.keys {
		for _, key := range keys {
			others := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return k == key || key == "node" || key == "nodes" })
			if other := near(key, others); other != "" {
				t.Errorf("key %q of %s could be taken for a misspelt %q", key, section, other)
			}
			if !regexp.MustCompile(`(?m)^(# )?([a-z]+ = \{ |\[+)?` + key + `( = |\])`).MatchString(Reference()) {
				t.Errorf("key %q of %s is not there", key, section)
			}
		}
	}
	for _, kind := range []string{kindNumber, kindDuration, kindShare} {
		if !strings.Contains(Reference(), "{ "+kind+" = ") {
			t.Errorf("no parameter is a %s", kind)
		}
	}
}

func TestParamsReplaceValues(t *testing.T) {
	s, err := read("x", "x.toml", "", `about = "x"
duration = "10m"
[params]
n = { number = 3, about = "people" }
skew = { duration = "90s", about = "of clocks" }
loss = { share = 0.25, about = "of packets" }
[[nodes]]
name = "p"
count = "$n"
skew = ["-$skew", "-$skew"]
[network]
loss = "$loss"
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []Param{
		{"n", "number", "3", "people"},
		{"skew", "duration", "1m30s", "of clocks"},
		{"loss", "share", "0.25", "of packets"},
	}
	if d := cmp.Diff(want, s.Params()); d != "" {
		t.Error(d)
	}
	cfg, _, err := s.Build(1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Nodes) != 3 || cfg.Loss != 0.25 || cfg.Nodes[0].Skew != -90*time.Second {
		t.Errorf("by default %d nodes, loss %g, skew %v", len(cfg.Nodes), cfg.Loss, cfg.Nodes[0].Skew)
	}
	set := map[string]string{"n": "4", "loss": "0", "skew": "2h"}
	cfg, _, err = s.Build(9, set)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Nodes) != 4 || cfg.Loss != 0 || cfg.Nodes[0].Skew != -2*time.Hour || !maps.Equal(cfg.Params, set) {
		t.Errorf("when set %d nodes, loss %g, skew %v, params %v", len(cfg.Nodes), cfg.Loss, cfg.Nodes[0].Skew, cfg.Params)
	}
	if want := "starling-sim run x.toml --seed 9 --set loss=0 --set n=4 --set skew=2h"; cfg.Repeat != want {
		t.Errorf("repeat %q, want %q", cfg.Repeat, want)
	}
	for _, tt := range []struct{ key, value, want string }{
		{"m", "3", `scenario: x has no parameter "m"; there are n, skew, loss`},
		{"n", "many", `scenario: parameter n of x: "many" is not a number`},
		{"n", "NaN", `scenario: parameter n of x: "NaN" is not a number`},
		{"loss", "1.5", `scenario: parameter loss of x: 1.5 is not a share, which is 0 to 1`},
		{"skew", "5", `scenario: parameter skew of x: "5" is not a duration, such as 90s or 2h`},
		{"n", "2.5", `scenario: x with n=2.5: x.toml:9:1: count: 2.5 is not a whole number`},
		{"lss", "3", `scenario: x has no parameter "lss"; did you mean "loss"?`},
		{"n", "0", `scenario: x with n=0: x.toml:9:1: count: 0 is not between 1 and 65536`},
	} {
		_, _, err := s.Build(1, map[string]string{tt.key: tt.value})
		if err == nil || err.Error() != tt.want {
			t.Errorf("--set %s=%s: %v, want %s", tt.key, tt.value, err, tt.want)
		}
	}
}

// What is drawn for nodes comes from the seed.
func TestNodesComeFromTheSeed(t *testing.T) {
	s, err := Open("town")
	if err != nil {
		t.Fatal(err)
	}
	build := func(seed uint64) []simulation.NodeSpec {
		cfg, _, err := s.Build(seed, nil)
		if err != nil {
			t.Fatal(err)
		}
		return cfg.Nodes
	}
	one := build(1)
	if d := cmp.Diff(one, build(1)); d != "" {
		t.Errorf("the same seed gives other nodes:\n%s", d)
	}
	if cmp.Diff(one, build(2)) == "" {
		t.Error("another seed gives the same nodes")
	}
	clients, regions := 0, map[string]int{}
	for _, n := range one {
		if n.Client {
			clients++
		}
		if n.Skew < -30*time.Second || n.Skew > 30*time.Second {
			t.Errorf("the clock of %s is wrong by %v", n.Name, n.Skew)
		}
		if n.Up != 20e6 || n.Down != 100e6 {
			t.Errorf("the bandwidth of %s is %d up and %d down", n.Name, n.Up, n.Down)
		}
		regions[n.Region]++
	}
	if clients != 20 || len(regions) != 6 || regions["asia"] < 16 {
		t.Errorf("%d clients, regions %v", clients, regions)
	}
}

func TestFaultsRecur(t *testing.T) {
	f := fault{at: time.Minute, last: 30 * time.Second, every: 2 * time.Minute, until: 5*time.Minute + 30*time.Second}
	want := []time.Duration{1 * time.Minute, 3 * time.Minute, 5 * time.Minute}
	if d := cmp.Diff(want, f.times()); d != "" {
		t.Error(d)
	}
	f.every = 0
	if d := cmp.Diff(want[:1], f.times()); d != "" {
		t.Error(d)
	}
}

// The social graph has the degree asked for, no edge twice, and nobody alone.
func TestEdges(t *testing.T) {
	for _, tt := range []struct {
		n      int
		degree float64
		want   int // edges
	}{{2, 1, 1}, {3, 1, 2}, {5, 1, 3}, {5, 4, 10}, {12, 4, 24}, {100, 6, 300}, {101, 1.5, 76}} {
		list := edges(draw(uint64(tt.n), "graph"), tt.n, tt.degree)
		friends := make([]int, tt.n)
		seen := map[[2]int]bool{}
		for _, e := range list {
			if e[0] >= e[1] || seen[e] {
				t.Fatalf("edge %v among %d people is a loop or there twice", e, tt.n)
			}
			seen[e] = true
			friends[e[0]]++
			friends[e[1]]++
		}
		if len(list) != tt.want || slices.Contains(friends, 0) {
			t.Errorf("%d people with %g friends: %d edges, want %d; friends %v", tt.n, tt.degree, len(list), tt.want, friends)
		}
	}
}

// FuzzRead reads any text as a scenario: it is in order and can be built, or
// every problem has a place.
func FuzzRead(f *testing.F) {
	f.Add(base)
	f.Add(Reference())
	for _, name := range Names() {
		s, err := Open(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(s.Source())
	}
	f.Add(base + "fault = [{ kind = \"loss\" }, { kind = 3, }]\n")
	f.Add("a.b.c = [[1, {x = 2}], []]\n[a.b]\n[[a.d]]\n[a.d.e]\n[[a.d]]\n\"\" = 1\n")
	place := regexp.MustCompile(`^x\.toml:[1-9]\d*:[1-9]\d*: .`)
	f.Fuzz(func(t *testing.T, source string) {
		if strings.Contains(source, "matrix") || strings.Contains(source, "trace") {
			source = strings.NewReplacer("matrix", "m", "trace", "t").Replace(source) // no files
		}
		s, err := read("x", "x.toml", "", source)
		if err != nil {
			for l := range strings.SplitSeq(err.Error(), "\nx.toml:") {
				l = "x.toml:" + strings.TrimPrefix(l, "x.toml:")
				if !place.MatchString(l) {
					t.Errorf("a problem without a place: %q", l)
				}
			}
			return
		}
		if _, _, err := s.Build(1, nil); err != nil {
			t.Errorf("what was in order cannot be built: %v", err)
		}
	})
}

// Whoever has a trace of few sites sees that most latencies are not measured.
func TestOutlineSaysWhatATraceLacks(t *testing.T) {
	dir := t.TempDir()
	source := "about = \"a\"\nduration = \"2m\"\n[params]\nn = { number = 4, about = \"people\" }\n[[nodes]]\nname = \"p\"\ncount = \"$n\"\n[network]\ntrace = \"trace.csv\"\n"
	for name, text := range map[string]string{"mine.toml": source, "trace.csv": "from,to,ms\n0,1,10\n1,0,12\n# more\n0, 2,10\n7,8,1\n1,2,3"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(filepath.Join(dir, "mine.toml"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Outline(nil)
	if err != nil || o.Duration != 2*time.Minute || len(o.Notes) != 1 || !strings.Contains(o.Notes[0], "has 3 of the 6 pairs") {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = s.Outline(map[string]string{"n": "3"}); err != nil || len(o.Notes) != 0 {
		t.Errorf("a trace that covers all: %+v, %v", o, err)
	}
}

func TestChoicesAreSuggested(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mine.toml")
	source := "about = \"a\"\nduration = \"1m\"\n[[nodes]]\nname = \"p\"\n[node]\nstore = \"bagder\"\n"
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); err == nil || !strings.Contains(err.Error(), `did you mean "badger"?`) {
		t.Errorf("%v", err)
	}
}
