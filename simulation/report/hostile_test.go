package report

import (
	"strings"
	"testing"
)

func TestHeadlineDoesNotSteerTheTerminal(t *testing.T) {
	r := small()
	r.Violation, r.Manifest.Outcome, r.Manifest.Error = nil, "failed", "starting p\x1b]0;x\x07\n\tat once"
	if s := Headline(r); strings.ContainsAny(s, "\x1b\x07\t") || !strings.Contains(s, "p·]0;x·\n    at once") {
		t.Errorf("%q", s)
	}
}
