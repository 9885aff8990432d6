package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// shared are the flags that may stand at the top level of the configuration
// file: every program, or more than one, has them.
var shared = map[string]bool{
	"state": true, "node": true, "ipfs-api": true, "network": true, "peer": true,
	"upstream": true, "json": true, "verbose": true,
}

// Common are the settings that every command has.
type Common struct {
	State   string
	Node    string
	IPFSAPI string
	Network string
	Peers   []string
	JSON    bool
	Verbose bool
	// Settings are those of the command that runs, once it began.
	Settings *Settings
	config   string
}

// Bind adds the common flags to root and makes every command configure itself
// from the environment and the configuration file before it runs.
func (c *Common) Bind(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&c.State, "state", "", "directory that holds everything this command keeps (default: registry-mirror in the user's data directory)")
	f.StringVar(&c.Node, "node", "", "IPFS node of this state: embedded or kubo; chosen once, then remembered")
	f.StringVar(&c.IPFSAPI, "ipfs-api", "", "RPC address of the Kubo daemon (default: where Kubo's own clients look)")
	f.StringVar(&c.Network, "network", "", "whom the embedded node talks to: local, lan or public")
	f.StringArrayVar(&c.Peers, "peer", nil, "multiaddr of a peer to dial, with /p2p/ID; may be repeated")
	f.BoolVar(&c.JSON, "json", false, "print one JSON object on standard output")
	f.BoolVarP(&c.Verbose, "verbose", "v", false, "log what is done")
	f.StringVar(&c.config, "config", "", "configuration file (default: registry-mirror/config.toml in the user's configuration directory)")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if c.Settings, err = Configure(cmd, os.Environ()); err != nil {
			return err
		}
		switch c.Node {
		case "", "embedded", "kubo":
		default:
			return Usagef("--node %s: it is embedded or kubo", c.Node)
		}
		switch c.Network {
		case "", "local", "lan", "public":
		default:
			return Usagef("--network %s: it is local, lan or public", c.Network)
		}
		for _, addr := range c.Peers {
			if _, err := peer.AddrInfoFromString(addr); err != nil {
				return Hint(Usagef("--peer %.200s: %w", addr, err), "it is a multiaddr with /p2p/ID: the `peer` that their `up` printed")
			}
		}
		if c.State == "" {
			dir, err := dataDir()
			if err != nil {
				return Hint(Usagef("no place for the state: %w", err), "name one with --state DIR")
			}
			c.State = dir
		}
		abs, err := filepath.Abs(c.State)
		if err != nil {
			return Usagef("--state: %w", err)
		}
		if info, err := os.Stat(abs); err == nil && !info.IsDir() {
			return Hint(Usagef("--state %s: it is no directory", c.State), "name the directory that holds everything, or one to be made")
		}
		c.State = abs
		return nil
	}
}

// dataDir is registry-mirror in $XDG_DATA_HOME, else in ~/.local/share (XDG
// Base Directory Specification).
func dataDir() (string, error) {
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "registry-mirror"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local", "share", "registry-mirror"), nil
}

// Logger writes to w: warnings and errors, or everything with -v or for a
// command that runs on.
func (c *Common) Logger(w io.Writer, daemon bool) *slog.Logger {
	level := slog.LevelWarn
	if daemon {
		level = slog.LevelInfo
	}
	if c.Verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// PrintJSON writes v as one indented object.
func PrintJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// Count is n and what it counts, for people: "1 line", "2 lines".
func Count[N int | int64 | uint64](n N, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n) + " " + one + "s"
}

// Time is a time for people, in UTC as on the pages and in --at, to the second.
func Time(t time.Time) string { return t.UTC().Format(time.DateTime + " UTC") }

// IsTerminal tells whether a person reads w.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Size is a flag for a count of bytes: "1048576", "64MiB", "1.5GiB", "10MB".
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1},
}

// Set implements pflag.Value.
func (s *Size) Set(text string) error {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if n *= u.bytes; err != nil || n < 0 || n > math.MaxInt64/2 || math.IsNaN(n) {
			break
		}
		*s = Size(n)
		return nil
	}
	return fmt.Errorf("%.40q is no size, like 64MiB", text)
}

// String implements pflag.Value.
func (s *Size) String() string {
	for _, u := range []string{"GiB", "MiB", "KiB"} {
		for _, unit := range sizeUnits {
			if unit.suffix == u && *s != 0 && int64(*s)%int64(unit.bytes) == 0 {
				return strconv.FormatInt(int64(*s)/int64(unit.bytes), 10) + u
			}
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

// Type implements pflag.Value.
func (*Size) Type() string { return "size" }
