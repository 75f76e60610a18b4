package api

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
)

const sendPath = "/starling.api.v1.Starling/Send"

// sendBody is a valid request to send a message.
func sendBody(t testing.TB) []byte {
	t.Helper()
	b, err := proto.Marshal(&SendRequest{To: "bob", Text: "owned"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A forgery is a raw request that differs from a good one in what its change
// says.
type forgery struct {
	line    string // method, target, version
	headers []string
	body    []byte
}

func good(t testing.TB) forgery {
	return forgery{
		line:    "POST " + sendPath + " HTTP/1.1",
		headers: []string{"Host: " + socketHost, "Content-Type: application/proto"},
		body:    sendBody(t),
	}
}

func (f forgery) bytes() []byte {
	var b bytes.Buffer
	b.WriteString(f.line + "\r\n")
	length := true
	for _, h := range f.headers {
		b.WriteString(h + "\r\n")
		name := strings.ToLower(strings.SplitN(h, ":", 2)[0])
		if name == "content-length" || name == "transfer-encoding" {
			length = false
		}
	}
	if length {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(f.body))
	}
	b.WriteString("\r\n")
	b.Write(f.body)
	return b.Bytes()
}

// header returns a change that adds headers.
func header(h ...string) func(*forgery) {
	return func(f *forgery) { f.headers = append(f.headers, h...) }
}

// instead returns a change that replaces the header at a place: 0 is Host, 1 is
// Content-Type.
func instead(i int, h ...string) func(*forgery) {
	return func(f *forgery) {
		f.headers = append(append(append([]string{}, f.headers[:i]...), h...), f.headers[i+1:]...)
	}
}

func line(l string) func(*forgery) { return func(f *forgery) { f.line = l } }

// bomb is 16 MiB in 16 KiB.
var bomb = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(make([]byte, 16<<20))
	_ = w.Close()
	return b.Bytes()
})

var hostile = []struct {
	name   string
	change func(*forgery)
	want   []int // any of these; 0: closed without an answer
}{
	{"evil host", instead(0, "Host: evil.example"), []int{421}},
	{"host of loopback", instead(0, "Host: 127.0.0.1"), []int{421}},
	{"host of loopback with port", instead(0, "Host: 127.0.0.1:80"), []int{421}},
	{"host localhost", instead(0, "Host: localhost"), []int{421}},
	{"host localhost6", instead(0, "Host: localhost6"), []int{421}},
	{"host of IPv6 loopback", instead(0, "Host: [::1]"), []int{421}},
	{"host with port", instead(0, "Host: "+socketHost+":80"), []int{421}},
	{"host with trailing dot", instead(0, "Host: "+socketHost+"."), []int{421}},
	{"host in upper case", instead(0, "Host: "+strings.ToUpper(socketHost)), []int{421}},
	{"host as suffix", instead(0, "Host: evil."+socketHost), []int{421}},
	{"host as prefix", instead(0, "Host: "+socketHost+".evil.example"), []int{421}},
	{"host with user", instead(0, "Host: user@"+socketHost), []int{400, 421}},
	{"host empty", instead(0, "Host:"), []int{421}},
	{"host absent", instead(0), []int{400}},
	{"host absent in HTTP/1.0", func(f *forgery) {
		instead(0)(f)
		f.line = "POST " + sendPath + " HTTP/1.0"
	}, []int{421}},
	{"host twice", header("Host: " + socketHost), []int{400}},
	{"evil host by X-Forwarded-Host", instead(0, "Host: evil.example", "X-Forwarded-Host: "+socketHost), []int{421}},
	{"absolute target", line("POST http://" + socketHost + sendPath + " HTTP/1.1"), []int{421}},
	{"absolute target of another host", line("POST http://evil.example" + sendPath + " HTTP/1.1"), []int{421}},

	{"origin null", header("Origin: null"), []int{403}},
	{"origin evil", header("Origin: https://evil.example"), []int{403}},
	{"origin of loopback", header("Origin: http://127.0.0.1:8080"), []int{403}},
	{"origin of our host", header("Origin: http://" + socketHost), []int{403}},
	{"origin empty", header("Origin:"), []int{403}},
	{"origin twice", header("Origin: http://"+socketHost, "Origin: null"), []int{403}},
	{"referer", header("Referer: https://evil.example/page"), []int{403}},
	{"referer of our host", header("Referer: http://" + socketHost + "/"), []int{403}},
	{"cookie", header("Cookie: session=1"), []int{403}},
	{"fetch from another site", header("Sec-Fetch-Site: cross-site"), []int{403}},
	{"fetch from the same site", header("Sec-Fetch-Site: same-site"), []int{403}},
	{"fetch from the same origin", header("Sec-Fetch-Site: same-origin"), []int{403}},
	{"navigation", header("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"), []int{403}},
	{"fetch without cors", header("Sec-Fetch-Mode: no-cors"), []int{403}},
	{"preflight", func(f *forgery) {
		f.line = "OPTIONS " + sendPath + " HTTP/1.1"
		header("Origin: https://evil.example", "Access-Control-Request-Method: POST")(f)
	}, []int{403}},
	{"preflight without origin", func(f *forgery) {
		f.line = "OPTIONS " + sendPath + " HTTP/1.1"
		header("Access-Control-Request-Method: POST")(f)
	}, []int{403}},

	{"GET", line("GET " + sendPath + " HTTP/1.1"), []int{405}},
	{"GET of Connect", line("GET " + sendPath + "?connect=v1&encoding=json&message=%7B%22to%22%3A%22bob%22%7D HTTP/1.1"), []int{405}},
	{"HEAD", line("HEAD " + sendPath + " HTTP/1.1"), []int{405}},
	{"PUT", line("PUT " + sendPath + " HTTP/1.1"), []int{405}},
	{"DELETE", line("DELETE " + sendPath + " HTTP/1.1"), []int{405}},
	{"PATCH", line("PATCH " + sendPath + " HTTP/1.1"), []int{405}},
	{"OPTIONS", line("OPTIONS " + sendPath + " HTTP/1.1"), []int{405}},
	{"OPTIONS of the server", line("OPTIONS * HTTP/1.1"), []int{405}},
	{"TRACE", line("TRACE " + sendPath + " HTTP/1.1"), []int{405}},
	{"CONNECT", line("CONNECT evil.example:443 HTTP/1.1"), []int{405, 421}},
	{"post in lower case", line("post " + sendPath + " HTTP/1.1"), []int{405}},
	{"method override", func(f *forgery) {
		f.line = "GET " + sendPath + " HTTP/1.1"
		header("X-HTTP-Method-Override: POST")(f)
	}, []int{405}},
	{"HTTP/2 preface", line("PRI * HTTP/2.0"), []int{400, 405, 421, 505}},

	{"unknown method", line("POST /starling.api.v1.Starling/Own HTTP/1.1"), []int{404}},
	{"unknown service", line("POST /starling.api.v2.Starling/Send HTTP/1.1"), []int{404}},
	{"root", line("POST / HTTP/1.1"), []int{404}},
	{"dots", line("POST /x/.." + sendPath + " HTTP/1.1"), []int{404}},
	{"double slash", line("POST /" + sendPath + " HTTP/1.1"), []int{404, 421}},
	{"trailing slash", line("POST " + sendPath + "/ HTTP/1.1"), []int{404}},
	{"escaped letter", line("POST /starling.api.v1.Starling/%53end HTTP/1.1"), []int{404}},
	{"escaped slash", line("POST /starling.api.v1.Starling%2FSend HTTP/1.1"), []int{404}},
	{"path in lower case", line("POST " + strings.ToLower(sendPath) + " HTTP/1.1"), []int{404}},
	{"query", line("POST " + sendPath + "?x=1 HTTP/1.1"), []int{404}},
	{"empty query", line("POST " + sendPath + "? HTTP/1.1"), []int{404}},
	{"zero byte in path", line("POST " + sendPath + "%00 HTTP/1.1"), []int{404}},
	{"reflection", line("POST /grpc.reflection.v1.ServerReflection/ServerReflectionInfo HTTP/1.1"), []int{404}},
	{"pprof", line("POST /debug/pprof/heap HTTP/1.1"), []int{404}},

	{"plain text", instead(1, "Content-Type: text/plain"), []int{415}},
	{"form", instead(1, "Content-Type: application/x-www-form-urlencoded"), []int{415}},
	{"multipart form", instead(1, "Content-Type: multipart/form-data; boundary=x"), []int{415}},
	{"JSON as text", instead(1, "Content-Type: text/json"), []int{415}},
	{"no content type", instead(1), []int{415}},
	{"empty content type", instead(1, "Content-Type:"), []int{415}},
	{"content type twice", header("Content-Type: text/plain"), []int{415}},
	{"content type with parameter", instead(1, "Content-Type: application/proto; charset=utf-8"), []int{415}},
	{"content type in upper case", instead(1, "Content-Type: APPLICATION/PROTO"), []int{415}},
	{"content type of a stream", instead(1, "Content-Type: application/connect+proto"), []int{415}},
	{"gRPC", instead(1, "Content-Type: application/grpc"), []int{415}},
	{"gRPC-Web", instead(1, "Content-Type: application/grpc-web+proto"), []int{415}},
	{"wrong codec", instead(1, "Content-Type: application/json"), []int{400}},
	{"unary content type on a stream", line("POST /starling.api.v1.Starling/Events HTTP/1.1"), []int{415}},

	{"gzip bomb", func(f *forgery) {
		header("Content-Encoding: gzip")(f)
		f.body = bomb()
	}, []int{415}},
	{"gzip bomb in a stream", func(f *forgery) {
		f.line = "POST /starling.api.v1.Starling/Events HTTP/1.1"
		instead(1, "Content-Type: application/connect+proto", "Connect-Content-Encoding: gzip")(f)
		f.body = bomb()
	}, []int{415}},
	{"oversized body", func(f *forgery) { f.body = make([]byte, maxBody+1) }, []int{413}},
	{"oversized announcement", header("Content-Length: 1099511627776"), []int{413}},
	{"oversized chunks", func(f *forgery) {
		header("Transfer-Encoding: chunked")(f)
		chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", 1<<16, make([]byte, 1<<16))
		f.body = append(bytes.Repeat(chunk, maxBody>>16+1), "0\r\n\r\n"...)
	}, []int{413}},
	{"length and chunks", header("Content-Length: 4", "Transfer-Encoding: chunked"), []int{400}},
	{"two lengths", header("Content-Length: 4", "Content-Length: 5"), []int{400}},
	{"negative length", header("Content-Length: -1"), []int{400}},
	{"damaged body", func(f *forgery) { f.body = []byte{0xff, 0xff, 0xff} }, []int{400}},
	{"text that is not UTF-8", func(f *forgery) { f.body = []byte{0x12, 2, 0xff, 0xfe} }, []int{400}},
	{"header flood", func(f *forgery) {
		for i := range 1000 {
			header(fmt.Sprintf("X-Flood-%d: %s", i, strings.Repeat("x", 100)))(f)
		}
	}, []int{431, 0}},
	{"long target", line("POST /" + strings.Repeat("x", 64<<10) + " HTTP/1.1"), []int{431, 0}},
	{"folded header", header("X-Fold: a\r\n b", "Origin\r\n : null"), []int{400}},
	{"header with a space", header("Origin : null"), []int{400}},
	{"upgrade", header("Connection: Upgrade", "Upgrade: h2c"), []int{400}},
	{"WebSocket", func(f *forgery) {
		f.line = "GET " + sendPath + " HTTP/1.1"
		header("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")(f)
	}, []int{405}},
	{"expectation", header("Expect: 100-continue"), []int{417}},
	{"not HTTP", line("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), []int{400}},
}

// exchange sends raw bytes and returns the status of the answer, 0 if the
// connection is closed without one.
func exchange(t testing.TB, path string, raw []byte) (int, http.Header) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = c.Write(raw) // may fail: the answer may come first
	}()
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	_ = c.Close()
	<-sent
	if err != nil {
		return 0, nil
	}
	_ = r.Body.Close()
	return r.StatusCode, r.Header
}

func TestHostileRequestsAreRefused(t *testing.T) {
	if n := len(hostile); n < 40 {
		t.Fatalf("only %d hostile requests", n)
	}
	d := start(t, false, nil)
	b := d.backend()
	path := filepath.Join(d.home, runFolder, sockName)
	for _, tc := range hostile {
		t.Run(tc.name, func(t *testing.T) {
			f := good(t)
			tc.change(&f)
			before := b.calls.Load()
			got, h := exchange(t, path, f.bytes())
			ok := false
			for _, w := range tc.want {
				ok = ok || got == w
			}
			if !ok {
				t.Errorf("status %d, want one of %v", got, tc.want)
			}
			if b.calls.Load() != before {
				t.Error("the request reached the backend")
			}
			for name := range h {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("the answer has %s", name)
				}
			}
		})
	}
	// The same request without a change passes, or nothing above proves much.
	if got, _ := exchange(t, path, good(t).bytes()); got != 200 || b.calls.Load() != 1 || len(b.sent) != 1 || b.sent[0].Text != "owned" {
		t.Errorf("the unchanged request: status %d, %d calls", got, b.calls.Load())
	}
	f := good(t)
	f.headers[1] = "Content-Type: application/json"
	f.body = []byte(`{"to":"bob","text":"owned"}`)
	if got, _ := exchange(t, path, f.bytes()); got != 200 {
		t.Errorf("the unchanged request in JSON: status %d", got)
	}
}

// A refused request must not leave bytes that are taken for the next one.
func TestNothingIsSmuggledBehindARefusedRequest(t *testing.T) {
	d := start(t, false, nil)
	b := d.backend()
	path := filepath.Join(d.home, runFolder, sockName)
	for _, tc := range hostile {
		switch tc.name {
		case "wrong codec", "damaged body", "text that is not UTF-8":
			continue // refused by the codec, as requests that are whole: the next one is a client's
		}
		f := good(t)
		tc.change(&f)
		exchange(t, path, append(f.bytes(), good(t).bytes()...))
	}
	if n := b.calls.Load(); n != 0 {
		for _, m := range b.sent {
			t.Log(m)
		}
		t.Errorf("%d requests reached the backend behind refused ones", n)
	}
}

func TestSlowClientsAreCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		s, err := New(Config{
			Home: "/", Version: "test",
			Open:             newConfigOf(b),
			ChangePassphrase: newChange,
		})
		if err != nil {
			t.Fatal(err)
		}
		l := newPipeListener()
		hs := s.httpServer("", t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = hs.Serve(l)
		}()
		for name, tc := range map[string]struct {
			head  string
			limit time.Duration
		}{
			"header": {"POST ", headerTimeout},
			"body":   {"POST " + sendPath + " HTTP/1.1\r\nHost: " + socketHost + "\r\nContent-Type: application/proto\r\nContent-Length: 1000\r\n\r\nx", bodyTimeout},
			"rest":   {"", headerTimeout},
		} {
			c := l.dial()
			start := time.Now()
			go func() {
				_, _ = io.WriteString(c, tc.head)
				for { // a byte a second for ever
					time.Sleep(time.Second)
					if _, err := c.Write([]byte("x")); err != nil {
						return
					}
				}
			}()
			if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "closed") {
				t.Error(err)
			}
			if d := time.Since(start); d > tc.limit+2*time.Second {
				t.Errorf("slow %s: cut off after %v, want %v", name, d, tc.limit)
			}
			_ = c.Close()
		}
		_ = hs.Close()
		<-done
		time.Sleep(time.Minute)
		if n := b.calls.Load(); n != 0 {
			t.Errorf("%d requests reached the backend", n)
		}
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	d := start(t, false, nil)
	path := filepath.Join(d.home, runFolder, sockName)
	var open []net.Conn
	for range maxConns {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// An answered request shows that the server has taken the connection.
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		f := good(t)
		f.line = "POST /starling.api.v1.Starling/Status HTTP/1.1"
		f.body = nil
		if _, err := c.Write(f.bytes()); err != nil {
			t.Fatal(err)
		}
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if code, _ := exchange(t, path, good(t).bytes()); code != 0 {
		t.Errorf("connection %d was answered with %d", maxConns+1, code)
	}
	before := d.backend().calls.Load()
	_ = open[0].Close()
	for end := time.Now().Add(time.Minute); ; { // until the server has seen the end
		if code, _ := exchange(t, path, good(t).bytes()); code == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a closed connection was not given back")
		}
	}
	if got := d.backend().calls.Load() - before; got != 1 {
		t.Errorf("%d calls, want 1", got)
	}
}

// The same guard before a loopback listener for our own page.
func TestGuardOfAPage(t *testing.T) {
	calls := 0
	g := &guard{
		hosts:   []string{"127.0.0.1:8080"},
		origins: []string{"http://127.0.0.1:8080"},
		token:   "0123456789abcdef",
		methods: map[string][]string{"/x": {"application/json"}},
		next:    http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ }),
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := r.Header.Get("X-Test-Host"); h != "" {
			r.Host = h
		}
		g.ServeHTTP(w, r)
	}))
	defer srv.Close()
	for _, tc := range []struct {
		name    string
		headers map[string]string
		want    int
	}{
		{"own page", nil, 200},
		{"no browser", map[string]string{"Origin": "", "Sec-Fetch-Site": ""}, 200},
		{"another port", map[string]string{"Origin": "http://127.0.0.1:8081"}, 403},
		{"localhost instead", map[string]string{"Origin": "http://localhost:8080"}, 403},
		{"origin null", map[string]string{"Origin": "null"}, 403},
		{"rebound name", map[string]string{"X-Test-Host": "evil.example:8080", "Origin": "http://evil.example:8080"}, 421},
		{"same site", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"cross site", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"cookie", map[string]string{"Cookie": "a=b"}, 403},
		{"referer", map[string]string{"Referer": "http://127.0.0.1:8080/"}, 403},
		{"no token", map[string]string{"Authorization": ""}, 401},
		{"short token", map[string]string{"Authorization": "Bearer 0123456789abcde"}, 401},
		{"old token", map[string]string{"Authorization": "Bearer 1123456789abcdef"}, 401},
		{"token as basic", map[string]string{"Authorization": "Basic 0123456789abcdef"}, 401},
	} {
		r, err := http.NewRequest(http.MethodPost, srv.URL+"/x", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range map[string]string{
			"Content-Type": "application/json", "Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin",
			"Authorization": "Bearer 0123456789abcdef", "X-Test-Host": "127.0.0.1:8080",
		} {
			r.Header.Set(name, v)
		}
		for name, v := range tc.headers {
			r.Header.Del(name)
			if v != "" {
				r.Header.Set(name, v)
			}
		}
		before := calls
		res, err := srv.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		reached := calls != before
		if res.StatusCode != tc.want || reached != (tc.want == 200) {
			t.Errorf("%s: status %d, reached %t; want %d", tc.name, res.StatusCode, reached, tc.want)
		}
	}
}

// Whatever is thrown at the chain, the backend is reached only by what the
// guard's rules allow, and nothing panics.
func FuzzGuard(f *testing.F) {
	f.Add(good(f).bytes())
	for _, tc := range hostile {
		g := good(f)
		tc.change(&g)
		if raw := g.bytes(); len(raw) < 4<<10 {
			f.Add(raw)
		}
	}
	reached := false
	g := &guard{
		hosts:   []string{socketHost},
		methods: map[string][]string{sendPath: {"application/proto", "application/json"}},
		next:    http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }),
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		reached = false
		g.ServeHTTP(&deadlineRecorder{httptest.NewRecorder()}, r)
		if !reached {
			return
		}
		if r.Host != socketHost || r.Method != "POST" || r.RequestURI != sendPath || len(r.Header["Content-Type"]) != 1 {
			t.Errorf("reached by %q", raw)
		}
		for _, name := range []string{"Origin", "Referer", "Cookie", "Sec-Fetch-Site", "Content-Encoding"} {
			if _, ok := r.Header[name]; ok {
				t.Errorf("reached with %s by %q", name, raw)
			}
		}
	})
}

// A deadlineRecorder has deadlines, as a connection has.
type deadlineRecorder struct{ *httptest.ResponseRecorder }

func (*deadlineRecorder) SetReadDeadline(time.Time) error  { return nil }
func (*deadlineRecorder) SetWriteDeadline(time.Time) error { return nil }

func FuzzParsePointer(f *testing.F) {
	for _, s := range []string{"", "\n", "/a/api.sock\n", "/a/api.sock", "a/api.sock\n", "/a/../api.sock\n", "/a/x\n", "/a\n/api.sock\n", "/a\x00/api.sock\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path, err := parsePointer(b)
		if err != nil {
			return
		}
		if path+"\n" != string(b) || !filepath.IsAbs(path) || len(path) > maxSocketPath || filepath.Base(path) != sockName || filepath.Clean(path) != path {
			t.Errorf("%q gave %q", b, path)
		}
	})
}

func FuzzDecodeHint(f *testing.F) {
	f.Add("")
	f.Add("do%20this")
	f.Add("%")
	f.Add("%ff")
	f.Fuzz(func(t *testing.T, s string) {
		if got := decodeHint(http.Header{headerHint: {s}}); len(got) > 3*len(s) || valid(got) != got {
			t.Errorf("%q gave %q", s, got)
		}
	})
}

// A pipeListener accepts connections in memory.
type pipeListener struct {
	conns chan net.Conn // sent by dial, taken by Accept; no buffer
	done  chan struct{} // closed by Close
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) dial() net.Conn {
	a, b := net.Pipe()
	l.conns <- b
	return a
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: os.DevNull, Net: "unix"} }
