package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// EnvPrefix begins the name of every environment variable of the project.
const EnvPrefix = "REGMIRROR_"

// Commands are the programs that share a configuration file: each has a table
// of its own name in it, for the flags that only it has.
var Commands = []string{"follower", "publisher", "registry-mirror"}

// EnvName is the environment variable of a flag: --ipfs-api is REGMIRROR_IPFS_API.
func EnvName(flag string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Configure gives cmd's flags that were not typed their value from the
// environment, else from the configuration file: the one --config names, else
// the user's own if there is one. An empty variable says nothing. A variable
// that no program of ours knows is an error, and so is a key: a misspelt setting
// must not go unnoticed. A variable that only another program knows is that
// program's.
//
// The file's top level holds flags that several programs have, and the tables
// [follower], [publisher] and [registry-mirror] those of one of them.
func Configure(cmd *cobra.Command, environ []string) error {
	known := allFlags(cmd.Root())
	env := map[string]string{}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, EnvPrefix) {
			continue
		}
		env[name] = value
	}
	for name := range env {
		own := func(f string) bool { return EnvName(f) == name }
		if !slices.ContainsFunc(known, own) && !slices.ContainsFunc(Flags, own) && !sharedEnv[name] {
			return Hint(Usagef("unknown environment variable %s", name), "`"+cmd.CommandPath()+" --help` lists the flags; a flag's variable is "+EnvPrefix+" and its name")
		}
	}
	file, err := readConfig(cmd, env)
	if err != nil {
		return err
	}
	keys, err := file.flags(cmd.Root().Name(), known)
	if err != nil {
		return err
	}
	var first error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || first != nil {
			return
		}
		if v := env[EnvName(f.Name)]; v != "" {
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				first = Usagef("%s: %w", EnvName(f.Name), err)
			}
			return
		}
		if v, ok := keys[f.Name]; ok {
			for _, one := range v {
				if err := cmd.Flags().Set(f.Name, one); err != nil {
					first = Usagef("%s: key %s: %w", file.path, f.Name, err)
				}
			}
		}
	})
	return first
}

// Flags are the flags of all our programs. Each program's tests hold it to them.
var Flags = []string{
	"agent", "all", "allow-private", "ask-passphrase", "cached", "clear", "command", "config", "confirm-over", "count", "days", "every", "feed",
	"fetch", "follow", "format", "from-file", "gateway", "gateway-origin", "identity", "ipfs", "ipfs-api", "json", "keep-documents", "keep-unlisted", "largest",
	"lifetime", "listen", "lockfile", "max-rate", "max-removals", "max-tarball", "metadata-only", "name", "network", "newest", "next", "no-deps", "node",
	"once", "output", "overlap", "peer", "pull-through", "reason", "recipient", "release", "reserve", "retain", "route", "scope", "sequence-at-least", "share",
	"signatures", "since", "state", "successor", "tarball-host", "ttl", "upstream", "v2-only", "verbose", "wait", "watch",
}

// sharedEnv are variables of the project that are not flags: each is named
// where it is read.
var sharedEnv = map[string]bool{
	"REGMIRROR_TEST_KUBO": true, // internal/ipfs: the daemon that tests run
}

func allFlags(root *cobra.Command) []string {
	var names []string
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		add := func(f *pflag.Flag) { names = append(names, f.Name) }
		c.Flags().VisitAll(add)
		c.PersistentFlags().VisitAll(add)
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
	slices.Sort(names)
	return slices.Compact(names)
}

type configFile struct {
	path string
	keys map[string]any
}

func readConfig(cmd *cobra.Command, env map[string]string) (configFile, error) {
	path, typed := "", false
	if f := cmd.Flags().Lookup("config"); f != nil {
		path, typed = f.Value.String(), f.Changed
	}
	if v := env[EnvName("config")]; v != "" && !typed {
		path, typed = v, true
	}
	if path == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return configFile{}, nil // no home: no file
		}
		path = filepath.Join(dir, "registry-mirror", "config.toml")
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !typed {
		return configFile{}, nil
	}
	if err != nil {
		return configFile{}, Usagef("read configuration: %w", err)
	}
	c := configFile{path: path}
	if err := toml.Unmarshal(raw, &c.keys); err != nil {
		return configFile{}, Usagef("read configuration %s: %w", path, err)
	}
	return c, nil
}

// flags returns the values for command's flags, checking every key.
func (c configFile) flags(command string, known []string) (map[string][]string, error) {
	values := map[string][]string{}
	set := func(table, key string, v any) error {
		if !slices.Contains(known, key) || key == "config" || key == "help" {
			return Usagef("%s: unknown key %s%s", c.path, table, key)
		}
		if list, ok := v.([]any); ok {
			for _, one := range list {
				values[key] = append(values[key], fmt.Sprint(one))
			}
			return nil
		}
		values[key] = []string{fmt.Sprint(v)}
		return nil
	}
	for key, v := range c.keys {
		if _, ok := v.(map[string]any); ok {
			if !slices.Contains(Commands, key) {
				return nil, Usagef("%s: unknown table [%s]", c.path, key)
			}
			continue
		}
		if !shared[key] {
			return nil, Hint(Usagef("%s: unknown key %s", c.path, key), "a flag of one command goes into that command's table, as in [follower]")
		}
		if slices.Contains(known, key) {
			if err := set("", key, v); err != nil {
				return nil, err
			}
		}
	}
	if table, ok := c.keys[command].(map[string]any); ok {
		for key, v := range table { // the command's own table is the nearer one
			if err := set(command+".", key, v); err != nil {
				return nil, err
			}
		}
	}
	return values, nil
}
