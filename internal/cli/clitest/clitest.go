// Package clitest runs a command's testscripts: its main in a process of its
// own, beside a small true npm registry on loopback. Only tests import it.
package clitest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/loopback"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

// Flags checks that every flag of a program is in cli.Flags, by which the other
// programs know whose a variable is.
func Flags(t *testing.T, root *cobra.Command) {
	t.Helper()
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		check := func(f *pflag.Flag) {
			if !slices.Contains(cli.Flags, f.Name) {
				t.Errorf("%s: --%s is not in cli.Flags", c.CommandPath(), f.Name)
			}
		}
		c.Flags().VisitAll(check)
		c.PersistentFlags().VisitAll(check)
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
}

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

// Archive is a registry for Run: a leaf with several versions, what depends on
// it, and a scope.
const Archive = `
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

// Run runs the scripts in testdata/script, each with an npm registry of its own
// that holds archive (as npmtest.New takes it): $UPSTREAM is its URL, $FEED its
// feed's. $PORT is a free port on 127.0.0.1 and ::1. The state is in s.
//
// Beside testscript's own commands and more, a script has
//
//	code N PROGRAM ARG…         runs it, which must end with exit code N
//	await SECONDS PATTERN PROGRAM ARG…  runs it until it succeeds and prints PATTERN
//	get STATUS URL [FILE]       asks, saving the body; tries while nobody listens
//	jsonenv VAR FILE KEY…       puts a value of a JSON object into $VAR; a number picks from an array
//	freeport VAR                puts another free port into $VAR
//	publish FILE                adds a txtar archive ("@@ name @@" for "-- name --") to the registry
//	unpublish NAME VERSION      takes a version out of the registry
//	corrupt NAME VERSION        gives a tarball of the registry other bytes
//	requests N PATH             the registry was asked N times for PATH
//	[!] ailing                  the registry answers 503 from here on, or no longer
//	away                        ends the registry
//	fill NAME[@RANGE]…          adds names to the selection and fetches it, as a follower does
//	follower-runs               from here on a follower runs on the state, until the script ends
//
// and the condition [ipv6]: there is a ::1 to listen on.
func Run(t *testing.T, archive string, more map[string]func(ts *testscript.TestScript, neg bool, args []string)) {
	commands := map[string]func(*testscript.TestScript, bool, []string){
		"code": code, "await": await, "get": get, "jsonenv": jsonenv, "freeport": newPort,
		"publish": publish, "unpublish": unpublish, "corrupt": corrupt, "requests": requests, "away": away, "ailing": ailing,
		"fill": fill, "follower-runs": followerRuns,
	}
	maps.Copy(commands, more)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Cmds:                commands,
		Condition: func(name string) (bool, error) {
			if name != "ipv6" {
				return false, fmt.Errorf("unknown condition %s", name)
			}
			l, err := net.Listen("tcp", "[::1]:0")
			if err == nil {
				l.Close()
			}
			return err == nil, nil
		},
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
			env.Setenv(stateVar, env.WorkDir+"/s")
			return nil
		},
	})
}

type registryKey struct{}

const stateVar = "REGMIRROR_STATE"

// freePort returns a port that nobody listens on. It is below those that the
// system gives to outgoing connections, one of which could have it by the time
// that the script uses it.
func freePort() (string, error) {
	for range 100 {
		port := strconv.Itoa(20000 + rand.IntN(12000))
		free := true
		for _, host := range []string{"127.0.0.1", "::1"} {
			l, err := net.Listen("tcp", net.JoinHostPort(host, port))
			if err == nil {
				l.Close()
			}
			free = free && !errors.Is(err, syscall.EADDRINUSE)
		}
		if free {
			return port, nil
		}
	}
	return "", errors.New("no free port found")
}

func newPort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport VAR")
	}
	port, err := freePort()
	ts.Check(err)
	ts.Setenv(args[0], port)
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
	if neg || len(args) < 3 {
		ts.Fatalf("usage: await SECONDS PATTERN PROGRAM ARG...")
	}
	seconds, err := strconv.Atoi(args[0])
	ts.Check(err)
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	for end := time.Now().Add(time.Duration(seconds) * time.Second); ; {
		err := ts.Exec(args[2], args[3:]...)
		if err == nil && pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("not within %d s: %v", seconds, err)
		}
		time.Sleep(200 * time.Millisecond) // between two tries, waiting for nothing in particular
	}
}

func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: get STATUS URL [FILE]")
	}
	var resp *http.Response
	var err error
	for end := time.Now().Add(20 * time.Second); ; {
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

func jsonenv(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: jsonenv VAR FILE KEY...")
	}
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &v))
	for _, key := range args[2:] {
		switch in := v.(type) {
		case map[string]any:
			v = in[key]
		case []any:
			i, err := strconv.Atoi(key)
			ts.Check(err)
			if i >= len(in) {
				ts.Fatalf("%s: no element %d", args[1], i)
			}
			v = in[i]
		}
	}
	if v == nil {
		ts.Fatalf("%s has no %s", args[1], strings.Join(args[2:], " "))
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

func registry(ts *testscript.TestScript) *npmtest.Registry {
	return ts.Value(registryKey{}).(*npmtest.Registry)
}

func publish(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: publish FILE")
	}
	ts.Check(registry(ts).Add(unquote(ts.ReadFile(args[0]))))
}

func unpublish(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: unpublish NAME VERSION")
	}
	registry(ts).Unpublish(args[0], args[1])
}

func corrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: corrupt NAME VERSION")
	}
	registry(ts).SetTarball(args[0], args[1], []byte("not what was published"))
}

func requests(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: requests N PATH")
	}
	if n := registry(ts).Requests(args[1]); strconv.Itoa(n) != args[0] {
		ts.Fatalf("%s was asked for %d times, want %s", args[1], n, args[0])
	}
}

// ailing makes the registry answer 503; negated, it is well again.
func ailing(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 0 {
		ts.Fatalf("usage: [!] ailing")
	}
	if neg {
		registry(ts).Heal()
		return
	}
	registry(ts).Fault("/", func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "ailing", http.StatusServiceUnavailable)
		return true
	})
}

func away(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: away")
	}
	registry(ts).Close()
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
