package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Exit codes. They are a contract: a script may branch on each of them, and
// none changes its meaning.
const (
	exitOK          = 0
	exitError       = 1   // anything without a code of its own
	exitUsage       = 2   // wrong flags or arguments, or a name that fits several contacts
	exitUnreachable = 3   // the daemon does not run, or cannot be talked to
	exitLocked      = 4   // the profile waits for its passphrase
	exitNotFound    = 5   // no such contact, message or invite
	exitUndelivered = 6   // queued, but not delivered within --timeout
	exitIdentity    = 7   // the contact's identity changed; nothing was sent
	exitVersion     = 8   // the daemon speaks another version of the API
	exitInterrupted = 130 // Ctrl-C
)

// exitHelp is what starling help exit-codes prints.
const exitHelp = `A script may branch on the exit code. None changes its meaning.

  0    done
  1    anything without a code of its own
  2    wrong flags or arguments, or a name that fits several contacts
  3    the daemon does not run, or cannot be talked to
  4    the profile is locked, or the passphrase is wrong
  5    no such contact, message or invite
  6    queued, but not delivered within --timeout
  7    the contact's identity changed; nothing was sent
  8    the daemon speaks another version of the API
  130  interrupted by Ctrl-C

With --json an error is one object on standard error: code, error and hint.`

// A failure is an error with an exit code and, mostly, with what to do next.
type failure struct {
	code int
	msg  string
	hint string // what to do, or empty
}

func (f *failure) Error() string { return f.msg }

// fail returns a failure without a hint.
func fail(code int, format string, args ...any) *failure {
	return &failure{code: code, msg: fmt.Sprintf(format, args...)}
}

// usage returns a failure of the command line itself.
func usage(format string, args ...any) *failure { return fail(exitUsage, format, args...) }

// try adds what to do next.
func (f *failure) try(format string, args ...any) *failure {
	f.hint = fmt.Sprintf(format, args...)
	return f
}

// asFailure gives every error its exit code. Errors that cobra found before a
// command began are about the command line.
func (a *app) asFailure(ctx context.Context, err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if f := a.apiFailure(err); f != nil && ctx.Err() == nil {
		return f
	}
	switch {
	case ctx.Err() != nil:
		return fail(exitInterrupted, "interrupted")
	case !a.began:
		// Cobra adds its suggestions on lines of their own.
		msg, rest, _ := strings.Cut(err.Error(), "\n")
		f := usage("%s", msg)
		if rest = strings.Join(strings.Fields(strings.ReplaceAll(rest, "Did you mean this?", "Did you mean")), " "); rest != "" {
			return f.try("%s?", rest)
		}
		return f.try("See starling --help.")
	default:
		return fail(exitError, "%s", err)
	}
}

// report prints a failure on standard error, as JSON under --json.
func (a *app) report(f *failure) {
	if a.json {
		a.jsonTo(a.err, struct {
			Code  int    `json:"code"`
			Error string `json:"error"`
			Hint  string `json:"hint"`
		}{f.code, f.msg, f.hint})
		return
	}
	if f.code == exitInterrupted {
		return // the terminal shows ^C already
	}
	fmt.Fprintf(a.err, "%s %s\n", a.err.paint(red, "starling:"), escapeBlock(f.msg))
	if f.hint != "" {
		fmt.Fprintln(a.err, escapeBlock(f.hint))
	}
}
