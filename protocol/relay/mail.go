package relay

import (
	"fmt"

	"starling/protocol"
	"starling/protocol/identity"
	"starling/protocol/wire"
)

// Mail is where an account that is away takes messages, and the keys to seal
// them to (SPEC §13.10). Inside a session its mailboxes are for the one contact
// that it is told to; in a record they are contact boxes, for everybody.
type Mail struct {
	Mailboxes []Mailbox // at most protocol.MaxRelays, none of a relay twice
	Sealing   [][]byte  // encoded wire.Signed, for envelope.OpenSealingKey; at most protocol.MaxSealingKeys
}

// Wire returns the message of m: with capabilities for a profile, which goes
// to one contact, without for a record. The error wraps [ErrMailbox], and means
// that [OpenMail] would refuse it; a record cannot give a capability away.
func (m Mail) Wire(capabilities bool) (*wire.Mail, error) {
	w := new(wire.Mail)
	for _, box := range m.Mailboxes {
		b, err := box.Marshal()
		if err != nil {
			return nil, err
		}
		w.Mailboxes = append(w.Mailboxes, b)
	}
	for _, key := range m.Sealing {
		s := new(wire.Signed)
		if err := wire.Parse(key, protocol.MaxSealing, s); err != nil {
			return nil, fmt.Errorf("%w: sealing key: %w", ErrMailbox, err)
		}
		w.Sealing = append(w.Sealing, s)
	}
	if _, err := OpenMail(w, capabilities); err != nil {
		return nil, err
	}
	return w, nil
}

// OpenMail returns the mail that w holds: of a profile, where every mailbox has
// a capability, or of a record, where none has. It is refused as a whole, with
// an error that wraps [ErrMailbox]: keep what was known before. That includes a
// nil w, which says nothing; a w without a mailbox says that there is none any
// more.
//
// The sealing keys are still to be opened, each for a device of the account.
func OpenMail(w *wire.Mail, capabilities bool) (Mail, error) {
	if w == nil {
		return Mail{}, fmt.Errorf("%w: none", ErrMailbox)
	}
	if err := identity.CheckMail(w); err != nil {
		return Mail{}, fmt.Errorf("%w: %w", ErrMailbox, err)
	}
	var m Mail
	for _, b := range w.Mailboxes {
		box, err := ParseMailbox(b)
		if err != nil {
			return Mail{}, err
		}
		if (box.Capability != nil) != capabilities {
			return Mail{}, fmt.Errorf("%w: a capability where none belongs, or none where one does", ErrMailbox)
		}
		for _, other := range m.Mailboxes {
			if other.Relay.Transport == box.Relay.Transport {
				return Mail{}, fmt.Errorf("%w: a relay twice", ErrMailbox)
			}
		}
		m.Mailboxes = append(m.Mailboxes, box)
	}
	for _, s := range w.Sealing {
		m.Sealing = append(m.Sealing, wire.Marshal(s))
	}
	return m, nil
}
