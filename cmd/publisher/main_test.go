package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/ipns/pb"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"google.golang.org/protobuf/proto"

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
//	forge KIND FILE VAR  writes a record that a hostile hand made, and puts the
//	                name that it is of into $VAR; the kinds are forgeries'
//	unlist NAME     takes a package out of the list behind everybody's back
//	hold REGISTRY   has the registry's index until the script ends, as a publisher does
//	hold-ledger     has the ledger and answers nobody
//	npm-publish STATUS URL TOKEN NAME VERSION  sends a version as npm publish does
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
		"forge": forge,
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
		"npm-publish": npmPublish,
	})
}

func npmPublish(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 5 {
		ts.Fatalf("usage: npm-publish STATUS URL TOKEN NAME VERSION")
	}
	name, version := args[3], args[4]
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	w := tar.NewWriter(z)
	inside := fmt.Sprintf(`{"name":%q,"version":%q}`, name, version)
	ts.Check(w.WriteHeader(&tar.Header{Name: "package/package.json", Mode: 0o644, Size: int64(len(inside))}))
	_, err := io.WriteString(w, inside)
	ts.Check(errors.Join(err, w.Close(), z.Close()))
	sum := sha512.Sum512(packed.Bytes())
	encode := base64.StdEncoding.EncodeToString
	document := fmt.Sprintf(`{"_id":%[1]q,"name":%[1]q,"dist-tags":{"latest":%[2]q},"versions":{%[2]q:{"name":%[1]q,"version":%[2]q,"dist":{"integrity":"sha512-%[3]s"}}},"_attachments":{"%[1]s-%[2]s.tgz":{"data":%[4]q}}}`,
		name, version, encode(sum[:]), encode(packed.Bytes()))
	req, err := http.NewRequest(http.MethodPut, args[1]+"/"+strings.Replace(name, "/", "%2f", 1), strings.NewReader(document))
	ts.Check(err)
	req.Header.Set("Authorization", "Bearer "+args[2])
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	if strconv.Itoa(resp.StatusCode) != args[0] {
		ts.Fatalf("%s, want %s: %s", resp.Status, args[0], body)
	}
}

// forgeries are records, made of a good one and its key.
var forgeries = map[string]func(ic.PrivKey, []byte) []byte{
	"good": func(_ ic.PrivKey, good []byte) []byte { return good },
	"big": func(_ ic.PrivKey, good []byte) []byte {
		return append(good, make([]byte, ipns.MaxRecordSize+1-len(good))...)
	},
	"garbage": func(ic.PrivKey, []byte) []byte { return []byte("\x1b[2Jthis is no record\n") },
	"nothing": func(ic.PrivKey, []byte) []byte { return nil },
	"unsigned": func(_ ic.PrivKey, good []byte) []byte {
		return edit(good, func(p *pb.IpnsRecord) { p.SignatureV2 = nil })
	},
	"v1": func(_ ic.PrivKey, good []byte) []byte {
		return edit(good, func(p *pb.IpnsRecord) { p.SignatureV2, p.Data = nil, nil })
	},
	"hostile": func(_ ic.PrivKey, good []byte) []byte {
		return edit(good, func(p *pb.IpnsRecord) { p.Value = []byte("\x1b[2J") })
	},
	"twice": func(key ic.PrivKey, _ []byte) []byte {
		data := []byte("\xa2\x65Value\x42/a\x65Value\x42/b") // CBOR: {"Value": "/a", "Value": "/b"}
		signature, _ := key.Sign(append([]byte("ipns-signature:"), data...))
		return edit(nil, func(p *pb.IpnsRecord) { p.Data, p.SignatureV2 = data, signature })
	},
	"expired":  func(key ic.PrivKey, _ []byte) []byte { return signed(key, 3, -time.Hour) },
	"sequence": func(key ic.PrivKey, _ []byte) []byte { return signed(key, 1<<62, time.Hour) },
	"last":     func(key ic.PrivKey, _ []byte) []byte { return signed(key, math.MaxUint64, time.Hour) },
}

func edit(raw []byte, change func(*pb.IpnsRecord)) []byte {
	var p pb.IpnsRecord
	if err := proto.Unmarshal(raw, &p); err != nil {
		panic(err)
	}
	change(&p)
	raw, err := proto.Marshal(&p)
	if err != nil {
		panic(err)
	}
	return raw
}

func signed(key ic.PrivKey, seq uint64, valid time.Duration) []byte {
	value := path.FromCid(cid.NewCidV1(cid.Raw, multihash.Multihash("\x00\x00"))) // an empty file
	rec, err := ipns.NewRecord(key, value, seq, time.Now().Add(valid), time.Minute)
	if err != nil {
		panic(err)
	}
	raw, err := ipns.MarshalRecord(rec)
	if err != nil {
		panic(err)
	}
	return raw
}

func forge(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 || forgeries[args[0]] == nil {
		ts.Fatalf("usage: forge KIND FILE VAR")
	}
	key, public, err := ic.GenerateEd25519Key(rand.Reader)
	ts.Check(err)
	id, err := peer.IDFromPublicKey(public)
	ts.Check(err)
	raw := forgeries[args[0]](key, signed(key, 3, time.Hour))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), raw, 0o600))
	ts.Setenv(args[2], ipns.NameFromPeer(id).String())
}

func TestFlags(t *testing.T) { clitest.Flags(t, root()) }
