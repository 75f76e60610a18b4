package protocol_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"starling/protocol"
)

// labels returns the labels that protocol.go declares, by name.
func labels(t *testing.T) map[string]protocol.Label {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "protocol.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]protocol.Label{}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if x, ok := v.Type.(*ast.Ident); !ok || x.Name != "Label" {
			return true
		}
		s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		found[v.Names[0].Name] = protocol.Label(s)
		return true
	})
	return found
}

func TestLabelsAreSeparate(t *testing.T) {
	all := labels(t)
	if all["LabelManifest"] != protocol.LabelManifest {
		t.Fatalf("found %d labels, and LabelManifest = %q", len(all), all["LabelManifest"])
	}
	names := map[protocol.Label]string{}
	for name, l := range all {
		if other, taken := names[l]; taken {
			t.Errorf("%s and %s are both %q", name, other, l)
		}
		names[l] = name
		rest, ok := strings.CutPrefix(string(l), "starling/v1/")
		if !ok || rest == "" || strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("%s = %q, want starling/v1/ and lower-case words", name, l)
		}
	}
}

func TestBind(t *testing.T) {
	const l protocol.Label = "starling/v1/test"
	for _, c := range []struct {
		parts [][]byte
		want  string
	}{
		{nil, "starling/v1/test\x00"},
		{[][]byte{[]byte("a"), nil, []byte("bc")}, "starling/v1/test\x00abc"},
	} {
		if got := string(l.Bind(c.parts...)); got != c.want {
			t.Errorf("Bind(%q) = %q, want %q", c.parts, got, c.want)
		}
	}
}

// A message lives shorter than the key that opens it, and that key shorter
// than the memory of its use (SPEC §1).
func TestLifetimesFitTogether(t *testing.T) {
	const day = 24 * 60 * 60 * 1e9
	for _, c := range []struct {
		claim string
		ok    bool
	}{
		{"a first message made on the last instant of a key's day, by a clock at the edge, still opens", day+protocol.BundleSkew+protocol.MessageLife < protocol.DayKeyLife},
		{"a handshake is remembered for as long as its day key opens it", protocol.DayKeyLife < protocol.DedupeLife},
		{"the use of a pool's key is remembered for as long as the key could be used", protocol.PoolKeyLife+protocol.BundleSkew+protocol.MessageLife < protocol.DedupeLife},
		{"a one-time key minted on a stream lives shorter than one of a pool", protocol.OneTimeLife < protocol.PoolKeyLife},
		{"a message expires before its duplicate is forgotten", protocol.MessageLife < protocol.DedupeLife},
		{"a late message still finds its archived session", protocol.MessageLife < protocol.ArchivedLife},
		{"a skipped key outlives the message that it opens", protocol.MessageLife < protocol.SkippedLife},
		{"a content made when its sealing key is last fresh has expired when that key dies", protocol.SealingSkew+protocol.MessageLife <= protocol.SealingKeyLife},
		{"a late sealing key is one that its owner may still have", protocol.SealingLate < protocol.SealingKeyLife},
		{"records made ahead never carry a sealing key that is not made yet", protocol.DaysAhead <= 7*protocol.WeeksAhead},
		{"a sealed envelope is remembered for as long as a key that has a successor opens it", protocol.SealingSkew+7*day+protocol.SealingKeyLife < protocol.DedupeLife},
		{"a log outlives what is left in it on its day, by a clock a day off", 2*day+protocol.MessageLife <= protocol.LogLife},
		{"a first message in a contact box expires before the day key that opens it", 2*day+protocol.BoxLife < protocol.DayKeyLife},
		{"a reader who was away for as long as a message lives still has its queues", 2*protocol.MessageLife < protocol.QueueLife},
		{"a pool's reserve is part of it", protocol.PoolReserve < protocol.PoolKeys},
		{"the longest deposit fits a request, and a chunk of a blob does", protocol.MaxDeposit < protocol.MaxRelayRequest && protocol.BlobChunk < protocol.MaxRelayRequest},
		{"the records of all days made ahead, and yesterday's, fit a relay", 2*(protocol.DaysAhead+2) <= protocol.MaxRecordsAhead},
		{"every account may tell a fresh and a later sealing key of two devices, and of one for all weeks made ahead", protocol.MaxSealingKeys >= 4 && protocol.MaxSealingKeys > protocol.WeeksAhead},
		{"a signed bundle fits a pool's blob", protocol.MaxBundle+1 <= protocol.KeyBlob-12-16},
		{"a full batch need not fit a frame, but the largest envelope does", protocol.MaxEnvelope < protocol.MaxFrame},
	} {
		if !c.ok {
			t.Errorf("no longer true: %s", c.claim)
		}
	}
}
