package envelope

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// IDSize is the length of an [ID] in bytes.
const IDSize = 16

// An ID names a content across re-encryption: the sending client draws it, and
// the recipient shows one content a (sender account, ID).
type ID [IDSize]byte

// A Content is what one ratchet message says. Exactly one of Text, Receipt,
// News and Accept is set.
type Content struct {
	ID      ID
	Sent    time.Time // in whole milliseconds, by the sender's clock
	Expires time.Time // later than Sent by at most protocol.MessageLife
	Seq     uint64    // counts this sender's contents to this recipient from 1

	Text    *string  // 1 to protocol.MaxText bytes of UTF-8
	Receipt *Receipt // what happened to earlier contents
	News    *News    // replaces what the recipient knows of the sender
	Accept  *News    // the sender took the recipient as a contact
}

// A Receipt tells what happened to earlier contents of the recipient; together
// at most [protocol.MaxReceipt], and at least one. It is not answered itself.
type Receipt struct {
	Delivered []ID
	Read      []ID
}

// News is how to find the sender from now on. The manifest is opened by
// whoever acts on it, against the account whose session carried it.
type News struct {
	Manifest []byte // as identity.SignManifest made it
	Profile  identity.Profile
}

// MarshalContent returns the padded encoding of c. It fails where
// [ParseContent] would, so nothing that the peer refuses is ever sent.
func MarshalContent(c *Content) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	m := &wire.Content{
		Id:      c.ID[:],
		Sent:    c.Sent.UnixMilli(),
		Expires: c.Expires.UnixMilli(),
		Seq:     c.Seq,
	}
	switch {
	case c.Text != nil:
		m.Body = &wire.Content_Text{Text: &wire.Text{Text: *c.Text}}
	case c.Receipt != nil:
		m.Body = &wire.Content_Receipt{Receipt: &wire.Receipt{
			Delivered: idsToWire(c.Receipt.Delivered),
			Read:      idsToWire(c.Receipt.Read),
		}}
	case c.News != nil:
		n, err := c.News.wire()
		if err != nil {
			return nil, err
		}
		m.Body = &wire.Content_News{News: n}
	case c.Accept != nil:
		n, err := c.Accept.wire()
		if err != nil {
			return nil, err
		}
		m.Body = &wire.Content_Accept{Accept: &wire.Accept{News: n}}
	}
	return Pad(wire.Marshal(m))
}

// ParseContent returns the content whose padded encoding b is. An error means
// that the peer is broken or hostile: acknowledge the message, which did open,
// and show nothing.
func ParseContent(b []byte) (*Content, error) {
	b, err := Unpad(b)
	if err != nil {
		return nil, err
	}
	var m wire.Content
	if err := wire.Parse(b, protocol.MaxContent, &m); err != nil {
		return nil, fmt.Errorf("envelope: parsing a content: %w", err)
	}
	if len(m.Id) != IDSize {
		return nil, errors.New("envelope: content ID has the wrong length")
	}
	c := &Content{
		ID:      ID(m.Id),
		Sent:    time.UnixMilli(m.Sent).UTC(),
		Expires: time.UnixMilli(m.Expires).UTC(),
		Seq:     m.Seq,
	}
	switch body := m.Body.(type) {
	case *wire.Content_Text:
		c.Text = &body.Text.Text
	case *wire.Content_Receipt:
		c.Receipt, err = receiptFromWire(body.Receipt)
	case *wire.Content_News:
		c.News, err = newsFromWire(body.News)
	case *wire.Content_Accept:
		c.Accept, err = newsFromWire(body.Accept.News)
	}
	if err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

// maxMilli bounds a time on the wire: the year 36812, far from any overflow.
const maxMilli = 1 << 50

// check is the one judge of a content, on both sides.
func (c *Content) check() error {
	sent, expires := c.Sent.UnixMilli(), c.Expires.UnixMilli()
	switch {
	case sent <= 0 || sent > maxMilli:
		return errors.New("envelope: content has an impossible time")
	case expires <= sent || expires-sent > protocol.MessageLife.Milliseconds():
		return errors.New("envelope: content expires too late, or before it was sent")
	case c.Seq == 0:
		return errors.New("envelope: content has no sequence number")
	}
	bodies := 0
	if c.Text != nil {
		bodies++
		if len(*c.Text) == 0 || len(*c.Text) > protocol.MaxText || !utf8.ValidString(*c.Text) {
			return fmt.Errorf("envelope: a text is 1 to %d bytes of UTF-8", protocol.MaxText)
		}
	}
	if c.Receipt != nil {
		bodies++
		if n := len(c.Receipt.Delivered) + len(c.Receipt.Read); n == 0 || n > protocol.MaxReceipt {
			return fmt.Errorf("envelope: a receipt names 1 to %d contents", protocol.MaxReceipt)
		}
	}
	if c.News != nil {
		bodies++
	}
	if c.Accept != nil {
		bodies++
	}
	if bodies != 1 {
		return errors.New("envelope: a content has exactly one body")
	}
	return nil
}

func idsToWire(ids []ID) [][]byte {
	bs := make([][]byte, len(ids))
	for i := range ids {
		bs[i] = ids[i][:]
	}
	return bs
}

func idsFromWire(bs [][]byte) ([]ID, error) {
	if len(bs) == 0 {
		return nil, nil
	}
	ids := make([]ID, len(bs))
	for i, b := range bs {
		if len(b) != IDSize {
			return nil, errors.New("envelope: content ID in a receipt has the wrong length")
		}
		ids[i] = ID(b)
	}
	return ids, nil
}

func receiptFromWire(m *wire.Receipt) (*Receipt, error) {
	if len(m.Delivered)+len(m.Read) > protocol.MaxReceipt {
		return nil, fmt.Errorf("envelope: a receipt names 1 to %d contents", protocol.MaxReceipt)
	}
	delivered, err := idsFromWire(m.Delivered)
	if err != nil {
		return nil, err
	}
	read, err := idsFromWire(m.Read)
	if err != nil {
		return nil, err
	}
	return &Receipt{Delivered: delivered, Read: read}, nil
}

func (n *News) wire() (*wire.News, error) {
	var s wire.Signed
	if err := wire.Parse(n.Manifest, protocol.MaxManifest, &s); err != nil {
		return nil, fmt.Errorf("envelope: parsing the manifest of news: %w", err)
	}
	if err := checkSigned(&s); err != nil {
		return nil, err
	}
	p := n.Profile.Wire()
	if _, err := identity.ProfileFromWire(p); err != nil {
		return nil, fmt.Errorf("envelope: checking the profile of news: %w", err)
	}
	return &wire.News{Manifest: &s, Profile: p}, nil
}

// checkSigned looks at the shape of a manifest only: see [News].
func checkSigned(s *wire.Signed) error {
	if len(s.Body) == 0 || len(s.Signature) != identity.SignatureSize {
		return errors.New("envelope: manifest in news is not signed")
	}
	return nil
}

func newsFromWire(m *wire.News) (*News, error) {
	if m == nil || m.Manifest == nil {
		return nil, errors.New("envelope: news without a manifest")
	}
	if err := checkSigned(m.Manifest); err != nil {
		return nil, err
	}
	manifest := wire.Marshal(m.Manifest)
	if len(manifest) > protocol.MaxManifest {
		return nil, errors.New("envelope: manifest in news is too long")
	}
	p, err := identity.ProfileFromWire(m.Profile)
	if err != nil {
		return nil, fmt.Errorf("envelope: reading the profile of news: %w", err)
	}
	return &News{Manifest: manifest, Profile: p}, nil
}
