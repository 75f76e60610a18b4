// Package api is the local interface of a daemon: the schema, its server and
// its client. Command line, terminal chat and web page see a node through it
// and in no other way.
//
// It is Connect RPC over a unix socket, HOME/run/api.sock. The folder is 0700
// and the socket 0600, and the peer's user is checked on every connection; on
// systems that cannot tell the peer's user, a token file stands in. Behind
// that, every request passes a guard made for hostile web pages: exact Host, no
// browser headers, POST, exact content types, bounded bodies and times.
//
// Text that came from peers is passed on as they wrote it, made valid UTF-8 and
// no more: whoever shows it escapes it.
package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"

	"starling/node"
)

// Version is the version of the API. Methods and fields are added without
// raising it; a client refuses a daemon of another one.
const Version = 1

// The states of a daemon, as Status spells them.
const (
	StateStarting  = "starting"  // the profile is being opened for the first time
	StateLocked    = "locked"    // the profile waits for Unlock
	StateUnlocking = "unlocking" // Unlock is opening the profile
	StateRunning   = "running"
	StateStopping  = "stopping"
)

// How a contact is connected, as Status and Contact spell it.
const (
	PathDirect  = string(node.PathDirect)
	PathCircuit = string(node.PathCircuit)
)

// Errors that a client tells apart before and beside those of the node, which
// are [*node.Error].
var (
	// ErrNotRunning means that no daemon serves the profile: start one.
	ErrNotRunning = errors.New("the daemon is not running")

	// ErrStale means that a daemon left its socket behind when it died: start
	// one, it will clean up.
	ErrStale = errors.New("the daemon is gone and left its socket behind")

	// ErrPermission means that the profile belongs to another user.
	ErrPermission = errors.New("no permission to talk to the daemon")

	// ErrStarting means that the daemon is opening the profile: try again soon.
	ErrStarting = errors.New("the daemon is starting")

	// ErrLocked means that the profile is locked. [Config.Open] returns it when
	// it was given no passphrase and needs one; a client asks its user for it
	// and calls Unlock.
	ErrLocked = errors.New("the profile is locked")

	// ErrPassphrase means that the passphrase was wrong. [Config.Open] and
	// [Config.ChangePassphrase] return it.
	ErrPassphrase = errors.New("wrong passphrase")

	// ErrVersion means that client and daemon do not speak the same API:
	// restart the daemon with the program that is installed now.
	ErrVersion = errors.New("the daemon is of another version")

	// ErrRunning is what [Server.Run] returns when another daemon serves the
	// profile.
	ErrRunning = errors.New("another daemon serves this profile")
)

// A Backend is an open node, as the server needs it. *node.Node is one. All
// methods are called concurrently. Their errors are [*node.Error] where the
// user can do something about it.
type Backend interface {
	Status() node.Status

	CreateInvite(ctx context.Context, public bool) (node.Invite, error)
	Invites(ctx context.Context) ([]node.Invite, error)
	RevokeInvite(ctx context.Context, id string) error
	RotateInvites(ctx context.Context) error

	AddContact(ctx context.Context, link, as string) (node.Contact, error)
	Contacts(ctx context.Context, requests bool) ([]node.Contact, error)
	AcceptContact(ctx context.Context, who, as string) (node.Contact, error)
	RejectContact(ctx context.Context, who string) error
	RenameContact(ctx context.Context, who, name string) (node.Contact, error)
	BlockContact(ctx context.Context, who string) (node.Contact, error)
	UnblockContact(ctx context.Context, who string) (node.Contact, error)
	RemoveContact(ctx context.Context, who string) error
	TrustContact(ctx context.Context, who string) (node.Contact, error)

	// Send commits a message and returns it. An id of 16 bytes makes it
	// idempotent; an empty one stands for a new one.
	Send(ctx context.Context, to, text string, id []byte) (node.Message, error)
	// WaitMessage returns the message as it is when it reached the state or
	// timeout is over; zero is the node's default.
	WaitMessage(ctx context.Context, id, state string, timeout time.Duration) (node.Message, error)
	// History returns the newest limit messages before the given one, or before
	// now, oldest first.
	History(ctx context.Context, chat string, limit int, before string) ([]node.Message, error)
	MarkRead(ctx context.Context, chat, id string) error

	// Events calls fn for each event after since, in order. At the newest it
	// returns nil, or with follow waits for more until ctx ends. An error of fn
	// ends it and is returned. fn does not block.
	Events(ctx context.Context, since uint64, follow bool, fn func(node.Event) error) error

	AddBootstrap(ctx context.Context, addr string) error
	ListBootstrap(ctx context.Context) ([]string, error)
	RemoveBootstrap(ctx context.Context, addr string) error

	AddRelay(ctx context.Context, link string) (node.Relay, error)
	Relays(ctx context.Context) ([]node.Relay, error)
	RemoveRelay(ctx context.Context, who string) error

	Doctor(ctx context.Context, contact string) ([]node.Finding, error)

	// Close ends the node and returns when all of it has ended.
	Close() error
}

// Response headers of an error: its kind, and what to do about it with every
// byte outside of printable ASCII percent-encoded.
const (
	headerKind = "Starling-Error"
	headerHint = "Starling-Hint"
)

// wireKind is how the kinds that are not the node's travel.
var wireKinds = map[string]struct {
	err  error
	code connect.Code
}{
	"locked":     {ErrLocked, connect.CodeFailedPrecondition},
	"starting":   {ErrStarting, connect.CodeUnavailable},
	"stopping":   {ErrNotRunning, connect.CodeUnavailable},
	"passphrase": {ErrPassphrase, connect.CodeUnauthenticated},
	"version":    {ErrVersion, connect.CodeFailedPrecondition},
}

// codes of the node's kinds. Programs read the kind; the code serves generic
// clients.
var codes = map[node.Kind]connect.Code{
	node.KindInvalid:     connect.CodeInvalidArgument,
	node.KindNotFound:    connect.CodeNotFound,
	node.KindAmbiguous:   connect.CodeInvalidArgument,
	node.KindExists:      connect.CodeAlreadyExists,
	node.KindKeyChanged:  connect.CodeFailedPrecondition,
	node.KindHeld:        connect.CodeFailedPrecondition,
	node.KindBlocked:     connect.CodeFailedPrecondition,
	node.KindUnreachable: connect.CodeUnavailable,
	node.KindInternal:    connect.CodeInternal,
}

// encodeError turns an error of the backend or of the state into one that
// travels.
func encodeError(err error) error {
	if err == nil {
		return nil
	}
	if ne, ok := errors.AsType[*node.Error](err); ok {
		code, known := codes[ne.Kind]
		if !known {
			code = connect.CodeUnknown
		}
		return newError(code, ne.Kind.String(), valid(ne.Msg), ne.Hint)
	}
	for kind, w := range wireKinds {
		if errors.Is(err, w.err) {
			return newError(w.code, kind, valid(err.Error()), "")
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, err)
	}
	return newError(connect.CodeInternal, node.KindInternal.String(), valid(err.Error()), "")
}

func newError(code connect.Code, kind, msg, hint string) *connect.Error {
	e := connect.NewError(code, errors.New(msg))
	e.Meta().Set(headerKind, kind)
	if hint != "" {
		e.Meta().Set(headerHint, url.PathEscape(valid(hint)))
	}
	return e
}

// DecodeError turns an error of a call into what it was at the daemon:
// [*node.Error], or one that wraps one of this package's errors. An end of the
// connection becomes [ErrNotRunning]; the context's errors stay themselves.
// Other errors are returned as they are. It does nothing to an error it made.
func DecodeError(err error) error {
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err
	}
	return decodeError(ce)
}

func decodeError(ce *connect.Error) error {
	kind := ce.Meta().Get(headerKind)
	if w, ok := wireKinds[kind]; ok {
		if msg := ce.Message(); msg != w.err.Error() && msg != "" {
			return &wrapped{msg: msg, err: w.err}
		}
		return w.err
	}
	for k := range codes {
		if k.String() == kind {
			return &node.Error{Kind: k, Msg: ce.Message(), Hint: decodeHint(ce.Meta())}
		}
	}
	if de, ok := errors.AsType[*dialError](ce); ok {
		return de.err
	}
	if gone(ce) {
		return fmt.Errorf("%w: it closed the connection", ErrNotRunning)
	}
	switch ce.Code() {
	case connect.CodeCanceled:
		return fmt.Errorf("%w: %w", context.Canceled, ce)
	case connect.CodeDeadlineExceeded:
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, ce)
	case connect.CodeUnavailable:
		return fmt.Errorf("%w: %w", ErrNotRunning, ce)
	case connect.CodeUnimplemented:
		return fmt.Errorf("%w: %w", ErrVersion, ce)
	}
	return ce
}

// decodeHint reads the hint of an error; one that does not decode is left out.
func decodeHint(h http.Header) string {
	s, err := url.PathUnescape(h.Get(headerHint))
	if err != nil {
		return ""
	}
	return valid(s)
}

// A wrapped error reads as the daemon put it and is the error it wraps.
type wrapped struct {
	msg string
	err error
}

func (w *wrapped) Error() string { return w.msg }
func (w *wrapped) Unwrap() error { return w.err }

// Call makes one call through a method of a [Client] and decodes its error:
//
//	m, err := api.Call(ctx, c.Send, &api.SendRequest{To: "bob", Text: "hi"})
func Call[Req, Res any](ctx context.Context, method func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) (*Res, error) {
	res, err := method(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, DecodeError(err)
	}
	return res.Msg, nil
}
