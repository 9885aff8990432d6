package main

import (
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/cli/clitest"
)

func TestMain(m *testing.M) { clitest.Main(m, "follower", main) }

func TestScripts(t *testing.T) { clitest.Run(t, clitest.Archive, nil) }

func TestFlags(t *testing.T) { clitest.Flags(t, root()) }
