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

// A run that did not wait for its messages does not know that none was lost.
func TestHeadlineClaimsNothingOfWhatIsOnItsWay(t *testing.T) {
	r := small()
	r.Violation, r.Manifest.Outcome = nil, "held"
	r.Messages[0].Shown, r.Messages[0].Confirmed = -1, -1
	if s := Headline(r); strings.Contains(s, "lost") || !strings.Contains(s, "still on the way at the end; nothing was shown twice") {
		t.Errorf("%q", s)
	}
}
