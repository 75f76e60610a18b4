package api

import (
	"context"
	"errors"
	"os"
	"time"

	"connectrpc.com/connect"

	"starling/node"
)

const (
	lastWrite   = time.Second      // for the last words to a reader when the profile is locked
	heartbeat   = 15 * time.Second // between two words on an event stream
	eventBuffer = 256              // events between the journal and a reader
	maxWait     = 24 * time.Hour   // the longest WaitMessage

	defaultHistory = 50
	maxHistory     = 1000
)

// A handler implements the service on a server.
type handler struct {
	s   *Server
	run context.Context // of Run
}

// do makes one call of the backend: it fails in the wrong state, and its
// context ends when the profile is locked.
func do[T any](ctx context.Context, h *handler, f func(context.Context, Backend) (*T, error)) (*connect.Response[T], error) {
	sess, err := h.s.enter()
	if err != nil {
		return nil, encodeError(err)
	}
	defer sess.leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(sess.ctx, cancel)()
	v, err := f(ctx, sess.b)
	if err != nil {
		return nil, h.fail(sess, err)
	}
	return connect.NewResponse(v), nil
}

// fail encodes an error of a call: one caused by the end of the session says
// so.
func (h *handler) fail(sess *session, err error) error {
	if sess.ctx.Err() != nil {
		h.s.mu.Lock()
		if h.s.state != StateRunning {
			err = h.s.stateErrorLocked()
		}
		h.s.mu.Unlock()
	}
	out := encodeError(err)
	if connect.CodeOf(out) == connect.CodeInternal {
		h.s.log.Error("call failed", "err", err)
	}
	return out
}

// none adapts a backend's method that returns an error alone.
func none[T any](err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return new(T), nil
}

// one adapts a backend's method that returns a value.
func one[A, T any](f func(A) *T, v A, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return f(v), nil
}

func (h *handler) Status(context.Context, *connect.Request[StatusRequest]) (*connect.Response[StatusResponse], error) {
	r := &StatusResponse{
		Version: h.s.cfg.Version,
		Api:     Version,
		Pid:     int64(os.Getpid()),
		Home:    valid(h.s.cfg.Home),
	}
	h.s.mu.Lock()
	r.State = h.s.state
	var sess *session
	if r.State == StateRunning {
		sess = h.s.cur
		sess.calls.Add(1)
	}
	h.s.mu.Unlock()
	if sess != nil {
		defer sess.leave()
		statusOf(sess.b.Status(), r)
	}
	return connect.NewResponse(r), nil
}

func (h *handler) Unlock(ctx context.Context, r *connect.Request[UnlockRequest]) (*connect.Response[UnlockResponse], error) {
	defer clear(r.Msg.Passphrase)
	if err := h.s.unlock(ctx, h.run, r.Msg.Passphrase); err != nil {
		return nil, encodeError(err)
	}
	return connect.NewResponse(&UnlockResponse{}), nil
}

func (h *handler) Lock(ctx context.Context, _ *connect.Request[LockRequest]) (*connect.Response[LockResponse], error) {
	if err := h.s.lock(ctx); err != nil {
		return nil, encodeError(err)
	}
	return connect.NewResponse(&LockResponse{}), nil
}

func (h *handler) Stop(context.Context, *connect.Request[StopRequest]) (*connect.Response[StopResponse], error) {
	h.s.Stop()
	return connect.NewResponse(&StopResponse{}), nil
}

func (h *handler) ChangePassphrase(ctx context.Context, r *connect.Request[ChangePassphraseRequest]) (*connect.Response[ChangePassphraseResponse], error) {
	defer clear(r.Msg.Old)
	defer clear(r.Msg.New)
	err := h.s.transition(ctx, func(string) error {
		return h.s.cfg.ChangePassphrase(h.run, r.Msg.Old, r.Msg.New)
	})
	if err != nil {
		return nil, encodeError(err)
	}
	return connect.NewResponse(&ChangePassphraseResponse{}), nil
}

func (h *handler) CreateInvite(ctx context.Context, r *connect.Request[CreateInviteRequest]) (*connect.Response[Invite], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*Invite, error) {
		v, err := b.CreateInvite(ctx, r.Msg.Public)
		return one(inviteOf, v, err)
	})
}

func (h *handler) ListInvites(ctx context.Context, _ *connect.Request[ListInvitesRequest]) (*connect.Response[ListInvitesResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*ListInvitesResponse, error) {
		v, err := b.Invites(ctx)
		return one(func(v []node.Invite) *ListInvitesResponse {
			return &ListInvitesResponse{Invites: each(v, inviteOf)}
		}, v, err)
	})
}

func (h *handler) RevokeInvite(ctx context.Context, r *connect.Request[RevokeInviteRequest]) (*connect.Response[RevokeInviteResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*RevokeInviteResponse, error) {
		return none[RevokeInviteResponse](b.RevokeInvite(ctx, r.Msg.Id))
	})
}

func (h *handler) RotateInvites(ctx context.Context, _ *connect.Request[RotateInvitesRequest]) (*connect.Response[RotateInvitesResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*RotateInvitesResponse, error) {
		return none[RotateInvitesResponse](b.RotateInvites(ctx))
	})
}

func (h *handler) AddContact(ctx context.Context, r *connect.Request[AddContactRequest]) (*connect.Response[Contact], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*Contact, error) {
		v, err := b.AddContact(ctx, r.Msg.Link, r.Msg.As)
		return one(contactOf, v, err)
	})
}

func (h *handler) ListContacts(ctx context.Context, r *connect.Request[ListContactsRequest]) (*connect.Response[ListContactsResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*ListContactsResponse, error) {
		v, err := b.Contacts(ctx, r.Msg.Requests)
		return one(func(v []node.Contact) *ListContactsResponse {
			return &ListContactsResponse{Contacts: each(v, contactOf)}
		}, v, err)
	})
}

func (h *handler) AcceptContact(ctx context.Context, r *connect.Request[AcceptContactRequest]) (*connect.Response[Contact], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*Contact, error) {
		v, err := b.AcceptContact(ctx, r.Msg.Contact, r.Msg.As)
		return one(contactOf, v, err)
	})
}

func (h *handler) RejectContact(ctx context.Context, r *connect.Request[RejectContactRequest]) (*connect.Response[RejectContactResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*RejectContactResponse, error) {
		return none[RejectContactResponse](b.RejectContact(ctx, r.Msg.Contact))
	})
}

func (h *handler) RenameContact(ctx context.Context, r *connect.Request[RenameContactRequest]) (*connect.Response[Contact], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*Contact, error) {
		v, err := b.RenameContact(ctx, r.Msg.Contact, r.Msg.Name)
		return one(contactOf, v, err)
	})
}

func (h *handler) BlockContact(ctx context.Context, r *connect.Request[BlockContactRequest]) (*connect.Response[Contact], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*Contact, error) {
		v, err := b.BlockContact(ctx, r.Msg.Contact)
		return one(contactOf, v, err)
	})
}

func (h *handler) UnblockContact(ctx context.Context, r *connect.Request[UnblockContactRequest]) (*connect.Response[Contact], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*Contact, error) {
		v, err := b.UnblockContact(ctx, r.Msg.Contact)
		return one(contactOf, v, err)
	})
}

func (h *handler) RemoveContact(ctx context.Context, r *connect.Request[RemoveContactRequest]) (*connect.Response[RemoveContactResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*RemoveContactResponse, error) {
		return none[RemoveContactResponse](b.RemoveContact(ctx, r.Msg.Contact))
	})
}

func (h *handler) TrustContact(ctx context.Context, r *connect.Request[TrustContactRequest]) (*connect.Response[Contact], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*Contact, error) {
		v, err := b.TrustContact(ctx, r.Msg.Contact)
		return one(contactOf, v, err)
	})
}

func (h *handler) Send(ctx context.Context, r *connect.Request[SendRequest]) (*connect.Response[Message], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*Message, error) {
		if n := len(r.Msg.Id); n != 0 && n != 16 {
			return nil, &node.Error{Kind: node.KindInvalid, Msg: "a message ID has 16 bytes"}
		}
		v, err := b.Send(ctx, r.Msg.To, r.Msg.Text, r.Msg.Id)
		return one(messageOf, v, err)
	})
}

func (h *handler) WaitMessage(ctx context.Context, r *connect.Request[WaitMessageRequest]) (*connect.Response[Message], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*Message, error) {
		if r.Msg.Timeout < 0 || r.Msg.Timeout > maxWait.Milliseconds() {
			return nil, &node.Error{Kind: node.KindInvalid, Msg: "a wait takes from 0 to 24 hours"}
		}
		v, err := b.WaitMessage(ctx, r.Msg.Id, r.Msg.State, time.Duration(r.Msg.Timeout)*time.Millisecond)
		return one(messageOf, v, err)
	})
}

func (h *handler) History(ctx context.Context, r *connect.Request[HistoryRequest]) (*connect.Response[HistoryResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*HistoryResponse, error) {
		limit := int(min(r.Msg.Limit, maxHistory))
		if limit == 0 {
			limit = defaultHistory
		}
		v, err := b.History(ctx, r.Msg.Chat, limit, r.Msg.Before)
		return one(func(v []node.Message) *HistoryResponse {
			return &HistoryResponse{Messages: each(v, messageOf)}
		}, v, err)
	})
}

func (h *handler) MarkRead(ctx context.Context, r *connect.Request[MarkReadRequest]) (*connect.Response[MarkReadResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*MarkReadResponse, error) {
		return none[MarkReadResponse](b.MarkRead(ctx, r.Msg.Chat, r.Msg.Id))
	})
}

func (h *handler) AddBootstrap(ctx context.Context, r *connect.Request[AddBootstrapRequest]) (*connect.Response[AddBootstrapResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*AddBootstrapResponse, error) {
		return none[AddBootstrapResponse](b.AddBootstrap(ctx, r.Msg.Addr))
	})
}

func (h *handler) ListBootstrap(ctx context.Context, _ *connect.Request[ListBootstrapRequest]) (*connect.Response[ListBootstrapResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*ListBootstrapResponse, error) {
		v, err := b.ListBootstrap(ctx)
		return one(func(v []string) *ListBootstrapResponse {
			return &ListBootstrapResponse{Addrs: validAll(v)}
		}, v, err)
	})
}

func (h *handler) RemoveBootstrap(ctx context.Context, r *connect.Request[RemoveBootstrapRequest]) (*connect.Response[RemoveBootstrapResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*RemoveBootstrapResponse, error) {
		return none[RemoveBootstrapResponse](b.RemoveBootstrap(ctx, r.Msg.Addr))
	})
}

func (h *handler) AddRelay(ctx context.Context, r *connect.Request[AddRelayRequest]) (*connect.Response[Relay], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*Relay, error) {
		v, err := b.AddRelay(ctx, r.Msg.Link)
		return one(relayOf, v, err)
	})
}

func (h *handler) ListRelays(ctx context.Context, _ *connect.Request[ListRelaysRequest]) (*connect.Response[ListRelaysResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*ListRelaysResponse, error) {
		v, err := b.Relays(ctx)
		return one(func(v []node.Relay) *ListRelaysResponse {
			return &ListRelaysResponse{Relays: each(v, relayOf)}
		}, v, err)
	})
}

func (h *handler) RemoveRelay(ctx context.Context, r *connect.Request[RemoveRelayRequest]) (*connect.Response[RemoveRelayResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*RemoveRelayResponse, error) {
		return none[RemoveRelayResponse](b.RemoveRelay(ctx, r.Msg.Relay))
	})
}

func (h *handler) Doctor(ctx context.Context, r *connect.Request[DoctorRequest]) (*connect.Response[DoctorResponse], error) {
	return do(ctx, h, func(ctx context.Context, b Backend) (*DoctorResponse, error) {
		v, err := b.Doctor(ctx, r.Msg.Contact)
		return one(func(v []node.Finding) *DoctorResponse {
			return &DoctorResponse{Findings: each(v, findingOf)}
		}, v, err)
	})
}

// errSlow ends a read of the journal whose reader does not keep up.
var errSlow = errors.New("api: the reader of events is slow")

// Events streams the journal. The journal is read into a bounded buffer and
// never waits for the client: when the buffer is full that read ends, the
// buffer drains at the client's pace, and the next read continues from where
// the client is. A following stream says something at once and every 15 s.
func (h *handler) Events(ctx context.Context, r *connect.Request[EventsRequest], stream *connect.ServerStream[Event]) error {
	sess, err := h.s.enter()
	if err != nil {
		return encodeError(err)
	}
	defer sess.leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(sess.ctx, cancel)()

	rc := controller(ctx)
	send := func(e *Event) error {
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return stream.Send(e)
	}
	// A client that reads nothing must not hold up Lock.
	defer context.AfterFunc(ctx, func() { _ = rc.SetWriteDeadline(time.Now().Add(lastWrite)) })()
	beats := func() error { return send(&Event{Time: millis(time.Now())}) }
	if r.Msg.Follow {
		if err := beats(); err != nil {
			return nil // the client is gone
		}
	}
	since := r.Msg.Since
	for {
		n, err := h.feed(ctx, sess.b, since, r.Msg.Follow, send, beats)
		since = n
		switch {
		case errors.Is(err, errSlow):
		case errors.Is(err, errGone) && sess.ctx.Err() == nil:
			return nil
		case err != nil || r.Msg.Follow:
			if err == nil || errors.Is(err, errGone) {
				err = context.Canceled
			}
			return h.fail(sess, err)
		default:
			return nil
		}
	}
}

// errGone ends a feed whose client cannot be written to.
var errGone = errors.New("api: the reader of events is gone")

// feed reads the journal once and sends what it read; it returns the last
// event sent and why it ended.
func (h *handler) feed(ctx context.Context, b Backend, since uint64, follow bool, send func(*Event) error, beats func() error) (uint64, error) {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan *Event, eventBuffer) // sent and closed by the goroutine below; full: it ends
	var err error                            // written before events is closed
	go func() {
		defer close(events)
		err = b.Events(ctx, since, follow, func(e node.Event) error {
			select {
			case events <- eventOf(e):
				return nil
			default:
				return errSlow
			}
		})
	}()
	defer func() {
		cancel()
		for range events { // until the goroutine has ended
		}
	}()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return since, err
			}
			if send(e) != nil {
				return since, errGone
			}
			since = e.Seq
			beat.Reset(heartbeat)
		case <-beat.C:
			if follow && beats() != nil {
				return since, errGone
			}
		}
	}
}
