package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// settings is a command with a flag of each source.
type settings struct {
	root, run *cobra.Command
	feed      string
	peers     []string
	json      bool
}

func newSettings() *settings {
	s := &settings{root: &cobra.Command{Use: "follower"}, run: &cobra.Command{Use: "run"}}
	s.root.PersistentFlags().StringArrayVar(&s.peers, "peer", nil, "")
	s.root.PersistentFlags().BoolVar(&s.json, "json", false, "")
	s.root.PersistentFlags().String("config", "", "")
	s.run.Flags().StringVar(&s.feed, "feed", "default", "")
	other := &cobra.Command{Use: "add"}
	other.Flags().Bool("no-deps", false, "")
	s.root.AddCommand(s.run, other)
	return s
}

// configure parses args for `run`, then configures it.
func (s *settings) configure(t *testing.T, environ []string, args ...string) error {
	t.Helper()
	s.run.InheritedFlags() // as cobra does before it parses
	if err := s.run.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	_, err := Configure(s.run, environ)
	return err
}

func writeConfig(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigurePrecedence(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	file := writeConfig(t, "json = true\npeer = [\"a\", \"b\"]\n[follower]\nfeed = \"file\"\n[publisher]\nname = \"other's\"\n")
	for _, test := range []struct {
		name, want string
		environ    []string
		args       []string
	}{
		{name: "Default", want: "default"},
		{name: "File", args: []string{"--config", file}, want: "file"},
		{name: "FileByVariable", environ: []string{"REGMIRROR_CONFIG=" + file}, want: "file"},
		{name: "Environment", environ: []string{"REGMIRROR_FEED=env"}, args: []string{"--config", file}, want: "env"},
		{name: "EmptyVariable", environ: []string{"REGMIRROR_FEED=", "REGMIRROR_CONFIG="}, args: []string{"--config", file}, want: "file"},
		{name: "Typed", environ: []string{"REGMIRROR_FEED=env"}, args: []string{"--config", file, "--feed", "typed"}, want: "typed"},
		{name: "TypedEmpty", environ: []string{"REGMIRROR_FEED=env"}, args: []string{"--config", file, "--feed", ""}, want: ""},
		{name: "TypedConfig", environ: []string{"REGMIRROR_CONFIG=nowhere"}, args: []string{"--config", file}, want: "file"},
		{name: "OthersVariables", environ: []string{"FEED=x", "REGMIRROR=x", "REGMIRROR_NO_DEPS=true"}, want: "default"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSettings()
			if err := s.configure(t, test.environ, test.args...); err != nil || s.feed != test.want {
				t.Errorf("feed is %q, %v, want %q", s.feed, err, test.want)
			}
		})
	}
	s := newSettings()
	if err := s.configure(t, nil, "--config", file); err != nil || !s.json || strings.Join(s.peers, " ") != "a b" {
		t.Errorf("json %v, peers %q, %v", s.json, s.peers, err)
	}
	s = newSettings() // a list that is typed replaces the file's
	if err := s.configure(t, nil, "--config", file, "--peer", "c"); err != nil || strings.Join(s.peers, " ") != "c" {
		t.Errorf("peers %q, %v", s.peers, err)
	}
}

func TestConfigureUsersOwnFile(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("HOME", dir)
	s := newSettings()
	if err := s.configure(t, nil); err != nil || s.feed != "default" {
		t.Fatalf("without a file: %q, %v", s.feed, err)
	}
	own, err := os.UserConfigDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(own, "registry-mirror"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(own, "registry-mirror", "config.toml")
	if err := os.WriteFile(path, []byte("[follower]\nfeed = \"own\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = newSettings()
	if err := s.configure(t, nil); err != nil || s.feed != "own" {
		t.Errorf("with the user's own file: %q, %v", s.feed, err)
	}
}

func TestConfigureRefuses(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	for _, test := range []struct {
		name, file, says string
		environ          []string
	}{
		{name: "Variable", environ: []string{"REGMIRROR_FEDE=x"}, says: "unknown environment variable REGMIRROR_FEDE"},
		{name: "EmptyVariable", environ: []string{"REGMIRROR_FEDE="}, says: "unknown environment variable REGMIRROR_FEDE"},
		{name: "ValueOfAVariable", environ: []string{"REGMIRROR_JSON=maybe"}, says: "REGMIRROR_JSON: "},
		{name: "Key", file: "jsno = true", says: "unknown key jsno"},
		{name: "KeyOfACommandAtTheTop", file: "feed = \"x\"", says: "unknown key feed"},
		{name: "KeyInTheTable", file: "[follower]\nfede = \"x\"", says: "unknown key follower.fede"},
		{name: "ConfigInTheFile", file: "[follower]\nconfig = \"x\"", says: "unknown key follower.config"},
		{name: "Table", file: "[folower]\nfeed = \"x\"", says: "unknown table [folower]"},
		{name: "Value", file: "json = \"maybe\"", says: "key json: "},
		{name: "NotTOML", file: "json: true", says: "read configuration"},
		{name: "NotTOMLFurtherDown", file: "json = true\n\n[follower]\nlisten = localhost\n", says: "line 4, column 10: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			var args []string
			if test.file != "" {
				args = []string{"--config", writeConfig(t, test.file)}
			}
			err := newSettings().configure(t, test.environ, args...)
			if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Configure: %v, want a usage error that says %q", err, test.says)
			}
		})
	}
	if err := newSettings().configure(t, nil, "--config", "nowhere.toml"); !errors.Is(err, ErrUsage) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was asked for and is not there: %v", err)
	}
}

// registrySettings is a command that works on one of several registries.
func registrySettings(t *testing.T, file string, environ []string, args ...string) (*Settings, *cobra.Command, error) {
	t.Helper()
	root, publish := &cobra.Command{Use: "publisher"}, &cobra.Command{Use: "publish"}
	root.PersistentFlags().String("name", "main", "")
	root.PersistentFlags().String("config", "", "")
	ownFlags(publish)
	root.AddCommand(publish)
	publish.InheritedFlags()
	if err := publish.ParseFlags(append(args, "--config", writeConfig(t, file))); err != nil {
		t.Fatal(err)
	}
	s, err := Configure(publish, environ)
	return s, publish, err
}

func ownFlags(cmd *cobra.Command) {
	cmd.Flags().StringArray("route", nil, "")
	cmd.Flags().Duration("ttl", time.Minute, "")
	cmd.Flags().Duration("every", 0, "")
}

// A registry's own table is nearer than the command's, and farther than the
// environment; who works on several asks for each.
func TestConfigureRegistries(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	const file = `[publisher]
ttl = "2m"
route = ["/a", "/b"]
[registries.acme]
ttl = "3m"
route = ["/c"]
every = "5m"
[registries.acme.policy]
only = ["@acme/*"]
[registries."b.c"]
route = []
`
	for _, test := range []struct {
		name, ttl, routes, every string
		environ, args            []string
	}{
		{name: "main", ttl: "2m0s", routes: "[/a,/b]", every: "0s"},
		{name: "acme", ttl: "3m0s", routes: "[/c]", every: "5m0s"},
		{name: "b.c", ttl: "2m0s", routes: "[]", every: "0s"},
		{name: "acme", ttl: "4m0s", routes: "[/c]", every: "5m0s", environ: []string{"REGMIRROR_TTL=4m"}},
		{name: "acme", ttl: "5m0s", routes: "[/x,/y]", every: "5m0s", environ: []string{"REGMIRROR_TTL=4m"}, args: []string{"--ttl", "5m", "--route", "/x", "--route", "/y"}},
	} {
		s, cmd, err := registrySettings(t, file, test.environ, append(test.args, "--name", test.name)...)
		if err != nil {
			t.Fatal(err)
		}
		other := &cobra.Command{}
		ownFlags(other)
		from, err := s.For(test.name, other.Flags())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []*cobra.Command{cmd, other} {
			value := func(name string) string { return c.Flags().Lookup(name).Value.String() }
			every := test.every
			if c == cmd {
				every = "0s" // a schedule, which one run does not follow
			}
			if value("ttl") != test.ttl || value("route") != test.routes || value("every") != every {
				t.Errorf("%s %v %v: ttl %s, route %s, every %s", test.name, test.environ, test.args, value("ttl"), value("route"), value("every"))
			}
		}
		want := map[string]string{"2m0s": s.File + " [publisher]", "3m0s": s.File + " [registries.acme]", "4m0s": "REGMIRROR_TTL", "5m0s": "typed"}[test.ttl]
		if from["ttl"] != want {
			t.Errorf("%s: ttl comes from %s, want %s", test.name, from["ttl"], want)
		}
		if written := s.Written(); len(written.typed)+len(written.env) > 0 || s.Registries["acme"].Policy["only"] == nil {
			t.Errorf("%+v", written)
		}
	}
	for _, test := range []struct{ file, says string }{
		{"registries = 1", "unknown key registries"},
		{"[registries]\nacme = 1", "unknown key registries.acme"},
		{"[registries.acme]\nrouet = [\"/x\"]", "[registries.acme]: unknown key rouet"},
		{"[registries.acme]\nname = \"x\"", "[registries.acme]: unknown key name"},
		{"[registries.acme.polcy]\nonly = []", "[registries.acme]: unknown key polcy"},
		{"[registries.acme]\npolicy = \"x\"", "policy is no table"},
		{"[registries.\"a b\"]\nx = 1", `[registries."a b"]: unknown key x`},
		{"[registries.main]\nttl = \"soon\"", "[registries.main] key ttl: "},
	} {
		_, _, err := registrySettings(t, test.file, nil)
		if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want %q", test.file, err, test.says)
		}
	}
}
