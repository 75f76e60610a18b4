package protocol_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every test that SPEC.md and README.md name exists: a promise whose test is
// gone is a promise no more.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	named := regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w+)`")
	tests := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(b, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range []string{"SPEC.md", "../README.md"} {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllSubmatch(b, -1) {
			if !tests[string(m[1])] {
				t.Errorf("%s names %s, which does not exist", doc, m[1])
			}
		}
	}
	if len(tests) < 100 {
		t.Errorf("found %d tests only: does the search still work?", len(tests))
	}
}

// SPEC.md lists every label with its use, and names every limit and lifetime.
func TestSpecListsWhatIsDeclared(t *testing.T) {
	code, err := os.ReadFile("protocol.go")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	spec := string(b)
	label := regexp.MustCompile(`(?m)^\tLabel\w+ +Label = "(.+)" +// (.+)$`).FindAllStringSubmatch(string(code), -1)
	for _, m := range label {
		if !strings.Contains(spec, "| `"+m[1]+"` | "+m[2]+" |\n") {
			t.Errorf("SPEC §2.1 lacks %s: %s", m[1], m[2])
		}
	}
	limit := regexp.MustCompile(`(?m)^\t([A-Z]\w+) += +[0-9(]`).FindAllStringSubmatch(string(code), -1)
	for _, m := range limit {
		if !strings.Contains(spec, "`"+m[1]+"`") {
			t.Errorf("SPEC.md does not name %s", m[1])
		}
	}
	if len(label) < 30 || len(limit) < 30 {
		t.Errorf("found %d labels and %d limits only: does the search still work?", len(label), len(limit))
	}
}
