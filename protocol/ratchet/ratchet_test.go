package ratchet

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"

	"starling/protocol"
	"starling/protocol/x25519"
)

// rows is a table of skipped keys, as the store keeps it.
type rows map[SkippedID][32]byte

func (r rows) lookup(id SkippedID) ([32]byte, bool) {
	k, ok := r[id]
	return k, ok
}

// commit does what the transaction around Open does.
func (r rows) commit(o Opened) {
	if o.Used != nil {
		delete(r, *o.Used)
	}
	for _, k := range o.Store {
		r[k.ID] = k.Key
	}
}

// pair returns the two sides of a new session.
func pair(t testing.TB) (alice, bob *Session) {
	t.Helper()
	return pairWith(t, rand.Reader)
}

func pairWith(t testing.TB, r io.Reader) (alice, bob *Session) {
	t.Helper()
	spk, err := x25519.Generate(r)
	if err != nil {
		t.Fatal(err)
	}
	id, root, associated := [32]byte{1}, [32]byte{2}, [32]byte{3}
	alice, err = NewInitiator(r, id, root, associated, spk.Public())
	if err != nil {
		t.Fatal(err)
	}
	return alice, NewResponder(id, root, associated, spk)
}

func seal(t testing.TB, s *Session, text string) Sealed {
	t.Helper()
	return sealWith(t, rand.Reader, s, text)
}

func sealWith(t testing.TB, r io.Reader, s *Session, text string) Sealed {
	t.Helper()
	m, err := s.Seal(r, []byte(text))
	if err != nil {
		t.Fatalf("Seal(%q) = %v", text, err)
	}
	return m
}

// open opens m, which must hold text, and commits what Open returns.
func open(t testing.TB, s *Session, r rows, m Sealed, text string) Opened {
	t.Helper()
	o, err := s.Open(m.Message, r.lookup)
	if err != nil {
		t.Fatalf("Open of %q = %v", text, err)
	}
	if string(o.Plaintext) != text {
		t.Fatalf("Open = %q, want %q", o.Plaintext, text)
	}
	if h := [32]byte{9}; o.Ack.MAC(h) != m.Ack.MAC(h) {
		t.Fatalf("acknowledgement keys of %q differ", text)
	}
	r.commit(o)
	if got := s.Stored(); got != len(r) {
		t.Fatalf("Stored() = %d with %d rows", got, len(r))
	}
	return o
}

// refuse checks that m does not open, with want, and leaves s as it was.
func refuse(t testing.TB, s *Session, r rows, m []byte, want error) {
	t.Helper()
	before := s.Marshal()
	_, err := s.Open(m, r.lookup)
	if skip, ok := want.(*SkipError); ok {
		var got *SkipError
		if !errors.As(err, &got) || *got != *skip {
			t.Fatalf("Open = %v, want %v", err, want)
		}
	} else if !errors.Is(err, want) {
		t.Fatalf("Open = %v, want %v", err, want)
	}
	if !bytes.Equal(s.Marshal(), before) {
		t.Fatalf("session changed by a message refused with %v", err)
	}
}

func TestConversation(t *testing.T) {
	alice, bob := pair(t)
	a, b := rows{}, rows{}
	if !alice.CanSend() || bob.CanSend() {
		t.Fatalf("CanSend() = %v, %v before the first message, want true, false", alice.CanSend(), bob.CanSend())
	}
	if _, err := bob.Seal(rand.Reader, nil); err == nil {
		t.Fatal("a responder sealed before its first Open")
	}
	for i := range 5 {
		for j := range i + 1 {
			text := fmt.Sprintf("to bob %d.%d", i, j)
			if o := open(t, bob, b, seal(t, alice, text), text); o.Stepped != (j == 0) {
				t.Errorf("%s: Stepped = %v", text, o.Stepped)
			}
		}
		for j := range 3 {
			text := fmt.Sprintf("to alice %d.%d", i, j)
			if o := open(t, alice, a, seal(t, bob, text), text); o.Stepped != (j == 0) {
				t.Errorf("%s: Stepped = %v", text, o.Stepped)
			}
		}
	}
}

func TestMessagesOpenInAnyOrderAcrossSteps(t *testing.T) {
	alice, bob := pair(t)
	a, b := rows{}, rows{}
	var late []Sealed
	var texts []string
	for i := range 4 {
		for j := range 3 {
			text := fmt.Sprintf("%d.%d", i, j)
			m := seal(t, alice, text)
			if j == 1 {
				open(t, bob, b, m, text)
				continue
			}
			late, texts = append(late, m), append(texts, text)
		}
		open(t, alice, a, seal(t, bob, "step"), "step")
	}
	// The last chain's end is not known to bob yet.
	open(t, bob, b, seal(t, alice, "end"), "end")
	if got, want := bob.Stored(), len(late); got != want {
		t.Fatalf("Stored() = %d, want %d", got, want)
	}
	for i := len(late) - 1; i >= 0; i-- {
		o := open(t, bob, b, late[i], texts[i])
		if o.Used == nil || len(o.Store) != 0 || o.Stepped {
			t.Errorf("late %s: Used %v, %d to store, Stepped %v", texts[i], o.Used, len(o.Store), o.Stepped)
		}
		if h, _ := parseHeader(late[i].Message); h.ratchet == bob.peer || h.ratchet == bob.before.peer {
			refuse(t, bob, b, late[i].Message, ErrDuplicate)
		} else {
			refuse(t, bob, b, late[i].Message, ErrOpen) // so old that its chain is forgotten
		}
	}
	if len(b) != 0 || bob.Stored() != 0 {
		t.Fatalf("%d rows and Stored() = %d after all were used", len(b), bob.Stored())
	}
}

func TestDuplicatesAreToldFromForgeries(t *testing.T) {
	alice, bob := pair(t)
	a, b := rows{}, rows{}
	m0, m1 := seal(t, alice, "0"), seal(t, alice, "1")
	open(t, bob, b, m0, "0")
	refuse(t, bob, b, m0.Message, ErrDuplicate)
	open(t, bob, b, m1, "1")
	open(t, alice, a, seal(t, bob, "r"), "r")
	open(t, bob, b, seal(t, alice, "2"), "2")
	refuse(t, bob, b, m0.Message, ErrDuplicate) // of the chain before
	refuse(t, bob, b, m1.Message, ErrDuplicate)

	past := slices.Clone(m1.Message)
	binary.BigEndian.PutUint32(past[numberAt:], 2) // that chain had two
	refuse(t, bob, b, past, ErrOpen)
}

func TestExpiredSkippedKeyIsADuplicate(t *testing.T) {
	alice, bob := pair(t)
	b := rows{}
	lost := seal(t, alice, "lost")
	open(t, bob, b, seal(t, alice, "1"), "1")
	clear(b)
	bob.Forget(1)
	refuse(t, bob, b, lost.Message, ErrDuplicate)
	bob.Forget(5)
	bob.Forget(-1)
	if got := bob.Stored(); got != 0 {
		t.Fatalf("Stored() = %d after forgetting more than there was", got)
	}
}

func TestEveryChangedBitIsRefused(t *testing.T) {
	alice, bob := pair(t)
	a, b := rows{}, rows{}
	open(t, bob, b, seal(t, alice, "first"), "first")
	open(t, alice, a, seal(t, bob, "reply"), "reply")
	stored := seal(t, alice, "stored")
	open(t, bob, b, seal(t, alice, "next"), "next")
	open(t, alice, a, seal(t, bob, "reply"), "reply")
	for name, m := range map[string]Sealed{"stored": stored, "step": seal(t, alice, "step")} {
		for i := range len(m.Message) * 8 {
			bad := slices.Clone(m.Message)
			bad[i/8] ^= 1 << (i % 8)
			before := bob.Marshal()
			if _, err := bob.Open(bad, b.lookup); err == nil {
				t.Fatalf("%s message opened with bit %d changed", name, i)
			}
			if !bytes.Equal(bob.Marshal(), before) {
				t.Fatalf("%s message with bit %d changed, changed the session", name, i)
			}
		}
		for n := range m.Message {
			refuse(t, bob, b, m.Message[:n], ErrOpen)
		}
		refuse(t, bob, b, append(slices.Clone(m.Message), 0), ErrOpen)
		open(t, bob, b, m, name)
	}
}

func TestJumpsAreBoundedBeforeAnyWork(t *testing.T) {
	alice, bob := pair(t)
	b := rows{}
	open(t, bob, b, seal(t, alice, "0"), "0")

	// Forged headers: a refusal that derived a key first would say ErrOpen.
	forge := func(m Sealed, pn, n uint32) []byte {
		f := slices.Clone(m.Message)
		binary.BigEndian.PutUint32(f[previousAt:], pn)
		binary.BigEndian.PutUint32(f[numberAt:], n)
		return f
	}
	m := seal(t, alice, "1")
	refuse(t, bob, b, forge(m, 0, 1+protocol.MaxSkip+1), &SkipError{Jump: protocol.MaxSkip + 1})
	refuse(t, bob, b, forge(m, 0, math.MaxUint32-1), &SkipError{Jump: math.MaxUint32 - 2})
	refuse(t, bob, b, forge(m, 0, math.MaxUint32), ErrOpen)
	refuse(t, bob, b, forge(m, 0, 1+protocol.MaxSkip), ErrOpen) // allowed, and forged

	// Over a step, what the old chain owes counts too.
	a := rows{}
	open(t, alice, a, seal(t, bob, "r"), "r")
	step := seal(t, alice, "2")
	refuse(t, bob, b, forge(step, math.MaxUint32, math.MaxUint32-1), &SkipError{Jump: 2*math.MaxUint32 - 2})
	refuse(t, bob, b, forge(step, 1+protocol.MaxSkip, 1), &SkipError{Jump: protocol.MaxSkip + 1})
	open(t, bob, b, step, "2")
	open(t, bob, b, m, "1")
}

func TestStoredKeysAreBounded(t *testing.T) {
	alice, bob := pair(t)
	b := rows{}
	var late []Sealed
	for range protocol.MaxSkip {
		late = append(late, seal(t, alice, "late"))
	}
	open(t, bob, b, seal(t, alice, "after"), "after")
	if got := bob.Stored(); got != protocol.MaxSkip {
		t.Fatalf("Stored() = %d, want %d", got, protocol.MaxSkip)
	}
	open(t, bob, b, seal(t, alice, "in order"), "in order")
	lost := seal(t, alice, "lost")
	over := seal(t, alice, "over")
	refuse(t, bob, b, over.Message, &SkipError{Jump: 1, Stored: protocol.MaxSkip})
	open(t, bob, b, late[7], "late") // makes room for one
	open(t, bob, b, over, "over")
	open(t, bob, b, late[8], "late")
	open(t, bob, b, lost, "lost")
}

func TestNonCanonicalRatchetKeyIsRefused(t *testing.T) {
	alice, bob := pair(t)
	m := seal(t, alice, "m")
	for i, last := range []byte{0x80, 0xff, 0x7f} {
		bad := slices.Clone(m.Message)
		switch i {
		case 0:
			bad[previousAt-1] |= last
		default:
			for j := ratchetAt; j < previousAt; j++ {
				bad[j] = 0xff
			}
			bad[previousAt-1] = last
		}
		refuse(t, bob, nil, bad, ErrOpen)
	}
}

// The points of vector x25519-low-order-u.
func TestLowOrderKeysAreRefused(t *testing.T) {
	for _, u := range readVectors(t).find(t, "x25519-low-order-u").Points {
		alice, bob := pair(t)
		m := seal(t, alice, "m")
		bad := slices.Clone(m.Message)
		copy(bad[ratchetAt:], unhex(t, u))
		refuse(t, bob, nil, bad, ErrOpen)
		if _, err := NewInitiator(rand.Reader, [32]byte{}, [32]byte{}, [32]byte{}, x25519.Public(unhex(t, u))); err == nil {
			t.Errorf("NewInitiator took %s", u)
		}
	}
}

func TestInitiatorHasNoChainUnderThePreKey(t *testing.T) {
	alice, _ := pair(t)
	m := seal(t, alice, "m")
	forged := slices.Clone(m.Message)
	copy(forged[ratchetAt:], alice.peer[:])
	refuse(t, alice, nil, forged, ErrOpen)

	defer func() {
		if recover() == nil {
			t.Error("KDF_CK ran on a missing chain")
		}
	}()
	alice.recv.step()
}

func TestReflectedMessageIsRefused(t *testing.T) {
	alice, bob := pair(t)
	a, b := rows{}, rows{}
	m := seal(t, alice, "m")
	refuse(t, alice, a, m.Message, ErrOpen)
	open(t, bob, b, m, "m")
	r := seal(t, bob, "r")
	refuse(t, bob, b, r.Message, ErrOpen)
	open(t, alice, a, r, "r")
}

func TestSecondStepWithoutAReplyCostsNothing(t *testing.T) {
	alice, bob := pair(t)
	b := rows{}
	open(t, bob, b, seal(t, alice, "m"), "m")
	other, _ := pair(t)
	m := seal(t, other, "m")
	if n := testing.AllocsPerRun(10, func() { bob.Open(m.Message, nil) }); n != 0 {
		t.Errorf("refusing a step that cannot be: %v allocations, want none", n)
	}
	refuse(t, bob, b, m.Message, ErrOpen)
}

func TestSealLeavesSessionUnchangedOnError(t *testing.T) {
	alice, bob := pair(t)
	open(t, bob, rows{}, seal(t, alice, "m"), "m")
	for name, f := range map[string]func() (Sealed, error){
		"no randomness":      func() (Sealed, error) { return bob.Seal(bytes.NewReader(nil), nil) },
		"half a hedge":       func() (Sealed, error) { return bob.Seal(bytes.NewReader(make([]byte, 40)), nil) },
		"too long plaintext": func() (Sealed, error) { return bob.Seal(rand.Reader, make([]byte, protocol.MaxContent+1)) },
	} {
		before := bob.Marshal()
		if _, err := f(); err == nil {
			t.Errorf("%s: Seal succeeded", name)
		}
		if !bytes.Equal(bob.Marshal(), before) {
			t.Errorf("%s: session changed", name)
		}
	}
	alice.send.n = math.MaxUint32
	if _, err := alice.Seal(rand.Reader, nil); err == nil {
		t.Error("Seal succeeded at the end of a chain")
	}
}

func TestLargestPlaintext(t *testing.T) {
	alice, bob := pair(t)
	text := strings.Repeat("x", protocol.MaxContent)
	m := seal(t, alice, text)
	if got, want := len(m.Message), Overhead+protocol.MaxContent; got != want {
		t.Errorf("message has %d bytes, want %d", got, want)
	}
	open(t, bob, rows{}, m, text)
}

func TestOpenIsDeterministic(t *testing.T) {
	alice, bob := pair(t)
	seal(t, alice, "skipped")
	m := seal(t, alice, "m")
	twin, err := Parse(bob.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	a, err1 := bob.Open(m.Message, nil)
	b, err2 := twin.Open(m.Message, nil)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if !bytes.Equal(bob.Marshal(), twin.Marshal()) || len(a.Store) != 1 || a.Store[0].Key != b.Store[0].Key {
		t.Error("two openings of one message differ")
	}
}

func TestMarshalledSessionGoesOn(t *testing.T) {
	alice, bob := pair(t)
	a, b := rows{}, rows{}
	again := func(s *Session) *Session {
		m := s.Marshal()
		p, err := Parse(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(m) != StateSize || !bytes.Equal(p.Marshal(), m) || p.ID() != s.ID() {
			t.Fatal("Marshal of Parse differs")
		}
		return p
	}
	for range 4 {
		alice, bob = again(alice), again(bob)
		seal(t, alice, "lost")
		open(t, bob, b, seal(t, alice, "m"), "m")
		alice, bob = again(alice), again(bob)
		open(t, alice, a, seal(t, bob, "r"), "r")
	}
}

func TestParseRefusesWhatMarshalCannotMake(t *testing.T) {
	alice, bob := pair(t)
	fresh := bob.Marshal()
	open(t, bob, rows{}, seal(t, alice, "m"), "m")
	pending := bob.Marshal()
	at := func(field int) int { return 2 + 32*field }
	number := func(i int) int { return 2 + 32*stateFields + 4*i }
	for name, f := range map[string]func() []byte{
		"empty":                   func() []byte { return nil },
		"short":                   func() []byte { return pending[:StateSize-1] },
		"long":                    func() []byte { return append(slices.Clone(pending), 0) },
		"version":                 func() []byte { return set(pending, 0, 2) },
		"unknown chain":           func() []byte { return set(pending, 1, pending[1]|8) },
		"key of a missing chain":  func() []byte { return set(pending, at(6), 1) },
		"position in no chain":    func() []byte { return set(pending, number(0), 1) },
		"chain before the first":  func() []byte { return set(fresh, 1, hasBefore) },
		"end of no chain":         func() []byte { return set(pending, number(3), 1) },
		"peer without a chain":    func() []byte { return set(fresh, at(5), 1) },
		"receiving key, no chain": func() []byte { return set(fresh, at(7), 1) },
		"own key not canonical":   func() []byte { return set(pending, at(5)-1, 0x80) },
		"peer not canonical":      func() []byte { return set(pending, at(6)-1, 0x80) },
		"before not canonical":    func() []byte { return set(pending, at(9)-1, 0x80) },
		"too many skipped":        func() []byte { return set(pending, number(4), 1) },
		"skipped without a chain": func() []byte { return set(fresh, number(4)+3, 1) },
		"previous without a step": func() []byte { return set(fresh, number(2), 1) },
	} {
		if _, err := Parse(f()); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
}

// set returns b with one byte changed.
func set(b []byte, i int, v byte) []byte {
	b = slices.Clone(b)
	b[i] = v
	return b
}

func TestSecretsDoNotPrint(t *testing.T) {
	alice, bob := pair(t)
	seal(t, alice, "plain words")
	m := seal(t, alice, "plain words")
	o, err := bob.Open(m.Message, nil)
	if err != nil {
		t.Fatal(err)
	}
	values := []any{alice, *alice, m, &m, m.Ack, o, &o, o.Store, o.Store[0], alice.root, alice.send.key, []AckKey{m.Ack}, map[int]Opened{1: o}}
	for _, v := range values {
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "v", v)
		out := []string{log.String()}
		for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%X", "%s", "%q", "%d"} {
			out = append(out, fmt.Sprintf(verb, v))
		}
		for _, s := range out {
			if !strings.Contains(s, "[secret]") || len(s) > 200 {
				t.Errorf("%T prints as %.200s", v, s)
			}
		}
	}
}

// An observer is told the same of a message by both its ends.
func TestObservationNamesTheMessage(t *testing.T) {
	alice, bob := pair(t)
	var sealed []Sealed
	for n := range uint32(3) {
		m := seal(t, alice, "m")
		h, ok := parseHeader(m.Message)
		if !ok {
			t.Fatal("sealed message does not parse")
		}
		want := Observation{Session: alice.ID(), Ratchet: h.ratchet, N: n, Hedge: h.hedge, Ciphertext: hash(m.Message[headerSize:])}
		if m.Observation != want || h.number != n {
			t.Errorf("Observation = %v, want %v", m.Observation, want)
		}
		sealed = append(sealed, m)
	}
	keys := rows{}
	for _, i := range []int{1, 2, 0} { // a new ratchet key, the next position, a stored key
		if o := open(t, bob, keys, sealed[i], "m"); o.Observation != sealed[i].Observation {
			t.Errorf("opening message %d observes %v, sealing it %v", i, o.Observation, sealed[i].Observation)
		}
	}
}
