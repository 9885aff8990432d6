// Package clitest runs a command's testscripts: its main in a process of its
// own, beside a small true npm registry on loopback. Only tests import it.
package clitest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

// Main is a command's TestMain: name runs command in scripts.
func Main(m *testing.M, name string, command func()) {
	testscript.Main(tests{m}, map[string]func(){name: func() {
		loopback.Refuse()
		command()
	}})
}

type tests struct{ m *testing.M }

func (t tests) Run() int {
	loopback.Main(t.m) // exits
	return 0
}

// Run runs the scripts in testdata/script, each with an npm registry that holds
// archive (as npmtest.New takes it): $UPSTREAM is its URL, $FEED its feed's.
// $PORT is a free port on 127.0.0.1 and ::1.
//
// Beside testscript's own, a script has the commands
//
//	code N PROGRAM ARG…         runs it, which must end with exit code N
//	await SECONDS PROGRAM ARG…  runs it until it succeeds
//	get STATUS URL [FILE]       asks, saving the body; tries while nobody listens
//	publish FILE                adds a txtar archive ("@@ name @@" for "-- name --") to the registry
func Run(t *testing.T, archive string) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			r, err := npmtest.Start("127.0.0.1:0", archive)
			if err != nil {
				return err
			}
			env.Defer(r.Close)
			env.Values[registryKey{}] = r
			port, err := freePort()
			if err != nil {
				return err
			}
			env.Setenv("UPSTREAM", r.URL)
			env.Setenv("FEED", r.FeedURL)
			env.Setenv("PORT", port)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("REGMIRROR_STATE", env.WorkDir+"/s")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "await": await, "get": get, "publish": publish,
		},
	})
}

type registryKey struct{}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await SECONDS PROGRAM ARG...")
	}
	seconds, err := strconv.Atoi(args[0])
	ts.Check(err)
	for end := time.Now().Add(time.Duration(seconds) * time.Second); ; {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("not within %d s: %v", seconds, err)
		}
		time.Sleep(50 * time.Millisecond) // between two tries, waiting for nothing in particular
	}
}

func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: get STATUS URL [FILE]")
	}
	var resp *http.Response
	var err error
	for end := time.Now().Add(30 * time.Second); ; {
		if resp, err = http.Get(args[1]); err == nil || time.Now().After(end) {
			break
		}
		time.Sleep(50 * time.Millisecond) // until somebody listens
	}
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	ts.Check(err)
	if len(args) == 3 {
		ts.Check(os.WriteFile(ts.MkAbs(args[2]), body, 0o644))
	}
	if strconv.Itoa(resp.StatusCode) != args[0] {
		ts.Fatalf("%s: %s, want %s: %.500s", args[1], resp.Status, args[0], body)
	}
}

func publish(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: publish FILE")
	}
	r, ok := ts.Value(registryKey{}).(*npmtest.Registry)
	if !ok {
		ts.Fatalf("no registry")
	}
	ts.Check(r.Add(unquote(ts.ReadFile(args[0]))))
}

// unquote turns the "@@ name @@" lines of an archive within an archive into
// txtar's own.
func unquote(s string) string {
	var out []byte
	for line := range strings.Lines(s) {
		if len(line) > 7 && line[:3] == "@@ " && line[len(line)-4:] == " @@\n" {
			line = fmt.Sprintf("-- %s --\n", line[3:len(line)-4])
		}
		out = append(out, line...)
	}
	return string(out)
}
