package envelope

import (
	"bytes"
	"errors"
	"slices"

	"starling/protocol"
)

// sizes are the only lengths that a padded content has, in bytes. A message
// hides its length among all that share its size. The small ones fit one, two
// and three packets; the largest holds the longest text and receipt, and lets every envelope
// fit into the largest bucket of the sealed form (SPEC §7.2).
var sizes = [...]int{256, 640, 1536, 3584, 15872, protocol.MaxContent}

// marker is the first byte of the padding; zeros follow it (ISO/IEC 7816-4), so
// every content has one padded form and the padding is never empty.
const marker = 0x80

// errPadding is deliberately one error: only the peer whose session it is can
// cause it.
var errPadding = errors.New("envelope: wrong padding")

// Pad returns content ‖ 0x80 ‖ zeros, as long as the smallest size that it
// fits. It fails if content has more than [protocol.MaxContent] - 1 bytes.
func Pad(content []byte) ([]byte, error) {
	b, ok := pad(content, sizes[:])
	if !ok {
		return nil, errors.New("envelope: content is too long")
	}
	return b, nil
}

// Unpad returns the content that b, and nothing but b, is the padded form of.
// The result aliases b.
func Unpad(b []byte) ([]byte, error) {
	content, ok := unpad(b, sizes[:])
	if !ok {
		return nil, errPadding
	}
	return content, nil
}

// pad returns content, padded to the least of sizes that holds it and the
// marker, and whether there is one. sizes ascend.
func pad(content []byte, sizes []int) ([]byte, bool) {
	i, _ := slices.BinarySearch(sizes, len(content)+1)
	if i == len(sizes) {
		return nil, false
	}
	b := make([]byte, sizes[i])
	b[copy(b, content)] = marker
	return b, true
}

// unpad inverts pad, and reports whether b is what pad makes.
func unpad(b []byte, sizes []int) ([]byte, bool) {
	i, ok := slices.BinarySearch(sizes, len(b))
	if !ok {
		return nil, false
	}
	content := bytes.TrimRight(b, "\x00")
	if len(content) == 0 || content[len(content)-1] != marker {
		return nil, false
	}
	content = content[:len(content)-1]
	if i > 0 && len(content) < sizes[i-1] {
		return nil, false // a smaller size would have held it
	}
	return content, true
}
