package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/cli/clitest"
	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/state"
)

func TestMain(m *testing.M) { clitest.Main(m, "publisher", main) }

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
{"name": "branch", "version": "1.0.0", "dependencies": {"leaf": "^2.0.0"}}
-- @scope/twig@0.1.0/package.json --
{"name": "@scope/twig", "version": "0.1.0", "dependencies": {"branch": "1"}}
`

// The scripts have these commands more:
//
//	agent FILE      runs an ssh-agent at $SSH_AUTH_SOCK with a new key, and writes its public key
//	agent-ends      ends it
//	unlist NAME     takes a package out of the list behind everybody's back
//	hold REGISTRY   has the registry's index until the script ends, as a publisher does
//	hold-ledger     has the ledger and answers nobody
func TestScripts(t *testing.T) {
	clitest.Run(t, archive, map[string]func(*testscript.TestScript, bool, []string){
		"agent": func(ts *testscript.TestScript, _ bool, args []string) {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			ts.Check(err)
			ring := agent.NewKeyring()
			ts.Check(ring.Add(agent.AddedKey{PrivateKey: key}))
			public, err := ssh.NewPublicKey(key.Public())
			ts.Check(err)
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), ssh.MarshalAuthorizedKey(public), 0o644))
			l, err := net.Listen("unix", ts.MkAbs("agent.sock"))
			ts.Check(err)
			ts.Setenv("SSH_AUTH_SOCK", ts.MkAbs("agent.sock"))
			var served sync.WaitGroup
			served.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					served.Go(func() {
						defer conn.Close()
						agent.ServeAgent(ring, conn)
					})
				}
			})
			ts.Defer(func() {
				l.Close()
				served.Wait()
			})
		},
		"agent-ends": func(ts *testscript.TestScript, _ bool, _ []string) {
			ts.Check(os.Remove(ts.Getenv("SSH_AUTH_SOCK")))
		},
		"hold": func(ts *testscript.TestScript, _ bool, args []string) {
			ix, err := index.Open(state.Dir(ts.Getenv("REGMIRROR_STATE")).Index(args[0]), index.Options{})
			ts.Check(err)
			ts.Defer(func() { ix.Close() })
		},
		"unlist": func(ts *testscript.TestScript, _ bool, args []string) {
			ix, err := index.Open(state.Dir(ts.Getenv("REGMIRROR_STATE")).Index("main"), index.Options{})
			ts.Check(err)
			sources, err := ix.Sources()
			ts.Check(err)
			_, _, err = ix.Apply(context.Background(), index.Batch{
				Changes: []index.Change{{Entry: index.Entry{Name: npm.Name(args[0])}, Delete: true}}, Sources: sources,
			})
			ts.Check(err)
			ts.Check(ix.Close())
		},
		"hold-ledger": func(ts *testscript.TestScript, _ bool, _ []string) {
			store, err := ledger.Open(state.Dir(ts.Getenv("REGMIRROR_STATE")).Ledger(), ledger.Options{})
			ts.Check(err)
			ts.Defer(func() { store.Close() })
		},
	})
}

func TestFlags(t *testing.T) { clitest.Flags(t, root()) }
