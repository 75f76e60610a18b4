package main

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escape makes text that came from a peer safe for one line of a terminal:
// every control character (C0, DEL, 8-bit C1, and so every escape sequence),
// every invisible formatting character (bidi overrides and isolates,
// zero-width ones, byte order marks, tags), line and paragraph separators and
// bytes that are not UTF-8 are shown as \x1b or \u202e in plain ASCII. What is
// left can neither move the cursor nor change the order in which it is read.
//
// A zero-width joiner between two pictures is dropped instead, which Unicode
// names as the way to show a sequence that is not supported.
func escape(s string) string { return escapeRunes(s, false) }

// escapeBlock is escape for text of several lines: newlines stay, and a tab
// becomes spaces. The caller indents what follows a newline, so that a peer
// cannot write a line that looks like one of ours.
func escapeBlock(s string) string { return escapeRunes(s, true) }

func escapeRunes(s string, lines bool) string {
	if strings.IndexFunc(s, func(r rune) bool { return r == utf8.RuneError || unsafeRune(r) }) < 0 {
		return s
	}
	var b strings.Builder
	var before rune // the last rune written as it is
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
			r = 0
		case lines && r == '\n':
			b.WriteByte('\n')
		case lines && r == '\r' && strings.HasPrefix(s[i+n:], "\n"):
			// The newline that follows says it all.
		case lines && r == '\t':
			b.WriteString("    ")
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\u200d' && picture(before) && picture(firstRune(s[i+n:])):
			// Dropped.
		case unsafeRune(r) && r <= 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		case unsafeRune(r) && r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		case unsafeRune(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		before, i = r, i+n
	}
	return b.String()
}

// unsafeRune reports whether r can act on a terminal, or on the order or the
// visibility of what stands beside it.
func unsafeRune(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// picture reports whether r is a part of an emoji that may be joined.
func picture(r rune) bool { return unicode.In(r, unicode.So, unicode.Sk) || r == '\ufe0f' }

func firstRune(s string) rune {
	r, _ := utf8.DecodeRuneInString(s)
	return r
}

// escapeJSON escapes in an encoded JSON text what encoding/json leaves as it
// is although a terminal would act on it. Such runes only occur in strings.
func escapeJSON(b []byte) []byte {
	var out []byte
	from := 0
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r >= 0x7f && unsafeRune(r) {
			out = append(out, b[from:i]...)
			if r > 0xffff {
				hi, lo := surrogates(r)
				out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
			} else {
				out = fmt.Appendf(out, `\u%04x`, r)
			}
			from = i + n
		}
		i += n
	}
	return append(out, b[from:]...)
}

func surrogates(r rune) (hi, lo rune) {
	r -= 0x10000
	return 0xd800 + r>>10, 0xdc00 + r&0x3ff
}
