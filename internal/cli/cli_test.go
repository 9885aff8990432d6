package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

var (
	errAway  = errors.New("the daemon is away")
	errPlain = errors.New("plain")
	errWrong = errors.New("wrong")
)

type hintedError struct{ error }

func (e hintedError) Unwrap() error { return e.error }
func (hintedError) Hint() string    { return "its own hint" }

func TestRunTellsCodesAndHints(t *testing.T) {
	causes := []Cause{
		{Is: errAway, Code: CodeAway, Hint: "start it"},
		{Is: errPlain, Code: 12},
		{Is: errWrong, Code: CodeUsage},
	}
	permission := fmt.Sprintf("this runs as user %d: `ls -ld` of the file and of the directories above it shows who may use it; run this as that user, change the owner, or name another place\n", os.Getuid())
	for _, test := range []struct {
		name   string
		args   []string
		err    error
		code   int
		stderr string
	}{
		{name: "Done", code: CodeOK},
		{name: "Failed", err: errors.New("boom"), code: CodeFailed, stderr: "tool: error: boom\n"},
		{name: "Cause", err: fmt.Errorf("open x: %w", errAway), code: CodeAway, stderr: "tool: error: open x: the daemon is away\ntool: hint: start it\n"},
		{name: "CauseWithoutHint", err: errPlain, code: 12, stderr: "tool: error: plain\n"},
		{name: "SeveralOnOneLine", err: fmt.Errorf("put: %w", errors.Join(errPlain, errAway)), code: CodeAway, stderr: "tool: error: put: plain; the daemon is away\ntool: hint: start it\n"},
		{name: "Usage", err: Usagef("--x %d", 1), code: CodeUsage, stderr: "tool: error: --x 1\ntool: hint: see `tool work --help`\n"},
		{name: "CauseOfUsage", err: errWrong, code: CodeUsage, stderr: "tool: error: wrong\ntool: hint: see `tool work --help`\n"},
		{name: "UsageOfACause", err: Usagef("read: %w", errAway), code: CodeAway, stderr: "tool: error: read: the daemon is away\ntool: hint: start it\n"},
		{name: "Hint", err: Hint(Usagef("no"), "do this"), code: CodeUsage, stderr: "tool: error: no\ntool: hint: do this\n"},
		{name: "HintOfACause", err: Hint(errAway, "do this"), code: CodeAway, stderr: "tool: error: the daemon is away\ntool: hint: do this\n"},
		{name: "HintOfItsOwn", err: fmt.Errorf("open: %w", hintedError{errPlain}), code: 12, stderr: "tool: error: open: plain\ntool: hint: its own hint\n"},
		{name: "NoPermission", err: fmt.Errorf("open: %w", &fs.PathError{Op: "open", Path: "/s/k", Err: syscall.EACCES}), code: CodeFailed, stderr: "tool: error: open: open /s/k: permission denied\ntool: hint: " + permission},
		{name: "NoPermissionToRename", err: &os.LinkError{Op: "rename", Old: "/s/a", New: "/s/b", Err: syscall.EPERM}, code: CodeFailed, stderr: "tool: error: rename /s/a /s/b: operation not permitted\ntool: hint: " + permission},
		{name: "NoPermissionOfUsage", err: Usagef("read configuration: %w", &fs.PathError{Op: "open", Path: "/c", Err: syscall.EACCES}), code: CodeUsage, stderr: "tool: error: read configuration: open /c: permission denied\ntool: hint: " + permission},
		{name: "NoPermissionForAPort", err: &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EACCES)}, code: CodeFailed, stderr: "tool: error: listen tcp: bind: permission denied\ntool: hint: ports below 1024 are the system's: take one above\n"},
		{name: "NoPermissionFromAPeer", err: fmt.Errorf("ask: %w", fs.ErrPermission), code: CodeFailed, stderr: "tool: error: ask: permission denied\n"},
		{name: "Stopped", err: fmt.Errorf("fetch: %w", context.Canceled), code: CodeFailed, stderr: "tool: stopped; start it again to go on where it was\n"},
		{name: "UnknownFlag", args: []string{"--nonsense"}, code: CodeUsage, stderr: "tool: error: unknown flag --nonsense\ntool: hint: see `tool --help`\n"},
		{name: "MistypedFlag", args: []string{"work", "--cuont", "1"}, code: CodeUsage, stderr: "tool: error: unknown flag --cuont\ntool: hint: did you mean --count?\n"},
		{name: "FlagWithOneDash", args: []string{"work", "-count"}, code: CodeUsage, stderr: "tool: error: unknown flag -count\ntool: hint: did you mean --count?\n"},
		{name: "FlagOfAnotherCommand", args: []string{"--count", "1"}, code: CodeUsage, stderr: "tool: error: unknown flag --count\ntool: hint: it is a flag of `tool work`\n"},
		{name: "FlagWithoutItsValue", args: []string{"work", "--count"}, code: CodeUsage, stderr: "tool: error: --count: its value is missing\ntool: hint: --count: how many\n"},
		{name: "BadValue", args: []string{"work", "--count", "many"}, code: CodeUsage, stderr: "tool: error: --count: \"many\" is no whole number\ntool: hint: --count: how many\n"},
		{name: "BadDuration", args: []string{"work", "--for", "3days"}, code: CodeUsage, stderr: "tool: error: --for: \"3days\" is no duration\ntool: hint: a duration is in hours, minutes and seconds: 168h is a week, 1h30m an hour and a half\n"},
		{name: "UnknownCommand", args: []string{"frobnicate"}, code: CodeUsage, stderr: "tool: error: unknown command \"frobnicate\"\ntool: hint: `tool --help` lists the commands\n"},
		{name: "MistypedCommand", args: []string{"wokr"}, code: CodeUsage, stderr: "tool: error: unknown command \"wokr\"\ntool: hint: did you mean `tool work`? `tool --help` lists the commands\n"},
		{name: "MistypedCommandOfAGroup", args: []string{"keys", "shw"}, code: CodeUsage, stderr: "tool: error: unknown command \"shw\"\ntool: hint: did you mean `tool keys show`? `tool keys --help` lists the commands\n"},
		{name: "MistypedCommandWithItsFlag", args: []string{"wokr", "--count", "1"}, code: CodeUsage, stderr: "tool: error: unknown command \"wokr\"\ntool: hint: did you mean `tool work`? `tool --help` lists the commands\n"},
		{name: "TooManyArguments", args: []string{"work", "x"}, code: CodeUsage, stderr: "tool: error: \"x\" is one argument too many\ntool: hint: usage: tool work; --help says more\n"},
		{name: "TooFewArguments", args: []string{"keys", "new", "a"}, code: CodeUsage, stderr: "tool: error: FILE is missing\ntool: hint: usage: tool keys new NAME FILE; --help says more\n"},
		{name: "Help", args: []string{"--help"}, code: CodeOK},
		{name: "HelpOf", args: []string{"help", "keys", "new"}, code: CodeOK},
		{name: "HelpOfNone", args: []string{"help", "keys", "shw"}, code: CodeUsage, stderr: "tool: error: unknown command \"shw\"\ntool: hint: did you mean `tool keys show`? `tool keys --help` lists the commands\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := &cobra.Command{Use: "tool"}
			work := &cobra.Command{Use: "work", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return test.err }}
			work.Flags().Int("count", 0, "how many")
			work.Flags().Duration("for", 0, "how long")
			keys := &cobra.Command{Use: "keys"}
			keys.AddCommand(&cobra.Command{Use: "new NAME FILE", Args: cobra.ExactArgs(2), Run: func(*cobra.Command, []string) {}},
				&cobra.Command{Use: "show", Args: cobra.NoArgs, Run: func(*cobra.Command, []string) {}})
			root.AddCommand(work, keys)
			args := test.args
			if args == nil {
				args = []string{"work"}
				if got := Code(test.err, causes); got != test.code {
					t.Errorf("Code: %d, want %d", got, test.code)
				}
			}
			var stdout, stderr bytes.Buffer
			code := Run(t.Context(), root, causes, args, &stdout, &stderr)
			if code != test.code || stderr.String() != test.stderr {
				t.Errorf("code %d, says %q, want %d and %q", code, stderr.String(), test.code, test.stderr)
			}
			if test.code != CodeOK && stdout.Len() > 0 {
				t.Errorf("prints %q", stdout.String())
			}
		})
	}
	if Hint(nil, "x") != nil {
		t.Error("a hint makes an error of none")
	}
	if err := Usagef("a: %w", errAway); !errors.Is(err, errAway) || !errors.Is(err, ErrUsage) {
		t.Errorf("%v wraps not both", err)
	}
}

// TestNamedFiles: a file that somebody named and that is not there is a mistake, and its
// hint says where it was looked for; one of the state is a failure.
func TestNamedFiles(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("plain", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	gone := func(path string) error { return &fs.PathError{Op: "open", Path: path, Err: syscall.ENOENT} }
	for _, test := range []struct {
		name string
		args []string
		err  error
		code int
		hint string
	}{
		{"Argument", []string{"nofile"}, gone("nofile"), CodeUsage, "there is no nofile in " + dir + ": is its name right, and is that the directory?"},
		{"Flag", []string{"--in", "nodir/x"}, fmt.Errorf("read: %w", gone("nodir/x")), CodeUsage, "there is no directory " + dir + "/nodir: make it, or name another file"},
		{"OneOfAList", []string{"--each", "plain", "--each", "nofile"}, errors.Join(errPlain, gone("nofile")), CodeUsage, "there is no nofile in " + dir + ": is its name right, and is that the directory?"},
		{"Directory", []string{"."}, &fs.PathError{Op: "read", Path: ".", Err: syscall.EISDIR}, CodeUsage, "that is a directory: name a file in it"},
		{"WrittenToADirectory", []string{"--in", "."}, OfFile(".", &os.LinkError{Op: "rename", Old: ".x.123", New: ".", Err: syscall.EEXIST}), CodeUsage, "that is a directory: name a file in it"},
		{"BelowAFile", []string{"plain/x"}, &fs.PathError{Op: "open", Path: "plain/x", Err: syscall.ENOTDIR}, CodeUsage, "one of the directories above it is a file"},
		{"WrittenAside", []string{"--in", "nodir/x"}, OfFile("nodir/x", gone("nodir/.x.123")), CodeUsage, "there is no directory " + dir + "/nodir: make it, or name another file"},
		{"OfTheState", []string{"nofile"}, gone("/state/table.json"), CodeFailed, ""},
		{"ItsOwnHint", []string{"nofile"}, Hint(gone("nofile"), "do this"), CodeUsage, "do this"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := &cobra.Command{Use: "tool"}
			work := &cobra.Command{Use: "work", RunE: func(*cobra.Command, []string) error { return test.err }}
			work.Flags().String("in", "", "")
			work.Flags().StringArray("each", nil, "")
			root.AddCommand(work)
			var stdout, stderr bytes.Buffer
			code := Run(t.Context(), root, nil, append([]string{"work"}, test.args...), &stdout, &stderr)
			_, hint, _ := strings.Cut(stderr.String(), "tool: hint: ")
			if code != test.code || strings.TrimSpace(hint) != test.hint {
				t.Errorf("code %d, says %q, want %d and the hint %q", code, stderr.String(), test.code, test.hint)
			}
			if strings.Contains(stderr.String(), ".x.123") {
				t.Errorf("names a file that nobody named: %s", stderr.String())
			}
		})
	}
}

// TestHintsLeadToTheSameState: a command that a hint names has the --state and --config
// that were typed, and one of publisher its --name.
func TestHintsLeadToTheSameState(t *testing.T) {
	const hint = "`follower add NAME`, `npm ping`, `publisher log --state x`, `follower --help`, their `up`, `publisher key show NAME`, `publisher log`, `publisher log --name a`"
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, hint},
		{[]string{"--state", "a b"}, "`follower add NAME --state 'a b'`, `npm ping`, `publisher log --state x`, `follower --help`, their `up`, `publisher key show NAME --state 'a b'`, `publisher log --state 'a b'`, `publisher log --name a --state 'a b'`"},
		{[]string{"--state", "s", "--config", "conf.toml"}, "`follower add NAME --state s --config conf.toml`, `npm ping`, `publisher log --state x`, `follower --help`, their `up`, `publisher key show NAME --state s --config conf.toml`, `publisher log --state s --config conf.toml`, `publisher log --name a --state s --config conf.toml`"},
		{[]string{"--name", "b"}, strings.ReplaceAll(hint, "`publisher log`", "`publisher log --name b`")},
	} {
		t.Chdir(t.TempDir())
		if err := os.WriteFile("conf.toml", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		root := &cobra.Command{Use: "follower"}
		root.AddCommand(&cobra.Command{Use: "work", RunE: func(*cobra.Command, []string) error { return Hint(errPlain, hint) }})
		root.PersistentFlags().String("name", "", "")
		new(Common).Bind(root)
		var stdout, stderr bytes.Buffer
		Run(t.Context(), root, nil, append([]string{"work"}, test.args...), &stdout, &stderr)
		if want := "follower: error: plain\nfollower: hint: " + test.want + "\n"; stderr.String() != want {
			t.Errorf("%q says %q, want %q", test.args, stderr.String(), want)
		}
	}
}

func TestCount(t *testing.T) {
	if got := Count(1, "line") + ", " + Count(0, "line") + ", " + Count(uint64(2), "byte"); got != "1 line, 0 lines, 2 bytes" {
		t.Error(got)
	}
}

// Wherever it runs, a time says in which zone it is.
func TestTime(t *testing.T) {
	at := time.Date(2026, 11, 27, 1, 2, 3, 4, time.FixedZone("", 3600))
	if got := Time(at); got != "2026-11-27 00:02:03 UTC" {
		t.Error(got)
	}
}

func TestVersion(t *testing.T) {
	root := &cobra.Command{Use: "tool"}
	root.AddCommand(VersionCommand())
	var stdout, stderr bytes.Buffer
	if code := Run(t.Context(), root, nil, []string{"version"}, &stdout, &stderr); code != CodeOK {
		t.Fatalf("code %d: %s", code, &stderr)
	}
	if !regexp.MustCompile(`^tool \S+ go1\.\d+`).MatchString(stdout.String()) {
		t.Errorf("version prints %q", stdout.String())
	}
}

// TestCommon: the common flags are resolved before a command runs.
func TestCommon(t *testing.T) {
	data, home := t.TempDir(), t.TempDir()
	for _, test := range []struct {
		name string
		args []string
		env  map[string]string
		want string // State, or an error
	}{
		{name: "DataDirectory", want: filepath.Join(data, "registry-mirror")},
		{name: "Home", env: map[string]string{"XDG_DATA_HOME": ""}, want: filepath.Join(home, ".local", "share", "registry-mirror")},
		{name: "RelativeDataDirectory", env: map[string]string{"XDG_DATA_HOME": "rel"}, want: filepath.Join(home, ".local", "share", "registry-mirror")},
		{name: "NoHome", env: map[string]string{"XDG_DATA_HOME": "", "HOME": ""}, want: "no place for the state"},
		{name: "Typed", args: []string{"--state", "/x/../y"}, want: "/y"},
		{name: "Environment", env: map[string]string{"REGMIRROR_STATE": "/z"}, want: "/z"},
		{name: "Node", args: []string{"--node", "other"}, want: "--node other: it is embedded or kubo"},
		{name: "Peer", args: []string{"--peer", "nonsense"}, want: "error: --peer nonsense: "},
		{name: "PeerWithoutID", args: []string{"--peer", "/ip4/127.0.0.1/tcp/4001"}, want: "hint: it is a multiaddr with /p2p/ID"},
		{name: "PeerOfTheEnvironment", env: map[string]string{"REGMIRROR_PEER": "nonsense"}, want: "error: --peer nonsense: "},
		{name: "GoodPeer", args: []string{"--state", "/x", "--peer", "/dns4/example.test/tcp/4001/p2p/12D3KooWJSuJDznuCpxE1KSoAxEReXU25SpaveVqtxFzHv8ksTxm"}, want: "/x"},
		{name: "Network", args: []string{"--network", "mars"}, want: "--network mars: it is local, lan or public"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("XDG_DATA_HOME", data)
			t.Setenv("XDG_CONFIG_HOME", t.TempDir())
			t.Setenv("HOME", home)
			for k, v := range test.env {
				t.Setenv(k, v)
			}
			var common Common
			root := &cobra.Command{Use: "tool"}
			common.Bind(root)
			root.AddCommand(&cobra.Command{Use: "work", RunE: func(cmd *cobra.Command, _ []string) error {
				fmt.Fprint(cmd.OutOrStdout(), common.State)
				return nil
			}})
			var stdout, stderr bytes.Buffer
			code := Run(t.Context(), root, nil, append([]string{"work"}, test.args...), &stdout, &stderr)
			if got := stdout.String() + stderr.String(); !strings.Contains(got, test.want) || (code == CodeOK) != filepath.IsAbs(test.want) || code != CodeOK && code != CodeUsage {
				t.Errorf("code %d: %q, want %q", code, got, test.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(data, "registry-mirror")); err == nil {
		t.Error("a state began by accident")
	}
}
