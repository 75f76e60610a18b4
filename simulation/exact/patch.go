package exact

import (
	"fmt"
	"strings"
)

// A patch is what changes in one file of the standard library. Every old text
// must occur in it exactly once.
type patch struct {
	file  string // below GOROOT/src
	edits []edit
	tail  string // appended
}

type edit struct{ old, new string }

// apply returns src changed by p.
func (p patch) apply(src string) (string, error) {
	for _, e := range p.edits {
		if n := strings.Count(src, e.old); n != 1 {
			return "", fmt.Errorf("exact: %s has the text to be changed %d times instead of once: %q", p.file, n, e.old)
		}
	}
	for _, e := range p.edits {
		src = strings.Replace(src, e.old, e.new, 1)
	}
	return src + p.tail, nil
}

// patches are all changes. They hold for every version in the table of
// versions; one that needs others gets a list of its own.
var patches = []patch{
	{
		file: "runtime/proc.go",
		edits: []edit{
			{
				"const forcePreemptNS = 10 * 1000 * 1000 // 10ms",
				"const forcePreemptNS = 1 << 60 // exact: no time slices",
			},
			{
				"func retake(now int64) uint32 {\n\tn := 0\n",
				"func retake(now int64) uint32 {\n\tif exactBuild {\n\t\texactWatch(now)\n\t\treturn 0\n\t}\n\tn := 0\n",
			},
			{
				"\tnmp := mget()\n",
				"\tnmp := mget()\n" + exactThread,
			},
			{
				// Every 61st turn the scheduler looks at the queue of the process first.
				// Turns are those of the bubble, since its beginning.
				"\tif !inheritTime {\n\t\tmp.p.ptr().schedtick++\n",
				"\tif !inheritTime && (!exactBuild || gp.bubble != nil) {\n\t\tmp.p.ptr().schedtick++\n",
			},
			{
				"if scavenger.sysmonWake.Load() != 0 {",
				"if !exactBuild && scavenger.sysmonWake.Load() != 0 {",
			},
		},
		tail: exactForget,
	},
	{
		file:  "runtime/select.go",
		edits: []edit{{"j := cheaprandn(uint32(norder + 1))", "j := exactRandn(uint32(norder + 1))"}},
	},
	{
		file:  "runtime/time.go",
		edits: []edit{{"t.rand = cheaprand()", "t.rand = uint32(exactRand())"}},
	},
	{
		file: "runtime/synctest.go",
		edits: []edit{
			{
				"\tbubble.now = synctestBaseTime\n",
				"\tbubble.now = synctestBaseTime\n\texactRandInit()\n\texactWatchInit()\n",
			},
			{"\t\tbubble.now = next\n", "\t\tbubble.now = next\n\t\texactSteps.Add(1)\n"},
			{"\n\ttotal := bubble.total\n", "\n\texactSteps.Store(0)\n\ttotal := bubble.total\n"},
		},
		tail: exactWatch,
	},
	{
		file: "runtime/rand.go",
		edits: []edit{
			{
				"\tmp := getg().m\n\tc := &mp.chacha8\n",
				"\tif getg().bubble != nil {\n\t\treturn exactRand()\n\t}\n\tmp := getg().m\n\tc := &mp.chacha8\n",
			},
			{
				// Maps that were made before the bubble: how many draws there were until
				// then must not matter.
				"func maps_rand() uint64 {\n",
				"func maps_rand() uint64 {\n\tif getg().bubble == nil {\n\t\treturn 0x9e3779b97f4a7c15\n\t}\n",
			},
			{
				"\tif len(startupRand) >= 16 &&",
				"\tif exactBuild {\n\t\tfor i := range seed {\n\t\t\tseed[i] = byte(i*37 + 11)\n\t\t}\n\t} else if len(startupRand) >= 16 &&",
			},
		},
		tail: exactRandom,
	},
	{
		file: "runtime/mgcsweep.go",
		edits: []edit{
			{"\tscavenger.wake()\n", "\tif !exactBuild {\n\t\tscavenger.wake()\n\t}\n"},
			{
				"\t\ts.moveInlineMarks(s.gcmarkBits)\n\t}\n",
				"\t\ts.moveInlineMarks(s.gcmarkBits)\n\t}\n\texactKeep(s)\n",
			},
			{
				"\tfor {\n\t\t// bgsweep attempts to be a \"low priority\" goroutine",
				`	for exactBuild { // never sweep in the background
		lock(&sweep.lock)
		sweep.parked = true
		goparkunlock(&sweep.lock, waitReasonGCSweepWait, traceBlockGCSweep, 1)
	}
	for {
		// bgsweep attempts to be a "low priority" goroutine`,
			},
		},
		tail: exactKeep,
	},
	{
		// How often a cache of interface tables grows, and so allocates.
		file: "runtime/iface.go",
		edits: []edit{
			{
				"\tif cheaprand()&1023 != 0 {\n\t\t// Only bother updating the cache ~1 in 1000 times.\n\t\treturn tab\n",
				"\tif exactSkip(1023) {\n\t\treturn tab\n",
			},
			{
				"\tif cheaprand()&1023 != 0 {\n\t\t// Only bother updating the cache ~1 in 1000 times.\n\t\t// This ensures",
				"\tif exactSkip(1023) {\n\t\t// This ensures",
			},
			{
				"\toldC := (*abi.TypeAssertCache)(atomic.Loadp(unsafe.Pointer(&s.Cache)))\n\n\tif cheaprand()&uint32(oldC.Mask) != 0 {",
				"\toldC := (*abi.TypeAssertCache)(atomic.Loadp(unsafe.Pointer(&s.Cache)))\n\n\tif exactSkip(uint32(oldC.Mask)) {",
			},
			{
				"\toldC := (*abi.InterfaceSwitchCache)(atomic.Loadp(unsafe.Pointer(&s.Cache)))\n\n\tif cheaprand()&uint32(oldC.Mask) != 0 {",
				"\toldC := (*abi.InterfaceSwitchCache)(atomic.Loadp(unsafe.Pointer(&s.Cache)))\n\n\tif exactSkip(uint32(oldC.Mask)) {",
			},
		},
	},
	{
		// A mutex never becomes unfair because somebody waited a millisecond.
		file: "runtime/sema.go",
		edits: []edit{{
			"func internal_sync_nanotime() int64 {\n\treturn nanotime()\n",
			"func internal_sync_nanotime() int64 {\n\tif exactBuild {\n\t\treturn 0\n\t}\n\treturn nanotime()\n",
		}},
	},
	{
		// What packages allocate when they start, and use as keys, must not move with
		// the arguments and the environment.
		file: "runtime/runtime1.go",
		edits: []edit{
			{"\targslice = make([]string, argc)\n", "\targslice = make([]string, argc, max(argc, 256))\n"},
			{"\tenvs = make([]string, n)\n", "\tenvs = make([]string, n, max(n, 256))\n"},
			{"envs[i] = gostring(argv_index(", "envs[i] = gostringnocopy(argv_index("},
		},
	},
	{
		// Likewise.
		file: "runtime/runtime.go",
		edits: []edit{
			{"return append([]string{}, envs...)", "return append(make([]string, 0, max(len(envs), 256)), envs...)"},
			{"return append([]string{}, argslice...)", "return append(make([]string, 0, max(len(argslice), 256)), argslice...)"},
		},
	},
	{
		// A sync.Map that was made before the bubble.
		file:  "internal/sync/hashtriemap.go",
		edits: []edit{{"ht.seed = uintptr(runtime_rand())", "ht.seed = 0x9e3779b9"}},
	},
	{
		// Likewise.
		file:  "unique/canonmap.go",
		edits: []edit{{"cm.seed = uintptr(runtime_rand())", "cm.seed = 0x9e3779b9"}},
	},
	{
		file: "context/context.go",
		edits: []edit{
			{"\t\"internal/reflectlite\"\n", "\t\"internal/reflectlite\"\n\t\"slices\"\n"},
			{"\tchildren map[canceler]struct{} //", "\tchildren map[canceler]uint64 //"},
			{"p.children = make(map[canceler]struct{})", "p.children = make(map[canceler]uint64)"},
			{"p.children[child] = struct{}{}", "p.children[child] = exactChild.Add(1)"},
			{
				"\tfor child := range c.children {\n\t\t// NOTE: acquiring the child's lock while holding parent's lock.\n\t\tchild.cancel(",
				"\tfor _, child := range exactOrder(c.children) {\n\t\t// NOTE: acquiring the child's lock while holding parent's lock.\n\t\tchild.cancel(",
			},
		},
		tail: exactChildren,
	},
}

// exactRandom is the random stream of a bubble (splitmix64). It is one for the
// process: bubbles of an exact program take turns.
const exactRandom = `
const exactBuild = true

var exactState uint64

func exactRandInit() {
	var x uint64 = 0x9e3779b97f4a7c15
	for _, c := range []byte(gogetenv("` + seedKey + `")) {
		x = (x ^ uint64(c)) * 0x100000001b3
	}
	exactState = x
	exactForget()
	exactKeepInit()
}

//go:nosplit
func exactRand() uint64 {
	exactState += 0x9e3779b97f4a7c15
	z := exactState
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

func exactSkip(mask uint32) bool {
	return getg().bubble == nil || uint32(exactRand())&mask != 0
}

//go:nosplit
func exactRandn(n uint32) uint32 {
	if getg().bubble == nil {
		return cheaprandn(n)
	}
	return uint32((uint64(uint32(exactRand())) * uint64(n)) >> 32)
}
`

// exactKeep keeps what was allocated before the first bubble, dead or not: places
// that become free there would depend on what the program did before.
const exactKeep = `
var exactFloor uintptr

func exactKeepInit() {
	if exactFloor != 0 {
		return
	}
	for _, s := range mheap_.allspans {
		if s.state.get() == mSpanInUse {
			exactFloor = max(exactFloor, s.base()+s.npages*pageSize)
		}
	}
}

func exactKeep(s *mspan) {
	if s.base() >= exactFloor {
		return
	}
	for i := uintptr(0); i < uintptr(s.nelems); i++ {
		if i < uintptr(s.freeindex) || s.allocBitsForIndex(i).isMarked() {
			bits, mask := s.gcmarkBits.bitp(i)
			*bits |= mask
		}
	}
}
`

// exactThread waits for a thread that is about to become idle instead of making
// another one, whose memory would move the addresses of what follows. A thread
// that is busy for long sits in a system call of its own.
const exactThread = `	for i := 0; exactBuild && nmp == nil && i < 1000 && mcount()-sched.nmidle-sched.nmidlelocked-sched.nmsys > 1; i++ {
		unlock(&sched.lock)
		usleep(100)
		lock(&sched.lock)
		nmp = mget()
	}
`

// exactForget empties what the scheduler keeps for later: turns, goroutines that
// have ended, records of who waits and of what is deferred, and free places for
// stacks. It makes room in the list of all goroutines. How many there are depends
// on what the program did before the bubble, and whoever finds none allocates.
const exactForget = `
func exactForget() {
	pp := getg().m.p.ptr()
	pp.schedtick = 0
	sched.ngsys.Add(pp.gFree.size + sched.gFree.stack.size + sched.gFree.noStack.size) // or they would count as running
	pp.gFree, sched.gFree.stack, sched.gFree.noStack = gList{}, gList{}, gList{}
	clear(pp.sudogbuf[:])
	pp.sudogcache, sched.sudogcache = pp.sudogbuf[:0], nil
	clear(pp.deferpoolbuf[:])
	pp.deferpool, sched.deferpool = pp.deferpoolbuf[:0], nil
	if cap(allgs) < 1<<20 { // it grows by doubling
		all := append(make([]*g, 0, 1<<20), allgs...)
		lock(&allglock)
		allgs = all
		atomicstorep(unsafe.Pointer(&allgptr), unsafe.Pointer(&allgs[0]))
		unlock(&allglock)
	}
	systemstack(func() {
		stackcache_clear(pp.mcache)
		for order := range stackpool {
			lock(&stackpool[order].item.mu)
			for stackpool[order].item.span.first != nil {
				stackpoolalloc(uint8(order))
			}
			unlock(&stackpool[order].item.mu)
		}
	})
}
`

// exactWatch is called by the monitor thread of the runtime, which needs no
// processor and wakes nobody. It looks at least once a minute; a machine that
// was asleep counts as one look.
const exactWatch = `
var exactSteps atomic.Uint64 // moves of virtual time; 0: no bubble
var exactLimit int64         // ns of real time between two of them; set before the first

var exactSeen struct {
	steps       uint64
	last, still int64 // ns: the last look, and without news
}

func exactWatchInit() {
	exactLimit = 0
	for _, c := range []byte(gogetenv("` + stallKey + `")) {
		if '0' <= c && c <= '9' {
			exactLimit = exactLimit*10 + int64(c-'0')*1e9
		}
	}
	if exactLimit <= 0 {
		exactLimit = 120e9
	}
	exactSteps.Store(1)
}

func exactWatch(now int64) {
	s := &exactSeen
	if n := exactSteps.Load(); n == 0 || n != s.steps {
		s.steps, s.last, s.still = n, now, 0
		return
	}
	s.still += min(now-s.last, 60e9)
	s.last = now
	if s.still > exactLimit {
		throw("virtual time has stopped")
	}
}
`

// exactChildren orders the children of a context by age.
const exactChildren = `
var exactChild atomic.Uint64

func exactOrder(children map[canceler]uint64) []canceler {
	order := make([]canceler, 0, len(children))
	for c := range children {
		order = append(order, c)
	}
	slices.SortFunc(order, func(a, b canceler) int { return int(children[a]) - int(children[b]) })
	return order
}
`
