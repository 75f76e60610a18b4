package exact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// versions holds, for each release of Go that is known, the SHA-256 of each
// file that is changed, as released. To add one, read what it changed in those
// files, then run the package's tests with -exact.
var versions = map[string]map[string]string{
	"go1.26.8": {
		"runtime/proc.go":              "b0ea864c1dd251cd9146644863ae9126ca57761dff05862dc80ab0799925fec6",
		"runtime/select.go":            "93977178a5c507d2bd0bbd990613fa0c8a1d6d18b974fcbcd6c9edce6bd8b5bf",
		"runtime/time.go":              "38c7dde4ad56b211cda6216c67e8f4c1b1f3a3ea544ff25b62fc83126e8a5f5c",
		"runtime/synctest.go":          "7c9fe55993868e9b06502906b38cf6d72b763b224d0f0ef605e863b4d39f4272",
		"runtime/rand.go":              "f0c4935ece88ac3861ebd5060a3507831158bcf5ac47abae5860220c0da970c5",
		"runtime/mgcsweep.go":          "81139b39aeacd63e86bdadb6e921882e871bb30c87479b454aa5d82adc0c91aa",
		"runtime/iface.go":             "dc54b64c1bb6ac5c0e2cf765aee4b9465f5be86a472227af14c0a75c085eece5",
		"runtime/sema.go":              "451de314f2db754e318c0ab7857ec3b808d604845e6306eed064a57b8b2cd52b",
		"runtime/runtime1.go":          "e9aea0b82b76931e2181563cc967112de12416a90c5467da8f2e178bbb04b8b2",
		"runtime/runtime.go":           "fe478d164989b5cd5783c9820d99879623780ba353f836f499238e76efb24fd8",
		"internal/sync/hashtriemap.go": "ac36cd5db5c5c659b17255056d88b25c132ed1550bc35c1437be70e0e7d537cc",
		"unique/canonmap.go":           "c2231dbb996483905d256f0c1d8cf64266fd89c63bc339e0530e536bedb5aedb",
		"context/context.go":           "765f99f7cc0710b0117ffa183e432524f429c21496fcbad9b63fb9886fdbaac7",
	},
}

// Versions returns the releases of Go that exact programs can be built with.
func Versions() []string { return slices.Sorted(maps.Keys(versions)) }

// A VersionError means that the installed Go is not one of those known here, or
// not as it was released. Use one that is, for example with
// GOTOOLCHAIN=go1.26.8.
type VersionError struct {
	Found string // what the installed Go calls itself
	Known []string
	File  string // differs from its release; empty if Found is not known
}

// Error implements error.
func (e *VersionError) Error() string {
	known := strings.Join(e.Known, ", ")
	if e.File != "" {
		return fmt.Sprintf("exact: the installed Go calls itself %s, but its %s is not the released one; known as released: %s", e.Found, e.File, known)
	}
	return fmt.Sprintf("exact: no exact programs with the installed Go, which is %s; known: %s", e.Found, known)
}

// Write writes the changed files and overlay.json, for go build -overlay, into
// the folder dir, and returns the path of the latter. The go command is the one
// in PATH, as it chooses its toolchain in the current folder.
func Write(dir string) (overlay string, err error) {
	out, err := command(exec.Command("go", "env", "-json", "GOROOT", "GOVERSION"))
	if err != nil {
		return "", err
	}
	var found struct{ GOROOT, GOVERSION string }
	if err := json.Unmarshal(out, &found); err != nil {
		return "", fmt.Errorf("exact: reading what go env says: %w", err)
	}
	return write(dir, filepath.Join(found.GOROOT, "src"), found.GOVERSION, versions)
}

// write is Write for the sources in src, of a version, with a table of versions.
func write(dir, src, version string, versions map[string]map[string]string) (string, error) {
	sums, ok := versions[version]
	if !ok {
		return "", &VersionError{Found: version, Known: slices.Sorted(maps.Keys(versions))}
	}
	dir, err := filepath.Abs(dir) // go build resolves paths against its own folder
	if err != nil {
		return "", fmt.Errorf("exact: %w", err)
	}
	replace := map[string]string{}
	for _, p := range patches {
		from := filepath.Join(src, filepath.FromSlash(p.file))
		b, err := os.ReadFile(from)
		if err != nil {
			return "", fmt.Errorf("exact: reading the standard library: %w", err)
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != sums[p.file] {
			return "", &VersionError{Found: version, Known: slices.Sorted(maps.Keys(versions)), File: p.file}
		}
		s, err := p.apply(string(b))
		if err != nil {
			return "", err
		}
		to := filepath.Join(dir, strings.ReplaceAll(p.file, "/", "_"))
		if err := os.WriteFile(to, []byte(s), 0o666); err != nil {
			return "", fmt.Errorf("exact: %w", err)
		}
		replace[from] = to
	}
	b, err := json.MarshalIndent(map[string]any{"Replace": replace}, "", "\t")
	if err != nil {
		panic("exact: internal error: strings do not marshal: " + err.Error()) // a map of strings always does
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o666); err != nil {
		return "", fmt.Errorf("exact: %w", err)
	}
	return overlay, nil
}

// Build builds the program pkg, a path as for go build in the current folder,
// into the file out, so that it is exact. The first time that compiles the
// standard library anew, about a minute on one processor; go keeps it. The error
// holds what the compiler said. Start the program with [Env], or have it call
// [Reexec].
//
// The program calls itself a test ([testing.Testing]), without which package
// crypto cannot be seeded.
func Build(ctx context.Context, out, pkg string) error {
	dir, err := os.MkdirTemp("", "starling-exact-")
	if err != nil {
		return fmt.Errorf("exact: %w", err)
	}
	overlay, err := Write(dir)
	if err == nil {
		_, err = command(exec.CommandContext(ctx, "go", "build", "-overlay", overlay,
			"-ldflags", "-X testing.testBinary=1 -X starling/simulation/exact.enabled=true",
			"-o", out, pkg))
	}
	if e := os.RemoveAll(dir); e != nil {
		err = errors.Join(err, fmt.Errorf("exact: %w", e))
	}
	return err
}

// command runs c and returns what it prints; its complaints are in the error.
func command(c *exec.Cmd) ([]byte, error) {
	out, err := c.Output()
	if err == nil {
		return out, nil
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w\n%s", err, e.Stderr)
	}
	return nil, fmt.Errorf("exact: running %s: %w", strings.Join(c.Args[:min(2, len(c.Args))], " "), err)
}
