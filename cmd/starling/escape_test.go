package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEscape(t *testing.T) {
	tests := []struct{ name, in, line, block string }{
		{"plain", "hello, Grüße, 你好 🦆", "hello, Grüße, 你好 🦆", "hello, Grüße, 你好 🦆"},
		{"colour", "\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`, `\x1b[31mred\x1b[0m`},
		{"title by OSC", "\x1b]0;pwned\x07", `\x1b]0;pwned\x07`, `\x1b]0;pwned\x07`},
		{"8-bit CSI", "a\u009b2Jb", `a\u009b2Jb`, `a\u009b2Jb`},
		{"8-bit CSI as a byte", "a\x9b2Jb", `a\x9b2Jb`, `a\x9b2Jb`},
		{"bidi override", "cod\u202egpj.exe", `cod\u202egpj.exe`, `cod\u202egpj.exe`},
		{"bidi isolates", "\u2066a\u2067b\u2068c\u2069\u061c", `\u2066a\u2067b\u2068c\u2069\u061c`, `\u2066a\u2067b\u2068c\u2069\u061c`},
		{"zero width", "B\u200bo\u200c\u200d\u200e\u200f\ufeff", `B\u200bo\u200c\u200d\u200e\u200f\ufeff`, `B\u200bo\u200c\u200d\u200e\u200f\ufeff`},
		{"tags", "a\U000e0041", `a\U000e0041`, `a\U000e0041`},
		{"separators", "a\u2028b\u2029", `a\u2028b\u2029`, `a\u2028b\u2029`},
		{"lines", "one\ntwo\tthree", `one\ntwo\tthree`, "one\ntwo    three"},
		{"return overwrites", "evil\rgood", `evil\x0dgood`, `evil\x0dgood`},
		{"line of DOS", "one\r\ntwo", `one\x0d\ntwo`, "one\ntwo"},
		{"delete and bell", "a\x7f\a\b", `a\x7f\x07\x08`, `a\x7f\x07\x08`},
		{"family", "👨\u200d👩\u200d👧", "👨👩👧", "👨👩👧"},
		{"joined letters", "B\u200d🦆", `B\u200d🦆`, `B\u200d🦆`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := escape(tt.in); got != tt.line {
				t.Errorf("escape(%q) = %q, want %q", tt.in, got, tt.line)
			}
			if got := escapeBlock(tt.in); got != tt.block {
				t.Errorf("escapeBlock(%q) = %q, want %q", tt.in, got, tt.block)
			}
		})
	}
}

// hostile is every rune that the terminal must never see.
func hostile() []rune {
	var rs []rune
	for r := rune(0); r <= 0x20; r++ {
		rs = append(rs, r)
	}
	for r := rune(0x7f); r <= 0x9f; r++ {
		rs = append(rs, r)
	}
	for _, span := range [][2]rune{{0x200b, 0x200f}, {0x202a, 0x202e}, {0x2060, 0x2069}, {0x061c, 0x061c}, {0xfeff, 0xfeff}, {0x2028, 0x2029}} {
		for r := span[0]; r <= span[1]; r++ {
			rs = append(rs, r)
		}
	}
	return rs
}

func TestEscapeLeavesNothingThatActs(t *testing.T) {
	for _, r := range hostile() {
		if r == ' ' || r == 0x2065 { // 2065 is not assigned
			continue
		}
		if got := escape("a" + string(r) + "b"); strings.ContainsRune(got, r) {
			t.Errorf("escape leaves %U", r)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("a\x1b[2J\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		for _, got := range []string{escape(s), escapeBlock(s)} {
			for _, r := range got {
				if r != '\n' && (unsafeRune(r) || r == utf8.RuneError && !strings.ContainsRune(s, r)) {
					t.Fatalf("%q leaves %U in %q", s, r, got)
				}
			}
		}
		if strings.Contains(escape(s), "\n") {
			t.Fatalf("escape(%q) has two lines", s)
		}
	})
}

func TestJSONIsSafeAndLossless(t *testing.T) {
	for _, r := range append(hostile(), 0xe0041, 0x1f986) {
		in := map[string]string{"text": "a" + string(r) + "b"}
		var b bytes.Buffer
		a := &app{}
		a.jsonTo(&b, in)
		for _, c := range strings.TrimSuffix(b.String(), "\n") {
			if unsafeRune(c) {
				t.Errorf("%U: the encoding %q holds %U", r, b.String(), c)
			}
		}
		var out map[string]string
		if err := json.Unmarshal(b.Bytes(), &out); err != nil || out["text"] != in["text"] {
			t.Errorf("%U: got %q back, %v", r, out["text"], err)
		}
	}
}
