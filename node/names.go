package node

import (
	"strings"

	"golang.org/x/text/unicode/norm"
)

// skeleton maps a name to what it looks like, roughly: case, accents, width,
// spaces and the letters of other scripts that pass for Latin ones are gone. It
// only ever causes a warning.
func skeleton(name string) string {
	var b strings.Builder
	for _, r := range norm.NFKD.String(strings.ToLower(name)) {
		if s, ok := confusable[r]; ok {
			b.WriteString(s)
			continue
		}
		if r >= 0x300 && r <= 0x36f || r == ' ' || r == '-' || r == '_' || r == '.' {
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// confusable holds common look-alikes in lower case, after the confusables of
// Unicode Technical Standard 39; letters alike in Latin itself are joined too.
var confusable = map[rune]string{
	'а': "a", 'е': "e", 'о': "o", 'р': "p", 'с': "c", 'у': "y", 'х': "x", 'і': "l", 'ј': "j", 'ѕ': "s", 'ԁ': "d", 'һ': "h", 'ո': "n", 'в': "b", 'к': "k", 'м': "m", 'н': "h", 'т': "t",
	'α': "a", 'ο': "o", 'ρ': "p", 'ν': "v", 'ι': "l", 'κ': "k", 'υ': "u", 'γ': "y", 'η': "n", 'τ': "t", 'χ': "x",
	'ı': "l", 'i': "l", '1': "l", '|': "l", '!': "l", '0': "o", '3': "e", '5': "s", '$': "s", '@': "a", 'ß': "ss",
}
