package identity

import (
	"errors"
	"strings"
	"testing"
)

func TestAccountIDIsReadAsWritten(t *testing.T) {
	for n := range byte(32) {
		a := testAccount(n)
		s := a.String()
		if len(s) != 63 || !strings.HasPrefix(s, "st1") {
			t.Fatalf("ID %q, want st1 and 60 characters", s)
		}
		for _, in := range []string{s, strings.ToUpper(s)} {
			if got, err := ParseAccountID(in); err != nil || got != a {
				t.Errorf("ParseAccountID(%q) = %v, %v; want the same account", in, got, err)
			}
		}
		if want := s[3:11]; a.Short() != want {
			t.Errorf("Short = %q, want %q", a.Short(), want)
		}
	}
}

func TestAccountIDHasOneText(t *testing.T) {
	const want = "st1b27ll4zcj3o2fg7ir6dc2mjhyk5xqencvyolmqeriwuqfxg4grnk5vigqcia"
	if got := testAccount(1).String(); got != want {
		t.Errorf("ID = %s, want %s: changing the form strands every ID in use", got, want)
	}
}

// Every single typo: any character replaced by any other, dropped, doubled, or
// swapped with its neighbour.
func TestAccountIDCatchesTypos(t *testing.T) {
	s := testAccount(1).String()
	check := func(in string) {
		t.Helper()
		if in == s {
			return
		}
		if _, err := ParseAccountID(in); !errors.Is(err, ErrID) {
			t.Fatalf("ParseAccountID(%q) = %v, want ErrID", in, err)
		}
	}
	for i := range s {
		for _, c := range "abcdefghijklmnopqrstuvwxyz0123456789-" {
			check(s[:i] + string(c) + s[i+1:])
		}
		check(s[:i] + s[i+1:])
		check(s[:i] + s[i:i+1] + s[i:])
		if i > 0 {
			check(s[:i-1] + s[i:i+1] + s[i-1:i] + s[i+1:])
		}
	}
}

func TestAccountIDErrorsSayWhatIsWrong(t *testing.T) {
	s := testAccount(1).String()
	small := Account(readPublished(t).SmallOrder[4])
	for in, want := range map[string]string{
		"":                             "starts with st1",
		"s":                            "starts with st1",
		"steve":                        "starts with st1",
		"alice":                        "starts with st1",
		"st2" + s[3:]:                  "newer Starling",
		s[:62]:                         "62 characters",
		s + "a":                        "64 characters",
		strings.ToUpper(s[:9]) + s[9:]: "upper and lower",
		s[:62] + "1":                   "no ID has",
		s[:62] + "b":                   "typo",
		strings.Repeat("a", 1<<20):     "letters and digits",
		s[:60] + "ſt":                  "letters and digits",
		small.String():                 "Ed25519",
	} {
		_, err := ParseAccountID(in)
		if !errors.Is(err, ErrID) || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseAccountID(%.70q) = %v, want ErrID about %q", in, err, want)
		}
	}
}

func FuzzParseAccountID(f *testing.F) {
	f.Add(testAccount(1).String())
	f.Add(strings.ToUpper(testAccount(2).String()))
	f.Add("st2")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAccountID(s)
		if err != nil {
			if !errors.Is(err, ErrID) {
				t.Fatalf("ParseAccountID(%q) = %v, want ErrID", s, err)
			}
			return
		}
		if a.String() != strings.ToLower(s) {
			t.Fatalf("%q is parsed and written as %q", s, a)
		}
		if _, err := ParseAccount(a[:]); err != nil {
			t.Fatalf("%q names a key that strict import refuses", s)
		}
	})
}
