package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
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

// registryKeys are the flags that a table [registries.NAME] may hold: those that are
// a registry's own. Beside them it may have a table "policy".
var registryKeys = []string{"every", "gateway-origin", "identity", "lifetime", "metrics", "retain", "route", "ttl", "v2-only", "witness"}

// Settings are what was typed, and what environment and configuration file say, for
// one run of a command.
type Settings struct {
	File       string           // the configuration file, "" where there is none
	Registries map[string]Table // by the names of their tables [registries.NAME]

	typed map[string]*pflag.Flag
	env   map[string]string
	keys  map[string][]string // of the file, for this program
	where map[string]string   // of those, where in the file they stand
}

// Table is what the configuration file says of one registry.
type Table struct {
	Keys   map[string][]string
	Policy map[string]any // as TOML gives it; nil where there is none
}

// RegistryTable is the name of a registry's table in the configuration file.
func RegistryTable(name string) string {
	if bareKey.MatchString(name) {
		return "[registries." + name + "]"
	}
	return fmt.Sprintf("[registries.%q]", name)
}

// PolicyTable is the name of the table of its policy.
func PolicyTable(name string) string {
	return strings.TrimSuffix(RegistryTable(name), "]") + ".policy]"
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// Configure gives cmd's flags that were not typed their value from the
// environment, else from the configuration file: the one --config names, else
// the user's own if there is one. An empty variable says nothing. A variable
// that no program of ours knows is an error, and so is a key: a misspelt setting
// must not go unnoticed. A variable that only another program knows is that
// program's.
//
// The file's top level holds flags that several programs have, and the tables
// [follower], [publisher] and [registry-mirror] those of one of them. A table
// [registries.NAME] is nearer than those for a command that has --name, and works on
// that registry; its key "every", a schedule, is left to whoever runs several.
func Configure(cmd *cobra.Command, environ []string) (*Settings, error) {
	known := allFlags(cmd.Root())
	s := &Settings{env: map[string]string{}, typed: map[string]*pflag.Flag{}}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, EnvPrefix) {
			continue
		}
		s.env[name] = value
	}
	for name := range s.env {
		own := func(f string) bool { return EnvName(f) == name }
		if !slices.ContainsFunc(known, own) && !slices.ContainsFunc(Flags, own) && !sharedEnv[name] {
			return nil, Hint(Usagef("unknown environment variable %s", name), "`"+cmd.CommandPath()+" --help` lists the flags; a flag's variable is "+EnvPrefix+" and its name")
		}
	}
	file, err := readConfig(cmd, s.env)
	if err != nil {
		return nil, err
	}
	s.File = file.path
	if s.Registries, err = file.registries(); err != nil {
		return nil, err
	}
	if s.keys, s.where, err = file.flags(cmd.Root().Name(), known); err != nil {
		return nil, err
	}
	cmd.Flags().Visit(func(f *pflag.Flag) { s.typed[f.Name] = f })
	name := cmd.Flags().Lookup("name")
	if name == nil {
		return s, s.fill(cmd.Flags(), "", Table{}, nil)
	}
	if err := s.fillOne(name, cmd.Flags(), "", Table{}, nil); err != nil {
		return nil, err
	}
	table := s.Registries[name.Value.String()]
	table.Keys = maps.Clone(table.Keys)
	delete(table.Keys, "every")
	return s, s.fill(cmd.Flags(), name.Value.String(), table, nil)
}

// For gives flags, of which none was parsed, the values that hold for a registry: as
// typed, else as Configure says. It gives where each comes from that has no default.
func (s *Settings) For(name string, flags *pflag.FlagSet) (from map[string]string, err error) {
	from = map[string]string{}
	return from, s.fill(flags, name, s.Registries[name], from)
}

// Written is s with what the file says alone.
func (s *Settings) Written() *Settings {
	return &Settings{File: s.File, Registries: s.Registries, keys: s.keys, where: s.where}
}

func (s *Settings) fill(flags *pflag.FlagSet, name string, table Table, from map[string]string) (first error) {
	flags.VisitAll(func(f *pflag.Flag) {
		if first == nil {
			first = s.fillOne(f, flags, name, table, from)
		}
	})
	return first
}

func (s *Settings) fillOne(f *pflag.Flag, flags *pflag.FlagSet, name string, table Table, from map[string]string) error {
	set := func(where, what string, values ...string) error {
		if from != nil {
			from[f.Name] = where
		}
		for _, v := range values {
			if err := flags.Set(f.Name, v); err != nil {
				return wrongValue(what, err)
			}
		}
		return nil
	}
	if typed := s.typed[f.Name]; typed != nil {
		if typed == f || typed.Value.Type() != f.Value.Type() {
			return nil
		}
		if list, ok := typed.Value.(pflag.SliceValue); ok {
			return set("typed", "--"+f.Name, list.GetSlice()...)
		}
		return set("typed", "--"+f.Name, typed.Value.String())
	}
	if f.Changed {
		return nil
	}
	if v := s.env[EnvName(f.Name)]; v != "" {
		return set(EnvName(f.Name), EnvName(f.Name), v)
	}
	if v, ok := table.Keys[f.Name]; ok {
		where := s.File + " " + RegistryTable(name)
		return set(where, fmt.Sprintf("%s: %s key %s", s.File, RegistryTable(name), f.Name), v...)
	}
	if v, ok := s.keys[f.Name]; ok {
		return set(strings.TrimSpace(s.File+" "+s.where[f.Name]), fmt.Sprintf("%s: key %s", s.File, f.Name), v...)
	}
	return nil
}

// Flags are the flags of all our programs. Each program's tests hold it to them.
var Flags = []string{
	"accept-stale", "agent", "all", "allow-private", "ask-passphrase", "at", "cache-size", "cached", "clear", "command", "config", "confirm-over", "count", "days", "every", "feed",
	"fetch", "follow", "format", "from-file", "gateway", "gateway-origin", "identity", "ipfs", "ipfs-api", "json", "keep-documents", "keep-unlisted", "largest",
	"lifetime", "listen", "lockfile", "max-rate", "max-removals", "max-stale", "max-tarball", "metadata-only", "metrics", "name", "network", "newest", "next", "no-deps", "no-upstream", "node",
	"offline", "once", "output", "overlap", "package", "peer", "project", "publish-to", "pull-through", "reason", "recipient", "registry", "release", "reserve", "retain",
	"route", "scope", "sequence-at-least", "share", "signatures", "since", "state", "successor", "tarball-host", "trusted-proxy", "ttl", "upstream", "user", "v2-only",
	"verbose", "wait", "watch", "whole-list", "witness",
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
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, column := at.Position()
			return configFile{}, Hint(Usagef("read configuration %s, line %d, column %d: %w", path, line, column, err), "TOML has key = value lines under [tables], and text in quotes; docs/formats.md has the keys")
		}
		return configFile{}, Usagef("read configuration %s: %w", path, err)
	}
	return c, nil
}

// flags returns the values for command's flags, and the tables that they stand in,
// checking every key.
func (c configFile) flags(command string, known []string) (values map[string][]string, where map[string]string, err error) {
	values, where = map[string][]string{}, map[string]string{}
	set := func(table, key string, v any) error {
		if !slices.Contains(known, key) || key == "config" || key == "help" {
			return Usagef("%s: unknown key %s%s", c.path, table, key)
		}
		values[key] = texts(v)
		if where[key] = ""; table != "" {
			where[key] = "[" + strings.TrimSuffix(table, ".") + "]"
		}
		return nil
	}
	for key, v := range c.keys {
		if _, ok := v.(map[string]any); ok {
			if !slices.Contains(Commands, key) && key != "registries" {
				return nil, nil, Usagef("%s: unknown table [%s]", c.path, key)
			}
			continue
		}
		if !shared[key] {
			return nil, nil, Hint(Usagef("%s: unknown key %s", c.path, key), "a flag of one command goes into that command's table, as in [follower]")
		}
		if slices.Contains(known, key) {
			if err := set("", key, v); err != nil {
				return nil, nil, err
			}
		}
	}
	if table, ok := c.keys[command].(map[string]any); ok {
		for key, v := range table { // the command's own table is the nearer one
			if err := set(command+".", key, v); err != nil {
				return nil, nil, err
			}
		}
	}
	return values, where, nil
}

// texts are the values of a key as a flag takes them.
func texts(v any) []string {
	list, ok := v.([]any)
	if !ok {
		return []string{fmt.Sprint(v)}
	}
	all := make([]string, len(list))
	for i, one := range list {
		all[i] = fmt.Sprint(one)
	}
	return all
}

// registries reads the tables [registries.NAME], checking every key; values are for
// whoever has the flags.
func (c configFile) registries() (map[string]Table, error) {
	all := map[string]Table{}
	tables, _ := c.keys["registries"].(map[string]any) // else it is an unknown key
	hint := "a registry's table has " + strings.Join(registryKeys, ", ") + " and policy"
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		in := RegistryTable(name)
		table, ok := tables[name].(map[string]any)
		if !ok {
			return nil, Hint(Usagef("%s: unknown key registries.%s", c.path, name), "the settings of a registry go into its table, as in [registries.NAME]")
		}
		t := Table{Keys: map[string][]string{}}
		for _, key := range slices.Sorted(maps.Keys(table)) {
			v := table[key]
			inner, isTable := v.(map[string]any)
			switch {
			case key == "policy" && isTable:
				t.Policy = inner
			case key == "policy":
				return nil, Hint(Usagef("%s: %s: policy is no table", c.path, in), "its rules go into "+PolicyTable(name))
			case isTable, !slices.Contains(registryKeys, key):
				return nil, Hint(Usagef("%s: %s: unknown key %s", c.path, in, key), hint)
			default:
				t.Keys[key] = texts(v)
			}
		}
		all[name] = t
	}
	return all, nil
}
