package main

import (
	"strings"
	"testing"
	"time"
)

func TestAgo(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		d    time.Duration
		want string
	}{
		{0, "just now"},
		{-4 * time.Second, "just now"},
		{-30 * time.Second, "30 seconds ago"},
		{-90 * time.Second, "1 minute ago"},
		{-47 * time.Hour, "47 hours ago"},
		{-49 * time.Hour, "2 days ago"},
		{7 * 24 * time.Hour, "in 7 days"},
		{7*24*time.Hour - time.Minute, "in 7 days"},
		{6*24*time.Hour - 100*time.Millisecond, "in 6 days"},
		{2*time.Hour - time.Second, "in 2 hours"},
	} {
		if got := ago(now.Add(tt.d), now); got != tt.want {
			t.Errorf("ago(%s) = %q, want %q", tt.d, got, tt.want)
		}
	}
	if got := ago(time.Time{}, now); got != "never" {
		t.Errorf("ago of no time = %q, want never", got)
	}
}

func TestTableAlignsWhatATerminalShows(t *testing.T) {
	var b strings.Builder
	s := &screen{Writer: &b}
	s.table([][]cell{head("NAME", "STATE"), {{"Bo", ""}, {"contact", ""}}, {{"小鳥", ""}, {"contact", ""}}, {{"Zoe\u0301", ""}, {"", ""}}})
	want := "NAME  STATE\nBo    contact\n小鳥  contact\nZoe\u0301\n"
	if got := b.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestShorten(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"short", "short"},
		{"exactly10!", "exactly10!"},
		{"more than ten", "more than…"},
		{"鳥鳥鳥鳥鳥鳥", "鳥鳥鳥鳥…"},
	} {
		if got := shorten(tt.in, 10); got != tt.want {
			t.Errorf("shorten(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{"Bo": "Bo", "/a/b-c": "/a/b-c", "": "''", "Bo B": "'Bo B'", "it's": `'it'\''s'`, "$(x)": "'$(x)'"} {
		if got := shellQuote(in); got != want {
			t.Errorf("shellQuote(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestWrap(t *testing.T) {
	got := strings.Join(wrap("one two three four five six seven eight", 20), "|")
	if want := "one two three four|five six seven eight"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	long := strings.Repeat("x", 30)
	if got := wrap("a "+long+" b", 20); len(got) != 3 || got[1] != long {
		t.Errorf("a long word became %q", got)
	}
}
