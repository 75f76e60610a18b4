// Package wire holds the schema of everything that crosses between nodes, and
// reads it within bounds (SPEC §2).
//
// wire.proto is the schema; wire.pb.go is generated from it. Ratchet messages,
// DHT records and invite links have layouts of their own, where they are made
// (protocol/ratchet, dht/record, protocol/identity).
//
// A message from a stranger is read in two passes. The first walks the bytes
// and allocates nothing; it refuses what is too long, too deep, has too many
// fields, or names one field twice. Only then is the message decoded. What a
// decode allocates is therefore bounded by what was received: less than
// [AllocFactor] times its length plus 4 KiB.
//
// On a stream, a message is a frame:
//
//	length  uvarint     // minimal encoding, at most the reader's bound
//	body    [length]byte
//
// What it does not do: judge what a field holds. Lengths of keys and hashes,
// times and names are checked by the package that gives them a type.
package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Bounds on one message. They are far above what any honest message needs: the
// fullest one is a receipt for 1,024 contents, the deepest has six levels.
const (
	MaxFields = 4096 // fields in the whole tree, those of unknown number included
	MaxDepth  = 8    // messages inside each other, the outermost included
)

// AllocFactor bounds what [Parse] allocates: less than AllocFactor bytes for
// each byte of input, plus 4 KiB. The worst input is a run of empty
// submessages, two bytes each, that become a struct and a pointer each.
const AllocFactor = 128

// ErrMalformed means that the bytes are not a message of the expected kind, or
// exceed a bound. Refuse them; asking the same peer again gives the same.
var ErrMalformed = errors.New("wire: malformed message")

// Parse decodes b, at most max bytes, into m, whose earlier contents are lost.
// It returns an error that wraps [ErrMalformed], and leaves m empty, if b is
// longer than max, has more than [MaxFields] fields or [MaxDepth] levels, or
// gives a singular field, or two members of a oneof, more than once (decoders
// disagree about what that means). It checks all this before it allocates.
// Fields that the schema does not know are dropped. m keeps no reference to b.
func Parse(b []byte, max int, m proto.Message) error {
	proto.Reset(m)
	if len(b) > max {
		return fmt.Errorf("%w: %d bytes, at most %d are accepted", ErrMalformed, len(b), max)
	}
	w := walk{fields: MaxFields}
	if err := w.message(b, m.ProtoReflect().Descriptor(), MaxDepth); err != nil {
		return err
	}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		proto.Reset(m)
		// The cause names a field of the schema, never a value.
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// A walk counts what is left of the bounds of one message.
type walk struct{ fields int }

var (
	errFields = fmt.Errorf("%w: more than %d fields", ErrMalformed, MaxFields)
	errDepth  = fmt.Errorf("%w: more than %d levels", ErrMalformed, MaxDepth)
	errTwice  = fmt.Errorf("%w: a singular field is given twice", ErrMalformed)
	errGroup  = fmt.Errorf("%w: a group", ErrMalformed)
	errSyntax = fmt.Errorf("%w: not protobuf", ErrMalformed)
)

// message walks the fields of b, a message of type d, and the messages inside
// it. depth counts the levels left, this one included.
func (w *walk) message(b []byte, d protoreflect.MessageDescriptor, depth int) error {
	if depth == 0 {
		return errDepth
	}
	known := d.Fields()
	var seen uint64 // bit i: the singular field of index i was given
	for len(b) > 0 {
		if w.fields--; w.fields < 0 {
			return errFields
		}
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errSyntax
		}
		b = b[n:]
		if typ == protowire.StartGroupType || typ == protowire.EndGroupType {
			return errGroup // the schema has none, and they nest without a length
		}
		size := protowire.ConsumeFieldValue(num, typ, b)
		if size < 0 {
			return errSyntax
		}
		value := b[:size]
		b = b[size:]

		f := known.ByNumber(num)
		if f == nil {
			continue
		}
		if !f.IsList() && !f.IsMap() {
			i := f.Index()
			if o := f.ContainingOneof(); o != nil {
				i = o.Fields().Get(0).Index()
			}
			if i < 64 && seen&(1<<i) != 0 {
				return errTwice
			}
			seen |= 1 << i
		}
		if typ != protowire.BytesType {
			continue
		}
		inner, _ := protowire.ConsumeBytes(value)
		switch {
		case f.Message() != nil:
			if err := w.message(inner, f.Message(), depth-1); err != nil {
				return err
			}
		case f.IsPacked():
			// One field, but as many elements as it has bytes.
			if w.fields -= len(inner); w.fields < 0 {
				return errFields
			}
		}
	}
	return nil
}

// Marshal returns the encoding of m, the same bytes for the same message. It
// panics if m holds a string that is not UTF-8, which whoever filled m has to
// rule out.
func Marshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("wire: internal error: " + err.Error())
	}
	if b == nil {
		b = []byte{} // an empty message is present, and has no bytes
	}
	return b
}
