package main

import (
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/cli/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, "follower", main) }

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

func TestScripts(t *testing.T) { clitest.Run(t, archive, nil) }

func TestFlags(t *testing.T) { clitest.Flags(t, root()) }
