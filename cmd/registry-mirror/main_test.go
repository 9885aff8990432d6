package main

import (
	"os"
	"os/exec"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/registry-mirror/registry-mirror/internal/cli/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, "registry-mirror", main) }

// archive is what the scripts' registry holds: a leaf with several versions, what
// depends on it, and a scope.
const archive = `
-- leaf@1.0.0/package.json --
{"name": "leaf", "version": "1.0.0"}
-- leaf@1.1.0/package.json --
{"name": "leaf", "version": "1.1.0"}
-- leaf@2.0.0/package.json --
{"name": "leaf", "version": "2.0.0"}
-- branch@1.0.0/package.json --
{"name": "branch", "version": "1.0.0", "dependencies": {"leaf": "^1.0.0"}}
-- @scope/twig@0.1.0/package.json --
{"name": "@scope/twig", "version": "0.1.0", "dependencies": {"branch": "1"}}
`

// The scripts have one command more:
//
//	build COMMAND…   builds the other commands of the project into $WORK/bin, which is in $PATH
func TestScripts(t *testing.T) {
	clitest.Run(t, archive, map[string]func(*testscript.TestScript, bool, []string){"build": build})
}

func build(ts *testscript.TestScript, _ bool, args []string) {
	bin := ts.MkAbs("bin")
	// Without debug information a link takes half as long.
	cmd := exec.Command("go", append([]string{"build", "-ldflags=-s -w", "-o", bin + string(os.PathSeparator)}, args...)...)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		ts.Fatalf("go build: %v\n%s", err, out)
	}
	ts.Setenv("PATH", bin+string(os.PathListSeparator)+ts.Getenv("PATH"))
}

func TestFlags(t *testing.T) { clitest.Flags(t, root()) }
