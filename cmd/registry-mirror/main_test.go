package main

import (
	"os"
	"os/exec"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/registry-mirror/registry-mirror/internal/cli/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, "registry-mirror", main) }

// The scripts have one command more:
//
//	build COMMAND…   builds the other commands of the project into $WORK/bin, which is in $PATH
func TestScripts(t *testing.T) {
	clitest.Run(t, clitest.Archive, map[string]func(*testscript.TestScript, bool, []string){"build": build})
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
