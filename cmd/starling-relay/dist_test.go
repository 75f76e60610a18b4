package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var long = flag.Bool("long", false, "build the package twice with the program in it, kill the relay 1,000 times, flood it")

// testDashboard checks that every metric the dashboard names is served.
func testDashboard(t *testing.T, addr string) {
	t.Helper()
	b, err := os.ReadFile("dist/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) {
		t.Fatal("the dashboard is no JSON")
	}
	_, body := get(t, addr, "/metrics")
	there := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)`).FindAllStringSubmatch(body, -1) {
		there[m[1]] = true
		if m[2] == "histogram" {
			there[m[1]+"_sum"], there[m[1]+"_count"] = true, true
		}
	}
	named := regexp.MustCompile(`\b(starling_relay|process|go)_[a-z_]+\b`).FindAllString(string(b), -1)
	if len(named) < 10 {
		t.Errorf("the dashboard names %d metrics", len(named))
	}
	for _, name := range named {
		if !there[name] {
			t.Errorf("the dashboard names %s, which is not served", name)
		}
	}
}

// maxExposure is the worst score that systemd may give the unit; of 10, where 10
// is a service without any bounds.
const maxExposure = 1.3

func TestUnitIsHardened(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	out, err := exec.Command(tool, "security", "--offline=true", "--no-pager", "dist/starling-relay.service").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no score in\n%s", out)
	}
	if score, err := strconv.ParseFloat(string(m[1]), 64); err != nil || score > maxExposure {
		t.Errorf("exposure %s, want at most %v\n%s", m[1], maxExposure, out)
	}
}

// The unit starts what the package installs, with flags that there are.
func TestUnitStartsTheProgram(t *testing.T) {
	b, err := os.ReadFile("dist/starling-relay.service")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/starling-relay (.*)$`).FindSubmatch(b)
	if m == nil {
		t.Fatal("no ExecStart")
	}
	a := &app{}
	cmd, rest, err := a.root().Find(strings.Fields(string(m[1])))
	if err != nil || cmd.Name() != "up" {
		t.Fatalf("%s is %v, %v", m[1], cmd, err)
	}
	if err := cmd.ParseFlags(rest); err != nil || len(cmd.Flags().Args()) > 0 || a.config != "/etc/starling-relay/relay.toml" {
		t.Errorf("%s: %v, settings %q", m[1], err, a.config)
	}
}

// build runs build-deb with an environment and returns the package.
func build(t *testing.T, umask int, env ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	c := exec.CommandContext(t.Context(), "sh", "-c", fmt.Sprintf(`umask %04o; exec "$0" "$1"`, umask), "dist/build-deb", filepath.Join(dir, "a.deb"))
	c.Env = append(os.Environ(), append(env, "TMPDIR="+dir, "SOURCE_DATE_EPOCH=1800000000", "VERSION=1.2.3")...)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build-deb: %v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "a.deb"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Two builds at different times, in different folders, under another umask and
// language are the same bytes. What is packed is a stand-in, or with -long the
// program, which is then built twice, with caches of its own the second time.
func TestPackageIsReproducible(t *testing.T) {
	deb, err := exec.LookPath("dpkg-deb")
	if err != nil {
		t.Skip("no dpkg-deb here")
	}
	first, second := []string{"LANG=C"}, []string{"LANG=de_DE.UTF-8", "TZ=Asia/Tokyo"}
	if *long {
		second = append(second, "GOCACHE="+t.TempDir())
	} else {
		for i, env := range []*[]string{&first, &second} {
			path := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(path, bytes.Repeat([]byte("starling"), 1000), []os.FileMode{0o600, 0o777}[i]); err != nil {
				t.Fatal(err)
			}
			*env = append(*env, "BINARY="+path)
		}
	}
	a, b := build(t, 0o022, first...), build(t, 0o077, second...)
	if !bytes.Equal(a, b) {
		t.Errorf("two builds differ: %d and %d bytes", len(a), len(b))
	}

	path := filepath.Join(t.TempDir(), "a.deb")
	if err := os.WriteFile(path, a, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(deb, "--contents", path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^(-\S+) root/root .* (\./\S+)$`).FindAllSubmatch(out, -1) {
		got = append(got, string(m[1])+" "+string(m[2]))
	}
	want := []string{
		"-rw-r--r-- ./etc/starling-relay/relay.toml",
		"-rwxr-xr-x ./usr/bin/starling-relay",
		"-rw-r--r-- ./usr/lib/systemd/system/starling-relay.service",
		"-rw-r--r-- ./usr/share/doc/starling-relay/copyright",
		"-rw-r--r-- ./usr/share/doc/starling-relay/grafana.json",
	}
	slices.SortFunc(got, func(a, b string) int { return strings.Compare(a[11:], b[11:]) })
	if !slices.Equal(got, want) {
		t.Errorf("the package holds\n%s", out)
	}
	if out, err := exec.Command(deb, "--field", path, "Package", "Version", "Installed-Size").CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "Package: starling-relay\nVersion: 1.2.3\n") || strings.Contains(string(out), "@") {
		t.Errorf("fields %s, %v", out, err)
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		if out, err := exec.Command("sh", "-n", "dist/debian/"+script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}
