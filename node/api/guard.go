package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"net/http"
	"time"
)

const (
	// maxBody is the longest request, in bytes; the longest message takes a
	// fortieth of it.
	maxBody = 1 << 20

	// bodyTimeout is how long a request's body may take.
	bodyTimeout = 10 * time.Second
)

// A guard stands before the handlers and lets through what a client of this
// package sends, and nothing that a web page can make a browser send: not by
// rebinding a name (exact Host), not across origins (no browser headers unless
// the page is our own), not as a form, a link or a preflight (POST with exact
// content types). It checks cheapest first, reads the body itself, bounded in
// size and time, and gives no reason beyond the status code.
//
// The unix socket has one Host and no origin. A loopback listener for a web
// page takes its own hosts, its one origin, and a token.
type guard struct {
	hosts   []string            // accepted values of Host, exactly
	origins []string            // accepted values of Origin, exactly; empty: no browser
	token   string              // required bearer token, or empty
	methods map[string][]string // path to accepted content types
	cross   http.CrossOriginProtection
	next    http.Handler
}

type controllerKey struct{}

// controller returns the response controller of the request behind ctx.
func controller(ctx context.Context) *http.ResponseController {
	rc, _ := ctx.Value(controllerKey{}).(*http.ResponseController)
	return rc
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	if code := g.check(r); code != 0 {
		g.refuse(w, code)
		return
	}
	rc := http.NewResponseController(w)
	body, code := readBody(rc, r)
	if code != 0 {
		g.refuse(w, code)
		return
	}
	r = r.WithContext(context.WithValue(r.Context(), controllerKey{}, rc))
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	g.next.ServeHTTP(w, r)
	_ = rc.SetWriteDeadline(time.Time{}) // a stream sets one; the connection may serve on
}

// refuse answers with a status and closes the connection, so that nothing of a
// refused request is read as the next one.
func (g *guard) refuse(w http.ResponseWriter, code int) {
	w.Header().Set("Connection", "close")
	if code == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodPost)
	}
	http.Error(w, http.StatusText(code), code)
}

// check returns the status to refuse r with, or 0.
func (g *guard) check(r *http.Request) int {
	if !member(g.hosts, r.Host) {
		return http.StatusMisdirectedRequest
	}
	// A request target with a scheme and host of its own is for proxies.
	if r.URL.Scheme != "" || r.URL.Host != "" || r.URL.User != nil {
		return http.StatusMisdirectedRequest
	}
	if !g.fromHere(r.Header) || g.cross.Check(r) != nil {
		return http.StatusForbidden
	}
	if r.Method != http.MethodPost {
		return http.StatusMethodNotAllowed
	}
	types, ok := g.methods[r.URL.Path]
	if !ok || r.RequestURI != r.URL.Path {
		return http.StatusNotFound // also a query, an escape, a second spelling
	}
	if g.token != "" && !g.authorised(r.Header) {
		return http.StatusUnauthorized
	}
	if ct := r.Header["Content-Type"]; len(ct) != 1 || !member(types, ct[0]) {
		return http.StatusUnsupportedMediaType
	}
	for _, name := range []string{"Content-Encoding", "Connect-Content-Encoding"} {
		if _, ok := r.Header[name]; ok {
			return http.StatusUnsupportedMediaType
		}
	}
	if _, ok := r.Header["Upgrade"]; ok {
		return http.StatusBadRequest
	}
	if _, ok := r.Header["Expect"]; ok {
		return http.StatusExpectationFailed
	}
	if r.ContentLength > maxBody {
		return http.StatusRequestEntityTooLarge
	}
	return 0
}

// fromHere reports whether the headers that only browsers send are absent, or
// say that the page is one of ours.
func (g *guard) fromHere(h http.Header) bool {
	if len(g.origins) == 0 {
		for _, name := range []string{"Origin", "Referer", "Cookie", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest", "Access-Control-Request-Method"} {
			if _, ok := h[name]; ok {
				return false
			}
		}
		return true
	}
	if o, ok := h["Origin"]; ok && (len(o) != 1 || !member(g.origins, o[0])) {
		return false
	}
	if s, ok := h["Sec-Fetch-Site"]; ok && (len(s) != 1 || s[0] != "same-origin") {
		return false
	}
	_, referer := h["Referer"] // our page sends none
	_, cookie := h["Cookie"]   // cookies are shared across ports: not ours
	return !referer && !cookie
}

// authorised compares hashes, so that neither content nor length of the token
// shows in the time it takes.
func (g *guard) authorised(h http.Header) bool {
	a := h["Authorization"]
	if len(a) != 1 {
		return false
	}
	got, want := sha256.Sum256([]byte(a[0])), sha256.Sum256([]byte("Bearer "+g.token))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

// readBody reads the whole body, and returns the status to refuse it with, or
// 0. The deadline is for the body alone: one that outlived it would end long
// calls.
func readBody(rc *http.ResponseController, r *http.Request) ([]byte, int) {
	if err := rc.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return nil, http.StatusInternalServerError
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, http.StatusRequestEntityTooLarge
	}
	if err != nil {
		return nil, http.StatusBadRequest
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return nil, http.StatusInternalServerError
	}
	return body, 0
}

func member(set []string, s string) bool {
	for _, m := range set {
		if m == s {
			return true
		}
	}
	return false
}
