//go:build !linux

package bubble

import "runtime/metrics"

// Memory returns about the resident bytes of this process: what the Go runtime
// has from the system and has not returned. Darwin and Windows say more exactly
// only through cgo.
func Memory() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
}
