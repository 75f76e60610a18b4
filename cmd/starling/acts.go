package main

import (
	"bytes"
	"context"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"starling/node/api"
)

// An act shows one thing. It returns what was seen, or why the claim does not
// hold; the acts after it are then not played.
type act struct {
	title string // while it is played
	claim string // in the table at the end
	play  func(*stage, context.Context) (string, error)
}

// acts are the play. Each stands on those before it.
var acts = []act{
	{"Three nodes start", "three full nodes run, each with an encrypted store of its own", (*stage).actStart},
	{"Ada invites Bo", "a link makes two people contacts, with no server in between", (*stage).actInvite},
	{"The first message", "the first message is opened by a post-quantum key agreement (PQXDH)", (*stage).actFirst},
	{"They talk", "a conversation, each message under a key of its own", (*stage).actTalk},
	{"Bo's machine loses power", "a node killed in mid-sentence comes back, and what it missed arrives", (*stage).actCrash},
	{"Rita and Sam run relays", "whoever wants to be written to while away names relays of volunteers", (*stage).actRelays},
	{"Bo sleeps, Ada writes, Ada leaves", "what is written to somebody asleep arrives, though its writer has left by then", (*stage).actAway},
	{"Sam's relay dies", "a relay that is lost takes no message with it", (*stage).actRelayDies},
	{"Nothing lost, nothing twice", "both tell the same story: every message once, in order", (*stage).actOnce},
	{"Somebody poses as Bo", "another key under a known name is caught, and nothing is sent to it", (*stage).actImpostor},
	{"What Cy and the relays know", "who keeps the address book, or messages, has nobody's name, words or keys on disk", (*stage).actNobody},
}

func (s *stage) actStart(ctx context.Context) (string, error) {
	if err := s.create(ctx, s.ada, s.bo, s.cy); err != nil {
		return "", err
	}
	s.says(s.cy, "is up first, as somebody has to be")
	if err := s.start(ctx, s.cy); err != nil {
		return "", err
	}
	if err := s.start(ctx, s.ada, s.address(ctx, s.cy)...); err != nil {
		return "", err
	}
	if err := s.start(ctx, s.bo, s.address(ctx, s.cy)...); err != nil {
		return "", err
	}
	s.says(s.ada, "and Bo know Cy's address, and nothing of each other")
	return "three processes, three folders, three identities", nil
}

// address returns how to reach the node of who, to hand to others.
func (s *stage) address(ctx context.Context, who *actor) []string {
	st, err := api.Call(ctx, who.api.Status, &api.StatusRequest{})
	if err != nil {
		return nil
	}
	return st.BootstrapAddrs
}

func (s *stage) actInvite(ctx context.Context) (string, error) {
	link, err := api.Call(ctx, s.ada.api.CreateInvite, &api.CreateInviteRequest{})
	if err != nil {
		return "", err
	}
	s.says(s.ada, "starling invite → %s…, and hands it to Bo", link.Link[:min(24, len(link.Link))])
	if _, err := api.Call(ctx, s.bo.api.AddContact, &api.AddContactRequest{Link: link.Link, As: "Ada"}); err != nil {
		return "", err
	}
	s.says(s.bo, "starling contact add LINK --as Ada")
	if err := s.until(ctx, "Bo to find Ada", func() (bool, error) {
		c, err := s.contact(ctx, s.bo, s.ada.account)
		return c != nil && c.State == "accepted", err
	}); err != nil {
		return "", err
	}
	if err := s.until(ctx, "Ada to know Bo", func() (bool, error) {
		c, err := s.contact(ctx, s.ada, s.bo.account)
		return c != nil && c.State == "accepted", err
	}); err != nil {
		return "", err
	}
	if _, err := api.Call(ctx, s.ada.api.RenameContact, &api.RenameContactRequest{Contact: s.bo.account, Name: "Bo"}); err != nil {
		return "", err
	}
	return fmt.Sprintf("Ada and Bo are contacts; %q introduced himself inside the encrypted session", s.bo.profile), nil
}

// contact returns the contact of who with an account, or nil.
func (s *stage) contact(ctx context.Context, who *actor, account string) (*api.Contact, error) {
	r, err := api.Call(ctx, who.api.ListContacts, &api.ListContactsRequest{})
	if err != nil {
		return nil, err
	}
	for _, c := range r.Contacts {
		if c.Account == account {
			return c, nil
		}
	}
	return nil, nil
}

// send sends one message, and remembers that it was said.
func (s *stage) send(ctx context.Context, from, to *actor, text string) (*api.Message, error) {
	m, err := api.Call(ctx, from.api.Send, &api.SendRequest{To: to.name, Text: text})
	if err != nil {
		return nil, fmt.Errorf("%s sends to %s: %w", from.name, to.name, err)
	}
	s.texts = append(s.texts, text)
	return m, nil
}

// deliver sends one message and waits until the other side acknowledged it.
func (s *stage) deliver(ctx context.Context, from, to *actor, text string) error {
	m, err := s.send(ctx, from, to, text)
	if err != nil {
		return err
	}
	return s.arrive(ctx, from, m)
}

// arrive waits until a message of from was acknowledged.
func (s *stage) arrive(ctx context.Context, from *actor, m *api.Message) error {
	last, err := s.await(ctx, from.api, m, "delivered", actLimit)
	if ctx.Err() != nil {
		return fmt.Errorf("waited for %s's message to be delivered", from.name)
	}
	if err == nil && rank[last.State] < rank["delivered"] {
		err = fmt.Errorf("%s's message is %s: %s", from.name, last.State, last.Reason)
	}
	return err
}

func (s *stage) actFirst(ctx context.Context) (string, error) {
	const text = "Hello Ada, the starlings are back in the reeds."
	begin := time.Now()
	if err := s.deliver(ctx, s.bo, s.ada, text); err != nil {
		return "", err
	}
	took := time.Since(begin)
	s.says(s.bo, "%s  %s", text, s.out.paint(green, "✓✓"))
	got, err := readHistory(ctx, s.ada.api, "Bo", 10)
	if err != nil {
		return "", err
	}
	if len(got) == 0 || got[len(got)-1].Text != text || got[len(got)-1].From != s.bo.account {
		return "", errors.New("the end of Ada's history is not Bo's message")
	}
	return fmt.Sprintf("X25519 and ML-KEM-1024 agreed on a key; committed at Ada's and acknowledged in %d ms", took.Milliseconds()), nil
}

func (s *stage) actTalk(ctx context.Context) (string, error) {
	const rounds = 20
	begin := time.Now()
	for i := 1; i <= rounds; i++ {
		ping, pong := fmt.Sprintf("ping %d of %d from Ada", i, rounds), fmt.Sprintf("pong %d of %d from Bo", i, rounds)
		if err := s.deliver(ctx, s.ada, s.bo, ping); err != nil {
			return "", err
		}
		if err := s.deliver(ctx, s.bo, s.ada, pong); err != nil {
			return "", err
		}
		if i == 1 {
			s.says(s.ada, "%s  %s", ping, s.out.paint(green, "✓✓"))
			s.says(s.bo, "%s  %s", pong, s.out.paint(green, "✓✓"))
			s.tell("   …")
		}
	}
	each := time.Since(begin) / (2 * rounds)
	return fmt.Sprintf("%d messages, %.1f ms each from send to acknowledgement, on disk at both ends", 2*rounds, each.Seconds()*1000), nil
}

func (s *stage) actCrash(ctx context.Context) (string, error) {
	const before, after = 10, 10
	var last *api.Message
	var err error
	for i := range before {
		if last, err = s.send(ctx, s.ada, s.bo, fmt.Sprintf("before the lights went out, %d", i+1)); err != nil {
			return "", err
		}
	}
	if err := s.bo.kill(); err != nil {
		return "", err
	}
	s.says(s.bo, "%s", s.out.paint(red, "kill -9"))
	for i := range after {
		if last, err = s.send(ctx, s.ada, s.bo, fmt.Sprintf("while Bo was in the dark, %d", i+1)); err != nil {
			return "", err
		}
	}
	if last.State != "queued" {
		return "", fmt.Errorf("a message of Ada's to a dead node is %s", last.State)
	}
	s.says(s.ada, "goes on writing: %s", s.out.paint(dim, "… queued"))
	if err := s.start(ctx, s.bo, s.address(ctx, s.cy)...); err != nil {
		return "", err
	}
	s.says(s.bo, "is back, on another port")
	if err := s.arrive(ctx, s.ada, last); err != nil {
		return "", err
	}
	if err := s.deliver(ctx, s.bo, s.ada, "I am back, and I have read all of it."); err != nil {
		return "", err
	}
	s.says(s.bo, "I am back, and I have read all of it.  %s", s.out.paint(green, "✓✓"))
	return fmt.Sprintf("%d messages survived the crash; nobody pressed a button", before+after), nil
}

func (s *stage) actRelays(ctx context.Context) (string, error) {
	net := s.address(ctx, s.cy)
	for _, v := range []*volunteer{s.rita, s.sam} {
		if err := s.open(v, net...); err != nil {
			return "", err
		}
	}
	s.does("Rita", "and Sam start a relay each, and give out its link: %s…", s.rita.link[:min(24, len(s.rita.link))])
	for _, who := range []*actor{s.ada, s.bo} {
		for _, v := range []*volunteer{s.rita, s.sam} {
			if _, err := api.Call(ctx, who.api.AddRelay, &api.AddRelayRequest{Link: v.link}); err != nil {
				return "", err
			}
		}
	}
	s.says(s.ada, "and Bo: starling relay add LINK, twice")
	for _, who := range []struct {
		*actor
		contact string
	}{{s.ada, "Bo"}, {s.bo, "Ada"}} {
		if err := s.until(ctx, who.contact+"'s mailboxes to be known to "+who.name, func() (bool, error) {
			r, err := api.Call(ctx, who.api.Doctor, &api.DoctorRequest{Contact: who.contact})
			return slices.ContainsFunc(r.GetFindings(), func(f *api.Finding) bool {
				return f.Check == "relays" && strings.Contains(f.Text, " takes messages at 2 relays")
			}), err
		}); err != nil {
			return "", err
		}
	}
	return "each told the other, inside their session, of a mailbox at both that is for nobody else", nil
}

// asleep plays what is written while Bo is away, and read while Ada is: then
// happens in between. It returns how it was stored.
func (s *stage) asleep(ctx context.Context, texts []string, then func() error) (string, error) {
	if err := s.bo.stop(ctx); err != nil {
		return "", err
	}
	s.says(s.bo, "closes the laptop")
	var last *api.Message
	for _, text := range texts {
		var err error
		if last, err = s.send(ctx, s.ada, s.bo, text); err != nil {
			return "", err
		}
		if err := s.until(ctx, "two relays to have Ada's message", func() (bool, error) {
			last, err = api.Call(ctx, s.ada.api.WaitMessage, &api.WaitMessageRequest{Id: last.Id, State: "stored", Timeout: 1000})
			return err == nil && last.State == "stored" && last.Copies == 2, err
		}); err != nil {
			return "", err
		}
		s.says(s.ada, "%s  %s", text, s.out.paint(dim, "✓ stored "+last.Reason))
	}
	if err := s.ada.stop(ctx); err != nil {
		return "", err
	}
	s.says(s.ada, "turns the computer off")
	if then != nil {
		if err := then(); err != nil {
			return "", err
		}
	}
	if err := s.start(ctx, s.bo, s.address(ctx, s.cy)...); err != nil {
		return "", err
	}
	if err := s.until(ctx, "Bo to have what Ada wrote", func() (bool, error) {
		ms, err := readHistory(ctx, s.bo.api, "Ada", len(texts))
		var got []string
		for _, m := range ms {
			got = append(got, m.Text)
		}
		return slices.Equal(got, texts), err
	}); err != nil {
		return "", err
	}
	s.says(s.bo, "wakes, with Ada away, and has it all")
	if err := s.start(ctx, s.ada, s.address(ctx, s.cy)...); err != nil {
		return "", err
	}
	return last.Reason, s.arrive(ctx, s.ada, last)
}

func (s *stage) actAway(ctx context.Context) (string, error) {
	stored, err := s.asleep(ctx, []string{"Sleep well. I leave the key with the neighbours.", "And feed the cat before noon, please."}, nil)
	if err != nil {
		return "", err
	}
	s.says(s.ada, "is back, and sees that it arrived  %s", s.out.paint(green, "✓✓"))
	return "it waited " + stored + "; Bo read it while Ada's node was down", nil
}

func (s *stage) actRelayDies(ctx context.Context) (string, error) {
	_, err := s.asleep(ctx, []string{"The train is late again, start without me.", "Nine o'clock at the old mill, then."}, func() error {
		s.does("Sam", "%s, and no start again", s.out.paint(red, "kill -9"))
		return s.sam.cut()
	})
	if err != nil {
		return "", err
	}
	return "every message is at two relays, so Rita's was enough", nil
}

func (s *stage) actOnce(ctx context.Context) (string, error) {
	for _, who := range []struct {
		*actor
		chat string
	}{{s.ada, "Bo"}, {s.bo, "Ada"}} {
		var ms []*api.Message
		err := s.until(ctx, who.name+"'s messages to be settled", func() (bool, error) {
			var err error
			ms, err = readHistory(ctx, who.api, who.chat, 10*len(s.texts))
			ms = slices.DeleteFunc(ms, func(m *api.Message) bool { return m.Kind == "notice" })
			return !slices.ContainsFunc(ms, func(m *api.Message) bool { return m.State == "queued" }), err
		})
		if err != nil {
			return "", err
		}
		var texts []string
		for _, m := range ms {
			texts = append(texts, m.Text)
		}
		if !slices.Equal(texts, s.texts) {
			return "", fmt.Errorf("%s's history has %d messages where %d were sent, or another order", who.name, len(texts), len(s.texts))
		}
		s.says(who.actor, "has %d messages, as sent", len(texts))
	}
	return fmt.Sprintf("%d messages sent, %d kept at each end", len(s.texts), len(s.texts)), nil
}

func (s *stage) actImpostor(ctx context.Context) (string, error) {
	const text = "For Bo's eyes only: the key is under the third stone."
	link, err := api.Call(ctx, s.cy.api.CreateInvite, &api.CreateInviteRequest{})
	if err != nil {
		return "", err
	}
	s.says(s.cy, "sends Ada a link: \"I am Bo, this is my new phone\"")
	out, code, err := s.run(ctx, s.ada, "contact", "add", link.Link, "--as", "Bo")
	if err != nil || code != exitIdentity {
		return "", fmt.Errorf("contact add exited %d, not %d: %s %v", code, exitIdentity, out, err)
	}
	s.says(s.ada, "starling contact add LINK --as Bo → exit %d: %s", code, firstLine(out))
	out, code, err = s.run(ctx, s.ada, "send", "Bo", text)
	if err != nil || code != exitIdentity {
		return "", fmt.Errorf("send exited %d, not %d: %s %v", code, exitIdentity, out, err)
	}
	s.says(s.ada, "starling send Bo … → exit %d: nothing is sent", code)
	for _, who := range []*actor{s.ada, s.bo, s.cy} {
		if err := s.unheard(ctx, who, text); err != nil {
			return "", err
		}
	}
	if _, err := api.Call(ctx, s.ada.api.RejectContact, &api.RejectContactRequest{Contact: "Bo"}); err != nil {
		return "", err
	}
	s.says(s.ada, "asks Bo in person, and rejects the new key")
	if err := s.deliver(ctx, s.ada, s.bo, "Somebody tried to be you. It was not you."); err != nil {
		return "", err
	}
	s.says(s.ada, "Somebody tried to be you. It was not you.  %s", s.out.paint(green, "✓✓"))
	s.texts = append(s.texts, text) // nobody may have it on disk either
	return "the false Bo got nothing, and learned nothing about Ada", nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return strings.TrimPrefix(line, "starling: ")
}

// unheard fails if a text is in any conversation of who.
func (s *stage) unheard(ctx context.Context, who *actor, text string) error {
	for _, requests := range []bool{false, true} {
		r, err := api.Call(ctx, who.api.ListContacts, &api.ListContactsRequest{Requests: requests})
		if err != nil {
			return err
		}
		for _, c := range r.Contacts {
			if who == s.cy {
				return fmt.Errorf("%s is known to Cy", c.Name)
			}
			ms, err := readHistory(ctx, who.api, c.Account, 1000)
			if err != nil {
				return err
			}
			for _, m := range ms {
				if m.Text == text {
					return fmt.Errorf("%s has the message that was not to be sent", who.name)
				}
			}
		}
	}
	return nil
}

func (s *stage) actNobody(ctx context.Context) (string, error) {
	for _, who := range []*actor{s.ada, s.bo} {
		if err := s.until(ctx, who.name+"'s record to be in the DHT", func() (bool, error) {
			st, err := api.Call(ctx, who.api.Status, &api.StatusRequest{})
			return err == nil && st.Published != 0, err
		}); err != nil {
			return "", err
		}
	}
	s.says(s.cy, "keeps the records by which Ada and Bo are found")
	var secrets, peers [][]byte
	for _, who := range []*actor{s.ada, s.bo} {
		key, err := keyOf(who.account)
		if err != nil {
			return "", err
		}
		pub, err := who.peer.ExtractPublicKey()
		if err != nil {
			return "", err
		}
		transport, err := pub.Raw()
		if err != nil {
			return "", err
		}
		peers = append(peers, []byte(who.peer.String()), transport, []byte(hex.EncodeToString(transport)))
		secrets = append(secrets, []byte(who.profile), []byte(who.account), key, []byte(hex.EncodeToString(key)))
	}
	for _, text := range s.texts {
		secrets = append(secrets, []byte(text))
	}
	for _, who := range []*actor{s.ada, s.bo, s.cy} {
		if err := who.stop(ctx); err != nil {
			return "", err
		}
	}
	switch code, err := s.rita.finish(ctx); {
	case err != nil:
		return "", fmt.Errorf("waiting for Rita's relay to end: %w", err)
	case code != 0:
		return "", fmt.Errorf("the relay of %s exited %d", s.rita.name, code)
	}
	s.does("Rita", "and Sam look into every file of their relays")
	files, size, found, err := search(s.cy.home, secrets)
	secrets = append(secrets, peers...) // Cy is asked by nodes, and has to know them
	for _, v := range []*volunteer{s.rita, s.sam} {
		if err != nil || found != "" {
			break
		}
		var f, n int
		f, n, found, err = search(v.home, secrets)
		files, size = files+f, size+n
	}
	if err != nil {
		return "", err
	}
	if found != "" {
		return "", fmt.Errorf("%s holds a secret of Ada or Bo", found)
	}
	// The search must be able to find what it looks for.
	control := filepath.Join(s.dir, "control")
	if err := os.Mkdir(control, 0o700); err != nil {
		return "", err
	}
	for i, secret := range secrets {
		if err := os.WriteFile(filepath.Join(control, "planted"), append([]byte("\x00noise"), secret...), 0o600); err != nil {
			return "", err
		}
		if _, _, found, err := search(control, secrets[i:i+1]); err != nil || found == "" {
			return "", fmt.Errorf("the search does not find what was planted for it: %w", err)
		}
	}
	return fmt.Sprintf("searched %d files, %d KiB, for %d secrets of Ada and Bo: none; planted ones were found", files, size>>10, len(secrets)), nil
}

// keyOf returns the bytes of the account key that an ID is made of: "st1",
// then key and checksum in base32.
func keyOf(id string) ([]byte, error) {
	b, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ToUpper(strings.TrimPrefix(id, "st1")))
	if err != nil || len(b) < 32 {
		return nil, fmt.Errorf("%s is not an account ID", id)
	}
	return b[:32], nil
}

// search looks for the secrets in the names and the raw content of all files
// of a folder, and returns the name of the first that has one.
func search(dir string, secrets [][]byte) (files, size int, found string, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files, size = files+1, size+len(b)
		// The store's tables are long before they are full. A secret may end in a
		// few zeros itself.
		end := min(len(bytes.TrimRight(b, "\x00"))+64, len(b))
		b = append(b[:end:end], e.Name()...)
		for _, secret := range secrets {
			if bytes.Contains(b, secret) {
				found = path
			}
		}
		return nil
	})
	return files, size, found, err
}
