package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"starling/protocol"
)

// eager is the longest body, in bytes, that [ReadFrame] makes room for before
// any of it has arrived. A longer one is given room as it arrives, so that a
// peer pays for the memory it makes us use.
const eager = 64 << 10

// WriteFrame writes b as one frame, in one call to w.Write. b may have at most
// [protocol.MaxFrame] bytes.
func WriteFrame(w io.Writer, b []byte) error {
	if len(b) > protocol.MaxFrame {
		return fmt.Errorf("wire: a frame of %d bytes, at most %d are allowed", len(b), protocol.MaxFrame)
	}
	f := make([]byte, 0, binary.MaxVarintLen32+len(b))
	f = binary.AppendUvarint(f, uint64(len(b)))
	f = append(f, b...)
	_, err := w.Write(f)
	return err
}

// AppendFrame appends m, marshalled as by [Marshal], as one frame to f, so that
// several can be written at once. m may have at most [protocol.MaxFrame] bytes.
// After an error f is as it was.
func AppendFrame(f []byte, m proto.Message) ([]byte, error) {
	o := proto.MarshalOptions{Deterministic: true}
	n := o.Size(m)
	if n > protocol.MaxFrame {
		return f, fmt.Errorf("wire: a frame of %d bytes, at most %d are allowed", n, protocol.MaxFrame)
	}
	f = slices.Grow(f, binary.MaxVarintLen32+n)
	o.UseCachedSize = true // of Size, just now
	b, err := o.MarshalAppend(binary.AppendUvarint(f, uint64(n)), m)
	if err != nil {
		panic("wire: internal error: " + err.Error())
	}
	return b, nil
}

// ReadFrame reads one frame of at most max bytes from r and returns its body.
// It reads nothing beyond the frame. At the end of r it returns [io.EOF] if
// there is no further frame, and [io.ErrUnexpectedEOF] inside one. A length
// above max or not minimally encoded gives an error that wraps [ErrMalformed]:
// close the stream, since what follows cannot be told apart.
//
// If r has a method ReadByte, the length is read through it; otherwise with
// reads of one byte.
func ReadFrame(r io.Reader, max int) ([]byte, error) {
	n, err := readLength(r, uint64(max))
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(n, eager))
	for got := 0; ; {
		if _, err := io.ReadFull(r, b[got:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if got = len(b); got == n {
			return b, nil
		}
		next := make([]byte, min(n, 2*got))
		copy(next, b)
		b = next
	}
}

// readLength reads a minimally encoded uvarint of at most limit.
func readLength(r io.Reader, limit uint64) (int, error) {
	br, ok := r.(io.ByteReader)
	if !ok {
		br = &byteReader{r: r}
	}
	var n uint64
	for i := 0; ; i++ {
		c, err := br.ReadByte()
		if err != nil {
			if i > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		n |= uint64(c&0x7f) << (7 * i)
		switch {
		case n > limit:
			return 0, fmt.Errorf("%w: a frame above %d bytes", ErrMalformed, limit)
		case c == 0 && i > 0:
			return 0, fmt.Errorf("%w: a frame's length is not minimal", ErrMalformed)
		case c < 0x80:
			return int(n), nil
		case i == binary.MaxVarintLen32-1:
			return 0, fmt.Errorf("%w: a frame's length does not end", ErrMalformed)
		}
	}
}

// A byteReader reads single bytes from a reader that cannot.
type byteReader struct {
	r io.Reader
	b [1]byte
}

func (r *byteReader) ReadByte() (byte, error) {
	_, err := io.ReadFull(r.r, r.b[:])
	return r.b[0], err
}
